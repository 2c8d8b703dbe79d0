//! Folders of what can be made again: what was used longest ago goes first when they grow too large.
//!
//! The artifact cache (`storage`) and the cache of compiled code (`sandbox`) are such folders, and the
//! command line lists and clears both. When a file was last used is its time of modification, which
//! whoever uses it sets: so it outlives processes, and is the same to all of them.
//!
//! Nothing is locked, as several agents share one home: those who tidy at one time choose the same
//! files, what is gone already counts as taken away, and who is about to open a file that goes finds
//! none and makes it again. What was opened or mapped before that stays whole.

use std::collections::BTreeMap;
use std::fs::{self, File, Metadata};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use jiff::{SignedDuration, Timestamp};

use crate::clock::Clock;
use crate::model::artifact::Digest;

/// How much a cache keeps unless it is said otherwise.
pub(crate) const BYTES_MAX: u64 = 4 << 30;

/// What is not complete after this time was left by a process that was killed.
const LEFT_BEHIND: SignedDuration = SignedDuration::from_hours(1);

/// What a file of such a folder is, by its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part<'a> {
    /// What is kept under this key, which begins with the digest of an artifact in hex.
    Main(&'a str),
    /// What belongs to it, and is nothing without it.
    Beside(&'a str),
    /// What is not complete yet.
    Draft,
}

/// A folder of files and its bound. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct BoundedFolder {
    path: PathBuf,
    bytes_max: u64,
    part_of: fn(&str) -> Option<Part<'_>>,
    clock: Clock,
}

/// What lies in such a folder under one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Item {
    /// The digest of the artifact that it is, or was made of.
    pub(crate) digest: Digest,
    /// Bytes of all its files.
    pub(crate) size: u64,
    /// When it was last used.
    pub(crate) used_at: Timestamp,
    main: String,
    beside: Vec<String>,
}

/// What was found under one key, complete or not.
#[derive(Default)]
struct Found {
    main: Option<(String, u64, Timestamp)>,
    beside: BTreeMap<String, (u64, Timestamp)>,
}

/// What one look at a folder has found.
#[derive(Default)]
struct Look {
    /// What is complete, the last used first.
    items: Vec<Item>,
    /// What belongs to something that is not there.
    orphans: Vec<(String, Timestamp)>,
    drafts: Vec<(String, Timestamp)>,
}

impl BoundedFolder {
    /// Names a folder. Files of which `part_of` knows nothing are never touched.
    pub(crate) fn new(
        path: &Path,
        bytes_max: u64,
        part_of: fn(&str) -> Option<Part<'_>>,
        clock: Clock,
    ) -> Self {
        Self {
            path: path.to_owned(),
            bytes_max,
            part_of,
            clock,
        }
    }

    /// Returns where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Returns how much it keeps.
    pub(crate) const fn bytes_max(&self) -> u64 {
        self.bytes_max
    }

    /// Notes that a file is used now.
    ///
    /// It is noted to the microsecond, where a file system notes a change to a tick of some
    /// milliseconds: so a change within that tick shows all the same.
    pub(crate) fn used(&self, file: &File) -> io::Result<()> {
        file.set_modified(self.clock.now().into())
    }

    /// Lists what is there, the last used first; nothing where there is no folder.
    pub(crate) fn list(&self) -> io::Result<Vec<Item>> {
        Ok(self.look()?.items)
    }

    /// Takes away what is too much, what was used longest ago first, and what killed processes left.
    ///
    /// What lies under the key `spared` stays, even if it alone is too much: it was just kept, and is
    /// about to be used. What cannot be taken away is left to the next.
    pub(crate) fn tidy(&self, spared: Option<&str>) {
        let look = match self.look() {
            Ok(look) => look,
            Err(error) => {
                tracing::warn!("cannot tidy the cache `{}`: {error}", self.path.display());
                return;
            }
        };
        let now = self.clock.now();
        let left = look.drafts.iter().chain(&look.orphans);
        for (name, _) in left.filter(|(_, at)| now.duration_since(*at) > LEFT_BEHIND) {
            self.remove_file(name);
        }
        let mut bytes: u64 = look.items.iter().map(|item| item.size).sum();
        let is_spared = |item: &&Item| (self.part_of)(&item.main) == spared.map(Part::Main);
        for item in look.items.iter().rev().filter(|item| !is_spared(item)) {
            if bytes <= self.bytes_max {
                return;
            }
            if !self.is_used_again(item) && self.remove(item) {
                tracing::debug!(artifact.digest = %item.digest, "went out of a cache, which is full");
                bytes -= item.size;
            }
        }
    }

