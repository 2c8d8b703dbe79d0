//! An agent outlives what its storages do: they go away and come back, let nobody in, and change their
//! passwords, and no run and no agent ends by it. The real program, and a real server of each kind.

use std::collections::BTreeMap;
use std::process::Command;
use std::time::Duration;

use futures::TryStreamExt as _;
use jiff::Timestamp;
use serde_json::json;
use waft::clock::Clock;
use waft::config::Access;
use waft::model::id::FlowRunId;
use waft::model::state::State;
use waft::model::value::Value as RunValue;
use waft::storage::{CacheBy, CacheKey, Kind, Results, Storage, StorageError, TaskCache};
use waft::wire::FlowRun;

use crate::kit::guests::guest;
use crate::kit::program::{Process, Processes, line_with, lines_of};
use crate::kit::servers::StorageServer;
use crate::kit::witness::patient;
use crate::kit::world::{PROJECT, World};

const LEASE: Duration = Duration::from_secs(30);

/// Makes a command of the program that reaches a storage.
fn waft<'a>(
    processes: &Processes,
    store: &StorageServer,
    words: impl IntoIterator<Item = &'a str>,
) -> Command {
    let mut command = processes.waft(words);
    command.envs(store.environment());
    command
}

/// Registers a guest into a storage.
fn register(processes: &Processes, store: &StorageServer, name: &str, words: &[&str]) {
    let (root, file) = (store.root.to_string(), guest(name).unwrap());
    let file = file.display().to_string();
    let all = ["register", &file, "--project", "demo", "--storage", &root];
    let mut command = waft(processes, store, all);
    let done = command.args(["--yes"]).args(words).output().unwrap();
    assert!(
        done.status.success(),
        "{}",
        String::from_utf8_lossy(&done.stderr)
    );
}

/// Starts an agent with a home of its own that fetches from a storage and keeps results in another, and
/// returns the file to which it writes what it says to people.
fn agent(
    processes: &Processes,
    name: &str,
    (root, results): (&StorageServer, &str),
    words: &[&str],
) -> (Process, std::path::PathBuf) {
    let home = processes.folder().join(name);
    std::fs::create_dir_all(&home).unwrap();
    let said = home.join("said");
    let out = format!("{}::/out:rw", processes.out().display());
    let place = root.root.to_string();
    let all = ["agent", "start", "--name", name, "--root", &place];
    let mut command = waft(processes, root, all);
    command
        .args(["--allow-dir", &out])
        .args(["--server", processes.client.url()])
        .args(["--token", processes.token()])
        .args(words)
        .env("WAFT_HOME", &home)
        .env("WAFT__RESULTS__ROOT", results)
        .stderr(std::fs::File::create(&said).unwrap());
    (Process::spawn(&mut command), said)
}

