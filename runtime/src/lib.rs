//! Waft: a WebAssembly-sandboxed flow runtime.
//!
//! A flow compiles to one WASI component; its metadata is registered with a server; an agent claims
//! runs and executes every task attempt in a fresh wasmtime sandbox. This crate is the whole
//! program, one room a module; `ARCHITECTURE.md` is the map.
//!
//! A Rust program may be an agent itself: [`AgentSettings::new`], [`Agent::start`], and [`child_main`]
//! before anything else, as the sandbox starts the same program again to compile.
//! `examples/embed.rs` of this crate is such a program, with a server and a flow beside the agent. Other
//! parts are public for the sake of the command line and the tests, and may change with any version.

pub mod agent;
mod bounded;
pub mod cli;
pub mod client;
pub mod clock;
pub mod config;
pub mod model;
pub mod runner;
pub mod sandbox;
pub mod server;
pub mod storage;
pub mod tls;
pub mod wire;

pub use agent::{Agent, AgentSettings};
pub use sandbox::child_main;
