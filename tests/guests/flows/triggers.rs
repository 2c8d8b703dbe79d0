//! One task fails, others run because of it or in spite of it; a reference task decides the run.

use waft_sdk::prelude::*;

#[task]
fn breaks() -> TaskResult<u64> {
    Err(Signal::fail("as planned"))
}

#[task]
fn works() -> TaskResult<u64> {
    Ok(1)
}

#[task(trigger = any_failed)]
fn on_failure() -> TaskResult<String> {
    Ok("cleaned up".to_string())
}

#[task(trigger = some_successful(at_least = 1, at_most = "50%"))]
fn on_half() -> TaskResult<String> {
    Ok("half".to_string())
}

#[task(trigger = all_finished)]
fn last(cleaned: String, half: String) -> TaskResult<String> {
    Ok(format!("{cleaned}, {half}"))
}

/// Success, though a task fails.
#[flow]
fn triggers() -> Node<String> {
    let (breaks, works) = (breaks(), works());
    let cleaned = on_failure().after(&breaks).after(&works);
    let half = on_half().after(&breaks).after(&works);
    last(cleaned, half).reference()
}
