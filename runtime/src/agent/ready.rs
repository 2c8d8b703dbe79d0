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

use crate::clock::{Clock, Monotonic};
use crate::model::artifact::Digest;
use crate::model::flow::{Body, Definition, Described};
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
    /// Another agent may be luckier, and this one leaves the root alone for a while.
    Declined {
        root: Option<String>,
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
    places: Mutex<Places>,
}

/// An artifact under one registered definition; two versions of a command may share an artifact.
type Key = (Digest, Digest);

#[derive(Default)]
struct Places {
    by_key: HashMap<Key, Place>,
    uses: u64,
}

struct Place {
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
            places: Mutex::default(),
        }
    }

    /// Tells whether a root of this agent answers and lets it in.
    pub(crate) async fn is_in_reach(&self, root: &str) -> bool {
        match self.storages.get(root) {
            Some(storage) => storage.reach().await.is_ok(),
            None => true,
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
        let place = self.place((claimed.artifact, claimed.definition_hash));
        if !place.initialized() {
            // Said also by those who wait for another run to do it.
            step.send_replace(Step::Fetching);
        }
        let ready = place.get_or_try_init(|| self.make(claimed, step)).await?;
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
                root: None,
                message: format!(
                    "{} has {} bytes; this agent takes {} at most (agent.max.artifact)",
                    claimed.artifact, claimed.artifact_size, self.artifact_max
                ),
            });
        }
        let own = |location: &&Location| self.storages.contains_key(&location.root);
        let mut failed = Unready::Declined {
            root: None,
            message: format!("{} lies under none of this agent's roots", claimed.artifact),
        };
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
                Err(error) => failed = unfetched(&error, location),
            }
        }
        Err(failed)
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

    /// Returns the place of a component, empty if nobody has asked for it yet.
    fn place(&self, key: Key) -> Arc<OnceCell<Ready>> {
        let mut places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        places.uses += 1;
        let now = places.uses;
        let passed = self.clock.monotonic();
        let place = places.by_key.entry(key).or_insert_with(|| Place {
            ready: Arc::default(),
            last_use: now,
            touched_at: passed,
        });
        place.last_use = now;
        let ready = place.ready.clone();
        if ready.initialized() && passed.since(place.touched_at) >= TOUCH_EVERY {
            place.touched_at = passed;
            self.touch(key.0);
        }
        if places.by_key.len() > READY_MAX {
            let oldest = places.by_key.iter().min_by_key(|(_, place)| place.last_use);
            if let Some(oldest) = oldest.map(|(key, _)| *key) {
                places.by_key.remove(&oldest);
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

/// Says what a failed fetch means for the run.
fn unfetched(error: &StorageError, location: &Location) -> Unready {
    let message = format!(
        "cannot fetch `{}` from `{}`: {}",
        location.key,
        location.root,
        chain(error)
    );
    match error {
        StorageError::Damaged { .. } => Unready::Broken {
            code: "artifact.damaged",
            message,
        },
        // Only what ails the whole root lets it rest: one object that is missing, or a key that nobody may
        // read, is the trouble of one flow, and the agent's own cache is none of the storage's.
        StorageError::Denied { root, .. } | StorageError::Other { root, .. }
            if *root == location.root =>
        {
            Unready::Declined {
                root: Some(location.root.clone()),
                message,
            }
        }
        _ => Unready::Declined {
            root: None,
            message,
        },
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

/// Prints an error with what caused it, in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(next) = cause {
        text += &format!(": {next}");
        cause = next.source();
    }
    text
}
