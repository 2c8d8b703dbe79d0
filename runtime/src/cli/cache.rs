//! `waft agent cache`: what the agents of this home have fetched and compiled.

use clap::{Args, Subcommand};
use jiff::Timestamp;
use serde::Serialize;

use super::failure::{Done, Failure};
use super::{Call, words};
use crate::bounded::{BYTES_MAX, BoundedFolder, Item};
use crate::config::Bytes;
use crate::model::artifact::Digest;
use crate::sandbox;
use crate::storage::ArtifactCache;

#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// Lists what is kept, the last used first, and how much may be.
    #[command(after_help = "\
`agent.cache.artifacts` and `agent.cache.code` in config.toml say how much is kept; beyond that,
what was used longest ago goes first. Something that is larger by itself is kept until the next
comes.")]
    List,
    /// Takes everything away, artifacts and compiled code; agents fetch and compile it again.
    #[command(after_help = "\
Agents may be at work meanwhile: what they have loaded they go on with.

Example:
  waft agent cache clear --code")]
    Clear(Which),
}

/// Which of the caches; both if none is named.
#[derive(Clone, Copy, Debug, Args)]
pub(super) struct Which {
    /// Takes away only artifacts, and compiled code if that is named too.
    #[arg(long)]
    artifacts: bool,
    /// Takes away only compiled code, and artifacts if these are named too.
    #[arg(long)]
    code: bool,
}

/// What one of the caches holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
enum Kind {
    Artifact,
    Code,
}

#[derive(Serialize)]
struct Listed {
    entries: Vec<Entry>,
    artifacts: Total,
    code: Total,
}

#[derive(Serialize)]
struct Entry {
    kind: Kind,
    digest: Digest,
    size: u64,
    used_at: Timestamp,
}

#[derive(Clone, Copy, Debug, Default, Serialize)]
struct Total {
    count: usize,
    size: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    size_max: Option<u64>,
}

#[derive(Serialize)]
struct Cleared {
    artifacts: Total,
    code: Total,
}

/// Returns how many bytes of artifacts an agent keeps.
pub(super) fn artifact_cache_max(call: &Call) -> u64 {
    let set = call.config.settings.agent.cache.artifacts;
    set.map_or(BYTES_MAX, |Bytes(bytes)| bytes)
}

/// Returns how many bytes of compiled code are kept.
pub(super) fn code_bytes_max(call: &Call) -> u64 {
    let set = call.config.settings.agent.cache.code;
    set.map_or(BYTES_MAX, |Bytes(bytes)| bytes)
}

pub(super) fn run(verb: Verb, call: &Call) -> Done {
    match verb {
        Verb::List => list(call),
        Verb::Clear(which) => clear(which, call),
    }
}

fn folder(kind: Kind, call: &Call) -> BoundedFolder {
    let home = &call.config.home;
    match kind {
        Kind::Artifact => ArtifactCache::folder(&home.artifact_cache(), artifact_cache_max(call)),
        Kind::Code => {
            let (path, clock) = (home.code_cache(), call.clock.clone());
            sandbox::code_folder(&path, code_bytes_max(call), clock)
        }
    }
}

fn list(call: &Call) -> Done {
    let mut entries = Vec::new();
    let mut look = |kind| -> Done<Total> {
        let folder = folder(kind, call);
        let items = folder
            .list()
            .map_err(|error| failure(error, "read", &folder))?;
        let total = Total {
            size_max: Some(folder.bytes_max()),
            ..Total::of(&items)
        };
        entries.extend(items.into_iter().map(|item| Entry {
            kind,
            digest: item.digest,
            size: item.size,
            used_at: item.used_at,
        }));
        Ok(total)
    };
    let (artifacts, code) = (look(Kind::Artifact)?, look(Kind::Code)?);
    entries.sort_by_key(|entry| (std::cmp::Reverse(entry.used_at), entry.kind));
    if call.output.is_json() {
        return call.output.json(&Listed {
            entries,
            artifacts,
            code,
        });
    }
    let rows: Vec<_> = entries
        .into_iter()
        .map(|entry| {
            vec![
                words::of(&entry.kind),
                entry.digest.to_short(),
                words::size(entry.size),
                words::instant(entry.used_at),
            ]
        })
        .collect();
    let columns = ["kind", "digest", "size", "last used"];
    call.output.table(&columns, &rows, "the caches are empty")?;
    for (name, total) in [("artifacts", artifacts), ("code", code)] {
        let (size, size_max) = (words::size(total.size), total.size_max.unwrap_or_default());
        let size_max = words::size(size_max);
        call.output.note(format!("{name}: {size} of {size_max}"));
    }
    Ok(())
}

fn clear(which: Which, call: &Call) -> Done {
    let is_both = !which.artifacts && !which.code;
    let clear = |kind, is_wanted: bool| -> Done<Total> {
        if !is_wanted && !is_both {
            return Ok(Total::default());
        }
        let folder = folder(kind, call);
        let items = folder
            .clear()
            .map_err(|error| failure(error, "clear", &folder))?;
        Ok(Total::of(&items))
    };
    let artifacts = clear(Kind::Artifact, which.artifacts)?;
    let code = clear(Kind::Code, which.code)?;
    if call.output.is_json() {
        return call.output.json(&Cleared { artifacts, code });
    }
    let all = [
        ("artifacts", artifacts, which.artifacts),
        ("code", code, which.code),
    ];
    let freed: Vec<_> = all
        .into_iter()
        .filter(|(.., is_wanted)| *is_wanted || is_both)
        .map(|(name, total, _)| format!("{} of {name}", words::size(total.size)))
        .collect();
    call.output.note(format!("freed {}", freed.join(" and ")));
    Ok(())
}

fn failure(error: std::io::Error, act: &str, folder: &BoundedFolder) -> Failure {
    let what = format!("cannot {act} the cache `{}`", folder.path().display());
    anyhow::Error::new(error).context(what).into()
}

impl Total {
    fn of(items: &[Item]) -> Self {
        Self {
            count: items.len(),
            size: items.iter().map(|item| item.size).sum(),
            size_max: None,
        }
    }
}
