//! The course of one run: asks the graph what is next, has it done, and tells what happened.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use futures::future::BoxFuture;
use jiff::Timestamp;
use tokio::sync::{OwnedSemaphorePermit, mpsc, watch};
use tokio::task::{AbortHandle, JoinError, JoinSet};

use super::attempt::{Away, Shared, ended};
use super::{
    Decisions, Inner, Job, LOST_RESULTS, Limited, Order, RunEnd, TagSlots, Told, Why, chain,
};
use crate::clock::Monotonic;
use crate::model::flow::OnLost;
use crate::model::graph::{self, Chore, Ended, Graph, Lost, Outcome, Slot, Target};
use crate::model::limit;
use crate::model::parameter::Bound;
use crate::model::run::{Decision, FlowRunMoved, Happening, ResultRef, TaskRunKey};
use crate::model::state::Event;
use crate::model::value::Value;

/// Values of an earlier claim that are read at one time.
const LOADS: usize = 64;
/// The longest sleep that is waited out where the run is. Beyond that it is cheaper to be given out again
/// than to keep a slot from others.
pub(super) const NAP_MAX: Duration = Duration::from_secs(5);
/// How long attempts that are stopped may take to say what they used: a few ticks of a guest that
/// computes beside others.
const GRACE: Duration = Duration::from_millis(250);

/// One run on its way.
///
/// Everything that is awaited here may be dropped at any moment, when the run is ordered to stop:
/// between two awaits the graph and the outbox are always in step.
pub(super) struct Course {
    shared: Arc<Shared>,
    graph: Graph,
    /// What is done on other threads.
    spawned: JoinSet<Done>,
    /// An attempt that is alone needs no other thread.
    inline: Option<BoxFuture<'static, Done>>,
    /// What goes on of task runs: what was dropped is not here any more, even if it is done already.
    going: HashMap<Slot, Going>,
    /// How many ever went on, to tell apart those of one task run.
    gone: u64,
    /// Our place in the line for a turn, if none was free.
    turn: Option<BoxFuture<'static, Option<OwnedSemaphorePermit>>>,
    /// Task runs that wait for their next attempt, the earliest first.
    asleep: BTreeMap<(Monotonic, u64), Slot>,
    /// How many ever slept, to tell apart those that wake at one time.
    slept: u64,
    loads: VecDeque<(Target, ResultRef)>,
    loading: usize,
    outbox: VecDeque<Happening>,
    /// Why the run cannot go on, which is a bug of ours.
    broken: Option<String>,
    /// Why it cannot go on here, which is nobody's fault in the run.
    away: Option<Away>,
    has_started: bool,
    started_at: Timestamp,
    timeout: Duration,
    stood_still: Duration,
    is_taken_back: bool,
    decisions: Decisions,
    slots: TagSlots,
    /// Since when all that is left waits for slots, and sleeps.
    queued_since: Option<Monotonic>,
}

/// Something of a task run that goes on: an attempt, or an output that is kept.
struct Going {
    number: u64,
    /// None where it needs no other thread.
    handle: Option<AbortHandle>,
}

/// Something that was going on is done.
enum Done {
    Ended(Slot, u64, Box<Ended>),
    Loaded(Target, Result<Value, Lost>),
    /// Neither here nor now.
    Away(Away),
}

impl Done {
    fn of(slot: Slot, number: u64, ended: Result<Ended, Away>) -> Self {
        match ended {
            Ok(ended) => Self::Ended(slot, number, Box::new(ended)),
            Err(away) => Self::Away(away),
        }
    }
}

