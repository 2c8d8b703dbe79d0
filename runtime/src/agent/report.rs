//! Reports: what happened to an agent's runs, told to the server in order and in batches.
//!
//! One queue an agent. Whatever waits when the server has answered goes out together, so a busy
//! agent sends few large requests and an idle one sends at once. The queue is bounded: a flow that
//! talks faster than the server listens waits. A report is repeated until the server accepts it or
//! says that the lease is lost; the number it carries under its claim makes a repeat harmless. While the
//! server does not answer, reports are in the [`Spool`] too, so that they outlive this process.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use jiff::Timestamp;
use tokio::sync::{mpsc, oneshot};

use super::arrival::outwait;
use super::lease::{Hold, Lease};
use super::lock::SessionNote;
use super::session::{Session, is_final, say_hello};
use super::spool::Spool;
use crate::client::{Client, Refused};
use crate::clock::Clock;
use crate::model::run::{CardContent, Happening};
use crate::wire::{NewSession, Report, ReportBatch};

/// Reports that may wait: a few batches, so that the server is never the one who waits.
const WAITING_MAX: usize = 4_096;
/// Reports of one batch; one batch is one transaction of the server.
const BATCH_REPORTS_MAX: usize = 1_000;
/// Bytes of one batch, as far as they are text that a guest wrote.
const BATCH_BYTES_MAX: usize = 512 * 1024;
/// What a report weighs beside its texts.
const REPORT_BYTES: usize = 256;
/// How long the server may take before what waits is written to disk.
const SPOOL_AFTER: Duration = Duration::from_millis(500);
/// The longest pause between two tries: what is finished should be known soon after an outage.
const PAUSE_MAX: Duration = Duration::from_secs(5);

/// Where an executor tells what happened. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Reports(mpsc::Sender<Waiting>);

/// The reports that were told and not sent.
pub(crate) struct Queue(mpsc::Receiver<Waiting>);

enum Waiting {
    Report(Box<Told>),
    /// Somebody wants to know when everything before it is settled.
    Flush(oneshot::Sender<()>),
}

struct Told {
    lease: Arc<Lease>,
    report: Report,
    is_spooled: bool,
    /// With the last report of a run: its lease is held until the server knows the end.
    _hold: Option<Hold>,
}

impl Reports {
    pub(crate) fn new() -> (Self, Queue) {
        let (sender, receiver) = mpsc::channel(WAITING_MAX);
        (Self(sender), Queue(receiver))
    }

    /// Queues a report behind all that were told before; waits while the queue is full.
    pub(crate) async fn tell(&self, lease: &Arc<Lease>, at: Timestamp, what: Happening) {
        self.queue(lease.clone(), None, at, what).await;
    }

    /// Queues the last report of a run, which keeps the run's lease until it is settled.
    pub(crate) async fn tell_end(&self, hold: Hold, at: Timestamp, what: Happening) {
        self.queue(hold.clone(), Some(hold), at, what).await;
    }

    async fn queue(&self, lease: Arc<Lease>, hold: Option<Hold>, at: Timestamp, what: Happening) {
        // The place comes first and the number second: numbers rise in the order of the queue.
        let Ok(place) = self.0.reserve().await else {
            return; // The agent is being stopped at once.
        };
        let report = Report {
            lease: lease.key(),
            number: lease.next_report(),
            at,
            what,
        };
        place.send(Waiting::Report(Box::new(Told {
            lease,
            report,
            is_spooled: false,
            _hold: hold,
        })));
    }

    /// Waits until everything told so far is accepted, or given up because its lease is lost.
    pub(crate) async fn flush(&self) {
        let (done, is_done) = oneshot::channel();
        if self.0.send(Waiting::Flush(done)).await.is_ok() {
            let _ = is_done.await;
        }
    }
}

/// Sends what is told, for as long as the agent lives; what waits while the server does not answer is in the
/// spool too.
pub(crate) async fn deliver(queue: Queue, session: &Session, spool: Spool) {
    let mut delivery = Delivery {
        queue: queue.0,
        waiting: VecDeque::new(),
        spool,
    };
    while let Some(batch) = delivery.next_batch().await {
        let settled = settle(&batch, session);
        tokio::pin!(settled);
        tokio::select! {
            biased;
            () = &mut settled => {}
            never = async {
                session.sleep(SPOOL_AFTER).await;
                delivery.outlast(&batch).await
            } => match never {},
        }
        delivery.settled();
    }
}

