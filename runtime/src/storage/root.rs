//! Roots: the names of places in a storage.
//!
//! A root is what a version requires, what an agent offers, and what a result reference carries. It
//! says where, never how to get in: credentials come from each storage's own conventions.

use std::fmt;
use std::net::IpAddr;
use std::path::{Component, Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::key;
use crate::model::label;

/// A place in a storage, such as `file:///home/ada/.waft/flows` or `s3://bucket/prefix`.
///
/// The path is written plainly, nothing is percent-encoded. Two roots are equal if they name the
/// same place in the same words; no link is followed to find out.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Root {
    kind: Kind,
    /// The bucket, the container, the registry, or the host and port; empty for a folder.
    place: String,
    /// The absolute path of a folder; else what comes after the place, without slashes around it.
    path: String,
}

/// Which of the storages it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// A folder of this machine.
    Local,
    /// Amazon S3, or a server that speaks like it.
    S3,
    /// Google Cloud Storage.
    Gcs,
    /// Azure Blob Storage.
    Azure,
    /// A registry of container images.
    Oci,
    /// A web server, read-only.
    Http,
}

/// Says why a text names no root.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not a storage root: {why}")]
pub struct BadRoot {
    text: String,
    why: String,
}

/// What a root may look like, for whoever typed something else.
const FORMS: &str = "expected `file:///folder`, `s3://bucket/prefix`, `gs://bucket/prefix`, \
                     `az://container/prefix`, `oci://registry/repository` or `https://host/path/`";

/// Most bytes of a root.
const BYTES_MAX: usize = 1_000;

impl Kind {
    /// Returns the kind whose roots begin with a scheme.
    fn of(scheme: &str) -> Option<Self> {
        Some(match scheme {
            "file" => Self::Local,
            "s3" => Self::S3,
            "gs" => Self::Gcs,
            "az" => Self::Azure,
            "oci" => Self::Oci,
            "https" | "http" => Self::Http,
            _ => return None,
        })
    }
}

impl Root {
    /// Names a local folder by its absolute path.
    ///
    /// # Errors
    ///
    /// Fails if the path is relative, not plain, or no UTF-8.
    pub fn local(folder: &Path) -> Result<Self, BadRoot> {
        let shown = folder.to_string_lossy();
        let path = plain_folder(folder).map_err(|why| BadRoot::new(&shown, why))?;
        Ok(Self {
            kind: Kind::Local,
            place: String::new(),
            path,
        })
    }

    /// Returns which of the storages it is.
    #[must_use]
    pub const fn kind(&self) -> Kind {
        self.kind
    }

    /// Returns the folder, for a root that is one.
    #[must_use]
    pub fn folder(&self) -> Option<&Path> {
        (self.kind == Kind::Local).then(|| Path::new(&self.path))
    }

    /// Returns the bucket, the container, the registry, or the host and port.
    #[must_use]
    pub fn place(&self) -> &str {
        &self.place
    }

    /// Returns what comes after the place: a prefix, a repository, or a path without its slashes.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Tells whether nothing can be put there.
    #[must_use]
    pub const fn is_read_only(&self) -> bool {
        matches!(self.kind, Kind::Http)
    }

    /// Tells whether it is reached in clear text, which only this machine itself is.
    #[must_use]
    pub fn is_plain_text(&self) -> bool {
        matches!(self.kind, Kind::Oci | Kind::Http) && is_loopback(&self.place)
    }

    /// Returns the label that a flow kept here asks of its agent.
    ///
    /// A local folder is reachable on its own host only, so the label is the hostname.
    #[must_use]
    pub fn auto_label(&self, hostname: &str) -> String {
        let scheme = match self.kind {
            Kind::Local => "file",
            Kind::S3 => "s3",
            Kind::Gcs => "gs",
            Kind::Azure => "az",
            Kind::Oci => "oci",
            Kind::Http => "https",
        };
        label::of_storage(scheme).unwrap_or(hostname).to_owned()
    }

    /// Returns the name of this root for other hosts: a folder is told with the host that has it.
    #[must_use]
    pub fn name_on(&self, host: &str) -> String {
        match self.kind {
            Kind::Local => format!("file://{host}{}", self.path),
            _ => self.to_string(),
        }
    }

    /// Reads a name that [`Root::name_on`] made: the root, and the host of a folder.
    ///
    /// # Errors
    ///
    /// As parsing the root.
    pub fn of_name(text: &str) -> Result<(Self, Option<String>), BadRoot> {
        let named = text.strip_prefix("file://").and_then(|rest| {
            let (host, _) = rest.split_once('/')?;
            Some((host, &rest[host.len()..]))
        });
        match named {
            Some((host, path)) if !host.is_empty() => {
                Ok((Self::local(Path::new(path))?, Some(host.to_owned())))
            }
            _ => Ok((text.parse()?, None)),
        }
    }

