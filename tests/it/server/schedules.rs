//! Schedules: runs ahead, versions, pauses, a server that was away.

use super::*;
use waft::server::db::sql::Sql;

pub(super) fn hourly(name: &str, line: &str) -> Registration {
    let mut asked = registration(name);
    asked.definition.schedule = serde_json::from_value(json!({
        "clocks": [{
            "name": "main",
            "rule": {"cron": {"line": line, "time_zone": "UTC"}},
            "parameters": {"name": "Ada"},
        }],
    }))
    .unwrap();
    asked
}

/// Lists the runs that wait, the last due first.
async fn ahead(world: &World) -> Vec<FlowRun> {
    let query = ListQuery {
        state: Some("Scheduled".to_owned()),
        limit: Some(200),
        ..ListQuery::default()
    };
    let page = world.client.list_flow_runs(&query).await.unwrap();
    page.items
}

async fn dues(world: &World) -> Vec<String> {
    let runs = ahead(world).await;
    let mut dues: Vec<_> = runs
        .iter()
        .map(|run| run.scheduled_at.to_string())
        .collect();
    dues.sort();
    dues
}

#[tokio::test]
async fn the_next_ten_runs_are_made_once() {
    let world = World::new().await;
    world
        .client
        .register("demo", &hourly("etl", "0 * * * *"))
        .await
        .unwrap();
    for _ in 0..3 {
        world.schedule().await;
    }
    let first = dues(&world).await;
    assert_eq!(first.len(), 10);
    assert_eq!(first[0], "2026-03-01T01:00:00Z");
    world.clock.pass(Duration::from_secs(3600));
    world.schedule().await;
    let second = dues(&world).await;
    assert_eq!(second.len(), 11, "one is due, ten are ahead");
    assert_eq!(second[10], "2026-03-01T11:00:00Z");
    let claimed = world.agent("mira").await.poll(9).await;
    assert_eq!(claimed.len(), 1);
    assert_eq!(claimed[0].parameters["name"], "Ada");
}

/// What is ahead does not hide what has happened, and the last due comes first.
#[tokio::test]
async fn runs_are_listed_by_when_they_are_due_and_not_before_they_are() {
    let world = World::new().await;
    let asked = hourly("etl", "0 * * * *");
    world.client.register("demo", &asked).await.unwrap();
    world.schedule().await;
    let mut later = new_run("etl");
    later.scheduled_at = Some("2026-03-01T05:30:00Z".parse().unwrap());
    world.try_create(&later).await.unwrap();
    world.clock.pass(Duration::from_secs(3 * 3600));
    world.schedule().await;
    let listed = async |query: ListQuery| {
        let page = world.client.list_flow_runs(&query).await.unwrap();
        let hours = page.items.iter();
        let hours = hours.map(|run| run.scheduled_at.strftime("%H:%M").to_string());
        (hours.collect::<Vec<_>>().join(" "), page.next)
    };
    let (all, _) = listed(ListQuery::default()).await;
    assert_eq!(all, "05:30 03:00 02:00 01:00");
    for query in [
        ListQuery {
            flow: Some("etl".to_owned()),
            ..ListQuery::default()
        },
        ListQuery {
            project: Some("demo".to_owned()),
            ..ListQuery::default()
        },
    ] {
        assert_eq!(listed(query).await.0, all);
    }
    let first = ListQuery {
        limit: Some(2),
        ..ListQuery::default()
    };
    let (hours, next) = listed(first.clone()).await;
    assert_eq!(hours, "05:30 03:00");
    let second = ListQuery {
        cursor: next,
        ..first
    };
    assert_eq!(listed(second).await.0, "02:00 01:00");
    let ahead = ListQuery {
        state: Some("Scheduled".to_owned()),
        limit: Some(3),
        ..ListQuery::default()
    };
    assert_eq!(listed(ahead).await.0, "13:00 12:00 11:00");
}