/// What waits to be sent, in memory and on disk.
struct Delivery {
    queue: mpsc::Receiver<Waiting>,
    waiting: VecDeque<Waiting>,
    /// What it holds is at the front of those that wait.
    spool: Spool,
}

impl Delivery {
    /// Waits for something to send, and cuts a batch off; none once nobody is left to tell anything.
    async fn next_batch(&mut self) -> Option<Vec<Told>> {
        if self.waiting.is_empty() {
            self.waiting.extend(self.queue.recv().await);
        }
        while self.waiting.len() < BATCH_REPORTS_MAX
            && let Ok(more) = self.queue.try_recv()
        {
            self.waiting.push_back(more);
        }
        match self.waiting.is_empty() {
            true => None,
            false => Some(next_batch(&mut self.waiting)),
        }
    }

    /// Writes down what waits and what is told meanwhile, until it is dropped since the server answers.
    ///
    /// The disk is waited for on this thread: nothing else is done here before the server answers.
    async fn outlast(&mut self, batch: &[Told]) -> Infallible {
        let mut fresh: Vec<_> = batch
            .iter()
            .filter(|told| !told.is_spooled)
            .map(|told| &told.report)
            .collect();
        loop {
            if self.spool.is_full() {
                return std::future::pending().await;
            }
            let waiting = self.waiting.iter().filter_map(Waiting::told);
            let unspooled = waiting
                .filter(|told| !told.is_spooled)
                .map(|told| &told.report);
            if let Err(error) = self.spool.keep(fresh.drain(..).chain(unspooled)) {
                tracing::warn!(error = %error, "the spool cannot be written: reports wait in memory only");
                return std::future::pending().await;
            }
            for told in self.waiting.iter_mut().filter_map(Waiting::told_mut) {
                told.is_spooled = true;
            }
            let mut more = Vec::new();
            if self.queue.recv_many(&mut more, BATCH_REPORTS_MAX).await == 0 {
                return std::future::pending().await;
            }
            self.waiting.extend(more);
        }
    }

    /// A batch is settled: the spool goes once nothing in it waits any more.
    fn settled(&mut self) {
        let first = self.waiting.iter().find_map(Waiting::told);
        if self.spool.is_open() && !first.is_some_and(|told| told.is_spooled) {
            self.spool.clear();
        }
    }
}

impl Waiting {
    fn told(&self) -> Option<&Told> {
        match self {
            Self::Report(told) => Some(told),
            Self::Flush(_) => None,
        }
    }

    fn told_mut(&mut self) -> Option<&mut Told> {
        match self {
            Self::Report(told) => Some(told),
            Self::Flush(_) => None,
        }
    }
}

/// Delivers what the process of this name before this one left in its spool, in a session of its own: only the
/// next one takes the runs from the dead process, so until then they are as they were. A server that is not up
/// yet is waited for.
///
/// # Errors
///
/// Fails if the server refuses the session or is none; the spool stays.
pub(crate) async fn deliver_left(
    client: &Client,
    clock: &Clock,
    hello: &NewSession,
    note: &SessionNote,
    spool: &mut Spool,
) -> anyhow::Result<()> {
    let left = spool.left()?;
    if left.is_empty() {
        return Ok(());
    }
    let greet = async || {
        let opened = outwait(client, clock, || say_hello(client, hello.clone())).await;
        anyhow::Ok(opened.context("cannot say hello to the server")?.session_id)
    };
    let mut session_id = greet().await?;
    note.write(session_id);
    tracing::info!(
        reports = left.len(),
        "delivering what the process before this one had to report"
    );
    let mut open = vec![left];
    while let Some(mut reports) = open.pop() {
        let weight: usize = reports.iter().map(|report| weight(&report.what)).sum();
        let is_small = reports.len() <= BATCH_REPORTS_MAX && weight <= BATCH_BYTES_MAX;
        if is_small || reports.len() == 1 {
            let batch = ReportBatch {
                session_id,
                reports: reports.clone(),
            };
            match outwait(client, clock, || client.report(&batch)).await {
                Ok(_) => continue,
                // It was started anew in between.
                Err(error) if error.code() == Some("session-unknown") => {
                    session_id = greet().await?;
                    note.write(session_id);
                    open.push(reports);
                    continue;
                }
                Err(error) if !is_final(&error) => {
                    return Err(error).context("cannot deliver the spool");
                }
                Err(refused) if reports.len() == 1 => {
                    let run = reports[0].lease.flow_run_id;
                    tracing::error!(run.id = %run, error = %refused, "given up: the server refuses a report of the spool");
                    continue;
                }
                Err(_) => {}
            }
        }
        let second = reports.split_off(reports.len() / 2);
        open.extend([second, reports]);
    }
    spool.clear();
    Ok(())
}

