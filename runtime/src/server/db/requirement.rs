//! The table `requirement`: each distinct requirement once.

use super::DbError;
use super::tx::{Json, Tx, args};
use crate::model::artifact::Digest;
use crate::model::requirement::Requirement;

/// Returns the number of a requirement, giving it one if it is new.
///
/// The same requirement always gives the same text, since its maps and sets are sorted; so the
/// digest of the text names it.
pub async fn intern(tx: &mut Tx, requirement: &Requirement) -> Result<i64, DbError> {
    let body = serde_json::to_vec(requirement).unwrap_or_default();
    let digest = Digest::of(&body);
    let known = "SELECT id FROM requirement WHERE digest = $1";
    if let Some(row) = tx.row(known, args![digest]).await? {
        return row.get(0);
    }
    let add = "INSERT INTO requirement (digest, body) VALUES ($1, $2) \
               ON CONFLICT (digest) DO UPDATE SET digest = excluded.digest RETURNING id";
    let row = tx.row(add, args![digest, Json(requirement)]).await?;
    row.ok_or(DbError::Raced)?.get(0)
}

/// Reads a requirement.
pub async fn read(tx: &mut Tx, id: i64) -> Result<Requirement, DbError> {
    let sql = "SELECT body FROM requirement WHERE id = $1";
    let row = tx.row(sql, args![id]).await?;
    let Json(requirement) = row.ok_or(DbError::Raced)?.get(0)?;
    Ok(requirement)
}
