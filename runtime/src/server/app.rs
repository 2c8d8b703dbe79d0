//! What every handler and duty of one server shares.

use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::watch;

use super::access::Known;
use super::changes::Changes;
use super::db::tx::Tx;
use super::db::{Db, DbError, flow_run, pulse};
use super::duty::ringer::Dues;
use super::duty::usher::Usher;
use super::news::{Herald, News};
use super::overlap::Settled;
use super::session::Sessions;
use super::turn::Turns;
use super::waiting::Waiting;
use super::{LATE, ServerSettings};
use crate::clock::{Clock, Monotonic};
use crate::model::id::{AgentId, FlowRunId, FlowVersionId};
use crate::model::state::State;
use crate::wire::FlowRun;

/// One server. Cheap to clone.
#[derive(Clone)]
pub struct App(Arc<Parts>);

/// What it consists of.
pub struct Parts {
    /// The database.
    pub db: Db,
    /// The clock.
    pub clock: Clock,
    /// How long a lease lasts.
    pub lease: Duration,
    /// How long results are kept after their last use.
    pub results_keep: Duration,
    /// How long runs that are over are kept.
    pub runs_keep: Duration,
    /// Names by which the server may be called.
    pub hosts: Vec<String>,
    /// Sessions of agents.
    pub(super) sessions: Sessions,
    /// Polls that wait for work.
    pub(super) waiting: Waiting,
    /// Whose turn it is among projects.
    pub(super) turns: Turns,
    /// Calls that wait for a change of a run.
    pub(super) changes: Changes,
    /// Rung when a schedule was changed.
    pub(super) schedules: tokio::sync::Notify,
    /// Instants at which waiting runs become due.
    pub(super) dues: Dues,
    /// Runs that are queued, and who lets them go on.
    pub(super) usher: Usher,
    /// Tokens that were looked up a moment ago.
    pub(super) known: Known,
    /// What other servers of the database are to be told.
    pub(super) herald: Herald,
    /// True once the server is on its way down: whoever waits answers at once.
    pub(super) closing: watch::Sender<bool>,
    start: (Timestamp, Monotonic),
}

impl Deref for App {
    type Target = Parts;

    fn deref(&self) -> &Parts {
        &self.0
    }
}

impl App {
    pub(super) fn new(db: Db, settings: &ServerSettings) -> Self {
        let clock = settings.clock.clone();
        let start = (clock.now(), clock.monotonic());
        Self(Arc::new(Parts {
            db,
            clock,
            lease: settings.lease,
            results_keep: settings.results_keep,
            runs_keep: settings.runs_keep,
            hosts: settings.hosts.clone(),
            sessions: Sessions::default(),
            waiting: Waiting::default(),
            turns: Turns::default(),
            changes: Changes::default(),
            schedules: tokio::sync::Notify::new(),
            dues: Dues::default(),
            usher: Usher::default(),
            known: Known::default(),
            herald: Herald::default(),
            closing: watch::Sender::new(false),
            start,
        }))
    }

    /// Tells whether servers share the database, and so the time of leases and the knowledge of gaps. The
    /// clock of a test is one for all that it holds.
    #[must_use]
    pub fn has_pulse(&self) -> bool {
        self.db.is_shared() && self.clock.is_system()
    }

    /// Returns now in lease time. Where servers share a database that is its clock. Else it begins as
    /// the wall clock at the start of the server and runs on by what has passed since, so that a jump of
    /// the wall clock ends no lease.
    ///
    /// # Errors
    ///
    /// The database's.
    pub async fn lease_now(&self, tx: &mut Tx) -> Result<Timestamp, DbError> {
        match self.has_pulse() {
            true => pulse::now(tx).await,
            false => Ok(self.own_lease_now()),
        }
    }

    /// As [`App::lease_now`], for whoever has nothing to read.
    ///
    /// # Errors
    ///
    /// The database's.
    pub(super) async fn lease_now_alone(&self) -> Result<Timestamp, DbError> {
        match self.has_pulse() {
            true => pulse::now(&mut self.db.reader().await?).await,
            false => Ok(self.own_lease_now()),
        }
    }

    fn own_lease_now(&self) -> Timestamp {
        let passed = self.clock.monotonic().since(self.start.1);
        let now = self.start.0.saturating_add(passed);
        now.unwrap_or(Timestamp::MAX)
    }

    /// Returns when a lease ends that begins at an instant.
    #[must_use]
    pub fn lease_end(&self, from: Timestamp) -> Timestamp {
        from.saturating_add(self.lease).unwrap_or(Timestamp::MAX)
    }

    /// Returns when a call has waited long enough that asks to wait for so many seconds.
    pub(super) fn patience(&self, seconds: u32) -> Monotonic {
        /// The longest that a call waits, whatever it asks for.
        const WAIT_SECONDS_MAX: u32 = 30;
        let time = Duration::from_secs(seconds.min(WAIT_SECONDS_MAX).into());
        self.clock.monotonic() + time
    }

