//! What the tests build on. Nothing here asserts anything about the product by itself.

pub(crate) mod faults;
pub(crate) mod guests;
pub(crate) mod local;
pub(crate) mod postgres;
pub(crate) mod program;
pub(crate) mod proxy;
pub(crate) mod servers;
pub(crate) mod transcript;
pub(crate) mod witness;
pub(crate) mod world;

use std::path::Path;

/// Returns the root of the repository.
pub(crate) fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("the package `waft` lies in a folder of the repository")
}
