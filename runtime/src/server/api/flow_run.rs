//! Flow runs. What people decide about their task runs is in `decide`, what they end by hand in `mark`, what they
//! have done again in `retry`.

pub mod cancel_all;
pub mod decide;
pub mod mark;
pub mod retry;

use axum::Json as Answered;
use axum::extract::State;
use http::StatusCode;

use super::{checked_labels, page_size, project};
use crate::model::artifact::Digest;
use crate::model::id::{FlowId, FlowRunId};
use crate::model::limit::RUN_WALL_MS;
use crate::model::parameter::{self, Bound};
use crate::model::run::{Card, TaskRun};
use crate::model::state::{Event, State as RunState};
use crate::server::access::Access;
use crate::server::app::App;
use crate::server::db::flow_run::{self, Filter, Found, Move, New, Standing};
use crate::server::db::realm::Realm;
use crate::server::db::tx::Tx;
use crate::server::db::{
    card, flow, flow_version, left_out, location, log_line, requirement, task_run, transition,
};
use crate::server::error::{Answer, ApiError, Code};
use crate::server::explain;
use crate::server::extract::{Json, Path, Query};
use crate::wire::{
    ErrorBody, Explanation, FlowRun, ListQuery, LogPage, LogQuery, NewFlowRun, Page, Transition,
    WatchQuery,
};

/// The longest that a run may be given: 30 days.
const TIMEOUT_MS_MAX: u64 = 30 * RUN_WALL_MS;

/// Finds a run of the realm.
async fn found(app: &App, tx: &mut Tx, realm: &Realm, id: FlowRunId) -> Answer<Found> {
    let found = flow_run::find(tx, &app.db.memory, realm, id).await?;
    found.ok_or_else(|| unknown(id))
}

fn unknown(id: FlowRunId) -> ApiError {
    ApiError::new(Code::FlowRunUnknown, format!("there is no flow run `{id}`"))
        .hint("waft flow-run list shows those there are")
}

/// Reads a run as it stands, to be changed by somebody who may see it.
///
/// # Errors
///
/// Refuses one that is not there for them.
async fn own(tx: &mut Tx, access: &Access, id: FlowRunId) -> Answer<Standing> {
    let run = flow_run::read(tx, [id]).await?.pop();
    let run = run.filter(|run| access.realm.has(run.project_id));
    run.ok_or_else(|| unknown(id))
}

fn over(run: &Standing, verb: &str) -> ApiError {
    let at = run.ended_at.map_or(String::new(), |at| format!(" at {at}"));
    let message = format!(
        "the run `{}` is over: it became {}{at}, so there is nothing to {verb}",
        run.id, run.state
    );
    ApiError::new(Code::FlowRunOver, message)
}

