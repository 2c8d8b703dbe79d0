//! `waft flow-run cancel`: stops a run, tasks of a run, or every run of a flow.

use super::mark::done;
use crate::cli::Call;
use crate::cli::failure::Done;
use crate::client::Client;
use crate::model::id::FlowRunId;
use crate::model::run::TaskRunKey;
use crate::model::state::State;
use crate::wire::NewMark;

/// Stops a run, tasks of it, or every run of a flow.
#[derive(Debug, clap::Args)]
#[group(skip)]
#[command(after_help = "\
With --task the run goes on with the rest: a task at work is stopped, one that waits does not
begin, and what hangs on it sees that it was Cancelled. Of a mapped task, named without an
element, all are cancelled that are not over. While nobody has the run, it is kept for whoever
takes it next.

With --flow, runs that its schedule has made for later stay: waft flow pause lets it rest.

Examples:
  waft flow-run cancel 01hf…
  waft flow-run cancel 01hf… --task load[3] --task publish --reason \"the mirror is away\"
  waft flow-run cancel --flow demo/etl --yes")]
pub(super) struct Args {
    /// The run's id.
    #[arg(value_name = "ID", required_unless_present = "flow")]
    id: Option<FlowRunId>,
    /// Stops only this task, or this element of a mapped one. Repeatable.
    #[arg(long, value_name = "TASK", conflicts_with = "flow")]
    task: Vec<TaskRunKey>,
    /// Why these tasks.
    #[arg(
        long,
        value_name = "TEXT",
        default_value = "",
        hide_default_value = true,
        requires = "task"
    )]
    reason: String,
    /// Stops every run of this flow that is not over.
    #[arg(long, value_name = "FLOW", conflicts_with = "id")]
    flow: Option<String>,
    /// Answers the question beforehand.
    #[arg(long)]
    yes: bool,
}

pub(super) async fn run(client: &Client, args: Args, call: &Call) -> Done {
    let Some(id) = args.id else {
        let flow = args.flow.unwrap_or_default();
        return cancel_all(client, &flow, args.yes, call).await;
    };
    if !args.task.is_empty() {
        let mark = NewMark {
            task_runs: args.task,
            state: State::Cancelled,
            output: None,
            reason: args.reason,
        };
        return done(client, id, &mark, call).await;
    }
    let run = client.cancel(id).await?;
    if call.output.is_json() {
        return call.output.json(&run);
    }
    call.output.note(format!("the run is {}", run.state));
    Ok(())
}

async fn cancel_all(client: &Client, flow: &str, is_yes: bool, call: &Call) -> Done {
    let found = client.flow(flow).await?;
    let name = format!("{}/{}", found.project, found.name);
    let question = format!("stop every run of `{name}` that is not over?");
    call.output.ask(&question, is_yes, "nothing was stopped")?;
    let cancelled = client.cancel_all(flow).await?;
    if call.output.is_json() {
        return call.output.json(&cancelled);
    }
    let runs = match cancelled.count {
        1 => "1 run".to_owned(),
        count => format!("{count} runs"),
    };
    call.output.note(format!("stopped {runs} of `{name}`"));
    Ok(())
}
