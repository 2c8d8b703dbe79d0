//! The table `flow_run`, and the one function by which a run changes state.
//!
//! Whoever wants to change runs reads a [`Standing`], lets it [`Standing::step`] (the rules of life are
//! `State::after`), and hands it to [`apply`] in the same transaction. The statement there checks the
//! version and the lease epoch that were read, so that nothing that happened in between is lost.

mod claimed;
mod ending;
mod line;
mod listing;
mod live;
mod people;
mod queued;
mod resting;
mod retried;
mod waiting;

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use jiff::Timestamp;

use super::sql::{Many, Sql};
use super::transition::Step;
use super::tx::{Arg, Json, Row, Tx, args};
use super::{DbError, transition};
use crate::model::artifact::Digest;
use crate::model::id::{AgentId, FlowId, FlowRunId, FlowVersionId, ProjectId, SessionId};
use crate::model::parameter::Bound;
use crate::model::run::ResultRef;
use crate::model::schedule::Overlap;
use crate::model::state::{Event, Refusal, State};
use crate::wire::LeaseKey;

pub use claimed::{Claimant, pin};
pub use ending::{cancel, end_by_hand, end_left, end_tasks};
pub use line::{Candidate, Head, heads, line, take, take_these};
#[cfg(test)]
pub(super) use line::{HEADS, LINE, LINE_WITHOUT};
pub use listing::{Filter, Found, find, list};
pub use live::{forget, live};
pub(super) use people::resume_decided;
pub use people::{Unheard, Unmarked, decide, decided_for, mark, paused};
pub use queued::{Going, QueuedHead, going, queued, queued_heads, take_going, take_queued};
#[cfg(test)]
pub(super) use resting::OVERDUE;
pub use resting::{is_overdue, overdue};
pub use retried::keep;
pub use waiting::{
    Waiting, bring_back, change_requirements, dues, newest, take_requirements, waiting,
};

/// What a change of a run has to know of it, and what the change makes of it.
#[derive(Clone, Debug)]
pub struct Standing {
    /// The run.
    pub id: FlowRunId,
    /// Its project.
    pub project_id: ProjectId,
    /// Its version.
    pub flow_version_id: FlowVersionId,
    /// The number of its requirement.
    pub requirement_id: i64,
    /// Where it stands.
    pub state: State,
    /// Why, in words.
    pub message: String,
    /// A stable word for what ended it.
    pub code: Option<String>,
    /// The number of its last transition.
    pub transition: u32,
    /// How often it was claimed.
    pub epoch: u32,
    /// How often its agent was lost while it ran.
    pub lost: u32,
    /// The number of the last report under this epoch.
    pub reported: u64,
    /// How many log lines it has.
    pub lines: u64,
    /// Task runs that were reported and are not over.
    pub open_tasks: u32,
    /// The agent that has or had it last.
    pub agent_id: Option<AgentId>,
    /// The session it was claimed by.
    pub session_id: Option<SessionId>,
    /// When it was claimed last, in lease time.
    pub claimed_at: Option<Timestamp>,
    /// Until when its agent has it, in lease time; none if nobody has.
    pub lease_until: Option<Timestamp>,
    /// When it was due at first.
    pub scheduled_at: Timestamp,
    /// When it may be claimed: later than that where it waits for a later attempt.
    pub due_at: Timestamp,
    /// How often it was handed back to wait.
    pub rests: u32,
    /// How long it may take from its start.
    pub timeout_ms: u64,
    /// When its first attempt began.
    pub started_at: Option<Timestamp>,
    /// When it will have taken as long as it may; none before it has begun, and while it is paused.
    pub deadline_at: Option<Timestamp>,
    /// While it is paused: how long it may still take.
    pub left_ms: Option<u64>,
    /// The run of which it keeps what went well, if it is a retry.
    pub retry_of: Option<FlowRunId>,
    /// When it was over.
    pub ended_at: Option<Timestamp>,
    /// Where its result is kept.
    pub result: Option<ResultRef>,
    /// The version and epoch that were read.
    read: (u32, u32),
    steps: Vec<Step>,
}

/// Something that moves a run.
#[derive(Clone, Debug)]
pub struct Move<'a> {
    /// What.
    pub event: Event,
    /// Why, in words.
    pub message: &'a str,
    /// A stable word for what ended it.
    pub code: Option<&'a str>,
    /// When, by the server's clock.
    pub at: Timestamp,
    /// Who.
    pub by: &'a str,
}

