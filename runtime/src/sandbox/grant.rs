//! Powers: what an agent allows, and the values and handles behind it.
//!
//! The agent makes [`Powers`] of its configuration once; an attempt gets what its task asked for of
//! them, and nothing else. This is the only place that turns a name into a value or a path into a
//! folder, and the only one that takes ambient authority.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use cap_std::fs::Dir;
use wasmtime_wasi::{FsPerms, WasiCtxBuilder};

use super::net::{Denials, Net};
use crate::model::grant::{Grants, HostDir, Mode, NetRule, Policy};

/// Host folders that are never mapped: devices and the kernel's own.
const NEVER_MAPPED: [&str; 3] = ["/proc", "/dev", "/sys"];

/// What an agent allows, as it was configured.
#[derive(Clone, Debug, Default)]
pub struct Allowed {
    /// Hosts and ports.
    pub net: Vec<NetRule>,
    /// Folders.
    pub dirs: Vec<HostDir>,
    /// Environment variables with their values.
    pub env: BTreeMap<String, String>,
    /// Secrets.
    pub secrets: Secrets,
}

/// Secrets: names that are known, and how their values are read.
#[derive(Clone)]
pub struct Secrets {
    names: BTreeSet<String>,
    read: Arc<Read>,
}

type Read = dyn Fn(&str) -> Option<String> + Send + Sync;

impl Secrets {
    /// Knows these names; `read` is asked for a value each time a guest wants one, on a thread that
    /// may block.
    pub fn new(
        names: BTreeSet<String>,
        read: impl Fn(&str) -> Option<String> + Send + Sync + 'static,
    ) -> Self {
        let read = Arc::new(read);
        Self { names, read }
    }

    /// Knows these values.
    #[must_use]
    pub fn fixed(values: BTreeMap<String, String>) -> Self {
        let names = values.keys().cloned().collect();
        Self::new(names, move |name| values.get(name).cloned())
    }

    pub(crate) fn read(&self, name: &str) -> Option<String> {
        (self.read)(name)
    }
}

impl Default for Secrets {
    fn default() -> Self {
        Self::fixed(BTreeMap::new())
    }
}

impl fmt::Debug for Secrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Secrets").field(&self.names).finish()
    }
}

/// Why a folder cannot be allowed, or not be given any more.
#[derive(Debug, thiserror::Error)]
pub enum GrantError {
    /// It must not be mapped, or is no folder.
    #[error("cannot allow the folder `{dir}`: {why}")]
    Dir {
        /// As it was typed.
        dir: String,
        /// Why not.
        why: String,
    },
}

/// What an agent allows, checked, with the values behind it.
#[derive(Clone, Debug, Default)]
pub struct Powers {
    policy: Policy,
    /// Host folders by the path that guests see.
    dirs: BTreeMap<String, HostFolder>,
    env: BTreeMap<String, String>,
    secrets: Secrets,
}

#[derive(Clone, Debug)]
struct HostFolder {
    path: PathBuf,
    mode: Mode,
}

impl Powers {
    /// Checks what is allowed; `home` is `WAFT_HOME`, which no guest may see.
    ///
    /// # Errors
    ///
    /// Names the folder that cannot be mapped, and why: it is none, it is the root or one of the
    /// kernel's, or it lies in `home` or holds it.
    pub fn new(allowed: Allowed, home: &Path) -> Result<Self, GrantError> {
        let mut dirs = BTreeMap::new();
        for dir in &allowed.dirs {
            let refused = |why: String| GrantError::Dir {
                dir: dir.host.clone(),
                why,
            };
            let path = host_folder(Path::new(&dir.host), home).map_err(refused)?;
            let mode = dir.rule.mode;
            let folder = HostFolder { path, mode };
            if dirs.insert(dir.rule.guest.clone(), folder).is_some() {
                let why = format!("two folders are mapped to `{}`", dir.rule.guest);
                return Err(refused(why));
            }
        }
        let policy = Policy {
            net: allowed.net.into_iter().collect(),
            dirs: dirs.iter().map(|(g, f)| (g.clone(), f.mode)).collect(),
            env: allowed.env.keys().cloned().collect(),
            secrets: allowed.secrets.names.clone(),
        };
        Ok(Self {
            policy,
            dirs,
            env: allowed.env,
            secrets: allowed.secrets,
        })
    }

    /// Returns what is allowed, without values and host paths.
    #[must_use]
    pub const fn policy(&self) -> &Policy {
        &self.policy
    }