impl Course {
    pub(super) fn new(
        runner: Arc<Inner>,
        job: Job,
        tell: super::Tell,
    ) -> Result<Self, Box<RunEnd>> {
        let definition = &job.described.definition;
        let mut bound = job.parameters;
        for parameter in &definition.parameters {
            if let (Some(default), false) =
                (&parameter.default, bound.contains_key(&parameter.name))
            {
                bound.insert(parameter.name.clone(), default.clone());
            }
        }
        let parameters = Arc::new(values(&bound));
        let graph = Graph::new(job.described.clone(), &parameters, job.earlier, job.lost);
        let graph = graph.map_err(|error| {
            let code = Some("rejected.definition".to_owned());
            Box::new(end(Event::Fail, error.to_string(), code))
        })?;
        let timeout_ms = job.timeout_ms.unwrap_or(limit::RUN_WALL_MS);
        Ok(Self {
            started_at: job
                .started_at
                .unwrap_or_else(|| runner.settings.clock.now()),
            timeout: Duration::from_millis(timeout_ms),
            stood_still: Duration::from_millis(job.stood_still_ms),
            is_taken_back: job.is_taken_back,
            decisions: job.decisions,
            slots: job.slots,
            queued_since: None,
            shared: Arc::new(Shared {
                runner,
                flow_run_id: job.flow_run_id,
                project: job.project,
                prepared: job.prepared,
                rights: definition.tasks.iter().map(|_| OnceLock::new()).collect(),
                described: job.described.clone(),
                registered: job.registered,
                bound,
                parameters,
                scheduled_at: job.scheduled_at,
                tell,
                stop: watch::Sender::new(false),
                waits_here: (definition.tasks.iter()).any(|task| task.on_lost == OnLost::Fail),
                is_waiting: AtomicBool::new(false),
            }),
            graph,
            spawned: JoinSet::new(),
            inline: None,
            going: HashMap::new(),
            gone: 0,
            turn: None,
            asleep: BTreeMap::new(),
            slept: 0,
            loads: VecDeque::new(),
            loading: 0,
            outbox: VecDeque::new(),
            broken: None,
            away: None,
            has_started: false,
        })
    }

    /// Waits until the run has taken as long as it may.
    pub(super) fn deadline(&self) -> impl Future<Output = ()> + use<> {
        let clock = self.shared.runner.settings.clock.clone();
        let gone = clock.now().duration_since(self.started_at);
        let gone = Duration::try_from(gone).unwrap_or_default();
        let gone = gone.saturating_sub(self.stood_still);
        let left = self.timeout.saturating_sub(gone);
        async move { clock.sleep(left).await }
    }

    /// Carries the run out to its end, or until it cannot go on here.
    pub(super) async fn go(&mut self) -> Result<RunEnd, Why> {
        self.limit();
        loop {
            // Before anything begins that somebody does not want to.
            while let Ok((key, decision)) = self.decisions.try_recv() {
                self.decided(&key, decision);
            }
            self.flush().await;
            if let Some(away) = self.away.take() {
                return Err(Why::Away(away));
            }
            self.begin_chores();
            if self.graph.has_ready() {
                self.begin_attempts(None).await;
            }
            if let Some(outcome) = self.graph.outcome() {
                self.flush().await;
                return self.finish(outcome).await.map_err(Why::Away);
            }
            if let Some(message) = self.broken.take() {
                return Ok(end(Event::Crash, message, Some("internal".to_owned())));
            }
            if let Some(why) = self.needs_nobody() {
                return Err(why);
            }
            let nap = self.nap();
            tokio::select! {
                done = next(&mut self.inline, &mut self.spawned) => self.done(done),
                turn = in_line(&mut self.turn) => {
                    self.turn = None;
                    self.begin_attempts(turn).await;
                }
                (key, decision) = decided(&mut self.decisions) => self.decided(&key, decision),
                (key, attempts) = given(&mut self.slots.given) => self.graph.given(&key, attempts),
                () = changed(&mut self.slots.limited) => self.limit(),
                () = nap => self.wake(),
            }
        }
    }

