//! Stories of runs that wait, for a later attempt or for a person: nobody has them meanwhile, and any
//! agent goes on with them.

use std::time::Duration;

use expect_test::expect;
use serde_json::json;

use waft::model::id::FlowRunId;
use waft::model::state::State;
use waft::wire::{NewDecision, NewRetry, WatchQuery};

use crate::kit::program::Processes;
use crate::kit::witness::{Witness, patient};
use crate::kit::world::World;

const HOUR: Duration = Duration::from_secs(3600);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_whose_retry_is_due_in_an_hour_is_nobodys_until_then() {
    let mut world = World::new().await;
    world.register("waits").await;
    world.agent("mira").await;
    let run = world.run("waits", json!({"seconds": 3600})).await;
    let waiting = world
        .until(run, "the run to wait", |run| run.due_at > run.scheduled_at)
        .await;
    assert_eq!(waiting.state, State::Scheduled);
    // The agent has nothing left to finish, and another one is there when it is due.
    world.drain("mira").await;
    world.agent("nas").await;
    world.leap(HOUR).await;

    let ended = world.ends_as(run, State::Success).await;
    assert_eq!(world.result(&ended), json!(2));
    assert_eq!(world.out_log(), ["wait 1", "wait 2", "after"]);
    expect![[r#"
        00:00 Scheduled  first
        00:00 Claimed    mira
        00:00 Running    mira
        00:00 Scheduled  mira
        60:00 Claimed    nas
        60:00 Running    nas
        60:00 Success    nas
    "#]]
    .assert_eq(&world.history(run).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_runs_that_wait_leave_the_slots_to_others() {
    let mut world = World::new().await;
    world.register("waits").await;
    world.register("echo").await;
    world
        .agent_with("mira", |settings| settings.slots = 1)
        .await;
    let mut runs = Vec::new();
    for _ in 0..8 {
        runs.push(world.run("waits", json!({"seconds": 3600})).await);
    }
    for run in &runs {
        world
            .until(*run, "the run to wait", |run| run.due_at > run.scheduled_at)
            .await;
    }
    let other = world.run("echo", json!({"text": "hi"})).await;
    world.ends_as(other, State::Success).await;
    world.leap(HOUR).await;
    for run in runs {
        world.ends_as(run, State::Success).await;
    }
}

fn approves(task: &str) -> NewDecision {
    NewDecision {
        task_run: Some(task.parse().unwrap()),
        is_declined: false,
        reason: "fine".to_owned(),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_waits_for_people_with_nobody_and_goes_on_where_somebody_is() {
    let mut world = World::new().await;
    world.register("pauses").await;
    world.agent("mira").await;
    let run = world.run("pauses", json!({})).await;
    let paused = world.is(run, State::Paused).await;
    assert_eq!(
        paused.message,
        "`ask` waits for a person: shall `it` go out?"
    );
    world.drain("mira").await;
    // However long it takes.
    world.leap(HOUR * 24 * 7).await;
    world.client.decide(run, &approves("ask")).await.unwrap();
    world.agent("nas").await;
    // The next one is asked by the trigger.
    let paused = world.is(run, State::Paused).await;
    assert_eq!(
        paused.message,
        "`send` waits for a person: its trigger is `manual_only`"
    );
    world.client.decide(run, &approves("send")).await.unwrap();
    let ended = world.ends_as(run, State::Success).await;
    assert_eq!(world.result(&ended), json!("it, fine"));
    let mut lines = world.out_log();
    lines[..2].sort();
    assert_eq!(
        lines,
        [
            "aside: done",
            "ask: paused",
            "ask: approved by first",
            "send: approved by first"
        ]
    );
    assert_eq!(
        world.tasks(run).await,
        "aside Success 1\nask Success 2\nsend Success 1\n"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_approves_while_the_rest_of_the_run_goes_on_does_not_wait_for_that() {
    let mut world = World::ticking().await;
    world.register("pauses").await;
    world.agent("mira").await;
    let run = world.run("pauses", json!({"millis": 3_600_000})).await;
    let asks = |tasks: &str| tasks.contains("ask Paused 1") && tasks.contains("aside Running 1");
    until_tasks(&world, run, asks).await;
    world.client.decide(run, &approves("ask")).await.unwrap();
    until_tasks(&world, run, |tasks| tasks.contains("send Paused 0")).await;
    let mut declined = approves("send");
    declined.is_declined = true;
    world.client.decide(run, &declined).await.unwrap();
    until_tasks(&world, run, |tasks| tasks.contains("send Failed 0")).await;
    let running = world.client.flow_run(run).await.unwrap();
    assert_eq!((running.state, running.claims), (State::Running, 1));
    world.client.cancel(run).await.unwrap();
    world.ends_as(run, State::Cancelled).await;
}

/// Waits until the task runs of a run are as they should be.
async fn until_tasks(world: &World, run: FlowRunId, are: impl Fn(&str) -> bool) {
    let mut query = WatchQuery {
        after: None,
        wait_seconds: 30,
    };
    let known = async {
        loop {
            let watched = world.client.watch_flow_run(run, &query).await.unwrap();
            if are(&world.tasks(run).await) {
                return;
            }
            query.after = Some(watched.transition);
        }
    };
    patient("the task runs to be there", known).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_waits_outlives_the_death_of_everybody() {
    let mut world = Processes::start(Duration::from_secs(3)).await;
    world.register("pauses").await;
    world.register("waits").await;
    let mira = world.agent("mira");
    let paused = world.run("pauses", json!({})).await;
    world.is(paused, State::Paused).await;
    let waiting = world.run("waits", json!({"seconds": 8})).await;
    world
        .until(waiting, "the run to wait", |run| {
            run.due_at > run.scheduled_at
        })
        .await;
    mira.kill();
    world.kill_server();
    world.start_server().await;
    world.client.decide(paused, &approves("ask")).await.unwrap();
    // It is decided once more before anybody could take the run.
    world.kill_server();
    world.start_server().await;
    let nas = world.agent("nas");
    until_paused(&world, paused, "send").await;
    world
        .client
        .decide(paused, &approves("send"))
        .await
        .unwrap();
    let ended = world.ends_as(paused, State::Success).await;
    assert_eq!(ended.agent.as_deref(), Some("nas"));
    let ended = world.ends_as(waiting, State::Success).await;
    assert_eq!((ended.agent.as_deref(), ended.claims), (Some("nas"), 2));
    assert_eq!(nas.terminate().await, Some(0));
}

async fn until_paused(world: &Witness, run: FlowRunId, task: &str) {
    let asks = format!("`{task}` waits");
    world
        .until(run, "the next question", |run| {
            run.message.starts_with(&asks)
        })
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_retry_asks_again_only_what_was_declined() {
    let mut world = World::new().await;
    world.register("pauses").await;
    world.agent("mira").await;
    let run = world.run("pauses", json!({})).await;
    world.is(run, State::Paused).await;
    world.client.decide(run, &approves("ask")).await.unwrap();
    until_paused(&world, run, "send").await;
    let mut declined = approves("send");
    declined.is_declined = true;
    world.client.decide(run, &declined).await.unwrap();
    let failed = world.ends_as(run, State::Failed).await;
    assert_eq!(failed.code.as_deref(), Some("declined"));

    let retry = world.client.retry(run, &NewRetry::default()).await.unwrap();
    until_paused(&world, retry.id, "send").await;
    assert_eq!(
        world.tasks(retry.id).await,
        "aside Cached 1\nask Cached 2\nsend Paused 0\n"
    );
    let again = approves("send");
    world.client.decide(retry.id, &again).await.unwrap();
    let ended = world.ends_as(retry.id, State::Success).await;
    assert_eq!(world.result(&ended), json!("it, fine"));
    let asked = world.out_log();
    let asked = asked.iter().filter(|line| line.starts_with("ask"));
    assert_eq!(asked.count(), 2, "nobody asked twice for the first");
}
