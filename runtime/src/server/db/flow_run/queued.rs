//! Runs that are due and held up: by another run of their flow, or for want of a slot.

use jiff::Timestamp;

use super::line::candidate;
use super::{Candidate, select};
use crate::model::id::{FlowId, ProjectId};
use crate::server::db::DbError;
use crate::server::db::sql::Sql;
use crate::server::db::tx::{Tx, args};

/// The first in line of the queued runs of one flow with one requirement and one priority.
#[derive(Clone, Copy, Debug)]
pub struct QueuedHead {
    /// The number of the requirement.
    pub requirement_id: i64,
    /// The flow.
    pub flow_id: FlowId,
    /// The flow's project.
    pub project_id: ProjectId,
    /// The priority with its sign turned.
    pub rank: i32,
}

const HEADS: Sql = Sql {
    sqlite: "WITH RECURSIVE head (requirement_id, flow_id, rank, project_id) \
        AS (SELECT * FROM (SELECT requirement_id, flow_id, rank, project_id FROM flow_run \
        WHERE state = 'Queued' ORDER BY requirement_id, flow_id, rank LIMIT 1) \
        UNION ALL SELECT r.requirement_id, r.flow_id, r.rank, r.project_id FROM head h \
        JOIN flow_run r ON r.id = (SELECT n.id FROM flow_run n WHERE n.state = 'Queued' \
        AND (n.requirement_id, n.flow_id, n.rank) > (h.requirement_id, h.flow_id, h.rank) \
        ORDER BY n.requirement_id, n.flow_id, n.rank LIMIT 1)) \
        SELECT requirement_id, flow_id, project_id, rank FROM head",
    postgres: "WITH RECURSIVE head (requirement_id, flow_id, rank, project_id) \
        AS ((SELECT requirement_id, flow_id, rank, project_id FROM flow_run \
        WHERE state = 'Queued' ORDER BY requirement_id, flow_id, rank LIMIT 1) \
        UNION ALL SELECT n.requirement_id, n.flow_id, n.rank, n.project_id \
        FROM head h CROSS JOIN LATERAL \
        (SELECT r.requirement_id, r.flow_id, r.rank, r.project_id FROM flow_run r \
        WHERE r.state = 'Queued' \
        AND (r.requirement_id, r.flow_id, r.rank) > (h.requirement_id, h.flow_id, h.rank) \
        ORDER BY r.requirement_id, r.flow_id, r.rank LIMIT 1) n) \
        SELECT requirement_id, flow_id, project_id, rank FROM head",
};

/// Lists the heads of the lines of queued runs, by jumping from line to line through the index.
pub async fn queued_heads(tx: &mut Tx) -> Result<Vec<QueuedHead>, DbError> {
    let rows = tx.rows(HEADS, args![]).await?;
    rows.iter()
        .map(|row| {
            Ok(QueuedHead {
                requirement_id: row.get(0)?,
                flow_id: row.get(1)?,
                project_id: row.get(2)?,
                rank: row.get(3)?,
            })
        })
        .collect()
}

/// Reads the first queued runs of a line.
pub async fn queued(tx: &mut Tx, head: &QueuedHead, limit: u32) -> Result<Vec<Candidate>, DbError> {
    let sql = select!(
        "WHERE state = 'Queued' AND requirement_id = $1 AND flow_id = $2 AND rank = $3 \
         ORDER BY scheduled_at LIMIT $4"
    );
    let args = args![head.requirement_id, head.flow_id, head.rank, limit];
    let rows = tx.rows(sql, args).await?;
    rows.iter().map(candidate).collect()
}

/// A run that its flow's schedule has to look at: it was begun and is not over, or a clock made it and
/// it is due.
#[derive(Clone, Debug)]
pub struct Going {
    /// The run.
    pub run: Candidate,
    /// Whether an agent has begun it, or a person has asked for it.
    pub is_begun: bool,
}

macro_rules! going {
    ($rest:literal) => {
        select!(
            "WHERE flow_id = $1 AND overlap IS NOT NULL \
             AND ended_at IS NULL AND (clock IS NOT NULL OR epoch > 0) \
             AND (scheduled_at <= $2 OR epoch > 0)",
            $rest
        )
    };
}

/// Lists the runs of a flow that may not overlap and are due or begun, the earlier due first.
pub async fn going(tx: &mut Tx, flow: FlowId, now: Timestamp) -> Result<Vec<Going>, DbError> {
    read_going(tx, going!("").into(), flow, now).await
}

/// As [`going`], to change them in this transaction.
pub async fn take_going(tx: &mut Tx, flow: FlowId, now: Timestamp) -> Result<Vec<Going>, DbError> {
    let sql = Sql {
        sqlite: going!(""),
        postgres: going!(" ORDER BY id FOR UPDATE"),
    };
    read_going(tx, sql, flow, now).await
}

async fn read_going(
    tx: &mut Tx,
    sql: Sql,
    flow: FlowId,
    now: Timestamp,
) -> Result<Vec<Going>, DbError> {
    let rows = tx.rows(sql, args![flow, now]).await?;
    let read = |row| {
        let run = candidate(row)?;
        let is_begun = run.overlap.is_none();
        Ok(Going { run, is_begun })
    };
    let mut going = rows.iter().map(read).collect::<Result<Vec<_>, DbError>>()?;
    going.sort_by_key(|one| (one.run.standing.scheduled_at, one.run.standing.id));
    Ok(going)
}

/// Deletes the queued runs of a flow that a clock made and nobody has begun; answers with clock and
/// instant, so that they can be made again for a newer version.
pub async fn take_queued(tx: &mut Tx, flow: FlowId) -> Result<Vec<(String, Timestamp)>, DbError> {
    let sql = "DELETE FROM flow_run WHERE state = 'Queued' AND flow_id = $1 \
               AND clock IS NOT NULL AND epoch = 0 RETURNING clock, nominal_at";
    let rows = tx.rows(sql, args![flow]).await?;
    rows.iter()
        .map(|row| Ok((row.get(0)?, row.get(1)?)))
        .collect()
}