    /// Takes away everything that is complete, and answers what that was.
    ///
    /// What somebody is still writing stays, so this may be done while agents work.
    pub(crate) fn clear(&self) -> io::Result<Vec<Item>> {
        let mut look = self.look()?;
        for (name, _) in &look.orphans {
            self.remove_file(name);
        }
        look.items.retain(|item| self.remove(item));
        Ok(look.items)
    }

    /// Tells whether somebody has used it, or kept it anew, since it was looked at.
    fn is_used_again(&self, item: &Item) -> bool {
        let found = fs::symlink_metadata(self.path.join(&item.main));
        found.is_ok_and(|found| modified(&found) != Some(item.used_at))
    }

    /// Removes the files of an item, what it is nothing without first.
    fn remove(&self, item: &Item) -> bool {
        let is_gone = self.remove_file(&item.main);
        if is_gone {
            for name in &item.beside {
                self.remove_file(name);
            }
        }
        is_gone
    }

    /// Removes a file; it is no fault if somebody else was faster.
    fn remove_file(&self, name: &str) -> bool {
        let path = self.path.join(name);
        match fs::remove_file(&path) {
            Ok(()) => true,
            Err(error) if error.kind() == ErrorKind::NotFound => true,
            Err(error) => {
                tracing::warn!("cannot remove `{}`: {error}", path.display());
                false
            }
        }
    }

    fn look(&self) -> io::Result<Look> {
        let entries = match fs::read_dir(&self.path) {
            Ok(entries) => entries,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Look::default()),
            Err(error) => return Err(error),
        };
        let mut look = Look::default();
        let mut found: BTreeMap<String, Found> = BTreeMap::new();
        for entry in entries {
            let entry = entry?;
            let Ok(name) = entry.file_name().into_string() else {
                continue;
            };
            let Some(part) = (self.part_of)(&name) else {
                continue;
            };
            // Gone since it was listed, or somebody's folder.
            let about = entry.metadata().ok().filter(|about| !about.is_dir());
            let Some((size, at)) = about.and_then(|about| Some((about.len(), modified(&about)?)))
            else {
                continue;
            };
            match part {
                Part::Draft => look.drafts.push((name, at)),
                Part::Main(key) => {
                    let key = key.to_owned();
                    found.entry(key).or_default().main = Some((name, size, at));
                }
                Part::Beside(key) => {
                    let key = key.to_owned();
                    // A file that is renamed meanwhile may be listed twice.
                    found
                        .entry(key)
                        .or_default()
                        .beside
                        .insert(name, (size, at));
                }
            }
        }
        for (key, Found { main, beside }) in found {
            let Some(digest) = digest_of(&key) else {
                continue;
            };
            let Some((main, size, used_at)) = main else {
                let orphans = beside.into_iter().map(|(name, (_, at))| (name, at));
                look.orphans.extend(orphans);
                continue;
            };
            look.items.push(Item {
                digest,
                size: size + beside.values().map(|(size, _)| size).sum::<u64>(),
                used_at,
                main,
                beside: beside.into_keys().collect(),
            });
        }
        // Equal times are told apart by name, so that two who tidy at one time choose the same.
        look.items
            .sort_by(|a, b| (b.used_at, &b.main).cmp(&(a.used_at, &a.main)));
        Ok(look)
    }
}

fn modified(about: &Metadata) -> Option<Timestamp> {
    Timestamp::try_from(about.modified().ok()?).ok()
}

