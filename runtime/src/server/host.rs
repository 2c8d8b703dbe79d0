//! By which names the server may be called.
//!
//! A page of somebody else can make its own name point to this machine and so reach a server on
//! loopback with the browser's help; it cannot change the name that the browser sends. An address
//! in place of a name cannot be made to point elsewhere, so addresses are taken.

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http::header::HOST;

use super::app::App;
use super::error::{ApiError, Code};

/// Refuses requests that call the server by a name it does not go by.
pub(super) async fn check(State(app): State<App>, request: Request, next: Next) -> Response {
    let header = request.headers().get(HOST);
    let header = header.and_then(|value| value.to_str().ok());
    let name = request
        .uri()
        .authority()
        .map(http::uri::Authority::as_str)
        .or(header);
    if name.is_some_and(|name| is_own(name, &app.hosts)) {
        return next.run(request).await;
    }
    let shown: String = name.unwrap_or("").escape_default().take(150).collect();
    ApiError::new(
        Code::HostWrong,
        format!("the server does not go by the name `{shown}`"),
    )
    .hint(format!("waft server start --host {shown}"))
    .into_response()
}

fn is_own(authority: &str, hosts: &[String]) -> bool {
    let host = match authority
        .strip_prefix('[')
        .and_then(|rest| rest.split_once(']'))
    {
        Some((address, _)) => return address.parse::<std::net::Ipv6Addr>().is_ok(),
        None => authority
            .rsplit_once(':')
            .map_or(authority, |(host, _)| host),
    };
    host.eq_ignore_ascii_case("localhost")
        || host.parse::<std::net::Ipv4Addr>().is_ok()
        || hosts.iter().any(|own| own.eq_ignore_ascii_case(host))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_strangers_are_refused() {
        let hosts = ["waft.example.org".to_owned()];
        for own in [
            "localhost:4280",
            "LOCALHOST",
            "127.0.0.1:1",
            "[::1]:4280",
            "10.0.0.1",
            "waft.example.org:80",
        ] {
            assert!(is_own(own, &hosts), "{own}");
        }
        for other in [
            "",
            "evil.example",
            "localhost.evil.example:4280",
            "[x]",
            "127.0.0.1.nip.io",
            "a@localhost.x",
        ] {
            assert!(!is_own(other, &hosts), "{other}");
        }
    }
}
