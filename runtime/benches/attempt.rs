//! What one attempt costs, as a ratio to raw wasmtime in the same run.
//!
//! Raw wasmtime is the same engine (configuration and pool), an `InstancePre` and a WASI context,
//! without limiter, grants, budgets and reporting. Both sides take turns in short rounds, so that a
//! busy machine slows both; the median of the rounds is compared. The guest is `hello` of the folder
//! `WAFT_GUESTS` (`cargo xtask bench` builds it), or else a command written here as text.

#![expect(clippy::print_stdout, reason = "a bench reports on the terminal")]

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use criterion::Criterion;
use waft::clock::Clock;
use waft::model::artifact::Digest;
use waft::model::flow::Body;
use waft::model::grant::Grants;
use waft::model::id::FlowRunId;
use waft::model::limit::Limits;
use waft::model::value::Value;
use waft::sandbox::{
    Attempt, Call, Compiler, Kind, Outcome, Powers, Prepared, RunInfo, Sandbox, Says, Settings,
};
use wasmtime::component::types::ComponentItem;
use wasmtime::component::{
    Component, ComponentType, InstancePre, Lift, Linker, Lower, ResourceTable,
};
use wasmtime::{Engine, Store};
use wasmtime_wasi::{WasiCtx, WasiCtxView, WasiView};
use wasmtime_wasi_http::{WasiHttpCtx, WasiHttpCtxView, WasiHttpHooks, WasiHttpView};

/// Attempts of one side before the other has its turn, and how often they take turns.
const ROUND: u64 = 100;
const ROUNDS: usize = 200;
/// The promise (DESIGN: attempt <= 1.3x raw).
const RATIO_MAX: f64 = 1.3;

/// A command that returns at once.
const COMMAND: &str = r#"(component
    (core module $m (memory 17) (func (export "run") (result i32)
        (i32.store (i32.const 1048576) (i32.const 1)) (i32.const 0)))
    (core instance $i (instantiate $m))
    (func $run (result (result)) (canon lift (core func $i "run")))
    (instance (export "wasi:cli/run@0.2.0") (export "run" (func $run))))"#;

fn main() {
    let bench = Arc::new(Bench::new());
    let mut criterion = Criterion::default()
        .sample_size(20)
        .measurement_time(Duration::from_secs(2))
        .warm_up_time(Duration::from_millis(500))
        .configure_from_args();
    for threads in [1, 2] {
        let pool = pool(threads);
        for side in [Side::Raw, Side::Sandbox] {
            let name = format!("attempt/{side:?}/{threads}").to_lowercase();
            criterion.bench_function(&name, |bencher| {
                bencher.iter_custom(|count| bench.time(&pool, threads, side, count));
            });
        }
        bench.compare(&pool, threads);
    }
    criterion.final_summary();
}

#[derive(Clone, Copy, Debug)]
enum Side {
    Raw,
    Sandbox,
}

struct Bench {
    clock: Clock,
    sandbox: Sandbox,
    prepared: Arc<Prepared>,
    raw: Raw,
    /// The function behind the task of a flow.
    function: String,
    powers: Arc<Powers>,
    parameters: Arc<Vec<(String, Value)>>,
    _folder: tempfile::TempDir,
}

fn pool(threads: usize) -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(threads)
        .enable_all()
        .build()
        .expect("a runtime can be made")
}

fn guest() -> Vec<u8> {
    #[expect(clippy::disallowed_methods, reason = "a bench has no configuration")]
    let folder = std::env::var_os("WAFT_GUESTS").map(PathBuf::from);
    let hello = folder.map(|folder| folder.join("hello.wasm"));
    match hello.filter(|path| path.exists()) {
        Some(path) => std::fs::read(path).expect("the guest can be read"),
        None => wat::parse_str(COMMAND).expect("the text is a component"),
    }
}

