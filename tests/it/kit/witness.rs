//! Who watches runs from outside, through the API alone, and can tell their story.

use std::fmt::Write as _;
use std::time::Duration;

use jiff::Timestamp;
use serde_json::Value as Json;

use waft::client::{Client, ClientError};
use waft::config::Access;
use waft::model::id::FlowRunId;
use waft::model::requirement::Offer;
use waft::model::run::{TaskRun, TaskRunKey};
use waft::model::state::State;
use waft::storage::{Results, Root};
use waft::wire::{
    FlowRun, ListQuery, LogQuery, NewFlowRun, NewSession, PROTOCOL, Transition, WatchQuery,
};

use super::judge::history_faults;
use super::wait::PATIENCE;
pub(crate) use super::wait::patient;

/// Makes runs and watches them.
pub(crate) struct Witness {
    pub(crate) client: Client,
}

impl Witness {
    /// Makes a run of a flow.
    pub(crate) async fn run(&self, flow: &str, parameters: Json) -> FlowRunId {
        let new = new_run(flow, parameters);
        self.client.create_flow_run(&new).await.unwrap().id
    }

    /// Waits until a run is somewhere.
    pub(crate) async fn until(
        &self,
        id: FlowRunId,
        what: &str,
        is: impl Fn(&FlowRun) -> bool,
    ) -> FlowRun {
        let waiting = async {
            let mut query = WatchQuery {
                after: None,
                wait_seconds: 30,
            };
            loop {
                let run = self.client.watch_flow_run(id, &query).await.unwrap();
                if is(&run) {
                    return run;
                }
                query.after = Some(run.transition);
            }
        };
        match tokio::time::timeout(PATIENCE, waiting).await {
            Ok(run) => run,
            Err(_) => panic!(
                "waited for {what} in vain; the story of the run:\n{}",
                self.story(id).await
            ),
        }
    }

    /// Waits until a run is in a state.
    pub(crate) async fn is(&self, id: FlowRunId, state: State) -> FlowRun {
        let what = format!("{state}");
        self.until(id, &what, |run| run.state == state).await
    }

    /// Waits until a run is over.
    pub(crate) async fn ends(&self, id: FlowRunId) -> FlowRun {
        self.until(id, "the end", |run| run.state.is_over()).await
    }

    /// Waits until a run is over and checks how.
    pub(crate) async fn ends_as(&self, id: FlowRunId, state: State) -> FlowRun {
        let run = self.ends(id).await;
        if run.state != state {
            panic!(
                "expected {state}; the story of the run:\n{}",
                self.story(id).await
            );
        }
        run
    }

