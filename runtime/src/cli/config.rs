//! `waft config`: what holds, and where it was said.

use std::collections::BTreeMap;

use clap::Subcommand;
use serde::Serialize;

use super::Call;
use super::failure::Done;
use crate::config::Origin;

/// Shows the configuration, and where it lies.
#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// Prints every setting and where it was set.
    #[command(after_help = "\
A setting is taken from a flag, else from WAFT__SECTION__KEY, else from config.toml, else from its
default. Lists in a variable are separated by commas: WAFT__AGENT__LABELS=gpu,eu")]
    Show,
    /// Prints the path of config.toml, whether it exists or not.
    Path,
}

#[derive(Serialize)]
struct Shown {
    value: Option<toml::Value>,
    origin: Option<Origin>,
}

pub(super) fn run(verb: Verb, call: &Call) -> Done {
    match verb {
        Verb::Show => show(call),
        Verb::Path => {
            let path = call.config.home.config();
            match call.output.is_json() {
                true => call.output.json(&serde_json::json!({ "path": path })),
                false => call.output.line(path.display()),
            }
        }
    }
}

fn show(call: &Call) -> Done {
    let settings = call.config.list().into_iter().map(|(name, value, origin)| {
        // A token is worth more than the sight of it.
        let is_secret = name == "server.token" && value.is_some();
        let value = if is_secret { Some("***".into()) } else { value };
        (name, Shown { value, origin })
    });
    if call.output.is_json() {
        return call.output.json(&settings.collect::<BTreeMap<_, _>>());
    }
    let rows: Vec<_> = settings
        .map(|(name, shown)| {
            let origin = match shown.origin {
                None => "default",
                Some(Origin::File) => "config.toml",
                Some(Origin::Environment) => "environment",
            };
            let value = shown
                .value
                .map_or_else(|| "-".to_owned(), |value| value.to_string());
            vec![name.to_owned(), value, origin.to_owned()]
        })
        .collect();
    call.output.table(&["setting", "value", "from"], &rows, "")
}
