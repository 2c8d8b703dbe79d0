//! Fails with the message it is given; what is downstream never runs.

use waft_sdk::prelude::*;

#[task]
fn fail(message: String) -> TaskResult<u64> {
    Err(Signal::fail(message))
}

#[task]
fn next(value: u64) -> TaskResult<u64> {
    Ok(value)
}

/// Fails.
#[flow]
fn fails(#[default("it broke")] message: Param<String>) -> Node<u64> {
    next(fail(message))
}
