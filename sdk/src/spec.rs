//! What the attributes say about a task or a schedule, in the form that they write down.
//!
//! Constants, so that describing a flow is the only moment at which they cost anything. `graph` turns
//! them into the records of the contract.

use crate::Signal;
use crate::bindings::waft::flow::types::NamedValue;
use crate::definition::{
    self, Body, Cache, CatchUp, Clock, Condition, Filter, Grants, Limits, OnLost, Overlap, Retries,
    Rule, Schedule, Trigger,
};
use crate::graph;
use crate::text::owned;
use crate::value::{Inputs, Value, json};

/// Everything `#[task]` knows about a task.
#[doc(hidden)]
pub struct TaskSpec {
    pub name: &'static str,
    /// By what `tasks.run` finds the body: unique in the crate.
    pub function: &'static str,
    pub description: &'static str,
    pub run: fn(&mut Inputs) -> Result<Value, Signal>,
    pub trigger: Trigger,
    pub skip_on_upstream_skip: bool,
    pub retries: Option<Retries>,
    pub timeout_ms: Option<u64>,
    pub tags: &'static [&'static str],
    pub is_cached: bool,
    pub cache_valid_ms: Option<u64>,
    pub cache_key: Option<&'static str>,
    pub net: &'static [&'static str],
    pub dirs: &'static [&'static str],
    pub env: &'static [&'static str],
    pub secrets: &'static [&'static str],
    pub limits: Limits,
    pub on_lost: OnLost,
}

impl TaskSpec {
    /// A task that says nothing but its name.
    pub const fn new(
        name: &'static str,
        function: &'static str,
        description: &'static str,
        run: fn(&mut Inputs) -> Result<Value, Signal>,
    ) -> Self {
        Self {
            name,
            function,
            description,
            run,
            trigger: Trigger::AllSuccessful,
            skip_on_upstream_skip: true,
            retries: None,
            timeout_ms: None,
            tags: &[],
            is_cached: false,
            cache_valid_ms: None,
            cache_key: None,
            net: &[],
            dirs: &[],
            env: &[],
            secrets: &[],
            limits: Limits {
                memory_bytes: None,
                cpu_ms: None,
                output_bytes: None,
                parallel: None,
            },
            on_lost: OnLost::Retry,
        }
    }

    pub(crate) fn task(
        &self,
        name: String,
        body: Body,
        mapped: bool,
        conditions: Vec<Condition>,
    ) -> definition::Task {
        definition::Task {
            name,
            description: owned(self.description),
            body,
            mapped,
            conditions,
            trigger: self.trigger,
            skip_on_upstream_skip: self.skip_on_upstream_skip,
            retries: self.retries,
            timeout_ms: self.timeout_ms,
            tags: strings(self.tags),
            cache: self.is_cached.then(|| Cache {
                valid_ms: self.cache_valid_ms,
                key: self.cache_key.map(owned),
            }),
            grants: Grants {
                net: strings(self.net),
                dirs: strings(self.dirs),
                env: strings(self.env),
                secrets: strings(self.secrets),
            },
            limits: self.limits,
            on_lost: self.on_lost,
        }
    }
}

/// Everything that `#[flow(schedule = ..)]` says.
#[doc(hidden)]
pub struct ScheduleSpec {
    pub clocks: &'static [ClockSpec],
    pub filters: &'static [FilterSpec],
    pub catch_up: CatchUp,
    pub overlap: Overlap,
}

/// One clock.
#[doc(hidden)]
pub struct ClockSpec {
    pub name: &'static str,
    pub rule: RuleSpec,
    pub starts: Option<&'static str>,
    pub ends: Option<&'static str>,
    pub given: &'static [Given],
}

/// What a clock ticks by.
#[doc(hidden)]
pub enum RuleSpec {
    Interval(u64),
    Cron(&'static str, &'static str),
    Dates(&'static [&'static str]),
}

/// A value that a clock gives to a parameter.
#[doc(hidden)]
pub struct Given {
    pub name: &'static str,
    /// Answers JSON text.
    pub value: fn() -> String,
}

/// Which instants count.
#[doc(hidden)]
pub enum FilterSpec {
    Weekdays(&'static [u8], &'static str),
    Between(&'static str, &'static str, &'static str),
    Except(&'static [&'static str], &'static str),
}

/// Answers a schedule as the contract has it, or the first of its values that cannot be written.
#[doc(hidden)]
pub fn schedule(spec: &ScheduleSpec) -> Result<Option<Schedule>, String> {
    graph::written(|| {
        Some(Schedule {
            clocks: spec.clocks.iter().map(clock).collect(),
            filters: spec.filters.iter().map(filter).collect(),
            catch_up: spec.catch_up,
            overlap: spec.overlap,
        })
    })
}

fn clock(spec: &ClockSpec) -> Clock {
    let given = |given: &Given| NamedValue {
        name: owned(given.name),
        value: json((given.value)().into_bytes()),
    };
    Clock {
        name: owned(spec.name),
        rule: match spec.rule {
            RuleSpec::Interval(millis) => Rule::Interval(millis),
            RuleSpec::Cron(line, zone) => Rule::Cron((owned(line), owned(zone))),
            RuleSpec::Dates(dates) => Rule::Dates(strings(dates)),
        },
        starts_at: spec.starts.map(owned),
        ends_at: spec.ends.map(owned),
        parameters: spec.given.iter().map(given).collect(),
    }
}

fn filter(spec: &FilterSpec) -> Filter {
    match spec {
        FilterSpec::Weekdays(days, zone) => Filter::Weekdays((days.to_vec(), owned(zone))),
        FilterSpec::Between(from, until, zone) => {
            Filter::BetweenTimes((owned(from), owned(until), owned(zone)))
        }
        FilterSpec::Except(dates, zone) => Filter::SkipDates((strings(dates), owned(zone))),
    }
}

fn strings(texts: &[&str]) -> Vec<String> {
    let mut strings = Vec::new();
    for text in texts {
        strings.push(owned(text));
    }
    strings
}
