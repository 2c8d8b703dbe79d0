//! Credentials, read from where each ecosystem keeps them. Nothing of them ever enters metadata, a log or
//! an error.

mod docker;

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use object_store::CredentialProvider;

pub(super) use self::docker::docker;
use super::Root;
use super::error::few_words;
use super::root::split_port;
use crate::config::Access;

/// Says why credentials that are there cannot be used. As good as a refusal of the storage.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct Unusable(String);

impl Unusable {
    pub(super) const fn new(why: String) -> Self {
        Self(why)
    }
}

/// Says that there are no credentials at all, and where they were looked for.
#[derive(Debug, thiserror::Error)]
#[error("there are no credentials: {looked}, and {machine} tells none ({why})")]
pub(super) struct Nobody {
    /// Which variables and files say nothing.
    looked: String,
    /// What was asked last: who gives credentials to programs on a machine of the cloud.
    machine: &'static str,
    /// What it answered.
    why: String,
}

/// Asks the machine's own service for credentials where nothing else gives any; says what is missing where there is
/// none, for its words are about an address that nobody has ever heard of.
#[derive(Debug)]
pub(super) struct OfMachine<C> {
    pub(super) service: Arc<dyn CredentialProvider<Credential = C>>,
    pub(super) looked: String,
    pub(super) machine: &'static str,
}

#[async_trait]
impl<C: fmt::Debug + Send + Sync> CredentialProvider for OfMachine<C> {
    type Credential = C;

    async fn get_credential(&self) -> object_store::Result<Arc<C>> {
        let got = self.service.get_credential().await;
        got.map_err(|source| object_store::Error::Unauthenticated {
            path: String::new(),
            source: Box::new(Nobody {
                looked: self.looked.clone(),
                machine: self.machine,
                why: few_words(&source),
            }),
        })
    }
}

/// What a registry is told about who asks.
#[derive(Clone, PartialEq, Eq)]
pub(super) enum Login {
    Password(String, String),
    /// What a token service gave in the place of a password.
    Identity(String),
}

/// What opens an S3 bucket where no variable says so: a profile of the AWS configuration.
#[derive(Default, PartialEq, Eq)]
pub(super) struct Profile {
    pub(super) key_id: Option<String>,
    pub(super) secret: Option<String>,
    pub(super) token: Option<String>,
    pub(super) region: Option<String>,
    pub(super) endpoint: Option<String>,
}

impl Profile {
    /// Reads the profile that `AWS_PROFILE` names from `~/.aws/credentials` and `~/.aws/config`.
    ///
    /// `object_store` knows variables, web identities and instance roles, but not these files.
    pub(super) fn load(access: &Access) -> Self {
        let name = Self::name(access);
        let file = |own: &str, usual: &str| {
            let named = access.variable(own).map(PathBuf::from);
            std::fs::read_to_string(named.or_else(|| access.at_home(usual))?).ok()
        };
        let keys = file("AWS_SHARED_CREDENTIALS_FILE", ".aws/credentials").unwrap_or_default();
        let settings = file("AWS_CONFIG_FILE", ".aws/config").unwrap_or_default();
        Self::of(&name, &keys, &settings)
    }

    /// Returns the name of the profile that is asked for.
    pub(super) fn name(access: &Access) -> String {
        let name = access.variable("AWS_PROFILE");
        name.unwrap_or_else(|| "default".to_owned())
    }

    fn of(name: &str, keys: &str, settings: &str) -> Self {
        let long = format!("profile {name}");
        let find = |key: &str| {
            let all = [(keys, name), (settings, long.as_str()), (settings, name)];
            all.iter()
                .find_map(|(text, section)| ini(text, section, key))
        };
        Self {
            key_id: find("aws_access_key_id"),
            secret: find("aws_secret_access_key"),
            token: find("aws_session_token"),
            region: find("region"),
            endpoint: find("endpoint_url"),
        }
    }
}

/// Finds a value in a file of `[section]`s with `key = value` lines.
fn ini(text: &str, section: &str, key: &str) -> Option<String> {
    let mut is_inside = false;
    for line in text.lines().map(str::trim) {
        if let Some(name) = line
            .strip_prefix('[')
            .and_then(|line| line.strip_suffix(']'))
        {
            is_inside = name.trim() == section;
        } else if is_inside
            && let Some((name, value)) = line.split_once('=')
            && name.trim() == key
        {
            return Some(value.trim().to_owned()).filter(|value| !value.is_empty());
        }
    }
    None
}

