//! Fails until the attempt that its parameter names; three retries, that is four attempts at most.

use waft_sdk::prelude::*;

#[task(
    retries = 3,
    retry_delay = "50ms",
    backoff = "exponential",
    retry_delay_max = "1s",
    jitter = 0.1
)]
fn stubborn(until: u32) -> TaskResult<u32> {
    match run::attempt() {
        attempt if attempt < until => Err(Signal::fail(format!("attempt {attempt} of {until}"))),
        attempt => Ok(attempt),
    }
}

/// Answers the number of the attempt that went well.
#[flow]
fn retries(#[default(3)] until: Param<u32>) -> Node<u32> {
    stubborn(until)
}
