//! The table `tag_slot`: task runs that wait for a slot of each of their tags, or have them.
//!
//! Nothing is counted up or down. A slot is taken by a row that says it was given, while the lease of the run
//! under which it asked is good and the attempt has not ended, which `flow_run` and `task_run` say: whatever
//! ends one of these frees it. Slots are given here alone ([`give`]), all that a task run needs or none, to
//! whoever is first in line; who is first and cannot have all keeps a place in each of its tags, so that those
//! behind do not overtake for ever.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use jiff::{SignedDuration, Timestamp};

use super::memory::Memory;
use super::sql::{Many, Sql};
use super::tag::{self, Numbers};
use super::task_run::Key;
use super::tx::{Json, Row as Cells, Tx, args};
use super::{DbError, flow_run};
use crate::model::id::{AgentId, FlowRunId, FlowVersionId, ProjectId};
use crate::model::state::State;
use crate::wire::LeaseKey;

/// How long slots are kept for a run that was called for them. It comes within that, or its agents are busy or
/// gone.
const CALL_MAX: SignedDuration = SignedDuration::from_secs(10);
/// For how long no slots are kept for anybody that is called, once one was called in vain: as long as those come
/// late or not at all, others go first.
const HASTE: SignedDuration = SignedDuration::from_secs(60);
/// Most runs of a line that are called at one time for which no slots are kept.
const CALLS_MAX: u32 = 16;
/// Rounds of one giving: who needs nothing any more makes room for those behind.
const ROUNDS_MAX: usize = 4;
/// Most rows of a line that are looked at for one giving.
const LOOK_MAX: u32 = 1_000;

/// A task run that asks for slots, or begins.
#[derive(Clone, Debug)]
pub struct Asking {
    /// The project.
    pub project: ProjectId,
    /// All tags of the task, whether they have a number of slots or not.
    pub tags: BTreeSet<String>,
    /// The claim.
    pub epoch: u32,
    /// The attempts that were started before.
    pub attempts: u32,
}

static ASK: Many = Many::new(
    "WITH n (run, place, element, project, tags, epoch, attempts, at) AS (VALUES ",
    "($::bytea, $::bigint, $::bigint, $::bytea, $::text, $::bigint, $::bigint, $::bigint)",
    ") INSERT INTO tag_slot (flow_run_id, task, map_index, project_id, tags, rank, epoch, attempts, \
     asked_at) SELECT n.run, n.place, n.element, n.project, n.tags, r.rank, n.epoch, n.attempts, n.at \
     FROM n JOIN flow_run r ON r.id = n.run WHERE true \
     ON CONFLICT (flow_run_id, task, map_index) DO UPDATE SET asked_at = CASE \
     WHEN tag_slot.given_at IS NOT NULL AND tag_slot.epoch = excluded.epoch THEN excluded.asked_at \
     ELSE tag_slot.asked_at END, tags = excluded.tags, epoch = excluded.epoch, \
     attempts = excluded.attempts, called_at = NULL, given_at = NULL",
);

static BEGIN: Many = Many::new(
    "WITH n (run, place, element, project, tags, epoch, attempts, at) AS (VALUES ",
    "($::bytea, $::bigint, $::bigint, $::bytea, $::text, $::bigint, $::bigint, $::bigint)",
    ") INSERT INTO tag_slot (flow_run_id, task, map_index, project_id, tags, rank, epoch, attempts, \
     asked_at, given_at) SELECT n.run, n.place, n.element, n.project, n.tags, r.rank, n.epoch, \
     n.attempts, n.at, n.at FROM n JOIN flow_run r ON r.id = n.run WHERE true \
     ON CONFLICT (flow_run_id, task, map_index) DO UPDATE SET epoch = excluded.epoch, \
     attempts = excluded.attempts, called_at = NULL, given_at = excluded.given_at \
     WHERE tag_slot.given_at IS NULL OR tag_slot.epoch <> excluded.epoch",
);

/// Puts task runs in line, each with the report of its own that it is Queued. Who was in line before, and whose
/// run went to another agent, keeps its place.
pub async fn ask(tx: &mut Tx, asking: BTreeMap<Key, Asking>, at: Timestamp) -> Result<(), DbError> {
    tx.run_many(&ASK, rows(asking, at)).await.map(drop)
}

