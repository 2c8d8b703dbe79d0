//! `waft flow`: what is registered.

use clap::{Args, Subcommand};

use super::Call;
use super::argument::{count, slots, state, version};
use super::failure::Done;
use super::flow_run::{ListArgs, print_list};
use super::reach::{Reach, note_cut, pages};
use super::words;
use crate::client::Client;
use crate::model::flow::Definition;
use crate::model::schedule::{CatchUp, Schedule};
use crate::wire::{Flow, FlowVersion, ListQuery, NewRollback, ResumeQuery, Slots};

/// How many runs to come are shown.
const NEXT_RUNS: usize = 10;

/// Lists and changes registered flows.
#[derive(Debug, Args)]
pub(super) struct Noun {
    #[command(flatten)]
    reach: Reach,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Lists the flows.
    List {
        /// Only of this project.
        #[arg(long, value_name = "NAME")]
        project: Option<String>,
        /// How many at most.
        #[arg(long, default_value_t = 200, value_parser = count)]
        limit: usize,
    },
    /// Shows a flow with its current version: parameters, tasks, grants, labels, schedule.
    Show {
        #[command(flatten)]
        which: Which,
        /// Another version, by its number.
        #[arg(long, value_name = "N", value_parser = version)]
        version: Option<u32>,
    },
    /// Lists the versions of a flow, newest first: what they are, when they were registered, and by whom.
    Versions {
        #[command(flatten)]
        which: Which,
        /// How many at most.
        #[arg(long, default_value_t = 50, value_parser = count)]
        limit: usize,
    },
    /// Makes an earlier version of a flow the current one.
    ///
    /// Its schedule is that of the version from then on. Runs that are there already stay what they are, but
    /// for those that the schedule has made and nobody has begun. The next registration is one more version.
    Rollback {
        #[command(flatten)]
        which: Which,
        /// Its number; the last one before the current one unless given.
        #[arg(long, value_name = "N", value_parser = version)]
        version: Option<u32>,
    },
    /// Lists the runs of a flow, newest first.
    Runs {
        #[command(flatten)]
        which: Which,
        /// Only in this state.
        #[arg(long, value_parser = state)]
        state: Option<String>,
        /// How many at most.
        #[arg(long, default_value_t = 50, value_parser = count)]
        limit: usize,
    },
    /// Lets the schedule of a flow rest.
    Pause(Which),
    /// Lets the schedule of a flow go on, and catches up what it missed.
    Resume {
        #[command(flatten)]
        which: Which,
        /// Which missed runs are made: all, last or skip (none); unless given, as the schedule says.
        #[arg(long, value_name = "POLICY")]
        catch_up: Option<CatchUp>,
    },
    /// Sets how many runs of a flow agents may have at one time.
    Set {
        #[command(flatten)]
        which: Which,
        /// How many, from 1, or `none` for as many as there are; further ones wait, Queued.
        #[arg(long, value_name = "N", value_parser = slots)]
        slots: Slots,
    },
    /// Archives a flow: it takes no runs until it is registered again.
    Archive(Which),
    /// Deletes a flow with its versions and runs.
    Delete {
        #[command(flatten)]
        which: Which,
        /// Answers the question beforehand.
        #[arg(long)]
        yes: bool,
    },
}

#[derive(Debug, Args)]
#[group(skip)]
struct Which {
    /// The flow: `project/flow`, its name where unique, or its id.
    flow: String,
}

pub(super) fn run(noun: Noun, call: &Call) -> Done {
    let client = noun.reach.client(call)?;
    call.wait(async {
        match noun.verb {
            Verb::List { project, limit } => list(&client, project, limit, call).await,
            Verb::Show { which, version } => show(&client, &which.flow, version, call).await,
            Verb::Versions { which, limit } => versions(&client, &which.flow, limit, call).await,
            Verb::Rollback { which, version } => {
                roll_back(&client, &which.flow, version, call).await
            }
            Verb::Runs {
                which,
                state,
                limit,
            } => {
                let args = ListArgs::of_flow(which.flow, state, limit);
                print_list(&client, args, call).await
            }
            Verb::Pause(which) => say(
                client.pause_flow(&which.flow).await?,
                "its schedule rests",
                call,
            ),
            Verb::Resume { which, catch_up } => {
                let query = ResumeQuery { catch_up };
                let flow = client.resume_flow(&which.flow, &query).await?;
                say(flow, "its schedule goes on", call)
            }
            Verb::Set { which, slots } => {
                let flow = client.set_flow_slots(&which.flow, &slots).await?;
                say(flow, &words::slots(slots.slots), call)
            }
            Verb::Archive(which) => say(
                client.archive_flow(&which.flow).await?,
                "it takes no more runs",
                call,
            ),
            Verb::Delete { which, yes } => delete(&client, &which.flow, yes, call).await,
        }
    })
}

