//! Leases: an agent's right to its runs, counted by its own clock.
//!
//! The server counts in its time, the agent in what has passed since it asked, so neither wall clock
//! matters. A run stands in the table for as long as somebody holds its [`Hold`]: the executor, and
//! after it the report of the run's end until that is settled. What nobody holds is never renewed.
//! Losing a lease stops the run's attempts; the server's epoch check is the second lock on the same
//! door.

use std::collections::{HashMap, HashSet};
use std::convert::Infallible;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::{Notify, mpsc, watch};

use super::session::Session;
use crate::clock::{Clock, Monotonic};
use crate::model::run::{Decision, TaskRunKey};
use crate::runner::{Decisions, Order};
use crate::wire::{Decided, GivenSlots, LeaseKey, Renewal, Renewed};

/// Renewals that may fail in a row before a lease runs out, with a margin.
const RENEWALS_PER_LEASE: u32 = 3;
/// Which part of a lease an answer to a poll may take before its runs are renewed at once.
const DELAYS_PER_LEASE: u32 = 10;
/// How often a lease is looked at while it lasts: the attempts stop at most so much too early.
const LOOKS_PER_LEASE: u32 = 30;

/// The leases of one agent.
pub(crate) struct Leases {
    held: Mutex<HashMap<LeaseKey, Arc<Lease>>>,
    lasts: Mutex<Duration>,
    /// Counts the runs that were let go.
    freed: watch::Sender<u64>,
    /// Asks for a renewal at once.
    hurry: Notify,
    clock: Clock,
}

/// The right to one run, under one claim.
pub(crate) struct Lease {
    key: LeaseKey,
    orders: watch::Sender<Order>,
    standing: Mutex<Standing>,
    reports: AtomicU64,
    decisions: mpsc::UnboundedSender<(TaskRunKey, Decision)>,
    given: mpsc::UnboundedSender<(TaskRunKey, u32)>,
    heard: Mutex<Heard>,
}

/// What people have decided about a run and which slots it was given, as far as it is known here.
struct Heard {
    /// To be taken by who executes the run.
    decisions: Option<Decisions>,
    /// What was passed on: the server says it until it is told that it was heard.
    known: HashSet<(TaskRunKey, Timestamp)>,
    slots: Option<mpsc::UnboundedReceiver<(TaskRunKey, u32)>>,
    /// The attempts of which slots were passed on; said until they have begun.
    served: HashSet<(TaskRunKey, u32)>,
}

/// How good a lease is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    /// Attempts may run until this instant.
    Until(Monotonic),
    /// Was not renewed in time: attempts were stopped, what was finished before is still delivered.
    Lapsed,
    /// The run is over or somebody else's: nothing more is told about it.
    Lost,
}

/// Keeps a run in the table: while it is executed, and until the report of its end is settled.
pub(crate) struct Hold {
    lease: Arc<Lease>,
    leases: Arc<Leases>,
}

impl Leases {
    pub(crate) fn new(lasts: Duration, clock: Clock) -> Self {
        Self {
            held: Mutex::default(),
            lasts: Mutex::new(lasts),
            freed: watch::Sender::new(0),
            hurry: Notify::new(),
            clock,
        }
    }

    /// Takes up a run that was claimed at `claimed` or later: when the poll was asked, and what the
    /// server says it had waited by then.
    ///
    /// An answer that took long has eaten into the lease, so that is renewed at once; one that took
    /// longer than the lease brings a run that may be somebody else's by now, and is not begun.
    pub(crate) fn hold(self: &Arc<Self>, key: LeaseKey, claimed: Monotonic) -> Hold {
        let now = self.clock.monotonic();
        let until = self.until(claimed.min(now));
        let (sender, decisions) = mpsc::unbounded_channel();
        let (given, slots) = mpsc::unbounded_channel();
        let lease = Arc::new(Lease {
            key,
            decisions: sender,
            given,
            heard: Mutex::new(Heard {
                decisions: Some(decisions),
                known: HashSet::new(),
                slots: Some(slots),
                served: HashSet::new(),
            }),
            orders: watch::Sender::new(Order::Go),
            standing: Mutex::new(Standing::Until(until)),
            reports: AtomicU64::new(0),
        });
        if until <= now {
            lease.lapse();
        }
        lock(&self.held).insert(key, lease.clone());
        if now.since(claimed) > self.lasts() / DELAYS_PER_LEASE {
            self.hurry.notify_one();
        }
        Hold {
            lease,
            leases: self.clone(),
        }
    }

