//! Standard output and error of a guest: lines of its log, or what a command returns.
//!
//! Own sinks, so that nothing a guest prints is kept without a bound. A sink never makes the guest
//! wait; the log's budget decides what is kept, and a command that prints more than its output limit
//! is ended. Standard error is also where Rust says why it panics: those words are kept for the end.

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use bytes::Bytes;
use tokio::io::AsyncWrite;
use wasmtime_wasi::cli::{IsTerminal, StdoutStream};
use wasmtime_wasi::p2::{OutputStream, Pollable, StreamError, StreamResult};

use super::attempt::{Breach, MESSAGE_BYTES_MAX};
use super::host::log::Log;
use crate::model::run::Level;

/// Bytes that a guest may write at once; wasmtime-wasi grants the same.
const WRITE_BYTES_MAX: usize = 64 * 1024;
/// A line without an end is cut here; the log cuts it further.
const LINE_BYTES_MAX: usize = 32 * 1024;

/// Where one of the standard streams goes. Cheap to clone; clones share what was written.
#[derive(Clone)]
pub(crate) struct Sink(Arc<Mutex<Kind>>);

enum Kind {
    Lines {
        log: Log,
        level: Level,
        /// The begin of a line whose end was not written yet.
        begun: Vec<u8>,
        /// What Rust says of a panic, on standard error.
        panic: Option<Panic>,
    },
    Output {
        bytes: Vec<u8>,
        bytes_max: u64,
    },
}

/// What Rust says when it panics, found among the lines of standard error:
///
/// ```text
/// (an empty line)
/// thread '<unnamed>' (1) panicked at src/lib.rs:7:96:
/// index out of bounds: the len is 3 but the index is 5
/// note: run with `RUST_BACKTRACE=1` environment variable to display a backtrace
/// ```
#[derive(Debug, Default)]
struct Panic {
    /// An empty line that may be the one before a panic.
    is_blank_kept: bool,
    is_speaking: bool,
    words: String,
}

impl Panic {
    /// Takes in a line; answers whether it belongs into the log.
    fn hear(&mut self, line: &str) -> bool {
        if let Some(place) = place_of_panic(line) {
            (self.is_speaking, self.is_blank_kept) = (true, false);
            self.words = place.to_owned();
            return true;
        }
        if !self.is_speaking {
            return true;
        }
        if line.starts_with("note: run with `RUST_BACKTRACE=1`") {
            self.is_speaking = false;
            return false;
        }
        if self.words.len() < MESSAGE_BYTES_MAX {
            self.words.push(' ');
            self.words.push_str(line);
        }
        true
    }
}

/// Returns `panicked at FILE:LINE:COLUMN:` of the line that says so.
fn place_of_panic(line: &str) -> Option<&str> {
    let said = line
        .strip_prefix("thread '")
        .filter(|_| line.ends_with(':'))?;
    said.find("panicked at ").map(|at| &said[at..])
}

/// Passes one line on, without its end.
fn pass_on(log: &Log, level: Level, panic: Option<&mut Panic>, line: &str) {
    let Some(panic) = panic else {
        return log.add(level, line);
    };
    let is_kept = panic.hear(line);
    if std::mem::take(&mut panic.is_blank_kept) {
        log.add(level, "");
    }
    match line {
        "" => panic.is_blank_kept = is_kept,
        line if is_kept => log.add(level, line),
        _ => {}
    }
}

impl Sink {
    /// Makes a sink whose lines are log lines.
    pub(crate) fn lines(log: Log, level: Level) -> Self {
        Self::saying(log, level, None)
    }

    /// Makes a sink whose lines are log lines, and which listens for a panic among them.
    pub(crate) fn errors(log: Log, level: Level) -> Self {
        Self::saying(log, level, Some(Panic::default()))
    }

    fn saying(log: Log, level: Level, panic: Option<Panic>) -> Self {
        Self(Arc::new(Mutex::new(Kind::Lines {
            log,
            level,
            begun: Vec::new(),
            panic,
        })))
    }

    /// Returns what the guest said of its last panic.
    pub(crate) fn panic(&self) -> Option<String> {
        match &*self.lock() {
            Kind::Lines {
                panic: Some(panic), ..
            } => Some(panic.words.clone()).filter(|words| !words.is_empty()),
            _ => None,
        }
    }

    /// Makes a sink that keeps what is written, up to a limit.
    pub(crate) fn output(bytes_max: u64) -> Self {
        let bytes = Vec::new();
        Self(Arc::new(Mutex::new(Kind::Output { bytes, bytes_max })))
    }

