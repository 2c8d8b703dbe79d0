//! The toolchain that compiles flows: who has `wasm32-wasip2`, and how others are told of it.
//!
//! Three ways, in this order: the active `rustc` has the target; rustup adds it; Debian's packages
//! are unpacked into the cache (`debian.rs`). The product knows of the third by two settings only,
//! which every command here hands on.

use std::env;
use std::ffi::OsString;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};

use crate::cache::Cache;
use crate::debian;
use crate::say;
use crate::stage;

/// What flows are compiled for.
pub(crate) const TARGET: &str = "wasm32-wasip2";

/// How long rustup may take before it counts as cut off from its server.
const RUSTUP_PATIENCE: Duration = Duration::from_secs(90);

/// A `rustc` that has the target.
pub(crate) enum Toolchain {
    /// The machine's own, found as any `cargo` finds it.
    Own,
    /// One named by path, with the folders that hold its linkers.
    Named {
        /// The compiler.
        rustc: PathBuf,
        /// Goes before `PATH`.
        linkers: OsString,
    },
}

impl Toolchain {
    /// Makes `waft build`, started by `command`, compile flows with this toolchain.
    pub(crate) fn hand_to(&self, command: &mut Command) {
        if let Self::Named { rustc, linkers } = self {
            command
                .env("WAFT__BUILD__RUSTC", rustc)
                .env("WAFT__BUILD__PATH", linkers);
        }
    }

    /// Makes `cargo` itself compile with this toolchain.
    pub(crate) fn compile_with(&self, cargo: &mut Command) -> Result<()> {
        if let Self::Named { rustc, linkers } = self {
            let path = env::var_os("PATH").unwrap_or_default();
            let folders = env::split_paths(linkers).chain(env::split_paths(&path));
            cargo
                .env("RUSTC", rustc)
                .env("PATH", env::join_paths(folders)?);
        }
        Ok(())
    }

    /// Returns what the compiler says of its version.
    pub(crate) fn version(&self) -> Result<String> {
        let rustc = match self {
            Self::Own => Path::new("rustc"),
            Self::Named { rustc, .. } => rustc,
        };
        Ok(stage::output(Command::new(rustc).arg("--version"))?
            .trim()
            .to_string())
    }

    /// Returns lines for a shell, which give `waft build` this toolchain.
    pub(crate) fn exports(&self) -> String {
        match self {
            Self::Own => format!("# rustc has {TARGET}\n"),
            Self::Named { rustc, linkers } => {
                export("WAFT__BUILD__RUSTC", &rustc.to_string_lossy())
                    + &export("WAFT__BUILD__PATH", &linkers.to_string_lossy())
            }
        }
    }
}

/// Returns a line for a shell that sets a variable.
pub(crate) fn export(name: &str, value: &str) -> String {
    format!("export {name}={}\n", quoted(value))
}

/// Writes a text as one word of a shell.
pub(crate) fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

/// Supplies the toolchain and prints how to tell others of it.
pub(crate) fn setup(cache: &Cache) -> Result<()> {
    match ensure(cache)? {
        Toolchain::Own => say::note(&format!("ready: rustc has {TARGET}")),
        ref toolchain @ Toolchain::Named {
            ref rustc,
            ref linkers,
        } => {
            say::note(&format!(
                "ready: {} at {}",
                toolchain.version()?,
                rustc.display()
            ));
            say::note("`waft build` finds it by: eval \"$(cargo xtask env)\"");
            say::note("or by these lines in config.toml, which `waft config path` names:");
            say::line(&format!("[build]\nrustc = {rustc:?}\npath = {linkers:?}"));
        }
    }
    Ok(())
}

/// Returns a toolchain that has the target, and sets one up if there is none.
///
/// Quick when there is nothing to do: one or two calls of `rustc`.
pub(crate) fn ensure(cache: &Cache) -> Result<Toolchain> {
    let home = cache.folder.join(format!("guest-{}", debian::RUST));
    let only_debian = match env::var("WAFT_GUEST_TOOLCHAIN").as_deref() {
        Err(_) | Ok("" | "auto") => false,
        Ok("debian") => true,
        Ok(other) => bail!("`WAFT_GUEST_TOOLCHAIN={other}` is neither `auto` nor `debian`"),
    };
    if !only_debian && own_rustc_has_target()? {
        return Ok(Toolchain::Own);
    }
    let _lock = cache.lock("toolchain")?;
    if debian::is_complete(&home) {
        return named(home);
    }
    let mut reasons = String::new();
    if !only_debian {
        match add_with_rustup() {
            Ok(()) => return Ok(Toolchain::Own),
            Err(error) => writeln!(reasons, "  rustup: {error:#}")?,
        }
    }
    if let Some(obstacle) = debian::obstacle() {
        writeln!(reasons, "  Debian: {obstacle}")?;
    } else {
        say::note(&format!(
            "unpacking Rust {} for flows into {}",
            debian::RUST,
            home.display()
        ));
        match debian::unpack(&home) {
            Ok(()) => return named(home),
            Err(error) => writeln!(reasons, "  Debian: {error:#}")?,
        }
    }
    bail!("no toolchain for {TARGET}:\n{reasons}hint: rustup target add {TARGET}")
}

fn own_rustc_has_target() -> Result<bool> {
    let mut rustc = Command::new("rustc");
    let folder = stage::output(rustc.args(["--print", "target-libdir", "--target", TARGET]))?;
    let Ok(entries) = std::fs::read_dir(folder.trim()) else {
        return Ok(false);
    };
    Ok(entries
        .flatten()
        .any(|entry| entry.file_name().to_string_lossy().starts_with("libstd-")))
}

fn add_with_rustup() -> Result<()> {
    ensure!(stage::is_program("rustup"), "it is not installed");
    say::note(&format!("installing the Rust target {TARGET} with rustup"));
    let mut rustup = Command::new("rustup");
    rustup.args(["target", "add", TARGET]);
    stage::output_within(&mut rustup, RUSTUP_PATIENCE)?;
    ensure!(
        own_rustc_has_target()?,
        "rustup said it added {TARGET}, but rustc does not find it"
    );
    Ok(())
}

/// Names Debian's compiler, and the linkers that come with the machine's own toolchain.
fn named(home: PathBuf) -> Result<Toolchain> {
    let version = stage::output(Command::new("rustc").arg("-vV"))?;
    let host = version
        .lines()
        .find_map(|line| line.strip_prefix("host: "))
        .context("`rustc -vV` names no host")?;
    let sysroot = stage::output(Command::new("rustc").args(["--print", "sysroot"]))?;
    let tools = PathBuf::from(sysroot.trim())
        .join("lib/rustlib")
        .join(host)
        .join("bin");
    let linker = tools.join("wasm-component-ld");
    ensure!(
        linker.is_file(),
        "the Rust toolchain of this machine has no `{}`",
        linker.display()
    );
    let linkers = env::join_paths([tools.clone(), tools.join("gcc-ld")])?;
    Ok(Toolchain::Named {
        rustc: home.join("bin/rustc"),
        linkers,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_export_survives_a_quote() {
        assert_eq!(export("A", "it's"), "export A='it'\\''s'\n");
    }

    #[test]
    fn the_own_toolchain_sets_nothing() {
        assert!(Toolchain::Own.exports().starts_with('#'));
    }
}
