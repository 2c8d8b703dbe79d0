//! The API: one file for each noun, the routes here.
//!
//! A handler takes what `extract` and `access` give it, asks the database's functions, and answers
//! with a type of `wire`. What it may do is its first line.

pub mod agent;
pub mod flow;
pub mod flow_run;
pub mod health;
pub mod orphan;
pub mod project;
pub mod tag;
pub mod token;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use http::Uri;
use utoipa::OpenApi as _;
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::app::App;
use super::error::{Answer, ApiError, Code};
use crate::model::flow::is_name;
use crate::model::limit::{DEFINITION_BYTES_MAX, KIB, MIB};
use crate::wire::Slots;

/// Most bytes of a body, unless the call takes more.
const BODY_BYTES_MAX: usize = 64 * KIB as usize;
/// Most bytes of a registration: a definition and what goes with it.
const REGISTRATION_BYTES_MAX: usize = DEFINITION_BYTES_MAX + 128 * KIB as usize;
/// Most bytes of the request for a run, its parameters, and of other requests that carry lists.
const NEW_RUN_BYTES_MAX: usize = MIB as usize;
/// Most bytes of a batch of reports.
const REPORT_BYTES_MAX: usize = 16 * MIB as usize;

#[derive(utoipa::OpenApi)]
#[openapi(info(
    title = "waft",
    description = "Flows, their runs, and the agents that execute them.",
    license(name = "Apache-2.0", identifier = "Apache-2.0")
))]
struct Document;

/// Makes the routes of the API and the document about them.
pub(super) fn routes() -> (Router<App>, utoipa::openapi::OpenApi) {
    let limited = |bytes| DefaultBodyLimit::max(bytes);
    let small = OpenApiRouter::new()
        .routes(routes!(health::health))
        .routes(routes!(project::create, project::list))
        .routes(routes!(project::delete))
        .routes(routes!(flow::list))
        .routes(routes!(flow::show, flow::delete))
        .routes(routes!(flow::versions))
        .routes(routes!(flow::pause))
        .routes(routes!(flow::resume))
        .routes(routes!(flow::archive))
        .routes(routes!(flow::roll_back))
        .routes(routes!(flow::set_slots))
        .routes(routes!(project::set_slots))
        .routes(routes!(tag::list))
        .routes(routes!(tag::set_slots))
        .routes(routes!(flow_run::show, flow_run::delete))
        .routes(routes!(flow_run::task_runs))
        .routes(routes!(flow_run::logs))
        .routes(routes!(flow_run::history))
        .routes(routes!(flow_run::cards))
        .routes(routes!(flow_run::explain))
        .routes(routes!(flow_run::cancel))
        .routes(routes!(flow_run::cancel_all::cancel_all))
        .routes(routes!(flow_run::decide::decide))
        .routes(routes!(token::create, token::list))
        .routes(routes!(token::revoke))
        .routes(routes!(agent::fleet::list))
        .routes(routes!(agent::fleet::show))
        .routes(routes!(agent::fleet::drain))
        .routes(routes!(agent::poll))
        .routes(routes!(agent::leave))
        .layer(limited(BODY_BYTES_MAX));
    let runs = OpenApiRouter::new()
        .routes(routes!(flow_run::create, flow_run::list))
        .routes(routes!(flow_run::mark::mark))
        .routes(routes!(flow_run::retry::retry))
        .routes(routes!(orphan::find))
        // What an agent offers and what it has at work grow with its configuration.
        .routes(routes!(agent::open_session))
        .routes(routes!(agent::listen))
        .routes(routes!(agent::renew))
        .routes(routes!(agent::deletions))
        .layer(limited(NEW_RUN_BYTES_MAX));
    let registrations = OpenApiRouter::new()
        .routes(routes!(flow::register))
        .layer(limited(REGISTRATION_BYTES_MAX));
    let reports = OpenApiRouter::new()
        .routes(routes!(agent::report))
        .layer(limited(REPORT_BYTES_MAX));
    let (router, mut document) = OpenApiRouter::with_openapi(Document::openapi())
        .merge(small)
        .merge(runs)
        .merge(registrations)
        .merge(reports)
        .split_for_parts();
    let bearer = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).build();
    let components = document.components.get_or_insert_with(Default::default);
    components.add_security_scheme("token", SecurityScheme::Http(bearer));
    name_operations(&mut document);
    (router, document)
}

