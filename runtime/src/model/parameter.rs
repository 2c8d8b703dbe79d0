//! Parameters: what is given when a run is created, and the schemas it is checked by.
//!
//! Schemas are a closed subset of JSON Schema: a keyword that is not in `KEYWORDS` or `NOTES` is
//! refused where the flow is described, so that nobody believes in a rule that nobody checks.

mod fit;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use fit::Schema;

/// Most bytes of one schema.
const SCHEMA_BYTES_MAX: usize = 64 * 1024;
/// How deep a schema may nest, references included.
const SCHEMA_DEPTH_MAX: usize = 32;
/// Keywords that are checked.
const KEYWORDS: [&str; 20] = [
    "$ref",
    "$defs",
    "type",
    "enum",
    "const",
    "anyOf",
    "oneOf",
    "items",
    "minItems",
    "maxItems",
    "properties",
    "required",
    "additionalProperties",
    "minimum",
    "maximum",
    "exclusiveMinimum",
    "exclusiveMaximum",
    "minLength",
    "maxLength",
    "nullable",
];
/// Keywords that say something to people only.
const NOTES: [&str; 7] = [
    "$schema",
    "$comment",
    "title",
    "description",
    "default",
    "examples",
    "format",
];
/// The types there are.
const TYPES: [&str; 7] = [
    "string", "integer", "number", "boolean", "array", "object", "null",
];

/// A value that a flow takes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Parameter {
    /// Unique in the flow.
    pub name: String,
    /// For a human; may be empty.
    #[serde(default)]
    pub description: String,
    /// A JSON schema of the closed subset.
    pub schema: Value,
    /// Taken where none is given; a parameter without one is required. `null` is a default too.
    #[serde(
        default,
        deserialize_with = "some",
        skip_serializing_if = "Option::is_none"
    )]
    pub default: Option<Value>,
}

/// Reads `null` as a default of `null` and not as none.
fn some<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<Value>, D::Error> {
    Value::deserialize(deserializer).map(Some)
}

/// Parameters by name.
pub type Bound = BTreeMap<String, Value>;

/// Says what is wrong with the parameters that were given.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadParameters {
    /// A required one is absent.
    #[error("the parameter `{0}` is required and was not given")]
    Missing(String),
    /// The flow does not take it.
    #[error("the flow takes no parameter `{name}`; it takes {known}")]
    Unknown {
        /// What was given.
        name: String,
        /// What would be taken.
        known: String,
    },
    /// It does not fit its schema.
    #[error("the parameter `{name}` does not fit: {why}")]
    Mistyped {
        /// Which one.
        name: String,
        /// Where and why.
        why: String,
    },
}

impl BadParameters {
    /// Returns how the parameter is written on a command line, where that is the matter.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        let example = match self {
            Self::Missing(name) => return Some(format!("--param {name}=VALUE")),
            // What does not fit further in stands in a value that was read as one.
            Self::Mistyped { why, .. } if why.contains(" at `/") => return None,
            Self::Mistyped { why, .. } if why.starts_with("expected array") => "[1,2]",
            Self::Mistyped { why, .. } if why.starts_with("expected object") => r#"{"key":1}"#,
            Self::Mistyped { .. } | Self::Unknown { .. } => return None,
        };
        let Self::Mistyped { name, .. } = self else {
            return None;
        };
        Some(format!("--param '{name}={example}'"))
    }
}

impl Parameter {
    /// Checks the schema, and that the default fits it.
    ///
    /// # Errors
    ///
    /// Says what is wrong and where in the schema.
    pub fn check(&self) -> Result<(), String> {
        let size = self.schema.to_string().len();
        if size > SCHEMA_BYTES_MAX {
            return Err(format!(
                "its schema has {size} bytes, more than the limit of {SCHEMA_BYTES_MAX}"
            ));
        }
        check_schema(&self.schema, &self.schema, "#", 0)?;
        let Some(default) = &self.default else {
            return Ok(());
        };
        self.fit(default)
            .map_err(|why| format!("its default does not fit its schema: {why}"))
    }

    /// Checks a value against the schema.
    ///
    /// # Errors
    ///
    /// Says where in the value and why.
    pub fn fit(&self, value: &Value) -> Result<(), String> {
        Schema::new(&self.schema).check(value)
    }

