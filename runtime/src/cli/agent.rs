//! `waft agent`: claims runs and executes them on this machine.

use std::collections::BTreeSet;

use clap::{Args, Subcommand};

use super::Call;
use super::argument::{label, name};
use super::component::sandbox;
use super::failure::{Done, Failure, Kind};
use super::reach::{Reach, pages};
use super::register::default_root;
use super::signals::Signals;
use super::{cache, power, words};
use crate::agent::{Agent, AgentSettings, Running};
use crate::client::Client;
use crate::config::hostname;
use crate::model::label::{Labels, checked};
use crate::storage::Root;
use crate::wire::ListQuery;

/// Runs at one time unless it is said otherwise: most of them wait, and attempts have a number of
/// their own.
pub(super) const SLOTS: u32 = 16;

/// Starts an agent, lists those of the server, and shows what they keep here.
#[derive(Debug, Args)]
pub(super) struct Noun {
    #[command(flatten)]
    reach: Reach,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Starts an agent; prints one line when it polls, and goes on until it is interrupted.
    ///
    /// An interrupt lets it finish the runs that it has; a second one gives them back at once.
    #[command(after_help = "\
Examples:
  waft agent start
  waft agent start --label gpu --limit 4 --allow-net api.example.org:443
  waft agent start --server https://flows.example.org --project demo --allow-dir ./data::/data:ro")]
    Start {
        #[command(flatten)]
        flags: Box<Flags>,
        /// Takes what is due, finishes it, and ends.
        #[arg(long)]
        once: bool,
    },
    /// Lists the agents, the last heard of first.
    List,
    /// Lists or clears what the agents of this home have fetched and compiled.
    #[command(subcommand)]
    Cache(cache::Verb),
}

/// How an agent is started, beside the server it belongs to.
#[derive(Clone, Debug, Default, Args)]
#[group(skip)]
pub(super) struct Flags {
    /// Its name; that of this machine unless given. One process a name and home.
    #[arg(long, value_parser = name)]
    name: Option<String>,
    /// A label that it offers beside the name of this machine. Repeatable.
    #[arg(long, value_parser = label)]
    label: Vec<String>,
    /// Offers only the labels that are given.
    #[arg(long)]
    no_auto_labels: bool,
    /// A storage root that it fetches from, beside the default storage. Repeatable.
    #[arg(long, value_name = "ROOT")]
    root: Vec<Root>,
    /// A project whose code runs here, instead of those in config.toml; every project of its token
    /// unless one is given. Repeatable.
    #[arg(long, value_name = "NAME")]
    project: Vec<String>,
    /// Runs at one time; 16 unless given.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    limit: Option<u32>,
    #[command(flatten)]
    powers: power::Flags,
}

impl Flags {
    /// Asks for an agent that runs code of one project, with labels to offer and a root to fetch from.
    pub(super) fn of_project(project: String, label: Vec<String>, root: Root) -> Self {
        Self {
            label,
            root: vec![root],
            project: vec![project],
            ..Self::default()
        }
    }
}

pub(super) fn run(noun: Noun, call: &Call) -> Done {
    let client = || noun.reach.client(call);
    match noun.verb {
        Verb::Start { flags, once } => call.wait(run_one(&flags, client()?, once, call)),
        Verb::List => call.wait(list(&client()?, call)),
        Verb::Cache(verb) => cache::run(verb, call),
    }
}

/// Starts an agent, says that it polls, and lets it work until it is interrupted.
///
/// # Errors
///
/// As [`start`] and [`work`].
pub(super) async fn run_one(flags: &Flags, client: Client, is_once: bool, call: &Call) -> Done {
    let signals = Signals::new()?;
    let url = client.url().to_owned();
    let agent = start(flags, client, is_once, call).await?;
    let ready = format!("agent `{}` polls {url}", agent.name());
    match call.output.is_json() {
        true => call
            .output
            .json_line(&serde_json::json!({ "agent": agent.name(), "server": url }))?,
        false => call.output.line(ready)?,
    }
    work(agent, signals, call).await
}

/// Starts an agent in this process.
///
/// # Errors
///
/// Says what is wrong with the settings, or why the server does not take it.
pub(super) async fn start(
    flags: &Flags,
    client: Client,
    is_once: bool,
    call: &Call,
) -> Done<Running> {
    let set = &call.config.settings.agent;
    let hostname = hostname();
    let parallel = flags.powers.parallel(call);
    let projects = projects(&flags.project, &set.projects);
    let asked = client.clone();
    let settings = AgentSettings {
        client,
        name: flags
            .name
            .clone()
            .or_else(|| set.name.clone())
            .unwrap_or_else(|| hostname.clone()),
        hostname,
        labels: labels(flags, &set.labels)?,
        has_auto_labels: !flags.no_auto_labels,
        roots: roots(flags, call)?,
        results: results_root(call)?,
        access: call.config.access(),
        artifact_max: call.config.artifact_max(),
        projects: projects.clone(),
        slots: flags.limit.or(set.limit).unwrap_or(SLOTS).max(1) as usize,
        parallel,
        powers: flags.powers.powers(call)?,
        ceiling: flags.powers.ceiling(call),
        home: call.config.home.folder().to_owned(),
        artifact_cache_max: cache::artifact_cache_max(call),
        sandbox: sandbox(call, parallel)?,
        clock: call.clock.clone(),
        is_once,
    };
    let agent = Agent::start(settings).await.map_err(Failure::from)?;
    warn_of_unknown(projects.unwrap_or_default(), &asked, call).await;
    Ok(agent)
}

