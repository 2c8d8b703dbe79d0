//! The table `agent`: who polls, with what it offers.

use std::collections::HashMap;

use jiff::Timestamp;

use super::DbError;
use super::realm::Realm;
use super::sql::{Many, Sql};
use super::tx::{Json, Row, Tx, args};
use crate::model::id::{AgentId, FlowRunId, SessionId};
use crate::model::requirement::Offer;
use crate::wire::{AgentRun, AgentsGone, Drain, NewSession};

/// The first protocol of agents that can be told from afar to end.
pub const DRAIN_PROTOCOL: u32 = 2;
/// The first protocol under which an agent waits for slots of tags.
pub const SLOTS_PROTOCOL: u32 = 2;

/// The first protocol of agents that know that a task run may wait for a person.
pub const PEOPLE_PROTOCOL: u32 = 2;

/// Returns the ability of whoever speaks a protocol.
#[must_use]
pub fn ability(protocol: u32) -> String {
    format!("protocol:{protocol}")
}

/// An agent as it is kept.
#[derive(Clone, Debug)]
pub struct Kept {
    /// Its id, which outlives its sessions.
    pub id: AgentId,
    /// The projects of its token, as a text.
    pub realm: String,
    /// Its name.
    pub name: String,
    /// The host it runs on.
    pub hostname: String,
    /// Its session.
    pub session_id: SessionId,
    /// Its version.
    pub version: String,
    /// The protocol it speaks.
    pub protocol: u32,
    /// What it offers.
    pub offer: Offer,
    /// How many runs it takes at one time.
    pub slots: u32,
    /// When it was last heard of, to the minute.
    pub seen_at: Timestamp,
    /// What it was told from afar.
    pub drain: Option<Drain>,
    /// Whether it takes no more runs.
    pub has_left: bool,
    /// When it was last there, in lease time, as other servers of the database have noted it.
    pub heard_at: Timestamp,
    /// The word of its `WAFT_HOME`.
    pub home: Option<String>,
    /// When its process began.
    pub begun_at: Timestamp,
}

fn kept(row: &Row) -> Result<Kept, DbError> {
    let Json(offer) = row.get(7)?;
    Ok(Kept {
        id: row.get(0)?,
        realm: row.get(1)?,
        name: row.get(2)?,
        hostname: row.get(3)?,
        session_id: row.get(4)?,
        version: row.get(5)?,
        protocol: row.get(6)?,
        offer,
        slots: row.get(8)?,
        seen_at: row.get(9)?,
        drain: row.get::<Option<String>>(10)?.map(|word| drain_of(&word)),
        has_left: row.get(11)?,
        heard_at: row.get(12)?,
        home: row.get(13)?,
        begun_at: row.get(14)?,
    })
}

/// The agents that a realm sees, which is `$1` of [`Realm::own`].
macro_rules! seen {
    () => {
        "WHERE (realm = $1 OR $1 IS NULL) "
    };
}

macro_rules! select {
    (seen $rest:literal) => {
        concat!(select!(""), seen!(), $rest)
    };
    ($rest:literal) => {
        concat!(
            "SELECT id, realm, name, hostname, session_id, version, protocol, offer, slots, ",
            "seen_at, drain, has_left, heard_at, home, begun_at FROM agent ",
            $rest
        )
    };
}

/// Returns the agent of a realm, name and host whose session this is.
pub async fn in_session(
    tx: &mut Tx,
    realm: &str,
    new: &NewSession,
    session: SessionId,
) -> Result<Option<AgentId>, DbError> {
    let sql = "SELECT id FROM agent \
               WHERE realm = $1 AND name = $2 AND hostname = $3 AND session_id = $4";
    let args = args![realm, &new.name, &new.hostname, session];
    let row = tx.row(sql, args).await?;
    row.map(|row| row.get(0)).transpose()
}

/// Finds the agent of a realm, name and host, and keeps it as it is until the transaction ends.
pub async fn take(tx: &mut Tx, realm: &str, new: &NewSession) -> Result<Option<Kept>, DbError> {
    let sql = Sql {
        sqlite: select!("WHERE realm = $1 AND name = $2 AND hostname = $3"),
        postgres: select!("WHERE realm = $1 AND name = $2 AND hostname = $3 FOR UPDATE"),
    };
    let row = tx.row(sql, args![realm, &new.name, &new.hostname]).await?;
    row.map(|row| kept(&row)).transpose()
}

/// Opens a session: the agent of this realm, name and host gets a new one, and keeps its id. What it
/// was told from afar it keeps only if the process goes on that was told.
pub async fn open(
    tx: &mut Tx,
    ids: (AgentId, SessionId),
    realm: &str,
    new: &NewSession,
    at: Timestamp,
) -> Result<AgentId, DbError> {
    let sql = "INSERT INTO agent (id, realm, name, hostname, session_id, version, protocol, offer, \
               slots, created_at, seen_at, begun_at, home) \
               VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $10, $10, $12) \
               ON CONFLICT (realm, name, hostname) DO UPDATE SET session_id = excluded.session_id, \
               version = excluded.version, protocol = excluded.protocol, offer = excluded.offer, \
               slots = excluded.slots, seen_at = excluded.seen_at, has_left = FALSE, \
               drain = CASE WHEN $11 THEN NULL ELSE agent.drain END, home = excluded.home, \
               begun_at = CASE WHEN $11 THEN excluded.begun_at ELSE agent.begun_at END \
               RETURNING id";
    let args = args![
        ids.0,
        realm,
        &new.name,
        &new.hostname,
        ids.1,
        &new.version,
        new.protocol,
        Json(&new.offer),
        new.slots,
        at,
        new.is_start || new.protocol < DRAIN_PROTOCOL,
        new.home.as_deref(),
    ];
    tx.row(sql, args).await?.ok_or(DbError::Raced)?.get(0)
}

