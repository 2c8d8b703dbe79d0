//! The task cache: outputs that serve later runs.
//!
//! An entry is found by a keyed hash (HMAC-SHA256) over the task and its inputs, so a file name gives
//! nothing away and nobody without the key of the storage can make an entry. The entry holds the
//! value itself: a result's segment may be cleaned away before the entry expires. The server learns
//! only that a task was Cached.

use std::io::{self, Read, Write};
use std::sync::Arc;

use bytes::Bytes;
use cap_std::fs::Dir;
use hmac::{Hmac, Mac};
use jiff::Timestamp;
use object_store::path::Path as ObjectPath;
use object_store::{ObjectStore, ObjectStoreExt, PutMode, PutPayload};
use serde::{Deserialize, Serialize};
use sha2::Sha256;
use tokio::sync::OnceCell;

use super::door::{House, Remote, Shut};
use super::{Results, Root, StorageError, folder, key};
use crate::config::Access;
use crate::model::artifact::Digest;
use crate::model::value::Value;

/// The file that holds the key of the cache under a root.
const KEY_FILE: &str = key::TASK_CACHE_KEY;
/// Most bytes of an entry that are read.
const ENTRY_BYTES_MAX: u64 = 80 * 1024 * 1024;

/// Most bytes of the first line of an entry, that of all but the longest content types.
pub(super) const HEAD_BYTES_MAX: u64 = 4 * 1024;

/// The cached outputs under one root. Cheap to clone.
#[derive(Clone)]
pub struct TaskCache {
    place: Arc<Place>,
}

struct Place {
    root: Root,
    house: House,
    secret: OnceCell<Secret>,
}

/// The key of a storage's entries.
#[derive(Clone, Copy)]
struct Secret([u8; 32]);

/// What an output is found by.
#[derive(Clone, Copy, Debug)]
pub struct CacheKey<'a> {
    /// The project; empty where there is no server.
    pub project: &'a str,
    /// The flow's name.
    pub flow: &'a str,
    /// The task's name.
    pub task: &'a str,
    /// What the output depends on.
    pub by: CacheBy<'a>,
}

