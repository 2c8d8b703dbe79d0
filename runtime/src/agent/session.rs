//! A session: one stay of an agent with the server, and how to talk while it lasts.
//!
//! Every call of the agent goes through [`Session::call`]. The server may be away, may have been
//! started anew, may have forgotten the session: none of this reaches the callers. They wait, and
//! all of them go on as soon as one has found the server again.

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::future::Future;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, bail};
use tokio::sync::{Notify, watch};

use super::arrival::outwait;
use super::lock::SessionNote;
use super::places::{Failing, Places};
use crate::client::{Client, ClientError, Refused};
use crate::clock::{Clock, Monotonic};
use crate::model::id::SessionId;
use crate::wire::{self, Leave, NewSession, PROTOCOL};

/// The first pause after a call that did not reach the server.
pub(super) const PAUSE_FIRST: Duration = Duration::from_millis(50);
/// The longest pause of those who are in no hurry.
pub(crate) const PAUSE_MAX: Duration = Duration::from_secs(10);
/// How long a root is not offered that refuses us, and the longest rest of one that does not answer.
pub(super) const REST: Duration = Duration::from_secs(5 * 60);
/// How long one is not offered that does not answer; twice as long after each look in vain.
pub(super) const REST_AWAY: Duration = Duration::from_secs(5);

/// The code of the refusal of a name that an agent of another home has.
pub(super) const NAME_TAKEN: &str = "agent-exists";

/// One agent's line to its server.
pub(crate) struct Session {
    client: Client,
    clock: Clock,
    hello: NewSession,
    roots: Roots,
    note: SessionNote,
    rests: Mutex<HashMap<String, Rest>>,
    /// Says that a root rests from now.
    rested: Notify,
    opened: Mutex<SessionId>,
    opening: tokio::sync::Mutex<()>,
    /// Whether the agent takes no more runs.
    has_left: AtomicBool,
    /// Counts the answers that ended an outage.
    returns: watch::Sender<u64>,
}

/// What an agent offers by its roots.
#[derive(Default)]
pub(crate) struct Roots {
    /// The label that each is offered with.
    pub(crate) labels: HashMap<String, String>,
    /// The one where results are kept.
    pub(crate) results: String,
    /// Those that are out of reach at the start, and why.
    pub(super) away: Vec<(String, Failing)>,
}

/// The rest of a root that was away, kept for a while after its end.
#[derive(Clone, Debug)]
struct Rest {
    length: Duration,
    until: Monotonic,
    is_over: bool,
    failing: Failing,
}

impl Rest {
    fn begin(failing: Failing, now: Monotonic) -> Self {
        Self::lasting(failing.least, failing, now)
    }

    /// Begins the rest after this one: longer if this one was of no avail.
    fn again(&self, failing: Failing, now: Monotonic) -> Self {
        let length = match self.is_over && now.since(self.until) >= REST {
            true => failing.least,
            false => (self.length * 2).clamp(failing.least, REST),
        };
        Self::lasting(length, failing.in_words_of(&self.failing), now)
    }

    /// Says in the log that it begins.
    fn warn(&self, root: &str, is_of_results: bool) {
        let Failing { why, hint, .. } = &self.failing;
        let hint = hint.as_deref();
        let seconds = self.length.as_secs();
        match is_of_results {
            true => tracing::warn!(
                storage.root = root,
                error = why,
                hint,
                looks_in_seconds = seconds,
                "the place of results fails: no run is taken before it answers"
            ),
            false => tracing::warn!(
                storage.root = root,
                error = why,
                hint,
                looks_in_seconds = seconds,
                "a root fails, and rests"
            ),
        }
    }

    fn lasting(length: Duration, failing: Failing, now: Monotonic) -> Self {
        Self {
            length,
            until: now + length,
            is_over: false,
            failing,
        }
    }
}

/// Leaves the roots that rest out of an offer and says why, and puts the labels of the others in.
fn offered(
    hello: &NewSession,
    roots: &Roots,
    rests: &HashMap<String, Rest>,
    now: Monotonic,
) -> NewSession {
    let mut hello = hello.clone();
    let is_offered = |root: &str| rests.get(root).is_none_or(|rest| rest.is_over);
    hello.offer.roots.retain(|root| is_offered(root));
    let labels = roots.labels.iter().filter(|(root, _)| is_offered(root));
    labels.for_each(|(_, label)| hello.offer.labels.insert(label.clone()));
    hello.offer.results_away = Some(&roots.results)
        .filter(|root| !is_offered(root))
        .cloned();
    let resting = rests.iter().filter(|(_, rest)| !rest.is_over);
    hello.rests = resting
        .map(|(root, rest)| wire::Rest {
            root: root.clone(),
            label: roots.labels.get(root).cloned(),
            why: rest.failing.why.clone(),
            hint: rest.failing.hint.clone(),
            // Rounded up, so that it is not said to be due before it is.
            look_seconds: u32::try_from(rest.until.since(now).as_millis().div_ceil(1000))
                .unwrap_or(u32::MAX),
        })
        .collect();
    hello
        .rests
        .sort_unstable_by(|one, other| one.root.cmp(&other.root));
    hello
}

