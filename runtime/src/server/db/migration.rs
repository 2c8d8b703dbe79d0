//! Migrations: the steps that bring a database to the shape this version knows.
//!
//! Embedded, forward only, run under the lock of the database at every start.

use std::borrow::Cow;
use std::path::Path;

use sqlx::migrate::{Migrate, MigrateError, Migration, MigrationType, Migrator};
use sqlx::{
    Connection as _, Executor as _, PgConnection, Row as _, SqlSafeStr as _, SqliteConnection,
};

use super::{DbError, Place, postgres, sqlite};

/// Marks a file as ours in its header: `WAFT`.
const APPLICATION_ID: i64 = 0x5741_4654;
const MARK: &str = "PRAGMA application_id = 1463895636";

/// A migration: its number, its name and its statements.
type Step = (i64, &'static str, &'static str);

/// Every migration of a file, by number.
const OF_FILES: &[Step] = &[
    (
        1,
        "first",
        include_str!("../../../migrations/sqlite/0001_first.sql"),
    ),
    (
        2,
        "left out",
        include_str!("../../../migrations/sqlite/0002_left_out.sql"),
    ),
    (
        3,
        "segment",
        include_str!("../../../migrations/sqlite/0003_segment.sql"),
    ),
    (
        4,
        "drain",
        include_str!("../../../migrations/sqlite/0004_drain.sql"),
    ),
    (
        5,
        "overlap and slots",
        include_str!("../../../migrations/sqlite/0005_overlap_and_slots.sql"),
    ),
    (
        6,
        "replicas",
        include_str!("../../../migrations/sqlite/0006_replicas.sql"),
    ),
    (
        7,
        "waiting",
        include_str!("../../../migrations/sqlite/0007_waiting.sql"),
    ),
    (
        8,
        "people",
        include_str!("../../../migrations/sqlite/0008_people.sql"),
    ),
    (
        9,
        "home",
        include_str!("../../../migrations/sqlite/0009_home.sql"),
    ),
    (
        10,
        "tag slots",
        include_str!("../../../migrations/sqlite/0010_tag_slots.sql"),
    ),
    (
        11,
        "version by",
        include_str!("../../../migrations/sqlite/0011_version_by.sql"),
    ),
    (
        12,
        "mark",
        include_str!("../../../migrations/sqlite/0012_mark.sql"),
    ),
    (
        13,
        "tag change",
        include_str!("../../../migrations/sqlite/0013_tag_change.sql"),
    ),
    (
        14,
        "held",
        include_str!("../../../migrations/sqlite/0014_held.sql"),
    ),
];

/// Every migration of a PostgreSQL database, by number.
const OF_POSTGRES: &[Step] = &[
    (
        1,
        "first",
        include_str!("../../../migrations/postgres/0001_first.sql"),
    ),
    (
        4,
        "drain",
        include_str!("../../../migrations/postgres/0004_drain.sql"),
    ),
    (
        5,
        "overlap and slots",
        include_str!("../../../migrations/postgres/0005_overlap_and_slots.sql"),
    ),
    (
        6,
        "replicas",
        include_str!("../../../migrations/postgres/0006_replicas.sql"),
    ),
    (
        7,
        "waiting",
        include_str!("../../../migrations/postgres/0007_waiting.sql"),
    ),
    (
        8,
        "people",
        include_str!("../../../migrations/postgres/0008_people.sql"),
    ),
    (
        9,
        "home",
        include_str!("../../../migrations/postgres/0009_home.sql"),
    ),
    (
        10,
        "tag slots",
        include_str!("../../../migrations/postgres/0010_tag_slots.sql"),
    ),
    (
        11,
        "version by",
        include_str!("../../../migrations/postgres/0011_version_by.sql"),
    ),
    (
        12,
        "mark",
        include_str!("../../../migrations/postgres/0012_mark.sql"),
    ),
    (
        13,
        "tag change",
        include_str!("../../../migrations/postgres/0013_tag_change.sql"),
    ),
    (
        14,
        "held",
        include_str!("../../../migrations/postgres/0014_held.sql"),
    ),
];

/// Brings a file up to date.
pub(super) async fn run_on_file(
    path: &Path,
    connection: &mut SqliteConnection,
) -> Result<(), DbError> {
    check_owner(path, connection).await?;
    let migrated = run(OF_FILES, connection).await;
    migrated.map_err(|error| {
        newer(path.to_owned().into(), &error).unwrap_or_else(|| sqlite::unopened(path, error))
    })?;
    connection.execute(MARK).await?;
    Ok(())
}

