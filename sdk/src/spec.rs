//! What the attributes say about a task or a schedule, in the form that they write down.
//!
//! Constants, so that describing a flow is the only moment at which they cost anything. `graph` turns
//! them into the records of the contract.

use crate::Signal;
use crate::definition::{
    self, Body, Cache, CatchUp, Clock, Condition, Grants, Limits, OnLost, Overlap, Retries, Rule,
    Schedule, Trigger,
};
use crate::text::owned;
use crate::value::{Inputs, Value};

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

/// One clock of `#[flow(schedule = ..)]`.
#[doc(hidden)]
pub struct ClockSpec {
    pub name: &'static str,
    pub rule: RuleSpec,
}

/// What a clock ticks by.
#[doc(hidden)]
pub enum RuleSpec {
    Interval(u64),
    Cron(&'static str, &'static str),
    Dates(&'static [&'static str]),
}

/// The schedule of a flow, none without a clock.
pub(crate) fn schedule(clocks: &[ClockSpec]) -> Option<Schedule> {
    if clocks.is_empty() {
        return None;
    }
    Some(Schedule {
        clocks: clocks.iter().map(clock).collect(),
        filters: Vec::new(),
        catch_up: CatchUp::Last,
        overlap: Overlap::Allow,
    })
}

fn clock(spec: &ClockSpec) -> Clock {
    let rule = match spec.rule {
        RuleSpec::Interval(millis) => Rule::Interval(millis),
        RuleSpec::Cron(line, zone) => Rule::Cron((owned(line), owned(zone))),
        RuleSpec::Dates(dates) => Rule::Dates(strings(dates)),
    };
    Clock {
        name: owned(spec.name),
        rule,
        starts_at: None,
        ends_at: None,
        parameters: Vec::new(),
    }
}

fn strings(texts: &[&str]) -> Vec<String> {
    let mut strings = Vec::new();
    for text in texts {
        strings.push(owned(text));
    }
    strings
}
