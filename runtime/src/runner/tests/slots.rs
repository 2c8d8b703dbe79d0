//! Task runs that wait for slots of tags.

use std::sync::atomic::{AtomicU64, Ordering};

use super::super::course::NAP_MAX;
use super::*;
use crate::model::run::TaskRunKey;

/// Who plays the server of a run: which tags have slots, and who gets some.
struct Desk {
    limited: watch::Sender<Limited>,
    given: mpsc::UnboundedSender<(TaskRunKey, u32)>,
}

impl Desk {
    /// Takes the place of the server of a run.
    fn of(job: &mut Job, tags: &[&str]) -> Self {
        let (limited, heard) = watch::channel(limits(tags));
        let (given, taken) = mpsc::unbounded_channel();
        job.slots = TagSlots {
            limited: heard,
            given: taken,
        };
        Self { limited, given }
    }

    fn give(&self, task: &str, attempts: u32) {
        self.given.send((task.parse().unwrap(), attempts)).unwrap();
    }
}

fn limits(tags: &[&str]) -> Limited {
    let tags = tags.iter().map(|tag| (*tag).to_owned()).collect();
    Limited::from([(String::new(), tags)])
}

fn tagged(name: &str) -> serde_json::Value {
    json!({"name": name, "tags": ["db"]})
}

#[tokio::test]
async fn a_task_with_a_limited_tag_begins_when_it_was_given_slots_and_others_at_once() {
    let world = World::new();
    let definition = flow(
        &[tagged("a"), json!({"name": "b", "tags": ["x"]})],
        json!([]),
    );
    let mut job = world.job(&ends(0), definition).await;
    let desk = Desk::of(&mut job, &["db"]);
    let mut going = world.go(job);
    let mut lines = Vec::new();
    while lines.len() < 4 {
        lines.push(going.next().await.unwrap());
    }
    lines.sort();
    assert_eq!(lines, ["a queue", "b start", "b succeed", "run start"]);
    // Slots for another attempt, or another task, are none of its.
    desk.give("a", 1);
    desk.give("b", 0);
    for _ in 0..10 {
        tokio::task::yield_now().await;
    }
    assert!(going.told.try_recv().is_err());
    desk.give("a", 0);
    desk.give("a", 0);
    assert_eq!(going.next().await.unwrap(), "a start");
    assert_eq!(going.next().await.unwrap(), "a succeed");
    assert_eq!(going.end.await.unwrap().moved.event, Event::Succeed);
    assert_eq!(world.runner.0.turns.available_permits(), 2);
}

#[tokio::test]
async fn each_attempt_asks_anew() {
    let world = World::new();
    let mut task = tagged("a");
    task["retries"] = json!({"count": 1, "delay_ms": 0});
    let mut job = world.job(&ends(1), flow(&[task], json!([]))).await;
    let desk = Desk::of(&mut job, &["db"]);
    let mut going = world.go(job);
    going.until("a queue").await;
    desk.give("a", 0);
    going.until("a retry").await;
    assert_eq!(going.next().await.unwrap(), "a queue");
    // What was said of the first attempt may come late.
    desk.give("a", 0);
    for _ in 0..10 {
        tokio::task::yield_now().await;
    }
    assert!(going.told.try_recv().is_err());
    desk.give("a", 1);
    going.until("a fail").await;
}

#[tokio::test]
async fn a_limit_that_is_set_meanwhile_holds_for_what_has_not_begun() {
    let world = World::new();
    let edges = json!([{"from": {"task": "a"}, "to": "b"}]);
    let definition = flow(&[tagged("a"), tagged("b")], edges);
    let mut job = world.job(&ends(0), definition).await;
    let desk = Desk::of(&mut job, &[]);
    let mut going = world.go(job);
    // `a` has begun, and `b` not: nobody listens to what comes after.
    going.until("run start").await;
    desk.limited.send(limits(&["db"])).unwrap();
    going.until("b queue").await;
    desk.give("b", 0);
    going.until("b succeed").await;
}

