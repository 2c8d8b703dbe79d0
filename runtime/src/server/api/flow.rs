//! Flows and their versions.

use axum::Json as Answered;
use axum::extract::State;
use http::StatusCode;

use super::{checked_labels, checked_slots, page_size, project};
use crate::model::artifact::Digest;
use crate::model::flow::Definition;
use crate::model::id::FlowId;
use crate::model::schedule::CatchUp;
use crate::server::access::Access;
use crate::server::app::App;
use crate::server::db::flow::{self, Deleted, Found};
use crate::server::db::realm::Realm;
use crate::server::db::tx::Tx;
use crate::server::db::{self, DbError, flow_version, schedule, slot};
use crate::server::error::{Answer, ApiError, Code};
use crate::server::extract::{Json, Path, Query};
use crate::server::news::News;
use crate::server::registration::{self, Done};
use crate::wire::{
    ErrorBody, Flow, FlowVersion, ListQuery, Location, NewRollback, Page, Project, RegisterQuery,
    Registered, Registration, ResumeQuery, Slots,
};

/// Finds the flow that a text names: an id, `project/flow`, or a name that only one project has.
pub(super) async fn found(tx: &mut Tx, realm: &Realm, text: &str) -> Answer<Found> {
    let mut flows = flow::named(tx, realm, text).await?;
    if flows.len() > 1 {
        let names: Vec<_> = flows
            .iter()
            .map(|found| format!("`{}/{}`", found.flow.project, found.flow.name))
            .collect();
        let first = names[0].trim_matches('`').to_owned();
        let shown = names
            .iter()
            .take(10)
            .cloned()
            .collect::<Vec<_>>()
            .join(", ");
        return Err(ApiError::new(
            Code::FlowAmbiguous,
            format!("{} projects have a flow of this name: {shown}", names.len()),
        )
        .hint(format!("name it with its project: {first}")));
    }
    flows.pop().ok_or_else(|| {
        let shown: String = text.escape_default().take(150).collect();
        ApiError::new(Code::FlowUnknown, format!("there is no flow `{shown}`"))
            .hint("waft flow list shows those there are")
    })
}

/// Registers a version of a flow; the same one again changes nothing. With `renames` it follows the versions
/// of a flow that has had another name so far.
#[utoipa::path(post, path = "/api/projects/{project}/flows", tag = "flow",
params(("project" = String, Path, description = "Name or id"), RegisterQuery),
request_body = Registration, responses(
    (status = 200, body = Registered), (status = "4XX", body = ErrorBody),
), security(("token" = [])))]
pub(super) async fn register(
    State(app): State<App>,
    access: Access,
    Path(text): Path<String>,
    Query(query): Query<RegisterQuery>,
    Json(asked): Json<Registration>,
) -> Answer<Answered<Registered>> {
    access.may_change()?;
    checked_labels(&asked.labels)?;
    checked_location(asked.artifact, &asked.location)?;
    checked_definition(&asked.definition)?;
    let now = app.clock.now();
    let memory = app.db.memory.clone();
    let done = app
        .db
        .write(move |tx| {
            Box::pin(async move {
                let project = project::found(tx, &access.realm, &text).await?;
                if let Some(old) = &query.renames {
                    rename(tx, &project, old, &asked.definition.name).await?;
                }
                let by = access.name.as_str();
                let done = registration::register(tx, &memory, &project, asked, by, now).await?;
                Ok::<_, ApiError>(done)
            })
        })
        .await?;
    Ok(Answered(tell(&app, done).await))
}

/// Tells everybody concerned that another version is the current one of its flow.
async fn tell(app: &App, done: Done) -> Registered {
    app.nudge_schedules();
    // An agent that polls already may take from now what it could not take before.
    let version = done.registered.flow_version_id;
    if app.sessions.forgive_version(version) || done.changed.is_some() {
        app.announce_version(version).await;
    }
    app.spread(News::Version(version));
    done.registered
}

/// Gives a flow the name that its next version has. A repeat finds it done.
async fn rename(tx: &mut Tx, project: &Project, old: &str, new: &str) -> Answer<()> {
    let shown: String = old.escape_default().take(150).collect();
    if old == new {
        let message = format!("the flow is called `{shown}` already");
        return Err(ApiError::new(Code::ValueBad, message));
    }
    db::project::lock(tx, project.id).await?;
    let before = flow::in_project(tx, project.id, old).await?;
    let taken = flow::in_project(tx, project.id, new).await?;
    match (before, taken) {
        (Some(before), None) => Ok(flow::rename(tx, before.id, new).await?),
        (None, Some(taken)) if flow_version::was_called(tx, taken.id, old).await? => Ok(()),
        (Some(_), Some(_)) => {
            let message =
                format!("`{shown}` cannot be called `{new}`: there is a flow of this name");
            Err(ApiError::new(Code::FlowExists, message))
        }
        (None, _) => {
            let message = format!("there is no flow `{shown}` in `{}`", project.name);
            Err(ApiError::new(Code::FlowUnknown, message)
                .hint("waft flow list shows those there are"))
        }
    }
}

