//! What agents and the server say of segments of results, which the server never sees.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::model::id::SessionId;

/// A segment of results.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Segment {
    /// The root, as references name it.
    pub root: String,
    /// Its key under the root.
    pub key: String,
}

/// What became of segments that an agent was asked to delete.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Deletions {
    /// Its session.
    pub session_id: SessionId,
    /// Those that are gone.
    pub deleted: Vec<Segment>,
    /// Those that stay, since nothing is ever deleted where they lie; they are not asked for again.
    #[serde(default)]
    pub kept: Vec<KeptSegment>,
}

/// A segment that cannot be deleted.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct KeptSegment {
    /// The segment.
    pub segment: Segment,
    /// Why it stays, in words.
    pub why: String,
}
