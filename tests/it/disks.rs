//! Disks that give way under a server or an agent: full, cut off from power in the middle of a write, damaged.
//!
//! What was acknowledged is there afterwards, and who can help is told how. `WAFT_STORM_FAULTS` sets how often
//! the power is cut.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use rand::Rng as _;
use serde_json::json;
use tokio::task::JoinHandle;

use waft::client::{Client, ClientError, Refused};
use waft::clock::Clock;
use waft::model::id::FlowRunId;
use waft::model::state::State;
use waft::wire::{ListQuery, NewProject};

use crate::kit::disk::SmallDisk;
use crate::kit::judge::judge;
use crate::kit::program::{Ground, Process, Processes, WAFT, line_with, lines, lines_of};
use crate::kit::wal::{Tail, log_of, shared_of};
use crate::kit::witness::{new_run, patient};
use crate::storm::{all_end, setting};

const LEASE: Duration = Duration::from_secs(3);
const MIB: u64 = 1024 * 1024;
/// Milliseconds that each of the five tasks of a run works.
const WORK_MS: u64 = 20;
/// How many ask for runs at the same time.
const ASKERS: usize = 4;

/// The disk fills up while runs go through: what is not written is refused in so many words, and everything goes
/// on once there is room, be it that the server was killed meanwhile.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_outlasts_a_disk_that_is_full() {
    let since = a_minute_ago();
    let ground = Ground {
        disk: Some(SmallDisk::mount(12 * MIB).await),
        ..Ground::default()
    };
    let mut world = Processes::start_on(ground, LEASE, 1).await;
    world.register("storm").await;
    let _mira = world.agent("mira");
    world.until_polling("mira").await;
    let mut asked = Vec::new();
    for round in 0..2 {
        for nth in 0..8 {
            asked.push(ask(&world.client, &format!("{round}-{nth}")).await.unwrap());
        }
        lines(&world.out_log(), asked.len()).await;
        let disk = world.ground().disk.as_ref().unwrap();
        disk.fill();
        let refused = fills_up(&world.client, round, &mut asked).await;
        assert_eq!(refused.code, "storage-full");
        for words in ["nothing was written", "disk", "full"] {
            assert!(refused.message.contains(words), "{}", refused.message);
        }
        let hint = refused.hint.unwrap();
        assert!(hint.contains("make room on that disk"), "{hint}");
        line_with(&world.server_log(), "the disk of the database is full").await;
        // Reading goes on.
        assert_eq!(world.runs().await.len(), asked.len());
        if round == 1 {
            world.kill_server();
            let disk = world.ground().disk.as_ref().unwrap();
            disk.fill();
            world.begin_nth(0);
            assert_eq!(world.server_ends().await, Some(1));
            line_with(&world.server_log(), "error: the disk of the database").await;
            line_with(&world.server_log(), "hint: make room on its disk").await;
        }
        let disk = world.ground().disk.as_ref().unwrap();
        disk.make_room();
        if round == 1 {
            world.start_server().await;
        }
        patient("all runs", all_end(&world, &asked)).await;
    }
    let said = lines_of(&world.server_log());
    let again = said.iter().filter(|line| line.contains("has room again"));
    assert!(again.count() >= 1, "{said:#?}");
    let verdict = judge(&world, &asked, since).await;
    assert!(verdict.wrong.is_empty(), "{}", verdict.wrong.join("\n"));
}

/// Asks for runs until the disk is full; returns the refusal.
async fn fills_up(client: &Client, round: usize, asked: &mut Vec<FlowRunId>) -> Refused {
    let refused = async {
        for nth in 0.. {
            match ask(client, &format!("full-{round}-{nth}")).await {
                Ok(id) => asked.push(id),
                Err(ClientError::Refused(refused)) => return refused,
                Err(other) => panic!("{other}"),
            }
        }
        unreachable!("it is full some time")
    };
    patient("a disk that is full", refused).await
}

/// An agent whose own disk is full gives back what it cannot keep, says so, and goes on once there is room.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_outlasts_a_disk_that_is_full() {
    let world = Processes::start(LEASE).await;
    world.register("echo").await;
    let disk = SmallDisk::mount(48 * MIB).await;
    let said = world.folder().join("said");
    let mut mira = agent_on(&disk, &world, &said);
    world.until_polling("mira").await;
    // An output that finds no room in what is left of a page.
    let large = json!({"text": "x".repeat(20_000)});
    let first = world.run("echo", large.clone()).await;
    world.ends_as(first, State::Success).await;

    disk.fill();
    let id = world.run("echo", large.clone()).await;
    waits_for_room(&world, id).await;
    assert!(!mira.has_ended(), "{:#?}", lines_of(&said));
    disk.make_room();
    world.ends_as(id, State::Success).await;

    // Full when it begins, too.
    mira.kill();
    disk.fill();
    let mira = agent_on(&disk, &world, &said);
    let id = world.run("echo", large).await;
    waits_for_room(&world, id).await;
    disk.make_room();
    world.ends_as(id, State::Success).await;
    assert_eq!(mira.terminate().await, Some(0));
    let faults = world.faults().await;
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

