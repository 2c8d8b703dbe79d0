//! The way into a registry: who we are, and who is told so.
//!
//! A registry that asks for a token names the service that makes it. Whoever runs a registry could so have
//! credentials sent anywhere: `oci-client` would follow, therefore it never has them. They stay here, go to
//! the registry itself or to a service that [`Door::checked`] lets pass, and `oci-client` is given what came
//! of it.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, WWW_AUTHENTICATE};
use http::{HeaderMap, HeaderValue, StatusCode};
use http_auth::ChallengeParser;
use object_store::{Error, Result};
use oci_client::Reference;
use oci_client::token_cache::{RegistryToken, RegistryTokenType};
use serde::Deserialize;
use url::{Host, Url};

use super::answer::generic;
use crate::clock::{Clock, Monotonic};
use crate::model::artifact::Digest;
use crate::storage::credentials::{Login, Unusable};
use crate::storage::wire::{self, SILENCE, Stay};

/// Most bytes of a token service's answer that are read; tokens have a few KiB.
const TOKEN_BYTES_MAX: usize = 1024 * 1024;
/// Most bytes of a manifest that are read; registries take no more than 4 MiB.
const MANIFEST_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Most bytes of a refusal that are read for its code.
const REFUSAL_BYTES_MAX: usize = 64 * 1024;
/// How long a token is good whose service does not say so; the specification's own number.
const GOOD_FOR: u64 = 60;

/// How long a registry is taken to ask for nothing else than it did.
const ASKS_FOR: Duration = Duration::from_secs(300);

/// The way into one repository.
pub(super) struct Door {
    /// For the registry and its tokens: it stays at the host that was asked.
    http: reqwest::Client,
    /// For what a registry keeps elsewhere.
    roaming: reqwest::Client,
    login: Option<Login>,
    registry: Url,
    repository: String,
    clock: Clock,
    passes: tokio::sync::Mutex<BTreeMap<Act, Pass>>,
}

/// What somebody wants to do there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Act {
    Pull,
    Push,
    /// Of a blob, for another to take its place.
    Delete,
}

/// What opens a registry for a while; none for one that asks nothing.
struct Pass {
    token: Option<RegistryTokenType>,
    until: Monotonic,
}

/// What a registry asks for.
enum Asked {
    Nothing,
    Password,
    Token {
        realm: String,
        service: Option<String>,
    },
}

/// The answer of a token service.
#[derive(Deserialize)]
struct Made {
    token: Option<String>,
    access_token: Option<String>,
    expires_in: Option<u64>,
}

impl Door {
    pub(super) fn new(
        registry: Url,
        repository: &str,
        login: Option<Login>,
    ) -> reqwest::Result<Self> {
        Ok(Self {
            http: wire::client(HeaderMap::new(), Stay::AtHost)?,
            roaming: wire::client(HeaderMap::new(), Stay::InScheme)?,
            login,
            registry,
            repository: repository.to_owned(),
            clock: Clock::default(),
            passes: tokio::sync::Mutex::default(),
        })
    }

    /// Returns what opens the registry for an operation; what was made for one before is used until shortly
    /// before it ends.
    pub(super) async fn pass(&self, to: Act) -> Result<Option<RegistryTokenType>> {
        let mut passes = self.passes.lock().await;
        let now = self.clock.monotonic();
        if let Some(pass) = passes.get(&to)
            && now < pass.until
        {
            return Ok(pass.token.clone());
        }
        let pass = match (self.asked().await?, &self.login) {
            (Asked::Token { realm, service }, login) => {
                let realm = self.checked(&realm)?;
                let (token, seconds) = self.make(realm, service, login.as_ref(), to).await?;
                // A quarter of its time is left for what was begun with it.
                let until = now + Duration::from_secs(seconds) * 3 / 4;
                Pass {
                    token: Some(RegistryTokenType::Bearer(RegistryToken::Token { token })),
                    until,
                }
            }
            (Asked::Password, Some(Login::Password(user, password))) => Pass {
                token: Some(RegistryTokenType::Basic(user.clone(), password.clone())),
                until: now + ASKS_FOR,
            },
            (Asked::Password, Some(Login::Identity(_))) => {
                return Err(denied(
                    "it asks for a password, and its Docker credentials are an identity token",
                ));
            }
            (Asked::Nothing | Asked::Password, _) => Pass {
                token: None,
                until: now + ASKS_FOR,
            },
        };
        let token = pass.token.clone();
        passes.insert(to, pass);
        Ok(token)
    }

