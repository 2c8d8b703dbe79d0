//! Sessions of agents: who offers what, as long as the agent is up.
//!
//! An agent is known by realm, name and host; its newest session is the one that counts. Which
//! requirements a session satisfies is decided once for each and remembered here.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use super::access::Access;
use super::app::App;
use super::changes::Bells;
use super::db::DbError;
use super::db::agent::{self, Holding};
use super::db::memory::Memory;
use super::error::{ApiError, Code};
use crate::clock::Monotonic;
use crate::model::id::{AgentId, FlowVersionId, SessionId};
use crate::model::requirement::{Offer, Requirement};

/// How long the runs of a version are not given to an agent that has just declined one of them; twice as long
/// each time that it declines again.
const SHUNNED: Duration = Duration::from_secs(60);
/// The longest of these pauses, and how long one is remembered after its end.
const SHUNNED_MAX: Duration = Duration::from_secs(5 * 60);
/// How long an agent counts as polling after its last call ended: it is between two calls.
const BETWEEN_CALLS: Duration = Duration::from_secs(5);
/// How long a session is remembered of which nothing is heard.
const SILENT: Duration = Duration::from_secs(60 * 60);
/// How often it is written down that an agent was heard of.
const SEEN_EVERY: Duration = Duration::from_secs(30);
/// How long an agent counts as being there after another server has noted that it is.
const ELSEWHERE: SignedDuration = SignedDuration::from_secs(8);

/// One stay of an agent with this server.
pub struct Session {
    /// Its id.
    pub id: SessionId,
    /// The agent.
    pub agent_id: AgentId,
    /// The agent's name.
    pub name: String,
    /// What it offers, cut to what its token is bound to.
    pub offer: Offer,
    realm: String,
    is_replaced: AtomicBool,
    has_left: AtomicBool,
    /// Whether it was told from afar to take no more runs.
    is_drained: AtomicBool,
    protocol: u32,
    memory: Memory,
    numbered: Mutex<Numbered>,
    shunned: Mutex<HashMap<FlowVersionId, Shunned>>,
    open_calls: AtomicU32,
    heard: Mutex<Heard>,
}

/// What is known of requirements by their numbers, which hold until a transaction is undone.
#[derive(Default)]
struct Numbered {
    undone: u64,
    satisfied: HashMap<i64, bool>,
}

/// A version whose artifact the agent could not get ready.
struct Shunned {
    since: Monotonic,
    length: Duration,
    why: String,
}

impl Shunned {
    fn left(&self, now: Monotonic) -> Option<Duration> {
        let left = self.length.saturating_sub(now.since(self.since));
        (!left.is_zero()).then_some(left)
    }
}

#[derive(Clone, Copy)]
struct Heard {
    last: Monotonic,
    written: Option<Monotonic>,
}

/// Whether an agent is there, and for what.
#[derive(Clone, Copy, Debug)]
pub(super) struct There {
    is_there: bool,
    takes_no_more: bool,
}

impl There {
    /// Tells whether the agent waits for runs, or is between two calls.
    pub(super) const fn is_polling(self) -> bool {
        self.is_there && !self.takes_no_more
    }

    /// Tells whether the agent takes no more runs, and is still there for those that it has.
    pub(super) const fn is_leaving(self) -> bool {
        self.is_there && self.takes_no_more
    }
}

/// Every session that was used since this server started.
#[derive(Default)]
pub(super) struct Sessions {
    all: Mutex<HashMap<SessionId, Arc<Session>>>,
    /// Agents that listen for orders.
    pub(super) listening: Bells<AgentId>,
}

/// Counts a call of an agent as open, until it is dropped.
pub(super) struct OpenCall(Arc<Session>, App);

impl Drop for OpenCall {
    fn drop(&mut self) {
        self.0.open_calls.fetch_sub(1, Ordering::Relaxed);
        self.0.hear(self.1.clock.monotonic());
    }
}

