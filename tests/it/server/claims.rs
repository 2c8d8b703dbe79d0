//! Who gets which run, and when.

use std::sync::Arc;

use tokio::task::JoinHandle;

use super::schedules::hourly;
use super::*;
use waft::wire::{Leave, Rest};

/// Lets an agent poll, and waits until it waits.
pub(super) async fn polls(world: &World, agent: &Arc<Agent>) -> JoinHandle<Vec<ClaimedRun>> {
    let agent = agent.clone();
    let poll = tokio::spawn(async move { agent.poll_waiting(1, 30).await });
    while world.app.waiting_polls() == 0 {
        tokio::task::yield_now().await;
    }
    poll
}

use waft::wire::Listen;

use crate::kit::witness::patient;

#[tokio::test]
async fn a_run_goes_to_an_agent_that_satisfies_it() {
    let world = World::new().await;
    world.register("etl").await;
    let mut new = new_run("etl");
    new.labels = Labels::from_iter(["gpu"]);
    let run = world.try_create(&new).await.unwrap();
    let plain = world.agent("plain").await;
    assert!(plain.poll(1).await.is_empty());
    let mut with_gpu = offer();
    with_gpu.labels = Labels::from_iter(["gpu", "eu"]);
    let gpu = world.agent_offering("gpu", with_gpu).await;
    let claimed = gpu.poll(4).await;
    assert_eq!(claimed.len(), 1);
    assert_eq!(claimed[0].flow_run_id, run.id);
    assert_eq!(claimed[0].epoch, 1);
    assert_eq!(claimed[0].parameters["times"], 3, "defaults are filled in");
    assert_eq!(claimed[0].locations.len(), 1);
    assert!(gpu.poll(4).await.is_empty(), "claimed once");
}

#[tokio::test]
async fn priority_goes_first_then_projects_in_turn_then_due_time() {
    let world = World::new().await;
    let other = NewProject {
        name: "other".to_owned(),
        description: String::new(),
    };
    world.client.create_project(&other).await.unwrap();
    world.register("a").await;
    let asked = registration("b");
    world.client.register("other", &asked).await.unwrap();
    let mut expected = Vec::new();
    for (flow, priority) in [("a", 0), ("a", 0), ("a", 0), ("b", 0), ("a", 5)] {
        let mut new = new_run(flow);
        new.priority = priority;
        expected.push(world.try_create(&new).await.unwrap().id);
        world.clock.pass(Duration::from_millis(10));
    }
    let agent = world.agent("mira").await;
    let mut order = Vec::new();
    for _ in 0..5 {
        order.push(agent.poll(1).await[0].flow_run_id);
    }
    let [a1, a2, a3, b1, urgent] = expected[..] else {
        panic!("five runs");
    };
    // The urgent run was of `demo`, so `other` has the next turn.
    assert_eq!(order, [urgent, b1, a1, a2, a3]);
}

#[tokio::test]
async fn a_poll_waits_and_is_woken_by_a_new_run_and_by_one_that_becomes_due() {
    let world = World::new().await;
    world.register("etl").await;
    let agent = std::sync::Arc::new(world.agent("mira").await);
    let waiting = {
        let agent = agent.clone();
        tokio::spawn(async move { agent.poll_waiting(1, 30).await })
    };
    while world.app.waiting_polls() == 0 {
        tokio::task::yield_now().await;
    }
    let run = world.create("etl").await;
    assert_eq!(waiting.await.unwrap()[0].flow_run_id, run.id);

    let mut later = new_run("etl");
    later.scheduled_at = Some(world.app.clock.now() + jiff::SignedDuration::from_secs(60));
    let later = world.try_create(&later).await.unwrap();
    assert!(agent.poll(1).await.is_empty(), "it is not due");
    let waiting = {
        let agent = agent.clone();
        tokio::spawn(async move { agent.poll_waiting(1, 30).await })
    };
    while world.app.waiting_polls() == 0 {
        tokio::task::yield_now().await;
    }
    // The wall moves and nobody has waited so long: the poll is rung awake.
    world.clock.jump("2026-03-01T01:00:00Z".parse().unwrap());
    waft::server::duty::ringer::ring(&world.app).await.unwrap();
    assert_eq!(waiting.await.unwrap()[0].flow_run_id, later.id);
}

