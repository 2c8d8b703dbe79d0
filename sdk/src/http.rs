//! A small blocking HTTP client over `wasi:http`.
//!
//! A task may call what its attribute names, `#[task(net = ["api.example.org:443"])]`, and the agent
//! allows; everything else is denied. Redirects are not followed: where they lead may be granted or not,
//! so that is the task's to decide. TLS is the host's work.
//!
//! ```no_run
//! # use waft_sdk::prelude::*;
//! #[task(net = ["api.example.org:443"])]
//! fn count() -> TaskResult<u64> {
//!     let response = http::get("https://api.example.org/count").send()?.error_for_status()?;
//!     Ok(response.json()?)
//! }
//! ```

use crate::text::joined;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::fmt;
use std::time::Duration;

#[cfg(target_arch = "wasm32")]
mod wire;

/// Starts a GET request.
pub fn get(url: impl Into<String>) -> Request {
    request("GET", url)
}

/// Starts a POST request.
pub fn post(url: impl Into<String>) -> Request {
    request("POST", url)
}

/// Starts a PUT request.
pub fn put(url: impl Into<String>) -> Request {
    request("PUT", url)
}

/// Starts a DELETE request.
pub fn delete(url: impl Into<String>) -> Request {
    request("DELETE", url)
}

/// Starts a request with any method, written in capitals.
pub fn request(method: &str, url: impl Into<String>) -> Request {
    Request {
        method: method.to_string(),
        url: url.into(),
        headers: Vec::new(),
        body: Vec::new(),
        timeout: None,
        mistake: None,
    }
}

/// A request in the making.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// The method, in capitals.
    pub method: String,
    /// Where it goes: an absolute `http` or `https` URL.
    pub url: String,
    /// The headers, in order.
    pub headers: Vec<(String, String)>,
    /// The body; empty for none.
    pub body: Vec<u8>,
    /// How long each phase may take; none leaves it to the host.
    pub timeout: Option<Duration>,
    /// What went wrong while it was made; `send` answers it.
    mistake: Option<Error>,
}

impl Request {
    /// Adds a header.
    #[must_use]
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_string(), value.to_string()));
        self
    }

    /// Adds `authorization: Bearer <token>`.
    #[must_use]
    pub fn bearer(self, token: &str) -> Self {
        self.header("authorization", &joined(&["Bearer ", token]))
    }

    /// Sets the body.
    #[must_use]
    pub fn body(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.body = bytes.into();
        self
    }

    /// Sets the body to a value as JSON, with its content type.
    #[must_use]
    pub fn json<T: Serialize + ?Sized>(self, value: &T) -> Self {
        match crate::json::to_vec(value) {
            Ok(bytes) => self.header("content-type", "application/json").body(bytes),
            Err(cause) => Self {
                mistake: Some(Error::Body(cause.to_string())),
                ..self
            },
        }
    }

    /// Bounds each phase: connecting, the wait for the first byte, and between two bytes.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    /// Sends it and waits for the whole answer.
    ///
    /// # Errors
    ///
    /// Says whether it was denied, timed out, or failed. A status of 400 or more is an answer like any
    /// other; see [`Response::error_for_status`].
    pub fn send(self) -> Result<Response, Error> {
        if let Some(mistake) = self.mistake {
            return Err(mistake);
        }
        Url::parse(&self.url)?;
        let url = self.url.clone();
        #[cfg(target_arch = "wasm32")]
        let answer = wire::send(&self);
        #[cfg(not(target_arch = "wasm32"))]
        let answer = crate::testing::send(self);
        answer.map(|response| Response { url, ..response })
    }
}

/// An answer, read to its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    url: String,
    status: u16,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
}

impl Response {
    /// Makes an answer; for tests.
    pub fn new(status: u16, body: impl Into<Vec<u8>>) -> Self {
        Self {
            url: String::new(),
            status,
            headers: Vec::new(),
            body: body.into(),
        }
    }

