//! What a run takes: bytes of the database once it is over, memory of the server while it waits.

use waft::client::Client;
use waft::clock::Clock;
use waft::server;
use waft::server::db::Place;

use crate::kit::{Database, Databases};
use crate::played::{claim, fill, new_run, prepare, session, whole_life};

/// Runs of one measurement.
const RUNS: usize = 20_000;
/// Runs that wait while the memory is looked at.
const WAITING: usize = 100_000;
/// Runs that the agent takes at one time.
const SLOTS: u32 = 256;

/// Prints bytes and memory of a run.
pub(crate) async fn measure(databases: &Databases) {
    let database = databases.make().await;
    let settings = database.settings(Clock::default());
    let (app, token) = server::open(&settings).await.unwrap();
    let client = Client::in_process(server::router(&app), token);
    prepare(&client).await;
    let like = client.create_flow_run(&new_run()).await.unwrap();
    let agent = session(&client, "bench", SLOTS).await;
    let go_through = async |count: usize| {
        fill(&app, &like, count).await;
        loop {
            let runs = claim(&client, agent, SLOTS, 0).await;
            if runs.is_empty() {
                return;
            }
            let batch = whole_life(agent, &runs);
            assert!(client.report(&batch).await.unwrap().lost.is_empty());
        }
    };
    // Caches and buffers are warm after these.
    go_through(RUNS / 4).await;
    let (size, resident) = (size(&database).await, resident());
    go_through(RUNS).await;
    let grown = self::size(&database).await - size;
    let kept = self::resident().saturating_sub(resident);
    println!(
        "{databases}, {RUNS} runs of one task that are over: {} bytes of the database a run, {} bytes of \
         the server's memory a run",
        grown / RUNS as u64,
        kept / RUNS as u64
    );
    let resident = self::resident();
    fill(&app, &like, WAITING).await;
    claim(&client, agent, 1, 0).await;
    let kept = self::resident().saturating_sub(resident);
    println!(
        "{databases}, {WAITING} runs that wait: {} bytes of the server's memory a run, {} MiB resident in \
         all",
        kept / WAITING as u64,
        self::resident() >> 20
    );
}

/// Returns the bytes of a database on the disk.
async fn size(database: &Database) -> u64 {
    match &database.place {
        Place::File(file) => {
            let wal = file.with_extension("db-wal");
            std::fs::metadata(file).unwrap().len() + std::fs::metadata(wal).map_or(0, |it| it.len())
        }
        Place::Postgres(url) => {
            use sqlx::{Connection as _, PgConnection};
            let mut connection = PgConnection::connect(url).await.unwrap();
            let size: i64 = sqlx::query_scalar("SELECT pg_database_size(current_database())")
                .fetch_one(&mut connection)
                .await
                .unwrap();
            size as u64
        }
    }
}

/// Returns the bytes of memory that this process has: server, client and the played agent.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:"));
    let kib = line.and_then(|line| line.split_whitespace().nth(1));
    kib.unwrap().parse::<u64>().unwrap() << 10
}
