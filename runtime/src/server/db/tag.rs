//! The table `tag`: how many task runs with a tag may run at one time in a project.
//!
//! Which task runs have the slots, and which wait, is in `tag_slot`.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use jiff::Timestamp;

use super::DbError;
use super::tx::{Tx, args};
use crate::model::id::ProjectId;

/// The numbers of slots of the tags of one project.
pub type Numbers = HashMap<String, u32>;

/// Sets how many task runs with a tag may run at one time.
pub async fn set(
    tx: &mut Tx,
    project: ProjectId,
    name: &str,
    slots: Option<u32>,
    at: Timestamp,
) -> Result<(), DbError> {
    if tx.is_shared() {
        // Changes come one after the other, in all projects: nobody hears of a later one before this one. And what
        // has begun without knowing of this one is there to be counted.
        let sql = "LOCK TABLE tag IN SHARE ROW EXCLUSIVE MODE";
        tx.run(sql, args![]).await?;
    }
    // Never that of another change, whatever the clock says: agents tell by it whether they know all.
    let last = last_change(tx).await?.unwrap_or_default();
    let change = at.as_microsecond().max(last + 1);
    let sql = "INSERT INTO tag (project_id, name, slots, changed_at) VALUES ($1, $2, $3, $4) \
               ON CONFLICT (project_id, name) DO UPDATE SET slots = excluded.slots, \
               changed_at = excluded.changed_at";
    tx.run(sql, args![project, name, slots, change]).await?;
    // The newest change of the project says all that those said that took a number away.
    let sql = "DELETE FROM tag WHERE project_id = $1 AND slots IS NULL AND changed_at < $2";
    tx.run(sql, args![project, change]).await.map(drop)
}

/// Keeps everybody else from changing a number of slots, in any project, until this transaction ends: what begins
/// in it counts against those that it finds, and whoever sets another finds what has begun.
pub async fn hold(tx: &mut Tx) -> Result<(), DbError> {
    if tx.is_shared() {
        tx.run("LOCK TABLE tag IN SHARE MODE", args![]).await?;
    }
    Ok(())
}

pub(super) const LAST_CHANGE: &str = "SELECT max(changed_at) FROM tag";

/// Returns the newest change; none if no tag has ever had a number of slots.
pub async fn last_change(tx: &mut Tx) -> Result<Option<i64>, DbError> {
    let row = tx.row(LAST_CHANGE, args![]).await?;
    row.map_or(Ok(None), |row| row.get(0))
}

/// Lists the projects some tag of which has or had a number of slots, with those that have one.
pub async fn all(tx: &mut Tx) -> Result<HashMap<ProjectId, BTreeSet<String>>, DbError> {
    let mut all: HashMap<ProjectId, BTreeSet<String>> = HashMap::new();
    let sql = "SELECT project_id, name, slots IS NOT NULL FROM tag";
    for row in tx.rows(sql, args![]).await? {
        let own = all.entry(row.get(0)?).or_default();
        if row.get(2)? {
            own.insert(row.get(1)?);
        }
    }
    Ok(all)
}

/// Lists the tags that have a number of slots, by the name of their project.
pub async fn by_project(tx: &mut Tx) -> Result<BTreeMap<String, BTreeSet<String>>, DbError> {
    let mut tags: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let sql = "SELECT p.name, t.name FROM tag t JOIN project p ON p.id = t.project_id \
               WHERE t.slots IS NOT NULL";
    for row in tx.rows(sql, args![]).await? {
        tags.entry(row.get(0)?).or_default().insert(row.get(1)?);
    }
    Ok(tags)
}

/// Returns the numbers of slots of the tags of a project.
pub async fn numbers(tx: &mut Tx, project: ProjectId) -> Result<Numbers, DbError> {
    let sql = "SELECT name, slots FROM tag WHERE project_id = $1 AND slots IS NOT NULL";
    let rows = tx.rows(sql, args![project]).await?;
    rows.iter()
        .map(|row| Ok((row.get(0)?, row.get(1)?)))
        .collect()
}

/// Lists the projects of which tags have a number of slots, by name, those after `after`.
pub async fn projects(tx: &mut Tx) -> Result<Vec<(ProjectId, String)>, DbError> {
    let sql = "SELECT id, name FROM project p WHERE EXISTS (SELECT 1 FROM tag t \
               WHERE t.project_id = p.id AND t.slots IS NOT NULL) ORDER BY name";
    let rows = tx.rows(sql, args![]).await?;
    rows.iter()
        .map(|row| Ok((row.get(0)?, row.get(1)?)))
        .collect()
}

/// Keeps everybody else from giving slots of a project, and from changing their numbers, until this
/// transaction ends.
pub async fn lock(tx: &mut Tx, project: ProjectId) -> Result<(), DbError> {
    if tx.is_shared() {
        let sql = "SELECT 1 FROM tag WHERE project_id = $1 ORDER BY name FOR NO KEY UPDATE";
        tx.rows(sql, args![project]).await?;
    }
    Ok(())
}
