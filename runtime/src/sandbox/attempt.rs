//! One attempt: a call into a component in a fresh store, with every limit on.
//!
//! [`Sandbox::attempt`](super::Sandbox::attempt) takes an [`Attempt`] and answers an [`Ended`],
//! whatever the guest does. Three ends are kept apart all the way: what the guest declares (its
//! output or a signal), what it breaks (a trap, a limit), and what is ours.

use std::fmt;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt as _;
use jiff::Timestamp;
use tokio::sync::{mpsc, watch};
use wasmtime::Store;
use wasmtime_wasi::I32Exit;

use super::bindings::exports::waft::flow::tasks;
use super::bindings::waft::flow::types;
use super::ctx::RunCtx;
use super::ending;
use super::grant::{GrantError, Powers};
use super::host::log::Log;
use super::host::run::{Run, from_guest, named_to_guest};
use super::linker::Linked;
use super::meter::Meter;
use super::net::Denials;
use super::stdio::Sink;
use super::store::{self, Stage};
use super::{Inner, Prepared};
use crate::model::grant::Grants;
use crate::model::id::FlowRunId;
use crate::model::limit::{Limits, MIB};
use crate::model::run::{CardContent, Decision, Level, Usage, denial_parts};
use crate::model::value::{JSON, Value};

/// Bytes of a message that a guest gives with its end.
pub(super) const MESSAGE_BYTES_MAX: usize = 4 * 1024;
/// A store that held more takes its time to be dropped, so another thread does it.
const DROPPED_ASIDE_BYTES: u64 = 16 * MIB;
/// Bytes of a content type.
const CONTENT_TYPE_BYTES_MAX: usize = 128;

/// What is run, for whom, with which powers.
pub struct Attempt {
    /// What is called.
    pub body: Call,
    /// One value for each edge with an input.
    pub inputs: Vec<(String, Value)>,
    /// What the guest may know about its run.
    pub info: RunInfo,
    /// The parameters of the flow run, as JSON.
    pub parameters: Arc<Vec<(String, Value)>>,
    /// What the task is granted: registered ∩ described.
    pub grants: Grants,
    /// What the agent allows, and the values behind it.
    pub powers: Arc<Powers>,
    /// The ceilings; `wall_ms` is the timeout.
    pub limits: Limits,
    /// Where log lines and cards go as they happen.
    pub says: Says,
    /// Stops it once this is true. Unlike one that is dropped, it still says what it used.
    pub stop: watch::Receiver<bool>,
}

/// What is called.
pub enum Call {
    /// `tasks.run` with this function name.
    Function(String),
    /// `wasi:cli/run`.
    Command {
        /// Arguments, without the program's name.
        args: Vec<String>,
        /// Environment variables, beside those that are granted.
        env: Vec<(String, String)>,
        /// Standard input: the parameters as one JSON object.
        stdin: Bytes,
    },
}

/// What a guest may know about the run it is part of.
#[derive(Clone, Debug)]
pub struct RunInfo {
    /// The flow run's id.
    pub flow_run_id: FlowRunId,
    /// The flow's name.
    pub flow: String,
    /// The task's name.
    pub task: String,
    /// The element of a mapped task.
    pub map_index: Option<u32>,
    /// The number of this attempt, from 1.
    pub attempt: u32,
    /// Iterations before this one.
    pub loop_count: u32,
    /// What the iteration before this one passed on.
    pub loop_value: Option<Value>,
    /// When the run was due.
    pub scheduled_at: Timestamp,
    /// The same for every attempt of this task run.
    pub idempotency_key: String,
    /// The word of a person by which it goes on after a pause.
    pub approval: Option<Decision>,
}

/// What a guest says while it runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Said {
    /// One log line, cleaned and cut.
    Line {
        /// When.
        at: Timestamp,
        /// How much it matters.
        level: Level,
        /// The text, one line.
        text: String,
    },
    /// One card; it replaces an earlier one of the same title.
    Card {
        /// Its title.
        title: String,
        /// What it holds.
        content: CardContent,
    },
}

/// Where log lines and cards go as they happen.
///
/// The channel itself has no bound: the limits of the attempt bound what one attempt can say.
#[derive(Clone, Debug)]
pub struct Says(Option<mpsc::UnboundedSender<Said>>);

impl Says {
    /// Makes a sink and the end where it comes out.
    #[must_use]
    pub fn channel() -> (Self, mpsc::UnboundedReceiver<Said>) {
        let (sender, receiver) = mpsc::unbounded_channel();
        (Self(Some(sender)), receiver)
    }

    /// Makes a sink that forgets.
    #[must_use]
    pub const fn silent() -> Self {
        Self(None)
    }

