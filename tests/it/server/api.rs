//! What the API takes and what it refuses.

use axum::body::Body;
use http::{Method, Request};
use tower::ServiceExt as _;

use super::access::other;
use super::*;
use waft::wire::Scope;

use crate::kit::witness::patient;

/// Sends anything at all, and returns status and code.
pub(super) async fn raw(
    world: &World,
    method: Method,
    path: &str,
    headers: &[(&str, &str)],
    body: &str,
) -> (u16, String) {
    let mut request = Request::builder().method(method).uri(path);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let request = request.body(Body::from(body.to_owned())).unwrap();
    let answer = waft::server::router(&world.app)
        .oneshot(request)
        .await
        .unwrap();
    let status = answer.status();
    let bytes = axum::body::to_bytes(answer.into_body(), usize::MAX)
        .await
        .unwrap();
    let body: serde_json::Value = serde_json::from_slice(&bytes).unwrap_or_default();
    (
        status.as_u16(),
        body["code"].as_str().unwrap_or_default().to_owned(),
    )
}

/// Method, path, headers, body; the status and the code of the answer.
type Case<'a> = (
    Method,
    &'a str,
    &'a [(&'a str, &'a str)],
    &'a str,
    u16,
    &'a str,
);

#[tokio::test]
async fn bad_requests_get_one_clear_answer() {
    let world = World::new().await;
    let (_, token) = other(&world, Scope::User, None).await;
    let auth = format!("Bearer {token}");
    let own = ("host", "localhost");
    let json = ("content-type", "application/json");
    let deep = format!("{{\"name\": {}{}}}", "[".repeat(10_000), "]".repeat(10_000));
    let long = format!("{{\"name\": \"{}\"}}", "x".repeat(100_000));
    let table: [Case<'_>; 17] = [
        (Method::GET, "/api/flows", &[own], "", 401, "token-wrong"),
        (
            Method::GET,
            "/api/flows",
            &[own, ("authorization", "Bearer waft_00_00")],
            "",
            401,
            "token-wrong",
        ),
        (
            Method::GET,
            "/api/flows",
            &[own, ("authorization", "Basic x")],
            "",
            401,
            "token-wrong",
        ),
        (
            Method::GET,
            "/api/openapi.json",
            &[own],
            "",
            401,
            "token-wrong",
        ),
        (
            Method::GET,
            "/api/health",
            &[("host", "evil.example")],
            "",
            403,
            "host-wrong",
        ),
        (Method::GET, "/api/health", &[], "", 403, "host-wrong"),
        (
            Method::GET,
            "/api/nothing",
            &[own],
            "",
            404,
            "route-unknown",
        ),
        (
            Method::PUT,
            "/api/flows",
            &[own, ("authorization", &auth)],
            "",
            405,
            "method-wrong",
        ),
        (
            Method::POST,
            "/api/projects",
            &[own, json, ("authorization", &auth)],
            "{",
            400,
            "body-bad",
        ),
        (
            Method::POST,
            "/api/projects",
            &[own, ("authorization", &auth)],
            "{}",
            400,
            "body-bad",
        ),
        (
            Method::POST,
            "/api/projects",
            &[own, json, ("authorization", &auth)],
            "{\"name\":\"a\",\"x\":1}",
            400,
            "body-bad",
        ),
        (
            Method::POST,
            "/api/projects",
            &[own, json, ("authorization", &auth)],
            &deep,
            400,
            "body-bad",
        ),
        (
            Method::POST,
            "/api/projects",
            &[own, json, ("authorization", &auth)],
            &long,
            413,
            "body-too-large",
        ),
        (
            Method::POST,
            "/api/projects",
            &[own, json, ("authorization", &auth)],
            "{\"name\":\"../x\"}",
            400,
            "name-bad",
        ),
        (
            Method::POST,
            "/api/projects",
            &[own, json, ("authorization", &auth)],
            "{\"name\":\"..\"}",
            400,
            "name-bad",
        ),
        (
            Method::GET,
            "/api/flow-runs?limt=3",
            &[own, ("authorization", &auth)],
            "",
            400,
            "query-bad",
        ),
        (
            Method::GET,
            "/api/flow-runs/x",
            &[own, ("authorization", &auth)],
            "",
            400,
            "path-bad",
        ),
    ];
    for (method, path, headers, body, status, word) in table {
        let found = raw(&world, method.clone(), path, headers, body).await;
        assert_eq!(found, (status, word.to_owned()), "{method} {path}");
    }
    assert_eq!(waft::server::panics::counted(), 0);
}

