//! An edge from a task that does not exist.

use waft_guests::{edge, flow, task};

waft_guests::liar!(describe);

fn describe() -> Result<waft_sdk::definition::Flow, String> {
    Ok(flow("nowhere", vec![task("a")], vec![edge("ghost", "a")]))
}
