//! The definition of a flow: tasks, edges, parameters, schedule and what each task asks for.
//!
//! This is the contract's `definition` interface as data that can be kept, sent and compared. The
//! sandbox makes it from what a component describes; the server keeps it; the agent compares both
//! by [`Definition::hash`]. Values fixed in the code (constants) stand here as digests only: the
//! server is told the shape of a flow, never its values.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use serde::{Deserialize, Serialize};

use super::artifact::Digest;
use super::grant::Grants;
use super::limit::{self, TaskLimits};
use super::parameter::Parameter;
use super::requirement::Needs;
use super::schedule::Schedule;

/// One flow, as its component describes it or as a command's `waft.toml` says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Definition {
    /// The name under which the flow is registered.
    pub name: String,
    /// For a human; may be empty.
    #[serde(default)]
    pub description: String,
    /// How the component is run if it is a command (exports `wasi:cli/run`), else nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub command: Option<Command>,
    /// What is given when a run is created.
    #[serde(default)]
    pub parameters: Vec<Parameter>,
    /// The named steps.
    pub tasks: Vec<Task>,
    /// What depends on what.
    #[serde(default)]
    pub edges: Vec<Edge>,
    /// The tasks that alone decide the state of the run; empty: those nobody depends on.
    #[serde(default)]
    pub reference_tasks: Vec<String>,
    /// The task whose output is the result of the run.
    #[serde(default)]
    pub output: Option<String>,
    /// When runs are made without being asked for.
    #[serde(default)]
    pub schedule: Option<Schedule>,
}

/// How parameters reach a command beside the JSON object on its standard input.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Command {
    /// Arguments; `{name}` is replaced by the parameter of that name.
    #[serde(default)]
    pub args: Vec<String>,
    /// Environment variables, with the same replacement.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
}

/// A named step of a flow.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Task {
    /// Unique in the flow.
    pub name: String,
    /// For a human; may be empty.
    #[serde(default)]
    pub description: String,
    /// What is run.
    pub body: Body,
    /// Whether one task run is made for each element of the `each` inputs.
    #[serde(default)]
    pub is_mapped: bool,
    /// The branches the task hangs on, outermost first; Skipped unless all hold.
    #[serde(default)]
    pub conditions: Vec<Condition>,
    /// When the upstream states let it run.
    #[serde(default)]
    pub trigger: Trigger,
    /// Whether a skipped upstream task skips this one too.
    pub skip_on_upstream_skip: bool,
    /// Retries of failed attempts.
    #[serde(default)]
    pub retries: Option<Retries>,
    /// Milliseconds an attempt may take.
    #[serde(default)]
    pub timeout_ms: Option<u64>,
    /// Words for slots and for finding.
    #[serde(default)]
    pub tags: BTreeSet<String>,
    /// Whether outputs serve later runs.
    #[serde(default)]
    pub cache: Option<Cache>,
    /// What the task asks for.
    #[serde(default)]
    pub grants: Grants,
    /// Other ceilings than the default.
    #[serde(default)]
    pub limits: TaskLimits,
    /// What happens when its agent is lost.
    #[serde(default)]
    pub on_lost: OnLost,
}

/// What stands behind a task.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Body {
    /// The component's `tasks.run` with this function name.
    Function(String),
    /// The first input whose source was not skipped; no sandbox.
    Merge,
    /// The component's `wasi:cli/run`.
    Command,
}

/// Where a value comes from.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// The output of the task of this name.
    Task(String),
    /// The parameter of this name.
    Parameter(String),
    /// A value fixed in the code, known here by its digest; the bytes are [`Described::constants`].
    Constant(Digest),
}

/// How an input receives its source.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Mapping {
    /// The value as it is; the outputs of a mapped task are joined into one array.
    #[default]
    Whole,
    /// One element for each task run.
    Each,
}

/// A dependency of one task.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Edge {
    /// What is depended on.
    pub from: Source,
    /// The task that depends on it.
    pub to: String,
    /// The input that receives the value; none where only the order matters.
    #[serde(default)]
    pub input: Option<String>,
    /// Whole, or element by element.
    #[serde(default)]
    pub mapping: Mapping,
}

