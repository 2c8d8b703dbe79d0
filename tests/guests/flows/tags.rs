//! Tasks with tags, each of which leaves a line in `/out/log` when it begins and when it ends.

use std::time::Duration;
use waft_guests::note;
use waft_sdk::prelude::*;

/// Sleeps between two lines; the first attempt fails if it is told to.
fn work(name: &str, millis: u64, fails: bool) -> TaskResult<()> {
    note(&format!("+{name}"))?;
    std::thread::sleep(Duration::from_millis(millis));
    note(&format!("-{name}"))?;
    match fails && run::attempt() == 1 {
        true => Err(Signal::fail("as it was told to")),
        false => Ok(()),
    }
}

#[task(tags = ["db"], dir = ["/out:rw"], retries = 1)]
fn query(number: u64, millis: u64, fails: bool) -> TaskResult<u64> {
    work("query", millis, fails)?;
    Ok(number)
}

#[task(tags = ["api", "db"], dir = ["/out:rw"])]
fn sync(numbers: Vec<u64>, millis: u64) -> TaskResult<u64> {
    work("sync", millis, false)?;
    Ok(numbers.iter().sum())
}

/// Answers the sum of the numbers.
#[flow]
fn tags(
    #[default(vec![1])] numbers: Param<Vec<u64>>,
    #[default(0)] millis: Param<u64>,
    #[default(false)] fails: Param<bool>,
) -> Node<u64> {
    let queried = query::map(numbers, unmapped(millis), unmapped(fails));
    sync(queried, millis)
}
