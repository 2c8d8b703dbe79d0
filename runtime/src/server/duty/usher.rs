//! The usher: wakes polls for queued runs once nothing holds them up any more, and has slots of tags given to
//! task runs that wait for them.
//!
//! Which runs may go on is decided by the claim alone, in its transaction, and who is given slots of tags by
//! `db/tag_slot.rs`; here it is only found out that it is worth a look.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::Notify;

use super::{note, rest};
use crate::model::id::ProjectId;
use crate::server::app::App;
use crate::server::db::{DbError, flow_run, slot, tag_slot};

/// The longest rest: another server may have queued a run, or ended one.
const REST_MAX: Duration = Duration::from_secs(1);

/// Whether runs or task runs are queued, and the bell of who looks after them.
#[derive(Default)]
pub(crate) struct Usher {
    has_queued: AtomicBool,
    bell: Notify,
}

impl Usher {
    /// Notes that a run or a task run was queued.
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

/// Wakes polls for the queued runs that have room, and gives out slots of tags.
///
/// # Errors
///
/// The database's.
pub async fn usher(app: &App) -> Result<(), DbError> {
    // Before the look: what is queued during it is not forgotten.
    app.usher.has_queued.store(false, Ordering::Relaxed);
    let mut reader = app.db.reader().await?;
    let in_line = tag_slot::projects(&mut reader).await?;
    let mut served = Vec::new();
    for project in &in_line {
        let plan = tag_slot::plan(&mut reader, *project, app.clock.now()).await?;
        served.extend(Some(*project).filter(|_| !plan.is_empty()));
    }
    let heads = flow_run::queued_heads(&mut reader).await?;
    if heads.is_empty() && in_line.is_empty() {
        return Ok(());
    }
    app.usher.has_queued();
    let room = slot::room(&mut reader).await?;
    drop(reader);
    app.give_slots(served).await;
    for head in heads {
        if room.full(head.flow_id, head.project_id).is_none() {
            app.wake(head.requirement_id, 1).await?;
        }
    }
    Ok(())
}

impl App {
    /// Gives the slots of tags in projects that are free to who waits for them.
    ///
    /// Whoever asked is in line already, so nothing fails here: what cannot be given now is given by the usher.
    pub(in crate::server) async fn give_slots(
        &self,
        projects: impl IntoIterator<Item = ProjectId>,
    ) {
        for project in projects {
            let now = self.clock.now();
            let given = self
                .db
                .write(move |tx| Box::pin(tag_slot::give(tx, project, now)))
                .await;
            self.usher.has_queued();
            let Some(given) = note("usher", given) else {
                continue;
            };
            let agents: Vec<_> = given.agents.into_iter().collect();
            self.tell_agents(&agents);
            for requirement_id in given.called {
                self.announce(requirement_id, now, 1).await;
            }
            if given.has_more {
                self.usher.nudge();
            }
        }
    }
}
