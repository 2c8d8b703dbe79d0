//! Stories of the real program about agents that are drained from afar.

use std::process::Output;
use std::time::Duration;

use serde_json::json;

use waft::model::state::State;
use waft::wire::{Agent, Drain};

use crate::kit::program::{Processes, line_with, lines, lines_of};
use crate::kit::witness::patient;

/// No story here waits for one to end.
const LEASE: Duration = Duration::from_secs(30);

/// Calls the program, and returns what it says to people.
fn said(world: &Processes, arguments: &[&str]) -> String {
    let output = called(world, arguments);
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stderr).unwrap()
}

fn called(world: &Processes, arguments: &[&str]) -> Output {
    world.waft(arguments.iter().copied()).output().unwrap()
}

async fn shown(world: &Processes) -> Agent {
    world.client.agent("mira").await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drained_agent_finishes_its_run_and_ends_and_works_again_when_it_is_started() {
    let world = Processes::start(LEASE).await;
    world.register("sides").await;
    let mira = world.agent("mira");
    let run = world.run("sides", json!({"millis": 300})).await;
    lines(&world.out_log(), 1).await;

    assert_eq!(
        said(&world, &["agent", "drain", "mira"]),
        "agent `mira` takes no more runs, finishes the run that it has, and ends\n"
    );
    let waits = world.run("sides", json!({"millis": 1})).await;
    let id = waits.to_string();
    let explained = called(&world, &["flow-run", "explain", &id]);
    let explained = String::from_utf8(explained.stdout).unwrap();
    assert!(
        explained.contains("agent `mira` (does not poll): takes no more runs"),
        "{explained}"
    );

    assert_eq!(mira.ends().await, Some(0));
    let ended = world.ends_as(run, State::Success).await;
    assert_eq!(ended.claims, 1);
    assert_eq!(
        lines_of(&world.out_log()).len(),
        6,
        "nothing was begun twice"
    );
    let waiting = world.client.flow_run(waits).await.unwrap();
    assert_eq!((waiting.state, waiting.claims), (State::Scheduled, 0));
    assert_eq!(shown(&world).await.drain, Some(Drain::Finish));

    let again = world.agent("mira");
    world.ends_as(waits, State::Success).await;
    let agent = shown(&world).await;
    assert!(agent.is_polling && agent.drain.is_none());
    assert_eq!(again.terminate().await, Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_that_is_drained_at_once_gives_its_run_back() {
    let world = Processes::start(LEASE).await;
    world.register("naps").await;
    let mira = world.agent("mira");
    let run = world.run("naps", json!({"millis": 3_600_000})).await;
    world.is(run, State::Running).await;

    // To finish it would take an hour, and who wants that may change his mind.
    said(&world, &["agent", "drain", "mira"]);
    assert_eq!(
        said(&world, &["agent", "drain", "mira", "--now"]),
        "agent `mira` takes no more runs, gives back the run that it has, and ends\n"
    );
    assert_eq!(mira.ends().await, Some(0));
    let back = world.is(run, State::Scheduled).await;
    assert_eq!(back.message, "the agent was stopped, and gave it back");
    assert_eq!(
        world.client.cancel(run).await.unwrap().state,
        State::Cancelled
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_started_anew_tells_what_it_was_asked_to_tell_before() {
    let mut world = Processes::start(LEASE).await;
    let mira = world.agent("mira");
    world.until_polling("mira").await;
    // It hears nothing until the server has ended.
    mira.freeze();
    said(&world, &["agent", "drain", "mira"]);
    world.kill_server();
    world.start_server().await;
    assert!(
        said(&world, &["agent", "drain", "mira"])
            .contains("does not poll; it is told when it does")
    );
    mira.thaw();
    assert_eq!(mira.ends().await, Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_server_of_an_agent_that_is_drained_stays_up_where_both_are_one_process() {
    let world = Processes::start(LEASE).await;
    let home = world.folder().join("other");
    let other = |arguments: &[&str]| {
        let mut command = world.waft(arguments.iter().copied());
        command.env("WAFT_HOME", &home);
        command
    };
    let mut up = other(&["up", "--listen", "127.0.0.1:0", "--name", "nas"]);
    let up = crate::kit::program::Process::spawn(&mut up);
    let states = || {
        let output = other(&["agent", "list", "--json"]).output().unwrap();
        let agents: Vec<Agent> = serde_json::from_slice(&output.stdout).unwrap_or_default();
        agents.first().map(|agent| (agent.is_polling, agent.drain))
    };
    let polls = async {
        while states() != Some((true, None)) {
            tokio::task::yield_now().await;
        }
    };
    patient("the agent to poll", polls).await;
    let drained = other(&["agent", "drain", "nas"]).output().unwrap();
    assert!(drained.status.success(), "{drained:?}");
    // Its name is free once the agent has ended, and the server answers still.
    let once = ["agent", "start", "--name", "nas", "--once"];
    let taken = async {
        while !other(&once).output().unwrap().status.success() {
            tokio::task::yield_now().await;
        }
    };
    patient("the agent to end", taken).await;
    assert_eq!(up.terminate().await, Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_starts_before_its_server_and_can_be_told_to_wait_no_more() {
    let mut world = Processes::start(LEASE).await;
    world.register("echo").await;
    let run = world.run("echo", json!({"text": "x"})).await;
    world.kill_server();
    let waits = "the server is not there yet, and is waited for";
    let (mira, said) = world.says(["agent", "start", "--name", "mira"]);
    let (once, once_said) = world.says(["agent", "start", "--name", "once", "--once"]);
    let (nas, nas_said) = world.says(["agent", "start", "--name", "nas"]);
    for said in [&said, &once_said, &nas_said] {
        line_with(said, waits).await;
    }
    assert_eq!(nas.terminate().await, Some(0));
    assert_eq!(lines_of(&nas_said).len(), 1, "{:?}", lines_of(&nas_said));

    world.start_server().await;
    world.until_polling("mira").await;
    world.ends_as(run, State::Success).await;
    assert_eq!(once.ends().await, Some(0));
    let said = lines_of(&said);
    assert_eq!(said.len(), 2, "{said:?}");
    assert!(said[0].contains("since=") && said[0].contains("Connection refused"));
    assert!(said[1].contains("the server is there now"), "{said:?}");
    drop(mira);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_process_before_had_to_report_waits_for_the_server_too() {
    let mut world = Processes::start(LEASE).await;
    world.register("sides").await;
    let mira = world.agent("mira");
    let run = world.run("sides", json!({"millis": 300})).await;
    lines(&world.out_log(), 1).await;
    world.kill_server();
    let spool = world.home().join("agents/mira.spool");
    line_with(&spool, "").await;
    mira.kill();

    let out = format!("{}::/out:rw", world.out().display());
    let words = ["agent", "start", "--name", "mira", "--allow-dir", &out];
    let (_mira, said) = world.says(words);
    line_with(&said, "is waited for").await;
    world.start_server().await;
    let delivered = async {
        while spool.exists() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    patient("what is left to be delivered", delivered).await;
    world.ends_as(run, State::Success).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_home_takes_no_name_that_an_agent_of_this_host_has() {
    let world = Processes::start(LEASE).await;
    world.register("echo").await;
    let mira = world.agent("mira");
    world.until_polling("mira").await;
    let other = || {
        let mut other = world.waft(["agent", "start", "--name", "mira", "--once"]);
        other.args(["--server", world.client.url(), "--token", world.token()]);
        other.env("WAFT_HOME", world.folder().join("other"));
        other.output().unwrap()
    };
    let refused = other();
    let said = String::from_utf8(refused.stderr).unwrap();
    assert_eq!(refused.status.code(), Some(1), "{said}");
    for words in [
        "the agent `mira` of the host `",
        "with another WAFT_HOME, since",
        "--name NAME",
    ] {
        assert!(said.contains(words), "{words}: {said}");
    }
    // The same home takes its name back at once, another one when nothing of it is there any more.
    mira.kill();
    let again = world.agent("mira");
    let run = world.run("echo", json!({"text": "x"})).await;
    world.ends_as(run, State::Success).await;
    assert_eq!(again.terminate().await, Some(0));
    let taken = async {
        while !other().status.success() {
            tokio::task::yield_now().await;
        }
    };
    patient("the name to be free", taken).await;
}
