//! Artifacts: compiled components, known by the digest of their bytes.
//!
//! An artifact *is* its sha256. Where its bytes lie is told elsewhere (`storage`); nobody resolves
//! a name or a tag to bytes without this digest.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{Digest as _, Sha256};

/// The sha256 of some bytes, written `sha256:` and 64 hex digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest([u8; 32]);

impl Digest {
    /// Computes the digest of bytes that are all in memory.
    ///
    /// ```
    /// # use waft::model::artifact::Digest;
    /// let digest = Digest::of(b"");
    /// assert!(digest.to_string().starts_with("sha256:e3b0c442"));
    /// assert_eq!(digest.to_string().parse(), Ok(digest));
    /// ```
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }

    /// Wraps the 32 bytes that a streaming hasher ended with.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Returns the raw 32 bytes, as the database keeps them.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// Returns the 64 hex digits without the `sha256:` in front, as keys and file names use them.
    #[must_use]
    pub fn to_hex(&self) -> String {
        hex::encode(self.0)
    }

    /// Returns the first twelve hex digits, enough for a human to tell two artifacts apart.
    #[must_use]
    pub fn to_short(&self) -> String {
        hex::encode(&self.0[..6])
    }
}

impl Digest {
    /// Tells whether a key under a root may be that of this artifact.
    ///
    /// What agents keep in a storage for themselves, such as the results of others, is none: a run that
    /// names it would tell by how it fails what lies there.
    ///
    /// ```
    /// # use waft::model::artifact::Digest;
    /// let digest = Digest::of(b"");
    /// assert!(digest.may_lie_at("team/flow.wasm"));
    /// assert!(!digest.may_lie_at("team/task-cache.key"));
    /// ```
    #[must_use]
    pub fn may_lie_at(&self, key: &str) -> bool {
        let is_hex = |text: &str, length| {
            text.len() == length && text.bytes().all(|b| b.is_ascii_hexdigit())
        };
        let first = |text: &str, length| text.get(..length).is_some_and(|it| is_hex(it, length));
        let parts: Vec<_> = key.split('/').collect();
        match parts.as_slice() {
            [.., "segments", name] => !(first(name, 16) && name.get(16..17) == Some("-")),
            [.., "tasks", two, name] => !(is_hex(two, 2) && first(name, 64)),
            [.., "sha256", two, name] if is_hex(two, 2) && first(name, 64) => {
                *name == self.to_hex()
            }
            [.., name] => !name.starts_with("task-cache.key") && *name != "probe",
            [] => false,
        }
    }
}

/// Says why a text is no digest.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a digest: expected `sha256:` and 64 hex digits")]
pub struct NoDigest(String);

impl FromStr for Digest {
    type Err = NoDigest;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let no = || NoDigest(text.chars().take(80).collect());
        let digits = text.strip_prefix("sha256:").ok_or_else(no)?;
        let mut bytes = [0; 32];
        hex::decode_to_slice(digits, &mut bytes).map_err(|_| no())?;
        Ok(Self(bytes))
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", self.to_hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Digest({})", self.to_short())
    }
}

impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}

impl utoipa::PartialSchema for Digest {
    fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::schema::Schema> {
        utoipa::openapi::ObjectBuilder::new()
            .schema_type(utoipa::openapi::schema::Type::String)
            .pattern(Some("^sha256:[0-9a-f]{64}$"))
            .into()
    }
}

impl utoipa::ToSchema for Digest {}
