//! The kit of the graph's tests: flows in a line, a driver that checks every rule as it goes.

mod dice;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

use serde_json::json;

use jiff::Timestamp;

use super::super::super::artifact::Digest;
use super::super::super::flow::{
    Body, Condition, Definition, Described, Edge, Mapping, Source, Task,
};
use super::super::super::run::{
    Decision, ResultRef, TaskRun, TaskRunKey, TaskRunMoved, Usage, Verdict,
};
use super::super::super::state::{Event, State};
use super::super::super::value::Value;
use super::super::{Attempt, Chore, Ended, Ending, Graph, Lost, Outcome, Output, Slot};
pub(super) use dice::{Dice, random, random_ending};

pub(super) fn text(value: &Value) -> String {
    String::from_utf8(value.bytes.to_vec()).unwrap()
}

fn kept(value: &Value) -> ResultRef {
    ResultRef {
        root: "file:///r".to_owned(),
        segment: "s".to_owned(),
        offset: 0,
        length: value.bytes.len() as u64,
        digest: Digest::of(&value.bytes),
        content_type: value.content_type.clone(),
    }
}

pub(super) fn ok_as(content_type: &str, text: &str) -> Ending {
    let value = Value {
        content_type: content_type.to_owned(),
        bytes: text.to_owned().into(),
    };
    let result = kept(&value);
    Ending::Success {
        message: String::new(),
        value,
        result,
    }
}

pub(super) fn ok(text: &str) -> Ending {
    ok_as("application/json", text)
}

pub(super) fn cached(text: &str) -> Ending {
    let value = Value::json(text.to_owned());
    let result = kept(&value);
    Ending::Cached { value, result }
}

pub(super) fn next(text: &str) -> Ending {
    let value = Value::json(text.to_owned());
    let result = kept(&value);
    Ending::Loop { value, result }
}

pub(super) fn fail(message: &str) -> Ending {
    Ending::Fail {
        message: message.to_owned(),
        code: Some("trap.x".to_owned()),
        is_final: false,
    }
}

pub(super) fn crash() -> Ending {
    Ending::Crash {
        message: "the disk".to_owned(),
    }
}

/// A flow, made in a line.
#[derive(Clone)]
pub(super) struct Flow(Described);

impl Flow {
    pub(super) fn new(tasks: &str) -> Self {
        let tasks = tasks.split(' ').map(
            |name| json!({"name": name, "body": {"function": name}, "skip_on_upstream_skip": true}),
        );
        let parameter = json!({"name": "p", "schema": {}});
        let tasks: Vec<_> = tasks.collect();
        let definition = json!({"name": "f", "parameters": [parameter], "tasks": tasks});
        Self(Described {
            definition: serde_json::from_value(definition).unwrap(),
            constants: HashMap::new(),
        })
    }

    pub(super) const fn described(&self) -> &Definition {
        &self.0.definition
    }

    fn definition(&mut self) -> &mut Definition {
        &mut self.0.definition
    }

    fn edge(mut self, from: Source, to: &str, input: Option<&str>, is_each: bool) -> Self {
        let edge = Edge {
            from,
            to: to.to_owned(),
            input: input.map(str::to_owned),
            mapping: if is_each {
                Mapping::Each
            } else {
                Mapping::Whole
            },
        };
        self.definition().edges.push(edge);
        self
    }

    pub(super) fn pass(self, from: &str, to: &str) -> Self {
        self.edge(Source::Task(from.to_owned()), to, Some(from), false)
    }

    pub(super) fn each(self, from: &str, to: &str) -> Self {
        self.edge(
            Source::Task(from.to_owned()),
            to,
            Some(&format!("each-{from}")),
            true,
        )
    }

    pub(super) fn order(self, from: &str, to: &str) -> Self {
        self.edge(Source::Task(from.to_owned()), to, None, false)
    }

    pub(super) fn parameter(self, name: &str, to: &str, input: &str) -> Self {
        self.edge(Source::Parameter(name.to_owned()), to, Some(input), false)
    }

