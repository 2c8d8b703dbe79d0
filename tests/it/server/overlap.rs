//! Schedules whose runs may not overlap, and how missed runs are caught up.

use super::schedules::hourly;
use super::*;

async fn register(world: &World, overlap: Overlap) {
    let mut asked = hourly("etl", "0 * * * *");
    asked.definition.schedule.as_mut().unwrap().overlap = overlap;
    world.client.register("demo", &asked).await.unwrap();
    world.schedule().await;
}

/// Tells of each run that is due its hour and state.
async fn due(world: &World) -> String {
    let page = world.client.list_flow_runs(&ListQuery::default()).await;
    let mut told: Vec<_> = (page.unwrap().items.iter())
        .map(|run| format!("{} {}", run.scheduled_at.strftime("%H:%M"), run.state))
        .collect();
    told.reverse();
    told.join(", ")
}

async fn an_hour_later(world: &World) {
    world.clock.pass(Duration::from_secs(3600));
    world.schedule().await;
}

#[tokio::test]
async fn skip_leaves_out_what_is_due_while_a_run_goes_on() {
    let world = World::new().await;
    register(&world, Overlap::Skip).await;
    let agent = world.agent("mira").await;
    an_hour_later(&world).await;
    let first = agent.poll(9).await;
    assert_eq!(first.len(), 1);
    // Nobody asks for work at two o'clock; it is decided all the same.
    an_hour_later(&world).await;
    assert_eq!(due(&world).await, "01:00 Claimed, 02:00 Skipped");
    agent
        .tell(
            lease(&first[0]),
            vec![flow(Event::Start), flow(Event::Succeed)],
        )
        .await;
    assert!(agent.poll(9).await.is_empty());
    an_hour_later(&world).await;
    assert_eq!(agent.poll(9).await.len(), 1);
    let told = due(&world).await;
    assert_eq!(told, "01:00 Success, 02:00 Skipped, 03:00 Claimed");
    let page = world
        .client
        .list_flow_runs(&ListQuery::default())
        .await
        .unwrap();
    let skipped = page
        .items
        .iter()
        .find(|run| run.state == State::Skipped)
        .unwrap();
    let first = first[0].flow_run_id;
    assert_eq!(
        skipped.message,
        format!("left out: the run {first} was still going")
    );
}

/// Also a run that somebody asked for by hand counts, and a claim decides as the duty does.
#[tokio::test]
async fn queue_lets_one_wait_for_the_other() {
    let world = World::new().await;
    register(&world, Overlap::Queue).await;
    let agent = world.agent("mira").await;
    let by_hand = world.create("etl").await;
    let first = agent.poll(9).await;
    assert_eq!(first.len(), 1);
    world.clock.pass(Duration::from_secs(3600));
    assert!(agent.poll(9).await.is_empty());
    assert_eq!(due(&world).await, "00:00 Claimed, 01:00 Queued");
    an_hour_later(&world).await;
    assert_eq!(
        due(&world).await,
        "00:00 Claimed, 01:00 Queued, 02:00 Queued"
    );
    let page = world
        .client
        .list_flow_runs(&ListQuery::default())
        .await
        .unwrap();
    let last = &page.items[0];
    let explained = world.client.explain(last.id).await.unwrap();
    assert_eq!(
        explained.summary,
        format!("it waits for the run {} of its flow to end", by_hand.id)
    );

    agent
        .tell(
            lease(&first[0]),
            vec![flow(Event::Start), flow(Event::Fail)],
        )
        .await;
    let second = agent.poll(9).await;
    assert_eq!(
        second.len(),
        1,
        "one at a time, in the order of their hours"
    );
    assert_eq!(
        due(&world).await,
        "00:00 Failed, 01:00 Claimed, 02:00 Queued"
    );
    // One that lost its agent goes on before the next begins.
    world.clock.pass(LEASE + Duration::from_secs(1));
    world.rescue().await;
    let agent = world.agent("tom").await;
    let again = agent.poll(9).await;
    assert_eq!(again.len(), 1);
    assert_eq!(again[0].flow_run_id, second[0].flow_run_id);
}

#[tokio::test]
async fn cancel_old_stops_the_old_one_before_the_new_one_begins() {
    let world = World::new().await;
    register(&world, Overlap::CancelOld).await;
    let agent = world.agent("mira").await;
    an_hour_later(&world).await;
    let first = agent.poll(9).await;
    agent.tell(lease(&first[0]), vec![flow(Event::Start)]).await;
    an_hour_later(&world).await;
    assert_eq!(due(&world).await, "01:00 Cancelling, 02:00 Queued");
    an_hour_later(&world).await;
    assert_eq!(
        due(&world).await,
        "01:00 Cancelling, 02:00 Cancelled, 03:00 Queued"
    );
    assert!(agent.poll(9).await.is_empty(), "the old one is not over");
    agent.tell(lease(&first[0]), vec![flow(Event::Stop)]).await;
    assert_eq!(agent.poll(9).await.len(), 1);
    assert_eq!(
        due(&world).await,
        "01:00 Cancelled, 02:00 Cancelled, 03:00 Claimed"
    );
}

