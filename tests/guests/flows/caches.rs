//! Tasks whose outputs serve later runs. Each logs when it really runs.

use waft_sdk::prelude::*;

#[task(cache_for = "1h")]
fn slow(value: u64) -> TaskResult<u64> {
    log::info!("computed {value}");
    Ok(value * value)
}

#[task(cache_for = "forever", cache_key = "one-for-all")]
fn keyed(value: u64) -> TaskResult<u64> {
    log::info!("keyed {value}");
    Ok(value)
}

#[task]
fn both(square: u64, first: u64) -> TaskResult<Vec<u64>> {
    Ok(vec![square, first])
}

/// The square of the value, and the first value that was ever given.
#[flow]
fn caches(#[default(7)] value: Param<u64>) -> Node<Vec<u64>> {
    both(slow(value), keyed(value))
}
