//! The live tree of tasks: what a person sees while a run goes on.
//!
//! On a terminal each task at work has a line that moves; elsewhere there is a line when a task is
//! over or tries again. It is told by `run.rs` (from the runner) and by `watch.rs` (from a server) in
//! the same way, and knows neither.

use std::collections::BTreeMap;

use indicatif::{ProgressBar, ProgressStyle};

use super::output::Output;
use super::words;
use crate::model::run::{Level, LogLine, TaskRunKey};
use crate::model::state::State;

/// Lines that move at one time; a flow may have thousands of tasks at work.
const LINES_MAX: usize = 16;

/// What is known of the tasks of one run, and how it is shown.
pub(crate) struct Tree {
    output: Output,
    tasks: BTreeMap<String, Task>,
    least: Option<Level>,
}

/// Where a task run stands, as far as the tree shows it.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    /// Which one.
    pub(crate) key: TaskRunKey,
    /// Where it stands.
    pub(crate) state: State,
    /// Why.
    pub(crate) message: String,
    /// Attempts started so far.
    pub(crate) attempts: u32,
    /// What its attempts took so far.
    pub(crate) wall_ms: u64,
}

#[derive(Default)]
struct Task {
    state: Option<State>,
    elements: BTreeMap<u32, State>,
    line: Option<ProgressBar>,
}

impl Tree {
    /// Shows nothing until it is told something; `least` is the level from which log lines count.
    pub(crate) fn new(output: &Output, least: Option<Level>) -> Self {
        Self {
            output: output.clone(),
            tasks: BTreeMap::new(),
            least,
        }
    }

    /// Takes in where a task run stands now.
    pub(crate) fn see(&mut self, seen: &Seen) {
        let lines = self
            .tasks
            .values()
            .filter(|task| task.line.is_some())
            .count();
        let task = self.tasks.entry(seen.key.task.clone()).or_default();
        let before = match seen.key.map_index {
            None => task.state.replace(seen.state),
            Some(index) => task.elements.insert(index, seen.state),
        };
        if before == Some(seen.state) && seen.state != State::Retrying {
            return;
        }
        if let Some(text) = lasting(seen, task) {
            self.output.note(text);
        }
        if !self.output.is_terminal() {
            return;
        }
        let is_at_work = !task.state.is_some_and(State::is_over);
        match (&task.line, is_at_work) {
            (None, true) if lines < LINES_MAX => {
                task.line = Some(self.output.live().add(moving_line()))
            }
            (Some(line), false) => {
                line.finish_and_clear();
                task.line = None;
            }
            _ => {}
        }
        if let Some(line) = &task.line {
            line.set_message(moving(&seen.key.task, task, seen.state));
        }
    }

    /// Shows what a task said, if that is wanted.
    pub(crate) fn say(&self, line: &LogLine) {
        if self.least.is_some_and(|least| line.level >= least) {
            self.output.note(log_line(line));
        }
    }

    /// Takes away what moves.
    pub(crate) fn end(&mut self) {
        for task in self.tasks.values_mut() {
            if let Some(line) = task.line.take() {
                line.finish_and_clear();
            }
        }
    }
}

/// Writes a log line for people.
pub(crate) fn log_line(line: &LogLine) -> String {
    let level = match line.level {
        Level::Debug => "debug: ",
        Level::Info => "",
        Level::Warning => "warning: ",
        Level::Error => "error: ",
    };
    match &line.task_run {
        Some(key) => format!("{key} | {level}{}", line.text),
        None => format!("| {level}{}", line.text),
    }
}

fn moving_line() -> ProgressBar {
    let line = ProgressBar::new_spinner();
    if let Ok(style) = ProgressStyle::with_template("{spinner} {wide_msg} {elapsed}") {
        line.set_style(style);
    }
    line.enable_steady_tick(std::time::Duration::from_millis(120));
    line
}

fn moving(name: &str, task: &Task, state: State) -> String {
    if task.elements.is_empty() {
        return format!("{name}  {state}");
    }
    let over = task
        .elements
        .values()
        .filter(|state| state.is_over())
        .count();
    let failed = task
        .elements
        .values()
        .filter(|state| state.is_failed())
        .count();
    let failed = if failed > 0 {
        format!(", {failed} failed")
    } else {
        String::new()
    };
    format!(
        "{name}  {over} of {} begun are over{failed}",
        task.elements.len()
    )
}

/// Returns the line that stays, for what is worth one: ends, failures and retries.
fn lasting(seen: &Seen, task: &Task) -> Option<String> {
    let is_element = seen.key.map_index.is_some();
    let is_worth = match seen.state {
        State::Retrying | State::Paused => true,
        state if is_element => state.is_failed(),
        state => state.is_over(),
    };
    if !is_worth {
        return None;
    }
    let mut text = format!("{:<13} {}", seen.state.to_string(), seen.key);
    if seen.state == State::Mapped {
        let failed = task
            .elements
            .values()
            .filter(|state| state.is_failed())
            .count();
        text.push_str(&format!("  {} elements", task.elements.len()));
        if failed > 0 {
            text.push_str(&format!(", {failed} failed"));
        }
    } else if seen.attempts > 0 {
        text.push_str(&format!("  {}", words::duration(seen.wall_ms)));
    }
    if seen.attempts > 1 || seen.state == State::Retrying {
        text.push_str(&format!("  attempt {}", seen.attempts));
    }
    if !seen.message.is_empty() {
        text.push_str(&format!("  {}", seen.message));
    }
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(task: &str, map_index: Option<u32>, state: State, attempts: u32) -> Seen {
        Seen {
            key: TaskRunKey {
                task: task.to_owned(),
                map_index,
            },
            state,
            message: String::new(),
            attempts,
            wall_ms: 12,
        }
    }

    #[test]
    fn ends_failures_and_retries_stay() {
        let none = Task::default();
        let show = |seen: Seen| lasting(&seen, &none);
        assert_eq!(
            show(seen("a", None, State::Success, 1)).unwrap(),
            "Success       a  12 ms"
        );
        assert_eq!(
            show(seen("a", None, State::Skipped, 0)).unwrap(),
            "Skipped       a"
        );
        assert_eq!(
            show(seen("a", None, State::Retrying, 1)).unwrap(),
            "Retrying      a  12 ms  attempt 1"
        );
        assert_eq!(
            show(seen("a", Some(2), State::Failed, 2)).unwrap(),
            "Failed        a[2]  12 ms  attempt 2"
        );
        assert_eq!(show(seen("a", Some(2), State::Success, 1)), None);
        assert_eq!(show(seen("a", None, State::Running, 1)), None);
    }

    #[test]
    fn a_mapped_task_is_counted() {
        let mut task = Task::default();
        for (index, state) in [(0, State::Success), (1, State::Failed), (2, State::Running)] {
            task.elements.insert(index, state);
        }
        assert_eq!(
            moving("a", &task, State::Running),
            "a  2 of 3 begun are over, 1 failed"
        );
        let line = lasting(&seen("a", None, State::Mapped, 0), &task).unwrap();
        assert_eq!(line, "Mapped        a  3 elements, 1 failed");
    }
}
