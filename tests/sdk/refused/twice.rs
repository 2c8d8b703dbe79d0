//! An option that is given twice.

use waft_sdk::prelude::*;

#[task(retries = 3, retries = 4)]
fn double(n: u64) -> TaskResult<u64> {
    Ok(n * 2)
}

fn main() {}
