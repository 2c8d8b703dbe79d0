//! What becomes of runs: reports, leases, cancels, repeats.

use super::*;

use waft::model::run::{Card, CardContent, Level, LogLine};
use waft::wire::{Listen, LogQuery, Renewal, WatchQuery};

/// For calls in one process.
const PATIENCE: Duration = Duration::from_secs(20);

/// Claims the only waiting run.
async fn claim(agent: &Agent) -> LeaseKey {
    let claimed = agent.poll(1).await;
    assert_eq!(claimed.len(), 1);
    lease(&claimed[0])
}

fn line(text: &str) -> Happening {
    let line = LogLine {
        at: Timestamp::UNIX_EPOCH,
        level: Level::Info,
        task_run: None,
        attempt: 0,
        text: text.to_owned(),
    };
    Happening::Log { lines: vec![line] }
}

#[tokio::test]
async fn a_run_is_told_from_its_making_to_its_end() {
    let world = World::new().await;
    world.register("etl").await;
    let run = world.create("etl").await;
    let agent = world.agent("mira").await;
    let lease = claim(&agent).await;
    let happenings = vec![
        flow(Event::Start),
        task("fetch", Event::Start),
        line("hello"),
        task("fetch", Event::Succeed),
        task("report", Event::Start),
        task("report", Event::Succeed),
        line("bye"),
        flow(Event::Succeed),
    ];
    let told = agent.tell(lease, happenings).await;
    assert!(told.lost.is_empty());
    let done = world.run(run.id).await;
    assert_eq!(done.state, State::Success);
    assert!(is_over(&done) && done.ended_at.is_some());
    assert_eq!(done.agent.as_deref(), Some("mira"));
    assert_eq!(
        world.story(run.id).await,
        "Scheduled by first, 0\nClaimed by mira, 1\nRunning by mira, 1\nSuccess by mira, 1"
    );
    let query = ListQuery {
        limit: Some(1),
        ..ListQuery::default()
    };
    let page = world.client.task_runs(run.id, &query).await.unwrap();
    assert_eq!(
        (page.items[0].task.as_str(), page.items[0].state),
        ("fetch", State::Success)
    );
    assert!(page.next.is_some());
    let logs = world
        .client
        .logs(run.id, &LogQuery::default())
        .await
        .unwrap();
    let texts: Vec<_> = logs
        .lines
        .iter()
        .map(|line| line.line.text.as_str())
        .collect();
    assert_eq!((texts, logs.is_end), (vec!["hello", "bye"], true));
}

#[tokio::test]
async fn of_cards_of_one_title_in_a_batch_the_last_is_shown() {
    let world = World::new().await;
    world.register("etl").await;
    let run = world.create("etl").await;
    let agent = world.agent("mira").await;
    let lease = claim(&agent).await;
    let card = |done| Happening::Card {
        card: Card {
            task_run: TaskRunKey {
                task: "fetch".to_owned(),
                map_index: None,
            },
            title: "progress".to_owned(),
            content: CardContent::Progress {
                done,
                total: 3,
                message: String::new(),
            },
        },
    };
    let mut happenings = vec![flow(Event::Start), task("fetch", Event::Start)];
    happenings.extend((1..=3).map(card));
    agent.tell(lease, happenings).await;
    let cards = world.client.cards(run.id).await.unwrap();
    assert_eq!(cards.items.len(), 1);
    assert!(matches!(
        cards.items[0].content,
        CardContent::Progress { done: 3, .. }
    ));
}

