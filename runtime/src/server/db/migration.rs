//! Migrations: the steps that bring a database to the shape this version knows.
//!
//! Embedded, forward only, run under the lock of the database at every start.

use std::borrow::Cow;
use std::path::Path;

use sqlx::migrate::{MigrateError, Migration, MigrationType, Migrator};
use sqlx::{Connection as _, Executor as _, Row as _, SqlSafeStr as _, SqliteConnection};

use super::{DbError, unopened};

/// Marks a file as ours in its header: `WAFT`.
const APPLICATION_ID: i64 = 0x5741_4654;
const MARK: &str = "PRAGMA application_id = 1463895636";

/// Every migration, by number.
const ALL: &[(i64, &str, &str)] = &[
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
];

/// Brings a database up to date.
pub(super) async fn run(path: &Path, connection: &mut SqliteConnection) -> Result<(), DbError> {
    check_owner(path, connection).await?;
    let steps = ALL.iter().map(|(number, name, sql)| {
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
    migrator
        .run_direct(None, connection, false)
        .await
        .map_err(|error| match error {
            MigrateError::VersionMissing(migration) => DbError::Newer {
                path: path.to_owned(),
                migration,
            },
            other => unopened(path, other),
        })?;
    connection.execute(MARK).await?;
    Ok(())
}

/// Refuses a file that another program keeps its tables in.
async fn check_owner(path: &Path, connection: &mut SqliteConnection) -> Result<(), DbError> {
    let not_ours = |why: String| DbError::NotADatabase {
        path: path.to_owned(),
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
