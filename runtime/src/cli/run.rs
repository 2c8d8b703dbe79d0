//! `waft run`: a run here and now, without a server.

mod asking;

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;

use jiff::Timestamp;
use tokio::sync::{mpsc, watch};

use super::component::{Component, Which, sandbox};
use super::failure::{Done, Failure};
use super::parameters::Given;
use super::receipt::{Receipt, ShownResult, ShownTask, card_text};
use super::signals::Signals;
use super::tree::{Seen, Tree};
use super::watch::verdict;
use super::{Call, agent, power, words};
use crate::config::hostname;
use crate::model::flow::Definition;
use crate::model::id::FlowRunId;
use crate::model::limit::{Limits, TaskLimits};
use crate::model::parameter::{Bound, bind};
use crate::model::run::{Card, Happening, TaskRun, TaskRunKey, TaskRunMoved, denial_parts};
use crate::model::state::{Event, State};
use crate::runner::{Decisions, Job, Order, RunEnd, Runner, Settings, TagSlots, Told};
use crate::sandbox::{Powers, Sandbox};
use crate::storage::{Results, TaskCache};
use asking::{Asking, Questions};

/// What may wait to be shown before the runner waits for the terminal.
const TOLD_MAX: usize = 256;

/// Runs a flow here and now, without a server; prints its result.
///
/// Every task runs in a sandbox of its own and is granted nothing but what it asks for and the flags
/// allow. Tasks and log lines go to standard error, the result to standard output. Ends with exit
/// code 3 if the run did not succeed.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  waft run . --param name=Ada
  waft run flow.wasm --params run.json --json
  waft run . --allow-net api.example.org:443 --allow-dir ./data::/data:ro")]
pub(super) struct Args {
    #[command(flatten)]
    which: Which,
    #[command(flatten)]
    given: Given,
    #[command(flatten)]
    powers: power::Flags,
    /// Approves beforehand whatever waits for a person.
    #[arg(long)]
    yes: bool,
}

pub(super) fn run(args: &Args, call: &Call) -> Done {
    call.wait(async {
        let parallel = args.powers.parallel(call);
        let sandbox = sandbox(call, parallel)?;
        let component = args.which.load(call, &sandbox).await?;
        let definition = component.definition();
        let parameters = bind(
            &definition.parameters,
            &args.given.read(&definition.parameters)?,
        )?;
        let powers = args.powers.powers(call)?;
        let ceiling = args.powers.ceiling(call);
        check_allowed(definition, &powers, &ceiling)?;
        let runner = runner(sandbox, powers, ceiling, parallel, call)?;
        let (decide, decisions) = mpsc::unbounded_channel();
        let job = job(&component, parameters, decisions, call);
        let (id, parameters) = (job.flow_run_id, job.parameters.clone());
        let mut story = Story::new(definition, call);
        let asking = Asking::new(decide, args.yes);
        let (end, unasked) = carry_out(&runner, job, asking, &mut story, call).await?;
        story.ended_at = Some(call.clock.now());
        let told = tell_end(&component, id, parameters, story, &end, call);
        told.map_err(|failure| match unasked {
            true => failure.or_hint("add --yes to approve beforehand, or run it on a terminal"),
            false => failure,
        })
    })
}

/// Refuses a flow that asks for more than is allowed here, before anything of it runs.
fn check_allowed(definition: &Definition, powers: &Powers, ceiling: &Limits) -> Done {
    let needs = definition.needs();
    let offered = TaskLimits {
        memory_bytes: Some(ceiling.memory_bytes),
        cpu_ms: Some(ceiling.cpu_ms),
        wall_ms: Some(ceiling.wall_ms),
        output_bytes: Some(ceiling.output_bytes),
        parallel: None,
    };
    let flags = needs.grants.missing_from(powers.policy());
    if !flags.is_empty() {
        let what = format!(
            "flow `{}` asks for what is not allowed here",
            definition.name
        );
        let flags: Vec<_> = flags.iter().map(|flag| pasteable(flag)).collect();
        return Err(Failure::could(what).or_hint(format!("allow it: {}", flags.join(" "))));
    }
    let limits = needs.limits.exceeding(&offered);
    if !limits.is_empty() {
        let what = format!(
            "flow `{}` asks for more than it may use here: {}",
            definition.name,
            limits.join("; ")
        );
        return Err(Failure::could(what)
            .or_hint("raise the ceiling: --max-memory, --max-cpu, --max-wall, --max-output"));
    }
    Ok(())
}

/// Quotes what a shell would take for the names of files.
fn pasteable(flag: &str) -> String {
    match flag.split_once(' ') {
        Some((name, value)) if value.contains('*') => format!("{name} '{value}'"),
        _ => flag.to_owned(),
    }
}

fn runner(
    sandbox: Sandbox,
    powers: Arc<Powers>,
    ceiling: Limits,
    parallel: usize,
    call: &Call,
) -> Done<Runner> {
    let (root, access) = (agent::results_root(call)?, call.config.access());
    let results = Results::open(&root, &hostname(), &access, call.clock.clone())?;
    Ok(Runner::new(Settings {
        sandbox,
        task_cache: TaskCache::beside(&results),
        results,
        powers,
        ceiling,
        clock: call.clock.clone(),
        parallel,
    }))
}

