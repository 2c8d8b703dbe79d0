//! The agent: claims runs from a server, executes them in sandboxes, and tells what happens.
//!
//! It only ever calls out. [`Agent::start`] says hello and sets its loops going: runs are claimed and
//! orders heard (`poller`), old results deleted (`sweeper`), leases renewed and watched (`lease`),
//! reports delivered (`report`), all
//! over one line to the server (`session`); each claimed run is executed beside them (`execute`). The
//! command line starts an agent, `waft up` does, and so may any Rust program. How a graph is walked
//! is the runner's business, what a guest may do the sandbox's.

mod arrival;
mod execute;
#[cfg(test)]
mod fake;
mod lease;
mod lock;
mod places;
mod poller;
mod ready;
mod report;
mod session;
mod settings;
mod slots;
mod spool;
mod sweeper;
mod tags;

use std::any::Any;
use std::collections::{BTreeSet, HashMap};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

use crate::client::Client;
use crate::clock::Clock;
use crate::config::{Access, Home};
use crate::model::id::FlowRunId;
use crate::model::label::Labels;
use crate::model::limit::{Limits, TaskLimits};
use crate::model::requirement::Offer;
use crate::runner::{self, Runner};
use crate::sandbox::{Powers, Sandbox};
use crate::storage::{ArtifactCache, Root, TaskCache};
use crate::wire::{Drain, NewSession, PROTOCOL};

use lease::Leases;
use lock::NameLock;
use places::Places;
use ready::Shelf;
use report::{Queue, Reports};
use session::{Roots, Session};
use slots::Slots;
use spool::Spool;
use sweeper::{Sweep, Sweeper};
use tags::Tags;

/// How long a stop at once may take to give the runs back, and any stop to say that it leaves.
const FAREWELL: Duration = Duration::from_secs(2);

/// What an agent is started with.
#[derive(Clone)]
pub struct AgentSettings {
    /// The server.
    pub client: Client,
    /// The agent's name, unique per `WAFT_HOME`; the host name where nobody chose another.
    pub name: String,
    /// The host it runs on.
    pub hostname: String,
    /// The labels it offers.
    pub labels: Labels,
    /// Whether it also offers the host name and what its roots are called.
    pub has_auto_labels: bool,
    /// The roots it fetches from.
    pub roots: Vec<Root>,
    /// The root where it keeps results.
    pub results: Root,
    /// How storages are reached.
    pub access: Access,
    /// The most bytes that an artifact may have.
    pub artifact_max: u64,
    /// The projects whose code it runs; none is every project of its token.
    pub projects: Option<BTreeSet<String>>,
    /// How many runs it takes at one time.
    pub slots: usize,
    /// How many attempts run at one time, over all runs.
    pub parallel: usize,
    /// What it allows.
    pub powers: Arc<Powers>,
    /// The highest limits it gives.
    pub ceiling: Limits,
    /// `WAFT_HOME`: the lock of its name and the cache of artifacts lie there.
    pub home: PathBuf,
    /// The most bytes of artifacts to keep. One that is larger by itself is kept until others come.
    pub artifact_cache_max: u64,
    /// The sandbox of this process.
    pub sandbox: Sandbox,
    /// The clock.
    pub clock: Clock,
    /// Whether it takes one batch of what is due, finishes it, and ends.
    pub is_once: bool,
}

/// An agent at work. Made and started by [`Agent::start`], reached through [`Running`].
pub struct Agent {
    session: Session,
    leases: Arc<Leases>,
    reports: Reports,
    slots: Slots,
    tags: Tags,
    shelf: Shelf,
    runner: Runner,
    places: Places,
    sweeper: Sweeper,
    clock: Clock,
    stop: watch::Sender<Stop>,
    is_once: bool,
    panics: AtomicU64,
}

/// An agent that was started. Dropping it ends the agent at once and without a word, as a kill does.
pub struct Running {
    agent: Arc<Agent>,
    work: JoinHandle<()>,
    name: String,
}

/// How far a stop has gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Stop {
    No,
    /// Take nothing more, finish what is at work.
    Drain,
    /// Give back what is at work.
    Now,
}