/// Brings a PostgreSQL database up to date. An advisory lock lets one server do it at a time.
pub(super) async fn run_on_postgres(
    url: &str,
    connection: &mut PgConnection,
) -> Result<(), DbError> {
    let place = || Place::Postgres(url.to_owned());
    // Whoever may not make tables may use those that are there.
    if last_of_postgres(url, connection).await? == Some(LAST) {
        return Ok(());
    }
    let migrated = run(OF_POSTGRES, connection).await;
    migrated.map_err(|error| match error {
        MigrateError::Execute(error) | MigrateError::ExecuteMigration(error, _) => {
            postgres::unopened_by(url, error)
        }
        error => newer(place(), &error).unwrap_or_else(|| postgres::unopened(url, error)),
    })
}

/// The last migration that is known here.
const LAST: i64 = OF_FILES[OF_FILES.len() - 1].0;
const _: () = assert!(LAST == OF_POSTGRES[OF_POSTGRES.len() - 1].0);
const APPLIED: &str = "SELECT max(version) FROM _sqlx_migrations";

/// Returns the last migration that a file of ours has.
pub(super) async fn last_of_file(
    path: &Path,
    connection: &mut SqliteConnection,
) -> Result<i64, DbError> {
    check_owner(path, connection).await?;
    let place = || path.to_owned().into();
    let applied = connection
        .fetch_one(APPLIED)
        .await
        .map_err(|_| DbError::NotADatabase {
            place: place(),
            why: "it is empty".to_owned(),
        })?;
    let last: Option<i64> = applied.try_get(0)?;
    known(place(), last.unwrap_or_default())
}

/// Returns the last migration that a PostgreSQL database of ours has; none if it is empty.
pub(super) async fn last_of_postgres(
    url: &str,
    connection: &mut PgConnection,
) -> Result<Option<i64>, DbError> {
    let place = || Place::Postgres(url.to_owned());
    check_schema(place, connection).await?;
    let is_begun = "SELECT to_regclass('_sqlx_migrations') IS NOT NULL";
    let is_begun: bool = connection.fetch_one(is_begun).await?.try_get(0)?;
    if !is_begun {
        return Ok(None);
    }
    let last: Option<i64> = connection.fetch_one(APPLIED).await?.try_get(0)?;
    last.map(|last| known(place(), last)).transpose()
}

fn known(place: Place, last: i64) -> Result<i64, DbError> {
    match last > LAST {
        true => Err(DbError::Newer {
            place,
            migration: last,
        }),
        false => Ok(last),
    }
}

async fn run<C: Migrate>(steps: &[Step], connection: &mut C) -> Result<(), MigrateError> {
    let steps = steps.iter().map(|(number, name, sql)| {
        let sql = sql.into_sql_str();
        Migration::new(
            *number,
            Cow::Borrowed(*name),
            MigrationType::Simple,
            sql,
            false,
        )
    });
    let migrator = Migrator::with_migrations(steps.collect());
    migrator.run_direct(None, connection, false).await
}

fn newer(place: Place, error: &MigrateError) -> Option<DbError> {
    match error {
        MigrateError::VersionMissing(migration) => Some(DbError::Newer {
            place,
            migration: *migration,
        }),
        _ => None,
    }
}

/// Refuses a schema that another program keeps its tables in.
async fn check_schema(
    place: impl FnOnce() -> Place,
    connection: &mut PgConnection,
) -> Result<(), DbError> {
    let asked = "SELECT count(*), count(*) FILTER (WHERE tablename = '_sqlx_migrations') \
                 FROM pg_tables WHERE schemaname = current_schema()";
    let row = connection.fetch_one(asked).await?;
    let (tables, begun): (i64, i64) = (row.try_get(0)?, row.try_get(1)?);
    if tables == 0 || begun > 0 {
        return Ok(());
    }
    Err(DbError::NotADatabase {
        place: place(),
        why: "its schema holds the tables of another program".to_owned(),
    })
}

/// Refuses a file that another program keeps its tables in.
async fn check_owner(path: &Path, connection: &mut SqliteConnection) -> Result<(), DbError> {
    let not_ours = |why: String| DbError::NotADatabase {
        place: path.to_owned().into(),
        why,
    };
    let count = "SELECT (SELECT count(*) FROM sqlite_schema), application_id \
                 FROM pragma_application_id";
    let row = connection
        .fetch_one(count)
        .await
        .map_err(|error| not_ours(error.to_string()))?;
    let (tables, owner): (i64, i64) = (row.try_get(0)?, row.try_get(1)?);
    // A start that was killed between its first table and the mark is ours as well.
    let is_begun = connection
        .fetch_optional("SELECT 1 FROM sqlite_schema WHERE name = '_sqlx_migrations'")
        .await?;
    if tables == 0 || owner == APPLICATION_ID || (owner == 0 && is_begun.is_some()) {
        return connection.ping().await.map_err(DbError::from);
    }
    Err(not_ours(
        "it holds the tables of another program".to_owned(),
    ))
}