#[tokio::test]
async fn the_same_registration_makes_no_new_version() {
    let world = World::new().await;
    let first = world.register("etl").await;
    assert_eq!((first.version, first.is_new), (1, true));
    let again = world.register("etl").await;
    assert_eq!((again.version, again.is_new), (1, false));
    assert_eq!(again.flow_version_id, first.flow_version_id);
    let mut wants_more = registration("etl");
    let task = &mut wants_more.definition.tasks[0];
    task.grants
        .net
        .insert("api.example.org:443".parse().unwrap());
    let second = world.client.register("demo", &wants_more).await.unwrap();
    assert_eq!((second.version, second.is_new), (2, true));
    assert_eq!(second.added_grants, ["net api.example.org:443"]);
    let versions = world
        .client
        .flow_versions("etl", &ListQuery::default())
        .await
        .unwrap();
    assert_eq!(versions.items.len(), 2);
    assert!(versions.items[0].archived_at.is_none() && versions.items[1].archived_at.is_some());
}

#[tokio::test]
async fn registrations_at_one_time_make_one_version_each() {
    let world = World::new().await;
    let tasks: Vec<_> = (0..16)
        .map(|nth| {
            let client = world.client.clone();
            let mut asked = registration("etl");
            asked.artifact = Digest::of(&[nth % 4]);
            tokio::spawn(async move { client.register("demo", &asked).await.unwrap() })
        })
        .collect();
    let mut news = Vec::new();
    for task in tasks {
        let registered = task.await.unwrap();
        news.extend(registered.is_new.then_some(registered.version));
    }
    news.sort_unstable();
    let expected: Vec<u32> = (1..=news.len() as u32).collect();
    assert_eq!(news, expected, "numbers without gaps or doubles");
}

#[tokio::test]
async fn bytes_may_lie_in_a_second_place() {
    let world = World::new().await;
    world.register("etl").await;
    let run = world.create("etl").await;
    let mut cloud = offer();
    cloud.roots = ["s3://bucket".to_owned()].into();
    let agent = world.agent_offering("cloud", cloud).await;
    assert!(agent.poll(1).await.is_empty());
    let mut copied = registration("etl");
    copied.location.root = "s3://bucket".to_owned();
    assert!(!world.client.register("demo", &copied).await.unwrap().is_new);
    let claimed = agent.poll(1).await;
    assert_eq!(
        claimed[0].flow_run_id, run.id,
        "the one that waited is found too"
    );
    assert_eq!(claimed[0].locations.len(), 2);
}