/// Reads a connection string of Azure, `Name=value;Name=value`.
pub(super) fn connection_string(text: &str) -> BTreeMap<&str, &str> {
    let pairs = text.split(';').filter_map(|pair| pair.split_once('='));
    pairs.map(|(name, value)| (name.trim(), value)).collect()
}

/// What a web server is told about who asks.
#[derive(PartialEq, Eq)]
pub(super) enum WebAuth {
    Bearer(String),
    Basic(String, String),
}

/// Finds what opens a web server: its token file, else its entry in `~/.netrc`.
pub(super) fn web_auth(access: &Access, root: &Root) -> Result<Option<WebAuth>, Unusable> {
    if let Some(file) = access.http_tokens.get(root.place()) {
        let token = std::fs::read_to_string(file).map_err(|error| {
            let what = format!(
                "the token file `{}` cannot be read: {error}",
                file.display()
            );
            Unusable(what)
        })?;
        return Ok(Some(WebAuth::Bearer(token.trim().to_owned())));
    }
    let named = access.variable("NETRC").map(PathBuf::from);
    let file = named.or_else(|| access.at_home(".netrc"));
    let text = file.and_then(|file| std::fs::read_to_string(file).ok());
    let host = root.place();
    let host = split_port(host).map_or(host, |(name, _)| name);
    let found = text.and_then(|text| netrc(&text, host));
    Ok(found.map(|(login, password)| WebAuth::Basic(login, password)))
}

/// Finds login and password of a host in the format of netrc(5).
fn netrc(text: &str, host: &str) -> Option<(String, String)> {
    let mut words = text
        .lines()
        .filter(|line| !line.trim_start().starts_with('#'))
        .flat_map(str::split_whitespace);
    let mut is_ours = false;
    let (mut login, mut password) = (None, None);
    while let Some(word) = words.next() {
        match word {
            "machine" | "default" => {
                if is_ours && password.is_some() {
                    break;
                }
                is_ours = word == "default" || words.next() == Some(host);
            }
            "login" if is_ours => login = words.next(),
            "password" if is_ours => password = words.next(),
            "login" | "password" | "account" => drop(words.next()),
            _ => {}
        }
    }
    Some((login?.to_owned(), password?.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_profile_is_put_together_from_both_files() {
        let keys = "[default]\naws_access_key_id = A\naws_secret_access_key=B=\n\n[ci]\n\
                    aws_access_key_id = C\naws_secret_access_key = D\naws_session_token = T\n";
        let settings = "[default]\nregion = eu-central-1\n[profile ci]\nregion = us-west-2\n\
                        endpoint_url = http://127.0.0.1:9000\n";
        let main = Profile::of("default", keys, settings);
        assert_eq!(main.key_id.as_deref(), Some("A"));
        assert_eq!(main.secret.as_deref(), Some("B="));
        assert_eq!(main.region.as_deref(), Some("eu-central-1"));
        assert_eq!(main.token, None);
        let ci = Profile::of("ci", keys, settings);
        assert_eq!(ci.key_id.as_deref(), Some("C"));
        assert_eq!(ci.token.as_deref(), Some("T"));
        assert_eq!(ci.region.as_deref(), Some("us-west-2"));
        assert_eq!(ci.endpoint.as_deref(), Some("http://127.0.0.1:9000"));
        assert!(Profile::of("none", keys, settings) == Profile::default());
    }

    #[test]
    fn netrc_finds_the_machine_or_the_default() {
        let text = "# machine a login x password y\nmachine a.example login ada\npassword secret\n\
                    machine b.example password only\ndefault login any password thing\n";
        let found = |host| netrc(text, host);
        assert_eq!(
            found("a.example"),
            Some(("ada".to_owned(), "secret".to_owned()))
        );
        assert_eq!(
            found("c.example"),
            Some(("any".to_owned(), "thing".to_owned()))
        );
        assert_eq!(netrc("machine a.example login x", "a.example"), None);
    }

    #[test]
    fn a_connection_string_is_taken_apart() {
        let text = "DefaultEndpointsProtocol=http;AccountName=dev;AccountKey=a==;\
                    BlobEndpoint=http://127.0.0.1:1/dev;";
        let found = connection_string(text);
        assert_eq!(found["AccountKey"], "a==");
        assert_eq!(found["BlobEndpoint"], "http://127.0.0.1:1/dev");
    }
}
