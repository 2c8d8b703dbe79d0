//! The rescuer: gives runs back whose agent has not been heard of for a lease.

use std::time::Duration;

use super::{note, rest};
use crate::model::id::FlowRunId;
use crate::model::state::State;
use crate::server::app::App;
use crate::server::db::flow_run::{self, Standing};
use crate::server::db::tx::Tx;
use crate::server::db::{DbError, lease, pulse};

/// Most runs of one transaction.
const BATCH: u32 = 500;

/// Rescues until the server goes down.
///
/// After a gap (the start of the server, or a stop of its process) no lease could be renewed through
/// no fault of the agents, so every lease is given its full length once. Where servers share a database
/// there is a gap when none of them was there, which their pulse tells.
pub(super) async fn keep(app: App) {
    let every = (app.lease / 10).clamp(Duration::from_millis(100), Duration::from_secs(1));
    let mut last = None;
    loop {
        let now = app.clock.monotonic();
        // A gap is a stop of this process. The clock of a test stands still between its steps and
        // leaps in them, which says nothing about the process.
        let is_stop = |last| app.clock.is_system() && now.since(last) > gap(&app);
        let is_gap = !app.has_pulse() && last.is_none_or(is_stop);
        last = Some(now);
        let result = match is_gap {
            true => extend(&app).await,
            false => rescue(&app).await.map(drop),
        };
        note("rescuer", result);
        if !rest(&app, every, std::future::pending()).await {
            return;
        }
    }
}

/// Returns how long nobody may be there before every lease is given its full length.
fn gap(app: &App) -> Duration {
    app.lease / 2
}

/// Gives every lease its full length from now; where servers share a database, only if none of them was
/// there.
///
/// # Errors
///
/// The database's.
pub async fn extend(app: &App) -> Result<(), DbError> {
    let app = app.clone();
    let db = app.db.clone();
    db.write(move |tx| {
        Box::pin(async move {
            let now = app.lease_now(tx).await?;
            if !app.has_pulse() || pulse::beat(tx, now, gap(&app)).await? {
                lease::extend(tx, app.lease_end(now)).await?;
            }
            Ok::<_, DbError>(())
        })
    })
    .await
}

/// Gives back every run whose lease has ended; answers how many.
///
/// # Errors
///
/// The database's.
pub async fn rescue(app: &App) -> Result<usize, DbError> {
    if !app.has_pulse() {
        let mut reader = app.db.reader().await?;
        let now = app.lease_now(&mut reader).await?;
        if !flow_run::has_lapsed(&mut reader, now).await? {
            return Ok(0);
        }
    }
    let own = app.clone();
    let rescued = app
        .db
        .write(move |tx| Box::pin(async move { rescue_in(tx, &own).await }))
        .await?;
    announce(app, &rescued).await;
    Ok(rescued.len())
}

async fn rescue_in(tx: &mut Tx, app: &App) -> Result<Vec<Standing>, DbError> {
    let (now, at) = (app.lease_now(tx).await?, app.clock.now());
    // In this transaction: there may have been a gap since the last beat.
    if app.has_pulse() && pulse::beat(tx, now, gap(app)).await? {
        tracing::warn!("no server was there for a while: every lease begins anew");
        lease::extend(tx, app.lease_end(now)).await?;
        return Ok(Vec::new());
    }
    let mut rescued = Vec::new();
    for mut run in flow_run::lapsed(tx, now, BATCH).await? {
        let lapsed = |agent: &str| format!("the lease of {agent} lapsed");
        lease::release(tx, &app.db.memory, &mut run, lapsed, at).await?;
        rescued.push(run);
    }
    flow_run::apply(tx, rescued.clone()).await?;
    Ok(rescued)
}

/// Tells everybody concerned of runs that were taken from their agents.
pub(in crate::server) async fn announce(app: &App, taken: &[Standing]) {
    let ids: Vec<FlowRunId> = taken.iter().map(|run| run.id).collect();
    app.tell(&ids);
    for run in taken.iter().filter(|run| run.state == State::Scheduled) {
        app.announce(run.requirement_id, run.due_at, 1).await;
    }
}
