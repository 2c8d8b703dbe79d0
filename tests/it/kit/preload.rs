//! What tests put between a process and its C library: a wall clock that they set, and a disk of which they
//! know what is safe on it.
//!
//! The library is `preload/shim.rs`, which the compiler that made these tests makes as well. Time that is
//! measured stays as it is; only what the clock on the wall says is changed.

use std::io::Write as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use jiff::SignedDuration;
use tempfile::NamedTempFile;

use super::repository;

/// The hand of one process's wall clock.
pub(crate) struct Hand(NamedTempFile);

impl Hand {
    /// Gives a process that is not started yet a clock of its own; it is right.
    pub(crate) fn on(command: &mut Command) -> Self {
        let mut file = NamedTempFile::new().unwrap();
        file.write_all(&0_i64.to_ne_bytes()).unwrap();
        command.env("WAFT_TEST_CLOCK", file.path());
        load(command);
        Self(file)
    }

    /// Sets the clock ahead of the right time, or behind it.
    pub(crate) fn set(&self, ahead: SignedDuration) {
        let seconds = ahead.as_secs().to_ne_bytes();
        self.0.as_file().write_all_at(&seconds, 0).unwrap();
    }
}

/// Has a process that is not started yet keep in a folder what is safe of its database on the disk.
pub(crate) fn keep_synced(command: &mut Command, folder: &Path) {
    command.env("WAFT_TEST_DISK", folder);
    load(command);
}

fn load(command: &mut Command) {
    command.env("LD_PRELOAD", shim());
}

/// Makes the library, once in a process.
fn shim() -> &'static Path {
    static MADE: OnceLock<PathBuf> = OnceLock::new();
    MADE.get_or_init(|| {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
        let source = repository().join("tests/it/kit/preload/shim.rs");
        let new = folder.join(format!("shim-{}.so", std::process::id()));
        let made = Command::new(std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()))
            .args(["--edition=2024", "--crate-type=cdylib", "-O", "-o"])
            .args([&new, &source])
            .current_dir(repository())
            .output()
            .unwrap();
        assert!(made.status.success(), "{made:?}");
        // Whoever makes it at the same time makes the same.
        let shim = folder.join("shim.so");
        std::fs::rename(&new, &shim).unwrap();
        shim
    })
}
