//! The scheduler: keeps the next ten runs of every active schedule made.
//!
//! Each (flow, clock, nominal instant) makes one run, by a unique index; so the scheduler may run as
//! often and in as many servers as it likes.

use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

use futures::{StreamExt as _, stream};
use jiff::{SignedDuration, Timestamp};

use super::{note, rest};
use crate::model::id::FlowId;
use crate::model::limit::RUN_WALL_MS;
use crate::model::parameter;
use crate::model::schedule::{CatchUp, Overlap, Schedule, Tick};
use crate::model::state::{Event, State};
use crate::server::app::App;
use crate::server::db::flow_run::{self, Move, New};
use crate::server::db::memory::{Memory, Version};
use crate::server::db::schedule::{self, Due};
use crate::server::db::tx::Tx;
use crate::server::db::{DbError, flow, flow_version, left_out};
use crate::server::overlap::{self, Settled};

/// How many instants ahead runs are made for.
const AHEAD: usize = 10;
/// Instants that one schedule can have before it counts as missed: one each second.
const SINCE: usize = MISSED.as_secs() as usize + 1;
/// Schedules looked at in one go.
const BATCH: u32 = 200;
/// Schedules filled at one time where they share a commit.
const AT_ONCE: usize = 64;
/// Schedules filled at one time where each takes a connection: others need some too.
const AT_ONCE_SHARED: usize = 4;
/// The longest rest: another server, or the wall clock, may have changed something.
const REST_MAX: Duration = Duration::from_secs(10);
/// A schedule that is looked at so late was missed: no server was up.
const MISSED: SignedDuration = SignedDuration::from_secs(30);
/// Most missed instants of one schedule that are caught up.
const CAUGHT_UP_MAX: usize = 1_000;
/// How long it waits before it tries a schedule again that could not be filled.
const AGAIN: SignedDuration = SignedDuration::from_secs(1);

/// Schedules until the server goes down.
pub(super) async fn keep(app: App) {
    loop {
        let next = note("scheduler", schedule_all(&app).await).flatten();
        let time = match next {
            Some(at) => {
                let left = at.duration_since(app.clock.now());
                Duration::try_from(left).unwrap_or_default()
            }
            None => REST_MAX,
        };
        // Never without a breath, or a schedule that fails would be tried in a tight loop.
        let time = time.clamp(Duration::from_millis(10), REST_MAX);
        if !rest(&app, time, app.schedules.notified()).await {
            return;
        }
    }
}

/// Fills up every schedule whose next run is due; answers when to look again.
///
/// One that cannot be filled is written down and left as it is: it stands in nobody's way, and none
/// of its instants is forgotten.
///
/// # Errors
///
/// The database's.
pub async fn schedule_all(app: &App) -> Result<Option<Timestamp>, DbError> {
    let mut failed = BTreeSet::new();
    loop {
        let now = app.clock.now();
        let mut reader = app.db.reader().await?;
        let limit = BATCH + failed.len() as u32;
        let mut due = schedule::due(&mut reader, now, limit).await?;
        due.retain(|one| !failed.contains(&one.flow_id));
        if due.is_empty() {
            return match failed.is_empty() {
                true => schedule::next(&mut reader).await,
                false => Ok(now.checked_add(AGAIN).ok()),
            };
        }
        drop(reader);
        // Many at one time: on a file they share a commit.
        let fills = due.into_iter().map(|one| {
            let (memory, id) = (app.db.memory.clone(), one.flow_id);
            let fill = app
                .db
                .write(move |tx| Box::pin(async move { fill(tx, &memory, id, now).await }));
            async move { (id, fill.await) }
        });
        let mut fills = stream::iter(fills).buffer_unordered(at_once(app));
        while let Some((id, made)) = fills.next().await {
            let Some(made) = note("scheduler", made) else {
                failed.insert(id);
                continue;
            };
            for (requirement_id, at) in made.runs {
                app.announce(requirement_id, at, 1).await;
            }
            app.tell_settled(&made.settled);
        }
    }
}

/// Returns how many schedules are filled at one time.
fn at_once(app: &App) -> usize {
    match app.db.is_shared() {
        true => AT_ONCE_SHARED,
        false => AT_ONCE,
    }
}

/// What a look at one schedule came to.
#[derive(Default)]
struct Filled {
    /// The requirement and due time of each run that was made.
    runs: Vec<(i64, Timestamp)>,
    /// What was decided about runs that are due.
    settled: Settled,
}

