//! The only writer to the terminal: data to stdout, everything else to stderr.

/// Prints data, for the caller to read or pipe.
#[expect(clippy::print_stdout, reason = "the one door to stdout")]
pub(crate) fn line(text: &str) {
    println!("{text}");
}

/// Prints what goes on, for a human.
#[expect(clippy::print_stderr, reason = "the one door to stderr")]
pub(crate) fn note(text: &str) {
    eprintln!("{text}");
}
