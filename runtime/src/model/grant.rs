//! Grants: powers that a task asks for and an agent allows.
//!
//! A task starts with nothing. [`Grants`] is what it asks for, [`Policy`] what an agent allows;
//! [`Grants::missing_from`] is the one rule between them. Turning a grant into a handle is the
//! business of `sandbox/grant.rs` alone.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Says why a text is no grant, and what would be one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not a {kind} grant: {why}")]
pub struct NoGrant {
    kind: &'static str,
    text: String,
    why: &'static str,
}

fn no(kind: &'static str, text: &str, why: &'static str) -> NoGrant {
    let text = text.escape_default().take(200).collect();
    NoGrant { kind, text, why }
}

/// A host and a port that may be connected to.
///
/// The host is a name, an address, `*.domain` (every name below it, not the domain itself) or `*`;
/// the port is a number or `*`. An IPv6 address stands in brackets.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NetRule {
    host: String,
    port: Option<u16>,
}

impl NetRule {
    /// Tells whether a connection to `host` (without brackets) and `port` is meant by this rule.
    ///
    /// ```
    /// # use waft::model::grant::NetRule;
    /// let rule: NetRule = "*.example.org:443".parse().unwrap();
    /// assert!(rule.allows("api.Example.org", 443));
    /// assert!(!rule.allows("example.org", 443));
    /// assert!(!rule.allows("api.example.org", 80));
    /// assert!(!rule.allows("evil-example.org", 443));
    /// ```
    #[must_use]
    pub fn allows(&self, host: &str, port: u16) -> bool {
        self.port.is_none_or(|own| own == port) && self.allows_host(host)
    }

    /// Tells whether some port of `host` (without brackets) is meant by this rule.
    #[must_use]
    pub fn allows_host(&self, host: &str) -> bool {
        let host = host.trim_end_matches('.').to_ascii_lowercase();
        match self.host.strip_prefix('*') {
            None => self.host == host,
            Some("") => true,
            Some(suffix) => host.len() > suffix.len() && host.ends_with(suffix),
        }
    }

    /// Tells whether everything that `other` allows is allowed by this rule too.
    #[must_use]
    pub fn covers(&self, other: &Self) -> bool {
        let is_port_covered = self.port.is_none() || self.port == other.port;
        let is_host_covered = match other.host.strip_prefix('*') {
            None => self.allows_host(&other.host),
            // Only a wildcard holds all the names of another one.
            Some(below) => match self.host.strip_prefix('*') {
                None => false,
                Some(own) => below.ends_with(own),
            },
        };
        is_port_covered && is_host_covered
    }

    /// Tells whether the rule names one address or name, without a wildcard.
    #[must_use]
    pub fn is_exact_host(&self) -> bool {
        !self.host.starts_with('*')
    }

    /// Returns the host without brackets.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.host
    }
}

impl FromStr for NetRule {
    type Err = NoGrant;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bad = |why| no("net", text, why);
        let (host, port) = text
            .rsplit_once(':')
            .ok_or_else(|| bad("expected `host:port`, such as `api.example.org:443`"))?;
        let port = match port {
            "*" => None,
            port => Some(
                port.parse()
                    .map_err(|_| bad("the port must be 1 to 65535 or `*`"))?,
            ),
        };
        let host = match host.strip_prefix('[').and_then(|h| h.strip_suffix(']')) {
            Some(address) => address
                .parse::<std::net::Ipv6Addr>()
                .map_err(|_| bad("what stands in brackets must be an IPv6 address"))?
                .to_string(),
            None => {
                let name = host.strip_suffix('.').filter(|name| *name != "*");
                name.unwrap_or(host).to_ascii_lowercase()
            }
        };
        let rest = host.strip_prefix("*.").unwrap_or(&host);
        let is_name = |c: char| c.is_ascii_alphanumeric() || "-_.:".contains(c);
        if host != "*" && (rest.is_empty() || rest.len() > 253 || !rest.chars().all(is_name)) {
            return Err(bad(
                "the host must be a name, an address, `*.domain` or `*`",
            ));
        }
        Ok(Self { host, port })
    }
}

impl fmt::Display for NetRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host.contains(':') {
            true => write!(f, "[{}]", self.host)?,
            false => f.write_str(&self.host)?,
        }
        match self.port {
            Some(port) => write!(f, ":{port}"),
            None => f.write_str(":*"),
        }
    }
}

/// Whether a folder may be written to.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Serialize,
    Deserialize,
    utoipa::ToSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// `ro`: read only.
    ReadOnly,
    /// `rw`: read and write.
    ReadWrite,
}

impl Mode {
    const fn word(self) -> &'static str {
        match self {
            Self::ReadOnly => "ro",
            Self::ReadWrite => "rw",
        }
    }
}

