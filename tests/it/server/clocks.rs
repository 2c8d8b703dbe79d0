//! Wall clocks that are wrong for a while: an hour ahead, an hour behind, and right again.

use jiff::SignedDuration;
use waft::server::duty::timekeeper::{look_back, set_back};
use waft::wire::Renewal;

use super::schedules::hourly;
use super::*;
use crate::kit::witness::patient;

const HOUR: SignedDuration = SignedDuration::from_hours(1);
const MINUTE: Duration = Duration::from_secs(60);
/// Minutes that a schedule is watched after a jump: a little longer than that hour.
const MINUTES: usize = 80;

/// Sets the clock on the wall by so much; nobody who measures notices.
async fn jumps(world: &World, by: SignedDuration) {
    world.clock.jump(world.app.clock.now() + by);
    if by.is_negative() {
        set_back(&world.app).await.unwrap();
    }
}

/// Hands a run back that waits for a while.
async fn rests(agent: &Agent, claimed: &ClaimedRun, delay: Duration) {
    let rest = FlowRunMoved {
        event: Event::Rest,
        message: "waits".to_owned(),
        code: None,
        result: None,
        delay_ms: delay.as_millis() as u64,
    };
    let what = vec![flow(Event::Start), Happening::FlowRun(rest)];
    agent.tell(lease(claimed), what).await;
}

/// What was to start at once does not wait for the hour to pass a second time.
#[tokio::test]
async fn a_run_made_by_a_clock_that_was_ahead_starts_when_it_is_right_again() {
    let world = World::new().await;
    world.register("etl").await;
    let agent = world.agent("mira").await;
    jumps(&world, HOUR).await;
    let run = world.create("etl").await;
    let mut later = new_run("etl");
    later.scheduled_at = Some(run.created_at + HOUR);
    let later = world.try_create(&later).await.unwrap();
    jumps(&world, -HOUR).await;
    let claimed = agent.poll(9).await;
    assert_eq!(claimed.len(), 1);
    assert_eq!(claimed[0].flow_run_id, run.id);
    // An instant that somebody has named is that instant.
    assert_eq!(world.run(later.id).await.due_at, later.scheduled_at);
}

/// A server whose clock was a day ahead when it went down makes the runs of today all the same.
#[tokio::test]
async fn a_schedule_does_not_rest_until_the_day_at_which_its_server_was_once() {
    let world = World::new().await;
    world
        .client
        .register("demo", &hourly("etl", "0 * * * *"))
        .await
        .unwrap();
    let agent = world.agent("mira").await;
    let right = world.app.clock.now();
    world.clock.jump(right + HOUR * 24);
    world.schedule().await;
    // Nobody is there when it is set back.
    world.clock.jump(right);
    look_back(&world.app).await.unwrap();
    world.schedule().await;
    world.clock.pass(MINUTE * 61);
    world.schedule().await;
    let claimed = agent.poll(9).await;
    let due: Vec<_> = claimed.iter().map(|run| run.scheduled_at).collect();
    assert_eq!(due, ["2026-03-01T01:00:00Z".parse().unwrap()]);
}

/// What was at work when the clock was set back is claimed again when its agent is lost.
#[tokio::test]
async fn a_run_that_was_at_work_over_a_jump_is_due_when_its_agent_is_lost() {
    let world = World::new().await;
    world.register("etl").await;
    let run = world.create("etl").await;
    let agent = world.agent("mira").await;
    agent.poll(1).await;
    jumps(&world, -HOUR).await;
    world.clock.pass(LEASE + Duration::from_secs(1));
    assert_eq!(world.rescue().await, 1);
    assert_eq!(agent.poll(1).await[0].flow_run_id, run.id);
}

/// A poll that waits is told of what has become due by that.
#[tokio::test]
async fn who_waits_for_work_hears_that_the_clock_is_right_again() {
    let world = World::new().await;
    world.register("etl").await;
    jumps(&world, HOUR).await;
    let run = world.create("etl").await;
    world.clock.jump(world.app.clock.now() - HOUR);
    let agent = world.agent("mira").await;
    let right = async {
        while world.app.waiting_polls() == 0 {
            tokio::task::yield_now().await;
        }
        set_back(&world.app).await.unwrap();
    };
    let heard = async { tokio::join!(agent.poll_waiting(9, 30), right).0 };
    let claimed = patient("the poll", heard).await;
    assert_eq!(claimed[0].flow_run_id, run.id);
}

