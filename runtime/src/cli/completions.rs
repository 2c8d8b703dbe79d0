//! `waft completions SHELL`: the file by which a shell completes commands.

use clap::CommandFactory as _;
use clap_complete::Shell;

use super::failure::Done;
use super::{Call, Line};

/// Prints what a shell needs to complete commands.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Example:
  waft completions bash > ~/.local/share/bash-completion/completions/waft")]
pub(super) struct Args {
    /// The shell.
    shell: Shell,
}

pub(super) fn run(args: &Args, call: &Call) -> Done {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Line::command(), "waft", &mut script);
    call.output.bytes(&script)
}
