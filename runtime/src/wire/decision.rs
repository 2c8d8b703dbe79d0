//! What people decide about runs: those that wait for them, those that are to end otherwise than by themselves,
//! and those that did not go well.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::LeaseKey;
use crate::model::run::{Decision, TaskRunKey};
use crate::model::state::State;

/// Decides about task runs of a flow run that wait for a person.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct NewDecision {
    /// About these alone: one task run or, without an element, all of a mapped task. Unless given, about all
    /// that wait.
    pub task_run: Option<TaskRunKey>,
    /// Whether they are not to go on, and so fail; else they go on.
    pub is_declined: bool,
    /// Why; the task and the history show it.
    pub reason: String,
}

/// What was decided about a task run at work.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Decided {
    /// The run, under the claim that has it.
    pub lease: LeaseKey,
    /// The task run.
    pub task_run: TaskRunKey,
    /// What was decided.
    pub decision: Decision,
}

/// Says how something ends that is not over, whatever it does.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewMark {
    /// Task runs: one or, without an element, all of a mapped task that are not over. Whoever has the run sees
    /// to it, and goes on with the rest. None for the run itself, which is over at once.
    #[serde(default)]
    pub task_runs: Vec<TaskRunKey>,
    /// Success, Skipped, Failed or Cancelled.
    pub state: State,
    /// With Success of task runs: their output, a text of JSON of at most 64 KiB; `null` unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output: Option<String>,
    /// Why; the history shows it.
    #[serde(default)]
    pub reason: String,
}

/// Asks for a new run in the place of one that is over.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct NewRetry {
    /// Whether everything is done again; else what went well is kept, where nothing above it is done again.
    pub is_whole: bool,
    /// Whether it is of the flow's current version; else of the same. Tasks of the same name are the same.
    pub is_newest: bool,
    /// Task runs of the new run that end at once, since somebody has done them by hand, or wants none of them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub marks: Vec<TaskMark>,
    /// Why those are marked; the history shows it.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub reason: String,
}

/// How one task run of a new run ends.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TaskMark {
    /// Which: one or, without an element, a mapped task as a whole.
    pub task_run: TaskRunKey,
    /// Success, Skipped, Failed or Cancelled.
    pub state: State,
    /// With Success: its output, a text of JSON of at most 64 KiB; `null` unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output: Option<String>,
}

/// What became of the runs of a flow that were to be stopped.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, ToSchema)]
pub struct Cancelled {
    /// How many were stopped, or are being stopped.
    pub count: u64,
}