impl Session {
    fn new(kept: agent::Kept, memory: Memory, now: Monotonic) -> Self {
        Self {
            id: kept.session_id,
            agent_id: kept.id,
            name: kept.name,
            offer: kept.offer,
            realm: kept.realm,
            is_replaced: AtomicBool::new(false),
            has_left: AtomicBool::new(kept.has_left),
            is_drained: AtomicBool::new(kept.drain.is_some()),
            protocol: kept.protocol,
            memory,
            numbered: Mutex::default(),
            shunned: Mutex::default(),
            open_calls: AtomicU32::new(0),
            heard: Mutex::new(Heard {
                last: now,
                written: None,
            }),
        }
    }

    /// Tells whether the agent may take runs with this requirement.
    pub fn satisfies(&self, id: i64, requirement: &Requirement) -> bool {
        *self
            .numbered()
            .satisfied
            .entry(id)
            .or_insert_with(|| requirement.missing_from(&self.offer).is_empty())
    }

    /// Returns what is known of it without the requirement itself.
    pub(super) fn is_known_to_satisfy(&self, id: i64) -> Option<bool> {
        self.numbered().satisfied.get(&id).copied()
    }

    /// Notes that the agent has declined a run: it is given no run of that version for a minute, and for longer if
    /// it declines again, since each try may fetch the whole artifact. What needs the same of an agent and is
    /// another artifact goes on.
    pub(super) fn shun(&self, version: FlowVersionId, why: String, now: Monotonic) {
        let mut shunned = self.shunned();
        shunned.retain(|_, one| now.since(one.since) < one.length + SHUNNED_MAX);
        let before = shunned.get(&version).map(|one| one.length * 2);
        let shun = Shunned {
            since: now,
            length: before.map_or(SHUNNED, |twice| twice.min(SHUNNED_MAX)),
            why,
        };
        shunned.insert(version, shun);
    }

    /// Returns why the agent has declined a run of a version a moment ago, and how long it is given none.
    pub(super) fn why_shunned(
        &self,
        version: FlowVersionId,
        now: Monotonic,
    ) -> Option<(String, Duration)> {
        let shunned = self.shunned();
        let found = shunned.get(&version)?;
        Some((found.why.clone(), found.left(now)?))
    }

    /// Lists the versions of which the agent has declined a run a moment ago.
    pub(super) fn shuns(&self, now: Monotonic) -> Vec<FlowVersionId> {
        let shunned = self.shunned();
        let lately = shunned.iter().filter(|(_, one)| one.left(now).is_some());
        lately.map(|(version, _)| *version).collect()
    }

    /// Takes over what an earlier session has declined. A root that is offered since may hold any of it.
    fn go_on_from(&self, earlier: &Self) {
        if self.offer.roots.is_subset(&earlier.offer.roots) {
            self.shunned().extend(earlier.shunned().drain());
        }
    }

    fn shunned(&self) -> MutexGuard<'_, HashMap<FlowVersionId, Shunned>> {
        self.shunned.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn numbered(&self) -> MutexGuard<'_, Numbered> {
        let mut numbered = self.numbered.lock().unwrap_or_else(PoisonError::into_inner);
        let undone = self.memory.undone();
        if numbered.undone != undone {
            *numbered = Numbered {
                undone,
                ..Numbered::default()
            };
        }
        numbered
    }

    pub(super) fn is_replaced(&self) -> bool {
        self.is_replaced.load(Ordering::Relaxed)
    }

    /// Notes that the agent takes no more runs. What it has it still reports and renews.
    pub(super) fn leave(&self) {
        self.has_left.store(true, Ordering::Relaxed);
    }

    /// Tells whether the agent takes on nothing more.
    pub(super) fn has_left(&self) -> bool {
        self.has_left.load(Ordering::Relaxed)
    }

    /// Notes that the agent was told to take no more runs, so that it is given none from now on.
    pub(super) fn drain(&self) {
        self.is_drained.store(true, Ordering::Relaxed);
    }

    /// Tells whether the agent is given no more runs, whether or not it knows it already.
    pub(super) fn takes_no_more(&self) -> bool {
        self.has_left() || self.is_drained.load(Ordering::Relaxed)
    }

    /// Tells whether the agent understands that it is told to end.
    pub(super) const fn knows_drain(&self) -> bool {
        self.protocol >= agent::DRAIN_PROTOCOL
    }

    /// Tells whether the agent waits for slots of tags.
    pub(super) const fn knows_slots(&self) -> bool {
        self.protocol >= agent::SLOTS_PROTOCOL
    }

    /// Tells whether a call of the agent is open here, or ended a moment ago.
    pub(super) fn is_there(&self, now: Monotonic) -> bool {
        let heard = *self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        !self.is_replaced() && (self.is_calling() || now.since(heard.last) < BETWEEN_CALLS)
    }

    fn is_calling(&self) -> bool {
        self.open_calls.load(Ordering::Relaxed) > 0
    }

    fn is_silent(&self, now: Monotonic) -> bool {
        let heard = *self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        !self.is_calling() && now.since(heard.last) >= SILENT
    }

    fn hear(&self, now: Monotonic) {
        let mut heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        heard.last = now;
    }

    /// Answers whether it is time to write down that the agent was heard of.
    fn is_to_be_noted(&self, now: Monotonic) -> bool {
        let mut heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        heard.last = now;
        if heard.written.is_some_and(|at| now.since(at) < SEEN_EVERY) {
            return false;
        }
        heard.written = Some(now);
        true
    }
}

