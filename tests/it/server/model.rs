//! A model of a fleet: agents that are only played, a network that repeats and delays, a server that starts
//! anew, people who change their minds, a wall clock that jumps, and time by hand. Dice with a seed say what happens next; afterwards
//! every history has to be legal, and nothing finished may have been done again.
//!
//! `WAFT_MODEL_SEEDS` sets how many games are played, `WAFT_MODEL_SEED` plays one of them again.

use std::collections::{HashSet, VecDeque};

use jiff::SignedDuration;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use waft::clock::Monotonic;
use waft::model::limit::LOST_MAX;
use waft::model::run::Verdict;
use waft::server::duty::timekeeper;
use waft::wire::{Listen, NewMark, Renewal};

use super::*;
use crate::kit::judge::faults;

/// Things that happen in one game before it is calm.
const STEPS: u32 = 300;
/// Rounds of calm after which everything must be over.
const CALM: u32 = 200;
const TASKS: [&str; 2] = ["fetch", "report"];
/// The tag of the first of them, and how many of it may be at work at one time.
const TAG: &str = "db";
const TAG_SLOTS: u32 = 2;
/// Runs of one agent.
const SLOTS: usize = 3;

struct Game {
    world: World,
    clock: Clock,
    dice: StdRng,
    crew: Vec<Sailor>,
    runs: Vec<FlowRunId>,
    /// Task runs whose end the server has taken.
    finished: HashSet<(FlowRunId, &'static str)>,
    faults: Vec<String>,
    /// What was ended by hand, or is to be.
    marked: u32,
}

/// An agent that keeps to the rules: it works while its lease is good, and tells in order.
struct Sailor {
    agent: Agent,
    name: String,
    works: Vec<Work>,
    outbox: VecDeque<Report>,
    /// What was sent, and may arrive again.
    sent: Vec<Vec<Report>>,
}

struct Work {
    lease: LeaseKey,
    /// Until when it may work, by its own clock.
    good_until: Monotonic,
    reports: u64,
    left: VecDeque<Step>,
    /// Whether its task was given a slot.
    has_slot: bool,
    /// Whether its task that needs a slot is at work.
    is_counted: bool,
}

#[derive(Clone, Copy)]
enum Step {
    Begin,
    Ask(&'static str),
    Start(&'static str),
    Finish(&'static str),
    /// Ends a task by what somebody said.
    Mark(&'static str, Event),
    End(Event),
}

impl Work {
    /// Does what somebody said about a task, in the place of what is left of it; nothing if it is done.
    fn obey(&mut self, task: &'static str, event: Event) {
        let is_of_it = |step: &Step| match step {
            Step::Ask(name) | Step::Start(name) | Step::Finish(name) => *name == task,
            Step::Begin | Step::Mark(..) | Step::End(_) => false,
        };
        let before = self.left.len();
        self.left.retain(|step| !is_of_it(step));
        if self.left.len() < before {
            let at = usize::from(matches!(self.left.front(), Some(Step::Begin)));
            self.left.insert(at, Step::Mark(task, event));
            self.is_counted &= task != TASKS[0];
        }
    }
}

#[tokio::test]
async fn games_of_a_fleet_end_well() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse().ok());
    let seeds = match number("WAFT_MODEL_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("WAFT_MODEL_SEEDS").unwrap_or(if ON_POSTGRES { 10 } else { 500 }),
    };
    let mut marked = 0;
    for seed in seeds.clone() {
        let mut game = Game::new(seed).await;
        for _ in 0..STEPS {
            game.step().await;
        }
        marked += game.marked;
        let faults = game.end().await;
        assert!(faults.is_empty(), "game {seed}:\n{}", faults.join("\n"));
    }
    assert!(
        marked > 0 || seeds.count() == 1,
        "nobody ended anything by hand"
    );
}

fn named(task: &str) -> &'static str {
    TASKS.into_iter().find(|name| *name == task).unwrap()
}

/// What an agent says of a task that asks for a slot.
fn asks(name: &str) -> Happening {
    let Happening::TaskRun(mut moved) = task(name, Event::Queue) else {
        panic!("not a task run");
    };
    moved.attempts = 0;
    Happening::TaskRun(moved)
}

/// What an agent says that hands a run back until there is a slot.
fn rest() -> Happening {
    Happening::FlowRun(FlowRunMoved {
        event: Event::Rest,
        message: format!("waits for a slot of the tag `{TAG}`"),
        code: None,
        result: None,
        delay_ms: u64::MAX,
    })
}

impl Game {
    async fn new(seed: u64) -> Self {
        let (clock, test) = Clock::test("2026-03-01T00:00:00Z".parse().unwrap());
        let world = World::with(clock.clone(), test).await;
        let mut asked = registration("etl");
        asked.definition.tasks[0].tags.insert(TAG.to_owned());
        world.client.register("demo", &asked).await.unwrap();
        let slots = Slots {
            slots: Some(TAG_SLOTS),
        };
        let set = world.client.set_tag_slots("demo", TAG, &slots).await;
        set.unwrap();
        let mut crew = Vec::new();
        for name in ["mira", "nas", "pi"] {
            crew.push(Sailor {
                agent: world.agent(name).await,
                name: name.to_owned(),
                works: Vec::new(),
                outbox: VecDeque::new(),
                sent: Vec::new(),
            });
        }
        Self {
            world,
            clock,
            dice: StdRng::seed_from_u64(seed),
            crew,
            runs: Vec::new(),
            finished: HashSet::new(),
            faults: Vec::new(),
            marked: 0,
        }
    }

