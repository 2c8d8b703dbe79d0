//! Agents as a fleet: what is seen of them, who may drain them, and which protocols they may speak.

use super::access::other;
use super::*;
use waft::wire::{Drain, Leave, Listen, NewDrain, Orders, Scope};

const FINISH: NewDrain = NewDrain { how: Drain::Finish };
const NOW: NewDrain = NewDrain { how: Drain::Now };

fn hello(name: &str, hostname: &str, protocol: u32) -> NewSession {
    NewSession {
        hostname: hostname.to_owned(),
        protocol,
        is_start: protocol >= 2,
        ..super::hello(name, offer())
    }
}

async fn listen(agent: &Agent, leases: Vec<LeaseKey>, has_left: bool) -> Orders {
    let listen = Listen {
        session_id: agent.session,
        leases,
        has_left,
        limited_seen: None,
        wait_seconds: 0,
    };
    agent.client.listen(&listen).await.unwrap()
}

#[tokio::test]
async fn an_agent_is_shown_with_its_runs_and_free_slots() {
    let world = World::new().await;
    world.register("etl").await;
    let run = world.create("etl").await;
    let agent = world.agent("mira").await;
    agent.poll(4).await;
    let shown = world.client.agent("mira").await.unwrap();
    assert_eq!((shown.slots, shown.free_slots), (4, 3));
    assert!(shown.is_polling && shown.drain.is_none());
    let own = &shown.flow_runs[0];
    assert_eq!((own.id, own.flow_run_id), (run.id, run.id));
    assert_eq!(
        (own.project.as_str(), own.flow.as_str(), own.state),
        ("demo", "etl", State::Claimed)
    );
    let listed = world.client.list_agents(&ListQuery::default()).await;
    assert_eq!(listed.unwrap().items[0].flow_runs, shown.flow_runs);
}

#[tokio::test]
async fn an_agent_is_named_by_its_id_its_name_or_with_its_host() {
    let world = World::new().await;
    let [here, there] = ["here", "there"].map(|host| hello("mira", host, PROTOCOL));
    let old = world.client.open_session(&here).await.unwrap();
    world.clock.pass(Duration::from_secs(60));
    let new = world.client.open_session(&there).await.unwrap();
    let found = async |text: &str| world.client.agent(text).await.map(|agent| agent.id);
    assert_eq!(found("mira").await.unwrap(), new.agent_id, "it is there");
    assert_eq!(found("mira@here").await.unwrap(), old.agent_id);
    assert_eq!(
        found(&old.agent_id.to_string()).await.unwrap(),
        old.agent_id
    );
    assert_eq!(code(found("nas").await), "agent-unknown");
    assert_eq!(code(found("mira@elsewhere").await), "agent-unknown");
    world.clock.pass(Duration::from_secs(60));
    assert_eq!(code(found("mira").await), "agent-ambiguous");
    let drained = world.client.drain_agent("mira", &FINISH).await;
    assert_eq!(code(drained), "agent-ambiguous");
}

#[tokio::test]
async fn a_user_drains_the_agents_that_the_token_sees_and_nobody_else_does() {
    let world = World::new().await;
    world.agent("mira").await;
    let all = ["demo"];
    for (scope, projects, refusal) in [
        (Scope::Agent, None, "forbidden"),
        (Scope::ReadOnly, None, "forbidden"),
        (Scope::User, Some(&all[..]), "agent-unknown"),
    ] {
        let (client, _) = other(&world, scope, projects).await;
        assert_eq!(code(client.drain_agent("mira", &NOW).await), refusal);
    }
    let (bound, _) = other(&world, Scope::User, Some(&["demo"])).await;
    assert_eq!(code(bound.agent("mira").await), "agent-unknown");
    // One of its own is seen by it, and by who sees everything.
    bound
        .open_session(&hello("nas", "host", PROTOCOL))
        .await
        .unwrap();
    let drained = bound.drain_agent("nas", &FINISH).await.unwrap();
    assert_eq!(drained.drain, Some(Drain::Finish));
    assert_eq!(
        world.client.agent("nas").await.unwrap().drain,
        Some(Drain::Finish)
    );
}

