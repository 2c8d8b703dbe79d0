//! Runs of which all that is left waits.

use super::super::course::NAP_MAX;
use super::*;

/// Two tasks that fail and are tried again after these delays.
fn sleepers(delays: [Duration; 2]) -> serde_json::Value {
    let [a, b] = delays.map(|delay| json!({"count": 1, "delay_ms": delay.as_millis() as u64}));
    let tasks = [
        json!({"name": "a", "retries": a}),
        json!({"name": "b", "retries": b}),
    ];
    flow(&tasks, json!([]))
}

#[tokio::test]
async fn a_run_that_sleeps_for_long_is_handed_back_until_the_first_is_due() {
    let world = World::new();
    let hours = |count: u64| Duration::from_secs(count * 3600);
    let mut job = world.job(&ends(1), sleepers([hours(2), hours(1)])).await;
    job.is_taken_back = true;
    let mut going = world.go(job);
    let mut lines = Vec::new();
    while let Some(line) = going.next().await {
        lines.push(line);
    }
    lines.sort();
    assert_eq!(
        lines,
        ["a retry", "a start", "b retry", "b start", "run start"]
    );
    let end = going.end.await.unwrap().moved;
    assert_eq!((end.event, end.delay_ms), (Event::Rest, 3_600_000));
    assert_eq!(
        end.message,
        "waits until 1970-01-01T01:00:00Z for the next attempt of `b` and another"
    );
    assert_eq!(world.runner.0.turns.available_permits(), 2);
}

#[tokio::test]
async fn a_short_sleep_is_waited_out_and_so_is_every_one_that_nobody_takes_back() {
    let world = World::new();
    for (delay, is_taken_back) in [(NAP_MAX, true), (NAP_MAX * 1000, false)] {
        let definition =
            one(json!({"retries": {"count": 1, "delay_ms": delay.as_millis() as u64}}));
        let mut job = world.job(&ends(1), definition).await;
        job.is_taken_back = is_taken_back;
        let mut going = world.go(job);
        going.until("a retry").await;
        for _ in 0..10 {
            tokio::task::yield_now().await;
        }
        assert!(!going.end.is_finished(), "{delay:?}");
        world.time.pass(delay);
        going.until("a fail").await;
        assert_eq!(going.end.await.unwrap().moved.event, Event::Fail);
    }
}

#[tokio::test]
async fn a_run_is_not_handed_back_while_something_of_it_is_at_work_or_wants_to_be() {
    let world = World::with(1, Limits::CEILING);
    let task = json!({"name": "a", "retries": {"count": 1, "delay_ms": 3_600_000}});
    let definition = flow(&[task, json!({"name": "b"})], json!([]));
    let mut job = world.job(&ends(1), definition).await;
    job.is_taken_back = true;
    let mut going = world.go(job);
    going.until("b fail").await;
    assert_eq!(going.next().await, None);
    assert_eq!(going.end.await.unwrap().moved.event, Event::Rest);
}

#[tokio::test]
async fn who_takes_a_run_up_too_early_hands_it_back_without_an_attempt() {
    let world = World::new();
    let definition = one(json!({"retries": {"count": 1, "delay_ms": 3_600_000}}));
    let mut job = world.job(&ends(0), definition).await;
    job.is_taken_back = true;
    let earlier = json!({
        "task": "a", "map_index": null, "state": "Retrying", "message": "", "code": null,
        "attempts": 1, "failures": 1, "loop_count": 0, "started_at": null, "ended_at": null,
        "usage": {}, "result": null, "retry_at": "1970-01-01T00:10:00Z",
    });
    job.earlier = vec![serde_json::from_value(earlier).unwrap()];
    let mut going = world.go(job);
    assert_eq!(going.next().await, None);
    let end = going.end.await.unwrap().moved;
    assert_eq!((end.event, end.delay_ms), (Event::Rest, 600_000));
}
