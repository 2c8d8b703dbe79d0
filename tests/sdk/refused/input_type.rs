//! An input that serde cannot read, and an output that it cannot write.

use waft_sdk::prelude::*;

struct Handle;

#[task]
fn a(handle: Handle) -> TaskResult<u64> {
    let _ = handle;
    Ok(1)
}

#[task]
fn b() -> TaskResult<Handle> {
    Ok(Handle)
}

fn main() {}
