//! Compiled code, kept by what it was compiled from and for.
//!
//! Machine code is trusted when it is loaded, so only code that this program wrote is: the folder
//! belongs to this user alone, every file is checked against the sha256 beside it, and a link is
//! never followed. What does not fit is thrown away and compiled again, silently but for a line in
//! the agent's log. Refusals are kept here too, so that ten thousand runs do not start a bomb each.
//! Several processes may share the folder; what is used longest ago goes when it grows too large.

use std::fs::File;
use std::hash::{Hash, Hasher};
use std::io::{ErrorKind, Read, Write};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use cap_std::fs::Dir;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use wasmtime::Engine;
use wasmtime::component::Component;

use super::{Budget, Failure, Refusal};
use crate::bounded::{BoundedFolder, Part};
use crate::clock::Clock;
use crate::model::artifact::Digest;
use crate::sandbox::{engine as engines, grant};

/// How long a refusal stands: long enough to stop a storm, short enough for a busy machine that was
/// too slow once.
const REFUSAL_KEPT: Duration = Duration::from_secs(10 * 60);

/// The folder of compiled code.
pub(super) struct CodeCache {
    /// Opened anew where somebody has deleted it under a living process.
    dir: Mutex<Arc<Dir>>,
    folder: BoundedFolder,
    /// Stands for the engine's version and settings, and for this CPU.
    engine: [u8; 32],
    clock: Clock,
}

/// Code that is being written.
pub(super) struct Draft {
    dir: Dir,
    name: String,
}

#[derive(Serialize, Deserialize)]
struct Kept {
    until: Timestamp,
    is_format: bool,
    message: String,
}

/// Feeds what the engine hashes to sha256: its own hash is of 64 bits, too few to trust code by.
struct Sha(Sha256);

impl Hasher for Sha {
    fn write(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    fn finish(&self) -> u64 {
        0
    }
}

impl CodeCache {
    /// Opens the folder, made if need be, and makes sure that it is this user's alone.
    ///
    /// It keeps so many bytes, and code that is larger by itself until other code comes.
    pub(super) fn open(
        path: &Path,
        bytes_max: u64,
        engine: &Engine,
        clock: Clock,
    ) -> anyhow::Result<Self> {
        let dir = grant::open_own_dir(path)
            .with_context(|| format!("opening the folder of compiled code `{}`", path.display()))?;
        let mut sha = Sha(Sha256::new());
        engine.precompile_compatibility_hash().hash(&mut sha);
        env!("CARGO_PKG_VERSION").hash(&mut sha);
        let folder = folder(path, bytes_max, clock.clone());
        folder.tidy(None);
        Ok(Self {
            dir: Mutex::new(Arc::new(dir)),
            folder,
            engine: sha.0.finalize().into(),
            clock,
        })
    }