impl Bench {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder can be made");
        let bytes = guest();
        let path = folder.path().join("guest.wasm");
        std::fs::write(&path, &bytes).expect("the guest can be written");
        let settings = Settings::new(Compiler::InProcess, folder.path().join("code"), 16);
        let sandbox = Sandbox::new(settings).expect("the sandbox can be made");
        let prepared = pool(1)
            .block_on(sandbox.prepare(Digest::of(&bytes), &path))
            .expect("the guest is a component");
        let function = match prepared.kind() {
            Kind::Command => String::new(),
            Kind::Flow => {
                let described = pool(1).block_on(sandbox.describe(&prepared));
                let described = described.expect("the guest describes itself");
                match &described.definition.tasks[0].body {
                    Body::Function(name) => name.clone(),
                    other => panic!("the first task has the body {other:?}"),
                }
            }
        };
        let raw = Raw::new(sandbox.engine(), &bytes, prepared.kind());
        let bench = Self {
            clock: Clock::default(),
            raw: raw.expect("raw wasmtime runs the guest"),
            function,
            sandbox,
            prepared,
            powers: Arc::default(),
            parameters: Arc::default(),
            _folder: folder,
        };
        println!(
            "guest: {:?} of {} bytes",
            bench.prepared.kind(),
            bytes.len()
        );
        bench
    }

    /// Runs attempts of one side on all threads, and returns the time of the slowest thread.
    fn time(
        self: &Arc<Self>,
        pool: &tokio::runtime::Runtime,
        threads: usize,
        side: Side,
        count: u64,
    ) -> Duration {
        pool.block_on(async {
            let workers: Vec<_> = (0..threads as u64)
                .map(|worker| {
                    let bench = Arc::clone(self);
                    let share = count / threads as u64 + u64::from(worker < count % threads as u64);
                    tokio::spawn(async move { bench.work(side, share).await })
                })
                .collect();
            let mut longest = Duration::ZERO;
            for worker in workers {
                longest = longest.max(worker.await.expect("a worker ends"));
            }
            longest
        })
    }

    /// Runs attempts one after the other, and returns the time from the first to the last: how long
    /// it took to wake a thread is not counted.
    async fn work(&self, side: Side, count: u64) -> Duration {
        let begin = self.clock.monotonic();
        for _ in 0..count {
            match side {
                Side::Raw => self
                    .raw
                    .attempt(&self.function)
                    .await
                    .expect("a raw attempt returns"),
                Side::Sandbox => {
                    let ended = self.sandbox.attempt(&self.prepared, self.attempt()).await;
                    let is_output = matches!(ended.outcome, Outcome::Output(_));
                    assert!(is_output, "{ended:?}");
                }
            }
        }
        self.clock.monotonic().since(begin)
    }

    fn attempt(&self) -> Attempt {
        let body = match self.prepared.kind() {
            Kind::Flow => Call::Function(self.function.clone()),
            Kind::Command => Call::Command {
                args: Vec::new(),
                env: Vec::new(),
                stdin: bytes::Bytes::new(),
            },
        };
        Attempt {
            body,
            inputs: vec![("name".to_owned(), Value::json("\"Ada\""))],
            info: RunInfo {
                flow_run_id: FlowRunId::at(0, 0),
                flow: "hello".to_owned(),
                task: "greet".to_owned(),
                map_index: None,
                attempt: 1,
                loop_count: 0,
                loop_value: None,
                scheduled_at: jiff::Timestamp::UNIX_EPOCH,
                idempotency_key: "key".to_owned(),
                approval: None,
            },
            parameters: Arc::clone(&self.parameters),
            grants: Grants::default(),
            powers: Arc::clone(&self.powers),
            limits: Limits::DEFAULT,
            stop: tokio::sync::watch::channel(false).1,
            says: Says::silent(),
        }
    }

    /// Lets both sides take turns and prints the ratio of their medians.
    fn compare(self: &Arc<Self>, pool: &tokio::runtime::Runtime, threads: usize) {
        let mut times = [Vec::new(), Vec::new()];
        for _ in 0..ROUNDS {
            for (side, times) in [Side::Raw, Side::Sandbox].into_iter().zip(&mut times) {
                times.push(self.time(pool, threads, side, ROUND));
            }
        }
        let [raw, own] = times.map(|mut times| {
            times.sort_unstable();
            times[times.len() / 2].as_secs_f64() / ROUND as f64 * 1e6
        });
        let ratio = own / raw;
        let verdict = if ratio <= RATIO_MAX { "kept" } else { "broken" };
        println!(
            "attempt on {threads} thread(s): {own:.1} us, raw wasmtime {raw:.1} us, ratio {ratio:.2} (promise <= {RATIO_MAX}: {verdict})"
        );
    }
}

/// The guest under wasmtime alone.
struct Raw {
    pre: InstancePre<RawCtx>,
    kind: Kind,
}

struct RawCtx {
    wasi: WasiCtx,
    http: WasiHttpCtx,
    table: ResourceTable,
    hooks: NoHttp,
}

struct NoHttp;

#[derive(Clone, Debug, ComponentType, Lift, Lower)]
#[component(record)]
struct RawValue {
    #[component(name = "content-type")]
    content_type: String,
    bytes: Vec<u8>,
}

#[derive(Clone, Debug, ComponentType, Lift, Lower)]
#[component(record)]
struct RawNamed {
    name: String,
    value: RawValue,
}

#[derive(Debug, ComponentType, Lift, Lower)]
#[component(record)]
struct RawFail {
    message: String,
    #[component(name = "is-final")]
    is_final: bool,
}

#[derive(Debug, ComponentType, Lift, Lower)]
#[component(record)]
struct RawSuccess {
    message: String,
    output: RawValue,
}

#[derive(Debug, ComponentType, Lift, Lower)]
#[component(record)]
struct RawRetry {
    message: String,
    #[component(name = "after-ms")]
    after_ms: Option<u64>,
}

