//! One PostgreSQL for all tests of this process, and a database for each that asks.
//!
//! It is started when the first test wants it and ends with the process, however that ends. As root it
//! runs as another user: PostgreSQL refuses root. What a killed process has left behind is cleared away
//! by the next.

use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

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
synchronous_commit = off
max_connections = 1000
shared_buffers = 64MB
unix_socket_directories = ''
autovacuum = off
";

/// A PostgreSQL that runs.
pub(crate) struct Server {
    address: SocketAddr,
    folder: PathBuf,
    nth: AtomicU32,
}

/// Returns the one of this process.
pub(crate) async fn shared() -> &'static Server {
    static SERVER: OnceCell<Server> = OnceCell::const_new();
    SERVER.get_or_init(|| Server::start(FAST)).await
}

impl Server {
    /// Starts one with these lines in its configuration.
    pub(crate) async fn start(settings: &str) -> Self {
        clear_away();
        let folder = std::env::temp_dir().join(format!("{PREFIX}{}", std::process::id()));
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
        let server = Self {
            address: free_port(),
            folder,
            nth: AtomicU32::new(0),
        };
        server.run().await;
        server
    }

    /// Starts the program from a thread that lives as long as the process: it dies with that.
    async fn run(&self) {
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
        std::thread::spawn(move || command.spawn().and_then(|mut child: Child| child.wait()));
        let up = async {
            while self.options("postgres").connect().await.is_err() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        patient("PostgreSQL", up).await;
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