fn say(flow: Flow, what: &str, call: &Call) -> Done {
    if call.output.is_json() {
        return call.output.json(&flow);
    }
    call.output
        .note(format!("flow `{}/{}`: {what}", flow.project, flow.name));
    Ok(())
}

async fn list(client: &Client, project: Option<String>, limit: usize, call: &Call) -> Done {
    let query = ListQuery {
        project,
        ..ListQuery::default()
    };
    let (flows, is_cut) = pages(query, limit, async |query: &ListQuery| {
        client.list_flows(query).await
    })
    .await?;
    if call.output.is_json() {
        return call.output.json(&flows);
    }
    let rows: Vec<_> = flows
        .into_iter()
        .map(|flow| {
            let labels = flow.labels.iter().map(str::to_owned).collect::<Vec<_>>();
            let state = match (flow.is_archived, flow.is_paused) {
                (true, _) => "archived",
                (false, true) => "paused",
                (false, false) => "active",
            };
            vec![
                format!("{}/{}", flow.project, flow.name),
                flow.version.to_string(),
                state.to_owned(),
                words::list_or_none(&labels),
                words::instant(flow.registered_at),
            ]
        })
        .collect();
    let columns = ["flow", "version", "state", "labels", "registered"];
    call.output.table(&columns, &rows, "there are no flows")?;
    note_cut(call, is_cut);
    Ok(())
}

/// Returns the current version of a flow, or the one of a number.
pub(super) async fn version_of(
    client: &Client,
    flow: &str,
    number: Option<u32>,
) -> Done<FlowVersion> {
    let flow = client.flow(flow).await?;
    of_number(client, &flow, number.unwrap_or(flow.version)).await
}

/// Returns a version of a flow by its number.
async fn of_number(client: &Client, flow: &Flow, number: u32) -> Done<FlowVersion> {
    let query = ListQuery {
        limit: Some(1),
        // Newest first: the page begins with it.
        cursor: Some(number.saturating_add(1).to_string()),
        ..ListQuery::default()
    };
    let versions = client.flow_versions(&flow.id.to_string(), &query).await?;
    let first = versions.items.into_iter().next();
    let (project, name) = (&flow.project, &flow.name);
    first.filter(|one| one.version == number).ok_or_else(|| {
        super::Failure::could(format!("the flow `{name}` has no version {number}")).or_hint(
            format!("waft flow versions {project}/{name} lists those there are"),
        )
    })
}

async fn versions(client: &Client, name: &str, limit: usize, call: &Call) -> Done {
    let flow = client.flow(name).await?;
    let id = flow.id.to_string();
    let list = async |query: &ListQuery| client.flow_versions(&id, query).await;
    let (versions, is_cut) = pages(ListQuery::default(), limit, list).await?;
    if call.output.is_json() {
        return call.output.json(&versions);
    }
    let rows: Vec<_> = versions
        .into_iter()
        .map(|one| {
            let is_current = one.version == flow.version;
            vec![
                one.version.to_string(),
                if is_current { "current" } else { "-" }.to_owned(),
                one.artifact.to_short(),
                words::size(one.artifact_size),
                words::instant(one.created_at),
                match one.by.is_empty() {
                    true => "-".to_owned(),
                    false => one.by,
                },
            ]
        })
        .collect();
    let columns = ["version", "state", "artifact", "size", "registered", "by"];
    call.output
        .table(&columns, &rows, "there are no versions")?;
    note_cut(call, is_cut);
    Ok(())
}

