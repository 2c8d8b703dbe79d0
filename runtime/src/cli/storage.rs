//! `waft storage`: what lies under a root, and whether it is whole.

use std::collections::{HashMap, HashSet};

use clap::Subcommand;
use futures::TryStreamExt as _;
use jiff::{SignedDuration, Timestamp};
use serde::Serialize;

use super::failure::{Done, Failure};
use super::reach::{Reach, pages};
use super::{Call, words};
use crate::client::{Client, ClientError};
use crate::config::hostname;
use crate::model::artifact::Digest;
use crate::storage::{Found, Kind, Root, Storage, StorageError, key};
use crate::wire::{ListQuery, Sighted};

/// How long ago something was written that no writer is still at.
const DRAFT_AGE: SignedDuration = SignedDuration::from_hours(24);
/// How long ago something was written that is needed by somebody who has not said so yet. An agent writes to
/// a segment for half a day, and a registration that was cut off is made again on the same day.
const SAFE_AGE: SignedDuration = SignedDuration::from_hours(7 * 24);
/// Most things that the server is asked about in one call.
const ASKED_MAX: usize = 1_000;

/// Lists a storage, or reads all of it to find what is damaged or left over.
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
    /// Exit code 1 if anything is damaged, missing (a flow has it, and it is not there), half-written, orphaned
    /// (no flow has it, no run was reported to need it), expired or nothing of waft's. Without a server nothing
    /// counts as missing or orphaned, and with a token that is bound to projects only artifacts do. The bytes of
    /// results have their digests with their runs, and are counted only.
    #[command(after_help = "\
Examples:
  waft storage verify s3://bucket/flows
  waft storage verify s3://bucket/results --delete

With --delete what is half-written goes after a day, and after a week what is orphaned or has
expired, each only if its name is one that waft makes: what is younger may be on its way to a
server. After the question all of that is looked at once more, so what was registered meanwhile
stays. A second server that keeps things under the same root would lose them: ask the server whose
root it is.")]
    Verify {
        /// The root.
        #[arg(value_name = "ROOT")]
        root: Root,
        /// Deletes what is left over, after a question.
        #[arg(long)]
        delete: bool,
        /// Answers the question beforehand.
        #[arg(long)]
        yes: bool,
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
    Probe,
    HalfWritten,
    Unknown,
}

impl What {
    fn of(key: &str) -> Self {
        match key {
            _ if key::artifact_of(key).is_some() => Self::Artifact,
            _ if key::is_segment(key) => Self::Result,
            _ if key::is_task_entry(key) => Self::Output,
            key::TASK_CACHE_KEY => Self::CacheKey,
            key::PROBE => Self::Probe,
            _ if key::is_draft(key) => Self::HalfWritten,
            _ => Self::Unknown,
        }
    }

    const fn word(self) -> &'static str {
        match self {
            Self::Artifact => "artifact",
            Self::Result => "results",
            Self::Output => "cached output",
            Self::CacheKey => "key of cached outputs",
            Self::Probe => "probe of an agent",
            Self::HalfWritten => "half-written",
            Self::Unknown => "not waft's",
        }
    }
}

/// What is wrong with an object.
#[derive(Debug, Serialize)]
struct Finding {
    key: String,
    what: &'static str,
    why: String,
    /// Whether it is surely ours, old enough and needed by nobody.
    #[serde(skip)]
    is_left_over: bool,
    /// Whether the right bytes are to be put there once more.
    #[serde(skip)]
    is_to_mend: bool,
}

