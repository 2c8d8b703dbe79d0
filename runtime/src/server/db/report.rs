//! What agents report, applied: a whole batch in one transaction.
//!
//! The runs and task runs of the batch are read once, everything is applied in memory in order, and
//! written at once. A report counts under the epoch it was made in: when the lease is another's,
//! nothing is accepted; when nobody has it yet, results that are finished are, since an attempt that
//! is done need not be done again. A repeat is known by its number.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;

use super::flow_run::{self, Move, Standing};
use super::flow_version::Version;
use super::lease::Tenure;
use super::memory::Memory;
use super::segment::{self, Used};
use super::tag_slot::{self, Asking};
use super::task_run::{self, Kept, Key};
use super::tx::{Arg, Tx};
use super::{DbError, card, log_line, tag};
use crate::model::id::{AgentId, FlowRunId, FlowVersionId, ProjectId};
use crate::model::run::{Card, FlowRunMoved, Happening, LogLine, TaskRunKey, TaskRunMoved};
use crate::model::state::{Event, State};
use crate::wire::{LeaseKey, Report};

/// Most log lines that are kept of one run.
const LINES_MAX: u64 = 500_000;
/// Most bytes of a log line that are kept; the agent cuts at the same length.
const LINE_BYTES_MAX: usize = 16 * 1024;
/// Most bytes of a message that are kept.
const MESSAGE_BYTES_MAX: usize = 4 * 1024;
/// Most bytes of a code; ours are shorter.
const CODE_BYTES_MAX: usize = 64;
/// Most bytes of a card's title.
const TITLE_BYTES_MAX: usize = 256;
/// Most denials that are kept of one task run.
const DENIALS_MAX: usize = 100;

/// Who reports.
#[derive(Clone, Debug)]
pub struct Reporter {
    /// The agent.
    pub agent_id: AgentId,
    /// Its name, for the history.
    pub name: String,
}

/// What became of a batch.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// Runs that are over or somebody else's.
    pub lost: Vec<LeaseKey>,
    /// Runs whose lease has ended and that nobody else has yet.
    pub lapsed: Vec<LeaseKey>,
    /// Runs that something was written of.
    pub touched: Vec<FlowRunId>,
    /// Runs that the agent handed back wait again: what they require, and when they are due.
    pub waiting: Vec<(i64, Timestamp)>,
    /// Versions of which the agent declined a run, and why.
    pub declined: Vec<(FlowVersionId, String)>,
    /// Projects in which task runs ask for slots of tags.
    pub asked: BTreeSet<ProjectId>,
    /// Reports that made no sense where the run stood, and were left out.
    pub refused: u64,
}

/// The sheet that a batch is worked out on before it is written.
struct Sheet<'a> {
    reporter: &'a Reporter,
    now: Timestamp,
    runs: BTreeMap<FlowRunId, (Standing, Arc<Version>)>,
    tasks: HashMap<Key, Kept>,
    changed_runs: BTreeSet<FlowRunId>,
    changed_tasks: BTreeSet<Key>,
    lines: Vec<Vec<Arg>>,
    /// The last of each title: a statement may write a row once.
    cards: BTreeMap<(Key, String), Card>,
    used: Used,
    /// Task runs with tags that ask for slots, and those that have begun.
    asking: BTreeMap<Key, Asking>,
    begun: BTreeMap<Key, Asking>,
    released: BTreeSet<FlowRunId>,
    delivered: BTreeSet<FlowRunId>,
    lost: HashSet<LeaseKey>,
    lapsed: HashSet<LeaseKey>,
    outcome: Outcome,
}

/// Applies a batch of reports.
///
/// # Errors
///
/// The database's only: what makes no sense is left out and counted.
pub async fn apply(
    tx: &mut Tx,
    memory: &Memory,
    reporter: &Reporter,
    reports: Vec<Report>,
    now: Timestamp,
) -> Result<Outcome, DbError> {
    let mut sheet = Sheet::read(tx, memory, reporter, &reports, now).await?;
    for report in reports {
        sheet.take(report);
    }
    sheet.write(tx, memory).await
}

