//! What lives in the store of one attempt: WASI's state, ours, and the limiter.
//!
//! Made by `attempt.rs` and `describe.rs`, each time anew; the linker hands each interface its own
//! part and no other.

use std::sync::Arc;

use wasmtime::component::ResourceTable;
use wasmtime_wasi::{WasiCtx, WasiCtxView, WasiView};
use wasmtime_wasi_http::{WasiHttpCtx, WasiHttpCtxView, WasiHttpView};

use super::host::cards::Cards;
use super::host::log::Log;
use super::host::run::Run;
use super::host::secrets::Vault;
use super::http::HttpDoor;
use super::limiter::Limiter;
use super::net::Net;
use super::socket::{Lookups, Sockets};

/// The state of one attempt.
pub(crate) struct RunCtx {
    pub(crate) wasi: WasiCtx,
    pub(crate) table: ResourceTable,
    pub(crate) http: WasiHttpCtx,
    pub(crate) door: HttpDoor,
    pub(crate) net: Arc<Net>,
    pub(crate) lookups: Lookups,
    pub(crate) limiter: Limiter,
    pub(crate) run: Run,
    pub(crate) log: Log,
    pub(crate) vault: Vault,
    pub(crate) cards: Cards,
}

impl RunCtx {
    pub(crate) fn sockets(&mut self) -> Sockets<'_> {
        let wasi = WasiCtxView {
            ctx: &mut self.wasi,
            table: &mut self.table,
        };
        Sockets {
            wasi: wasmtime_wasi::sockets::WasiSocketsCtxView {
                ctx: wasi.ctx.sockets(),
                table: wasi.table,
            },
            net: &self.net,
            lookups: &mut self.lookups,
        }
    }
}

impl WasiView for RunCtx {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        WasiCtxView {
            ctx: &mut self.wasi,
            table: &mut self.table,
        }
    }
}

impl WasiHttpView for RunCtx {
    fn http(&mut self) -> WasiHttpCtxView<'_> {
        WasiHttpCtxView {
            hooks: &mut self.door,
            table: &mut self.table,
            ctx: &mut self.http,
        }
    }
}
