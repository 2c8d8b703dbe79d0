//! Slots: places for runs, so that an agent never takes more than it was given.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The places for runs of one agent.
#[derive(Clone)]
pub(crate) struct Slots(Arc<Semaphore>);

/// One place; free again when it is dropped.
pub(crate) struct Slot {
    _permit: OwnedSemaphorePermit,
}

impl Slots {
    pub(crate) fn new(count: usize) -> Self {
        Self(Arc::new(Semaphore::new(count.max(1))))
    }

    /// Waits until at least one place is free, and returns how many are.
    pub(crate) async fn some_free(&self) -> u32 {
        // The semaphore is never closed; the permit goes back at once, since what is claimed is
        // known only after the server has answered.
        let _one = self.0.acquire().await;
        u32::try_from(self.0.available_permits() + 1).unwrap_or(u32::MAX)
    }

    /// Takes a place; none if the server gave more runs than it was asked for.
    pub(crate) fn take(&self) -> Option<Slot> {
        let permit = self.0.clone().try_acquire_owned().ok()?;
        Some(Slot { _permit: permit })
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[test]
    fn a_place_is_free_again_when_its_run_is_over() {
        let slots = Slots::new(2);
        let (first, second) = (slots.take(), slots.take());
        assert!(first.is_some() && second.is_some());
        assert!(slots.take().is_none());
        assert_eq!(slots.some_free().now_or_never(), None);
        drop(first);
        assert_eq!(slots.some_free().now_or_never(), Some(1));
    }
}