    pub(super) fn constant(mut self, text: &str, to: &str, input: &str, is_each: bool) -> Self {
        let digest = Digest::of(text.as_bytes());
        self.0
            .constants
            .insert(digest, Value::json(text.to_owned()));
        self.edge(Source::Constant(digest), to, Some(input), is_each)
    }

    pub(super) fn change(mut self, task: &str, change: impl FnOnce(&mut Task)) -> Self {
        let mut tasks = self.definition().tasks.iter_mut();
        change(tasks.find(|own| own.name == task).unwrap());
        self
    }

    pub(super) fn when(self, task: &str, subject: &str, equals: &[&str], is_negated: bool) -> Self {
        self.change(task, |task| {
            task.conditions.push(Condition {
                subject: Source::Task(subject.to_owned()),
                equals: equals.iter().map(|text| (*text).to_owned()).collect(),
                is_negated,
            });
        })
    }

    pub(super) fn merge(mut self, task: &str, from: &[&str]) -> Self {
        for from in from {
            self = self.edge(Source::Task((*from).to_owned()), task, Some(from), false);
        }
        self.change(task, |task| {
            task.body = Body::Merge;
            task.skip_on_upstream_skip = false;
        })
    }

    pub(super) fn output(mut self, task: &str) -> Self {
        self.definition().output = Some(task.to_owned());
        self
    }

    pub(super) fn reference(mut self, task: &str) -> Self {
        self.definition().reference_tasks = vec![task.to_owned()];
        self
    }

    pub(super) fn graph(&self) -> Graph {
        self.graph_of(Vec::new(), 0)
    }

    pub(super) fn graph_of(&self, earlier: Vec<TaskRun>, lost: u32) -> Graph {
        self.0.definition.check().unwrap();
        let parameters = [("p".to_owned(), Value::json("1"))];
        Graph::new(Arc::new(self.0.clone()), &parameters, earlier, lost).unwrap()
    }

    pub(super) fn run(&self, body: impl FnMut(&str, &Attempt) -> Ending) -> Drive {
        self.run_in(Order::Oldest, body)
    }

    pub(super) fn run_in(&self, order: Order, body: impl FnMut(&str, &Attempt) -> Ending) -> Drive {
        let mut drive = Drive::new(self, self.graph());
        drive.go(order, usize::MAX, body);
        drive.check_end();
        drive
    }

    /// Runs until nothing goes on without a person.
    pub(super) fn run_alone(&self, body: impl FnMut(&str, &Attempt) -> Ending) -> Drive {
        self.take_up(Vec::new(), body)
    }

    /// Takes a run up, and goes on until nothing does without a person.
    pub(super) fn take_up(
        &self,
        earlier: Vec<TaskRun>,
        body: impl FnMut(&str, &Attempt) -> Ending,
    ) -> Drive {
        let states = earlier.iter().map(|run| (key_of(run), run.state));
        let states = states.collect();
        let mut drive = Drive::new(self, self.graph_of(earlier, 0));
        (drive.states, drive.has_people) = (states, false);
        drive.go(Order::Oldest, usize::MAX, body);
        drive
    }

    /// Runs to the end; somebody says something about a task run once so many lines were told.
    pub(super) fn run_marked(
        &self,
        order: Order,
        marks: &[(usize, &str, Decision)],
        body: impl FnMut(&str, &Attempt) -> Ending,
    ) -> Drive {
        let mut drive = Drive::new(self, self.graph());
        let marks = marks.iter();
        let marks = marks.map(|(line, key, said)| (*line, key.parse().unwrap(), said.clone()));
        drive.marks = marks.collect();
        drive.go(order, usize::MAX, body);
        drive.check_end();
        drive
    }

    /// Runs until so many lines were told, as if the agent were lost then.
    pub(super) fn run_until(
        &self,
        lines: usize,
        body: impl FnMut(&str, &Attempt) -> Ending,
    ) -> Drive {
        let mut drive = Drive::new(self, self.graph());
        drive.go(Order::Oldest, lines, body);
        drive
    }

