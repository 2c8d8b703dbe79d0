//! Storage: puts artifacts under a root and fetches them.
//!
//! One struct over `object_store`, whose trait unites folders, clouds, registries and web servers. An
//! artifact is durable before [`Storage::put_artifact`] returns, and its digest is checked on every way:
//! while it is read to be put, when it is found to be there already, and when it is fetched.

mod contents;

use std::fs::File;
use std::io::Write;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use futures::stream::{self, BoxStream};
use futures::{StreamExt as _, TryStreamExt as _};
use jiff::Timestamp;
use object_store::local::LocalFileSystem;
use object_store::path::Path as ObjectPath;
use object_store::{Attribute, ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload};
use sha2::{Digest as _, Sha256};

use super::door::Remote;
use super::error::WHOLE;
use super::oci::{Registry, TITLE};
use super::root::Kind;
use super::{ArtifactCache, Meter, Root, StorageError, folder, key, reach};
use crate::config::Access;
use crate::model::artifact::Digest;

/// Bytes that are read at a time.
const CHUNK: usize = 1024 * 1024;
/// Times an artifact is fetched before it counts as damaged; the way may be at fault once.
const FETCHES: u32 = 3;

/// A place for artifacts. Cheap to clone and to open.
#[derive(Clone, Debug)]
pub struct Storage {
    root: Root,
    place: Place,
    meter: Meter,
}

#[derive(Clone, Debug)]
enum Place {
    /// A folder, looked at anew for each object: its links may change.
    Folder(PathBuf),
    Remote(Remote),
}

/// An object in a storage.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Found {
    /// Its key under the root.
    pub key: String,
    /// Its bytes.
    pub size: u64,
    /// When it was written, where the storage tells.
    pub written_at: Option<Timestamp>,
    /// What it is, if it is nothing that can be read.
    pub odd: Option<&'static str>,
}

/// An artifact that was put.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Put {
    /// Its key under the root.
    pub key: String,
    /// What lay there before.
    pub before: Before,
}

/// What lies at the place of an artifact before it is put.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Before {
    /// It, whole: nothing is put.
    Whole,
    /// Nothing, or nothing that the storage would keep.
    Absent,
    /// Something else, of this digest or size: it is replaced.
    Damaged(String),
    /// Something that we may not read: nothing is put.
    Unseen,
}

impl Storage {
    /// Opens a storage. The place itself is looked at only when something is put or fetched.
    ///
    /// # Errors
    ///
    /// Fails if the configuration of the storage cannot be understood, or a file of credentials not be
    /// read.
    pub fn open(root: &Root, access: &Access) -> Result<Self, StorageError> {
        let storage = Self::at(root, access);
        if let Place::Remote(remote) = &storage.place {
            remote.open(root)?;
        }
        Ok(storage)
    }

    /// As [`Storage::open`], and opens it at the first use, which fails where opening does.
    #[must_use]
    pub fn at(root: &Root, access: &Access) -> Self {
        let meter = Meter::default();
        let place = match root.folder() {
            Some(folder) => Place::Folder(folder.to_owned()),
            None => Place::Remote(Remote::new(root, access, &meter)),
        };
        Self {
            root: root.clone(),
            place,
            meter,
        }
    }

    /// Opens a root over a store that somebody else opened, such as one that fails on purpose.
    #[must_use]
    pub fn over(root: &Root, store: Arc<dyn ObjectStore>) -> Self {
        Self {
            root: root.clone(),
            place: Place::Remote(Remote::over(store)),
            meter: Meter::default(),
        }
    }

    /// Returns the root that was opened.
    #[must_use]
    pub const fn root(&self) -> &Root {
        &self.root
    }

    /// Returns the count of the bytes that were moved, for those who show progress.
    #[must_use]
    pub fn meter(&self) -> Meter {
        self.meter.clone()
    }

    /// Has whoever comes next open the storage anew, with the credentials that there are by then.
    pub fn renew(&self) {
        if let Place::Remote(remote) = &self.place {
            remote.shut();
        }
    }

