//! CPU time of one attempt: that of the threads that polled it, while they did.
//!
//! An attempt wanders over threads and sleeps in between, so its time is summed over the polls of
//! its future. Epochs only make the guest stop for a look: whether it has used too much is decided by
//! this sum.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::clock::thread_cpu;

/// Sums the CPU time of one attempt.
#[derive(Debug, Default)]
pub(crate) struct Meter {
    /// Nanoseconds of the polls that are over.
    spent: AtomicU64,
    /// The thread's CPU time when the poll that is going on began; zero between polls.
    entered: AtomicU64,
}

impl Meter {
    /// Returns what was used so far; called from inside a poll, that poll counts too.
    pub(crate) fn spent(&self) -> Duration {
        let spent = self.spent.load(Ordering::Relaxed);
        let now = match self.entered.load(Ordering::Relaxed) {
            0 => 0,
            entered => nanoseconds().saturating_sub(entered),
        };
        Duration::from_nanos(spent + now)
    }

    /// Runs a future and counts the CPU time of its polls.
    pub(crate) async fn measure<F: Future>(&self, future: F) -> F::Output {
        let mut future = pin!(future);
        poll_fn(|cx| {
            let entered = nanoseconds();
            self.entered.store(entered, Ordering::Relaxed);
            let polled = future.as_mut().poll(cx);
            self.entered.store(0, Ordering::Relaxed);
            let used = nanoseconds().saturating_sub(entered);
            self.spent.fetch_add(used, Ordering::Relaxed);
            polled
        })
        .await
    }
}

fn nanoseconds() -> u64 {
    u64::try_from(thread_cpu().as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn work_counts_and_sleep_does_not() {
        let meter = Meter::default();
        meter
            .measure(tokio::time::sleep(Duration::from_millis(60)))
            .await;
        assert!(meter.spent() < Duration::from_millis(30));
        let work = async {
            let begin = thread_cpu();
            while thread_cpu() - begin < Duration::from_millis(40) {}
            meter.spent()
        };
        let inside = meter.measure(work).await;
        assert!(inside >= Duration::from_millis(40));
        assert!(meter.spent() >= inside);
    }
}
