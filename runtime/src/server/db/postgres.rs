//! A PostgreSQL database: each closure is a transaction of its own, and many write at the same time.
//!
//! Isolation is READ COMMITTED: each statement sees what was committed when it began, and the files of
//! the tables lock what they change before they read it. Rows are locked in one order (flow, runs by
//! id, requirements, segments), so that nobody waits in a circle but by accident; then the database
//! ends one of them, and it is run again.

use std::net::IpAddr;
use std::panic::AssertUnwindSafe;
use std::str::FromStr as _;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::BoxFuture;
use rand::Rng as _;
use sqlx::postgres::{PgConnectOptions, PgListener, PgPool, PgPoolOptions, PgSslMode};
use sqlx::{ConnectOptions as _, Connection as _};

use super::barred::barred;
use super::memory::Memory;
use super::tx::{Tx, args};
use super::{DbError, Place, migration};
use crate::server::panics;

/// Connections for writing at one time, and for reading: PostgreSQL lets a hundred in unless it is told
/// otherwise, and others want some too.
const WRITERS: u32 = 10;
const READERS: u32 = 8;
/// How long a call waits for a connection.
const ACQUIRE: Duration = Duration::from_secs(10);
/// A connection that was not used for so long is asked whether it still lives before it is used.
const IDLE: Duration = Duration::from_secs(1);
/// The oldest that is supported, as the server counts.
const OLDEST: i64 = 140_000;
/// How often a closure is run again that others were in the way of.
const AGAIN: u32 = 8;
/// The code of an error when the disk is full.
pub(super) const FULL: &str = "53100";
/// What is set for each connection. A server that stops in the middle of a transaction must not hold its
/// locks for ever, and nobody waits for a lock without end.
const SETTINGS: [(&str, &str); 2] = [
    ("idle_in_transaction_session_timeout", "10s"),
    ("lock_timeout", "10s"),
];

/// The channel on which servers tell each other what they have done.
const CHANNEL: &str = "waft";

/// A database that is open. Clones share it.
#[derive(Clone)]
pub(super) struct Postgres {
    writers: PgPool,
    readers: PgPool,
    options: Arc<PgConnectOptions>,
}

/// A connection on which other servers are heard.
pub(super) struct Line(PgListener);

impl Line {
    pub(super) async fn next(&mut self) -> Result<Option<String>, DbError> {
        let heard = self.0.try_recv().await?;
        Ok(heard.map(|heard| heard.payload().to_owned()))
    }
}

/// Tells texts to whoever listens, once the transaction is committed.
pub(super) async fn tell(tx: &mut Tx, texts: Vec<String>) -> Result<(), DbError> {
    for text in texts {
        tx.row("SELECT pg_notify($1, $2)", args![CHANNEL, text])
            .await?;
    }
    Ok(())
}

impl Postgres {
    /// Opens a database and migrates it as needed, under a lock that keeps other servers from doing the
    /// same.
    pub(super) async fn open(url: &str) -> Result<Self, DbError> {
        let options = options(url)?;
        let mut connection = options
            .connect()
            .await
            .map_err(|error| unopened_by(url, error))?;
        check_server(url, &mut connection).await?;
        migration::run_on_postgres(url, &mut connection).await?;
        connection.close().await?;
        let pool = |most| {
            PgPoolOptions::new()
                .max_connections(most)
                .acquire_timeout(ACQUIRE)
                .test_before_acquire(false)
                .before_acquire(|connection, idle| {
                    Box::pin(
                        async move { Ok(idle.idle_for < IDLE || connection.ping().await.is_ok()) },
                    )
                })
                .connect_lazy_with(options.clone())
        };
        Ok(Self {
            writers: pool(WRITERS),
            readers: pool(READERS),
            options: Arc::new(options),
        })
    }

