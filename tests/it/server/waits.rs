//! Runs that wait for a later attempt: nobody has them, and they go on when it is due.

use std::sync::Arc;

use tokio::sync::Notify;

use waft::server::db::{DbError, flow_run};
use waft::server::duty::timekeeper::end_overdue;

use super::*;

const HOUR: Duration = Duration::from_secs(3600);
const HOUR_MS: u64 = 3_600_000;

/// What an agent says that hands a run back for an hour.
fn rests() -> Vec<Happening> {
    let Happening::TaskRun(mut retry) = task("fetch", Event::Retry) else {
        panic!("not a task run");
    };
    (retry.failures, retry.delay_ms) = (1, HOUR_MS);
    let rest = FlowRunMoved {
        event: Event::Rest,
        message: "waits until then for the next attempt of `fetch`".to_owned(),
        code: None,
        result: None,
        delay_ms: HOUR_MS,
    };
    vec![
        flow(Event::Start),
        task("fetch", Event::Start),
        Happening::TaskRun(retry),
        Happening::FlowRun(rest),
    ]
}

#[tokio::test]
async fn a_run_that_waits_is_nobodys_takes_no_slot_and_is_claimed_when_it_is_due() {
    let world = World::new().await;
    world.register("etl").await;
    let set = Slots { slots: Some(1) };
    world.client.set_flow_slots("etl", &set).await.unwrap();
    let run = world.create("etl").await;
    let agent = world.agent("mira").await;
    let claimed = agent.poll(1).await.remove(0);
    assert!(claimed.is_taken_back);
    agent.tell(lease(&claimed), rests()).await;

    let waiting = world.run(run.id).await;
    assert_eq!(waiting.state, State::Scheduled);
    assert_eq!(waiting.scheduled_at, run.scheduled_at);
    assert_eq!(
        waiting.due_at.duration_since(run.scheduled_at).as_secs(),
        3600
    );
    let explained = world.client.explain(run.id).await.unwrap();
    assert_eq!(
        explained.summary,
        "it waits until then for the next attempt of `fetch`"
    );
    // Its slot is another's meanwhile.
    let other = world.create("etl").await;
    let claims = agent.poll(9).await;
    assert_eq!(claims[0].flow_run_id, other.id);
    assert_eq!(claims.len(), 1);
    let ends = vec![flow(Event::Start), flow(Event::Succeed)];
    agent.tell(lease(&claims[0]), ends).await;

    world.clock.pass(HOUR - Duration::from_secs(1));
    assert!(agent.poll(9).await.is_empty());
    // Who waits for work hears of it by the ringer.
    let due = async {
        while world.app.waiting_polls() == 0 {
            tokio::task::yield_now().await;
        }
        world.clock.pass(Duration::from_secs(1));
        server::duty::ringer::ring(&world.app).await.unwrap();
    };
    let (again, ()) = tokio::join!(agent.poll_waiting(9, 30), due);
    let again = &again[0];
    assert_eq!((again.flow_run_id, again.epoch, again.lost), (run.id, 2, 0));
    assert_eq!(again.task_runs[0].state, State::Retrying);
    let story = world.story(run.id).await;
    assert_eq!(
        story,
        "Scheduled by first, 0\n\
         Claimed by mira, 1\n\
         Running by mira, 1\n\
         Scheduled by mira, 1: waits until then for the next attempt of `fetch`\n\
         Claimed by mira, 2"
    );
}

#[tokio::test]
async fn a_run_may_wait_any_number_of_times_and_its_claims_were_none_in_vain() {
    let world = World::new().await;
    world.register("etl").await;
    let run = world.create("etl").await;
    let agent = world.agent("mira").await;
    for _ in 0..120 {
        let claimed = agent.poll(1).await.remove(0);
        agent.tell(lease(&claimed), rests()).await;
        world.clock.pass(HOUR / 60);
        assert!(agent.poll(1).await.is_empty());
        let sql = "UPDATE flow_run SET due_at = scheduled_at";
        let due = world
            .app
            .db
            .write(move |tx| Box::pin(tx.run(sql, Vec::new())));
        due.await.unwrap();
    }
    let claimed = agent.poll(1).await.remove(0);
    agent.tell(lease(&claimed), vec![flow(Event::Lose)]).await;
    assert_eq!(world.run(run.id).await.state, State::Scheduled);
}

#[tokio::test]
async fn a_run_that_waits_for_longer_than_it_may_take_is_ended_where_it_waits() {
    let world = World::new().await;
    world.register("etl").await;
    let mut new = new_run("etl");
    new.timeout_ms = Some(HOUR_MS / 2);
    let run = world.try_create(&new).await.unwrap();
    let agent = world.agent("mira").await;
    // Before it has begun it may wait as long as it likes.
    world.clock.pass(HOUR);
    assert_eq!(end_overdue(&world.app).await.unwrap(), 0);
    let claimed = agent.poll(1).await.remove(0);
    agent.tell(lease(&claimed), rests()).await;
    world.clock.pass(HOUR / 2 - Duration::from_secs(1));
    assert_eq!(end_overdue(&world.app).await.unwrap(), 0);
    world.clock.pass(Duration::from_secs(1));
    assert_eq!(end_overdue(&world.app).await.unwrap(), 1);
    assert_eq!(end_overdue(&world.app).await.unwrap(), 0);

    let over = world.run(run.id).await;
    assert_eq!(over.state, State::TimedOut);
    assert_eq!(over.code.as_deref(), Some("limit.wall"));
    let tasks = world.client.task_runs(run.id, &ListQuery::default()).await;
    assert_eq!(tasks.unwrap().items[0].state, State::Cancelled);
    world.clock.pass(HOUR);
    assert!(agent.poll(1).await.is_empty());
}

