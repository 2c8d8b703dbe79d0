//! Decisions: what becomes of a task whose upstream tasks are over, and who is to blame.

use super::super::flow::{Body, Trigger};
use super::super::limit::LOST_MAX;
use super::super::state::{Event, State};
use super::life::{Kept, Life};
use super::mapping::Refused;
use super::plan::{From, Link};
use super::trigger::{Counts, Pull};
use super::{Chore, Graph, Slot};

/// What is decided about a task whose upstream tasks are over.
enum Verdict {
    Run,
    End(Event, String, Option<&'static str>),
    TriggerFails(Counts),
    /// A person decides.
    Ask,
}

impl Verdict {
    fn skip(reason: &str) -> Self {
        Self::End(Event::Skip, reason.to_owned(), None)
    }
}

impl Graph {
    /// Decides about a task whose upstream tasks are all over.
    pub(super) fn decide(&mut self, at: usize) {
        let slot = Slot::whole(at);
        let task = self.plan.task(at);
        // A mark of a whole whose elements were begun is for those of them that are not over.
        if self.nodes[at].life.mark().is_some() && !self.earlier.contains_key(&at) {
            return;
        }
        if self.nodes[at].life.is_lost_for_good(task, self.lost) {
            return self.end_lost(slot);
        }
        if self.is_left_to_people(slot)
            || self.nodes[at].mapped.is_some()
            || self.is_waiting_for(slot, self.needs(at))
        {
            return;
        }
        match self.verdict(at) {
            Verdict::Run if self.plan.task(at).is_mapped => self.open(at),
            Verdict::Run if self.plan.task(at).body == Body::Merge => self.merge(at),
            Verdict::Run => self.make_ready(slot),
            Verdict::End(event, message, code) => self.end(slot, event, message, code),
            Verdict::TriggerFails(counts) => self.fail_trigger(slot, counts),
            Verdict::Ask => self.ask(slot, "its trigger is `manual_only`".to_owned()),
        }
    }

    /// Conditions first (a branch not taken says nothing about what is inside it), then skips, then
    /// the trigger.
    fn verdict(&self, at: usize) -> Verdict {
        let (task, step) = (self.plan.task(at), &self.plan.steps[at]);
        let mut is_undecided = false;
        for (condition, subject) in task.conditions.iter().zip(&step.subjects) {
            let value = match subject {
                From::Fixed(value) => Some(value),
                From::Task(from) if self.nodes[*from].mapped.is_some() => {
                    let name = &self.plan.task(*from).name;
                    let message = format!("the branch hangs on `{name}`, which is mapped");
                    return Verdict::End(Event::Fail, message, Some("payload.not-json"));
                }
                From::Task(from) => {
                    let subject = &self.nodes[*from].life;
                    if subject.state == State::Skipped {
                        return Verdict::skip("the branch was not taken");
                    }
                    if let Kept::Lost(lost, _) = &subject.output {
                        return Verdict::End(Event::Crash, lost.why.clone(), Some(lost.code));
                    }
                    subject.output.value()
                }
            };
            let Some(value) = value else {
                is_undecided = true;
                break;
            };
            match condition.holds_for(value) {
                Ok(true) => {}
                Ok(false) => return Verdict::skip("the branch was not taken"),
                Err(why) => {
                    let message = format!("the branch could not be decided: {why}");
                    return Verdict::End(Event::Fail, message, Some("payload.not-json"));
                }
            }
        }
        let has_lanes = task.is_mapped && step.lanes().any(|from| self.nodes[from].is_cut());
        let mut counts = Counts::default();
        for link in &step.upstream {
            if !(has_lanes && link.is_lane && self.nodes[link.task].is_cut()) {
                counts += self.nodes[link.task].counts;
            }
        }
        if task.skip_on_upstream_skip && counts.skipped > 0 {
            return Verdict::skip("an upstream task was skipped");
        }
        if is_undecided {
            return Verdict::TriggerFails(counts);
        }
        if task.trigger == Trigger::ManualOnly && self.nodes[at].life.decision.is_none() {
            return Verdict::Ask;
        }
        // In a lane the elements of the upstream tasks count, so each element decides for itself.
        match task.trigger.pull(counts) {
            _ if has_lanes && !self.lacks_array(at) => Verdict::Run,
            Pull::Run => Verdict::Run,
            Pull::Skip => Verdict::skip("every upstream task was skipped"),
            Pull::Fail => Verdict::TriggerFails(counts),
        }
    }