    /// Forgets what opened the registry, as it did no longer.
    pub(super) async fn forget(&self) {
        self.passes.lock().await.clear();
    }

    /// Asks the registry what it asks for.
    async fn asked(&self) -> Result<Asked> {
        let url = self.url("/v2/")?;
        let answer = sent(self.http.get(url)).await?;
        if answer.status() != StatusCode::UNAUTHORIZED {
            return Ok(Asked::Nothing);
        }
        let mut asked = Asked::Nothing;
        for value in answer.headers().get_all(WWW_AUTHENTICATE) {
            let text = value.to_str().unwrap_or_default();
            for challenge in ChallengeParser::new(text).flatten() {
                let parameter = |name: &str| {
                    let mut all = challenge.params.iter();
                    let found = all.find(|(key, _)| key.eq_ignore_ascii_case(name));
                    found.map(|(_, value)| value.to_unescaped())
                };
                if challenge.scheme.eq_ignore_ascii_case("Bearer") {
                    if let Some(realm) = parameter("realm") {
                        let service = parameter("service");
                        return Ok(Asked::Token { realm, service });
                    }
                } else if challenge.scheme.eq_ignore_ascii_case("Basic") {
                    asked = Asked::Password;
                }
            }
        }
        Ok(asked)
    }

    /// Checks where credentials would go: to the registry's own host, or by TLS to a host that is not inside
    /// this machine or its network by its mere address, unless the registry is there too.
    fn checked(&self, realm: &str) -> Result<Url> {
        let refused = |why: &str| {
            let shown: String = realm.escape_default().take(200).collect();
            denied(&format!(
                "it sends us for a token to `{shown}`, and {why}; no credentials went there"
            ))
        };
        let url: Url = realm
            .parse()
            .map_err(|_| refused("that is no address of the web"))?;
        if !url.username().is_empty() || url.password().is_some() {
            return Err(refused("that holds credentials of somebody else"));
        }
        let place = |url: &Url| {
            let host = url.host_str().map(str::to_owned);
            (url.scheme().to_owned(), host, url.port_or_known_default())
        };
        if place(&url) == place(&self.registry) {
            return Ok(url);
        }
        let is_local = self.registry.scheme() == "http" && is_loopback(&url);
        match url.scheme() {
            "https" => {}
            "http" if is_local => {}
            "http" => return Err(refused("that is clear text")),
            _ => return Err(refused("that is no address of the web")),
        }
        if is_inside(&url) && !is_inside(&self.registry) {
            return Err(refused(
                "that lies inside this machine or its network, where the registry is not",
            ));
        }
        Ok(url)
    }

    /// Has a token made.
    async fn make(
        &self,
        mut realm: Url,
        service: Option<String>,
        login: Option<&Login>,
        to: Act,
    ) -> Result<(String, u64)> {
        let actions = match to {
            Act::Pull => "pull",
            Act::Push => "pull,push",
            Act::Delete => "pull,push,delete",
        };
        let mut words = vec![("scope", format!("repository:{}:{actions}", self.repository))];
        words.extend(service.map(|service| ("service", service)));
        let request = match login {
            Some(Login::Identity(token)) => {
                words.push(("grant_type", "refresh_token".to_owned()));
                words.push(("client_id", "waft".to_owned()));
                words.push(("refresh_token", token.clone()));
                let form = url::form_urlencoded::Serializer::new(String::new())
                    .extend_pairs(&words)
                    .finish();
                self.http
                    .post(realm)
                    .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
                    .body(form)
            }
            login => {
                realm.query_pairs_mut().extend_pairs(&words);
                let request = self.http.get(realm);
                match login {
                    Some(Login::Password(user, password)) => {
                        request.basic_auth(user, Some(password))
                    }
                    _ => request,
                }
            }
        };
        let answer = sent(request).await?;
        let status = answer.status();
        if !status.is_success() {
            return Err(match status.as_u16() {
                400 | 401 | 403 => denied("its token service does not let us in"),
                code => generic(format!("its token service answers {code}")),
            });
        }
        let body = read(answer, TOKEN_BYTES_MAX, "the answer of its token service").await?;
        // What it says may hold the token.
        let made: Made = serde_json::from_slice(&body)
            .map_err(|_| generic("its token service answers no token".to_owned()))?;
        let token = made.token.or(made.access_token);
        let token =
            token.filter(|token| HeaderValue::from_str(token).is_ok_and(|it| !it.is_empty()));
        let token =
            token.ok_or_else(|| generic("its token service answers no token".to_owned()))?;
        Ok((token, made.expires_in.unwrap_or(GOOD_FOR)))
    }