/// Notes task runs that have begun. One that was given no slot has begun before its agent knew that it needs
/// some: it counts like the others.
pub async fn begin(
    tx: &mut Tx,
    begun: BTreeMap<Key, Asking>,
    at: Timestamp,
) -> Result<(), DbError> {
    tx.run_many(&BEGIN, rows(begun, at)).await.map(drop)
}

fn rows(asking: BTreeMap<Key, Asking>, at: Timestamp) -> Vec<Vec<super::tx::Arg>> {
    let row = |(key, one): (Key, Asking)| {
        args![
            key.0,
            key.1,
            element(&key),
            one.project,
            Json(&one.tags),
            one.epoch,
            one.attempts,
            at,
        ]
    };
    asking.into_iter().map(row).collect()
}

fn element(key: &Key) -> i64 {
    key.2.map_or(-1, i64::from)
}

/// One row, with what the run and the task run say about it.
#[derive(Clone, Debug)]
struct Row {
    key: Key,
    tags: BTreeSet<String>,
    rank: i32,
    asked_at: Timestamp,
    epoch: u32,
    attempts: u32,
    /// The epoch of the run's last claim.
    run_epoch: u32,
    is_leased: bool,
    is_run_over: bool,
    agent_id: Option<AgentId>,
    flow_version_id: FlowVersionId,
    /// Where the task run stands; none before anything was reported of it.
    state: Option<State>,
}

macro_rules! select {
    ($rest:literal) => {
        select!("tag_slot s JOIN flow_run r ON r.id = s.flow_run_id", $rest)
    };
    ($from:literal, $rest:literal) => {
        concat!(
            "SELECT s.flow_run_id, s.task, s.map_index, s.tags, s.rank, s.asked_at, s.epoch, ",
            "s.attempts, r.epoch, r.lease_until IS NOT NULL, r.ended_at IS NOT NULL, r.agent_id, ",
            "r.flow_version_id, t.state, s.called_at FROM ",
            $from,
            " LEFT JOIN task_run t ON t.flow_run_id = s.flow_run_id AND t.task = s.task ",
            "AND t.map_index = s.map_index ",
            $rest
        )
    };
}

impl Row {
    fn read(row: &Cells) -> Result<Self, DbError> {
        let (map_index, Json(tags)): (i64, _) = (row.get(2)?, row.get(3)?);
        Ok(Self {
            key: (row.get(0)?, row.get(1)?, u32::try_from(map_index).ok()),
            tags,
            rank: row.get(4)?,
            asked_at: row.get(5)?,
            epoch: row.get(6)?,
            attempts: row.get(7)?,
            run_epoch: row.get(8)?,
            is_leased: row.get(9)?,
            is_run_over: row.get(10)?,
            agent_id: row.get(11)?,
            flow_version_id: row.get(12)?,
            state: row.get(13)?,
        })
    }

    /// Tells whether the claim is good under which it asked.
    const fn is_live(&self) -> bool {
        self.is_leased && self.epoch == self.run_epoch
    }

    /// Tells whether it needs no slot any more: nothing asks for this attempt again.
    fn is_over(&self) -> bool {
        self.is_run_over || !matches!(self.state, None | Some(State::Queued | State::Running))
    }

    /// Tells whether a given slot is taken.
    fn is_taken(&self) -> bool {
        self.is_live() && !self.is_over()
    }
}

/// How many slots there are of each tag of a project, and how many are taken or kept.
#[derive(Default)]
struct Desk {
    numbers: Numbers,
    taken: HashMap<String, u32>,
}

impl Desk {
    fn take(&mut self, tags: &BTreeSet<String>) {
        for tag in tags {
            *self.taken.entry(tag.clone()).or_default() += 1;
        }
    }

    /// Returns how many task runs with these tags have room.
    fn room(&self, tags: &BTreeSet<String>) -> u32 {
        let limited = tags.iter().filter_map(|tag| {
            let taken = self.taken.get(tag).copied().unwrap_or_default();
            Some(self.numbers.get(tag)?.saturating_sub(taken))
        });
        limited.min().unwrap_or(LOOK_MAX)
    }
}

