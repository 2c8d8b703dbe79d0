//! What ends by hand: task runs, which whoever has the run sees to, and runs as a whole, at once.

use waft::model::run::Verdict;
use waft::wire::{NewDecision, NewMark, NewRetry, Renewal, TaskMark};

use super::*;

const HOUR_MS: u64 = 3_600_000;

fn marks(state: State, tasks: &[&str]) -> NewMark {
    NewMark {
        task_runs: tasks.iter().map(|task| task.parse().unwrap()).collect(),
        state,
        output: None,
        reason: "by hand".to_owned(),
    }
}

impl World {
    async fn mark(&self, id: FlowRunId, mark: &NewMark) -> Result<FlowRun, ClientError> {
        self.client.mark(id, mark).await
    }

    /// Tells the history of the task runs of a run in short words.
    async fn task_story(&self, id: FlowRunId) -> Vec<String> {
        let steps = self.history(id).await;
        let own = steps.into_iter().filter_map(|step| {
            let task = step.task_run?;
            let (state, by, why) = (step.state, step.by, step.message);
            Some(format!("{task} {state} by {by}: {why}"))
        });
        own.collect()
    }
}

/// Registers a flow whose first task is mapped.
async fn register_mapped(world: &World) {
    let mut mapped = registration("mapped");
    mapped.definition = serde_json::from_value(json!({
        "name": "mapped",
        "parameters": [{"name": "name", "schema": {}, "default": [1, 2]}],
        "tasks": [{"name": "fetch", "body": {"function": "fetch"}, "is_mapped": true,
            "skip_on_upstream_skip": true}],
        "edges": [{"from": {"parameter": "name"}, "to": "fetch", "input": "one", "mapping": "each"}],
    }))
    .unwrap();
    world.client.register("demo", &mapped).await.unwrap();
}

#[tokio::test]
async fn whoever_has_the_run_is_told_how_a_task_ends_until_that_is_done() {
    let world = World::new().await;
    world.register("etl").await;
    let run = world.create("etl").await;
    let agent = world.agent("mira").await;
    let claimed = agent.takes().await;
    let lease = lease(&claimed);
    let begins = vec![flow(Event::Start), task("fetch", Event::Start)];
    agent.tell(lease, begins).await;

    let cancels = marks(State::Cancelled, &["fetch"]);
    let listening = agent.hears_within(vec![lease], 30);
    let marking = async {
        tokio::task::yield_now().await;
        world.mark(run.id, &cancels).await.unwrap()
    };
    // The open call brings it: nobody waits for the next one.
    let (orders, marked) = tokio::join!(listening, marking);
    assert_eq!(marked.state, State::Running);
    for orders in [orders, agent.hears(vec![lease]).await] {
        let [decided] = &orders.decisions[..] else {
            panic!("{orders:?}");
        };
        assert_eq!(decided.task_run.task, "fetch");
        assert_eq!(decided.decision.verdict, Verdict::Cancelled);
    }
    let explained = world.client.explain(run.id).await.unwrap();
    let why = "`fetch` was cancelled by `first`: by hand; whoever has the run sees to it";
    assert_eq!(explained.marks, [why]);
    // A repeat is none, and nobody says otherwise.
    world.mark(run.id, &cancels).await.unwrap();
    let other = world.mark(run.id, &marks(State::Skipped, &["fetch"])).await;
    assert_eq!(code(other), "state-wrong");
    agent
        .tell(lease, vec![task("fetch", Event::MarkCancelled)])
        .await;
    assert!(agent.hears(vec![lease]).await.decisions.is_empty());
    // The attempt that it dropped says what it will: what is over stays so.
    agent.tell(lease, vec![task("fetch", Event::Succeed)]).await;
    agent
        .tell(lease, vec![task("report", Event::FailTrigger)])
        .await;
    agent.tell(lease, vec![flow(Event::Fail)]).await;
    let story = world.task_story(run.id).await;
    assert_eq!(
        story,
        [
            "fetch Running by mira: ",
            "fetch Running by first: cancelled by `first`: by hand",
            "fetch Cancelled by mira: ",
            "report TriggerFailed by mira: ",
        ]
    );
    let refused = world.mark(run.id, &cancels).await.unwrap_err();
    let ClientError::Refused(refused) = refused else {
        panic!("{refused}");
    };
    assert_eq!(refused.code, "flow-run-over");
    let retry = format!("waft flow-run retry {} --mark TASK=Success", run.id);
    assert_eq!(refused.hint.as_deref(), Some(&*retry));
}

