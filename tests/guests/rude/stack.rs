//! Calls itself until the stack ends.

use waft_sdk::prelude::*;

fn deeper(depth: u64) -> u64 {
    let here = std::hint::black_box([depth; 64]);
    if depth == u64::MAX {
        here[0]
    } else {
        deeper(depth + 1) + here[1]
    }
}

#[task]
fn fall() -> TaskResult<u64> {
    Ok(deeper(0))
}

/// Ends the stack.
#[flow]
fn stack() -> Node<u64> {
    fall()
}
