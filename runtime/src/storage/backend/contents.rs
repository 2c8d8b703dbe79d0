//! What lies under a root as a whole: listed, looked at from outside, and taken away.

use futures::StreamExt as _;
use futures::stream::{self, BoxStream};
use jiff::Timestamp;
use object_store::path::Path as ObjectPath;
use object_store::{ObjectStore as _, ObjectStoreExt as _};

use super::{Found, Place, Storage};
use crate::storage::error::WHOLE;
use crate::storage::root::Kind;
use crate::storage::{StorageError, folder, key, segment, task_cache};

/// What is said of a tag whose image lost its layer.
const GONE: &str = "a tag whose blob is gone";

impl Storage {
    /// Deletes a segment of results that lies here beside artifacts; as [`Results::delete`](crate::storage::Results::delete).
    ///
    /// # Errors
    ///
    /// As there.
    pub async fn delete_segment(&self, key: &str) -> Result<(), StorageError> {
        segment::check_deletable(&self.root, key)?;
        let store = self.store(key).await?;
        let deleted = store.delete(&ObjectPath::from(key)).await;
        segment::gone(deleted.map_err(|error| self.error(key, error)))
    }

    /// Answers when a cached output expires, if it ever does; none too for what is no whole one.
    ///
    /// # Errors
    ///
    /// Refuses what is no cached output; fails if the storage does.
    pub async fn expires_at(&self, found: &Found) -> Result<Option<Timestamp>, StorageError> {
        let key = found.key.as_str();
        if !key::is_task_entry(key) {
            return Err(self.refused(key, "it is not the key of a cached output"));
        }
        let store = self.store(key).await?;
        let head = 0..found.size.min(task_cache::HEAD_BYTES_MAX);
        let head = store.get_range(&ObjectPath::from(key), head).await;
        let head = head.map_err(|error| StorageError::of_read(&self.root, key, error))?;
        Ok(task_cache::expires_at(&head))
    }

    /// Deletes something that waft has put here: an artifact, a segment, a cached output, or what a writer left
    /// half-written. What is not there is deleted already.
    ///
    /// Who asks for it has to know that nobody needs it.
    ///
    /// # Errors
    ///
    /// Refuses everything else, and to delete from a registry or a web server; fails if the storage does.
    pub async fn delete(&self, key: &str) -> Result<(), StorageError> {
        let is_ours = key::artifact_of(key).is_some()
            || key::is_segment(key)
            || key::is_task_entry(key)
            || key::is_draft(key);
        match self.root.kind() {
            _ if !is_ours => return Err(self.refused(key, "it is no key that waft makes")),
            Kind::Oci => return Err(self.refused(key, segment::NO_DELETION)),
            Kind::Http => return Err(self.refused(key, "a web server is read-only")),
            _ => {}
        }
        let store = self.store(key).await?;
        let deleted = match &self.place {
            // Names of what is half-written are not for the store.
            Place::Folder(folder) => {
                let (folder, name) = (folder.clone(), key.to_owned());
                let delete = move || {
                    let dir = folder::open(&folder)?;
                    dir.remove_file(&name)?;
                    folder::sync_above(&dir, &name)
                };
                self.blocking(key, delete).await
            }
            Place::Remote(_) => {
                let deleted = store.delete(&ObjectPath::from(key)).await;
                deleted.map_err(|error| self.error(key, error))
            }
        };
        segment::gone(deleted)
    }

    /// Takes away from a folder what writers left half-written that were killed before an instant, and answers
    /// how much that was. Elsewhere nothing is ever half-written.
    ///
    /// # Errors
    ///
    /// Fails if the folder cannot be read or written.
    pub async fn sweep(&self, before: Timestamp) -> Result<usize, StorageError> {
        match &self.place {
            Place::Folder(folder) => {
                let folder = folder.clone();
                let sweep = move || folder::sweep(&folder, before);
                self.blocking(WHOLE, sweep).await
            }
            Place::Remote(_) => Ok(0),
        }
    }

    /// Lists what lies under the root, in no order.
    ///
    /// # Errors
    ///
    /// Fails if the storage cannot be listed, as a web server cannot, and if there is no such folder, bucket,
    /// container or repository: an empty one is something else.
    pub async fn list(
        &self,
    ) -> Result<BoxStream<'static, Result<Found, StorageError>>, StorageError> {
        if self.root.kind() == Kind::Http {
            return Err(self.unable("a web server, which cannot be listed"));
        }
        let store = match &self.place {
            Place::Folder(folder) => {
                let folder = folder.clone();
                let found = self.blocking(WHOLE, move || match folder.is_dir() {
                    true => folder::list(&folder).map(Some),
                    false => folder.symlink_metadata().map(|_| None),
                });
                let found = match found.await {
                    Ok(Some(found)) => found,
                    Ok(None) => return Err(self.unable("no folder")),
                    Err(StorageError::NotFound { .. }) => {
                        return Err(StorageError::no_place(&self.root));
                    }
                    Err(error) => return Err(error),
                };
                return Ok(stream::iter(found.into_iter().map(Ok)).boxed());
            }
            Place::Remote(store) => store.clone(),
        };
        let (root, is_registry) = (self.root.clone(), self.root.kind() == Kind::Oci);
        let found = store.list(None).map(move |found| match found {
            Ok(found) => Ok(Found {
                key: found.location.to_string(),
                size: found.size,
                written_at: Timestamp::from_microsecond(found.last_modified.timestamp_micros())
                    .ok()
                    .filter(|at| *at > Timestamp::UNIX_EPOCH),
                odd: (is_registry && found.e_tag.is_none()).then_some(GONE),
            }),
            Err(error) => Err(StorageError::of_write(&root, WHOLE, error)),
        });
        Ok(found.boxed())
    }
}