#[tokio::test]
async fn a_claim_says_how_long_its_poll_had_waited() {
    let world = World::new().await;
    world.register("etl").await;
    let agent = world.agent("mira").await;
    let poll = Poll {
        session_id: agent.session,
        free_slots: 1,
        wait_seconds: 30,
    };
    let client = world.client.clone();
    let claims = tokio::spawn(async move { client.poll(&poll).await.unwrap() });
    while world.app.waiting_polls() == 0 {
        tokio::task::yield_now().await;
    }
    world.clock.pass(Duration::from_secs(20));
    world.create("etl").await;
    let claims = claims.await.unwrap();
    assert_eq!((claims.flow_runs.len(), claims.waited_ms), (1, 20_000));
}

#[tokio::test]
async fn a_registration_wakes_who_may_take_what_waits_since() {
    let world = World::new().await;
    world.register("etl").await;
    let run = world.create("etl").await;
    let mut cloud = offer();
    cloud.roots = ["s3://bucket".to_owned()].into();
    let agent = Arc::new(world.agent_offering("cloud", cloud).await);
    let poll = polls(&world, &agent).await;
    let mut copied = registration("etl");
    copied.location.root = "s3://bucket".to_owned();
    world.client.register("demo", &copied).await.unwrap();
    assert_eq!(poll.await.unwrap()[0].flow_run_id, run.id);

    let mut asked = hourly("report", "0 * * * *");
    asked.labels = Labels::from_iter(["gpu"]);
    world.client.register("demo", &asked).await.unwrap();
    world.schedule().await;
    world.clock.pass(Duration::from_secs(3600));
    let agent = Arc::new(world.agent("mira").await);
    let poll = polls(&world, &agent).await;
    asked.labels = Labels::default();
    world.client.register("demo", &asked).await.unwrap();
    assert_eq!(poll.await.unwrap()[0].version, 2);
}

#[tokio::test]
async fn many_polls_and_many_runs_are_paired_once() {
    let world = World::new().await;
    world.register("etl").await;
    let mut polls = Vec::new();
    for nth in 0..20 {
        let agent = world.agent(&format!("agent-{nth}")).await;
        polls.push(tokio::spawn(async move { agent.poll_waiting(1, 30).await }));
    }
    let mut made: Vec<FlowRunId> = Vec::new();
    for _ in 0..20 {
        made.push(world.create("etl").await.id);
    }
    let mut claimed = Vec::new();
    for poll in polls {
        claimed.extend(poll.await.unwrap().into_iter().map(|run| run.flow_run_id));
    }
    claimed.sort();
    made.sort();
    assert_eq!(claimed, made);
}

#[tokio::test]
async fn a_declined_run_wakes_another_agent_and_not_the_same() {
    let world = World::new().await;
    world.register("etl").await;
    let run = world.create("etl").await;
    let (mira, nas) = (world.agent("mira").await, world.agent("nas").await);
    let (mira, nas) = (Arc::new(mira), Arc::new(nas));
    let claimed = mira.poll(1).await.remove(0);
    // Mira's own poll is first in line when its decline is announced.
    let mut polls = Vec::new();
    for agent in [mira.clone(), nas] {
        let count = polls.len();
        polls.push(tokio::spawn(async move { agent.poll_waiting(1, 30).await }));
        while world.app.waiting_polls() <= count {
            tokio::task::yield_now().await;
        }
    }
    mira.tell(lease(&claimed), vec![flow(Event::Decline)]).await;
    let woken = polls.remove(1).await.unwrap();
    assert_eq!(woken[0].flow_run_id, run.id);
    polls.remove(0).abort();
}

