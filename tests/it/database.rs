//! Databases as a server finds them: one that is another's, damaged, newer, or full.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use tokio::sync::Barrier;

use waft::clock::Clock;
use waft::model::state::State;
use waft::server::db::sql::Sql;
use waft::server::db::{Db, DbError, Place};
use waft::server::{self, ServerSettings, start};

use crate::kit::postgres;
use crate::server::{LEASE, World, code, registration};

fn settings(place: &Place) -> ServerSettings {
    ServerSettings {
        listen: ([127, 0, 0, 1], 0).into(),
        db: place.clone(),
        lease: LEASE,
        hosts: Vec::new(),
        results_keep: server::RESULTS_KEEP,
        clock: Clock::default(),
    }
}

#[tokio::test]
async fn a_port_in_use_is_told_before_anything_is_touched() {
    let folder = tempfile::tempdir().unwrap();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mut second = settings(&folder.path().join("waft.db").into());
    second.listen = taken.local_addr().unwrap();
    let error = start(second).await.unwrap_err();
    let is_taken = error
        .chain()
        .filter_map(|cause| cause.downcast_ref::<std::io::Error>())
        .any(|cause| cause.kind() == std::io::ErrorKind::AddrInUse);
    assert!(is_taken, "{error:?}");
    assert!(!folder.path().join("waft.db").exists());
}

#[tokio::test]
async fn a_file_has_one_server_at_a_time() {
    let folder = tempfile::tempdir().unwrap();
    let settings = settings(&folder.path().join("waft.db").into());
    let first = start(settings.clone()).await.unwrap();
    let refused = start(settings.clone()).await.unwrap_err().to_string();
    assert!(
        refused.starts_with("another server has the database"),
        "{refused}"
    );
    first.shutdown().await;
    start(settings).await.unwrap().shutdown().await;
}

#[tokio::test]
async fn a_file_that_is_no_database_is_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("notes.txt");
    std::fs::write(&path, "dear diary").unwrap();
    let error = Db::open(&path.clone().into()).await.err().unwrap();
    assert!(matches!(error, DbError::NotADatabase { .. }), "{error}");
    assert_eq!(std::fs::read(&path).unwrap(), b"dear diary");
    let torn = folder.path().join("torn.db");
    std::fs::write(&torn, b"SQLite format 3\0 and then nonsense").unwrap();
    let error = Db::open(&torn.clone().into()).await.err().unwrap();
    assert!(
        matches!(
            error,
            DbError::NotADatabase { .. } | DbError::Unopened { .. }
        ),
        "{error}"
    );
}

#[tokio::test]
async fn a_newer_database_is_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    for place in [
        folder.path().join("waft.db").into(),
        postgres::place().await,
    ] {
        let db = Db::open(&place).await.unwrap();
        let newer = Sql {
            sqlite: "INSERT INTO _sqlx_migrations (version, description, success, checksum, \
                     execution_time) VALUES (99, 'later', TRUE, x'00', 0)",
            postgres: "INSERT INTO _sqlx_migrations (version, description, success, checksum, \
                       execution_time) VALUES (99, 'later', TRUE, '\\x00', 0)",
        };
        db.write(move |tx| Box::pin(async move { tx.run(newer, Vec::new()).await }))
            .await
            .map_err(|error: DbError| error)
            .unwrap();
        db.close().await;
        let error = Db::open(&place).await.err().unwrap();
        assert!(
            matches!(error, DbError::Newer { migration: 99, .. }),
            "{error}"
        );
    }
}

#[tokio::test]
async fn a_postgres_database_of_another_program_is_left_alone() {
    let server = postgres::shared().await;
    let url = server.database().await;
    let name = url.rsplit('/').next().unwrap();
    server.run_sql(name, "CREATE TABLE note (text TEXT)").await;
    let error = Db::open(&Place::Postgres(url.clone())).await.err().unwrap();
    assert!(matches!(error, DbError::NotADatabase { .. }), "{error}");
    let wrong = url
        .replace("waft@", "waft:secret@")
        .replace(name, "nowhere");
    let error = Db::open(&Place::Postgres(wrong)).await.err().unwrap();
    assert!(matches!(error, DbError::Unopened { .. }), "{error}");
    assert!(
        !format!("{error} {error:?}").contains("secret"),
        "{error:?}"
    );
}

#[tokio::test]
async fn who_opens_a_new_database_at_once_with_others_makes_no_second_first_token() {
    let settings = settings(&postgres::place().await);
    let opened = futures::future::join_all((0..4).map(|_| server::open(&settings))).await;
    let opened: Vec<_> = opened.into_iter().map(Result::unwrap).collect();
    let tokens = opened.iter().filter(|(_, token)| token.is_some());
    assert_eq!(tokens.count(), 1);
}

/// What a closure wrote is there whole or not at all, whatever ends it.
#[tokio::test]
async fn an_error_undoes_all_that_its_closure_wrote() {
    let folder = tempfile::tempdir().unwrap();
    for place in [
        folder.path().join("waft.db").into(),
        postgres::place().await,
    ] {
        let db = Db::open(&place).await.unwrap();
        put(&db, "kept", Ok(())).await.unwrap();
        let refused = put(&db, "refused", Err(DbError::Closed)).await;
        assert!(matches!(refused, Err(DbError::Closed)), "{refused:?}");
        let twice = put(&db, "kept", Ok(())).await;
        assert!(matches!(twice, Err(DbError::Broken(_))), "{twice:?}");
        assert_eq!(facts(&db).await, ["kept"]);
        db.close().await;
    }
}

