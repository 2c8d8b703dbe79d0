//! The door for outgoing HTTP: every request of a guest is sent here, or not.
//!
//! The host is checked by its name, resolved once, the addresses are checked, and exactly the one
//! that was checked is dialled (`net.rs` has the rules). Each phase has a timeout that a guest can
//! only shorten; bytes, requests and connections are counted over the whole attempt. Redirects are
//! the guest's business: each hop is a request that is checked again.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::uri::Scheme;
use http::{Method, Request, Response, Uri};
use http_body::{Body, Frame};
use http_body_util::BodyExt as _;
use hyper::client::conn::http1;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Sleep, timeout};
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::{ClientConfig, RootCertStore, crypto::ring};
use wasmtime_wasi_http::io::TokioIo;
use wasmtime_wasi_http::{Error, RequestOptions, WasiBody, WasiHttpHooks};

use super::net::Net;
use crate::model::limit::Limits;

/// The longest each phase may take; a guest can ask for less.
const CONNECT_MAX: Duration = Duration::from_secs(10);
const FIRST_BYTE_MAX: Duration = Duration::from_secs(30);
const BETWEEN_BYTES_MAX: Duration = Duration::from_secs(30);
/// Most header fields of a response.
const FIELDS_MAX: usize = 200;
/// hyper's own lower bound for its read buffer.
const BUFFER_BYTES_MIN: usize = 8 * 1024;

type Io = Box<dyn Future<Output = Result<(), Error>> + Send>;
type Sent = Result<(Response<WasiBody>, Io), Error>;

/// Sends the requests of one attempt.
pub(crate) struct HttpDoor(Arc<Door>);

struct Door {
    net: Arc<Net>,
    traffic: Arc<Traffic>,
    connections: Arc<Semaphore>,
    requests_max: u64,
    field_bytes: usize,
}

/// Counts what goes over the wire, against the limits of the attempt.
#[derive(Debug)]
pub(crate) struct Traffic {
    requests: AtomicU64,
    bytes_in: AtomicU64,
    bytes_out: AtomicU64,
    bytes_in_max: u64,
    bytes_out_max: u64,
}

impl Traffic {
    /// Returns the bytes that came in and went out.
    pub(crate) fn bytes(&self) -> (u64, u64) {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        (read(&self.bytes_in), read(&self.bytes_out))
    }

    fn count_in(&self, bytes: usize) -> io::Result<()> {
        count(&self.bytes_in, bytes, self.bytes_in_max)
    }

    fn count_out(&self, bytes: usize) -> io::Result<()> {
        count(&self.bytes_out, bytes, self.bytes_out_max)
    }

    fn is_in_over(&self) -> bool {
        self.bytes().0 > self.bytes_in_max
    }

    fn is_out_over(&self) -> bool {
        self.bytes().1 > self.bytes_out_max
    }
}

fn count(counter: &AtomicU64, bytes: usize, most: u64) -> io::Result<()> {
    let bytes = bytes as u64;
    match counter.fetch_add(bytes, Ordering::Relaxed) + bytes > most {
        true => Err(io::Error::other(format!(
            "the attempt is over its limit of {most} bytes"
        ))),
        false => Ok(()),
    }
}

impl HttpDoor {
    pub(crate) fn new(net: Arc<Net>, limits: &Limits) -> Self {
        let field_bytes = usize::try_from(limits.http_field_bytes).unwrap_or(usize::MAX);
        Self(Arc::new(Door {
            net,
            traffic: Arc::new(Traffic {
                requests: AtomicU64::new(0),
                bytes_in: AtomicU64::new(0),
                bytes_out: AtomicU64::new(0),
                bytes_in_max: limits.http_bytes_in,
                bytes_out_max: limits.http_bytes_out,
            }),
            connections: Arc::new(Semaphore::new(
                usize::try_from(limits.http_connections).unwrap_or(Semaphore::MAX_PERMITS),
            )),
            requests_max: limits.http_requests,
            field_bytes,
        }))
    }

    pub(crate) fn traffic(&self) -> &Traffic {
        &self.0.traffic
    }
}

impl WasiHttpHooks for HttpDoor {
    fn send_request(
        &mut self,
        request: Request<WasiBody>,
        options: Option<RequestOptions>,
        _processed: Box<dyn Future<Output = Result<(), Error>> + Send>,
    ) -> Box<dyn Future<Output = Sent> + Send> {
        let door = Arc::clone(&self.0);
        Box::new(async move { door.send(request, options.unwrap_or_default()).await })
    }
}

