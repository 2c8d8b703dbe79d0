//! Registering a version of a flow, and going back to an earlier one, each in one transaction.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;

use super::db::flow_version::{self, Version};
use super::db::memory::Memory;
use super::db::tx::Tx;
use super::db::{DbError, flow, flow_run, location, project, requirement, schedule};
use super::duty::scheduler;
use crate::model::flow::Definition;
use crate::model::id::{FlowId, FlowVersionId};
use crate::model::schedule::Tick;
use crate::wire::{Project, Registered, Registration};

/// What a registration did.
pub struct Done {
    /// What its caller is told.
    pub registered: Registered,
    /// The version of which runs may wait since then with a requirement that they did not have before.
    pub changed: Option<FlowVersionId>,
}

/// Registers a version of a flow in a project.
///
/// The same artifact, definition and labels as the current version make no new one; only a place
/// where the bytes lie may be added. Otherwise the new version follows the current one: runs that
/// clocks made and nobody has claimed are made again for it, runs made by hand keep what they were
/// pinned to.
///
/// # Errors
///
/// The database's.
pub async fn register(
    tx: &mut Tx,
    memory: &Memory,
    project: &Project,
    asked: Registration,
    by: &str,
    now: Timestamp,
) -> Result<Done, DbError> {
    project::lock(tx, project.id).await?;
    location::add(tx, project.id, asked.artifact, &asked.location).await?;
    let before = flow::in_project(tx, project.id, &asked.definition.name).await?;
    let current = match &before {
        Some(before) => memory.version(tx, before.flow_version_id).await?,
        None => None,
    };
    let hash = asked.definition.hash();
    let same = current.as_ref().filter(|own| {
        own.artifact == asked.artifact && own.definition_hash == hash && own.labels == asked.labels
    });
    if let (Some(version), Some(before)) = (same, &before) {
        let has_changed = refresh_places(tx, memory, version).await?;
        if before.is_archived {
            flow::follow(tx, before.id, version.id).await?;
        }
        if asked.is_paused {
            flow::pause(tx, before.id, now).await?;
            schedule::delete_ahead(tx, before.id, now).await?;
        }
        if before.is_archived || asked.is_paused {
            set_schedule(tx, version, now).await?;
        }
        return Ok(Done {
            registered: registered(version, false, Vec::new()),
            changed: has_changed.then_some(version.id),
        });
    }
    let added = match &current {
        Some(own) => added_grants(&asked.definition, &own.definition),
        None => Vec::new(),
    };
    let ids = (
        FlowId::at(now.as_microsecond(), rand::random()),
        FlowVersionId::at(now.as_microsecond(), rand::random()),
    );
    // Not that of the current version: an earlier one may be that.
    let last = match &before {
        Some(before) => flow_version::last_number(tx, before.id, None).await?,
        None => None,
    };
    let names = asked.definition.tasks.iter().map(|task| task.name.clone());
    let version = Version {
        id: ids.1,
        flow_id: before.as_ref().map_or(ids.0, |before| before.id),
        project_id: project.id,
        flow: asked.definition.name.clone(),
        project: project.name.clone(),
        version: last.unwrap_or_default() + 1,
        artifact: asked.artifact,
        artifact_size: asked.artifact_size,
        definition_hash: hash,
        labels: asked.labels,
        places: names.zip(0..).collect(),
        tags: asked.definition.tags(),
        definition: asked.definition,
    };
    let how = How {
        is_known: before.is_some(),
        is_paused: asked.is_paused,
        by,
    };
    add(tx, &version, &how, now).await?;
    Ok(Done {
        registered: registered(&version, true, added),
        changed: before.map(|_| version.id),
    })
}

/// Makes a version the current one that was registered before; answers as if it was registered again.
///
/// Nothing is made: runs of clocks follow it, and the next registration is one more version.
///
/// # Errors
///
/// The database's.
pub async fn roll_back(
    tx: &mut Tx,
    memory: &Memory,
    current: FlowVersionId,
    to: FlowVersionId,
    now: Timestamp,
) -> Result<Done, DbError> {
    let current = memory.version(tx, current).await?.ok_or(DbError::Raced)?;
    let version = memory.version(tx, to).await?.ok_or(DbError::Raced)?;
    let added = added_grants(&version.definition, &current.definition);
    if version.id != current.id {
        refresh_places(tx, memory, &version).await?;
        follow(tx, &version, now).await?;
    }
    Ok(Done {
        registered: registered(&version, false, added),
        changed: Some(version.id),
    })
}

