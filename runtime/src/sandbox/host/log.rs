//! `waft:flow/log`: what an attempt says, cleaned, cut and counted.
//!
//! Standard output and error of the guest, the cards' refusals and the host's own remarks go through
//! the same [`Log`], so that one budget holds for all of them. It also knows the secrets that the
//! guest has read, and takes them out of everything that leaves the agent.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::clock::Clock;
use crate::model::limit::Limits;
use crate::model::run::Level;
use crate::sandbox::attempt::{Said, Says};
use crate::sandbox::bindings::waft::flow::log;

/// What stands for a secret.
const HIDDEN: &str = "[secret]";
/// A secret shorter than this is a word that occurs by chance.
const SECRET_BYTES_MIN: usize = 4;
/// A line of a longer secret that is shorter than this may be anybody's, such as a bracket.
const SECRET_LINE_BYTES_MIN: usize = 8;

/// Where everything that one attempt says comes together. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Log(Arc<Mutex<Ledger>>);

struct Ledger {
    says: Says,
    clock: Clock,
    line_bytes: usize,
    lines_left: u64,
    bytes_left: u64,
    lines: u64,
    bytes: u64,
    dropped: u64,
    /// The longest first, so that no secret is cut in two by another one that is a part of it.
    hidden: Vec<String>,
}

impl Log {
    pub(crate) fn new(says: Says, clock: Clock, limits: &Limits) -> Self {
        Self(Arc::new(Mutex::new(Ledger {
            says,
            clock,
            line_bytes: usize::try_from(limits.log_line_bytes).unwrap_or(usize::MAX),
            lines_left: limits.log_lines,
            bytes_left: limits.log_bytes,
            lines: 0,
            bytes: 0,
            dropped: 0,
            hidden: Vec::new(),
        })))
    }

    fn lock(&self) -> MutexGuard<'_, Ledger> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds one line, or counts it as dropped.
    pub(crate) fn add(&self, level: Level, line: &str) {
        self.lock().add(level, line);
    }

    /// Takes a secret out of everything that is said from now on: plain, in base64, and each long
    /// line of it, since a key is often printed line by line.
    pub(crate) fn hide(&self, secret: &str) {
        if secret.len() < SECRET_BYTES_MIN {
            return;
        }
        let mut said = self.lock();
        let lines = secret
            .lines()
            .map(str::trim)
            .filter(|line| line.len() >= SECRET_LINE_BYTES_MIN);
        said.hidden.extend(lines.map(str::to_owned));
        said.hidden.push(secret.to_owned());
        said.hidden.push(STANDARD.encode(secret));
        said.hidden
            .sort_by(|a, b| b.len().cmp(&a.len()).then_with(|| a.cmp(b)));
        said.hidden.dedup();
    }

    /// Returns a text as it may leave the agent: cleaned, cut, without secrets.
    pub(crate) fn clean(&self, text: &str, bytes_max: usize) -> String {
        self.lock().clean(text, bytes_max)
    }

    /// Hands on something that is no log line.
    pub(crate) fn say(&self, said: Said) {
        self.lock().says.say(said);
    }

    /// Says once how much was dropped, and returns the bytes that were not.
    pub(crate) fn finish(&self) -> u64 {
        let mut said = self.lock();
        if said.dropped > 0 {
            let (dropped, lines, bytes) = (said.dropped, said.lines, said.bytes);
            said.dropped = 0;
            let text = format!(
                "{dropped} log lines were dropped: the attempt reached its limit after {lines} lines and {bytes} bytes (limit.logs)"
            );
            said.pass_on(Level::Warning, text);
        }
        said.bytes
    }
}

impl Ledger {
    fn add(&mut self, level: Level, line: &str) {
        if self.lines_left == 0 {
            self.dropped += 1;
            return;
        }
        // What leaves the agent counts, and escapes make a line longer than the guest wrote it.
        let text = self.clean(line, self.line_bytes);
        let bytes = text.len() as u64;
        if self.bytes_left < bytes {
            // From here on everything is dropped, so that what is kept has no holes.
            self.lines_left = 0;
            self.dropped += 1;
            return;
        }
        self.lines_left -= 1;
        self.bytes_left -= bytes;
        self.lines += 1;
        self.bytes += bytes;
        self.pass_on(level, text);
    }

    fn pass_on(&self, level: Level, text: String) {
        let at = self.clock.now();
        self.says.say(Said::Line { at, level, text });
    }

    fn clean(&self, text: &str, bytes_max: usize) -> String {
        if !self.hidden.iter().any(|secret| text.contains(secret)) {
            return cleaned(text, bytes_max);
        }
        let mut text = text.to_owned();
        for secret in &self.hidden {
            text = text.replace(secret, HIDDEN);
        }
        cleaned(&text, bytes_max)
    }
}

