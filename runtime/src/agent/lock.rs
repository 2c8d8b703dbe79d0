//! The lock of an agent's name: one agent of a name in one `WAFT_HOME`.
//!
//! Two agents of one name would be one agent to the server, and each would end the other's session.
//! The lock is the system's, on a file that stays: it is free again however its holder ended.

use std::fs::{File, TryLockError};
use std::path::Path;

use anyhow::{Context as _, bail};

use crate::model::flow::is_name;

/// Holds an agent's name for as long as it lives.
#[derive(Debug)]
pub(crate) struct NameLock {
    _file: File,
}

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
            .with_context(|| format!("opening the lock `{}`", path.display()))?;
        match file.try_lock() {
            Ok(()) => Ok(Self { _file: file }),
            Err(TryLockError::WouldBlock) => bail!(
                "an agent named `{name}` is already running with this WAFT_HOME; give this one another name: --name NAME"
            ),
            Err(TryLockError::Error(error)) => {
                Err(error).with_context(|| format!("locking `{}`", path.display()))
            }
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
    fn a_name_cannot_lead_elsewhere() {
        let home = tempfile::tempdir().unwrap();
        for bad in ["", "../x", "a/b", "a\nb"] {
            assert!(NameLock::take(home.path(), bad).is_err(), "{bad:?}");
        }
    }
}