/// Cuts the next batch off: as much as fits, at least one, and nothing behind a flush.
fn next_batch(waiting: &mut VecDeque<Waiting>) -> Vec<Told> {
    let mut batch = Vec::new();
    let mut bytes = 0;
    while let Some(next) = waiting.pop_front() {
        match next {
            Waiting::Flush(done) if batch.is_empty() => {
                let _ = done.send(());
            }
            Waiting::Report(told) => {
                bytes += weight(&told.report.what);
                if !batch.is_empty() && bytes > BATCH_BYTES_MAX {
                    waiting.push_front(Waiting::Report(told));
                    break;
                }
                batch.push(*told);
            }
            flush @ Waiting::Flush(_) => {
                waiting.push_front(flush);
                break;
            }
        }
    }
    batch
}

/// Sends a batch until none of its reports is open.
///
/// A batch that the server refuses is cut in halves, so that one run's bad report costs that run
/// only, and so does a batch that is too large for what lies between here and the server.
async fn settle(batch: &[Told], session: &Session) {
    let mut open: Vec<Vec<&Told>> = vec![batch.iter().collect()];
    while let Some(mut batch) = open.pop() {
        batch.retain(|told| !told.lease.is_lost());
        match (send(&batch, session).await, batch.len()) {
            (Ok(()), _) => {}
            (Err(refused), 1) => {
                let lease = &batch[0].lease;
                tracing::error!(run.id = %lease.key().flow_run_id, error = %refused, "given up: the server refuses a report");
                lease.lose();
            }
            (Err(_), count) => {
                let second = batch.split_off(count / 2);
                open.extend([second, batch]);
            }
        }
    }
}

async fn send(batch: &[&Told], session: &Session) -> Result<(), Refused> {
    if batch.is_empty() {
        return Ok(());
    }
    let answer = session.call(PAUSE_MAX, |client, session_id| {
        let reports = batch.iter().map(|told| told.report.clone()).collect();
        async move {
            let batch = ReportBatch {
                session_id,
                reports,
            };
            client.report(&batch).await
        }
    });
    let reported = answer.await?;
    for told in batch {
        let key = told.lease.key();
        if reported.lost.contains(&key) {
            told.lease.lose();
        } else if reported.lapsed.contains(&key) {
            told.lease.lapse();
        }
    }
    Ok(())
}

