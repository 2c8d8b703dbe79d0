//! What ten thousand active schedules cost: when they are registered, when all are due at once, and
//! when none is.

use std::time::Duration;

use serde_json::json;
use waft::client::Client;
use waft::clock::Clock;
use waft::server::duty::scheduler::schedule_all;
use waft::server::{self};

use crate::kit::{Databases, quantile};
use crate::played::{claim, new_run, prepare, registration, session};

/// Flows with a schedule.
const SCHEDULES: usize = 10_000;
/// Claims of one measurement.
const CLAIMS: usize = 100;

/// Prints what schedules cost.
pub(crate) async fn measure(databases: &Databases) {
    let database = databases.make().await;
    let (clock, time) = Clock::test("2026-03-01T00:00:30Z".parse().unwrap());
    let (app, token) = server::open(&database.settings(clock)).await.unwrap();
    let client = Client::in_process(server::router(&app), token);
    prepare(&client).await;
    let agent = session(&client, "bench", 1).await;
    let watch = Clock::default();
    let claims = async || {
        let mut times = Vec::new();
        for _ in 0..CLAIMS {
            client.create_flow_run(&new_run()).await.unwrap();
            let begun = watch.monotonic();
            assert_eq!(claim(&client, agent, 1, 0).await.len(), 1);
            times.push(watch.monotonic().since(begun).as_secs_f64());
        }
        quantile(&mut times, 0.5)
    };
    let alone = claims().await;
    let begun = watch.monotonic();
    for nth in 0..SCHEDULES {
        let mut asked = registration(&format!("hourly-{nth}"));
        asked.definition.schedule = serde_json::from_value(json!({"clocks": [{
            "name": "main",
            "rule": {"cron": {"line": "0 * * * *", "time_zone": "Europe/Berlin"}},
        }]}))
        .unwrap();
        client.register("demo", &asked).await.unwrap();
    }
    let each = watch.monotonic().since(begun) / SCHEDULES as u32;
    println!("{databases}, {SCHEDULES} flows with an hourly schedule: {each:?} a registration");
    let round = async |what: &str| {
        let begun = watch.monotonic();
        schedule_all(&app).await.unwrap();
        println!(
            "{databases}, a round of the scheduler, {what}: {:?}",
            watch.monotonic().since(begun)
        );
    };
    round("the first: ten runs ahead of each").await;
    round("nothing due").await;
    let ratio = claims().await / alone;
    println!(
        "{databases}, a claim beside {SCHEDULES} schedules with ten runs ahead each: {ratio:.2}x"
    );
    time.pass(Duration::from_secs(3_600));
    round("all due in one instant").await;
}
