//! A server of a few lines, for tests of what the agent does when a server answers strangely. The
//! real one is met in `tests/it`.

use std::sync::{Arc, Mutex};

use axum::http::StatusCode;
use axum::routing::post;
use axum::{Json, Router};

use super::lock::NameLock;
use super::session::{Roots, Session};
use crate::client::Client;
use crate::clock::Clock;
use crate::model::id::{AgentId, FlowRunId, SessionId};
use crate::model::requirement::Offer;
use crate::wire::{
    self, ErrorBody, LeaseKey, NewSession, PROTOCOL, Renewal, Renewed, ReportBatch, Reported,
};

/// What the server was asked, and what it is to answer.
#[derive(Default)]
pub(crate) struct Fake {
    /// The hellos that it heard.
    pub(crate) hellos: Vec<NewSession>,
    /// The batches that it accepted.
    pub(crate) accepted: Vec<ReportBatch>,
    /// How many reports to refuse as if the server were away.
    pub(crate) away: u32,
    /// The run about which it accepts no report.
    pub(crate) disliked: Option<FlowRunId>,
    /// The leases that it says have lapsed.
    pub(crate) lapsed: Vec<LeaseKey>,
    /// The renewals that it was asked for.
    pub(crate) renewals: Vec<Renewal>,
    /// The only protocol that it speaks, if it is not this one.
    pub(crate) protocol: Option<u32>,
    /// How many renewals never to answer, as over a connection that is dead.
    pub(crate) unanswered: u32,
}

pub(crate) type Shared = Arc<Mutex<Fake>>;

type Refusal = (StatusCode, Json<ErrorBody>);

/// Opens a session with a new fake server.
pub(crate) async fn session() -> (Shared, Session) {
    let fake = Shared::default();
    let session = session_with(&fake).await.unwrap();
    (fake, session)
}

/// Opens a session with a fake server.
pub(crate) async fn session_with(fake: &Shared) -> anyhow::Result<Session> {
    open_session(Client::in_process(router(fake), None)).await
}

/// Opens a session with a new fake server at a port, where calls have time limits.
pub(crate) async fn session_at_a_port() -> (Shared, Session) {
    let fake = Shared::default();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(axum::serve(listener, router(&fake)).into_future());
    let session = open_session(Client::new(&url, None).unwrap()).await;
    (fake, session.unwrap())
}

async fn open_session(client: Client) -> anyhow::Result<Session> {
    let hello = NewSession {
        name: "mira".to_owned(),
        hostname: "host".to_owned(),
        version: "0".to_owned(),
        protocol: PROTOCOL,
        offer: Offer {
            roots: ["file:///a".to_owned(), "file:///b".to_owned()].into(),
            ..Offer::default()
        },
        slots: 1,
        replaces: None,
        is_start: false,
        rests: Vec::new(),
        home: None,
    };
    let home = tempfile::tempdir().unwrap();
    let name = NameLock::take(home.path(), &hello.name).unwrap();
    let opened = Session::open(
        client,
        Clock::default(),
        hello,
        name.note(),
        Roots {
            results: "file:///b".to_owned(),
            ..Roots::default()
        },
    )
    .await;
    opened.map(|(session, _)| session)
}

/// Forgets the session that is open.
pub(crate) fn forget(fake: &Shared) {
    let mut fake = fake.lock().unwrap();
    let other = fake.hellos[0].clone();
    fake.hellos.push(other);
}

fn router(fake: &Shared) -> Router {
    let (hello, report, renewal) = (fake.clone(), fake.clone(), fake.clone());
    Router::new()
        .route(
            "/api/agent/session",
            post(async move |Json(new): Json<NewSession>| open(&hello, new)),
        )
        .route(
            "/api/agent/report",
            post(async move |Json(batch): Json<ReportBatch>| take(&report, batch)),
        )
        .route(
            "/api/agent/renew",
            post(async move |Json(asked): Json<Renewal>| renew(&renewal, asked).await),
        )
}

fn open(fake: &Shared, new: NewSession) -> Result<Json<wire::Session>, Refusal> {
    let mut fake = fake.lock().unwrap();
    let (protocol, is_start) = (new.protocol, new.is_start);
    fake.hellos.push(new);
    // As servers of protocol 1 did, which knew no such field.
    if is_start && fake.protocol == Some(1) {
        return Err(refusal(StatusCode::BAD_REQUEST, "body-bad"));
    }
    if fake.protocol.unwrap_or(PROTOCOL) != protocol {
        let status = StatusCode::UPGRADE_REQUIRED;
        return Err(refusal(status, "protocol-unsupported"));
    }
    Ok(Json(wire::Session {
        agent_id: AgentId::at(0, 0),
        session_id: session_id(&fake),
        lease_seconds: 30,
        protocol,
    }))
}

fn take(fake: &Shared, batch: ReportBatch) -> Result<Json<Reported>, Refusal> {
    let mut fake = fake.lock().unwrap();
    if fake.away > 0 {
        fake.away -= 1;
        return Err(refusal(StatusCode::SERVICE_UNAVAILABLE, "busy"));
    }
    if batch.session_id != session_id(&fake) {
        return Err(refusal(StatusCode::NOT_FOUND, "session-unknown"));
    }
    let is_disliked = |id| Some(id) == fake.disliked;
    if batch
        .reports
        .iter()
        .any(|report| is_disliked(report.lease.flow_run_id))
    {
        return Err(refusal(StatusCode::UNPROCESSABLE_ENTITY, "body-bad"));
    }
    fake.accepted.push(batch);
    let lapsed = fake.lapsed.clone();
    Ok(Json(Reported {
        lost: Vec::new(),
        lapsed,
    }))
}

async fn renew(fake: &Shared, asked: Renewal) -> Json<Renewed> {
    let is_unanswered = {
        let mut fake = fake.lock().unwrap();
        fake.renewals.push(asked);
        let is_unanswered = fake.unanswered > 0;
        fake.unanswered -= u32::from(is_unanswered);
        is_unanswered
    };
    if is_unanswered {
        std::future::pending::<()>().await;
    }
    Json(Renewed {
        lease_seconds: 1,
        lost: Vec::new(),
        lapsed: Vec::new(),
    })
}

/// Each hello makes a session of its own.
fn session_id(fake: &Fake) -> SessionId {
    SessionId::at(0, fake.hellos.len() as u128)
}

fn refusal(status: StatusCode, code: &str) -> Refusal {
    let body = ErrorBody {
        code: code.to_owned(),
        message: "as planned".to_owned(),
        hint: None,
    };
    (status, Json(body))
}
