//! Five tasks in a row that leave a line each in `/out/log`, for tests that kill and freeze everybody.

use std::fs::OpenOptions;
use std::io::Write;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use waft_sdk::prelude::*;

/// Writes "RUN TASK ATTEMPT MICROSECONDS", the time being that at which it begins, and works for a while.
#[task(dir = ["/out:rw"], retries = 2)]
fn step(number: u64, millis: u64) -> TaskResult<u64> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_micros();
    let own = run::current();
    let line = format!("{} {} {} {now}\n", own.flow_run_id, own.task, own.attempt);
    let mut log = OpenOptions::new()
        .create(true)
        .append(true)
        .open("/out/log")?;
    log.write_all(line.as_bytes())?;
    std::thread::sleep(Duration::from_millis(millis));
    Ok(number + 1)
}

/// Answers the number of steps.
#[flow]
fn storm(#[default(20)] millis: Param<u64>) -> Node<u64> {
    let two = step(step(0, millis), millis);
    step(step(step(two, millis), millis), millis)
}
