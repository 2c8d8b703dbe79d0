//! The way to every storage that speaks HTTP: one client, with times of silence, without redirects
//! to other hosts, that counts what it moves.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use futures::stream;
use http::header::CONTENT_LENGTH;
use http::{HeaderMap, HeaderValue};
use http_body_util::{BodyExt as _, StreamBody};
use object_store::ClientOptions;
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse,
    HttpResponseBody, HttpService,
};
use reqwest::redirect::Policy;

/// How long a server may be silent.
pub(super) const SILENCE: Duration = Duration::from_secs(30);
/// How long a connection may take to come about.
pub(super) const CONNECT: Duration = Duration::from_secs(5);
/// The slowest upload that is waited for, in bytes a second.
pub(super) const UPLOAD_RATE: u64 = 32 * 1024;
/// Redirects within one host that are followed.
const REDIRECTS: usize = 5;

/// Counts the bytes of objects that were moved, for those who show progress. Clones share the count.
#[derive(Clone, Debug, Default)]
pub struct Meter(Arc<Counts>);

#[derive(Debug, Default)]
struct Counts {
    moved: AtomicU64,
    expected: AtomicU64,
}

impl Meter {
    /// Returns how many bytes were moved, what was moved again after a failure included.
    #[must_use]
    pub fn moved(&self) -> u64 {
        self.0.moved.load(Ordering::Relaxed)
    }

    /// Returns how many bytes the object has that is being fetched, once the storage has said so.
    #[must_use]
    pub fn expected(&self) -> Option<u64> {
        Some(self.0.expected.load(Ordering::Relaxed)).filter(|size| *size > 0)
    }

    pub(super) fn expect(&self, size: u64) {
        self.0.expected.store(size, Ordering::Relaxed);
    }

    pub(super) fn add(&self, bytes: usize) {
        self.0.moved.fetch_add(bytes as u64, Ordering::Relaxed);
    }
}

/// Connects `object_store` to the way described above.
#[derive(Debug)]
pub(super) struct Connector {
    meter: Meter,
    headers: HeaderMap,
}

impl Connector {
    pub(super) fn new(meter: &Meter) -> Self {
        Self::with_headers(meter, HeaderMap::new())
    }

    /// As `new`, and every request carries these headers.
    pub(super) fn with_headers(meter: &Meter, headers: HeaderMap) -> Self {
        Self {
            meter: meter.clone(),
            headers,
        }
    }
}

impl HttpConnector for Connector {
    fn connect(&self, _: &ClientOptions) -> object_store::Result<HttpClient> {
        let client = client(self.headers.clone(), Stay::AtHost).map_err(|error| {
            object_store::Error::Generic {
                store: "HTTP",
                source: Box::new(error),
            }
        })?;
        Ok(HttpClient::new(Wire {
            client,
            meter: self.meter.clone(),
        }))
    }
}

/// Where redirects may lead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stay {
    /// To the same host only.
    AtHost,
    /// To any host, never from TLS into clear text; credentials stay behind.
    InScheme,
}

/// Makes the client. No redirect leads from TLS into clear text.
pub(super) fn client(headers: HeaderMap, stay: Stay) -> reqwest::Result<reqwest::Client> {
    crate::tls::install();
    let stay = Policy::custom(move |attempt| {
        let from = attempt.previous().last();
        let is_same = from.is_some_and(|from| {
            let to = attempt.url();
            let is_at_host = from.host_str() == to.host_str()
                && from.port_or_known_default() == to.port_or_known_default();
            from.scheme() == to.scheme() && (is_at_host || stay == Stay::InScheme)
        });
        match is_same && attempt.previous().len() <= REDIRECTS {
            true => attempt.follow(),
            false => attempt.error("it redirects to another host"),
        }
    });
    reqwest::Client::builder()
        .user_agent(concat!("waft/", env!("CARGO_PKG_VERSION")))
        .default_headers(headers)
        .redirect(stay)
        .connect_timeout(CONNECT)
        .build()
}

/// The client as `object_store` calls it.
#[derive(Debug)]
struct Wire {
    client: reqwest::Client,
    meter: Meter,
}

/// Says that a server did not go on.
#[derive(Debug, thiserror::Error)]
#[error("no answer for {} s", .0.as_secs())]
struct Silent(Duration);

#[async_trait]
impl HttpService for Wire {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let (parts, body) = request.into_parts();
        let url = parts.uri.to_string();
        let url = url
            .parse()
            .map_err(|error| HttpError::new(HttpErrorKind::Request, Wrong(error)))?;
        let patience = SILENCE + Duration::from_secs(body.content_length() as u64 / UPLOAD_RATE);
        let mut request = reqwest::Request::new(parts.method, url);
        *request.headers_mut() = parts.headers;
        // A request without a body can be sent again, as a redirect within the host asks for.
        if body.content_length() > 0 {
            // Not every store takes a body whose length it is not told, and a counted one hides it.
            let length = HeaderValue::from(body.content_length());
            (request.headers_mut().entry(CONTENT_LENGTH)).or_insert(length);
            let meter = self.meter.clone();
            let counted = body.map_frame(move |frame| {
                meter.add(frame.data_ref().map_or(0, |data| data.len()));
                frame
            });
            *request.body_mut() = Some(reqwest::Body::wrap(counted));
        }
        let answer = tokio::time::timeout(patience, self.client.execute(request)).await;
        let answer =
            answer.map_err(|_| HttpError::new(HttpErrorKind::Timeout, Silent(patience)))?;
        let answer: http::Response<reqwest::Body> = answer.map_err(plain)?.into();
        let (parts, body) = answer.into_parts();
        let frames = stream::try_unfold(body, |mut body| async {
            match tokio::time::timeout(SILENCE, body.frame()).await {
                Err(_) => Err(HttpError::new(HttpErrorKind::Timeout, Silent(SILENCE))),
                Ok(None) => Ok(None),
                Ok(Some(frame)) => Ok(Some((frame.map_err(plain)?, body))),
            }
        });
        let body = HttpResponseBody::new(StreamBody::new(Box::pin(frames)));
        Ok(HttpResponse::from_parts(parts, body))
    }
}

/// A URL that cannot be one.
#[derive(Debug, thiserror::Error)]
#[error("the URL cannot be understood")]
struct Wrong(#[source] url::ParseError);

/// Tells `object_store` what kind of failure it was. The URL is left out: it may carry a signature.
fn plain(error: reqwest::Error) -> HttpError {
    let kind = match () {
        () if error.is_timeout() => HttpErrorKind::Timeout,
        () if error.is_connect() => HttpErrorKind::Connect,
        () if error.is_decode() => HttpErrorKind::Decode,
        () if error.is_body() => HttpErrorKind::Interrupted,
        () => HttpErrorKind::Request,
    };
    HttpError::new(kind, error.without_url())
}
