//! `waft config`: what holds, and where it was said.

use std::collections::BTreeMap;

use clap::Subcommand;
use serde::Serialize;

use super::failure::Done;
use super::{Call, agent, cache, power, server};
use crate::config::{Bytes, Millis, Origin, hostname};
use crate::model::limit::Limits;

/// Shows the settings that hold, and where they lie.
#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// Prints every setting, its value and where it comes from; `-` is none.
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
    origin: From,
}

/// Where a value comes from.
#[derive(Clone, Copy, Serialize)]
#[serde(rename_all = "snake_case")]
enum From {
    Default,
    File,
    Environment,
    /// What a server left in this home.
    Credentials,
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
    let kept = call.config.home.credentials().ok().flatten();
    let settings = call.config.list().into_iter().map(|(name, value, origin)| {
        // A token is worth more than the sight of it.
        let is_secret = name == "server.token" && value.is_some();
        let value = if is_secret { Some("***".into()) } else { value };
        let shown = match origin {
            Some(Origin::File) => Shown {
                value,
                origin: From::File,
            },
            Some(Origin::Environment) => Shown {
                value,
                origin: From::Environment,
            },
            None if kept.is_some() && matches!(name, "server.url" | "server.token") => Shown {
                value: kept.as_ref().map(|kept| match name {
                    "server.url" => kept.url.clone().into(),
                    _ => "***".into(),
                }),
                origin: From::Credentials,
            },
            None => Shown {
                value: default(name, call),
                origin: From::Default,
            },
        };
        (name, shown)
    });
    if call.output.is_json() {
        return call.output.json(&settings.collect::<BTreeMap<_, _>>());
    }
    let rows: Vec<_> = settings
        .map(|(name, shown)| {
            let origin = match shown.origin {
                From::Default => "default",
                From::File => "config.toml",
                From::Environment => "environment",
                From::Credentials => "credentials.toml",
            };
            let value = shown
                .value
                .map_or_else(|| "-".to_owned(), |value| value.to_string());
            vec![name.to_owned(), value, origin.to_owned()]
        })
        .collect();
    call.output.table(&["setting", "value", "from"], &rows, "")
}

/// Returns what holds where nothing is set; none where nothing does.
fn default(name: &str, call: &Call) -> Option<toml::Value> {
    let (agent, ceiling) = (power::Flags::default(), Limits::CEILING);
    Some(match name {
        "server.listen" => server::LISTEN.to_string().into(),
        "server.lease" => server::LEASE.to_string().into(),
        "agent.name" => hostname().into(),
        "agent.limit" => agent::SLOTS.into(),
        "agent.parallel" => u32::try_from(agent.parallel(call)).ok()?.into(),
        "agent.max.memory" => Bytes(ceiling.memory_bytes).to_string().into(),
        "agent.max.cpu" => Millis(ceiling.cpu_ms).to_string().into(),
        "agent.max.wall" => Millis(ceiling.wall_ms).to_string().into(),
        "agent.max.artifact" => Bytes(call.config.artifact_max()).to_string().into(),
        "agent.max.output" => Bytes(ceiling.output_bytes).to_string().into(),
        "agent.cache.artifacts" => Bytes(cache::artifact_cache_max(call)).to_string().into(),
        "agent.cache.code" => Bytes(cache::code_bytes_max(call)).to_string().into(),
        "flows.defaults.storage.root" => call.config.storage_root().into(),
        "results.root" => call.config.results_root().into(),
        "results.keep" => server::RESULTS_KEEP.to_string().into(),
        "runs.keep" => server::RUNS_KEEP.to_string().into(),
        _ => return None,
    })
}
