//! Tests of the runner with real sandboxes and commands written by hand; flows as authors write them
//! are run by `tests/it`.
//!
//! A component here has one command. To have several tasks of it, these definitions break the rule
//! that a command is a flow of one task; the runner does not mind.

mod slots;
mod waits;

use std::collections::HashMap;

use serde_json::json;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use super::*;
use crate::clock::TestClock;
use crate::config::Access;
use crate::model::artifact::Digest;
use crate::model::state::Event;
use crate::sandbox::{self, Compiler};
use crate::storage::Root;

/// A command that ends at once, well or not.
fn ends(code: i32) -> String {
    command("", &format!("(i32.const {code})"))
}

/// A command that never ends.
fn spins() -> String {
    command("", "(loop $l (br $l)) (i32.const 0)")
}

fn command(fields: &str, body: &str) -> String {
    format!(
        r#"(component
            (core module $m {fields} (func $run (export "run") (result i32) {body}))
            (core instance $i (instantiate $m))
            (func $run (result (result)) (canon lift (core func $i "run")))
            (instance (export "wasi:cli/run@0.2.0") (export "run" (func $run))))"#
    )
}

struct World {
    folder: tempfile::TempDir,
    runner: Runner,
    time: TestClock,
}

/// A run that goes on.
struct Going {
    orders: watch::Sender<Order>,
    told: mpsc::Receiver<Told>,
    end: JoinHandle<RunEnd>,
}

impl World {
    fn new() -> Self {
        Self::with(2, Limits::CEILING)
    }

    fn with(parallel: usize, ceiling: Limits) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (clock, time) = Clock::test(Timestamp::UNIX_EPOCH);
        let code = folder.path().join("code");
        let sandbox = Sandbox::new(sandbox::Settings::new(Compiler::InProcess, code, 4)).unwrap();
        let root = Root::local(&folder.path().join("results")).unwrap();
        let runner = Runner::new(Settings {
            sandbox,
            results: Results::open(&root, "mira", &Access::default(), clock.clone()).unwrap(),
            task_cache: TaskCache::open(&root, &Access::default()).unwrap(),
            powers: Arc::default(),
            ceiling,
            clock,
            parallel,
        });
        Self {
            folder,
            runner,
            time,
        }
    }

    async fn job(&self, text: &str, definition: serde_json::Value) -> Job {
        let bytes = wat::parse_str(text).unwrap();
        let digest = Digest::of(&bytes);
        let file = self.folder.path().join(digest.to_hex());
        std::fs::write(&file, &bytes).unwrap();
        let definition: Definition = serde_json::from_value(definition).unwrap();
        Job {
            flow_run_id: FlowRunId::at(0, 0),
            project: String::new(),
            prepared: self
                .runner
                .0
                .settings
                .sandbox
                .prepare(digest, &file)
                .await
                .unwrap(),
            registered: Arc::new(definition.clone()),
            described: Arc::new(Described {
                definition,
                constants: HashMap::new(),
            }),
            parameters: Bound::new(),
            scheduled_at: Timestamp::UNIX_EPOCH,
            started_at: None,
            timeout_ms: None,
            stood_still_ms: 0,
            lost: 0,
            earlier: Vec::new(),
            is_taken_back: false,
            decisions: mpsc::unbounded_channel().1,
            slots: TagSlots::default(),
        }
    }

    fn go(&self, job: Job) -> Going {
        let (orders, heard) = watch::channel(Order::Go);
        let (tell, told) = mpsc::channel(4);
        let runner = self.runner.clone();
        Going {
            orders,
            told,
            end: tokio::spawn(async move { runner.run(job, heard, tell).await }),
        }
    }

    async fn run(&self, text: &str, definition: serde_json::Value) -> (Vec<String>, RunEnd) {
        let mut going = self.go(self.job(text, definition).await);
        let mut lines = Vec::new();
        while let Some(line) = going.next().await {
            lines.push(line);
        }
        (lines, going.end.await.unwrap())
    }
}

impl Going {
    async fn next(&mut self) -> Option<String> {
        let happening = self.told.recv().await?.what;
        Some(match happening {
            Happening::FlowRun(moved) => format!("run {}", moved.event),
            Happening::TaskRun(moved) => format!("{} {}", moved.task_run, moved.event),
            Happening::Log { lines } if lines[0].task_run.is_none() => {
                format!("{:?} {}", lines[0].level, lines[0].text)
            }
            Happening::Log { lines } => {
                assert!(
                    lines
                        .iter()
                        .all(|line| line.task_run.is_some() && line.attempt > 0)
                );
                format!("{} lines", lines.len())
            }
            Happening::Card { card } => format!("card {}", card.title),
            Happening::Preparing { message } => format!("preparing {message}"),
        })
    }

