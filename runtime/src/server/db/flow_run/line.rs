//! Lines of runs that are due: those with one requirement and one priority, the earlier due first.

use jiff::Timestamp;

use super::{Standing, select, sorted, standing};
use crate::model::id::{FlowId, FlowRunId, FlowVersionId};
use crate::model::parameter::Bound;
use crate::model::schedule::Overlap;
use crate::server::db::DbError;
use crate::server::db::sql::{Many, Sql};
use crate::server::db::tx::{Json, Row, Tx, args};

/// The first run in line of those with one requirement and one priority.
#[derive(Clone, Copy, Debug)]
pub struct Head {
    /// The number of the requirement.
    pub requirement_id: i64,
    /// The priority with its sign turned.
    pub rank: i32,
    /// When it is due.
    pub due_at: Timestamp,
}

pub(in crate::server::db) const HEADS: Sql = Sql {
    sqlite: "WITH RECURSIVE head (requirement_id, rank, due_at) \
        AS (SELECT * FROM (SELECT requirement_id, rank, due_at FROM flow_run \
        WHERE state = 'Scheduled' ORDER BY requirement_id, rank, due_at LIMIT 1) \
        UNION ALL SELECT r.requirement_id, r.rank, r.due_at FROM head h \
        JOIN flow_run r ON r.id = coalesce( \
        (SELECT n.id FROM flow_run n WHERE n.state = 'Scheduled' \
        AND n.requirement_id = h.requirement_id AND n.rank > h.rank \
        ORDER BY n.rank, n.due_at LIMIT 1), \
        (SELECT n.id FROM flow_run n WHERE n.state = 'Scheduled' \
        AND n.requirement_id > h.requirement_id \
        ORDER BY n.requirement_id, n.rank, n.due_at LIMIT 1))) \
        SELECT requirement_id, rank, due_at FROM head",
    postgres: "WITH RECURSIVE head (requirement_id, rank, due_at) \
        AS ((SELECT requirement_id, rank, due_at FROM flow_run \
        WHERE state = 'Scheduled' ORDER BY requirement_id, rank, due_at LIMIT 1) \
        UNION ALL SELECT n.requirement_id, n.rank, n.due_at FROM head h CROSS JOIN LATERAL \
        (SELECT r.requirement_id, r.rank, r.due_at FROM flow_run r \
        WHERE r.state = 'Scheduled' AND (r.requirement_id, r.rank) > (h.requirement_id, h.rank) \
        ORDER BY r.requirement_id, r.rank, r.due_at LIMIT 1) n) \
        SELECT requirement_id, rank, due_at FROM head",
};

/// Lists the head of each line, by jumping through the index from line to line: the cost grows with
/// the number of lines, not with the number of runs that wait in them.
pub async fn heads(tx: &mut Tx) -> Result<Vec<Head>, DbError> {
    let rows = tx.rows(HEADS, args![]).await?;
    rows.iter()
        .map(|row| {
            Ok(Head {
                requirement_id: row.get(0)?,
                rank: row.get(1)?,
                due_at: row.get(2)?,
            })
        })
        .collect()
}

/// A run that may be claimed, with what its agent needs.
#[derive(Clone, Debug)]
pub struct Candidate {
    /// How it stands.
    pub standing: Standing,
    /// The priority with its sign turned.
    pub rank: i32,
    /// Its parameters.
    pub parameters: Bound,
    /// Its flow.
    pub flow_id: FlowId,
    /// What its schedule says about runs that overlap, if a clock made it and no agent has begun it.
    pub overlap: Option<Overlap>,
}

pub(super) fn candidate(row: &Row) -> Result<Candidate, DbError> {
    let Json(parameters) = row.get(21)?;
    let standing = standing(row)?;
    let clock: Option<String> = row.get(25)?;
    let is_new = clock.is_some() && standing.epoch == 0;
    Ok(Candidate {
        parameters,
        flow_id: row.get(23)?,
        overlap: row.get::<Option<Overlap>>(24)?.filter(|_| is_new),
        rank: row.get(26)?,
        standing,
    })
}

