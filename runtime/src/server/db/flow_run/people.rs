//! Runs that wait for a person, and what people decide.
//!
//! A decision lies with the task run: the answer to what that asked, or how it ends. What follows the graph
//! knows, with the agent that has the run, which is told when it listens, or with the next to have it. So that
//! there is a next one, a decision lets the run go on if nobody has it and it waits.

use std::collections::BTreeSet;
use std::time::Duration;

use jiff::Timestamp;

use super::{Move, Standing, pin};
use crate::model::id::{AgentId, FlowRunId, FlowVersionId};
use crate::model::run::{Decision, Verdict};
use crate::model::state::{Event, State};
use crate::server::db::memory::Memory;
use crate::server::db::task_run::{self, Kept, Key};
use crate::server::db::tx::{Json, Tx, args};
use crate::server::db::{DbError, report};
use crate::wire::LeaseKey;

impl Standing {
    /// Stops the clock of the run's timeout: the time of people does not count.
    pub(super) fn stop_clock(&mut self, at: Timestamp) {
        self.rests += 1;
        let left = self.deadline_at.take().map(|end| end.duration_since(at));
        self.left_ms = left.map(|left| u64::try_from(left.as_millis()).unwrap_or_default());
    }

    /// Lets the clock go on.
    pub(super) fn go_on(&mut self, at: Timestamp) {
        let left = self.left_ms.take().map(Duration::from_millis);
        self.deadline_at = left.and_then(|left| at.checked_add(left).ok());
    }

    /// Returns for how long the clock has stood still since the run has begun.
    #[must_use]
    pub fn stood_still_ms(&self) -> u64 {
        let (Some(start), Some(end)) = (self.started_at, self.deadline_at) else {
            return 0;
        };
        let all = u64::try_from(end.duration_since(start).as_millis()).unwrap_or_default();
        all.saturating_sub(self.timeout_ms)
    }
}

/// Lists the task runs of a run that wait for a person, with what they ask.
pub async fn paused(tx: &mut Tx, run: FlowRunId) -> Result<Vec<(Key, String)>, DbError> {
    let paused = task_run::read_paused(tx, run).await?;
    let asked = paused.into_iter().map(|(key, kept)| (key, kept.message));
    Ok(asked.collect())
}

/// Writes down what a person has decided about the task runs of a run that are `meant`; answers with those
/// that were waiting for it.
///
/// A run that nobody has goes on by it.
///
/// # Errors
///
/// The database's.
pub async fn decide(
    tx: &mut Tx,
    run: &mut Standing,
    meant: impl Fn(&Key) -> bool,
    decision: &Decision,
) -> Result<Vec<Key>, DbError> {
    let mut decided = task_run::read_paused(tx, run.id).await?;
    decided.retain(|(key, task)| meant(key) && task.mark().is_none());
    let keys: Vec<Key> = decided.iter().map(|(key, _)| *key).collect();
    if keys.is_empty() {
        return Ok(keys);
    }
    note(run, &mut decided, decision)?;
    task_run::put(tx, decided).await?;
    hurry(run, decision)?;
    Ok(keys)
}

/// What keeps a task run from being marked.
#[derive(Clone, Debug)]
pub enum Unmarked {
    /// It is over, since then.
    Over(State, Option<Timestamp>),
    /// Somebody said otherwise, and that will be done.
    Marked(Decision),
}

/// Writes down how task runs of a run end, as a person says; none of them if one of them cannot.
///
/// Whoever has the run sees to it, or whoever takes it next: it goes on by it if it was begun and waits.
///
/// # Errors
///
/// The database's.
pub async fn mark(
    tx: &mut Tx,
    memory: &Memory,
    run: &mut Standing,
    keys: &[Key],
    decision: &Decision,
) -> Result<Result<(), (Key, Unmarked)>, DbError> {
    let mut marked = task_run::read(tx, keys).await?;
    marked.sort_unstable_by_key(|(key, _)| *key);
    for (key, task) in &marked {
        if task.state.is_over() {
            return Ok(Err((*key, Unmarked::Over(task.state, task.ended_at))));
        }
        let other = task.mark().filter(|it| {
            let is_same = (it.verdict, &it.output) == (decision.verdict, &decision.output);
            !is_same
        });
        if let Some(other) = other {
            return Ok(Err((*key, Unmarked::Marked(other.clone()))));
        }
    }
    let known: BTreeSet<Key> = marked.iter().map(|(key, _)| *key).collect();
    // A repeat has nothing to add.
    marked.retain(|(_, task)| task.mark().is_none());
    for key in keys.iter().filter(|key| !known.contains(key)) {
        marked.push((*key, Kept::default()));
        run.open_tasks += 1;
    }
    if marked.is_empty() {
        return Ok(Ok(()));
    }
    note(run, &mut marked, decision)?;
    task_run::put(tx, marked).await?;
    if run.lease_until.is_none() {
        // Whoever takes it has to know what that is.
        pin(tx, memory, run).await?;
    }
    hurry(run, decision)?;
    Ok(Ok(()))
}

