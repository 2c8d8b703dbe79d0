//! Slots of tags: how many task runs with a tag agents may run at one time in a project.

mod crossings;

use std::collections::BTreeSet;

use waft::server::duty::cleaner::clean;
use waft::server::duty::timekeeper::set_back;
use waft::server::duty::usher::usher;
use waft::wire::{Listen, NewDecision, Orders, Tag};

use super::*;
use crate::kit::witness::patient;

/// What an agent says of a task that asks for slots, after so many attempts.
fn asks(name: &str, attempts: u32) -> Happening {
    moved(name, Event::Queue, attempts)
}

fn moved(name: &str, event: Event, attempts: u32) -> Happening {
    let Happening::TaskRun(mut moved) = task(name, event) else {
        panic!("not a task run");
    };
    moved.attempts = attempts;
    Happening::TaskRun(moved)
}

/// What an agent says that hands a run back since a slot is not free.
fn rests() -> Happening {
    Happening::FlowRun(FlowRunMoved {
        event: Event::Rest,
        message: "waits for a slot of the tag `db` for `fetch`".to_owned(),
        code: None,
        result: None,
        delay_ms: u64::MAX,
    })
}

fn tagged(name: &str, tags: &[&str]) -> waft::wire::Registration {
    let mut asked = registration(name);
    let tags = tags.iter().map(|tag| (*tag).to_owned()).collect();
    asked.definition.tasks[0].tags = tags;
    asked
}

impl World {
    async fn register_tagged(&self, name: &str, tags: &[&str]) {
        let asked = tagged(name, tags);
        self.client.register("demo", &asked).await.unwrap();
    }

    async fn set(&self, tag: &str, slots: Option<u32>) -> Tag {
        let slots = Slots { slots };
        let set = self.client.set_tag_slots("demo", tag, &slots).await;
        set.unwrap()
    }

    async fn usher(&self) {
        usher(&self.app).await.unwrap();
    }

    /// Claims a new run of a flow, whose first task then asks.
    async fn asking(&self, agent: &Agent, flow: &str) -> ClaimedRun {
        self.create(flow).await;
        let claimed = agent.poll(1).await.remove(0);
        agent.ask(&claimed).await;
        self.clock.pass(Duration::from_millis(1));
        claimed
    }

    /// Starts an agent of a version that knows nothing of tags.
    async fn old_agent(&self) -> Agent {
        let new = NewSession {
            protocol: PROTOCOL - 1,
            is_start: false,
            ..hello("old", offer())
        };
        let session = self.client.open_session(&new).await.unwrap();
        Agent {
            client: self.client.clone(),
            id: session.agent_id,
            session: session.session_id,
            numbers: AtomicU64::new(0),
        }
    }

    async fn count(&self, sql: &'static str) -> i64 {
        let mut reader = self.app.db.reader().await.unwrap();
        let row = reader.row(sql, Vec::new()).await.unwrap();
        row.unwrap().get(0).unwrap()
    }

    async fn counts(&self) -> String {
        let tags = self.client.list_tags(&ListQuery::default()).await.unwrap();
        let shown = tags.items.iter().map(|tag| {
            let slots = tag.slots.unwrap();
            format!("{} {}/{slots} {}", tag.name, tag.taken, tag.waiting)
        });
        shown.collect::<Vec<_>>().join(", ")
    }
}

impl Agent {
    async fn ask(&self, run: &ClaimedRun) {
        let story = vec![super::flow(Event::Start), asks("fetch", 0)];
        self.tell(lease(run), story).await;
    }

    async fn hear(&self, seen: Option<i64>) -> Orders {
        let listen = Listen {
            session_id: self.session,
            leases: Vec::new(),
            has_left: false,
            limited_seen: seen,
            wait_seconds: 0,
        };
        self.client.listen(&listen).await.unwrap()
    }

    /// Lists the runs whose `fetch` was given slots and has not begun.
    async fn given(&self) -> Vec<FlowRunId> {
        let slots = self.hear(None).await.slots;
        assert!(slots.iter().all(|given| given.task_run.task == "fetch"));
        slots.iter().map(|given| given.lease.flow_run_id).collect()
    }
}