    async fn until(&mut self, line: &str) {
        while self.next().await.unwrap() != line {}
    }
}

fn flow(tasks: &[serde_json::Value], edges: serde_json::Value) -> serde_json::Value {
    let tasks: Vec<_> = tasks
        .iter()
        .map(|task| {
            let mut whole = json!({"body": "command", "skip_on_upstream_skip": true});
            let fields = whole.as_object_mut().unwrap();
            fields.extend(task.as_object().unwrap().clone());
            whole
        })
        .collect();
    json!({"name": "f", "command": {}, "tasks": tasks, "edges": edges, "output": tasks[0]["name"]})
}

fn one(fields: serde_json::Value) -> serde_json::Value {
    let mut task = json!({"name": "a"});
    let own = task.as_object_mut().unwrap();
    own.extend(fields.as_object().unwrap().clone());
    flow(&[task], json!([]))
}

#[tokio::test]
async fn an_output_is_durable_before_the_success_is_told() {
    let world = World::new();
    let (lines, end) = world.run(&ends(0), one(json!({}))).await;
    assert_eq!(lines, ["run start", "a start", "a succeed"]);
    assert_eq!(end.moved.event, Event::Succeed);
    let result = end.moved.result.unwrap();
    let looked = Results::look_up(&result, "mira", &Access::default()).await;
    assert_eq!(looked.unwrap(), end.value.unwrap());
}

#[tokio::test]
async fn a_task_waits_for_its_upstream_task() {
    let world = World::new();
    let edges = json!([{"from": {"task": "a"}, "to": "b"}]);
    let definition = flow(&[json!({"name": "a"}), json!({"name": "b"})], edges);
    let (lines, _) = world.run(&ends(0), definition.clone()).await;
    assert_eq!(
        lines,
        ["run start", "a start", "a succeed", "b start", "b succeed"]
    );
    let (lines, end) = world.run(&ends(1), definition).await;
    assert_eq!(lines, ["run start", "a start", "a fail", "b fail-trigger"]);
    assert_eq!(end.moved.message, "task `a` failed: exit code 1");
}

