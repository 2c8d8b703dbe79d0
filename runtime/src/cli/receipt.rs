//! What a run was and what came out, as `waft run` and `waft flow-run show` print it.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::Serialize;
use serde_json::value::RawValue;

use super::failure::Done;
use super::output::{Output, lay_out};
use super::{Call, words};
use crate::config::{Millis, hostname};
use crate::model::run::{Card, CardContent, ResultRef, TaskRun, Usage};
use crate::model::state::State;
use crate::model::value::Value;
use crate::storage::{Results, StorageError};
use crate::wire::FlowRun;

/// The result of a run as a JSON field: the value, or why there is none to show.
#[derive(Debug, Serialize)]
pub(crate) struct ShownResult {
    /// The value; text that is no JSON is a string.
    pub(crate) result: Option<Box<RawValue>>,
    /// Its content type, if it is not JSON.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) result_content_type: Option<String>,
    /// Why it is null.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) result_unavailable: Option<String>,
}

/// A task run as the JSON of a run shows it.
#[derive(Debug, Serialize)]
pub(crate) struct ShownTask {
    task: String,
    map_index: Option<u32>,
    state: State,
    message: String,
    code: Option<String>,
    attempts: u32,
    loop_count: u32,
    started_at: Option<Timestamp>,
    ended_at: Option<Timestamp>,
    duration_ms: Option<u64>,
    usage: Usage,
    denials: Vec<String>,
}

/// What `waft run --json` prints.
#[derive(Debug, Serialize)]
pub(crate) struct Receipt {
    /// The flow's name.
    pub(crate) flow: String,
    /// The run's id, as every object that is shown has one.
    pub(crate) id: String,
    /// The same, under the name by which other objects speak of it.
    pub(crate) flow_run_id: String,
    /// How it ended.
    pub(crate) state: State,
    /// Why.
    pub(crate) message: String,
    /// A stable word for what ended it.
    pub(crate) code: Option<String>,
    /// What came out.
    #[serde(flatten)]
    pub(crate) result: ShownResult,
    /// The component.
    pub(crate) artifact: String,
    /// What went in, defaults filled in.
    pub(crate) parameters: BTreeMap<String, serde_json::Value>,
    /// When its first attempt began.
    pub(crate) started_at: Option<Timestamp>,
    /// When it was over.
    pub(crate) ended_at: Option<Timestamp>,
    /// Its task runs.
    pub(crate) tasks: Vec<ShownTask>,
    /// What its tasks showed.
    pub(crate) cards: Vec<Card>,
}

impl ShownResult {
    /// Shows a value.
    pub(crate) fn of(value: &Value) -> Self {
        let text = std::str::from_utf8(&value.bytes);
        let raw = match text {
            Ok(text) if value.is_json() => serde_json::from_str(text).ok(),
            Ok(text) => serde_json::value::to_raw_value(text).ok(),
            Err(_) => None,
        };
        let size = words::size(value.bytes.len() as u64);
        Self {
            result_unavailable: raw
                .is_none()
                .then(|| format!("it is {size} of `{}`", value.content_type)),
            result: raw,
            result_content_type: (!value.is_json()).then(|| value.content_type.clone()),
        }
    }

    /// Says why there is none; no reason where a run simply has no result.
    pub(crate) const fn none(why: Option<String>) -> Self {
        Self {
            result: None,
            result_content_type: None,
            result_unavailable: why,
        }
    }
}

/// Reads the result of a run from where it is kept.
///
/// # Errors
///
/// Says in words why it is out of reach.
pub(crate) async fn resolve(
    reference: &ResultRef,
    run: &FlowRun,
    call: &Call,
) -> Result<Value, String> {
    let found = Results::look_up(reference, &hostname(), &call.config.access()).await;
    found.map_err(|error| {
        if let (StorageError::NotFound { .. }, Some(ended), Some(until)) =
            (&error, run.ended_at, run.result_until)
            && until < call.clock.now()
        {
            return deleted(ended, until);
        }
        let error = anyhow::Error::new(error);
        let chain: Vec<_> = error.chain().map(ToString::to_string).collect();
        chain.join(": ")
    })
}

