//! The table `flow_run`, and the one function by which a run changes state.
//!
//! Whoever wants to change runs reads a [`Standing`], lets it [`Standing::step`] (the rules of life are
//! `State::after`), and hands it to [`apply`] in the same transaction. The statement there checks the
//! version and the lease epoch that were read, so that nothing that happened in between is lost.

mod ending;
mod queued;
mod waiting;

use std::sync::Arc;

use jiff::Timestamp;

use super::flow_version::Version;
use super::memory::Memory;
use super::realm::Realm;
use super::transition::Step;
use super::tx::{Arg, Json, Many, Row, Tx, args};
use super::{DbError, requirement, task_run, transition};
use crate::model::artifact::Digest;
use crate::model::id::{AgentId, FlowId, FlowRunId, FlowVersionId, ProjectId, SessionId};
use crate::model::parameter::Bound;
use crate::model::run::ResultRef;
use crate::model::schedule::Overlap;
use crate::model::state::{Event, Refusal, State};
use crate::wire::{FlowRun, LeaseKey};

pub use ending::{cancel, end_left, end_tasks};
pub use queued::{Going, QueuedHead, going, queued, queued_heads, take_queued};
pub use waiting::{Waiting, change_requirements, dues, requirements, waiting};

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
    /// When it is due.
    pub scheduled_at: Timestamp,
    /// When its first attempt began.
    pub started_at: Option<Timestamp>,
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

/// Who claims, and until when.
#[derive(Clone, Copy, Debug)]
pub struct Claimant {
    /// The agent.
    pub agent_id: AgentId,
    /// Its session.
    pub session_id: SessionId,
    /// Now, in lease time.
    pub claimed_at: Timestamp,
    /// When the lease ends, in lease time.
    pub lease_until: Timestamp,
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
        }
        if self.state == State::Scheduled || self.state.is_over() {
            (self.session_id, self.lease_until) = (None, None);
        }
        if self.state.is_over() {
            self.ended_at = Some(moved.at);
        }
        self.note(None, moved, self.state);
        Ok(())
    }

    /// Moves the run into the hands of an agent, under a new epoch.
    ///
    /// # Errors
    ///
    /// Refuses what may not happen, and then changes nothing.
    pub fn claim(&mut self, who: &Claimant, at: Timestamp, by: &str) -> Result<(), Refusal> {
        self.state.after(Event::Claim)?;
        self.epoch += 1;
        self.reported = 0;
        self.agent_id = Some(who.agent_id);
        self.session_id = Some(who.session_id);
        self.claimed_at = Some(who.claimed_at);
        self.lease_until = Some(who.lease_until);
        self.step(&Move {
            event: Event::Claim,
            message: "",
            code: None,
            at,
            by,
        })
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
    ($rest:literal) => {
        concat!(
            "SELECT id, project_id, flow_version_id, requirement_id, state, message, code, ",
            "transition, epoch, lost, reported, lines, open_tasks, agent_id, session_id, ",
            "claimed_at, lease_until, scheduled_at, started_at, ended_at, result, parameters, ",
            "timeout_ms, flow_id, overlap, clock FROM flow_run ",
            $rest
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
        started_at: row.get(18)?,
        ended_at: row.get(19)?,
        result: result.map(|Json(result)| result),
        read: (transition, epoch),
        steps: Vec::new(),
    })
}

pub(super) static READ: Many = Many::new(select!("WHERE id IN (VALUES "), "($)", ")");

/// Reads how runs stand, to change them in this transaction; unknown ones are missing.
pub async fn read(
    tx: &mut Tx,
    ids: impl IntoIterator<Item = FlowRunId>,
) -> Result<Vec<Standing>, DbError> {
    let ids = ids.into_iter().map(|id| args![id]).collect();
    let rows = tx.rows_many(&READ, ids).await?;
    rows.iter().map(standing).collect()
}

/// Reads how the runs stand whose lease ended before `at`, the longest ended first.
pub async fn lapsed(tx: &mut Tx, at: Timestamp, limit: u32) -> Result<Vec<Standing>, DbError> {
    let sql =
        select!("WHERE lease_until IS NOT NULL AND lease_until < $1 ORDER BY lease_until LIMIT $2");
    let rows = tx.rows(sql, args![at, limit]).await?;
    rows.iter().map(standing).collect()
}

/// Reads how the runs stand that an agent has.
pub async fn of_agent(tx: &mut Tx, agent: AgentId) -> Result<Vec<Standing>, DbError> {
    let sql = select!("WHERE agent_id = $1 AND lease_until IS NOT NULL");
    let rows = tx.rows(sql, args![agent]).await?;
    rows.iter().map(standing).collect()
}

