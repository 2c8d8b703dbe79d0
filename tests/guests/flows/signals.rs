//! Ends as its parameter says: `success`, `fail`, `final`, `retry` or `skip`.

use std::time::Duration;
use waft_sdk::prelude::*;

#[task(retries = 2, retry_delay = "20ms")]
fn end(how: String) -> TaskResult<String> {
    match how.as_str() {
        "success" => Err(Signal::success("early", "done")),
        "fail" => Err(Signal::fail("failed on purpose")),
        "final" => Err(Signal::fail_for_good("failed for good")),
        "retry" if run::attempt() < 3 => {
            Err(Signal::retry_after(Duration::from_millis(30), "not yet"))
        }
        "retry" => Ok("third time".to_string()),
        "skip" => Err(Signal::skip("skipped on purpose")),
        other => Err(Signal::fail_for_good(format!("no such end: `{other}`"))),
    }
}

/// Ends in the way it is told.
#[flow]
fn signals(#[default("success")] how: Param<String>) -> Node<String> {
    end(how)
}
