//! The graph of one flow run: what is ready, and what follows when something ended.
//!
//! Pure and without any input or output: the runner asks for work ([`Graph::next_attempt`],
//! [`Graph::next_chore`]), does it, says how it ended ([`Graph::ended`]), and passes on what
//! happened ([`Graph::told`]). The same answers in the same order give the same run. Every rule of
//! the semantics is here and in the files beside: `plan` (what hangs on what), `trigger`, `life`
//! (attempts, retries, loops), `mapping` (elements and inputs), `decide`, `people` (who is asked), `mark`
//! (what ends by hand), `slots`.

mod decide;
mod life;
mod mapping;
mod mark;
mod people;
mod plan;
mod redo;
mod slots;
#[cfg(test)]
mod tests;
mod trigger;

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;

use jiff::Timestamp;

use super::flow::{Definition, Described};
use super::run::{Decision, ResultRef, TaskRun, TaskRunKey, TaskRunMoved};
use super::state::{Event, State};
use super::value::Value;
pub use life::{Ended, Ending, Lost};
use life::{Kept, Life, Next};
use mapping::Mapped;
pub use mapping::Refused;
pub use plan::Inconsistent;
use plan::Plan;
pub use redo::kept;
use slots::Line;
pub use slots::waits_for;
use trigger::Counts;

/// The state of one flow run.
#[derive(Debug)]
pub struct Graph {
    plan: Plan,
    nodes: Vec<Node>,
    /// Claims of this run that were lost.
    lost: u32,
    /// Tasks that are not over.
    left: usize,
    /// Task runs that an attempt may be made of.
    ready: VecDeque<Slot>,
    /// Things to be kept or loaded before somebody can go on.
    chores: VecDeque<Chore>,
    /// Task runs that all upstream tasks have let go.
    decidable: VecDeque<Slot>,
    /// Who waits for something to be loaded.
    waiting: HashMap<Target, Vec<Slot>>,
    /// How many loads somebody waits for.
    missing: HashMap<Slot, usize>,
    /// Elements of an earlier claim, until their task is cut into elements again.
    earlier: HashMap<usize, Vec<TaskRun>>,
    /// Who waits for a person.
    paused: HashSet<Slot>,
    /// What people have decided about task runs that nobody has got to yet.
    decisions: HashMap<Slot, Decision>,
    /// Who waits for slots of tags.
    line: Line,
    /// Who was given an output by hand, which is being kept.
    by_hand: HashSet<Slot>,
    /// Task runs there are, elements included.
    size: usize,
    told: Vec<TaskRunMoved>,
}

/// A task of the run, and its elements if it is mapped.
#[derive(Debug)]
struct Node {
    life: Life,
    /// Upstream tasks that are not over (or, in a lane, not yet cut into elements).
    waits: usize,
    /// Downstream tasks that are not over, and so may still need the output.
    users: usize,
    mapped: Option<Box<Mapped>>,
    /// What it counts as upstream, once it is over.
    counts: Counts,
    /// The upstream task whose failure let the trigger fail.
    cause: Option<usize>,
}

/// A task run, by numbers. Cheap to copy; means something to the graph that gave it only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Slot {
    task: usize,
    index: Option<u32>,
}

impl Slot {
    const fn whole(task: usize) -> Self {
        Self { task, index: None }
    }

    const fn element(task: usize, index: u32) -> Self {
        let index = Some(index);
        Self { task, index }
    }

    /// Returns the number of the task in its definition.
    #[must_use]
    pub const fn task(self) -> usize {
        self.task
    }

    /// Returns the element of a mapped task.
    #[must_use]
    pub const fn map_index(self) -> Option<u32> {
        self.index
    }
}

/// A value of an earlier claim that is needed again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Target {
    slot: Slot,
    is_loop_value: bool,
}

