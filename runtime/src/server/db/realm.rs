//! The realm of whoever asks: the projects that its token is bound to.
//!
//! Every query that could show one project to another takes one, so that forgetting it does not
//! compile.

use std::collections::BTreeSet;

use super::tx::{Arg, Json};
use crate::model::id::ProjectId;

/// Which projects may be seen.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Realm {
    /// Every one.
    All,
    /// These.
    Only(BTreeSet<ProjectId>),
}

impl Realm {
    /// Tells whether a project may be seen.
    #[must_use]
    pub fn has(&self, project: ProjectId) -> bool {
        match self {
            Self::All => true,
            Self::Only(projects) => projects.contains(&project),
        }
    }

    /// Tells whether everything seen in `other` may be seen here too.
    #[must_use]
    pub fn covers(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::All, _) => true,
            (Self::Only(_), Self::All) => false,
            (Self::Only(own), Self::Only(other)) => other.is_subset(own),
        }
    }

    /// Returns a text that is the same for the same projects.
    #[must_use]
    pub fn word(&self) -> String {
        match self {
            // Unlike that of no project at all, which no token can be bound to.
            Self::All => "*".to_owned(),
            Self::Only(projects) => hexes(projects).join(","),
        }
    }

    /// Returns the word of a realm that sees only what has the same; none of one that sees everything.
    pub(super) fn own(&self) -> Option<String> {
        (*self != Self::All).then(|| self.word())
    }

    /// Returns it as an argument of a statement of [`in_realm`]: null, or a JSON array of hex texts.
    pub(super) fn arg(&self) -> Arg {
        match self {
            Self::All => Arg::Null,
            Self::Only(projects) => Json(hexes(projects)).into(),
        }
    }
}

/// Writes a statement with the condition in its middle that a column is a project of the realm that is
/// given as an argument.
macro_rules! in_realm {
    ($head:expr, $column:literal in $place:literal, $tail:expr) => {
        $crate::server::db::sql::Sql {
            sqlite: concat!(
                $head,
                "(",
                $place,
                " IS NULL OR hex(",
                $column,
                ") IN (SELECT value FROM json_each(",
                $place,
                ")))",
                $tail
            ),
            postgres: concat!(
                $head,
                "(",
                $place,
                "::text IS NULL OR upper(encode(",
                $column,
                ", 'hex')) IN (SELECT jsonb_array_elements_text(",
                $place,
                "::jsonb)))",
                $tail
            ),
        }
    };
}
pub(super) use in_realm;

fn hexes(projects: &BTreeSet<ProjectId>) -> Vec<String> {
    let hex = |id: &ProjectId| hex::encode_upper(id.as_bytes());
    projects.iter().map(hex).collect()
}
