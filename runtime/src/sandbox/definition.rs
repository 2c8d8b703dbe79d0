//! From what a component says of itself to the model's [`Definition`].
//!
//! Every name, number and text is the guest's: what does not parse is said with the task it belongs
//! to, and [`Definition::check`] has the last word. Constants leave the definition here; it keeps
//! their digests.

use std::collections::HashMap;

use jiff::Timestamp;

use super::bindings::exports::waft::flow::definition as wit;
use super::bindings::waft::flow::types;
use super::host::log::cleaned;
use super::host::run::from_guest;
use crate::model::artifact::Digest;
use crate::model::flow::{
    Amount, Backoff, Body, Bounds, Cache, Condition, Definition, Described, Edge, Mapping, OnLost,
    Retries, Source, Task, Trigger,
};
use crate::model::grant::Grants;
use crate::model::limit::{DEFINITION_BYTES_MAX, EDGES_MAX, TASKS_MAX, TaskLimits};
use crate::model::parameter::Parameter;
use crate::model::schedule::{CatchUp, Clock, Filter, Overlap, Rule, Schedule};
use crate::model::value::Value;

/// Bytes of a guest's text that is repeated in a refusal.
const SHOWN_BYTES_MAX: usize = 200;

/// Constants by their digest, as they are met.
#[derive(Default)]
struct Constants {
    values: HashMap<Digest, Value>,
    bytes: usize,
}

/// Turns a description into the model's nouns and checks it; an error is the reason in words.
pub(super) fn described(flow: wit::Flow) -> Result<Described, String> {
    // Told apart before anything is converted, so that a huge graph costs no more than its count.
    for (what, count, most) in [
        ("tasks", flow.tasks.len(), TASKS_MAX),
        ("edges", flow.edges.len(), EDGES_MAX),
    ] {
        if count > most {
            return Err(format!(
                "it has {count} {what}, more than the limit of {most}"
            ));
        }
    }
    let mut constants = Constants::default();
    let tasks = flow.tasks.into_iter().map(|task| {
        let name = cleaned(&task.name, SHOWN_BYTES_MAX);
        constants
            .task(task)
            .map_err(|why| format!("task `{name}`: {why}"))
    });
    let tasks = tasks.collect::<Result<_, _>>()?;
    let edges = flow.edges.into_iter().map(|edge| constants.edge(edge));
    let edges = edges.collect::<Result<_, _>>()?;
    let definition = Definition {
        name: flow.name,
        description: flow.description,
        command: None,
        parameters: each(flow.parameters, parameter)?,
        tasks,
        edges,
        reference_tasks: flow.reference_tasks,
        output: flow.output,
        schedule: flow
            .schedule
            .map(schedule)
            .transpose()
            .map_err(|why| format!("the schedule is not usable: {why}"))?,
    };
    definition
        .check()
        .map_err(|why| cleaned(&why.to_string(), 1_000))?;
    constants.check_bytes(&definition)?;
    Ok(Described {
        definition,
        constants: constants.values,
    })
}

fn each<A, B>(all: Vec<A>, turn: impl Fn(A) -> Result<B, String>) -> Result<Vec<B>, String> {
    all.into_iter().map(turn).collect()
}

impl Constants {
    fn add(&mut self, value: types::Value) -> Digest {
        let value = from_guest(value);
        // The same bytes of two types are two values.
        let mut named = value.content_type.clone().into_bytes();
        named.push(0);
        named.extend_from_slice(&value.bytes);
        let digest = Digest::of(&named);
        if !self.values.contains_key(&digest) {
            self.bytes += named.len();
            self.values.insert(digest, value);
        }
        digest
    }

    fn check_bytes(&self, definition: &Definition) -> Result<(), String> {
        let text = serde_json::to_vec(definition).map_or(usize::MAX, |text| text.len());
        let bytes = text.saturating_add(self.bytes);
        match bytes > DEFINITION_BYTES_MAX {
            true => Err(format!(
                "it has {bytes} bytes of definition, constants included, more than the limit of {DEFINITION_BYTES_MAX}"
            )),
            false => Ok(()),
        }
    }

    fn source(&mut self, source: wit::Source) -> Source {
        match source {
            wit::Source::Task(name) => Source::Task(name),
            wit::Source::Parameter(name) => Source::Parameter(name),
            wit::Source::Constant(value) => Source::Constant(self.add(value)),
        }
    }