#[tokio::test]
async fn a_new_version_takes_over_the_runs_ahead_and_a_pause_takes_them_back() {
    let world = World::new().await;
    world
        .client
        .register("demo", &hourly("etl", "0 * * * *"))
        .await
        .unwrap();
    world.schedule().await;
    let by_hand = world.create("etl").await;
    let mut changed = hourly("etl", "30 * * * *");
    changed.artifact = Digest::of(b"other");
    let registered = world.client.register("demo", &changed).await.unwrap();
    assert_eq!((registered.version, registered.is_new), (2, true));
    world.schedule().await;
    let query = ListQuery {
        state: Some("Scheduled".to_owned()),
        ..ListQuery::default()
    };
    let runs = world.client.list_flow_runs(&query).await.unwrap().items;
    for run in &runs {
        assert_eq!(run.version, if run.id == by_hand.id { 1 } else { 2 });
    }
    assert_eq!(runs.len(), 11);
    assert_eq!(dues(&world).await[1], "2026-03-01T00:30:00Z");

    assert!(world.client.pause_flow("etl").await.unwrap().is_paused);
    world.schedule().await;
    assert_eq!(dues(&world).await.len(), 1, "only the one made by hand");
    changed.artifact = Digest::of(b"third");
    world.client.register("demo", &changed).await.unwrap();
    world.schedule().await;
    assert_eq!(dues(&world).await.len(), 1, "a pause outlives a version");
    world
        .client
        .resume_flow("etl", &ResumeQuery::default())
        .await
        .unwrap();
    world.schedule().await;
    assert_eq!(dues(&world).await.len(), 11);
}

#[tokio::test]
async fn a_run_ahead_that_was_deleted_or_cancelled_stays_away() {
    let world = World::new().await;
    let mut asked = hourly("etl", "0 * * * *");
    world.client.register("demo", &asked).await.unwrap();
    world.schedule().await;
    let mut runs = ahead(&world).await;
    runs.reverse();
    world.client.delete_flow_run(runs[1].id).await.unwrap();
    world.client.cancel(runs[2].id).await.unwrap();
    world.client.delete_flow_run(runs[2].id).await.unwrap();
    world.client.cancel(runs[3].id).await.unwrap();
    let first = ["2026-03-01T01:00:00Z", "2026-03-01T05:00:00Z"];

    world.clock.pass(Duration::from_secs(3600));
    world.schedule().await;
    assert_eq!(dues(&world).await[..2], first);
    asked.artifact = Digest::of(b"other");
    world.client.register("demo", &asked).await.unwrap();
    world.client.pause_flow("etl").await.unwrap();
    world
        .client
        .resume_flow("etl", &ResumeQuery::default())
        .await
        .unwrap();
    world.schedule().await;
    assert_eq!(dues(&world).await[..2], first, "for any version");
    world.clock.pass(Duration::from_secs(3 * 3600));
    world.schedule().await;
    assert_eq!(dues(&world).await.len(), 11, "no later one is left out");
}

#[tokio::test]
async fn of_what_was_missed_only_the_newest_is_made_up_for() {
    let world = World::new().await;
    world
        .client
        .register("demo", &hourly("etl", "0 * * * *"))
        .await
        .unwrap();
    world.schedule().await;
    // Longer than what is made ahead.
    world.clock.pass(Duration::from_secs(36 * 3600 + 60));
    world.schedule().await;
    let due = dues(&world).await;
    assert_eq!(due.len(), 11);
    assert_eq!(due[0], "2026-03-02T12:00:00Z");
    assert_eq!(due[1], "2026-03-02T13:00:00Z");
    let missed = ListQuery {
        state: Some("Cancelled".to_owned()),
        ..ListQuery::default()
    };
    assert_eq!(
        world
            .client
            .list_flow_runs(&missed)
            .await
            .unwrap()
            .items
            .len(),
        10
    );
}

#[tokio::test]
async fn what_was_deleted_ahead_is_not_made_up_for_and_the_one_before_it_is() {
    let world = World::new().await;
    let asked = hourly("etl", "0 * * * *");
    world.client.register("demo", &asked).await.unwrap();
    world.schedule().await;
    let mut runs = ahead(&world).await;
    runs.reverse();
    world.client.delete_flow_run(runs[2].id).await.unwrap();
    world.clock.pass(Duration::from_secs(3 * 3600 + 60));
    world.schedule().await;
    let due = dues(&world).await;
    assert_eq!(
        due[..2],
        ["2026-03-01T02:00:00Z", "2026-03-01T04:00:00Z"],
        "the third was deleted"
    );
}

#[tokio::test]
async fn what_was_due_before_the_server_went_away_was_not_missed() {
    let world = World::new().await;
    world
        .client
        .register("demo", &hourly("etl", "0 * * * *"))
        .await
        .unwrap();
    for _ in 0..3 {
        world.schedule().await;
        world.clock.pass(Duration::from_secs(3600));
    }
    world.schedule().await;
    // Three wait for an agent. Now the server is away over one more.
    world.clock.pass(Duration::from_secs(3660));
    world.schedule().await;
    let due = dues(&world).await;
    assert_eq!(
        due[..4],
        [1, 2, 3, 4].map(|hour| format!("2026-03-01T0{hour}:00:00Z"))
    );
    assert_eq!(due.len(), 14);
}

