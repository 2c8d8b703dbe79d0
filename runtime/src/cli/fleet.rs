//! `waft agent list`, `show` and `drain`: the agents of a server, from afar.

use clap::Args;

use super::failure::Done;
use super::reach::pages;
use super::{Call, words};
use crate::client::Client;
use crate::model::grant::Policy;
use crate::wire::{Agent, Drain, ListQuery, NewDrain};

/// Which agent.
#[derive(Clone, Debug, Args)]
#[group(skip)]
pub(super) struct Which {
    /// The agent: its name, `name@host` where hosts share the name, or its id.
    #[arg(value_name = "AGENT")]
    agent: String,
}

pub(super) async fn list(client: &Client, call: &Call) -> Done {
    let list = async |query: &ListQuery| client.list_agents(query).await;
    let (mut agents, _) = pages(ListQuery::default(), usize::MAX, list).await?;
    agents.sort_by_key(|agent| std::cmp::Reverse(agent.seen_at));
    if call.output.is_json() {
        return call.output.json(&agents);
    }
    let rows: Vec<_> = agents
        .into_iter()
        .map(|agent| {
            let (state, free, labels) = (state(&agent), free_slots(&agent), labels(&agent));
            vec![
                agent.name,
                state.to_owned(),
                free,
                labels,
                words::instant(agent.seen_at),
                agent.version,
                agent.hostname,
            ]
        })
        .collect();
    let columns = [
        "agent", "state", "free", "labels", "seen", "version", "host",
    ];
    call.output.table(&columns, &rows, "there are no agents")
}

pub(super) async fn show(client: &Client, which: &Which, call: &Call) -> Done {
    let agent = client.agent(&which.agent).await?;
    if call.output.is_json() {
        return call.output.json(&agent);
    }
    about(&agent)
        .iter()
        .try_for_each(|(name, what)| call.output.line(format_args!("{name:<9} {what}")))?;
    let rows: Vec<_> = agent
        .flow_runs
        .iter()
        .map(|run| {
            vec![
                run.id.to_string(),
                format!("{}/{}", run.project, run.flow),
                run.state.to_string(),
            ]
        })
        .collect();
    let columns = ["run", "flow", "state"];
    call.output.table(&columns, &rows, "it has no runs")
}

fn about(agent: &Agent) -> Vec<(&'static str, String)> {
    let own = |words: &mut dyn Iterator<Item = &String>| {
        words::list_or_none(&words.cloned().collect::<Vec<_>>())
    };
    let offer = &agent.offer;
    let state = match agent.drain {
        None => state(agent).to_owned(),
        Some(Drain::Finish) => format!("{}  told to finish what it has, and to end", state(agent)),
        Some(Drain::Now) => format!(
            "{}  told to give back what it has, and to end",
            state(agent)
        ),
    };
    let projects = offer.projects.as_ref();
    let mut lines = vec![
        ("agent", agent.name.clone()),
        ("id", agent.id.to_string()),
        ("host", agent.hostname.clone()),
        ("state", state),
        ("seen", words::instant(agent.seen_at)),
        (
            "version",
            format!("{} (protocol {})", agent.version, agent.protocol),
        ),
        ("free", free_slots(agent)),
        ("labels", labels(agent)),
        ("roots", own(&mut offer.roots.iter())),
        (
            "projects",
            projects.map_or_else(|| "all".to_owned(), |names| own(&mut names.iter())),
        ),
        ("allows", words::list_or_none(&allowed(&offer.grants))),
        ("abilities", own(&mut offer.abilities.iter())),
    ];
    for rest in &offer.resting {
        let looks = words::instant(rest.looks_at);
        lines.push(("rests", format!("{}; it looks again {looks}", rest.why)));
    }
    lines
}

/// Lists what an agent allows, as a flow would ask for it.
fn allowed(policy: &Policy) -> Vec<String> {
    let net = policy.net.iter().map(|rule| format!("net {rule}"));
    let dirs = policy.dirs.iter();
    let dirs = dirs.map(|(guest, mode)| format!("dir {guest}:{}", words::of(mode)));
    let env = policy.env.iter().map(|name| format!("env {name}"));
    let secrets = policy.secrets.iter().map(|name| format!("secret {name}"));
    net.chain(dirs).chain(env).chain(secrets).collect()
}

pub(super) async fn drain(client: &Client, which: &Which, now: bool, call: &Call) -> Done {
    let how = match now {
        true => Drain::Now,
        false => Drain::Finish,
    };
    let agent = client.drain_agent(&which.agent, &NewDrain { how }).await?;
    if call.output.is_json() {
        return call.output.json(&agent);
    }
    call.output.note(told(&agent));
    Ok(())
}

/// Says what becomes of an agent that was told to take no more runs.
fn told(agent: &Agent) -> String {
    let name = &agent.name;
    if !agent.is_leaving {
        return format!(
            "agent `{name}` does not poll; it is told when it does, unless it is started anew"
        );
    }
    let what = match (agent.flow_runs.len(), agent.drain) {
        (0, _) => "ends".to_owned(),
        (1, Some(Drain::Now)) => "gives back the run that it has, and ends".to_owned(),
        (count, Some(Drain::Now)) => format!("gives back the {count} runs that it has, and ends"),
        (1, _) => "finishes the run that it has, and ends".to_owned(),
        (count, _) => format!("finishes the {count} runs that it has, and ends"),
    };
    format!("agent `{name}` takes no more runs, {what}")
}

fn state(agent: &Agent) -> &'static str {
    match (agent.is_polling, agent.is_leaving, agent.drain) {
        (true, _, _) => "polling",
        (false, true, Some(_)) => "draining",
        (false, true, None) => "leaving",
        (false, false, _) => "gone",
    }
}

fn free_slots(agent: &Agent) -> String {
    format!("{} of {}", agent.free_slots, agent.slots)
}

fn labels(agent: &Agent) -> String {
    let labels: Vec<_> = agent.offer.labels.iter().map(str::to_owned).collect();
    words::list_or_none(&labels)
}
