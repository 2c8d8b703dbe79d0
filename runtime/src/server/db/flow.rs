//! The table `flow`.

use jiff::Timestamp;

use super::DbError;
use super::realm::{Realm, in_realm};
use super::sql::Sql;
use super::tx::{Arg, Json, Row, Tx, args};
use crate::model::id::{FlowId, FlowVersionId, ProjectId};
use crate::wire::Flow;

macro_rules! selected {
    ($description:literal) => {
        concat!(
            "SELECT f.id, f.name, p.name, ",
            $description,
            ", v.version, v.id, v.artifact, v.labels, f.is_paused, f.is_archived, f.created_at, ",
            "v.created_at, f.project_id, f.slots FROM flow f JOIN project p ON p.id = f.project_id ",
            "JOIN flow_version v ON v.id = f.flow_version_id "
        )
    };
}

/// The description out of the definition, where the text may have a character that PostgreSQL's cannot.
macro_rules! select {
    ($head:literal $(, $column:literal in $place:literal, $tail:literal)?) => {{
        let sqlite = select!(
            @ "v.definition ->> '$.description'", $head $(, $column in $place, $tail)?
        );
        let postgres = select!(
            @ "replace(v.definition, '\\u0000', '\\ufffd')::json ->> 'description'",
            $head $(, $column in $place, $tail)?
        );
        Sql {
            sqlite: sqlite.sqlite,
            postgres: postgres.postgres,
        }
    }};
    (@ $description:literal, $head:literal) => {
        Sql::both(concat!(selected!($description), $head))
    };
    (@ $description:literal, $head:literal, $column:literal in $place:literal, $tail:literal) => {
        in_realm!(concat!(selected!($description), $head), $column in $place, $tail)
    };
}

/// A flow, and the project it is kept in.
#[derive(Clone, Debug)]
pub struct Found {
    /// The flow.
    pub flow: Flow,
    /// Its project's id.
    pub project_id: ProjectId,
}

fn found(row: &Row) -> Result<Found, DbError> {
    let Json(labels) = row.get(7)?;
    let flow = Flow {
        id: row.get(0)?,
        name: row.get(1)?,
        project: row.get(2)?,
        description: row.get::<Option<String>>(3)?.unwrap_or_default(),
        version: row.get(4)?,
        flow_version_id: row.get(5)?,
        artifact: row.get(6)?,
        labels,
        is_paused: row.get(8)?,
        is_archived: row.get(9)?,
        created_at: row.get(10)?,
        registered_at: row.get(11)?,
        slots: row.get(13)?,
    };
    Ok(Found {
        flow,
        project_id: row.get(12)?,
    })
}

/// Finds the flows that a text may mean: an id, `project/flow`, or a name, which several may have.
pub async fn named(tx: &mut Tx, realm: &Realm, text: &str) -> Result<Vec<Found>, DbError> {
    let rows = if let Ok(id) = text.parse::<FlowId>() {
        tx.rows(select!("WHERE f.id = $1"), args![id]).await?
    } else if let Some((project, name)) = text.split_once('/') {
        let sql = select!("WHERE p.name = $1 AND f.name = $2");
        tx.rows(sql, args![project, name]).await?
    } else {
        let sql = select!("WHERE f.name = $1 ORDER BY p.name LIMIT 1000");
        tx.rows(sql, args![text]).await?
    };
    let mut flows = rows.iter().map(found).collect::<Result<Vec<_>, _>>()?;
    flows.retain(|found| realm.has(found.project_id));
    Ok(flows)
}

/// Lists flows of the realm by name and id, those after `after`; archived ones too.
pub async fn list(
    tx: &mut Tx,
    realm: &Realm,
    project: Option<ProjectId>,
    after: (&str, Option<FlowId>),
    limit: u32,
) -> Result<Vec<Found>, DbError> {
    let sql = select!(
        "WHERE (f.name, f.id) > ($1, $2) AND (f.project_id = $4 OR $4 IS NULL) AND ",
        "f.project_id" in "$5",
        " ORDER BY f.name, f.id LIMIT $3"
    );
    // Before the id of any flow.
    let id = after.1.map_or(Arg::Blob(Vec::new()), Arg::from);
    let args = args![after.0, id, limit, project, realm.arg()];
    let rows = tx.rows(sql, args).await?;
    rows.iter().map(found).collect()
}

/// Keeps everybody else from changing a flow or its schedule, and from making runs of it, until this
/// transaction ends. What is read of it after this stays as it is.
pub async fn lock(tx: &mut Tx, id: FlowId) -> Result<(), DbError> {
    if tx.is_shared() {
        let sql = "SELECT 1 FROM flow WHERE id = $1 FOR UPDATE";
        tx.row(sql, args![id]).await?;
    }
    Ok(())
}

/// Keeps everybody else from changing a flow until this transaction ends; others may do the same.
pub async fn share(tx: &mut Tx, id: FlowId) -> Result<(), DbError> {
    if tx.is_shared() {
        let sql = "SELECT 1 FROM flow WHERE id = $1 FOR KEY SHARE";
        tx.row(sql, args![id]).await?;
    }
    Ok(())
}

/// What a registration needs to know of the flow before it.
pub struct Earlier {
    /// The flow's id.
    pub id: FlowId,
    /// Its current version.
    pub flow_version_id: FlowVersionId,
    /// Whether it is archived.
    pub is_archived: bool,
}