    fn edge(&mut self, edge: wit::Edge) -> Result<Edge, String> {
        Ok(Edge {
            from: self.source(edge.from),
            to: edge.to,
            input: edge.input,
            mapping: match edge.mapping {
                wit::Mapping::Whole => Mapping::Whole,
                wit::Mapping::Each => Mapping::Each,
            },
        })
    }

    fn task(&mut self, task: wit::Task) -> Result<Task, String> {
        let conditions = task.conditions.into_iter();
        let conditions = conditions.map(|condition| self.condition(condition));
        Ok(Task {
            conditions: conditions.collect::<Result<_, _>>()?,
            name: task.name,
            description: task.description,
            body: match task.body {
                wit::Body::Function(name) => Body::Function(name),
                wit::Body::Merge => Body::Merge,
            },
            is_mapped: task.mapped,
            trigger: trigger(task.trigger),
            skip_on_upstream_skip: task.skip_on_upstream_skip,
            retries: task.retries.map(retries).transpose()?,
            timeout_ms: task.timeout_ms,
            tags: task.tags.into_iter().collect(),
            cache: task.cache.map(|cache| Cache {
                valid_ms: cache.valid_ms,
                key: cache.key,
            }),
            grants: grants(task.grants)?,
            limits: TaskLimits {
                memory_bytes: task.limits.memory_bytes,
                cpu_ms: task.limits.cpu_ms,
                wall_ms: None,
                output_bytes: task.limits.output_bytes,
                parallel: task.limits.parallel,
            },
            on_lost: match task.on_lost {
                wit::OnLost::Retry => OnLost::Retry,
                wit::OnLost::Fail => OnLost::Fail,
            },
        })
    }

    fn condition(&mut self, condition: wit::Condition) -> Result<Condition, String> {
        for text in &condition.equals {
            Value::json(text.clone())
                .scalar()
                .map_err(|why| format!("what a branch is compared with is not usable: {why}"))?;
        }
        Ok(Condition {
            subject: self.source(condition.subject),
            equals: condition.equals,
            is_negated: condition.negated,
        })
    }
}

fn grants(grants: wit::Grants) -> Result<Grants, String> {
    fn parsed<T: std::str::FromStr<Err: std::fmt::Display> + Ord>(
        texts: &[String],
    ) -> Result<std::collections::BTreeSet<T>, String> {
        let parse = |text: &String| text.parse().map_err(|why: T::Err| why.to_string());
        texts.iter().map(parse).collect()
    }
    Ok(Grants {
        net: parsed(&grants.net)?,
        dirs: parsed(&grants.dirs)?,
        env: names("environment variable", grants.env)?,
        secrets: names("secret", grants.secrets)?,
    })
}

/// Names of variables and secrets stand in flags and files, so they are words.
fn names(what: &str, names: Vec<String>) -> Result<std::collections::BTreeSet<String>, String> {
    let is_word = |name: &str| {
        (1..=128).contains(&name.len())
            && name
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || "_-.".contains(c))
    };
    match names.iter().find(|name| !is_word(name)) {
        Some(name) => {
            let name = cleaned(name, SHOWN_BYTES_MAX);
            Err(format!("`{name}` is not the name of a {what}"))
        }
        None => Ok(names.into_iter().collect()),
    }
}

fn retries(retries: wit::Retries) -> Result<Retries, String> {
    if retries.jitter_percent > 100 {
        return Err("the jitter of its retries is over 100 percent".to_owned());
    }
    Ok(Retries {
        count: retries.count,
        delay_ms: retries.delay_ms,
        backoff: match retries.backoff {
            wit::Backoff::Constant => Backoff::Constant,
            wit::Backoff::Linear => Backoff::Linear,
            wit::Backoff::Exponential => Backoff::Exponential,
        },
        delay_max_ms: retries.delay_max_ms,
        jitter_percent: retries.jitter_percent,
    })
}

fn trigger(trigger: wit::Trigger) -> Trigger {
    match trigger {
        wit::Trigger::AllSuccessful => Trigger::AllSuccessful,
        wit::Trigger::AllFailed => Trigger::AllFailed,
        wit::Trigger::AllFinished => Trigger::AllFinished,
        wit::Trigger::AnySuccessful => Trigger::AnySuccessful,
        wit::Trigger::AnyFailed => Trigger::AnyFailed,
        wit::Trigger::SomeSuccessful(within) => Trigger::SomeSuccessful(bounds(within)),
        wit::Trigger::SomeFailed(within) => Trigger::SomeFailed(bounds(within)),
        wit::Trigger::NotAllSkipped => Trigger::NotAllSkipped,
        wit::Trigger::ManualOnly => Trigger::ManualOnly,
    }
}

