//! The scan: what a component is made of, counted before anything is compiled.
//!
//! It reads every instruction once and refuses what is cheap to write and dear to compile. It does
//! not validate: the compiler does, in its child. Budgets are far above what real guests have
//! (Python: 30,000 functions in 18 MB) and far below what takes gigabytes.

use std::path::Path;

use wasmparser::{
    BlockType, CompositeInnerType, Encoding, FunctionBody, Operator, Parser, Payload, TypeRef,
    TypeSectionReader,
};

use super::{Budget, Failure, Refusal};
use crate::model::artifact::Digest;
use crate::model::limit::MIB;
use crate::sandbox::grant;

/// Parameters and results of one block: five hundred nested blocks of a thousand took 9.7 GB.
const BLOCK_ARITY_MAX: u32 = 16;
/// Targets of one `br_table`, as wasm itself allows.
const BR_TABLE_TARGETS_MAX: u32 = 65_520;
/// Targets times values that they carry, over all `br_table`s: a thousand by a thousand took 5.8 GB.
const BR_TABLE_VALUES_MAX: u64 = 1_000_000;
/// Blocks inside each other.
const NESTING_MAX: usize = 4_000;
/// Functions of all modules: 200,000 empty ones, 1 MB, took 1.1 GB.
const FUNCTIONS_MAX: u64 = 100_000;
/// Bytes of one function: the compiler's time grows faster than its size.
const BODY_BYTES_MAX: usize = 4 * MIB as usize;
/// Locals of one function.
const LOCALS_MAX: u64 = 20_000;
/// Core modules, and components, at any depth.
const MODULES_MAX: u64 = 1_000;
/// Types, imports and exports of all modules and components, each.
const TYPES_MAX: u64 = 200_000;
const IMPORTS_MAX: u64 = 100_000;
const EXPORTS_MAX: u64 = 200_000;

/// What the scan found; it sizes the ceilings of the compiler.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Scanned {
    pub(super) code_bytes: u64,
}

/// Reads an artifact, makes sure that it is the one that was meant, and scans it.
pub(super) fn read_and_scan(
    path: &Path,
    digest: Digest,
    budget: &Budget,
) -> Result<(Vec<u8>, Scanned), Failure> {
    let host = |error: std::io::Error| {
        let what = format!("reading the artifact `{}`", path.display());
        Failure::Host(anyhow::Error::new(error).context(what))
    };
    let (dir, name) = grant::open_parent(path).map_err(host)?;
    let size = dir.metadata(&name).map_err(host)?.len();
    if size > budget.file_bytes {
        return Err(too_many("bytes", size, budget.file_bytes).into());
    }
    let bytes = dir.read(&name).map_err(host)?;
    if Digest::of(&bytes) != digest {
        let message = format!("the bytes are not those of {digest}");
        return Err(Refusal {
            code: "rejected.digest",
            message,
        }
        .into());
    }
    let scanned = scan(&bytes)?;
    Ok((bytes, scanned))
}

/// Scans a whole component.
pub(super) fn scan(bytes: &[u8]) -> Result<Scanned, Refusal> {
    check_is_component(bytes)?;
    let mut counts = Counts::default();
    // Modules and components nest; each module has types of its own.
    let mut modules = Vec::new();
    for payload in Parser::new(0).parse_all(bytes) {
        match payload.map_err(malformed)? {
            Payload::Version { encoding, .. } => {
                modules.push(Module::default());
                counts.add_part(encoding)?;
            }
            Payload::End(_) => {
                modules.pop();
            }
            payload => {
                let module = modules
                    .last_mut()
                    .ok_or_else(|| Refusal::format("it is not a well-formed component"))?;
                counts.add(module, payload)?;
            }
        }
    }
    Ok(Scanned {
        code_bytes: counts.code_bytes,
    })
}