impl Sessions {
    /// Forgets sessions of which nothing was heard for so long; a call under one finds it again in the
    /// database.
    pub(super) fn forget_silent(&self, now: Monotonic) {
        let mut all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|_, session| !session.is_silent(now));
    }

    pub(super) fn get(&self, id: SessionId) -> Option<Arc<Session>> {
        let all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        all.get(&id).cloned()
    }

    /// Notes in the sessions of an agent that it takes no more runs.
    pub(super) fn drain(&self, agent: AgentId) {
        let all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        let own = all.values().filter(|session| session.agent_id == agent);
        own.for_each(|session| session.drain());
    }

    /// Forgets what an agent has declined: its process has begun anew, and may know better.
    pub(super) fn forgive(&self, agent: AgentId) {
        let all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        let own = all.values().filter(|session| session.agent_id == agent);
        own.for_each(|session| session.shunned().clear());
    }

    /// Forgets who has declined a version: its artifact was put somewhere once more. Answers whether anybody had.
    pub(super) fn forgive_version(&self, version: FlowVersionId) -> bool {
        let all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        let forgiven = all.values().filter(|session| {
            let declined = session.shunned().remove(&version);
            declined.is_some()
        });
        forgiven.count() > 0
    }

    /// Lists the sessions of the agents that are there.
    pub(super) fn there(&self, now: Monotonic) -> Vec<SessionId> {
        let all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        let there = all.values().filter(|session| session.is_there(now));
        there.map(|session| session.id).collect()
    }

    /// Takes note of what holds of an agent; answers whether a session of it has ended by that.
    pub(super) fn hold(&self, what: &Holding) -> bool {
        let mut has_ended = false;
        let mut all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|_, session| {
            if session.agent_id != what.id {
                return true;
            }
            if session.id != what.session_id {
                session.is_replaced.store(true, Ordering::Relaxed);
                has_ended = true;
                return false;
            }
            if what.is_drained {
                session.drain();
            }
            if what.has_left {
                session.leave();
            }
            true
        });
        has_ended
    }

    fn put(&self, session: Session) -> Arc<Session> {
        let session = Arc::new(session);
        let mut all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|_, other| {
            let is_older = other.agent_id == session.agent_id && other.id != session.id;
            if is_older {
                other.is_replaced.store(true, Ordering::Relaxed);
                session.go_on_from(other);
            }
            !is_older
        });
        all.entry(session.id).or_insert(session).clone()
    }
}