    /// Reads what somebody typed as a value: JSON, or plain text where the schema wants a string.
    ///
    /// `7` is a number for an integer parameter and the text `7` for a string parameter.
    #[must_use]
    pub fn read_argument(&self, text: &str) -> Value {
        let plain = || Value::String(text.to_owned());
        match serde_json::from_str::<Value>(text) {
            Ok(value) if self.fit(&value).is_ok() => value,
            Ok(_) if self.fit(&plain()).is_ok() => plain(),
            Ok(value) => value,
            Err(_) => plain(),
        }
    }
}

/// Fills in defaults and checks what was given against the parameters of a flow.
///
/// # Errors
///
/// Names the first parameter that is unknown, missing or does not fit.
pub fn bind(parameters: &[Parameter], given: &Bound) -> Result<Bound, BadParameters> {
    let find = |name: &str| parameters.iter().find(|own| own.name == name);
    if let Some(name) = given.keys().find(|name| find(name).is_none()) {
        let known: Vec<_> = parameters
            .iter()
            .map(|own| format!("`{}`", own.name))
            .collect();
        return Err(BadParameters::Unknown {
            name: name.escape_default().take(128).collect(),
            known: match known.is_empty() {
                true => "none".to_owned(),
                false => known.join(", "),
            },
        });
    }
    let mut bound = Bound::new();
    for parameter in parameters {
        let name = &parameter.name;
        let value = match (given.get(name), &parameter.default) {
            (Some(value), _) => value,
            (None, Some(default)) => default,
            (None, None) => return Err(BadParameters::Missing(name.clone())),
        };
        parameter
            .fit(value)
            .map_err(|why| BadParameters::Mistyped {
                name: name.clone(),
                why,
            })?;
        bound.insert(name.clone(), value.clone());
    }
    Ok(bound)
}

/// Checks that a schema lies within the subset, and that what it refers to is in `root`.
fn check_schema(root: &Value, schema: &Value, at: &str, depth: usize) -> Result<(), String> {
    if depth > SCHEMA_DEPTH_MAX {
        return Err(format!(
            "its schema nests deeper than {SCHEMA_DEPTH_MAX} at `{at}`"
        ));
    }
    let Value::Object(fields) = schema else {
        return match schema {
            Value::Bool(_) if depth > 0 => Ok(()),
            _ => Err(format!("its schema must be an object at `{at}`")),
        };
    };
    for (key, value) in fields {
        let below = format!("{at}/{key}");
        let wrong = |wanted: &str| Err(format!("its schema must hold {wanted} at `{below}`"));
        match key.as_str() {
            "type" => {
                let is_type = |value: &Value| value.as_str().is_some_and(|t| TYPES.contains(&t));
                let is_list = value
                    .as_array()
                    .is_some_and(|l| !l.is_empty() && l.iter().all(is_type));
                if !is_type(value) && !is_list {
                    return wrong(&format!("one or several of {}", TYPES.join(", ")));
                }
            }
            "$ref" if !value.as_str().is_some_and(|r| r.starts_with("#/$defs/")) => {
                return wrong("a reference to `#/$defs/…`");
            }
            "$ref"
                if !value
                    .as_str()
                    .is_some_and(|to| is_schema(referred(root, to))) =>
            {
                return wrong("a reference to a schema that is there");
            }
            "enum" | "required" if !value.is_array() => return wrong("a list"),
            "nullable" if !value.is_boolean() => return wrong("a bool"),
            "minItems" | "maxItems" | "minLength" | "maxLength" if !value.is_u64() => {
                return wrong("a count");
            }
            "minimum" | "maximum" | "exclusiveMinimum" | "exclusiveMaximum"
                if !value.is_number() =>
            {
                return wrong("a number");
            }
            "items" | "additionalProperties" => check_schema(root, value, &below, depth + 1)?,
            "anyOf" | "oneOf" => {
                let Some(list) = value.as_array().filter(|list| !list.is_empty()) else {
                    return wrong("a list of schemas");
                };
                for (nth, inner) in list.iter().enumerate() {
                    check_schema(root, inner, &format!("{below}/{nth}"), depth + 1)?;
                }
            }
            "properties" | "$defs" => {
                let Some(inner) = value.as_object() else {
                    return wrong("an object of schemas");
                };
                for (name, inner) in inner {
                    check_schema(root, inner, &format!("{below}/{name}"), depth + 1)?;
                }
            }
            key if KEYWORDS.contains(&key) || NOTES.contains(&key) => {}
            _ => {
                return Err(format!(
                    "its schema has a keyword that is not known, `{below}`"
                ));
            }
        }
    }
    Ok(())
}

