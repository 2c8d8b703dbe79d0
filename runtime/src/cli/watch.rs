//! Following a run on a server until it is over.

use std::collections::HashMap;
use std::time::Duration;

use super::Call;
use super::failure::{Done, Failure, Kind};
use super::outage::Outage;
use super::reach::pages;
use super::receipt::{ShownResult, ShownTask, card_text, resolve};
use super::tree::{Seen, Tree, log_line};
use super::why::{Here, Told};
use crate::client::Client;
use crate::clock::Monotonic;
use crate::model::id::FlowRunId;
use crate::model::run::{Card, TaskRun, TaskRunKey};
use crate::model::state::State;
use crate::wire::{FlowRun, ListQuery, LogQuery, WatchQuery};

/// Between two looks at a run that moves all the time.
const PAUSE: Duration = Duration::from_millis(150);
/// Between two readings of all task runs, of which there may be thousands.
const PAUSE_BETWEEN_TASKS: Duration = Duration::from_millis(500);
/// How long one question to the server waits for news.
const WAIT_SECONDS: u32 = 25;
/// How long a run waits for an agent before it is said why.
const WAIT_SECONDS_UNTAKEN: u32 = 3;
/// How often it is looked whether that has changed.
const WAIT_SECONDS_TOLD: u32 = 10;

/// Shows a run live until it is over, prints what came out, and fails if it did not succeed.
///
/// A server that goes away in between is waited for: the run goes on without it.
///
/// # Errors
///
/// Exit code 3 if the run did not succeed. An interrupt ends the watching, not the run.
pub(super) async fn follow(client: &Client, id: FlowRunId, shows_logs: bool, call: &Call) -> Done {
    let outage = Outage::new(&call.output, &call.clock);
    let least = call.least_level();
    let watching = async {
        let logs = async {
            match shows_logs {
                true => {
                    follow_logs(client, id, &outage, call, |line| {
                        if line.level >= least {
                            call.output.note(log_line(line));
                        }
                        Ok(())
                    })
                    .await
                }
                false => Ok(()),
            }
        };
        tokio::try_join!(follow_tasks(client, id, &outage, call), logs)
    };
    let ending = async {
        let (run, ()) = watching.await?;
        let cards = outage.outlast(async || client.cards(run.id).await).await?;
        let tasks = match call.output.is_json() {
            true => outage.outlast(async || task_runs(client, id).await).await?,
            false => Vec::new(),
        };
        let remedy = match run.state.is_failed() {
            true => {
                outage
                    .outlast(async || client.explain(run.id).await)
                    .await?
                    .hints
            }
            false => Vec::new(),
        };
        Ok::<_, Failure>((run, tasks, cards.items, remedy))
    };
    let (run, tasks, cards, hints) = tokio::select! {
        result = ending => result?,
        _ = tokio::signal::ctrl_c() => {
            return Err(Failure::could("stopped watching; the run goes on")
                .or_hint(format!("waft flow-run cancel {id}")));
        }
    };
    let ended = print_end(&run, tasks, cards, call).await;
    ended.map_err(|failure| match hints.as_slice() {
        // What would allow what was denied; the last one says where to read on.
        [remedies @ .., _] if !remedies.is_empty() => failure.or_hint(remedies.join("; ")),
        _ => failure.or_hint(format!("waft flow-run show {id}")),
    })
}

