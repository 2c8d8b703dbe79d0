//! The fence of a claim: what keeps other claims from what it is about to take, where many claim at the
//! same time. Where there is one writer nobody else does, and the fence is nothing.
//!
//! A run that anybody may take is taken from its line past those that others have in hand. One that
//! depends on slots, or on the order of its flow, is taken only while the flow and the project are
//! locked, and what it depends on is read again after that.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};

use jiff::Timestamp;

use super::db::DbError;
use super::db::flow_run::{self, Candidate, Head};
use super::db::slot::{self, Room};
use super::db::tx::Tx;
use super::overlap;
use crate::model::id::{FlowId, FlowRunId, FlowVersionId, ProjectId};
use crate::model::state::State;

/// The fence of one claim.
pub(super) struct Fence {
    shunned: Vec<FlowVersionId>,
    flows: BTreeSet<FlowId>,
    projects: BTreeSet<ProjectId>,
    /// Lines that had fewer runs for this claim than there seemed to be.
    short: HashSet<Line>,
    has_passed: bool,
}

/// Runs that nobody else takes or changes until the transaction ends.
pub(super) struct Taken {
    /// The runs, in the order in which they were chosen.
    pub(super) runs: Vec<Candidate>,
    /// Whether others may be chosen in the place of some that were not to be had.
    pub(super) has_more: bool,
}

impl Fence {
    /// Makes the fence of a claim that takes no run of some versions.
    pub(super) fn new(shunned: Vec<FlowVersionId>) -> Self {
        Self {
            shunned,
            flows: BTreeSet::new(),
            projects: BTreeSet::new(),
            short: HashSet::new(),
            has_passed: false,
        }
    }

    /// Returns the versions of which no run is taken.
    pub(super) fn shunned(&self) -> &[FlowVersionId] {
        &self.shunned
    }

    /// Tells whether a run was passed over that somebody else had in hand: it may be left as it was, and
    /// then nobody is woken for it.
    pub(super) const fn has_passed(&self) -> bool {
        self.has_passed
    }

    /// Tells whether others take the rest of a line.
    pub(super) fn is_short(&self, head: &Head) -> bool {
        self.short.contains(&(head.requirement_id, head.rank))
    }

    /// Locks what the chosen runs depend on, and looks again at what of the slots is free.
    pub(super) async fn draw(
        &mut self,
        tx: &mut Tx,
        chosen: &[Candidate],
        room: &mut Room,
    ) -> Result<(), DbError> {
        if !tx.is_shared() {
            return Ok(());
        }
        let (mut projects, mut flows) = (BTreeSet::new(), BTreeSet::new());
        for one in chosen {
            let (project, flow) = depends_on(one, room);
            projects.extend(project.filter(|id| !self.projects.contains(id)));
            flows.extend(flow.filter(|id| !self.flows.contains(id)));
        }
        if projects.is_empty() && flows.is_empty() {
            return Ok(());
        }
        slot::lock(tx, &projects, &flows).await?;
        self.projects.append(&mut projects);
        self.flows.append(&mut flows);
        *room = slot::room(tx).await?;
        Ok(())
    }

    fn is_around(&self, one: &Candidate, room: &Room) -> bool {
        let (project, flow) = depends_on(one, room);
        project.is_none_or(|id| self.projects.contains(&id))
            && flow.is_none_or(|id| self.flows.contains(&id))
    }

