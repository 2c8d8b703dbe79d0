//! How a task ends other than by returning its output.
//!
//! A task body returns [`TaskResult`]; `?` turns any error into a failure, and the constructors of
//! [`Signal`] say everything else. The code that `#[task]` writes hands the signal to the host.

use crate::bindings::exports::waft::flow::tasks;
use crate::value::{IntoValue, Value};
use std::error::Error;
use std::time::Duration;

/// What a task body returns: its output, or a [`Signal`].
pub type TaskResult<T = ()> = Result<T, Signal>;

/// A failure that a task declares.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// For a human.
    pub message: String,
    /// True: no retry, however many are left.
    pub is_final: bool,
}

/// How a task ends other than by returning its output.
///
/// Every `std::error::Error`, `anyhow::Error`, `String` and `&str` becomes [`Signal::Fail`] through `?`
/// or `into()`, its message the whole chain of causes.
///
/// ```
/// # use waft_sdk::prelude::*;
/// # use std::time::Duration;
/// #[task(retries = 5)]
/// fn import(file: String) -> TaskResult<usize> {
///     if file.is_empty() {
///         return Err(Signal::skip("nothing to import"));
///     }
///     if file.ends_with(".part") {
///         return Err(Signal::retry_after(Duration::from_secs(30), "still being written"));
///     }
///     if !file.ends_with(".csv") {
///         return Err(Signal::fail_for_good(format!("`{file}` is not a CSV file")));
///     }
///     Ok(std::fs::read_to_string(&file)?.lines().count())
/// }
/// ```
#[derive(Clone, Debug, PartialEq)]
pub enum Signal {
    /// Ends the attempt as Failed; retries follow unless it is final.
    Fail(Failure),
    /// Ends the task as Success at once, with a message and an output.
    Success {
        /// For a human.
        message: String,
        /// What the task returns.
        output: Value,
    },
    /// Ends the task as Skipped, with the reason. Downstream tasks are skipped too, unless they say
    /// `skip_on_upstream_skip = false`.
    Skip(String),
    /// Asks for another attempt, which counts against the retries of the task.
    Retry {
        /// For a human.
        message: String,
        /// How long to wait; none follows the retries of the task.
        after: Option<Duration>,
    },
    /// Waits for a person's approval, and is then attempted again: [`run::approval`](crate::run::approval)
    /// says by whom. Takes no retry, and no slot while it waits.
    Pause(String),
    /// Ends this iteration; the next one starts in a fresh sandbox with this value.
    Loop(Value),
}

impl Signal {
    /// Fails the attempt; the retries of the task follow.
    pub fn fail(message: impl Into<String>) -> Self {
        Self::Fail(Failure {
            message: message.into(),
            is_final: false,
        })
    }

    /// Fails the task, however many retries are left.
    pub fn fail_for_good(message: impl Into<String>) -> Self {
        Self::Fail(Failure {
            message: message.into(),
            is_final: true,
        })
    }

    /// Ends the task as Success with something to say beside its output.
    ///
    /// The output should be of the type that the task returns: whoever is downstream reads it as that.
    pub fn success(message: impl Into<String>, output: impl IntoValue) -> Self {
        match output.into_value() {
            Ok(output) => Self::Success {
                message: message.into(),
                output,
            },
            Err(failure) => failure,
        }
    }

    /// Ends the task as Skipped.
    pub fn skip(reason: impl Into<String>) -> Self {
        Self::Skip(reason.into())
    }

    /// Asks for another attempt after the delay that the task's attribute gives.
    pub fn retry(message: impl Into<String>) -> Self {
        Self::Retry {
            message: message.into(),
            after: None,
        }
    }

    /// Asks for another attempt after this delay.
    pub fn retry_after(delay: Duration, message: impl Into<String>) -> Self {
        Self::Retry {
            message: message.into(),
            after: Some(delay),
        }
    }

    /// Waits for a person, who is shown the reason; see [`run::approval`](crate::run::approval).
    ///
    /// Tasks that do not hang on this one go on meanwhile. A person who declines ends it as Failed.
    pub fn pause(reason: impl Into<String>) -> Self {
        Self::Pause(reason.into())
    }

