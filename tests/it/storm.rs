//! The storm: real servers and agents die by `kill -9` and freeze past their leases, and what lies between
//! them fails, by dice, while runs go through; then it is calm, and the history of every run is checked.
//!
//! Short where nothing else is said. `WAFT_STORM_FAULTS` and `WAFT_STORM_RUNS` make it longer,
//! `WAFT_STORM_SEED` throws the dice of an earlier one.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::net::SocketAddr;
use std::str::FromStr;
use std::time::Duration;

use jiff::Timestamp;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use serde_json::json;
use tokio::sync::watch;
use waft::client::{Client, ClientError};
use waft::model::id::{FlowRunId, SessionId};
use waft::model::limit::LOST_MAX;
use waft::model::run::{FlowRunMoved, Happening, TaskRunKey};
use waft::model::state::{Event, State};
use waft::wire::{
    FlowRun, LeaseKey, ListQuery, NewSession, PROTOCOL, Poll, Report as WireReport, ReportBatch,
    Transition,
};

use crate::kit::program::{Process, Processes, lines_of};
use crate::kit::proxy::{Proxy, Weather};
use crate::kit::witness::{epoch_faults, history_faults, new_run};

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
            faults: setting("WAFT_STORM_FAULTS").unwrap_or(12),
            runs: setting("WAFT_STORM_RUNS").unwrap_or(120),
            seed: setting("WAFT_STORM_SEED").unwrap_or_else(rand::random),
        }
    }
}

/// An agent, and its way to the server.
struct Sailor {
    name: String,
    process: Option<Process>,
    way: Proxy,
    /// Beats until it is thawed and its weather clear.
    wretched: u32,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_storm_on_a_server_with_its_file() {
    println!("{}", storm(Processes::start(LEASE).await).await);
}

/// Whoever knew a server that dies is led to the other one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_storm_on_two_servers_of_one_postgres() {
    let world = Processes::start_on_postgres(LEASE, 2).await;
    println!("{}", storm(world).await);
}