#[tokio::test]
async fn a_queue_has_an_end() {
    let world = World::new().await;
    register(&world, Overlap::Queue).await;
    let agent = world.agent("mira").await;
    an_hour_later(&world).await;
    assert_eq!(agent.poll(1).await.len(), 1);
    for _ in 0..102 {
        an_hour_later(&world).await;
    }
    let query = ListQuery {
        state: Some("Skipped".to_owned()),
        ..ListQuery::default()
    };
    let skipped = world.client.list_flow_runs(&query).await.unwrap().items;
    assert_eq!(skipped.len(), 2);
    assert_eq!(
        skipped[0].message,
        "left out: 100 runs of the flow wait already"
    );
}

/// Registers an hourly flow, lets it miss four hours in that way, and lists what is due then.
async fn missed(policy: CatchUp, said: Option<CatchUp>, is_paused: bool) -> String {
    let world = World::new().await;
    let mut asked = hourly("etl", "0 * * * *");
    asked.definition.schedule.as_mut().unwrap().catch_up = policy;
    world.client.register("demo", &asked).await.unwrap();
    world.schedule().await;
    if is_paused {
        world.client.pause_flow("etl").await.unwrap();
    }
    world.clock.pass(Duration::from_secs(4 * 3600 + 1800));
    if is_paused {
        let query = ResumeQuery { catch_up: said };
        let resumed = world.client.resume_flow("etl", &query).await.unwrap();
        assert!(!resumed.is_paused);
    }
    world.schedule().await;
    let told = due(&world).await;
    world.clock.pass(Duration::from_secs(1800));
    world.schedule().await;
    let separator = if told.is_empty() { "" } else { ", " };
    assert_eq!(
        due(&world).await,
        format!("{told}{separator}05:00 Scheduled"),
        "it goes on"
    );
    told
}

#[tokio::test]
async fn what_a_server_or_a_pause_missed_is_caught_up_as_the_schedule_says() {
    let all = "01:00 Scheduled, 02:00 Scheduled, 03:00 Scheduled, 04:00 Scheduled";
    assert_eq!(missed(CatchUp::All, None, false).await, all);
    assert_eq!(missed(CatchUp::All, None, true).await, all);
    let cancelled = "01:00 Cancelled, 02:00 Cancelled, 03:00 Cancelled";
    assert_eq!(
        missed(CatchUp::Last, None, false).await,
        format!("{cancelled}, 04:00 Scheduled")
    );
    assert_eq!(missed(CatchUp::Last, None, true).await, "04:00 Scheduled");
    assert_eq!(
        missed(CatchUp::Skip, None, false).await,
        format!("{cancelled}, 04:00 Cancelled")
    );
    assert_eq!(missed(CatchUp::Skip, None, true).await, "");
}

#[tokio::test]
async fn whoever_resumes_a_schedule_may_say_what_is_caught_up() {
    let all = "01:00 Scheduled, 02:00 Scheduled, 03:00 Scheduled, 04:00 Scheduled";
    assert_eq!(missed(CatchUp::Last, Some(CatchUp::All), true).await, all);
    assert_eq!(missed(CatchUp::All, Some(CatchUp::Skip), true).await, "");
    let last = missed(CatchUp::Skip, Some(CatchUp::Last), true).await;
    assert_eq!(last, "04:00 Scheduled");
}

/// A flow that was registered paused has missed nothing.
#[tokio::test]
async fn a_schedule_that_never_went_has_nothing_to_catch_up() {
    let world = World::new().await;
    let mut asked = hourly("etl", "0 * * * *");
    asked.definition.schedule.as_mut().unwrap().catch_up = CatchUp::All;
    asked.is_paused = true;
    world.client.register("demo", &asked).await.unwrap();
    world.clock.pass(Duration::from_secs(4 * 3600 + 1800));
    let query = ResumeQuery::default();
    world.client.resume_flow("etl", &query).await.unwrap();
    world.schedule().await;
    assert_eq!(due(&world).await, "");
}

/// Also where their claims overlap: one run at a time, in the order of their hours.
#[tokio::test]
async fn agents_that_claim_at_once_begin_one_run_of_a_schedule() {
    let world = World::new().await;
    register(&world, Overlap::Queue).await;
    let mut agents = Vec::new();
    for nth in 0..8 {
        agents.push(world.agent(&format!("agent-{nth}")).await);
    }
    // Nobody but the claims decides about the four runs that become due.
    world.clock.pass(Duration::from_secs(4 * 3600));
    for hour in 1..=4 {
        let polls = agents.iter().map(|agent| async move {
            let claimed = agent.poll(2).await;
            claimed.into_iter().map(move |run| (agent, run))
        });
        let claimed = futures::future::join_all(polls).await;
        let claimed: Vec<_> = claimed.into_iter().flatten().collect();
        assert_eq!(claimed.len(), 1, "{}", due(&world).await);
        let (agent, run) = &claimed[0];
        let told = run.scheduled_at.strftime("%H:%M").to_string();
        assert_eq!(told, format!("0{hour}:00"));
        let story = vec![flow(Event::Start), flow(Event::Succeed)];
        agent.tell(lease(run), story).await;
    }
}
