//! The real program as processes: a server, agents, and signals that end or stop them.
//!
//! One folder is the `WAFT_HOME` of all of them, so none needs to be told where the others are.

use std::fs::OpenOptions;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use waft::client::Client;
use waft::storage::Root;
use waft::wire::NewProject;

use super::postgres;
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
    /// The URL of the database; a file of the home if there is none.
    db: Option<String>,
    servers: Vec<Option<Process>>,
    folder: TempDir,
}

/// A process that does not outlive its story.
pub(crate) struct Process(Child);

impl Processes {
    /// Starts a server, and makes the project of all stories.
    pub(crate) async fn start(lease: Duration) -> Self {
        Self::start_with(lease, None, 1).await
    }

    /// Starts several servers of one PostgreSQL.
    pub(crate) async fn start_on_postgres(lease: Duration, servers: usize) -> Self {
        let db = postgres::shared().await.database().await;
        Self::start_with(lease, Some(db), servers).await
    }

    async fn start_with(lease: Duration, db: Option<String>, servers: usize) -> Self {
        let folder = tempfile::tempdir().unwrap();
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
            servers: (0..servers).map(|_| None).collect(),
            folder,
        };
        for nth in 0..servers {
            all.start_nth(nth).await;
        }
        let mut token = all.waft(["server", "token"]);
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
        let listen = self.listen[nth].to_string();
        let mut command = self.waft([
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
        self.servers[nth] = Some(Process::spawn(command.stderr(log.unwrap())));
        let client = Client::new(&format!("http://{listen}"), None).unwrap();
        let up = async {
            while client.health().await.is_err() {
                tokio::time::sleep(LOOK).await;
            }
        };
        patient("the server to answer", up).await;
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
        Process::spawn(command.args(words))
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
        let mut command = Command::new(WAFT);
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
        Self(child.unwrap())
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
                if let Some(status) = self.0.try_wait().unwrap() {
                    return status.code();
                }
                tokio::time::sleep(LOOK).await;
            }
        };
        patient("the process to end", ended).await
    }

    /// Tells whether it has ended by itself.
    pub(crate) fn has_ended(&mut self) -> bool {
        self.0.try_wait().unwrap().is_some()
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.0), signal).unwrap();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
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
