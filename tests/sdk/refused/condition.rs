//! A condition that is no bool.

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
fn wired() -> Node<u64> {
    ifelse(name(), || double(1), || double(2))
}

fn main() {}
