//! The contract cannot change unseen: what `wit/` resolves to is compared with a pinned text.
//!
//! World 0.1.x stays loadable by every later 0.x host, so a change of the pinned text other than an
//! addition is a break of the promise, not a formality.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on stops here")]

use expect_test::expect_file;
use wit_component::WitPrinter;
use wit_parser::{PackageId, Resolve};

fn contract() -> (Resolve, PackageId) {
    let mut resolve = Resolve::default();
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../wit");
    let (package, _) = resolve.push_dir(folder).unwrap();
    (resolve, package)
}

#[test]
fn the_resolved_contract_is_the_pinned_one() {
    let (resolve, package) = contract();
    let mut printer = WitPrinter::default();
    printer.emit_docs(false);
    printer.print(&resolve, package, &[]).unwrap();
    expect_file!["contract.wit"].assert_eq(&printer.output.to_string());
}

/// Every function and every type of the contract says what it is for.
#[test]
fn everything_in_the_contract_is_documented() {
    let (resolve, package) = contract();
    let mut silent = Vec::new();
    for (name, id) in &resolve.packages[package].interfaces {
        let interface = &resolve.interfaces[*id];
        let is_silent = |docs: &wit_parser::Docs| docs.contents.is_none();
        if is_silent(&interface.docs) {
            silent.push(name.clone());
        }
        for (function, item) in &interface.functions {
            if is_silent(&item.docs) {
                silent.push(format!("{name}.{function}"));
            }
        }
        for (own, id) in &interface.types {
            let item = &resolve.types[*id];
            let is_use = matches!(item.kind, wit_parser::TypeDefKind::Type(_));
            if !is_use && is_silent(&item.docs) {
                silent.push(format!("{name}.{own}"));
            }
        }
    }
    assert_eq!(silent, Vec::<String>::new());
}
