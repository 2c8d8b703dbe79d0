//! Asks a person twice: a task by its signal, another by its trigger. A third one goes on beside them.
//! Each attempt leaves a line in `/out/log`.

use std::time::Duration;
use waft_guests::note;
use waft_sdk::prelude::*;

#[task(dir = ["/out:rw"])]
fn ask(what: String) -> TaskResult<String> {
    let Some(approval) = run::approval() else {
        note("ask: paused")?;
        return Err(Signal::pause(format!("shall `{what}` go out?")));
    };
    note(&format!("ask: approved by {}", approval.by))?;
    Ok(format!("{what}, {}", approval.reason))
}

#[task(dir = ["/out:rw"])]
fn aside(millis: u64) -> TaskResult<u64> {
    std::thread::sleep(Duration::from_millis(millis));
    note("aside: done")?;
    Ok(millis)
}

#[task(dir = ["/out:rw"], trigger = manual_only)]
fn send(text: Option<String>) -> TaskResult<String> {
    let by = run::approval().map_or_else(|| "nobody".to_string(), |approval| approval.by);
    note(&format!("send: approved by {by}"))?;
    Ok(text.unwrap_or_else(|| "nothing".to_string()))
}

/// Answers what was sent.
#[flow]
fn pauses(#[default("it")] what: Param<String>, #[default(0)] millis: Param<u64>) -> Node<String> {
    aside(millis);
    send(ask(what))
}
