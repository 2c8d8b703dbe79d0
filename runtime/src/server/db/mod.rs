//! The database: one door for writing, many for reading, one file for each table.
//!
//! Everything is written through [`Db::write`]: on SQLite its closures share transactions (`writer`),
//! on PostgreSQL each is one of its own (`postgres`). SQL lives in this folder only. The server's API
//! and duties call the functions of the tables inside a closure, or with a reader.

pub mod agent;
mod barred;
pub mod card;
pub mod copy;
pub mod fact;
pub mod flow;
pub mod flow_run;
pub mod flow_version;
pub mod lease;
pub mod left_out;
pub mod location;
pub mod log_line;
pub mod login;
pub mod memory;
mod migration;
mod postgres;
pub mod project;
pub mod pulse;
pub mod realm;
pub mod report;
pub mod requirement;
pub mod schedule;
pub mod segment;
pub mod slot;
pub mod sql;
mod sqlite;
pub mod tag;
pub mod tag_slot;
pub mod task_run;
pub mod token;
pub mod transition;
pub mod tx;
mod writer;

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use futures::future::BoxFuture;

use barred::Barred;
use memory::Memory;
use postgres::Postgres;
use sqlite::Sqlite;
use tx::Tx;

/// Where a database is.
#[derive(Clone, PartialEq, Eq)]
pub enum Place {
    /// An SQLite file, for one server.
    File(PathBuf),
    /// The URL of a PostgreSQL database.
    Postgres(String),
}

impl From<PathBuf> for Place {
    fn from(file: PathBuf) -> Self {
        Self::File(file)
    }
}

impl fmt::Display for Place {
    /// Writes it without the password that a URL may have.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(file) => file.display().fmt(f),
            Self::Postgres(url) => match url::Url::parse(url) {
                Ok(mut url) => {
                    // Refused only where there is no host, and then there is no password.
                    url.set_password(None).ok();
                    url.set_query(None);
                    url.fmt(f)
                }
                Err(_) => f.write_str("postgres"),
            },
        }
    }
}

impl fmt::Debug for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Place({self})")
    }
}

/// The database. Cheap to clone.
#[derive(Clone)]
pub struct Db {
    kept: Kept,
    /// Rows that never change once they are committed.
    pub memory: Memory,
}

#[derive(Clone)]
enum Kept {
    Sqlite(Sqlite),
    Postgres(Postgres),
}

/// Why the database did not do what it was to do.
#[derive(Debug, thiserror::Error)]
pub enum DbError {
    /// Something else lies there.
    #[error("`{place}` is not a database of waft: {why}")]
    NotADatabase {
        /// Where.
        place: Place,
        /// How it shows.
        why: String,
    },
    /// A newer waft made it.
    #[error("`{place}` was made by a newer version of waft (migration {migration})")]
    Newer {
        /// Where.
        place: Place,
        /// The first migration that is not known here.
        migration: i64,
    },
    /// It cannot be opened, or not be used as it has to be.
    #[error("cannot use the database `{place}`")]
    Unopened {
        /// Where.
        place: Place,
        /// Why.
        #[source]
        source: Arc<dyn std::error::Error + Send + Sync>,
    },
    /// The disk is full. Nothing of the transaction was written.
    #[error("the disk of the database is full")]
    Full,
    /// The bytes of the file make no sense.
    #[error("the database{} is damaged", named(.place.as_ref()))]
    Damaged {
        /// Where, as far as that is known.
        place: Option<Place>,
        /// How it shows.
        #[source]
        source: Arc<dyn std::error::Error + Send + Sync>,
    },
    /// Another transaction changed the same run first; nothing of this one was written.
    #[error("another change came first")]
    Raced,
    /// The database cannot be reached, or goes down or comes up. What was to be written may have been.
    #[error("the database is away")]
    Away(#[source] sqlx::Error),
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
        let code = match &error {
            sqlx::Error::Database(inner) => inner.code(),
            _ => None,
        };
        match &error {
            _ if matches!(code.as_deref(), Some(sqlite::FULL | postgres::FULL)) => Self::Full,
            _ if code.as_deref().is_some_and(postgres::is_raced) => Self::Raced,
            _ if sqlite::is_damaged(&error) => Self::Damaged {
                place: None,
                source: Arc::new(error),
            },
            sqlx::Error::PoolClosed => Self::Closed,
            _ if postgres::is_away(&error) => Self::Away(error),
            _ => Self::Broken(error),
        }
    }
}

fn named(place: Option<&Place>) -> String {
    place.map_or_else(String::new, |place| format!(" `{place}`"))
}

