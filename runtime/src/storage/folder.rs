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