    /// Fetches a manifest; answers its bytes and what it says it is. One that was asked for by its digest has
    /// that digest.
    pub(super) async fn manifest(
        &self,
        image: &Reference,
        kinds: &[&str],
    ) -> Result<(Bytes, Option<HeaderValue>)> {
        let name = image.digest().or(image.tag()).unwrap_or_default();
        let url = self.url(&format!("/v2/{}/manifests/{name}", self.repository))?;
        let request = self.roaming.get(url).header(ACCEPT, kinds.join(", "));
        let request = opened(request, self.pass(Act::Pull).await?);
        let answer = sent(request).await?;
        let status = answer.status();
        if !status.is_success() {
            let body = read(answer, REFUSAL_BYTES_MAX, "its refusal").await;
            return Err(self.refusal(name, status, &body.unwrap_or_default()).await);
        }
        let kind = answer.headers().get(CONTENT_TYPE).cloned();
        let what = format!("the manifest of `{name}`");
        let bytes = read(answer, MANIFEST_BYTES_MAX, &what).await?;
        match image.digest() {
            Some(wanted) if Digest::of(&bytes).to_string() != wanted => {
                Err(generic(format!("{what} has another digest")))
            }
            _ => Ok((bytes, kind)),
        }
    }

    /// Deletes a blob; answers what the registry says if it does not do that, or not for us.
    pub(super) async fn delete_blob(&self, digest: &str) -> Result<Option<String>> {
        let url = self.url(&format!("/v2/{}/blobs/{digest}", self.repository))?;
        let request = opened(self.http.delete(url), self.pass(Act::Delete).await?);
        let answer = sent(request).await?;
        let status = answer.status();
        if status.is_success() || status == StatusCode::NOT_FOUND {
            return Ok(None);
        }
        let body = read(answer, REFUSAL_BYTES_MAX, "its refusal").await;
        let said = said(status, &body.unwrap_or_default());
        match status.as_u16() {
            400 | 401 | 403 | 405 | 501 => Ok(Some(said)),
            _ => Err(generic(format!("the registry answers {said}"))),
        }
    }

    async fn refusal(&self, name: &str, status: StatusCode, body: &[u8]) -> Error {
        let source = format!("the registry answers {}", said(status, body));
        let (path, source) = (name.to_owned(), source.into());
        match status.as_u16() {
            404 => Error::NotFound { path, source },
            401 | 403 => {
                self.forget().await;
                Error::PermissionDenied { path, source }
            }
            _ => Error::Generic {
                store: "OCI",
                source,
            },
        }
    }

    fn url(&self, path: &str) -> Result<Url> {
        let url = self.registry.join(path);
        url.map_err(|_| generic(format!("`{path}` makes no address in the registry")))
    }
}

/// Says what a registry answered: the status, and the code of the first error.
fn said(status: StatusCode, body: &[u8]) -> String {
    let told: Option<serde_json::Value> = serde_json::from_slice(body).ok();
    let code = told
        .as_ref()
        .and_then(|told| told["errors"][0]["code"].as_str());
    let code: String = code.unwrap_or_default().escape_default().take(60).collect();
    format!("{} {code}", status.as_u16()).trim_end().to_owned()
}

