//! Stories of slots of tags: what is at work at one time is seen from outside, by the lines that the guest `tags`
//! leaves when a task begins and when it ends.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use serde_json::json;

use waft::client::Client;
use waft::model::id::FlowRunId;
use waft::model::state::State;
use waft::server;
use waft::wire::{ListQuery, NewToken, Scope, Slots};

use crate::kit::postgres;
use crate::kit::program::{Processes, lines, lines_of};
use crate::kit::witness::patient;
use crate::kit::world::{PROJECT, World};
use crate::server::settings;

/// The lease in stories with real time.
const SHORT_LEASE: Duration = Duration::from_secs(3);

async fn set(client: &Client, tag: &str, slots: Option<u32>) {
    let slots = Slots { slots };
    let set = client.set_tag_slots(PROJECT, tag, &slots).await;
    set.unwrap();
}

/// Returns the most that was at work at one time of the tasks whose names begin so.
fn most(lines: &[String], name: &str) -> usize {
    let (mut now, mut most) = (0_usize, 0);
    for line in lines {
        match line.strip_prefix('+').or_else(|| line.strip_prefix('-')) {
            Some(task) if task.starts_with(name) && line.starts_with('+') => now += 1,
            Some(task) if task.starts_with(name) => now -= 1,
            _ => {}
        }
        most = most.max(now);
    }
    most
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_all_agents_no_more_tasks_of_a_tag_are_at_work_than_it_has_slots() {
    let mut world = World::ticking().await;
    world.register("tags").await;
    set(&world.client, "db", Some(2)).await;
    set(&world.client, "api", Some(1)).await;
    for name in ["mira", "nas"] {
        world
            .agent_with(name, |settings| settings.parallel = 4)
            .await;
    }
    let mut runs = Vec::new();
    for nth in 0..6 {
        let parameters = json!({"numbers": [1, 2, 3, 4], "millis": 10, "fails": nth % 2 == 0});
        runs.push(world.run("tags", parameters).await);
    }
    let mut agents = BTreeSet::new();
    for run in &runs {
        let ended = world.ends_as(*run, State::Success).await;
        assert_eq!(world.result(&ended), json!(10));
        agents.extend(ended.agent);
    }
    let log = world.out_log();
    // Every second run has a retry of each query.
    assert_eq!(log.len(), 2 * (6 * 4 + 3 * 4 + 6));
    // Both tags are of one of the tasks, and `db` of both.
    assert_eq!(most(&log, ""), 2, "{log:?}");
    assert_eq!(most(&log, "sync"), 1, "{log:?}");
    let tags = world.client.list_tags(&ListQuery::default()).await.unwrap();
    assert!(tags.items.iter().all(|tag| tag.waiting == 0));
    assert_eq!(agents.len(), 2, "only one of the agents had work");
}

/// As the first story, but each agent has a server of its own.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_all_servers_no_more_tasks_of_a_tag_are_at_work_than_it_has_slots() {
    let place = postgres::place().await;
    let mut world = World::ticking_on(place.clone()).await;
    let second = server::start(settings(&place)).await.unwrap();
    world.register("tags").await;
    set(&world.client, "db", Some(2)).await;
    let token = world.client.create_token(&every_right()).await.unwrap();
    let client = Client::in_process(second.router.clone(), Some(token.text));
    world.agent("mira").await;
    let other = client.clone();
    world
        .agent_with("nas", |settings| settings.client = other)
        .await;
    let since = Instant::now();
    let mut runs = Vec::new();
    for _ in 0..10 {
        let parameters = json!({"numbers": [1, 2, 3], "millis": 5});
        runs.push(world.run("tags", parameters).await);
    }
    let mut agents = BTreeSet::new();
    for run in &runs {
        let ended = world.ends_as(*run, State::Success).await;
        agents.extend(ended.agent);
    }
    assert_eq!(agents.len(), 2, "only one of the agents had work");
    assert_eq!(most(&world.out_log(), ""), 2);
    println!("forty tasks by two slots took {:?}", since.elapsed());
    world.drain("nas").await;
    drop(client);
    second.shutdown().await;
}

