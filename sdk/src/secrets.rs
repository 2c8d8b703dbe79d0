//! Values that lie on the agent's side and never reach the server.
//!
//! A task asks for each by name: `#[task(secrets = ["api-token"])]`.

/// Why a secret was not given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Error {
    /// The task did not ask for it, or the agent does not allow it. Names the line that would.
    Denied(String),
    /// The agent has no secret of this name.
    Unknown(String),
}

impl std::fmt::Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Denied(text) => f.write_str(text),
            Self::Unknown(name) => write!(f, "the agent has no secret `{name}`"),
        }
    }
}

impl std::error::Error for Error {}

/// Reads a secret.
///
/// # Errors
///
/// Says whether it is denied or unknown; a task may go on without it.
pub fn get(name: &str) -> Result<String, Error> {
    #[cfg(target_arch = "wasm32")]
    {
        use crate::bindings::waft::flow::secrets;
        secrets::get(name).map_err(|error| match error {
            secrets::Error::Denied(text) => Error::Denied(text),
            secrets::Error::Unknown(name) => Error::Unknown(name),
        })
    }
    #[cfg(not(target_arch = "wasm32"))]
    crate::testing::secret(name)
}
