//! Results: what tasks return, appended to segments.
//!
//! One writer collects what all runs of a process want kept, writes it at once, and only then answers
//! everybody (group commit): in a folder with one write and one flush, elsewhere as one object. A
//! reference names the stretch and the digest of its bytes, which is checked on every read. A process
//! begins its own segments and never touches another's.

mod uploader;
mod writer;

use std::io::Write as _;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use cap_std::fs::Dir;
use object_store::path::Path as ObjectPath;
use object_store::{ObjectStore, ObjectStoreExt};
use tokio::sync::{mpsc, oneshot};

use self::uploader::Uploader;
use self::writer::Writer;
use super::door::{Door, House, Remote};
use super::error::WHOLE;
use super::{Kind, Root, StorageError, folder, key, reach};
use crate::clock::Clock;
use crate::config::Access;
use crate::model::artifact::Digest;
use crate::model::run::ResultRef;
use crate::model::value::Value;

/// Most values in one batch.
const BATCH_VALUES: usize = 4_096;
/// Most bytes of a value that are read back; more than a mapped task's joined outputs ever are.
const VALUE_BYTES_MAX: u64 = 1024 * 1024 * 1024;

/// The results under one root. Cheap to clone; clones share the writer.
#[derive(Clone, Debug)]
pub struct Results {
    place: Arc<Place>,
    queue: Arc<OnceLock<mpsc::UnboundedSender<Append>>>,
}

#[derive(Debug)]
struct Place {
    root: Root,
    name: String,
    house: House,
    clock: Clock,
}

/// A value on its way into a segment.
struct Append {
    bytes: Bytes,
    done: oneshot::Sender<Result<(Arc<str>, u64), StorageError>>,
}

impl Results {
    /// Opens the results under a root on a host; a folder is made if need be, for its owner only.
    ///
    /// # Errors
    ///
    /// Fails if a folder cannot be made or opened, if the storage is not configured, or if nothing can be
    /// put there.
    pub fn open(
        root: &Root,
        host: &str,
        access: &Access,
        clock: Clock,
    ) -> Result<Self, StorageError> {
        let results = Self::at(root, host, access, clock)?;
        results.place.house.open(root)?;
        if let House::Folder(door) = &results.place.house {
            let made = door
                .enter_here()
                .and_then(|entered| Ok(folder::make_durable(&entered.place, "segments")?));
            made.map_err(|error| StorageError::of(root, "segments", error))?;
        }
        Ok(results)
    }

    /// As [`Results::open`], and opens the place at the first use, which fails where opening does.
    ///
    /// # Errors
    ///
    /// Fails if nothing can be put under such a root.
    pub fn at(
        root: &Root,
        host: &str,
        access: &Access,
        clock: Clock,
    ) -> Result<Self, StorageError> {
        if root.is_read_only() {
            return Err(StorageError::Unable {
                root: root.to_string(),
                why: "a web server and read-only; name another storage in `[results]`",
            });
        }
        Ok(Self::of(root, host, House::new(root, access), clock))
    }

    /// Opens results over a store that somebody else opened, such as one that fails on purpose.
    #[must_use]
    pub fn over(root: &Root, store: Arc<dyn ObjectStore>, clock: Clock) -> Self {
        Self::of(root, "", House::Remote(Remote::over(store)), clock)
    }

    fn of(root: &Root, host: &str, house: House, clock: Clock) -> Self {
        let place = Place {
            root: root.clone(),
            name: root.name_on(host),
            house,
            clock,
        };
        Self {
            place: Arc::new(place),
            queue: Arc::default(),
        }
    }