/// Finds the flow of a name in a project, to change it in this transaction.
pub async fn in_project(
    tx: &mut Tx,
    project: ProjectId,
    name: &str,
) -> Result<Option<Earlier>, DbError> {
    let sql = Sql {
        sqlite: "SELECT id, flow_version_id, is_archived FROM flow \
                 WHERE project_id = $1 AND name = $2",
        postgres: "SELECT id, flow_version_id, is_archived FROM flow \
                   WHERE project_id = $1 AND name = $2 FOR UPDATE",
    };
    let row = tx.row(sql, args![project, name]).await?;
    row.map(|row| {
        Ok(Earlier {
            id: row.get(0)?,
            flow_version_id: row.get(1)?,
            is_archived: row.get(2)?,
        })
    })
    .transpose()
}

/// Adds a flow with its first version to come.
pub async fn add(
    tx: &mut Tx,
    id: FlowId,
    project: ProjectId,
    name: &str,
    version: FlowVersionId,
    is_paused: bool,
    at: Timestamp,
) -> Result<(), DbError> {
    let sql = "INSERT INTO flow (id, project_id, name, flow_version_id, is_paused, is_archived, \
               created_at) VALUES ($1, $2, $3, $4, $5, FALSE, $6)";
    tx.run(sql, args![id, project, name, version, is_paused, at])
        .await
        .map(drop)
}

/// Makes a version the current one; the flow takes runs again if it was archived.
pub async fn follow(tx: &mut Tx, id: FlowId, version: FlowVersionId) -> Result<(), DbError> {
    let sql = "UPDATE flow SET flow_version_id = $2, is_archived = FALSE WHERE id = $1";
    tx.run(sql, args![id, version]).await.map(drop)
}

/// Lets the schedule rest. If it was active, what it misses after now may be caught up.
pub async fn pause(tx: &mut Tx, id: FlowId, now: Timestamp) -> Result<(), DbError> {
    let sql = "UPDATE flow SET is_paused = TRUE, rests_since = coalesce(rests_since, \
               (SELECT CAST($2 AS BIGINT) + 1 FROM schedule s WHERE s.flow_id = flow.id)) WHERE id = $1";
    tx.run(sql, args![id, now]).await.map(drop)
}

/// Lets the schedule go on; answers since when it has rested, if it was active before.
pub async fn resume(tx: &mut Tx, id: FlowId) -> Result<Option<Timestamp>, DbError> {
    let sql = "SELECT rests_since FROM flow WHERE id = $1";
    let row = tx.row(sql, args![id]).await?;
    let sql = "UPDATE flow SET is_paused = FALSE, rests_since = NULL WHERE id = $1";
    tx.run(sql, args![id]).await?;
    row.map_or(Ok(None), |row| row.get(0))
}

/// Gives a flow another name.
pub async fn rename(tx: &mut Tx, id: FlowId, name: &str) -> Result<(), DbError> {
    let sql = "UPDATE flow SET name = $2 WHERE id = $1";
    tx.run(sql, args![id, name]).await.map(drop)
}

/// Takes no runs from now on.
pub async fn archive(tx: &mut Tx, id: FlowId) -> Result<(), DbError> {
    let sql = "UPDATE flow SET is_archived = TRUE WHERE id = $1";
    tx.run(sql, args![id]).await.map(drop)
}

/// Tells whether an agent has a run of the flow.
pub async fn is_busy(tx: &mut Tx, id: FlowId) -> Result<bool, DbError> {
    let sql = "SELECT 1 FROM flow_run WHERE flow_id = $1 AND lease_until IS NOT NULL LIMIT 1";
    Ok(tx.row(sql, args![id]).await?.is_some())
}

/// What one step of deleting a flow came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deleted {
    /// An agent has a run of it: nothing was deleted.
    Busy,
    /// Some of its runs; there may be more.
    Some,
    /// The flow itself, with its versions.
    All,
}

/// Deletes some runs of a flow with what belongs to them, or the flow itself once it has none.
///
/// The only writer must not be held for as long as a hundred thousand runs take: leases would lapse.
/// Archive the flow first, so that no run comes after.
pub async fn delete_some(tx: &mut Tx, id: FlowId) -> Result<Deleted, DbError> {
    lock(tx, id).await?;
    if is_busy(tx, id).await? {
        return Ok(Deleted::Busy);
    }
    // Looked at by the statement itself: a claim elsewhere may have come in between.
    let runs = "DELETE FROM flow_run WHERE lease_until IS NULL AND id IN \
                (SELECT id FROM flow_run WHERE flow_id = $1 AND lease_until IS NULL \
                ORDER BY id LIMIT 100)";
    if tx.run(runs, args![id]).await? > 0 {
        return Ok(Deleted::Some);
    }
    if is_busy(tx, id).await? {
        return Ok(Deleted::Busy);
    }
    tx.run("DELETE FROM flow WHERE id = $1", args![id]).await?;
    Ok(Deleted::All)
}

/// Tells whether the schedule of a flow rests.
pub async fn is_paused(tx: &mut Tx, id: FlowId) -> Result<bool, DbError> {
    let sql = "SELECT is_paused FROM flow WHERE id = $1";
    tx.row(sql, args![id]).await?.ok_or(DbError::Raced)?.get(0)
}
