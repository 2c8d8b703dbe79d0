//! Tokens.

use std::collections::BTreeSet;

use axum::Json as Answered;
use axum::extract::State;
use http::StatusCode;

use super::{checked_name, page_size, project};
use crate::model::id::TokenId;
use crate::server::access::{self, Access};
use crate::server::app::App;
use crate::server::db;
use crate::server::db::realm::Realm;
use crate::server::db::token::{self, Kept};
use crate::server::db::tx::Tx;
use crate::server::error::{Answer, ApiError, Code};
use crate::server::extract::{Json, Path, Query};
use crate::wire::{ErrorBody, ListQuery, MadeToken, NewToken, Page, Token};

async fn shown(tx: &mut Tx, kept: Kept) -> Answer<Token> {
    Ok(Token {
        id: kept.id,
        name: kept.name,
        scope: kept.scope,
        projects: db::project::names(tx, &kept.realm).await?,
        created_at: kept.created_at,
        used_at: kept.used_at,
    })
}

/// Makes a token; its text is told this once.
#[utoipa::path(post, path = "/api/tokens", tag = "token", request_body = NewToken, responses(
    (status = 200, body = MadeToken), (status = "4XX", body = ErrorBody),
), security(("token" = [])))]
pub(super) async fn create(
    State(app): State<App>,
    access: Access,
    Json(new): Json<NewToken>,
) -> Answer<Answered<MadeToken>> {
    access.may_change()?;
    checked_name("token", &new.name)?;
    let now = app.clock.now();
    let id = TokenId::at(now.as_microsecond(), rand::random());
    let text = access::text_of(id, rand::random());
    let hash = access::hash_of(&text);
    let token = app
        .db
        .write(move |tx| {
            Box::pin(async move {
                let realm = realm_of(tx, &access, new.projects.as_deref()).await?;
                let kept = Kept {
                    id,
                    name: new.name,
                    hash,
                    scope: new.scope,
                    realm,
                    created_at: now,
                    used_at: None,
                };
                if !token::add(tx, &kept).await? {
                    return Err(ApiError::new(
                        Code::TokenExists,
                        format!("there is a token `{}` already", kept.name),
                    ));
                }
                shown(tx, kept).await
            })
        })
        .await?;
    Ok(Answered(MadeToken { token, text }))
}

/// Returns the projects that a new token is to be bound to: never more than the maker's own.
async fn realm_of(tx: &mut Tx, access: &Access, names: Option<&[String]>) -> Answer<Realm> {
    let Some(names) = names else {
        return Ok(access.realm.clone());
    };
    if names.is_empty() {
        return Err(ApiError::new(Code::ValueBad, "`projects` names no project")
            .hint("name one at least, or leave `projects` away for all of your own"));
    }
    let mut projects = BTreeSet::new();
    for name in names {
        projects.insert(project::found(tx, &access.realm, name).await?.id);
    }
    Ok(Realm::Only(projects))
}

/// Lists tokens by name, without their texts.
#[utoipa::path(get, path = "/api/tokens", tag = "token", params(ListQuery), responses(
    (status = 200, body = Page<Token>), (status = "4XX", body = ErrorBody),
), security(("token" = [])))]
pub(super) async fn list(
    State(app): State<App>,
    access: Access,
    Query(query): Query<ListQuery>,
) -> Answer<Answered<Page<Token>>> {
    access.may_read()?;
    let limit = page_size(query.limit)?;
    let mut reader = app.db.reader().await?;
    let after = query.cursor.unwrap_or_default();
    let mut kept = token::list(&mut reader, &access.realm, &after, limit + 1).await?;
    let next = super::next_of(&mut kept, limit, |last| last.name.clone());
    let mut items = Vec::new();
    for one in kept {
        items.push(shown(&mut reader, one).await?);
    }
    Ok(Answered(Page { items, next }))
}

/// Revokes a token.
#[utoipa::path(delete, path = "/api/tokens/{id}", tag = "token",
params(("id" = TokenId, Path)), responses(
    (status = 204), (status = "4XX", body = ErrorBody),
), security(("token" = [])))]
pub(super) async fn revoke(
    State(app): State<App>,
    access: Access,
    Path(id): Path<TokenId>,
) -> Answer<StatusCode> {
    access.may_change()?;
    app.db
        .write(move |tx| {
            Box::pin(async move {
                let kept = token::read(tx, id).await?;
                let is_own = kept.is_some_and(|kept| access.realm.covers(&kept.realm));
                match is_own && token::delete(tx, id).await? {
                    true => Ok(()),
                    false => Err(ApiError::new(
                        Code::TokenUnknown,
                        format!("there is no token `{id}`"),
                    )),
                }
            })
        })
        .await?;
    app.known.forget(id);
    Ok(StatusCode::NO_CONTENT)
}
