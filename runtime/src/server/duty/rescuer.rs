//! The rescuer: gives runs back whose agent has not been heard of for a lease.

use std::time::Duration;

use super::{note, rest};
use crate::model::id::FlowRunId;
use crate::model::state::State;
use crate::server::app::App;
use crate::server::db::flow_run::{self, Standing};
use crate::server::db::{DbError, lease};

/// Most runs of one transaction.
const BATCH: u32 = 500;

/// Rescues until the server goes down.
///
/// After a gap (the start of the server, or a stop of its process) no lease could be renewed through
/// no fault of the agents, so every lease is given its full length once.
pub(super) async fn keep(app: App) {
    let every = (app.lease / 10).clamp(Duration::from_millis(100), Duration::from_secs(1));
    let mut last = None;
    loop {
        let now = app.clock.monotonic();
        // A gap is a stop of this process. The clock of a test stands still between its steps and
        // leaps in them, which says nothing about the process.
        let is_stop = |last| app.clock.is_system() && now.since(last) > app.lease / 2;
        let is_gap = last.is_none_or(is_stop);
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

/// Gives every lease its full length from now.
///
/// # Errors
///
/// The database's.
pub async fn extend(app: &App) -> Result<(), DbError> {
    let until = app.lease_end();
    app.db
        .write(move |tx| Box::pin(lease::extend(tx, until)))
        .await
        .map(drop)
}

/// Gives back every run whose lease has ended; answers how many.
///
/// # Errors
///
/// The database's.
pub async fn rescue(app: &App) -> Result<usize, DbError> {
    let now = app.lease_now();
    let mut reader = app.db.reader().await?;
    if !flow_run::has_lapsed(&mut reader, now).await? {
        return Ok(0);
    }
    drop(reader);
    let (memory, at) = (app.db.memory.clone(), app.clock.now());
    let rescued = app
        .db
        .write(move |tx| {
            Box::pin(async move {
                let mut rescued = Vec::new();
                for mut run in flow_run::lapsed(tx, now, BATCH).await? {
                    let lapsed = |agent: &str| format!("the lease of {agent} lapsed");
                    lease::release(tx, &memory, &mut run, lapsed, at).await?;
                    rescued.push(run);
                }
                flow_run::apply(tx, rescued.clone()).await?;
                Ok::<_, DbError>(rescued)
            })
        })
        .await?;
    announce(app, &rescued).await;
    Ok(rescued.len())
}

/// Tells everybody concerned of runs that were taken from their agents.
pub(in crate::server) async fn announce(app: &App, taken: &[Standing]) {
    let ids: Vec<FlowRunId> = taken.iter().map(|run| run.id).collect();
    app.tell(&ids);
    for run in taken.iter().filter(|run| run.state == State::Scheduled) {
        app.announce(run.requirement_id, run.scheduled_at, 1).await;
    }
}