/// Finds the agent of a session that is still its newest.
pub async fn of_session(tx: &mut Tx, id: SessionId) -> Result<Option<Kept>, DbError> {
    let row = tx.row(select!("WHERE session_id = $1"), args![id]).await?;
    row.map(|row| kept(&row)).transpose()
}

/// Lists agents by name, those after an agent of a name.
///
/// A token that is bound to projects sees the agents of the same binding.
pub async fn list(
    tx: &mut Tx,
    realm: &Realm,
    after: Option<(String, AgentId)>,
    limit: u32,
) -> Result<Vec<Kept>, DbError> {
    let sql = select!(
        seen "AND ((name, id) > ($2, $3) OR $2 IS NULL) ORDER BY name, id LIMIT $4"
    );
    let (name, id) = after.unzip();
    let rows = tx.rows(sql, args![realm.own(), name, id, limit]).await?;
    rows.iter().map(kept).collect()
}

/// Lists the agents that were heard of since an instant, the last of them first, as far as the realm sees
/// them.
pub async fn heard_since(
    tx: &mut Tx,
    realm: &Realm,
    since: Timestamp,
    limit: u32,
) -> Result<Vec<Kept>, DbError> {
    let sql = select!(seen "AND seen_at >= $2 ORDER BY seen_at DESC, id LIMIT $3");
    let rows = tx.rows(sql, args![realm.own(), since, limit]).await?;
    rows.iter().map(kept).collect()
}

/// Counts the agents that were not, and says when the last of them was heard of.
pub async fn gone_since(
    tx: &mut Tx,
    realm: &Realm,
    since: Timestamp,
) -> Result<Option<AgentsGone>, DbError> {
    let sql = concat!(
        "SELECT count(*), max(seen_at) FROM agent ",
        seen!(),
        "AND seen_at < $2"
    );
    let row = tx.row(sql, args![realm.own(), since]).await?;
    let row = row.ok_or(DbError::Raced)?;
    let seen_at: Option<Timestamp> = row.get(1)?;
    let count = row.get(0)?;
    Ok(seen_at.map(|seen_at| AgentsGone { count, seen_at }))
}

/// Finds the agents of a name, and of a host where one is given, or the agent of an id; as far as the
/// realm sees them.
pub async fn named(
    tx: &mut Tx,
    realm: &Realm,
    name: &str,
    host: Option<&str>,
) -> Result<Vec<Kept>, DbError> {
    let sql = select!(
        seen "AND (id = $2 OR (name = $3 AND (hostname = $4 OR $4 IS NULL))) \
              ORDER BY seen_at DESC, id LIMIT 1000"
    );
    let id = name.parse::<AgentId>().ok();
    let rows = tx.rows(sql, args![realm.own(), id, name, host]).await?;
    rows.iter().map(kept).collect()
}

/// Keeps what an agent is told from afar, unless it was told to do more already; answers with what holds.
pub async fn tell_drain(tx: &mut Tx, id: AgentId, how: Drain) -> Result<Option<Drain>, DbError> {
    let sql = "UPDATE agent SET drain = CASE WHEN drain = 'now' THEN drain ELSE $2 END \
               WHERE id = $1 RETURNING drain";
    let row = tx.row(sql, args![id, drain_word(how)]).await?;
    row.map(|row| Ok(drain_of(&row.get::<String>(0)?)))
        .transpose()
}

/// Returns what an agent was told from afar.
pub async fn drain(tx: &mut Tx, id: AgentId) -> Result<Option<Drain>, DbError> {
    let sql = "SELECT drain FROM agent WHERE id = $1";
    let Some(row) = tx.row(sql, args![id]).await? else {
        return Ok(None);
    };
    let word: Option<String> = row.get(0)?;
    Ok(word.map(|word| drain_of(&word)))
}

/// Notes that an agent takes no more runs.
pub async fn leave(tx: &mut Tx, session: SessionId) -> Result<(), DbError> {
    let sql = "UPDATE agent SET has_left = TRUE WHERE session_id = $1";
    tx.run(sql, args![session]).await.map(drop)
}

