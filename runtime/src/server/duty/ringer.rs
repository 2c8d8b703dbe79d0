//! The ringer: wakes polls when a run that was made for later becomes due.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use tokio::sync::Notify;

use super::{note, rest};
use crate::server::app::App;
use crate::server::db::{DbError, flow_run};

/// The shortest rest.
const REST_MIN: Duration = Duration::from_millis(10);
/// The longest rest: the wall clock may have been set in the meantime.
const REST_MAX: Duration = Duration::from_secs(5);
/// How long it waits before it tries to ring again what could not be rung.
const AGAIN: SignedDuration = SignedDuration::from_secs(1);

/// Instants at which runs become due, with their requirements. One too many does no harm.
#[derive(Default)]
pub(crate) struct Dues {
    instants: Mutex<BTreeSet<(Timestamp, i64)>>,
    nudge: Notify,
}

impl Dues {
    /// Notes that a run with this requirement becomes due.
    pub(crate) fn add(&self, at: Timestamp, requirement_id: i64) {
        let mut instants = self.instants.lock().unwrap_or_else(PoisonError::into_inner);
        let is_first = instants.first().is_none_or(|(first, _)| at < *first);
        instants.insert((at, requirement_id));
        if is_first {
            self.nudge.notify_one();
        }
    }

    fn take(&self, now: Timestamp) -> Vec<(Timestamp, i64)> {
        let mut instants = self.instants.lock().unwrap_or_else(PoisonError::into_inner);
        let later = instants.split_off(&(now, i64::MAX));
        std::mem::replace(&mut *instants, later)
            .into_iter()
            .collect()
    }

    fn first(&self) -> Option<Timestamp> {
        let instants = self.instants.lock().unwrap_or_else(PoisonError::into_inner);
        instants.first().map(|(at, _)| *at)
    }
}

/// Learns what is due later from the database, then rings until the server goes down.
pub(super) async fn keep(app: App) {
    note("ringer", read(&app).await);
    loop {
        note("ringer", ring(&app).await);
        let now = app.clock.now();
        let time = match app.dues.first() {
            Some(at) => Duration::try_from(at.duration_since(now)).unwrap_or_default(),
            None => REST_MAX,
        };
        let time = time.clamp(REST_MIN, REST_MAX);
        if !rest(&app, time, app.dues.nudge.notified()).await {
            return;
        }
    }
}

async fn read(app: &App) -> Result<(), DbError> {
    let mut reader = app.db.reader().await?;
    for (at, requirement_id) in flow_run::dues(&mut reader, app.clock.now()).await? {
        app.dues.add(at, requirement_id);
    }
    Ok(())
}

/// Wakes a poll for each run that has become due. One that cannot be rung is tried again a moment
/// later, and holds up no other.
///
/// # Errors
///
/// The database's, of the last that failed.
pub async fn ring(app: &App) -> Result<(), DbError> {
    let now = app.clock.now();
    let again = now.saturating_add(AGAIN).unwrap_or(now);
    let mut rung = Ok(());
    for (_, requirement_id) in app.dues.take(now) {
        // Several runs may be due at one instant; who is woken for nothing waits again.
        if let Err(error) = app.wake(requirement_id, usize::MAX).await {
            app.dues.add(again, requirement_id);
            rung = Err(error);
        }
    }
    rung
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::clock::Clock;
    use crate::model::requirement::{Offer, Requirement};
    use crate::server::db::memory::Memory;
    use crate::server::db::requirement;
    use crate::server::session::tests::session;
    use crate::server::{self, ServerSettings};

    /// A requirement that is not in the database.
    const UNKNOWN: i64 = -1;

    #[tokio::test]
    async fn what_cannot_be_rung_is_tried_again_and_holds_up_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let (clock, time) = Clock::test(Timestamp::UNIX_EPOCH);
        let settings = ServerSettings {
            listen: ([127, 0, 0, 1], 0).into(),
            db: folder.path().join("waft.db").into(),
            lease: Duration::from_secs(30),
            hosts: Vec::new(),
            results_keep: server::RESULTS_KEEP,
            runs_keep: server::RUNS_KEEP,
            clock: clock.clone(),
        };
        let (app, _) = server::open(&settings).await.unwrap();
        let interned = app.db.write(|tx| {
            Box::pin(async move { requirement::intern(tx, &Requirement::default()).await })
        });
        let known = interned.await.unwrap();
        let enter = |nth| {
            let session = session(nth, Offer::default(), Memory::default(), clock.monotonic());
            app.waiting.enter(Arc::new(session))
        };

        let place = enter(1);
        app.announce(UNKNOWN, clock.now(), 1).await;
        app.announce(known, clock.now(), 1).await;
        assert_eq!(app.waiting.count(), 0, "it was woken for the second");
        drop(place);

        let _place = enter(2);
        app.dues.add(clock.now(), known);
        assert_eq!(
            app.dues.first(),
            Some(clock.now()),
            "the first is not forgotten"
        );
        ring(&app).await.unwrap_err();
        assert_eq!(app.waiting.count(), 0, "it was rung for the second");
        time.pass(Duration::from_secs(1));
        assert_eq!(app.dues.take(clock.now()), [(clock.now(), UNKNOWN)]);
    }
}
