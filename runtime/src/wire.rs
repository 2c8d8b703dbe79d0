//! Requests and answers of the HTTP API, used by the server and by the client.
//!
//! Both ends share these types, so a field cannot mean two things. All is JSON; instants are
//! RFC 3339 in UTC; ids are UUIDs; a list comes in pages with a cursor. The OpenAPI document is made
//! of the same types.

mod agent;
mod change;
mod decision;
mod segment;
mod tag;

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use crate::model::artifact::Digest;
use crate::model::flow::Definition;
use crate::model::id::{FlowId, FlowRunId, FlowVersionId, ProjectId, SessionId, TokenId};
use crate::model::label::Labels;
use crate::model::requirement::Missing;
pub use crate::model::run::{FlowRunMoved, Happening, TaskRun, TaskRunMoved};
use crate::model::run::{LogLine, ResultRef, TaskRunKey};
use crate::model::state::{Event, State};

pub use self::agent::{
    Agent, AgentRun, Drain, Listen, NewDrain, NewSession, Orders, Rest, Session,
};
pub use self::change::{NewRollback, RegisterQuery, ResumeQuery, Slots};
pub use self::decision::{Cancelled, Decided, NewDecision, NewMark, NewRetry, TaskMark};
pub use self::segment::{Deletions, KeptSegment, Orphans, Segment, Sighted};
pub use self::tag::{GivenSlots, LimitedTags, Tag};

/// The protocol that agents and servers of this version speak; each accepts this and the one before.
///
/// 1 is the first. 2 adds what drains an agent from afar: [`Orders::drain`], which is sent under no
/// earlier one, and [`NewSession::is_start`]; and what an agent says of roots that are out of reach:
/// [`NewSession::rests`] and [`results_away`](crate::model::requirement::Offer::results_away); [`NewSession::home`]; and slots of tags:
/// [`ClaimedRun::limited_tags`].
pub const PROTOCOL: u32 = 2;

/// Every refusal of the API.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct ErrorBody {
    /// A stable word in kebab-case; all are listed in `server::error`.
    pub code: String,
    /// What failed and why, for a human.
    pub message: String,
    /// A command or a line that mends it, where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

/// One page of a list.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Page<T> {
    /// The objects, newest first unless the call says otherwise.
    pub items: Vec<T>,
    /// Where the next page begins; none if this was the last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

/// How to page and narrow a list.
#[derive(Clone, Debug, Default, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
pub struct ListQuery {
    /// Only of this project, by name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub project: Option<String>,
    /// Only this flow, by name, `project/flow` or id.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub flow: Option<String>,
    /// Only in this state.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state: Option<String>,
    /// Only runs that are due and late; pages may be shorter than asked for.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub late: bool,
    /// Objects in a page, 1 to 200; 50 unless given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<u32>,
    /// The `next` of the page before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cursor: Option<String>,
}

/// Whether the server is well.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Health {
    /// `ok`, or what is wrong.
    pub status: String,
    /// The server's version.
    pub version: String,
    /// The agent protocol it speaks.
    pub protocol: u32,
}

/// A project: a room for flows, and what tokens are bound to.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Project {
    /// Its id.
    pub id: ProjectId,
    /// Its name, unique on the server.
    pub name: String,
    /// For a human.
    pub description: String,
    /// How many of its runs agents may have at one time; as many as there are if it is missing.
    #[serde(default)]
    pub slots: Option<u32>,
    /// When it was made.
    pub created_at: Timestamp,
}

/// Asks for a project.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewProject {
    /// Its name: letters, digits, `-`, `_`, `.`.
    pub name: String,
    /// For a human.
    #[serde(default)]
    pub description: String,
}

/// Registers a version of a flow.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Registration {
    /// The shape of the flow, as its component describes it.
    pub definition: Definition,
    /// The digest of the component.
    pub artifact: Digest,
    /// Its size in bytes.
    pub artifact_size: u64,
    /// Where it lies.
    pub location: Location,
    /// The labels a run requires, auto-label included.
    #[serde(default)]
    pub labels: Labels,
    /// Whether its schedule rests until `waft flow resume`; applies to the first version of a flow.
    #[serde(default)]
    pub is_paused: bool,
}

/// Where an artifact lies.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Location {
    /// The storage root.
    pub root: String,
    /// The key under the root.
    pub key: String,
}

