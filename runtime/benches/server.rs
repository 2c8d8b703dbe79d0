//! How fast the server alone is: flow runs a second from their making to their last report, and what a
//! claim costs behind many waiting runs. Prints; asserts nothing about time.
//!
//! The agent here executes nothing: it claims and reports. `runs` measures server and agent together.

#![expect(clippy::print_stdout, reason = "a bench reports on the terminal")]
#![expect(clippy::unwrap_used, reason = "a bench that cannot go on stops here")]

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use serde_json::json;
use waft::client::Client;
use waft::clock::Clock;
use waft::model::artifact::Digest;
use waft::model::id::{FlowRunId, SessionId};
use waft::model::label::Labels;
use waft::model::requirement::Offer;
use waft::model::run::{FlowRunMoved, Happening, TaskRunKey, TaskRunMoved, Usage};
use waft::model::state::Event;
use waft::server::app::App;
use waft::server::db::flow_run::{self, New};
use waft::server::db::{DbError, flow_version};
use waft::server::{self, ServerSettings};
use waft::wire::{
    FlowRun, LeaseKey, Location, NewFlowRun, NewProject, NewSession, PROTOCOL, Poll, Registration,
    Report, ReportBatch,
};

const ROOT: &str = "file:///flows";
/// Flow runs of one measurement.
const RUNS: u64 = 8_000;
/// Callers that make runs at one time.
const MAKERS: u64 = 16;
/// Runs that the agent takes at one time.
const SLOTS: u32 = 64;

#[tokio::main(worker_threads = 2)]
async fn main() {
    flow_runs_a_second().await;
    cost_of_a_claim().await;
}

async fn flow_runs_a_second() {
    let folder = tempfile::tempdir().unwrap();
    let server = server::start(settings(&folder)).await.unwrap();
    let token = server.first_token.clone();
    let inside = Client::in_process(server.router.clone(), token.clone());
    let outside = Client::new(&format!("http://{}", server.addr), token).unwrap();
    prepare(&inside).await;
    let session = session(&inside).await;
    for round in 1..=3 {
        for (how, client) in [("in process", &inside), ("over loopback", &outside)] {
            let time = drive(client, session).await.as_secs_f64();
            println!(
                "round {round}, {how}: {:.0} flow runs/s",
                RUNS as f64 / time
            );
        }
    }
    drop((inside, outside));
    server.shutdown().await;
}

/// Makes runs, claims them as one agent with many slots, and reports what a flow of one task does.
async fn drive(client: &Client, session: SessionId) -> Duration {
    let clock = Clock::default();
    let begun = clock.monotonic();
    let maker = |client: Client| async move {
        for _ in 0..RUNS / MAKERS {
            client.create_flow_run(&new_run()).await.unwrap();
        }
    };
    let makers: Vec<_> = (0..MAKERS)
        .map(|_| tokio::spawn(maker(client.clone())))
        .collect();
    let mut done = 0;
    while done < RUNS {
        let poll = Poll {
            session_id: session,
            free_slots: SLOTS,
            wait_seconds: 5,
        };
        let claimed = client.poll(&poll).await.unwrap().flow_runs;
        done += claimed.len() as u64;
        let reports = claimed.iter().flat_map(|run| {
            let lease = LeaseKey {
                flow_run_id: run.flow_run_id,
                epoch: run.epoch,
            };
            let what = [
                flow(Event::Start),
                task(Event::Start),
                task(Event::Succeed),
                flow(Event::Succeed),
            ];
            (1..).zip(what).map(move |(number, what)| Report {
                lease,
                number,
                at: Timestamp::UNIX_EPOCH,
                what,
            })
        });
        let batch = ReportBatch {
            session_id: session,
            reports: reports.collect(),
        };
        assert!(client.report(&batch).await.unwrap().lost.is_empty());
    }
    for maker in makers {
        maker.await.unwrap();
    }
    clock.monotonic().since(begun)
}