    /// Returns the name of the place as references give it: the root, and for a folder its host.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.place.name
    }

    /// Returns where the outputs of tasks lie, for the cache of them that lies there too.
    pub(super) fn house(&self) -> (&Root, &House) {
        (&self.place.root, &self.place.house)
    }

    /// Has whoever comes next open the storage anew, with the credentials that there are by then.
    pub fn renew(&self) {
        self.place.house.shut();
    }

    /// Writes a few bytes and takes them away again, to learn whether results can be kept here.
    ///
    /// # Errors
    ///
    /// Fails if the storage is out of reach, or does not let us write.
    pub async fn reach(&self) -> Result<(), StorageError> {
        let place = &self.place;
        match &place.house {
            House::Folder(door) => look_at_folder(&place.root, door).await,
            House::Remote(remote) => reach::probe(&place.root, remote).await,
        }
    }

    /// Keeps a value. It is durable when this returns.
    ///
    /// Dropping the future is safe: the value may or may not be kept, and nobody knows of it.
    ///
    /// # Errors
    ///
    /// Fails if it could not be written or flushed: as [`StorageError::NotTaken`] if the place takes
    /// everything else. What landed without our hearing of it does no harm: nobody refers to it.
    pub async fn append(&self, value: &Value) -> Result<ResultRef, StorageError> {
        let digest = Digest::of(&value.bytes);
        let (done, kept) = oneshot::channel();
        let append = Append {
            bytes: value.bytes.clone(),
            done,
        };
        let place = &self.place;
        let queue = self.queue.get_or_init(|| match &place.house {
            House::Folder(door) => Writer::start(&place.root, door, &place.clock),
            House::Remote(remote) => Uploader::start(&place.root, remote, &place.clock),
        });
        let ended = |_| StorageError::of(&place.root, "segments", "the writer has ended");
        queue.send(append).map_err(|_| ended(()))?;
        let (segment, offset) = kept.await.map_err(|_| ended(()))??;
        Ok(ResultRef {
            root: place.name.clone(),
            segment: segment.as_ref().to_owned(),
            offset,
            length: value.bytes.len() as u64,
            digest,
            content_type: value.content_type.clone(),
        })
    }

    /// Reads a value back and checks its digest.
    ///
    /// # Errors
    ///
    /// Fails if the reference belongs to another root or was not made here, and if the bytes are
    /// absent or damaged.
    pub async fn read(&self, reference: &ResultRef) -> Result<Value, StorageError> {
        let place = &self.place;
        if reference.root != place.name {
            return Err(refused(
                &place.name,
                reference,
                "the result lies under another root",
            ));
        }
        read_in(&place.root, &place.house, reference).await
    }

    /// Deletes a segment; one that is not there is deleted already.
    ///
    /// Who asks for it has to know that nobody needs what lies in it: a segment is written to for half a
    /// day after it was begun, and read for as long as a reference to it is known.
    ///
    /// # Errors
    ///
    /// Refuses what is no segment, and to delete from a registry; fails if the storage does.
    pub async fn delete(&self, key: &str) -> Result<(), StorageError> {
        let place = &self.place;
        check_deletable(&place.root, key)?;
        let deleted = match &place.house {
            House::Folder(door) => {
                let name = key.to_owned();
                let deleted = door.work(move |dir| {
                    dir.remove_file(&name)?;
                    folder::sync_above(dir, &name)
                });
                let deleted = deleted.await;
                deleted.map_err(|error| StorageError::of(&place.root, key, error))
            }
            House::Remote(remote) => {
                let deleted = remote.delete(&ObjectPath::from(key)).await;
                deleted.map_err(|error| StorageError::of(&place.root, key, error))
            }
        };
        gone(deleted)
    }

    /// Reads a value from the root that its reference names, without opening it for writing.
    ///
    /// For those who only look, such as the command line on `host`.
    ///
    /// # Errors
    ///
    /// Fails if this version does not know such a root, if it is a folder of another host, and as
    /// [`Results::read`].
    pub async fn look_up(
        reference: &ResultRef,
        host: &str,
        access: &Access,
    ) -> Result<Value, StorageError> {
        let found = Root::of_name(&reference.root).map_err(|error| StorageError::Other {
            root: reference.root.escape_default().take(300).collect(),
            key: reference.segment.escape_default().take(300).collect(),
            source: Box::new(error) as Box<_>,
        });
        let (root, owner) = found?;
        if owner.as_deref().is_some_and(|owner| owner != host) {
            return Err(refused(
                &reference.root,
                reference,
                "it is a folder of another host",
            ));
        }
        let house = match root.folder() {
            Some(path) => {
                let path = path.to_owned();
                House::Folder(Door::new(move || folder::open(&path).map(Arc::new)))
            }
            None => House::new(&root, access),
        };
        read_in(&root, &house, reference).await
    }
}