fn job(component: &Component, parameters: Bound, decisions: Decisions, call: &Call) -> Job {
    let now = call.clock.now();
    Job {
        flow_run_id: FlowRunId::at(now.as_microsecond(), rand::random()),
        project: String::new(),
        prepared: component.prepared.clone(),
        described: component.described.clone(),
        registered: Arc::new(component.definition().clone()),
        parameters,
        scheduled_at: now,
        started_at: None,
        timeout_ms: None,
        stood_still_ms: 0,
        lost: 0,
        earlier: Vec::new(),
        is_taken_back: false,
        decisions,
        slots: TagSlots::default(),
    }
}

/// Runs the job and listens to what happens; an interrupt cancels it, a second one leaves it. So does a
/// question that nobody is there to answer, which is said beside the end.
async fn carry_out(
    runner: &Runner,
    job: Job,
    (asking, questions): (Asking, Questions),
    story: &mut Story,
    call: &Call,
) -> Done<(RunEnd, bool)> {
    let (order, orders) = watch::channel(Order::Go);
    let (tell, mut told) = mpsc::channel(TOLD_MAX);
    let mut signals = Signals::new()?;
    let interrupted = twice_interrupted(async || signals.next().await, &order);
    let listen = async {
        while let Some(Told { at, what, settled }) = told.recv().await {
            let question = question(&what);
            story.hear(at, what);
            if let Some(question) = question {
                let _ = questions.send(question);
            }
            // Nothing survives this process that could make an attempt twice.
            if let Some(settled) = settled {
                let _ = settled.send(());
            }
        }
    };
    let work = async { tokio::join!(runner.run(job, orders, tell), listen).0 };
    let mut unasked = None;
    let asked = async {
        unasked = Some(asking.go(call).await);
        order.send_replace(Order::Cancel);
        std::future::pending::<Infallible>().await
    };
    let end = tokio::select! {
        end = work => Ok(end),
        () = interrupted => Err(Failure::could("interrupted; what was at work was left")),
        never = asked => match never {},
    };
    story.tree.end();
    let mut end = end?;
    let is_unasked = unasked.is_some() && end.moved.event == Event::Stop;
    if let (Some(why), true) = (unasked, is_unasked) {
        end.moved.message = why;
    }
    Ok((end, is_unasked))
}

/// Returns what a task run asks a person, if that is what happened.
fn question(what: &Happening) -> Option<(TaskRunKey, String)> {
    match what {
        Happening::TaskRun(moved) if moved.event == Event::Pause => {
            Some((moved.task_run.clone(), moved.message.clone()))
        }
        _ => None,
    }
}

/// Cancels the run at the first interrupt and returns at the second one, whatever still goes on: a
/// person who asks twice does not want to wait.
async fn twice_interrupted(mut next: impl AsyncFnMut(), order: &watch::Sender<Order>) {
    next().await;
    order.send_replace(Order::Cancel);
    next().await;
    order.send_replace(Order::Abandon);
}

/// What has happened so far.
struct Story {
    tree: Tree,
    order: BTreeMap<String, usize>,
    tasks: BTreeMap<(usize, Option<u32>), TaskRun>,
    cards: Vec<Card>,
    started_at: Option<Timestamp>,
    ended_at: Option<Timestamp>,
}

impl Story {
    fn new(definition: &Definition, call: &Call) -> Self {
        let names = definition.tasks.iter().map(|task| task.name.clone());
        Self {
            tree: Tree::new(&call.output, Some(call.least_level())),
            order: names.enumerate().map(|(nth, name)| (name, nth)).collect(),
            tasks: BTreeMap::new(),
            cards: Vec::new(),
            started_at: None,
            ended_at: None,
        }
    }

    fn hear(&mut self, at: Timestamp, what: Happening) {
        match what {
            Happening::FlowRun(moved) => {
                if moved.event == Event::Start {
                    self.started_at.get_or_insert(at);
                }
            }
            Happening::TaskRun(moved) => self.move_task(at, moved),
            Happening::Log { lines } => lines.iter().for_each(|line| self.tree.say(line)),
            // Only an agent prepares a run.
            Happening::Preparing { .. } => {}
            Happening::Card { card } => {
                self.cards
                    .retain(|old| (&old.task_run, &old.title) != (&card.task_run, &card.title));
                self.cards.push(card);
            }
        }
    }

    fn move_task(&mut self, at: Timestamp, moved: TaskRunMoved) {
        let key = moved.task_run;
        let nth = self.order.get(&key.task).copied().unwrap_or(usize::MAX);
        let task = self
            .tasks
            .entry((nth, key.map_index))
            .or_insert_with(|| new_task(&key));
        // The runner is the one that decides; what the table refuses would be its bug.
        debug_assert!(
            task.state.after(moved.event).is_ok(),
            "{key}: {} {}",
            task.state,
            moved.event
        );
        task.state = task.state.after(moved.event).unwrap_or(task.state);
        task.message = moved.message;
        task.code = moved.code;
        task.attempts = moved.attempts;
        task.loop_count = moved.loop_count;
        task.usage = moved.usage;
        task.result = moved.result.or(task.result.take());
        task.denials = moved.denials;
        if task.state == State::Running {
            task.started_at.get_or_insert(at);
        }
        if task.state.is_over() {
            task.ended_at = Some(at);
        }
        self.tree.see(&Seen {
            key,
            state: task.state,
            message: task.message.clone(),
            attempts: task.attempts,
            wall_ms: task.usage.wall_ms,
        });
    }
}