    /// Lets one thing happen.
    async fn step(&mut self) {
        let who = self.dice.random_range(0..self.crew.len());
        match self.dice.random_range(0..100) {
            0..10 => self.create().await,
            10..25 => self.poll(who).await,
            25..32 => self.hear(who).await,
            32..35 => self.usher().await,
            35..60 => self.work(who),
            60..75 => self.deliver(who).await,
            75..80 => self.deliver_again(who).await,
            80..86 => self.renew(who).await,
            86..91 => {
                let seconds = self.dice.random_range(1..15);
                self.world.clock.pass(Duration::from_secs(seconds));
            }
            91..95 => drop(self.world.rescue().await),
            95..97 => self.die(who).await,
            97..98 => self.restart().await,
            98..99 => self.jump().await,
            _ if self.dice.random_bool(0.5) => self.cancel().await,
            _ => self.mark().await,
        }
    }

    /// Asks for a run, or for one that was asked for before.
    async fn create(&mut self) {
        let mut new = new_run("etl");
        let key = self.dice.random_range(0..40);
        new.idempotency_key = Some(format!("key-{key}"));
        let id = self.world.try_create(&new).await.unwrap().id;
        if !self.runs.contains(&id) {
            self.runs.push(id);
        }
    }

    async fn poll(&mut self, who: usize) {
        let now = self.clock.monotonic();
        let sailor = &mut self.crew[who];
        let free = SLOTS.saturating_sub(sailor.works.len()) as u32;
        let (client, session_id) = (&self.world.client, sailor.agent.session);
        let poll = Poll {
            session_id,
            free_slots: free,
            wait_seconds: 0,
        };
        if free == 0 {
            return;
        }
        for claimed in client.poll(&poll).await.unwrap().flow_runs {
            let is_over = |task: &str| {
                let own = claimed.task_runs.iter().find(|run| run.task == task);
                own.is_some_and(|run| run.state.is_over())
            };
            let mut left = VecDeque::from([Step::Begin]);
            for task in TASKS.into_iter().filter(|task| !is_over(task)) {
                if task == TASKS[0] {
                    assert_eq!(claimed.limited_tags, [TAG]);
                    left.push_back(Step::Ask(task));
                }
                left.extend([Step::Start(task), Step::Finish(task)]);
            }
            let end = if self.dice.random_bool(0.9) {
                Event::Succeed
            } else {
                Event::Fail
            };
            left.push_back(Step::End(end));
            let mut work = Work {
                lease: lease(&claimed),
                good_until: now + LEASE * 4 / 5,
                reports: 0,
                left,
                has_slot: false,
                is_counted: false,
            };
            for known in &claimed.task_runs {
                let said = known.decision.as_ref().and_then(|it| it.verdict.ends());
                if let (Some(event), false) = (said, known.state.is_over()) {
                    work.obey(named(&known.task), event);
                }
            }
            sailor.works.push(work);
        }
    }

