//! One attempt: look into the task cache, run the sandbox, pass on what is said, keep the output.

use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use futures::FutureExt as _;
use jiff::{SignedDuration, Timestamp};
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::sync::{OwnedSemaphorePermit, oneshot, watch};

use super::{Inner, Tell, Told, chain, command};
use crate::model::flow::{self, Body, Definition, Described, OnLost};
use crate::model::grant::Grants;
use crate::model::graph::{self, Ended, Ending, Lost};
use crate::model::id::FlowRunId;
use crate::model::limit::Limits;
use crate::model::parameter::Bound;
use crate::model::run::{Card, Happening, Level, LogLine, ResultRef, TaskRunKey, Usage};
use crate::model::value::Value;
use crate::sandbox::{self, Call, Outcome, Prepared, RunInfo, Said, Says};
use crate::storage::{CacheBy, CacheKey, StorageError};

/// Log lines that are told at a time.
const LINES: usize = 256;
/// Bytes of log lines after which the next ones are told apart; a report must fit a request.
const LINES_BYTES: usize = 256 * 1024;
/// How often a value is read before it is taken for lost or damaged.
const LOOKS: u32 = 3;
/// How long a run that waits for the place of its results leaves it alone between two tries.
const PATIENCE: Duration = Duration::from_secs(5);

/// What all attempts of a run share.
pub(super) struct Shared {
    pub(super) runner: Arc<Inner>,
    pub(super) flow_run_id: FlowRunId,
    pub(super) project: String,
    pub(super) prepared: Arc<Prepared>,
    pub(super) described: Arc<Described>,
    pub(super) registered: Arc<Definition>,
    pub(super) bound: Bound,
    pub(super) parameters: Arc<Vec<(String, Value)>>,
    pub(super) scheduled_at: Timestamp,
    /// What each task may, found out at its first attempt.
    pub(super) rights: Vec<OnceLock<Rights>>,
    pub(super) tell: Tell,
    /// Set to true, it stops every attempt that is going on.
    pub(super) stop: watch::Sender<bool>,
    /// Whether a task of it may not be made twice, so that the run is not handed back where it can wait.
    pub(super) waits_here: bool,
    /// Whether it waits, and has said so.
    pub(super) is_waiting: AtomicBool,
}

/// Says that the place of results is away, so that the run cannot go on here. Nobody is to blame for that
/// in the run.
#[derive(Debug)]
pub(super) struct Away(pub(super) StorageError);

/// What the attempts of a task may.
#[derive(Clone, Debug)]
pub(super) struct Rights {
    grants: Grants,
    limits: Limits,
}

impl Shared {
    /// Makes one attempt. Whatever happens, there is an end; a panic is ours.
    pub(super) async fn attempt(
        self: Arc<Self>,
        attempt: graph::Attempt,
        turn: OwnedSemaphorePermit,
    ) -> Result<Ended, Away> {
        match AssertUnwindSafe(self.try_attempt(attempt, turn))
            .catch_unwind()
            .await
        {
            Ok(ended) => ended,
            Err(_) => {
                self.runner.panics.fetch_add(1, Ordering::Relaxed);
                Ok(ended(Ending::Crash {
                    message: "the runner itself failed, which is a bug of waft".to_owned(),
                }))
            }
        }
    }

