//! What runs that are not over require, what waits with it, and when that becomes due.

use std::collections::BTreeMap;

use jiff::Timestamp;

use crate::model::id::FlowVersionId;
use crate::server::db::DbError;
use crate::server::db::sql::{Many, Sql};
use crate::server::db::tx::{Tx, args};

/// Lists the requirements of a version's runs that are not over, and keeps everybody else from changing
/// them until this transaction ends: a run that comes back meanwhile may get one of its own.
pub async fn take_requirements(tx: &mut Tx, version: FlowVersionId) -> Result<Vec<i64>, DbError> {
    let sql = Sql {
        sqlite: "SELECT DISTINCT requirement_id FROM flow_run INDEXED BY flow_run_live \
                 WHERE ended_at IS NULL AND flow_version_id = $1",
        postgres: "SELECT DISTINCT requirement_id FROM (SELECT requirement_id FROM flow_run \
                   WHERE ended_at IS NULL AND flow_version_id = $1 ORDER BY id FOR UPDATE) own",
    };
    let rows = tx.rows(sql, args![version]).await?;
    rows.iter().map(|row| row.get(0)).collect()
}

static CHANGE: Many = Many::with(
    "WITH n (version, old, new) AS (VALUES ",
    "($::bytea, $::bigint, $::bigint)",
    Sql {
        sqlite: ") UPDATE flow_run INDEXED BY flow_run_live SET requirement_id = n.new FROM n \
                 WHERE flow_run.ended_at IS NULL AND flow_run.flow_version_id = n.version \
                 AND flow_run.requirement_id = n.old",
        postgres: ") UPDATE flow_run SET requirement_id = n.new FROM n \
                   WHERE flow_run.ended_at IS NULL AND flow_run.flow_version_id = n.version \
                   AND flow_run.requirement_id = n.old",
    },
);

/// Gives the runs of a version that are not over other requirements: new ones by the old.
pub async fn change_requirements(
    tx: &mut Tx,
    version: FlowVersionId,
    changed: BTreeMap<i64, i64>,
) -> Result<(), DbError> {
    let rows = changed.into_iter();
    let rows = rows.map(|(old, new)| args![version, old, new]).collect();
    tx.run_many(&CHANGE, rows).await.map(drop)
}

/// Runs that wait with one requirement, due by now or all at one instant to come.
#[derive(Clone, Copy, Debug)]
pub struct Waiting {
    /// The number of the requirement.
    pub requirement_id: i64,
    /// When the first of them is or was due.
    pub due_at: Timestamp,
    /// How many they are.
    pub count: usize,
}

/// Lists what waits of a version.
pub async fn waiting(
    tx: &mut Tx,
    version: FlowVersionId,
    now: Timestamp,
) -> Result<Vec<Waiting>, DbError> {
    let sql = Sql {
        sqlite: "SELECT requirement_id, min(due_at), count(*) \
                 FROM flow_run INDEXED BY flow_run_waiting \
                 WHERE state = 'Scheduled' AND flow_version_id = $1 \
                 GROUP BY requirement_id, max(due_at, $2)",
        postgres: "SELECT requirement_id, min(due_at), count(*) FROM flow_run \
                   WHERE state = 'Scheduled' AND flow_version_id = $1 \
                   GROUP BY requirement_id, greatest(due_at, $2)",
    };
    let rows = tx.rows(sql, args![version, now]).await?;
    rows.iter()
        .map(|row| {
            Ok(Waiting {
                requirement_id: row.get(0)?,
                due_at: row.get(1)?,
                count: row.get::<u32>(2)? as usize,
            })
        })
        .collect()
}

/// Lists the instants to come at which waiting runs become due, with their requirements.
pub async fn dues(tx: &mut Tx, after: Timestamp) -> Result<Vec<(Timestamp, i64)>, DbError> {
    let sql = "SELECT DISTINCT due_at, requirement_id FROM flow_run \
               WHERE state = 'Scheduled' AND due_at > $1";
    let rows = tx.rows(sql, args![after]).await?;
    rows.iter()
        .map(|row| Ok((row.get(0)?, row.get(1)?)))
        .collect()
}

/// Returns when the newest run was made, by the clock of that time.
pub async fn newest(tx: &mut Tx) -> Result<Option<Timestamp>, DbError> {
    let sql = "SELECT created_at FROM flow_run ORDER BY id DESC LIMIT 1";
    tx.row(sql, args![])
        .await?
        .map(|row| row.get(0))
        .transpose()
}

/// Puts the due times right that were written by a clock that was set back since; answers with the new ones
/// of runs that wait, and their requirements.
///
/// What was made to start at once, or handed back to wait for some time, becomes due as if that had been now.
/// What is at work was due, and stays so for whoever claims it next. Instants that somebody, or a schedule, has
/// named stay.
pub async fn bring_back(tx: &mut Tx, now: Timestamp) -> Result<Vec<(Timestamp, i64)>, DbError> {
    let at_work = "UPDATE flow_run SET due_at = $1 \
                   WHERE ended_at IS NULL AND state <> 'Scheduled' AND due_at > $1";
    tx.run(at_work, args![now]).await?;
    let sql = Sql {
        sqlite: "UPDATE flow_run SET due_at = $1 + max(due_at - m.at, 0) FROM transition m \
                 WHERE flow_run.state = 'Scheduled' AND due_at > $1 \
                 AND (rests > 0 OR clock IS NULL AND scheduled_at <= created_at) \
                 AND m.flow_run_id = id AND m.number = transition AND m.at > $1 \
                 RETURNING due_at, requirement_id",
        postgres: "UPDATE flow_run SET due_at = $1::bigint + greatest(due_at - m.at, 0) \
                   FROM transition m WHERE flow_run.state = 'Scheduled' AND due_at > $1::bigint \
                   AND (rests > 0 OR clock IS NULL AND scheduled_at <= created_at) \
                   AND m.flow_run_id = id AND m.number = transition AND m.at > $1::bigint \
                   RETURNING due_at, requirement_id",
    };
    let rows = tx.rows(sql, args![now]).await?;
    rows.iter()
        .map(|row| Ok((row.get(0)?, row.get(1)?)))
        .collect()
}