/// Makes another version of a flow the current one: the last before it, or the one that is asked for. Runs of
/// clocks that nobody has claimed are made again for it; all others keep what they were pinned to.
#[utoipa::path(post, path = "/api/flows/{flow}/rollback", tag = "flow",
params(("flow" = String, Path, description = "Id, name where unique, or `project/flow` (the slash encoded)")),
request_body = NewRollback,
responses((status = 200, body = Registered), (status = "4XX", body = ErrorBody)), security(("token" = [])))]
pub(super) async fn roll_back(
    State(app): State<App>,
    access: Access,
    Path(text): Path<String>,
    Json(asked): Json<NewRollback>,
) -> Answer<Answered<Registered>> {
    access.may_change()?;
    let (now, memory) = (app.clock.now(), app.db.memory.clone());
    let done = app
        .db
        .write(move |tx| {
            Box::pin(async move {
                let named = found(tx, &access.realm, &text).await?;
                db::project::lock(tx, named.project_id).await?;
                flow::lock(tx, named.flow.id).await?;
                let id = named.flow.id.to_string();
                let flow = found(tx, &access.realm, &id).await?.flow;
                if flow.is_archived {
                    let message = format!("the flow `{}` is archived", flow.name);
                    return Err(ApiError::new(Code::FlowArchived, message)
                        .hint("waft register lets it take runs again"));
                }
                let number = match asked.version {
                    Some(number) => Some(number),
                    None => flow_version::last_number(tx, flow.id, Some(flow.version)).await?,
                };
                let to = match number {
                    Some(number) => flow_version::by_number(tx, flow.id, number).await?,
                    None => None,
                };
                let to = to.ok_or_else(|| no_version(&flow, number))?;
                let current = flow.flow_version_id;
                let done = registration::roll_back(tx, &memory, current, to, now).await?;
                Ok::<_, ApiError>(done)
            })
        })
        .await?;
    Ok(Answered(tell(&app, done).await))
}

fn no_version(flow: &Flow, number: Option<u32>) -> ApiError {
    let (project, name) = (&flow.project, &flow.name);
    let message = match number {
        Some(number) => format!("the flow `{name}` has no version {number}"),
        None => format!("the flow `{name}` has no version before {}", flow.version),
    };
    ApiError::new(Code::VersionUnknown, message).hint(format!(
        "waft flow versions {project}/{name} lists those there are"
    ))
}

fn checked_definition(definition: &Definition) -> Answer<()> {
    definition.check().map_err(|why| {
        let name: String = definition.name.escape_default().take(150).collect();
        ApiError::new(
            Code::DefinitionBad,
            format!("the definition of `{name}` is not usable: {why}"),
        )
    })
}

/// Checks that a location could be one. Whether the bytes are there only an agent can find out.
fn checked_location(artifact: Digest, location: &Location) -> Answer<()> {
    const ROOTS: [&str; 7] = ["file", "s3", "gs", "az", "oci", "http", "https"];
    const LENGTH_MAX: usize = 1024;
    let (root, key) = (&location.root, &location.key);
    let is_root = root
        .split_once("://")
        .is_some_and(|(scheme, _)| ROOTS.contains(&scheme));
    let is_plain = |text: &String| text.len() <= LENGTH_MAX && !text.chars().any(char::is_control);
    let is_key =
        !key.is_empty() && !key.starts_with('/') && key.split('/').all(|part| part != "..");
    let is_place = is_root && is_plain(root) && is_plain(key) && is_key;
    if is_place && artifact.may_lie_at(key) {
        return Ok(());
    }
    let shown: String = format!("{root} {key}").escape_default().take(200).collect();
    let why = match is_place {
        true => "is where agents keep other things",
        false => "is no storage root with a key under it",
    };
    Err(ApiError::new(Code::LocationBad, format!("`{shown}` {why}")))
}

