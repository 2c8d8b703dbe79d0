//! What the benches share: databases that keep what they acknowledge, and the servers on them.

#[path = "../../../tests/it/kit/guests.rs"]
#[expect(dead_code, reason = "shared with the tests, which use more of it")]
pub(crate) mod guests;
#[path = "../../../tests/it/kit/postgres.rs"]
#[expect(dead_code, reason = "shared with the tests, which use more of it")]
mod postgres;
#[path = "../../../tests/it/kit/wait.rs"]
mod wait;

use std::fmt;
use std::path::Path;
use std::time::Duration;

use tempfile::TempDir;
use waft::clock::Clock;
use waft::server::db::Place;
use waft::server::{self, ServerSettings};

/// Lines of a PostgreSQL that keeps what it acknowledges, as SQLite does here; else its defaults.
const DURABLE: &str = "max_connections = 200
shared_buffers = 256MB
unix_socket_directories = ''
";

/// A kind of database, of which each measurement gets an empty one.
pub(crate) enum Databases {
    /// Files.
    Sqlite,
    /// Those of one PostgreSQL of this process.
    Postgres(postgres::Server),
}

/// An empty database, and a folder beside it; both last as long as this.
pub(crate) struct Database {
    /// Where it is.
    pub(crate) place: Place,
    /// What a measurement may write to.
    #[allow(dead_code, reason = "not every bench writes")]
    pub(crate) folder: TempDir,
}

impl Databases {
    /// Returns the kinds on which a part of a bench was asked for.
    pub(crate) async fn asked(part: &str) -> Vec<Self> {
        let mut all = Vec::new();
        if is_asked(&format!("{part} sqlite")) {
            all.push(Self::Sqlite);
        }
        if is_asked(&format!("{part} postgresql")) {
            all.push(Self::Postgres(postgres::Server::start(DURABLE).await));
        }
        all
    }

    /// Makes an empty one.
    pub(crate) async fn make(&self) -> Database {
        let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let place = match self {
            Self::Sqlite => folder.path().join("waft.db").into(),
            Self::Postgres(server) => Place::Postgres(server.database().await),
        };
        Database { place, folder }
    }
}

impl fmt::Display for Databases {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Sqlite => "SQLite",
            Self::Postgres(_) => "PostgreSQL",
        })
    }
}

impl Database {
    /// Returns the settings of a server on it, with the lease that servers have unless told.
    pub(crate) fn settings(&self, clock: Clock) -> ServerSettings {
        ServerSettings {
            listen: ([127, 0, 0, 1], 0).into(),
            db: self.place.clone(),
            lease: Duration::from_secs(30),
            hosts: Vec::new(),
            results_keep: server::RESULTS_KEEP,
            runs_keep: server::RUNS_KEEP,
            clock,
        }
    }
}

/// Tells whether a part of a bench was asked for: by a word of its name, or because no word was given.
fn is_asked(part: &str) -> bool {
    let words = std::env::args()
        .skip(1)
        .filter(|word| !word.starts_with('-'));
    let words: Vec<_> = words.collect();
    words.is_empty() || words.iter().any(|word| part.contains(word.as_str()))
}

/// Returns the value that the share `quantile` of the values does not exceed; sorts them.
pub(crate) fn quantile(values: &mut [f64], quantile: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    values[((values.len() - 1) as f64 * quantile).round() as usize]
}

/// Returns the root of the repository, where the guests are named.
fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}
