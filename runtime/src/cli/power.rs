//! What flows may be granted here, and how much they may use: flags that mean the same on
//! `waft run`, `waft up` and `waft agent start`.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::Call;
use super::argument::pair;
use super::failure::{Done, Failure};
use crate::config::{Bytes, Millis, variable};
use crate::model::grant::{HostDir, NetRule};
use crate::model::limit::Limits;
use crate::sandbox::{Allowed, Powers, Secrets};

/// Under which the help lists what is allowed.
const GRANTED: &str = "What flows may be granted (beside [agent.allow] in config.toml)";
/// Under which the help lists what may be used.
const LIMITED: &str = "What flows may use (beside [agent] in config.toml)";

/// What is allowed beside `[agent.allow]`.
#[derive(Clone, Debug, Default, clap::Args)]
#[group(skip)]
pub(crate) struct Flags {
    /// A host and port, such as `api.example.org:443` or `*.example.org:443`. Repeatable.
    #[arg(help_heading = GRANTED, long, value_name = "HOST:PORT")]
    allow_net: Vec<NetRule>,
    /// A folder here as a folder of the guest, such as `./data::/data:ro`. Repeatable.
    #[arg(help_heading = GRANTED, long, value_name = "HOST::GUEST:MODE")]
    allow_dir: Vec<HostDir>,
    /// A variable, with the value it has here. Repeatable.
    #[arg(help_heading = GRANTED, long, value_name = "NAME")]
    allow_env: Vec<String>,
    /// A secret kept by `waft secret set`. Repeatable.
    #[arg(help_heading = GRANTED, long, value_name = "NAME")]
    allow_secret: Vec<String>,
    /// A variable with this value, for tasks that ask for it. Repeatable.
    #[arg(help_heading = GRANTED, id = "set_env", short = 'e', value_name = "NAME=VALUE", value_parser = pair)]
    env: Vec<(String, String)>,
    /// The most memory of an attempt, such as `512MiB`.
    #[arg(help_heading = LIMITED, long, value_name = "SIZE")]
    max_memory: Option<Bytes>,
    /// The most CPU time of an attempt, such as `60s`.
    #[arg(help_heading = LIMITED, long, value_name = "TIME")]
    max_cpu: Option<Millis>,
    /// The most time of an attempt, such as `10m`.
    #[arg(help_heading = LIMITED, long, value_name = "TIME")]
    max_wall: Option<Millis>,
    /// The most output of an attempt, such as `4MiB`.
    #[arg(help_heading = LIMITED, long, value_name = "SIZE")]
    max_output: Option<Bytes>,
    /// Attempts at one time, over all runs; the number of cores unless given.
    #[arg(help_heading = LIMITED, long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1024))]
    parallel: Option<u32>,
}

impl Flags {
    /// Checks what is allowed, and finds the values behind it.
    ///
    /// # Errors
    ///
    /// Fails on a folder that may not be mapped, and on a variable or secret that is not there.
    pub(crate) fn powers(&self, call: &Call) -> Done<Arc<Powers>> {
        let set = &call.config.settings.agent.allow;
        let allowed = Allowed {
            net: set.net.iter().chain(&self.allow_net).cloned().collect(),
            dirs: set.dirs.iter().chain(&self.allow_dir).cloned().collect(),
            env: self.variables(&set.env)?,
            secrets: self.secrets(&set.secrets, call)?,
        };
        let home = call.config.home.folder();
        Powers::new(allowed, home)
            .map(Arc::new)
            .map_err(Failure::from)
    }

    fn variables(&self, set: &[String]) -> Done<BTreeMap<String, String>> {
        let mut variables: BTreeMap<_, _> = self.env.iter().cloned().collect();
        for name in set.iter().chain(&self.allow_env) {
            // A value that is given needs none here, and is stronger.
            if variables.contains_key(name) {
                continue;
            }
            let Some(value) = variable(name) else {
                let what =
                    format!("the variable `{name}` is allowed to flows, but is not set here");
                return Err(Failure::could(what).or_hint(format!("-e {name}=VALUE")));
            };
            variables.insert(name.clone(), value);
        }
        Ok(variables)
    }

