//! Opens files and never closes them.

use std::fs::File;
use waft_sdk::prelude::*;

#[task(dir = ["/out:rw"])]
fn keep(count: u32) -> TaskResult<usize> {
    let mut kept = Vec::new();
    for _ in 0..count {
        kept.push(File::create("/out/file")?);
    }
    Ok(std::hint::black_box(kept).len())
}

/// Keeps so many files open.
#[flow]
fn files(#[default(10_000)] count: Param<u32>) -> Node<usize> {
    keep(count)
}