#[tokio::test]
async fn what_is_said_before_anybody_has_the_run_comes_with_its_first_claim() {
    let world = World::new().await;
    world.register("etl").await;
    let run = world.create("etl").await;
    let mut mark = marks(State::Success, &["fetch"]);
    mark.output = Some(" {\"rows\": 3} ".to_owned());
    let marked = world.mark(run.id, &mark).await.unwrap();
    assert_eq!(marked.state, State::Scheduled);
    // An agent that reads no decisions would not obey.
    let old = NewSession {
        protocol: 1,
        is_start: false,
        ..hello("old", offer())
    };
    let session_id = world.client.open_session(&old).await.unwrap().session_id;
    let poll = Poll {
        session_id,
        free_slots: 1,
        wait_seconds: 0,
    };
    assert!(world.client.poll(&poll).await.unwrap().flow_runs.is_empty());
    let agent = world.agent("mira").await;
    let claimed = agent.takes().await;
    let [known] = &claimed.task_runs[..] else {
        panic!("{:?}", claimed.task_runs);
    };
    let decision = known.decision.as_ref().unwrap();
    assert_eq!(
        (known.state, decision.verdict),
        (State::Pending, Verdict::Success)
    );
    assert_eq!(decision.output.as_deref(), Some("{\"rows\": 3}"));
    let lease = lease(&claimed);
    assert!(agent.hears(vec![lease]).await.decisions.is_empty());
    let Happening::TaskRun(mut success) = task("fetch", Event::MarkSuccess) else {
        panic!("not a task run");
    };
    success.result = Some(result());
    let told = vec![
        flow(Event::Start),
        Happening::TaskRun(success),
        task("report", Event::Start),
        task("report", Event::Succeed),
        flow(Event::Succeed),
    ];
    agent.tell(lease, told).await;
    assert_eq!(world.run(run.id).await.state, State::Success);
    let explained = world.client.explain(run.id).await.unwrap();
    assert_eq!(
        explained.marks,
        ["`fetch` was marked Success by `first`: by hand"]
    );
}

/// What an agent says that hands a run back with `fetch` waiting.
fn waits(event: Event) -> Vec<Happening> {
    let Happening::TaskRun(mut waits) = task("fetch", event) else {
        panic!("not a task run");
    };
    let hands_back = match event {
        Event::Retry => Event::Rest,
        _ => Event::Pause,
    };
    (waits.failures, waits.delay_ms) = (1, HOUR_MS);
    let hands_back = FlowRunMoved {
        event: hands_back,
        message: "it waits".to_owned(),
        code: None,
        result: None,
        delay_ms: HOUR_MS,
    };
    vec![
        flow(Event::Start),
        task("fetch", Event::Start),
        Happening::TaskRun(waits),
        Happening::FlowRun(hands_back),
    ]
}

#[tokio::test]
async fn a_run_that_waits_goes_on_at_once_by_what_is_said_of_a_task() {
    let world = World::new().await;
    world.register("etl").await;
    let agent = world.agent("mira").await;
    for event in [Event::Retry, Event::Pause] {
        let run = world.create("etl").await;
        let claimed = agent.takes().await;
        agent.tell(lease(&claimed), waits(event)).await;
        assert!(agent.poll(1).await.is_empty());
        let skips = marks(State::Skipped, &["fetch"]);
        let marked = world.mark(run.id, &skips).await.unwrap();
        assert_eq!(marked.state, State::Scheduled);
        let again = agent.takes().await;
        assert_eq!(again.flow_run_id, run.id);
        let decision = again.task_runs[0].decision.as_ref().unwrap();
        assert_eq!(decision.verdict, Verdict::Skipped);
        let told = vec![
            flow(Event::Start),
            task("fetch", Event::MarkSkipped),
            flow(Event::Succeed),
        ];
        agent.tell(lease(&again), told).await;
        assert_eq!(world.run(run.id).await.state, State::Success);
    }
    // One that was not begun begins no earlier.
    let mut later = new_run("etl");
    later.scheduled_at = Some("2026-03-02T00:00:00Z".parse().unwrap());
    let later = world.try_create(&later).await.unwrap();
    let skips = marks(State::Skipped, &["fetch"]);
    let marked = world.mark(later.id, &skips).await.unwrap();
    assert_eq!(marked.due_at, later.due_at);
    assert!(agent.poll(1).await.is_empty());
}

