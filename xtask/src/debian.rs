//! A Rust toolchain with `wasm32-wasip2` out of Debian's packages, unpacked beside the system's own.
//!
//! For machines that reach package registries only. Needs no root: apt works on lists, a cache and a
//! package status of its own, and `dpkg -x` unpacks into one folder. Mirror and keyring are those of
//! the machine's own apt sources. Called by `toolchain.rs`, which decides when.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, anyhow, ensure};

use crate::say;
use crate::stage;

/// The release of Debian whose packages are taken; its Rust is the oldest that builds a flow.
const SUITE: &str = "trixie";

/// The Rust that this release ships, which names the folder.
pub(crate) const RUST: &str = "1.85.1";

/// The file in the folder of the toolchain that says nothing is missing.
const COMPLETE: &str = "complete";

/// The compiler, the standard libraries of host and wasm, and every library they load.
const PACKAGES: [&str; 19] = [
    "rustc",
    "libstd-rust-1.85",
    "libstd-rust-dev",
    "libstd-rust-dev-wasm32",
    "libllvm19",
    "libc6",
    "libstdc++6",
    "libgcc-s1",
    "zlib1g",
    "libzstd1",
    "libxml2",
    "libedit2",
    "libtinfo6",
    "libffi8",
    "libbsd0",
    "libmd0",
    "liblzma5",
    "libz3-4",
    "libicu76",
];

/// Starts the compiler with the C library it was built for, which is newer than the machine's.
const WRAPPER: &str = r#"#!/bin/sh
P=${0%/bin/rustc}
exec "$P/usr/lib64/ld-linux-x86-64.so.2" --library-path "$P/usr/lib/x86_64-linux-gnu" "$P/usr/bin/rustc" "$@"
"#;

/// Returns why this machine cannot take Debian's packages, if so.
pub(crate) fn obstacle() -> Option<String> {
    if !cfg!(all(target_os = "linux", target_arch = "x86_64")) {
        return Some("Debian's packages are taken on x86_64 Linux only".to_string());
    }
    let missing = ["apt-get", "dpkg"]
        .into_iter()
        .find(|tool| !stage::is_program(tool));
    missing.map(|tool| format!("there is no `{tool}` on this machine"))
}

/// Says whether the toolchain lies in `home`, as `unpack` left it.
pub(crate) fn is_complete(home: &Path) -> bool {
    home.join(COMPLETE).is_file()
}

/// Unpacks the toolchain so that `home/bin/rustc` is its compiler.
///
/// All or nothing: `home` appears, or is replaced, in one rename, after the compiler has answered.
pub(crate) fn unpack(home: &Path) -> Result<()> {
    let entries = Entry::of_this_machine()?;
    let work = home.with_extension(format!("unpacking-{}", std::process::id()));
    let mut result = Err(anyhow!("no mirror was tried"));
    for entry in &entries {
        result = unpack_from(entry, &work);
        if result.is_ok() {
            break;
        }
    }
    let result = result.and_then(|()| swap(&work.join("root"), home));
    fs::remove_dir_all(&work).ok();
    result
}

/// One entry of the machine's apt sources that offers Debian itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Entry {
    mirror: String,
    suites: Vec<String>,
    components: Vec<String>,
    signed_by: Option<String>,
}

impl Entry {
    /// Finds the entries for the `main` part of the Debian that this machine runs.
    fn of_this_machine() -> Result<Vec<Self>> {
        let release = fs::read_to_string("/etc/os-release").context("reading `/etc/os-release`")?;
        let codename = release
            .lines()
            .find_map(|line| line.strip_prefix("VERSION_CODENAME="))
            .map(|name| name.trim_matches('"').to_string())
            .context("`/etc/os-release` names no VERSION_CODENAME: is this a Debian?")?;
        let mut files = vec![PathBuf::from("/etc/apt/sources.list")];
        if let Ok(folder) = fs::read_dir("/etc/apt/sources.list.d") {
            files.extend(folder.flatten().map(|entry| entry.path()));
        }
        files.sort();
        let mut entries = Vec::new();
        for file in files {
            let text = fs::read_to_string(&file).unwrap_or_default();
            match file.extension().and_then(|it| it.to_str()) {
                Some("sources") => entries.extend(Self::read_stanzas(&text)),
                Some("list") => entries.extend(Self::read_lines(&text)),
                _ => {}
            }
        }
        entries.retain(|entry| {
            entry.suites.contains(&codename) && entry.components.iter().any(|it| it == "main")
        });
        ensure!(
            !entries.is_empty(),
            "apt's sources on this machine have no entry for `{codename} main`, from which to take mirror \
             and keyring\nhint: rustup target add wasm32-wasip2"
        );
        Ok(entries)
    }

