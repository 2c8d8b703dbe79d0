//! Ids: typed, so that an agent's id is never taken for a run's.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// Says that a text is no id.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not an id: expected a UUID such as 01978f6e-7b1c-7c3e-a7a1-3f0d8b1c2d3e")]
pub struct NoId(String);

macro_rules! ids {
    ($($(#[$doc:meta])* $name:ident;)*) => {$(
        $(#[$doc])*
        #[derive(
            Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
            utoipa::ToSchema,
        )]
        #[serde(transparent)]
        #[schema(value_type = String, format = "uuid")]
        pub struct $name(Uuid);

        impl $name {
            /// Makes an id that sorts by the instant it was made at (UUID version 7).
            ///
            /// `at_us` is microseconds since the epoch, `random` comes from a secure source.
            #[must_use]
            pub fn at(at_us: i64, random: u128) -> Self {
                let millis = u64::try_from(at_us / 1000).unwrap_or_default();
                let random = random.to_le_bytes();
                let mut tail = [0; 10];
                tail.copy_from_slice(&random[..10]);
                Self(uuid::Builder::from_unix_timestamp_millis(millis, &tail).into_uuid())
            }

            /// Returns the 16 bytes that the database keeps.
            #[must_use]
            pub const fn as_bytes(&self) -> &[u8; 16] {
                self.0.as_bytes()
            }

            /// Reads the 16 bytes that the database keeps.
            ///
            /// # Errors
            ///
            /// Fails on any other number of bytes.
            pub fn from_slice(bytes: &[u8]) -> Result<Self, NoId> {
                Uuid::from_slice(bytes)
                    .map(Self)
                    .map_err(|_| NoId(hex::encode(bytes)))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl FromStr for $name {
            type Err = NoId;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                Uuid::try_parse(text)
                    .map(Self)
                    .map_err(|_| NoId(text.chars().take(80).collect()))
            }
        }
    )*};
}

ids! {
    /// Names a project.
    ProjectId;
    /// Names a flow, across its versions.
    FlowId;
    /// Names one registered version of a flow.
    FlowVersionId;
    /// Names one execution of a flow version.
    FlowRunId;
    /// Names an agent, by its `WAFT_HOME` and name.
    AgentId;
    /// Names one stay of an agent with the server, from its start to its stop.
    SessionId;
    /// Names a token, without being the token.
    TokenId;
}
