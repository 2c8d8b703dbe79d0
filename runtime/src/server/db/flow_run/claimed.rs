//! Runs on their way into the hands of an agent, and what they need when they come back.

use jiff::Timestamp;

use super::{Move, Standing};
use crate::model::id::{AgentId, SessionId};
use crate::model::state::{Event, Refusal};
use crate::server::db::memory::Memory;
use crate::server::db::tx::Tx;
use crate::server::db::{DbError, requirement, task_run};

/// Who claims, and until when.
#[derive(Clone, Copy, Debug)]
pub struct Claimant {
    /// The agent.
    pub agent_id: AgentId,
    /// Its session.
    pub session_id: SessionId,
    /// Now, in lease time.
    pub claimed_at: Timestamp,
    /// When the lease ends, in lease time.
    pub lease_until: Timestamp,
}

impl Standing {
    /// Moves the run into the hands of an agent, under a new epoch.
    ///
    /// # Errors
    ///
    /// Refuses what may not happen, and then changes nothing.
    pub fn claim(&mut self, who: &Claimant, at: Timestamp, by: &str) -> Result<(), Refusal> {
        self.state.after(Event::Claim)?;
        self.epoch += 1;
        self.reported = 0;
        self.agent_id = Some(who.agent_id);
        self.session_id = Some(who.session_id);
        self.claimed_at = Some(who.claimed_at);
        self.lease_until = Some(who.lease_until);
        self.step(&Move {
            event: Event::Claim,
            message: "",
            code: None,
            at,
            by,
        })
    }
}

/// Makes a run that waits again require the root that the results of its finished tasks lie in.
pub async fn pin_results(tx: &mut Tx, memory: &Memory, run: &mut Standing) -> Result<(), DbError> {
    let Some(result) = task_run::newest_result(tx, run.id).await? else {
        return Ok(());
    };
    let known = memory.requirement(tx, run.requirement_id).await?;
    if known.results_root.as_ref() == Some(&result.root) {
        return Ok(());
    }
    let mut changed = (*known).clone();
    changed.results_root = Some(result.root);
    run.requirement_id = requirement::intern(tx, &changed).await?;
    Ok(())
}
