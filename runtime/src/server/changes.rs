//! Calls that wait for a change of a run: watchers, followers of logs, listening agents.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::Notify;

use crate::model::id::FlowRunId;

/// Who waits for which run.
pub(super) type Changes = Bells<FlowRunId>;

/// A bell for each key that somebody waits at. Clones share them.
#[derive(Clone)]
pub(super) struct Bells<K>(Arc<Mutex<HashMap<K, Bell>>>);

/// A bell, and how many listen to it.
type Bell = (Arc<Notify>, usize);

impl<K> Default for Bells<K> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

/// One who waits; the bell goes with the last of them.
pub(super) struct Listener<K: Hash + Eq> {
    bells: Bells<K>,
    key: K,
    bell: Arc<Notify>,
}

impl<K: Hash + Eq + Clone> Bells<K> {
    /// Begins to listen at a key.
    pub(super) fn listen(&self, key: K) -> Listener<K> {
        let mut bells = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = bells.entry(key.clone()).or_default();
        entry.1 += 1;
        Listener {
            bells: self.clone(),
            key,
            bell: entry.0.clone(),
        }
    }

    /// Tells those who wait at these keys.
    pub(super) fn tell(&self, keys: &[K]) {
        let bells = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for (bell, _) in keys.iter().filter_map(|key| bells.get(key)) {
            bell.notify_waiters();
        }
    }

    /// Tells everybody who waits.
    pub(super) fn tell_all(&self) {
        let bells = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for (bell, _) in bells.values() {
            bell.notify_waiters();
        }
    }
}

impl<K: Hash + Eq> Listener<K> {
    /// Returns what ends when something is told from now on, polled or not: make it before looking
    /// at what may have changed.
    pub(super) fn told(&self) -> impl Future<Output = ()> + Send + use<K> {
        self.bell.clone().notified_owned()
    }
}

impl<K: Hash + Eq> Drop for Listener<K> {
    fn drop(&mut self) {
        let mut bells = self.bells.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(entry) = bells.get_mut(&self.key) {
            entry.1 -= 1;
            if entry.1 == 0 {
                bells.remove(&self.key);
            }
        }
    }
}
