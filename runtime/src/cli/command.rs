//! Commands: how a component that exports `wasi:cli/run` becomes a flow of one task.
//!
//! Such a component cannot say what it is called, what it takes and what it needs. `waft.toml`
//! beside it does, or flags, which are stronger. What comes out is a definition like any other.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context as _, anyhow};
use serde::{Deserialize, Deserializer};

use super::failure::{Done, Failure};
use crate::config::{Bytes, Millis, line_of};
use crate::model::flow::{Body, Command, Definition, OnLost, Retries, Task, Trigger};
use crate::model::grant::{DirRule, Grants, NetRule};
use crate::model::limit::TaskLimits;
use crate::model::parameter::Parameter;

/// The task that a command is.
const TASK: &str = "run";

/// Under which the help lists these flags.
const HEADING: &str = "For a command (a component without the SDK), instead of its waft.toml";

/// What is said about a command by flags.
#[derive(Clone, Debug, Default, clap::Args)]
#[group(skip)]
pub(crate) struct Flags {
    /// The name of the flow.
    #[arg(help_heading = HEADING, long)]
    name: Option<String>,
    /// A host and port that it asks for, such as `api.example.org:443`.
    #[arg(help_heading = HEADING, long, value_name = "HOST:PORT")]
    net: Vec<NetRule>,
    /// A guest folder that it asks for, such as `/data:ro`.
    #[arg(help_heading = HEADING, long, value_name = "GUEST:MODE")]
    dir: Vec<DirRule>,
    /// A variable that it asks for.
    #[arg(help_heading = HEADING, long, value_name = "NAME")]
    env: Vec<String>,
    /// A secret that it asks for.
    #[arg(help_heading = HEADING, long, value_name = "NAME")]
    secret: Vec<String>,
    /// A parameter that it takes, with its JSON schema, such as `top={"type":"integer"}`.
    #[arg(help_heading = HEADING, long, value_name = "NAME=SCHEMA", value_parser = param_schema)]
    param_schema: Vec<(String, serde_json::Value)>,
}

fn param_schema(text: &str) -> Result<(String, serde_json::Value), String> {
    let (name, schema) = text.split_once('=').ok_or("expected NAME=SCHEMA")?;
    let schema =
        serde_json::from_str(schema).map_err(|error| format!("the schema is not JSON: {error}"))?;
    Ok((name.to_owned(), schema))
}

