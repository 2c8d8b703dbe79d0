//! The program `waft`: arguments in, exit code out.

use std::process::ExitCode;

fn main() -> ExitCode {
    if let Some(code) = waft::child_main() {
        return code;
    }
    // Fails only if it is installed already, which is what is wanted.
    let _ = rustls::crypto::ring::default_provider().install_default();
    waft::cli::main(std::env::args_os())
}
