//! The table `task_run`: where the task runs of each run stand.
//!
//! A task run changes state in `Kept::step` alone, through `State::after`, while the run it belongs
//! to is checked by version and epoch in the statement that writes both (`flow_run::apply`).

use std::time::Duration;

use jiff::Timestamp;

use super::flow_version::Version;
use super::sql::Many;
use super::tx::{Arg, Json, Row, Tx, args};
use super::{DbError, report};
use crate::model::id::FlowRunId;
use crate::model::run::{Decision, ResultRef, TaskRun, TaskRunMoved, Usage};
use crate::model::state::{Event, Refusal, State};

/// Names a task run: the run, the task's place in the definition, the element.
pub type Key = (FlowRunId, u32, Option<u32>);

/// A task run as it is kept.
#[derive(Clone, Debug)]
pub struct Kept {
    /// Where it stands.
    pub state: State,
    /// Why, in words.
    pub message: String,
    /// A stable word for what ended it.
    pub code: Option<String>,
    /// Attempts started.
    pub attempts: u32,
    /// Attempts of this iteration that the flow failed.
    pub failures: u32,
    /// Iterations done.
    pub loop_count: u32,
    /// Where it is Retrying: when the next attempt is due, by the agent's clock.
    pub retry_at: Option<Timestamp>,
    /// When its first attempt began, by the agent's clock.
    pub started_at: Option<Timestamp>,
    /// When it was over, by the agent's clock.
    pub ended_at: Option<Timestamp>,
    /// What its attempts used.
    pub usage: Usage,
    /// Where its output, or its loop value, is kept.
    pub result: Option<ResultRef>,
    /// What it asked for and did not get.
    pub denials: Vec<String>,
    /// What a person has decided: since it was paused last, or how it ends.
    pub decision: Option<Decision>,
    /// Whether its agent knows of that, or will by its claim.
    pub is_heard: bool,
}

impl Default for Kept {
    fn default() -> Self {
        Self {
            state: State::Pending,
            message: String::new(),
            code: None,
            attempts: 0,
            failures: 0,
            loop_count: 0,
            retry_at: None,
            started_at: None,
            ended_at: None,
            usage: Usage::default(),
            result: None,
            denials: Vec::new(),
            decision: None,
            is_heard: true,
        }
    }
}

impl Kept {
    /// Moves it by what an agent reported.
    pub(super) fn step(&mut self, moved: &TaskRunMoved, at: Timestamp) -> Result<(), Refusal> {
        self.end_by(moved.event, &moved.message, at)?;
        if moved.event == Event::Pause && self.mark().is_none() {
            (self.decision, self.is_heard) = (None, true);
        }
        self.code.clone_from(&moved.code);
        self.attempts = moved.attempts;
        self.failures = moved.failures;
        self.retry_at = match moved.event {
            Event::Retry => at.checked_add(Duration::from_millis(moved.delay_ms)).ok(),
            _ => None,
        };
        self.loop_count = moved.loop_count;
        self.usage = moved.usage;
        self.denials.clone_from(&moved.denials);
        // What is over has no loop value any more.
        if moved.result.is_some() || self.state.is_over() {
            self.result.clone_from(&moved.result);
        }
        Ok(())
    }

    /// Returns what a person said about how it ends, if one did.
    pub(super) fn mark(&self) -> Option<&Decision> {
        self.decision.as_ref().filter(|decision| decision.is_mark())
    }

    /// Moves it by what a person has decided, which its agent has to hear of if it has one.
    pub(super) fn decide(&mut self, decision: &Decision, is_leased: bool) -> Result<(), Refusal> {
        self.end_by(
            Event::Decide,
            &report::cut(&decision.to_string()),
            decision.at,
        )?;
        (self.decision, self.is_heard) = (Some(decision.clone()), !is_leased);
        Ok(())
    }

    /// Moves it by something that says nothing about its attempts.
    pub(super) fn end_by(
        &mut self,
        event: Event,
        message: &str,
        at: Timestamp,
    ) -> Result<(), Refusal> {
        self.state = self.state.after(event)?;
        message.clone_into(&mut self.message);
        if self.state == State::Running && self.started_at.is_none() {
            self.started_at = Some(at);
        }
        if self.state.is_over() {
            // There is nothing left to be heard of.
            (self.ended_at, self.is_heard) = (Some(at), true);
        }
        Ok(())
    }

