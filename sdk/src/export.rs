//! The component that `#[flow]` makes of a flow function: the two exports of the contract.

use crate::bindings::exports::waft::flow::{definition, tasks};
use crate::bindings::waft::flow::types::NamedValue;
use crate::graph::{self, From};
use crate::node::{Literal, Node, Param};
use crate::text::{joined, owned};
use crate::value::{Inputs, Value};
use crate::{Schema, Signal};
use std::marker::PhantomData;
use std::mem::ManuallyDrop;

/// A flow function, as a type of the same name. Written by `#[flow]`.
pub trait Flow {
    /// The name under which it is registered.
    const NAME: &'static str;
    /// For a human; the doc comment of the function.
    const DESCRIPTION: &'static str;

    /// When it runs unasked. Written only where there is a schedule: no other flow carries the code.
    #[doc(hidden)]
    fn schedule() -> Result<Option<definition::Schedule>, String> {
        Ok(None)
    }

    /// Calls the flow function.
    #[doc(hidden)]
    fn build() -> Option<From>;
}

/// Describes a flow: its graph, parameters, schedule and grants.
///
/// # Errors
///
/// Answers the first mistake in the flow that the compiler could not see.
pub(crate) fn describe<F: Flow>() -> Result<definition::Flow, String> {
    let drawing = graph::describe(F::build)?;
    Ok(definition::Flow {
        name: owned(F::NAME),
        description: owned(F::DESCRIPTION),
        parameters: drawing.parameters,
        tasks: drawing.tasks,
        edges: drawing.edges,
        reference_tasks: drawing.reference_tasks,
        output: drawing.output,
        schedule: F::schedule()?,
    })
}

/// Runs one attempt of a task of the flow.
pub(crate) fn run<F: Flow>(function: String, inputs: Vec<NamedValue>) -> Result<Value, Signal> {
    match graph::find(function.clone(), F::build) {
        // What the task does not take ends with the attempt.
        Some(body) => body(&mut ManuallyDrop::new(Inputs::new(inputs))),
        None => Err(Signal::fail_for_good(joined(&[
            "this component has no task function `",
            &function,
            "`",
        ]))),
    }
}

/// The component of one flow.
#[doc(hidden)]
pub struct Component<F>(PhantomData<F>);

impl<F: Flow> definition::Guest for Component<F> {
    fn describe() -> Result<definition::Flow, String> {
        describe::<F>()
    }
}

impl<F: Flow> tasks::Guest for Component<F> {
    fn run(function: String, inputs: Vec<NamedValue>) -> Result<Value, tasks::Signal> {
        run::<F>(function, inputs).map_err(Signal::into_wit)
    }
}

/// What a flow function may return.
#[doc(hidden)]
#[diagnostic::on_unimplemented(
    message = "a flow cannot return `{Self}`",
    label = "not the output of a flow",
    note = "return the `Node` whose output is the result of the run, or nothing"
)]
pub trait FlowOutput {
    /// What the result of the run is.
    fn output(self) -> Option<From>;
}

impl<T> FlowOutput for Node<T> {
    fn output(self) -> Option<From> {
        Some(self.origin())
    }
}

impl FlowOutput for () {
    fn output(self) -> Option<From> {
        None
    }
}

/// What an argument of a flow function may be.
#[doc(hidden)]
pub trait Parameter {
    /// What the run gives it.
    type Of: Schema;

    /// The JSON text of a default of the right type.
    fn default(value: impl Literal<Self::Of>) -> String {
        value.json()
    }
}

impl<T: Schema> Parameter for Param<T> {
    type Of = T;
}