/// An attempt to be made.
#[derive(Clone, Debug)]
pub struct Attempt {
    /// The task run, to be given back with the end.
    pub slot: Slot,
    /// Attempts so far with this one, in all claims.
    pub number: u32,
    /// Iterations before this one.
    pub loop_count: u32,
    /// What the iteration before passed on.
    pub loop_value: Option<Value>,
    /// One value for each edge with an input.
    pub inputs: Vec<(String, Value)>,
    /// The word of a person by which it goes on after a pause.
    pub approval: Option<Decision>,
    /// Whether it may not begin before it was given slots: then it ends by [`Ending::Queue`] where it would.
    pub has_to_ask: bool,
    /// What is to be told when it begins.
    pub start: TaskRunMoved,
}

/// Something other than an attempt that must be done before the run goes on.
#[derive(Clone, Debug)]
pub enum Chore {
    /// Keep a value as the output of a task run; then [`Graph::ended`].
    Keep {
        /// The task run.
        slot: Slot,
        /// Its output.
        value: Value,
    },
    /// Read a value of an earlier claim; then [`Graph::loaded`].
    Load {
        /// What it is for.
        target: Target,
        /// Where it is.
        result: ResultRef,
    },
    /// Wait for what an earlier claim waited for; then [`Graph::wake`].
    Rest {
        /// The task run.
        slot: Slot,
        /// When its next attempt is due.
        until: Timestamp,
    },
}

/// The result of a run. At least one of both is there.
#[derive(Clone, Debug)]
pub struct Output {
    /// Where it is kept; none for what was joined just now.
    pub result: Option<ResultRef>,
    /// The value, if it is at hand.
    pub value: Option<Value>,
}

/// How a flow run ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Succeed, Fail, or Crash.
    pub event: Event,
    /// Why, in words.
    pub message: String,
    /// The word of the task that decided it.
    pub code: Option<String>,
}

impl Graph {
    /// Begins a run, or takes it up where an earlier claim left it.
    ///
    /// `parameters` holds every parameter of the definition, `earlier` what the server knows of the
    /// task runs, `lost` how many claims of this run were lost. Earlier task runs that are over stay
    /// as they are; the others go on.
    ///
    /// # Errors
    ///
    /// Fails if the definition names something that is not there, which its check finds too.
    pub fn new(
        described: Arc<Described>,
        parameters: &[(String, Value)],
        earlier: Vec<TaskRun>,
        lost: u32,
    ) -> Result<Self, Inconsistent> {
        let plan = Plan::new(described, parameters)?;
        let nodes: Vec<_> = plan.steps.iter().map(Node::new).collect();
        let mut graph = Self {
            left: nodes.len(),
            size: nodes.len(),
            nodes,
            plan,
            lost,
            ready: VecDeque::new(),
            chores: VecDeque::new(),
            decidable: VecDeque::new(),
            waiting: HashMap::new(),
            missing: HashMap::new(),
            earlier: HashMap::new(),
            paused: HashSet::new(),
            decisions: HashMap::new(),
            line: Line::default(),
            by_hand: HashSet::new(),
            told: Vec::new(),
        };
        graph.resume(earlier);
        graph.mark_earlier();
        for (at, step) in graph.plan.steps.iter().enumerate() {
            if step.upstream.is_empty() {
                graph.decidable.push_back(Slot::whole(at));
            }
        }
        graph.settle();
        Ok(graph)
    }

    /// Returns the definition that is carried out.
    #[must_use]
    pub fn definition(&self) -> &Definition {
        self.plan.definition()
    }

    /// Returns the name of a task run.
    #[must_use]
    pub fn key(&self, slot: Slot) -> TaskRunKey {
        TaskRunKey {
            task: self.plan.task(slot.task).name.clone(),
            map_index: slot.index,
        }
    }

    /// Takes what happened since the last time, in order.
    pub fn told(&mut self) -> Vec<TaskRunMoved> {
        std::mem::take(&mut self.told)
    }

