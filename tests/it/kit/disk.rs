//! A small disk that fills up: memory that is mounted where only those see it who are let in, so no right is
//! needed that a user has not.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Write as _};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use tempfile::TempDir;

use super::program::Process;
use super::witness::patient;

/// The file that takes all room.
const FILLER: &str = "filler";

/// A small disk. It is there for as long as this is.
pub(crate) struct SmallDisk {
    /// Lives where the disk is mounted.
    holder: Process,
    folder: TempDir,
}

impl SmallDisk {
    /// Mounts a disk with room for so many bytes.
    pub(crate) async fn mount(bytes: u64) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let script = "mount -t tmpfs -o size=\"$1\",mode=0700 none \"$2\" && touch \"$2/.there\" \
                      && exec sleep infinity";
        let mut command = Command::new("unshare");
        command
            .args(["--user", "--map-root-user", "--mount", "sh", "-c", script])
            .args(["sh", &bytes.to_string()])
            .arg(folder.path());
        let mut disk = Self {
            holder: Process::spawn(&mut command),
            folder,
        };
        let mounted = async {
            while !disk.outside().join(".there").exists() {
                let has_ended = disk.holder.has_ended();
                assert!(
                    !has_ended,
                    "this machine lets no user mount a disk of his own"
                );
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        patient("a small disk", mounted).await;
        disk
    }

    /// Makes a command of a program that sees the disk.
    pub(crate) fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command
            .args(["--target", &self.holder.pid().to_string()])
            .args(["--user", "--mount", "--preserve-credentials", program]);
        command
    }

    /// Returns where it lies for those who see it.
    pub(crate) fn inside(&self) -> &Path {
        self.folder.path()
    }

    /// Returns where everybody else finds it.
    pub(crate) fn outside(&self) -> PathBuf {
        let root = PathBuf::from(format!("/proc/{}/root", self.holder.pid()));
        let own = self.folder.path().strip_prefix("/");
        root.join(own.expect("a folder has a whole path"))
    }

    /// Takes all room that is left.
    pub(crate) fn fill(&self) {
        let path = self.outside().join(FILLER);
        let mut filler = OpenOptions::new()
            .create(true)
            .append(true)
            .open(path)
            .unwrap();
        for piece in [256 * 1024, 4096] {
            let piece = vec![b'x'; piece];
            let full = loop {
                if let Err(error) = filler.write_all(&piece) {
                    break error;
                }
            };
            assert_eq!(full.kind(), ErrorKind::StorageFull, "{full}");
        }
    }

    /// Gives back the room that was taken.
    pub(crate) fn make_room(&self) {
        let path = self.outside().join(FILLER);
        // Not only removed: whoever has it open would keep its room.
        File::create(&path).unwrap();
        std::fs::remove_file(path).unwrap();
    }
}
