//! Loops as often as its parameter says, and passes the sum on from one iteration to the next.

use waft_sdk::prelude::*;

#[task]
fn count(times: u32) -> TaskResult<u32> {
    let sum = run::loop_value::<u32>()?.unwrap_or(0);
    if run::loop_count() < times {
        return Err(Signal::loop_with(sum + run::loop_count() + 1));
    }
    Ok(sum)
}

/// 1 + 2 + .. + times: 6 by default.
#[flow]
fn loops(#[default(3)] times: Param<u32>) -> Node<u32> {
    count(times)
}