#[tokio::test]
async fn a_drained_agent_is_given_nothing_more_and_told_until_it_leaves() {
    let world = World::new().await;
    world.register("etl").await;
    world.create("etl").await;
    let agent = world.agent("mira").await;
    let claimed = lease(&agent.poll(1).await[0]);
    assert_eq!(listen(&agent, vec![claimed], false).await.drain, None);

    let waits = world.create("etl").await;
    let shown = world.client.drain_agent("mira", &FINISH).await.unwrap();
    assert!(!shown.is_polling && shown.is_leaving);
    assert_eq!(shown.flow_runs.len(), 1, "it keeps what it has");
    assert!(agent.poll(1).await.is_empty());
    let explained = world.client.explain(waits.id).await.unwrap();
    assert_eq!(explained.summary, "no agent polls");
    assert_eq!(explained.aside, "`mira` takes no more runs");
    assert_eq!(explained.agents[0].words, ["takes no more runs"]);

    for _ in 0..2 {
        let told = listen(&agent, vec![claimed], false).await;
        assert_eq!(told.drain, Some(Drain::Finish));
    }
    assert_eq!(listen(&agent, vec![claimed], true).await.drain, None);

    // More is wanted, and less than that is not.
    for how in [&NOW, &FINISH] {
        let shown = world.client.drain_agent("mira", how).await.unwrap();
        assert_eq!(shown.drain, Some(Drain::Now));
    }
    assert_eq!(
        listen(&agent, vec![claimed], true).await.drain,
        Some(Drain::Now)
    );
}

#[tokio::test]
async fn who_listens_is_told_at_once() {
    let world = World::new().await;
    let agent = world.agent("mira").await;
    let call = Listen {
        session_id: agent.session,
        leases: Vec::new(),
        has_left: false,
        limited_seen: None,
        wait_seconds: 30,
    };
    let (told, _) = tokio::join!(world.client.listen(&call), async {
        tokio::task::yield_now().await;
        world.client.drain_agent("mira", &FINISH).await.unwrap()
    });
    assert_eq!(told.unwrap().drain, Some(Drain::Finish));
}

#[tokio::test]
async fn what_an_agent_was_told_outlives_the_server_and_not_a_new_start() {
    let world = World::new().await;
    let mut agent = world.agent("mira").await;
    world.client.drain_agent("mira", &FINISH).await.unwrap();

    // Another server of the same database knows it, and so does the process under another session.
    let (app, _) = open(&world.place, Clock::default()).await;
    let token = other(&world, Scope::User, None).await.1;
    let client = Client::in_process(server::router(&app), Some(token));
    agent.client = client.clone();
    assert!(agent.poll(1).await.is_empty());
    assert_eq!(
        listen(&agent, Vec::new(), false).await.drain,
        Some(Drain::Finish)
    );
    let again = NewSession {
        is_start: false,
        ..hello("mira", "host", PROTOCOL)
    };
    agent.session = client.open_session(&again).await.unwrap().session_id;
    assert_eq!(
        listen(&agent, Vec::new(), false).await.drain,
        Some(Drain::Finish)
    );
    assert!(!client.agent("mira").await.unwrap().is_polling);

    let anew = hello("mira", "host", PROTOCOL);
    agent.session = client.open_session(&anew).await.unwrap().session_id;
    assert_eq!(listen(&agent, Vec::new(), false).await.drain, None);
    let shown = client.agent("mira").await.unwrap();
    assert!(shown.is_polling && shown.drain.is_none());
}

