//! Labels: the words by which a flow asks for a kind of agent.
//!
//! A flow *requires* labels, an agent *offers* them. The one rule that matches the two is
//! [`Labels::missing_from`]: the server hands out runs by it, and `explain` says by it why a run is
//! still waiting. Nobody else compares labels.

use std::collections::BTreeSet;
use std::fmt;

use serde::{Deserialize, Serialize};

/// A set of labels, without order and without repeats.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(transparent)]
pub struct Labels(BTreeSet<String>);

impl Labels {
    /// Returns the labels that are required here and not offered there.
    ///
    /// An empty answer means the agent may take the run. What an agent offers beyond the
    /// required labels never matters, so a flow that requires nothing runs anywhere.
    ///
    /// ```
    /// # use waft::model::label::Labels;
    /// let flow = Labels::from_iter(["gpu", "eu"]);
    /// let agent = Labels::from_iter(["eu", "laptop"]);
    ///
    /// assert_eq!(flow.missing_from(&agent), Labels::from_iter(["gpu"]));
    /// assert!(Labels::default().missing_from(&agent).is_empty());
    /// ```
    #[must_use]
    pub fn missing_from(&self, offered: &Self) -> Self {
        self.0.difference(&offered.0).cloned().collect()
    }

    /// Adds a label; a repeat changes nothing.
    pub fn insert(&mut self, label: impl Into<String>) {
        self.0.insert(label.into());
    }

    /// Returns the labels of both sets.
    #[must_use]
    pub fn with(&self, more: &Self) -> Self {
        self.0.union(&more.0).cloned().collect()
    }

    /// Tells whether there is no label.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Walks the labels in alphabetical order.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(String::as_str)
    }
}

impl<S: Into<String>> FromIterator<S> for Labels {
    fn from_iter<I: IntoIterator<Item = S>>(labels: I) -> Self {
        Self(labels.into_iter().map(Into::into).collect())
    }
}

impl fmt::Display for Labels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (nth, label) in self.iter().enumerate() {
            write!(f, "{}`{label}`", if nth == 0 { "" } else { ", " })?;
        }
        Ok(())
    }
}

/// Returns the label that an agent offers with each storage of a scheme; a folder goes by the name of its host.
#[must_use]
pub fn of_storage(scheme: &str) -> Option<&'static str> {
    Some(match scheme {
        "s3" => "s3-flow-storage",
        "gs" => "gcs-flow-storage",
        "az" => "azure-flow-storage",
        "oci" => "oci-flow-storage",
        "https" | "http" => "http-flow-storage",
        _ => return None,
    })
}

/// Says why a text is no label.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a label: expected 1 to 64 letters, digits, `-`, `_`, `.`, `:` or `/`")]
pub struct NoLabel(String);

/// Checks one label that somebody typed.
///
/// # Errors
///
/// Fails on an empty or long text and on other characters, so that a label is one word everywhere
/// it is shown.
pub fn checked(label: &str) -> Result<&str, NoLabel> {
    let is_word = |c: char| c.is_ascii_alphanumeric() || "-_.:/".contains(c);
    if (1..=64).contains(&label.len()) && label.chars().all(is_word) {
        return Ok(label);
    }
    let shown: String = label.escape_default().take(80).collect();
    Err(NoLabel(shown))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_is_one_word() {
        for good in ["gpu", "eu-1", "a.b", "s3-flow-storage", "x:1/2"] {
            assert_eq!(checked(good), Ok(good));
        }
        for bad in ["", "a b", "a\n", "ä", &"x".repeat(65)] {
            assert!(checked(bad).is_err(), "{bad:?}");
        }
    }
}
