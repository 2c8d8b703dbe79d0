//! The library in another program: `runtime/examples/embed.rs`, which cargo builds with the tests.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use crate::kit::guests::guest;
use crate::kit::program::WAFT;

/// Returns the example, which lies beside the program.
fn embed() -> PathBuf {
    let folder = Path::new(WAFT)
        .parent()
        .expect("a program lies in a folder");
    let program = folder.join("examples").join("embed");
    assert!(
        program.is_file(),
        "`{}` is not built: cargo build -p waft --example embed",
        program.display()
    );
    program
}

fn call(arguments: &[&str]) -> Output {
    let mut command = Command::new(embed());
    command.arg(guest("hello").unwrap()).args(arguments);
    // Nothing of this user is to be of use to it.
    let nowhere = "/nowhere";
    command.envs([("WAFT_HOME", nowhere), ("HOME", nowhere)]);
    command.output().unwrap()
}

#[test]
fn a_program_of_its_own_is_server_and_agent_of_a_flow() {
    let output = call(&["name=Ada"]);
    let printed = String::from_utf8_lossy(&output.stdout);
    assert_eq!(printed, "\"Hello, Ada!\"\n", "{output:?}");
    assert!(
        output.status.success() && output.stderr.is_empty(),
        "{output:?}"
    );
}

#[test]
fn what_the_server_refuses_is_an_error_of_that_program() {
    let output = call(&["nmae=Ada"]);
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        said.starts_with("error: ") && said.contains("nmae"),
        "{said}"
    );
}
