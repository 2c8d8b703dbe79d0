//! The schedule of a flow: clocks, filters, and what is done about runs that were missed or overlap.
//!
//! A schedule makes runs that nobody is asked about, so each clock has to give a value to every parameter
//! without a default. Whether a value has the type of its parameter, the compiler says.

use super::moment::{date, instant, time, time_zone, weekdays};
use super::value::{ident, interval, name, text, word};
use super::{cron, once};
use crate::ast::{Options, Parameter};
use proc_macro2::Span;
use std::collections::HashSet;
use std::hash::Hash;
use syn::ext::IdentExt;
use syn::spanned::Spanned;
use syn::{Error, Expr, Result, Type};

/// `schedule` and what belongs to it.
pub(crate) struct Schedule {
    pub(crate) clocks: Vec<Clock>,
    pub(crate) filters: Vec<Filter>,
    /// The variant's name.
    pub(crate) catch_up: &'static str,
    /// The variant's name.
    pub(crate) overlap: &'static str,
}

/// One clock of a schedule.
pub(crate) struct Clock {
    pub(crate) name: String,
    pub(crate) rule: Rule,
    pub(crate) starts: Option<String>,
    pub(crate) ends: Option<String>,
    pub(crate) given: Vec<Given>,
}

/// What a clock ticks by.
pub(crate) enum Rule {
    Interval(u64),
    Cron(String, String),
    Dates(Vec<String>),
}

/// A value that a clock gives to a parameter.
pub(crate) struct Given {
    pub(crate) name: String,
    /// The type of the parameter, `Param<T>`.
    pub(crate) of: Type,
    pub(crate) value: Expr,
}

/// Which instants count.
pub(crate) enum Filter {
    Weekdays(Vec<u8>, String),
    Between(String, String, String),
    Except(Vec<String>, String),
}

/// As the host has it.
const CLOCKS_MAX: usize = 64;
/// As the host has it.
const FILTERS_MAX: usize = 16;
/// As the host has it.
const DATES_MAX: usize = 10_000;

/// Reads the schedule of a flow with these parameters, none where none is asked for.
pub(super) fn schedule(options: &Options, parameters: &[Parameter]) -> Result<Option<Schedule>> {
    let find = |name: &str| options.0.iter().find(|(option, _)| option == name);
    let Some((_, value)) = find("schedule") else {
        for name in ["filters", "catch_up", "overlap"] {
            if let Some((option, _)) = find(name) {
                return Err(Error::new(
                    option.span(),
                    format!("`{name}` means nothing without `schedule`"),
                ));
            }
        }
        return Ok(None);
    };
    let get = |name: &str| find(name).map(|(_, value)| value);
    Ok(Some(Schedule {
        clocks: clocks(value, parameters)?,
        filters: get("filters").map(filters).transpose()?.unwrap_or_default(),
        catch_up: match get("catch_up") {
            Some(value) => word(value, &[("last", "Last"), ("all", "All"), ("skip", "Skip")])?,
            None => "Last",
        },
        overlap: match get("overlap") {
            Some(value) => word(
                value,
                &[
                    ("allow", "Allow"),
                    ("skip", "Skip"),
                    ("queue", "Queue"),
                    ("cancel-old", "CancelOld"),
                ],
            )?,
            None => "Allow",
        },
    }))
}

fn clocks(value: &Expr, parameters: &[Parameter]) -> Result<Vec<Clock>> {
    let calls = several(value);
    if calls.is_empty() || calls.len() > CLOCKS_MAX {
        return Err(Error::new(
            value.span(),
            format!("a schedule has 1 to {CLOCKS_MAX} clocks"),
        ));
    }
    let mut clocks = Vec::new();
    let mut names: HashSet<String> = HashSet::new();
    for call in calls {
        let (named, clock) = clock(call, parameters)?;
        if let Some(place) = named {
            if !names.insert(clock.name.clone()) {
                return Err(Error::new(
                    place,
                    format!("another clock is called `{}`", clock.name),
                ));
            }
        }
        clocks.push((named.is_some(), clock));
    }
    // Those without a name are called by what they are, and counted where that is taken.
    for (is_named, clock) in &mut clocks {
        let kind = clock.name.clone();
        let mut nth = 1;
        while !*is_named && !names.insert(clock.name.clone()) {
            nth += 1;
            clock.name = format!("{kind}-{nth}");
        }
    }
    Ok(clocks.into_iter().map(|(_, clock)| clock).collect())
}

