//! Runs of a flow that are to be stopped together, and runs that are forgotten.

use jiff::Timestamp;

use super::{Standing, select, standing};
use crate::model::id::{FlowId, FlowRunId};
use crate::server::db::DbError;
use crate::server::db::sql::Sql;
use crate::server::db::tx::{Tx, args};

macro_rules! live {
    ($rest:literal) => {
        select!(
            "WHERE flow_id = $1 AND ended_at IS NULL AND id > $2 AND state <> 'Cancelling' \
             AND NOT (clock IS NOT NULL AND epoch = 0 AND scheduled_at > $3) ORDER BY id LIMIT $4",
            $rest
        )
    };
}

/// Reads how runs of a flow stand that are not over and are not being stopped, in the order of their ids;
/// without those that a clock has made ahead. They are read to be changed in this transaction.
pub async fn live(
    tx: &mut Tx,
    flow: FlowId,
    after: Option<FlowRunId>,
    now: Timestamp,
    limit: u32,
) -> Result<Vec<Standing>, DbError> {
    let after = after.unwrap_or_else(|| FlowRunId::at(0, 0));
    let sql = Sql {
        sqlite: live!(""),
        postgres: live!(" FOR UPDATE"),
    };
    let rows = tx.rows(sql, args![flow, after, now, limit]).await?;
    rows.iter().map(standing).collect()
}

/// Forgets runs that were over before an instant, with all that belongs to them; answers how many.
///
/// Ids are in the order of due times, so that only old runs are looked at.
pub async fn forget(tx: &mut Tx, before: Timestamp, limit: u32) -> Result<u64, DbError> {
    let first_after = FlowRunId::at(before.as_microsecond(), 0);
    let sql = "DELETE FROM flow_run WHERE id IN (SELECT id FROM flow_run WHERE id < $1 \
               AND ended_at < $2 ORDER BY id LIMIT $3)";
    tx.run(sql, args![first_after, before, limit]).await
}
