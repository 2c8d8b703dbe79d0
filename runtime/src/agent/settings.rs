//! What an agent is started with where nobody says otherwise, for programs that embed one.
//!
//! The command line sets every field itself, from flags and `config.toml`, which nothing here reads.

use std::num::NonZero;
use std::path::Path;
use std::sync::Arc;
use std::thread::available_parallelism;

use anyhow::Context as _;

use super::AgentSettings;
use crate::client::Client;
use crate::clock::Clock;
use crate::config::{Access, Home, hostname};
use crate::model::label::Labels;
use crate::model::limit::{ARTIFACT_BYTES_MAX, Limits};
use crate::sandbox::{Allowed, Compiler, Powers, Sandbox, Settings};
use crate::storage::{ArtifactCache, Root};

/// Runs at one time.
const SLOTS: usize = 16;

impl AgentSettings {
    /// Returns the settings of an agent whose home is a folder, which is made if it is not there.
    ///
    /// It is called after its host and offers that as a label, fetches from `flows` in its home, keeps
    /// results in `results` there, runs code of every project of its token, and allows flows nothing.
    /// What is to be otherwise is a field: all of them are public.
    ///
    /// Its sandbox compiles in a child process, which is the same program again. So the program calls
    /// [`crate::child_main`] before anything else; one that does not starts itself over and over.
    ///
    /// # Errors
    ///
    /// Fails if the home cannot be made, or the sandbox finds its machine unusable.
    pub fn new(client: Client, home: &Path) -> anyhow::Result<Self> {
        let folder = std::path::absolute(home).context("finding the home of the agent")?;
        let home = Home::new(folder);
        home.make()?;
        let program = std::env::current_exe().context("finding the program itself")?;
        let parallel = available_parallelism().map_or(1, NonZero::get);
        let sandbox = Settings::new(Compiler::Child(program), home.code_cache(), parallel);
        let hostname = hostname();
        Ok(Self {
            client,
            name: hostname.clone(),
            hostname,
            labels: Labels::default(),
            has_auto_labels: true,
            roots: vec![Root::local(&home.flows())?],
            results: Root::local(&home.results())?,
            access: Access::default(),
            artifact_max: ARTIFACT_BYTES_MAX,
            projects: None,
            slots: SLOTS,
            parallel,
            powers: Arc::new(Powers::new(Allowed::default(), home.folder())?),
            ceiling: Limits::CEILING,
            home: home.folder().to_owned(),
            artifact_cache_max: ArtifactCache::BYTES_MAX,
            sandbox: Sandbox::new(sandbox)?,
            clock: Clock::default(),
            is_once: false,
        })
    }
}
