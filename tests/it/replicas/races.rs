//! Transactions that meet: one has a run in hand that another wants.

use std::sync::Arc;

use tokio::sync::Notify;

use waft::server::db::{flow_run, requirement};

use super::*;

/// A run that comes back while its artifact is registered once more gets both: the root of its results,
/// and the new place.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_that_comes_back_during_a_registration_can_be_fetched_from_the_new_place() {
    let fleet = Fleet::start(1, LEASE).await;
    fleet.register("etl").await;
    let run = fleet.create(0).await;
    let app = fleet.servers[0].app.clone();
    let hold = Arc::new([Notify::new(), Notify::new()]);
    let pinned = {
        let (app, hold) = (app.clone(), hold.clone());
        tokio::spawn(async move {
            let memory = app.db.memory.clone();
            let pinned = app.db.write(move |tx| {
                Box::pin(async move {
                    let mut runs = flow_run::read(tx, [run]).await?;
                    let known = memory.requirement(tx, runs[0].requirement_id).await?;
                    let mut needed = (*known).clone();
                    needed.results_root = Some("file:///results".to_owned());
                    runs[0].requirement_id = requirement::intern(tx, &needed).await?;
                    hold[0].notify_one();
                    hold[1].notified().await;
                    flow_run::apply(tx, runs).await
                })
            });
            pinned.await
        })
    };
    hold[0].notified().await;
    let mut again = registration("etl");
    again.location.root = "s3://elsewhere".to_owned();
    let (registered, ()) = tokio::join!(fleet.clients[0].register("demo", &again), async {
        let waits = async {
            let sql = "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' \
                       AND datname = current_database()";
            let mut reader = app.db.reader().await.unwrap();
            while reader.rows(sql, Vec::new()).await.unwrap().is_empty() {}
        };
        patient("the registration to wait for the run", waits).await;
        hold[1].notify_one();
    });
    registered.unwrap();
    pinned.await.unwrap().unwrap();
    let mut reader = app.db.reader().await.unwrap();
    let run = flow_run::read(&mut reader, [run]).await.unwrap().remove(0);
    let needed = app
        .db
        .memory
        .requirement(&mut reader, run.requirement_id)
        .await;
    let needed = needed.unwrap();
    assert_eq!(needed.results_root.as_deref(), Some("file:///results"));
    let roots: Vec<_> = needed.roots.iter().collect();
    assert_eq!(roots, ["file:///flows", "s3://elsewhere"]);
}
