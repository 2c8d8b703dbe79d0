//! Why a run is where it is.
//!
//! The answer for a run that waits comes from the function that decides claims,
//! `Requirement::missing_from`, asked for each agent.

use super::app::App;
use super::db::flow_run::Found;
use super::db::realm::Realm;
use super::db::slot::{self, Full};
use super::db::tx::Tx;
use super::db::{agent, task_run};
use super::error::Answer;
use super::overlap;
use crate::model::id::FlowVersionId;
use crate::model::requirement::{Missing, Requirement};
use crate::model::run::denial_parts;
use crate::model::schedule::Overlap;
use crate::model::state::State;
use crate::wire::{AgentLack, Explanation, FlowRun};

/// Most agents that are looked at.
const AGENTS_MAX: u32 = 100;
/// Most bytes of parameters in a line to paste.
const PARAMETERS_MAX: usize = 300;
/// What is said of an agent that finishes what it has, or was told to.
const TAKES_NO_MORE: &str = "takes no more runs";

/// Explains a run.
///
/// # Errors
///
/// The database's.
pub(super) async fn explain(
    app: &App,
    tx: &mut Tx,
    realm: &Realm,
    found: &Found,
) -> Answer<Explanation> {
    let run = &found.flow_run;
    let mut explanation = Explanation {
        flow_run_id: run.id,
        state: run.state,
        summary: standing(run),
        agents: Vec::new(),
        hints: Vec::new(),
    };
    if run.state.is_failed() {
        explanation.hints = remedies(tx, run).await?;
        if run.code.as_deref().is_some_and(is_lost_result) {
            explanation.hints.insert(0, anew(run));
        }
    }
    let is_held = match run.state {
        State::Scheduled => false,
        State::Queued => hold(app, tx, found, &mut explanation).await?,
        _ => true,
    };
    if is_held {
        return Ok(explanation);
    }
    let required = app.db.memory.requirement(tx, found.requirement_id).await?;
    explanation.agents = lacks(app, tx, realm, found.version.id, &required).await?;
    let now = app.clock.now();
    match run.scheduled_at > now {
        true => explanation.summary = format!("it is due at {}", run.scheduled_at),
        false => weigh(&mut explanation),
    }
    Ok(explanation)
}

/// Says what holds up a queued run, if anything still does.
async fn hold(
    app: &App,
    tx: &mut Tx,
    found: &Found,
    explanation: &mut Explanation,
) -> Answer<bool> {
    let (flow, project) = (found.version.flow_id, found.version.project_id);
    let name = format!("{}/{}", found.version.project, found.version.flow);
    if let Some(full) = slot::room(tx).await?.full(flow, project) {
        explanation.summary = full.to_string();
        let command = match full {
            Full::Flow(_) => format!("waft flow set {name} --slots N"),
            Full::Project(_) => format!("waft project set {} --slots N", found.version.project),
        };
        explanation.hints.push(command);
        return Ok(true);
    }
    let run = &found.flow_run;
    let is_new = run.clock.is_some() && run.claims == 0;
    let is_exclusive = is_new && found.version.overlap() != Overlap::Allow;
    let before = match is_exclusive {
        true => overlap::before(tx, flow, run.id, app.clock.now()).await?,
        false => None,
    };
    if let Some(before) = before {
        explanation.summary = format!("it waits for the run {before} of its flow to end");
        explanation
            .hints
            .push(format!("waft flow-run show {before}"));
    }
    Ok(before.is_some())
}

fn standing(run: &FlowRun) -> String {
    let agent = run.agent.as_deref().unwrap_or("an agent");
    let message = match run.message.as_str() {
        "" => String::new(),
        message => format!(": {message}"),
    };
    match run.state {
        State::Claimed if message.is_empty() => {
            format!("the agent `{agent}` has it and is about to begin")
        }
        State::Claimed => format!("the agent `{agent}` has it{message}"),
        State::Running => format!("the agent `{agent}` runs it{message}"),
        State::Cancelling => format!("a stop was asked for; the agent `{agent}` is to stop it"),
        State::Queued => "it goes on as soon as an agent takes it".to_owned(),
        State::Paused => format!("it waits for a person{message}"),
        // The state itself is said beside it.
        state if state.is_over() && message.is_empty() => "it is over".to_owned(),
        state if state.is_over() => run.message.clone(),
        state => format!("it is {state}{message}"),
    }
}

/// Tells whether a run crashed since the output of a finished task is lost. That task is not made again in
/// this run.
fn is_lost_result(code: &str) -> bool {
    matches!(code, "results.lost" | "results.damaged")
}

/// Returns the line that makes a run anew.
fn anew(run: &FlowRun) -> String {
    let parameters = run.parameters.iter().map(|(name, value)| {
        let quoted = format!("{name}={value}").replace('\'', r"'\''");
        format!(" --param '{quoted}'")
    });
    let parameters: String = parameters.collect();
    let flow = format!("waft flow-run create {}/{}", run.project, run.flow);
    match parameters.len() <= PARAMETERS_MAX {
        true => flow + &parameters,
        false => flow + " --params FILE",
    }
}

/// Returns what would allow what the tasks lacked whose failure the run names, and where to read on.
async fn remedies(tx: &mut Tx, run: &FlowRun) -> Answer<Vec<String>> {
    let mut hints: Vec<String> = Vec::new();
    for (message, denials) in task_run::denied(tx, run.id).await? {
        if message.is_empty() || !run.message.contains(&message) {
            continue;
        }
        for denial in &denials {
            let remedy = denial_parts(denial).1;
            if !remedy.is_empty() && !hints.iter().any(|hint| hint == remedy) {
                hints.push(remedy.to_owned());
            }
        }
    }
    hints.push(format!("waft flow-run logs {}", run.id));
    Ok(hints)
}

