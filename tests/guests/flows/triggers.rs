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

#[task]
fn odd(n: u64) -> TaskResult<u64> {
    match n % 2 {
        0 => Err(Signal::fail("even")),
        _ => Ok(n),
    }
}

/// Takes what has no output as none.
#[task(trigger = all_finished)]
fn rest(broken: Option<u64>, whole: Option<u64>, odds: Vec<Option<u64>>) -> TaskResult<String> {
    Ok(format!("{broken:?} {whole:?} {odds:?}"))
}

#[task(trigger = all_finished)]
fn last(cleaned: String, half: String, rest: String) -> TaskResult<String> {
    Ok(format!("{cleaned}, {half}, {rest}"))
}

/// Success, though a task fails.
#[flow]
fn triggers() -> Node<String> {
    let (breaks, works) = (breaks(), works());
    let cleaned = on_failure().after(&breaks).after(&works);
    let half = on_half().after(&breaks).after(&works);
    let rest = rest(breaks, works, odd::map(vec![1, 2, 3]));
    last(cleaned, half, rest).reference()
}
