//! What lies between an agent and its server, and fails: it passes bytes on, keeps them back, loses them, or
//! closes half of a connection.

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// What happens to bytes on their way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Weather {
    /// They arrive.
    Clear,
    /// They arrive once it is clear again, even if whoever sent them has given up by then.
    Late,
    /// What is asked arrives, what is answered does not.
    Mute,
    /// Connections are closed as soon as a byte comes.
    Cut,
    /// Who asks is told that nothing more follows, at the first byte of an answer.
    HalfClosed,
}

/// A way to a server.
pub(crate) struct Proxy {
    address: SocketAddr,
    server: Arc<watch::Sender<SocketAddr>>,
    weather: Arc<watch::Sender<Weather>>,
    listener: JoinHandle<()>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    Ask,
    Answer,
}

impl Proxy {
    /// Opens a way to a server.
    pub(crate) async fn open(server: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let weather = Arc::new(watch::Sender::new(Weather::Clear));
        let own = weather.clone();
        let server = Arc::new(watch::Sender::new(server));
        let leads_to = server.subscribe();
        let listener = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let weather = own.clone();
                let server = *leads_to.borrow();
                tokio::spawn(async move {
                    // While the server is dead nobody answers here either.
                    if let Ok(server) = TcpStream::connect(server).await {
                        let (asks, answers) = (client.into_split(), server.into_split());
                        let weather = weather.subscribe();
                        let there = pass(asks.0, answers.1, Way::Ask, weather.clone());
                        let back = pass(answers.0, asks.1, Way::Answer, weather);
                        tokio::join!(there, back);
                    }
                });
            }
        });
        Self {
            address,
            server,
            weather,
            listener,
        }
    }

    /// Returns where it is entered.
    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Leads whoever comes from now on to another server.
    pub(crate) fn leads_to(&self, server: SocketAddr) {
        self.server.send_replace(server);
    }

    /// Lets the weather change, for connections that are open too.
    pub(crate) fn turns(&self, weather: Weather) {
        self.weather.send_replace(weather);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.listener.abort();
    }
}

/// Passes bytes on one way until their end.
async fn pass(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    way: Way,
    mut weather: watch::Receiver<Weather>,
) {
    let mut bytes = vec![0; 64 * 1024];
    loop {
        let count = from.read(&mut bytes).await.unwrap_or_default();
        let now = *weather.borrow();
        match (now, way) {
            (Weather::Late, _) => {
                // Whoever changes the weather outlives the storm, or there is nobody to write to.
                let _ = weather.wait_for(|now| *now != Weather::Late).await;
            }
            (Weather::Mute, Way::Answer) if count > 0 => continue,
            (Weather::Cut, _) | (Weather::HalfClosed, Way::Answer) => return,
            _ => {}
        }
        if count == 0 || to.write_all(&bytes[..count]).await.is_err() {
            return;
        }
    }
}
