//! Refusals of the API: one type, one list of codes.

use axum::response::{IntoResponse, Response};
use http::StatusCode;

use super::db::DbError;
use crate::model::state::Refusal;
use crate::wire::ErrorBody;

macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident = $word:literal, $status:ident;)*) => {
        /// Why a call was refused; stable, in kebab-case on the wire.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Code {
            $($(#[$doc])* $name,)*
        }

        impl Code {
            /// Every one of them.
            pub const ALL: &'static [Self] = &[$(Self::$name),*];

            /// Returns the word on the wire.
            #[must_use]
            pub const fn word(self) -> &'static str {
                match self { $(Self::$name => $word,)* }
            }

            /// Returns the status that goes with it.
            #[must_use]
            pub const fn status(self) -> StatusCode {
                match self { $(Self::$name => StatusCode::$status,)* }
            }
        }
    };
}

codes! {
    /// The body is not JSON, or not of the shape that the call takes.
    BodyBad = "body-bad", BAD_REQUEST;
    /// The body is larger than the call takes.
    BodyTooLarge = "body-too-large", PAYLOAD_TOO_LARGE;
    /// The body did not come in time.
    BodySlow = "body-slow", REQUEST_TIMEOUT;
    /// The query has an unknown or unusable part.
    QueryBad = "query-bad", BAD_REQUEST;
    /// A part of the path is no id or no name.
    PathBad = "path-bad", BAD_REQUEST;
    /// There is no such address.
    RouteUnknown = "route-unknown", NOT_FOUND;
    /// There is such an address, for another method.
    MethodWrong = "method-wrong", METHOD_NOT_ALLOWED;
    /// The server is called by a name that it does not go by.
    HostWrong = "host-wrong", FORBIDDEN;
    /// A browser sent it from a page of somebody else.
    OriginWrong = "origin-wrong", FORBIDDEN;
    /// There is no token, or one that opens nothing.
    TokenWrong = "token-wrong", UNAUTHORIZED;
    /// The token may not do this.
    Forbidden = "forbidden", FORBIDDEN;
    /// A name has characters that are not allowed.
    NameBad = "name-bad", BAD_REQUEST;
    /// A label is not a word.
    LabelBad = "label-bad", BAD_REQUEST;
    /// There is no such project.
    ProjectUnknown = "project-unknown", NOT_FOUND;
    /// There is one of this name.
    ProjectExists = "project-exists", CONFLICT;
    /// It has flows.
    ProjectNotEmpty = "project-not-empty", CONFLICT;
    /// There is no such flow.
    FlowUnknown = "flow-unknown", NOT_FOUND;
    /// Several projects have a flow of this name.
    FlowAmbiguous = "flow-ambiguous", CONFLICT;
    /// There is one of this name.
    FlowExists = "flow-exists", CONFLICT;
    /// It takes no runs.
    FlowArchived = "flow-archived", CONFLICT;
    /// An agent has a run of it.
    FlowBusy = "flow-busy", CONFLICT;
    /// The flow has no version of this number.
    VersionUnknown = "version-unknown", NOT_FOUND;
    /// The definition is not one.
    DefinitionBad = "definition-bad", UNPROCESSABLE_ENTITY;
    /// Where the artifact lies is no storage root and key.
    LocationBad = "location-bad", BAD_REQUEST;
    /// The parameters do not fit.
    ParametersBad = "parameters-bad", UNPROCESSABLE_ENTITY;
    /// A number is out of its range.
    ValueBad = "value-bad", BAD_REQUEST;
    /// The key was used for something else.
    IdempotencyConflict = "idempotency-conflict", CONFLICT;
    /// There is no such run.
    FlowRunUnknown = "flow-run-unknown", NOT_FOUND;
    /// It is over.
    FlowRunOver = "flow-run-over", CONFLICT;
    /// Nothing of it waits for a person, or nothing of what was named.
    FlowRunNotPaused = "flow-run-not-paused", CONFLICT;
    /// It has no task of this name, or no such element of it.
    TaskUnknown = "task-unknown", NOT_FOUND;
    /// The task run is over.
    TaskRunOver = "task-run-over", CONFLICT;
    /// An agent has it.
    FlowRunBusy = "flow-run-busy", CONFLICT;
    /// What was asked makes no sense in the state it is in.
    StateWrong = "state-wrong", CONFLICT;
    /// There is no such token.
    TokenUnknown = "token-unknown", NOT_FOUND;
    /// There is one of this name.
    TokenExists = "token-exists", CONFLICT;
    /// There is no such agent.
    AgentUnknown = "agent-unknown", NOT_FOUND;
    /// Several agents have this name.
    AgentAmbiguous = "agent-ambiguous", CONFLICT;
    /// A process of another `WAFT_HOME` has this name, and is there.
    AgentExists = "agent-exists", CONFLICT;
    /// The session is not the agent's newest, or from before the database.
    SessionUnknown = "session-unknown", CONFLICT;
    /// The agent speaks a protocol that this server does not.
    ProtocolUnsupported = "protocol-unsupported", UPGRADE_REQUIRED;
    /// Somebody else changed it at the same moment; try again.
    Raced = "raced", CONFLICT;
    /// The disk of the database is full.
    StorageFull = "storage-full", INSUFFICIENT_STORAGE;
    /// The file of the database is damaged.
    DatabaseDamaged = "database-damaged", INTERNAL_SERVER_ERROR;
    /// The server cannot reach its database.
    DatabaseAway = "database-away", SERVICE_UNAVAILABLE;
    /// The server is on its way down.
    Closing = "closing", SERVICE_UNAVAILABLE;
    /// Our fault; the log says more.
    Internal = "internal", INTERNAL_SERVER_ERROR;
}