fn check_is_component(bytes: &[u8]) -> Result<(), Refusal> {
    if Parser::is_component(bytes) {
        return Ok(());
    }
    let what = match bytes {
        [] => "it is an empty file",
        _ if Parser::is_core_wasm(bytes) => {
            "it is a core module, not a component; build it with `waft build`, or for the target `wasm32-wasip2`"
        }
        [0, b'a', b's', b'm', ..] => {
            "it is a WebAssembly file cut short, or of a version that is not known"
        }
        [0x7f, b'E', b'L', b'F', ..] => "it is machine code (ELF), not a WebAssembly component",
        [0x1f, 0x8b, ..] => "it is compressed (gzip); unpack it first",
        [b'(', ..] => "it is WebAssembly text, not a binary component",
        _ => "it is not a WebAssembly component",
    };
    Err(Refusal::format(what))
}

fn malformed(error: wasmparser::BinaryReaderError) -> Refusal {
    let message = error.message();
    if message.contains("unexpected end") {
        return Refusal::format(format!(
            "it is cut short: {message} at byte {}",
            error.offset()
        ));
    }
    let message: String = message.chars().take(500).collect();
    Refusal::format(format!(
        "it is not a valid component: {message} at byte {}",
        error.offset()
    ))
}

fn too_many(what: &str, count: u64, most: u64) -> Refusal {
    Refusal::budget(format!(
        "it has {count} {what}, more than the limit of {most}"
    ))
}

fn at_most(what: &str, count: u64, most: u64) -> Result<(), Refusal> {
    match count > most {
        true => Err(too_many(what, count, most)),
        false => Ok(()),
    }
}

/// What one module declared so far.
#[derive(Default)]
struct Module {
    /// Parameters and results of each type; nothing for what is no function.
    types: Vec<Option<Arity>>,
    /// The type of each function that has a body, in order.
    functions: Vec<u32>,
    bodies: usize,
}

#[derive(Clone, Copy)]
struct Arity {
    params: u32,
    results: u32,
}

impl Module {
    fn add_types(&mut self, section: TypeSectionReader<'_>) -> Result<(), Refusal> {
        for group in section {
            for ty in group.map_err(malformed)?.types() {
                self.types.push(match &ty.composite_type.inner {
                    CompositeInnerType::Func(func) => Some(Arity {
                        params: u32::try_from(func.params().len()).unwrap_or(u32::MAX),
                        results: u32::try_from(func.results().len()).unwrap_or(u32::MAX),
                    }),
                    _ => None,
                });
            }
        }
        Ok(())
    }

    fn arity(&self, block: BlockType) -> Arity {
        let (params, results) = match block {
            BlockType::Empty => (0, 0),
            BlockType::Type(_) => (0, 1),
            BlockType::FuncType(index) => {
                let known = self.types.get(index as usize).copied().flatten();
                // What is out of range is for the compiler to refuse.
                return known.unwrap_or(Arity {
                    params: 0,
                    results: 0,
                });
            }
        };
        Arity { params, results }
    }

    /// Returns how many values the next function returns.
    fn next_results(&mut self) -> u32 {
        let ty = self.functions.get(self.bodies).copied();
        self.bodies += 1;
        ty.map_or(0, |ty| self.arity(BlockType::FuncType(ty)).results)
    }
}

/// What the whole file has so far.
#[derive(Default)]
struct Counts {
    modules: u64,
    types: u64,
    imports: u64,
    exports: u64,
    functions: u64,
    br_table_values: u64,
    code_bytes: u64,
}

impl Counts {
    fn add_part(&mut self, _: Encoding) -> Result<(), Refusal> {
        self.modules += 1;
        at_most("modules and components", self.modules, MODULES_MAX)
    }

    fn add(&mut self, module: &mut Module, payload: Payload<'_>) -> Result<(), Refusal> {
        match payload {
            Payload::TypeSection(section) => {
                self.add_types(section.count())?;
                module.add_types(section)
            }
            Payload::CoreTypeSection(section) => self.add_types(section.count()),
            Payload::ComponentTypeSection(section) => self.add_types(section.count()),
            Payload::ImportSection(section) => {
                self.add_imports(section.count())?;
                for import in section.into_imports() {
                    // A function that is imported has no body here.
                    let _: TypeRef = import.map_err(malformed)?.ty;
                }
                Ok(())
            }
            Payload::ComponentImportSection(section) => self.add_imports(section.count()),
            Payload::ExportSection(section) => self.add_exports(section.count()),
            Payload::ComponentExportSection(section) => self.add_exports(section.count()),
            Payload::FunctionSection(section) => {
                self.functions += u64::from(section.count());
                at_most("functions", self.functions, FUNCTIONS_MAX)?;
                for ty in section {
                    module.functions.push(ty.map_err(malformed)?);
                }
                Ok(())
            }
            Payload::CodeSectionStart { size, .. } => {
                self.code_bytes += u64::from(size);
                Ok(())
            }
            Payload::CodeSectionEntry(body) => self.add_body(module, &body),
            _ => Ok(()),
        }
    }

