//! Listening: connections in, requests to the router, an orderly end.
//!
//! Own loop and not `axum::serve`, which gives hyper no timer: without one a client that never ends
//! its headers keeps a connection for ever.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;

/// How long the headers of a request may take to come; also how long a connection may rest.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// How long requests under way may take to end when the server goes down.
const END_TIMEOUT: Duration = Duration::from_secs(5);
/// Most connections at one time; who comes then waits to be let in.
const CONNECTIONS_MAX: usize = 4_096;
/// How long to wait when the system has no descriptor left.
const FULL_PAUSE: Duration = Duration::from_millis(100);

/// Opens a port.
pub(super) async fn open(listen: SocketAddr) -> std::io::Result<TcpListener> {
    TcpListener::bind(listen).await
}

/// Serves until the server goes down.
pub(super) async fn serve(listener: TcpListener, router: Router, closing: watch::Receiver<bool>) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut connections = JoinSet::new();
    let mut end = closing.clone();
    loop {
        let Ok(place) = places.clone().acquire_owned().await else {
            break;
        };
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = end.wait_for(|is_closing| *is_closing) => break,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(FULL_PAUSE).await;
                continue;
            }
        };
        let (router, closing) = (router.clone(), closing.clone());
        connections.spawn(async move {
            converse(stream, router, closing).await;
            drop(place);
        });
        while connections.try_join_next().is_some() {}
    }
    drop(listener);
    let ended = async { while connections.join_next().await.is_some() {} };
    drop(tokio::time::timeout(END_TIMEOUT, ended).await);
}

async fn converse(stream: TcpStream, router: Router, mut closing: watch::Receiver<bool>) {
    // Answers are small and awaited; what cannot be set is no reason to refuse.
    drop(stream.set_nodelay(true));
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    let mut connection = std::pin::pin!(connection);
    // Without the guard that `wait_for` answers with, which must not be held while waiting.
    let closed = async { drop(closing.wait_for(|is_closing| *is_closing).await) };
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = closed => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection ended badly");
    }
}
