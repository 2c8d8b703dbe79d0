//! Runs that wait for a person: nobody has them, and what is decided reaches whoever has or takes them.

use waft::model::run::Decision;
use waft::server::duty::timekeeper::end_overdue;
use waft::wire::NewDecision;

use super::*;

const HOUR: Duration = Duration::from_secs(3600);

/// What an agent says of a task that asks.
fn asks(name: &str) -> Vec<Happening> {
    let Happening::TaskRun(mut pause) = task(name, Event::Pause) else {
        panic!("not a task run");
    };
    pause.message = "shall it?".to_owned();
    vec![task(name, Event::Start), Happening::TaskRun(pause)]
}

/// What an agent says that hands a run back, since nothing is left but a question.
fn pauses(names: &[&str]) -> Vec<Happening> {
    let mut told = vec![flow(Event::Start)];
    told.extend(names.iter().flat_map(|name| asks(name)));
    let pause = FlowRunMoved {
        event: Event::Pause,
        message: "it waits".to_owned(),
        code: None,
        result: None,
        delay_ms: 0,
    };
    told.push(Happening::FlowRun(pause));
    told
}

fn approves(task: Option<&str>) -> NewDecision {
    NewDecision {
        task_run: task.map(|task| task.parse().unwrap()),
        is_declined: false,
        reason: "looks good".to_owned(),
    }
}

#[tokio::test]
async fn a_paused_run_is_nobodys_and_goes_on_with_the_word_of_whoever_approves() {
    let world = World::new().await;
    world.register("etl").await;
    let set = Slots { slots: Some(1) };
    world.client.set_flow_slots("etl", &set).await.unwrap();
    let run = world.create("etl").await;
    let agent = world.agent("mira").await;
    let claimed = agent.takes().await;
    agent.tell(lease(&claimed), pauses(&["fetch"])).await;
    let paused = world.run(run.id).await;
    assert_eq!(
        (paused.state, &*paused.message),
        (State::Paused, "it waits")
    );
    let explained = world.client.explain(run.id).await.unwrap();
    assert_eq!(
        explained.summary,
        "it waits for a person: `fetch` asks: shall it?"
    );
    assert_eq!(
        explained.hints[0],
        format!("waft flow-run approve {}", run.id)
    );
    // Its slot is free, and it is claimed by nobody.
    world.create("etl").await;
    let other = agent.takes().await;
    assert_ne!(other.flow_run_id, run.id);
    let ends = vec![flow(Event::Start), flow(Event::Succeed)];
    agent.tell(lease(&other), ends).await;
    assert!(agent.poll(9).await.is_empty());

    let decided = async {
        while world.app.waiting_polls() == 0 {
            tokio::task::yield_now().await;
        }
        world.client.decide(run.id, &approves(None)).await.unwrap()
    };
    let (again, gone_on) = tokio::join!(agent.poll_waiting(9, 30), decided);
    assert_eq!(gone_on.state, State::Scheduled);
    let known = &again[0].task_runs[0];
    let decision = known.decision.as_ref().unwrap();
    assert_eq!(known.state, State::Pending);
    assert_eq!((&*decision.by, &*decision.reason), ("first", "looks good"));
    // The agent has it by its claim.
    assert!(
        agent
            .hears(vec![lease(&again[0])])
            .await
            .decisions
            .is_empty()
    );
    let story: Vec<_> = world
        .history(run.id)
        .await
        .into_iter()
        .map(|step| format!("{} by {}: {}", step.state, step.by, step.message))
        .skip(3)
        .collect();
    assert_eq!(
        story,
        [
            "Running by mira: ",
            "Paused by mira: shall it?",
            "Paused by mira: it waits",
            "Pending by first: approved by `first`: looks good",
            "Scheduled by first: approved by `first`: looks good",
            "Claimed by mira: ",
        ]
    );
}