impl Standing {
    /// Returns the run under its last claim.
    #[must_use]
    pub const fn lease(&self) -> LeaseKey {
        LeaseKey {
            flow_run_id: self.id,
            epoch: self.epoch,
        }
    }

    /// Moves the run; the table of states decides where to.
    ///
    /// # Errors
    ///
    /// Refuses what may not happen, and then changes nothing.
    pub fn step(&mut self, moved: &Move<'_>) -> Result<(), Refusal> {
        self.state = self.state.after(moved.event)?;
        moved.message.clone_into(&mut self.message);
        self.code = moved.code.map(str::to_owned);
        if self.state == State::Running && self.started_at.is_none() {
            self.started_at = Some(moved.at);
            let may_take = Duration::from_millis(self.timeout_ms);
            self.deadline_at = moved.at.checked_add(may_take).ok();
        }
        if moved.event == Event::Pause {
            self.stop_clock(moved.at);
        }
        if moved.event == Event::Resume {
            self.go_on(moved.at);
        }
        if matches!(self.state, State::Scheduled | State::Paused) || self.state.is_over() {
            (self.session_id, self.lease_until) = (None, None);
        }
        if self.state.is_over() {
            self.ended_at = Some(moved.at);
        }
        self.note(None, moved, self.state);
        Ok(())
    }

    /// Adds a step to the history: of the run, or of one of its task runs.
    pub(super) fn note(
        &mut self,
        task: Option<(u32, Option<u32>)>,
        moved: &Move<'_>,
        state: State,
    ) {
        self.transition += 1;
        self.steps.push(Step {
            number: self.transition,
            at: moved.at,
            task,
            event: Some(moved.event),
            state,
            message: moved.message.to_owned(),
            by: moved.by.to_owned(),
            epoch: self.epoch,
        });
    }
}

macro_rules! select {
    ($($rest:literal),+) => {
        concat!(
            "SELECT id, project_id, flow_version_id, requirement_id, state, message, code, ",
            "transition, epoch, lost, reported, lines, open_tasks, agent_id, session_id, ",
            "claimed_at, lease_until, scheduled_at, started_at, ended_at, result, parameters, ",
            "timeout_ms, flow_id, overlap, clock, rank, due_at, rests, deadline_at, left_ms, ",
            "retry_of FROM flow_run ",
            $($rest),+
        )
    };
}

use select;

fn standing(row: &Row) -> Result<Standing, DbError> {
    let result: Option<Json<ResultRef>> = row.get(20)?;
    let (transition, epoch) = (row.get(7)?, row.get(8)?);
    Ok(Standing {
        id: row.get(0)?,
        project_id: row.get(1)?,
        flow_version_id: row.get(2)?,
        requirement_id: row.get(3)?,
        state: row.get(4)?,
        message: row.get(5)?,
        code: row.get(6)?,
        transition,
        epoch,
        lost: row.get(9)?,
        reported: row.get(10)?,
        lines: row.get(11)?,
        open_tasks: row.get(12)?,
        agent_id: row.get(13)?,
        session_id: row.get(14)?,
        claimed_at: row.get(15)?,
        lease_until: row.get(16)?,
        scheduled_at: row.get(17)?,
        due_at: row.get(27)?,
        rests: row.get(28)?,
        timeout_ms: row.get(22)?,
        started_at: row.get(18)?,
        deadline_at: row.get(29)?,
        left_ms: row.get(30)?,
        retry_of: row.get(31)?,
        ended_at: row.get(19)?,
        result: result.map(|Json(result)| result),
        read: (transition, epoch),
        steps: Vec::new(),
    })
}

pub(super) static READ: Many = Many::with(
    select!("WHERE id IN (VALUES "),
    "($::bytea)",
    Sql {
        sqlite: ")",
        postgres: ") ORDER BY id FOR UPDATE",
    },
);

/// Reads how runs stand, to change them in this transaction; unknown ones are missing. Nobody else
/// changes them until it ends.
pub async fn read(
    tx: &mut Tx,
    ids: impl IntoIterator<Item = FlowRunId>,
) -> Result<Vec<Standing>, DbError> {
    let rows = tx.rows_many(&READ, sorted(ids)).await?;
    rows.iter().map(standing).collect()
}

