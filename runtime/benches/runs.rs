//! How many flow runs a second go through server and agent, and how soon a run starts.
//!
//! Everything is real: a server on a durable SQLite file, its HTTP API on loopback, an agent with
//! sandboxes, the smallest flow (one task that answers its parameter). Not a statistic of tiny
//! samples but of whole bursts, so it is a plain program: medians over several rounds.

#![expect(clippy::print_stdout, reason = "a bench prints what it measured")]
#![expect(clippy::unwrap_used, reason = "a bench that cannot go on stops here")]
#![expect(
    clippy::disallowed_methods,
    reason = "a bench measures real time, and may read how it was started"
)]

#[path = "../../tests/it/kit/guests.rs"]
#[expect(dead_code, reason = "shared with the tests, which use more of it")]
mod guests;

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::{StreamExt as _, stream};
use serde_json::json;

use waft::agent::{Agent, AgentSettings, Running};
use waft::client::Client;
use waft::clock::Clock;
use waft::config::Access;
use waft::model::artifact::Digest;
use waft::model::id::FlowRunId;
use waft::model::label::Labels;
use waft::model::limit::{ARTIFACT_BYTES_MAX, Limits};
use waft::model::state::State;
use waft::sandbox::{Compiler, Powers, Sandbox, Settings};
use waft::server::{self, ServerSettings};
use waft::storage::{ArtifactCache, Root, Storage};
use waft::wire::{ListQuery, Location, NewFlowRun, NewProject, Registration, WatchQuery};

const BURST: usize = 2_000;
const ROUNDS: usize = 5;
const STARTS: usize = 300;
/// Clients that make runs at one time.
const CREATORS: usize = 16;
const SLOTS: usize = 128;

struct Bench {
    client: Client,
    sandbox: Sandbox,
    home: tempfile::TempDir,
    cores: usize,
}

fn main() {
    if std::env::args().any(|argument| argument == "--test" || argument == "--list") {
        return;
    }
    let cores = std::thread::available_parallelism().map_or(2, usize::from);
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .unwrap()
        .block_on(measure(cores));
}

async fn measure(cores: usize) {
    let home = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let server = server::start(ServerSettings {
        listen: ([127, 0, 0, 1], 0).into(),
        db: home.path().join("waft.db").into(),
        lease: Duration::from_secs(30),
        hosts: Vec::new(),
        results_keep: server::RESULTS_KEEP,
        runs_keep: server::RUNS_KEEP,
        clock: Clock::default(),
    })
    .await
    .unwrap();
    let url = format!("http://{}", server.addr);
    let client = Client::new(&url, server.first_token.clone()).unwrap();
    let code = home.path().join("code");
    let sandbox = Sandbox::new(Settings::new(Compiler::InProcess, code, SLOTS)).unwrap();
    let bench = Bench {
        client,
        sandbox,
        home,
        cores,
    };
    bench.register("echo").await;

    println!(
        "{cores} cores, {SLOTS} slots, bursts of {BURST} runs of the smallest flow, {ROUNDS} rounds"
    );
    let mut waiting = Vec::new();
    for _ in 0..ROUNDS {
        waiting.push(bench.waiting_burst().await);
    }
    report(
        "flow runs/s, all waiting when the agent comes",
        &mut waiting,
    );

    let agent = bench.agent().await;
    bench.start().await;
    let mut live = Vec::new();
    for _ in 0..ROUNDS {
        live.push(bench.live_burst().await);
    }
    report(
        "flow runs/s, made by 16 clients while the agent works",
        &mut live,
    );

    let mut starts = Vec::new();
    for _ in 0..STARTS {
        starts.push(bench.start().await);
    }
    starts.sort_by(f64::total_cmp);
    println!("create to Running, seen by a watching client, {STARTS} runs one after the other:");
    println!("  p50 {:.2} ms", starts[STARTS / 2]);
    println!("  p99 {:.2} ms", starts[STARTS * 99 / 100]);
    drop(agent);
    server.shutdown().await;
}

