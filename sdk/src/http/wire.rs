//! Carries a request over `wasi:http` and reads the answer. Called by `http` on wasm32 only.

use super::{Error, Request, Response, Url};
use crate::bindings::wasi::http::outgoing_handler;
use crate::bindings::wasi::http::types::{
    ErrorCode, Fields, IncomingResponse, Method, OutgoingBody, OutgoingRequest, RequestOptions,
    Scheme,
};
use crate::bindings::wasi::io::streams::StreamError;
use crate::text::joined;

/// What one write may hold, by the contract of `blocking-write-and-flush`.
const WRITE_BYTES_MAX: usize = 4096;
/// How much is asked for at a time.
const READ_BYTES: u64 = 64 * 1024;

pub(super) fn send(request: &Request) -> Result<Response, Error> {
    let url = Url::parse(&request.url)?;
    let outgoing = outgoing(request, &url)?;
    let body = outgoing
        .body()
        .map_err(|()| failed("the request has no body"))?;
    let answer = outgoing_handler::handle(outgoing, Some(options(request)))
        .map_err(|code| explain(code, &url))?;
    write(body, &request.body, &url)?;
    answer.subscribe().block();
    let response = answer
        .get()
        .ok_or_else(|| failed("the host has no answer"))?
        .map_err(|()| failed("the answer was taken twice"))?
        .map_err(|code| explain(code, &url))?;
    read(&response)
}

fn outgoing(request: &Request, url: &Url<'_>) -> Result<OutgoingRequest, Error> {
    let headers = Fields::new();
    for (name, value) in &request.headers {
        headers
            .append(name, value.as_bytes())
            .map_err(|_| Error::Invalid(joined(&["the host refuses the header `", name, "`"])))?;
    }
    if !request.body.is_empty() {
        // A length keeps servers happy that cannot read chunks.
        let length = request.body.len().to_string();
        headers
            .set("content-length", &[length.into_bytes()])
            .map_err(|_| {
                Error::Invalid("the host refuses the header `content-length`".to_string())
            })?;
    }
    let outgoing = OutgoingRequest::new(headers);
    let path = match url.path {
        path if path.starts_with('/') => path.to_string(),
        query => joined(&["/", query]),
    };
    let wrong = |()| Error::Invalid(joined(&["the host refuses `", &request.url, "`"]));
    outgoing
        .set_method(&method(&request.method))
        .map_err(wrong)?;
    outgoing
        .set_scheme(Some(if url.is_https {
            &Scheme::Https
        } else {
            &Scheme::Http
        }))
        .map_err(wrong)?;
    outgoing.set_authority(Some(url.authority)).map_err(wrong)?;
    outgoing.set_path_with_query(Some(&path)).map_err(wrong)?;
    Ok(outgoing)
}

fn method(name: &str) -> Method {
    match name {
        "GET" => Method::Get,
        "HEAD" => Method::Head,
        "POST" => Method::Post,
        "PUT" => Method::Put,
        "DELETE" => Method::Delete,
        "OPTIONS" => Method::Options,
        "PATCH" => Method::Patch,
        other => Method::Other(other.to_string()),
    }
}

fn options(request: &Request) -> RequestOptions {
    let options = RequestOptions::new();
    if let Some(timeout) = request.timeout {
        let nanos = u64::try_from(timeout.as_nanos()).unwrap_or(u64::MAX);
        // A host that knows no such option keeps its own bounds, which are shorter than for ever.
        let _ = options.set_connect_timeout(Some(nanos));
        let _ = options.set_first_byte_timeout(Some(nanos));
        let _ = options.set_between_bytes_timeout(Some(nanos));
    }
    options
}

fn write(body: OutgoingBody, bytes: &[u8], url: &Url<'_>) -> Result<(), Error> {
    if !bytes.is_empty() {
        let stream = body
            .write()
            .map_err(|()| failed("the request has no body"))?;
        for chunk in bytes.chunks(WRITE_BYTES_MAX) {
            match stream.blocking_write_and_flush(chunk) {
                Ok(()) => {}
                // The other side stopped reading; what it answers says why.
                Err(StreamError::Closed) => return Ok(()),
                Err(StreamError::LastOperationFailed(error)) => {
                    return Err(failed(&error.to_debug_string()));
                }
            }
        }
    }
    OutgoingBody::finish(body, None).map_err(|code| explain(code, url))
}

fn read(response: &IncomingResponse) -> Result<Response, Error> {
    let mut answer = Response::new(response.status(), Vec::new());
    for (name, value) in response.headers().entries() {
        answer
            .headers
            .push((name, String::from_utf8_lossy(&value).into_owned()));
    }
    let body = response
        .consume()
        .map_err(|()| failed("the answer was taken twice"))?;
    let stream = body
        .stream()
        .map_err(|()| failed("the answer was taken twice"))?;
    loop {
        match stream.blocking_read(READ_BYTES) {
            Ok(bytes) => answer.body.extend_from_slice(&bytes),
            Err(StreamError::Closed) => return Ok(answer),
            Err(StreamError::LastOperationFailed(error)) => {
                return Err(failed(&error.to_debug_string()));
            }
        }
    }
}

fn explain(code: ErrorCode, url: &Url<'_>) -> Error {
    let to = with_port(url);
    match code {
        ErrorCode::HttpRequestDenied | ErrorCode::DestinationIpProhibited => {
            // What would allow it, the host keeps beside the attempt.
            Error::Denied(joined(&["connecting to ", &to, " is not granted"]))
        }
        ErrorCode::ConnectionTimeout
        | ErrorCode::ConnectionReadTimeout
        | ErrorCode::ConnectionWriteTimeout
        | ErrorCode::HttpResponseTimeout
        | ErrorCode::DnsTimeout => Error::Timeout(to),
        ErrorCode::ConnectionRefused => Error::Failed(joined(&[&to, " refused the connection"])),
        ErrorCode::DnsError(_) => Error::Failed(joined(&["cannot find ", &to])),
        ErrorCode::InternalError(Some(text)) => Error::Failed(joined(&[&to, ": ", &text])),
        other => Error::Failed(joined(&[&to, ": ", &other.to_string()])),
    }
}

fn with_port(url: &Url<'_>) -> String {
    let after_host = url.authority.rsplit(']').next().unwrap_or_default();
    if after_host.contains(':') {
        return url.authority.to_string();
    }
    joined(&[url.authority, if url.is_https { ":443" } else { ":80" }])
}

fn failed(what: &str) -> Error {
    Error::Failed(what.to_string())
}
