//! The table `segment`: where results lie, and which of them nobody needs any more.
//!
//! The server never sees a result. It knows when a reference into a segment was last reported, dooms
//! what was not used for long, and asks an agent that offers the root to delete it. The row goes when
//! that is done, so a deletion may be asked for twice and never forgotten.

use std::collections::{BTreeSet, HashMap, HashSet};

use jiff::{SignedDuration, Timestamp};

use super::DbError;
use super::memory::Memory;
use super::sql::{Many, Sql};
use super::tx::{Json, Tx, args};
use crate::model::id::FlowRunId;
use crate::model::run::ResultRef;
use crate::wire::Segment;

/// How far `used_at` may lag behind the last use: it is not written more often.
pub const LAG: SignedDuration = SignedDuration::from_hours(1);
/// How long an agent has for what it was asked to delete, before it or another is asked again.
pub const RETRY: SignedDuration = SignedDuration::from_mins(10);
/// Most segments that are doomed in one transaction.
const DOOMED_MAX: u64 = 1_000;
/// Most bytes of the names of a root and a segment; ours are far shorter.
const ROOT_BYTES_MAX: usize = 2_000;
const KEY_BYTES_MAX: usize = 100;

/// The segments that a batch of reports refers to, each once.
#[derive(Default)]
pub(super) struct Used(HashMap<String, HashSet<String>>);

impl Used {
    /// Notes a reference; what no agent of ours writes is left out.
    pub(super) fn note(&mut self, result: &ResultRef) {
        let (root, key) = (result.root.as_str(), result.segment.as_str());
        if self.0.get(root).is_some_and(|keys| keys.contains(key))
            || root.len() > ROOT_BYTES_MAX
            || key.len() > KEY_BYTES_MAX
        {
            return;
        }
        let keys = self.0.entry(root.to_owned()).or_default();
        keys.insert(key.to_owned());
    }
}

static USE: Many = Many::new(
    "INSERT INTO segment (root, \"key\", used_at, asked_at) VALUES ",
    "($, $, $, 0)",
    " ON CONFLICT (root, \"key\") DO UPDATE SET used_at = excluded.used_at, doomed_at = NULL",
);

/// Notes that segments are used now. What was noted less than an hour ago is not written again.
pub(super) async fn touch(
    tx: &mut Tx,
    memory: &Memory,
    used: Used,
    now: Timestamp,
) -> Result<(), DbError> {
    let pairs = used.0.into_iter().flat_map(|(root, keys)| {
        let pair = move |key| (root.clone(), key);
        keys.into_iter().map(pair)
    });
    let is_news = |(root, key): &(String, String)| !memory.is_used(root, key, now, LAG);
    // In one order, as whoever else writes them: nobody waits in a circle.
    let news: BTreeSet<_> = pairs.filter(is_news).collect();
    let rows = news.iter().map(|(root, key)| args![root, key, now]);
    tx.run_many(&USE, rows.collect()).await?;
    // Last of all: what is remembered must be written.
    for (root, key) in news {
        memory.remember_use(root, key, now);
    }
    Ok(())
}

/// Lists runs that were made before an instant and are not over.
pub async fn long_open(tx: &mut Tx, before: Timestamp) -> Result<Vec<FlowRunId>, DbError> {
    // Ids sort by when they were made, to the millisecond.
    let first_after = FlowRunId::at(before.as_microsecond().saturating_add(1_000), 0);
    let sql = "SELECT id FROM flow_run WHERE ended_at IS NULL AND id < $1";
    let rows = tx.rows(sql, args![first_after]).await?;
    rows.iter().map(|row| row.get(0)).collect()
}

/// Lists the segments that a run refers to.
pub async fn of_run(tx: &mut Tx, run: FlowRunId) -> Result<BTreeSet<Segment>, DbError> {
    let sql = "SELECT result FROM task_run WHERE flow_run_id = $1 AND result IS NOT NULL";
    let rows = tx.rows(sql, args![run]).await?;
    let segment = |Json(result): Json<ResultRef>| Segment {
        root: result.root,
        key: result.segment,
    };
    rows.iter().map(|row| row.get(0).map(segment)).collect()
}

/// Counts segments as used now that were not used since an instant. Those that are gone stay so.
pub async fn spare(
    tx: &mut Tx,
    segments: &BTreeSet<Segment>,
    since: Timestamp,
    now: Timestamp,
) -> Result<(), DbError> {
    let sql = "UPDATE segment SET used_at = $4, doomed_at = NULL \
               WHERE root = $1 AND \"key\" = $2 AND used_at < $3";
    for Segment { root, key } in segments {
        tx.run(sql, args![root, key, since, now]).await?;
    }
    Ok(())
}

