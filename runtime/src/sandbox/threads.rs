//! Threads for guests that compute for long.
//!
//! An attempt begins on the thread that asks for it, which for most is all they need. One that is
//! still computing at the first tick of the epoch moves to threads of its own kind, so that whoever
//! shares the asking runtime (polls, leases, cancels, the server of `waft up`) stays prompt however
//! many guests spin: tokio looks at sockets and timers only between so many polls, and a poll of a
//! spinning guest takes a whole tick. Measured beside other load on two cores with five guests that
//! spin: from asking for a cancel to its end 40 ms in the middle and 70 ms at most, 79 and 300 ms
//! without these threads.

use std::future::{Future, poll_fn};
use std::panic::resume_unwind;
use std::pin::Pin;
use std::sync::OnceLock;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::task::JoinHandle;

use super::engine::TICK;
use crate::clock::Clock;

/// A poll that took so long was ended by the ticker.
const LONG: Duration = TICK.saturating_sub(Duration::from_millis(5));

/// The threads, started when the first guest needs them.
#[derive(Debug, Default)]
pub(super) struct Threads(OnceLock<Option<tokio::runtime::Runtime>>);

impl Threads {
    /// Runs an attempt here, and on the guests' threads once it takes long. Dropping the future
    /// stops the attempt, wherever it is.
    pub(super) async fn run<F>(&self, clock: &Clock, attempt: F) -> F::Output
    where
        F: Future + Send + 'static,
        F::Output: Send,
    {
        let mut attempt = Box::pin(attempt);
        let ended = poll_fn(|cx| {
            let began = clock.monotonic();
            match attempt.as_mut().poll(cx) {
                Poll::Ready(ended) => Poll::Ready(Some(ended)),
                Poll::Pending if clock.monotonic().since(began) >= LONG => Poll::Ready(None),
                Poll::Pending => Poll::Pending,
            }
        });
        match (ended.await, self.runtime()) {
            (Some(ended), _) => ended,
            (None, Some(runtime)) => Moved(runtime.spawn(attempt)).await,
            // Without threads of its own it stays where it is: slower for the others, never wrong.
            (None, None) => attempt.await,
        }
    }

    fn runtime(&self) -> Option<&tokio::runtime::Runtime> {
        let start = || {
            tokio::runtime::Builder::new_multi_thread()
                .thread_name("waft-guest")
                // A guest that sleeps or talks beside one that spins is looked at after each tick.
                .event_interval(1)
                .enable_all()
                .build()
                .inspect_err(|error| tracing::warn!(%error, "guests get no threads of their own"))
                .ok()
        };
        self.0.get_or_init(start).as_ref()
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        // A runtime may not be dropped where it would block, and nothing is left to wait for.
        if let Some(Some(runtime)) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

/// An attempt on another thread, which ends when nobody waits for it any more.
struct Moved<T>(JoinHandle<T>);

impl<T> Future for Moved<T> {
    type Output = T;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<T> {
        match Pin::new(&mut self.0).poll(cx) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(Ok(ended)) => Poll::Ready(ended),
            Poll::Ready(Err(error)) => match error.try_into_panic() {
                Ok(panic) => resume_unwind(panic),
                // Only the drop of the sandbox ends it so, and then nobody waits.
                Err(_) => Poll::Pending,
            },
        }
    }
}

impl<T> Drop for Moved<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A guest that spins: each poll takes a tick, and wants the next at once.
    async fn spins(ticks: usize) -> Option<String> {
        for _ in 0..ticks {
            std::thread::sleep(TICK);
            tokio::task::yield_now().await;
        }
        std::thread::current().name().map(str::to_owned)
    }

    #[tokio::test]
    async fn who_takes_long_moves_and_who_does_not_stays() {
        let threads = Threads::default();
        let clock = Clock::default();
        let here = std::thread::current().name().map(str::to_owned);
        assert_eq!(threads.run(&clock, spins(0)).await, here);
        assert!(threads.0.get().is_none_or(Option::is_some));
        let there = threads.run(&clock, spins(2)).await;
        assert_eq!(there.as_deref(), Some("waft-guest"));
    }

    #[tokio::test]
    async fn dropping_stops_it_on_the_other_thread() {
        let threads = Threads::default();
        let clock = Clock::default();
        let (alive, mut dead) = tokio::sync::mpsc::channel::<()>(1);
        let attempt = async move {
            let _alive = alive;
            spins(usize::MAX).await
        };
        let run = tokio::time::timeout(10 * TICK, threads.run(&clock, attempt));
        assert!(run.await.is_err());
        assert_eq!(dead.recv().await, None);
    }
}
