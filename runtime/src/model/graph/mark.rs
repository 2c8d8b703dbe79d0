//! Marks: task runs that a person ends by hand, whatever they do.
//!
//! One that goes on is stopped, one that waits does not begin. Of a mapped task that has its elements each ends
//! that is not over; before it has them it ends as a whole. An output given by hand is kept first, as any other.

use super::super::run::{Decision, TaskRunMoved};
use super::super::state::{Event, State};
use super::super::value::Value;
use super::life::Life;
use super::{Chore, Graph, Slot};

/// The code of an element that a person named and that there is not.
pub(super) const NO_ELEMENT: &str = "element.unknown";

impl Graph {
    /// Takes what a person said about how a task run ends; answers with those that it concerns.
    pub(super) fn marked(&mut self, slot: Slot, decision: Decision) -> Vec<Slot> {
        let count = self.nodes[slot.task].mapped.as_ref().map(|it| it.len());
        let (mut marked, at) = (Vec::new(), decision.at);
        match (slot.index, count) {
            (Some(index), Some(count)) if index as usize >= count => {
                self.tell_unknown(slot);
                return marked;
            }
            (Some(_), Some(_)) => marked.extend(self.mark(slot, decision)),
            // It has no elements yet: it is known about them when it is cut.
            (Some(_), None) => drop(self.decisions.insert(slot, decision)),
            (None, None) if self.earlier.contains_key(&slot.task) => {
                self.life_mut(slot).decision = Some(decision);
            }
            (None, None) => marked.extend(self.mark(slot, decision)),
            (None, Some(_)) => {
                self.life_mut(slot).decision = Some(decision);
                marked = self.mark_elements(slot.task);
            }
        }
        self.tell_heard(slot, at);
        self.settle();
        marked
    }

    /// Ends what was marked before the run was taken up.
    pub(super) fn mark_earlier(&mut self) {
        for at in 0..self.nodes.len() {
            let slot = Slot::whole(at);
            if let Some(decision) = self.life(slot).mark().cloned()
                && !self.earlier.contains_key(&at)
                && self.nodes[at].mapped.is_none()
            {
                self.mark(slot, decision);
            }
        }
    }

    /// Ends the elements of a mapped task that were marked: with the task as a whole, or one by one.
    pub(super) fn mark_elements(&mut self, at: usize) -> Vec<Slot> {
        let count = self.nodes[at].mapped.as_ref().map_or(0, |it| it.len());
        let whole = self.nodes[at].life.mark().cloned();
        let mut marked = Vec::new();
        for index in 0..u32::try_from(count).unwrap_or(u32::MAX) {
            let slot = Slot::element(at, index);
            let kept = self.decisions.get(&slot).filter(|it| it.is_mark());
            let own = kept.or_else(|| self.life(slot).mark());
            if let Some(decision) = own.or(whole.as_ref()).cloned() {
                marked.extend(self.mark(slot, decision));
            }
        }
        marked
    }

    /// Ends those that were marked of the elements of a mapped task, beyond the last that it turned out to have.
    pub(super) fn end_unknown(&mut self, at: usize, count: u32) {
        let is_beyond = |slot: &Slot| slot.task == at && slot.index >= Some(count);
        let mut beyond: Vec<Slot> = self.decisions.keys().copied().filter(is_beyond).collect();
        beyond.sort_unstable_by_key(|slot| slot.index);
        for slot in beyond {
            self.decisions.remove(&slot);
            self.tell_unknown(slot);
        }
    }

    /// Tells that there is no such element of a mapped task.
    pub(super) fn tell_unknown(&mut self, slot: Slot) {
        let name = &self.plan.task(slot.task).name;
        let mut life = Life::default();
        let message = format!("`{name}` has no such element");
        life.end(Event::Stop, message, Some(NO_ELEMENT));
        let moved: TaskRunMoved = life.moved(self.key(slot), Event::Stop);
        self.told.push(moved);
    }

    /// Ends one task run, or has the output kept that it was given.
    fn mark(&mut self, slot: Slot, decision: Decision) -> Option<Slot> {
        let life = self.life(slot);
        if life.state.is_over() || self.by_hand.contains(&slot) {
            return None;
        }
        if life.is_at_work {
            self.give_turn_back(slot);
        }
        self.leave_line(slot);
        self.paused.remove(&slot);
        self.decisions.remove(&slot);
        let (verdict, message) = (decision.verdict, decision.to_string());
        let output = decision.output.clone();
        let life = self.life_mut(slot);
        (life.decision, life.is_at_work) = (Some(decision), false);
        match verdict.ends() {
            Some(event) if event != Event::MarkSuccess => {
                self.end(slot, event, message, verdict.code());
            }
            _ => {
                life.state = State::Pending;
                self.by_hand.insert(slot);
                let value = Value::json(output.unwrap_or_else(|| "null".to_owned()));
                self.chores.push_back(Chore::Keep { slot, value });
            }
        }
        Some(slot)
    }
}
