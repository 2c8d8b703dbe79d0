//! The timekeeper: ends runs that have taken as long as they may while they waited and nobody had them.
//!
//! Where an agent has the run, the agent ends it.

use std::time::Duration;

use super::{note, rest};
use crate::model::id::FlowRunId;
use crate::model::state::Event;
use crate::server::app::App;
use crate::server::db::DbError;
use crate::server::db::flow_run::{self, Move};

/// How often it looks.
const EVERY: Duration = Duration::from_secs(1);
/// Most runs of one transaction.
const BATCH: u32 = 500;

/// Keeps the time until the server goes down.
pub(super) async fn keep(app: App) {
    loop {
        note("timekeeper", end_overdue(&app).await);
        if !rest(&app, EVERY, std::future::pending()).await {
            return;
        }
    }
}

/// Ends the runs whose time is over; answers how many.
///
/// # Errors
///
/// The database's.
pub async fn end_overdue(app: &App) -> Result<usize, DbError> {
    let now = app.clock.now();
    let mut reader = app.db.reader().await?;
    if !flow_run::is_overdue(&mut reader, now).await? {
        return Ok(0);
    }
    drop(reader);
    let ended = app
        .db
        .write(move |tx| {
            Box::pin(async move {
                let mut ended = Vec::new();
                for mut run in flow_run::overdue(tx, now, BATCH).await? {
                    let ms = run.timeout_ms;
                    let message = format!("the run took longer than its timeout of {ms} ms");
                    let late = Move {
                        event: Event::TimeOut,
                        message: &message,
                        code: Some("limit.wall"),
                        at: now,
                        by: "server",
                    };
                    if let Err(refusal) = run.step(&late) {
                        tracing::error!(run.id = %run.id, %refusal, "a run cannot be ended in time");
                        continue;
                    }
                    flow_run::end_left(tx, &mut run, late).await?;
                    ended.push(run);
                }
                flow_run::apply(tx, ended.clone()).await?;
                Ok::<_, DbError>(ended)
            })
        })
        .await?;
    let ids: Vec<FlowRunId> = ended.iter().map(|run| run.id).collect();
    app.tell(&ids);
    Ok(ended.len())
}