    pub(super) fn resume(
        &self,
        before: &Drive,
        earlier: Vec<TaskRun>,
        lost: u32,
        body: impl FnMut(&str, &Attempt) -> Ending,
    ) -> Drive {
        let states = earlier.iter().map(|run| (key_of(run), run.state));
        let states = states.collect();
        let mut drive = Drive::new(self, self.graph_of(earlier, lost));
        drive.states = states;
        drive.kept.clone_from(&before.kept);
        drive.go(Order::Oldest, usize::MAX, body);
        drive.check_end();
        drive
    }
}

pub(super) fn decision(is_declined: bool) -> Decision {
    Decision {
        verdict: match is_declined {
            true => Verdict::Decline,
            false => Verdict::Approve,
        },
        output: None,
        by: "ada".to_owned(),
        reason: String::new(),
        at: Timestamp::UNIX_EPOCH,
    }
}

/// What somebody says about how a task run ends.
pub(super) fn mark(state: State, output: Option<&str>) -> Decision {
    Decision {
        verdict: Verdict::mark(state).unwrap(),
        output: output.map(str::to_owned),
        ..decision(false)
    }
}

pub(super) fn name_of(run: &TaskRun) -> TaskRunKey {
    TaskRunKey {
        task: run.task.clone(),
        map_index: run.map_index,
    }
}

fn key_of(run: &TaskRun) -> (String, Option<u32>) {
    (run.task.clone(), run.map_index)
}

/// Which of the attempts that go on ends first.
#[derive(Clone, Copy)]
pub(super) enum Order {
    Oldest,
    Newest,
    Random(u64),
}

/// A run that is driven by hand; every event must be legal, nothing starts too early.
pub(super) struct Drive {
    flow: Flow,
    graph: Graph,
    /// What was told, `task event`.
    pub(super) log: Vec<String>,
    told: Vec<TaskRunMoved>,
    states: BTreeMap<(String, Option<u32>), State>,
    /// Everything that was returned, as a storage would have it.
    pub(super) kept: HashMap<Digest, Value>,
    pub(super) delays: Vec<u64>,
    pub(super) most_running: usize,
    /// Whether somebody decides once nothing else is left to be done.
    has_people: bool,
    decisions: HashMap<(String, Option<u32>), Decision>,
    /// What somebody will say once so many lines were told.
    marks: Vec<(usize, TaskRunKey, Decision)>,
}

impl Drive {
    fn new(flow: &Flow, graph: Graph) -> Self {
        Self {
            flow: flow.clone(),
            graph,
            log: Vec::new(),
            told: Vec::new(),
            states: BTreeMap::new(),
            kept: HashMap::new(),
            delays: Vec::new(),
            most_running: 0,
            has_people: true,
            decisions: HashMap::new(),
            marks: Vec::new(),
        }
    }

    fn go(&mut self, order: Order, lines: usize, mut body: impl FnMut(&str, &Attempt) -> Ending) {
        let mut running: VecDeque<Attempt> = VecDeque::new();
        let mut sleeping: Vec<Slot> = Vec::new();
        let mut dice = Dice(match order {
            Order::Random(seed) => seed,
            _ => 0,
        });
        loop {
            self.listen();
            for slot in self.take_marks() {
                running.retain(|attempt| attempt.slot != slot);
                sleeping.retain(|asleep| *asleep != slot);
            }
            while self.log.len() < lines && !self.is_mark_due() {
                let Some(attempt) = self.graph.next_attempt() else {
                    break;
                };
                self.listen();
                self.check_start(&attempt);
                self.hear(attempt.start.clone());
                running.push_back(attempt);
            }
            self.listen();
            self.most_running = self.most_running.max(running.len());
            if self.log.len() >= lines {
                return;
            }
            if self.is_mark_due() {
                continue;
            }
            if let Some(chore) = self.graph.next_chore() {
                self.do_chore(chore);
                continue;
            }
            if running.is_empty() {
                if let Some(slot) = sleeping.pop() {
                    self.graph.wake(slot);
                    continue;
                }
                let mut paused = self.paused();
                if paused.is_empty() || !self.has_people {
                    return;
                }
                let key = paused.swap_remove(dice.below(paused.len()));
                // By the name alone, so that the order does not matter.
                let sum = key.bytes().map(u32::from).sum::<u32>();
                self.decide(&key, sum.is_multiple_of(4));
                continue;
            }
            let at = match order {
                Order::Oldest => 0,
                Order::Newest => running.len() - 1,
                Order::Random(_) => dice.below(running.len()),
            };
            let attempt = running.remove(at).unwrap();
            let key = attempt.start.task_run.to_string();
            let ending = body(&key, &attempt);
            if let Some(delay) = self.end(attempt.slot, ending) {
                self.delays.push(delay);
                sleeping.push(attempt.slot);
            }
        }
    }

