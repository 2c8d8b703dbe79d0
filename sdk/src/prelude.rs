//! Everything a flow is usually written with: `use waft_sdk::prelude::*;`.

pub use crate::{
    Node, Param, Raw, Schema, Signal, TaskResult, cards, flow, http, ifelse, log, merge, run,
    secrets, switch, task, unmapped, when,
};
