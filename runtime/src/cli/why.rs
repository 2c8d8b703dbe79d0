//! Why a run is where it is, as `explain` and whoever watches a run say it.

use super::{Call, agent};
use crate::config::hostname;
use crate::model::state::State;
use crate::storage::Root;
use crate::wire::{AgentLack, Explanation};

/// Puts the answer and what belongs to it into one sentence.
pub(super) fn sentence(explanation: &Explanation) -> String {
    match explanation.aside.as_str() {
        "" => explanation.summary.clone(),
        aside => format!("{}; {aside}", explanation.summary),
    }
}

/// What an agent has that is started here without a flag.
pub(super) struct Here {
    hostname: String,
    labels: Vec<String>,
    roots: Vec<String>,
}

impl Here {
    /// Reads it from the configuration.
    pub(super) fn of(call: &Call) -> Self {
        let set = &call.config.settings.agent;
        let roots = agent::roots(&agent::Flags::default(), call).unwrap_or_default();
        Self {
            hostname: hostname(),
            labels: set.labels.clone(),
            roots: roots.iter().map(Root::to_string).collect(),
        }
    }
}

/// Returns what would help, as lines that can be pasted here.
pub(super) fn hints(explanation: &Explanation, here: &Here) -> Vec<String> {
    let pasted = |hint: &String| pasteable(hint, here, &explanation.agents);
    explanation.hints.iter().map(pasted).collect()
}

/// Why a run waits, as it was said last, so that it is not said again.
#[derive(Debug, Default)]
pub(super) struct Told(Option<(String, Vec<String>)>);

impl Told {
    /// Tells whether something was said of the wait that goes on.
    pub(super) const fn is_something(&self) -> bool {
        self.0.is_some()
    }

    /// Returns what to say of a run that nobody takes, if it is news: what is said aside is none.
    pub(super) fn news(&mut self, explanation: &Explanation, here: &Here) -> Option<String> {
        let is_about_to = |agent: &AgentLack| agent.is_polling && agent.words.is_empty();
        if explanation.state != State::Scheduled || explanation.agents.iter().any(is_about_to) {
            self.0 = None;
            return None;
        }
        let reason = (explanation.summary.clone(), explanation.hints.clone());
        if self.0.as_ref() == Some(&reason) {
            return None;
        }
        self.0 = Some(reason);
        let mut text = format!("waiting: {}", sentence(explanation));
        for hint in hints(explanation, here) {
            text.push_str("\nhint: ");
            text.push_str(&hint);
        }
        Some(text)
    }
}

