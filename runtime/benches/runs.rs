//! How many flow runs a second go through server and agent, and how soon a run starts.
//!
//! Everything is real: a server on a database that keeps what it acknowledges (an SQLite file, then a
//! PostgreSQL beside it), its HTTP API on loopback, one agent and then three with sandboxes, the
//! smallest flow (one task that answers its parameter). Not a statistic of tiny samples but of whole
//! bursts, so it is a plain program: medians over several rounds.
//!
//! All of it shares the cores of this machine and one process: what three agents cost beside one is
//! what their calls cost. `cargo xtask bench runs`; `sqlite` or `postgresql` measures that one alone.

#![expect(clippy::print_stdout, reason = "a bench prints what it measured")]
#![expect(clippy::unwrap_used, reason = "a bench that cannot go on stops here")]
#![expect(
    clippy::disallowed_methods,
    reason = "a bench measures real time, and may read how it was started"
)]

#[path = "kit/mod.rs"]
mod kit;

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
use waft::server;
use waft::storage::{ArtifactCache, Root, Storage};
use waft::wire::{ListQuery, Location, NewFlowRun, NewProject, Registration, WatchQuery};

use kit::{Database, Databases, guests, quantile};

const BURST: usize = 2_000;
const ROUNDS: usize = 5;
const STARTS: usize = 300;
/// Clients that make runs at one time.
const CREATORS: usize = 16;
const SLOTS: usize = 128;
/// How many agents there are at one time, one measurement after the other.
const AGENTS: [usize; 2] = [1, 3];

struct Bench {
    client: Client,
    sandbox: Sandbox,
    database: Database,
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
    println!(
        "{cores} cores, {SLOTS} slots an agent, bursts of {BURST} runs of the smallest flow, {ROUNDS} rounds"
    );
    for databases in Databases::asked("runs").await {
        for agents in AGENTS {
            println!("{databases}, agents: {agents}");
            measure_on(databases.make().await, agents, cores).await;
        }
    }
}

async fn measure_on(database: Database, agents: usize, cores: usize) {
    let server = server::start(database.settings(Clock::default()))
        .await
        .unwrap();
    let url = format!("http://{}", server.addr);
    let client = Client::new(&url, server.first_token.clone()).unwrap();
    let code = database.folder.path().join("code");
    let slots = SLOTS * agents;
    let sandbox = Sandbox::new(Settings::new(Compiler::InProcess, code, slots)).unwrap();
    let bench = Bench {
        client,
        sandbox,
        database,
        cores,
    };
    bench.register("echo").await;

    let mut waiting = Vec::new();
    for _ in 0..ROUNDS {
        waiting.push(bench.waiting_burst(agents).await);
    }
    report("runs/s, all waiting when the agents come", &mut waiting);

    let at_work = bench.agents(agents).await;
    bench.start().await;
    let mut live = Vec::new();
    for _ in 0..ROUNDS {
        live.push(bench.live_burst().await);
    }
    let what = format!("runs/s, made by {CREATORS} clients while they work");
    report(&what, &mut live);

    let mut starts = Vec::new();
    for _ in 0..STARTS {
        starts.push(bench.start().await);
    }
    let (half, most) = (quantile(&mut starts, 0.5), quantile(&mut starts, 0.99));
    println!(
        "  create to Running, seen by a watching client, {STARTS} runs one after the other: \
         p50 {half:.2} ms, p99 {most:.2} ms"
    );
    drop(at_work);
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
        Root::local(&self.database.folder.path().join("flows")).unwrap()
    }

    async fn agents(&self, count: usize) -> Vec<Running> {
        let mut agents = Vec::new();
        for nth in 0..count {
            agents.push(self.agent(format!("bench-{nth}")).await);
        }
        agents
    }

    async fn agent(&self, name: String) -> Running {
        let home = self.database.folder.path().join(&name);
        let settings = AgentSettings {
            client: self.client.clone(),
            name,
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

    /// Makes runs, then starts agents; returns how many were over each second.
    async fn waiting_burst(&self, agents: usize) -> f64 {
        self.create(BURST).await;
        let begin = Instant::now();
        let agents = self.agents(agents).await;
        self.all_over().await;
        let rate = BURST as f64 / begin.elapsed().as_secs_f64();
        for mut agent in agents {
            agent.stop();
            agent.wait().await.unwrap();
        }
        rate
    }

    /// Makes runs while agents work; returns how many were made and over each second.
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
    let median = quantile(rates, 0.5);
    let (least, most) = (rates[0], rates[rates.len() - 1]);
    println!("  {what}: {median:.0} (from {least:.0} to {most:.0})");
}
