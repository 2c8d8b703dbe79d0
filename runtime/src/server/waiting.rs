//! Polls that wait for work, first come, first woken.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::Notify;

use super::session::Session;
use crate::model::requirement::Requirement;

/// The line of polls. Clones share it.
#[derive(Clone, Default)]
pub(super) struct Waiting(Arc<Mutex<VecDeque<Arc<Waiter>>>>);

struct Waiter {
    session: Arc<Session>,
    bell: Notify,
    is_gone: AtomicBool,
}

/// A place in the line; dropping it leaves the line.
pub(super) struct Place {
    waiting: Waiting,
    waiter: Arc<Waiter>,
    is_served: bool,
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
        });
        let mut line = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        line.push_back(waiter.clone());
        Place {
            waiting: self.clone(),
            waiter,
            is_served: false,
        }
    }

    pub(super) fn count(&self) -> usize {
        let line = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        line.len()
    }

    /// Wakes the first `count` polls whose agent may take runs with this requirement.
    pub(super) fn wake(&self, id: i64, requirement: &Requirement, count: usize) {
        let mut left = count;
        let mut line = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        line.retain(|waiter| {
            let known = waiter.session.is_known_to_satisfy(id);
            let is_next =
                left > 0 && known.unwrap_or_else(|| waiter.session.satisfies(id, requirement));
            if is_next {
                left -= 1;
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

    /// Wakes the first in line, whoever it is.
    fn wake_next(&self) {
        let mut line = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(waiter) = line.pop_front() {
            waiter.bell.notify_one();
        }
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

    /// Says that the poll is about to be answered.
    pub(super) fn served(&mut self) {
        self.is_served = true;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.waiter.is_gone.store(true, Ordering::Relaxed);
        let was_in_line = {
            let mut line = self
                .waiting
                .0
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            let before = line.len();
            line.retain(|waiter| !Arc::ptr_eq(waiter, &self.waiter));
            line.len() < before
        };
        // It was woken and went away without work: the call was for somebody.
        if !was_in_line && !self.is_served {
            self.waiting.wake_next();
        }
    }
}
