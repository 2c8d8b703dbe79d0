//! What becomes of a run of a schedule that is due while another of its flow is still going.
//!
//! Asked when the instant has come, and by every claim that would hand such a run over: whoever is
//! first decides, and the other finds it decided. Where others write at the same time, whoever asks has
//! locked the flow.

use jiff::Timestamp;

use super::db::DbError;
use super::db::flow_run::{self, Going, Move, Standing};
use super::db::tx::Tx;
use crate::model::id::{AgentId, FlowId, FlowRunId};
use crate::model::schedule::Overlap;
use crate::model::state::{Event, State};

/// Most runs of one flow that wait for each other: a schedule that is too quick for its flow would
/// fill the database.
const QUEUE_MAX: usize = 100;

/// What was decided.
#[derive(Clone, Debug, Default)]
pub(super) struct Settled {
    /// Runs that were moved.
    pub(super) touched: Vec<FlowRunId>,
    /// Agents that are to stop a run.
    pub(super) agents: Vec<AgentId>,
}

impl Settled {
    /// Adds what was decided about another flow.
    pub(super) fn add(&mut self, other: Self) {
        self.touched.extend(other.touched);
        self.agents.extend(other.agents);
    }
}

/// Decides about the due runs of a flow's schedule that nobody has begun.
///
/// # Errors
///
/// The database's.
pub(super) async fn settle(tx: &mut Tx, flow: FlowId, now: Timestamp) -> Result<Settled, DbError> {
    let going = flow_run::take_going(tx, flow, now).await?;
    let mut settled = Settled::default();
    // Those that stand before the one that is looked at: begun, or due earlier and not left out.
    let (mut before, waiting): (Vec<Standing>, Vec<Going>) = {
        let (begun, waiting): (Vec<_>, Vec<_>) = going.into_iter().partition(|one| one.is_begun);
        (
            begun.into_iter().map(|one| one.run.standing).collect(),
            waiting,
        )
    };
    let mut moved = Vec::new();
    let mut queue = waiting
        .iter()
        .filter(|one| is_queued(&one.run.standing))
        .count();
    for Going { run, .. } in waiting {
        let mut new = run.standing;
        let policy = run.overlap.unwrap_or_default();
        if let (Some(other), State::Scheduled) = (before.first(), new.state) {
            let other = other.id;
            let by_queue = policy != Overlap::Skip && queue < QUEUE_MAX;
            if policy == Overlap::CancelOld {
                cancel_all(tx, &mut before, new.id, now, &mut settled, &mut moved).await?;
            }
            let (event, message) = match policy {
                Overlap::Allow => continue,
                _ if before.is_empty() => (None, String::new()),
                Overlap::CancelOld if by_queue => (
                    Some(Event::Queue),
                    format!("waits for the run {other} to be stopped"),
                ),
                Overlap::Queue if by_queue => (
                    Some(Event::Queue),
                    format!("waits for the run {other} to end"),
                ),
                Overlap::Skip => (
                    Some(Event::Skip),
                    format!("left out: the run {other} was still going"),
                ),
                _ => (
                    Some(Event::Skip),
                    format!("left out: {queue} runs of the flow wait already"),
                ),
            };
            if let Some(event) = event {
                step(&mut new, event, &message, now)?;
                settled.touched.push(new.id);
                moved.push(new.clone());
            }
            queue += usize::from(is_queued(&new));
        }
        if !new.state.is_over() {
            before.push(new);
        }
    }
    flow_run::apply(tx, moved).await?;
    Ok(settled)
}

/// Returns the first of those that stand before a run of a schedule that nobody has begun.
///
/// # Errors
///
/// The database's.
pub(super) async fn before(
    tx: &mut Tx,
    flow: FlowId,
    run: FlowRunId,
    now: Timestamp,
) -> Result<Option<FlowRunId>, DbError> {
    let going = flow_run::going(tx, flow, now).await?;
    let begun = going.iter().find(|one| one.is_begun);
    let first = begun.or(going.first());
    let first = first.map(|one| one.run.standing.id);
    Ok(first.filter(|first| *first != run))
}

/// Stops the runs that stand before a newer one; leaves those that an agent has to stop first.
async fn cancel_all(
    tx: &mut Tx,
    before: &mut Vec<Standing>,
    new: FlowRunId,
    now: Timestamp,
    settled: &mut Settled,
    moved: &mut Vec<Standing>,
) -> Result<(), DbError> {
    let message = format!("the run {new} takes its place, as the schedule says");
    let mut left = Vec::new();
    for mut old in std::mem::take(before) {
        if old.state != State::Cancelling {
            let cancel = Move {
                event: Event::Cancel,
                message: &message,
                code: None,
                at: now,
                by: "server",
            };
            settled
                .agents
                .extend(flow_run::cancel(tx, &mut old, &cancel).await?);
            settled.touched.push(old.id);
            // One that was decided about a moment ago is written once, as it is now.
            moved.retain(|one| one.id != old.id);
            moved.push(old.clone());
        }
        if !old.state.is_over() {
            left.push(old);
        }
    }
    *before = left;
    Ok(())
}

fn step(run: &mut Standing, event: Event, message: &str, now: Timestamp) -> Result<(), DbError> {
    let moved = Move {
        event,
        message,
        code: None,
        at: now,
        by: "server",
    };
    run.step(&moved).map_err(|_| DbError::Raced)
}

fn is_queued(run: &Standing) -> bool {
    run.state == State::Queued
}
