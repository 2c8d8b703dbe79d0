//! What a project shows without being compiled: that it is one of a flow or a command, that its flow
//! is there, and that the SDK is where it looks for it.
//!
//! Only what is plainly wrong is refused: what compiles after all is cargo's to decide.

use std::ffi::OsStr;
use std::path::Path;

use toml::Table;

use crate::cli::failure::{Done, Failure};
use crate::cli::new::unpack_sdk;
use crate::config::Home;

/// What makes a component.
pub(super) const SHAPE: &str =
    "a flow is a library: [lib] crate-type = [\"cdylib\"]; a command is a program: src/main.rs";

/// Checks a project before it is compiled, and unpacks the SDK again where it is gone from this home.
///
/// # Errors
///
/// Says what is missing, and how to mend it.
pub(super) fn check(folder: &Path, home: &Home) -> Done {
    let text = std::fs::read_to_string(folder.join("Cargo.toml")).unwrap_or_default();
    // A manifest that is none is cargo's to explain.
    let Ok(manifest) = text.parse::<Table>() else {
        return Ok(());
    };
    if !makes_component(&manifest, folder) {
        let what = format!(
            "`{}` is no flow project: it makes no component",
            folder.display()
        );
        return Err(Failure::could(what).or_hint(SHAPE));
    }
    let Some(sdk) = manifest
        .get("dependencies")
        .and_then(|all| all.get("waft-sdk"))
    else {
        return Ok(());
    };
    if let Some(path) = sdk.get("path").and_then(toml::Value::as_str) {
        check_sdk(&folder.join(path), home)?;
    }
    if is_library(&manifest) && lacks_flow(&manifest, folder) {
        let lib = folder.join("src").join("lib.rs");
        let lib = lib.strip_prefix(".").unwrap_or(&lib);
        let what = format!("there is no `#[flow]` function in `{}`", lib.display());
        return Err(Failure::could(what).or_hint(
            "#[flow] fn my_flow() -> Node<String> { my_task() }; waft new NAME shows one",
        ));
    }
    Ok(())
}

fn is_library(manifest: &Table) -> bool {
    let lib = manifest.get("lib");
    let types = lib.and_then(|lib| lib.get("crate-type").or_else(|| lib.get("crate_type")));
    let types = types.and_then(toml::Value::as_array);
    types.is_some_and(|types| types.iter().any(|it| it.as_str() == Some("cdylib")))
}

fn makes_component(manifest: &Table, folder: &Path) -> bool {
    let is_program = manifest.contains_key("bin")
        || folder.join("src").join("main.rs").is_file()
        || folder.join("src").join("bin").is_dir();
    manifest.contains_key("package") && (is_library(manifest) || is_program)
}

/// Sees to it that the SDK is there. Where a path leads to another home, such as a colleague's, it is
/// not this program's to follow.
fn check_sdk(path: &Path, home: &Home) -> Done {
    if path.join("Cargo.toml").is_file() {
        return Ok(());
    }
    let own = unpack_sdk(home)?;
    if path == own {
        return Ok(());
    }
    let what = format!(
        "the SDK of this project, `{}`, is not on this machine",
        path.display()
    );
    Err(Failure::could(what).or_hint(format!(
        "in Cargo.toml: waft-sdk = {{ path = \"{}\" }}, which this program has unpacked",
        own.display()
    )))
}

/// Tells whether no file of the library speaks of `flow` where an attribute could be.
fn lacks_flow(manifest: &Table, folder: &Path) -> bool {
    let is_elsewhere = manifest
        .get("lib")
        .is_some_and(|lib| lib.get("path").is_some());
    let folder = folder.join("src");
    // Whoever writes the exports by hand or by a macro of his own does not need the attribute.
    let words = [
        "[flow", "::flow", "flow]", "flow(", "export", "include!", "#[path",
    ];
    let mut files = Vec::new();
    !is_elsewhere
        && folder.join("lib.rs").is_file()
        && rust_files(&folder, &mut files).is_ok()
        && !files
            .iter()
            .any(|text| words.iter().any(|word| text.contains(word)))
}