#[tokio::test]
async fn a_task_run_waits_for_a_slot_of_its_tag_says_who_has_it_and_gets_it_next() {
    let world = World::new().await;
    world.register_tagged("etl", &["db", "free"]).await;
    let set = world.set("db", Some(1)).await;
    assert_eq!((set.slots, set.taken, set.waiting), (Some(1), 0, 0));
    let agent = world.agent("mira").await;
    let first = world.asking(&agent, "etl").await;
    assert_eq!(first.limited_tags, ["db"]);
    assert_eq!(agent.given().await, [first.flow_run_id]);
    let second = world.asking(&agent, "etl").await;
    let third = world.asking(&agent, "etl").await;
    assert_eq!(agent.given().await, [first.flow_run_id]);
    let given = agent.hear(None).await.slots.remove(0);
    assert_eq!((given.lease, given.attempts), (lease(&first), 0));
    agent
        .tell(lease(&first), vec![task("fetch", Event::Start)])
        .await;
    assert!(agent.given().await.is_empty(), "it has begun");
    assert_eq!(world.counts().await, "db 1/1 2");

    let explained = world.client.explain(second.flow_run_id).await.unwrap();
    let id = first.flow_run_id;
    assert_eq!(explained.summary, "the agent `mira` runs it");
    assert_eq!(
        explained.aside,
        format!(
            "`fetch` waits for a slot of the tag `db`; of `db` 1 of 1 is taken, by `fetch` of the run {id}"
        )
    );
    assert_eq!(explained.hints, ["waft tag set demo db --slots N"]);
    let query = ListQuery::default();
    let tasks = world.client.task_runs(second.flow_run_id, &query).await;
    let tasks = tasks.unwrap().items;
    assert_eq!((tasks[0].state, tasks[0].attempts), (State::Queued, 0));

    // Who asked first is first.
    agent
        .tell(lease(&first), vec![task("fetch", Event::Succeed)])
        .await;
    world.usher().await;
    assert_eq!(agent.given().await, [second.flow_run_id]);
    agent.tell(lease(&second), vec![flow(Event::Fail)]).await;
    world.usher().await;
    assert_eq!(agent.given().await, [third.flow_run_id]);
    world.client.cancel(third.flow_run_id).await.unwrap();
    agent.tell(lease(&third), vec![flow(Event::Stop)]).await;
    assert!(agent.given().await.is_empty());
    assert_eq!(world.counts().await, "db 0/1 0");
}

#[tokio::test]
async fn an_agent_that_listens_is_told_at_once() {
    let world = World::new().await;
    world.register_tagged("etl", &["db"]).await;
    world.set("db", Some(1)).await;
    let agent = world.agent("mira").await;
    let other = world.agent("nas").await;
    let first = world.asking(&agent, "etl").await;
    let second = world.asking(&other, "etl").await;
    let seen = other.hear(None).await.limited.unwrap().change;
    let listen = Listen {
        session_id: other.session,
        leases: vec![lease(&second)],
        has_left: false,
        limited_seen: Some(seen),
        wait_seconds: 30,
    };
    let told = async {
        tokio::task::yield_now().await;
        let ends = vec![task("fetch", Event::Start), task("fetch", Event::Succeed)];
        agent.tell(lease(&first), ends).await;
        world.usher().await;
    };
    let (orders, ()) = tokio::join!(other.client.listen(&listen), told);
    assert_eq!(orders.unwrap().slots[0].lease, lease(&second));
}

