//! A cron line that no clock understands.

use waft_guests::{flow, task};
use waft_sdk::definition::{CatchUp, Clock, Overlap, Rule, Schedule};

waft_guests::liar!(describe);

fn describe() -> Result<waft_sdk::definition::Flow, String> {
    let mut flow = flow("cron", vec![task("a")], Vec::new());
    flow.schedule = Some(Schedule {
        clocks: vec![Clock {
            name: "never".to_string(),
            rule: Rule::Cron(("61 25 * * *".to_string(), "Mars/Olympus".to_string())),
            starts_at: None,
            ends_at: None,
            parameters: Vec::new(),
        }],
        filters: Vec::new(),
        catch_up: CatchUp::Last,
        overlap: Overlap::Allow,
    });
    Ok(flow)
}
