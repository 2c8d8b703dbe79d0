//! Slots of tags: how many task runs with a tag may run at one time.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::LeaseKey;
use crate::model::run::TaskRunKey;

/// A tag of tasks that has, or had, a number of slots in a project.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Tag {
    /// The tag.
    pub name: String,
    /// The project's name.
    pub project: String,
    /// How many task runs with it may run at one time, over all flows and agents; as many as there are if it is
    /// missing.
    #[serde(default)]
    pub slots: Option<u32>,
    /// How many of them are taken; more than there are where their number was lowered.
    pub taken: u32,
    /// How many task runs wait for one.
    pub waiting: u32,
}

/// A task run that was given a slot of each of its tags.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct GivenSlots {
    /// The run, under the claim that asked.
    pub lease: LeaseKey,
    /// The task run.
    pub task_run: TaskRunKey,
    /// The attempts that were started before: the slots are for the next one alone.
    pub attempts: u32,
}

/// The tags that have a number of slots, of all projects that an agent runs code of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LimitedTags {
    /// Names this answer; said back with the next call.
    pub change: i64,
    /// The tags, by the name of their project.
    pub tags: BTreeMap<String, BTreeSet<String>>,
}
