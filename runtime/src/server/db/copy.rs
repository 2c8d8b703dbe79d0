//! Copies of a database file: made while a server uses it, and put back in its place.

use std::fs::File;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{ConnectOptions as _, Connection as _, Executor as _};
use tempfile::NamedTempFile;

use super::sqlite::unopened;
use super::{DbError, migration};

/// A database file that another has replaced.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Restored {
    /// The last migration of the file that is there now.
    pub migration: i64,
    /// Where the file lies that was there before.
    pub aside: Option<PathBuf>,
}

/// Copies a database file as it is at this moment, whoever writes to it, to where there is none;
/// answers with its last migration. The copy is there whole or not at all.
///
/// # Errors
///
/// Refuses what is no database of waft, and what a newer waft made.
pub async fn back_up(db: &Path, to: &Path) -> Result<i64, DbError> {
    let (copy, migration) = copied(db, folder_of(to)).await?;
    keep(copy, to)?;
    Ok(migration)
}

/// Puts a copy of another database file in the place of one that no server uses. What was there is kept
/// beside it under the time of this moment.
///
/// # Errors
///
/// As [`back_up`]; then nothing has changed.
pub async fn restore(db: &Path, from: &Path, now: Timestamp) -> Result<Restored, DbError> {
    let (copy, migration) = copied(from, folder_of(db)).await?;
    let aside = match db.exists() {
        true => Some(put_aside(db, now).await?),
        false => None,
    };
    keep(copy, db)?;
    Ok(Restored { migration, aside })
}

/// Copies a file to one of a passing name, readable for nobody else and safe from a crash.
async fn copied(from: &Path, folder: &Path) -> Result<(NamedTempFile, i64), DbError> {
    let failed = |error: sqlx::Error| unopened(from, error);
    let options = SqliteConnectOptions::new().filename(from);
    let options = options.busy_timeout(super::sqlite::BUSY_TIMEOUT);
    let mut connection = options.connect().await.map_err(failed)?;
    let migration = migration::last_of_file(from, &mut connection).await?;
    let copy = tempfile::Builder::new()
        .prefix(".waft-copy-")
        .tempfile_in(folder)
        .map_err(|error| unopened(folder, error))?;
    let path = copy.path().to_string_lossy().into_owned();
    let into = sqlx::query("VACUUM INTO $1").bind(path);
    let copied = connection.execute(into).await;
    copied.map_err(|error| DbError::from(error).at(&from.to_owned().into()))?;
    connection.close().await?;
    let synced = copy.as_file().sync_all();
    synced.map_err(|error| unopened(copy.path(), error))?;
    Ok((copy, migration))
}

/// Gives a copy its name, where there is nothing.
fn keep(copy: NamedTempFile, path: &Path) -> Result<(), DbError> {
    let kept = copy.persist_noclobber(path);
    kept.map_err(|error| unopened(path, error.error))?;
    sync_folder(path)
}

/// Moves a database file away, with what belongs to it; answers with its new name.
async fn put_aside(db: &Path, now: Timestamp) -> Result<PathBuf, DbError> {
    let failed = |error: std::io::Error| unopened(db, error);
    // What its log holds is moved into it, as far as it is a database still.
    let options = SqliteConnectOptions::new().filename(db);
    if let Ok(mut connection) = options.connect().await {
        let moved = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").await;
        drop((moved, connection.close().await));
    }
    let aside = db.with_added_extension(now.strftime("%Y%m%dT%H%M%S%6fZ").to_string());
    for end in ["", "-wal", "-shm"] {
        let named = |path: &Path| {
            let mut name = path.as_os_str().to_owned();
            name.push(end);
            PathBuf::from(name)
        };
        if named(db).exists() {
            std::fs::rename(named(db), named(&aside)).map_err(failed)?;
        }
    }
    Ok(aside)
}

fn sync_folder(of: &Path) -> Result<(), DbError> {
    let synced = File::open(folder_of(of)).and_then(|folder| folder.sync_all());
    synced.map_err(|error| unopened(of, error))
}

fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}
