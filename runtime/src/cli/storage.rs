//! `waft storage`: what lies under a root, and whether it is whole.

use std::collections::{HashMap, HashSet};

use clap::Subcommand;
use futures::TryStreamExt as _;
use serde::Serialize;

use super::failure::{Done, Failure};
use super::reach::{Reach, pages};
use super::{Call, words};
use crate::client::Client;
use crate::model::artifact::Digest;
use crate::storage::{Found, Kind, Root, Storage, StorageError, key};
use crate::wire::ListQuery;

/// Lists a storage, or reads all of it to find what is damaged.
#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// Lists what lies under a root.
    #[command(after_help = "\
Examples:
  waft storage ls file:///srv/flows
  waft storage ls s3://bucket/flows --json")]
    Ls {
        /// The root.
        #[arg(value_name = "ROOT")]
        root: Root,
    },
    /// Reads everything under a root and compares it with its digest.
    ///
    /// Exit code 1 if anything is damaged, half-written, orphaned (no flow that you may see has it) or nothing
    /// of waft's. Without a server nothing counts as orphaned. The bytes of results have their digests with
    /// their runs, and are counted only.
    #[command(after_help = "Example:\n  waft storage verify s3://bucket/flows")]
    Verify {
        /// The root.
        #[arg(value_name = "ROOT")]
        root: Root,
        #[command(flatten)]
        reach: Reach,
    },
}

/// What an object is, by its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum What {
    Artifact,
    Result,
    Output,
    CacheKey,
    HalfWritten,
    Unknown,
}

impl What {
    fn of(key: &str) -> Self {
        match key.split('/').next().unwrap_or_default() {
            _ if artifact(key).is_some() => Self::Artifact,
            _ if key::is_segment(key) => Self::Result,
            "tasks" if key::is_task_entry(key) => Self::Output,
            "task-cache.key" => Self::CacheKey,
            _ if is_draft(key) => Self::HalfWritten,
            _ => Self::Unknown,
        }
    }

    const fn word(self) -> &'static str {
        match self {
            Self::Artifact => "artifact",
            Self::Result => "results",
            Self::Output => "cached output",
            Self::CacheKey => "key of cached outputs",
            Self::HalfWritten => "half-written",
            Self::Unknown => "not waft's",
        }
    }
}

/// Tells which artifact a key names.
fn artifact(key: &str) -> Option<Digest> {
    let digest: Digest = format!("sha256:{}", key.rsplit('/').next()?).parse().ok()?;
    (key::artifact(digest) == key).then_some(digest)
}

/// Tells whether a key is that of a file which a writer had not finished: staged beside its place.
fn is_draft(key: &str) -> bool {
    let Some((whole, rest)) = key.rsplit_once(['#', '.']) else {
        return false;
    };
    let is_number = !rest.is_empty() && rest.bytes().all(|b| b.is_ascii_hexdigit());
    is_number
        && (artifact(whole).is_some() || key::is_task_entry(whole) || whole == "task-cache.key")
}

/// What is wrong with an object.
#[derive(Debug, Serialize)]
struct Finding {
    key: String,
    what: &'static str,
    why: String,
}

pub(super) fn run(verb: Verb, call: &Call) -> Done {
    call.wait(async {
        match verb {
            Verb::Ls { root } => list(&root, call).await,
            Verb::Verify { root, reach } => verify(&root, &reach, call).await,
        }
    })
}

async fn found(root: &Root, storage: &Storage) -> Done<Vec<Found>> {
    let listed = async {
        let found: Vec<_> = storage.list().await?.try_collect().await?;
        Ok::<_, StorageError>(found)
    };
    let mut found = listed.await.map_err(|error| told(error, root))?;
    found.sort();
    Ok(found)
}

fn open(root: &Root, call: &Call) -> Done<Storage> {
    Storage::open(root, &call.config.access()).map_err(|error| told(error, root))
}

fn told(error: StorageError, root: &Root) -> Failure {
    let hint = error.hint();
    let what = format!("cannot look into `{root}`");
    let failure = Failure::from(anyhow::Error::new(error).context(what));
    match hint {
        Some(hint) => failure.or_hint(hint),
        None => failure,
    }
}

async fn list(root: &Root, call: &Call) -> Done {
    #[derive(Serialize)]
    struct Line {
        key: String,
        size: u64,
        what: What,
    }
    let storage = open(root, call)?;
    let found = found(root, &storage).await?;
    let lines = found.into_iter().map(|found| Line {
        what: What::of(&found.key),
        key: found.key,
        size: found.size,
    });
    if call.output.is_json() {
        return call.output.json(&lines.collect::<Vec<_>>());
    }
    let rows: Vec<_> = lines
        .map(|line| {
            vec![
                line.key,
                words::size(line.size),
                line.what.word().to_owned(),
            ]
        })
        .collect();
    call.output
        .table(&["key", "size", "what"], &rows, "there is nothing")
}

