//! The life of one task run: what its attempts ended in and what follows from it.

use jiff::Timestamp;

use super::super::flow::{Body, OnLost, Task};
use super::super::limit;
use super::super::run::{Decision, ResultRef, TaskRun, TaskRunKey, TaskRunMoved, Usage};
use super::super::state::{Event, State};
use super::super::value::Value;

/// What an attempt ended in.
#[derive(Clone, Debug)]
pub struct Ended {
    /// How.
    pub ending: Ending,
    /// What it used.
    pub usage: Usage,
    /// What it asked for and did not get.
    pub denials: Vec<String>,
}

/// How an attempt ended. Whatever carries a result is durable already.
#[derive(Clone, Debug)]
pub enum Ending {
    /// With an output.
    Success {
        /// What the task has to say; may be empty.
        message: String,
        /// The output.
        value: Value,
        /// Where it is kept.
        result: ResultRef,
    },
    /// It was not made: an earlier output serves.
    Cached {
        /// The output.
        value: Value,
        /// Where it is kept.
        result: ResultRef,
    },
    /// It was not made: it has to ask for slots first.
    Queue,
    /// The next iteration follows.
    Loop {
        /// What it is given.
        value: Value,
        /// Where that is kept.
        result: ResultRef,
    },
    /// The task had nothing to do.
    Skip(String),
    /// The flow's own doing: an error, a trap, a limit.
    Fail {
        /// Why.
        message: String,
        /// A stable word for it.
        code: Option<String>,
        /// Whether no retry follows.
        is_final: bool,
    },
    /// It took longer than it may. Retries follow.
    TimeOut {
        /// How long it may take.
        message: String,
    },
    /// It asked for another attempt.
    Retry {
        /// Why.
        message: String,
        /// Milliseconds to wait; none follows the retries of the task.
        after_ms: Option<u64>,
    },
    /// It asked for a person.
    Pause(String),
    /// It was stopped together with its run, which [`super::Graph::stop`] follows up.
    Stopped,
    /// Waft's or the machine's doing.
    Crash {
        /// Why.
        message: String,
    },
}

/// A value that was returned: at hand, or where it can be had.
#[derive(Clone, Debug, Default)]
pub(super) enum Kept {
    /// There is none, or nobody needs it any more.
    #[default]
    Nothing,
    /// It is kept, but not at hand.
    There(ResultRef),
    /// It is kept and at hand.
    Here(Value, ResultRef),
    /// It is kept, but could not be read, for this reason.
    Lost(Lost, ResultRef),
}

/// Why a value of an earlier claim is lost. Whoever needs it crashes: what is finished is never made again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lost {
    /// In words.
    pub why: String,
    /// A stable word for it.
    pub code: &'static str,
}

impl Kept {
    pub(super) fn result(&self) -> Option<&ResultRef> {
        match self {
            Self::Nothing => None,
            Self::There(result) | Self::Here(_, result) | Self::Lost(_, result) => Some(result),
        }
    }

    pub(super) fn value(&self) -> Option<&Value> {
        match self {
            Self::Here(value, _) => Some(value),
            Self::Nothing | Self::There(_) | Self::Lost(..) => None,
        }
    }

    /// Lets go of the value, keeping where it is.
    pub(super) fn forget(&mut self) {
        if let Self::Here(_, result) = self {
            *self = Self::There(result.clone());
        }
    }
}

/// One task run, from its first attempt to its end.
#[derive(Clone, Debug)]
pub(super) struct Life {
    pub(super) state: State,
    pub(super) message: String,
    pub(super) code: Option<String>,
    /// Attempts started, in all claims and iterations.
    pub(super) attempts: u32,
    /// Attempts of this iteration that the flow failed.
    failures: u32,
    /// Attempts of this iteration that we failed.
    crashes: u32,
    pub(super) loop_count: u32,
    pub(super) loop_value: Kept,
    pub(super) output: Kept,
    /// When the next attempt is due, if an earlier claim was waiting for it.
    pub(super) rest_until: Option<Timestamp>,
    /// Milliseconds between the last attempt and the next one.
    delay_ms: u64,
    usage: Usage,
    denials: Vec<String>,
    /// What a person has decided: since it was paused last, or how it ends.
    pub(super) decision: Option<Decision>,
    /// Whether an attempt goes on, begun under this claim.
    pub(super) is_at_work: bool,
}

/// What follows the end of an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// The task run is over.
    Over(Event),
    /// Another attempt follows after so many milliseconds.
    Again(Event, u64),
    /// A person decides what follows.
    Paused,
    /// The run is about to be stopped as a whole.
    Stopped,
}

