//! Branches: tasks that run only where a value says so.
//!
//! A branch is a closure; every task made inside hangs on it and is Skipped where the branch is not
//! taken. What comes out of the branches is joined into one node.

use crate::definition::Trigger;
use crate::graph::{self, From};
use crate::node::{IntoInput, Literal, Node};
use crate::text::joined;

/// Takes one of two branches.
///
/// ```
/// # use waft_sdk::prelude::*;
/// # #[task] fn is_large(n: u64) -> TaskResult<bool> { Ok(n > 9) }
/// # #[task] fn slow(n: u64) -> TaskResult<u64> { Ok(n) }
/// # #[task] fn fast(n: u64) -> TaskResult<u64> { Ok(n) }
/// #[flow]
/// fn sized(n: Param<u64>) -> Node<u64> {
///     ifelse(is_large(n), || slow(n), || fast(n))
/// }
/// ```
pub fn ifelse<T>(
    condition: impl IntoInput<bool>,
    then: impl FnOnce() -> Node<T>,
    otherwise: impl FnOnce() -> Node<T>,
) -> Node<T> {
    let condition = condition.into_input();
    let is_true = [String::from("true")];
    let then = branch(&condition, &is_true, false, then);
    let otherwise = branch(&condition, &is_true, true, otherwise);
    Node::task(graph::merge(vec![then, otherwise], Trigger::NotAllSkipped))
}

/// Runs what the closure adds only where the condition is true, and hands on what it returns.
///
/// A node that comes out of it is skipped where the condition is false, and so is what takes it.
pub fn when<R>(condition: impl IntoInput<bool>, then: impl FnOnce() -> R) -> R {
    graph::enter(&condition.into_input(), &[String::from("true")], false);
    let made = then();
    graph::leave_empty();
    made
}

/// Takes the branch whose case equals a value: a string, a bool, an integer, or an enum of ours.
///
/// ```
/// # use waft_sdk::prelude::*;
/// # #[task] fn km(n: u64) -> TaskResult<u64> { Ok(n) }
/// # #[task] fn miles(n: u64) -> TaskResult<u64> { Ok(n * 1609 / 1000) }
/// #[flow]
/// fn distance(unit: Param<String>, n: Param<u64>) -> Node<u64> {
///     switch(unit).case("mi", || miles(n)).otherwise(|| km(n))
/// }
/// ```
pub fn switch<S: Subject>(subject: impl Into<Node<S>>) -> Switch<S> {
    Switch(subject.into())
}

/// Joins nodes of which some are skipped: the first that was not goes on.
///
/// Skipped only if every one was.
pub fn merge<T>(nodes: impl IntoIterator<Item = Node<T>>) -> Node<T> {
    let froms = nodes.into_iter().map(Node::origin).collect();
    Node::task(graph::merge(froms, Trigger::NotAllSkipped))
}

/// A type that [`switch`] can compare: strings, bools, integers, and enums that derive
/// [`Schema`](crate::Schema).
#[diagnostic::on_unimplemented(
    message = "`switch` cannot compare values of type `{Self}`",
    note = "it compares strings, bools, integers, and unit enums that derive `Schema`"
)]
pub trait Subject {}

macro_rules! subjects {
    ($($of:ty)*) => { $(impl Subject for $of {})* };
}

subjects!(String bool u8 u16 u32 u64 i8 i16 i32 i64);

/// A [`switch`] before its first case.
#[must_use = "a switch without a case adds nothing"]
pub struct Switch<S>(Node<S>);

impl<S: Subject> Switch<S> {
    /// Adds the first branch.
    pub fn case<T>(self, equals: impl Literal<S>, branch: impl FnOnce() -> Node<T>) -> Cases<S, T> {
        Cases {
            subject: self.0,
            seen: Vec::new(),
            branches: Vec::new(),
            of: std::marker::PhantomData,
        }
        .case(equals, branch)
    }
}

/// A [`switch`] with its cases so far.
#[must_use = "a switch ends with `otherwise` or `end`"]
pub struct Cases<S, T> {
    subject: Node<S>,
    seen: Vec<String>,
    branches: Vec<From>,
    of: std::marker::PhantomData<fn() -> T>,
}

impl<S: Subject, T> Cases<S, T> {
    /// Adds a branch, taken if the subject equals the value.
    pub fn case(mut self, equals: impl Literal<S>, body: impl FnOnce() -> Node<T>) -> Self {
        let equals = [equals.json()];
        if self.seen.contains(&equals[0]) && graph::is_describing() {
            graph::mistake(joined(&["`switch` has the case `", &equals[0], "` twice"]));
        }
        self.branches
            .push(branch(&self.subject.origin(), &equals, false, body));
        let [equals] = equals;
        self.seen.push(equals);
        self
    }

    /// Adds the branch that is taken if no case is, and ends the switch.
    pub fn otherwise(mut self, body: impl FnOnce() -> Node<T>) -> Node<T> {
        self.branches
            .push(branch(&self.subject.origin(), &self.seen, true, body));
        self.end()
    }

    /// Ends the switch. Where no case is taken, the node is skipped.
    pub fn end(self) -> Node<T> {
        Node::task(graph::merge(self.branches, Trigger::NotAllSkipped))
    }
}

fn branch<T>(
    subject: &From,
    equals: &[String],
    negated: bool,
    body: impl FnOnce() -> Node<T>,
) -> From {
    let outside = graph::enter(subject, equals, negated);
    let node = body();
    graph::leave(outside, node.origin())
}
