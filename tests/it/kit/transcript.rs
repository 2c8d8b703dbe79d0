//! Runs transcripts: markdown whose `console` blocks show commands and what they print.
//!
//! In such a block a line `$ COMMAND` is given to a shell, `> MORE` continues it, and the lines up to
//! the next command are its output, stderr included. `[..]` stands for anything within a line, a line
//! `...` for any lines, a last line `[exit 3]` for the exit code where it is not 0. `cd DIR` and
//! `NAME=VALUE` last until the end of the file. A command that ends in ` &` goes on in the background
//! from the moment it has printed the lines shown, and is ended with the file.
//!
//! Each file has an empty folder and `WAFT_HOME` of its own, but the target folder for flows is
//! shared: a project that is compiled needs a name that no other transcript uses. `$WAFT_GUESTS` holds
//! the examples and guests, compiled.
//! `UPDATE_EXPECT=1` writes what was printed into the file, where it differs.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::io::{BufRead as _, BufReader, Read as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::guests;

/// Seconds that one command may take; longer is a hang. Compiling a flow from nothing takes most.
const PATIENCE: &str = "300";

/// Runs all commands of a transcript in order, and panics with every difference.
pub(crate) fn check(file: &Path) {
    check_with(file, &[]);
}

/// As [`check`], with variables that the commands see.
pub(crate) fn check_with(file: &Path, variables: &[(&str, &str)]) {
    let text = fs::read_to_string(file)
        .unwrap_or_else(|error| panic!("reading {}: {error}", file.display()));
    let mut session = Session::new();
    let own = |(name, value): &(&str, &str)| ((*name).to_string(), (*value).to_string());
    session.variables.extend(variables.iter().map(own));
    let mut differences = String::new();
    let mut pieces = read(&text);
    for piece in &mut pieces {
        let Piece::Step {
            line,
            command,
            expected,
        } = piece
        else {
            continue;
        };
        let printed = session.run(command, expected);
        if !fits(expected, &printed) {
            let place = format!("{}:{line}", file.display());
            let (wanted, got) = (expected.join("\n"), printed.join("\n"));
            writeln!(
                differences,
                "{place}: $ {command}\n--- shown\n{wanted}\n--- printed\n{got}\n"
            )
            .unwrap();
            *expected = printed;
        }
    }
    if differences.is_empty() {
        return;
    }
    if std::env::var_os("UPDATE_EXPECT").is_some() {
        fs::write(file, write(&pieces)).unwrap();
    } else {
        panic!("a transcript differs; UPDATE_EXPECT=1 writes what was printed\n{differences}");
    }
}

/// A part of a transcript.
#[derive(Debug, PartialEq, Eq)]
enum Piece {
    Prose(String),
    Step {
        line: usize,
        command: String,
        expected: Vec<String>,
    },
}

fn read(text: &str) -> Vec<Piece> {
    let mut pieces = Vec::new();
    let mut inside = false;
    for (index, line) in text.lines().enumerate() {
        if line.trim_start().starts_with("```") {
            inside = !inside && line.trim() == "```console";
            pieces.push(Piece::Prose(line.to_string()));
            continue;
        }
        match (inside, line.strip_prefix("$ "), pieces.last_mut()) {
            (true, Some(command), _) => {
                pieces.push(Piece::Step {
                    line: index + 1,
                    command: command.to_string(),
                    expected: Vec::new(),
                });
            }
            (
                true,
                None,
                Some(Piece::Step {
                    command, expected, ..
                }),
            ) => match line.strip_prefix("> ") {
                Some(more) if expected.is_empty() => *command = format!("{command}\n{more}"),
                _ => expected.push(line.to_string()),
            },
            _ => pieces.push(Piece::Prose(line.to_string())),
        }
    }
    pieces
}