impl<'a> Sheet<'a> {
    async fn read(
        tx: &mut Tx,
        memory: &Memory,
        reporter: &'a Reporter,
        reports: &[Report],
        now: Timestamp,
    ) -> Result<Self, DbError> {
        let ids: BTreeSet<_> = reports.iter().map(|r| r.lease.flow_run_id).collect();
        let mut runs = BTreeMap::new();
        for run in flow_run::read(tx, ids).await? {
            let version = memory.version(tx, run.flow_version_id).await?;
            runs.insert(run.id, (run, version.ok_or(DbError::Raced)?));
        }
        let mut keys = BTreeSet::new();
        for report in reports {
            let run = report.lease.flow_run_id;
            let (Happening::TaskRun(moved), Some((standing, version))) =
                (&report.what, runs.get(&run))
            else {
                continue;
            };
            let Some(place) = version.places.get(&moved.task_run.task) else {
                continue;
            };
            // A run under its first claim that has reported nothing yet has no task run to read, but for what
            // it keeps of another and what people have decided beforehand.
            let has_kept = standing.retry_of.is_some() || standing.open_tasks > 0;
            if standing.epoch > 1 || standing.reported > 0 || has_kept {
                keys.insert((run, *place, moved.task_run.map_index));
            }
        }
        let tasks = task_run::read(tx, &keys).await?.into_iter().collect();
        Ok(Self {
            reporter,
            now,
            runs,
            tasks,
            changed_runs: BTreeSet::new(),
            changed_tasks: BTreeSet::new(),
            lines: Vec::new(),
            cards: BTreeMap::new(),
            used: Used::default(),
            asking: BTreeMap::new(),
            begun: BTreeMap::new(),
            released: BTreeSet::new(),
            delivered: BTreeSet::new(),
            lost: HashSet::new(),
            lapsed: HashSet::new(),
            outcome: Outcome::default(),
        })
    }

    fn take(&mut self, report: Report) {
        let key = report.lease;
        let Some((run, version)) = self.runs.get_mut(&key.flow_run_id) else {
            self.lost.insert(key);
            return;
        };
        if run.lease() == key && report.number <= run.reported {
            return;
        }
        let tenure = run.tenure(&key, self.reporter.agent_id);
        let is_leased = tenure == Tenure::Leased;
        match tenure {
            Tenure::Leased => {}
            Tenure::Lapsed => drop(self.lapsed.insert(key)),
            Tenure::Lost => {
                self.lost.insert(key);
                return;
            }
        }
        let version = version.clone();
        run.reported = report.number;
        self.changed_runs.insert(key.flow_run_id);
        let is_taken = match report.what {
            Happening::FlowRun(moved) => is_leased && self.flow_run(key.flow_run_id, moved),
            Happening::TaskRun(moved) => {
                self.task_run(key.flow_run_id, &version, moved, report.at, is_leased)
            }
            Happening::Log { lines } => self.log(key.flow_run_id, &version, lines),
            Happening::Card { card } => self.card(key.flow_run_id, &version, card),
            Happening::Preparing { message } => {
                is_leased && self.say_of_claimed(key.flow_run_id, &message)
            }
        };
        self.outcome.refused += u64::from(!is_taken);
    }

    fn flow_run(&mut self, id: FlowRunId, moved: FlowRunMoved) -> bool {
        // Everything else only the server or a person may do, or it is said of task runs.
        if !matches!(
            moved.event,
            Event::Start
                | Event::Succeed
                | Event::Fail
                | Event::TimeOut
                | Event::Crash
                | Event::Stop
                | Event::Lose
                | Event::Rest
                | Event::Pause
                | Event::Decline
        ) {
            return false;
        }
        let Some((run, _)) = self.runs.get_mut(&id) else {
            return false;
        };
        let message = cut(&moved.message);
        let step = Move {
            event: moved.event,
            message: &message,
            code: moved
                .code
                .as_deref()
                .filter(|code| code.len() <= CODE_BYTES_MAX),
            at: self.now,
            by: &self.reporter.name,
        };
        let stepped = match step.event {
            Event::Lose => run.lose(&step),
            Event::Rest => run.rest(&step, Duration::from_millis(moved.delay_ms)),
            _ => run.step(&step),
        };
        if stepped.is_err() {
            return false;
        }
        if let Some(result) = moved.result {
            self.used.note(&result);
            run.result = Some(result);
        }
        if matches!(run.state, State::Scheduled | State::Paused) {
            self.released.insert(id);
            if moved.event == Event::Decline {
                let declined = (run.flow_version_id, message.clone());
                self.outcome.declined.push(declined);
            }
        }
        true
    }

