//! A server, an agent and a flow in one program: no port is called, no other process is needed.
//!
//! ```text
//! cargo run -p waft --example embed -- hello.wasm name=Ada
//! ```
//!
//! Takes a component that is a flow, and parameters as `NAME=TEXT`; prints what the flow returns.

#![expect(clippy::print_stdout, reason = "what it is for")]
#![expect(clippy::print_stderr, reason = "what it is for")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, bail};
use waft::client::Client;
use waft::clock::Clock;
use waft::model::artifact::Digest;
use waft::model::label::Labels;
use waft::server::{self, RESULTS_KEEP, ServerSettings};
use waft::storage::{Results, Storage};
use waft::wire::{Location, NewFlowRun, NewProject, Registration, WatchQuery};
use waft::{Agent, AgentSettings};

const PROJECT: &str = "embedded";

fn main() -> ExitCode {
    // First of all: the sandbox starts this program again to compile, and that child ends here.
    if let Some(code) = waft::child_main() {
        return code;
    }
    let threads = tokio::runtime::Runtime::new();
    let ended = threads
        .map_err(anyhow::Error::from)
        .and_then(|threads| threads.block_on(run(std::env::args().skip(1).collect())));
    match ended {
        Ok(result) => {
            println!("{result}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Runs a flow from its bytes to its result.
async fn run(arguments: Vec<String>) -> anyhow::Result<String> {
    let (file, parameters) = arguments
        .split_first()
        .context("expected a component, and its parameters as NAME=TEXT")?;
    let folder = tempfile::tempdir()?;

    // A server on a free port of this machine. One that runs elsewhere would do as well:
    // `Client::new("https://flows.example.org", Some(token))`.
    let server = server::start(ServerSettings {
        listen: ([127, 0, 0, 1], 0).into(),
        db: folder.path().join("server.db").into(),
        lease: Duration::from_secs(30),
        results_keep: RESULTS_KEEP,
        runs_keep: server::RUNS_KEEP,
        hosts: Vec::new(),
        clock: Clock::default(),
    })
    .await?;
    let client = Client::in_process(server.router.clone(), server.first_token.clone());
    client
        .create_project(&NewProject {
            name: PROJECT.to_owned(),
            description: String::new(),
        })
        .await?;

    let settings = AgentSettings {
        name: "in-process".to_owned(),
        slots: 2,
        ..AgentSettings::new(client.clone(), &folder.path().join("home"))?
    };
    let flow = register(&client, &settings, &PathBuf::from(file)).await?;
    let mut agent = Agent::start(settings.clone()).await?;
    let result = result_of(&client, &settings, &flow, parameters).await;

    agent.stop();
    agent.wait().await?;
    // Whoever may still call it holds the server open.
    drop((agent, client, settings));
    server.shutdown().await;
    result
}

/// Puts a component where the agent fetches from, tells the server what it is, and returns its name.
async fn register(client: &Client, agent: &AgentSettings, file: &Path) -> anyhow::Result<String> {
    let bytes = std::fs::read(file).with_context(|| format!("reading `{}`", file.display()))?;
    let (digest, size) = (Digest::of(&bytes), bytes.len() as u64);
    let prepared = agent.sandbox.prepare(digest, file).await?;
    let definition = agent.sandbox.describe(&prepared).await?.definition;
    let root = &agent.roots[0];
    let storage = Storage::open(root, &agent.access)?;
    // The bytes first: nobody is to hear of a flow that cannot be fetched.
    let put = storage
        .put_artifact(file, digest, size, &definition.name)
        .await?;
    let name = definition.name.clone();
    let registration = Registration {
        definition,
        artifact: digest,
        artifact_size: size,
        location: Location {
            root: root.to_string(),
            key: put.key,
        },
        labels: Labels::default(),
        is_paused: false,
    };
    client.register(PROJECT, &registration).await?;
    Ok(name)
}

/// Makes a run, waits until it is over, and reads what it has returned.
async fn result_of(
    client: &Client,
    agent: &AgentSettings,
    flow: &str,
    parameters: &[String],
) -> anyhow::Result<String> {
    let mut given = BTreeMap::new();
    for parameter in parameters {
        let (name, text) = parameter
            .split_once('=')
            .with_context(|| format!("`{parameter}` is not NAME=TEXT"))?;
        given.insert(name.to_owned(), text.into());
    }
    let mut run = client
        .create_flow_run(&NewFlowRun {
            flow: flow.to_owned(),
            parameters: given,
            ..NewFlowRun::default()
        })
        .await?;
    while !run.state.is_over() {
        let query = WatchQuery {
            after: Some(run.transition),
            wait_seconds: 30,
        };
        run = client.watch_flow_run(run.id, &query).await?;
    }
    let Some(reference) = &run.result else {
        bail!(
            "the run of `{flow}` ended as {}: {}",
            run.state,
            run.message
        );
    };
    let value = Results::look_up(reference, &agent.hostname, &agent.access).await?;
    Ok(String::from_utf8_lossy(&value.bytes).into_owned())
}