/// What is to be done with a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Act {
    /// It is given its slots.
    Give,
    /// Its run is called, so that an agent takes it and it asks anew.
    Call,
    /// It goes back to its place: its claim is over, and it has not had its attempt.
    Back,
    /// It needs nothing any more.
    Drop,
}

/// What is to be done about the slots of a project.
#[derive(Default)]
pub struct Plan {
    acts: BTreeMap<Key, (Act, Row)>,
    /// Whether others may be first in line when it is done.
    has_more: bool,
}

impl Plan {
    /// Tells whether there is nothing to do.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.acts.is_empty()
    }

    fn add(&mut self, act: Act, row: Row) {
        self.has_more |= matches!(act, Act::Back | Act::Drop);
        self.acts.insert(row.key, (act, row));
    }
}

/// Works out who is given slots of a project next.
///
/// # Errors
///
/// The database's.
pub async fn plan(tx: &mut Tx, project: ProjectId, now: Timestamp) -> Result<Plan, DbError> {
    let mut plan = Plan::default();
    let mut desk = Desk {
        numbers: tag::numbers(tx, project).await?,
        ..Desk::default()
    };
    for row in given(tx, project).await? {
        // Whose attempt was lost has had it, and asks anew.
        let has_begun = row.state == Some(State::Running);
        match (row.is_taken(), row.is_over() || has_begun) {
            (true, _) => desk.take(&row.tags),
            (false, true) => plan.add(Act::Drop, row),
            (false, false) => plan.add(Act::Back, row),
        }
    }
    if plan.has_more {
        // First who goes back is in line again.
        return Ok(plan);
    }
    let before = |time| now.saturating_sub(time).unwrap_or(Timestamp::MIN);
    let sql = select!("WHERE s.project_id = $1 AND s.called_at > $2 AND s.given_at IS NULL");
    let mut called = read(tx, sql, args![project, before(HASTE)]).await?;
    // Nobody comes for those any more.
    for (row, _) in called.extract_if(.., |(row, _)| row.is_over()) {
        plan.add(Act::Drop, row);
    }
    let lately = before(CALL_MAX);
    let is_late = |called_at: &Option<Timestamp>| called_at.is_some_and(|at| at <= lately);
    // Somebody was called in vain.
    let is_hasty = called.iter().any(|(_, called_at)| is_late(called_at));
    let calls = called.iter().any(|(_, called_at)| !is_late(called_at));
    if !is_hasty {
        called.iter().for_each(|(row, _)| desk.take(&row.tags));
    }
    let mut first = Vec::new();
    for tags in lines(tx, project).await? {
        // One more than there is room for: it keeps a place.
        let most = (desk.room(&tags) + 1).min(LOOK_MAX);
        let look = |most: u32| args![project, Json(&tags), most];
        if !is_hasty {
            first.extend(read(tx, LINE, look(most)).await?);
            continue;
        }
        first.extend(read(tx, LIVE, look(most)).await?);
        if !calls {
            let all = read(tx, LINE, look(CALLS_MAX)).await?;
            first.extend(all.into_iter().filter(|(row, _)| !row.is_live()));
        }
    }
    let mut first: Vec<Row> = first.into_iter().map(|(row, _)| row).collect();
    first.sort_by_key(|row| (row.rank, row.asked_at, row.key));
    let mut stopped = BTreeSet::new();
    for row in first {
        if row.is_over() {
            plan.add(Act::Drop, row);
            continue;
        }
        if stopped.contains(&row.tags) {
            continue;
        }
        let has_room = desk.room(&row.tags) > 0;
        if is_hasty && !row.is_live() {
            if has_room {
                plan.add(Act::Call, row);
            }
            continue;
        }
        desk.take(&row.tags);
        match (has_room, row.is_live()) {
            (true, true) => plan.add(Act::Give, row),
            (true, false) => plan.add(Act::Call, row),
            (false, _) => drop(stopped.insert(row.tags)),
        }
    }
    Ok(plan)
}

/// What came of a giving.
#[derive(Default)]
pub struct Given {
    /// Agents whose task runs were given slots.
    pub agents: BTreeSet<AgentId>,
    /// What the runs require that were called.
    pub called: Vec<i64>,
    /// Whether it is worth another look.
    pub has_more: bool,
}

