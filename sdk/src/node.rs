//! The typed handles that a flow function passes around: values that do not exist yet.
//!
//! Only types meet here: a [`Node<String>`] is taken where a task wants a `String`, and nowhere else. What
//! is recorded stands in `graph`.

use crate::graph::{self, From as Origin};
use crate::json;
use serde::Serialize;
use std::marker::PhantomData;

/// The output of a task, known only when the run gets there.
///
/// Free to copy, and usable as the input of any number of tasks. The output of a mapped task is a
/// `Node<Vec<T>>`: mapped over again it stays element by element, taken by a plain task it is joined.
pub struct Node<T> {
    origin: NodeOrigin,
    of: PhantomData<fn() -> T>,
}

#[derive(Clone, Copy)]
enum NodeOrigin {
    Task(u32),
    Parameter(&'static str),
}

impl<T> Node<T> {
    pub(crate) fn task(index: u32) -> Self {
        Self {
            origin: NodeOrigin::Task(index),
            of: PhantomData,
        }
    }

    pub(crate) fn origin(self) -> Origin {
        match self.origin {
            NodeOrigin::Task(index) => Origin::Task(index),
            NodeOrigin::Parameter(name) => Origin::Parameter(name),
        }
    }

    /// Lets this task wait until `upstream` is over, without taking its output.
    ///
    /// The trigger of this task sees the state of `upstream` as it sees that of every other one.
    pub fn after<U>(self, upstream: &Node<U>) -> Self {
        graph::after(&self.origin(), &upstream.origin());
        self
    }

    /// Lets the state of this task decide the state of the run.
    ///
    /// As soon as one task is a reference task, only reference tasks decide; without any, the tasks do
    /// that nobody depends on.
    pub fn reference(self) -> Self {
        graph::reference(&self.origin());
        self
    }
}

impl<T> Clone for Node<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Node<T> {}

/// A parameter of the flow: a value that is given when a run is created.
///
/// An argument of the flow function, required unless it has a default:
///
/// ```
/// # use waft_sdk::prelude::*;
/// # #[task] fn add(to: u64, step: u64) -> TaskResult<u64> { Ok(to + step) }
/// #[flow]
/// fn sum(
///     /// Where to start.
///     from: Param<u64>,
///     #[default(1)] step: Param<u64>,
/// ) -> Node<u64> {
///     add(from, step)
/// }
/// ```
pub struct Param<T> {
    name: &'static str,
    of: PhantomData<fn() -> T>,
}

impl<T> Param<T> {
    pub(crate) fn new(name: &'static str) -> Self {
        Self {
            name,
            of: PhantomData,
        }
    }

    /// The parameter as a node, for places that take nothing else, such as the end of a branch.
    pub fn node(self) -> Node<T> {
        Node {
            origin: NodeOrigin::Parameter(self.name),
            of: PhantomData,
        }
    }
}

impl<T> Clone for Param<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Param<T> {}

impl<T> From<Param<T>> for Node<T> {
    fn from(param: Param<T>) -> Self {
        param.node()
    }
}

impl<T> From<&Self> for Node<T> {
    fn from(node: &Self) -> Self {
        *node
    }
}

/// What can be bound to an input of type `T`: a `Node<T>`, a `Param<T>`, or a `T` itself.
#[diagnostic::on_unimplemented(
    message = "an input of type `{T}` cannot be bound to `{Self}`",
    label = "not a `{T}`",
    note = "an input takes a `Node<{T}>`, a `Param<{T}>` or a plain `{T}`"
)]
pub trait IntoInput<T> {
    /// Where the input comes from.
    #[doc(hidden)]
    fn into_input(self) -> Origin;
}

impl<T> IntoInput<T> for Node<T> {
    fn into_input(self) -> Origin {
        self.origin()
    }
}

impl<T> IntoInput<T> for &Node<T> {
    fn into_input(self) -> Origin {
        self.origin()
    }
}

/// A task that failed or was skipped has no output: where the trigger lets it run all the same, a task
/// takes `None` for it.
impl<T> IntoInput<Option<T>> for Node<T> {
    fn into_input(self) -> Origin {
        self.origin()
    }
}

impl<T> IntoInput<Option<T>> for &Node<T> {
    fn into_input(self) -> Origin {
        self.origin()
    }
}

/// The outputs of a mapped task, `None` for each element that failed or was skipped.
impl<T> IntoInput<Vec<Option<T>>> for Node<Vec<T>> {
    fn into_input(self) -> Origin {
        self.origin()
    }
}

