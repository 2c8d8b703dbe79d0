//! A core module for WASI preview 1, as a user has it: inspected, built, run and registered.

use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use waft::storage::Kind;

use crate::kit::program::{Processes, WAFT};
use crate::kit::servers::StorageServer;
use crate::kit::world::PROJECT;

/// A program that writes a line and ends, as compilers make them: with nothing of components in it.
const SPEAKS: &str = r#"(module
    (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
    (memory (export "memory") 1)
    (data (i32.const 16) "\20\00\00\00\07\00\00\00")
    (data (i32.const 32) "ahoy, 1")
    (func (export "_start")
        (drop (call $write (i32.const 1) (i32.const 16) (i32.const 1) (i32.const 24)))
        (call $exit (i32.const 0))))"#;
const SAID: &str = "adapted `speaks.wasm`, a core module for WASI preview 1, to a component";

fn waft(home: &Path, arguments: &[&str]) -> Output {
    let mut waft = Command::new(WAFT);
    waft.args(arguments)
        .env("WAFT_HOME", home)
        .env("NO_COLOR", "1")
        .current_dir(home);
    finished(&mut waft)
}

fn finished(command: &mut Command) -> Output {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{output:?}");
    output
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

/// Returns the digest that `waft build` or `waft inspect` shows.
fn digest(output: &Output) -> String {
    let line = text(&output.stdout)
        .lines()
        .find(|line| line.starts_with("digest"));
    line.unwrap().split_whitespace().nth(1).unwrap().to_owned()
}

#[test]
fn it_is_inspected_built_and_run_as_the_same_component() {
    let home = tempfile::tempdir().unwrap();
    let module = home.path().join("speaks.wasm");
    std::fs::write(&module, wat::parse_str(SPEAKS).unwrap()).unwrap();

    let inspected = waft(home.path(), &["inspect", "speaks.wasm"]);
    assert!(text(&inspected.stdout).starts_with("command     speaks\n"));
    assert_eq!(text(&inspected.stderr).matches(SAID).count(), 1);

    let built = waft(home.path(), &["build", "speaks.wasm"]);
    assert_eq!(text(&built.stderr).matches(SAID).count(), 1);
    assert_eq!(digest(&built), digest(&inspected));
    let component = std::fs::read(home.path().join("speaks.component.wasm")).unwrap();
    let again = waft(home.path(), &["inspect", "speaks.component.wasm"]);
    assert!(!text(&again.stderr).contains("adapted"), "{again:?}");
    assert_eq!(digest(&again), digest(&inspected));
    // Another process makes the same bytes; a component that is built already is not built again.
    waft(home.path(), &["build", "speaks.wasm"]);
    let component_again = std::fs::read(home.path().join("speaks.component.wasm")).unwrap();
    assert_eq!(component, component_again);
    let mut twice = Command::new(WAFT);
    twice.args(["build", "speaks.component.wasm"]);
    let twice = twice
        .env("WAFT_HOME", home.path())
        .current_dir(home.path())
        .output()
        .unwrap();
    assert!(
        text(&twice.stderr).contains("is compiled already"),
        "{twice:?}"
    );

    let ran = waft(home.path(), &["run", "speaks.wasm"]);
    assert_eq!(text(&ran.stdout), "ahoy, 1\n");
    assert_eq!(text(&ran.stderr).matches(SAID).count(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_is_registered_as_the_component_and_an_agent_runs_it() {
    let processes = Processes::start(Duration::from_secs(30)).await;
    let module = processes.data().join("speaks.wasm");
    std::fs::write(&module, wat::parse_str(SPEAKS).unwrap()).unwrap();
    let at = |arguments: &[&'static str]| {
        let mut waft = processes.waft(arguments.iter().copied());
        waft.current_dir(processes.data()).env("NO_COLOR", "1");
        waft
    };
    let digest = digest(&finished(&mut at(&["inspect", "speaks.wasm"])));
    let registered = finished(&mut at(&["register", "speaks.wasm", "--project", PROJECT]));
    assert_eq!(text(&registered.stderr).matches(SAID).count(), 1);
    let short = digest.trim_start_matches("sha256:").get(..12).unwrap();
    assert!(text(&registered.stdout).contains(short), "{registered:?}");

    let _agent = processes.agent("mira");
    let watched = finished(&mut at(&["flow-run", "create", "speaks", "--watch"]));
    assert_eq!(text(&watched.stdout), "ahoy, 1\n");
}

/// What comes from a web server is named as it was asked for, and where the component went is said.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_is_registered_from_a_web_server() {
    let processes = Processes::start(Duration::from_secs(30)).await;
    let store = StorageServer::start(Kind::Http).await;
    let module = wat::parse_str(SPEAKS).unwrap();
    store.plant("speaks.wasm", module).await;
    let place = format!("{}speaks.wasm", store.root);
    let mut register = processes.waft(["register", &place, "--project", PROJECT]);
    let registered = finished(register.envs(store.environment()));
    let said = text(&registered.stderr);
    let adapted = format!("adapted `{place}`, a core module for WASI preview 1, to a component\n");
    let flows = processes.home().join("flows");
    let went = format!("the component went to `file://{}`\n", flows.display());
    assert!(said.contains(&adapted) && said.contains(&went), "{said}");
    assert!(!said.contains("component-"), "{said}");
}