#[tokio::test]
async fn a_declined_run_goes_to_another_agent() {
    let world = World::new().await;
    world.register("etl").await;
    let run = world.create("etl").await;
    let (mira, nas) = (world.agent("mira").await, world.agent("nas").await);
    let claimed = mira.poll(1).await;
    mira.tell(lease(&claimed[0]), vec![flow(Event::Decline)])
        .await;
    assert!(mira.poll(1).await.is_empty(), "not the same agent at once");
    assert_eq!(nas.poll(1).await[0].epoch, 2);
    assert_eq!(world.run(run.id).await.claims, 2);
}

#[tokio::test]
async fn a_claim_that_did_not_reach_its_agent_comes_back() {
    let world = World::new().await;
    world.register("etl").await;
    let run = world.create("etl").await;
    let agent = world.agent("mira").await;
    assert_eq!(agent.poll(1).await.len(), 1);
    let listen = Listen {
        session_id: agent.session,
        leases: Vec::new(),
        has_left: false,
        limited_seen: None,
        wait_seconds: 0,
    };
    world.client.listen(&listen).await.unwrap();
    assert_eq!(
        world.run(run.id).await.state,
        State::Claimed,
        "it may be on its way"
    );
    world.clock.pass(Duration::from_secs(6));
    world.client.listen(&listen).await.unwrap();
    assert_eq!(world.run(run.id).await.state, State::Scheduled);
    let again = agent.poll(1).await;
    assert_eq!((again[0].epoch, again[0].lost), (2, 0));
}

#[tokio::test]
async fn a_call_that_listens_ends_when_a_claim_is_overdue_and_the_next_one_gives_it_back() {
    let world = World::new().await;
    world.register("etl").await;
    let listen = |agent: &Agent, leases| {
        let listen = Listen {
            session_id: agent.session,
            leases,
            has_left: false,
            limited_seen: None,
            wait_seconds: 30,
        };
        let client = world.client.clone();
        tokio::spawn(async move { client.listen(&listen).await.unwrap() })
    };
    // Before each call nothing was heard of the agent for so long that it is the call that shows.
    let begun = async |agent: &Agent| while !is_heard(&world, agent).await {};

    // An agent that knows of its claim is not disturbed.
    let run = world.create("etl").await;
    let mira = world.agent("mira").await;
    let known = lease(&mira.poll(1).await[0]);
    world.clock.pass(Duration::from_secs(5));
    let listening = listen(&mira, vec![known]);
    patient("the call", begun(&mira)).await;
    world.clock.pass(Duration::from_secs(29));
    for _ in 0..20 {
        is_heard(&world, &mira).await;
    }
    assert!(!listening.is_finished());
    world.clock.pass(Duration::from_secs(1));
    patient("the end of the call", listening).await.unwrap();
    assert_eq!(world.run(run.id).await.state, State::Claimed);

    // One that does not is asked again: it may have heard of it since it began to listen.
    let run = world.create("etl").await;
    let nas = world.agent("nas").await;
    assert_eq!(nas.poll(1).await[0].flow_run_id, run.id);
    world.clock.pass(Duration::from_secs(5));
    let listening = listen(&nas, Vec::new());
    patient("the call", begun(&nas)).await;
    let mut seconds = 0;
    while !listening.is_finished() {
        assert!(seconds < 10, "it waits on");
        seconds += 1;
        world.clock.pass(Duration::from_secs(1));
        for _ in 0..20 {
            is_heard(&world, &nas).await;
        }
    }
    assert_eq!(world.run(run.id).await.state, State::Claimed);
    let listening = listen(&nas, Vec::new());
    let is_back = async { while world.run(run.id).await.state != State::Scheduled {} };
    patient("the run to wait again", is_back).await;
    listening.abort();
}

