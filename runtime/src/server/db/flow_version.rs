//! The table `flow_version`: registered shapes of flows. Never changed, only followed.

use std::collections::{BTreeSet, HashMap, HashSet};

use super::sql::Sql;
use super::tx::{Json, Row, Tx, args};
use super::{DbError, location};
use crate::model::artifact::Digest;
use crate::model::flow::Definition;
use crate::model::id::{FlowId, FlowVersionId, ProjectId};
use crate::model::label::Labels;
use crate::model::limit::MIB;
use crate::model::requirement::Requirement;
use crate::model::schedule::Overlap;
use crate::wire::FlowVersion;

/// What never changes about a version, with the name of its project, which does not either.
#[derive(Clone, Debug)]
pub struct Version {
    /// Its id.
    pub id: FlowVersionId,
    /// Its flow's id.
    pub flow_id: FlowId,
    /// Its project's id.
    pub project_id: ProjectId,
    /// What its flow was called when it was registered, which its component says.
    pub flow: String,
    /// Its project's name.
    pub project: String,
    /// Its number.
    pub version: u32,
    /// The digest of its component.
    pub artifact: Digest,
    /// The size of its component.
    pub artifact_size: u64,
    /// The shape.
    pub definition: Definition,
    /// The digest of the shape.
    pub definition_hash: Digest,
    /// The labels a run requires.
    pub labels: Labels,
    /// The place of each task in the definition, by name.
    pub places: HashMap<String, u32>,
    /// The tags of its tasks.
    pub tags: BTreeSet<String>,
}

impl Version {
    /// Returns what its schedule says about runs that overlap.
    #[must_use]
    pub fn overlap(&self) -> Overlap {
        let schedule = self.definition.schedule.as_ref();
        schedule.map_or(Overlap::Allow, |schedule| schedule.overlap)
    }

    /// Returns what a run of this version requires, the places of its artifact aside.
    #[must_use]
    pub fn requirement(
        &self,
        more: &Labels,
        roots: impl IntoIterator<Item = String>,
    ) -> Requirement {
        let needs = self.definition.needs();
        Requirement {
            project: self.project.clone(),
            labels: self.labels.with(more),
            grants: needs.grants,
            limits: needs.limits,
            roots: roots.into_iter().collect(),
            ..Requirement::default()
        }
    }

    /// Returns the name of the task at a place.
    #[must_use]
    pub fn task_name(&self, place: u32) -> &str {
        let task = self.definition.tasks.get(place as usize);
        task.map_or("", |task| task.name.as_str())
    }
}

/// A version to be written.
pub struct New<'a> {
    /// The version.
    pub version: &'a Version,
    /// The number of its requirement.
    pub requirement_id: i64,
    /// Now.
    pub at: jiff::Timestamp,
    /// Who registers it.
    pub by: &'a str,
}

/// Adds a version.
pub async fn add(tx: &mut Tx, new: &New<'_>) -> Result<(), DbError> {
    let sql = "INSERT INTO flow_version (id, flow_id, version, artifact, artifact_size, definition, \
               definition_hash, labels, requirement_id, created_at, by_whom) \
               VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)";
    let own = new.version;
    let args = args![
        own.id,
        own.flow_id,
        own.version,
        own.artifact,
        own.artifact_size,
        Json(&own.definition),
        own.definition_hash,
        Json(&own.labels),
        new.requirement_id,
        new.at,
        new.by,
    ];
    tx.run(sql, args).await.map(drop)
}

/// Lists the artifacts of all versions, of whatever project.
pub async fn artifacts(tx: &mut Tx) -> Result<HashSet<Digest>, DbError> {
    let rows = tx.rows("SELECT DISTINCT artifact FROM flow_version", args![]);
    rows.await?.iter().map(|row| row.get(0)).collect()
}

/// Marks every version of a flow but one as followed by another.
pub async fn archive_others(
    tx: &mut Tx,
    flow: FlowId,
    current: FlowVersionId,
    at: jiff::Timestamp,
) -> Result<(), DbError> {
    let sql = "UPDATE flow_version SET archived_at = $3 \
               WHERE flow_id = $1 AND id <> $2 AND archived_at IS NULL";
    tx.run(sql, args![flow, current, at]).await?;
    let sql = "UPDATE flow_version SET archived_at = NULL WHERE id = $1";
    tx.run(sql, args![current]).await.map(drop)
}

/// Reads a version.
pub async fn read(tx: &mut Tx, id: FlowVersionId) -> Result<Option<Version>, DbError> {
    let sql = "SELECT v.id, v.flow_id, f.project_id, p.name, v.version, v.artifact, \
               v.artifact_size, v.definition, v.definition_hash, v.labels \
               FROM flow_version v JOIN flow f ON f.id = v.flow_id \
               JOIN project p ON p.id = f.project_id WHERE v.id = $1";
    let row = tx.row(sql, args![id]).await?;
    row.map(|row| version(&row)).transpose()
}

