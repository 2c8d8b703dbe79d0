//! Rows that never change once they are committed, kept in memory; and what was written a moment ago.
//!
//! A version of a flow is never changed and a requirement is interned, so both can be remembered by
//! every replica without being told of anything. What may change (which version is the current one,
//! where bytes lie) is not here. When segments were used is here only so that it is not written often.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use jiff::{SignedDuration, Timestamp};

use super::tx::Tx;
use super::{DbError, flow_version, requirement};
use crate::model::id::FlowVersionId;
use crate::model::requirement::Requirement;

pub use super::flow_version::Version;

/// Most rows of a kind: with definitions of usual size some ten megabytes.
const ROWS_MAX: usize = 10_000;

/// What is remembered. Clones share it.
#[derive(Clone, Default)]
pub struct Memory(Arc<Rows>);

#[derive(Default)]
struct Rows {
    versions: Mutex<HashMap<FlowVersionId, Arc<Version>>>,
    requirements: Mutex<HashMap<i64, Arc<Requirement>>>,
    /// The requirements that were read since the writer's closure of this moment began.
    fresh: Mutex<Vec<i64>>,
    /// When segments were last noted as used, by root and key.
    used: Mutex<HashMap<String, HashMap<String, Timestamp>>>,
    undone: AtomicU64,
}

impl Memory {
    /// Returns a version, reading it at most once.
    pub async fn version(
        &self,
        tx: &mut Tx,
        id: FlowVersionId,
    ) -> Result<Option<Arc<Version>>, DbError> {
        if let Some(known) = known(&self.0.versions, &id) {
            return Ok(Some(known));
        }
        let read = flow_version::read(tx, id).await?;
        Ok(read.map(|version| remember(&self.0.versions, id, version)))
    }

    /// Returns a requirement that was read before.
    #[must_use]
    pub fn known_requirement(&self, id: i64) -> Option<Arc<Requirement>> {
        known(&self.0.requirements, &id)
    }

    /// Returns a requirement by its number, reading it at most once.
    pub async fn requirement(&self, tx: &mut Tx, id: i64) -> Result<Arc<Requirement>, DbError> {
        if let Some(known) = known(&self.0.requirements, &id) {
            return Ok(known);
        }
        let read = requirement::read(tx, id).await?;
        // PostgreSQL gives no number twice, so there it is true whatever becomes of the transaction.
        if !tx.is_shared() {
            locked(&self.0.fresh).push(id);
        }
        Ok(remember(&self.0.requirements, id, read))
    }

    /// Tells whether a segment was noted as used less than so long ago.
    pub(super) fn is_used(
        &self,
        root: &str,
        key: &str,
        now: Timestamp,
        lag: SignedDuration,
    ) -> bool {
        let used = locked(&self.0.used);
        let at = used.get(root).and_then(|keys| keys.get(key));
        at.is_some_and(|at| now.duration_since(*at).abs() < lag)
    }

    /// Notes when a segment is used.
    pub(super) fn remember_use(&self, root: String, key: String, now: Timestamp) {
        let mut used = locked(&self.0.used);
        if used.values().map(HashMap::len).sum::<usize>() >= ROWS_MAX {
            used.clear();
        }
        used.entry(root).or_default().insert(key, now);
    }

    /// Returns how often everything was forgotten. Whoever keeps something under the number of a
    /// requirement forgets it too when this has changed: the number may come again for another.
    pub(crate) fn undone(&self) -> u64 {
        self.0.undone.load(Ordering::Relaxed)
    }

    /// Takes note that a closure of the writer begins.
    pub(super) fn begin(&self) {
        locked(&self.0.fresh).clear();
    }

    /// Forgets what was read since then: the closure is undone, and a number that it gave a requirement
    /// may come again for another. Nobody else has seen that number.
    pub(super) fn forget_fresh(&self) {
        let fresh = std::mem::take(&mut *locked(&self.0.fresh));
        let mut requirements = locked(&self.0.requirements);
        for id in fresh {
            requirements.remove(&id);
        }
    }

    /// Forgets everything: a transaction was undone, and what it had read of itself is not true.
    pub(in crate::server) fn forget(&self) {
        self.0.undone.fetch_add(1, Ordering::Relaxed);
        locked(&self.0.versions).clear();
        locked(&self.0.requirements).clear();
        locked(&self.0.used).clear();
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn known<K: Hash + Eq, V>(rows: &Mutex<HashMap<K, Arc<V>>>, key: &K) -> Option<Arc<V>> {
    locked(rows).get(key).cloned()
}

fn remember<K: Hash + Eq, V>(rows: &Mutex<HashMap<K, Arc<V>>>, key: K, value: V) -> Arc<V> {
    let value = Arc::new(value);
    let mut rows = locked(rows);
    if rows.len() >= ROWS_MAX {
        rows.clear();
    }
    rows.insert(key, value.clone());
    value
}
