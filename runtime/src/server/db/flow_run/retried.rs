//! New runs that keep what went well in an earlier one.

use jiff::Timestamp;

use super::{Move, apply, pin, read};
use crate::model::id::FlowRunId;
use crate::model::state::{Event, State};
use crate::server::db::memory::Memory;
use crate::server::db::segment::{self, Used};
use crate::server::db::task_run::{self, Kept, Key};
use crate::server::db::tx::{Tx, args};
use crate::server::db::{DbError, report};

/// Fills a run that was just added with task runs of an earlier one: they are over from the start.
///
/// # Errors
///
/// The database's.
pub async fn keep(
    tx: &mut Tx,
    memory: &Memory,
    new: FlowRunId,
    earlier: FlowRunId,
    kept: Vec<(Key, Kept)>,
    at: Timestamp,
    by: &str,
) -> Result<(), DbError> {
    let sql = "UPDATE flow_run SET retry_of = $2 WHERE id = $1";
    tx.run(sql, args![new, earlier]).await?;
    let mut run = read(tx, [new]).await?.pop().ok_or(DbError::Raced)?;
    let mut used = Used::default();
    let mut rows = Vec::with_capacity(kept.len());
    for ((_, place, index), was) in kept {
        let event = match was.state {
            State::Mapped => Event::Map,
            State::Skipped => Event::Skip,
            _ => Event::Cache,
        };
        // What somebody did by hand stays known as that.
        let by_hand = was.mark().cloned();
        let message = match &by_hand {
            None => format!("kept from the run {earlier}"),
            Some(mark) => report::cut(&format!("kept from the run {earlier}, {mark}")),
        };
        let mut task = Kept {
            attempts: was.attempts,
            failures: was.failures,
            loop_count: was.loop_count,
            started_at: was.started_at,
            usage: was.usage,
            result: was.result,
            denials: was.denials,
            decision: by_hand,
            ..Kept::default()
        };
        let moved = Move {
            event,
            message: &message,
            code: None,
            at,
            by,
        };
        task.end_by(event, &message, at)
            .map_err(|_| DbError::Raced)?;
        task.ended_at = was.ended_at;
        if let Some(result) = &task.result {
            used.note(result);
        }
        run.note(Some((place, index)), &moved, task.state);
        rows.push(((new, place, index), task));
    }
    task_run::put(tx, rows).await?;
    pin(tx, memory, &mut run).await?;
    apply(tx, vec![run]).await?;
    segment::touch(tx, memory, used, at).await
}
