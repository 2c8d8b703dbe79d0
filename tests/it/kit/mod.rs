//! What the tests build on. Nothing here asserts anything about the product by itself.

pub(crate) mod disk;
pub(crate) mod faults;
pub(crate) mod guests;
pub(crate) mod judge;
pub(crate) mod local;
pub(crate) mod postgres;
pub(crate) mod preload;
pub(crate) mod program;
pub(crate) mod proxy;
pub(crate) mod servers;
pub(crate) mod terminal;
pub(crate) mod transcript;
pub(crate) mod wait;
pub(crate) mod wal;
pub(crate) mod witness;
pub(crate) mod world;

use std::path::Path;

use tempfile::TempDir;

/// Returns the root of the repository.
pub(crate) fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("the package `waft` lies in a folder of the repository")
}

/// Makes a folder in memory where the system has one, for databases that need not outlive a loss of power.
pub(crate) fn memory_folder() -> TempDir {
    tempfile::tempdir_in("/dev/shm")
        .or_else(|_| tempfile::tempdir())
        .unwrap()
}
