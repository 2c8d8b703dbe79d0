//! The lock of an agent's name: one agent of a name in one `WAFT_HOME`.
//!
//! Two agents of one name would be one agent to the server, and each would end the other's session.
//! The lock is the system's, on a file that stays: it is free again however its holder ended. So who
//! takes it knows that the process before it is dead, and the note beside the lock says which session
//! that process had: the server need not wait for its leases to end. What a lock cannot see is an agent of
//! the name with another `WAFT_HOME` on this host; the server tells the two apart by the word of their home.

use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};

use super::spool::Spool;
use crate::model::flow::is_name;
use crate::model::id::SessionId;

/// Bytes of the word of a home, of which no two are alike.
const WORD_BYTES: usize = 16;

/// Holds an agent's name for as long as it lives.
#[derive(Debug)]
pub(crate) struct NameLock {
    _file: File,
    home: String,
    note: SessionNote,
    spool: PathBuf,
}

/// Where the session of the process is written down that has the name.
#[derive(Clone, Debug)]
pub(crate) struct SessionNote(PathBuf);

impl NameLock {
    /// Takes a name.
    ///
    /// # Errors
    ///
    /// Fails if it is none, or if another agent has it.
    pub(crate) fn take(home: &Path, name: &str) -> anyhow::Result<Self> {
        if !is_name(name) {
            let name: String = name.escape_default().take(150).collect();
            bail!(
                "the agent name `{name}` is not allowed: expected 1 to 128 letters, digits, `-`, `_` or `.`"
            );
        }
        let folder = home.join("agents");
        let path = folder.join(format!("{name}.lock"));
        let file = std::fs::create_dir_all(&folder)
            .and_then(|()| {
                File::options()
                    .create(true)
                    .truncate(false)
                    .write(true)
                    .open(&path)
            })
            .with_context(|| format!("cannot open the lock `{}`", path.display()))?;
        match file.try_lock() {
            Ok(()) => Ok(Self {
                _file: file,
                home: word(&folder.join(format!("{name}.home")))?,
                note: SessionNote(folder.join(format!("{name}.session"))),
                spool: folder.join(format!("{name}.spool")),
            }),
            Err(TryLockError::WouldBlock) => bail!(
                "an agent named `{name}` is already running with this WAFT_HOME; give this one another name: --name NAME"
            ),
            Err(TryLockError::Error(error)) => {
                Err(error).with_context(|| format!("cannot lock `{}`", path.display()))
            }
        }
    }

    /// Returns a word that every holder of this name in this `WAFT_HOME` has, and nobody else.
    pub(crate) fn home(&self) -> &str {
        &self.home
    }

    /// Returns the file of its spool.
    pub(crate) fn spool(&self) -> Spool {
        Spool::at(self.spool.clone())
    }

    /// Returns where to write the session down.
    pub(crate) fn note(&self) -> SessionNote {
        self.note.clone()
    }
}

/// Reads the word of a home, and makes it where there is none.
fn word(path: &Path) -> anyhow::Result<String> {
    let kept = std::fs::read_to_string(path).unwrap_or_default();
    let kept = kept.trim();
    if kept.len() == WORD_BYTES * 2 && kept.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Ok(kept.to_owned());
    }
    let word = hex::encode(rand::random::<[u8; WORD_BYTES]>());
    std::fs::write(path, &word).with_context(|| format!("cannot write `{}`", path.display()))?;
    Ok(word)
}

impl SessionNote {
    /// Returns the last session that was written down.
    pub(crate) fn read(&self) -> Option<SessionId> {
        std::fs::read_to_string(&self.0).ok()?.trim().parse().ok()
    }

    /// Writes a session down. One that is not costs the next process the wait for its leases.
    pub(crate) fn write(&self, id: SessionId) {
        if let Err(error) = std::fs::write(&self.0, id.to_string()) {
            tracing::warn!(error = %error, "the session could not be written down");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_taken_once_and_free_again() {
        let home = tempfile::tempdir().unwrap();
        let held = NameLock::take(home.path(), "mira").unwrap();
        let refusal = NameLock::take(home.path(), "mira").unwrap_err().to_string();
        assert!(refusal.contains("`mira` is already running"), "{refusal}");
        assert!(NameLock::take(home.path(), "nas").is_ok());
        drop(held);
        assert!(NameLock::take(home.path(), "mira").is_ok());
    }

    #[test]
    fn the_next_holder_of_a_name_knows_the_last_session() {
        let home = tempfile::tempdir().unwrap();
        let held = NameLock::take(home.path(), "mira").unwrap();
        assert_eq!(held.note().read(), None);
        held.note().write(SessionId::at(0, 1));
        held.note().write(SessionId::at(0, 2));
        drop(held);
        let last = |name| NameLock::take(home.path(), name).unwrap().note().read();
        assert_eq!(last("mira"), Some(SessionId::at(0, 2)));
        assert_eq!(last("nas"), None);
    }

    #[test]
    fn a_home_has_one_word_for_a_name_and_no_other_home_has_it() {
        let homes = [(); 2].map(|()| tempfile::tempdir().unwrap());
        let word = |nth: usize| {
            let held = NameLock::take(homes[nth].path(), "mira").unwrap();
            held.home().to_owned()
        };
        assert_eq!(word(0), word(0));
        assert_ne!(word(0), word(1));
        std::fs::write(homes[0].path().join("agents/mira.home"), "torn").unwrap();
        assert_eq!(word(0), word(0));
    }

    #[test]
    fn a_name_cannot_lead_elsewhere() {
        let home = tempfile::tempdir().unwrap();
        for bad in ["", "../x", "a/b", "a\nb"] {
            assert!(NameLock::take(home.path(), bad).is_err(), "{bad:?}");
        }
    }
}