    fn is_mark_due(&self) -> bool {
        self.marks.iter().any(|(line, ..)| *line <= self.log.len())
    }

    /// Has somebody say what is due; answers with what is to be dropped.
    fn take_marks(&mut self) -> Vec<Slot> {
        let mut dropped = Vec::new();
        let due = self.log.len();
        for (_, key, decision) in self.marks.extract_if(.., |(line, ..)| *line <= due) {
            let known = (key.task.clone(), key.map_index);
            self.decisions.insert(known, decision.clone());
            dropped.extend(self.graph.decided(&key, decision));
        }
        self.listen();
        dropped
    }

    fn end(&mut self, slot: Slot, ending: Ending) -> Option<u64> {
        if let Ending::Success { value, .. }
        | Ending::Cached { value, .. }
        | Ending::Loop { value, .. } = &ending
        {
            self.kept.insert(Digest::of(&value.bytes), value.clone());
        }
        let ended = Ended {
            ending,
            usage: Usage::default(),
            denials: Vec::new(),
        };
        self.graph.ended(slot, ended, 0.0)
    }

    fn do_chore(&mut self, chore: Chore) {
        match chore {
            Chore::Keep { slot, value } => {
                self.end(slot, ok_as(&value.content_type, &text(&value)));
            }
            Chore::Load { target, result } => {
                let found = self.kept.get(&result.digest).cloned();
                let lost = || Lost {
                    why: "it is gone".to_owned(),
                    code: "results.lost",
                };
                self.graph.loaded(target, found.ok_or_else(lost));
            }
            Chore::Rest { slot, .. } => {
                self.log.push(format!("{} rest", self.graph.key(slot)));
                self.graph.wake(slot);
            }
        }
    }

    fn listen(&mut self) {
        for moved in self.graph.told() {
            self.hear(moved);
        }
    }

    /// Notes what was told; the lifecycle must allow it.
    fn hear(&mut self, moved: TaskRunMoved) {
        let key = (moved.task_run.task.clone(), moved.task_run.map_index);
        let has_mark = self.decisions.get(&key).is_some_and(Decision::is_mark);
        if moved.event == Event::Pause && !has_mark {
            self.decisions.remove(&key);
        }
        let state = self.states.entry(key).or_insert(State::Pending);
        *state = state.after(moved.event).unwrap_or_else(|refusal| {
            panic!("{}: {refusal}", moved.task_run);
        });
        self.log.push(format!("{} {}", moved.task_run, moved.event));
        self.told.push(moved);
    }

    /// Nothing starts before what it hangs on is over: an element of a lane, or the whole task.
    fn check_start(&self, attempt: &Attempt) {
        let name = &attempt.start.task_run.task;
        let index = attempt.start.task_run.map_index;
        let definition = &self.flow.0.definition;
        for (from, to) in definition.dependencies() {
            if to != name {
                continue;
            }
            let mut edges = definition.edges.iter().filter(|edge| {
                edge.to == *name && matches!(&edge.from, Source::Task(task) if task == from)
            });
            let is_lane = index.is_some() && edges.all(|edge| edge.mapping == Mapping::Each);
            let is_over = |index| {
                let state = self.states.get(&(from.to_owned(), index));
                state.is_some_and(|state| state.is_over())
            };
            assert!(
                is_over(None) || (is_lane && is_over(index)),
                "{name} started before {from} was over"
            );
        }
    }

    /// Every task and every element has ended.
    fn check_end(&self) {
        assert!(
            self.graph.outcome().is_some(),
            "the run hangs: {:?}",
            self.log
        );
        for task in &self.flow.0.definition.tasks {
            assert!(
                self.states.contains_key(&(task.name.clone(), None)),
                "{}",
                task.name
            );
        }
        for (key, state) in &self.states {
            assert!(state.is_over(), "{key:?} is {state}");
        }
    }

