//! Slots of tags: task runs that begin an attempt only when the server has given it a slot of each of its
//! tags that has a number of them.
//!
//! Which tags these are is told from outside, before the run begins and while it goes on. A task run asks
//! once for each attempt, and no more of them at one time than are worth a place in line.

use std::collections::{BTreeSet, HashSet, VecDeque};

use super::super::run::TaskRunKey;
use super::super::state::{Event, State};
use super::{Graph, Slot};

/// Most task runs of a run that wait in line for slots at one time. The next of them ask when one of these
/// has begun.
const ASKED_MAX: usize = 100;

/// Who asks for slots, and who has them.
#[derive(Debug, Default)]
pub(super) struct Line {
    /// The tags of which there is a number of slots.
    limited: BTreeSet<String>,
    /// Who has asked, or is about to.
    asked: HashSet<Slot>,
    /// Who asks when there is room in line.
    unasked: VecDeque<Slot>,
    /// Who was given slots, and begins its attempt next.
    given: HashSet<Slot>,
}

impl Graph {
    /// Takes over which tags have a number of slots. Attempts that have begun go on.
    pub fn limit(&mut self, tags: &BTreeSet<String>) {
        self.line.limited.clone_from(tags);
    }

    /// Takes the slots that a task run was given for the attempt after so many; nothing happens unless it
    /// waits for just these.
    pub fn given(&mut self, key: &TaskRunKey, attempts: u32) {
        let Some(task) = self.plan.find(&key.task) else {
            return;
        };
        let slot = Slot {
            task,
            index: key.map_index,
        };
        if !self.line.asked.contains(&slot) {
            return;
        }
        let life = self.life(slot);
        let waits_for_these = life.state == State::Queued && life.attempts == attempts;
        // Whoever tells it may repeat it.
        if waits_for_these && self.line.given.insert(slot) {
            self.ready.push_front(slot);
        }
    }

    /// Lists the task runs that wait for slots, in no order.
    pub fn queued(&self) -> impl Iterator<Item = Slot> {
        let asked = self.line.asked.iter().copied();
        asked.filter(|slot| !self.line.given.contains(slot))
    }

    /// Names the tags that a task run waits for.
    #[must_use]
    pub fn limited_tags(&self, slot: Slot) -> Vec<&str> {
        let tags = self.plan.task(slot.task).tags.iter();
        let limited = tags.filter(|tag| self.line.limited.contains(*tag));
        limited.map(String::as_str).collect()
    }

    /// Takes a place for an attempt: in the line for slots if it needs some, and under the limit of a mapped
    /// task. Who waits for slots keeps the second, so who was given them has both.
    pub(super) fn take_places(&mut self, slot: Slot) -> bool {
        if self.line.given.contains(&slot) {
            return true;
        }
        let needs_slots = self.needs_slots(slot);
        if needs_slots && self.line.asked.len() >= ASKED_MAX {
            self.line.unasked.push_back(slot);
            return false;
        }
        if !self.take_turn(slot) {
            return false;
        }
        if needs_slots {
            self.line.asked.insert(slot);
        }
        true
    }

    /// Tells whether an attempt that is about to begin still has to ask for slots.
    pub(super) fn has_to_ask(&mut self, slot: Slot) -> bool {
        match self.line.given.contains(&slot) {
            true => {
                self.leave_line(slot);
                false
            }
            false => self.line.asked.contains(&slot),
        }
    }

    /// Queues a task run that has to ask: whoever hears of it gives it slots.
    pub(super) fn ask_for_slots(&mut self, slot: Slot) {
        let message = waits_for(&self.limited_tags(slot));
        self.life_mut(slot).queue(message);
        self.tell(slot, Event::Queue);
    }

    /// Leaves the line, with slots or since none are needed any more, and lets the next one ask.
    pub(super) fn leave_line(&mut self, slot: Slot) {
        self.line.given.remove(&slot);
        if self.line.asked.remove(&slot)
            && let Some(next) = self.line.unasked.pop_front()
        {
            self.ready.push_back(next);
        }
    }

    /// Lets others go on in the place of one that needs no attempt any more: with its turn, and in its line.
    pub(super) fn pass_on(&mut self, slot: Slot) {
        self.pass_turn_on(slot);
        if let Some(next) = self.line.unasked.pop_front() {
            self.ready.push_back(next);
        }
    }

    /// Forgets who waits.
    pub(super) fn clear_line(&mut self) {
        self.line.asked.clear();
        self.line.unasked.clear();
        self.line.given.clear();
    }

    fn needs_slots(&self, slot: Slot) -> bool {
        let tags = &self.plan.task(slot.task).tags;
        !tags.is_disjoint(&self.line.limited)
    }
}

/// Says what is waited for.
#[must_use]
pub fn waits_for(tags: &[&str]) -> String {
    match tags {
        [] => "waits for a slot".to_owned(),
        [tag] => format!("waits for a slot of the tag `{tag}`"),
        tags => format!(
            "waits for a slot of each of the tags `{}`",
            tags.join("`, `")
        ),
    }
}