/// A branch that a task hangs on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Condition {
    /// What is compared.
    pub subject: Source,
    /// The JSON texts, each a string, bool or integer, one of which the subject must equal.
    pub equals: Vec<String>,
    /// Whether the subject must equal none of them instead.
    #[serde(default)]
    pub is_negated: bool,
}

/// How many of the upstream tasks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Amount {
    /// A number of tasks.
    Count(u32),
    /// A percentage of them, 0 to 100.
    Percent(u32),
}

/// The least and the most upstream tasks that satisfy a trigger.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Bounds {
    /// At least so many.
    #[serde(default)]
    pub at_least: Option<Amount>,
    /// At most so many.
    #[serde(default)]
    pub at_most: Option<Amount>,
}

/// The rule by which the upstream states decide whether a task runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Trigger {
    /// Every upstream task was successful.
    #[default]
    AllSuccessful,
    /// Every upstream task failed.
    AllFailed,
    /// Every upstream task is over.
    AllFinished,
    /// At least one was successful.
    AnySuccessful,
    /// At least one failed.
    AnyFailed,
    /// The number of successful ones lies within the bounds.
    SomeSuccessful(Bounds),
    /// The number of failed ones lies within the bounds.
    SomeFailed(Bounds),
    /// All successful and at least one not skipped.
    NotAllSkipped,
    /// Waits until a person approves, once all upstream tasks are over, however they ended.
    ManualOnly,
}

/// How the delay before a retry grows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Backoff {
    /// The same each time.
    #[default]
    Constant,
    /// Times the number of the retry.
    Linear,
    /// Doubles with each retry.
    Exponential,
}

/// The longest delay before a retry, without its jitter.
const DAY_MS: u64 = 24 * 60 * 60 * 1000;

/// When and how often a failed attempt is tried again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Retries {
    /// How many attempts may follow the first.
    pub count: u32,
    /// Milliseconds before the first retry.
    #[serde(default)]
    pub delay_ms: u64,
    /// How the delay grows.
    #[serde(default)]
    pub backoff: Backoff,
    /// The longest delay in milliseconds; one day unless given, and at most.
    #[serde(default)]
    pub delay_max_ms: Option<u64>,
    /// Up to this percentage is added at random.
    #[serde(default)]
    pub jitter_percent: u32,
}

impl Retries {
    /// Returns the milliseconds to wait before retry `number` (from 1).
    ///
    /// `random` is between 0 and 1 and decides the jitter, so that the rule itself stays pure.
    #[must_use]
    pub fn delay_ms(&self, number: u32, random: f64) -> u64 {
        let number = number.max(1);
        let grown = match self.backoff {
            Backoff::Constant => self.delay_ms,
            Backoff::Linear => self.delay_ms.saturating_mul(u64::from(number)),
            Backoff::Exponential => self
                .delay_ms
                .saturating_mul(1 << u64::from(number - 1).min(40)),
        };
        let capped = grown.min(self.delay_max_ms.unwrap_or(DAY_MS).min(DAY_MS));
        let jitter = capped as f64 * f64::from(self.jitter_percent.min(100)) / 100.0;
        capped.saturating_add((jitter * random.clamp(0.0, 1.0)) as u64)
    }
}

/// How long and under which key an output may serve later runs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Cache {
    /// Milliseconds the entry stays valid; for as long as it is kept unless given.
    #[serde(default)]
    pub valid_ms: Option<u64>,
    /// Replaces artifact digest and inputs in the cache key.
    #[serde(default)]
    pub key: Option<String>,
}

/// What becomes of a task run whose agent was lost during an attempt.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnLost {
    /// The attempt is made again, at most twice.
    #[default]
    Retry,
    /// The run is Crashed at once.
    Fail,
}

/// What a component said about itself: its definition, and the constants that it names by digest.
#[derive(Clone, Debug)]
pub struct Described {
    /// The shape.
    pub definition: Definition,
    /// The values behind [`Source::Constant`].
    pub constants: HashMap<Digest, super::value::Value>,
}

