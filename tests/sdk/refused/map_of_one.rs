//! A map over what is no list.

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
fn wired() -> Node<Vec<u64>> {
    double::map(double(1))
}

fn main() {}