/// Waits until it is said of a run that the disk of the agent's results is full, and what helps.
async fn waits_for_room(world: &Processes, id: FlowRunId) {
    let last = Mutex::new(String::new());
    let told = async {
        loop {
            let explained = world.client.explain(id).await.unwrap();
            let words = format!("{} {:?}", explained.summary, explained.hints);
            if ["`mira`", "results` is full", "df -h"]
                .iter()
                .all(|word| words.contains(word))
            {
                return;
            }
            *last.lock().unwrap() = words;
            // Nobody can watch what is explained.
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let told = tokio::time::timeout(Duration::from_secs(60), told).await;
    assert!(told.is_ok(), "all that was said: {}", last.lock().unwrap());
}

/// Starts an agent whose home is on a disk.
fn agent_on(disk: &SmallDisk, world: &Processes, said: &Path) -> Process {
    let mut command = disk.command(WAFT);
    let out = format!("{}::/out:rw", world.out().display());
    let flows = format!("file://{}", world.home().join("flows").display());
    let log = std::fs::File::options()
        .create(true)
        .append(true)
        .open(said);
    command
        .args(["agent", "start", "--name", "mira", "--allow-dir", &out])
        .args(["--root", &flows, "--server", world.client.url()])
        .args(["--token", world.token()])
        .env("WAFT_HOME", disk.inside().join("home"))
        .env_remove("WAFT__SERVER__URL")
        .env_remove("WAFT__SERVER__TOKEN")
        .stderr(log.unwrap());
    Process::spawn(&mut command)
}

/// The machine of the server loses its power again and again, and its disk what was not safe on it; some of that is
/// left all the same, and is no good. Whatever a client was told is there afterwards.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_acknowledged_outlasts_power_cuts() {
    let since = a_minute_ago();
    let ground = Ground {
        has_power: true,
        ..Ground::default()
    };
    let mut world = Processes::start_on(ground, LEASE, 1).await;
    world.register("storm").await;
    let _mira = world.agent("mira");
    world.until_polling("mira").await;
    let told = Arc::new(Told::default());
    let askers: Vec<_> = (0..ASKERS)
        .map(|nth| keeps_asking(world.client.clone(), nth, told.clone()))
        .collect();
    let watcher = keeps_watching(world.client.clone(), told.clone());
    let cuts = setting("WAFT_STORM_FAULTS").unwrap_or(2 * Tail::ALL.len());
    for (nth, tail) in Tail::ALL.into_iter().cycle().take(cuts).enumerate() {
        let before = told.asked().len();
        told.until(before + 4).await;
        let moment = rand::rng().random_range(0..100);
        tokio::time::sleep(Duration::from_millis(moment)).await;
        world.kill_server();
        let known = told.known();
        lose_power(&world, tail);
        world.start_server().await;
        for (id, transition) in known {
            let run = world.client.flow_run(id).await;
            let run = run.unwrap_or_else(|error| panic!("cut {nth}, {tail:?}: {id}: {error}"));
            let now = run.transition;
            assert!(
                now >= transition,
                "cut {nth}, {tail:?}: run {id} was at {transition}, and is at {now}"
            );
        }
    }
    *told.is_enough.lock().unwrap() = true;
    for asker in askers {
        asker.await.unwrap();
    }
    watcher.await.unwrap();
    let asked = told.asked();
    println!("{} runs through {cuts} power cuts", asked.len());
    let ended = tokio::time::timeout(Duration::from_secs(300), all_end(&world, &asked));
    ended.await.unwrap();
    let verdict = judge(&world, &asked, since).await;
    assert!(verdict.wrong.is_empty(), "{}", verdict.wrong.join("\n"));
    println!("{verdict:?}");
}

/// What clients were told.
#[derive(Default)]
struct Told {
    /// The runs that there are, and how far each had come.
    runs: Mutex<BTreeMap<FlowRunId, u32>>,
    asked: Mutex<Vec<FlowRunId>>,
    is_enough: Mutex<bool>,
}

impl Told {
    fn known(&self) -> BTreeMap<FlowRunId, u32> {
        self.runs.lock().unwrap().clone()
    }

    fn asked(&self) -> Vec<FlowRunId> {
        self.asked.lock().unwrap().clone()
    }

    fn note(&self, id: FlowRunId, transition: u32) {
        let mut runs = self.runs.lock().unwrap();
        let last = runs.entry(id).or_default();
        *last = transition.max(*last);
    }

    fn is_enough(&self) -> bool {
        *self.is_enough.lock().unwrap()
    }

    /// Waits until so many runs were asked for.
    async fn until(&self, count: usize) {
        let asked = async {
            while self.asked().len() < count {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        patient("runs to be made", asked).await;
    }
}

/// Asks for one run after the other; a wish that was not answered is repeated.
fn keeps_asking(client: Client, who: usize, told: Arc<Told>) -> JoinHandle<()> {
    tokio::spawn(async move {
        for nth in 0.. {
            let run = loop {
                match ask_for(&client, &format!("{who}-{nth}")).await {
                    Ok(run) => break run,
                    Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
                }
            };
            told.note(run.id, run.transition);
            told.asked.lock().unwrap().push(run.id);
            if told.is_enough() {
                return;
            }
            // The agent should keep up.
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
}

/// Looks at the newest runs all the time.
fn keeps_watching(client: Client, told: Arc<Told>) -> JoinHandle<()> {
    tokio::spawn(async move {
        let query = ListQuery {
            limit: Some(50),
            ..ListQuery::default()
        };
        while !told.is_enough() {
            if let Ok(page) = client.list_flow_runs(&query).await {
                for run in page.items {
                    told.note(run.id, run.transition);
                }
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
}

/// Leaves of the database what a power cut leaves.
fn lose_power(world: &Processes, tail: Tail) {
    let db = world.home().join("server.db");
    let safe = |path: &Path| world.synced().join(path.file_name().unwrap());
    let log = log_of(&db);
    let written = std::fs::read(&log).unwrap_or_default();
    std::fs::remove_file(shared_of(&db)).ok();
    std::fs::copy(safe(&db), &db).unwrap();
    let torn = tail.torn(&std::fs::read(safe(&log)).unwrap_or_default(), &written);
    std::fs::write(&log, torn).unwrap();
}

/// A file whose bytes make no sense any more is no riddle: one error says so, and which command helps.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_database_is_told_and_a_backup_helps() {
    let mut world = Processes::start(LEASE).await;
    world.register("storm").await;
    let backup = world.folder().join("backup.db").display().to_string();
    let copied = world.waft(["server", "backup", &backup]).output().unwrap();
    assert!(copied.status.success(), "{copied:?}");
    // All of it lies in the file itself, but for the last of it: the stop is none in order.
    world.stop_server().await;
    world.start_server().await;
    let other = NewProject {
        name: "other".to_owned(),
        description: String::new(),
    };
    world.client.create_project(&other).await.unwrap();
    world.kill_server();
    let db = world.home().join("server.db");
    let (good, log) = (
        std::fs::read(&db).unwrap(),
        std::fs::read(log_of(&db)).unwrap(),
    );
    for (from, to) in [(10, 90), (2, 20), (20, 40), (40, 60), (60, 80), (80, 99)] {
        let mut bad = good.clone();
        let part = good.len() * from / 100..good.len() * to / 100;
        bad[part].fill(0xa5);
        std::fs::write(&db, bad).unwrap();
        std::fs::write(log_of(&db), &log).unwrap();
        let before = lines_of(&world.server_log()).len();
        world.begin_nth(0);
        assert_eq!(world.server_ends().await, Some(1), "{from} to {to}");
        let said = lines_of(&world.server_log()).split_off(before);
        let place = format!("error: the database `{}` is damaged", db.display());
        assert_eq!(said[0], place, "{from} to {to}: {said:#?}");
        let hint =
            "hint: waft server restore FILE puts a backup in its place, and keeps what is there";
        assert_eq!(said.last().unwrap(), hint, "{said:#?}");
        assert!(
            said.len() <= 4,
            "one error, its causes and what helps: {said:#?}"
        );
        let another = world.folder().join("another.db").display().to_string();
        let backup: Vec<&str> = vec!["server", "backup", &another];
        for words in [backup, vec!["server", "token"], vec!["server", "migrate"]] {
            let said = world.waft(words).output().unwrap().stderr;
            let said = String::from_utf8(said).unwrap();
            assert!(!said.contains("panic"), "{said}");
            std::fs::remove_file(&another).ok();
        }
    }
    let restored = world
        .waft(["server", "restore", &backup, "--yes"])
        .output()
        .unwrap();
    assert!(restored.status.success(), "{restored:?}");
    world.start_server().await;
    let _mira = world.agent("mira");
    let id = ask(&world.client, "after").await.unwrap();
    world.ends_as(id, State::Success).await;
}

async fn ask(client: &Client, key: &str) -> Result<FlowRunId, ClientError> {
    Ok(ask_for(client, key).await?.id)
}

/// Asks for a run, or for the one that was asked for before.
async fn ask_for(client: &Client, key: &str) -> Result<waft::wire::FlowRun, ClientError> {
    let mut new = new_run("storm", json!({"millis": WORK_MS}));
    new.idempotency_key = Some(key.to_owned());
    client.create_flow_run(&new).await
}

/// No instant that a story tells is earlier.
fn a_minute_ago() -> Timestamp {
    Clock::default().now() - SignedDuration::from_mins(1)
}
