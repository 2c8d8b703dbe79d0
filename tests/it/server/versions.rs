//! Versions of a flow: what they are, which one is current, and a flow that takes another name.

use waft::wire::{Flow, NewRetry, NewRollback, RegisterQuery, Registered};

use super::schedules::hourly;
use super::*;

/// A flow whose versions differ in their artifact.
fn shape(nth: u8) -> Registration {
    let mut asked = registration("etl");
    asked.artifact = Digest::of(&[nth]);
    asked.location.key = format!("sha256/{}", asked.artifact.to_hex());
    asked
}

fn renames(old: &str) -> RegisterQuery {
    RegisterQuery {
        renames: Some(old.to_owned()),
    }
}

impl World {
    async fn register_shape(&self, nth: u8) -> Registered {
        self.client.register("demo", &shape(nth)).await.unwrap()
    }

    async fn roll_back(&self, version: Option<u32>) -> Result<Registered, ClientError> {
        let back = NewRollback { version };
        self.client.roll_back("demo/etl", &back).await
    }

    async fn flow(&self, name: &str) -> Flow {
        self.client.flow(name).await.unwrap()
    }

    /// Lists the versions of a flow, the newest first, those that were replaced in brackets.
    async fn versions(&self, flow: &str) -> String {
        let query = ListQuery::default();
        let versions = self.client.flow_versions(flow, &query).await.unwrap();
        let shown = versions.items.iter().map(|one| {
            assert_eq!(one.by, "first");
            match one.archived_at {
                None => one.version.to_string(),
                Some(_) => format!("({})", one.version),
            }
        });
        shown.collect::<Vec<_>>().join(" ")
    }
}

#[tokio::test]
async fn an_earlier_version_becomes_the_current_one_and_the_next_is_one_more() {
    let world = World::new().await;
    for nth in 1..=3 {
        world.register_shape(nth).await;
    }
    assert_eq!(world.versions("etl").await, "3 (2) (1)");
    let of_third = world.create("etl").await;
    let back = world.roll_back(None).await.unwrap();
    assert_eq!((back.version, back.is_new), (2, false));
    assert_eq!(world.versions("etl").await, "(3) 2 (1)");
    let shown = world.flow("etl").await;
    assert_eq!((shown.version, shown.artifact), (2, Digest::of(&[2])));
    // The same once more is no step further.
    assert_eq!(world.roll_back(Some(2)).await.unwrap().version, 2);
    // The next run is due after that one.
    world.clock.pass(Duration::from_millis(1));
    assert_eq!(world.create("etl").await.version, 2);
    let back = world.roll_back(Some(3)).await.unwrap();
    assert_eq!(back.version, 3);
    world.roll_back(Some(1)).await.unwrap();
    assert_eq!(world.versions("etl").await, "(3) (2) 1");
    assert_eq!(code(world.roll_back(None).await), "version-unknown");
    assert_eq!(code(world.roll_back(Some(4)).await), "version-unknown");

    // A run that was made by hand is what it was pinned to, and so is a retry of it; both are claimed.
    let agent = world.agent("mira").await;
    let claimed = agent.poll(1).await.remove(0);
    assert_eq!(claimed.flow_run_id, of_third.id);
    assert_eq!((claimed.version, claimed.artifact), (3, Digest::of(&[3])));
    let fails = vec![flow(Event::Start), flow(Event::Fail)];
    agent.tell(lease(&claimed), fails).await;
    let retry = world.client.retry(of_third.id, &NewRetry::default()).await;
    assert_eq!(retry.unwrap().version, 3);
    let newest = NewRetry {
        is_newest: true,
        ..NewRetry::default()
    };
    let retry = world.client.retry(of_third.id, &newest).await.unwrap();
    assert_eq!(retry.version, 1, "the one that the flow has now");

    // The same as the current one is no new version, the same as another is.
    let same = world.register_shape(1).await;
    assert_eq!((same.version, same.is_new), (1, false));
    let again = world.register_shape(3).await;
    assert_eq!((again.version, again.is_new), (4, true));
    assert_eq!(world.versions("etl").await, "4 (3) (2) (1)");
    // Back is the version before it by number, whichever was current.
    assert_eq!(world.roll_back(None).await.unwrap().version, 3);
    world.client.archive_flow("etl").await.unwrap();
    assert_eq!(code(world.roll_back(None).await), "flow-archived");
}