macro_rules! line {
    ($rest:literal) => {
        select!(
            "WHERE state = 'Scheduled' AND requirement_id = $1 AND rank = $2 \
             AND due_at <= $3 ORDER BY due_at LIMIT $4",
            $rest
        )
    };
}

pub(in crate::server::db) const LINE: Sql = Sql::both(line!(""));
const TAKE: Sql = Sql {
    sqlite: line!(""),
    postgres: line!(" FOR UPDATE SKIP LOCKED"),
};

macro_rules! line_without {
    ($is_without:literal, $rest:literal) => {
        select!(
            "WHERE id IN (SELECT n.id FROM flow_run n WHERE n.state = 'Scheduled' \
             AND n.requirement_id = $1 AND n.rank = $2 AND n.due_at <= $3 \
             ORDER BY n.due_at LIMIT 1000) AND state = 'Scheduled' AND ",
            $is_without,
            " ORDER BY due_at LIMIT $4",
            $rest
        )
    };
    (sqlite) => {
        line_without!(
            "hex(flow_version_id) NOT IN (SELECT value FROM json_each($5))",
            ""
        )
    };
    (postgres, $rest:literal) => {
        line_without!(
            "upper(encode(flow_version_id, 'hex')) NOT IN (SELECT jsonb_array_elements_text($5::text::jsonb))",
            $rest
        )
    };
}

/// As [`LINE`] without some versions. Only the first of the line are looked at, so that what is left out
/// costs no more, however much of it waits.
pub(in crate::server::db) const LINE_WITHOUT: Sql = Sql {
    sqlite: line_without!(sqlite),
    postgres: line_without!(postgres, ""),
};
const TAKE_WITHOUT: Sql = Sql {
    sqlite: line_without!(sqlite),
    postgres: line_without!(postgres, " FOR UPDATE SKIP LOCKED"),
};

/// Reads the first due runs of a line, but for those of some versions.
pub async fn line(
    tx: &mut Tx,
    head: &Head,
    without: &[FlowVersionId],
    now: Timestamp,
    limit: u32,
) -> Result<Vec<Candidate>, DbError> {
    let place = (head.requirement_id, head.rank);
    candidates(tx, (LINE, LINE_WITHOUT), place, without, now, limit).await
}

/// Reads the first due runs of a line that nobody else is about to take, to claim them in this
/// transaction.
pub async fn take(
    tx: &mut Tx,
    (requirement_id, rank): (i64, i32),
    without: &[FlowVersionId],
    now: Timestamp,
    limit: u32,
) -> Result<Vec<Candidate>, DbError> {
    let place = (requirement_id, rank);
    candidates(tx, (TAKE, TAKE_WITHOUT), place, without, now, limit).await
}

async fn candidates(
    tx: &mut Tx,
    (all, some): (Sql, Sql),
    (requirement_id, rank): (i64, i32),
    without: &[FlowVersionId],
    now: Timestamp,
    limit: u32,
) -> Result<Vec<Candidate>, DbError> {
    let mut args = args![requirement_id, rank, now, limit];
    let sql = match without {
        [] => all,
        _ => {
            let hex = without.iter().map(|id| hex::encode_upper(id.as_bytes()));
            args.push(Json(hex.collect::<Vec<_>>()).into());
            some
        }
    };
    let rows = tx.rows(sql, args).await?;
    rows.iter().map(candidate).collect()
}

static TAKE_THESE: Many = Many::with(
    select!("WHERE id IN (VALUES "),
    "($::bytea)",
    Sql {
        sqlite: ") AND state IN ('Scheduled', 'Queued')",
        postgres: ") AND state IN ('Scheduled', 'Queued') ORDER BY id FOR UPDATE SKIP LOCKED",
    },
);

/// Reads those of some runs that wait and that nobody else is about to take or to change, to claim them
/// in this transaction.
pub async fn take_these(
    tx: &mut Tx,
    ids: impl IntoIterator<Item = FlowRunId>,
) -> Result<Vec<Candidate>, DbError> {
    let rows = tx.rows_many(&TAKE_THESE, sorted(ids)).await?;
    rows.iter().map(candidate).collect()
}
