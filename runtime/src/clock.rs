//! The only reader of time.
//!
//! [`Clock`] answers what the wall clock says (for people and schedules) and how much time has
//! passed (for leases and budgets, unmoved by jumps of the wall clock). Tests hold a clock that
//! stands still until it is told to pass.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::watch;

/// Tells the time: the system's, or a test's.
#[derive(Clone, Debug, Default)]
pub struct Clock(Option<TestClock>);

/// A clock that stands still until [`TestClock::pass`] or [`TestClock::jump`].
#[derive(Clone, Debug)]
pub struct TestClock {
    hands: Arc<Mutex<Hands>>,
    moved: watch::Sender<u64>,
}

#[derive(Clone, Copy, Debug)]
struct Hands {
    wall: Timestamp,
    passed: Duration,
}

/// An instant that only ever moves forward, for leases and budgets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Monotonic(Duration);

impl Monotonic {
    /// Returns the time from `earlier` to here, zero if it is not earlier.
    #[must_use]
    pub const fn since(self, earlier: Self) -> Duration {
        self.0.saturating_sub(earlier.0)
    }
}

impl std::ops::Add<Duration> for Monotonic {
    type Output = Self;

    fn add(self, more: Duration) -> Self {
        Self(self.0.saturating_add(more))
    }
}

impl Clock {
    /// Makes a clock for a test, and the hand that moves it.
    #[must_use]
    pub fn test(start: Timestamp) -> (Self, TestClock) {
        let hands = Hands {
            wall: start,
            passed: Duration::ZERO,
        };
        let test = TestClock {
            hands: Arc::new(Mutex::new(hands)),
            moved: watch::Sender::new(0),
        };
        (Self(Some(test.clone())), test)
    }

    /// Tells whether time passes by itself, as it does everywhere but in tests.
    #[must_use]
    pub const fn is_system(&self) -> bool {
        self.0.is_none()
    }

    /// Returns what the wall clock says, cut to whole microseconds as the database keeps them.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        let now = match &self.0 {
            Some(test) => test.read().wall,
            #[expect(clippy::disallowed_methods, reason = "this is the one place")]
            None => Timestamp::now(),
        };
        Timestamp::from_microsecond(now.as_microsecond()).unwrap_or(now)
    }

    /// Returns an instant to measure from; jumps of the wall clock do not move it.
    #[must_use]
    pub fn monotonic(&self) -> Monotonic {
        match &self.0 {
            Some(test) => Monotonic(test.read().passed),
            None => Monotonic(system_uptime()),
        }
    }

    /// Waits. In a test: until the test lets so much time pass.
    pub async fn sleep(&self, duration: Duration) {
        let Some(test) = &self.0 else {
            return tokio::time::sleep(duration).await;
        };
        let mut moved = test.moved.subscribe();
        let due = test.read().passed.saturating_add(duration);
        while test.read().passed < due {
            if moved.changed().await.is_err() {
                return;
            }
        }
    }
}

/// Returns the CPU time that the calling thread has used so far; where nobody counts that, the time
/// that has passed.
#[must_use]
pub fn thread_cpu() -> Duration {
    #[cfg(unix)]
    {
        let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
        let seconds = u64::try_from(time.tv_sec).unwrap_or_default();
        Duration::new(seconds, u32::try_from(time.tv_nsec).unwrap_or_default())
    }
    #[cfg(not(unix))]
    system_uptime()
}

/// Returns the time that has passed, including that for which the machine was asleep: a lease runs out
/// meanwhile.
#[cfg(target_os = "linux")]
fn system_uptime() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    let seconds = u64::try_from(time.tv_sec).unwrap_or_default();
    Duration::new(seconds, u32::try_from(time.tv_nsec).unwrap_or_default())
}

#[cfg(not(target_os = "linux"))]
fn system_uptime() -> Duration {
    use std::sync::OnceLock;
    use std::time::Instant;
    static START: OnceLock<Instant> = OnceLock::new();
    #[expect(clippy::disallowed_methods, reason = "this is the one place")]
    let now = Instant::now();
    now.duration_since(*START.get_or_init(|| now))
}

impl TestClock {
    /// Lets time pass, on the wall and for those who measure.
    pub fn pass(&self, duration: Duration) {
        self.change(|hands| {
            hands.passed += duration;
            hands.wall = hands.wall.saturating_add(duration).unwrap_or(hands.wall);
        });
    }

    /// Sets the wall clock; nobody who measures notices.
    pub fn jump(&self, wall: Timestamp) {
        self.change(|hands| hands.wall = wall);
    }

    fn read(&self) -> Hands {
        *self.hands.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, by: impl FnOnce(&mut Hands)) {
        by(&mut self.hands.lock().unwrap_or_else(PoisonError::into_inner));
        self.moved.send_modify(|count| *count += 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_sleeper_wakes_when_enough_time_has_passed() {
        let (clock, test) = Clock::test(Timestamp::UNIX_EPOCH);
        let sleeper = {
            let clock = clock.clone();
            tokio::spawn(async move { clock.sleep(Duration::from_secs(10)).await })
        };
        tokio::task::yield_now().await;
        test.pass(Duration::from_secs(9));
        tokio::task::yield_now().await;
        assert!(!sleeper.is_finished());
        test.jump(Timestamp::MAX);
        tokio::task::yield_now().await;
        assert!(!sleeper.is_finished());
        test.pass(Duration::from_secs(1));
        sleeper.await.unwrap();
    }
}
