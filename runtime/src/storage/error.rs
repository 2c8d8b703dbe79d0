//! What can go wrong with a storage, one variant for each thing that a caller does differently.

mod words;

pub(super) use self::words::{few_words, said};

use std::error::Error;
use std::io;

use super::credentials::{Nobody, Unusable};
use super::{Kind, Root};

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
    #[error("`{root}` refuses access{}", match key.as_str() { WHOLE => String::new(), key => format!(" to `{key}`") })]
    Denied {
        /// The storage root.
        root: String,
        /// The object.
        key: String,
        /// The system's words.
        source: Box<dyn Error + Send + Sync>,
    },
    /// The storage does not say whether it is there: whoever may not list a bucket is refused what is absent
    /// just as what may not be read. A fetch hands the run back, and the root goes on.
    #[error("`{key}` is not in `{root}`, or may not be read")]
    Withheld {
        /// The storage root.
        root: String,
        /// The object.
        key: String,
        /// The storage's words.
        source: Box<dyn Error + Send + Sync>,
    },
    /// The folder, the bucket, the container or the repository that the root names is not there.
    #[error("there is no {place}, which `{root}` names")]
    NoPlace {
        /// The storage root.
        root: String,
        /// What is missing, such as a bucket and its name.
        place: String,
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
    /// It is damaged, and the storage goes on with what it has, as registries do.
    #[error("`{key}` in `{root}` is damaged and stays so")]
    Kept {
        /// The storage root.
        root: String,
        /// The object.
        key: String,
        /// What the storage did instead of taking the right bytes.
        source: Box<dyn Error + Send + Sync>,
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
    /// The storage answers, and takes everything but this.
    #[error("`{root}` does not take `{key}`")]
    NotTaken {
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
    /// Such a storage cannot do that at all.
    #[error("`{root}` is {why}")]
    Unable {
        /// The storage root.
        root: String,
        /// What it is that it cannot.
        why: &'static str,
    },
    /// It has more bytes than are taken.
    #[error("`{key}` in `{root}` has {size} bytes; at most {size_max} are taken")]
    TooLarge {
        /// The storage root.
        root: String,
        /// The object.
        key: String,
        /// Its bytes.
        size: u64,
        /// The most that are taken.
        size_max: u64,
    },
    /// Anything else; a second try may help.
    #[error("{}", match key.as_str() { WHOLE => format!("cannot reach `{root}`"), key => format!("cannot read or write `{key}` in `{root}`") })]
    Other {
        /// The storage root.
        root: String,
        /// The object.
        key: String,
        /// The system's words.
        source: Box<dyn Error + Send + Sync>,
    },
}

/// Codes by which S3, GCS and Azure refuse whoever asks.
const REFUSALS: [&str; 8] = [
    "AccessDenied",
    "InvalidAccessKeyId",
    "SignatureDoesNotMatch",
    "ExpiredToken",
    "InvalidToken",
    "AuthenticationFailed",
    "AuthorizationFailure",
    "AuthorizationPermissionMismatch",
];

/// The key in an error that is about the storage as a whole.
pub(super) const WHOLE: &str = ".";

impl StorageError {
    /// Tells what an error means, by the system's error at its bottom.
    pub(super) fn of(
        root: &Root,
        key: &str,
        error: impl Into<Box<dyn Error + Send + Sync>>,
    ) -> Self {
        let source = match told_before(error.into()) {
            Ok(told) => return told,
            Err(source) => source,
        };
        let is_of_store = source.is::<object_store::Error>();
        let told = if is_of_store {
            source.to_string()
        } else {
            String::new()
        };
        // Of a list its client says only that it failed.
        let meaning = match code(&told) {
            Some("NoSuchBucket" | "ContainerNotFound") => return Self::no_place(root),
            Some(code) if REFUSALS.contains(&code) => Some(io::ErrorKind::PermissionDenied),
            _ => meaning(source.as_ref()),
        };
        let (root, key) = (root.to_string(), key.to_owned());
        // Its text repeats what it comes from, and may hold a signed URL or a page of XML.
        let source = match source.downcast::<object_store::Error>() {
            Ok(error) => few_words(error.as_ref()).into(),
            Err(source) => source,
        };
        match meaning {
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

    /// As [`StorageError::of`], for what was to be read.
    pub(super) fn of_read(root: &Root, key: &str, error: object_store::Error) -> Self {
        // Azure and registries know what is absent from what may not be read.
        let is_unsure = matches!(root.kind(), Kind::S3 | Kind::Gcs)
            && code(&error.to_string()) == Some("AccessDenied");
        match Self::of(root, key, error) {
            Self::Denied { root, key, source } if is_unsure => Self::Withheld { root, key, source },
            other => other,
        }
    }

    /// As [`StorageError::of`], for what was to be written: only a place can be missing then.
    pub(super) fn of_write(root: &Root, key: &str, error: object_store::Error) -> Self {
        match Self::of(root, key, error) {
            Self::NotFound { .. } => Self::no_place(root),
            other => other,
        }
    }

    pub(super) fn no_place(root: &Root) -> Self {
        let (word, name) = match root.kind() {
            Kind::Azure => ("container", root.place()),
            Kind::Oci => ("repository", root.path()),
            Kind::Local => ("folder", root.path()),
            _ => ("bucket", root.place()),
        };
        Self::NoPlace {
            root: root.to_string(),
            place: format!("{word} `{name}`"),
        }
    }

    /// Makes the error once more, for each of several who wait for one thing.
    pub(super) fn twin(&self) -> Self {
        let again = |source: &(dyn Error + Send + Sync)| source.to_string().into();
        match self {
            Self::NotFound { root, key } => Self::NotFound {
                root: root.clone(),
                key: key.clone(),
            },
            Self::Denied { root, key, source } => Self::Denied {
                root: root.clone(),
                key: key.clone(),
                source: again(source.as_ref()),
            },
            Self::Withheld { root, key, source } => Self::Withheld {
                root: root.clone(),
                key: key.clone(),
                source: again(source.as_ref()),
            },
            Self::NoPlace { root, place } => Self::NoPlace {
                root: root.clone(),
                place: place.clone(),
            },
            Self::Full { root, key, source } => Self::Full {
                root: root.clone(),
                key: key.clone(),
                source: again(source.as_ref()),
            },
            Self::NotTaken { root, key, source } => Self::NotTaken {
                root: root.clone(),
                key: key.clone(),
                source: again(source.as_ref()),
            },
            Self::Other { root, key, source } => Self::Other {
                root: root.clone(),
                key: key.clone(),
                source: again(source.as_ref()),
            },
            other => Self::Other {
                root: String::new(),
                key: String::new(),
                source: other.to_string().into(),
            },
        }
    }

    /// Returns the root that fails as a whole, for whoever asks it for whatever: it is away, lets us not in, or is
    /// full. No run is to blame for that, and the next would fare no better.
    #[must_use]
    pub fn failed_place(&self) -> Option<&str> {
        match self {
            Self::Denied { root, .. }
            | Self::NoPlace { root, .. }
            | Self::Full { root, .. }
            | Self::Other { root, .. } => Some(root),
            _ => None,
        }
    }

    /// Returns what mends it, where there is something to say.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::NotFound { root, key } if key.starts_with("sha256/") => Some(format!(
                "register the same file again: waft register FILE --storage {root}"
            )),
            Self::Withheld { .. } => Some(
                "who may not list the bucket is not told which: allow s3:GetObject and s3:ListBucket, or \
                 storage.objects.get and storage.objects.list"
                    .to_owned(),
            ),
            Self::NoPlace { root, .. } => maker(root),
            Self::Damaged { root, key, .. } if key.starts_with("sha256/") => Some(format!(
                "put the right bytes back: waft register FILE --storage {root}"
            )),
            // Repositories of a registry share their blobs.
            Self::Kept { root, .. } if root.starts_with("oci://") => Some(
                "its operator has to take that blob out of its files; register it again then, or now outside of this \
                 registry: waft register FILE --storage ROOT"
                    .to_owned(),
            ),
            Self::Kept { .. } => {
                Some("register it in another storage: waft register FILE --storage ROOT".to_owned())
            }
            Self::Denied { root, .. } | Self::Full { root, .. } => {
                let Some(folder) = root.strip_prefix("file://") else {
                    return Some(opener(root)?.to_owned());
                };
                Some(match self {
                    Self::Full { .. } => format!("see what fills it: df -h '{folder}'"),
                    _ => format!("see whose it is: ls -ld '{folder}'"),
                })
            }
            _ => None,
        }
    }
}