/// Makes a run of a flow.
#[utoipa::path(post, path = "/api/flow-runs", tag = "flow-run", request_body = NewFlowRun, responses(
    (status = 200, body = FlowRun), (status = "4XX", body = ErrorBody),
), security(("token" = [])))]
pub(super) async fn create(
    State(app): State<App>,
    access: Access,
    Json(mut asked): Json<NewFlowRun>,
) -> Answer<Answered<FlowRun>> {
    access.may_change()?;
    check(&asked)?;
    let mut reader = app.db.reader().await?;
    let flow = super::flow::found(&mut reader, &access.realm, &asked.flow)
        .await?
        .flow;
    // However the flow was named, the request is the same.
    asked.flow = flow.id.to_string();
    let digest = Digest::of(&serde_json::to_vec(&asked).unwrap_or_default());
    // A repeat gets its run whatever has become of the flow in between.
    if let Some(key) = &asked.idempotency_key
        && let Some(id) = made_before(&mut reader, flow.id, key, digest).await?
    {
        let made = flow_run::find(&mut reader, &app.db.memory, &access.realm, id).await?;
        let made = made.ok_or_else(|| unknown(id))?;
        return Ok(Answered(app.shown(made.flow_run)));
    }
    if flow.is_archived {
        return Err(archived(&flow.name));
    }
    let version_id = match asked.version {
        None => flow.flow_version_id,
        Some(number) => flow_version::by_number(&mut reader, flow.id, number)
            .await?
            .ok_or_else(|| {
                let (project, name) = (&flow.project, &flow.name);
                let message = format!("the flow `{name}` has no version {number}");
                ApiError::new(Code::VersionUnknown, message).hint(format!(
                    "waft flow versions {project}/{name} lists those there are"
                ))
            })?,
    };
    let version = app.db.memory.version(&mut reader, version_id).await?;
    let version = version.ok_or_else(|| archived(&flow.name))?;
    drop(reader);
    let parameters = bound(&version.definition.parameters, &asked.parameters)?;
    let now = app.clock.now();
    let new = New {
        id: New::id_at(now, asked.scheduled_at.unwrap_or(now)),
        flow_id: flow.id,
        flow_version_id: version_id,
        requirement_id: None,
        parameters,
        priority: asked.priority,
        created_at: now,
        scheduled_at: asked.scheduled_at.unwrap_or(now),
        timeout_ms: asked.timeout_ms.unwrap_or(RUN_WALL_MS),
        clock: None,
        overlap: version.overlap(),
        idempotency: asked.idempotency_key.map(|key| (key, digest)),
        by: access.name.clone(),
    };
    let made = {
        let (labels, version, memory) = (asked.labels, version.clone(), app.db.memory.clone());
        let realm = access.realm.clone();
        app.db
            .write(move |tx| {
                Box::pin(async move {
                    let mut new = new;
                    if !labels.is_empty() {
                        flow::share(tx, new.flow_id).await?;
                        let places =
                            location::list(tx, version.project_id, version.artifact).await?;
                        let roots = places.into_iter().map(|place| place.root);
                        let needed = version.requirement(&labels, roots);
                        new.requirement_id = Some(requirement::intern(tx, &needed).await?);
                    }
                    let id = add(tx, &new).await?;
                    let made = flow_run::find(tx, &memory, &realm, id).await?;
                    made.ok_or_else(|| unknown(id))
                })
            })
            .await?
    };
    let run = made.flow_run;
    if run.state == RunState::Scheduled {
        app.announce(made.requirement_id, run.scheduled_at, 1).await;
    }
    Ok(Answered(run))
}

/// Adds a run, or finds the one that the same request made before.
async fn add(tx: &mut Tx, new: &New) -> Answer<FlowRunId> {
    if flow_run::add(tx, new).await? {
        return Ok(new.id);
    }
    let known = match &new.idempotency {
        Some((key, digest)) => made_before(tx, new.flow_id, key, *digest).await?,
        None => None,
    };
    known.ok_or_else(|| archived(""))
}

/// Returns the run that the same request made before. A key belongs to one request.
async fn made_before(
    tx: &mut Tx,
    flow: FlowId,
    key: &str,
    digest: Digest,
) -> Answer<Option<FlowRunId>> {
    match flow_run::by_idempotency_key(tx, flow, key).await? {
        Some((id, made_by)) if made_by == digest => Ok(Some(id)),
        Some((id, _)) => {
            let key: String = key.escape_default().take(150).collect();
            Err(ApiError::new(
                Code::IdempotencyConflict,
                format!(
                    "the idempotency key `{key}` was used for another request, which made the run `{id}`"
                ),
            ))
        }
        None => Ok(None),
    }
}

fn archived(name: &str) -> ApiError {
    let message = match name {
        "" => "the flow is archived or gone".to_owned(),
        name => format!("the flow `{name}` is archived and takes no runs"),
    };
    ApiError::new(Code::FlowArchived, message).hint("waft register it again")
}

fn bound(parameters: &[parameter::Parameter], given: &Bound) -> Answer<Bound> {
    parameter::bind(parameters, given).map_err(|why| {
        let refused = ApiError::new(Code::ParametersBad, why.to_string());
        match why.hint() {
            Some(hint) => refused.hint(hint),
            None => refused,
        }
    })
}

