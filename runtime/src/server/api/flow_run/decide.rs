//! What people decide about task runs that wait for them.

use axum::Json as Answered;
use axum::extract::State;

use super::{over, own, unknown};
use crate::model::id::{AgentId, FlowRunId};
use crate::model::run::{Decision, Verdict};
use crate::model::state::State as RunState;
use crate::server::access::Access;
use crate::server::app::App;
use crate::server::db::flow_run::{self, Found, Standing};
use crate::server::db::flow_version::Version;
use crate::server::db::tx::Tx;
use crate::server::error::{Answer, ApiError, Code};
use crate::server::extract::{Json, Path};
use crate::wire::{ErrorBody, FlowRun, NewDecision};

/// Most bytes of a reason.
const REASON_BYTES_MAX: usize = 2 * 1024;

/// Lets task runs that wait for a person go on, or end as Failed.
#[utoipa::path(post, path = "/api/flow-runs/{id}/decide", tag = "flow-run",
params(("id" = FlowRunId, Path)), request_body = NewDecision, responses(
    (status = 200, body = FlowRun), (status = "4XX", body = ErrorBody),
), security(("token" = [])))]
pub(in crate::server::api) async fn decide(
    State(app): State<App>,
    access: Access,
    Path(id): Path<FlowRunId>,
    Json(asked): Json<NewDecision>,
) -> Answer<Answered<FlowRun>> {
    access.may_change()?;
    checked_reason(&asked.reason)?;
    let (now, memory) = (app.clock.now(), app.db.memory.clone());
    let (found, agent): (Found, Option<AgentId>) = app
        .db
        .write(move |tx| {
            Box::pin(async move {
                let unseen = || unknown(id);
                let mut run = own(tx, &access, id).await?;
                if run.state.is_over() {
                    return Err(over(&run, "decide about"));
                }
                if run.state == RunState::Cancelling {
                    let message = format!("the run `{id}` is being stopped");
                    return Err(ApiError::new(Code::StateWrong, message));
                }
                let version = memory.version(tx, run.flow_version_id).await?;
                let version = version.ok_or_else(unseen)?;
                let decision = Decision {
                    verdict: match asked.is_declined {
                        true => Verdict::Decline,
                        false => Verdict::Approve,
                    },
                    output: None,
                    by: access.name.clone(),
                    reason: asked.reason.clone(),
                    at: now,
                };
                decide_in(tx, &mut run, &version, &asked, &decision).await?;
                let agent = run.agent_id.filter(|_| run.lease_until.is_some());
                flow_run::apply(tx, vec![run]).await?;
                let found = flow_run::find(tx, &memory, &access.realm, id).await?;
                Ok((found.ok_or_else(unseen)?, agent))
            })
        })
        .await?;
    tell_said(&app, &found, agent).await;
    Ok(Answered(found.flow_run))
}

/// Tells whoever it concerns that a person has said something of a run.
pub(super) async fn tell_said(app: &App, found: &Found, agent: Option<AgentId>) {
    let run = &found.flow_run;
    app.tell(&[run.id]);
    app.tell_agents(agent.as_slice());
    if run.state == RunState::Scheduled {
        app.announce(found.requirement_id, run.due_at, 1).await;
    }
}

/// Checks what somebody gives as their reason.
pub(super) fn checked_reason(reason: &str) -> Answer<()> {
    if reason.len() <= REASON_BYTES_MAX {
        return Ok(());
    }
    let message = format!("`reason` has at most {REASON_BYTES_MAX} bytes");
    Err(ApiError::new(Code::ValueBad, message))
}

async fn decide_in(
    tx: &mut Tx,
    run: &mut Standing,
    version: &Version,
    asked: &NewDecision,
    decision: &Decision,
) -> Answer<()> {
    let meant = match &asked.task_run {
        None => None,
        Some(key) => {
            let place = version.places.get(&key.task).ok_or_else(|| {
                let name: String = key.task.escape_default().take(150).collect();
                let message = format!("the run `{}` has no task `{name}`", run.id);
                ApiError::new(Code::TaskUnknown, message)
                    .hint(format!("waft flow-run show {}", run.id))
            })?;
            Some((*place, key.map_index))
        }
    };
    let is_meant = |place: u32, index: Option<u32>| match meant {
        None => true,
        Some((wanted, None)) => place == wanted,
        Some((wanted, element)) => (place, index) == (wanted, element),
    };
    let decided = flow_run::decide(tx, run, |key| is_meant(key.1, key.2), decision).await?;
    if !decided.is_empty() {
        return Ok(());
    }
    let id = run.id;
    let message = match &asked.task_run {
        None => format!("nothing of the run `{id}` waits for a person"),
        Some(key) => format!("`{key}` of the run `{id}` does not wait for a person"),
    };
    Err(ApiError::new(Code::FlowRunNotPaused, message).hint(format!("waft flow-run explain {id}")))
}
