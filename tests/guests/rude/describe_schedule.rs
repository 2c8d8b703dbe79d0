//! A schedule whose runs would lack a required parameter.

use waft_guests::{flow, task};
use waft_sdk::definition::{CatchUp, Clock, Overlap, Parameter, Rule, Schedule};

waft_guests::liar!(describe);

fn describe() -> Result<waft_sdk::definition::Flow, String> {
    let mut flow = flow("schedule", vec![task("a")], Vec::new());
    flow.parameters.push(Parameter {
        name: "who".to_string(),
        description: String::new(),
        schema: r#"{"type":"string"}"#.to_string(),
        default: None,
    });
    flow.schedule = Some(Schedule {
        clocks: vec![Clock {
            name: "hourly".to_string(),
            rule: Rule::Interval(3_600_000),
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