    /// Stops everything that is going on and ends the run. What was finished before is told, and
    /// what the others used, unless the run is somebody else's.
    pub(super) async fn stop(mut self, why: Why) -> RunEnd {
        let is_handed_back = matches!(
            why,
            Why::Ordered(Order::Abandon) | Why::Away(_) | Why::Asleep(_) | Why::Paused
        );
        if !is_handed_back {
            self.shared.stop.send_replace(true);
            // What does not end by itself is dropped below.
            let _ = tokio::time::timeout(GRACE, self.settle()).await;
        }
        self.inline = None;
        self.turn = None;
        while let Some(done) = self.spawned.try_join_next() {
            self.done(done);
        }
        self.spawned.shutdown().await;
        let (event, reason, code) = match why {
            Why::Ordered(Order::Abandon | Order::Go) => {
                self.flush().await;
                return end(Event::Lose, "the run was abandoned".to_owned(), None);
            }
            Why::Away(Away(error)) => {
                self.flush().await;
                let why = chain(&error);
                let message = format!("handed back, since its results cannot be kept: {why}");
                let handed_back = end(Event::Lose, message, Some(LOST_RESULTS.to_owned()));
                return RunEnd {
                    away: Some(Arc::new(error)),
                    ..handed_back
                };
            }
            Why::Asleep(left) => {
                self.flush().await;
                return self.rested(left);
            }
            Why::Paused => {
                self.flush().await;
                return end(Event::Pause, self.question(), None);
            }
            Why::Ordered(Order::Cancel) => (Event::Stop, "cancelled".to_owned(), None),
            Why::Late => {
                let ms = self.timeout.as_millis();
                let reason = format!("the run took longer than its timeout of {ms} ms");
                (Event::TimeOut, reason, Some("limit.wall".to_owned()))
            }
        };
        self.graph.stop(&reason);
        self.flush().await;
        end(event, reason, code)
    }

    /// Waits for everything that is going on.
    async fn settle(&mut self) {
        while self.inline.is_some() || !self.spawned.is_empty() {
            let done = next(&mut self.inline, &mut self.spawned).await;
            self.done(done);
        }
    }

    /// Begins attempts for as long as there are turns; gets in line where there is none.
    async fn begin_attempts(&mut self, mut turn: Option<OwnedSemaphorePermit>) {
        while self.graph.has_ready() {
            let turns = &self.shared.runner.turns;
            let taken = turn
                .take()
                .or_else(|| turns.clone().try_acquire_owned().ok());
            let Some(turn) = taken else {
                if self.turn.is_none() {
                    let turns = turns.clone();
                    self.turn = Some(Box::pin(async move { turns.acquire_owned().await.ok() }));
                }
                return;
            };
            // Not before there is a turn: until then nothing of it runs.
            self.tell_start().await;
            if let Some(attempt) = self.graph.next_attempt() {
                self.begin(attempt, turn);
            }
            self.flush().await;
        }
    }

    async fn tell_start(&mut self) {
        if self.has_started {
            return;
        }
        self.has_started = true;
        self.outbox.push_back(Happening::FlowRun(FlowRunMoved {
            event: Event::Start,
            message: String::new(),
            code: None,
            result: None,
            delay_ms: 0,
        }));
        self.flush().await;
        // Whoever passes it on may share our thread, and a guest can keep that for a whole tick.
        tokio::task::yield_now().await;
    }

    /// Begins an attempt: on another thread, unless it is all there is to do.
    fn begin(&mut self, attempt: graph::Attempt, turn: OwnedSemaphorePermit) {
        let slot = attempt.slot;
        let attempt = self.shared.clone().attempt(attempt, turn);
        let is_alone = self.inline.is_none() && self.spawned.is_empty() && !self.graph.has_ready();
        let number = self.next_number();
        let done = async move { Done::of(slot, number, attempt.await) };
        let handle = match is_alone {
            true => {
                self.inline = Some(Box::pin(done));
                None
            }
            false => Some(self.spawned.spawn(done)),
        };
        self.going.insert(slot, Going { number, handle });
    }