    fn add_types(&mut self, count: u32) -> Result<(), Refusal> {
        self.types += u64::from(count);
        at_most("types", self.types, TYPES_MAX)
    }

    fn add_imports(&mut self, count: u32) -> Result<(), Refusal> {
        self.imports += u64::from(count);
        at_most("imports", self.imports, IMPORTS_MAX)
    }

    fn add_exports(&mut self, count: u32) -> Result<(), Refusal> {
        self.exports += u64::from(count);
        at_most("exports", self.exports, EXPORTS_MAX)
    }

    fn add_body(&mut self, module: &mut Module, body: &FunctionBody<'_>) -> Result<(), Refusal> {
        let bytes = body.range().len();
        if bytes > BODY_BYTES_MAX {
            let most = BODY_BYTES_MAX;
            return Err(Refusal::budget(format!(
                "it has a function of {bytes} bytes, more than the limit of {most}"
            )));
        }
        let mut locals = 0_u64;
        for local in body.get_locals_reader().map_err(malformed)? {
            locals += u64::from(local.map_err(malformed)?.0);
        }
        at_most("locals in one function", locals, LOCALS_MAX)?;
        // How many values a branch to each open block carries, outermost first.
        let mut labels = vec![module.next_results()];
        let mut reader = body.get_operators_reader().map_err(malformed)?;
        while !reader.eof() {
            match reader.read().map_err(malformed)? {
                Operator::Loop { blockty } => {
                    let arity = checked_arity(module, blockty)?;
                    open(&mut labels, arity.params)?;
                }
                Operator::Block { blockty } | Operator::If { blockty } => {
                    let arity = checked_arity(module, blockty)?;
                    open(&mut labels, arity.results)?;
                }
                Operator::End => {
                    labels.pop();
                }
                Operator::BrTable { targets } => {
                    at_most(
                        "targets in one `br_table`",
                        u64::from(targets.len()),
                        u64::from(BR_TABLE_TARGETS_MAX),
                    )?;
                    let depth = targets.default() as usize;
                    let values = labels.iter().rev().nth(depth).copied().unwrap_or(0);
                    self.br_table_values += u64::from(targets.len()) * u64::from(values);
                    at_most(
                        "values carried by `br_table`s",
                        self.br_table_values,
                        BR_TABLE_VALUES_MAX,
                    )?;
                }
                _ => {}
            }
        }
        Ok(())
    }
}

fn checked_arity(module: &Module, block: BlockType) -> Result<Arity, Refusal> {
    let arity = module.arity(block);
    let most = u64::from(BLOCK_ARITY_MAX);
    at_most("parameters in one block", u64::from(arity.params), most)?;
    at_most("results in one block", u64::from(arity.results), most)?;
    Ok(arity)
}