async fn follow_tasks(
    client: &Client,
    id: FlowRunId,
    outage: &Outage<'_>,
    call: &Call,
) -> Done<FlowRun> {
    let mut tree = Tree::new(&call.output, None);
    let mut known: HashMap<TaskRunKey, (State, u32)> = HashMap::new();
    let mut last: Option<FlowRun> = None;
    let mut reading = Reading::default();
    let (mut told, here) = (Told::default(), Here::of(call));
    loop {
        let is_waiting = last.is_some() && !reading.is_behind;
        let is_untaken = last
            .as_ref()
            .is_some_and(|run| run.state == State::Scheduled);
        let query = WatchQuery {
            after: last.as_ref().map(|run| run.transition),
            wait_seconds: match is_waiting {
                true if is_untaken && told.is_something() => WAIT_SECONDS_TOLD,
                true if is_untaken => WAIT_SECONDS_UNTAKEN,
                true => WAIT_SECONDS,
                false => 0,
            },
        };
        let run = outage
            .outlast(async || client.watch_flow_run(id, &query).await)
            .await?;
        let has_moved = last
            .as_ref()
            .is_none_or(|last| last.transition != run.transition);
        if is_waiting && !has_moved && run.state == State::Scheduled {
            let ask = async || client.explain(id).await;
            if let Some(news) = told.news(&outage.outlast(ask).await?, &here) {
                call.output.note(news);
            }
        }
        if reading.is_due(has_moved, run.state.is_over(), call.clock.monotonic()) {
            let mut tasks = outage.outlast(async || task_runs(client, id).await).await?;
            // A mapped task is counted when it is over, so its elements come first.
            tasks.sort_by_key(|task| task.map_index.is_none());
            for task in tasks {
                let key = TaskRunKey {
                    task: task.task.clone(),
                    map_index: task.map_index,
                };
                let now = (task.state, task.attempts);
                if known.insert(key.clone(), now) != Some(now) {
                    tree.see(&seen(key, task));
                }
            }
        }
        if last.as_ref().is_none_or(|last| last.state != run.state) {
            note_state(&run, call);
        }
        if run.state.is_over() {
            tree.end();
            return Ok(run);
        }
        last = Some(run);
        call.clock.sleep(PAUSE).await;
    }
}

/// When the task runs were read, and whether the run has moved since.
#[derive(Default)]
struct Reading {
    last: Option<Monotonic>,
    is_behind: bool,
}

impl Reading {
    /// Tells whether to read them now, and then counts it as done: not more often than twice a
    /// second while the run moves all the time, but never left out at the end.
    fn is_due(&mut self, has_moved: bool, is_over: bool, now: Monotonic) -> bool {
        self.is_behind |= has_moved;
        let is_early = self
            .last
            .is_some_and(|last| now.since(last) < PAUSE_BETWEEN_TASKS);
        if !self.is_behind || (is_early && !is_over) {
            return false;
        }
        self.last = Some(now);
        self.is_behind = false;
        true
    }
}

fn seen(key: TaskRunKey, task: TaskRun) -> Seen {
    Seen {
        key,
        state: task.state,
        message: task.message,
        attempts: task.attempts,
        wall_ms: task.usage.wall_ms,
    }
}

fn note_state(run: &FlowRun, call: &Call) {
    let why = match run.message.is_empty() {
        true => String::new(),
        false => format!("  {}", run.message),
    };
    call.output
        .note(format!("{:<13} {}{why}", run.state.to_string(), run.flow));
    if run.state == State::Paused {
        let hint = format!("hint: waft flow-run approve {}", run.id);
        call.output.note(hint);
    }
}

/// Lists all task runs of a run.
pub(super) async fn task_runs(client: &Client, id: FlowRunId) -> Done<Vec<TaskRun>> {
    let list = async |query: &ListQuery| client.task_runs(id, query).await;
    Ok(pages(ListQuery::default(), usize::MAX, list).await?.0)
}

/// Hands over each log line in order until the run is over.
pub(super) async fn follow_logs(
    client: &Client,
    id: FlowRunId,
    outage: &Outage<'_>,
    call: &Call,
    mut show: impl FnMut(&crate::model::run::LogLine) -> Done,
) -> Done {
    let mut query = LogQuery {
        after: 0,
        limit: Some(1_000),
        wait_seconds: WAIT_SECONDS,
    };
    loop {
        let page = outage
            .outlast(async || client.logs(id, &query).await)
            .await?;
        for line in &page.lines {
            show(&line.line)?;
            query.after = line.number;
        }
        if page.is_end {
            return Ok(());
        }
        if page.lines.is_empty() {
            call.clock.sleep(PAUSE).await;
        }
    }
}

