//! Ready components: what a run needs before its first attempt.
//!
//! An artifact is fetched from a place under the agent's own roots (digest checked), compiled or
//! loaded, and made to describe itself in this agent's sandbox: what was registered is believed
//! only if it is the same to the byte. All of this once per artifact and definition, however many
//! runs ask for it at one time.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{OnceCell, watch};

use super::places::Failing;
use crate::clock::{Clock, Monotonic};
use crate::model::artifact::Digest;
use crate::model::flow::{Body, Definition, Described};
use crate::runner::chain;
use crate::sandbox::{Kind, Prepared, Sandbox, SandboxError};
use crate::storage::{ArtifactCache, Storage, StorageError};
use crate::wire::{ClaimedRun, Location};

/// How often the caches are told that a component is in use, which its runs do not show.
const TOUCH_EVERY: Duration = Duration::from_secs(60);
/// How often an artifact is fetched that somebody takes out of the cache before it is compiled.
const FETCHES_MAX: u32 = 5;
/// Components kept ready. Each costs its mapped code; beyond this the longest unused one goes.
const READY_MAX: usize = 256;

/// A component whose definition was checked. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Ready {
    pub(crate) prepared: Arc<Prepared>,
    pub(crate) described: Arc<Described>,
    pub(crate) registered: Arc<Definition>,
}

/// How far the preparation of a run is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// It may be ready already.
    Looking,
    Fetching,
    Compiling,
}

