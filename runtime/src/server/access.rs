//! Tokens: who calls, and what they may do.
//!
//! A token is `waft_`, its id and 32 random bytes in hex. Only the sha256 of the text is kept. What
//! was looked up is remembered for a second, so that a busy agent costs no query a call and a token
//! that was revoked elsewhere is refused a second later; revoked here, at once.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::extract::FromRequestParts;
use http::header::{AUTHORIZATION, COOKIE, ORIGIN};
use http::request::Parts;
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

use super::app::App;
use super::db::realm::Realm;
use super::db::token::{self, Kept};
use super::error::{ApiError, Code};
use crate::clock::Monotonic;
use crate::model::id::TokenId;
use crate::wire::Scope;

/// How long a token that was looked up is remembered.
const REMEMBERED: Duration = Duration::from_secs(1);
/// What tokens begin with, so that a scanner for leaked secrets can know them.
const PREFIX: &str = "waft_";
/// The name of the cookie that a browser gets.
pub(super) const COOKIE_NAME: &str = "waft_session";

/// Who calls.
#[derive(Clone, Debug)]
pub struct Access {
    /// The token's name, for histories.
    pub name: String,
    /// The projects it is bound to.
    pub realm: Realm,
    scope: Scope,
}

impl Access {
    /// Makes the access of somebody who may do everything, such as a browser that was logged in.
    pub(super) const fn of_user(name: String, realm: Realm) -> Self {
        Self {
            name,
            realm,
            scope: Scope::User,
        }
    }

    /// Refuses whoever may only read.
    ///
    /// # Errors
    ///
    /// `forbidden`.
    pub fn may_change(&self) -> Result<(), ApiError> {
        match self.scope {
            Scope::User => Ok(()),
            Scope::Agent | Scope::ReadOnly => Err(self.forbidden("change this", "user")),
        }
    }

    /// Refuses whoever is no agent.
    ///
    /// # Errors
    ///
    /// `forbidden`.
    pub fn may_work(&self) -> Result<(), ApiError> {
        match self.scope {
            Scope::User | Scope::Agent => Ok(()),
            Scope::ReadOnly => Err(self.forbidden("work as an agent", "agent")),
        }
    }

    /// Refuses an agent's token: what it does not need it does not see.
    ///
    /// # Errors
    ///
    /// `forbidden`.
    pub fn may_read(&self) -> Result<(), ApiError> {
        match self.scope {
            Scope::User | Scope::ReadOnly => Ok(()),
            Scope::Agent => Err(self.forbidden("read this", "read-only")),
        }
    }

    /// Refuses a token that is bound to projects.
    ///
    /// # Errors
    ///
    /// `forbidden`.
    pub fn is_unbound(&self) -> Result<(), ApiError> {
        match self.realm {
            Realm::All => Ok(()),
            Realm::Only(_) => Err(ApiError::new(
                Code::Forbidden,
                format!(
                    "the token `{}` is bound to projects and may not do this",
                    self.name
                ),
            )),
        }
    }

    fn forbidden(&self, what: &str, scope: &str) -> ApiError {
        let message = format!("the token `{}` may not {what}", self.name);
        ApiError::new(Code::Forbidden, message).hint(format!("use a token of the scope `{scope}`"))
    }
}

/// Makes the text of a token.
#[must_use]
pub fn text_of(id: TokenId, secret: [u8; 32]) -> String {
    format!(
        "{PREFIX}{}_{}",
        hex::encode(id.as_bytes()),
        hex::encode(secret)
    )
}

/// Computes what is kept of a token's text. It is random, so no slow hash is needed.
#[must_use]
pub fn hash_of(text: &str) -> [u8; 32] {
    Sha256::digest(text).into()
}

fn id_of(text: &str) -> Option<TokenId> {
    let (id, _) = text.strip_prefix(PREFIX)?.split_once('_')?;
    TokenId::from_slice(&hex::decode(id).ok()?).ok()
}

/// Tokens that were looked up a moment ago. Clones share it.
#[derive(Clone, Default)]
pub(super) struct Known(Arc<Mutex<HashMap<TokenId, (Kept, Monotonic)>>>);

impl Known {
    fn get(&self, id: TokenId, now: Monotonic) -> Option<Kept> {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (kept, at) = known.get(&id)?;
        (now.since(*at) < REMEMBERED).then(|| kept.clone())
    }