    /// Shows it under the name of its task.
    #[must_use]
    pub fn listed(self, task: String, map_index: Option<u32>) -> TaskRun {
        TaskRun {
            task,
            map_index,
            state: self.state,
            message: self.message,
            code: self.code,
            attempts: self.attempts,
            failures: self.failures,
            loop_count: self.loop_count,
            retry_at: self.retry_at,
            started_at: self.started_at,
            ended_at: self.ended_at,
            usage: self.usage,
            result: self.result,
            denials: self.denials,
            decision: self.decision,
        }
    }
}

/// Column list of every reading statement, key first.
macro_rules! select {
    ($rest:literal) => {
        concat!(
            "SELECT flow_run_id, task, map_index, state, message, code, attempts, loop_count, ",
            "started_at, ended_at, \"usage\", result, denials, failures, retry_at, decision, ",
            "is_heard FROM ",
            $rest
        )
    };
}

fn kept(row: &Row) -> Result<(Key, Kept), DbError> {
    let map_index: i64 = row.get(2)?;
    let (Json(usage), Json(denials)) = (row.get(10)?, row.get(12)?);
    let result: Option<Json<ResultRef>> = row.get(11)?;
    let decision: Option<Json<Decision>> = row.get(15)?;
    let kept = Kept {
        state: row.get(3)?,
        message: row.get(4)?,
        code: row.get(5)?,
        attempts: row.get(6)?,
        loop_count: row.get(7)?,
        started_at: row.get(8)?,
        ended_at: row.get(9)?,
        usage,
        result: result.map(|Json(result)| result),
        denials,
        failures: row.get(13)?,
        retry_at: row.get(14)?,
        decision: decision.map(|Json(decision)| decision),
        is_heard: row.get(16)?,
    };
    let key = (row.get(0)?, row.get(1)?, u32::try_from(map_index).ok());
    Ok((key, kept))
}

static PUT: Many = Many::new(
    "INSERT INTO task_run (flow_run_id, task, map_index, state, message, code, attempts, \
     loop_count, started_at, ended_at, \"usage\", result, denials, failures, retry_at, \
     decision, is_heard) VALUES ",
    "($, $, $, $, $, $, $, $, $, $, $, $, $, $, $, $, $)",
    " ON CONFLICT (flow_run_id, task, map_index) DO UPDATE SET state = excluded.state, \
     message = excluded.message, code = excluded.code, attempts = excluded.attempts, \
     loop_count = excluded.loop_count, started_at = excluded.started_at, \
     ended_at = excluded.ended_at, \"usage\" = excluded.\"usage\", result = excluded.result, \
     denials = excluded.denials, failures = excluded.failures, retry_at = excluded.retry_at, \
     decision = excluded.decision, is_heard = excluded.is_heard",
);

/// The keys come first and the join is crossed, so that each is looked up and nothing is scanned.
pub(super) static READ: Many = Many::new(
    "WITH k (run, place, element) AS (VALUES ",
    "($::bytea, $::bigint, $::bigint)",
    concat!(
        ") ",
        select!(
            "k CROSS JOIN task_run WHERE flow_run_id = k.run AND task = k.place \
             AND map_index = k.element"
        )
    ),
);

fn key_args(key: &Key) -> Vec<Arg> {
    args![key.0, key.1, key.2.map_or(-1, i64::from)]
}

/// Writes task runs. Only `flow_run::apply` and what it serves may come here.
pub(super) async fn put(
    tx: &mut Tx,
    rows: impl IntoIterator<Item = (Key, Kept)>,
) -> Result<(), DbError> {
    let row = |(key, kept): (Key, Kept)| {
        let mut row = key_args(&key);
        row.extend(args![
            kept.state,
            kept.message,
            kept.code,
            kept.attempts,
            kept.loop_count,
            kept.started_at,
            kept.ended_at,
            Json(kept.usage),
            kept.result.map(Json),
            Json(kept.denials),
            kept.failures,
            kept.retry_at,
            kept.decision.map(Json),
            kept.is_heard,
        ]);
        row
    };
    let rows = rows.into_iter().map(row).collect();
    tx.run_many(&PUT, rows).await.map(drop)
}

/// Reads task runs by their names; those that were not reported yet are missing.
pub(super) async fn read(
    tx: &mut Tx,
    keys: impl IntoIterator<Item = &Key>,
) -> Result<Vec<(Key, Kept)>, DbError> {
    let keys = keys.into_iter().map(key_args).collect();
    let rows = tx.rows_many(&READ, keys).await?;
    rows.iter().map(kept).collect()
}

