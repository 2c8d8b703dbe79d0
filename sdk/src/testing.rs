//! Native fakes of everything a task asks of its host, for `cargo test` in a flow crate.
//!
//! Only off wasm32. The fakes belong to the thread, and the test runner gives every test its own, so
//! tests do not meet; [`reset`] starts over within one.
//!
//! ```
//! use waft_sdk::{prelude::*, testing};
//!
//! #[task(secrets = ["token"])]
//! fn login() -> TaskResult<String> {
//!     if run::attempt() == 1 {
//!         return Err(Signal::retry("first try"));
//!     }
//!     log::info!("logged in");
//!     Ok(secrets::get("token")?)
//! }
//!
//! assert!(login::run().is_err());
//! testing::set_run(|info| info.attempt = 2);
//! testing::set_secret("token", "s3cret");
//! assert_eq!(login::run().unwrap(), "s3cret");
//! assert_eq!(testing::log_lines()[0].text, "logged in");
//! ```

use crate::bindings::waft::flow::types::NamedValue;
use crate::http::{Error as HttpError, Request, Response};
use crate::log::Level;
use crate::run::{Approval, Info};
use crate::secrets::Error as SecretError;
use crate::value::IntoValue;
use crate::{Flow, definition};
use std::cell::RefCell;

thread_local! {
    static FAKES: RefCell<Fakes> = RefCell::new(Fakes::new());
}

struct Fakes {
    info: Info,
    approval: Option<Approval>,
    parameters: Vec<NamedValue>,
    secrets: Vec<(String, String)>,
    answers: Vec<(String, Response)>,
    requests: Vec<Request>,
    lines: Vec<LogLine>,
    cards: Vec<Card>,
}

impl Fakes {
    fn new() -> Self {
        Self {
            info: Info {
                flow_run_id: "test-run".to_string(),
                flow: "test".to_string(),
                task: "test".to_string(),
                map_index: None,
                attempt: 1,
                loop_count: 0,
                loop_value: None,
                scheduled_at_us: 0,
                idempotency_key: "test-run/test".to_string(),
            },
            approval: None,
            parameters: Vec::new(),
            secrets: Vec::new(),
            answers: Vec::new(),
            requests: Vec::new(),
            lines: Vec::new(),
            cards: Vec::new(),
        }
    }
}

/// A line that a task logged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogLine {
    /// How much it matters.
    pub level: Level,
    /// What it says.
    pub text: String,
}

/// A card that a task showed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Card {
    /// Text in markdown.
    Markdown {
        /// What it is called.
        title: String,
        /// The markdown.
        text: String,
    },
    /// A table.
    Table {
        /// What it is called.
        title: String,
        /// The heads of the columns.
        columns: Vec<String>,
        /// The cells.
        rows: Vec<Vec<String>>,
    },
    /// A link.
    Link {
        /// What it is called.
        title: String,
        /// Where it leads.
        url: String,
    },
    /// How far the task is.
    Progress {
        /// Steps done.
        done: u64,
        /// Steps in all.
        total: u64,
        /// What it does now.
        message: String,
    },
}

impl Card {
    /// None for progress, of which there is one.
    fn title(&self) -> Option<&str> {
        match self {
            Self::Markdown { title, .. } | Self::Table { title, .. } | Self::Link { title, .. } => {
                Some(title)
            }
            Self::Progress { .. } => None,
        }
    }
}

/// Describes a flow as a host would: `testing::describe::<my_flow>()`, by the name of its function.
///
/// # Errors
///
/// Answers the first mistake in the flow that the compiler could not see.
pub fn describe<F: Flow>() -> Result<definition::Flow, String> {
    crate::export::describe::<F>()
}

/// Forgets everything set and collected on this thread.
pub fn reset() {
    FAKES.with_borrow_mut(|fakes| *fakes = Fakes::new());
}

/// Changes what [`run::current`](crate::run::current) answers.
pub fn set_run(change: impl FnOnce(&mut Info)) {
    FAKES.with_borrow_mut(|fakes| change(&mut fakes.info));
}

/// Lets a person approve: [`run::approval`](crate::run::approval) answers so from now on.
pub fn approve(by: &str, reason: &str) {
    let approval = Approval {
        by: by.to_string(),
        reason: reason.to_string(),
        at_us: 0,
    };
    FAKES.with_borrow_mut(|fakes| fakes.approval = Some(approval));
}

/// Sets a parameter of the flow run.
///
/// # Panics
///
/// Panics if the value cannot be written as JSON.
pub fn set_parameter(name: &str, value: impl IntoValue) {
    let value = value
        .into_value()
        .unwrap_or_else(|signal| panic!("parameter `{name}`: {signal:?}"));
    FAKES.with_borrow_mut(|fakes| {
        fakes.parameters.retain(|known| known.name != name);
        fakes.parameters.push(NamedValue {
            name: name.to_string(),
            value,
        })
    });
}

/// Gives the agent a secret.
pub fn set_secret(name: &str, value: &str) {
    FAKES.with_borrow_mut(|fakes| fakes.secrets.push((name.to_string(), value.to_string())));
}

/// Answers every request to exactly this URL. A request that nothing answers is denied.
pub fn respond(url: &str, response: Response) {
    FAKES.with_borrow_mut(|fakes| fakes.answers.push((url.to_string(), response)));
}

/// Answers the requests made so far.
pub fn requests() -> Vec<Request> {
    FAKES.with_borrow(|fakes| fakes.requests.clone())
}

/// Answers the lines logged so far.
pub fn log_lines() -> Vec<LogLine> {
    FAKES.with_borrow(|fakes| fakes.lines.clone())
}

/// Answers the cards shown so far.
pub fn cards() -> Vec<Card> {
    FAKES.with_borrow(|fakes| fakes.cards.clone())
}

pub(crate) fn current() -> Info {
    FAKES.with_borrow(|fakes| fakes.info.clone())
}

pub(crate) fn approval() -> Option<Approval> {
    FAKES.with_borrow(|fakes| fakes.approval.clone())
}

pub(crate) fn parameters() -> Vec<NamedValue> {
    FAKES.with_borrow(|fakes| fakes.parameters.clone())
}

pub(crate) fn secret(name: &str) -> Result<String, SecretError> {
    FAKES.with_borrow(|fakes| {
        let found = fakes.secrets.iter().rev().find(|(known, _)| known == name);
        found
            .map(|(_, value)| value.clone())
            .ok_or_else(|| SecretError::Unknown(name.to_string()))
    })
}

pub(crate) fn send(request: Request) -> Result<Response, HttpError> {
    FAKES.with_borrow_mut(|fakes| {
        let url = request.url.clone();
        fakes.requests.push(request);
        let found = fakes.answers.iter().rev().find(|(known, _)| *known == url);
        found.map(|(_, response)| response.clone()).ok_or_else(|| {
            HttpError::Denied(format!(
                "no answer for `{url}` in this test: `testing::respond` sets one"
            ))
        })
    })
}

pub(crate) fn note_line(level: Level, line: &str) {
    FAKES.with_borrow_mut(|fakes| {
        fakes.lines.push(LogLine {
            level,
            text: line.to_string(),
        })
    });
}

pub(crate) fn note_card(card: Card) {
    FAKES.with_borrow_mut(|fakes| {
        // As the host does: a card replaces the one of the same title.
        fakes.cards.retain(|shown| shown.title() != card.title());
        fakes.cards.push(card);
    });
}