/// Reads a clock, and where it is given a name.
fn clock(value: &Expr, parameters: &[Parameter]) -> Result<(Option<Span>, Clock)> {
    let wrong = || {
        Error::new(
            value.span(),
            "a schedule is `cron(\"0 * * * *\", tz = \"UTC\")`, `interval(\"15m\")`, `dates(\"2026-12-01T09:00:00Z\")`, or a list of them",
        )
    };
    let Some((kind, arguments)) = call(value) else {
        return Err(wrong());
    };
    if !matches!(kind.as_str(), "cron" | "interval" | "dates") {
        return Err(wrong());
    }
    let (mut zone, mut called, mut starts, mut ends, mut params) = (None, None, None, None, None);
    let mut plain = Vec::new();
    for argument in arguments {
        match (argument, call(argument)) {
            (Expr::Assign(assign), _) => match ident(&assign.left).as_deref() {
                Some("tz") if kind == "cron" => once(&mut zone, assign, time_zone)?,
                Some("name") => once(&mut called, assign, |it| Ok((it.span(), name(it)?)))?,
                Some("starts") => once(&mut starts, assign, instant)?,
                Some("ends") => {
                    once(&mut ends, assign, |it| Ok((it.span(), instant(it)?)))?;
                }
                _ => {
                    let zone = if kind == "cron" { "`tz`, " } else { "" };
                    return Err(Error::new(
                        assign.left.span(),
                        format!("a clock knows {zone}`name`, `starts`, `ends` and `params(..)`"),
                    ));
                }
            },
            (_, Some((word, values))) if word == "params" => {
                if params.replace(given(values, parameters)?).is_some() {
                    return Err(Error::new(argument.span(), "this is said twice"));
                }
            }
            (other, _) => plain.push(other),
        }
    }
    let rule = match (kind.as_str(), plain.as_slice()) {
        ("interval", [every]) => Rule::Interval(interval(every)?),
        ("cron", [line]) => {
            let line = cron::line(&text(line)?).map_err(|why| Error::new(line.span(), why))?;
            Rule::Cron(line, zone.unwrap_or_else(utc))
        }
        ("dates", [_, ..]) if plain.len() <= DATES_MAX => Rule::Dates(dates(&plain)?),
        ("dates", [_, ..]) => {
            return Err(Error::new(
                value.span(),
                format!("at most {DATES_MAX} dates"),
            ));
        }
        _ => return Err(wrong()),
    };
    if let (Some((_, start)), Some((place, (_, end)))) = (&starts, &ends) {
        if end < start {
            return Err(Error::new(*place, "this clock ends before it starts"));
        }
    }
    let given = params.unwrap_or_default();
    let is_given = |parameter: &Parameter| {
        let name = parameter.name.unraw().to_string();
        parameter.default.is_some() || given.iter().any(|given| given.name == name)
    };
    if let Some(required) = parameters.iter().find(|parameter| !is_given(parameter)) {
        return Err(Error::new(
            value.span(),
            format!(
                "the parameter `{0}` has no default, and a scheduled run has nobody to ask: \
                 give it a value here, `params({0} = ..)`",
                required.name
            ),
        ));
    }
    let (named, called) = called.unzip();
    let clock = Clock {
        name: called.unwrap_or(kind),
        rule,
        starts: starts.map(|(text, _)| text),
        ends: ends.map(|(_, (text, _))| text),
        given,
    };
    Ok((named, clock))
}

fn dates(values: &[&Expr]) -> Result<Vec<String>> {
    let mut dates = Vec::new();
    let mut seen = HashSet::new();
    for value in values {
        let (text, moment) = instant(value)?;
        new(&mut seen, moment, value)?;
        dates.push(text);
    }
    Ok(dates)
}

