//! Makes resources and never drops them.

use waft_sdk::bindings::wasi::http::types::Fields;
use waft_sdk::prelude::*;

#[task]
fn keep(count: u32) -> TaskResult<usize> {
    let kept: Vec<Fields> = (0..count).map(|_| Fields::new()).collect();
    Ok(std::hint::black_box(kept).len())
}

/// Keeps so many handles.
#[flow]
fn handles(#[default(100_000)] count: Param<u32>) -> Node<usize> {
    keep(count)
}
