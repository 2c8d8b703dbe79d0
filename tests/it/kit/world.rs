//! The world in one process: a real server on a database of its own, real sandboxes, agents as
//! values, and time that passes only when a story says so.
//!
//! Nobody sleeps here: a story waits for a run to be somewhere, and fails with the run's whole story
//! if that never happens. When a world ends, the house is checked: every history is legal and
//! without gaps, nothing is left at work, neither server nor agent panicked, and no draft of a file
//! lies around.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tempfile::TempDir;

use waft::agent::{Agent, AgentSettings, Running};
use waft::client::Client;
use waft::clock::{Clock, TestClock};
use waft::config::Access;
use waft::model::artifact::Digest;
use waft::model::label::Labels;
use waft::model::limit::{ARTIFACT_BYTES_MAX, Limits};
use waft::sandbox::{Allowed, Compiler, Powers, Sandbox, Settings};
use waft::server::db::Place;
use waft::server::duty::cleaner;
use waft::server::duty::rescuer::rescue;
use waft::server::{self, ServerSettings};
use waft::storage::{ArtifactCache, Root, Storage};
use waft::wire::{ListQuery, Location, NewProject, Registration};

use super::guests::guest;
use super::program::{lines, lines_of};
use super::witness::{Witness, patient};

/// How long a lease lasts in every world.
pub(crate) const LEASE: Duration = Duration::from_secs(30);
/// When every world with time by hand begins.
pub(crate) const START: &str = "2026-01-05T00:00:00Z";
/// The one project of a world.
pub(crate) const PROJECT: &str = "demo";
/// The host that all agents of a world run on.
pub(crate) const HOST: &str = "testhost";
/// Slots of an agent, unless a story says otherwise.
const SLOTS: usize = 4;

/// A server, its agents, and the clock that all of them read.
pub(crate) struct World {
    witness: Witness,
    clock: Clock,
    time: Option<TestClock>,
    server: Option<server::Running>,
    agents: BTreeMap<String, Running>,
    folder: TempDir,
}

impl World {
    /// Makes a world in which time passes by [`World::pass`] only.
    pub(crate) async fn new() -> Self {
        let (clock, time) = Clock::test(START.parse().unwrap());
        Self::with(clock, Some(time), None).await
    }

    /// Makes a world with the system's clock, for what waits a moment by itself.
    pub(crate) async fn ticking() -> Self {
        Self::with(Clock::default(), None, None).await
    }

    /// As [`World::ticking`], on a database that other servers may use, too.
    pub(crate) async fn ticking_on(place: Place) -> Self {
        Self::with(Clock::default(), None, Some(place)).await
    }

