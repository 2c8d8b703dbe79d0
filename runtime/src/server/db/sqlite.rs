//! An SQLite file: one writer, some readers.

use std::error::Error;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::future::BoxFuture;
use sqlx::error::DatabaseError as _;
use sqlx::sqlite::{
    SqliteConnectOptions, SqliteError, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous,
};
use sqlx::{ConnectOptions as _, Connection as _, Executor as _, Row as _, SqlitePool};

use super::memory::Memory;
use super::tx::{Tx, args};
use super::writer::Writer;
use super::{DbError, migration};

/// Connections for reading at one time; each is a thread of the driver.
const READERS: u32 = 4;
/// How long a statement waits for another process that writes, such as `waft server token`.
pub(super) const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
/// The oldest SQLite without the bug that could lose a write-ahead log.
const OLDEST: (u32, u32, u32) = (3, 51, 3);
/// The code of an error when the disk is full.
pub(super) const FULL: &str = "13";
/// The codes of errors when the bytes of a file make no sense; others add a higher byte.
const DAMAGED: [u32; 2] = [11, 26];
/// The largest file that is read as a whole before it is used: that takes some seconds.
const EXAMINED_BYTES_MAX: u64 = 1024 * 1024 * 1024;

/// A file that is open. Clones share it.
#[derive(Clone)]
pub(super) struct Sqlite {
    writer: Writer,
    readers: SqlitePool,
    closing: Arc<Mutex<Option<tokio::task::JoinHandle<()>>>>,
}

impl Sqlite {
    /// Opens a file, making and migrating it as needed.
    pub(super) async fn open(path: &Path, memory: &Memory) -> Result<Self, DbError> {
        prepare_file(path)?;
        let mut connection = options(path)
            .connect()
            .await
            .map_err(|error| unopened(path, error))?;
        migration::run_on_file(path, &mut connection).await?;
        let mut tx = Tx::own(connection);
        check_version(path, &mut tx).await?;
        let (writer, closing) = Writer::start(tx, memory.clone());
        let readers = SqlitePoolOptions::new()
            .max_connections(READERS)
            .test_before_acquire(false)
            .connect_lazy_with(
                options(path)
                    .create_if_missing(false)
                    .pragma("query_only", "ON"),
            );
        Ok(Self {
            writer,
            readers,
            closing: Arc::new(Mutex::new(Some(closing))),
        })
    }

    /// Runs a closure in a transaction that it may share with others.
    pub(super) async fn write<T, E, F>(&self, act: F) -> Result<T, E>
    where
        F: for<'t> FnOnce(&'t mut Tx) -> BoxFuture<'t, Result<T, E>> + Send + 'static,
        T: Send + 'static,
        E: From<DbError> + Send + 'static,
    {
        self.writer.write(act).await
    }

    /// Returns a connection for reading.
    pub(super) async fn reader(&self) -> Result<Tx, DbError> {
        Ok(Tx::pooled(self.readers.acquire().await?))
    }

    /// Closes the file after what is queued.
    pub(super) async fn close(self) {
        self.readers.close().await;
        let closing = match self.closing.lock() {
            Ok(mut closing) => closing.take(),
            Err(_) => None,
        };
        drop(self.writer);
        if let Some(closing) = closing {
            // Another clone may live on in a request that is being dropped; waiting for it without
            // end would turn a leak into a hang.
            drop(tokio::time::timeout(BUSY_TIMEOUT, closing).await);
        }
    }
}

/// Returns the last migration that a file has; none if it is not there, or empty.
pub(super) async fn last_migration(path: &Path) -> Result<Option<i64>, DbError> {
    let length = path.metadata().map_or(0, |meta| meta.len());
    if length == 0 {
        return Ok(None);
    }
    let connected = options(path).create_if_missing(false).connect().await;
    let mut connection = connected.map_err(|error| unopened(path, error))?;
    let last = migration::last_of_file(path, &mut connection).await?;
    connection.close().await?;
    Ok(Some(last))
}