#[tokio::test]
async fn a_claimed_run_says_what_its_agent_does_with_it() {
    let world = World::new().await;
    world.register("etl").await;
    let run = world.create("etl").await;
    let agent = world.agent("mira").await;
    let lease = claim(&agent).await;
    let step = |message: &str| Happening::Preparing {
        message: message.to_owned(),
    };
    agent.tell(lease, vec![step("fetching")]).await;
    assert_eq!(world.run(run.id).await.message, "fetching");
    agent.tell(lease, vec![step("compiling")]).await;
    let explained = world.client.explain(run.id).await.unwrap();
    assert_eq!(explained.summary, "the agent `mira` has it: compiling");
    agent.tell(lease, vec![flow(Event::Start)]).await;
    agent.tell(lease, vec![step("too late")]).await;
    let begun = world.run(run.id).await;
    assert_eq!((begun.state, begun.message.as_str()), (State::Running, ""));
}

#[tokio::test]
async fn a_repeated_batch_does_no_harm() {
    let world = World::new().await;
    world.register("etl").await;
    let run = world.create("etl").await;
    let agent = world.agent("mira").await;
    let lease = claim(&agent).await;
    let batch: Vec<Report> = [
        flow(Event::Start),
        line("once"),
        task("fetch", Event::Start),
    ]
    .into_iter()
    .map(|what| agent.report_of(lease, what))
    .collect();
    for _ in 0..3 {
        assert!(agent.send(batch.clone()).await.lost.is_empty());
    }
    assert_eq!(world.history(run.id).await.len(), 4);
    let logs = world
        .client
        .logs(run.id, &LogQuery::default())
        .await
        .unwrap();
    assert_eq!(logs.lines.len(), 1);
}

#[tokio::test]
async fn a_run_outlives_its_agent_and_the_late_one_is_refused() {
    let world = World::new().await;
    world.register("etl").await;
    let run = world.create("etl").await;
    let mira = world.agent("mira").await;
    let old = claim(&mira).await;
    let begun = vec![
        flow(Event::Start),
        task("fetch", Event::Start),
        task("fetch", Event::Succeed),
        task("report", Event::Start),
    ];
    mira.tell(old, begun).await;
    world.clock.pass(LEASE - Duration::from_secs(1));
    assert_eq!(world.rescue().await, 0, "the lease still holds");
    world.clock.pass(Duration::from_secs(2));
    assert_eq!(world.rescue().await, 1);

    // It requires the root of its results now.
    let mut elsewhere = offer();
    elsewhere.roots.remove("file:///results");
    let nas = world.agent_offering("nas", elsewhere).await;
    assert!(nas.poll(1).await.is_empty());
    let nas = world.agent("nas").await;
    let claimed = nas.poll(1).await;
    assert_eq!((claimed[0].epoch, claimed[0].lost), (2, 1));
    let known: Vec<_> = claimed[0]
        .task_runs
        .iter()
        .map(|t| (t.task.as_str(), t.state))
        .collect();
    assert_eq!(
        known,
        [("fetch", State::Success), ("report", State::Running)]
    );

    let late = mira
        .tell(
            old,
            vec![task("report", Event::Succeed), flow(Event::Succeed)],
        )
        .await;
    assert_eq!(late.lost, [old]);
    let renewal = Renewal {
        session_id: mira.session,
        leases: vec![old],
    };
    assert_eq!(
        world.client.renew(&renewal, PATIENCE).await.unwrap().lost,
        [old]
    );
    assert_eq!(world.run(run.id).await.state, State::Claimed);

    let new = lease(&claimed[0]);
    let rest = vec![
        flow(Event::Start),
        task("report", Event::Start),
        task("report", Event::Succeed),
        flow(Event::Succeed),
    ];
    assert!(nas.tell(new, rest).await.lost.is_empty());
    assert_eq!(
        world.story(run.id).await,
        "Scheduled by first, 0\n\
         Claimed by mira, 1\n\
         Running by mira, 1\n\
         Scheduled by server, 1: the lease of `mira` lapsed\n\
         Claimed by nas, 2\n\
         Running by nas, 2\n\
         Success by nas, 2"
    );
}