#[tokio::test]
async fn a_run_that_waits_for_slots_is_handed_back_after_a_while() {
    let world = World::new();
    let retries = json!({"count": 1, "delay_ms": 3_600_000});
    let tasks = [
        tagged("a"),
        json!({"name": "b", "retries": retries}),
        tagged("c"),
    ];
    for (count, delay_ms) in [(1, u64::MAX), (2, 3_600_000 - NAP_MAX.as_millis() as u64)] {
        let mut job = world.job(&ends(1), flow(&tasks[..count], json!([]))).await;
        job.is_taken_back = true;
        let _desk = Desk::of(&mut job, &["db"]);
        let mut going = world.go(job);
        let mut lines = Vec::new();
        while lines.len() < 2 * count {
            lines.push(going.next().await.unwrap());
        }
        for _ in 0..10 {
            tokio::task::yield_now().await;
        }
        world.time.pass(NAP_MAX - Duration::from_millis(1));
        for _ in 0..10 {
            tokio::task::yield_now().await;
        }
        assert!(!going.end.is_finished());
        world.time.pass(Duration::from_millis(1));
        assert_eq!(going.next().await, None);
        let end = going.end.await.unwrap().moved;
        assert_eq!((end.event, end.delay_ms), (Event::Rest, delay_ms));
        assert_eq!(end.message, "waits for a slot of the tag `db` for `a`");
    }
}

/// It was waited for slots long enough, but not for the retry: the run sleeps until that is due, and is handed back
/// after it.
#[tokio::test]
async fn a_run_that_waits_for_slots_sleeps_until_a_retry_that_is_due_soon() {
    let world = World::new();
    let retries = json!({"count": 1, "delay_ms": 7_000});
    let tasks = [tagged("a"), json!({"name": "b", "retries": retries})];
    let mut job = world.job(&ends(1), flow(&tasks, json!([]))).await;
    job.is_taken_back = true;
    let _desk = Desk::of(&mut job, &["db"]);
    let (orders, heard) = watch::channel(Order::Go);
    let (tell, told) = mpsc::channel(4);
    let polls = Arc::new(AtomicU64::new(0));
    let counted = polls.clone();
    let runner = world.runner.clone();
    let end = tokio::spawn(async move {
        let mut run = std::pin::pin!(runner.run(job, heard, tell));
        std::future::poll_fn(|cx| {
            counted.fetch_add(1, Ordering::Relaxed);
            run.as_mut().poll(cx)
        })
        .await
    });
    let mut going = Going { orders, told, end };
    let settle = async || {
        for _ in 0..10 {
            tokio::task::yield_now().await;
        }
    };
    let mut lines = Vec::new();
    while lines.len() < 4 {
        lines.push(going.next().await.unwrap());
    }
    settle().await;
    world.time.pass(NAP_MAX);
    settle().await;
    let before = polls.load(Ordering::Relaxed);
    settle().await;
    assert_eq!(polls.load(Ordering::Relaxed), before, "it sleeps");
    assert!(!going.end.is_finished());
    world.time.pass(Duration::from_secs(2));
    going.until("b fail").await;
    settle().await;
    world.time.pass(NAP_MAX);
    assert_eq!(going.next().await, None);
    let end = going.end.await.unwrap().moved;
    assert_eq!((end.event, end.delay_ms), (Event::Rest, u64::MAX));
}

#[tokio::test]
async fn a_run_that_nobody_takes_back_waits_for_slots_and_so_does_one_that_works() {
    let world = World::new();
    let mut job = world.job(&ends(0), flow(&[tagged("a")], json!([]))).await;
    let desk = Desk::of(&mut job, &["db"]);
    let mut going = world.go(job);
    going.until("a queue").await;
    world.time.pass(NAP_MAX * 1000);
    for _ in 0..10 {
        tokio::task::yield_now().await;
    }
    assert!(!going.end.is_finished());
    desk.give("a", 0);
    going.until("a succeed").await;
}
