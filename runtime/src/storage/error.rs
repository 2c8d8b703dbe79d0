//! What can go wrong with a storage, one variant for each thing that a caller does differently.

use std::error::Error;
use std::io;

/// Says why something could not be kept or had.
///
/// Every text names the root and the key; none repeats its source.
#[derive(Debug, thiserror::Error)]
pub enum StorageError {
    /// It is not there. A fetch hands the run back.
    #[error("`{key}` is not in `{root}`")]
    NotFound {
        /// The storage root.
        root: String,
        /// The object.
        key: String,
    },
    /// The storage does not let us. A fetch hands the run back.
    #[error("`{root}` refuses access to `{key}`")]
    Denied {
        /// The storage root.
        root: String,
        /// The object.
        key: String,
        /// The system's words.
        source: Box<dyn Error + Send + Sync>,
    },
    /// It is there, but is not what it should be.
    #[error("`{key}` in `{root}` is damaged: expected {wanted}, found {got}")]
    Damaged {
        /// The storage root.
        root: String,
        /// The object.
        key: String,
        /// The digest or size that was expected.
        wanted: String,
        /// The digest or size that was found.
        got: String,
    },
    /// Nothing more fits. What was half written was taken away again.
    #[error("cannot write `{key}` to `{root}`: the disk is full")]
    Full {
        /// The storage root.
        root: String,
        /// The object.
        key: String,
        /// The system's words.
        source: Box<dyn Error + Send + Sync>,
    },
    /// A key that waft never makes, or one that leads out of the root through a link.
    #[error("`{key}` may not be used in `{root}`: {why}")]
    Refused {
        /// The storage root.
        root: String,
        /// The key.
        key: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// Anything else; a second try may help.
    #[error("cannot read or write `{key}` in `{root}`")]
    Other {
        /// The storage root.
        root: String,
        /// The object.
        key: String,
        /// The system's words.
        source: Box<dyn Error + Send + Sync>,
    },
}

impl StorageError {
    /// Tells what an error means, by the system's error at its bottom.
    pub(super) fn of(
        root: &super::Root,
        key: &str,
        error: impl Into<Box<dyn Error + Send + Sync>>,
    ) -> Self {
        let source = error.into();
        let (root, key) = (root.to_string(), key.to_owned());
        match bottom(source.as_ref()) {
            Some(io::ErrorKind::NotFound) => Self::NotFound { root, key },
            Some(io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem) => {
                Self::Denied { root, key, source }
            }
            Some(io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) => {
                Self::Full { root, key, source }
            }
            _ => Self::Other { root, key, source },
        }
    }

    /// Returns what mends it, where there is something to say.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::NotFound { root, key } if key.starts_with("sha256/") => Some(format!(
                "register the same file again: waft register FILE --storage {root}"
            )),
            Self::Damaged { root, key, .. } if key.starts_with("sha256/") => Some(format!(
                "put the right bytes back: waft register FILE --storage {root}"
            )),
            Self::Denied { root, .. } | Self::Full { root, .. } => {
                let folder = root.strip_prefix("file://")?;
                Some(match self {
                    Self::Full { .. } => format!("see what fills it: df -h '{folder}'"),
                    _ => format!("see whose it is: ls -ld '{folder}'"),
                })
            }
            _ => None,
        }
    }
}

/// Finds the system's error in a chain of errors.
fn bottom(error: &(dyn Error + 'static)) -> Option<io::ErrorKind> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(error) = error.downcast_ref::<io::Error>()
            && (error.raw_os_error().is_some() || error.get_ref().is_none())
        {
            return Some(error.kind());
        }
        next = error.source();
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_error_at_the_bottom_decides() {
        let root: super::super::Root = "file:///a".parse().unwrap();
        let full = object_store::Error::Generic {
            store: "x",
            source: Box::new(io::Error::from_raw_os_error(28)),
        };
        let error = StorageError::of(&root, "k", full);
        assert!(matches!(error, StorageError::Full { .. }), "{error:?}");
        assert_eq!(
            error.to_string(),
            "cannot write `k` to `file:///a`: the disk is full"
        );
        assert_eq!(error.hint().unwrap(), "see what fills it: df -h '/a'");
        let denied = StorageError::of(&root, "k", io::Error::from_raw_os_error(13));
        assert!(matches!(denied, StorageError::Denied { .. }), "{denied:?}");
    }
}
