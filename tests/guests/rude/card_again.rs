//! Shows one card a hundred thousand times.

use waft_sdk::prelude::*;

#[task]
fn show(times: u32) -> TaskResult {
    for _ in 0..times {
        cards::markdown("one", "text");
    }
    Ok(())
}

/// Shows the same card so many times.
#[flow]
fn card_again(#[default(100_000)] times: Param<u32>) {
    show(times);
}