pub(super) static APPLY: Many = Many::new(
    "WITH n (id, was, under, state, message, code, transition, epoch, lost, reported, lines, \
     open_tasks, agent_id, session_id, claimed_at, lease_until, started_at, ended_at, \
     requirement_id, result) AS (VALUES ",
    "($, $, $, $, $, $, $, $, $, $, $, $, $, $, $, $, $, $, $, $)",
    ") UPDATE flow_run SET state = n.state, message = n.message, code = n.code, \
     transition = n.transition, epoch = n.epoch, lost = n.lost, reported = n.reported, \
     lines = n.lines, open_tasks = n.open_tasks, agent_id = n.agent_id, \
     session_id = n.session_id, claimed_at = n.claimed_at, lease_until = n.lease_until, \
     started_at = n.started_at, ended_at = n.ended_at, requirement_id = n.requirement_id, \
     result = n.result FROM n \
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
        ];
        rows.push(row);
        steps.extend(run.steps.into_iter().map(|step| (run.id, step)));
    }
    let expected = rows.len() as u64;
    if tx.run_many(&APPLY, rows).await? != expected {
        return Err(DbError::Raced);
    }
    transition::add(tx, steps).await
}

/// Makes a run that waits again require the root that the results of its finished tasks lie in.
pub async fn pin_results(tx: &mut Tx, memory: &Memory, run: &mut Standing) -> Result<(), DbError> {
    let Some(result) = task_run::newest_result(tx, run.id).await? else {
        return Ok(());
    };
    let known = memory.requirement(tx, run.requirement_id).await?;
    if known.results_root.as_ref() == Some(&result.root) {
        return Ok(());
    }
    let mut changed = (*known).clone();
    changed.results_root = Some(result.root);
    run.requirement_id = requirement::intern(tx, &changed).await?;
    Ok(())
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

const ADD: &str = "INSERT INTO flow_run (id, project_id, flow_id, flow_version_id, requirement_id, \
    state, message, parameters, rank, created_at, scheduled_at, timeout_ms, transition, epoch, lost, \
    reported, lines, open_tasks, clock, nominal_at, overlap, idempotency_key, request_digest) \
    SELECT $1, f.project_id, f.id, v.id, coalesce($4, v.requirement_id), 'Scheduled', '', $5, $6, $7, \
    $8, $9, 1, 0, 0, 0, 0, 0, $10, $11, $12, $13, $14 \
    FROM flow f JOIN flow_version v ON v.flow_id = f.id \
    WHERE f.id = $2 AND v.id = $3 AND NOT f.is_archived ON CONFLICT DO NOTHING; \
    INSERT INTO transition (flow_run_id, number, at, state, message, by_whom, epoch) \
    SELECT $1, 1, $7, 'Scheduled', '', $15, 0 WHERE changes() > 0";

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

/// The first run in line of those with one requirement and one priority.
#[derive(Clone, Copy, Debug)]
pub struct Head {
    /// The number of the requirement.
    pub requirement_id: i64,
    /// The priority with its sign turned.
    pub rank: i32,
    /// When it is due.
    pub scheduled_at: Timestamp,
}

pub(super) const HEADS: &str = "WITH RECURSIVE head (requirement_id, rank, scheduled_at) \
    AS (SELECT * FROM (SELECT requirement_id, rank, scheduled_at FROM flow_run \
    WHERE state = 'Scheduled' ORDER BY requirement_id, rank, scheduled_at LIMIT 1) \
    UNION ALL SELECT r.requirement_id, r.rank, r.scheduled_at FROM head h \
    JOIN flow_run r ON r.id = coalesce( \
    (SELECT n.id FROM flow_run n WHERE n.state = 'Scheduled' \
    AND n.requirement_id = h.requirement_id AND n.rank > h.rank \
    ORDER BY n.rank, n.scheduled_at LIMIT 1), \
    (SELECT n.id FROM flow_run n WHERE n.state = 'Scheduled' \
    AND n.requirement_id > h.requirement_id \
    ORDER BY n.requirement_id, n.rank, n.scheduled_at LIMIT 1))) \
    SELECT requirement_id, rank, scheduled_at FROM head";

/// Lists the head of each line, by jumping through the index from line to line: the cost grows with
/// the number of lines, not with the number of runs that wait in them.
pub async fn heads(tx: &mut Tx) -> Result<Vec<Head>, DbError> {
    let rows = tx.rows(HEADS, args![]).await?;
    rows.iter()
        .map(|row| {
            Ok(Head {
                requirement_id: row.get(0)?,
                rank: row.get(1)?,
                scheduled_at: row.get(2)?,
            })
        })
        .collect()
}

/// A run that may be claimed, with what its agent needs.
#[derive(Clone, Debug)]
pub struct Candidate {
    /// How it stands.
    pub standing: Standing,
    /// Its parameters.
    pub parameters: Bound,
    /// How long it may take.
    pub timeout_ms: u64,
    /// Its flow.
    pub flow_id: FlowId,
    /// What its schedule says about runs that overlap, if a clock made it and no agent has begun it.
    pub overlap: Option<Overlap>,
}

fn candidate(row: &Row) -> Result<Candidate, DbError> {
    let Json(parameters) = row.get(21)?;
    let standing = standing(row)?;
    let clock: Option<String> = row.get(25)?;
    let is_new = clock.is_some() && standing.epoch == 0;
    Ok(Candidate {
        parameters,
        timeout_ms: row.get(22)?,
        flow_id: row.get(23)?,
        overlap: row.get::<Option<Overlap>>(24)?.filter(|_| is_new),
        standing,
    })
}

pub(super) const LINE: &str = select!(
    "WHERE state = 'Scheduled' AND requirement_id = $1 AND rank = $2 AND scheduled_at <= $3 \
     ORDER BY scheduled_at LIMIT $4"
);

/// As [`LINE`] without some versions. Only the first of the line are looked at, so that what is left out
/// costs no more, however much of it waits.
pub(super) const LINE_WITHOUT: &str = select!(
    "WHERE id IN (SELECT n.id FROM flow_run n WHERE n.state = 'Scheduled' \
     AND n.requirement_id = $1 AND n.rank = $2 AND n.scheduled_at <= $3 \
     ORDER BY n.scheduled_at LIMIT 1000) \
     AND hex(flow_version_id) NOT IN (SELECT value FROM json_each($5)) \
     ORDER BY scheduled_at LIMIT $4"
);

/// Reads the first due runs of a line, but for those of some versions.
pub async fn line(
    tx: &mut Tx,
    head: &Head,
    without: &[FlowVersionId],
    now: Timestamp,
    limit: u32,
) -> Result<Vec<Candidate>, DbError> {
    let mut args = args![head.requirement_id, head.rank, now, limit];
    let sql = match without {
        [] => LINE,
        _ => {
            let hex = without.iter().map(|id| hex::encode_upper(id.as_bytes()));
            args.push(Json(hex.collect::<Vec<_>>()).into());
            LINE_WITHOUT
        }
    };
    let rows = tx.rows(sql, args).await?;
    rows.iter().map(candidate).collect()
}

/// Deletes a run that no agent has; answers whether it was deleted.
pub async fn delete(tx: &mut Tx, id: FlowRunId) -> Result<bool, DbError> {
    let sql = "DELETE FROM flow_run WHERE id = $1 AND lease_until IS NULL";
    Ok(tx.run(sql, args![id]).await? > 0)
}

macro_rules! listed {
    ($rest:literal) => {
        concat!(
            "SELECT r.id, r.flow_version_id, r.state, r.message, r.code, r.parameters, ",
            "r.requirement_id, r.rank, r.created_at, r.scheduled_at, r.started_at, r.ended_at, ",
            "r.epoch, (SELECT a.name FROM agent a WHERE a.id = r.agent_id), r.result, ",
            "r.transition, r.clock, r.project_id FROM flow_run r ",
            $rest
        )
    };
}

async fn listed(tx: &mut Tx, memory: &Memory, row: &Row) -> Result<FlowRun, DbError> {
    let version = memory.version(tx, row.get(1)?).await?;
    let version = version.ok_or(DbError::Raced)?;
    let requirement = memory.requirement(tx, row.get(6)?).await?;
    let Json(parameters) = row.get(5)?;
    let result: Option<Json<ResultRef>> = row.get(14)?;
    let rank: i32 = row.get(7)?;
    Ok(FlowRun {
        id: row.get(0)?,
        flow_run_id: row.get(0)?,
        flow: version.flow.clone(),
        flow_id: version.flow_id,
        project: version.project.clone(),
        version: version.version,
        artifact: version.artifact,
        state: row.get(2)?,
        message: row.get(3)?,
        code: row.get(4)?,
        parameters,
        labels: requirement.labels.clone(),
        priority: -rank,
        created_at: row.get(8)?,
        scheduled_at: row.get(9)?,
        started_at: row.get(10)?,
        ended_at: row.get(11)?,
        claims: row.get(12)?,
        agent: row.get(13)?,
        result: result.map(|Json(result)| result),
        result_until: None,
        transition: row.get(15)?,
        clock: row.get(16)?,
    })
}

/// A run as others see it, and its version.
pub struct Found {
    /// The run.
    pub flow_run: FlowRun,
    /// Its version.
    pub version: Arc<Version>,
    /// The number of its requirement.
    pub requirement_id: i64,
}

/// Finds a run of the realm.
pub async fn find(
    tx: &mut Tx,
    memory: &Memory,
    realm: &Realm,
    id: FlowRunId,
) -> Result<Option<Found>, DbError> {
    let row = tx.row(listed!("WHERE r.id = $1"), args![id]).await?;
    let Some(row) = row.filter(|row| row.get(17).is_ok_and(|project| realm.has(project))) else {
        return Ok(None);
    };
    let version = memory.version(tx, row.get(1)?).await?;
    Ok(Some(Found {
        flow_run: listed(tx, memory, &row).await?,
        version: version.ok_or(DbError::Raced)?,
        requirement_id: row.get(6)?,
    }))
}

/// Which runs are listed.
#[derive(Clone, Debug)]
pub struct Filter {
    /// Those that may be seen.
    pub realm: Realm,
    /// Only of this project.
    pub project: Option<ProjectId>,
    /// Only of this flow.
    pub flow: Option<FlowId>,
    /// Only in this state.
    pub state: Option<State>,
    /// Only those before this one.
    pub before: Option<FlowRunId>,
    /// Now.
    pub now: Timestamp,
    /// At most so many.
    pub limit: u32,
}

/// Lists runs, the last due first: ids are in the order of due times.
///
/// Those that a clock made ahead are left out until they are due, unless a state is asked for: they
/// would stand before everything that has happened.
///
/// Four statements for one question, so that each has an index that serves it: by flow, by project,
/// of those that are not over, and all.
pub async fn list(tx: &mut Tx, memory: &Memory, filter: &Filter) -> Result<Vec<FlowRun>, DbError> {
    let state: Arg = filter.state.into();
    let is_live = filter.state.is_some_and(|state| !state.is_over());
    let (before, limit, now) = (filter.before, filter.limit, filter.now);
    let rows = match (filter.flow, filter.project) {
        (Some(flow), _) => {
            let sql = listed!(
                "WHERE r.flow_id = $4 AND r.id < coalesce($1, x'ffffffffffffffffffffffffffffffffff') \
                 AND (r.state = $3 OR $3 IS NULL AND NOT (r.clock IS NOT NULL AND \
                 r.state = 'Scheduled' AND r.scheduled_at > $5)) \
                 ORDER BY r.id DESC LIMIT $2"
            );
            tx.rows(sql, args![before, limit, state, flow, now]).await?
        }
        (None, Some(project)) if !is_live => {
            let sql = listed!(
                "WHERE r.project_id = $4 AND r.id < coalesce($1, x'ffffffffffffffffffffffffffffffffff') \
                 AND (r.state = $3 OR $3 IS NULL AND NOT (r.clock IS NOT NULL AND \
                 r.state = 'Scheduled' AND r.scheduled_at > $5)) \
                 ORDER BY r.id DESC LIMIT $2"
            );
            tx.rows(sql, args![before, limit, state, project, now])
                .await?
        }
        (None, project) if is_live => {
            let sql = listed!(
                "WHERE r.ended_at IS NULL AND r.id < coalesce($1, x'ffffffffffffffffffffffffffffffffff') \
                 AND r.state = $3 AND ($4 IS NULL OR r.project_id = $4) \
                 AND ($5 IS NULL OR hex(r.project_id) IN (SELECT value FROM json_each($5))) \
                 ORDER BY r.id DESC LIMIT $2"
            );
            tx.rows(
                sql,
                args![before, limit, state, project, filter.realm.arg()],
            )
            .await?
        }
        _ => {
            let sql = listed!(
                "WHERE r.id < coalesce($1, x'ffffffffffffffffffffffffffffffffff') \
                 AND (r.state = $3 OR $3 IS NULL AND NOT (r.clock IS NOT NULL AND \
                 r.state = 'Scheduled' AND r.scheduled_at > $5)) \
                 AND ($4 IS NULL OR hex(r.project_id) IN (SELECT value FROM json_each($4))) \
                 ORDER BY r.id DESC LIMIT $2"
            );
            tx.rows(sql, args![before, limit, state, filter.realm.arg(), now])
                .await?
        }
    };
    let mut runs = Vec::with_capacity(rows.len());
    for row in &rows {
        runs.push(listed(tx, memory, row).await?);
    }
    Ok(runs)
}
