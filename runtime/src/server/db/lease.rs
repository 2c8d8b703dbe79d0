//! What an agent has of a run that it claimed: renewals, and what is left when a lease ends.
//!
//! A lease is part of the row of its run (`flow_run`), which the claim and every report move; here is
//! what concerns the lease alone. The API's renewals, the reports and the rescuer call it.

use std::collections::HashSet;

use jiff::Timestamp;

use super::flow_run::{self, Move, Standing};
use super::memory::Memory;
use super::sql::Many;
use super::tx::{Tx, args};
use super::{DbError, agent};
use crate::model::id::{AgentId, FlowRunId};
use crate::model::limit::LOST_MAX;
use crate::model::state::{Event, Refusal, State};
use crate::wire::LeaseKey;

/// Claims after which a run that never started is given up: its agents die while they fetch or
/// compile it, are never ready, or its claims never reach them.
const CLAIMS_MAX: u32 = 100;
/// The code under which an agent hands back a run whose lease it could not renew: unlike one that it
/// was told to stop, the attempts that it stopped count as lost.
pub const LAPSED: &str = "lost.lease";

/// What an agent still has of a run that it claimed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tenure {
    /// The run is the agent's.
    Leased,
    /// The lease has ended, and nobody has claimed the run since: what is finished counts.
    Lapsed,
    /// The run is over, or was claimed anew: nothing counts.
    Lost,
}

impl Standing {
    /// Returns what an agent has of the run under a claim.
    #[must_use]
    pub fn tenure(&self, lease: &LeaseKey, agent: AgentId) -> Tenure {
        if self.lease() != *lease || self.agent_id != Some(agent) {
            return Tenure::Lost;
        }
        match (self.lease_until, self.state.is_over()) {
            (Some(_), _) => Tenure::Leased,
            (None, false) => Tenure::Lapsed,
            (None, true) => Tenure::Lost,
        }
    }

    /// Takes the run from an agent that is lost, or that hands it back: it waits again.
    ///
    /// One that so many claims could not start is given up instead, and so is one whose attempts were
    /// stopped too often because its agents could not renew the lease in time.
    ///
    /// # Errors
    ///
    /// Refuses what may not happen, and then changes nothing.
    pub fn lose(&mut self, moved: &Move<'_>) -> Result<(), Refusal> {
        let is_stopped = self.state == State::Running && moved.code == Some(LAPSED);
        if is_stopped && self.lost >= LOST_MAX {
            return self.step(&Move {
                event: Event::Crash,
                code: Some("lost.agent"),
                ..moved.clone()
            });
        }
        // A claim after which it was handed back to wait was none in vain.
        let claims = self.epoch.saturating_sub(self.rests);
        if self.state != State::Claimed || claims < CLAIMS_MAX {
            self.step(moved)?;
            self.lost += u32::from(is_stopped);
            return Ok(());
        }
        let last = moved.message;
        let message = format!("{claims} claims ended before it started; the last: {last}");
        self.step(&Move {
            event: Event::Crash,
            message: &message,
            code: Some("lost.lease"),
            ..moved.clone()
        })
    }
}

/// Decides what becomes of a run whose agent is lost; `why` says how it was, given the agent's name.
pub async fn release(
    tx: &mut Tx,
    memory: &Memory,
    run: &mut Standing,
    why: impl Fn(&str) -> String,
    at: Timestamp,
) -> Result<(), DbError> {
    let name = match run.agent_id {
        Some(id) => agent::name(tx, id).await?,
        None => None,
    };
    let name = name.map_or_else(|| "its agent".to_owned(), |name| format!("`{name}`"));
    // An attempt is lost only where one had begun.
    run.lost += u32::from(run.state == State::Running);
    let times = run.lost;
    let (event, code, message) = if times > LOST_MAX {
        let message = format!("agents were lost with it {times} times, the last was {name}");
        (Event::Crash, Some("lost.agent"), message)
    } else {
        (Event::Lose, None, why(&name))
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
        tracing::error!(run.id = %run.id, %refusal, "a lost run cannot be released: it is crashed");
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
        State::Scheduled => flow_run::pin(tx, memory, run).await,
        _ => flow_run::end_left(tx, run, moved).await,
    }
}

pub(super) static RENEW: Many = Many::new(
    "WITH n (id, epoch, agent_id, lease_until) AS (VALUES ",
    "($::bytea, $::bigint, $::bytea, $::bigint)",
    ") UPDATE flow_run SET lease_until = n.lease_until FROM n WHERE flow_run.id = n.id \
     AND flow_run.epoch = n.epoch AND flow_run.agent_id = n.agent_id \
     AND flow_run.lease_until IS NOT NULL RETURNING flow_run.id",
);

/// The leases that could not be renewed.
#[derive(Clone, Debug, Default)]
pub struct Unrenewed {
    /// The run is over or somebody else's.
    pub lost: Vec<LeaseKey>,
    /// The lease has ended, and nobody else has the run yet.
    pub lapsed: Vec<LeaseKey>,
}

/// Renews leases; answers with those that could not be.
pub async fn renew(
    tx: &mut Tx,
    agent: AgentId,
    leases: &[LeaseKey],
    until: Timestamp,
) -> Result<Unrenewed, DbError> {
    if tx.is_shared() {
        // The statement would lock them in any order, and wait in a circle with a report.
        flow_run::lock(tx, leases.iter().map(|lease| lease.flow_run_id)).await?;
    }
    let row = |lease: &LeaseKey| args![lease.flow_run_id, lease.epoch, agent, until];
    let rows = tx
        .rows_many(&RENEW, leases.iter().map(row).collect())
        .await?;
    let kept: Result<HashSet<FlowRunId>, _> = rows.iter().map(|row| row.get(0)).collect();
    let kept = kept?;
    // Two claims of one run may be named; only the newer one was renewed.
    let rest = leases.iter().filter(|one| !kept.contains(&one.flow_run_id));
    let rest: Vec<LeaseKey> = rest.copied().collect();
    let runs = flow_run::read(tx, rest.iter().map(|lease| lease.flow_run_id)).await?;
    let mut unrenewed = Unrenewed::default();
    for lease in rest {
        let run = runs.iter().find(|run| run.id == lease.flow_run_id);
        match run.map(|run| run.tenure(&lease, agent)) {
            Some(Tenure::Lapsed) => unrenewed.lapsed.push(lease),
            _ => unrenewed.lost.push(lease),
        }
    }
    Ok(unrenewed)
}

/// Lets every lease end at `until`, for a server that comes back from a gap.
pub async fn extend(tx: &mut Tx, until: Timestamp) -> Result<u64, DbError> {
    let sql = "UPDATE flow_run SET lease_until = $1 WHERE lease_until IS NOT NULL";
    tx.run(sql, args![until]).await
}