#[tokio::test]
async fn a_slot_that_an_agent_lost_is_free_after_its_lease_and_nobody_keeps_it_by_a_repeat() {
    let world = World::new().await;
    world.register_tagged("etl", &["db"]).await;
    world.set("db", Some(1)).await;
    let (dead, agent) = (world.agent("mira").await, world.agent("nas").await);
    let lost = world.asking(&dead, "etl").await;
    let begin = dead.report_of(lease(&lost), task("fetch", Event::Start));
    dead.send(vec![begin.clone()]).await;
    let waits = world.asking(&agent, "etl").await;
    world.clock.pass(LEASE - Duration::from_secs(1));
    let renewal = waft::wire::Renewal {
        session_id: agent.session,
        leases: vec![lease(&waits)],
    };
    agent.client.renew(&renewal, LEASE).await.unwrap();
    world.usher().await;
    assert!(agent.given().await.is_empty());
    world.clock.pass(Duration::from_secs(2));
    assert_eq!(world.rescue().await, 1);
    world.usher().await;
    assert_eq!(agent.given().await, [waits.flow_run_id]);
    // What the dead one said arrives once more: nothing comes of it.
    dead.send(vec![begin]).await;
    assert_eq!(world.counts().await, "db 1/1 0");
    // It is made again, and waits its turn.
    let again = agent.poll(9).await.remove(0);
    assert_eq!((again.flow_run_id, again.epoch), (lost.flow_run_id, 2));
    agent
        .tell(lease(&again), vec![flow(Event::Start), asks("fetch", 1)])
        .await;
    assert_eq!(world.counts().await, "db 1/1 1");
    let ends = vec![task("fetch", Event::Start), task("fetch", Event::Succeed)];
    agent.tell(lease(&waits), ends).await;
    world.usher().await;
    let given = agent.hear(None).await.slots.remove(0);
    assert_eq!((given.lease, given.attempts), (lease(&again), 1));
}

#[tokio::test]
async fn a_retry_holds_no_slot_while_it_waits_and_its_repeated_request_is_one() {
    let world = World::new().await;
    world.register_tagged("etl", &["db"]).await;
    world.set("db", Some(1)).await;
    let agent = world.agent("mira").await;
    let first = world.asking(&agent, "etl").await;
    let second = world.asking(&agent, "etl").await;
    let story = vec![task("fetch", Event::Start), moved("fetch", Event::Retry, 1)];
    agent.tell(lease(&first), story).await;
    world.usher().await;
    assert_eq!(agent.given().await, [second.flow_run_id]);
    let ask = agent.report_of(lease(&first), asks("fetch", 1));
    for _ in 0..3 {
        agent.send(vec![ask.clone()]).await;
    }
    assert_eq!(world.counts().await, "db 1/1 1");
    let ends = vec![task("fetch", Event::Start), task("fetch", Event::Succeed)];
    agent.tell(lease(&second), ends).await;
    world.usher().await;
    let given = agent.hear(None).await.slots;
    assert_eq!(given.len(), 1);
    assert_eq!((given[0].lease, given[0].attempts), (lease(&first), 1));
    // An attempt that ends and the next that asks, in one breath, keep nothing.
    let third = world.asking(&agent, "etl").await;
    let story = vec![
        moved("fetch", Event::Start, 2),
        moved("fetch", Event::Retry, 2),
        asks("fetch", 2),
    ];
    agent.tell(lease(&first), story).await;
    assert_eq!(agent.given().await, [third.flow_run_id]);
}

#[tokio::test]
async fn a_task_with_two_tags_takes_both_or_none_and_is_not_overtaken_for_ever() {
    let world = World::new().await;
    world.register_tagged("db", &["db"]).await;
    world.register_tagged("api", &["api"]).await;
    world.register_tagged("both", &["api", "db"]).await;
    world.set("db", Some(2)).await;
    world.set("api", Some(1)).await;
    let agent = world.agent("mira").await;
    let api = world.asking(&agent, "api").await;
    let one = world.asking(&agent, "db").await;
    let both = world.asking(&agent, "both").await;
    let behind = world.asking(&agent, "db").await;
    let ids = BTreeSet::from([api.flow_run_id, one.flow_run_id]);
    let given = async || agent.given().await.into_iter().collect::<BTreeSet<_>>();
    assert_eq!(given().await, ids, "who is behind leaves it the last slot");
    let explained = world.client.explain(both.flow_run_id).await.unwrap();
    let aside = explained.aside;
    assert!(
        aside.starts_with(
            "`fetch` waits for a slot of each of the tags `api`, `db`; of `api` 1 of 1 is taken, by"
        ),
        "{aside}"
    );
    let ends = vec![task("fetch", Event::Start), task("fetch", Event::Succeed)];
    agent.tell(lease(&api), ends.clone()).await;
    world.usher().await;
    let ids = BTreeSet::from([one.flow_run_id, both.flow_run_id]);
    assert_eq!(given().await, ids);
    assert_eq!(world.counts().await, "api 1/1 0, db 2/2 1");
    agent.tell(lease(&both), ends).await;
    world.usher().await;
    let ids = BTreeSet::from([one.flow_run_id, behind.flow_run_id]);
    assert_eq!(given().await, ids);
}