#[tokio::test]
async fn a_retry_waits_for_its_time() {
    let world = World::new();
    let definition = one(json!({"retries": {"count": 1, "delay_ms": 60_000}}));
    let mut going = world.go(world.job(&ends(1), definition).await);
    going.until("a retry").await;
    assert!(going.told.try_recv().is_err());
    world.time.pass(Duration::from_secs(59));
    tokio::task::yield_now().await;
    assert!(going.told.try_recv().is_err());
    world.time.pass(Duration::from_secs(1));
    assert_eq!(going.next().await.unwrap(), "a start");
    going.until("a fail").await;
    assert_eq!(going.end.await.unwrap().moved.event, Event::Fail);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancelled_run_stops_its_attempts_and_says_so() {
    let world = World::new();
    let definition = flow(&[json!({"name": "a"}), json!({"name": "b"})], json!([]));
    let mut going = world.go(world.job(&spins(), definition).await);
    going.until("run start").await;
    let (one, two) = (going.next().await.unwrap(), going.next().await.unwrap());
    assert_ne!(one, two);
    going.orders.send(Order::Cancel).unwrap();
    assert_eq!(going.next().await.unwrap(), "a stop");
    assert_eq!(going.next().await.unwrap(), "b stop");
    assert_eq!(going.next().await, None);
    assert_eq!(going.end.await.unwrap().moved.event, Event::Stop);
    assert_eq!(world.runner.0.turns.available_permits(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_must_not_run_twice_begins_only_after_its_start_is_known() {
    let world = World::new();
    let definition = one(json!({"on_lost": "fail"}));
    let mut going = world.go(world.job(&ends(0), definition.clone()).await);
    going.until("run start").await;
    let told = going.told.recv().await.unwrap();
    assert!(matches!(&told.what, Happening::TaskRun(moved) if moved.event == Event::Start));
    tokio::task::yield_now().await;
    assert!(going.told.try_recv().is_err(), "it did not wait");
    told.settled.unwrap().send(()).unwrap();
    assert_eq!(going.next().await.unwrap(), "a succeed");
    // Nobody will ever know of this one, and so it is not made.
    let mut going = world.go(world.job(&ends(0), definition).await);
    going.until("run start").await;
    drop(going.told.recv().await.unwrap());
    going.orders.send(Order::Abandon).unwrap();
    assert_eq!(going.next().await, None);
    assert_eq!(going.end.await.unwrap().moved.event, Event::Lose);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_abandoned_run_says_nothing_of_what_was_stopped() {
    let world = World::new();
    let mut going = world.go(world.job(&spins(), one(json!({}))).await);
    going.until("a start").await;
    going.orders.send(Order::Abandon).unwrap();
    assert_eq!(going.next().await, None);
    assert_eq!(going.end.await.unwrap().moved.event, Event::Lose);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_abandoned_run_says_what_was_finished() {
    let world = World::new();
    let followers = ["b", "c", "d", "e"];
    let tasks = ["a"]
        .iter()
        .chain(&followers)
        .map(|name| json!({"name": name}));
    let edges = followers.map(|name| json!({"from": {"task": "a"}, "to": name}));
    let definition = flow(&tasks.collect::<Vec<_>>(), json!(edges));
    let mut going = world.go(world.job(&ends(1), definition).await);
    // Nobody listens, so that most of it waits for room when the order comes.
    while going.told.len() < going.told.max_capacity() {
        tokio::task::yield_now().await;
    }
    going.orders.send(Order::Abandon).unwrap();
    let mut lines = Vec::new();
    while let Some(line) = going.next().await {
        lines.push(line);
    }
    assert_eq!(lines.len(), 3 + followers.len(), "{lines:?}");
    assert_eq!(going.end.await.unwrap().moved.event, Event::Lose);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_ends_at_its_timeout_wherever_it_began() {
    let world = World::new();
    let mut job = world.job(&spins(), one(json!({}))).await;
    job.timeout_ms = Some(60_000);
    job.started_at = Some(Timestamp::UNIX_EPOCH);
    world.time.pass(Duration::from_secs(50));
    let mut going = world.go(job);
    going.until("a start").await;
    world.time.pass(Duration::from_secs(10));
    assert_eq!(going.next().await.unwrap(), "a stop");
    let moved = going.end.await.unwrap().moved;
    assert_eq!(moved.event, Event::TimeOut);
    assert_eq!(moved.code.as_deref(), Some("limit.wall"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_attempt_that_takes_too_long_has_timed_out() {
    let world = World::new();
    let (lines, end) = world.run(&spins(), one(json!({"timeout_ms": 30}))).await;
    assert_eq!(lines, ["run start", "a start", "a time-out"]);
    assert_eq!(end.moved.code.as_deref(), Some("limit.wall"));
    assert_eq!(end.moved.event, Event::Fail);
}

#[tokio::test]
async fn runs_take_turns() {
    let world = World::with(1, Limits::CEILING);
    let tasks: Vec<_> = (0..20).map(|n| json!({"name": format!("t{n}")})).collect();
    let definition = flow(&tasks, json!([]));
    let text = ends(0);
    let (one, two) = tokio::join!(
        world.run(&text, definition.clone()),
        world.run(&text, definition)
    );
    for (lines, end) in [one, two] {
        assert_eq!(end.moved.event, Event::Succeed);
        assert_eq!(lines.len(), 41);
    }
    assert_eq!(world.runner.0.turns.available_permits(), 1);
}

#[tokio::test]
async fn an_output_serves_later_runs_until_it_expires() {
    let world = World::new();
    let definition = one(json!({"cache": {"valid_ms": 60_000}}));
    let (lines, _) = world.run(&ends(0), definition.clone()).await;
    assert_eq!(lines, ["run start", "a start", "a succeed"]);
    let (lines, end) = world.run(&ends(0), definition.clone()).await;
    assert_eq!(lines, ["run start", "a cache"]);
    assert!(end.value.is_some());
    world.time.pass(Duration::from_secs(60));
    let (lines, _) = world.run(&ends(0), definition).await;
    assert_eq!(lines, ["run start", "a start", "a succeed"]);
}

#[tokio::test]
async fn a_run_is_taken_up_where_it_was_left() {
    let world = World::new();
    let edges = json!([{"from": {"task": "a"}, "to": "b"}]);
    let definition = flow(&[json!({"name": "a"}), json!({"name": "b"})], edges);
    let (_, end) = world.run(&ends(0), definition.clone()).await;
    let mut job = world.job(&ends(0), definition).await;
    let earlier = json!({
        "task": "a", "map_index": null, "state": "Success", "message": "", "code": null,
        "attempts": 1, "loop_count": 0, "started_at": null, "ended_at": null, "usage": {},
        "result": end.moved.result,
    });
    job.earlier = vec![serde_json::from_value(earlier).unwrap()];
    let mut going = world.go(job);
    going.until("run start").await;
    assert_eq!(going.next().await.unwrap(), "b start");
    going.until("b succeed").await;
    let again = going.end.await.unwrap();
    assert_eq!(again.moved.result, end.moved.result);
    assert_eq!(again.value, end.value);
}

#[tokio::test]
async fn a_task_is_granted_only_what_was_registered_too() {
    let world = World::new();
    let asks = one(json!({"grants": {"env": ["HOME", "USER"]}}));
    let mut job = world.job(&ends(0), asks).await;
    let registered = one(json!({"grants": {"env": ["HOME", "PATH"]}}));
    job.registered = Arc::new(serde_json::from_value(registered).unwrap());
    let mut going = world.go(job);
    let mut denials = Vec::new();
    while let Some(Told {
        what: happening, ..
    }) = going.told.recv().await
    {
        if let Happening::TaskRun(moved) = happening {
            denials = moved.denials;
        }
    }
    assert_eq!(denials.len(), 1, "{denials:?}");
    assert!(denials[0].contains("--allow-env HOME"), "{denials:?}");
}

/// Puts a file where the folder of results is to be, and returns its path.
fn in_the_way(world: &World) -> std::path::PathBuf {
    let place = world.folder.path().join("results");
    world.runner.0.settings.results.renew();
    std::fs::remove_dir_all(&place).unwrap();
    std::fs::write(&place, "in the way").unwrap();
    place
}

#[tokio::test]
async fn a_run_whose_output_cannot_be_kept_is_handed_back_and_nothing_counts() {
    let world = World::new();
    let definition = one(json!({"cache": {"valid_ms": 60_000}}));
    let place = in_the_way(&world);
    let (lines, end) = world.run(&ends(0), definition.clone()).await;
    assert_eq!(lines, ["run start", "a start"]);
    assert_eq!(end.moved.event, Event::Lose);
    assert_eq!(end.moved.code.as_deref(), Some(LOST_RESULTS));
    let said = &end.moved.message;
    assert!(said.contains(place.to_str().unwrap()), "{said}");
    std::fs::remove_file(place).unwrap();
    let (lines, end) = world.run(&ends(0), definition).await;
    assert_eq!(lines, ["run start", "a start", "a succeed"]);
    assert_eq!(end.moved.event, Event::Succeed);
}

#[tokio::test]
async fn earlier_outputs_that_are_away_hand_the_run_back_and_lost_ones_crash_it() {
    let world = World::new();
    let edges = json!([{"from": {"task": "a"}, "to": "b", "input": "x"}]);
    let definition = flow(&[json!({"name": "a"}), json!({"name": "b"})], edges);
    let (_, end) = world.run(&ends(0), definition.clone()).await;
    let earlier = json!({
        "task": "a", "map_index": null, "state": "Success", "message": "", "code": null,
        "attempts": 1, "loop_count": 0, "started_at": null, "ended_at": null, "usage": {},
        "result": end.moved.result,
    });
    let earlier: TaskRun = serde_json::from_value(earlier).unwrap();
    let place = in_the_way(&world);
    let mut job = world.job(&ends(0), definition.clone()).await;
    job.earlier = vec![earlier.clone()];
    let end = world.go(job).end.await.unwrap();
    assert_eq!(end.moved.code.as_deref(), Some(LOST_RESULTS), "{end:?}");
    std::fs::remove_file(place).unwrap();
    let mut job = world.job(&ends(0), definition).await;
    job.earlier = vec![earlier];
    let mut going = world.go(job);
    while going.next().await.is_some() {}
    let end = going.end.await.unwrap();
    assert_eq!(end.moved.event, Event::Crash, "{end:?}");
    assert_eq!(end.moved.code.as_deref(), Some("results.lost"), "{end:?}");
}

#[tokio::test]
async fn a_run_that_must_not_run_twice_waits_for_the_place_of_its_results() {
    let world = World::new();
    let place = in_the_way(&world);
    let job = world.job(&ends(0), one(json!({"on_lost": "fail"}))).await;
    let mut going = world.go(job);
    going.until("run start").await;
    let told = going.told.recv().await.unwrap();
    told.settled.unwrap().send(()).unwrap();
    let said = going.next().await.unwrap();
    let waits = "Warning it waits for the place of its results: ";
    assert!(
        said.starts_with(waits) && said.contains(place.to_str().unwrap()),
        "{said}"
    );
    let mut waited = Duration::ZERO;
    while waited < Duration::from_secs(60) {
        tokio::task::yield_now().await;
        world.time.pass(Duration::from_secs(1));
        waited += Duration::from_secs(1);
        assert!(going.told.try_recv().is_err() && !going.end.is_finished());
    }
    std::fs::remove_file(place).unwrap();
    let passing = async {
        loop {
            world.time.pass(Duration::from_secs(1));
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::select! {
        next = going.next() => assert_eq!(
            next.unwrap(),
            "Info the place of its results answers again, and it goes on"
        ),
        () = passing => {}
    }
    assert_eq!(going.next().await.unwrap(), "a succeed");
    assert_eq!(going.end.await.unwrap().moved.event, Event::Succeed);
}
