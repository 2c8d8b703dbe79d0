//! The table `token`: hashes of tokens, and what each may do.

use std::collections::BTreeSet;

use jiff::Timestamp;

use super::DbError;
use super::realm::Realm;
use super::sql::Sql;
use super::tx::{Json, Row, Tx, args};
use crate::model::id::{ProjectId, TokenId};
use crate::wire::Scope;

/// A token as it is kept.
#[derive(Clone, Debug)]
pub struct Kept {
    /// Its id, which is part of its text.
    pub id: TokenId,
    /// For a human.
    pub name: String,
    /// The sha256 of its text.
    pub hash: [u8; 32],
    /// What it may do.
    pub scope: Scope,
    /// Where.
    pub realm: Realm,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it was last used, to the minute.
    pub used_at: Option<Timestamp>,
}

const fn word(scope: Scope) -> &'static str {
    match scope {
        Scope::User => "user",
        Scope::Agent => "agent",
        Scope::ReadOnly => "read_only",
    }
}

fn kept(row: &Row) -> Result<Kept, DbError> {
    let scope: String = row.get(3)?;
    let projects: Option<Json<BTreeSet<ProjectId>>> = row.get(4)?;
    let hash: crate::model::artifact::Digest = row.get(2)?;
    Ok(Kept {
        id: row.get(0)?,
        name: row.get(1)?,
        hash: *hash.as_bytes(),
        scope: match scope.as_str() {
            "user" => Scope::User,
            "agent" => Scope::Agent,
            // What an older server does not know is allowed the least.
            _ => Scope::ReadOnly,
        },
        realm: projects.map_or(Realm::All, |Json(projects)| Realm::Only(projects)),
        created_at: row.get(5)?,
        used_at: row.get(6)?,
    })
}

/// Returns the projects of a realm as the table keeps them.
const fn bound(realm: &Realm) -> Option<Json<&BTreeSet<ProjectId>>> {
    match realm {
        Realm::All => None,
        Realm::Only(projects) => Some(Json(projects)),
    }
}

/// Adds a token; answers whether the name was free.
pub async fn add(tx: &mut Tx, new: &Kept) -> Result<bool, DbError> {
    let sql = "INSERT INTO token (id, name, hash, scope, projects, created_at) \
               VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT (name) DO NOTHING";
    let args = args![
        new.id,
        &new.name,
        crate::model::artifact::Digest::from_bytes(new.hash),
        word(new.scope),
        bound(&new.realm),
        new.created_at,
    ];
    Ok(tx.run(sql, args).await? == 1)
}

/// Reads a token.
pub async fn read(tx: &mut Tx, id: TokenId) -> Result<Option<Kept>, DbError> {
    let sql = "SELECT id, name, hash, scope, projects, created_at, used_at FROM token \
               WHERE id = $1";
    let row = tx.row(sql, args![id]).await?;
    row.map(|row| kept(&row)).transpose()
}

/// Lists tokens by name, those after `after` that may see nothing beyond the realm.
pub async fn list(
    tx: &mut Tx,
    realm: &Realm,
    after: &str,
    limit: u32,
) -> Result<Vec<Kept>, DbError> {
    let sql = Sql {
        sqlite: "SELECT id, name, hash, scope, projects, created_at, used_at FROM token \
                 WHERE name > $1 AND ($3 IS NULL OR (projects IS NOT NULL AND NOT EXISTS \
                 (SELECT 1 FROM json_each(projects) WHERE value NOT IN \
                 (SELECT value FROM json_each($3))))) ORDER BY name LIMIT $2",
        postgres: "SELECT id, name, hash, scope, projects, created_at, used_at FROM token \
                   WHERE name > $1 AND ($3::text IS NULL OR projects::jsonb <@ $3::jsonb) \
                   ORDER BY name LIMIT $2",
    };
    let rows = tx.rows(sql, args![after, limit, bound(realm)]).await?;
    rows.iter().map(kept).collect()
}

/// Notes when a token was used.
pub async fn touch(tx: &mut Tx, id: TokenId, at: Timestamp) -> Result<(), DbError> {
    let sql = "UPDATE token SET used_at = $2 WHERE id = $1";
    tx.run(sql, args![id, at]).await.map(drop)
}

/// Revokes a token; answers whether it was there.
pub async fn delete(tx: &mut Tx, id: TokenId) -> Result<bool, DbError> {
    let sql = "DELETE FROM token WHERE id = $1";
    Ok(tx.run(sql, args![id]).await? == 1)
}
