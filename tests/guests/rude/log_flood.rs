//! Logs 100,000 lines, and one of a megabyte.

use waft_sdk::prelude::*;

#[task]
fn flood() -> TaskResult {
    log::write(log::Level::Info, &"y".repeat(1 << 20));
    for number in 0..100_000 {
        log::info!("line {number}");
    }
    Ok(())
}

/// Logs too much.
#[flow]
fn log_flood() {
    flood();
}
