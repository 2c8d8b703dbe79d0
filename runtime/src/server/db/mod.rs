//! The database: one door for writing, many for reading, one file for each table.
//!
//! Everything is written through [`Db::write`]; on SQLite its closures share transactions
//! (`writer`). SQL lives in this folder only. The server's API and duties call the functions of the
//! tables inside a closure, or with a reader.

pub mod agent;
pub mod card;
pub mod fact;
pub mod flow;
pub mod flow_run;
pub mod flow_version;
pub mod lease;
pub mod left_out;
pub mod location;
pub mod log_line;
pub mod memory;
mod migration;
pub mod project;
pub mod realm;
pub mod report;
pub mod requirement;
pub mod schedule;
pub mod segment;
pub mod slot;
pub mod task_run;
pub mod token;
pub mod transition;
pub mod tx;
mod writer;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::future::BoxFuture;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};
use sqlx::{ConnectOptions as _, SqlitePool};

use memory::Memory;
use tx::{Tx, args};
use writer::Writer;

/// Connections for reading at one time; each is a thread of the driver.
const READERS: u32 = 4;
/// How long a statement waits for another process that writes, such as `waft server token`.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
/// The oldest SQLite without the bug that could lose a write-ahead log.
const SQLITE_OLDEST: (u32, u32, u32) = (3, 51, 3);

/// The database. Cheap to clone.
#[derive(Clone)]
pub struct Db {
    writer: Writer,
    readers: SqlitePool,
    closing: Arc<Mutex<Option<tokio::task::JoinHandle<()>>>>,
    /// Rows that never change once they are committed.
    pub memory: Memory,
}

/// Why the database did not do what it was to do.
#[derive(Debug, thiserror::Error)]
pub enum DbError {
    /// The file is something else.
    #[error("`{}` is not a database of waft: {why}", path.display())]
    NotADatabase {
        /// The file.
        path: PathBuf,
        /// How it shows.
        why: String,
    },
    /// A newer waft made it.
    #[error("`{}` was made by a newer version of waft (migration {migration})", path.display())]
    Newer {
        /// The file.
        path: PathBuf,
        /// The first migration that is not known here.
        migration: i64,
    },
    /// It cannot be opened.
    #[error("cannot open the database `{}`", path.display())]
    Unopened {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: Arc<dyn std::error::Error + Send + Sync>,
    },
    /// The disk is full. Nothing of the transaction was written.
    #[error("the disk of the database is full")]
    Full,
    /// Another transaction changed the same run first; nothing of this one was written.
    #[error("another change came first")]
    Raced,
    /// The server is on its way down.
    #[error("the database is closed")]
    Closed,
    /// A closure panicked: a bug of ours.
    #[error("a bug: writing to the database panicked")]
    Panicked,
    /// Anything else the database says.
    #[error("the database failed")]
    Broken(#[source] sqlx::Error),
    /// The transaction of many failed, for this reason.
    #[error("the transaction was undone: {0}")]
    Undone(String),
}

impl From<sqlx::Error> for DbError {
    fn from(error: sqlx::Error) -> Self {
        const SQLITE_FULL: &str = "13";
        match &error {
            sqlx::Error::Database(inner) if inner.code().as_deref() == Some(SQLITE_FULL) => {
                Self::Full
            }
            sqlx::Error::PoolClosed => Self::Closed,
            _ => Self::Broken(error),
        }
    }
}

impl DbError {
    /// Makes the error again for each closure of a transaction that failed as a whole.
    fn again(&self) -> Self {
        match self {
            Self::Full => Self::Full,
            Self::Closed => Self::Closed,
            Self::Broken(source) => Self::Undone(source.to_string()),
            other => Self::Undone(other.to_string()),
        }
    }
}

impl Db {
    /// Opens the database of a file, making and migrating it as needed.
    ///
    /// # Errors
    ///
    /// Refuses a file that is something else, and one that a newer waft made.
    pub async fn open(path: &Path) -> Result<Self, DbError> {
        prepare_file(path)?;
        let mut connection = options(path)
            .connect()
            .await
            .map_err(|error| unopened(path, error))?;
        migration::run(path, &mut connection).await?;
        let mut tx = Tx::own(connection);
        check_version(path, &mut tx).await?;
        let memory = Memory::default();
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
            memory,
        })
    }

    /// Runs a closure in a transaction and answers once what it wrote is durable.
    ///
    /// An error undoes all that this closure wrote, and nothing else. The closure runs to its end
    /// even if nobody waits for the answer any more.
    ///
    /// # Errors
    ///
    /// The closure's own, or the database's.
    pub async fn write<T, E, F>(&self, act: F) -> Result<T, E>
    where
        F: for<'t> FnOnce(&'t mut Tx) -> BoxFuture<'t, Result<T, E>> + Send + 'static,
        T: Send + 'static,
        E: From<DbError> + Send + 'static,
    {
        self.writer.write(act).await
    }

    /// Returns a connection for reading. Each statement sees what is committed when it begins.
    ///
    /// # Errors
    ///
    /// Fails when the database is closed or broken.
    pub async fn reader(&self) -> Result<Tx, DbError> {
        Ok(Tx::pooled(self.readers.acquire().await?))
    }

    /// Closes the database after what is queued. Later calls fail with [`DbError::Closed`] as soon
    /// as the last clone is gone.
    pub async fn close(self) {
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
        path: path.to_owned(),
        why: "it does not begin as an SQLite file does".to_owned(),
    })
}

fn unopened(path: &Path, error: impl std::error::Error + Send + Sync + 'static) -> DbError {
    DbError::Unopened {
        path: path.to_owned(),
        source: Arc::new(error),
    }
}

async fn check_version(path: &Path, tx: &mut Tx) -> Result<(), DbError> {
    let row = tx.row("SELECT sqlite_version()", args![]).await?;
    let text: String = row.map_or(Ok(String::new()), |row| row.get(0))?;
    let mut parts = text.split('.').map(|part| part.parse().unwrap_or(0));
    let mut part = || parts.next().unwrap_or(0);
    let version = (part(), part(), part());
    if version >= SQLITE_OLDEST {
        return Ok(());
    }
    let error = std::io::Error::other(format!(
        "SQLite {text} may lose a write-ahead log; at least 3.51.3 is needed"
    ));
    Err(unopened(path, error))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is on the path of every claim and report looks rows up; a scan would show only once
    /// there are many.
    #[tokio::test]
    async fn claims_and_reports_scan_no_table() {
        let folder = tempfile::tempdir().unwrap();
        let db = Db::open(&folder.path().join("waft.db")).await.unwrap();
        let mut reader = db.reader().await.unwrap();
        for sql in [
            flow_run::HEADS,
            flow_run::LINE,
            flow_run::LINE_WITHOUT,
            flow_run::READ.text(3),
            flow_run::APPLY.text(3),
            lease::RENEW.text(3),
            task_run::READ.text(3),
        ] {
            let explain: &'static str = format!("EXPLAIN QUERY PLAN {sql}").leak();
            for row in reader.rows(explain, args![]).await.unwrap() {
                let step: String = row.get(3).unwrap();
                let is_scan = ["SCAN flow_run", "SCAN task_run"]
                    .iter()
                    .any(|scan| step.starts_with(scan));
                // The first head is the first of the index: one step of a scan.
                let is_first = sql == flow_run::HEADS && step.ends_with("INDEX flow_run_waiting");
                assert!(!is_scan || is_first, "{step}: {sql}");
            }
        }
    }
}
