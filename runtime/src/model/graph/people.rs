//! People: task runs that wait until somebody decides about them.
//!
//! A task asks by the signal `pause` or by its trigger `manual_only`. What was decided is known before the
//! run is taken up, or comes while it goes on ([`Graph::decided`]). What people say unasked, how a task run
//! ends, is in `mark`.

use jiff::Timestamp;

use super::super::run::{Decision, TaskRunKey, TaskRunMoved, Verdict};
use super::super::state::{Event, State};
use super::{Graph, Slot};

impl Graph {
    /// Takes what a person has decided about a task run; answers with those that are over by it or need no
    /// attempt any more: what goes on of them, or waits, is to be dropped.
    ///
    /// It is kept for one of an earlier claim that has not been got to yet; otherwise an answer does nothing to
    /// a task run that is not paused.
    pub fn decided(&mut self, key: &TaskRunKey, decision: Decision) -> Vec<Slot> {
        let Some(task) = self.plan.find(&key.task) else {
            return Vec::new();
        };
        let slot = Slot {
            task,
            index: key.map_index,
        };
        if decision.is_mark() {
            return self.marked(slot, decision);
        }
        match self.paused.remove(&slot) {
            true => {
                self.take_decision(slot, decision);
                self.decidable.push_back(slot);
                self.settle();
            }
            false => {
                // Whoever told it is told that it was heard.
                self.tell_heard(slot, decision.at);
                self.decisions.insert(slot, decision);
            }
        }
        Vec::new()
    }

    /// Lists the task runs that wait for a person, in no order, with what they ask.
    pub fn paused(&self) -> impl ExactSizeIterator<Item = (Slot, &str)> {
        let paused = self.paused.iter();
        paused.map(|slot| (*slot, self.life(*slot).message.as_str()))
    }

    /// Asks a person.
    pub(super) fn ask(&mut self, slot: Slot, reason: String) {
        self.life_mut(slot).pause(reason);
        self.asked(slot);
    }

    /// Notes that a person was asked. What was decided before was about something else.
    pub(super) fn asked(&mut self, slot: Slot) {
        self.decisions.remove(&slot);
        self.tell(slot, Event::Pause);
        self.paused.insert(slot);
    }

    /// Tells whether nothing is to be decided here: a person has still to be heard, or has declined.
    pub(super) fn is_left_to_people(&mut self, slot: Slot) -> bool {
        if self.life(slot).state == State::Paused {
            let early = self.decisions.remove(&slot);
            match self.life(slot).decision.clone().or(early) {
                Some(decision) => self.take_decision(slot, decision),
                None => {
                    self.paused.insert(slot);
                    return true;
                }
            }
        }
        let life = self.life(slot);
        let is_declined = |it: &&Decision| it.verdict == Verdict::Decline;
        let declined = life.decision.as_ref().filter(is_declined);
        let is_declined = declined.is_some() && life.state == State::Pending;
        if let (Some(decision), true) = (declined, is_declined) {
            let (message, code) = (decision.to_string(), decision.verdict.code());
            self.end(slot, Event::Fail, message, code);
        }
        is_declined
    }

    /// Tells that it was heard what was decided at an instant, if anything can still follow from it.
    pub(super) fn tell_heard(&mut self, slot: Slot, at: Timestamp) {
        let key = self.key(slot);
        let node = &self.nodes[slot.task];
        let life = match (slot.index, &node.mapped) {
            (Some(index), Some(mapped)) if (index as usize) < mapped.len() => mapped.life(index),
            _ => &node.life,
        };
        if !life.state.is_over() {
            self.told.push(TaskRunMoved {
                decided_at: Some(at),
                ..life.moved(key, Event::Decide)
            });
        }
    }

    fn take_decision(&mut self, slot: Slot, decision: Decision) {
        self.life_mut(slot).decided(decision);
        self.tell(slot, Event::Decide);
    }
}