/// Tells whether an agent is heard of.
async fn is_heard(world: &World, agent: &Agent) -> bool {
    let all = ListQuery::default();
    let agents = world.client.list_agents(&all).await.unwrap().items;
    let own = agents.iter().find(|one| one.id == agent.id);
    own.unwrap().is_polling
}

#[tokio::test]
async fn a_run_whose_claims_never_reach_an_agent_is_given_up() {
    let world = World::new().await;
    world.register("etl").await;
    let run = world.create("etl").await;
    let agent = world.agent("mira").await;
    let listen = Listen {
        session_id: agent.session,
        leases: Vec::new(),
        has_left: false,
        limited_seen: None,
        wait_seconds: 0,
    };
    for epoch in 1..=100 {
        assert_eq!(agent.poll(1).await[0].epoch, epoch);
        world.clock.pass(Duration::from_secs(6));
        world.client.listen(&listen).await.unwrap();
    }
    let over = world.run(run.id).await;
    assert_eq!(
        (over.state, over.code.as_deref(), over.message.as_str()),
        (
            State::Crashed,
            Some("lost.lease"),
            "100 claims ended before it started; the last: the claim did not reach its agent"
        )
    );
    assert!(agent.poll(1).await.is_empty());
}

/// What needs the same of an agent and is another artifact goes on, however many of the declined wait first.
#[tokio::test]
async fn a_declined_run_holds_up_its_own_version_only() {
    let world = World::new().await;
    world.register("gone").await;
    world.register("etl").await;
    let declined = world.create("gone").await;
    let agent = world.agent("mira").await;
    let claimed = agent.poll(1).await;
    assert_eq!(claimed[0].flow_run_id, declined.id);
    let decline = FlowRunMoved {
        event: Event::Decline,
        message: "its bytes are missing".to_owned(),
        code: None,
        result: None,
        delay_ms: 0,
    };
    let decline = vec![Happening::FlowRun(decline)];
    agent.tell(lease(&claimed[0]), decline).await;
    for _ in 0..3 {
        world.create("gone").await;
    }
    let other = world.create("etl").await;
    let claimed = agent.poll(4).await;
    let ids: Vec<_> = claimed.iter().map(|run| run.flow_run_id).collect();
    assert_eq!(ids, [other.id]);
    let explained = world.client.explain(declined.id).await.unwrap();
    let words = "has declined it a moment ago: its bytes are missing";
    assert_eq!(explained.agents[0].words, [words]);
    assert_eq!(explained.summary, format!("the agent `mira` {words}"));
    world.clock.pass(Duration::from_secs(60));
    assert_eq!(agent.poll(4).await.len(), 4);
}

/// What an agent declines again it is given less often, `explain` names where else the artifact lies, and once it is
/// registered once more the agent is given it at once.
#[tokio::test]
async fn a_run_that_is_declined_again_and_again_is_given_less_often_until_it_is_registered() {
    let world = World::new().await;
    world.register("etl").await;
    let mut elsewhere = registration("etl");
    elsewhere.location.root = "s3://elsewhere".to_owned();
    world.client.register("demo", &elsewhere).await.unwrap();
    let run = world.create("etl").await;
    let agent = world.agent("mira").await;
    let declines = async || {
        let claimed = agent.poll(1).await;
        let decline = FlowRunMoved {
            event: Event::Decline,
            message: "its bytes are damaged".to_owned(),
            code: None,
            result: None,
            delay_ms: 0,
        };
        let decline = vec![Happening::FlowRun(decline)];
        agent.tell(lease(&claimed[0]), decline).await;
    };
    for minutes in [1, 2, 4, 5] {
        declines().await;
        world.clock.pass(Duration::from_secs(60 * minutes - 1));
        assert!(agent.poll(1).await.is_empty());
        world.clock.pass(Duration::from_secs(1));
    }
    declines().await;
    let explained = world.client.explain(run.id).await.unwrap();
    let why = "the agent `mira` has declined it a moment ago: its bytes are damaged";
    assert_eq!(explained.summary, why);
    assert_eq!(explained.aside, "it is asked again in 300 s");
    let hint = "it lies there too: waft agent start --root s3://elsewhere";
    assert_eq!(explained.hints, [hint]);
    world.client.register("demo", &elsewhere).await.unwrap();
    assert_eq!(agent.poll(1).await.len(), 1);
}