#[derive(Debug, ComponentType, Lift, Lower)]
#[component(variant)]
enum RawSignal {
    #[component(name = "fail")]
    Fail(RawFail),
    #[component(name = "success")]
    Success(RawSuccess),
    #[component(name = "skip")]
    Skip(String),
    #[component(name = "retry")]
    Retry(RawRetry),
    #[component(name = "pause")]
    Pause(String),
    #[component(name = "loop")]
    Loop(RawValue),
}

#[expect(dead_code, reason = "only guests make one")]
#[derive(Clone, Copy, ComponentType, Lift, Lower)]
#[component(enum)]
#[repr(u8)]
enum RawLevel {
    #[component(name = "debug")]
    Debug,
    #[component(name = "info")]
    Info,
    #[component(name = "warning")]
    Warning,
    #[component(name = "error")]
    Error,
}

type Returned = (Result<RawValue, RawSignal>,);

impl Raw {
    fn new(engine: &Engine, bytes: &[u8], kind: Kind) -> wasmtime::Result<Self> {
        let component = Component::new(engine, bytes)?;
        let mut linker = Linker::new(engine);
        wasmtime_wasi::p2::add_to_linker_async(&mut linker)?;
        wasmtime_wasi_http::p2::add_only_http_to_linker_async(&mut linker)?;
        link_waft(&mut linker, &component)?;
        let pre = linker.instantiate_pre(&component)?;
        Ok(Self { pre, kind })
    }

    async fn attempt(&self, task: &str) -> wasmtime::Result<()> {
        let ctx = RawCtx {
            wasi: WasiCtx::builder().build(),
            http: WasiHttpCtx::new(),
            table: ResourceTable::new(),
            hooks: NoHttp,
        };
        let mut store = Store::new(self.pre.engine(), ctx);
        // The engine counts epochs; without limits nobody looks at them.
        store.set_epoch_deadline(u64::MAX / 2);
        let instance = self.pre.instantiate_async(&mut store).await?;
        let (interface, function) = match self.kind {
            Kind::Flow => ("waft:flow/tasks@0.1.0", "run"),
            Kind::Command => ("wasi:cli/run@0.2.0", "run"),
        };
        let interface = instance.get_export_index(&mut store, None, interface);
        let function = instance.get_export_index(&mut store, interface.as_ref(), function);
        let function = function.expect("the guest exports it");
        match self.kind {
            Kind::Flow => {
                let run = instance
                    .get_typed_func::<(&str, &[RawNamed]), Returned>(&mut store, function)?;
                let value = RawValue {
                    content_type: "application/json".to_owned(),
                    bytes: b"\"Ada\"".to_vec(),
                };
                let name = "name".to_owned();
                let inputs = [RawNamed { name, value }];
                let (returned,) = run.call_async(&mut store, (task, &inputs)).await?;
                assert!(returned.is_ok(), "{returned:?}");
            }
            Kind::Command => {
                let run = instance.get_typed_func::<(), (Result<(), ()>,)>(&mut store, function)?;
                let (returned,) = run.call_async(&mut store, ()).await?;
                assert!(returned.is_ok());
            }
        }
        Ok(())
    }
}

/// Links our own interfaces: logging does nothing, anything else is not expected of this guest.
fn link_waft(linker: &mut Linker<RawCtx>, component: &Component) -> wasmtime::Result<()> {
    let engine = component.engine();
    for (name, import) in component.component_type().imports(engine) {
        let ComponentItem::ComponentInstance(interface) = import.ty else {
            continue;
        };
        if !name.starts_with("waft:flow/") {
            continue;
        }
        let mut instance = linker.instance(name)?;
        for (function, export) in interface.exports(engine) {
            match export.ty {
                ComponentItem::ComponentFunc(_) if name.starts_with("waft:flow/log") => {
                    instance.func_wrap(function, |_, (_, _): (RawLevel, String)| Ok(()))?;
                }
                ComponentItem::ComponentFunc(_) => {
                    instance.func_new(function, |_, _, _, _| {
                        Err(wasmtime::Error::msg("the bench does not answer this"))
                    })?;
                }
                _ => {}
            }
        }
    }
    Ok(())
}

impl WasiView for RawCtx {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        WasiCtxView {
            ctx: &mut self.wasi,
            table: &mut self.table,
        }
    }
}

impl WasiHttpView for RawCtx {
    fn http(&mut self) -> WasiHttpCtxView<'_> {
        WasiHttpCtxView {
            hooks: &mut self.hooks,
            table: &mut self.table,
            ctx: &mut self.http,
        }
    }
}

type Io = Box<dyn Future<Output = Result<(), wasmtime_wasi_http::Error>> + Send>;
type Response = http::Response<wasmtime_wasi_http::WasiBody>;

impl WasiHttpHooks for NoHttp {
    fn send_request(
        &mut self,
        _: http::Request<wasmtime_wasi_http::WasiBody>,
        _: Option<wasmtime_wasi_http::RequestOptions>,
        _: Io,
    ) -> Box<dyn Future<Output = Result<(Response, Io), wasmtime_wasi_http::Error>> + Send> {
        Box::new(async { Err(wasmtime_wasi_http::Error::HttpRequestDenied) })
    }
}
