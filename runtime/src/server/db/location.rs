//! The table `location`: where the bytes of artifacts lie.

use super::DbError;
use super::tx::{Row, Tx, args};
use crate::model::artifact::Digest;
use crate::model::id::ProjectId;
use crate::wire::Location;

fn location(row: &Row) -> Result<Location, DbError> {
    Ok(Location {
        root: row.get(0)?,
        key: row.get(1)?,
    })
}

/// Notes that an artifact lies in a place too.
pub async fn add(
    tx: &mut Tx,
    project: ProjectId,
    artifact: Digest,
    at: &Location,
) -> Result<(), DbError> {
    let sql = "INSERT INTO location (project_id, artifact, root, \"key\") VALUES ($1, $2, $3, $4) \
               ON CONFLICT (project_id, artifact, root) DO UPDATE SET \"key\" = excluded.\"key\"";
    tx.run(sql, args![project, artifact, &at.root, &at.key])
        .await
        .map(drop)
}

/// Lists where an artifact lies.
pub async fn list(
    tx: &mut Tx,
    project: ProjectId,
    artifact: Digest,
) -> Result<Vec<Location>, DbError> {
    let sql = "SELECT root, \"key\" FROM location WHERE project_id = $1 AND artifact = $2 \
               ORDER BY root";
    let rows = tx.rows(sql, args![project, artifact]).await?;
    rows.iter().map(location).collect()
}
