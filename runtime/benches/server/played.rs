//! A flow of one task, and agents that only say that they run it.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde_json::json;
use waft::client::Client;
use waft::model::artifact::Digest;
use waft::model::id::{FlowRunId, SessionId};
use waft::model::label::Labels;
use waft::model::requirement::Offer;
use waft::model::run::{FlowRunMoved, Happening, TaskRunKey, TaskRunMoved, Usage};
use waft::model::schedule::Overlap;
use waft::model::state::Event;
use waft::server::app::App;
use waft::server::db::flow_run::{self, New};
use waft::server::db::{DbError, flow_version};
use waft::wire::{
    ClaimedRun, FlowRun, LeaseKey, Location, NewFlowRun, NewProject, NewSession, PROTOCOL, Poll,
    Registration, Report, ReportBatch,
};

const ROOT: &str = "file:///flows";

/// The project of every bench.
pub(crate) const PROJECT: &str = "demo";

/// Makes the project, and registers the flow `small`.
pub(crate) async fn prepare(client: &Client) {
    let project = NewProject {
        name: PROJECT.to_owned(),
        description: String::new(),
    };
    client.create_project(&project).await.unwrap();
    client
        .register(PROJECT, &registration("small"))
        .await
        .unwrap();
}

/// Returns a flow of one task.
pub(crate) fn registration(name: &str) -> Registration {
    let artifact = Digest::of(b"bench");
    let definition = json!({
        "name": name,
        "tasks": [{"name": "only", "body": {"function": "only"}, "skip_on_upstream_skip": true}],
    });
    Registration {
        definition: serde_json::from_value(definition).unwrap(),
        artifact,
        artifact_size: 1,
        location: Location {
            root: ROOT.to_owned(),
            key: artifact.to_hex(),
        },
        labels: Labels::default(),
        is_paused: false,
    }
}

/// Returns what makes a run of the flow `small`.
pub(crate) fn new_run() -> NewFlowRun {
    NewFlowRun {
        flow: "small".to_owned(),
        ..NewFlowRun::default()
    }
}

/// Begins an agent.
pub(crate) async fn session(client: &Client, name: &str, slots: u32) -> SessionId {
    let new = NewSession {
        name: name.to_owned(),
        hostname: "host".to_owned(),
        version: "0".to_owned(),
        protocol: PROTOCOL,
        offer: Offer {
            roots: [ROOT.to_owned()].into(),
            ..Offer::default()
        },
        slots,
        replaces: None,
        is_start: true,
        rests: Vec::new(),
        home: None,
    };
    client.open_session(&new).await.unwrap().session_id
}

/// Claims runs.
pub(crate) async fn claim(
    client: &Client,
    session_id: SessionId,
    free_slots: u32,
    wait_seconds: u32,
) -> Vec<ClaimedRun> {
    let poll = Poll {
        session_id,
        free_slots,
        wait_seconds,
    };
    client.poll(&poll).await.unwrap().flow_runs
}

/// Returns the lease of a run.
pub(crate) fn lease(run: &ClaimedRun) -> LeaseKey {
    LeaseKey {
        flow_run_id: run.flow_run_id,
        epoch: run.epoch,
    }
}

/// Returns all that is told of runs whose one task does well.
pub(crate) fn whole_life(session_id: SessionId, runs: &[ClaimedRun]) -> ReportBatch {
    let reports = runs.iter().flat_map(|run| {
        let what = [
            flow(Event::Start),
            task(Event::Start),
            task(Event::Succeed),
            flow(Event::Succeed),
        ];
        (1..).zip(what).map(|(number, what)| Report {
            lease: lease(run),
            number,
            at: Timestamp::UNIX_EPOCH,
            what,
        })
    });
    ReportBatch {
        session_id,
        reports: reports.collect(),
    }
}

/// Makes many runs like one, without the API.
pub(crate) async fn fill(app: &App, like: &FlowRun, count: usize) {
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
                        overlap: Overlap::Allow,
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
        decided_at: None,
    })
}