/// What became of a registration.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Registered {
    /// The flow's id.
    pub flow_id: FlowId,
    /// The version's id.
    pub flow_version_id: FlowVersionId,
    /// Its number, from 1.
    pub version: u32,
    /// Whether a version was made; false: the same one was there already.
    pub is_new: bool,
    /// Grants that the version before did not ask for, for people.
    #[serde(default)]
    pub added_grants: Vec<String>,
}

/// A flow with its current version.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Flow {
    /// Its id.
    pub id: FlowId,
    /// Its name, unique in the project.
    pub name: String,
    /// Its project's name.
    pub project: String,
    /// For a human.
    pub description: String,
    /// The number of the current version.
    pub version: u32,
    /// The current version's id.
    pub flow_version_id: FlowVersionId,
    /// The digest of the current version's component.
    pub artifact: Digest,
    /// The labels that the current version requires.
    pub labels: Labels,
    /// Whether its schedule rests.
    pub is_paused: bool,
    /// Whether it accepts no runs any more.
    pub is_archived: bool,
    /// When it was first registered.
    pub created_at: Timestamp,
    /// When its current version was registered.
    pub registered_at: Timestamp,
    /// How many of its runs agents may have at one time; as many as there are if it is missing.
    #[serde(default)]
    pub slots: Option<u32>,
}

/// A version of a flow, whole.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct FlowVersion {
    /// Its id.
    pub id: FlowVersionId,
    /// Its flow's id.
    pub flow_id: FlowId,
    /// Its number, from 1.
    pub version: u32,
    /// The digest of its component.
    pub artifact: Digest,
    /// The size of its component in bytes.
    pub artifact_size: u64,
    /// The shape of the flow.
    pub definition: Definition,
    /// The digest of the definition's canonical form.
    pub definition_hash: Digest,
    /// The labels a run requires.
    pub labels: Labels,
    /// Where the component lies.
    pub locations: Vec<Location>,
    /// When it was registered.
    pub created_at: Timestamp,
    /// When another version took its place; none while it is the current one.
    pub archived_at: Option<Timestamp>,
    /// Who registered it: the name of a token; empty if nobody wrote it down.
    #[serde(default)]
    pub by: String,
}

/// Asks for a run.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewFlowRun {
    /// The flow: its id, its name where unique, or `project/flow`.
    pub flow: String,
    /// The number of the version; the current one unless given.
    #[serde(default)]
    pub version: Option<u32>,
    /// Parameters by name.
    #[serde(default)]
    pub parameters: BTreeMap<String, serde_json::Value>,
    /// When it is due; now unless given.
    #[serde(default)]
    pub scheduled_at: Option<Timestamp>,
    /// Labels beyond those of the version.
    #[serde(default)]
    pub labels: Labels,
    /// Higher goes first; 0 unless given, −100 to 100.
    #[serde(default)]
    pub priority: i32,
    /// A repeat with the same key (and flow) answers with the run that the first one made.
    #[serde(default)]
    pub idempotency_key: Option<String>,
    /// Milliseconds the run may take from its start; 24 h unless given.
    #[serde(default)]
    pub timeout_ms: Option<u64>,
}

/// One execution of a flow version.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct FlowRun {
    /// Its id.
    pub id: FlowRunId,
    /// The same again, so that it can be told from other ids in one object.
    pub flow_run_id: FlowRunId,
    /// The flow's name.
    pub flow: String,
    /// The flow's id.
    pub flow_id: FlowId,
    /// The project's name.
    pub project: String,
    /// The version's number.
    pub version: u32,
    /// The digest of the component that it runs.
    pub artifact: Digest,
    /// Where it stands.
    pub state: State,
    /// Why, in words; may be empty.
    pub message: String,
    /// A stable word for what ended it, such as `limit.memory`; none if nothing is wrong.
    pub code: Option<String>,
    /// Parameters, defaults filled in.
    pub parameters: BTreeMap<String, serde_json::Value>,
    /// The labels it requires.
    pub labels: Labels,
    /// Higher goes first.
    pub priority: i32,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it is or was due.
    pub scheduled_at: Timestamp,
    /// When an agent may take it, or could for the last time: later than it was due where it waits for a
    /// later attempt.
    pub due_at: Timestamp,
    /// When its first attempt began.
    pub started_at: Option<Timestamp>,
    /// When it was over.
    pub ended_at: Option<Timestamp>,
    /// The lease epoch: how often it was claimed, and once more if a person has ended it while an agent had it.
    pub claims: u32,
    /// The agent that has or had it last, by name.
    pub agent: Option<String>,
    /// Where its result is kept.
    pub result: Option<ResultRef>,
    /// Whether it has been due for so long that an agent should have taken it.
    #[serde(default)]
    pub is_late: bool,
    /// Until when its result is kept; some time later it is deleted.
    #[serde(default)]
    pub result_until: Option<Timestamp>,
    /// Rises with each transition; a watcher waits for a higher one.
    pub transition: u32,
    /// The name of the clock that made it; none if somebody asked for it.
    pub clock: Option<String>,
    /// The run that it retries, if it does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_of: Option<FlowRunId>,
}