/// Adds to a request what opens the registry.
fn opened(
    request: reqwest::RequestBuilder,
    pass: Option<RegistryTokenType>,
) -> reqwest::RequestBuilder {
    match pass {
        Some(RegistryTokenType::Bearer(token)) => {
            request.header(AUTHORIZATION, token.bearer_token())
        }
        Some(RegistryTokenType::Basic(user, password)) => request.basic_auth(user, Some(password)),
        None => request,
    }
}

fn denied(why: &str) -> Error {
    Error::PermissionDenied {
        path: String::new(),
        source: Box::new(Unusable::new(why.to_owned())),
    }
}

async fn sent(request: reqwest::RequestBuilder) -> Result<reqwest::Response> {
    let silent = || generic(format!("no answer for {} s", SILENCE.as_secs()));
    let answer = tokio::time::timeout(SILENCE, request.send()).await;
    answer
        .map_err(|_| silent())?
        .map_err(|error| Error::Generic {
            store: "OCI",
            source: Box::new(error.without_url()),
        })
}

/// Reads an answer that may have so many bytes, and not one more.
async fn read(mut answer: reqwest::Response, bytes_max: usize, what: &str) -> Result<Bytes> {
    let mut bytes = BytesMut::new();
    loop {
        let chunk = tokio::time::timeout(SILENCE, answer.chunk()).await;
        let chunk = chunk.map_err(|_| generic(format!("no answer for {} s", SILENCE.as_secs())))?;
        let chunk = chunk.map_err(|error| Error::Generic {
            store: "OCI",
            source: Box::new(error.without_url()),
        })?;
        let Some(chunk) = chunk else {
            return Ok(bytes.freeze());
        };
        if bytes.len() + chunk.len() > bytes_max {
            return Err(generic(format!("{what} is larger than {bytes_max} bytes")));
        }
        bytes.extend_from_slice(&chunk);
    }
}

fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(Host::Domain(name)) => name == "localhost" || name.ends_with(".localhost"),
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    }
}

/// Tells whether a host lies inside by its mere address; what names mean is not looked up.
fn is_inside(url: &Url) -> bool {
    let address = match url.host() {
        Some(Host::Ipv4(address)) => IpAddr::V4(address),
        Some(Host::Ipv6(address)) => IpAddr::V6(address).to_canonical(),
        _ => return is_loopback(url),
    };
    match address {
        IpAddr::V4(it) => {
            it.is_loopback() || it.is_private() || it.is_link_local() || it.is_unspecified()
        }
        IpAddr::V6(it) => {
            it.is_loopback()
                || it.is_unique_local()
                || it.is_unicast_link_local()
                || it.is_unspecified()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn door(registry: &str) -> Door {
        crate::tls::install();
        Door::new(registry.parse().unwrap(), "a/b", None).unwrap()
    }

    #[test]
    fn credentials_go_where_the_registry_itself_is_or_to_a_place_of_the_web() {
        let public = "https://registry.example";
        let local = "http://127.0.0.1:5000";
        for (registry, realm, is_good) in [
            (public, "https://auth.example/token", true),
            (public, "https://registry.example/token?a=b", true),
            (public, "http://registry.example/token", false),
            (public, "http://auth.example/token", false),
            (public, "https://127.0.0.1/token", false),
            (public, "https://localhost/token", false),
            (public, "https://169.254.169.254/latest", false),
            (public, "https://10.0.0.1/token", false),
            (public, "https://[::1]/token", false),
            (public, "https://[::ffff:10.0.0.1]/token", false),
            (public, "https://user:word@auth.example/token", false),
            (public, "file:///etc/passwd", false),
            (public, "token", false),
            ("https://10.0.0.1", "https://10.0.0.2/token", true),
            (local, "http://127.0.0.1:5001/token", true),
            (local, "http://auth.example/token", false),
            (local, "https://auth.example/token", true),
        ] {
            let checked = door(registry).checked(realm);
            assert_eq!(checked.is_ok(), is_good, "{registry} {realm}: {checked:?}");
        }
    }
}