fn write(pieces: &[Piece]) -> String {
    let mut text = String::new();
    for piece in pieces {
        match piece {
            Piece::Prose(line) => writeln!(text, "{line}").unwrap(),
            Piece::Step {
                command, expected, ..
            } => {
                writeln!(text, "$ {}", command.replace('\n', "\n> ")).unwrap();
                expected
                    .iter()
                    .for_each(|line| writeln!(text, "{line}").unwrap());
            }
        }
    }
    text
}

/// Says whether printed lines are what is shown, with `...` for any lines.
fn fits(shown: &[String], printed: &[String]) -> bool {
    match shown.split_first() {
        None => printed.is_empty(),
        Some((first, rest)) if first == "..." => {
            (0..=printed.len()).any(|from| fits(rest, &printed[from..]))
        }
        Some((first, rest)) => printed
            .split_first()
            .is_some_and(|(line, others)| line_fits(first, line) && fits(rest, others)),
    }
}

/// Says whether a line is what is shown, with `[..]` for any text.
fn line_fits(shown: &str, line: &str) -> bool {
    match shown.split_once("[..]") {
        None => shown == line,
        Some((start, rest)) => line.strip_prefix(start).is_some_and(|line| {
            line.char_indices()
                .map(|(at, _)| at)
                .chain([line.len()])
                .any(|at| line_fits(rest, &line[at..]))
        }),
    }
}

/// What the commands of one file share.
struct Session {
    /// Removed with this value.
    _root: TempDir,
    folder: PathBuf,
    variables: BTreeMap<String, String>,
    background: Vec<Child>,
}

impl Session {
    fn new() -> Self {
        let root = TempDir::with_prefix("waft-transcript-").unwrap();
        let folder = root.path().join("here");
        fs::create_dir_all(&folder).unwrap();
        let program = Path::new(env!("CARGO_BIN_EXE_waft"))
            .parent()
            .unwrap()
            .display();
        let path = std::env::var("PATH").unwrap_or_default();
        let mut variables = BTreeMap::from([
            ("PATH".to_string(), format!("{program}:{path}")),
            (
                "WAFT_HOME".to_string(),
                root.path().join("home").display().to_string(),
            ),
            ("NO_COLOR".to_string(), "1".to_string()),
        ]);
        let build = guests::build_settings().unwrap();
        let folder_of_guests = guests::folder().unwrap();
        variables.insert("WAFT_GUESTS".to_string(), folder_of_guests);
        variables.extend(
            build
                .into_iter()
                .map(|(name, value)| (name.to_string(), value)),
        );
        Self {
            _root: root,
            folder,
            variables,
            background: Vec::new(),
        }
    }

    /// Runs one command and returns the lines it printed, with its exit code where that is not 0.
    fn run(&mut self, command: &str, expected: &[String]) -> Vec<String> {
        if let Some(command) = command.strip_suffix(" &") {
            return self.start(
                command,
                expected.iter().filter(|line| *line != "...").count(),
            );
        }
        if let Some(folder) = command.strip_prefix("cd ") {
            self.folder.push(folder);
            assert!(self.folder.is_dir(), "`{command}`: no such folder");
            return Vec::new();
        }
        if let Some(name) = assigned(command) {
            let output = self
                .shell(&format!("{command}\nprintf '%s' \"${name}\""))
                .output()
                .unwrap();
            let value = String::from_utf8_lossy(&output.stdout).into_owned();
            self.variables.insert(name.to_string(), value);
            return lines(&output.stderr);
        }
        let output = self
            .shell(&format!("exec 2>&1\n{command}"))
            .output()
            .unwrap();
        let mut printed = lines(&output.stdout);
        match output.status.code() {
            Some(0) => {}
            Some(code) => printed.push(format!("[exit {code}]")),
            None => printed.push(format!("[{}]", output.status)),
        }
        printed
    }

    /// Starts a command that goes on, and returns the lines it printed first.
    fn start(&mut self, command: &str, count: usize) -> Vec<String> {
        let mut shell = self.command("sh", &["-c", &format!("exec 2>&1\nexec {command}")]);
        let mut child = shell.spawn().unwrap();
        let mut output = BufReader::new(child.stdout.take().unwrap());
        self.background.push(child);
        let first = output
            .by_ref()
            .lines()
            .take(count.max(1))
            .map_while(Result::ok)
            .collect();
        // It must not stand still because nobody reads what else it prints.
        std::thread::spawn(move || std::io::copy(&mut output, &mut std::io::sink()));
        first
    }

