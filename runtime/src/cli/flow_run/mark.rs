//! `waft flow-run mark`: ends a run, or tasks of it, by hand.

use crate::cli::Call;
use crate::cli::failure::Done;
use crate::client::Client;
use crate::model::id::FlowRunId;
use crate::model::run::{TaskRunKey, Verdict};
use crate::model::state::State;
use crate::wire::{NewMark, TaskMark};

/// Says how a run ends, or a task of it, whatever it does.
#[derive(Debug, clap::Args)]
#[group(skip)]
#[command(after_help = "\
STATE is Success, Skipped, Failed or Cancelled; history and task say who marked it and why.

A task that is marked is stopped, or does not begin, and the run goes on by its graph. With
Success --output is what it has returned. A retry of the run keeps it as finished. Of a mapped
task, named without an element, all end so that are not over; before it has its elements it
ends as a whole, and its output is the array of theirs. While nobody has the run, it is kept for
whoever takes it next. The output passes the server, as a parameter does: it is not for secrets.

Without --task the run itself is over at once. Its agent is told to stop, and nothing that it
still reports counts.

What is over stays as it is: waft flow-run retry ID --mark TASK=STATE makes a new run.

Examples:
  waft flow-run mark 01hf… Success --task load --reason \"loaded by hand\"
  waft flow-run mark 01hf… Success --task count --output 42 --reason \"counted by hand\"
  waft flow-run mark 01hf… Failed --reason \"the numbers are wrong\"")]
pub(super) struct Args {
    /// The run's id.
    #[arg(value_name = "ID")]
    id: FlowRunId,
    /// How it ends.
    #[arg(value_name = "STATE", value_parser = state)]
    state: State,
    /// Only this task, or this element of a mapped one. Repeatable.
    #[arg(long, value_name = "TASK")]
    task: Vec<TaskRunKey>,
    /// With Success of a task: its output, as JSON of at most 64 KiB; `null` unless given.
    #[arg(long, value_name = "JSON", requires = "task")]
    output: Option<String>,
    /// Why.
    #[arg(long, value_name = "TEXT")]
    reason: String,
}

pub(super) async fn run(client: &Client, args: Args, call: &Call) -> Done {
    let mark = NewMark {
        task_runs: args.task,
        state: args.state,
        output: args.output,
        reason: args.reason,
    };
    done(client, args.id, &mark, call).await
}

/// Marks something, and says what has become of it.
pub(super) async fn done(client: &Client, id: FlowRunId, mark: &NewMark, call: &Call) -> Done {
    let run = client.mark(id, mark).await?;
    if call.output.is_json() {
        return call.output.json(&run);
    }
    let named: Vec<_> = mark
        .task_runs
        .iter()
        .map(|key| format!("`{key}`"))
        .collect();
    call.output.note(match named.as_slice() {
        [] => format!("the run is {}", run.state),
        named => format!(
            "{} will be {}; the run is {}",
            named.join(", "),
            mark.state,
            run.state
        ),
    });
    Ok(())
}

/// Reads a state that something can be marked as.
fn state(text: &str) -> Result<State, String> {
    let marks = Verdict::MARKS.iter();
    let mut known = marks
        .clone()
        .filter(|state| state.word().eq_ignore_ascii_case(text));
    known.next().copied().ok_or_else(|| {
        let known: Vec<_> = marks.map(|state| state.word()).collect();
        format!("`{text}` is none of {}", known.join(", "))
    })
}

/// Reads how a task of a new run ends: `load=Skipped`, or `count[3]=Success:42`.
pub(super) fn task_mark(text: &str) -> Result<TaskMark, String> {
    let wrong = || {
        format!(
            "`{text}` is no TASK=STATE, such as `load=Skipped`, `load[3]=Success` or \
             `count=Success:42`"
        )
    };
    let (task, rest) = text.split_once('=').ok_or_else(wrong)?;
    let (word, output) = match rest.split_once(':') {
        Some((word, output)) => (word, Some(output.to_owned())),
        None => (rest, None),
    };
    Ok(TaskMark {
        task_run: task.parse()?,
        state: state(word)?,
        output,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_is_a_task_a_state_and_an_output() {
        let read = task_mark;
        let mark = read("load[3]=success:{\"a\":[1,2]}").unwrap();
        assert_eq!(mark.task_run.to_string(), "load[3]");
        assert_eq!(mark.state, State::Success);
        assert_eq!(mark.output.as_deref(), Some("{\"a\":[1,2]}"));
        assert_eq!(read("load=Skipped").unwrap().output, None);
        for text in [
            "load",
            "load=",
            "load=Done",
            "load=Cached",
            "[1]=Success",
            "=Success",
        ] {
            assert!(read(text).is_err(), "{text}");
        }
    }
}