/// Looks whether a file is whole whose last user could not close it: then its log is still there.
pub(super) async fn examine(path: &Path) -> Result<(), DbError> {
    let length = |path: &Path| path.metadata().map_or(0, |meta| meta.len());
    let mut log = path.as_os_str().to_owned();
    log.push("-wal");
    if length(Path::new(&log)) == 0 || length(path) == 0 {
        return Ok(());
    }
    if length(path) > EXAMINED_BYTES_MAX {
        tracing::info!("the last stop was none in order; the database is too large to be examined");
        return Ok(());
    }
    let failed = |error: sqlx::Error| unopened(path, error);
    let connected = options(path).create_if_missing(false).connect().await;
    let mut connection = connected.map_err(failed)?;
    let found = connection.fetch_one("PRAGMA quick_check(1)").await;
    let found: String = found.and_then(|row| row.try_get(0)).map_err(failed)?;
    connection.close().await.map_err(failed)?;
    match found.as_str() {
        "ok" => Ok(()),
        // The lines before the last name the database.
        _ => Err(DbError::Damaged {
            place: Some(path.to_owned().into()),
            source: Arc::new(std::io::Error::other(
                found.lines().last().unwrap_or_default().to_owned(),
            )),
        }),
    }
}

/// Tells whether an error, or one behind it, says that the bytes of a file make no sense.
pub(super) fn is_damaged(error: &(dyn Error + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(one) = next {
        if let Some(sqlx::Error::Database(inner)) = one.downcast_ref()
            && let Some(own) = inner.try_downcast_ref::<SqliteError>()
        {
            let code = own.code().and_then(|code| code.parse::<u32>().ok());
            return code.is_some_and(|code| DAMAGED.contains(&(code & 0xff)));
        }
        next = one.source();
    }
    false
}

fn options(path: &Path) -> SqliteConnectOptions {
    SqliteConnectOptions::new()
        .filename(path)
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal)
        // NORMAL may lose what was acknowledged when the power fails.
        .synchronous(SqliteSynchronous::Full)
        .foreign_keys(true)
        .busy_timeout(BUSY_TIMEOUT)
        .statement_cache_capacity(512)
        .row_buffer_size(1_024)
        .pragma("temp_store", "MEMORY")
        .pragma("cache_size", "-65536")
        .pragma("wal_autocheckpoint", "4000")
        .pragma("journal_size_limit", "67108864")
        .disable_statement_logging()
}

/// Makes the folder and the file, readable for nobody else, and looks at what is there already.
fn prepare_file(path: &Path) -> Result<(), DbError> {
    use std::io::Read as _;
    const MAGIC: &[u8] = b"SQLite format 3\0";
    let failed = |error: std::io::Error| unopened(path, error);
    if let Some(folder) = path
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty())
    {
        std::fs::create_dir_all(folder).map_err(failed)?;
    }
    let mut file = std::fs::OpenOptions::new();
    file.read(true).write(true).create(true).truncate(false);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut file, 0o600);
    let mut start = Vec::new();
    let opened = file.open(path).map_err(failed)?;
    opened
        .take(MAGIC.len() as u64)
        .read_to_end(&mut start)
        .map_err(failed)?;
    if start.is_empty() || start == MAGIC {
        return Ok(());
    }
    Err(DbError::NotADatabase {
        place: path.to_owned().into(),
        why: "it does not begin as an SQLite file does".to_owned(),
    })
}

pub(super) fn unopened(path: &Path, error: impl Error + Send + Sync + 'static) -> DbError {
    let place = path.to_owned().into();
    match is_damaged(&error) {
        true => DbError::Damaged {
            place: Some(place),
            source: Arc::new(error),
        },
        false => DbError::Unopened {
            place,
            source: Arc::new(error),
        },
    }
}

async fn check_version(path: &Path, tx: &mut Tx) -> Result<(), DbError> {
    let row = tx.row("SELECT sqlite_version()", args![]).await?;
    let text: String = row.map_or(Ok(String::new()), |row| row.get(0))?;
    let mut parts = text.split('.').map(|part| part.parse().unwrap_or(0));
    let mut part = || parts.next().unwrap_or(0);
    let version = (part(), part(), part());
    if version >= OLDEST {
        return Ok(());
    }
    let error = std::io::Error::other(format!(
        "SQLite {text} may lose a write-ahead log; at least 3.51.3 is needed"
    ));
    Err(unopened(path, error))
}