static LOCK: Many = Many::with(
    "SELECT id FROM flow_run WHERE id IN (VALUES ",
    "($::bytea)",
    Sql {
        sqlite: ")",
        postgres: ") ORDER BY id FOR UPDATE",
    },
);

/// Keeps everybody else from changing runs until this transaction ends.
pub(super) async fn lock(
    tx: &mut Tx,
    ids: impl IntoIterator<Item = FlowRunId>,
) -> Result<(), DbError> {
    tx.rows_many(&LOCK, sorted(ids)).await.map(drop)
}

static EPOCHS: Many = Many::new(
    "SELECT id, epoch FROM flow_run WHERE id IN (VALUES ",
    "($::bytea)",
    ")",
);

/// Returns the epochs of runs; unknown ones are missing.
pub async fn epochs(
    tx: &mut Tx,
    ids: impl IntoIterator<Item = FlowRunId>,
) -> Result<HashMap<FlowRunId, u32>, DbError> {
    let rows = tx.rows_many(&EPOCHS, sorted(ids)).await?;
    rows.iter()
        .map(|row| Ok((row.get(0)?, row.get(1)?)))
        .collect()
}

/// Writes ids as rows of arguments, each once, in the order in which everybody locks runs.
fn sorted(ids: impl IntoIterator<Item = FlowRunId>) -> Vec<Vec<Arg>> {
    let ids: BTreeSet<FlowRunId> = ids.into_iter().collect();
    ids.into_iter().map(|id| args![id]).collect()
}

macro_rules! lapsed {
    ($rest:literal) => {
        select!(
            "WHERE lease_until IS NOT NULL AND lease_until < $1 ORDER BY lease_until LIMIT $2",
            $rest
        )
    };
}

/// Tells whether the lease of a run ended before `at`.
pub async fn has_lapsed(tx: &mut Tx, at: Timestamp) -> Result<bool, DbError> {
    let row = tx.row(lapsed!(""), args![at, 1]).await?;
    Ok(row.is_some())
}

/// Reads how the runs stand whose lease ended before `at`, to change them in this transaction.
///
/// The longest ended first. What somebody else is changing meanwhile is left out: it is heard of, or another
/// server rescues it.
pub async fn lapsed(tx: &mut Tx, at: Timestamp, limit: u32) -> Result<Vec<Standing>, DbError> {
    let sql = Sql {
        sqlite: lapsed!(""),
        postgres: lapsed!(" FOR UPDATE SKIP LOCKED"),
    };
    let rows = tx.rows(sql, args![at, limit]).await?;
    rows.iter().map(standing).collect()
}

/// Reads how the runs stand that an agent has.
pub async fn of_agent(tx: &mut Tx, agent: AgentId) -> Result<Vec<Standing>, DbError> {
    let sql = select!("WHERE agent_id = $1 AND lease_until IS NOT NULL");
    let rows = tx.rows(sql, args![agent]).await?;
    rows.iter().map(standing).collect()
}

/// Lists the agents that have runs of a project.
pub async fn agents_of(tx: &mut Tx, project: ProjectId) -> Result<Vec<AgentId>, DbError> {
    let rows = tx.rows(AGENTS_OF, args![project]).await?;
    rows.iter().map(|row| row.get(0)).collect()
}

pub(super) const AGENTS_OF: Sql = Sql {
    sqlite: "SELECT DISTINCT agent_id FROM flow_run INDEXED BY flow_run_leased \
             WHERE project_id = $1 AND lease_until IS NOT NULL AND agent_id IS NOT NULL",
    postgres: "SELECT DISTINCT agent_id FROM flow_run WHERE project_id = $1 \
               AND lease_until IS NOT NULL AND agent_id IS NOT NULL",
};

/// Keeps everybody else from changing the runs of a project that agents have, until this transaction ends.
pub async fn lock_leased(tx: &mut Tx, project: ProjectId) -> Result<(), DbError> {
    if tx.is_shared() {
        let sql = "SELECT 1 FROM flow_run WHERE project_id = $1 AND lease_until IS NOT NULL \
                   ORDER BY id FOR UPDATE";
        tx.rows(sql, args![project]).await?;
    }
    Ok(())
}

