//! The artifact cache: the bytes of artifacts on this machine, by digest.
//!
//! Files lie in one folder that only its owner enters. A file is trusted after its digest was
//! checked in this process, for as long as its size, its times and its inode stay the same.

use std::collections::HashMap;
use std::fs::{File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use sha2::{Digest as _, Sha256};
use tempfile::NamedTempFile;

use super::{Root, StorageError, folder};
use crate::model::artifact::Digest;

/// A folder of artifacts. Cheap to clone; clones share what they checked.
#[derive(Clone, Debug)]
pub struct ArtifactCache {
    root: Root,
    checked: Arc<Mutex<HashMap<Digest, Stamp>>>,
}

/// What changes when somebody touches a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    fn of(file: &File) -> io::Result<Self> {
        let found = file.metadata()?;
        Ok(Self {
            inode: found.ino(),
            size: found.size(),
            modified: (found.mtime(), found.mtime_nsec()),
            changed: (found.ctime(), found.ctime_nsec()),
        })
    }
}

impl ArtifactCache {
    /// Opens the cache in a folder (an absolute path), made if need be, for its owner only.
    ///
    /// # Errors
    ///
    /// Fails if the folder cannot be made or belongs to somebody else.
    pub fn open(dir: &Path) -> Result<Self, StorageError> {
        let root = Root::local(dir).map_err(|error| StorageError::Other {
            root: dir.display().to_string(),
            key: ".".to_owned(),
            source: error.into(),
        })?;
        let opened = folder::make(root.folder())
            .and_then(|()| std::fs::set_permissions(root.folder(), Permissions::from_mode(0o700)));
        opened.map_err(|error| StorageError::of(&root, ".", error))?;
        Ok(Self {
            root,
            checked: Arc::default(),
        })
    }

    /// Returns the file of an artifact, if it is here and undamaged. A damaged one is thrown away.
    ///
    /// Blocks: the first time in a process the file is read as a whole.
    #[must_use]
    pub fn get(&self, digest: Digest) -> Option<PathBuf> {
        let path = self.path(digest);
        let opened = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NOFOLLOW)
            .open(&path);
        let mut file = opened.ok()?;
        let stamp = Stamp::of(&file).ok()?;
        if self.checked().get(&digest) == Some(&stamp) {
            return Some(path);
        }
        let mut hasher = Sha256::new();
        io::copy(&mut file, &mut hasher).ok()?;
        if Digest::from_bytes(hasher.finalize().into()) == digest {
            self.checked().insert(digest, stamp);
            return Some(path);
        }
        tracing::warn!(artifact.digest = %digest, "a damaged artifact was thrown out of the cache");
        let _ = std::fs::remove_file(&path);
        None
    }

    /// Begins a file that is no artifact yet; it vanishes unless it is kept.
    pub(super) fn begin(&self) -> io::Result<NamedTempFile> {
        tempfile::Builder::new()
            .prefix(".fetch-")
            .tempfile_in(self.root.folder())
    }

    /// Keeps a file whose digest the caller has checked while writing it.
    pub(super) fn keep(&self, file: NamedTempFile, digest: Digest) -> io::Result<PathBuf> {
        let path = self.path(digest);
        let file = file.persist(&path).map_err(|error| error.error)?;
        self.checked().insert(digest, Stamp::of(&file)?);
        Ok(path)
    }

    pub(super) fn error(&self, digest: Digest, error: io::Error) -> StorageError {
        StorageError::of(&self.root, &digest.to_hex(), error)
    }

    fn path(&self, digest: Digest) -> PathBuf {
        self.root.folder().join(digest.to_hex())
    }

    fn checked(&self) -> std::sync::MutexGuard<'_, HashMap<Digest, Stamp>> {
        self.checked.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn kept(cache: &ArtifactCache, bytes: &[u8]) -> PathBuf {
        let mut file = cache.begin().unwrap();
        file.write_all(bytes).unwrap();
        cache.keep(file, Digest::of(bytes)).unwrap()
    }

    #[test]
    fn a_damaged_file_is_thrown_away_even_after_it_was_checked() {
        let dir = tempfile::tempdir().unwrap();
        let cache = ArtifactCache::open(dir.path()).unwrap();
        let digest = Digest::of(b"good");
        assert_eq!(cache.get(digest), None);
        let path = kept(&cache, b"good");
        assert_eq!(cache.get(digest), Some(path.clone()));
        std::fs::write(&path, b"evil").unwrap();
        assert_eq!(cache.get(digest), None);
        assert!(!path.exists());
    }

    #[test]
    fn nobody_else_looks_in_and_no_link_leads_out() {
        let dir = tempfile::tempdir().unwrap();
        let home = dir.path().join("cache");
        let cache = ArtifactCache::open(&home).unwrap();
        let mode = std::fs::metadata(&home).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
        let outside = dir.path().join("outside");
        std::fs::write(&outside, b"good").unwrap();
        std::os::unix::fs::symlink(&outside, home.join(Digest::of(b"good").to_hex())).unwrap();
        assert_eq!(cache.get(Digest::of(b"good")), None);
    }
}