/// Returns about how many bytes a report has on the wire.
fn weight(what: &Happening) -> usize {
    REPORT_BYTES
        + match what {
            Happening::Log { lines } => lines
                .iter()
                .map(|line| REPORT_BYTES / 2 + line.text.len())
                .sum(),
            Happening::Card { card } => match &card.content {
                CardContent::Markdown { text } => text.len(),
                CardContent::Table { columns, rows } => {
                    let cells = rows.iter().flatten().chain(columns);
                    cells.map(|cell| cell.len() + 3).sum()
                }
                CardContent::Link { url } => url.len(),
                CardContent::Progress { message, .. } => message.len(),
            },
            Happening::FlowRun(moved) => moved.message.len(),
            Happening::Preparing { message } => message.len(),
            Happening::TaskRun(moved) => {
                moved.message.len() + moved.denials.iter().map(String::len).sum::<usize>()
            }
        }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::fake;
    use crate::agent::lease::Leases;
    use crate::clock::Clock;
    use crate::model::id::FlowRunId;
    use crate::model::run::{Level, LogLine};
    use crate::runner::Order;
    use crate::wire::LeaseKey;

    fn held(leases: &Arc<Leases>, nth: u128) -> Hold {
        let key = LeaseKey {
            flow_run_id: FlowRunId::at(0, nth),
            epoch: 1,
        };
        leases.hold(key, Clock::default().monotonic())
    }

    fn line(text: &str) -> Happening {
        let line = LogLine {
            at: Timestamp::UNIX_EPOCH,
            level: Level::Info,
            task_run: None,
            attempt: 0,
            text: text.to_owned(),
        };
        Happening::Log { lines: vec![line] }
    }

    /// One that nothing comes into, since the server answers.
    fn spool() -> Spool {
        Spool::at("/nowhere".into())
    }

    fn drained(queue: &mut Queue) -> VecDeque<Waiting> {
        std::iter::from_fn(|| queue.0.try_recv().ok()).collect()
    }

    fn numbers(batch: &[Told]) -> Vec<u64> {
        batch.iter().map(|told| told.report.number).collect()
    }

    #[tokio::test]
    async fn a_batch_ends_where_its_bytes_or_a_flush_end() {
        let leases = Arc::new(Leases::new(PAUSE_MAX, Clock::default()));
        let hold = held(&leases, 1);
        let (reports, mut queue) = Reports::new();
        let long = "x".repeat(BATCH_BYTES_MAX);
        for text in ["a", "b", &long, "c"] {
            reports.tell(&hold, Timestamp::UNIX_EPOCH, line(text)).await;
        }
        let (done, mut is_done) = oneshot::channel();
        reports.0.send(Waiting::Flush(done)).await.ok().unwrap();
        reports.tell(&hold, Timestamp::UNIX_EPOCH, line("d")).await;

        let mut waiting = drained(&mut queue);
        assert_eq!(numbers(&next_batch(&mut waiting)), [1, 2]);
        assert_eq!(
            numbers(&next_batch(&mut waiting)),
            [3],
            "too long, and yet it goes"
        );
        assert_eq!(numbers(&next_batch(&mut waiting)), [4]);
        assert!(is_done.try_recv().is_err(), "4 is not settled yet");
        assert_eq!(numbers(&next_batch(&mut waiting)), [5]);
        assert!(is_done.try_recv().is_ok());
    }

    #[tokio::test]
    async fn a_report_that_the_server_refuses_costs_its_run_only() {
        let (server, session) = fake::session().await;
        let leases = Arc::new(Leases::new(PAUSE_MAX, Clock::default()));
        let [good, bad] = [1, 2].map(|nth| held(&leases, nth));
        server.lock().unwrap().disliked = Some(bad.key().flow_run_id);
        let (reports, queue) = Reports::new();
        for text in ["a", "b", "c"] {
            reports.tell(&good, Timestamp::UNIX_EPOCH, line(text)).await;
            reports.tell(&bad, Timestamp::UNIX_EPOCH, line(text)).await;
        }
        tokio::select! {
            () = reports.flush() => {}
            () = deliver(queue, &session, spool()) => unreachable!("somebody may tell more"),
        }
        assert!(bad.is_lost() && !good.is_lost());
        let server = server.lock().unwrap();
        let accepted = server.accepted.iter().flat_map(|batch| &batch.reports);
        let accepted: Vec<_> = accepted
            .map(|report| (report.lease, report.number))
            .collect();
        assert_eq!(accepted, [1, 2, 3].map(|number| (good.key(), number)));
    }

    #[tokio::test]
    async fn what_was_finished_is_delivered_after_the_lease_lapsed() {
        let (server, session) = fake::session().await;
        let leases = Arc::new(Leases::new(PAUSE_MAX, Clock::default()));
        let hold = held(&leases, 1);
        server.lock().unwrap().lapsed = vec![hold.key()];
        let (reports, queue) = Reports::new();
        // Too long for one batch, so the second is sent after the first was answered.
        let long = "x".repeat(BATCH_BYTES_MAX);
        for text in [&long, "b"] {
            reports.tell(&hold, Timestamp::UNIX_EPOCH, line(text)).await;
        }
        tokio::select! {
            () = reports.flush() => {}
            () = deliver(queue, &session, spool()) => unreachable!("somebody may tell more"),
        }
        assert_eq!(server.lock().unwrap().accepted.len(), 2);
        assert!(matches!(*hold.orders().borrow(), Order::Abandon));
        assert!(!hold.is_lost());
    }

    #[tokio::test]
    async fn a_lease_is_held_until_the_end_is_settled() {
        let (server, session) = fake::session().await;
        let leases = Arc::new(Leases::new(PAUSE_MAX, Clock::default()));
        let hold = held(&leases, 1);
        let key = hold.key();
        let (reports, queue) = Reports::new();
        reports
            .tell_end(hold, Timestamp::UNIX_EPOCH, line("end"))
            .await;
        assert_eq!(leases.keys(), [key]);
        tokio::select! {
            () = reports.flush() => {}
            () = deliver(queue, &session, spool()) => unreachable!("somebody may tell more"),
        }
        assert_eq!(server.lock().unwrap().accepted.len(), 1);
        assert!(leases.keys().is_empty());
    }
}