fn bounds(bounds: wit::Bounds) -> Bounds {
    let amount = |amount| match amount {
        wit::Amount::Count(count) => Amount::Count(count),
        wit::Amount::Percent(percent) => Amount::Percent(percent),
    };
    Bounds {
        at_least: bounds.at_least.map(amount),
        at_most: bounds.at_most.map(amount),
    }
}

fn parameter(parameter: wit::Parameter) -> Result<Parameter, String> {
    let name = cleaned(&parameter.name, SHOWN_BYTES_MAX);
    let json = |what: &str, text: &str| {
        serde_json::from_str(text)
            .map_err(|why| format!("parameter `{name}`: its {what} is not JSON: {why}"))
    };
    Ok(Parameter {
        schema: json("schema", &parameter.schema)?,
        default: parameter
            .default
            .map(|text| json("default", &text))
            .transpose()?,
        name: parameter.name,
        description: parameter.description,
    })
}

fn schedule(schedule: wit::Schedule) -> Result<Schedule, String> {
    Ok(Schedule {
        clocks: each(schedule.clocks, clock)?,
        filters: schedule.filters.into_iter().map(filter).collect(),
        catch_up: match schedule.catch_up {
            wit::CatchUp::Last => CatchUp::Last,
            wit::CatchUp::All => CatchUp::All,
            wit::CatchUp::Skip => CatchUp::Skip,
        },
        overlap: match schedule.overlap {
            wit::Overlap::Allow => Overlap::Allow,
            wit::Overlap::Skip => Overlap::Skip,
            wit::Overlap::Queue => Overlap::Queue,
            wit::Overlap::CancelOld => Overlap::CancelOld,
        },
    })
}

fn clock(clock: wit::Clock) -> Result<Clock, String> {
    let name = cleaned(&clock.name, SHOWN_BYTES_MAX);
    let instant = |text: String| {
        text.parse::<Timestamp>().map_err(|why| {
            let text = cleaned(&text, SHOWN_BYTES_MAX);
            format!("clock `{name}`: `{text}` is not an instant: {why}")
        })
    };
    let parameters = clock.parameters.into_iter().map(|given| {
        let value = serde_json::from_slice(&given.value.bytes).map_err(|why| {
            let given = cleaned(&given.name, SHOWN_BYTES_MAX);
            format!("clock `{name}`: the parameter `{given}` is not JSON: {why}")
        });
        Ok::<_, String>((given.name, value?))
    });
    Ok(Clock {
        parameters: parameters.collect::<Result<_, _>>()?,
        rule: match clock.rule {
            wit::Rule::Interval(every_ms) => Rule::IntervalMs(every_ms),
            wit::Rule::Cron((line, time_zone)) => Rule::Cron { line, time_zone },
            wit::Rule::Dates(dates) => Rule::Dates(each(dates, instant)?),
        },
        starts_at: clock.starts_at.map(&instant).transpose()?,
        ends_at: clock.ends_at.map(&instant).transpose()?,
        name: clock.name,
    })
}

