//! How a guest that did not end by itself ended: which limit, which trap, or our own fault.
//!
//! wasmtime hands back one error for all of it. Here it becomes a code and a sentence; a guest's own
//! text in it is cleaned and cut.

use wasmtime::Trap;
use wasmtime::component::ResourceTableError;
use wasmtime_wasi::I32Exit;

use super::attempt::{Breach, MESSAGE_BYTES_MAX, Outcome};
use super::host::log::Log;
use super::limiter::Limiter;

/// Something that went wrong on our side of the boundary.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct HostTrouble(String);

/// Makes an error that ends the attempt as our fault.
pub(crate) fn host(message: String) -> wasmtime::Error {
    wasmtime::Error::new(HostTrouble(message))
}

/// Says how a guest ended; `panic` is what it said of its last panic, if it is a guest that panics.
pub(crate) fn of(
    error: &wasmtime::Error,
    limiter: &Limiter,
    panic: Option<String>,
    log: &Log,
) -> Outcome {
    let clean = |text: String| log.clean(&text, MESSAGE_BYTES_MAX);
    if let Some(breach) = error.downcast_ref::<Breach>() {
        return breach.clone().into();
    }
    if is_ours(error) {
        let message = clean(format!("{error:#}"));
        return Outcome::Crashed { message };
    }
    if let Some((code, message)) = limiter.breach() {
        // A guest that gets no memory gives up with whatever its language does then.
        return Outcome::Broken { code, message };
    }
    let (code, what) = broken(error);
    // After a panic Rust executes `unreachable`, which says nothing to anybody.
    let panic = panic.filter(|_| code == trap_code(Trap::UnreachableCodeReached));
    let message = clean(match (panic, what) {
        (Some(panic), _) => panic,
        (None, Some(what)) => what.to_owned(),
        (None, None) => format!("{error:#}"),
    });
    Outcome::Broken { code, message }
}

fn is_ours(error: &wasmtime::Error) -> bool {
    error.is::<HostTrouble>()
        || error.is::<wasmtime::PoolConcurrencyLimitError>()
        || error.is::<tokio::task::JoinError>()
        // The machine has no memory map, descriptor or page left.
        || (error.is::<std::io::Error>() && !error.is::<Trap>())
}

fn broken(error: &wasmtime::Error) -> (&'static str, Option<&'static str>) {
    if let Some(trap) = error.downcast_ref::<Trap>() {
        return (trap_code(*trap), None);
    }
    if error.is::<I32Exit>() {
        return (
            "trap.exit",
            Some("it ended its process instead of returning"),
        );
    }
    if let Some(ResourceTableError::Full) = error.downcast_ref() {
        let message = "it has more files, streams and requests open than its limit allows";
        return ("limit.handles", Some(message));
    }
    // These errors of wasmtime have no type that could be asked for.
    let text = format!("{error:#}");
    match () {
        // Found out when a flow is instantiated for the first time, to describe itself.
        () if text.contains("failed to convert function to given type") => {
            ("rejected.exports", None)
        }
        () if text.contains("fuel allocated for hostcalls") => (
            "limit.output",
            Some("it passed more data to the host in one call than its output limit allows"),
        ),
        () if text.contains("store handle limit exceeded") => (
            "limit.handles",
            Some("it holds more handles than its limit allows"),
        ),
        () if text.contains("resource limit exceeded") => ("limit.memory", None),
        () if text.contains("exceeds limit") && text.contains("requested len") => (
            "limit.random",
            Some("it asked for more randomness in one call than its limit allows"),
        ),
        // What is left are the rules of the boundary: handles, strings, variants, pointers.
        () => ("trap.abi", None),
    }
}

const fn trap_code(trap: Trap) -> &'static str {
    match trap {
        Trap::UnreachableCodeReached => "trap.unreachable",
        Trap::StackOverflow => "trap.stack",
        Trap::MemoryOutOfBounds | Trap::TableOutOfBounds | Trap::ArrayOutOfBounds => "trap.oob",
        Trap::IntegerOverflow | Trap::IntegerDivisionByZero | Trap::BadConversionToInteger => {
            "trap.arithmetic"
        }
        Trap::IndirectCallToNull | Trap::BadSignature | Trap::NullReference => "trap.call",
        _ => "trap.abi",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;
    use crate::model::limit::Limits;
    use crate::sandbox::attempt::Says;

    fn ended(error: impl Into<wasmtime::Error>, limiter: &Limiter) -> String {
        ended_saying(error, limiter, None)
    }

    fn ended_saying(
        error: impl Into<wasmtime::Error>,
        limiter: &Limiter,
        panic: Option<&str>,
    ) -> String {
        let log = Log::new(Says::silent(), Clock::default(), &Limits::DEFAULT);
        match of(&error.into(), limiter, panic.map(str::to_owned), &log) {
            Outcome::Broken { code, message } => format!("{code}: {message}"),
            Outcome::Crashed { message } => format!("crashed: {message}"),
            other => format!("{other:?}"),
        }
    }

    #[test]
    fn the_three_ends_are_kept_apart() {
        let free = Limiter::new(u64::MAX);
        let table = [
            (
                ended(Trap::UnreachableCodeReached, &free),
                "trap.unreachable: wasm trap: wasm `unreachable` instruction executed",
            ),
            (
                ended(wasmtime::Error::new(Breach::cpu(5)), &free),
                "limit.cpu: the attempt used more than its limit of 5 ms of CPU time",
            ),
            (ended(host("no room".to_owned()), &free), "crashed: no room"),
            (
                ended(wasmtime::Error::msg("invalid \u{1b} utf-8"), &free),
                "trap.abi: invalid \\u{1b} utf-8",
            ),
            (
                ended(ResourceTableError::Full, &free),
                "limit.handles: it has more files, streams and requests open than its limit allows",
            ),
        ];
        for (found, expected) in table {
            assert_eq!(found, expected);
        }
    }

    #[test]
    fn a_panic_is_told_in_its_own_words_and_no_other_trap_is() {
        let free = Limiter::new(u64::MAX);
        let said = Some("panicked at src/lib.rs:7:96: no \u{1b} way");
        assert_eq!(
            ended_saying(Trap::UnreachableCodeReached, &free, said),
            "trap.unreachable: panicked at src/lib.rs:7:96: no \\u{1b} way"
        );
        let other = ended_saying(Trap::MemoryOutOfBounds, &free, said);
        assert!(other.starts_with("trap.oob: wasm trap"), "{other}");
        let long = "panicked ".repeat(MESSAGE_BYTES_MAX);
        let cut = ended_saying(Trap::UnreachableCodeReached, &free, Some(&long));
        assert!(cut.ends_with(" … (cut)") && cut.len() < MESSAGE_BYTES_MAX + 64);
    }

    #[test]
    fn a_trap_after_memory_was_refused_is_a_memory_limit() {
        let mut full = Limiter::new(0);
        let grown = wasmtime::ResourceLimiter::memory_growing(&mut full, 0, 1 << 16, None);
        assert!(!grown.unwrap());
        let found = ended(Trap::UnreachableCodeReached, &full);
        assert!(found.starts_with("limit.memory: "), "{found}");
    }
}
