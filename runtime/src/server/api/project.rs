//! Projects.

use axum::Json as Answered;
use axum::extract::State;
use http::StatusCode;

use super::{checked_name, checked_slots, page_size};
use crate::model::id::ProjectId;
use crate::server::access::Access;
use crate::server::app::App;
use crate::server::db::realm::Realm;
use crate::server::db::tx::Tx;
use crate::server::db::{project, slot};
use crate::server::error::{Answer, ApiError, Code};
use crate::server::extract::{Json, Path, Query};
use crate::wire::{ErrorBody, ListQuery, NewProject, Page, Project, Slots};

/// Finds a project of the realm.
pub(super) async fn found(tx: &mut Tx, realm: &Realm, text: &str) -> Answer<Project> {
    let found = project::find(tx, realm, text).await?;
    found.ok_or_else(|| {
        let shown: String = text.escape_default().take(150).collect();
        ApiError::new(
            Code::ProjectUnknown,
            format!("there is no project `{shown}`"),
        )
        .hint(format!("waft project create {shown}"))
    })
}

/// Makes a project.
#[utoipa::path(post, path = "/api/projects", tag = "project", request_body = NewProject, responses(
    (status = 200, body = Project), (status = "4XX", body = ErrorBody),
), security(("token" = [])))]
pub(super) async fn create(
    State(app): State<App>,
    access: Access,
    Json(new): Json<NewProject>,
) -> Answer<Answered<Project>> {
    access.may_change()?;
    access.is_unbound()?;
    checked_name("project", &new.name)?;
    let now = app.clock.now();
    let project = Project {
        id: ProjectId::at(now.as_microsecond(), rand::random()),
        name: new.name,
        description: new.description,
        slots: None,
        created_at: now,
    };
    let added = project.clone();
    let is_new: bool = app
        .db
        .write(move |tx| {
            Box::pin(async move { project::add(tx, &added).await.map_err(ApiError::from) })
        })
        .await?;
    match is_new {
        true => Ok(Answered(project)),
        false => Err(ApiError::new(
            Code::ProjectExists,
            format!("there is a project `{}` already", project.name),
        )),
    }
}

/// Lists projects by name.
#[utoipa::path(get, path = "/api/projects", tag = "project", params(ListQuery), responses(
    (status = 200, body = Page<Project>), (status = "4XX", body = ErrorBody),
), security(("token" = [])))]
pub(super) async fn list(
    State(app): State<App>,
    access: Access,
    Query(query): Query<ListQuery>,
) -> Answer<Answered<Page<Project>>> {
    access.may_read()?;
    let limit = page_size(query.limit)?;
    let mut reader = app.db.reader().await?;
    let after = query.cursor.unwrap_or_default();
    let mut items = project::list(&mut reader, &access.realm, &after, limit + 1).await?;
    let next = super::next_of(&mut items, limit, |last| last.name.clone());
    Ok(Answered(Page { items, next }))
}

/// Sets how many runs of a project agents may have at one time. Others wait, Queued.
#[utoipa::path(put, path = "/api/projects/{project}/slots", tag = "project",
params(("project" = String, Path, description = "Name or id")), request_body = Slots, responses(
    (status = 200, body = Project), (status = "4XX", body = ErrorBody),
), security(("token" = [])))]
pub(super) async fn set_slots(
    State(app): State<App>,
    access: Access,
    Path(text): Path<String>,
    Json(asked): Json<Slots>,
) -> Answer<Answered<Project>> {
    access.may_change()?;
    let slots = checked_slots(&asked)?;
    let changed = app
        .db
        .write(move |tx| {
            Box::pin(async move {
                let project = found(tx, &access.realm, &text).await?;
                slot::set_project(tx, project.id, slots).await?;
                Ok::<_, ApiError>(Project { slots, ..project })
            })
        })
        .await?;
    app.nudge_queued();
    Ok(Answered(changed))
}

/// Deletes a project that has no flows.
#[utoipa::path(delete, path = "/api/projects/{project}", tag = "project",
params(("project" = String, Path, description = "Name or id")), responses(
    (status = 204), (status = "4XX", body = ErrorBody),
), security(("token" = [])))]
pub(super) async fn delete(
    State(app): State<App>,
    access: Access,
    Path(text): Path<String>,
) -> Answer<StatusCode> {
    access.may_change()?;
    access.is_unbound()?;
    app.db
        .write(move |tx| {
            Box::pin(async move {
                let project = found(tx, &access.realm, &text).await?;
                if project::delete(tx, project.id).await? {
                    return Ok(StatusCode::NO_CONTENT);
                }
                Err(ApiError::new(
                    Code::ProjectNotEmpty,
                    format!("the project `{}` still has flows", project.name),
                )
                .hint("waft flow delete FLOW for each of them"))
            })
        })
        .await
}
