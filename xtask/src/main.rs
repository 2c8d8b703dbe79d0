//! `cargo xtask`: the set-up behind the README's two commands, and what CI checks.
//!
//! Here lies the choice of command only. It keeps to the smallest dependencies, because a user
//! waits for it to be compiled before anything happens. Nothing of the product lives here, and
//! the product knows nothing of it.

#![expect(
    clippy::disallowed_methods,
    reason = "the clock and the settings of the product are not for its tools"
)]

mod cache;
mod check;
mod debian;
mod demo;
mod guests;
mod mutants;
mod say;
mod servers;
mod stage;
mod toolchain;

use std::process::ExitCode;

use anyhow::{Result, bail};

use crate::cache::Cache;

const HELP: &str = "\
usage: cargo xtask COMMAND

  demo [--stay]  build everything, run a flow through server and agent, show what came out;
                 --stay keeps both up and prints the address
  test           everything that CI checks, fast checks first; stops at the first failure
  setup          supply the toolchain that compiles flows to WebAssembly
  env            print the lines by which a shell finds that toolchain, and the `waft` of the demo:
                 eval \"$(cargo xtask env)\"
  guests         compile examples and test guests, and print where they lie, as lines for a shell
  servers        install the storage servers and the PostgreSQL that tests use, and print where they lie
  bench [NAME]   measure the promises of speed
  mutants [WORD] plant faults in a copy of the sources, one by one, and see that the tests catch each

Target folders and tools lie in $WAFT_CACHE, else $XDG_CACHE_HOME/waft, else ~/.cache/waft.
CARGO_TARGET_DIR is respected. WAFT_GUEST_TOOLCHAIN=debian takes the toolchain of Debian's
packages even where rustup could supply one.";

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match run(&words) {
        Ok(code) => code,
        Err(error) => {
            say::note(&format!("error: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn run(words: &[&str]) -> Result<ExitCode> {
    match words {
        [] | ["help" | "--help" | "-h"] => say::line(HELP),
        ["setup"] => toolchain::setup(&Cache::open()?)?,
        ["env"] => {
            let cache = Cache::open()?;
            let lines = toolchain::ensure(&cache)?.exports() + &demo::exports(&cache);
            say::line(lines.trim_end());
        }
        ["guests"] => guests::print(&Cache::open()?)?,
        ["servers"] => servers::print(&Cache::open()?)?,
        ["test"] => return check::run(&Cache::open()?),
        ["bench", names @ ..] => check::bench(&Cache::open()?, names)?,
        ["mutants", words @ ..] => mutants::run(&Cache::open()?, words)?,
        ["demo"] => demo::run(&Cache::open()?, false)?,
        ["demo", "--stay"] => demo::run(&Cache::open()?, true)?,
        _ => bail!(
            "`{}` is no command of cargo xtask\nhint: cargo xtask --help",
            words.join(" ")
        ),
    }
    Ok(ExitCode::SUCCESS)
}
