//! Configuration: the only reader of the environment, of `config.toml` and of what lies in
//! `WAFT_HOME` for the program itself.
//!
//! A setting is taken from a flag, else from `WAFT__SECTION__KEY`, else from `config.toml`, else
//! from its default. Flags belong to `cli`, which lays them over what [`Config::load`] returns. An
//! unknown key is an error, so that a misspelt line cannot be taken for a rule that holds.

mod home;
mod quantity;
mod setting;
mod storage;

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize};

pub use self::home::{BadHome, Credentials, Home};
pub use self::quantity::{Bytes, Millis, NoQuantity};
use self::setting::{Mistake, SETTINGS, find, insert};
pub use self::storage::{Access, Azure, Gcs, S3, Storage, Web};
use crate::model::grant::{HostDir, NetRule};
use crate::model::limit;

/// What holds for this process: its home, its settings and where each of them comes from.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where everything of one user lies.
    pub home: Home,
    /// The settings, defaults filled in.
    pub settings: Settings,
    /// Where each setting that is not the default was set, by its dotted name.
    pub origins: BTreeMap<&'static str, Origin>,
}

/// Where a setting was set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Origin {
    /// In `config.toml`.
    File,
    /// By a variable `WAFT__SECTION__KEY`.
    Environment,
}

/// Everything that can be set.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// Where the server is, for those who call it; and how it is started.
    pub server: Server,
    /// What an agent offers and allows. `waft run` and `waft up` obey the same.
    pub agent: Agent,
    /// What new flows start from.
    pub flows: Flows,
    /// Where outputs are kept.
    pub results: Results,
    /// Runs on the server.
    pub runs: Runs,
    /// How storages are reached.
    pub storage: Storage,
    /// How flows are compiled.
    pub build: Build,
}

/// The section `[server]`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Server {
    /// Its address, such as `http://127.0.0.1:4280`.
    pub url: Option<String>,
    /// The token to call it with.
    pub token: Option<String>,
    /// The address that `waft server start` and `waft up` listen on.
    #[serde(deserialize_with = "listen")]
    pub listen: Option<SocketAddr>,
    /// How long an agent may be silent before its runs go to another.
    pub lease: Option<Millis>,
}

/// The section `[agent]`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Agent {
    /// Its name; the host's unless given.
    pub name: Option<String>,
    /// Labels beside the host's name.
    pub labels: Vec<String>,
    /// Storage roots to fetch from, beside the default storage.
    pub roots: Vec<String>,
    /// The projects whose code runs here; none is every project of its token.
    pub projects: Vec<String>,
    /// Runs at one time.
    pub limit: Option<u32>,
    /// Attempts at one time, over all runs; the number of cores unless given.
    pub parallel: Option<u32>,
    /// What flows may be granted.
    pub allow: Allow,
    /// The most that a task may ask for.
    pub max: Max,
    /// How much is kept of what can be made again.
    pub cache: Cache,
}

/// The section `[agent.allow]`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Allow {
    /// `host:port`.
    pub net: Vec<NetRule>,
    /// `HOST::GUEST:ro`.
    #[serde(serialize_with = "as_dirs", deserialize_with = "dirs")]
    pub dirs: Vec<HostDir>,
    /// Names of variables of this process.
    pub env: Vec<String>,
    /// Names of secrets.
    pub secrets: Vec<String>,
}

/// The section `[agent.max]`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Max {
    /// Memory of an attempt.
    pub memory: Option<Bytes>,
    /// CPU time of an attempt.
    pub cpu: Option<Millis>,
    /// Time of an attempt.
    pub wall: Option<Millis>,
    /// Output of an attempt.
    pub output: Option<Bytes>,
    /// Bytes of a component.
    pub artifact: Option<Bytes>,
}

/// The section `[agent.cache]`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Cache {
    /// Artifacts that were fetched.
    pub artifacts: Option<Bytes>,
    /// Compiled code.
    pub code: Option<Bytes>,
}

/// The section `[flows]`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Flows {
    /// What holds where a command does not say otherwise.
    pub defaults: FlowDefaults,
}