impl DbError {
    /// Says what a person has to mend at the database, and where it is, if the error is of that kind.
    #[must_use]
    pub fn at(self, known: &Place) -> Self {
        match (self, known) {
            (Self::Broken(error) | Self::Away(error), Place::Postgres(url)) => {
                postgres::unopened_by(url, error)
            }
            (Self::Damaged { place, source }, _) => Self::Damaged {
                place: place.or_else(|| Some(known.clone())),
                source,
            },
            (other, _) => other,
        }
    }

    /// Returns what whoever looks after the database can do about it.
    #[must_use]
    pub fn hint(&self) -> Option<&str> {
        match self {
            Self::Full => Some("make room on its disk; nothing that was acknowledged is lost"),
            Self::Damaged { .. } => {
                Some("waft server restore FILE puts a backup in its place, and keeps what is there")
            }
            Self::Unopened { source, .. } => {
                let barred: &Barred = source.downcast_ref()?;
                Some(&barred.hint)
            }
            _ => None,
        }
    }

    /// Makes the error again for each closure of a transaction that failed as a whole.
    fn again(&self) -> Self {
        match self {
            Self::Full => Self::Full,
            Self::Closed => Self::Closed,
            Self::Damaged { place, source } => Self::Damaged {
                place: place.clone(),
                source: source.clone(),
            },
            Self::Broken(source) => Self::Undone(source.to_string()),
            other => Self::Undone(other.to_string()),
        }
    }
}

/// Where this server hears what others of its database tell.
pub struct Line(postgres::Line);

impl Line {
    /// Waits for the next text; none once the line is lost.
    ///
    /// # Errors
    ///
    /// The database's.
    pub async fn next(&mut self) -> Result<Option<String>, DbError> {
        self.0.next().await
    }
}

impl Db {
    /// Opens a database, making and migrating it as needed.
    ///
    /// # Errors
    ///
    /// Refuses what is something else, and what a newer waft made.
    pub async fn open(place: &Place) -> Result<Self, DbError> {
        let memory = Memory::default();
        let kept = match place {
            Place::File(file) => Sqlite::open(file, &memory).await.map(Kept::Sqlite),
            Place::Postgres(url) => Postgres::open(url).await.map(Kept::Postgres),
        };
        let kept = kept.map_err(|error| error.at(place))?;
        Ok(Self { kept, memory })
    }

    /// Looks whether a file is whole that whoever had it last could not close, and nobody has now.
    ///
    /// # Errors
    ///
    /// Says that it is damaged.
    pub async fn examine(place: &Place) -> Result<(), DbError> {
        match place {
            Place::File(file) => sqlite::examine(file).await,
            // It does that by itself.
            Place::Postgres(_) => Ok(()),
        }
    }

    /// Returns the last migration that a database has; none if there is nothing yet.
    ///
    /// # Errors
    ///
    /// Refuses what is something else, and what a newer waft made.
    pub async fn migration(place: &Place) -> Result<Option<i64>, DbError> {
        match place {
            Place::File(file) => sqlite::last_migration(file).await,
            Place::Postgres(url) => {
                let last = postgres::last_migration(url).await;
                last.map_err(|error| error.at(place))
            }
        }
    }