#[tokio::test]
async fn runs_that_need_more_than_their_version_learn_of_a_second_place_too() {
    let world = World::new().await;
    world.register("etl").await;
    let mut labelled = new_run("etl");
    labelled.labels = Labels::from_iter(["gpu"]);
    let label = world.try_create(&labelled).await.unwrap();
    labelled.scheduled_at = Some(world.app.clock.now() + jiff::SignedDuration::from_secs(60));
    let later = world.try_create(&labelled).await.unwrap();
    // One has a result to go on from, and another is at work and comes back only then.
    let mira = world.agent("mira").await;
    world.create("etl").await;
    world.create("etl").await;
    let claimed = mira.poll(2).await;
    let [pinned, at_work] = [&claimed[0], &claimed[1]].map(lease);
    let begun = vec![flow(Event::Start), task("fetch", Event::Start)];
    mira.tell(pinned, begun).await;
    let given_back = vec![task("fetch", Event::Succeed), flow(Event::Lose)];
    mira.tell(pinned, given_back).await;

    let mut cloud = offer();
    cloud.labels = Labels::from_iter(["gpu"]);
    cloud.roots = ["s3://bucket", "file:///results"].map(str::to_owned).into();
    let cloud = world.agent_offering("cloud", cloud).await;
    assert!(cloud.poll(4).await.is_empty());
    let cloud = std::sync::Arc::new(cloud);
    let poll = super::claims::polls(&world, &cloud).await;
    let mut copied = registration("etl");
    copied.location.root = "s3://bucket".to_owned();
    world.client.register("demo", &copied).await.unwrap();
    let woken = patient("the poll", poll).await.unwrap();
    let mut ids = vec![woken[0].flow_run_id];
    ids.extend(cloud.poll(4).await.iter().map(|run| run.flow_run_id));
    ids.sort();
    let mut expected = vec![label.id, pinned.flow_run_id];
    expected.sort();
    assert_eq!(ids, expected);
    mira.tell(at_work, vec![flow(Event::Decline)]).await;
    assert_eq!(cloud.poll(4).await[0].flow_run_id, at_work.flow_run_id);

    let poll = super::claims::polls(&world, &cloud).await;
    world.clock.jump("2026-03-01T01:00:00Z".parse().unwrap());
    waft::server::duty::ringer::ring(&world.app).await.unwrap();
    let woken = patient("the poll", poll).await.unwrap();
    assert_eq!(woken[0].flow_run_id, later.id);
}

#[tokio::test]
async fn bad_registrations_are_refused() {
    let world = World::new().await;
    let refused = async |asked: &Registration| code(world.client.register("demo", asked).await);
    for name in ["a/b", ".", ".."] {
        let mut asked = registration("etl");
        asked.definition.name = name.to_owned();
        assert_eq!(refused(&asked).await, "definition-bad", "{name}");
    }
    let mut asked = registration("etl");
    asked.definition.edges[0].to = "nowhere".to_owned();
    assert_eq!(refused(&asked).await, "definition-bad");
    let mut asked = registration("etl");
    asked.definition.description = "x".repeat(2 * 1024 * 1024);
    assert_eq!(refused(&asked).await, "definition-bad");
    asked.definition.description = "x".repeat(4 * 1024 * 1024);
    assert_eq!(refused(&asked).await, "body-too-large");
    let mut asked = registration("etl");
    asked.labels = Labels::from_iter(["a b"]);
    assert_eq!(refused(&asked).await, "label-bad");
    for (root, key) in [
        ("/tmp", "x"),
        ("file:///a", "../x"),
        ("file:///a", ""),
        ("x://a", "b"),
        // Where agents keep what is none of an artifact's.
        ("s3://a", "task-cache.key"),
        ("s3://a", "b/segments/00061c6a6d4b8000-0000000000000007"),
        ("s3://a", &format!("tasks/ab/{}", "ab".repeat(32))),
        ("s3://a", &format!("sha256/ab/{}", "ab".repeat(32))),
    ] {
        let mut asked = registration("etl");
        (asked.location.root, asked.location.key) = (root.to_owned(), key.to_owned());
        assert_eq!(refused(&asked).await, "location-bad", "{root} {key}");
    }
    let asked = registration("etl");
    assert_eq!(
        code(world.client.register("none", &asked).await),
        "project-unknown"
    );
    let none = world
        .client
        .list_flows(&ListQuery::default())
        .await
        .unwrap();
    assert!(none.items.is_empty(), "nothing is half-written");
}

#[tokio::test]
async fn parameters_are_checked_when_a_run_is_made() {
    let world = World::new().await;
    world.register("etl").await;
    let with = |parameters: serde_json::Value| NewFlowRun {
        flow: "etl".to_owned(),
        parameters: serde_json::from_value(parameters).unwrap(),
        ..NewFlowRun::default()
    };
    for bad in [
        json!({}),
        json!({"name": 1}),
        json!({"name": "x", "y": 1}),
        json!({"name": "x", "times": "3"}),
    ] {
        let refused = world.try_create(&with(bad.clone())).await;
        assert_eq!(code(refused), "parameters-bad", "{bad}");
    }
    let refused = world.try_create(&with(json!({}))).await.unwrap_err();
    let ClientError::Refused(refused) = refused else {
        panic!("the server answers: {refused}");
    };
    assert_eq!(refused.hint.as_deref(), Some("--param name=VALUE"));
    let run = world.try_create(&with(json!({"name": "x"}))).await.unwrap();
    assert_eq!(run.parameters["times"], 3);
    let mut odd = with(json!({"name": "x"}));
    odd.priority = 101;
    assert_eq!(code(world.try_create(&odd).await), "value-bad");
    let mut odd = with(json!({"name": "x"}));
    odd.version = Some(7);
    assert_eq!(code(world.try_create(&odd).await), "version-unknown");
    odd.flow = "none".to_owned();
    assert_eq!(code(world.try_create(&odd).await), "flow-unknown");
}

