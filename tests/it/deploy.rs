//! Universal deploy: the same artifact from every storage, through the real program as a user types it.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use serde_json::{Value, json};
use waft::config::Config;
use waft::model::artifact::Digest;
use waft::model::state::State;
use waft::storage::{ArtifactCache, Kind, Storage, key};
use waft::wire::FlowRun;

use crate::kit::guests::{guest, servers};
use crate::kit::program::{Process, Processes};
use crate::kit::repository;
use crate::kit::servers::StorageServer;

const LEASE: Duration = Duration::from_secs(30);

/// A server, agents and commands that reach one storage.
struct World {
    processes: Processes,
    store: StorageServer,
}

impl World {
    async fn new(kind: Kind) -> Self {
        Self {
            processes: Processes::start(LEASE).await,
            store: StorageServer::start(kind).await,
        }
    }

    fn waft<const N: usize>(&self, words: [&str; N]) -> Output {
        let mut command = self.processes.waft(words);
        command.envs(self.store.environment()).output().unwrap()
    }

    fn root(&self) -> String {
        self.store.root.to_string()
    }

    /// Starts an agent with a home of its own, which has the storage for a root.
    fn agent(&self, name: &str, words: &[&str]) -> Process {
        self.agent_with(name, words, &[])
    }

    fn agent_with(&self, name: &str, words: &[&str], variables: &[(&str, &str)]) -> Process {
        let home = self.processes.folder().join(name);
        std::fs::create_dir_all(&home).unwrap();
        let root = self.root();
        let mut command = self
            .processes
            .waft(["agent", "start", "--name", name, "--root", &root]);
        command
            .args(words)
            .args(["--server", self.processes.client.url()]);
        command.args(["--token", self.processes.token()]);
        command
            .env("WAFT_HOME", &home)
            .envs(self.store.environment())
            .envs(variables.iter().copied());
        Process::spawn(&mut command)
    }

    fn register(&self, file: &Path) -> Output {
        self.register_place(&file.display().to_string())
    }

    fn register_place(&self, place: &str) -> Output {
        let root = self.root();
        self.waft([
            "register",
            place,
            "--project",
            "demo",
            "--storage",
            &root,
            "--yes",
            "--json",
        ])
    }
}

fn object(output: &Output) -> Value {
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Registered once into each storage, the flow runs from each with an agent that has an empty cache.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flow_is_registered_to_each_storage_and_runs_from_it() {
    for kind in [Kind::Local, Kind::S3, Kind::Gcs, Kind::Azure, Kind::Oci] {
        let world = World::new(kind).await;
        let registered = object(&world.register(&guest("echo").unwrap()));
        assert_eq!(registered["status"], "registered", "{kind:?}");
        assert_eq!(registered["storage"], world.root());
        let again = object(&world.register(&guest("echo").unwrap()));
        assert_eq!(again["status"], "unchanged", "{kind:?}");

        let _mira = world.agent("mira", &[]);
        let run = world.processes.run("echo", json!({"text": "there"})).await;
        let ended = world.processes.ends_as(run, State::Success).await;
        assert_eq!(world.processes.result(&ended), json!("there"), "{kind:?}");

        let root = world.root();
        let verified = object(&world.waft(["storage", "verify", &root, "--json"]));
        assert_eq!(verified["artifacts"], 1, "{kind:?}: {verified}");
        assert_eq!(verified["findings"], json!([]), "{kind:?}");
        let listed = object(&world.waft(["storage", "ls", &root, "--json"]));
        assert_eq!(listed[0]["what"], "artifact", "{kind:?}: {listed}");
    }
}

/// One changed byte in a storage: the run is Crashed with storage, key and both digests, and `verify` finds it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_artifact_crashes_the_run_and_is_found() {
    for kind in [Kind::S3, Kind::Oci] {
        let world = World::new(kind).await;
        let file = guest("echo").unwrap();
        object(&world.register(&file));
        let mut bytes = std::fs::read(&file).unwrap();
        let digest = Digest::of(&bytes);
        let key = key::artifact(digest);
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        let got = Digest::of(&bytes);
        world.store.plant(&key, bytes).await;

        let _mira = world.agent("mira", &[]);
        let run = world.processes.run("echo", json!({"text": "x"})).await;
        let ended = world.processes.ends_as(run, State::Crashed).await;
        for word in [
            world.root(),
            key.clone(),
            digest.to_string(),
            got.to_string(),
        ] {
            assert!(
                ended.message.contains(&word),
                "{kind:?}: {word} in {}",
                ended.message
            );
        }
        let root = world.root();
        let verified = world.waft(["storage", "verify", &root]);
        assert_eq!(verified.status.code(), Some(1), "{kind:?}");
        let said = String::from_utf8_lossy(&verified.stdout).into_owned();
        assert!(
            said.contains(&key) && said.contains("damaged"),
            "{kind:?}: {said}"
        );
    }
}

