//! Components that are refused before anything of them runs: one clear error each, which names what
//! is wrong. Seen as a user sees them, by `waft inspect`.

use std::path::Path;
use std::process::{Command, Output};

use crate::kit::guests::guest;
use crate::kit::program::WAFT;

/// A guest, and what the one error must say about it.
const REFUSED: [(&str, &str); 12] = [
    ("rude-describe-cron", "`61 25 * * *` is not a cron line"),
    (
        "rude-describe-cycle",
        "the tasks `a`, `b` depend on each other in a circle",
    ),
    ("rude-describe-duplicate", "there are two tasks named `a`"),
    ("rude-describe-fails", "this flow was left unfinished"),
    (
        "rude-describe-fickle",
        "it describes itself differently each time",
    ),
    ("rude-describe-large", "more than the limit of 2097152"),
    ("rude-describe-loops", "its limit of 5000 ms of CPU time"),
    (
        "rude-describe-many",
        "it has 5001 tasks, more than the limit of 5000",
    ),
    (
        "rude-describe-name",
        r"the flow name `../na\u{7}me` is not allowed",
    ),
    (
        "rude-describe-nowhere",
        "the task `ghost`, which does not exist",
    ),
    ("rude-describe-schedule", "the parameter `who` is required"),
    ("rude-describe-traps", "trap.unreachable"),
];

#[test]
fn what_a_flow_says_of_itself_is_checked() {
    let home = tempfile::tempdir().unwrap();
    for (name, said) in REFUSED {
        let output = inspect(&guest(name).unwrap(), home.path());
        expect_refusal(name, &output, said, "rejected.definition");
    }
}

#[test]
fn what_nobody_provides_is_named() {
    let home = tempfile::tempdir().unwrap();
    let inspect_text = |text: &str| {
        let file = home.path().join("component.wasm");
        std::fs::write(&file, wat::parse_str(text).unwrap()).unwrap();
        inspect(&file, home.path())
    };
    let command = inspect_text(COMMAND_WITH_A_DOOR);
    expect_refusal(
        "a door",
        &command,
        "other:thing/door@1.0.0",
        "rejected.imports",
    );
    let module = inspect_text(
        r#"(module
            (import "wasi_snapshot_preview1" "sched_yield" (func (result i32)))
            (import "other" "door" (func))
            (func (export "_start")))"#,
    );
    expect_refusal("a module", &module, "`other.door`", "rejected.imports");
    let nothing = inspect_text("(component)");
    expect_refusal("nothing", &nothing, "wasi:cli/run", "rejected.exports");
}

/// What an agent with more room can run is not refused to its author, nor the other way round.
#[test]
fn as_many_memories_may_be_needed_as_an_agent_here_has() {
    let home = tempfile::tempdir().unwrap();
    let file = home.path().join("component.wasm");
    let text = COMMAND_WITH_A_DOOR
        .lines()
        .filter(|line| !line.contains("import"));
    let text: Vec<_> = text.collect();
    let two = text
        .join("\n")
        .replace("$module ", "$module (memory 1) (memory 1) ");
    std::fs::write(&file, wat::parse_str(two).unwrap()).unwrap();
    let inspect_with = |parallel: &str| {
        let mut waft = inspection(&file, home.path());
        waft.env("WAFT__AGENT__PARALLEL", parallel)
            .output()
            .unwrap()
    };
    let output = inspect_with("2");
    assert!(output.status.success(), "{}", error_of(&output));
    let said = "it needs 2 memories at one time, more than the 1 of this agent";
    expect_refusal("two", &inspect_with("1"), said, "rejected.budget");
}

/// A command that would be fine but for its import.
const COMMAND_WITH_A_DOOR: &str = r#"(component
    (import "other:thing/door@1.0.0" (instance (export "open" (func))))
    (core module $module (func (export "run") (result i32) i32.const 0))
    (core instance $instance (instantiate $module))
    (func $run (result (result)) (canon lift (core func $instance "run")))
    (instance $exported (export "run" (func $run)))
    (export "wasi:cli/run@0.2.0" (instance $exported)))"#;

fn inspect(file: &Path, home: &Path) -> Output {
    inspection(file, home).output().unwrap()
}

fn inspection(file: &Path, home: &Path) -> Command {
    let mut waft = Command::new(WAFT);
    waft.arg("inspect")
        .arg(file)
        .env("WAFT_HOME", home)
        .env("NO_COLOR", "1");
    waft
}

fn error_of(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn expect_refusal(name: &str, output: &Output, said: &str, code: &str) {
    let error = error_of(output);
    assert_eq!(output.status.code(), Some(1), "{name}: {error}");
    assert!(output.stdout.is_empty(), "{name}");
    let errors = error.lines().filter(|line| line.starts_with("error: "));
    assert_eq!(errors.count(), 1, "{name}: {error}");
    assert!(
        error.contains(said) && error.contains(code),
        "{name}: {error}"
    );
}
