//! Sleeps for as long as its parameter says.

use std::time::Duration;
use waft_sdk::prelude::*;

#[task(timeout = "1h")]
fn nap(millis: u64) -> TaskResult<u64> {
    std::thread::sleep(Duration::from_millis(millis));
    Ok(millis)
}

/// Sleeps.
#[flow]
fn naps(#[default(100)] millis: Param<u64>) -> Node<u64> {
    nap(millis)
}
