//! The storm: real servers and agents die by `kill -9` and freeze past their leases, their clocks jump, and what
//! lies between them and under them fails, by dice, while runs go through; then it is calm, and the history of
//! every run is checked.
//!
//! Short where nothing else is said. `WAFT_STORM_FAULTS` and `WAFT_STORM_RUNS` make it longer,
//! `WAFT_STORM_SEED` throws the dice of an earlier one.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::str::FromStr;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use rand::rngs::StdRng;
use rand::seq::{IndexedRandom as _, SliceRandom as _};
use rand::{Rng as _, SeedableRng as _};
use serde_json::json;
use tokio::sync::watch;
use waft::client::{Client, ClientError};
use waft::clock::Clock;
use waft::model::id::{FlowRunId, SessionId};
use waft::model::run::{FlowRunMoved, Happening};
use waft::model::state::{Event, State};
use waft::wire::{LeaseKey, ListQuery, Poll, Report as WireReport, ReportBatch};

use crate::kit::judge::{JUMP, judge};
use crate::kit::postgres;
use crate::kit::program::{Ground, Process, Processes};
use crate::kit::proxy::{Proxy, Weather};
use crate::kit::witness::{hello, new_run};

const LEASE: Duration = Duration::from_secs(3);
/// Beats that an agent is frozen or cut off: three leases, so that it has lost what it had.
const WRETCHED: u32 = 9;
/// Time from one fault to the next.
const BEAT: Duration = Duration::from_secs(1);
/// After the last fault: a few leases, and the work that is left, on a machine that has other work too.
const CALM: Duration = Duration::from_secs(300);
const AGENTS: usize = 3;
/// Runs of an agent at one time: so many are hit by one fault.
const SLOTS: &str = "16";
/// Milliseconds that each of the five tasks of a run works.
const WORK_MS: u64 = 30;

/// The agent that holds to nothing.
const GHOST: &str = "ghost";
/// Runs whose stories are told when something is wrong with many.
const TOLD_MAX: usize = 3;

/// How large a storm is.
struct Size {
    faults: u32,
    runs: u32,
    seed: u64,
}

impl Size {
    fn of_environment() -> Self {
        Self {
            faults: setting("WAFT_STORM_FAULTS").unwrap_or(16),
            runs: setting("WAFT_STORM_RUNS").unwrap_or(120),
            seed: setting("WAFT_STORM_SEED").unwrap_or_else(rand::random),
        }
    }
}

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Fault {
    ServerKilled,
    AgentKilled,
    AgentFrozen,
    Weather(Weather),
    /// The wall clock of a server jumps by an hour, there or back.
    ServerClock,
    AgentClock,
    /// The database ends at once and comes back.
    DatabaseRestarted,
    /// It takes some seconds until it is back.
    DatabaseAway,
    ConnectionsEnded,
}

impl Fault {
    /// Each as often as it is to come up.
    const ANYWHERE: [Self; 15] = [
        Self::ServerKilled,
        Self::ServerKilled,
        Self::ServerKilled,
        Self::AgentKilled,
        Self::AgentKilled,
        Self::AgentKilled,
        Self::AgentFrozen,
        Self::AgentFrozen,
        Self::AgentFrozen,
        Self::Weather(Weather::Late),
        Self::Weather(Weather::Mute),
        Self::Weather(Weather::Cut),
        Self::Weather(Weather::HalfClosed),
        Self::ServerClock,
        Self::AgentClock,
    ];
    const ON_POSTGRES: [Self; 4] = [
        Self::DatabaseRestarted,
        Self::DatabaseRestarted,
        Self::DatabaseAway,
        Self::ConnectionsEnded,
    ];

    /// Lists so many faults, each kind at least once as far as there is room.
    fn many(count: u32, is_on_postgres: bool, dice: &mut StdRng) -> Vec<Self> {
        let mut kinds = Self::ANYWHERE.to_vec();
        if is_on_postgres {
            kinds.extend(Self::ON_POSTGRES);
        }
        let mut all = kinds.clone();
        all.sort_unstable();
        all.dedup();
        all.shuffle(dice);
        while all.len() < count as usize {
            all.extend(kinds.choose(dice));
        }
        all.truncate(count as usize);
        all.shuffle(dice);
        all
    }
}