    async fn try_attempt(
        &self,
        attempt: graph::Attempt,
        turn: OwnedSemaphorePermit,
    ) -> Result<Ended, Away> {
        let slot = attempt.slot;
        let task = &self.described.definition.tasks[slot.task()];
        let cached_by = task
            .cache
            .as_ref()
            .map(|cache| (cache, attempt.inputs.clone()));
        if let Some((cache, inputs)) = &cached_by
            && attempt.number == 1
            && attempt.loop_count == 0
            && let Some(ended) = self.cached(task, slot, cache, inputs).await?
        {
            return Ok(ended);
        }
        if attempt.has_to_ask {
            return Ok(ended(Ending::Queue));
        }
        let key = attempt.start.task_run.clone();
        let start = Happening::TaskRun(attempt.start);
        match task.on_lost {
            OnLost::Retry => self.tell(start).await,
            OnLost::Fail => self.tell_and_wait(start).await,
        }
        let number = attempt.number;
        let (says, said) = Says::channel();
        let rights = self.rights(attempt.slot.task(), task);
        let attempt = sandbox::Attempt {
            body: self.call(task),
            inputs: attempt.inputs,
            info: RunInfo {
                flow_run_id: self.flow_run_id,
                flow: self.described.definition.name.clone(),
                task: task.name.clone(),
                map_index: attempt.slot.map_index(),
                attempt: number,
                loop_count: attempt.loop_count,
                loop_value: attempt.loop_value,
                scheduled_at: self.scheduled_at,
                idempotency_key: format!("{}/{key}", self.flow_run_id),
                approval: attempt.approval,
            },
            parameters: self.parameters.clone(),
            grants: rights.grants.clone(),
            powers: self.runner.settings.powers.clone(),
            limits: rights.limits.clone(),
            says,
            stop: self.stop.subscribe(),
        };
        let ended = self.sandboxed(attempt, said, &key, number).await;
        // What follows waits for the disk, not for a processor.
        drop(turn);
        let ending = self.ending(ended.outcome).await?;
        if let (Some((cache, inputs)), Ending::Success { value, .. }) = (&cached_by, &ending) {
            self.keep_for_later(task, slot, cache, inputs, value).await;
        }
        Ok(Ended {
            ending,
            usage: ended.usage,
            denials: ended.denials,
        })
    }

    /// Runs the sandbox and tells meanwhile what the guest says.
    async fn sandboxed(
        &self,
        attempt: sandbox::Attempt,
        mut said: UnboundedReceiver<Said>,
        key: &TaskRunKey,
        number: u32,
    ) -> sandbox::Ended {
        let running = self
            .runner
            .settings
            .sandbox
            .attempt(&self.prepared, attempt);
        tokio::pin!(running);
        let mut heard = Vec::new();
        let ended = loop {
            tokio::select! {
                biased;
                ended = &mut running => break ended,
                count = said.recv_many(&mut heard, LINES) => {
                    self.pass_on(&mut heard, key, number).await;
                    if count == 0 {
                        break running.await;
                    }
                }
            }
        };
        said.close();
        while said.recv_many(&mut heard, LINES).await > 0 {
            self.pass_on(&mut heard, key, number).await;
        }
        ended
    }

    /// Tells lines and cards in the order in which they were said.
    async fn pass_on(&self, heard: &mut Vec<Said>, key: &TaskRunKey, attempt: u32) {
        let mut lines = Vec::new();
        let mut bytes = 0;
        for said in heard.drain(..) {
            match said {
                Said::Line { at, level, text } => {
                    bytes += text.len();
                    if bytes > LINES_BYTES && !lines.is_empty() {
                        bytes = text.len();
                        let lines = std::mem::take(&mut lines);
                        self.tell(Happening::Log { lines }).await;
                    }
                    lines.push(LogLine {
                        at,
                        level,
                        task_run: Some(key.clone()),
                        attempt,
                        text,
                    });
                }
                Said::Card { title, content } => {
                    if !lines.is_empty() {
                        let lines = std::mem::take(&mut lines);
                        self.tell(Happening::Log { lines }).await;
                    }
                    let task_run = key.clone();
                    let card = Card {
                        task_run,
                        title,
                        content,
                    };
                    self.tell(Happening::Card { card }).await;
                }
            }
        }
        if !lines.is_empty() {
            self.tell(Happening::Log { lines }).await;
        }
    }

    async fn tell(&self, what: Happening) {
        self.tell_with(what, None).await;
    }

    /// Tells something that must be known before the run goes on: an attempt that may never be made
    /// twice is not begun before whoever decides about that has heard of it.
    async fn tell_and_wait(&self, what: Happening) {
        let (settled, is_settled) = oneshot::channel();
        self.tell_with(what, Some(settled)).await;
        if is_settled.await.is_err() {
            // It never will be: this run is about to be stopped.
            std::future::pending::<()>().await;
        }
    }