/// The section `[flows.defaults]`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct FlowDefaults {
    /// Where artifacts go.
    pub storage: DefaultStorage,
}

/// The section `[flows.defaults.storage]`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DefaultStorage {
    /// A storage root; `$WAFT_HOME/flows` unless given.
    pub root: Option<String>,
}

/// The section `[results]`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Results {
    /// A storage root; `$WAFT_HOME/results` unless given.
    pub root: Option<String>,
    /// How long `waft server start` and `waft up` have results kept after their last use.
    pub keep: Option<Millis>,
}

/// The section `[runs]`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Runs {
    /// How long `waft server start` and `waft up` keep runs that are over.
    pub keep: Option<Millis>,
}

/// The section `[build]`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Build {
    /// A `rustc` that has the target `wasm32-wasip2`, where the usual one has not.
    pub rustc: Option<PathBuf>,
    /// Folders that go before `PATH` while a flow is compiled, joined as in `PATH`.
    pub path: Option<String>,
}

/// Says what is wrong with the configuration.
#[derive(Debug, thiserror::Error)]
pub enum BadConfig {
    /// There is no place for anything.
    #[error("cannot tell where the home is: neither `WAFT_HOME` nor `HOME` is set")]
    NoHome,
    /// A file cannot be read.
    #[error("cannot read `{}`", file.display())]
    Unreadable {
        /// Which one.
        file: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A line of the file is wrong.
    #[error("`{}`, line {line}: {why}", file.display())]
    Line {
        /// Which file.
        file: PathBuf,
        /// Which line, from 1.
        line: usize,
        /// What is wrong with it.
        why: String,
    },
    /// A variable names no setting.
    #[error("the variable `{0}` names no setting")]
    UnknownVariable(String),
    /// A variable does not fit its setting.
    #[error("the variable `{name}` does not fit: {why}")]
    Variable {
        /// Which one.
        name: String,
        /// What is wrong with it.
        why: String,
    },
}

impl Config {
    /// Reads the environment and `config.toml`.
    ///
    /// # Errors
    ///
    /// Names the file and the line, or the variable, that is wrong.
    pub fn load() -> Result<Self, BadConfig> {
        let home = match variable("WAFT_HOME").filter(|path| !path.is_empty()) {
            Some(path) => PathBuf::from(path),
            None => home_folder().ok_or(BadConfig::NoHome)?.join(".waft"),
        };
        let home = Home::new(std::path::absolute(&home).unwrap_or(home));
        let file = home.config();
        let text = match std::fs::read_to_string(&file) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
            Err(source) => return Err(BadConfig::Unreadable { file, source }),
        };
        Self::read(home, &text, variables(|name| name.starts_with("WAFT__")))
    }

