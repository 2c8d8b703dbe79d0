//! `waft inspect`: what a component says it is.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde_json::{Value, json};

use super::component::{Component, Which, sandbox_of_agent};
use super::failure::Done;
use super::{Call, words};
use crate::config::{Bytes, Millis};
use crate::model::flow::{Definition, Mapping, Source, Task, Trigger};
use crate::model::parameter::{Parameter, held_by_option};
use crate::model::schedule::{CatchUp, Clock, Filter, Overlap, Rule, Schedule};
use crate::sandbox::Kind;

/// Shows what a component is: graph, parameters, schedule, grants, imports, digest.
///
/// The component describes itself in a sandbox that is granted nothing.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  waft inspect .
  waft inspect target/wasm32-wasip2/release/my_flow.wasm --json")]
pub(super) struct Args {
    #[command(flatten)]
    which: Which,
}

pub(super) fn run(args: &Args, call: &Call) -> Done {
    let component = call.wait(async { args.which.load(call, &sandbox_of_agent(call)?).await })?;
    if call.output.is_json() {
        return call.output.json(&as_json(&component));
    }
    call.output.line(as_text(&component).trim_end())
}

fn as_json(component: &Component) -> Value {
    let definition = component.definition();
    json!({
        "flow": definition.name,
        "description": definition.description,
        "kind": kind(component),
        "path": component.path,
        "digest": component.digest,
        "size": component.size,
        "definition_hash": definition.hash(),
        "parameters": schema(&definition.parameters),
        "tasks": definition.tasks,
        "edges": definition.edges,
        "reference_tasks": definition.reference_tasks,
        "output": definition.output,
        "schedule": definition.schedule,
        "grants": definition.needs().grants,
        "limits": definition.needs().limits,
        "imports": component.prepared.imports(),
    })
}

fn kind(component: &Component) -> &'static str {
    match component.prepared.kind() {
        Kind::Flow => "flow",
        Kind::Command => "command",
    }
}

/// Makes one JSON schema of what a flow takes.
fn schema(parameters: &[Parameter]) -> Value {
    let property = |parameter: &Parameter| {
        let mut schema = parameter.schema.clone();
        if let Value::Object(schema) = &mut schema {
            if !parameter.description.is_empty() {
                schema.insert(
                    "description".to_owned(),
                    parameter.description.clone().into(),
                );
            }
            if let Some(default) = &parameter.default {
                schema.insert("default".to_owned(), default.clone());
            }
        }
        (parameter.name.clone(), schema)
    };
    let is_required = |parameter: &&Parameter| parameter.default.is_none();
    let required: Vec<_> = parameters
        .iter()
        .filter(is_required)
        .map(|p| &p.name)
        .collect();
    json!({
        "type": "object",
        "properties": parameters.iter().map(property).collect::<BTreeMap<_, _>>(),
        "required": required,
        "additionalProperties": false,
    })
}

fn as_text(component: &Component) -> String {
    let imports = component.prepared.imports();
    let lines = |name: &str, lines: &[String]| {
        let line = |(nth, line)| format!("{:<11} {line}\n", if nth == 0 { name } else { "" });
        lines.iter().enumerate().map(line).collect::<String>()
    };
    format!(
        "{:<11} {}\n{}{}{}{}",
        kind(component),
        component.definition().name,
        lines("digest", &[component.digest.to_string()]),
        lines("size", &[size(component.size)]),
        definition_text(component.definition()),
        lines("imports", imports),
    )
}

