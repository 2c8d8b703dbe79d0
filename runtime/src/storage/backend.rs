//! Storage: puts artifacts under a root and fetches them.
//!
//! One struct over `object_store`, whose trait already unites the clouds. An artifact is durable
//! before [`Storage::put_artifact`] returns, and its digest is checked on every way: while it is read
//! to be put, when it is found to be there already, and when it is fetched.

use std::fs::File;
use std::io::{Read, Write};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use object_store::local::LocalFileSystem;
use object_store::path::Path as ObjectPath;
use object_store::{ObjectStore, ObjectStoreExt, PutMode, PutPayload};
use sha2::{Digest as _, Sha256};

use super::{ArtifactCache, Root, StorageError, folder, key};
use crate::model::artifact::Digest;

/// Bytes that are read at a time.
const CHUNK: u64 = 1024 * 1024;
/// Times an artifact is fetched before it counts as damaged; the way may be at fault once.
const FETCHES: u32 = 3;

/// A place for artifacts. Cheap to clone and to open.
#[derive(Clone, Debug)]
pub struct Storage {
    root: Root,
}

impl Storage {
    /// Opens a storage. The place itself is looked at only when something is put or fetched.
    ///
    /// # Errors
    ///
    /// None with local folders; a cloud will fail here without credentials.
    pub fn open(root: &Root) -> Result<Self, StorageError> {
        Ok(Self { root: root.clone() })
    }

    /// Returns the root that was opened.
    #[must_use]
    pub const fn root(&self) -> &Root {
        &self.root
    }

    /// Puts an artifact and returns its key.
    ///
    /// The bytes are checked against the digest while they are read. If the key exists, what lies
    /// there is read and compared; should it be damaged, it is replaced. The bytes are durable when
    /// this returns, so metadata that names them may be committed after it.
    ///
    /// # Errors
    ///
    /// Fails if the file is not what the digest says, or if the storage does not take it.
    pub async fn put_artifact(
        &self,
        file: &Path,
        digest: Digest,
        size: u64,
    ) -> Result<String, StorageError> {
        let key = key::artifact(digest);
        let chunks = {
            let file = file.to_owned();
            self.blocking(&key, move || read_chunks(&file, size))
                .await?
        };
        let mut hasher = Sha256::new();
        let mut got = 0;
        for chunk in &chunks {
            hasher.update(chunk);
            got += chunk.len() as u64;
        }
        self.compare(&key, (digest, size), (hasher, got))?;
        let folder = self.root.folder().to_owned();
        self.blocking(&key, move || folder::make(&folder)).await?;
        let store = self.store(&key).await?;
        let payload = PutPayload::from_iter(chunks);
        let path = ObjectPath::from(key.as_str());
        match store
            .put_opts(&path, payload.clone(), PutMode::Create.into())
            .await
        {
            Ok(_) => {}
            Err(object_store::Error::AlreadyExists { .. }) => {
                match self.check_artifact(digest, size).await {
                    Err(StorageError::Damaged { .. }) => {
                        let put = store.put(&path, payload).await;
                        put.map_err(|error| self.error(&key, error))?;
                    }
                    other => other?,
                }
            }
            Err(error) => return Err(self.error(&key, error)),
        }
        Ok(key)
    }

    /// Reads an artifact where it lies and compares it with its digest.
    ///
    /// # Errors
    ///
    /// Fails if it is absent, damaged or out of reach.
    pub async fn check_artifact(&self, digest: Digest, size: u64) -> Result<(), StorageError> {
        let key = key::artifact(digest);
        self.read_through(&key, digest, size, |_| Ok(())).await
    }