#[tokio::test]
async fn what_is_decided_while_an_agent_has_the_run_is_told_to_it_until_it_has_heard() {
    let world = World::new().await;
    world.register("etl").await;
    let run = world.create("etl").await;
    let agent = world.agent("mira").await;
    let claimed = agent.takes().await;
    let lease = lease(&claimed);
    agent.tell(lease, vec![flow(Event::Start)]).await;
    agent.tell(lease, asks("fetch")).await;
    agent.tell(lease, asks("report")).await;
    let hints = world.client.explain(run.id).await.unwrap().hints;
    assert!(hints[0].contains("approve"), "{hints:?}");

    let gone_on = world.client.decide(run.id, &approves(Some("report"))).await;
    assert_eq!(gone_on.unwrap().state, State::Running);
    for _ in 0..2 {
        let orders = agent.hears(vec![lease]).await;
        assert_eq!(orders.decisions.len(), 1);
        assert_eq!(orders.decisions[0].task_run.task, "report");
        assert_eq!(orders.decisions[0].lease, lease);
    }
    agent.tell(lease, vec![task("report", Event::Decide)]).await;
    assert!(agent.hears(vec![lease]).await.decisions.is_empty());
    let known = world.client.task_runs(run.id, &ListQuery::default()).await;
    let states: Vec<_> = known.unwrap().items.iter().map(|it| it.state).collect();
    assert_eq!(states, [State::Paused, State::Pending]);
    // An agent decides nothing by itself.
    agent.tell(lease, vec![task("fetch", Event::Decide)]).await;
    let known = world.client.task_runs(run.id, &ListQuery::default()).await;
    assert_eq!(known.unwrap().items[0].state, State::Paused);
}

#[tokio::test]
async fn a_decision_that_crosses_the_pause_of_the_run_lets_it_go_on() {
    let world = World::new().await;
    world.register("etl").await;
    let run = world.create("etl").await;
    let agent = world.agent("mira").await;
    let claimed = agent.takes().await;
    let first = lease(&claimed);
    agent.tell(first, vec![flow(Event::Start)]).await;
    agent.tell(first, asks("fetch")).await;
    world.client.decide(run.id, &approves(None)).await.unwrap();
    agent.tell(first, vec![flow(Event::Pause)]).await;
    assert_eq!(world.run(run.id).await.state, State::Scheduled);
    let again = agent.takes().await;
    assert!(again.task_runs[0].decision.is_some());
    // One that asks nothing waits for nobody.
    agent.tell(lease(&again), vec![flow(Event::Pause)]).await;
    assert_eq!(world.run(run.id).await.state, State::Scheduled);
}

#[tokio::test]
async fn an_agent_that_dies_after_a_decision_takes_none_of_it_with_it() {
    let world = World::new().await;
    world.register("etl").await;
    let run = world.create("etl").await;
    let agent = world.agent("mira").await;
    let claimed = agent.takes().await;
    agent.tell(lease(&claimed), vec![flow(Event::Start)]).await;
    agent.tell(lease(&claimed), asks("fetch")).await;
    world.client.decide(run.id, &approves(None)).await.unwrap();
    world.clock.pass(LEASE + Duration::from_secs(1));
    world.rescue().await;
    let again = world.agent("nas").await.takes().await;
    assert_eq!(again.task_runs[0].state, State::Pending);
    let decision: &Decision = again.task_runs[0].decision.as_ref().unwrap();
    assert_eq!(decision.to_string(), "approved by `first`: looks good");
}

#[tokio::test]
async fn the_time_of_people_does_not_count() {
    let world = World::new().await;
    world.register("etl").await;
    let mut new = new_run("etl");
    new.timeout_ms = Some(3_600_000);
    let run = world.try_create(&new).await.unwrap();
    let agent = world.agent("mira").await;
    let claimed = agent.takes().await;
    agent.tell(lease(&claimed), vec![flow(Event::Start)]).await;
    world.clock.pass(Duration::from_secs(20));
    agent.tell(lease(&claimed), pauses(&["fetch"])).await;
    world.clock.pass(HOUR * 24 * 365);
    assert_eq!(end_overdue(&world.app).await.unwrap(), 0);
    world.client.decide(run.id, &approves(None)).await.unwrap();
    world.clock.pass(Duration::from_secs(10));
    let again = agent.takes().await;
    assert_eq!(again.stood_still_ms, 3_600_000 * 24 * 365);
    agent
        .tell(lease(&again), vec![flow(Event::Start), flow(Event::Lose)])
        .await;
    world.clock.pass(HOUR - Duration::from_secs(31));
    assert_eq!(end_overdue(&world.app).await.unwrap(), 0);
    world.clock.pass(Duration::from_secs(1));
    assert_eq!(end_overdue(&world.app).await.unwrap(), 1);
    assert_eq!(world.run(run.id).await.state, State::TimedOut);
}