    /// Adds a header; for tests.
    #[must_use]
    pub fn with_header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_string(), value.to_string()));
        self
    }

    /// Answers the status, such as 200.
    pub fn status(&self) -> u16 {
        self.status
    }

    /// Answers the first header of this name, in any case.
    pub fn header(&self, name: &str) -> Option<&str> {
        let found = self
            .headers
            .iter()
            .find(|(known, _)| known.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_str())
    }

    /// Answers all headers, in order.
    pub fn headers(&self) -> &[(String, String)] {
        &self.headers
    }

    /// Answers the body.
    pub fn bytes(&self) -> &[u8] {
        &self.body
    }

    /// Answers the body and lets the rest go.
    pub fn into_bytes(self) -> Vec<u8> {
        self.body
    }

    /// Reads the body as UTF-8.
    ///
    /// # Errors
    ///
    /// Fails if it is not.
    pub fn text(self) -> Result<String, Error> {
        String::from_utf8(self.body).map_err(|cause| Error::Body(cause.to_string()))
    }

    /// Reads the body as JSON.
    ///
    /// # Errors
    ///
    /// Fails if it is not, or of another shape.
    pub fn json<T: DeserializeOwned>(&self) -> Result<T, Error> {
        crate::json::from_slice(&self.body).map_err(|cause| Error::Body(cause.to_string()))
    }

    /// Makes a status of 400 or more an error.
    ///
    /// # Errors
    ///
    /// Answers [`Error::Status`] with the URL and the status.
    pub fn error_for_status(self) -> Result<Self, Error> {
        if self.status >= 400 {
            Err(Error::Status {
                url: self.url,
                status: self.status,
            })
        } else {
            Ok(self)
        }
    }
}

/// Why there is no answer, or none of use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Error {
    /// The task did not ask for this host, or the agent does not allow it. Names the line that would.
    Denied(String),
    /// The URL or a header is not one.
    Invalid(String),
    /// A phase took too long.
    Timeout(String),
    /// There was no connection, or it broke.
    Failed(String),
    /// The body is not what it was read as.
    Body(String),
    /// The status was 400 or more; see [`Response::error_for_status`].
    Status {
        /// What was asked.
        url: String,
        /// What was answered, such as 404.
        status: u16,
    },
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Denied(text) | Self::Failed(text) => f.write_str(text),
            Self::Invalid(what) => write!(f, "not a request: {what}"),
            Self::Timeout(what) => write!(f, "timed out: {what}"),
            Self::Body(cause) => write!(f, "cannot read or write the body: {cause}"),
            Self::Status { url, status } => write!(f, "`{url}` answered {status}"),
        }
    }
}

impl std::error::Error for Error {}

/// The parts of an absolute URL that a request needs.
#[derive(Debug, PartialEq, Eq)]
#[cfg_attr(
    not(target_arch = "wasm32"),
    allow(dead_code, reason = "off wasm32 the URL is only checked")
)]
struct Url<'a> {
    is_https: bool,
    authority: &'a str,
    /// From the first slash or question mark, without the fragment.
    path: &'a str,
}

impl<'a> Url<'a> {
    fn parse(url: &'a str) -> Result<Self, Error> {
        let wrong = |why: &str| Error::Invalid(joined(&["`", url, "` ", why]));
        let (is_https, rest) = if let Some(rest) = url.strip_prefix("https://") {
            (true, rest)
        } else if let Some(rest) = url.strip_prefix("http://") {
            (false, rest)
        } else {
            return Err(wrong("does not start with `http://` or `https://`"));
        };
        let rest = rest.split('#').next().unwrap_or_default();
        let (authority, path) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
        if authority.is_empty() {
            return Err(wrong("has no host"));
        }
        if authority.contains('@') {
            return Err(wrong("holds credentials; send them in a header"));
        }
        Ok(Self {
            is_https,
            authority,
            path,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;

    #[test]
    fn a_url_is_cut_into_its_parts() {
        let url = Url::parse("http://127.0.0.1:80/a?b=c#d").unwrap();
        assert_eq!(
            url,
            Url {
                is_https: false,
                authority: "127.0.0.1:80",
                path: "/a?b=c"
            }
        );
        assert_eq!(
            Url::parse("https://a?b").unwrap(),
            Url {
                is_https: true,
                authority: "a",
                path: "?b"
            }
        );
    }

    #[test]
    fn what_is_no_url_is_refused_before_it_is_sent() {
        for (url, why) in [
            ("ftp://a", "does not start"),
            ("http:///x", "no host"),
            ("http://u:p@a", "credentials"),
        ] {
            let Err(Error::Invalid(text)) = get(url).send() else {
                panic!("`{url}` was sent")
            };
            assert!(text.contains(why), "{text}");
        }
    }

    #[test]
    fn a_test_answers_and_sees_requests() {
        testing::respond("http://a/", Response::new(404, "gone"));
        let response = post("http://a/").json(&[1]).send().unwrap();
        assert_eq!((response.status(), response.bytes()), (404, &b"gone"[..]));
        let error = response.error_for_status().unwrap_err();
        assert_eq!(error.to_string(), "`http://a/` answered 404");
        assert_eq!(testing::requests()[0].body, b"[1]");
        assert!(matches!(get("http://b/").send(), Err(Error::Denied(_))));
    }
}
