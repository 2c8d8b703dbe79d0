//! Databases as a server finds them: one that is another's, damaged, newer, or full.

use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use serde_json::json;
use tokio::sync::Barrier;

use waft::client::Client;
use waft::model::run::Verdict;
use waft::model::state::State;
use waft::server::db::sql::Sql;
use waft::server::db::{Db, DbError, Place, copy};
use waft::server::{self, Migrated, ServerSettings, start};
use waft::wire::{ListQuery, NewMark, NewProject};

use crate::kit::postgres;
use crate::kit::program::{WAFT, free_port};
use crate::kit::witness::new_run;
use crate::server::{World, code, registration, settings};

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
    assert!(matches!(error, DbError::Damaged { .. }), "{error}");
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
async fn what_people_decided_before_is_read_as_they_meant_it() {
    let folder = tempfile::tempdir().unwrap();
    for place in [
        folder.path().join("waft.db").into(),
        postgres::place().await,
    ] {
        let (app, token) = server::open(&settings(&place)).await.unwrap();
        let client = Client::in_process(server::router(&app), token.clone());
        let project = NewProject {
            name: "demo".to_owned(),
            description: String::new(),
        };
        client.create_project(&project).await.unwrap();
        client.register("demo", &registration("etl")).await.unwrap();
        let run = client
            .create_flow_run(&new_run("etl", json!({"name": "Ada"})))
            .await
            .unwrap()
            .id;
        let skips = NewMark {
            task_runs: vec!["fetch".parse().unwrap(), "report".parse().unwrap()],
            state: State::Skipped,
            output: None,
            reason: r#"{"is_declined":false"#.to_owned(),
        };
        client.mark(run, &skips).await.unwrap();
        for back in [
            "UPDATE task_run SET decision = replace(decision, '{\"verdict\":\"skipped\"', \
             '{\"is_declined\":' || CASE task WHEN 0 THEN 'false' ELSE 'true' END)",
            "DROP INDEX flow_run_held",
            "DROP INDEX tag_change",
            "DELETE FROM _sqlx_migrations WHERE version >= 12",
        ] {
            let undone = app.db.write(move |tx| Box::pin(tx.run(back, Vec::new())));
            undone.await.map_err(|error: DbError| error).unwrap();
        }
        drop(client);
        app.db.clone().close().await;
        server::migrate(&place).await.unwrap();
        let (app, _) = server::open(&settings(&place)).await.unwrap();
        let client = Client::in_process(server::router(&app), token);
        let known = client
            .task_runs(run, &ListQuery::default())
            .await
            .unwrap()
            .items;
        let decisions = known.into_iter().map(|it| it.decision.unwrap());
        let said: Vec<_> = decisions.map(|it| (it.verdict, it.reason)).collect();
        let reason = || skips.reason.clone();
        assert_eq!(
            said,
            [(Verdict::Approve, reason()), (Verdict::Decline, reason())]
        );
    }
}

#[tokio::test]
async fn an_older_database_is_migrated_and_told_from_where() {
    let folder = tempfile::tempdir().unwrap();
    for place in [
        folder.path().join("waft.db").into(),
        postgres::place().await,
    ] {
        let Migrated { from, to } = server::migrate(&place).await.unwrap();
        assert_eq!(from, None);
        let db = Db::open(&place).await.unwrap();
        for back in [
            "DROP INDEX flow_run_held",
            "ALTER TABLE agent DROP COLUMN home",
            "ALTER TABLE agent DROP COLUMN begun_at",
            "DROP INDEX log_line_of_run",
            "DROP INDEX task_run_unheard",
            "ALTER TABLE task_run DROP COLUMN is_heard",
            "ALTER TABLE task_run DROP COLUMN decision",
            "ALTER TABLE flow_run DROP COLUMN left_ms",
            "ALTER TABLE flow_run DROP COLUMN retry_of",
            "DROP TABLE tag_slot",
            "DROP TABLE tag",
            "ALTER TABLE flow_version DROP COLUMN by_whom",
            "DELETE FROM _sqlx_migrations WHERE version > 7",
        ] {
            let undone = db.write(move |tx| Box::pin(tx.run(back, Vec::new())));
            undone.await.map_err(|error: DbError| error).unwrap();
        }
        db.close().await;
        let again = server::migrate(&place).await.unwrap();
        assert_eq!((again.from, again.to, to), (Some(7), 14, 14));
        let (app, _) = server::open(&settings(&place)).await.unwrap();
        app.login_code().await.unwrap();
    }
}