    /// Passes on a line that has no end, and returns what was kept.
    pub(crate) fn finish(&self) -> Bytes {
        match &mut *self.lock() {
            Kind::Lines {
                log,
                level,
                begun,
                panic,
            } => {
                if !begun.is_empty() {
                    let line = String::from_utf8_lossy(begun);
                    pass_on(log, *level, panic.as_mut(), &line);
                    begun.clear();
                }
                if panic
                    .as_mut()
                    .is_some_and(|it| std::mem::take(&mut it.is_blank_kept))
                {
                    log.add(*level, "");
                }
                Bytes::new()
            }
            Kind::Output { bytes, .. } => std::mem::take(bytes).into(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Kind> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self, written: &[u8]) -> Result<(), Breach> {
        match &mut *self.lock() {
            Kind::Lines {
                log,
                level,
                begun,
                panic,
            } => {
                for part in written.split_inclusive(|byte| *byte == b'\n') {
                    begun.extend_from_slice(part);
                    if begun.ends_with(b"\n") || begun.len() >= LINE_BYTES_MAX {
                        let line = String::from_utf8_lossy(begun);
                        let line = line.trim_end_matches(['\r', '\n']);
                        pass_on(log, *level, panic.as_mut(), line);
                        begun.clear();
                    }
                }
                Ok(())
            }
            Kind::Output { bytes, bytes_max } => {
                if (bytes.len() + written.len()) as u64 > *bytes_max {
                    return Err(Breach::output(*bytes_max));
                }
                bytes.extend_from_slice(written);
                Ok(())
            }
        }
    }
}

impl IsTerminal for Sink {
    fn is_terminal(&self) -> bool {
        false
    }
}

impl StdoutStream for Sink {
    fn async_stream(&self) -> Box<dyn AsyncWrite + Send + Sync> {
        Box::new(self.clone())
    }

    fn p2_stream(&self) -> Box<dyn OutputStream> {
        Box::new(self.clone())
    }
}

impl OutputStream for Sink {
    fn write(&mut self, bytes: Bytes) -> StreamResult<()> {
        self.take(&bytes)
            .map_err(|breach| StreamError::Trap(breach.into()))
    }

    fn flush(&mut self) -> StreamResult<()> {
        Ok(())
    }

    fn check_write(&mut self) -> StreamResult<usize> {
        Ok(WRITE_BYTES_MAX)
    }
}

// What `#[async_trait] async fn ready` expands to.
impl Pollable for Sink {
    fn ready<'a, 'b>(&'a mut self) -> Pin<Box<dyn Future<Output = ()> + Send + 'b>>
    where
        'a: 'b,
        Self: 'b,
    {
        Box::pin(std::future::ready(()))
    }
}

impl AsyncWrite for Sink {
    fn poll_write(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        let taken = self.take(bytes).map_err(std::io::Error::other);
        Poll::Ready(taken.map(|()| bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::super::host::log::tests::heard;
    use super::*;
    use crate::model::limit::Limits;

    #[test]
    fn what_is_printed_comes_out_as_lines_however_it_is_cut() {
        let (log, mut lines) = heard(&Limits::DEFAULT);
        let mut sink = Sink::lines(log, Level::Info);
        for part in ["on", "e\ntwo\r\n\nth", "ree\u{1b}", "[0m"] {
            sink.write(Bytes::from_static(part.as_bytes())).unwrap();
        }
        sink.write(Bytes::from_static(b"\xff")).unwrap();
        sink.finish();
        sink.finish();
        assert_eq!(
            lines(),
            [
                "Info one",
                "Info two",
                "Info ",
                "Info three\\u{1b}[0m\u{fffd}"
            ]
        );
    }

    #[test]
    fn the_words_of_a_panic_are_kept_and_what_is_around_them_is_dropped() {
        let (log, mut lines) = heard(&Limits::DEFAULT);
        let mut sink = Sink::errors(log, Level::Warning);
        let parts = [
            "one\n\ntwo\n",
            "\nthread '<unnamed>' (1) panicked at src/lib.rs:7:96:\n",
            "left is not right\n  left: 1\n",
            "note: run with `RUST_BACKTRACE=1` environment variable to display a backtrace\n",
        ];
        assert_eq!(sink.panic(), None);
        for part in parts {
            sink.write(Bytes::from_static(part.as_bytes())).unwrap();
        }
        sink.finish();
        let words = "panicked at src/lib.rs:7:96: left is not right   left: 1";
        assert_eq!(sink.panic().as_deref(), Some(words));
        assert_eq!(
            lines(),
            [
                "Warning one",
                "Warning ",
                "Warning two",
                "Warning thread '<unnamed>' (1) panicked at src/lib.rs:7:96:",
                "Warning left is not right",
                "Warning   left: 1"
            ]
        );
        sink.write(Bytes::from_static(b"three\n\n")).unwrap();
        sink.finish();
        assert_eq!(lines(), ["Warning three", "Warning "]);
        assert_eq!(
            sink.panic().as_deref(),
            Some(words),
            "it spoke of something else"
        );
    }

    #[test]
    fn a_panic_that_speaks_for_ever_is_bounded() {
        let (log, _lines) = heard(&Limits::DEFAULT);
        let mut sink = Sink::errors(log, Level::Warning);
        sink.write(Bytes::from_static(b"thread 'a' panicked at x:1:1:\n"))
            .unwrap();
        for _ in 0..1000 {
            sink.write(Bytes::from(vec![b'x'; 1024])).unwrap();
        }
        let kept = sink.panic().unwrap_or_default().len();
        assert!(kept <= MESSAGE_BYTES_MAX + LINE_BYTES_MAX + 1024, "{kept}");
    }

    #[test]
    fn a_line_without_end_does_not_pile_up() {
        let (log, mut lines) = heard(&Limits::DEFAULT);
        let mut sink = Sink::lines(log, Level::Info);
        for _ in 0..100 {
            sink.write(Bytes::from(vec![b'x'; 1024])).unwrap();
        }
        assert_eq!(lines().len(), 100 * 1024 / LINE_BYTES_MAX);
    }

    #[test]
    fn an_output_is_kept_up_to_its_limit() {
        let mut sink = Sink::output(10);
        sink.write(Bytes::from_static(b"0123456789")).unwrap();
        assert!(matches!(
            sink.write(Bytes::from_static(b"x")),
            Err(StreamError::Trap(_))
        ));
        assert_eq!(sink.finish(), "0123456789");
    }
}