/// Waits until `explain` says these words of a run.
async fn explains(processes: &Processes, run: FlowRunId, words: &[&str]) {
    let said = async {
        loop {
            let explained = processes.client.explain(run).await.unwrap();
            let agents = explained.agents.iter().flat_map(|agent| &agent.words);
            let said: Vec<&str> = agents
                .map(String::as_str)
                .chain([&*explained.summary])
                .collect();
            let said = said.join("; ");
            if words.iter().all(|words| said.contains(words)) {
                return;
            }
            // Nobody can watch agents.
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    patient(&format!("`explain` to say {words:?}"), said).await;
}

/// The registry that keeps the results dies in mid-run and comes back: what is finished stays, nothing
/// counts against the run, and no other run is claimed just to fail.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_outlives_the_place_of_its_results() {
    let processes = Processes::start(LEASE).await;
    let artifacts = StorageServer::start(Kind::Local).await;
    let mut results = StorageServer::start(Kind::Oci).await;
    register(&processes, &artifacts, "sides", &[]);
    register(&processes, &artifacts, "echo", &[]);
    let root = results.root.to_string();
    let (_mira, _) = agent(&processes, "mira", (&artifacts, &root), &[]);
    let run = processes.run("sides", json!({"millis": 1000})).await;
    processes.until_successes(run, 1).await;
    results.stop();
    let waits = |run: &FlowRun| run.state == State::Scheduled && run.claims == 1;
    let lost = processes.until(run, "a run handed back", waits).await;
    assert!(lost.message.contains(&root), "{}", lost.message);
    assert_eq!(lost.code.as_deref(), Some("lost.results"));
    let other = processes.run("echo", json!({"text": "later"})).await;
    for run in [run, other] {
        let words = ["waits for a storage", &root, "cannot keep results"];
        explains(&processes, run, &words).await;
    }
    // More than one look in vain: neither run was claimed meanwhile.
    tokio::time::sleep(Duration::from_secs(8)).await;
    for run in [run, other] {
        assert_eq!(
            processes.client.flow_run(run).await.unwrap().state,
            State::Scheduled
        );
    }
    results.resume().await;
    let ended = processes.ends_as(run, State::Success).await;
    assert_eq!(ended.claims, 2);
    assert_eq!(processes.ends_as(other, State::Success).await.claims, 1);
    let out = lines_of(&processes.out_log());
    let begun = out.iter().filter(|line| line.starts_with("begin"));
    let mut times: BTreeMap<&str, u32> = BTreeMap::new();
    begun.for_each(|line| *times.entry(line.split(' ').nth(1).unwrap()).or_default() += 1);
    let times: Vec<u32> = times.into_values().collect();
    assert_eq!(times.len(), 3, "{out:?}");
    assert_eq!(times[0], 1, "what was finished was made again: {out:?}");
    assert!(times[1] <= 2 && times[2] == 1, "{out:?}");
}

/// The output of a finished task is gone or damaged when the next claim needs it: the run is Crashed and says whose
/// it was, where it lay, and what can be done. The task is not made again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_finished_output_that_is_lost_crashes_the_run_and_is_named() {
    let processes = Processes::start(LEASE).await;
    let store = StorageServer::start(Kind::S3).await;
    register(&processes, &store, "sides", &[]);
    let root = format!("{}/results", store.root);
    let start = || agent(&processes, "mira", (&store, &root), &[]).0;
    let cases = [
        ("results.lost", None),
        ("results.damaged", Some("7")),
        ("results.damaged", Some("")),
    ];
    for (code, bytes) in cases {
        let first = start();
        let run = processes.run("sides", json!({"millis": 1000})).await;
        processes.until_successes(run, 1).await;
        first.kill();
        let tasks = processes.task_runs(run).await;
        let kept = tasks.iter().filter_map(|task| task.result.as_ref());
        let keys: Vec<_> = kept.map(|kept| kept.segment.clone()).collect();
        for key in &keys {
            let key = format!("results/{key}");
            match bytes {
                None => store.remove(&key).await,
                Some(bytes) => store.plant(&key, bytes).await,
            }
        }
        // Started anew under its name, it goes on at once.
        let again = start();
        let ended = processes.ends_as(run, State::Crashed).await;
        assert_eq!(ended.code.as_deref(), Some(code), "{}", ended.message);
        let key = keys.last().unwrap();
        // True of what is gone and of what is damaged.
        let finished = "which is finished, cannot be read any more";
        for words in [&root, key, "the output of `step", finished] {
            assert!(ended.message.contains(words), "{words}: {}", ended.message);
        }
        let hints = processes.client.explain(run).await.unwrap().hints;
        assert_eq!(hints[0], format!("waft flow-run retry {run} --whole"));
        let typed = processes
            .waft(hints[0].split(' ').skip(1))
            .output()
            .unwrap();
        assert!(typed.status.success(), "{typed:?}");
        let anew = String::from_utf8(typed.stdout).unwrap().trim().parse();
        processes.ends_as(anew.unwrap(), State::Success).await;
        again.kill();
        let begun = lines_of(&processes.out_log());
        let begun = begun.iter().filter(|line| line.starts_with("begin"));
        let own = begun.filter(|line| line.contains(&run.to_string()));
        assert!(own.count() <= 2, "what was finished was made again");
    }
}

