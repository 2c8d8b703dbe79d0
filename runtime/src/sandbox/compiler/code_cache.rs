//! Compiled code, kept by what it was compiled from and for.
//!
//! Machine code is trusted when it is loaded, so only code that this program wrote is: the folder
//! belongs to this user alone, every file is checked against the sha256 beside it, and a link is
//! never followed. What does not fit is thrown away and compiled again, silently but for a line in
//! the agent's log. Refusals are kept here too, so that ten thousand runs do not start a bomb each.

use std::fs::File;
use std::hash::{Hash, Hasher};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use cap_std::fs::Dir;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use wasmtime::Engine;
use wasmtime::component::Component;

use super::{Budget, Failure, Refusal};
use crate::clock::Clock;
use crate::model::artifact::Digest;
use crate::sandbox::{engine as engines, grant};

/// How long a refusal stands: long enough to stop a storm, short enough for a busy machine that was
/// too slow once.
const REFUSAL_KEPT: Duration = Duration::from_secs(10 * 60);
/// Drafts older than this were left by a process that died.
const DRAFT_KEPT: Duration = Duration::from_secs(24 * 60 * 60);

/// The folder of compiled code.
pub(super) struct CodeCache {
    dir: Dir,
    path: PathBuf,
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
    pub(super) fn open(path: &Path, engine: &Engine, clock: Clock) -> anyhow::Result<Self> {
        let dir = grant::open_own_dir(path)
            .with_context(|| format!("opening the folder of compiled code `{}`", path.display()))?;
        let mut sha = Sha(Sha256::new());
        engine.precompile_compatibility_hash().hash(&mut sha);
        env!("CARGO_PKG_VERSION").hash(&mut sha);
        let cache = Self {
            dir,
            path: path.to_owned(),
            engine: sha.0.finalize().into(),
            clock,
        };
        cache.sweep();
        Ok(cache)
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Loads the code of an artifact; nothing if there is none that can be trusted.
    ///
    /// Fails for code that can be trusted and that the engine does not take: it would not take it
    /// either if it were compiled again, so it stays where it is.
    pub(super) fn load(
        &self,
        digest: Digest,
        engine: &Engine,
    ) -> Result<Option<Component>, Failure> {
        let name = self.name(digest, "cwasm");
        // Absent is the usual case.
        if self.dir.symlink_metadata(&name).is_err() {
            return Ok(None);
        }
        if let Err(why) = self.check(digest) {
            tracing::warn!("compiled code of {digest} is made anew: {why:#}");
            for kind in ["cwasm", "sha256"] {
                let _ = self.dir.remove_file(self.name(digest, kind));
            }
            return Ok(None);
        }
        // SAFETY: the bytes were written by `keep` of this program for this very engine (the
        // name holds the hash of version, settings and CPU), lie in a folder that only this
        // user can write to, are no link, and have the sha256 that was written with them.
        #[expect(unsafe_code, reason = "loading checked code is what this file is for")]
        let component = unsafe { Component::deserialize_file(engine, self.path.join(&name)) };
        component.map(Some).map_err(|error| {
            let is_ours = error
                .chain()
                .any(<dyn std::error::Error>::is::<std::io::Error>);
            let error = engines::trouble(&error);
            match is_ours {
                true => Failure::Host(error.context("loading compiled code")),
                false => {
                    Refusal::budget(format!("it needs more than this agent has: {error:#}")).into()
                }
            }
        })
    }

    fn check(&self, digest: Digest) -> anyhow::Result<()> {
        let name = self.name(digest, "cwasm");
        grant::check_own_file(&self.dir, &name)?;
        let expected = self.dir.read_to_string(self.name(digest, "sha256"))?;
        let found = sha256(&mut self.dir.open(&name)?)?;
        anyhow::ensure!(expected == found, "its checksum does not fit");
        Ok(())
    }

    /// Opens a file to write code to.
    pub(super) fn draft(&self, digest: Digest) -> anyhow::Result<Draft> {
        let random: u64 = rand::random();
        let name = self.name(digest, &format!("{random:016x}.draft"));
        let dir = self.dir.try_clone()?;
        dir.create(&name)?;
        Ok(Draft { dir, name })
    }

    /// Takes a draft that is complete into the cache.
    pub(super) fn keep(&self, digest: Digest, draft: Draft) -> anyhow::Result<()> {
        let sum = sha256(&mut self.dir.open(&draft.name)?)?;
        let beside = Draft {
            dir: self.dir.try_clone()?,
            name: format!("{}.sum", draft.name),
        };
        self.dir.create(&beside.name)?;
        beside.write(sum.as_bytes())?;
        // The code comes last: a reader in between finds none and compiles. Code without its
        // checksum it would take for damaged, and throw away what was just made.
        let sha = self.name(digest, "sha256");
        self.dir.rename(&beside.name, &self.dir, &sha)?;
        let cwasm = self.name(digest, "cwasm");
        self.dir.rename(&draft.name, &self.dir, &cwasm)?;
        Ok(())
    }

    /// Returns why this artifact was refused a moment ago.
    pub(super) fn refusal(&self, digest: Digest, budget: &Budget) -> Option<Refusal> {
        let name = self.refusal_name(digest, budget);
        let text = self.dir.read_to_string(&name).ok()?;
        let kept: Kept = serde_json::from_str(&text).ok()?;
        if kept.until < self.clock.now() {
            let _ = self.dir.remove_file(&name);
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
        let _ = self.dir.write(self.refusal_name(digest, budget), text);
    }

    fn name(&self, digest: Digest, kind: &str) -> String {
        let mut sha = Sha256::new();
        sha.update(digest.as_bytes());
        sha.update(self.engine);
        format!("{}.{kind}", hex::encode(sha.finalize()))
    }

    /// A refusal under one budget says nothing about another.
    fn refusal_name(&self, digest: Digest, budget: &Budget) -> String {
        let mut sha = Sha(Sha256::new());
        budget.hash(&mut sha);
        let budget = hex::encode(&sha.0.finalize()[..8]);
        self.name(digest, &format!("{budget}.refused"))
    }

    fn sweep(&self) {
        let Ok(entries) = self.dir.entries() else {
            return;
        };
        for entry in entries.flatten() {
            let name = entry.file_name();
            let is_draft = name.to_str().is_some_and(|name| name.contains(".draft"));
            if is_draft && self.is_old(&entry) {
                let _ = self.dir.remove_file(&name);
            }
        }
    }

    fn is_old(&self, entry: &cap_std::fs::DirEntry) -> bool {
        let modified = entry.metadata().and_then(|found| found.modified());
        let Ok(Ok(modified)) = modified.map(|time| Timestamp::try_from(time.into_std())) else {
            return false;
        };
        let age = self.clock.now().duration_since(modified);
        age > jiff::SignedDuration::try_from(DRAFT_KEPT).unwrap_or(jiff::SignedDuration::MAX)
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
    use std::sync::atomic::{AtomicU8, Ordering};

    use super::*;
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
        let cache = CodeCache::open(&path, &engine, clock).unwrap();
        Fixture {
            engine,
            cache,
            time,
            folder,
        }
    }

    impl Fixture {
        fn fill(&self) {
            let bytes = wat::parse_str("(component)").unwrap();
            let draft = self.cache.draft(DIGEST).unwrap();
            draft
                .write(&self.engine.precompile_component(&bytes).unwrap())
                .unwrap();
            self.cache.keep(DIGEST, draft).unwrap();
        }

        fn path(&self, kind: &str) -> PathBuf {
            self.cache.path().join(self.cache.name(DIGEST, kind))
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
        assert_eq!(fixture.cache.dir.entries().unwrap().count(), 2);
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
                cache.keep(digest(now), draft).unwrap();
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
        let cache =
            CodeCache::open(&folder.path().join("code"), &pooled, Clock::default()).unwrap();
        let draft = cache.draft(DIGEST).unwrap();
        draft.write(&code).unwrap();
        cache.keep(DIGEST, draft).unwrap();
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
        std::fs::set_permissions(fixture.cache.path(), mode(0o777)).unwrap();
        let open = || CodeCache::open(fixture.cache.path(), &fixture.engine, Clock::default());
        assert!(open().is_err());
        std::fs::set_permissions(fixture.cache.path(), mode(0o755)).unwrap();
        assert!(open().is_ok());
        let found = std::fs::metadata(fixture.cache.path()).unwrap();
        assert_eq!(found.permissions().mode() & 0o777, 0o700);
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
