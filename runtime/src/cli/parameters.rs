//! `--param` and `--params`: how parameters are written on a command line.

use std::io::Read as _;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::failure::{Done, Failure};
use crate::model::flow::is_name;
use crate::model::parameter::{Bound, Parameter};

/// The parameters of a run.
#[derive(Clone, Debug, Default, clap::Args)]
#[group(skip)]
pub(crate) struct Given {
    /// A parameter: JSON, or plain text where the flow wants text. Repeatable.
    #[arg(long = "param", value_name = "NAME=VALUE", value_parser = name_and_value)]
    pub(crate) one: Vec<(String, String)>,
    /// A file with all parameters as one JSON object; `-` reads standard input.
    #[arg(long = "params", value_name = "FILE|-")]
    pub(crate) all: Option<PathBuf>,
}

fn name_and_value(text: &str) -> Result<(String, String), String> {
    let (name, value) = super::argument::pair(text)?;
    if !is_name(&name) {
        return Err(format!(
            "`{}` is not the name of a parameter",
            name.escape_debug()
        ));
    }
    Ok((name, value))
}

impl Given {
    /// Reads what was given, each text as the flow's schema wants it. `--param` goes over `--params`.
    ///
    /// Whether the flow takes these parameters is not decided here.
    ///
    /// # Errors
    ///
    /// Fails on a parameter given twice, and on a file that holds no JSON object.
    pub(crate) fn read(&self, known: &[Parameter]) -> Done<Bound> {
        let mut bound = match &self.all {
            None => Bound::new(),
            Some(file) => read_object(file)?,
        };
        for (nth, (name, text)) in self.one.iter().enumerate() {
            if self.one[..nth].iter().any(|(earlier, _)| earlier == name) {
                return Err(Failure::usage(format!(
                    "the parameter `{name}` is given twice"
                )));
            }
            let known = known.iter().find(|parameter| parameter.name == *name);
            let value = match known {
                Some(parameter) => parameter.read_argument(text),
                // The check of the parameters says in better words that there is none of this name.
                None => Value::String(text.clone()),
            };
            bound.insert(name.clone(), value);
        }
        Ok(bound)
    }

    /// Tells whether the flow's schema is needed to read them.
    pub(crate) const fn needs_schema(&self) -> bool {
        !self.one.is_empty()
    }
}

fn read_object(file: &Path) -> Done<Bound> {
    let mut text = String::new();
    let read = match file.as_os_str() == "-" {
        true => std::io::stdin().read_to_string(&mut text),
        false => std::fs::File::open(file).and_then(|mut file| file.read_to_string(&mut text)),
    };
    read.map_err(|error| {
        anyhow::Error::new(error).context(format!(
            "cannot read the parameters in `{}`",
            file.display()
        ))
    })?;
    object(&text).map_err(|why| {
        let what = format!("`{}` holds no JSON object of parameters", file.display());
        Failure::new(why.context(what)).or_hint(r#"{"name": "Ada", "count": 3}"#)
    })
}

fn object(text: &str) -> anyhow::Result<Bound> {
    let what = match serde_json::from_str(text)? {
        Value::Object(fields) => return Ok(fields.into_iter().collect()),
        Value::Array(_) => "a list",
        Value::String(_) => "a text",
        Value::Number(_) => "a number",
        Value::Bool(_) => "true or false",
        Value::Null => "null",
    };
    Err(anyhow::anyhow!("it is {what}; expected one object"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_text_is_read_as_the_schema_wants_it() {
        let parameter = |name: &str, schema: Value| Parameter {
            name: name.to_owned(),
            description: String::new(),
            schema,
            default: None,
        };
        let known = [
            parameter("text", json!({ "type": "string" })),
            parameter("number", json!({ "type": "integer" })),
        ];
        let given = Given {
            one: ["text=7", "number=7", "other=7"]
                .map(|pair| name_and_value(pair).unwrap())
                .to_vec(),
            all: None,
        };
        let bound = given.read(&known).unwrap();
        assert_eq!(bound["text"], json!("7"));
        assert_eq!(bound["number"], json!(7));
        assert_eq!(bound["other"], json!("7"));
    }

    #[test]
    fn a_parameter_is_given_once_and_has_a_name() {
        let given = |pairs: &[&str]| Given {
            one: pairs
                .iter()
                .map(|pair| name_and_value(pair).unwrap())
                .collect(),
            all: None,
        };
        assert_eq!(
            given(&["a=1", "b=x=y"]).read(&[]).unwrap()["b"],
            json!("x=y")
        );
        assert_eq!(given(&["a=1", "a=2"]).read(&[]).unwrap_err().code(), 2);
        assert!(name_and_value("a").is_err());
        assert!(name_and_value("=1").is_err());
        assert!(name_and_value("a b=1").is_err());
    }

    #[test]
    fn a_file_holds_one_object_and_a_flag_is_stronger() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("p.json");
        std::fs::write(&file, r#"{"a": 1, "b": 2}"#).unwrap();
        let mut given = Given {
            one: vec![name_and_value("b=3").unwrap()],
            all: Some(file.clone()),
        };
        assert_eq!(
            given.read(&[]).unwrap(),
            Bound::from([("a".into(), json!(1)), ("b".into(), json!("3"))])
        );
        std::fs::write(&file, "[1]").unwrap();
        given.all = Some(file);
        let failure = given.read(&[]).unwrap_err();
        assert_eq!(failure.code(), 1);
        let text = failure.to_string();
        assert!(
            text.contains("caused by: it is a list; expected one object"),
            "{text}"
        );
    }
}
