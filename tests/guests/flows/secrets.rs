//! Reads a secret that it asked for, one that the agent may not have, and one that it did not ask for.

use waft_sdk::prelude::*;

/// Answers the length only: outputs are not for secrets.
#[task(secrets = ["token"])]
fn asked() -> TaskResult<usize> {
    Ok(secrets::get("token")?.len())
}

#[task]
fn unasked() -> TaskResult<String> {
    match secrets::get("token") {
        Ok(_) => Ok("given".to_string()),
        Err(secrets::Error::Denied(text)) => Ok(text),
        Err(error) => Err(error.into()),
    }
}

/// Answers what the task that did not ask was told.
#[flow(name = "secrets")]
fn secrets_flow() -> Node<String> {
    unasked().after(&asked())
}
