//! Everything that CI checks, fast checks first: `cargo xtask test`, and the benches beside it.
//!
//! CI runs exactly this and nothing of its own. The first stage that fails ends it. The last line is
//! `N passed, N failed`, alone on its line, for a CI to read.

use std::ffi::OsStr;
use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result, bail};

use crate::cache::Cache;
use crate::guests;
use crate::say;
use crate::servers;
use crate::stage::{self, Count};
use crate::toolchain::{self, Toolchain};

/// Runs all stages, and says how many tests passed and failed.
pub(crate) fn run(cache: &Cache) -> Result<ExitCode> {
    let mut count = Count::default();
    let result = stages(cache, &mut count);
    if let Err(error) = &result {
        say::note(&format!("error: {error:#}"));
        // A stage without tests of its own must not read as if nothing had failed.
        count.failed = count.failed.max(1);
    }
    say::line(&format!("{} passed, {} failed", count.passed, count.failed));
    Ok(if result.is_ok() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// The packages, in two calls of cargo: it builds a dependency anew when another package of the same
/// call wants more features of it, and wasmtime takes minutes.
const PACKAGES: [(&str, &str); 2] = [
    ("--workspace --exclude waft", "the SDK"),
    ("-p waft", "waft"),
];

fn stages(cache: &Cache, count: &mut Count) -> Result<()> {
    let _lock = cache.take_targets()?;
    say::note(&format!("target folder {}", cache.target.display()));
    let mut stage = |name: &str, command: &mut Command| stage::run(name, command, count);
    let cargo = |words: &str| {
        let mut cargo = cache.cargo();
        cargo.args(words.split(' '));
        cargo
    };

    stage("format", &mut cargo("fmt --all --check"))?;
    stage("format of examples and guests", &mut format_outside(cache)?)?;
    for (packages, of) in PACKAGES {
        let lints = format!("clippy {packages} --all-targets --locked -- -D warnings");
        stage(&format!("lints of {of}"), &mut cargo(&lints))?;
        let doc = format!("doc {packages} --no-deps --locked");
        stage(
            &format!("documentation of {of}"),
            cargo(&doc).env("RUSTDOCFLAGS", "-D warnings"),
        )?;
    }

    let toolchain = stage::step("toolchain for flows", || toolchain::ensure(cache))?;
    let folder = stage::step("examples and guests to wasm", || {
        guests::build(cache, &toolchain)
    })?;
    let servers = stage::step("storage servers", || servers::ensure(cache))?;
    for (packages, of) in PACKAGES {
        let mut test = cargo(&format!("test {packages} --locked --no-fail-fast"));
        toolchain.hand_to(&mut test);
        test.env("WAFT_GUESTS", &folder)
            .env("WAFT_GUEST_TARGET", &cache.guest_target)
            .env("WAFT_SERVERS", &servers);
        stage(&format!("tests of {of}"), &mut test)?;
    }

    for example in cache.examples()? {
        let name = example
            .file_name()
            .and_then(OsStr::to_str)
            .context("naming an example")?;
        let mut lints = cache.guest_cargo(&example);
        lints.args([
            "clippy",
            "--all-targets",
            "--locked",
            "--",
            "-D",
            "warnings",
        ]);
        stage(&format!("lints of example `{name}`"), &mut lints)?;
        let mut test = cache.guest_cargo(&example);
        stage(
            &format!("tests of example `{name}`"),
            test.args(["test", "--locked"]),
        )?;
    }
    // Users see its warnings, and what it does on wasm no lint above has seen.
    let mut sdk = cache.guest_cargo(&cache.repository.join("examples/hello"));
    toolchain.compile_with(&mut sdk)?;
    sdk.args(["rustc", "--release", "--target", toolchain::TARGET])
        .args(["--locked", "--package", "waft-sdk", "--lib", "--"])
        .arg("-Dwarnings");
    stage("the SDK as part of a flow", &mut sdk)?;
    match &toolchain {
        Toolchain::Named { .. } => {
            let mut check = cache.guest_cargo(&cache.repository.join("examples/hello"));
            toolchain.compile_with(&mut check)?;
            check.args(["check", "--locked", "--package", "waft-sdk"]);
            stage(&format!("the SDK on {}", toolchain.version()?), &mut check)
        }
        Toolchain::Own => {
            say::note("not checked: the SDK on Rust 1.85 (WAFT_GUEST_TOOLCHAIN=debian brings it)");
            Ok(())
        }
    }
}

/// Runs the benches, all or those whose name contains one of the words.
pub(crate) fn bench(cache: &Cache, names: &[&str]) -> Result<()> {
    let _lock = cache.take_targets()?;
    let toolchain = toolchain::ensure(cache)?;
    let folder = guests::build(cache, &toolchain)?;
    let mut cargo = cache.cargo();
    cargo
        .args(["bench", "--package", "waft", "--locked", "--benches", "--"])
        .args(names);
    toolchain.hand_to(&mut cargo);
    let status = cargo
        .env("WAFT_GUESTS", &folder)
        .status()
        .context("starting `cargo bench`")?;
    if status.success() {
        Ok(())
    } else {
        bail!("`cargo bench` failed: {status}")
    }
}

/// Returns a check of the format of all packages outside the workspace, which `cargo fmt` passes over.
fn format_outside(cache: &Cache) -> Result<Command> {
    let sources = guests::sources(cache, &["examples", "tests/guests"])?;
    let mut rustfmt = Command::new("rustfmt");
    rustfmt
        .current_dir(&cache.repository)
        .args(["--check", "--edition", "2024"]);
    rustfmt.args(
        sources
            .iter()
            .filter(|file| file.extension() == Some(OsStr::new("rs"))),
    );
    Ok(rustfmt)
}
