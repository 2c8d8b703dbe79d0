//! The pulse of the servers that share a database: when one of them was last there.
//!
//! It beats in the clock of the database, which is one for all of them, and so do leases. A row of the
//! table `fact`.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use super::DbError;
use super::sql::Sql;
use super::tx::{Tx, args};

/// Reads the clock of the database.
pub async fn now(tx: &mut Tx) -> Result<Timestamp, DbError> {
    let sql = Sql {
        sqlite: "SELECT CAST(unixepoch('subsec') * 1000000 AS INTEGER)",
        postgres: "SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint",
    };
    tx.row(sql, args![]).await?.ok_or(DbError::Raced)?.get(0)
}

/// Notes that a server is there; answers whether none was for longer than `gap`. Until this transaction
/// ends no other does the same.
pub async fn beat(tx: &mut Tx, now: Timestamp, gap: Duration) -> Result<bool, DbError> {
    let begin = "INSERT INTO fact (name, value) VALUES ('pulse', '0') ON CONFLICT DO NOTHING";
    let last = Sql {
        sqlite: "SELECT CAST(value AS BIGINT) FROM fact WHERE name = 'pulse'",
        postgres: "SELECT CAST(value AS BIGINT) FROM fact WHERE name = 'pulse' FOR UPDATE",
    };
    let row = match tx.row(last, args![]).await? {
        Some(row) => Some(row),
        None => {
            tx.run(begin, args![]).await?;
            tx.row(last, args![]).await?
        }
    };
    let last: Timestamp = row.ok_or(DbError::Raced)?.get(0)?;
    let next = "UPDATE fact SET value = CAST(CAST($1 AS BIGINT) AS TEXT) WHERE name = 'pulse'";
    tx.run(next, args![now]).await?;
    // Also where the clock was set back.
    let passed = now.duration_since(last).abs();
    Ok(passed > SignedDuration::try_from(gap).unwrap_or(SignedDuration::MAX))
}
