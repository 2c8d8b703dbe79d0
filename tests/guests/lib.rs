//! What guests share. Each guest is an `[[example]]` of this package.
//!
//! Most of it is for those that speak the contract by hand: the rude guests that lie when they are asked
//! what they are. Those that only misbehave in a task are written with the SDK like any flow.

use std::fs::OpenOptions;
use std::io::{self, Write};

use waft_sdk::bindings::exports::waft::flow::{definition, tasks};
use waft_sdk::bindings::waft::flow::types::{NamedValue, Value};
use waft_sdk::definition::{
    Body, Edge, Flow, Grants, Limits, Mapping, OnLost, Source, Task, Trigger,
};

/// A guest that answers `describe` as it likes and whose tasks all answer `null`.
pub trait Liar {
    /// What it says it is.
    fn describe() -> Result<Flow, String>;
}

/// The component of a [`Liar`].
pub struct Raw<L>(std::marker::PhantomData<L>);

impl<L: Liar> definition::Guest for Raw<L> {
    fn describe() -> Result<Flow, String> {
        L::describe()
    }
}

impl<L: Liar> tasks::Guest for Raw<L> {
    fn run(_: String, _: Vec<NamedValue>) -> Result<Value, tasks::Signal> {
        Ok(Value {
            content_type: "application/json".to_string(),
            bytes: b"null".to_vec(),
        })
    }
}

/// Exports a [`Liar`] whose `describe` is the given function.
#[macro_export]
macro_rules! liar {
    ($describe:path) => {
        struct Guest;
        impl $crate::Liar for Guest {
            fn describe() -> Result<waft_sdk::definition::Flow, String> {
                $describe()
            }
        }
        type Component = $crate::Raw<Guest>;
        waft_sdk::bindings::export!(Component);
    };
}

/// Leaves a line in `/out/log`.
///
/// # Errors
///
/// Those of the file.
pub fn note(line: &str) -> io::Result<()> {
    let mut log = OpenOptions::new();
    let mut log = log.create(true).append(true).open("/out/log")?;
    log.write_all(format!("{line}\n").as_bytes())
}

/// A flow with these tasks and edges, and nothing else.
pub fn flow(name: &str, tasks: Vec<Task>, edges: Vec<Edge>) -> Flow {
    Flow {
        name: name.to_string(),
        description: String::new(),
        parameters: Vec::new(),
        tasks,
        edges,
        reference_tasks: Vec::new(),
        output: None,
        schedule: None,
    }
}

/// A task that asks for nothing.
pub fn task(name: &str) -> Task {
    Task {
        name: name.to_string(),
        description: String::new(),
        body: Body::Function("nothing".to_string()),
        mapped: false,
        conditions: Vec::new(),
        trigger: Trigger::AllSuccessful,
        skip_on_upstream_skip: true,
        retries: None,
        timeout_ms: None,
        tags: Vec::new(),
        cache: None,
        grants: Grants {
            net: Vec::new(),
            dirs: Vec::new(),
            env: Vec::new(),
            secrets: Vec::new(),
        },
        limits: Limits {
            memory_bytes: None,
            cpu_ms: None,
            output_bytes: None,
            parallel: None,
        },
        on_lost: OnLost::Retry,
    }
}

/// An edge from one task to another.
pub fn edge(from: &str, to: &str) -> Edge {
    Edge {
        to: to.to_string(),
        input: None,
        from: Source::Task(from.to_string()),
        mapping: Mapping::Whole,
    }
}
