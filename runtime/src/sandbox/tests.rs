//! The sandbox as a whole, against guests written by hand.
//!
//! All of them are commands, whose one export is easily written as text: the limits are the same for
//! flows, which `tests/it` runs as real components.

use std::path::Path;
use std::time::Duration;

use super::*;
use crate::model::grant::Grants;
use crate::model::id::FlowRunId;
use crate::model::limit::{Limits, MIB};
use crate::model::value::Value;

struct World {
    sandbox: Sandbox,
    folder: tempfile::TempDir,
}

impl World {
    fn new(stores_max: usize) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let code = folder.path().join("code");
        let settings = Settings::new(Compiler::InProcess, code, stores_max);
        let sandbox = Sandbox::new(settings).unwrap();
        Self { sandbox, folder }
    }

    fn file(&self, bytes: &[u8]) -> (Digest, PathBuf) {
        let digest = Digest::of(bytes);
        let path = self.folder.path().join(digest.to_hex());
        std::fs::write(&path, bytes).unwrap();
        (digest, path)
    }

    async fn prepare(&self, text: &str) -> Result<Arc<Prepared>, SandboxError> {
        let (digest, path) = self.file(&wat::parse_str(text).unwrap());
        self.sandbox.prepare(digest, &path).await
    }

    async fn run_with(&self, text: &str, limits: Limits) -> Ended {
        let prepared = self.prepare(text).await.unwrap();
        self.sandbox.attempt(&prepared, attempt(limits)).await
    }

    async fn run(&self, text: &str) -> Ended {
        self.run_with(text, Limits::DEFAULT).await
    }

    async fn refused(&self, text: &str) -> (&'static str, String) {
        refusal(self.prepare(text).await)
    }
}

fn refusal(prepared: Result<Arc<Prepared>, SandboxError>) -> (&'static str, String) {
    match prepared.err().unwrap() {
        SandboxError::Rejected { code, message } => (code, message),
        SandboxError::Host(error) => panic!("{error:#}"),
    }
}

fn attempt(limits: Limits) -> Attempt {
    Attempt {
        body: Call::Command {
            args: Vec::new(),
            env: Vec::new(),
            stdin: bytes::Bytes::new(),
        },
        inputs: Vec::new(),
        info: RunInfo {
            flow_run_id: FlowRunId::at(0, 0),
            flow: "flow".to_owned(),
            task: "task".to_owned(),
            map_index: None,
            attempt: 1,
            loop_count: 0,
            loop_value: None,
            scheduled_at: jiff::Timestamp::UNIX_EPOCH,
            idempotency_key: "key".to_owned(),
            approval: None,
        },
        parameters: Arc::default(),
        grants: Grants::default(),
        powers: Arc::default(),
        limits,
        stop: tokio::sync::watch::channel(false).1,
        says: Says::silent(),
    }
}

/// A command of one core module; `body` is its `run`, which returns 0 for success.
fn command(fields: &str, body: &str) -> String {
    format!(
        r#"(component
            (core module $m {fields} (func $run (export "run") (result i32) {body}))
            (core instance $i (instantiate $m))
            {RUN})"#
    )
}

const RUN: &str = r#"
    (func $run (result (result)) (canon lift (core func $i "run")))
    (instance (export "wasi:cli/run@0.2.0") (export "run" (func $run)))"#;