    /// Says of a claimed run what its agent does with it; that is no step of its history.
    fn say_of_claimed(&mut self, id: FlowRunId, message: &str) -> bool {
        let claimed = self.runs.get_mut(&id);
        let Some((run, _)) = claimed.filter(|(run, _)| run.state == State::Claimed) else {
            return false;
        };
        run.message = cut(message);
        true
    }

    fn task_run(
        &mut self,
        id: FlowRunId,
        version: &Version,
        mut moved: TaskRunMoved,
        at: Timestamp,
        is_leased: bool,
    ) -> bool {
        let (Some(place), Some((run, _))) = (
            version.places.get(&moved.task_run.task),
            self.runs.get_mut(&id),
        ) else {
            return false;
        };
        let key = (id, *place, moved.task_run.map_index);
        if moved.event == Event::Decide {
            // It was moved when it was decided; by this its agent says that it knows.
            let known = self.tasks.get_mut(&key);
            let known = known.and_then(|task| Some((task.decision.as_ref()?.at, task)));
            let Some((at, task)) = known else {
                return false;
            };
            // Of a later decision it knows nothing yet.
            if moved.decided_at.is_none_or(|heard| heard == at) {
                task.is_heard = true;
                self.changed_tasks.insert(key);
            }
            return true;
        }
        let is_known = self.tasks.contains_key(&key);
        let task = self.tasks.entry(key).or_default();
        let was_open = is_known && !task.state.is_over();
        let ends_well = task
            .state
            .after(moved.event)
            .is_ok_and(State::is_successful);
        if !is_leased && !ends_well {
            if !is_known {
                self.tasks.remove(&key);
            }
            return false;
        }
        moved.message = cut(&moved.message);
        moved.code = moved.code.filter(|code| code.len() <= CODE_BYTES_MAX);
        moved.denials.truncate(DENIALS_MAX);
        if task.step(&moved, at).is_err() {
            if !is_known {
                self.tasks.remove(&key);
            }
            return false;
        }
        if let Some(result) = &moved.result {
            self.used.note(result);
        }
        match (was_open, task.state.is_over()) {
            (false, false) => run.open_tasks += 1,
            (true, true) => run.open_tasks = run.open_tasks.saturating_sub(1),
            _ => {}
        }
        let step = Move {
            event: moved.event,
            message: &moved.message,
            code: moved.code.as_deref(),
            at: self.now,
            by: &self.reporter.name,
        };
        run.note(Some((key.1, key.2)), &step, task.state);
        if !is_leased && task.result.is_some() {
            self.delivered.insert(id);
        }
        self.line_up(key, version, &moved);
        self.changed_tasks.insert(key);
        true
    }

    /// Notes a task run with tags that asks for slots, or begins.
    fn line_up(&mut self, key: Key, version: &Version, moved: &TaskRunMoved) {
        let Some(task) = version.definition.tasks.get(key.1 as usize) else {
            return;
        };
        if task.tags.is_empty() {
            return;
        }
        self.asking.remove(&key);
        self.begun.remove(&key);
        let Some((run, _)) = self.runs.get(&key.0) else {
            return;
        };
        let asking = |attempts| Asking {
            project: version.project_id,
            tags: task.tags.clone(),
            epoch: run.epoch,
            attempts,
        };
        match moved.event {
            Event::Queue => drop(self.asking.insert(key, asking(moved.attempts))),
            Event::Start => drop(
                self.begun
                    .insert(key, asking(moved.attempts.saturating_sub(1))),
            ),
            _ => {}
        }
    }