    /// Goes one step on with a run whose lease is good, by the agent's clock.
    fn work(&mut self, who: usize) {
        let now = self.clock.monotonic();
        let sailor = &mut self.crew[who];
        // Whose lease is not good any more is stopped.
        sailor.works.retain(|work| work.good_until > now);
        if sailor.works.is_empty() {
            return;
        }
        let nth = self.dice.random_range(0..sailor.works.len());
        let work = &mut sailor.works[nth];
        let id = work.lease.flow_run_id;
        let waits = matches!(work.left.front(), Some(Step::Start(name)) if *name == TASKS[0]);
        let waits = waits && !work.has_slot;
        // Now and then it is waited for long enough.
        let rests = waits && self.dice.random_bool(0.1);
        if waits && !rests {
            return;
        }
        if rests {
            work.left.clear();
        }
        let step = work.left.pop_front();
        let what = match step.unwrap_or(Step::End(Event::Rest)) {
            Step::Begin => flow(Event::Start),
            Step::Ask(name) => asks(name),
            Step::End(Event::Rest) => rest(),
            Step::Start(name) => {
                if self.finished.contains(&(id, name)) {
                    let name = &sailor.name;
                    self.faults
                        .push(format!("run {id}: `{name}` does again what is finished"));
                }
                work.is_counted = name == TASKS[0];
                task(name, Event::Start)
            }
            Step::Finish(name) => {
                work.is_counted = false;
                task(name, Event::Succeed)
            }
            Step::Mark(name, event) => task(name, event),
            Step::End(event) => flow(event),
        };
        work.reports += 1;
        sailor.outbox.push_back(Report {
            lease: work.lease,
            number: work.reports,
            at: self.clock.now(),
            what,
        });
        if work.left.is_empty() {
            sailor.works.remove(nth);
        }
        let works = self.crew.iter().flat_map(|sailor| &sailor.works);
        let at_work = works.filter(|work| work.is_counted && work.good_until > now);
        let at_work = at_work.count();
        if at_work > TAG_SLOTS as usize {
            let name = TASKS[0];
            self.faults
                .push(format!("`{name}` is at work {at_work} times"));
        }
    }

    /// Hears who was given slots; says now and then what was heard before.
    async fn hear(&mut self, who: usize) {
        let sailor = &mut self.crew[who];
        let listen = Listen {
            session_id: sailor.agent.session,
            leases: sailor.works.iter().map(|work| work.lease).collect(),
            has_left: false,
            limited_seen: None,
            wait_seconds: 0,
        };
        let orders = self.world.client.listen(&listen).await.unwrap();
        sailor
            .works
            .retain(|work| !orders.lost.contains(&work.lease));
        for decided in orders.decisions {
            let event = decided.decision.verdict.ends().unwrap();
            let mut works = sailor.works.iter_mut();
            if let Some(work) = works.find(|work| work.lease == decided.lease) {
                work.obey(named(&decided.task_run.task), event);
            }
        }
        for given in orders.slots {
            let mut works = sailor.works.iter_mut();
            if let Some(work) = works.find(|work| work.lease == given.lease) {
                work.has_slot = true;
            }
        }
    }

    async fn usher(&self) {
        server::duty::usher::usher(&self.world.app).await.unwrap();
    }

    /// Sends what waits, or some of it; now and then the answer is lost.
    async fn deliver(&mut self, who: usize) {
        let sailor = &mut self.crew[who];
        if sailor.outbox.is_empty() {
            return;
        }
        let count = self.dice.random_range(1..=sailor.outbox.len());
        let reports: Vec<_> = sailor.outbox.drain(..count).collect();
        sailor.sent.push(reports.clone());
        let is_heard = self.send(who, reports.clone()).await;
        if !is_heard || self.dice.random_bool(0.2) {
            for report in reports.into_iter().rev() {
                self.crew[who].outbox.push_front(report);
            }
        }
    }

    /// Lets something arrive once more that was sent at some time.
    async fn deliver_again(&mut self, who: usize) {
        let sent = &self.crew[who].sent;
        if !sent.is_empty() {
            let nth = self.dice.random_range(0..sent.len());
            let reports = sent[nth].clone();
            self.send(who, reports).await;
        }
    }

    /// Sends reports, and follows the answer; answers whether there was one.
    async fn send(&mut self, who: usize, reports: Vec<Report>) -> bool {
        let sailor = &mut self.crew[who];
        let batch = ReportBatch {
            session_id: sailor.agent.session,
            reports: reports.clone(),
        };
        let Ok(answer) = self.world.client.report(&batch).await else {
            return false;
        };
        for report in &reports {
            if let Happening::TaskRun(moved) = &report.what
                && moved.event == Event::Succeed
                && !answer.lost.contains(&report.lease)
            {
                let name = named(&moved.task_run.task);
                self.finished.insert((report.lease.flow_run_id, name));
            }
        }
        let gone = |lease: &LeaseKey| answer.lost.contains(lease) || answer.lapsed.contains(lease);
        sailor.works.retain(|work| !gone(&work.lease));
        sailor
            .outbox
            .retain(|report| !answer.lost.contains(&report.lease));
        true
    }