/// What lies in a storage already is registered where it is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_stored_already_is_registered_without_a_copy() {
    for kind in [Kind::S3, Kind::Http, Kind::Oci] {
        let world = World::new(kind).await;
        let bytes = std::fs::read(guest("echo").unwrap()).unwrap();
        let root = world.root();
        let place = match kind {
            Kind::Oci => {
                // As another tool would: under a tag of its own.
                let storage = Storage::open(&world.store.root, &world.store.access).unwrap();
                let digest = Digest::of(&bytes);
                let file = guest("echo").unwrap();
                storage
                    .put_artifact(&file, digest, bytes.len() as u64, "echo")
                    .await
                    .unwrap();
                let version = ("demo", "echo", 7);
                let tag = storage.name_version(digest, version).await.unwrap();
                format!("{root}:{}", tag.unwrap())
            }
            _ => {
                world.store.plant("by-hand/echo.wasm", bytes).await;
                format!("{}/by-hand/echo.wasm", root.trim_end_matches('/'))
            }
        };
        let registered = object(&world.register_place(&place));
        assert_eq!(registered["storage"], root, "{kind:?}");
        if kind != Kind::Http {
            let verified = object(&world.waft(["storage", "verify", &root, "--json"]));
            assert_eq!(verified["artifacts"], 1, "{kind:?}: {verified}");
        }
        let _mira = world.agent("mira", &[]);
        let run = world
            .processes
            .run("echo", json!({"text": "in place"}))
            .await;
        let ended = world.processes.ends_as(run, State::Success).await;
        assert_eq!(
            world.processes.result(&ended),
            json!("in place"),
            "{kind:?}"
        );
    }
}

/// An agent takes only what lies under its own roots, and `explain` says which one is missing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_without_the_root_is_never_given_the_flow() {
    let world = World::new(Kind::S3).await;
    object(&world.register(&guest("echo").unwrap()));
    let _other = world.processes.agent("other");
    let run = world.processes.run("echo", json!({"text": "x"})).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    let explained = world.waft(["flow-run", "explain", &run.to_string()]);
    let said = String::from_utf8_lossy(&explained.stdout).into_owned();
    assert!(said.contains("s3-flow-storage"), "{said}");
    assert!(said.contains(&world.root()), "{said}");
    let _mira = world.agent("mira", &[]);
    world.processes.ends_as(run, State::Success).await;
}

/// An agent does not offer a root that is out of reach, and takes it up again when it answers.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_root_out_of_reach_is_not_offered() {
    let mut world = World::new(Kind::Oci).await;
    object(&world.register(&guest("echo").unwrap()));
    world.store.stop();
    let _mira = world.agent("mira", &[]);
    let run = world.processes.run("echo", json!({"text": "x"})).await;
    world.processes.until_polling("mira").await;
    let explained = world.waft(["flow-run", "explain", &run.to_string()]);
    let said = String::from_utf8_lossy(&explained.stdout).into_owned();
    let root = world.root();
    for words in [
        "agent `mira` waits for a storage",
        &root,
        "it looks again in",
        "goes on by itself",
    ] {
        assert!(said.contains(words), "{words}: {said}");
    }
    assert!(!said.contains("start one with it"), "{said}");
    let shown = world.waft(["agent", "show", "mira"]);
    let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
    let rests = format!("rests     cannot reach `{root}`: ");
    assert!(shown.contains(&rests), "{shown}");
    drop(_mira);
    world.store.resume().await;
    let _again = world.agent("mira", &[]);
    world.processes.ends_as(run, State::Success).await;
}

