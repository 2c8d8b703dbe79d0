//! Describing: a flow says what it is, under the strictest conditions there are.
//!
//! It runs twice in fresh stores, without grants, with clocks that stand still and randomness that
//! is none; both answers must be the same, or nobody could say what was registered. What it says is
//! turned into the model's nouns (`definition.rs`) and checked there.

use std::sync::Arc;
use std::time::Duration;

use wasmtime_wasi::random::Deterministic;
use wasmtime_wasi::{HostMonotonicClock, HostWallClock};

use super::attempt::{Breach, MESSAGE_BYTES_MAX, Outcome, Says};
use super::bindings::exports::waft::flow::definition;
use super::grant::Secrets;
use super::host::log::Log;
use super::host::run::Run;
use super::linker::Linked;
use super::meter::Meter;
use super::net::{Denials, Net};
use super::stdio::Sink;
use super::store::{self, Stage};
use super::{Inner, Prepared, SandboxError, ending};
use crate::model::flow::Described;
use crate::model::grant::{Grants, Policy};
use crate::model::limit::{Limits, MIB};
use crate::model::run::Level;

/// What a description may use. The data that it returns is bounded here roughly, as it lies in
/// memory, and to the byte as a definition (`DEFINITION_BYTES_MAX`).
const LIMITS: Limits = Limits {
    cpu_ms: 5_000,
    wall_ms: 30_000,
    memory_bytes: 256 * MIB,
    output_bytes: 32 * MIB,
    ..Limits::DEFAULT
};
/// 2000-01-01T00:00:00Z: plainly no real time, and no special one.
const WALL: Duration = Duration::from_secs(946_684_800);

/// A clock that stands still.
struct Still;

impl HostWallClock for Still {
    fn resolution(&self) -> Duration {
        Duration::from_nanos(1)
    }

    fn now(&self) -> Duration {
        WALL
    }
}

impl HostMonotonicClock for Still {
    fn resolution(&self) -> u64 {
        1
    }

    fn now(&self) -> u64 {
        0
    }
}

impl Inner {
    pub(super) async fn describe(&self, prepared: &Prepared) -> Result<Described, SandboxError> {
        let first = self.described_once(prepared).await?;
        let second = self.described_once(prepared).await?;
        // Checking schemas and values takes up to a second.
        super::compiler::blocking(move || checked(first, &second)).await?
    }

    async fn described_once(&self, prepared: &Prepared) -> Result<definition::Flow, SandboxError> {
        let Linked::Flow(flow) = &prepared.linked else {
            let message = "a command does not describe itself".to_owned();
            return Err(rejected(message));
        };
        let _place = self
            .places
            .acquire_many(prepared.places)
            .await
            .expect("the semaphore is never closed");
        let _ticking = self.ticker.tick();
        let log = Log::new(Says::silent(), self.clock.clone(), &LIMITS);
        let meter = Arc::new(Meter::default());
        let mut stage = closed(&log);
        let stderr = Sink::errors(log.clone(), Level::Warning);
        stage.wasi.stderr(stderr.clone());
        let mut store = self.open(stage, &LIMITS, &meter);
        let call = async {
            let instance = flow.pre.instantiate_async(&mut store).await?;
            // Loaded here only to see that an attempt will be able to.
            flow.tasks.load(&mut store, &instance)?;
            let definition = flow.definition.load(&mut store, &instance)?;
            definition.call_describe(&mut store).await
        };
        let wall = Duration::from_millis(LIMITS.wall_ms);
        let error = match tokio::time::timeout(wall, meter.measure(call)).await {
            Ok(Ok(Ok(flow))) => return Ok(flow),
            Ok(Ok(Err(message))) => {
                return Err(rejected(log.clean(&message, MESSAGE_BYTES_MAX)));
            }
            Ok(Err(error)) => error,
            Err(_) => wasmtime::Error::new(Breach {
                code: "limit.wall",
                message: format!("it took more than the limit of {} ms", LIMITS.wall_ms),
            }),
        };
        Err(
            match ending::of(&error, &store.data().limiter, stderr.panic(), &log) {
                Outcome::Broken {
                    code: code @ "rejected.exports",
                    message,
                } => SandboxError::Rejected { code, message },
                Outcome::Broken { code, message } => {
                    rejected(format!("it could not describe itself: {message} ({code})"))
                }
                Outcome::Crashed { message } => SandboxError::Host(anyhow::Error::msg(message)),
                other => SandboxError::Host(anyhow::anyhow!("describing ended as {other:?}")),
            },
        )
    }
}

/// Turns what a flow said of itself, twice, into what it is.
fn checked(first: definition::Flow, second: &definition::Flow) -> Result<Described, SandboxError> {
    if first != *second {
        return Err(rejected(
            "it describes itself differently each time; what a flow is must not depend on time, chance or its surroundings"
                .to_owned(),
        ));
    }
    super::definition::described(first).map_err(rejected)
}

/// What a describing guest gets: nothing, the same each time.
fn closed(log: &Log) -> Stage {
    let denials = Arc::new(Denials::default());
    let mut wasi = store::wasi(&LIMITS);
    let sequence = || Deterministic::new((0..=255).collect());
    wasi.wall_clock(Still)
        .monotonic_clock(Still)
        .secure_random(sequence())
        .insecure_random(sequence())
        .insecure_random_seed(0);
    Stage {
        wasi,
        net: Net::new(&Grants::default(), &Policy::default(), &denials),
        run: Run::default(),
        granted_secrets: std::collections::BTreeSet::new(),
        secrets: Secrets::default(),
        denials,
        log: log.clone(),
    }
}

fn rejected(message: String) -> SandboxError {
    SandboxError::Rejected {
        code: "rejected.definition",
        message,
    }
}
