//! Mapping: cutting arrays into elements, joining outputs, and gathering inputs.
//!
//! A mapped task gets one task run for each element of the shortest of its `each` inputs. Where such
//! an input is itself mapped (a lane), element waits for element only. What was skipped or failed
//! above is `null` to a task that runs nevertheless.

use std::collections::VecDeque;
use std::sync::OnceLock;

use super::super::flow::{Body, Condition};
use super::super::limit::{MAP_ELEMENTS_MAX, TASK_RUNS_MAX};
use super::super::run::{ResultRef, TaskRun};
use super::super::state::{Event, State};
use super::super::value::{NotJson, Value};
use super::life::{Kept, Life, Lost};
use super::mark::NO_ELEMENT;
use super::plan::{From, Input};
use super::trigger::{Counts, Pull};
use super::{Graph, Slot, Target};

/// The elements of a mapped task.
#[derive(Debug)]
pub(super) struct Mapped {
    elements: Vec<Element>,
    arrays: Arrays,
    /// What the upstream tasks that are no lanes count together.
    above: Counts,
    /// Elements not over.
    left: u32,
    /// Attempts going on.
    running: u32,
    /// Elements that could run but for the limit of this task.
    held: VecDeque<u32>,
    /// The outputs as one array, made once for all who need it.
    joined: OnceLock<Result<Value, Refused>>,
}

/// For each input that is cut from an array: its elements.
type Arrays = Vec<Option<Vec<Value>>>;

#[derive(Debug, Default)]
struct Element {
    life: Life,
    /// Elements above that are not over.
    waits: u32,
}

impl Mapped {
    /// Takes the elements of a task that an earlier claim saw to its end.
    pub(super) fn resumed(mut earlier: Vec<TaskRun>) -> Self {
        earlier.retain(|task_run| task_run.code.as_deref() != Some(NO_ELEMENT));
        let indices = earlier.iter().filter_map(|task_run| task_run.map_index);
        let count = indices.max().map_or(0, |last| last as usize + 1);
        let mut elements = Vec::new();
        elements.resize_with(count.min(MAP_ELEMENTS_MAX), || Element {
            life: Life::unknown(),
            waits: 0,
        });
        for task_run in earlier {
            let index = task_run.map_index.unwrap_or_default() as usize;
            if let Some(element) = elements.get_mut(index) {
                element.life = Life::resumed(task_run);
            }
        }
        Self {
            elements,
            arrays: Vec::new(),
            above: Counts::default(),
            left: 0,
            running: 0,
            held: VecDeque::new(),
            joined: OnceLock::new(),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.elements.len()
    }

    pub(super) fn life(&self, index: u32) -> &Life {
        &self.elements[index as usize].life
    }

    pub(super) fn life_mut(&mut self, index: u32) -> &mut Life {
        &mut self.elements[index as usize].life
    }

    pub(super) fn counts(&self) -> Counts {
        let mut counts = Counts::default();
        for element in &self.elements {
            counts += Counts::of(element.life.state);
        }
        counts
    }

    pub(super) fn first_failed(&self) -> Option<(u32, &Life)> {
        let mut lives = (0..).zip(self.elements.iter().map(|element| &element.life));
        lives.find(|(_, life)| life.state.is_failed())
    }

    pub(super) fn forget(&mut self) {
        for element in &mut self.elements {
            element.life.output.forget();
        }
        self.arrays = Vec::new();
        self.joined = OnceLock::new();
    }

    /// Stops the elements that began and are not over; answers which.
    pub(super) fn stop(&mut self, reason: &str) -> Vec<u32> {
        let mut stopped = Vec::new();
        for (index, element) in (0..).zip(&mut self.elements) {
            let life = &mut element.life;
            let is_known = life.attempts > 0 || life.state == State::Queued;
            if !life.state.is_over() && is_known {
                life.end(Event::Stop, reason.to_owned(), None);
                stopped.push(index);
            }
        }
        stopped
    }
}

impl Condition {
    /// Compares the subject with the texts of this condition.
    pub(super) fn holds_for(&self, subject: &Value) -> Result<bool, NotJson> {
        let subject = subject.scalar()?;
        let is_equal = self.equals.iter().any(|text| {
            serde_json::from_str::<serde_json::Value>(text).is_ok_and(|own| own == subject)
        });
        Ok(is_equal != self.is_negated)
    }
}

impl Graph {
    /// Lists what a task needs to have loaded before it is decided about.
    pub(super) fn needs(&self, at: usize) -> Vec<(Target, ResultRef)> {
        let (task, step) = (self.plan.task(at), &self.plan.steps[at]);
        let mut needs = Vec::new();
        self.need(Slot::whole(at), true, &mut needs);
        let subjects = step.subjects.iter();
        // A merge passes on where an output is; only what is joined must be at hand.
        let inputs = step.inputs.iter().map(|input| &input.from);
        let inputs = inputs.filter(|from| match from {
            From::Task(from) => task.body != Body::Merge || self.nodes[*from].is_cut(),
            From::Fixed(_) => false,
        });
        for from in subjects.chain(inputs) {
            let From::Task(from) = from else { continue };
            match &self.nodes[*from].mapped {
                None => self.need(Slot::whole(*from), false, &mut needs),
                Some(_) if step.is_lane(*from) => {}
                Some(mapped) => self.need_elements(*from, mapped, &mut needs),
            }
        }
        needs
    }

