//! The door for raw sockets: name lookup, creation, and the check of each address.
//!
//! Sockets are linked for every guest, since every language's libc imports them, and denied unless
//! granted. Two interfaces of WASI are answered here instead of by wasmtime-wasi, so that a name is
//! looked up only if a grant speaks of it, and so that the attempt knows which addresses the name
//! stands for; both hand on to wasmtime-wasi once they said yes. Listening is never granted.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;

use wasmtime::component::{HasData, Resource};
use wasmtime_wasi::p2::bindings::sockets::ip_name_lookup::{self, ResolveAddressStream};
use wasmtime_wasi::p2::bindings::sockets::network::{
    self, ErrorCode, IpAddress, IpAddressFamily, Network,
};
use wasmtime_wasi::p2::bindings::sockets::tcp_create_socket;
use wasmtime_wasi::p2::{DynPollable, SocketError, TcpSocket};
use wasmtime_wasi::sockets::{SocketAddrUse, WasiSocketsCtxView};

use super::net::Net;

/// Names by the stream on which their addresses arrive.
pub(crate) type Lookups = HashMap<u32, String>;

/// What answers the two interfaces: wasmtime-wasi's view, and the rules.
pub(crate) struct Sockets<'a> {
    pub(crate) wasi: WasiSocketsCtxView<'a>,
    pub(crate) net: &'a Net,
    pub(crate) lookups: &'a mut Lookups,
}

/// Stands for [`Sockets`] where the linker wants a type without a lifetime.
pub(crate) struct HasSockets;

impl HasData for HasSockets {
    type Data<'a> = Sockets<'a>;
}

impl tcp_create_socket::Host for Sockets<'_> {
    fn create_tcp_socket(
        &mut self,
        family: IpAddressFamily,
    ) -> Result<Resource<TcpSocket>, SocketError> {
        if self.net.is_closed() {
            // A socket is a descriptor of the agent; a task that may not use one gets none.
            self.net.denials().record(
                "opening a TCP socket was not granted; ask for it in the task, #[task(net = [\"HOST:PORT\"])], and allow it: --allow-net HOST:PORT"
                    .to_owned(),
            );
            return Err(ErrorCode::AccessDenied.into());
        }
        self.wasi.create_tcp_socket(family)
    }
}

impl ip_name_lookup::Host for Sockets<'_> {
    fn resolve_addresses(
        &mut self,
        network: Resource<Network>,
        name: String,
    ) -> Result<Resource<ResolveAddressStream>, SocketError> {
        if self.net.check_lookup(&name).is_err() {
            return Err(ErrorCode::AccessDenied.into());
        }
        let stream = self.wasi.resolve_addresses(network, name.clone())?;
        self.lookups.insert(stream.rep(), name);
        Ok(stream)
    }
}

impl ip_name_lookup::HostResolveAddressStream for Sockets<'_> {
    fn resolve_next_address(
        &mut self,
        stream: Resource<ResolveAddressStream>,
    ) -> Result<Option<IpAddress>, SocketError> {
        let rep = stream.rep();
        let next = self.wasi.resolve_next_address(stream)?;
        if let (Some(address), Some(name)) = (&next, self.lookups.get(&rep)) {
            self.net.resolved(name, to_std(*address));
        }
        Ok(next)
    }

    fn subscribe(
        &mut self,
        stream: Resource<ResolveAddressStream>,
    ) -> wasmtime::Result<Resource<DynPollable>> {
        self.wasi.subscribe(stream)
    }

    fn drop(&mut self, stream: Resource<ResolveAddressStream>) -> wasmtime::Result<()> {
        self.lookups.remove(&stream.rep());
        ip_name_lookup::HostResolveAddressStream::drop(&mut self.wasi, stream)
    }
}

impl network::Host for Sockets<'_> {
    fn convert_error_code(&mut self, error: SocketError) -> wasmtime::Result<ErrorCode> {
        self.wasi.convert_error_code(error)
    }

    fn network_error_code(
        &mut self,
        error: Resource<wasmtime::Error>,
    ) -> wasmtime::Result<Option<ErrorCode>> {
        self.wasi.network_error_code(error)
    }
}

impl network::HostNetwork for Sockets<'_> {
    fn drop(&mut self, network: Resource<Network>) -> wasmtime::Result<()> {
        network::HostNetwork::drop(&mut self.wasi, network)
    }
}

fn to_std(address: IpAddress) -> IpAddr {
    match address {
        IpAddress::Ipv4((a, b, c, d)) => IpAddr::from([a, b, c, d]),
        IpAddress::Ipv6((a, b, c, d, e, f, g, h)) => IpAddr::from([a, b, c, d, e, f, g, h]),
    }
}

type Answer = Pin<Box<dyn Future<Output = bool> + Send + Sync>>;

/// Returns the check that wasmtime-wasi asks before each use of an address.
pub(crate) fn address_check(
    net: Arc<Net>,
) -> impl Fn(SocketAddr, SocketAddrUse) -> Answer + Send + Sync + 'static {
    move |address, purpose| {
        let answer = is_allowed(&net, address, purpose);
        Box::pin(std::future::ready(answer))
    }
}

fn is_allowed(net: &Net, address: SocketAddr, purpose: SocketAddrUse) -> bool {
    match purpose {
        SocketAddrUse::TcpConnect | SocketAddrUse::UdpSend | SocketAddrUse::UdpReceive => {
            net.check_socket(address).is_ok()
        }
        // What the system does by itself before it connects; a port of the guest's choice is a
        // server.
        SocketAddrUse::TcpBind | SocketAddrUse::UdpBind => {
            !net.is_closed() && address.ip().is_unspecified() && address.port() == 0
        }
        SocketAddrUse::TcpListen | SocketAddrUse::TcpAccept => {
            let denial = "listening on a socket is never granted".to_owned();
            net.denials().record(denial);
            false
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::grant::{Grants, Policy};

    fn net(rule: &str) -> Net {
        let asked = Grants {
            net: [rule.parse().unwrap()].into(),
            ..Grants::default()
        };
        let policy = Policy {
            net: asked.net.clone(),
            ..Policy::default()
        };
        Net::new(&asked, &policy, &Arc::default())
    }

    #[test]
    fn a_socket_may_connect_where_granted_and_never_listens() {
        use SocketAddrUse::{TcpBind, TcpConnect, TcpListen, UdpBind, UdpSend};
        let (open, closed) = (net("127.0.0.1:80"), Net::default());
        let table = [
            (TcpConnect, "127.0.0.1:80", true),
            (TcpConnect, "127.0.0.1:81", false),
            (TcpConnect, "8.8.8.8:80", false),
            (UdpSend, "127.0.0.1:80", true),
            (TcpBind, "0.0.0.0:0", true),
            (TcpBind, "0.0.0.0:80", false),
            (TcpBind, "127.0.0.1:0", false),
            (UdpBind, "[::]:0", true),
            (TcpListen, "0.0.0.0:0", false),
        ];
        for (purpose, address, expected) in table {
            let address = address.parse().unwrap();
            assert_eq!(is_allowed(&open, address, purpose), expected, "{address}");
            assert!(!is_allowed(&closed, address, purpose), "{address}");
        }
        assert!(!closed.denials().take().is_empty());
    }
}