    pub(crate) fn say(&self, said: Said) {
        if let Some(sender) = &self.0 {
            // Nobody listens any more: the attempt is about to be dropped.
            let _ = sender.send(said);
        }
    }
}

/// How an attempt ended, what it used, and what it asked for in vain.
#[derive(Debug)]
pub struct Ended {
    /// How.
    pub outcome: Outcome,
    /// The receipt.
    pub usage: Usage,
    /// What it asked for and did not get, each with the line that would allow it.
    pub denials: Vec<String>,
}

/// How an attempt ended.
#[derive(Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It returned its output.
    Output(Value),
    /// It ended early as a success.
    Success {
        /// For a human.
        message: String,
        /// The output.
        output: Value,
    },
    /// It declared a failure.
    Fail {
        /// For a human.
        message: String,
        /// No retry, however many are left.
        is_final: bool,
    },
    /// It skipped itself, with the reason.
    Skip(String),
    /// It wishes to be tried again.
    Retry {
        /// For a human.
        message: String,
        /// Milliseconds to wait; none follows the retries of the task.
        after_ms: Option<u64>,
    },
    /// It waits for a person, with the reason.
    Pause(String),
    /// The next iteration starts with this value.
    Loop(Value),
    /// The flow's doing: it trapped, or broke a limit. `limit.wall` is a timeout.
    Broken {
        /// `trap.`, `limit.` or `payload.` and a word.
        code: &'static str,
        /// What happened.
        message: String,
    },
    /// It was stopped from outside.
    Stopped,
    /// Ours or the machine's doing.
    Crashed {
        /// What happened.
        message: String,
    },
}

impl From<Breach> for Outcome {
    fn from(Breach { code, message }: Breach) -> Self {
        Self::Broken { code, message }
    }
}

/// A limit that was broken, as an error that ends the guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Breach {
    pub(crate) code: &'static str,
    pub(crate) message: String,
}

impl Breach {
    pub(crate) fn output(bytes_max: u64) -> Self {
        Self {
            code: "limit.output",
            message: format!("the output is larger than the limit of {bytes_max} bytes"),
        }
    }

    pub(crate) fn cpu(cpu_ms: u64) -> Self {
        Self {
            code: "limit.cpu",
            message: format!("the attempt used more than its limit of {cpu_ms} ms of CPU time"),
        }
    }

    fn wall(wall_ms: u64) -> Self {
        Self {
            code: "limit.wall",
            message: format!("the attempt took more than its limit of {wall_ms} ms"),
        }
    }
}

impl fmt::Display for Breach {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Breach {}

impl Inner {
    /// Runs one attempt: stage, call under the clock, settle.
    pub(super) async fn attempt(&self, prepared: &Prepared, attempt: Attempt) -> Ended {
        let places = Arc::clone(&self.places);
        let place = places
            .acquire_many_owned(prepared.places)
            .await
            .expect("the semaphore is never closed");
        let ticking = self.ticker.tick();
        let limits = attempt.limits.clone();
        let stop = attempt.stop.clone();
        let denials = Arc::new(Denials::default());
        let log = Log::new(attempt.says.clone(), self.settings.clock.clone(), &limits);
        let staged = match self.stage(attempt, &log, &denials) {
            Ok(staged) => staged,
            Err(error) => return crashed(error.to_string(), denials.take()),
        };
        let Staged {
            mut store,
            meter,
            stdout,
            stderr,
            call,
        } = staged;

        let mut usage = Usage::default();
        let began = self.clock.monotonic();
        let called = self.call(prepared, &mut store, call, &mut usage);
        let guarded = AssertUnwindSafe(called).catch_unwind();
        let wall = Duration::from_millis(limits.wall_ms);
        let ended = tokio::select! {
            biased;
            () = stopped(stop) => None,
            ended = tokio::time::timeout(wall, meter.measure(guarded)) => Some(ended),
        };
        let outcome = match ended {
            None => Outcome::Stopped,
            Some(Ok(Ok(Ok(returned)))) => settled(returned, &stdout, &limits, &log),
            Some(Ok(Ok(Err(error)))) => {
                ending::of(&error, &store.data().limiter, stderr.panic(), &log)
            }
            Some(Ok(Err(_))) => self.panicked(),
            Some(Err(_)) => Breach::wall(limits.wall_ms).into(),
        };

        let ctx = store.data_mut();
        stdout.finish();
        stderr.finish();
        ctx.cards.finish();
        (usage.http_bytes_in, usage.http_bytes_out) = ctx.door.traffic().bytes();
        usage.memory_peak_bytes = ctx.limiter.peak();
        usage.log_bytes = log.finish();
        usage.cpu_ms = milliseconds(meter.spent());
        usage.wall_ms = milliseconds(self.clock.monotonic().since(began));
        if usage.memory_peak_bytes > DROPPED_ASIDE_BYTES {
            tokio::task::spawn_blocking(move || drop((store, place, ticking)));
        }
        let denials = denials.take();
        Ended {
            outcome: explained(outcome, &denials),
            usage,
            denials,
        }
    }

