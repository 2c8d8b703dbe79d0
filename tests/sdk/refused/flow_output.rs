//! A flow that returns a value.

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
fn wired() -> u64 {
    double(1);
    2
}

fn main() {}
