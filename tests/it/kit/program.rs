//! The real program as processes: a server, agents, and signals that end or stop them.
//!
//! One folder is the `WAFT_HOME` of all of them, so none needs to be told where the others are.

use std::fs::OpenOptions;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use jiff::SignedDuration;
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use waft::client::Client;
use waft::storage::Root;
use waft::wire::NewProject;

use super::disk::SmallDisk;
use super::postgres;
use super::preload::{Hand, keep_synced};
pub(crate) use super::wait::free_port;
use super::wait::patient;
use super::witness::Witness;
use super::world::{PROJECT, registration};

/// The program that is tested.
pub(crate) const WAFT: &str = env!("CARGO_BIN_EXE_waft");
/// How often something is looked for that gives no sign by itself.
const LOOK: Duration = Duration::from_millis(10);

/// A server, or several of one PostgreSQL, and agents of one `WAFT_HOME`, each a process.
pub(crate) struct Processes {
    witness: Witness,
    /// Where the servers listen.
    listen: Vec<SocketAddr>,
    lease: String,
    token: String,
    /// The database; a file of the home if there is none.
    db: Option<String>,
    ground: Ground,
    servers: Vec<Option<Process>>,
    folder: TempDir,
}

/// What processes stand on that can give way.
#[derive(Default)]
pub(crate) struct Ground {
    /// A PostgreSQL that is theirs alone.
    pub(crate) postgres: Option<postgres::Server>,
    /// The disk of the server's database.
    pub(crate) disk: Option<SmallDisk>,
    /// Each process has a wall clock of its own.
    pub(crate) has_clocks: bool,
    /// What is safe of the server's database is kept apart, in [`Processes::synced`].
    pub(crate) has_power: bool,
}

/// A process that does not outlive its story.
pub(crate) struct Process {
    child: Child,
    hand: Option<Hand>,
}

impl Processes {
    /// Starts a server, and makes the project of all stories.
    pub(crate) async fn start(lease: Duration) -> Self {
        Self::start_on(Ground::default(), lease, 1).await
    }

