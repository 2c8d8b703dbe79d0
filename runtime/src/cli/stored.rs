//! Components that lie in a storage already: registered where they are, and not copied.

use std::path::PathBuf;

use super::failure::{Done, Failure};
use super::progress::with_bar;
use super::register::default_root;
use super::{Call, Kind};
use crate::storage::{self, Root, Storage, StorageError, key};

/// A component in a storage, and its bytes here for a look at it.
pub(super) struct Stored {
    /// Where it is.
    pub(super) root: Root,
    /// Its key under the root.
    pub(super) key: String,
    /// The tag or the digest by which it was found in a registry.
    pub(super) image: Option<String>,
    /// The bytes, in a folder of their own.
    pub(super) path: PathBuf,
    _folder: tempfile::TempDir,
}

/// Tells whether a place names something in a storage rather than a file of this machine.
pub(super) fn is_stored(place: &str) -> bool {
    place.contains("://")
}

/// Looks a component up by its whole name, and fetches it.
///
/// # Errors
///
/// Says what the name should look like, or why the storage does not give it.
pub(super) async fn fetch(place: &str, wanted: Option<&Root>, call: &Call) -> Done<Stored> {
    let bad = |error: storage::BadRoot| {
        let failure = Failure::usage(error);
        failure
            .or_hint("s3://bucket/flow.wasm, oci://registry/repository:tag, https://host/flow.wasm")
    };
    let (root, key, found, image) = if place.starts_with("oci://") {
        let (root, reference) = image(place).map_err(bad)?;
        let storage = Storage::open(&root, &call.config.access()).map_err(failure)?;
        let found = storage.find_tag(&reference).await.map_err(failure)?;
        (root, found.0, Some((found.1, found.2)), Some(reference))
    } else {
        let (root, key) = split(place, wanted, call).map_err(bad)?;
        (root, key, None, None)
    };
    if root.kind() == storage::Kind::Local {
        let what = format!("`{place}` is a file of this machine");
        return Err(Failure::could(what)
            .or_hint("give its path: waft register /path/flow.wasm")
            .of(Kind::Usage));
    }
    let storage = Storage::open(&root, &call.config.access()).map_err(failure)?;
    call.config.home.make()?;
    let made = tempfile::Builder::new()
        .prefix(super::component::COPY_PREFIX)
        .tempdir_in(call.config.home.folder());
    let unmade = "cannot make a folder in the home";
    let folder = made.map_err(|error| anyhow::Error::new(error).context(unmade))?;
    // A command is called after its file, so the file is called after what was asked for.
    let path = folder.path().join(file_name(place));
    let made = std::fs::File::create_new(&path);
    let mut file = made.map_err(|error| anyhow::Error::new(error).context(unmade))?;
    let size_max = call.config.artifact_max();
    let what = format!("fetching {key}");
    let download = storage.download(&key, size_max, &mut file);
    let size = found.map_or(0, |(_, size)| size);
    let got = with_bar(&what, size, &storage.meter(), download, call).await;
    let got = got.map_err(failure)?;
    if let Some(told) = found.filter(|told| *told != got) {
        let what = format!("`{place}` brought {} instead of {}", got.0, told.0);
        return Err(
            Failure::could(what).or_hint("try again; if it stays so, the registry is damaged")
        );
    }
    if let Some(digest) = key::artifact_of(&key).filter(|digest| *digest != got.0) {
        return Err(failure(StorageError::Damaged {
            root: root.to_string(),
            key,
            wanted: digest.to_string(),
            got: got.0.to_string(),
        }));
    }
    Ok(Stored {
        root,
        key,
        image,
        path,
        _folder: folder,
    })
}

/// Names the file of a component after its place: `https://host/tool.wasm` and `oci://host/tool:1.2` both
/// make `tool.wasm`.
fn file_name(place: &str) -> String {
    let last = place.rsplit('/').next().unwrap_or_default();
    let stem = last.split(['@', ':']).next().unwrap_or_default();
    let stem = stem.strip_suffix(".wasm").unwrap_or(stem);
    format!("{stem}.wasm")
}

fn failure(error: storage::StorageError) -> Failure {
    let hint = error.hint();
    let failure = Failure::from(anyhow::Error::new(error));
    match hint {
        Some(hint) => failure.or_hint(hint),
        None => failure,
    }
}

/// Splits the name of an image into its repository and its tag or digest.
fn image(place: &str) -> Result<(Root, String), storage::BadRoot> {
    let name = place.rsplit('/').next().unwrap_or_default();
    let (above, last) = place.split_at(place.len() - name.len());
    let (repository, reference) = match (last.split_once('@'), last.split_once(':')) {
        (Some((repository, digest)), _) => (repository, digest),
        (None, Some((repository, tag))) => (repository, tag),
        (None, None) => (last, "latest"),
    };
    Ok((
        format!("{above}{repository}").parse()?,
        reference.to_owned(),
    ))
}

/// Splits the name of an object into a root that agents have and its key: the root that was asked for,
/// else one of this configuration, else the one that waft has put it under, else the folder that it lies in.
fn split(
    place: &str,
    wanted: Option<&Root>,
    call: &Call,
) -> Result<(Root, String), storage::BadRoot> {
    let set = call.config.settings.agent.roots.iter();
    let set = set.filter_map(|text| text.parse::<Root>().ok());
    let known = wanted
        .cloned()
        .into_iter()
        .chain(default_root(call).ok())
        .chain(set);
    for root in known {
        if let Some(key) = root.key_of(place) {
            return Ok((root, key));
        }
    }
    Root::split(place)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_has_a_tag_or_a_digest() {
        let digest = format!("sha256:{}", "ab".repeat(32));
        for (text, root, reference) in [
            ("oci://r.example/a/b:1.2", "oci://r.example/a/b", "1.2"),
            ("oci://localhost:5000/a", "oci://localhost:5000/a", "latest"),
            (
                &format!("oci://localhost:5000/a@{digest}"),
                "oci://localhost:5000/a",
                &digest,
            ),
        ] {
            let (found, tag) = image(text).unwrap();
            assert_eq!(
                (found.to_string().as_str(), tag.as_str()),
                (root, reference)
            );
        }
        assert!(image("oci://r.example").is_err());
        for place in [
            "https://h/a/tool.wasm",
            "oci://h:5000/a/tool:1.2",
            "s3://b/tool",
        ] {
            assert_eq!(file_name(place), "tool.wasm");
        }
    }
}