/// Reads how the runs stand that an agent has, to change them in this transaction.
pub async fn take_of_agent(tx: &mut Tx, agent: AgentId) -> Result<Vec<Standing>, DbError> {
    let sql = Sql {
        sqlite: select!("WHERE agent_id = $1 AND lease_until IS NOT NULL"),
        postgres: select!("WHERE agent_id = $1 AND lease_until IS NOT NULL ORDER BY id FOR UPDATE"),
    };
    let rows = tx.rows(sql, args![agent]).await?;
    rows.iter().map(standing).collect()
}

pub(super) static APPLY: Many = Many::new(
    "WITH n (id, was, under, state, message, code, transition, epoch, lost, reported, lines, \
     open_tasks, agent_id, session_id, claimed_at, lease_until, started_at, ended_at, \
     requirement_id, result, due_at, rests, deadline_at, left_ms) AS (VALUES ",
    "($::bytea, $::bigint, $::bigint, $::text, $::text, $::text, $::bigint, $::bigint, $::bigint, \
     $::bigint, $::bigint, $::bigint, $::bytea, $::bytea, $::bigint, $::bigint, $::bigint, \
     $::bigint, $::bigint, $::text, $::bigint, $::bigint, $::bigint, $::bigint)",
    ") UPDATE flow_run SET state = n.state, message = n.message, code = n.code, \
     transition = n.transition, epoch = n.epoch, lost = n.lost, reported = n.reported, \
     lines = n.lines, open_tasks = n.open_tasks, agent_id = n.agent_id, \
     session_id = n.session_id, claimed_at = n.claimed_at, lease_until = n.lease_until, \
     started_at = n.started_at, ended_at = n.ended_at, requirement_id = n.requirement_id, \
     result = n.result, due_at = n.due_at, rests = n.rests, deadline_at = n.deadline_at, \
     left_ms = n.left_ms FROM n \
     WHERE flow_run.id = n.id AND flow_run.transition = n.was AND flow_run.epoch = n.under",
);

/// Writes what became of runs, with their histories. The only way a run changes state.
///
/// # Errors
///
/// [`DbError::Raced`] if one of them is not as it was read any more; the caller's closure ends with
/// it and nothing is written.
pub async fn apply(tx: &mut Tx, runs: Vec<Standing>) -> Result<(), DbError> {
    let mut steps = Vec::new();
    let mut rows = Vec::new();
    for run in runs {
        let row = args![
            run.id,
            run.read.0,
            run.read.1,
            run.state,
            run.message,
            run.code,
            run.transition,
            run.epoch,
            run.lost,
            run.reported,
            run.lines,
            run.open_tasks,
            run.agent_id,
            run.session_id,
            run.claimed_at,
            run.lease_until,
            run.started_at,
            run.ended_at,
            run.requirement_id,
            run.result.map(Json),
            run.due_at,
            run.rests,
            run.deadline_at,
            run.left_ms,
        ];
        rows.push(row);
        steps.extend(run.steps.into_iter().map(|step| (run.id, step)));
    }
    let expected = rows.len() as u64;
    if tx.run_many(&APPLY, rows).await? != expected {
        return Err(tx.raced());
    }
    transition::add(tx, steps).await
}

/// A run to be made.
#[derive(Clone, Debug)]
pub struct New {
    /// Its id, of [`New::id_at`].
    pub id: FlowRunId,
    /// Its flow.
    pub flow_id: FlowId,
    /// Its version.
    pub flow_version_id: FlowVersionId,
    /// Another requirement than the version's.
    pub requirement_id: Option<i64>,
    /// Its parameters, defaults filled in.
    pub parameters: Bound,
    /// Higher goes first.
    pub priority: i32,
    /// Now.
    pub created_at: Timestamp,
    /// When it is due.
    pub scheduled_at: Timestamp,
    /// How long it may take.
    pub timeout_ms: u64,
    /// The clock that makes it and the instant it stands for.
    pub clock: Option<(String, Timestamp)>,
    /// What the schedule of its version says about runs that overlap.
    pub overlap: Overlap,
    /// The key of the request, and its digest.
    pub idempotency: Option<(String, Digest)>,
    /// Who asks for it.
    pub by: String,
}

