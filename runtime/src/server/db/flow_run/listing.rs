//! Runs as others see them: one of them, and lists.

use std::sync::Arc;

use jiff::Timestamp;

use crate::model::id::{FlowId, FlowRunId, ProjectId};
use crate::model::run::ResultRef;
use crate::model::state::State;
use crate::server::db::DbError;
use crate::server::db::flow_version::Version;
use crate::server::db::memory::Memory;
use crate::server::db::realm::{Realm, in_realm};
use crate::server::db::tx::{Arg, Json, Row, Tx, args};
use crate::wire::FlowRun;

macro_rules! listed {
    ($($rest:expr),+) => {
        concat!(
            "SELECT r.id, r.flow_version_id, r.state, r.message, r.code, r.parameters, ",
            "r.requirement_id, r.rank, r.created_at, r.scheduled_at, r.started_at, r.ended_at, ",
            "r.epoch, (SELECT a.name FROM agent a WHERE a.id = r.agent_id), r.result, ",
            "r.transition, r.clock, r.project_id, r.due_at, r.retry_of, ",
            "(SELECT f.name FROM flow f WHERE f.id = r.flow_id) FROM flow_run r ",
            $($rest),+
        )
    };
}

async fn listed(tx: &mut Tx, memory: &Memory, row: &Row) -> Result<FlowRun, DbError> {
    let version = memory.version(tx, row.get(1)?).await?;
    let version = version.ok_or(DbError::Raced)?;
    let requirement = memory.requirement(tx, row.get(6)?).await?;
    let Json(parameters) = row.get(5)?;
    let result: Option<Json<ResultRef>> = row.get(14)?;
    let rank: i32 = row.get(7)?;
    Ok(FlowRun {
        id: row.get(0)?,
        flow_run_id: row.get(0)?,
        // Not as the version has it: its flow may be called otherwise by now.
        flow: row.get(20)?,
        flow_id: version.flow_id,
        project: version.project.clone(),
        version: version.version,
        artifact: version.artifact,
        state: row.get(2)?,
        message: row.get(3)?,
        code: row.get(4)?,
        parameters,
        labels: requirement.labels.clone(),
        priority: -rank,
        created_at: row.get(8)?,
        scheduled_at: row.get(9)?,
        due_at: row.get(18)?,
        started_at: row.get(10)?,
        ended_at: row.get(11)?,
        claims: row.get(12)?,
        agent: row.get(13)?,
        result: result.map(|Json(result)| result),
        is_late: false,
        result_until: None,
        transition: row.get(15)?,
        clock: row.get(16)?,
        retry_of: row.get(19)?,
    })
}

/// A run as others see it, and its version.
pub struct Found {
    /// The run.
    pub flow_run: FlowRun,
    /// Its version.
    pub version: Arc<Version>,
    /// The number of its requirement.
    pub requirement_id: i64,
}

/// Finds a run of the realm.
pub async fn find(
    tx: &mut Tx,
    memory: &Memory,
    realm: &Realm,
    id: FlowRunId,
) -> Result<Option<Found>, DbError> {
    let row = tx.row(listed!("WHERE r.id = $1"), args![id]).await?;
    let Some(row) = row.filter(|row| row.get(17).is_ok_and(|project| realm.has(project))) else {
        return Ok(None);
    };
    let version = memory.version(tx, row.get(1)?).await?;
    Ok(Some(Found {
        flow_run: listed(tx, memory, &row).await?,
        version: version.ok_or(DbError::Raced)?,
        requirement_id: row.get(6)?,
    }))
}

/// The condition of lists, with a state or without.
macro_rules! shown {
    () => {
        "r.id < $1 AND (r.state = $3 OR $3 IS NULL AND NOT (r.clock IS NOT NULL \
         AND r.state = 'Scheduled' AND r.scheduled_at > $5))"
    };
}

/// Which runs are listed.
#[derive(Clone, Debug)]
pub struct Filter {
    /// Those that may be seen.
    pub realm: Realm,
    /// Only of this project.
    pub project: Option<ProjectId>,
    /// Only of this flow.
    pub flow: Option<FlowId>,
    /// Only in this state.
    pub state: Option<State>,
    /// Only those before this one.
    pub before: Option<FlowRunId>,
    /// Now.
    pub now: Timestamp,
    /// At most so many.
    pub limit: u32,
}

/// Lists runs, the last due first: ids are in the order of due times.
///
/// Those that a clock made ahead are left out until they are due, unless a state is asked for: they
/// would stand before everything that has happened.
///
/// Four statements for one question, so that each has an index that serves it: by flow, by project,
/// of those that are not over, and all.
pub async fn list(tx: &mut Tx, memory: &Memory, filter: &Filter) -> Result<Vec<FlowRun>, DbError> {
    let is_live = filter.state.is_some_and(|state| !state.is_over());
    // After the id of any run.
    let before = filter.before.map_or(Arg::Blob(vec![0xff; 17]), Arg::from);
    let (state, limit, now) = (filter.state, filter.limit, filter.now);
    let rows = match (filter.flow, filter.project) {
        (Some(flow), _) => {
            let sql = listed!(
                "WHERE r.flow_id = $4 AND ",
                shown!(),
                " ORDER BY r.id DESC LIMIT $2"
            );
            tx.rows(sql, args![before, limit, state, flow, now]).await?
        }
        (None, Some(project)) if !is_live => {
            let sql = listed!(
                "WHERE r.project_id = $4 AND ",
                shown!(),
                " ORDER BY r.id DESC LIMIT $2"
            );
            tx.rows(sql, args![before, limit, state, project, now])
                .await?
        }
        (None, project) if is_live => {
            let sql = in_realm!(
                listed!(
                    "WHERE r.ended_at IS NULL AND r.id < $1 AND r.state = $3 \
                     AND (r.project_id = $4 OR $4 IS NULL) AND "
                ),
                "r.project_id" in "$5",
                " ORDER BY r.id DESC LIMIT $2"
            );
            let args = args![before, limit, state, project, filter.realm.arg()];
            tx.rows(sql, args).await?
        }
        _ => {
            let sql = in_realm!(
                listed!("WHERE ", shown!(), " AND "),
                "r.project_id" in "$4",
                " ORDER BY r.id DESC LIMIT $2"
            );
            let args = args![before, limit, state, filter.realm.arg(), now];
            tx.rows(sql, args).await?
        }
    };
    let mut runs = Vec::with_capacity(rows.len());
    for row in &rows {
        runs.push(listed(tx, memory, row).await?);
    }
    Ok(runs)
}
