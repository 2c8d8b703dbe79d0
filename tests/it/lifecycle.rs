//! Stories about one run between server and agent: how it gets to an agent, when it does not, and
//! how it is stopped. Those in which somebody dies are in `kills`.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use expect_test::expect;
use serde_json::json;

use waft::agent::Agent;
use waft::model::label::Labels;
use waft::model::state::{Event, State};
use waft::sandbox::{Compiler, Sandbox, Settings};
use waft::storage::Root;
use waft::wire::ListQuery;

use crate::kit::program::{WAFT, exists};
use crate::kit::witness::{code, new_run};
use crate::kit::world::{HOST, PROJECT, World};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_first_run_goes_to_the_end() {
    let mut world = World::new().await;
    world.register("echo").await;
    world.agent("mira").await;
    let run = world.run("echo", json!({"text": "hi"})).await;

    let ended = world.ends_as(run, State::Success).await;

    assert_eq!(world.result(&ended), json!("hi"));
    assert_eq!(ended.agent.as_deref(), Some("mira"));
    assert_eq!(ended.claims, 1);
    assert!(ended.started_at.is_some() && ended.ended_at.is_some());
    assert_eq!(world.tasks(run).await, "echo Success 1\n");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_waits_for_an_agent_and_many_are_claimed_together() {
    let mut world = World::new().await;
    world.register("echo").await;
    let mut runs = Vec::new();
    for nth in 0..20 {
        runs.push(world.run("echo", json!({"text": format!("{nth}")})).await);
    }
    world.agent("mira").await;
    for (nth, run) in runs.into_iter().enumerate() {
        let ended = world.ends_as(run, State::Success).await;
        assert_eq!(world.result(&ended), json!(format!("{nth}")));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unknown_label_is_explained() {
    let mut world = World::new().await;
    world.register("echo").await;
    world
        .agent_with("mira", |settings| {
            settings.labels = Labels::from_iter(["eu"])
        })
        .await;
    let mut new = new_run("echo", json!({}));
    new.labels = Labels::from_iter(["nowhere"]);
    let run = world.client.create_flow_run(&new).await.unwrap().id;

    let explained = world.client.explain(run).await.unwrap();

    assert_eq!(explained.state, State::Scheduled);
    assert!(
        explained.summary.contains("`nowhere`"),
        "{}",
        explained.summary
    );
    let [mira] = explained.agents.as_slice() else {
        panic!("one agent was looked at: {explained:?}");
    };
    assert_eq!(mira.agent, "mira");
    assert_eq!(mira.words, ["does not offer the label `nowhere`"]);

    // The same run goes on as soon as somebody offers what it needs.
    world
        .agent_with("nas", |settings| {
            settings.labels = Labels::from_iter(["nowhere"])
        })
        .await;
    let ended = world.ends_as(run, State::Success).await;
    assert_eq!(ended.agent.as_deref(), Some("nas"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_is_never_given_what_it_does_not_allow() {
    let mut world = World::new().await;
    world.register("sides").await;
    world
        .agent_with("mira", |settings| {
            settings.powers = std::sync::Arc::default()
        })
        .await;
    let run = world.run("sides", json!({"millis": 0})).await;
    let explained = world.client.explain(run).await.unwrap();
    assert_eq!(
        explained.agents[0].words,
        ["does not allow what needs `--allow-dir HOST::/out:rw`"]
    );
    world.agent("nas").await;
    world.ends_as(run, State::Success).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_finds_out_a_lying_definition() {
    let mut world = World::new().await;
    let mut lie = world.registration("sides").await;
    // What was registered asks for nothing, so any agent would take it.
    lie.definition.tasks[0].grants = waft::model::grant::Grants::default();
    world.client.register(PROJECT, &lie).await.unwrap();
    world.agent("mira").await;
    let run = world.run("sides", json!({})).await;

    let ended = world.ends_as(run, State::Failed).await;

    assert_eq!(ended.code.as_deref(), Some("rejected.definition"));
    assert!(world.out_log().is_empty(), "no task was executed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_root_that_refuses_hands_the_run_back() {
    let mut world = World::new().await;
    let registration = world.registration("echo").await;
    world.client.register(PROJECT, &registration).await.unwrap();
    world.agent("mira").await;
    // A file where the artifacts should lie ails the whole root.
    let artifacts = world.root().folder().unwrap().join("sha256");
    let aside = artifacts.with_extension("aside");
    std::fs::rename(&artifacts, &aside).unwrap();
    std::fs::write(&artifacts, "in the way").unwrap();
    let run = world.run("echo", json!({})).await;

    let back = world
        .until(run, "the run to be handed back", |run| {
            run.claims == 1 && run.state == State::Scheduled
        })
        .await;
    assert!(back.message.contains("cannot fetch"), "{}", back.message);
    let explained = world.client.explain(run).await.unwrap();
    assert!(
        explained.agents[0].words[0].starts_with("waits for a storage: cannot reach `file://"),
        "{explained:?}"
    );

    // After a rest the root is offered again.
    std::fs::remove_file(&artifacts).unwrap();
    std::fs::rename(&aside, &artifacts).unwrap();
    world.pass(Duration::from_secs(6 * 60)).await;
    let ended = world.ends_as(run, State::Success).await;
    assert_eq!(ended.claims, 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_artifact_crashes_the_run_and_names_both_digests() {
    let mut world = World::new().await;
    let registration = world.registration("echo").await;
    world.client.register(PROJECT, &registration).await.unwrap();
    let artifact = world
        .root()
        .folder()
        .unwrap()
        .join(&registration.location.key);
    let mut bytes = std::fs::read(&artifact).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    let found = waft::model::artifact::Digest::of(&bytes);
    std::fs::remove_file(&artifact).unwrap();
    std::fs::write(&artifact, bytes).unwrap();
    world.agent("mira").await;
    let run = world.run("echo", json!({})).await;

    let ended = world.ends_as(run, State::Crashed).await;

    assert_eq!(ended.code.as_deref(), Some("artifact.damaged"));
    for part in [
        registration.location.root.as_str(),
        registration.location.key.as_str(),
        &registration.artifact.to_hex(),
        &found.to_hex(),
    ] {
        assert!(ended.message.contains(part), "{part} in {}", ended.message);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_ready_to_start_in_five_minutes_is_given_back() {
    let mut world = World::new().await;
    world.register("echo").await;
    let folder = tempfile::tempdir().unwrap();
    let (compiler, begun) = (folder.path().join("compiler"), folder.path().join("begun"));
    let program = Compiler::Child(compiler.clone());
    let sandbox = Settings::new(program, folder.path().join("code"), 4);
    let sandbox = Sandbox::new(sandbox).unwrap();
    hangs_once(&compiler, &begun);
    world
        .agent_with("mira", |settings| settings.sandbox = sandbox)
        .await;
    let run = world.run("echo", json!({})).await;
    exists(&begun).await;

    world.pass(Duration::from_secs(5 * 60 - 1)).await;
    let waits = world.client.flow_run(run).await.unwrap();
    assert_eq!((waits.state, waits.claims), (State::Claimed, 1));
    world.pass(Duration::from_secs(2)).await;

    let ended = world.ends_as(run, State::Success).await;
    assert_eq!((ended.claims, ended.agent.as_deref()), (2, Some("mira")));
    let steps = world.transitions(run).await;
    let back = steps.iter().find(|step| step.event == Some(Event::Lose));
    let back = back.unwrap();
    assert_eq!(
        (back.message.as_str(), back.by.as_str(), back.state),
        (
            "it was still not ready to start after 5 minutes",
            "mira",
            State::Scheduled
        )
    );
}

/// Writes a compiler that hangs the first time, and is the true one after that.
///
/// A shell of its own writes it: a file that this process has open for writing cannot be started.
fn hangs_once(compiler: &Path, begun: &Path) {
    let text = format!(
        "#!/bin/sh\nif mkdir '{}' 2>/dev/null; then exec sleep 600; fi\nexec '{WAFT}' \"$@\"\n",
        begun.display()
    );
    let write = r#"printf '%s' "$1" > "$2" && chmod 700 "$2""#;
    let mut shell = Command::new("/bin/sh");
    shell
        .args(["-c", write, "sh", &text])
        .arg(compiler)
        .status()
        .unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_same_idempotency_key_is_the_same_run() {
    let mut world = World::new().await;
    world.register("echo").await;
    let mut new = new_run("echo", json!({"text": "once"}));
    new.idempotency_key = Some("order-7".to_owned());
    let first = world.client.create_flow_run(&new).await.unwrap();
    world.agent("mira").await;
    world.ends_as(first.id, State::Success).await;

    let again = world.client.create_flow_run(&new).await.unwrap();

    assert_eq!(again.id, first.id);
    assert_eq!(again.state, State::Success);
    assert_eq!(world.runs().await.len(), 1);
    new.parameters = [("text".to_owned(), json!("twice"))].into();
    assert_eq!(
        code(world.client.create_flow_run(&new).await),
        "idempotency-conflict"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancelled_run_that_nobody_has_is_cancelled_at_once() {
    let world = World::new().await;
    world.register("echo").await;
    let run = world.run("echo", json!({})).await;
    world.client.cancel(run).await.unwrap();
    world.ends_as(run, State::Cancelled).await;
    assert_eq!(code(world.client.cancel(run).await), "flow-run-over");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endless_loop_is_cancelled() {
    let mut world = World::new().await;
    world.register("spin").await;
    world
        .agent_with("mira", |settings| settings.slots = 1)
        .await;
    let run = world.run("spin", json!({})).await;
    world.is(run, State::Running).await;

    // Although no slot is free, the agent hears of it.
    world.client.cancel(run).await.unwrap();
    world.ends_as(run, State::Cancelled).await;

    expect![[r#"
        00:00 Scheduled  first
        00:00 Claimed    mira
        00:00 Running    mira
        00:00 Cancelling first
        00:00 Cancelled  mira
    "#]]
    .assert_eq(&world.history(run).await);
    assert_eq!(world.tasks(run).await, "turn Cancelled 1\n");
    let tasks = world.client.task_runs(run, &ListQuery::default()).await;
    let usage = tasks.unwrap().items[0].usage;
    assert!(usage.cpu_ms > 0, "what it used is told: {usage:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_draining_agent_finishes_and_takes_nothing_more() {
    let mut world = World::new().await;
    world.register("naps").await;
    world.agent("mira").await;
    let first = world.run("naps", json!({"millis": 200})).await;
    world.is(first, State::Running).await;
    world.drain("mira").await;
    let agents = world.client.list_agents(&ListQuery::default()).await;
    assert!(
        !agents.unwrap().items[0].is_polling,
        "it said that it leaves"
    );
    let second = world.run("naps", json!({"millis": 0})).await;

    let ended = world.client.flow_run(first).await.unwrap();
    assert_eq!(ended.state, State::Success, "told before the agent ended");
    world.agent("nas").await;
    let ended = world.ends_as(second, State::Success).await;
    assert_eq!(ended.agent.as_deref(), Some("nas"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_that_is_stopped_at_once_gives_its_run_back() {
    let mut world = World::new().await;
    world.register("naps").await;
    world.agent("mira").await;
    let run = world.run("naps", json!({"millis": 100})).await;
    world.is(run, State::Running).await;
    world.stop_now("mira").await;
    // No time has passed, so no lease has ended, and the history says so.
    world.is(run, State::Scheduled).await;
    let story = world.story(run).await;
    let told = "the agent was stopped, and gave it back";
    assert!(story.contains(told), "{story}");
    world.agent("nas").await;
    let ended = world.ends_as(run, State::Success).await;
    assert_eq!((ended.claims, ended.agent.as_deref()), (2, Some("nas")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_of_one_batch_ends_by_itself() {
    let mut world = World::new().await;
    world.register("echo").await;
    let runs = [
        world.run("echo", json!({})).await,
        world.run("echo", json!({})).await,
    ];
    world
        .agent_with("mira", |settings| settings.is_once = true)
        .await;
    world.ends_by_itself("mira").await;
    for run in runs {
        assert_eq!(
            world.client.flow_run(run).await.unwrap().state,
            State::Success
        );
    }
    world
        .agent_with("mira", |settings| settings.is_once = true)
        .await;
    world.ends_by_itself("mira").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_agent_of_one_name_is_refused() {
    let mut world = World::new().await;
    world.agent("mira").await;
    let refusal = Agent::start(world.agent_settings("mira"))
        .await
        .err()
        .unwrap();
    assert!(
        refusal.to_string().contains("`mira` is already running"),
        "{refusal}"
    );
    world.kill("mira").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_runs_the_projects_it_names_and_fetches_from_its_own_roots() {
    let mut world = World::new().await;
    world.register("echo").await;
    world
        .agent_with("other", |settings| {
            settings.projects = Some(BTreeSet::from(["elsewhere".to_owned()]));
        })
        .await;
    world
        .agent_with("rootless", |settings| {
            settings.roots = vec![Root::local(&settings.home.join("empty")).unwrap()];
        })
        .await;
    let run = world.run("echo", json!({})).await;
    let explained = world.client.explain(run).await.unwrap();
    let words: Vec<_> = explained
        .agents
        .iter()
        .flat_map(|agent| &agent.words)
        .collect();
    assert!(
        words.iter().any(|it| *it == "does not run project `demo`"),
        "{words:?}"
    );
    let root = format!("cannot fetch from `{}`", world.root());
    assert!(words.iter().any(|it| **it == root), "{words:?}");
    world.agent("mira").await;
    world.ends_as(run, State::Success).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_offers_its_host_unless_it_is_told_not_to() {
    let mut world = World::new().await;
    let mut registration = world.registration("echo").await;
    registration.labels = Labels::from_iter([HOST]);
    world.client.register(PROJECT, &registration).await.unwrap();
    world
        .agent_with("mira", |settings| settings.has_auto_labels = false)
        .await;
    let run = world.run("echo", json!({})).await;
    let explained = world.client.explain(run).await.unwrap();
    assert_eq!(
        explained.agents[0].words,
        ["does not offer the label `testhost`"]
    );
    world.agent("nas").await;
    world.ends_as(run, State::Success).await;
}

/// The flow has three clocks; on a Monday in January the first instants are those of "every 90
/// minutes" and then, at 6 in Berlin, that of the cron line.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_schedule_makes_its_runs_and_each_once() {
    let mut world = World::new().await;
    world.register("typed").await;
    world.agent("mira").await;
    let interval = world.due_at("2026-01-05T01:30:00Z".parse().unwrap()).await;
    let cron = world.due_at("2026-01-05T05:00:00Z".parse().unwrap()).await;

    world.leap(Duration::from_secs(90 * 60)).await;
    let ended = world.ends_as(interval, State::Success).await;
    assert_eq!(
        world.result(&ended),
        json!("small for Ada, 3, 0, 0 notes, rush false, no note")
    );
    assert!(ended.clock.is_some(), "a run that a clock made says which");
    world.leap(Duration::from_secs(210 * 60)).await;
    world.ends_as(cron, State::Success).await;

    let mut made: Vec<_> = world
        .runs()
        .await
        .into_iter()
        .map(|run| (run.scheduled_at, run.clock))
        .collect();
    let count = made.len();
    made.sort();
    made.dedup();
    assert_eq!(made.len(), count, "each instant of a clock makes one run");
}
