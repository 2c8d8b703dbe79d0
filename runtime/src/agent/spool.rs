//! The spool: what an agent has to report, on disk while its server does not answer.
//!
//! Reports wait in memory too, so an outage alone costs nothing. Whoever is killed in one, though, takes
//! with it what its runs have finished: the next process of that name reads it here, and delivers it
//! before the server takes the runs from the dead one. A repeat does no harm, since reports are numbered.

use std::fs::File;
use std::io::{BufRead as _, BufReader, ErrorKind, Write as _};
use std::path::PathBuf;

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
    /// Fails if the disk does not take them: the reports are in memory still.
    pub(crate) fn keep<'a>(
        &mut self,
        reports: impl IntoIterator<Item = &'a Report>,
    ) -> std::io::Result<()> {
        let mut lines = Vec::new();
        for report in reports {
            serde_json::to_writer(&mut lines, report)?;
            lines.push(b'\n');
        }
        let file = match &mut self.file {
            Some(file) => file,
            none => none.insert(File::create(&self.path)?),
        };
        file.write_all(&lines)?;
        self.bytes += lines.len() as u64;
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