#[tokio::test]
async fn what_is_said_crosses_what_an_agent_says_and_outlives_it() {
    let world = World::new().await;
    world.register("etl").await;
    let agent = world.agent("mira").await;
    let skips = marks(State::Skipped, &["fetch"]);
    for event in [Event::Retry, Event::Pause] {
        let run = world.create("etl").await;
        let claimed = agent.takes().await;
        let told = waits(event);
        agent.tell(lease(&claimed), told[..2].to_vec()).await;
        world.mark(run.id, &skips).await.unwrap();
        // It has not heard of it when it hands the run back for an hour, or for a person.
        agent.tell(lease(&claimed), told[2..].to_vec()).await;
        let again = agent.takes().await;
        let decision = again.task_runs[0].decision.as_ref().unwrap();
        assert_eq!(decision.verdict, Verdict::Skipped);
        // Its agent dies, and so does nothing of it.
        agent.tell(lease(&again), vec![flow(Event::Start)]).await;
        world.clock.pass(LEASE + Duration::from_secs(1));
        world.rescue().await;
        let again = agent.takes().await;
        assert!(again.task_runs[0].decision.is_some());
        world.client.cancel(run.id).await.unwrap();
        agent.tell(lease(&again), vec![flow(Event::Stop)]).await;
    }
}

#[tokio::test]
async fn who_has_heard_of_an_approval_has_not_heard_of_what_was_said_after_it() {
    let world = World::new().await;
    world.register("etl").await;
    let run = world.create("etl").await;
    let agent = world.agent("mira").await;
    let claimed = agent.takes().await;
    let lease = lease(&claimed);
    agent.tell(lease, waits(Event::Pause)[..3].to_vec()).await;
    let approves = NewDecision::default();
    world.client.decide(run.id, &approves).await.unwrap();
    let approval = agent.hears(vec![lease]).await.decisions.remove(0);
    world.clock.pass(Duration::from_millis(1));
    let fails = marks(State::Failed, &["fetch"]);
    world.mark(run.id, &fails).await.unwrap();
    let Happening::TaskRun(mut heard) = task("fetch", Event::Decide) else {
        panic!("not a task run");
    };
    heard.decided_at = Some(approval.decision.at);
    agent
        .tell(lease, vec![Happening::TaskRun(heard.clone())])
        .await;
    let mark = agent.hears(vec![lease]).await.decisions.remove(0);
    assert_eq!(mark.decision.verdict, Verdict::Failed);
    heard.decided_at = Some(mark.decision.at);
    agent.tell(lease, vec![Happening::TaskRun(heard)]).await;
    assert!(agent.hears(vec![lease]).await.decisions.is_empty());
}

#[tokio::test]
async fn a_run_that_is_marked_is_over_at_once_and_its_agent_has_lost_it() {
    let world = World::new().await;
    world.register("etl").await;
    let agent = world.agent("mira").await;
    for state in Verdict::MARKS {
        let run = world.create("etl").await;
        let claimed = agent.takes().await;
        let lease = lease(&claimed);
        let begins = vec![flow(Event::Start), task("fetch", Event::Start)];
        let reports: Vec<_> = begins
            .into_iter()
            .map(|what| agent.report_of(lease, what))
            .collect();
        agent.send(reports.clone()).await;
        let listening = agent.hears_within(vec![lease], 30);
        let marking = async {
            tokio::task::yield_now().await;
            world.mark(run.id, &marks(state, &[])).await.unwrap()
        };
        let (orders, marked) = tokio::join!(listening, marking);
        assert_eq!(marked.state, state);
        let said = match state {
            State::Cancelled => "cancelled".to_owned(),
            state => format!("marked {state}"),
        };
        let said = format!("{said} by `first`: by hand");
        assert_eq!(marked.message, said);
        assert_eq!(orders.lost, [lease], "it is told to stop");
        // A report is refused, a new one and one that was taken before; and so is a renewal.
        let late = vec![task("fetch", Event::Succeed), flow(Event::Succeed)];
        assert_eq!(agent.tell(lease, late).await.lost, [lease]);
        assert_eq!(agent.send(reports).await.lost, [lease]);
        let renewal = Renewal {
            session_id: agent.session,
            leases: vec![lease],
        };
        let renewed = world.client.renew(&renewal, LEASE).await.unwrap();
        assert_eq!(renewed.lost, [lease]);
        let story = world.task_story(run.id).await;
        assert_eq!(story[1], format!("fetch Cancelled by first: {said}"));
        assert_eq!(story.len(), 2, "nothing follows");
        let again = world.mark(run.id, &marks(State::Failed, &[])).await;
        assert_eq!(code(again), "flow-run-over");
        let explained = world.client.explain(run.id).await.unwrap();
        assert_eq!(explained.summary, said);
    }
    // Whoever began to listen before it had the run is told by its next call, which is at once.
    let run = world.create("etl").await;
    let early = agent.hears_within(Vec::new(), 30);
    let marking = async {
        tokio::task::yield_now().await;
        let claimed = agent.takes().await;
        world
            .mark(run.id, &marks(State::Failed, &[]))
            .await
            .unwrap();
        lease(&claimed)
    };
    let (orders, lease_of_it) = tokio::join!(early, marking);
    assert!(orders.lost.is_empty());
    assert_eq!(agent.hears(vec![lease_of_it]).await.lost, [lease_of_it]);
    // One that has ended by itself is no news to its agent.
    world.create("etl").await;
    let claimed = agent.takes().await;
    let ends = vec![flow(Event::Start), flow(Event::Succeed)];
    agent.tell(lease(&claimed), ends).await;
    assert!(agent.hears(vec![lease(&claimed)]).await.lost.is_empty());
}

