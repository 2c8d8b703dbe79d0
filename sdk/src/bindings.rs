//! The contract as Rust types and functions, generated from `wit/`.
//!
//! The only `generate!` of the SDK. The world here imports what the SDK itself calls, so that a flow
//! carries nothing else; what the standard library needs of WASI it brings along. The modules of this
//! crate speak to the host through it, and a flow written without the attributes may use it too: implement
//! the two `Guest` traits under [`exports`] and name the type in `waft_sdk::bindings::export!`.

#![allow(
    missing_docs,
    reason = "written by wit-bindgen; the WIT documents what it has words for"
)]

wit_bindgen::generate!({
    inline: "
        package waft:sdk;

        world sdk {
            import waft:flow/run@0.1.0;
            import waft:flow/log@0.1.0;
            import waft:flow/secrets@0.1.0;
            import waft:flow/cards@0.1.0;
            import wasi:http/types@0.2.12;
            import wasi:http/outgoing-handler@0.2.12;

            export waft:flow/definition@0.1.0;
            export waft:flow/tasks@0.1.0;
        }
    ",
    path: "wit",
    world: "waft:sdk/sdk",
    generate_all,
    pub_export_macro: true,
    runtime_path: "::waft_sdk::bindings::rt",
    default_bindings_module: "::waft_sdk::bindings",
    additional_derives: [PartialEq],
    additional_derives_ignore: ["error", "stream-error"],
});

pub use wit_bindgen::rt;
