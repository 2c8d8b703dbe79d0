//! The login of a registry, read from Docker's own configuration or asked of the helper that it names.

use std::collections::BTreeMap;
use std::io::{self, Read as _, Write as _};
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use base64::Engine as _;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use rustix::process::{Pid, Signal, kill_process_group};
use serde::Deserialize;

use super::{Login, Unusable};
use crate::config::Access;

/// How long a helper may take: some ask a service of a cloud.
const PATIENCE: Duration = Duration::from_secs(20);
/// How long the end of one may take that was killed.
const REAPING: Duration = Duration::from_secs(1);
/// Most bytes of a helper's answer that are read; tokens have a few KiB.
const ANSWER_BYTES_MAX: u64 = 1024 * 1024;

/// What of `config.json` is about logins.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Config {
    auths: Option<BTreeMap<String, Entry>>,
    creds_store: Option<String>,
    cred_helpers: Option<BTreeMap<String, String>>,
}

#[derive(Deserialize)]
struct Entry {
    auth: Option<String>,
    username: Option<String>,
    password: Option<String>,
    identitytoken: Option<String>,
}

/// What a helper answers.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Answer {
    username: String,
    secret: String,
}

/// Finds the login of a registry, through its helper where one is configured.
///
/// # Errors
///
/// Fails if the configuration cannot be read or the helper does not answer. Having no entry is no error.
pub(in crate::storage) fn docker(
    access: &Access,
    registry: &str,
) -> Result<Option<Login>, Unusable> {
    let folder = access.variable("DOCKER_CONFIG").map(PathBuf::from);
    let Some(folder) = folder.or_else(|| access.at_home(".docker")) else {
        return Ok(None);
    };
    let text = match std::fs::read(folder.join("config.json")) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => {
            let what = format!("the Docker credential file cannot be read: {error}");
            return Err(Unusable(what));
        }
    };
    // Its own words may hold what stands there.
    let unread = || Unusable("the Docker credential file cannot be understood".to_owned());
    let config: Config = serde_json::from_slice(&text).map_err(|_| unread())?;
    let named = |helper: &&String| !helper.is_empty();
    let own = config.cred_helpers.as_ref();
    if let Some(helper) = own.and_then(|all| all.get(registry)).filter(named) {
        return ask(helper, registry, PATIENCE);
    }
    let entry = config.auths.as_ref().and_then(|all| entry(all, registry));
    if let Some(entry) = entry
        && let Some(login) = entry.login().map_err(|()| unread())?
    {
        return Ok(Some(login));
    }
    match config.creds_store.as_ref().filter(named) {
        Some(helper) => ask(helper, registry, PATIENCE),
        None => Ok(None),
    }
}

/// Finds the entry of a registry; older tools wrote URLs there, and Docker Hub has several names.
fn entry<'a>(all: &'a BTreeMap<String, Entry>, registry: &str) -> Option<&'a Entry> {
    let plain = |name: &'_ str| -> String {
        let rest = name
            .strip_prefix("https://")
            .or_else(|| name.strip_prefix("http://"));
        let host = rest.map_or(name, |rest| rest.split('/').next().unwrap_or_default());
        match host {
            "registry-1.docker.io" | "docker.io" => "index.docker.io".to_owned(),
            host => host.to_owned(),
        }
    };
    let wanted = plain(registry);
    let found = || all.iter().find(|(name, _)| plain(name) == wanted);
    all.get(registry)
        .or_else(|| found().map(|(_, entry)| entry))
}

impl Entry {
    /// Reads the login; none where only a helper has it.
    fn login(&self) -> Result<Option<Login>, ()> {
        let is_set = |text: &&String| !text.is_empty();
        if let Some(token) = self.identitytoken.as_ref().filter(is_set) {
            return Ok(Some(Login::Identity(token.clone())));
        }
        if let Some(auth) = self.auth.as_ref().filter(is_set) {
            let lax = GeneralPurposeConfig::new()
                .with_decode_padding_mode(DecodePaddingMode::Indifferent);
            let pair = GeneralPurpose::new(&STANDARD, lax)
                .decode(auth)
                .map_err(drop)?;
            let pair = String::from_utf8(pair).map_err(drop)?;
            let (user, password) = pair.split_once(':').ok_or(())?;
            return Ok(Some(Login::Password(user.to_owned(), password.to_owned())));
        }
        Ok(match (&self.username, &self.password) {
            (Some(user), Some(password)) => Some(Login::Password(user.clone(), password.clone())),
            _ => None,
        })
    }
}

