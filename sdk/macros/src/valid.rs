//! Refuses what cannot be meant: unknown and repeated options, and values that no host would take.
//!
//! What is checked here is shape only; whether a time zone exists, the server knows.

use crate::ast::{self, Options};
use proc_macro2::Ident;
use std::cmp::Reverse;
use syn::ext::IdentExt;
use syn::spanned::Spanned;
use syn::{Error, Expr, Lit, Result};

mod cron;
mod moment;
mod schedule;
mod value;

pub(crate) use schedule::{Clock, Filter, Rule, Schedule};
use value::{
    boolean, dir, duration, filled, ident, list, name, net, number, percent, secret, size,
    some_duration, tags, text, variable, word,
};

/// A task and what its options say.
pub(crate) struct Task {
    pub(crate) task: ast::Task,
    pub(crate) name: String,
    pub(crate) retries: Option<Retries>,
    pub(crate) timeout_ms: Option<u64>,
    pub(crate) trigger: Trigger,
    pub(crate) skip_on_upstream_skip: bool,
    pub(crate) tags: Vec<String>,
    pub(crate) cache: Option<Cache>,
    pub(crate) net: Vec<String>,
    pub(crate) dirs: Vec<String>,
    pub(crate) env: Vec<String>,
    pub(crate) secrets: Vec<String>,
    pub(crate) memory_bytes: Option<u64>,
    pub(crate) cpu_ms: Option<u64>,
    pub(crate) output_bytes: Option<u64>,
    pub(crate) parallel: Option<u32>,
    pub(crate) is_lost_for_good: bool,
}

/// `retries` and what belongs to it.
pub(crate) struct Retries {
    pub(crate) count: u32,
    pub(crate) delay_ms: u64,
    /// The variant's name.
    pub(crate) backoff: &'static str,
    pub(crate) delay_max_ms: Option<u64>,
    pub(crate) jitter_percent: u32,
}

/// `cache_for` and `cache_key`.
#[derive(Default)]
pub(crate) struct Cache {
    pub(crate) valid_ms: Option<u64>,
    pub(crate) key: Option<String>,
}