/// Looks whether something can be written into a folder.
async fn look_at_folder(root: &Root, door: &Door<Arc<Dir>>) -> Result<(), StorageError> {
    let key = key::segment(0, rand::random());
    let looked = door.work(move |dir| {
        folder::make_durable(dir, "segments")?;
        let mut file = folder::create_new(dir, &key)?;
        let written = file.write_all(b"\n").and_then(|()| file.sync_data());
        dir.remove_file(&key)?;
        written
    });
    reach::within(root, async {
        let looked = looked.await;
        looked.map_err(|error| StorageError::of(root, WHOLE, error))
    })
    .await
}
/// Why nothing goes out of a registry.
pub(super) const NO_DELETION: &str = "waft deletes nothing from a registry";

/// Makes sure that a key is that of a segment, in a storage from which something can be deleted.
pub(super) fn check_deletable(root: &Root, key: &str) -> Result<(), StorageError> {
    let why = match root.kind() {
        _ if !key::is_segment(key) => "it is not the key of a segment",
        Kind::Oci => NO_DELETION,
        Kind::Http => "a web server is read-only",
        _ => return Ok(()),
    };
    Err(StorageError::Refused {
        root: root.to_string(),
        key: key.escape_default().take(200).collect(),
        why,
    })
}

/// What is not there is deleted already.
pub(super) fn gone(deleted: Result<(), StorageError>) -> Result<(), StorageError> {
    match deleted {
        Err(StorageError::NotFound { .. }) => Ok(()),
        other => other,
    }
}

fn refused(root: &str, reference: &ResultRef, why: &'static str) -> StorageError {
    StorageError::Refused {
        root: root.escape_default().take(300).collect(),
        key: reference.segment.escape_default().take(200).collect(),
        why,
    }
}

async fn read_in(root: &Root, house: &House, reference: &ResultRef) -> Result<Value, StorageError> {
    let end = reference.offset.checked_add(reference.length);
    let Some(end) =
        end.filter(|_| key::is_segment(&reference.segment) && reference.length <= VALUE_BYTES_MAX)
    else {
        let why = "it is not a reference that waft makes";
        return Err(refused(&root.to_string(), reference, why));
    };
    let damaged = |got: String| StorageError::Damaged {
        root: root.to_string(),
        key: format!("{}+{}", reference.segment, reference.offset),
        wanted: reference.digest.to_string(),
        got,
    };
    let bytes = match house {
        House::Folder(door) => {
            let wanted = reference.clone();
            let read = door.work(move |dir| read_stretch(dir, &wanted)).await;
            read.map_err(|error| StorageError::of(root, &reference.segment, error))?
        }
        // A range of nothing is none that a server understands.
        House::Remote(_) if reference.length == 0 => Some(Bytes::new()),
        House::Remote(remote) => {
            let path = ObjectPath::from(reference.segment.as_str());
            match remote.get_range(&path, reference.offset..end).await {
                Ok(bytes) => Some(bytes),
                // A range that begins after the end is refused, by each storage in other words.
                Err(error) => match remote.head(&path).await {
                    Ok(found) if found.size < end => None,
                    _ => return Err(StorageError::of(root, &reference.segment, error)),
                },
            }
        }
    };
    let bytes = bytes.filter(|bytes| bytes.len() as u64 == reference.length);
    let bytes = bytes.ok_or_else(|| damaged("a segment that ends before".to_owned()))?;
    let got = Digest::of(&bytes);
    if got != reference.digest {
        return Err(damaged(got.to_string()));
    }
    Ok(Value {
        content_type: reference.content_type.clone(),
        bytes,
    })
}