    /// Turns grants into handles and opens a store with them.
    fn stage(
        &self,
        attempt: Attempt,
        log: &Log,
        denials: &Arc<Denials>,
    ) -> Result<Staged, GrantError> {
        let Attempt {
            body,
            inputs,
            info,
            parameters,
            grants,
            powers,
            limits,
            says: _,
            stop: _,
        } = attempt;
        let granted = powers.grant(&grants, denials);
        let stdout = match &body {
            Call::Function(_) => Sink::lines(log.clone(), Level::Info),
            Call::Command { .. } => Sink::output(limits.output_bytes),
        };
        let stderr_level = match &body {
            Call::Function(_) => Level::Warning,
            Call::Command { .. } => Level::Info,
        };
        let stderr = Sink::errors(log.clone(), stderr_level);
        let mut wasi = store::wasi(&limits);
        wasi.stdout(stdout.clone()).stderr(stderr.clone());
        granted.give(&mut wasi)?;
        let call = match body {
            Call::Function(function) => Ready::Function {
                function,
                inputs: inputs.into_iter().map(named_to_guest).collect(),
            },
            Call::Command { args, env, stdin } => {
                wasi.arg(&info.flow).args(&args).envs(&env);
                wasi.stdin(wasmtime_wasi::p2::pipe::MemoryInputPipe::new(stdin));
                Ready::Command
            }
        };
        let meter = Arc::new(Meter::default());
        let store = self.open(
            Stage {
                wasi,
                net: granted.net,
                run: Run {
                    info: Some(info),
                    parameters,
                },
                granted_secrets: granted.secrets,
                secrets: powers.secrets().clone(),
                denials: Arc::clone(denials),
                log: log.clone(),
            },
            &limits,
            &meter,
        );
        Ok(Staged {
            store,
            meter,
            stdout,
            stderr,
            call,
        })
    }

    /// Instantiates the component and calls it.
    async fn call(
        &self,
        prepared: &Prepared,
        store: &mut Store<RunCtx>,
        call: Ready,
        usage: &mut Usage,
    ) -> wasmtime::Result<Returned> {
        let began = self.clock.monotonic();
        let mut instantiated = || {
            let took = self.clock.monotonic().since(began);
            usage.instantiate_us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        };
        match (&prepared.linked, call) {
            (Linked::Flow(flow), Ready::Function { function, inputs }) => {
                let instance = flow.pre.instantiate_async(&mut *store).await?;
                instantiated();
                let tasks = flow.tasks.load(&mut *store, &instance)?;
                let returned = tasks.call_run(store, &function, &inputs).await?;
                Ok(Returned::Flow(returned))
            }
            (Linked::Command(pre), Ready::Command) => {
                let command = pre.instantiate_async(&mut *store).await?;
                instantiated();
                let returned = match command.wasi_cli_run().call_run(store).await {
                    Ok(Ok(())) => 0,
                    Ok(Err(())) => 1,
                    Err(error) => match error.downcast_ref::<I32Exit>() {
                        Some(I32Exit(code)) => *code,
                        None => return Err(error),
                    },
                };
                Ok(Returned::Command(returned))
            }
            (Linked::Flow(_), Ready::Command) => Err(wrong_kind("a flow", "a command")),
            (Linked::Command(_), Ready::Function { .. }) => Err(wrong_kind("a command", "a flow")),
        }
    }

