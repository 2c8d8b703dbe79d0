//! Orphans: what lies in a storage and is needed by nobody that this server knows.
//!
//! The server sees no storage. Whoever looks into one asks here, in a batch, before anything is deleted.

use axum::Json as Answered;
use axum::extract::State;

use crate::server::access::Access;
use crate::server::app::App;
use crate::server::db::{flow_version, segment};
use crate::server::error::{Answer, ApiError, Code};
use crate::server::extract::Json;
use crate::wire::{ErrorBody, Orphans, Sighted};

/// Most things that are asked about in one call.
const SIGHTED_MAX: usize = 1_000;

/// Tells what of all that was found under a root nobody needs. Others may need what is shown to no bound
/// token, so such a token is refused.
#[utoipa::path(post, path = "/api/orphans", tag = "orphan", request_body = Sighted, responses(
    (status = 200, body = Orphans), (status = "4XX", body = ErrorBody),
), security(("token" = [])))]
pub(super) async fn find(
    State(app): State<App>,
    access: Access,
    Json(found): Json<Sighted>,
) -> Answer<Answered<Orphans>> {
    access.may_read()?;
    access.is_unbound()?;
    if found.segments.len() + found.artifacts.len() > SIGHTED_MAX {
        let message = format!("more than {SIGHTED_MAX} things in one call");
        return Err(ApiError::new(Code::ValueBad, message));
    }
    let mut reader = app.db.reader().await?;
    let mut orphans = Orphans::default();
    for key in found.segments {
        if !segment::is_known(&mut reader, &found.root, &key).await? {
            orphans.segments.push(key);
        }
    }
    if !found.artifacts.is_empty() {
        let known = flow_version::artifacts(&mut reader).await?;
        orphans.artifacts = found.artifacts;
        orphans
            .artifacts
            .retain(|artifact| !known.contains(artifact));
    }
    Ok(Answered(orphans))
}
