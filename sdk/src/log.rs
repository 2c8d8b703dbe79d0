//! What a task says while it works: `log::info!("{count} rows")`.
//!
//! Needs no grant. What `println!` and `eprintln!` write becomes log lines as well; a `print!` without an end of
//! line may be lost.

pub use crate::__log_debug as debug;
pub use crate::__log_error as error;
pub use crate::__log_info as info;
pub use crate::__log_warning as warning;
pub use crate::__log_warning as warn;
pub use crate::bindings::waft::flow::log::Level;

/// Adds one line to the log of the run.
///
/// A line over 16 KiB is cut; past 10,000 lines or 4 MiB an attempt the host drops what follows and says
/// so. Never fails.
pub fn write(level: Level, line: &str) {
    #[cfg(target_arch = "wasm32")]
    crate::bindings::waft::flow::log::write(level, line);
    #[cfg(not(target_arch = "wasm32"))]
    crate::testing::note_line(level, line);
}

/// Logs a line that matters only while looking for a mistake.
#[doc(hidden)]
#[macro_export]
macro_rules! __log_debug {
    ($($words:tt)+) => { $crate::log::write($crate::log::Level::Debug, &::std::format!($($words)+)) };
}

/// Logs a line.
#[doc(hidden)]
#[macro_export]
macro_rules! __log_info {
    ($($words:tt)+) => { $crate::log::write($crate::log::Level::Info, &::std::format!($($words)+)) };
}

/// Logs a line about something that may be wrong.
#[doc(hidden)]
#[macro_export]
macro_rules! __log_warning {
    ($($words:tt)+) => { $crate::log::write($crate::log::Level::Warning, &::std::format!($($words)+)) };
}

/// Logs a line about something that is wrong.
#[doc(hidden)]
#[macro_export]
macro_rules! __log_error {
    ($($words:tt)+) => { $crate::log::write($crate::log::Level::Error, &::std::format!($($words)+)) };
}
