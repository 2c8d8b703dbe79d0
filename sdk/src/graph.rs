//! The graph under construction: what the calls in a flow function add to.
//!
//! A flow function runs for one of two reasons. To *describe* the flow it records tasks and edges. To
//! *find* the body of one task, at every attempt, nothing is recorded: each call only compares its name,
//! so an attempt of a large flow stays cheap. One graph a thread; `export` opens and closes it.

use crate::definition::{self, Body, Condition, Edge, Mapping, Source, Trigger};
use crate::spec::TaskSpec;
use crate::text::{decimal, joined, owned};
use crate::value::{Inputs, Value, json};
use crate::{Node, Param, Signal};
use std::cell::Cell;
use std::mem::{self, ManuallyDrop};

/// The body of a task, as `tasks.run` calls it.
pub(crate) type Run = fn(&mut Inputs) -> Result<Value, Signal>;

/// A graph is never freed but its parts are handed on: an attempt ends with all its memory, so the code that
/// frees a graph would be 2 KB of every artifact for nothing.
type Open = ManuallyDrop<Box<Graph>>;

thread_local! {
    static GRAPH: Cell<Option<Open>> = const { Cell::new(None) };
}

/// Where an input comes from.
#[doc(hidden)]
#[derive(Clone)]
pub enum From {
    Task(u32),
    Parameter(&'static str),
    /// JSON text; empty while a body is being looked up.
    Constant(Vec<u8>),
    /// A literal that cannot be written as JSON, and why.
    Unwritable(String),
}

/// An input and what it is bound to.
#[doc(hidden)]
pub struct Wire {
    pub input: &'static str,
    pub from: From,
    /// True where a mapped task takes one element of it.
    pub is_each: bool,
}

enum Purpose {
    Describe,
    Find {
        function: String,
        found: Option<Run>,
    },
}

struct Graph {
    purpose: Purpose,
    tasks: Vec<definition::Task>,
    edges: Vec<Edge>,
    parameters: Vec<definition::Parameter>,
    reference_tasks: Vec<String>,
    /// The branches around the call that comes next, outermost first.
    branches: Vec<Condition>,
    /// How often each name was used.
    names: Vec<(&'static str, u64)>,
    /// The first mistake that the compiler could not see.
    mistake: Option<String>,
}

/// What was recorded.
pub(crate) struct Drawing {
    pub(crate) tasks: Vec<definition::Task>,
    pub(crate) edges: Vec<Edge>,
    pub(crate) parameters: Vec<definition::Parameter>,
    pub(crate) reference_tasks: Vec<String>,
    pub(crate) output: Option<String>,
}

/// Runs a flow function and answers the graph it draws, or the first mistake in it.
pub(crate) fn describe(build: impl FnOnce() -> Option<From>) -> Result<Drawing, String> {
    open(Purpose::Describe);
    let output = build();
    let output = output.and_then(|from| output_task(&from));
    let mut graph = taken("flow");
    match graph.mistake.take() {
        Some(mistake) => Err(mistake),
        None => Ok(Drawing {
            tasks: mem::take(&mut graph.tasks),
            edges: mem::take(&mut graph.edges),
            parameters: mem::take(&mut graph.parameters),
            reference_tasks: mem::take(&mut graph.reference_tasks),
            output,
        }),
    }
}

/// Runs what writes values beside the graph, and answers what it made of them or the first mistake in them.
pub(crate) fn written<T>(write: impl FnOnce() -> T) -> Result<T, String> {
    open(Purpose::Describe);
    let answer = write();
    match taken("flow").mistake.take() {
        Some(mistake) => Err(mistake),
        None => Ok(answer),
    }
}

/// Runs a flow function and answers the body of the task that is called so.
pub(crate) fn find(function: String, build: impl FnOnce() -> Option<From>) -> Option<Run> {
    open(Purpose::Find {
        function,
        found: None,
    });
    build();
    match taken("flow").purpose {
        Purpose::Find { found, .. } => found,
        Purpose::Describe => None,
    }
}

fn open(purpose: Purpose) {
    let graph = Graph {
        purpose,
        tasks: Vec::new(),
        edges: Vec::new(),
        parameters: Vec::new(),
        reference_tasks: Vec::new(),
        branches: Vec::new(),
        names: Vec::new(),
        mistake: None,
    };
    GRAPH.set(Some(ManuallyDrop::new(Box::new(graph))));
}

/// Lends the open graph.
fn with<R>(what: &str, act: impl FnOnce(&mut Graph) -> R) -> R {
    let mut graph = taken(what);
    let answer = act(&mut graph);
    GRAPH.set(Some(graph));
    answer
}

/// Outside of a flow function no graph is open: a mistake of the author.
#[inline(never)]
fn taken(what: &str) -> Open {
    GRAPH.take().unwrap_or_else(|| {
        panic!("`{what}` was called outside of a flow; in a task body or a test call `{what}::run`")
    })
}

/// True where literals are worth writing down.
pub(crate) fn is_describing() -> bool {
    let graph = GRAPH.take();
    let is_describing = graph
        .as_ref()
        .is_some_and(|graph| matches!(graph.purpose, Purpose::Describe));
    GRAPH.set(graph);
    is_describing
}

/// Adds a task. What `#[task]` makes of a call in a flow function.
#[doc(hidden)]
pub fn call<T>(spec: &'static TaskSpec, is_mapped: bool, wires: &[Wire]) -> Node<T> {
    Node::task(place(spec, is_mapped, wires))
}

/// What all calls share, once in an artifact.
#[inline(never)]
fn place(spec: &'static TaskSpec, is_mapped: bool, wires: &[Wire]) -> u32 {
    with(spec.name, |graph| graph.call(spec, is_mapped, wires))
}

/// Adds a parameter. What `#[flow]` makes of an argument.
#[doc(hidden)]
pub fn parameter<T>(
    name: &'static str,
    description: &str,
    schema: fn(&mut String),
    default: Option<fn() -> String>,
) -> Param<T> {
    declare(name, description, schema, default);
    Param::new(name)
}

/// What all parameters share, once in an artifact.
#[inline(never)]
fn declare(
    name: &'static str,
    description: &str,
    schema: fn(&mut String),
    default: Option<fn() -> String>,
) {
    if is_describing() {
        let mut text = String::new();
        schema(&mut text);
        let parameter = definition::Parameter {
            name: owned(name),
            description: owned(description),
            schema: text,
            default: default.map(|default| default()),
        };
        with(name, |graph| graph.parameters.push(parameter));
    }
}

/// Adds a task that answers the first of its inputs that was not skipped.
pub(crate) fn merge(froms: Vec<From>, trigger: Trigger) -> u32 {
    with("merge", |graph| graph.merge(froms, trigger))
}

/// Goes into a branch; answers how many tasks there are outside of it.
pub(crate) fn enter(subject: &From, equals: &[String], negated: bool) -> usize {
    with("branch", |graph| graph.enter(subject, equals, negated))
}

/// Leaves a branch. A value that was not made inside goes through a task that hangs on the branch.
pub(crate) fn leave(outside: usize, from: From) -> From {
    with("branch", |graph| graph.leave(outside, from))
}

/// Leaves a branch whose value nobody takes.
pub(crate) fn leave_empty() {
    with("branch", |graph| {
        graph.branches.pop();
    });
}

/// Lets a task wait for another one.
pub(crate) fn after(task: &From, upstream: &From) {
    with("after", |graph| graph.after(task, upstream));
}

/// Lets the state of a task decide the state of the run.
pub(crate) fn reference(task: &From) {
    with("reference", |graph| graph.reference(task));
}

/// Notes a mistake.
pub(crate) fn mistake(text: String) {
    with("flow", |graph| graph.note(text));
}

/// Notes that a value written in the flow cannot be JSON.
#[inline(never)]
pub(crate) fn unwritable(cause: &str) {
    with("flow", |graph| graph.unwritable(cause));
}

/// The task whose output is the flow's; a parameter goes through a task of its own.
fn output_task(from: &From) -> Option<String> {
    with("flow", |graph| {
        let index = match from {
            From::Task(index) => *index,
            other => graph.merge(vec![other.clone()], Trigger::AllSuccessful),
        };
        graph
            .tasks
            .get(index as usize)
            .map(|task| task.name.clone())
    })
}

impl Graph {
    fn call(&mut self, spec: &'static TaskSpec, is_mapped: bool, wires: &[Wire]) -> u32 {
        if let Purpose::Find { function, found } = &mut self.purpose {
            if found.is_none() && function == spec.function {
                *found = Some(spec.run);
            }
            return 0;
        }
        if is_mapped && !wires.iter().any(|wire| wire.is_each) {
            self.note(joined(&[
                "`",
                spec.name,
                "::map` has no input to map over: every one is `unmapped`",
            ]));
        }
        self.add(spec, Body::Function(owned(spec.function)), is_mapped, wires)
    }

