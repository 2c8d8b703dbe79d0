//! The table `transition`: the history of runs, numbered without gaps.

use jiff::Timestamp;

use super::DbError;
use super::flow_version::Version;
use super::sql::Many;
use super::tx::{Tx, args};
use crate::model::id::FlowRunId;
use crate::model::run::TaskRunKey;
use crate::model::state::{Event, State};
use crate::wire::Transition;

/// One step of a history, to be written.
#[derive(Clone, Debug)]
pub struct Step {
    /// Its number, from 1.
    pub number: u32,
    /// When, by the server's clock.
    pub at: Timestamp,
    /// The task's place in the definition and the element; none for the flow run itself.
    pub task: Option<(u32, Option<u32>)>,
    /// What moved it; none for the first.
    pub event: Option<Event>,
    /// Where it stood afterwards.
    pub state: State,
    /// Why, in words.
    pub message: String,
    /// Who.
    pub by: String,
    /// The lease epoch.
    pub epoch: u32,
}

static ADD: Many = Many::new(
    "INSERT INTO transition (flow_run_id, number, at, task, map_index, event, state, message, \
     by_whom, epoch) VALUES ",
    "($, $, $, $, $, $, $, $, $, $)",
    "",
);

/// Adds steps to histories.
pub(super) async fn add(
    tx: &mut Tx,
    steps: impl IntoIterator<Item = (FlowRunId, Step)>,
) -> Result<(), DbError> {
    let row = |(run, step): (FlowRunId, Step)| {
        let (task, map_index) = step
            .task
            .map_or((None, None), |(task, index)| (Some(task), index));
        args![
            run,
            step.number,
            step.at,
            task,
            map_index,
            step.event,
            step.state,
            step.message,
            step.by,
            step.epoch,
        ]
    };
    let rows = steps.into_iter().map(row).collect();
    tx.run_many(&ADD, rows).await.map(drop)
}

/// Lists the history of a run in order, what comes after the number `after`.
pub async fn list(
    tx: &mut Tx,
    run: FlowRunId,
    version: &Version,
    after: u32,
    limit: u32,
) -> Result<Vec<Transition>, DbError> {
    let sql = "SELECT number, at, task, map_index, event, state, message, by_whom, epoch \
               FROM transition WHERE flow_run_id = $1 AND number > $2 ORDER BY number LIMIT $3";
    let rows = tx.rows(sql, args![run, after, limit]).await?;
    rows.iter()
        .map(|row| {
            let place: Option<u32> = row.get(2)?;
            let map_index = row.get(3)?;
            Ok(Transition {
                number: row.get(0)?,
                at: row.get(1)?,
                task_run: place.map(|place| TaskRunKey {
                    task: version.task_name(place).to_owned(),
                    map_index,
                }),
                event: row.get(4)?,
                state: row.get(5)?,
                message: row.get(6)?,
                by: row.get(7)?,
                epoch: row.get(8)?,
            })
        })
        .collect()
}
