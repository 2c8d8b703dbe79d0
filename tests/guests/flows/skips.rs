//! A task skips itself: what follows is skipped too, but for the task that says otherwise.

use waft_sdk::prelude::*;

#[task]
fn maybe(go: bool) -> TaskResult<u64> {
    if go {
        Ok(1)
    } else {
        Err(Signal::skip("told not to go"))
    }
}

#[task]
fn follows(value: u64) -> TaskResult<u64> {
    Ok(value + 1)
}

#[task(skip_on_upstream_skip = false)]
fn always() -> TaskResult<String> {
    Ok("ran anyway".to_string())
}

/// Skips by default.
#[flow]
fn skips(#[default(false)] go: Param<bool>) -> Node<String> {
    let maybe = maybe(go);
    follows(maybe);
    always().after(&maybe)
}