#[tokio::test]
async fn who_may_decide_and_about_what() {
    let world = World::new().await;
    world.register("etl").await;
    let run = world.create("etl").await;
    let decide = async |decision: NewDecision| world.client.decide(run.id, &decision).await;
    assert_eq!(code(decide(approves(None)).await), "flow-run-not-paused");
    assert_eq!(
        code(decide(approves(Some("nowhere"))).await),
        "task-unknown"
    );
    let agent = world.agent("mira").await;
    let claimed = agent.takes().await;
    agent.tell(lease(&claimed), pauses(&["fetch"])).await;
    assert_eq!(
        code(decide(approves(Some("report"))).await),
        "flow-run-not-paused"
    );
    let mut long = approves(None);
    long.reason = "x".repeat(5_000);
    assert_eq!(code(decide(long).await), "value-bad");
    decide(approves(Some("fetch"))).await.unwrap();
    assert_eq!(code(decide(approves(None)).await), "flow-run-not-paused");
    let claimed = agent.takes().await;
    world.client.cancel(run.id).await.unwrap();
    assert_eq!(code(decide(approves(None)).await), "state-wrong");
    agent.tell(lease(&claimed), vec![flow(Event::Stop)]).await;
    assert_eq!(code(decide(approves(None)).await), "flow-run-over");
    // A paused run is cancelled at once, with what waits.
    let run = world.create("etl").await;
    let claimed = agent.takes().await;
    agent.tell(lease(&claimed), pauses(&["fetch"])).await;
    let over = world.client.cancel(run.id).await.unwrap();
    assert_eq!(over.state, State::Cancelled);
    let known = world.client.task_runs(run.id, &ListQuery::default()).await;
    assert_eq!(known.unwrap().items[0].state, State::Cancelled);
}

/// It would take a task run that waits for a person for one that nobody has begun.
#[tokio::test]
async fn an_agent_that_knows_no_questions_is_given_no_run_with_one() {
    let world = World::new().await;
    world.register("etl").await;
    let run = world.create("etl").await;
    let mira = world.agent("mira").await;
    let claimed = mira.takes().await;
    let mut told = vec![flow(Event::Start)];
    told.extend(asks("fetch"));
    mira.tell(lease(&claimed), told).await;
    world.clock.pass(LEASE + Duration::from_secs(1));
    world.rescue().await;
    assert_eq!(world.run(run.id).await.state, State::Scheduled);

    let other = world.create("etl").await;
    let old = NewSession {
        protocol: 1,
        is_start: false,
        ..hello("old", offer())
    };
    let opened = world.client.open_session(&old).await.unwrap();
    let old = Agent {
        client: world.client.clone(),
        id: opened.agent_id,
        session: opened.session_id,
        numbers: AtomicU64::new(0),
    };
    let given: Vec<_> = old.poll(9).await;
    let given: Vec<_> = given.iter().map(|run| run.flow_run_id).collect();
    assert_eq!(given, [other.id]);
    let explained = format!("{:?}", world.client.explain(run.id).await.unwrap());
    assert!(explained.contains("protocol:2"), "{explained}");
    // Nor when it is decided: it does not read decisions.
    world.client.decide(run.id, &approves(None)).await.unwrap();
    assert!(old.poll(9).await.is_empty());
    let mira = world.agent("mira").await;
    assert_eq!(mira.takes().await.flow_run_id, run.id);
}
