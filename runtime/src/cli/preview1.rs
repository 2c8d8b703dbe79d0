//! Core modules for WASI preview 1 made into components, before anything else looks at them.
//!
//! Compilers that know no components make core modules: `_start`, and imports of
//! `wasi_snapshot_preview1`. With the adapter that wasmtime publishes such a module is a component,
//! and from there on it is one like any other: its digest is that of the component. This happens in
//! the user's own command only. Agent and server take components and never see the encoder.

use anyhow::Context as _;
use wasi_preview1_component_adapter_provider::{
    WASI_SNAPSHOT_PREVIEW1_ADAPTER_NAME as PREVIEW1,
    WASI_SNAPSHOT_PREVIEW1_COMMAND_ADAPTER as COMMAND,
    WASI_SNAPSHOT_PREVIEW1_REACTOR_ADAPTER as REACTOR,
};
use wasmparser::{BinaryReaderError, ExternalKind, Parser, Payload, Validator};
use wit_component::ComponentEncoder;

use crate::sandbox::{Budget, SandboxError};

/// The function that a program starts with.
const START: &str = "_start";
/// How the custom sections are called in which bindings leave the world of a module.
const WORLD_SECTION: &str = "component-type";
/// Imports that a refusal names; they are enough to see what is wrong.
const NAMED_MAX: usize = 5;
/// Characters of a refusal that are kept; it holds names of the module.
const WHY_CHARS_MAX: usize = 1_000;

/// Bytes that tell what a file is.
pub(super) const HEAD_BYTES: u64 = 8;

/// Tells by its first bytes whether a file is a core module.
pub(super) fn is_module(head: &[u8]) -> bool {
    Parser::is_core_wasm(head)
}

/// Makes a component of a core module, and the same one of the same bytes.
///
/// Returns nothing for what is no core module, is larger than any component may be, or has neither an
/// entry nor a world: the sandbox says what is wrong with those.
///
/// # Errors
///
/// Refuses a module that is not valid, that imports what no adapter provides, or that does not fit
/// the world it says it is for.
pub(super) fn adapted(bytes: &[u8]) -> Result<Option<Vec<u8>>, SandboxError> {
    let most = usize::try_from(Budget::default().file_bytes).unwrap_or(usize::MAX);
    if !Parser::is_core_wasm(bytes) || bytes.len() > most {
        return Ok(None);
    }
    // The encoder is given nothing that it was not made for.
    let valid = Validator::new().validate_all(bytes);
    valid.map_err(|error| format("it is not a valid core module", &error))?;
    let module = Module::of(bytes).map_err(|error| format("it is not a core module", &error))?;
    let Some(adapter) = module.adapter()? else {
        return Ok(None);
    };
    let encode = || -> anyhow::Result<Vec<u8>> {
        ComponentEncoder::default()
            .validate(true)
            .module(bytes)?
            .adapter(PREVIEW1, adapter)
            .context("the adapter")?
            .encode()
    };
    encode()
        .map(Some)
        .map_err(|error| format("no component can be made of this core module", &error))
}

/// What of a module says what it is.
#[derive(Default)]
struct Module {
    /// `module.name` of each import that is not of preview 1.
    foreign: Vec<String>,
    is_for_preview1: bool,
    has_start: bool,
    has_world: bool,
}

impl Module {
    fn of(bytes: &[u8]) -> Result<Self, BinaryReaderError> {
        let mut module = Self::default();
        for payload in Parser::new(0).parse_all(bytes) {
            match payload? {
                Payload::ImportSection(section) => {
                    for import in section.into_imports() {
                        let import = import?;
                        match import.module == PREVIEW1 {
                            true => module.is_for_preview1 = true,
                            false => module
                                .foreign
                                .push(format!("`{}.{}`", import.module, import.name)),
                        }
                    }
                }
                Payload::ExportSection(section) => {
                    for export in section {
                        let export = export?;
                        module.has_start |=
                            export.name == START && export.kind == ExternalKind::Func;
                    }
                }
                Payload::CustomSection(section) => {
                    module.has_world |= section.name().starts_with(WORLD_SECTION);
                }
                _ => {}
            }
        }
        Ok(module)
    }

