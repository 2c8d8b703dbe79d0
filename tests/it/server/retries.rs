//! New runs in the place of those that did not go well, and all runs of a flow stopped.

use waft::wire::NewRetry;

use super::*;

const WHOLE: NewRetry = NewRetry {
    is_whole: true,
    is_newest: false,
    marks: Vec::new(),
    reason: String::new(),
};

/// Has a run whose first task goes well and whose second fails.
async fn half_done(world: &World, agent: &Agent) -> FlowRunId {
    let run = world.create("etl").await;
    let claimed = agent.poll(1).await.remove(0);
    let told = vec![
        flow(Event::Start),
        task("fetch", Event::Start),
        task("fetch", Event::Succeed),
        task("report", Event::Start),
        task("report", Event::Fail),
        flow(Event::Fail),
    ];
    agent.tell(lease(&claimed), told).await;
    assert_eq!(world.run(run.id).await.state, State::Failed);
    run.id
}

#[tokio::test]
async fn what_went_well_is_kept_and_its_results_are_required() {
    let world = World::new().await;
    world.register("etl").await;
    let agent = world.agent("mira").await;
    let failed = half_done(&world, &agent).await;
    let before = world.run(failed).await;

    let retry = world.client.retry(failed, &NewRetry::default()).await;
    let retry = retry.unwrap();
    assert_eq!(retry.retry_of, Some(failed));
    assert_eq!(retry.parameters, before.parameters);
    assert_eq!(world.run(failed).await.transition, before.transition);
    let mut far = offer();
    far.roots.remove("file:///results");
    let far = world.agent_offering("far", far).await;
    assert!(far.poll(1).await.is_empty(), "it cannot read what is kept");

    let claimed = agent.poll(1).await.remove(0);
    assert_eq!((claimed.flow_run_id, claimed.epoch), (retry.id, 1));
    let [kept] = &claimed.task_runs[..] else {
        panic!("{:?}", claimed.task_runs);
    };
    assert_eq!((&*kept.task, kept.state), ("fetch", State::Cached));
    assert_eq!(kept.result, Some(result()));
    assert_eq!(kept.message, format!("kept from the run {failed}"));
    // What is over stays so, whoever says what of it.
    let told = vec![
        flow(Event::Start),
        task("fetch", Event::Start),
        task("report", Event::Start),
        task("report", Event::Succeed),
        flow(Event::Succeed),
    ];
    agent.tell(lease(&claimed), told).await;
    assert_eq!(world.run(retry.id).await.state, State::Success);
    let steps = world.history(retry.id).await;
    let fetch: Vec<_> = steps
        .iter()
        .filter(|step| {
            step.task_run
                .as_ref()
                .is_some_and(|key| key.task == "fetch")
        })
        .map(|step| (step.state, &*step.by))
        .collect();
    assert_eq!(fetch, [(State::Cached, "first")]);
}

#[tokio::test]
async fn a_retry_is_whole_or_of_the_newest_version_where_that_is_asked_for() {
    let world = World::new().await;
    world.register("etl").await;
    let agent = world.agent("mira").await;
    let failed = half_done(&world, &agent).await;
    world.client.retry(failed, &WHOLE).await.unwrap();
    let claimed = agent.poll(1).await.remove(0);
    assert!(claimed.task_runs.is_empty());

    // The newest version has another task in the place of the first.
    let mut newer = registration("etl");
    newer.definition.tasks[0].name = "load".to_owned();
    newer.definition.tasks.reverse();
    newer.definition.edges[0] = serde_json::from_value(json!(
        {"from": {"task": "load"}, "to": "report", "input": "readings"}
    ))
    .unwrap();
    newer.artifact = Digest::of(b"newer");
    newer.location.key = format!("sha256/{}", newer.artifact.to_hex());
    world.client.register("demo", &newer).await.unwrap();
    let newest = NewRetry {
        is_newest: true,
        ..NewRetry::default()
    };
    let same = world.client.retry(failed, &NewRetry::default()).await;
    assert_eq!(same.unwrap().version, 1);
    let retry = world.client.retry(failed, &newest).await.unwrap();
    assert_eq!(retry.version, 2);
    let known = world
        .client
        .task_runs(retry.id, &ListQuery::default())
        .await;
    assert!(known.unwrap().items.is_empty(), "`fetch` is no more");
}

#[tokio::test]
async fn only_what_is_over_and_went_badly_is_retried() {
    let world = World::new().await;
    world.register("etl").await;
    let agent = world.agent("mira").await;
    let run = world.create("etl").await;
    let part = NewRetry::default();
    assert_eq!(code(world.client.retry(run.id, &part).await), "state-wrong");
    let claimed = agent.poll(1).await.remove(0);
    let told = vec![flow(Event::Start), flow(Event::Succeed)];
    agent.tell(lease(&claimed), told).await;
    assert_eq!(code(world.client.retry(run.id, &part).await), "state-wrong");
    world.client.retry(run.id, &WHOLE).await.unwrap();
    let nobody = FlowRunId::at(0, 7);
    let refused = world.client.retry(nobody, &part).await;
    assert_eq!(code(refused), "flow-run-unknown");
}

#[tokio::test]
async fn all_runs_of_a_flow_are_stopped_together() {
    let world = World::new().await;
    world.register("etl").await;
    world.register("other").await;
    let agent = world.agent("mira").await;
    let mut runs = Vec::new();
    for _ in 0..450 {
        world.clock.pass(Duration::from_millis(1));
        runs.push(world.create("etl").await.id);
    }
    let other = world.create("other").await;
    let claimed = agent.poll(2).await;
    let count = world.client.cancel_all("etl").await.unwrap().count;
    assert_eq!(count, 450);
    assert_eq!(world.client.cancel_all("etl").await.unwrap().count, 0);
    for (nth, id) in runs.iter().enumerate() {
        let wanted = match claimed.iter().any(|run| run.flow_run_id == *id) {
            true => State::Cancelling,
            false => State::Cancelled,
        };
        assert_eq!(world.run(*id).await.state, wanted, "{nth}");
    }
    assert_eq!(world.run(other.id).await.state, State::Scheduled);
    assert_eq!(
        world.story(runs[449]).await.lines().last().unwrap(),
        "Cancelled by first, 0: asked for by `first`, with all runs of the flow"
    );
}