#[tokio::test]
async fn a_run_that_was_handed_back_keeps_its_place_and_is_called_when_a_slot_is_free() {
    let world = World::new().await;
    world.register_tagged("etl", &["db"]).await;
    world.set("db", Some(1)).await;
    let agent = world.agent("mira").await;
    let first = world.asking(&agent, "etl").await;
    let rested = world.asking(&agent, "etl").await;
    let behind = world.asking(&agent, "etl").await;
    agent.tell(lease(&rested), vec![rests()]).await;
    let waiting = world.run(rested.flow_run_id).await;
    assert_eq!(waiting.state, State::Scheduled);
    assert!(agent.poll(9).await.is_empty());
    let explained = world.client.explain(rested.flow_run_id).await.unwrap();
    let id = first.flow_run_id;
    assert_eq!(
        explained.summary,
        format!(
            "`fetch` waits for a slot of the tag `db`; of `db` 1 of 1 is taken, by `fetch` of the run {id}"
        )
    );

    let ends = vec![task("fetch", Event::Start), task("fetch", Event::Succeed)];
    let called = async {
        while world.app.waiting_polls() == 0 {
            tokio::task::yield_now().await;
        }
        agent.tell(lease(&first), ends.clone()).await;
        world.usher().await;
    };
    let (again, ()) = tokio::join!(agent.poll_waiting(9, 30), called);
    assert_eq!(again[0].flow_run_id, rested.flow_run_id);
    world.usher().await;
    assert!(agent.given().await.is_empty(), "its slot is kept for it");
    agent
        .tell(lease(&again[0]), vec![flow(Event::Start), asks("fetch", 0)])
        .await;
    assert_eq!(agent.given().await, [rested.flow_run_id]);
    agent.tell(lease(&again[0]), ends).await;
    world.usher().await;
    assert_eq!(agent.given().await, [behind.flow_run_id]);
}

#[tokio::test]
async fn a_run_that_is_called_and_does_not_come_holds_up_nobody() {
    let world = World::new().await;
    world.register_tagged("etl", &["db"]).await;
    world.set("db", Some(1)).await;
    let agent = world.agent("mira").await;
    let first = world.asking(&agent, "etl").await;
    let mut rested = Vec::new();
    for _ in 0..2 {
        let run = world.asking(&agent, "etl").await;
        agent.tell(lease(&run), vec![rests()]).await;
        rested.push(run.flow_run_id);
    }
    let behind = world.asking(&agent, "etl").await;
    agent.tell(lease(&first), vec![flow(Event::Fail)]).await;
    let due = async || {
        let mut due = 0;
        for id in &rested {
            due += u32::from(world.run(*id).await.due_at <= world.app.clock.now());
        }
        due
    };
    world.usher().await;
    assert_eq!(due().await, 1);
    world.clock.pass(Duration::from_secs(9));
    world.usher().await;
    assert!(agent.given().await.is_empty(), "a slot is kept for it");
    // Others are called as well, but nobody waits for them any more.
    world.clock.pass(Duration::from_secs(1));
    world.usher().await;
    assert_eq!(agent.given().await, [behind.flow_run_id]);
    assert_eq!(due().await, 2);
    // They come after all, and wait where they were.
    for claimed in agent.poll(9).await {
        agent
            .tell(lease(&claimed), vec![flow(Event::Start), asks("fetch", 0)])
            .await;
    }
    assert_eq!(world.counts().await, "db 1/1 2");
    agent.tell(lease(&behind), vec![flow(Event::Fail)]).await;
    world.usher().await;
    assert_eq!(agent.given().await, rested[..1]);
}