#[tokio::test]
async fn an_idempotency_key_makes_one_run() {
    let world = World::new().await;
    world.register("etl").await;
    let mut new = new_run("etl");
    new.idempotency_key = Some("monday".to_owned());
    // All at once: none of them finds what another has made.
    let tries = (0..8).map(|_| world.try_create(&new));
    let made = futures::future::join_all(tries).await;
    let first = made[0].as_ref().unwrap();
    for one in &made {
        assert_eq!(one.as_ref().unwrap().id, first.id);
    }
    let runs = world.client.list_flow_runs(&ListQuery::default()).await;
    assert_eq!(runs.unwrap().items.len(), 1);
    new.flow = "demo/etl".to_owned();
    assert_eq!(world.try_create(&new).await.unwrap().id, first.id);
    new.parameters.insert("times".to_owned(), json!(4));
    assert_eq!(code(world.try_create(&new).await), "idempotency-conflict");
    // A repeat is answered, whatever became of the flow since.
    new.parameters.remove("times");
    world.client.archive_flow("etl").await.unwrap();
    assert_eq!(world.try_create(&new).await.unwrap().id, first.id);
    new.idempotency_key = Some("tuesday".to_owned());
    assert_eq!(code(world.try_create(&new).await), "flow-archived");
}

#[tokio::test]
async fn a_flow_with_many_runs_is_deleted_step_by_step() {
    let world = World::new().await;
    world.register("etl").await;
    world.register("other").await;
    let kept = world.create("other").await;
    for _ in 0..250 {
        world.create("etl").await;
    }
    world.client.delete_flow("etl").await.unwrap();
    assert_eq!(code(world.client.flow("etl").await), "flow-unknown");
    let left = world.client.list_flow_runs(&ListQuery::default()).await;
    let left: Vec<_> = left.unwrap().items.iter().map(|run| run.id).collect();
    assert_eq!(left, [kept.id]);
}

#[tokio::test]
async fn a_name_in_two_projects_is_named_with_its_project() {
    let world = World::new().await;
    let second = NewProject {
        name: "second".to_owned(),
        description: String::new(),
    };
    world.client.create_project(&second).await.unwrap();
    world.register("etl").await;
    world
        .client
        .register("second", &registration("etl"))
        .await
        .unwrap();
    let error = world.try_create(&new_run("etl")).await.unwrap_err();
    assert_eq!(error.code(), Some("flow-ambiguous"));
    assert!(
        error.to_string().contains("`demo/etl`, `second/etl`"),
        "{error}"
    );
    let run = world.create("second/etl").await;
    assert_eq!(run.project, "second");
    assert_eq!(world.client.flow("demo/etl").await.unwrap().project, "demo");
    let query = ListQuery {
        flow: Some("etl".to_owned()),
        project: Some("second".to_owned()),
        ..ListQuery::default()
    };
    assert_eq!(
        world
            .client
            .list_flow_runs(&query)
            .await
            .unwrap()
            .items
            .len(),
        1
    );
}

