//! Returns more than an output may hold.

use waft_sdk::prelude::*;

#[task]
fn large(bytes: usize) -> TaskResult<String> {
    Ok("x".repeat(bytes))
}

/// Returns so many bytes; 8 MiB by default.
#[flow]
fn output(#[default(8_388_608)] bytes: Param<usize>) -> Node<String> {
    large(bytes)
}