    /// Passes on the first input whose source was not skipped.
    fn merge(&mut self, at: usize) {
        let slot = Slot::whole(at);
        for input in &self.plan.steps[at].inputs {
            let value = match &input.from {
                From::Fixed(value) => value.clone(),
                From::Task(from) if self.nodes[*from].life.state == State::Mapped => {
                    match self.joined(*from) {
                        Ok(value) => value,
                        Err(refused) => {
                            let Refused {
                                event,
                                message,
                                code,
                            } = refused;
                            return self.end(slot, event, message, Some(code));
                        }
                    }
                }
                From::Task(from) => {
                    let output = self.nodes[*from].life.output.clone();
                    if matches!(output, Kept::Nothing) {
                        continue;
                    }
                    self.nodes[at].life.output = output;
                    return self.end(slot, Event::Succeed, String::new(), None);
                }
            };
            return self.chores.push_back(Chore::Keep { slot, value });
        }
        let message = "each of its inputs was skipped".to_owned();
        self.end(slot, Event::Skip, message, None);
    }

    pub(super) fn end_lost(&mut self, slot: Slot) {
        let message = match self.lost > LOST_MAX {
            true => "its agent was lost once too often while it was running",
            false => "its agent was lost while it was running, and it must not run twice",
        };
        self.end(slot, Event::Crash, message.to_owned(), Some("lost.agent"));
    }

    pub(super) fn fail_trigger(&mut self, slot: Slot, counts: Counts) {
        let cause = self.cause_of(slot);
        let name = cause.map(|at| self.plan.task(at).name.as_str());
        let message = self.plan.task(slot.task).trigger.refusal(counts, name);
        if slot.index.is_none() {
            self.nodes[slot.task].cause = cause;
        }
        self.end(slot, Event::FailTrigger, message, None);
    }

    /// Returns the task above whose failure lets a trigger fail that wants success.
    pub(super) fn cause_of(&self, slot: Slot) -> Option<usize> {
        if !self.plan.task(slot.task).trigger.wants_success() {
            return None;
        }
        let mut upstream = self.plan.steps[slot.task].upstream.iter();
        let cause = upstream.find(|link| self.link_failed(**link, slot.index));
        cause.map(|link| link.task)
    }

    /// Follows a failure to the task run that began it.
    pub(super) fn root_of(&self, at: usize) -> (Slot, &Life) {
        let mut at = at;
        loop {
            let node = &self.nodes[at];
            if let Some(cause) = node.cause {
                at = cause;
                continue;
            }
            let failed = node
                .mapped
                .as_ref()
                .and_then(|mapped| mapped.first_failed());
            let Some((index, life)) = failed else {
                return (Slot::whole(at), &node.life);
            };
            let is_effect = life.state == State::TriggerFailed;
            let is_effect = is_effect && self.plan.task(at).trigger.wants_success();
            let mut upstream = self.plan.steps[at].upstream.iter().filter(|_| is_effect);
            match upstream.find(|link| self.link_failed(**link, Some(index))) {
                Some(link) => at = link.task,
                None => return (Slot::element(at, index), life),
            }
        }
    }

    /// Tells whether what a task run depends on failed: in a lane the element, else the task.
    fn link_failed(&self, link: Link, index: Option<u32>) -> bool {
        match index {
            Some(index) if link.is_lane => self.element_failed(link.task, index),
            _ => self.nodes[link.task].counts.failed > 0,
        }
    }
}
