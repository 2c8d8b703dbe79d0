//! Arguments that cannot be read, said as every other failure is: what, why, what to do.
//!
//! Help and versions are data and not failures; they stay as clap writes them.

use std::error::Error as _;
use std::fmt::Write as _;

use clap::error::{ContextKind, ContextValue, ErrorKind};

use super::failure::Failure;

/// Returns what to say about arguments that cannot be read; nothing if clap has an answer to print.
pub(super) fn failure(error: &clap::Error) -> Option<Failure> {
    let is_answer = matches!(
        error.kind(),
        ErrorKind::DisplayHelp
            | ErrorKind::DisplayVersion
            | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand
    );
    if is_answer {
        return None;
    }
    let failure = Failure::usage(message(error));
    Some(match hint(error) {
        Some(hint) => failure.or_hint(hint),
        None => failure,
    })
}

fn message(error: &clap::Error) -> String {
    let argument = quoted(error, ContextKind::InvalidArg);
    let value = words(error, ContextKind::InvalidValue).concat();
    match error.kind() {
        ErrorKind::ValueValidation => {
            let why = error.source().map(ToString::to_string).unwrap_or_default();
            format!("{argument} cannot be read: {why}")
        }
        ErrorKind::InvalidValue if value.is_empty() => format!("{argument} lacks its value"),
        ErrorKind::InvalidValue => {
            let known = quoted(error, ContextKind::ValidValue);
            format!("{argument} cannot be read: `{value}` is none of {known}")
        }
        ErrorKind::UnknownArgument => format!("there is no argument {argument} here"),
        ErrorKind::InvalidSubcommand => {
            let name = quoted(error, ContextKind::InvalidSubcommand);
            format!("there is no command {name}")
        }
        ErrorKind::MissingRequiredArgument => format!("{argument} is missing"),
        ErrorKind::ArgumentConflict => {
            let prior = quoted(error, ContextKind::PriorArg);
            match prior.is_empty() || prior == argument {
                true => format!("{argument} is given twice"),
                false => format!("{argument} does not go together with {prior}"),
            }
        }
        _ => said(error),
    }
}

/// Returns the first paragraph of what clap says, for what is rare.
fn said(error: &clap::Error) -> String {
    let text = error.render().to_string();
    let text = text.split("\n\n").next().unwrap_or_default();
    let text = text.strip_prefix("error: ").unwrap_or(text);
    text.lines().map(str::trim).collect::<Vec<_>>().join(" ")
}

fn hint(error: &clap::Error) -> Option<String> {
    let suggested = [
        ContextKind::SuggestedArg,
        ContextKind::SuggestedSubcommand,
        ContextKind::SuggestedValue,
    ];
    let nearest: Vec<_> = suggested
        .into_iter()
        .flat_map(|kind| words(error, kind))
        .collect();
    if !nearest.is_empty() {
        return Some(format!("did you mean `{}`?", nearest.join("` or `")));
    }
    let Some(ContextValue::StyledStr(usage)) = error.get(ContextKind::Usage) else {
        return None;
    };
    let usage = usage.to_string();
    let usage = usage.trim().strip_prefix("Usage:").unwrap_or(&usage).trim();
    (!usage.is_empty()).then(|| usage.lines().next().unwrap_or_default().to_owned())
}

/// Returns the words of one kind that clap tells, each in backticks.
fn quoted(error: &clap::Error, kind: ContextKind) -> String {
    let mut text = String::new();
    for (nth, word) in words(error, kind).into_iter().enumerate() {
        let comma = if nth == 0 { "" } else { ", " };
        let _ = write!(text, "{comma}`{}`", without_angles(&word));
    }
    text
}

/// Writes `<ID>` as `ID`, and leaves `--limit <N>` as it is.
fn without_angles(word: &str) -> &str {
    let inner = word.trim_end_matches("...").strip_prefix('<');
    inner.and_then(|it| it.strip_suffix('>')).unwrap_or(word)
}

fn words(error: &clap::Error, kind: ContextKind) -> Vec<String> {
    match error.get(kind) {
        Some(ContextValue::String(word)) => vec![word.clone()],
        Some(ContextValue::Strings(words)) => words.clone(),
        Some(ContextValue::StyledStr(text)) => vec![text.to_string()],
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::super::Line;
    use super::*;

    fn said(arguments: &str) -> String {
        let words = std::iter::once("waft").chain(arguments.split(' '));
        let error = Line::try_parse_from(words).unwrap_err();
        let failure = failure(&error).expect("it is a failure");
        assert_eq!(failure.code(), 2);
        failure.to_string()
    }

    #[test]
    fn arguments_are_refused_in_the_voice_of_the_house() {
        let expected = [
            (
                "flow-run list --state Runing --limit 3",
                "error: `--state <STATE>` cannot be read: `Runing` is none of Scheduled, ",
            ),
            (
                "flow-run list --limit 0",
                "error: `--limit <LIMIT>` cannot be read: `0` is not how many: expected 1 or more",
            ),
            (
                "flow-run show 12",
                "error: `ID` cannot be read: `12` is not an id: expected a UUID such as ",
            ),
            (
                "flow-run list --stat Running",
                "error: there is no argument `--stat` here\nhint: did you mean `--state`?",
            ),
            (
                "regster .",
                "error: there is no command `regster`\nhint: did you mean `register`?",
            ),
            (
                "register .",
                "error: `--project <NAME>` is missing\nhint: waft register ",
            ),
            (
                "token create a --scope all",
                "error: `--scope <SCOPE>` cannot be read: `all` is none of `user`, `agent`, `read-only`",
            ),
            (
                "flow-run list --limit",
                "error: `--limit <LIMIT>` lacks its value",
            ),
            (
                "up --parallel 0",
                "error: `--parallel <N>` cannot be read: 0 is not in 1..=1024",
            ),
            (
                "project create a/b",
                "error: `NAME` cannot be read: `a/b` is not a name: ",
            ),
            (
                "agent start --name a/b",
                "error: `--name <NAME>` cannot be read: `a/b` is not a name: ",
            ),
            (
                "up --listen here",
                "error: `--listen <ADDR:PORT>` cannot be read: `here` is no address with a port, such as 127.0.0.1:4280",
            ),
        ];
        for (arguments, start) in expected {
            let text = said(arguments);
            assert!(text.starts_with(start), "{arguments}\n{text}");
            assert!(!text.trim_end().ends_with('.'), "{text}");
        }
    }

    #[test]
    fn help_and_version_stay_as_they_are() {
        for arguments in ["--help", "--version", "flow-run --help", "help run"] {
            let words = std::iter::once("waft").chain(arguments.split(' '));
            let error = Line::try_parse_from(words).unwrap_err();
            assert!(failure(&error).is_none(), "{arguments}");
            assert_eq!(error.exit_code(), 0);
        }
    }
}
