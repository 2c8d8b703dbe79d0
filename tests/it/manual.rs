//! The transcripts under `cli`: the manual of the command line, run line by line.
//!
//! One test a file, so that they run side by side and each failure has a name.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::Command;

use crate::kit::program::WAFT;
use crate::kit::{repository, transcript};

macro_rules! transcripts {
    ($($name:ident $file:literal)*) => {
        const FILES: &[&str] = &[$($file),*];

        $(
            #[test]
            fn $name() {
                transcript::check(&folder().join($file));
            }
        )*
    };
}

transcripts! {
    agent "agent.md"
    build "build.md"
    completions "completions.md"
    config "config.md"
    flow "flow.md"
    flow_run "flow-run.md"
    inspect "inspect.md"
    new "new.md"
    project "project.md"
    register "register.md"
    run "run.md"
    secret "secret.md"
    server "server.md"
    storage "storage.md"
    tag "tag.md"
    token "token.md"
    up "up.md"
}

fn folder() -> PathBuf {
    repository().join("tests/it/cli")
}

/// What the README shows is run too, on a port that is free.
#[test]
fn readme() {
    let port = ("WAFT__SERVER__LISTEN", "127.0.0.1:0");
    transcript::check_with(&repository().join("README.md"), &[port]);
}

#[test]
fn every_command_has_a_transcript_and_every_transcript_is_run() {
    let listed: BTreeSet<String> = FILES.iter().map(|file| (*file).to_owned()).collect();
    let present = std::fs::read_dir(folder()).unwrap();
    let present: BTreeSet<String> = present
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    assert_eq!(listed, present);

    let help = Command::new(WAFT).arg("--help").output().unwrap();
    let help = String::from_utf8(help.stdout).unwrap();
    let commands: BTreeSet<String> = help
        .lines()
        .skip_while(|line| *line != "Commands:")
        .skip(1)
        .take_while(|line| !line.is_empty())
        .filter_map(|line| line.split_whitespace().next())
        .filter(|name| *name != "help")
        .map(|name| format!("{name}.md"))
        .collect();
    assert!(commands.len() > 10, "{help}");
    assert_eq!(commands, listed);
}
