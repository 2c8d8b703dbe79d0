//! Whether a value fits a schema.
//!
//! What lies within the subset is decided in `parameter`; here every keyword of it is carried out, with an
//! account of what was compared, since values and schemas come from strangers.

use std::cell::Cell;
use std::cmp::Ordering;

use serde_json::Value;

use super::{SCHEMA_DEPTH_MAX, held_by_option, referred};

/// Most comparisons of one check, about a tenth of a second.
const STEPS_MAX: usize = 1_000_000;

/// A checked schema at work.
pub(super) struct Schema<'a> {
    root: &'a Value,
    /// Comparisons made so far: alternatives that refer to themselves would double with each level.
    steps: Cell<usize>,
}

impl<'a> Schema<'a> {
    /// Takes a schema that was found to lie within the subset.
    pub(super) fn new(root: &'a Value) -> Self {
        let steps = Cell::new(0);
        Self { root, steps }
    }

    /// Checks a value; says where in it and why it does not fit.
    pub(super) fn check(&self, value: &Value) -> Result<(), String> {
        self.fit(self.root, value, "", 0)
    }

    /// `at` is a JSON pointer into the value; `depth` counts schemas, so that references in a
    /// circle end.
    fn fit(&self, schema: &'a Value, value: &Value, at: &str, depth: usize) -> Result<(), String> {
        let place = || match at {
            "" => String::new(),
            at => format!(" at `{at}`"),
        };
        self.count(cost(schema, value));
        if depth > 4 * SCHEMA_DEPTH_MAX || self.steps.get() > STEPS_MAX {
            return Err(format!(
                "it is too deep or too large to be checked{}",
                place()
            ));
        }
        let Some(rules) = schema.as_object() else {
            return match schema {
                Value::Bool(false) => Err(format!("nothing is allowed{}", place())),
                _ => Ok(()),
            };
        };
        if value.is_null() && rules.get("nullable") == Some(&Value::Bool(true)) {
            return Ok(());
        }
        if let Some(target) = rules.get("$ref").and_then(Value::as_str) {
            let target = referred(self.root, target)
                .ok_or_else(|| "its schema refers to nothing".to_owned())?;
            self.fit(target, value, at, depth + 1)?;
        }
        fit_type(rules, value).map_err(|why| why + &place())?;
        fit_bounds(rules, value).map_err(|why| why + &place())?;
        for (key, exactly_one) in [("anyOf", false), ("oneOf", true)] {
            let Some(choices) = rules.get(key).and_then(Value::as_array) else {
                continue;
            };
            let fits = |choice: &&Value| self.fit(choice, value, at, depth + 1).is_ok();
            let count = choices.iter().filter(fits).count();
            if let (0, Some(held)) = (count, held_by_option(choices)) {
                // Says what is wrong with the value that was given, not that it is no `null` either.
                return self.fit(held, value, at, depth + 1);
            }
            if count == 0 || (exactly_one && count > 1) {
                return Err(format!(
                    "it fits {count} of {} alternatives{}",
                    choices.len(),
                    place()
                ));
            }
        }
        match value {
            Value::Array(elements) => self.fit_elements(rules, elements, at, depth),
            Value::Object(fields) => self.fit_fields(rules, fields, at, depth),
            _ => Ok(()),
        }
    }

    fn count(&self, steps: usize) {
        self.steps.set(self.steps.get().saturating_add(steps));
    }

    fn fit_elements(
        &self,
        rules: &'a Fields,
        elements: &[Value],
        at: &str,
        depth: usize,
    ) -> Result<(), String> {
        let Some(items) = rules.get("items") else {
            return Ok(());
        };
        for (nth, element) in elements.iter().enumerate() {
            self.fit(items, element, &format!("{at}/{nth}"), depth + 1)?;
        }
        Ok(())
    }

    fn fit_fields(
        &self,
        rules: &'a Fields,
        fields: &Fields,
        at: &str,
        depth: usize,
    ) -> Result<(), String> {
        let required = rules.get("required").and_then(Value::as_array);
        for name in required.into_iter().flatten().filter_map(Value::as_str) {
            if !fields.contains_key(name) {
                return Err(format!("the field `{name}` is missing at `{at}/`"));
            }
        }
        let properties = rules.get("properties").and_then(Value::as_object);
        for (name, value) in fields {
            let below = format!("{at}/{}", name.replace('~', "~0").replace('/', "~1"));
            let own = properties.and_then(|properties| properties.get(name));
            match own.or_else(|| rules.get("additionalProperties")) {
                Some(Value::Bool(false)) if own.is_none() => {
                    return Err(format!("a field that is not known stands at `{below}`"));
                }
                Some(rule) => self.fit(rule, value, &below, depth + 1)?,
                None => {}
            }
        }
        Ok(())
    }
}

