//! Commands: how parameters reach a component that exports `wasi:cli/run`.

use crate::model::flow::Command;
use crate::model::parameter::Bound;
use crate::sandbox::Call;

/// Makes the call: one JSON object on standard input, arguments and environment as mapped.
pub(super) fn call(command: &Command, parameters: &Bound) -> Call {
    let env = command.env.iter();
    Call::Command {
        args: command
            .args
            .iter()
            .map(|text| filled(text, parameters))
            .collect(),
        env: env
            .map(|(name, text)| (name.clone(), filled(text, parameters)))
            .collect(),
        stdin: serde_json::to_vec(parameters).unwrap_or_default().into(),
    }
}

/// Replaces each `{name}` of a parameter by its value: a string as it is, anything else as JSON.
/// Braces around anything else stay as they are.
fn filled(text: &str, parameters: &Bound) -> String {
    let mut filled = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(open) = rest.find('{') {
        filled.push_str(&rest[..open]);
        let after = &rest[open + 1..];
        let found = after.find('}').and_then(|close| {
            let value = parameters.get(&after[..close])?;
            Some((value, &after[close + 1..]))
        });
        match found {
            Some((value, after)) => {
                match value {
                    serde_json::Value::String(text) => filled.push_str(text),
                    value => filled.push_str(&value.to_string()),
                }
                rest = after;
            }
            None => {
                filled.push('{');
                rest = after;
            }
        }
    }
    filled.push_str(rest);
    filled
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn parameters_stand_where_they_are_named() {
        let parameters: Bound = serde_json::from_value(json!({
            "name": "Ada", "n": 7, "list": [1, "{n}"],
        }))
        .unwrap();
        for (text, expected) in [
            ("--name={name}", "--name=Ada"),
            ("{n}{n}", "77"),
            ("{list}", "[1,\"{n}\"]"),
            ("{other} {", "{other} {"),
            ("{{name}}", "{Ada}"),
            ("plain", "plain"),
        ] {
            assert_eq!(filled(text, &parameters), expected);
        }
    }

    #[test]
    fn a_command_reads_its_parameters_as_one_object() {
        let parameters: Bound = serde_json::from_value(json!({"a": 1, "b": "x"})).unwrap();
        let command = Command {
            args: vec!["{b}".to_owned()],
            env: [("A".to_owned(), "{a}".to_owned())].into(),
        };
        let Call::Command { args, env, stdin } = call(&command, &parameters) else {
            panic!("it is a command");
        };
        assert_eq!(args, ["x"]);
        assert_eq!(env, [("A".to_owned(), "1".to_owned())]);
        assert_eq!(stdin, r#"{"a":1,"b":"x"}"#);
    }
}