    /// Lists what must be loaded before the outputs of the output task are joined to the result.
    pub(super) fn result_needs(&self, at: usize) -> Vec<(Target, ResultRef)> {
        let mut needs = Vec::new();
        let node = &self.nodes[at];
        if let Some(mapped) = node.mapped.as_ref().filter(|_| node.counts.failed == 0) {
            self.need_elements(at, mapped, &mut needs);
        }
        needs
    }

    fn need_elements(&self, at: usize, mapped: &Mapped, needs: &mut Vec<(Target, ResultRef)>) {
        for index in 0..mapped.elements.len() as u32 {
            self.need(Slot::element(at, index), false, needs);
        }
    }

    /// Lists what one element needs to have loaded.
    fn element_needs(&self, at: usize, index: u32) -> Vec<(Target, ResultRef)> {
        let mut needs = Vec::new();
        self.need(Slot::element(at, index), true, &mut needs);
        for from in self.plan.steps[at].lanes() {
            if self.nodes[from].is_cut() {
                self.need(Slot::element(from, index), false, &mut needs);
            }
        }
        needs
    }

    fn need(&self, slot: Slot, is_loop_value: bool, needs: &mut Vec<(Target, ResultRef)>) {
        let life = self.life(slot);
        let kept = match is_loop_value {
            true => &life.loop_value,
            false => &life.output,
        };
        if let Kept::There(result) = kept {
            let target = Target {
                slot,
                is_loop_value,
            };
            needs.push((target, result.clone()));
        }
    }

    /// Cuts a mapped task into its elements.
    pub(super) fn open(&mut self, at: usize) {
        let slot = Slot::whole(at);
        let (arrays, count) = match self.arrays(at) {
            Ok(cut) => cut,
            Err(refused) => {
                return self.end(slot, refused.event, refused.message, Some(refused.code));
            }
        };
        if count > MAP_ELEMENTS_MAX {
            let message = format!("{count} elements are more than the {MAP_ELEMENTS_MAX} allowed");
            return self.end(slot, Event::Fail, message, Some("limit.map"));
        }
        if self.size + count > TASK_RUNS_MAX {
            let message = format!(
                "with {count} elements the run would have {} task runs, more than the \
                 {TASK_RUNS_MAX} allowed",
                self.size + count
            );
            return self.end(slot, Event::Fail, message, Some("limit.map"));
        }
        self.size += count;
        let mut above = Counts::default();
        let mut lanes = Vec::new();
        for link in &self.plan.steps[at].upstream {
            match link.is_lane && self.nodes[link.task].is_cut() {
                true => lanes.push(link.task),
                false => above += self.nodes[link.task].counts,
            }
        }
        let mut elements = Vec::with_capacity(count);
        for index in 0..count as u32 {
            let waits = lanes.iter().filter(|from| {
                let above = Slot::element(**from, index);
                !self.life(above).state.is_over()
            });
            elements.push(Element {
                life: Life::default(),
                waits: waits.count() as u32,
            });
        }
        for task_run in self.earlier.remove(&at).unwrap_or_default() {
            let index = task_run.map_index.unwrap_or_default();
            match elements.get_mut(index as usize) {
                Some(element) => element.life = Life::resumed(task_run),
                None if task_run.state.is_over() => {}
                None => self.tell_unknown(Slot::element(at, index)),
            }
        }
        let over = |element: &&Element| element.life.state.is_over();
        let left = count - elements.iter().filter(over).count();
        for (index, element) in (0..).zip(&elements) {
            if element.waits == 0 && !element.life.state.is_over() {
                self.decidable.push_back(Slot::element(at, index));
            }
        }
        self.nodes[at].mapped = Some(Box::new(Mapped {
            elements,
            arrays,
            above,
            left: left as u32,
            running: 0,
            held: VecDeque::new(),
            joined: OnceLock::new(),
        }));
        self.opened(at);
        self.end_unknown(at, count as u32);
        match left {
            0 => self.close(at),
            _ => drop(self.mark_elements(at)),
        }
    }

