//! Compiles examples and test guests to wasm: the one place that knows how.
//!
//! What comes out lies in the cache under a hash of all that went in, so that nothing is compiled
//! for sources that were compiled before, and a test never meets a guest of other sources. The test
//! kit asks for it by `cargo xtask guests`.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::hash::{DefaultHasher, Hasher as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::cache::Cache;
use crate::say;
use crate::stage;
use crate::toolchain::{self, TARGET, Toolchain};

/// How many states of the sources are kept; a person changes between a few branches.
const KEPT: usize = 8;

/// Compiles what has changed, and prints the lines that lead tests to the guests and the toolchain.
pub(crate) fn print(cache: &Cache) -> Result<()> {
    let toolchain = toolchain::ensure(cache)?;
    let folder = match built(cache, &toolchain)? {
        Some(folder) => folder,
        None => {
            let _lock = cache.take_targets()?;
            build(cache, &toolchain)?
        }
    };
    let guests = toolchain::export("WAFT_GUESTS", &folder.to_string_lossy());
    let target = toolchain::export("WAFT_GUEST_TARGET", &cache.guest_target.to_string_lossy());
    say::line((guests + &target + &toolchain.exports()).trim_end());
    Ok(())
}

/// Returns the folder that holds `NAME.wasm` for every example and guest, if it was made before.
fn built(cache: &Cache, toolchain: &Toolchain) -> Result<Option<PathBuf>> {
    let folder = cache.folder.join("guests").join(hash(cache, toolchain)?);
    Ok(folder.is_dir().then_some(folder))
}

/// Makes that folder, unless it is there. The caller has taken the target folders.
pub(crate) fn build(cache: &Cache, toolchain: &Toolchain) -> Result<PathBuf> {
    if let Some(folder) = built(cache, toolchain)? {
        return Ok(folder);
    }
    let all = cache.folder.join("guests");
    let folder = all.join(hash(cache, toolchain)?);
    let mut built = BTreeMap::new();
    for package in packages(cache)? {
        for file in compile(cache, toolchain, &package)? {
            let name = guest_name(&file)?;
            ensure!(
                built.insert(name.clone(), file).is_none(),
                "two packages make a guest called `{name}`, one of them in `{}`",
                package.display()
            );
        }
    }
    let unfinished = all.join(format!("unfinished-{}", std::process::id()));
    fs::create_dir_all(&unfinished)?;
    for (name, file) in &built {
        fs::copy(file, unfinished.join(format!("{name}.wasm")))
            .with_context(|| format!("keeping the guest `{name}`"))?;
    }
    fs::rename(&unfinished, &folder)?;
    forget_oldest(&all)?;
    Ok(folder)
}

/// Returns the packages whose wasm the tests use: every example, and the guests that only tests need.
fn packages(cache: &Cache) -> Result<Vec<PathBuf>> {
    let mut packages = cache.examples()?;
    let guests = cache.repository.join("tests/guests");
    if guests.join("Cargo.toml").is_file() {
        packages.push(guests);
    }
    Ok(packages)
}

/// Compiles one package, and returns the wasm files that it is made of.
fn compile(cache: &Cache, toolchain: &Toolchain, package: &Path) -> Result<Vec<PathBuf>> {
    let shown = package.strip_prefix(&cache.repository).unwrap_or(package);
    say::note(&format!("compiling {} to wasm", shown.display()));
    let mut cargo = cache.guest_cargo(package);
    toolchain.compile_with(&mut cargo)?;
    cargo.args([
        "build",
        "--quiet",
        "--release",
        "--locked",
        "--target",
        TARGET,
    ]);
    cargo.arg("--message-format=json-render-diagnostics");
    if shown.starts_with("tests") {
        // Many guests and one build of what they share: each is an `[[example]]` of one package.
        cargo.arg("--examples");
    }
    let mut files = Vec::new();
    for message in stage::output(&mut cargo)?.lines() {
        files.extend(wasm_files(message));
    }
    files.sort();
    files.dedup();
    ensure!(
        !files.is_empty(),
        "`{}` makes no wasm: is it a cdylib or a program?",
        shown.display()
    );
    Ok(files)
}

/// Finds the paths of wasm files in one of cargo's messages.
fn wasm_files(message: &str) -> Vec<PathBuf> {
    let message: Value = serde_json::from_str(message).unwrap_or_default();
    if message["reason"] != "compiler-artifact" {
        return Vec::new();
    }
    let files = message["filenames"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str);
    files
        .filter(|file| file.ends_with(".wasm"))
        .map(PathBuf::from)
        .collect()
}

/// Returns a guest's name: its target's, with `-` for the `_` that cargo puts into a library's file.
fn guest_name(file: &Path) -> Result<String> {
    let stem = file
        .file_stem()
        .and_then(OsStr::to_str)
        .context("naming a guest")?;
    Ok(stem.replace('_', "-"))
}

/// Hashes the path and text of every source, and the compiler.
fn hash(cache: &Cache, toolchain: &Toolchain) -> Result<String> {
    let mut hasher = DefaultHasher::new();
    for source in sources(cache, &["wit", "sdk", "examples", "tests/guests"])? {
        let text = fs::read(&source).with_context(|| format!("reading `{}`", source.display()))?;
        let path = source.strip_prefix(&cache.repository).unwrap_or(&source);
        hasher.write(path.as_os_str().as_encoded_bytes());
        hasher.write_usize(text.len());
        hasher.write(&text);
    }
    hasher.write(toolchain.exports().as_bytes());
    hasher.write(toolchain.version()?.as_bytes());
    Ok(format!("{:016x}", hasher.finish()))
}

/// Returns the files below some folders of the repository that a compiler may read, in order.
pub(crate) fn sources(cache: &Cache, folders: &[&str]) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for folder in folders {
        collect(&cache.repository.join(folder), &mut files)?;
    }
    files.sort();
    Ok(files)
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    let Ok(entries) = fs::read_dir(folder) else {
        return Ok(());
    };
    for entry in entries {
        let entry = entry?;
        let path = entry.path();
        let name = entry.file_name();
        if entry.file_type()?.is_dir() {
            if name != "target" {
                collect(&path, files)?;
            }
        } else if path.extension().is_some_and(|it| it != "wasm") {
            files.push(path);
        }
    }
    Ok(())
}

/// Removes the guests of the oldest sources, beyond those that are kept.
fn forget_oldest(all: &Path) -> Result<()> {
    let mut folders = Vec::new();
    for entry in fs::read_dir(all)? {
        let entry = entry?;
        folders.push((entry.metadata()?.modified()?, entry.path()));
    }
    folders.sort();
    let surplus = folders.len().saturating_sub(KEPT);
    for (_, folder) in &folders[..surplus] {
        fs::remove_dir_all(folder).with_context(|| format!("removing `{}`", folder.display()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wasm_is_found_in_messages_about_artifacts_only() {
        let artifact = r#"{"reason":"compiler-artifact","filenames":["/t/a.rlib","/t/a_b.wasm"]}"#;
        assert_eq!(wasm_files(artifact), [Path::new("/t/a_b.wasm")]);
        assert!(wasm_files(r#"{"reason":"build-finished","filenames":["/t/a.wasm"]}"#).is_empty());
        assert!(wasm_files("   Compiling").is_empty());
    }

    #[test]
    fn a_guest_is_called_as_its_target() {
        assert_eq!(
            guest_name(Path::new("/t/release/examples/two_words.wasm")).unwrap(),
            "two-words"
        );
    }
}
