//! Duties: what the server does unasked.
//!
//! Each takes no input, may run at any moment, twice, or after a crash, and is a function that a test
//! can call. The loops here run them on a timer and on a nudge, until the server goes down.

pub mod cleaner;
pub mod greeter;
mod hearer;
pub mod rescuer;
pub mod ringer;
pub mod scheduler;
pub mod teller;
pub mod timekeeper;
pub mod usher;

use std::panic::AssertUnwindSafe;
use std::time::Duration;

use futures::FutureExt as _;

use super::app::App;
use super::db::DbError;
use super::panics;

/// The rest after a panic, which may well come again.
const AFTER_PANIC: Duration = Duration::from_secs(1);

/// Starts the loops; they end with the server.
pub(super) fn start(app: &App) -> Vec<tokio::task::JoinHandle<()>> {
    let mut duties = vec![
        spawn(app, "ringer", ringer::keep),
        spawn(app, "scheduler", scheduler::keep),
        spawn(app, "usher", usher::keep),
        spawn(app, "rescuer", rescuer::keep),
        spawn(app, "timekeeper", timekeeper::keep),
        spawn(app, "cleaner", cleaner::keep),
    ];
    if app.db.is_shared() {
        duties.push(spawn(app, "teller", teller::keep));
        duties.push(spawn(app, "hearer", hearer::keep));
        duties.push(spawn(app, "greeter", greeter::keep));
    }
    duties
}

/// Keeps a loop going: one that panics is begun anew, for a server without it looks well and is not.
fn spawn<F>(
    app: &App,
    duty: &'static str,
    keep: impl Fn(App) -> F + Send + 'static,
) -> tokio::task::JoinHandle<()>
where
    F: Future<Output = ()> + Send,
{
    let app = app.clone();
    tokio::spawn(async move {
        loop {
            let kept = AssertUnwindSafe(keep(app.clone())).catch_unwind().await;
            if kept.is_ok() {
                return;
            }
            panics::count();
            tracing::error!(
                duty,
                "a duty panicked and is begun anew; this is a bug of waft"
            );
            if !rest(&app, AFTER_PANIC, std::future::pending()).await {
                return;
            }
        }
    })
}

/// Waits for a time, a nudge, or the end of the server; answers whether it goes on.
async fn rest(app: &App, time: Duration, nudge: impl Future<Output = ()>) -> bool {
    let mut closing = app.closing.subscribe();
    tokio::select! {
        () = app.clock.sleep(time) => true,
        () = nudge => true,
        _ = closing.wait_for(|is_closing| *is_closing) => false,
    }
}

/// Writes down that a duty failed; it is tried again when its time comes.
fn note<T>(duty: &'static str, result: Result<T, DbError>) -> Option<T> {
    result
        .inspect_err(|error| {
            tracing::error!(
                duty,
                error = error as &dyn std::error::Error,
                "a duty could not be done"
            );
        })
        .ok()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;
    use crate::clock::Clock;
    use crate::server::{self, ServerSettings};

    #[tokio::test]
    async fn a_duty_that_panics_is_begun_anew() {
        let folder = tempfile::tempdir().unwrap();
        let settings = ServerSettings {
            listen: ([127, 0, 0, 1], 0).into(),
            db: folder.path().join("waft.db").into(),
            lease: Duration::from_secs(30),
            hosts: Vec::new(),
            results_keep: server::RESULTS_KEEP,
            runs_keep: server::RUNS_KEEP,
            clock: Clock::default(),
        };
        let (app, _) = server::open(&settings).await.unwrap();
        let begun = Arc::new(AtomicU32::new(0));
        let count = begun.clone();
        let duty = spawn(&app, "test", move |_| {
            let nth = count.fetch_add(1, Ordering::Relaxed);
            async move { assert!(nth > 0, "as planned") }
        });
        duty.await.unwrap();
        assert_eq!(begun.load(Ordering::Relaxed), 2);
    }
}
