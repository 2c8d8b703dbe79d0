//! Every setting by its dotted name, and how its value is read from a file or a variable.

use std::collections::BTreeSet;

use serde::Deserialize as _;
use toml::de::{DeTable, DeValue};
use toml::{Table, Value};

use super::{Settings, line_of, one_line};

/// How the text of a variable becomes a setting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Text,
    Number,
    List,
}

/// Every setting by its dotted name. A test compares the list with [`Settings`].
pub(super) const SETTINGS: [(&str, Kind); 33] = [
    ("server.url", Kind::Text),
    ("server.token", Kind::Text),
    ("server.listen", Kind::Text),
    ("server.lease", Kind::Text),
    ("agent.name", Kind::Text),
    ("agent.labels", Kind::List),
    ("agent.roots", Kind::List),
    ("agent.projects", Kind::List),
    ("agent.limit", Kind::Number),
    ("agent.parallel", Kind::Number),
    ("agent.allow.net", Kind::List),
    ("agent.allow.dirs", Kind::List),
    ("agent.allow.env", Kind::List),
    ("agent.allow.secrets", Kind::List),
    ("agent.max.memory", Kind::Text),
    ("agent.max.cpu", Kind::Text),
    ("agent.max.wall", Kind::Text),
    ("agent.max.output", Kind::Text),
    ("agent.max.artifact", Kind::Text),
    ("agent.cache.artifacts", Kind::Text),
    ("agent.cache.code", Kind::Text),
    ("flows.defaults.storage.root", Kind::Text),
    ("results.root", Kind::Text),
    ("results.keep", Kind::Text),
    ("runs.keep", Kind::Text),
    ("storage.s3.endpoint", Kind::Text),
    ("storage.s3.region", Kind::Text),
    ("storage.gcs.endpoint", Kind::Text),
    ("storage.azure.endpoint", Kind::Text),
    ("storage.azure.account", Kind::Text),
    ("storage.http.tokens", Kind::List),
    ("build.rustc", Kind::Text),
    ("build.path", Kind::Text),
];

/// What is wrong in a file, and where.
pub(super) struct Mistake {
    /// The dotted name of the key.
    pub(super) path: String,
    /// What is wrong with it.
    pub(super) why: String,
}

/// Reads the value of a variable.
///
/// # Errors
///
/// Says what does not fit.
pub(super) fn read(name: &str, kind: Kind, text: &str) -> Result<Value, String> {
    let value = match kind {
        Kind::Text => Value::String(text.to_owned()),
        Kind::Number => text.parse().map_or(Value::Boolean(false), Value::Integer),
        Kind::List => {
            let words = text.split(',').map(str::trim);
            let words = words.filter(|word| !word.is_empty());
            Value::Array(words.map(|word| Value::String(word.to_owned())).collect())
        }
    };
    fits(name, kind, &value).map(|()| value)
}

/// Checks every key and every value of a file.
///
/// # Errors
///
/// Names the first one that is wrong.
pub(super) fn check(table: &Table) -> Result<(), Mistake> {
    check_section("", table)
}

fn check_section(section: &str, table: &Table) -> Result<(), Mistake> {
    for (key, value) in table {
        let path = match section {
            "" => key.clone(),
            section => format!("{section}.{key}"),
        };
        let setting = SETTINGS.iter().find(|(name, _)| *name == path);
        let known = keys_of(section);
        let why = match (setting, value) {
            (Some((name, kind)), value) => match fits(name, *kind, value) {
                Ok(()) => continue,
                Err(why) => format!("`{path}` cannot be read: {why}"),
            },
            (None, Value::Table(inner)) if known.contains(&key.as_str()) => {
                check_section(&path, inner)?;
                continue;
            }
            (None, _) if known.contains(&key.as_str()) => {
                format!("`{path}` is a section and has no value: [{path}]")
            }
            (None, _) => unknown(section, key, &known),
        };
        return Err(Mistake { path, why });
    }
    Ok(())
}

