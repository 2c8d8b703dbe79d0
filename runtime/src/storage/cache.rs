//! The artifact cache: the bytes of artifacts on this machine, by digest.
//!
//! Files lie in one folder that only its owner enters. A file is trusted after its digest was
//! checked in this process, for as long as its size, its times and its inode stay the same. Several
//! processes may share the folder; what is used longest ago goes when it grows too large.

use std::collections::HashMap;
use std::fs::{File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use sha2::{Digest as _, Sha256};
use tempfile::NamedTempFile;

use super::{Root, StorageError, folder};
use crate::bounded::{self, BoundedFolder, Part};
use crate::clock::Clock;
use crate::model::artifact::Digest;

/// A folder of artifacts. Cheap to clone; clones share what they checked.
#[derive(Clone, Debug)]
pub struct ArtifactCache {
    root: Root,
    folder: BoundedFolder,
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
    /// How many bytes are kept unless it is said otherwise.
    pub const BYTES_MAX: u64 = bounded::BYTES_MAX;

    /// Opens the cache in a folder (an absolute path), made if need be, for its owner only, and keeps
    /// [`ArtifactCache::BYTES_MAX`] there.
    ///
    /// # Errors
    ///
    /// As [`ArtifactCache::open_bounded`].
    pub fn open(dir: &Path) -> Result<Self, StorageError> {
        Self::open_bounded(dir, Self::BYTES_MAX)
    }

    /// As [`ArtifactCache::open`], with another bound. An artifact that is larger by itself is kept
    /// and used like any other, and goes when the next one comes.
    ///
    /// # Errors
    ///
    /// Fails if the folder cannot be made or belongs to somebody else.
    pub fn open_bounded(dir: &Path, bytes_max: u64) -> Result<Self, StorageError> {
        let root = Root::local(dir).map_err(|error| StorageError::Other {
            root: dir.display().to_string(),
            key: ".".to_owned(),
            source: error.into(),
        })?;
        make(dir).map_err(|error| StorageError::of(&root, ".", error))?;
        let folder = Self::folder(dir, bytes_max);
        folder.tidy(None);
        Ok(Self {
            root,
            folder,
            checked: Arc::default(),
        })
    }

    /// Names the folder of such a cache, to list or to clear it.
    pub(crate) fn folder(dir: &Path, bytes_max: u64) -> BoundedFolder {
        // Always the system's clock: what others have used bears its time.
        BoundedFolder::new(dir, bytes_max, part_of, Clock::default())
    }

    /// Returns the file of an artifact, if it is here and undamaged. A damaged one is thrown away.
    ///
    /// Another process may take the file away at any moment: who opens it and finds none fetches the
    /// artifact again.
    ///
    /// Blocks: the first time in a process the file is read as a whole.
    #[must_use]
    pub fn get(&self, digest: Digest) -> Option<PathBuf> {
        let path = self.path(digest);
        let (mut file, stamp) = self.find(digest)?;
        if !self.is_checked(digest, stamp) {
            let mut hasher = Sha256::new();
            io::copy(&mut file, &mut hasher).ok()?;
            if Digest::from_bytes(hasher.finalize().into()) != digest {
                tracing::warn!(artifact.digest = %digest, "a damaged artifact was thrown out of the cache");
                let _ = std::fs::remove_file(&path);
                return None;
            }
        }
        self.trust(digest, &file, stamp);
        Some(path)
    }

    /// Notes that an artifact is used, by whoever got it before and holds what was made of it.
    pub(crate) fn touch(&self, digest: Digest) {
        let Some((file, stamp)) = self.find(digest) else {
            return;
        };
        match self.is_checked(digest, stamp) {
            true => self.trust(digest, &file, stamp),
            // Whose use is not noted only goes the sooner.
            false => drop(self.folder.used(&file)),
        }
    }

    /// Opens the file of an artifact, checked or not; forgets one that is not there.
    fn find(&self, digest: Digest) -> Option<(File, Stamp)> {
        let opened = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NOFOLLOW)
            .open(self.path(digest));
        let found = opened.and_then(|file| Stamp::of(&file).map(|stamp| (file, stamp)));
        if found.is_err() {
            self.checked().remove(&digest);
        }
        found.ok()
    }

    fn is_checked(&self, digest: Digest, stamp: Stamp) -> bool {
        self.checked().get(&digest) == Some(&stamp)
    }

    /// Notes that a file is used, and trusts it as it is after that, if nobody has touched it since
    /// it was `checked`.
    fn trust(&self, digest: Digest, file: &File, checked: Stamp) {
        let is_as_checked = || Stamp::of(file).is_ok_and(|stamp| stamp == checked);
        let stamp = match is_as_checked() && self.folder.used(file).is_ok() {
            true => Stamp::of(file).ok(),
            // Only its use could not be noted, or it is checked again the next time.
            false => Some(checked),
        };
        if let Some(stamp) = stamp {
            self.checked().insert(digest, stamp);
        }
    }

    /// Begins a file that is no artifact yet; it vanishes unless it is kept. A folder that somebody has
    /// deleted under a living agent is made again.
    pub(super) fn begin(&self) -> io::Result<NamedTempFile> {
        let folder = self.folder.path();
        let draft = || tempfile::Builder::new().prefix(DRAFT).tempfile_in(folder);
        match draft() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                make(folder)?;
                draft()
            }
            begun => begun,
        }
    }

    /// Keeps a file whose digest the caller has checked while writing it, and makes room for it.
    pub(super) fn keep(&self, file: NamedTempFile, digest: Digest) -> io::Result<PathBuf> {
        let path = self.path(digest);
        self.folder.used(file.as_file())?;
        let file = file.persist(&path).map_err(|error| error.error)?;
        self.checked().insert(digest, Stamp::of(&file)?);
        self.folder.tidy(Some(&digest.to_hex()));
        Ok(path)
    }

    pub(super) fn error(&self, digest: Digest, error: io::Error) -> StorageError {
        StorageError::of(&self.root, &digest.to_hex(), error)
    }

    fn path(&self, digest: Digest) -> PathBuf {
        self.folder.path().join(digest.to_hex())
    }

    fn checked(&self) -> std::sync::MutexGuard<'_, HashMap<Digest, Stamp>> {
        self.checked.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Makes the folder, for this user alone.
