//! Tells which environment variables it sees: at most the one that it asked for.

use waft_sdk::prelude::*;

#[task(env = ["GREETING"])]
fn asked() -> TaskResult<Vec<String>> {
    Ok(std::env::vars()
        .map(|(name, value)| format!("{name}={value}"))
        .collect())
}

#[task]
fn unasked(before: Vec<String>) -> TaskResult<Vec<Vec<String>>> {
    Ok(vec![
        before,
        std::env::vars().map(|(name, _)| name).collect(),
    ])
}

/// Answers what each of two tasks sees.
#[flow]
fn env() -> Node<Vec<Vec<String>>> {
    unasked(asked())
}
