//! The server behind its door: real router, real database, a clock in the test's hand, no port.
//!
//! `main.rs` names this module twice: once for a database file, once for PostgreSQL.

mod access;
mod api;
mod claims;
mod clocks;
mod fleet;
mod life;
mod marks;
mod model;
mod overlap;
mod people;
mod port;
mod retention;
mod retries;
mod schedules;
mod slots;
mod tags;
mod versions;
mod waits;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use jiff::Timestamp;
use serde_json::json;

use waft::client::{Client, ClientError};
use waft::clock::{Clock, TestClock};
use waft::model::artifact::Digest;
use waft::model::flow::Definition;
use waft::model::id::{AgentId, FlowRunId, SessionId};
use waft::model::label::Labels;
use waft::model::requirement::Offer;
use waft::model::run::{FlowRunMoved, Happening, ResultRef, TaskRunKey, TaskRunMoved, Usage};
use waft::model::schedule::{CatchUp, Overlap};
use waft::model::state::{Event, State};
use waft::server::app::App;
use waft::server::db::Place;
use waft::server::{self, ServerSettings};
use waft::wire::{
    ClaimedRun, FlowRun, LeaseKey, ListQuery, Listen, Location, NewFlowRun, NewProject, NewSession,
    Orders, PROTOCOL, Poll, Registration, Report, ReportBatch, Reported, ResumeQuery, Slots,
    Transition,
};

use crate::kit::witness::hello;
use crate::kit::world::server_panics;
use crate::kit::{memory_folder, postgres};

pub(crate) const LEASE: Duration = Duration::from_secs(30);
const ROOT: &str = "file:///flows";

/// Whether this is the module that tells its stories on PostgreSQL.
const ON_POSTGRES: bool = matches!(
    module_path!().as_bytes(),
    [.., b'p', b'o', b's', b't', b'g', b'r', b'e', b's']
);

/// A server with a project `demo`, an admin's client, and time by hand.
pub(crate) struct World {
    place: Place,
    pub(crate) app: App,
    pub(crate) client: Client,
    clock: TestClock,
    token: Option<String>,
    _folder: tempfile::TempDir,
    _house: House,
}

/// Checks at the end of a world that its server has not panicked.
struct House;

/// An agent as the server sees one.
struct Agent {
    client: Client,
    id: AgentId,
    session: SessionId,
    numbers: AtomicU64,
}

impl World {
    pub(crate) async fn new() -> Self {
        let (clock, test) = Clock::test("2026-03-01T00:00:00Z".parse().unwrap());
        Self::with(clock, test).await
    }

    async fn with(clock: Clock, test: TestClock) -> Self {
        let folder = memory_folder();
        let place = place(&folder).await;
        let (app, token) = open(&place, clock).await;
        let client = Client::in_process(server::router(&app), token.clone());
        let project = NewProject {
            name: "demo".to_owned(),
            description: String::new(),
        };
        client.create_project(&project).await.unwrap();
        Self {
            app,
            client,
            clock: test,
            token,
            place,
            _folder: folder,
            _house: House,
        }
    }

    /// Ends the server and starts it anew on its database.
    async fn restart(&mut self, clock: Clock) {
        let (app, _) = open(&self.place, clock).await;
        self.client = Client::in_process(server::router(&app), self.token.clone());
        self.app = app;
    }

    /// Registers a flow of two tasks, `fetch` and `report`, in `demo`.
    pub(crate) async fn register(&self, name: &str) -> waft::wire::Registered {
        let asked = registration(name);
        self.client.register("demo", &asked).await.unwrap()
    }

    pub(crate) async fn create(&self, flow: &str) -> FlowRun {
        self.try_create(&new_run(flow)).await.unwrap()
    }

    async fn try_create(&self, new: &NewFlowRun) -> Result<FlowRun, ClientError> {
        self.client.create_flow_run(new).await
    }

    async fn agent(&self, name: &str) -> Agent {
        self.agent_offering(name, offer()).await
    }

    /// Starts the agent of this name anew after its process died.
    async fn agent_after(&self, name: &str, dead: &Agent) -> Agent {
        self.agent_saying(name, offer(), Some(dead.session)).await
    }

    async fn agent_offering(&self, name: &str, offer: Offer) -> Agent {
        self.agent_saying(name, offer, None).await
    }

    async fn agent_saying(&self, name: &str, offer: Offer, replaces: Option<SessionId>) -> Agent {
        let new = NewSession {
            replaces,
            ..hello(name, offer)
        };
        let session = self.client.open_session(&new).await.unwrap();
        Agent {
            client: self.client.clone(),
            id: session.agent_id,
            session: session.session_id,
            numbers: AtomicU64::new(0),
        }
    }

    pub(crate) async fn run(&self, id: FlowRunId) -> FlowRun {
        self.client.flow_run(id).await.unwrap()
    }

    async fn history(&self, id: FlowRunId) -> Vec<Transition> {
        let mut steps = Vec::new();
        let mut query = ListQuery::default();
        loop {
            let page = self.client.history(id, &query).await.unwrap();
            steps.extend(page.items);
            match page.next {
                Some(next) => query.cursor = Some(next),
                None => break,
            }
        }
        let numbers: Vec<u32> = steps.iter().map(|step| step.number).collect();
        let expected: Vec<u32> = (1..=steps.len() as u32).collect();
        assert_eq!(numbers, expected, "a history has no gap");
        steps
    }

    /// Tells the history of the run itself in short words.
    async fn story(&self, id: FlowRunId) -> String {
        let steps = self.history(id).await;
        let own = steps.iter().filter(|step| step.task_run.is_none());
        own.map(|step| match step.message.as_str() {
            "" => format!("{} by {}, {}", step.state, step.by, step.epoch),
            message => format!("{} by {}, {}: {message}", step.state, step.by, step.epoch),
        })
        .collect::<Vec<_>>()
        .join("\n")
    }

