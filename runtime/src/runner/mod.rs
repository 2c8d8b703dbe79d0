//! The runner: carries out one flow run.
//!
//! What comes next is decided by [`Graph`](crate::model::graph::Graph); here attempts are handed to
//! the sandbox, outputs are made durable, delays are waited out, and what happens is told to
//! whoever started the run: the agent passes it on to the server, `waft run` to the terminal. The
//! runner knows no server.

mod attempt;
mod command;
mod course;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::error::Error;
use std::fmt::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::{Semaphore, mpsc, oneshot, watch};

use crate::clock::Clock;
use crate::model::flow::{Definition, Described};
use crate::model::id::FlowRunId;
use crate::model::limit::Limits;
use crate::model::parameter::Bound;
use crate::model::run::{Decision, FlowRunMoved, Happening, TaskRun, TaskRunKey};
use crate::model::value::Value;
use crate::sandbox::{Powers, Prepared, Sandbox};
use crate::storage::{Results, StorageError, TaskCache};
use attempt::Away;
use course::Course;

/// The code under which a run is handed back whose results cannot be kept or read, since their place is
/// away. What is finished stays, and nothing counts against the run.
pub const LOST_RESULTS: &str = "lost.results";

/// Carries out flow runs, any number at one time. Cheap to clone; clones share their attempts' turns.
#[derive(Clone)]
pub struct Runner(Arc<Inner>);

struct Inner {
    settings: Settings,
    /// One permit for each attempt at one time, over all runs.
    turns: Arc<Semaphore>,
    /// Panics that were caught; each is a bug.
    panics: AtomicU64,
}

/// What a runner works with; the same for all its runs.
#[derive(Clone)]
pub struct Settings {
    /// Where attempts are made.
    pub sandbox: Sandbox,
    /// Where outputs are kept.
    pub results: Results,
    /// Where outputs are found that serve again.
    pub task_cache: TaskCache,
    /// What this machine allows, with the values behind it.
    pub powers: Arc<Powers>,
    /// The most that an attempt gets of each limit.
    pub ceiling: Limits,
    /// The time.
    pub clock: Clock,
    /// Attempts at one time, over all runs; at least 1.
    pub parallel: usize,
}

/// One flow run to be carried out.
pub struct Job {
    /// Its id.
    pub flow_run_id: FlowRunId,
    /// The project's name; empty where there is no server.
    pub project: String,
    /// The component.
    pub prepared: Arc<Prepared>,
    /// What the component says about itself.
    pub described: Arc<Described>,
    /// What was registered; no task is granted more than both ask for.
    pub registered: Arc<Definition>,
    /// The parameters; what is absent takes its default.
    pub parameters: Bound,
    /// When the run was due.
    pub scheduled_at: Timestamp,
    /// When an earlier claim began it; the timeout counts from there.
    pub started_at: Option<Timestamp>,
    /// Milliseconds the run may take; 24 hours unless given.
    pub timeout_ms: Option<u64>,
    /// Milliseconds since its start that do not count, since it waited for a person.
    pub stood_still_ms: u64,
    /// Claims of this run that were lost.
    pub lost: u32,
    /// What is known of its task runs from earlier claims.
    pub earlier: Vec<TaskRun>,
    /// Whether it is taken back while all that is left of it waits, for long, for a slot or for a person, and
    /// given out again then.
    pub is_taken_back: bool,
    /// What people decide about its task runs while it goes on.
    pub decisions: Decisions,
    /// Which of its tags have a number of slots, and who is given some.
    pub slots: TagSlots,
}

/// The tags that have a number of slots, by the name of their project.
pub type Limited = BTreeMap<String, BTreeSet<String>>;

/// Where a run hears of slots of tags; by default no tag has a number of them.
pub struct TagSlots {
    /// Which tags have a number of slots now.
    pub limited: watch::Receiver<Limited>,
    /// Task runs that were given a slot of each of their tags, for the attempt after so many.
    pub given: mpsc::UnboundedReceiver<(TaskRunKey, u32)>,
}

