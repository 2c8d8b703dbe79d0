//! Write Waft flows in Rust.
//!
//! A flow is a graph of tasks. `#[task]` turns a function into a step, `#[flow]` turns a function that
//! calls steps into the graph, and the crate compiles to one WASI component. A task body runs in a
//! sandbox of its own that starts with nothing: what it needs of the network, of folders, of the
//! environment and of secrets stands in its attribute.
//!
//! ```
//! use waft_sdk::prelude::*;
//!
//! #[task(retries = 3, retry_delay = "10s")]
//! fn greet(name: String) -> TaskResult<String> {
//!     log::info!("greeting {name}");
//!     Ok(format!("Hello, {name}!"))
//! }
//!
//! /// Says hello.
//! #[flow]
//! fn hello(#[default("world")] name: Param<String>) -> Node<String> {
//!     greet(name)
//! }
//!
//! // The body of a task is a plain function for tests:
//! assert_eq!(greet::run("Ada".to_string()).unwrap(), "Hello, Ada!");
//! ```
//!
//! Off wasm32 everything a task asks of its host is answered by the fakes of the `testing` module, so
//! that `cargo test` in a flow crate needs no sandbox.
//!
//! # What a flow function is written with
//!
//! Only types meet in a flow function: a [`Node<String>`](Node) is the output of a task, a
//! [`Param<String>`](Param) a parameter of the run, and either is taken where a task wants a `String`, and
//! nowhere else. [`task`] and [`flow`] say what their attributes take.
//!
//! | to | write |
//! |---|---|
//! | wait for a task without taking its output | [`Node::after`] |
//! | run a task once for each element | `double::map(numbers)`, and [`unmapped`] around what is the same for all |
//! | take one of two branches | [`ifelse`] |
//! | do something only where a value says so | [`when`] |
//! | take the branch that equals a value | [`switch`] with [`Switch::case`], [`Cases::case`], [`Cases::otherwise`] |
//! | go on with whichever branch was taken | [`merge`] |
//! | let a task decide how the run ends | [`Node::reference`] |
//!
//! A branch is a closure: every task made inside hangs on it and is Skipped where the branch is not taken.
//! What comes out of the branches of [`ifelse`] and [`switch`] is joined into one node already; [`merge`]
//! joins nodes that were made with [`when`].
//!
//! ```
//! # use waft_sdk::prelude::*;
//! # #[task] fn is_large(n: u64) -> TaskResult<bool> { Ok(n > 9) }
//! # #[task] fn slow(n: u64) -> TaskResult<u64> { Ok(n) }
//! # #[task] fn fast(n: u64) -> TaskResult<u64> { Ok(n) }
//! # #[task] fn report(n: u64) -> TaskResult<()> { let _ = n; Ok(()) }
//! #[flow]
//! fn sized(n: Param<u64>) -> Node<()> {
//!     let made = ifelse(is_large(n), || slow(n), || fast(n));
//!     report(made)
//! }
//! ```
//!
//! # When a flow runs unasked
//!
//! The attribute of the flow says when, what is left out, and what is done about runs that were missed or
//! meet; [`flow`] has the whole table.
//!
//! ```
//! # use waft_sdk::prelude::*;
//! # #[task] fn count(region: String) -> TaskResult<u64> { Ok(region.len() as u64) }
//! #[flow(
//!     schedule = [
//!         cron("0 2 * * *", tz = "Europe/Berlin", name = "nightly", params(region = "eu")),
//!         interval("6h", name = "fresh", starts = "2026-12-01T00:00:00Z", params(region = "us")),
//!     ],
//!     filters = [weekdays("mon-fri"), except("2026-12-25", "2027-01-01")],
//!     catch_up = "all",
//!     overlap = "queue",
//! )]
//! fn counted(region: Param<String>) -> Node<u64> {
//!     count(region)
//! }
//! # let flow = waft_sdk::testing::describe::<counted>().unwrap();
//! # assert_eq!(flow.schedule.unwrap().clocks.len(), 2);
//! ```
//!
//! # What a task body may ask of its host
//!
//! [`log`], [`run`], [`secrets`], [`cards`] and [`http`].
//!
//! # The allocator
//!
//! The feature `allocator`, on by default, gives the component a small allocator (talc) in place of libc's.
//! A flow that brings a `#[global_allocator]` of its own leaves it out with `default-features = false`.

extern crate self as waft_sdk;

pub mod bindings;
mod branch;
pub mod cards;
mod export;
mod graph;
#[cfg(all(target_family = "wasm", feature = "allocator"))]
mod heap;
pub mod http;
mod json;
pub mod log;
mod node;
pub mod prelude;
pub mod run;
mod schema;
pub mod secrets;
mod signal;
mod spec;
#[cfg(not(target_arch = "wasm32"))]
pub mod testing;
mod text;
mod value;

pub use bindings::exports::waft::flow::definition;
pub use branch::{Cases, Subject, Switch, ifelse, merge, switch, when};
pub use export::Flow;
pub use node::{IntoInput, IntoMapped, Literal, Node, Param, Unmapped, unmapped};
pub use schema::Schema;
pub use serde_json;
pub use signal::{Failure, Signal, TaskResult};
pub use value::{FromValue, IntoValue, Raw};
pub use waft_sdk_macros::{Schema, flow, task};

/// What the attributes expand to. No promise is made about it.
#[doc(hidden)]
pub mod __private {
    pub use crate::definition;
    pub use crate::export::{Component, FlowOutput, Parameter};
    pub use crate::graph::{From, Wire, call, parameter};
    pub use crate::schema::Properties;
    pub use crate::signal::{NoResult, Outcome, Probe, plain};
    pub use crate::spec::{
        ClockSpec, FilterSpec, Given, RuleSpec, ScheduleSpec, TaskSpec, schedule,
    };
    pub use crate::value::{Inputs, Value};
}
