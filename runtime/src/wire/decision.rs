//! What people decide about runs: those that wait for them, and those that did not go well.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::LeaseKey;
use crate::model::run::{Decision, TaskRunKey};

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

/// Asks for a new run in the place of one that is over.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct NewRetry {
    /// Whether everything is done again; else what went well is kept, where nothing above it is done again.
    pub is_whole: bool,
    /// Whether it is of the flow's current version; else of the same. Tasks of the same name are the same.
    pub is_newest: bool,
}

/// What became of the runs of a flow that were to be stopped.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, ToSchema)]
pub struct Cancelled {
    /// How many were stopped, or are being stopped.
    pub count: u64,
}
