//! The storages of an agent: the roots that it fetches from, and the one where it keeps results.
//!
//! Both are looked at by the same rule, at the start and when their rest is over, under the names by which
//! the agent offers them. What a look finds to be away rests; nothing of it ends the agent.

use std::collections::HashMap;
use std::time::Duration;

use anyhow::Context as _;

use super::AgentSettings;
use super::session::{REST, REST_AWAY};
use crate::storage::{Results, Storage, StorageError};

/// The storages by the names under which they are offered. Cheap to clone.
#[derive(Clone)]
pub(super) struct Places {
    pub(super) storages: HashMap<String, Storage>,
    pub(super) results: Results,
}

impl Places {
    /// Names all of them. None is opened before it is needed: what lies behind a root may come later than
    /// the agent.
    ///
    /// # Errors
    ///
    /// Fails if nothing can be kept where results are to be kept, whatever happens.
    pub(super) fn new(settings: &AgentSettings) -> anyhow::Result<Self> {
        let access = &settings.access;
        let storages = settings.roots.iter().map(|root| {
            let storage = Storage::at(root, access);
            (root.to_string(), storage)
        });
        let (root, clock) = (&settings.results, settings.clock.clone());
        let results = Results::at(root, &settings.hostname, access, clock);
        Ok(Self {
            storages: storages.collect(),
            results: results
                .with_context(|| format!("this agent could keep no results in `{root}`"))?,
        })
    }

    /// Looks at all of them, and answers which are away, and how long each rests.
    pub(super) async fn away(&self) -> Vec<(String, Duration)> {
        let mut names: Vec<&str> = self.storages.keys().map(String::as_str).collect();
        if !self.storages.contains_key(self.results.name()) {
            names.push(self.results.name());
        }
        names.sort_unstable();
        let count = names.len();
        let looks = names.into_iter().map(async |name| {
            let error = self.look(name).await.err()?;
            let rest = rest_after(&error);
            let hint = error.hint().unwrap_or_default();
            let error = anyhow::Error::new(error);
            match name == self.results.name() {
                true => tracing::warn!(
                    storage.root = name,
                    error = format!("{error:#}"),
                    hint,
                    "the place of results is out of reach: no run is taken before it answers"
                ),
                false => tracing::warn!(
                    storage.root = name,
                    error = format!("{error:#}"),
                    hint,
                    "a root is out of reach"
                ),
            }
            Some((name.to_owned(), rest))
        });
        let away = futures::future::join_all(looks).await;
        let away: Vec<_> = away.into_iter().flatten().collect();
        if away.len() == count {
            tracing::warn!("no storage of this agent is in reach: it waits for them");
        }
        away
    }

    /// Looks once more at a storage that rested, with the credentials that there are by now.
    pub(super) async fn look_again(&self, name: &str) -> Result<(), StorageError> {
        if let Some(storage) = self.storages.get(name) {
            storage.renew();
        }
        if name == self.results.name() {
            self.results.renew();
        }
        self.look(name).await
    }

    async fn look(&self, name: &str) -> Result<(), StorageError> {
        if let Some(storage) = self.storages.get(name) {
            storage.reach().await?;
        }
        match name == self.results.name() {
            true => self.results.reach().await,
            false => Ok(()),
        }
    }
}

/// Returns how long a storage rests that failed so: what refuses us has to be mended by somebody, what does
/// not answer may do so in a moment.
pub(super) const fn rest_after(error: &StorageError) -> Duration {
    match error {
        StorageError::Denied { .. } => REST,
        _ => REST_AWAY,
    }
}
