//! A new run in the place of one that did not go well.

use std::collections::HashSet;

use axum::Json as Answered;
use axum::extract::State;
use jiff::Timestamp;

use super::decide::checked_reason;
use super::mark::{decision, mark_new};
use super::{add, bound, unknown};
use crate::model::graph;
use crate::model::id::{FlowRunId, FlowVersionId};
use crate::model::run::{Decision, TaskRun, TaskRunKey};
use crate::model::state::State as RunState;
use crate::server::access::Access;
use crate::server::app::App;
use crate::server::db::flow_run::{self, Found, New};
use crate::server::db::flow_version::Version;
use crate::server::db::realm::Realm;
use crate::server::db::task_run::{self, Kept, Key};
use crate::server::db::tx::Tx;
use crate::server::db::{flow, location, requirement};
use crate::server::error::{Answer, ApiError, Code};
use crate::server::extract::{Json, Path};
use crate::wire::{ErrorBody, FlowRun, NewRetry, TaskMark};

/// Makes a new run in the place of one that is over, with the same parameters. What went well is kept: it is
/// not done again where nothing above it is. What is marked ends at once.
#[utoipa::path(post, path = "/api/flow-runs/{id}/retry", tag = "flow-run",
params(("id" = FlowRunId, Path)), request_body = NewRetry, responses(
    (status = 200, body = FlowRun), (status = "4XX", body = ErrorBody),
), security(("token" = [])))]
pub(in crate::server::api) async fn retry(
    State(app): State<App>,
    access: Access,
    Path(id): Path<FlowRunId>,
    Json(asked): Json<NewRetry>,
) -> Answer<Answered<FlowRun>> {
    access.may_change()?;
    let (now, memory) = (app.clock.now(), app.db.memory.clone());
    let marks = decisions(&asked, &access.name, now)?;
    let made = app
        .db
        .write(move |tx| {
            Box::pin(async move {
                let unseen = || unknown(id);
                let found = flow_run::find(tx, &memory, &access.realm, id).await?;
                let found = found.ok_or_else(unseen)?;
                check(&found, &asked)?;
                let version_id = match asked.is_newest {
                    true => newest(tx, &access.realm, &found).await?,
                    false => found.version.id,
                };
                let version = memory.version(tx, version_id).await?;
                let version = version.ok_or_else(unseen)?;
                let kept = match asked.is_whole {
                    true => Vec::new(),
                    false => kept(tx, &found.version, &version, id, &marks).await?,
                };
                let old = flow_run::read(tx, [id]).await?.pop().ok_or_else(unseen)?;
                let run = &found.flow_run;
                let places = location::list(tx, version.project_id, version.artifact).await?;
                let roots = places.into_iter().map(|place| place.root);
                let needed = version.requirement(&run.labels, roots);
                let new = New {
                    id: New::id_at(now, now),
                    flow_id: version.flow_id,
                    flow_version_id: version_id,
                    requirement_id: Some(requirement::intern(tx, &needed).await?),
                    parameters: bound(&version.definition.parameters, &run.parameters)?,
                    priority: run.priority,
                    created_at: now,
                    scheduled_at: now,
                    timeout_ms: old.timeout_ms,
                    clock: None,
                    overlap: version.overlap(),
                    idempotency: None,
                    by: access.name.clone(),
                };
                let made = add(tx, &new).await?;
                flow_run::keep(tx, &memory, made, id, kept, now, &access.name).await?;
                mark_new(tx, &memory, made, &version, &marks).await?;
                let made = flow_run::find(tx, &memory, &access.realm, made).await?;
                made.ok_or_else(unseen)
            })
        })
        .await?;
    let run = made.flow_run;
    app.announce(made.requirement_id, run.due_at, 1).await;
    Ok(Answered(run))
}

/// Returns the current version of a run's flow.
async fn newest(tx: &mut Tx, realm: &Realm, found: &Found) -> Answer<FlowVersionId> {
    let id = found.version.flow_id.to_string();
    let flow = flow::named(tx, realm, &id).await?.pop();
    let flow = flow.ok_or_else(|| unknown(found.flow_run.id))?;
    Ok(flow.flow.flow_version_id)
}

/// Checks what is marked of the new run.
fn decisions(asked: &NewRetry, by: &str, now: Timestamp) -> Answer<Vec<(TaskMark, Decision)>> {
    checked_reason(&asked.reason)?;
    let marks = asked.marks.iter().map(|mark| {
        let (output, reason) = (mark.output.clone(), asked.reason.clone());
        Ok((mark.clone(), decision(mark.state, output, reason, by, now)?))
    });
    marks.collect()
}

fn check(found: &Found, asked: &NewRetry) -> Answer<()> {
    let run = &found.flow_run;
    let (id, state) = (run.id, run.state);
    if !state.is_over() {
        let message = format!("the run `{id}` is not over: it is {state}");
        let hint = format!("waft flow-run cancel {id}");
        return Err(ApiError::new(Code::StateWrong, message).hint(hint));
    }
    if !asked.is_whole && asked.marks.is_empty() && matches!(state, RunState::Success) {
        let message = format!("the run `{id}` went well, so there is nothing to be done again");
        let hint = format!("waft flow-run retry {id} --whole");
        return Err(ApiError::new(Code::StateWrong, message).hint(hint));
    }
    Ok(())
}

/// Reads what a run of a version keeps of an earlier one, by the places of the new version. What is marked in the
/// new run is none of that, and what hangs on it is done again.
async fn kept(
    tx: &mut Tx,
    was: &Version,
    is: &Version,
    earlier: FlowRunId,
    marks: &[(TaskMark, Decision)],
) -> Answer<Vec<(Key, Kept)>> {
    let all = task_run::read_all(tx, earlier).await?;
    let shown = all.iter().map(|(key, kept)| {
        let name = was.task_name(key.1).to_owned();
        let mut task = kept.clone().listed(name, key.2);
        let mut marks = marks.iter().map(|(mark, _)| &mark.task_run);
        let is_marked = |mark: &TaskRunKey| {
            mark.task == task.task && (mark.map_index.is_none() || mark.map_index == key.2)
        };
        if marks.any(is_marked) {
            task.state = RunState::Cancelled;
        }
        task
    });
    let shown: Vec<TaskRun> = shown.collect();
    let holds: HashSet<_> = graph::kept(&is.definition, &shown);
    let kept = all
        .into_iter()
        .zip(shown)
        .filter_map(|((key, kept), shown)| {
            let place = is.places.get(&shown.task)?;
            let is_kept = holds.contains(&shown.key());
            is_kept.then_some(((earlier, *place, key.2), kept))
        });
    Ok(kept.collect())
}
