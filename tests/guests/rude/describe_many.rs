//! 5,001 tasks: one more than a flow may have.

use waft_guests::{flow, task};

waft_guests::liar!(describe);

fn describe() -> Result<waft_sdk::definition::Flow, String> {
    Ok(flow(
        "many",
        (0..5_001)
            .map(|number| task(&format!("t{number}")))
            .collect(),
        Vec::new(),
    ))
}