    /// Fetches an artifact into the cache and returns where it lies there.
    ///
    /// What the cache has is not fetched again. The size is compared before a byte is read, the
    /// digest before anybody sees the file.
    ///
    /// # Errors
    ///
    /// Fails if the key is not that of the digest, if the object is absent or out of reach, and as
    /// damaged if three fetches brought something else.
    pub async fn fetch_artifact(
        &self,
        key: &str,
        digest: Digest,
        size: u64,
        cache: &ArtifactCache,
    ) -> Result<PathBuf, StorageError> {
        if key != key::artifact(digest) {
            return Err(StorageError::Refused {
                root: self.root.to_string(),
                key: key.escape_default().take(200).collect(),
                why: "it is not the key of this digest",
            });
        }
        let found = {
            let cache = cache.clone();
            self.blocking(key, move || Ok(cache.get(digest))).await?
        };
        if let Some(path) = found {
            return Ok(path);
        }
        repeated(|| self.fetch_once(key, digest, size, cache)).await
    }

    async fn fetch_once(
        &self,
        key: &str,
        digest: Digest,
        size: u64,
        cache: &ArtifactCache,
    ) -> Result<PathBuf, StorageError> {
        let kept = |error| cache.error(digest, error);
        let mut file = cache.begin().map_err(kept)?;
        self.read_through(key, digest, size, |chunk| {
            file.write_all(chunk).map_err(kept)
        })
        .await?;
        cache.keep(file, digest).map_err(kept)
    }

    /// Reads an object in chunks, hands them on and compares size and digest.
    async fn read_through(
        &self,
        key: &str,
        digest: Digest,
        size: u64,
        mut sink: impl FnMut(&[u8]) -> Result<(), StorageError>,
    ) -> Result<(), StorageError> {
        let store = self.store(key).await?;
        let path = ObjectPath::from(key);
        let head = store.head(&path).await;
        let found = head.map_err(|error| self.error(key, error))?.size;
        if found != size {
            return Err(self.damaged(key, format!("{size} bytes"), format!("{found} bytes")));
        }
        let mut hasher = Sha256::new();
        let mut at = 0;
        while at < size {
            let range = at..size.min(at + CHUNK);
            let chunk = store.get_range(&path, range).await;
            let chunk = chunk.map_err(|error| self.error(key, error))?;
            if chunk.is_empty() {
                break;
            }
            hasher.update(&chunk);
            sink(&chunk)?;
            at += chunk.len() as u64;
        }
        self.compare(key, (digest, size), (hasher, at))
    }

    fn compare(
        &self,
        key: &str,
        (digest, size): (Digest, u64),
        (hasher, found): (Sha256, u64),
    ) -> Result<(), StorageError> {
        if found != size {
            return Err(self.damaged(key, format!("{size} bytes"), format!("{found} bytes")));
        }
        let got = Digest::from_bytes(hasher.finalize().into());
        match got == digest {
            true => Ok(()),
            false => Err(self.damaged(key, digest.to_string(), got.to_string())),
        }
    }

    /// Opens the place, after a look that the way to the key does not lead out of it.
    async fn store(&self, key: &str) -> Result<impl ObjectStore + use<>, StorageError> {
        let folder = self.root.folder().to_owned();
        let wanted = key.to_owned();
        let opened = self
            .blocking(key, move || match walk(&folder, &wanted)? {
                ControlFlow::Break(()) => Ok(None),
                ControlFlow::Continue(()) => LocalFileSystem::new_with_prefix(&folder)
                    .map(|store| Some(store.with_fsync(true)))
                    .map_err(std::io::Error::other),
            })
            .await?;
        opened.ok_or_else(|| StorageError::Refused {
            root: self.root.to_string(),
            key: key.to_owned(),
            why: "a symbolic link lies on its way",
        })
    }

    async fn blocking<T: Send + 'static>(
        &self,
        key: &str,
        work: impl FnOnce() -> std::io::Result<T> + Send + 'static,
    ) -> Result<T, StorageError> {
        match tokio::task::spawn_blocking(work).await {
            Ok(done) => done.map_err(|error| self.error(key, error)),
            Err(error) => Err(self.error(key, error)),
        }
    }

    fn error(
        &self,
        key: &str,
        error: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> StorageError {
        StorageError::of(&self.root, key, error)
    }

    fn damaged(&self, key: &str, wanted: String, got: String) -> StorageError {
        StorageError::Damaged {
            root: self.root.to_string(),
            key: key.to_owned(),
            wanted,
            got,
        }
    }
}

