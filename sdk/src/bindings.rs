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
    export_macro_name: "generated_export",
    runtime_path: "::waft_sdk::bindings::rt",
    additional_derives: [PartialEq],
    additional_derives_ignore: ["error", "stream-error"],
});

pub use wit_bindgen::rt;

/// Makes a type that implements both `Guest` traits the component of this crate.
///
/// The generated macro would export functions as well that free what a call answered: 2 KB of every flow,
/// for an instance that is dropped after its one call.
#[doc(hidden)]
#[macro_export]
macro_rules! __export {
    ($component:ty) => {
        const _: () = {
            use $crate::bindings::exports::waft::flow::{definition, tasks};

            #[unsafe(export_name = "waft:flow/definition@0.1.0#describe")]
            extern "C" fn describe() -> *mut u8 {
                // SAFETY: the host calls it as the contract says.
                unsafe { definition::_export_describe_cabi::<$component>() }
            }

            #[unsafe(export_name = "waft:flow/tasks@0.1.0#run")]
            unsafe extern "C" fn run(
                function: *mut u8,
                function_length: usize,
                inputs: *mut u8,
                inputs_length: usize,
            ) -> *mut u8 {
                // SAFETY: the host passes what it allocated with `cabi_realloc` for this call.
                unsafe {
                    tasks::_export_run_cabi::<$component>(
                        function,
                        function_length,
                        inputs,
                        inputs_length,
                    )
                }
            }
        };
    };
}

pub use __export as export;