/// What an output depends on.
#[derive(Clone, Copy, Debug)]
pub enum CacheBy<'a> {
    /// The author's own key, and which element of a mapped task it is: the elements share the key.
    Named(&'a str, Option<u32>),
    /// The code and every input by its name.
    Inputs(Digest, &'a [(String, Value)]),
}

/// The first line of an entry; the value follows.
#[derive(Serialize, Deserialize)]
struct Header {
    expires_at_us: Option<i64>,
    content_type: String,
    mac: String,
}

impl TaskCache {
    /// Opens the cache under a root. Its key is read at the first use, and made by whoever comes first.
    ///
    /// # Errors
    ///
    /// Fails if a folder cannot be made, or if the storage is not configured.
    pub fn open(root: &Root, access: &Access) -> Result<Self, StorageError> {
        let house = House::new(root, access);
        house.open(root)?;
        Ok(Self::of(root, house))
    }

    /// Names the cache that lies beside results, behind their door: it is opened with them, and anew with
    /// them.
    #[must_use]
    pub fn beside(results: &Results) -> Self {
        let (root, house) = results.house();
        Self::of(root, house.clone())
    }

    /// Opens the cache over a store that somebody else opened, such as one that fails on purpose.
    #[must_use]
    pub fn over(root: &Root, store: Arc<dyn ObjectStore>) -> Self {
        Self::of(root, House::Remote(Remote::over(store)))
    }

    fn of(root: &Root, house: House) -> Self {
        let place = Place {
            root: root.clone(),
            house,
            secret: OnceCell::new(),
        };
        Self {
            place: Arc::new(place),
        }
    }

    /// Returns the output kept under a key, unless it has expired.
    ///
    /// What is damaged, or was not made with this storage's key, is as good as absent; so is everything
    /// while the storage is out of reach.
    pub async fn get(&self, key: &CacheKey<'_>, now: Timestamp) -> Option<Value> {
        let secret = self.place.secret().await.ok()?;
        let code = secret.code(key);
        let name = key::task_entry(&code);
        let bytes = match &self.place.house {
            House::Folder(door) => {
                let read = door.work(move |dir| read_file(dir, &name));
                read.await.ok()?
            }
            House::Remote(remote) => {
                let got = remote.get(&ObjectPath::from(name.as_str())).await.ok()?;
                if got.meta.size > ENTRY_BYTES_MAX {
                    return None;
                }
                got.bytes().await.ok()?
            }
        };
        secret.unseal(&code, &bytes, now)
    }

    /// Keeps an output under a key until it expires, in place of what is there.
    ///
    /// # Errors
    ///
    /// Fails if it cannot be written; what was there stays.
    pub async fn put(
        &self,
        key: &CacheKey<'_>,
        value: &Value,
        expires_at: Option<Timestamp>,
    ) -> Result<(), StorageError> {
        let secret = self.place.secret().await?;
        let code = secret.code(key);
        let name = key::task_entry(&code);
        let error = |error: Shut| StorageError::of(&self.place.root, &name, error);
        let head = secret
            .head(&code, value, expires_at)
            .map_err(|e| error(e.into()))?;
        match &self.place.house {
            House::Folder(door) => {
                let (name, bytes) = (name.clone(), value.bytes.clone());
                let written = door.work(move |dir| write_file(dir, &name, &head, &bytes));
                written.await.map_err(error)
            }
            House::Remote(remote) => {
                let payload = PutPayload::from_iter([Bytes::from(head), value.bytes.clone()]);
                let put = remote.put(&ObjectPath::from(name.as_str()), payload).await;
                put.map(drop).map_err(|e| error(e.into()))
            }
        }
    }
}

impl Place {
    /// Reads the key of the cache, or makes it. Of two that make it at once, the first one's counts.
    async fn secret(&self) -> Result<Secret, StorageError> {
        let read = || async {
            let error = |error: Shut| StorageError::of(&self.root, KEY_FILE, error);
            match &self.house {
                House::Folder(door) => door.work(secret_file).await.map_err(error),
                House::Remote(remote) => secret_object(remote).await.map_err(|e| error(e.into())),
            }
        };
        self.secret.get_or_try_init(read).await.copied()
    }
}

impl Secret {
    fn of(text: &str) -> io::Result<Self> {
        let mut secret = [0; 32];
        hex::decode_to_slice(text.trim_end(), &mut secret)
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        Ok(Self(secret))
    }

    /// Hashes a key. Every field is preceded by its length, and lists by theirs, so no two keys
    /// ever hash the same bytes.
    fn code(&self, key: &CacheKey<'_>) -> [u8; 32] {
        let mut mac = self.mac(b"key");
        let mut field = |bytes: &[u8]| {
            mac.update(&(bytes.len() as u64).to_le_bytes());
            mac.update(bytes);
        };
        field(key.project.as_bytes());
        field(key.flow.as_bytes());
        field(key.task.as_bytes());
        match key.by {
            CacheBy::Named(name, map_index) => {
                field(b"named");
                field(name.as_bytes());
                if let Some(map_index) = map_index {
                    field(&map_index.to_le_bytes());
                }
            }
            CacheBy::Inputs(artifact, inputs) => {
                field(b"inputs");
                field(artifact.as_bytes());
                let mut sorted: Vec<_> = inputs.iter().collect();
                sorted.sort_unstable_by_key(|(name, _)| name);
                field(&(sorted.len() as u64).to_le_bytes());
                for (name, value) in sorted {
                    field(name.as_bytes());
                    field(value.content_type.as_bytes());
                    field(Digest::of(&value.bytes).as_bytes());
                }
            }
        }
        mac.finalize().into_bytes().into()
    }

    fn mac(&self, purpose: &[u8; 3]) -> Hmac<Sha256> {
        let mac = Hmac::<Sha256>::new_from_slice(&self.0);
        let mut mac = mac.expect("HMAC takes keys of any length");
        mac.update(purpose);
        mac
    }

    /// Seals what an entry says to the key under which it says it.
    fn seal(&self, code: &[u8; 32], header: &Header, bytes: &[u8]) -> Hmac<Sha256> {
        let mut mac = self.mac(b"val");
        mac.update(code);
        match header.expires_at_us {
            Some(at) => {
                mac.update(&[1]);
                mac.update(&at.to_le_bytes());
            }
            None => mac.update(&[0]),
        }
        mac.update(&(header.content_type.len() as u64).to_le_bytes());
        mac.update(header.content_type.as_bytes());
        mac.update(bytes);
        mac
    }

    /// Writes the first line of an entry.
    fn head(
        &self,
        code: &[u8; 32],
        value: &Value,
        expires: Option<Timestamp>,
    ) -> serde_json::Result<Vec<u8>> {
        let mut header = Header {
            expires_at_us: expires.map(Timestamp::as_microsecond),
            content_type: value.content_type.clone(),
            mac: String::new(),
        };
        let mac = self.seal(code, &header, &value.bytes).finalize();
        header.mac = hex::encode(mac.into_bytes());
        let mut head = serde_json::to_vec(&header)?;
        head.push(b'\n');
        Ok(head)
    }

    /// Reads an entry; none if it is not whole, not ours, or has expired.
    fn unseal(&self, code: &[u8; 32], entry: &Bytes, now: Timestamp) -> Option<Value> {
        let line = entry.iter().position(|byte| *byte == b'\n')?;
        let header: Header = serde_json::from_slice(&entry[..line]).ok()?;
        let value = entry.slice(line + 1..);
        let mac = hex::decode(&header.mac).ok()?;
        self.seal(code, &header, &value).verify_slice(&mac).ok()?;
        let is_over = |at| at <= now.as_microsecond();
        if header.expires_at_us.is_some_and(is_over) {
            return None;
        }
        Some(Value {
            content_type: header.content_type,
            bytes: value,
        })
    }
}

impl std::fmt::Debug for TaskCache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "TaskCache({})", self.place.root)
    }
}

