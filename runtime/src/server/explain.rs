//! Why a run is where it is.
//!
//! The answer for a run that waits comes from the function that decides claims,
//! `Requirement::missing_from`, asked for each agent.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use super::app::App;
use super::db::flow_run::{self, Found};
use super::db::flow_version::Version;
use super::db::realm::Realm;
use super::db::slot::{self, Full};
use super::db::task_run::Key;
use super::db::tx::Tx;
use super::db::{agent, log_line, task_run};
use super::error::Answer;
use super::{overlap, tags};
use crate::config::{Bytes, Millis};
use crate::model::grant::Policy;
use crate::model::id::{AgentId, FlowVersionId};
use crate::model::label;
use crate::model::limit::{Limits, TaskLimits};
use crate::model::requirement::{Missing, Requirement, Resting, any_of};
use crate::model::run::{TaskRunKey, denial_parts};
use crate::model::schedule::Overlap;
use crate::model::state::State;
use crate::wire::{AgentLack, AgentsGone, Explanation, FlowRun};

/// Most agents that are looked at.
const AGENTS_MAX: u32 = 100;
/// Agents that were not heard of for so long are counted, and not listed.
const LATELY: SignedDuration = SignedDuration::from_mins(10);
/// What starts an agent.
const START: &str = "waft agent start";
/// What is said of an agent that finishes what it has, or was told to.
const TAKES_NO_MORE: &str = "takes no more runs";
/// What is said of an agent whose slots are all taken.
const NO_SLOT: &str = "has no free slot";

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
        aside: String::new(),
        agents: Vec::new(),
        agents_gone: None,
        marks: marks(tx, found).await?,
        hints: Vec::new(),
    };
    if run.state.is_failed() {
        explanation.hints = remedies(tx, run).await?;
        if run.code.as_deref().is_some_and(is_lost_result) {
            // What is finished is kept by a retry that is not whole, and its output is what was lost.
            let whole = format!("waft flow-run retry {} --whole", run.id);
            explanation.hints.insert(0, whole);
        }
    }
    if run.state == State::Running {
        let warning = log_line::last_warning(tx, run.id).await?;
        explanation.aside = warning.unwrap_or_default();
    }
    let waits = match run.state {
        State::Scheduled | State::Running if run.claims > 0 => tags::wait(app, tx, found).await?,
        _ => None,
    };
    if let (State::Running, Some(wait)) = (run.state, &waits) {
        explanation.aside.clone_from(&wait.sentence);
        explanation.hints.clone_from(&wait.hints);
    }
    let asked = match run.state {
        state if state.is_over() || run.claims == 0 => Vec::new(),
        _ => flow_run::paused(tx, run.id).await?,
    };
    if !asked.is_empty() {
        explanation.hints = vec![
            format!("waft flow-run approve {}", run.id),
            format!("waft flow-run approve {} --decline", run.id),
        ];
    }
    if run.state == State::Paused {
        explanation.summary = questions(&found.version, &asked);
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
    let now = app.clock.now();
    let kept = agent::heard_since(tx, realm, now - LATELY, AGENTS_MAX).await?;
    let loads = agent::loads(tx).await?;
    let lease_now = app.lease_now(tx).await?;
    let version = found.version.id;
    let lacks: Vec<Lack> = kept
        .into_iter()
        .map(|kept| Lack::of(app, kept, &loads, version, &required, lease_now))
        .collect();
    explanation.agents_gone = agent::gone_since(tx, realm, now - LATELY).await?;
    let because = match (run.due_at > now, waits) {
        (true, Some(wait)) => Because {
            summary: wait.sentence,
            hints: wait.hints,
            ..Because::default()
        },
        (true, None) => Because {
            summary: match run.due_at > run.scheduled_at {
                // Its message says what it waits for, and until when.
                true => format!("it {}", run.message),
                false => format!("it is due at {}", run.due_at),
            },
            ..Because::default()
        },
        (false, _) => weigh(&lacks, &required, explanation.agents_gone.as_ref(), now),
    };
    explanation.summary = because.summary;
    explanation.aside = because.aside;
    explanation.hints.extend(because.hints);
    explanation.agents = lacks.into_iter().map(|lack| lack.agent).collect();
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
    let name = format!("{}/{}", found.version.project, found.flow_run.flow);
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

/// Says which task runs end as people say, and whether they have.
async fn marks(tx: &mut Tx, found: &Found) -> Answer<Vec<String>> {
    let marked = task_run::marked(tx, found.flow_run.id).await?;
    let lines = marked
        .into_iter()
        .filter_map(|((_, place, map_index), kept)| {
            let task = found.version.task_name(place).to_owned();
            let (key, mark) = (TaskRunKey { task, map_index }, kept.decision?);
            Some(match kept.state.is_over() {
                true => format!("`{key}` was {mark}"),
                false => format!("`{key}` was {mark}; whoever has the run sees to it"),
            })
        });
    Ok(lines.collect())
}

/// Says what people are asked.
fn questions(version: &Version, asked: &[(Key, String)]) -> String {
    /// As many as a person reads.
    const SHOWN: usize = 5;
    let shown = asked
        .iter()
        .take(SHOWN)
        .map(|((_, place, index), question)| {
            let task = version.task_name(*place).to_owned();
            let map_index = *index;
            format!("`{}` asks: {question}", TaskRunKey { task, map_index })
        });
    let mut shown: Vec<String> = shown.collect();
    if asked.len() > SHOWN {
        shown.push(format!("{} more ask", asked.len() - SHOWN));
    }
    format!("it waits for a person: {}", shown.join("; "))
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

/// What an agent lacks, and what it says of the roots for which it cannot take the run now.
struct Lack {
    agent: AgentLack,
    hostname: String,
    roots: BTreeSet<String>,
    resting: Vec<Resting>,
    /// When it is given the run again that it has declined.
    asked_in: Option<Duration>,
}

impl Lack {
    fn of(
        app: &App,
        kept: agent::Kept,
        loads: &HashMap<AgentId, u32>,
        version: FlowVersionId,
        required: &Requirement,
        lease_now: Timestamp,
    ) -> Self {
        let now = app.clock.monotonic();
        let session = app.sessions.get(kept.session_id);
        let there = app.presence(&kept, lease_now);
        let is_polling = there.is_polling();
        // Not what it said at its last poll: since then runs of it may have ended.
        let load = loads.get(&kept.id).copied().unwrap_or_default();
        let free_slots = kept.slots.saturating_sub(load);
        let missing = required.missing_from(&kept.offer);
        let mut roots = kept.offer.roots;
        let mut resting = kept.offer.resting;
        roots.extend(resting.iter().map(|rest| rest.root.clone()));
        resting.retain(|rest| missing.iter().any(|one| is_rest(one, rest)));
        let word = |missing: &Missing| match resting.iter().find(|rest| is_rest(missing, rest)) {
            Some(rest) => {
                // Why it rests names the root.
                let what = match missing {
                    Missing::ResultsAway(_) => "cannot keep results",
                    _ => "waits for a storage",
                };
                let looks = looks_again(rest, app.clock.now());
                format!("{what}: {}; {looks}", rest.why)
            }
            None => missing.to_string(),
        };
        let mut words: Vec<String> = missing.iter().map(word).collect();
        let declined = session.as_ref();
        let declined = declined.and_then(|one| one.why_shunned(version, now));
        let asked_in = declined.map(|(why, left)| {
            words.push(format!("has declined it a moment ago: {why}"));
            left
        });
        if missing.is_empty() && is_polling && free_slots == 0 {
            words.push(NO_SLOT.to_owned());
        }
        if there.is_leaving() || kept.drain.is_some() {
            words.push(TAKES_NO_MORE.to_owned());
        } else if !is_polling {
            words.push("does not poll".to_owned());
        }
        Self {
            agent: AgentLack {
                agent: kept.name,
                is_polling,
                free_slots,
                missing,
                words,
            },
            hostname: kept.hostname,
            roots,
            resting,
            asked_in,
        }
    }

    /// Counts what it lacks that does not come back by itself.
    fn lasting(&self) -> usize {
        let missing = self.agent.missing.iter();
        missing.filter(|missing| !comes_back(missing)).count()
    }
}

/// Tells whether an agent lacks something only for as long as a root of it rests.
const fn comes_back(missing: &Missing) -> bool {
    matches!(missing, Missing::Resting(_) | Missing::ResultsAway(_))
}

fn is_rest(missing: &Missing, rest: &Resting) -> bool {
    matches!(missing, Missing::Resting(root) | Missing::ResultsAway(root) if *root == rest.root)
}

fn looks_again(rest: &Resting, now: Timestamp) -> String {
    match rest.looks_at.duration_since(now).as_secs() {
        seconds @ 1.. => format!("it looks again in {seconds} s"),
        _ => "it is looking again".to_owned(),
    }
}

/// What is said of a run that waits.
#[derive(Default)]
struct Because {
    summary: String,
    aside: String,
    hints: Vec<String>,
}

/// Says in one sentence what holds a due run up, and what would help. What changes from one moment to the
/// next, while the reason stays, is said aside.
fn weigh(
    lacks: &[Lack],
    required: &Requirement,
    gone: Option<&AgentsGone>,
    now: Timestamp,
) -> Because {
    let mut polling: Vec<&Lack> = lacks.iter().filter(|one| one.agent.is_polling).collect();
    // The same order at each look, whoever was heard of last.
    polling.sort_by_key(|one| (one.lasting(), one.agent.missing.len(), &one.agent.agent));
    let polls = format!("{} polling", count(polling.len()));
    let Some(nearest) = polling.first() else {
        return nobody(lacks, gone, required);
    };
    let able = || polling.iter().filter(|one| one.agent.missing.is_empty());
    if able().any(|one| one.agent.words.is_empty()) {
        return Because {
            summary: "an agent can take it and is about to".to_owned(),
            ..Because::default()
        };
    }
    if let Some(one) = able().find(|one| one.asked_in.is_some()) {
        return declined(one, &polling, required, lacks);
    }
    if able().next().is_some() {
        return Because {
            summary: format!("each agent that could take it {NO_SLOT}"),
            aside: polls,
            hints: vec!["waft agent start --limit N with more slots, or another agent".to_owned()],
        };
    }
    if nearest.lasting() == 0 && !nearest.resting.is_empty() {
        return rests(nearest, now);
    }
    Because {
        summary: sentence(&nearest.agent, &polling),
        aside: polls,
        hints: hint(nearest, required, lacks).into_iter().collect(),
    }
}

/// Says that no agent polls, and which did.
fn nobody(lacks: &[Lack], gone: Option<&AgentsGone>, required: &Requirement) -> Because {
    let known = lacks.iter().flat_map(|one| one.roots.clone()).collect();
    let root = chosen(required, &known);
    let start = vec![start("", None, root, required, lacks)];
    let aside = match (lacks, gone) {
        ([], None) => {
            return Because {
                summary: "no agent was ever started".to_owned(),
                hints: start,
                ..Because::default()
            };
        }
        ([], Some(AgentsGone { count, seen_at })) => {
            format!("{count} did, last seen {}", seen_at.strftime("%FT%TZ"))
        }
        ([one], _) if one.agent.words.iter().any(|it| it == TAKES_NO_MORE) => {
            format!("`{}` {TAKES_NO_MORE}", one.agent.agent)
        }
        ([one], _) => format!("`{}` did", one.agent.agent),
        (several, _) => format!("{} did", several.len()),
    };
    Because {
        summary: "no agent polls".to_owned(),
        aside,
        hints: start,
    }
}

/// Says that an agent has declined the run, and where else its artifact lies.
fn declined(one: &Lack, polling: &[&Lack], required: &Requirement, lacks: &[Lack]) -> Because {
    let asked_in = one.asked_in.map_or(0, |left| left.as_secs());
    let roots = required.roots.iter();
    let elsewhere = roots.filter(|root| !polling.iter().any(|one| one.roots.contains(*root)));
    let hint = |root: &String| start("it lies there too", None, Some(root), required, lacks);
    Because {
        summary: format!(
            "the agent `{}` {}",
            one.agent.agent,
            one.agent.words.join(" and ")
        ),
        aside: format!("it is asked again in {asked_in} s"),
        hints: elsewhere.map(hint).collect(),
    }
}

/// Says that an agent has all it needs, and waits for a storage.
fn rests(nearest: &Lack, now: Timestamp) -> Because {
    let (name, host) = (&nearest.agent.agent, &nearest.hostname);
    let whys: Vec<_> = nearest
        .resting
        .iter()
        .map(|rest| rest.why.as_str())
        .collect();
    let first = nearest.resting.iter().min_by_key(|rest| rest.looks_at);
    let looks = first.map_or_else(String::new, |rest| looks_again(rest, now));
    let hints = nearest.resting.iter().filter_map(|rest| rest.hint.as_ref());
    Because {
        summary: format!(
            "the agent `{name}` waits for a storage: {}",
            whys.join("; ")
        ),
        aside: format!("{looks}, and goes on by itself"),
        hints: hints.map(|hint| format!("on `{host}`: {hint}")).collect(),
    }
}

/// Says what is missing: of every agent if all lack the same, else of the nearest.
fn sentence(nearest: &AgentLack, polling: &[&Lack]) -> String {
    let lasting = nearest.missing.iter().find(|missing| !comes_back(missing));
    let Some(first) = lasting.or_else(|| nearest.missing.first()) else {
        return String::new();
    };
    if polling.iter().all(|one| one.agent.missing.contains(first)) {
        return match first {
            Missing::Project(project) => format!("no agent runs code of the project `{project}`"),
            Missing::Label(label) => format!("no agent offers the label `{label}`"),
            Missing::Grant(flag) => format!("no agent allows what needs `{flag}`"),
            Missing::Limit(limit) => format!("no agent has so high a ceiling: {limit}"),
            Missing::Ability(ability) => format!("no agent is able to `{ability}`"),
            Missing::Root(roots) => {
                format!("no agent can fetch from the storage {}", any_of(roots))
            }
            Missing::Results(root) => format!("no agent can read the results in `{root}`"),
            Missing::ResultsAway(root) => {
                format!("no agent can keep results: `{root}` is out of reach")
            }
            Missing::Resting(root) => format!("no agent reaches the storage `{root}`"),
        };
    }
    format!(
        "no agent has all it needs; the nearest, `{}`, {}",
        nearest.agent,
        nearest.words.join(" and ")
    )
}

fn count(agents: usize) -> String {
    match agents {
        1 => "1 agent is".to_owned(),
        count => format!("{count} agents are"),
    }
}

/// Returns the line that starts an agent which has all that is required, if flags can give what this one lacks.
fn hint(nearest: &Lack, required: &Requirement, lacks: &[Lack]) -> Option<String> {
    let missing = &nearest.agent.missing;
    let is_by_flag = |one: &Missing| !matches!(one, Missing::ResultsAway(_));
    let is_able = !missing.iter().any(|one| matches!(one, Missing::Ability(_)));
    if !is_able || !missing.iter().any(is_by_flag) {
        return None;
    }
    let project = missing
        .iter()
        .any(|one| matches!(one, Missing::Project(_)))
        .then_some(required.project.as_str());
    let root = chosen(required, &nearest.roots);
    Some(start("start one with it", project, root, required, lacks))
}

/// Chooses the root that a new agent is to fetch from: one that comes with a label that is required, then one that
/// an agent knows already, then any but a folder, which not every machine has.
fn chosen<'a>(required: &'a Requirement, known: &BTreeSet<String>) -> Option<&'a str> {
    let has_label = |root: &str| {
        let label = label_of(root);
        label.is_some_and(|label| required.labels.iter().any(|one| one == label))
    };
    let roots = required.roots.iter().map(String::as_str);
    roots.min_by_key(|root| {
        let is_folder = root.starts_with("file:");
        (!has_label(root), !known.contains(*root), is_folder)
    })
}