fn rust_files(folder: &Path, files: &mut Vec<String>) -> std::io::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            rust_files(&path, files)?;
        } else if path.extension() == Some(OsStr::new("rs")) {
            files.push(std::fs::read_to_string(path)?);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const FLOW: &str =
        "[package]\nname = \"a\"\n[lib]\ncrate-type = [\"cdylib\"]\n[dependencies]\n";

    struct Project {
        folder: tempfile::TempDir,
        home: Home,
    }

    impl Project {
        fn new(manifest: &str, lib: &str) -> Self {
            let folder = tempfile::tempdir().unwrap();
            std::fs::create_dir_all(folder.path().join("src")).unwrap();
            std::fs::write(folder.path().join("Cargo.toml"), manifest).unwrap();
            std::fs::write(folder.path().join("src/lib.rs"), lib).unwrap();
            let home = Home::new(folder.path().join("home"));
            Self { folder, home }
        }

        fn said(&self) -> String {
            match check(self.folder.path(), &self.home) {
                Ok(()) => String::new(),
                Err(failure) => failure.to_string(),
            }
        }
    }

    #[test]
    fn what_makes_no_component_is_refused_before_it_is_compiled() {
        let library = Project::new("[package]\nname = \"a\"\n", "");
        assert!(
            library.said().contains("is no flow project"),
            "{}",
            library.said()
        );
        let workspace = Project::new("[workspace]\nmembers = [\"a\"]\n", "");
        assert!(workspace.said().contains("is no flow project"));
        std::fs::write(library.folder.path().join("src/main.rs"), "").unwrap();
        assert_eq!(library.said(), "", "a program is a command");
        assert_eq!(Project::new("not a manifest", "").said(), "");
    }

    #[test]
    fn a_library_without_a_flow_is_refused_with_the_line_that_lacks() {
        let with_sdk = format!("{FLOW}waft-sdk = \"0.1\"\n");
        let said = Project::new(&with_sdk, "#[task]\nfn a() {}").said();
        assert!(
            said.contains("there is no `#[flow]` function in `"),
            "{said}"
        );
        assert!(said.contains("hint: #[flow] fn"), "{said}");
        for lib in [
            "#[flow]\nfn a() {}",
            "#[waft_sdk::flow]\nfn a() {}",
            "#[flow(name = \"a\")]\nfn a() {}",
        ] {
            assert_eq!(Project::new(&with_sdk, lib).said(), "");
        }
        assert_eq!(
            Project::new(FLOW, "").said(),
            "",
            "who uses no SDK exports by hand"
        );
    }

    #[test]
    fn an_sdk_that_is_gone_is_unpacked_again_and_one_of_another_home_is_told() {
        let project = Project::new(FLOW, "#[flow]\nfn a() {}");
        let own = unpack_sdk(&project.home).unwrap();
        std::fs::remove_dir_all(&own).unwrap();
        let with = |path: &str| {
            let manifest = format!("{FLOW}waft-sdk = {{ path = \"{path}\" }}\n");
            std::fs::write(project.folder.path().join("Cargo.toml"), manifest).unwrap();
            project.said()
        };
        assert_eq!(with(own.to_str().unwrap()), "");
        assert!(own.join("Cargo.toml").is_file());
        std::fs::remove_dir_all(&own).unwrap();
        let said = with("/home/ada/.waft/sdk/0.1.0-0123abcd");
        assert!(
            said.contains("`/home/ada/.waft/sdk/0.1.0-0123abcd`, is not on this machine"),
            "{said}"
        );
        let line = format!("waft-sdk = {{ path = \"{}\" }}", own.display());
        assert!(said.contains(&line) && own.is_dir(), "{said}");
    }
}