/// Says where the credentials of a storage come from.
fn opener(root: &str) -> Option<&'static str> {
    Some(match root.split_once("://")?.0 {
        "s3" => {
            "give AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a profile in ~/.aws/credentials \
             (AWS_PROFILE), or a role that may read and write the bucket"
        }
        "gs" => "give GOOGLE_APPLICATION_CREDENTIALS, the file of a service account",
        "az" => {
            "give AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY, or \
             AZURE_STORAGE_CONNECTION_STRING"
        }
        "oci" => "log in to the registry: docker login, podman login or oras login",
        "https" | "http" => {
            "put login and password into ~/.netrc, or a bearer token into a file that \
             `storage.http.tokens` names"
        }
        _ => return None,
    })
}

/// Says how a place is made.
fn maker(root: &str) -> Option<String> {
    let (scheme, rest) = root.split_once("://")?;
    let (place, path) = rest.split_once('/').unwrap_or((rest, ""));
    Some(match scheme {
        "s3" => format!("make it, or name another: aws s3 mb s3://{place}"),
        "gs" => format!("make it, or name another: gcloud storage buckets create gs://{place}"),
        "az" => format!("make it, or name another: az storage container create --name {place}"),
        // The first that is put there makes it.
        "file" => return None,
        _ => format!("make the repository `{path}` in `{place}`, or name another"),
    })
}

