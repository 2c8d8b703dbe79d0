//! The program `waft`: arguments in, exit code out.

use std::process::ExitCode;

fn main() -> ExitCode {
    if let Some(code) = waft::child_main() {
        return code;
    }
    waft::tls::install();
    waft::cli::main(std::env::args_os())
}
