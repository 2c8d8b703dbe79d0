//! The storages of an agent: the roots that it fetches from, and the one where it keeps results.
//!
//! Both are looked at by the same rule, at the start and when their rest is over, under the names by which
//! the agent offers them. What a look finds to be away rests; nothing of it ends the agent.

use std::collections::HashMap;
use std::error::Error;
use std::time::Duration;

use anyhow::Context as _;

use super::AgentSettings;
use super::session::{REST, REST_AWAY};
use crate::runner::chain;
use crate::storage::{Results, Storage, StorageError};

/// Most characters that are told of what a storage said.
const SAID_CHARS: usize = 200;

/// What made a root rest, and for how long at least.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Failing {
    pub(super) least: Duration,
    /// Why, in one line.
    pub(super) why: String,
    /// What mends it.
    pub(super) hint: Option<String>,
}

impl Failing {
    pub(super) fn of(error: &StorageError) -> Self {
        Self {
            least: match error {
                // What refuses us has to be mended by somebody, what does not answer may do so in a moment.
                StorageError::Denied { .. } => REST,
                _ => REST_AWAY,
            },
            why: why(error),
            hint: error.hint(),
        }
    }

    /// Takes the words over in which it was told before, if they differ in keys and numbers only: whoever
    /// waits is told again what is news.
    pub(super) fn in_words_of(mut self, before: &Self) -> Self {
        let plain = |text: &str| -> Vec<String> {
            let words = text.split_whitespace();
            let words = words.filter(|word| !word.contains(|c: char| c.is_ascii_digit()));
            words.map(str::to_owned).collect()
        };
        if plain(&self.why) == plain(&before.why) {
            self.why.clone_from(&before.why);
        }
        self
    }
}

/// Says why a root failed as a whole, in one line and without the object at which it was noticed.
fn why(error: &StorageError) -> String {
    match error {
        StorageError::Denied { root, source, .. } => {
            format!("`{root}` refuses access: {}", said(source.as_ref()))
        }
        StorageError::Full { root, .. } => format!("the disk of `{root}` is full"),
        StorageError::Other { root, source, .. } => {
            format!("cannot reach `{root}`: {}", said(source.as_ref()))
        }
        other => other.to_string(),
    }
}

/// Tells what a storage said, in one line that is not too long.
fn said(source: &(dyn Error + Send + Sync + 'static)) -> String {
    let said = chain(source);
    let said = said.lines().next().unwrap_or_default();
    let said: String = said.chars().take(SAID_CHARS).collect();
    said.trim_end_matches([':', ' ']).to_owned()
}

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

    /// Looks at all of them, and answers which are away, and why.
    pub(super) async fn away(&self) -> Vec<(String, Failing)> {
        let mut names: Vec<&str> = self.storages.keys().map(String::as_str).collect();
        if !self.storages.contains_key(self.results.name()) {
            names.push(self.results.name());
        }
        names.sort_unstable();
        let count = names.len();
        let looks = names.into_iter().map(async |name| {
            let error = self.look(name).await.err()?;
            let failing = Failing::of(&error);
            let hint = error.hint();
            let hint = hint.as_deref();
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
            Some((name.to_owned(), failing))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_is_told_in_the_same_words_while_it_is_the_same() {
        let away = |said: &str| {
            Failing::of(&StorageError::Other {
                root: "s3://a".to_owned(),
                key: "segments/1".to_owned(),
                source: said.into(),
            })
        };
        let first = away("GET segments/0ee0 in 4.1ms: refused\n<Error>");
        assert_eq!(
            first.why,
            "cannot reach `s3://a`: GET segments/0ee0 in 4.1ms: refused"
        );
        let second = away("GET segments/0fa3 in 12ms: refused");
        assert_ne!(second.why, first.why);
        assert_eq!(second.in_words_of(&first).why, first.why);
        let closed = Failing::of(&StorageError::Denied {
            root: "s3://a".to_owned(),
            key: ".".to_owned(),
            source: "there are no credentials\n".into(),
        });
        assert_eq!(
            closed.why,
            "`s3://a` refuses access: there are no credentials"
        );
        let other = away("GET segments/0fa3 in 30s: no answer");
        assert_ne!(other.in_words_of(&first).why, first.why);
    }
}
