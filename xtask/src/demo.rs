//! `cargo xtask demo`: one real flow through server and agent, from source to output.
//!
//! It types what a user would type, with the program of this repository, in a `WAFT_HOME` of its
//! own: nothing of the user's is touched. What it starts it also ends, by its own child's id.

use std::collections::BTreeMap;
use std::env;
use std::fs::{self, File};
use std::io::{BufRead as _, BufReader};
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use crate::cache::Cache;
use crate::say;
use crate::stage;
use crate::toolchain::{self, Toolchain};

/// How long server and agent may take until they are ready.
const START_PATIENCE: Duration = Duration::from_secs(60);

/// How much of the result is shown: a look at it, and not all of it.
const RESULT_LINES: usize = 12;
const LINE_CHARS: usize = 120;

/// How long they may take to end when asked, before they are made to.
const END_PATIENCE: Duration = Duration::from_secs(15);

/// Builds everything, runs `lockfile` on this repository's own `Cargo.lock`, and shows what came out.
pub(crate) fn run(cache: &Cache, stay: bool) -> Result<()> {
    let start = Instant::now();
    let _lock = cache.lock("demo")?;
    let waft = Waft::build(cache)?;
    say::note(&format!(
        "built in {:.1} s\n",
        start.elapsed().as_secs_f64()
    ));

    let listen = format!("127.0.0.1:{}", free_port()?);
    let granted = format!("{}::/repo:ro", cache.repository.display());
    let up = Up::start(&waft, &["up", "--listen", &listen, "--allow-dir", &granted])?;
    waft.show(&["project", "create", "demo"])?;
    waft.show(&[
        "register",
        "examples/lockfile",
        "--project",
        "demo",
        "--yes",
    ])?;
    let created = Instant::now();
    let create = [
        "flow-run",
        "create",
        "lockfile",
        "--project",
        "demo",
        "--watch",
        "--logs",
    ];
    waft.follow(&create)?;
    let seconds = created.elapsed().as_secs_f64();

    let runs = waft.ask(&[
        "flow-run", "list", "--flow", "lockfile", "--limit", "1", "--json",
    ])?;
    let id = runs[0]["id"]
        .as_str()
        .context("`waft flow-run list --json` lists no run")?;
    let flow_run = waft.ask(&["flow-run", "show", id, "--json"])?;
    say::line(&summary(&flow_run));
    let whole = folder(cache).join("flow-run.json");
    fs::write(&whole, format!("{flow_run:#}\n"))
        .with_context(|| format!("writing `{}`", whole.display()))?;
    say::line(&format!("all of it: {}", whole.display()));
    say::line(&format!("{seconds:.2} s from the command to the result"));
    let state = flow_run["state"].as_str().unwrap_or_default();
    ensure!(state == "Success", "the run ended as `{state}`");

    if stay {
        say::note(&format!("\nserver and agent stay up: {}", up.ready));
        say::note(&format!(
            "for `waft` in another shell: export WAFT_HOME='{}'",
            waft.home.display()
        ));
        say::note("the program: eval \"$(cargo xtask env)\"\nend with Ctrl-C");
        up.wait()
    } else {
        up.end()
    }
}

/// Returns lines for a shell, by which it finds the program that the last demo built.
pub(crate) fn exports(cache: &Cache) -> String {
    let folder = folder(cache);
    match folder.join("waft").is_file() {
        true => format!(
            "export PATH={}:\"$PATH\"\n",
            toolchain::quoted(&folder.to_string_lossy())
        ),
        false => "# no waft yet: cargo xtask demo builds it\n".to_string(),
    }
}

fn folder(cache: &Cache) -> PathBuf {
    cache.folder.join("demo")
}

/// The program of this repository, with a home of its own.
struct Waft {
    program: PathBuf,
    home: PathBuf,
    repository: PathBuf,
    guest_target: PathBuf,
    toolchain: Toolchain,
}