fn make(folder: &Path) -> io::Result<()> {
    folder::make(folder)?;
    std::fs::set_permissions(folder, Permissions::from_mode(0o700))
}

/// How drafts are called.
const DRAFT: &str = ".fetch-";

fn part_of(name: &str) -> Option<Part<'_>> {
    match name.starts_with(DRAFT) {
        true => Some(Part::Draft),
        // The folder looks whether it is a digest.
        false => (name.len() == 64).then_some(Part::Main(name)),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::time::{Duration, SystemTime};

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
    fn a_folder_that_is_deleted_is_made_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("artifacts");
        let cache = ArtifactCache::open(&path).unwrap();
        kept(&cache, b"good");
        std::fs::remove_dir_all(&path).unwrap();
        assert_eq!(cache.get(Digest::of(b"good")), None);
        let again = kept(&cache, b"good");
        assert_eq!(cache.get(Digest::of(b"good")), Some(again));
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
    }

    /// Makes a file seem to be from so many minutes ago.
    fn age(path: &Path, minutes: u64) {
        let at = SystemTime::from(Clock::default().now()) - Duration::from_secs(60 * minutes);
        File::open(path).unwrap().set_modified(at).unwrap();
    }

    fn is_trusted(cache: &ArtifactCache, digest: Digest) -> bool {
        let (_, stamp) = cache.find(digest).unwrap();
        cache.is_checked(digest, stamp)
    }

    #[test]
    fn what_was_used_longest_ago_makes_room() {
        let dir = tempfile::tempdir().unwrap();
        let cache = ArtifactCache::open_bounded(dir.path(), 12).unwrap();
        let old = kept(&cache, b"1 old");
        let used = kept(&cache, b"2 use");
        age(&old, 1);
        age(&used, 2);
        assert_eq!(cache.get(Digest::of(b"2 use")), Some(used.clone()));
        let new = kept(&cache, b"3 new");
        assert_eq!(
            (old.exists(), used.exists(), new.exists()),
            (false, true, true)
        );
        assert_eq!(cache.get(Digest::of(b"1 old")), None);
        let huge = kept(&cache, b"larger than the bound");
        assert_eq!(cache.get(Digest::of(b"larger than the bound")), Some(huge));
        assert!(!used.exists() && !new.exists());
    }

    /// A lower bound holds from the next start on, and by what earlier processes have used.
    #[test]
    fn a_bound_that_was_lowered_holds_when_it_is_opened() {
        let dir = tempfile::tempdir().unwrap();
        let cache = ArtifactCache::open(dir.path()).unwrap();
        let (old, used) = (kept(&cache, b"1 old"), kept(&cache, b"2 use"));
        age(&old, 1);
        age(&used, 2);
        cache.touch(Digest::of(b"2 use"));
        let left = dir.path().join(".fetch-123456");
        std::fs::write(&left, b"half").unwrap();
        age(&left, 61);
        ArtifactCache::open_bounded(dir.path(), 5).unwrap();
        assert_eq!(
            (old.exists(), used.exists(), left.exists()),
            (false, true, false)
        );
    }

    #[test]
    fn a_use_is_noted_and_costs_no_second_check() {
        let dir = tempfile::tempdir().unwrap();
        let cache = ArtifactCache::open(dir.path()).unwrap();
        let digest = Digest::of(b"good");
        let path = kept(&cache, b"good");
        let modified = || std::fs::metadata(&path).unwrap().modified().unwrap();
        for note in [
            |cache: &ArtifactCache, digest| assert!(cache.get(digest).is_some()),
            ArtifactCache::touch,
        ] {
            assert!(is_trusted(&cache, digest));
            let before = modified();
            // The clock tells microseconds.
            std::thread::sleep(Duration::from_micros(2));
            note(&cache, digest);
            assert!(modified() > before);
            assert!(is_trusted(&cache, digest));
        }
        // What another process has used is checked once more, and then trusted.
        let other = ArtifactCache::open(dir.path()).unwrap();
        assert!(other.get(digest).is_some());
        assert!(!is_trusted(&cache, digest));
        assert!(cache.get(digest).is_some());
        assert!(is_trusted(&cache, digest));
        // A use that is noted makes nothing good.
        std::fs::write(&path, b"evil").unwrap();
        cache.touch(digest);
        assert_eq!(cache.get(digest), None);
    }

    #[test]
    fn what_another_process_took_away_is_absent_and_may_be_kept_again() {
        let dir = tempfile::tempdir().unwrap();
        let [one, other] = [(); 2].map(|()| ArtifactCache::open_bounded(dir.path(), 6).unwrap());
        let path = kept(&one, b"first");
        let open = File::open(&path).unwrap();
        kept(&other, b"other");
        assert_eq!(one.get(Digest::of(b"first")), None);
        assert_eq!(io::read_to_string(open).unwrap(), "first");
        assert_eq!(kept(&one, b"first"), path);
        assert_eq!(one.get(Digest::of(b"first")), Some(path));
        assert_eq!(other.get(Digest::of(b"other")), None);
    }

    /// Whatever two processes do to each other, neither is ever given a file that is not its digest.
    #[test]
    fn two_that_push_each_other_out_find_what_they_want_or_nothing() {
        let dir = tempfile::tempdir().unwrap();
        std::thread::scope(|scope| {
            for who in 0..2_u8 {
                let dir = dir.path();
                scope.spawn(move || {
                    let cache = ArtifactCache::open_bounded(dir, 20).unwrap();
                    for round in 0..400_u16 {
                        let bytes = [b'0' + (round % 5) as u8 + who; 9];
                        let digest = Digest::of(&bytes);
                        if cache.get(digest).is_none() {
                            kept(&cache, &bytes);
                        }
                        if let Ok(found) = std::fs::read(cache.path(digest)) {
                            assert_eq!(found, bytes);
                        }
                    }
                });
            }
        });
        let left = ArtifactCache::folder(dir.path(), 20).list().unwrap();
        assert!(!left.is_empty() && left.len() < 6, "{left:?}");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), left.len());
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
