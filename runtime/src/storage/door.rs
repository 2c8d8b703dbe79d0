//! Doors: what lies behind a root, opened at the first use, and anew once it lets nobody in.
//!
//! Passwords, keys and tokens lie in files and with helpers that renew them while an agent lives, so an
//! opened storage is never taken for good. A [`Door`] opens its place with what the files and helpers say
//! by then; [`Remote`] is the door of everything that is no folder, and tries what was refused once more
//! through a door that it has opened anew. What is refused then is refused.

use std::error::Error as AnyError;
use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use cap_std::fs::Dir;
use futures::stream::{self, BoxStream};
use futures::{StreamExt as _, TryStreamExt as _};
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta,
    ObjectStore, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};

use super::credentials::Unusable;
use super::error::WHOLE;
use super::oci::Registry;
use super::root::Kind;
use super::{Meter, Root, StorageError, folder, remote};
use crate::config::Access;

/// Why a place could not be opened.
pub(super) type Shut = Box<dyn AnyError + Send + Sync>;

/// The way into a place. Clones are the same door.
pub(super) struct Door<T>(Arc<Way<T>>);

struct Way<T> {
    open: Box<dyn Fn() -> std::result::Result<T, Shut> + Send + Sync>,
    inside: Mutex<Inside<T>>,
    /// Of those who wait for a helper one asks it.
    opening: tokio::sync::Mutex<()>,
}

struct Inside<T> {
    opened: Option<T>,
    /// How often it was shut.
    times: u64,
}

/// What was found behind a door, and when.
pub(super) struct Entered<T> {
    pub(super) place: T,
    times: u64,
}

impl<T: Clone + Send + 'static> Door<T> {
    /// Makes a door that nobody has opened yet.
    pub(super) fn new<E: Into<Shut>>(
        open: impl Fn() -> std::result::Result<T, E> + Send + Sync + 'static,
    ) -> Self {
        Self(Arc::new(Way {
            open: Box::new(move || open().map_err(Into::into)),
            inside: Mutex::new(Inside {
                opened: None,
                times: 0,
            }),
            opening: tokio::sync::Mutex::default(),
        }))
    }

    /// Enters; opens first what is shut.
    pub(super) async fn enter(&self) -> std::result::Result<Entered<T>, Shut> {
        if let Some(entered) = self.entered() {
            return Ok(entered);
        }
        let _one = self.0.opening.lock().await;
        let door = self.clone();
        // Files are read and helpers asked.
        tokio::task::spawn_blocking(move || door.enter_here()).await?
    }

    /// As [`Door::enter`], for those who may block.
    pub(super) fn enter_here(&self) -> std::result::Result<Entered<T>, Shut> {
        if let Some(entered) = self.entered() {
            return Ok(entered);
        }
        let place = (self.0.open)()?;
        let mut inside = self.inside();
        inside.opened = Some(place.clone());
        Ok(Entered {
            place,
            times: inside.times,
        })
    }

    /// Shuts the door, so that whoever enters next opens it anew.
    pub(super) fn shut(&self) {
        let mut inside = self.inside();
        inside.opened = None;
        inside.times += 1;
    }

    /// Shuts the door behind what was found, unless somebody has done so since.
    pub(super) fn shut_behind(&self, entered: &Entered<T>) {
        let mut inside = self.inside();
        if inside.times == entered.times {
            inside.opened = None;
            inside.times += 1;
        }
    }

    fn entered(&self) -> Option<Entered<T>> {
        let inside = self.inside();
        Some(Entered {
            place: inside.opened.clone()?,
            times: inside.times,
        })
    }

    fn inside(&self) -> MutexGuard<'_, Inside<T>> {
        self.0.inside.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T> Clone for Door<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<T> fmt::Debug for Door<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Door(..)")
    }
}

/// What lies behind the door of a root that is no folder.
#[derive(Clone)]
pub(super) struct Opened {
    pub(super) store: Arc<dyn ObjectStore>,
    /// The registry itself, for what only a registry can do.
    pub(super) registry: Option<Registry>,
}

impl Opened {
    fn open(
        root: &Root,
        access: &Access,
        meter: &Meter,
    ) -> std::result::Result<Self, StorageError> {
        let registry = match root.kind() {
            Kind::Oci => Some(
                Registry::open(root, access, meter)
                    .map_err(|error| StorageError::of(root, WHOLE, error))?,
            ),
            _ => None,
        };
        let store: Arc<dyn ObjectStore> = match &registry {
            Some(registry) => Arc::new(registry.clone()),
            None => remote::open(root, access, meter)?,
        };
        Ok(Self { store, registry })
    }
}

