//! The claim: which runs an agent gets, and that it gets them.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use jiff::Timestamp;

use super::app::App;
use super::db::DbError;
use super::db::flow_run::{self, Candidate, Claimant, Head};
use super::db::tx::Tx;
use super::db::{location, task_run};
use super::error::ApiError;
use super::session::Session;
use super::turn::deal;
use super::waiting::Presence;
use crate::clock::Monotonic;
use crate::model::id::{FlowRunId, FlowVersionId, ProjectId};
use crate::model::limit;
use crate::wire::{ClaimedRun, Claims};

/// Most runs of one claim.
const CLAIM_MAX: u32 = 256;
/// Most task runs of earlier claims that come with a run: all that it can have.
const TASK_RUNS_MAX: u32 = limit::TASK_RUNS_MAX as u32;

impl App {
    /// Claims due runs that the agent satisfies, at most `count`, for a call that came at `came`.
    ///
    /// Nothing is claimed once the caller is gone: its runs would wait for a lease to end.
    pub(super) async fn claim(
        &self,
        session: &Arc<Session>,
        count: u32,
        presence: Presence,
        came: Monotonic,
    ) -> Result<Claims, ApiError> {
        let (app, session) = (self.clone(), session.clone());
        let count = count.min(CLAIM_MAX);
        let claims = self
            .db
            .write(move |tx| {
                Box::pin(async move {
                    // Taken before the leases begin, since a lease must not seem younger than it is.
                    let waited = app.clock.monotonic().since(came);
                    let flow_runs = match presence.is_gone() || session.is_replaced() || count == 0
                    {
                        true => Vec::new(),
                        false => app.claim_in(tx, &session, count as usize).await?,
                    };
                    Ok(Claims {
                        flow_runs,
                        waited_ms: u64::try_from(waited.as_millis()).unwrap_or(u64::MAX),
                    })
                })
            })
            .await
            .map_err(|error: DbError| ApiError::from(error))?;
        let claimed = claims.flow_runs.iter();
        let ids: Vec<FlowRunId> = claimed.map(|run| run.flow_run_id).collect();
        self.tell(&ids);
        Ok(claims)
    }

    async fn claim_in(
        &self,
        tx: &mut Tx,
        session: &Session,
        count: usize,
    ) -> Result<Vec<ClaimedRun>, DbError> {
        let now = self.clock.now();
        let heads = self.open_heads(tx, session, now).await?;
        let shunned = session.shuns(self.clock.monotonic());
        let mut chosen = Vec::new();
        let mut heads = heads.as_slice();
        while let Some(first) = heads.first().filter(|_| chosen.len() < count) {
            let same = heads
                .iter()
                .take_while(|head| head.rank == first.rank)
                .count();
            let (rank, rest) = heads.split_at(same);
            let left = count - chosen.len();
            chosen.extend(self.choose(tx, rank, &shunned, now, left).await?);
            heads = rest;
        }
        self.hand_over(tx, session, chosen, now).await
    }

    /// Returns the lines that this agent may take from now, highest priority first.
    async fn open_heads(
        &self,
        tx: &mut Tx,
        session: &Session,
        now: Timestamp,
    ) -> Result<Vec<Head>, DbError> {
        let mut open = Vec::new();
        for head in flow_run::heads(tx).await? {
            let id = head.requirement_id;
            if head.scheduled_at > now {
                continue;
            }
            let is_satisfied = match session.is_known_to_satisfy(id) {
                Some(known) => known,
                None => {
                    let requirement = self.db.memory.requirement(tx, id).await?;
                    session.satisfies(id, &requirement)
                }
            };
            if is_satisfied {
                open.push(head);
            }
        }
        open.sort_by_key(|head| (head.rank, head.scheduled_at));
        Ok(open)
    }

    /// Chooses among lines of one priority: one run from each project in turn, the earlier due first, and
    /// none of a version that the agent shuns.
    async fn choose(
        &self,
        tx: &mut Tx,
        heads: &[Head],
        shunned: &[FlowVersionId],
        now: Timestamp,
        count: usize,
    ) -> Result<Vec<Candidate>, DbError> {
        let mut queues: HashMap<ProjectId, Vec<Candidate>> = HashMap::new();
        for head in heads {
            for candidate in flow_run::line(tx, head, shunned, now, count as u32).await? {
                let project = candidate.standing.project_id;
                queues.entry(project).or_default().push(candidate);
            }
        }
        let mut order: Vec<ProjectId> = queues.keys().copied().collect();
        self.turns.sort(&mut order);
        let mut queues: HashMap<_, VecDeque<_>> = queues
            .into_iter()
            .map(|(project, mut line)| {
                line.sort_by_key(|candidate| candidate.standing.scheduled_at);
                (project, line.into())
            })
            .collect();
        Ok(deal(&order, &mut queues, count))
    }

    async fn hand_over(
        &self,
        tx: &mut Tx,
        session: &Session,
        chosen: Vec<Candidate>,
        now: Timestamp,
    ) -> Result<Vec<ClaimedRun>, DbError> {
        if chosen.is_empty() {
            return Ok(Vec::new());
        }
        self.turns
            .note(chosen.iter().map(|one| one.standing.project_id));
        let claimant = Claimant {
            agent_id: session.agent_id,
            session_id: session.id,
            claimed_at: self.lease_now(),
            lease_until: self.lease_end(),
        };
        let mut standings = Vec::new();
        let mut claimed = Vec::new();
        let mut places = HashMap::new();
        for mut one in chosen {
            if one.standing.claim(&claimant, now, &session.name).is_err() {
                continue;
            }
            let run = &one.standing;
            let version = self.db.memory.version(tx, run.flow_version_id).await?;
            let version = version.ok_or(DbError::Raced)?;
            let key = (version.project_id, version.artifact);
            if let Entry::Vacant(vacant) = places.entry(key) {
                vacant.insert(location::list(tx, key.0, key.1).await?);
            }
            let task_runs = match run.epoch {
                1 => Vec::new(),
                _ => task_run::list(tx, run.id, &version, None, TASK_RUNS_MAX).await?,
            };
            claimed.push(ClaimedRun {
                flow_run_id: run.id,
                epoch: run.epoch,
                flow: version.flow.clone(),
                project: version.project.clone(),
                version: version.version,
                artifact: version.artifact,
                artifact_size: version.artifact_size,
                locations: places[&key].clone(),
                definition_hash: version.definition_hash,
                command: (version.definition.command.as_ref()).map(|_| version.definition.clone()),
                parameters: one.parameters,
                scheduled_at: run.scheduled_at,
                started_at: run.started_at,
                timeout_ms: one.timeout_ms,
                lost: run.lost,
                task_runs: task_runs.into_iter().map(|(_, task)| task).collect(),
            });
            standings.push(one.standing);
        }
        flow_run::apply(tx, standings).await?;
        Ok(claimed)
    }
}
