//! The teller: tells the other servers of the database what has happened at this one.

use std::time::Duration;

use super::{note, rest};
use crate::server::app::App;
use crate::server::db::DbError;

/// How often it speaks though it has nothing to say, so that everybody knows that they are heard.
pub(super) const SIGN: Duration = Duration::from_secs(5);

/// Tells until the server goes down. While it tells, what is to be told next gathers.
pub(super) async fn keep(app: App) {
    loop {
        note("teller", tell(&app).await);
        if !rest(&app, SIGN, app.herald.bell.notified()).await {
            // What happened last is told as well.
            note("teller", tell(&app).await);
            return;
        }
    }
}

/// Tells what waits to be told. What cannot be told is forgotten: others find it by themselves.
///
/// # Errors
///
/// The database's.
pub async fn tell(app: &App) -> Result<(), DbError> {
    app.db.tell(app.herald.take()).await
}
