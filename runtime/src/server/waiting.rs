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
    woken_for: Mutex<Option<WokenFor>>,
}

/// The requirement of the run that a poll was woken for, and when.
struct WokenFor {
    id: i64,
    requirement: Arc<Requirement>,
    at: Monotonic,
}

impl Waiter {
    fn woken_for(&self) -> MutexGuard<'_, Option<WokenFor>> {
        self.woken_for
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// A spot in the line. Dropping it leaves the line, and passes on what it was woken for.
pub(super) struct Spot {
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
    /// Takes a spot at the end of the line. What is announced from now on is heard, so look for
    /// work after this.
    pub(super) fn enter(&self, session: Arc<Session>) -> Spot {
        let waiter = Arc::new(Waiter {
            session,
            bell: Notify::new(),
            is_gone: AtomicBool::new(false),
            woken_for: Mutex::new(None),
        });
        let mut line = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        line.push_back(waiter.clone());
        Spot {
            waiting: self.clone(),
            waiter,
        }
    }

    pub(super) fn count(&self) -> usize {
        let line = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        line.len()
    }

    /// Wakes the first `count` polls whose agent may take runs with this requirement now. One that has declined
    /// something a moment ago may find nothing for itself, so it is woken beside them. Answers for how many there
    /// was no poll.
    pub(super) fn wake(
        &self,
        id: i64,
        requirement: &Arc<Requirement>,
        count: usize,
        now: Monotonic,
    ) -> usize {
        let may_take = |session: &Session| {
            let known = session.is_known_to_satisfy(id);
            !session.takes_no_more() && known.unwrap_or_else(|| session.satisfies(id, requirement))
        };
        let mut left = count;
        let mut line = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        line.retain(|waiter| {
            let is_next = left > 0 && may_take(&waiter.session);
            if is_next {
                left -= usize::from(waiter.session.shuns(now).is_empty());
                *waiter.woken_for() = Some(WokenFor {
                    id,
                    requirement: requirement.clone(),
                    at: now,
                });
                waiter.bell.notify_one();
            }
            !is_next
        });
        left
    }