async fn roll_back(client: &Client, name: &str, version: Option<u32>, call: &Call) -> Done {
    let flow = client.flow(name).await?;
    let back = NewRollback { version };
    let now = client.roll_back(&flow.id.to_string(), &back).await?;
    if call.output.is_json() {
        return call.output.json(&now);
    }
    for line in &now.added_grants {
        let note = format!("it asks for {line}, which version {} did not", flow.version);
        call.output.note(note);
    }
    let what = match now.version == flow.version {
        true => format!("version {} is the current one already", now.version),
        false => format!(
            "version {} is the current one, in the place of {}",
            now.version, flow.version
        ),
    };
    call.output
        .note(format!("flow `{}/{}`: {what}", flow.project, flow.name));
    Ok(())
}

async fn show(client: &Client, name: &str, number: Option<u32>, call: &Call) -> Done {
    let flow = client.flow(name).await?;
    let is_current = number.is_none_or(|number| number == flow.version);
    let version = of_number(client, &flow, number.unwrap_or(flow.version)).await?;
    if call.output.is_json() {
        let mut shown = serde_json::to_value(&flow)?;
        let place = if is_current { "current" } else { "shown" };
        shown[place] = serde_json::to_value(&version)?;
        return call.output.json(&shown);
    }
    let out = &call.output;
    let definition = &version.definition;
    let locations: Vec<_> = version.locations.iter().map(|it| it.root.clone()).collect();
    let labels: Vec<_> = version.labels.iter().map(str::to_owned).collect();
    out.line(format_args!(
        "flow        {}/{} version {}",
        flow.project, flow.name, version.version
    ))?;
    out.line(format_args!(
        "artifact    {} ({})",
        version.artifact,
        words::size(version.artifact_size)
    ))?;
    out.line(format_args!(
        "storage     {}",
        words::list_or_none(&locations)
    ))?;
    out.line(format_args!("labels      {}", words::list_or_none(&labels)))?;
    let state = match is_current {
        true => standing(&flow, definition, call),
        false => format!("version {} is the current one", flow.version),
    };
    out.line(format_args!("state       {state}"))?;
    if let Some(slots) = flow.slots {
        out.line(format_args!("slots       {}", words::slots(Some(slots))))?;
    }
    out.line(super::inspect::definition_text(definition).trim_end())?;
    let makes_runs = is_current && !flow.is_archived && !flow.is_paused;
    match (&definition.schedule, makes_runs) {
        (Some(schedule), true) => next_runs(schedule, call),
        _ => Ok(()),
    }
}

/// Prints when the schedule makes the next ten runs.
fn next_runs(schedule: &Schedule, call: &Call) -> Done {
    let mut ticks = schedule.next_after(call.clock.now(), NEXT_RUNS);
    ticks.truncate(NEXT_RUNS);
    if ticks.is_empty() {
        return Ok(());
    }
    call.output.line("next runs")?;
    for tick in ticks {
        let at = words::instant(tick.at);
        call.output.line(format_args!("  {at}  {}", tick.clock))?;
    }
    Ok(())
}

/// Says whether the flow takes runs, and when its schedule makes the next one.
fn standing(flow: &Flow, definition: &Definition, call: &Call) -> String {
    let schedule = definition.schedule.as_ref();
    match (flow.is_archived, flow.is_paused, schedule) {
        (true, ..) => "archived: it takes no runs until it is registered again".to_owned(),
        (false, true, _) => "paused: its schedule rests until waft flow resume".to_owned(),
        (false, false, None) => "active".to_owned(),
        (false, false, Some(schedule)) => match schedule.next_after(call.clock.now(), 1).first() {
            Some(tick) => format!("active, next due {}", words::instant(tick.at)),
            None => "active, and its schedule has come to its end".to_owned(),
        },
    }
}

async fn delete(client: &Client, name: &str, is_yes: bool, call: &Call) -> Done {
    let flow = client.flow(name).await?;
    let shown = format!("{}/{}", flow.project, flow.name);
    let question = format!("delete the flow `{shown}` with all its versions and runs?");
    call.output.ask(&question, is_yes, "nothing was deleted")?;
    client.delete_flow(&flow.id.to_string()).await?;
    call.output.note(format!("deleted the flow `{shown}`"));
    Ok(())
}
