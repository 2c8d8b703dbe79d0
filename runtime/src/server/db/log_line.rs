//! The table `log_line`: what runs said, numbered in each run.

use super::DbError;
use super::flow_version::Version;
use super::sql::{Many, Sql};
use super::tx::{Arg, Tx, args};
use crate::model::id::FlowRunId;
use crate::model::run::{Level, LogLine, TaskRunKey};
use crate::wire::NumberedLine;

static ADD: Many = Many::new(
    "INSERT INTO log_line (flow_run_id, number, at, level, task, map_index, attempt, text) VALUES ",
    "($, $, $, $, $, $, $, $)",
    "",
);

const LEVELS: [Level; 4] = [Level::Debug, Level::Info, Level::Warning, Level::Error];

/// Makes the row of a line; the task is told by its place in the definition.
pub(super) fn row(run: FlowRunId, number: u64, task: Option<u32>, line: LogLine) -> Vec<Arg> {
    let level = LEVELS.iter().position(|level| *level == line.level);
    args![
        run,
        number,
        line.at,
        level.unwrap_or_default() as u64,
        task,
        line.task_run.and_then(|key| key.map_index),
        line.attempt,
        line.text,
    ]
}

/// Adds lines.
pub(super) async fn add(tx: &mut Tx, rows: Vec<Vec<Arg>>) -> Result<(), DbError> {
    tx.run_many(&ADD, rows).await.map(drop)
}

/// Lists the lines of a run in order, what comes after the number `after`.
pub async fn list(
    tx: &mut Tx,
    run: FlowRunId,
    version: &Version,
    after: u64,
    limit: u32,
) -> Result<Vec<NumberedLine>, DbError> {
    let sql = "SELECT number, at, level, task, map_index, attempt, text FROM log_line \
               WHERE flow_run_id = $1 AND number > $2 ORDER BY number LIMIT $3";
    let rows = tx.rows(sql, args![run, after, limit]).await?;
    rows.iter()
        .map(|row| {
            let level: u32 = row.get(2)?;
            let place: Option<u32> = row.get(3)?;
            let map_index = row.get(4)?;
            let line = LogLine {
                at: row.get(1)?,
                level: LEVELS.get(level as usize).copied().unwrap_or(Level::Info),
                task_run: place.map(|place| TaskRunKey {
                    task: version.task_name(place).to_owned(),
                    map_index,
                }),
                attempt: row.get(5)?,
                text: row.get(6)?,
            };
            Ok(NumberedLine {
                number: row.get(0)?,
                line,
            })
        })
        .collect()
}

pub(super) const LAST: Sql = Sql {
    sqlite: "SELECT level, text FROM log_line INDEXED BY log_line_of_run \
             WHERE flow_run_id = $1 AND task IS NULL ORDER BY number DESC LIMIT 1",
    postgres: "SELECT level, text FROM log_line \
               WHERE flow_run_id = $1 AND task IS NULL ORDER BY number DESC LIMIT 1",
};

/// Returns what was said last of a run as a whole, if it was a warning.
pub async fn last_warning(tx: &mut Tx, run: FlowRunId) -> Result<Option<String>, DbError> {
    let Some(row) = tx.row(LAST, args![run]).await? else {
        return Ok(None);
    };
    let level: u32 = row.get(0)?;
    let is_warning = LEVELS.get(level as usize) == Some(&Level::Warning);
    Ok(is_warning.then_some(row.get(1)?))
}