/// Follows a reference within a schema.
fn referred<'a>(root: &'a Value, reference: &str) -> Option<&'a Value> {
    root.pointer(reference.strip_prefix('#')?)
}

fn is_schema(value: Option<&Value>) -> bool {
    value.is_some_and(|value| value.is_object() || value.is_boolean())
}

/// Returns what an optional value holds, where one of two alternatives is `null`.
#[must_use]
pub fn held_by_option(choices: &[Value]) -> Option<&Value> {
    let is_null = |choice: &Value| choice.get("type").is_some_and(|name| name == "null");
    match choices {
        [held, null] if is_null(null) => Some(held),
        [null, held] if is_null(null) => Some(held),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn parameter(schema: Value) -> Parameter {
        Parameter {
            name: "p".to_owned(),
            description: String::new(),
            schema,
            default: None,
        }
    }

    #[test]
    fn a_hint_shows_how_the_parameter_is_written() {
        let mistyped = |why: &str| BadParameters::Mistyped {
            name: "xs".to_owned(),
            why: why.to_owned(),
        };
        let table = [
            (
                BadParameters::Missing("xs".to_owned()),
                Some("--param xs=VALUE"),
            ),
            (
                mistyped("expected array, got \"a\""),
                Some("--param 'xs=[1,2]'"),
            ),
            (
                mistyped("expected object, got 1"),
                Some("--param 'xs={\"key\":1}'"),
            ),
            (mistyped("expected object, got 1 at `/kids`"), None),
            (mistyped("expected string, got 1"), None),
        ];
        for (bad, expected) in table {
            assert_eq!(bad.hint().as_deref(), expected, "{bad}");
        }
    }

    #[test]
    fn values_fit_or_the_place_is_named() {
        let point = json!({
            "type": "object", "properties": {"x": {"type": "integer", "minimum": 0}},
            "required": ["x"], "additionalProperties": false
        });
        let tree = json!({
            "$defs": {"t": {"type": "object", "properties": {"kids": {"type": "array", "items": {"$ref": "#/$defs/t"}}}}},
            "$ref": "#/$defs/t"
        });
        let table = [
            (json!({"type": "string"}), json!("a"), "ok"),
            (
                json!({"type": "string"}),
                json!(1),
                "expected string, got 1",
            ),
            (
                json!({"type": "integer"}),
                json!(1.5),
                "expected integer, got 1.5",
            ),
            (
                json!({"type": "integer", "maximum": 3}),
                json!(4),
                "expected at most 3, got 4",
            ),
            (json!({"type": ["string", "null"]}), Value::Null, "ok"),
            (
                json!({"enum": ["a", "b"]}),
                json!("c"),
                "expected one of \"a\", \"b\"",
            ),
            (
                json!({"type": "array", "items": {"type": "boolean"}}),
                json!([true, 1]),
                "expected boolean, got 1 at `/1`",
            ),
            (
                json!({"type": "string", "minLength": 2}),
                json!("ä"),
                "expected at least 2 characters, got 1",
            ),
            (point.clone(), json!({"x": 1}), "ok"),
            (point.clone(), json!({}), "the field `x` is missing at `/`"),
            (
                point.clone(),
                json!({"x": -1}),
                "expected at least 0, got -1 at `/x`",
            ),
            (
                point,
                json!({"x": 1, "y/z": 1}),
                "a field that is not known stands at `/y~1z`",
            ),
            (
                json!({"anyOf": [{"type": "string"}, {"type": "null"}]}),
                json!(1),
                "expected string, got 1",
            ),
            (
                json!({"anyOf": [{"type": "object", "properties": {"x": {"type": "string"}}}, {"type": "null"}]}),
                json!({"x": 1}),
                "expected string, got 1 at `/x`",
            ),
            (
                json!({"anyOf": [{"type": "string"}, {"type": "boolean"}]}),
                json!(1),
                "it fits 0 of 2 alternatives",
            ),
            (
                json!({"type": "integer"}),
                json!(5.0),
                "expected integer, got 5.0",
            ),
            (
                json!({"type": "integer", "maximum": u64::MAX}),
                json!(u64::MAX),
                "ok",
            ),
            (
                json!({"type": "integer", "maximum": i64::MAX}),
                json!(9_223_372_036_854_775_808_u64),
                "expected at most 9223372036854775807, got 9223372036854775808",
            ),
            (
                json!({"type": "number", "exclusiveMaximum": 1}),
                json!(1.0),
                "expected less than 1, got 1.0",
            ),
            (tree.clone(), json!({"kids": [{"kids": []}]}), "ok"),
            (
                tree,
                json!({"kids": [{"kids": [1]}]}),
                "expected object, got 1 at `/kids/0/kids/0`",
            ),
        ];
        for (schema, value, expected) in table {
            let parameter = parameter(schema);
            assert_eq!(parameter.check(), Ok(()));
            let found = parameter.fit(&value).err().unwrap_or("ok".to_owned());
            assert_eq!(found, expected, "{} {value}", parameter.schema);
        }
    }

    #[test]
    fn a_schema_outside_the_subset_is_refused() {
        let deep = (0..40).fold(json!({}), |inner, _| json!({"items": inner}));
        for schema in [
            json!(true),
            json!({"type": "text"}),
            json!({"pattern": "x"}),
            json!({"$ref": "https://example.org/x"}),
            json!({"items": [{}]}),
            json!({"anyOf": []}),
            json!({"minLength": -1}),
            json!({"$ref": "#/$defs/a"}),
            json!({"$defs": {"a": {}}, "items": {"$ref": "#/$defs/b"}}),
            json!({"$defs": {"a": {"enum": [1]}}, "$ref": "#/$defs/a/enum"}),
            deep,
        ] {
            assert!(parameter(schema.clone()).check().is_err(), "{schema}");
        }
        let circle = json!({"$defs": {"a": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"});
        assert!(parameter(circle).fit(&json!(1)).is_err());
        let both = json!([{"$ref": "#/$defs/a"}, {"$ref": "#/$defs/a"}]);
        let doubling = json!({"$defs": {"a": {"anyOf": both}}, "$ref": "#/$defs/a"});
        assert!(parameter(doubling).fit(&json!(1)).is_err());
    }

    #[test]
    fn a_check_that_compares_too_much_is_given_up() {
        let table = [
            (
                json!({"enum": (0..10_000).collect::<Vec<_>>()}),
                json!(9_999),
            ),
            (json!({"const": vec![0; 10_000]}), json!(vec![0; 10_000])),
            (json!({"required": vec!["x"; 10_000]}), json!({"x": 1})),
            (json!({"maxLength": 1_000_000}), json!("x".repeat(640_000))),
            (
                json!({}),
                Value::Object((0..10_000).map(|n| (n.to_string(), json!(n))).collect()),
            ),
        ];
        for (schema, value) in table {
            let list = parameter(json!({"items": schema}));
            assert_eq!(list.fit(&Value::Array(vec![value.clone(); 50])), Ok(()));
            let refused = list.fit(&Value::Array(vec![value; 101])).unwrap_err();
            assert!(refused.contains("too large to be checked"), "{refused}");
        }
    }

    #[test]
    fn defaults_are_filled_in_and_strangers_refused() {
        let mut optional = parameter(json!({"type": "string"}));
        optional.default = Some(json!("x"));
        let mut required = parameter(json!({"type": "integer"}));
        required.name = "q".to_owned();
        let both = [optional, required];
        let given = Bound::from([("q".to_owned(), json!(1))]);
        assert_eq!(bind(&both, &given).unwrap()["p"], json!("x"));
        assert_eq!(
            bind(&both, &Bound::new()),
            Err(BadParameters::Missing("q".to_owned()))
        );
        let stranger = Bound::from([("r".to_owned(), json!(1))]);
        assert_eq!(
            bind(&both, &stranger).unwrap_err().to_string(),
            "the flow takes no parameter `r`; it takes `p`, `q`"
        );
    }

    #[test]
    fn what_is_typed_is_json_or_plain_text() {
        assert_eq!(
            parameter(json!({"type": "string"})).read_argument("7"),
            json!("7")
        );
        assert_eq!(
            parameter(json!({"type": "string"})).read_argument("\"7\""),
            json!("7")
        );
        assert_eq!(
            parameter(json!({"type": "integer"})).read_argument("7"),
            json!(7)
        );
        assert_eq!(
            parameter(json!({"type": "array"})).read_argument("[1]"),
            json!([1])
        );
        assert_eq!(
            parameter(json!({"type": "string"})).read_argument("Ada"),
            json!("Ada")
        );
    }
}
