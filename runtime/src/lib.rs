//! Waft: a WebAssembly-sandboxed flow runtime.
//!
//! A flow compiles to one WASI component; its metadata is registered with a server; an agent claims
//! runs and executes every task attempt in a fresh wasmtime sandbox. This crate is the whole
//! program, one room a module; `ARCHITECTURE.md` is the map.

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

pub use agent::Agent;
pub use sandbox::child_main;
