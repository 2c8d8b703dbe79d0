//! Whether a storage answers and lets us in, asked before something depends on it.
//!
//! A place for artifacts is asked for an object that it cannot have. Its answer tells a place that is
//! missing, or credentials that open nothing, from a place that only has no such object. A place for
//! results is written to: an agent that may read there and not write would find out with the first
//! output that it cannot keep, after the task has run.

use std::time::Duration;

use futures::TryStreamExt as _;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt as _};

use super::error::{WHOLE, code};
use super::{Kind, Root, StorageError, key};
use crate::model::artifact::Digest;

/// How long a look may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// Asks for an object that the storage cannot have.
pub(super) async fn look(root: &Root, store: &dyn ObjectStore) -> Result<(), StorageError> {
    within(root, async {
        let key = key::artifact(Digest::from_bytes(rand::random()));
        // Not for its head alone: only a whole answer says what is missing, the object or the bucket.
        let Err(error) = store.get(&Path::from(key.as_str())).await else {
            return Ok(());
        };
        let is_of_object = matches!(code(&error.to_string()), Some("NoSuchKey" | "BlobNotFound"));
        match StorageError::of_read(root, &key, error) {
            StorageError::NotFound { .. } if is_of_object => Ok(()),
            StorageError::NotFound { .. } => match root.kind() {
                Kind::S3 | Kind::Gcs | Kind::Azure => is_there(root, store).await,
                // A folder or a repository is made by the first put, and a web server has no places.
                _ => Ok(()),
            },
            // It knows us, and does not say what it has.
            StorageError::Withheld { .. } => Ok(()),
            StorageError::Denied { root, source, .. } => Err(StorageError::Denied {
                root,
                key: WHOLE.to_owned(),
                source,
            }),
            StorageError::Other { root, source, .. } => Err(StorageError::Other {
                root,
                key: WHOLE.to_owned(),
                source,
            }),
            error => Err(error),
        }
    })
    .await
}

/// Lists what cannot be there, for servers whose answers have no code. A refusal says nothing: it may be
/// that only the list is refused.
async fn is_there(root: &Root, store: &dyn ObjectStore) -> Result<(), StorageError> {
    let none = Path::from(format!("none-{:016x}", rand::random::<u64>()));
    match store.list(Some(&none)).try_next().await {
        Ok(_) => Ok(()),
        Err(error) => match StorageError::of_write(root, WHOLE, error) {
            StorageError::Denied { .. } => Ok(()),
            error => Err(error),
        },
    }
}

/// Writes a few bytes under a key that nothing else has, and takes them away again.
///
/// Whoever may write and not delete leaves that one object there, the same each time.
pub(super) async fn probe(root: &Root, store: &dyn ObjectStore) -> Result<(), StorageError> {
    within(root, async {
        let path = Path::from(key::PROBE);
        let put = store.put(&path, "waft was here\n".into()).await;
        put.map_err(|error| StorageError::of_write(root, key::PROBE, error))?;
        if let Err(error) = store.delete(&path).await {
            tracing::debug!(%error, "a probe stays where it was put");
        }
        Ok(())
    })
    .await
}

/// Waits for an answer no longer than a look may take.
pub(super) async fn within(
    root: &Root,
    look: impl Future<Output = Result<(), StorageError>>,
) -> Result<(), StorageError> {
    match tokio::time::timeout(PATIENCE, look).await {
        Ok(answer) => answer,
        Err(_) => {
            let silent = format!("no answer for {} s", PATIENCE.as_secs());
            Err(StorageError::of(root, WHOLE, silent))
        }
    }
}
