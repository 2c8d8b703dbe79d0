//! Tags: which of them have a number of slots, as far as this agent knows.
//!
//! It hears of them with each claim and on the line that brings orders. Who executes a run asks for slots of
//! these; of others it begins without a word to the server.

use std::sync::{Mutex, PoisonError};

use tokio::sync::watch;

use crate::runner::Limited;
use crate::wire::{ClaimedRun, LimitedTags};

/// The tags with a number of slots.
#[derive(Default)]
pub(crate) struct Tags {
    known: watch::Sender<Limited>,
    /// The change that was told last.
    seen: Mutex<Option<i64>>,
}

impl Tags {
    /// Takes note of what a claim says. What has no number of slots any more is heard of elsewhere: asking for
    /// one costs a moment.
    pub(crate) fn learn(&self, claimed: &ClaimedRun) {
        if claimed.limited_tags.is_empty() {
            return;
        }
        self.known.send_if_modified(|known| {
            let own = known.entry(claimed.project.clone()).or_default();
            let before = own.len();
            own.extend(claimed.limited_tags.iter().cloned());
            own.len() > before
        });
    }

    /// Takes over what the server says of all projects.
    pub(crate) fn told(&self, limited: LimitedTags) {
        *self.seen.lock().unwrap_or_else(PoisonError::into_inner) = Some(limited.change);
        self.known.send_if_modified(|known| {
            let is_news = *known != limited.tags;
            *known = limited.tags;
            is_news
        });
    }

    /// Returns the change that was told last.
    pub(crate) fn seen(&self) -> Option<i64> {
        *self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns where a run hears of changes.
    pub(crate) fn watch(&self) -> watch::Receiver<Limited> {
        self.known.subscribe()
    }
}