/// One step of a history.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Transition {
    /// Its number in the run's history, from 1, without gaps.
    pub number: u32,
    /// When it was written, by the server's clock.
    pub at: Timestamp,
    /// The task run; none for the flow run itself.
    pub task_run: Option<TaskRunKey>,
    /// What moved it; none for the first.
    pub event: Option<Event>,
    /// Where it stood afterwards.
    pub state: State,
    /// Why, in words.
    pub message: String,
    /// Who: an agent's name, a token's name, or `server`.
    pub by: String,
    /// The lease epoch it was written under.
    pub epoch: u32,
}

/// A log line with its place in the run's log.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct NumberedLine {
    /// Its place in the run, rising.
    pub number: u64,
    /// The line.
    #[serde(flatten)]
    pub line: LogLine,
}

/// Which log lines.
#[derive(Clone, Debug, Default, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
pub struct LogQuery {
    /// Only lines after this number.
    pub after: u64,
    /// Lines in an answer, 1 to 1,000; 200 unless given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<u32>,
    /// Seconds to wait for a line if there is none yet and the run is not over, 0 to 30.
    pub wait_seconds: u32,
}

/// Log lines in order.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct LogPage {
    /// The lines.
    pub lines: Vec<NumberedLine>,
    /// Whether the run is over and there is nothing after these.
    pub is_end: bool,
}

/// How long to wait for a change of a run.
#[derive(Clone, Debug, Default, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
pub struct WatchQuery {
    /// Answer once the run's `transition` is above this.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub after: Option<u32>,
    /// Seconds to wait at most, 0 to 30.
    pub wait_seconds: u32,
}

/// Why a run is where it is.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Explanation {
    /// The run's id.
    pub flow_run_id: FlowRunId,
    /// Where it stands.
    pub state: State,
    /// The answer in one sentence.
    pub summary: String,
    /// What belongs to it and changes by itself, such as how many agents poll.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub aside: String,
    /// What it lacks with each agent that was heard of lately.
    pub agents: Vec<AgentLack>,
    /// The agents that were not, if there are any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agents_gone: Option<AgentsGone>,
    /// What people said about how tasks of it end, a line for each task.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub marks: Vec<String>,
    /// What would help, as lines to paste.
    pub hints: Vec<String>,
}

/// What one agent lacks for one run.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct AgentLack {
    /// The agent's name.
    pub agent: String,
    /// Whether it polls now.
    pub is_polling: bool,
    /// How many runs it could take beside those that it has.
    pub free_slots: u32,
    /// What it lacks; nothing means it could take the run.
    pub missing: Vec<Missing>,
    /// The same in words.
    pub words: Vec<String>,
}

/// Agents of which nothing was heard for some time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AgentsGone {
    /// How many.
    pub count: u32,
    /// When the last of them was heard of.
    pub seen_at: Timestamp,
}

/// What a token may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Scope {
    /// Everything a person does.
    User,
    /// What an agent does.
    Agent,
    /// Reading only.
    ReadOnly,
}

/// Asks for a token.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewToken {
    /// For a human, unique.
    pub name: String,
    /// What it may do.
    pub scope: Scope,
    /// The projects it is bound to, by name; none is all.
    #[serde(default)]
    pub projects: Option<Vec<String>>,
}

/// A token, without the secret part.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Token {
    /// Its id.
    pub id: TokenId,
    /// For a human.
    pub name: String,
    /// What it may do.
    pub scope: Scope,
    /// The projects it is bound to; none is all.
    pub projects: Option<Vec<String>>,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it was last used, to the minute.
    pub used_at: Option<Timestamp>,
}