    /// Tells whether an attempt may be waiting to be made.
    #[must_use]
    pub fn has_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    /// Takes the next attempt. From here on it counts as begun.
    pub fn next_attempt(&mut self) -> Option<Attempt> {
        loop {
            let slot = self.ready.pop_front()?;
            let life = self.life(slot);
            if life.state.is_over() || life.mark().is_some() {
                self.pass_on(slot);
                continue;
            }
            if !self.take_places(slot) {
                continue;
            }
            match self.inputs(slot) {
                Ok(inputs) => return Some(self.begin(slot, inputs)),
                Err(refused) => {
                    self.give_turn_back(slot);
                    self.leave_line(slot);
                    self.end(slot, refused.event, refused.message, Some(refused.code));
                    self.settle();
                }
            }
        }
    }

    /// Takes the next thing to keep or to load.
    pub fn next_chore(&mut self) -> Option<Chore> {
        self.chores.pop_front()
    }

    /// Takes how an attempt (or a [`Chore::Keep`]) ended. `random` is between 0 and 1.
    ///
    /// The answer, if there is one, is the number of milliseconds after which [`Graph::wake`] is to
    /// be called for the next attempt.
    pub fn ended(&mut self, slot: Slot, ended: Ended, random: f64) -> Option<u64> {
        if self.life(slot).state.is_over() {
            return None;
        }
        if let Ending::Queue = ended.ending {
            self.ask_for_slots(slot);
            return None;
        }
        if !self.by_hand.remove(&slot) {
            self.leave_line(slot);
            self.give_turn_back(slot);
        }
        let task = slot.task;
        let life = match slot.index {
            None => &mut self.nodes[task].life,
            Some(index) => match self.nodes[task].mapped.as_mut() {
                Some(mapped) => mapped.life_mut(index),
                None => return None,
            },
        };
        let next = life.ended(self.plan.task(task), ended, random);
        match next {
            Next::Over(event) => {
                self.tell(slot, event);
                self.over(slot);
                self.settle();
                None
            }
            Next::Again(event, 0) => {
                self.tell(slot, event);
                self.ready.push_back(slot);
                None
            }
            Next::Again(event, delay_ms) => {
                self.tell(slot, event);
                Some(delay_ms)
            }
            Next::Paused => {
                self.asked(slot);
                None
            }
            Next::Stopped => None,
        }
    }

    /// Makes a task run ready whose delay before the next attempt has passed.
    pub fn wake(&mut self, slot: Slot) {
        self.ready.push_back(slot);
    }

    /// Takes a value that was loaded, or why it could not be.
    pub fn loaded(&mut self, target: Target, loaded: Result<Value, Lost>) {
        let slot = target.slot;
        let key = self.key(slot);
        let life = self.life_mut(slot);
        let kept = match target.is_loop_value {
            true => &mut life.loop_value,
            false => &mut life.output,
        };
        if let Some(result) = kept.result().cloned() {
            *kept = match loaded {
                Ok(value) => Kept::Here(value, result),
                Err(Lost { why, code }) => {
                    let why = format!(
                        "the output of `{key}`, which is finished, cannot be read any more: {why}"
                    );
                    Kept::Lost(Lost { why, code }, result)
                }
            };
        }
        for waiter in self.waiting.remove(&target).unwrap_or_default() {
            if let Some(count) = self.missing.get_mut(&waiter) {
                *count -= 1;
                if *count == 0 {
                    self.missing.remove(&waiter);
                    self.decidable.push_back(waiter);
                }
            }
        }
        self.settle();
    }