    /// Tells whether an `each` input has nothing to be cut, since its task failed or was skipped.
    pub(super) fn lacks_array(&self, at: usize) -> bool {
        let mut inputs = self.plan.steps[at].inputs.iter();
        inputs.any(|input| match input.from {
            From::Task(from) if input.is_each && !self.nodes[from].is_cut() => {
                self.nodes[from].life.output.result().is_none()
            }
            _ => false,
        })
    }

    /// Cuts the arrays of the `each` inputs and says how many elements the shortest has.
    fn arrays(&self, at: usize) -> Result<(Arrays, usize), Refused> {
        let mut arrays = Vec::new();
        let mut count = usize::MAX;
        for input in &self.plan.steps[at].inputs {
            if !input.is_each {
                arrays.push(None);
                continue;
            }
            let value = match &input.from {
                From::Fixed(value) => value,
                From::Task(from) => match (&self.nodes[*from].mapped, &self.nodes[*from].life) {
                    (Some(mapped), _) => {
                        arrays.push(None);
                        count = count.min(mapped.elements.len());
                        continue;
                    }
                    (None, life) => self.whole_output(input, life)?,
                },
            };
            let elements = value.elements().map_err(|why| {
                Refused::not_json(format!(
                    "the input `{}` cannot be mapped: {why}",
                    input.name
                ))
            })?;
            count = count.min(elements.len());
            arrays.push(Some(elements));
        }
        // The definition's check lets no mapped task pass without an `each` input.
        Ok((arrays, if count == usize::MAX { 0 } else { count }))
    }