impl New {
    /// Makes an id. Ids are in the order in which runs are due: so lists show them.
    #[must_use]
    pub fn id_at(now: Timestamp, scheduled_at: Timestamp) -> FlowRunId {
        FlowRunId::at(now.max(scheduled_at).as_microsecond(), rand::random())
    }
}

const ADD: Sql = Sql {
    sqlite: "INSERT INTO flow_run (id, project_id, flow_id, flow_version_id, requirement_id, \
        state, message, parameters, rank, created_at, scheduled_at, timeout_ms, transition, epoch, \
        lost, reported, lines, open_tasks, clock, nominal_at, overlap, idempotency_key, \
        request_digest, due_at) \
        SELECT $1, f.project_id, f.id, v.id, coalesce($4, v.requirement_id), 'Scheduled', '', $5, \
        $6, $7, $8, $9, 1, 0, 0, 0, 0, 0, $10, $11, $12, $13, $14, $8 \
        FROM flow f JOIN flow_version v ON v.flow_id = f.id \
        WHERE f.id = $2 AND v.id = $3 AND NOT f.is_archived ON CONFLICT DO NOTHING; \
        INSERT INTO transition (flow_run_id, number, at, state, message, by_whom, epoch) \
        SELECT $1, 1, $7, 'Scheduled', '', $15, 0 WHERE changes() > 0",
    // Locked against a registration, which may give the version another requirement.
    postgres: "WITH pinned AS (SELECT f.project_id, f.id, v.id AS version, v.requirement_id \
        FROM flow f JOIN flow_version v ON v.flow_id = f.id \
        WHERE f.id = $2 AND v.id = $3 AND NOT f.is_archived FOR KEY SHARE OF f, v), \
        made AS (INSERT INTO flow_run (id, project_id, flow_id, flow_version_id, requirement_id, \
        state, message, parameters, rank, created_at, scheduled_at, timeout_ms, transition, epoch, \
        lost, reported, lines, open_tasks, clock, nominal_at, overlap, idempotency_key, \
        request_digest, due_at) \
        SELECT $1::bytea, project_id, id, version, coalesce($4::bigint, requirement_id), \
        'Scheduled', '', $5::text, $6::bigint, $7::bigint, $8::bigint, $9::bigint, 1, 0, 0, 0, 0, \
        0, $10::text, $11::bigint, $12::text, $13::text, $14::bytea, $8::bigint FROM pinned \
        ON CONFLICT DO NOTHING RETURNING id) \
        INSERT INTO transition (flow_run_id, number, at, state, message, by_whom, epoch) \
        SELECT id, 1, $7::bigint, 'Scheduled', '', $15::text, 0 FROM made",
};

/// Adds a run with the first step of its history; answers whether it was added.
///
/// It is not if the flow is archived or gone, or if there is a run for the same instant of the same
/// clock or with the same idempotency key already.
pub async fn add(tx: &mut Tx, new: &New) -> Result<bool, DbError> {
    let clock = new.clock.as_ref();
    let key = new.idempotency.as_ref();
    let args = args![
        new.id,
        new.flow_id,
        new.flow_version_id,
        new.requirement_id,
        Json(&new.parameters),
        -new.priority,
        new.created_at,
        new.scheduled_at,
        new.timeout_ms,
        clock.map(|(name, _)| name),
        clock.map(|(_, at)| *at),
        Some(new.overlap).filter(|overlap| *overlap != Overlap::Allow),
        key.map(|(key, _)| key),
        key.map(|(_, digest)| *digest),
        &new.by,
    ];
    Ok(tx.run(ADD, args).await? > 0)
}

/// Finds the run of an idempotency key, with the digest of the request that made it.
pub async fn by_idempotency_key(
    tx: &mut Tx,
    flow: FlowId,
    key: &str,
) -> Result<Option<(FlowRunId, Digest)>, DbError> {
    let sql = "SELECT id, request_digest FROM flow_run WHERE flow_id = $1 AND idempotency_key = $2";
    let row = tx.row(sql, args![flow, key]).await?;
    row.map(|row| Ok((row.get(0)?, row.get(1)?))).transpose()
}

/// Deletes a run that no agent has; answers whether it was deleted.
pub async fn delete(tx: &mut Tx, id: FlowRunId) -> Result<bool, DbError> {
    let sql = "DELETE FROM flow_run WHERE id = $1 AND lease_until IS NULL";
    Ok(tx.run(sql, args![id]).await? > 0)
}
