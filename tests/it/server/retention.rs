//! How long results are kept, and who is asked to delete them.

use std::collections::BTreeSet;

use super::*;
use waft::server::duty::cleaner::{clean, doom, forget_runs};
use waft::server::{RESULTS_KEEP, RUNS_KEEP};
use waft::wire::{Deletions, KeptSegment, Leave, Listen, Segment, Sighted};

const RESULTS: &str = "file://host/results";
const HOUR: Duration = Duration::from_secs(60 * 60);
const MOMENT: Duration = Duration::from_millis(1);
/// How long an agent has for a deletion.
const RETRY: Duration = Duration::from_secs(10 * 60);

fn roots(roots: &[&str]) -> Offer {
    Offer {
        roots: roots.iter().map(|root| (*root).to_owned()).collect(),
        ..Offer::default()
    }
}

fn segment(key: &str) -> Segment {
    Segment {
        root: RESULTS.to_owned(),
        key: key.to_owned(),
    }
}

/// A task that ends, with its output in a segment.
fn kept(name: &str, key: &str) -> Happening {
    let Happening::TaskRun(mut moved) = task(name, Event::Succeed) else {
        panic!("a task");
    };
    moved.result = Some(ResultRef {
        root: RESULTS.to_owned(),
        segment: key.to_owned(),
        ..result()
    });
    Happening::TaskRun(moved)
}

impl Agent {
    /// Returns what it is asked to delete now.
    async fn asked(&self) -> BTreeSet<Segment> {
        let listen = Listen {
            session_id: self.session,
            leases: Vec::new(),
            has_left: false,
            limited_seen: None,
            wait_seconds: 0,
        };
        let orders = self.client.listen(&listen).await.unwrap();
        orders.delete.into_iter().collect()
    }

    async fn deleted(&self, keys: &[&str]) {
        let done = Deletions {
            session_id: self.session,
            deleted: keys.iter().map(|key| segment(key)).collect(),
            kept: Vec::new(),
        };
        self.client.deletions(&done).await.unwrap();
    }

    /// Runs `etl` to its end but for the last task, with the output of the first in a segment.
    async fn begins(&self, world: &World, key: &str) -> LeaseKey {
        world.create("etl").await;
        let lease = lease(&self.poll(1).await[0]);
        let first = vec![
            flow(Event::Start),
            task("fetch", Event::Start),
            kept("fetch", key),
            task("report", Event::Start),
        ];
        self.tell(lease, first).await;
        lease
    }

    async fn ends(&self, lease: LeaseKey, key: &str) {
        self.tell(lease, vec![kept("report", key), flow(Event::Succeed)])
            .await;
    }
}

async fn world() -> World {
    let world = World::new().await;
    world.register("etl").await;
    world
}

#[tokio::test]
async fn what_was_not_used_for_so_long_is_deleted_by_one_agent_that_offers_its_root() {
    let world = world().await;
    let both = roots(&[ROOT, RESULTS]);
    let mira = world.agent_offering("mira", both.clone()).await;
    let lease = mira.begins(&world, "a").await;
    mira.ends(lease, "b").await;
    // The server remembers for an hour that it has noted a use.
    world.clock.pass(RESULTS_KEEP + HOUR);
    assert_eq!(doom(&world.app).await.unwrap(), 0);
    assert!(mira.asked().await.is_empty());
    world.clock.pass(MOMENT);
    assert_eq!(doom(&world.app).await.unwrap(), 2);
    assert_eq!(doom(&world.app).await.unwrap(), 0, "once");

    let other = world.agent_offering("other", roots(&[ROOT])).await;
    assert!(other.asked().await.is_empty(), "it does not offer the root");
    let wanted = BTreeSet::from([segment("a"), segment("b")]);
    assert_eq!(mira.asked().await, wanted);
    assert!(mira.asked().await.is_empty(), "it is at it");
    let nas = world.agent_offering("nas", both).await;
    assert!(nas.asked().await.is_empty(), "somebody else is at it");
    // Of who does not offer the root nothing is heard.
    other.deleted(&["a", "b"]).await;
    mira.deleted(&["a"]).await;
    mira.deleted(&["a"]).await;
    world.clock.pass(RETRY);
    assert_eq!(nas.asked().await, BTreeSet::from([segment("b")]));
    let done = Deletions {
        session_id: nas.session,
        deleted: Vec::new(),
        kept: vec![KeptSegment {
            segment: segment("b"),
            why: "nothing is deleted from a registry".to_owned(),
        }],
    };
    world.client.deletions(&done).await.unwrap();
    world.clock.pass(RETRY);
    assert!(nas.asked().await.is_empty(), "asked for once and for all");
}

