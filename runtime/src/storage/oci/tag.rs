//! Tags: what keys and versions are called in a registry.

use object_store::path::Path;
use sha2::{Digest as _, Sha256};

use crate::model::artifact::Digest;
use crate::storage::key;

/// Most bytes of a tag.
const BYTES_MAX: usize = 128;

/// The tag under which an artifact is kept.
pub(super) fn artifact_tag(digest: Digest) -> String {
    format!("wasm-{}", digest.to_hex())
}

/// Makes a tag of a key. Keys hold no `.` but at the end of a file's name, so no two share one.
pub(super) fn tag_of(path: &str) -> String {
    match key::artifact_of(path) {
        Some(digest) => artifact_tag(digest),
        None => path.replace('/', "."),
    }
}

/// Makes the key of a tag; none for a tag that others made.
pub(super) fn key_of(tag: &str) -> Option<Path> {
    if let Some(hex) = tag.strip_prefix("wasm-") {
        let digest: Digest = format!("sha256:{hex}").parse().ok()?;
        return Some(Path::from(key::artifact(digest)));
    }
    let key = tag.replace('.', "/");
    let is_own = key::is_segment(&key) || key::is_task_entry(&key);
    is_own.then(|| Path::from(key))
}

/// Makes the tag of a version, `project.flow.version`, for people who look into a registry.
///
/// Names may hold dots, begin as no tag may, or be longer than a tag: then the dots of a name become `_`, what
/// is too long is cut, and a hash of both names stands at the end. A tag of the first kind has two dots and one
/// of the second three, so no two versions ever share one.
pub(super) fn version_tag(project: &str, flow: &str, version: u32) -> String {
    let plain = format!("{project}.{flow}.{version}");
    let is_plain = plain.len() <= BYTES_MAX
        && !plain.starts_with(['-', '.'])
        && plain.bytes().filter(|b| *b == b'.').count() == 2;
    if is_plain {
        return plain;
    }
    let mut hasher = Sha256::new();
    hasher.update((project.len() as u64).to_le_bytes());
    hasher.update(project);
    hasher.update(flow);
    let hash = hex::encode(&hasher.finalize()[..8]);
    let end = format!(".{version}.{hash}");
    let name = |name: &str| {
        let left = (BYTES_MAX - end.len() - 2) / 2;
        let name = name.replace('.', "_");
        // Names are ASCII.
        name.get(..left).map_or(name.clone(), str::to_owned)
    };
    let (project, flow) = (name(project), name(flow));
    let first = if project.starts_with('-') { "_" } else { "" };
    format!("{first}{project}.{flow}{end}")
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn keys_and_tags_lead_to_each_other() {
        let digest = Digest::of(b"x");
        for key in [
            key::artifact(digest),
            key::segment(1_700_000_000_000_000, 7),
            key::task_entry(&[7; 32]),
        ] {
            let tag = tag_of(&key);
            assert!(tag.len() <= BYTES_MAX, "{tag}");
            assert_eq!(key_of(&tag), Some(Path::from(key)));
        }
        assert_eq!(tag_of("task-cache.key"), "task-cache.key");
        for foreign in ["latest", "v1.2", "wasm-1", "sha256-00"] {
            assert_eq!(key_of(foreign), None, "{foreign}");
        }
    }

    #[test]
    fn every_version_has_a_tag_of_its_own() {
        assert_eq!(version_tag("demo", "a-flow", 3), "demo.a-flow.3");
        let long = "x".repeat(128);
        let longer = format!("{}y", "x".repeat(127));
        let names = [
            "demo", "a.b", "a", "b", "a_b", "b.c", "-a", ".a", "_a", "a.", "1", "wasm-1", &long,
            &longer,
        ];
        let mut tags = HashSet::new();
        for (project, flow, version) in names
            .iter()
            .flat_map(|project| names.iter().map(move |flow| (project, flow)))
            .flat_map(|(project, flow)| [1, 11, u32::MAX].map(|version| (project, flow, version)))
        {
            let tag = version_tag(project, flow, version);
            let mut bytes = tag.bytes();
            let is_first = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
            assert!(bytes.next().is_some_and(is_first), "{tag}");
            assert!(bytes.all(|b| is_first(b) || b"-.".contains(&b)), "{tag}");
            assert!(tag.len() <= BYTES_MAX, "{tag}");
            assert_eq!(key_of(&tag), None, "{tag}");
            assert!(
                tags.insert(tag.clone()),
                "{project} {flow} {version}: {tag}"
            );
        }
    }
}