/// Whoever has the name now knows that the process before is dead, and nobody waits for its leases.
#[tokio::test]
async fn an_agent_that_is_started_anew_gives_back_what_its_dead_process_had() {
    let world = World::new().await;
    world.register("etl").await;
    let first = world.agent("mira").await;
    let runs = [world.create("etl").await, world.create("etl").await];
    let claimed = first.poll(2).await;
    for run in &claimed {
        first.tell(lease(run), vec![flow(Event::Start)]).await;
    }
    world.client.cancel(runs[1].id).await.unwrap();

    // A hello that names another session than the last says nothing about what is at work.
    let again = world.agent("mira").await;
    let elsewhere = world.agent_after("mira", &first).await;
    let states = async || {
        [
            world.run(runs[0].id).await.state,
            world.run(runs[1].id).await.state,
        ]
    };
    assert_eq!(states().await, [State::Running, State::Cancelling]);
    assert_ne!(again.session, elsewhere.session);

    let anew = world.agent_after("mira", &elsewhere).await;
    assert_eq!(anew.id, first.id);
    assert_eq!(states().await, [State::Scheduled, State::Cancelled]);
    let taken = anew.poll(2).await;
    assert_eq!((taken.len(), taken[0].epoch, taken[0].lost), (1, 2, 1));
    assert_eq!(
        world.story(runs[0].id).await,
        "Scheduled by first, 0\n\
         Claimed by mira, 1\n\
         Running by mira, 1\n\
         Scheduled by server, 1: the process of `mira` ended, and was started anew\n\
         Claimed by mira, 2"
    );
}

#[tokio::test]
async fn a_report_of_an_earlier_claim_is_refused_even_by_the_same_agent() {
    let world = World::new().await;
    world.register("etl").await;
    let run = world.create("etl").await;
    let mira = world.agent("mira").await;
    let old = claim(&mira).await;
    mira.tell(old, vec![flow(Event::Start)]).await;
    world.clock.pass(LEASE + Duration::from_secs(1));
    world.rescue().await;
    let new = claim(&mira).await;
    assert_eq!((old.epoch, new.epoch), (1, 2));
    let late = mira
        .tell(old, vec![task("fetch", Event::Start), flow(Event::Fail)])
        .await;
    assert_eq!(late.lost, [old]);
    assert_eq!(world.run(run.id).await.state, State::Claimed);
    assert!(
        world
            .history(run.id)
            .await
            .iter()
            .all(|step| step.task_run.is_none())
    );
}

#[tokio::test]
async fn what_was_finished_before_the_lease_was_lost_is_taken_while_nobody_else_has_it() {
    let world = World::new().await;
    world.register("etl").await;
    world.create("etl").await;
    let mira = world.agent("mira").await;
    let old = claim(&mira).await;
    mira.tell(old, vec![flow(Event::Start), task("fetch", Event::Start)])
        .await;
    world.clock.pass(LEASE + Duration::from_secs(1));
    world.rescue().await;
    // The agent hears of it by a renewal first, and its reports come in two batches.
    let renewal = Renewal {
        session_id: mira.session,
        leases: vec![old],
    };
    let renewed = world.client.renew(&renewal, PATIENCE).await.unwrap();
    assert_eq!((renewed.lost, renewed.lapsed), (vec![], vec![old]));
    for what in [line("late"), task("fetch", Event::Succeed)] {
        let told = mira.tell(old, vec![what]).await;
        assert_eq!((told.lost, told.lapsed), (vec![], vec![old]));
    }
    mira.tell(old, vec![task("report", Event::Start)]).await;
    let claimed = world.agent("nas").await.poll(1).await;
    let known: Vec<_> = claimed[0]
        .task_runs
        .iter()
        .map(|t| (t.task.as_str(), t.state))
        .collect();
    assert_eq!(
        known,
        [("fetch", State::Success)],
        "the finished one counts, the begun one does not"
    );
}

