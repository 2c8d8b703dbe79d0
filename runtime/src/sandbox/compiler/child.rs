//! The compile child: the same program, started again to compile one component and end.
//!
//! It gets the artifact as standard input, writes machine code to standard output, and has ceilings
//! of memory and CPU time that it sets on itself before it reads a byte. It has no environment and
//! no arguments but the ceilings. What goes wrong it says on standard error, and in its exit code.

use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;
use std::process::{ExitCode, ExitStatus, Stdio};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::Command;
use wasmtime::Engine;

use super::{Ceiling, Failure, Refusal};
use crate::model::limit::MIB;
use crate::sandbox::engine;

/// The argument that tells the child from the program.
const COMPILE: &str = "__compile";
/// Exit codes of the child: whose fault it was.
const EXIT_FORMAT: u8 = 10;
const EXIT_COMPILE: u8 = 11;
const EXIT_HOST: u8 = 12;
/// How a program of Rust ends that panics: the compiler met what it has no answer to.
const EXIT_PANIC: u8 = 101;
/// Real time over CPU time, for machines with more to do.
const WALL_PER_CPU: u64 = 4;
/// Bytes of what the child says that are kept.
const MESSAGE_BYTES_MAX: usize = 2_000;

/// Compiles one component and returns, if this process was started to do that.
///
/// `main` calls this before anything else, and so does a program that embeds an agent: the
/// sandbox starts the same program again to compile. `None` means that this is no such process.
#[must_use]
pub fn child_main() -> Option<ExitCode> {
    let mut args = std::env::args_os().skip(1);
    if args.next()? != COMPILE {
        return None;
    }
    let number = |arg: Option<std::ffi::OsString>| arg?.to_str()?.parse().ok();
    let (Some(memory_bytes), Some(cpu_seconds)) = (number(args.next()), number(args.next())) else {
        return Some(ExitCode::from(EXIT_HOST));
    };
    let ceiling = Ceiling {
        memory_bytes,
        cpu_seconds,
    };
    let (code, message) = match compile_stdin(ceiling) {
        Ok(()) => return Some(ExitCode::SUCCESS),
        Err(Failure::Refused(refusal)) if refusal.code == "rejected.format" => {
            (EXIT_FORMAT, refusal.message)
        }
        Err(Failure::Refused(refusal)) => (EXIT_COMPILE, refusal.message),
        Err(Failure::Host(error)) => (EXIT_HOST, format!("{error:#}")),
    };
    // Where nobody listens the exit code has to do.
    let _ = std::io::stderr().write_all(message.as_bytes());
    Some(ExitCode::from(code))
}

fn compile_stdin(ceiling: Ceiling) -> Result<(), Failure> {
    let host = |error: std::io::Error| Failure::Host(error.into());
    confine(ceiling).map_err(host)?;
    let mut bytes = Vec::new();
    std::io::stdin().read_to_end(&mut bytes).map_err(host)?;
    let engine = engine::on_demand().map_err(|error| Failure::Host(engine::trouble(&error)))?;
    let code = precompile(&engine, &bytes)?;
    let mut stdout = std::io::stdout().lock();
    stdout.write_all(&code).map_err(host)?;
    stdout.flush().map_err(host)
}

/// Compiles; a component that is not valid wasm is told apart from one that does not compile.
pub(super) fn precompile(engine: &Engine, bytes: &[u8]) -> Result<Vec<u8>, Failure> {
    engine.precompile_component(bytes).map_err(|error| {
        let mut validator = wasmparser::Validator::new_with_features(engine::FEATURES);
        let refusal = match validator.validate_all(bytes) {
            Err(invalid) => Refusal::format(format!(
                "it is not a valid component: {} at byte {}",
                invalid.message(),
                invalid.offset()
            )),
            Ok(_) => Refusal::compile(format!("it does not compile: {error:#}")),
        };
        refusal.into()
    })
}