    /// Returns how the run ended, once nothing is left to be done.
    #[must_use]
    pub fn outcome(&self) -> Option<Outcome> {
        let output = self.plan.output.map(Slot::whole);
        let is_loading = output.is_some_and(|slot| self.missing.contains_key(&slot));
        if self.left > 0 || is_loading {
            return None;
        }
        let mut reference = self.plan.reference.iter().copied();
        let Some(failed) = reference.find(|at| self.nodes[*at].counts.failed > 0) else {
            return Some(Outcome {
                event: Event::Succeed,
                message: String::new(),
                code: None,
            });
        };
        let (slot, life) = self.root_of(failed);
        let key = self.key(slot);
        let verb = match life.state {
            State::TimedOut => "timed out",
            State::Crashed => "crashed",
            State::TriggerFailed => "did not run",
            State::Cancelled => "was cancelled",
            _ => "failed",
        };
        let mut message = format!("task `{key}` {verb}");
        if !life.message.is_empty() {
            message.push_str(": ");
            message.push_str(&life.message);
        }
        Some(Outcome {
            event: match life.state {
                State::Crashed => Event::Crash,
                _ => Event::Fail,
            },
            message,
            code: life.code.clone(),
        })
    }

    /// Returns the result of the run, if its output task had an output.
    ///
    /// # Errors
    ///
    /// Fails if the output of a mapped task cannot be joined.
    pub fn result(&self) -> Result<Option<Output>, Refused> {
        let Some(at) = self.plan.output else {
            return Ok(None);
        };
        let node = &self.nodes[at];
        if node.mapped.is_some() && node.life.state == State::Mapped && node.counts.failed == 0 {
            let joined = self.joined(at)?;
            let value = Some(joined);
            return Ok(Some(Output {
                result: None,
                value,
            }));
        }
        let output = &node.life.output;
        let kept = output.result().cloned();
        Ok(kept.map(|result| Output {
            result: Some(result),
            value: output.value().cloned(),
        }))
    }

    /// Stops everything that is not over, as Cancelled.
    pub fn stop(&mut self, reason: &str) {
        for at in 0..self.nodes.len() {
            if let Some(mapped) = &mut self.nodes[at].mapped {
                for index in mapped.stop(reason) {
                    self.tell(Slot::element(at, index), Event::Stop);
                }
            }
            if !self.nodes[at].life.state.is_over() {
                let life = &mut self.nodes[at].life;
                life.end(Event::Stop, reason.to_owned(), None);
                self.nodes[at].counts = Counts::of(State::Cancelled);
                self.tell(Slot::whole(at), Event::Stop);
            }
        }
        self.left = 0;
        self.ready.clear();
        self.chores.clear();
        self.missing.clear();
        self.paused.clear();
        self.clear_line();
    }

    fn resume(&mut self, earlier: Vec<TaskRun>) {
        for task_run in earlier {
            let Some(at) = self.plan.find(&task_run.task) else {
                continue;
            };
            match task_run.map_index {
                Some(_) => self.earlier.entry(at).or_default().push(task_run),
                None => self.nodes[at].life = Life::resumed(task_run),
            }
        }
        for at in 0..self.nodes.len() {
            if !self.nodes[at].life.state.is_over() {
                continue;
            }
            if self.nodes[at].life.state == State::Mapped {
                let elements = self.earlier.remove(&at).unwrap_or_default();
                let mapped = Mapped::resumed(elements);
                self.size += mapped.len();
                self.nodes[at].mapped = Some(Box::new(mapped));
                self.opened(at);
            }
            self.node_over(at);
        }
        // Only now it is known how those above ended.
        for at in 0..self.nodes.len() {
            if self.nodes[at].life.state == State::TriggerFailed {
                self.nodes[at].cause = self.cause_of(Slot::whole(at));
            }
        }
    }

    /// Lets a task run go on: now, or when the delay has passed that an earlier claim waited for.
    fn make_ready(&mut self, slot: Slot) {
        match self.life_mut(slot).rest_until.take() {
            Some(until) => self.chores.push_back(Chore::Rest { slot, until }),
            None => self.ready.push_back(slot),
        }
    }

    /// Decides about everything that can be decided. A queue, since a skip may run down a chain of
    /// thousands of tasks.
    fn settle(&mut self) {
        while let Some(slot) = self.decidable.pop_front() {
            if self.life(slot).state.is_over() {
                continue;
            }
            match slot.index {
                None => self.decide(slot.task),
                Some(index) => self.decide_element(slot.task, index),
            }
        }
    }

