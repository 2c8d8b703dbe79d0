//! What a claim costs behind many runs that wait, and beside many that are at work.

use std::time::Duration;

use waft::client::Client;
use waft::clock::Clock;
use waft::model::label::Labels;
use waft::server;
use waft::wire::Slots;

use crate::kit::{Databases, quantile};
use crate::played::{PROJECT, claim, fill, new_run, prepare, session};

/// Claims of one measurement.
const CLAIMS: usize = 100;

/// What stands around a claim.
struct Crowd {
    /// Runs that the agent may take.
    matching: usize,
    /// Older runs that it may not.
    unmatched: usize,
    /// Runs that others are at work on, where the number of them is limited.
    at_work: usize,
}

/// Prints what a claim costs, and how often as much as in the smallest crowd.
pub(crate) async fn measure(databases: &Databases) {
    let crowd = |matching, unmatched, at_work| Crowd {
        matching,
        unmatched,
        at_work,
    };
    let crowds = [
        crowd(100, 0, 0),
        crowd(100_000, 0, 0),
        crowd(100, 100_000, 0),
        crowd(100, 0, 1),
        crowd(100, 0, 5_000),
    ];
    let mut first = None;
    for crowd in crowds {
        let time = time_of_a_claim(databases, &crowd).await;
        let ratio = time.as_secs_f64() / first.get_or_insert(time).as_secs_f64();
        let Crowd {
            matching,
            unmatched,
            at_work,
        } = crowd;
        println!(
            "{databases}, {matching} matching and {unmatched} older unmatched runs wait, {at_work} hold \
             limited slots: p50 {time:?} a claim, {ratio:.2}x"
        );
    }
}

async fn time_of_a_claim(databases: &Databases, crowd: &Crowd) -> Duration {
    let database = databases.make().await;
    let settings = database.settings(Clock::default());
    let (app, token) = server::open(&settings).await.unwrap();
    let client = Client::in_process(server::router(&app), token);
    prepare(&client).await;
    let mut other = new_run();
    other.labels = Labels::from_iter(["nowhere"]);
    let other = client.create_flow_run(&other).await.unwrap();
    let plain = client.create_flow_run(&new_run()).await.unwrap();
    fill(&app, &plain, crowd.at_work).await;
    if crowd.at_work > 0 {
        let busy = session(&client, "busy", crowd.at_work as u32).await;
        let mut left = crowd.at_work;
        while left > 0 {
            left -= claim(&client, busy, left as u32, 0).await.len();
        }
        let slots = Slots {
            slots: Some(1_000_000),
        };
        client
            .set_flow_slots(&format!("{PROJECT}/small"), &slots)
            .await
            .unwrap();
    }
    fill(&app, &other, crowd.unmatched).await;
    fill(&app, &plain, crowd.matching).await;
    let agent = session(&client, "bench", 1).await;
    let clock = Clock::default();
    let mut times = Vec::new();
    for _ in 0..CLAIMS {
        let begun = clock.monotonic();
        assert_eq!(claim(&client, agent, 1, 0).await.len(), 1);
        times.push(clock.monotonic().since(begun).as_secs_f64());
    }
    Duration::from_secs_f64(quantile(&mut times, 0.5))
}
