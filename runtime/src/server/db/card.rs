//! The table `card`: what tasks show a human.

use super::DbError;
use super::flow_version::Version;
use super::sql::Many;
use super::tx::{Arg, Json, Tx, args};
use crate::model::id::FlowRunId;
use crate::model::run::{Card, TaskRunKey};

/// Most cards that are listed; an agent lets a task show 64.
const LISTED_MAX: u32 = 1_000;

static PUT: Many = Many::new(
    "INSERT INTO card (flow_run_id, task, map_index, title, content) VALUES ",
    "($, $, $, $, $)",
    " ON CONFLICT (flow_run_id, task, map_index, title) DO UPDATE SET content = excluded.content",
);

/// Makes the row of a card; the task is told by its place in the definition.
pub(super) fn row(run: FlowRunId, task: u32, card: Card) -> Vec<Arg> {
    let index = card.task_run.map_index.map_or(-1, i64::from);
    args![run, task, index, card.title, Json(card.content)]
}

/// Shows cards; one of the same title takes the place of the earlier one.
pub(super) async fn put(tx: &mut Tx, rows: Vec<Vec<Arg>>) -> Result<(), DbError> {
    tx.run_many(&PUT, rows).await.map(drop)
}

/// Lists the cards of a run.
pub async fn list(tx: &mut Tx, run: FlowRunId, version: &Version) -> Result<Vec<Card>, DbError> {
    let sql = "SELECT task, map_index, title, content FROM card WHERE flow_run_id = $1 \
               ORDER BY task, map_index, title LIMIT $2";
    let rows = tx.rows(sql, args![run, LISTED_MAX]).await?;
    rows.iter()
        .map(|row| {
            let map_index: i64 = row.get(1)?;
            let Json(content) = row.get(3)?;
            Ok(Card {
                task_run: TaskRunKey {
                    task: version.task_name(row.get(0)?).to_owned(),
                    map_index: u32::try_from(map_index).ok(),
                },
                title: row.get(2)?,
                content,
            })
        })
        .collect()
}