/// Lists flows by name. `flow` finds those of a name, so that a name can be resolved.
#[utoipa::path(get, path = "/api/flows", tag = "flow", params(ListQuery), responses(
    (status = 200, body = Page<Flow>), (status = "4XX", body = ErrorBody),
), security(("token" = [])))]
pub(super) async fn list(
    State(app): State<App>,
    access: Access,
    Query(query): Query<ListQuery>,
) -> Answer<Answered<Page<Flow>>> {
    access.may_read()?;
    let limit = page_size(query.limit)?;
    let mut reader = app.db.reader().await?;
    let project = match &query.project {
        Some(text) => Some(project::found(&mut reader, &access.realm, text).await?.id),
        None => None,
    };
    if let Some(text) = &query.flow {
        let mut flows = flow::named(&mut reader, &access.realm, text).await?;
        flows.retain(|found| project.is_none_or(|id| found.project_id == id));
        let items = flows.into_iter().map(|found| found.flow).collect();
        return Ok(Answered(Page { items, next: None }));
    }
    let cursor = query.cursor.unwrap_or_default();
    let (name, id) = match cursor.split_once(' ') {
        Some((name, id)) => (name, super::cursor::<FlowId>(Some(id))?),
        None => ("", None),
    };
    let mut flows = flow::list(&mut reader, &access.realm, project, (name, id), limit + 1).await?;
    let next = super::next_of(&mut flows, limit, |last| {
        format!("{} {}", last.flow.name, last.flow.id)
    });
    let items = flows.into_iter().map(|found| found.flow).collect();
    Ok(Answered(Page { items, next }))
}

/// Shows a flow.
#[utoipa::path(get, path = "/api/flows/{flow}", tag = "flow",
params(("flow" = String, Path, description = "Id, name where unique, or `project/flow` (the slash encoded)")),
responses((status = 200, body = Flow), (status = "4XX", body = ErrorBody)), security(("token" = [])))]
pub(super) async fn show(
    State(app): State<App>,
    access: Access,
    Path(text): Path<String>,
) -> Answer<Answered<Flow>> {
    access.may_read()?;
    let mut reader = app.db.reader().await?;
    Ok(Answered(
        found(&mut reader, &access.realm, &text).await?.flow,
    ))
}

/// Lists the versions of a flow, newest first, whole. A page ends early where the definitions become
/// many bytes.
#[utoipa::path(get, path = "/api/flows/{flow}/versions", tag = "flow",
params(("flow" = String, Path, description = "Id, name where unique, or `project/flow` (the slash encoded)"), ListQuery),
responses((status = 200, body = Page<FlowVersion>), (status = "4XX", body = ErrorBody)), security(("token" = [])))]
pub(super) async fn versions(
    State(app): State<App>,
    access: Access,
    Path(text): Path<String>,
    Query(query): Query<ListQuery>,
) -> Answer<Answered<Page<FlowVersion>>> {
    access.may_read()?;
    let limit = page_size(query.limit)?;
    let before = super::cursor(query.cursor.as_deref())?.unwrap_or(u32::MAX);
    let mut reader = app.db.reader().await?;
    let flow = found(&mut reader, &access.realm, &text).await?.flow.id;
    let (items, is_cut) = flow_version::list(&mut reader, flow, before, limit).await?;
    let last = items.last().filter(|_| is_cut);
    let next = last.map(|last| last.version.to_string());
    Ok(Answered(Page { items, next }))
}

/// Lets the schedule of a flow rest: the runs made ahead are taken back, those that are due stay.
#[utoipa::path(post, path = "/api/flows/{flow}/pause", tag = "flow",
params(("flow" = String, Path, description = "Id, name where unique, or `project/flow` (the slash encoded)")),
responses((status = 200, body = Flow), (status = "4XX", body = ErrorBody)), security(("token" = [])))]
pub(super) async fn pause(
    State(app): State<App>,
    access: Access,
    Path(text): Path<String>,
) -> Answer<Answered<Flow>> {
    change(app, access, text, Change::Pause).await
}

/// Lets the schedule of a flow go on. What it missed while it rested is caught up as the schedule says,
/// or as `catch_up` does.
#[utoipa::path(post, path = "/api/flows/{flow}/resume", tag = "flow",
params(("flow" = String, Path, description = "Id, name where unique, or `project/flow` (the slash encoded)"), ResumeQuery),
responses((status = 200, body = Flow), (status = "4XX", body = ErrorBody)), security(("token" = [])))]
pub(super) async fn resume(
    State(app): State<App>,
    access: Access,
    Path(text): Path<String>,
    Query(query): Query<ResumeQuery>,
) -> Answer<Answered<Flow>> {
    change(app, access, text, Change::Resume(query.catch_up)).await
}

