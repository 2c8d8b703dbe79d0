//! Says something in every way there is.

use waft_sdk::prelude::*;

#[task]
fn talk() -> TaskResult {
    log::debug!("a debug line");
    log::info!("an info line, {}", 2);
    log::warning!("a warning");
    log::error!("an error");
    println!("printed to stdout");
    eprintln!("printed to stderr");
    Ok(())
}

/// Talks.
#[flow]
fn logs() {
    talk();
}