#[tokio::test]
async fn a_run_of_any_version_is_made_on_purpose_with_the_parameters_of_that_version() {
    let world = World::new().await;
    world.register("etl").await;
    let mut second = shape(2);
    second.definition.parameters[1].default = Some(json!(7));
    world.client.register("demo", &second).await.unwrap();
    let mut new = new_run("etl");
    new.version = Some(1);
    let run = world.try_create(&new).await.unwrap();
    assert_eq!((run.version, &run.parameters["times"]), (1, &json!(3)));
    assert_eq!(run.artifact, Digest::of(b"etl"));
    assert_eq!(world.create("etl").await.parameters["times"], json!(7));
    new.version = Some(3);
    assert_eq!(code(world.try_create(&new).await), "version-unknown");
}

#[tokio::test]
async fn the_schedule_follows_the_version_that_is_current() {
    let world = World::new().await;
    for line in ["0 * * * *", "30 * * * *"] {
        let asked = hourly("etl", line);
        world.client.register("demo", &asked).await.unwrap();
    }
    let dues = async || {
        world.schedule().await;
        let query = ListQuery {
            state: Some("Scheduled".to_owned()),
            ..ListQuery::default()
        };
        let mut runs = world.client.list_flow_runs(&query).await.unwrap().items;
        runs.sort_by_key(|run| run.scheduled_at);
        let first = &runs[0];
        let at = first.scheduled_at.strftime("%H:%M");
        format!("{} {at} of {}", runs.len(), first.version)
    };
    assert_eq!(dues().await, "10 00:30 of 2");
    world.roll_back(None).await.unwrap();
    assert_eq!(dues().await, "10 01:00 of 1");
    // Whether it rests belongs to the flow.
    world.client.pause_flow("etl").await.unwrap();
    world.roll_back(Some(2)).await.unwrap();
    world.schedule().await;
    let flow = world.flow("etl").await;
    assert_eq!((flow.version, flow.is_paused), (2, true));
    let query = ListQuery::default();
    assert!(
        world
            .client
            .list_flow_runs(&query)
            .await
            .unwrap()
            .items
            .is_empty()
    );
}

#[tokio::test]
async fn a_flow_that_is_renamed_keeps_its_versions_runs_and_settings() {
    let world = World::new().await;
    world.register("etl").await;
    world.register("other").await;
    let run = world.create("etl").await;
    let before = world.flow("etl").await;
    world.client.pause_flow("etl").await.unwrap();
    let slots = Slots { slots: Some(3) };
    world.client.set_flow_slots("etl", &slots).await.unwrap();

    let asked = registration("load");
    let refused = async |asked: &Registration, old: &str| {
        let query = renames(old);
        code(world.client.register_with("demo", asked, &query).await)
    };
    assert_eq!(refused(&asked, "nothing").await, "flow-unknown");
    // That a flow of the new name is there makes no repeat of it.
    assert_eq!(
        refused(&registration("other"), "nothing").await,
        "flow-unknown"
    );
    assert_eq!(refused(&asked, "load").await, "value-bad");
    assert_eq!(refused(&registration("other"), "etl").await, "flow-exists");

    let query = renames("etl");
    let renamed = world.client.register_with("demo", &asked, &query).await;
    let renamed = renamed.unwrap();
    assert_eq!((renamed.flow_id, renamed.version), (before.id, 2));
    // A repeat finds it done.
    let again = world.client.register_with("demo", &asked, &query).await;
    assert_eq!(again.unwrap().flow_version_id, renamed.flow_version_id);
    let after = world.flow("demo/load").await;
    assert_eq!((after.id, after.slots), (before.id, Some(3)));
    assert!(after.is_paused);
    assert_eq!(code(world.client.flow("etl").await), "flow-unknown");
    assert_eq!(world.versions("load").await, "2 (1)");

    // Its runs are found under the new name, and run what they were pinned to.
    let query = ListQuery {
        flow: Some("load".to_owned()),
        ..ListQuery::default()
    };
    let runs = world.client.list_flow_runs(&query).await.unwrap().items;
    assert_eq!((runs[0].id, &*runs[0].flow), (run.id, "load"));
    assert_eq!(world.run(run.id).await.flow, "load");
    let claimed = world.agent("mira").await.poll(9).await.remove(0);
    assert_eq!((claimed.flow_run_id, claimed.version), (run.id, 1));
    assert_eq!(&*claimed.flow, "etl", "as its component calls itself");

    // Back is possible over the new name, and the old one is free.
    let back = world
        .client
        .roll_back("load", &NewRollback::default())
        .await;
    assert_eq!(back.unwrap().version, 1);
    assert_eq!(world.flow("load").await.version, 1);
    assert_eq!(world.create("load").await.version, 1);
    assert_eq!(world.register("etl").await.version, 1);
    assert_ne!(world.flow("etl").await.id, before.id);
}