    fn secrets(&self, set: &[String], call: &Call) -> Done<Secrets> {
        let kept = call.config.home.secrets()?;
        let names: Vec<_> = set.iter().chain(&self.allow_secret).cloned().collect();
        if let Some(name) = names.iter().find(|name| !kept.contains_key(*name)) {
            let what = format!("the secret `{name}` is allowed to flows, but is not kept here");
            return Err(Failure::could(what).or_hint(format!("waft secret set {name}")));
        }
        let home = call.config.home.clone();
        // Read anew each time, so that a changed secret needs no new start.
        Ok(Secrets::new(names.into_iter().collect(), move |name| {
            let mut secrets = home.secrets().ok()?;
            secrets.remove(name)
        }))
    }

    /// Returns the flags as they are given on a command line, folders as they are found from anywhere.
    ///
    /// # Errors
    ///
    /// Fails if the current folder cannot be told.
    pub(crate) fn words(&self) -> Done<Vec<String>> {
        // Named one by one, so that a flag that is forgotten does not compile.
        let Self {
            allow_net,
            allow_dir,
            allow_env,
            allow_secret,
            env,
            max_memory,
            max_cpu,
            max_wall,
            max_output,
            parallel,
        } = self;
        let mut words = Vec::new();
        let mut add = |flag: &str, value: String| words.extend([flag.to_owned(), value]);
        for rule in allow_net {
            add("--allow-net", rule.to_string());
        }
        for dir in allow_dir {
            let host = std::path::absolute(&dir.host)?;
            add("--allow-dir", format!("{}::{}", host.display(), dir.rule));
        }
        for name in allow_env {
            add("--allow-env", name.clone());
        }
        for name in allow_secret {
            add("--allow-secret", name.clone());
        }
        for (name, value) in env {
            add("-e", format!("{name}={value}"));
        }
        let values = [
            ("--max-memory", max_memory.map(|it| it.to_string())),
            ("--max-cpu", max_cpu.map(|it| it.to_string())),
            ("--max-wall", max_wall.map(|it| it.to_string())),
            ("--max-output", max_output.map(|it| it.to_string())),
            ("--parallel", parallel.map(|it| it.to_string())),
        ];
        for (flag, value) in values {
            value.into_iter().for_each(|value| add(flag, value));
        }
        Ok(words)
    }

    /// Returns the folders that are allowed by these flags.
    pub(crate) fn dirs(&self) -> &[HostDir] {
        &self.allow_dir
    }

    /// Returns the variables whose values are taken from the environment.
    pub(crate) fn variables_of_here(&self) -> &[String] {
        &self.allow_env
    }

    /// Returns the most that a task may ask for.
    pub(crate) fn ceiling(&self, call: &Call) -> Limits {
        let set = &call.config.settings.agent.max;
        let mut ceiling = Limits::CEILING;
        let bytes = |flag: Option<Bytes>, set: Option<Bytes>| flag.or(set).map(|bytes| bytes.0);
        let millis =
            |flag: Option<Millis>, set: Option<Millis>| flag.or(set).map(|millis| millis.0);
        let raise = |limit: &mut u64, value: Option<u64>| *limit = value.unwrap_or(*limit);
        raise(
            &mut ceiling.memory_bytes,
            bytes(self.max_memory, set.memory),
        );
        raise(&mut ceiling.cpu_ms, millis(self.max_cpu, set.cpu));
        raise(&mut ceiling.wall_ms, millis(self.max_wall, set.wall));
        raise(
            &mut ceiling.output_bytes,
            bytes(self.max_output, set.output),
        );
        ceiling
    }

    /// Returns how many attempts run at one time.
    pub(crate) fn parallel(&self, call: &Call) -> usize {
        let set = self.parallel.or(call.config.settings.agent.parallel);
        let cores = || std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        set.map_or_else(cores, |number| number.max(1) as usize)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_variable_that_is_given_need_not_be_set_here() {
        let name = "WAFT_TEST_NOT_SET_ANYWHERE".to_owned();
        let mut flags = Flags {
            allow_env: vec![name.clone()],
            env: vec![(name.clone(), "C".to_owned())],
            ..Flags::default()
        };
        let given = flags.variables(std::slice::from_ref(&name)).unwrap();
        assert_eq!(given, BTreeMap::from([(name, "C".to_owned())]));
        flags.env.clear();
        let failure = flags.variables(&[]).unwrap_err();
        assert_eq!(failure.code(), 1);
        assert!(failure.hint.unwrap().starts_with("-e WAFT_TEST_NOT_SET"));
    }
}