    /// Lays variables over the text of a file.
    ///
    /// # Errors
    ///
    /// As [`Config::load`].
    pub fn read(
        home: Home,
        text: &str,
        variables: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, BadConfig> {
        let at_line = |line, why| BadConfig::Line {
            file: home.config(),
            line,
            why,
        };
        let mut table: toml::Table = toml::from_str(text).map_err(|error: toml::de::Error| {
            at_line(line_of(text, error.span()), one_line(error.message()))
        })?;
        setting::check(&table)
            .map_err(|Mistake { path, why }| at_line(setting::line_of_key(text, &path), why))?;
        let mut origins: BTreeMap<_, _> = SETTINGS
            .iter()
            .filter(|(name, _)| find(&table, name).is_some())
            .map(|(name, _)| (*name, Origin::File))
            .collect();
        for (variable, value) in variables {
            let dotted = variable["WAFT__".len()..].to_lowercase().replace("__", ".");
            let Some((name, kind)) = SETTINGS.iter().find(|(name, _)| *name == dotted) else {
                return Err(BadConfig::UnknownVariable(variable));
            };
            match setting::read(name, *kind, &value) {
                Ok(value) => insert(&mut table, name, value),
                Err(why) => {
                    return Err(BadConfig::Variable {
                        name: variable,
                        why,
                    });
                }
            }
            origins.insert(name, Origin::Environment);
        }
        // Each value was tried by itself, so there is nothing left that could be wrong.
        let settings =
            Settings::deserialize(table).map_err(|error| at_line(1, one_line(error.message())))?;
        Ok(Self {
            home,
            settings,
            origins,
        })
    }

    /// Returns every setting in order: its dotted name, its value if it has one, where it was set.
    #[must_use]
    pub fn list(&self) -> Vec<(&'static str, Option<toml::Value>, Option<Origin>)> {
        let table = toml::Table::try_from(&self.settings).unwrap_or_default();
        SETTINGS
            .iter()
            .map(|(name, _)| {
                let value = find(&table, name).cloned();
                let is_empty = |value: &toml::Value| value.as_array().is_some_and(Vec::is_empty);
                let value = value.filter(|value| !is_empty(value));
                (*name, value, self.origins.get(name).copied())
            })
            .collect()
    }

    /// Returns the storage root that artifacts go to unless a command says otherwise.
    #[must_use]
    pub fn storage_root(&self) -> String {
        let root = self.settings.flows.defaults.storage.root.clone();
        root.unwrap_or_else(|| file_root(&self.home.flows()))
    }

    /// Returns the most bytes that a component may have.
    #[must_use]
    pub fn artifact_max(&self) -> u64 {
        let most = self.settings.agent.max.artifact;
        most.map_or(limit::ARTIFACT_BYTES_MAX, |most| most.0)
    }

    /// Returns the storage root that outputs go to.
    #[must_use]
    pub fn results_root(&self) -> String {
        let root = self.settings.results.root.clone();
        root.unwrap_or_else(|| file_root(&self.home.results()))
    }
}

/// Returns the line of a text, from 1, in which a span begins.
pub(crate) fn line_of(text: &str, span: Option<std::ops::Range<usize>>) -> usize {
    let start = span.map_or(0, |span| span.start).min(text.len());
    text.as_bytes()[..start]
        .iter()
        .filter(|byte| **byte == b'\n')
        .count()
        + 1
}

fn one_line(text: &str) -> String {
    text.lines().map(str::trim).collect::<Vec<_>>().join(" ")
}

/// Reads an address to listen on.
///
/// # Errors
///
/// Says what such an address looks like.
pub fn address(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| {
        let shown: String = text.escape_debug().take(80).collect();
        format!("`{shown}` is no address with a port, such as 127.0.0.1:4280")
    })
}

fn listen<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<SocketAddr>, D::Error> {
    let text = String::deserialize(deserializer)?;
    address(&text).map(Some).map_err(serde::de::Error::custom)
}

fn dirs<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<HostDir>, D::Error> {
    let texts = Vec::<String>::deserialize(deserializer)?;
    let parsed = texts.iter().map(|text| HostDir::from_str(text));
    parsed
        .collect::<Result<_, _>>()
        .map_err(serde::de::Error::custom)
}

fn as_dirs<S: serde::Serializer>(dirs: &[HostDir], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(dirs.iter().map(|dir| format!("{}::{}", dir.host, dir.rule)))
}

/// Writes a folder as a storage root.
#[must_use]
pub fn file_root(folder: &Path) -> String {
    format!("file://{}", folder.display())
}

/// Returns a variable of this process.
#[must_use]
pub fn variable(name: &str) -> Option<String> {
    variable_os(name)?.into_string().ok()
}

/// Returns the variables of this process whose names are wanted.
fn variables(is_wanted: impl Fn(&str) -> bool) -> BTreeMap<String, String> {
    let all = std::env::vars_os().filter_map(|(name, value)| {
        let name = name.into_string().ok().filter(|name| is_wanted(name))?;
        Some((name, value.to_string_lossy().into_owned()))
    });
    all.collect()
}

#[expect(clippy::disallowed_methods, reason = "this is the one place")]
fn variable_os(name: impl AsRef<OsStr>) -> Option<OsString> {
    std::env::var_os(name)
}

