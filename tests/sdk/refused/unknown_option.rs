//! An option that does not exist, but nearly.

use waft_sdk::prelude::*;

#[task(retrys = 3)]
fn double(n: u64) -> TaskResult<u64> {
    Ok(n * 2)
}

#[task(color = "green")]
fn triple(n: u64) -> TaskResult<u64> {
    Ok(n * 3)
}

#[flow(retries = 3)]
fn wired() {}

#[task(retry = 3)]
fn c() -> TaskResult<()> {
    Ok(())
}

fn main() {}
