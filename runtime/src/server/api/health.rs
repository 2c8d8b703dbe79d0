//! Whether the server is well.

use axum::Json;
use axum::extract::State;

use crate::server::app::App;
use crate::server::error::Answer;
use crate::wire::{ErrorBody, Health, PROTOCOL};

/// Tells whether the server is well: it can read its database. Needs no token.
#[utoipa::path(get, path = "/api/health", tag = "server", responses(
    (status = 200, body = Health), (status = "5XX", body = ErrorBody),
))]
pub(super) async fn health(State(app): State<App>) -> Answer<Json<Health>> {
    drop(app.db.reader().await?);
    Ok(Json(Health {
        status: "ok".to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        protocol: PROTOCOL,
    }))
}
