//! States and the events that move runs from one to the next: the lifecycle, as one table.
//!
//! Flow runs and task runs share the states; [`State::after`] is the only place that says what may
//! follow what. The server applies it inside the transaction that writes a transition.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident = $word:literal,)* }) => {
        $(#[$doc])*
        #[derive(
            Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
            utoipa::ToSchema,
        )]
        pub enum $name {
            $($(#[$vdoc])* #[serde(rename = $word)] $variant,)*
        }

        impl $name {
            /// Every one of them, in the order of a life.
            pub const ALL: &'static [Self] = &[$(Self::$variant),*];

            /// Returns the word that stands in the database, on the wire and on the screen.
            #[must_use]
            pub const fn word(self) -> &'static str {
                match self { $(Self::$variant => $word,)* }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(self.word())
            }
        }

        impl FromStr for $name {
            type Err = String;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                let found = Self::ALL.iter().find(|own| own.word().eq_ignore_ascii_case(text));
                found.copied().ok_or_else(|| {
                    let known: Vec<_> = Self::ALL.iter().map(|own| own.word()).collect();
                    format!("`{text}` is none of {}", known.join(", "))
                })
            }
        }
    };
}

words! {
    /// Where a flow run or a task run stands.
    State {
        /// A flow run waits for its time or for an agent.
        Scheduled = "Scheduled",
        /// A task run waits for its upstream tasks.
        Pending = "Pending",
        /// Waits for a slot.
        Queued = "Queued",
        /// An agent has the flow run and fetches or compiles.
        Claimed = "Claimed",
        /// At work.
        Running = "Running",
        /// A task run waits for its next attempt.
        Retrying = "Retrying",
        /// A task run goes on with its next iteration.
        Looped = "Looped",
        /// Waits for a person.
        Paused = "Paused",
        /// A flow run is being stopped.
        Cancelling = "Cancelling",
        /// A mapped task whose task runs are all over.
        Mapped = "Mapped",
        /// Done.
        Success = "Success",
        /// Done long ago; the output came from the cache.
        Cached = "Cached",
        /// Not meant to run.
        Skipped = "Skipped",
        /// The flow's own doing.
        Failed = "Failed",
        /// Took longer than it may.
        TimedOut = "TimedOut",
        /// The upstream states did not let it run.
        TriggerFailed = "TriggerFailed",
        /// Stopped on demand.
        Cancelled = "Cancelled",
        /// Waft's or the machine's doing.
        Crashed = "Crashed",
    }
}

words! {
    /// What moved a run.
    Event {
        /// An agent took the flow run.
        Claim = "claim",
        /// The agent could not fetch it and hands it back.
        Decline = "decline",
        /// The first attempt began.
        Start = "start",
        /// The lease of its agent lapsed, or the agent gave the run back.
        Lose = "lose",
        /// All that is left of the flow run waits for a later attempt: nobody needs to have it until then.
        Rest = "rest",
        /// No slot is free.
        Queue = "queue",
        /// An attempt failed and another follows.
        Retry = "retry",
        /// An iteration ended and another follows.
        Loop = "loop",
        /// Waits for a person.
        Pause = "pause",
        /// A person has decided about a task run: one that waited for that goes on, of another whoever has the
        /// run is told.
        Decide = "decide",
        /// A flow run goes on after a pause.
        Resume = "resume",
        /// A person asked for a stop.
        Cancel = "cancel",
        /// Ended: mapped.
        Map = "map",
        /// Ended well.
        Succeed = "succeed",
        /// Ended by an entry of the cache.
        Cache = "cache",
        /// Ended: skipped.
        Skip = "skip",
        /// Ended badly.
        Fail = "fail",
        /// Ended by its timeout.
        TimeOut = "time-out",
        /// Ended by its trigger.
        FailTrigger = "fail-trigger",
        /// Ended by the stop that was asked for.
        Stop = "stop",
        /// Ended by our or the machine's fault.
        Crash = "crash",
        /// Ended well, as a person says.
        MarkSuccess = "mark-success",
        /// Ended as skipped, as a person says.
        MarkSkipped = "mark-skipped",
        /// Ended badly, as a person says.
        MarkFailed = "mark-failed",
        /// Ended as cancelled, as a person says.
        MarkCancelled = "mark-cancelled",
    }
}

/// Says that an event may not happen in a state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{event}` may not happen to a run that is {state}")]
pub struct Refusal {
    /// Where the run stands.
    pub state: State,
    /// What was to move it.
    pub event: Event,
}

