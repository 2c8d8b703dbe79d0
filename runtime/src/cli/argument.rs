//! How single arguments are read, so that what the arguments alone show to be wrong is said at once.
//!
//! A parser says what is wrong in a sentence of its own, with the value in it; `usage.rs` puts the
//! argument before it.

use jiff::Timestamp;

use crate::model::flow::is_name;
use crate::model::label::checked;
use crate::model::state::State;
use crate::wire::Slots;

/// Reads a label.
pub(crate) fn label(text: &str) -> Result<String, String> {
    checked(text)
        .map(str::to_owned)
        .map_err(|error| error.to_string())
}

/// Reads a tag of tasks, which is a word like a label.
pub(crate) fn tag(text: &str) -> Result<String, String> {
    label(text).map_err(|why| why.replace(" is not a label:", " is not a tag:"))
}

/// Reads the name of a flow, a project or an agent.
pub(crate) fn name(text: &str) -> Result<String, String> {
    match is_name(text) {
        true => Ok(text.to_owned()),
        false => Err(format!(
            "`{}` is not a name: expected 1 to 128 letters, digits, `-`, `_` or `.`, \
             one of them a letter or digit",
            shown(text)
        )),
    }
}

/// Reads an instant.
pub(crate) fn instant(text: &str) -> Result<Timestamp, String> {
    text.parse().map_err(|_| {
        format!(
            "`{}` is no instant: expected one such as 2030-01-01T06:00:00Z",
            shown(text)
        )
    })
}

/// Reads a state, and writes it as the API does.
pub(crate) fn state(text: &str) -> Result<String, String> {
    text.parse::<State>().map(|state| state.to_string())
}

/// Reads how many objects are listed.
pub(crate) fn count(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(count) if count > 0 => Ok(count),
        _ => Err(format!(
            "`{}` is not how many: expected 1 or more",
            shown(text)
        )),
    }
}

/// Reads the number of a version.
pub(crate) fn version(text: &str) -> Result<u32, String> {
    match text.parse() {
        Ok(number) if number > 0 => Ok(number),
        _ => Err(format!(
            "`{}` is not the number of a version: expected 1 or more",
            shown(text)
        )),
    }
}

/// Reads how many slots there are; `none` is as many as are wanted.
pub(crate) fn slots(text: &str) -> Result<Slots, String> {
    let slots = match text {
        "none" => None,
        _ => match text.parse() {
            Ok(slots) if slots > 0 => Some(slots),
            _ => {
                return Err(format!(
                    "`{}` is not how many slots: expected 1 or more, or `none`",
                    shown(text)
                ));
            }
        },
    };
    Ok(Slots { slots })
}

/// Reads a pair such as a variable with its value.
pub(crate) fn pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err(format!("`{}` is not NAME=VALUE", shown(text))),
    }
}

/// Shows what somebody typed, but no novel and nothing that steers a terminal.
fn shown(text: &str) -> String {
    text.escape_debug().take(80).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_is_said_with_what_would_be_right() {
        let no = |result: Result<String, String>| result.unwrap_err();
        assert_eq!(name("demo"), Ok("demo".to_owned()));
        assert!(no(name("a/b")).starts_with("`a/b` is not a name:"));
        assert!(no(label("a b")).starts_with("`a b` is not a label:"));
        assert_eq!(state("running"), Ok("Running".to_owned()));
        assert!(no(state("Runing")).starts_with("`Runing` is none of Scheduled, "));
        assert_eq!(
            instant("tomorrow").unwrap_err(),
            "`tomorrow` is no instant: expected one such as 2030-01-01T06:00:00Z"
        );
        assert_eq!(count("3"), Ok(3));
        assert_eq!(slots("3").map(|it| it.slots), Ok(Some(3)));
        assert_eq!(slots("none").map(|it| it.slots), Ok(None));
        for wrong in ["0", "-1", "many"] {
            assert!(count(wrong).unwrap_err().contains(wrong));
            assert!(slots(wrong).unwrap_err().contains(wrong));
        }
        assert_eq!(pair("a=b=c"), Ok(("a".to_owned(), "b=c".to_owned())));
        assert_eq!(pair("=b").unwrap_err(), "`=b` is not NAME=VALUE");
    }
}