/// Reads all task runs of a run.
pub async fn read_all(tx: &mut Tx, run: FlowRunId) -> Result<Vec<(Key, Kept)>, DbError> {
    let sql = select!("task_run WHERE flow_run_id = $1 ORDER BY task, map_index");
    let rows = tx.rows(sql, args![run]).await?;
    rows.iter().map(kept).collect()
}

/// Reads the task runs of a run that are not over.
pub(super) async fn read_open(tx: &mut Tx, run: FlowRunId) -> Result<Vec<(Key, Kept)>, DbError> {
    let sql = select!("task_run WHERE flow_run_id = $1 AND ended_at IS NULL");
    let rows = tx.rows(sql, args![run]).await?;
    rows.iter().map(kept).collect()
}

/// Reads the task runs of a run that wait for a person, in their order.
pub(super) async fn read_paused(tx: &mut Tx, run: FlowRunId) -> Result<Vec<(Key, Kept)>, DbError> {
    let sql =
        select!("task_run WHERE flow_run_id = $1 AND state = 'Paused' ORDER BY task, map_index");
    let rows = tx.rows(sql, args![run]).await?;
    rows.iter().map(kept).collect()
}

/// Tells whether a task run of a run waits for a person, or has something that one decided.
pub(super) async fn is_of_people(tx: &mut Tx, run: FlowRunId) -> Result<bool, DbError> {
    let sql = "SELECT 1 FROM task_run WHERE flow_run_id = $1 \
               AND (state = 'Paused' OR decision IS NOT NULL) LIMIT 1";
    Ok(tx.row(sql, args![run]).await?.is_some())
}

/// Lists the task runs of a run about whose end a person said something, in their order; not all of many.
pub(in crate::server) async fn marked(
    tx: &mut Tx,
    run: FlowRunId,
) -> Result<Vec<(Key, Kept)>, DbError> {
    let sql = select!(
        "task_run WHERE flow_run_id = $1 AND decision IS NOT NULL ORDER BY task, map_index LIMIT 100"
    );
    let rows = tx.rows(sql, args![run]).await?;
    let mut marked: Vec<_> = rows.iter().map(kept).collect::<Result<_, _>>()?;
    marked.retain(|(_, kept)| kept.mark().is_some());
    Ok(marked)
}

/// Returns the messages and denials of failed task runs that were denied something; not all of many.
pub(in crate::server) async fn denied(
    tx: &mut Tx,
    run: FlowRunId,
) -> Result<Vec<(String, Vec<String>)>, DbError> {
    let sql = "SELECT message, denials FROM task_run WHERE flow_run_id = $1 AND denials <> '[]' \
               AND state IN ('Failed', 'TimedOut') ORDER BY task, map_index LIMIT 100";
    let rows = tx.rows(sql, args![run]).await?;
    let denied = rows.iter().map(|row| {
        let Json(denials) = row.get(1)?;
        Ok((row.get(0)?, denials))
    });
    denied.collect()
}

/// Returns where the newest result of a run's finished tasks is kept, if there is one.
pub(super) async fn newest_result(
    tx: &mut Tx,
    run: FlowRunId,
) -> Result<Option<ResultRef>, DbError> {
    let sql = "SELECT result FROM task_run WHERE flow_run_id = $1 AND result IS NOT NULL \
               ORDER BY ended_at DESC LIMIT 1";
    let row = tx.row(sql, args![run]).await?;
    let result: Option<Json<ResultRef>> = row.map(|row| row.get(0)).transpose()?;
    Ok(result.map(|Json(result)| result))
}

/// Where a page of task runs begins: after this place and element.
pub type After = Option<(u32, Option<u32>)>;

/// Lists task runs of a run in the order of the definition, with their places.
pub async fn list(
    tx: &mut Tx,
    run: FlowRunId,
    version: &Version,
    after: After,
    limit: u32,
) -> Result<Vec<(Key, TaskRun)>, DbError> {
    let sql = select!(
        "task_run WHERE flow_run_id = $1 AND (task, map_index) > ($2, $3) ORDER BY task, map_index LIMIT $4"
    );
    let (task, map_index) = after.map_or((-1, -1), |(task, index)| {
        (i64::from(task), index.map_or(-1, i64::from))
    });
    let rows = tx.rows(sql, args![run, task, map_index, limit]).await?;
    rows.iter()
        .map(|row| {
            let (key, kept) = kept(row)?;
            let name = version.task_name(key.1).to_owned();
            Ok((key, kept.listed(name, key.2)))
        })
        .collect()
}