    const fn next_number(&mut self) -> u64 {
        self.gone += 1;
        self.gone
    }

    /// Takes what a person has decided, and drops what goes on or waits of whatever is over by it.
    fn decided(&mut self, key: &TaskRunKey, decision: Decision) {
        let dropped: HashSet<Slot> = self.graph.decided(key, decision).into_iter().collect();
        if dropped.is_empty() {
            return;
        }
        for slot in &dropped {
            match self.going.remove(slot) {
                Some(Going {
                    handle: Some(handle),
                    ..
                }) => handle.abort(),
                Some(Going { handle: None, .. }) => self.inline = None,
                None => {}
            }
        }
        self.asleep.retain(|_, slot| !dropped.contains(slot));
    }

    /// Begins what must be kept or read before somebody can go on.
    fn begin_chores(&mut self) {
        while let Some(chore) = self.graph.next_chore() {
            match chore {
                Chore::Keep { slot, value } => {
                    let shared = self.shared.clone();
                    let number = self.next_number();
                    let handle = Some(self.spawned.spawn(async move {
                        let kept = shared.success(String::new(), value).await;
                        Done::of(slot, number, kept.map(ended))
                    }));
                    self.going.insert(slot, Going { number, handle });
                }
                Chore::Load { target, result } => self.loads.push_back((target, result)),
                Chore::Rest { slot, until } => {
                    let left = until.duration_since(self.shared.runner.settings.clock.now());
                    self.rest(slot, Duration::try_from(left).unwrap_or_default());
                }
            }
        }
        while self.loading < LOADS
            && let Some((target, result)) = self.loads.pop_front()
        {
            self.loading += 1;
            let shared = self.shared.clone();
            self.spawned.spawn(async move {
                match shared.read(&result).await {
                    Ok(read) => Done::Loaded(target, read),
                    Err(away) => Done::Away(away),
                }
            });
        }
    }

    fn done(&mut self, done: Result<Done, JoinError>) {
        match done {
            Ok(Done::Ended(slot, number, ended)) => {
                let is_dropped = self.going.get(&slot).map(|it| it.number) != Some(number);
                if is_dropped {
                    return;
                }
                self.going.remove(&slot);
                if let Some(delay_ms) = self.graph.ended(slot, *ended, rand::random()) {
                    self.rest(slot, Duration::from_millis(delay_ms));
                }
            }
            Ok(Done::Loaded(target, loaded)) => {
                self.loading -= 1;
                self.graph.loaded(target, loaded);
            }
            Ok(Done::Away(away)) => self.away = Some(away),
            // What was dropped.
            Err(error) if error.is_cancelled() => {}
            // Attempts catch their panics.
            Err(error) => self.broken = Some(format!("a part of the run was lost: {error}")),
        }
    }

    /// Lets a task run sleep until its next attempt.
    fn rest(&mut self, slot: Slot, delay: Duration) {
        let due = self.shared.runner.settings.clock.monotonic() + delay;
        self.slept += 1;
        self.asleep.insert((due, self.slept), slot);
    }

    /// Says why the run need not be here for a while: nothing of it goes on, and all that is left waits for
    /// an attempt that is due much later, for slots that are not free soon, or for a person.
    fn needs_nobody(&mut self) -> Option<Why> {
        let is_at_work = self.inline.is_some()
            || !self.spawned.is_empty()
            || self.turn.is_some()
            || !self.loads.is_empty()
            || self.graph.has_ready();
        let is_queued = self.graph.queued().next().is_some();
        if is_at_work || !is_queued {
            self.queued_since = None;
        }
        if is_at_work || !self.is_taken_back {
            return None;
        }
        let now = self.shared.runner.settings.clock.monotonic();
        let left = self.asleep.first_key_value();
        let left = left.map(|((due, _), _)| due.since(now));
        if left.is_some_and(|left| left <= NAP_MAX) {
            // It is not handed back before that one wakes, and sleeps until then.
            self.queued_since = None;
            return None;
        }
        if is_queued {
            let since = *self.queued_since.get_or_insert(now);
            return (now.since(since) >= NAP_MAX).then_some(Why::Asleep(left));
        }
        match left {
            Some(_) => Some(Why::Asleep(left)),
            None => (self.graph.paused().len() > 0).then_some(Why::Paused),
        }
    }