impl Waft {
    /// Builds the program, and keeps a copy that the next build leaves alone.
    fn build(cache: &Cache) -> Result<Self> {
        let _lock = cache.take_targets()?;
        let built = cache.target.join("debug/waft");
        say::note(&format!(
            "building {} (from nothing this takes many minutes)",
            built.display()
        ));
        let mut cargo = cache.cargo();
        let status = cargo
            .args(["build", "--package", "waft", "--locked"])
            .status();
        let status = status.context("starting `cargo build`")?;
        ensure!(
            status.success(),
            "`cargo build --package waft` failed: {status}"
        );

        let toolchain = toolchain::ensure(cache)?;

        let folder = folder(cache);
        fs::remove_dir_all(&folder).ok();
        let home = folder.join("home");
        fs::create_dir_all(&home).with_context(|| format!("making `{}`", home.display()))?;
        let program = folder.join("waft");
        fs::copy(&built, &program).context("copying the program")?;
        let repository = cache.repository.clone();
        let waft = Self {
            program,
            home,
            repository,
            guest_target: cache.guest_target.clone(),
            toolchain,
        };
        waft.show(&["build", "examples/lockfile"])?;
        Ok(waft)
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.args(words).current_dir(&self.repository);
        command
            .env("WAFT_HOME", &self.home)
            .env("CARGO_TARGET_DIR", &self.guest_target);
        // What a user set for their own server and agents must not lead the demo there.
        for (name, _) in env::vars_os() {
            if name.to_string_lossy().starts_with("WAFT__") {
                command.env_remove(name);
            }
        }
        self.toolchain.hand_to(&mut command);
        command
    }

    /// Runs a command as a user would see it.
    fn show(&self, words: &[&str]) -> Result<()> {
        self.run(words, Stdio::inherit())
    }

    /// Runs a command and shows what it tells a human, without its data.
    fn follow(&self, words: &[&str]) -> Result<()> {
        self.run(words, Stdio::null())
    }

    fn run(&self, words: &[&str], data: Stdio) -> Result<()> {
        let typed = words.join(" ");
        say::note(&format!("$ waft {typed}"));
        let status = self
            .command(words)
            .stdin(Stdio::null())
            .stdout(data)
            .status();
        let status = status.context("starting `waft`")?;
        ensure!(status.success(), "`waft {typed}` failed: {status}");
        Ok(())
    }

    /// Runs a command for its JSON.
    fn ask(&self, words: &[&str]) -> Result<Value> {
        let text = stage::output(&mut self.command(words))?;
        serde_json::from_str(&text)
            .with_context(|| format!("reading what `waft {}` printed", words.join(" ")))
    }
}

/// Server and agent in one child process, which ends with this value.
struct Up {
    child: Child,
    /// The line that the child printed when it was ready: address and login link.
    ready: String,
}

impl Up {
    /// Starts them, and waits until they say that they are ready.
    fn start(waft: &Waft, words: &[&str]) -> Result<Self> {
        say::note(&format!("$ waft {} &", words.join(" ")));
        let log = waft.home.with_file_name("up.log");
        let errors = File::create(&log).with_context(|| format!("making `{}`", log.display()))?;
        let mut command = waft.command(words);
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(errors);
        let child = command.spawn().context("starting `waft up`")?;
        let mut up = Self {
            child,
            ready: String::new(),
        };
        match up.first_line() {
            Some(line) => up.ready = line,
            None => {
                let why = match up.child.try_wait()? {
                    Some(status) => format!("ended before it was ready: {status}"),
                    None => format!("was not ready within {} s", START_PATIENCE.as_secs()),
                };
                let said = fs::read_to_string(&log).unwrap_or_default();
                bail!("`waft up` {why}\n{}", said.trim());
            }
        }
        say::note(&up.ready);
        Ok(up)
    }

    /// Returns the first line of output, unless it ends or takes too long. Reads on and drops the rest.
    fn first_line(&mut self) -> Option<String> {
        let stdout = self.child.stdout.take()?;
        let (sender, receiver) = mpsc::channel();
        thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                sender.send(line).ok();
            }
        });
        receiver.recv_timeout(START_PATIENCE).ok()
    }

    /// Waits until they end by themselves or by the user's hand.
    fn wait(mut self) -> Result<()> {
        let status = self.child.wait()?;
        if status.success() {
            Ok(())
        } else {
            bail!("`waft up` ended: {status}")
        }
    }

    /// Asks them to end, and waits for it.
    fn end(mut self) -> Result<()> {
        terminate(&self.child)?;
        let end = Instant::now() + END_PATIENCE;
        while Instant::now() < end {
            if let Some(status) = self.child.try_wait()? {
                ensure!(status.success(), "`waft up` ended: {status}");
                return Ok(());
            }
            thread::sleep(Duration::from_millis(20));
        }
        bail!(
            "`waft up` did not end within {} s of SIGTERM",
            END_PATIENCE.as_secs()
        )
    }
}

impl Drop for Up {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            self.child.kill().ok();
            self.child.wait().ok();
        }
    }
}

fn terminate(child: &Child) -> Result<()> {
    // The standard library sends SIGKILL only.
    stage::output(Command::new("kill").args(["-TERM", &child.id().to_string()])).map(drop)
}

fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

/// Writes what came out of a run: the beginning of its result, how many tasks ended how, and how long
/// they took. Its cards were shown while it was watched.
fn summary(flow_run: &Value) -> String {
    let none = Vec::new();
    let tasks = flow_run["tasks"].as_array().unwrap_or(&none);
    let mut states: BTreeMap<&str, usize> = BTreeMap::new();
    let mut rows: BTreeMap<&str, Row> = BTreeMap::new();
    for task in tasks {
        *states
            .entry(task["state"].as_str().unwrap_or("?"))
            .or_default() += 1;
        let row = rows
            .entry(task["task"].as_str().unwrap_or("?"))
            .or_default();
        row.runs += 1;
        row.attempts += task["attempts"].as_u64().unwrap_or_default();
        row.wall_ms += task["usage"]["wall_ms"].as_f64().unwrap_or_default();
        row.cpu_ms += task["usage"]["cpu_ms"].as_f64().unwrap_or_default();
    }
    let states: Vec<String> = states
        .iter()
        .map(|(state, count)| format!("{count} {state}"))
        .collect();
    let flow = flow_run["flow"].as_str().unwrap_or("?");
    let result = beginning(&outline(&flow_run["result"], 2));
    let mut text = format!("\nresult of {flow}:\n{result}\n");
    text += &format!(
        "\n{:<24} {:>6} {:>9} {:>10} {:>10}\n",
        "task", "runs", "attempts", "wall ms", "cpu ms"
    );
    for (
        task,
        Row {
            runs,
            attempts,
            wall_ms,
            cpu_ms,
        },
    ) in rows
    {
        text += &format!("{task:<24} {runs:>6} {attempts:>9} {wall_ms:>10.1} {cpu_ms:>10.1}\n");
    }
    let (from, to) = (&flow_run["started_at"], &flow_run["ended_at"]);
    text += &format!("\n{} task runs: {}\n", tasks.len(), states.join(", "));
    text += &format!(
        "started {}, ended {}",
        from.as_str().unwrap_or("?"),
        to.as_str().unwrap_or("?")
    );
    text
}

/// Cuts a text to its first lines, and these to a width.
fn beginning(text: &str) -> String {
    let mut lines: Vec<String> = text
        .lines()
        .take(RESULT_LINES)
        .map(|line| match line.char_indices().nth(LINE_CHARS) {
            Some((at, _)) => format!("{}…", &line[..at]),
            None => line.to_string(),
        })
        .collect();
    let left = text.lines().count().saturating_sub(RESULT_LINES);
    if left > 0 {
        lines.push(format!("  … and {left} more lines"));
    }
    lines.join("\n")
}

/// Writes JSON for reading: the outer levels one entry a line, what lies deeper on one line.
fn outline(value: &Value, levels: usize) -> String {
    let entries: Vec<String> = match value {
        Value::Object(fields) if levels > 0 => {
            let entry =
                |(name, it): (&String, &Value)| format!("{name}: {}", outline(it, levels - 1));
            fields.iter().map(entry).collect()
        }
        Value::Array(items) if levels > 0 => items
            .iter()
            .map(|it| format!("- {}", outline(it, 0)))
            .collect(),
        Value::String(text) => return text.clone(),
        other => return other.to_string(),
    };
    let lines = entries.join("\n").replace('\n', "\n  ");
    format!("\n  {lines}")
}

/// What the runs of one task took together.
#[derive(Default)]
struct Row {
    runs: usize,
    attempts: u64,
    wall_ms: f64,
    cpu_ms: f64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_result_is_cut() {
        let many: Vec<_> = (0..40).map(|nth| nth.to_string().repeat(100)).collect();
        let flow_run = serde_json::json!({"flow": "f", "result": many});
        let text = summary(&flow_run);
        assert!(text.contains("\n  … and 29 more lines\n"), "{text}");
        let widest = text.lines().map(|line| line.chars().count()).max();
        assert_eq!(widest, Some(LINE_CHARS + 1), "{text}");
        assert_eq!(beginning("short\nand whole"), "short\nand whole");
    }

    #[test]
    fn a_result_is_outlined_two_levels_deep() {
        let value = serde_json::json!({"a": {"b": [1, 2], "c": "d"}, "e": [{"f": 1}, {"f": 2}]});
        let expected = "\n  a: \n    b: [1,2]\n    c: d\n  e: \n    - {\"f\":1}\n    - {\"f\":2}";
        assert_eq!(outline(&value, 2), expected);
    }
}
