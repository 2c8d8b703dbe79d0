//! Asks a URL: once with a grant for loopback, once without any.

use waft_sdk::prelude::*;

#[task(net = ["127.0.0.1:*"])]
fn granted(url: String) -> TaskResult<String> {
    Ok(http::get(url).send()?.error_for_status()?.text()?)
}

#[task]
fn ungranted(url: String) -> TaskResult<String> {
    match http::get(url).send() {
        Ok(response) => Ok(format!("answered {}", response.status())),
        Err(http::Error::Denied(text)) => Ok(format!("denied: {text}")),
        Err(error) => Ok(format!("another error: {error}")),
    }
}

#[task]
fn both(granted: String, ungranted: String) -> TaskResult<Vec<String>> {
    Ok(vec![granted, ungranted])
}

/// What each of two tasks was told.
#[flow]
fn fetches(url: Param<String>) -> Node<Vec<String>> {
    both(granted(url), ungranted(url))
}
