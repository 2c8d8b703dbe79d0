//! Prints 64 MiB.

use waft_sdk::prelude::*;

#[task]
fn flood() -> TaskResult {
    let line = "x".repeat(1023);
    for _ in 0..64 * 1024 {
        println!("{line}");
    }
    Ok(())
}

/// Prints without end, nearly.
#[flow]
fn stdout() {
    flood();
}