fn every_right() -> NewToken {
    NewToken {
        name: "second".to_owned(),
        scope: Scope::User,
        projects: None,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_number_that_is_set_while_runs_are_at_work_holds_for_their_next_tasks() {
    let mut world = World::ticking().await;
    world.register("tags").await;
    world
        .agent_with("mira", |settings| settings.parallel = 4)
        .await;
    let numbers: Vec<u64> = (0..40).collect();
    let run = world
        .run("tags", json!({"numbers": numbers, "millis": 25}))
        .await;
    world.out_lines(8).await;
    set(&world.client, "db", Some(1)).await;
    let begun = world.out_log().len();
    world.ends_as(run, State::Success).await;
    let log = world.out_log();
    // Four were at work, and as many more may have begun before the agent heard of it.
    let later: Vec<_> = log.iter().skip(begun + 12).cloned().collect();
    let at_work = log.len() - later.len();
    let open = log[..at_work]
        .iter()
        .filter(|it| it.starts_with('+'))
        .count()
        * 2
        - at_work;
    assert!(open <= 1, "{log:?}");
    assert_eq!(most(&later[open..], ""), 1, "{log:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn runs_that_wait_for_slots_leave_their_agent_to_others() {
    let mut world = World::new().await;
    world.register("tags").await;
    world.register("naps").await;
    world.register("echo").await;
    set(&world.client, "db", Some(1)).await;
    world
        .agent_with("mira", |settings| settings.slots = 1)
        .await;
    let holder = world.run("tags", json!({"millis": 3_600_000})).await;
    world.out_lines(1).await;
    world.agent_with("nas", |settings| settings.slots = 1).await;
    let mut runs = Vec::new();
    for _ in 0..3 {
        runs.push(world.run("tags", json!({})).await);
    }
    let handed_back = |id: FlowRunId| {
        let world = &world;
        async move {
            loop {
                let run = world.client.flow_run(id).await.unwrap();
                if run.message == "waits for a slot of the tag `db` for `query[0]`" {
                    return run;
                }
                world.pass(Duration::from_secs(1)).await;
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
    };
    for run in &runs {
        let waiting = patient("the run to be handed back", handed_back(*run)).await;
        assert_eq!(waiting.state, State::Scheduled);
    }
    let other = world.run("echo", json!({"text": "hi"})).await;
    world.ends_as(other, State::Success).await;
    let explained = world.client.explain(runs[0]).await.unwrap();
    let expected = format!(
        "`query[0]` waits for a slot of the tag `db`; of `db` 1 of 1 is taken, by `query[0]` of the run {holder}"
    );
    assert_eq!(explained.summary, expected);
    world.client.cancel(holder).await.unwrap();
    world.ends_as(holder, State::Cancelled).await;
    // Both agents have one slot, so that those in the middle wait, are handed back and come again.
    let over = async {
        for run in &runs {
            while !world.client.flow_run(*run).await.unwrap().state.is_over() {
                world.pass(Duration::from_secs(1)).await;
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
    };
    patient("the runs to end", over).await;
    for run in runs {
        world.ends_as(run, State::Success).await;
    }
    assert_eq!(most(&world.out_log()[1..], ""), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_slot_of_a_killed_agent_is_free_after_its_lease() {
    let world = Processes::start(SHORT_LEASE).await;
    world.register("tags").await;
    set(&world.client, "db", Some(1)).await;
    let mira = world.agent("mira");
    let lost = world.run("tags", json!({"millis": 400})).await;
    lines(&world.out_log(), 1).await;
    let nas = world.agent("nas");
    let waits = world.run("tags", json!({"millis": 400})).await;
    world
        .until(waits, "the task to ask", |run| run.transition >= 4)
        .await;
    mira.kill();
    world.ends_as(waits, State::Success).await;
    let ended = world.ends_as(lost, State::Success).await;
    assert_eq!(
        (ended.claims > 1, ended.agent.as_deref()),
        (true, Some("nas"))
    );
    // But for the attempt that died, which ends nowhere.
    assert_eq!(most(&lines_of(&world.out_log())[1..], ""), 1);
    assert_eq!(nas.terminate().await, Some(0));
}