/// How a version is added.
struct How<'a> {
    /// Whether its flow is there.
    is_known: bool,
    /// Whether the schedule of the flow is to rest.
    is_paused: bool,
    /// Who registers it.
    by: &'a str,
}

/// Adds a version and lets its flow follow it.
async fn add(tx: &mut Tx, version: &Version, how: &How<'_>, now: Timestamp) -> Result<(), DbError> {
    let roots = roots(tx, version).await?;
    let needed = version.requirement(&crate::model::label::Labels::default(), roots);
    let requirement_id = requirement::intern(tx, &needed).await?;
    let (flow_id, id) = (version.flow_id, version.id);
    if !how.is_known {
        flow::add(
            tx,
            flow_id,
            version.project_id,
            &version.flow,
            id,
            how.is_paused,
            now,
        )
        .await?;
    } else if how.is_paused {
        flow::pause(tx, flow_id, now).await?;
    }
    let new = flow_version::New {
        version,
        requirement_id,
        at: now,
        by: how.by,
    };
    flow_version::add(tx, &new).await?;
    follow(tx, version, now).await
}

/// Makes a version the current one of its flow. Runs that clocks made and nobody has claimed are made again
/// for it.
async fn follow(tx: &mut Tx, version: &Version, now: Timestamp) -> Result<(), DbError> {
    let (flow_id, id) = (version.flow_id, version.id);
    flow::follow(tx, flow_id, id).await?;
    flow_version::archive_others(tx, flow_id, id, now).await?;
    schedule::delete_ahead(tx, flow_id, now).await?;
    let passed = schedule::take_passed(tx, flow_id, now).await?;
    let queued = flow_run::take_queued(tx, flow_id).await?;
    for (clock, at) in passed.into_iter().chain(queued) {
        scheduler::make(tx, version, Tick { at, clock }, now).await?;
    }
    set_schedule(tx, version, now).await
}

/// Lets the scheduler look at the flow, or not.
async fn set_schedule(tx: &mut Tx, version: &Version, now: Timestamp) -> Result<(), DbError> {
    let is_paused = flow::is_paused(tx, version.flow_id).await?;
    match version.definition.schedule.is_some() && !is_paused {
        true => schedule::activate(tx, version.flow_id, now, None).await,
        false => schedule::deactivate(tx, version.flow_id).await,
    }
}

async fn roots(tx: &mut Tx, version: &Version) -> Result<BTreeSet<String>, DbError> {
    let places = location::list(tx, version.project_id, version.artifact).await?;
    Ok(places.into_iter().map(|place| place.root).collect())
}

/// Lets runs of a version be fetched from every place where its artifact lies by now; answers whether
/// that are others than before.
async fn refresh_places(tx: &mut Tx, memory: &Memory, version: &Version) -> Result<bool, DbError> {
    let own = flow_version::requirement_id(tx, version.id).await?;
    let roots = roots(tx, version).await?;
    if memory.requirement(tx, own).await?.roots == roots {
        return Ok(false);
    }
    // A run may need more than its version: labels of its own, or the root of its results.
    let mut changed = BTreeMap::new();
    for old in flow_run::take_requirements(tx, version.id)
        .await?
        .into_iter()
        .chain([own])
    {
        let mut needed = (*memory.requirement(tx, old).await?).clone();
        needed.roots.clone_from(&roots);
        changed.insert(old, requirement::intern(tx, &needed).await?);
    }
    flow_version::set_requirement(tx, version.id, changed[&own]).await?;
    flow_run::change_requirements(tx, version.id, changed).await?;
    Ok(true)
}

/// Lists what a definition asks for beyond another.
fn added_grants(new: &Definition, old: &Definition) -> Vec<String> {
    let lines = |definition: &Definition| -> BTreeSet<String> {
        definition.needs().grants.lines().into_iter().collect()
    };
    lines(new).difference(&lines(old)).cloned().collect()
}

const fn registered(version: &Version, is_new: bool, added_grants: Vec<String>) -> Registered {
    Registered {
        flow_id: version.flow_id,
        flow_version_id: version.id,
        version: version.version,
        is_new,
        added_grants,
    }
}
