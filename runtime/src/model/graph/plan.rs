//! The plan: what never changes while a flow run goes on, with names turned into numbers.

use std::collections::HashMap;
use std::sync::Arc;

use super::super::flow::{Definition, Described, Mapping, Source, Task, Trigger};
use super::super::value::Value;

/// The tasks of a definition and what hangs on what.
#[derive(Debug)]
pub(super) struct Plan {
    described: Arc<Described>,
    /// One for each task, in the order of the definition.
    pub(super) steps: Vec<Step>,
    /// The task whose output is the result of the run.
    pub(super) output: Option<usize>,
    /// The tasks that decide the state of the run.
    pub(super) reference: Vec<usize>,
    by_name: HashMap<String, usize>,
}

/// What a task hangs on and what hangs on it.
#[derive(Debug, Default)]
pub(super) struct Step {
    /// The edges that carry a value, in their order.
    pub(super) inputs: Vec<Input>,
    /// Where the subjects of the conditions come from, in their order.
    pub(super) subjects: Vec<From>,
    /// Every task that must be over before, each once.
    pub(super) upstream: Vec<Link>,
    /// Every task that waits for this one, each once.
    pub(super) downstream: Vec<Link>,
}

/// An edge that carries a value.
#[derive(Debug)]
pub(super) struct Input {
    pub(super) name: String,
    pub(super) from: From,
    pub(super) is_each: bool,
}

/// Where a value comes from.
#[derive(Debug)]
pub(super) enum From {
    Task(usize),
    Fixed(Value),
}

/// The other end of a dependency.
#[derive(Clone, Copy, Debug)]
pub(super) struct Link {
    pub(super) task: usize,
    /// True if both are mapped and element depends on element only, so that neither waits for all
    /// of the other.
    pub(super) is_lane: bool,
}

/// Says that a definition was never checked, or that its constants are not at hand.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the definition does not hold together: {0}")]
pub struct Inconsistent(String);

impl Plan {
    pub(super) fn new(
        described: Arc<Described>,
        parameters: &[(String, Value)],
    ) -> Result<Self, Inconsistent> {
        let definition = &described.definition;
        let names = definition.tasks.iter().enumerate();
        let by_name: HashMap<_, _> = names.map(|(at, task)| (task.name.clone(), at)).collect();
        let sources = Sources {
            described: &described,
            by_name: &by_name,
            parameters,
        };
        let mut steps: Vec<Step> = definition.tasks.iter().map(|_| Step::default()).collect();
        for edge in &definition.edges {
            let to = sources.task(&edge.to)?;
            let from = sources.find(&edge.from)?;
            let is_each = edge.mapping == Mapping::Each && edge.input.is_some();
            if let From::Task(from) = from {
                let both = definition.tasks[from].is_mapped && definition.tasks[to].is_mapped;
                // A person is asked once, when all is there to be looked at.
                let is_asked = definition.tasks[to].trigger == Trigger::ManualOnly;
                steps[to].hang_on(from, is_each && both && !is_asked);
            }
            if let Some(name) = &edge.input {
                let name = name.clone();
                let input = Input {
                    name,
                    from,
                    is_each,
                };
                steps[to].inputs.push(input);
            }
        }
        for (at, task) in definition.tasks.iter().enumerate() {
            for condition in &task.conditions {
                let subject = sources.find(&condition.subject)?;
                if let From::Task(from) = subject {
                    steps[at].hang_on(from, false);
                }
                steps[at].subjects.push(subject);
            }
        }
        for at in 0..steps.len() {
            for link in steps[at].upstream.clone() {
                let is_lane = link.is_lane;
                steps[link.task].downstream.push(Link { task: at, is_lane });
            }
        }
        let output = definition.output.as_deref();
        let output = output.map(|name| sources.task(name)).transpose()?;
        let reference = reference(definition, &sources, &steps)?;
        Ok(Self {
            steps,
            output,
            reference,
            by_name,
            described,
        })
    }

    pub(super) fn definition(&self) -> &Definition {
        &self.described.definition
    }

    pub(super) fn task(&self, at: usize) -> &Task {
        &self.described.definition.tasks[at]
    }

    pub(super) fn find(&self, name: &str) -> Option<usize> {
        self.by_name.get(name).copied()
    }
}

impl Step {
    /// Notes a dependency once. It is a lane only if every edge between the two is.
    fn hang_on(&mut self, task: usize, is_lane: bool) {
        match self.upstream.iter_mut().find(|link| link.task == task) {
            Some(link) => link.is_lane &= is_lane,
            None => self.upstream.push(Link { task, is_lane }),
        }
    }

    /// Tells whether element depends on element only.
    pub(super) fn is_lane(&self, upstream: usize) -> bool {
        let mut links = self.upstream.iter();
        links.any(|link| link.task == upstream && link.is_lane)
    }

    /// Walks the upstream tasks on whose elements each element of this one depends.
    pub(super) fn lanes(&self) -> impl Iterator<Item = usize> {
        let lanes = self.upstream.iter().filter(|link| link.is_lane);
        lanes.map(|link| link.task)
    }
}

fn reference(
    definition: &Definition,
    sources: &Sources<'_>,
    steps: &[Step],
) -> Result<Vec<usize>, Inconsistent> {
    if definition.reference_tasks.is_empty() {
        let terminal = steps.iter().enumerate();
        let terminal = terminal.filter(|(_, step)| step.downstream.is_empty());
        return Ok(terminal.map(|(at, _)| at).collect());
    }
    let named = definition.reference_tasks.iter();
    let mut reference = named
        .map(|name| sources.task(name))
        .collect::<Result<Vec<_>, _>>()?;
    reference.sort_unstable();
    Ok(reference)
}

struct Sources<'a> {
    described: &'a Described,
    by_name: &'a HashMap<String, usize>,
    parameters: &'a [(String, Value)],
}

impl Sources<'_> {
    fn task(&self, name: &str) -> Result<usize, Inconsistent> {
        let found = self.by_name.get(name).copied();
        found.ok_or_else(|| Inconsistent(format!("there is no task `{name}`")))
    }

    fn find(&self, source: &Source) -> Result<From, Inconsistent> {
        let value = match source {
            Source::Task(name) => return Ok(From::Task(self.task(name)?)),
            Source::Parameter(name) => {
                let found = self.parameters.iter().find(|(own, _)| own == name);
                let value = found.map(|(_, value)| value);
                value.ok_or_else(|| Inconsistent(format!("the parameter `{name}` has no value")))?
            }
            Source::Constant(digest) => {
                let value = self.described.constants.get(digest);
                value.ok_or_else(|| Inconsistent(format!("the constant `{digest}` is absent")))?
            }
        };
        Ok(From::Fixed(value.clone()))
    }
}
