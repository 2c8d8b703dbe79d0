//! The only writer to the terminal.
//!
//! Data goes to standard output, everything else to standard error, so that a pipe carries data and
//! nothing else. What others wrote (names, messages, log lines) is shown with its control characters
//! escaped. A closed pipe ends the program quietly.

use std::borrow::Cow;
use std::fmt::Display;
use std::io::{self, BufRead as _, IsTerminal as _, Write as _};
use std::panic::PanicHookInfo;

use indicatif::MultiProgress;
use serde::Serialize;

use super::failure::{Done, Failure};
use crate::config;

/// Writes for people, or for programs if they asked for JSON.
#[derive(Clone)]
pub struct Output {
    is_json: bool,
    is_colored: bool,
    is_terminal: bool,
    live: MultiProgress,
}

impl Output {
    /// Looks at where the output goes.
    #[must_use]
    pub fn new(is_json: bool) -> Self {
        let is_terminal = io::stderr().is_terminal() && !config::is_plain();
        Self {
            is_json,
            is_colored: is_terminal,
            is_terminal,
            live: MultiProgress::new(),
        }
    }

    /// Tells whether data is to be JSON.
    #[must_use]
    pub const fn is_json(&self) -> bool {
        self.is_json
    }

    /// Tells whether lines may move: only on a terminal.
    #[must_use]
    pub const fn is_terminal(&self) -> bool {
        self.is_terminal
    }

    /// Returns the place of lines that move; what is written here meanwhile goes above them.
    #[must_use]
    pub const fn live(&self) -> &MultiProgress {
        &self.live
    }

    /// Writes a line of data.
    ///
    /// # Errors
    ///
    /// `Failure::gone` if nobody reads it any more.
    pub fn line(&self, text: impl Display) -> Done {
        self.live
            .suspend(|| write_out(format!("{}\n", clean(&text.to_string())).as_bytes()))
    }

    /// Writes an object as JSON on lines of its own.
    ///
    /// # Errors
    ///
    /// As [`Output::line`].
    pub fn json(&self, object: &impl Serialize) -> Done {
        let mut text = serde_json::to_vec_pretty(object)?;
        text.push(b'\n');
        self.live.suspend(|| write_out(&text))
    }

    /// Writes an object as JSON on one line, for streams of them.
    ///
    /// # Errors
    ///
    /// As [`Output::line`].
    pub fn json_line(&self, object: &impl Serialize) -> Done {
        let mut text = serde_json::to_vec(object)?;
        text.push(b'\n');
        self.live.suspend(|| write_out(&text))
    }

    /// Writes bytes as they are, with a line end; on a terminal what could steer it is escaped.
    ///
    /// # Errors
    ///
    /// As [`Output::line`].
    pub fn bytes(&self, bytes: &[u8]) -> Done {
        if io::stdout().is_terminal() {
            return self.line(String::from_utf8_lossy(bytes).trim_end_matches('\n'));
        }
        self.live.suspend(|| {
            write_out(bytes)?;
            if bytes.ends_with(b"\n") {
                Ok(())
            } else {
                write_out(b"\n")
            }
        })
    }

    /// Writes a table for people; nothing but a note if it is empty.
    ///
    /// # Errors
    ///
    /// As [`Output::line`].
    pub fn table(&self, columns: &[&str], rows: &[Vec<String>], if_empty: &str) -> Done {
        if rows.is_empty() {
            self.note(if_empty);
            return Ok(());
        }
        let columns: Vec<_> = columns.iter().map(|name| name.to_uppercase()).collect();
        lay_out(&columns, rows)
            .iter()
            .try_for_each(|line| self.line(line))
    }

    /// Says something to people, beside the data.
    pub fn note(&self, text: impl Display) {
        let text = clean(&text.to_string()).into_owned();
        self.live.suspend(|| write_err(&format!("{text}\n")));
    }

    /// Says why a command did not do what it was asked for.
    pub fn failure(&self, failure: &Failure) {
        let mut text = clean(&failure.to_string()).into_owned();
        if self.is_colored {
            for (word, color) in [("error:", "1;31"), ("hint:", "1;36")] {
                text = text
                    .split('\n')
                    .map(|line| match line.strip_prefix(word) {
                        Some(rest) => format!("\x1b[{color}m{word}\x1b[0m{rest}"),
                        None => line.to_owned(),
                    })
                    .collect::<Vec<_>>()
                    .join("\n");
            }
        }
        self.live.suspend(|| write_err(&format!("{text}\n")));
    }

    /// Asks a question that is answered by yes or no; `--yes` answers it beforehand. Returns only if
    /// the answer is yes.
    ///
    /// # Errors
    ///
    /// Fails with what did not happen if the answer is no, and as wrong usage where there is nobody
    /// to ask, naming what was asked.
    pub fn ask(&self, question: &str, is_yes: bool, if_no: &'static str) -> Done {
        if is_yes {
            return Ok(());
        }
        if !can_ask() {
            let why = format!("cannot ask without a terminal: {question}");
            return Err(Failure::usage(why).or_hint("add --yes to say yes beforehand"));
        }
        agreed(self.answer(question)?, if_no)
    }

