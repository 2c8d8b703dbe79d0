//! The claim: which runs an agent gets, and that it gets them.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;

use super::app::App;
use super::db::DbError;
use super::db::flow_run::{self, Candidate, Claimant, Head, Move};
use super::db::memory::Version;
use super::db::slot::{self, Room};
use super::db::tx::Tx;
use super::db::{agent, location, tag, task_run};
use super::error::ApiError;
use super::fence::Fence;
use super::overlap::{self, Settled};
use super::session::Session;
use super::turn::deal;
use super::waiting::Presence;
use crate::clock::Monotonic;
use crate::model::id::{FlowId, FlowRunId, FlowVersionId, ProjectId};
use crate::model::limit;
use crate::model::state::{Event, State};
use crate::wire::ClaimedRun;

/// Most runs of one claim.
const CLAIM_MAX: u32 = 256;
/// Most task runs of earlier claims that come with a run: all that it can have.
const TASK_RUNS_MAX: u32 = limit::TASK_RUNS_MAX as u32;

/// Rounds of one claim: beyond that others have their turn at the database first.
const ROUNDS_MAX: usize = 16;

/// Runs looked at in a round where slots are limited: many may have to wait before one may go.
const WIDTH_MIN: usize = 256;

/// What a claim came to.
#[derive(Default)]
pub(super) struct Claimed {
    /// The runs that the agent has now.
    pub(super) runs: Vec<ClaimedRun>,
    /// How long the call waited before its leases began.
    pub(super) waited: Duration,
    /// Whether there may be more to claim at once.
    pub(super) is_cut: bool,
    /// Whether a run was passed over that others had in hand.
    pub(super) has_passed: bool,
    /// Whether the agent takes no more under this session, as another server was told.
    is_barred: bool,
    /// Runs that have to wait for a slot from now.
    queued: Vec<FlowRunId>,
    /// What runs require that this agent turned out to be too old for: it may have been woken for them.
    left_over: BTreeSet<i64>,
    /// What was decided about runs that may not overlap.
    settled: Settled,
}

/// What may be handed over of the runs that were chosen.
struct Sorted {
    free: Vec<Candidate>,
    /// Whether others may be chosen in the place of some that may not.
    has_more: bool,
}

/// Parts the runs that may go on from those that are held up, and writes down what holds those up.
async fn sort_out(
    tx: &mut Tx,
    chosen: Vec<Candidate>,
    room: &mut Room,
    fence: &mut Fence,
    count: usize,
    now: Timestamp,
    claimed: &mut Claimed,
) -> Result<Sorted, DbError> {
    fence.draw(tx, &chosen, room).await?;
    let is_new = |one: &Candidate| one.overlap.is_some() && one.standing.state == State::Scheduled;
    let flows: BTreeSet<FlowId> = chosen
        .iter()
        .filter(|one| is_new(one))
        .map(|one| one.flow_id)
        .collect();
    let mut decided = HashSet::new();
    for flow in flows {
        let settled = overlap::settle(tx, flow, now).await?;
        decided.extend(settled.touched.iter().copied());
        claimed.settled.add(settled);
    }
    let mut chosen = chosen;
    chosen.retain(|one| !decided.contains(&one.standing.id));
    let taken = fence.take(tx, chosen, room, count, now).await?;
    let mut sorted = Sorted {
        free: Vec::new(),
        has_more: !decided.is_empty() || taken.has_more,
    };
    let mut held = Vec::new();
    for mut one in taken.runs {
        let id = one.standing.id;
        let Some(full) = room.full(one.flow_id, one.standing.project_id) else {
            if sorted.free.len() < count {
                room.take(one.flow_id, one.standing.project_id);
                sorted.free.push(one);
            }
            continue;
        };
        sorted.has_more = true;
        if one.standing.state == State::Queued {
            continue;
        }
        let queue = Move {
            event: Event::Queue,
            message: &full.to_string(),
            code: None,
            at: now,
            by: "server",
        };
        one.standing.step(&queue).map_err(|_| DbError::Raced)?;
        claimed.queued.push(id);
        held.push(one.standing);
    }
    flow_run::apply(tx, held).await?;
    Ok(sorted)
}