/// What to do about a call that failed.
enum Trouble {
    /// Try again after a pause.
    Away,
    /// Say hello again, then try again.
    Forgotten,
    /// Trying again gives the same answer.
    Refused(Refused),
}

impl Session {
    /// Says hello as soon as the server is there, and checks that both sides speak the same protocol.
    ///
    /// The first hello of a process names the session of the one before it, which is dead.
    pub(crate) async fn open(
        client: Client,
        clock: Clock,
        mut hello: NewSession,
        note: SessionNote,
        roots: Roots,
    ) -> anyhow::Result<(Self, wire::Session)> {
        (hello.replaces, hello.is_start) = (note.read(), true);
        let now = clock.monotonic();
        let away = roots.away.iter();
        let rests = away.map(|(root, failing)| (root.clone(), Rest::begin(failing.clone(), now)));
        let rests = rests.collect();
        let first = offered(&hello, &roots, &rests, now);
        let opened = outwait(&client, &clock, || say_hello(&client, first.clone()))
            .await
            .with_context(|| format!("cannot say hello to the server as agent `{}`", hello.name))?;
        if !is_spoken(opened.protocol) {
            bail!(
                "the server speaks agent protocol {}, this agent {PROTOCOL}: one of them is too old",
                opened.protocol
            );
        }
        note.write(opened.session_id);
        (hello.replaces, hello.is_start) = (None, false);
        let session = Self {
            client,
            clock,
            hello,
            note,
            roots,
            rests: Mutex::new(rests),
            rested: Notify::new(),
            opened: Mutex::new(opened.session_id),
            opening: tokio::sync::Mutex::default(),
            has_left: AtomicBool::new(false),
            returns: watch::Sender::new(0),
        };
        Ok((session, opened))
    }

    /// Asks the server until it answers, however long it is away.
    ///
    /// `ask` is called anew for each try, with the session of that moment. A try under a session
    /// that is replaced meanwhile is not dropped, since it may bring runs: the server ends it.
    ///
    /// # Errors
    ///
    /// Fails only if the server refuses what is asked.
    pub(crate) async fn call<T, F>(
        &self,
        pause_max: Duration,
        ask: impl Fn(Client, SessionId) -> F,
    ) -> Result<T, Refused>
    where
        F: Future<Output = Result<T, ClientError>>,
    {
        let mut pause = PAUSE_FIRST;
        loop {
            let id = self.opened();
            let error = match ask(self.client.clone(), id).await {
                Ok(answer) => {
                    if pause > PAUSE_FIRST {
                        self.returns.send_modify(|count| *count += 1);
                    }
                    return Ok(answer);
                }
                Err(error) => error,
            };
            match trouble(error) {
                Trouble::Refused(refused) => return Err(refused),
                Trouble::Forgotten => self.reopen(id).await?,
                Trouble::Away => {
                    self.wait(pause).await;
                    pause = (pause * 2).min(pause_max.max(PAUSE_FIRST * 2));
                }
            }
        }
    }

    /// Tells the server that this agent takes no more runs, so that nobody counts on it.
    ///
    /// Tried once: a server that does not hear it, or forgets it, is told by whoever listens next.
    pub(crate) async fn leave(&self, within: Duration) {
        self.has_left.store(true, Ordering::Relaxed);
        let session_id = self.opened();
        if let Err(error) = self.client.leave(&Leave { session_id }, within).await {
            tracing::debug!(error = %error, "the server was not told that the agent leaves");
        }
    }

    /// Tells whether the agent takes no more runs.
    pub(crate) fn has_left(&self) -> bool {
        self.has_left.load(Ordering::Relaxed)
    }

