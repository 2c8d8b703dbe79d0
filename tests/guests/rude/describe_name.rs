//! A name with a slash and a control character.

use waft_guests::{flow, task};

waft_guests::liar!(describe);

fn describe() -> Result<waft_sdk::definition::Flow, String> {
    Ok(flow("../na\u{7}me", vec![task("a")], Vec::new()))
}