#[tokio::test]
async fn a_run_that_is_not_over_keeps_what_its_tasks_returned() {
    let world = world().await;
    let mira = world.agent_offering("mira", roots(&[ROOT, RESULTS])).await;
    let open = mira.begins(&world, "open").await;
    let done = mira.begins(&world, "done").await;
    mira.ends(done, "done").await;
    world.clock.pass(RESULTS_KEEP + HOUR + MOMENT);
    assert_eq!(doom(&world.app).await.unwrap(), 1);
    assert_eq!(mira.asked().await, BTreeSet::from([segment("done")]));
    mira.deleted(&["done"]).await;
    // The lease is over, and the run goes on with what it has.
    world.rescue().await;
    let claimed = &mira.poll(1).await[0];
    assert_eq!(claimed.flow_run_id, open.flow_run_id);
    let again = lease(claimed);
    mira.numbers.store(0, Ordering::Relaxed);
    mira.tell(
        again,
        vec![flow(Event::Start), task("report", Event::Start)],
    )
    .await;
    mira.ends(again, "late").await;
    let run = world.run(open.flow_run_id).await;
    assert_eq!(run.state, State::Success);
    assert!(run.result_until.is_none(), "it named no result");
    world.clock.pass(RESULTS_KEEP + HOUR + MOMENT);
    assert_eq!(doom(&world.app).await.unwrap(), 2);
    let wanted = BTreeSet::from([segment("open"), segment("late")]);
    assert_eq!(mira.asked().await, wanted);
}

#[tokio::test]
async fn what_is_used_again_stays_though_it_was_doomed() {
    let world = world().await;
    let mira = world.agent_offering("mira", roots(&[ROOT, RESULTS])).await;
    let lease = mira.begins(&world, "a").await;
    mira.ends(lease, "a").await;
    world.clock.pass(RESULTS_KEEP - HOUR);
    let lease = mira.begins(&world, "a").await;
    mira.ends(lease, "a").await;
    world.clock.pass(HOUR * 2 + MOMENT);
    assert_eq!(doom(&world.app).await.unwrap(), 0, "used an hour before");
    world.clock.pass(RESULTS_KEEP);
    assert_eq!(doom(&world.app).await.unwrap(), 1);
    let lease = mira.begins(&world, "a").await;
    assert!(mira.asked().await.is_empty());
    // Asked before that, it may be gone; it is no longer known then, and asked for once more.
    mira.ends(lease, "a").await;
    mira.deleted(&["a"]).await;
    world.clock.pass(RESULTS_KEEP + HOUR + MOMENT);
    assert_eq!(doom(&world.app).await.unwrap(), 1);
}

#[tokio::test]
async fn there_are_so_many_in_one_answer_and_none_for_who_leaves() {
    let world = world().await;
    let mira = world.agent_offering("mira", roots(&[ROOT, RESULTS])).await;
    for key in 0..130 {
        let lease = mira.begins(&world, &key.to_string()).await;
        mira.ends(lease, &key.to_string()).await;
    }
    world.clock.pass(RESULTS_KEEP + HOUR + MOMENT);
    assert_eq!(doom(&world.app).await.unwrap(), 130);
    let first = mira.asked().await;
    let second = mira.asked().await;
    assert_eq!((first.len(), second.len()), (100, 30));
    assert!(first.is_disjoint(&second));
    world.clock.pass(RETRY);
    let leave = Leave {
        session_id: mira.session,
    };
    world.client.leave(&leave, HOUR).await.unwrap();
    assert!(mira.asked().await.is_empty());
}

#[tokio::test]
async fn an_agent_that_listens_is_told_at_once() {
    let world = world().await;
    let mira = world.agent_offering("mira", roots(&[ROOT, RESULTS])).await;
    let lease = mira.begins(&world, "a").await;
    mira.ends(lease, "a").await;
    world.clock.pass(RESULTS_KEEP + HOUR + MOMENT);
    let listen = Listen {
        session_id: mira.session,
        leases: Vec::new(),
        has_left: false,
        limited_seen: None,
        wait_seconds: 30,
    };
    let client = world.client.clone();
    let mut call = Box::pin(client.listen(&listen));
    let early = tokio::time::timeout(Duration::from_millis(50), &mut call).await;
    assert!(early.is_err(), "there is nothing to say");
    doom(&world.app).await.unwrap();
    let orders = call.await.unwrap();
    assert_eq!(orders.delete, [segment("a")]);
}