/// Reads a stretch of a file; none if the file ends before.
fn read_stretch(dir: &Dir, reference: &ResultRef) -> std::io::Result<Option<Bytes>> {
    let file = dir.open(&reference.segment)?.into_std();
    if file.metadata()?.len() < reference.offset + reference.length {
        return Ok(None);
    }
    let mut bytes = vec![0; usize::try_from(reference.length).unwrap_or_default()];
    file.read_exact_at(&mut bytes, reference.offset)?;
    Ok(Some(bytes.into()))
}

#[cfg(test)]
mod tests {
    use futures::future::try_join_all;

    use super::writer::{SEGMENT_AGE, SEGMENT_BYTES};
    use super::*;

    fn results(dir: &tempfile::TempDir) -> Results {
        let root = Root::local(&dir.path().join("results")).unwrap();
        Results::open(&root, "mira", &Access::default(), Clock::default()).unwrap()
    }

    #[tokio::test]
    async fn what_was_appended_is_read_back_by_anybody() {
        let dir = tempfile::tempdir().unwrap();
        let results = results(&dir);
        let values: Vec<_> = (0..500).map(|n| Value::json(format!("[{n}]"))).collect();
        let references = try_join_all(values.iter().map(|v| results.append(v)))
            .await
            .unwrap();
        let later = super::tests::results(&dir);
        for (value, reference) in values.iter().zip(&references) {
            assert_eq!(results.read(reference).await.unwrap(), *value);
            assert_eq!(later.read(reference).await.unwrap(), *value);
            let looked = Results::look_up(reference, "mira", &Access::default()).await;
            assert_eq!(looked.unwrap(), *value);
        }
        let other = later.append(&Value::json("")).await.unwrap();
        assert_ne!(other.segment, references[0].segment);
        assert_eq!(later.read(&other).await.unwrap(), Value::json(""));
    }