/// Dooms segments that were not used since an instant; answers whether there may be more.
pub async fn doom(tx: &mut Tx, since: Timestamp, now: Timestamp) -> Result<(u64, bool), DbError> {
    let sql = Sql {
        sqlite: "UPDATE segment SET doomed_at = $2, asked_at = 0 WHERE (root, \"key\") IN \
                 (SELECT root, \"key\" FROM segment WHERE doomed_at IS NULL AND used_at < $1 \
                 ORDER BY used_at LIMIT $3)",
        // One that somebody has locked is being used, or doomed by another server.
        postgres: "UPDATE segment SET doomed_at = $2, asked_at = 0 WHERE (root, \"key\") IN \
                   (SELECT root, \"key\" FROM segment WHERE doomed_at IS NULL AND used_at < $1 \
                   ORDER BY used_at LIMIT $3 FOR UPDATE SKIP LOCKED)",
    };
    let doomed = tx.run(sql, args![since, now, DOOMED_MAX]).await?;
    Ok((doomed, doomed == DOOMED_MAX))
}

/// Lists doomed segments under roots that nobody was asked to delete a moment ago.
pub async fn doomed(
    tx: &mut Tx,
    roots: &BTreeSet<String>,
    now: Timestamp,
    limit: usize,
) -> Result<Vec<Segment>, DbError> {
    let sql = "SELECT \"key\" FROM segment WHERE root = $1 AND doomed_at IS NOT NULL \
               AND asked_at <= $2 ORDER BY asked_at LIMIT $3";
    list_doomed(tx, sql.into(), roots, now, limit).await
}

/// Takes doomed segments under roots to ask an agent for: as [`doomed`], and in this transaction nobody
/// else is given them.
pub async fn take_doomed(
    tx: &mut Tx,
    roots: &BTreeSet<String>,
    now: Timestamp,
    limit: usize,
) -> Result<Vec<Segment>, DbError> {
    let sql = Sql {
        sqlite: "SELECT \"key\" FROM segment WHERE root = $1 AND doomed_at IS NOT NULL \
                 AND asked_at <= $2 ORDER BY asked_at LIMIT $3",
        postgres: "SELECT \"key\" FROM segment WHERE root = $1 AND doomed_at IS NOT NULL \
                   AND asked_at <= $2 ORDER BY asked_at LIMIT $3 FOR UPDATE SKIP LOCKED",
    };
    let doomed = list_doomed(tx, sql, roots, now, limit).await?;
    asked(tx, &doomed, now).await?;
    Ok(doomed)
}

async fn list_doomed(
    tx: &mut Tx,
    sql: Sql,
    roots: &BTreeSet<String>,
    now: Timestamp,
    limit: usize,
) -> Result<Vec<Segment>, DbError> {
    let before = now.saturating_sub(RETRY).unwrap_or(now);
    let mut doomed = Vec::new();
    for root in roots {
        let left = limit - doomed.len();
        let rows = match left {
            0 => break,
            _ => tx.rows(sql, args![root, before, left as u64]).await?,
        };
        for row in rows {
            let (root, key) = (root.clone(), row.get(0)?);
            doomed.push(Segment { root, key });
        }
    }
    Ok(doomed)
}

/// Notes that an agent was asked to delete segments.
async fn asked(tx: &mut Tx, segments: &[Segment], now: Timestamp) -> Result<(), DbError> {
    let sql = "UPDATE segment SET asked_at = $3 WHERE root = $1 AND \"key\" = $2";
    for Segment { root, key } in segments {
        tx.run(sql, args![root, key, now]).await?;
    }
    Ok(())
}

/// Tells whether a segment is known, doomed or not.
pub async fn is_known(tx: &mut Tx, root: &str, key: &str) -> Result<bool, DbError> {
    let sql = "SELECT 1 FROM segment WHERE root = $1 AND \"key\" = $2";
    Ok(!tx.rows(sql, args![root, key]).await?.is_empty())
}

/// Forgets segments that were doomed before an instant and that no agent has deleted since; answers how many.
pub async fn forget_unreachable(tx: &mut Tx, before: Timestamp) -> Result<u64, DbError> {
    let sql = "DELETE FROM segment WHERE (root, \"key\") IN (SELECT root, \"key\" FROM segment \
               WHERE doomed_at IS NOT NULL AND doomed_at < $1 LIMIT $2)";
    tx.run(sql, args![before, DOOMED_MAX]).await
}

/// Forgets doomed segments; answers how many. One that is used again meanwhile stays known.
pub async fn forget(tx: &mut Tx, segments: &[Segment]) -> Result<u64, DbError> {
    let sql = "DELETE FROM segment WHERE root = $1 AND \"key\" = $2 AND doomed_at IS NOT NULL";
    let mut forgotten = 0;
    for Segment { root, key } in segments {
        forgotten += tx.run(sql, args![root, key]).await?;
    }
    Ok(forgotten)
}
