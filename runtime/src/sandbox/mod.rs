//! The sandbox: the boundary between what a flow's author wrote and everything else.
//!
//! [`Sandbox`] is made once per process. It prepares components (scan, compile, cache, link), lets
//! them describe themselves, and runs one attempt at a time in a fresh store with every limit on.
//! The runner calls it per attempt, the agent and the CLI prepare and describe. It knows no server,
//! no storage and no graph: what comes in is a file with a digest, what goes out is an [`Ended`].

mod attempt;
mod bindings;
mod compiler;
mod ctx;
mod definition;
mod describe;
mod ending;
mod engine;
mod grant;
mod host;
mod http;
mod limiter;
mod linker;
mod meter;
mod net;
mod socket;
mod stdio;
mod store;
#[cfg(test)]
mod tests;
mod threads;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Context as _;
use tokio::sync::{OnceCell, Semaphore};
use wasmtime::Engine;
use wasmtime::component::{Component, Linker};

use self::compiler::Workshop;
use self::ctx::RunCtx;
use self::engine::Ticker;
use self::linker::Linked;
use self::threads::Threads;
use crate::bounded;
use crate::clock::Clock;
use crate::model::artifact::Digest;
use crate::model::flow::Described;

pub use attempt::{Attempt, Call, Ended, Outcome, RunInfo, Said, Says};
pub(crate) use compiler::code_folder;
pub use compiler::{Budget, Compiler, child_main};
pub use grant::{Allowed, GrantError, Powers, Secrets};

/// Most components kept ready in memory; their code is mapped from the cache, so this bounds address
/// space rather than memory.
const PREPARED_MAX: usize = 256;

/// Runs components, each attempt in a store of its own. Cheap to clone.
#[derive(Clone)]
pub struct Sandbox(Arc<Inner>);

struct Inner {
    settings: Settings,
    engine: Engine,
    ticker: Ticker,
    linker: Linker<RunCtx>,
    workshop: Workshop,
    prepared: Mutex<HashMap<Digest, Arc<OnceCell<Arc<Prepared>>>>>,
    /// One place for each memory of the pool; a store takes as many as its component has memories.
    places: Arc<Semaphore>,
    places_max: u32,
    /// Measures what attempts take. Log lines carry the time of the settings' clock instead.
    clock: Clock,
    threads: Threads,
    panics: AtomicU64,
}

/// How a sandbox works; the same for everything it runs.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Who turns components into machine code.
    pub compiler: Compiler,
    /// The folder of compiled code, for this user alone.
    pub code_cache: PathBuf,
    /// The most bytes of it to keep. Code that is larger by itself is kept until other code comes.
    pub code_bytes_max: u64,
    /// The most stores open at one time; further attempts wait. The machine may allow fewer.
    pub stores_max: usize,
    /// What a component may cost to compile.
    pub budget: Budget,
    /// The time that log lines carry.
    pub clock: Clock,
}

impl Settings {
    /// Returns settings with the default budget and bound, and the system's clock.
    #[must_use]
    pub fn new(compiler: Compiler, code_cache: PathBuf, stores_max: usize) -> Self {
        Self {
            compiler,
            code_cache,
            code_bytes_max: bounded::BYTES_MAX,
            stores_max,
            budget: Budget::default(),
            clock: Clock::default(),
        }
    }
}

/// Why a component was not prepared or described.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// The component's doing: trying again gives the same answer.
    #[error("{message}")]
    Rejected {
        /// `rejected.` and a word: format, budget, imports, exports, digest, compile, definition.
        code: &'static str,
        /// What is wrong with it.
        message: String,
    },
    /// Ours or the machine's: trying again may help.
    #[error("the sandbox could not do its part")]
    Host(#[source] anyhow::Error),
}

/// What a component is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It exports `waft:flow/definition`.
    Flow,
    /// It exports `wasi:cli/run`: a flow of one task.
    Command,
}

/// A component, compiled and linked, ready for any number of attempts.
pub struct Prepared {
    digest: Digest,
    linked: Linked,
    imports: Vec<String>,
    places: u32,
}

impl Prepared {
    /// Returns what it is.
    #[must_use]
    pub const fn kind(&self) -> Kind {
        self.linked.kind()
    }

    /// Lists the interfaces it imports, with their versions.
    #[must_use]
    pub fn imports(&self) -> &[String] {
        &self.imports
    }

    /// Returns the digest of its bytes.
    #[must_use]
    pub const fn digest(&self) -> Digest {
        self.digest
    }
}

impl Sandbox {
    /// Makes the one sandbox of this process.
    ///
    /// # Errors
    ///
    /// Fails if the engine cannot be made or the folder of compiled code is not ours alone.
    pub fn new(settings: Settings) -> Result<Self, SandboxError> {
        Inner::new(settings)
            .map(|inner| Self(Arc::new(inner)))
            .map_err(SandboxError::Host)
    }