/// Archives a flow: it takes no runs until it is registered again. Runs that were made stay.
#[utoipa::path(post, path = "/api/flows/{flow}/archive", tag = "flow",
params(("flow" = String, Path, description = "Id, name where unique, or `project/flow` (the slash encoded)")),
responses((status = 200, body = Flow), (status = "4XX", body = ErrorBody)), security(("token" = [])))]
pub(super) async fn archive(
    State(app): State<App>,
    access: Access,
    Path(text): Path<String>,
) -> Answer<Answered<Flow>> {
    change(app, access, text, Change::Archive).await
}

#[derive(Clone, Copy)]
enum Change {
    Pause,
    Resume(Option<CatchUp>),
    Archive,
}

async fn change(app: App, access: Access, text: String, what: Change) -> Answer<Answered<Flow>> {
    access.may_change()?;
    let now = app.clock.now();
    let changed = app
        .db
        .write(move |tx| {
            Box::pin(async move {
                let named = found(tx, &access.realm, &text).await?.flow.id;
                flow::lock(tx, named).await?;
                let before = found(tx, &access.realm, &named.to_string()).await?.flow;
                let since = match what {
                    Change::Archive => flow::archive(tx, before.id).await.map(|()| None)?,
                    Change::Pause => flow::pause(tx, before.id, now).await.map(|()| None)?,
                    Change::Resume(_) => flow::resume(tx, before.id).await?,
                };
                match what {
                    Change::Resume(_) if !before.is_paused && !before.is_archived => {}
                    Change::Resume(catch_up) if !before.is_archived => {
                        let since = since.map_or(now, |since| since.min(now));
                        schedule::activate(tx, before.id, since, catch_up).await?;
                    }
                    _ => {
                        schedule::deactivate(tx, before.id).await?;
                        schedule::delete_ahead(tx, before.id, now).await?;
                    }
                }
                let after = found(tx, &access.realm, &before.id.to_string()).await?;
                Ok::<_, ApiError>(after.flow)
            })
        })
        .await?;
    app.nudge_schedules();
    Ok(Answered(changed))
}

/// Sets how many runs of a flow agents may have at one time. Others wait, Queued.
#[utoipa::path(put, path = "/api/flows/{flow}/slots", tag = "flow",
params(("flow" = String, Path, description = "Id, name where unique, or `project/flow` (the slash encoded)")),
request_body = Slots, responses((status = 200, body = Flow), (status = "4XX", body = ErrorBody)), security(("token" = [])))]
pub(super) async fn set_slots(
    State(app): State<App>,
    access: Access,
    Path(text): Path<String>,
    Json(asked): Json<Slots>,
) -> Answer<Answered<Flow>> {
    access.may_change()?;
    let slots = checked_slots(&asked)?;
    let changed = app
        .db
        .write(move |tx| {
            Box::pin(async move {
                let flow = found(tx, &access.realm, &text).await?.flow;
                slot::set_flow(tx, flow.id, slots).await?;
                Ok::<_, ApiError>(Flow { slots, ..flow })
            })
        })
        .await?;
    app.nudge_queued();
    Ok(Answered(changed))
}

/// Deletes a flow with its versions and runs.
#[utoipa::path(delete, path = "/api/flows/{flow}", tag = "flow",
params(("flow" = String, Path, description = "Id, name where unique, or `project/flow` (the slash encoded)")),
responses((status = 204), (status = "4XX", body = ErrorBody)), security(("token" = [])))]
pub(super) async fn delete(
    State(app): State<App>,
    access: Access,
    Path(text): Path<String>,
) -> Answer<StatusCode> {
    access.may_change()?;
    let flow = app
        .db
        .write(move |tx| {
            Box::pin(async move {
                let flow = found(tx, &access.realm, &text).await?.flow;
                flow::lock(tx, flow.id).await?;
                if flow::is_busy(tx, flow.id).await? {
                    return Err(busy(&flow.name));
                }
                // What is left after a crash in the middle is a flow that takes no runs.
                flow::archive(tx, flow.id).await?;
                schedule::deactivate(tx, flow.id).await?;
                Ok(flow)
            })
        })
        .await?;
    let id = flow.id;
    loop {
        let deleted = app
            .db
            .write(move |tx| Box::pin(flow::delete_some(tx, id)))
            .await
            .map_err(|error: DbError| ApiError::from(error))?;
        match deleted {
            Deleted::Some => {}
            Deleted::All => return Ok(StatusCode::NO_CONTENT),
            Deleted::Busy => return Err(busy(&flow.name)),
        }
    }
}

fn busy(name: &str) -> ApiError {
    let message = format!("an agent has a run of the flow `{name}`");
    ApiError::new(Code::FlowBusy, message).hint("waft flow-run cancel ID, then delete the flow")
}