/// Writes a definition for people: what it takes, its graph, when it runs, what it asks for.
pub(super) fn definition_text(definition: &Definition) -> String {
    let mut text = String::new();
    let mut say = |name: &str, lines: &[String]| {
        for (nth, line) in lines.iter().enumerate() {
            let name = if nth == 0 { name } else { "" };
            let _ = writeln!(text, "{name:<11} {line}");
        }
    };
    if !definition.description.is_empty() {
        say("about", &[definition.description.replace('\n', " ")]);
    }
    say(
        "parameters",
        &definition
            .parameters
            .iter()
            .map(parameter_line)
            .collect::<Vec<_>>(),
    );
    say("tasks", &task_lines(definition));
    say("output", definition.output.as_slice());
    if let Some(schedule) = &definition.schedule {
        say("schedule", &schedule_lines(schedule));
    }
    say(
        "grants",
        &[words::list_or_none(&definition.needs().grants.lines())],
    );
    text
}

/// Writes a size for people, with its bytes where they say more.
pub(super) fn size(bytes: u64) -> String {
    match bytes {
        0..1_024 => format!("{bytes} bytes"),
        1_024..1_048_576 => format!("{:.1} KiB ({bytes} bytes)", bytes as f64 / 1_024.0),
        _ => format!("{:.1} MiB ({bytes} bytes)", bytes as f64 / 1_048_576.0),
    }
}

fn parameter_line(parameter: &Parameter) -> String {
    let mut line = format!("{}: {}", parameter.name, type_word(&parameter.schema));
    match &parameter.default {
        Some(default) => {
            let _ = write!(line, " = {default}");
        }
        None => line.push_str(" (required)"),
    }
    if !parameter.description.is_empty() {
        let _ = write!(line, "  {}", parameter.description.replace('\n', " "));
    }
    line
}

fn type_word(schema: &Value) -> String {
    match schema.get("type") {
        Some(Value::String(one)) if one == "array" => match schema.get("items") {
            Some(items) => format!("array of {}", type_word(items)),
            None => one.clone(),
        },
        Some(Value::String(one)) => one.clone(),
        Some(Value::Array(several)) => {
            let words: Vec<_> = several.iter().filter_map(Value::as_str).collect();
            words.join(" or ")
        }
        _ => match schema.get("anyOf").and_then(Value::as_array) {
            Some(choices) => match held_by_option(choices) {
                Some(held) => format!("{} or null", type_word(held)),
                None => "any".to_owned(),
            },
            None => "any".to_owned(),
        },
    }
}

/// Lists the tasks so that each stands below what it waits for.
fn task_lines(definition: &Definition) -> Vec<String> {
    let mut above: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (from, to) in definition.dependencies() {
        above.entry(to).or_default().push(from);
    }
    let mut waiting: Vec<&Task> = definition.tasks.iter().collect();
    let mut listed: std::collections::HashSet<&str> = std::collections::HashSet::new();
    let mut lines = Vec::new();
    // The definition was checked: there is no circle, and each round lists at least one.
    while !waiting.is_empty() {
        let is_free = |task: &Task| {
            let names = above.get(task.name.as_str());
            names.is_none_or(|names| names.iter().all(|name| listed.contains(name)))
        };
        let (free, rest): (Vec<_>, Vec<_>) = waiting.into_iter().partition(|task| is_free(task));
        if free.is_empty() {
            break;
        }
        for task in &free {
            lines.push(task_line(definition, task));
        }
        listed.extend(free.iter().map(|task| task.name.as_str()));
        waiting = rest;
    }
    lines
}

fn task_line(definition: &Definition, task: &Task) -> String {
    let mut line = task.name.clone();
    let mut sources: Vec<String> = Vec::new();
    for edge in definition.edges.iter().filter(|edge| edge.to == task.name) {
        let source = match (&edge.from, edge.mapping) {
            (Source::Constant(_), _) => continue,
            (Source::Task(name), Mapping::Whole) => name.clone(),
            (Source::Task(name), Mapping::Each) => format!("each of {name}"),
            (Source::Parameter(name), Mapping::Whole) => format!("parameter {name}"),
            (Source::Parameter(name), Mapping::Each) => format!("each of parameter {name}"),
        };
        if !sources.contains(&source) {
            sources.push(source);
        }
    }
    if !sources.is_empty() {
        let _ = write!(line, " <- {}", sources.join(", "));
    }
    let traits = task_traits(task);
    if !traits.is_empty() {
        let _ = write!(line, "  [{}]", traits.join("; "));
    }
    line
}