    fn panicked(&self) -> Outcome {
        self.panics
            .fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let message = "the sandbox itself failed, which is a bug of waft (internal)".to_owned();
        Outcome::Crashed { message }
    }
}

/// A store with everything in it, before the call.
struct Staged {
    store: Store<RunCtx>,
    meter: Arc<Meter>,
    stdout: Sink,
    stderr: Sink,
    call: Ready,
}

/// The call, with what it carries in the guest's own types.
enum Ready {
    Function {
        function: String,
        inputs: Vec<types::NamedValue>,
    },
    Command,
}

/// What came back from a guest that ended by itself.
enum Returned {
    Flow(Result<types::Value, tasks::Signal>),
    Command(i32),
}

/// Waits until the attempt is to stop; for ever if nobody can say so any more.
async fn stopped(mut stop: watch::Receiver<bool>) {
    if stop.wait_for(|is_wanted| *is_wanted).await.is_err() {
        std::future::pending().await
    }
}

fn wrong_kind(is: &str, called: &str) -> wasmtime::Error {
    ending::host(format!("the component is {is} and was called as {called}"))
}

fn crashed(message: String, denials: Vec<String>) -> Ended {
    Ended {
        outcome: Outcome::Crashed { message },
        usage: Usage::default(),
        denials,
    }
}

/// Turns what a guest returned into an outcome, and checks it on the way.
fn settled(returned: Returned, stdout: &Sink, limits: &Limits, log: &Log) -> Outcome {
    let message = |text: String| log.clean(&text, MESSAGE_BYTES_MAX);
    let value = |value| checked(from_guest(value), limits);
    let settled = match returned {
        Returned::Flow(Ok(output)) => value(output).map(Outcome::Output),
        Returned::Flow(Err(signal)) => match signal {
            tasks::Signal::Fail(fail) => Ok(Outcome::Fail {
                message: message(fail.message),
                is_final: fail.is_final,
            }),
            tasks::Signal::Success(success) => value(success.output).map(|output| {
                let message = message(success.message);
                Outcome::Success { message, output }
            }),
            tasks::Signal::Skip(reason) => Ok(Outcome::Skip(message(reason))),
            tasks::Signal::Retry(retry) => Ok(Outcome::Retry {
                message: message(retry.message),
                after_ms: retry.after_ms,
            }),
            tasks::Signal::Pause(reason) => Ok(Outcome::Pause(message(reason))),
            tasks::Signal::Loop(passed_on) => value(passed_on).map(Outcome::Loop),
        },
        Returned::Command(0) => Ok(Outcome::Output(printed(stdout.finish()))),
        Returned::Command(code) => Ok(Outcome::Fail {
            message: format!("exit code {code}"),
            is_final: false,
        }),
    };
    settled.unwrap_or_else(Outcome::from)
}

fn checked(value: Value, limits: &Limits) -> Result<Value, Breach> {
    if value.bytes.len() as u64 > limits.output_bytes {
        return Err(Breach::output(limits.output_bytes));
    }
    let ty = &value.content_type;
    let is_visible = ty.bytes().all(|byte| (b' '..=b'~').contains(&byte));
    if ty.is_empty() || ty.len() > CONTENT_TYPE_BYTES_MAX || !is_visible {
        return Err(Breach {
            code: "payload.content-type",
            message: "the content type of the output is not 1 to 128 visible characters".to_owned(),
        });
    }
    Ok(value)
}

/// What a command printed is JSON if it parses, else text if it is text.
fn printed(bytes: Bytes) -> Value {
    let content_type = match serde_json::from_slice::<&serde_json::value::RawValue>(&bytes) {
        Ok(_) => JSON,
        Err(_) if std::str::from_utf8(&bytes).is_ok() => "text/plain; charset=utf-8",
        Err(_) => "application/octet-stream",
    };
    Value {
        content_type: content_type.to_owned(),
        bytes,
    }
}

/// Adds to a failure what was denied before it, unless it says so itself: most likely that is why.
///
/// What would allow it goes with the denials, so that it is said once, as a hint.
fn explained(mut outcome: Outcome, denials: &[String]) -> Outcome {
    let (Outcome::Fail { message, .. } | Outcome::Broken { message, .. }) = &mut outcome else {
        return outcome;
    };
    let mut says_so = false;
    for denial in denials {
        let (fact, _) = denial_parts(denial);
        *message = message.replace(denial, fact);
        let about = fact.split('`').nth(1).unwrap_or(fact);
        says_so |= message.contains(fact) || (message.contains("grant") && message.contains(about));
    }
    if let (false, Some(denial)) = (says_so, denials.first()) {
        message.push_str("; denied before that: ");
        message.push_str(denial_parts(denial).0);
        if denials.len() > 1 {
            message.push_str(&format!(" (and {} more)", denials.len() - 1));
        }
    }
    outcome
}

fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_micros().div_ceil(1000)).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_says_once_what_was_denied_before_it() {
        let net = "connecting to `a.org:443` was not granted; ask for it in the task, \
                   #[task(net = [\"a.org:443\"])], and allow it: --allow-net a.org:443";
        let secret = "reading the secret `KEY` was not granted; ask for it";
        let said = |message: &str, denials: &[&str]| {
            let denials: Vec<_> = denials.iter().map(|&it| it.to_owned()).collect();
            let message = message.to_owned();
            let is_final = false;
            match explained(Outcome::Fail { message, is_final }, &denials) {
                Outcome::Fail { message, .. } => message,
                other => format!("{other:?}"),
            }
        };
        assert_eq!(said("no data", &[]), "no data");
        assert_eq!(
            said("no data", &[net, secret]),
            "no data; denied before that: connecting to `a.org:443` was not granted (and 1 more)"
        );
        let own = "connecting to a.org:443 is not granted";
        assert_eq!(said(own, &[net]), own);
        assert_eq!(
            said(&format!("no key: {secret}"), &[net, secret]),
            "no key: reading the secret `KEY` was not granted"
        );
    }
}
