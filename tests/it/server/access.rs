//! Tokens, sessions and logins: who may do what.

use axum::body::Body;
use http::{Method, Request, StatusCode};
use tower::ServiceExt as _;

use super::api::raw;
use super::*;
use crate::kit::witness::patient;
use waft::wire::{NewToken, Scope};

/// Makes a token and a client that uses it.
pub(super) async fn other(
    world: &World,
    scope: Scope,
    projects: Option<&[&str]>,
) -> (Client, String) {
    let new = NewToken {
        name: format!("token-{}", rand::random::<u32>()),
        scope,
        projects: projects.map(|names| names.iter().map(|name| (*name).to_owned()).collect()),
    };
    let made = world.client.create_token(&new).await.unwrap();
    let client = Client::in_process(waft::server::router(&world.app), Some(made.text.clone()));
    (client, made.text)
}

#[tokio::test]
async fn a_token_is_bound_to_some_project_or_to_what_its_maker_is_bound_to() {
    let world = World::new().await;
    let (bound, _) = other(&world, Scope::User, Some(&["demo"])).await;
    let new = |projects: Option<Vec<String>>| NewToken {
        name: format!("token-{}", rand::random::<u32>()),
        scope: Scope::User,
        projects,
    };
    // One of no project at all would be taken for one of all.
    assert_eq!(
        code(bound.create_token(&new(Some(Vec::new()))).await),
        "value-bad"
    );
    let made = bound.create_token(&new(None)).await.unwrap();
    assert_eq!(made.token.projects, Some(vec!["demo".to_owned()]));
}

#[tokio::test]
async fn a_token_bound_to_a_project_sees_nothing_else() {
    let world = World::new().await;
    let second = NewProject {
        name: "second".to_owned(),
        description: String::new(),
    };
    world.client.create_project(&second).await.unwrap();
    world.register("etl").await;
    let run = world.create("etl").await;
    let (stranger, _) = other(&world, Scope::User, Some(&["second"])).await;
    let none = ListQuery::default();
    assert!(stranger.list_flows(&none).await.unwrap().items.is_empty());
    assert!(
        stranger
            .list_flow_runs(&none)
            .await
            .unwrap()
            .items
            .is_empty()
    );
    assert_eq!(stranger.list_projects(&none).await.unwrap().items.len(), 1);
    assert!(stranger.list_agents(&none).await.unwrap().items.is_empty());
    assert_eq!(code(stranger.flow("etl").await), "flow-unknown");
    assert_eq!(code(stranger.flow("demo/etl").await), "flow-unknown");
    assert_eq!(
        code(stranger.flow(&run.flow_id.to_string()).await),
        "flow-unknown"
    );
    assert_eq!(code(stranger.pause_flow("etl").await), "flow-unknown");
    assert_eq!(code(stranger.delete_flow("etl").await), "flow-unknown");
    assert_eq!(
        code(stranger.create_flow_run(&new_run("etl")).await),
        "flow-unknown"
    );
    assert_eq!(code(stranger.flow_run(run.id).await), "flow-run-unknown");
    assert_eq!(
        code(stranger.history(run.id, &none).await),
        "flow-run-unknown"
    );
    assert_eq!(
        code(stranger.task_runs(run.id, &none).await),
        "flow-run-unknown"
    );
    assert_eq!(code(stranger.cards(run.id).await), "flow-run-unknown");
    assert_eq!(code(stranger.explain(run.id).await), "flow-run-unknown");
    assert_eq!(code(stranger.cancel(run.id).await), "flow-run-unknown");
    assert_eq!(
        code(stranger.delete_flow_run(run.id).await),
        "flow-run-unknown"
    );
    assert_eq!(
        code(stranger.register("demo", &registration("x")).await),
        "project-unknown"
    );
    assert_eq!(code(stranger.delete_project("demo").await), "forbidden");
    // Others may need what it may not see.
    let found = waft::wire::Sighted::default();
    assert_eq!(code(stranger.orphans(&found).await), "forbidden");
    assert_eq!(code(stranger.create_project(&second).await), "forbidden");
    let all = NewToken {
        name: "all".to_owned(),
        scope: Scope::User,
        projects: Some(vec!["demo".to_owned()]),
    };
    assert_eq!(code(stranger.create_token(&all).await), "project-unknown");

    // An agent with that token is given that project's runs only.
    let opened = stranger.open_session(&hello("mira", offer())).await;
    let opened = opened.unwrap();
    let poll = Poll {
        session_id: opened.session_id,
        free_slots: 1,
        wait_seconds: 0,
    };
    assert!(stranger.poll(&poll).await.unwrap().flow_runs.is_empty());
    assert_eq!(
        code(world.client.poll(&poll).await),
        "session-unknown",
        "another token's session"
    );
}