/// Why a run cannot begin here.
#[derive(Debug)]
pub(crate) enum Unready {
    /// Another agent may be luckier, and this one leaves roots alone for a while.
    Declined {
        rests: Vec<(String, Failing)>,
        message: String,
    },
    /// The flow's doing.
    Rejected { code: &'static str, message: String },
    /// Ours or the machine's doing.
    Broken { code: &'static str, message: String },
}

/// The ready components of one agent.
pub(crate) struct Shelf {
    sandbox: Sandbox,
    storages: HashMap<String, Storage>,
    cache: ArtifactCache,
    artifact_max: u64,
    clock: Clock,
    contents: Mutex<Contents>,
}

/// An artifact under one registered definition; two versions of a command may share an artifact.
type Key = (Digest, Digest);

#[derive(Default)]
struct Contents {
    by_key: HashMap<Key, Shelved>,
    uses: u64,
}

struct Shelved {
    ready: Arc<OnceCell<Ready>>,
    last_use: u64,
    touched_at: Monotonic,
}

impl Shelf {
    pub(crate) fn new(
        sandbox: Sandbox,
        storages: HashMap<String, Storage>,
        cache: ArtifactCache,
        artifact_max: u64,
        clock: Clock,
    ) -> Self {
        Self {
            sandbox,
            storages,
            cache,
            artifact_max,
            clock,
            contents: Mutex::default(),
        }
    }

    /// Returns a run's component, ready; `step` says how far that is.
    ///
    /// A failure is not kept: the sandbox knows by itself which digests it has refused before.
    pub(crate) async fn ready(
        &self,
        claimed: &ClaimedRun,
        step: &watch::Sender<Step>,
    ) -> Result<Ready, Unready> {
        let shelved = self.shelved((claimed.artifact, claimed.definition_hash));
        if !shelved.initialized() {
            // Said also by those who wait for another run to do it.
            step.send_replace(Step::Fetching);
        }
        let ready = shelved.get_or_try_init(|| self.make(claimed, step)).await?;
        Ok(ready.clone())
    }

    async fn make(
        &self,
        claimed: &ClaimedRun,
        step: &watch::Sender<Step>,
    ) -> Result<Ready, Unready> {
        let prepared = self.prepared(claimed, step).await?;
        let described = self.described(claimed, &prepared).await?;
        Ok(Ready {
            prepared,
            registered: Arc::new(described.definition.clone()),
            described: Arc::new(described),
        })
    }

    /// Fetches the artifact and makes it ready, again if it went out of the cache in between.
    async fn prepared(
        &self,
        claimed: &ClaimedRun,
        step: &watch::Sender<Step>,
    ) -> Result<Arc<Prepared>, Unready> {
        let mut fetches = 1;
        loop {
            let bytes = self.fetch(claimed).await?;
            step.send_replace(Step::Compiling);
            let prepared = self.sandbox.prepare(claimed.artifact, &bytes).await;
            let is_ours = matches!(prepared, Err(SandboxError::Host(_)));
            let may_repeat = is_ours && fetches < FETCHES_MAX;
            if !may_repeat || tokio::fs::try_exists(&bytes).await.unwrap_or(true) {
                return Ok(prepared?);
            }
            step.send_replace(Step::Fetching);
            fetches += 1;
        }
    }

    /// Fetches the artifact from the first of its places that has it.
    async fn fetch(&self, claimed: &ClaimedRun) -> Result<PathBuf, Unready> {
        if claimed.artifact_size > self.artifact_max {
            return Err(Unready::Declined {
                rests: Vec::new(),
                message: format!(
                    "{} has {} bytes; this agent takes {} at most (agent.max.artifact)",
                    claimed.artifact, claimed.artifact_size, self.artifact_max
                ),
            });
        }
        let own = |location: &&Location| self.storages.contains_key(&location.root);
        let mut failed = Vec::new();
        for location in claimed.locations.iter().filter(own) {
            let fetched = self.storages[&location.root]
                .fetch_artifact(
                    &location.key,
                    claimed.artifact,
                    claimed.artifact_size,
                    &self.cache,
                )
                .await;
            match fetched {
                Ok(bytes) => return Ok(bytes),
                Err(error) => failed.push((location, error)),
            }
        }
        let is_everywhere = failed.len() == claimed.locations.len();
        Err(unfetched(claimed.artifact, &failed, is_everywhere))
    }

    /// Has the component say what it is, and compares that with what was registered.
    async fn described(
        &self,
        claimed: &ClaimedRun,
        prepared: &Prepared,
    ) -> Result<Described, Unready> {
        let described = match (&claimed.command, prepared.kind()) {
            (None, Kind::Flow) => self.sandbox.describe(prepared).await?,
            (Some(registered), Kind::Command) => command(registered)?,
            (None, Kind::Command) => {
                return Err(lie("it is a command, and was registered as a flow"));
            }
            (Some(_), Kind::Flow) => {
                return Err(lie("it is a flow, and was registered as a command"));
            }
        };
        if described.definition.hash() != claimed.definition_hash {
            return Err(lie(
                "the component describes itself otherwise than it was registered",
            ));
        }
        Ok(described)
    }

    /// Notes in the caches that a component is in use.
    fn touch(&self, digest: Digest) {
        let (cache, sandbox) = (self.cache.clone(), self.sandbox.clone());
        tokio::task::spawn_blocking(move || {
            cache.touch(digest);
            sandbox.touch(digest);
        });
    }

    /// Returns what is shelved of a component, empty if nobody has asked for it yet.
    fn shelved(&self, key: Key) -> Arc<OnceCell<Ready>> {
        let mut contents = self.contents.lock().unwrap_or_else(PoisonError::into_inner);
        contents.uses += 1;
        let now = contents.uses;
        let passed = self.clock.monotonic();
        let one = contents.by_key.entry(key).or_insert_with(|| Shelved {
            ready: Arc::default(),
            last_use: now,
            touched_at: passed,
        });
        one.last_use = now;
        let ready = one.ready.clone();
        if ready.initialized() && passed.since(one.touched_at) >= TOUCH_EVERY {
            one.touched_at = passed;
            self.touch(key.0);
        }
        if contents.by_key.len() > READY_MAX {
            let oldest = contents.by_key.iter().min_by_key(|(_, one)| one.last_use);
            if let Some(oldest) = oldest.map(|(key, _)| *key) {
                contents.by_key.remove(&oldest);
            }
        }
        ready
    }
}

/// Checks that a registered definition is one that a command can have: one task, and it is the
/// command. A component cannot describe a command, so there is nothing to compare it with.
fn command(registered: &Definition) -> Result<Described, Unready> {
    registered
        .check()
        .map_err(|error| lie(&error.to_string()))?;
    match registered.tasks.as_slice() {
        [task] if task.body == Body::Command && !task.is_mapped => Ok(Described {
            definition: registered.clone(),
            constants: HashMap::new(),
        }),
        _ => Err(lie("a command has one task, which is the command itself")),
    }
}

fn lie(message: &str) -> Unready {
    Unready::Rejected {
        code: "rejected.definition",
        message: message.to_owned(),
    }
}

/// Says what it means for a run that its artifact was fetched from none of its places. It is damaged only if
/// it is damaged in each of them: one that does not answer, or that this agent does not have, may hold it whole.
fn unfetched(
    artifact: Digest,
    failed: &[(&Location, StorageError)],
    is_everywhere: bool,
) -> Unready {
    if failed.is_empty() {
        return Unready::Declined {
            rests: Vec::new(),
            message: format!("{artifact} lies under none of this agent's roots"),
        };
    }
    let said = failed.iter().map(|(Location { root, key }, error)| {
        format!("cannot fetch `{key}` from `{root}`: {}", chain(error))
    });
    let message = said.collect::<Vec<_>>().join("; ");
    let is_damaged = |(_, error): &(_, StorageError)| matches!(error, StorageError::Damaged { .. });
    if is_everywhere && failed.iter().all(is_damaged) {
        return Unready::Broken {
            code: "artifact.damaged",
            message,
        };
    }
    // Only what ails the whole root lets it rest: one object that is missing is the trouble of one flow, and
    // the agent's own cache is none of the storage's.
    let rests = failed
        .iter()
        .filter(|(location, error)| error.failed_place() == Some(location.root.as_str()));
    let rests = rests.map(|(location, error)| (location.root.clone(), Failing::of(error)));
    Unready::Declined {
        rests: rests.collect(),
        message,
    }
}

impl From<SandboxError> for Unready {
    fn from(error: SandboxError) -> Self {
        match error {
            SandboxError::Rejected { code, message } => Self::Rejected { code, message },
            SandboxError::Host(error) => Self::Broken {
                code: "internal",
                message: format!("the sandbox could not do its part: {error:#}"),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failed(root: &str, error: fn(String, String) -> StorageError) -> (Location, StorageError) {
        let location = Location {
            root: root.to_owned(),
            key: "k".to_owned(),
        };
        let error = error(location.root.clone(), location.key.clone());
        (location, error)
    }

    fn damaged(root: String, key: String) -> StorageError {
        let (wanted, got) = ("one".to_owned(), "another".to_owned());
        StorageError::Damaged {
            root,
            key,
            wanted,
            got,
        }
    }

    fn away(root: String, key: String) -> StorageError {
        let source = "no answer".into();
        StorageError::Other { root, key, source }
    }

    fn closed(root: String, key: String) -> StorageError {
        let source = "forbidden".into();
        StorageError::Denied { root, key, source }
    }

    fn missing(root: String, key: String) -> StorageError {
        StorageError::NotFound { root, key }
    }

    fn judge(failed: Vec<(Location, StorageError)>, is_everywhere: bool) -> Unready {
        let (places, errors): (Vec<_>, Vec<_>) = failed.into_iter().unzip();
        let failed: Vec<_> = places.iter().zip(errors).collect();
        unfetched(Digest::of(b""), &failed, is_everywhere)
    }

    #[test]
    fn an_artifact_is_damaged_only_if_it_is_in_each_of_its_places() {
        let (a, b) = ("s3://a", "oci://b/c");
        let both = || vec![failed(a, damaged), failed(b, damaged)];
        let Unready::Broken { code, message } = judge(both(), true) else {
            panic!("it is damaged everywhere");
        };
        assert_eq!(code, "artifact.damaged");
        assert!(message.contains(a) && message.contains(b), "{message}");
        // Another agent has the root of a third place.
        assert!(matches!(judge(both(), false), Unready::Declined { .. }));
        for (other, rests) in [(missing as fn(_, _) -> _, 0), (away, 1), (closed, 1)] {
            for places in [
                vec![failed(a, damaged), failed(b, other)],
                vec![failed(a, other), failed(b, damaged)],
            ] {
                let declined = judge(places, true);
                let Unready::Declined {
                    rests: own,
                    message,
                } = declined
                else {
                    panic!("{declined:?}");
                };
                assert_eq!(own.len(), rests, "{own:?}");
                assert!(message.contains(a) && message.contains(b), "{message}");
            }
        }
    }

    #[test]
    fn each_root_that_failed_as_a_whole_rests_by_what_it_said() {
        let places = vec![failed("s3://a", away), failed("oci://b/c", closed)];
        let Unready::Declined { rests, .. } = judge(places, true) else {
            panic!("nothing is damaged");
        };
        let [a, b] = rests.as_slice() else {
            panic!("{rests:?}");
        };
        assert_eq!((a.0.as_str(), b.0.as_str()), ("s3://a", "oci://b/c"));
        assert!(
            a.1.least < b.1.least,
            "what refuses us has to be mended by somebody"
        );
    }
}