impl App {
    /// Finds the session that an agent names, and takes note of the agent.
    ///
    /// # Errors
    ///
    /// `session-unknown` if it is not the agent's newest, or another token's.
    pub(super) async fn session(
        &self,
        access: &Access,
        id: SessionId,
    ) -> Result<Arc<Session>, ApiError> {
        let unknown = || {
            ApiError::new(
                Code::SessionUnknown,
                "the session is unknown, or the agent has opened a newer one",
            )
        };
        let now = self.clock.monotonic();
        let session = match self.sessions.get(id) {
            Some(session) => session,
            None => {
                let mut reader = self.db.reader().await?;
                let kept = agent::of_session(&mut reader, id).await?;
                self.sessions.put(Session::new(
                    kept.ok_or_else(unknown)?,
                    self.db.memory.clone(),
                    now,
                ))
            }
        };
        if session.realm != access.realm.word() || session.is_replaced() {
            return Err(unknown());
        }
        if session.is_to_be_noted(now) {
            let (db, agent_id, at) = (self.db.clone(), session.agent_id, self.clock.now());
            tokio::spawn(async move {
                let noted = db.write(move |tx| Box::pin(agent::touch(tx, agent_id, at)));
                drop(noted.await);
            });
        }
        Ok(session)
    }

    /// Looks again at what holds of an agent, or of all: it was said to another server.
    pub(super) async fn look_at_agents(&self, of: Option<AgentId>) -> Result<(), DbError> {
        let mut reader = self.db.reader().await?;
        let mut has_ended = false;
        for what in agent::holding(&mut reader, of).await? {
            has_ended |= self.sessions.hold(&what);
        }
        if has_ended {
            self.waiting.wake_replaced();
        }
        Ok(())
    }

    /// Tells whether an agent is there, here or at another server of the database.
    pub(super) fn presence(&self, kept: &agent::Kept, lease_now: Timestamp) -> There {
        let session = self.sessions.get(kept.session_id);
        let now = self.clock.monotonic();
        let is_here = session.as_ref().is_some_and(|it| it.is_there(now));
        let is_elsewhere = self.has_pulse() && lease_now.duration_since(kept.heard_at) < ELSEWHERE;
        let takes_no_more =
            kept.drain.is_some() || kept.has_left || session.is_some_and(|it| it.takes_no_more());
        There {
            is_there: is_here || is_elsewhere,
            takes_no_more,
        }
    }

    /// Tells whether a process of another `WAFT_HOME` may have the name of an agent that says hello. One
    /// that has taken leave and calls no more has ended.
    pub(super) fn is_anothers(
        &self,
        kept: &agent::Kept,
        home: Option<&str>,
        lease_now: Timestamp,
    ) -> bool {
        let is_other = home.is_some_and(|own| kept.home.as_deref().is_some_and(|it| it != own));
        let session = self.sessions.get(kept.session_id);
        let has_ended = session.is_some_and(|it| it.has_left() && !it.is_calling());
        is_other && !has_ended && self.presence(kept, lease_now).is_there
    }