    /// Waits until something happens, the patience is at its end, or the server goes down; answers
    /// whether it happened.
    pub(super) async fn wait_for(&self, what: impl Future<Output = ()>, end: Monotonic) -> bool {
        let left = end.since(self.clock.monotonic());
        if left.is_zero() {
            return false;
        }
        let mut closing = self.closing.subscribe();
        tokio::select! {
            () = what => true,
            () = self.clock.sleep(left) => false,
            _ = closing.wait_for(|is_closing| *is_closing) => false,
        }
    }

    /// Adds to a run what depends on the time: until when its result is kept, and whether it is late.
    pub(super) fn shown(&self, mut run: FlowRun) -> FlowRun {
        let late_at = run.due_at.saturating_add(LATE).unwrap_or(Timestamp::MAX);
        run.is_late = run.state == State::Scheduled && late_at <= self.clock.now();
        let ended = run.result.as_ref().and(run.ended_at);
        run.result_until = ended.and_then(|at| at.checked_add(self.results_keep).ok());
        run
    }

    /// Returns how many polls wait for work.
    #[must_use]
    pub fn waiting_polls(&self) -> usize {
        self.waiting.count()
    }

    /// Tells everybody concerned that a run waits: polls if it is due, else the ringer.
    ///
    /// Whoever announces has written the run already. So nothing fails here: polls that cannot be
    /// woken now are left to the ringer.
    pub(super) async fn announce(&self, requirement_id: i64, due_at: Timestamp, count: usize) {
        if due_at > self.clock.now() {
            self.dues.add(due_at, requirement_id);
            return self.spread(News::Due(due_at, requirement_id));
        }
        let left = match self.wake(requirement_id, count).await {
            Ok(left) => left,
            Err(error) => {
                let error = &error as &dyn std::error::Error;
                tracing::error!(error, "polls could not be woken at once");
                self.dues.add(due_at, requirement_id);
                count
            }
        };
        if left > 0 {
            self.spread(News::Wake(requirement_id, left));
        }
    }

    /// Announces every run of a version that waits.
    pub(super) async fn announce_version(&self, version: FlowVersionId) {
        let listed = async {
            let mut reader = self.db.reader().await?;
            flow_run::waiting(&mut reader, version, self.clock.now()).await
        };
        match listed.await {
            Ok(lines) => {
                for line in lines {
                    self.announce(line.requirement_id, line.due_at, line.count)
                        .await;
                }
            }
            Err(error) => {
                let error = &error as &dyn std::error::Error;
                tracing::error!(error, "polls were not told what a registration has changed");
            }
        }
    }

    /// Wakes polls of this server for due runs; answers for how many of them there was none.
    pub(super) async fn wake(&self, requirement_id: i64, count: usize) -> Result<usize, DbError> {
        if self.waiting.count() == 0 {
            return Ok(count);
        }
        let known = match self.db.memory.known_requirement(requirement_id) {
            Some(known) => known,
            None => {
                let mut reader = self.db.reader().await?;
                self.db
                    .memory
                    .requirement(&mut reader, requirement_id)
                    .await?
            }
        };
        let now = self.clock.monotonic();
        Ok(self.waiting.wake(requirement_id, &known, count, now))
    }

    /// Tells whoever watches these runs to look again.
    pub(super) fn tell(&self, runs: &[FlowRunId]) {
        self.tell_here(runs);
        runs.iter().for_each(|run| self.spread(News::Run(*run)));
    }

    /// As [`App::tell`], at this server.
    pub(super) fn tell_here(&self, runs: &[FlowRunId]) {
        self.changes.tell(runs);
        // One of them may have left a slot, or been what another waits for.
        self.usher.look();
    }

    /// Tells agents that there is something for them to hear.
    pub(super) fn tell_agents(&self, agents: &[AgentId]) {
        self.sessions.listening.tell(agents);
        agents.iter().for_each(|id| self.spread(News::Agent(*id)));
    }

    /// Has the schedules looked at: one was changed.
    pub(super) fn nudge_schedules(&self) {
        self.schedules.notify_one();
        self.spread(News::Schedule);
    }

    /// Has the queued runs looked at: what holds them up was changed.
    pub(super) fn nudge_queued(&self) {
        self.usher.nudge();
        self.spread(News::Queue);
    }

    /// Tells everybody concerned what was decided about runs that may not overlap.
    pub(super) fn tell_settled(&self, settled: &Settled) {
        if settled.touched.is_empty() {
            return;
        }
        self.usher.has_queued();
        self.tell(&settled.touched);
        self.tell_agents(&settled.agents);
    }
}