/// Names each operation by its noun and its verb: an id has to be unique in the whole document.
fn name_operations(document: &mut utoipa::openapi::OpenApi) {
    for item in document.paths.paths.values_mut() {
        let operations = [
            &mut item.get,
            &mut item.put,
            &mut item.post,
            &mut item.delete,
        ];
        for operation in operations.into_iter().flatten() {
            let noun = operation.tags.as_ref().and_then(|tags| tags.first());
            if let (Some(noun), Some(verb)) = (noun, &operation.operation_id) {
                let id = format!("{noun}_{verb}").replace('-', "_");
                operation.operation_id = Some(id);
            }
        }
    }
}

/// Answers for an address that there is not.
pub(super) async fn unknown_route(uri: Uri) -> ApiError {
    let path: String = uri.path().escape_default().take(200).collect();
    ApiError::new(Code::RouteUnknown, format!("there is nothing at `{path}`"))
        .hint("GET /api/openapi.json lists what there is")
}

/// Answers for a method that an address does not take.
pub(super) async fn wrong_method(uri: Uri) -> ApiError {
    let path: String = uri.path().escape_default().take(200).collect();
    ApiError::new(
        Code::MethodWrong,
        format!("`{path}` does not take this method"),
    )
}

/// Returns how many objects a page has: 1 to 200, 50 unless given.
fn page_size(limit: Option<u32>) -> Answer<u32> {
    match limit.unwrap_or(50) {
        limit @ 1..=200 => Ok(limit),
        limit => Err(ApiError::new(
            Code::QueryBad,
            format!("`limit` is 1 to 200, not {limit}"),
        )),
    }
}

/// Reads a cursor.
fn cursor<T: std::str::FromStr>(text: Option<&str>) -> Answer<Option<T>> {
    text.map(|text| {
        text.parse().map_err(|_| {
            ApiError::new(Code::QueryBad, "`cursor` is not one that a page ended with")
        })
    })
    .transpose()
}

/// Checks a name that somebody wants something to have.
fn checked_name(what: &str, name: &str) -> Answer<()> {
    if is_name(name) {
        return Ok(());
    }
    let shown: String = name.escape_default().take(150).collect();
    Err(ApiError::new(
        Code::NameBad,
        format!(
            "the {what} name `{shown}` is not allowed: expected 1 to 128 letters, digits, `-`, `_` or `.`, \
             one of them a letter or digit"
        ),
    ))
}

/// Checks labels that somebody typed.
fn checked_labels(labels: &crate::model::label::Labels) -> Answer<()> {
    /// Most labels of a version or a run.
    const LABELS_MAX: usize = 64;
    if labels.iter().count() > LABELS_MAX {
        return Err(ApiError::new(
            Code::LabelBad,
            format!("more than {LABELS_MAX} labels"),
        ));
    }
    for label in labels.iter() {
        crate::model::label::checked(label)
            .map_err(|error| ApiError::new(Code::LabelBad, error.to_string()))?;
    }
    Ok(())
}

/// Checks a number of slots that somebody typed.
fn checked_slots(asked: &Slots) -> Answer<Option<u32>> {
    /// More than any fleet has.
    const SLOTS_MAX: u32 = 1_000_000;
    match asked.slots {
        Some(slots) if !(1..=SLOTS_MAX).contains(&slots) => Err(ApiError::new(
            Code::ValueBad,
            format!("`slots` is 1 to {SLOTS_MAX}, or null for no limit, not {slots}"),
        )
        .hint("waft flow pause FLOW lets a schedule rest")),
        slots => Ok(slots),
    }
}

/// Cuts a list that was read one longer than a page, and returns where the next page begins.
fn next_of<T>(items: &mut Vec<T>, limit: u32, cursor: impl Fn(&T) -> String) -> Option<String> {
    if items.len() <= limit as usize {
        return None;
    }
    items.truncate(limit as usize);
    items.last().map(cursor)
}