    #[tokio::test]
    async fn a_changed_byte_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let results = results(&dir);
        let reference = results.append(&Value::json("\"good\"")).await.unwrap();
        let file = dir.path().join("results").join(&reference.segment);
        std::fs::write(&file, "\"evil\"").unwrap();
        let refused = results.read(&reference).await.unwrap_err();
        assert!(matches!(refused, StorageError::Damaged { .. }), "{refused}");
        std::fs::write(&file, "\"go").unwrap();
        let refused = results.read(&reference).await.unwrap_err();
        assert!(matches!(refused, StorageError::Damaged { .. }), "{refused}");
        std::fs::remove_file(&file).unwrap();
        let refused = results.read(&reference).await.unwrap_err();
        assert!(
            matches!(refused, StorageError::NotFound { .. }),
            "{refused}"
        );
    }

    #[tokio::test]
    async fn a_reference_cannot_lead_elsewhere() {
        let dir = tempfile::tempdir().unwrap();
        let results = results(&dir);
        let good = results.append(&Value::json("1")).await.unwrap();
        let changes: [fn(&mut ResultRef); 4] = [
            |r| r.segment = "../../secret".to_owned(),
            |r| r.root = "file:///etc".to_owned(),
            |r| r.length = u64::MAX,
            |r| r.offset = u64::MAX,
        ];
        for change in changes {
            let mut reference = good.clone();
            change(&mut reference);
            assert!(results.read(&reference).await.is_err(), "{reference:?}");
        }
    }

    #[tokio::test]
    async fn an_old_segment_is_followed_by_a_new_one() {
        let dir = tempfile::tempdir().unwrap();
        let results = results(&dir);
        let large = Value::json(vec![b'1'; usize::try_from(SEGMENT_BYTES).unwrap()]);
        let first = results.append(&large).await.unwrap();
        let second = results.append(&Value::json("2")).await.unwrap();
        assert_ne!(first.segment, second.segment);
        assert_eq!(second.offset, 0);
    }

    #[tokio::test]
    async fn a_segment_is_deleted_once_and_nothing_else_ever() {
        let dir = tempfile::tempdir().unwrap();
        let results = results(&dir);
        let reference = results.append(&Value::json("1")).await.unwrap();
        let other = dir.path().join("results").join("tasks");
        std::fs::write(&other, "entry").unwrap();
        for bad in [
            "tasks",
            "segments",
            "segments/../tasks",
            "../results/tasks",
            "",
        ] {
            let refused = results.delete(bad).await.unwrap_err();
            assert!(matches!(refused, StorageError::Refused { .. }), "{refused}");
        }
        assert!(other.exists());
        results.delete(&reference.segment).await.unwrap();
        results.delete(&reference.segment).await.unwrap();
        let lost = results.read(&reference).await.unwrap_err();
        assert!(matches!(lost, StorageError::NotFound { .. }), "{lost}");
        let registry: Root = "oci://registry.example/team/results".parse().unwrap();
        let refused = check_deletable(&registry, &reference.segment).unwrap_err();
        assert!(refused.to_string().contains("registry"), "{refused}");
    }

    #[tokio::test]
    async fn a_segment_is_not_written_to_for_longer_than_half_a_day() {
        let dir = tempfile::tempdir().unwrap();
        let (clock, time) = Clock::test("2026-01-05T00:00:00Z".parse().unwrap());
        let root = Root::local(&dir.path().join("results")).unwrap();
        let results = Results::open(&root, "mira", &Access::default(), clock).unwrap();
        let value = Value::json("1");
        let first = results.append(&value).await.unwrap();
        time.pass(SEGMENT_AGE.unsigned_abs());
        let second = results.append(&value).await.unwrap();
        assert_eq!(first.segment, second.segment);
        time.pass(std::time::Duration::from_millis(1));
        let third = results.append(&value).await.unwrap();
        assert_ne!(first.segment, third.segment);
    }

    #[tokio::test]
    async fn a_folder_belongs_to_its_host() {
        let dir = tempfile::tempdir().unwrap();
        let results = results(&dir);
        let reference = results.append(&Value::json("1")).await.unwrap();
        assert!(
            reference.root.starts_with("file://mira/"),
            "{}",
            reference.root
        );
        let elsewhere = Results::look_up(&reference, "rhea", &Access::default()).await;
        let refusal = elsewhere.unwrap_err().to_string();
        assert!(refusal.contains("another host"), "{refusal}");
        let root = Root::local(&dir.path().join("results")).unwrap();
        let other = Results::open(&root, "rhea", &Access::default(), Clock::default()).unwrap();
        assert!(other.read(&reference).await.is_err());
    }

    /// A place that cannot be made is away, for who writes and who reads: nothing in it is known to be lost.
    #[tokio::test]
    async fn a_folder_that_is_missing_is_no_value_that_is_missing() {
        let dir = tempfile::tempdir().unwrap();
        let results = results(&dir);
        let value = Value::json("1");
        let reference = results.append(&value).await.unwrap();
        let root = Root::local("/proc/nope".as_ref()).unwrap();
        let away = Results::at(&root, "mira", &Access::default(), Clock::default()).unwrap();
        let there = ResultRef {
            root: away.name().to_owned(),
            ..reference
        };
        for error in [
            away.append(&value).await.unwrap_err(),
            away.read(&there).await.unwrap_err(),
            away.reach().await.unwrap_err(),
            Results::open(&root, "mira", &Access::default(), Clock::default()).unwrap_err(),
        ] {
            assert_eq!(error.failed_place(), Some("file:///proc/nope"), "{error}");
        }
    }
}