fn task_traits(task: &Task) -> Vec<String> {
    let mut traits = Vec::new();
    for condition in &task.conditions {
        let subject = match &condition.subject {
            Source::Task(name) => name.clone(),
            Source::Parameter(name) => format!("parameter {name}"),
            Source::Constant(_) => "a constant".to_owned(),
        };
        let is = if condition.is_negated { "is not" } else { "is" };
        traits.push(format!(
            "if {subject} {is} {}",
            condition.equals.join(" or ")
        ));
    }
    if task.trigger != Trigger::default() {
        let trigger = serde_json::to_value(task.trigger).unwrap_or_default();
        let word = trigger
            .as_str()
            .map_or_else(|| trigger.to_string(), str::to_owned);
        traits.push(format!("trigger {word}"));
    }
    if let Some(retries) = &task.retries {
        traits.push(format!(
            "{} retries after {}",
            retries.count,
            Millis(retries.delay_ms)
        ));
    }
    if let Some(timeout) = task.timeout_ms {
        traits.push(format!("timeout {}", Millis(timeout)));
    }
    if let Some(cache) = &task.cache {
        traits.push(match cache.valid_ms {
            Some(valid) => format!("cached for {}", Millis(valid)),
            None => "cached".to_owned(),
        });
    }
    if let Some(memory) = task.limits.memory_bytes {
        traits.push(format!("memory {}", Bytes(memory)));
    }
    traits.extend(task.grants.lines());
    traits
}

/// Lists clocks, filters, and the policies other than the default.
fn schedule_lines(schedule: &Schedule) -> Vec<String> {
    let mut lines: Vec<String> = schedule.clocks.iter().map(clock_line).collect();
    lines.extend(schedule.filters.iter().map(filter_line));
    let word = |policy: Value| policy.as_str().unwrap_or_default().replace('_', "-");
    if schedule.catch_up != CatchUp::default() {
        lines.push(format!("catch up: {}", word(json!(schedule.catch_up))));
    }
    if schedule.overlap != Overlap::default() {
        lines.push(format!("overlap: {}", word(json!(schedule.overlap))));
    }
    lines
}

fn clock_line(clock: &Clock) -> String {
    let mut line = format!("{}: ", clock.name);
    match &clock.rule {
        Rule::IntervalMs(millis) => {
            let _ = write!(line, "every {}", Millis(*millis));
        }
        Rule::Cron {
            line: cron,
            time_zone,
        } => {
            let _ = write!(line, "`{cron}` in {time_zone}");
        }
        Rule::Dates(dates) => {
            let shown = dates.iter().take(DATES_SHOWN).map(ToString::to_string);
            line.push_str(&shown.collect::<Vec<_>>().join(", "));
            if dates.len() > DATES_SHOWN {
                let _ = write!(line, " and {} more", dates.len() - DATES_SHOWN);
            }
        }
    }
    let mut traits = Vec::new();
    traits.extend(clock.starts_at.map(|start| format!("from {start}")));
    traits.extend(clock.ends_at.map(|end| format!("until {end}")));
    let given = clock.parameters.iter();
    traits.extend(given.map(|(name, value)| format!("{name} = {value}")));
    if !traits.is_empty() {
        let _ = write!(line, "  [{}]", traits.join("; "));
    }
    line
}

fn filter_line(filter: &Filter) -> String {
    match filter {
        Filter::Weekdays { days, time_zone } => {
            format!("on {} in {time_zone}", day_words(days))
        }
        Filter::BetweenTimes {
            from,
            until,
            time_zone,
        } => format!("between {from} and {until} in {time_zone}"),
        Filter::SkipDates { dates, time_zone } => {
            let mut line = format!(
                "except on {}",
                dates[..dates.len().min(DATES_SHOWN)].join(", ")
            );
            if dates.len() > DATES_SHOWN {
                let _ = write!(line, " and {} more", dates.len() - DATES_SHOWN);
            }
            line + " in " + time_zone
        }
    }
}

