//! What people say about how a run ends, or task runs of it, whatever those do.

use std::collections::BTreeSet;

use axum::Json as Answered;
use axum::extract::State;
use jiff::Timestamp;
use serde::de::IgnoredAny;

use super::decide::{checked_reason, tell_said};
use super::{over, own, unknown};
use crate::model::id::{AgentId, FlowRunId};
use crate::model::limit::{KIB, MAP_ELEMENTS_MAX};
use crate::model::run::{Decision, TaskRunKey, Verdict};
use crate::model::state::State as RunState;
use crate::server::access::Access;
use crate::server::app::App;
use crate::server::db::flow_run::{self, Found, Move, Standing, Unmarked};
use crate::server::db::flow_version::Version;
use crate::server::db::memory::Memory;
use crate::server::db::task_run::Key;
use crate::server::db::tx::Tx;
use crate::server::error::{Answer, ApiError, Code};
use crate::server::extract::{Json, Path};
use crate::wire::{ErrorBody, FlowRun, NewMark, TaskMark};

/// Most bytes of an output that is given by hand: a larger one is for a task to make.
const OUTPUT_BYTES_MAX: usize = 64 * KIB as usize;
/// Most task runs of one call.
const TASK_RUNS_MAX: usize = 1_000;

/// Says how a run ends that is not over: at once, whoever has it. Or how task runs of it end: whoever has the
/// run, or takes it next, stops them, or does not begin them, and goes on with the rest.
#[utoipa::path(post, path = "/api/flow-runs/{id}/mark", tag = "flow-run",
params(("id" = FlowRunId, Path)), request_body = NewMark, responses(
    (status = 200, body = FlowRun), (status = "4XX", body = ErrorBody),
), security(("token" = [])))]
pub(in crate::server::api) async fn mark(
    State(app): State<App>,
    access: Access,
    Path(id): Path<FlowRunId>,
    Json(asked): Json<NewMark>,
) -> Answer<Answered<FlowRun>> {
    access.may_change()?;
    checked_reason(&asked.reason)?;
    let now = app.clock.now();
    let decision = decision(asked.state, asked.output, asked.reason, &access.name, now)?;
    let is_of_run = asked.task_runs.is_empty();
    if is_of_run && decision.output.is_some() {
        let message = "a run is given no output by hand: give it to the task that makes it";
        return Err(ApiError::new(Code::ValueBad, message));
    }
    if asked.task_runs.len() > TASK_RUNS_MAX {
        let message = format!("more than {TASK_RUNS_MAX} task runs in one call");
        return Err(ApiError::new(Code::ValueBad, message));
    }
    let memory = app.db.memory.clone();
    let (found, agent): (Found, Option<AgentId>) = app
        .db
        .write(move |tx| {
            Box::pin(async move {
                let unseen = || unknown(id);
                let mut run = own(tx, &access, id).await?;
                if run.state.is_over() {
                    let retry = format!("waft flow-run retry {id} --mark TASK=Success");
                    return Err(over(&run, "mark").hint(retry));
                }
                let agent = match is_of_run {
                    true => end(tx, &mut run, &decision).await?,
                    false => {
                        let version = memory.version(tx, run.flow_version_id).await?;
                        let version = version.ok_or_else(unseen)?;
                        let keys = places(id, &version, &asked.task_runs)?;
                        mark_tasks(tx, &memory, &mut run, &version, &keys, &decision).await?;
                        run.agent_id.filter(|_| run.lease_until.is_some())
                    }
                };
                flow_run::apply(tx, vec![run]).await?;
                let found = flow_run::find(tx, &memory, &access.realm, id).await?;
                Ok((found.ok_or_else(unseen)?, agent))
            })
        })
        .await?;
    tell_said(&app, &found, agent).await;
    Ok(Answered(found.flow_run))
}

/// Makes what somebody says into a decision.
///
/// # Errors
///
/// Refuses a state that nothing can be marked as, and an output that is none.
pub(super) fn decision(
    state: RunState,
    output: Option<String>,
    reason: String,
    by: &str,
    at: Timestamp,
) -> Answer<Decision> {
    let bad = |message: String| ApiError::new(Code::ValueBad, message);
    let verdict = Verdict::mark(state).ok_or_else(|| {
        let known: Vec<_> = Verdict::MARKS.iter().map(|state| state.word()).collect();
        bad(format!("nothing is marked {state}: {}", known.join(", ")))
    })?;
    if let Some(text) = &output {
        if verdict != Verdict::Success {
            return Err(bad(format!("what is {state} has no output")));
        }
        if text.len() > OUTPUT_BYTES_MAX {
            let message = format!(
                "an output that is given by hand has at most 64 KiB, not {} bytes",
                text.len()
            );
            return Err(bad(message).hint("have a task make a larger one"));
        }
        if let Err(error) = serde_json::from_str::<IgnoredAny>(text) {
            return Err(bad(format!("the output is not JSON: {error}")));
        }
    }
    Ok(Decision {
        verdict,
        output: output.map(|text| text.trim().to_owned()),
        by: by.to_owned(),
        reason,
        at,
    })
}