/// Where a request goes.
#[derive(Debug, PartialEq, Eq)]
struct Target {
    host: String,
    port: u16,
    is_tls: bool,
}

impl Target {
    /// Reads the target of what the guest wrote; nothing that could be read in two ways passes.
    fn of(uri: &Uri) -> Result<Self, Error> {
        let authority = uri.authority().ok_or(Error::HttpRequestUriInvalid)?;
        if authority.as_str().contains('@') {
            return Err(Error::HttpRequestUriInvalid);
        }
        let is_tls = match uri.scheme() {
            Some(scheme) if *scheme == Scheme::HTTPS => true,
            Some(scheme) if *scheme == Scheme::HTTP => false,
            _ => return Err(Error::HttpProtocolError),
        };
        let host = authority.host();
        let inner = host.strip_prefix('[').and_then(|h| h.strip_suffix(']'));
        let host = inner.unwrap_or(host).to_ascii_lowercase();
        let has_odd_port = authority.port_u16().is_none() && authority.as_str().ends_with(':');
        if host.is_empty() || has_odd_port {
            return Err(Error::HttpRequestUriInvalid);
        }
        let port = authority
            .port_u16()
            .unwrap_or(if is_tls { 443 } else { 80 });
        Ok(Self { host, port, is_tls })
    }
}

impl Door {
    async fn send(&self, mut request: Request<WasiBody>, options: RequestOptions) -> Sent {
        let target = Target::of(request.uri())?;
        if request.method() == Method::CONNECT {
            return Err(Error::HttpRequestMethodInvalid);
        }
        self.net
            .check_host(&target.host, target.port)
            .map_err(|_| Error::HttpRequestDenied)?;
        if self.traffic.requests.fetch_add(1, Ordering::Relaxed) >= self.requests_max {
            return Err(Error::ConnectionLimitReached);
        }
        // In the request line stands the path alone, as to any server that is no proxy.
        let path = request.uri().path_and_query();
        let path = path.map_or("/", |path| path.as_str()).to_owned();
        *request.uri_mut() = path.parse().map_err(|_| Error::HttpRequestUriInvalid)?;

        let within = at_most(options.connect_timeout, CONNECT_MAX);
        let connection = timeout(within, self.connect(&target))
            .await
            .map_err(|_| Error::ConnectionTimeout)??;
        self.exchange(connection, request, &options).await
    }

    /// Opens a connection; the place it takes is given back with the response.
    async fn connect(&self, target: &Target) -> Result<Connection, Error> {
        let connections = Arc::clone(&self.connections);
        let place = connections
            .acquire_owned()
            .await
            .map_err(|_| Error::ConnectionLimitReached)?;
        let resolved = tokio::net::lookup_host((target.host.as_str(), target.port)).await;
        let resolved = resolved.map_err(|error| Error::DnsError {
            rcode: Some(error.to_string()),
            info_code: None,
        })?;
        let stream = dial(self.allowed(&target.host, resolved)?).await?;
        // Requests are small and answers are waited for.
        let _ = stream.set_nodelay(true);
        let stream: Box<dyn Stream> = match target.is_tls {
            false => Box::new(stream),
            true => {
                let name = ServerName::try_from(target.host.clone())
                    .map_err(|_| Error::HttpRequestUriInvalid)?;
                let connector = TlsConnector::from(Arc::clone(&TLS));
                let stream = connector.connect(name, stream).await.map_err(Error::Tls)?;
                Box::new(stream)
            }
        };
        let stream = Metered {
            stream,
            traffic: Arc::clone(&self.traffic),
        };
        let (sender, driver) = http1::Builder::new()
            .max_headers(FIELDS_MAX)
            .max_buf_size(self.field_bytes.max(BUFFER_BYTES_MIN))
            .handshake(TokioIo::new(stream))
            .await?;
        Ok(Connection {
            sender,
            driver,
            place,
        })
    }

    fn allowed(
        &self,
        host: &str,
        resolved: impl Iterator<Item = SocketAddr>,
    ) -> Result<Vec<SocketAddr>, Error> {
        let mut all = resolved.peekable();
        if all.peek().is_none() {
            return Err(Error::DestinationNotFound);
        }
        let allowed: Vec<_> = all
            .filter(|address| self.net.check_address(host, *address).is_ok())
            .collect();
        match allowed.is_empty() {
            true => Err(Error::DestinationIpProhibited),
            false => Ok(allowed),
        }
    }

