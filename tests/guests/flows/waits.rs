//! Asks to be tried again after so many seconds, until the attempt that its parameter names; each
//! attempt leaves a line in `/out/log`.

use std::time::Duration;
use waft_guests::note;
use waft_sdk::prelude::*;

#[task(retries = 5, dir = ["/out:rw"])]
fn wait(until: u32, seconds: u64) -> TaskResult<u32> {
    let attempt = run::attempt();
    note(&format!("wait {attempt}"))?;
    match attempt < until {
        true => Err(Signal::retry_after(
            Duration::from_secs(seconds),
            format!("attempt {attempt} of {until}"),
        )),
        false => Ok(attempt),
    }
}

#[task(dir = ["/out:rw"])]
fn after(attempt: u32) -> TaskResult<u32> {
    note("after")?;
    Ok(attempt)
}

/// Answers the number of the attempt that went well.
#[flow]
fn waits(#[default(2)] until: Param<u32>, #[default(3600)] seconds: Param<u64>) -> Node<u32> {
    after(wait(until, seconds))
}