    async fn tell_with(&self, what: Happening, settled: Option<oneshot::Sender<()>>) {
        let at = self.runner.settings.clock.now();
        // Who no longer listens will drop this run soon.
        let _ = self.tell.send(Told { at, what, settled }).await;
    }

    fn call(&self, task: &flow::Task) -> Call {
        match &task.body {
            Body::Function(name) => Call::Function(name.clone()),
            // The graph passes the values of a merge on by itself.
            Body::Merge => Call::Function(task.name.clone()),
            Body::Command => {
                let command = self.described.definition.command.clone();
                command::call(&command.unwrap_or_default(), &self.bound)
            }
        }
    }

    /// A task may what was registered and what its component asks for; of that, the sandbox gives
    /// what this machine allows.
    fn rights(&self, at: usize, task: &flow::Task) -> &Rights {
        self.rights[at].get_or_init(|| {
            let same_place = self.registered.tasks.get(at);
            let registered = same_place
                .filter(|own| own.name == task.name)
                .or_else(|| self.registered.task(&task.name));
            let grants = registered.map(|own| own.grants.intersection(&task.grants));
            let ceiling = &self.runner.settings.ceiling;
            Rights {
                grants: grants.unwrap_or_default(),
                limits: Limits::of(&task.limits, task.timeout_ms, ceiling),
            }
        })
    }

    /// Makes durable what must be, and translates the rest.
    async fn ending(&self, outcome: Outcome) -> Result<Ending, Away> {
        Ok(match outcome {
            Outcome::Output(value) => self.success(String::new(), value).await?,
            Outcome::Success { message, output } => self.success(message, output).await?,
            Outcome::Loop(value) => match self.keep(&value).await? {
                Ok(result) => Ending::Loop { value, result },
                Err(message) => Ending::Crash { message },
            },
            Outcome::Fail { message, is_final } => Ending::Fail {
                message,
                code: None,
                is_final,
            },
            Outcome::Skip(reason) => Ending::Skip(reason),
            Outcome::Retry { message, after_ms } => Ending::Retry { message, after_ms },
            Outcome::Pause(reason) => Ending::Pause(reason),
            Outcome::Broken {
                code: "limit.wall",
                message,
            } => Ending::TimeOut { message },
            Outcome::Broken { code, message } => Ending::Fail {
                message,
                code: Some(code.to_owned()),
                is_final: false,
            },
            Outcome::Stopped => Ending::Stopped,
            Outcome::Crashed { message } => Ending::Crash { message },
        })
    }

    /// Keeps an output; a success is one only after that.
    pub(super) async fn success(&self, message: String, value: Value) -> Result<Ending, Away> {
        Ok(match self.keep(&value).await? {
            Ok(result) => Ending::Success {
                message,
                value,
                result,
            },
            Err(message) => Ending::Crash { message },
        })
    }

    /// Keeps a value. The inner error is of one that the place does not take, while it takes others.
    pub(super) async fn keep(&self, value: &Value) -> Result<Result<ResultRef, String>, Away> {
        let results = &self.runner.settings.results;
        let kept = self.patiently(|| results.append(value)).await?;
        Ok(kept.map_err(|error| format!("its output could not be kept: {}", chain(&error))))
    }

    /// Reads what was kept. The inner error is of a value that is gone or damaged, while others are not: it is
    /// believed only after so many looks.
    pub(super) async fn read(&self, result: &ResultRef) -> Result<Result<Value, Lost>, Away> {
        let results = &self.runner.settings.results;
        let mut looks = 1;
        loop {
            let error = match self.patiently(|| results.read(result)).await? {
                Ok(value) => return Ok(Ok(value)),
                Err(error) => error,
            };
            if looks == LOOKS {
                return Ok(Err(lost(&error)));
            }
            looks += 1;
        }
    }

