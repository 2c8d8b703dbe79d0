//! The one test binary of the product, from outside: the library `waft` and the program `waft`.
//!
//! One file a subject. What many of them need lies in `kit`; the transcripts under `cli` are the
//! manual of the command line, and are run line by line.

#![expect(
    clippy::disallowed_methods,
    reason = "a test may read the environment that started it, and wait"
)]
#![expect(clippy::unwrap_used, reason = "a test that cannot go on stops here")]

mod caches;
mod database;
mod deploy;
mod disks;
mod embed;
mod examples;
mod fleet;
mod flows;
mod guests;
mod install;
mod kills;
mod kit;
mod lifecycle;
mod manual;
mod marks;
mod outages;
mod preview1;
mod refusals;
mod replicas;
mod retention;
mod rude;
mod server;
#[expect(
    clippy::duplicate_mod,
    reason = "the same stories, told on PostgreSQL: a world finds out by the name of its module"
)]
#[path = "server/mod.rs"]
mod server_on_postgres;
mod storages;
mod storm;
mod tags;
mod tidy;
mod waits;
