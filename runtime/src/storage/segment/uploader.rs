//! The writer of a storage that cannot append: every batch is an object of its own.

use std::sync::Arc;
use std::time::Duration;

use object_store::path::Path;
use object_store::{ObjectStore as _, PutMode, PutOptions, PutPayload};
use tokio::sync::{Semaphore, mpsc};

use super::{Append, BATCH_VALUES};
use crate::clock::Clock;
use crate::storage::door::Remote;
use crate::storage::{Root, StorageError, key, reach};

/// How long the first value of a batch waits for others at most.
const GATHER: Duration = Duration::from_millis(50);
/// Bytes after which a batch is full.
const BATCH_BYTES: usize = 1024 * 1024;
/// Batches on their way at one time.
const UPLOADS: usize = 4;

/// The task that gathers. It ends with the last [`Results`](super::Results) that feeds it.
pub(super) struct Uploader {
    root: Root,
    remote: Remote,
    clock: Clock,
}

impl Uploader {
    pub(super) fn start(
        root: &Root,
        remote: &Remote,
        clock: &Clock,
    ) -> mpsc::UnboundedSender<Append> {
        let (queue, appends) = mpsc::unbounded_channel();
        let uploader = Self {
            root: root.clone(),
            remote: remote.clone(),
            clock: clock.clone(),
        };
        tokio::spawn(Arc::new(uploader).run(appends));
        queue
    }

    async fn run(self: Arc<Self>, mut appends: mpsc::UnboundedReceiver<Append>) {
        let uploads = Arc::new(Semaphore::new(UPLOADS));
        while let Some(first) = appends.recv().await {
            let mut bytes = first.bytes.len();
            let mut batch = vec![first];
            let full = async {
                while batch.len() < BATCH_VALUES && bytes < BATCH_BYTES {
                    let Some(next) = appends.recv().await else {
                        break;
                    };
                    bytes += next.bytes.len();
                    batch.push(next);
                }
            };
            // Either it is full, or it has waited long enough; what was gathered stays in the batch.
            let _ = tokio::time::timeout(GATHER, full).await;
            let Ok(turn) = uploads.clone().acquire_owned().await else {
                break;
            };
            let uploader = self.clone();
            tokio::spawn(async move {
                uploader.put(batch).await;
                drop(turn);
            });
        }
    }

    /// Puts a batch and answers those who wait.
    async fn put(&self, mut batch: Vec<Append>) {
        // Who no longer waits was cancelled: its value need not be kept.
        batch.retain(|append| !append.done.is_closed());
        if batch.is_empty() {
            return;
        }
        let begun = self.clock.now().as_microsecond();
        let key = key::segment(begun, rand::random());
        // The line at the end is there for registries, which keep nothing that is empty.
        let end = bytes::Bytes::from_static(b"\n");
        let chunks = batch.iter().map(|append| append.bytes.clone()).chain([end]);
        let payload = PutPayload::from_iter(chunks);
        let error = self.keep(&key, payload).await.err();
        if let Some(error) = &error {
            let why = std::error::Error::source(error).map(ToString::to_string);
            tracing::error!(%error, why, "results could not be kept");
        }
        let segment: Arc<str> = key.as_str().into();
        let mut at = 0;
        for append in batch {
            let offset = at;
            at += append.bytes.len() as u64;
            let _ = append.done.send(match &error {
                None => Ok((segment.clone(), offset)),
                Some(error) => Err(error.twin()),
            });
        }
    }

    /// Puts an object; once more if the place takes a few bytes in between, since it may have been away for a
    /// moment only. Under one key the second put does no harm to a first that landed.
    ///
    /// Says of a place that takes those and it neither time that it is not the place.
    async fn keep(&self, key: &str, payload: PutPayload) -> Result<(), StorageError> {
        let Err(error) = self.put_once(key, payload.clone()).await else {
            return Ok(());
        };
        let is_unclear = matches!(error, StorageError::Other { .. });
        if !is_unclear || reach::probe(&self.root, &self.remote).await.is_err() {
            return Err(error);
        }
        tracing::debug!(%error, "results are put once more");
        match self.put_once(key, payload).await {
            Err(StorageError::Other { root, key, source })
                if reach::probe(&self.root, &self.remote).await.is_ok() =>
            {
                Err(StorageError::NotTaken { root, key, source })
            }
            answer => answer,
        }
    }

    async fn put_once(&self, key: &str, payload: PutPayload) -> Result<(), StorageError> {
        let options = PutOptions::from(PutMode::Overwrite);
        let put = self
            .remote
            .put_opts(&Path::from(key), payload, options)
            .await;
        match put {
            Ok(_) => Ok(()),
            Err(error) => Err(StorageError::of_write(&self.root, key, error)),
        }
    }
}
