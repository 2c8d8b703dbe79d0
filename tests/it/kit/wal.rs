//! The log that SQLite writes ahead of a database, as bytes: what a power cut may leave at its end.

use std::path::{Path, PathBuf};

/// Bytes of the header of the log, and of that of each frame.
const HEADER: usize = 32;
const FRAME_HEADER: usize = 24;
/// The size in the header of a frame that ends no transaction.
const GOES_ON: u32 = 0;

/// What lies behind the last bytes that were safe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tail {
    /// Nothing: all that was not safe is lost.
    Nothing,
    /// What was written, as far as it came, cut in the middle of a frame.
    Cut,
    /// Bytes of another file.
    Garbage,
    /// The last frame once more, which is right but for its place.
    OldFrame,
    /// Frames that are right, of a transaction that was not committed, the last one cut.
    HalfTransaction,
}

impl Tail {
    pub(crate) const ALL: [Self; 5] = [
        Self::Nothing,
        Self::Cut,
        Self::Garbage,
        Self::OldFrame,
        Self::HalfTransaction,
    ];

    /// Makes the log that a power cut leaves, of what was safe of it and what was written.
    pub(crate) fn torn(self, safe: &[u8], written: &[u8]) -> Vec<u8> {
        let mut log = safe.to_vec();
        if log.len() < HEADER {
            return log;
        }
        let frame = FRAME_HEADER + number(&log, 8) as usize;
        let whole = HEADER + (log.len() - HEADER) / frame * frame;
        log.truncate(whole);
        match self {
            Self::Nothing => {}
            Self::Cut => {
                let more = written.get(whole..).unwrap_or_default();
                let of = more.get(..frame).unwrap_or(&log[whole - frame..]).to_vec();
                log.extend(&of[..frame * 2 / 3]);
            }
            Self::Garbage => log.extend((0..3 * frame + 100).map(|nth| (nth * 31 % 251) as u8)),
            Self::OldFrame => log.extend_from_within(whole - frame..),
            Self::HalfTransaction => {
                for page in [1, 2, 3] {
                    append(&mut log, page, GOES_ON, frame);
                }
                log.truncate(whole + 2 * frame + frame / 2);
            }
        }
        log
    }
}

/// Appends a frame that is right, for a page full of nonsense; `size` is that of the database if the frame
/// ends a transaction.
fn append(log: &mut Vec<u8>, page: u32, size: u32, frame: usize) {
    let is_big = number(log, 0) & 1 == 1;
    let last = log.len().checked_sub(frame).filter(|at| *at >= HEADER);
    let at = last.map_or(24, |last| last + 16);
    let mut sums = [number(log, at), number(log, at + 4)];
    let mut header = Vec::new();
    header.extend(page.to_be_bytes());
    header.extend(size.to_be_bytes());
    let bytes: Vec<u8> = (0..frame - FRAME_HEADER).map(|_| 0xaa).collect();
    for part in [&header, &bytes] {
        add_up(&mut sums, part, is_big);
    }
    header.extend_from_slice(&log[16..24]);
    header.extend(sums.iter().flat_map(|sum| sum.to_be_bytes()));
    log.extend(header);
    log.extend(bytes);
}

/// Goes on with the sums of the log over some bytes.
fn add_up(sums: &mut [u32; 2], bytes: &[u8], is_big: bool) {
    for pair in bytes.chunks_exact(8) {
        let word = |from: usize| {
            let word = pair[from..from + 4].try_into().expect("four bytes");
            match is_big {
                true => u32::from_be_bytes(word),
                false => u32::from_le_bytes(word),
            }
        };
        sums[0] = sums[0].wrapping_add(word(0)).wrapping_add(sums[1]);
        sums[1] = sums[1].wrapping_add(word(4)).wrapping_add(sums[0]);
    }
}

fn number(bytes: &[u8], from: usize) -> u32 {
    u32::from_be_bytes(bytes[from..from + 4].try_into().expect("four bytes"))
}

/// Returns the file of the log of a database.
pub(crate) fn log_of(db: &Path) -> PathBuf {
    beside(db, "-wal")
}

/// Returns the file that processes share which have a database open.
pub(crate) fn shared_of(db: &Path) -> PathBuf {
    beside(db, "-shm")
}

fn beside(db: &Path, end: &str) -> PathBuf {
    let mut name = db.as_os_str().to_owned();
    name.push(end);
    name.into()
}

#[cfg(test)]
mod tests {
    use sqlx::{Connection as _, Executor as _, Row as _, SqliteConnection};

    use super::*;

    /// Makes a database whose only number is in its log, gives that another tail, and reads the number.
    async fn read_after(torn: impl FnOnce(&[u8]) -> Vec<u8>) -> Result<i64, sqlx::Error> {
        let folder = tempfile::tempdir().unwrap();
        let url = |name: &str| format!("sqlite://{}?mode=rwc", folder.path().join(name).display());
        let mut connection = SqliteConnection::connect(&url("a.db")).await.unwrap();
        for sql in [
            "PRAGMA journal_mode = WAL",
            "CREATE TABLE n (n)",
            "INSERT INTO n VALUES (7)",
        ] {
            connection.execute(sql).await.unwrap();
        }
        let [first, second] = ["a.db", "b.db"].map(|name| folder.path().join(name));
        let log = std::fs::read(log_of(&first)).unwrap();
        std::fs::copy(&first, &second).unwrap();
        std::fs::write(log_of(&second), torn(&log)).unwrap();
        let mut other = SqliteConnection::connect(&url("b.db")).await?;
        let row = other.fetch_one("SELECT n FROM n").await?;
        row.try_get(0)
    }

    #[tokio::test]
    async fn what_is_committed_counts_and_nothing_behind_it() {
        for tail in Tail::ALL {
            let read = read_after(|log| tail.torn(log, log)).await;
            assert_eq!(read.unwrap(), 7, "{tail:?}");
        }
    }

    /// The frames that are made here are right: with a commit they count.
    #[tokio::test]
    async fn a_frame_that_is_appended_is_none_that_is_passed_over() {
        let damage = |log: &[u8]| {
            let mut log = log.to_vec();
            let frame = FRAME_HEADER + number(&log, 8) as usize;
            append(&mut log, 2, 2, frame);
            log
        };
        read_after(damage).await.unwrap_err();
    }
}
