//! `waft secret`: values that agents of this home hand to tasks, and that never reach a server.

use std::io::Read as _;

use clap::Subcommand;
use serde::Serialize;

use super::Call;
use super::failure::{Done, Failure};
use super::output::{is_typed, read_unseen};
use crate::model::flow::is_name;

/// Keeps secrets for the agents on this machine.
#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// Keeps a secret; its value is read from standard input.
    ///
    /// The value is kept in WAFT_HOME, in a file that only you may read. A task gets it only if the
    /// flow asks for it and the agent allows it (`--allow-secret NAME`).
    #[command(after_help = "\
Examples:
  waft secret set api-key < key.txt
  waft secret set api-key              asks for one line on a terminal")]
    Set {
        /// The name by which tasks ask for it.
        name: String,
    },
    /// Lists the names of the secrets.
    List,
    /// Forgets a secret.
    Delete {
        /// Its name.
        name: String,
    },
}

#[derive(Serialize)]
struct Named<'a> {
    name: &'a str,
}

pub(super) fn run(verb: Verb, call: &Call) -> Done {
    let home = &call.config.home;
    match verb {
        Verb::Set { name } => {
            if !is_name(&name) {
                let what = format!("the secret name `{name}` is not allowed");
                return Err(Failure::usage(what).or_hint("letters, digits, `-`, `_` and `.`"));
            }
            // A person may take their time: the file is read and written only after that.
            let value = read_value(call, &name)?;
            home.change_secrets(|secrets| secrets.insert(name.clone(), value))?;
            call.output.note(format!("kept the secret `{name}`"));
            Ok(())
        }
        Verb::List if call.output.is_json() => {
            let secrets = home.secrets()?;
            let names: Vec<_> = secrets.keys().map(|name| Named { name }).collect();
            call.output.json(&names)
        }
        Verb::List => {
            let rows: Vec<_> = home.secrets()?.into_keys().map(|name| vec![name]).collect();
            call.output.table(&["name"], &rows, "there are no secrets")
        }
        Verb::Delete { name } => {
            if home
                .change_secrets(|secrets| secrets.remove(&name))?
                .is_none()
            {
                let what = format!("there is no secret `{name}`");
                return Err(Failure::could(what).or_hint("waft secret list"));
            }
            call.output.note(format!("forgot the secret `{name}`"));
            Ok(())
        }
    }
}

/// Reads everything on a pipe, one line from a person; the line end is not part of the value.
fn read_value(call: &Call, name: &str) -> Done<String> {
    let mut value = String::new();
    if is_typed() {
        call.output
            .note(format!("the value of `{name}`, one line; it is not shown:"));
        value = read_unseen()?;
    } else {
        let read = std::io::stdin()
            .take(64 * 1024 + 1)
            .read_to_string(&mut value);
        read.map_err(|error| anyhow::Error::new(error).context("cannot read the value"))?;
    }
    if value.len() > 64 * 1024 {
        return Err(Failure::could("a secret has at most 64 KiB"));
    }
    let value = value.strip_suffix('\n').unwrap_or(&value);
    let value = value.strip_suffix('\r').unwrap_or(value);
    if value.is_empty() {
        return Err(Failure::could("there is no value on standard input"));
    }
    Ok(value.to_owned())
}
