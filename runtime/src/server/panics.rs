//! Panics of the server, counted.
//!
//! A panic is a bug. It is caught at the edge of a request or of a database closure, so that it
//! hurts nobody else, and counted, so that a test can say that there was none.

use std::sync::atomic::{AtomicU64, Ordering};

static PANICS: AtomicU64 = AtomicU64::new(0);

/// Counts a panic that was caught.
pub(crate) fn count() {
    PANICS.fetch_add(1, Ordering::Relaxed);
}

/// Returns how many panics were caught since this process began.
#[must_use]
pub fn counted() -> u64 {
    PANICS.load(Ordering::Relaxed)
}
