//! Several servers on one PostgreSQL: whatever is said to one of them holds at all of them.
//!
//! The first stories play with servers in this process, the last with the real program and `kill -9`.

mod races;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::json;

use waft::client::{Client, ClientError};
use waft::clock::Clock;
use waft::model::id::{AgentId, FlowRunId, SessionId};
use waft::model::requirement::Offer;
use waft::model::state::{Event, State};
use waft::server::db::Place;
use waft::server::{self, Running, ServerSettings};
use waft::storage::Root;
use waft::wire::{
    ClaimedRun, Drain, LeaseKey, Leave, ListQuery, NewDrain, NewFlowRun, NewProject, Poll, Renewal,
    WatchQuery,
};

use crate::kit::judge;
use crate::kit::postgres;
use crate::kit::program::{Process, WAFT, free_port, lines, lines_of};
use crate::kit::proxy::{Proxy, Weather};
use crate::kit::witness::{Witness, code, hello, patient};
use crate::kit::world::{self, PROJECT};
use crate::server::registration;

const LEASE: Duration = Duration::from_secs(30);
/// The lease in stories that wait for its end.
const SHORT_LEASE: Duration = Duration::from_secs(3);

/// Servers of one database.
struct Fleet {
    place: Place,
    lease: Duration,
    servers: Vec<Running>,
    clients: Vec<Client>,
    token: String,
}

/// An agent as servers see one.
struct Agent {
    id: AgentId,
    session: SessionId,
}

impl Fleet {
    async fn start(count: usize, lease: Duration) -> Self {
        Self::of(postgres::place().await, count, lease).await
    }

    async fn of(place: Place, count: usize, lease: Duration) -> Self {
        let mut fleet = Self {
            place,
            lease,
            servers: Vec::new(),
            clients: Vec::new(),
            token: String::new(),
        };
        for _ in 0..count {
            fleet.start_server().await;
        }
        fleet.clients[0].create_project(&demo()).await.unwrap();
        fleet
    }

    async fn start_server(&mut self) {
        let running = server::start(ServerSettings {
            listen: ([127, 0, 0, 1], 0).into(),
            db: self.place.clone(),
            lease: self.lease,
            hosts: Vec::new(),
            results_keep: server::RESULTS_KEEP,
            runs_keep: server::RUNS_KEEP,
            clock: Clock::default(),
        });
        let running = running.await.unwrap();
        if let Some(token) = &running.first_token {
            self.token.clone_from(token);
        }
        let url = format!("http://{}", running.addr);
        let client = Client::new(&url, Some(self.token.clone())).unwrap();
        self.clients.push(client);
        self.servers.push(running);
    }

    async fn register(&self, name: &str) {
        let asked = registration(name);
        self.clients[0].register("demo", &asked).await.unwrap();
    }

    async fn create(&self, at: usize) -> FlowRunId {
        let new = NewFlowRun {
            flow: "etl".to_owned(),
            parameters: BTreeMap::from([("name".to_owned(), json!("Ada"))]),
            ..NewFlowRun::default()
        };
        self.clients[at].create_flow_run(&new).await.unwrap().id
    }

    async fn agent(&self, at: usize, name: &str) -> Agent {
        let offer = Offer {
            roots: ["file:///flows".to_owned(), "file:///results".to_owned()].into(),
            ..Offer::default()
        };
        let opened = self.clients[at].open_session(&hello(name, offer)).await;
        let session = opened.unwrap();
        Agent {
            id: session.agent_id,
            session: session.session_id,
        }
    }

    async fn poll(
        &self,
        at: usize,
        agent: &Agent,
        wait_seconds: u32,
    ) -> Result<Vec<ClaimedRun>, ClientError> {
        self.poll_for(1, at, agent, wait_seconds).await
    }

    async fn poll_for(
        &self,
        free_slots: u32,
        at: usize,
        agent: &Agent,
        wait_seconds: u32,
    ) -> Result<Vec<ClaimedRun>, ClientError> {
        let poll = Poll {
            session_id: agent.session,
            free_slots,
            wait_seconds,
        };
        Ok(self.clients[at].poll(&poll).await?.flow_runs)
    }

    /// Waits until so many polls wait at a server.
    async fn waits(&self, at: usize, polls: usize) {
        let waits = async {
            while self.servers[at].app.waiting_polls() < polls {
                tokio::task::yield_now().await;
            }
        };
        patient("a poll to wait", waits).await;
    }

    async fn shown(&self, at: usize) -> waft::wire::Agent {
        self.clients[at].agent("mira").await.unwrap()
    }

