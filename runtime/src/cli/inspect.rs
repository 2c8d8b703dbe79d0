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
use crate::model::schedule::{Rule, Schedule};
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
        say("schedule", &[schedule_line(schedule)]);
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

fn schedule_line(schedule: &Schedule) -> String {
    let clocks = schedule.clocks.iter().map(|clock| match &clock.rule {
        Rule::IntervalMs(millis) => format!("every {}", Millis(*millis)),
        Rule::Cron { line, time_zone } => format!("cron `{line}` in {time_zone}"),
        Rule::Dates(dates) => format!("{} dates", dates.len()),
    });
    clocks.collect::<Vec<_>>().join("; ")
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
    fn sizes_are_for_people() {
        assert_eq!(size(12), "12 bytes");
        assert_eq!(size(13_926), "13.6 KiB (13926 bytes)");
        assert_eq!(size(18 << 20), "18.0 MiB (18874368 bytes)");
    }
}