/// Tries a value by itself, so that what is wrong with it is said of it.
fn fits(name: &str, kind: Kind, value: &Value) -> Result<(), String> {
    let (is_of_kind, expected) = match kind {
        Kind::Text => (value.is_str(), "a text in quotes"),
        Kind::Number => {
            let number = value.as_integer();
            let is_number = number.is_some_and(|number| u32::try_from(number).is_ok());
            (is_number, "a whole number, such as 4")
        }
        Kind::List => {
            let list = value.as_array();
            let is_list = list.is_some_and(|list| list.iter().all(Value::is_str));
            (is_list, "a list of texts, such as [\"a\", \"b\"]")
        }
    };
    if !is_of_kind {
        return Err(format!("expected {expected}"));
    }
    let mut alone = Table::new();
    insert(&mut alone, name, value.clone());
    match Settings::deserialize(alone) {
        Ok(_) => Ok(()),
        Err(error) => Err(one_line(error.message())),
    }
}

/// Lists what may stand in a section, in our order.
fn keys_of(section: &str) -> Vec<&'static str> {
    let mut seen = BTreeSet::new();
    let below = |name: &&'static str| match section {
        "" => Some(*name),
        section => name.strip_prefix(section)?.strip_prefix('.'),
    };
    SETTINGS
        .iter()
        .filter_map(|(name, _)| below(name))
        .map(|rest| rest.split('.').next().unwrap_or(rest))
        .filter(|key| seen.insert(*key))
        .collect()
}

fn unknown(section: &str, key: &str, known: &[&str]) -> String {
    let nearest = known.iter().min_by_key(|other| distance(key, other));
    // Half of the letters may be wrong; with more it is another word.
    let nearest = nearest.filter(|other| distance(key, other) * 2 <= key.len().max(other.len()));
    let what = match section {
        "" => format!("there is no section `{key}`"),
        section => format!("[{section}] has no key `{key}`"),
    };
    match nearest {
        Some(nearest) => format!("{what}; did you mean `{nearest}`?"),
        None => format!("{what}; it has `{}`", known.join("`, `")),
    }
}

/// Counts the letters that were left out, added or mistaken; two that changed places are two.
fn distance(one: &str, other: &str) -> usize {
    let other: Vec<char> = other.chars().collect();
    let mut row: Vec<usize> = (0..=other.len()).collect();
    for (above, letter) in one.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], above + 1);
        for (nth, known) in other.iter().enumerate() {
            let replaced = diagonal + usize::from(letter != *known);
            diagonal = row[nth + 1];
            row[nth + 1] = replaced.min(diagonal + 1).min(row[nth] + 1);
        }
    }
    row[other.len()]
}

/// Returns the line, from 1, in which a key of a file stands.
pub(super) fn line_of_key(text: &str, path: &str) -> usize {
    fn span_of(table: &DeTable<'_>, path: &str) -> Option<std::ops::Range<usize>> {
        table.iter().find_map(|(key, value)| {
            let rest = path.strip_prefix(key.get_ref().as_ref())?;
            match (rest.strip_prefix('.'), value.get_ref()) {
                (Some(rest), DeValue::Table(inner)) => span_of(inner, rest),
                _ => rest.is_empty().then(|| key.span()),
            }
        })
    }
    let span = DeTable::parse(text)
        .ok()
        .and_then(|table| span_of(table.get_ref(), path));
    line_of(text, span)
}

/// Finds a setting by its dotted name.
pub(super) fn find<'a>(table: &'a Table, dotted: &str) -> Option<&'a Value> {
    let (section, rest) = dotted
        .split_once('.')
        .map_or((dotted, None), |(s, r)| (s, Some(r)));
    let value = table.get(section)?;
    match rest {
        None => Some(value),
        Some(rest) => find(value.as_table()?, rest),
    }
}

/// Sets a setting by its dotted name.
pub(super) fn insert(table: &mut Table, dotted: &str, value: Value) {
    let Some((section, rest)) = dotted.split_once('.') else {
        table.insert(dotted.to_owned(), value);
        return;
    };
    let empty = || Value::Table(Table::new());
    if let Value::Table(inner) = table.entry(section).or_insert_with(empty) {
        insert(inner, rest, value);
    }
}