/// `params(region = "eu", count = 3)`: what stands behind a name has the type of the parameter.
fn given<'a>(
    values: impl Iterator<Item = &'a Expr>,
    parameters: &[Parameter],
) -> Result<Vec<Given>> {
    let mut given: Vec<Given> = Vec::new();
    for value in values {
        let name = match value {
            Expr::Assign(assign) => match &*assign.left {
                Expr::Path(path) => path.path.get_ident().map(|name| (name, &assign.right)),
                _ => None,
            },
            _ => None,
        };
        let Some((name, value)) = name else {
            return Err(Error::new(
                value.span(),
                "the parameters of a clock are written `params(name = value)`",
            ));
        };
        let text = name.unraw().to_string();
        if given.iter().any(|given| given.name == text) {
            return Err(Error::new(name.span(), format!("`{name}` is given twice")));
        }
        let mut known = parameters.iter();
        let Some(parameter) = known.find(|it| it.name.unraw() == text.as_str()) else {
            let known: Vec<String> = parameters
                .iter()
                .map(|parameter| format!("`{}`", parameter.name))
                .collect();
            let known = match known.as_slice() {
                [] => "none".to_string(),
                known => known.join(", "),
            };
            return Err(Error::new(
                name.span(),
                format!("the flow has no parameter `{name}`; it has {known}"),
            ));
        };
        given.push(Given {
            name: text,
            of: parameter.of.clone(),
            value: (**value).clone(),
        });
    }
    Ok(given)
}

fn filters(value: &Expr) -> Result<Vec<Filter>> {
    let calls = several(value);
    if calls.is_empty() || calls.len() > FILTERS_MAX {
        return Err(Error::new(
            value.span(),
            format!("a schedule has at most {FILTERS_MAX} filters, and an empty list says nothing"),
        ));
    }
    calls.into_iter().map(filter).collect()
}

fn filter(value: &Expr) -> Result<Filter> {
    let wrong = || {
        Error::new(
            value.span(),
            "a filter is `weekdays(\"mon-fri\")`, `between(\"22:00\", \"06:00\")`, `except(\"2026-12-25\")`, each with `tz = \"..\"` where it is not UTC, or a list of them",
        )
    };
    let Some((kind, arguments)) = call(value) else {
        return Err(wrong());
    };
    let mut zone = None;
    let mut plain = Vec::new();
    for argument in arguments {
        match argument {
            Expr::Assign(assign) if ident(&assign.left).as_deref() == Some("tz") => {
                once(&mut zone, assign, time_zone)?;
            }
            Expr::Assign(assign) => {
                return Err(Error::new(assign.left.span(), "a filter knows only `tz`"));
            }
            other => plain.push(other),
        }
    }
    let zone = zone.unwrap_or_else(utc);
    match (kind.as_str(), plain.as_slice()) {
        ("weekdays", [_, ..]) => {
            let mut seen = HashSet::new();
            for value in plain {
                for day in weekdays(value)? {
                    new(&mut seen, day, value)?;
                }
            }
            let mut days: Vec<u8> = seen.into_iter().collect();
            days.sort_unstable();
            Ok(Filter::Weekdays(days, zone))
        }
        ("between", [from, until]) => {
            let (start, end) = (time(from)?, time(until)?);
            if start == end {
                return Err(Error::new(
                    until.span(),
                    "no time lies between a time and itself",
                ));
            }
            Ok(Filter::Between(start, end, zone))
        }
        ("except", [_, ..]) => {
            let mut seen = HashSet::new();
            let mut dates = Vec::new();
            for value in plain {
                let date = date(value)?;
                new(&mut seen, date.clone(), value)?;
                dates.push(date);
            }
            Ok(Filter::Except(dates, zone))
        }
        _ => Err(wrong()),
    }
}

/// The elements of a list, or the one that stands in its place.
fn several(value: &Expr) -> Vec<&Expr> {
    match value {
        Expr::Array(array) => array.elems.iter().collect(),
        one => vec![one],
    }
}

/// A word with arguments.
fn call(value: &Expr) -> Option<(String, impl Iterator<Item = &Expr>)> {
    match value {
        Expr::Call(call) => Some((ident(&call.func)?, call.args.iter())),
        _ => None,
    }
}

/// Refuses what was there before.
fn new<T: Eq + Hash>(seen: &mut HashSet<T>, it: T, value: &Expr) -> Result<()> {
    match seen.insert(it) {
        true => Ok(()),
        false => Err(Error::new(value.span(), "this is said twice")),
    }
}

fn utc() -> String {
    "UTC".to_string()
}