/// Finds out what each agent lacks.
async fn lacks(
    app: &App,
    tx: &mut Tx,
    realm: &Realm,
    version: FlowVersionId,
    required: &Requirement,
) -> Answer<Vec<AgentLack>> {
    let now = app.clock.monotonic();
    let kept = agent::heard_last(tx, realm, AGENTS_MAX).await?;
    let loads = agent::loads(tx).await?;
    let lack = |kept: agent::Kept| {
        let session = app.sessions.get(kept.session_id);
        let is_polling = session.as_ref().is_some_and(|one| one.is_polling(now));
        // Not what it said at its last poll: since then runs of it may have ended.
        let load = loads.get(&kept.id).copied().unwrap_or_default();
        let free_slots = kept.slots.saturating_sub(load);
        let missing = required.missing_from(&kept.offer);
        let mut words: Vec<String> = missing.iter().map(Missing::to_string).collect();
        let shunned = session.as_ref();
        if let Some(why) = shunned.and_then(|one| one.why_shunned(version, now)) {
            words.push(format!("has declined it a moment ago: {why}"));
        }
        if missing.is_empty() && is_polling && free_slots == 0 {
            words.push("has no free slot".to_owned());
        }
        let is_leaving = session.as_ref().is_some_and(|one| one.is_leaving(now));
        if is_leaving || kept.drain.is_some() {
            words.push(TAKES_NO_MORE.to_owned());
        } else if !is_polling {
            words.push("does not poll".to_owned());
        }
        AgentLack {
            agent: kept.name,
            is_polling,
            free_slots,
            missing,
            words,
        }
    };
    Ok(kept.into_iter().map(lack).collect())
}

/// Says in one sentence what holds a due run up, and what would help.
fn weigh(explanation: &mut Explanation) {
    let agents = &explanation.agents;
    let polling: Vec<&AgentLack> = agents.iter().filter(|agent| agent.is_polling).collect();
    let (summary, hint) = if polling.is_empty() {
        let summary = match agents.len() {
            0 => "no agent was ever started".to_owned(),
            1 if agents[0].words.iter().any(|it| it == TAKES_NO_MORE) => {
                format!("no agent polls; `{}` {TAKES_NO_MORE}", agents[0].agent)
            }
            1 => format!("no agent polls; `{}` did", agents[0].agent),
            count => format!("no agent polls; {count} did"),
        };
        (summary, Some("waft agent start".to_owned()))
    } else if polling.iter().any(|agent| agent.words.is_empty()) {
        ("an agent can take it and is about to".to_owned(), None)
    } else if let Some(agent) = polling.iter().find(|agent| agent.missing.is_empty()) {
        let summary = format!("the agent `{}` {}", agent.agent, agent.words.join(" and "));
        let hint = "waft agent start --limit N with more slots, or another agent";
        (summary, (agent.free_slots == 0).then(|| hint.to_owned()))
    } else {
        let nearest = polling.iter().min_by_key(|agent| agent.missing.len());
        let lacking = nearest.map_or(String::new(), |agent| sentence(agent, &polling));
        (lacking, nearest.and_then(|agent| hint(agent)))
    };
    explanation.summary = summary;
    explanation.hints = hint.into_iter().collect();
}

/// Says what is missing: of every agent if all lack the same, else of the nearest.
fn sentence(nearest: &AgentLack, polling: &[&AgentLack]) -> String {
    let first = &nearest.missing[0];
    if polling.iter().all(|agent| agent.missing.contains(first)) {
        let what = match first {
            Missing::Project(project) => format!("no agent runs code of the project `{project}`"),
            Missing::Label(label) => format!("no agent offers the label `{label}`"),
            Missing::Grant(flag) => format!("no agent allows what needs `{flag}`"),
            Missing::Limit(limit) => format!("no agent has so high a ceiling: {limit}"),
            Missing::Ability(ability) => format!("no agent is able to `{ability}`"),
            Missing::Root(root) => format!("no agent can fetch from the storage `{root}`"),
            Missing::Results(root) => format!("no agent can read the results in `{root}`"),
            Missing::ResultsAway(root) => {
                format!("no agent can keep results: `{root}` is out of reach")
            }
        };
        return format!("{what}; {} polling", count(polling.len()));
    }
    format!(
        "no agent has all it needs; the nearest, `{}`, {}; {} polling",
        nearest.agent,
        nearest.words.join(" and "),
        count(polling.len())
    )
}

fn count(agents: usize) -> String {
    match agents {
        1 => "1 agent is".to_owned(),
        count => format!("{count} agents are"),
    }
}

fn hint(agent: &AgentLack) -> Option<String> {
    let flags: Vec<String> = agent
        .missing
        .iter()
        .filter_map(|missing| match missing {
            Missing::Project(project) => Some(format!("--project {project}")),
            Missing::Label(label) => Some(format!("--label {label}")),
            Missing::Grant(flag) => Some(flag.clone()),
            Missing::Root(root) | Missing::Results(root) => Some(format!("--root {root}")),
            Missing::Limit(_) | Missing::Ability(_) | Missing::ResultsAway(_) => None,
        })
        .collect();
    (!flags.is_empty()).then(|| format!("start one with it: waft agent start {}", flags.join(" ")))
}
