//! One PostgreSQL for all tests of this process, and a database for each that asks.
//!
//! It is started when the first test wants it and ends with the process, however that ends. As root it
//! runs as another user: PostgreSQL refuses root. What a killed process has left behind is cleared away
//! by the next. A test that lets the database itself fail has one of its own.

use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use sqlx::postgres::PgConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions as _, Connection as _, Executor as _};
use tokio::sync::OnceCell;

use waft::server::db::Place;

use super::guests::servers;
use super::wait::{free_port, patient};

/// What the folders of all test processes begin with.
const PREFIX: &str = "waft-postgres-";
/// What makes it fast: nothing in a test has to outlive the machine.
const FAST: &str = "fsync = off
full_page_writes = off
max_connections = 1000
shared_buffers = 64MB
unix_socket_directories = ''
autovacuum = off
";
/// What makes it faster still, where it does not have to outlive its own end either.
const NO_END: &str = "synchronous_commit = off
";

/// A role that is asked for its password, before the lines that trust everybody else.
const GUARDED: &str = "host all guarded 127.0.0.1/32 scram-sha-256\n";

/// A PostgreSQL that runs.
pub(crate) struct Server {
    address: SocketAddr,
    folder: PathBuf,
    nth: AtomicU32,
    life: Mutex<Option<Life>>,
}

/// Its process, and the thread that waits for the end of that.
struct Life {
    pid: Pid,
    thread: JoinHandle<()>,
}

/// Returns the one of this process.
pub(crate) async fn shared() -> &'static Server {
    static SERVER: OnceCell<Server> = OnceCell::const_new();
    let settings = format!("{FAST}{NO_END}");
    SERVER.get_or_init(|| Server::start(&settings)).await
}

/// Starts one that is the test's own, and keeps what it has committed when it is ended.
pub(crate) async fn own() -> Server {
    Server::start(FAST).await
}

impl Server {
    /// Starts one with these lines in its configuration.
    pub(crate) async fn start(settings: &str) -> Self {
        static NTH: AtomicU32 = AtomicU32::new(0);
        let nth = NTH.fetch_add(1, Ordering::Relaxed);
        let folder = std::env::temp_dir().join(format!("{PREFIX}{}", std::process::id()));
        let folder = folder.join(nth.to_string());
        clear_away();
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::set_permissions(&folder, std::fs::Permissions::from_mode(0o777)).unwrap();
        let data = folder.join("data");
        let made = as_other_user("initdb")
            .args(["--auth=trust", "--username=waft", "--encoding=UTF8"])
            .args(["--locale=C.UTF-8", "--no-sync", "--pgdata"])
            .arg(&data)
            .current_dir(&folder)
            .output()
            .unwrap();
        assert!(made.status.success(), "{made:?}");
        std::fs::write(data.join("postgresql.auto.conf"), settings).unwrap();
        let access = data.join("pg_hba.conf");
        let trusts = std::fs::read_to_string(&access).unwrap();
        std::fs::write(&access, GUARDED.to_owned() + &trusts).unwrap();
        let server = Self {
            address: free_port(),
            folder,
            nth: AtomicU32::new(0),
            life: Mutex::new(None),
        };
        server.run().await;
        server
    }

    /// Starts the program from a thread that lives as long as the process: it dies with that.
    pub(crate) async fn run(&self) {
        let mut command = as_other_user("postgres");
        let log = std::fs::File::create(self.folder.join("log")).unwrap();
        command
            .arg("-D")
            .arg(self.folder.join("data"))
            .args(["-h", "127.0.0.1", "-p", &self.address.port().to_string()])
            .current_dir(&self.folder)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        let (tell, told) = mpsc::channel();
        let thread = std::thread::spawn(move || {
            let mut child = command.spawn().unwrap();
            tell.send(Pid::from_child(&child)).unwrap();
            child.wait().unwrap();
        });
        let pid = told.recv().unwrap();
        *self.life.lock().unwrap() = Some(Life { pid, thread });
        let up = async {
            while self.options("postgres").connect().await.is_err() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        patient("PostgreSQL", up).await;
    }

    /// Ends it at once, as `pg_ctl stop -m immediate` does: what was under way is lost, and it has to recover
    /// when it is run again.
    pub(crate) fn stop(&self) {
        if let Some(life) = self.life.lock().unwrap().take() {
            kill_process(life.pid, Signal::QUIT).unwrap();
            life.thread.join().unwrap();
        }
    }

    /// Ends all connections of the product.
    pub(crate) async fn cut(&self) {
        let cut = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'waft'";
        self.run_sql("postgres", cut).await;
    }

    fn options(&self, database: &str) -> PgConnectOptions {
        self.url(database).parse().unwrap()
    }

    fn url(&self, database: &str) -> String {
        format!("postgres://waft@{}/{database}", self.address)
    }

    /// Makes a database that nobody else has.
    pub(crate) async fn database(&self) -> String {
        let name = format!("test_{}", self.nth.fetch_add(1, Ordering::Relaxed));
        self.run_sql("postgres", &format!("CREATE DATABASE {name}"))
            .await;
        self.url(&name)
    }

    /// Runs a statement in a database, behind the product's back.
    pub(crate) async fn run_sql(&self, database: &str, sql: &str) {
        let mut connection = self.options(database).connect().await.unwrap();
        connection.execute(AssertSqlSafe(sql)).await.unwrap();
        connection.close().await.unwrap();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
        std::fs::remove_dir_all(&self.folder).ok();
    }
}

/// Makes a database that nobody else has.
pub(crate) async fn place() -> Place {
    Place::Postgres(shared().await.database().await)
}

/// Begins a command of PostgreSQL that ends with the thread that starts it: as this user, or, if that is
/// root, as another one.
fn as_other_user(program: &str) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "QUIT"]);
    if rustix::process::geteuid().is_root() {
        let users = std::fs::read_to_string("/etc/passwd").unwrap();
        let has_own = users.lines().any(|line| line.starts_with("postgres:"));
        let user = if has_own { "postgres" } else { "nobody" };
        command.args(["--reuid", user, "--clear-groups"]);
    }
    // Where it is, since another user may not look into this one's cache.
    let program = servers().unwrap().join("bin").join(program);
    command.arg(program.canonicalize().unwrap());
    command
}

/// Removes the folders of processes that are gone.
fn clear_away() {
    let entries = std::fs::read_dir(std::env::temp_dir()).unwrap();
    for entry in entries.flatten() {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        let pid = name.strip_prefix(PREFIX);
        if pid.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
            std::fs::remove_dir_all(entry.path()).ok();
        }
    }
}
