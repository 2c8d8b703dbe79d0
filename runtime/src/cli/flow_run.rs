//! `waft flow-run`: runs on a server. `create.rs` makes them, `approve.rs` lets them go on, `cancel.rs` and
//! `mark.rs` end them, `retry.rs` does them again; the rest looks at them.

mod approve;
mod cancel;
mod create;
mod mark;
mod retry;
mod show;

use clap::{Args, Subcommand};

use super::Call;
use super::argument::{count, state};
use super::failure::Done;
use super::outage::Outage;
use super::reach::{Reach, note_cut, pages};
use super::tree::log_line;
use super::{watch, words};
use crate::client::Client;
use crate::model::id::FlowRunId;
use crate::wire::{ListQuery, LogQuery};

/// Makes, watches, explains and stops runs.
#[derive(Debug, Args)]
pub(super) struct Noun {
    #[command(flatten)]
    reach: Reach,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Create(create::Args),
    /// Lists runs, the last due first.
    #[command(after_help = "\
Runs that a schedule has made ahead are left out until they are due: --state Scheduled
shows them.")]
    List(ListArgs),
    /// Shows a run: state, parameters, tasks, result, cards.
    #[command(after_help = "\
With --json: what the server says of the run, its tasks and cards, and the result where it can be
read from here; else `result` is null and `result_unavailable` says why.")]
    Show(Which),
    /// Prints the log of a run.
    #[command(
        after_help = "With --json each line is an object; with --follow too, one object a line."
    )]
    Logs {
        #[command(flatten)]
        which: Which,
        /// Goes on until the run is over.
        #[arg(short, long)]
        follow: bool,
    },
    /// Watches a run until it is over; ends with exit code 3 if it did not succeed.
    Watch {
        #[command(flatten)]
        which: Which,
        /// Shows the log lines too; those for debugging with --verbose.
        #[arg(long)]
        logs: bool,
    },
    #[command(visible_alias = "resume")]
    Approve(approve::Args),
    Retry(retry::Args),
    Cancel(cancel::Args),
    Mark(mark::Args),
    /// Says why a run is where it is, and what would help.
    Explain(Which),
    /// Prints every transition of a run and its tasks, oldest first.
    History(Which),
    /// Deletes a run that is not at work.
    Delete {
        #[command(flatten)]
        which: Which,
        /// Answers the question beforehand.
        #[arg(long)]
        yes: bool,
    },
}

/// Which run.
#[derive(Debug, Args)]
#[group(skip)]
struct Which {
    /// The run's id.
    #[arg(value_name = "ID")]
    id: FlowRunId,
}

/// Which runs.
#[derive(Debug, Args)]
#[group(skip)]
pub(super) struct ListArgs {
    /// Only of this flow.
    #[arg(long, value_name = "FLOW")]
    flow: Option<String>,
    /// Only of this project.
    #[arg(long, value_name = "NAME")]
    project: Option<String>,
    /// Only in this state, such as `Running`.
    #[arg(long, value_parser = state)]
    state: Option<String>,
    /// Only those that are late: due for half a minute, and taken by no agent.
    #[arg(long)]
    late: bool,
    /// How many at most.
    #[arg(long, default_value_t = 50, value_parser = count)]
    limit: usize,
}

impl ListArgs {
    /// Asks for the runs of one flow.
    pub(super) const fn of_flow(flow: String, state: Option<String>, limit: usize) -> Self {
        Self {
            flow: Some(flow),
            project: None,
            state,
            late: false,
            limit,
        }
    }
}

pub(super) fn run(noun: Noun, call: &Call) -> Done {
    let client = noun.reach.client(call)?;
    call.wait(async {
        match noun.verb {
            Verb::Create(args) => create::run(&client, args, call).await,
            Verb::List(args) => print_list(&client, args, call).await,
            Verb::Show(which) => show::run(&client, which.id, call).await,
            Verb::Logs { which, follow } => logs(&client, which.id, follow, call).await,
            Verb::Watch { which, logs } => watch::follow(&client, which.id, logs, call).await,
            Verb::Approve(args) => approve::run(&client, args, call).await,
            Verb::Retry(args) => retry::run(&client, args, call).await,
            Verb::Cancel(args) => cancel::run(&client, args, call).await,
            Verb::Mark(args) => mark::run(&client, args, call).await,
            Verb::Explain(which) => show::explain(&client, which.id, call).await,
            Verb::History(which) => show::history(&client, which.id, call).await,
            Verb::Delete { which, yes } => delete(&client, which.id, yes, call).await,
        }
    })
}

/// Prints a list of runs.
pub(super) async fn print_list(client: &Client, args: ListArgs, call: &Call) -> Done {
    let query = ListQuery {
        project: args.project,
        flow: args.flow,
        state: args.state,
        late: args.late,
        ..ListQuery::default()
    };
    let list = async |query: &ListQuery| client.list_flow_runs(query).await;
    let (runs, is_cut) = pages(query, args.limit, list).await?;
    if call.output.is_json() {
        return call.output.json(&runs);
    }
    let rows: Vec<_> = runs
        .into_iter()
        .map(|run| {
            let took = words::millis_between(run.started_at, run.ended_at);
            let message = match run.is_late {
                true => "late".to_owned(),
                false => run.message,
            };
            vec![
                run.id.to_string(),
                format!("{}/{}", run.project, run.flow),
                run.state.to_string(),
                words::instant(run.scheduled_at),
                took.map_or_else(|| "-".to_owned(), words::duration),
                message,
            ]
        })
        .collect();
    let columns = ["id", "flow", "state", "due", "time", "message"];
    call.output.table(&columns, &rows, "there are no runs")?;
    note_cut(call, is_cut);
    Ok(())
}

async fn logs(client: &Client, id: FlowRunId, follows: bool, call: &Call) -> Done {
    let out = &call.output;
    if follows {
        let outage = Outage::new(out, &call.clock);
        return watch::follow_logs(client, id, &outage, call, |line| match out.is_json() {
            true => out.json_line(line),
            false => out.line(log_line(line)),
        })
        .await;
    }
    let mut lines = Vec::new();
    let mut query = LogQuery {
        after: 0,
        limit: Some(1_000),
        wait_seconds: 0,
    };
    loop {
        let page = client.logs(id, &query).await?;
        let Some(last) = page.lines.last() else { break };
        query.after = last.number;
        match out.is_json() {
            true => lines.extend(page.lines),
            false => page
                .lines
                .iter()
                .try_for_each(|line| out.line(log_line(&line.line)))?,
        }
    }
    if out.is_json() {
        out.json(&lines)
    } else {
        Ok(())
    }
}

async fn delete(client: &Client, id: FlowRunId, is_yes: bool, call: &Call) -> Done {
    let run = client.flow_run(id).await?;
    let question = format!("delete the run {id} of `{}/{}`?", run.project, run.flow);
    call.output.ask(&question, is_yes, "nothing was deleted")?;
    client.delete_flow_run(id).await?;
    call.output.note(format!("deleted the run {id}"));
    Ok(())
}