/// The file `waft.toml`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Manifest {
    name: Option<String>,
    description: String,
    args: Vec<String>,
    env: BTreeMap<String, String>,
    grants: AskedGrants,
    limits: AskedLimits,
    parameters: BTreeMap<String, AskedParameter>,
    timeout: Option<Millis>,
    retries: Option<AskedRetries>,
    on_lost: OnLost,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct AskedGrants {
    net: Vec<NetRule>,
    #[serde(alias = "dir")]
    dirs: Vec<DirRule>,
    env: Vec<String>,
    #[serde(alias = "secret")]
    secrets: Vec<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct AskedLimits {
    memory: Option<Bytes>,
    cpu: Option<Millis>,
    output: Option<Bytes>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct AskedParameter {
    schema: Option<serde_json::Value>,
    #[serde(default)]
    default: Option<serde_json::Value>,
    #[serde(default)]
    description: String,
}

#[derive(Debug)]
struct AskedRetries {
    count: u32,
    delay: Option<Millis>,
}

impl<'de> Deserialize<'de> for AskedRetries {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::read(toml::Value::deserialize(deserializer)?).map_err(serde::de::Error::custom)
    }
}

impl AskedRetries {
    /// Reads it by hand, as an untagged enum would neither see a key too many nor say what is wrong.
    fn read(value: toml::Value) -> Result<Self, String> {
        const WANTED: &str = r#"`retries` is a number or { count = 2, delay = "1s" }"#;
        let count = |value: &toml::Value| u32::try_from(value.as_integer()?).ok();
        let toml::Value::Table(mut table) = value else {
            let count = count(&value).ok_or(WANTED)?;
            return Ok(Self { count, delay: None });
        };
        let (asked, delay) = (table.remove("count"), table.remove("delay"));
        if let Some((key, _)) = table.into_iter().next() {
            return Err(format!("{WANTED}; it has no key `{key}`"));
        }
        let delay = match delay {
            None => None,
            Some(toml::Value::String(text)) => {
                let delay = text.parse::<Millis>();
                Some(delay.map_err(|error| error.to_string())?)
            }
            Some(_) => return Err(WANTED.to_owned()),
        };
        let count = asked.as_ref().and_then(count).ok_or(WANTED)?;
        Ok(Self { count, delay })
    }
}

impl Flags {
    /// Tells whether any of them was given.
    pub(crate) fn is_empty(&self) -> bool {
        let grants = [
            self.net.len(),
            self.dir.len(),
            self.env.len(),
            self.secret.len(),
        ];
        self.name.is_none() && self.param_schema.is_empty() && grants == [0; 4]
    }

    /// Makes the definition of the command in `file`, which `folder` may hold a `waft.toml` for.
    ///
    /// # Errors
    ///
    /// Says what is wrong in `waft.toml`, or with the definition as a whole.
    pub(crate) fn definition(&self, file: &Path, folder: &Path) -> Done<Definition> {
        let manifest = folder.join("waft.toml");
        let text = match std::fs::read_to_string(&manifest) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
            Err(error) => {
                let what = format!("cannot read `{}`", manifest.display());
                return Err(anyhow::Error::new(error).context(what).into());
            }
        };
        let stem = file.file_stem().unwrap_or_default().to_string_lossy();
        let made = self.over(&text, &stem);
        made.with_context(|| match text.is_empty() {
            true => format!(
                "`{}` is a command, and cannot be run as it is",
                file.display()
            ),
            false => format!("`{}` is not usable", manifest.display()),
        })
        .map_err(Failure::from)
    }

    fn over(&self, text: &str, stem: &str) -> anyhow::Result<Definition> {
        let manifest: Manifest = toml::from_str(text).map_err(|error| {
            let line = line_of(text, error.span());
            anyhow!("line {line}: {}", error.message().replace('\n', " "))
        })?;
        let mut definition = manifest.into_definition(stem)?;
        let grants = &mut definition.tasks[0].grants;
        grants.net.extend(self.net.iter().cloned());
        grants.dirs.extend(self.dir.iter().cloned());
        grants.env.extend(self.env.iter().cloned());
        grants.secrets.extend(self.secret.iter().cloned());
        if let Some(name) = &self.name {
            definition.name.clone_from(name);
        }
        for (name, schema) in &self.param_schema {
            definition
                .parameters
                .retain(|parameter| parameter.name != *name);
            definition.parameters.push(Parameter {
                name: name.clone(),
                description: String::new(),
                schema: schema.clone(),
                default: None,
            });
        }
        definition.check()?;
        check_places(&definition)?;
        Ok(definition)
    }
}

impl Manifest {
    fn into_definition(self, stem: &str) -> anyhow::Result<Definition> {
        let retries = self.retries.map(|asked| Retries {
            count: asked.count,
            delay_ms: asked.delay.map_or(0, |delay| delay.0),
            backoff: crate::model::flow::Backoff::default(),
            delay_max_ms: None,
            jitter_percent: 0,
        });
        let mut parameters = Vec::new();
        for (name, asked) in self.parameters {
            let Some(schema) = asked.schema else {
                return Err(anyhow!(
                    "the parameter `{name}` needs a schema: schema = {{ type = \"integer\" }}"
                ));
            };
            parameters.push(Parameter {
                name,
                description: asked.description,
                schema,
                default: asked.default,
            });
        }
        let task = Task {
            name: TASK.to_owned(),
            description: self.description.clone(),
            body: Body::Command,
            is_mapped: false,
            conditions: Vec::new(),
            trigger: Trigger::default(),
            skip_on_upstream_skip: true,
            retries,
            timeout_ms: self.timeout.map(|timeout| timeout.0),
            tags: std::collections::BTreeSet::new(),
            cache: None,
            grants: Grants {
                net: self.grants.net.into_iter().collect(),
                dirs: self.grants.dirs.into_iter().collect(),
                env: self.grants.env.into_iter().collect(),
                secrets: self.grants.secrets.into_iter().collect(),
            },
            limits: TaskLimits {
                memory_bytes: self.limits.memory.map(|bytes| bytes.0),
                cpu_ms: self.limits.cpu.map(|millis| millis.0),
                wall_ms: None,
                output_bytes: self.limits.output.map(|bytes| bytes.0),
                parallel: None,
            },
            on_lost: self.on_lost,
        };
        Ok(Definition {
            name: self.name.unwrap_or_else(|| stem.to_owned()),
            description: self.description,
            command: Some(Command {
                args: self.args,
                env: self.env,
            }),
            parameters,
            tasks: vec![task],
            edges: Vec::new(),
            reference_tasks: Vec::new(),
            output: Some(TASK.to_owned()),
            schedule: None,
        })
    }
}

