//! Roots: the names of places in a storage.
//!
//! A root is what a version requires, what an agent offers, and what a result reference carries. It
//! says where, never how to get in: credentials come from each storage's own conventions.

use std::fmt;
use std::path::{Component, Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A place in a storage, such as `file:///home/ada/.waft/flows`.
///
/// The path is written plainly, nothing is percent-encoded. Two roots are equal if they name the
/// same place in the same words; no link is followed to find out.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Root(Kind);

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Kind {
    Local(String),
}

/// Says why a text names no root.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not a storage root: {why}")]
pub struct BadRoot {
    text: String,
    why: String,
}

/// Schemes that are meant to be roots, but not in this version.
const LATER: &[&str] = &["s3", "gs", "az", "oci", "https", "http"];

impl Root {
    /// Names a local folder by its absolute path.
    ///
    /// # Errors
    ///
    /// Fails if the path is relative, not plain, or no UTF-8.
    pub fn local(folder: &Path) -> Result<Self, BadRoot> {
        let bad = |why: &str| BadRoot {
            text: folder
                .to_string_lossy()
                .escape_default()
                .take(300)
                .collect(),
            why: why.to_owned(),
        };
        let text = folder.to_str().ok_or_else(|| bad("the path is no UTF-8"))?;
        if text.chars().any(char::is_control) {
            return Err(bad("the path holds control characters"));
        }
        if !folder.is_absolute() {
            return Err(bad(
                "the path must be absolute, such as `file:///srv/flows`",
            ));
        }
        let mut plain = PathBuf::new();
        for part in folder.components() {
            match part {
                Component::ParentDir => return Err(bad("the path must not hold `..`")),
                Component::CurDir => {}
                part => plain.push(part),
            }
        }
        if plain.parent().is_none() {
            return Err(bad("it names the whole file system, not a folder in it"));
        }
        let plain = plain.to_str().ok_or_else(|| bad("the path is no UTF-8"))?;
        Ok(Self(Kind::Local(plain.to_owned())))
    }

    /// Returns the folder, for a root that is one.
    #[must_use]
    pub fn folder(&self) -> &Path {
        let Kind::Local(path) = &self.0;
        Path::new(path)
    }

    /// Returns the label that a flow kept here asks of its agent.
    ///
    /// A local folder is reachable on its own host only, so the label is the hostname.
    #[must_use]
    pub fn auto_label(&self, hostname: &str) -> String {
        let Kind::Local(_) = &self.0;
        hostname.to_owned()
    }
}

impl FromStr for Root {
    type Err = BadRoot;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bad = |why: String| BadRoot {
            text: text.escape_default().take(300).collect(),
            why,
        };
        let Some((scheme, rest)) = text.split_once("://") else {
            let why = match text.starts_with('/') {
                true => format!("write a local folder as `file://{text}`"),
                false => "expected `file:///absolute/folder`".to_owned(),
            };
            return Err(bad(why));
        };
        match scheme {
            "file" if rest.starts_with('/') => Self::local(Path::new(rest)),
            "file" => Err(bad(
                "the path must be absolute: three slashes, such as `file:///srv/flows`".to_owned(),
            )),
            scheme if LATER.contains(&scheme) => Err(bad(format!(
                "`{scheme}://` is not supported by this version of waft, only `file:///folder` is"
            ))),
            _ => Err(bad("expected `file:///absolute/folder`".to_owned())),
        }
    }
}

impl fmt::Display for Root {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Kind::Local(path) = &self.0;
        write!(f, "file://{path}")
    }
}

impl TryFrom<String> for Root {
    type Error = BadRoot;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<Root> for String {
    fn from(root: Root) -> Self {
        root.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roots_print_as_one_plain_form() {
        for (typed, plain) in [
            ("file:///a/b", "file:///a/b"),
            ("file:///a//b/", "file:///a/b"),
            ("file:///a/./b c", "file:///a/b c"),
        ] {
            let root: Root = typed.parse().unwrap();
            assert_eq!(root.to_string(), plain);
            assert_eq!(plain.parse(), Ok(root));
        }
    }

    #[test]
    fn what_is_no_root_is_refused_with_a_reason() {
        for (text, reason) in [
            ("", "expected"),
            ("flows", "expected"),
            ("/srv/flows", "write a local folder as `file:///srv/flows`"),
            ("file://srv/flows", "three slashes"),
            ("file:///", "whole file system"),
            ("file:///a/../b", "`..`"),
            ("file:///a\nb", "control"),
            ("s3://bucket/prefix", "not supported by this version"),
            ("oci://host/name", "not supported by this version"),
            ("ftp://host/", "expected"),
        ] {
            let refusal = text.parse::<Root>().unwrap_err().to_string();
            assert!(refusal.contains(reason), "{refusal}");
        }
    }

    #[test]
    fn a_local_root_is_labelled_by_its_host() {
        let root: Root = "file:///a".parse().unwrap();
        assert_eq!(root.auto_label("mira"), "mira");
    }
}
