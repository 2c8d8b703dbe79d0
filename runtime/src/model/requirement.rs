//! Requirements: what a run needs of its agent, and the one function that compares it with an offer.
//!
//! The server interns each distinct requirement as one row and decides by [`Requirement::missing_from`]
//! which of them an agent satisfies; `explain` prints the same answer. There is no second rule.

use std::collections::BTreeSet;
use std::fmt;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::grant::{Grants, Policy};
use super::label::Labels;
use super::limit::TaskLimits;

/// What a definition as a whole asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Needs {
    /// The grants of all tasks together.
    pub grants: Grants,
    /// The largest limits that a task asks for.
    pub limits: TaskLimits,
}

/// What a run needs of its agent.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Requirement {
    /// The project whose code it is.
    pub project: String,
    /// The labels of version and run.
    #[serde(default)]
    pub labels: Labels,
    /// The grants of all tasks.
    #[serde(default)]
    pub grants: Grants,
    /// The raised limits.
    #[serde(default)]
    pub limits: TaskLimits,
    /// What the agent must be able to do, such as a protocol or an import.
    #[serde(default)]
    pub abilities: BTreeSet<String>,
    /// The storage roots under one of which the artifact lies.
    #[serde(default)]
    pub roots: BTreeSet<String>,
    /// The root of the results of a run that has finished tasks, which a resume must reach.
    #[serde(default)]
    pub results_root: Option<String>,
}

/// What an agent offers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Offer {
    /// The projects whose code runs here; none is every project of its token.
    pub projects: Option<BTreeSet<String>>,
    /// Its labels, host name included.
    pub labels: Labels,
    /// What it allows.
    pub grants: Policy,
    /// Its ceilings.
    pub limits: TaskLimits,
    /// What it is able to do.
    pub abilities: BTreeSet<String>,
    /// The roots it can fetch from and keep results in.
    pub roots: BTreeSet<String>,
    /// The root where it keeps results, while that is out of reach: it takes no run then.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub results_away: Option<String>,
    /// The roots that it has and does not offer before it has looked at them again.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub resting: Vec<Resting>,
}

/// A root that an agent has, and that failed it. It takes it up by itself when it is in reach again.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Resting {
    /// The root.
    pub root: String,
    /// The label that is offered with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
    /// Why it rests, in one line.
    pub why: String,
    /// What mends it, where there is something to say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    /// When the agent looks at it again.
    pub looks_at: Timestamp,
}

/// One reason why an agent may not take a run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(tag = "kind", content = "what", rename_all = "snake_case")]
pub enum Missing {
    /// It does not run this project's code.
    Project(String),
    /// It does not offer this label.
    Label(String),
    /// It does not allow this; the flag that would.
    Grant(String),
    /// A limit is asked for above its ceiling.
    Limit(String),
    /// It is not able to do this.
    Ability(String),
    /// It cannot fetch from any of the places where the artifact lies.
    Root(String),
    /// It cannot read the results of the tasks that are already finished.
    Results(String),
    /// It cannot keep results at the moment, of whatever run.
    ResultsAway(String),
    /// It has this root, or would offer a label with it, and the root rests.
    Resting(String),
}

impl Requirement {
    /// Returns what an agent with this offer lacks; nothing means it may take the run.
    ///
    /// What is offered beyond the requirement never matters.
    #[must_use]
    pub fn missing_from(&self, offer: &Offer) -> Vec<Missing> {
        let mut missing = Vec::new();
        if offer
            .projects
            .as_ref()
            .is_some_and(|own| !own.contains(&self.project))
        {
            missing.push(Missing::Project(self.project.clone()));
        }
        // What goes with a root that rests comes back with it.
        let mut rested = BTreeSet::new();
        let mut comes_back = |with: &dyn Fn(&Resting) -> bool| {
            let resting = offer.resting.iter().filter(|rest| with(rest));
            let roots: Vec<_> = resting.map(|rest| rest.root.clone()).collect();
            let is_any = !roots.is_empty();
            rested.extend(roots);
            is_any
        };
        for label in self.labels.missing_from(&offer.labels).iter() {
            if !comes_back(&|rest| rest.label.as_deref() == Some(label)) {
                missing.push(Missing::Label(label.to_owned()));
            }
        }
        missing.extend(
            self.grants
                .missing_from(&offer.grants)
                .into_iter()
                .map(Missing::Grant),
        );
        missing.extend(
            self.limits
                .exceeding(&offer.limits)
                .into_iter()
                .map(Missing::Limit),
        );
        let abilities = self.abilities.difference(&offer.abilities);
        missing.extend(abilities.cloned().map(Missing::Ability));
        let has_root = self.roots.is_empty() || !self.roots.is_disjoint(&offer.roots);
        if !has_root && !comes_back(&|rest| self.roots.contains(&rest.root)) {
            let roots: Vec<_> = self.roots.iter().map(String::as_str).collect();
            missing.push(Missing::Root(roots.join(", ")));
        }
        let results = self.results_root.as_ref();
        if let Some(root) = results.filter(|root| !offer.roots.contains(*root))
            && !comes_back(&|rest| rest.root == *root)
        {
            missing.push(Missing::Results(root.clone()));
        }
        // Said below, of the same root.
        rested.retain(|root| offer.results_away.as_ref() != Some(root));
        missing.extend(rested.into_iter().map(Missing::Resting));
        missing.extend(offer.results_away.clone().map(Missing::ResultsAway));
        missing
    }
}