/// An agent starts while all of its storages are away, says so, and takes them up as they come.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_starts_before_its_storages() {
    let processes = Processes::start(LEASE).await;
    let mut store = StorageServer::start(Kind::Oci).await;
    register(&processes, &store, "echo", &[]);
    store.stop();
    let root = store.root.to_string();
    let (_mira, said) = agent(&processes, "mira", (&store, &root), &[]);
    processes.until_polling("mira").await;
    line_with(&said, "the place of results is out of reach").await;
    let run = processes.run("echo", json!({"text": "x"})).await;
    let words = [
        "the agent `mira` waits for a storage",
        "cannot keep results",
        &root,
    ];
    explains(&processes, run, &words).await;
    let hints = processes.client.explain(run).await.unwrap().hints;
    assert!(hints.is_empty(), "what it has is not advised: {hints:?}");
    store.resume().await;
    let ended = processes.ends_as(run, State::Success).await;
    assert_eq!(ended.claims, 1);
}

/// The log of an agent says once that a storage of artifacts went away, and once that it is back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_log_says_when_a_root_goes_and_when_it_comes_back() {
    let processes = Processes::start(LEASE).await;
    let mut store = StorageServer::start(Kind::Http).await;
    let (root, key) = (store.root.to_string(), "echo.wasm");
    store
        .plant(key, std::fs::read(guest("echo").unwrap()).unwrap())
        .await;
    let place = format!("{root}{key}");
    let words = ["register", &place, "--project", "demo"];
    let done = waft(&processes, &store, words).output().unwrap();
    assert!(done.status.success(), "{done:?}");
    let results = format!("file://{}", processes.folder().join("results").display());
    let (_mira, said) = agent(&processes, "mira", (&store, &results), &[]);
    processes.until_polling("mira").await;
    store.stop();
    let run = processes.run("echo", json!({"text": "x"})).await;
    line_with(&said, "a root fails, and rests").await;
    let looks_at = async || {
        let agent = processes.client.agent("mira").await.unwrap();
        agent.offer.resting.first().map(|rest| rest.looks_at)
    };
    let looked = async {
        let (mut looks, mut last) = (0, None);
        while looks < 2 {
            let next = looks_at().await;
            looks += u32::from(next.is_some() && next > last);
            last = next.max(last);
            // Nobody can watch agents.
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    patient("a look in vain", looked).await;
    store.resume().await;
    processes.ends_as(run, State::Success).await;
    line_with(&said, "a root is in reach again").await;
    let lines = lines_of(&said);
    let about: Vec<_> = lines.iter().filter(|line| line.contains(&root)).collect();
    let [gone, back] = about.as_slice() else {
        panic!("{lines:?}");
    };
    for words in ["WARN", "cannot reach", "looks_in_seconds=5"] {
        assert!(gone.contains(words), "{gone}");
    }
    assert!(back.contains("in reach again"), "{back}");
    assert!(
        !lines.iter().any(|line| line.contains("hint=")),
        "{lines:?}"
    );
}

/// A storage that takes connections and says nothing holds up a start for a while only.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_starts_though_its_storages_hang() {
    let processes = Processes::start(LEASE).await;
    let store = StorageServer::start(Kind::S3).await;
    register(&processes, &store, "echo", &[]);
    store.freeze();
    let results = format!("{}/results", store.root);
    let begun = Clock::default().monotonic();
    let (_mira, said) = agent(&processes, "mira", (&store, &results), &[]);
    processes.until_polling("mira").await;
    let took = Clock::default().monotonic().since(begun);
    assert!(took < Duration::from_secs(20), "{took:?}");
    line_with(&said, "a root is out of reach").await;
    let run = processes.run("echo", json!({"text": "x"})).await;
    explains(&processes, run, &["cannot keep results", &results]).await;
    store.thaw();
    processes.ends_as(run, State::Success).await;
}