    fn dir(&self) -> Arc<Dir> {
        let dir = self.dir.lock();
        dir.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Loads the code of an artifact; nothing if there is none that can be trusted.
    ///
    /// Another process may take it away at any moment. Once it is loaded that changes nothing.
    ///
    /// Fails for code that can be trusted and that the engine does not take: it would not take it
    /// either if it were compiled again, so it stays where it is.
    pub(super) fn load(
        &self,
        digest: Digest,
        engine: &Engine,
    ) -> Result<Option<Component>, Failure> {
        let file = match self.check(digest) {
            Ok(file) => file,
            // Absent is the usual case.
            Err(why) if is_absent(why.chain()) => return Ok(None),
            Err(why) => {
                tracing::warn!("compiled code of {digest} is made anew: {why:#}");
                for kind in ["cwasm", "sha256"] {
                    let _ = self.dir().remove_file(self.name(digest, kind));
                }
                return Ok(None);
            }
        };
        let component = self.map(&self.name(digest, "cwasm"), engine)?;
        // Whose use is not noted only goes the sooner.
        let _ = self.folder.used(&file);
        Ok(component)
    }

    /// Notes that code is used, by whoever has loaded it before.
    pub(super) fn touch(&self, digest: Digest) {
        if let Ok(file) = self.dir().open(self.name(digest, "cwasm")) {
            let _ = self.folder.used(&file.into_std());
        }
    }

    /// Maps code that can be trusted; nothing if it went after it was checked.
    fn map(&self, name: &str, engine: &Engine) -> Result<Option<Component>, Failure> {
        let path = self.folder.path().join(name);
        // SAFETY: the bytes were written by this program for this very engine (the name holds the
        // hash of version, settings and CPU), and lie in a folder that only this user can write to.
        // They are a draft that was just completed, or were kept, are no link, and have the sha256
        // that was written with them.
        #[expect(unsafe_code, reason = "loading checked code is what this file is for")]
        let component = unsafe { Component::deserialize_file(engine, path) };
        let error = match component {
            Ok(component) => return Ok(Some(component)),
            Err(error) if is_absent(error.chain()) => return Ok(None),
            Err(error) => error,
        };
        let is_ours = error
            .chain()
            .any(<dyn std::error::Error>::is::<std::io::Error>);
        let error = engines::trouble(&error);
        Err(match is_ours {
            true => Failure::Host(error.context("loading compiled code")),
            false => {
                Refusal::budget(format!("it needs more than this agent has: {error:#}")).into()
            }
        })
    }

    fn check(&self, digest: Digest) -> anyhow::Result<File> {
        let name = self.name(digest, "cwasm");
        grant::check_own_file(&self.dir(), &name)?;
        let expected = self.dir().read_to_string(self.name(digest, "sha256"))?;
        let mut file = self.dir().open(&name)?;
        let found = sha256(&mut file)?;
        anyhow::ensure!(expected == found, "its checksum does not fit");
        Ok(file.into_std())
    }

    /// Opens a file to write code to.
    pub(super) fn draft(&self, digest: Digest) -> anyhow::Result<Draft> {
        let random: u64 = rand::random();
        let name = self.name(digest, &format!("{random:016x}.draft"));
        let mut dir = self.dir();
        match dir.create(&name) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                dir = Arc::new(grant::open_own_dir(self.folder.path())?);
                *self.dir.lock().unwrap_or_else(PoisonError::into_inner) = dir.clone();
                dir.create(&name)?;
            }
            created => drop(created?),
        }
        let dir = dir.try_clone()?;
        Ok(Draft { dir, name })
    }

    /// Takes a draft that is complete into the cache, makes room for it, and loads it.
    ///
    /// It is loaded before it has its name, as long as no other process takes it away. Fails as
    /// [`CodeCache::load`] does, and then it is kept nevertheless.
    pub(super) fn keep(
        &self,
        digest: Digest,
        draft: Draft,
        engine: &Engine,
    ) -> Result<Component, Failure> {
        let component = self.map(&draft.name, engine);
        self.place(digest, draft).map_err(Failure::Host)?;
        self.folder.tidy(Some(&self.key(digest)));
        let lost = || Failure::Host(anyhow::anyhow!("the draft of compiled code vanished"));
        component?.ok_or_else(lost)
    }

    fn place(&self, digest: Digest, draft: Draft) -> anyhow::Result<()> {
        let mut code = self.dir().open(&draft.name)?;
        let sum = sha256(&mut code)?;
        self.folder.used(&code.into_std())?;
        let beside = Draft {
            dir: self.dir().try_clone()?,
            name: format!("{}.sum", draft.name),
        };
        self.dir().create(&beside.name)?;
        beside.write(sum.as_bytes())?;
        // The code comes last: a reader in between finds none and compiles. Code without its
        // checksum it would take for damaged, and throw away what was just made.
        let sha = self.name(digest, "sha256");
        self.dir().rename(&beside.name, &self.dir(), &sha)?;
        let cwasm = self.name(digest, "cwasm");
        self.dir().rename(&draft.name, &self.dir(), &cwasm)?;
        Ok(())
    }