/// `trigger`.
pub(crate) enum Trigger {
    /// The variant's name.
    Plain(&'static str),
    /// The variant's name, and the bounds.
    Some(&'static str, Option<Amount>, Option<Amount>),
}

/// How many upstream tasks.
pub(crate) enum Amount {
    Count(u32),
    Percent(u32),
}

/// A flow and what its options say.
pub(crate) struct Flow {
    pub(crate) flow: ast::Flow,
    pub(crate) name: String,
    pub(crate) schedule: Option<Schedule>,
}

const TASK_OPTIONS: &[&str] = &[
    "name",
    "retries",
    "retry_delay",
    "backoff",
    "retry_delay_max",
    "jitter",
    "timeout",
    "trigger",
    "skip_on_upstream_skip",
    "tags",
    "cache_for",
    "cache_key",
    "net",
    "dir",
    "env",
    "secrets",
    "memory",
    "cpu",
    "output",
    "parallel",
    "on_lost",
];
const FLOW_OPTIONS: &[&str] = &["name", "schedule", "filters", "catch_up", "overlap"];
/// The contract's bound on retries.
const RETRIES_MAX: u32 = 100;

/// Checks a task.
pub(crate) fn task(task: ast::Task, options: Options) -> Result<Task> {
    known(&options, "task", TASK_OPTIONS)?;
    let mut checked = Task {
        name: task.name.unraw().to_string(),
        task,
        retries: None,
        timeout_ms: None,
        trigger: Trigger::Plain("AllSuccessful"),
        skip_on_upstream_skip: true,
        tags: Vec::new(),
        cache: None,
        net: Vec::new(),
        dirs: Vec::new(),
        env: Vec::new(),
        secrets: Vec::new(),
        memory_bytes: None,
        cpu_ms: None,
        output_bytes: None,
        parallel: None,
        is_lost_for_good: false,
    };
    checked.retries = retries(&options)?;
    for (option, value) in &options.0 {
        checked.set(&option.to_string(), value)?;
    }
    Ok(checked)
}

impl Task {
    fn set(&mut self, option: &str, value: &Expr) -> Result<()> {
        match option {
            "name" => self.name = name(value)?,
            "timeout" => self.timeout_ms = Some(some_duration(value)?),
            "trigger" => self.trigger = trigger(value)?,
            "skip_on_upstream_skip" => self.skip_on_upstream_skip = boolean(value)?,
            "tags" => self.tags = tags(value)?,
            "cache_for" => {
                self.cache.get_or_insert_default().valid_ms = if text(value)? == "forever" {
                    None
                } else {
                    Some(some_duration(value)?)
                };
            }
            "cache_key" => self.cache.get_or_insert_default().key = Some(filled(value)?),
            "net" => self.net = list(value, net)?,
            "dir" => self.dirs = list(value, dir)?,
            "env" => self.env = list(value, variable)?,
            "secrets" => self.secrets = list(value, secret)?,
            "memory" => self.memory_bytes = Some(size(value)?),
            "cpu" => self.cpu_ms = Some(some_duration(value)?),
            "output" => self.output_bytes = Some(size(value)?),
            "parallel" => {
                self.parallel = match number(value)? {
                    0 => {
                        return Err(Error::new(
                            value.span(),
                            "at least one task run has to be allowed at a time",
                        ));
                    }
                    count => Some(count),
                }
            }
            "on_lost" => {
                self.is_lost_for_good =
                    word(value, &[("retry", "retry"), ("fail", "fail")])? == "fail";
            }
            // `retries` and what belongs to it were read together.
            _ => {}
        }
        Ok(())
    }
}

fn retries(options: &Options) -> Result<Option<Retries>> {
    let find = |name: &str| options.0.iter().find(|(option, _)| option == name);
    let Some((_, value)) = find("retries") else {
        for name in ["retry_delay", "backoff", "retry_delay_max", "jitter"] {
            if let Some((option, _)) = find(name) {
                return Err(Error::new(
                    option.span(),
                    format!("`{name}` means nothing without `retries`"),
                ));
            }
        }
        return Ok(None);
    };
    let count = number(value)?;
    if count > RETRIES_MAX {
        return Err(Error::new(
            value.span(),
            format!("at most {RETRIES_MAX} retries"),
        ));
    }
    let get = |name: &str| find(name).map(|(_, value)| value);
    if get("retry_delay").is_none() {
        for name in ["backoff", "retry_delay_max", "jitter"] {
            if let Some((option, _)) = find(name) {
                return Err(Error::new(
                    option.span(),
                    format!("`{name}` means nothing without `retry_delay`"),
                ));
            }
        }
    }
    Ok(Some(Retries {
        count,
        delay_ms: get("retry_delay").map(duration).transpose()?.unwrap_or(0),
        backoff: match get("backoff") {
            Some(value) => word(
                value,
                &[
                    ("constant", "Constant"),
                    ("linear", "Linear"),
                    ("exponential", "Exponential"),
                ],
            )?,
            None => "Constant",
        },
        delay_max_ms: get("retry_delay_max").map(duration).transpose()?,
        jitter_percent: get("jitter").map(percent).transpose()?.unwrap_or(0),
    }))
}

/// Checks a flow.
pub(crate) fn flow(flow: ast::Flow, options: Options) -> Result<Flow> {
    known(&options, "flow", FLOW_OPTIONS)?;
    let mut checked = Flow {
        name: flow.function.sig.ident.unraw().to_string(),
        schedule: schedule::schedule(&options, &flow.parameters)?,
        flow,
    };
    if let Some((_, value)) = options.0.iter().find(|(option, _)| option == "name") {
        checked.name = name(value)?;
    }
    Ok(checked)
}

/// Reads an option of a clock or a trigger that may stand there once.
fn once<T>(
    into: &mut Option<T>,
    assign: &syn::ExprAssign,
    read: impl Fn(&Expr) -> Result<T>,
) -> Result<()> {
    match into.replace(read(&assign.right)?) {
        None => Ok(()),
        Some(_) => Err(Error::new(assign.left.span(), "this is said twice")),
    }
}

/// Refuses unknown and repeated options.
fn known(options: &Options, kind: &str, names: &[&str]) -> Result<()> {
    let mut seen: Vec<&Ident> = Vec::new();
    for (option, _) in &options.0 {
        let name = option.to_string();
        if !names.contains(&name.as_str()) {
            let close = names
                .iter()
                .map(|known| (distance(&name, known), Reverse(shared(&name, known)), known))
                .min()
                .filter(|(far, ..)| *far <= 3);
            let hint = match close {
                Some((.., close)) => format!("did you mean `{close}`?"),
                None => format!("it knows {}", names.join(", ")),
            };
            return Err(Error::new(
                option.span(),
                format!("a {kind} has no option `{name}`; {hint}"),
            ));
        }
        if seen.contains(&option) {
            return Err(Error::new(
                option.span(),
                format!("`{name}` is given twice"),
            ));
        }
        seen.push(option);
    }
    Ok(())
}

/// How many letters are the same at the beginning.
fn shared(a: &str, b: &str) -> usize {
    a.chars().zip(b.chars()).take_while(|(a, b)| a == b).count()
}

/// How many letters differ.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut before = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let changed = before + usize::from(x != *y);
            before = row[j + 1];
            row[j + 1] = changed.min(row[j] + 1).min(before + 1);
        }
    }
    row[b.len()]
}

