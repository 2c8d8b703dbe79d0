//! The server on its port, and its database file.

use super::*;
use waft::server::db::{Db, DbError};
use waft::server::start;

fn settings(folder: &tempfile::TempDir) -> ServerSettings {
    ServerSettings {
        listen: ([127, 0, 0, 1], 0).into(),
        db: folder.path().join("waft.db"),
        lease: LEASE,
        hosts: Vec::new(),
        results_keep: server::RESULTS_KEEP,
        clock: Clock::default(),
    }
}

#[tokio::test]
async fn a_server_that_goes_down_answers_whoever_waits_and_comes_back_with_everything() {
    let folder = tempfile::tempdir().unwrap();
    let server = start(settings(&folder)).await.unwrap();
    let url = format!("http://{}", server.addr);
    let token = server.first_token.clone();
    assert!(token.is_some());
    let client = Client::new(&url, token.clone()).unwrap();
    let project = NewProject {
        name: "demo".to_owned(),
        description: String::new(),
    };
    client.create_project(&project).await.unwrap();
    client.register("demo", &registration("etl")).await.unwrap();
    let new = NewSession {
        name: "mira".to_owned(),
        hostname: "host".to_owned(),
        version: "0.1.0".to_owned(),
        protocol: PROTOCOL,
        offer: offer(),
        slots: 1,
        replaces: None,
        is_start: true,
        rests: Vec::new(),
    };
    let session_id = client.open_session(&new).await.unwrap().session_id;
    let waiting = {
        let client = client.clone();
        tokio::spawn(async move {
            let poll = Poll {
                session_id,
                free_slots: 1,
                wait_seconds: 30,
            };
            client.poll(&poll).await
        })
    };
    while server.app.waiting_polls() == 0 {
        tokio::task::yield_now().await;
    }
    let begun = Clock::default().monotonic();
    server.shutdown().await;
    assert!(waiting.await.unwrap().unwrap().flow_runs.is_empty());
    let took = Clock::default().monotonic().since(begun);
    assert!(
        took < Duration::from_secs(5),
        "{took:?}: it does not wait for the poll"
    );

    let again = start(settings(&folder)).await.unwrap();
    assert_eq!(again.first_token, None);
    let client = Client::new(&format!("http://{}", again.addr), token).unwrap();
    assert_eq!(client.flow("etl").await.unwrap().version, 1);
    // The session of before is known, so an agent carries on.
    let poll = Poll {
        session_id,
        free_slots: 1,
        wait_seconds: 0,
    };
    assert!(client.poll(&poll).await.unwrap().flow_runs.is_empty());
    again.shutdown().await;
}

#[tokio::test]
async fn a_port_in_use_is_told_before_anything_is_touched() {
    let folder = tempfile::tempdir().unwrap();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mut second = settings(&folder);
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
async fn a_token_is_made_beside_a_server_that_is_up() {
    let folder = tempfile::tempdir().unwrap();
    let server = start(settings(&folder)).await.unwrap();
    let token = server::make_token(folder.path().join("waft.db"), Clock::default())
        .await
        .unwrap();
    let client = Client::new(&format!("http://{}", server.addr), Some(token)).unwrap();
    let tokens = client.list_tokens(&ListQuery::default()).await.unwrap();
    assert_eq!(tokens.items.len(), 2);
    server.shutdown().await;
}

#[tokio::test]
async fn a_database_has_one_server_at_a_time() {
    let folder = tempfile::tempdir().unwrap();
    let first = server::start(settings(&folder)).await.unwrap();
    let refused = server::start(settings(&folder))
        .await
        .unwrap_err()
        .to_string();
    assert!(
        refused.starts_with("another server has the database"),
        "{refused}"
    );
    first.shutdown().await;
    server::start(settings(&folder))
        .await
        .unwrap()
        .shutdown()
        .await;
}

#[tokio::test]
async fn a_file_that_is_no_database_is_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("notes.txt");
    std::fs::write(&path, "dear diary").unwrap();
    let error = Db::open(&path).await.err().unwrap();
    assert!(matches!(error, DbError::NotADatabase { .. }), "{error}");
    assert_eq!(std::fs::read(&path).unwrap(), b"dear diary");
    let torn = folder.path().join("torn.db");
    std::fs::write(&torn, b"SQLite format 3\0 and then nonsense").unwrap();
    let error = Db::open(&torn).await.err().unwrap();
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
    let path = folder.path().join("waft.db");
    let db = Db::open(&path).await.unwrap();
    let newer = "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time) \
                 VALUES (99, 'later', TRUE, x'00', 0)";
    db.write(move |tx| Box::pin(async move { tx.run(newer, Vec::new()).await }))
        .await
        .map_err(|error: DbError| error)
        .unwrap();
    db.close().await;
    let error = Db::open(&path).await.err().unwrap();
    assert!(
        matches!(error, DbError::Newer { migration: 99, .. }),
        "{error}"
    );
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