impl Agent {
    /// Starts an agent: takes its name, looks at its storages, says hello, and asks for work.
    ///
    /// A storage that is away or lets nobody in is not offered before it answers; where nothing is in
    /// reach, the agent waits, as it does for a server that is not up yet.
    ///
    /// # Errors
    ///
    /// Fails if another agent of this `WAFT_HOME` has the name, if no results can ever be kept where they
    /// are to be, or if the server refuses or is none. Once started, an agent outlasts any outage.
    pub async fn start(settings: AgentSettings) -> anyhow::Result<Running> {
        let name = settings.name.clone();
        let lock = NameLock::take(&settings.home, &name)?;
        let places = Places::new(&settings)?;
        let cache = Home::new(settings.home.clone()).artifact_cache();
        let cache = ArtifactCache::open_bounded(&cache, settings.artifact_cache_max)?;
        let (sweeper, sweep) = Sweeper::new(places.results.clone(), places.storages.clone());
        let runner = runner(&settings, &places);

        let roots = Roots {
            labels: root_labels(&settings),
            results: places.results.name().to_owned(),
            away: places.away().await,
        };

        let hello = hello(&settings, &lock);
        let clock = settings.clock.clone();
        let note = lock.note();
        let mut spool = lock.spool();
        report::deliver_left(&settings.client, &clock, &hello, &note, &mut spool).await?;
        let opening = Session::open(settings.client, clock.clone(), hello, note, roots);
        let (session, opened) = opening.await?;
        let lease = Duration::from_secs(u64::from(opened.lease_seconds));
        let (reports, queue) = Reports::new();
        let agent = Arc::new(Self {
            session,
            leases: Arc::new(Leases::new(lease, clock.clone())),
            reports,
            slots: Slots::new(settings.slots),
            tags: Tags::default(),
            shelf: Shelf::new(
                settings.sandbox,
                places.storages.clone(),
                cache,
                settings.artifact_max,
                clock.clone(),
            ),
            runner,
            places,
            sweeper,
            clock,
            stop: watch::Sender::new(Stop::No),
            is_once: settings.is_once,
            panics: AtomicU64::new(0),
        });
        let work = tokio::spawn(agent.clone().work(queue, spool, sweep, lock));
        Ok(Running { agent, work, name })
    }

    /// Works until it is stopped, and ends when everything that can be told is told.
    async fn work(self: Arc<Self>, queue: Queue, spool: Spool, sweep: Sweep, _lock: NameLock) {
        // Told reports are many, so their delivery has a thread of its own.
        let mut delivery = JoinSet::new();
        let agent = self.clone();
        delivery.spawn(async move { report::deliver(queue, &agent.session, spool).await });
        let beside = async {
            tokio::join!(
                poller::listen(&self),
                lease::renew(&self.leases, &self.session),
                lease::watch(&self.leases),
                self.session.wake_roots(&self.places),
                sweep.run(&self.session),
            );
        };
        let work = async {
            let mut runs = JoinSet::new();
            poller::take_work(&self, &mut runs).await;
            tokio::join!(self.session.leave(FAREWELL), self.finish(&mut runs));
        };
        tokio::select! {
            () = work => {}
            () = beside => {}
            panic = panic_of(&mut delivery) => {
                self.panics.fetch_add(1, Ordering::Relaxed);
                std::panic::resume_unwind(panic);
            }
        }
    }

    /// Waits for the runs at work to end; gives them back once the agent is to stop at once.
    async fn finish(&self, runs: &mut JoinSet<()>) {
        let farewell = async {
            while runs.join_next().await.is_some() {}
            self.reports.flush().await;
        };
        tokio::pin!(farewell);
        let mut stop = self.stop.subscribe();
        tokio::select! {
            () = &mut farewell => return,
            _ = stop.wait_for(|stop| *stop == Stop::Now) => {}
        }
        self.leases.abandon_all();
        // What is not told in time, the server finds out when the leases end.
        tokio::select! {
            () = farewell => {}
            () = self.clock.sleep(FAREWELL) => {}
        }
    }

    /// Stops the agent so far, unless it is to stop further already; answers whether it is not.
    fn raise(&self, to: Stop) -> bool {
        self.stop.send_if_modified(|stop| {
            let is_news = *stop < to;
            *stop = (*stop).max(to);
            is_news
        })
    }

    /// Does what the server was asked to tell it.
    fn obey(&self, drain: Drain) -> bool {
        self.raise(match drain {
            Drain::Finish => Stop::Drain,
            Drain::Now => Stop::Now,
        })
    }
}

impl Running {
    /// Returns the agent's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Lists the runs that it has now.
    #[must_use]
    pub fn flow_runs(&self) -> Vec<FlowRunId> {
        let keys = self.agent.leases.keys();
        keys.into_iter().map(|key| key.flow_run_id).collect()
    }

