//! The table `left_out`: instants for which a clock makes no run any more.

use std::collections::BTreeSet;

use jiff::Timestamp;

use super::DbError;
use super::tx::{Tx, args};
use crate::model::id::{FlowId, FlowRunId};

/// Notes that a run is about to be deleted: if a clock made it for an instant to come, no run is made
/// for that again.
pub async fn add(tx: &mut Tx, id: FlowRunId, now: Timestamp) -> Result<(), DbError> {
    let sql = "INSERT INTO left_out (flow_id, clock, nominal_at) \
               SELECT flow_id, clock, nominal_at FROM flow_run \
               WHERE id = $1 AND clock IS NOT NULL AND nominal_at > $2 ON CONFLICT DO NOTHING";
    tx.run(sql, args![id, now]).await.map(drop)
}

/// Lists the instants of a flow that are left out, each with its clock.
pub async fn list(tx: &mut Tx, flow: FlowId) -> Result<BTreeSet<(String, Timestamp)>, DbError> {
    let sql = "SELECT clock, nominal_at FROM left_out WHERE flow_id = $1";
    let rows = tx.rows(sql, args![flow]).await?;
    rows.iter()
        .map(|row| Ok((row.get(0)?, row.get(1)?)))
        .collect()
}

/// Forgets what was left out up to an instant: nobody looks back that far.
pub async fn forget(tx: &mut Tx, flow: FlowId, until: Timestamp) -> Result<(), DbError> {
    let sql = "DELETE FROM left_out WHERE flow_id = $1 AND nominal_at <= $2";
    tx.run(sql, args![flow, until]).await.map(drop)
}