    /// Returns why this artifact was refused a moment ago.
    pub(super) fn refusal(&self, digest: Digest, budget: &Budget) -> Option<Refusal> {
        let name = self.refusal_name(digest, budget);
        let text = self.dir().read_to_string(&name).ok()?;
        let kept: Kept = serde_json::from_str(&text).ok()?;
        if kept.until < self.clock.now() {
            let _ = self.dir().remove_file(&name);
            return None;
        }
        let (message, code) = (kept.message, kept.is_format);
        Some(match code {
            true => Refusal::format(message),
            false => Refusal::compile(message),
        })
    }

    /// Remembers a refusal, unless it is cheap to find again.
    pub(super) fn remember(&self, digest: Digest, budget: &Budget, refusal: &Refusal) {
        if matches!(refusal.code, "rejected.budget" | "rejected.digest") {
            return;
        }
        let now = self.clock.now();
        let kept = Kept {
            until: now.checked_add(REFUSAL_KEPT).unwrap_or(now),
            is_format: refusal.code == "rejected.format",
            message: refusal.message.clone(),
        };
        let text = serde_json::to_string(&kept).unwrap_or_default();
        // Not remembered is only slower.
        let _ = self.dir().write(self.refusal_name(digest, budget), text);
    }

    fn key(&self, digest: Digest) -> String {
        format!("{}-{}", digest.to_hex(), hex::encode(self.engine))
    }

    fn name(&self, digest: Digest, kind: &str) -> String {
        format!("{}.{kind}", self.key(digest))
    }

    /// A refusal under one budget says nothing about another.
    fn refusal_name(&self, digest: Digest, budget: &Budget) -> String {
        let mut sha = Sha(Sha256::new());
        budget.hash(&mut sha);
        let budget = hex::encode(&sha.0.finalize()[..8]);
        self.name(digest, &format!("{budget}.refused"))
    }
}

impl Draft {
    /// Opens the draft as a plain file, for a child to write to.
    pub(super) fn file(&self) -> std::io::Result<File> {
        Ok(self.dir.create(&self.name)?.into_std())
    }

    pub(super) fn write(&self, bytes: &[u8]) -> anyhow::Result<()> {
        Ok(self.file()?.write_all(bytes)?)
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        // Gone already where it was kept.
        let _ = self.dir.remove_file(&self.name);
    }
}

/// Names the folder of such a cache, to list or to clear it.
pub(crate) fn folder(path: &Path, bytes_max: u64, clock: Clock) -> BoundedFolder {
    BoundedFolder::new(path, bytes_max, part_of, clock)
}

fn part_of(name: &str) -> Option<Part<'_>> {
    let (key, kind) = name.split_once('.')?;
    match kind {
        "cwasm" => Some(Part::Main(key)),
        "sha256" => Some(Part::Beside(key)),
        _ if kind.ends_with(".refused") => Some(Part::Beside(key)),
        _ if kind.contains(".draft") => Some(Part::Draft),
        _ => None,
    }
}

fn is_absent<'a>(mut causes: impl Iterator<Item = &'a (dyn std::error::Error + 'static)>) -> bool {
    causes.any(|cause| {
        let cause = cause.downcast_ref::<std::io::Error>();
        cause.is_some_and(|cause| cause.kind() == ErrorKind::NotFound)
    })
}