/// A half-done run goes on on another machine, from results that lie in a bucket.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_is_resumed_elsewhere_from_results_in_a_bucket() {
    let world = World::new(Kind::S3).await;
    object(&world.register(&guest("sides").unwrap()));
    let results = format!("{}/results", world.root());
    let out = format!("{}::/out:rw", world.processes.out().display());
    let start = |name: &str| {
        let home = world.processes.folder().join(name);
        std::fs::create_dir_all(&home).unwrap();
        std::fs::write(
            home.join("config.toml"),
            format!("[results]\nroot = \"{results}\"\n"),
        )
        .unwrap();
        world.agent(name, &["--allow-dir", &out])
    };
    let first = start("first");
    let run = world.processes.run("sides", json!({"millis": 1500})).await;
    world.processes.until_successes(run, 1).await;
    first.kill();
    let _second = start("second");
    let ended = world.processes.ends_as(run, State::Success).await;
    assert!(ended.claims >= 2, "{}", ended.claims);
    let tasks = world.processes.tasks(run).await;
    assert!(
        tasks.lines().next().unwrap().ends_with("Success 1"),
        "{tasks}"
    );
}

/// What we push another client pulls, and what it pushes is registered where it is, under the layer types of
/// before the CNCF layout too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_registry_is_shared_with_other_clients() {
    let world = World::new(Kind::Oci).await;
    let file = guest("echo").unwrap();
    object(&world.register(&file));
    let image = world.root().replace("oci://", "");
    let out = world.processes.folder().join("pulled");
    let client = "import oras.client, sys\n\
        c = oras.client.OrasClient(insecure=True, tls_verify=False)\n\
        verb, target, rest = sys.argv[1:4]\n\
        if verb == 'pull': c.pull(target=target, outdir=rest)\n\
        else: c.push(target=target, files=[rest], disable_path_validation=True)\n";
    let oras = |verb: &str, target: &str, rest: &str| {
        let mut python = Command::new(servers().unwrap().join("python/bin/python"));
        let done = python
            .args(["-c", client, verb, target, rest])
            .output()
            .unwrap();
        assert!(
            done.status.success(),
            "{}",
            String::from_utf8_lossy(&done.stderr)
        );
    };
    oras(
        "pull",
        &format!("{image}:demo.echo.1"),
        &out.display().to_string(),
    );
    let pulled = std::fs::read(out.join("echo.wasm")).unwrap();
    assert!(pulled == std::fs::read(&file).unwrap());

    for (tag, kind) in [
        ("one", "application/wasm"),
        ("two", "application/vnd.wasm.content.layer.v1+wasm"),
        ("three", "application/vnd.module.wasm.content.layer.v1+wasm"),
    ] {
        let place = guest("maps").unwrap();
        oras(
            "push",
            &format!("{image}:{tag}"),
            &format!("{}:{kind}", place.display()),
        );
        let name = format!("oci://{image}:{tag}");
        let registered = world.waft(["register", &name, "--project", "demo", "--yes", "--json"]);
        let registered = object(&registered);
        assert_eq!(registered["storage"], world.root(), "{tag}");
    }
    let _mira = world.agent("mira", &[]);
    let run = world.processes.run("maps", json!({})).await;
    world.processes.ends_as(run, State::Success).await;
    let text = world.processes.folder().join("text");
    std::fs::write(&text, "no component").unwrap();
    oras(
        "push",
        &format!("{image}:text"),
        &format!("{}:text/plain", text.display()),
    );
    let name = format!("oci://{image}:text");
    let refused = world.waft(["register", &name, "--project", "demo", "--yes"]);
    assert_eq!(refused.status.code(), Some(1));
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(said.contains("no wasm layer"), "{said}");
}