/// Takes away from this process what a compiler does not need.
#[cfg(unix)]
fn confine(ceiling: Ceiling) -> std::io::Result<()> {
    use rustix::process::{Resource, Rlimit, setrlimit};
    let limit = |soft: u64, hard: u64| Rlimit {
        current: Some(soft),
        maximum: Some(hard),
    };
    let memory = limit(ceiling.memory_bytes, ceiling.memory_bytes);
    setrlimit(Resource::As, memory)?;
    // The first second over is a signal that says why, the next one the end.
    let cpu = limit(ceiling.cpu_seconds, ceiling.cpu_seconds + 1);
    setrlimit(Resource::Cpu, cpu)?;
    setrlimit(Resource::Core, limit(0, 0))?;
    // Politeness only: running attempts come first.
    let _ = rustix::process::nice(10);
    Ok(())
}

#[cfg(not(unix))]
fn confine(_: Ceiling) -> std::io::Result<()> {
    Ok(())
}

/// Starts the child, hands it the component and waits; the code lands in `output`.
pub(super) async fn compile(
    program: &Path,
    bytes: &[u8],
    output: std::io::Result<File>,
    ceiling: Ceiling,
) -> Result<(), Failure> {
    let host = |error: std::io::Error| {
        let what = format!("compiling with `{}`", program.display());
        Failure::Host(anyhow::Error::new(error).context(what))
    };
    let mut child = Command::new(program)
        .arg(COMPILE)
        .arg(ceiling.memory_bytes.to_string())
        .arg(ceiling.cpu_seconds.to_string())
        .env_clear()
        .stdin(Stdio::piped())
        .stdout(output.map_err(host)?)
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(host)?;
    let (stdin, stderr) = (child.stdin.take(), child.stderr.take());
    let wall = Duration::from_secs(ceiling.cpu_seconds * WALL_PER_CPU);
    let ended = tokio::time::timeout(wall, async {
        let feed = async {
            // A child that ended early has said why.
            if let Some(mut stdin) = stdin {
                let _ = stdin.write_all(bytes).await;
            }
        };
        let hear = async {
            let mut said = Vec::new();
            if let Some(stderr) = stderr {
                let mut head = stderr.take(MESSAGE_BYTES_MAX as u64);
                head.read_to_end(&mut said).await?;
            }
            Ok::<_, std::io::Error>(said)
        };
        let ((), said) = tokio::join!(feed, hear);
        Ok((child.wait().await?, said?))
    });
    let Ok(ended) = ended.await else {
        // The CPU time was not spent, or a signal would have come: the machine was too slow.
        return Err(Failure::Host(anyhow::anyhow!(
            "compiling it took more than {} s, most of them without a processor",
            wall.as_secs()
        )));
    };
    let (status, said) = ended.map_err(host)?;
    judge(status, &said, ceiling)
}

/// Turns how the child ended into whose fault it was.
fn judge(status: ExitStatus, said: &[u8], ceiling: Ceiling) -> Result<(), Failure> {
    if status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(said);
    let said = super::super::host::log::cleaned(said.trim(), MESSAGE_BYTES_MAX);
    match status.code() {
        Some(code) if code == i32::from(EXIT_FORMAT) => Err(Refusal::format(said).into()),
        Some(code) if code == i32::from(EXIT_COMPILE) => Err(Refusal::compile(said).into()),
        Some(code) if code == i32::from(EXIT_PANIC) => {
            Err(Refusal::compile(format!("the compiler gave up on it: {said}")).into())
        }
        Some(code) => Err(Failure::Host(anyhow::anyhow!(
            "the compiler ended with exit code {code}: {said}"
        ))),
        None => Err(killed(status, ceiling)),
    }
}