/// Ends the run itself.
async fn end(tx: &mut Tx, run: &mut Standing, decision: &Decision) -> Answer<Option<AgentId>> {
    let Some(event) = decision.verdict.ends() else {
        return Ok(None);
    };
    let message = decision.to_string();
    let moved = Move {
        event,
        message: &message,
        code: decision.verdict.code(),
        at: decision.at,
        by: &decision.by,
    };
    Ok(flow_run::end_by_hand(tx, run, &moved).await?)
}

/// Finds task runs in a version, each once.
///
/// # Errors
///
/// Refuses those that there cannot be.
pub(super) fn places<'a>(
    run: FlowRunId,
    version: &Version,
    named: impl IntoIterator<Item = &'a TaskRunKey>,
) -> Answer<Vec<Key>> {
    let mut keys = BTreeSet::new();
    for key in named {
        let unknown = |message: String| {
            let hint = format!("waft flow-run show {run}");
            ApiError::new(Code::TaskUnknown, message).hint(hint)
        };
        let name: String = key.task.escape_default().take(150).collect();
        let place = version.places.get(&key.task).copied();
        let place = place.ok_or_else(|| unknown(format!("the flow has no task `{name}`")))?;
        let is_mapped = (version.definition.task(&key.task)).is_some_and(|task| task.is_mapped);
        match key.map_index {
            Some(_) if !is_mapped => {
                return Err(unknown(format!(
                    "`{name}` is not mapped: it has no elements"
                )));
            }
            Some(index) if index as usize >= MAP_ELEMENTS_MAX => {
                return Err(unknown(format!("`{name}` has no element {index}")));
            }
            index => drop(keys.insert((run, place, index))),
        }
    }
    Ok(keys.into_iter().collect())
}

/// Writes down how task runs end.
///
/// # Errors
///
/// Refuses those that are over, or of which somebody said otherwise.
pub(super) async fn mark_tasks(
    tx: &mut Tx,
    memory: &Memory,
    run: &mut Standing,
    version: &Version,
    keys: &[Key],
    decision: &Decision,
) -> Answer<()> {
    let id = run.id;
    if run.state == RunState::Cancelling {
        let message = format!("the run `{id}` is being stopped");
        return Err(ApiError::new(Code::StateWrong, message));
    }
    let Err(((_, place, map_index), why)) = flow_run::mark(tx, memory, run, keys, decision).await?
    else {
        return Ok(());
    };
    let task = version.task_name(place).to_owned();
    let key = TaskRunKey { task, map_index };
    Err(match why {
        Unmarked::Over(state, ended_at) => {
            let at = ended_at.map_or(String::new(), |at| format!(" at {at}"));
            let message =
                format!("`{key}` of the run `{id}` is over: it became {state}{at}, and stays so");
            let retry =
                format!("once the run is over: waft flow-run retry {id} --mark {key}=Success");
            ApiError::new(Code::TaskRunOver, message).hint(retry)
        }
        Unmarked::Marked(other) => {
            let message = format!("`{key}` of the run `{id}` was {other}, which is being done");
            ApiError::new(Code::StateWrong, message).hint(format!("waft flow-run explain {id}"))
        }
    })
}

/// Writes down how task runs of a new run end, before anybody has it.
///
/// # Errors
///
/// As the others here.
pub(super) async fn mark_new(
    tx: &mut Tx,
    memory: &Memory,
    id: FlowRunId,
    version: &Version,
    marks: &[(TaskMark, Decision)],
) -> Answer<()> {
    if marks.is_empty() {
        return Ok(());
    }
    let run = flow_run::read(tx, [id]).await?.pop();
    let mut run = run.ok_or_else(|| unknown(id))?;
    for (mark, decision) in marks {
        let keys = places(id, version, [&mark.task_run])?;
        mark_tasks(tx, memory, &mut run, version, &keys, decision).await?;
    }
    Ok(flow_run::apply(tx, vec![run]).await?)
}