/// Says what is wrong with a definition. On a run this is `rejected.definition`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the texts say it")]
pub enum BadDefinition {
    #[error(
        "the {what} name `{name}` is not allowed: expected 1 to 128 letters, digits, `-`, `_` or `.`"
    )]
    Name { what: &'static str, name: String },
    #[error("there are two {what}s named `{name}`")]
    Twice { what: &'static str, name: String },
    #[error("it has no task")]
    NoTask,
    #[error("it has {count} {what}, more than the limit of {most}")]
    TooMany {
        what: &'static str,
        count: usize,
        most: usize,
    },
    #[error("{place} names the {what} `{name}`, which does not exist")]
    Nowhere {
        place: String,
        what: &'static str,
        name: String,
    },
    #[error("the tasks {0} depend on each other in a circle")]
    Cycle(String),
    #[error("task `{task}`: {why}")]
    Task { task: String, why: String },
    #[error("parameter `{name}`: {why}")]
    Parameter { name: String, why: String },
    #[error("the schedule is not usable: {0}")]
    Schedule(String),
}

/// Checks a name that a flow, task, parameter, project or clock may carry.
#[must_use]
pub fn is_name(text: &str) -> bool {
    (1..=128).contains(&text.len())
        && text
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
        && text.chars().any(|c| c.is_ascii_alphanumeric())
}

impl Definition {
    /// Checks everything that can be wrong with a definition by itself.
    ///
    /// Done where a component is described (for its author's sake), where it is registered and once
    /// more by the agent, since nobody relies on the others.
    ///
    /// # Errors
    ///
    /// Names the first thing that is wrong.
    pub fn check(&self) -> Result<(), BadDefinition> {
        self.check_sizes()?;
        self.check_names()?;
        self.check_edges()?;
        self.check_tasks()?;
        self.check_parameters()?;
        self.check_order()
    }

    /// Returns the digest of the canonical form, by which the registered and the described
    /// definition are compared.
    #[must_use]
    pub fn hash(&self) -> Digest {
        // Structs serialise in the order of their fields and every map here is sorted, so the
        // same definition always gives the same bytes.
        let canonical = serde_json::to_vec(self).unwrap_or_default();
        Digest::of(&canonical)
    }

    /// Returns the task of this name.
    #[must_use]
    pub fn task(&self, name: &str) -> Option<&Task> {
        self.tasks.iter().find(|task| task.name == name)
    }

    /// Returns the tags of its tasks.
    #[must_use]
    pub fn tags(&self) -> BTreeSet<String> {
        let tags = self.tasks.iter().flat_map(|task| &task.tags);
        tags.cloned().collect()
    }

    /// Returns what the flow as a whole needs of its agent, apart from labels and root.
    #[must_use]
    pub fn needs(&self) -> Needs {
        let mut needs = Needs::default();
        for task in &self.tasks {
            needs.grants = needs.grants.with(&task.grants);
            let mut limits = task.limits.clone();
            limits.wall_ms = task.timeout_ms;
            needs.limits = needs.limits.max(&limits);
        }
        needs
    }

    fn check_sizes(&self) -> Result<(), BadDefinition> {
        let counts = [
            ("tasks", self.tasks.len(), limit::TASKS_MAX),
            ("edges", self.edges.len(), limit::EDGES_MAX),
            ("parameters", self.parameters.len(), 1_000),
        ];
        for (what, count, most) in counts {
            if count > most {
                return Err(BadDefinition::TooMany { what, count, most });
            }
        }
        let count = serde_json::to_vec(self).map_or(usize::MAX, |bytes| bytes.len());
        let most = limit::DEFINITION_BYTES_MAX;
        if count > most {
            let what = "bytes of definition";
            return Err(BadDefinition::TooMany { what, count, most });
        }
        match self.tasks.is_empty() {
            true => Err(BadDefinition::NoTask),
            false => Ok(()),
        }
    }

    fn check_names(&self) -> Result<(), BadDefinition> {
        let tasks = self.tasks.iter().map(|task| ("task", &task.name));
        let parameters = self.parameters.iter().map(|p| ("parameter", &p.name));
        let mut seen = HashSet::new();
        for (what, name) in [("flow", &self.name)]
            .into_iter()
            .chain(tasks)
            .chain(parameters)
        {
            if !is_name(name) {
                let name = name.escape_default().take(200).collect();
                return Err(BadDefinition::Name { what, name });
            }
            if !seen.insert((what, name)) {
                let name = name.clone();
                return Err(BadDefinition::Twice { what, name });
            }
        }
        Ok(())
    }

    fn check_edges(&self) -> Result<(), BadDefinition> {
        let tasks: HashMap<_, _> = self.tasks.iter().map(|t| (t.name.as_str(), t)).collect();
        let parameters: HashSet<_> = self.parameters.iter().map(|p| p.name.as_str()).collect();
        let nowhere = |place: String, what, name: &str| BadDefinition::Nowhere {
            place,
            what,
            name: name.escape_default().take(200).collect(),
        };
        let exists = |place: &dyn Fn() -> String, source: &Source| match source {
            Source::Task(name) if !tasks.contains_key(name.as_str()) => {
                Err(nowhere(place(), "task", name))
            }
            Source::Parameter(name) if !parameters.contains(name.as_str()) => {
                Err(nowhere(place(), "parameter", name))
            }
            _ => Ok(()),
        };
        let mut inputs = HashSet::new();
        for edge in &self.edges {
            let Some(task) = tasks.get(edge.to.as_str()) else {
                return Err(nowhere("an edge".to_owned(), "task", &edge.to));
            };
            exists(&|| format!("an edge to `{}`", edge.to), &edge.from)?;
            let bad = |why: String| BadDefinition::Task {
                task: task.name.clone(),
                why,
            };
            if edge.mapping == Mapping::Each && !task.is_mapped {
                return Err(bad("an input is mapped, but the task is not".to_owned()));
            }
            let Some(input) = &edge.input else { continue };
            if !inputs.insert((&edge.to, input)) && task.body != Body::Merge {
                return Err(bad(format!("the input `{input}` is bound twice")));
            }
        }
        for task in &self.tasks {
            for condition in &task.conditions {
                exists(
                    &|| format!("a condition of `{}`", task.name),
                    &condition.subject,
                )?;
            }
        }
        let named = self
            .reference_tasks
            .iter()
            .map(|name| ("the reference tasks", name));
        let output = self.output.iter().map(|name| ("the output", name));
        for (place, name) in named.chain(output) {
            exists(&|| place.to_owned(), &Source::Task(name.clone()))?;
        }
        Ok(())
    }

    fn check_tasks(&self) -> Result<(), BadDefinition> {
        let each: HashSet<_> = self
            .edges
            .iter()
            .filter(|edge| edge.mapping == Mapping::Each && edge.input.is_some())
            .map(|edge| edge.to.as_str())
            .collect();
        let is_command = self.command.is_some();
        for task in &self.tasks {
            let bad = |why: &str| BadDefinition::Task {
                task: task.name.clone(),
                why: why.to_owned(),
            };
            if task.is_mapped && !each.contains(task.name.as_str()) {
                return Err(bad("it is mapped, but none of its inputs is"));
            }
            if (task.body == Body::Command) != is_command || (is_command && self.tasks.len() != 1) {
                return Err(bad("a command is a flow of exactly one task, its command"));
            }
            if task
                .retries
                .as_ref()
                .is_some_and(|r| r.count > limit::RETRIES_MAX)
            {
                return Err(bad("it asks for more than 100 retries"));
            }
            let delay_max_ms = task.retries.as_ref().and_then(|r| r.delay_max_ms);
            if delay_max_ms.is_some_and(|delay_max_ms| delay_max_ms > DAY_MS) {
                return Err(bad("its longest delay before a retry is more than a day"));
            }
            if task.tags.len() > 32
                || task
                    .tags
                    .iter()
                    .any(|tag| super::label::checked(tag).is_err())
            {
                return Err(bad("it has more than 32 tags, or one that is not a word"));
            }
            if task.timeout_ms == Some(0) || task.limits.parallel == Some(0) {
                return Err(bad("a timeout or a parallelism of 0 never lets it run"));
            }
            if task.body == Body::Merge && (task.is_mapped || !task.grants.is_empty()) {
                return Err(bad("a merge is neither mapped nor granted anything"));
            }
        }
        Ok(())
    }

    fn check_parameters(&self) -> Result<(), BadDefinition> {
        for parameter in &self.parameters {
            parameter.check().map_err(|why| BadDefinition::Parameter {
                name: parameter.name.clone(),
                why,
            })?;
        }
        let Some(schedule) = &self.schedule else {
            return Ok(());
        };
        schedule
            .check(&self.parameters)
            .map_err(|why| BadDefinition::Schedule(why.to_string()))
    }

    /// Finds a circle by taking away, again and again, the tasks that wait for nothing.
    fn check_order(&self) -> Result<(), BadDefinition> {
        let mut waits: BTreeMap<&str, usize> = self
            .tasks
            .iter()
            .map(|task| (task.name.as_str(), 0))
            .collect();
        let mut followers: HashMap<&str, Vec<&str>> = HashMap::new();
        for (from, to) in self.dependencies() {
            *waits.entry(to).or_default() += 1;
            followers.entry(from).or_default().push(to);
        }
        let mut free: Vec<&str> = waits
            .iter()
            .filter(|(_, n)| **n == 0)
            .map(|(t, _)| *t)
            .collect();
        while let Some(task) = free.pop() {
            waits.remove(task);
            for follower in followers.remove(task).unwrap_or_default() {
                if let Some(count) = waits.get_mut(follower) {
                    *count -= 1;
                    if *count == 0 {
                        free.push(follower);
                    }
                }
            }
        }
        if waits.is_empty() {
            return Ok(());
        }
        let names: Vec<_> = waits
            .keys()
            .take(5)
            .map(|name| format!("`{name}`"))
            .collect();
        Err(BadDefinition::Cycle(names.join(", ")))
    }

    /// Walks every (upstream task, downstream task) pair, by edges and by conditions.
    pub fn dependencies(&self) -> impl Iterator<Item = (&str, &str)> {
        let edges = self.edges.iter().map(|edge| (&edge.from, edge.to.as_str()));
        let conditions = self.tasks.iter().flat_map(|task| {
            let subjects = task.conditions.iter().map(|condition| &condition.subject);
            subjects.map(|subject| (subject, task.name.as_str()))
        });
        edges.chain(conditions).filter_map(|(from, to)| match from {
            Source::Task(name) => Some((name.as_str(), to)),
            Source::Parameter(_) | Source::Constant(_) => None,
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn retries(backoff: Backoff) -> Retries {
        Retries {
            count: 1,
            delay_ms: u64::MAX,
            backoff,
            delay_max_ms: Some(u64::MAX),
            jitter_percent: u32::MAX,
        }
    }

    #[test]
    fn a_delay_never_overflows_and_is_a_day_at_most() {
        for backoff in [Backoff::Constant, Backoff::Linear, Backoff::Exponential] {
            for number in [0, 1, 100, u32::MAX] {
                let delay_ms = retries(backoff).delay_ms(number, 1.0);
                assert_eq!(delay_ms, 2 * DAY_MS, "{backoff:?} {number}");
            }
        }
    }

    fn definition(fields: serde_json::Value) -> Definition {
        let mut whole = json!({"name": "f", "tasks": [{"name": "a", "body": {"function": "a"}, "skip_on_upstream_skip": true}]});
        let object = whole.as_object_mut().unwrap();
        object.extend(fields.as_object().unwrap().clone());
        serde_json::from_value(whole).unwrap()
    }

    #[test]
    fn a_delay_of_more_than_a_day_is_refused() {
        let checked = |delay_max_ms: u64| {
            let retries = json!({"count": 1, "delay_max_ms": delay_max_ms});
            let task = json!({"name": "a", "body": {"function": "a"}, "skip_on_upstream_skip": true, "retries": retries});
            definition(json!({"tasks": [task]})).check()
        };
        assert_eq!(checked(DAY_MS), Ok(()));
        for delay_max_ms in [DAY_MS + 1, u64::MAX] {
            let refused = checked(delay_max_ms).unwrap_err().to_string();
            assert!(refused.ends_with("is more than a day"), "{refused}");
        }
    }

    /// Half of these lose their last digit where a parser takes the short way.
    #[test]
    fn a_definition_has_the_same_hash_wherever_it_was_read() {
        // From one half to one, in steps that need all seventeen digits.
        let floats =
            (0..1_000_u64).map(|n| f64::from_bits(0x3fe0_0000_0000_0001 + n * 0x10_4321_abcd));
        for float in floats {
            let parameter = json!({"name": "p", "schema": {"type": "number"}, "default": float});
            let made = definition(json!({"parameters": [parameter]}));
            let read: Definition =
                serde_json::from_slice(&serde_json::to_vec(&made).unwrap()).unwrap();
            assert_eq!(read.parameters[0].default, Some(json!(float)));
            assert_eq!(read.hash(), made.hash(), "{float:?}");
        }
    }
}