/// What the server knows to lie under a root.
#[derive(Default)]
struct Registered {
    /// The artifacts of all flows, wherever they lie.
    artifacts: HashSet<Digest>,
    /// The artifact under each key.
    keys: HashMap<String, (Digest, u64)>,
}

/// Asks the server for all flows that it shows; none where no server is known, or none answers.
async fn registered(root: &Root, reach: &Reach, call: &Call) -> Option<Registered> {
    let client = reach.client(call).ok()?;
    match list_registered(root, &client).await {
        Ok(known) => Some(known),
        Err(failure) => {
            call.output
                .note(format!("nothing counts as orphaned: {failure}"));
            None
        }
    }
}

async fn list_registered(root: &Root, client: &Client) -> Done<Registered> {
    let root = root.to_string();
    let mut known = Registered::default();
    let flows = async |query: &ListQuery| client.list_flows(query).await;
    let (flows, _) = pages(ListQuery::default(), usize::MAX, flows).await?;
    for flow in flows {
        let id = flow.id.to_string();
        let versions = async |query: &ListQuery| client.flow_versions(&id, query).await;
        let (versions, _) = pages(ListQuery::default(), usize::MAX, versions).await?;
        for version in versions {
            known.artifacts.insert(version.artifact);
            let here = version
                .locations
                .into_iter()
                .filter(|place| place.root == root);
            let of = (version.artifact, version.artifact_size);
            known.keys.extend(here.map(|place| (place.key, of)));
        }
    }
    Ok(known)
}

async fn verify(root: &Root, reach: &Reach, call: &Call) -> Done {
    let storage = open(root, call)?;
    // The server is asked second: what is registered meanwhile is then on its list.
    let all = found(root, &storage).await?;
    let registered = registered(root, reach, call).await;
    let mut findings = Vec::new();
    let (mut artifacts, mut counted) = (0_usize, 0_usize);
    for found in &all {
        let what = What::of(&found.key);
        let mut find = |why: String| {
            findings.push(Finding {
                key: found.key.clone(),
                what: what.word(),
                why,
            });
        };
        // What was registered where it lies has a key that somebody chose.
        let listed = registered
            .as_ref()
            .and_then(|known| known.keys.get(&found.key));
        let own = artifact(&found.key).map(|digest| (digest, found.size));
        match (what, own.or(listed.copied())) {
            (_, Some((digest, size))) => {
                artifacts += 1;
                let is_known = registered
                    .as_ref()
                    .is_none_or(|known| known.artifacts.contains(&digest));
                match storage.check_artifact(&found.key, digest, size).await {
                    Ok(()) if !is_known => {
                        find("orphaned: no flow that you may see has it".to_owned());
                    }
                    Ok(()) => {}
                    Err(StorageError::Damaged { got, .. }) => find(format!("damaged: it is {got}")),
                    // It went while we looked.
                    Err(StorageError::NotFound { .. }) => {}
                    Err(error) => return Err(told(error, root)),
                }
            }
            (What::HalfWritten, _) => find("left by a writer that was killed".to_owned()),
            (What::Unknown, _) => find("no key that waft makes".to_owned()),
            _ => counted += 1,
        }
    }
    if call.output.is_json() {
        call.output.json(&serde_json::json!({
            "root": root.to_string(),
            "artifacts": artifacts,
            "not_checked": counted,
            "findings": findings,
        }))?;
    } else {
        findings.iter().try_for_each(|finding| {
            call.output.line(format_args!(
                "{}: {} ({})",
                finding.key, finding.why, finding.what
            ))
        })?;
        call.output.note(format!(
            "{artifacts} artifacts read, {} findings; {counted} objects of results and cached outputs have no digest here",
            findings.len()
        ));
    }
    match findings.len() {
        0 => Ok(()),
        count => {
            let failure = Failure::could(format!(
                "{count} of {} objects in `{root}` are not as they should be",
                all.len()
            ));
            Err(match root.kind() {
                Kind::Oci => failure,
                _ => failure.or_hint(format!(
                    "register a damaged artifact again: waft register FILE --storage {root}"
                )),
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_says_what_it_names() {
        let own = key::artifact(Digest::of(b""));
        for (key, what) in [
            (own.as_str(), What::Artifact),
            (&format!("{own}#1"), What::HalfWritten),
            (&own.replace("e3/", "e4/"), What::Unknown),
            ("segments/00061c6a6d4b8000-0000000000000007", What::Result),
            ("task-cache.key", What::CacheKey),
            ("task-cache.key.00000000000000ff", What::HalfWritten),
            ("flow.wasm", What::Unknown),
        ] {
            assert_eq!(What::of(key), what, "{key}");
        }
    }
}
