//! The sweeper: deletes segments of results that the server says nobody needs any more, and what writers
//! left half-written in the folders of this agent.
//!
//! It works beside everything else and slowly, as nothing waits for it. What it could not delete it
//! says nothing of: the server asks again, this agent or another. What can be deleted nowhere, as in a
//! registry, it says once.

use std::collections::HashMap;
use std::time::Duration;

use futures::{StreamExt as _, stream};
use jiff::SignedDuration;
use tokio::sync::mpsc;

use super::session::{PAUSE_MAX, Session};
use crate::clock::Clock;
use crate::config::Access;
use crate::storage::{Results, Root, Storage, StorageError};
use crate::wire::{Deletions, KeptSegment, Segment};

/// Deletions under way at one time.
const AT_ONCE: usize = 4;
/// Requests that wait; the server asks again for what is beyond them.
const WAITING: usize = 4;

/// How often is looked for what was left half-written.
const TIDY_EVERY: Duration = Duration::from_secs(24 * 60 * 60);
/// A file that nobody has written to for so long has no writer any more.
const LEFT_BEHIND: SignedDuration = SignedDuration::from_hours(24);

/// Where deletions are asked for.
pub(super) struct Sweeper(mpsc::Sender<Vec<Segment>>);

/// What is swept: the places, and what was asked for.
pub(super) struct Sweep {
    results: Results,
    storages: HashMap<String, Storage>,
    asked: mpsc::Receiver<Vec<Segment>>,
}

/// What became of one segment.
enum Swept {
    Deleted(Segment),
    Kept(KeptSegment),
    Failed,
}

impl Sweeper {
    pub(super) fn new(results: Results, storages: HashMap<String, Storage>) -> (Self, Sweep) {
        let (sender, asked) = mpsc::channel(WAITING);
        let sweep = Sweep {
            results,
            storages,
            asked,
        };
        (Self(sender), sweep)
    }

    /// Asks for segments to be deleted, some time.
    pub(super) fn ask(&self, segments: Vec<Segment>) {
        if !segments.is_empty() && self.0.try_send(segments).is_err() {
            tracing::debug!("there is more to delete than this agent gets done");
        }
    }
}

impl Sweep {
    /// Deletes what it is asked to, for as long as the agent lives.
    pub(super) async fn run(mut self, session: &Session) {
        // Files bear the system's time.
        let clock = Clock::default();
        let mut tidied_at = None;
        loop {
            let now = clock.monotonic();
            if tidied_at.is_none_or(|at| now.since(at) >= TIDY_EVERY) {
                tidied_at = Some(now);
                self.tidy(&clock).await;
            }
            let asked = tokio::time::timeout(TIDY_EVERY, self.asked.recv()).await;
            let segments = match asked {
                Ok(Some(segments)) => segments,
                // The agent goes on without it only while it ends.
                Ok(None) => std::future::pending().await,
                Err(_) => continue,
            };
            let swept = stream::iter(segments).map(|segment| self.delete(segment));
            let swept: Vec<_> = swept.buffer_unordered(AT_ONCE).collect().await;
            tell(session, swept).await;
        }
    }

    /// Takes away what was left half-written in folders.
    async fn tidy(&self, clock: &Clock) {
        let Ok(before) = clock.now().checked_sub(LEFT_BEHIND) else {
            return;
        };
        let results = Root::of_name(self.results.name()).ok();
        let results = results.and_then(|(root, _)| Storage::open(&root, &Access::default()).ok());
        for storage in self.storages.values().chain(&results) {
            match storage.sweep(before).await {
                Ok(0) => {}
                Ok(files) => tracing::info!(
                    storage.root = %storage.root(),
                    files,
                    "took away what writers left half-written"
                ),
                Err(error) => {
                    let error = anyhow::Error::new(error);
                    tracing::debug!(error = format!("{error:#}"), "a folder was not swept");
                }
            }
        }
    }

    async fn delete(&self, segment: Segment) -> Swept {
        let deleted = if segment.root == self.results.name() {
            self.results.delete(&segment.key).await
        } else if let Some(storage) = self.storages.get(&segment.root) {
            storage.delete_segment(&segment.key).await
        } else {
            return Swept::Failed;
        };
        match deleted {
            Ok(()) => Swept::Deleted(segment),
            Err(error @ StorageError::Refused { .. }) => Swept::Kept(KeptSegment {
                segment,
                why: error.to_string(),
            }),
            Err(error) => {
                let error = anyhow::Error::new(error);
                tracing::warn!(
                    error = format!("{error:#}"),
                    "a result could not be deleted"
                );
                Swept::Failed
            }
        }
    }
}

async fn tell(session: &Session, swept: Vec<Swept>) {
    let (mut deleted, mut kept) = (Vec::new(), Vec::new());
    for one in swept {
        match one {
            Swept::Deleted(segment) => deleted.push(segment),
            Swept::Kept(segment) => kept.push(segment),
            Swept::Failed => {}
        }
    }
    if deleted.is_empty() && kept.is_empty() {
        return;
    }
    tracing::info!(
        segments = deleted.len(),
        "deleted results that were kept long enough"
    );
    let told = session.call(PAUSE_MAX, |client, session_id| {
        let done = Deletions {
            session_id,
            deleted: deleted.clone(),
            kept: kept.clone(),
        };
        async move { client.deletions(&done).await }
    });
    // Else it is asked for again, and is done already.
    if let Err(refused) = told.await {
        tracing::error!(error = %refused, "the server does not hear of deleted results");
    }
}