/// A file of credentials that cannot be used keeps no agent from its start, and its root is taken up once the
/// file can.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn credentials_that_cannot_be_used_are_waited_for() {
    let mut world = World::new().await;
    let store = StorageServer::start_locked(Kind::Oci).await;
    let mut registration = world.registration("echo").await;
    let storage = Storage::open(&store.root, &store.access).unwrap();
    let (digest, size) = (registration.artifact, registration.artifact_size);
    let file = guest("echo").unwrap();
    let put = storage.put_artifact(&file, digest, size, "echo").await;
    registration.location.key = put.unwrap().key;
    registration.location.root = store.root.to_string();
    registration.labels.insert("oci-flow-storage");
    world.client.register(PROJECT, &registration).await.unwrap();
    store.write_home(".docker/config.json", "no JSON");
    world
        .agent_with("mira", |settings| {
            settings.roots = vec![store.root.clone()];
            settings.access = store.access.clone();
            settings.has_auto_labels = true;
        })
        .await;
    let run = world.run("echo", json!({"text": "x"})).await;
    let explained = world.client.explain(run).await.unwrap();
    let words = format!("the agent `mira` waits for a storage: `{}` ", store.root);
    assert!(explained.summary.starts_with(&words), "{explained:?}");
    let aside = "it looks again in 300 s, and goes on by itself";
    assert_eq!(explained.aside, aside);
    let [hint] = explained.hints.as_slice() else {
        panic!("{explained:?}");
    };
    assert!(
        hint.ends_with("docker login, podman login or oras login"),
        "{hint}"
    );
    assert_eq!(explained.agents[0].words.len(), 1, "{explained:?}");
    // A look in vain, and one that finds it mended.
    world.pass(Duration::from_secs(301)).await;
    store.write_login("ada");
    world.pass(Duration::from_secs(301)).await;
    world.ends_as(run, State::Success).await;
}

/// The login of a registry changes, there and in the file that Docker's tools keep, while an agent works.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_password_is_renewed_under_a_living_agent() {
    let processes = Processes::start(LEASE).await;
    let mut store = StorageServer::start_locked(Kind::Oci).await;
    register(&processes, &store, "echo", &[]);
    register(&processes, &store, "maps", &[]);
    let root = store.root.to_string();
    let (_mira, _) = agent(&processes, "mira", (&store, &root), &[]);
    let run = processes.run("echo", json!({"text": "x"})).await;
    processes.ends_as(run, State::Success).await;
    // The agent knows the old login, and both places ask for the new one now.
    store.rename_user("eve").await;
    let run = processes.run("maps", json!({})).await;
    let ended = processes.ends_as(run, State::Success).await;
    assert_eq!(ended.claims, 1, "nobody noticed: {}", ended.message);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_agent_gets_what_lies_under_its_root() {
    let processes = Processes::start(LEASE).await;
    let (bucket, registry) = (
        StorageServer::start(Kind::S3).await,
        StorageServer::start(Kind::Oci).await,
    );
    register(&processes, &bucket, "echo", &[]);
    register(&processes, &registry, "maps", &[]);
    let results = format!("file://{}", processes.folder().join("results").display());
    let agents = [("mira", &bucket), ("nas", &registry)];
    let [mira, nas] = agents.map(|(name, store)| agent(&processes, name, (store, &results), &[]).0);
    let runs = [
        ("echo", json!({"text": "x"}), "mira"),
        ("maps", json!({}), "nas"),
    ];
    for (flow, parameters, name) in runs {
        let run = processes.run(flow, parameters).await;
        let ended = processes.ends_as(run, State::Success).await;
        assert_eq!(ended.agent.as_deref(), Some(name));
    }
    nas.kill();
    let run = processes.run("maps", json!({})).await;
    let root = format!("cannot fetch from `{}`", registry.root);
    explains(&processes, run, &[&root, "oci-flow-storage"]).await;
    drop(mira);
}