/// Reads when an entry expires off its first bytes; none if it never does, or is no whole one.
///
/// Nothing is trusted for it: whoever may write there may as well delete.
pub(super) fn expires_at(head: &[u8]) -> Option<Timestamp> {
    let line = head.split(|byte| *byte == b'\n').next()?;
    let header: Header = serde_json::from_slice(line).ok()?;
    Timestamp::from_microsecond(header.expires_at_us?).ok()
}

fn read_file(dir: &Dir, name: &str) -> io::Result<Bytes> {
    let file = dir.open(name)?;
    let mut bytes = Vec::new();
    file.take(ENTRY_BYTES_MAX).read_to_end(&mut bytes)?;
    Ok(bytes.into())
}

/// Writes beside the entry and renames, so that a reader sees the old one or the new one. Not
/// flushed: an entry that a crash takes or tears is as good as absent.
fn write_file(dir: &Dir, name: &str, head: &[u8], value: &[u8]) -> io::Result<()> {
    folder::make_above(dir, name)?;
    let aside = format!("{name}.{:016x}", rand::random::<u64>());
    let mut file = folder::create_new(dir, &aside)?;
    let written = file
        .write_all(head)
        .and_then(|()| file.write_all(value))
        .and_then(|()| dir.rename(&aside, dir, name));
    if written.is_err() {
        let _ = dir.remove_file(&aside);
    }
    written
}

fn secret_file(dir: &Dir) -> io::Result<Secret> {
    if let Err(error) = dir.symlink_metadata(KEY_FILE) {
        if error.kind() != io::ErrorKind::NotFound {
            return Err(error);
        }
        let aside = format!("{KEY_FILE}.{:016x}", rand::random::<u64>());
        let mut file = folder::create_new(dir, &aside)?;
        let made = file
            .write_all(hex::encode(rand::random::<[u8; 32]>()).as_bytes())
            .and_then(|()| file.sync_all())
            .and_then(|()| match dir.hard_link(&aside, dir, KEY_FILE) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
                other => other,
            });
        let _ = dir.remove_file(&aside);
        made?;
        folder::sync_above(dir, KEY_FILE)?;
    }
    Secret::of(&dir.read_to_string(KEY_FILE)?)
}