#[tokio::test]
async fn a_run_is_marked_wherever_it_stands() {
    let world = World::new().await;
    world.register("etl").await;
    let agent = world.agent("mira").await;
    let mut later = new_run("etl");
    later.scheduled_at = Some("2026-03-02T00:00:00Z".parse().unwrap());
    let scheduled = world.try_create(&later).await.unwrap().id;
    let mut waiting = Vec::new();
    for event in [Event::Retry, Event::Pause] {
        waiting.push(world.create("etl").await.id);
        let claimed = agent.takes().await;
        agent.tell(lease(&claimed), waits(event)).await;
    }
    let stopping = world.create("etl").await.id;
    let claimed = agent.takes().await;
    world.client.cancel(stopping).await.unwrap();
    let done = marks(State::Success, &[]);
    for id in [scheduled, waiting[0], waiting[1], stopping] {
        let marked = world.mark(id, &done).await.unwrap();
        assert_eq!((marked.state, marked.code), (State::Success, None));
        assert!(marked.ended_at.is_some());
    }
    assert_eq!(
        agent.hears(vec![lease(&claimed)]).await.lost,
        [lease(&claimed)]
    );
    world.clock.pass(Duration::from_secs(90_000));
    assert!(agent.poll(9).await.is_empty(), "nothing of it is claimed");
    let known = world
        .client
        .task_runs(waiting[1], &ListQuery::default())
        .await;
    assert_eq!(known.unwrap().items[0].state, State::Cancelled);
}

#[tokio::test]
async fn a_retry_begins_with_what_was_done_by_hand() {
    let world = World::new().await;
    world.register("etl").await;
    let agent = world.agent("mira").await;
    let run = world.create("etl").await;
    let claimed = agent.takes().await;
    let told = vec![
        flow(Event::Start),
        task("fetch", Event::Start),
        task("fetch", Event::Fail),
        task("report", Event::FailTrigger),
        flow(Event::Fail),
    ];
    agent.tell(lease(&claimed), told).await;
    let by_hand = TaskMark {
        task_run: "fetch".parse().unwrap(),
        state: State::Success,
        output: Some("[1]".to_owned()),
    };
    let retry = NewRetry {
        marks: vec![by_hand],
        reason: "fetched by hand".to_owned(),
        ..NewRetry::default()
    };
    let retry = world.client.retry(run.id, &retry).await.unwrap();
    assert_eq!(
        world.task_story(retry.id).await,
        ["fetch Pending by first: marked Success by `first`: fetched by hand"]
    );
    let claimed = agent.takes().await;
    let [known] = &claimed.task_runs[..] else {
        panic!("{:?}", claimed.task_runs);
    };
    let decision = known.decision.as_ref().unwrap();
    assert_eq!(decision.output.as_deref(), Some("[1]"));
    // It is finished by that, for this run and for the retries of it.
    let Happening::TaskRun(mut success) = task("fetch", Event::MarkSuccess) else {
        panic!("not a task run");
    };
    success.result = Some(result());
    let told = vec![
        flow(Event::Start),
        Happening::TaskRun(success),
        task("report", Event::Start),
        task("report", Event::Fail),
        flow(Event::Fail),
    ];
    agent.tell(lease(&claimed), told).await;
    let mut last = retry.id;
    for _ in 0..2 {
        let again = world
            .client
            .retry(last, &NewRetry::default())
            .await
            .unwrap();
        let known = world
            .client
            .task_runs(again.id, &ListQuery::default())
            .await;
        let known = known.unwrap().items.remove(0);
        assert_eq!((known.state, known.result), (State::Cached, Some(result())));
        let why = format!("kept from the run {last}, marked Success by `first`: fetched by hand");
        assert_eq!(known.message, why);
        last = again.id;
        world.mark(last, &marks(State::Failed, &[])).await.unwrap();
        assert!(agent.poll(1).await.is_empty());
    }
    // What went well before is done again if it hangs on what is marked.
    let both = marks(State::Success, &["report"]);
    let retried = NewRetry {
        marks: vec![TaskMark {
            task_run: both.task_runs[0].clone(),
            state: State::Skipped,
            output: None,
        }],
        ..NewRetry::default()
    };
    let done = world.create("etl").await.id;
    world.mark(done, &marks(State::Success, &[])).await.unwrap();
    assert_eq!(
        code(world.client.retry(done, &NewRetry::default()).await),
        "state-wrong"
    );
    world.client.retry(done, &retried).await.unwrap();
}

