//! `waft build`: has cargo compile a flow project to a component.
//!
//! Three ways to a compiler for `wasm32-wasip2`, in this order: the one that is configured, the
//! usual one if it has the target, the usual one after rustup has added it.

mod project;

use std::ffi::OsStr;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::Context as _;
use serde::Deserialize;

use super::component::{Component, Which, sandbox_of_agent};
use super::failure::{Done, Failure};
use super::inspect::size;
use super::{Call, words};
use crate::config;

const TARGET: &str = "wasm32-wasip2";

/// Compiles a flow project to a component.
///
/// A core module for WASI preview 1 (`wasm32-wasip1`) is made into one: NAME.component.wasm beside it.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  waft build                 the project in this folder
  waft build flows/etl
  waft build tool.wasm       a core module, made into tool.component.wasm

A rustc that has the target wasm32-wasip2 is needed; rustup is asked for it once. Another one can be
named in config.toml: [build] rustc = \"/path/to/rustc\", path = \"folders:before:PATH\"")]
pub(super) struct Args {
    /// The folder of the project, or a core module for WASI preview 1.
    #[arg(default_value = ".")]
    path: PathBuf,
}

pub(super) fn run(args: &Args, call: &Call) -> Done {
    let which = Which {
        shown: None,
        place: args.path.clone(),
        flags: super::command::Flags::default(),
    };
    let mut built = call.wait(async { which.load(call, &sandbox_of_agent(call)?).await })?;
    if built.is_adapted {
        built.path = write_beside(&built)?;
    } else if is_wasm_file(&args.path) {
        let what = format!("`{}` is compiled already", args.path.display());
        return Err(Failure::could(what).or_hint(format!("waft inspect {}", args.path.display())));
    }
    let grants = built.grants();
    if call.output.is_json() {
        return call.output.json(&serde_json::json!({
            "flow": built.definition().name,
            "path": built.path,
            "digest": built.digest,
            "size": built.size,
            "grants": built.definition().needs().grants,
        }));
    }
    let out = &call.output;
    out.line(format_args!("flow    {}", built.definition().name))?;
    out.line(format_args!("file    {}", built.path.display()))?;
    out.line(format_args!("digest  {}", built.digest))?;
    out.line(format_args!("size    {}", size(built.size)))?;
    out.line(format_args!("grants  {}", words::list_or_none(&grants)))
}

fn is_wasm_file(path: &Path) -> bool {
    path.is_file() && path.extension() == Some(OsStr::new("wasm"))
}

/// Writes the component that was made of a core module beside the module.
fn write_beside(component: &Component) -> Done<PathBuf> {
    let path = component.path.with_extension("component.wasm");
    let copied = std::fs::read(&component.copy).and_then(|bytes| std::fs::write(&path, bytes));
    copied.with_context(|| format!("cannot write `{}`", path.display()))?;
    Ok(path)
}

/// Compiles the project in a folder and returns the component.
///
/// # Errors
///
/// Says which of project, toolchain and compilation is at fault.
pub(super) fn compile(folder: &Path, call: &Call) -> Done<PathBuf> {
    let manifest = folder.join("Cargo.toml");
    if !manifest.is_file() {
        let what = format!(
            "`{}` is no flow project: it has no Cargo.toml",
            folder.display()
        );
        return Err(Failure::could(what)
            .or_hint("waft new NAME makes one; a component is named by its .wasm file"));
    }
    project::check(folder, &call.config.home)?;
    let tools = Tools::of(call);
    tools.ensure_target(folder, call)?;
    let mut cargo = tools.command(config::cargo());
    cargo
        .current_dir(folder)
        .args(["build", "--release", "--target", TARGET])
        .arg("--message-format=json-render-diagnostics")
        .stdin(Stdio::null())
        .stdout(Stdio::piped());
    let mut child = cargo.spawn().map_err(|error| {
        let what = "cannot start `cargo`, which compiles flows";
        Failure::new(anyhow::Error::new(error).context(what))
            .or_hint("install Rust: https://rustup.rs")
    })?;
    let messages = BufReader::new(child.stdout.take().context("cargo has no output")?);
    let own = std::fs::canonicalize(&manifest).context("cannot find the project")?;
    let mut components = Vec::new();
    for line in messages.lines() {
        components.extend(components_in(&line?, &own));
    }
    let status = child.wait()?;
    if !status.success() {
        return Err(Failure::could(format!(
            "cargo could not compile `{}`",
            folder.display()
        )));
    }
    components.sort();
    components.dedup();
    match components.as_slice() {
        [one] => Ok(one.clone()),
        [] => {
            let what = format!("`{}` makes no component", folder.display());
            Err(Failure::could(what).or_hint(project::SHAPE))
        }
        several => {
            let names: Vec<_> = several
                .iter()
                .map(|path| format!("`{}`", path.display()))
                .collect();
            let what = format!(
                "`{}` makes several components: {}",
                folder.display(),
                names.join(", ")
            );
            Err(Failure::could(what).or_hint("give one of these files instead of the folder"))
        }
    }
}

