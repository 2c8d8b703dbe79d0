//! Why a run is where it is, as `explain` and whoever watches a run say it.

use crate::config::hostname;
use crate::model::state::State;
use crate::wire::{AgentLack, Explanation};

/// Puts the answer and what belongs to it into one sentence.
pub(super) fn sentence(explanation: &Explanation) -> String {
    match explanation.aside.as_str() {
        "" => explanation.summary.clone(),
        aside => format!("{}; {aside}", explanation.summary),
    }
}

/// Returns what would help, as lines that can be pasted here.
pub(super) fn hints(explanation: &Explanation) -> Vec<String> {
    let named = |hint: &String| with_free_name(hint, &hostname(), &explanation.agents);
    explanation.hints.iter().map(named).collect()
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
    pub(super) fn news(&mut self, explanation: &Explanation) -> Option<String> {
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
        for hint in hints(explanation) {
            text.push_str("\nhint: ");
            text.push_str(&hint);
        }
        Some(text)
    }
}

/// Adds a name to a line that starts an agent, where the name that it would take is taken.
///
/// The server cannot: it does not know on which machine the line is pasted.
fn with_free_name(hint: &str, hostname: &str, agents: &[AgentLack]) -> String {
    const START: &str = "waft agent start";
    let is_taken = |name: &str| agents.iter().any(|agent| agent.agent == name);
    if !hint.contains(START) || !is_taken(hostname) {
        return hint.to_owned();
    }
    let number = (2..).find(|number| !is_taken(&format!("{hostname}-{number}")));
    let named = format!("{START} --name {hostname}-{}", number.unwrap_or(2));
    hint.replacen(START, &named, 1)
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
            hints: vec!["waft agent start".to_owned()],
        }
    }

    #[test]
    fn why_a_run_waits_is_told_once_and_again_if_it_changes() {
        let mut told = Told::default();
        let nobody = || explained(State::Scheduled, "no agent polls", Vec::new());
        let text = "waiting: no agent polls\nhint: waft agent start";
        assert_eq!(told.news(&nobody()).as_deref(), Some(text));
        assert_eq!(told.news(&nobody()), None);
        let mut others = nobody();
        others.aside = "2 agents did".to_owned();
        assert_eq!(told.news(&others), None, "the reason is the same");
        let mut agent = AgentLack {
            agent: "nas".to_owned(),
            is_polling: true,
            free_slots: 1,
            missing: Vec::new(),
            words: vec!["has no free slot".to_owned()],
        };
        let busy = explained(State::Scheduled, "`nas` is busy", vec![agent.clone()]);
        assert!(told.news(&busy).is_some());
        agent.words.clear();
        let free = explained(State::Scheduled, "about to", vec![agent]);
        assert_eq!(told.news(&free), None, "an agent is about to take it");
        let runs = explained(State::Running, "`nas` runs it", Vec::new());
        assert_eq!(told.news(&runs), None);
        assert!(told.news(&nobody()).is_some(), "it waits again");
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
        let named = |agents: &[AgentLack]| with_free_name(hint, "nas", agents);
        assert_eq!(named(&[agent("mira")]), hint);
        assert_eq!(
            named(&[agent("nas"), agent("nas-2")]),
            "start one with it: waft agent start --name nas-3 --label gpu"
        );
    }
}