#[tokio::test]
async fn every_clock_of_an_instant_makes_its_run() {
    let world = World::new().await;
    let mut asked = hourly("etl", "0 * * * *");
    let schedule = asked.definition.schedule.as_mut().unwrap();
    let first = schedule.clocks[0].clone();
    schedule.clocks = (0..12)
        .map(|nth| waft::model::schedule::Clock {
            name: format!("clock-{nth}"),
            ..first.clone()
        })
        .collect();
    world.client.register("demo", &asked).await.unwrap();
    for _ in 0..3 {
        world.schedule().await;
        world.clock.pass(Duration::from_secs(3600));
    }
    world.schedule().await;
    let due = dues(&world).await;
    for hour in 1..=3 {
        let at = format!("2026-03-01T0{hour}:00:00Z");
        assert_eq!(due.iter().filter(|due| **due == at).count(), 12, "{at}");
    }
}

#[tokio::test]
async fn a_schedule_that_ticks_each_second_loses_nothing_to_a_stall() {
    let world = World::new().await;
    let mut asked = hourly("etl", "0 * * * *");
    let schedule = asked.definition.schedule.as_mut().unwrap();
    schedule.clocks[0].rule = waft::model::schedule::Rule::IntervalMs(1_000);
    world.client.register("demo", &asked).await.unwrap();
    world.schedule().await;
    world.clock.pass(Duration::from_secs(25));
    world.schedule().await;
    assert_eq!(dues(&world).await.len(), 25 + 10);
}

#[tokio::test]
async fn a_flow_that_is_known_can_be_registered_to_rest() {
    let world = World::new().await;
    let mut asked = hourly("etl", "0 * * * *");
    world.client.register("demo", &asked).await.unwrap();
    world.schedule().await;
    asked.is_paused = true;
    assert!(!world.client.register("demo", &asked).await.unwrap().is_new);
    world.schedule().await;
    assert!(dues(&world).await.is_empty());
    world
        .client
        .resume_flow("etl", &ResumeQuery::default())
        .await
        .unwrap();
    asked.artifact = Digest::of(b"other");
    assert!(world.client.register("demo", &asked).await.unwrap().is_new);
    world.schedule().await;
    assert!(dues(&world).await.is_empty());
    assert!(world.client.flow("etl").await.unwrap().is_paused);
}

#[tokio::test]
async fn an_archived_flow_makes_no_runs() {
    let world = World::new().await;
    world
        .client
        .register("demo", &hourly("etl", "0 * * * *"))
        .await
        .unwrap();
    world.schedule().await;
    assert!(world.client.archive_flow("etl").await.unwrap().is_archived);
    world.clock.pass(Duration::from_secs(7200));
    world.schedule().await;
    assert!(dues(&world).await.is_empty());
    assert_eq!(
        code(world.try_create(&new_run("etl")).await),
        "flow-archived"
    );
    let again = world
        .client
        .register("demo", &hourly("etl", "0 * * * *"))
        .await
        .unwrap();
    assert!(!again.is_new);
    world.schedule().await;
    assert_eq!(dues(&world).await.len(), 10);
}

#[tokio::test]
async fn a_schedule_that_cannot_work_is_refused() {
    let world = World::new().await;
    let mut without = hourly("etl", "0 * * * *");
    let schedule = without.definition.schedule.as_mut().unwrap();
    schedule.clocks[0].parameters.clear();
    assert_eq!(
        code(world.client.register("demo", &without).await),
        "definition-bad"
    );
    let bad_line = hourly("etl", "61 * * * *");
    assert_eq!(
        code(world.client.register("demo", &bad_line).await),
        "definition-bad"
    );
}

#[tokio::test]
async fn a_schedule_that_cannot_be_filled_is_in_nobodys_way() {
    let world = World::new().await;
    for name in ["broken", "whole"] {
        let asked = hourly(name, "0 * * * *");
        world.client.register("demo", &asked).await.unwrap();
    }
    let sql = Sql {
        sqlite: "UPDATE flow SET flow_version_id = zeroblob(16) WHERE name = 'broken'",
        postgres: "UPDATE flow SET flow_version_id = decode(repeat('00', 16), 'hex') \
                   WHERE name = 'broken'",
    };
    let broken = world
        .app
        .db
        .write(move |tx| Box::pin(tx.run(sql, Vec::new())));
    assert_eq!(broken.await.unwrap(), 1);
    world.schedule().await;
    assert_eq!(dues(&world).await.len(), 10, "of the other one");
}
