//! What agents, the command line and the server say of segments of results, which the server never sees.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::model::artifact::Digest;
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

/// What somebody found under a root, to learn what of it nobody needs.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Sighted {
    /// The root of the segments, as references name it.
    pub root: String,
    /// Keys of segments.
    #[serde(default)]
    pub segments: Vec<String>,
    /// Artifacts.
    #[serde(default)]
    pub artifacts: Vec<Digest>,
}

/// What the server knows nothing of: no version has such an artifact, no report has named such a segment, or
/// not for so long that it was forgotten.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct Orphans {
    /// Keys of segments.
    pub segments: Vec<String>,
    /// Artifacts.
    pub artifacts: Vec<Digest>,
}