#[tokio::test]
async fn a_run_that_loses_three_agents_is_crashed() {
    let world = World::new().await;
    world.register("etl").await;
    let run = world.create("etl").await;
    let agent = world.agent("mira").await;
    for _ in 0..3 {
        let claimed = agent.poll(1).await;
        let key = lease(&claimed[0]);
        let batch = [flow(Event::Start), task("fetch", Event::Start)]
            .into_iter()
            .zip(1..)
            .map(|(what, number)| Report {
                number,
                ..agent.report_of(key, what)
            });
        agent.send(batch.collect()).await;
        world.clock.pass(LEASE + Duration::from_secs(1));
        world.rescue().await;
    }
    let over = world.run(run.id).await;
    assert_eq!(
        (over.state, over.code.as_deref()),
        (State::Crashed, Some("lost.agent"))
    );
    let tasks = world
        .client
        .task_runs(run.id, &ListQuery::default())
        .await
        .unwrap();
    assert_eq!(tasks.items[0].state, State::Crashed, "none is left open");
    assert!(agent.poll(1).await.is_empty());
}

#[tokio::test]
async fn a_run_that_no_agent_can_start_is_given_up() {
    let world = World::new().await;
    world.register("etl").await;
    let run = world.create("etl").await;
    let agent = world.agent("mira").await;
    for epoch in 1..=100 {
        assert_eq!(world.run(run.id).await.state, State::Scheduled, "{epoch}");
        let lease = claim(&agent).await;
        agent.tell(lease, vec![flow(Event::Lose)]).await;
    }
    let over = world.run(run.id).await;
    assert_eq!(
        (over.state, over.code.as_deref(), over.claims),
        (State::Crashed, Some("lost.lease"), 100)
    );
}

#[tokio::test]
async fn attempts_that_an_agent_stopped_for_its_lease_count_as_lost() {
    let world = World::new().await;
    world.register("etl").await;
    let run = world.create("etl").await;
    let agent = world.agent("mira").await;
    let hand_back = |code: &str| {
        Happening::FlowRun(FlowRunMoved {
            event: Event::Lose,
            message: String::new(),
            code: Some(code.to_owned()),
            result: None,
            delay_ms: 0,
        })
    };
    // An agent that was told to stop loses nothing, however often.
    for code in [
        "lost.stop",
        "lost.stop",
        "lost.stop",
        "lost.lease",
        "lost.lease",
    ] {
        let lease = claim(&agent).await;
        agent
            .tell(lease, vec![flow(Event::Start), hand_back(code)])
            .await;
        assert_eq!(world.run(run.id).await.state, State::Scheduled, "{code}");
    }
    let lease = claim(&agent).await;
    agent
        .tell(lease, vec![flow(Event::Start), hand_back("lost.lease")])
        .await;
    let over = world.run(run.id).await;
    assert_eq!(
        (over.state, over.code.as_deref()),
        (State::Crashed, Some("lost.agent"))
    );
}

#[tokio::test]
async fn an_agent_cannot_bring_a_run_where_nobody_can_rescue_it() {
    let world = World::new().await;
    world.register("etl").await;
    let run = world.create("etl").await;
    let agent = world.agent("mira").await;
    let lease = claim(&agent).await;
    let odd = [
        Event::Retry,
        Event::Loop,
        Event::Resume,
        Event::Queue,
        Event::Map,
    ];
    let mut happenings = vec![flow(Event::Start)];
    happenings.extend(odd.map(flow));
    agent.tell(lease, happenings).await;
    assert_eq!(world.run(run.id).await.state, State::Running);
    // Even one that got there some other way does not stay for ever.
    let sql = "UPDATE flow_run SET state = 'Retrying'";
    let forced = world
        .app
        .db
        .write(move |tx| Box::pin(tx.run(sql, Vec::new())));
    assert_eq!(forced.await.unwrap(), 1);
    world.clock.pass(LEASE + Duration::from_secs(1));
    assert_eq!(world.rescue().await, 1);
    assert_eq!(world.run(run.id).await.state, State::Crashed);
    assert_eq!(world.rescue().await, 0);
}