    /// Asks the place of results, and decides here alone what a failure means for the run: if it is the place
    /// that fails, the run goes on elsewhere or later. A run that may not be made twice waits for it here, as
    /// long as it may take, and says so in its log.
    async fn patiently<T, F>(&self, ask: impl Fn() -> F) -> Result<Result<T, StorageError>, Away>
    where
        F: Future<Output = Result<T, StorageError>>,
    {
        loop {
            let error = match ask().await {
                Err(error) if error.failed_place().is_some() => error,
                answer => {
                    if self.is_waiting.swap(false, Ordering::Relaxed) {
                        let text = "the place of its results answers again, and it goes on";
                        self.say(Level::Info, text.to_owned()).await;
                    }
                    return Ok(answer);
                }
            };
            if !self.waits_here {
                return Err(Away(error));
            }
            // Once, however many of its tasks wait.
            if !self.is_waiting.swap(true, Ordering::Relaxed) {
                let error = chain(&error);
                tracing::warn!(run.id = %self.flow_run_id, error, "it waits for the place of its results");
                let text = format!("it waits for the place of its results: {error}");
                self.say(Level::Warning, text).await;
            }
            self.runner.settings.clock.sleep(PATIENCE).await;
        }
    }

    /// Says something in the log of the run as a whole.
    async fn say(&self, level: Level, text: String) {
        let line = LogLine {
            at: self.runner.settings.clock.now(),
            level,
            task_run: None,
            attempt: 0,
            text,
        };
        self.tell(Happening::Log { lines: vec![line] }).await;
    }

    /// Looks for an earlier output. It is kept anew with this run, so that it lives as long.
    async fn cached(
        &self,
        task: &flow::Task,
        slot: graph::Slot,
        cache: &flow::Cache,
        inputs: &[(String, Value)],
    ) -> Result<Option<Ended>, Away> {
        let settings = &self.runner.settings;
        let key = self.cache_key(task, slot, cache, inputs);
        let Some(value) = settings.task_cache.get(&key, settings.clock.now()).await else {
            return Ok(None);
        };
        Ok(Some(ended(match self.keep(&value).await? {
            Ok(result) => Ending::Cached { value, result },
            Err(message) => Ending::Crash { message },
        })))
    }

    async fn keep_for_later(
        &self,
        task: &flow::Task,
        slot: graph::Slot,
        cache: &flow::Cache,
        inputs: &[(String, Value)],
        value: &Value,
    ) {
        let settings = &self.runner.settings;
        let valid_ms = cache
            .valid_ms
            .and_then(|valid_ms| i64::try_from(valid_ms).ok());
        let expires_at = valid_ms.and_then(|valid_ms| {
            let valid = SignedDuration::from_millis(valid_ms);
            settings.clock.now().checked_add(valid).ok()
        });
        let key = self.cache_key(task, slot, cache, inputs);
        // The output itself is safe; without an entry, a later run only works once more.
        if let Err(error) = settings.task_cache.put(&key, value, expires_at).await {
            tracing::warn!(
                run.id = %self.flow_run_id,
                task.name = %task.name,
                "an output was not kept for later runs: {}",
                chain(&error)
            );
        }
    }

    fn cache_key<'a>(
        &'a self,
        task: &'a flow::Task,
        slot: graph::Slot,
        cache: &'a flow::Cache,
        inputs: &'a [(String, Value)],
    ) -> CacheKey<'a> {
        CacheKey {
            project: &self.project,
            flow: &self.described.definition.name,
            task: &task.name,
            by: match &cache.key {
                Some(name) => CacheBy::Named(name, slot.map_index()),
                None => CacheBy::Inputs(self.prepared.digest(), inputs),
            },
        }
    }
}

/// Says why a value is lost while its place is there.
fn lost(error: &StorageError) -> Lost {
    let code = match error {
        StorageError::NotFound { .. } | StorageError::Withheld { .. } => "results.lost",
        StorageError::Damaged { .. } => "results.damaged",
        _ => "internal",
    };
    let why = chain(error);
    Lost { why, code }
}

/// An end without an attempt in a sandbox.
pub(super) fn ended(ending: Ending) -> Ended {
    Ended {
        ending,
        usage: Usage::default(),
        denials: Vec::new(),
    }
}
