//! Never answers what it is.

waft_guests::liar!(describe);

fn describe() -> Result<waft_sdk::definition::Flow, String> {
    let mut turns: u64 = 0;
    loop {
        turns = std::hint::black_box(turns.wrapping_add(1));
    }
}