impl State {
    /// Returns the state that follows an event.
    ///
    /// # Errors
    ///
    /// Refuses an event that makes no sense in this state; nothing follows a terminal state.
    pub const fn after(self, event: Event) -> Result<Self, Refusal> {
        use Event as E;
        let next = match (self, event) {
            (Self::Scheduled | Self::Queued, E::Claim) => Self::Claimed,
            // A task run whose attempt was lost asks for a slot anew, and so does one that was handed back.
            (
                Self::Scheduled
                | Self::Pending
                | Self::Queued
                | Self::Running
                | Self::Retrying
                | Self::Looped,
                E::Queue,
            ) => Self::Queued,
            (Self::Claimed, E::Decline) => Self::Scheduled,
            (Self::Claimed | Self::Running, E::Lose | E::Rest) => Self::Scheduled,
            (
                Self::Claimed
                | Self::Pending
                | Self::Queued
                | Self::Retrying
                | Self::Looped
                | Self::Running,
                E::Start,
            ) => Self::Running,
            (Self::Pending | Self::Running, E::Retry) => Self::Retrying,
            (Self::Running, E::Loop) => Self::Looped,
            (Self::Claimed | Self::Running | Self::Pending, E::Pause) => Self::Paused,
            (Self::Paused, E::Decide) => Self::Pending,
            (
                Self::Pending | Self::Queued | Self::Running | Self::Retrying | Self::Looped,
                E::Decide,
            ) => self,
            (Self::Paused, E::Resume) => Self::Scheduled,
            (Self::Scheduled | Self::Queued | Self::Paused, E::Cancel) => Self::Cancelled,
            (Self::Claimed | Self::Running, E::Cancel) => Self::Cancelling,
            // What ends while a stop is under way ends as what it is, but never starts again.
            (Self::Cancelling, E::Succeed) => Self::Success,
            (Self::Cancelling, E::Fail) => Self::Failed,
            (Self::Cancelling, E::TimeOut) => Self::TimedOut,
            (Self::Cancelling, E::Stop | E::Lose | E::Rest | E::Pause | E::Decline) => {
                Self::Cancelled
            }
            (Self::Cancelling, E::Crash) => Self::Crashed,
            (Self::Pending | Self::Running, E::Map) => Self::Mapped,
            // Of a task run also where its start came too late to count: what is finished is finished.
            (
                Self::Claimed
                | Self::Running
                | Self::Pending
                | Self::Queued
                | Self::Retrying
                | Self::Looped,
                E::Succeed,
            ) => Self::Success,
            (Self::Pending | Self::Queued | Self::Running, E::Cache) => Self::Cached,
            // A flow run is skipped where its schedule wants no two at a time.
            (
                Self::Scheduled
                | Self::Queued
                | Self::Pending
                | Self::Running
                | Self::Retrying
                | Self::Looped,
                E::Skip,
            ) => Self::Skipped,
            (Self::Pending, E::FailTrigger) => Self::TriggerFailed,
            // A flow run may have begun before it waited.
            (Self::Scheduled | Self::Queued | Self::Claimed | Self::Running, E::TimeOut) => {
                Self::TimedOut
            }
            (
                Self::Claimed
                | Self::Running
                | Self::Pending
                | Self::Queued
                | Self::Retrying
                | Self::Looped,
                E::Fail,
            ) => Self::Failed,
            (
                Self::Pending
                | Self::Queued
                | Self::Running
                | Self::Retrying
                | Self::Looped
                | Self::Paused,
                E::Stop,
            ) => Self::Cancelled,
            (
                Self::Scheduled
                | Self::Queued
                | Self::Claimed
                | Self::Running
                | Self::Pending
                | Self::Retrying
                | Self::Looped,
                E::Crash,
            ) => Self::Crashed,
            // Wherever it stands, unless it is over.
            (state, E::MarkSuccess) if !state.is_over() => Self::Success,
            (state, E::MarkSkipped) if !state.is_over() => Self::Skipped,
            (state, E::MarkFailed) if !state.is_over() => Self::Failed,
            (state, E::MarkCancelled) if !state.is_over() => Self::Cancelled,
            (state, event) => return Err(Refusal { state, event }),
        };
        Ok(next)
    }

    /// Tells whether nothing follows.
    #[must_use]
    pub const fn is_over(self) -> bool {
        matches!(
            self,
            Self::Mapped
                | Self::Success
                | Self::Cached
                | Self::Skipped
                | Self::Failed
                | Self::TimedOut
                | Self::TriggerFailed
                | Self::Cancelled
                | Self::Crashed
        )
    }

    /// Tells whether it ended well; Skipped counts as well, as it did in Prefect.
    #[must_use]
    pub const fn is_successful(self) -> bool {
        matches!(
            self,
            Self::Mapped | Self::Success | Self::Cached | Self::Skipped
        )
    }

    /// Tells whether it ended badly.
    #[must_use]
    pub const fn is_failed(self) -> bool {
        self.is_over() && !self.is_successful()
    }
}

#[cfg(test)]
mod tests {
    use std::fmt::Write;

    use super::*;

    /// Prints what every event does in every state, so that a change of the lifecycle is reviewed
    /// as a change of one table.
    #[test]
    fn every_event_in_every_state() {
        let mut table = String::new();
        for state in State::ALL {
            for event in Event::ALL {
                if let Ok(next) = state.after(*event) {
                    writeln!(table, "{state:<10} {event:<12} -> {next}").unwrap();
                }
            }
            if state.is_over() {
                writeln!(table, "{state:<10} is over").unwrap();
            }
        }
        expect_test::expect_file!["lifecycle.txt"].assert_eq(&table);
    }

    #[test]
    fn nothing_follows_the_end() {
        for state in State::ALL.iter().filter(|state| state.is_over()) {
            for event in Event::ALL {
                assert!(state.after(*event).is_err(), "{state} {event}");
            }
        }
    }

    #[test]
    fn words_are_read_back() {
        for state in State::ALL {
            assert_eq!(state.word().parse(), Ok(*state));
        }
        assert!("Done".parse::<State>().is_err());
    }
}