    /// Returns how often it panicked, its runner and sandbox included; each is a bug.
    #[must_use]
    pub fn panics(&self) -> u64 {
        self.agent.panics.load(Ordering::Relaxed) + self.agent.runner.panics()
    }

    /// Waits until it is to take no more runs, whoever wants that: [`Running::stop`], or somebody who
    /// drains it from afar. One that ends by itself is not waited for.
    pub fn stopping(&self) -> impl Future<Output = ()> + Send + use<> {
        let mut stop = self.agent.stop.subscribe();
        async move {
            // The sender is a part of the agent, which lives as long as this.
            let _ = stop.wait_for(|stop| *stop != Stop::No).await;
        }
    }

    /// Takes no more runs, finishes those at work, and ends.
    pub fn stop(&self) {
        self.agent.raise(Stop::Drain);
    }

    /// Stops the runs at work, gives them back for others to take, and ends.
    pub fn stop_now(&self) {
        self.agent.raise(Stop::Now);
    }

    /// Ends the agent at once and without a word, as a kill of its process does.
    ///
    /// For tests and benches: nothing is given back, nothing renewed any more when this returns.
    pub async fn kill(mut self) {
        self.work.abort();
        // That it was aborted is what was asked for.
        let _ = (&mut self.work).await;
    }

    /// Waits until the agent has ended.
    ///
    /// # Errors
    ///
    /// Fails if it ended by a panic.
    pub async fn wait(&mut self) -> anyhow::Result<()> {
        (&mut self.work)
            .await
            .with_context(|| format!("agent `{}` ended by a bug", self.name))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.work.abort();
    }
}

/// Waits until one of the loops panics. An agent that no longer reports or renews does harm by
/// living on, so it ends with it, and its runs go to others.
async fn panic_of(loops: &mut JoinSet<()>) -> Box<dyn Any + Send> {
    while let Some(ended) = loops.join_next().await {
        if let Err(error) = ended
            && let Ok(panic) = error.try_into_panic()
        {
            return panic;
        }
    }
    std::future::pending().await
}

/// Returns the label that each root is offered with, unless labels are wanted by hand only.
fn root_labels(settings: &AgentSettings) -> HashMap<String, String> {
    if !settings.has_auto_labels {
        return HashMap::new();
    }
    let labels = settings.roots.iter().map(|root| {
        let label = root.auto_label(&settings.hostname);
        (root.to_string(), label)
    });
    labels.collect()
}

fn runner(settings: &AgentSettings, places: &Places) -> Runner {
    Runner::new(runner::Settings {
        sandbox: settings.sandbox.clone(),
        results: places.results.clone(),
        task_cache: TaskCache::beside(&places.results),
        powers: settings.powers.clone(),
        ceiling: settings.ceiling.clone(),
        clock: settings.clock.clone(),
        parallel: settings.parallel,
    })
}

/// Returns what the agent says of itself.
fn hello(settings: &AgentSettings, lock: &NameLock) -> NewSession {
    NewSession {
        name: settings.name.clone(),
        hostname: settings.hostname.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        protocol: PROTOCOL,
        offer: offer(settings),
        slots: u32::try_from(settings.slots).unwrap_or(u32::MAX),
        replaces: None,
        is_start: false,
        rests: Vec::new(),
        home: Some(lock.home().to_owned()),
    }
}

fn offer(settings: &AgentSettings) -> Offer {
    let mut labels = settings.labels.clone();
    if settings.has_auto_labels {
        labels.insert(settings.hostname.clone());
    }
    let ceiling = &settings.ceiling;
    let roots = settings.roots.iter().map(ToString::to_string);
    let results = settings.results.name_on(&settings.hostname);
    Offer {
        projects: settings.projects.clone(),
        labels,
        grants: settings.powers.policy().clone(),
        limits: TaskLimits {
            memory_bytes: Some(ceiling.memory_bytes),
            cpu_ms: Some(ceiling.cpu_ms),
            wall_ms: Some(ceiling.wall_ms),
            output_bytes: Some(ceiling.output_bytes),
            parallel: None,
        },
        abilities: session::abilities(),
        roots: roots.chain([results]).collect(),
        results_away: None,
        resting: Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_loop_that_panics_is_seen_beside_those_that_go_on() {
        let mut loops = JoinSet::new();
        loops.spawn(std::future::pending());
        loops.spawn(async {});
        loops.spawn(async { panic!("as planned") });
        let panic = panic_of(&mut loops).await;
        assert_eq!(panic.downcast_ref(), Some(&"as planned"));
    }
}
