//! Slots: how many runs of a flow or a project agents have at one time.

use super::*;

async fn queued(world: &World) -> Vec<FlowRun> {
    let query = ListQuery {
        state: Some("Queued".to_owned()),
        limit: Some(200),
        ..ListQuery::default()
    };
    world.client.list_flow_runs(&query).await.unwrap().items
}

async fn set_flow(world: &World, flow: &str, slots: Option<u32>) {
    let set = world.client.set_flow_slots(flow, &Slots { slots }).await;
    assert_eq!(set.unwrap().slots, slots);
}

async fn end(agent: &Agent, run: &ClaimedRun) {
    let story = vec![flow(Event::Start), flow(Event::Succeed)];
    agent.tell(lease(run), story).await;
}

#[tokio::test]
async fn a_run_without_a_slot_is_queued_says_why_and_goes_on_when_one_is_free() {
    let world = World::new().await;
    world.register("etl").await;
    world.register("other").await;
    set_flow(&world, "etl", Some(1)).await;
    let mut runs = Vec::new();
    for name in ["etl", "etl", "etl", "other"] {
        world.clock.pass(Duration::from_millis(1));
        runs.push(world.create(name).await);
    }
    let [first, second, third, other] = runs.try_into().unwrap();
    let agent = world.agent("mira").await;

    let claimed = agent.poll(9).await;
    let ids: Vec<_> = claimed.iter().map(|run| run.flow_run_id).collect();
    assert_eq!(ids, [first.id, other.id], "those behind are not held up");
    assert_eq!(queued(&world).await.len(), 2);
    let said = world.run(second.id).await;
    assert_eq!(
        said.message,
        "waits for a slot of its flow: 1 of 1 are taken"
    );
    let explained = world.client.explain(third.id).await.unwrap();
    assert_eq!(explained.summary, said.message);
    assert_eq!(explained.hints, ["waft flow set demo/etl --slots N"]);
    assert!(agent.poll(9).await.is_empty());

    // A poll that waits is woken by the end of the run that had the slot.
    let ended = async {
        while world.app.waiting_polls() == 0 {
            tokio::task::yield_now().await;
        }
        end(&agent, &claimed[0]).await;
        server::duty::usher::usher(&world.app).await.unwrap();
    };
    let (next, ()) = tokio::join!(agent.poll_waiting(9, 30), ended);
    assert_eq!(next.len(), 1);
    assert_eq!(next[0].flow_run_id, second.id);
    let story = world.story(second.id).await;
    assert_eq!(
        story,
        "Scheduled by first, 0\n\
         Queued by server, 0: waits for a slot of its flow: 1 of 1 are taken\n\
         Claimed by mira, 1"
    );
}

#[tokio::test]
async fn a_slot_that_an_agent_lost_is_free_and_more_slots_let_more_run() {
    let world = World::new().await;
    world.register("etl").await;
    set_flow(&world, "etl", Some(1)).await;
    for _ in 0..5 {
        world.clock.pass(Duration::from_millis(1));
        world.create("etl").await;
    }
    let dead = world.agent("mira").await;
    assert_eq!(dead.poll(9).await.len(), 1);
    world.clock.pass(LEASE + Duration::from_secs(1));
    assert_eq!(world.rescue().await, 1);
    let agent = world.agent("tom").await;
    let rescued = agent.poll(9).await;
    assert_eq!(rescued.len(), 1);
    assert_eq!(rescued[0].epoch, 2, "the run that had begun goes first");
    set_flow(&world, "etl", Some(3)).await;
    assert_eq!(agent.poll(1).await.len(), 1);
    assert_eq!(agent.poll(9).await.len(), 1);
    set_flow(&world, "etl", Some(2)).await;
    end(&agent, &rescued[0]).await;
    assert!(agent.poll(9).await.is_empty(), "two have a slot still");
    set_flow(&world, "etl", None).await;
    assert_eq!(agent.poll(9).await.len(), 2);
    assert!(queued(&world).await.is_empty());
}

#[tokio::test]
async fn the_slots_of_a_project_are_shared_by_its_flows() {
    let world = World::new().await;
    for name in ["a", "b"] {
        world.register(name).await;
        world.create(name).await;
        world.create(name).await;
    }
    let slots = Slots { slots: Some(2) };
    let set = world
        .client
        .set_project_slots("demo", &slots)
        .await
        .unwrap();
    assert_eq!(set.slots, Some(2));
    let agent = world.agent("mira").await;
    let first = agent.poll(9).await;
    assert_eq!(first.len(), 2);
    let said = queued(&world).await;
    assert_eq!(said.len(), 2);
    assert_eq!(
        said[0].message,
        "waits for a slot of its project: 2 of 2 are taken"
    );
    end(&agent, &first[0]).await;
    assert_eq!(agent.poll(9).await.len(), 1);
    // Queued runs can be cancelled like any that waits.
    let left = queued(&world).await.pop().unwrap();
    let cancelled = world.client.cancel(left.id).await.unwrap();
    assert_eq!(cancelled.state, State::Cancelled);
    let none = world
        .client
        .set_flow_slots("a", &Slots { slots: Some(0) })
        .await;
    assert!(matches!(none, Err(ClientError::Refused(refused)) if refused.code == "value-bad"));
}

/// However many wait for a slot, a run behind them is found.
#[tokio::test]
async fn thousands_that_wait_for_a_slot_do_not_hide_what_is_behind_them() {
    let world = World::new().await;
    world.register("etl").await;
    world.register("other").await;
    set_flow(&world, "etl", Some(1)).await;
    for _ in 0..5_000 {
        world.create("etl").await;
    }
    let other = world.create("other").await;
    let agent = world.agent("mira").await;
    let mut claimed = agent.poll(1).await;
    claimed.extend(agent.poll(1).await);
    assert_eq!(claimed.len(), 2);
    assert_eq!(claimed[1].flow_run_id, other.id);
}

/// Many claim at once, on PostgreSQL in transactions that overlap: no slot is taken twice, none is left
/// and what needs none is not held up.
#[tokio::test]
async fn agents_that_claim_at_once_take_no_slot_twice() {
    const RUNS: usize = 30;
    let world = World::new().await;
    for name in ["etl", "other"] {
        world.register(name).await;
        for _ in 0..RUNS {
            world.create(name).await;
        }
    }
    set_flow(&world, "etl", Some(3)).await;
    let mut agents = Vec::new();
    for nth in 0..8 {
        agents.push(world.agent(&format!("agent-{nth}")).await);
    }
    let claim_all = async || {
        let polls = agents.iter().map(|agent| async move {
            let mut own = Vec::new();
            loop {
                let claimed = agent.poll(2).await;
                if claimed.is_empty() {
                    return own;
                }
                own.extend(claimed.into_iter().map(|run| (agent, run)));
            }
        });
        let claimed = futures::future::join_all(polls).await;
        claimed.into_iter().flatten().collect::<Vec<_>>()
    };
    let claimed = claim_all().await;
    let (etl, other): (Vec<_>, Vec<_>) =
        claimed.into_iter().partition(|(_, run)| run.flow == "etl");
    assert_eq!((etl.len(), other.len()), (3, RUNS));
    let mut ids: Vec<_> = other.iter().map(|(_, run)| run.flow_run_id).collect();
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), RUNS);
    for (agent, run) in &etl[..2] {
        end(agent, run).await;
    }
    assert_eq!(claim_all().await.len(), 2);
    set_flow(&world, "etl", None).await;
    assert_eq!(claim_all().await.len(), RUNS - 5);
}