    /// Stops offering a root that failed somebody. One where results are kept takes every offer with it.
    ///
    /// Returns when the server knows, so that what is handed back after it does not come here again.
    pub(super) async fn rest(&self, root: &str, failing: Failing) {
        let now = self.clock.monotonic();
        let is_news = {
            let mut rests = lock(&self.rests);
            let rest = match rests.get(root) {
                Some(rest) if !rest.is_over => None,
                Some(before) => Some(before.again(failing, now)),
                None => Some(Rest::begin(failing, now)),
            };
            if let Some(rest) = &rest {
                rest.warn(root, self.roots.results == root);
            }
            let is_news = rest.is_some();
            rests.extend(rest.map(|rest| (root.to_owned(), rest)));
            is_news
        };
        self.rested.notify_one();
        if is_news {
            self.offer_anew().await;
        }
    }

    /// Offers roots again whose rest is over and that are in reach, for as long as the agent lives.
    pub(crate) async fn wake_roots(&self, places: &Places) {
        loop {
            let first = {
                let rests = lock(&self.rests);
                let resting = rests.values().filter(|rest| !rest.is_over);
                resting.map(|rest| rest.until).min()
            };
            let due = async {
                match first {
                    Some(at) => self.clock.sleep(at.since(self.clock.monotonic())).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = due => self.look_at_rested(places).await,
                () = self.rested.notified() => {}
            }
        }
    }

    /// Looks at the roots whose rest is over. The server is told what came of it: it says why, and when the
    /// next look is, to whoever waits for a root.
    async fn look_at_rested(&self, places: &Places) {
        let now = self.clock.monotonic();
        let mut rests = lock(&self.rests).clone();
        rests.retain(|_, rest| !rest.is_over && rest.until <= now);
        if rests.is_empty() {
            return;
        }
        let looks = rests.into_iter().map(async |(root, rest)| {
            let looked = places.look_again(&root).await;
            let now = self.clock.monotonic();
            let rest = match &looked {
                Ok(()) => {
                    // As loud as what was said when it went: whoever read that waits for this.
                    tracing::warn!(storage.root = root, "a root is in reach again");
                    Rest {
                        until: now,
                        is_over: true,
                        ..rest
                    }
                }
                Err(error) => {
                    let next = rest.again(Failing::of(error), now);
                    let (error, looks_in_seconds) = (&next.failing.why, next.length.as_secs());
                    // Said once, and not at each look.
                    match *error == rest.failing.why {
                        true => tracing::debug!(
                            storage.root = root,
                            error,
                            looks_in_seconds,
                            "a root is still out of reach"
                        ),
                        false => next.warn(&root, self.roots.results == root),
                    }
                    next
                }
            };
            lock(&self.rests).insert(root, rest);
        });
        futures::future::join_all(looks).await;
        self.offer_anew().await;
    }

    async fn offer_anew(&self) {
        let id = self.opened();
        if let Err(refused) = self.reopen(id).await {
            tracing::error!(error = %refused, "the server refuses the agent's offer");
        }
    }

    /// Opens a session in the place of `old`; once, however many callers ask for it.
    async fn reopen(&self, old: SessionId) -> Result<(), Refused> {
        let _one = self.opening.lock().await;
        if self.opened() != old {
            return Ok(());
        }
        let mut pause = PAUSE_FIRST;
        loop {
            match say_hello(&self.client, self.hello()).await.map_err(trouble) {
                Ok(opened) => {
                    tracing::info!(session.id = %opened.session_id, "said hello to the server again");
                    self.note.write(opened.session_id);
                    *lock(&self.opened) = opened.session_id;
                    return Ok(());
                }
                Err(Trouble::Refused(refused)) => return Err(refused),
                Err(Trouble::Away | Trouble::Forgotten) => {
                    self.wait(pause).await;
                    pause = (pause * 2).min(PAUSE_MAX);
                }
            }
        }
    }

    /// Waits, by the agent's clock.
    pub(crate) async fn sleep(&self, time: Duration) {
        self.clock.sleep(time).await;
    }

    fn opened(&self) -> SessionId {
        *lock(&self.opened)
    }

    /// Returns what the agent says of itself now: without the roots that rest.
    fn hello(&self) -> NewSession {
        let now = self.clock.monotonic();
        offered(&self.hello, &self.roots, &lock(&self.rests), now)
    }

    /// Waits, but no longer than until somebody has reached the server.
    async fn wait(&self, pause: Duration) {
        let mut returned = self.returns.subscribe();
        // Agents that lost the same server must not come back in step.
        let jitter = rand::random_range(0.5..1.0);
        tokio::select! {
            () = self.clock.sleep(pause.mul_f64(jitter)) => {}
            _ = returned.changed() => {}
        }
    }
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session")
            .field("agent", &self.hello.name)
            .finish_non_exhaustive()
    }
}