/// Lets it rage, and checks what it has left; answers with what it was like.
async fn storm(mut world: Processes) -> String {
    let size = Size::of_environment();
    let mut dice = StdRng::seed_from_u64(size.seed);
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

    let mut faults: BTreeMap<_, u32> = BTreeMap::new();
    for _ in 0..size.faults {
        tokio::time::sleep(BEAT).await;
        for sailor in &mut crew {
            sailor.passes(&world);
        }
        let whose = dice.random_range(0..AGENTS);
        let sailor = &mut crew[whose];
        let fault = match dice.random_range(0..10) {
            0..2 => {
                let nth = whose % world.servers();
                world.kill_nth(nth);
                for sailor in &crew {
                    sailor
                        .way
                        .leads_to(world.address((nth + 1) % world.servers()));
                }
                tokio::time::sleep(Duration::from_millis(dice.random_range(0..500))).await;
                world.start_nth(nth).await;
                "server killed".to_owned()
            }
            2..4 => {
                sailor.starts_anew(&world);
                "agent killed".to_owned()
            }
            4..7 => {
                sailor.freeze();
                "agent frozen".to_owned()
            }
            _ => {
                let weather = Weather::BAD[dice.random_range(0..Weather::BAD.len())];
                sailor.meets(weather);
                format!("{weather:?}")
            }
        };
        *faults.entry(fault).or_default() += 1;
    }
    for sailor in &mut crew {
        sailor.recovers(&world);
    }
    let asked = asked.await.unwrap();
    calm.send_replace(true);
    let ended = tokio::time::timeout(CALM, all_end(&world, &asked)).await;
    assert!(
        ended.is_ok(),
        "runs are stuck after the storm of seed {}",
        size.seed
    );
    let ghost = ghost.await.unwrap();
    let runs = world.runs().await;
    let (report, mut wrong) = Report::of(&world, &asked, &runs).await;
    wrong.extend(ghost.taken);
    let stale = ghost.tried;
    let told = format!(
        "seed {}: {faults:?}; {report:?}; {stale} stale reports tried",
        size.seed
    );
    assert!(stale > 0, "nothing stale was tried");
    let (count, first) = (wrong.len(), wrong.iter().take(TOLD_MAX));
    assert!(
        wrong.is_empty(),
        "it did harm to {count} runs: {told}\n{}",
        first.map(String::as_str).collect::<Vec<_>>().join("\n")
    );
    told
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

    fn recovers(&mut self, world: &Processes) {
        self.process().thaw();
        self.way.turns(Weather::Clear);
        self.wretched = 0;
        self.is_there(world);
    }

    /// Starts a process anew that gave up, since no server answered its hello.
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

/// Opens a session that offers what the first agent offers.
async fn appear(client: &Client) -> Result<SessionId, ClientError> {
    let agents = client.list_agents(&ListQuery::default()).await?.items;
    let offer = agents
        .into_iter()
        .find(|agent| agent.name == "agent-0")
        .map(|agent| agent.offer);
    let new = NewSession {
        name: GHOST.to_owned(),
        hostname: "host".to_owned(),
        version: "0.1.0".to_owned(),
        protocol: PROTOCOL,
        offer: offer.unwrap_or_default(),
        slots: 2,
        replaces: None,
        is_start: true,
        rests: Vec::new(),
    };
    Ok(client.open_session(&new).await?.session_id)
}

/// Waits until all runs are over.
async fn all_end(world: &Processes, asked: &[FlowRunId]) {
    for id in asked {
        while !world.client.flow_run(*id).await.unwrap().state.is_over() {
            // One look at each is enough: they end together.
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

/// What the histories say.
#[derive(Debug, Default)]
struct Report {
    succeeded: usize,
    /// Given up, since agents died with them once too often.
    given_up: usize,
    /// Claims that were taken away.
    lost: usize,
    /// Attempts that were begun, by what they left behind.
    begun: usize,
}

impl Report {
    /// Reads the histories of all runs that were asked for, and lists what is wrong with them.
    async fn of(world: &Processes, asked: &[FlowRunId], runs: &[FlowRun]) -> (Self, Vec<String>) {
        let mut report = Self::default();
        let mut faults = Vec::new();
        if runs.len() != asked.len() {
            let (there, asked) = (runs.len(), asked.len());
            faults.push(format!("{asked} runs were asked for, there are {there}"));
        }
        let begun = begun(&lines_of(&world.out_log()));
        report.begun = begun.values().map(Vec::len).sum();
        for id in asked {
            let Some(run) = runs.iter().find(|run| run.id == *id) else {
                faults.push(format!("run {id} is lost"));
                continue;
            };
            let history = world.transitions(*id).await;
            let mut wrong = history_faults(&history, run.state);
            wrong.extend(epoch_faults(&history));
            wrong.extend(doubled(*id, &history, &begun));
            let lost = history
                .iter()
                .filter(|step| step.event == Some(Event::Lose));
            let lost = lost.count();
            report.lost += lost;
            match run.state {
                State::Success => report.succeeded += 1,
                State::Crashed if lost >= LOST_MAX as usize => report.given_up += 1,
                state => wrong.push(format!("it is {state}, after {lost} losses")),
            }
            if !wrong.is_empty() {
                let (wrong, story) = (wrong.join("; "), world.story(*id).await);
                faults.push(format!("run {id}: {wrong}\n{story}"));
            }
        }
        (report, faults)
    }
}

/// When attempts of each task run were begun, as their side effects tell it.
pub(crate) fn begun(log: &[String]) -> HashMap<(FlowRunId, String), Vec<Timestamp>> {
    let mut begun: HashMap<_, Vec<_>> = HashMap::new();
    for line in log {
        let words: Vec<_> = line.split(' ').collect();
        // Who is killed while it writes leaves half a line.
        let [run, task, _, micros] = words[..] else {
            continue;
        };
        let (Ok(run), Ok(micros)) = (FlowRunId::from_str(run), micros.parse()) else {
            continue;
        };
        let at = Timestamp::from_microsecond(micros).unwrap();
        begun.entry((run, task.to_owned())).or_default().push(at);
    }
    begun
}

/// Lists task runs that were begun again after the server had taken their end, or that the server says went
/// well though nobody began them.
pub(crate) fn doubled(
    id: FlowRunId,
    history: &[Transition],
    begun: &HashMap<(FlowRunId, String), Vec<Timestamp>>,
) -> Vec<String> {
    let mut wrong = Vec::new();
    let ends = history
        .iter()
        .filter(|step| step.event == Some(Event::Succeed));
    for end in ends {
        let Some(TaskRunKey { task, .. }) = &end.task_run else {
            continue;
        };
        let times = begun.get(&(id, task.clone()));
        let times = times.map(Vec::as_slice).unwrap_or_default();
        if times.is_empty() {
            wrong.push(format!("`{task}` went well and was never begun"));
        }
        if let Some(again) = times.iter().find(|at| **at > end.at) {
            wrong.push(format!(
                "`{task}` had ended at {}, and was begun again at {again}",
                end.at
            ));
        }
    }
    wrong
}

fn setting<T: FromStr>(name: &str) -> Option<T> {
    let text = std::env::var(name).ok()?;
    match text.parse() {
        Ok(value) => Some(value),
        Err(_) => panic!("{name} is no number: {text}"),
    }
}
