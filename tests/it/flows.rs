//! Stories about what a graph does when an agent runs it: retries, maps, triggers, loops; and about
//! a command, which has no graph.

use std::io::{Read as _, Write as _};
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;

use waft::model::state::State;
use waft::sandbox::{Allowed, Powers};

use crate::kit::guests::guest;
use crate::kit::program::Processes;
use crate::kit::repository;
use crate::kit::world::World;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn retries_really_happen() {
    let mut world = World::ticking().await;
    world.register("retries").await;
    world.agent("mira").await;
    let run = world.run("retries", json!({"until": 3})).await;
    let ended = world.ends_as(run, State::Success).await;
    assert_eq!(world.result(&ended), json!(3));
    assert_eq!(world.tasks(run).await, "stubborn Success 3\n");
    let states: Vec<_> = world
        .transitions(run)
        .await
        .into_iter()
        .filter(|step| step.task_run.is_some() && step.event.is_some())
        .map(|step| step.state.to_string())
        .collect();
    assert_eq!(
        states,
        [
            "Running", "Retrying", "Running", "Retrying", "Running", "Success"
        ]
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn retries_end_when_there_are_none_left() {
    let mut world = World::ticking().await;
    world.register("retries").await;
    world.agent("mira").await;
    let run = world.run("retries", json!({"until": 100})).await;
    let ended = world.ends_as(run, State::Failed).await;
    assert!(ended.result.is_none());
    assert_eq!(world.tasks(run).await, "stubborn Failed 4\n");
    assert_eq!(world.task_runs(run).await[0].message, "attempt 4 of 100");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_map_makes_one_task_run_for_each_element() {
    let mut world = World::new().await;
    world.register("maps").await;
    world.agent("mira").await;
    let run = world
        .run("maps", json!({"values": [1, 2, 3], "offset": 10}))
        .await;
    let ended = world.ends_as(run, State::Success).await;
    assert_eq!(world.result(&ended), json!(48));
    let tasks = world.tasks(run).await;
    for line in [
        "double Mapped 0",
        "double[2] Success 1",
        "add[0] Success 1",
        "sum Success 1",
    ] {
        assert!(tasks.lines().any(|own| own == line), "{line} in\n{tasks}");
    }
    assert_eq!(tasks.lines().count(), 3 + 3 + 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_map_over_nothing_is_over_at_once() {
    let mut world = World::new().await;
    world.register("maps").await;
    world.agent("mira").await;
    let run = world.run("maps", json!({"values": []})).await;
    let ended = world.ends_as(run, State::Success).await;
    assert_eq!(world.result(&ended), json!(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn triggers_decide_what_runs_after_a_failure() {
    let mut world = World::new().await;
    world.register("triggers").await;
    world.agent("mira").await;
    let run = world.run("triggers", json!({})).await;
    let ended = world.ends_as(run, State::Success).await;
    assert_eq!(
        world.result(&ended),
        json!("cleaned up, half, None Some(1) [Some(1), None, Some(3)]")
    );
    let tasks = world.tasks(run).await;
    assert!(tasks.contains("breaks Failed 1"), "{tasks}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_behind_a_failure_does_not_run() {
    let mut world = World::new().await;
    world.register("fails").await;
    world.agent("mira").await;
    let run = world.run("fails", json!({"message": "no luck"})).await;
    world.ends_as(run, State::Failed).await;
    assert_eq!(
        world.tasks(run).await,
        "fail Failed 1\nnext TriggerFailed 0\n"
    );
    assert_eq!(world.task_runs(run).await[0].message, "no luck");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_loop_passes_its_value_on() {
    let mut world = World::new().await;
    world.register("loops").await;
    world.agent("mira").await;
    let run = world.run("loops", json!({"times": 4})).await;
    let ended = world.ends_as(run, State::Success).await;
    assert_eq!(world.result(&ended), json!(10));
    assert_eq!(world.task_runs(run).await[0].loop_count, 4);
}

/// A plain program, registered with what its `waft.toml` says, is a flow of one task to everybody.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_is_a_flow_of_one_task() {
    let world = Processes::start(Duration::from_secs(30)).await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("wordcount.wasm");
    std::fs::copy(guest("wordcount").unwrap(), &file).unwrap();
    let says = repository().join("examples/wordcount/waft.toml");
    std::fs::copy(says, folder.path().join("waft.toml")).unwrap();
    std::fs::write(world.data().join("a.md"), "one two two\n").unwrap();
    std::fs::write(world.data().join("b.txt"), "three\n").unwrap();
    let registered = world
        .waft([
            "register",
            file.to_str().unwrap(),
            "--project",
            "demo",
            "--yes",
        ])
        .output()
        .unwrap();
    assert!(registered.status.success(), "{registered:?}");
    let _mira = world.agent("mira");

    let run = world.run("wordcount", json!({"top": 1})).await;
    let ended = world.ends_as(run, State::Success).await;

    assert_eq!(
        world.result(&ended),
        json!({
            "files": 1, "lines": 1, "words": 3, "bytes": 12,
            "top": [{"word": "two", "count": 2}],
        })
    );
    assert_eq!(world.task_runs(run).await.len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_the_branch_that_is_taken_runs() {
    let mut world = World::new().await;
    world.register("branches").await;
    world.agent("mira").await;
    for (n, size, said) in [
        (4, "small", "small 2"),
        (3, "large", "large and odd 10"),
        (6, "large", "large and even 3"),
        (5, "huge", "other 16"),
    ] {
        let run = world.run("branches", json!({"n": n, "size": size})).await;
        let ended = world.ends_as(run, State::Success).await;
        assert_eq!(world.result(&ended), json!(said));
        let tasks = world.tasks(run).await;
        let other = if n % 2 == 0 { "triple" } else { "half" };
        assert!(tasks.contains(&format!("{other} Skipped 0")), "{tasks}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_output_serves_later_runs() {
    let mut world = World::new().await;
    world.register("caches").await;
    world.agent("mira").await;
    let first = world.run("caches", json!({"value": 7})).await;
    let ended = world.ends_as(first, State::Success).await;
    assert_eq!(world.result(&ended), json!([49, 7]));

    let again = world.run("caches", json!({"value": 7})).await;
    let ended = world.ends_as(again, State::Success).await;
    assert_eq!(world.result(&ended), json!([49, 7]));
    let tasks = world.tasks(again).await;
    assert_eq!(tasks, "slow Cached 0\nkeyed Cached 0\nboth Success 1\n");

    // Other inputs are another entry, unless the key says that they do not matter.
    let other = world.run("caches", json!({"value": 8})).await;
    let ended = world.ends_as(other, State::Success).await;
    assert_eq!(world.result(&ended), json!([64, 7]));

    world.leap(Duration::from_secs(3601)).await;
    let late = world.run("caches", json!({"value": 7})).await;
    world.ends_as(late, State::Success).await;
    let tasks = world.tasks(late).await;
    assert_eq!(tasks, "slow Success 1\nkeyed Cached 0\nboth Success 1\n");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_task_ends_as_it_signals() {
    let mut world = World::ticking().await;
    world.register("signals").await;
    world.agent("mira").await;
    for (how, run_state, task) in [
        ("success", State::Success, "end Success 1\n"),
        ("fail", State::Failed, "end Failed 3\n"),
        ("final", State::Failed, "end Failed 1\n"),
        ("retry", State::Success, "end Success 3\n"),
        ("skip", State::Success, "end Skipped 1\n"),
    ] {
        let run = world.run("signals", json!({"how": how})).await;
        world.ends_as(run, run_state).await;
        assert_eq!(world.tasks(run).await, task, "{how}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_skip_travels_until_a_task_says_otherwise() {
    let mut world = World::new().await;
    world.register("skips").await;
    world.agent("mira").await;
    let run = world.run("skips", json!({})).await;
    let ended = world.ends_as(run, State::Success).await;
    assert_eq!(world.result(&ended), json!("ran anyway"));
    let tasks = world.tasks(run).await;
    assert_eq!(
        tasks,
        "maybe Skipped 1\nfollows Skipped 0\nalways Success 1\n"
    );
}

/// Returns what an agent allows instead of what others of its world do.
fn powers(allowed: Allowed) -> Arc<Powers> {
    let home = tempfile::tempdir().unwrap();
    Arc::new(Powers::new(allowed, home.path()).unwrap())
}

/// The main job on real input: this repository's own lock file.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_real_lock_file_is_reported() {
    let mut world = World::ticking().await;
    world.register("lockfile").await;
    let text = std::fs::read_to_string(repository().join("Cargo.lock")).unwrap();
    let packages = text.matches("[[package]]").count();
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("Cargo.lock"), &text).unwrap();
    world
        .agent_with("mira", |settings| {
            let dir = format!("{}::/repo:ro", folder.path().display());
            settings.powers = powers(Allowed {
                dirs: vec![dir.parse().unwrap()],
                ..Allowed::default()
            });
        })
        .await;
    let run = world.run("lockfile", json!({})).await;
    let ended = world.ends_as(run, State::Success).await;

    let report = world.result(&ended);
    assert_eq!(report["packages"], json!(packages));
    assert_eq!(report["deepest_chains"].as_array().unwrap().len(), 10);
    let tasks = world.task_runs(run).await;
    let examined = tasks
        .iter()
        .filter(|task| task.task == "examine" && task.map_index.is_some());
    assert_eq!(examined.count(), packages);
    let verify = tasks.iter().find(|task| task.task == "verify").unwrap();
    assert_eq!(
        (verify.state, verify.attempts),
        (State::Success, 2),
        "a retry that really happened"
    );
    assert_eq!(world.client.cards(run).await.unwrap().items.len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_network_is_there_for_the_task_that_was_granted_it() {
    let server = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let url = format!("http://{}/", server.local_addr().unwrap());
    let answers = std::thread::spawn(move || {
        let (mut stream, _) = server.accept().unwrap();
        let mut request = [0; 1024];
        let _ = stream.read(&mut request).unwrap();
        let answer = "HTTP/1.1 200 OK\r\ncontent-length: 5\r\nconnection: close\r\n\r\nhello";
        stream.write_all(answer.as_bytes()).unwrap();
    });
    let mut world = World::ticking().await;
    world.register("fetches").await;
    world
        .agent_with("mira", |settings| {
            settings.powers = powers(Allowed {
                net: vec!["127.0.0.1:*".parse().unwrap()],
                ..Allowed::default()
            });
        })
        .await;
    let run = world.run("fetches", json!({"url": url})).await;
    let ended = world.ends_as(run, State::Success).await;
    let result = world.result(&ended);
    assert_eq!(result[0], json!("hello"));
    let denied = result[1].as_str().unwrap();
    assert!(
        denied.starts_with("denied: ") && denied.contains("127.0.0.1"),
        "{denied}"
    );
    answers.join().unwrap();
}