/// Docker's credential helpers are asked, and what they know is never said.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_credential_helper_opens_a_registry() {
    let world = World {
        processes: Processes::start(LEASE).await,
        store: StorageServer::start_locked(Kind::Oci).await,
    };
    // A registry knows no repository into which nothing was put.
    let file = guest("echo").unwrap();
    let bytes = std::fs::read(&file).unwrap();
    let storage = Storage::open(&world.store.root, &world.store.access).unwrap();
    let put = storage.put_artifact(&file, Digest::of(&bytes), bytes.len() as u64, "echo");
    put.await.unwrap();
    let bin = world.processes.folder().join("bin");
    std::fs::create_dir(&bin).unwrap();
    let helper = bin.join("docker-credential-vault");
    let says = "#!/bin/sh\ncat > /dev/null\necho '{\"ServerURL\":\"\",\"Username\":\"ada\",\"Secret\":\"'$SECRET'\"}'\n";
    std::fs::write(&helper, says).unwrap();
    std::fs::set_permissions(&helper, PermissionsExt::from_mode(0o755)).unwrap();
    let config = json!({ "credHelpers": { world.store.root.place(): "vault" } });
    world
        .store
        .write_home(".docker/config.json", &config.to_string());
    let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap());
    let list = |secret: &str| {
        let root = world.root();
        let mut command = world.processes.waft(["storage", "ls", &root]);
        command
            .envs(world.store.environment())
            .env("PATH", &path)
            .env("SECRET", secret);
        command.output().unwrap()
    };
    let listed = list("secret");
    assert!(listed.status.success(), "{listed:?}");
    let refused = list("swordfish");
    assert_eq!(refused.status.code(), Some(1));
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(
        said.contains("docker login") && !said.contains("swordfish"),
        "{said}"
    );
}

/// Who registers or runs what is larger than allowed is told the limit and the setting.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_artifact_that_is_too_large_is_told() {
    let world = World::new(Kind::S3).await;
    let (root, file) = (world.root(), guest("echo").unwrap().display().to_string());
    let words = [
        "register",
        &file,
        "--project",
        "demo",
        "--storage",
        &root,
        "--yes",
    ];
    let mut command = world.processes.waft(words);
    command
        .envs(world.store.environment())
        .env("WAFT__AGENT__MAX__ARTIFACT", "10KiB");
    let refused = command.output().unwrap();
    assert_eq!(refused.status.code(), Some(1));
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(
        said.contains("at most 10240") && said.contains("agent.max.artifact"),
        "{said}"
    );

    object(&world.register(&guest("echo").unwrap()));
    let _small = world.agent_with("small", &[], &[("WAFT__AGENT__MAX__ARTIFACT", "10KiB")]);
    let run = world.processes.run("echo", json!({"text": "x"})).await;
    let declined = world.processes.until(run, "a decline", |run| {
        run.message.contains("agent.max.artifact")
    });
    declined.await;
}

/// One flow whose bytes are missing does not take the root from flows that need something else as well.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_missing_object_does_not_take_the_root_away() {
    let world = World::new(Kind::S3).await;
    let registered = object(&world.register(&guest("maps").unwrap()));
    let hex = registered["artifact"].as_str().unwrap();
    let hex = hex.replace("sha256:", "");
    world
        .store
        .remove(&format!("sha256/{}/{hex}", &hex[..2]))
        .await;
    let (root, file) = (world.root(), guest("echo").unwrap());
    let file = file.display().to_string();
    let words = [
        "register",
        &file,
        "--project",
        "demo",
        "--storage",
        &root,
        "--label",
        "other",
        "--yes",
        "--json",
    ];
    object(&world.waft(words));
    let _mira = world.agent("mira", &["--label", "other"]);
    let lost = world.processes.run("maps", json!({})).await;
    let declined = |run: &FlowRun| run.message.contains("cannot fetch");
    world.processes.until(lost, "a decline", declined).await;
    let run = world.processes.run("echo", json!({"text": "x"})).await;
    world.processes.ends_as(run, State::Success).await;
}