    /// Returns the key of an object whose whole name is `text`, if it lies under this root.
    ///
    /// ```
    /// # use waft::storage::Root;
    /// let root: Root = "s3://bucket/flows".parse().unwrap();
    /// assert_eq!(root.key_of("s3://bucket/flows/a/b.wasm"), Some("a/b.wasm".to_owned()));
    /// assert_eq!(root.key_of("s3://bucket/flows2/b.wasm"), None);
    /// ```
    #[must_use]
    pub fn key_of(&self, text: &str) -> Option<String> {
        let root = self.to_string();
        let key = text.strip_prefix(root.trim_end_matches('/'))?;
        let key = key.strip_prefix('/')?;
        key::is_plain(key).then(|| key.to_owned())
    }

    /// Splits the whole name of a stored object into a root and its key: what waft has put somewhere has the
    /// root that it was put under, anything else the folder it lies in.
    ///
    /// ```
    /// # use waft::model::artifact::Digest;
    /// # use waft::storage::{Root, key};
    /// let key = key::artifact(Digest::of(b""));
    /// let (root, own) = Root::split(&format!("s3://bucket/team/{key}")).unwrap();
    /// assert_eq!((root.to_string().as_str(), own), ("s3://bucket/team", key));
    /// ```
    ///
    /// # Errors
    ///
    /// Fails if the text names no place, or nothing in it.
    pub fn split(text: &str) -> Result<(Self, String), BadRoot> {
        let name = key::own_end(text).or_else(|| text.rsplit('/').next());
        let name = name.unwrap_or_default();
        let above = &text[..text.len() - name.len()];
        if !key::is_plain(name) {
            return Err(BadRoot::new(text, "it names no file in the storage"));
        }
        Ok((above.parse()?, name.to_owned()))
    }
}

impl BadRoot {
    fn new(text: &str, why: impl Into<String>) -> Self {
        // What stands before an `@` may be a password.
        let shown = match (text.find("://"), text.rfind('@')) {
            (Some(scheme), Some(at)) if at > scheme => {
                format!("{}…{}", &text[..scheme + 3], &text[at..])
            }
            _ => text.to_owned(),
        };
        Self {
            text: shown.escape_default().take(300).collect(),
            why: why.into(),
        }
    }
}

/// Writes the absolute path of a folder in its plain form.
fn plain_folder(folder: &Path) -> Result<String, &'static str> {
    let text = folder.to_str().ok_or("the path is no UTF-8")?;
    if text.chars().any(char::is_control) {
        return Err("the path holds control characters");
    }
    if !folder.is_absolute() {
        return Err("the path must be absolute, such as `file:///srv/flows`");
    }
    let mut plain = PathBuf::new();
    for part in folder.components() {
        match part {
            Component::ParentDir => return Err("the path must not hold `..`"),
            Component::CurDir => {}
            part => plain.push(part),
        }
    }
    if plain.parent().is_none() {
        return Err("it names the whole file system, not a folder in it");
    }
    let plain = plain.into_os_string().into_string();
    plain.map_err(|_| "the path is no UTF-8")
}

/// Checks the name of a bucket or a container.
fn check_bucket(name: &str) -> Result<(), &'static str> {
    let is_good = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
    match (3..=63).contains(&name.len()) && name.bytes().all(is_good) && !name.contains("..") {
        true => Ok(()),
        false => Err("a bucket or container has 3 to 63 letters, digits, `-`, `_` and `.`"),
    }
}

/// Checks a host with or without a port.
fn check_host(host: &str) -> Result<(), &'static str> {
    const WHY: &str = "expected a host, such as `example.com` or `127.0.0.1:5000`";
    if host.contains('@') {
        return Err("credentials are no part of a root; they come from the storage's own files");
    }
    let (name, port) = split_port(host).ok_or(WHY)?;
    let is_good = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-.".contains(&b);
    let is_name = !name.is_empty() && name.bytes().all(is_good) && !name.contains("..");
    let is_address = name
        .strip_prefix('[')
        .and_then(|name| name.strip_suffix(']'))
        .is_some_and(|name| name.parse::<IpAddr>().is_ok());
    let is_port = port.is_none_or(|port| port.parse::<u16>().is_ok_and(|port| port > 0));
    match (is_name || is_address) && is_port {
        true => Ok(()),
        false => Err(WHY),
    }
}

