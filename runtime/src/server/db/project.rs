//! The table `project`.

use super::DbError;
use super::realm::{Realm, in_realm};
use super::tx::{Row, Tx, args};
use crate::model::id::ProjectId;
use crate::wire::Project;

fn project(row: &Row) -> Result<Project, DbError> {
    Ok(Project {
        id: row.get(0)?,
        name: row.get(1)?,
        description: row.get(2)?,
        created_at: row.get(3)?,
        slots: row.get(4)?,
    })
}

/// Adds a project; answers whether the name was free.
pub async fn add(tx: &mut Tx, new: &Project) -> Result<bool, DbError> {
    let sql = "INSERT INTO project (id, name, description, created_at) VALUES ($1, $2, $3, $4) \
               ON CONFLICT (name) DO NOTHING";
    let args = args![new.id, &new.name, &new.description, new.created_at];
    Ok(tx.run(sql, args).await? == 1)
}

/// Finds a project of the realm by its name or id.
pub async fn find(tx: &mut Tx, realm: &Realm, text: &str) -> Result<Option<Project>, DbError> {
    let row = match text.parse::<ProjectId>() {
        Ok(id) => {
            let sql = "SELECT id, name, description, created_at, slots FROM project \
                       WHERE id = $1 OR name = $2";
            tx.row(sql, args![id, text]).await?
        }
        Err(_) => {
            let sql =
                "SELECT id, name, description, created_at, slots FROM project WHERE name = $1";
            tx.row(sql, args![text]).await?
        }
    };
    let found = row.map(|row| project(&row)).transpose()?;
    Ok(found.filter(|project| realm.has(project.id)))
}

/// Lists projects of the realm by name, those after `after`.
pub async fn list(
    tx: &mut Tx,
    realm: &Realm,
    after: &str,
    limit: u32,
) -> Result<Vec<Project>, DbError> {
    let sql = in_realm!(
        "SELECT id, name, description, created_at, slots FROM project WHERE name > $1 AND ",
        "id" in "$3",
        " ORDER BY name LIMIT $2"
    );
    let rows = tx.rows(sql, args![after, limit, realm.arg()]).await?;
    rows.iter().map(project).collect()
}

/// Returns the names of the projects of the realm; none if it is every project.
pub async fn names(tx: &mut Tx, realm: &Realm) -> Result<Option<Vec<String>>, DbError> {
    if *realm == Realm::All {
        return Ok(None);
    }
    let projects = list(tx, realm, "", u32::MAX).await?;
    Ok(Some(
        projects.into_iter().map(|project| project.name).collect(),
    ))
}

/// Keeps everybody else from registering in a project, and from deleting it, until this transaction
/// ends.
pub async fn lock(tx: &mut Tx, id: ProjectId) -> Result<(), DbError> {
    if tx.is_shared() {
        let sql = "SELECT 1 FROM project WHERE id = $1 FOR UPDATE";
        tx.row(sql, args![id]).await?;
    }
    Ok(())
}

/// Deletes a project that has no flow; answers whether it had none.
pub async fn delete(tx: &mut Tx, id: ProjectId) -> Result<bool, DbError> {
    lock(tx, id).await?;
    let sql = "DELETE FROM project WHERE id = $1 \
               AND NOT EXISTS (SELECT 1 FROM flow WHERE project_id = $1)";
    Ok(tx.run(sql, args![id]).await? == 1)
}