    /// Starts one server, or several of one PostgreSQL, on something that can give way.
    pub(crate) async fn start_on(ground: Ground, lease: Duration, servers: usize) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let db = match (&ground.postgres, &ground.disk) {
            (Some(own), _) => Some(own.database().await),
            (None, Some(disk)) => Some(disk.inside().join("server.db").display().to_string()),
            (None, None) => None,
        };
        if ground.has_power {
            std::fs::create_dir(folder.path().join("synced")).unwrap();
        }
        std::fs::create_dir(folder.path().join("out")).unwrap();
        std::fs::create_dir(folder.path().join("data")).unwrap();
        let listen: Vec<_> = (0..servers).map(|_| free_port()).collect();
        let mut all = Self {
            witness: Witness {
                client: Client::new(&format!("http://{}", listen[0]), None).unwrap(),
            },
            listen,
            lease: format!("{}s", lease.as_secs()),
            token: String::new(),
            db,
            ground,
            servers: (0..servers).map(|_| None).collect(),
            folder,
        };
        for nth in 0..servers {
            all.start_nth(nth).await;
        }
        let mut token = all.on_disk(["server", "token"]);
        let token = token.args(all.db_words()).output().unwrap();
        assert!(token.status.success(), "{token:?}");
        let token = String::from_utf8(token.stdout).unwrap().trim().to_owned();
        all.token.clone_from(&token);
        all.witness.client = Client::new(all.client.url(), Some(token)).unwrap();
        let project = NewProject {
            name: PROJECT.to_owned(),
            description: String::new(),
        };
        all.client.create_project(&project).await.unwrap();
        all
    }

    /// Starts the server, or starts it again on the same database and address.
    pub(crate) async fn start_server(&mut self) {
        self.start_nth(0).await;
    }

    /// Starts one of the servers.
    pub(crate) async fn start_nth(&mut self, nth: usize) {
        self.begin_nth(nth);
        let client = Client::new(&format!("http://{}", self.listen[nth]), None).unwrap();
        let up = async {
            while client.health().await.is_err() {
                tokio::time::sleep(LOOK).await;
            }
        };
        patient("the server to answer", up).await;
    }

    /// Starts one of the servers, and leaves it to its fate.
    pub(crate) fn begin_nth(&mut self, nth: usize) {
        let listen = self.listen[nth].to_string();
        let mut command = self.on_disk([
            "server",
            "start",
            "--listen",
            &listen,
            "--lease",
            &self.lease,
            "-v",
        ]);
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.server_log());
        command.args(self.db_words());
        if self.ground.has_power {
            keep_synced(&mut command, &self.synced());
        }
        self.servers[nth] = Some(self.spawn(command.stderr(log.unwrap())));
    }

    /// Asks the server to end in order, and waits until it has.
    pub(crate) async fn stop_server(&mut self) {
        let server = self.servers[0].take().expect("it was started");
        assert_eq!(server.terminate().await, Some(0));
    }

    /// Waits until a server that was left to its fate has ended by itself; returns its exit code.
    pub(crate) async fn server_ends(&mut self) -> Option<i32> {
        let server = self.servers[0].take().expect("it was started");
        server.ends().await
    }

    /// Starts a process, with a wall clock of its own where all have one.
    fn spawn(&self, command: &mut Command) -> Process {
        let hand = self.ground.has_clocks.then(|| Hand::on(command));
        let mut process = Process::spawn(command);
        process.hand = hand;
        process
    }

    /// Returns one of the servers, if it lives.
    pub(crate) fn nth(&self, nth: usize) -> Option<&Process> {
        self.servers[nth].as_ref()
    }

    /// Returns what all of this stands on.
    pub(crate) fn ground(&self) -> &Ground {
        &self.ground
    }

    /// Returns the folder of what a power cut leaves of the server's database.
    pub(crate) fn synced(&self) -> PathBuf {
        self.folder.path().join("synced")
    }

    /// Returns the file to which the server, in all its lives, writes what it says to people.
    pub(crate) fn server_log(&self) -> PathBuf {
        self.folder.path().join("server.log")
    }

    fn db_words(&self) -> Vec<String> {
        let words = self.db.iter();
        words
            .flat_map(|url| ["--db".to_owned(), url.clone()])
            .collect()
    }

    /// Kills the server with `kill -9`.
    pub(crate) fn kill_server(&mut self) {
        self.kill_nth(0);
    }

    /// Kills one of the servers.
    pub(crate) fn kill_nth(&mut self, nth: usize) {
        drop(self.servers[nth].take());
    }

    /// Starts an agent that lets guests see `/out`, and read `/data`.
    pub(crate) fn agent(&self, name: &str) -> Process {
        self.agent_with(name, &[])
    }

    /// Starts such an agent with more words.
    pub(crate) fn agent_with(&self, name: &str, words: &[&str]) -> Process {
        let out = format!("{}::/out:rw", self.out().display());
        let data = format!("{}::/data:ro", self.data().display());
        let mut command = self.waft(["agent", "start", "--name", name]);
        command.args(["--allow-dir", &out, "--allow-dir", &data]);
        self.spawn(command.args(words))
    }

    /// Starts a command of the program, and returns the file to which it writes what it says to people.
    pub(crate) fn says<'a>(
        &self,
        arguments: impl IntoIterator<Item = &'a str>,
    ) -> (Process, PathBuf) {
        let mut command = self.waft(arguments);
        let (file, path) = tempfile::NamedTempFile::new_in(self.folder.path())
            .and_then(|file| Ok(file.keep()?))
            .unwrap();
        (Process::spawn(command.stderr(file)), path)
    }

    /// Registers a guest.
    pub(crate) async fn register(&self, name: &str) {
        let root = Root::local(&self.home().join("flows")).unwrap();
        let registration = registration(name, &root).await;
        self.client.register(PROJECT, &registration).await.unwrap();
    }

    /// Returns the file that the guest `sides` writes to.
    pub(crate) fn out_log(&self) -> PathBuf {
        self.out().join("log")
    }

    /// Returns the folder that guests may write as `/out`.
    pub(crate) fn out(&self) -> PathBuf {
        self.folder.path().join("out")
    }

    /// Returns the folder that guests may read as `/data`.
    pub(crate) fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    /// Returns the folder in which everything of this world lies.
    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Returns where one of the servers listens.
    pub(crate) fn address(&self, nth: usize) -> SocketAddr {
        self.listen[nth]
    }

    /// Returns how many servers there are.
    pub(crate) fn servers(&self) -> usize {
        self.listen.len()
    }

    /// Returns the token of the first user.
    pub(crate) fn token(&self) -> &str {
        &self.token
    }

    /// Returns the `WAFT_HOME` of all.
    pub(crate) fn home(&self) -> PathBuf {
        self.folder.path().join("home")
    }

    /// Makes a command of the program with this `WAFT_HOME`.
    pub(crate) fn waft<'a>(&self, arguments: impl IntoIterator<Item = &'a str>) -> Command {
        self.with_home(Command::new(WAFT), arguments)
    }

    /// Makes such a command that sees the disk of the server's database.
    pub(crate) fn on_disk<'a>(&self, arguments: impl IntoIterator<Item = &'a str>) -> Command {
        let command = match &self.ground.disk {
            Some(disk) => disk.command(WAFT),
            None => Command::new(WAFT),
        };
        self.with_home(command, arguments)
    }

    fn with_home<'a>(
        &self,
        mut command: Command,
        arguments: impl IntoIterator<Item = &'a str>,
    ) -> Command {
        command
            .args(arguments)
            .env("WAFT_HOME", self.home())
            .env_remove("WAFT__SERVER__URL")
            .env_remove("WAFT__SERVER__TOKEN");
        command
    }
}