/// Makes the JSON object of a run: what the API says, its tasks, its result, its cards.
pub(super) async fn as_json(
    run: &FlowRun,
    tasks: Vec<ShownTask>,
    cards: Vec<Card>,
    call: &Call,
) -> Done<impl serde::Serialize + use<>> {
    #[derive(serde::Serialize)]
    struct Shown {
        #[serde(flatten)]
        run: serde_json::Map<String, serde_json::Value>,
        result_reference: Option<serde_json::Value>,
        #[serde(flatten)]
        result: ShownResult,
        tasks: Vec<ShownTask>,
        cards: Vec<Card>,
    }
    let result = match &run.result {
        None => ShownResult::none(None),
        Some(reference) => match resolve(reference, run, call).await {
            Ok(value) => ShownResult::of(&value),
            Err(why) => ShownResult::none(Some(why)),
        },
    };
    let serde_json::Value::Object(mut fields) = serde_json::to_value(run)? else {
        return Err(Failure::could("a flow run is an object").of(Kind::Bug));
    };
    let result_reference = fields
        .remove("result")
        .filter(|reference| !reference.is_null());
    Ok(Shown {
        run: fields,
        result_reference,
        result,
        tasks,
        cards,
    })
}

async fn print_end(run: &FlowRun, tasks: Vec<TaskRun>, cards: Vec<Card>, call: &Call) -> Done {
    if call.output.is_json() {
        let tasks = tasks.into_iter().map(ShownTask::from);
        call.output
            .json(&as_json(run, tasks.collect(), cards, call).await?)?;
    } else {
        cards
            .iter()
            .for_each(|card| call.output.note(card_text(card)));
        let result = match &run.result {
            Some(reference) => Some(resolve(reference, run, call).await),
            None => None,
        };
        match result {
            Some(Ok(value)) => call.output.bytes(&value.bytes)?,
            Some(Err(why)) => call
                .output
                .note(format!("the result is out of reach: {why}")),
            None => {}
        }
    }
    verdict(&run.flow, run.state, &run.message, run.code.as_deref())
}

/// Ends a command well or with exit code 3, by how its run ended.
pub(super) fn verdict(flow: &str, state: State, message: &str, code: Option<&str>) -> Done {
    if state.is_successful() {
        return Ok(());
    }
    let ended = match state {
        State::Failed => "failed".to_owned(),
        State::Crashed => "crashed".to_owned(),
        State::TimedOut => "took longer than it may".to_owned(),
        State::Cancelled => "was cancelled".to_owned(),
        state => format!("ended as {state}"),
    };
    let mut what = format!("flow `{flow}` {ended}");
    if !message.is_empty() && !ended.contains(message) {
        what = format!("{what}: {message}");
    }
    if let Some(code) = code {
        what = format!("{what} ({code})");
    }
    Err(Failure::could(what).of(Kind::Run))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn task_runs_are_read_twice_a_second_and_at_the_end() {
        let (clock, hand) = crate::clock::Clock::test(jiff::Timestamp::UNIX_EPOCH);
        let mut reading = Reading::default();
        let mut is_due =
            |has_moved: bool, is_over: bool| reading.is_due(has_moved, is_over, clock.monotonic());
        assert!(is_due(true, false), "the first time");
        assert!(!is_due(true, false), "at once again");
        hand.pass(PAUSE_BETWEEN_TASKS);
        assert!(is_due(false, false), "what was put off");
        hand.pass(PAUSE_BETWEEN_TASKS);
        assert!(!is_due(false, false), "nothing has moved");
        assert!(is_due(true, false));
        assert!(is_due(true, true), "the end");
    }

    #[test]
    fn only_success_ends_well() {
        assert!(verdict("f", State::Success, "", None).is_ok());
        assert!(verdict("f", State::Skipped, "", None).is_ok());
        let failure = verdict("f", State::Failed, "task `a` failed", Some("trap.oob")).unwrap_err();
        assert_eq!(
            failure.to_string(),
            "error: flow `f` failed: task `a` failed (trap.oob)"
        );
        assert_eq!(failure.code(), 3);
        assert_eq!(
            verdict("f", State::Cancelled, "", None).unwrap_err().code(),
            3
        );
    }
}
