//! Says that it does not know what it is.

waft_guests::liar!(describe);

fn describe() -> Result<waft_sdk::definition::Flow, String> {
    Err("this flow was left unfinished".to_string())
}
