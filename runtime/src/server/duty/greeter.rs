//! The greeter: notes which agents are there, for the other servers of the database, and wakes polls for
//! runs of which they had no time to tell.

use std::time::Duration;

use super::{note, rest};
use crate::server::app::App;
use crate::server::db::{DbError, agent, flow_run};

/// How often agents are noted.
const EVERY: Duration = Duration::from_secs(2);
/// How often polls are woken for what waits, in steps of [`EVERY`].
const LOOK: u32 = 2;

/// Greets until the server goes down.
pub(super) async fn keep(app: App) {
    let mut nth = 0_u32;
    loop {
        nth = nth.wrapping_add(1);
        note("greeter", greet(&app).await);
        if nth.is_multiple_of(LOOK) {
            note("greeter", look(&app).await);
        }
        if !rest(&app, EVERY, std::future::pending()).await {
            return;
        }
    }
}

/// Notes which agents are there.
///
/// # Errors
///
/// The database's.
pub async fn greet(app: &App) -> Result<(), DbError> {
    let there = app.sessions.there(app.clock.monotonic());
    if there.is_empty() {
        return Ok(());
    }
    let own = app.clone();
    app.db
        .write(move |tx| {
            Box::pin(async move {
                let now = own.lease_now(tx).await?;
                agent::heard(tx, &there, now).await
            })
        })
        .await
}

/// Wakes a poll for each line of runs that are due: a server that ends between its commit and its news
/// tells nobody.
///
/// # Errors
///
/// The database's.
pub async fn look(app: &App) -> Result<(), DbError> {
    if app.waiting_polls() == 0 {
        return Ok(());
    }
    let now = app.clock.now();
    let mut reader = app.db.reader().await?;
    let mut heads = flow_run::heads(&mut reader).await?;
    drop(reader);
    heads.retain(|head| head.due_at <= now);
    for head in heads {
        app.wake(head.requirement_id, 1).await?;
    }
    Ok(())
}