    async fn shutdown(&mut self) {
        self.clients.clear();
        for running in self.servers.drain(..) {
            running.shutdown().await;
        }
    }
}

fn demo() -> NewProject {
    NewProject {
        name: "demo".to_owned(),
        description: String::new(),
    }
}

fn lease_of(run: &ClaimedRun) -> LeaseKey {
    LeaseKey {
        flow_run_id: run.flow_run_id,
        epoch: run.epoch,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_made_at_one_server_is_claimed_at_once_at_another() {
    const ROUNDS: usize = 40;
    let fleet = Fleet::start(3, LEASE).await;
    fleet.register("etl").await;
    let agent = fleet.agent(1, "mira").await;
    let mut times = Vec::new();
    for nth in 0..ROUNDS {
        let (polled, (id, since)) = tokio::join!(fleet.poll(1, &agent, 30), async {
            fleet.waits(1, 1).await;
            let since = Instant::now();
            (fleet.create([0, 2][nth % 2]).await, since)
        });
        times.push(since.elapsed());
        assert_eq!(polled.unwrap()[0].flow_run_id, id);
    }
    times.sort();
    let (p50, last) = (times[ROUNDS / 2], times[ROUNDS - 1]);
    println!("create at one server to claimed at another: p50 {p50:?}, longest {last:?}");
    // Far from the seconds after which it would be found without being told.
    assert!(p50 < Duration::from_millis(500), "{times:?}");
}

/// A connection that is lost without a word costs no run its time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_line_between_servers_that_is_lost_is_opened_anew_and_everything_looked_at() {
    let fleet = Fleet::start(2, LEASE).await;
    fleet.register("etl").await;
    let agent = fleet.agent(1, "mira").await;
    let Place::Postgres(url) = &fleet.place else {
        unreachable!()
    };
    let name = url.rsplit('/').next().unwrap();
    for _ in 0..3 {
        let (polled, id) = tokio::join!(fleet.poll(1, &agent, 30), async {
            fleet.waits(1, 1).await;
            let cut = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
                       WHERE datname = current_database() AND query LIKE 'LISTEN%'";
            postgres::shared().await.run_sql(name, cut).await;
            fleet.create(0).await
        });
        assert_eq!(polled.unwrap()[0].flow_run_id, id);
    }
}

/// Who calls is told to come again, and all is well once it is back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_is_away_is_nobodys_end() {
    let Place::Postgres(url) = postgres::place().await else {
        unreachable!()
    };
    let (server, name) = url.split_once('@').unwrap().1.split_once('/').unwrap();
    let way = Proxy::open(server.parse().unwrap()).await;
    let own = way.url().replace("http://", "postgres://waft@");
    let place = Place::Postgres(format!("{own}/{name}"));
    let fleet = Fleet::of(place, 1, LEASE).await;
    fleet.register("etl").await;
    let agent = fleet.agent(0, "mira").await;
    // As agents do: one that was refused in passing asks again.
    let polls = async {
        loop {
            match fleet.poll(0, &agent, 30).await {
                Ok(claimed) if !claimed.is_empty() => return claimed,
                Ok(_) => {}
                Err(refused) => assert!(refused.is_passing(), "{refused}"),
            }
        }
    };
    let (claimed, id) = tokio::join!(polls, async {
        fleet.waits(0, 1).await;
        way.turns(Weather::Cut);
        for _ in 0..3 {
            assert_eq!(
                code(fleet.clients[0].create_project(&demo()).await),
                "database-away"
            );
        }
        way.turns(Weather::Clear);
        let back = async {
            while fleet.clients[0]
                .list_projects(&ListQuery::default())
                .await
                .is_err()
            {}
        };
        patient("the database to be back", back).await;
        fleet.create(0).await
    });
    assert_eq!(claimed[0].flow_run_id, id);
}

/// PostgreSQL itself ends, and is away for longer than a call waits: every server says so, and goes on by itself.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_ends_is_told_and_waited_for() {
    let own = postgres::own().await;
    let fleet = Fleet::of(Place::Postgres(own.database().await), 2, LEASE).await;
    fleet.register("etl").await;
    let agent = fleet.agent(0, "mira").await;
    own.stop();
    let project = demo();
    let asked = fleet.clients.iter();
    let asked = asked.map(|client| client.create_project(&project));
    for refused in futures::future::join_all(asked).await {
        assert_eq!(code(refused), "database-away");
    }
    own.run().await;
    for client in &fleet.clients {
        let query = ListQuery::default();
        let back = async { while client.list_projects(&query).await.is_err() {} };
        patient("the server to be back", back).await;
    }
    let id = fleet.create(1).await;
    let claimed = fleet.poll(0, &agent, 30).await.unwrap();
    assert_eq!(claimed[0].flow_run_id, id);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_watches_at_one_server_hears_of_a_change_at_another() {
    let fleet = Fleet::start(2, LEASE).await;
    fleet.register("etl").await;
    let id = fleet.create(0).await;
    let before = fleet.clients[1].flow_run(id).await.unwrap();
    let query = WatchQuery {
        after: Some(before.transition),
        wait_seconds: 30,
    };
    let since = Instant::now();
    let (watched, ()) = tokio::join!(fleet.clients[1].watch_flow_run(id, &query), async {
        tokio::time::sleep(Duration::from_millis(200)).await;
        fleet.clients[0].cancel(id).await.unwrap();
    });
    assert_eq!(watched.unwrap().state, State::Cancelled);
    assert!(since.elapsed() < Duration::from_secs(20));
}