/// Gives the slots of a project that are free to those who are first in line, and calls their runs where nobody
/// has them.
///
/// # Errors
///
/// The database's.
pub async fn give(tx: &mut Tx, project: ProjectId, now: Timestamp) -> Result<Given, DbError> {
    tag::lock(tx, project).await?;
    let mut given = Given::default();
    for _ in 0..ROUNDS_MAX {
        let plan = plan(tx, project, now).await?;
        given.has_more = plan.has_more;
        carry_out(tx, plan, now, &mut given).await?;
        if !given.has_more {
            break;
        }
    }
    Ok(given)
}

async fn carry_out(
    tx: &mut Tx,
    plan: Plan,
    now: Timestamp,
    given: &mut Given,
) -> Result<(), DbError> {
    let called = plan.acts.iter().filter(|(_, (act, _))| *act == Act::Call);
    let called: BTreeSet<FlowRunId> = called.map(|(key, _)| key.0).collect();
    let mut runs = flow_run::read(tx, called).await?;
    runs.retain(|run| run.state == State::Scheduled && run.due_at > now);
    for run in &mut runs {
        run.due_at = now;
        given.called.push(run.requirement_id);
    }
    flow_run::apply(tx, runs).await?;
    for (key, (act, row)) in plan.acts {
        if act == Act::Give {
            given.agents.extend(row.agent_id);
        }
        let mut args = args![key.0, key.1, element(&key), row.epoch, row.attempts];
        let sql = match act {
            Act::Give => {
                "UPDATE tag_slot SET given_at = $6 WHERE flow_run_id = $1 AND task = $2 \
                 AND map_index = $3 AND epoch = $4 AND attempts = $5 AND given_at IS NULL"
            }
            Act::Call => {
                "UPDATE tag_slot SET called_at = $6 WHERE flow_run_id = $1 AND task = $2 \
                 AND map_index = $3 AND epoch = $4 AND attempts = $5 AND given_at IS NULL"
            }
            Act::Back => {
                "UPDATE tag_slot SET given_at = NULL WHERE flow_run_id = $1 AND task = $2 \
                 AND map_index = $3 AND epoch = $4 AND attempts = $5"
            }
            Act::Drop => {
                "DELETE FROM tag_slot WHERE flow_run_id = $1 AND task = $2 AND map_index = $3 \
                 AND epoch = $4 AND attempts = $5"
            }
        };
        if matches!(act, Act::Give | Act::Call) {
            args.push(now.into());
        }
        tx.run(sql, args).await?;
    }
    Ok(())
}

/// Puts those back in line that were called by a clock that was set back since: nobody would call them again
/// before that instant has come once more.
pub async fn bring_back(tx: &mut Tx, now: Timestamp) -> Result<(), DbError> {
    let sql = "UPDATE tag_slot SET called_at = NULL WHERE called_at > $1 AND given_at IS NULL";
    tx.run(sql, args![now]).await.map(drop)
}

/// Forgets those that were called and need nothing any more, since what they waited for is over.
pub async fn forget_called(tx: &mut Tx) -> Result<(), DbError> {
    let sql = "DELETE FROM tag_slot WHERE called_at IS NOT NULL AND given_at IS NULL AND (EXISTS \
               (SELECT 1 FROM flow_run r WHERE r.id = tag_slot.flow_run_id AND r.ended_at IS NOT NULL) \
               OR EXISTS (SELECT 1 FROM task_run t WHERE t.flow_run_id = tag_slot.flow_run_id \
               AND t.task = tag_slot.task AND t.map_index = tag_slot.map_index \
               AND t.state NOT IN ('Queued', 'Running')))";
    tx.run(sql, args![]).await.map(drop)
}

/// Who is in line with some tags, the first to be served first.
const LINE: &str = select!(
    "WHERE s.project_id = $1 AND s.tags = $2 AND s.given_at IS NULL AND s.called_at IS NULL \
     ORDER BY s.rank, s.asked_at LIMIT $3"
);

