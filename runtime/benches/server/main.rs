//! How fast the server alone is, and what it needs. Prints; asserts nothing about time.
//!
//! The agents here execute nothing: they claim, renew and report. `runs` measures server and agents
//! together. Each part is measured on an SQLite file and on a PostgreSQL that keep what they
//! acknowledge; `cargo xtask bench claims`, or any other word of a part's name, measures that alone.

#![expect(clippy::print_stdout, reason = "a bench reports on the terminal")]
#![expect(clippy::unwrap_used, reason = "a bench that cannot go on stops here")]
#![expect(
    clippy::disallowed_methods,
    reason = "a bench reads how it was started, and waits"
)]

mod claims;
mod footprint;
#[path = "../kit/mod.rs"]
mod kit;
mod played;
mod schedules;
mod takeover;
mod throughput;

use kit::Databases;

#[tokio::main(worker_threads = 2)]
async fn main() {
    if std::env::args().any(|argument| argument == "--test" || argument == "--list") {
        return;
    }
    for databases in Databases::asked("server throughput").await {
        throughput::measure(&databases).await;
    }
    for databases in Databases::asked("server claims").await {
        claims::measure(&databases).await;
    }
    for databases in Databases::asked("server footprint").await {
        footprint::measure(&databases).await;
    }
    for databases in Databases::asked("server schedules").await {
        schedules::measure(&databases).await;
    }
    for databases in Databases::asked("server takeover").await {
        takeover::measure(&databases).await;
    }
}