/// An agent, and its way to the server.
struct Sailor {
    name: String,
    process: Option<Process>,
    way: Proxy,
    /// Beats until it is thawed, its weather clear, and its clock right.
    wretched: u32,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_storm_on_a_server_with_its_file() {
    let ground = Ground {
        has_clocks: true,
        ..Ground::default()
    };
    println!(
        "{}",
        storm(Processes::start_on(ground, LEASE, 1).await).await
    );
}

/// Whoever knew a server that dies is led to the other one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_storm_on_two_servers_of_one_postgres() {
    let ground = Ground {
        postgres: Some(postgres::own().await),
        has_clocks: true,
        ..Ground::default()
    };
    println!(
        "{}",
        storm(Processes::start_on(ground, LEASE, 2).await).await
    );
}

/// Lets it rage, and checks what it has left; answers with what it was like.
async fn storm(mut world: Processes) -> String {
    let size = Size::of_environment();
    let mut dice = StdRng::seed_from_u64(size.seed);
    // No instant that is told is earlier, be a clock a moment behind.
    let since = Clock::default().now() - SignedDuration::from_mins(1);
    world.register("storm").await;
    let mut crew = Vec::new();
    for nth in 0..AGENTS {
        let server = world.address(nth % world.servers());
        crew.push(Sailor::new(&world, format!("agent-{nth}"), server).await);
    }
    let asked = tokio::spawn(ask(world.client.clone(), size.runs, size.faults));
    world.until_polling("agent-0").await;
    let (calm, is_calm) = watch::channel(false);
    let ghost = tokio::spawn(haunt(world.client.clone(), is_calm));

    let is_on_postgres = world.ground().postgres.is_some();
    let faults = Fault::many(size.faults, is_on_postgres, &mut dice);
    let mut count: BTreeMap<_, u32> = BTreeMap::new();
    let mut ahead = vec![SignedDuration::ZERO; world.servers()];
    for fault in faults {
        tokio::time::sleep(BEAT).await;
        for sailor in &mut crew {
            sailor.passes(&world);
        }
        *count.entry(fault).or_default() += 1;
        let whose = dice.random_range(0..AGENTS);
        let nth = whose % world.servers();
        let sailor = &mut crew[whose];
        match fault {
            Fault::ServerKilled => {
                world.kill_nth(nth);
                for sailor in &crew {
                    sailor
                        .way
                        .leads_to(world.address((nth + 1) % world.servers()));
                }
                tokio::time::sleep(Duration::from_millis(dice.random_range(0..500))).await;
                world.start_nth(nth).await;
                ahead[nth] = SignedDuration::ZERO;
            }
            Fault::AgentKilled => sailor.starts_anew(&world),
            Fault::AgentFrozen => sailor.freeze(),
            Fault::Weather(weather) => sailor.meets(weather),
            Fault::ServerClock => {
                ahead[nth] = match ahead[nth].is_zero() {
                    true => JUMP * [-1, 1][dice.random_range(0..2)],
                    false => SignedDuration::ZERO,
                };
                world.nth(nth).expect("it lives").set_clock(ahead[nth]);
            }
            Fault::AgentClock => sailor.loses_time(JUMP * [-1, 1][dice.random_range(0..2)]),
            Fault::DatabaseRestarted | Fault::DatabaseAway => {
                let database = world.ground().postgres.as_ref().expect("it is there");
                database.stop();
                let told = tokio::spawn(away(world.client.clone()));
                if fault == Fault::DatabaseAway {
                    tokio::time::sleep(BEAT * dice.random_range(1..5)).await;
                }
                database.run().await;
                told.await.unwrap();
            }
            Fault::ConnectionsEnded => {
                let database = world.ground().postgres.as_ref().expect("it is there");
                database.cut().await;
            }
        }
    }
    for sailor in &mut crew {
        sailor.recovers(&world);
    }
    for nth in 0..world.servers() {
        world
            .nth(nth)
            .expect("it lives")
            .set_clock(SignedDuration::ZERO);
    }
    let asked = asked.await.unwrap();
    calm.send_replace(true);
    let ended = tokio::time::timeout(CALM, all_end(&world, &asked)).await;
    let is_stuck = ended.is_err();
    let ghost = tokio::time::timeout(CALM, ghost).await;
    let ghost = ghost.expect("no lease lasts for ever").unwrap();
    let mut verdict = judge(&world, &asked, since).await;
    let lasted = Clock::default().now().duration_since(since);
    assert!(lasted < JUMP, "instants are told apart for so long only");
    let mut wrong = std::mem::take(&mut verdict.wrong);
    wrong.extend(ghost.taken);
    let stale = ghost.tried;
    let told = format!(
        "seed {}: {count:?}; {verdict:?}; {stale} stale reports tried",
        size.seed
    );
    let (harmed, first) = (wrong.len(), wrong.iter().take(TOLD_MAX));
    let first: Vec<_> = first.map(String::as_str).collect();
    assert!(!is_stuck, "runs are stuck: {told}\n{}", first.join("\n"));
    assert!(stale > 0, "nothing stale was tried");
    assert!(
        wrong.is_empty(),
        "it did harm to {harmed} runs: {told}\n{}",
        first.join("\n")
    );
    told
}

