//! The timekeeper: ends runs that have taken as long as they may while they waited and nobody had them, and
//! notices when the wall clock is set back.
//!
//! Where an agent has the run, the agent ends it.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use super::{note, rest};
use crate::clock::Monotonic;
use crate::model::id::FlowRunId;
use crate::model::state::Event;
use crate::server::app::App;
use crate::server::db::flow_run::{self, Move};
use crate::server::db::{DbError, schedule, tag_slot};

/// How often it looks.
const EVERY: Duration = Duration::from_secs(1);
/// Most runs of one transaction.
const BATCH: u32 = 500;
/// How far the wall clock may fall behind the time that has passed before it counts as set back.
const BEHIND: SignedDuration = SignedDuration::from_secs(2);

/// Keeps the time until the server goes down.
pub(super) async fn keep(app: App) {
    let mut has_looked_back = false;
    let mut last = (app.clock.now(), app.clock.monotonic());
    loop {
        has_looked_back = has_looked_back || note("timekeeper", look_back(&app).await).is_some();
        let next = (app.clock.now(), app.clock.monotonic());
        let mut is_right = true;
        if is_set_back(last, next) {
            tracing::warn!("the wall clock was set back");
            is_right = note("timekeeper", set_back(&app).await).is_some();
        }
        // What could not be put right now is tried again.
        if is_right {
            last = next;
        }
        note("timekeeper", end_overdue(&app).await);
        if !rest(&app, EVERY, std::future::pending()).await {
            return;
        }
    }
}

/// Tells whether less time has passed on the wall from one look to the next than in truth.
fn is_set_back(last: (Timestamp, Monotonic), next: (Timestamp, Monotonic)) -> bool {
    let passed = SignedDuration::try_from(next.1.since(last.1)).unwrap_or(SignedDuration::MAX);
    passed.saturating_sub(next.0.duration_since(last.0)) > BEHIND
}

/// Puts right what was written by a clock that was set back while no server was there. Schedules are looked at
/// only if the newest run was made at an instant to come: there may be very many.
///
/// # Errors
///
/// The database's.
pub async fn look_back(app: &App) -> Result<(), DbError> {
    let newest = flow_run::newest(&mut app.db.reader().await?).await?;
    let is_to_come = |at: Timestamp| at.duration_since(app.clock.now()) > BEHIND;
    match newest.is_some_and(is_to_come) {
        true => set_back(app).await,
        false => bring_back(app).await,
    }
}

/// Puts right what was written by a clock that is set back since.
///
/// # Errors
///
/// The database's.
pub async fn set_back(app: &App) -> Result<(), DbError> {
    bring_back(app).await?;
    let now = app.clock.now();
    app.db
        .write(move |tx| Box::pin(schedule::look_again(tx, now)))
        .await?;
    app.nudge_schedules();
    Ok(())
}

/// Lets runs become due in time that were made or handed back at an instant that is still to come.
async fn bring_back(app: &App) -> Result<(), DbError> {
    let now = app.clock.now();
    let brought = app.db.write(move |tx| {
        Box::pin(async move {
            tag_slot::bring_back(tx, now).await?;
            flow_run::bring_back(tx, now).await
        })
    });
    for (due_at, requirement_id) in brought.await? {
        app.announce(requirement_id, due_at, 1).await;
    }
    app.usher.nudge();
    Ok(())
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
