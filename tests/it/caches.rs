//! Stories about what an agent keeps so as not to fetch and compile it again, and what happens when
//! that is too small, is taken away or is damaged.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use serde_json::json;

use waft::model::artifact::Digest;
use waft::model::state::State;
use waft::sandbox::{Compiler, Sandbox, Settings};

use crate::kit::witness::patient;
use crate::kit::world::World;

/// Starts an agent that keeps so many bytes of each kind in a home that all agents of the world share.
async fn agent(world: &mut World, name: &str, bytes_max: u64) {
    let mut settings = Settings::new(Compiler::InProcess, cache(world, "code"), 4);
    settings.code_bytes_max = bytes_max;
    let sandbox = Sandbox::new(settings).unwrap();
    let change = |settings: &mut waft::agent::AgentSettings| {
        settings.artifact_cache_max = bytes_max;
        settings.sandbox = sandbox;
    };
    world.agent_with(name, change).await;
}

fn cache(world: &World, kind: &str) -> PathBuf {
    world.home().join("cache").join(kind)
}

/// Lists what a cache holds, by the digests of the artifacts.
fn kept(folder: &Path) -> Vec<Digest> {
    let names = std::fs::read_dir(folder).unwrap();
    let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let names = names.filter(|name| !name.ends_with(".sha256"));
    names
        .map(|name| format!("sha256:{}", &name[..64]).parse().unwrap())
        .collect()
}

async fn echoes(world: &World, name: &str, text: &str) {
    let run = world.run(name, json!({"text": text})).await;
    world.ends_as(run, State::Success).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_went_out_of_a_cache_is_fetched_and_compiled_again() {
    let mut world = World::new().await;
    let echo = world.registration("echo").await.artifact;
    let hello = world.registration("hello").await.artifact;
    world.register("echo").await;
    world.register("hello").await;
    let folders = ["artifacts", "code"].map(|kind| cache(&world, kind));
    agent(&mut world, "mira", 1).await;

    echoes(&world, "echo", "one").await;
    assert_eq!(folders.each_ref().map(|it| kept(it)), [[echo], [echo]]);
    let run = world.run("hello", json!({})).await;
    world.ends_as(run, State::Success).await;
    assert_eq!(folders.each_ref().map(|it| kept(it)), [[hello], [hello]]);
    // What it has ready needs no file; the next one begins with what is left.
    echoes(&world, "echo", "two").await;
    world.drain("mira").await;
    agent(&mut world, "nas", 1).await;
    echoes(&world, "echo", "three").await;

    assert_eq!(folders.each_ref().map(|it| kept(it)), [[echo], [echo]]);
}

/// Somebody takes every artifact away as soon as it is fetched, three times over.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_artifact_that_goes_before_it_is_compiled_is_fetched_again() {
    let mut world = World::new().await;
    let artifact = world.registration("echo").await.artifact;
    world.register("echo").await;
    let file = cache(&world, "artifacts").join(artifact.to_hex());
    std::thread::spawn(move || {
        let until = Instant::now() + Duration::from_secs(10);
        let mut stolen = 0;
        while stolen < 3 && Instant::now() < until {
            stolen += u32::from(std::fs::remove_file(&file).is_ok());
        }
    });
    agent(&mut world, "mira", u64::MAX).await;

    echoes(&world, "echo", "one").await;
}

/// A run of what is ready reads no file, and keeps it from going all the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_used_without_being_read_is_used() {
    let mut world = World::new().await;
    world.register("echo").await;
    agent(&mut world, "mira", u64::MAX).await;
    echoes(&world, "echo", "one").await;
    let files = ["artifacts", "code"].map(|kind| {
        let names = std::fs::read_dir(cache(&world, kind)).unwrap();
        let mut paths = names.map(|entry| entry.unwrap().path());
        paths
            .find(|path| path.extension() != Some("sha256".as_ref()))
            .unwrap()
    });
    for file in &files {
        let file = std::fs::File::open(file).unwrap();
        file.set_modified(SystemTime::UNIX_EPOCH).unwrap();
    }

    world.leap(Duration::from_secs(61)).await;
    echoes(&world, "echo", "two").await;

    let is_used =
        |file| std::fs::metadata(file).unwrap().modified().unwrap() > SystemTime::UNIX_EPOCH;
    let noted = async {
        while !files.iter().all(is_used) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    patient("both uses to be noted", noted).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_damaged_is_made_again_and_nobody_notices() {
    let mut world = World::new().await;
    world.register("echo").await;
    agent(&mut world, "mira", u64::MAX).await;
    echoes(&world, "echo", "one").await;
    world.drain("mira").await;
    let folders = ["artifacts", "code"].map(|kind| cache(&world, kind));
    let files = || folders.iter().flat_map(|it| std::fs::read_dir(it).unwrap());
    let mut whole = Vec::new();
    for entry in files() {
        let path = entry.unwrap().path();
        let bytes = std::fs::read(&path).unwrap();
        let mut damaged = bytes.clone();
        damaged[bytes.len() / 2] ^= 1;
        std::fs::write(&path, damaged).unwrap();
        whole.push((path, bytes));
    }
    assert_eq!(whole.len(), 3);

    agent(&mut world, "nas", u64::MAX).await;
    echoes(&world, "echo", "two").await;

    for (path, bytes) in whole {
        assert!(std::fs::read(&path).unwrap() == bytes, "{}", path.display());
    }
}