/// A copy is what was committed when it was made, and can be put back; nothing is lost by that.
#[tokio::test]
async fn a_file_is_copied_while_it_is_written_and_put_back() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let settings = settings(&path("waft.db").into());
    let running = start(settings.clone()).await.unwrap();
    let token = running.first_token.clone();
    let client = Client::in_process(running.router.clone(), token.clone());
    let add = async |nth: u32| {
        let project = NewProject {
            name: format!("p{nth:03}"),
            description: String::new(),
        };
        client.create_project(&project).await.unwrap();
    };
    add(0).await;
    let write = async {
        for nth in 1..100 {
            add(nth).await;
        }
    };
    let ((), copied) = tokio::join!(write, async {
        let copied = copy::back_up(&path("waft.db"), &path("copy.db")).await;
        server::restore(&path("waft.db"), &path("copy.db"), &settings.clock)
            .await
            .unwrap_err();
        copied
    });
    copied.unwrap();
    copy::back_up(&path("waft.db"), &path("copy.db"))
        .await
        .unwrap_err();
    drop(client);
    running.shutdown().await;

    let projects = async |place: &Place| {
        let (app, _) = server::open(&ServerSettings {
            db: place.clone(),
            ..settings.clone()
        })
        .await
        .unwrap();
        let client = Client::in_process(server::router(&app), token.clone());
        let query = ListQuery {
            limit: Some(200),
            ..ListQuery::default()
        };
        let names = client.list_projects(&query).await.unwrap().items;
        drop(client);
        app.db.clone().close().await;
        names.len()
    };
    let done = server::restore(&path("waft.db"), &path("copy.db"), &settings.clock).await;
    let aside = done.unwrap().aside.unwrap();
    let copied = projects(&settings.db).await;
    assert!((1..=100).contains(&copied), "{copied}");
    assert_eq!(projects(&aside.into()).await, 100);

    // What is damaged or newer replaces nothing.
    let newer = Db::open(&path("newer.db").into()).await.unwrap();
    let sql = "UPDATE _sqlx_migrations SET version = 99 WHERE version = 6";
    let changed = newer.write(move |tx| Box::pin(tx.run(sql, Vec::new())));
    changed.await.map_err(|error: DbError| error).unwrap();
    newer.close().await;
    std::fs::write(path("torn.db"), b"SQLite format 3\0 and then nonsense").unwrap();
    std::fs::write(path("empty.db"), b"").unwrap();
    for name in ["newer.db", "torn.db", "empty.db"] {
        let refused = server::restore(&path("waft.db"), &path(name), &settings.clock).await;
        refused.unwrap_err();
    }
    assert_eq!(projects(&settings.db).await, copied);
    let names = std::fs::read_dir(folder.path()).unwrap();
    let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let asides = names.filter(|name| name.starts_with("waft.db.2") || name.contains("-copy-"));
    assert_eq!(
        asides.count(),
        1,
        "one was put aside, and no copy is left over"
    );
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

/// What only a person can mend is one sentence, and the hint is the line that mends it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_postgres_lacks_is_said_with_the_line_that_mends_it() {
    let server = postgres::shared().await;
    let (url, own) = (server.database().await, server.database().await);
    let name = |url: &str| url.rsplit('/').next().unwrap().to_owned();
    let home = tempfile::tempdir().unwrap();
    let call = |command: &str, url: &str| {
        let mut call = Command::new(WAFT);
        call.args(["server", command, "--db", url]);
        call.env("WAFT_HOME", home.path().join("home"));
        call.env_remove("PGPASSWORD").output().unwrap()
    };
    // Answers with the hint.
    let barred = |command: &str, url: &str, why: &str| {
        let output = call(command, url);
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains(&format!("caused by: {why}")), "{said}");
        assert!(!said.contains("error returned from database"), "{said}");
        let (_, hint) = said.split_once("\nhint: ").unwrap();
        hint.trim().to_owned()
    };
    let mends = async |sql: String| server.run_sql("postgres", &sql).await;

    let new = format!("{url}_new");
    let hint = barred(
        "token",
        &new,
        &format!("there is no database `{}_new`", name(&url)),
    );
    mends(hint).await;
    let output = call("token", &new);
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(
        said.starts_with("error: there is no database of waft at `postgres://waft@"),
        "{said}"
    );
    assert!(
        said.contains("hint: --db FILE or --db postgres://…"),
        "{said}"
    );
    assert!(call("migrate", &new).status.success());
    assert!(call("token", &new).status.success());

    let as_role = |url: &str, role: &str| url.replace("waft@", &format!("{role}@"));
    let stranger = as_role(&url, "stranger");
    let hint = barred("migrate", &stranger, "`127.0.0.1:");
    assert!(
        hint.starts_with("CREATE ROLE stranger LOGIN PASSWORD"),
        "{hint}"
    );
    mends("CREATE ROLE plain LOGIN; CREATE ROLE guarded LOGIN PASSWORD 'right'".to_owned()).await;
    let guessed = as_role(&url, "guarded:wrong");
    let hint = barred("migrate", &guessed, "`127.0.0.1:");
    assert!(
        hint.starts_with("PGPASSWORD=…, or a line `127.0.0.1:"),
        "{hint}"
    );
    let nobody = format!("127.0.0.1:{}", free_port().port());
    let away = format!("postgres://waft@{nobody}/waft");
    let hint = barred("migrate", &away, &format!("nothing answers at `{nobody}`"));
    assert!(hint.starts_with("pg_isready -h 127.0.0.1 -p "), "{hint}");

    let plain = as_role(&own, "plain");
    let lacks = "the role `plain` lacks a right: ";
    mends(barred("migrate", &plain, lacks)).await;
    assert!(call("migrate", &plain).status.success());

    // Tables that another role has made can be used by whoever may.
    assert!(call("migrate", &url).status.success());
    let plain = as_role(&url, "plain");
    let hint = barred("token", &plain, lacks);
    server.run_sql(&name(&url), &hint).await;
    assert!(call("token", &plain).status.success());
    let mut settings = settings(&Place::Postgres(plain));
    settings.listen = free_port();
    let running = start(settings).await.unwrap();
    let client = Client::in_process(running.router.clone(), running.first_token.clone());
    let project = NewProject {
        name: "demo".to_owned(),
        description: String::new(),
    };
    client.create_project(&project).await.unwrap();
    client.register("demo", &registration("etl")).await.unwrap();
    drop(client);
    running.shutdown().await;
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