fn check(asked: &NewFlowRun) -> Answer<()> {
    let bad = |message: String| Err(ApiError::new(Code::ValueBad, message));
    checked_labels(&asked.labels)?;
    if !(-100..=100).contains(&asked.priority) {
        return bad(format!("`priority` is −100 to 100, not {}", asked.priority));
    }
    let key = asked.idempotency_key.as_ref();
    if key.is_some_and(|key| key.is_empty() || key.len() > 256) {
        return bad("`idempotency_key` has 1 to 256 bytes".to_owned());
    }
    match asked.timeout_ms {
        Some(ms) if !(1..=TIMEOUT_MS_MAX).contains(&ms) => {
            bad("the timeout of a run is 1 ms to 30 days".to_owned())
        }
        _ => Ok(()),
    }
}

/// Lists runs, the last due first. Those that a schedule has made ahead are left out until they are
/// due, unless a state is asked for.
#[utoipa::path(get, path = "/api/flow-runs", tag = "flow-run", params(ListQuery), responses(
    (status = 200, body = Page<FlowRun>), (status = "4XX", body = ErrorBody),
), security(("token" = [])))]
pub(super) async fn list(
    State(app): State<App>,
    access: Access,
    Query(query): Query<ListQuery>,
) -> Answer<Answered<Page<FlowRun>>> {
    access.may_read()?;
    let limit = page_size(query.limit)?;
    let state = match query.state.as_deref().map(str::parse) {
        None => None,
        Some(Ok(state)) => Some(state),
        Some(Err(why)) => return Err(ApiError::new(Code::QueryBad, format!("`state`: {why}"))),
    };
    let state = match (query.late, state) {
        (false, state) => state,
        (true, None | Some(RunState::Scheduled)) => Some(RunState::Scheduled),
        (true, Some(state)) => {
            let message = format!("a run that is {state} is not late: only Scheduled ones are");
            return Err(ApiError::new(Code::QueryBad, message));
        }
    };
    let mut reader = app.db.reader().await?;
    let project = match &query.project {
        Some(text) => Some(project::found(&mut reader, &access.realm, text).await?),
        None => None,
    };
    let flow = match &query.flow {
        Some(text) => {
            // With a project a bare name is enough.
            let text = match &project {
                Some(project) if !text.contains('/') && text.parse::<FlowRunId>().is_err() => {
                    format!("{}/{text}", project.name)
                }
                _ => text.clone(),
            };
            Some(
                super::flow::found(&mut reader, &access.realm, &text)
                    .await?
                    .flow
                    .id,
            )
        }
        None => None,
    };
    let filter = Filter {
        realm: access.realm,
        project: project.map(|project| project.id),
        flow,
        state,
        before: super::cursor(query.cursor.as_deref())?,
        now: app.clock.now(),
        limit: limit + 1,
    };
    let mut items = flow_run::list(&mut reader, &app.db.memory, &filter).await?;
    let next = super::next_of(&mut items, limit, |last| last.id.to_string());
    let items = items.into_iter().map(|run| app.shown(run));
    let items = items.filter(|run| run.is_late || !query.late).collect();
    Ok(Answered(Page { items, next }))
}

/// Shows a run; with `after`, waits until it has moved beyond that transition.
#[utoipa::path(get, path = "/api/flow-runs/{id}", tag = "flow-run",
params(("id" = FlowRunId, Path), WatchQuery), responses(
    (status = 200, body = FlowRun), (status = "4XX", body = ErrorBody),
), security(("token" = [])))]
pub(super) async fn show(
    State(app): State<App>,
    access: Access,
    Path(id): Path<FlowRunId>,
    Query(query): Query<WatchQuery>,
) -> Answer<Answered<FlowRun>> {
    access.may_read()?;
    let end = app.patience(query.wait_seconds);
    let listener = app.changes.listen(id);
    loop {
        let told = listener.told();
        let mut reader = app.db.reader().await?;
        let run = found(&app, &mut reader, &access.realm, id).await?.flow_run;
        drop(reader);
        let is_new = query.after.is_none_or(|after| run.transition > after);
        if is_new || run.state.is_over() || !app.wait_for(told, end).await {
            return Ok(Answered(app.shown(run)));
        }
    }
}

