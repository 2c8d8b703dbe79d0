//! Browsers that are logged in: by a link that works once.
//!
//! Links and sessions lie in the database, so that every server of it knows them.

use jiff::{SignedDuration, Timestamp};

use crate::server::access::{Access, hash_of};
use crate::server::app::App;
use crate::server::db::DbError;
use crate::server::db::login::{self, Kind};
use crate::server::db::realm::Realm;

/// How long a link works.
const LINK: SignedDuration = SignedDuration::from_hours(1);
/// How long a browser stays logged in.
const SESSION: SignedDuration = SignedDuration::from_hours(12);

fn random_text() -> String {
    hex::encode(rand::random::<[u8; 32]>())
}

fn end(now: Timestamp, time: SignedDuration) -> Timestamp {
    now.saturating_add(time).unwrap_or(Timestamp::MAX)
}

impl App {
    /// Makes the code of a link that logs a browser in, once.
    ///
    /// # Errors
    ///
    /// The database's.
    pub async fn login_code(&self) -> Result<String, DbError> {
        let (code, now) = (random_text(), self.clock.now());
        let hash = hash_of(&code);
        self.db
            .write(move |tx| Box::pin(login::add(tx, hash, Kind::Link, end(now, LINK), now)))
            .await?;
        Ok(code)
    }

    /// Takes a code for a session's text; each code once.
    pub(super) async fn redeem(&self, code: &str) -> Result<Option<String>, DbError> {
        let (session, now) = (random_text(), self.clock.now());
        let (link, hash) = (hash_of(code), hash_of(&session));
        let is_taken = self.db.write(move |tx| {
            Box::pin(async move {
                let is_good = login::take_link(tx, link, now).await?;
                if is_good {
                    login::add(tx, hash, Kind::Session, end(now, SESSION), now).await?;
                }
                Ok::<_, DbError>(is_good)
            })
        });
        Ok(is_taken.await?.then_some(session))
    }

    /// Returns what a session may do: all that a person may.
    pub(in crate::server) async fn browser(
        &self,
        session: &str,
    ) -> Result<Option<Access>, DbError> {
        let mut reader = self.db.reader().await?;
        let is_in = login::is_session(&mut reader, hash_of(session), self.clock.now()).await?;
        Ok(is_in.then(|| Access::of_user("browser".to_owned(), Realm::All)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;
    use crate::server::{self, ServerSettings};

    #[tokio::test]
    async fn a_link_works_once_and_not_for_ever_whichever_server_made_it() {
        let folder = tempfile::tempdir().unwrap();
        let (clock, test) = Clock::test("2026-03-01T00:00:00Z".parse().unwrap());
        let settings = ServerSettings {
            listen: ([127, 0, 0, 1], 0).into(),
            db: folder.path().join("waft.db").into(),
            lease: std::time::Duration::from_secs(30),
            hosts: Vec::new(),
            results_keep: server::RESULTS_KEEP,
            runs_keep: server::RUNS_KEEP,
            clock,
        };
        let (app, _) = server::open(&settings).await.unwrap();
        let code = app.login_code().await.unwrap();
        drop(app);
        let (app, _) = server::open(&settings).await.unwrap();
        let session = app.redeem(&code).await.unwrap().unwrap();
        assert!(app.browser(&session).await.unwrap().is_some());
        assert!(app.redeem(&code).await.unwrap().is_none());
        assert!(app.browser(&code).await.unwrap().is_none());
        let late = app.login_code().await.unwrap();
        assert!(app.browser(&late).await.unwrap().is_none());
        test.pass(LINK.unsigned_abs());
        assert!(app.redeem(&late).await.unwrap().is_none());
        assert!(app.browser(&session).await.unwrap().is_some());
        test.pass(SESSION.unsigned_abs());
        assert!(app.browser(&session).await.unwrap().is_none());
    }
}