#[tokio::test]
async fn the_protocol_before_is_spoken_and_no_other() {
    let world = World::new().await;
    world.register("etl").await;
    let run = world.create("etl").await;
    let say = async |protocol| {
        let opened = world
            .client
            .open_session(&hello("mira", "host", protocol))
            .await;
        opened.map(|session| (session.protocol, session.session_id))
    };
    assert_eq!(say(PROTOCOL).await.unwrap().0, PROTOCOL);
    assert_eq!(code(say(PROTOCOL + 1).await), "protocol-unsupported");
    assert_eq!(code(say(PROTOCOL - 2).await), "protocol-unsupported");

    // What was sent before there was this protocol, to the letter.
    let before = json!({
        "name": "mira", "hostname": "host", "version": "0.1.0", "protocol": PROTOCOL - 1,
        "offer": {"roots": [ROOT]}, "slots": 4,
    });
    let before: NewSession = serde_json::from_value(before).unwrap();
    let text = serde_json::to_string(&before).unwrap();
    assert!(
        !text.contains("is_start"),
        "it would not be read there: {text}"
    );
    let opened = world.client.open_session(&before).await.unwrap();
    assert_eq!(opened.protocol, PROTOCOL - 1);
    let agent = Agent {
        client: world.client.clone(),
        id: opened.agent_id,
        session: opened.session_id,
        numbers: AtomicU64::new(0),
    };
    assert_eq!(agent.poll(1).await[0].flow_run_id, run.id);
    // It knows no drain: who asks for it is told so, and it is not.
    let refused = world.client.drain_agent("mira", &FINISH).await.unwrap_err();
    assert_eq!(refused.code(), Some("protocol-unsupported"));
    assert!(
        refused.to_string().contains("speaks protocol 1"),
        "{refused}"
    );
    assert_eq!(world.client.agent("mira").await.unwrap().drain, None);
    assert_eq!(listen(&agent, Vec::new(), false).await.drain, None);
}

/// Two processes of one name on one host and with two homes would end each other's sessions.
#[tokio::test]
async fn a_name_is_one_homes_for_as_long_as_its_agent_is_there() {
    let world = World::new().await;
    let of = |home: &str, is_start| NewSession {
        home: Some(home.to_owned()),
        is_start,
        ..hello("mira", "nas", PROTOCOL)
    };
    let opens = async |home: &str, is_start| world.client.open_session(&of(home, is_start)).await;
    let first = opens("one", true).await.unwrap();
    let Err(ClientError::Refused(refused)) = opens("two", true).await else {
        panic!("two agents are one");
    };
    assert_eq!(
        (&*refused.code, &*refused.message),
        (
            "agent-exists",
            "the agent `mira` of the host `nas` is here already, with another WAFT_HOME, since \
             2026-03-01T00:00:00Z"
        )
    );
    // On another host it is another agent; the same home begins anew at once, as after `kill -9`; and who
    // says nothing of a home is of an earlier version.
    let elsewhere = NewSession {
        hostname: "ox".to_owned(),
        ..of("two", true)
    };
    let other = world.client.open_session(&elsewhere).await.unwrap();
    assert_ne!(other.agent_id, first.agent_id);
    let again = opens("one", true).await.unwrap();
    assert_eq!(again.agent_id, first.agent_id);
    let early = world
        .client
        .open_session(&hello("mira", "nas", PROTOCOL))
        .await;
    early.unwrap();
    opens("one", true).await.unwrap();

    // One that is gone leaves its name to others, and gets it back when they are gone.
    world.clock.pass(Duration::from_secs(60));
    let second = opens("two", true).await.unwrap();
    assert_eq!(second.agent_id, first.agent_id);
    assert_eq!(code(opens("one", false).await), "agent-exists");
    let leave = Leave {
        session_id: second.session_id,
    };
    world
        .client
        .leave(&leave, Duration::from_secs(1))
        .await
        .unwrap();
    opens("one", false).await.unwrap();
    let bad = of("", true);
    assert_eq!(code(world.client.open_session(&bad).await), "value-bad");
}