    fn log(&mut self, id: FlowRunId, version: &Version, lines: Vec<LogLine>) -> bool {
        let Some((run, _)) = self.runs.get_mut(&id) else {
            return false;
        };
        for mut line in lines {
            if run.lines >= LINES_MAX {
                return false;
            }
            run.lines += 1;
            line.text = cut_to(&line.text, LINE_BYTES_MAX);
            let place = place(version, line.task_run.as_ref());
            self.lines.push(log_line::row(id, run.lines, place, line));
        }
        true
    }

    fn card(&mut self, id: FlowRunId, version: &Version, mut card: Card) -> bool {
        let Some(place) = place(version, Some(&card.task_run)) else {
            return false;
        };
        card.title = cut_to(&card.title, TITLE_BYTES_MAX);
        let key = (id, place, card.task_run.map_index);
        self.cards.insert((key, card.title.clone()), card);
        true
    }

    async fn write(mut self, tx: &mut Tx, memory: &Memory) -> Result<Outcome, DbError> {
        for id in self.released.union(&self.delivered) {
            if let Some((run, _)) = self.runs.get_mut(id) {
                // What was read of these task runs is written first, so that it is found.
                let own = self.changed_tasks.iter().filter(|key| key.0 == *id);
                let own = own.filter_map(|key| Some((*key, self.tasks.get(key)?.clone())));
                task_run::put(tx, own.collect::<Vec<_>>()).await?;
                flow_run::pin(tx, memory, run).await?;
                if matches!(run.state, State::Paused | State::Scheduled) {
                    flow_run::resume_decided(tx, run, self.now).await?;
                }
                if run.state == State::Paused {
                    continue;
                }
                self.outcome.waiting.push((run.requirement_id, run.due_at));
            }
        }
        let changed = std::mem::take(&mut self.changed_tasks);
        let tasks = changed
            .into_iter()
            .filter_map(|key| Some((key, self.tasks.remove(&key)?)));
        task_run::put(tx, tasks.collect::<Vec<_>>()).await?;
        self.write_line(tx).await?;
        let mut runs = Vec::new();
        for id in &self.changed_runs {
            let Some((mut run, _)) = self.runs.remove(id) else {
                continue;
            };
            if run.state.is_over() && run.open_tasks > 0 {
                let step = Move {
                    event: Event::Stop,
                    message: "the run is over",
                    code: None,
                    at: self.now,
                    by: "server",
                };
                flow_run::end_left(tx, &mut run, step).await?;
            }
            runs.push(run);
        }
        flow_run::apply(tx, runs).await?;
        log_line::add(tx, self.lines).await?;
        let cards = self.cards.into_iter();
        let cards = cards.map(|(((run, task, _), _), card)| card::row(run, task, card));
        card::put(tx, cards.collect()).await?;
        segment::touch(tx, memory, self.used, self.now).await?;
        self.outcome.touched = self.changed_runs.into_iter().collect();
        self.outcome.lost = self.lost.into_iter().collect();
        self.outcome.lapsed = self.lapsed.into_iter().collect();
        Ok(self.outcome)
    }
}

impl Sheet<'_> {
    /// Writes who asks for slots of tags, and who has begun that counts against them.
    async fn write_line(&mut self, tx: &mut Tx) -> Result<(), DbError> {
        if !self.begun.is_empty() {
            tag::hold(tx).await?;
        }
        let asking = std::mem::take(&mut self.asking);
        self.outcome.asked = asking.values().map(|one| one.project).collect();
        tag_slot::ask(tx, asking, self.now).await?;
        let mut begun = std::mem::take(&mut self.begun);
        if begun.is_empty() {
            return Ok(());
        }
        let limited = tag::all(tx).await?;
        begun.retain(|_, one| {
            let own = limited.get(&one.project);
            own.is_some_and(|own| !own.is_disjoint(&one.tags))
        });
        tag_slot::begin(tx, begun, self.now).await
    }
}

fn place(version: &Version, task: Option<&TaskRunKey>) -> Option<u32> {
    version.places.get(&task?.task).copied()
}

/// Cuts a message to what is kept of it.
pub(super) fn cut(text: &str) -> String {
    cut_to(text, MESSAGE_BYTES_MAX)
}

/// Cuts a text to so many bytes, at a character.
fn cut_to(text: &str, most: usize) -> String {
    let mut end = text.len().min(most);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].to_owned()
}