/// An agent is started anew behind another server: the old process gets nothing more anywhere.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_ends_at_every_server_when_a_newer_one_is_opened_at_one() {
    let fleet = Fleet::start(2, LEASE).await;
    fleet.register("etl").await;
    let old = fleet.agent(0, "mira").await;
    assert!(fleet.poll(0, &old, 0).await.unwrap().is_empty());
    let (refused, new) = tokio::join!(fleet.poll(0, &old, 30), async {
        fleet.waits(0, 1).await;
        fleet.agent(1, "mira").await
    });
    assert_eq!(code(refused), "session-unknown");
    assert_eq!(new.id, old.id);
    let id = fleet.create(0).await;
    assert_eq!(code(fleet.poll(0, &old, 0).await), "session-unknown");
    // Under the new session it may call either.
    assert_eq!(fleet.poll(0, &new, 0).await.unwrap()[0].flow_run_id, id);
    let id = fleet.create(0).await;
    assert_eq!(fleet.poll(1, &new, 0).await.unwrap()[0].flow_run_id, id);
}

/// What holds of an agent does not wait for the news of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_that_is_drained_or_leaves_at_one_server_is_given_nothing_at_another() {
    let fleet = Fleet::start(2, LEASE).await;
    fleet.register("etl").await;
    fleet.create(0).await;
    let finish = NewDrain { how: Drain::Finish };
    for nth in 0..10 {
        let name = format!("agent-{nth}");
        let agent = fleet.agent(0, &name).await;
        let other = fleet.agent(0, &format!("other-{nth}")).await;
        // Both servers know both of them.
        for (at, one) in [(0, &agent), (1, &agent), (0, &other), (1, &other)] {
            assert!(fleet.poll_for(0, at, one, 0).await.unwrap().is_empty());
        }
        fleet.clients[0].drain_agent(&name, &finish).await.unwrap();
        assert!(fleet.poll(1, &agent, 0).await.unwrap().is_empty());
        let leave = Leave {
            session_id: other.session,
        };
        fleet.clients[0].leave(&leave, LEASE).await.unwrap();
        assert!(fleet.poll(1, &other, 0).await.unwrap().is_empty());
        for one in [&agent, &other] {
            assert!(fleet.poll(0, one, 0).await.unwrap().is_empty());
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_that_polls_at_one_server_is_shown_so_at_another() {
    let fleet = Fleet::start(2, LEASE).await;
    let agent = fleet.agent(0, "mira").await;
    let seen = async || {
        let shown = async { while !fleet.shown(1).await.is_polling {} };
        patient("the agent to be shown as polling", shown).await;
    };
    let (polled, ()) = tokio::join!(fleet.poll(0, &agent, 5), seen());
    assert!(polled.unwrap().is_empty());
    let leave = Leave {
        session_id: agent.session,
    };
    fleet.clients[0].leave(&leave, LEASE).await.unwrap();
    let shown = fleet.shown(1).await;
    assert!(!shown.is_polling && shown.is_leaving);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_link_of_one_server_logs_in_at_every_other() {
    let fleet = Fleet::start(2, LEASE).await;
    let link = fleet.servers[0].login_link().await.unwrap();
    let elsewhere = link.replace(
        &fleet.servers[0].addr.to_string(),
        &fleet.servers[1].addr.to_string(),
    );
    waft::tls::install();
    let http = reqwest::Client::builder()
        .redirect(reqwest::redirect::Policy::none())
        .build()
        .unwrap();
    let answer = http.get(elsewhere).send().await.unwrap();
    assert_eq!(answer.status(), 303);
    let cookie = answer.headers()["set-cookie"].to_str().unwrap();
    let cookie = cookie.split(';').next().unwrap().to_owned();
    for running in &fleet.servers {
        let url = format!("http://{}/api/flows", running.addr);
        let asked = http.get(url).header("cookie", &cookie).send();
        assert_eq!(asked.await.unwrap().status(), 200);
    }
    assert_eq!(http.get(link).send().await.unwrap().status(), 403);
}

/// Each of three schedulers makes all runs, and there is one for each instant.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_instant_of_a_schedule_is_one_run_whoever_makes_it() {
    const INSTANTS: usize = 6;
    let fleet = Fleet::start(3, LEASE).await;
    let mut asked = registration("etl");
    asked.definition.schedule = serde_json::from_value(json!({
        "clocks": [{
            "name": "main",
            "rule": {"interval_ms": 1_000},
            "parameters": {"name": "Ada"},
        }],
    }))
    .unwrap();
    fleet.clients[0].register("demo", &asked).await.unwrap();
    let agents = futures::future::join_all(
        (0..3).map(async |at| fleet.agent(at, &format!("agent-{at}")).await),
    );
    let agents = agents.await;
    let claims = (0..3).map(|at| {
        let (fleet, agent) = (&fleet, &agents[at]);
        async move {
            let mut own = Vec::new();
            let end = Instant::now() + Duration::from_secs(INSTANTS as u64 + 2);
            while Instant::now() < end {
                own.extend(fleet.poll(at, agent, 1).await.unwrap());
            }
            own
        }
    });
    let claimed = futures::future::join_all(claims).await.concat();
    let ids: BTreeSet<_> = claimed.iter().map(|run| run.flow_run_id).collect();
    assert_eq!(ids.len(), claimed.len(), "a run was claimed twice");
    let instants: BTreeSet<_> = claimed.iter().map(|run| run.scheduled_at).collect();
    assert_eq!(instants.len(), claimed.len(), "an instant has two runs");
    let (first, last) = (instants.first().unwrap(), instants.last().unwrap());
    let span = last.duration_since(*first).as_secs();
    assert_eq!(span + 1, instants.len() as i64, "an instant has no run");
    assert!(instants.len() >= INSTANTS, "{instants:?}");
}

/// The lease of a silent agent ends for all servers at one moment, and one of them rescues its run.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lapse_is_one_rescue() {
    let fleet = Fleet::start(3, SHORT_LEASE).await;
    fleet.register("etl").await;
    let mut ids = Vec::new();
    for nth in 0..12 {
        let agent = fleet.agent(nth % 3, &format!("agent-{nth}")).await;
        ids.push(fleet.create(nth % 3).await);
        assert_eq!(fleet.poll(nth % 3, &agent, 0).await.unwrap().len(), 1);
    }
    for id in ids {
        let lost = async {
            while fleet.clients[0].flow_run(id).await.unwrap().state != State::Scheduled {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        patient("the lease to lapse", lost).await;
        let steps = fleet.clients[1].history(id, &ListQuery::default()).await;
        let events: Vec<_> = steps.unwrap().items.iter().map(|step| step.event).collect();
        assert_eq!(events, [None, Some(Event::Claim), Some(Event::Lose)]);
    }
}

/// While one server is there a lease ends in time; when none was, it begins anew.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leases_end_while_a_server_is_there_and_outlast_a_time_without_any() {
    let mut fleet = Fleet::start(2, SHORT_LEASE).await;
    fleet.register("etl").await;
    let agent = fleet.agent(0, "mira").await;
    let id = fleet.create(0).await;
    let claimed = fleet.poll(0, &agent, 0).await.unwrap();
    let renew = async |fleet: &Fleet, at: usize| {
        let renewal = Renewal {
            session_id: agent.session,
            leases: vec![lease_of(&claimed[0])],
        };
        let renewed = fleet.clients[at].renew(&renewal, LEASE).await.unwrap();
        renewed.lost.is_empty() && renewed.lapsed.is_empty()
    };
    fleet.shutdown().await;
    tokio::time::sleep(SHORT_LEASE + Duration::from_millis(500)).await;
    fleet.start_server().await;
    tokio::time::sleep(SHORT_LEASE / 2).await;
    assert!(renew(&fleet, 0).await, "nobody could renew it meanwhile");

    // One of two goes away: the other still counts the time.
    fleet.start_server().await;
    fleet.servers.remove(0).shutdown().await;
    fleet.clients.remove(0);
    let lost = async {
        while fleet.clients[0].flow_run(id).await.unwrap().state != State::Scheduled {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    patient("the lease to lapse", lost).await;
    assert!(!renew(&fleet, 0).await);
}

/// Three servers as processes, of which agents know one each.
struct Replicas {
    folder: tempfile::TempDir,
    url: String,
    addresses: Vec<SocketAddr>,
    token: String,
}

impl Replicas {
    async fn make() -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("out")).unwrap();
        let url = postgres::shared().await.database().await;
        let addresses = (0..3).map(|_| free_port()).collect();
        Self {
            folder,
            url,
            addresses,
            token: String::new(),
        }
    }

    fn waft(&self, home: &str) -> Command {
        let mut command = Command::new(WAFT);
        command
            .env("WAFT_HOME", self.folder.path().join(home))
            .env_remove("WAFT__SERVER__URL")
            .env_remove("WAFT__SERVER__TOKEN")
            .stderr(Stdio::null());
        command
    }

    async fn server(&self, nth: usize) -> Process {
        let mut command = self.waft(&format!("server-{nth}"));
        command.args(["server", "start", "--lease", "3s", "--db", &self.url]);
        command.args(["--listen", &self.addresses[nth].to_string()]);
        let process = Process::spawn(&mut command);
        let client = Client::new(&format!("http://{}", self.addresses[nth]), None).unwrap();
        let up = async {
            while client.health().await.is_err() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        patient("the server to answer", up).await;
        process
    }

    fn agent(&self, name: &str, url: &str) -> Process {
        let out = format!("{}::/out:rw", self.folder.path().join("out").display());
        let mut command = self.waft("home");
        command.args(["agent", "start", "--name", name, "--limit", "4"]);
        command.args(["--server", url, "--token", &self.token]);
        command.args(["--allow-dir", &out]);
        Process::spawn(&mut command)
    }

    fn witness(&self, nth: usize) -> Witness {
        let url = format!("http://{}", self.addresses[nth]);
        Witness {
            client: Client::new(&url, Some(self.token.clone())).unwrap(),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kill_9_of_one_server_of_three_loses_nothing_and_doubles_nothing() {
    const RUNS: usize = 30;
    const STEPS: usize = 5;
    let mut world = Replicas::make().await;
    let mut servers = Vec::new();
    for nth in 0..3 {
        servers.push(world.server(nth).await);
    }
    let made = world.waft("home");
    let made = { made }
        .args(["server", "token", "--db", &world.url])
        .output();
    world.token = String::from_utf8(made.unwrap().stdout)
        .unwrap()
        .trim()
        .to_owned();
    let witness = world.witness(1);
    let project = NewProject {
        name: PROJECT.to_owned(),
        description: String::new(),
    };
    witness.client.create_project(&project).await.unwrap();
    let root = Root::local(&world.folder.path().join("home").join("flows")).unwrap();
    let registration = world::registration("storm", &root).await;
    witness
        .client
        .register(PROJECT, &registration)
        .await
        .unwrap();

    // One knows the server that dies only, one is led elsewhere when it does.
    let way = Proxy::open(world.addresses[0]).await;
    let url = |nth: usize| format!("http://{}", world.addresses[nth]);
    let lost = world.agent("agent-lost", &url(0));
    let kept = world.agent("agent-kept", &url(1));
    let led = world.agent("agent-led", &way.url());
    for name in ["agent-lost", "agent-kept", "agent-led"] {
        witness.until_polling(name).await;
    }
    let mut ids = Vec::new();
    for nth in 0..RUNS {
        let witness = world.witness(nth % 3);
        ids.push(witness.run("storm", json!({"millis": 60})).await);
    }
    let log = world.folder.path().join("out").join("log");
    lines(&log, RUNS).await;
    servers.remove(0).kill();
    way.leads_to(world.addresses[2]);

    let mut losses = 0;
    for id in &ids {
        let run = witness.ends_as(*id, State::Success).await;
        let steps = witness.transitions(*id).await;
        let count = |event, is_task: bool| {
            let own = steps.iter().filter(|step| step.event == Some(event));
            own.filter(|step| step.task_run.is_some() == is_task)
                .count()
        };
        assert_eq!(count(Event::Succeed, true), STEPS);
        assert_eq!(count(Event::Claim, false), run.claims as usize);
        losses += count(Event::Lose, false);
        let begun = judge::begun(&lines_of(&log), |at| at);
        let wrong = judge::faults(*id, &steps, run.state, Some(&begun));
        let story = witness.story(*id).await;
        assert!(wrong.is_empty(), "{}\n{story}", wrong.join("\n"));
    }
    let faults = witness.faults().await;
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    let again = lines_of(&log).len() - STEPS * RUNS;
    println!("{losses} leases were lost, {again} steps made again");
    assert!(witness.client.agent("agent-led").await.unwrap().is_polling);
    for agent in [kept, led] {
        assert_eq!(agent.terminate().await, Some(0));
    }
    drop(lost);
}
