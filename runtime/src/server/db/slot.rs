//! Slots: how many runs of a flow, or of a project, agents may have at one time.
//!
//! The numbers stand in the rows of flows and projects; which of them are taken the leases say. A
//! claim reads both in its own transaction; where others claim at the same time it locks these rows
//! first, so that no two claims take the same slot.

use std::collections::{BTreeSet, HashMap};
use std::fmt;

use super::DbError;
use super::tx::{Tx, args};
use crate::model::id::{FlowId, ProjectId};

/// Some slots, and how many of them are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slots {
    /// How many there are.
    pub all: u32,
    /// How many are taken; more than there are where their number was lowered.
    pub taken: u32,
}

/// What of the slots is free. Whatever is not listed has as many as it wants.
#[derive(Clone, Debug, Default)]
pub struct Room {
    flows: HashMap<FlowId, Slots>,
    projects: HashMap<ProjectId, Slots>,
}

/// Whose slots are all taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Full {
    /// The flow's.
    Flow(Slots),
    /// The project's.
    Project(Slots),
}

impl fmt::Display for Full {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (whose, slots) = match self {
            Self::Flow(slots) => ("flow", slots),
            Self::Project(slots) => ("project", slots),
        };
        let Slots { all, taken } = slots;
        write!(
            f,
            "waits for a slot of its {whose}: {taken} of {all} are taken"
        )
    }
}

impl Slots {
    const fn is_full(self) -> bool {
        self.taken >= self.all
    }
}

impl Room {
    /// Tells whether any flow or project has a number of slots at all.
    #[must_use]
    pub fn is_limited(&self) -> bool {
        !self.flows.is_empty() || !self.projects.is_empty()
    }

    /// Tells whether a flow has a number of slots.
    #[must_use]
    pub fn limits_flow(&self, id: FlowId) -> bool {
        self.flows.contains_key(&id)
    }

    /// Tells whether a project has a number of slots.
    #[must_use]
    pub fn limits_project(&self, id: ProjectId) -> bool {
        self.projects.contains_key(&id)
    }

    /// Tells whose slots stand in the way of another run.
    #[must_use]
    pub fn full(&self, flow: FlowId, project: ProjectId) -> Option<Full> {
        let flow = self.flows.get(&flow).copied().filter(|it| it.is_full());
        let project = self.projects.get(&project).copied();
        let project = project.filter(|it| it.is_full());
        flow.map(Full::Flow).or(project.map(Full::Project))
    }

    /// Takes a slot for a run.
    pub fn take(&mut self, flow: FlowId, project: ProjectId) {
        if let Some(slots) = self.flows.get_mut(&flow) {
            slots.taken += 1;
        }
        if let Some(slots) = self.projects.get_mut(&project) {
            slots.taken += 1;
        }
    }
}

/// Counts what agents have, by an index that holds all of it.
pub(super) const TAKEN: &str = "SELECT flow_id, project_id, count(*) FROM flow_run \
                                WHERE lease_until IS NOT NULL GROUP BY flow_id, project_id";

/// Reads what of the slots is free.
pub async fn room(tx: &mut Tx) -> Result<Room, DbError> {
    let mut room = Room::default();
    let all = |row: &super::tx::Row| {
        Ok::<_, DbError>(Slots {
            all: row.get(1)?,
            taken: 0,
        })
    };
    let flows = "SELECT id, slots FROM flow WHERE slots IS NOT NULL";
    for row in tx.rows(flows, args![]).await? {
        room.flows.insert(row.get(0)?, all(&row)?);
    }
    let projects = "SELECT id, slots FROM project WHERE slots IS NOT NULL";
    for row in tx.rows(projects, args![]).await? {
        room.projects.insert(row.get(0)?, all(&row)?);
    }
    if !room.is_limited() {
        return Ok(room);
    }
    for row in tx.rows(TAKEN, args![]).await? {
        let (flow, project, count): (_, _, u32) = (row.get(0)?, row.get(1)?, row.get(2)?);
        if let Some(slots) = room.flows.get_mut(&flow) {
            slots.taken += count;
        }
        if let Some(slots) = room.projects.get_mut(&project) {
            slots.taken += count;
        }
    }
    Ok(room)
}

/// Keeps everybody else from claiming runs of projects and flows by their slots or their order, until
/// this transaction ends. Runs of them are made meanwhile.
pub async fn lock(
    tx: &mut Tx,
    projects: &BTreeSet<ProjectId>,
    flows: &BTreeSet<FlowId>,
) -> Result<(), DbError> {
    let sql = "SELECT 1 FROM project WHERE id = $1 FOR NO KEY UPDATE";
    for id in projects {
        tx.row(sql, args![*id]).await?;
    }
    let sql = "SELECT 1 FROM flow WHERE id = $1 FOR NO KEY UPDATE";
    for id in flows {
        tx.row(sql, args![*id]).await?;
    }
    Ok(())
}

/// Sets how many runs of a flow agents may have at one time.
pub async fn set_flow(tx: &mut Tx, id: FlowId, slots: Option<u32>) -> Result<(), DbError> {
    let sql = "UPDATE flow SET slots = $2 WHERE id = $1";
    tx.run(sql, args![id, slots]).await.map(drop)
}

/// Sets how many runs of a project agents may have at one time.
pub async fn set_project(tx: &mut Tx, id: ProjectId, slots: Option<u32>) -> Result<(), DbError> {
    let sql = "UPDATE project SET slots = $2 WHERE id = $1";
    tx.run(sql, args![id, slots]).await.map(drop)
}