#[tokio::test]
async fn a_page_is_cut_after_what_may_be_seen() {
    let world = World::new().await;
    let (bound, _) = other(&world, Scope::User, Some(&["demo"])).await;
    let session = |name: &str| hello(name, offer());
    bound.open_session(&session("mira")).await.unwrap();
    for nth in 0..3 {
        world.clock.pass(Duration::from_secs(1));
        world.agent(&format!("agent-{nth}")).await;
        let new = NewToken {
            name: format!("a-{nth}"),
            scope: Scope::User,
            projects: None,
        };
        world.client.create_token(&new).await.unwrap();
    }
    let first = ListQuery {
        limit: Some(1),
        ..ListQuery::default()
    };
    let agents = bound.list_agents(&first).await.unwrap();
    assert_eq!((agents.items[0].name.as_str(), agents.next), ("mira", None));
    let tokens = bound.list_tokens(&first).await.unwrap();
    let seen = tokens.items[0].projects.clone();
    assert_eq!((seen, tokens.next), (Some(vec!["demo".to_owned()]), None));

    let mut names = Vec::new();
    let mut query = first;
    loop {
        let page = world.client.list_agents(&query).await.unwrap();
        names.extend(page.items.into_iter().map(|agent| agent.name));
        query.cursor = page.next;
        if query.cursor.is_none() {
            break;
        }
    }
    assert_eq!(names, ["agent-0", "agent-1", "agent-2", "mira"]);
}

#[tokio::test]
async fn a_token_does_what_its_scope_says_and_nothing_once_it_is_revoked() {
    let world = World::new().await;
    world.register("etl").await;
    let none = ListQuery::default();
    let (reader, text) = other(&world, Scope::ReadOnly, None).await;
    assert_eq!(reader.list_flows(&none).await.unwrap().items.len(), 1);
    assert_eq!(
        code(reader.create_flow_run(&new_run("etl")).await),
        "forbidden"
    );
    assert_eq!(code(reader.pause_flow("etl").await), "forbidden");
    let (agent, _) = other(&world, Scope::Agent, None).await;
    assert_eq!(code(agent.list_flows(&none).await), "forbidden");
    assert_eq!(
        code(agent.create_flow_run(&new_run("etl")).await),
        "forbidden"
    );
    let tokens = world.client.list_tokens(&none).await.unwrap().items;
    assert_eq!(tokens.len(), 3);
    let id = text.split('_').nth(1).unwrap();
    let own = tokens
        .iter()
        .find(|token| token.id.to_string().replace('-', "") == id);
    world.client.revoke_token(own.unwrap().id).await.unwrap();
    assert_eq!(code(reader.list_flows(&none).await), "token-wrong");
}

#[tokio::test]
async fn only_the_right_secret_marks_a_token_as_used() {
    let world = World::new().await;
    let (right, text) = other(&world, Scope::User, None).await;
    let last = if text.ends_with('0') { '1' } else { '0' };
    let wrong = format!("{}{last}", &text[..text.len() - 1]);
    let wrong = Client::in_process(waft::server::router(&world.app), Some(wrong));
    let none = ListQuery::default();
    let id = text.split('_').nth(1).unwrap();
    let used_at = async || {
        // It is noted behind the caller's back: what is written after it is there after it.
        for _ in 0..2 {
            world.client.create_token(&scratch_token()).await.unwrap();
        }
        let tokens = world.client.list_tokens(&none).await.unwrap().items;
        let own = tokens
            .iter()
            .find(|token| token.id.to_string().replace('-', "") == id);
        own.unwrap().used_at
    };

    assert_eq!(code(wrong.list_flows(&none).await), "token-wrong");
    assert_eq!(used_at().await, None);
    // Nor does a wrong one hide that the right one is used.
    assert_eq!(code(wrong.list_flows(&none).await), "token-wrong");
    right.list_flows(&none).await.unwrap();
    // On PostgreSQL no write waits for another.
    let becomes = async |at| {
        let noted = async { while used_at().await != Some(at) {} };
        patient("the use of a token to be noted", noted).await;
    };
    let first = world.app.clock.now();
    becomes(first).await;
    world.clock.pass(Duration::from_secs(59));
    right.list_flows(&none).await.unwrap();
    assert_eq!(used_at().await, Some(first), "to the minute");
    world.clock.pass(Duration::from_secs(2));
    right.list_flows(&none).await.unwrap();
    becomes(world.app.clock.now()).await;
}