pub(super) fn run(verb: Verb, call: &Call) -> Done {
    call.wait(async {
        match verb {
            Verb::Ls { root } => list(&root, call).await,
            Verb::Verify {
                root,
                delete,
                yes,
                reach,
            } => verify(&root, delete.then_some(yes), &reach, call).await,
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
        #[serde(skip_serializing_if = "Option::is_none")]
        odd: Option<&'static str>,
    }
    let storage = open(root, call)?;
    let found = found(root, &storage).await?;
    let lines = found.into_iter().map(|found| Line {
        what: What::of(&found.key),
        key: found.key,
        size: found.size,
        odd: found.odd,
    });
    if call.output.is_json() {
        return call.output.json(&lines.collect::<Vec<_>>());
    }
    let rows: Vec<_> = lines
        .map(|line| {
            vec![
                line.key,
                words::size(line.size),
                line.odd.unwrap_or(line.what.word()).to_owned(),
            ]
        })
        .collect();
    call.output
        .table(&["key", "size", "what"], &rows, "there is nothing")
}

/// What the server knows of a root.
struct Known {
    /// The artifacts of all flows that it shows, wherever they lie.
    shown: HashSet<Digest>,
    /// What is registered under each key of this root.
    keys: HashMap<String, Listed>,
    /// What of that which was found it does not know; none if the token does not let us ask.
    orphans: Option<Orphans>,
}

/// An artifact that is registered under the root.
#[derive(Clone)]
struct Listed {
    digest: Digest,
    size: u64,
    /// The flow that has it, and the number of its version.
    by: String,
    /// Whether this machine has the root: several may have a folder of the same path.
    is_here: bool,
}

#[derive(Default)]
struct Orphans {
    segments: HashSet<String>,
    artifacts: HashSet<Digest>,
}

impl Known {
    /// Asks the server; none where no server is known, or none answers.
    async fn of(root: &Root, all: &[Found], reach: &Reach, call: &Call) -> Option<Self> {
        let asked = async { Self::ask(root, all, &reach.client(call)?).await };
        match asked.await {
            Ok(known) => Some(known),
            Err(failure) => {
                call.output.note(format!(
                    "nothing counts as missing or orphaned: {:#}",
                    failure.error
                ));
                None
            }
        }
    }

    async fn ask(root: &Root, all: &[Found], client: &Client) -> Done<Self> {
        let name = root.to_string();
        let mut known = Self {
            shown: HashSet::new(),
            keys: HashMap::new(),
            orphans: None,
        };
        let flows = async |query: &ListQuery| client.list_flows(query).await;
        let (flows, _) = pages(ListQuery::default(), usize::MAX, flows).await?;
        for flow in flows {
            let id = flow.id.to_string();
            let versions = async |query: &ListQuery| client.flow_versions(&id, query).await;
            let (versions, _) = pages(ListQuery::default(), usize::MAX, versions).await?;
            for version in versions {
                known.shown.insert(version.artifact);
                let is_own = |label| label == hostname();
                let listed = Listed {
                    digest: version.artifact,
                    size: version.artifact_size,
                    by: format!("{}/{} version {}", flow.project, flow.name, version.version),
                    is_here: root.kind() != Kind::Local || version.labels.iter().any(is_own),
                };
                let places = version.locations.into_iter();
                for place in places.filter(|place| place.root == name) {
                    match known.keys.get(&place.key) {
                        Some(other) if other.is_here || !listed.is_here => {}
                        _ => drop(known.keys.insert(place.key, listed.clone())),
                    }
                }
            }
        }
        known.orphans = match Orphans::find(root, all, client).await {
            Ok(orphans) => Some(orphans),
            Err(ClientError::Refused(refused)) if refused.code == "forbidden" => None,
            Err(error) => return Err(error.into()),
        };
        Ok(known)
    }

    /// Says that an artifact is orphaned, and whether that is sure: a flow that is not shown may have it.
    fn orphaned(&self, artifact: Digest) -> Option<(&'static str, bool)> {
        match &self.orphans {
            Some(orphans) => {
                let is_orphan = orphans.artifacts.contains(&artifact);
                is_orphan.then_some(("orphaned: no flow has it", true))
            }
            None => {
                let why = "orphaned: no flow that you may see has it";
                (!self.shown.contains(&artifact)).then_some((why, false))
            }
        }
    }
}

impl Orphans {
    async fn find(root: &Root, all: &[Found], client: &Client) -> Result<Self, ClientError> {
        let mut orphans = Self::default();
        for some in all.chunks(ASKED_MAX) {
            let keys = || some.iter().map(|found| &found.key);
            let sighted = Sighted {
                root: root.name_on(&hostname()),
                segments: keys().filter(|key| key::is_segment(key)).cloned().collect(),
                artifacts: keys().filter_map(|key| key::artifact_of(key)).collect(),
            };
            let found = client.orphans(&sighted).await?;
            orphans.segments.extend(found.segments);
            orphans.artifacts.extend(found.artifacts);
        }
        Ok(orphans)
    }
}

/// A look at everything under a root.
struct Verifier<'a> {
    root: &'a Root,
    storage: Storage,
    known: Option<Known>,
    now: Timestamp,
    findings: Vec<Finding>,
    artifacts: usize,
    counted: usize,
    /// Registered in a folder of this path, not here, and perhaps on another machine.
    elsewhere: usize,
}

impl<'a> Verifier<'a> {
    /// Looks at objects; the server is asked after they were listed: what is registered meanwhile is then on its
    /// list.
    async fn look_at(
        root: &'a Root,
        storage: Storage,
        all: &[Found],
        reach: &Reach,
        call: &Call,
    ) -> Done<Self> {
        let mut verifier = Self {
            root,
            storage,
            known: Known::of(root, all, reach, call).await,
            now: call.clock.now(),
            findings: Vec::new(),
            artifacts: 0,
            counted: 0,
            elsewhere: 0,
        };
        for found in all {
            verifier.look(found).await?;
        }
        Ok(verifier)
    }

    fn find(&mut self, found: &Found, why: impl Into<String>, is_left_over: bool) {
        self.findings.push(Finding {
            key: found.key.clone(),
            what: What::of(&found.key).word(),
            why: why.into(),
            is_left_over,
            is_to_mend: false,
        });
    }

    fn find_to_mend(&mut self, found: &Found, why: impl Into<String>) {
        self.find(found, why, false);
        if let Some(finding) = self.findings.last_mut() {
            finding.is_to_mend = true;
        }
    }

    fn is_older(&self, at: Option<Timestamp>, than: SignedDuration) -> bool {
        at.is_some_and(|at| self.now.duration_since(at) > than)
    }

    async fn look(&mut self, found: &Found) -> Done {
        match found.odd {
            // A put makes it whole again.
            Some(odd)
                if self.root.kind() == Kind::Oci && What::of(&found.key) == What::Artifact =>
            {
                self.find_to_mend(found, odd);
                return Ok(());
            }
            Some(odd) => {
                self.find(found, odd, false);
                return Ok(());
            }
            None => {}
        }
        // What was registered where it lies has a key that somebody chose.
        let listed = self.known.as_ref();
        let listed = listed.and_then(|known| known.keys.get(&found.key));
        let listed = listed.map(|listed| (listed.digest, listed.size));
        let own = key::artifact_of(&found.key).map(|digest| (digest, found.size));
        if let Some(of) = own.or(listed) {
            return self.look_at_artifact(found, of).await;
        }
        match What::of(&found.key) {
            What::HalfWritten => {
                let is_old = self.is_older(found.written_at, DRAFT_AGE);
                self.find(found, "left by a writer that was killed", is_old);
            }
            What::Unknown => self.find(found, "no key that waft makes", false),
            What::Result => {
                self.counted += 1;
                let begun = key::begun_at(&found.key);
                let begun = begun.and_then(|at| Timestamp::from_microsecond(at).ok());
                let orphans = self.known.as_ref().and_then(|known| known.orphans.as_ref());
                let is_orphan = orphans.is_some_and(|all| all.segments.contains(&found.key));
                // What a registry has stays there, and the server is told once.
                if is_orphan && self.root.kind() != Kind::Oci && self.is_older(begun, SAFE_AGE) {
                    self.find(found, "orphaned: no run was reported to need it", true);
                }
            }
            What::Output => {
                self.counted += 1;
                let expires_at = match self.storage.expires_at(found).await {
                    Ok(at) => at,
                    // It went while we looked.
                    Err(StorageError::NotFound { .. }) => None,
                    Err(error) => return Err(told(error, self.root)),
                };
                if self.is_older(expires_at, SignedDuration::ZERO) {
                    self.find(found, "expired", self.is_older(expires_at, SAFE_AGE));
                }
            }
            What::Artifact | What::CacheKey | What::Probe => self.counted += 1,
        }
        Ok(())
    }

    /// Looks for what is registered under the root, and was not among what was listed.
    async fn look_for_missing(&mut self, all: &[Found]) -> Done {
        let Some(known) = &self.known else {
            return Ok(());
        };
        let found: HashSet<_> = all.iter().map(|found| found.key.as_str()).collect();
        // Of other keys a server should not tell, and no storage is asked for them.
        let is_asked = |key: &str, digest: Digest| key::is_plain(key) && digest.may_lie_at(key);
        let mut missing: Vec<_> = known
            .keys
            .iter()
            .filter(|(key, listed)| !found.contains(key.as_str()) && is_asked(key, listed.digest))
            .map(|(key, listed)| (key.clone(), listed.digest, listed.size))
            .collect();
        missing.sort();
        for (key, digest, size) in missing {
            // A list may be older than what is registered, and shows no blob without a tag.
            let unlisted = Found {
                key,
                size,
                written_at: None,
                odd: None,
            };
            self.look_at_artifact(&unlisted, (digest, size)).await?;
        }
        Ok(())
    }

    fn find_missing(&mut self, found: &Found) {
        let listed = self.known.as_ref();
        let listed = listed.and_then(|known| known.keys.get(&found.key)).cloned();
        match listed {
            Some(listed) if listed.is_here => {
                self.find_to_mend(found, format!("missing: {} has it", listed.by));
            }
            Some(_) => self.elsewhere += 1,
            // It went while we looked.
            None => {}
        }
    }

    async fn look_at_artifact(&mut self, found: &Found, (digest, size): (Digest, u64)) -> Done {
        let checked = self.storage.check_artifact(&found.key, digest, size).await;
        if matches!(checked, Err(StorageError::NotFound { .. })) {
            self.find_missing(found);
            return Ok(());
        }
        self.artifacts += 1;
        let known = self.known.as_ref();
        let orphaned = known.and_then(|known| known.orphaned(digest));
        match checked {
            Ok(()) => {
                if let Some((why, is_sure)) = orphaned {
                    let is_own = key::artifact_of(&found.key).is_some();
                    let is_old = self.is_older(found.written_at, SAFE_AGE);
                    self.find(found, why, is_sure && is_own && is_old);
                }
            }
            Err(StorageError::Damaged { got, .. }) => {
                self.find_to_mend(found, format!("damaged: it is {got}"));
            }
            Err(error @ (StorageError::Withheld { .. } | StorageError::Refused { .. })) => {
                self.find(found, error.to_string(), false);
            }
            Err(error) => return Err(told(error, self.root)),
        }
        Ok(())
    }

    /// Deletes what is left over, and forgets that it was found; answers how much that was.
    async fn delete(&mut self, yes: bool, reach: &Reach, call: &Call) -> Done<usize> {
        let (left_over, kept): (Vec<_>, Vec<_>) = std::mem::take(&mut self.findings)
            .into_iter()
            .partition(|finding| finding.is_left_over);
        self.findings = kept;
        if left_over.is_empty() {
            return Ok(0);
        }
        let question = format!(
            "delete {} of `{}` that nothing on this server needs?",
            words::count(left_over.len(), "object"),
            self.root
        );
        call.output.ask(&question, yes, "nothing was deleted")?;
        // The answer took its time, and reading everything did: somebody may have registered it meanwhile.
        let keys: HashSet<_> = left_over.into_iter().map(|finding| finding.key).collect();
        let mut all = found(self.root, &self.storage).await?;
        all.retain(|found| keys.contains(&found.key));
        let again = Verifier::look_at(self.root, self.storage.clone(), &all, reach, call).await?;
        let mut deleted = 0;
        for finding in again.findings.iter().filter(|finding| finding.is_left_over) {
            let gone = self.storage.delete(&finding.key).await;
            gone.map_err(|error| told(error, self.root))?;
            deleted += 1;
        }
        Ok(deleted)
    }
}

async fn verify(root: &Root, delete: Option<bool>, reach: &Reach, call: &Call) -> Done {
    let storage = open(root, call)?;
    if delete.is_some() && matches!(root.kind(), Kind::Oci | Kind::Http) {
        let what = format!("nothing is ever deleted from `{root}`");
        return Err(Failure::could(what).or_hint("the registry or the web server itself can"));
    }
    let all = found(root, &storage).await?;
    let mut verifier = Verifier::look_at(root, storage, &all, reach, call).await?;
    let listed_findings = verifier.findings.len();
    verifier.look_for_missing(&all).await?;
    let all_findings = verifier.findings.len();
    let objects = all.len() + all_findings - listed_findings;
    if !call.output.is_json() {
        verifier.findings.iter().try_for_each(|finding| {
            call.output.line(format_args!(
                "{}: {} ({})",
                finding.key, finding.why, finding.what
            ))
        })?;
    }
    let deleted = match delete {
        Some(yes) => verifier.delete(yes, reach, call).await?,
        None => 0,
    };
    let (findings, artifacts, counted) = (verifier.findings, verifier.artifacts, verifier.counted);
    if verifier.elsewhere > 0 {
        call.output.note(format!(
            "{} registered in a folder of this path that may be another machine's: not here, and not counted as \
             missing",
            words::count(verifier.elsewhere, "artifact")
        ));
    }
    if call.output.is_json() {
        call.output.json(&serde_json::json!({
            "root": root.to_string(),
            "artifacts": artifacts,
            "not_checked": counted,
            "findings": findings,
            "deleted": deleted,
        }))?;
    } else {
        call.output.note(format!(
            "{} read, {}; {} of results and cached outputs without a digest here",
            words::count(artifacts, "artifact"),
            words::count(all_findings, "finding"),
            words::count(counted, "object"),
        ));
        if delete.is_some() {
            let deleted = words::count(deleted, "object");
            call.output.note(format!("deleted {deleted}"));
        }
    }
    match findings.len() {
        0 => Ok(()),
        count => {
            let failure = Failure::could(format!(
                "{count} of {} in `{root}` {} not as {} should be",
                words::count(objects, "object"),
                if count == 1 { "is" } else { "are" },
                if count == 1 { "it" } else { "they" },
            ));
            Err(match hint(root, &findings) {
                Some(hint) => failure.or_hint(hint),
                None => failure,
            })
        }
    }
}

/// Says what mends what was found, the worst of it first.
fn hint(root: &Root, findings: &[Finding]) -> Option<String> {
    let any = |is: fn(&Finding) -> bool| findings.iter().any(is);
    if any(|finding| finding.is_to_mend) {
        return Some(format!(
            "register what is damaged or missing again: waft register FILE --storage {root}"
        ));
    }
    match root.kind() {
        Kind::Oci => Some("waft deletes nothing from a registry; its own tools can".to_owned()),
        _ if any(|finding| finding.is_left_over) => Some(format!(
            "delete what nobody needs: waft storage verify {root} --delete"
        )),
        _ => None,
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
