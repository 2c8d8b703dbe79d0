//! Guests for the tests: every example, and those of `tests/guests`, as wasm.
//!
//! `cargo xtask test` compiles them beforehand and says where they lie. Under a plain `cargo test`
//! the first test that needs one has them compiled. A guest that could not be compiled is an error
//! with the mend in it, never a skipped test.

use std::fmt;
use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;

use super::repository;

/// Why there is no such guest, and what to do.
#[derive(Clone)]
pub(crate) struct NoGuest(String);

impl fmt::Display for NoGuest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

// A test that unwraps shows this, and it is meant to be read.
impl fmt::Debug for NoGuest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl std::error::Error for NoGuest {}

/// Returns the wasm file of an example or guest, by the name of its target with `-` for `_`.
pub(crate) fn guest(name: &str) -> Result<PathBuf, NoGuest> {
    let folder = setting("WAFT_GUESTS")?;
    let file = PathBuf::from(folder).join(format!("{name}.wasm"));
    if file.is_file() {
        return Ok(file);
    }
    Err(NoGuest(format!(
        "no guest is called `{name}`: there is no `{}`\nhint: name it in examples/ or in tests/guests/Cargo.toml",
        file.display()
    )))
}

/// Returns the folder that holds all guests.
pub(crate) fn folder() -> Result<String, NoGuest> {
    setting("WAFT_GUESTS")
}

/// Returns the settings by which `waft build` finds compiler and target folder in a test.
pub(crate) fn build_settings() -> Result<Vec<(&'static str, String)>, NoGuest> {
    let mut settings = vec![("CARGO_TARGET_DIR", setting("WAFT_GUEST_TARGET")?)];
    for name in ["WAFT__BUILD__RUSTC", "WAFT__BUILD__PATH"] {
        if let Ok(value) = setting(name) {
            settings.push((name, value));
        }
    }
    Ok(settings)
}

/// Returns the folder that holds the storage servers.
pub(crate) fn servers() -> Result<PathBuf, NoGuest> {
    if let Some(folder) = std::env::var_os("WAFT_SERVERS") {
        return Ok(folder.into());
    }
    static ASKED: OnceLock<Result<Vec<(String, String)>, NoGuest>> = OnceLock::new();
    let asked = ASKED.get_or_init(|| ask_xtask("servers")).as_ref();
    let found = asked
        .map_err(Clone::clone)?
        .iter()
        .find(|(key, _)| key == "WAFT_SERVERS");
    found
        .map(|(_, value)| value.into())
        .ok_or_else(|| NoGuest("cargo xtask servers does not set `WAFT_SERVERS`".to_owned()))
}

/// Looks a setting up in the environment, else among those that `cargo xtask guests` prints.
fn setting(name: &str) -> Result<String, NoGuest> {
    if std::env::var_os("WAFT_GUESTS").is_some() {
        return std::env::var(name)
            .map_err(|_| NoGuest(format!("`{name}` is not set\nhint: cargo xtask test")));
    }
    static SETTINGS: OnceLock<Result<Vec<(String, String)>, NoGuest>> = OnceLock::new();
    let settings = SETTINGS
        .get_or_init(|| ask_xtask("guests"))
        .as_ref()
        .map_err(Clone::clone)?;
    let found = settings.iter().find(|(key, _)| key == name);
    found
        .map(|(_, value)| value.clone())
        .ok_or_else(|| NoGuest(format!("cargo xtask guests does not set `{name}`")))
}

fn ask_xtask(what: &str) -> Result<Vec<(String, String)>, NoGuest> {
    let broken = |why: String| {
        NoGuest(format!(
            "the {what} are not there: {why}\nhint: cargo xtask {what}"
        ))
    };
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(["xtask", what])
        .current_dir(repository())
        .output();
    let output = output.map_err(|error| broken(error.to_string()))?;
    if !output.status.success() {
        return Err(broken(
            String::from_utf8_lossy(&output.stderr).trim().to_string(),
        ));
    }
    Ok(String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter_map(read_export)
        .collect())
}

/// Reads a line such as `export NAME='VALUE'`.
fn read_export(line: &str) -> Option<(String, String)> {
    let (name, value) = line.strip_prefix("export ")?.split_once('=')?;
    let value = value.strip_prefix('\'')?.strip_suffix('\'')?;
    Some((name.to_string(), value.replace(r"'\''", "'")))
}

#[test]
fn an_export_is_read_as_a_shell_reads_it() {
    let read = |line| read_export(line);
    assert_eq!(
        read(r"export A='it'\''s'"),
        Some(("A".to_string(), "it's".to_string()))
    );
    assert_eq!(read("# nothing to set"), None);
}

#[test]
fn a_guest_that_does_not_exist_is_an_error_that_names_it() {
    let error = guest("no-such-guest").unwrap_err();
    assert!(error.to_string().contains("`no-such-guest`"), "{error}");
}
