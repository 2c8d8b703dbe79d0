//! Why a call of the API did not do what it was to do.

/// Why a call did not do what it was to do.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ClientError {
    /// The server answered, and said no.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// No answer came.
    #[error(transparent)]
    Unreachable(#[from] Unreachable),
    /// An answer came, and makes no sense here: another version gave it, or no server of waft.
    #[error(transparent)]
    Unreadable(#[from] Unreadable),
}

/// The server said no.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{message}")]
pub struct Refused {
    /// The status of the answer.
    pub status: u16,
    /// A stable word in kebab-case, such as `flow-unknown`.
    pub code: String,
    /// What failed and why.
    pub message: String,
    /// A command or a line that mends it.
    pub hint: Option<String>,
}

/// No answer came from the server.
#[derive(Clone, Debug, thiserror::Error)]
#[error("cannot reach the server at `{url}`: {why}")]
pub struct Unreachable {
    /// The address that was tried.
    pub url: String,
    /// Why, in the words of whoever found out.
    pub why: String,
}

/// The server's answer is none that this client reads.
#[derive(Clone, Debug, thiserror::Error)]
#[error("cannot read the answer of the server at `{url}`: {why}")]
pub struct Unreadable {
    /// The address that was asked.
    pub url: String,
    /// What is wrong with the answer.
    pub why: String,
}

impl ClientError {
    /// Returns the refusal's code; none if the server did not refuse.
    #[must_use]
    pub fn code(&self) -> Option<&str> {
        match self {
            Self::Refused(refused) => Some(&refused.code),
            Self::Unreachable(_) | Self::Unreadable(_) => None,
        }
    }

    /// Tells whether the same call may go well a moment later: no answer came, or the server said
    /// that it is too busy or on its way down. What cannot be read now never can.
    #[must_use]
    pub const fn is_passing(&self) -> bool {
        match self {
            Self::Unreachable(_) => true,
            Self::Unreadable(_) => false,
            Self::Refused(refused) => matches!(refused.status, 429 | 502..=504),
        }
    }
}