type Fields = serde_json::Map<String, Value>;

/// Counts the comparisons of one schema with one value, without those of what lies inside.
fn cost(schema: &Value, value: &Value) -> usize {
    let list = |key: &str| schema.get(key).and_then(Value::as_array);
    let constants = list("enum")
        .into_iter()
        .flatten()
        .chain(schema.get("const"));
    let own = match value {
        Value::String(_) => size(value),
        Value::Object(fields) => fields.len() + list("required").map_or(0, Vec::len),
        _ => 0,
    };
    1 + own + constants.map(size).sum::<usize>()
}

/// Counts what is looked at when a value is compared, in steps.
fn size(value: &Value) -> usize {
    /// Text is compared so many bytes at a time, or more.
    const STEP_BYTES: usize = 64;
    match value {
        Value::String(text) => 1 + text.len() / STEP_BYTES,
        Value::Array(list) => 1 + list.iter().map(size).sum::<usize>(),
        Value::Object(fields) => {
            let name = |name: &str| name.len() / STEP_BYTES;
            1 + fields
                .iter()
                .map(|(key, value)| name(key) + size(value))
                .sum::<usize>()
        }
        _ => 1,
    }
}

fn fit_type(rules: &Fields, value: &Value) -> Result<(), String> {
    let Some(wanted) = rules.get("type") else {
        return Ok(());
    };
    let is = |name: &str| match name {
        // Written as one: `5.0` fits no integer type of a guest's language.
        "integer" => value.is_i64() || value.is_u64(),
        "number" => value.is_number(),
        name => name == type_of(value),
    };
    let names: Vec<_> = match wanted {
        Value::Array(names) => names.iter().filter_map(Value::as_str).collect(),
        one => one.as_str().into_iter().collect(),
    };
    if names.iter().any(|name| is(name)) {
        return Ok(());
    }
    let got = match value {
        Value::Number(number) => number.to_string(),
        other => type_of(other).to_owned(),
    };
    Err(format!("expected {}, got {got}", names.join(" or ")))
}

const fn type_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

fn fit_bounds(rules: &Fields, value: &Value) -> Result<(), String> {
    let same = |own: &Value| own == value;
    if let Some(list) = rules.get("enum").and_then(Value::as_array)
        && !list.iter().any(same)
    {
        let shown: Vec<_> = list.iter().take(8).map(ToString::to_string).collect();
        return Err(format!("expected one of {}", shown.join(", ")));
    }
    if let Some(own) = rules.get("const").filter(|own| !same(own)) {
        return Err(format!("expected {own}"));
    }
    let size = match value {
        Value::String(text) => Some((text.chars().count(), "Length", "characters")),
        Value::Array(list) => Some((list.len(), "Items", "elements")),
        _ => None,
    };
    if let Some((size, suffix, unit)) = size {
        let bound = |prefix: &str| {
            rules
                .get(&format!("{prefix}{suffix}"))
                .and_then(Value::as_u64)
        };
        if let Some(least) = bound("min").filter(|least| (size as u64) < *least) {
            return Err(format!("expected at least {least} {unit}, got {size}"));
        }
        if let Some(most) = bound("max").filter(|most| (size as u64) > *most) {
            return Err(format!("expected at most {most} {unit}, got {size}"));
        }
    }
    type Holds = fn(Ordering) -> bool;
    let bounds = [
        ("minimum", "at least", Ordering::is_ge as Holds),
        ("maximum", "at most", Ordering::is_le),
        ("exclusiveMinimum", "more than", Ordering::is_gt),
        ("exclusiveMaximum", "less than", Ordering::is_lt),
    ];
    for (key, words, holds) in bounds {
        if let Some(bound) = rules.get(key)
            && !order(value, bound).is_none_or(holds)
        {
            return Err(format!("expected {words} {bound}, got {value}"));
        }
    }
    Ok(())
}

/// Compares two numbers, whole ones exactly: `f64` cannot tell the largest `u64` from the next number.
fn order(value: &Value, bound: &Value) -> Option<Ordering> {
    let whole = |value: &Value| {
        let unsigned = value.as_u64().map(i128::from);
        unsigned.or_else(|| value.as_i64().map(i128::from))
    };
    match (whole(value), whole(bound)) {
        (Some(value), Some(bound)) => Some(value.cmp(&bound)),
        _ => value.as_f64()?.partial_cmp(&bound.as_f64()?),
    }
}