/// Notes a decision with the task runs that it is about, and in the history.
fn note(
    run: &mut Standing,
    decided: &mut [(Key, Kept)],
    decision: &Decision,
) -> Result<(), DbError> {
    let message = report::cut(&decision.to_string());
    let is_leased = run.lease_until.is_some();
    for (key, task) in decided {
        let moved = task.decide(decision, is_leased);
        moved.map_err(|_| DbError::Raced)?;
        let step = Move {
            event: Event::Decide,
            message: &message,
            code: None,
            at: decision.at,
            by: &decision.by,
        };
        run.note(Some((key.1, key.2)), &step, task.state);
    }
    Ok(())
}

/// Lets a run that was begun and that nobody has go on by a decision.
fn hurry(run: &mut Standing, decision: &Decision) -> Result<(), DbError> {
    match run.state {
        State::Paused => resume(run, decision)?,
        // Others of its task runs may wait for a later attempt, and go on waiting; a run that nobody had yet
        // begins no earlier by it.
        State::Scheduled if run.epoch > 0 => run.due_at = run.due_at.min(decision.at),
        _ => {}
    }
    Ok(())
}

/// Lets a paused run go on by a decision.
fn resume(run: &mut Standing, decision: &Decision) -> Result<(), DbError> {
    let resume = Move {
        event: Event::Resume,
        message: &report::cut(&decision.to_string()),
        code: None,
        at: decision.at,
        by: &decision.by,
    };
    run.step(&resume).map_err(|_| DbError::Raced)
}

const DECIDED: &str =
    "SELECT decision FROM task_run WHERE flow_run_id = $1 AND NOT is_heard LIMIT 1";

/// Lets a run that an agent has just handed back go on, if something was decided in between, or if it is paused
/// and nobody is asked.
pub(in crate::server::db) async fn resume_decided(
    tx: &mut Tx,
    run: &mut Standing,
    at: Timestamp,
) -> Result<(), DbError> {
    let decided = tx.row(DECIDED, args![run.id]).await?;
    let decision = match decided {
        Some(row) => {
            let Json(decision) = row.get(0)?;
            Decision { at, ..decision }
        }
        None if run.state != State::Paused => return Ok(()),
        None if task_run::read_paused(tx, run.id).await?.is_empty() => Decision {
            verdict: Verdict::Approve,
            output: None,
            by: "server".to_owned(),
            reason: "nothing of it waits for a person".to_owned(),
            at,
        },
        None => return Ok(()),
    };
    hurry(run, &decision)
}

/// A decision that the agent of a run has to hear of.
#[derive(Clone, Debug)]
pub struct Unheard {
    /// The run, under its claim.
    pub lease: LeaseKey,
    /// The version of the run.
    pub flow_version_id: FlowVersionId,
    /// The task's place and the element.
    pub task: (u32, Option<u32>),
    /// What was decided.
    pub decision: Decision,
}

pub(in crate::server::db) const UNHEARD: &str = "SELECT r.id, r.epoch, r.flow_version_id, t.task, \
    t.map_index, t.decision FROM task_run t JOIN flow_run r ON r.id = t.flow_run_id \
    WHERE NOT t.is_heard AND r.agent_id = $1 AND r.lease_until IS NOT NULL LIMIT 1000";

/// Lists what was decided about task runs that an agent has, and that it has not heard of yet.
pub async fn decided_for(tx: &mut Tx, agent: AgentId) -> Result<Vec<Unheard>, DbError> {
    let rows = tx.rows(UNHEARD, args![agent]).await?;
    rows.iter()
        .map(|row| {
            let map_index: i64 = row.get(4)?;
            let Json(decision) = row.get(5)?;
            Ok(Unheard {
                lease: LeaseKey {
                    flow_run_id: row.get(0)?,
                    epoch: row.get(1)?,
                },
                flow_version_id: row.get(2)?,
                task: (row.get(3)?, u32::try_from(map_index).ok()),
                decision,
            })
        })
        .collect()
}