impl<T> IntoInput<Vec<Option<T>>> for &Node<Vec<T>> {
    fn into_input(self) -> Origin {
        self.origin()
    }
}

impl<T> IntoInput<T> for Param<T> {
    fn into_input(self) -> Origin {
        Origin::Parameter(self.name)
    }
}

impl<T> IntoInput<T> for &Param<T> {
    fn into_input(self) -> Origin {
        Origin::Parameter(self.name)
    }
}

impl<T: Serialize> IntoInput<T> for T {
    fn into_input(self) -> Origin {
        constant(&self)
    }
}

impl IntoInput<String> for &str {
    fn into_input(self) -> Origin {
        constant(self)
    }
}

/// What can be bound to an input of type `T` of a mapped task: a list of `T`, taken element by element,
/// or [`unmapped`] for one value that every element gets.
///
/// Several lists are taken side by side and end with the shortest.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be mapped over an input of type `{T}`",
    label = "not a list of `{T}`",
    note = "`map` takes a `Node<Vec<{T}>>`, a `Param<Vec<{T}>>`, a plain `Vec<{T}>`, or `unmapped(..)` for one value that every element gets"
)]
pub trait IntoMapped<T> {
    /// Where the input comes from, and whether it is taken element by element.
    #[doc(hidden)]
    fn into_mapped(self) -> (Origin, bool);
}

impl<T> IntoMapped<T> for Node<Vec<T>> {
    fn into_mapped(self) -> (Origin, bool) {
        (self.origin(), true)
    }
}

impl<T> IntoMapped<T> for &Node<Vec<T>> {
    fn into_mapped(self) -> (Origin, bool) {
        (self.origin(), true)
    }
}

impl<T> IntoMapped<Option<T>> for Node<Vec<T>> {
    fn into_mapped(self) -> (Origin, bool) {
        (self.origin(), true)
    }
}

impl<T> IntoMapped<Option<T>> for &Node<Vec<T>> {
    fn into_mapped(self) -> (Origin, bool) {
        (self.origin(), true)
    }
}

impl<T> IntoMapped<T> for Param<Vec<T>> {
    fn into_mapped(self) -> (Origin, bool) {
        (Origin::Parameter(self.name), true)
    }
}

impl<T> IntoMapped<T> for &Param<Vec<T>> {
    fn into_mapped(self) -> (Origin, bool) {
        (Origin::Parameter(self.name), true)
    }
}

impl<T: Serialize> IntoMapped<T> for Vec<T> {
    fn into_mapped(self) -> (Origin, bool) {
        (constant(&self), true)
    }
}

impl<T, I: IntoInput<T>> IntoMapped<T> for Unmapped<I> {
    fn into_mapped(self) -> (Origin, bool) {
        (self.0.into_input(), false)
    }
}

/// One value that every element of a mapped task gets; see [`unmapped`].
pub struct Unmapped<I>(I);

/// Gives every element of a mapped task the same value.
///
/// ```
/// # use waft_sdk::prelude::*;
/// # #[task] fn scale(by: u64, value: u64) -> TaskResult<u64> { Ok(by * value) }
/// #[flow]
/// fn scaled(values: Param<Vec<u64>>, by: Param<u64>) -> Node<Vec<u64>> {
///     scale::map(unmapped(by), values)
/// }
/// ```
pub fn unmapped<I>(input: I) -> Unmapped<I> {
    Unmapped(input)
}

/// A value written in the flow function, where nothing else can stand: a default, or a case.
#[diagnostic::on_unimplemented(
    message = "a value of type `{T}` is wanted here, not `{Self}`",
    label = "not a `{T}`"
)]
pub trait Literal<T> {
    /// The value as JSON text.
    #[doc(hidden)]
    fn json(self) -> String;
}

impl<T: Serialize> Literal<T> for T {
    fn json(self) -> String {
        text(&self)
    }
}

impl Literal<String> for &str {
    fn json(self) -> String {
        text(self)
    }
}

fn constant<T: Serialize + ?Sized>(value: &T) -> Origin {
    if !graph::is_describing() {
        return Origin::Constant(Vec::new());
    }
    match json::to_vec(value) {
        Ok(text) => Origin::Constant(text),
        Err(cause) => Origin::Unwritable(cause.into_text()),
    }
}

fn text<T: Serialize + ?Sized>(value: &T) -> String {
    if !graph::is_describing() {
        return String::new();
    }
    match json::to_vec(value) {
        Ok(text) => String::from_utf8(text).unwrap_or_default(),
        Err(cause) => {
            graph::unwritable(&cause.into_text());
            String::new()
        }
    }
}