    /// Runs a closure in a transaction of its own; again if others were in its way.
    pub(super) async fn write<T, E, F>(&self, act: F, memory: &Memory) -> Result<T, E>
    where
        F: for<'t> FnOnce(&'t mut Tx) -> BoxFuture<'t, Result<T, E>> + Clone + Send + 'static,
        T: Send + 'static,
        E: From<DbError> + Send + 'static,
    {
        let (writers, memory) = (self.writers.clone(), memory.clone());
        // Whoever asked may be gone before the end; what was begun is done.
        let written = tokio::spawn(async move {
            let mut nth = 0;
            loop {
                match once(&writers, act.clone(), &memory).await {
                    Ok(value) => return Ok(value),
                    Err((error, is_passing)) if !is_passing || nth == AGAIN => return Err(error),
                    Err(_) => tokio::time::sleep(pause(nth)).await,
                }
                nth += 1;
            }
        });
        written
            .await
            .unwrap_or_else(|_| Err(E::from(DbError::Closed)))
    }

    /// Opens a line of its own to what is told from now on.
    pub(super) async fn listen(&self) -> Result<Line, DbError> {
        let own = PgPoolOptions::new()
            .max_connections(1)
            .acquire_timeout(ACQUIRE)
            .connect_lazy_with((*self.options).clone());
        let mut listener = PgListener::connect_with(&own).await?;
        listener.listen(CHANNEL).await?;
        Ok(Line(listener))
    }

    /// Returns a connection for reading.
    pub(super) async fn reader(&self) -> Result<Tx, DbError> {
        Ok(Tx::shared(self.readers.acquire().await?))
    }

    /// Closes the database after what is under way.
    pub(super) async fn close(self) {
        self.readers.close().await;
        self.writers.close().await;
    }
}

/// Returns the last migration that a database has; none if there is nothing yet.
pub(super) async fn last_migration(url: &str) -> Result<Option<i64>, DbError> {
    let connected = options(url)?.connect().await;
    let mut connection = connected.map_err(|error| unopened_by(url, error))?;
    let last = migration::last_of_postgres(url, &mut connection).await?;
    connection.close().await?;
    Ok(last)
}

/// Runs a closure once; of an error says whether it may go well the next time.
async fn once<T, E, F>(writers: &PgPool, act: F, memory: &Memory) -> Result<T, (E, bool)>
where
    F: for<'t> FnOnce(&'t mut Tx) -> BoxFuture<'t, Result<T, E>> + Send,
    E: From<DbError>,
{
    let refused = |error: sqlx::Error| {
        let is_passing = is_passing(&error);
        (E::from(DbError::from(error)), is_passing)
    };
    let mut tx = Tx::shared(writers.acquire().await.map_err(refused)?);
    let begun = tx.run("BEGIN", args![]).await;
    if let Err(error) = begun {
        let is_passing = tx.take_trouble().is_passing;
        tx.close().await;
        return Err((E::from(error), is_passing));
    }
    let acted = AssertUnwindSafe(async { act(&mut tx).await })
        .catch_unwind()
        .await;
    let result = acted.unwrap_or_else(|_| {
        panics::count();
        Err(E::from(DbError::Panicked))
    });
    let trouble = tx.take_trouble();
    let error = match result {
        // The database has undone the transaction by then, whatever the closure makes of it.
        Ok(_) if trouble.has_failed => {
            E::from(DbError::Undone("one of its statements failed".to_owned()))
        }
        Ok(value) => match tx.run("COMMIT", args![]).await {
            Ok(_) => return Ok(value),
            Err(error) => {
                // It was refused, or the answer was lost: nobody knows, so it is not run again.
                let is_refused = matches!(error, DbError::Raced);
                memory.forget();
                tx.close().await;
                return Err((E::from(error), is_refused));
            }
        },
        Err(error) => error,
    };
    if tx.run("ROLLBACK", args![]).await.is_err() {
        tx.close().await;
    }
    Err((error, trouble.is_passing))
}

/// Returns how long to wait before the next try: others wait for something else by then.
fn pause(nth: u32) -> Duration {
    let most = 5_u64 << nth.min(8);
    Duration::from_millis(rand::rng().random_range(most / 2..=most))
}

/// Tells by the code of an error whether another transaction was in the way.
pub(super) fn is_raced(code: &str) -> bool {
    const SERIALIZATION_FAILURE: &str = "40001";
    const DEADLOCK_DETECTED: &str = "40P01";
    const LOCK_NOT_AVAILABLE: &str = "55P03";
    [SERIALIZATION_FAILURE, DEADLOCK_DETECTED, LOCK_NOT_AVAILABLE].contains(&code)
}