macro_rules! live {
    ($from:literal) => {
        select!(
            $from,
            "WHERE s.project_id = $1 AND s.tags = $2 AND s.given_at IS NULL AND s.called_at IS NULL \
             AND r.lease_until IS NOT NULL AND r.epoch = s.epoch ORDER BY s.rank, s.asked_at LIMIT $3"
        )
    };
}

/// Those of them whose claim is good: looked for among the runs that agents have, which are few beside those
/// that wait.
pub(super) const LIVE: Sql = Sql {
    sqlite: live!(
        "flow_run r INDEXED BY flow_run_leased CROSS JOIN tag_slot s ON s.flow_run_id = r.id"
    ),
    postgres: live!("tag_slot s JOIN flow_run r ON r.id = s.flow_run_id"),
};

/// Reads rows, each with when it was called.
async fn read(
    tx: &mut Tx,
    sql: impl Into<Sql>,
    args: Vec<super::tx::Arg>,
) -> Result<Vec<(Row, Option<Timestamp>)>, DbError> {
    let rows = tx.rows(sql, args).await?;
    let row = |row: &Cells| Ok((Row::read(row)?, row.get(14)?));
    rows.iter().map(row).collect()
}

async fn given(tx: &mut Tx, project: ProjectId) -> Result<Vec<Row>, DbError> {
    let sql = select!("WHERE s.project_id = $1 AND s.given_at IS NOT NULL");
    let rows = read(tx, sql, args![project]).await?;
    Ok(rows.into_iter().map(|(row, _)| row).collect())
}

/// Lists the sets of tags that somebody in line needs, by jumping through the index.
async fn lines(tx: &mut Tx, project: ProjectId) -> Result<Vec<BTreeSet<String>>, DbError> {
    let sql = "WITH RECURSIVE line (tags) AS (SELECT min(tags) FROM tag_slot WHERE project_id = $1 \
               AND given_at IS NULL AND called_at IS NULL UNION ALL \
               SELECT (SELECT min(s.tags) FROM tag_slot s WHERE s.project_id = $1 \
               AND s.given_at IS NULL AND s.called_at IS NULL AND s.tags > line.tags) \
               FROM line WHERE line.tags IS NOT NULL) SELECT tags FROM line WHERE tags IS NOT NULL";
    let rows = tx.rows(sql, args![project]).await?;
    let tags = rows.iter().map(|row| row.get(0).map(|Json(tags)| tags));
    tags.collect()
}

/// Lists the projects in which somebody is in line, or should be since the claim is over under which it was given
/// slots.
pub async fn projects(tx: &mut Tx) -> Result<Vec<ProjectId>, DbError> {
    let sql = "SELECT DISTINCT project_id FROM tag WHERE EXISTS (SELECT 1 FROM tag_slot s \
               WHERE s.project_id = tag.project_id AND s.given_at IS NULL AND s.called_at IS NULL) \
               OR EXISTS (SELECT 1 FROM tag_slot s JOIN flow_run r ON r.id = s.flow_run_id \
               WHERE s.project_id = tag.project_id AND s.given_at IS NOT NULL \
               AND (r.lease_until IS NULL OR r.epoch <> s.epoch))";
    let rows = tx.rows(sql, args![]).await?;
    rows.iter().map(|row| row.get(0)).collect()
}

/// A task run that was given slots and has not begun.
pub struct Served {
    /// The run, under its claim.
    pub lease: LeaseKey,
    /// The version of the run.
    pub flow_version_id: FlowVersionId,
    /// The task's place and the element.
    pub task: (u32, Option<u32>),
    /// The attempts that were started before.
    pub attempts: u32,
}

/// Lists the task runs of an agent that were given slots and have not begun.
pub async fn served(tx: &mut Tx, agent: AgentId) -> Result<Vec<Served>, DbError> {
    let sql = select!(
        "WHERE r.agent_id = $1 AND r.lease_until IS NOT NULL AND s.epoch = r.epoch \
         AND s.given_at IS NOT NULL AND t.state = 'Queued' LIMIT 1000"
    );
    let rows = read(tx, sql, args![agent]).await?;
    let served = rows.into_iter().map(|(row, _)| Served {
        lease: LeaseKey {
            flow_run_id: row.key.0,
            epoch: row.epoch,
        },
        flow_version_id: row.flow_version_id,
        task: (row.key.1, row.key.2),
        attempts: row.attempts,
    });
    Ok(served.collect())
}