#[tokio::test]
async fn lists_come_in_pages() {
    let world = World::new().await;
    for name in ["a", "b", "c"] {
        world.register(name).await;
        for _ in 0..3 {
            world.create(name).await;
            world.clock.pass(Duration::from_millis(2));
        }
    }
    let mut query = ListQuery {
        limit: Some(2),
        ..ListQuery::default()
    };
    let first = world.client.list_flows(&query).await.unwrap();
    query.cursor = first.next;
    let second = world.client.list_flows(&query).await.unwrap();
    let names: Vec<_> = first
        .items
        .iter()
        .chain(&second.items)
        .map(|f| f.name.as_str())
        .collect();
    assert_eq!((names, second.next), (vec!["a", "b", "c"], None));
    for flow in [None, Some("b".to_owned())] {
        let mut query = ListQuery {
            flow: flow.clone(),
            cursor: None,
            ..query.clone()
        };
        let mut runs = Vec::new();
        loop {
            let page = world.client.list_flow_runs(&query).await.unwrap();
            runs.extend(page.items);
            query.cursor = page.next;
            if query.cursor.is_none() {
                break;
            }
        }
        assert_eq!(runs.len(), if flow.is_some() { 3 } else { 9 });
        assert!(
            runs.is_sorted_by(|a, b| a.created_at > b.created_at),
            "newest first"
        );
    }
    query.cursor = Some("nonsense".to_owned());
    assert_eq!(code(world.client.list_flow_runs(&query).await), "query-bad");
    query.cursor = None;
    query.state = Some("done".to_owned());
    assert_eq!(code(world.client.list_flow_runs(&query).await), "query-bad");
}

#[tokio::test]
async fn a_page_of_versions_ends_where_they_become_large() {
    let world = World::new().await;
    for nth in 0..4 {
        let mut asked = registration("etl");
        asked.artifact = Digest::of(format!("{nth}").as_bytes());
        asked.definition.parameters[0].default = Some(json!("x".repeat(1_900_000)));
        world.client.register("demo", &asked).await.unwrap();
    }
    let mut query = ListQuery::default();
    let mut pages = Vec::new();
    loop {
        let page = world.client.flow_versions("etl", &query).await.unwrap();
        pages.push(page.items.iter().map(|it| it.version).collect::<Vec<_>>());
        query.cursor = page.next;
        if query.cursor.is_none() {
            break;
        }
    }
    assert_eq!(pages, [vec![4, 3], vec![2, 1]]);
}

#[tokio::test]
async fn what_is_at_work_is_not_deleted() {
    let world = World::new().await;
    world.register("etl").await;
    let (waits, works) = (world.create("etl").await, world.create("etl").await);
    let agent = world.agent("mira").await;
    let claimed = agent.poll(1).await[0].flow_run_id;
    let (kept, gone) = if claimed == works.id {
        (works, waits)
    } else {
        (waits, works)
    };
    assert_eq!(
        code(world.client.delete_flow_run(kept.id).await),
        "flow-run-busy"
    );
    assert_eq!(code(world.client.delete_flow("etl").await), "flow-busy");
    world.client.delete_flow_run(gone.id).await.unwrap();
    assert_eq!(
        code(world.client.flow_run(gone.id).await),
        "flow-run-unknown"
    );
    assert_eq!(
        code(world.client.delete_project("demo").await),
        "project-not-empty"
    );
    world.client.cancel(kept.id).await.unwrap();
    world.clock.pass(LEASE * 2);
    world.rescue().await;
    world.client.delete_flow("etl").await.unwrap();
    world.client.delete_project("demo").await.unwrap();
}

#[tokio::test]
async fn the_api_is_pinned() {
    let world = World::new().await;
    let request = Request::get("/api/openapi.json")
        .header("host", "localhost")
        .header(
            "authorization",
            format!("Bearer {}", other(&world, Scope::User, None).await.1),
        );
    let router = waft::server::router(&world.app);
    let answer = router
        .oneshot(request.body(Body::empty()).unwrap())
        .await
        .unwrap();
    let bytes = axum::body::to_bytes(answer.into_body(), usize::MAX)
        .await
        .unwrap();
    let document: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
    // An id is unique in the whole document, for clients that are made of it.
    let paths = document["paths"].as_object().unwrap().values();
    let operations = paths.flat_map(|path| path.as_object().unwrap().values());
    let mut ids: Vec<_> = operations
        .map(|operation| operation["operationId"].as_str().unwrap())
        .collect();
    let count = ids.len();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), count, "{ids:?}");
    let text = serde_json::to_string_pretty(&document).unwrap() + "\n";
    expect_test::expect_file!["openapi.json"].assert_eq(&text);
}