    fn put(&self, kept: Kept, now: Monotonic) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() > 10_000 {
            known.clear();
        }
        known.insert(kept.id, (kept, now));
    }

    /// Forgets a token that was revoked.
    pub(super) fn forget(&self, id: TokenId) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.remove(&id);
    }
}

impl App {
    /// Finds out who calls with a token.
    ///
    /// # Errors
    ///
    /// `token-wrong`, with the same words whether the id or the secret is wrong.
    pub async fn access(&self, text: &str) -> Result<Access, ApiError> {
        let wrong = || {
            ApiError::new(Code::TokenWrong, "the token opens nothing here").hint(
                "on the machine of the server, waft server token prints a new one, with its \
                     --db if it has one",
            )
        };
        let id = id_of(text).ok_or_else(wrong)?;
        let now = self.clock.monotonic();
        let known = self.known.get(id, now);
        let is_news = known.is_none();
        let kept = match known {
            Some(kept) => kept,
            None => {
                let mut reader = self.db.reader().await?;
                token::read(&mut reader, id).await?.ok_or_else(wrong)?
            }
        };
        let is_right: bool = hash_of(text).ct_eq(&kept.hash).into();
        if !is_right {
            return Err(wrong());
        }
        // Known only by now: who tries a wrong secret must not hide that the right one is used.
        if is_news {
            self.known.put(kept.clone(), now);
            self.note_use(&kept);
        }
        Ok(Access {
            name: kept.name,
            realm: kept.realm,
            scope: kept.scope,
        })
    }

    /// Notes when a token was used, to the minute, without letting the caller wait for it.
    fn note_use(&self, kept: &Kept) {
        let (id, now) = (kept.id, self.clock.now());
        let minute = jiff::SignedDuration::from_mins(1);
        if kept
            .used_at
            .is_some_and(|at| now.duration_since(at) < minute)
        {
            return;
        }
        let db = self.db.clone();
        tokio::spawn(async move {
            let noted = db.write(move |tx| Box::pin(token::touch(tx, id, now)));
            drop(noted.await);
        });
    }
}

impl FromRequestParts<App> for Access {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, ApiError> {
        if let Some(header) = parts.headers.get(AUTHORIZATION) {
            let text = header.to_str().unwrap_or_default();
            let token = match text.split_once(' ') {
                Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") => token.trim(),
                _ => "",
            };
            return app.access(token).await;
        }
        let cookies = parts.headers.get_all(COOKIE).into_iter();
        let cookies = cookies.filter_map(|value| value.to_str().ok());
        let session = cookies
            .flat_map(|cookies| cookies.split(';'))
            .find_map(|cookie| cookie.trim().strip_prefix(COOKIE_NAME)?.strip_prefix('='));
        let browser = match session {
            Some(session) => app.browser(session).await?,
            None => None,
        };
        match browser {
            Some(access) => same_origin(parts).map(|()| access),
            None => Err(ApiError::new(Code::TokenWrong, "a token is needed")
                .hint("send it as `Authorization: Bearer waft_…`")),
        }
    }
}

/// Refuses what a browser sends from somebody else's page: a cookie comes along by itself.
fn same_origin(parts: &Parts) -> Result<(), ApiError> {
    let text = |name: &str| parts.headers.get(name)?.to_str().ok();
    let is_own_site =
        text("sec-fetch-site").is_none_or(|site| matches!(site, "same-origin" | "none"));
    let is_own_origin = match (text(ORIGIN.as_str()), text("host")) {
        (Some(origin), Some(host)) => origin.split_once("://").is_some_and(|(_, own)| own == host),
        (Some(_), None) => false,
        (None, _) => true,
    };
    match is_own_site && is_own_origin {
        true => Ok(()),
        false => Err(ApiError::new(
            Code::OriginWrong,
            "a page of another origin may not use this login",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_names_its_row_and_nothing_else_does() {
        let id = TokenId::at(0, 7);
        let text = text_of(id, [9; 32]);
        assert_eq!(id_of(&text), Some(id));
        for bad in [
            "",
            "waft_",
            "waft_00_00",
            "bearer",
            &text[1..],
            "waft_zz_00",
        ] {
            assert_eq!(id_of(bad), None, "{bad}");
        }
        assert_ne!(hash_of(&text), hash_of(&text_of(id, [8; 32])));
    }
}