    async fn with(clock: Clock, time: Option<TestClock>, place: Option<Place>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("out")).unwrap();
        std::fs::create_dir(folder.path().join("home")).unwrap();
        let settings = ServerSettings {
            listen: ([127, 0, 0, 1], 0).into(),
            db: place.unwrap_or_else(|| folder.path().join("waft.db").into()),
            lease: LEASE,
            hosts: Vec::new(),
            results_keep: server::RESULTS_KEEP,
            runs_keep: server::RUNS_KEEP,
            clock: clock.clone(),
        };
        let server = server::start(settings).await.unwrap();
        let client = Client::in_process(server.router.clone(), server.first_token.clone());
        let project = NewProject {
            name: PROJECT.to_owned(),
            description: String::new(),
        };
        client.create_project(&project).await.unwrap();
        Self {
            witness: Witness { client },
            clock,
            time,
            server: Some(server),
            agents: BTreeMap::new(),
            folder,
        }
    }

    /// Lets time pass, a second at a time, so that whoever renews or wakes has the chance to.
    pub(crate) async fn pass(&self, duration: Duration) {
        let time = self.time.as_ref().expect("time passes by itself here");
        let step = Duration::from_secs(1);
        let mut left = duration;
        while !left.is_zero() {
            let now = left.min(step);
            time.pass(now);
            left -= now;
            self.settle().await;
        }
    }

    /// Lets much time pass at once. Who has a run by then loses it.
    pub(crate) async fn leap(&self, duration: Duration) {
        let time = self.time.as_ref().expect("time passes by itself here");
        time.pass(duration);
        self.settle().await;
    }

    /// Lets those who woke up do what they woke up for: two answers of the server, one after the
    /// other, stand behind whatever was asked before, and so does a turn of the one who writes. The
    /// rescuer is called by hand: its own loop may be between two looks when time stops, and would
    /// sleep on.
    async fn settle(&self) {
        for _ in 0..8 {
            tokio::task::yield_now().await;
        }
        for _ in 0..2 {
            let query = ListQuery::default();
            self.client.list_agents(&query).await.unwrap();
            if let Some(server) = &self.server {
                let turn = server
                    .app
                    .db
                    .write(|tx| Box::pin(tx.run("SELECT 1", Vec::new())));
                turn.await.unwrap();
            }
        }
        if let Some(server) = &self.server {
            rescue(&server.app).await.unwrap();
        }
    }

    /// Lets the cleaner look once.
    pub(crate) async fn cleaner(&self) {
        let server = self.server.as_ref().expect("the server is up");
        cleaner::doom(&server.app).await.unwrap();
    }

    /// Returns the `WAFT_HOME` of the agents.
    pub(crate) fn home(&self) -> PathBuf {
        self.folder.path().join("home")
    }

    /// Returns where the agents keep artifacts, if a story asks for no other place.
    pub(crate) fn root(&self) -> Root {
        Root::local(&self.folder.path().join("flows")).unwrap()
    }

    /// Returns the folder that guests see as `/out`.
    pub(crate) fn out(&self) -> PathBuf {
        self.folder.path().join("out")
    }

    /// Puts a guest into the storage, and returns what would register it.
    pub(crate) async fn registration(&self, name: &str) -> Registration {
        registration(name, &self.root()).await
    }

    /// Registers a guest.
    pub(crate) async fn register(&self, name: &str) {
        let registration = self.registration(name).await;
        self.client.register(PROJECT, &registration).await.unwrap();
    }

    /// Starts an agent that fetches from [`World::root`] and allows `/out`.
    pub(crate) async fn agent(&mut self, name: &str) {
        self.agent_with(name, |_| {}).await;
    }

    /// Starts an agent with settings of its own.
    pub(crate) async fn agent_with(&mut self, name: &str, change: impl FnOnce(&mut AgentSettings)) {
        let mut settings = self.agent_settings(name);
        change(&mut settings);
        let agent = Agent::start(settings).await.unwrap();
        self.agents.insert(name.to_owned(), agent);
    }

    /// Returns what an agent is started with.
    pub(crate) fn agent_settings(&self, name: &str) -> AgentSettings {
        let home = self.home();
        let dir = format!("{}::/out:rw", self.out().display());
        let allowed = Allowed {
            dirs: vec![dir.parse().unwrap()],
            ..Allowed::default()
        };
        AgentSettings {
            client: self.client.clone(),
            name: name.to_owned(),
            hostname: HOST.to_owned(),
            labels: Labels::default(),
            has_auto_labels: true,
            roots: vec![self.root()],
            results: Root::local(&home.join("results")).unwrap(),
            access: Access::default(),
            artifact_max: ARTIFACT_BYTES_MAX,
            projects: None,
            slots: SLOTS,
            parallel: 2,
            powers: Arc::new(Powers::new(allowed, &home).unwrap()),
            ceiling: Limits::CEILING,
            home,
            artifact_cache_max: ArtifactCache::BYTES_MAX,
            sandbox: sandbox().clone(),
            clock: self.clock.clone(),
            is_once: false,
        }
    }

    /// Ends an agent without a word, as `kill -9` does.
    pub(crate) async fn kill(&mut self, name: &str) {
        let agent = self.agents.remove(name).expect("there is such an agent");
        assert_eq!(agent.panics(), 0, "agent `{name}` panicked");
        agent.kill().await;
    }

    /// Lets an agent finish what it has, and end.
    pub(crate) async fn drain(&mut self, name: &str) {
        let mut agent = self.agents.remove(name).expect("there is such an agent");
        agent.stop();
        patient("the agent to end", agent.wait()).await.unwrap();
        assert_eq!(agent.panics(), 0, "agent `{name}` panicked");
    }

    /// Ends an agent that gives back what it has.
    pub(crate) async fn stop_now(&mut self, name: &str) {
        let mut agent = self.agents.remove(name).expect("there is such an agent");
        agent.stop_now();
        patient("the agent to end", agent.wait()).await.unwrap();
        assert_eq!(agent.panics(), 0, "agent `{name}` panicked");
    }

    /// Waits until an agent has ended by itself.
    pub(crate) async fn ends_by_itself(&mut self, name: &str) {
        let mut agent = self.agents.remove(name).expect("there is such an agent");
        patient("the agent to end", agent.wait()).await.unwrap();
        assert_eq!(agent.panics(), 0, "agent `{name}` panicked");
    }

    /// Waits until a guest has written so many lines to `/out/log`, and returns them all.
    pub(crate) async fn out_lines(&self, count: usize) -> Vec<String> {
        lines(&self.out().join("log"), count).await
    }

    /// Returns what the guests have written to `/out/log`.
    pub(crate) fn out_log(&self) -> Vec<String> {
        lines_of(&self.out().join("log"))
    }

    /// Lists what is wrong with this world now.
    async fn house_faults(&self) -> Vec<String> {
        let mut faults = self.faults().await;
        let panicked = self.agents.iter().filter(|(_, agent)| agent.panics() > 0);
        faults.extend(panicked.map(|(name, _)| format!("agent `{name}` panicked")));
        faults
    }
}

