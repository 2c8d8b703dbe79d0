//! Runs other programs: quietly, one line a stage, with everything they said where one fails.

use std::env;
use std::fmt::Write as _;
use std::io::{BufRead as _, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use crate::say;

/// How often a stage that takes long says what it is at.
const SIGN_OF_LIFE: Duration = Duration::from_secs(30);

/// How many tests passed and failed, by what `cargo test` prints.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Count {
    pub(crate) passed: u64,
    pub(crate) failed: u64,
}

impl Count {
    /// Adds what one line of output reports, if it is a line of results.
    fn read(&mut self, line: &str) {
        let Some(rest) = line.strip_prefix("test result: ") else {
            return;
        };
        for part in rest.split(['.', ';']) {
            let mut words = part.split_whitespace();
            if let (Some(Ok(number)), Some(what)) =
                (words.next().map(str::parse::<u64>), words.next())
            {
                match what {
                    "passed" => self.passed += number,
                    "failed" => self.failed += number,
                    _ => {}
                }
            }
        }
    }
}

impl std::ops::AddAssign for Count {
    fn add_assign(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
    }
}

/// Runs one program as a stage: a line with its duration, and all of its output if it fails.
///
/// The tests it reported are counted in either case.
pub(crate) fn run(name: &str, command: &mut Command, count: &mut Count) -> Result<()> {
    let start = Instant::now();
    let (status, lines) = watch(command, |last| {
        let seconds = start.elapsed().as_secs();
        say::note(&format!("      {name}, {seconds} s: {}", last.trim()));
    })?;
    let mut here = Count::default();
    for line in &lines {
        here.read(line);
    }
    *count += here;
    let tests = match here {
        Count {
            passed: 0,
            failed: 0,
        } => String::new(),
        Count { passed, failed } => format!("  {passed} passed, {failed} failed"),
    };
    let seconds = start.elapsed().as_secs_f64();
    let verdict = if status.success() { "ok" } else { "FAILED" };
    if !status.success() {
        say::note(&lines.join("\n"));
    }
    say::note(&format!("{verdict:<6} {seconds:>7.1} s  {name}{tests}"));
    if status.success() {
        Ok(())
    } else {
        bail!("`{name}` failed: {status}: {}", spell(command))
    }
}

/// Runs a part of xtask as a stage: a line with its duration.
pub(crate) fn step<T>(name: &str, act: impl FnOnce() -> Result<T>) -> Result<T> {
    let start = Instant::now();
    let result = act();
    let verdict = if result.is_ok() { "ok" } else { "FAILED" };
    say::note(&format!(
        "{verdict:<6} {:>7.1} s  {name}",
        start.elapsed().as_secs_f64()
    ));
    result
}

/// Runs a program to its end and returns what it wrote to stdout.
///
/// If it fails, the error carries all that it wrote to stderr.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let output = command.stdin(Stdio::null()).output();
    let output = output.with_context(|| format!("starting {}", spell(command)))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!(
            "{} failed: {}: {}",
            spell(command),
            output.status,
            said.trim()
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Runs a program as `output` does, and stops it when the time is over.
pub(crate) fn output_within(command: &mut Command, patience: Duration) -> Result<()> {
    let end = Instant::now() + patience;
    let mut child = start(command)?;
    let lines = read_all(&mut child);
    let mut said = String::new();
    loop {
        match lines.recv_timeout(end.saturating_duration_since(Instant::now())) {
            Ok(line) => writeln!(said, "{line}")?,
            Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) => {
                child.kill()?;
                child.wait()?;
                bail!("{} took more than {} s", spell(command), patience.as_secs());
            }
        }
    }
    let status = child.wait()?;
    if status.success() {
        Ok(())
    } else {
        bail!("{} failed: {status}: {}", spell(command), said.trim())
    }
}

/// Says whether a program of that name is on `PATH`.
pub(crate) fn is_program(name: &str) -> bool {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path).any(|folder| folder.join(name).is_file())
}

fn watch(
    command: &mut Command,
    mut sign: impl FnMut(&str),
) -> Result<(std::process::ExitStatus, Vec<String>)> {
    let mut child = start(command)?;
    let receiver = read_all(&mut child);
    let mut lines = Vec::new();
    let mut next_sign = Instant::now() + SIGN_OF_LIFE;
    loop {
        match receiver.recv_timeout(next_sign.saturating_duration_since(Instant::now())) {
            Ok(line) => lines.push(line),
            Err(RecvTimeoutError::Disconnected) => return Ok((child.wait()?, lines)),
            Err(RecvTimeoutError::Timeout) => {
                sign(lines.last().map_or("no output yet", String::as_str));
                next_sign += SIGN_OF_LIFE;
            }
        }
    }
}

fn start(command: &mut Command) -> Result<Child> {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
        .spawn()
        .with_context(|| format!("starting {}", spell(command)))
}

/// Reads stdout and stderr of a child as they come; the channel closes when both have ended.
fn read_all(child: &mut Child) -> mpsc::Receiver<String> {
    let (sender, receiver) = mpsc::channel();
    if let Some(stdout) = child.stdout.take() {
        read(stdout, sender.clone());
    }
    if let Some(stderr) = child.stderr.take() {
        read(stderr, sender);
    }
    receiver
}

fn read(stream: impl Read + Send + 'static, sender: Sender<String>) {
    thread::spawn(move || {
        for line in BufReader::new(stream).split(b'\n').map_while(Result::ok) {
            if sender
                .send(String::from_utf8_lossy(&line).into_owned())
                .is_err()
            {
                return;
            }
        }
    });
}

/// Writes a command as one would type it, for an error.
fn spell(command: &Command) -> String {
    let program = Path::new(command.get_program());
    let name = program
        .file_name()
        .unwrap_or(program.as_os_str())
        .to_string_lossy()
        .into_owned();
    let arguments = command
        .get_args()
        .map(|it| it.to_string_lossy().into_owned());
    let words: Vec<String> = std::iter::once(name).chain(arguments).collect();
    format!("`{}`", words.join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_counted_and_other_lines_are_not() {
        let mut count = Count::default();
        count.read("test result: ok. 12 passed; 0 failed; 1 ignored; 0 measured; 3 filtered out");
        count
            .read("test result: FAILED. 1 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out");
        count.read("the test result: 7 failed");
        assert_eq!(
            count,
            Count {
                passed: 13,
                failed: 2
            }
        );
    }

    #[test]
    fn a_failing_stage_counts_its_tests_and_is_an_error() {
        let mut count = Count::default();
        let script = "echo 'test result: FAILED. 1 passed; 2 failed; 0 ignored'; exit 3";
        let result = run(
            "a test of xtask",
            Command::new("sh").args(["-c", script]),
            &mut count,
        );
        assert!(result.unwrap_err().to_string().contains("exit status: 3"));
        assert_eq!(
            count,
            Count {
                passed: 1,
                failed: 2
            }
        );
    }

    #[test]
    fn a_program_that_hangs_is_stopped() {
        let start = Instant::now();
        let error = output_within(Command::new("sleep").arg("60"), Duration::from_millis(50));
        assert!(error.unwrap_err().to_string().contains("took more than"));
        assert!(start.elapsed() < Duration::from_secs(20));
    }
}
