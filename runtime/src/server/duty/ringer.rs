//! The ringer: wakes polls when a run that was made for later becomes due.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::Notify;

use super::{note, rest};
use crate::server::app::App;
use crate::server::db::{DbError, flow_run};

/// The shortest rest.
const REST_MIN: Duration = Duration::from_millis(10);
/// The longest rest: the wall clock may have been set in the meantime.
const REST_MAX: Duration = Duration::from_secs(5);

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

    /// Puts back what could not be rung, for the next time; nobody is nudged.
    fn put_back(&self, dues: impl Iterator<Item = (Timestamp, i64)>) {
        let mut instants = self.instants.lock().unwrap_or_else(PoisonError::into_inner);
        instants.extend(dues);
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
        // Never without a breath, or what could not be rung would be tried in a tight loop.
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

/// Wakes a poll for each run that has become due.
///
/// # Errors
///
/// The database's.
pub async fn ring(app: &App) -> Result<(), DbError> {
    let now = app.clock.now();
    let mut dues = app.dues.take(now).into_iter();
    while let Some((at, requirement_id)) = dues.next() {
        // Several runs may be due at one instant; who is woken for nothing waits again.
        if let Err(error) = app.announce(requirement_id, now, usize::MAX).await {
            app.dues
                .put_back([(at, requirement_id)].into_iter().chain(dues));
            return Err(error);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_put_back_is_taken_again() {
        let dues = Dues::default();
        let now = Timestamp::UNIX_EPOCH;
        let later = Timestamp::MAX;
        for due in [(now, 1), (now, 2), (later, 3)] {
            dues.add(due.0, due.1);
        }
        let taken = dues.take(now);
        assert_eq!(taken, [(now, 1), (now, 2)]);
        assert_eq!(dues.first(), Some(later));
        dues.put_back(taken.into_iter().skip(1));
        assert_eq!(dues.take(now), [(now, 2)]);
    }
}
