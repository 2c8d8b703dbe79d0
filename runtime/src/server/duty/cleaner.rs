//! The cleaner: forgets agents that were not heard of for a month, and silent sessions long before;
//! and dooms segments of results that nobody has used for as long as results are kept.
//!
//! A run that is not over needs what its tasks have returned, however long ago: its segments are
//! spared. Agents are asked to delete the doomed when they listen (`api/agent.rs`). Those under a root that
//! no agent has offered for a quarter of a year are forgotten: what may still lie there,
//! `waft storage verify` finds and deletes.

use std::time::Duration;

use jiff::SignedDuration;

use super::{note, rest};
use crate::server::app::App;
use crate::server::db::{DbError, agent, segment};
use crate::server::news::News;

/// How often it looks.
const EVERY: Duration = Duration::from_secs(60 * 60);
/// How long an agent is remembered.
const UNSEEN: SignedDuration = SignedDuration::from_hours(30 * 24);

/// How long the doomed wait for an agent that offers their root.
const UNOFFERED: SignedDuration = SignedDuration::from_hours(90 * 24);

/// Cleans until the server goes down.
pub(super) async fn keep(app: App) {
    loop {
        note("cleaner", doom(&app).await);
        if !rest(&app, EVERY, std::future::pending()).await {
            return;
        }
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
    // Nothing is that old where time has hardly begun.
    if let Ok(before) = now.checked_sub(UNOFFERED) {
        let forget = app
            .db
            .write(move |tx| Box::pin(segment::forget_unreachable(tx, before)));
        let count = forget.await?;
        if count > 0 {
            tracing::warn!(
                segments = count,
                "no agent has offered the root of these results for a quarter of a year"
            );
        }
    }
    let since = now.saturating_sub(UNSEEN).unwrap_or(now);
    app.db
        .write(move |tx| Box::pin(agent::forget_unseen(tx, since)))
        .await
}

/// Dooms the segments that nobody needs any more; answers how many.
///
/// # Errors
///
/// The database's.
pub async fn doom(app: &App) -> Result<u64, DbError> {
    let now = app.clock.now();
    // Nothing is that old where time has hardly begun.
    let before = |since: jiff::Timestamp, by: SignedDuration| since.checked_sub(by).ok();
    let keep = SignedDuration::try_from(app.results_keep).unwrap_or(SignedDuration::MAX);
    let Some(old) = before(now, keep) else {
        return Ok(0);
    };
    let Some(unused) = before(old, segment::LAG) else {
        return Ok(0);
    };
    // A run that was made later has used all its segments later.
    let mut reader = app.db.reader().await?;
    let open = segment::long_open(&mut reader, old).await?;
    for run in open {
        let own = segment::of_run(&mut reader, run).await?;
        app.db
            .write(move |tx| Box::pin(async move { segment::spare(tx, &own, old, now).await }))
            .await?;
    }
    drop(reader);
    let mut count = 0;
    loop {
        let doomed = app
            .db
            .write(move |tx| Box::pin(segment::doom(tx, unused, now)));
        let (doomed, may_be_more) = doomed.await?;
        count += doomed;
        if !may_be_more {
            break;
        }
    }
    if count > 0 {
        tracing::info!(segments = count, "results were kept long enough");
        app.sessions.listening.tell_all();
        app.spread(News::Results);
    }
    Ok(count)
}