fn version(row: &Row) -> Result<Version, DbError> {
    let Json(definition): Json<Definition> = row.get(7)?;
    let Json(labels) = row.get(9)?;
    let names = definition.tasks.iter().map(|task| task.name.clone());
    Ok(Version {
        id: row.get(0)?,
        flow_id: row.get(1)?,
        project_id: row.get(2)?,
        flow: definition.name.clone(),
        project: row.get(3)?,
        version: row.get(4)?,
        artifact: row.get(5)?,
        artifact_size: row.get(6)?,
        definition_hash: row.get(8)?,
        labels,
        places: names.zip(0..).collect(),
        tags: definition.tags(),
        definition,
    })
}

/// Returns the number of the requirement of a version's runs.
pub async fn requirement_id(tx: &mut Tx, id: FlowVersionId) -> Result<i64, DbError> {
    let sql = "SELECT requirement_id FROM flow_version WHERE id = $1";
    tx.row(sql, args![id]).await?.ok_or(DbError::Raced)?.get(0)
}

/// Gives a version another requirement, since its artifact lies in more places now.
pub async fn set_requirement(tx: &mut Tx, id: FlowVersionId, new: i64) -> Result<(), DbError> {
    let sql = "UPDATE flow_version SET requirement_id = $2 WHERE id = $1";
    tx.run(sql, args![id, new]).await.map(drop)
}

/// Tells whether a version of a flow was registered under a name.
pub async fn was_called(tx: &mut Tx, flow: FlowId, name: &str) -> Result<bool, DbError> {
    let sql = Sql {
        sqlite: "SELECT 1 FROM flow_version WHERE flow_id = $1 \
                 AND json_extract(definition, '$.name') = $2 LIMIT 1",
        postgres: "SELECT 1 FROM flow_version WHERE flow_id = $1 \
                   AND definition::json ->> 'name' = $2 LIMIT 1",
    };
    Ok(tx.row(sql, args![flow, name]).await?.is_some())
}

/// Finds the id of a version of a flow by its number.
pub async fn by_number(
    tx: &mut Tx,
    flow: FlowId,
    version: u32,
) -> Result<Option<FlowVersionId>, DbError> {
    let sql = "SELECT id FROM flow_version WHERE flow_id = $1 AND version = $2";
    let row = tx.row(sql, args![flow, version]).await?;
    row.map(|row| row.get(0)).transpose()
}

/// Returns the highest number of a version of a flow below `below`; none if there is none.
pub async fn last_number(
    tx: &mut Tx,
    flow: FlowId,
    below: Option<u32>,
) -> Result<Option<u32>, DbError> {
    let sql = "SELECT max(version) FROM flow_version WHERE flow_id = $1 AND version < $2";
    let below = below.map_or(i64::MAX, i64::from);
    let row = tx.row(sql, args![flow, below]).await?;
    row.map_or(Ok(None), |row| row.get(0))
}

/// Most bytes of the definitions of one page, unless its first alone has more.
const PAGE_BYTES_MAX: u64 = 4 * MIB;

/// Lists versions of a flow whole, newest first, those before the number `before`; tells whether
/// there are more. A page ends early where the definitions become many bytes.
pub async fn list(
    tx: &mut Tx,
    flow: FlowId,
    before: u32,
    limit: u32,
) -> Result<(Vec<FlowVersion>, bool), DbError> {
    let sql = "SELECT octet_length(definition) FROM flow_version \
               WHERE flow_id = $1 AND version < $2 ORDER BY version DESC LIMIT $3";
    let sizes = tx.rows(sql, args![flow, before, limit + 1]).await?;
    let (mut count, mut bytes) = (0, 0);
    for row in sizes.iter().take(limit as usize) {
        bytes += row.get::<u64>(0)?;
        if count > 0 && bytes > PAGE_BYTES_MAX {
            break;
        }
        count += 1;
    }
    let sql = "SELECT v.id, v.version, v.artifact, v.artifact_size, v.definition, \
               v.definition_hash, v.labels, v.created_at, v.archived_at, f.project_id, v.by_whom \
               FROM flow_version v JOIN flow f ON f.id = v.flow_id \
               WHERE v.flow_id = $1 AND v.version < $2 ORDER BY v.version DESC LIMIT $3";
    let mut versions = Vec::new();
    for row in tx.rows(sql, args![flow, before, count]).await? {
        let (Json(definition), Json(labels)) = (row.get(4)?, row.get(6)?);
        let artifact = row.get(2)?;
        versions.push(FlowVersion {
            id: row.get(0)?,
            flow_id: flow,
            version: row.get(1)?,
            artifact,
            artifact_size: row.get(3)?,
            definition,
            definition_hash: row.get(5)?,
            labels,
            locations: location::list(tx, row.get(9)?, artifact).await?,
            created_at: row.get(7)?,
            archived_at: row.get(8)?,
            by: row.get(10)?,
        });
    }
    let is_cut = versions.len() < sizes.len();
    Ok((versions, is_cut))
}