#[tokio::test]
async fn a_run_says_until_when_its_result_is_kept() {
    let world = world().await;
    let mira = world.agent_offering("mira", roots(&[ROOT, RESULTS])).await;
    let lease = mira.begins(&world, "a").await;
    let mut end = FlowRunMoved {
        event: Event::Succeed,
        message: String::new(),
        code: None,
        result: Some(result()),
        delay_ms: 0,
    };
    end.result.as_mut().unwrap().root = RESULTS.to_owned();
    let end = Happening::FlowRun(end);
    mira.tell(lease, vec![kept("report", "a"), end]).await;
    let run = world.run(lease.flow_run_id).await;
    let ended = run.ended_at.unwrap();
    assert_eq!(run.result_until, Some(ended + RESULTS_KEEP));
}

/// Who looks into a storage learns what of it nobody needs; what is doomed is known until it is deleted.
#[tokio::test]
async fn what_nobody_has_reported_is_an_orphan() {
    let world = world().await;
    let mira = world.agent_offering("mira", roots(&[ROOT, RESULTS])).await;
    let lease = mira.begins(&world, "a").await;
    mira.ends(lease, "a").await;
    let (known, artifact) = (Digest::of(b"etl"), Digest::of(b"nobody's"));
    let ask = async |root: &str| {
        let found = Sighted {
            root: root.to_owned(),
            segments: vec!["a".to_owned(), "b".to_owned()],
            artifacts: vec![known, artifact],
        };
        world.client.orphans(&found).await.unwrap()
    };
    for _ in 0..2 {
        let orphans = ask(RESULTS).await;
        assert_eq!(orphans.segments, ["b"]);
        assert_eq!(orphans.artifacts, [artifact]);
        world.clock.pass(RESULTS_KEEP + HOUR + MOMENT);
        doom(&world.app).await.unwrap();
    }
    assert_eq!(ask("file://other/results").await.segments, ["a", "b"]);
    mira.deleted(&["a"]).await;
    assert_eq!(ask(RESULTS).await.segments, ["a", "b"]);
    let many = Sighted {
        artifacts: vec![artifact; 1_001],
        ..Sighted::default()
    };
    assert_eq!(code(world.client.orphans(&many).await), "value-bad");
}

/// The doomed wait a quarter of a year for an agent that offers their root.
#[tokio::test]
async fn results_under_a_root_that_nobody_offers_are_forgotten() {
    let world = world().await;
    let mira = world.agent_offering("mira", roots(&[ROOT, RESULTS])).await;
    let lease = mira.begins(&world, "a").await;
    mira.ends(lease, "a").await;
    world.clock.pass(RESULTS_KEEP + HOUR + MOMENT);
    assert_eq!(doom(&world.app).await.unwrap(), 1);
    let is_known = async || {
        let found = Sighted {
            root: RESULTS.to_owned(),
            segments: vec!["a".to_owned()],
            artifacts: Vec::new(),
        };
        world
            .client
            .orphans(&found)
            .await
            .unwrap()
            .segments
            .is_empty()
    };
    world.clock.pass(90 * 24 * HOUR - MOMENT);
    clean(&world.app).await.unwrap();
    assert!(is_known().await);
    world.clock.pass(2 * MOMENT);
    clean(&world.app).await.unwrap();
    assert!(!is_known().await);
}

#[tokio::test]
async fn runs_are_forgotten_when_they_were_over_for_long_with_all_that_is_theirs() {
    let world = World::new().await;
    world.register("etl").await;
    let agent = world.agent("mira").await;
    let mut over = Vec::new();
    for _ in 0..120 {
        over.push(world.create("etl").await.id);
        let claimed = agent.poll(1).await.remove(0);
        let told = vec![flow(Event::Start), kept("fetch", "a"), flow(Event::Succeed)];
        agent.tell(lease(&claimed), told).await;
    }
    let open = world.create("etl").await;
    world.clock.pass(RUNS_KEEP - HOUR);
    let young = world.create("etl").await;
    world.client.cancel(young.id).await.unwrap();
    assert_eq!(forget_runs(&world.app).await.unwrap(), 0);
    world.clock.pass(HOUR + MOMENT);
    assert_eq!(forget_runs(&world.app).await.unwrap(), 120);
    assert_eq!(forget_runs(&world.app).await.unwrap(), 0);
    let gone = world.client.flow_run(over[0]).await;
    assert_eq!(code(gone), "flow-run-unknown");
    // One that is not over is kept however old it is.
    assert_eq!(world.run(open.id).await.state, State::Scheduled);
    assert_eq!(world.run(young.id).await.state, State::Cancelled);
    let left = world.app.db.write(|tx| {
        Box::pin(async move {
            let sql = "SELECT (SELECT count(*) FROM transition) + (SELECT count(*) FROM task_run)";
            let row = tx.row(sql, Vec::new()).await?;
            row.map_or(Ok(0), |row| row.get::<u32>(0))
        })
    });
    assert_eq!(left.await.unwrap(), 3, "the histories of the two");
}
