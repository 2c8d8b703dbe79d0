//! Panics.

use waft_sdk::prelude::*;

#[task]
fn panic(message: String) -> TaskResult<u64> {
    panic!("{message}")
}

/// Panics.
#[flow]
fn panics(#[default("no way out")] message: Param<String>) -> Node<u64> {
    panic(message)
}
