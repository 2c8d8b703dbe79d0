//! The rescuer: gives runs back whose agent has not been heard of for a lease.

use std::time::Duration;

use super::{note, rest};
use crate::model::id::FlowRunId;
use crate::model::limit::LOST_MAX;
use crate::model::state::{Event, State};
use crate::server::app::App;
use crate::server::db::flow_run::{self, Move, Standing};
use crate::server::db::memory::Memory;
use crate::server::db::tx::Tx;
use crate::server::db::{DbError, agent, lease};

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
    if flow_run::lapsed(&mut reader, now, 1).await?.is_empty() {
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
                    release(tx, &memory, &mut run, at).await?;
                    rescued.push(run);
                }
                flow_run::apply(tx, rescued.clone()).await?;
                Ok::<_, DbError>(rescued)
            })
        })
        .await?;
    let ids: Vec<FlowRunId> = rescued.iter().map(|run| run.id).collect();
    app.tell(&ids);
    for run in rescued.iter().filter(|run| run.state == State::Scheduled) {
        app.announce(run.requirement_id, run.scheduled_at, 1).await;
    }
    Ok(rescued.len())
}

/// Decides what becomes of a run whose agent is lost.
async fn release(
    tx: &mut Tx,
    memory: &Memory,
    run: &mut Standing,
    at: jiff::Timestamp,
) -> Result<(), DbError> {
    let agent = match run.agent_id {
        Some(id) => agent::name(tx, id).await?,
        None => None,
    };
    let agent = agent.unwrap_or_else(|| "its agent".to_owned());
    // An attempt is lost only where one had begun.
    run.lost += u32::from(run.state == State::Running);
    let times = run.lost;
    let (event, code, message) = if times > LOST_MAX {
        let message = format!("agents were lost with it {times} times, the last was `{agent}`");
        (Event::Crash, Some("lost.agent"), message)
    } else {
        let message = format!("the lease of `{agent}` lapsed");
        (Event::Lose, None, message)
    };
    let moved = Move {
        event,
        message: &message,
        code,
        at,
        by: "server",
    };
    if let Err(refusal) = run.lose(&moved) {
        // Left as it is it would come back each second, and stand in the way of others.
        tracing::error!(run.id = %run.id, %refusal, "a lapsed run cannot be released: it is crashed");
        let crash = Move {
            event: Event::Crash,
            code: Some("internal"),
            ..moved.clone()
        };
        if run.step(&crash).is_err() {
            return Ok(());
        }
    }
    match run.state {
        State::Scheduled => flow_run::pin_results(tx, memory, run).await,
        _ => flow_run::end_left(tx, run, moved).await,
    }
}
