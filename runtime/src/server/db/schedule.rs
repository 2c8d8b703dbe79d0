//! The table `schedule`: the flows whose schedule is active, and the runs made ahead for them.

use jiff::Timestamp;

use super::DbError;
use super::tx::{Row, Tx, args};
use crate::model::id::{FlowId, FlowRunId, FlowVersionId};
use crate::model::schedule::CatchUp;

/// A flow whose schedule wants looking at.
#[derive(Clone, Copy, Debug)]
pub struct Due {
    /// The flow.
    pub flow_id: FlowId,
    /// Its current version.
    pub flow_version_id: FlowVersionId,
    /// The instant of the next run, as it was when the schedule was looked at last.
    pub refill_at: Timestamp,
    /// How missed instants are caught up this once.
    pub catch_up: Option<CatchUp>,
}

/// Makes the schedule of a flow active, to be looked at now. Instants since `since` are caught up, as
/// `catch_up` says or else the schedule.
pub async fn activate(
    tx: &mut Tx,
    flow: FlowId,
    since: Timestamp,
    catch_up: Option<CatchUp>,
) -> Result<(), DbError> {
    let sql = "INSERT INTO schedule (flow_id, refill_at, catch_up) VALUES ($1, $2, $3) \
               ON CONFLICT (flow_id) DO UPDATE SET refill_at = excluded.refill_at, \
               catch_up = excluded.catch_up";
    tx.run(sql, args![flow, since, catch_up]).await.map(drop)
}

/// Lets the schedule of a flow rest.
pub async fn deactivate(tx: &mut Tx, flow: FlowId) -> Result<(), DbError> {
    let sql = "DELETE FROM schedule WHERE flow_id = $1";
    tx.run(sql, args![flow]).await.map(drop)
}

/// Lists schedules whose next run is due, with the current versions of their flows.
pub async fn due(tx: &mut Tx, now: Timestamp, limit: u32) -> Result<Vec<Due>, DbError> {
    let sql = "SELECT s.flow_id, f.flow_version_id, s.refill_at, s.catch_up FROM schedule s \
               JOIN flow f ON f.id = s.flow_id \
               WHERE s.refill_at IS NOT NULL AND s.refill_at <= $1 ORDER BY s.refill_at LIMIT $2";
    let rows = tx.rows(sql, args![now, limit]).await?;
    rows.iter().map(read).collect()
}

/// Reads the schedule of one flow, if it still wants looking at.
pub async fn due_now(tx: &mut Tx, flow: FlowId, now: Timestamp) -> Result<Option<Due>, DbError> {
    let sql = "SELECT s.flow_id, f.flow_version_id, s.refill_at, s.catch_up FROM schedule s \
               JOIN flow f ON f.id = s.flow_id WHERE s.flow_id = $1 AND s.refill_at <= $2";
    let row = tx.row(sql, args![flow, now]).await?;
    row.as_ref().map(read).transpose()
}

fn read(row: &Row) -> Result<Due, DbError> {
    Ok(Due {
        flow_id: row.get(0)?,
        flow_version_id: row.get(1)?,
        refill_at: row.get(2)?,
        catch_up: row.get(3)?,
    })
}

/// Returns when the next schedule wants looking at.
pub async fn next(tx: &mut Tx) -> Result<Option<Timestamp>, DbError> {
    let sql = "SELECT min(refill_at) FROM schedule WHERE refill_at IS NOT NULL";
    let row = tx.row(sql, args![]).await?;
    row.map_or(Ok(None), |row| row.get(0))
}

/// Sets when a schedule wants looking at again; never if there are no more instants.
pub async fn set_refill(tx: &mut Tx, flow: FlowId, at: Option<Timestamp>) -> Result<(), DbError> {
    let sql = "UPDATE schedule SET refill_at = $2, catch_up = NULL WHERE flow_id = $1";
    tx.run(sql, args![flow, at]).await.map(drop)
}

/// Has every schedule looked at that was to be looked at later: the clock was set back, so instants that had
/// passed are to come.
pub async fn look_again(tx: &mut Tx, now: Timestamp) -> Result<(), DbError> {
    let sql = "UPDATE schedule SET refill_at = $1 WHERE refill_at > $1";
    tx.run(sql, args![now]).await.map(drop)
}

/// Deletes the runs that clocks made for instants after `after` and that nobody has claimed yet.
/// They are made again, by whatever rule holds then.
pub async fn delete_ahead(tx: &mut Tx, flow: FlowId, after: Timestamp) -> Result<u64, DbError> {
    let sql = "DELETE FROM flow_run WHERE flow_id = $1 AND clock IS NOT NULL AND nominal_at > $2 \
               AND state = 'Scheduled' AND epoch = 0";
    tx.run(sql, args![flow, after]).await
}

/// Deletes the runs that clocks made for instants that have passed and that nobody has claimed yet;
/// answers with clock and instant, so that they can be made again for a newer version.
pub async fn take_passed(
    tx: &mut Tx,
    flow: FlowId,
    until: Timestamp,
) -> Result<Vec<(String, Timestamp)>, DbError> {
    let sql = "DELETE FROM flow_run WHERE flow_id = $1 AND clock IS NOT NULL AND nominal_at <= $2 \
               AND state = 'Scheduled' AND epoch = 0 RETURNING clock, nominal_at";
    let rows = tx.rows(sql, args![flow, until]).await?;
    rows.iter()
        .map(|row| Ok((row.get(0)?, row.get(1)?)))
        .collect()
}

/// Lists the waiting runs of a flow for instants from `since` to `until`, with these instants, without
/// those that an agent had before.
pub async fn passed(
    tx: &mut Tx,
    flow: FlowId,
    since: Timestamp,
    until: Timestamp,
) -> Result<Vec<(FlowRunId, Timestamp)>, DbError> {
    let sql = "SELECT id, nominal_at FROM flow_run WHERE flow_id = $1 AND clock IS NOT NULL \
               AND nominal_at BETWEEN $2 AND $3 AND state = 'Scheduled' AND epoch = 0";
    let rows = tx.rows(sql, args![flow, since, until]).await?;
    rows.iter()
        .map(|row| Ok((row.get(0)?, row.get(1)?)))
        .collect()
}