fn trigger(value: &Expr) -> Result<Trigger> {
    const PLAIN: &[(&str, &str)] = &[
        ("all_successful", "AllSuccessful"),
        ("all_failed", "AllFailed"),
        ("all_finished", "AllFinished"),
        ("any_successful", "AnySuccessful"),
        ("any_failed", "AnyFailed"),
        ("not_all_skipped", "NotAllSkipped"),
        ("manual_only", "ManualOnly"),
    ];
    let wrong = || {
        let names: Vec<&str> = PLAIN.iter().map(|(name, _)| *name).collect();
        Error::new(
            value.span(),
            format!(
                "a trigger is one of {}, some_successful(at_least = 2, at_most = \"50%\"), some_failed(..)",
                names.join(", ")
            ),
        )
    };
    if let Some(name) = ident(value) {
        let found = PLAIN.iter().find(|(known, _)| *known == name);
        return found
            .map(|(_, variant)| Trigger::Plain(variant))
            .ok_or_else(wrong);
    }
    let Expr::Call(call) = value else {
        return Err(wrong());
    };
    let variant = match ident(&call.func).as_deref() {
        Some("some_successful") => "SomeSuccessful",
        Some("some_failed") => "SomeFailed",
        _ => return Err(wrong()),
    };
    let (mut least, mut most) = (None, None);
    for argument in &call.args {
        let Expr::Assign(bound) = argument else {
            return Err(wrong());
        };
        match ident(&bound.left).as_deref() {
            Some("at_least") => once(&mut least, bound, amount)?,
            Some("at_most") => once(&mut most, bound, amount)?,
            _ => {
                return Err(Error::new(
                    bound.left.span(),
                    "the bounds are `at_least` and `at_most`",
                ));
            }
        }
    }
    if least.is_none() && most.is_none() {
        return Err(Error::new(
            value.span(),
            "how many? `at_least`, `at_most`, or both",
        ));
    }
    Ok(Trigger::Some(variant, least, most))
}

fn amount(value: &Expr) -> Result<Amount> {
    match value {
        Expr::Lit(lit) if matches!(lit.lit, Lit::Str(_)) => percent(value).map(Amount::Percent),
        _ => number(value).map(Amount::Count),
    }
}