impl Bench {
    async fn register(&self, name: &str) {
        let file = guests::guest(name).unwrap();
        let bytes = std::fs::read(&file).unwrap();
        let (artifact, artifact_size) = (Digest::of(&bytes), bytes.len() as u64);
        let prepared = self.sandbox.prepare(artifact, &file).await.unwrap();
        let definition = self.sandbox.describe(&prepared).await.unwrap().definition;
        let root = self.root();
        let storage = Storage::open(&root, &Access::default()).unwrap();
        let put = storage
            .put_artifact(&file, artifact, artifact_size, "echo")
            .await
            .unwrap();
        let project = NewProject {
            name: "bench".to_owned(),
            description: String::new(),
        };
        self.client.create_project(&project).await.unwrap();
        let registration = Registration {
            definition,
            artifact,
            artifact_size,
            location: Location {
                root: root.to_string(),
                key: put.key,
            },
            labels: Labels::default(),
            is_paused: false,
        };
        self.client.register("bench", &registration).await.unwrap();
    }

    fn root(&self) -> Root {
        Root::local(&self.home.path().join("flows")).unwrap()
    }

    async fn agent(&self) -> Running {
        let home = self.home.path().to_owned();
        let settings = AgentSettings {
            client: self.client.clone(),
            name: "bench".to_owned(),
            hostname: "bench".to_owned(),
            labels: Labels::default(),
            has_auto_labels: true,
            roots: vec![self.root()],
            results: Root::local(&home.join("results")).unwrap(),
            access: Access::default(),
            artifact_max: ARTIFACT_BYTES_MAX,
            projects: None,
            slots: SLOTS,
            parallel: self.cores,
            powers: Arc::new(Powers::default()),
            ceiling: Limits::CEILING,
            home,
            artifact_cache_max: ArtifactCache::BYTES_MAX,
            sandbox: self.sandbox.clone(),
            clock: Clock::default(),
            is_once: false,
        };
        Agent::start(settings).await.unwrap()
    }

    /// Makes runs, then starts an agent; returns how many were over each second.
    async fn waiting_burst(&self) -> f64 {
        self.create(BURST).await;
        let begin = Instant::now();
        let mut agent = self.agent().await;
        self.all_over().await;
        let rate = BURST as f64 / begin.elapsed().as_secs_f64();
        agent.stop();
        agent.wait().await.unwrap();
        rate
    }

    /// Makes runs while an agent works; returns how many were made and over each second.
    async fn live_burst(&self) -> f64 {
        let begin = Instant::now();
        self.create(BURST).await;
        self.all_over().await;
        BURST as f64 / begin.elapsed().as_secs_f64()
    }

    async fn create(&self, count: usize) {
        stream::iter(0..count)
            .map(|_| self.create_one())
            .buffer_unordered(CREATORS)
            .count()
            .await;
    }

    async fn create_one(&self) -> FlowRunId {
        let new = NewFlowRun {
            flow: "echo".to_owned(),
            parameters: [("text".to_owned(), json!("hi"))].into(),
            ..NewFlowRun::default()
        };
        self.client.create_flow_run(&new).await.unwrap().id
    }

    async fn all_over(&self) {
        for state in [State::Scheduled, State::Claimed, State::Running] {
            while self.is_any(state).await {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
        assert!(!self.is_any(State::Failed).await && !self.is_any(State::Crashed).await);
    }

    async fn is_any(&self, state: State) -> bool {
        let query = ListQuery {
            state: Some(state.to_string()),
            limit: Some(1),
            ..ListQuery::default()
        };
        !self
            .client
            .list_flow_runs(&query)
            .await
            .unwrap()
            .items
            .is_empty()
    }

    /// Makes one run and returns the milliseconds until it was seen to have started.
    async fn start(&self) -> f64 {
        let begin = Instant::now();
        let id = self.create_one().await;
        let mut query = WatchQuery {
            after: Some(0),
            wait_seconds: 30,
        };
        loop {
            let run = self.client.watch_flow_run(id, &query).await.unwrap();
            if run.started_at.is_some() {
                let elapsed = begin.elapsed().as_secs_f64() * 1000.0;
                self.all_over().await;
                return elapsed;
            }
            query.after = Some(run.transition);
        }
    }
}

fn report(what: &str, rates: &mut [f64]) {
    rates.sort_by(f64::total_cmp);
    let median = rates[rates.len() / 2];
    let (least, most) = (rates[0], rates[rates.len() - 1]);
    println!("{what}: {median:.0} (from {least:.0} to {most:.0})");
}

/// Returns the root of the repository, where the guests are named.
fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}