/// Tells a limit that the component reached from a signal that somebody else sent, such as a
/// machine without memory.
#[cfg(unix)]
fn killed(status: ExitStatus, ceiling: Ceiling) -> Failure {
    use std::os::unix::process::ExitStatusExt as _;
    let signal = status.signal().unwrap_or_default();
    match signal {
        libc::SIGXCPU => Refusal::compile(format!(
            "compiling it took more than the limit of {} s of CPU time",
            ceiling.cpu_seconds
        ))
        .into(),
        // This is how a process ends that gets no more memory, or no more stack.
        libc::SIGABRT | libc::SIGSEGV | libc::SIGBUS | libc::SIGILL | libc::SIGTRAP => {
            Refusal::compile(format!(
                "compiling it took more than the limit of {} MiB of memory (signal {signal})",
                ceiling.memory_bytes / MIB
            ))
            .into()
        }
        _ => Failure::Host(anyhow::anyhow!(
            "the compiler was killed (signal {signal}), not by its own limits"
        )),
    }
}

#[cfg(not(unix))]
fn killed(_: ExitStatus, ceiling: Ceiling) -> Failure {
    let _ = MIB;
    let seconds = ceiling.cpu_seconds;
    Failure::Host(anyhow::anyhow!(
        "the compiler was killed (limit: {seconds} s)"
    ))
}

#[cfg(all(test, unix))]
mod tests {
    use std::os::unix::process::ExitStatusExt as _;

    use super::*;

    const CEILING: Ceiling = Ceiling {
        memory_bytes: 536 * MIB,
        cpu_seconds: 22,
    };

    fn judged(status: i32, said: &str) -> String {
        match judge(ExitStatus::from_raw(status), said.as_bytes(), CEILING) {
            Ok(()) => "done".to_owned(),
            Err(Failure::Refused(refusal)) => format!("{}: {}", refusal.code, refusal.message),
            Err(Failure::Host(error)) => format!("host: {error:#}"),
        }
    }

    #[test]
    fn the_end_of_the_child_says_which_limit_was_reached() {
        let exit = |code: u8| i32::from(code) << 8;
        let table = [
            (exit(0), "done"),
            (exit(EXIT_FORMAT), "rejected.format: no"),
            (exit(EXIT_COMPILE), "rejected.compile: no"),
            (
                exit(EXIT_HOST),
                "host: the compiler ended with exit code 12: no",
            ),
            (
                exit(EXIT_PANIC),
                "rejected.compile: the compiler gave up on it: no",
            ),
            (
                libc::SIGXCPU,
                "rejected.compile: compiling it took more than the limit of 22 s of CPU time",
            ),
            (
                libc::SIGABRT,
                "rejected.compile: compiling it took more than the limit of 536 MiB of memory (signal 6)",
            ),
            (
                libc::SIGKILL,
                "host: the compiler was killed (signal 9), not by its own limits",
            ),
            (
                libc::SIGTERM,
                "host: the compiler was killed (signal 15), not by its own limits",
            ),
        ];
        for (status, expected) in table {
            assert_eq!(judged(status, "no\n"), expected);
        }
    }

    #[test]
    fn what_is_invalid_is_told_apart_from_what_does_not_compile() {
        let engine = engine::on_demand().unwrap();
        let invalid =
            wat::parse_str("(component (core module (func (result i32) i64.const 0)))").unwrap();
        let Err(Failure::Refused(refusal)) = precompile(&engine, &invalid) else {
            panic!("it compiled");
        };
        assert_eq!(refusal.code, "rejected.format");
        assert!(
            refusal.message.contains("type mismatch"),
            "{}",
            refusal.message
        );
    }

    #[test]
    fn features_that_no_guest_needs_are_refused() {
        let engine = engine::on_demand().unwrap();
        for body in [
            "(memory i64 1)",
            "(memory 1 1 shared)",
            "(func (param i32) (return_call 0 (local.get 0)))",
            "(func (result i32 i32) (i32.const 0) (i32.const 0))",
            "(tag) (func (throw 0))",
            "(type (struct))",
        ] {
            let bytes = wat::parse_str(format!("(component (core module {body}))")).unwrap();
            assert!(precompile(&engine, &bytes).is_err(), "{body}");
        }
    }
}