impl Default for Life {
    fn default() -> Self {
        Self {
            state: State::Pending,
            message: String::new(),
            code: None,
            attempts: 0,
            failures: 0,
            crashes: 0,
            loop_count: 0,
            loop_value: Kept::Nothing,
            output: Kept::Nothing,
            rest_until: None,
            delay_ms: 0,
            usage: Usage::default(),
            denials: Vec::new(),
            decision: None,
            is_at_work: false,
        }
    }
}

impl Life {
    /// Continues a task run of an earlier claim.
    ///
    /// An attempt that was going on when its agent was lost is not counted against its retries.
    pub(super) fn resumed(earlier: TaskRun) -> Self {
        let kept = earlier.result.map_or(Kept::Nothing, Kept::There);
        let is_over = earlier.state.is_over();
        let (output, loop_value) = match is_over {
            true => (kept, Kept::Nothing),
            false => (Kept::Nothing, kept),
        };
        Self {
            state: earlier.state,
            message: earlier.message,
            code: earlier.code,
            attempts: earlier.attempts,
            failures: earlier.failures,
            crashes: 0,
            loop_count: earlier.loop_count,
            loop_value,
            output,
            rest_until: earlier
                .retry_at
                .filter(|_| earlier.state == State::Retrying),
            delay_ms: 0,
            usage: earlier.usage,
            denials: earlier.denials,
            decision: earlier.decision,
            is_at_work: false,
        }
    }

    /// Stands for a task run of which nothing is known although it should be.
    pub(super) fn unknown() -> Self {
        Self {
            state: State::Crashed,
            message: "nothing is known of it".to_owned(),
            code: Some("internal".to_owned()),
            ..Self::default()
        }
    }

    /// Tells whether an attempt was going on when its agent was lost and may not be made again.
    pub(super) fn is_lost_for_good(&self, task: &Task, lost: u32) -> bool {
        let was_running = self.state == State::Running;
        was_running && (task.on_lost == OnLost::Fail || lost > limit::LOST_MAX)
    }

    /// Returns what a person said about how it ends, if one did.
    pub(super) fn mark(&self) -> Option<&Decision> {
        self.decision.as_ref().filter(|decision| decision.is_mark())
    }

    /// Begins an attempt.
    pub(super) fn start(&mut self) {
        self.attempts += 1;
        self.state = State::Running;
        self.is_at_work = true;
        self.message.clear();
    }

    /// Takes back an attempt that has to wait for slots.
    pub(super) fn queue(&mut self, message: String) {
        self.attempts -= 1;
        self.state = State::Queued;
        self.message = message;
        self.code = None;
    }

    /// Ends the task run as it is.
    pub(super) fn end(&mut self, event: Event, message: String, code: Option<&str>) {
        self.state = match event {
            Event::Map => State::Mapped,
            Event::Succeed | Event::MarkSuccess => State::Success,
            Event::Cache => State::Cached,
            Event::Skip | Event::MarkSkipped => State::Skipped,
            Event::TimeOut => State::TimedOut,
            Event::FailTrigger => State::TriggerFailed,
            Event::Stop | Event::MarkCancelled => State::Cancelled,
            Event::Crash => State::Crashed,
            _ => State::Failed,
        };
        self.message = message;
        self.code = code.map(str::to_owned);
        self.loop_value = Kept::Nothing;
    }

