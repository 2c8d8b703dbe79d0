//! Runs: what happened to a flow and its tasks, as it is kept and told.

use std::fmt;
use std::str::FromStr;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::artifact::Digest;
use super::flow::is_name;
use super::state::{Event, State};

/// Splits what was denied into the fact, and what would allow it.
#[must_use]
pub fn denial_parts(denial: &str) -> (&str, &str) {
    denial.split_once("; ").unwrap_or((denial, ""))
}

/// Names a task run inside its flow run: a task, and the element if it is mapped.
#[derive(
    Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, utoipa::ToSchema,
)]
pub struct TaskRunKey {
    /// The task's name.
    pub task: String,
    /// The element of a mapped task, from 0.
    #[serde(default)]
    pub map_index: Option<u32>,
}

impl TaskRun {
    /// Returns its name in its flow run.
    #[must_use]
    pub fn key(&self) -> TaskRunKey {
        TaskRunKey {
            task: self.task.clone(),
            map_index: self.map_index,
        }
    }
}

impl fmt::Display for TaskRunKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.map_index {
            None => f.write_str(&self.task),
            Some(index) => write!(f, "{}[{index}]", self.task),
        }
    }
}

impl FromStr for TaskRunKey {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (task, map_index) = match text.strip_suffix(']').and_then(|it| it.split_once('[')) {
            None => (text, None),
            Some((task, index)) => {
                let index = index.parse::<u32>();
                (task, Some(index.map_err(|_| wrong_key(text))?))
            }
        };
        match is_name(task) {
            true => Ok(Self {
                task: task.to_owned(),
                map_index,
            }),
            false => Err(wrong_key(text)),
        }
    }
}

fn wrong_key(text: &str) -> String {
    format!("`{text}` is no task, such as `load`, or `load[3]` for one element of a mapped task")
}

/// What an attempt used: its receipt. Sums over the attempts of a task run where it is shown there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(default)]
pub struct Usage {
    /// Milliseconds of CPU time.
    pub cpu_ms: u64,
    /// Milliseconds from instantiation to the end.
    pub wall_ms: u64,
    /// The most bytes of memory and tables at one time.
    pub memory_peak_bytes: u64,
    /// Microseconds that instantiation took.
    pub instantiate_us: u64,
    /// Bytes of log.
    pub log_bytes: u64,
    /// Bytes received by HTTP.
    pub http_bytes_in: u64,
    /// Bytes sent by HTTP.
    pub http_bytes_out: u64,
}

impl Usage {
    /// Adds another attempt: amounts are summed, peaks are the larger one.
    pub fn add(&mut self, other: &Self) {
        self.cpu_ms += other.cpu_ms;
        self.wall_ms += other.wall_ms;
        self.memory_peak_bytes = self.memory_peak_bytes.max(other.memory_peak_bytes);
        self.instantiate_us += other.instantiate_us;
        self.log_bytes += other.log_bytes;
        self.http_bytes_in += other.http_bytes_in;
        self.http_bytes_out += other.http_bytes_out;
    }
}

/// Where an output is kept: a stretch of a segment in a result storage.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ResultRef {
    /// The storage root.
    pub root: String,
    /// The segment's key under the root.
    pub segment: String,
    /// Where the value starts, in bytes.
    pub offset: u64,
    /// How many bytes it has.
    pub length: u64,
    /// The digest of these bytes.
    pub digest: Digest,
    /// The content type of the value.
    pub content_type: String,
}

/// What a person wants of a task run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// One that waits for a person goes on.
    Approve,
    /// One that waits for a person fails.
    Decline,
    /// It ends as Success, with an output given by hand.
    Success,
    /// It ends as Skipped.
    Skipped,
    /// It ends as Failed.
    Failed,
    /// It ends as Cancelled.
    Cancelled,
}

impl Verdict {
    /// The states that something that is not over can be marked as.
    pub const MARKS: [State; 4] = [
        State::Success,
        State::Skipped,
        State::Failed,
        State::Cancelled,
    ];

    /// Returns what marks something as being in a state; none if nobody can.
    #[must_use]
    pub const fn mark(state: State) -> Option<Self> {
        Some(match state {
            State::Success => Self::Success,
            State::Skipped => Self::Skipped,
            State::Failed => Self::Failed,
            State::Cancelled => Self::Cancelled,
            _ => return None,
        })
    }

    /// Returns how whatever is marked so ends; none if it only answers a question.
    #[must_use]
    pub const fn ends(self) -> Option<Event> {
        Some(match self {
            Self::Approve | Self::Decline => return None,
            Self::Success => Event::MarkSuccess,
            Self::Skipped => Event::MarkSkipped,
            Self::Failed => Event::MarkFailed,
            Self::Cancelled => Event::MarkCancelled,
        })
    }

    /// Returns the stable word for what ended it.
    #[must_use]
    pub const fn code(self) -> Option<&'static str> {
        match self {
            Self::Approve | Self::Success | Self::Skipped => None,
            Self::Decline => Some("declined"),
            Self::Failed => Some("marked"),
            Self::Cancelled => Some("cancelled"),
        }
    }
}

/// What a person has decided about a task run: the answer to what it asked, or how it ends, whatever it does.
///
/// Whoever has the run sees to it, once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Decision {
    /// What.
    pub verdict: Verdict,
    /// With Success: the output, a text of JSON; `null` unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output: Option<String>,
    /// Who decided.
    pub by: String,
    /// What they had to say; may be empty.
    pub reason: String,
    /// When, by the server's clock.
    pub at: Timestamp,
}

impl Decision {
    /// Tells whether it says how the task run ends.
    #[must_use]
    pub const fn is_mark(&self) -> bool {
        self.verdict.ends().is_some()
    }
}