/// Finds a `{name}` in an argument or variable that names no parameter: a slip of the pen.
fn check_places(definition: &Definition) -> anyhow::Result<()> {
    let Some(command) = &definition.command else {
        return Ok(());
    };
    for text in command.args.iter().chain(command.env.values()) {
        for place in text.split('{').skip(1) {
            let Some((name, _)) = place.split_once('}') else {
                continue;
            };
            let is_known = definition
                .parameters
                .iter()
                .any(|parameter| parameter.name == name);
            if crate::model::flow::is_name(name) && !is_known {
                return Err(anyhow!(
                    "`{text}` names the parameter `{name}`, which does not exist"
                ));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const WHOLE: &str = r#"
        name = "wordcount"
        description = "Counts words."
        args = ["--top", "{top}"]
        timeout = "30s"
        retries = { count = 2, delay = "1s" }
        [env]
        LANG = "C"
        [grants]
        dirs = ["/data:ro"]
        net = ["example.org:443"]
        [limits]
        memory = "64MiB"
        [parameters.top]
        schema = { type = "integer" }
        default = 10
    "#;

    #[test]
    fn a_manifest_becomes_a_definition() {
        let definition = Flags::default().over(WHOLE, "file").unwrap();
        assert_eq!(definition.name, "wordcount");
        let task = &definition.tasks[0];
        assert_eq!(task.grants.lines(), ["net example.org:443", "dir /data:ro"]);
        assert_eq!(task.timeout_ms, Some(30_000));
        assert_eq!(task.retries.as_ref().unwrap().delay_ms, 1_000);
        assert_eq!(task.limits.memory_bytes, Some(64 << 20));
        assert_eq!(definition.parameters[0].default, Some(10.into()));
        assert_eq!(definition.output.as_deref(), Some("run"));
    }

    #[test]
    fn flags_are_stronger_and_a_manifest_is_not_needed() {
        let flags = Flags {
            name: Some("other".to_owned()),
            dir: vec!["/out:rw".parse().unwrap()],
            param_schema: vec![param_schema(r#"top={"type":"string"}"#).unwrap()],
            ..Flags::default()
        };
        let definition = flags.over(WHOLE, "file").unwrap();
        assert_eq!(definition.name, "other");
        assert_eq!(definition.tasks[0].grants.dirs.len(), 2);
        assert_eq!(definition.parameters[0].schema["type"], "string");
        assert_eq!(Flags::default().over("", "file").unwrap().name, "file");
    }

    #[test]
    fn the_readme_of_the_example_names_every_key() {
        let readme = include_str!("../../../examples/wordcount/README.md");
        for section in ["", "[grants]", "[limits]", "[parameters.a]"] {
            let text = format!("{section}\nnosuchkey = 1");
            let error = Flags::default().over(&text, "file").unwrap_err();
            let error = error.to_string();
            let keys: Vec<_> = error.split('`').skip(3).step_by(2).collect();
            assert!(keys.len() > 2, "{error}");
            for key in keys {
                let is_named = ["`", "[", " "].iter().any(|before| {
                    ["`", "]", " =", "."]
                        .iter()
                        .any(|after| readme.contains(&format!("{before}{key}{after}")))
                });
                assert!(is_named, "the README says nothing of `{key}`");
            }
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        let error = |text: &str| Flags::default().over(text, "file").unwrap_err().to_string();
        assert!(error("name = \"a\"\nnmae = \"b\"").starts_with("line 2: unknown field `nmae`"));
        assert!(error("[grants]\ndirs = [\"data\"]").contains("`data` is not a dir grant"));
        assert!(error("args = [\"{tpo}\"]").contains("the parameter `tpo`"));
        assert!(error("name = \"a/b\"").contains("`a/b`"));
        let wanted = "`retries` is a number or { count = 2, delay = \"1s\" }";
        for retries in ["\"2\"", "-1", "{}", "{ count = 2, delay = 1 }"] {
            let said = error(&format!("name = \"a\"\nretries = {retries}"));
            assert_eq!(said, format!("line 2: {wanted}"));
        }
        assert_eq!(
            error("[retries]\ncount = 2\nbackof = 1"),
            format!("line 1: {wanted}; it has no key `backof`")
        );
        assert!(error("retries = { count = 2, delay = \"soon\" }").contains("`soon`"));
        assert_eq!(
            error("[parameters.top]\ndefault = 1"),
            "the parameter `top` needs a schema: schema = { type = \"integer\" }"
        );
        assert!(
            Flags::default()
                .over("args = [\"{\\\"a b\\\": 1}\"]", "file")
                .is_ok()
        );
    }
}