    /// Reads a file in the style of `Types: deb`, an empty line between two entries.
    fn read_stanzas(text: &str) -> Vec<Self> {
        let mut entries = Vec::new();
        for stanza in text.replace("\r\n", "\n").split("\n\n") {
            let field = |name: &str| {
                stanza.lines().find_map(|line| {
                    let (key, value) = line.split_once(':')?;
                    key.eq_ignore_ascii_case(name)
                        .then(|| value.trim().to_string())
                })
            };
            let words = |name| words(&field(name).unwrap_or_default());
            let disabled = field("Enabled").is_some_and(|it| it.eq_ignore_ascii_case("no"));
            if disabled || !words("Types").iter().any(|it| it == "deb") {
                continue;
            }
            for mirror in words("URIs") {
                entries.push(Self {
                    mirror,
                    suites: words("Suites"),
                    components: words("Components"),
                    // A key written out in the entry has no path to repeat.
                    signed_by: field("Signed-By").filter(|it| it.starts_with('/')),
                });
            }
        }
        entries
    }

    /// Reads a file in the style of `deb [signed-by=KEYRING] MIRROR SUITE COMPONENT...`.
    fn read_lines(text: &str) -> Vec<Self> {
        let mut entries = Vec::new();
        for line in text.lines() {
            let Some(rest) = line.trim().strip_prefix("deb ") else {
                continue;
            };
            let (options, rest) = match rest.trim().strip_prefix('[').map(|it| it.split_once(']')) {
                Some(Some((options, rest))) => (options, rest),
                _ => ("", rest),
            };
            let signed_by = words(options)
                .iter()
                .find_map(|option| option.strip_prefix("signed-by="))
                .map(str::to_string);
            if let [mirror, suite, components @ ..] = words(rest).as_slice() {
                entries.push(Self {
                    mirror: mirror.clone(),
                    suites: vec![suite.clone()],
                    components: components.to_vec(),
                    signed_by,
                });
            }
        }
        entries
    }

    /// Writes the source line for the release that is taken.
    fn source(&self) -> String {
        let signed = self.signed_by.as_ref().map(|it| format!(" signed-by={it}"));
        format!(
            "deb [arch=amd64{}] {} {SUITE} main\n",
            signed.unwrap_or_default(),
            self.mirror
        )
    }
}

/// Downloads and unpacks into `work/root`, and lets the compiler prove itself.
fn unpack_from(entry: &Entry, work: &Path) -> Result<()> {
    fs::remove_dir_all(work).ok();
    for folder in [
        "lists/partial",
        "cache/archives/partial",
        "debs",
        "root/bin",
    ] {
        let path = work.join(folder);
        fs::create_dir_all(&path).with_context(|| format!("making `{}`", path.display()))?;
    }
    fs::write(work.join("status"), "")?;
    fs::write(work.join("sources.list"), entry.source())?;
    fs::write(work.join("apt.conf"), apt_conf(work))?;

    say::note(&format!(
        "  reading Debian {SUITE}'s package list from the mirror of this machine's apt"
    ));
    apt(work, &["update"])?;
    say::note(&format!(
        "  downloading {} packages: {}",
        PACKAGES.len(),
        PACKAGES.join(" ")
    ));
    apt(work, &[&["download"], PACKAGES.as_slice()].concat())?;

    let root = work.join("root");
    let debs = fs::read_dir(work.join("debs"))?;
    let mut unpacked = 0;
    for deb in debs {
        let deb = deb?.path();
        stage::output(Command::new("dpkg").arg("-x").arg(&deb).arg(&root))?;
        fs::remove_file(&deb)?;
        unpacked += 1;
    }
    ensure!(
        unpacked >= PACKAGES.len(),
        "apt brought {unpacked} of {} packages",
        PACKAGES.len()
    );

    let rustc = root.join("bin/rustc");
    fs::write(&rustc, WRAPPER)?;
    fs::set_permissions(&rustc, fs::Permissions::from_mode(0o755))?;
    let version = stage::output(Command::new(&rustc).arg("--version"))?;
    ensure!(
        version.starts_with("rustc 1."),
        "the unpacked compiler answered `{}`",
        version.trim()
    );
    say::note(&format!("  unpacked {}", version.trim()));
    fs::write(root.join(COMPLETE), version)?;
    Ok(())
}