/// An agent that can keep no results is given nothing, and `explain` says so.
#[tokio::test]
async fn an_agent_without_a_place_for_results_is_given_nothing() {
    let world = World::new().await;
    world.register("etl").await;
    let run = world.create("etl").await;
    let away = Offer {
        results_away: Some("s3://results".to_owned()),
        ..offer()
    };
    let agent = world.agent_offering("mira", away).await;
    assert!(agent.poll(1).await.is_empty());
    let explained = world.client.explain(run.id).await.unwrap();
    assert_eq!(
        explained.summary,
        "no agent can keep results: `s3://results` is out of reach"
    );
    assert_eq!(explained.aside, "1 agent is polling");
    assert!(explained.hints.is_empty(), "{:?}", explained.hints);
    let back = world.agent("mira").await;
    assert_eq!(back.poll(1).await.len(), 1);
}

#[tokio::test]
async fn explain_names_what_is_missing() {
    let world = World::new().await;
    world.register("etl").await;
    let mut new = new_run("etl");
    new.labels = Labels::from_iter(["nowhere"]);
    let run = world.try_create(&new).await.unwrap();
    let nobody = world.client.explain(run.id).await.unwrap();
    assert_eq!(nobody.summary, "no agent was ever started");
    let agent = world.agent("mira").await;
    agent.poll(1).await;
    let explained = world.client.explain(run.id).await.unwrap();
    assert_eq!(explained.summary, "no agent offers the label `nowhere`");
    assert_eq!(explained.aside, "1 agent is polling");
    assert_eq!(
        explained.agents[0].words,
        ["does not offer the label `nowhere`"]
    );
    assert_eq!(
        explained.hints[0],
        "start one with it: waft agent start --label nowhere --root file:///flows"
    );
    world.clock.pass(Duration::from_secs(60));
    let gone = world.client.explain(run.id).await.unwrap();
    assert_eq!(
        (&*gone.summary, &*gone.aside),
        ("no agent polls", "`mira` did")
    );
    assert_eq!(gone.agents_gone, None);
    // One that is gone for long is no longer listed.
    world.clock.pass(Duration::from_secs(10 * 60));
    let gone = world.client.explain(run.id).await.unwrap();
    assert!(gone.agents.is_empty(), "{:?}", gone.agents);
    assert_eq!(gone.agents_gone.unwrap().count, 1);
    let nas = world.agent("nas").await;
    nas.poll(1).await;
    let others = world.client.explain(run.id).await.unwrap();
    let names: Vec<_> = others.agents.iter().map(|agent| &*agent.agent).collect();
    assert_eq!(names, ["nas"]);
    assert_eq!(others.agents_gone.unwrap().count, 1);
}