    /// Takes the end of an attempt and says what follows. `random`, from 0 to 1, is the jitter.
    pub(super) fn ended(&mut self, task: &Task, ended: Ended, random: f64) -> Next {
        self.is_at_work = false;
        self.usage.add(&ended.usage);
        for denial in ended.denials {
            if !self.denials.contains(&denial) {
                self.denials.push(denial);
            }
        }
        if let Some(mark) = self.mark() {
            let message = mark.to_string();
            return self.ended_by_hand(ended.ending, message);
        }
        match ended.ending {
            Ending::Success {
                message,
                value,
                result,
            } => {
                self.output = Kept::Here(value, result);
                self.over(Event::Succeed, message, None)
            }
            Ending::Cached { value, result } => {
                self.attempts -= 1;
                self.output = Kept::Here(value, result);
                self.over(Event::Cache, String::new(), None)
            }
            // The graph asks before it comes to this.
            Ending::Queue => Next::Stopped,
            Ending::Loop { value, result } => self.next_iteration(value, result),
            Ending::Skip(reason) => self.over(Event::Skip, reason, None),
            Ending::Fail {
                message,
                code,
                is_final,
            } => {
                let delay = self.retry_delay(task, random).filter(|_| !is_final);
                match delay {
                    Some(delay) => self.again(message, code, delay),
                    None => self.over(Event::Fail, message, code.as_deref()),
                }
            }
            Ending::TimeOut { message } => match self.retry_delay(task, random) {
                Some(delay) => self.again(message, Some("limit.wall".to_owned()), delay),
                None => self.over(Event::TimeOut, message, Some("limit.wall")),
            },
            Ending::Retry { message, after_ms } => match self.retry_delay(task, random) {
                Some(delay) => self.again(message, None, after_ms.unwrap_or(delay).min(DAY_MS)),
                None => {
                    let count = task.retries.as_ref().map_or(0, |retries| retries.count);
                    let message = format!(
                        "it asked for another attempt, but none of its {count} retries is left: \
                         {message}"
                    );
                    self.over(Event::Fail, message, None)
                }
            },
            Ending::Pause(reason) => {
                self.pause(reason);
                Next::Paused
            }
            Ending::Stopped => Next::Stopped,
            Ending::Crash { message } => {
                self.crashes += 1;
                let may_again = task.on_lost == OnLost::Retry && task.body != Body::Merge;
                match may_again && self.crashes <= limit::LOST_MAX {
                    true => self.again(message, Some("internal".to_owned()), 0),
                    false => self.over(Event::Crash, message, Some("internal")),
                }
            }
        }
    }

    /// Takes what became of the output that a person gave it, which is all that was still to be done.
    fn ended_by_hand(&mut self, ending: Ending, message: String) -> Next {
        match ending {
            Ending::Success { value, result, .. } => {
                self.output = Kept::Here(value, result);
                self.over(Event::MarkSuccess, message, None)
            }
            Ending::Stopped => Next::Stopped,
            Ending::Crash { message } => self.over(Event::Crash, message, Some("internal")),
            _ => self.over(
                Event::Crash,
                "its output was not kept".to_owned(),
                Some("internal"),
            ),
        }
    }

    /// Lets a person decide what follows.
    pub(super) fn pause(&mut self, reason: String) {
        self.state = State::Paused;
        self.message = reason;
        self.code = None;
        self.decision = None;
    }

    /// Takes what a person has decided.
    pub(super) fn decided(&mut self, decision: Decision) {
        self.state = State::Pending;
        self.message = decision.to_string();
        self.decision = Some(decision);
    }

    /// Counts a failure of the flow; answers how long to wait if an attempt is left.
    fn retry_delay(&mut self, task: &Task, random: f64) -> Option<u64> {
        self.failures += 1;
        let retries = task.retries.as_ref()?;
        (self.failures <= retries.count).then(|| retries.delay_ms(self.failures, random))
    }

    fn next_iteration(&mut self, value: Value, result: ResultRef) -> Next {
        self.loop_count += 1;
        if self.loop_count >= limit::LOOPS_MAX {
            let message = format!("it went past {} iterations", limit::LOOPS_MAX);
            return self.over(Event::Fail, message, Some("limit.loops"));
        }
        self.failures = 0;
        self.crashes = 0;
        self.state = State::Looped;
        self.message.clear();
        self.code = None;
        self.loop_value = Kept::Here(value, result);
        Next::Again(Event::Loop, 0)
    }

    fn again(&mut self, message: String, code: Option<String>, delay_ms: u64) -> Next {
        self.state = State::Retrying;
        self.delay_ms = delay_ms;
        self.message = message;
        self.code = code;
        Next::Again(Event::Retry, delay_ms)
    }

    fn over(&mut self, event: Event, message: String, code: Option<&str>) -> Next {
        self.end(event, message, code);
        Next::Over(event)
    }

    /// Says where the task run stands after an event.
    pub(super) fn moved(&self, task_run: TaskRunKey, event: Event) -> TaskRunMoved {
        let kept = match event {
            Event::Succeed | Event::Cache | Event::MarkSuccess => &self.output,
            _ => &self.loop_value,
        };
        TaskRunMoved {
            task_run,
            event,
            message: self.message.clone(),
            code: self.code.clone(),
            attempts: self.attempts,
            failures: self.failures,
            delay_ms: match event {
                Event::Retry => self.delay_ms,
                _ => 0,
            },
            loop_count: self.loop_count,
            usage: self.usage,
            result: kept.result().cloned(),
            denials: self.denials.clone(),
            decided_at: match (event, &self.decision) {
                (Event::Decide, Some(decision)) => Some(decision.at),
                _ => None,
            },
        }
    }
}

const DAY_MS: u64 = 24 * 60 * 60 * 1000;
