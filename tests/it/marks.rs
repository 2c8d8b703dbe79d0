//! Stories of what ends by hand: tasks, while the run goes on, and runs, whose agents let go of them.

use std::time::Duration;

use serde_json::json;

use waft::model::id::FlowRunId;
use waft::model::state::State;
use waft::wire::{NewMark, NewRetry, TaskMark, WatchQuery};

use crate::kit::program::Processes;
use crate::kit::witness::{Witness, patient};
use crate::kit::world::World;

const HOUR_MS: u64 = 3_600_000;

fn marks(state: State, task: &str, output: Option<&str>) -> NewMark {
    NewMark {
        task_runs: (!task.is_empty())
            .then(|| task.parse().unwrap())
            .into_iter()
            .collect(),
        state,
        output: output.map(str::to_owned),
        reason: "by hand".to_owned(),
    }
}

/// Waits until the task runs of a run are as they should be.
async fn until_tasks(world: &Witness, run: FlowRunId, are: &str) {
    let mut query = WatchQuery {
        after: None,
        wait_seconds: 30,
    };
    let known = async {
        loop {
            let watched = world.client.watch_flow_run(run, &query).await.unwrap();
            if world.tasks(run).await.contains(are) {
                return;
            }
            query.after = Some(watched.transition);
        }
    };
    patient(are, known).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tasks_end_by_hand_at_work_and_while_nobody_has_the_run() {
    let mut world = World::ticking().await;
    world.register("pauses").await;
    world.agent("mira").await;
    let run = world.run("pauses", json!({"millis": HOUR_MS})).await;
    until_tasks(&world, run, "aside Running 1").await;
    until_tasks(&world, run, "ask Paused 1").await;
    // It sleeps for an hour, and stops at once. What is left of the run waits for a person.
    world
        .client
        .mark(run, &marks(State::Skipped, "aside", None))
        .await
        .unwrap();
    until_tasks(&world, run, "aside Skipped 1").await;
    world.is(run, State::Paused).await;
    let by_hand = marks(State::Success, "ask", Some("\"by hand\""));
    world.client.mark(run, &by_hand).await.unwrap();
    until_tasks(&world, run, "send Paused 0").await;
    let sent = marks(State::Success, "send", Some("{\"sent\": 1}"));
    world.client.mark(run, &sent).await.unwrap();
    let ended = world.ends_as(run, State::Success).await;
    assert_eq!(world.result(&ended), json!({"sent": 1}));
    assert_eq!(world.out_log(), ["ask: paused"]);
    assert_eq!(
        world.tasks(run).await,
        "aside Skipped 1\nask Success 1\nsend Success 0\n"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_hangs_on_a_cancelled_task_does_not_run_and_a_retry_takes_what_was_done_by_hand() {
    let mut world = World::ticking().await;
    world.register("storm").await;
    world.agent("mira").await;
    let run = world.run("storm", json!({"millis": HOUR_MS})).await;
    until_tasks(&world, run, "step Running 1").await;
    let cancels = marks(State::Cancelled, "step", None);
    world.client.mark(run, &cancels).await.unwrap();
    let failed = world.ends_as(run, State::Failed).await;
    assert_eq!(
        failed.message,
        "task `step` was cancelled: cancelled by `first`: by hand"
    );
    let known = world.tasks(run).await;
    assert!(known.contains("step-2 TriggerFailed 0"), "{known}");
    let mark = |task: &str, output: &str| TaskMark {
        task_run: task.parse().unwrap(),
        state: State::Success,
        output: Some(output.to_owned()),
    };
    let retry = NewRetry {
        marks: ["step", "step-2", "step-3", "step-4"]
            .map(|task| mark(task, "7"))
            .into(),
        reason: "done by hand".to_owned(),
        ..NewRetry::default()
    };
    let retry = world.client.retry(run, &retry).await.unwrap().id;
    until_tasks(&world, retry, "step-5 Running 1").await;
    let last = marks(State::Success, "step-5", Some("8"));
    world.client.mark(retry, &last).await.unwrap();
    let ended = world.ends_as(retry, State::Success).await;
    assert_eq!(world.result(&ended), json!(8));
    assert_eq!(world.out_log().len(), 2, "one began in each run");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_agent_of_a_run_that_is_marked_lets_go_of_it_at_once() {
    let mut world = World::new().await;
    world.register("pauses").await;
    world.register("echo").await;
    world
        .agent_with("mira", |settings| settings.slots = 1)
        .await;
    let run = world.run("pauses", json!({"millis": HOUR_MS})).await;
    until_tasks(&world, run, "aside Running 1").await;
    let marked = world
        .client
        .mark(run, &marks(State::Success, "", None))
        .await
        .unwrap();
    assert_eq!(marked.state, State::Success);
    // No time passes, so it hears of it by no renewal; and it has one slot.
    let other = world.run("echo", json!({"text": "hi"})).await;
    world.ends_as(other, State::Success).await;
    let known = world.tasks(run).await;
    assert!(known.starts_with("aside Cancelled 1\n"), "{known}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_said_outlives_the_death_of_everybody() {
    let mut world = Processes::start(Duration::from_secs(3)).await;
    world.register("pauses").await;
    let mira = world.agent("mira");
    let run = world.run("pauses", json!({"millis": HOUR_MS})).await;
    until_tasks(&world, run, "aside Running 1").await;
    until_tasks(&world, run, "ask Paused 1").await;
    mira.kill();
    for (state, task, output) in [
        (State::Skipped, "aside", None),
        (State::Success, "ask", Some("\"by hand\"")),
    ] {
        world
            .client
            .mark(run, &marks(state, task, output))
            .await
            .unwrap();
        world.kill_server();
        world.start_server().await;
    }
    let nas = world.agent("nas");
    until_tasks(&world, run, "send Paused 0").await;
    assert_eq!(
        world.tasks(run).await,
        "aside Skipped 1\nask Success 1\nsend Paused 0\n"
    );
    let sent = marks(State::Success, "send", Some("1"));
    world.client.mark(run, &sent).await.unwrap();
    let ended = world.ends_as(run, State::Success).await;
    assert_eq!(ended.agent.as_deref(), Some("nas"));
    assert_eq!(world.result(&ended), json!(1));
    assert_eq!(nas.terminate().await, Some(0));
}