    /// Lists who waits for a person.
    pub(super) fn paused(&self) -> Vec<String> {
        let paused = self.graph.paused();
        let mut keys: Vec<_> = paused
            .map(|(slot, _)| self.graph.key(slot).to_string())
            .collect();
        keys.sort();
        keys
    }

    /// Has somebody decide.
    pub(super) fn decide(&mut self, key: &str, is_declined: bool) {
        let key: TaskRunKey = key.parse().unwrap();
        let decision = decision(is_declined);
        let known = (key.task.clone(), key.map_index);
        self.decisions.insert(known, decision.clone());
        self.graph.decided(&key, decision);
        self.listen();
    }

    /// Goes on after somebody has decided.
    pub(super) fn go_on(&mut self, body: impl FnMut(&str, &Attempt) -> Ending) {
        self.go(Order::Oldest, usize::MAX, body);
    }

    pub(super) fn stop(&mut self) {
        self.graph.stop("cancelled");
        self.listen();
    }

    pub(super) fn outcome(&self) -> Outcome {
        self.graph.outcome().unwrap()
    }

    pub(super) fn result(&self) -> String {
        self.try_result().unwrap().unwrap()
    }

    /// The result, if there is one, or why it cannot be had.
    pub(super) fn try_result(&self) -> Result<Option<String>, String> {
        let output = self.graph.result().map_err(|refused| refused.message)?;
        let Some(Output { result, value }) = output else {
            return Ok(None);
        };
        let value = value.or_else(|| self.kept.get(&result?.digest).cloned());
        Ok(value.map(|value| text(&value)))
    }

    pub(super) fn moved(&self, task: &str) -> &TaskRunMoved {
        let mut told = self.told.iter().rev();
        told.find(|moved| moved.task_run.to_string() == task)
            .unwrap()
    }

    pub(super) fn value(&self, task: &str) -> String {
        let result = self.moved(task).result.as_ref().unwrap();
        text(&self.kept[&result.digest])
    }

    pub(super) fn state(&self, task: &str) -> String {
        self.states[&(task.to_owned(), None)].to_string()
    }

    pub(super) fn final_states(&self) -> BTreeMap<String, State> {
        let over = self.states.iter().filter(|(_, state)| state.is_over());
        over.map(|((task, index), state)| (format!("{task} {index:?}"), *state))
            .collect()
    }

    /// Lists every state in the order of the tasks.
    pub(super) fn states(&self) -> String {
        let mut lines = Vec::new();
        for task in &self.flow.0.definition.tasks {
            for ((name, index), state) in &self.states {
                if *name == task.name {
                    let index = index.map_or_else(String::new, |index| format!("[{index}]"));
                    lines.push(format!("{name}{index} {state}"));
                }
            }
        }
        lines.join(", ")
    }

    /// Returns what a server would know of the task runs now.
    pub(super) fn earlier(&self, mut change: impl FnMut(&mut TaskRun)) -> Vec<TaskRun> {
        let mut runs: BTreeMap<(String, Option<u32>), TaskRun> = BTreeMap::new();
        for moved in &self.told {
            let key = (moved.task_run.task.clone(), moved.task_run.map_index);
            let run = TaskRun {
                task: moved.task_run.task.clone(),
                map_index: moved.task_run.map_index,
                state: self.states[&key],
                message: moved.message.clone(),
                code: moved.code.clone(),
                attempts: moved.attempts,
                failures: moved.failures,
                loop_count: moved.loop_count,
                retry_at: (moved.event == Event::Retry).then_some(Timestamp::UNIX_EPOCH),
                started_at: None,
                ended_at: None,
                usage: moved.usage,
                result: moved.result.clone(),
                denials: moved.denials.clone(),
                decision: self.decisions.get(&key).cloned(),
            };
            runs.insert(key, run);
        }
        for run in runs.values_mut() {
            change(run);
            if matches!(run.state, State::Pending | State::Running) && run.loop_count == 0 {
                run.result = None;
            }
        }
        runs.into_values().collect()
    }
}
