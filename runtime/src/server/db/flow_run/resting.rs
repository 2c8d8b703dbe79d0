//! Runs that were begun and wait where nobody has them: for a later attempt.

use std::time::Duration;

use jiff::Timestamp;

use super::{Move, Standing, select, standing};
use crate::model::state::Refusal;
use crate::server::db::DbError;
use crate::server::db::sql::Sql;
use crate::server::db::tx::{Tx, args};

/// As long as a run ever waits that waits for something else than an instant: its timeout ends it before.
const FOREVER: Duration = Duration::from_secs(100 * 366 * 24 * 3600);

impl Standing {
    /// Takes the run back until it goes on by itself: nobody has it meanwhile, and it takes no slot.
    ///
    /// # Errors
    ///
    /// Refuses what may not happen, and then changes nothing.
    pub fn rest(&mut self, moved: &Move<'_>, delay: Duration) -> Result<(), Refusal> {
        self.step(moved)?;
        self.rests += 1;
        let due_at = moved.at.checked_add(delay.min(FOREVER));
        self.due_at = due_at.unwrap_or(moved.at);
        Ok(())
    }
}

macro_rules! overdue {
    ($rest:literal) => {
        select!(
            "WHERE deadline_at IS NOT NULL AND lease_until IS NULL AND ended_at IS NULL \
             AND deadline_at <= $1 ORDER BY deadline_at LIMIT $2",
            $rest
        )
    };
}

pub(in crate::server::db) const OVERDUE: Sql = Sql {
    sqlite: overdue!(""),
    postgres: overdue!(" FOR UPDATE SKIP LOCKED"),
};

/// Tells whether there is a run that was begun, waits, and had taken as long as it may by `at`.
pub async fn is_overdue(tx: &mut Tx, at: Timestamp) -> Result<bool, DbError> {
    let row = tx.row(overdue!(""), args![at, 1]).await?;
    Ok(row.is_some())
}

/// Reads how such runs stand, to change them in this transaction. What somebody else is changing meanwhile is
/// left out.
pub async fn overdue(tx: &mut Tx, at: Timestamp, limit: u32) -> Result<Vec<Standing>, DbError> {
    let rows = tx.rows(OVERDUE, args![at, limit]).await?;
    rows.iter().map(standing).collect()
}