    /// Starts the next iteration, which reads the value with [`run::loop_value`](crate::run::loop_value).
    ///
    /// At most 10,000 iterations. The value is kept before the next one starts, so that a run that
    /// resumes goes on where it was.
    pub fn loop_with(value: impl IntoValue) -> Self {
        match value.into_value() {
            Ok(value) => Self::Loop(value),
            Err(failure) => failure,
        }
    }

    pub(crate) fn into_wit(self) -> tasks::Signal {
        match self {
            Self::Fail(Failure { message, is_final }) => {
                tasks::Signal::Fail(tasks::Failure { message, is_final })
            }
            Self::Success { message, output } => {
                tasks::Signal::Success(tasks::Success { message, output })
            }
            Self::Skip(reason) => tasks::Signal::Skip(reason),
            Self::Retry { message, after } => tasks::Signal::Retry(tasks::Retry {
                message,
                after_ms: after.map(millis),
            }),
            Self::Pause(reason) => tasks::Signal::Pause(reason),
            Self::Loop(value) => tasks::Signal::Loop(value),
        }
    }
}

impl<E: Into<Box<dyn Error>>> From<E> for Signal {
    fn from(error: E) -> Self {
        Self::fail(chain(&*error.into()))
    }
}

/// What the body of a task returns, as the attribute sees it.
#[doc(hidden)]
#[diagnostic::on_unimplemented(
    message = "a task cannot return `{Self}`",
    label = "not an outcome",
    note = "return `TaskResult<T>`, or a `Result` whose error implements `std::error::Error`"
)]
pub trait Outcome {
    /// Turns what the body returned into what the host is told.
    fn outcome(self) -> Result<Value, Signal>;
}

impl<T: IntoValue, E: Into<Signal>> Outcome for Result<T, E> {
    fn outcome(self) -> Result<Value, Signal> {
        match self {
            Ok(output) => output.into_value(),
            Err(error) => Err(error.into()),
        }
    }
}

/// Tells `#[task]` what it cannot read in a name: whether a type is a `Result`.
///
/// The constant of the type itself goes before that of the trait, and only a `Result` has one of its own.
#[doc(hidden)]
pub struct Probe<T>(std::marker::PhantomData<T>);

impl<T, E> Probe<Result<T, E>> {
    pub const IS_RESULT: bool = true;
}

/// See [`Probe`].
#[doc(hidden)]
pub trait NoResult {
    const IS_RESULT: bool = false;
}

impl<T> NoResult for Probe<T> {}

/// The outcome of a body that returns its output plainly.
#[doc(hidden)]
pub fn plain(output: impl IntoValue) -> Result<Value, Signal> {
    output.into_value()
}

/// An error and what caused it, in one line.
fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

/// Milliseconds, rounded up so that no delay becomes none.
fn millis(delay: Duration) -> u64 {
    // Not by `as_nanos`, whose division of 128 bits alone is 1.4 KB of an artifact.
    let rest = delay.subsec_nanos().div_ceil(1_000_000);
    delay
        .as_secs()
        .saturating_mul(1_000)
        .saturating_add(u64::from(rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> TaskResult<u8> {
        Ok(text.parse::<u8>()?)
    }

    #[test]
    fn an_error_becomes_a_failure_that_may_be_retried() {
        assert_eq!(
            parse("x"),
            Err(Signal::fail("invalid digit found in string"))
        );
        assert_eq!(Signal::from("plain words"), Signal::fail("plain words"));
    }

    #[test]
    fn the_message_holds_every_cause() {
        #[derive(Debug)]
        struct Outer(std::num::ParseIntError);
        impl std::fmt::Display for Outer {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("reading the port")
            }
        }
        impl Error for Outer {
            fn source(&self) -> Option<&(dyn Error + 'static)> {
                Some(&self.0)
            }
        }
        let error = Outer("x".parse::<u16>().unwrap_err());
        assert_eq!(
            Signal::from(error),
            Signal::fail("reading the port: invalid digit found in string")
        );
    }

    #[test]
    fn a_delay_is_rounded_up() {
        assert_eq!(millis(Duration::from_nanos(1)), 1);
        assert_eq!(millis(Duration::new(1, 999_999_999)), 2_000);
        assert_eq!(millis(Duration::from_secs(2)), 2_000);
        assert_eq!(millis(Duration::MAX), u64::MAX);
    }
}
