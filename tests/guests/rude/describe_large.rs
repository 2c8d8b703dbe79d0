//! A definition of more than 2 MiB.

use waft_guests::{flow, task};

waft_guests::liar!(describe);

fn describe() -> Result<waft_sdk::definition::Flow, String> {
    let mut large = task("a");
    large.description = "large ".repeat(400_000);
    Ok(flow("large", vec![large], Vec::new()))
}