impl Default for TagSlots {
    fn default() -> Self {
        Self {
            limited: watch::channel(Limited::new()).1,
            given: mpsc::unbounded_channel().1,
        }
    }
}

/// Where a run hears what people have decided.
pub type Decisions = mpsc::UnboundedReceiver<(TaskRunKey, Decision)>;

/// What whoever started a run wants of it now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Order {
    /// Go on.
    #[default]
    Go,
    /// Stop everything and say so.
    Cancel,
    /// Stop everything; the run belongs to somebody else, or will. What was finished before is
    /// still told, since its outputs are durable; of what was stopped, nothing is.
    Abandon,
}

/// How a run ended.
#[derive(Clone, Debug)]
pub struct RunEnd {
    /// The last event, which the caller tells: Succeed, Fail, TimeOut, Crash or Stop; Lose for a
    /// run that was abandoned, or whose results could not be kept ([`LOST_RESULTS`]), Rest or Pause for one
    /// that waits: it did not end, and somebody else goes on with it.
    pub moved: FlowRunMoved,
    /// The result, if there is one and it could be read.
    pub value: Option<Value>,
    /// What the place of results failed with, if that is why the run was handed back.
    pub away: Option<Arc<StorageError>>,
}

/// Something that happened in a run, on its way to whoever started it.
#[derive(Debug)]
pub struct Told {
    /// When.
    pub at: Timestamp,
    /// What.
    pub what: Happening,
    /// Where to say that it will not be forgotten any more. The run waits for that, or is stopped.
    pub settled: Option<oneshot::Sender<()>>,
}

/// Where a run tells what happens, in order.
pub type Tell = mpsc::Sender<Told>;

impl Runner {
    /// Makes a runner.
    #[must_use]
    pub fn new(settings: Settings) -> Self {
        let turns = Arc::new(Semaphore::new(settings.parallel.max(1)));
        let panics = AtomicU64::new(0);
        Self(Arc::new(Inner {
            settings,
            turns,
            panics,
        }))
    }

    /// Returns where outputs are kept.
    #[must_use]
    pub fn results(&self) -> &Results {
        &self.0.settings.results
    }

    /// Returns how many panics were caught here and in the sandbox. Each is a bug, and each ended one
    /// attempt as Crashed.
    #[must_use]
    pub fn panics(&self) -> u64 {
        self.0.panics.load(Ordering::Relaxed) + self.0.settings.sandbox.panics()
    }

    /// Carries out a run to its end, or until it is ordered to stop.
    ///
    /// Everything but the last event is told on the way: the start with the first attempt, every
    /// move of a task run, log lines and cards. A success is told only after its output is durable.
    /// Dropping the future stops the run at once, and nothing more is told.
    pub async fn run(&self, job: Job, mut orders: watch::Receiver<Order>, tell: Tell) -> RunEnd {
        let mut course = match Course::new(self.0.clone(), job, tell) {
            Ok(course) => course,
            Err(end) => return *end,
        };
        let why = tokio::select! {
            biased;
            order = stopped(&mut orders) => Why::Ordered(order),
            () = course.deadline() => Why::Late,
            gone = course.go() => match gone {
                Ok(end) => return end,
                Err(why) => why,
            },
        };
        course.stop(why).await
    }
}

/// Why a run is stopped before its end.
enum Why {
    Ordered(Order),
    Late,
    Away(Away),
    /// Everything that is left sleeps for so long, or waits for slots.
    Asleep(Option<Duration>),
    /// Everything that is left waits for a person.
    Paused,
}

/// Waits for an order to stop; for ever if nobody can give one any more.
async fn stopped(orders: &mut watch::Receiver<Order>) -> Order {
    let order = orders.wait_for(|order| *order != Order::Go).await;
    let order = order.map(|order| *order);
    match order {
        Ok(order) => order,
        Err(_) => std::future::pending().await,
    }
}

/// Writes an error and what caused it into one line.
pub(crate) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(error) = next {
        let _ = write!(text, ": {error}");
        next = error.source();
    }
    text
}