    /// Returns what a task gets of what it asks for; what it does not get is recorded.
    pub(crate) fn grant(&self, asked: &Grants, denials: &Arc<Denials>) -> Granted<'_> {
        for line in asked.missing_from(&self.policy) {
            denials.record(format!(
                "this agent does not allow what the task asks for; allow it: {line}"
            ));
        }
        let dirs = asked
            .dirs
            .iter()
            .filter(|rule| self.policy.allows_dir(rule));
        let env = asked.env.iter();
        Granted {
            dirs: dirs
                .filter_map(|rule| {
                    Some((rule.guest.clone(), rule.mode, self.dirs.get(&rule.guest)?))
                })
                .collect(),
            env: env
                .filter_map(|name| self.env.get_key_value(name))
                .collect(),
            net: Net::new(asked, &self.policy, denials),
            secrets: asked
                .secrets
                .intersection(&self.policy.secrets)
                .cloned()
                .collect(),
        }
    }

    pub(crate) fn secrets(&self) -> &Secrets {
        &self.secrets
    }
}

/// What one attempt gets.
pub(crate) struct Granted<'a> {
    dirs: Vec<(String, Mode, &'a HostFolder)>,
    env: Vec<(&'a String, &'a String)>,
    pub(crate) net: Net,
    pub(crate) secrets: BTreeSet<String>,
}

impl Granted<'_> {
    /// Hands folders and variables to the guest.
    ///
    /// Each folder is resolved once more right before it is opened: what was put in its place since
    /// the agent started is not what the agent allowed.
    pub(crate) fn give(&self, wasi: &mut WasiCtxBuilder) -> Result<(), GrantError> {
        for (name, value) in &self.env {
            wasi.env(name, value);
        }
        for (guest, mode, folder) in &self.dirs {
            let refused = |why: String| GrantError::Dir {
                dir: folder.path.display().to_string(),
                why,
            };
            let now = folder.path.canonicalize();
            if now.map_err(|error| refused(error.to_string()))? != folder.path {
                return Err(refused("another folder was put in its place".to_owned()));
            }
            let perms = match mode {
                Mode::ReadOnly => FsPerms::ReadOnly,
                Mode::ReadWrite => FsPerms::ReadWrite,
            };
            wasi.preopened_dir(&folder.path, guest, perms)
                .map_err(|error| refused(format!("{error:#}")))?;
        }
        Ok(())
    }
}

/// Resolves a host folder and checks that it may be shown to guests.
fn host_folder(typed: &Path, home: &Path) -> Result<PathBuf, String> {
    let path = typed.canonicalize().map_err(|error| error.to_string())?;
    if !path.is_dir() {
        return Err("it is not a folder".to_owned());
    }
    // A home that does not exist yet hides nothing.
    let home = home.canonicalize().unwrap_or_else(|_| home.to_owned());
    if path.parent().is_none() {
        return Err("the root of the file system is never mapped".to_owned());
    }
    if NEVER_MAPPED.iter().any(|never| path.starts_with(never)) {
        return Err("folders of devices and of the kernel are never mapped".to_owned());
    }
    if home.starts_with(&path) {
        return Err(format!("it holds WAFT_HOME (`{}`)", home.display()));
    }
    if path.starts_with(&home) {
        return Err(format!("it lies in WAFT_HOME (`{}`)", home.display()));
    }
    Ok(path)
}

/// Opens a folder by its path: together with the two below the only place where a path of the host
/// becomes a handle.
pub(crate) fn open_dir(path: &Path) -> io::Result<Dir> {
    Dir::open_ambient_dir(path, cap_std::ambient_authority())
}

/// Opens the folder of a file, and returns the file's name in it.
pub(crate) fn open_parent(path: &Path) -> io::Result<(Dir, OsString)> {
    let name = path
        .file_name()
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "the path names no file"))?;
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    Ok((open_dir(parent)?, name.to_owned()))
}

/// Opens a folder that only this user can write to, making it if need be.
///
/// One that others can write to is refused, since what lies in it may not be ours; one that others
/// can only read is closed to them.
pub(crate) fn open_own_dir(path: &Path) -> io::Result<Dir> {
    Dir::create_ambient_dir_all(path, cap_std::ambient_authority())?;
    let dir = open_dir(path)?;
    #[cfg(unix)]
    {
        use cap_std::fs::{MetadataExt as _, PermissionsExt as _};
        let found = dir.dir_metadata()?;
        let refused = |why| io::Error::new(io::ErrorKind::PermissionDenied, why);
        if found.uid() != rustix::process::getuid().as_raw() {
            return Err(refused("it belongs to another user"));
        }
        if found.mode() & 0o022 != 0 && !is_empty(&dir)? {
            return Err(refused(
                "other users can write to it; empty it, or: chmod 700",
            ));
        }
        if found.mode() & 0o777 != 0o700 {
            dir.set_permissions(".", cap_std::fs::Permissions::from_mode(0o700))?;
        }
    }
    Ok(dir)
}