/// Tells whether people asked for no colour, by `NO_COLOR` or by a terminal that has none.
#[must_use]
pub fn is_plain() -> bool {
    let is_set = variable_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    is_set || variable("TERM").as_deref() == Some("dumb")
}

/// Returns what `WAFT_LOG` says about what this program logs of itself, such as `info`.
#[must_use]
pub fn log_filter() -> Option<String> {
    variable("WAFT_LOG").filter(|filter| !filter.is_empty())
}

/// Returns the `cargo` to compile flows with: the one that started us, else the usual one.
#[must_use]
pub fn cargo() -> OsString {
    variable_os("CARGO").unwrap_or_else(|| "cargo".into())
}

/// Returns `PATH` with folders before it.
#[must_use]
pub fn path_after(folders: &str) -> OsString {
    let path = variable_os("PATH").unwrap_or_default();
    let all = std::env::split_paths(folders).chain(std::env::split_paths(&path));
    std::env::join_paths(all).unwrap_or(path)
}

/// Returns the name of this machine, which is a label of its agents and of what lies in its folders.
#[must_use]
pub fn hostname() -> String {
    let told = ["/proc/sys/kernel/hostname", "/etc/hostname"]
        .into_iter()
        .filter_map(|file| std::fs::read_to_string(file).ok());
    let named = ["HOSTNAME", "COMPUTERNAME"]
        .into_iter()
        .filter_map(variable);
    let asked = std::iter::from_fn({
        let mut is_asked = false;
        move || {
            if std::mem::replace(&mut is_asked, true) {
                return None;
            }
            let output = std::process::Command::new("hostname").output().ok()?;
            String::from_utf8(output.stdout).ok()
        }
    });
    let is_label_char = |c: &char| c.is_ascii_alphanumeric() || "-_.".contains(*c);
    told.chain(named)
        .chain(asked)
        .map(|name| {
            name.trim()
                .chars()
                .filter(is_label_char)
                .take(64)
                .collect::<String>()
        })
        .find(|name| !name.is_empty())
        .unwrap_or_else(|| "localhost".to_owned())
}