/// Asks a server whose database is away: it says so, or waits until it is back.
async fn away(client: Client) {
    if let Err(refused) = client.list_projects(&ListQuery::default()).await {
        let code = refused.code();
        let is_told = code.is_none() || code == Some("database-away");
        assert!(is_told, "{refused:?}");
    }
}

impl Sailor {
    async fn new(world: &Processes, name: String, server: SocketAddr) -> Self {
        let mut sailor = Self {
            name,
            process: None,
            way: Proxy::open(server).await,
            wretched: 0,
        };
        sailor.starts_anew(world);
        sailor
    }

    /// Starts its process, after the death of the one before.
    fn starts_anew(&mut self, world: &Processes) {
        drop(self.process.take());
        let (url, token) = (self.way.url(), world.token());
        let words = ["--limit", SLOTS, "--server", &url, "--token", token];
        self.process = Some(world.agent_with(&self.name, &words));
    }

    fn process(&self) -> &Process {
        self.process.as_ref().expect("it was started")
    }

    fn freeze(&mut self) {
        self.process().freeze();
        self.wretched = WRETCHED;
    }

    fn meets(&mut self, weather: Weather) {
        self.way.turns(weather);
        self.wretched = WRETCHED;
    }

    fn loses_time(&mut self, ahead: SignedDuration) {
        self.process().set_clock(ahead);
        self.wretched = WRETCHED;
    }

    fn recovers(&mut self, world: &Processes) {
        self.process().thaw();
        self.process().set_clock(SignedDuration::ZERO);
        self.way.turns(Weather::Clear);
        self.wretched = 0;
        self.is_there(world);
    }

    /// Starts a process anew that has ended by itself: one that could not keep its name, or had no disk.
    fn is_there(&mut self, world: &Processes) {
        if self.process.as_mut().is_some_and(Process::has_ended) {
            self.starts_anew(world);
        }
    }

    /// A beat has passed.
    fn passes(&mut self, world: &Processes) {
        self.is_there(world);
        match self.wretched {
            0 => {}
            1 => self.recovers(world),
            beats => self.wretched = beats - 1,
        }
    }
}

