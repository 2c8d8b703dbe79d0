//! Shows a thousand cards, and one of two megabytes.

use waft_sdk::prelude::*;

#[task]
fn flood() -> TaskResult {
    for number in 0..1_000 {
        cards::markdown(&format!("card {number}"), "text");
    }
    cards::markdown("large", &"z".repeat(2 << 20));
    Ok(())
}

/// Shows too much.
#[flow]
fn card_flood() {
    flood();
}