/// Returns the abilities of every agent of this build.
pub(crate) fn abilities() -> BTreeSet<String> {
    BTreeSet::from([
        format!("protocol:{PROTOCOL}"),
        format!("os:{}", std::env::consts::OS),
        format!("arch:{}", std::env::consts::ARCH),
        "isolation:store".to_owned(),
    ])
}

/// Says hello in this protocol, and to a server that is too old for it in the one before.
pub(super) async fn say_hello(
    client: &Client,
    hello: NewSession,
) -> Result<wire::Session, ClientError> {
    // A server that does not know a field says so before it looks at the protocol.
    let is_too_old =
        |refused: &Refused| matches!(&*refused.code, "protocol-unsupported" | "body-bad");
    match client.open_session(&hello).await {
        Err(ClientError::Refused(refused)) if is_too_old(&refused) => {
            tracing::info!(server = %refused, "the server is asked in the protocol before this one");
        }
        answer => return answer,
    }
    client.open_session(&older(hello)).await
}

/// Leaves out of a hello what is no part of the protocol before.
fn older(mut hello: NewSession) -> NewSession {
    hello.protocol = PROTOCOL - 1;
    hello.is_start = false;
    hello.rests.clear();
    hello.home = None;
    if hello.offer.results_away.take().is_some() {
        // It takes no run, in words of that protocol: it runs code of no project.
        hello.offer.projects = Some(BTreeSet::new());
    }
    hello
}

/// Tells whether the two sides understand each other: this protocol, or the one before.
const fn is_spoken(protocol: u32) -> bool {
    protocol == PROTOCOL || protocol + 1 == PROTOCOL
}

/// Tells whether the same call may go well a moment later.
pub(super) fn is_away(error: &ClientError) -> bool {
    matches!(trouble(error.clone()), Trouble::Away)
}

/// Tells whether trying again gives the same answer.
pub(super) fn is_final(error: &ClientError) -> bool {
    matches!(trouble(error.clone()), Trouble::Refused(_))
}