#[tokio::test]
async fn the_next_agent_hears_when_a_retry_is_due_and_what_counts_against_it() {
    let world = World::new().await;
    world.register("etl").await;
    world.create("etl").await;
    let agent = world.agent("mira").await;
    let lease = claim(&agent).await;
    let Happening::TaskRun(mut retry) = task("fetch", Event::Retry) else {
        panic!("not a task run");
    };
    (retry.failures, retry.delay_ms) = (1, 3_600_000);
    let happenings = vec![
        flow(Event::Start),
        task("fetch", Event::Start),
        Happening::TaskRun(retry),
        flow(Event::Lose),
    ];
    agent.tell(lease, happenings).await;
    let claimed = agent.poll(1).await.remove(0);
    let known = &claimed.task_runs[0];
    let left = known
        .retry_at
        .unwrap()
        .duration_since(Timestamp::UNIX_EPOCH);
    assert_eq!((known.failures, left.as_secs()), (1, 3_600));
    let start = vec![flow(Event::Start), task("fetch", Event::Start)];
    agent.tell(super::lease(&claimed), start).await;
    let tasks = world
        .client
        .task_runs(claimed.flow_run_id, &ListQuery::default())
        .await;
    assert_eq!(tasks.unwrap().items[0].retry_at, None);
}

#[tokio::test]
async fn renewing_keeps_a_run_and_a_jump_of_the_wall_clock_takes_none() {
    let world = World::new().await;
    world.register("etl").await;
    world.create("etl").await;
    let agent = world.agent("mira").await;
    let lease = claim(&agent).await;
    let renewal = Renewal {
        session_id: agent.session,
        leases: vec![lease],
    };
    for _ in 0..5 {
        world.clock.pass(Duration::from_secs(20));
        assert!(
            world
                .client
                .renew(&renewal, PATIENCE)
                .await
                .unwrap()
                .lost
                .is_empty()
        );
        assert_eq!(world.rescue().await, 0);
    }
    world.clock.jump("2026-04-01T00:00:00Z".parse().unwrap());
    assert_eq!(world.rescue().await, 0);
}

#[tokio::test]
async fn leases_get_their_full_length_after_a_gap() {
    let world = World::new().await;
    world.register("etl").await;
    world.create("etl").await;
    let agent = world.agent("mira").await;
    claim(&agent).await;
    world.clock.pass(LEASE * 10);
    waft::server::duty::rescuer::extend(&world.app)
        .await
        .unwrap();
    assert_eq!(world.rescue().await, 0);
    world.clock.pass(LEASE + Duration::from_secs(1));
    assert_eq!(world.rescue().await, 1);
}

#[tokio::test]
async fn a_cancel_reaches_the_agent_that_listens() {
    let world = World::new().await;
    world.register("etl").await;
    let run = world.create("etl").await;
    let agent = world.agent("mira").await;
    let lease = claim(&agent).await;
    agent
        .tell(lease, vec![flow(Event::Start), task("fetch", Event::Start)])
        .await;
    let listening = {
        let (client, session_id) = (world.client.clone(), agent.session);
        tokio::spawn(async move {
            let listen = Listen {
                session_id,
                leases: vec![lease],
                has_left: false,
                limited_seen: None,
                wait_seconds: 30,
            };
            client.listen(&listen).await.unwrap()
        })
    };
    tokio::task::yield_now().await;
    let cancelled = world.client.cancel(run.id).await.unwrap();
    assert_eq!(cancelled.state, State::Cancelling);
    assert_eq!(listening.await.unwrap().cancel, [lease]);
    let stop = vec![task("fetch", Event::Stop), flow(Event::Stop)];
    agent.tell(lease, stop).await;
    assert_eq!(
        world.story(run.id).await,
        "Scheduled by first, 0\n\
         Claimed by mira, 1\n\
         Running by mira, 1\n\
         Cancelling by first, 1: asked for by `first`\n\
         Cancelled by mira, 1"
    );
    assert_eq!(code(world.client.cancel(run.id).await), "flow-run-over");
}