/// A token at the only moment its text is known.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct MadeToken {
    /// The token.
    #[serde(flatten)]
    pub token: Token,
    /// Its text, shown once.
    pub text: String,
}

/// An agent takes no more runs; those it has it finishes or gives back under the same session.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Leave {
    /// Its session.
    pub session_id: SessionId,
}

/// An agent asks for work.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Poll {
    /// Its session.
    pub session_id: SessionId,
    /// How many runs it can take now.
    pub free_slots: u32,
    /// Seconds to wait if there is none, 0 to 30.
    pub wait_seconds: u32,
}

/// Work.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Claims {
    /// The runs that are now this agent's.
    pub flow_runs: Vec<ClaimedRun>,
    /// Milliseconds that had passed since the call came when these runs were claimed: so much later
    /// than the asking, and no more, their leases began.
    pub waited_ms: u64,
}

/// A run with everything that an agent needs to execute it.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct ClaimedRun {
    /// Its id.
    pub flow_run_id: FlowRunId,
    /// The lease epoch: named in every report about it.
    pub epoch: u32,
    /// The flow's name.
    pub flow: String,
    /// The project's name.
    pub project: String,
    /// The version's number.
    pub version: u32,
    /// The digest of the component.
    pub artifact: Digest,
    /// The size of the component in bytes.
    pub artifact_size: u64,
    /// Where the component lies.
    pub locations: Vec<Location>,
    /// The registered definition's hash, to be compared with what the component describes.
    pub definition_hash: Digest,
    /// The registered definition of a command, which a component cannot describe; else none.
    pub command: Option<Definition>,
    /// Parameters, defaults filled in.
    pub parameters: BTreeMap<String, serde_json::Value>,
    /// When it was due.
    pub scheduled_at: Timestamp,
    /// When it first started, for a resume.
    pub started_at: Option<Timestamp>,
    /// Milliseconds the run may take from its start.
    pub timeout_ms: u64,
    /// How often an attempt was lost with its agent.
    pub lost: u32,
    /// Task runs of an earlier claim: those that are over are not executed again.
    pub task_runs: Vec<TaskRun>,
    /// Milliseconds since its start that do not count, since it waited for a person.
    #[serde(default)]
    pub stood_still_ms: u64,
    /// Whether the server takes the run back while all that is left of it waits: for long or for a slot, by a
    /// Rest, or for a person, by a Pause. A server that knows neither says nothing here.
    #[serde(default)]
    pub is_taken_back: bool,
    /// Those of its tags that have a number of slots: a task with one of them begins only when it was given a
    /// slot of each ([`Orders::slots`]).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub limited_tags: Vec<String>,
}

/// An agent renews its leases.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Renewal {
    /// Its session.
    pub session_id: SessionId,
    /// The runs it is at work on.
    pub leases: Vec<LeaseKey>,
}

/// A run under one claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct LeaseKey {
    /// The run.
    pub flow_run_id: FlowRunId,
    /// The epoch of the claim.
    pub epoch: u32,
}

/// What became of a renewal.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Renewed {
    /// Seconds from now that the leases last.
    pub lease_seconds: u32,
    /// Runs that are over or somebody else's: stop them, and tell nothing more of them.
    pub lost: Vec<LeaseKey>,
    /// Runs whose lease has ended and that nobody else has yet: stop them, and tell what was
    /// finished before.
    #[serde(default)]
    pub lapsed: Vec<LeaseKey>,
}

/// What happened to an agent's runs, in order.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ReportBatch {
    /// Its session.
    pub session_id: SessionId,
    /// Applied in this order, all in one transaction. A repeat of the whole batch does no harm.
    pub reports: Vec<Report>,
}

/// One thing that happened.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Report {
    /// The run it happened to.
    pub lease: LeaseKey,
    /// Its number under this claim, from 1, rising: a repeat is recognised by it.
    pub number: u64,
    /// When, by the agent's clock.
    pub at: Timestamp,
    /// What.
    pub what: Happening,
}

/// What became of a batch of reports.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Reported {
    /// Runs that are over or somebody else's: nothing more about them is accepted.
    pub lost: Vec<LeaseKey>,
    /// Runs whose lease has ended and that nobody else has yet: of these only what is finished is
    /// accepted.
    #[serde(default)]
    pub lapsed: Vec<LeaseKey>,
}