/// Names each root of [`Missing::Root`], of which any would do.
pub(crate) fn any_of(roots: &str) -> String {
    let names: Vec<_> = roots.split(", ").map(|root| format!("`{root}`")).collect();
    match names.split_last() {
        Some((last, others)) if !others.is_empty() => {
            format!("{} or {last}", others.join(", "))
        }
        _ => names.concat(),
    }
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Project(project) => write!(f, "does not run project `{project}`"),
            Self::Label(label) => write!(f, "does not offer the label `{label}`"),
            Self::Grant(flag) => write!(f, "does not allow what needs `{flag}`"),
            Self::Limit(limit) => write!(f, "has a lower ceiling ({limit})"),
            Self::Ability(ability) => write!(f, "is not able to `{ability}`"),
            Self::Root(roots) => write!(f, "cannot fetch from {}", any_of(roots)),
            Self::Results(root) => write!(f, "cannot read the results in `{root}`"),
            Self::ResultsAway(root) => {
                write!(f, "cannot keep results in `{root}`, which is out of reach")
            }
            Self::Resting(root) => write!(f, "waits for `{root}`"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_of_lack_is_named_and_nothing_else() {
        let requirement = Requirement {
            project: "demo".to_owned(),
            labels: Labels::from_iter(["gpu", "eu"]),
            abilities: BTreeSet::from(["import:a:b@1".to_owned()]),
            roots: BTreeSet::from(["file:///a".to_owned(), "s3://b".to_owned()]),
            results_root: Some("file:///a".to_owned()),
            ..Requirement::default()
        };
        let mut offer = Offer {
            projects: Some(BTreeSet::from(["other".to_owned()])),
            labels: Labels::from_iter(["eu", "laptop"]),
            roots: BTreeSet::from(["s3://c".to_owned()]),
            ..Offer::default()
        };
        assert_eq!(
            requirement.missing_from(&offer),
            [
                Missing::Project("demo".to_owned()),
                Missing::Label("gpu".to_owned()),
                Missing::Ability("import:a:b@1".to_owned()),
                Missing::Root("file:///a, s3://b".to_owned()),
                Missing::Results("file:///a".to_owned()),
            ]
        );
        assert_eq!(any_of("a"), "`a`");
        assert_eq!(any_of("a, b, c"), "`a`, `b` or `c`");
        offer.projects = None;
        offer.labels.insert("gpu");
        offer.abilities.insert("import:a:b@1".to_owned());
        offer.roots.insert("file:///a".to_owned());
        assert!(requirement.missing_from(&offer).is_empty());
        let mut rests = offer.clone();
        rests.labels = Labels::from_iter(["eu"]);
        rests.roots.clear();
        rests.resting = vec![Resting {
            root: "file:///a".to_owned(),
            label: Some("gpu".to_owned()),
            why: "it is away".to_owned(),
            hint: None,
            looks_at: Timestamp::UNIX_EPOCH,
        }];
        let lack = Missing::Resting("file:///a".to_owned());
        assert_eq!(requirement.missing_from(&rests), [lack], "said once");
        rests.results_away = Some("file:///a".to_owned());
        let lack = Missing::ResultsAway("file:///a".to_owned());
        assert_eq!(requirement.missing_from(&rests), [lack], "said once");
        offer.results_away = Some("s3://d".to_owned());
        let lack = Missing::ResultsAway("s3://d".to_owned());
        for requirement in [requirement, Requirement::default()] {
            assert_eq!(
                requirement.missing_from(&offer),
                std::slice::from_ref(&lack)
            );
        }
    }
}