fn trouble(error: ClientError) -> Trouble {
    match error {
        ClientError::Refused(refused) if refused.code == "session-unknown" => Trouble::Forgotten,
        // Somebody else changed the same thing first: the next try sees what they made of it.
        ClientError::Refused(refused)
            if refused.code == "raced" || refused.status == 429 || refused.status >= 500 =>
        {
            tracing::debug!(error = %refused, "the server is busy");
            Trouble::Away
        }
        // What runs here is not the fault of a token, and a token can be mended: wait for that.
        ClientError::Refused(refused) if matches!(refused.status, 401 | 403) => {
            tracing::error!(error = %refused, "the server does not accept the agent's token");
            Trouble::Away
        }
        // It may end, and what runs here may be in time still.
        ClientError::Refused(refused) if refused.code == NAME_TAKEN => {
            tracing::error!(error = %refused, "another process has taken the agent's name");
            Trouble::Away
        }
        ClientError::Refused(refused) => Trouble::Refused(refused),
        ClientError::Unreachable(error) => {
            tracing::debug!(error = %error, "the server is away");
            Trouble::Away
        }
        // What runs here goes on until somebody has brought the two versions together.
        ClientError::Unreadable(error) => {
            tracing::error!(error = %error, "the server answers otherwise than this version of waft reads");
            Trouble::Away
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::fake;

    #[test]
    fn this_protocol_and_the_one_before_are_spoken() {
        assert!(is_spoken(PROTOCOL));
        assert!(is_spoken(PROTOCOL - 1));
        assert!(!is_spoken(PROTOCOL + 1));
    }

    #[test]
    fn what_may_pass_is_tried_again_and_what_is_wrong_is_not() {
        let is_away = |status, code: &str| {
            let refused = Refused {
                status,
                code: code.to_owned(),
                message: String::new(),
                hint: None,
            };
            matches!(trouble(ClientError::Refused(refused)), Trouble::Away)
        };
        assert!(is_away(409, "raced"));
        assert!(is_away(507, "storage-full"));
        assert!(!is_away(409, "state-wrong"));
        assert!(!is_away(413, "body-too-large"));
    }

    async fn report(session: &Session) -> Result<wire::Reported, Refused> {
        let ask = |client: Client, session_id| async move {
            let reports = Vec::new();
            let batch = wire::ReportBatch {
                session_id,
                reports,
            };
            client.report(&batch).await
        };
        session.call(PAUSE_MAX, ask).await
    }

    #[tokio::test]
    async fn a_server_that_is_away_is_waited_for() {
        let (server, session) = fake::session().await;
        // More than the client by itself tries.
        server.lock().unwrap().away = 5;
        report(&session).await.unwrap();
        let server = server.lock().unwrap();
        assert_eq!((server.away, server.accepted.len()), (0, 1));
        assert_eq!(server.hellos.len(), 1);
    }

    #[tokio::test]
    async fn a_session_that_the_server_forgot_is_opened_again_once() {
        let (server, session) = fake::session().await;
        fake::forget(&server);
        let (first, second) = tokio::join!(report(&session), report(&session));
        assert!(first.is_ok() && second.is_ok());
        let server = server.lock().unwrap();
        assert_eq!(
            server.hellos.len(),
            3,
            "the first, the one in between, and one more"
        );
        assert_eq!(server.accepted[0].session_id, server.accepted[1].session_id);
    }

    #[tokio::test]
    async fn a_server_of_the_protocol_before_is_spoken_to_in_its_own_and_no_older_one() {
        let fake = fake::Shared::default();
        fake.lock().unwrap().protocol = Some(PROTOCOL - 1);
        let session = fake::session_with(&fake).await.unwrap();
        fake::forget(&fake);
        report(&session).await.unwrap();
        let said: Vec<_> = {
            let fake = fake.lock().unwrap();
            let said = fake.hellos.iter().map(|it| (it.protocol, it.is_start));
            said.collect()
        };
        let (own, older) = (PROTOCOL, PROTOCOL - 1);
        let first = [(own, true), (older, false)];
        // What `forget` adds, and the hello after it: the process goes on.
        let again = [(own, true), (own, false), (older, false)];
        assert_eq!(said, [&first[..], &again[..]].concat());

        let fake = fake::Shared::default();
        for unknown in [PROTOCOL - 2, PROTOCOL + 1] {
            fake.lock().unwrap().protocol = Some(unknown);
            let error = fake::session_with(&fake).await.err().unwrap();
            assert!(format!("{error:#}").contains("as planned"), "{error:#}");
        }
    }

    #[tokio::test]
    async fn a_root_that_rests_is_not_offered() {
        let (server, session) = fake::session().await;
        session.rest("file:///a", failing(REST)).await;
        session.rest("file:///a", failing(REST)).await;
        let server = server.lock().unwrap();
        assert_eq!(
            server.hellos.len(),
            2,
            "a root that rests already is no news"
        );
        assert_eq!(
            server.hellos[1].offer.roots,
            ["file:///b".to_owned()].into()
        );
        let [rest] = server.hellos[1].rests.as_slice() else {
            panic!("{:?}", server.hellos[1]);
        };
        assert_eq!((&*rest.root, &*rest.why), ("file:///a", "as planned"));
        assert_eq!(rest.look_seconds, 300);
    }

    fn failing(least: Duration) -> Failing {
        Failing {
            least,
            why: "as planned".to_owned(),
            hint: None,
        }
    }

    #[tokio::test]
    async fn an_agent_whose_results_rest_offers_to_take_nothing() {
        let (server, session) = fake::session().await;
        assert_eq!(server.lock().unwrap().hellos[0].offer.results_away, None);
        session.rest("file:///b", failing(REST_AWAY)).await;
        let said = server.lock().unwrap().hellos[1].clone();
        assert_eq!(said.offer.results_away.as_deref(), Some("file:///b"));
        // A server of the protocol before is told in words that it knows.
        let said = older(said);
        assert_eq!(said.offer.projects, Some(BTreeSet::new()));
        assert!(said.offer.results_away.is_none() && said.rests.is_empty());
    }

    #[test]
    fn a_rest_is_twice_as_long_after_one_of_no_avail() {
        let now = Clock::default().monotonic();
        let mut rest = Rest::begin(failing(REST_AWAY), now);
        for seconds in [10, 20, 40, 80, 160, 300, 300] {
            rest = rest.again(failing(REST_AWAY), rest.until);
            assert_eq!(rest.length.as_secs(), seconds);
        }
        // It answered a look and failed somebody at once again.
        let mut over = Rest::begin(failing(REST_AWAY), now);
        over.is_over = true;
        let again = |least, at| over.again(failing(least), at).length;
        assert_eq!(again(REST_AWAY, over.until), REST_AWAY * 2);
        assert_eq!(again(REST_AWAY, over.until + REST), REST_AWAY);
        assert_eq!(again(REST, over.until), REST);
    }
}