async fn secret_object(store: &dyn ObjectStore) -> object_store::Result<Secret> {
    let path = ObjectPath::from(KEY_FILE);
    let read = || async {
        let text = store.get(&path).await?.bytes().await?;
        let secret = Secret::of(&String::from_utf8_lossy(&text));
        secret.map_err(|error| object_store::Error::Generic {
            store: "waft",
            source: Box::new(error),
        })
    };
    match read().await {
        Err(object_store::Error::NotFound { .. }) => {
            let made = hex::encode(rand::random::<[u8; 32]>());
            match store
                .put_opts(&path, made.into(), PutMode::Create.into())
                .await
            {
                // Who came first, and what a store without conditions kept, is read back.
                Ok(_) | Err(object_store::Error::AlreadyExists { .. }) => read().await,
                Err(error) => Err(error),
            }
        }
        answer => answer,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::path::Path;

    use jiff::SignedDuration;

    use super::*;

    fn cache(dir: &Path) -> TaskCache {
        TaskCache::open(&Root::local(dir).unwrap(), &Access::default()).unwrap()
    }

    const NOW: Timestamp = Timestamp::UNIX_EPOCH;

    fn key<'a>(inputs: &'a [(String, Value)]) -> CacheKey<'a> {
        CacheKey {
            project: "p",
            flow: "f",
            task: "t",
            by: CacheBy::Inputs(Digest::of(b"code"), inputs),
        }
    }

    fn inputs(pairs: &[(&str, &str)]) -> Vec<(String, Value)> {
        let input =
            |(name, text): &(&str, &str)| ((*name).to_owned(), Value::json((*text).to_owned()));
        pairs.iter().map(input).collect()
    }

    #[tokio::test]
    async fn an_output_is_found_until_it_expires() {
        let dir = tempfile::tempdir().unwrap();
        let none = inputs(&[]);
        let later = NOW + SignedDuration::from_secs(60);
        let value = Value::json("{\n}");
        cache(dir.path())
            .put(&key(&none), &value, Some(later))
            .await
            .unwrap();
        let again = cache(dir.path());
        assert_eq!(again.get(&key(&none), NOW).await, Some(value.clone()));
        assert_eq!(again.get(&key(&none), later).await, None);
        again.put(&key(&none), &value, None).await.unwrap();
        assert_eq!(again.get(&key(&none), later).await, Some(value));
    }

    #[tokio::test]
    async fn nothing_is_found_by_accident() {
        let dir = tempfile::tempdir().unwrap();
        let secret = cache(dir.path()).place.secret().await.unwrap();
        let mut codes = Vec::new();
        for pairs in [
            inputs(&[]),
            inputs(&[("a", "1"), ("b", "2")]),
            inputs(&[("a", "2"), ("b", "1")]),
            inputs(&[("a", "12")]),
            inputs(&[("a1", "2")]),
        ] {
            let mut changed = [key(&pairs); 5];
            changed[1].flow = "ft";
            changed[1].task = "";
            changed[2].project = "";
            changed[3].by = CacheBy::Inputs(Digest::of(b"other"), &pairs);
            changed[4].by = CacheBy::Named("k", None);
            codes.extend(changed[..4].iter().map(|key| secret.code(key)));
            if pairs.is_empty() {
                codes.push(secret.code(&changed[4]));
                for map_index in [0, 1, 256] {
                    changed[4].by = CacheBy::Named("k", Some(map_index));
                    codes.push(secret.code(&changed[4]));
                }
            }
        }
        let count = codes.len();
        codes.sort_unstable();
        codes.dedup();
        assert_eq!(codes.len(), count);
        let swapped = inputs(&[("b", "2"), ("a", "1")]);
        let straight = inputs(&[("a", "1"), ("b", "2")]);
        assert_eq!(secret.code(&key(&swapped)), secret.code(&key(&straight)));
    }

    #[tokio::test]
    async fn what_was_changed_or_moved_is_as_good_as_absent() {
        let dir = tempfile::tempdir().unwrap();
        let cache = cache(dir.path());
        let (one, two) = (inputs(&[("a", "1")]), inputs(&[("a", "2")]));
        cache
            .put(&key(&one), &Value::json("1"), None)
            .await
            .unwrap();
        let secret = cache.place.secret().await.unwrap();
        let file = |k: &CacheKey<'_>| dir.path().join(super::key::task_entry(&secret.code(k)));
        std::fs::create_dir_all(file(&key(&two)).parent().unwrap()).unwrap();
        std::fs::copy(file(&key(&one)), file(&key(&two))).unwrap();
        assert_eq!(cache.get(&key(&two), NOW).await, None);
        let mut bytes = std::fs::read(file(&key(&one))).unwrap();
        *bytes.last_mut().unwrap() = b'2';
        std::fs::write(file(&key(&one)), bytes).unwrap();
        assert_eq!(cache.get(&key(&one), NOW).await, None);
    }

    #[tokio::test]
    async fn the_key_is_made_once_and_for_its_owner() {
        let dir = tempfile::tempdir().unwrap();
        let first = cache(dir.path()).place.secret().await.unwrap();
        let again = cache(dir.path()).place.secret().await.unwrap();
        assert_eq!(again.0, first.0);
        let mode = std::fs::metadata(dir.path().join(KEY_FILE))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600);
        std::fs::write(dir.path().join(KEY_FILE), "short").unwrap();
        assert!(cache(dir.path()).place.secret().await.is_err());
    }
}