    /// Takes over which tags have a number of slots.
    fn limit(&mut self) {
        let limited = self.slots.limited.borrow_and_update();
        let none = BTreeSet::new();
        let own = limited.get(&self.shared.project).unwrap_or(&none);
        self.graph.limit(own);
    }

    /// Says what people are asked.
    fn question(&self) -> String {
        let paused = self.graph.paused();
        let others = others(paused.len());
        let first = paused.min_by_key(|(slot, _)| (slot.task(), slot.map_index()));
        first.map_or_else(String::new, |(slot, asked)| {
            format!(
                "`{}`{others} waits for a person: {asked}",
                self.graph.key(slot)
            )
        })
    }

    /// Hands the run back until the first of those that sleep is due, or a slot is free.
    fn rested(&self, left: Option<Duration>) -> RunEnd {
        if let Some(message) = self.queue() {
            let mut rested = end(Event::Rest, message, None);
            rested.moved.delay_ms = left.map_or(u64::MAX, millis);
            return rested;
        }
        let left = left.unwrap_or_default();
        let now = self.shared.runner.settings.clock.now();
        let due = now.saturating_add(left).unwrap_or(Timestamp::MAX);
        let first = self.asleep.first_key_value();
        let first = first.map_or_else(String::new, |(_, slot)| self.graph.key(*slot).to_string());
        let others = others(self.asleep.len());
        let seconds = due.strftime("%Y-%m-%dT%H:%M:%SZ");
        let message = format!("waits until {seconds} for the next attempt of `{first}`{others}");
        let mut rested = end(Event::Rest, message, None);
        rested.moved.delay_ms = millis(left);
        rested
    }

    /// Says what slots are waited for, and by whom.
    fn queue(&self) -> Option<String> {
        let mut queued: Vec<_> = self.graph.queued().collect();
        queued.sort_by_key(|slot| (slot.task(), slot.map_index()));
        let first = *queued.first()?;
        let what = graph::waits_for(&self.graph.limited_tags(first));
        let (first, others) = (self.graph.key(first), others(queued.len()));
        Some(format!("{what} for `{first}`{others}"))
    }

    /// Waits until the first of those that sleep is due, or slots were waited for long enough.
    fn nap(&self) -> impl Future<Output = ()> + use<> {
        let clock = &self.shared.runner.settings.clock;
        let first = self.asleep.first_key_value();
        let due = first.map(|((due, _), _)| *due);
        let until = self.queued_since.map(|since| since + NAP_MAX);
        let until = due.into_iter().chain(until).min();
        let nap = until.map(|until| (clock.clone(), until.since(clock.monotonic())));
        async move {
            match nap {
                Some((clock, left)) => clock.sleep(left).await,
                None => std::future::pending().await,
            }
        }
    }

    /// Wakes those that are due.
    fn wake(&mut self) {
        let now = self.shared.runner.settings.clock.monotonic();
        while let Some(first) = self.asleep.first_entry()
            && first.key().0 <= now
        {
            self.graph.wake(first.remove());
        }
    }

    /// Tells what happened. Nothing is taken out before there is room for it, so nothing is lost
    /// when this is dropped.
    async fn flush(&mut self) {
        self.outbox
            .extend(self.graph.told().into_iter().map(Happening::TaskRun));
        while !self.outbox.is_empty() {
            let room = self.shared.tell.reserve().await;
            let Some(happening) = self.outbox.pop_front() else {
                return;
            };
            if let Ok(room) = room {
                room.send(Told {
                    at: self.shared.runner.settings.clock.now(),
                    what: happening,
                    settled: None,
                });
            }
        }
    }