#[cfg(unix)]
fn is_empty(dir: &Dir) -> io::Result<bool> {
    Ok(dir.entries()?.next().is_none())
}

/// Checks that a name is a plain file of this user, under this one name.
pub(crate) fn check_own_file(dir: &Dir, name: &str) -> io::Result<()> {
    let found = dir.symlink_metadata(name)?;
    let refused = |why| Err(io::Error::new(io::ErrorKind::PermissionDenied, why));
    if !found.is_file() {
        return refused("it is not a plain file");
    }
    #[cfg(unix)]
    {
        use cap_std::fs::MetadataExt as _;
        if found.uid() != rustix::process::getuid().as_raw() {
            return refused("it belongs to another user");
        }
        if found.nlink() != 1 {
            return refused("it has a second name");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allowed(host: &Path) -> Allowed {
        Allowed {
            dirs: vec![format!("{}::/data:ro", host.display()).parse().unwrap()],
            ..Allowed::default()
        }
    }

    #[test]
    fn folders_that_would_show_the_agent_itself_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let home = folder.path().join("home");
        let data = folder.path().join("data");
        for path in [&home, &home.join("flows"), &data] {
            std::fs::create_dir(path).unwrap();
        }
        let file = folder.path().join("file");
        std::fs::write(&file, "").unwrap();
        let table: &[(&Path, &str)] = &[
            (&data, ""),
            (&home, "WAFT_HOME"),
            (&home.join("flows"), "lies in WAFT_HOME"),
            (folder.path(), "holds WAFT_HOME"),
            (Path::new("/"), "root of the file system"),
            (Path::new("/proc/self"), "kernel"),
            (Path::new("/dev"), "kernel"),
            (&file, "not a folder"),
            (&folder.path().join("absent"), "No such file"),
        ];
        for (path, why) in table {
            match Powers::new(allowed(path), &home) {
                Ok(powers) => assert!(why.is_empty() && powers.policy().dirs.len() == 1),
                Err(error) => {
                    let text = error.to_string();
                    assert!(!why.is_empty() && text.contains(why), "{text}");
                }
            }
        }
    }

    #[cfg(unix)]
    #[test]
    fn a_link_into_home_is_seen_through_and_a_folder_that_was_swapped_is_not_given() {
        let folder = tempfile::tempdir().unwrap();
        let home = folder.path().join("home");
        let data = folder.path().join("data");
        std::fs::create_dir(&home).unwrap();
        std::os::unix::fs::symlink(&home, &data).unwrap();
        assert!(Powers::new(allowed(&data), &home).is_err());

        std::fs::remove_file(&data).unwrap();
        std::fs::create_dir(&data).unwrap();
        let powers = Powers::new(allowed(&data), &home).unwrap();
        let mut asked = Grants::default();
        asked.dirs.insert("/data:ro".parse().unwrap());
        let give = || {
            let granted = powers.grant(&asked, &Arc::default());
            granted.give(&mut WasiCtxBuilder::new())
        };
        give().unwrap();
        std::fs::remove_dir(&data).unwrap();
        std::os::unix::fs::symlink(&home, &data).unwrap();
        assert!(give().is_err());
    }

    #[test]
    fn a_task_gets_what_it_asks_for_and_the_agent_allows() {
        let text = |text: &str| text.to_owned();
        let values = |names: &[&str]| {
            let pairs = names.iter().map(|name| (text(name), text("value")));
            pairs.collect::<BTreeMap<_, _>>()
        };
        let allowed = Allowed {
            net: vec!["a.b:443".parse().unwrap()],
            env: values(&["HOME", "TOKEN"]),
            secrets: Secrets::fixed(values(&["one", "two"])),
            ..Allowed::default()
        };
        let powers = Powers::new(allowed, Path::new("/nowhere")).unwrap();
        let asked = Grants {
            env: [text("TOKEN"), text("PATH")].into(),
            secrets: [text("two"), text("three")].into(),
            ..Grants::default()
        };
        let denials = Arc::new(Denials::default());
        let granted = powers.grant(&asked, &denials);
        assert_eq!(granted.env, [(&text("TOKEN"), &text("value"))]);
        assert_eq!(granted.secrets, [text("two")].into());
        assert!(granted.net.is_closed());
        assert_eq!(
            denials.take(),
            [
                "this agent does not allow what the task asks for; allow it: --allow-env PATH",
                "this agent does not allow what the task asks for; allow it: --allow-secret three",
            ]
        );
    }
}
