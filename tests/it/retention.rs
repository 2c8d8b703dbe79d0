//! A story about results that were kept long enough: real agents delete them where they lie.

use std::path::PathBuf;
use std::time::Duration;

use futures::TryStreamExt as _;
use object_store::ObjectStore as _;
use object_store::path::Path as ObjectPath;
use serde_json::json;

use waft::model::state::State;
use waft::storage::{Kind, connect};

use crate::kit::servers::StorageServer;
use crate::kit::witness::patient;
use crate::kit::world::World;

const MONTH_AND_A_DAY: Duration = Duration::from_secs(31 * 24 * 60 * 60);
/// How often something is looked for that gives no sign by itself.
const LOOK: Duration = Duration::from_millis(20);

async fn objects(server: &StorageServer) -> Vec<ObjectPath> {
    let store = connect(&server.root, &server.access).unwrap();
    let prefix = ObjectPath::from("segments");
    let found = store.list(Some(&prefix)).map_ok(|object| object.location);
    found.try_collect().await.unwrap()
}

fn files(world: &World) -> Vec<PathBuf> {
    let folder = world.home().join("results/segments");
    let entries = std::fs::read_dir(folder).unwrap();
    entries.map(|entry| entry.unwrap().path()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn agents_delete_old_results_under_their_own_roots_and_no_others() {
    let server = StorageServer::start(Kind::S3).await;
    let mut world = World::new().await;
    world.register("hello").await;
    world.agent("mira").await;
    let run = world.run("hello", json!({})).await;
    world.ends_as(run, State::Success).await;
    world.drain("mira").await;
    let rhea = |settings: &mut waft::agent::AgentSettings| {
        settings.results = server.root.clone();
        settings.access = server.access.clone();
    };
    world.agent_with("rhea", rhea).await;
    let run = world.run("hello", json!({})).await;
    world.ends_as(run, State::Success).await;
    assert_eq!((files(&world).len(), objects(&server).await.len()), (1, 1));
    world.cleaner().await;
    assert_eq!((files(&world).len(), objects(&server).await.len()), (1, 1));

    world.leap(MONTH_AND_A_DAY).await;
    world.cleaner().await;
    let gone = async {
        while !objects(&server).await.is_empty() {
            tokio::time::sleep(LOOK).await;
        }
    };
    patient("the result in the bucket to go", gone).await;
    assert_eq!(files(&world).len(), 1, "`rhea` was not asked for it");
    world.drain("rhea").await;

    world.agent("mira").await;
    let gone = async {
        while !files(&world).is_empty() {
            tokio::time::sleep(LOOK).await;
        }
    };
    patient("the result in the folder to go", gone).await;
    // What comes next is kept in a segment of its own.
    let run = world.run("hello", json!({})).await;
    world.ends_as(run, State::Success).await;
    assert_eq!(files(&world).len(), 1);
}