fn open(labels: &mut Vec<u32>, values: u32) -> Result<(), Refusal> {
    labels.push(values);
    at_most(
        "blocks inside each other",
        labels.len() as u64,
        NESTING_MAX as u64,
    )
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;

    use super::*;

    fn scanned(text: &str) -> Result<Scanned, Refusal> {
        scan(&wat::parse_str(text).unwrap())
    }

    fn module(body: &str) -> String {
        format!("(component (core module {body}))")
    }

    fn code(text: &str) -> &'static str {
        scanned(text).unwrap_err().code
    }

    #[test]
    fn an_ordinary_component_passes() {
        let found = scanned(&module("(func (block (loop (br 1))))")).unwrap();
        assert!(found.code_bytes > 0);
    }

    #[test]
    fn what_is_no_component_is_told_apart() {
        let cases: [(&[u8], &str); 6] = [
            (b"", "empty"),
            (b"\0asm\x01\0\0\0", "core module"),
            (b"\0as", "not a WebAssembly component"),
            (b"\0asm\x0d", "cut short"),
            (b"\x7fELF", "machine code"),
            (b"\x1f\x8b\x08", "gzip"),
        ];
        for (bytes, part) in cases {
            let refusal = scan(bytes).unwrap_err();
            assert_eq!(refusal.code, "rejected.format");
            assert!(refusal.message.contains(part), "{}", refusal.message);
        }
    }

    #[test]
    fn a_component_cut_short_anywhere_is_refused() {
        let whole = wat::parse_str(module("(func (block (loop (br 1))))")).unwrap();
        let mut passed = Vec::new();
        for end in 9..whole.len() {
            match scan(&whole[..end]) {
                Err(refusal) => assert_eq!(refusal.code, "rejected.format", "cut at {end}"),
                Ok(_) => passed.push(end),
            }
        }
        // Between two sections what is left is a component by itself; the digest says no then.
        assert_eq!(passed, [18, 24]);
        let refusal = scan(&whole[..whole.len() - 1]).unwrap_err();
        assert!(refusal.message.contains("cut short"), "{}", refusal.message);
    }

    #[test]
    fn block_arity_bombs_are_refused() {
        let values = |n: usize| vec!["i32"; n].join(" ");
        let bomb = |n| {
            let results = values(n);
            let zeros = "(i32.const 0) ".repeat(n);
            let drops = "drop ".repeat(n);
            module(&format!(
                "(type $t (func (result {results}))) (func (block (type $t) {zeros}) {drops})"
            ))
        };
        assert!(scanned(&bomb(16)).is_ok());
        assert_eq!(code(&bomb(17)), "rejected.budget");
    }

    #[test]
    fn br_table_bombs_are_refused() {
        let bomb = |targets: usize, tables: usize| {
            let labels = "0 ".repeat(targets);
            let mut functions = String::new();
            for _ in 0..tables {
                write!(
                    functions,
                    "(func (result i32) (br_table {labels} (i32.const 1) (i32.const 0)))"
                )
                .unwrap();
            }
            module(&functions)
        };
        assert!(scanned(&bomb(60_000, 2)).is_ok());
        assert_eq!(code(&bomb(60_000, 17)), "rejected.budget");
    }

    #[test]
    fn deep_nesting_is_refused() {
        let nested = |depth: usize| {
            let mut bytes = vec![0_u8; 0];
            bytes.extend(wat::parse_str("(component (core module (func)))").unwrap());
            // A function body by hand, since the text parser has a depth limit of its own.
            let mut body = vec![0x00];
            body.extend([0x02, 0x40].repeat(depth));
            body.extend(vec![0x0b; depth + 1]);
            let at = bytes
                .windows(3)
                .rposition(|window| window == [0x02, 0x00, 0x0b])
                .unwrap();
            let mut code = vec![0x01];
            leb(&mut code, body.len());
            code.extend(body);
            let mut section = vec![0x0a];
            leb(&mut section, code.len());
            section.extend(code);
            // Module: magic, type section, function section, then our code section.
            let start = bytes
                .windows(8)
                .position(|window| window == b"\0asm\x01\0\0\0")
                .unwrap();
            let mut inner = bytes[start..at - 3].to_vec();
            inner.extend(section);
            let mut component = bytes[..8].to_vec();
            component.push(0x01);
            leb(&mut component, inner.len());
            component.extend(inner);
            component
        };
        assert!(scan(&nested(3_999)).is_ok());
        let refusal = scan(&nested(4_000)).unwrap_err();
        assert!(
            refusal.message.contains("blocks inside each other"),
            "{}",
            refusal.message
        );
    }

    fn leb(bytes: &mut Vec<u8>, mut value: usize) {
        loop {
            let byte = (value & 0x7f) as u8;
            value >>= 7;
            if value == 0 {
                return bytes.push(byte);
            }
            bytes.push(byte | 0x80);
        }
    }

    #[test]
    fn too_many_functions_are_refused() {
        let text = module(&"(func)".repeat(100_001));
        let refusal = scanned(&text).unwrap_err();
        assert_eq!(
            refusal.message,
            "it has 100001 functions, more than the limit of 100000"
        );
    }
}