/// Tells whether an error says that the database cannot be reached, or not yet, or no more.
pub(super) fn is_away(error: &sqlx::Error) -> bool {
    match error {
        // The driver reads the end of a connection that is being opened as an answer without sense.
        sqlx::Error::Io(_) | sqlx::Error::PoolTimedOut | sqlx::Error::Protocol(_) => true,
        // Its class 08 is about connections, 53300 says that it has too many, 57P0 that it goes down or
        // comes up.
        sqlx::Error::Database(inner) => inner.code().is_some_and(|code| {
            code.len() == 5 && (code.starts_with("08") || code.starts_with("57P0"))
                || code == "53300"
        }),
        _ => false,
    }
}

/// Tells whether a statement that failed in this way may go well in another transaction: others were in
/// the way, or the connection was lost.
pub(super) fn is_passing(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Io(_) => true,
        sqlx::Error::Database(inner) => inner.code().is_some_and(|code| {
            // The server goes down or comes up, or has ended a transaction that stood still.
            is_raced(&code) || ["57P01", "57P02", "57P03", "25P03"].contains(&code.as_ref())
        }),
        _ => false,
    }
}

fn options(url: &str) -> Result<PgConnectOptions, DbError> {
    let options = PgConnectOptions::from_str(url).map_err(|error| unopened(url, error))?;
    let options = match is_in_the_clear(url, &options) {
        true => options.ssl_mode(PgSslMode::VerifyFull),
        false => options,
    };
    let options = options
        .application_name("waft")
        .options(SETTINGS)
        .statement_cache_capacity(512)
        .disable_statement_logging();
    Ok(options)
}

/// Tells whether the driver would speak to another machine in clear text if that asks for it: it does where
/// nobody has named a mode.
fn is_in_the_clear(url: &str, options: &PgConnectOptions) -> bool {
    let is_named = url.contains("sslmode=") || url.contains("ssl-mode=");
    let host = options.get_host();
    let ip: Option<IpAddr> = host.parse().ok();
    let is_here =
        host == "localhost" || host.starts_with('/') || ip.is_some_and(|ip| ip.is_loopback());
    let is_here = is_here || options.get_socket().is_some();
    !is_named && !is_here && matches!(options.get_ssl_mode(), PgSslMode::Prefer)
}

/// As [`unopened`], in words of ours where a person can mend it.
pub(super) fn unopened_by(url: &str, error: sqlx::Error) -> DbError {
    let options = PgConnectOptions::from_str(url);
    match options.ok().and_then(|options| barred(&options, &error)) {
        Some(barred) => unopened(url, barred),
        None => unopened(url, error),
    }
}

pub(super) fn unopened(
    url: &str,
    error: impl std::error::Error + Send + Sync + 'static,
) -> DbError {
    DbError::Unopened {
        place: Place::Postgres(url.to_owned()),
        source: Arc::new(error),
    }
}

/// Refuses a server that is too old, and a database that keeps text in another way.
async fn check_server(url: &str, connection: &mut sqlx::PgConnection) -> Result<(), DbError> {
    use sqlx::Row as _;
    let asked = "SELECT current_setting('server_version_num')::bigint, \
                 current_setting('server_encoding')";
    let row = sqlx::query(asked).fetch_one(connection).await?;
    let (version, encoding): (i64, String) = (row.try_get(0)?, row.try_get(1)?);
    let why = match () {
        () if version < OLDEST => format!("PostgreSQL {}: at least 14 is needed", version / 10_000),
        () if encoding != "UTF8" => format!("its encoding is {encoding}: UTF8 is needed"),
        () => return Ok(()),
    };
    Err(unopened(url, std::io::Error::other(why)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_machine_is_asked_for_its_certificate() {
        let mode = |url: &str| options(url).unwrap().get_ssl_mode();
        for far in [
            "postgres://ada@db.example.org/waft",
            "postgres://10.0.0.7/waft",
        ] {
            assert!(matches!(mode(far), PgSslMode::VerifyFull), "{far}");
        }
        let named = "postgres://db.example.org/waft?sslmode=disable";
        assert!(matches!(mode(named), PgSslMode::Disable));
        for near in [
            "postgres://127.0.0.1:5432/waft",
            "postgres://localhost/waft",
            "postgres:///waft?host=/run/postgresql",
        ] {
            assert!(matches!(mode(near), PgSslMode::Prefer), "{near}");
        }
    }
}