const PUT: &str = "INSERT INTO fact (name, value) VALUES ($1, 'true')";

async fn put(db: &Db, name: &'static str, then: Result<(), DbError>) -> Result<(), DbError> {
    let then = Arc::new(Mutex::new(Some(then)));
    let written = db.write(move |tx| {
        Box::pin(async move {
            tx.run(PUT, vec![name.into()]).await?;
            then.lock().unwrap().take().unwrap()
        })
    });
    written.await
}

async fn facts(db: &Db) -> Vec<String> {
    let sql = "SELECT name FROM fact ORDER BY name";
    let rows = db.reader().await.unwrap().rows(sql, Vec::new()).await;
    let names = rows.unwrap();
    names.iter().map(|row| row.get(0).unwrap()).collect()
}

/// PostgreSQL undoes a transaction in which a statement failed, and says nothing when it is committed.
#[tokio::test]
async fn a_failed_statement_that_a_closure_hides_is_told_all_the_same() {
    let db = Db::open(&postgres::place().await).await.unwrap();
    let hidden: Result<(), DbError> = db
        .write(|tx| {
            Box::pin(async move {
                tx.run(PUT, vec!["lost".into()]).await?;
                tx.run("SELECT nonsense", Vec::new()).await.ok();
                Ok(())
            })
        })
        .await;
    assert!(matches!(hidden, Err(DbError::Undone(_))), "{hidden:?}");
    assert!(facts(&db).await.is_empty());
}

/// Two that wait for each other: the database ends one of them, and it is run again.
#[tokio::test]
async fn a_deadlock_is_nobodys_error() {
    let db = Db::open(&postgres::place().await).await.unwrap();
    for name in ["a", "b"] {
        put(&db, name, Ok(())).await.unwrap();
    }
    let met = Arc::new(Barrier::new(2));
    let runs = Arc::new(AtomicU32::new(0));
    let both = [["a", "b"], ["b", "a"]].map(|names| {
        let (met, runs) = (met.clone(), runs.clone());
        db.write(move |tx| {
            Box::pin(async move {
                let sql = "UPDATE fact SET value = value || '!' WHERE name = $1";
                tx.run(sql, vec![names[0].into()]).await?;
                if runs.fetch_add(1, Ordering::SeqCst) < 2 {
                    met.wait().await;
                }
                tx.run(sql, vec![names[1].into()]).await?;
                Ok::<_, DbError>(())
            })
        })
    });
    let [first, second] = both;
    let (first, second) = tokio::join!(first, second);
    first.unwrap();
    second.unwrap();
    assert_eq!(runs.load(Ordering::SeqCst), 3);
    let values = "SELECT name FROM fact WHERE value = 'true!!' ORDER BY name";
    let rows = db.reader().await.unwrap().rows(values, Vec::new()).await;
    assert_eq!(rows.unwrap().len(), 2, "each was written once by each");
}

/// The connection is gone before the commit, so nothing was written: the closure is run again.
#[tokio::test]
async fn a_connection_that_is_lost_before_the_commit_is_nobodys_error() {
    let db = Db::open(&postgres::place().await).await.unwrap();
    let runs = Arc::new(AtomicU32::new(0));
    let count = runs.clone();
    let written: Result<(), DbError> = db
        .write(move |tx| {
            Box::pin(async move {
                tx.run(PUT, vec!["once".into()]).await?;
                if count.fetch_add(1, Ordering::SeqCst) == 0 {
                    let sql = "SELECT pg_terminate_backend(pg_backend_pid())";
                    tx.run(sql, Vec::new()).await?;
                }
                Ok(())
            })
        })
        .await;
    written.unwrap();
    assert_eq!(runs.load(Ordering::SeqCst), 2);
    assert_eq!(facts(&db).await, ["once"]);
}

/// The disk is full in the middle: the caller is told, nothing is half-written, and when there is
/// room again the server goes on.
#[tokio::test]
async fn a_full_disk_is_told_and_survived() {
    let world = World::new().await;
    world.register("etl").await;
    let run = world.create("etl").await;
    let limit = async |sql: &'static str| {
        let limited = world
            .app
            .db
            .write(move |tx| Box::pin(async move { tx.rows(sql, Vec::new()).await.map(drop) }));
        limited.await.map_err(|error: DbError| error).unwrap();
    };
    limit("PRAGMA max_page_count = 1").await;
    let mut large = registration("large");
    large.definition.description = "x".repeat(1024 * 1024);
    let refused = world.client.register("demo", &large).await;
    assert_eq!(code(refused), "storage-full");
    assert_eq!(world.run(run.id).await.state, State::Scheduled);
    limit("PRAGMA max_page_count = 1000000").await;
    assert_eq!(code(world.client.flow("large").await), "flow-unknown");
    assert!(world.client.register("demo", &large).await.unwrap().is_new);
}
