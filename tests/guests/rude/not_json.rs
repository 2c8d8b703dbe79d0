//! Says that its output is JSON, and it is not; then maps over it.

use waft_sdk::prelude::*;

#[task]
fn lie() -> TaskResult<Raw> {
    Ok(Raw::new("application/json", *b"[1, 2"))
}

#[task]
fn numbers(raw: Raw) -> TaskResult<Vec<u64>> {
    Err(Signal::success("no check", raw))
}

#[task]
fn double(value: u64) -> TaskResult<u64> {
    Ok(value * 2)
}

/// Maps over what is no array.
#[flow]
fn not_json() -> Node<Vec<u64>> {
    double::map(numbers(lie()))
}