    /// Lists the runs that are held here, in the order of their ids.
    ///
    /// Those that lapsed too: what they finished is still to be delivered.
    pub(crate) fn keys(&self) -> Vec<LeaseKey> {
        let mut keys: Vec<_> = self
            .all()
            .into_iter()
            .filter(|lease| !lease.is_lost())
            .map(|lease| lease.key)
            .collect();
        keys.sort_by_key(|key| (key.flow_run_id, key.epoch));
        keys
    }

    /// Writes down an answer to a renewal that was sent at `sent`.
    ///
    /// Counted from the sending and not from the answer: the server's lease began in between.
    fn renewed(&self, sent: Monotonic, asked: &[LeaseKey], renewed: &Renewed) {
        self.set_lasts(renewed.lease_seconds);
        let until = self.until(sent);
        for lease in asked.iter().filter_map(|key| self.find(*key)) {
            if renewed.lost.contains(&lease.key) {
                lease.lose();
            } else if renewed.lapsed.contains(&lease.key) {
                lease.lapse();
            } else {
                lease.prolong(until);
            }
        }
    }

    /// Waits until the next run is let go.
    pub(crate) async fn one_freed(&self) {
        // The sender lives as long as the table.
        let _ = self.freed.subscribe().changed().await;
    }

    /// Takes over how long leases last from what the server says.
    pub(crate) fn set_lasts(&self, seconds: u32) {
        *lock(&self.lasts) = Duration::from_secs(u64::from(seconds.max(1)));
    }

    /// Tells a run to stop because somebody asked for it; says whether it did not know that yet.
    pub(crate) fn cancel(&self, key: LeaseKey) -> bool {
        self.find(key)
            .is_some_and(|lease| lease.order(Order::Cancel))
    }

    /// Stops a run that was taken from this agent; says whether it did not know that yet.
    pub(crate) fn lose(&self, key: LeaseKey) -> bool {
        let lease = self.find(key).filter(|lease| !lease.is_lost());
        lease.inspect(|lease| lease.lose()).is_some()
    }

    /// Passes on what a person has decided about a task run; says whether that is news here.
    pub(crate) fn decide(&self, decided: Decided) -> bool {
        self.find(decided.lease)
            .is_some_and(|lease| lease.decide(decided.task_run, decided.decision))
    }

    /// Passes on which task runs were given slots and have not begun, all of them; says whether that is news here.
    pub(crate) fn give(&self, given: Vec<GivenSlots>) -> bool {
        let mut own: HashMap<LeaseKey, HashSet<_>> = HashMap::new();
        for GivenSlots {
            lease,
            task_run,
            attempts,
        } in given
        {
            own.entry(lease).or_default().insert((task_run, attempts));
        }
        let mut is_news = false;
        for lease in self.all() {
            is_news |= lease.give(own.remove(&lease.key).unwrap_or_default());
        }
        is_news
    }

    /// Stops everything at once, to give it back; what was finished is still delivered.
    ///
    /// The leases stay as good as they are, so that nobody takes it for a loss.
    pub(crate) fn abandon_all(&self) {
        for lease in self.all() {
            lease.order(Order::Abandon);
        }
    }

    /// Stops what was not renewed in time, and lists it.
    fn lapse(&self, now: Monotonic) -> Vec<LeaseKey> {
        self.all()
            .into_iter()
            .filter(|lease| matches!(lease.standing(), Standing::Until(until) if until <= now))
            .map(|lease| {
                lease.lapse();
                lease.key
            })
            .collect()
    }

    fn find(&self, key: LeaseKey) -> Option<Arc<Lease>> {
        lock(&self.held).get(&key).cloned()
    }

    fn all(&self) -> Vec<Arc<Lease>> {
        lock(&self.held).values().cloned().collect()
    }

    fn lasts(&self) -> Duration {
        *lock(&self.lasts)
    }

    /// Returns until when attempts may run under a lease from `from`: a fifth before its end, so
    /// that they have stopped before somebody else starts.
    fn until(&self, from: Monotonic) -> Monotonic {
        from + self.lasts() * 4 / 5
    }
}

