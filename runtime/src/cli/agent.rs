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
use super::{cache, fleet, install, power};
use crate::agent::{Agent, AgentSettings, Running};
use crate::client::Client;
use crate::config::hostname;
use crate::model::label::{Labels, checked};
use crate::storage::Root;
use crate::wire::ListQuery;

/// Runs at one time unless it is said otherwise: most of them wait, and attempts have a number of
/// their own.
pub(super) const SLOTS: u32 = 16;

/// Starts agents, lists and drains those of the server.
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
    /// A server that is not up yet is waited for, and a line on standard error says so; one that
    /// refuses the agent is not. An interrupt lets it finish the runs that it has; a second one gives them back at once.
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
    #[command(after_help = "\
States: `polling` takes runs; `draining` was told from afar to take no more; `leaving` takes no more
and finishes what it has; `gone` was not heard of for some seconds. `show` says more of one.")]
    List,
    /// Shows an agent: what it offers, and the runs that it has.
    Show(fleet::Which),
    /// Tells an agent from afar to take no more runs, finish those it has, and end.
    #[command(after_help = "\
The server keeps what an agent is told until it is started anew, and tells it again after an outage.
It takes a token of the scope `user`.

Examples:
  waft agent drain mira
  waft agent drain mira@nas --now")]
    Drain {
        #[command(flatten)]
        which: fleet::Which,
        /// Gives the runs that it has back at once, for others to take.
        #[arg(long)]
        now: bool,
    },
    Install(Box<install::Args>),
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
    /// Offers only the labels that are given: not the name of this machine, and none of its storages.
    #[arg(long)]
    no_auto_labels: bool,
    /// A storage root that it fetches from, beside the default storage. It is that root and no other:
    /// `s3://bucket` does not serve what is registered under `s3://bucket/flows`. Repeatable.
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

    /// Returns the flags as they are given on a command line, good from any folder.
    ///
    /// # Errors
    ///
    /// As [`power::Flags::words`].
    pub(super) fn words(&self) -> Done<Vec<String>> {
        // Named one by one, so that a flag that is forgotten does not compile.
        let Self {
            name,
            label,
            no_auto_labels,
            root,
            project,
            limit,
            powers,
        } = self;
        let mut words = Vec::new();
        let mut add = |flag: &str, value: String| words.extend([flag.to_owned(), value]);
        name.iter().for_each(|name| add("--name", name.clone()));
        label.iter().for_each(|label| add("--label", label.clone()));
        root.iter().for_each(|root| add("--root", root.to_string()));
        for name in project {
            add("--project", name.clone());
        }
        limit
            .iter()
            .for_each(|limit| add("--limit", limit.to_string()));
        if *no_auto_labels {
            words.push("--no-auto-labels".to_owned());
        }
        words.extend(powers.words()?);
        Ok(words)
    }

    /// Returns its name, if it is given.
    pub(super) fn name(&self) -> Option<&str> {
        self.name.as_deref()
    }

    /// Returns the roots that are given.
    pub(super) fn roots(&self) -> &[Root] {
        &self.root
    }

    /// Returns what flows may be granted.
    pub(super) const fn powers(&self) -> &power::Flags {
        &self.powers
    }
}

pub(super) fn run(noun: Noun, call: &Call) -> Done {
    let client = || noun.reach.client(call);
    match noun.verb {
        Verb::Start { flags, once } => call.wait(run_one(&flags, client()?, once, call)),
        Verb::List => call.wait(fleet::list(&client()?, call)),
        Verb::Show(which) => call.wait(fleet::show(&client()?, &which, call)),
        Verb::Drain { which, now } => call.wait(fleet::drain(&client()?, &which, now, call)),
        Verb::Install(args) => install::run(&args, &noun.reach, call),
        Verb::Cache(verb) => cache::run(verb, call),
    }
}

/// Starts an agent, says that it polls, and lets it work until it is interrupted.
///
/// # Errors
///
/// As [`start`] and [`work`].
pub(super) async fn run_one(flags: &Flags, client: Client, is_once: bool, call: &Call) -> Done {
    let mut signals = Signals::new()?;
    let url = client.url().to_owned();
    let Some(agent) = start(flags, client, is_once, &mut signals, call).await? else {
        return Ok(());
    };
    let ready = format!("agent `{}` polls {url}", agent.name());
    match call.output.is_json() {
        true => call
            .output
            .json_line(&serde_json::json!({ "agent": agent.name(), "server": url }))?,
        false => call.output.line(ready)?,
    }
    work(agent, &mut signals, call).await.map(drop)
}

/// Starts an agent in this process; none if a signal comes while it waits for its server, as nothing is
/// begun by then that would have to end well.
///
/// # Errors
///
/// Says what is wrong with the settings, or why the server does not take it.
pub(super) async fn start(
    flags: &Flags,
    client: Client,
    is_once: bool,
    signals: &mut Signals,
    call: &Call,
) -> Done<Option<Running>> {
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
    let agent = tokio::select! {
        started = Agent::start(settings) => started?,
        () = signals.next() => return Ok(None),
    };
    warn_of_unknown(projects.unwrap_or_default(), &asked, call).await;
    Ok(Some(agent))
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

/// Lists the roots of an agent that is started here.
///
/// # Errors
///
/// Says which setting is no root.
pub(super) fn roots(flags: &Flags, call: &Call) -> Done<Vec<Root>> {
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

/// Lets an agent work until it ends or is told to; answers whether a signal told it, and not somebody
/// from afar.
///
/// # Errors
///
/// Fails if the agent ended by a bug.
pub(super) async fn work(mut agent: Running, signals: &mut Signals, call: &Call) -> Done<bool> {
    let mut count = 0;
    let mut is_told = false;
    loop {
        tokio::select! {
            () = signals.next() => count += 1,
            () = agent.stopping(), if !is_told => {
                call.output.note(format!("agent `{}` was told to take no more runs", agent.name()));
            }
            ended = agent.wait() => {
                let is_interrupted = count > 0;
                return ended
                    .map(|()| is_interrupted)
                    .map_err(|error| Failure::from(error).of(Kind::Bug));
            }
        }
        if count > 1 {
            agent.stop_now();
            continue;
        }
        is_told = true;
        agent.stop();
        let at_work = agent.flow_runs().len();
        if at_work > 0 {
            call.output.note(finishing(at_work, count));
        }
    }
}

/// Says what is waited for, and what an interrupt does after so many.
fn finishing(at_work: usize, interrupts: u32) -> String {
    let next = match interrupts {
        0 => "two interrupts give",
        _ => "once more gives",
    };
    match at_work {
        1 => format!("finishing 1 run; {next} it back at once"),
        count => format!("finishing {count} runs; {next} them back at once"),
    }
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
        assert!(finishing(1, 1).starts_with("finishing 1 run; once more gives it "));
        assert!(finishing(2, 0).starts_with("finishing 2 runs; two interrupts give them "));
    }
}
