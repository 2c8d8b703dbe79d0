//! Answers its parameter.

use waft_sdk::prelude::*;

#[task]
fn echo(text: String) -> TaskResult<String> {
    Ok(text)
}

/// Answers its parameter.
#[flow(name = "echo")]
fn echo_flow(#[default("hello")] text: Param<String>) -> Node<String> {
    echo(text)
}