    /// Asks the person at the terminal a question that is answered by yes or no, and waits for that.
    ///
    /// # Errors
    ///
    /// Fails if there is nothing to read from.
    pub(crate) fn answer(&self, question: &str) -> io::Result<bool> {
        self.live
            .suspend(|| write_err(&format!("{question} [y/N] ")));
        let mut answer = String::new();
        io::stdin().lock().read_line(&mut answer)?;
        Ok(is_agreed(&answer))
    }
}

/// Tells whether there is a person to be asked.
#[must_use]
pub(crate) fn can_ask() -> bool {
    io::stdin().is_terminal() && io::stderr().is_terminal()
}

fn agreed(is_agreed: bool, if_no: &'static str) -> Done {
    match is_agreed {
        true => Ok(()),
        false => Err(Failure::could(if_no)),
    }
}

fn is_agreed(answer: &str) -> bool {
    matches!(answer.trim().to_lowercase().as_str(), "y" | "yes")
}

/// Tells whether standard input is a person at a terminal.
#[must_use]
pub(crate) fn is_typed() -> bool {
    io::stdin().is_terminal()
}

/// Reads one line that a person types, without showing it where the terminal can do that.
///
/// # Errors
///
/// Fails if there is nothing to read from.
pub(crate) fn read_unseen() -> io::Result<String> {
    let mut line = String::new();
    #[cfg(unix)]
    {
        use rustix::termios::{LocalModes, OptionalActions, tcgetattr, tcsetattr};
        let stdin = io::stdin();
        if let Ok(before) = tcgetattr(&stdin) {
            let mut quiet = before.clone();
            quiet.local_modes.remove(LocalModes::ECHO);
            tcsetattr(&stdin, OptionalActions::Flush, &quiet)?;
            let read = stdin.lock().read_line(&mut line);
            tcsetattr(&stdin, OptionalActions::Flush, &before)?;
            write_err("\n");
            return read.map(|_| line);
        }
    }
    io::stdin().read_line(&mut line)?;
    Ok(line)
}

/// Says that this program has a bug, when it panics.
pub(crate) fn bug(panic: &PanicHookInfo<'_>) {
    let said = panic.payload_as_str().unwrap_or("no message");
    let place = panic
        .location()
        .map(ToString::to_string)
        .unwrap_or_default();
    write_err(&format!(
        "error: waft has a bug: {said}\n  caused by: a panic at {place}, version {}\nhint: please report it with the command that you gave\n",
        env!("CARGO_PKG_VERSION"),
    ));
}

fn write_out(bytes: &[u8]) -> Done {
    let mut out = io::stdout().lock();
    match out.write_all(bytes).and_then(|()| out.flush()) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Err(Failure::gone()),
        Err(error) => Err(anyhow::Error::new(error)
            .context("cannot write the output")
            .into()),
    }
}

fn write_err(text: &str) {
    // There is nobody left to tell that nobody listens.
    let _ = io::stderr().lock().write_all(text.as_bytes());
}

/// Escapes what could steer a terminal, apart from line ends and tabs.
fn clean(text: &str) -> Cow<'_, str> {
    let steers = |c: char| c.is_control() && c != '\n' && c != '\t';
    if !text.contains(steers) {
        return Cow::Borrowed(text);
    }
    let mut cleaned = String::with_capacity(text.len());
    for c in text.chars() {
        if steers(c) {
            cleaned.extend(c.escape_default());
        } else {
            cleaned.push(c);
        }
    }
    Cow::Owned(cleaned)
}

/// Lays out a table in lines, each column as wide as its widest cell.
pub(crate) fn lay_out(columns: &[String], rows: &[Vec<String>]) -> Vec<String> {
    let heading = columns.to_vec();
    let widths: Vec<usize> = (0..columns.len())
        .map(|at| {
            let cells = std::iter::once(&heading).chain(rows);
            let widths = cells
                .filter_map(|row| row.get(at))
                .map(|cell| cell.chars().count());
            widths.max().unwrap_or_default()
        })
        .collect();
    std::iter::once(&heading)
        .chain(rows)
        .map(|row| {
            let cells = row.iter().zip(&widths).map(|(cell, width)| {
                let cell = cell.replace(['\n', '\t'], " ");
                format!("{cell:<width$}")
            });
            cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_as_wide_as_its_widest_cells() {
        let rows = [
            vec!["a".to_owned(), "long name".to_owned()],
            vec!["äöü".to_owned(), "x\ny".to_owned()],
        ];
        assert_eq!(
            lay_out(&["ID".to_owned(), "NAME".to_owned()], &rows),
            ["ID   NAME", "a    long name", "äöü  x y"]
        );
    }

    #[test]
    fn a_no_is_a_command_that_did_not_do_it() {
        assert!(is_agreed("Yes\n"));
        for no in ["", "\n", "n\n", "yesterday\n"] {
            let failure = agreed(is_agreed(no), "nothing was deleted").unwrap_err();
            assert_eq!(failure.to_string(), "error: nothing was deleted");
            assert_eq!(failure.code(), 1);
        }
    }

    #[test]
    fn nothing_that_others_wrote_steers_the_terminal() {
        assert_eq!(clean("a\x1b[2Jb\r\n\tc"), "a\\u{1b}[2Jb\\r\n\tc");
        assert!(matches!(clean("plain"), Cow::Borrowed(_)));
    }
}
