//! The engine: one wasmtime configuration, the pool of memories, and the ticker.
//!
//! There is one engine per process, made by `Sandbox::new` (and one in the compile child, with the
//! same configuration but without a pool). What a guest may be made of is [`FEATURES`]; what one
//! attempt may use is set on its store, in `attempt.rs`.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::{self, Thread};
use std::time::Duration;

use wasmtime::{
    Config, Engine, EngineWeak, InstanceAllocationStrategy, OptLevel, PoolingAllocationConfig,
    Strategy, WasmBacktraceDetails, WasmFeatures,
};

use super::grant;

/// The wasm that a component may be made of: what Rust, Python and JavaScript guests need.
///
/// Everything else is off: multi-value (compile bombs of 10 KB live on it), threads, memory64,
/// tail calls, exceptions, gc, relaxed SIMD, the asynchronous component model. Several memories are
/// on because composed components need them.
pub(crate) const FEATURES: WasmFeatures = WasmFeatures::MUTABLE_GLOBAL
    .union(WasmFeatures::SATURATING_FLOAT_TO_INT)
    .union(WasmFeatures::SIGN_EXTENSION)
    .union(WasmFeatures::REFERENCE_TYPES)
    .union(WasmFeatures::BULK_MEMORY)
    .union(WasmFeatures::SIMD)
    .union(WasmFeatures::FLOATS)
    .union(WasmFeatures::MULTI_MEMORY)
    .union(WasmFeatures::EXTENDED_CONST)
    .union(WasmFeatures::COMPONENT_MODEL);

/// How often running guests yield, and their CPU time is compared with their budget.
pub(crate) const TICK: Duration = Duration::from_millis(10);

/// Stack of the guest's own code; beyond it is `trap.stack`.
const WASM_STACK_BYTES: usize = 512 * 1024;
/// The whole stack of one call. What lies between is for host functions, whose overrun would abort
/// the process.
const CALL_STACK_BYTES: usize = 2 * 1024 * 1024;
/// What stays with a pool slot from one attempt to the next, set to zero by hand: cheaper than
/// giving the pages back and faulting them in again (98 µs against 74 µs an attempt).
const MEMORY_KEPT_BYTES: usize = 4 * 1024 * 1024;
/// The same for tables and stacks, which are small.
const SMALL_KEPT_BYTES: usize = 64 * 1024;
/// The most elements of a table for which address space is set aside. An attempt is held to far
/// fewer (`limiter.rs`), so that too large a table is that attempt's failure.
const TABLE_ELEMENTS: usize = 16 * 1024 * 1024;
/// Bytes of bookkeeping of one component; Python's has tens of thousands of functions.
const INSTANCE_BYTES: usize = 32 * 1024 * 1024;
/// Core instances of one component; the pool only counts them.
const INSTANCES_PER_STORE: u32 = 1_000;
/// Tables that come with each memory of the pool: the guest's own, and those of its adapters.
pub(crate) const TABLES_PER_MEMORY: u32 = 4;
/// A store costs about seven memory maps; twice that is left for everything else.
const MAPS_PER_STORE: usize = 16;

/// Makes the engine with a pool for `stores` attempts at one time.
///
/// Where the address space is too small for the pool (a limit on virtual memory), memories are made
/// on demand instead: slower, never wrong.
pub(crate) fn pooled(stores: u32) -> wasmtime::Result<Engine> {
    let mut pool = PoolingAllocationConfig::new();
    pool.total_component_instances(stores)
        .total_core_instances(stores.saturating_mul(INSTANCES_PER_STORE))
        .total_memories(stores)
        .total_tables(stores.saturating_mul(TABLES_PER_MEMORY))
        .total_stacks(stores)
        .max_memories_per_module(16)
        .max_tables_per_module(16)
        .table_elements(TABLE_ELEMENTS)
        .max_core_instance_size(INSTANCE_BYTES)
        .max_component_instance_size(INSTANCE_BYTES)
        .linear_memory_keep_resident(MEMORY_KEPT_BYTES)
        .table_keep_resident(SMALL_KEPT_BYTES)
        .async_stack_keep_resident(SMALL_KEPT_BYTES);
    let mut config = config();
    config.allocation_strategy(InstanceAllocationStrategy::Pooling(pool));
    match Engine::new(&config) {
        Ok(engine) => Ok(engine),
        Err(error) => {
            tracing::warn!(
                "no room for a pool of {stores} sandboxes, each gets its memory on demand: {error:#}"
            );
            on_demand()
        }
    }
}

/// Turns an error of wasmtime, which is no `std::error::Error`, into one that is passed on.
pub(crate) fn trouble(error: &wasmtime::Error) -> anyhow::Error {
    anyhow::anyhow!("{error:#}")
}