/// A guest folder that a task asks for, `/data:ro`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DirRule {
    /// The absolute path that the guest sees.
    pub guest: String,
    /// Whether it may be written to.
    pub mode: Mode,
}

fn checked_guest_path(text: &str, path: &str) -> Result<String, NoGrant> {
    let is_plain = |part: &str| {
        !matches!(part, "" | "." | "..") && !part.contains(|c: char| c.is_control() || c == '\\')
    };
    let rest = path.strip_prefix('/').ok_or_else(|| {
        no(
            "dir",
            text,
            "the guest path must be absolute, such as `/data:ro`",
        )
    })?;
    if path.len() > 512 || !rest.split('/').all(is_plain) {
        return Err(no(
            "dir",
            text,
            "the guest path must be plain: no `.`, `..` or empty parts",
        ));
    }
    Ok(path.to_owned())
}

fn split_mode<'a>(text: &'a str, all: &str) -> Result<(&'a str, Mode), NoGrant> {
    match text.rsplit_once(':') {
        Some((path, "ro")) => Ok((path, Mode::ReadOnly)),
        Some((path, "rw")) => Ok((path, Mode::ReadWrite)),
        _ => Err(no("dir", all, "the mode must be given, `:ro` or `:rw`")),
    }
}

impl FromStr for DirRule {
    type Err = NoGrant;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (path, mode) = split_mode(text, text)?;
        let guest = checked_guest_path(text, path)?;
        Ok(Self { guest, mode })
    }
}

impl fmt::Display for DirRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.guest, self.mode.word())
    }
}

/// A host folder that an agent maps to a guest folder, `HOST::GUEST:ro`.
///
/// Only the agent's own configuration holds these; a flow never names a host path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostDir {
    /// The folder on the agent's machine, as it was typed.
    pub host: String,
    /// What a guest may see of it.
    pub rule: DirRule,
}

impl FromStr for HostDir {
    type Err = NoGrant;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let why = "expected `HOST::GUEST:ro` or `HOST::GUEST:rw`, such as `./data::/data:ro`";
        let (host, rest) = text.split_once("::").ok_or_else(|| no("dir", text, why))?;
        let (guest, mode) = split_mode(rest, text)?;
        if host.is_empty() {
            return Err(no("dir", text, why));
        }
        let guest = checked_guest_path(text, guest)?;
        Ok(Self {
            host: host.to_owned(),
            rule: DirRule { guest, mode },
        })
    }
}

macro_rules! as_text {
    ($($name:ident, $example:literal;)*) => {$(
        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?
                    .parse()
                    .map_err(serde::de::Error::custom)
            }
        }

        impl utoipa::PartialSchema for $name {
            fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::schema::Schema> {
                utoipa::openapi::ObjectBuilder::new()
                    .schema_type(utoipa::openapi::schema::Type::String)
                    .examples([serde_json::json!($example)])
                    .into()
            }
        }

        impl utoipa::ToSchema for $name {}
    )*};
}

as_text! {
    NetRule, "api.example.org:443";
    DirRule, "/data:ro";
}

/// What a task asks for. A task starts with nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Grants {
    /// Hosts and ports.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub net: BTreeSet<NetRule>,
    /// Guest folders.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub dirs: BTreeSet<DirRule>,
    /// Names of environment variables.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub env: BTreeSet<String>,
    /// Names of secrets.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub secrets: BTreeSet<String>,
}

impl Grants {
    /// Tells whether nothing is asked for.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Returns what either asks for, which is what a whole flow needs of its agent.
    #[must_use]
    pub fn with(&self, other: &Self) -> Self {
        Self {
            net: self.net.union(&other.net).cloned().collect(),
            dirs: self.dirs.union(&other.dirs).cloned().collect(),
            env: self.env.union(&other.env).cloned().collect(),
            secrets: self.secrets.union(&other.secrets).cloned().collect(),
        }
    }

    /// Returns what both ask for: what was registered and what the component itself describes.
    #[must_use]
    pub fn intersection(&self, other: &Self) -> Self {
        Self {
            net: self.net.intersection(&other.net).cloned().collect(),
            dirs: self.dirs.intersection(&other.dirs).cloned().collect(),
            env: self.env.intersection(&other.env).cloned().collect(),
            secrets: self.secrets.intersection(&other.secrets).cloned().collect(),
        }
    }