/// Lists the task runs of a run, in the order of the definition; while it is not over, tasks that
/// nothing was heard of yet as Pending, on the last page.
#[utoipa::path(get, path = "/api/flow-runs/{id}/task-runs", tag = "flow-run",
params(("id" = FlowRunId, Path), ListQuery), responses(
    (status = 200, body = Page<TaskRun>), (status = "4XX", body = ErrorBody),
), security(("token" = [])))]
pub(super) async fn task_runs(
    State(app): State<App>,
    access: Access,
    Path(id): Path<FlowRunId>,
    Query(query): Query<ListQuery>,
) -> Answer<Answered<Page<TaskRun>>> {
    access.may_read()?;
    let limit = page_size(query.limit)?;
    let after = match query.cursor.as_deref().map(|text| text.split_once(' ')) {
        None => None,
        Some(None) => return Err(ApiError::new(Code::QueryBad, "`cursor` is not one")),
        Some(Some((place, index))) => {
            let place = super::cursor(Some(place))?.unwrap_or_default();
            Some((place, index.parse().ok()))
        }
    };
    let mut reader = app.db.reader().await?;
    let run = found(&app, &mut reader, &access.realm, id).await?;
    let mut rows = task_run::list(&mut reader, id, &run.version, after, limit + 1).await?;
    let next = super::next_of(&mut rows, limit, |((_, place, index), _)| {
        format!(
            "{place} {}",
            index.map_or("-".to_owned(), |index| index.to_string())
        )
    });
    let items = rows.into_iter().map(|(_, task)| task).collect();
    Ok(Answered(Page { items, next }))
}

/// Returns log lines after a number; waits for one if there is none and the run is not over.
#[utoipa::path(get, path = "/api/flow-runs/{id}/logs", tag = "flow-run",
params(("id" = FlowRunId, Path), LogQuery), responses(
    (status = 200, body = LogPage), (status = "4XX", body = ErrorBody),
), security(("token" = [])))]
pub(super) async fn logs(
    State(app): State<App>,
    access: Access,
    Path(id): Path<FlowRunId>,
    Query(query): Query<LogQuery>,
) -> Answer<Answered<LogPage>> {
    access.may_read()?;
    let limit = query.limit.unwrap_or(200);
    if !(1..=1_000).contains(&limit) {
        let message = format!("`limit` is 1 to 1000, not {limit}");
        return Err(ApiError::new(Code::QueryBad, message));
    }
    let end = app.patience(query.wait_seconds);
    let listener = app.changes.listen(id);
    loop {
        let told = listener.told();
        let mut reader = app.db.reader().await?;
        // The state is read before the lines: what was said before the end is then among them.
        let run = found(&app, &mut reader, &access.realm, id).await?;
        let lines = log_line::list(&mut reader, id, &run.version, query.after, limit).await?;
        drop(reader);
        let is_end = run.flow_run.state.is_over() && lines.len() < limit as usize;
        let page = LogPage { lines, is_end };
        if is_end || !page.lines.is_empty() || !app.wait_for(told, end).await {
            return Ok(Answered(page));
        }
    }
}

/// Lists what happened to a run and its task runs, oldest first.
#[utoipa::path(get, path = "/api/flow-runs/{id}/history", tag = "flow-run",
params(("id" = FlowRunId, Path), ListQuery), responses(
    (status = 200, body = Page<Transition>), (status = "4XX", body = ErrorBody),
), security(("token" = [])))]
pub(super) async fn history(
    State(app): State<App>,
    access: Access,
    Path(id): Path<FlowRunId>,
    Query(query): Query<ListQuery>,
) -> Answer<Answered<Page<Transition>>> {
    access.may_read()?;
    let limit = page_size(query.limit)?;
    let after = super::cursor(query.cursor.as_deref())?.unwrap_or_default();
    let mut reader = app.db.reader().await?;
    let run = found(&app, &mut reader, &access.realm, id).await?;
    let mut items = transition::list(&mut reader, id, &run.version, after, limit + 1).await?;
    let next = super::next_of(&mut items, limit, |last| last.number.to_string());
    Ok(Answered(Page { items, next }))
}