    async fn rescue(&self) -> usize {
        server::duty::rescuer::rescue(&self.app).await.unwrap()
    }

    async fn schedule(&self) {
        server::duty::scheduler::schedule_all(&self.app)
            .await
            .unwrap();
    }
}

impl Drop for House {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            assert_eq!(server_panics(), None);
        }
    }
}

impl Agent {
    async fn poll(&self, free_slots: u32) -> Vec<ClaimedRun> {
        self.poll_waiting(free_slots, 0).await
    }

    async fn poll_waiting(&self, free_slots: u32, wait_seconds: u32) -> Vec<ClaimedRun> {
        let poll = Poll {
            session_id: self.session,
            free_slots,
            wait_seconds,
        };
        self.client.poll(&poll).await.unwrap().flow_runs
    }

    /// Takes the one run that there is to be claimed.
    async fn takes(&self) -> ClaimedRun {
        let mut claimed = self.poll(1).await;
        assert_eq!(claimed.len(), 1, "there is a run to be claimed");
        claimed.remove(0)
    }

    /// Hears what the server has to say about some runs now.
    async fn hears(&self, leases: Vec<LeaseKey>) -> Orders {
        self.hears_within(leases, 0).await
    }

    /// Hears what the server has to say about some runs, and waits for it if there is nothing yet.
    async fn hears_within(&self, leases: Vec<LeaseKey>, wait_seconds: u32) -> Orders {
        let listen = Listen {
            session_id: self.session,
            leases,
            has_left: false,
            limited_seen: None,
            wait_seconds,
        };
        self.client.listen(&listen).await.unwrap()
    }

    fn report_of(&self, lease: LeaseKey, what: Happening) -> Report {
        Report {
            lease,
            number: self.numbers.fetch_add(1, Ordering::Relaxed) + 1,
            at: Timestamp::UNIX_EPOCH,
            what,
        }
    }

    async fn send(&self, reports: Vec<Report>) -> Reported {
        let batch = ReportBatch {
            session_id: self.session,
            reports,
        };
        self.client.report(&batch).await.unwrap()
    }

    async fn tell(&self, lease: LeaseKey, what: Vec<Happening>) -> Reported {
        let reports = what.into_iter().map(|what| self.report_of(lease, what));
        self.send(reports.collect()).await
    }
}

fn lease(run: &ClaimedRun) -> LeaseKey {
    LeaseKey {
        flow_run_id: run.flow_run_id,
        epoch: run.epoch,
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

fn task(name: &str, event: Event) -> Happening {
    let is_end = event == Event::Succeed;
    Happening::TaskRun(TaskRunMoved {
        task_run: TaskRunKey {
            task: name.to_owned(),
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
        result: is_end.then(result),
        denials: Vec::new(),
        decided_at: None,
    })
}

fn result() -> ResultRef {
    ResultRef {
        root: "file:///results".to_owned(),
        segment: "a".to_owned(),
        offset: 0,
        length: 1,
        digest: Digest::of(b"1"),
        content_type: "application/json".to_owned(),
    }
}

fn offer() -> Offer {
    Offer {
        roots: [ROOT.to_owned(), "file:///results".to_owned()].into(),
        ..Offer::default()
    }
}

fn new_run(flow: &str) -> NewFlowRun {
    NewFlowRun {
        flow: flow.to_owned(),
        parameters: BTreeMap::from([("name".to_owned(), json!("Ada"))]),
        ..NewFlowRun::default()
    }
}

fn definition(name: &str) -> Definition {
    let task = |name: &str| json!({"name": name, "body": {"function": name}, "skip_on_upstream_skip": true});
    serde_json::from_value(json!({
        "name": name,
        "parameters": [
            {"name": "name", "schema": {"type": "string"}},
            {"name": "times", "schema": {"type": "integer"}, "default": 3},
        ],
        "tasks": [task("fetch"), task("report")],
        "edges": [{"from": {"task": "fetch"}, "to": "report", "input": "readings"}],
        "output": "report",
    }))
    .unwrap()
}

pub(crate) fn registration(name: &str) -> Registration {
    let artifact = Digest::of(name.as_bytes());
    Registration {
        definition: definition(name),
        artifact,
        artifact_size: 100,
        location: Location {
            root: ROOT.to_owned(),
            key: format!("sha256/{}", artifact.to_hex()),
        },
        labels: Labels::default(),
        is_paused: false,
    }
}

/// Returns where the database of a test is.
async fn place(folder: &tempfile::TempDir) -> Place {
    match ON_POSTGRES {
        true => postgres::place().await,
        false => folder.path().join("waft.db").into(),
    }
}

/// Returns what a server of a database is started with, on a free port.
pub(crate) fn settings(place: &Place) -> ServerSettings {
    ServerSettings {
        listen: ([127, 0, 0, 1], 0).into(),
        db: place.clone(),
        lease: LEASE,
        hosts: Vec::new(),
        results_keep: server::RESULTS_KEEP,
        runs_keep: server::RUNS_KEEP,
        clock: Clock::default(),
    }
}

/// Opens the server of a database: no port, and no duty that is not called by hand.
async fn open(place: &Place, clock: Clock) -> (App, Option<String>) {
    let settings = ServerSettings {
        clock,
        ..settings(place)
    };
    server::open(&settings).await.unwrap()
}

/// A refusal's code.
pub(crate) fn code<T: std::fmt::Debug>(result: Result<T, ClientError>) -> String {
    let error = result.unwrap_err();
    error.code().unwrap_or("unreachable").to_owned()
}

fn is_over(run: &FlowRun) -> bool {
    run.state.is_over() && run.state != State::Mapped
}