/// Asks a helper. One that does not answer in time is ended, with all that it has started.
fn ask(helper: &str, registry: &str, patience: Duration) -> Result<Option<Login>, Unusable> {
    let name = format!("docker-credential-{helper}");
    let unasked = |error: io::Error| {
        Unusable(format!(
            "the credential helper `{name}` that Docker has for `{registry}` cannot be asked: {error}"
        ))
    };
    let mut child = Command::new(&name)
        .arg("get")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        // Its other words may hold what it knows, so they are not repeated.
        .stderr(Stdio::null())
        .process_group(0)
        .spawn()
        .map_err(unasked)?;
    let group = Pid::from_child(&child);
    if let Some(mut input) = child.stdin.take() {
        // One that does not read it may answer all the same.
        let _ = input.write_all(registry.as_bytes());
    }
    let (sender, answered) = mpsc::sync_channel(1);
    std::thread::spawn(move || sender.send(read(child)));
    let answer = answered.recv_timeout(patience).unwrap_or_else(|_| {
        let _ = kill_process_group(group, Signal::KILL);
        // The other thread reaps it.
        let _ = answered.recv_timeout(REAPING);
        let silent = format!("no answer for {} s", patience.as_secs());
        Err(io::Error::other(silent))
    });
    let (is_done, answer) = answer.map_err(unasked)?;
    if !is_done {
        let said = String::from_utf8_lossy(&answer);
        return match said.contains("credentials not found") {
            true => Ok(None),
            false => Err(Unusable(format!("the credential helper `{name}` failed"))),
        };
    }
    let answer: Answer = serde_json::from_slice(&answer).map_err(|_| {
        Unusable(format!(
            "the answer of the credential helper `{name}` is no login"
        ))
    })?;
    Ok(Some(match answer.username.as_str() {
        "<token>" => Login::Identity(answer.secret),
        _ => Login::Password(answer.username, answer.secret),
    }))
}

/// Reads what a helper says, waits for its end, and answers whether that was a good one.
fn read(mut child: Child) -> io::Result<(bool, Vec<u8>)> {
    let mut answer = Vec::new();
    if let Some(output) = child.stdout.take() {
        output.take(ANSWER_BYTES_MAX).read_to_end(&mut answer)?;
    }
    Ok((child.wait()?.success(), answer))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_login_is_found_in_every_form_that_docker_writes() {
        let folder = tempfile::tempdir().unwrap();
        let access = Access {
            variables: [(
                "DOCKER_CONFIG".to_owned(),
                folder.path().display().to_string(),
            )]
            .into(),
            ..Access::default()
        };
        let found = |config: &str, registry: &str| {
            std::fs::write(folder.path().join("config.json"), config).unwrap();
            docker(&access, registry).map(|login| match login {
                Some(Login::Password(user, password)) => format!("{user}:{password}"),
                Some(Login::Identity(token)) => format!("token {token}"),
                None => "nobody".to_owned(),
            })
        };
        // "ada:secret", with its padding and without.
        for auth in ["YWRhOnNlY3JldA==", "YWRhOnNlY3JldA"] {
            let config = format!(r#"{{"auths":{{"r.example":{{"auth":"{auth}"}}}}}}"#);
            assert_eq!(found(&config, "r.example").unwrap(), "ada:secret");
            assert_eq!(found(&config, "other.example").unwrap(), "nobody");
        }
        for (config, registry, login) in [
            (
                r#"{"auths":{"https://r.example/v1/":{"username":"ada","password":"x"}}}"#,
                "r.example",
                "ada:x",
            ),
            (
                r#"{"auths":{"https://index.docker.io/v1/":{"identitytoken":"t"}}}"#,
                "docker.io",
                "token t",
            ),
            (r#"{"auths":{"r.example":{}}}"#, "r.example", "nobody"),
            (r#"{"auths":null}"#, "r.example", "nobody"),
        ] {
            assert_eq!(found(config, registry).unwrap(), login, "{config}");
        }
        for config in [r#"{"auths":{"r.example":{"auth":"!secret"}}}"#, "secret"] {
            let refused = found(config, "r.example").unwrap_err().to_string();
            assert!(!refused.contains("secret"), "{refused}");
        }
    }

    #[test]
    fn a_helper_that_is_missing_is_named() {
        let missing = ask("waft-has-none", "r.example", PATIENCE).err().unwrap();
        let missing = missing.to_string();
        assert!(
            missing.contains("`docker-credential-waft-has-none`"),
            "{missing}"
        );
    }
}
