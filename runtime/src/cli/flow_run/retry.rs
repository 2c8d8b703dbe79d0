//! `waft flow-run retry`: a new run in the place of one that did not go well.

use super::mark::task_mark;
use crate::cli::failure::Done;
use crate::cli::{Call, watch};
use crate::client::Client;
use crate::model::id::FlowRunId;
use crate::wire::{NewRetry, TaskMark};

/// Makes a new run that does again what did not go well in one that is over.
#[derive(Debug, clap::Args)]
#[group(skip)]
#[command(after_help = "\
The new run has the same parameters, labels and priority. What went well is kept, with its
outputs: tasks, and elements of mapped tasks, unless one above them is done again. The old run
stays as it is.

What is marked ends at once in the new run, and what hangs on it goes on: with the output that
is given after a colon where the state is Success, else `null`.

Examples:
  waft flow-run retry 01hf… --watch
  waft flow-run retry 01hf… --mark load=Success --reason \"loaded by hand\"
  waft flow-run retry 01hf… --mark count=Success:42 --mark publish[3]=Skipped
  waft flow-run retry 01hf… --newest        after a mend: tasks of the same name are the same
  waft flow-run retry 01hf… --whole         does everything again")]
pub(super) struct Args {
    /// The run's id.
    #[arg(value_name = "ID")]
    id: FlowRunId,
    /// Does everything again, and not only what did not go well.
    #[arg(long)]
    whole: bool,
    /// Takes the flow's current version instead of the run's own.
    #[arg(long)]
    newest: bool,
    /// Ends a task of the new run at once, as Success, Skipped, Failed or Cancelled. Repeatable.
    #[arg(long, value_name = "TASK=STATE[:JSON]", value_parser = task_mark)]
    mark: Vec<TaskMark>,
    /// Why these are marked.
    #[arg(
        long,
        value_name = "TEXT",
        default_value = "",
        hide_default_value = true,
        requires = "mark"
    )]
    reason: String,
    /// Watches the new run until it is over; ends with exit code 3 if it did not succeed.
    #[arg(long)]
    watch: bool,
}

pub(super) async fn run(client: &Client, args: Args, call: &Call) -> Done {
    let retry = NewRetry {
        is_whole: args.whole,
        is_newest: args.newest,
        marks: args.mark,
        reason: args.reason,
    };
    let run = client.retry(args.id, &retry).await?;
    if args.watch {
        call.output.note(format!("flow run {}", run.id));
        return watch::follow(client, run.id, false, call).await;
    }
    match call.output.is_json() {
        true => call.output.json(&run),
        false => call.output.line(run.id),
    }
}
