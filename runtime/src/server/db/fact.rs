//! The table `fact`: what is true of this database once and for all.

use super::DbError;
use super::tx::{Tx, args};

/// Says that the first token was made, so that a restart makes no second one.
pub const FIRST_TOKEN_MADE: &str = "first-token-made";

/// Writes a fact down; answers whether it is new.
pub async fn establish(tx: &mut Tx, name: &str) -> Result<bool, DbError> {
    let sql = "INSERT INTO fact (name, value) VALUES ($1, 'true') ON CONFLICT DO NOTHING";
    Ok(tx.run(sql, args![name]).await? == 1)
}