fn scratch_token() -> NewToken {
    NewToken {
        name: format!("scratch-{}", rand::random::<u64>()),
        scope: Scope::ReadOnly,
        projects: None,
    }
}

#[tokio::test]
async fn a_session_that_was_forgotten_for_its_silence_is_found_again() {
    let world = World::new().await;
    world.register("etl").await;
    let agent = world.agent("mira").await;
    world.clock.pass(Duration::from_secs(60 * 60));
    waft::server::duty::cleaner::clean(&world.app)
        .await
        .unwrap();
    let run = world.create("etl").await;
    assert_eq!(agent.poll(1).await[0].flow_run_id, run.id);
}

#[tokio::test]
async fn an_agent_that_is_heard_of_between_two_pages_is_on_one_of_them() {
    let world = World::new().await;
    let page = async |cursor| {
        let query = ListQuery {
            limit: Some(1),
            cursor,
            ..ListQuery::default()
        };
        let page = world.client.list_agents(&query).await.unwrap();
        (page.items[0].name.clone(), page.next)
    };
    for name in ["nas", "mira"] {
        world.agent(name).await;
        world.clock.pass(LEASE);
    }
    let (first, next) = page(None).await;
    world.agent("nas").await;
    let (second, next) = page(next).await;
    assert_eq!([first.as_str(), second.as_str()], ["mira", "nas"]);
    assert_eq!(next, None);
}

#[tokio::test]
async fn an_older_session_of_an_agent_ends_and_keeps_its_lease() {
    let world = World::new().await;
    world.register("etl").await;
    let run = world.create("etl").await;
    let first = world.agent("mira").await;
    let key = lease(&first.poll(1).await[0]);
    let second = world.agent("mira").await;
    let poll = Poll {
        session_id: first.session,
        free_slots: 1,
        wait_seconds: 0,
    };
    assert_eq!(code(world.client.poll(&poll).await), "session-unknown");
    assert_eq!(world.run(run.id).await.state, State::Claimed);
    assert!(
        second
            .tell(key, vec![flow(Event::Start)])
            .await
            .lost
            .is_empty()
    );
    let agents = world
        .client
        .list_agents(&ListQuery::default())
        .await
        .unwrap()
        .items;
    assert_eq!(agents.len(), 1);
    assert_eq!(agents[0].flow_runs[0].id, run.id);
}

#[tokio::test]
async fn a_browser_logs_in_by_a_link_and_only_from_here() {
    let world = World::new().await;
    let code = world.app.login_code().await.unwrap();
    let login = Request::get(format!("/login?code={code}")).header("host", "localhost");
    let router = waft::server::router(&world.app);
    let answer = router
        .clone()
        .oneshot(login.body(Body::empty()).unwrap())
        .await
        .unwrap();
    assert_eq!(answer.status(), StatusCode::SEE_OTHER);
    let cookie = answer.headers()["set-cookie"].to_str().unwrap().to_owned();
    assert!(cookie.contains("HttpOnly") && cookie.contains("SameSite=Strict"));
    let cookie = cookie.split(';').next().unwrap();
    let own = [("host", "localhost"), ("cookie", cookie)];
    assert_eq!(raw(&world, Method::GET, "/", &own, "").await.0, 200);
    assert_eq!(
        raw(&world, Method::GET, "/api/flows", &own, "").await.0,
        200
    );
    let foreign = [
        ("host", "localhost"),
        ("cookie", cookie),
        ("origin", "https://evil.example"),
    ];
    let refused = raw(&world, Method::GET, "/api/flows", &foreign, "").await;
    assert_eq!(refused, (403, "origin-wrong".to_owned()));
    assert_eq!(
        raw(&world, Method::GET, "/", &[("host", "localhost")], "")
            .await
            .0,
        401
    );
}

#[tokio::test]
async fn the_page_shows_runs_to_those_who_may_read() {
    let world = World::new().await;
    for (scope, expected) in [
        (Scope::Agent, (403, "forbidden".to_owned())),
        (Scope::ReadOnly, (200, String::new())),
    ] {
        let (_, text) = other(&world, scope, None).await;
        let bearer = format!("Bearer {text}");
        let headers = [("host", "localhost"), ("authorization", bearer.as_str())];
        assert_eq!(raw(&world, Method::GET, "/", &headers, "").await, expected);
    }
}