    async fn exchange(
        &self,
        connection: Connection,
        request: Request<WasiBody>,
        options: &RequestOptions,
    ) -> Sent {
        let Connection {
            mut sender,
            mut driver,
            place,
        } = connection;
        let over = |error: hyper::Error| match () {
            () if self.traffic.is_out_over() => {
                Error::HttpRequestBodySize(Some(self.traffic.bytes_out_max))
            }
            () if self.traffic.is_in_over() => {
                Error::HttpResponseBodySize(Some(self.traffic.bytes_in_max))
            }
            () => Error::Hyper(error),
        };
        let within = at_most(options.first_byte_timeout, FIRST_BYTE_MAX);
        let mut is_driven = true;
        let answered = timeout(within, async {
            let mut sending = std::pin::pin!(sender.send_request(request));
            std::future::poll_fn(|cx| {
                if let Poll::Ready(answer) = sending.as_mut().poll(cx) {
                    return Poll::Ready(answer);
                }
                if is_driven && Pin::new(&mut driver).poll(cx).is_ready() {
                    // Its error, if any, is told to the request too.
                    is_driven = false;
                    return sending.as_mut().poll(cx);
                }
                Poll::Pending
            })
            .await
        });
        let response = answered
            .await
            .map_err(|_| Error::HttpResponseTimeout)?
            .map_err(over)?;
        let between = at_most(options.between_bytes_timeout, BETWEEN_BYTES_MAX);
        let traffic = Arc::clone(&self.traffic);
        let response = response.map(|incoming| {
            let body = Answer {
                incoming,
                between,
                silence: None,
                traffic,
                _place: place,
            };
            body.boxed_unsync()
        });
        let driver = async move {
            match is_driven {
                true => driver.await.map_err(Error::Hyper),
                false => Ok(()),
            }
        };
        Ok((response, Box::new(driver)))
    }
}

/// Dials the addresses in turn and returns the first that answers.
async fn dial(addresses: Vec<SocketAddr>) -> Result<TcpStream, Error> {
    let mut last = Error::DestinationNotFound;
    for address in addresses {
        match TcpStream::connect(address).await {
            Ok(stream) => return Ok(stream),
            Err(error) => last = Error::Connect(error),
        }
    }
    Err(last)
}

fn at_most(asked: Option<Duration>, most: Duration) -> Duration {
    asked.unwrap_or(most).min(most)
}

/// TLS by rustls with ring, trusting Mozilla's roots; made once.
static TLS: LazyLock<Arc<ClientConfig>> = LazyLock::new(|| {
    let roots = RootCertStore {
        roots: webpki_roots::TLS_SERVER_ROOTS.into(),
    };
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("ring speaks the default versions of TLS")
        .with_root_certificates(roots)
        .with_no_client_auth();
    Arc::new(config)
});

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

struct Connection {
    sender: http1::SendRequest<WasiBody>,
    driver: http1::Connection<TokioIo<Metered>, WasiBody>,
    place: OwnedSemaphorePermit,
}

/// A stream that counts, and fails once the attempt is over its limit.
struct Metered {
    stream: Box<dyn Stream>,
    traffic: Arc<Traffic>,
}

impl AsyncRead for Metered {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buffer))?;
        let read = buffer.filled().len() - before;
        Poll::Ready(self.traffic.count_in(read))
    }
}