/// Nobody comes for it any more, and nobody keeps a slot for it.
#[tokio::test]
async fn a_run_that_is_called_and_cancelled_is_forgotten() {
    let world = World::new().await;
    world.register_tagged("etl", &["db"]).await;
    world.set("db", Some(1)).await;
    let agent = world.agent("mira").await;
    let called = "SELECT count(*) FROM tag_slot WHERE called_at IS NOT NULL";
    for is_late in [false, true] {
        let first = world.asking(&agent, "etl").await;
        let rested = world.asking(&agent, "etl").await;
        agent.tell(lease(&rested), vec![rests()]).await;
        agent.tell(lease(&first), vec![flow(Event::Fail)]).await;
        world.usher().await;
        assert_eq!(world.count(called).await, 1);
        if is_late {
            world.clock.pass(Duration::from_secs(61));
        }
        world.client.cancel(rested.flow_run_id).await.unwrap();
        let behind = world.asking(&agent, "etl").await;
        assert_eq!(agent.given().await, [behind.flow_run_id]);
        if is_late {
            clean(&world.app).await.unwrap();
        }
        assert_eq!(world.count(called).await, 0);
        agent.tell(lease(&behind), vec![flow(Event::Fail)]).await;
    }
}

/// Its agent has looked for a decision for the last time, and not yet said that the run rests.
#[tokio::test]
async fn a_decision_that_crosses_the_rest_of_a_run_is_heard_though_no_slot_is_free() {
    let world = World::new().await;
    world.register_tagged("etl", &["db"]).await;
    world.set("db", Some(1)).await;
    let agent = world.agent("mira").await;
    world.asking(&agent, "etl").await;
    let run = world.asking(&agent, "etl").await;
    let asks = ["report"].map(|name| [task(name, Event::Start), task(name, Event::Pause)]);
    agent.tell(lease(&run), asks.concat()).await;
    let approves = NewDecision {
        task_run: Some("report".parse().unwrap()),
        is_declined: false,
        reason: String::new(),
    };
    let decided = world.client.decide(run.flow_run_id, &approves).await;
    decided.unwrap();
    agent.tell(lease(&run), vec![rests()]).await;
    let again = agent.poll(9).await.remove(0);
    assert_eq!(again.flow_run_id, run.flow_run_id);
    assert!(again.task_runs.iter().any(|task| task.decision.is_some()));
    let heard = vec![flow(Event::Start), task("report", Event::Decide), rests()];
    agent.tell(lease(&again), heard).await;
    assert!(agent.poll(9).await.is_empty(), "it waits for its slot");
}

/// The slot comes at the moment at which the agent gives up to wait for it.
#[tokio::test]
async fn slots_that_a_run_was_given_while_it_was_handed_back_are_not_lost() {
    let world = World::new().await;
    world.register_tagged("etl", &["db"]).await;
    world.set("db", Some(1)).await;
    let agent = world.agent("mira").await;
    let run = world.asking(&agent, "etl").await;
    assert_eq!(agent.given().await, [run.flow_run_id]);
    agent.tell(lease(&run), vec![rests()]).await;
    // It goes back to its place, and is called at once.
    world.usher().await;
    let again = agent.poll(9).await.remove(0);
    assert_eq!(again.flow_run_id, run.flow_run_id);
    let behind = world.asking(&agent, "etl").await;
    assert!(agent.given().await.is_empty(), "its place is before");
    agent
        .tell(lease(&again), vec![flow(Event::Start), asks("fetch", 0)])
        .await;
    assert_eq!(agent.given().await, [run.flow_run_id]);
    agent.tell(lease(&again), vec![flow(Event::Fail)]).await;
    world.usher().await;
    assert_eq!(agent.given().await, [behind.flow_run_id]);
}