    fn whole_output<'a>(&self, input: &Input, life: &'a Life) -> Result<&'a Value, Refused> {
        match &life.output {
            Kept::Lost(lost, _) => Err(Refused::lost(lost)),
            output => output.value().ok_or_else(|| {
                let name = &input.name;
                Refused::not_json(format!("the input `{name}` has no value to be mapped"))
            }),
        }
    }

    /// Lets the tasks know whose elements depend on these.
    pub(super) fn opened(&mut self, at: usize) {
        for link in self.plan.steps[at].downstream.clone() {
            if link.is_lane {
                self.let_go(link.task);
            }
        }
    }

    /// Decides about an element above which everything is over.
    pub(super) fn decide_element(&mut self, at: usize, index: u32) {
        let slot = Slot::element(at, index);
        let task = self.plan.task(at);
        if self.life(slot).mark().is_some() {
            return;
        }
        if self.life(slot).is_lost_for_good(task, self.lost) {
            return self.end_lost(slot);
        }
        if self.is_left_to_people(slot) || self.is_waiting_for(slot, self.element_needs(at, index))
        {
            return;
        }
        let task = self.plan.task(at);
        let mut counts = self.nodes[at]
            .mapped
            .as_ref()
            .map_or_else(Counts::default, |m| m.above);
        for from in self.plan.steps[at].lanes() {
            if self.nodes[from].is_cut() {
                counts += Counts::of(self.life(Slot::element(from, index)).state);
            }
        }
        if task.skip_on_upstream_skip && counts.skipped > 0 {
            let message = "an upstream task run was skipped".to_owned();
            return self.end(slot, Event::Skip, message, None);
        }
        match task.trigger.pull(counts) {
            Pull::Run => self.make_ready(slot),
            Pull::Skip => {
                let message = "every upstream task run was skipped".to_owned();
                self.end(slot, Event::Skip, message, None);
            }
            Pull::Fail => self.fail_trigger(slot, counts),
        }
    }

    /// Follows the end of an element: those that depend on it, and its task if it was the last.
    pub(super) fn element_over(&mut self, at: usize, index: u32) {
        for link in &self.plan.steps[at].downstream {
            if !link.is_lane {
                continue;
            }
            let Some(below) = &mut self.nodes[link.task].mapped else {
                continue;
            };
            if let Some(element) = below.elements.get_mut(index as usize) {
                element.waits -= 1;
                if element.waits == 0 {
                    self.decidable.push_back(Slot::element(link.task, index));
                }
            }
        }
        let Some(mapped) = &mut self.nodes[at].mapped else {
            return;
        };
        mapped.left -= 1;
        if mapped.left == 0 {
            self.close(at);
        }
    }

    /// Ends a mapped task whose elements are all over.
    fn close(&mut self, at: usize) {
        let counts = self.nodes[at].mapped.as_ref().map(|mapped| mapped.counts());
        let message = match counts {
            Some(counts) if counts.failed > 0 => {
                format!(
                    "{} of {} task runs were not successful",
                    counts.failed, counts.total
                )
            }
            _ => String::new(),
        };
        self.end(Slot::whole(at), Event::Map, message, None);
    }

    pub(super) fn element_failed(&self, at: usize, index: u32) -> bool {
        match &self.nodes[at].mapped {
            Some(_) => self.life(Slot::element(at, index)).state.is_failed(),
            None => self.nodes[at].life.state.is_failed(),
        }
    }

    /// Takes a turn under the limit of a mapped task, or is held until one is given back.
    pub(super) fn take_turn(&mut self, slot: Slot) -> bool {
        let most = self.plan.task(slot.task).limits.parallel;
        let (Some(index), Some(mapped)) = (slot.index, &mut self.nodes[slot.task].mapped) else {
            return true;
        };
        if most.is_some_and(|most| mapped.running >= most) {
            mapped.held.push_back(index);
            return false;
        }
        mapped.running += 1;
        true
    }

    pub(super) fn give_turn_back(&mut self, slot: Slot) {
        let (Some(_), Some(mapped)) = (slot.index, &mut self.nodes[slot.task].mapped) else {
            return;
        };
        mapped.running = mapped.running.saturating_sub(1);
        self.pass_turn_on(slot);
    }

    /// Lets the next element go on that was held, in the place of one that needs no turn.
    pub(super) fn pass_turn_on(&mut self, slot: Slot) {
        if let (Some(_), Some(mapped)) = (slot.index, &mut self.nodes[slot.task].mapped)
            && let Some(next) = mapped.held.pop_front()
        {
            self.ready.push_front(Slot::element(slot.task, next));
        }
    }

    /// Gathers one value for each edge with an input.
    pub(super) fn inputs(&self, slot: Slot) -> Result<Vec<(String, Value)>, Refused> {
        if let Kept::Lost(lost, _) = &self.life(slot).loop_value {
            return Err(Refused::lost(lost));
        }
        let step = &self.plan.steps[slot.task];
        let mut inputs = Vec::with_capacity(step.inputs.len());
        for (at, input) in step.inputs.iter().enumerate() {
            let value = match (&input.from, slot.index) {
                (_, Some(index)) if input.is_each => self.element_input(slot.task, at, index)?,
                (From::Fixed(value), _) => value.clone(),
                (From::Task(from), _) => match &self.nodes[*from].mapped {
                    Some(_) => self.joined(*from)?,
                    None => value_or_null(&self.nodes[*from].life)?,
                },
            };
            inputs.push((input.name.clone(), value));
        }
        Ok(inputs)
    }

    fn element_input(&self, at: usize, input: usize, index: u32) -> Result<Value, Refused> {
        let arrays = self.nodes[at].mapped.as_ref().map(|mapped| &mapped.arrays);
        let cut = arrays.and_then(|arrays| arrays.get(input)?.as_ref());
        if let Some(elements) = cut {
            return Ok(elements[index as usize].clone());
        }
        match &self.plan.steps[at].inputs[input].from {
            From::Task(from) => value_or_null(self.life(Slot::element(*from, index))),
            From::Fixed(value) => Ok(value.clone()),
        }
    }

    /// Joins the outputs of a mapped task, in order, `null` for what has none.
    pub(super) fn joined(&self, at: usize) -> Result<Value, Refused> {
        match &self.nodes[at].mapped {
            Some(mapped) => mapped.joined.get_or_init(|| self.join(at, mapped)).clone(),
            None => Ok(null()),
        }
    }

    fn join(&self, at: usize, mapped: &Mapped) -> Result<Value, Refused> {
        let null = null();
        let mut values = Vec::with_capacity(mapped.elements.len());
        for element in &mapped.elements {
            values.push(match &element.life.output {
                Kept::Here(value, _) => value,
                Kept::Nothing => &null,
                Kept::Lost(lost, _) => return Err(Refused::lost(lost)),
                Kept::There(_) => {
                    return Err(Refused::lost(&Lost {
                        why: "an output was not read in time".to_owned(),
                        code: "internal",
                    }));
                }
            });
        }
        Value::joined(values).map_err(|why| {
            let name = &self.plan.task(at).name;
            Refused::not_json(format!("the outputs of `{name}` cannot be joined: {why}"))
        })
    }
}

/// Why values could not be gathered: what it makes of whoever needs them.
#[derive(Clone, Debug)]
pub struct Refused {
    /// Fail, if the flow is at fault, or Crash.
    pub event: Event,
    /// In words.
    pub message: String,
    /// A stable word for it.
    pub code: &'static str,
}

impl Refused {
    fn lost(lost: &Lost) -> Self {
        Self {
            event: Event::Crash,
            message: lost.why.clone(),
            code: lost.code,
        }
    }

    fn not_json(message: String) -> Self {
        Self {
            event: Event::Fail,
            message,
            code: "payload.not-json",
        }
    }
}

fn null() -> Value {
    Value::json("null")
}

/// Returns the output, or `null` for what failed or was skipped above a task that runs nevertheless.
fn value_or_null(life: &Life) -> Result<Value, Refused> {
    match &life.output {
        Kept::Lost(lost, _) => Err(Refused::lost(lost)),
        output => Ok(output.value().cloned().unwrap_or_else(null)),
    }
}
