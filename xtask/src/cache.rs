//! Where everything lies: this repository, and the user's cache folder with target folders and tools.
//!
//! The cache is shared by all clones of one user, so that a second clone builds in seconds. Every
//! `cargo` that xtask starts is made here, so that all of them share its target folders.

use std::env;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::say;

/// The places that the commands build in.
pub(crate) struct Cache {
    /// The root of this clone.
    pub(crate) repository: PathBuf,
    /// The folder that holds all the others.
    pub(crate) folder: PathBuf,
    /// The target folder of the workspace.
    pub(crate) target: PathBuf,
    /// The target folder of examples and guests, which are outside the workspace.
    pub(crate) guest_target: PathBuf,
}

impl Cache {
    /// Finds the places, and makes the cache folder.
    pub(crate) fn open() -> Result<Self> {
        // Asked of `cargo run`: what was compiled in may be the path of another clone.
        let manifest = env::var_os("CARGO_MANIFEST_DIR")
            .context("xtask is started by cargo only\nhint: cargo xtask --help")?;
        let repository = Path::new(&manifest)
            .parent()
            .context("finding the repository above the folder of xtask")?
            .to_path_buf();
        let folder = cache_folder()?;
        let target = match env::var_os("CARGO_TARGET_DIR") {
            Some(chosen) => env::current_dir()?.join(chosen),
            None => folder.join("target"),
        };
        let guest_target = folder.join("guest-target");
        for folder in [&target, &guest_target] {
            fs::create_dir_all(folder)
                .with_context(|| format!("making the folder `{}`", folder.display()))?;
        }
        Ok(Self {
            repository,
            folder,
            target,
            guest_target,
        })
    }

    /// Copies what git knows of this clone into a folder of the cache, and returns the places of the copy.
    pub(crate) fn copy_of_clone(&self, name: &str) -> Result<Self> {
        let copy = self.folder.join(name);
        if copy.exists() {
            fs::remove_dir_all(&copy).with_context(|| format!("removing `{}`", copy.display()))?;
        }
        let listed = Command::new("git")
            .current_dir(&self.repository)
            .args([
                "ls-files",
                "-z",
                "--cached",
                "--others",
                "--exclude-standard",
            ])
            .output()
            .context("starting `git ls-files`")?;
        let listed = String::from_utf8(listed.stdout).context("a file name that is no text")?;
        for name in listed.split_terminator('\0') {
            let (from, to) = (self.repository.join(name), copy.join(name));
            fs::create_dir_all(to.parent().context("a file without a folder")?)?;
            fs::copy(&from, &to).with_context(|| format!("copying `{}`", from.display()))?;
        }
        Ok(Self {
            repository: copy,
            folder: self.folder.clone(),
            target: self.target.clone(),
            guest_target: self.guest_target.clone(),
        })
    }

    /// Takes both target folders for this clone, until the answer is dropped.
    ///
    /// Clones build one after the other, and each forgets what the one before compiled of its own
    /// packages: cargo names a package of a workspace by its path *below the root* and trusts file
    /// times, so it would take this clone's sources for what another clone compiled from newer ones.
    pub(crate) fn take_targets(&self) -> Result<File> {
        let lock = self.lock("build")?;
        for target in [&self.target, &self.guest_target] {
            self.forget_other_clone(target)?;
        }
        Ok(lock)
    }

    /// Returns a `cargo` for the workspace, run from the repository.
    pub(crate) fn cargo(&self) -> Command {
        let mut cargo = cargo();
        cargo
            .current_dir(&self.repository)
            .env("CARGO_TARGET_DIR", &self.target);
        cargo
    }

    /// Returns a `cargo` for a package outside the workspace, run from that package's folder.
    pub(crate) fn guest_cargo(&self, package: &Path) -> Command {
        let mut cargo = cargo();
        cargo
            .current_dir(package)
            .env("CARGO_TARGET_DIR", &self.guest_target);
        cargo
    }

    /// Waits for the lock of that name, which is held until the answer is dropped.
    ///
    /// Two processes may set up the same cache at one time, and only one may do the work.
    pub(crate) fn lock(&self, name: &str) -> Result<File> {
        let path = self.folder.join(format!("{name}.lock"));
        let file = File::create(&path).with_context(|| format!("making `{}`", path.display()))?;
        if file.try_lock().is_err() {
            say::note(&format!(
                "waiting for another cargo xtask to finish with `{name}`"
            ));
            file.lock()
                .with_context(|| format!("locking `{}`", path.display()))?;
        }
        Ok(file)
    }