    /// Returns a shell that runs a script and is ended when it takes too long.
    fn shell(&self, script: &str) -> Command {
        self.command(
            "timeout",
            &["--kill-after=10", PATIENCE, "sh", "-c", script],
        )
    }

    fn command(&self, program: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new(program);
        command
            .args(arguments)
            .current_dir(&self.folder)
            .envs(&self.variables);
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        for child in &mut self.background {
            let end = Instant::now() + Duration::from_secs(10);
            Command::new("kill")
                .arg(child.id().to_string())
                .status()
                .ok();
            while matches!(child.try_wait(), Ok(None)) && Instant::now() < end {
                std::thread::sleep(Duration::from_millis(20));
            }
            child.kill().ok();
            child.wait().ok();
        }
    }
}

/// Returns the name that a command such as `ID=$(...)` sets.
fn assigned(command: &str) -> Option<&str> {
    let (name, _) = command.split_once('=')?;
    let is_name = name.starts_with(|it: char| it.is_ascii_alphabetic())
        && name
            .chars()
            .all(|it| it.is_ascii_alphanumeric() || it == '_');
    is_name.then_some(name)
}

fn lines(output: &[u8]) -> Vec<String> {
    String::from_utf8_lossy(output)
        .lines()
        .map(|line| line.trim_end().to_string())
        .collect()
}

#[test]
fn what_is_shown_may_leave_out_parts_of_lines_and_whole_lines() {
    let own = |lines: &[&str]| lines.iter().map(ToString::to_string).collect::<Vec<_>>();
    let fit = |shown: &[&str], printed: &[&str]| fits(&own(shown), &own(printed));
    assert!(fit(&["run [..] took [..] s"], &["run 7 took 0.1 s"]));
    assert!(!fit(&["run [..] took [..] s"], &["run 7 took 0.1 ms"]));
    assert!(fit(&["...", "end"], &["a", "b", "end"]) && fit(&["a", "..."], &["a"]));
    assert!(!fit(&["...", "end"], &["end", "more"]) && !fit(&["a"], &["a", "b"]));
}

#[test]
fn a_transcript_is_read_and_written_back() {
    let text = "# T\n$ prose\n```console\n$ a\n> b\nout\n[exit 3]\n$ c\n```\n```sh\n$ d\n```\n";
    let pieces = read(text);
    let step = |line, command: &str, expected: &[&str]| Piece::Step {
        line,
        command: command.to_string(),
        expected: expected.iter().map(ToString::to_string).collect(),
    };
    assert_eq!(pieces[3], step(4, "a\nb", &["out", "[exit 3]"]));
    assert_eq!(pieces[4], step(8, "c", &[]));
    assert!(
        !pieces
            .iter()
            .any(|it| matches!(it, Piece::Step { command, .. } if command == "d"))
    );
    assert_eq!(write(&pieces), text);
}

/// The runner runs its own manual, and finds a difference where there is one.
#[test]
fn commands_are_run_and_compared() {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("own.md");
    let text = "```console\n$ mkdir a; NAME=ignored\n$ cd a\n$ WORD=$(echo two words)\n$ echo \"$WORD\"; pwd; exit 3\n\
                two words\n[..]/here/a\n[exit 3]\n$ sh -c 'echo ready; sleep 60' &\nready\n```\n";
    fs::write(&file, text).unwrap();
    check(&file);
    fs::write(&file, text.replace("\ntwo words", "\nthree words")).unwrap();
    let difference = std::panic::catch_unwind(|| check(&file)).unwrap_err();
    let message = difference
        .downcast_ref::<String>()
        .expect("the panic has a message");
    assert!(message.contains("own.md:5: $ echo"), "{message}");
}
