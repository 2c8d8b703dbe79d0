//! A `Param<String>` into a task that takes a `u64`.

use waft_sdk::prelude::*;

#[task]
fn name() -> TaskResult<String> {
    Ok(String::new())
}

#[task]
fn double(n: u64) -> TaskResult<u64> {
    Ok(n * 2)
}

#[flow]
fn wired(name: Param<String>) -> Node<u64> {
    double(name)
}

fn main() {}