    fn begin(&mut self, slot: Slot, inputs: Vec<(String, Value)>) -> Attempt {
        let key = self.key(slot);
        let has_to_ask = self.has_to_ask(slot);
        let life = self.life_mut(slot);
        life.start();
        Attempt {
            slot,
            number: life.attempts,
            loop_count: life.loop_count,
            loop_value: life.loop_value.value().cloned(),
            inputs,
            approval: life.decision.clone(),
            has_to_ask,
            start: life.moved(key, Event::Start),
        }
    }

    /// Ends a task run by a decision, not by an attempt.
    fn end(&mut self, slot: Slot, event: Event, message: String, code: Option<&str>) {
        self.life_mut(slot).end(event, message, code);
        self.tell(slot, event);
        self.over(slot);
    }

    /// Follows the end of a task run.
    fn over(&mut self, slot: Slot) {
        match slot.index {
            None => self.node_over(slot.task),
            Some(index) => self.element_over(slot.task, index),
        }
    }

    /// Lets go of who waits for a task, and of what nobody needs any more.
    fn node_over(&mut self, at: usize) {
        self.left -= 1;
        let node = &mut self.nodes[at];
        node.counts = match &node.mapped {
            Some(mapped) => mapped.counts(),
            None => Counts::of(node.life.state),
        };
        let was_cut = node.mapped.is_some();
        for link in self.plan.steps[at].downstream.clone() {
            if !(link.is_lane && was_cut) {
                self.let_go(link.task);
            }
        }
        for link in &self.plan.steps[at].upstream {
            let upstream = &mut self.nodes[link.task];
            upstream.users -= 1;
            if upstream.users == 0 && self.plan.output != Some(link.task) {
                upstream.forget();
            }
        }
        if self.plan.output == Some(at) {
            // Nobody else asks for what an earlier claim finished of it.
            let needs = self.result_needs(at);
            self.is_waiting_for(Slot::whole(at), needs);
        } else if self.nodes[at].users == 0 {
            self.nodes[at].forget();
        }
    }

    fn let_go(&mut self, at: usize) {
        self.nodes[at].waits -= 1;
        if self.nodes[at].waits == 0 {
            self.decidable.push_back(Slot::whole(at));
        }
    }

    /// Asks for what must be loaded before a decision; answers whether there is something.
    fn is_waiting_for(&mut self, slot: Slot, needs: Vec<(Target, ResultRef)>) -> bool {
        if needs.is_empty() {
            return false;
        }
        self.missing.insert(slot, needs.len());
        for (target, result) in needs {
            let waiting = self.waiting.entry(target).or_default();
            if waiting.is_empty() {
                self.chores.push_back(Chore::Load { target, result });
            }
            waiting.push(slot);
        }
        true
    }

    fn tell(&mut self, slot: Slot, event: Event) {
        let moved = self.life(slot).moved(self.key(slot), event);
        self.told.push(moved);
    }

    fn life(&self, slot: Slot) -> &Life {
        let node = &self.nodes[slot.task];
        match (slot.index, &node.mapped) {
            (Some(index), Some(mapped)) => mapped.life(index),
            _ => &node.life,
        }
    }

    fn life_mut(&mut self, slot: Slot) -> &mut Life {
        let node = &mut self.nodes[slot.task];
        match (slot.index, &mut node.mapped) {
            (Some(index), Some(mapped)) => mapped.life_mut(index),
            _ => &mut node.life,
        }
    }
}

impl Node {
    fn new(step: &plan::Step) -> Self {
        Self {
            life: Life::default(),
            waits: step.upstream.len(),
            users: step.downstream.len(),
            mapped: None,
            counts: Counts::default(),
            cause: None,
        }
    }

    /// Tells whether it is mapped and its elements are known.
    const fn is_cut(&self) -> bool {
        self.mapped.is_some()
    }

    fn forget(&mut self) {
        self.life.output.forget();
        if let Some(mapped) = &mut self.mapped {
            mapped.forget();
        }
    }
}