/// Returns a text of a guest as one line that is safe to print: control characters and those that
/// turn the direction of text are escaped, and what is then beyond `bytes_max` is cut and marked.
pub(crate) fn cleaned(text: &str, bytes_max: usize) -> String {
    let is_odd = |c: char| {
        (c.is_control() && c != '\t')
            || matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    if text.len() <= bytes_max && !text.contains(is_odd) {
        return text.to_owned();
    }
    let mut clean = String::with_capacity(text.len().min(bytes_max) + 16);
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        // All that is plain goes in one piece; what is odd, one character at a time.
        let plain = rest.find(is_odd).unwrap_or(rest.len());
        let (piece, after) = rest.split_at(if plain == 0 { c.len_utf8() } else { plain });
        let room = bytes_max.saturating_sub(clean.len());
        let escaped = (plain == 0).then(|| c.escape_default().to_string());
        let shown = escaped.as_deref().unwrap_or(piece);
        if shown.len() > room {
            if plain > 0 {
                clean.push_str(&shown[..shown.floor_char_boundary(room)]);
            }
            clean.push_str(" … (cut)");
            break;
        }
        clean.push_str(shown);
        rest = after;
    }
    clean
}

impl log::Host for Log {
    fn write(&mut self, level: log::Level, line: String) -> wasmtime::Result<()> {
        let level = match level {
            log::Level::Debug => Level::Debug,
            log::Level::Info => Level::Info,
            log::Level::Warning => Level::Warning,
            log::Level::Error => Level::Error,
        };
        self.add(level, &line);
        Ok(())
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Makes a log, and a way to take the lines that came out.
    pub(crate) fn heard(limits: &Limits) -> (Log, impl FnMut() -> Vec<String>) {
        let (says, mut ear) = Says::channel();
        let log = Log::new(says, Clock::default(), limits);
        let take = move || {
            let mut lines = Vec::new();
            while let Ok(said) = ear.try_recv() {
                lines.push(match said {
                    Said::Line { level, text, .. } => format!("{level:?} {text}"),
                    Said::Card { title, content } => format!("{title}: {content:?}"),
                });
            }
            lines
        };
        (log, take)
    }

    #[test]
    fn a_line_is_made_safe_to_print() {
        let table = [
            ("plain ü\ttext", "plain ü\ttext"),
            ("a\nb\r\0", "a\\nb\\r\\u{0}"),
            ("\u{1b}[31mred", "\\u{1b}[31mred"),
            ("\u{202e}txt.exe", "\\u{202e}txt.exe"),
            ("0123456789abcdefghij", "0123456789abcdef … (cut)"),
            ("0123456789abcdeü", "0123456789abcde … (cut)"),
            ("0123456789ab\0", "0123456789ab … (cut)"),
            ("\0\0\0\0", "\\u{0}\\u{0}\\u{0} … (cut)"),
        ];
        for (text, expected) in table {
            assert_eq!(cleaned(text, 16), expected);
        }
    }

    #[test]
    fn beyond_the_limit_lines_are_dropped_and_counted_once() {
        let limits = Limits {
            log_lines: 2,
            ..Limits::DEFAULT
        };
        let (mut log, mut lines) = heard(&limits);
        for _ in 0..5 {
            log::Host::write(&mut log, log::Level::Error, String::new()).unwrap();
        }
        assert_eq!(log.finish(), 0);
        assert_eq!(log.finish(), 0);
        assert_eq!(
            lines(),
            [
                "Error ",
                "Error ",
                "Warning 3 log lines were dropped: the attempt reached its limit after 2 lines and 0 bytes (limit.logs)"
            ]
        );
    }

    #[test]
    fn bytes_are_limited_as_lines_are() {
        let limits = Limits {
            log_bytes: 5,
            ..Limits::DEFAULT
        };
        let (log, mut lines) = heard(&limits);
        for line in ["abc", "def", "g"] {
            log.add(Level::Info, line);
        }
        assert_eq!(log.finish(), 3);
        assert_eq!(lines().len(), 2);
    }

    #[test]
    fn what_escapes_add_is_limited_as_well() {
        let limits = Limits {
            log_bytes: 100,
            log_line_bytes: 40,
            ..Limits::DEFAULT
        };
        let (log, mut lines) = heard(&limits);
        for _ in 0..5 {
            log.add(Level::Info, &"\u{1}".repeat(8));
        }
        let kept = log.finish();
        let lines = lines();
        assert_eq!(lines.len(), 3, "{lines:?}");
        assert_eq!(lines[0], format!("Info {}", "\\u{1}".repeat(8)));
        assert_eq!(kept, 80);
    }

    #[test]
    fn secrets_do_not_leave() {
        let (log, mut lines) = heard(&Limits::DEFAULT);
        log.hide("hunter22");
        log.hide("x");
        log.add(Level::Info, "it is hunter22, aHVudGVyMjI= and x");
        assert_eq!(lines(), ["Info it is [secret], [secret] and x"]);
        assert_eq!(log.clean("hunter22", 100), "[secret]");
    }

    #[test]
    fn secrets_within_secrets_and_lines_of_secrets_do_not_leave() {
        let (log, mut lines) = heard(&Limits::DEFAULT);
        log.hide("hunter");
        log.hide("hunter22");
        log.hide("{\n  first-half\r\n  second-half\n}\n");
        for line in ["it is hunter22", "  second-half", "{ and first-half"] {
            log.add(Level::Info, line);
        }
        assert_eq!(
            lines(),
            [
                "Info it is [secret]",
                "Info   [secret]",
                "Info { and [secret]"
            ]
        );
    }
}