/// Settings that keep apt inside `work`, with the machine's own proxies and time checks.
fn apt_conf(work: &Path) -> String {
    let work = work.display();
    format!(
        "Dir::Etc::sourcelist \"{work}/sources.list\";\n\
         Dir::Etc::sourceparts \"-\";\n\
         Dir::Etc::preferences \"-\";\n\
         Dir::Etc::preferencesparts \"-\";\n\
         Dir::State \"{work}\";\n\
         Dir::State::lists \"{work}/lists\";\n\
         Dir::State::status \"{work}/status\";\n\
         Dir::Cache \"{work}/cache\";\n\
         APT::Sandbox::User \"root\";\n\
         APT::Architecture \"amd64\";\n\
         Acquire::Languages \"none\";\n\
         Acquire::Retries \"3\";\n\
         #clear APT::Update::Pre-Invoke;\n\
         #clear APT::Update::Post-Invoke;\n\
         #clear APT::Update::Post-Invoke-Success;\n\
         #clear Acquire::IndexTargets::deb::DEP-11;\n\
         #clear Acquire::IndexTargets::deb::DEP-11-icons;\n\
         #clear Acquire::IndexTargets::deb::DEP-11-icons-small;\n"
    )
}

fn apt(work: &Path, arguments: &[&str]) -> Result<()> {
    let mut apt = Command::new("apt-get");
    apt.current_dir(work.join("debs"))
        .arg("-q")
        .arg("-c")
        .arg(work.join("apt.conf"));
    apt.args(arguments);
    stage::output(&mut apt).map(drop)
}

/// Puts `new` where `home` is to be; a `home` that was there before goes away.
fn swap(new: &Path, home: &Path) -> Result<()> {
    if home.exists() {
        let old = new.with_file_name("old");
        fs::rename(home, &old).with_context(|| format!("moving `{}` away", home.display()))?;
    }
    fs::rename(new, home).with_context(|| format!("moving the toolchain to `{}`", home.display()))
}

fn words(text: &str) -> Vec<String> {
    text.split_whitespace().map(str::to_string).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expected(signed_by: &str) -> Entry {
        Entry {
            mirror: "http://mirror.example/debian".to_string(),
            suites: vec!["bookworm".to_string()],
            components: vec!["main".to_string(), "contrib".to_string()],
            signed_by: Some(signed_by.to_string()),
        }
    }

    #[test]
    fn a_stanza_is_an_entry_unless_it_is_disabled_or_for_sources() {
        let stanza = "Types: deb\n# a remark\nURIs: http://mirror.example/debian\nSuites: bookworm\n\
                      Components: main contrib\nSigned-By: /k.gpg\n";
        let text = format!("{stanza}\n{stanza}Enabled: no\n\nTypes: deb-src\nURIs: x\nSuites: y\n");
        assert_eq!(Entry::read_stanzas(&text), [expected("/k.gpg")]);
    }

    #[test]
    fn a_line_is_an_entry_with_or_without_options() {
        let text = "# deb http://old.example a main\n\
                    deb [arch=amd64 signed-by=/k.gpg] http://mirror.example/debian bookworm main contrib\n\
                    deb http://mirror.example/debian bookworm main\n";
        let entries = Entry::read_lines(text);
        assert_eq!(entries[0], expected("/k.gpg"));
        assert_eq!(entries[1].components, ["main"]);
        assert_eq!(entries.len(), 2);
    }

    #[test]
    fn the_source_keeps_mirror_and_keyring_of_the_machine() {
        let line = "deb [arch=amd64 signed-by=/k.gpg] http://mirror.example/debian trixie main\n";
        assert_eq!(expected("/k.gpg").source(), line);
    }
}
