//! Polls that wait for work, first come, first woken.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use super::session::Session;
use crate::clock::Monotonic;
use crate::model::requirement::Requirement;

/// The line of polls. Clones share it.
#[derive(Clone, Default)]
pub(super) struct Waiting(Arc<Mutex<VecDeque<Arc<Waiter>>>>);

struct Waiter {
    session: Arc<Session>,
    bell: Notify,
    is_gone: AtomicBool,
    /// The requirement of the run that it was woken for.
    woken_for: Mutex<Option<i64>>,
}

/// A place in the line. Dropping it leaves the line, and passes on what it was woken for.
pub(super) struct Place {
    waiting: Waiting,
    waiter: Arc<Waiter>,
}

/// Tells whether the caller of a poll is still there.
#[derive(Clone)]
pub(super) struct Presence(Arc<Waiter>);

impl Presence {
    pub(super) fn is_gone(&self) -> bool {
        self.0.is_gone.load(Ordering::Relaxed)
    }
}

impl Waiting {
    /// Takes a place at the end of the line. What is announced from now on is heard, so look for
    /// work after this.
    pub(super) fn enter(&self, session: Arc<Session>) -> Place {
        let waiter = Arc::new(Waiter {
            session,
            bell: Notify::new(),
            is_gone: AtomicBool::new(false),
            woken_for: Mutex::new(None),
        });
        let mut line = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        line.push_back(waiter.clone());
        Place {
            waiting: self.clone(),
            waiter,
        }
    }

    pub(super) fn count(&self) -> usize {
        let line = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        line.len()
    }

    /// Wakes the first `count` polls whose agent may take runs with this requirement now.
    pub(super) fn wake(&self, id: i64, requirement: &Requirement, count: usize, now: Monotonic) {
        self.wake_if(id, count, |session| {
            let known = session.is_known_to_satisfy(id);
            known.unwrap_or_else(|| session.satisfies(id, requirement)) && !session.shuns(id, now)
        });
    }

    fn wake_if(&self, id: i64, count: usize, may_take: impl Fn(&Session) -> bool) {
        let mut left = count;
        let mut line = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        line.retain(|waiter| {
            let is_next = left > 0 && may_take(&waiter.session);
            if is_next {
                left -= 1;
                let mut woken_for = waiter
                    .woken_for
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner);
                *woken_for = Some(id);
                waiter.bell.notify_one();
            }
            !is_next
        });
    }

    /// Wakes the polls whose session a newer one has replaced: they find that out by themselves.
    pub(super) fn wake_replaced(&self) {
        let mut line = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        line.retain(|waiter| {
            let is_replaced = waiter.session.is_replaced();
            if is_replaced {
                waiter.bell.notify_one();
            }
            !is_replaced
        });
    }
}

impl Place {
    /// Waits to be woken.
    pub(super) async fn woken(&self) {
        self.waiter.bell.notified().await;
    }

    /// Returns what tells others whether the caller is still there.
    pub(super) fn presence(&self) -> Presence {
        Presence(self.waiter.clone())
    }

    /// Says that the poll looks for work once more: what it was woken for is not for somebody else.
    pub(super) fn heard(self) {
        *self.woken_for() = None;
    }

    fn woken_for(&self) -> MutexGuard<'_, Option<i64>> {
        let woken_for = self.waiter.woken_for.lock();
        woken_for.unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.waiter.is_gone.store(true, Ordering::Relaxed);
        {
            let mut line = self
                .waiting
                .0
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            line.retain(|waiter| !Arc::ptr_eq(waiter, &self.waiter));
        }
        // It was woken and went away without another look: the run is for the next who may take it.
        if let Some(id) = self.woken_for().take() {
            let may_take = |session: &Session| session.is_known_to_satisfy(id) != Some(false);
            self.waiting.wake_if(id, 1, may_take);
        }
    }
}
