//! Keys: the names of objects under a root.
//!
//! A key is made of a digest or of random bits and of nothing else, so no name that somebody chose
//! ever becomes part of a path. Keys that come back from a server are checked by these rules before
//! they are used.

use crate::model::artifact::Digest;

/// The key of what is written to learn whether something can be.
pub const PROBE: &str = "probe";
/// The key of the file that holds the key of the task cache.
pub const TASK_CACHE_KEY: &str = "task-cache.key";

/// Returns the key of an artifact, `sha256/ab/<64 hex digits>`.
///
/// ```
/// # use waft::model::artifact::Digest;
/// # use waft::storage::key;
/// let digest = Digest::of(b"");
/// assert!(key::artifact(digest).starts_with("sha256/e3/e3b0c442"));
/// ```
#[must_use]
pub fn artifact(digest: Digest) -> String {
    let hex = digest.to_hex();
    format!("sha256/{}/{hex}", &hex[..2])
}

/// Tells whether a text may be a key at all: parts with single slashes between them, none of which
/// leads up, and nothing that a URL or a shell reads otherwise.
///
/// Keys of artifacts that were registered where they lay are the only ones that somebody chose.
#[must_use]
pub fn is_plain(text: &str) -> bool {
    let is_bad = |c: char| c.is_control() || r#"\?#%*:<>|""#.contains(c);
    let is_part = |part: &str| !matches!(part, "" | "." | "..");
    text.len() <= 900 && !text.contains(is_bad) && text.split('/').all(is_part)
}

/// Makes the key of a new segment: when it was begun, then random bits, so that keys sort by age
/// and no two processes ever meet.
#[must_use]
pub(super) fn segment(begun_us: i64, random: u64) -> String {
    format!("segments/{begun_us:016x}-{random:016x}")
}

/// Tells whether a text is the key of a segment.
#[must_use]
pub fn is_segment(key: &str) -> bool {
    let Some((begun, random)) = key
        .strip_prefix("segments/")
        .and_then(|name| name.split_once('-'))
    else {
        return false;
    };
    is_hex(begun) && is_hex(random)
}

fn is_hex(text: &str) -> bool {
    text.len() == 16 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

/// Returns the key of an entry of the task cache, `tasks/ab/<64 hex digits>`.
#[must_use]
pub(super) fn task_entry(code: &[u8; 32]) -> String {
    let hex = hex::encode(code);
    format!("tasks/{}/{hex}", &hex[..2])
}

/// Tells whether a text is the key of an entry of the task cache.
#[must_use]
pub fn is_task_entry(key: &str) -> bool {
    let mut code = [0; 32];
    let hex = key.rsplit('/').next().unwrap_or_default();
    hex::decode_to_slice(hex, &mut code).is_ok() && task_entry(&code) == key
}

/// Tells which artifact a key names, if one.
#[must_use]
pub fn artifact_of(key: &str) -> Option<Digest> {
    let digest: Digest = format!("sha256:{}", key.rsplit('/').next()?).parse().ok()?;
    (artifact(digest) == key).then_some(digest)
}

/// Returns the key of an artifact that a longer name ends with, if it does.
#[must_use]
pub(super) fn own_end(text: &str) -> Option<&str> {
    let (start, _) = text.rmatch_indices('/').nth(2)?;
    let key = &text[start + 1..];
    artifact_of(key).map(|_| key)
}

/// Tells whether a key is that of a file which a writer had not finished: staged beside its place.
#[must_use]
pub fn is_draft(key: &str) -> bool {
    let Some((whole, rest)) = key.rsplit_once(['#', '.']) else {
        return false;
    };
    let is_number = !rest.is_empty() && rest.bytes().all(|b| b.is_ascii_hexdigit());
    let is_ours =
        || artifact_of(whole).is_some() || is_task_entry(whole) || whole == TASK_CACHE_KEY;
    is_number && is_ours()
}

/// Tells when a segment was begun, in microseconds.
#[must_use]
pub fn begun_at(key: &str) -> Option<i64> {
    let (begun, _) = key.strip_prefix("segments/")?.split_once('-')?;
    i64::from_str_radix(begun, 16)
        .ok()
        .filter(|_| is_segment(key))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_made_here_is_a_segment() {
        assert!(is_segment(&segment(1_700_000_000_000_000, u64::MAX)));
        let good = segment(1, 2);
        for bad in [
            "",
            "segments/",
            "segments/../../../../etc/passwd",
            &good.replace("segments", "tasks"),
            &format!("{good}0"),
            &good.to_uppercase(),
            &good.replace('-', "/"),
        ] {
            assert!(!is_segment(bad), "{bad}");
        }
    }

    #[test]
    fn a_key_is_plain_or_none() {
        for good in ["a", "a/b.wasm", "team flow/v1.2_x-y.wasm", "é"] {
            assert!(is_plain(good), "{good}");
        }
        for bad in [
            "", "/a", "a/", "a//b", "..", "a/../b", "./a", "a?b", "a#b", "a%2e", "a\\b", "a\n",
        ] {
            assert!(!is_plain(bad), "{bad}");
        }
    }

    #[test]
    fn a_draft_lies_beside_what_it_was_to_become() {
        let own = artifact(Digest::of(b""));
        let entry = task_entry(&[7; 32]);
        for draft in [
            format!("{own}#1"),
            format!("{own}#23"),
            format!("{entry}.00000000000000ff"),
            format!("{TASK_CACHE_KEY}.00000000000000ff"),
        ] {
            assert!(is_draft(&draft), "{draft}");
        }
        for other in [
            own.as_str(),
            "a#1",
            "notes.1",
            TASK_CACHE_KEY,
            &format!("{own}#"),
        ] {
            assert!(!is_draft(other), "{other}");
        }
    }

    #[test]
    fn later_segments_sort_later() {
        assert!(segment(9, 9) < segment(10, 0));
        assert_eq!(begun_at(&segment(10, 0)), Some(10));
    }
}
