//! What callers change about flows and projects.

use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use crate::model::schedule::CatchUp;

/// How a schedule goes on that rested.
#[derive(Clone, Debug, Default, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct ResumeQuery {
    /// How what it missed is caught up; as the schedule says if it is missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub catch_up: Option<CatchUp>,
}

/// What a registration does beside making a version.
#[derive(Clone, Debug, Default, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
pub struct RegisterQuery {
    /// The name that the flow has had so far, if it takes a new one: its versions, runs, slots and whether its
    /// schedule rests stay with it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub renames: Option<String>,
}

/// Asks for another version of a flow to be the current one.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct NewRollback {
    /// The number of the version; the last one before the current one unless given.
    pub version: Option<u32>,
}

/// How many runs agents may have at one time.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Slots {
    /// 1 or more; null for as many as there are.
    pub slots: Option<u32>,
}