/// Lists the tags of a version that have a number of slots. Who has no tags costs nothing.
async fn limited_tags(
    tx: &mut Tx,
    version: &Version,
    known: &mut Option<HashMap<ProjectId, BTreeSet<String>>>,
) -> Result<Vec<String>, DbError> {
    if version.tags.is_empty() {
        return Ok(Vec::new());
    }
    let all = match known {
        Some(all) => all,
        None => known.insert(tag::all(tx).await?),
    };
    let Some(limited) = all.get(&version.project_id) else {
        return Ok(Vec::new());
    };
    Ok(version.tags.intersection(limited).cloned().collect())
}

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
    ) -> Result<Claimed, ApiError> {
        let (app, session) = (self.clone(), session.clone());
        let (count, agent_id) = (count.min(CLAIM_MAX), session.agent_id);
        let claimed = self
            .db
            .write(move |tx| {
                Box::pin(async move {
                    // Taken before the leases begin, since a lease must not seem younger than it is.
                    let waited = app.clock.monotonic().since(came);
                    let mut claimed = Claimed::default();
                    let is_over = presence.is_gone() || session.is_replaced();
                    if is_over || session.takes_no_more() {
                        claimed.waited = waited;
                        return Ok(claimed);
                    }
                    // Another server may have been told what this one has not.
                    claimed.is_barred = tx.is_shared()
                        && !agent::may_claim(tx, session.agent_id, session.id).await?;
                    if !claimed.is_barred {
                        app.claim_in(tx, &session, count as usize, &mut claimed)
                            .await?;
                    }
                    claimed.waited = waited;
                    Ok(claimed)
                })
            })
            .await
            .map_err(|error: DbError| ApiError::from(error))?;
        let runs = claimed.runs.iter();
        let mut touched: Vec<FlowRunId> = runs.map(|run| run.flow_run_id).collect();
        touched.extend(&claimed.queued);
        self.tell(&touched);
        self.tell_settled(&claimed.settled);
        if !claimed.queued.is_empty() {
            self.usher.has_queued();
        }
        for requirement_id in &claimed.left_over {
            self.announce(*requirement_id, self.clock.now(), 1).await;
        }
        if claimed.is_barred {
            self.look_at_agents(Some(agent_id)).await?;
        }
        Ok(claimed)
    }

    /// Claims in rounds: runs that turn out to be held up, or that others are about to take, make room
    /// for those behind them.
    async fn claim_in(
        &self,
        tx: &mut Tx,
        session: &Session,
        count: usize,
        claimed: &mut Claimed,
    ) -> Result<(), DbError> {
        let now = self.clock.now();
        let mut room = slot::room(tx).await?;
        let shunned = session.shuns(self.clock.monotonic());
        let mut fence = Fence::new(shunned);
        for _ in 0..ROUNDS_MAX {
            if claimed.runs.len() >= count {
                return Ok(());
            }
            let left = count - claimed.runs.len();
            let width = match room.is_limited() {
                true => left.max(WIDTH_MIN),
                false => left,
            };
            let chosen = self
                .choose_all(tx, session, now, width, &room, &fence)
                .await?;
            let sorted = sort_out(tx, chosen, &mut room, &mut fence, left, now, claimed).await?;
            claimed.has_passed = fence.has_passed();
            self.hand_over(tx, session, sorted.free, now, claimed)
                .await?;
            if !sorted.has_more {
                return Ok(());
            }
        }
        claimed.is_cut = true;
        Ok(())
    }

    /// Chooses runs in the order of their priority: due ones, and queued ones that may go on.
    async fn choose_all(
        &self,
        tx: &mut Tx,
        session: &Session,
        now: Timestamp,
        count: usize,
        room: &Room,
        fence: &Fence,
    ) -> Result<Vec<Candidate>, DbError> {
        let mut heads = self.open_heads(tx, session, now).await?;
        heads.retain(|head| !fence.is_short(head));
        let shunned = fence.shunned();
        let mut queued = self
            .open_queued(tx, session, now, count, room, shunned)
            .await?;
        let heads_of = |rank: i32| heads.iter().filter(move |head| head.rank == rank);
        let ranks = heads.iter().map(|head| head.rank);
        let ranks: BTreeSet<i32> = ranks.chain(queued.keys().copied()).collect();
        let mut chosen = Vec::new();
        for rank in ranks {
            if chosen.len() >= count {
                break;
            }
            let mut lines = queued.remove(&rank).unwrap_or_default();
            for head in heads_of(rank) {
                lines.extend(flow_run::line(tx, head, shunned, now, count as u32).await?);
            }
            chosen.extend(self.choose(lines, count - chosen.len()));
        }
        Ok(chosen)
    }

    /// Returns the queued runs that this agent may take, by their rank.
    async fn open_queued(
        &self,
        tx: &mut Tx,
        session: &Session,
        now: Timestamp,
        count: usize,
        room: &Room,
        shunned: &[FlowVersionId],
    ) -> Result<BTreeMap<i32, Vec<Candidate>>, DbError> {
        let mut open: BTreeMap<i32, Vec<Candidate>> = BTreeMap::new();
        for head in flow_run::queued_heads(tx).await? {
            let is_full = room.full(head.flow_id, head.project_id).is_some();
            if is_full || !self.may_take(tx, session, head.requirement_id).await? {
                continue;
            }
            let mut runs = flow_run::queued(tx, &head, count as u32).await?;
            runs.retain(|run| !shunned.contains(&run.standing.flow_version_id));
            // Of those that may not overlap only the first can be the next of its flow.
            let first = runs.iter().find(|run| run.overlap.is_some());
            let next = match first.map(|run| run.standing.id) {
                Some(id) => {
                    let before = overlap::before(tx, head.flow_id, id, now).await?;
                    Some(id).filter(|_| before.is_none())
                }
                None => None,
            };
            runs.retain(|run| run.overlap.is_none() || Some(run.standing.id) == next);
            open.entry(head.rank).or_default().extend(runs);
        }
        Ok(open)
    }

    /// Returns the lines of due runs that this agent may take.
    async fn open_heads(
        &self,
        tx: &mut Tx,
        session: &Session,
        now: Timestamp,
    ) -> Result<Vec<Head>, DbError> {
        let mut open = Vec::new();
        for head in flow_run::heads(tx).await? {
            let is_due = head.due_at <= now;
            if is_due && self.may_take(tx, session, head.requirement_id).await? {
                open.push(head);
            }
        }
        Ok(open)
    }

    /// Tells whether the agent may take runs with a requirement.
    async fn may_take(&self, tx: &mut Tx, session: &Session, id: i64) -> Result<bool, DbError> {
        if let Some(known) = session.is_known_to_satisfy(id) {
            return Ok(known);
        }
        let requirement = self.db.memory.requirement(tx, id).await?;
        Ok(session.satisfies(id, &requirement))
    }

    /// Chooses among runs of one priority: one from each project in turn, the earlier due first.
    fn choose(&self, lines: Vec<Candidate>, count: usize) -> Vec<Candidate> {
        let mut queues: HashMap<ProjectId, Vec<Candidate>> = HashMap::new();
        for candidate in lines {
            let project = candidate.standing.project_id;
            queues.entry(project).or_default().push(candidate);
        }
        let mut order: Vec<ProjectId> = queues.keys().copied().collect();
        self.turns.sort(&mut order);
        let mut queues: HashMap<_, VecDeque<_>> = queues
            .into_iter()
            .map(|(project, mut line)| {
                line.sort_by_key(|candidate| candidate.standing.due_at);
                (project, line.into())
            })
            .collect();
        deal(&order, &mut queues, count)
    }

    async fn hand_over(
        &self,
        tx: &mut Tx,
        session: &Session,
        chosen: Vec<Candidate>,
        now: Timestamp,
        claimed: &mut Claimed,
    ) -> Result<(), DbError> {
        if chosen.is_empty() {
            return Ok(());
        }
        // Here, so that claims of one transaction do not all serve the same project. One that is undone and
        // run again has given a turn away, and no run.
        self.turns
            .note(chosen.iter().map(|one| one.standing.project_id));
        let claimed_at = self.lease_now(tx).await?;
        let claimant = Claimant {
            agent_id: session.agent_id,
            session_id: session.id,
            claimed_at,
            lease_until: self.lease_end(claimed_at),
        };
        let mut standings = Vec::new();
        let mut places = HashMap::new();
        let mut limited = None;
        for mut one in chosen {
            let version = one.standing.flow_version_id;
            let version = self.db.memory.version(tx, version).await?;
            let version = version.ok_or(DbError::Raced)?;
            let limited_tags = limited_tags(tx, &version, &mut limited).await?;
            if !limited_tags.is_empty() && !session.knows_slots() {
                let why = "its waft is too old to wait for slots of tags".to_owned();
                session.shun(version.id, why, self.clock.monotonic());
                claimed.left_over.insert(one.standing.requirement_id);
                continue;
            }
            if one.standing.claim(&claimant, now, &session.name).is_err() {
                continue;
            }
            let run = &one.standing;
            let key = (version.project_id, version.artifact);
            if let Entry::Vacant(vacant) = places.entry(key) {
                vacant.insert(location::list(tx, key.0, key.1).await?);
            }
            let task_runs = match (run.epoch, run.retry_of, run.open_tasks) {
                (1, None, 0) => Vec::new(),
                _ => task_run::list(tx, run.id, &version, None, TASK_RUNS_MAX).await?,
            };
            claimed.runs.push(ClaimedRun {
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
                timeout_ms: run.timeout_ms,
                stood_still_ms: run.stood_still_ms(),
                lost: run.lost,
                task_runs: task_runs.into_iter().map(|(_, task)| task).collect(),
                is_taken_back: true,
                limited_tags,
            });
            standings.push(one.standing);
        }
        flow_run::apply(tx, standings).await
    }
}