#[tokio::test]
async fn the_run_of_a_higher_priority_is_served_first() {
    let world = World::new().await;
    world.register_tagged("etl", &["db"]).await;
    world.set("db", Some(1)).await;
    let agent = world.agent("mira").await;
    let first = world.asking(&agent, "etl").await;
    world.asking(&agent, "etl").await;
    let mut new = new_run("etl");
    new.priority = 5;
    let urgent = world.try_create(&new).await.unwrap();
    let claimed = agent.poll(1).await.remove(0);
    agent.ask(&claimed).await;
    agent.tell(lease(&first), vec![flow(Event::Fail)]).await;
    world.usher().await;
    assert_eq!(agent.given().await, [urgent.id]);
}

#[tokio::test]
async fn a_number_that_changes_ends_nothing_and_lets_more_begin() {
    let world = World::new().await;
    world.register_tagged("etl", &["db"]).await;
    let agent = world.agent("mira").await;
    let mut runs = Vec::new();
    for _ in 0..5 {
        world.create("etl").await;
        runs.push(agent.poll(1).await.remove(0));
        world.clock.pass(Duration::from_millis(1));
    }
    assert!(runs[0].limited_tags.is_empty());
    for run in &runs[..2] {
        let story = vec![flow(Event::Start), task("fetch", Event::Start)];
        agent.tell(lease(run), story).await;
    }
    // What runs already is counted in.
    let set = world.set("db", Some(1)).await;
    assert_eq!((set.taken, set.waiting), (2, 0));
    let limited = agent.hear(None).await.limited.unwrap();
    assert_eq!(limited.tags["demo"], ["db".to_owned()].into());
    assert_eq!(agent.hear(Some(limited.change)).await.limited, None);
    for run in &runs[2..] {
        agent.ask(run).await;
        world.clock.pass(Duration::from_millis(1));
    }
    agent
        .tell(lease(&runs[0]), vec![task("fetch", Event::Succeed)])
        .await;
    world.usher().await;
    assert!(agent.given().await.is_empty());
    // One that has begun before its agent knew counts as well.
    world.set("db", Some(3)).await;
    assert_eq!(agent.given().await.len(), 2);
    world.set("db", Some(1)).await;
    assert_eq!(world.counts().await, "db 3/1 1");
    let begun = vec![task("fetch", Event::Start)];
    agent.tell(lease(&runs[4]), begun).await;
    assert_eq!(world.counts().await, "db 4/1 0");
    for nth in 0..9 {
        world.set(&format!("t{nth}"), Some(1)).await;
        world.set(&format!("t{nth}"), None).await;
    }
    let rows = world.count("SELECT count(*) FROM tag").await;
    assert_eq!(rows, 2, "a number and the newest change");
    let none = world.set("db", None).await;
    assert_eq!((none.slots, none.waiting), (None, 0));
    assert_eq!(world.counts().await, "");
    let later = agent.hear(Some(limited.change)).await.limited.unwrap();
    assert!(later.tags.is_empty());
    let more = world.asking(&agent, "etl").await;
    assert!(more.limited_tags.is_empty());
    assert!(agent.given().await.contains(&more.flow_run_id));

    let refused = |tag: &'static str, slots| {
        let client = world.client.clone();
        async move { code(client.set_tag_slots("demo", tag, &Slots { slots }).await) }
    };
    assert_eq!(refused("db", Some(0)).await, "value-bad");
    assert_eq!(refused("a b", Some(1)).await, "name-bad");
    let slots = Slots { slots: None };
    let unknown = world.client.set_tag_slots("no", "db", &slots).await;
    assert_eq!(code(unknown), "project-unknown");
}

