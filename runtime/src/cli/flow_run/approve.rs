//! `waft flow-run approve`: what a person decides about tasks that wait for one.

use crate::cli::Call;
use crate::cli::failure::Done;
use crate::client::Client;
use crate::model::id::FlowRunId;
use crate::model::run::TaskRunKey;
use crate::wire::NewDecision;

/// Lets the tasks of a run go on that wait for a person.
#[derive(Debug, clap::Args)]
#[group(skip)]
#[command(after_help = "\
A task waits for a person by the signal `pause` or by its trigger `manual_only`. Once it is
approved it is attempted again, and finds in `run::approval()` who approved and why; a task that
is declined is Failed. The history of the run shows both. While a run is Paused its timeout does
not count.

Examples:
  waft flow-run approve 01hf… --reason \"looks good\"
  waft flow-run approve 01hf… --task publish
  waft flow-run approve 01hf… --task publish[3] --decline --reason \"wrong numbers\"")]
pub(super) struct Args {
    /// The run's id.
    #[arg(value_name = "ID")]
    id: FlowRunId,
    /// Only this task, or this element of a mapped one; all that wait unless given.
    #[arg(long, value_name = "TASK")]
    task: Option<TaskRunKey>,
    /// Lets them fail instead.
    #[arg(long)]
    decline: bool,
    /// Why.
    #[arg(
        long,
        value_name = "TEXT",
        default_value = "",
        hide_default_value = true
    )]
    reason: String,
}

pub(super) async fn run(client: &Client, args: Args, call: &Call) -> Done {
    let decision = NewDecision {
        task_run: args.task,
        is_declined: args.decline,
        reason: args.reason,
    };
    let run = client.decide(args.id, &decision).await?;
    if call.output.is_json() {
        return call.output.json(&run);
    }
    let verb = match decision.is_declined {
        true => "declined",
        false => "approved",
    };
    call.output
        .note(format!("{verb}; the run is {}", run.state));
    Ok(())
}
