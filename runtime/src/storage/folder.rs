//! A local root as an open folder, out of which no path leads.
//!
//! What this room reads and writes itself goes through here; cap-std resolves every path below the
//! open folder and refuses links that lead out of it.

use std::fs::{DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use cap_std::ambient_authority;
use cap_std::fs::{Dir, OpenOptions, OpenOptionsExt};
use jiff::Timestamp;

use super::{Found, key};

/// Opens a folder that must exist.
pub(super) fn open(folder: &Path) -> io::Result<Dir> {
    Dir::open_ambient_dir(folder, ambient_authority())
}

/// Opens a folder, made for its owner only (0700) if it does not exist.
pub(super) fn open_or_make(folder: &Path) -> io::Result<Dir> {
    make(folder)?;
    open(folder)
}

/// Makes a folder and those above it, each durable in the one above before this returns. A folder
/// that is there already is taken for durable.
pub(super) fn make(folder: &Path) -> io::Result<()> {
    if folder.is_dir() {
        return Ok(());
    }
    let above = folder.parent().unwrap_or(folder);
    make(above)?;
    match DirBuilder::new().mode(0o700).create(folder) {
        Ok(()) => File::open(above)?.sync_all(),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && folder.is_dir() => Ok(()),
        Err(error) => Err(error),
    }
}

/// Lists everything below a folder, by names and without opening any of it: no link is followed, and what
/// is no file says what it is. A folder that is not there has nothing in it.
pub(super) fn list(folder: &Path) -> io::Result<Vec<Found>> {
    let mut found = Vec::new();
    let mut folders = vec![(folder.to_owned(), String::new())];
    while let Some((path, key)) = folders.pop() {
        let entries = match std::fs::read_dir(&path) {
            Ok(entries) => entries,
            // The folder that was asked for, or one that went while we looked.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) if key.is_empty() => return Err(error),
            Err(_) => {
                found.push(odd(key, "a folder that cannot be read"));
                continue;
            }
        };
        for entry in entries {
            let entry = entry?;
            let name = entry.file_name();
            let name = name.to_string_lossy();
            let key = match key.as_str() {
                "" => name.into_owned(),
                above => format!("{above}/{name}"),
            };
            let about = match entry.metadata() {
                Ok(about) => about,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(error),
            };
            if about.is_dir() {
                folders.push((entry.path(), key));
            } else if about.is_symlink() {
                found.push(odd(key, "a symbolic link"));
            } else if !about.is_file() {
                found.push(odd(key, "a device, a pipe or a socket"));
            } else {
                let written_at = about.modified().ok();
                found.push(Found {
                    key,
                    size: about.len(),
                    written_at: written_at.and_then(|at| Timestamp::try_from(at).ok()),
                    odd: None,
                });
            }
        }
    }
    Ok(found)
}

fn odd(key: String, what: &'static str) -> Found {
    Found {
        key,
        size: 0,
        written_at: None,
        odd: Some(what),
    }
}

/// Takes away what writers left half-written that were killed before an instant.
pub(super) fn sweep(folder: &Path, before: Timestamp) -> io::Result<usize> {
    let mut swept = 0;
    for found in list(folder)? {
        let is_old = found.written_at.is_some_and(|at| at < before);
        if found.odd.is_none() && is_old && key::is_draft(&found.key) {
            open(folder)?.remove_file(&found.key)?;
            swept += 1;
        }
    }
    Ok(swept)
}

/// Makes a file for its owner only (0600) that must not exist yet.
pub(super) fn create_new(dir: &Dir, key: &str) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true).mode(0o600);
    Ok(dir.open_with(key, &options)?.into_std())
}

/// Makes a folder right below another one, durable before this returns, even if a process that
/// made it was killed before it was.
pub(super) fn make_durable(dir: &Dir, name: &str) -> io::Result<()> {
    dir.create_dir_all(name)?;
    sync_above(dir, name)
}

/// Makes the folder of a key, if it does not exist.
pub(super) fn make_above(dir: &Dir, key: &str) -> io::Result<()> {
    match key.rsplit_once('/') {
        Some((above, _)) => dir.create_dir_all(above),
        None => Ok(()),
    }
}

/// Makes what was created, renamed or removed in the folder of a key durable.
pub(super) fn sync_above(dir: &Dir, key: &str) -> io::Result<()> {
    let above = key.rsplit_once('/').map_or(".", |(above, _)| above);
    dir.open(above)?.into_std().sync_all()
}
