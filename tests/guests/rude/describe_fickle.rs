//! Says each time something else: it counts how often it can look at a timer before that is over.

use waft_guests::{flow, task};
use waft_sdk::bindings::wasi::clocks::monotonic_clock::subscribe_duration;

waft_guests::liar!(describe);

fn describe() -> Result<waft_sdk::definition::Flow, String> {
    let mut said = flow("fickle", vec![task("a")], Vec::new());
    for _ in 0..3 {
        let timer = subscribe_duration(20_000_000);
        let mut looks: u32 = 0;
        while !timer.ready() {
            looks += 1;
        }
        said.description += &format!("{looks} looks; ");
    }
    Ok(said)
}
