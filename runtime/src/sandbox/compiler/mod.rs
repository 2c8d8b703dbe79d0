//! From a component's bytes to machine code: scan, compile in a child, keep by digest.
//!
//! A component of ten kilobytes can cost the compiler ten gigabytes, and its failure to get them is
//! an abort. So nothing is compiled that the scan refuses, and the compiler runs in a child process
//! with ceilings ([`Budget`]). `Sandbox::prepare` is the only caller.

mod child;
mod code_cache;
mod scan;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::sync::Semaphore;
use wasmtime::Engine;
use wasmtime::component::Component;

use self::code_cache::CodeCache;
use super::SandboxError;
use crate::clock::Clock;
use crate::model::artifact::Digest;
use crate::model::limit::MIB;

pub use child::child_main;
pub(crate) use code_cache::folder as code_folder;

/// Who turns components into machine code.
#[derive(Clone, Debug)]
pub enum Compiler {
    /// A child process of this program, run as `<program> __compile`, with resource limits.
    Child(PathBuf),
    /// This process: for tests of trusted guests only, since a hostile component can take it down.
    InProcess,
}

/// What a component may cost: the size of its file, and memory and CPU time of its compiler.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Budget {
    /// Bytes of the artifact.
    pub file_bytes: u64,
    /// Bytes of address space of the compiler, whatever it compiles.
    pub memory_bytes: u64,
    /// More of it for each MiB of code.
    pub memory_bytes_per_mib: u64,
    /// Seconds of CPU time of the compiler, whatever it compiles.
    pub cpu_seconds: u64,
    /// More of it for each MiB of code.
    pub cpu_seconds_per_mib: u64,
}

impl Default for Budget {
    /// Measured against Python (18 MB) and JavaScript (12 MB) guests, which compile in 11 to 17 s.
    fn default() -> Self {
        Self {
            file_bytes: 128 * MIB,
            memory_bytes: 512 * MIB,
            memory_bytes_per_mib: 24 * MIB,
            cpu_seconds: 20,
            cpu_seconds_per_mib: 2,
        }
    }
}

/// The ceilings of one compilation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Ceiling {
    memory_bytes: u64,
    cpu_seconds: u64,
}

impl Budget {
    fn ceiling(&self, code_bytes: u64) -> Ceiling {
        let mib = code_bytes.div_ceil(MIB);
        Ceiling {
            memory_bytes: self.memory_bytes + self.memory_bytes_per_mib * mib,
            cpu_seconds: self.cpu_seconds + self.cpu_seconds_per_mib * mib,
        }
    }
}

/// Why a component is not compiled: the component's own doing.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Refusal {
    code: &'static str,
    message: String,
}

impl Refusal {
    fn format(message: impl Into<String>) -> Self {
        Self {
            code: "rejected.format",
            message: message.into(),
        }
    }

    fn budget(message: impl Into<String>) -> Self {
        Self {
            code: "rejected.budget",
            message: message.into(),
        }
    }

    fn compile(message: impl Into<String>) -> Self {
        Self {
            code: "rejected.compile",
            message: message.into(),
        }
    }
}

/// Why there is no machine code.
#[derive(Debug)]
enum Failure {
    /// The component's doing; remembered, since it would be the same the next time.
    Refused(Refusal),
    /// Ours or the machine's.
    Host(anyhow::Error),
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

impl From<Failure> for SandboxError {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Refused(Refusal { code, message }) => Self::Rejected { code, message },
            Failure::Host(error) => Self::Host(error),
        }
    }
}

/// Makes components of artifacts, each digest once.
pub(crate) struct Workshop {
    engine: Engine,
    compiler: Compiler,
    budget: Budget,
    cache: Arc<CodeCache>,
    /// A compilation takes a core for seconds; no more of them than there are cores.
    benches: Semaphore,
}

impl Workshop {
    pub(crate) fn open(
        engine: Engine,
        compiler: Compiler,
        budget: Budget,
        code_cache: (&Path, u64),
        clock: Clock,
    ) -> anyhow::Result<Self> {
        let (folder, bytes_max) = code_cache;
        let cache = CodeCache::open(folder, bytes_max, &engine, clock)?;
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Ok(Self {
            engine,
            compiler,
            budget,
            cache: Arc::new(cache),
            benches: Semaphore::new(cores),
        })
    }

    /// Loads the code of an artifact from the cache, or compiles it.
    ///
    /// `artifact` is a file whose digest was checked.
    pub(crate) async fn component(
        &self,
        digest: Digest,
        artifact: &Path,
    ) -> Result<Component, SandboxError> {
        if let Some(component) = self.load(digest).await? {
            return Ok(component);
        }
        let _bench = self
            .benches
            .acquire()
            .await
            .expect("the semaphore is never closed");
        // Another process with the same cache may have been faster.
        if let Some(component) = self.load(digest).await? {
            return Ok(component);
        }
        if let Some(refusal) = self.cache.refusal(digest, &self.budget) {
            return Err(Failure::Refused(refusal).into());
        }
        let compiled = self.compile(digest, artifact).await;
        if let Err(Failure::Refused(refusal)) = &compiled {
            self.cache.remember(digest, &self.budget, refusal);
        }
        Ok(compiled?)
    }

    /// Notes that the code of an artifact is used. Blocks.
    pub(crate) fn touch(&self, digest: Digest) {
        self.cache.touch(digest);
    }

    async fn load(&self, digest: Digest) -> Result<Option<Component>, SandboxError> {
        let (cache, engine) = (Arc::clone(&self.cache), self.engine.clone());
        Ok(blocking(move || cache.load(digest, &engine)).await??)
    }

    async fn compile(&self, digest: Digest, artifact: &Path) -> Result<Component, Failure> {
        let (path, budget) = (artifact.to_owned(), self.budget.clone());
        let (bytes, scanned) = blocking(move || scan::read_and_scan(&path, digest, &budget))
            .await
            .map_err(into_host)??;
        let ceiling = self.budget.ceiling(scanned.code_bytes);
        let output = self.cache.draft(digest).map_err(Failure::Host)?;
        match &self.compiler {
            Compiler::Child(program) => {
                child::compile(program, &bytes, output.file(), ceiling).await?;
            }
            Compiler::InProcess => {
                let engine = self.engine.clone();
                let code = blocking(move || child::precompile(&engine, &bytes))
                    .await
                    .map_err(into_host)??;
                output.write(&code).map_err(Failure::Host)?;
            }
        }
        let (cache, engine) = (Arc::clone(&self.cache), self.engine.clone());
        blocking(move || cache.keep(digest, output, &engine))
            .await
            .map_err(into_host)?
    }
}

fn into_host(error: SandboxError) -> Failure {
    Failure::Host(error.into())
}

/// Runs what blocks or computes for long off the threads that serve everybody.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, SandboxError> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| SandboxError::Host(anyhow::Error::new(error)))
}

/// Says what the operator should know about compiling on this machine; usually nothing.
#[must_use]
pub(crate) const fn caveat(compiler: &Compiler) -> Option<&'static str> {
    match compiler {
        Compiler::Child(_) if cfg!(unix) => None,
        Compiler::Child(_) => Some(
            "the memory of the compiler cannot be capped on this platform; only the scan stands between it and a hostile component",
        ),
        Compiler::InProcess => Some("components are compiled in this process, without ceilings"),
    }
}