#[tokio::test]
async fn a_run_that_waits_for_a_while_waits_for_that_and_not_an_hour_more() {
    let world = World::new().await;
    world.register("etl").await;
    let run = world.create("etl").await;
    let agent = world.agent("mira").await;
    let claimed = agent.poll(1).await.remove(0);
    rests(&agent, &claimed, 10 * MINUTE).await;
    world.clock.pass(MINUTE);
    jumps(&world, -HOUR).await;
    let due = world.run(run.id).await.due_at;
    assert_eq!(due.duration_since(world.app.clock.now()).as_mins(), 10);
    world.clock.pass(9 * MINUTE);
    assert!(agent.poll(1).await.is_empty());
    world.clock.pass(MINUTE);
    assert_eq!(agent.poll(1).await.len(), 1);
}

#[tokio::test]
async fn leases_and_sessions_outlast_jumps_there_and_back() {
    let world = World::new().await;
    world.register("etl").await;
    world.create("etl").await;
    let agent = world.agent("mira").await;
    let held = lease(&agent.poll(1).await[0]);
    for by in [HOUR, -HOUR, -HOUR, HOUR] {
        jumps(&world, by).await;
        assert_eq!(world.rescue().await, 0);
        server::duty::cleaner::clean(&world.app).await.unwrap();
        let renewal = Renewal {
            session_id: agent.session,
            leases: vec![held],
        };
        let renewed = world.client.renew(&renewal, LEASE).await.unwrap();
        assert!(renewed.lost.is_empty() && renewed.lapsed.is_empty());
        assert!(agent.poll(9).await.is_empty());
        world.clock.pass(Duration::from_secs(20));
    }
    let told = agent.tell(held, vec![flow(Event::Start), flow(Event::Succeed)]);
    assert!(told.await.lost.is_empty());
    // And a lease that nobody renews ends when its time is over, whatever is on the wall.
    world.create("etl").await;
    agent.poll(1).await;
    jumps(&world, -HOUR).await;
    world.clock.pass(LEASE + Duration::from_secs(1));
    assert_eq!(world.rescue().await, 1);
}

/// The hour that was never there is missed as its schedule says, no instant has two runs, and those that come
/// again get theirs.
#[tokio::test]
async fn a_schedule_goes_on_over_jumps_and_makes_no_run_twice() {
    let policies = [(CatchUp::Skip, 0), (CatchUp::Last, 1), (CatchUp::All, 60)];
    for (policy, caught_up) in policies {
        let world = World::new().await;
        let mut asked = hourly("etl", "* * * * *");
        let schedule = asked.definition.schedule.as_mut().unwrap();
        schedule.catch_up = policy;
        world.client.register("demo", &asked).await.unwrap();
        world.schedule().await;
        jumps(&world, HOUR).await;
        world.schedule().await;
        let agent = world.agent("mira").await;
        let mut ran = instants(&agent).await;
        assert_eq!(ran.len(), caught_up, "{policy:?}");
        jumps(&world, -HOUR).await;
        world.schedule().await;
        for _ in 0..MINUTES {
            world.clock.pass(MINUTE);
            world.schedule().await;
            ran.extend(instants(&agent).await);
        }
        let count = ran.len();
        ran.sort();
        ran.dedup();
        assert_eq!(ran.len(), count, "{policy:?}: an instant had two runs");
        // All but those that were made ahead and left out as missed.
        let left_out = [10, 10, 0][policies.iter().position(|it| it.0 == policy).unwrap()];
        assert_eq!(count, MINUTES - left_out, "{policy:?}");
    }
}

/// Claims all that is due, and ends it; returns the instants for which it was.
async fn instants(agent: &Agent) -> Vec<Timestamp> {
    let mut all = Vec::new();
    loop {
        let claimed = agent.poll(100).await;
        if claimed.is_empty() {
            return all;
        }
        for run in claimed {
            all.push(run.scheduled_at);
            agent
                .tell(lease(&run), vec![flow(Event::Start), flow(Event::Succeed)])
                .await;
        }
    }
}