    /// Counts a call of an agent as open.
    pub(super) fn open_call(&self, session: &Arc<Session>) -> OpenCall {
        session.open_calls.fetch_add(1, Ordering::Relaxed);
        OpenCall(session.clone(), self.clone())
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::clock::Clock;

    /// Makes a session of an agent of its own.
    pub(in crate::server) fn session(
        nth: u128,
        offer: Offer,
        memory: Memory,
        now: Monotonic,
    ) -> Session {
        let kept = agent::Kept {
            id: AgentId::at(0, nth),
            realm: String::new(),
            name: format!("agent-{nth}"),
            hostname: "host".to_owned(),
            session_id: SessionId::at(0, nth),
            version: "0".to_owned(),
            protocol: 1,
            offer,
            slots: 1,
            seen_at: Timestamp::UNIX_EPOCH,
            drain: None,
            has_left: false,
            heard_at: Timestamp::UNIX_EPOCH,
            home: None,
            begun_at: Timestamp::UNIX_EPOCH,
        };
        Session::new(kept, memory, now)
    }

    /// Lets a newer session of its agent take its place.
    pub(in crate::server) fn replace(session: &Session) {
        session.is_replaced.store(true, Ordering::Relaxed);
    }

    #[test]
    fn a_number_of_an_undone_transaction_is_forgotten() {
        let memory = Memory::default();
        let now = Clock::default().monotonic();
        let session = session(1, Offer::default(), memory.clone(), now);
        assert!(session.satisfies(7, &Requirement::default()));
        assert_eq!(session.is_known_to_satisfy(7), Some(true));
        memory.forget();
        assert_eq!(session.is_known_to_satisfy(7), None);
    }

    #[test]
    fn a_declined_version_is_given_again_after_a_minute() {
        let now = Clock::default().monotonic();
        let session = session(1, Offer::default(), Memory::default(), now);
        let [one, other] = [1, 2].map(|nth| FlowVersionId::at(0, nth));
        session.shun(one, "its bytes are missing".to_owned(), now);
        let late = now + (SHUNNED - Duration::from_millis(1));
        assert_eq!(session.shuns(late), [one]);
        let why = session.why_shunned(one, late).unwrap();
        assert_eq!(why.0, "its bytes are missing");
        assert_eq!(session.why_shunned(other, late), None);
        assert_eq!(session.why_shunned(one, now + SHUNNED), None);
        assert!(session.shuns(now + SHUNNED).is_empty());
        // Each time that it declines again it rests for longer, until it has not for some time.
        let mut at = now;
        for minutes in [2, 4, 5, 5] {
            at = at + SHUNNED_MAX;
            session.shun(one, String::new(), at);
            let left = session.why_shunned(one, at).unwrap().1;
            assert_eq!(left, Duration::from_secs(60 * minutes));
        }
        let late = at + SHUNNED_MAX * 2;
        session.shun(one, String::new(), late);
        assert_eq!(session.why_shunned(one, late).unwrap().1, SHUNNED);
    }

    #[test]
    fn what_is_registered_once_more_is_declined_by_nobody() {
        let now = Clock::default().monotonic();
        let sessions = Sessions::default();
        let put = sessions.put(session(1, Offer::default(), Memory::default(), now));
        let [one, other] = [1, 2].map(|nth| FlowVersionId::at(0, nth));
        for version in [one, other] {
            put.shun(version, String::new(), now);
        }
        assert!(sessions.forgive_version(one) && !sessions.forgive_version(one));
        assert_eq!(put.shuns(now), [other]);
    }

    #[test]
    fn what_is_declined_stays_so_in_the_next_session_unless_there_is_a_new_root_or_process() {
        let now = Clock::default().monotonic();
        let sessions = Sessions::default();
        let offering = |nth: u128, roots: &[&str]| {
            let offer = Offer {
                roots: roots.iter().map(|root| (*root).to_owned()).collect(),
                ..Offer::default()
            };
            let mut session = session(nth, offer, Memory::default(), now);
            session.agent_id = AgentId::at(0, 0);
            sessions.put(session)
        };
        let version = FlowVersionId::at(0, 1);
        offering(1, &["s3://a", "s3://b"]).shun(version, String::new(), now);
        assert_eq!(offering(2, &["s3://a"]).shuns(now), [version]);
        let back = offering(3, &["s3://a", "s3://b"]);
        assert!(back.shuns(now).is_empty(), "it may lie there");
        back.shun(version, String::new(), now);
        sessions.forgive(back.agent_id);
        let anew = offering(4, &["s3://a"]);
        assert!(anew.shuns(now).is_empty(), "the process is another one");
    }

    #[test]
    fn a_session_is_forgotten_after_an_hour_of_silence_unless_a_call_is_open() {
        let now = Clock::default().monotonic();
        let sessions = Sessions::default();
        let put = |nth| sessions.put(session(nth, Offer::default(), Memory::default(), now));
        let (quiet, waits) = (put(1), put(2));
        waits.open_calls.fetch_add(1, Ordering::Relaxed);
        let left = |after: Duration| {
            sessions.forget_silent(now + after);
            [&quiet, &waits].map(|session| sessions.get(session.id).is_some())
        };
        assert_eq!(left(SILENT - Duration::from_millis(1)), [true, true]);
        quiet.hear(now + Duration::from_secs(1));
        assert_eq!(left(SILENT), [true, true]);
        assert_eq!(left(SILENT + Duration::from_secs(1)), [false, true]);
    }
}