/// Looks whether a part of the key is a symbolic link; the break says so.
fn walk(root: &Path, key: &str) -> std::io::Result<ControlFlow<()>> {
    let dir = folder::open(root)?;
    let ends = key.match_indices('/').map(|(at, _)| at).chain([key.len()]);
    for end in ends {
        match dir.symlink_metadata(&key[..end]) {
            Ok(found) if found.is_symlink() => return Ok(ControlFlow::Break(())),
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => break,
            Err(error) => return Err(error),
        }
    }
    Ok(ControlFlow::Continue(()))
}

/// Reads a file of a known size; one byte more is read to notice that it has more.
fn read_chunks(file: &Path, size: u64) -> std::io::Result<Vec<Bytes>> {
    let file = File::open(file)?;
    let mut chunks = Vec::new();
    let mut left = size + 1;
    while left > 0 {
        let mut chunk = Vec::new();
        let read = (&file).take(left.min(CHUNK)).read_to_end(&mut chunk)?;
        if read == 0 {
            break;
        }
        left -= read as u64;
        chunks.push(Bytes::from(chunk));
    }
    Ok(chunks)
}

/// Fetches again what arrived damaged, so often and no more: the way here may have been at fault.
async fn repeated<T, F: Future<Output = Result<T, StorageError>>>(
    mut fetch: impl FnMut() -> F,
) -> Result<T, StorageError> {
    let mut fetches = 0;
    loop {
        fetches += 1;
        match fetch().await {
            Err(StorageError::Damaged { .. }) if fetches < FETCHES => {}
            answer => return answer,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct House {
        dir: tempfile::TempDir,
        storage: Storage,
        cache: ArtifactCache,
        bytes: Vec<u8>,
    }

    impl House {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let root = Root::local(&dir.path().join("flows")).unwrap();
            let bytes: Vec<u8> = (0..3_000_000_u32).map(|n| (n * 7 % 251) as u8).collect();
            std::fs::write(dir.path().join("a.wasm"), &bytes).unwrap();
            Self {
                storage: Storage::open(&root).unwrap(),
                cache: ArtifactCache::open(&dir.path().join("cache")).unwrap(),
                dir,
                bytes,
            }
        }

        fn digest(&self) -> Digest {
            Digest::of(&self.bytes)
        }

        async fn put(&self) -> Result<String, StorageError> {
            let file = self.dir.path().join("a.wasm");
            let size = self.bytes.len() as u64;
            self.storage.put_artifact(&file, self.digest(), size).await
        }

        async fn fetch(&self) -> Result<PathBuf, StorageError> {
            let (digest, size) = (self.digest(), self.bytes.len() as u64);
            let key = key::artifact(digest);
            self.storage
                .fetch_artifact(&key, digest, size, &self.cache)
                .await
        }

        fn blob(&self) -> PathBuf {
            self.storage
                .root
                .folder()
                .join(key::artifact(self.digest()))
        }
    }

    #[tokio::test]
    async fn what_was_put_is_fetched_and_put_again_is_the_same() {
        let house = House::new();
        let key = house.put().await.unwrap();
        assert_eq!(house.put().await.unwrap(), key);
        let path = house.fetch().await.unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), house.bytes);
        std::fs::remove_dir_all(house.storage.root.folder()).unwrap();
        assert_eq!(house.fetch().await.unwrap(), path);
    }

    #[tokio::test]
    async fn a_file_that_is_not_its_digest_is_not_put() {
        let house = House::new();
        for change in [vec![0; house.bytes.len()], vec![1], vec![2; 4_000_000]] {
            std::fs::write(house.dir.path().join("a.wasm"), change).unwrap();
            let refused = house.put().await.unwrap_err();
            assert!(matches!(refused, StorageError::Damaged { .. }), "{refused}");
        }
        assert!(!house.storage.root.folder().exists());
    }

    #[tokio::test]
    async fn a_damaged_blob_is_never_handed_out_and_is_mended_by_a_put() {
        let house = House::new();
        house.put().await.unwrap();
        let mut wrong = house.bytes.clone();
        wrong[2_000_000] ^= 1;
        for damage in [wrong, house.bytes[1..].to_vec()] {
            std::fs::write(house.blob(), damage).unwrap();
            let refused = house.fetch().await.unwrap_err();
            assert!(matches!(refused, StorageError::Damaged { .. }), "{refused}");
            house.put().await.unwrap();
            house
                .storage
                .check_artifact(house.digest(), house.bytes.len() as u64)
                .await
                .unwrap();
        }
        let left: Vec<_> = std::fs::read_dir(house.dir.path().join("cache"))
            .unwrap()
            .collect();
        assert!(left.is_empty(), "{left:?}");
    }

    #[tokio::test]
    async fn what_is_damaged_is_fetched_three_times_and_then_named() {
        let house = House::new();
        let key = house.put().await.unwrap();
        let wrong = vec![0; house.bytes.len()];
        std::fs::write(house.blob(), &wrong).unwrap();
        let (digest, size) = (house.digest(), house.bytes.len() as u64);
        let mut fetches = 0;
        let fetched = repeated(|| {
            fetches += 1;
            house.storage.fetch_once(&key, digest, size, &house.cache)
        });
        let by_hand = fetched.await.unwrap_err();
        assert_eq!(fetches, 3);
        let refused = house.fetch().await.unwrap_err();
        let (root, found) = (&house.storage.root, Digest::of(&wrong));
        assert_eq!(
            refused.to_string(),
            format!("`{key}` in `{root}` is damaged: expected {digest}, found {found}")
        );
        assert_eq!(by_hand.to_string(), refused.to_string());

        // Nor is it fetched again where that would not help, or once it is whole.
        let mut fetches = 0;
        std::fs::remove_file(house.blob()).unwrap();
        let absent = repeated(|| {
            fetches += 1;
            house.storage.fetch_once(&key, digest, size, &house.cache)
        });
        absent.await.unwrap_err();
        assert_eq!(fetches, 1);
        let mut fetches = 0;
        let mended = repeated(|| {
            fetches += 1;
            let bytes = if fetches == 2 { &house.bytes } else { &wrong };
            std::fs::write(house.blob(), bytes).unwrap();
            house.storage.fetch_once(&key, digest, size, &house.cache)
        });
        mended.await.unwrap();
        assert_eq!(fetches, 2);
    }

    #[tokio::test]
    async fn what_is_not_there_is_not_found() {
        let house = House::new();
        let refused = house.fetch().await.unwrap_err();
        assert!(
            matches!(refused, StorageError::NotFound { .. }),
            "{refused:?}"
        );
        std::fs::create_dir_all(house.storage.root.folder()).unwrap();
        let refused = house.fetch().await.unwrap_err();
        assert!(
            matches!(refused, StorageError::NotFound { .. }),
            "{refused:?}"
        );
    }

    #[tokio::test]
    async fn no_link_leads_out_of_the_root() {
        let house = House::new();
        house.put().await.unwrap();
        let folder = house.blob().parent().unwrap().to_owned();
        let elsewhere = house.dir.path().join("elsewhere");
        std::fs::rename(&folder, &elsewhere).unwrap();
        std::os::unix::fs::symlink(&elsewhere, &folder).unwrap();
        for answer in [house.put().await.map(drop), house.fetch().await.map(drop)] {
            let refused = answer.unwrap_err();
            assert!(
                matches!(refused, StorageError::Refused { .. }),
                "{refused:?}"
            );
        }
    }

    #[tokio::test]
    async fn a_key_of_another_digest_is_refused() {
        let house = House::new();
        house.put().await.unwrap();
        let (digest, size) = (house.digest(), house.bytes.len() as u64);
        for key in ["../a.wasm", "sha256/00/00", ""] {
            let answer = house
                .storage
                .fetch_artifact(key, digest, size, &house.cache)
                .await;
            let refused = answer.unwrap_err();
            assert!(
                matches!(refused, StorageError::Refused { .. }),
                "{refused:?}"
            );
        }
    }
}