/// Makes the runs ahead of one schedule, and deals with those that were missed or may not overlap.
async fn fill(tx: &mut Tx, memory: &Memory, id: FlowId, now: Timestamp) -> Result<Filled, DbError> {
    // Read anew: since it was listed, the flow may have been paused or registered again, or another
    // server has filled it.
    flow::lock(tx, id).await?;
    let Some(due) = schedule::due_now(tx, id, now).await? else {
        return Ok(Filled::default());
    };
    let version = memory.version(tx, due.flow_version_id).await?;
    let version = version.ok_or(DbError::Raced)?;
    let Some(rule) = &version.definition.schedule else {
        schedule::deactivate(tx, due.flow_id).await?;
        return Ok(Filled::default());
    };
    let left_out = left_out::list(tx, due.flow_id).await?;
    let is_wanted = |tick: &Tick| !left_out.contains(&(tick.clock.clone(), tick.at));
    let ahead = rule.next_after(now, AHEAD);
    let mut wanted = Vec::new();
    if due.catch_up.is_some() || now.duration_since(due.refill_at) > MISSED {
        let policy = due.catch_up.unwrap_or(rule.catch_up);
        let caught_up = missed(rule, policy, due.refill_at, now, is_wanted);
        leave_out_missed(tx, due, policy, &caught_up, now).await?;
        wanted.extend(caught_up);
    } else {
        // What became due after that one, in case so many were not made ahead.
        let since = rule.next_after(due.refill_at, SINCE);
        wanted.extend(since.into_iter().filter(|tick| tick.at <= now));
    }
    wanted.extend(ahead.iter().cloned());
    wanted.retain(is_wanted);
    let requirement_id = flow_version::requirement_id(tx, version.id).await?;
    let mut made = Vec::new();
    for (nth, tick) in (0..).zip(wanted) {
        let at = tick.at;
        // Ids are in the order of due times, also of runs that are made late and all at once.
        let made_at = now + SignedDuration::from_millis(nth);
        if make(tx, &version, tick, made_at).await? {
            made.push((requirement_id, at));
        }
    }
    if !left_out.is_empty() {
        left_out::forget(tx, due.flow_id, now).await?;
    }
    let next = ahead.first().map(|tick| tick.at);
    schedule::set_refill(tx, due.flow_id, next).await?;
    let settled = match version.overlap() {
        Overlap::Allow => Settled::default(),
        _ => overlap::settle(tx, due.flow_id, now).await?,
    };
    Ok(Filled {
        runs: made,
        settled,
    })
}

/// Makes the run of an instant; answers whether there was none.
pub(crate) async fn make(
    tx: &mut Tx,
    version: &Version,
    tick: Tick,
    now: Timestamp,
) -> Result<bool, DbError> {
    let rule = version.definition.schedule.as_ref();
    let mut clocks = rule.into_iter().flat_map(|rule| &rule.clocks);
    let Some(clock) = clocks.find(|clock| clock.name == tick.clock) else {
        return Ok(false);
    };
    // A registration binds them too, so what does not fit is a definition from before a rule.
    let Ok(parameters) = parameter::bind(&version.definition.parameters, &clock.parameters) else {
        return Ok(false);
    };
    let new = New {
        id: New::id_at(now, tick.at),
        flow_id: version.flow_id,
        flow_version_id: version.id,
        requirement_id: None,
        parameters,
        priority: 0,
        created_at: now,
        scheduled_at: tick.at,
        timeout_ms: RUN_WALL_MS,
        clock: Some((tick.clock, tick.at)),
        overlap: version.overlap(),
        idempotency: None,
        by: "server".to_owned(),
    };
    flow_run::add(tx, &new).await
}

/// Finds the instants that were missed and are to be caught up, the earlier ones first.
///
/// Years of a schedule that ticks each second are not walked through: when there are too many
/// instants the search begins anew an hour ago.
fn missed(
    rule: &Schedule,
    policy: CatchUp,
    from: Timestamp,
    now: Timestamp,
    is_wanted: impl Fn(&Tick) -> bool,
) -> Vec<Tick> {
    const STEP: usize = 1_000;
    const STEPS: usize = 20;
    let most = match policy {
        CatchUp::Last => 1,
        CatchUp::All => CAUGHT_UP_MAX,
        CatchUp::Skip => return Vec::new(),
    };
    let hour_ago = now
        .saturating_sub(SignedDuration::from_hours(1))
        .unwrap_or(from);
    for start in [from, hour_ago.max(from)] {
        let mut newest: VecDeque<Tick> = VecDeque::new();
        let before = start.saturating_sub(SignedDuration::from_micros(1));
        let mut at = before.unwrap_or(start);
        for _ in 0..STEPS {
            let ticks = rule.next_after(at, STEP);
            let passed = ticks.partition_point(|tick| tick.at <= now);
            for tick in ticks[..passed].iter().filter(|tick| is_wanted(tick)) {
                newest.push_back(tick.clone());
                if newest.len() > most {
                    newest.pop_front();
                }
            }
            if passed < STEP {
                return newest.into();
            }
            at = ticks[passed - 1].at;
        }
    }
    Vec::new()
}