/// A storage that is no folder, behind its door.
#[derive(Clone, Debug)]
pub(super) struct Remote(Door<Opened>);

impl Remote {
    /// Names the storage of a root; it is opened at the first use.
    pub(super) fn new(root: &Root, access: &Access, meter: &Meter) -> Self {
        let (root, access, meter) = (root.clone(), access.clone(), meter.clone());
        Self(Door::new(move || Opened::open(&root, &access, &meter)))
    }

    /// Takes a store that somebody else opened.
    pub(super) fn over(store: Arc<dyn ObjectStore>) -> Self {
        Self(Door::new(move || {
            Ok::<_, StorageError>(Opened {
                store: store.clone(),
                registry: None,
            })
        }))
    }

    /// Opens the door now; blocks.
    pub(super) fn open(&self, root: &Root) -> std::result::Result<(), StorageError> {
        let opened = self.0.enter_here();
        opened
            .map(drop)
            .map_err(|error| StorageError::of(root, WHOLE, error))
    }

    /// Has the next who comes open it anew.
    pub(super) fn shut(&self) {
        self.0.shut();
    }

    /// Asks the storage, and once more through a door opened anew if it lets us not in.
    pub(super) async fn ask<T, F>(&self, ask: impl Fn(Opened) -> F + Send) -> Result<T>
    where
        F: Future<Output = Result<T>> + Send,
    {
        let entered = self.enter().await?;
        match ask(entered.place.clone()).await {
            Err(error) if is_refusal(&error) => {
                self.0.shut_behind(&entered);
                ask(self.enter().await?.place).await
            }
            answer => answer,
        }
    }

    /// Asks the registry itself, for what only a registry can do; none if this is another storage.
    pub(super) async fn ask_registry<T, F>(
        &self,
        ask: impl Fn(Registry) -> F + Send + Sync,
    ) -> Result<Option<T>>
    where
        F: Future<Output = Result<T>> + Send,
    {
        self.ask(|opened| {
            let asked = opened.registry.map(&ask);
            async move {
                match asked {
                    Some(asked) => asked.await.map(Some),
                    None => Ok(None),
                }
            }
        })
        .await
    }

    async fn enter(&self) -> Result<Entered<Opened>> {
        let entered = self.0.enter().await;
        entered.map_err(|source| Error::Generic {
            store: "door",
            source,
        })
    }
}

/// Where results and cached outputs of one root lie.
#[derive(Clone, Debug)]
pub(super) enum House {
    Folder(Door<Arc<Dir>>),
    Remote(Remote),
}

impl House {
    /// Names the place of a root; it is opened at the first use. A folder is made, if need be, for its
    /// owner only.
    pub(super) fn new(root: &Root, access: &Access) -> Self {
        match root.folder() {
            Some(path) => {
                let path = path.to_owned();
                Self::Folder(Door::new(move || {
                    let opened = folder::open_or_make(&path).map_err(as_place);
                    opened.map(Arc::new)
                }))
            }
            None => Self::Remote(Remote::new(root, access, &Meter::default())),
        }
    }

    /// Opens the door now; blocks.
    pub(super) fn open(&self, root: &Root) -> std::result::Result<(), StorageError> {
        let opened = match self {
            Self::Folder(door) => door.enter_here().map(drop),
            Self::Remote(remote) => return remote.open(root),
        };
        opened.map_err(|error| StorageError::of(root, WHOLE, error))
    }

    /// Has the next who comes open it anew.
    pub(super) fn shut(&self) {
        match self {
            Self::Folder(door) => door.shut(),
            Self::Remote(remote) => remote.shut(),
        }
    }
}

impl Door<Arc<Dir>> {
    /// Works in the folder; once more in the folder opened anew if that fails: what lies under its path may
    /// be another by now.
    pub(super) async fn work<R: Send + 'static>(
        &self,
        work: impl Fn(&Dir) -> io::Result<R> + Send + 'static,
    ) -> std::result::Result<R, Shut> {
        let door = self.clone();
        tokio::task::spawn_blocking(move || {
            let entered = door.enter_here()?;
            match work(&entered.place) {
                Ok(done) => Ok(done),
                Err(_) => {
                    door.shut_behind(&entered);
                    Ok(work(&door.enter_here()?.place)?)
                }
            }
        })
        .await?
    }
}

impl fmt::Display for Remote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Remote(..)")
    }
}