#[tokio::test]
async fn an_agent_ends_its_runs_by_itself() {
    let world = World::new().await;
    world.register("etl").await;
    let mut new = new_run("etl");
    new.timeout_ms = Some(1_000);
    let run = world.try_create(&new).await.unwrap();
    let agent = world.agent("mira").await;
    let claimed = agent.poll(1).await.remove(0);
    agent.tell(lease(&claimed), vec![flow(Event::Start)]).await;
    world.clock.pass(Duration::from_secs(2));
    assert_eq!(end_overdue(&world.app).await.unwrap(), 0);
    assert_eq!(world.run(run.id).await.state, State::Running);
    // Once the agent is lost, nobody else ends it.
    world.clock.pass(LEASE);
    world.rescue().await;
    assert_eq!(end_overdue(&world.app).await.unwrap(), 1);
    assert_eq!(world.run(run.id).await.state, State::TimedOut);
}

#[tokio::test]
async fn a_run_that_waits_is_cancelled_at_once_and_one_that_is_stopped_does_not_wait() {
    let world = World::new().await;
    world.register("etl").await;
    let agent = world.agent("mira").await;
    let run = world.create("etl").await;
    let claimed = agent.poll(1).await.remove(0);
    agent.tell(lease(&claimed), rests()).await;
    let over = world.client.cancel(run.id).await.unwrap();
    assert_eq!(over.state, State::Cancelled);

    let run = world.create("etl").await;
    let claimed = agent.poll(1).await.remove(0);
    world.client.cancel(run.id).await.unwrap();
    agent.tell(lease(&claimed), rests()).await;
    assert_eq!(world.run(run.id).await.state, State::Cancelled);
}

#[tokio::test]
async fn a_run_that_nobody_takes_is_late_half_a_minute_after_it_was_due() {
    let world = World::new().await;
    world.register("etl").await;
    let mut new = new_run("etl");
    new.scheduled_at = Some(world.app.clock.now() + HOUR);
    let later = world.try_create(&new).await.unwrap();
    let run = world.create("etl").await;
    let late = async || {
        let query = ListQuery {
            late: true,
            ..ListQuery::default()
        };
        let runs = world.client.list_flow_runs(&query).await.unwrap().items;
        runs.into_iter().map(|run| run.id).collect::<Vec<_>>()
    };
    world.clock.pass(Duration::from_secs(29));
    assert!(late().await.is_empty() && !world.run(run.id).await.is_late);
    world.clock.pass(Duration::from_secs(1));
    assert_eq!(late().await, [run.id]);
    assert!(world.run(run.id).await.is_late);
    world.clock.pass(HOUR);
    assert_eq!(late().await, [later.id, run.id]);
    let agent = world.agent("mira").await;
    agent.poll(9).await;
    assert!(late().await.is_empty());
    let odd = ListQuery {
        late: true,
        state: Some("Running".to_owned()),
        ..ListQuery::default()
    };
    assert_eq!(code(world.client.list_flow_runs(&odd).await), "query-bad");
}

/// Whoever had the run in hand leaves it as it was, and tells nobody.
#[tokio::test]
async fn a_run_that_another_had_in_hand_for_a_moment_is_looked_at_again() {
    let world = World::new().await;
    world.register("etl").await;
    let (mira, tom) = (world.agent("mira").await, world.agent("tom").await);
    let run = world.create("etl").await.id;
    let hold = Arc::new([Notify::new(), Notify::new()]);
    let held = {
        let (db, hold) = (world.app.db.clone(), hold.clone());
        tokio::spawn(async move {
            let held = db.write(move |tx| {
                Box::pin(async move {
                    flow_run::read(tx, [run]).await?;
                    hold[0].notify_one();
                    hold[1].notified().await;
                    Err::<(), _>(DbError::Closed)
                })
            });
            held.await
        })
    };
    hold[0].notified().await;
    let passes = async {
        while world.app.waiting_polls() == 0 {
            tokio::task::yield_now().await;
        }
        // A file has one writer, and whoever claims waits for it.
        if ON_POSTGRES {
            for _ in 0..3 {
                assert!(tom.poll(1).await.is_empty());
            }
        }
        hold[1].notify_one();
        let ended = held.await.unwrap();
        assert!(matches!(ended, Err(DbError::Closed)), "{ended:?}");
        loop {
            world.clock.pass(Duration::from_millis(10));
            tokio::task::yield_now().await;
        }
    };
    let claimed = tokio::select! {
        claimed = mira.poll_waiting(1, 30) => claimed,
        () = passes => unreachable!("time passes for ever"),
    };
    assert_eq!(claimed.len(), 1, "it waited for the next poll");
}