/// Says which of these projects the server does not have. A token that may not look says nothing.
async fn warn_of_unknown(mut projects: BTreeSet<String>, client: &Client, call: &Call) {
    if projects.is_empty() {
        return;
    }
    let list = async |query: &ListQuery| client.list_projects(query).await;
    let Ok((known, _)) = pages(ListQuery::default(), usize::MAX, list).await else {
        return;
    };
    projects.retain(|name| !known.iter().any(|project| project.name == *name));
    for name in projects {
        call.output.note(format!(
            "warning: there is no project `{name}` yet that this agent could run code of"
        ));
    }
}

/// Chooses whose code runs here. The flag goes instead of the setting, as it is there to narrow what
/// may run.
fn projects(flag: &[String], set: &[String]) -> Option<BTreeSet<String>> {
    let names = if flag.is_empty() { set } else { flag };
    (!names.is_empty()).then(|| names.iter().cloned().collect())
}

fn labels(flags: &Flags, set: &[String]) -> Done<Labels> {
    for label in set {
        checked(label)
            .map_err(|error| Failure::usage(error).context("`agent.labels` is not usable"))?;
    }
    Ok(set.iter().chain(&flags.label).cloned().collect())
}

fn roots(flags: &Flags, call: &Call) -> Done<Vec<Root>> {
    let mut roots = vec![default_root(call)?];
    let local = crate::config::file_root(&call.config.home.flows());
    let set = &call.config.settings.agent.roots;
    for text in set.iter().chain([&local]) {
        let root: Root = text.parse().map_err(|error| {
            Failure::from(anyhow::Error::new(error).context("`agent.roots` is not usable"))
                .of(Kind::Usage)
        })?;
        roots.push(root);
    }
    roots.extend(flags.root.iter().cloned());
    let mut seen = BTreeSet::new();
    roots.retain(|root| seen.insert(root.to_string()));
    Ok(roots)
}

/// Reads the configured root of results.
pub(super) fn results_root(call: &Call) -> Done<Root> {
    call.config
        .results_root()
        .parse()
        .map_err(|error: crate::storage::BadRoot| {
            Failure::from(anyhow::Error::new(error).context("`results.root` is not usable"))
                .of(Kind::Usage)
        })
}

/// Lets an agent work until it ends or is told to.
///
/// # Errors
///
/// Fails if the agent ended by a bug.
pub(super) async fn work(mut agent: Running, mut signals: Signals, call: &Call) -> Done {
    let mut count = 0;
    loop {
        tokio::select! {
            ended = agent.wait() => return ended.map_err(|error| Failure::from(error).of(Kind::Bug)),
            () = signals.next() => count += 1,
        }
        if count > 1 {
            agent.stop_now();
            continue;
        }
        agent.stop();
        let at_work = agent.flow_runs().len();
        if at_work > 0 {
            call.output.note(finishing(at_work));
        }
    }
}

fn finishing(at_work: usize) -> String {
    match at_work {
        1 => "finishing 1 run; once more gives it back at once".to_owned(),
        count => format!("finishing {count} runs; once more gives them back at once"),
    }
}

async fn list(client: &Client, call: &Call) -> Done {
    let list = async |query: &ListQuery| client.list_agents(query).await;
    let (mut agents, _) = pages(ListQuery::default(), usize::MAX, list).await?;
    agents.sort_by_key(|agent| std::cmp::Reverse(agent.seen_at));
    if call.output.is_json() {
        return call.output.json(&agents);
    }
    let rows: Vec<_> = agents
        .into_iter()
        .map(|agent| {
            let labels: Vec<_> = agent.offer.labels.iter().map(str::to_owned).collect();
            vec![
                agent.name,
                match (agent.is_polling, agent.is_leaving) {
                    (true, _) => "polling",
                    (false, true) => "leaving",
                    (false, false) => "silent",
                }
                .to_owned(),
                format!("{} of {}", agent.flow_runs.len(), agent.slots),
                words::list_or_none(&labels),
                words::instant(agent.seen_at),
                agent.version,
            ]
        })
        .collect();
    let columns = ["agent", "state", "runs", "labels", "seen", "version"];
    call.output.table(&columns, &rows, "there are no agents")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_project_that_is_given_goes_instead_of_those_that_are_set() {
        let own = |names: &[&str]| names.iter().map(|it| (*it).to_owned()).collect::<Vec<_>>();
        let chosen = |flag: &[&str], set: &[&str]| {
            projects(&own(flag), &own(set)).map(|names| names.into_iter().collect::<Vec<_>>())
        };
        assert_eq!(chosen(&["a"], &["b", "c"]), Some(own(&["a"])));
        assert_eq!(chosen(&[], &["b", "c"]), Some(own(&["b", "c"])));
        assert_eq!(chosen(&[], &[]), None);
    }

    #[test]
    fn one_run_is_not_runs() {
        assert!(finishing(1).starts_with("finishing 1 run; "));
        assert!(finishing(2).starts_with("finishing 2 runs; "));
    }
}
