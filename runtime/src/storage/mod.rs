//! Where artifacts and results lie.
//!
//! A [`Root`] names a place, [`Storage`] puts artifacts there and fetches them into the
//! [`ArtifactCache`], [`Results`] keeps what tasks return, [`TaskCache`] finds it again in a later
//! run. Keys come from digests and from this room, never from a text that a user or a server wrote.
//! Called by the runner, the agent and the command line; knows no server and no sandbox.

mod backend;
mod cache;
mod credentials;
mod door;
mod error;
mod folder;
pub mod key;
mod oci;
mod reach;
mod remote;
mod root;
mod segment;
mod task_cache;
mod wire;

pub use backend::{Before, Found, Put, Storage};
pub use cache::ArtifactCache;
pub use error::StorageError;
pub use remote::connect;
pub use root::{BadRoot, Kind, Root};
pub use segment::Results;
pub use task_cache::{CacheBy, CacheKey, TaskCache};
pub use wire::Meter;