/// Most dates that a line lists: a schedule may have thousands, and `--json` has them all.
const DATES_SHOWN: usize = 8;

/// Writes days of the week, three and more in a row as `mon-fri`.
fn day_words(days: &[u8]) -> String {
    const WORDS: [&str; 7] = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"];
    let is_in: Vec<bool> = (1..=7).map(|day| days.contains(&day)).collect();
    let mut words = Vec::new();
    let mut first = 0;
    while first < WORDS.len() {
        let length = is_in[first..].iter().take_while(|is_in| **is_in).count();
        match length {
            0 | 1 => words.extend(is_in[first].then(|| WORDS[first].to_owned())),
            2 => words.extend(WORDS[first..first + 2].iter().map(|&it| it.to_owned())),
            _ => words.push(format!("{}-{}", WORDS[first], WORDS[first + length - 1])),
        }
        first += length.max(1);
    }
    words.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_make_one_schema() {
        let parameter = |name: &str, default: Option<Value>| Parameter {
            name: name.to_owned(),
            description: "d".to_owned(),
            schema: json!({ "type": "string" }),
            default,
        };
        let schema = schema(&[parameter("a", None), parameter("b", Some("x".into()))]);
        assert_eq!(schema["required"], json!(["a"]));
        assert_eq!(
            schema["properties"]["b"],
            json!({"type": "string", "description": "d", "default": "x"})
        );
    }

    #[test]
    fn a_schedule_is_shown_whole() {
        let dates: Vec<String> = (1..=9).map(|day| format!("2026-12-0{day}")).collect();
        let instants: Vec<String> = dates
            .iter()
            .map(|date| format!("{date}T09:00:00Z"))
            .collect();
        let schedule: Schedule = serde_json::from_value(json!({
            "clocks": [
                {
                    "name": "nightly",
                    "rule": {"cron": {"line": "0 2 * * *", "time_zone": "Europe/Berlin"}},
                    "starts_at": "2026-12-01T00:00:00Z",
                    "ends_at": "2027-12-01T00:00:00Z",
                    "parameters": {"region": "eu", "count": 3},
                },
                {"name": "often", "rule": {"interval_ms": 5_400_000}},
                {"name": "dates", "rule": {"dates": instants}},
            ],
            "filters": [
                {"weekdays": {"days": [1, 2, 3, 5, 6], "time_zone": "UTC"}},
                {"between_times": {"from": "22:00", "until": "06:00", "time_zone": "Asia/Tokyo"}},
                {"skip_dates": {"dates": dates, "time_zone": "UTC"}},
            ],
            "catch_up": "all",
            "overlap": "cancel_old",
        }))
        .unwrap();
        let instants = instants[..8].join(", ");
        assert_eq!(
            schedule_lines(&schedule),
            [
                "nightly: `0 2 * * *` in Europe/Berlin  [from 2026-12-01T00:00:00Z; \
                 until 2027-12-01T00:00:00Z; count = 3; region = \"eu\"]",
                "often: every 90m",
                &format!("dates: {instants} and 1 more"),
                "on mon-wed, fri, sat in UTC",
                "between 22:00 and 06:00 in Asia/Tokyo",
                "except on 2026-12-01, 2026-12-02, 2026-12-03, 2026-12-04, 2026-12-05, \
                 2026-12-06, 2026-12-07, 2026-12-08 and 1 more in UTC",
                "catch up: all",
                "overlap: cancel-old",
            ]
        );
        assert_eq!(day_words(&[7, 1]), "mon, sun");
    }

    #[test]
    fn sizes_are_for_people() {
        assert_eq!(size(12), "12 bytes");
        assert_eq!(size(13_926), "13.6 KiB (13926 bytes)");
        assert_eq!(size(18 << 20), "18.0 MiB (18874368 bytes)");
    }
}
