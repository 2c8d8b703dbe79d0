//! Shows every kind of card.

use waft_sdk::prelude::*;

#[task]
fn show() -> TaskResult {
    cards::progress(1, 2, "half way");
    cards::markdown("Report", "# All is **well**");
    cards::table("Counts", ["name", "count"], [["a", "1"], ["b", "2"]]);
    cards::link("Source", "https://example.org/");
    cards::markdown("Report", "# All is well, *replaced*");
    cards::progress(2, 2, "done");
    Ok(())
}

/// Shows cards.
#[flow(name = "cards")]
fn cards_flow() {
    show();
}