/// Cancels the runs for instants that were missed and are not caught up.
async fn leave_out_missed(
    tx: &mut Tx,
    due: Due,
    policy: CatchUp,
    caught_up: &[Tick],
    now: Timestamp,
) -> Result<(), DbError> {
    let message = match policy {
        CatchUp::Last => "missed while no server was up; only the newest is made up for",
        CatchUp::All => "missed while no server was up; only the newest thousand are made up for",
        CatchUp::Skip => "missed while no server was up; none is made up for",
    };
    let is_caught_up = |at: Timestamp| caught_up.iter().any(|tick| tick.at == at);
    // What was due before that only waits for an agent: a server was up to see it.
    let passed = schedule::passed(tx, due.flow_id, due.refill_at, now).await?;
    let others = passed.into_iter().filter(|(_, at)| !is_caught_up(*at));
    let mut runs = flow_run::read(tx, others.map(|(id, _)| id)).await?;
    // Where servers share the database, one may have been claimed or cancelled meanwhile.
    runs.retain(|run| run.state == State::Scheduled && run.epoch == 0);
    for run in &mut runs {
        let cancel = Move {
            event: Event::Cancel,
            message,
            code: None,
            at: now,
            by: "server",
        };
        run.step(&cancel).map_err(|_| DbError::Raced)?;
    }
    flow_run::apply(tx, runs).await
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::model::artifact::Digest;
    use crate::model::id::ProjectId;
    use crate::model::label::Labels;
    use crate::server::db::{Db, project};
    use crate::server::registration;
    use crate::wire::{Location, Project, Registration};

    const NOW: Timestamp = Timestamp::UNIX_EPOCH;

    /// A database with one project.
    struct House {
        db: Db,
        project: Project,
        _folder: tempfile::TempDir,
    }

    impl House {
        async fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let db = Db::open(&folder.path().join("waft.db").into())
                .await
                .unwrap();
            let project = Project {
                id: ProjectId::at(0, 1),
                name: "demo".to_owned(),
                description: String::new(),
                slots: None,
                created_at: NOW,
            };
            let new = project.clone();
            db.write(move |tx| Box::pin(async move { project::add(tx, &new).await }))
                .await
                .unwrap();
            Self {
                db,
                project,
                _folder: folder,
            }
        }

        /// Registers the flow `etl` with a cron line.
        async fn register(&self, line: &str) {
            let artifact = Digest::of(line.as_bytes());
            let definition = json!({
                "name": "etl",
                "tasks": [{
                    "name": "work",
                    "body": {"function": "work"},
                    "skip_on_upstream_skip": true,
                }],
                "schedule": {"clocks": [{
                    "name": "main",
                    "rule": {"cron": {"line": line, "time_zone": "UTC"}},
                }]},
            });
            let asked = Registration {
                definition: serde_json::from_value(definition).unwrap(),
                artifact,
                artifact_size: 1,
                location: Location {
                    root: "file:///flows".to_owned(),
                    key: format!("sha256/{}", artifact.to_hex()),
                },
                labels: Labels::default(),
                is_paused: false,
            };
            let (memory, project) = (self.db.memory.clone(), self.project.clone());
            let registered = self.db.write(move |tx| {
                Box::pin(async move {
                    registration::register(tx, &memory, &project, asked, "", NOW).await
                })
            });
            registered.await.unwrap();
        }

        async fn listed(&self) -> Vec<FlowId> {
            let mut reader = self.db.reader().await.unwrap();
            let due = schedule::due(&mut reader, NOW, BATCH).await.unwrap();
            due.into_iter().map(|one| one.flow_id).collect()
        }

        /// Fills what was listed, and answers for when runs were made.
        async fn fill(&self, flow: FlowId) -> Vec<Timestamp> {
            let memory = self.db.memory.clone();
            let made = self
                .db
                .write(move |tx| Box::pin(async move { fill(tx, &memory, flow, NOW).await }));
            let made = made.await.unwrap().runs;
            let mut made: Vec<_> = made.into_iter().map(|(_, at)| at).collect();
            made.sort();
            made
        }
    }

    #[tokio::test]
    async fn a_flow_that_is_paused_after_it_was_listed_gets_no_runs() {
        let house = House::new().await;
        house.register("0 * * * *").await;
        let flow = house.listed().await[0];
        let pause = house.db.write(move |tx| {
            Box::pin(async move {
                flow::pause(tx, flow, NOW).await?;
                schedule::deactivate(tx, flow).await
            })
        });
        pause.await.unwrap();
        assert!(house.fill(flow).await.is_empty());
    }

    #[tokio::test]
    async fn a_flow_that_is_registered_again_after_it_was_listed_gets_the_runs_of_its_new_version()
    {
        let house = House::new().await;
        house.register("0 * * * *").await;
        let flow = house.listed().await[0];
        house.register("30 * * * *").await;
        let made = house.fill(flow).await;
        assert_eq!(made.len(), AHEAD);
        assert_eq!(made[0], NOW + SignedDuration::from_mins(30));
        // Listed once more by another look at the same moment, it is not filled twice.
        assert!(house.fill(flow).await.is_empty());
    }
}
