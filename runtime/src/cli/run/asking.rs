//! Who decides about a task that waits for a person, where there is no server: whoever is at the terminal.

use jiff::Timestamp;
use tokio::sync::mpsc;

use crate::cli::Call;
use crate::cli::output::{Output, can_ask};
use crate::model::run::{Decision, TaskRunKey, Verdict};

/// Asks about one task run after the other, while the rest of the run goes on.
pub(super) struct Asking {
    questions: mpsc::UnboundedReceiver<(TaskRunKey, String)>,
    decisions: mpsc::UnboundedSender<(TaskRunKey, Decision)>,
    is_yes: bool,
}

/// Where it is told that a task run asks something.
pub(super) type Questions = mpsc::UnboundedSender<(TaskRunKey, String)>;

impl Asking {
    /// Makes it, and where to put questions. `is_yes` says yes to all of them.
    pub(super) fn new(
        decisions: mpsc::UnboundedSender<(TaskRunKey, Decision)>,
        is_yes: bool,
    ) -> (Self, Questions) {
        let (sender, questions) = mpsc::unbounded_channel();
        let asking = Self {
            questions,
            decisions,
            is_yes,
        };
        (asking, sender)
    }

    /// Asks until there is nobody to be asked; answers with what could not be.
    pub(super) async fn go(mut self, call: &Call) -> String {
        while let Some((key, question)) = self.questions.recv().await {
            let is_approved = match self.is_yes {
                true => Some(true),
                false if !can_ask() => None,
                false => asked(&call.output, format!("approve `{key}`? {question}")).await,
            };
            let Some(is_approved) = is_approved else {
                return format!("`{key}` waits for a person, and there is no terminal: {question}");
            };
            let decision = decision(is_approved, call.clock.now());
            let _ = self.decisions.send((key, decision));
        }
        std::future::pending().await
    }
}

/// Has the question answered on a thread that nobody waits for: a run that is interrupted ends all the same.
async fn asked(output: &Output, question: String) -> Option<bool> {
    let output = output.clone();
    let answer = tokio::task::spawn_blocking(move || output.answer(&question));
    answer.await.ok()?.ok()
}

fn decision(is_approved: bool, at: Timestamp) -> Decision {
    Decision {
        verdict: match is_approved {
            true => Verdict::Approve,
            false => Verdict::Decline,
        },
        output: None,
        by: "waft run".to_owned(),
        reason: String::new(),
        at,
    }
}