fn label_of(root: &str) -> Option<&'static str> {
    label::of_storage(root.split_once("://")?.0)
}

/// Writes the line that starts an agent which has all that is required, on the host that has it where it is a
/// folder of one. What a new agent has there by itself is left out by whoever shows it and knows.
fn start(
    what: &str,
    project: Option<&str>,
    root: Option<&str>,
    required: &Requirement,
    lacks: &[Lack],
) -> String {
    let results = required.results_root.as_deref();
    // Results in a folder are named with its host.
    let kept = results
        .and_then(|root| root.strip_prefix("file://"))
        .and_then(|rest| rest.split_once('/'))
        .filter(|(host, _)| !host.is_empty());
    let is_folder = root.is_some_and(|root| root.starts_with("file:"));
    let of_label = required
        .labels
        .iter()
        .find(|label| is_folder && lacks.iter().any(|one| one.hostname == **label));
    let host = kept.map(|(host, _)| host).or(of_label);
    let mut line = match (what, host) {
        ("", None) => String::new(),
        ("", Some(host)) => format!("on `{host}`: "),
        (what, None) => format!("{what}: "),
        (what, Some(host)) => format!("{what} on `{host}`: "),
    };
    if let Some((_, folder)) = kept {
        let root = format!("file:///{folder}");
        line.push_str(&format!("WAFT__RESULTS__ROOT={} ", quoted(&root)));
    }
    line.push_str(START);
    let mut add = |word: &str| {
        line.push(' ');
        line.push_str(word);
    };
    project
        .iter()
        .for_each(|name| add(&format!("--project {name}")));
    let brought = root.and_then(label_of);
    for label in required.labels.iter() {
        if Some(label) != brought && Some(label) != host {
            add(&format!("--label {label}"));
        }
    }
    let results = results.filter(|_| kept.is_none());
    let roots: BTreeSet<&str> = root.into_iter().chain(results).collect();
    roots
        .iter()
        .for_each(|root| add(&format!("--root {}", quoted(root))));
    let flags = required.grants.missing_from(&Policy::default());
    let raised = raised(&required.limits);
    flags.iter().chain(&raised).for_each(|flag| add(flag));
    line
}

/// Writes the flags that raise the ceilings of an agent to what is asked for.
fn raised(asked: &TaskLimits) -> Vec<String> {
    let ceiling = Limits::CEILING;
    let bytes = |asked: Option<u64>, most: u64| asked.filter(|asked| *asked > most).map(Bytes);
    let millis = |asked: Option<u64>, most: u64| asked.filter(|asked| *asked > most).map(Millis);
    let flags = [
        bytes(asked.memory_bytes, ceiling.memory_bytes).map(|it| format!("--max-memory {it}")),
        millis(asked.cpu_ms, ceiling.cpu_ms).map(|it| format!("--max-cpu {it}")),
        millis(asked.wall_ms, ceiling.wall_ms).map(|it| format!("--max-wall {it}")),
        bytes(asked.output_bytes, ceiling.output_bytes).map(|it| format!("--max-output {it}")),
    ];
    flags.into_iter().flatten().collect()
}

/// Writes a root as a shell takes it for one word.
fn quoted(root: &str) -> String {
    let is_plain = |c: char| c.is_alphanumeric() || "/:._-".contains(c);
    match root.chars().all(is_plain) {
        true => root.to_owned(),
        false => format!("'{}'", root.replace('\'', r"'\''")),
    }
}