/// Those who wait for one tag do not hide who waits for another, however many they are.
#[tokio::test]
async fn thousands_that_wait_for_one_tag_are_passed_by_who_needs_another() {
    let world = World::new().await;
    world.register_tagged("etl", &["db"]).await;
    world.register_tagged("other", &["api"]).await;
    world.set("db", Some(1)).await;
    world.set("api", Some(1)).await;
    let agent = world.agent("mira").await;
    for _ in 0..2_000 {
        world.create("etl").await;
    }
    let mut first = None;
    loop {
        let claimed = agent.poll(256).await;
        if claimed.is_empty() {
            break;
        }
        let reports = claimed.iter().flat_map(|run| {
            let story = [flow(Event::Start), asks("fetch", 0), rests()];
            let story = story.into_iter().take(if first.is_none() { 2 } else { 3 });
            first.get_or_insert(run.flow_run_id);
            story.map(|what| agent.report_of(lease(run), what))
        });
        let reports: Vec<_> = reports.collect();
        agent.send(reports).await;
    }
    let other = world.asking(&agent, "other").await;
    assert_eq!(world.counts().await, "api 1/1 0, db 1/1 1999");
    assert!(agent.given().await.contains(&other.flow_run_id));
    // Nobody of those has a lease, and none is due.
    assert!(agent.poll(9).await.is_empty());
}

/// Who was called by a clock that was ahead is called again when it is right: no slot is kept for that hour.
#[tokio::test]
async fn slots_are_not_kept_for_an_hour_that_passes_twice() {
    let world = World::new().await;
    world.register_tagged("etl", &["db"]).await;
    world.set("db", Some(1)).await;
    let agent = world.agent("mira").await;
    let holder = world.asking(&agent, "etl").await;
    assert_eq!(agent.given().await, [holder.flow_run_id]);
    let waiter = world.asking(&agent, "etl").await;
    agent.tell(lease(&waiter), vec![rests()]).await;
    let right = world.app.clock.now();
    let hour = jiff::SignedDuration::from_hours(1);
    world.clock.jump(right + hour);
    agent.tell(lease(&holder), vec![flow(Event::Fail)]).await;
    world.usher().await;
    world.clock.jump(right);
    set_back(&world.app).await.unwrap();
    world.usher().await;
    let claimed = agent.poll(1).await;
    assert_eq!(claimed[0].flow_run_id, waiter.flow_run_id);
}

/// An agent that knows nothing of tags is given no run that needs slots, and says why.
#[tokio::test]
async fn an_agent_of_an_earlier_version_gets_no_run_that_waits_for_slots() {
    let world = World::new().await;
    world.register_tagged("etl", &["db"]).await;
    world.register("plain").await;
    world.set("db", Some(1)).await;
    let old = world.old_agent().await;
    let run = world.create("etl").await;
    let plain = world.create("plain").await;
    let mut claimed = old.poll(9).await;
    claimed.extend(old.poll(9).await);
    let ids: Vec<_> = claimed.iter().map(|run| run.flow_run_id).collect();
    assert_eq!(ids, [plain.id]);
    let explained = world.client.explain(run.id).await.unwrap();
    let words = &explained.agents[0].words;
    assert!(words[0].contains("too old to wait for slots"), "{words:?}");
    assert_eq!(world.agent("new").await.poll(9).await.len(), 1);
}

/// It is first in line, and woken for a run that it may not have.
#[tokio::test]
async fn an_agent_of_an_earlier_version_leaves_a_run_to_who_waits_behind_it() {
    let world = World::new().await;
    world.register_tagged("etl", &["db"]).await;
    world.set("db", Some(1)).await;
    let (old, new) = (world.old_agent().await, world.agent("new").await);
    let wait = async |polls: usize| {
        while world.app.waiting_polls() < polls {
            tokio::task::yield_now().await;
        }
    };
    let waits_behind = async {
        wait(1).await;
        new.poll_waiting(1, 30).await
    };
    let creates = async {
        wait(2).await;
        world.create("etl").await.id
    };
    let takes = async {
        tokio::select! {
            _ = old.poll_waiting(1, 30) => panic!("there is nothing for it"),
            (runs, id) = async { tokio::join!(waits_behind, creates) } => (runs, id),
        }
    };
    let (runs, id) = patient("the run to be taken", takes).await;
    assert_eq!(runs[0].flow_run_id, id);
}