impl Lease {
    /// Returns the run and the epoch of its claim.
    pub(crate) const fn key(&self) -> LeaseKey {
        self.key
    }

    /// Returns the channel on which the run is told to stop.
    pub(crate) fn orders(&self) -> watch::Receiver<Order> {
        self.orders.subscribe()
    }

    /// Takes the channel on which the run is told what people decide; there is one for each claim.
    pub(crate) fn decisions(&self) -> Decisions {
        let taken = lock(&self.heard).decisions.take();
        taken.unwrap_or_else(|| mpsc::unbounded_channel().1)
    }

    /// Takes the channel on which the run is told which task runs were given slots; there is one for each
    /// claim.
    pub(crate) fn slots(&self) -> mpsc::UnboundedReceiver<(TaskRunKey, u32)> {
        let taken = lock(&self.heard).slots.take();
        taken.unwrap_or_else(|| mpsc::unbounded_channel().1)
    }

    fn give(&self, served: HashSet<(TaskRunKey, u32)>) -> bool {
        let mut heard = lock(&self.heard);
        let news: Vec<_> = served.difference(&heard.served).cloned().collect();
        // What is not said any more has begun.
        heard.served = served;
        drop(heard);
        let sent = news.into_iter().map(|one| self.given.send(one));
        sent.filter(Result::is_ok).count() > 0
    }

    fn decide(&self, task_run: TaskRunKey, decision: Decision) -> bool {
        let is_news = lock(&self.heard)
            .known
            .insert((task_run.clone(), decision.at));
        // Who executes it may have ended by now: the server tells the next.
        is_news && self.decisions.send((task_run, decision)).is_ok()
    }

    /// Tells whether the server gave the run to somebody else.
    pub(crate) fn is_lost(&self) -> bool {
        self.standing() == Standing::Lost
    }

    /// Tells whether attempts may run under it.
    pub(crate) fn is_good(&self) -> bool {
        matches!(self.standing(), Standing::Until(_))
    }

    /// Returns the number of the next report under this claim, from 1.
    pub(crate) fn next_report(&self) -> u64 {
        self.reports.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Stops the attempts and lets nothing more be told.
    pub(crate) fn lose(&self) {
        *lock(&self.standing) = Standing::Lost;
        self.order(Order::Abandon);
    }

    /// Stops the attempts; what was finished before is still told.
    pub(crate) fn lapse(&self) {
        let mut standing = lock(&self.standing);
        if *standing != Standing::Lost {
            *standing = Standing::Lapsed;
        }
        drop(standing);
        self.order(Order::Abandon);
    }

    fn prolong(&self, to: Monotonic) {
        if let Standing::Until(until) = &mut *lock(&self.standing) {
            *until = (*until).max(to);
        }
    }

    /// Gives an order unless a stronger one was given before; says whether it was news.
    fn order(&self, order: Order) -> bool {
        let rank = |order: &Order| match order {
            Order::Go => 0,
            Order::Cancel => 1,
            Order::Abandon => 2,
        };
        self.orders.send_if_modified(|given| {
            let is_news = rank(&order) > rank(given);
            if is_news {
                *given = order;
            }
            is_news
        })
    }

    fn standing(&self) -> Standing {
        *lock(&self.standing)
    }
}

impl std::ops::Deref for Hold {
    type Target = Arc<Lease>;