/// Asks for runs for as long as the storm is to last; a wish that the server did not answer is repeated.
/// Returns those that it said it made.
async fn ask(client: Client, runs: u32, beats: u32) -> Vec<FlowRunId> {
    let gap = BEAT * beats / runs.max(1);
    let mut made = Vec::new();
    for nth in 0..runs {
        let mut new = new_run("storm", json!({"millis": WORK_MS}));
        new.idempotency_key = Some(format!("storm-{nth}"));
        let run = loop {
            match client.create_flow_run(&new).await {
                Ok(run) => break run,
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        };
        made.push(run.id);
        tokio::time::sleep(gap).await;
    }
    made
}

/// What became of the reports of a ghost.
#[derive(Default)]
struct Ghost {
    tried: usize,
    /// Those that the server did not refuse.
    taken: Vec<String>,
}

/// Claims runs like an agent, lets its leases lapse, and then says that the runs went well.
async fn haunt(client: Client, mut is_calm: watch::Receiver<bool>) -> Ghost {
    let mut ghost = Ghost::default();
    let mut session = None;
    let mut claims = VecDeque::new();
    let mut beats = 0;
    while !*is_calm.borrow() || !claims.is_empty() {
        let _ =
            tokio::time::timeout(BEAT, is_calm.wait_for(|calm| *calm && claims.is_empty())).await;
        beats += 1;
        // While the server is away, and after each of its restarts, a ghost has to introduce itself.
        let Some(id) = session else {
            session = appear(&client).await.ok();
            continue;
        };
        if !*is_calm.borrow() {
            let poll = Poll {
                session_id: id,
                free_slots: 2,
                wait_seconds: 1,
            };
            match client.poll(&poll).await {
                Ok(claimed) => claims.extend(
                    claimed
                        .flow_runs
                        .iter()
                        .map(|run| (beats, run.flow_run_id, run.epoch)),
                ),
                Err(_) => session = None,
            }
        }
        while let Some((since, flow_run_id, epoch)) = claims.front().copied()
            && since + WRETCHED < beats
            && is_lost(&client, flow_run_id, epoch).await
        {
            let lease = LeaseKey { flow_run_id, epoch };
            let what = Happening::FlowRun(FlowRunMoved {
                event: Event::Succeed,
                message: "boo".to_owned(),
                code: None,
                result: None,
                delay_ms: 0,
            });
            let report = WireReport {
                lease,
                number: 1,
                at: Timestamp::UNIX_EPOCH,
                what,
            };
            let batch = ReportBatch {
                session_id: id,
                reports: vec![report],
            };
            let Ok(answer) = client.report(&batch).await else {
                session = None;
                break;
            };
            claims.pop_front();
            ghost.tried += 1;
            if !answer.lost.contains(&lease) && !answer.lapsed.contains(&lease) {
                ghost.taken.push(format!(
                    "a report of run {flow_run_id}, epoch {epoch}, was taken from a ghost"
                ));
            }
        }
    }
    ghost
}

/// Tells whether a claim is over: where servers were away meanwhile, its lease has begun anew.
async fn is_lost(client: &Client, id: FlowRunId, epoch: u32) -> bool {
    match client.flow_run(id).await {
        Ok(run) => run.claims != epoch || run.state != State::Claimed,
        Err(_) => false,
    }
}

/// Opens a session that offers what the first agent offers.
async fn appear(client: &Client) -> Result<SessionId, ClientError> {
    let agents = client.list_agents(&ListQuery::default()).await?.items;
    let offer = agents
        .into_iter()
        .find(|agent| agent.name == "agent-0")
        .map(|agent| agent.offer);
    let new = hello(GHOST, offer.unwrap_or_default());
    Ok(client.open_session(&new).await?.session_id)
}

/// Waits until all runs are over.
pub(crate) async fn all_end(world: &Processes, asked: &[FlowRunId]) {
    for id in asked {
        while !world.client.flow_run(*id).await.unwrap().state.is_over() {
            // One look at each is enough: they end together.
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

pub(crate) fn setting<T: FromStr>(name: &str) -> Option<T> {
    let text = std::env::var(name).ok()?;
    match text.parse() {
        Ok(value) => Some(value),
        Err(_) => panic!("{name} is no number: {text}"),
    }
}