/// Returns the folder of the user.
pub(crate) fn home_folder() -> Option<PathBuf> {
    std::env::home_dir().filter(|folder| !folder.as_os_str().is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str, variables: &[(&str, &str)]) -> Result<Config, BadConfig> {
        let own = |(name, value): &(&str, &str)| (format!("WAFT__{name}"), (*value).to_owned());
        Config::read(Home::new("/h".into()), text, variables.iter().map(own))
    }

    #[test]
    fn a_variable_is_stronger_than_a_line() {
        let text = "[server]\nurl = \"http://file\"\n[agent]\nlimit = 3\nlabels = [\"a\"]\n";
        let config = read(
            text,
            &[("SERVER__URL", "http://env"), ("AGENT__LABELS", "b, c")],
        )
        .unwrap();
        assert_eq!(config.settings.server.url.as_deref(), Some("http://env"));
        assert_eq!(config.settings.agent.labels, ["b", "c"]);
        assert_eq!(config.settings.agent.limit, Some(3));
        assert_eq!(config.origins["server.url"], Origin::Environment);
        assert_eq!(config.origins["agent.limit"], Origin::File);
        assert!(!config.origins.contains_key("agent.name"));
    }

    #[test]
    fn an_unknown_key_is_named_with_its_line() {
        let error = read("[server]\nurl = \"x\"\nurll = \"y\"\n", &[])
            .unwrap_err()
            .to_string();
        assert_eq!(
            error,
            "`/h/config.toml`, line 3: [server] has no key `urll`; did you mean `url`?"
        );
        let error = read("[agent.max]\n\nmemory = \"9 elephants\"", &[])
            .unwrap_err()
            .to_string();
        assert!(error.starts_with("`/h/config.toml`, line 3:"), "{error}");
        let error = read("[agent\n", &[]).unwrap_err().to_string();
        assert!(error.starts_with("`/h/config.toml`, line 1:"), "{error}");
    }

    #[test]
    fn a_value_that_does_not_fit_is_named_with_what_would() {
        let expected = [
            (
                "[agent]\nlimit = \"4\"",
                "line 2: `agent.limit` cannot be read: expected a whole number, such as 4",
            ),
            (
                "[agent]\nlimit = -4",
                "line 2: `agent.limit` cannot be read: expected a whole number, such as 4",
            ),
            (
                "agent.labels = [\"a\", 1]",
                "line 1: `agent.labels` cannot be read: expected a list of texts, such as [\"a\", \"b\"]",
            ),
            (
                "[server]\n\nlisten = \"here\"",
                "line 3: `server.listen` cannot be read: `here` is no address with a port, such as 127.0.0.1:4280",
            ),
            (
                "[server]\nurl = 1",
                "line 2: `server.url` cannot be read: expected a text in quotes",
            ),
            (
                "[agent]\nallow = []",
                "line 2: `agent.allow` is a section and has no value: [agent.allow]",
            ),
            (
                "[agnet]\nlimit = 1",
                "line 1: there is no section `agnet`; did you mean `agent`?",
            ),
            (
                "[build]\nnothing = 1",
                "line 2: [build] has no key `nothing`; it has `rustc`, `path`",
            ),
        ];
        for (text, why) in expected {
            let error = read(text, &[]).unwrap_err().to_string();
            assert_eq!(error, format!("`/h/config.toml`, {why}"));
        }
    }

    #[test]
    fn an_unknown_or_unfit_variable_is_named() {
        let error = read("", &[("SERVER__LISTEN", "here")])
            .unwrap_err()
            .to_string();
        assert_eq!(
            error,
            "the variable `WAFT__SERVER__LISTEN` does not fit: `here` is no address with a port, such as 127.0.0.1:4280"
        );
        let error = read("", &[("SERVER__URI", "x")]).unwrap_err().to_string();
        assert_eq!(error, "the variable `WAFT__SERVER__URI` names no setting");
        let error = read("", &[("AGENT__LIMIT", "many")])
            .unwrap_err()
            .to_string();
        assert_eq!(
            error,
            "the variable `WAFT__AGENT__LIMIT` does not fit: expected a whole number, such as 4"
        );
        let error = read("", &[("AGENT__ALLOW__NET", "nowhere")])
            .unwrap_err()
            .to_string();
        assert!(error.contains("`nowhere` is not a net grant"), "{error}");
    }

    #[test]
    fn the_list_names_every_setting() {
        fn flatten(prefix: &str, value: &toml::Value, names: &mut Vec<String>) {
            match value {
                toml::Value::Table(table) => table.iter().for_each(|(key, value)| {
                    let dotted = if prefix.is_empty() {
                        key.clone()
                    } else {
                        format!("{prefix}.{key}")
                    };
                    flatten(&dotted, value, names);
                }),
                _ => names.push(prefix.to_owned()),
            }
        }
        let every = r#"
            [server]
            url = "u"
            token = "t"
            listen = "127.0.0.1:1"
            lease = "30s"
            [agent]
            name = "n"
            limit = 1
            parallel = 1
            max = { memory = "1MiB", cpu = "1s", wall = "1s", output = "1MiB", artifact = "1MiB" }
            cache = { artifacts = "1GiB", code = "1GiB" }
            [storage]
            s3 = { endpoint = "http://e", region = "r" }
            gcs = { endpoint = "http://e" }
            azure = { endpoint = "http://e", account = "a" }
            [flows.defaults.storage]
            root = "file:///f"
            [results]
            root = "file:///r"
            keep = "7d"
            [runs]
            keep = "30d"
            [build]
            rustc = "rustc"
            path = "/p"
        "#;
        let settings = read(every, &[]).unwrap().settings;
        let mut names = Vec::new();
        flatten("", &toml::Value::try_from(&settings).unwrap(), &mut names);
        names.sort();
        let mut listed: Vec<_> = SETTINGS
            .iter()
            .map(|(name, _)| (*name).to_owned())
            .collect();
        listed.sort();
        assert_eq!(names, listed);
    }
}