/// The line that starts an agent is whole: what the nearest agent has beside what it lacks, a new one has not.
#[tokio::test]
async fn the_line_that_starts_an_agent_is_whole() {
    let world = World::new().await;
    let mut registration = registration("etl");
    registration.labels = Labels::from_iter(["s3-flow-storage", "gpu"]);
    registration.location.root = "s3://flows/five".to_owned();
    let task = &mut registration.definition.tasks[0];
    task.grants.net = ["api.example.org:443".parse().unwrap()].into();
    task.limits.memory_bytes = Some(2 << 30);
    world.client.register("demo", &registration).await.unwrap();
    let run = world.create("etl").await;
    let hints = async || world.client.explain(run.id).await.unwrap().hints;
    let rest =
        "--label gpu --root s3://flows/five --allow-net api.example.org:443 --max-memory 2GiB";
    assert_eq!(hints().await, [format!("waft agent start {rest}")]);
    let mut offer = offer();
    offer.projects = Some(["other".to_owned()].into());
    offer.labels = registration.labels.clone();
    offer.roots = ["s3://flows/five".to_owned()].into();
    offer.grants.net = ["api.example.org:443".parse().unwrap()].into();
    offer.limits.memory_bytes = Some(4 << 30);
    let mira = world.agent_offering("mira", offer.clone()).await;
    assert!(mira.poll(1).await.is_empty());
    let whole = format!("start one with it: waft agent start --project demo {rest}");
    assert_eq!(hints().await, [whole]);

    // Of several places one is enough, and one that is not tied to a machine is named first.
    registration.location.root = "file:///a folder".to_owned();
    world.client.register("demo", &registration).await.unwrap();
    offer.projects = None;
    offer.roots = ["s3://elsewhere".to_owned()].into();
    let ada = world.agent_offering("ada", offer.clone()).await;
    assert!(ada.poll(1).await.is_empty());
    let explained = world.client.explain(run.id).await.unwrap();
    assert_eq!(
        explained.hints,
        [format!("start one with it: waft agent start {rest}")]
    );
    let words = "cannot fetch from `file:///a folder` or `s3://flows/five`";
    assert!(
        explained.agents.iter().any(|one| one.words == [words]),
        "{explained:?}"
    );
}

/// What lies in a folder of one machine is started there.
#[tokio::test]
async fn a_folder_needs_an_agent_on_its_machine() {
    let world = World::new().await;
    let mut registration = registration("etl");
    registration.labels = Labels::from_iter(["host", "gpu"]);
    registration.location.root = "file:///a folder".to_owned();
    world.client.register("demo", &registration).await.unwrap();
    let run = world.create("etl").await;
    let mira = world.agent_offering("mira", offer()).await;
    assert!(mira.poll(1).await.is_empty());
    let explained = world.client.explain(run.id).await.unwrap();
    let line = "waft agent start --label gpu --root 'file:///a folder'";
    assert_eq!(
        explained.hints,
        [format!("start one with it on `host`: {line}")]
    );
}

/// Where an agent lacks nothing but storages that rest, whoever waits is told why they do and that it goes on by
/// itself; what goes with them is not advised.
#[tokio::test]
async fn explain_names_the_agent_whose_storage_rests() {
    let world = World::new().await;
    let mut registration = registration("etl");
    registration.labels = Labels::from_iter(["oci-flow-storage"]);
    registration.location.root = "oci://registry/flows".to_owned();
    world.client.register("demo", &registration).await.unwrap();
    let run = world.create("etl").await;
    let rest = Rest {
        root: "oci://registry/flows".to_owned(),
        label: Some("oci-flow-storage".to_owned()),
        why: "`oci://registry/flows` refuses access:\n\u{7}401".to_owned(),
        hint: Some("log in to the registry: docker login".to_owned()),
        look_seconds: 300,
    };
    let new = NewSession {
        hostname: "nas".to_owned(),
        rests: vec![rest],
        ..hello("nas", offer())
    };
    let other = world.agent("mira").await;
    other.poll(1).await;
    let missing = world.client.explain(run.id).await.unwrap();
    // Its label comes with the root.
    let hint = "waft agent start --root oci://registry/flows";
    assert_eq!(missing.hints, [format!("start one with it: {hint}")]);
    let opened = world.client.open_session(&new).await.unwrap();
    let poll = Poll {
        session_id: opened.session_id,
        free_slots: 1,
        wait_seconds: 0,
    };
    assert!(world.client.poll(&poll).await.unwrap().flow_runs.is_empty());
    world.clock.pass(Duration::from_secs(2));
    let explained = world.client.explain(run.id).await.unwrap();
    let why = "`oci://registry/flows` refuses access:401";
    assert_eq!(
        explained.summary,
        format!("the agent `nas` waits for a storage: {why}")
    );
    assert_eq!(
        explained.aside,
        "it looks again in 298 s, and goes on by itself"
    );
    assert_eq!(
        explained.hints,
        ["on `nas`: log in to the registry: docker login"]
    );
    let nas = explained.agents.iter().find(|one| one.agent == "nas");
    let words = format!("waits for a storage: {why}; it looks again in 298 s");
    assert_eq!(nas.unwrap().words, [words]);
    let shown = world.client.agent("nas").await.unwrap();
    assert_eq!(shown.offer.resting[0].why, why);
}