    /// Returns the lines that an agent with this policy would need to allow all of it.
    ///
    /// Each line is a flag to paste. An empty answer means that all is allowed.
    #[must_use]
    pub fn missing_from(&self, policy: &Policy) -> Vec<String> {
        let net = self.net.iter().filter(|rule| !policy.allows_net(rule));
        let dirs = self.dirs.iter().filter(|rule| !policy.allows_dir(rule));
        let env = self.env.difference(&policy.env);
        let secrets = self.secrets.difference(&policy.secrets);
        net.map(|rule| format!("--allow-net {rule}"))
            .chain(dirs.map(|rule| format!("--allow-dir HOST::{rule}")))
            .chain(env.map(|name| format!("--allow-env {name}")))
            .chain(secrets.map(|name| format!("--allow-secret {name}")))
            .collect()
    }

    /// Lists what is asked for, one word pair each, for people.
    #[must_use]
    pub fn lines(&self) -> Vec<String> {
        let net = self.net.iter().map(|rule| format!("net {rule}"));
        let dirs = self.dirs.iter().map(|rule| format!("dir {rule}"));
        let env = self.env.iter().map(|name| format!("env {name}"));
        let secrets = self.secrets.iter().map(|name| format!("secret {name}"));
        net.chain(dirs).chain(env).chain(secrets).collect()
    }
}

/// What an agent allows. On the wire it names guest folders only, never a host path.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Policy {
    /// Hosts and ports.
    pub net: BTreeSet<NetRule>,
    /// Guest folders.
    pub dirs: BTreeMap<String, Mode>,
    /// Names of environment variables.
    pub env: BTreeSet<String>,
    /// Names of secrets.
    pub secrets: BTreeSet<String>,
}

impl Policy {
    /// Tells whether a rule that a task asks for lies within what is allowed.
    #[must_use]
    pub fn allows_net(&self, rule: &NetRule) -> bool {
        self.net.iter().any(|own| own.covers(rule))
    }

    /// Tells whether a guest folder is mapped, and writable if that is asked for.
    #[must_use]
    pub fn allows_dir(&self, rule: &DirRule) -> bool {
        self.dirs
            .get(&rule.guest)
            .is_some_and(|mode| *mode >= rule.mode)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(text: &str) -> NetRule {
        text.parse().unwrap()
    }

    #[test]
    fn rules_print_as_they_are_typed() {
        for text in ["a.b:1", "*.b:*", "*:443", "[::1]:80", "127.0.0.1:*"] {
            assert_eq!(net(text).to_string(), text);
        }
        for text in ["/data:ro", "/a/b:rw"] {
            assert_eq!(text.parse::<DirRule>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn what_is_no_rule_is_refused() {
        for text in [
            "", "a", "a:", "a:x", "a:70000", ":1", "a b:1", "*.:1", "[x]:1", "a@b:1", "**:1",
        ] {
            assert!(text.parse::<NetRule>().is_err(), "{text}");
        }
        for text in [
            "data:ro",
            "/data",
            "/data:xx",
            "/:ro",
            "/a/../b:ro",
            "/a//b:ro",
            "/a\n:ro",
        ] {
            assert!(text.parse::<DirRule>().is_err(), "{text}");
        }
        for text in ["/x:ro", "::/x:ro", "a::x:ro", "a::/x"] {
            assert!(text.parse::<HostDir>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_rule_covers_what_is_narrower() {
        let table = [
            ("*:*", "a.b:1", true),
            ("*.b:1", "a.b:1", true),
            ("*.b:1", "*.a.b:1", true),
            ("*.a.b:1", "*.b:1", false),
            ("*.b:1", "b:1", false),
            ("a.b:*", "a.b:1", true),
            ("a.b:1", "a.b:*", false),
            ("a.b:1", "*:1", false),
            ("*.b:1", "*:1", false),
            ("*.b:1", "*.b:1", true),
            ("*.b:1", "*.xb:1", false),
            ("a.b:1", "*.a.b:1", false),
            ("a.b:1", "*.b:1", false),
            ("*.b:1", "*.c.a.b:1", true),
            ("*:1", "*.b:1", true),
            ("*:1", "*:1", true),
            ("127.0.0.1:1", "*.127.0.0.1:1", false),
        ];
        for (own, other, expected) in table {
            assert_eq!(net(own).covers(&net(other)), expected, "{own} {other}");
        }
    }

    #[test]
    fn what_is_missing_is_a_flag_to_paste() {
        let mut asked = Grants::default();
        asked.net.insert(net("a.b:443"));
        asked.dirs.insert("/data:rw".parse().unwrap());
        asked.env.insert("HOME".to_owned());
        let mut policy = Policy::default();
        policy.dirs.insert("/data".to_owned(), Mode::ReadOnly);
        policy.env.insert("HOME".to_owned());
        assert_eq!(
            asked.missing_from(&policy),
            ["--allow-net a.b:443", "--allow-dir HOST::/data:rw"]
        );
        policy.dirs.insert("/data".to_owned(), Mode::ReadWrite);
        policy.net.insert(net("*.b:443"));
        assert!(asked.missing_from(&policy).is_empty());
    }
}