    /// Waits until an agent of that name polls.
    pub(crate) async fn until_polling(&self, name: &str) {
        let polls = async {
            loop {
                let agents = self.client.list_agents(&full_page()).await.unwrap().items;
                if agents
                    .iter()
                    .any(|agent| agent.name == name && agent.is_polling)
                {
                    return;
                }
                // Nobody can watch agents.
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        patient(&format!("agent `{name}` to poll"), polls).await;
    }

    /// Waits until there is a run that is due at an instant.
    pub(crate) async fn due_at(&self, at: Timestamp) -> FlowRunId {
        let made = async {
            loop {
                let runs = self.runs().await;
                if let Some(run) = runs.iter().find(|run| run.scheduled_at == at) {
                    return run.id;
                }
                // Nobody can watch a run that is not there yet.
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        patient(&format!("a run that is due at {at}"), made).await
    }

    /// Waits until the server knows of so many task runs that went well.
    pub(crate) async fn until_successes(&self, id: FlowRunId, count: usize) {
        let known = async {
            let mut query = WatchQuery {
                after: None,
                wait_seconds: 30,
            };
            loop {
                // A task run that moves is a transition of its flow run too.
                let run = self.client.watch_flow_run(id, &query).await.unwrap();
                let tasks = self.task_runs(id).await;
                let good = tasks.iter().filter(|task| task.state == State::Success);
                if good.count() >= count {
                    return;
                }
                query.after = Some(run.transition);
            }
        };
        patient("task runs that went well", known).await;
    }

    /// Reads the result of a run where it is kept.
    pub(crate) fn result(&self, run: &FlowRun) -> Json {
        let reference = run.result.as_ref().expect("the run has a result");
        let access = Access::default();
        let (_, host) = Root::of_name(&reference.root).unwrap();
        let host = host.unwrap_or_default();
        let found = Results::look_up(reference, &host, &access);
        let handle = tokio::runtime::Handle::current();
        let value = tokio::task::block_in_place(|| handle.block_on(found)).unwrap();
        serde_json::from_slice(&value.bytes).unwrap()
    }

    /// Lists the task runs of a run.
    pub(crate) async fn task_runs(&self, id: FlowRunId) -> Vec<TaskRun> {
        let mut query = full_page();
        let mut all = Vec::new();
        loop {
            let page = self.client.task_runs(id, &query).await.unwrap();
            all.extend(page.items);
            query.cursor = page.next;
            if query.cursor.is_none() {
                return all;
            }
        }
    }

    /// Lists the task runs of a run, one line each: name, state, attempts.
    pub(crate) async fn tasks(&self, id: FlowRunId) -> String {
        let mut text = String::new();
        for task in self.task_runs(id).await {
            let key = TaskRunKey {
                task: task.task,
                map_index: task.map_index,
            };
            writeln!(text, "{key} {} {}", task.state, task.attempts).unwrap();
        }
        text
    }

    /// Lists what happened to a run and its task runs.
    pub(crate) async fn transitions(&self, id: FlowRunId) -> Vec<Transition> {
        let mut query = full_page();
        let mut all = Vec::new();
        loop {
            let page = self.client.history(id, &query).await.unwrap();
            all.extend(page.items);
            query.cursor = page.next;
            if query.cursor.is_none() {
                return all;
            }
        }
    }

    /// Tells what happened to a run itself: when, from its making, where it stood then, by whom.
    pub(crate) async fn history(&self, id: FlowRunId) -> String {
        let mut text = String::new();
        let steps = self.transitions(id).await;
        for step in steps.iter().filter(|step| step.task_run.is_none()) {
            let seconds = step.at.as_second() - steps[0].at.as_second();
            let (minutes, seconds) = (seconds / 60, seconds % 60);
            writeln!(
                text,
                "{minutes:02}:{seconds:02} {:<10} {}",
                step.state, step.by
            )
            .unwrap();
        }
        text
    }

    /// Returns the texts of a run's log.
    pub(crate) async fn log(&self, id: FlowRunId) -> Vec<String> {
        let query = LogQuery {
            limit: Some(1_000),
            ..LogQuery::default()
        };
        let page = self.client.logs(id, &query).await.unwrap();
        page.lines.into_iter().map(|line| line.line.text).collect()
    }

    /// Tells everything about a run, for whoever has to find out what went wrong.
    pub(crate) async fn story(&self, id: FlowRunId) -> String {
        let mut text = String::new();
        for step in self.transitions(id).await {
            let whose = step.task_run.map(|key| key.to_string()).unwrap_or_default();
            let event = step
                .event
                .map(|event| event.to_string())
                .unwrap_or_default();
            writeln!(
                text,
                "{:>3} {} {whose:<12} {event:<8} -> {:<10} {} (by {}, epoch {})",
                step.number, step.at, step.state, step.message, step.by, step.epoch
            )
            .unwrap();
        }
        for line in self.log(id).await {
            writeln!(text, "log: {line}").unwrap();
        }
        if let Ok(explained) = self.client.explain(id).await {
            writeln!(text, "explain: {}", explained.summary).unwrap();
        }
        text
    }

    /// Lists all runs.
    pub(crate) async fn runs(&self) -> Vec<FlowRun> {
        let mut all: Vec<FlowRun> = Vec::new();
        // What a clock made ahead is listed only where it is asked for.
        for state in [None, Some("Scheduled".to_owned())] {
            let mut query = full_page();
            query.state = state;
            loop {
                let page = self.client.list_flow_runs(&query).await.unwrap();
                let news = page.items.into_iter();
                let news: Vec<_> = news
                    .filter(|run| all.iter().all(|it| it.id != run.id))
                    .collect();
                all.extend(news);
                query.cursor = page.next;
                if query.cursor.is_none() {
                    break;
                }
            }
        }
        all
    }

    /// Lists what is wrong with the runs: one that is still at work, or a history that is not legal.
    pub(crate) async fn faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        for run in self.runs().await {
            if !run.state.is_over() && !matches!(run.state, State::Scheduled | State::Paused) {
                faults.push(format!(
                    "run {} of `{}` is still {}",
                    run.id, run.flow, run.state
                ));
            }
            let wrong = history_faults(&self.transitions(run.id).await, run.state);
            if !wrong.is_empty() {
                faults.extend(wrong);
                faults.push(self.story(run.id).await);
            }
        }
        faults
    }
}

/// Asks for a run of a flow.
pub(crate) fn new_run(flow: &str, parameters: Json) -> NewFlowRun {
    let Json::Object(parameters) = parameters else {
        panic!("parameters are an object");
    };
    NewFlowRun {
        flow: flow.to_owned(),
        parameters: parameters.into_iter().collect(),
        ..NewFlowRun::default()
    }
}

/// Says hello as an agent that has just begun.
pub(crate) fn hello(name: &str, offer: Offer) -> NewSession {
    NewSession {
        name: name.to_owned(),
        hostname: "host".to_owned(),
        version: "0.1.0".to_owned(),
        protocol: PROTOCOL,
        offer,
        slots: 4,
        replaces: None,
        is_start: true,
        rests: Vec::new(),
        home: None,
    }
}

/// Returns the code of a refusal.
pub(crate) fn code<T: std::fmt::Debug>(answer: Result<T, ClientError>) -> String {
    answer.unwrap_err().code().unwrap_or_default().to_owned()
}

fn full_page() -> ListQuery {
    ListQuery {
        limit: Some(200),
        ..ListQuery::default()
    }
}
