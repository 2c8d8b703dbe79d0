//! A guest run here and now by the real program, and what came of it.
//!
//! The stories that need a server and agents begin with `world` or `program`.

use std::path::Path;
use std::process::Command;

use serde_json::Value;

use super::guests::guest;
use super::program::WAFT;

/// What came of a run.
pub(crate) struct Ran {
    /// What `--json` printed; null where nothing was.
    pub(crate) object: Value,
    pub(crate) code: Option<i32>,
    /// What stood on standard error.
    pub(crate) talk: String,
}

/// Runs an example or guest with `waft run --json` and more arguments.
pub(crate) fn run(home: &Path, name: &str, arguments: &[&str]) -> Ran {
    let output = Command::new(WAFT)
        .args(["run", "--json"])
        .arg(guest(name).unwrap())
        .args(arguments)
        .env("WAFT_HOME", home)
        .output()
        .unwrap();
    let talk = String::from_utf8_lossy(&output.stderr).into_owned();
    let object = serde_json::from_slice(&output.stdout).unwrap_or(Value::Null);
    let code = output.status.code();
    Ran { object, code, talk }
}

impl Ran {
    /// Prints each task run as `task state code`.
    pub(crate) fn tasks(&self) -> Vec<String> {
        let text = |task: &Value, field: &str| task[field].as_str().unwrap_or("-").to_owned();
        let tasks = self.object["tasks"].as_array().unwrap();
        tasks
            .iter()
            .map(|task| {
                let [name, state, code] = ["task", "state", "code"].map(|it| text(task, it));
                format!("{name} {state} {code}")
            })
            .collect()
    }
}