    fn merge(&mut self, froms: Vec<From>, trigger: Trigger) -> u32 {
        if matches!(self.purpose, Purpose::Find { .. }) {
            return 0;
        }
        let spec = if matches!(trigger, Trigger::NotAllSkipped) {
            &MERGE
        } else {
            &PASS
        };
        let mut wires = Vec::new();
        for from in froms {
            wires.push(Wire {
                input: "",
                from,
                is_each: false,
            });
        }
        self.add(spec, Body::Merge, false, &wires)
    }

    fn add(&mut self, spec: &'static TaskSpec, body: Body, is_mapped: bool, wires: &[Wire]) -> u32 {
        let name = self.name(spec.name);
        for (at, wire) in wires.iter().enumerate() {
            let from = self.source(&wire.from);
            self.edges.push(Edge {
                to: name.clone(),
                input: Some(if wire.input.is_empty() {
                    decimal(at as u64 + 1)
                } else {
                    owned(wire.input)
                }),
                from,
                mapping: if wire.is_each {
                    Mapping::Each
                } else {
                    Mapping::Whole
                },
            });
        }
        let task = spec.task(name, body, is_mapped, self.branches.clone());
        self.tasks.push(task);
        u32::try_from(self.tasks.len() - 1).expect("memory ends before four thousand million tasks")
    }