/// Splits a port off a host.
pub(super) fn split_port(host: &str) -> Option<(&str, Option<&str>)> {
    match host.strip_prefix('[') {
        Some(rest) => {
            let end = rest.find(']')? + 2;
            match &host[end..] {
                "" => Some((host, None)),
                port => Some((&host[..end], Some(port.strip_prefix(':')?))),
            }
        }
        None => Some(match host.split_once(':') {
            Some((name, port)) => (name, Some(port)),
            None => (host, None),
        }),
    }
}

/// Tells whether a host is this machine, by what it is called.
fn is_loopback(host: &str) -> bool {
    let name = split_port(host).map_or(host, |(name, _)| name);
    let address = name.trim_start_matches('[').trim_end_matches(']');
    name == "localhost"
        || address
            .parse::<IpAddr>()
            .is_ok_and(|address| address.is_loopback())
}

/// Checks the name of a repository, by the rule of the OCI distribution specification.
fn check_repository(name: &str) -> Result<(), &'static str> {
    let is_part = |part: &str| {
        let is_good = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-_.".contains(&b);
        let ends = [part.bytes().next(), part.bytes().last()];
        let is_end = |b: &Option<u8>| b.is_some_and(|b| !b"-_.".contains(&b));
        part.bytes().all(is_good) && ends.iter().all(is_end)
    };
    match name.len() <= 255 && name.split('/').all(is_part) {
        true => Ok(()),
        false => Err("a repository has lower-case letters, digits, `-`, `_`, `.` and `/`"),
    }
}

impl FromStr for Root {
    type Err = BadRoot;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bad = |why: &str| BadRoot::new(text, why);
        let Some((scheme, rest)) = text.split_once("://") else {
            return Err(match text.starts_with('/') {
                true => bad(&format!("write a local folder as `file://{text}`")),
                false => bad(FORMS),
            });
        };
        let kind = Kind::of(scheme).ok_or_else(|| bad(FORMS))?;
        if text.len() > BYTES_MAX {
            return Err(bad("it is longer than 1,000 bytes"));
        }
        if kind == Kind::Local {
            return match rest.starts_with('/') {
                true => Self::local(Path::new(rest)),
                false => Err(bad(
                    "the path must be absolute: three slashes, such as `file:///srv/flows`",
                )),
            };
        }
        let (place, path) = rest.split_once('/').unwrap_or((rest, ""));
        let path = path.strip_suffix('/').unwrap_or(path);
        if !path.is_empty() && !key::is_plain(path) {
            return Err(bad(
                "the path must be plain: no `..`, no `//`, no `?`, no `#`",
            ));
        }
        match kind {
            Kind::S3 | Kind::Gcs | Kind::Azure => check_bucket(place),
            Kind::Oci => check_host(place).and_then(|()| match path {
                "" => Err("a repository is missing: `oci://registry/repository`"),
                path => check_repository(path),
            }),
            Kind::Http | Kind::Local => check_host(place),
        }
        .map_err(bad)?;
        let root = Self {
            kind,
            place: place.to_owned(),
            path: path.to_owned(),
        };
        match (scheme, root.is_plain_text()) {
            ("http", false) => Err(bad("clear text is for this machine only; write `https://`")),
            ("https", true) => Err(bad("write `http://` for a server on this machine")),
            _ => Ok(root),
        }
    }
}

impl fmt::Display for Root {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (place, path) = (&self.place, &self.path);
        let scheme = match self.kind {
            Kind::Local => return write!(f, "file://{path}"),
            Kind::Http => {
                let scheme = if self.is_plain_text() {
                    "http"
                } else {
                    "https"
                };
                let slash = if path.is_empty() { "" } else { "/" };
                return write!(f, "{scheme}://{place}/{path}{slash}");
            }
            Kind::S3 => "s3",
            Kind::Gcs => "gs",
            Kind::Azure => "az",
            Kind::Oci => "oci",
        };
        let slash = if path.is_empty() { "" } else { "/" };
        write!(f, "{scheme}://{place}{slash}{path}")
    }
}

