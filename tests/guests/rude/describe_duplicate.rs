//! Two tasks of one name.

use waft_guests::{flow, task};

waft_guests::liar!(describe);

fn describe() -> Result<waft_sdk::definition::Flow, String> {
    Ok(flow("duplicate", vec![task("a"), task("a")], Vec::new()))
}