#[tokio::test]
async fn the_free_slots_of_an_agent_are_those_that_no_run_has() {
    let world = World::new().await;
    world.register("etl").await;
    let mut new = new_run("etl");
    new.labels = Labels::from_iter(["nowhere"]);
    let waits = world.try_create(&new).await.unwrap();
    world.create("etl").await;
    let free_slots = async || {
        let explained = world.client.explain(waits.id).await.unwrap();
        explained.agents[0].free_slots
    };
    let agent = world.agent("mira").await;
    let claimed = agent.poll(4).await;
    assert_eq!(free_slots().await, 3);
    // Its next poll goes on while the run ends.
    assert!(agent.poll(3).await.is_empty());
    let end = vec![flow(Event::Start), flow(Event::Fail)];
    agent.tell(lease(&claimed[0]), end).await;
    assert_eq!(free_slots().await, 4);
}

#[tokio::test]
async fn an_agent_that_leaves_polls_no_longer_and_keeps_its_runs() {
    let world = World::new().await;
    world.register("etl").await;
    world.create("etl").await;
    let agent = world.agent("mira").await;
    let claimed = agent.poll(1).await;
    let waits = world.create("etl").await;
    let leave = Leave {
        session_id: agent.session,
    };
    world.client.leave(&leave, LEASE).await.unwrap();
    let agents = world.client.list_agents(&ListQuery::default()).await;
    let shown = agents.unwrap().items.remove(0);
    assert_eq!((shown.is_polling, shown.flow_runs.len()), (false, 1));
    assert!(shown.is_leaving, "it is there for the run that it has");
    let explained = world.client.explain(waits.id).await.unwrap();
    assert_eq!(explained.summary, "no agent polls");
    assert_eq!(explained.aside, "`mira` takes no more runs");
    let reported = agent.tell(lease(&claimed[0]), vec![flow(Event::Start)]);
    assert!(reported.await.lost.is_empty());
}

/// Many at once, of two projects' worth of lines: each run goes to one agent, and none is left.
#[tokio::test]
async fn agents_that_claim_at_once_get_every_run_and_none_twice() {
    const RUNS: usize = 120;
    let world = World::new().await;
    for name in ["etl", "other"] {
        world.register(name).await;
    }
    for nth in 0..RUNS {
        let mut new = new_run(["etl", "other"][nth % 2]);
        new.priority = i32::from(nth % 3 == 0);
        world.try_create(&new).await.unwrap();
    }
    let agents = (0..12).map(|nth| {
        let world = &world;
        async move {
            let agent = world.agent(&format!("agent-{nth}")).await;
            let mut own = Vec::new();
            loop {
                let claimed = agent.poll(3).await;
                if claimed.is_empty() {
                    return own;
                }
                own.extend(claimed.into_iter().map(|run| run.flow_run_id));
            }
        }
    });
    let claimed = futures::future::join_all(agents).await.concat();
    let distinct: std::collections::BTreeSet<_> = claimed.iter().collect();
    assert_eq!((claimed.len(), distinct.len()), (RUNS, RUNS));
}
