//! Two tasks that wait for each other.

use waft_guests::{edge, flow, task};

waft_guests::liar!(describe);

fn describe() -> Result<waft_sdk::definition::Flow, String> {
    Ok(flow(
        "cycle",
        vec![task("a"), task("b")],
        vec![edge("a", "b"), edge("b", "a")],
    ))
}