/// Makes the engine without a pool, for the compile child and where there is no room for one.
pub(crate) fn on_demand() -> wasmtime::Result<Engine> {
    Engine::new(&config())
}

/// What both kinds of engine share; compiled code fits either.
///
/// Compilation uses one thread (the feature for more is not built in): one bomb must not take all
/// cores.
fn config() -> Config {
    let mut config = Config::new();
    config
        .wasm_features(WasmFeatures::all(), false)
        .wasm_features(FEATURES, true)
        .concurrency_support(false)
        .strategy(Strategy::Cranelift)
        .cranelift_opt_level(OptLevel::Speed)
        .epoch_interruption(true)
        .max_wasm_stack(WASM_STACK_BYTES)
        .async_stack_size(CALL_STACK_BYTES)
        .async_stack_zeroing(true)
        // Function names are guest text, and frames cost time on every trap.
        .wasm_backtrace_max_frames(None)
        .wasm_backtrace_details(WasmBacktraceDetails::Disable)
        .native_unwind_info(false)
        .generate_address_map(true)
        .memory_init_cow(true);
    config
}

/// Returns how many stores may be open at one time on this machine, at most `wanted`.
pub(crate) fn stores_possible(wanted: usize) -> u32 {
    // Where there is no such file there is no such limit.
    let maps: usize = grant::open_dir("/proc/sys/vm".as_ref())
        .and_then(|dir| dir.read_to_string("max_map_count"))
        .ok()
        .and_then(|text| text.trim().parse().ok())
        .unwrap_or(usize::MAX);
    let possible = wanted.clamp(1, (maps / MAPS_PER_STORE).max(1));
    u32::try_from(possible).unwrap_or(u32::MAX)
}

/// Ticks without an open store before the ticker rests: between two attempts it does not, since
/// waking it costs more than a tick.
const IDLE_TICKS: u32 = 100;
/// How often a resting ticker looks whether its engine is still there.
const IDLE_LOOK: Duration = Duration::from_secs(1);

/// The thread that moves the engine's epoch on while any store is open.
///
/// It sleeps while nothing runs, so that an idle agent uses no CPU, and ends with the engine.
pub(crate) struct Ticker {
    open: Arc<AtomicUsize>,
    thread: Thread,
}

/// Keeps the ticker going for as long as it lives.
pub(crate) struct Ticking(Arc<AtomicUsize>);

impl Ticker {
    pub(crate) fn start(engine: &Engine) -> std::io::Result<Self> {
        let open = Arc::new(AtomicUsize::new(0));
        let engine = engine.weak();
        let seen = Arc::clone(&open);
        let handle = thread::Builder::new()
            .name("waft-ticker".to_owned())
            .spawn(move || tick(&engine, &seen))?;
        let thread = handle.thread().clone();
        Ok(Self { open, thread })
    }

    pub(crate) fn tick(&self) -> Ticking {
        if self.open.fetch_add(1, Ordering::AcqRel) == 0 {
            // Does nothing but leave a mark while the ticker is awake.
            self.thread.unpark();
        }
        Ticking(Arc::clone(&self.open))
    }
}

impl Drop for Ticker {
    fn drop(&mut self) {
        self.thread.unpark();
    }
}

impl Drop for Ticking {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

fn tick(engine: &EngineWeak, open: &AtomicUsize) {
    let mut idle = 0;
    loop {
        idle = match open.load(Ordering::Acquire) {
            0 => idle + 1,
            _ => 0,
        };
        match idle > IDLE_TICKS {
            true => thread::park_timeout(IDLE_LOOK),
            false => thread::sleep(TICK),
        }
        let Some(engine) = engine.upgrade() else {
            return;
        };
        engine.increment_epoch();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// That such code runs is seen in `code_cache.rs`.
    #[test]
    fn a_pool_makes_no_difference_to_the_name_of_compiled_code() {
        let pooled = pooled(2).unwrap();
        let hash = |engine: &Engine| {
            let mut hasher = std::hash::DefaultHasher::new();
            std::hash::Hash::hash(&engine.precompile_compatibility_hash(), &mut hasher);
            std::hash::Hasher::finish(&hasher)
        };
        assert_eq!(hash(&pooled), hash(&on_demand().unwrap()));
    }

    #[test]
    fn stores_are_capped_and_never_none() {
        assert_eq!(stores_possible(0), 1);
        assert_eq!(stores_possible(4), 4);
        assert!(stores_possible(usize::MAX) >= 1);
    }

    #[test]
    fn the_ticker_rests_while_nothing_is_open() {
        let engine = on_demand().unwrap();
        let ticker = Ticker::start(&engine).unwrap();
        let ticking = ticker.tick();
        assert_eq!(ticker.open.load(Ordering::Acquire), 1);
        drop(ticking);
        assert_eq!(ticker.open.load(Ordering::Acquire), 0);
    }
}
