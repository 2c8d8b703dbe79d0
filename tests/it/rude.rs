//! Rude guests: each does one misdeed, gets the end that is meant for it, and hurts nobody else.
//!
//! What a component may say about itself is checked in `refusals`; here it is what tasks do.

use std::collections::BTreeSet;

use serde_json::json;

use waft::model::run::TaskRun;
use waft::model::state::State;

use crate::kit::world::World;

/// Who fails by what, and a part of the words.
const ENDS: &[(&str, &str, &str)] = &[
    ("rude-memory", "limit.memory", "256 MiB"),
    ("rude-stack", "trap.oob", "out of bounds"),
    ("rude-handles", "limit.handles", "limit"),
    ("rude-output", "limit.output", "limit"),
    ("rude-not-json", "payload.not-json", "array"),
    (
        "panics",
        "trap.unreachable",
        "panicked at flows/panics.rs:7:5: no way out",
    ),
];

/// Makes a world with an agent, these guests, and an honest one.
async fn world_of(guests: impl IntoIterator<Item = &str>) -> World {
    let mut world = World::ticking().await;
    for guest in guests {
        world.register(guest).await;
    }
    world.register("echo").await;
    world.agent("mira").await;
    world
}

/// Returns the name under which a guest registers its flow.
fn flow_of(guest: &str) -> String {
    guest.trim_start_matches("rude-").replace('-', "_")
}

async fn first_failed(world: &World, run: waft::model::id::FlowRunId) -> TaskRun {
    let tasks = world.task_runs(run).await;
    let failed = tasks.into_iter().find(|task| task.state == State::Failed);
    failed.expect("a task failed")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_breaks_a_limit_fails_by_its_name_and_nobody_else() {
    let world = world_of(ENDS.iter().map(|(guest, ..)| *guest)).await;
    let mut wrong = Vec::new();
    for (guest, code, words) in ENDS {
        let run = world.run(&flow_of(guest), json!({})).await;
        let honest = world.run("echo", json!({})).await;
        world.ends_as(run, State::Failed).await;
        let task = first_failed(&world, run).await;
        if task.code.as_deref() != Some(*code) || !task.message.contains(words) {
            wrong.push(format!("{guest}: {:?} {}", task.code, task.message));
        }
        world.ends_as(honest, State::Success).await;
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_panics_leaves_its_last_words_in_the_log() {
    let world = world_of(["panics"]).await;
    let run = world.run("panics", json!({"message": "no way out"})).await;
    world.ends_as(run, State::Failed).await;
    let log = world.log(run).await;
    assert!(
        log.iter().any(|line| line.contains("no way out")),
        "{log:#?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_opens_too_many_files_fails_by_the_limit_and_leaves_none_open() {
    let world = world_of(["rude-files"]).await;
    for _ in 0..3 {
        let run = world.run("files", json!({})).await;
        world.ends_as(run, State::Failed).await;
        let task = first_failed(&world, run).await;
        assert_eq!(task.code.as_deref(), Some("limit.handles"), "{task:?}");
        let words = "it has more files, streams and requests open than its limit allows";
        assert_eq!(task.message, words);
    }
    let out = world.out();
    let open = std::fs::read_dir("/proc/self/fd").unwrap();
    let open = open.filter_map(|one| std::fs::read_link(one.unwrap().path()).ok());
    assert_eq!(open.filter(|file| file.starts_with(&out)).count(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_says_too_much_is_cut_short_and_told_so() {
    let world = world_of(["rude-log-flood", "rude-stdout"]).await;
    for flow in ["log_flood", "stdout"] {
        let run = world.run(flow, json!({})).await;
        world.ends_as(run, State::Success).await;
        let usage = world.task_runs(run).await[0].usage;
        assert!(usage.log_bytes <= 5 * 1024 * 1024, "{flow}: {usage:?}");
        assert!(!world.log(run).await.is_empty(), "{flow}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_shows_too_much_keeps_what_was_shown_first_and_is_told_so() {
    let world = world_of(["rude-card-flood", "rude-card-again"]).await;
    let run = world.run("card_flood", json!({})).await;
    world.ends_as(run, State::Success).await;
    let cards = world.client.cards(run).await.unwrap().items;
    let titles: BTreeSet<_> = cards.iter().map(|card| card.title.clone()).collect();
    let first = (0..64).map(|number| format!("card {number}"));
    assert_eq!(titles, first.collect());
    // A thousand and a large one.
    let said = "937 cards were dropped: the attempt reached its limit";
    assert_eq!(world.log(run).await.last().unwrap(), said);

    // One card costs as often as it is shown: 256 bytes, its title and its text.
    let run = world.run("card_again", json!({})).await;
    world.ends_as(run, State::Success).await;
    assert_eq!(world.client.cards(run).await.unwrap().items.len(), 1);
    let shown = (1 << 20) / (256 + "one".len() + "text".len());
    let said = format!(
        "{} cards were dropped: the attempt reached its limit",
        100_000 - shown
    );
    assert_eq!(*world.log(run).await.last().unwrap(), said);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_pries_finds_nothing() {
    let world = world_of(["rude-snoop"]).await;
    let run = world.run("snoop", json!({})).await;
    let ended = world.ends_as(run, State::Success).await;
    assert_eq!(world.result(&ended), json!([]));
    let denials = &world.task_runs(run).await[0].denials;
    assert!(
        denials.iter().any(|line| line.contains("127.0.0.1:80")),
        "what it asked for is kept with it: {denials:?}"
    );
}