impl Drop for Processes {
    #[expect(clippy::print_stdout, reason = "whoever looks for the fault needs it")]
    fn drop(&mut self) {
        if std::thread::panicking() {
            let said = lines_of(&self.server_log()).join("\n");
            println!("what the server said:\n{said}");
        }
    }
}

impl std::ops::Deref for Processes {
    type Target = Witness;

    fn deref(&self) -> &Witness {
        &self.witness
    }
}

impl Process {
    /// Starts a process.
    pub(crate) fn spawn(command: &mut Command) -> Self {
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn();
        Self {
            child: child.unwrap(),
            hand: None,
        }
    }

    /// Sets its wall clock ahead of the right time, or behind it.
    pub(crate) fn set_clock(&self, ahead: SignedDuration) {
        let hand = self.hand.as_ref().expect("it has a clock of its own");
        hand.set(ahead);
    }

    /// Returns its number.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Kills it with `kill -9`.
    pub(crate) fn kill(self) {
        drop(self);
    }

    /// Stops it with SIGSTOP: it does nothing, and does not know that time passes.
    pub(crate) fn freeze(&self) {
        self.signal(Signal::STOP);
    }

    /// Lets it go on.
    pub(crate) fn thaw(&self) {
        self.signal(Signal::CONT);
    }

    /// Asks it to end once it has done what it has begun.
    pub(crate) fn drain(&self) {
        self.signal(Signal::TERM);
    }

    /// Asks it to end, and waits until it has; returns its exit code.
    pub(crate) async fn terminate(self) -> Option<i32> {
        self.drain();
        self.ends().await
    }

    /// Waits until it has ended by itself; returns its exit code.
    pub(crate) async fn ends(mut self) -> Option<i32> {
        let ended = async {
            loop {
                if let Some(status) = self.child.try_wait().unwrap() {
                    return status.code();
                }
                tokio::time::sleep(LOOK).await;
            }
        };
        patient("the process to end", ended).await
    }

    /// Tells whether it has ended by itself.
    pub(crate) fn has_ended(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Waits until there is such a file or folder.
pub(crate) async fn exists(path: &Path) {
    let made = async {
        while !path.exists() {
            tokio::time::sleep(LOOK).await;
        }
    };
    patient(&format!("`{}`", path.display()), made).await;
}

/// Returns the lines of a file; none if it is not there.
pub(crate) fn lines_of(file: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(file).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

/// Waits until a file has so many lines, and returns them all.
pub(crate) async fn lines(file: &Path, count: usize) -> Vec<String> {
    let written = async {
        loop {
            let lines = lines_of(file);
            if lines.len() >= count {
                return lines;
            }
            // A guest signals by a file and by nothing else.
            tokio::time::sleep(LOOK).await;
        }
    };
    patient(&format!("{count} lines in {}", file.display()), written).await
}

/// Waits until a file has a line with these words.
pub(crate) async fn line_with(file: &Path, words: &str) {
    let written = async {
        while !lines_of(file).iter().any(|line| line.contains(words)) {
            tokio::time::sleep(LOOK).await;
        }
    };
    patient(&format!("`{words}` in {}", file.display()), written).await;
}
