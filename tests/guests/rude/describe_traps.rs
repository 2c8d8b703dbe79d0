//! Traps when it is asked what it is.

waft_guests::liar!(describe);

fn describe() -> Result<waft_sdk::definition::Flow, String> {
    panic!("asked what it is")
}
