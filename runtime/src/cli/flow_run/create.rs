//! `waft flow-run create`: makes a run, and watches it if that is wanted.

use jiff::Timestamp;

use crate::cli::argument::{instant, label, version};
use crate::cli::failure::Done;
use crate::cli::parameters::Given;
use crate::cli::{Call, flow, watch};
use crate::client::Client;
use crate::config::Millis;
use crate::model::label::Labels;
use crate::wire::NewFlowRun;

/// Makes a run of a flow; prints its id.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  waft flow-run create demo/my-flow --param name=Ada
  waft flow-run create my-flow --params run.json --watch --logs
  waft flow-run create my-flow --at 2030-01-01T06:00:00Z --label gpu")]
pub(super) struct Args {
    /// The flow: `project/flow`, its name where unique, or its id.
    flow: String,
    /// The project that the name is looked up in.
    #[arg(long, value_name = "NAME")]
    project: Option<String>,
    /// The number of the version that it is of; the current one unless given.
    #[arg(long, value_name = "N", value_parser = version)]
    version: Option<u32>,
    #[command(flatten)]
    given: Given,
    /// When it is due, in RFC 3339 with a zone; now unless given.
    #[arg(long, value_name = "INSTANT", value_parser = instant)]
    at: Option<Timestamp>,
    /// A label that the agent must offer, beside those of the flow. Repeatable.
    #[arg(long, value_parser = label)]
    label: Vec<String>,
    /// Higher goes first, −100 to 100.
    #[arg(long, value_name = "N", default_value_t = 0, allow_negative_numbers = true,
          value_parser = clap::value_parser!(i32).range(-100..=100))]
    priority: i32,
    /// A repeat with the same key makes no second run, and answers with the first.
    #[arg(long, value_name = "KEY")]
    idempotency_key: Option<String>,
    /// The time the run may take, such as `10m`; 24 hours unless given.
    #[arg(long, value_name = "TIME")]
    timeout: Option<Millis>,
    /// Watches until it is over, prints its result, and ends with exit code 3 if it did not succeed.
    #[arg(long)]
    watch: bool,
    /// Shows its log lines, those for debugging with --verbose; watches too.
    #[arg(long)]
    logs: bool,
}

pub(super) async fn run(client: &Client, args: Args, call: &Call) -> Done {
    let flow_name = match args.project {
        Some(project) => format!("{project}/{}", args.flow),
        None => args.flow,
    };
    let known = match args.given.needs_schema() {
        true => {
            flow::version_of(client, &flow_name, args.version)
                .await?
                .definition
                .parameters
        }
        false => Vec::new(),
    };
    let new = NewFlowRun {
        flow: flow_name,
        version: args.version,
        parameters: args.given.read(&known)?,
        scheduled_at: args.at,
        labels: Labels::from_iter(args.label),
        priority: args.priority,
        idempotency_key: args.idempotency_key,
        timeout_ms: args.timeout.map(|timeout| timeout.0),
    };
    let run = client.create_flow_run(&new).await?;
    if args.watch || args.logs {
        call.output.note(format!("flow run {}", run.id));
        return watch::follow(client, run.id, args.logs, call).await;
    }
    match call.output.is_json() {
        true => call.output.json(&run),
        false => call.output.line(run.id),
    }
}