/// A refusal on its way out.
#[derive(Debug)]
pub struct ApiError {
    code: Code,
    message: String,
    hint: Option<String>,
}

/// What a handler answers.
pub type Answer<T> = Result<T, ApiError>;

impl ApiError {
    /// Refuses with a message: what failed and why, lower case, names in backticks.
    #[must_use]
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            hint: None,
        }
    }

    /// Adds a command or a line that mends it.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Returns the code.
    #[must_use]
    pub const fn code(&self) -> Code {
        self.code
    }

    /// Returns the message.
    #[must_use]
    pub fn message(&self) -> &str {
        &self.message
    }
}

impl From<DbError> for ApiError {
    fn from(error: DbError) -> Self {
        match error {
            DbError::Full => Self::new(
                Code::StorageFull,
                "nothing was written: the disk of the server's database is full",
            )
            .hint("make room on that disk; nothing that was acknowledged is lost, and all goes on by itself"),
            DbError::Damaged { ref source, .. } => {
                let error = &**source as &dyn std::error::Error;
                tracing::error!(error, "the database is damaged");
                Self::new(Code::DatabaseDamaged, "the server's database is damaged").hint(
                    "stop the server, and put a backup in its place: waft server restore FILE",
                )
            }
            DbError::Closed => Self::new(Code::Closing, "the server is on its way down"),
            DbError::Away(why) => {
                let error = &why as &dyn std::error::Error;
                tracing::warn!(error, "the database is away");
                Self::new(Code::DatabaseAway, "the server cannot reach its database")
            }
            DbError::Raced => Self::new(Code::Raced, "another change came first; try again"),
            other => {
                tracing::error!(
                    error = &other as &dyn std::error::Error,
                    "the database failed"
                );
                Self::new(
                    Code::Internal,
                    "the server could not do it; its log says why",
                )
            }
        }
    }
}

impl From<Refusal> for ApiError {
    fn from(refusal: Refusal) -> Self {
        let code = match refusal.state.is_over() {
            true => Code::FlowRunOver,
            false => Code::StateWrong,
        };
        Self::new(code, refusal.to_string())
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let body = ErrorBody {
            code: self.code.word().to_owned(),
            message: self.message,
            hint: self.hint,
        };
        (self.code.status(), axum::Json(body)).into_response()
    }
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;

    use super::*;

    /// Prints every code with its status, so that a change of what clients match on is reviewed.
    #[test]
    fn every_code_and_its_status() {
        let mut table = String::new();
        for code in Code::ALL {
            let (word, status) = (code.word(), code.status().as_u16());
            writeln!(table, "{status} {word}").unwrap();
            assert!(word.chars().all(|c| c.is_ascii_lowercase() || c == '-'));
        }
        expect_test::expect_file!["error_codes.txt"].assert_eq(&table);
    }
}