    /// Makes a component ready: scanned, compiled or loaded from the code cache, linked.
    ///
    /// `bytes` must be the file of this digest; it is checked when it is read, and not read at all
    /// if its code is in the cache. Prepared components are kept in memory by digest; many callers
    /// at one time compile once.
    ///
    /// # Errors
    ///
    /// [`SandboxError::Rejected`] says what is wrong with the component.
    pub async fn prepare(
        &self,
        digest: Digest,
        bytes: &Path,
    ) -> Result<Arc<Prepared>, SandboxError> {
        let cell = self.0.cell(digest);
        let prepared = cell.get_or_try_init(|| self.0.prepare(digest, bytes)).await;
        prepared.cloned()
    }

    /// Notes that a component is used that was prepared before. Blocks.
    pub(crate) fn touch(&self, digest: Digest) {
        self.0.workshop.touch(digest);
    }

    /// Lets a flow say what it is, and checks what it says.
    ///
    /// It runs twice without any grant, with fixed clock and randomness; both answers must be equal.
    ///
    /// # Errors
    ///
    /// `rejected.definition` with what is wrong; a command does not describe itself.
    pub async fn describe(&self, prepared: &Prepared) -> Result<Described, SandboxError> {
        self.0.describe(prepared).await
    }

    /// Runs one attempt in a fresh store. Never panics; dropping the future stops it.
    ///
    /// Waits for a place first; the timeout counts from there.
    pub async fn attempt(&self, prepared: &Arc<Prepared>, attempt: Attempt) -> Ended {
        let (inner, prepared) = (Arc::clone(&self.0), Arc::clone(prepared));
        let run = async move { inner.attempt(&prepared, attempt).await };
        self.0.threads.run(&self.0.clock, run).await
    }

    /// Says what the operator should know about this sandbox on this machine; usually nothing.
    #[must_use]
    pub fn caveat(&self) -> Option<&'static str> {
        compiler::caveat(&self.0.settings.compiler)
    }

    /// Returns the engine, for benches that compare with wasmtime alone. There is one per process.
    #[must_use]
    pub fn engine(&self) -> &Engine {
        &self.0.engine
    }

    /// Counts the attempts that ended in a panic of ours. Any is a bug.
    #[must_use]
    pub fn panics(&self) -> u64 {
        self.0.panics.load(Ordering::Relaxed)
    }
}

impl Inner {
    fn new(settings: Settings) -> anyhow::Result<Self> {
        let places_max = engine::stores_possible(settings.stores_max);
        let engine = engine::pooled(places_max)
            .map_err(|error| engine::trouble(&error))
            .context("making the engine")?;
        let linker = linker::link(&engine)
            .map_err(|error| engine::trouble(&error))
            .context("linking what guests may import")?;
        let workshop = Workshop::open(
            engine.clone(),
            settings.compiler.clone(),
            settings.budget.clone(),
            (&settings.code_cache, settings.code_bytes_max),
            settings.clock.clone(),
        )?;
        let ticker = Ticker::start(&engine).context("starting the ticker")?;
        Ok(Self {
            settings,
            engine,
            ticker,
            linker,
            workshop,
            prepared: Mutex::default(),
            places: Arc::new(Semaphore::new(places_max as usize)),
            places_max,
            clock: Clock::default(),
            threads: Threads::default(),
            panics: AtomicU64::new(0),
        })
    }

    /// Returns the place in memory of a prepared component, made or not.
    fn cell(&self, digest: Digest) -> Arc<OnceCell<Arc<Prepared>>> {
        let mut all = self.prepared.lock().unwrap_or_else(PoisonError::into_inner);
        if all.len() >= PREPARED_MAX && !all.contains_key(&digest) {
            // Whoever still holds one keeps it; the others are loaded again when they are needed.
            all.retain(|_, cell| Arc::strong_count(cell) > 1);
            let unused = all.keys().next().copied();
            if let Some(unused) = unused.filter(|_| all.len() >= PREPARED_MAX) {
                all.remove(&unused);
            }
        }
        Arc::clone(all.entry(digest).or_default())
    }

    async fn prepare(&self, digest: Digest, bytes: &Path) -> Result<Arc<Prepared>, SandboxError> {
        let component = self.workshop.component(digest, bytes).await?;
        let places = self.places_of(&component)?;
        Ok(Arc::new(Prepared {
            digest,
            linked: Linked::new(&self.linker, &component)?,
            imports: linker::imports(&component),
            places,
        }))
    }

    /// Counts the places in the pool that one store of this component takes.
    fn places_of(&self, component: &Component) -> Result<u32, SandboxError> {
        let places = component.resources_required().map_or(1, |needed| {
            let tables = needed.num_tables.div_ceil(engine::TABLES_PER_MEMORY);
            needed.num_memories.max(tables).max(1)
        });
        if places > self.places_max {
            return Err(SandboxError::Rejected {
                code: "rejected.budget",
                message: format!(
                    "it needs {places} memories at one time, more than the {} of this agent",
                    self.places_max
                ),
            });
        }
        Ok(places)
    }
}
