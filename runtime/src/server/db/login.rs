//! The table `login`: links that log a browser in, and browsers that are logged in. Only the sha256 of
//! their texts is kept.

use jiff::Timestamp;

use super::DbError;
use super::tx::{Arg, Tx, args};

/// What a text is good for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// To log in once.
    Link,
    /// To be logged in.
    Session,
}

impl Kind {
    const fn is_link(self) -> bool {
        matches!(self, Self::Link)
    }
}

/// Keeps a text until it ends, and forgets those that have ended.
pub async fn add(
    tx: &mut Tx,
    hash: [u8; 32],
    kind: Kind,
    ends_at: Timestamp,
    now: Timestamp,
) -> Result<(), DbError> {
    let sql = "DELETE FROM login WHERE ends_at <= $1";
    tx.run(sql, args![now]).await?;
    let sql = "INSERT INTO login (hash, is_link, ends_at) VALUES ($1, $2, $3)";
    let args = args![Arg::Blob(hash.to_vec()), kind.is_link(), ends_at];
    tx.run(sql, args).await.map(drop)
}

/// Takes a link, so that nobody uses it again; answers whether it worked still.
pub async fn take_link(tx: &mut Tx, hash: [u8; 32], now: Timestamp) -> Result<bool, DbError> {
    let sql = "DELETE FROM login WHERE hash = $1 AND is_link RETURNING ends_at";
    let Some(row) = tx.row(sql, args![Arg::Blob(hash.to_vec())]).await? else {
        return Ok(false);
    };
    Ok(row.get::<Timestamp>(0)? > now)
}

/// Tells whether a browser is logged in.
pub async fn is_session(tx: &mut Tx, hash: [u8; 32], now: Timestamp) -> Result<bool, DbError> {
    let sql = "SELECT 1 FROM login WHERE hash = $1 AND NOT is_link AND ends_at > $2";
    let row = tx.row(sql, args![Arg::Blob(hash.to_vec()), now]).await?;
    Ok(row.is_some())
}