    /// Ends the run with its result.
    async fn finish(&mut self, outcome: Outcome) -> Result<RunEnd, Away> {
        let Outcome {
            event,
            message,
            code,
        } = outcome;
        let mut run_end = end(event, message, code);
        if event != Event::Succeed {
            return Ok(run_end);
        }
        let output = match self.graph.result() {
            Ok(Some(output)) => output,
            Ok(None) => return Ok(run_end),
            Err(refused) => {
                return Ok(end(
                    refused.event,
                    refused.message,
                    Some(refused.code.to_owned()),
                ));
            }
        };
        match (output.result, output.value) {
            (Some(result), value) => {
                run_end.value = match value {
                    Some(value) => Some(value),
                    None => self.shared.runner.settings.results.read(&result).await.ok(),
                };
                run_end.moved.result = Some(result);
            }
            (None, Some(value)) => match self.shared.keep(&value).await? {
                Ok(result) => {
                    run_end.moved.result = Some(result);
                    run_end.value = Some(value);
                }
                Err(message) => {
                    return Ok(end(Event::Crash, message, Some("internal".to_owned())));
                }
            },
            (None, None) => {}
        }
        Ok(run_end)
    }
}

/// Waits for the first thing that is done; for ever if nothing is going on.
async fn next(
    inline: &mut Option<BoxFuture<'static, Done>>,
    spawned: &mut JoinSet<Done>,
) -> Result<Done, JoinError> {
    let alone = async {
        match inline {
            Some(attempt) => attempt.await,
            None => std::future::pending().await,
        }
    };
    let others = async {
        match spawned.join_next().await {
            Some(done) => done,
            None => std::future::pending().await,
        }
    };
    let done = tokio::select! {
        done = alone => Ok(done),
        done = others => return done,
    };
    *inline = None;
    done
}

/// Waits for a decision of a person; for ever if nobody can tell one any more.
async fn decided(decisions: &mut Decisions) -> (TaskRunKey, Decision) {
    match decisions.recv().await {
        Some(decided) => decided,
        None => std::future::pending().await,
    }
}

/// Waits for slots that a task run is given; for ever if nobody can give any more.
async fn given(given: &mut mpsc::UnboundedReceiver<(TaskRunKey, u32)>) -> (TaskRunKey, u32) {
    match given.recv().await {
        Some(given) => given,
        None => std::future::pending().await,
    }
}

/// Waits until other tags have a number of slots; for ever if nobody can say so any more.
async fn changed(limited: &mut watch::Receiver<Limited>) {
    if limited.changed().await.is_err() {
        std::future::pending().await
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// Says that there are more than the one that is named.
fn others(count: usize) -> String {
    match count {
        0 | 1 => String::new(),
        2 => " and another".to_owned(),
        count => format!(" and {} others", count - 1),
    }
}

/// Waits for a turn; for ever if we are not in line.
async fn in_line(
    turn: &mut Option<BoxFuture<'static, Option<OwnedSemaphorePermit>>>,
) -> Option<OwnedSemaphorePermit> {
    match turn {
        Some(turn) => turn.await,
        None => std::future::pending().await,
    }
}

/// Writes parameters as JSON values.
fn values(bound: &Bound) -> Vec<(String, Value)> {
    let values = bound.iter().map(|(name, value)| {
        let text = serde_json::to_vec(value).unwrap_or_default();
        (name.clone(), Value::json(text))
    });
    values.collect()
}

fn end(event: Event, message: String, code: Option<String>) -> RunEnd {
    RunEnd {
        moved: FlowRunMoved {
            event,
            message,
            code,
            result: None,
            delay_ms: 0,
        },
        value: None,
        away: None,
    }
}