    /// Asks the storage for something that it cannot have, to learn whether it answers and lets us in.
    ///
    /// # Errors
    ///
    /// Fails if it is out of reach, refuses us, or is in a bucket or container that does not exist. A folder
    /// or a repository that does not exist yet is in reach.
    pub async fn reach(&self) -> Result<(), StorageError> {
        match self.store(WHOLE).await {
            Ok(store) => reach::look(&self.root, store.as_ref()).await,
            Err(StorageError::NotFound { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Puts an artifact, and answers its key and what lay there.
    ///
    /// The bytes are checked against the digest first. If the key exists, what lies there is read and
    /// compared; should it be damaged, it is replaced. The bytes are durable when this returns, so
    /// metadata that names them may be committed after it. The file must not change meanwhile: it is
    /// mapped, so that a large one takes no memory. `flow` is its name for those who look into a registry.
    ///
    /// # Errors
    ///
    /// Fails if the file is not what the digest says, or if the storage does not take it, which is also what
    /// a registry does that keeps a damaged blob.
    pub async fn put_artifact(
        &self,
        file: &Path,
        digest: Digest,
        size: u64,
        flow: &str,
    ) -> Result<Put, StorageError> {
        let key = key::artifact(digest);
        if self.root.is_read_only() {
            return Err(
                self.unable("a web server and read-only; put the file there by other means")
            );
        }
        let (payload, got, got_size) = {
            let file = file.to_owned();
            self.blocking(&key, move || payload_of(&file)).await?
        };
        self.compare(&key, (digest, size), (got, got_size))?;
        let mut before = match &self.place {
            Place::Folder(folder) => {
                let folder = folder.clone();
                self.blocking(&key, move || folder::make(&folder)).await?;
                Before::Absent
            }
            // Looked at before it is sent: a conditional put sends everything to learn as much.
            Place::Remote(_) => self.before(&key, digest, size).await?,
        };
        if before == Before::Whole {
            return Ok(Put { key, before });
        }
        // Twice: a store may answer a race with "exists" where nothing was kept.
        for _ in 0..2 {
            if matches!(before, Before::Damaged(_)) {
                break;
            }
            match self
                .put(&key, payload.clone(), PutMode::Create, flow)
                .await?
            {
                Ok(()) => {
                    let before = Before::Absent;
                    return Ok(Put { key, before });
                }
                Err(object_store::Error::AlreadyExists { .. }) => {}
                Err(error) => return Err(StorageError::of_write(&self.root, &key, error)),
            }
            before = self.before(&key, digest, size).await?;
            // Agents check it on every fetch, as ever.
            if matches!(before, Before::Whole | Before::Unseen) {
                return Ok(Put { key, before });
            }
        }
        if matches!(before, Before::Damaged(_)) {
            self.make_room(&key, digest).await?;
        }
        let put = self.put(&key, payload, PutMode::Overwrite, flow).await?;
        put.map_err(|error| StorageError::of_write(&self.root, &key, error))?;
        match self.check_artifact(&key, digest, size).await {
            Ok(()) => Ok(Put { key, before }),
            // Some take the bytes, and go on with those that they had.
            Err(StorageError::Damaged { got, .. }) => {
                let why = format!("`{}` goes on with {got} for `{digest}`", self.root.place());
                Err(self.kept(key, why))
            }
            Err(error) => Err(error),
        }
    }

    /// Tells whether an artifact lies there whole.
    async fn before(&self, key: &str, digest: Digest, size: u64) -> Result<Before, StorageError> {
        match self.check_artifact(key, digest, size).await {
            // A registry throws away what no manifest of its own names.
            Ok(()) => {
                let ask = |registry: Registry| async move { registry.is_tagged(digest).await };
                match self.ask_registry(key, ask).await? {
                    Some(false) => Ok(Before::Absent),
                    _ => Ok(Before::Whole),
                }
            }
            Err(StorageError::Damaged { got, .. }) => Ok(Before::Damaged(got)),
            Err(StorageError::NotFound { .. }) => Ok(Before::Absent),
            Err(StorageError::Withheld { .. }) => Ok(Before::Unseen),
            Err(error) => Err(error),
        }
    }

    /// Has a registry delete a damaged blob: it takes no other bytes under a digest that it has. Elsewhere
    /// what lies there is simply replaced.
    async fn make_room(&self, key: &str, digest: Digest) -> Result<(), StorageError> {
        let ask = |registry: Registry| async move { registry.delete_blob(digest).await };
        match self.ask_registry(key, ask).await?.flatten() {
            None => Ok(()),
            Some(refusal) => {
                let registry = self.root.place();
                let why = format!("`{registry}` does not delete `{digest}`: it answers {refusal}");
                Err(self.kept(key.to_owned(), why))
            }
        }
    }

    /// Puts bytes under a key; the inner answer is that of the store.
    async fn put(
        &self,
        key: &str,
        payload: PutPayload,
        mode: PutMode,
        flow: &str,
    ) -> Result<object_store::Result<()>, StorageError> {
        let mut options = PutOptions::from(mode);
        if self.root.kind() == Kind::Oci {
            for name in [TITLE, "dev.waft.flow"] {
                let name = Attribute::Metadata(name.into());
                options.attributes.insert(name, flow.to_owned().into());
            }
        }
        let store = self.store(key).await?;
        let path = ObjectPath::from(key);
        Ok(store.put_opts(&path, payload, options).await.map(drop))
    }

    /// Gives an artifact the name of a version (project, flow and number), where the storage has names beside
    /// keys: a registry answers the tag. Elsewhere it does nothing.
    ///
    /// # Errors
    ///
    /// Fails if the registry does not take the tag.
    pub async fn name_version(
        &self,
        digest: Digest,
        version: (&str, &str, u32),
    ) -> Result<Option<String>, StorageError> {
        let ask = |registry: Registry| async move { registry.name_version(digest, version).await };
        self.ask_registry(&key::artifact(digest), ask).await
    }

    /// Sees to it that a registry keeps an artifact that [`Storage::find_tag`] found, whatever becomes of the
    /// tag. Elsewhere it does nothing.
    ///
    /// # Errors
    ///
    /// Fails if we may not write there, or if the tag has moved since.
    pub async fn pin(&self, reference: &str, digest: Digest) -> Result<(), StorageError> {
        let ask = |registry: Registry| async move { registry.pin(reference, digest).await };
        self.ask_registry(reference, ask).await.map(drop)
    }

    /// Reads an artifact where it lies and compares it with its digest.
    ///
    /// # Errors
    ///
    /// Fails if it is absent, damaged or out of reach.
    pub async fn check_artifact(
        &self,
        key: &str,
        digest: Digest,
        size: u64,
    ) -> Result<(), StorageError> {
        let read = self.read_through(key, Some(size), size, |_| Ok(())).await?;
        self.compare(key, (digest, size), read)
    }

    /// Fetches an artifact into the cache and returns where it lies there.
    ///
    /// What the cache has is not fetched again. The size is compared before a byte is read, the
    /// digest before anybody sees the file.
    ///
    /// # Errors
    ///
    /// Fails if such a key is not read from such a storage, if the object is absent or out of reach, and
    /// as damaged if three fetches brought something else.
    pub async fn fetch_artifact(
        &self,
        key: &str,
        digest: Digest,
        size: u64,
        cache: &ArtifactCache,
    ) -> Result<PathBuf, StorageError> {
        let has_own_keys = matches!(self.root.kind(), Kind::Local | Kind::Oci);
        let is_chosen = key != key::artifact(digest);
        if is_chosen && (has_own_keys || !key::is_plain(key) || !digest.may_lie_at(key)) {
            return Err(self.refused(key, "it is not the key of this digest"));
        }
        let found = {
            let cache = cache.clone();
            self.blocking(key, move || Ok(cache.get(digest))).await?
        };
        if let Some(path) = found {
            return Ok(path);
        }
        match repeated(|| self.fetch_once(key, digest, size, cache)).await {
            // Whoever registers a key learns by it what they know: that something else lies there.
            Err(StorageError::Damaged {
                root, key, wanted, ..
            }) if is_chosen => Err(StorageError::Damaged {
                root,
                key,
                wanted,
                got: "something else".to_owned(),
            }),
            answer => answer,
        }
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
        let read = self
            .read_through(key, Some(size), size, |chunk| {
                file.write_all(chunk).map_err(kept)
            })
            .await?;
        self.compare(key, (digest, size), read)?;
        let keeper = cache.clone();
        self.blocking(key, move || Ok(keeper.keep(file, digest)))
            .await?
            .map_err(kept)
    }

    /// Reads an object that nobody has told us of into a file, and answers its digest and size.
    ///
    /// # Errors
    ///
    /// Fails if it is absent, out of reach, or larger than `size_max` bytes.
    pub async fn download(
        &self,
        key: &str,
        size_max: u64,
        file: &mut File,
    ) -> Result<(Digest, u64), StorageError> {
        let error = |error| StorageError::of(&self.root, key, error);
        self.read_through(key, None, size_max, |chunk| {
            file.write_all(chunk).map_err(error)
        })
        .await
    }

    /// Looks up a component that somebody pushed into a registry, by a tag or by the digest of its
    /// manifest, and answers its key under this root, its digest and its size.
    ///
    /// # Errors
    ///
    /// Fails if the root is no registry, if there is no such image, or if it is no single component.
    pub async fn find_tag(&self, reference: &str) -> Result<(String, Digest, u64), StorageError> {
        let ask = |registry: Registry| async move { registry.find(reference).await };
        let found = self.ask_registry(reference, ask).await?;
        let found =
            found.ok_or_else(|| self.unable("no registry, and only a registry has tags"))?;
        Ok((key::artifact(found.digest), found.digest, found.size))
    }

    /// Reads an object in chunks, hands them on and answers digest and size of what came.
    ///
    /// The size is looked at before a byte is read: another than the one expected is damage, and one
    /// beyond the bound is refused.
    async fn read_through(
        &self,
        key: &str,
        expected: Option<u64>,
        size_max: u64,
        mut sink: impl FnMut(&[u8]) -> Result<(), StorageError>,
    ) -> Result<(Digest, u64), StorageError> {
        let store = self.store(key).await?;
        let path = ObjectPath::parse(key).map_err(|error| self.error(key, error))?;
        let (found, mut chunks) = match &self.place {
            Place::Folder(_) => {
                let head = store.head(&path).await;
                let found = head.map_err(|error| self.error(key, error))?.size;
                (found, ranges(store, path, found))
            }
            Place::Remote(_) => {
                let got = store.get(&path).await;
                let got = got.map_err(|error| StorageError::of_read(&self.root, key, error))?;
                self.meter.expect(got.meta.size);
                (got.meta.size, got.into_stream())
            }
        };
        if let Some(size) = expected.filter(|size| *size != found) {
            return Err(self.damaged(key, format!("{size} bytes"), format!("{found} bytes")));
        }
        if found > size_max {
            return Err(StorageError::TooLarge {
                root: self.root.to_string(),
                key: key.to_owned(),
                size: found,
                size_max,
            });
        }
        let is_remote = matches!(self.place, Place::Remote(_));
        let mut hasher = Sha256::new();
        let mut at = 0;
        while let Some(chunk) = chunks
            .try_next()
            .await
            .map_err(|error| self.error(key, error))?
        {
            at += chunk.len() as u64;
            if at > found {
                return Err(self.damaged(key, format!("{found} bytes"), "more".to_owned()));
            }
            hasher.update(&chunk);
            sink(&chunk)?;
            if is_remote {
                self.meter.add(chunk.len());
            }
        }
        if at < found {
            return Err(self.damaged(key, format!("{found} bytes"), format!("{at} bytes")));
        }
        Ok((Digest::from_bytes(hasher.finalize().into()), at))
    }

    fn compare(
        &self,
        key: &str,
        (digest, size): (Digest, u64),
        (got, found): (Digest, u64),
    ) -> Result<(), StorageError> {
        if found != size {
            return Err(self.damaged(key, format!("{size} bytes"), format!("{found} bytes")));
        }
        match got == digest {
            true => Ok(()),
            false => Err(self.damaged(key, digest.to_string(), got.to_string())),
        }
    }

    /// Opens the place; a folder after a look that the way to the key does not lead out of it.
    async fn store(&self, key: &str) -> Result<Arc<dyn ObjectStore>, StorageError> {
        let folder = match &self.place {
            Place::Remote(remote) => return Ok(Arc::new(remote.clone())),
            Place::Folder(folder) => folder.clone(),
        };
        let wanted = key.to_owned();
        let opened = self
            .blocking(key, move || match walk(&folder, &wanted)? {
                ControlFlow::Break(()) => Ok(None),
                ControlFlow::Continue(()) => LocalFileSystem::new_with_prefix(&folder)
                    .map(|store| Some(store.with_fsync(true)))
                    .map_err(std::io::Error::other),
            })
            .await?;
        match opened {
            Some(store) => Ok(Arc::new(store)),
            None => Err(self.refused(key, "a symbolic link lies on its way")),
        }
    }

    /// Asks the registry itself; none if the storage is another.
    async fn ask_registry<T, F>(
        &self,
        key: &str,
        ask: impl Fn(Registry) -> F + Send + Sync,
    ) -> Result<Option<T>, StorageError>
    where
        F: Future<Output = object_store::Result<T>> + Send,
    {
        match &self.place {
            Place::Folder(_) => Ok(None),
            Place::Remote(remote) => {
                let asked = remote.ask_registry(ask).await;
                asked.map_err(|error| self.error(key, error))
            }
        }
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

    fn refused(&self, key: &str, why: &'static str) -> StorageError {
        StorageError::Refused {
            root: self.root.to_string(),
            key: key.escape_default().take(200).collect(),
            why,
        }
    }

    fn unable(&self, why: &'static str) -> StorageError {
        StorageError::Unable {
            root: self.root.to_string(),
            why,
        }
    }

    fn kept(&self, key: String, why: String) -> StorageError {
        StorageError::Kept {
            root: self.root.to_string(),
            key,
            source: why.into(),
        }
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

/// Maps a file, and hashes it.
fn payload_of(file: &Path) -> std::io::Result<(PutPayload, Digest, u64)> {
    let file = File::open(file)?;
    if file.metadata()?.len() == 0 {
        return Ok((PutPayload::new(), Digest::of(b""), 0));
    }
    // SAFETY: the caller's promise that the file does not change; it is a private copy.
    #[expect(
        unsafe_code,
        reason = "a mapped file takes no memory, however large it is"
    )]
    let map = unsafe { memmap2::Mmap::map(&file)? };
    let digest = Digest::of(&map);
    let all = Bytes::from_owner(map);
    let size = all.len();
    let chunks = (0..size)
        .step_by(CHUNK)
        .map(|at| all.slice(at..size.min(at + CHUNK)));
    Ok((PutPayload::from_iter(chunks), digest, size as u64))
}

/// Reads an object of a folder chunk by chunk.
fn ranges(
    store: Arc<dyn ObjectStore>,
    path: ObjectPath,
    size: u64,
) -> BoxStream<'static, object_store::Result<Bytes>> {
    stream::try_unfold(0, move |at| {
        let (store, path) = (store.clone(), path.clone());
        async move {
            if at >= size {
                return Ok(None);
            }
            let chunk = store
                .get_range(&path, at..size.min(at + CHUNK as u64))
                .await?;
            let next = match chunk.len() as u64 {
                0 => size,
                length => at + length,
            };
            Ok(Some((chunk, next)))
        }
    })
    .boxed()
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
mod tests;
