//! `waft new NAME`: a flow project that builds, tests and runs as it is.
//!
//! The program carries the SDK with it. It is unpacked once for each of its contents, and the new
//! project depends on it by path, so that neither a registry nor a network is needed for it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use include_dir::{Dir, DirEntry, include_dir};
use sha2::{Digest as _, Sha256};

use super::Call;
use super::failure::{Done, Failure};
use crate::config::Home;

/// The folder `sdk/` as it was when this program was compiled.
static SDK: Dir<'static> = include_dir!("$CARGO_MANIFEST_DIR/../sdk");

/// Makes a flow project in a new folder.
///
/// The project builds, tests and runs as it is, and asks for nothing.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Example:
  waft new my-flow && cd my-flow && waft run . --param name=Ada")]
pub(super) struct Args {
    /// The name of the folder, the crate and the flow.
    name: String,
}

pub(super) fn run(args: &Args, call: &Call) -> Done {
    let name = &args.name;
    check_name(name)?;
    let folder = Path::new(name);
    if folder.symlink_metadata().is_ok() {
        return Err(
            Failure::could(format!("`{name}` is there already")).or_hint("take another name")
        );
    }
    let sdk = unpack_sdk(&call.config.home).with_context(|| {
        format!(
            "cannot unpack the SDK into `{}`",
            call.config.home.sdk().display()
        )
    })?;
    write_project(folder, name, &sdk)
        .with_context(|| format!("cannot make the project `{name}`"))?;
    if call.output.is_json() {
        let path = std::path::absolute(folder)?;
        return call
            .output
            .json(&serde_json::json!({ "name": name, "path": path, "sdk": sdk }));
    }
    call.output.note(format!("made the flow project `{name}`"));
    call.output
        .note(format!("next: cd {name} && waft run . --param name=Ada"));
    Ok(())
}

/// Refuses what is no name of a crate.
fn check_name(name: &str) -> Done {
    let is_word = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    let starts_well = name.starts_with(|c: char| c.is_ascii_alphabetic());
    let shown: String = name.escape_debug().take(80).collect();
    if !starts_well || name.len() > 64 || !name.chars().all(is_word) {
        let what = format!("the name `{shown}` is not allowed");
        return Err(Failure::usage(what)
            .or_hint("a letter, then letters, digits, `-` and `_`; at most 64 of them"));
    }
    if TAKEN.contains(&name) {
        let what = format!("the name `{shown}` means something else to Rust");
        return Err(Failure::usage(what).or_hint(format!("waft new my-{name}")));
    }
    Ok(())
}

/// Names that a crate cannot have, or that hide a crate which every project needs.
const TAKEN: [&str; 60] = [
    "abstract",
    "alloc",
    "as",
    "async",
    "await",
    "become",
    "box",
    "break",
    "const",
    "continue",
    "core",
    "crate",
    "do",
    "dyn",
    "else",
    "enum",
    "extern",
    "false",
    "final",
    "fn",
    "for",
    "gen",
    "if",
    "impl",
    "in",
    "let",
    "loop",
    "macro",
    "match",
    "mod",
    "move",
    "mut",
    "override",
    "priv",
    "proc_macro",
    "pub",
    "ref",
    "return",
    "Self",
    "self",
    "serde",
    "static",
    "std",
    "struct",
    "super",
    "test",
    "trait",
    "true",
    "try",
    "type",
    "typeof",
    "unsafe",
    "unsized",
    "use",
    "virtual",
    "waft-sdk",
    "waft_sdk",
    "where",
    "while",
    "yield",
];

/// Puts the SDK under the home, unless these very files are there already, and returns the folder.
///
/// Its name holds a digest of its contents, so that two builds of one version do not get in each
/// other's way, and a project keeps the SDK that it was made with.
pub(super) fn unpack_sdk(home: &Home) -> anyhow::Result<PathBuf> {
    let files = files_of(&SDK);
    let mut hasher = Sha256::new();
    for (path, bytes) in &files {
        hasher.update(path.as_os_str().as_encoded_bytes());
        hasher.update(bytes.len().to_le_bytes());
        hasher.update(bytes);
    }
    let short = hex::encode(&hasher.finalize()[..4]);
    let target = home
        .sdk()
        .join(format!("{}-{short}", env!("CARGO_PKG_VERSION")));
    if target.is_dir() {
        return Ok(target);
    }
    home.make()?;
    fs::create_dir_all(home.sdk())?;
    let unfinished = tempfile::Builder::new()
        .prefix("unfinished-")
        .tempdir_in(home.sdk())?;
    let sdk = files
        .into_iter()
        .filter(|(path, _)| !path.starts_with("template"));
    for (path, bytes) in sdk {
        write(&unfinished.path().join(path), bytes)?;
    }
    match put_in_place(unfinished, &target) {
        // Somebody else unpacked the same files meanwhile.
        Err(_) if target.is_dir() => Ok(target),
        result => Ok(result.map(|()| target)?),
    }
}

