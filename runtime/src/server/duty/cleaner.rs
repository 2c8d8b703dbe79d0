//! The cleaner: forgets agents that were not heard of for a month, and silent sessions long before.

use std::time::Duration;

use jiff::SignedDuration;

use super::{note, rest};
use crate::server::app::App;
use crate::server::db::{DbError, agent};

/// How often it looks.
const EVERY: Duration = Duration::from_secs(60 * 60);
/// How long an agent is remembered.
const UNSEEN: SignedDuration = SignedDuration::from_hours(30 * 24);

/// Cleans until the server goes down.
pub(super) async fn keep(app: App) {
    while rest(&app, EVERY, std::future::pending()).await {
        note("cleaner", clean(&app).await);
    }
}

/// Cleans once; answers how many agents were forgotten.
///
/// # Errors
///
/// The database's.
pub async fn clean(app: &App) -> Result<u64, DbError> {
    app.sessions.forget_silent(app.clock.monotonic());
    let now = app.clock.now();
    let since = now.saturating_sub(UNSEEN).unwrap_or(now);
    app.db
        .write(move |tx| Box::pin(agent::forget_unseen(tx, since)))
        .await
}