/// A task run that waits, or that has a slot.
pub struct Holder {
    /// The task run.
    pub key: Key,
    /// The version of its run.
    pub flow_version_id: FlowVersionId,
    /// Its tags.
    pub tags: BTreeSet<String>,
}

impl From<Row> for Holder {
    fn from(row: Row) -> Self {
        Self {
            key: row.key,
            flow_version_id: row.flow_version_id,
            tags: row.tags,
        }
    }
}

/// Returns the first task run of a run that waits for slots.
pub async fn waiting_of(tx: &mut Tx, run: FlowRunId) -> Result<Option<Holder>, DbError> {
    let sql = select!(
        "WHERE s.flow_run_id = $1 AND s.given_at IS NULL AND r.ended_at IS NULL \
         AND t.state = 'Queued' ORDER BY s.task, s.map_index LIMIT 1"
    );
    let first = read(tx, sql, args![run]).await?.into_iter().next();
    Ok(first.map(|(row, _)| Holder::from(row)))
}

/// Lists who has slots of tags in a project.
pub async fn holders(tx: &mut Tx, project: ProjectId) -> Result<Vec<Holder>, DbError> {
    let mut rows = given(tx, project).await?;
    rows.retain(Row::is_taken);
    rows.sort_by_key(|row| (row.asked_at, row.key));
    Ok(rows.into_iter().map(Holder::from).collect())
}

/// Counts who waits for slots in a project, by tag.
pub async fn waiting(tx: &mut Tx, project: ProjectId) -> Result<HashMap<String, u32>, DbError> {
    let sql = "SELECT s.tags, count(*) FROM tag_slot s JOIN flow_run r ON r.id = s.flow_run_id \
               JOIN task_run t ON t.flow_run_id = s.flow_run_id AND t.task = s.task \
               AND t.map_index = s.map_index WHERE s.project_id = $1 AND s.given_at IS NULL \
               AND r.ended_at IS NULL AND t.state = 'Queued' GROUP BY s.tags";
    let mut waiting = HashMap::new();
    for row in tx.rows(sql, args![project]).await? {
        let (Json(tags), count): (Json<BTreeSet<String>>, u32) = (row.get(0)?, row.get(1)?);
        for tag in tags {
            *waiting.entry(tag).or_default() += count;
        }
    }
    Ok(waiting)
}

pub(super) const AT_WORK: Sql = Sql {
    sqlite: "SELECT r.id, t.task, t.map_index, r.flow_version_id, r.epoch, t.attempts \
             FROM flow_run r INDEXED BY flow_run_leased CROSS JOIN task_run t \
             ON t.flow_run_id = r.id \
             WHERE r.project_id = $1 AND r.lease_until IS NOT NULL AND t.state = 'Running'",
    postgres: "SELECT r.id, t.task, t.map_index, r.flow_version_id, r.epoch, t.attempts \
               FROM flow_run r JOIN task_run t ON t.flow_run_id = r.id \
               WHERE r.project_id = $1 AND r.lease_until IS NOT NULL AND t.state = 'Running'",
};

/// Counts in what runs already of a tag that has a number of slots from now on.
pub async fn count_in(
    tx: &mut Tx,
    memory: &Memory,
    project: ProjectId,
    tag: &str,
    at: Timestamp,
) -> Result<(), DbError> {
    let mut begun = BTreeMap::new();
    for row in tx.rows(AT_WORK, args![project]).await? {
        let (place, map_index): (u32, i64) = (row.get(1)?, row.get(2)?);
        let version = memory.version(tx, row.get(3)?).await?;
        let version = version.ok_or(DbError::Raced)?;
        let task = version.definition.tasks.get(place as usize);
        let Some(task) = task.filter(|task| task.tags.contains(tag)) else {
            continue;
        };
        let attempts: u32 = row.get(5)?;
        let asking = Asking {
            project,
            tags: task.tags.clone(),
            epoch: row.get(4)?,
            attempts: attempts.saturating_sub(1),
        };
        begun.insert((row.get(0)?, place, u32::try_from(map_index).ok()), asking);
    }
    begin(tx, begun, at).await
}
