//! The cleaner: forgets what was kept for long enough.
//!
//! Agents that were not heard of for a month, and silent sessions long before; runs that were over for as long
//! as runs are kept; and segments of results that nobody has used for as long as results are kept are doomed. Of who
//! was called for slots of tags, those are forgotten whose task run is over.
//!
//! A run that is not over needs what its tasks have returned, however long ago: its segments are
//! spared. Agents are asked to delete the doomed when they listen (`api/agent.rs`). Those under a root that
//! no agent has offered for a quarter of a year are forgotten: what may still lie there,
//! `waft storage verify` finds and deletes.

use std::time::Duration;

use jiff::SignedDuration;

use super::{note, rest};
use crate::server::app::App;
use crate::server::db::{DbError, agent, flow_run, segment, tag_slot};
use crate::server::news::News;

/// How often it looks.
const EVERY: Duration = Duration::from_secs(60 * 60);
/// Most runs that are forgotten in one transaction: with each go its log and its history.
const BATCH: u32 = 50;
/// How long an agent is remembered.
const UNSEEN: SignedDuration = SignedDuration::from_hours(30 * 24);

/// How long the doomed wait for an agent that offers their root.
const UNOFFERED: SignedDuration = SignedDuration::from_hours(90 * 24);

/// Cleans until the server goes down.
pub(super) async fn keep(app: App) {
    loop {
        note("cleaner", doom(&app).await);
        note("cleaner", forget_runs(&app).await);
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
    app.db
        .write(|tx| Box::pin(tag_slot::forget_called(tx)))
        .await?;
    let since = now.saturating_sub(UNSEEN).unwrap_or(now);
    app.db
        .write(move |tx| Box::pin(agent::forget_unseen(tx, since)))
        .await
}

/// Forgets the runs that were kept for long enough; answers how many.
///
/// # Errors
///
/// The database's.
pub async fn forget_runs(app: &App) -> Result<u64, DbError> {
    let keep = SignedDuration::try_from(app.runs_keep).unwrap_or(SignedDuration::MAX);
    // Nothing is that old where time has hardly begun.
    let Ok(before) = app.clock.now().checked_sub(keep) else {
        return Ok(0);
    };
    let mut count = 0;
    loop {
        let forget = app
            .db
            .write(move |tx| Box::pin(flow_run::forget(tx, before, BATCH)));
        let forgotten = forget.await?;
        count += forgotten;
        if forgotten < u64::from(BATCH) {
            break;
        }
    }
    if count > 0 {
        tracing::info!(runs = count, "runs were kept long enough");
    }
    Ok(count)
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