/// Makes a line that starts an agent fit this machine: with a name where the one that it would take is taken, and
/// without what an agent has here by itself.
///
/// The server cannot: it does not know on which machine the line is pasted.
fn pasteable(hint: &str, here: &Here, agents: &[AgentLack]) -> String {
    const START: &str = "waft agent start";
    let Some((what, flags)) = hint.split_once(START) else {
        return hint.to_owned();
    };
    let on = what
        .split_once("on `")
        .and_then(|(_, rest)| rest.split_once("`: "));
    let host = on.map_or(here.hostname.as_str(), |(host, _)| host);
    let is_taken = |name: &str| agents.iter().any(|agent| agent.agent == name);
    let name = match (2..).find(|number| !is_taken(&format!("{host}-{number}"))) {
        Some(number) if is_taken(host) => format!(" --name {host}-{number}"),
        _ => String::new(),
    };
    if host != here.hostname {
        return format!("{what}{START}{name}{flags}");
    }
    let what = what.replacen(&format!(" on `{host}`"), "", 1);
    let what = what
        .strip_prefix(&format!("on `{host}`: "))
        .unwrap_or(&what);
    let labels = here.labels.iter().chain([&here.hostname]);
    let labels = labels.map(|label| format!(" --label {label}"));
    let roots = here.roots.iter().map(|root| format!(" --root {root}"));
    let mut flags = format!("{flags} ");
    for own in labels.chain(roots) {
        flags = flags.replacen(&format!("{own} "), " ", 1);
    }
    format!("{what}{START}{name}{}", flags.trim_end())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::id::FlowRunId;

    fn explained(state: State, summary: &str, agents: Vec<AgentLack>) -> Explanation {
        Explanation {
            flow_run_id: FlowRunId::at(0, 0),
            state,
            summary: summary.to_owned(),
            aside: String::new(),
            agents,
            agents_gone: None,
            marks: Vec::new(),
            hints: vec!["waft agent start".to_owned()],
        }
    }

    #[test]
    fn why_a_run_waits_is_told_once_and_again_if_it_changes() {
        let mut told = Told::default();
        let here = here();
        let nobody = || explained(State::Scheduled, "no agent polls", Vec::new());
        let text = "waiting: no agent polls\nhint: waft agent start";
        assert_eq!(told.news(&nobody(), &here).as_deref(), Some(text));
        assert_eq!(told.news(&nobody(), &here), None);
        let mut others = nobody();
        others.aside = "2 agents did".to_owned();
        assert_eq!(told.news(&others, &here), None, "the reason is the same");
        let mut agent = AgentLack {
            agent: "nas".to_owned(),
            is_polling: true,
            free_slots: 1,
            missing: Vec::new(),
            words: vec!["has no free slot".to_owned()],
        };
        let busy = explained(State::Scheduled, "`nas` is busy", vec![agent.clone()]);
        assert!(told.news(&busy, &here).is_some());
        agent.words.clear();
        let free = explained(State::Scheduled, "about to", vec![agent]);
        assert_eq!(
            told.news(&free, &here),
            None,
            "an agent is about to take it"
        );
        let runs = explained(State::Running, "`nas` runs it", Vec::new());
        assert_eq!(told.news(&runs, &here), None);
        assert!(told.news(&nobody(), &here).is_some(), "it waits again");
    }

    #[test]
    fn a_hint_to_start_an_agent_names_one_that_is_free() {
        let agent = |name: &str| AgentLack {
            agent: name.to_owned(),
            is_polling: true,
            free_slots: 1,
            missing: Vec::new(),
            words: Vec::new(),
        };
        let hint = "start one with it: waft agent start --label gpu";
        let pasted = |hint: &str, agents: &[AgentLack]| pasteable(hint, &here(), agents);
        assert_eq!(pasted(hint, &[agent("mira")]), hint);
        let taken = [agent("nas"), agent("nas-2")];
        assert_eq!(
            pasted(hint, &taken),
            "start one with it: waft agent start --name nas-3 --label gpu"
        );
        assert_eq!(
            pasted("waft flow-run show 7", &taken),
            "waft flow-run show 7"
        );
        // What an agent has here by itself.
        let whole =
            "waft agent start --project p --label big --label nas --root file:///f --root s3://b/f";
        let rest = "waft agent start --project p --root s3://b/f";
        for (said, told) in [
            (format!("on `nas`: {whole}"), rest.to_owned()),
            (
                format!("start one on `nas`: {whole}"),
                format!("start one: {rest}"),
            ),
            (
                format!("start one on `ox`: {whole}"),
                format!("start one on `ox`: {whole}"),
            ),
            (
                "waft agent start --root s3://b".to_owned(),
                "waft agent start".to_owned(),
            ),
            (
                "waft agent start --root s3://b/c".to_owned(),
                "waft agent start --root s3://b/c".to_owned(),
            ),
        ] {
            assert_eq!(pasted(&said, &[]), told);
        }
    }

    fn here() -> Here {
        let own = |words: &[&str]| words.iter().map(|&word| word.to_owned()).collect();
        Here {
            hostname: "nas".to_owned(),
            labels: own(&["big"]),
            roots: own(&["file:///f", "s3://b"]),
        }
    }
}