    /// Wakes every poll, to look for work once more.
    pub(super) fn wake_all(&self) {
        let mut line = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        line.drain(..).for_each(|waiter| waiter.bell.notify_one());
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

impl Spot {
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
        *self.waiter.woken_for() = None;
    }
}

impl Drop for Spot {
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
        let woken_for = self.waiter.woken_for().take();
        if let Some(WokenFor {
            id,
            requirement,
            at,
        }) = woken_for
        {
            self.waiting.wake(id, &requirement, 1, at);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures::FutureExt as _;

    use super::super::db::memory::Memory;
    use super::super::session::tests::{replace, session};
    use super::*;
    use crate::clock::Clock;
    use crate::model::id::FlowVersionId;
    use crate::model::label::Labels;
    use crate::model::requirement::Offer;

    /// A line, and how to stand in it.
    struct Line {
        waiting: Waiting,
        now: Monotonic,
        count: u128,
    }

    impl Line {
        fn new() -> Self {
            Self {
                waiting: Waiting::default(),
                now: Clock::default().monotonic(),
                count: 0,
            }
        }

        /// Lets a new agent that offers a label stand at the end.
        fn enter(&mut self, label: &str) -> Spot {
            self.count += 1;
            let offer = Offer {
                labels: Labels::from_iter([label]),
                ..Offer::default()
            };
            let session = session(self.count, offer, Memory::default(), self.now);
            self.waiting.enter(Arc::new(session))
        }

        /// Announces runs that ask for a label, whose requirement has this number.
        fn wake(&self, id: i64, label: &str, count: usize) {
            let requirement = Requirement {
                labels: Labels::from_iter([label]),
                ..Requirement::default()
            };
            self.waiting
                .wake(id, &Arc::new(requirement), count, self.now);
        }
    }

    /// Tells whether it was woken and has not noticed yet.
    fn is_woken(place: &Spot) -> bool {
        place.woken().now_or_never().is_some()
    }

    #[test]
    fn the_first_who_may_take_a_run_is_woken_and_nobody_else() {
        let mut line = Line::new();
        let places = ["eu", "gpu", "gpu", "gpu"].map(|label| line.enter(label));
        line.wake(1, "gpu", 2);
        assert_eq!(places.each_ref().map(is_woken), [false, true, true, false]);
        assert_eq!(line.waiting.count(), 2, "who is woken leaves the line");
        line.wake(1, "gpu", 2);
        assert_eq!(places.each_ref().map(is_woken), [false, false, false, true]);
        line.wake(2, "eu", 1);
        assert_eq!(places.each_ref().map(is_woken), [true, false, false, false]);
    }

    #[test]
    fn who_has_declined_something_a_moment_ago_is_woken_beside_the_next() {
        let mut line = Line::new();
        let (first, second) = (line.enter("gpu"), line.enter("gpu"));
        let shun = |place: &Spot, now| {
            let version = FlowVersionId::at(0, 1);
            place.waiter.session.shun(version, String::new(), now);
        };
        shun(&first, line.now);
        line.wake(1, "gpu", 1);
        assert!(is_woken(&first) && is_woken(&second));
        let (first, second) = (line.enter("gpu"), line.enter("gpu"));
        shun(&first, line.now);
        line.now = line.now + Duration::from_secs(60);
        line.wake(1, "gpu", 1);
        assert!(is_woken(&first) && !is_woken(&second));
    }

    #[test]
    fn a_wake_up_before_anybody_waits_for_it_is_not_lost() {
        let mut line = Line::new();
        let place = line.enter("gpu");
        line.wake(1, "gpu", 1);
        line.wake(1, "gpu", 1);
        assert!(is_woken(&place));
        assert!(!is_woken(&place), "once");
    }

    #[test]
    fn who_goes_without_another_look_passes_its_wake_up_on_to_who_may_take_the_run() {
        let mut line = Line::new();
        let [first, other, second] = ["gpu", "eu", "gpu"].map(|label| line.enter(label));
        let presence = first.presence();
        assert!(!presence.is_gone());
        line.wake(1, "gpu", 1);
        drop(first);
        assert!(presence.is_gone());
        // Nobody had asked what `other` may take before.
        assert_eq!([&other, &second].map(is_woken), [false, true]);
        // And on, to whoever comes in the meantime.
        let (third, fourth) = (line.enter("gpu"), line.enter("gpu"));
        drop(second);
        assert_eq!(
            [&other, &third, &fourth].map(is_woken),
            [false, true, false]
        );
    }

    #[test]
    fn who_looks_once_more_or_was_not_woken_passes_nothing_on() {
        let mut line = Line::new();
        let (first, second) = (line.enter("gpu"), line.enter("gpu"));
        line.wake(1, "gpu", 1);
        first.heard();
        assert!(!is_woken(&second));
        drop(line.enter("gpu"));
        assert!(!is_woken(&second));
        assert_eq!(line.waiting.count(), 1);
    }

    #[test]
    fn who_takes_no_more_runs_is_passed_over() {
        let mut line = Line::new();
        let places = ["gpu", "gpu", "gpu"].map(|label| line.enter(label));
        places[0].waiter.session.leave();
        places[1].waiter.session.drain();
        line.wake(1, "gpu", 1);
        assert_eq!(places.each_ref().map(is_woken), [false, false, true]);
    }

    #[test]
    fn a_replaced_session_is_woken_and_for_no_run() {
        let mut line = Line::new();
        let (replaced, other) = (line.enter("gpu"), line.enter("gpu"));
        replace(&replaced.waiter.session);
        line.waiting.wake_replaced();
        assert!(is_woken(&replaced) && !is_woken(&other));
        drop(replaced);
        assert!(!is_woken(&other), "nothing to pass on");
    }
}