    /// Takes the chosen runs, or others of the same lines in their places; at most `count` of those that
    /// depend on nothing.
    pub(super) async fn take(
        &mut self,
        tx: &mut Tx,
        chosen: Vec<Candidate>,
        room: &Room,
        count: usize,
        now: Timestamp,
    ) -> Result<Taken, DbError> {
        let mut taken = Taken {
            runs: Vec::new(),
            has_more: false,
        };
        if !tx.is_shared() {
            taken.runs = chosen;
            return Ok(taken);
        }
        let mut places = Vec::new();
        let mut free = 0;
        for one in &chosen {
            let place = Source::of(one, room);
            free += usize::from(matches!(place, Source::Line(_)));
            if free <= count || matches!(place, Source::Own(_)) {
                places.push(place);
            }
        }
        let mut lines = self.take_lines(tx, &places, now).await?;
        let mut own = take_own(tx, &places).await?;
        for place in places {
            let (one, is_safe) = match place {
                Source::Line(line) => {
                    let one = lines.get_mut(&line).and_then(VecDeque::pop_front);
                    let is_safe = one.as_ref().is_some_and(|one| is_free(one, room));
                    (one, is_safe)
                }
                Source::Own(id) => {
                    let one = own.remove(&id);
                    let is_safe = one.as_ref().is_some_and(|one| self.is_around(one, room));
                    (one, is_safe)
                }
            };
            self.has_passed |= one.is_none();
            match one.filter(|_| is_safe) {
                None => taken.has_more = true,
                Some(one) if is_behind(tx, &one, now).await? => {}
                Some(one) => taken.runs.push(one),
            }
        }
        Ok(taken)
    }

    /// Takes as many runs of each line as there are places for; notes the lines that have no more.
    async fn take_lines(
        &mut self,
        tx: &mut Tx,
        places: &[Source],
        now: Timestamp,
    ) -> Result<HashMap<Line, VecDeque<Candidate>>, DbError> {
        let mut counts: BTreeMap<Line, u32> = BTreeMap::new();
        for place in places {
            if let Source::Line(line) = place {
                *counts.entry(*line).or_default() += 1;
            }
        }
        let mut lines = HashMap::new();
        for (line, count) in counts {
            let runs = flow_run::take(tx, line, &self.shunned, now, count).await?;
            if runs.len() < count as usize {
                self.short.insert(line);
            }
            lines.insert(line, runs.into());
        }
        Ok(lines)
    }
}

/// The number of a requirement, and a priority with its sign turned.
type Line = (i64, i32);

/// Where a run is taken from.
enum Source {
    /// A line, whichever of its runs is to be had.
    Line(Line),
    /// Nowhere else: it is this one.
    Own(FlowRunId),
}

impl Source {
    fn of(one: &Candidate, room: &Room) -> Self {
        match one.standing.state == State::Scheduled && is_free(one, room) {
            true => Self::Line((one.standing.requirement_id, one.rank)),
            false => Self::Own(one.standing.id),
        }
    }
}

/// Returns the project and the flow that have a say in when a run is claimed.
fn depends_on(one: &Candidate, room: &Room) -> (Option<ProjectId>, Option<FlowId>) {
    let (project, flow) = (one.standing.project_id, one.flow_id);
    let by_flow = one.overlap.is_some() || room.limits_flow(flow);
    (
        Some(project).filter(|id| room.limits_project(*id)),
        Some(flow).filter(|_| by_flow),
    )
}

fn is_free(one: &Candidate, room: &Room) -> bool {
    depends_on(one, room) == (None, None)
}

/// Tells whether a queued run of a schedule has another before it; a due one was decided about.
async fn is_behind(tx: &mut Tx, one: &Candidate, now: Timestamp) -> Result<bool, DbError> {
    if one.overlap.is_none() || one.standing.state != State::Queued {
        return Ok(false);
    }
    let before = overlap::before(tx, one.flow_id, one.standing.id, now).await?;
    Ok(before.is_some())
}

async fn take_own(
    tx: &mut Tx,
    places: &[Source],
) -> Result<HashMap<FlowRunId, Candidate>, DbError> {
    let ids = places.iter().filter_map(|place| match place {
        Source::Own(id) => Some(*id),
        Source::Line(_) => None,
    });
    let runs = flow_run::take_these(tx, ids).await?;
    Ok(runs.into_iter().map(|one| (one.standing.id, one)).collect())
}