impl std::ops::Deref for World {
    type Target = Witness;

    fn deref(&self) -> &Witness {
        &self.witness
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if std::thread::panicking() {
            return;
        }
        let end = async {
            for agent in self.agents.values_mut() {
                agent.stop();
                patient("an agent to finish", agent.wait()).await.unwrap();
            }
            let mut faults = self.house_faults().await;
            self.agents.clear();
            // A client in this process holds the server open.
            self.witness.client = Client::new("http://localhost", None).unwrap();
            if let Some(server) = self.server.take() {
                server.shutdown().await;
            }
            faults.extend(drafts(self.folder.path()));
            faults.extend(server_panics());
            faults
        };
        let here = tokio::runtime::Handle::current();
        let faults = tokio::task::block_in_place(|| here.block_on(end));
        let faults = faults.join("\n");
        assert!(faults.is_empty(), "the house is not in order:\n{faults}");
    }
}

/// Says whether a server of this process has panicked; no test makes one panic on purpose.
pub(crate) fn server_panics() -> Option<String> {
    let count = server::panics::counted();
    (count > 0).then(|| format!("a server panicked, {count} times since the tests began"))
}

/// Lists files that were begun below a folder and neither kept nor taken away: fetches, compilations
/// and what is written to a storage.
fn drafts(folder: &Path) -> Vec<String> {
    let mut drafts = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if path.is_dir() {
            drafts.extend(self::drafts(&path));
        } else if name.contains(".fetch-") || name.contains(".draft") || name.contains('#') {
            drafts.push(format!("`{}` was left", path.display()));
        }
    }
    drafts
}

/// Describes a guest, puts it into a storage, and returns what would register it.
pub(crate) async fn registration(name: &str, root: &Root) -> Registration {
    let file = guest(name).unwrap();
    let bytes = std::fs::read(&file).unwrap();
    let (digest, size) = (Digest::of(&bytes), bytes.len() as u64);
    let prepared = sandbox().prepare(digest, &file).await.unwrap();
    let described = sandbox().describe(&prepared).await.unwrap();
    let storage = Storage::open(root, &Access::default()).unwrap();
    let put = storage
        .put_artifact(&file, digest, size, name)
        .await
        .unwrap();
    Registration {
        definition: described.definition,
        artifact: digest,
        artifact_size: size,
        location: Location {
            root: root.to_string(),
            key: put.key,
        },
        labels: Labels::default(),
        is_paused: false,
    }
}

/// Returns the one sandbox of all worlds, with the code it has compiled before.
pub(crate) fn sandbox() -> &'static Sandbox {
    static SANDBOX: OnceLock<Sandbox> = OnceLock::new();
    SANDBOX.get_or_init(|| {
        let code = Path::new(env!("CARGO_TARGET_TMPDIR")).join("code");
        Sandbox::new(Settings::new(Compiler::InProcess, code, 64)).unwrap()
    })
}