fn broken(ended: &Ended) -> (&'static str, &str) {
    match &ended.outcome {
        Outcome::Broken { code, message } => (code, message),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_command_that_returns_has_an_output_and_a_receipt() {
    let world = World::new(4);
    let ended = world
        .run(&command(
            "(memory 3)",
            "(i32.store (i32.const 0) (i32.const 1)) (i32.const 0)",
        ))
        .await;
    let empty = Value {
        content_type: "text/plain; charset=utf-8".to_owned(),
        bytes: bytes::Bytes::new(),
    };
    assert_eq!(ended.outcome, Outcome::Output(empty));
    assert_eq!(ended.usage.memory_peak_bytes, 3 << 16);
    assert!(ended.usage.instantiate_us > 0);
    assert!(ended.denials.is_empty());
}

#[tokio::test]
async fn an_error_of_a_command_is_its_failure() {
    let world = World::new(4);
    let ended = world.run(&command("", "(i32.const 1)")).await;
    let message = "exit code 1".to_owned();
    let is_final = false;
    assert_eq!(ended.outcome, Outcome::Fail { message, is_final });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endless_loop_ends_at_its_cpu_limit_wherever_it_spins() {
    let world = World::new(4);
    let in_start = r#"(component
        (core module $m (func $spin (loop (br 0))) (start $spin)
            (func (export "run") (result i32) (i32.const 0)))
        (core instance $i (instantiate $m))"#
        .to_owned()
        + RUN
        + ")";
    for text in [command("", "(loop (br 0)) (i32.const 0)"), in_start] {
        let limits = Limits {
            cpu_ms: 100,
            ..Limits::DEFAULT
        };
        let clock = Clock::default();
        let begin = clock.monotonic();
        let ended = world.run_with(&text, limits).await;
        assert_eq!(broken(&ended).0, "limit.cpu");
        assert!(
            (100..1_000).contains(&ended.usage.cpu_ms),
            "{:?}",
            ended.usage
        );
        assert!(clock.monotonic().since(begin) < Duration::from_secs(10));
    }
}

#[tokio::test]
async fn neighbours_of_an_endless_loop_get_their_turn() {
    let world = World::new(4);
    let spin = command("", "(loop (br 0)) (i32.const 0)");
    let quick = world.prepare(&command("", "(i32.const 0)")).await.unwrap();
    let limits = Limits {
        cpu_ms: 400,
        ..Limits::DEFAULT
    };
    let mut spinning = std::pin::pin!(world.run_with(&spin, limits));
    // One thread serves both: without yielding, the second would wait for the first to end.
    let quick = async {
        tokio::time::sleep(Duration::from_millis(20)).await;
        world
            .sandbox
            .attempt(&quick, attempt(Limits::DEFAULT))
            .await
    };
    tokio::select! {
        _ = &mut spinning => panic!("the loop came first"),
        ended = quick => assert!(matches!(ended.outcome, Outcome::Output(_))),
    }
    assert_eq!(broken(&spinning.await).0, "limit.cpu");
}

#[tokio::test]
async fn memory_is_summed_over_all_memories() {
    let world = World::new(16);
    let grow = |memory: usize| format!("(drop (memory.grow {memory} (i32.const 32)))");
    let grows: String = (0..8).map(grow).collect();
    let fields = "(memory 1)".repeat(8);
    let limits = Limits {
        memory_bytes: 4 * MIB,
        ..Limits::DEFAULT
    };
    // A guest that takes the refusal well goes on.
    let ended = world
        .run_with(
            &command(&fields, &format!("{grows} (i32.const 0)")),
            limits.clone(),
        )
        .await;
    assert!(matches!(ended.outcome, Outcome::Output(_)), "{ended:?}");
    assert!(ended.usage.memory_peak_bytes <= 4 * MIB);
    assert!(ended.usage.memory_peak_bytes > 2 * MIB);
    // One that does not, was stopped by the limit.
    let ended = world
        .run_with(
            &command(&fields, &format!("{grows} unreachable")),
            limits.clone(),
        )
        .await;
    let expected = "the attempt reached its memory limit of 4 MiB";
    assert_eq!(broken(&ended), ("limit.memory", expected));
    let ended = world
        .run_with(&command("(memory 100)", "(i32.const 0)"), limits)
        .await;
    assert_eq!(broken(&ended).0, "limit.memory");
}

#[tokio::test]
async fn a_huge_table_is_a_limit_of_its_own() {
    let world = World::new(4);
    let ended = world
        .run(&command("(table 10000000 funcref)", "(i32.const 0)"))
        .await;
    assert_eq!(broken(&ended).0, "limit.table");
}

#[tokio::test]
async fn traps_are_told_apart() {
    let world = World::new(4);
    let table = [
        ("", "unreachable", "trap.unreachable"),
        ("", "(drop (call $run)) (i32.const 0)", "trap.stack"),
        ("(memory 1)", "(i32.load (i32.const -4))", "trap.oob"),
        (
            "",
            "(i32.div_u (i32.const 1) (i32.const 0))",
            "trap.arithmetic",
        ),
        (
            "(table 1 funcref)",
            "(call_indirect (i32.const 0)) (i32.const 0)",
            "trap.call",
        ),
        (
            "(memory 1) (data (i32.const 65536) \"x\")",
            "(i32.const 0)",
            "trap.oob",
        ),
        ("", "(i32.const 7)", "trap.abi"),
    ];
    for (fields, body, code) in table {
        let ended = world.run(&command(fields, body)).await;
        assert_eq!(broken(&ended).0, code, "{body}: {:?}", ended.outcome);
    }
    // And nothing of it hurts the next one.
    let ended = world.run(&command("", "(i32.const 0)")).await;
    assert!(matches!(ended.outcome, Outcome::Output(_)));
}

/// A command that sleeps in a host call for as long as there is time.
fn sleeper() -> String {
    r#"(component
        (import "wasi:io/poll@0.2.0" (instance $poll
            (export "pollable" (type $pollable (sub resource)))
            (export "[method]pollable.block" (func (param "self" (borrow $pollable))))))
        (alias export $poll "pollable" (type $pollable))
        (import "wasi:clocks/monotonic-clock@0.2.0" (instance $clock
            (alias outer 1 $pollable (type $outer))
            (export "pollable" (type $pollable (eq $outer)))
            (export "subscribe-duration" (func (param "when" u64) (result (own $pollable))))))
        (core func $subscribe (canon lower (func $clock "subscribe-duration")))
        (core func $block (canon lower (func $poll "[method]pollable.block")))
        (core module $m
            (import "host" "subscribe" (func $subscribe (param i64) (result i32)))
            (import "host" "block" (func $block (param i32)))
            (func (export "run") (result i32)
                (call $block (call $subscribe (i64.const 0x7fffffffffffffff)))
                (i32.const 0)))
        (core instance $i (instantiate $m (with "host" (instance
            (export "subscribe" (func $subscribe))
            (export "block" (func $block))))))"#
        .to_owned()
        + RUN
        + ")"
}

#[tokio::test]
async fn an_attempt_that_is_stopped_says_what_it_used() {
    let world = World::new(4);
    let spins = command("", "(loop (br 0)) (i32.const 0)");
    let spins = world.prepare(&spins).await.unwrap();
    let (stop, stopped) = tokio::sync::watch::channel(false);
    let attempt = Attempt {
        stop: stopped,
        ..attempt(Limits::DEFAULT)
    };
    let stopping = async {
        tokio::time::sleep(Duration::from_millis(20)).await;
        stop.send_replace(true);
    };
    let (ended, ()) = tokio::join!(world.sandbox.attempt(&spins, attempt), stopping);
    assert_eq!(ended.outcome, Outcome::Stopped);
    assert!(ended.usage.cpu_ms > 0, "{:?}", ended.usage);
}

#[tokio::test]
async fn a_sleep_in_a_host_call_ends_at_the_timeout_and_costs_no_cpu() {
    let world = World::new(4);
    let limits = Limits {
        wall_ms: 100,
        ..Limits::DEFAULT
    };
    let ended = world.run_with(&sleeper(), limits).await;
    let expected = "the attempt took more than its limit of 100 ms";
    assert_eq!(broken(&ended), ("limit.wall", expected));
    assert!(ended.usage.cpu_ms < 100);
    assert!(ended.usage.wall_ms >= 100);
}

#[tokio::test]
async fn a_dropped_attempt_gives_its_place_back() {
    let world = World::new(1);
    let sleeper = world.prepare(&sleeper()).await.unwrap();
    for _ in 0..50 {
        let asleep = world.sandbox.attempt(&sleeper, attempt(Limits::DEFAULT));
        let cut = tokio::time::timeout(Duration::from_millis(2), asleep).await;
        assert!(cut.is_err());
    }
    let ended = world.run(&command("(memory 1)", "(i32.const 0)")).await;
    assert!(matches!(ended.outcome, Outcome::Output(_)));
    assert_eq!(world.sandbox.panics(), 0);
}

#[tokio::test]
async fn attempts_beyond_the_places_wait_and_are_not_refused() {
    let world = World::new(2);
    let prepared = world.prepare(&command("(memory 1)", "(i32.const 0)")).await;
    let prepared = prepared.unwrap();
    let many = (0..20).map(|_| world.sandbox.attempt(&prepared, attempt(Limits::DEFAULT)));
    for ended in futures::future::join_all(many).await {
        assert!(matches!(ended.outcome, Outcome::Output(_)), "{ended:?}");
    }
    let (code, message) = world
        .refused(&command(&"(memory 1)".repeat(3), "(i32.const 0)"))
        .await;
    assert_eq!(code, "rejected.budget");
    assert!(message.contains("3 memories"), "{message}");
}

/// A command that makes handles of its own resource for ever.
#[tokio::test]
async fn a_flood_of_handles_ends_at_its_limit() {
    let world = World::new(4);
    let text = r#"(component
        (type $r (resource (rep i32)))
        (core func $new (canon resource.new $r))
        (core module $m
            (import "host" "new" (func $new (param i32) (result i32)))
            (func (export "run") (result i32)
                (loop (drop (call $new (i32.const 0))) (br 0))
                (i32.const 0)))
        (core instance $i (instantiate $m (with "host" (instance (export "new" (func $new))))))"#
        .to_owned()
        + RUN
        + ")";
    let ended = world.run(&text).await;
    assert_eq!(broken(&ended).0, "limit.handles");
}

/// A command that prints a page again and again; `times` is how often.
fn printer(times: u32) -> String {
    format!(
        r#"(component
        (import "wasi:io/error@0.2.0" (instance $error
            (export "error" (type $error (sub resource)))))
        (alias export $error "error" (type $error))
        (import "wasi:io/streams@0.2.0" (instance $streams
            (export "output-stream" (type $stream (sub resource)))
            (alias outer 1 $error (type $outer))
            (export "error" (type $error (eq $outer)))
            (type $failure (variant (case "last-operation-failed" (own $error)) (case "closed")))
            (export "stream-error" (type $stream-error (eq $failure)))
            (export "[method]output-stream.blocking-write-and-flush" (func
                (param "self" (borrow $stream)) (param "contents" (list u8))
                (result (result (error $stream-error)))))))
        (alias export $streams "output-stream" (type $stream))
        (import "wasi:cli/stdout@0.2.0" (instance $stdout
            (alias outer 1 $stream (type $outer))
            (export "output-stream" (type $stream (eq $outer)))
            (export "get-stdout" (func (result (own $stream))))))
        (core module $memory (memory (export "memory") 1) (data (i32.const 0) "[1234567]"))
        (core instance $memory (instantiate $memory))
        (core func $get (canon lower (func $stdout "get-stdout")))
        (core func $write (canon lower
            (func $streams "[method]output-stream.blocking-write-and-flush")
            (memory $memory "memory")))
        (core module $m
            (import "host" "get" (func $get (result i32)))
            (import "host" "write" (func $write (param i32 i32 i32 i32)))
            (func (export "run") (result i32) (local $stream i32) (local $left i32)
                (local.set $stream (call $get))
                (local.set $left (i32.const {times}))
                (loop
                    (call $write (local.get $stream) (i32.const 0) (i32.const 9) (i32.const 32))
                    (local.set $left (i32.sub (local.get $left) (i32.const 1)))
                    (br_if 0 (local.get $left)))
                (i32.const 0)))
        (core instance $i (instantiate $m (with "host" (instance
            (export "get" (func $get)) (export "write" (func $write))))))
        {RUN})"#
    )
}

#[tokio::test]
async fn what_a_command_prints_is_its_output_up_to_the_limit() {
    let world = World::new(4);
    let ended = world.run(&printer(1)).await;
    assert_eq!(ended.outcome, Outcome::Output(Value::json("[1234567]")));
    let ended = world.run(&printer(2)).await;
    let Outcome::Output(text) = ended.outcome else {
        panic!("{:?}", ended.outcome);
    };
    assert_eq!(text.content_type, "text/plain; charset=utf-8");
    let limits = Limits {
        output_bytes: 100,
        ..Limits::DEFAULT
    };
    let ended = world.run_with(&printer(12), limits).await;
    let expected = "the output is larger than the limit of 100 bytes";
    assert_eq!(broken(&ended), ("limit.output", expected));
}

#[tokio::test]
async fn what_cannot_be_run_is_refused_by_name() {
    let world = World::new(4);
    let unknown =
        r#"(component (import "acme:tools/hammer@1.0.0" (instance (export "hit" (func)))))"#;
    let (code, message) = world.refused(unknown).await;
    assert_eq!(code, "rejected.imports");
    assert_eq!(
        message,
        "it imports `acme:tools/hammer@1.0.0`, which nobody provides"
    );
    let wrong = r#"(component (import "waft:flow/log@0.1.0" (instance (export "shout" (func)))))"#;
    let (code, message) = world.refused(wrong).await;
    assert_eq!(code, "rejected.imports");
    assert!(message.contains("shout"), "{message}");
    let (code, _) = world.refused("(component)").await;
    assert_eq!(code, "rejected.exports");
    let odd = r#"(component
        (core module $m (func (export "run") (result i32) (i32.const 0)))
        (core instance $i (instantiate $m))
        (func $run (result u32) (canon lift (core func $i "run")))
        (instance (export "wasi:cli/run@0.2.0") (export "run" (func $run))))"#;
    let (code, message) = world.refused(odd).await;
    assert_eq!(code, "rejected.exports", "{message}");
    let (code, message) = world.refused("(module)").await;
    assert_eq!(code, "rejected.format");
    assert!(message.contains("it is a core module"), "{message}");
    let text = command("", "(i64.const 0)");
    let (code, message) = world.refused(&text).await;
    assert_eq!(code, "rejected.format", "{message}");
}

#[tokio::test]
async fn who_needs_more_memories_than_a_module_may_have_is_refused_each_time() {
    let world = World::new(20);
    let text = |memories: usize| command(&"(memory 1)".repeat(memories), "(i32.const 0)");
    let most = world.run(&text(16)).await;
    assert!(matches!(most.outcome, Outcome::Output(_)), "{most:?}");
    // The second time from the code that was kept.
    for _ in 0..2 {
        let (code, message) = world.refused(&text(17)).await;
        assert_eq!(code, "rejected.budget");
        assert!(message.contains("17"), "{message}");
    }
    let world = World::new(4);
    let (code, message) = world.refused(&text(5)).await;
    assert_eq!(code, "rejected.budget");
    assert_eq!(
        message,
        "it needs 5 memories at one time, more than the 4 of this agent"
    );
}

#[tokio::test]
async fn the_bytes_must_be_those_of_the_digest_and_are_read_once() {
    let world = World::new(4);
    let (_, path) = world.file(&wat::parse_str(command("", "(i32.const 0)")).unwrap());
    let other = Digest::of(b"other");
    let (code, _) = refusal(world.sandbox.prepare(other, &path).await);
    assert_eq!(code, "rejected.digest");

    let prepared = world.prepare(&command("", "(i32.const 0)")).await.unwrap();
    assert_eq!(prepared.kind(), Kind::Command);
    // Another sandbox with the same folder finds the code there; the bytes may be gone.
    let again = Sandbox::new(world.sandbox.0.settings.clone()).unwrap();
    let absent = Path::new("absent");
    let prepared = again.prepare(prepared.digest(), absent).await.unwrap();
    let ended = again.attempt(&prepared, attempt(Limits::DEFAULT)).await;
    assert!(matches!(ended.outcome, Outcome::Output(_)));
    assert!(again.prepare(other, absent).await.is_err());
}

#[tokio::test]
async fn a_command_does_not_describe_itself() {
    let world = World::new(4);
    let prepared = world.prepare(&command("", "(i32.const 0)")).await.unwrap();
    let Err(SandboxError::Rejected { code, .. }) = world.sandbox.describe(&prepared).await else {
        panic!("it described itself");
    };
    assert_eq!(code, "rejected.definition");
}

/// A guest's memory never shows what another left in the same slot of the pool.
#[tokio::test]
async fn a_fresh_memory_is_empty_whoever_was_there_before() {
    let world = World::new(1);
    let fill = "(memory.fill (i32.const 0) (i32.const 0xcc) (i32.const 0x800000)) (i32.const 0)";
    let look = "(local $at i32)
        (loop
            (if (i64.ne (i64.load (local.get $at)) (i64.const 0)) (then unreachable))
            (local.set $at (i32.add (local.get $at) (i32.const 8)))
            (br_if 0 (i32.lt_u (local.get $at) (i32.const 0x800000))))
        (i32.const 0)";
    for _ in 0..3 {
        for body in [fill, look] {
            let ended = world.run(&command("(memory 128)", body)).await;
            assert!(matches!(ended.outcome, Outcome::Output(_)), "{ended:?}");
        }
    }
}
