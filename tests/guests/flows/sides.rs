//! Three tasks in a row that leave a line each in `/out/log`, for tests that kill what runs them.

use std::fs::OpenOptions;
use std::io::Write;
use std::time::Duration;
use waft_sdk::prelude::*;

/// Writes "begin KEY ATTEMPT", sleeps, and writes "end KEY ATTEMPT".
#[task(dir = ["/out:rw"], retries = 2)]
fn step(number: u64, millis: u64) -> TaskResult<u64> {
    let mut log = OpenOptions::new()
        .create(true)
        .append(true)
        .open("/out/log")?;
    let line = |what: &str| format!("{what} {} {}\n", run::idempotency_key(), run::attempt());
    log.write_all(line("begin").as_bytes())?;
    std::thread::sleep(Duration::from_millis(millis));
    log.write_all(line("end").as_bytes())?;
    Ok(number + 1)
}

/// Answers the number of steps.
#[flow]
fn sides(#[default(300)] millis: Param<u64>) -> Node<u64> {
    step(step(step(0, millis), millis), millis)
}
