//! The nouns of Waft and the rules between them.
//!
//! Pure: no clock, no disk, no network, no async. The same arguments give the same answer, so each
//! rule here is tested by a table. Everybody else in this crate may import from here; this room
//! imports nothing of ours.

pub mod artifact;
pub mod flow;
pub mod grant;
pub mod graph;
pub mod id;
pub mod label;
pub mod limit;
pub mod parameter;
pub mod requirement;
pub mod run;
pub mod schedule;
pub mod state;
pub mod value;
