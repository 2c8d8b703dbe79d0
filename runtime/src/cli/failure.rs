//! How a command ends when it does not end well: what failed, why, what to do, which exit code.
//!
//! The rooms below have errors of their own; here they get the exit code that belongs to them and a
//! hint. The voice: lower case, no full stop, names in backticks, what failed before why.

use std::fmt;
use std::process::ExitCode;

use crate::client::ClientError;
use crate::config::{BadConfig, BadHome};
use crate::model::parameter::BadParameters;
use crate::server::db::DbError;

/// What a command returns.
pub type Done<T = ()> = Result<T, Failure>;

/// Whose turn it is when a command did not do what it was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Whoever reads the pipe has gone away: nothing to say, nothing wrong.
    Gone,
    /// It could not be done.
    Could,
    /// Arguments or configuration alone show that it is wrong.
    Usage,
    /// The run that was run or watched did not succeed.
    Run,
    /// A bug of ours.
    Bug,
}

/// Why a command did not do what it was asked for.
#[derive(Debug)]
pub struct Failure {
    /// Decides the exit code.
    pub kind: Kind,
    /// What failed; the chain says why.
    pub error: anyhow::Error,
    /// A command, or a line to paste.
    pub hint: Option<String>,
}

impl Failure {
    /// Says that something could not be done.
    pub fn new(error: impl Into<anyhow::Error>) -> Self {
        let error = error.into();
        let kind = match error.is::<BadConfig>() {
            true => Kind::Usage,
            false => Kind::Could,
        };
        let on_parameters = error.downcast_ref().and_then(BadParameters::hint);
        let hint = on_parameters
            .or_else(|| error.downcast_ref().and_then(hint_on_call))
            .or_else(|| Some(error.downcast_ref::<BadHome>()?.hint()?.to_owned()))
            .or_else(|| Some(error.downcast_ref::<DbError>()?.hint()?.to_owned()));
        Self { kind, error, hint }
    }

    /// Says in one sentence that something could not be done.
    pub fn could(message: impl fmt::Display + fmt::Debug + Send + Sync + 'static) -> Self {
        Self::new(anyhow::Error::msg(message))
    }

    /// Says that the arguments alone are wrong.
    pub fn usage(message: impl fmt::Display + fmt::Debug + Send + Sync + 'static) -> Self {
        Self::could(message).of(Kind::Usage)
    }

    /// Says that whoever reads the pipe has gone away.
    pub(crate) fn gone() -> Self {
        Self::could("the output was closed").of(Kind::Gone)
    }

    /// Changes whose turn it is.
    #[must_use]
    pub fn of(mut self, kind: Kind) -> Self {
        self.kind = kind;
        self
    }

    /// Adds what to do, unless something better is known already.
    #[must_use]
    pub fn or_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint.get_or_insert_with(|| hint.into());
        self
    }

    /// Says what it means in larger terms, in front of what was said.
    #[must_use]
    pub fn context(mut self, what: impl fmt::Display + Send + Sync + 'static) -> Self {
        self.error = self.error.context(what);
        self
    }

    /// Returns the code by which a server refused, if that is what failed.
    #[must_use]
    pub fn refusal(&self) -> Option<&str> {
        self.error.downcast_ref::<ClientError>()?.code()
    }

    /// Tells whether the same call to the server may go well a moment later.
    #[must_use]
    pub fn is_passing(&self) -> bool {
        let error = self.error.downcast_ref::<ClientError>();
        error.is_some_and(ClientError::is_passing)
    }

    /// Returns the exit code that scripts rely on.
    #[must_use]
    pub const fn code(&self) -> u8 {
        match self.kind {
            Kind::Gone => 0,
            Kind::Could => 1,
            Kind::Usage => 2,
            Kind::Run => 3,
            Kind::Bug => 70,
        }
    }
}

impl<E: Into<anyhow::Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::new(error)
    }
}

impl From<Failure> for ExitCode {
    fn from(failure: Failure) -> Self {
        Self::from(failure.code())
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "error: {}", self.error)?;
        for cause in self.error.chain().skip(1) {
            write!(f, "\n  caused by: {cause}")?;
        }
        match &self.hint {
            Some(hint) => write!(f, "\nhint: {hint}"),
            None => Ok(()),
        }
    }
}

fn hint_on_call(error: &ClientError) -> Option<String> {
    match error {
        // The server speaks of headers; here a token is a flag.
        ClientError::Refused(refused) if refused.status == 401 => Some(
            "--token TOKEN; on the machine of the server, waft server token prints a new one, \
             with its --db if it has one"
                .to_owned(),
        ),
        ClientError::Refused(refused) => refused.hint.clone(),
        ClientError::Unreachable(_) => {
            Some("waft up starts a server here; --server URL names another".to_owned())
        }
        ClientError::Unreadable(_) => Some(
            "--server URL names a server of waft; bring it and this program to the same version"
                .to_owned(),
        ),
    }
}

#[cfg(test)]
mod tests {
    use anyhow::Context as _;

    use super::*;

    #[test]
    fn it_says_what_then_why_then_what_to_do() {
        let error = Err::<(), _>(std::io::Error::other("the disk is full"))
            .context("cannot write `a`")
            .unwrap_err();
        let failure = Failure::new(error).or_hint("df .").or_hint("never");
        let text = "error: cannot write `a`\n  caused by: the disk is full\nhint: df .";
        assert_eq!(failure.to_string(), text);
        assert_eq!(failure.code(), 1);
    }

    #[test]
    fn a_wrong_configuration_is_wrong_usage_also_inside_other_words() {
        let wrong = || BadConfig::UnknownVariable("WAFT__X".to_owned());
        assert_eq!(Failure::from(wrong()).code(), 2);
        assert_eq!(
            Failure::from(anyhow::Error::new(wrong()).context("starting")).code(),
            2
        );
        assert_eq!(Failure::could("no").of(Kind::Bug).code(), 70);
    }
}
