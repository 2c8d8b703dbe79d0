//! Runs on their way into the hands of an agent, and what they need when they come back.

use jiff::Timestamp;

use super::{Move, Standing};
use crate::model::id::{AgentId, SessionId};
use crate::model::state::{Event, Refusal};
use crate::server::db::agent::{self, PEOPLE_PROTOCOL};
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

/// Makes a run that waits again require what it needs to go on: the root that the results of its finished
/// tasks lie in, and an agent that knows that a task run may wait for a person.
pub async fn pin(tx: &mut Tx, memory: &Memory, run: &mut Standing) -> Result<(), DbError> {
    let known = memory.requirement(tx, run.requirement_id).await?;
    let mut needed = (*known).clone();
    if let Some(result) = task_run::newest_result(tx, run.id).await? {
        needed.results_root = Some(result.root);
    }
    if task_run::is_of_people(tx, run.id).await? {
        needed.abilities.insert(agent::ability(PEOPLE_PROTOCOL));
    }
    if needed != *known {
        run.requirement_id = requirement::intern(tx, &needed).await?;
    }
    Ok(())
}
