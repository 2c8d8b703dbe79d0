//! Tags of tasks: how many task runs with one of them may run at one time.

use axum::Json as Answered;
use axum::extract::State;

use super::{checked_slots, project};
use crate::model::id::{AgentId, ProjectId};
use crate::model::label;
use crate::server::access::Access;
use crate::server::app::App;
use crate::server::db::tx::Tx;
use crate::server::db::{DbError, flow_run, tag, tag_slot};
use crate::server::error::{Answer, ApiError, Code};
use crate::server::extract::{Json, Path, Query};
use crate::wire::{ErrorBody, ListQuery, Page, Slots, Tag};

/// Most tags of a project that have a number of slots.
const TAGS_MAX: usize = 1_000;

/// Lists the tags that have a number of slots, by project and name, all in one page.
#[utoipa::path(get, path = "/api/tags", tag = "tag", params(ListQuery), responses(
    (status = 200, body = Page<Tag>), (status = "4XX", body = ErrorBody),
), security(("token" = [])))]
pub(super) async fn list(
    State(app): State<App>,
    access: Access,
    Query(query): Query<ListQuery>,
) -> Answer<Answered<Page<Tag>>> {
    access.may_read()?;
    let mut reader = app.db.reader().await?;
    let only = match &query.project {
        Some(text) => Some(project::found(&mut reader, &access.realm, text).await?.id),
        None => None,
    };
    let mut items = Vec::new();
    for (id, name) in tag::projects(&mut reader).await? {
        if access.realm.has(id) && only.is_none_or(|only| only == id) {
            items.extend(tags_of(&mut reader, id, &name).await?);
        }
    }
    Ok(Answered(Page { items, next: None }))
}

/// Lists the tags of a project that have a number of slots, by name.
async fn tags_of(tx: &mut Tx, id: ProjectId, project: &str) -> Result<Vec<Tag>, DbError> {
    let holders = tag_slot::holders(tx, id).await?;
    let waiting = tag_slot::waiting(tx, id).await?;
    let mut tags = Vec::new();
    for (name, slots) in tag::numbers(tx, id).await? {
        let taken = holders.iter().filter(|one| one.tags.contains(&name));
        tags.push(Tag {
            project: project.to_owned(),
            slots: Some(slots),
            taken: u32::try_from(taken.count()).unwrap_or(u32::MAX),
            waiting: waiting.get(&name).copied().unwrap_or_default(),
            name,
        });
    }
    tags.sort_by(|one, other| one.name.cmp(&other.name));
    Ok(tags)
}

/// Sets how many task runs with a tag may run at one time, over all flows and agents of a project. Those that have
/// begun go on, and count; others wait, Queued.
#[utoipa::path(put, path = "/api/projects/{project}/tags/{tag}/slots", tag = "tag",
params(("project" = String, Path, description = "Name or id"), ("tag" = String, Path)),
request_body = Slots, responses(
    (status = 200, body = Tag), (status = "4XX", body = ErrorBody),
), security(("token" = [])))]
pub(super) async fn set_slots(
    State(app): State<App>,
    access: Access,
    Path((text, name)): Path<(String, String)>,
    Json(asked): Json<Slots>,
) -> Answer<Answered<Tag>> {
    access.may_change()?;
    let slots = checked_slots(&asked)?;
    label::checked(&name).map_err(|error| {
        let message = error.to_string();
        let message = message.replace(" is not a label:", " is not a tag:");
        ApiError::new(Code::NameBad, message)
    })?;
    let (now, memory) = (app.clock.now(), app.db.memory.clone());
    let (id, changed, agents) = app
        .db
        .write(move |tx| {
            Box::pin(async move {
                let project = project::found(tx, &access.realm, &text).await?;
                tag::lock(tx, project.id).await?;
                let known = tag::numbers(tx, project.id).await?;
                if slots.is_some() && !known.contains_key(&name) && known.len() >= TAGS_MAX {
                    let message = format!("more than {TAGS_MAX} tags of a project have slots");
                    return Err(ApiError::new(Code::ValueBad, message));
                }
                if slots.is_some() {
                    flow_run::lock_leased(tx, project.id).await?;
                }
                tag::set(tx, project.id, &name, slots, now).await?;
                if slots.is_some() {
                    tag_slot::count_in(tx, &memory, project.id, &name, now).await?;
                }
                let mut tags = tags_of(tx, project.id, &project.name).await?;
                let position = tags.iter().position(|tag| tag.name == name);
                let changed = position.map_or_else(
                    || Tag {
                        name: name.clone(),
                        project: project.name.clone(),
                        slots: None,
                        taken: 0,
                        waiting: 0,
                    },
                    |at| tags.swap_remove(at),
                );
                let agents = flow_run::agents_of(tx, project.id).await?;
                Ok::<(ProjectId, Tag, Vec<AgentId>), ApiError>((project.id, changed, agents))
            })
        })
        .await?;
    // Whose run it has heard of it before the next of its tasks begins.
    app.tell_agents(&agents);
    app.give_slots([id]).await;
    app.nudge_queued();
    Ok(Answered(changed))
}