    /// Returns the adapter that makes it a component, if one does.
    ///
    /// With a world it may import what the world names: the encoder holds it to that.
    fn adapter(&self) -> Result<Option<&'static [u8]>, SandboxError> {
        let adapter = if self.has_start { COMMAND } else { REACTOR };
        if self.has_world {
            return Ok(Some(adapter));
        }
        if !self.foreign.is_empty() {
            let named = self.foreign.iter().take(NAMED_MAX).cloned();
            let named = named.collect::<Vec<_>>().join(", ");
            return Err(SandboxError::Rejected {
                code: "rejected.imports",
                message: short(&format!(
                    "it is a core module that imports {named}, which nobody provides"
                )),
            });
        }
        Ok((self.has_start && self.is_for_preview1).then_some(adapter))
    }
}

fn format(what: &str, error: &dyn std::fmt::Display) -> SandboxError {
    SandboxError::Rejected {
        code: "rejected.format",
        message: short(&format!("{what}: {error:#}")),
    }
}

fn short(message: &str) -> String {
    message.chars().take(WHY_CHARS_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A program that writes a line and ends.
    const SPEAKS: &str = r#"(module
        (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
        (memory (export "memory") 1)
        (data (i32.const 16) "\08\00\00\00\03\00\00\00")
        (data (i32.const 8) "hi\n")
        (func (export "_start")
            (drop (call $write (i32.const 1) (i32.const 16) (i32.const 1) (i32.const 32)))))"#;

    fn made(text: &str) -> Result<Option<Vec<u8>>, SandboxError> {
        adapted(&wat::parse_str(text).unwrap())
    }

    fn refusal(text: &str) -> (&'static str, String) {
        match made(text).unwrap_err() {
            SandboxError::Rejected { code, message } => (code, message),
            SandboxError::Host(error) => panic!("{error:#}"),
        }
    }

    #[test]
    fn a_program_becomes_a_component_and_always_the_same() {
        let component = made(SPEAKS).unwrap().unwrap();
        assert!(Parser::is_component(&component));
        assert_eq!(made(SPEAKS).unwrap().unwrap(), component);
        // What is a component stays what it is.
        assert!(adapted(&component).unwrap().is_none());
    }

    #[test]
    fn what_is_neither_program_nor_of_a_world_is_left_alone() {
        for text in [
            "(module)",
            r#"(module (func (export "_start")))"#,
            r#"(module (import "wasi_snapshot_preview1" "sched_yield" (func (result i32))))"#,
        ] {
            assert!(made(text).unwrap().is_none(), "{text}");
        }
        assert!(adapted(b"\x7fELF").unwrap().is_none());
    }

    #[test]
    fn what_no_adapter_provides_is_named() {
        let (code, message) = refusal(
            r#"(module
                (import "env" "memory" (memory 1))
                (import "wasi_snapshot_preview1" "sched_yield" (func (result i32)))
                (func (export "_start")))"#,
        );
        assert_eq!(code, "rejected.imports");
        assert!(message.contains("`env.memory`"), "{message}");
        let (code, message) = refusal(
            r#"(module
                (import "wasi_snapshot_preview1" "fd_teleport" (func))
                (memory (export "memory") 1)
                (func (export "_start")))"#,
        );
        assert_eq!(code, "rejected.format");
        assert!(message.contains("fd_teleport"), "{message}");
    }

    #[test]
    fn what_is_not_valid_never_reaches_the_encoder() {
        let text = "(module (func (export \"_start\") (result i32) i32.const 1))";
        let mut bytes = wat::parse_str(text).unwrap();
        // `i32.const 1` becomes `i64.const 1`.
        let constant = bytes.windows(2).rposition(|it| it == [0x41, 1]).unwrap();
        bytes[constant] = 0x42;
        let Err(SandboxError::Rejected { code, message }) = adapted(&bytes) else {
            panic!("it was taken");
        };
        assert_eq!(code, "rejected.format");
        assert!(
            message.starts_with("it is not a valid core module"),
            "{message}"
        );
    }

    #[test]
    fn a_world_that_is_nonsense_is_refused() {
        let (code, _) = refusal(r#"(module (@custom "component-type:x" "nonsense"))"#);
        assert_eq!(code, "rejected.format");
    }
}
