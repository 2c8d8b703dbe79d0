//! How many flow runs a second the server carries from their making to their last report.

use std::time::Duration;

use waft::client::Client;
use waft::clock::Clock;
use waft::model::id::SessionId;
use waft::server;

use crate::kit::Databases;
use crate::played::{claim, new_run, prepare, session, whole_life};

/// Flow runs of one measurement.
const RUNS: u64 = 8_000;
/// Callers that make runs at one time.
const MAKERS: u64 = 16;
/// Runs that the agent takes at one time.
const SLOTS: u32 = 64;

/// Prints flow runs a second, by calls within the process and over loopback.
pub(crate) async fn measure(databases: &Databases) {
    let database = databases.make().await;
    let server = server::start(database.settings(Clock::default()))
        .await
        .unwrap();
    let token = server.first_token.clone();
    let inside = Client::in_process(server.router.clone(), token.clone());
    let outside = Client::new(&format!("http://{}", server.addr), token).unwrap();
    prepare(&inside).await;
    let session = session(&inside, "bench", SLOTS).await;
    for round in 1..=3 {
        for (how, client) in [("in process", &inside), ("over loopback", &outside)] {
            let time = drive(client, session).await.as_secs_f64();
            let rate = RUNS as f64 / time;
            println!("{databases}, round {round}, {how}: {rate:.0} flow runs/s");
        }
    }
    drop((inside, outside));
    server.shutdown().await;
}

/// Makes runs, claims them as one agent with many slots, and reports what a flow of one task does.
async fn drive(client: &Client, session: SessionId) -> Duration {
    let clock = Clock::default();
    let begun = clock.monotonic();
    let maker = |client: Client| async move {
        for _ in 0..RUNS / MAKERS {
            client.create_flow_run(&new_run()).await.unwrap();
        }
    };
    let makers: Vec<_> = (0..MAKERS)
        .map(|_| tokio::spawn(maker(client.clone())))
        .collect();
    let mut done = 0;
    while done < RUNS {
        let claimed = claim(client, session, SLOTS, 5).await;
        done += claimed.len() as u64;
        let batch = whole_life(session, &claimed);
        assert!(client.report(&batch).await.unwrap().lost.is_empty());
    }
    for maker in makers {
        maker.await.unwrap();
    }
    clock.monotonic().since(begun)
}
