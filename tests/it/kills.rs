//! Stories in which somebody dies: an agent, the server, or an agent that only seems to be dead.
//!
//! The guest `sides` leaves a line in a file when a step begins and when it ends, so what was
//! executed twice is seen from outside. The first stories play in one process with time by hand; the
//! others with the real program and `kill -9`.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::Write as _;
use std::time::Duration;

use expect_test::expect;
use serde_json::json;

use waft::clock::Clock;
use waft::model::id::FlowRunId;
use waft::model::state::State;
use waft::wire::ListQuery;

use crate::kit::program::{Processes, line_with, lines, lines_of};
use crate::kit::witness::{Witness, patient};
use crate::kit::world::{LEASE, World};

const SECOND: Duration = Duration::from_secs(1);
/// The lease in stories with real time.
const SHORT_LEASE: Duration = Duration::from_secs(3);
/// A lease that lasts through an outage.
const LONG_LEASE: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_outlives_its_agent() {
    let mut world = World::new().await;
    world.register("sides").await;
    world.agent("mira").await;
    let run = world.run("sides", json!({"millis": 300})).await;
    // The first step is over and known to the server, the second has begun.
    world.out_lines(3).await;
    world.until_successes(run, 1).await;

    world.kill("mira").await;
    world.pass(LEASE + SECOND).await;
    world.is(run, State::Scheduled).await;
    world.agent("nas").await;

    let ended = world.ends_as(run, State::Success).await;
    assert_eq!(world.result(&ended), json!(3));
    expect![[r#"
        00:00 Scheduled  first
        00:00 Claimed    mira
        00:00 Running    mira
        00:31 Scheduled  server
        00:31 Claimed    nas
        00:31 Running    nas
        00:31 Success    nas
    "#]]
    .assert_eq(&world.history(run).await);
    assert_steps(&world.out_log(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_that_outlives_no_agent_is_crashed_in_the_end() {
    let mut world = World::new().await;
    world.register("naps").await;
    let run = world.run("naps", json!({"millis": 3_600_000})).await;
    let mut agents = 0;
    let ended = loop {
        let name = format!("agent-{agents}");
        world.agent(&name).await;
        agents += 1;
        world.is(run, State::Running).await;
        world.kill(&name).await;
        world.pass(LEASE + SECOND).await;
        let run = world
            .until(run, "the lease to be taken away", |run| {
                run.state != State::Running
            })
            .await;
        if run.state.is_over() {
            break run;
        }
        assert!(agents < 5, "it is handed out for ever");
    };
    assert_eq!(ended.state, State::Crashed);
    assert_eq!(ended.code.as_deref(), Some("lost.agent"));
    assert_eq!(ended.claims, agents);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kill_9_of_the_agent_in_mid_run() {
    let world = Processes::start(SHORT_LEASE).await;
    world.register("sides").await;
    let mira = world.agent("mira");
    let run = world.run("sides", json!({"millis": 400})).await;
    lines(&world.out_log(), 3).await;
    world.until_successes(run, 1).await;

    mira.kill();
    let nas = world.agent("nas");

    let ended = world.ends_as(run, State::Success).await;
    assert_eq!((ended.claims, ended.agent.as_deref()), (2, Some("nas")));
    assert_steps(&lines_of(&world.out_log()), 1);
    assert_in_order(&world).await;
    assert_eq!(nas.terminate().await, Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kill_9_of_the_server_in_mid_run() {
    let mut world = Processes::start(SHORT_LEASE).await;
    world.register("sides").await;
    let mira = world.agent("mira");
    let run = world.run("sides", json!({"millis": 400})).await;
    lines(&world.out_log(), 3).await;

    world.kill_server();
    // The agent goes on without it: the step that had begun ends.
    lines(&world.out_log(), 4).await;
    world.start_server().await;

    let ended = world.ends_as(run, State::Success).await;
    assert_eq!(ended.claims, 1, "the agent kept its run");
    assert_steps(&lines_of(&world.out_log()), 0);
    assert_in_order(&world).await;
    assert_eq!(mira.terminate().await, Some(0));
}

/// What its agent finished while the server was away is known after the death of both: it lay on disk.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kill_9_of_the_agent_while_the_server_is_away() {
    let mut world = Processes::start(LONG_LEASE).await;
    world.register("sides").await;
    let mira = world.agent("mira");
    let run = world.run("sides", json!({"millis": 1_000})).await;
    lines(&world.out_log(), 1).await;

    world.kill_server();
    // The first two steps have ended, and so has the wait for an answer; the third is at work.
    lines(&world.out_log(), 5).await;
    let spool = world.home().join("agents/mira.spool");
    let spooled = async {
        while lines_of(&spool)
            .iter()
            .filter(|line| line.contains("\"succeed\""))
            .count()
            < 2
        {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    patient("both ends in the spool", spooled).await;
    mira.kill();
    // Whoever is killed while it writes leaves half a line.
    let torn = OpenOptions::new().append(true).open(&spool);
    torn.unwrap().write_all(b"{\"lease\":").unwrap();
    world.start_server().await;
    let mira = world.agent("mira");

    let ended = world.ends_as(run, State::Success).await;
    assert_eq!((ended.claims, world.result(&ended)), (2, json!(3)));
    assert_steps(&lines_of(&world.out_log()), 1);
    assert_in_order(&world).await;
    assert!(!spool.exists(), "what is delivered is forgotten");
    assert_eq!(mira.terminate().await, Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_that_leaves_has_left_a_server_that_is_started_anew_too() {
    let mut world = Processes::start(SHORT_LEASE).await;
    world.register("naps").await;
    let mira = world.agent("mira");
    let run = world.run("naps", json!({"millis": 3_600_000})).await;
    world.is(run, State::Running).await;
    let shown = async |world: &Processes| {
        let agents = world.client.list_agents(&ListQuery::default()).await;
        agents.unwrap().items.remove(0)
    };
    let has_left = async |world: &Processes| while shown(world).await.is_polling {};
    mira.drain();
    patient("the agent to leave", has_left(&world)).await;

    world.kill_server();
    let before = Clock::default().now();
    world.start_server().await;
    let heard = async { while shown(&world).await.seen_at < before {} };
    patient("the server to hear of the agent", heard).await;
    patient("the agent to have left", has_left(&world)).await;
    world.client.cancel(run).await.unwrap();
    assert_eq!(mira.ends().await, Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_watches_a_run_outlasts_a_restart_of_the_server() {
    let mut world = Processes::start(SHORT_LEASE).await;
    world.register("sides").await;
    let mira = world.agent("mira");
    let run = world.run("sides", json!({"millis": 400})).await;
    let id = run.to_string();
    let (watcher, said) = world.says(["flow-run", "watch", "--logs", &id]);
    line_with(&said, "Running").await;

    world.kill_server();
    line_with(&said, "asking until it is back").await;
    world.start_server().await;

    assert_eq!(watcher.ends().await, Some(0));
    let said = lines_of(&said);
    let count = |words| said.iter().filter(|line| line.contains(words)).count();
    assert_eq!(count("asking until it is back"), 1, "{said:#?}");
    assert_eq!(count("the server is back"), 1, "{said:#?}");
    assert_eq!(mira.terminate().await, Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_that_was_frozen_past_its_lease_does_no_harm() {
    let world = Processes::start(SHORT_LEASE).await;
    world.register("sides").await;
    let mira = world.agent("mira");
    let run = world.run("sides", json!({"millis": 400})).await;
    lines(&world.out_log(), 3).await;
    world.until_successes(run, 1).await;

    mira.freeze();
    let nas = world.agent("nas");
    world
        .until(run, "another agent to have it", |run| run.claims == 2)
        .await;
    mira.thaw();

    let ended = world.ends_as(run, State::Success).await;
    assert_eq!(ended.claims, 2);
    let log = lines_of(&world.out_log());
    let first = log[0].strip_prefix("begin ").expect("a step begins");
    let again = log.iter().filter(|line| line.contains(first)).count();
    assert_eq!(again, 2, "a finished step was executed again: {log:#?}");
    assert_in_order(&world).await;
    drop((mira, nas));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_runs_through_kills_of_everybody() {
    let mut world = Processes::start(SHORT_LEASE).await;
    world.register("sides").await;
    let mut agent = world.agent("mira");
    let mut runs = Vec::new();
    for _ in 0..12 {
        runs.push(world.run("sides", json!({"millis": 120})).await);
    }
    for round in 0..3 {
        lines(&world.out_log(), (round + 1) * 8).await;
        if round % 2 == 0 {
            world.kill_server();
            world.start_server().await;
        } else {
            agent.kill();
            agent = world.agent("mira");
        }
    }
    for run in runs {
        world.ends_as(run, State::Success).await;
    }
    assert_in_order(&world).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endless_loop_is_cancelled_within_a_second() {
    let world = Processes::start(SHORT_LEASE).await;
    world.register("spin").await;
    let _mira = world.agent("mira");
    let mut took = Vec::new();
    for _ in 0..5 {
        let run = world.run("spin", json!({})).await;
        world.is(run, State::Running).await;
        world.client.cancel(run).await.unwrap();
        world.ends_as(run, State::Cancelled).await;
        took.push(cancelled_in(&world, run).await);
    }
    took.sort_unstable();
    assert!(took[2] <= SECOND, "{took:?}");
}

/// Returns the time from Cancelling to Cancelled, by the server's clock.
async fn cancelled_in(world: &Witness, run: FlowRunId) -> Duration {
    let steps = world.transitions(run).await;
    let at = |state| {
        let own = |step: &&waft::wire::Transition| step.task_run.is_none() && step.state == state;
        steps.iter().find(own).expect("it was there").at
    };
    let took = at(State::Cancelled).duration_since(at(State::Cancelling));
    took.try_into().expect("the end follows the wish")
}

/// Checks that each of three steps ended once, and that so many of them were begun a second time.
fn assert_steps(log: &[String], again: usize) {
    let mut begun: BTreeMap<&str, usize> = BTreeMap::new();
    let mut ended: BTreeMap<&str, usize> = BTreeMap::new();
    for line in log {
        let mut words = line.split(' ');
        let count = match words.next() {
            Some("begin") => &mut begun,
            Some("end") => &mut ended,
            _ => panic!("a strange line: {line}"),
        };
        *count.entry(words.next().expect("a key")).or_default() += 1;
    }
    assert_eq!(ended.len(), 3, "{log:#?}");
    assert!(ended.values().all(|count| *count == 1), "{log:#?}");
    assert_eq!(begun.values().sum::<usize>(), 3 + again, "{log:#?}");
    let first = log[0].split(' ').nth(1).expect("a key");
    assert_eq!(
        begun[first], 1,
        "a finished step was executed again: {log:#?}"
    );
}

/// Checks that all histories are legal and without gaps.
async fn assert_in_order(world: &Witness) {
    let faults = world.faults().await;
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}