/// Lists the cards of a run.
#[utoipa::path(get, path = "/api/flow-runs/{id}/cards", tag = "flow-run",
params(("id" = FlowRunId, Path)), responses(
    (status = 200, body = Page<Card>), (status = "4XX", body = ErrorBody),
), security(("token" = [])))]
pub(super) async fn cards(
    State(app): State<App>,
    access: Access,
    Path(id): Path<FlowRunId>,
) -> Answer<Answered<Page<Card>>> {
    access.may_read()?;
    let mut reader = app.db.reader().await?;
    let run = found(&app, &mut reader, &access.realm, id).await?;
    let items = card::list(&mut reader, id, &run.version).await?;
    Ok(Answered(Page { items, next: None }))
}

/// Says why a run is where it is.
#[utoipa::path(get, path = "/api/flow-runs/{id}/explain", tag = "flow-run",
params(("id" = FlowRunId, Path)), responses(
    (status = 200, body = Explanation), (status = "4XX", body = ErrorBody),
), security(("token" = [])))]
pub(super) async fn explain(
    State(app): State<App>,
    access: Access,
    Path(id): Path<FlowRunId>,
) -> Answer<Answered<Explanation>> {
    access.may_read()?;
    let mut reader = app.db.reader().await?;
    let run = found(&app, &mut reader, &access.realm, id).await?;
    let explanation = explain::explain(&app, &mut reader, &access.realm, &run).await?;
    Ok(Answered(explanation))
}

/// Asks for a run to be stopped: at once if nobody has it, else by its agent.
#[utoipa::path(post, path = "/api/flow-runs/{id}/cancel", tag = "flow-run",
params(("id" = FlowRunId, Path)), responses(
    (status = 200, body = FlowRun), (status = "4XX", body = ErrorBody),
), security(("token" = [])))]
pub(super) async fn cancel(
    State(app): State<App>,
    access: Access,
    Path(id): Path<FlowRunId>,
) -> Answer<Answered<FlowRun>> {
    access.may_change()?;
    let (now, memory) = (app.clock.now(), app.db.memory.clone());
    let (run, agent) = app
        .db
        .write(move |tx| {
            Box::pin(async move {
                let mut run = own(tx, &access, id).await?;
                if run.state.is_over() {
                    return Err(over(&run, "cancel"));
                }
                let mut agent = None;
                if run.state != RunState::Cancelling {
                    let message = format!("asked for by `{}`", access.name);
                    let moved = Move {
                        event: Event::Cancel,
                        message: &message,
                        code: None,
                        at: now,
                        by: &access.name,
                    };
                    run.state.after(moved.event)?;
                    agent = flow_run::cancel(tx, &mut run, &moved).await?;
                    flow_run::apply(tx, vec![run]).await?;
                }
                let found = flow_run::find(tx, &memory, &access.realm, id).await?;
                Ok((found.ok_or_else(|| unknown(id))?.flow_run, agent))
            })
        })
        .await?;
    app.tell(&[id]);
    app.tell_agents(agent.as_slice());
    Ok(Answered(run))
}

/// Deletes a run that no agent has. If it was made ahead by a clock, none is made in its place.
#[utoipa::path(delete, path = "/api/flow-runs/{id}", tag = "flow-run",
params(("id" = FlowRunId, Path)), responses(
    (status = 204), (status = "4XX", body = ErrorBody),
), security(("token" = [])))]
pub(super) async fn delete(
    State(app): State<App>,
    access: Access,
    Path(id): Path<FlowRunId>,
) -> Answer<StatusCode> {
    access.may_change()?;
    let now = app.clock.now();
    app.db
        .write(move |tx| {
            Box::pin(async move {
                own(tx, &access, id).await?;
                left_out::add(tx, id, now).await?;
                match flow_run::delete(tx, id).await? {
                    true => Ok(StatusCode::NO_CONTENT),
                    false => Err(ApiError::new(
                        Code::FlowRunBusy,
                        format!("an agent has the run `{id}`"),
                    )
                    .hint(format!("waft flow-run cancel {id}"))),
                }
            })
        })
        .await
}