/// Reads the digest that a key begins with.
fn digest_of(key: &str) -> Option<Digest> {
    format!("sha256:{}", key.get(..64)?).parse().ok()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    struct House {
        dir: tempfile::TempDir,
        /// Two agents of one home.
        one: BoundedFolder,
        other: BoundedFolder,
    }

    fn part_of(name: &str) -> Option<Part<'_>> {
        match name.split_once('.')? {
            (key, "main") => Some(Part::Main(key)),
            (key, "beside") => Some(Part::Beside(key)),
            (_, "draft") => Some(Part::Draft),
            _ => None,
        }
    }

    fn key(nth: u8) -> String {
        Digest::from_bytes([nth; 32]).to_hex()
    }

    impl House {
        fn new(bytes_max: u64) -> Self {
            let dir = tempfile::tempdir().unwrap();
            let open = || BoundedFolder::new(dir.path(), bytes_max, part_of, Clock::default());
            Self {
                one: open(),
                other: open(),
                dir,
            }
        }

        /// Makes a file that was last used so many minutes ago.
        fn file(&self, name: &str, size: usize, minutes: u64) {
            let path = self.dir.path().join(name);
            fs::write(&path, vec![0; size]).unwrap();
            let ago = Duration::from_secs(60 * minutes);
            let at = std::time::SystemTime::from(Clock::default().now()) - ago;
            File::open(path).unwrap().set_modified(at).unwrap();
        }

        /// Makes four items of ten bytes and a beside of one; the first was used last.
        fn fill(&self) {
            for nth in 0..4 {
                self.file(&format!("{}.main", key(nth)), 10, u64::from(nth));
                self.file(&format!("{}.beside", key(nth)), 1, 99);
            }
        }

        fn use_now(&self, nth: u8) {
            let path = self.dir.path().join(format!("{}.main", key(nth)));
            self.one.used(&File::open(path).unwrap()).unwrap();
        }

        /// Lists the numbers of what is there, the last used first.
        fn left(&self) -> Vec<u8> {
            let items = self.other.list().unwrap();
            items.iter().map(|it| it.digest.as_bytes()[0]).collect()
        }

        fn names(&self) -> usize {
            fs::read_dir(self.dir.path()).unwrap().count()
        }
    }

    #[test]
    fn what_was_used_longest_ago_goes_first_and_no_more_than_must() {
        let house = House::new(33);
        house.fill();
        assert_eq!(house.one.list().unwrap()[0].size, 11);
        house.one.tidy(None);
        assert_eq!(house.left(), [0, 1, 2]);
        house.use_now(2);
        house.file(&format!("{}.main", key(7)), 11, 0);
        house.other.tidy(None);
        assert_eq!(house.left(), [7, 2, 0]);
        assert_eq!(house.names(), 5);
    }

    #[test]
    fn what_was_just_kept_stays_even_if_it_is_too_large_or_seems_old() {
        let house = House::new(5);
        house.fill();
        house.one.tidy(Some(&key(3)));
        assert_eq!(house.left(), [3]);
        house.one.tidy(None);
        assert_eq!(house.left(), [0_u8; 0]);
        assert_eq!(house.names(), 0);
    }

    #[test]
    fn what_was_used_since_somebody_looked_is_spared() {
        let house = House::new(0);
        house.fill();
        let items = house.one.list().unwrap();
        house.use_now(1);
        let again: Vec<_> = items.iter().map(|it| house.one.is_used_again(it)).collect();
        assert_eq!(again, [false, true, false, false]);
    }

    #[test]
    fn what_killed_processes_left_is_swept_when_it_is_old() {
        let house = House::new(100);
        house.file("old.draft", 1, 61);
        house.file("new.draft", 1, 59);
        house.file(&format!("{}.beside", key(1)), 1, 61);
        house.file(&format!("{}.beside", key(2)), 1, 59);
        house.file("stranger", 1, 61);
        house.file(&format!("{}.main", "no-digest"), 1, 61);
        house.one.tidy(None);
        let mut names: Vec<_> = fs::read_dir(house.dir.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        let young = format!("{}.beside", key(2));
        assert_eq!(
            names,
            [young.as_str(), "new.draft", "no-digest.main", "stranger"]
        );
    }

    #[test]
    fn a_clear_takes_all_but_what_is_being_written() {
        let house = House::new(100);
        assert_eq!(house.one.clear().unwrap(), []);
        house.fill();
        house.file("new.draft", 1, 0);
        house.file(&format!("{}.beside", key(9)), 1, 0);
        let gone = house.one.clear().unwrap();
        assert_eq!(gone.iter().map(|item| item.size).sum::<u64>(), 44);
        assert_eq!(house.names(), 1);
        fs::remove_dir_all(house.dir.path()).unwrap();
        assert_eq!(house.one.list().unwrap(), []);
    }

    /// Two who tidy together take away what one of them would have.
    #[test]
    fn two_who_tidy_at_one_time_take_no_more_than_one() {
        for _ in 0..50 {
            let house = House::new(22);
            for nth in 0..20 {
                house.file(&format!("{}.main", key(nth)), 11, u64::from(nth));
            }
            std::thread::scope(|scope| {
                scope.spawn(|| house.one.tidy(None));
                scope.spawn(|| house.other.tidy(None));
            });
            assert_eq!(house.left(), [0, 1]);
        }
    }
}
