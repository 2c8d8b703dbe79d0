//! Opening a store: where every limit of an attempt is set, whoever calls.
//!
//! An attempt and a description open their stores here, so that neither can forget a limit.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use wasmtime::component::ResourceTable;
use wasmtime::{Store, UpdateDeadline};
use wasmtime_wasi::WasiCtxBuilder;
use wasmtime_wasi_http::WasiHttpCtx;

use super::Inner;
use super::attempt::Breach;
use super::ctx::RunCtx;
use super::grant::Secrets;
use super::host::cards::Cards;
use super::host::log::Log;
use super::host::run::Run;
use super::host::secrets::Vault;
use super::http::HttpDoor;
use super::limiter::Limiter;
use super::meter::Meter;
use super::net::{Denials, Net};
use super::socket;
use crate::model::limit::{Limits, MIB};

/// Bytes that any guest may pass to the host in one call, however small its output limit: it still
/// writes files and logs. The output itself is measured when it arrives.
const CALL_BYTES_MIN: u64 = MIB;
/// Room beside an output of exactly the limit, for its content type and the like.
const CALL_BYTES_BESIDE: u64 = 64 * 1024;

/// What differs from store to store.
pub(crate) struct Stage {
    pub(crate) wasi: WasiCtxBuilder,
    pub(crate) net: Net,
    pub(crate) run: Run,
    pub(crate) granted_secrets: BTreeSet<String>,
    pub(crate) secrets: Secrets,
    pub(crate) denials: Arc<Denials>,
    pub(crate) log: Log,
}

/// Begins the WASI state of a guest: nothing granted.
pub(crate) fn wasi(limits: &Limits) -> WasiCtxBuilder {
    let mut wasi = WasiCtxBuilder::new();
    wasi.max_random_size(limits.random_bytes);
    wasi
}

impl Inner {
    /// Opens a store with every limit set, before anything of the guest runs in it.
    pub(super) fn open(&self, stage: Stage, limits: &Limits, meter: &Arc<Meter>) -> Store<RunCtx> {
        let Stage {
            mut wasi,
            net,
            run,
            granted_secrets,
            secrets,
            denials,
            log,
        } = stage;
        let net = Arc::new(net);
        if !net.is_closed() {
            wasi.allow_tcp(true)
                .allow_udp(true)
                .allow_ip_name_lookup(true)
                .socket_addr_check(socket::address_check(Arc::clone(&net)));
        }
        let mut table = ResourceTable::new();
        table.set_max_capacity(whole(limits.resources));
        let mut http = WasiHttpCtx::new();
        http.set_field_size_limit(whole(limits.http_field_bytes));
        let ctx = RunCtx {
            wasi: wasi.build(),
            table,
            http,
            door: HttpDoor::new(Arc::clone(&net), limits),
            net,
            lookups: HashMap::new(),
            limiter: Limiter::new(limits.memory_bytes),
            run,
            cards: Cards::new(log.clone(), self.clock.clone(), limits),
            vault: Vault {
                granted: granted_secrets,
                secrets,
                denials,
                log: log.clone(),
                read: HashMap::new(),
            },
            log,
        };
        let mut store = Store::new(&self.engine, ctx);
        store.limiter(|ctx| &mut ctx.limiter);
        store.set_hostcall_fuel(whole(
            limits.output_bytes.max(CALL_BYTES_MIN) + CALL_BYTES_BESIDE,
        ));
        store.set_max_component_handles(whole(limits.handles));
        let budget = Duration::from_millis(limits.cpu_ms);
        let (meter, cpu_ms) = (Arc::clone(meter), limits.cpu_ms);
        store.set_epoch_deadline(1);
        store.epoch_deadline_callback(move |_| match meter.spent() > budget {
            true => Err(wasmtime::Error::new(Breach::cpu(cpu_ms))),
            // Neighbours on this thread get their turn.
            false => Ok(UpdateDeadline::Yield(1)),
        });
        store
    }
}

fn whole(number: u64) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}