/// Fills in the template.
fn write_project(folder: &Path, name: &str, sdk: &Path) -> anyhow::Result<()> {
    let template = SDK
        .get_dir("template")
        .context("this build carries no template")?;
    let sdk = sdk.to_str().context("the path of WAFT_HOME is not UTF-8")?;
    // Stands between quotes in a manifest.
    let sdk = sdk.replace('\\', "\\\\").replace('"', "\\\"");
    let beside = match folder.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    };
    let unfinished = tempfile::Builder::new()
        .prefix(".waft-new-")
        .tempdir_in(beside)?;
    for (path, bytes) in files_of(template) {
        let path = path.strip_prefix("template").unwrap_or(path);
        let text = std::str::from_utf8(bytes)
            .with_context(|| format!("`{}` is no text", path.display()))?;
        let text = text
            .replace("{{name}}", name)
            .replace("{{kebab}}", &kebab(name))
            .replace("{{sdk}}", &sdk);
        write(
            &unfinished.path().join(path_in_project(path)),
            text.as_bytes(),
        )?;
    }
    Ok(put_in_place(unfinished, folder)?)
}

/// Returns a name as WIT writes it: small words between dashes, each of which starts with a letter.
fn kebab(name: &str) -> String {
    let mut kebab = String::new();
    for word in name.split(['-', '_']).filter(|word| !word.is_empty()) {
        if !kebab.is_empty() && word.starts_with(|c: char| c.is_ascii_alphabetic()) {
            kebab.push('-');
        }
        kebab.push_str(&word.to_ascii_lowercase());
    }
    kebab
}

/// Returns where a file of the template goes: what must not be taken for a file of this repository
/// has `.in` at its end, and a leading dot is written `dot-`.
fn path_in_project(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let name = name.strip_suffix(".in").unwrap_or(&name);
    let name = match name.strip_prefix("dot-") {
        Some(rest) => format!(".{rest}"),
        None => name.to_owned(),
    };
    path.with_file_name(name)
}

fn files_of(dir: &'static Dir<'static>) -> Vec<(&'static Path, &'static [u8])> {
    let mut files = Vec::new();
    for entry in dir.entries() {
        match entry {
            DirEntry::Dir(dir) => files.extend(files_of(dir)),
            DirEntry::File(file) => files.push((file.path(), file.contents())),
        }
    }
    files.sort();
    files
}

fn write(file: &Path, bytes: &[u8]) -> io::Result<()> {
    if let Some(folder) = file.parent() {
        fs::create_dir_all(folder)?;
    }
    fs::write(file, bytes)
}

/// Gives a finished folder its name, or takes it away again.
fn put_in_place(unfinished: tempfile::TempDir, target: &Path) -> io::Result<()> {
    // A temporary folder is closed to others; a project is as open as its surroundings.
    #[cfg(unix)]
    fs::set_permissions(
        unfinished.path(),
        std::os::unix::fs::PermissionsExt::from_mode(0o755),
    )?;
    fs::rename(unfinished.path(), target)?;
    let _ = unfinished.keep();
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_crates_are_taken_and_others_refused() {
        for name in ["a", "my-flow", "my_flow2"] {
            assert!(check_name(name).is_ok(), "{name}");
        }
        for name in [
            "", "2a", "-a", "a/b", "../a", "a b", "a.b", "a\u{7}", "ä", "fn", "test", "waft-sdk",
        ] {
            assert_eq!(check_name(name).unwrap_err().code(), 2, "{name}");
        }
    }

    #[test]
    fn a_name_of_a_crate_becomes_one_of_wit() {
        for (name, expected) in [
            ("my-flow", "my-flow"),
            ("my_flow", "my-flow"),
            ("MyFlow_2", "myflow2"),
            ("a-2b--c", "a2b-c"),
        ] {
            assert_eq!(kebab(name), expected);
        }
    }

    #[test]
    fn the_sdk_is_unpacked_once_and_whole() {
        let folder = tempfile::tempdir().unwrap();
        let home = Home::new(folder.path().join("home"));
        let sdk = unpack_sdk(&home).unwrap();
        for file in [
            "Cargo.toml",
            "src/lib.rs",
            "macros/Cargo.toml",
            "wit/world.wit",
        ] {
            assert!(sdk.join(file).is_file(), "{file}");
        }
        assert!(!sdk.join("template").exists());
        assert_eq!(unpack_sdk(&home).unwrap(), sdk);
        assert_eq!(fs::read_dir(home.sdk()).unwrap().count(), 1);
    }

    #[test]
    fn a_project_is_made_of_the_template() {
        let folder = tempfile::tempdir().unwrap();
        let project = folder.path().join("my-flow");
        write_project(&project, "my-flow", Path::new("/the/sdk")).unwrap();
        let manifest = fs::read_to_string(project.join("Cargo.toml")).unwrap();
        assert!(manifest.contains("name = \"my-flow\""), "{manifest}");
        assert!(manifest.contains("path = \"/the/sdk\""), "{manifest}");
        for (path, bytes) in files_of(SDK.get_dir("template").unwrap()) {
            let path = project.join(path_in_project(path.strip_prefix("template").unwrap()));
            let text = fs::read_to_string(&path).unwrap();
            assert!(!text.contains("{{"), "{}", path.display());
            assert!(!bytes.is_empty());
        }
    }
}
