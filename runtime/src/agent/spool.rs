//! The spool: what an agent has to report, on disk while its server does not answer.
//!
//! Reports wait in memory too, so an outage alone costs nothing. Whoever is killed in one, though, takes
//! with it what its runs have finished: the next process of that name reads it here, and delivers it
//! before the server takes the runs from the dead one. A repeat does no harm, since reports are numbered.

use std::fs::File;
use std::io::{BufRead as _, BufReader, ErrorKind, Write as _};
use std::path::{Path, PathBuf};

use anyhow::Context as _;

use crate::wire::Report;

/// Bytes of a spool beyond which nothing more is taken from the runs until the server answers. The leases of
/// its runs end long before: attempts stop then, and say no more.
const BYTES_MAX: u64 = 64 * 1024 * 1024;

/// The file of one agent's name. Only who holds the name may have it.
#[derive(Debug)]
pub(crate) struct Spool {
    path: PathBuf,
    /// Open from the first report of an outage until all are delivered.
    file: Option<File>,
    bytes: u64,
}

impl Spool {
    /// Names the file; makes none.
    pub(crate) const fn at(path: PathBuf) -> Self {
        Self {
            path,
            file: None,
            bytes: 0,
        }
    }

    /// Tells whether an outage is being written down.
    pub(crate) const fn is_open(&self) -> bool {
        self.file.is_some()
    }

    /// Tells whether it holds as much as it may.
    pub(crate) const fn is_full(&self) -> bool {
        self.bytes >= BYTES_MAX
    }

    /// Writes reports down, in order, behind those that are there.
    ///
    /// # Errors
    ///
    /// Fails if the disk does not take them, and forgets what it holds: a half-written line would hide all
    /// that follows. The reports are in memory still.
    pub(crate) fn keep<'a>(
        &mut self,
        reports: impl IntoIterator<Item = &'a Report>,
    ) -> std::io::Result<()> {
        let mut lines = Vec::new();
        for report in reports {
            serde_json::to_writer(&mut lines, report)?;
            lines.push(b'\n');
        }
        let written = self.write(&lines);
        match &written {
            Ok(()) => self.bytes += lines.len() as u64,
            Err(_) => self.clear(),
        }
        written
    }

    fn write(&mut self, lines: &[u8]) -> std::io::Result<()> {
        let file = match &mut self.file {
            Some(file) => file,
            none => none.insert(private(&self.path)?),
        };
        file.write_all(lines)?;
        file.sync_data()
    }

    /// Forgets everything, since it is delivered.
    pub(crate) fn clear(&mut self) {
        self.file = None;
        self.bytes = 0;
        match std::fs::remove_file(&self.path) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                tracing::warn!(error = %error, "the spool could not be removed");
            }
            _ => {}
        }
    }

    /// Reads what a dead process left behind, as far as it is whole: one that was killed in mid-word left
    /// half a line at the end.
    ///
    /// # Errors
    ///
    /// Fails if there is a file and it cannot be read.
    pub(crate) fn left(&self) -> anyhow::Result<Vec<Report>> {
        let read = || format!("cannot read the spool `{}`", self.path.display());
        let file = match File::open(&self.path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            file => file.with_context(read)?,
        };
        let mut reports = Vec::new();
        for line in BufReader::new(file).split(b'\n') {
            match serde_json::from_slice(&line.with_context(read)?) {
                Ok(report) => reports.push(report),
                Err(_) => break,
            }
        }
        Ok(reports)
    }
}

/// Makes a file anew that nobody else of this machine may read: logs are in it.
fn private(path: &Path) -> std::io::Result<File> {
    let mut options = File::options();
    options.write(true).create(true).truncate(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.open(path)
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;
    use crate::model::id::FlowRunId;
    use crate::model::run::Happening;
    use crate::wire::LeaseKey;

    fn report(number: u64) -> Report {
        Report {
            lease: LeaseKey {
                flow_run_id: FlowRunId::at(0, 1),
                epoch: 1,
            },
            number,
            at: Timestamp::UNIX_EPOCH,
            what: Happening::Preparing {
                message: "compiling".to_owned(),
            },
        }
    }

    fn numbers(spool: &Spool) -> Vec<u64> {
        let left = spool.left().unwrap();
        left.iter().map(|report| report.number).collect()
    }

    #[test]
    fn the_next_process_reads_what_is_whole_in_order() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("mira.spool");
        let mut spool = Spool::at(path.clone());
        spool.keep(&[report(1), report(2)]).unwrap();
        spool.keep(&[report(3)]).unwrap();
        let mut file = File::options().append(true).open(&path).unwrap();
        file.write_all(b"{\"lease\":").unwrap();
        let mut next = Spool::at(path.clone());
        assert_eq!(numbers(&next), [1, 2, 3]);
        next.clear();
        assert!(numbers(&next).is_empty() && !path.exists());
    }

    #[test]
    fn a_disk_that_takes_nothing_leaves_nothing_behind() {
        let folder = tempfile::tempdir().unwrap();
        let mut spool = Spool::at(folder.path().join("away/mira.spool"));
        assert!(spool.keep(&[report(1)]).is_err());
        assert!(!spool.is_open() && numbers(&spool).is_empty());
    }

    #[test]
    fn it_is_full_at_its_bound_and_empty_when_cleared() {
        let folder = tempfile::tempdir().unwrap();
        let mut spool = Spool::at(folder.path().join("mira.spool"));
        spool.bytes = BYTES_MAX - 1;
        assert!(!spool.is_full());
        spool.keep(&[report(1)]).unwrap();
        assert!(spool.is_full());
        spool.clear();
        assert!(!spool.is_full());
    }
}