#[async_trait]
impl ObjectStore for Remote {
    async fn put_opts(
        &self,
        path: &Path,
        payload: PutPayload,
        options: PutOptions,
    ) -> Result<PutResult> {
        self.ask(|opened| {
            let (payload, options) = (payload.clone(), options.clone());
            async move { opened.store.put_opts(path, payload, options).await }
        })
        .await
    }

    async fn put_multipart_opts(
        &self,
        path: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.ask(|opened| {
            let options = options.clone();
            async move { opened.store.put_multipart_opts(path, options).await }
        })
        .await
    }

    async fn get_opts(&self, path: &Path, options: GetOptions) -> Result<GetResult> {
        self.ask(|opened| {
            let options = options.clone();
            async move { opened.store.get_opts(path, options).await }
        })
        .await
    }

    fn delete_stream(
        &self,
        paths: BoxStream<'static, Result<Path>>,
    ) -> BoxStream<'static, Result<Path>> {
        let remote = self.clone();
        let deleted = paths.then(move |path| {
            let remote = remote.clone();
            async move {
                let path = path?;
                remote
                    .ask(|opened| {
                        let one = stream::iter([Ok(path.clone())]).boxed();
                        async move {
                            let deleted = opened.store.delete_stream(one);
                            deleted.try_collect::<Vec<_>>().await
                        }
                    })
                    .await
                    .map(|_| path.clone())
            }
        });
        deleted.boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let (remote, prefix) = (self.clone(), prefix.cloned());
        let listed = async move {
            let listed = remote.ask(|opened| {
                let prefix = prefix.clone();
                async move {
                    // The first answer says whether we are let in.
                    let mut found = opened.store.list(prefix.as_ref()).fuse();
                    let first = found.try_next().await?;
                    Ok(stream::iter(first.map(Ok)).chain(found))
                }
            });
            listed.await
        };
        stream::once(listed).try_flatten().boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.ask(|opened| async move { opened.store.list_with_delimiter(prefix).await })
            .await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.ask(|opened| {
            let options = options.clone();
            async move { opened.store.copy_opts(from, to, options).await }
        })
        .await
    }
}

/// Makes sure that a folder which is missing is not taken for an object in it that is.
pub(super) fn as_place(error: io::Error) -> io::Error {
    match error.kind() {
        io::ErrorKind::NotFound => io::Error::other(error.to_string()),
        _ => error,
    }
}

/// Tells whether a storage does not let us in. `object_store` says so of single objects only, and S3 answers a
/// token that has expired as a bad request.
fn is_refusal(error: &Error) -> bool {
    let mut next: Option<&(dyn AnyError + 'static)> = Some(error);
    while let Some(error) = next {
        if error.is::<Unusable>() {
            return true;
        }
        next = error.source();
    }
    match error {
        Error::PermissionDenied { .. } | Error::Unauthenticated { .. } => true,
        Error::Generic { store, source } => {
            let said = source.to_string();
            let answered = |status: &str| said.contains(&format!("status code: {status}"));
            answered("401") || answered("403") || (*store == "S3" && answered("400"))
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    /// A door that counts how often it was opened.
    fn counted() -> Door<u64> {
        let count = AtomicU64::new(0);
        Door::new(move || Ok::<_, Shut>(count.fetch_add(1, Ordering::Relaxed) + 1))
    }

    #[tokio::test]
    async fn a_door_is_opened_once_and_again_once_it_was_shut() {
        let door = counted();
        let first = door.enter().await.unwrap();
        assert_eq!(door.enter_here().unwrap().place, 1);
        door.shut_behind(&first);
        let second = door.enter().await.unwrap();
        assert_eq!(second.place, 2);
        // Another who came in by the first door finds that it was opened anew already.
        door.shut_behind(&first);
        assert_eq!(door.enter().await.unwrap().place, 2);
        door.shut();
        assert_eq!(door.clone().enter().await.unwrap().place, 3);
    }

    #[tokio::test]
    async fn many_who_come_at_once_open_it_once() {
        let door = counted();
        let all = futures::future::join_all((0..20).map(|_| door.enter())).await;
        assert!(all.into_iter().all(|entered| entered.unwrap().place == 1));
    }

    #[tokio::test]
    async fn what_could_not_be_opened_is_tried_again() {
        let tries = AtomicU64::new(0);
        let door = Door::new(move || match tries.fetch_add(1, Ordering::Relaxed) {
            0 => Err("not yet"),
            _ => Ok(()),
        });
        assert_eq!(door.enter().await.err().unwrap().to_string(), "not yet");
        door.enter().await.unwrap();
    }
}