/// Finds the code of an answer of S3, GCS or Azure in the text of an error; only answers with a body
/// have one.
pub(super) fn code(text: &str) -> Option<&str> {
    let (_, rest) = text.split_once("<Code>")?;
    Some(rest.split_once("</Code>")?.0)
}

/// Finds what a chain of errors means: what a storage answered, else the system's error at the bottom.
fn meaning(error: &(dyn Error + 'static)) -> Option<io::ErrorKind> {
    use object_store::Error as Store;

    let mut next = Some(error);
    while let Some(error) = next {
        if error.is::<Unusable>() || error.is::<Nobody>() {
            return Some(io::ErrorKind::PermissionDenied);
        }
        match error.downcast_ref::<Store>() {
            Some(Store::NotFound { .. }) => return Some(io::ErrorKind::NotFound),
            Some(Store::PermissionDenied { .. } | Store::Unauthenticated { .. }) => {
                return Some(io::ErrorKind::PermissionDenied);
            }
            _ => {}
        }
        if let Some(error) = error.downcast_ref::<io::Error>()
            && (error.raw_os_error().is_some() || error.get_ref().is_none())
        {
            return Some(error.kind());
        }
        next = error.source();
    }
    None
}

/// Finds what a storage could not be opened for, which was told when it was tried.
fn told_before(
    error: Box<dyn Error + Send + Sync>,
) -> Result<StorageError, Box<dyn Error + Send + Sync>> {
    let error = match error.downcast::<object_store::Error>() {
        Ok(error) => match *error {
            object_store::Error::Generic { source, .. } if source.is::<StorageError>() => source,
            other => Box::new(other),
        },
        Err(error) => error,
    };
    error.downcast::<StorageError>().map(|told| *told)
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