    /// Returns the folders under `examples`, each a package of its own.
    pub(crate) fn examples(&self) -> Result<Vec<PathBuf>> {
        packages_in(&self.repository.join("examples"))
    }

    fn forget_other_clone(&self, target: &Path) -> Result<()> {
        let note = target.join("clone");
        let own = self.repository.to_string_lossy();
        if fs::read_to_string(&note).is_ok_and(|last| last == own) {
            return Ok(());
        }
        let names = self.own_packages()?;
        for profile in below(target) {
            let nested = below(&profile);
            for folder in std::iter::once(profile).chain(nested) {
                for unit in below(&folder.join(".fingerprint")) {
                    if is_unit_of(&unit, &names) {
                        fs::remove_dir_all(&unit)
                            .with_context(|| format!("removing `{}`", unit.display()))?;
                    }
                }
            }
        }
        fs::write(&note, own.as_bytes()).with_context(|| format!("writing `{}`", note.display()))
    }

    /// Returns the names of the packages in this repository.
    fn own_packages(&self) -> Result<Vec<String>> {
        let mut folders = vec![
            self.repository.join("runtime"),
            self.repository.join("xtask"),
            self.repository.join("sdk"),
            self.repository.join("sdk/macros"),
            self.repository.join("tests/sdk"),
            self.repository.join("tests/guests"),
        ];
        folders.extend(self.examples()?);
        let manifests = folders
            .iter()
            .filter_map(|it| fs::read_to_string(it.join("Cargo.toml")).ok());
        Ok(manifests.filter_map(|text| package_name(&text)).collect())
    }
}

/// Returns the folders in `folder` that hold a manifest, in order of their names.
fn packages_in(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries =
        fs::read_dir(folder).with_context(|| format!("listing `{}`", folder.display()))?;
    let mut packages = Vec::new();
    for entry in entries {
        let path = entry?.path();
        if path.join("Cargo.toml").is_file() {
            packages.push(path);
        }
    }
    packages.sort();
    Ok(packages)
}

fn cache_folder() -> Result<PathBuf> {
    let set = |name| {
        env::var_os(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    let folder = set("WAFT_CACHE")
        .or_else(|| set("XDG_CACHE_HOME").map(|it| it.join("waft")))
        .or_else(|| set("HOME").map(|it| it.join(".cache/waft")))
        .context("finding the cache folder: neither WAFT_CACHE nor HOME is set")?;
    Ok(env::current_dir()?.join(folder))
}

/// Returns the running `cargo`, without what it set for xtask alone.
///
/// Build scripts look at those variables, and would run again whenever a person and xtask build in turns.
fn cargo() -> Command {
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    let own = [
        "CARGO_PKG_",
        "CARGO_MANIFEST_",
        "CARGO_BIN_",
        "CARGO_CRATE_",
    ];
    for (name, _) in env::vars_os() {
        if name
            .to_str()
            .is_some_and(|name| own.iter().any(|prefix| name.starts_with(prefix)))
        {
            cargo.env_remove(&name);
        }
    }
    cargo
}

fn below(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .map(|entry| entry.path())
        .filter(|path| path.is_dir())
        .collect()
}

/// Says whether a folder such as `waft-sdk-0123456789abcdef` belongs to one of the packages.
fn is_unit_of(unit: &Path, names: &[String]) -> bool {
    let name = unit
        .file_name()
        .and_then(|name| name.to_str())
        .unwrap_or_default();
    name.rsplit_once('-')
        .is_some_and(|(package, _)| names.iter().any(|own| own == package))
}

fn package_name(manifest: &str) -> Option<String> {
    let line = manifest
        .lines()
        .find_map(|line| line.strip_prefix("name = \""))?;
    line.split('"').next().map(str::to_string)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_unit_belongs_to_the_package_of_exactly_that_name() {
        let names = ["waft".to_string()];
        assert!(is_unit_of(
            Path::new("/t/.fingerprint/waft-0123456789abcdef"),
            &names
        ));
        assert!(!is_unit_of(
            Path::new("/t/.fingerprint/waft-sdk-0123456789abcdef"),
            &names
        ));
        assert!(!is_unit_of(Path::new("/t/.fingerprint/waft"), &names));
    }

    #[test]
    fn a_manifest_names_its_package() {
        assert_eq!(
            package_name("[package]\nname = \"waft\"\n").as_deref(),
            Some("waft")
        );
        assert_eq!(package_name("[workspace]\n"), None);
    }
}