/// A command that is registered where it lies is called after its file there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stored_command_has_the_name_of_its_file() {
    let world = World::new(Kind::Http).await;
    let bytes = std::fs::read(guest("wordcount").unwrap()).unwrap();
    world.store.plant("tools/wordcount.wasm", bytes).await;
    let place = format!("{}tools/wordcount.wasm", world.root());
    let registered = world.waft(["register", &place, "--project", "demo", "--yes", "--json"]);
    let registered = object(&registered);
    assert_eq!(registered["flow"], "wordcount");
}

/// A component of some 20 MB that componentize-py made of Python goes through a bucket like any other.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_python_component_is_deployed_like_any_other() {
    let world = World::new(Kind::S3).await;
    let file = world.processes.folder().join("hello.wasm");
    let guests = repository().join("tests/guests/python");
    let made = Command::new(servers().unwrap().join("python/bin/componentize-py"))
        .arg("-d")
        .arg(repository().join("wit"))
        .args(["-w", "flow", "componentize", "app", "-p"])
        .arg(guests)
        .arg("-o")
        .arg(&file)
        .output()
        .unwrap();
    assert!(made.status.success(), "{made:?}");
    let registered = object(&world.register(&file));
    assert!(
        registered["size"].as_u64().unwrap() > 10_000_000,
        "{registered}"
    );
    let _mira = world.agent("mira", &[]);
    let run = world
        .processes
        .run("py-hello", json!({"name": "Ada"}))
        .await;
    let ended = world.processes.ends_as(run, State::Success).await;
    assert_eq!(world.processes.result(&ended), json!("Hello, Ada!"));
}

/// 100 MB go up and down in chunks: who moves them does not grow by as much.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_megabytes_take_no_memory_on_their_way() {
    for kind in [Kind::Azure, Kind::Oci] {
        let server = StorageServer::start(kind).await;
        // Other tests use memory in this process, so it is measured in one of its own.
        let mut alone = Command::new(std::env::current_exe().unwrap());
        alone.args(["--exact", "deploy::moves_a_hundred_megabytes", "--ignored"]);
        alone
            .env("WAFT_TEST_ROOT", server.root.to_string())
            .envs(server.environment());
        let moved = tokio::task::spawn_blocking(move || alone.output())
            .await
            .unwrap()
            .unwrap();
        let said = String::from_utf8_lossy(&moved.stdout).into_owned();
        assert!(
            moved.status.success() && said.contains("1 passed"),
            "{kind:?}: {said}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "the test above runs it, in a process of its own"]
async fn moves_a_hundred_megabytes() {
    const SIZE: usize = 100_000_000;

    let root = std::env::var("WAFT_TEST_ROOT").unwrap().parse().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("large");
    let bytes: Vec<u8> = (0..SIZE).map(|n| (n * 7 % 251) as u8).collect();
    std::fs::write(&file, &bytes).unwrap();
    let digest = Digest::of(&bytes);
    drop(bytes);
    let access = Config::load().unwrap().access();
    let storage = Storage::open(&root, &access).unwrap();
    let cache = ArtifactCache::open(&folder.path().join("cache")).unwrap();
    let before = anonymous_memory();
    let watch = Peak::start();
    let put = storage
        .put_artifact(&file, digest, SIZE as u64, "large")
        .await
        .unwrap();
    storage
        .fetch_artifact(&put.key, digest, SIZE as u64, &cache)
        .await
        .unwrap();
    let grown = watch.end().saturating_sub(before);
    assert!(grown < 50_000_000, "it grew by {grown} bytes");
}

/// Returns the memory of this process that belongs to no file.
fn anonymous_memory() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("RssAnon:"));
    let kib: u64 = line
        .unwrap()
        .trim()
        .trim_end_matches(" kB")
        .parse()
        .unwrap();
    kib * 1024
}

/// Watches how high the memory of this process rises.
struct Peak {
    ended: std::sync::mpsc::Sender<()>,
    thread: std::thread::JoinHandle<u64>,
}

impl Peak {
    fn start() -> Self {
        let (ended, end) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || {
            let mut most = 0;
            while end.recv_timeout(Duration::from_millis(5)).is_err() {
                most = most.max(anonymous_memory());
            }
            most
        });
        Self { ended, thread }
    }

    fn end(self) -> u64 {
        self.ended.send(()).unwrap();
        self.thread.join().unwrap()
    }
}