#[tokio::test]
async fn what_makes_no_sense_is_refused_and_changes_nothing() {
    let world = World::new().await;
    world.register("etl").await;
    register_mapped(&world).await;
    let run = world.create("etl").await.id;
    let mark = async |mark: NewMark| code(world.mark(run, &mark).await);
    let with = |output: &str, state, tasks: &[&str]| NewMark {
        output: Some(output.to_owned()),
        ..marks(state, tasks)
    };
    assert_eq!(mark(marks(State::Running, &["fetch"])).await, "value-bad");
    assert_eq!(
        mark(marks(State::Skipped, &["nothing"])).await,
        "task-unknown"
    );
    assert_eq!(
        mark(marks(State::Skipped, &["fetch[0]"])).await,
        "task-unknown"
    );
    assert_eq!(
        mark(with("1", State::Skipped, &["fetch"])).await,
        "value-bad"
    );
    assert_eq!(mark(with("1", State::Success, &[])).await, "value-bad");
    assert_eq!(
        mark(with("{a}", State::Success, &["fetch"])).await,
        "value-bad"
    );
    let long = format!("\"{}\"", "x".repeat(64 * 1024));
    assert_eq!(
        mark(with(&long, State::Success, &["fetch"])).await,
        "value-bad"
    );
    let fits = format!("\"{}\"", "x".repeat(64 * 1024 - 2));
    let mut wordy = marks(State::Skipped, &["fetch"]);
    wordy.reason = "x".repeat(5_000);
    assert_eq!(mark(wordy).await, "value-bad");
    assert_eq!(world.run(run).await.transition, 1);
    world
        .mark(run, &with(&fits, State::Success, &["report"]))
        .await
        .unwrap();

    // One that is over keeps the others from being marked with it.
    let agent = world.agent("mira").await;
    let claimed = agent.takes().await;
    let told = vec![
        flow(Event::Start),
        task("fetch", Event::Start),
        task("fetch", Event::Succeed),
    ];
    agent.tell(lease(&claimed), told).await;
    let before = world.run(run).await.transition;
    let refused = world
        .mark(run, &marks(State::Cancelled, &["report", "fetch"]))
        .await;
    let ClientError::Refused(refused) = refused.unwrap_err() else {
        panic!("it was not refused");
    };
    assert_eq!(refused.code, "task-run-over");
    let hint = refused.hint.unwrap();
    assert!(
        hint.ends_with(&format!("retry {run} --mark fetch=Success")),
        "{hint}"
    );
    assert_eq!(world.run(run).await.transition, before);
    world.client.cancel(run).await.unwrap();
    assert_eq!(
        mark(marks(State::Skipped, &["report"])).await,
        "state-wrong"
    );
    agent.tell(lease(&claimed), vec![flow(Event::Stop)]).await;

    // Elements are taken by their number, which only the agent can check.
    let mut new = new_run("mapped");
    new.parameters.clear();
    let run = world.try_create(&new).await.unwrap().id;
    world
        .mark(run, &marks(State::Skipped, &["fetch[1]"]))
        .await
        .unwrap();
    let far = world
        .mark(run, &marks(State::Skipped, &["fetch[100000]"]))
        .await;
    assert_eq!(code(far), "task-unknown");
    let known = world.client.task_runs(run, &ListQuery::default()).await;
    assert_eq!(known.unwrap().items[0].map_index, Some(1));
}