#[tokio::test]
async fn a_run_that_waits_is_cancelled_at_once_and_one_that_lost_its_agent_too() {
    let world = World::new().await;
    world.register("etl").await;
    let run = world.create("etl").await;
    assert_eq!(
        world.client.cancel(run.id).await.unwrap().state,
        State::Cancelled
    );
    let second = world.create("etl").await;
    let agent = world.agent("mira").await;
    let lease = claim(&agent).await;
    agent
        .tell(lease, vec![flow(Event::Start), task("fetch", Event::Start)])
        .await;
    world.client.cancel(second.id).await.unwrap();
    world.clock.pass(LEASE + Duration::from_secs(1));
    world.rescue().await;
    assert_eq!(world.run(second.id).await.state, State::Cancelled);
    let tasks = world
        .client
        .task_runs(second.id, &ListQuery::default())
        .await
        .unwrap();
    assert_eq!(tasks.items[0].state, State::Cancelled);
}

#[tokio::test]
async fn what_makes_no_sense_is_left_out_and_the_rest_is_taken() {
    let world = World::new().await;
    world.register("etl").await;
    let run = world.create("etl").await;
    let agent = world.agent("mira").await;
    let lease = claim(&agent).await;
    let odd = vec![
        flow(Event::Claim),
        task("nowhere", Event::Start),
        task("fetch", Event::Claim),
        flow(Event::Start),
        task("fetch", Event::Start),
        task("fetch", Event::Succeed),
        task("fetch", Event::Succeed),
    ];
    assert!(agent.tell(lease, odd).await.lost.is_empty());
    let states: Vec<_> = world
        .history(run.id)
        .await
        .iter()
        .map(|s| s.state)
        .collect();
    use State::{Claimed, Running, Scheduled, Success};
    assert_eq!(states, [Scheduled, Claimed, Running, Running, Success]);
}

#[tokio::test]
async fn a_watcher_hears_of_a_change_at_once() {
    let world = World::new().await;
    world.register("etl").await;
    let run = world.create("etl").await;
    let watching = {
        let client = world.client.clone();
        tokio::spawn(async move {
            let query = WatchQuery {
                after: Some(run.transition),
                wait_seconds: 30,
            };
            client.watch_flow_run(run.id, &query).await.unwrap()
        })
    };
    tokio::task::yield_now().await;
    let agent = world.agent("mira").await;
    claim(&agent).await;
    assert_eq!(watching.await.unwrap().state, State::Claimed);
}

#[tokio::test]
async fn everything_is_there_after_a_restart() {
    let (clock, test) = Clock::test("2026-03-01T00:00:00Z".parse().unwrap());
    let world = World::with(clock, test).await;
    world.register("etl").await;
    let run = world.create("etl").await;
    let agent = world.agent("mira").await;
    let key = claim(&agent).await;
    let World {
        app,
        client,
        clock: test,
        place,
        _folder,
        ..
    } = world;
    let clock = app.clock.clone();
    let db = app.db.clone();
    drop((app, agent));
    drop(client);
    db.close().await;

    let (app, first_token) = open(&place, clock.clone()).await;
    assert_eq!(first_token, None, "the first token is made once");
    app.db.clone().close().await;
    drop(app);
    let token = server::make_token(place.clone(), clock.clone())
        .await
        .unwrap();
    let (app, _) = open(&place, clock).await;
    let client = Client::in_process(server::router(&app), Some(token));
    let world = World {
        token: None,
        app,
        client,
        clock: test,
        place,
        _folder,
        _house: House,
    };
    assert_eq!(world.run(run.id).await.claims, key.epoch);
    assert_eq!(world.history(run.id).await.len(), 2);
}
