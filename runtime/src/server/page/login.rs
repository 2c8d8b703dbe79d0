//! Browsers that are logged in: by a link that works once.
//!
//! Links and sessions live in memory and end with the server.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::clock::{Clock, Monotonic};
use crate::server::access::{Access, hash_of};
use crate::server::db::realm::Realm;

/// How long a link works.
const LINK: Duration = Duration::from_secs(60 * 60);
/// How long a browser stays logged in.
const SESSION: Duration = Duration::from_secs(12 * 60 * 60);

/// Links that were not used yet, and sessions, both by the sha256 of their text.
#[derive(Default)]
pub(crate) struct Logins {
    links: Mutex<HashMap<[u8; 32], Monotonic>>,
    sessions: Mutex<HashMap<[u8; 32], Monotonic>>,
}

fn random_text() -> String {
    hex::encode(rand::random::<[u8; 32]>())
}

fn put(texts: &Mutex<HashMap<[u8; 32], Monotonic>>, text: &str, until: Monotonic, now: Monotonic) {
    let mut texts = texts.lock().unwrap_or_else(PoisonError::into_inner);
    texts.retain(|_, end| now < *end);
    texts.insert(hash_of(text), until);
}

impl Logins {
    /// Makes the code of a link.
    pub(crate) fn code(&self, clock: &Clock) -> String {
        let (code, now) = (random_text(), clock.monotonic());
        put(&self.links, &code, now + LINK, now);
        code
    }

    /// Takes a code for a session's text; each code once.
    pub(crate) fn redeem(&self, code: &str, clock: &Clock) -> Option<String> {
        let now = clock.monotonic();
        let mut links = self.links.lock().unwrap_or_else(PoisonError::into_inner);
        links.remove(&hash_of(code)).filter(|end| now < *end)?;
        drop(links);
        let session = random_text();
        put(&self.sessions, &session, now + SESSION, now);
        Some(session)
    }

    /// Returns what a session may do: all that a person may.
    pub(crate) fn access(&self, session: &str, clock: &Clock) -> Option<Access> {
        let now = clock.monotonic();
        let sessions = self.sessions.lock().unwrap_or_else(PoisonError::into_inner);
        let end = sessions.get(&hash_of(session))?;
        (now < *end).then(|| Access::of_user("browser".to_owned(), Realm::All))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_works_once_and_not_for_ever() {
        let (clock, test) = Clock::test(jiff::Timestamp::UNIX_EPOCH);
        let logins = Logins::default();
        let code = logins.code(&clock);
        let session = logins.redeem(&code, &clock).unwrap();
        assert!(logins.access(&session, &clock).is_some());
        assert!(logins.redeem(&code, &clock).is_none());
        assert!(logins.access(&code, &clock).is_none());
        let late = logins.code(&clock);
        test.pass(LINK);
        assert!(logins.redeem(&late, &clock).is_none());
        test.pass(SESSION);
        assert!(logins.access(&session, &clock).is_none());
    }
}
