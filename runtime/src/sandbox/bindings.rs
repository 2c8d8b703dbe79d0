//! The contract as Rust: the only `bindgen!` of this program.
//!
//! Made from `wit/` at compile time. The WASI interfaces are those of wasmtime-wasi and
//! wasmtime-wasi-http, so that a handle which the guest holds is theirs; what is generated here is
//! our own package. `linker.rs` links it, `host/` answers it, `describe.rs` and `attempt.rs` call it.

wasmtime::component::bindgen!({
    path: "../wit",
    world: "flow",
    imports: {
        // A secret may be read from a command or a file of the agent, which takes time.
        "waft:flow/secrets.get": async | trappable,
        // The others only touch the attempt's own state. An error of theirs ends the attempt.
        default: trappable,
    },
    // A guest runs on a stack of its own and yields at every tick.
    exports: { default: async },
    // Two descriptions of one flow are compared.
    additional_derives: [PartialEq],
    with: {
        "wasi:io": wasmtime_wasi::p2::bindings::io,
        "wasi:cli": wasmtime_wasi::p2::bindings::cli,
        "wasi:clocks": wasmtime_wasi::p2::bindings::clocks,
        "wasi:filesystem": wasmtime_wasi::p2::bindings::filesystem,
        "wasi:random": wasmtime_wasi::p2::bindings::random,
        "wasi:sockets": wasmtime_wasi::p2::bindings::sockets,
        "wasi:http": wasmtime_wasi_http::p2::bindings::http,
    },
});
