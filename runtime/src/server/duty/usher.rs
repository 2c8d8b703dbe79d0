//! The usher: wakes polls for queued runs once nothing holds them up any more.
//!
//! Who may go on is decided by the claim alone, in its transaction; here it is only found out that it
//! is worth a look.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::Notify;

use super::{note, rest};
use crate::server::app::App;
use crate::server::db::{DbError, flow_run, slot};

/// The longest rest: another server may have queued a run, or ended one.
const REST_MAX: Duration = Duration::from_secs(1);

/// Whether runs are queued, and the bell of who looks after them.
#[derive(Default)]
pub(crate) struct Usher {
    has_queued: AtomicBool,
    bell: Notify,
}

impl Usher {
    /// Notes that a run was queued.
    pub(crate) fn has_queued(&self) {
        self.has_queued.store(true, Ordering::Relaxed);
    }

    /// Has the queued runs looked at, if there are any.
    pub(crate) fn look(&self) {
        if self.has_queued.load(Ordering::Relaxed) {
            self.bell.notify_one();
        }
    }

    /// Has the queued runs looked at: what holds them up was changed.
    pub(crate) fn nudge(&self) {
        self.bell.notify_one();
    }
}

/// Looks after queued runs until the server goes down.
pub(super) async fn keep(app: App) {
    loop {
        note("usher", usher(&app).await);
        if !rest(&app, REST_MAX, app.usher.bell.notified()).await {
            return;
        }
    }
}

/// Wakes polls for the queued runs that have room.
///
/// # Errors
///
/// The database's.
pub async fn usher(app: &App) -> Result<(), DbError> {
    // Before the look: what is queued during it is not forgotten.
    app.usher.has_queued.store(false, Ordering::Relaxed);
    let mut reader = app.db.reader().await?;
    let heads = flow_run::queued_heads(&mut reader).await?;
    if heads.is_empty() {
        return Ok(());
    }
    app.usher.has_queued();
    let room = slot::room(&mut reader).await?;
    drop(reader);
    for head in heads {
        if room.full(head.flow_id, head.project_id).is_none() {
            app.wake(head.requirement_id, 1).await?;
        }
    }
    Ok(())
}