/// What lies in a folder is there on one host only, and both sides may say that they know better.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_folder_is_of_its_host_unless_both_sides_say_otherwise() {
    let processes = Processes::start(LEASE).await;
    let store = StorageServer::start(Kind::Local).await;
    let here = waft::config::hostname();
    register(&processes, &store, "echo", &[]);
    register(&processes, &store, "maps", &["--no-auto-labels"]);
    let _elsewhere = agent_on_host(&processes, "rhea", &store, &[]);
    processes.until_polling("rhea").await;
    let run = processes.run("echo", json!({"text": "x"})).await;
    let label = format!("does not offer the label `{here}`");
    explains(&processes, run, &[&label]).await;
    let shared = processes.run("maps", json!({})).await;
    let ended = processes.ends_as(shared, State::Success).await;
    assert_eq!(ended.agent.as_deref(), Some("rhea"));
    // An agent that offers no host by itself takes what asks for none, and nothing that asks for one.
    let _plain = agent_on_host(&processes, "plain", &store, &["--no-auto-labels"]);
    processes.until_polling("plain").await;
    explains(&processes, run, &[&label]).await;
    let agents = processes.client.explain(run).await.unwrap().agents;
    assert!(
        agents.iter().all(|agent| agent.words.contains(&label)),
        "{agents:?}"
    );
    let results = format!("file://{}", processes.folder().join("results").display());
    let (_here, _) = agent(&processes, "mira", (&store, &results), &[]);
    let ended = processes.ends_as(run, State::Success).await;
    assert_eq!(ended.agent.as_deref(), Some("mira"));
}

/// Starts an agent on a host that is called as the agent is.
fn agent_on_host(
    processes: &Processes,
    name: &str,
    store: &StorageServer,
    words: &[&str],
) -> Process {
    let home = processes.folder().join(name);
    std::fs::create_dir_all(&home).unwrap();
    let mut start = vec![
        format!("hostname {name} && exec \"$@\""),
        "sh".to_owned(),
        crate::kit::program::WAFT.to_owned(),
    ];
    let root = store.root.to_string();
    let all = ["agent", "start", "--name", name, "--root", &root];
    start.extend(all.iter().chain(words).map(|word| (*word).to_owned()));
    let mut command = Command::new("unshare");
    command
        .args(["--map-root-user", "--uts", "sh", "-c"])
        .args(start)
        .args(["--server", processes.client.url()])
        .args(["--token", processes.token()])
        .env("WAFT_HOME", &home)
        .env_remove("WAFT__SERVER__URL")
        .env_remove("WAFT__SERVER__TOKEN");
    Process::spawn(&mut command)
}

/// The keys of a bucket expire and are renewed in the file where the AWS tools keep them: who opened it before
/// goes on. Moto takes any key, so a proxy before it knows which one holds.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_of_a_bucket_are_renewed_under_an_open_storage() {
    let server = StorageServer::start(Kind::S3).await;
    let (proxy, valid) = server.behind_key("first").await;
    let home = tempfile::tempdir().unwrap();
    let aws = home.path().join(".aws");
    std::fs::create_dir(&aws).unwrap();
    let write = |id: &str| {
        let text = format!("[default]\naws_access_key_id = {id}\naws_secret_access_key = s\n");
        std::fs::write(aws.join("credentials"), text).unwrap();
    };
    write("first");
    let access = Access {
        s3_endpoint: Some(format!("http://{proxy}")),
        home: Some(home.path().to_owned()),
        ..Access::default()
    };
    let storage = Storage::open(&server.root, &access).unwrap();
    let results = Results::open(&server.root, "mira", &access, Clock::default()).unwrap();
    let outputs = TaskCache::beside(&results);
    let value = RunValue::json("[1]");
    let first = results.append(&value).await.unwrap();
    storage.reach().await.unwrap();

    *valid.lock().unwrap() = "second".to_owned();
    let refused = results.append(&value).await.unwrap_err();
    assert!(
        matches!(refused, StorageError::Denied { .. }),
        "{refused:?}"
    );
    assert!(storage.list().await.unwrap().try_next().await.is_err());
    write("second");
    assert_eq!(results.read(&first).await.unwrap(), value);
    let found: Vec<_> = storage.list().await.unwrap().try_collect().await.unwrap();
    assert_eq!(found.len(), 1, "{found:?}");

    *valid.lock().unwrap() = "third".to_owned();
    write("third");
    let key = CacheKey {
        project: "demo",
        flow: "f",
        task: "t",
        by: CacheBy::Named("k", None),
    };
    outputs.put(&key, &value, None).await.unwrap();
    assert_eq!(outputs.get(&key, Timestamp::UNIX_EPOCH).await, Some(value));
    results.delete(&first.segment).await.unwrap();
    let gone = results.read(&first).await.unwrap_err();
    assert!(matches!(gone, StorageError::NotFound { .. }), "{gone:?}");
}