impl TryFrom<String> for Root {
    type Error = BadRoot;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<Root> for String {
    fn from(root: Root) -> Self {
        root.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::artifact::Digest;

    #[test]
    fn roots_print_as_one_plain_form() {
        for (typed, plain) in [
            ("file:///a/b", "file:///a/b"),
            ("file:///a//b/", "file:///a/b"),
            ("file:///a/./b c", "file:///a/b c"),
            ("s3://bucket", "s3://bucket"),
            ("s3://bucket/", "s3://bucket"),
            ("gs://bucket/a/b/", "gs://bucket/a/b"),
            ("az://container/a b", "az://container/a b"),
            (
                "oci://127.0.0.1:5000/team/flows",
                "oci://127.0.0.1:5000/team/flows",
            ),
            ("https://example.com", "https://example.com/"),
            ("https://example.com/a/b", "https://example.com/a/b/"),
            ("http://[::1]:80/a/", "http://[::1]:80/a/"),
        ] {
            let root: Root = typed.parse().unwrap();
            assert_eq!(root.to_string(), plain);
            assert_eq!(plain.parse(), Ok(root));
        }
    }

    #[test]
    fn what_is_no_root_is_refused_with_a_reason() {
        for (text, reason) in [
            ("", "expected `file:///folder`"),
            ("flows", "expected"),
            ("/srv/flows", "write a local folder as `file:///srv/flows`"),
            ("file://srv/flows", "three slashes"),
            ("file:///", "whole file system"),
            ("file:///a/../b", "`..`"),
            ("file:///a\nb", "control"),
            ("ftp://host/", "expected"),
            ("s3://", "3 to 63"),
            ("s3://a/b", "3 to 63"),
            ("s3://bucket/../other", "plain"),
            ("gs://bucket//a", "plain"),
            ("az://container/a?sig=1", "plain"),
            ("oci://registry.example.com", "a repository is missing"),
            ("oci://registry.example.com/Team", "lower-case"),
            ("oci://registry.example.com/a/", ""),
            ("https://", "expected a host"),
            ("https://example.com:port/", "expected a host"),
            ("https://ada:secret@example.com/", "credentials"),
            ("https://ada:p@secret@example.com/", "credentials"),
            ("http://example.com/", "`https://`"),
            ("http://10.0.0.1/", "`https://`"),
            ("https://example.com/a?b", "plain"),
        ] {
            let Err(refusal) = text.parse::<Root>() else {
                assert_eq!(reason, "", "{text} is taken");
                continue;
            };
            let refusal = refusal.to_string();
            assert!(refusal.contains(reason), "{refusal}");
            assert!(!refusal.contains("secret"), "{refusal}");
        }
    }

    #[test]
    fn each_storage_has_its_label_and_a_folder_that_of_its_host() {
        for (root, label) in [
            ("file:///a", "mira"),
            ("s3://bucket", "s3-flow-storage"),
            ("gs://bucket", "gcs-flow-storage"),
            ("az://container", "azure-flow-storage"),
            ("oci://localhost:5000/a", "oci-flow-storage"),
            ("https://example.com/", "http-flow-storage"),
        ] {
            let root: Root = root.parse().unwrap();
            assert_eq!(root.auto_label("mira"), label);
        }
    }

    #[test]
    fn a_folder_is_named_with_its_host() {
        let root: Root = "file:///a/b".parse().unwrap();
        assert_eq!(root.name_on("mira"), "file://mira/a/b");
        let named = Root::of_name("file://mira/a/b").unwrap();
        assert_eq!(named, (root.clone(), Some("mira".to_owned())));
        assert_eq!(Root::of_name("file:///a/b").unwrap(), (root, None));
        let bucket: Root = "s3://bucket/a".parse().unwrap();
        assert_eq!(bucket.name_on("mira"), "s3://bucket/a");
        assert_eq!(Root::of_name("s3://bucket/a").unwrap(), (bucket, None));
    }

    #[test]
    fn an_object_is_split_into_root_and_key() {
        for (text, root, key) in [
            ("s3://bucket/a/b.wasm", "s3://bucket/a", "b.wasm"),
            ("s3://bucket/b.wasm", "s3://bucket", "b.wasm"),
            (
                "https://example.com/b.wasm",
                "https://example.com/",
                "b.wasm",
            ),
        ] {
            let (above, name) = Root::split(text).unwrap();
            assert_eq!((above.to_string().as_str(), name.as_str()), (root, key));
            assert_eq!(above.key_of(text).as_deref(), Some(key));
        }
        let own = key::artifact(Digest::of(b""));
        for root in [
            "s3://bucket",
            "gs://bucket/a",
            "az://container/a/b",
            "https://example.com/",
            "http://127.0.0.1:80/a/",
        ] {
            let text = format!("{}/{own}", root.trim_end_matches('/'));
            let (above, key) = Root::split(&text).unwrap();
            assert_eq!((above.to_string().as_str(), &key), (root, &own));
            assert_eq!(above.key_of(&text), Some(key));
            // The folder has to be that of the digest.
            let other = text.replace("/e3/", "/e4/");
            let (above, _) = Root::split(&other).unwrap();
            assert!(above.path().ends_with("sha256/e4"), "{above}");
        }
        assert!(Root::split("s3://bucket/a/").is_err());
        assert!(Root::split("s3://bucket/a/..").is_err());
    }
}