    /// Runs a closure in a transaction and answers once what it wrote is durable.
    ///
    /// An error undoes all that this closure wrote, and nothing else. The closure runs to its end
    /// even if nobody waits for the answer any more. Where others write at the same time it may be run
    /// again, if they were in its way and nothing of it was kept.
    ///
    /// # Errors
    ///
    /// The closure's own, or the database's.
    pub async fn write<T, E, F>(&self, act: F) -> Result<T, E>
    where
        F: for<'t> FnOnce(&'t mut Tx) -> BoxFuture<'t, Result<T, E>> + Clone + Send + 'static,
        T: Send + 'static,
        E: From<DbError> + Send + 'static,
    {
        match &self.kept {
            Kept::Sqlite(own) => own.write(act).await,
            Kept::Postgres(shared) => shared.write(act, &self.memory).await,
        }
    }

    /// Returns a connection for reading. Each statement sees what is committed when it begins.
    ///
    /// # Errors
    ///
    /// Fails when the database is closed or broken.
    pub async fn reader(&self) -> Result<Tx, DbError> {
        match &self.kept {
            Kept::Sqlite(own) => own.reader().await,
            Kept::Postgres(shared) => shared.reader().await,
        }
    }

    /// Tells whether several servers may use it at the same time.
    #[must_use]
    pub const fn is_shared(&self) -> bool {
        matches!(self.kept, Kept::Postgres(_))
    }

    /// Tells texts to every server of this database, this one too, if there can be others.
    ///
    /// # Errors
    ///
    /// The database's.
    pub async fn tell(&self, texts: Vec<String>) -> Result<(), DbError> {
        match &self.kept {
            Kept::Sqlite(_) => Ok(()),
            Kept::Postgres(_) => {
                let told =
                    self.write(move |tx| Box::pin(async move { postgres::tell(tx, texts).await }));
                told.await
            }
        }
    }

    /// Opens a line on which to hear what servers of this database tell from now on; none if there can
    /// be no other.
    ///
    /// # Errors
    ///
    /// Fails if the database cannot be reached.
    pub async fn listen(&self) -> Result<Option<Line>, DbError> {
        match &self.kept {
            Kept::Sqlite(_) => Ok(None),
            Kept::Postgres(shared) => Ok(Some(Line(shared.listen().await?))),
        }
    }

    /// Closes the database after what is queued. Later calls fail with [`DbError::Closed`] as soon
    /// as the last clone is gone.
    pub async fn close(self) {
        match self.kept {
            Kept::Sqlite(own) => own.close().await,
            Kept::Postgres(shared) => shared.close().await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::sql::Kind;
    use super::tx::args;
    use super::*;

    /// What is on the path of every claim and report looks rows up; a scan would show only once
    /// there are many.
    #[tokio::test]
    async fn claims_and_reports_scan_no_table() {
        for sql in [
            flow_run::HEADS.sqlite,
            flow_run::LINE.sqlite,
            flow_run::LINE_WITHOUT.sqlite,
            flow_run::OVERDUE.sqlite,
            flow_run::READ.text(Kind::Sqlite, 3),
            flow_run::APPLY.text(Kind::Sqlite, 3),
            lease::RENEW.text(Kind::Sqlite, 3),
            task_run::READ.text(Kind::Sqlite, 3),
        ] {
            for step in steps_of(sql).await {
                let is_scan = ["SCAN flow_run", "SCAN task_run"]
                    .iter()
                    .any(|scan| step.starts_with(scan));
                // The first head is the first of the index: one step of a scan.
                let is_first =
                    sql == flow_run::HEADS.sqlite && step.ends_with("INDEX flow_run_waiting");
                assert!(!is_scan || is_first, "{step}: {sql}");
            }
        }
    }

    /// A run may have said half a million lines, and all but a few of its tasks.
    #[tokio::test]
    async fn what_a_run_said_last_is_found_past_what_its_tasks_said() {
        assert_eq!(
            steps_of(log_line::LAST.sqlite).await,
            ["SEARCH log_line USING INDEX log_line_of_run (flow_run_id=?)"]
        );
    }

    /// A project may have had millions of runs, and thousands may wait; agents have few of them.
    #[tokio::test]
    async fn what_agents_have_of_a_project_is_found_past_all_its_other_runs() {
        for sql in [
            flow_run::AGENTS_OF.sqlite,
            tag_slot::AT_WORK.sqlite,
            tag_slot::LIVE.sqlite,
        ] {
            let steps = steps_of(sql).await;
            assert!(
                steps[0].contains(" USING INDEX flow_run_leased"),
                "{steps:?}: {sql}"
            );
            let others = steps[1..].iter();
            assert_eq!(others.filter(|step| step.starts_with("SCAN")).count(), 0);
        }
        let steps = steps_of(tag::LAST_CHANGE).await;
        assert_eq!(steps[0], "SEARCH tag USING COVERING INDEX tag_change");
    }

    /// Each claim counts them where runs of a flow or a project are limited, and there may be thousands.
    #[tokio::test]
    async fn runs_that_agents_have_are_counted_without_looking_them_up() {
        assert_eq!(
            steps_of(slot::TAKEN).await,
            ["SCAN flow_run USING COVERING INDEX flow_run_held"]
        );
    }

    /// Returns how a new database goes about a statement.
    async fn steps_of(sql: &str) -> Vec<String> {
        let folder = tempfile::tempdir().unwrap();
        let db = Db::open(&folder.path().join("waft.db").into())
            .await
            .unwrap();
        let explain: &'static str = format!("EXPLAIN QUERY PLAN {sql}").leak();
        let steps = db.reader().await.unwrap().rows(explain, args![]).await;
        let steps = steps.unwrap();
        steps.iter().map(|row| row.get(3).unwrap()).collect()
    }
}