/// Tells whether an agent may be given runs under a session, and keeps it so until this transaction
/// ends: nobody else opens a newer session meanwhile, or has the agent take no more.
pub async fn may_claim(tx: &mut Tx, id: AgentId, session: SessionId) -> Result<bool, DbError> {
    let sql = Sql {
        sqlite: "SELECT drain IS NULL AND NOT has_left FROM agent \
                 WHERE id = $1 AND session_id = $2",
        postgres: "SELECT drain IS NULL AND NOT has_left FROM agent \
                   WHERE id = $1 AND session_id = $2 FOR SHARE",
    };
    let row = tx.row(sql, args![id, session]).await?;
    row.map_or(Ok(false), |row| row.get(0))
}

/// What holds of an agent, whichever server it was said to.
#[derive(Clone, Copy, Debug)]
pub struct Holding {
    /// The agent.
    pub id: AgentId,
    /// Its newest session.
    pub session_id: SessionId,
    /// Whether it was told from afar to take no more runs.
    pub is_drained: bool,
    /// Whether it takes no more runs.
    pub has_left: bool,
}

/// Returns what holds of an agent, or of all.
pub async fn holding(tx: &mut Tx, of: Option<AgentId>) -> Result<Vec<Holding>, DbError> {
    let sql = "SELECT id, session_id, drain IS NOT NULL, has_left FROM agent \
               WHERE (id = $1 OR $1 IS NULL)";
    let rows = tx.rows(sql, args![of]).await?;
    rows.iter()
        .map(|row| {
            Ok(Holding {
                id: row.get(0)?,
                session_id: row.get(1)?,
                is_drained: row.get(2)?,
                has_left: row.get(3)?,
            })
        })
        .collect()
}

static HEARD: Many = Many::with(
    "WITH n (id, at) AS (VALUES ",
    "($::bytea, $::bigint)",
    Sql {
        sqlite: ") UPDATE agent SET heard_at = n.at FROM n WHERE agent.session_id = n.id",
        // Another server may write the same at this moment, or have the row in hand: next time then.
        postgres: ") UPDATE agent SET heard_at = o.at FROM (SELECT a.id, n.at FROM agent a \
                   JOIN n ON a.session_id = n.id FOR NO KEY UPDATE OF a SKIP LOCKED) o \
                   WHERE agent.id = o.id",
    },
);

/// Notes that agents are there, by their sessions.
pub async fn heard(tx: &mut Tx, sessions: &[SessionId], at: Timestamp) -> Result<(), DbError> {
    let rows = sessions.iter().map(|id| args![*id, at]).collect();
    tx.run_many(&HEARD, rows).await.map(drop)
}

const fn drain_word(how: Drain) -> &'static str {
    match how {
        Drain::Finish => "finish",
        Drain::Now => "now",
    }
}

fn drain_of(word: &str) -> Drain {
    match word {
        "now" => Drain::Now,
        _ => Drain::Finish,
    }
}

/// Notes when an agent was heard of.
pub async fn touch(tx: &mut Tx, id: AgentId, at: Timestamp) -> Result<(), DbError> {
    let sql = "UPDATE agent SET seen_at = $2 WHERE id = $1";
    tx.run(sql, args![id, at]).await.map(drop)
}

/// Forgets agents that were not heard of since an instant and have no run.
pub async fn forget_unseen(tx: &mut Tx, since: Timestamp) -> Result<u64, DbError> {
    let sql = "DELETE FROM agent WHERE seen_at < $1 AND NOT EXISTS \
               (SELECT 1 FROM flow_run r WHERE r.agent_id = agent.id AND r.lease_until IS NOT NULL)";
    tx.run(sql, args![since]).await
}

/// Returns the name of an agent.
pub async fn name(tx: &mut Tx, id: AgentId) -> Result<Option<String>, DbError> {
    let sql = "SELECT name FROM agent WHERE id = $1";
    let row = tx.row(sql, args![id]).await?;
    row.map(|row| row.get(0)).transpose()
}

/// Counts the runs that each agent has; agents without any are missing.
pub async fn loads(tx: &mut Tx) -> Result<HashMap<AgentId, u32>, DbError> {
    let sql = "SELECT agent_id, count(*) FROM flow_run WHERE lease_until IS NOT NULL \
               GROUP BY agent_id";
    let rows = tx.rows(sql, args![]).await?;
    rows.iter()
        .map(|row| Ok((row.get(0)?, row.get(1)?)))
        .collect()
}

/// Lists the runs that agents have, or that one of them has, by id.
pub async fn at_work(
    tx: &mut Tx,
    of: Option<AgentId>,
) -> Result<HashMap<AgentId, Vec<AgentRun>>, DbError> {
    let sql = "SELECT r.agent_id, r.id, f.name, p.name, r.state FROM flow_run r \
               JOIN flow f ON f.id = r.flow_id JOIN project p ON p.id = r.project_id \
               WHERE r.lease_until IS NOT NULL AND (r.agent_id = $1 OR $1 IS NULL) ORDER BY r.id";
    let mut at_work: HashMap<AgentId, Vec<AgentRun>> = HashMap::new();
    for row in tx.rows(sql, args![of]).await? {
        let id: FlowRunId = row.get(1)?;
        at_work.entry(row.get(0)?).or_default().push(AgentRun {
            id,
            flow_run_id: id,
            flow: row.get(2)?,
            project: row.get(3)?,
            state: row.get(4)?,
        });
    }
    Ok(at_work)
}