impl AsyncWrite for Metered {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.traffic.is_out_over() {
            return Poll::Ready(self.traffic.count_out(0).map(|()| 0));
        }
        let written = ready!(Pin::new(&mut self.stream).poll_write(cx, bytes))?;
        self.traffic.count_out(written)?;
        Poll::Ready(Ok(written))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// The body of a response: ends with an error after too long a silence, and keeps its connection's
/// place until it is dropped.
struct Answer<B = hyper::body::Incoming> {
    incoming: B,
    between: Duration,
    /// Runs from when the guest asked and got nothing: while it computes, nobody is silent.
    silence: Option<Pin<Box<Sleep>>>,
    traffic: Arc<Traffic>,
    _place: OwnedSemaphorePermit,
}

impl<B: Body<Data = Bytes, Error = hyper::Error> + Unpin> Body for Answer<B> {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let this = &mut *self;
        match Pin::new(&mut this.incoming).poll_frame(cx) {
            Poll::Ready(Some(Err(_))) if this.traffic.is_in_over() => {
                let most = this.traffic.bytes_in_max;
                Poll::Ready(Some(Err(Error::HttpResponseBodySize(Some(most)))))
            }
            Poll::Ready(frame) => {
                this.silence = None;
                Poll::Ready(frame.map(|frame| frame.map_err(Error::Hyper)))
            }
            Poll::Pending => {
                let between = this.between;
                let silence = this
                    .silence
                    .get_or_insert_with(|| Box::pin(tokio::time::sleep(between)));
                ready!(silence.as_mut().poll(cx));
                this.silence = None;
                Poll::Ready(Some(Err(Error::ConnectionReadTimeout)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.is_end_stream()
    }

    fn size_hint(&self) -> http_body::SizeHint {
        self.incoming.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::{Empty, Full};
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;
    use crate::model::grant::{Grants, Policy};

    fn door(rule: &str, limits: &Limits) -> HttpDoor {
        let asked = Grants {
            net: [rule.parse().unwrap()].into(),
            ..Grants::default()
        };
        let policy = Policy {
            net: asked.net.clone(),
            ..Policy::default()
        };
        let net = Net::new(&asked, &policy, &Arc::default());
        HttpDoor::new(Arc::new(net), limits)
    }

    /// Answers every connection with the same bytes, as soon as it got some.
    async fn server(answer: &'static [u8]) -> u16 {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let mut buffer = [0; 1024];
                    let _ = stream.read(&mut buffer).await;
                    let _ = stream.write_all(answer).await;
                    let _ = stream.read(&mut buffer).await;
                });
            }
        });
        port
    }

    fn get(url: &str) -> Request<WasiBody> {
        let body = Empty::new().map_err(|never| match never {}).boxed_unsync();
        Request::get(url).body(body).unwrap()
    }

    async fn fetch(door: &mut HttpDoor, request: Request<WasiBody>) -> Result<String, Error> {
        fetch_with(door, request, RequestOptions::default()).await
    }

    async fn fetch_with(
        door: &mut HttpDoor,
        request: Request<WasiBody>,
        options: RequestOptions,
    ) -> Result<String, Error> {
        let sent = Pin::from(door.send_request(request, Some(options), Box::new(async { Ok(()) })));
        let (response, driver) = sent.await?;
        tokio::spawn(async move { Pin::from(driver).await });
        let body = response.into_body().collect().await?.to_bytes();
        Ok(String::from_utf8_lossy(&body).into_owned())
    }

    const OK: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi";

    #[tokio::test]
    async fn a_granted_host_is_reached_and_bytes_are_counted() {
        let port = server(OK).await;
        let mut door = door("localhost:*", &Limits::DEFAULT);
        let url = format!("http://localhost:{port}/path");
        assert_eq!(fetch(&mut door, get(&url)).await.unwrap(), "hi");
        let (bytes_in, bytes_out) = door.traffic().bytes();
        assert_eq!(bytes_in, OK.len() as u64);
        assert!(bytes_out > 0);
    }

    #[tokio::test]
    async fn what_is_not_granted_is_denied_before_it_is_resolved() {
        let mut door = door("localhost:1", &Limits::DEFAULT);
        for url in [
            "http://example.invalid/",
            "http://localhost/",
            "http://127.0.0.1:1/",
            "https://localhost:2/",
            "http://localhost.evil.invalid:1/",
            "http://0x7f.1:1/",
            "http://2130706433:1/",
        ] {
            let denied = fetch(&mut door, get(url)).await;
            assert!(matches!(denied, Err(Error::HttpRequestDenied)), "{url}");
        }
        assert_eq!(door.0.net.denials().take().len(), 7);
    }

    #[tokio::test]
    async fn a_public_name_for_a_private_address_is_prohibited() {
        let mut wild = door("*:*", &Limits::DEFAULT);
        for url in [
            "http://localhost:9/",
            "http://2130706433:9/",
            "http://[::ffff:127.0.0.1]:9/",
        ] {
            let prohibited = fetch(&mut wild, get(url)).await;
            let is_prohibited = matches!(prohibited, Err(Error::DestinationIpProhibited));
            assert!(is_prohibited, "{url}: {prohibited:?}");
        }
    }