/// Says why a result is not there that nobody promised to keep for so long.
fn deleted(ended: Timestamp, until: Timestamp) -> String {
    let keep = until.duration_since(ended).as_millis();
    format!(
        "it was deleted: the run ended {}, and results are kept for {}",
        words::instant(ended),
        Millis(u64::try_from(keep).unwrap_or_default())
    )
}

impl From<TaskRun> for ShownTask {
    fn from(run: TaskRun) -> Self {
        Self {
            duration_ms: words::millis_between(run.started_at, run.ended_at),
            task: run.task,
            map_index: run.map_index,
            state: run.state,
            message: run.message,
            code: run.code,
            attempts: run.attempts,
            loop_count: run.loop_count,
            started_at: run.started_at,
            ended_at: run.ended_at,
            usage: run.usage,
            denials: run.denials,
        }
    }
}

/// Writes the task runs as a table for people.
///
/// # Errors
///
/// As [`Output::line`].
pub(crate) fn task_table(output: &Output, tasks: &[ShownTask]) -> Done {
    let rows: Vec<_> = tasks
        .iter()
        .map(|task| {
            let index = task
                .map_index
                .map_or_else(String::new, |index| format!("[{index}]"));
            vec![
                format!("{}{index}", task.task),
                task.state.to_string(),
                task.attempts.to_string(),
                task.duration_ms
                    .map_or_else(|| "-".to_owned(), words::duration),
                words::duration(task.usage.cpu_ms),
                words::size(task.usage.memory_peak_bytes),
                task.message.clone(),
            ]
        })
        .collect();
    let columns = [
        "task", "state", "attempts", "time", "cpu", "memory", "message",
    ];
    output.table(&columns, &rows, "no task has begun")
}

/// Writes a card for people.
pub(crate) fn card_text(card: &Card) -> String {
    let content = match &card.content {
        CardContent::Markdown { text } => text.trim_end().to_owned(),
        CardContent::Table { columns, rows } => lay_out(columns, rows).join("\n"),
        CardContent::Link { url } => url.clone(),
        CardContent::Progress {
            done,
            total,
            message,
        } => format!("{done} of {total} {message}"),
    };
    format!("--- {} ({})\n{content}", card.title, card.task_run)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_result_is_shown_as_what_it_is() {
        let show = |content_type: &str, bytes: &'static [u8]| {
            let value = Value {
                content_type: content_type.to_owned(),
                bytes: bytes.into(),
            };
            serde_json::to_value(ShownResult::of(&value)).unwrap()
        };
        assert_eq!(show("application/json", br#"{"a": 1}"#)["result"]["a"], 1);
        assert_eq!(show("text/plain", b"a \"b\"")["result"], "a \"b\"");
        assert_eq!(
            show("text/plain", b"a")["result_content_type"],
            "text/plain"
        );
        let binary = show("image/png", b"\x89PNG");
        assert!(binary["result"].is_null());
        assert_eq!(binary["result_unavailable"], "it is 4 bytes of `image/png`");
    }

    #[test]
    fn a_result_that_was_deleted_is_said_to_be() {
        let ended: Timestamp = "2026-01-05T12:00:00Z".parse().unwrap();
        let why = deleted(ended, ended + crate::server::RESULTS_KEEP);
        assert!(
            why.starts_with("it was deleted: the run ended 2026-01-05"),
            "{why}"
        );
        assert!(why.ends_with("and results are kept for 30d"), "{why}");
    }

    #[test]
    fn a_large_number_keeps_its_digits_inside_a_receipt() {
        let receipt = Receipt {
            flow: "f".to_owned(),
            id: String::new(),
            flow_run_id: String::new(),
            state: State::Success,
            message: String::new(),
            code: None,
            result: ShownResult::of(&Value::json("12345678901234567890123")),
            artifact: String::new(),
            parameters: BTreeMap::new(),
            started_at: None,
            ended_at: None,
            tasks: Vec::new(),
            cards: Vec::new(),
        };
        let text = serde_json::to_string(&receipt).unwrap();
        assert!(
            text.contains(r#""result":12345678901234567890123,"#),
            "{text}"
        );
    }
}