    /// `fetch`, `fetch-2`, `fetch-3`.
    fn name(&mut self, name: &'static str) -> String {
        match self.names.iter_mut().find(|(used, _)| *used == name) {
            Some((_, count)) => {
                *count += 1;
                joined(&[name, "-", &decimal(*count)])
            }
            None => {
                self.names.push((name, 1));
                owned(name)
            }
        }
    }

    fn source(&mut self, from: &From) -> Source {
        match from {
            From::Task(index) => Source::Task(self.tasks[*index as usize].name.clone()),
            From::Parameter(name) => Source::Parameter(owned(name)),
            From::Constant(text) => Source::Constant(json(text.clone())),
            From::Unwritable(cause) => {
                self.unwritable(cause);
                Source::Constant(json(Vec::new()))
            }
        }
    }

    fn enter(&mut self, subject: &From, equals: &[String], negated: bool) -> usize {
        if matches!(self.purpose, Purpose::Describe) {
            let subject = self.source(subject);
            self.branches.push(Condition {
                subject,
                equals: equals.to_vec(),
                negated,
            });
        }
        self.tasks.len()
    }

    fn leave(&mut self, outside: usize, from: From) -> From {
        let is_inside = matches!(from, From::Task(index) if index as usize >= outside);
        let from = if is_inside {
            from
        } else {
            From::Task(self.merge(vec![from], Trigger::AllSuccessful))
        };
        self.branches.pop();
        from
    }

    fn after(&mut self, task: &From, upstream: &From) {
        if matches!(self.purpose, Purpose::Find { .. }) {
            return;
        }
        let (From::Task(task), From::Task(_)) = (task, upstream) else {
            self.note(owned(
                "`after` orders two tasks; a parameter is there from the start",
            ));
            return;
        };
        let from = self.source(upstream);
        let to = self.tasks[*task as usize].name.clone();
        self.edges.push(Edge {
            to,
            input: None,
            from,
            mapping: Mapping::Whole,
        });
    }

    fn reference(&mut self, task: &From) {
        if matches!(self.purpose, Purpose::Find { .. }) {
            return;
        }
        let From::Task(task) = task else {
            self.note(owned("`reference` is for tasks; a parameter has no state"));
            return;
        };
        let name = self.tasks[*task as usize].name.clone();
        if !self.reference_tasks.contains(&name) {
            self.reference_tasks.push(name);
        }
    }

    fn unwritable(&mut self, cause: &str) {
        self.note(joined(&[
            "a value in the flow cannot be written as JSON: ",
            cause,
        ]));
    }

    /// The first mistake is what the author is told.
    fn note(&mut self, text: String) {
        self.mistake.get_or_insert(text);
    }
}

/// Joins branches: what is not skipped goes on, and it is skipped itself only if all of them were.
static MERGE: TaskSpec = TaskSpec {
    trigger: Trigger::NotAllSkipped,
    skip_on_upstream_skip: false,
    ..TaskSpec::new("merge", "", "The branch that was taken.", no_body)
};

/// Passes one value on, so that it can hang on a branch or be the output.
static PASS: TaskSpec = TaskSpec::new("merge", "", "A value, passed on.", no_body);

fn no_body(_: &mut Inputs) -> Result<Value, Signal> {
    Err(Signal::fail_for_good(
        "a merge has no body: the host carries it out",
    ))
}