    #[test]
    fn a_target_is_read_in_one_way_only() {
        let target = |url: &str| {
            url.parse::<Uri>()
                .ok()
                .and_then(|uri| Target::of(&uri).ok())
        };
        let plain = |host: &str, port, is_tls| {
            let host = host.to_owned();
            Some(Target { host, port, is_tls })
        };
        assert_eq!(target("http://A.org/x"), plain("a.org", 80, false));
        assert_eq!(target("https://a.org"), plain("a.org", 443, true));
        assert_eq!(target("https://[::1]:8/"), plain("::1", 8, true));
        for url in [
            "http://a.org@b.org/",
            "http://a.org:80@b.org/",
            "ftp://a.org/",
            "/path",
            "http://a.org:/",
        ] {
            assert_eq!(target(url), None, "{url}");
        }
    }

    #[tokio::test]
    async fn limits_of_bytes_and_requests_hold() {
        let long = b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n0123456789012345678901234567890123456789012345678901234567890123456789012345678901234567890123456789";
        let port = server(long).await;
        let url = format!("http://localhost:{port}/");
        let small = Limits {
            http_bytes_in: 100,
            http_requests: 2,
            ..Limits::DEFAULT
        };
        let mut narrow = door("localhost:*", &small);
        let over = fetch(&mut narrow, get(&url)).await;
        assert!(
            matches!(over, Err(Error::HttpResponseBodySize(Some(100)))),
            "{over:?}"
        );

        let small = Limits {
            http_bytes_out: 1_000,
            http_requests: 1,
            ..Limits::DEFAULT
        };
        let mut narrow = door("localhost:*", &small);
        let body = Full::new(Bytes::from(vec![0; 100_000]));
        let body = body.map_err(|never| match never {}).boxed_unsync();
        let post = Request::post(&url).body(body).unwrap();
        assert!(fetch(&mut narrow, post).await.is_err());
        let refused = fetch(&mut narrow, get(&url)).await;
        assert!(
            matches!(refused, Err(Error::ConnectionLimitReached)),
            "{refused:?}"
        );
    }

    /// A body that answers each poll with the next of these, a chunk or nothing yet.
    struct Steps(std::vec::IntoIter<bool>);

    impl Body for Steps {
        type Data = Bytes;
        type Error = hyper::Error;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
            match self.0.next() {
                Some(true) => Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(b"x"))))),
                Some(false) => Poll::Pending,
                None => Poll::Ready(None),
            }
        }
    }

    #[tokio::test]
    async fn silence_is_counted_only_while_the_guest_waits() {
        let connections = Arc::new(Semaphore::new(1));
        let mut answer = Answer {
            incoming: Steps(vec![true, false, true, true, false, false].into_iter()),
            between: Duration::from_millis(1),
            silence: None,
            traffic: Arc::clone(&door("a.org:1", &Limits::DEFAULT).0.traffic),
            _place: connections.acquire_owned().await.unwrap(),
        };
        let poll = |answer: &mut Answer<Steps>| {
            let mut cx = Context::from_waker(std::task::Waker::noop());
            let polled = Pin::new(&mut *answer)
                .poll_frame(&mut cx)
                .map(Option::unwrap);
            (polled.map(|frame| frame.is_ok()), answer.silence.is_some())
        };
        // Read at once: however long the guest computes now, nobody is silent.
        assert_eq!(poll(&mut answer), (Poll::Ready(true), false));
        assert_eq!(poll(&mut answer), (Poll::Pending, true));
        // It came while the guest did something else, and too late for a clock that went on.
        answer.silence.as_mut().unwrap().as_mut().await;
        assert_eq!(poll(&mut answer), (Poll::Ready(true), false));
        assert_eq!(poll(&mut answer), (Poll::Ready(true), false));
        assert_eq!(poll(&mut answer), (Poll::Pending, true));
        answer.silence.as_mut().unwrap().as_mut().await;
        assert!(matches!(answer.frame().await, Some(Err(_))));
    }

    #[tokio::test]
    async fn a_guest_can_only_shorten_timeouts_and_zero_does_not_panic() {
        assert_eq!(at_most(None, CONNECT_MAX), CONNECT_MAX);
        assert_eq!(at_most(Some(Duration::MAX), CONNECT_MAX), CONNECT_MAX);
        let port = server(b"").await;
        let mut door = door("localhost:*", &Limits::DEFAULT);
        let url = format!("http://localhost:{port}/");
        let options = RequestOptions {
            first_byte_timeout: Some(Duration::from_millis(20)),
            between_bytes_timeout: Some(Duration::ZERO),
            ..RequestOptions::default()
        };
        let late = fetch_with(&mut door, get(&url), options).await;
        assert!(matches!(late, Err(Error::HttpResponseTimeout)), "{late:?}");
    }
}