fn sha256(file: &mut cap_std::fs::File) -> std::io::Result<String> {
    let mut sha = Sha256::new();
    let mut buffer = vec![0; 256 * 1024];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hex::encode(sha.finalize())),
            n => sha.update(&buffer[..n]),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;
    use std::sync::atomic::{AtomicU8, Ordering};

    use super::*;
    use crate::bounded::BYTES_MAX;
    use crate::clock::TestClock;
    use crate::sandbox::engine;

    struct Fixture {
        engine: Engine,
        cache: CodeCache,
        time: TestClock,
        folder: tempfile::TempDir,
    }

    const DIGEST: Digest = Digest::from_bytes([7; 32]);

    fn fixture() -> Fixture {
        let folder = tempfile::tempdir().unwrap();
        let engine = engine::on_demand().unwrap();
        let (clock, time) = Clock::test(Timestamp::UNIX_EPOCH);
        let path = folder.path().join("code");
        let cache = CodeCache::open(&path, BYTES_MAX, &engine, clock).unwrap();
        Fixture {
            engine,
            cache,
            time,
            folder,
        }
    }

    impl Fixture {
        fn fill(&self) {
            self.fill_as(&self.cache, DIGEST);
        }

        fn fill_as(&self, cache: &CodeCache, digest: Digest) -> Component {
            let bytes = wat::parse_str("(component)").unwrap();
            let code = self.engine.precompile_component(&bytes).unwrap();
            let draft = cache.draft(digest).unwrap();
            draft.write(&code).unwrap();
            cache.keep(digest, draft, &self.engine).unwrap()
        }

        fn path(&self, kind: &str) -> PathBuf {
            let folder = self.cache.folder.path();
            folder.join(self.cache.name(DIGEST, kind))
        }

        fn is_loaded(&self) -> bool {
            self.cache.load(DIGEST, &self.engine).unwrap().is_some()
        }
    }

    #[test]
    fn what_is_kept_is_loaded_and_leaves_no_draft() {
        let fixture = fixture();
        assert!(!fixture.is_loaded());
        fixture.fill();
        assert!(fixture.is_loaded());
        assert_eq!(fixture.cache.dir().entries().unwrap().count(), 2);
    }

    #[test]
    fn a_reader_never_throws_away_what_is_just_being_kept() {
        let Fixture {
            engine,
            cache,
            folder: _folder,
            ..
        } = fixture();
        let bytes = wat::parse_str("(component)").unwrap();
        let code = engine.precompile_component(&bytes).unwrap();
        let round = AtomicU8::new(0);
        let digest = |round| Digest::from_bytes([round; 32]);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                loop {
                    let now = round.load(Ordering::Acquire);
                    if now == u8::MAX {
                        return;
                    }
                    cache.load(digest(now), &engine).unwrap();
                }
            });
            for now in 0..u8::MAX {
                round.store(now, Ordering::Release);
                let draft = cache.draft(digest(now)).unwrap();
                draft.write(&code).unwrap();
                cache.keep(digest(now), draft, &engine).unwrap();
                let is_loaded = cache.load(digest(now), &engine).unwrap().is_some();
                if !is_loaded {
                    round.store(u8::MAX, Ordering::Release);
                }
                assert!(is_loaded, "round {now}");
            }
            round.store(u8::MAX, Ordering::Release);
        });
    }

    #[test]
    fn code_compiled_without_a_pool_runs_in_one() {
        let text = r#"(component
            (core module $m (func (export "run") (result i32) (i32.const 7)))
            (core instance $i (instantiate $m))
            (func (export "run") (result u32) (canon lift (core func $i "run"))))"#;
        let bytes = wat::parse_str(text).unwrap();
        let code = engine::on_demand()
            .unwrap()
            .precompile_component(&bytes)
            .unwrap();
        let pooled = engine::pooled(2).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("code");
        let cache = CodeCache::open(&path, BYTES_MAX, &pooled, Clock::default()).unwrap();
        let draft = cache.draft(DIGEST).unwrap();
        draft.write(&code).unwrap();
        cache.keep(DIGEST, draft, &pooled).unwrap();
        let component = cache.load(DIGEST, &pooled).unwrap().unwrap();
        let mut store = wasmtime::Store::new(&pooled, ());
        store.set_epoch_deadline(1_000_000);
        let linker = wasmtime::component::Linker::new(&pooled);
        let instance = linker.instantiate(&mut store, &component).unwrap();
        let run = instance
            .get_typed_func::<(), (u32,)>(&mut store, "run")
            .unwrap();
        assert_eq!(run.call(&mut store, ()).unwrap(), (7,));
    }

    #[test]
    fn a_folder_that_is_deleted_is_made_again() {
        let fixture = fixture();
        fixture.fill();
        std::fs::remove_dir_all(fixture.cache.folder.path()).unwrap();
        assert!(!fixture.is_loaded());
        fixture.fill();
        assert!(fixture.is_loaded());
    }

    #[test]
    fn damaged_code_is_never_loaded_and_makes_room() {
        let fixture = fixture();
        fixture.fill();
        let mut code = std::fs::read(fixture.path("cwasm")).unwrap();
        let middle = code.len() / 2;
        code[middle] ^= 1;
        std::fs::write(fixture.path("cwasm"), &code).unwrap();
        assert!(!fixture.is_loaded());
        assert!(!fixture.path("cwasm").exists());
        fixture.fill();
        assert!(fixture.is_loaded());
        std::fs::remove_file(fixture.path("sha256")).unwrap();
        assert!(!fixture.is_loaded());
    }

    #[cfg(unix)]
    #[test]
    fn a_link_is_never_followed_and_a_second_name_is_refused() {
        let fixture = fixture();
        fixture.fill();
        let aside = fixture.folder.path().join("aside");
        std::fs::rename(fixture.path("cwasm"), &aside).unwrap();
        std::os::unix::fs::symlink(&aside, fixture.path("cwasm")).unwrap();
        assert!(!fixture.is_loaded());
        fixture.fill();
        std::fs::hard_link(fixture.path("cwasm"), fixture.folder.path().join("twin")).unwrap();
        assert!(!fixture.is_loaded());
    }

    #[cfg(unix)]
    #[test]
    fn a_folder_that_others_can_write_to_is_refused() {
        use std::os::unix::fs::PermissionsExt as _;
        let fixture = fixture();
        fixture.fill();
        let mode = |bits| std::fs::Permissions::from_mode(bits);
        let path = fixture.cache.folder.path();
        std::fs::set_permissions(path, mode(0o777)).unwrap();
        let open = || CodeCache::open(path, BYTES_MAX, &fixture.engine, Clock::default());
        assert!(open().is_err());
        std::fs::set_permissions(path, mode(0o755)).unwrap();
        assert!(open().is_ok());
        let found = std::fs::metadata(path).unwrap();
        assert_eq!(found.permissions().mode() & 0o777, 0o700);
    }

    /// A newer engine has other names for its code, so it neither loads nor spoils that of an older
    /// one; which goes when it is used no more.
    #[test]
    fn code_of_another_engine_is_made_anew_beside_it() {
        let fixture = fixture();
        fixture.fill();
        let mut config = wasmtime::Config::new();
        config.consume_fuel(true);
        let newer = Engine::new(&config).unwrap();
        let path = fixture.cache.folder.path();
        let cache = CodeCache::open(path, BYTES_MAX, &newer, Clock::default()).unwrap();
        assert!(cache.load(DIGEST, &newer).unwrap().is_none());
        let code = newer
            .precompile_component(&wat::parse_str("(component)").unwrap())
            .unwrap();
        let draft = cache.draft(DIGEST).unwrap();
        draft.write(&code).unwrap();
        cache.keep(DIGEST, draft, &newer).unwrap();
        assert!(cache.load(DIGEST, &newer).unwrap().is_some());
        assert!(fixture.is_loaded());
        let listed = cache.folder.list().unwrap();
        assert_eq!(
            listed.iter().map(|it| it.digest).collect::<Vec<_>>(),
            [DIGEST; 2]
        );
    }

    #[test]
    fn code_that_was_used_longest_ago_makes_room() {
        let fixture = fixture();
        let [old, used, new] = [1, 2, 3].map(|nth| Digest::from_bytes([nth; 32]));
        fixture.fill_as(&fixture.cache, old);
        let size = fixture.cache.folder.list().unwrap()[0].size;
        let (clock, time) = Clock::test(Timestamp::UNIX_EPOCH);
        let path = fixture.cache.folder.path();
        let cache = CodeCache::open(path, size * 5 / 2, &fixture.engine, clock).unwrap();
        for digest in [used, old] {
            fixture.fill_as(&cache, digest);
            time.pass(Duration::from_secs(1));
        }
        let load = |digest| cache.load(digest, &fixture.engine).unwrap();
        assert!(load(used).is_some());
        time.pass(Duration::from_secs(1));
        fixture.fill_as(&cache, new);
        assert!(load(old).is_none());
        // The new one was kept last and is used first.
        cache.touch(new);
        time.pass(Duration::from_secs(1));
        cache.touch(used);
        let listed = cache.folder.list().unwrap();
        assert_eq!(
            listed.iter().map(|it| it.digest).collect::<Vec<_>>(),
            [used, new]
        );
        assert_eq!(std::fs::read_dir(path).unwrap().count(), 4);
    }

    /// Whoever compiled gets the code, even if others have taken it away before anybody could read it.
    #[test]
    fn code_that_goes_at_once_is_usable_where_it_was_made_and_absent_elsewhere() {
        let fixture = fixture();
        let path = fixture.cache.folder.path();
        let (clock, _) = Clock::test(Timestamp::UNIX_EPOCH);
        let tiny = CodeCache::open(path, 0, &fixture.engine, clock).unwrap();
        let component = fixture.fill_as(&tiny, DIGEST);
        assert!(fixture.is_loaded());
        let other = Digest::from_bytes([8; 32]);
        fixture.fill_as(&tiny, other);
        assert!(!fixture.is_loaded());
        assert_eq!(fixture.cache.folder.list().unwrap().len(), 1);
        let mut store = wasmtime::Store::new(&fixture.engine, ());
        store.set_epoch_deadline(1_000_000);
        let linker = wasmtime::component::Linker::new(&fixture.engine);
        linker.instantiate(&mut store, &component).unwrap();
    }

    /// Two processes that push each other's code out never see anything but what they want or none.
    #[test]
    fn two_that_push_each_other_out_find_code_or_none() {
        let fixture = fixture();
        let path = fixture.cache.folder.path();
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    let (engine, clock) = (&fixture.engine, Clock::default());
                    let cache = CodeCache::open(path, 1, engine, clock).unwrap();
                    for round in 0..200 {
                        let digest = Digest::from_bytes([round % 3; 32]);
                        if cache.load(digest, engine).unwrap().is_none() {
                            fixture.fill_as(&cache, digest);
                        }
                    }
                });
            }
        });
    }

    #[test]
    fn what_killed_processes_left_is_swept_at_the_next_start() {
        let fixture = fixture();
        fixture.fill();
        let left = ["0a.draft", "0a.draft.sum"].map(|kind| fixture.path(kind));
        let refused = fixture.cache.key(Digest::from_bytes([9; 32])) + ".0a.refused";
        let refused = fixture.cache.folder.path().join(refused);
        for path in left.iter().chain([&refused]) {
            std::fs::write(path, "half").unwrap();
        }
        let path = fixture.cache.folder.path();
        let open = |clock| CodeCache::open(path, BYTES_MAX, &fixture.engine, clock).unwrap();
        open(Clock::default());
        assert!(left.iter().all(|path| path.exists()));
        let later = Clock::default().now() + jiff::SignedDuration::from_mins(61);
        open(Clock::test(later).0);
        assert!(left.iter().chain([&refused]).all(|path| !path.exists()));
        assert!(fixture.is_loaded());
    }

    #[test]
    fn a_refusal_stands_for_a_while_and_for_its_budget_only() {
        let fixture = fixture();
        let budget = Budget::default();
        let refusal = Refusal::compile("too dear");
        fixture.cache.remember(DIGEST, &budget, &refusal);
        assert_eq!(
            fixture.cache.refusal(DIGEST, &budget),
            Some(refusal.clone())
        );
        let larger = Budget {
            cpu_seconds: 99,
            ..Budget::default()
        };
        assert_eq!(fixture.cache.refusal(DIGEST, &larger), None);
        fixture.time.pass(REFUSAL_KEPT + Duration::from_secs(1));
        assert_eq!(fixture.cache.refusal(DIGEST, &budget), None);
    }
}