fn new_task(key: &TaskRunKey) -> TaskRun {
    TaskRun {
        task: key.task.clone(),
        map_index: key.map_index,
        state: State::Pending,
        message: String::new(),
        code: None,
        attempts: 0,
        failures: 0,
        loop_count: 0,
        retry_at: None,
        started_at: None,
        ended_at: None,
        usage: crate::model::run::Usage::default(),
        result: None,
        denials: Vec::new(),
        decision: None,
    }
}

fn tell_end(
    component: &Component,
    id: FlowRunId,
    parameters: Bound,
    story: Story,
    end: &RunEnd,
    call: &Call,
) -> Done {
    let flow = &component.definition().name;
    let state = match end.moved.event {
        // Nobody goes on with it.
        Event::Lose => State::Crashed,
        event => State::Running.after(event).unwrap_or(State::Crashed),
    };
    let took = words::millis_between(story.started_at, story.ended_at).unwrap_or_default();
    let task_runs = match story.tasks.len() {
        1 => "1 task run".to_owned(),
        count => format!("{count} task runs"),
    };
    let (state_word, took) = (state.to_string(), words::duration(took));
    call.output
        .note(format!("{state_word:<13} {flow}  {task_runs}  {took}"));
    let remedies = remedies(story.tasks.values(), &end.moved.message);
    if call.output.is_json() {
        call.output.json(&Receipt {
            flow: flow.clone(),
            id: id.to_string(),
            flow_run_id: id.to_string(),
            state,
            message: end.moved.message.clone(),
            code: end.moved.code.clone(),
            result: end
                .value
                .as_ref()
                .map_or_else(|| ShownResult::none(None), ShownResult::of),
            artifact: component.digest.to_string(),
            parameters,
            started_at: story.started_at,
            ended_at: story.ended_at,
            tasks: story.tasks.into_values().map(ShownTask::from).collect(),
            cards: story.cards,
        })?;
    } else {
        story
            .cards
            .iter()
            .for_each(|card| call.output.note(card_text(card)));
        if let Some(value) = &end.value {
            call.output.bytes(&value.bytes)?;
        }
    }
    verdict(flow, state, &end.moved.message, end.moved.code.as_deref()).map_err(|failure| {
        match remedies.is_empty() {
            true => failure,
            false => failure.or_hint(remedies.join("; ")),
        }
    })
}

/// Returns what would allow what the tasks lacked whose failure is the one named; other tasks may
/// have been denied something too, and gone on without it.
fn remedies<'a>(tasks: impl Iterator<Item = &'a TaskRun>, named: &str) -> Vec<String> {
    let is_named = |task: &&TaskRun| {
        task.state.is_failed() && !task.message.is_empty() && named.contains(&task.message)
    };
    let mut remedies = Vec::new();
    for denial in tasks.filter(is_named).flat_map(|task| &task.denials) {
        let remedy = denial_parts(denial).1.to_owned();
        if !remedy.is_empty() && !remedies.contains(&remedy) {
            remedies.push(remedy);
        }
    }
    remedies
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    #[test]
    fn a_hint_belongs_to_the_failure_that_is_named() {
        let task = |name: &str, state, message: &str, denial: &str| {
            let key = TaskRunKey {
                task: name.to_owned(),
                map_index: None,
            };
            TaskRun {
                state,
                message: message.to_owned(),
                denials: vec![denial.to_owned()],
                ..new_task(&key)
            }
        };
        let tasks = [
            task("a", State::Success, "", "a is denied; allow a"),
            task("b", State::Failed, "b is denied", "b is denied; allow b"),
            task("c", State::Failed, "c is denied", "c is denied; allow c"),
            task("d", State::TriggerFailed, "", "d is denied; allow d"),
        ];
        let named = |message: &str| remedies(tasks.iter(), message);
        assert_eq!(named("task `c` failed: c is denied"), ["allow c"]);
        assert_eq!(named("task `e` failed: gone"), [""; 0]);
    }

    #[test]
    fn the_first_interrupt_cancels_and_the_second_leaves_at_once() {
        let (order, orders) = watch::channel(Order::Go);
        let mut count = 0;
        let first = async || {
            count += 1;
            if count > 1 {
                std::future::pending::<()>().await;
            }
        };
        assert_eq!(twice_interrupted(first, &order).now_or_never(), None);
        assert!(matches!(*orders.borrow(), Order::Cancel));
        assert_eq!(
            twice_interrupted(async || {}, &order).now_or_never(),
            Some(())
        );
        assert!(matches!(*orders.borrow(), Order::Abandon));
    }
}