async fn cost_of_a_claim() {
    const CLAIMS: u32 = 100;
    let clock = Clock::default();
    let mut first = None;
    for (matching, unmatched) in [(100, 0), (100_000, 0), (100, 100_000)] {
        let folder = tempfile::tempdir().unwrap();
        let (app, token) = server::open(&settings(&folder)).await.unwrap();
        let client = Client::in_process(server::router(&app), token);
        prepare(&client).await;
        let mut other = new_run();
        other.labels = Labels::from_iter(["nowhere"]);
        let other = client.create_flow_run(&other).await.unwrap();
        let plain = client.create_flow_run(&new_run()).await.unwrap();
        fill(&app, &other, unmatched).await;
        fill(&app, &plain, matching).await;
        let session_id = session(&client).await;
        let begun = clock.monotonic();
        for _ in 0..CLAIMS {
            let poll = Poll {
                session_id,
                free_slots: 1,
                wait_seconds: 0,
            };
            assert_eq!(client.poll(&poll).await.unwrap().flow_runs.len(), 1);
        }
        let time = clock.monotonic().since(begun) / CLAIMS;
        let ratio = time.as_secs_f64() / first.get_or_insert(time).as_secs_f64();
        println!(
            "{matching} matching and {unmatched} unmatched runs wait: {time:?} a claim, {ratio:.2}x"
        );
    }
}

/// Makes many runs like one, without the API.
async fn fill(app: &App, like: &FlowRun, count: usize) {
    let (id, now) = (like.id, app.clock.now());
    for chunk in 0..count.div_ceil(1_000) {
        let count = (count - chunk * 1_000).min(1_000);
        app.db
            .write(move |tx| {
                Box::pin(async move {
                    let like = flow_run::read(tx, [id]).await?.remove(0);
                    let version = flow_version::read(tx, like.flow_version_id).await?;
                    let new = New {
                        id,
                        flow_id: version.unwrap().flow_id,
                        flow_version_id: like.flow_version_id,
                        requirement_id: Some(like.requirement_id),
                        parameters: BTreeMap::new(),
                        priority: 0,
                        created_at: now,
                        scheduled_at: now,
                        timeout_ms: 1,
                        clock: None,
                        overlap: waft::model::schedule::Overlap::Allow,
                        idempotency: None,
                        by: String::new(),
                    };
                    for _ in 0..count {
                        let id = FlowRunId::at(now.as_microsecond(), rand::random());
                        flow_run::add(tx, &New { id, ..new.clone() }).await?;
                    }
                    Ok::<_, DbError>(())
                })
            })
            .await
            .unwrap();
    }
}

fn settings(folder: &tempfile::TempDir) -> ServerSettings {
    ServerSettings {
        listen: ([127, 0, 0, 1], 0).into(),
        db: folder.path().join("waft.db").into(),
        lease: Duration::from_secs(30),
        hosts: Vec::new(),
        results_keep: server::RESULTS_KEEP,
        runs_keep: server::RUNS_KEEP,
        clock: Clock::default(),
    }
}

async fn prepare(client: &Client) {
    let project = NewProject {
        name: "demo".to_owned(),
        description: String::new(),
    };
    client.create_project(&project).await.unwrap();
    let artifact = Digest::of(b"bench");
    let definition = json!({
        "name": "small",
        "tasks": [{"name": "only", "body": {"function": "only"}, "skip_on_upstream_skip": true}],
    });
    let asked = Registration {
        definition: serde_json::from_value(definition).unwrap(),
        artifact,
        artifact_size: 1,
        location: Location {
            root: ROOT.to_owned(),
            key: artifact.to_hex(),
        },
        labels: Labels::default(),
        is_paused: false,
    };
    client.register("demo", &asked).await.unwrap();
}

async fn session(client: &Client) -> SessionId {
    let new = NewSession {
        name: "bench".to_owned(),
        hostname: "host".to_owned(),
        version: "0".to_owned(),
        protocol: PROTOCOL,
        offer: Offer {
            roots: [ROOT.to_owned()].into(),
            ..Offer::default()
        },
        slots: SLOTS,
        replaces: None,
        is_start: true,
        rests: Vec::new(),
    };
    client.open_session(&new).await.unwrap().session_id
}

fn new_run() -> NewFlowRun {
    NewFlowRun {
        flow: "small".to_owned(),
        ..NewFlowRun::default()
    }
}

fn flow(event: Event) -> Happening {
    Happening::FlowRun(FlowRunMoved {
        event,
        message: String::new(),
        code: None,
        result: None,
        delay_ms: 0,
    })
}

fn task(event: Event) -> Happening {
    Happening::TaskRun(TaskRunMoved {
        task_run: TaskRunKey {
            task: "only".to_owned(),
            map_index: None,
        },
        event,
        message: String::new(),
        code: None,
        attempts: 1,
        failures: 0,
        delay_ms: 0,
        loop_count: 0,
        usage: Usage::default(),
        result: None,
        denials: Vec::new(),
    })
}