    fn deref(&self) -> &Self::Target {
        &self.lease
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        lock(&self.leases.held).remove(&self.lease.key);
        self.leases.freed.send_modify(|count| *count += 1);
    }
}

/// Renews all leases together, for as long as the agent lives.
pub(crate) async fn renew(leases: &Leases, session: &Session) -> Infallible {
    loop {
        let rest = leases.clock.sleep(leases.lasts() / RENEWALS_PER_LEASE);
        tokio::select! {
            () = rest => {}
            () = leases.hurry.notified() => {}
        }
        if leases.keys().is_empty() {
            continue;
        }
        // A dead connection must not cost the lease: there is time for another try.
        let within = leases.lasts() / RENEWALS_PER_LEASE / 2;
        let answer = session.call(within, |client, session_id| {
            // Gathered anew for each try: a try may come much later.
            let (sent, leases) = (leases.clock.monotonic(), leases.keys());
            let renewal = Renewal { session_id, leases };
            async move { Ok((sent, client.renew(&renewal, within).await?, renewal.leases)) }
        });
        match answer.await {
            Ok((sent, renewed, asked)) => leases.renewed(sent, &asked, &renewed),
            Err(refused) => {
                tracing::error!(error = %refused, "the server refuses to renew leases");
            }
        }
    }
}

/// Stops the attempts of runs whose lease is about to end, for as long as the agent lives.
///
/// Beside the renewals and not after them: a renewal that hangs must not keep a run going.
pub(crate) async fn watch(leases: &Leases) {
    loop {
        leases.clock.sleep(leases.lasts() / LOOKS_PER_LEASE).await;
        for key in leases.lapse(leases.clock.monotonic()) {
            tracing::warn!(run.id = %key.flow_run_id, "stopped: its lease could not be renewed in time");
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;
    use jiff::Timestamp;

    use super::*;
    use crate::agent::fake;
    use crate::model::id::FlowRunId;

    const LEASE: Duration = Duration::from_secs(30);

    fn key(nth: u128) -> LeaseKey {
        LeaseKey {
            flow_run_id: FlowRunId::at(0, nth),
            epoch: 1,
        }
    }

    fn leases() -> (Arc<Leases>, crate::clock::TestClock) {
        let (clock, test) = Clock::test(Timestamp::UNIX_EPOCH);
        (Arc::new(Leases::new(LEASE, clock)), test)
    }

    fn renewed(lost: Vec<LeaseKey>) -> Renewed {
        Renewed {
            lease_seconds: 30,
            lost,
            lapsed: Vec::new(),
        }
    }

    #[test]
    fn attempts_stop_a_fifth_before_the_lease_ends() {
        let (leases, time) = leases();
        let hold = leases.hold(key(1), leases.clock.monotonic());
        time.pass(Duration::from_secs(23));
        assert!(leases.lapse(leases.clock.monotonic()).is_empty());
        time.pass(Duration::from_secs(1));
        assert_eq!(leases.lapse(leases.clock.monotonic()), [key(1)]);
        assert!(matches!(*hold.orders().borrow(), Order::Abandon));
        assert_eq!(hold.standing(), Standing::Lapsed);
    }

    #[test]
    fn a_claim_counts_from_its_beginning_however_long_the_answer_takes() {
        let (leases, time) = leases();
        let claimed = leases.clock.monotonic();
        time.pass(Duration::from_secs(2));
        let _quick = leases.hold(key(1), claimed);
        assert!(leases.hurry.notified().now_or_never().is_none());
        time.pass(Duration::from_secs(18));
        let _slow = leases.hold(key(2), claimed);
        assert!(leases.hurry.notified().now_or_never().is_some());
        time.pass(Duration::from_secs(4));
        let mut lapsed = leases.lapse(leases.clock.monotonic());
        lapsed.sort_by_key(|key| key.flow_run_id);
        assert_eq!(lapsed, [key(1), key(2)]);
        let late = leases.hold(key(3), claimed);
        assert!(matches!(*late.orders().borrow(), Order::Abandon));
        assert_eq!(late.standing(), Standing::Lapsed);
        let early = leases.hold(key(4), leases.clock.monotonic() + LEASE);
        time.pass(Duration::from_secs(24));
        assert_eq!(leases.lapse(leases.clock.monotonic()), [key(4)]);
        drop(early);
    }

    #[test]
    fn a_renewal_counts_from_the_moment_it_was_sent() {
        let (leases, time) = leases();
        let hold = leases.hold(key(1), leases.clock.monotonic());
        time.pass(Duration::from_secs(10));
        let sent = leases.clock.monotonic();
        time.pass(Duration::from_secs(5));
        leases.renewed(sent, &[key(1)], &renewed(vec![]));
        time.pass(Duration::from_secs(18));
        assert!(leases.lapse(leases.clock.monotonic()).is_empty());
        time.pass(Duration::from_secs(1));
        assert_eq!(leases.lapse(leases.clock.monotonic()), [key(1)]);
        // What has lapsed stays stopped, whatever arrives late.
        leases.renewed(leases.clock.monotonic(), &[key(1)], &renewed(vec![]));
        assert_eq!(hold.standing(), Standing::Lapsed);
    }

    #[test]
    fn the_wall_clock_does_not_matter() {
        let (leases, time) = leases();
        let _hold = leases.hold(key(1), leases.clock.monotonic());
        time.jump(Timestamp::MAX);
        assert!(leases.lapse(leases.clock.monotonic()).is_empty());
    }

    #[test]
    fn only_what_is_held_is_renewed() {
        let (leases, _time) = leases();
        let first = leases.hold(key(1), leases.clock.monotonic());
        let second = leases.hold(key(2), leases.clock.monotonic());
        assert_eq!(leases.keys(), [key(1), key(2)]);
        drop(first);
        assert_eq!(leases.keys(), [key(2)]);
        leases.renewed(leases.clock.monotonic(), &[key(2)], &renewed(vec![key(2)]));
        assert!(second.is_lost());
        assert!(leases.keys().is_empty());
    }

    #[test]
    fn what_lapsed_at_the_server_stops_and_is_told_on() {
        let (leases, _time) = leases();
        let hold = leases.hold(key(1), leases.clock.monotonic());
        let lapsed = Renewed {
            lapsed: vec![key(1)],
            ..renewed(vec![])
        };
        leases.renewed(leases.clock.monotonic(), &[key(1)], &lapsed);
        assert_eq!(hold.standing(), Standing::Lapsed);
        assert!(matches!(*hold.orders().borrow(), Order::Abandon));
        assert_eq!(leases.keys(), [key(1)], "its reports go on");
    }

    #[test]
    fn a_weaker_order_never_follows_a_stronger_one() {
        let (leases, _time) = leases();
        let hold = leases.hold(key(1), leases.clock.monotonic());
        assert!(leases.cancel(key(1)));
        assert!(!leases.cancel(key(1)), "a repeat is no news");
        hold.lose();
        assert!(!leases.cancel(key(1)));
        assert!(matches!(*hold.orders().borrow(), Order::Abandon));
        assert!(!leases.cancel(key(2)), "not here");
    }

    #[test]
    fn slots_are_passed_on_once_and_kept_in_mind_until_their_attempt_has_begun() {
        let (leases, _time) = leases();
        let hold = leases.hold(key(1), leases.clock.monotonic());
        let mut slots = hold.slots();
        let given = |task: &str, attempts| GivenSlots {
            lease: key(1),
            task_run: task.parse().unwrap(),
            attempts,
        };
        assert!(leases.give(vec![given("a", 0), given("b", 0)]));
        assert!(!leases.give(vec![given("a", 0), given("b", 0)]));
        assert!(leases.give(vec![given("a", 1), given("b", 0)]));
        let mut passed = Vec::new();
        while let Ok((task_run, attempts)) = slots.try_recv() {
            passed.push(format!("{task_run} {attempts}"));
        }
        passed[..2].sort();
        assert_eq!(passed, ["a 0", "b 0", "a 1"]);
        assert_eq!(lock(&hold.lease.heard).served.len(), 2);
        assert!(!leases.give(Vec::new()));
        assert!(lock(&hold.lease.heard).served.is_empty());
    }

    #[tokio::test]
    async fn a_renewal_without_an_answer_is_given_up_in_time_for_another() {
        let (fake, session) = fake::session_at_a_port().await;
        fake.lock().unwrap().unanswered = 1;
        let leases = Arc::new(Leases::new(Duration::from_secs(1), Clock::default()));
        // A call waits much longer where nobody says otherwise.
        let within = Duration::from_secs(10);
        let hold = leases.hold(key(1), leases.clock.monotonic());
        let Standing::Until(before) = hold.standing() else {
            panic!("it has just begun");
        };
        let prolonged = async {
            while hold.standing() == Standing::Until(before) {
                tokio::task::yield_now().await;
            }
        };
        let renewing = renew(&leases, &session);
        tokio::select! {
            never = renewing => match never {},
            prolonged = tokio::time::timeout(within, prolonged) => prolonged.unwrap(),
        }
        let fake = fake.lock().unwrap();
        assert_eq!(fake.renewals.len(), 2);
        assert!(fake.renewals.iter().all(|one| one.leases == [key(1)]));
    }
}
