//! How long the runs of an agent that dies wait until another has them.
//!
//! Real time at the lease that servers have unless told: twenty agents renew every ten seconds as real
//! ones do, each in its own rhythm, and fall silent in one moment. One with free slots waits beside them.

use std::time::Duration;

use futures::future::join_all;
use waft::client::Client;
use waft::clock::Clock;
use waft::server;
use waft::wire::Renewal;

use crate::kit::{Databases, quantile};
use crate::played::{claim, lease, new_run, prepare, session};

/// Agents that die.
const AGENTS: u64 = 20;
/// Runs that each of them has.
const RUNS: u32 = 25;
/// How often they renew.
const RENEWAL: Duration = Duration::from_secs(10);
/// How long they live: longer than the time a server gives leases after its start.
const LIFE: Duration = Duration::from_secs(35);

/// Prints the time from an agent's death to the claim of its runs by another.
pub(crate) async fn measure(databases: &Databases) {
    let database = databases.make().await;
    let server = server::start(database.settings(Clock::default()))
        .await
        .unwrap();
    let client = Client::in_process(server.router.clone(), server.first_token.clone());
    prepare(&client).await;
    let clock = Clock::default();
    let death = clock.monotonic() + LIFE;
    let lives = (0..AGENTS).map(|nth| {
        let (client, clock) = (client.clone(), clock.clone());
        async move {
            let agent = session(&client, &format!("dies-{nth}"), RUNS).await;
            tokio::time::sleep(RENEWAL * nth as u32 / AGENTS as u32).await;
            for _ in 0..RUNS {
                client.create_flow_run(&new_run()).await.unwrap();
            }
            let mut leases = Vec::new();
            while leases.len() < RUNS as usize {
                let runs = claim(&client, agent, RUNS - leases.len() as u32, 5).await;
                leases.extend(runs.iter().map(lease));
            }
            while clock.monotonic() + RENEWAL < death {
                tokio::time::sleep(RENEWAL).await;
                let renewal = Renewal {
                    session_id: agent,
                    leases: leases.clone(),
                };
                let renewed = client.renew(&renewal, RENEWAL).await.unwrap();
                assert!(renewed.lost.is_empty() && renewed.lapsed.is_empty());
            }
        }
    });
    join_all(lives).await;
    let left = death.since(clock.monotonic());
    tokio::time::sleep(left).await;
    let heir = session(&client, "heir", AGENTS as u32 * RUNS).await;
    let mut times = Vec::new();
    while times.len() < AGENTS as usize * RUNS as usize {
        for _ in claim(&client, heir, 256, 60).await {
            times.push(clock.monotonic().since(death).as_secs_f64());
        }
    }
    let (half, most) = (quantile(&mut times, 0.5), quantile(&mut times, 0.99));
    println!(
        "{databases}, {} runs of {AGENTS} agents that die, lease 30 s: p50 {half:.1} s, p99 {most:.1} s \
         from the death to the next claim",
        times.len()
    );
    server.shutdown().await;
}
