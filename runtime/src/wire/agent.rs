//! Agents as others see them, and what others want of them.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{Decided, GivenSlots, LeaseKey, LimitedTags, Segment};
use crate::model::id::{AgentId, FlowRunId, SessionId};
use crate::model::requirement::Offer;
use crate::model::state::State;

/// An agent says hello.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewSession {
    /// The agent's name; with the host name it is the agent's identity.
    pub name: String,
    /// The host it runs on.
    pub hostname: String,
    /// Its version.
    pub version: String,
    /// The protocol it speaks.
    pub protocol: u32,
    /// What it offers.
    pub offer: Offer,
    /// How many runs it takes at one time.
    pub slots: u32,
    /// The last session of an earlier process under this name, which is dead: its lock was free. What
    /// that session had is given back at once. Said in the first hello of a process only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replaces: Option<SessionId>,
    /// Whether the process has just begun, which takes back what an earlier one was told. From protocol
    /// 2 on; under 1 every hello counts as such.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_start: bool,
    /// The roots that it has and does not offer now; the server keeps them with the offer. From protocol
    /// 2 on.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rests: Vec<Rest>,
    /// A word that the processes of this name in one `WAFT_HOME` have, and nobody else. While one of another
    /// word is there, the server refuses with `agent-exists`: they would end each other's sessions. From
    /// protocol 2 on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub home: Option<String>,
}

/// The server says hello back.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Session {
    /// The agent's id.
    pub agent_id: AgentId,
    /// The session's id, named in every call after this.
    pub session_id: SessionId,
    /// Seconds that a lease lasts from its claim or renewal.
    pub lease_seconds: u32,
    /// The protocol that both will speak.
    pub protocol: u32,
}

/// An agent as others see it.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Agent {
    /// Its id.
    pub id: AgentId,
    /// Its name.
    pub name: String,
    /// The host it runs on.
    pub hostname: String,
    /// Its version.
    pub version: String,
    /// The protocol that it and the server speak.
    pub protocol: u32,
    /// What it offers: labels, roots, projects, grants, limits, abilities.
    pub offer: Offer,
    /// How many runs it takes at one time.
    pub slots: u32,
    /// How many it could take now beside those that it has.
    pub free_slots: u32,
    /// The runs it has now.
    pub flow_runs: Vec<AgentRun>,
    /// When it was last heard of.
    pub seen_at: Timestamp,
    /// Whether it polls now.
    pub is_polling: bool,
    /// Whether it takes no more runs, and finishes those that it has. One that neither polls nor leaves
    /// is gone.
    pub is_leaving: bool,
    /// What it was told from afar, until it is started anew: to end, and how.
    pub drain: Option<Drain>,
}

/// A run that an agent has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AgentRun {
    /// The run's id.
    pub id: FlowRunId,
    /// The same again, so that it can be told from other ids in one object.
    pub flow_run_id: FlowRunId,
    /// The flow's name.
    pub flow: String,
    /// The project's name.
    pub project: String,
    /// Where the run stands.
    pub state: State,
}

/// How an agent ends that takes no more runs.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Drain {
    /// When the runs that it has are over.
    #[default]
    Finish,
    /// At once: it gives back what it has.
    Now,
}

/// Asks for an agent to take no more runs, and to end.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewDrain {
    /// How; nobody can ask for less than somebody did before.
    #[serde(default)]
    pub how: Drain,
}

/// A root that an agent has, and that failed it, as it says so itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Rest {
    /// The root.
    pub root: String,
    /// The label that is offered with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
    /// Why, in one line that names the root and no credentials.
    pub why: String,
    /// What mends it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    /// Seconds until the agent looks at it again.
    pub look_seconds: u32,
}

/// An agent keeps a line open for what the server has to say, also without a free slot.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Listen {
    /// Its session.
    pub session_id: SessionId,
    /// The runs it is at work on.
    pub leases: Vec<LeaseKey>,
    /// Whether it takes no more runs: said again with each call, since a server that was started anew
    /// has forgotten it.
    #[serde(default)]
    pub has_left: bool,
    /// The change of tags that it was told last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limited_seen: Option<i64>,
    /// Seconds to wait if there is nothing, 0 to 30.
    pub wait_seconds: u32,
}

/// What the server has to say.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct Orders {
    /// Runs to cancel.
    pub cancel: Vec<LeaseKey>,
    /// Runs of those that the agent named that are somebody else's, or that a person has ended: stop them, and
    /// tell nothing more of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub lost: Vec<LeaseKey>,
    /// Segments of results to delete, under roots that the agent offers: nobody needs them any more.
    #[serde(default)]
    pub delete: Vec<Segment>,
    /// What people have decided about task runs; said until it is reported that it was heard.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub decisions: Vec<Decided>,
    /// Which tags have a number of slots, if that has changed since.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limited: Option<LimitedTags>,
    /// Task runs that were given slots; said until they have begun.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub slots: Vec<GivenSlots>,
    /// That the agent takes no more runs and ends; said until it does, under protocol 2 and later.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drain: Option<Drain>,
}