    async fn renew(&mut self, who: usize) {
        let now = self.clock.monotonic();
        let sailor = &mut self.crew[who];
        let renewal = Renewal {
            session_id: sailor.agent.session,
            leases: sailor.works.iter().map(|work| work.lease).collect(),
        };
        let renewed = self.world.client.renew(&renewal, LEASE).await.unwrap();
        let gone =
            |lease: &LeaseKey| renewed.lost.contains(lease) || renewed.lapsed.contains(lease);
        sailor.works.retain(|work| !gone(&work.lease));
        for work in sailor.works.iter_mut().filter(|work| work.good_until > now) {
            work.good_until = now + LEASE * 4 / 5;
        }
    }

    /// Kills an agent and starts it anew; what it had to tell is lost, unless the network has it.
    async fn die(&mut self, who: usize) {
        let sailor = &mut self.crew[who];
        sailor.agent = match self.dice.random_bool(0.5) {
            true => self.world.agent_after(&sailor.name, &sailor.agent).await,
            false => self.world.agent(&sailor.name).await,
        };
        sailor.works.clear();
        sailor.outbox.clear();
    }

    /// Starts the server anew, after its death.
    async fn restart(&mut self) {
        self.world.restart(self.clock.clone()).await;
        server::duty::rescuer::extend(&self.world.app)
            .await
            .unwrap();
    }

    /// Sets the wall clock an hour ahead or back; agents count by what has passed.
    async fn jump(&mut self) {
        let hour = SignedDuration::from_hours(1);
        let by = [hour, -hour][self.dice.random_range(0..2)];
        self.world.clock.jump(self.clock.now() + by);
        if by.is_negative() {
            timekeeper::set_back(&self.world.app).await.unwrap();
        }
    }

    async fn cancel(&mut self) {
        if !self.runs.is_empty() {
            let nth = self.dice.random_range(0..self.runs.len());
            // One that is over refuses.
            let _ = self.world.client.cancel(self.runs[nth]).await;
        }
    }

    /// Has somebody end a run by hand, or a task of it.
    async fn mark(&mut self) {
        if self.runs.is_empty() {
            return;
        }
        let nth = self.dice.random_range(0..self.runs.len());
        let task = TASKS.get(self.dice.random_range(0..3));
        let mark = NewMark {
            task_runs: task.iter().map(|task| task.parse().unwrap()).collect(),
            state: Verdict::MARKS[self.dice.random_range(0..4)],
            output: None,
            reason: String::new(),
        };
        // What is over refuses.
        if self.world.client.mark(self.runs[nth], &mark).await.is_ok() {
            self.marked += 1;
        }
    }

    /// Tells whether all these runs are over, and forgets those that are.
    async fn are_over(&self, open: &mut Vec<FlowRunId>) -> bool {
        while let Some(id) = open.last() {
            if !self.world.run(*id).await.state.is_over() {
                return false;
            }
            open.pop();
        }
        true
    }

    /// Lets everybody finish, and lists what is wrong.
    async fn end(mut self) -> Vec<String> {
        let mut open = self.runs.clone();
        for _ in 0..CALM {
            if self.are_over(&mut open).await {
                break;
            }
            for who in 0..self.crew.len() {
                self.renew(who).await;
                self.poll(who).await;
                self.hear(who).await;
                for _ in 0..2 * SLOTS {
                    self.work(who);
                }
                let all: Vec<_> = self.crew[who].outbox.drain(..).collect();
                if !all.is_empty() {
                    self.send(who, all).await;
                }
            }
            self.usher().await;
            self.world.clock.pass(Duration::from_secs(1));
            self.world.rescue().await;
        }
        for id in std::mem::take(&mut self.runs) {
            let run = self.world.run(id).await;
            let history = self.world.history(id).await;
            let mut wrong = faults(id, &history, run.state, None);
            let lost = history
                .iter()
                .filter(|step| step.event == Some(Event::Lose))
                .count();
            let is_good = match run.state {
                State::Success | State::Failed | State::Cancelled => true,
                // Nobody but a person skips one of these.
                State::Skipped => history.last().unwrap().by == "first",
                State::Crashed => lost >= LOST_MAX as usize,
                _ => false,
            };
            if !is_good {
                wrong.push(format!("it is {} after {lost} losses", run.state));
            }
            if !wrong.is_empty() {
                let story = self.world.story(id).await;
                self.faults
                    .push(format!("run {id}: {}\n{story}", wrong.join("; ")));
            }
        }
        self.faults
    }
}