fn filter(filter: wit::Filter) -> Filter {
    match filter {
        wit::Filter::Weekdays((days, time_zone)) => Filter::Weekdays { days, time_zone },
        wit::Filter::BetweenTimes((from, until, time_zone)) => Filter::BetweenTimes {
            from,
            until,
            time_zone,
        },
        wit::Filter::SkipDates((dates, time_zone)) => Filter::SkipDates { dates, time_zone },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn task(name: &str) -> wit::Task {
        wit::Task {
            name: name.to_owned(),
            description: String::new(),
            body: wit::Body::Function(name.to_owned()),
            mapped: false,
            conditions: Vec::new(),
            trigger: wit::Trigger::AllSuccessful,
            skip_on_upstream_skip: true,
            retries: None,
            timeout_ms: None,
            tags: Vec::new(),
            cache: None,
            grants: wit::Grants {
                net: Vec::new(),
                dirs: Vec::new(),
                env: Vec::new(),
                secrets: Vec::new(),
            },
            limits: wit::Limits {
                memory_bytes: None,
                cpu_ms: None,
                output_bytes: None,
                parallel: None,
            },
            on_lost: wit::OnLost::Retry,
        }
    }

    fn flow(tasks: Vec<wit::Task>) -> wit::Flow {
        wit::Flow {
            name: "flow".to_owned(),
            description: String::new(),
            parameters: Vec::new(),
            tasks,
            edges: Vec::new(),
            reference_tasks: Vec::new(),
            output: None,
            schedule: None,
        }
    }

    fn constant(to: &str, bytes: &[u8]) -> wit::Edge {
        wit::Edge {
            to: to.to_owned(),
            input: Some("input".to_owned()),
            from: wit::Source::Constant(types::Value {
                content_type: "application/json".to_owned(),
                bytes: bytes.to_vec(),
            }),
            mapping: wit::Mapping::Whole,
        }
    }

    fn refusal(flow: wit::Flow) -> String {
        described(flow).unwrap_err()
    }

    #[test]
    fn constants_are_kept_once_and_named_by_digest() {
        let mut flow = flow(vec![task("a"), task("b")]);
        flow.edges = vec![constant("a", b"1"), constant("b", b"1")];
        let described = described(flow).unwrap();
        assert_eq!(described.constants.len(), 1);
        let Source::Constant(digest) = described.definition.edges[1].from else {
            panic!("not a constant");
        };
        assert_eq!(described.constants[&digest].bytes, "1");
    }

    #[test]
    fn a_definition_that_is_too_large_names_the_limit() {
        let many = (0..=TASKS_MAX).map(|n| task(&format!("t{n}"))).collect();
        assert_eq!(
            refusal(flow(many)),
            "it has 5001 tasks, more than the limit of 5000"
        );
        let mut wide = flow(vec![task("a")]);
        wide.edges = vec![constant("a", b"1"); EDGES_MAX + 1];
        assert_eq!(
            refusal(wide),
            "it has 20001 edges, more than the limit of 20000"
        );
        let mut heavy = flow(vec![task("a")]);
        heavy.edges = vec![constant("a", &vec![b'1'; DEFINITION_BYTES_MAX])];
        let text = refusal(heavy);
        assert!(text.contains("more than the limit of 2097152"), "{text}");
    }

    #[test]
    fn what_does_not_parse_is_said_with_its_task() {
        let mut bad = task("fetch");
        bad.grants.net = vec!["nowhere".to_owned()];
        let text = refusal(flow(vec![bad]));
        assert!(
            text.starts_with("task `fetch`: `nowhere` is not a net grant"),
            "{text}"
        );
        let mut bad = task("fetch");
        bad.grants.secrets = vec!["a b".to_owned()];
        assert_eq!(
            refusal(flow(vec![bad])),
            "task `fetch`: `a b` is not the name of a secret"
        );
        let mut bad = task("fetch");
        bad.conditions = vec![wit::Condition {
            subject: wit::Source::Parameter("p".to_owned()),
            equals: vec!["[1]".to_owned()],
            negated: false,
        }];
        let text = refusal(flow(vec![bad]));
        assert!(text.contains("what a branch is compared with"), "{text}");
    }

    #[test]
    fn a_schedule_is_read_and_a_bad_instant_named() {
        let clock = |starts_at: &str| wit::Clock {
            name: "daily".to_owned(),
            rule: wit::Rule::Cron(("0 6 * * *".to_owned(), "UTC".to_owned())),
            starts_at: Some(starts_at.to_owned()),
            ends_at: None,
            parameters: Vec::new(),
        };
        let with = |starts_at: &str| {
            let mut flow = flow(vec![task("a")]);
            flow.schedule = Some(wit::Schedule {
                clocks: vec![clock(starts_at)],
                filters: Vec::new(),
                catch_up: wit::CatchUp::Last,
                overlap: wit::Overlap::Allow,
            });
            flow
        };
        let good = described(with("2030-01-01T00:00:00Z")).unwrap();
        let schedule = good.definition.schedule.unwrap();
        let rule = Rule::Cron {
            line: "0 6 * * *".to_owned(),
            time_zone: "UTC".to_owned(),
        };
        assert_eq!(schedule.clocks[0].rule, rule);
        let text = refusal(with("tomorrow"));
        assert!(
            text.contains("clock `daily`: `tomorrow` is not an instant"),
            "{text}"
        );
    }

    #[test]
    fn the_model_has_the_last_word() {
        let text = refusal(flow(vec![task("a"), task("a")]));
        assert_eq!(text, "there are two tasks named `a`");
    }
}