/// The programs that compile, as they are configured.
struct Tools<'a> {
    rustc: Option<&'a Path>,
    path: Option<&'a str>,
}

impl<'a> Tools<'a> {
    fn of(call: &'a Call) -> Self {
        let build = &call.config.settings.build;
        Self {
            rustc: build.rustc.as_deref(),
            path: build.path.as_deref(),
        }
    }

    /// Returns a program with the configured `PATH` and compiler.
    fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        if let Some(folders) = self.path {
            command.env("PATH", config::path_after(folders));
        }
        if let Some(rustc) = self.rustc {
            command.env("RUSTC", rustc);
        }
        command
    }

    /// Sees to it that the compiler has the target.
    fn ensure_target(&self, folder: &Path, call: &Call) -> Done {
        if self.has_target(folder)? {
            return Ok(());
        }
        let hint = format!(
            "rustup target add {TARGET}, or name a rustc that has it: [build] rustc in {}",
            call.config.home.config().display()
        );
        if let Some(rustc) = self.rustc {
            let what = format!(
                "the configured `{}` has no target {TARGET}",
                rustc.display()
            );
            return Err(Failure::could(what).or_hint(hint));
        }
        call.output
            .note(format!("asking rustup for the target {TARGET}"));
        let mut rustup = self.command("rustup");
        rustup.current_dir(folder).args(["target", "add", TARGET]);
        // What it says is for people, also what it says on its standard output.
        let asked = rustup
            .stdin(Stdio::null())
            .stdout(std::io::stderr())
            .status();
        if asked.is_ok_and(|status| status.success()) && self.has_target(folder)? {
            return Ok(());
        }
        Err(Failure::could(format!(
            "no Rust compiler here has the target {TARGET}, and rustup could not add it"
        ))
        .or_hint(hint))
    }

    fn has_target(&self, folder: &Path) -> Done<bool> {
        let mut rustc = self.command(self.rustc.unwrap_or(Path::new("rustc")));
        rustc
            .current_dir(folder)
            .args(["--print", "target-libdir", "--target", TARGET]);
        let output = rustc.output().map_err(|error| {
            let what = format!(
                "cannot start the compiler `{}`",
                rustc.get_program().to_string_lossy()
            );
            Failure::new(anyhow::Error::new(error).context(what))
                .or_hint("install Rust: https://rustup.rs")
        })?;
        let libraries = PathBuf::from(String::from_utf8_lossy(&output.stdout).trim());
        let Ok(entries) = std::fs::read_dir(libraries) else {
            return Ok(false);
        };
        let is_std = |name: &OsStr| name.to_string_lossy().starts_with("libstd-");
        Ok(entries.flatten().any(|entry| is_std(&entry.file_name())))
    }
}

#[derive(Deserialize)]
struct Message {
    reason: String,
    #[serde(default)]
    manifest_path: PathBuf,
    #[serde(default)]
    filenames: Vec<PathBuf>,
}

/// Finds the wasm files of the project itself, not of what it depends on, in a message of cargo.
fn components_in(message: &str, manifest: &Path) -> Vec<PathBuf> {
    let Ok(message) = serde_json::from_str::<Message>(message) else {
        return Vec::new();
    };
    if message.reason != "compiler-artifact" || message.manifest_path != manifest {
        return Vec::new();
    }
    let is_wasm = |path: &PathBuf| path.extension() == Some(OsStr::new("wasm"));
    message.filenames.into_iter().filter(is_wasm).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_project_itself_makes_the_component() {
        let message = r#"{"reason":"compiler-artifact","manifest_path":"/p/Cargo.toml",
            "filenames":["/t/my_flow.wasm","/t/libmy_flow.rlib"],"fresh":true}"#;
        assert_eq!(
            components_in(message, Path::new("/p/Cargo.toml")),
            [Path::new("/t/my_flow.wasm")]
        );
        assert!(components_in(message, Path::new("/q/Cargo.toml")).is_empty());
        assert!(
            components_in(
                r#"{"reason":"build-finished","success":true}"#,
                Path::new("/p")
            )
            .is_empty()
        );
        assert!(components_in("not json", Path::new("/p")).is_empty());
    }
}