impl fmt::Display for Decision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match self.verdict {
            Verdict::Approve => "approved",
            Verdict::Decline => "declined",
            Verdict::Success => "marked Success",
            Verdict::Skipped => "marked Skipped",
            Verdict::Failed => "marked Failed",
            Verdict::Cancelled => "cancelled",
        };
        write!(f, "{what} by `{}`", self.by)?;
        match self.reason.as_str() {
            "" => Ok(()),
            reason => write!(f, ": {reason}"),
        }
    }
}

/// How much a log line matters.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Serialize,
    Deserialize,
    utoipa::ToSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    /// For whoever looks for a bug.
    Debug,
    /// What happens.
    Info,
    /// What might be wrong.
    Warning,
    /// What is wrong.
    Error,
}

/// One line that a task, or the agent about it, said.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct LogLine {
    /// When it was said, by the agent's clock.
    pub at: Timestamp,
    /// How much it matters.
    pub level: Level,
    /// The task run it belongs to; none for the flow run as a whole.
    #[serde(default)]
    pub task_run: Option<TaskRunKey>,
    /// The attempt, from 1; 0 where there is none.
    #[serde(default)]
    pub attempt: u32,
    /// The text, one line, control characters escaped.
    pub text: String,
}

/// What a task shows a human beside its output.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Card {
    /// The task run that shows it.
    pub task_run: TaskRunKey,
    /// Its title; a later card of the same title replaces it.
    pub title: String,
    /// What is shown.
    pub content: CardContent,
}

/// What a card holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum CardContent {
    /// Text in markdown.
    Markdown {
        /// The text.
        text: String,
    },
    /// A table; each row has as many cells as there are columns.
    Table {
        /// Their headings.
        columns: Vec<String>,
        /// The cells.
        rows: Vec<Vec<String>>,
    },
    /// A link, `http` or `https`.
    Link {
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

/// One execution of a task.
#[derive(Clone, Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub struct TaskRun {
    /// The task's name.
    pub task: String,
    /// The element of a mapped task.
    pub map_index: Option<u32>,
    /// Where it stands.
    pub state: State,
    /// Why, in words; may be empty.
    pub message: String,
    /// A stable word for what ended it.
    pub code: Option<String>,
    /// How many attempts were started.
    pub attempts: u32,
    /// How many of them, in this iteration, the flow failed: those count against the retries.
    #[serde(default)]
    pub failures: u32,
    /// Iterations done by the signal `loop`.
    pub loop_count: u32,
    /// Where it is Retrying: not before this instant.
    #[serde(default)]
    pub retry_at: Option<Timestamp>,
    /// When its first attempt began.
    pub started_at: Option<Timestamp>,
    /// When it was over.
    pub ended_at: Option<Timestamp>,
    /// What its attempts used.
    pub usage: Usage,
    /// Where its output, or its loop value, is kept.
    pub result: Option<ResultRef>,
    /// What it asked for and did not get.
    #[serde(default)]
    pub denials: Vec<String>,
    /// What a person has decided: since it was paused last, or how it ends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decision: Option<Decision>,
}

/// What happened.
#[derive(Clone, Debug, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Happening {
    /// The flow run moved.
    FlowRun(FlowRunMoved),
    /// A task run moved.
    TaskRun(TaskRunMoved),
    /// Lines were said.
    Log {
        /// In order.
        lines: Vec<LogLine>,
    },
    /// A card was shown.
    Card {
        /// The card.
        card: Card,
    },
    /// What keeps a claimed run from its first attempt: it moves nothing.
    Preparing {
        /// In words, such as `compiling`.
        message: String,
    },
}

/// The flow run moved.
#[derive(Clone, Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub struct FlowRunMoved {
    /// What moved it.
    pub event: Event,
    /// Why, in words.
    #[serde(default)]
    pub message: String,
    /// A stable word for what ended it.
    #[serde(default)]
    pub code: Option<String>,
    /// Where its result is kept.
    #[serde(default)]
    pub result: Option<ResultRef>,
    /// After a Rest: milliseconds until it goes on.
    #[serde(default)]
    pub delay_ms: u64,
}

/// A task run moved.
#[derive(Clone, Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub struct TaskRunMoved {
    /// Which one.
    pub task_run: TaskRunKey,
    /// What moved it.
    pub event: Event,
    /// Why, in words.
    #[serde(default)]
    pub message: String,
    /// A stable word for what ended it.
    #[serde(default)]
    pub code: Option<String>,
    /// Attempts started so far.
    #[serde(default)]
    pub attempts: u32,
    /// How many of them, in this iteration, the flow failed.
    #[serde(default)]
    pub failures: u32,
    /// After a Retry: milliseconds until the next attempt.
    #[serde(default)]
    pub delay_ms: u64,
    /// Iterations done so far.
    #[serde(default)]
    pub loop_count: u32,
    /// What all attempts used so far.
    #[serde(default)]
    pub usage: Usage,
    /// Where its output, or its loop value, is kept.
    #[serde(default)]
    pub result: Option<ResultRef>,
    /// What it asked for and did not get.
    #[serde(default)]
    pub denials: Vec<String>,
    /// With Decide: when that was decided of which somebody has heard.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decided_at: Option<Timestamp>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_task_run_is_named_by_its_task_and_element() {
        for text in ["load", "load[0]", "a.b-c_d[41]"] {
            let key: TaskRunKey = text.parse().unwrap();
            assert_eq!(key.to_string(), text);
        }
        for text in ["", "[1]", "load[]", "load[-1]", "load[x]", "load]", "lo ad"] {
            assert!(text.parse::<TaskRunKey>().is_err(), "{text}");
        }
    }
}
