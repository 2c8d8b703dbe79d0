//! The network's rules: which hosts and which addresses an attempt may reach.
//!
//! Both doors ask here, the hook for outgoing HTTP (`http.rs`) and the socket check with its name
//! lookup (`socket.rs`). A *host* must be granted by its name; the *address* behind it must be
//! public, unless the agent's configuration names it. What is denied is recorded with the line that
//! would allow it.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};

use crate::model::grant::{Grants, NetRule, Policy};

/// Most denials kept of one attempt: they tell a human what is missing, and a guest can ask forever.
const DENIALS_MAX: usize = 32;
/// Most addresses remembered of the names that a guest looked up.
const NAMES_MAX: usize = 4_096;
/// Addresses that look public and answer with a machine's own credentials or settings.
const METADATA: [Ipv4Addr; 2] = [
    Ipv4Addr::new(168, 63, 129, 16),
    Ipv4Addr::new(100, 100, 100, 200),
];
/// Endings of names that the public DNS does not answer, so that no stranger can point them.
const LOCAL_ENDINGS: [&str; 6] = [
    ".localhost",
    ".local",
    ".internal",
    ".lan",
    ".home.arpa",
    ".test",
];

/// What an attempt asked for and did not get, each once, with the line that would allow it.
#[derive(Debug, Default)]
pub(crate) struct Denials(Mutex<Vec<String>>);

impl Denials {
    pub(crate) fn record(&self, denial: String) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if all.len() < DENIALS_MAX && !all.contains(&denial) {
            all.push(denial);
        }
    }

    pub(crate) fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// What one attempt may reach.
#[derive(Debug, Default)]
pub(crate) struct Net {
    /// What the task asked for, granted or not; decides which line would help.
    asked: Vec<NetRule>,
    /// What it asked for and the agent allows.
    granted: Vec<NetRule>,
    /// Rules of the agent that name one host or address.
    exact: Vec<NetRule>,
    denials: Arc<Denials>,
    /// Names that the guest looked up, by what they resolved to: a socket knows addresses only.
    names: Mutex<HashMap<IpAddr, Vec<String>>>,
}

/// Says that an attempt must not reach something; the denial is recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Denied;

impl Net {
    pub(crate) fn new(asked: &Grants, policy: &Policy, denials: &Arc<Denials>) -> Self {
        let denials = Arc::clone(denials);
        if asked.net.is_empty() {
            return Self {
                denials,
                ..Self::default()
            };
        }
        let granted = asked.net.iter().filter(|rule| policy.allows_net(rule));
        let exact = policy.net.iter().filter(|rule| rule.is_exact_host());
        Self {
            asked: asked.net.iter().cloned().collect(),
            granted: granted.cloned().collect(),
            exact: exact.cloned().collect(),
            denials,
            names: Mutex::default(),
        }
    }

    /// Tells whether nothing at all may be reached.
    pub(crate) fn is_closed(&self) -> bool {
        self.granted.is_empty()
    }

    pub(crate) fn denials(&self) -> &Denials {
        &self.denials
    }

    /// Checks that a host may be connected to by this name.
    pub(crate) fn check_host(&self, host: &str, port: u16) -> Result<(), Denied> {
        if self.granted.iter().any(|rule| rule.allows(host, port)) {
            return Ok(());
        }
        self.deny(&[host.to_owned()], port);
        Err(Denied)
    }

    /// Checks that a name may be looked up: one that some grant speaks of.
    pub(crate) fn check_lookup(&self, name: &str) -> Result<(), Denied> {
        if self.granted.iter().any(|rule| rule.allows_host(name)) {
            return Ok(());
        }
        let name = shown(name);
        self.denials.record(format!(
            "looking up `{name}` was not granted; ask for it in the task, #[task(net = [\"{name}:PORT\"])], and allow it: --allow-net {name}:PORT"
        ));
        Err(Denied)
    }

    /// Remembers what a name was resolved to, for the sockets that will be connected to it.
    pub(crate) fn resolved(&self, name: &str, address: IpAddr) {
        let mut names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        if names.len() >= NAMES_MAX {
            return;
        }
        let known = names.entry(address.to_canonical()).or_default();
        if !known.iter().any(|own| own == name) {
            known.push(name.to_owned());
        }
    }

    /// Checks that the address behind a granted host may be dialled.
    pub(crate) fn check_address(&self, host: &str, address: SocketAddr) -> Result<(), Denied> {
        if self.is_address_allowed(host, address) {
            return Ok(());
        }
        let (ip, port) = (address.ip().to_canonical(), address.port());
        let line = SocketAddr::new(ip, port);
        let text = ip.to_string();
        let ask = match self.asked.iter().any(|rule| rule.allows(&text, port)) {
            true => String::new(),
            false => format!("ask for it in the task, #[task(net = [\"{line}\"])], and "),
        };
        self.denials.record(format!(
            "`{}` is {ip}, which is not a public address; {ask}allow it by name: --allow-net {line}",
            shown(host)
        ));
        Err(Denied)
    }

    fn is_address_allowed(&self, host: &str, address: SocketAddr) -> bool {
        let (ip, port) = (address.ip().to_canonical(), address.port());
        let text = ip.to_string();
        let allows =
            |rules: &[NetRule], host: &str| rules.iter().any(|rule| rule.allows(host, port));
        is_public(ip)
            // Named by the agent for those who ask for it, not for every name that points there.
            || (allows(&self.exact, &text) && allows(&self.granted, &text))
            || (is_local_name(host)
                && is_private(ip)
                && allows(&self.exact, host))
    }

    /// Checks that a socket may be connected to an address: by itself, or by a name that the guest
    /// looked up and that resolved to it.
    pub(crate) fn check_socket(&self, address: SocketAddr) -> Result<(), Denied> {
        let ip = address.ip().to_canonical();
        let mut hosts = vec![ip.to_string()];
        let names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        hosts.extend(names.get(&ip).into_iter().flatten().cloned());
        drop(names);
        let allows = |host: &&String| {
            let port = address.port();
            self.granted.iter().any(|rule| rule.allows(host, port))
        };
        match hosts.iter().rev().find(allows) {
            Some(host) => self.check_address(host, address),
            None => {
                self.deny(&hosts, address.port());
                Err(Denied)
            }
        }
    }

    fn deny(&self, hosts: &[String], port: u16) {
        // The name says more than the address that it resolved to.
        let host = hosts.last().map_or("", String::as_str);
        let line = match host.contains(':') {
            true => format!("[{}]:{port}", shown(host)),
            false => format!("{}:{port}", shown(host)),
        };
        let is_asked = self.asked.iter().any(|rule| rule.allows(host, port));
        self.denials.record(match is_asked {
            true => format!(
                "connecting to `{line}` is not allowed by this agent; allow it: --allow-net {line}"
            ),
            false => format!(
                "connecting to `{line}` was not granted; ask for it in the task, #[task(net = [\"{line}\"])], and allow it: --allow-net {line}"
            ),
        });
    }
}

/// A name as it may stand in a message: guests choose it.
fn shown(host: &str) -> String {
    host.escape_default().take(300).collect()
}

fn is_local_name(host: &str) -> bool {
    let host = host.trim_end_matches('.').to_ascii_lowercase();
    !host.contains('.') || LOCAL_ENDINGS.iter().any(|ending| host.ends_with(ending))
}

/// Tells loopback and the private ranges from what is never meant by a name, such as the link-local
/// range of metadata services.
fn is_private(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.is_private() || ip.is_loopback(),
        IpAddr::V6(ip) => ip.is_loopback() || ip.is_unique_local(),
    }
}

/// Tells whether an address belongs to the public internet.
///
/// Anything that is set aside for another purpose is not, in whatever form it is written: mapped
/// into IPv6, or tunnelled through 6to4, Teredo or NAT64.
fn is_public(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => is_public_v4(ip),
        IpAddr::V6(ip) => is_public_v6(ip),
    }
}

fn is_public_v4(ip: Ipv4Addr) -> bool {
    let [a, b, c, _] = ip.octets();
    let is_set_aside = matches!(
        (a, b, c),
        (0 | 10 | 127, _, _)
            | (100, 64..=127, _)
            | (169, 254, _)
            | (172, 16..=31, _)
            | (192, 0, 0 | 2)
            | (192, 88, 99)
            | (192, 168, _)
            | (198, 18 | 19, _)
            | (198, 51, 100)
            | (203, 0, 113)
            | (224.., _, _)
    );
    !is_set_aside && !METADATA.contains(&ip)
}

fn is_public_v6(ip: Ipv6Addr) -> bool {
    let segments = ip.segments();
    let last = |high: u16, low: u16| {
        let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
        is_public_v4(Ipv4Addr::new(a, b, c, d))
    };
    match segments {
        // IPv4-mapped, and NAT64 by its well-known prefix: as public as what they stand for.
        [0, 0, 0, 0, 0, 0xffff, high, low] | [0x64, 0xff9b, 0, 0, 0, 0, high, low] => {
            last(high, low)
        }
        // 2001::/23 (Teredo among others), documentation, 6to4.
        [0x2001, 0..=0x1ff, ..] | [0x2001, 0x0db8, ..] | [0x2002, ..] => false,
        [0x3fff, 0..=0xfff, ..] => false,
        [first, ..] => first & 0xe000 == 0x2000,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(asked: &[&str], allowed: &[&str]) -> Net {
        let rules = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect();
        let asked = Grants {
            net: rules(asked),
            ..Grants::default()
        };
        let policy = Policy {
            net: rules(allowed),
            ..Policy::default()
        };
        Net::new(&asked, &policy, &Arc::default())
    }

    #[test]
    fn only_public_addresses_are_public() {
        let public = [
            "1.1.1.1",
            "8.8.8.8",
            "9.255.255.255",
            "11.0.0.0",
            "100.63.255.255",
            "100.128.0.0",
            "172.15.255.255",
            "172.32.0.0",
            "192.0.1.1",
            "193.0.0.0",
            "198.17.0.1",
            "198.20.0.1",
            "223.255.255.255",
            "2606:4700::1111",
            "2a00:1450::1",
            "::ffff:8.8.8.8",
            "64:ff9b::808:808",
        ];
        let not_public = [
            "0.0.0.0",
            "0.1.2.3",
            "10.0.0.1",
            "100.64.0.1",
            "100.100.100.200",
            "100.127.255.255",
            "127.0.0.1",
            "127.255.255.254",
            "169.254.169.254",
            "168.63.129.16",
            "172.16.0.1",
            "172.31.255.255",
            "192.0.0.192",
            "192.0.2.1",
            "192.88.99.1",
            "192.168.1.1",
            "198.18.0.1",
            "198.19.255.255",
            "198.51.100.7",
            "203.0.113.9",
            "224.0.0.1",
            "239.255.255.255",
            "240.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::7f00:1",
            "::ffff:127.0.0.1",
            "::ffff:169.254.169.254",
            "::ffff:10.0.0.1",
            "64:ff9b::7f00:1",
            "64:ff9b::a9fe:a9fe",
            "64:ff9b:1::1",
            "100::1",
            "2001::1",
            "2001:10::1",
            "2001:20::1",
            "2001:db8::1",
            "2002:7f00:1::",
            "2002:808:808::",
            "3fff::1",
            "5f00::1",
            "fc00::1",
            "fd00:ec2::254",
            "fe80::1",
            "fec0::1",
            "ff02::1",
        ];
        for text in public {
            assert!(is_public(text.parse().unwrap()), "{text}");
        }
        for text in not_public {
            assert!(!is_public(text.parse().unwrap()), "{text}");
        }
    }

    #[test]
    fn an_address_that_is_not_public_must_be_named_by_the_agent() {
        let table = [
            // asked, allowed, host, address, reached
            ("a.org:80", "a.org:80", "a.org", "8.8.8.8:80", true),
            ("a.org:80", "*:*", "a.org", "8.8.8.8:80", true),
            ("a.org:80", "a.org:80", "a.org", "127.0.0.1:80", false),
            ("a.org:80", "a.org:80", "a.org", "169.254.169.254:80", false),
            ("*:*", "*:*", "localhost", "127.0.0.1:80", false),
            ("localhost:80", "*:*", "localhost", "127.0.0.1:80", false),
            (
                "localhost:80",
                "localhost:80",
                "localhost",
                "127.0.0.1:80",
                true,
            ),
            (
                "localhost:80",
                "localhost:80",
                "localhost",
                "[::1]:80",
                true,
            ),
            (
                "localhost:80",
                "localhost:81",
                "localhost",
                "127.0.0.1:80",
                false,
            ),
            (
                "db.internal:5",
                "db.internal:5",
                "db.internal",
                "10.1.2.3:5",
                true,
            ),
            (
                "db.internal:5",
                "db.internal:5",
                "db.internal",
                "169.254.169.254:5",
                false,
            ),
            (
                "127.0.0.1:9",
                "127.0.0.1:*",
                "127.0.0.1",
                "127.0.0.1:9",
                true,
            ),
            (
                "127.0.0.1:9",
                "127.0.0.1:*",
                "127.0.0.1",
                "[::ffff:127.0.0.1]:9",
                true,
            ),
            (
                "169.254.169.254:80",
                "169.254.169.254:80",
                "169.254.169.254",
                "169.254.169.254:80",
                true,
            ),
        ];
        for (asked, allowed, host, address, expected) in table {
            let net = net(&[asked], &[allowed]);
            let reached = net.check_address(host, address.parse().unwrap()).is_ok();
            assert_eq!(reached, expected, "{asked} {allowed} {host} {address}");
        }
    }

    #[test]
    fn an_address_that_the_agent_names_is_for_those_who_ask_for_it() {
        let allowed = ["a.org:80", "10.0.0.5:80", "*.b.org:80"];
        let table: [(&[&str], &str, bool); 6] = [
            // asked, address behind `a.org`, reached
            (&["a.org:80"], "10.0.0.5:80", false),
            (&["a.org:80", "10.0.0.5:80"], "10.0.0.5:80", true),
            (&["a.org:80", "10.0.0.5:80"], "[::ffff:10.0.0.5]:80", true),
            (&["a.org:80", "10.0.0.5:81"], "10.0.0.5:80", false),
            (&["a.org:80", "10.0.0.6:80"], "10.0.0.5:80", false),
            (&["a.org:80", "x.b.org:80"], "10.0.0.5:80", false),
        ];
        for (asked, address, expected) in table {
            let net = net(asked, &allowed);
            let reached = net.check_address("a.org", address.parse().unwrap()).is_ok();
            assert_eq!(reached, expected, "{asked:?} {address}");
        }
    }

    #[test]
    fn a_denial_carries_the_line_that_would_allow_it() {
        let asked = net(&["b.org:443"], &[]);
        assert_eq!(asked.check_host("a.org", 443), Err(Denied));
        assert_eq!(asked.check_host("b.org", 443), Err(Denied));
        assert_eq!(asked.check_host("b.org", 443), Err(Denied));
        assert_eq!(
            asked.denials().take(),
            [
                "connecting to `a.org:443` was not granted; ask for it in the task, #[task(net = [\"a.org:443\"])], and allow it: --allow-net a.org:443",
                "connecting to `b.org:443` is not allowed by this agent; allow it: --allow-net b.org:443",
            ]
        );
        let granted = net(&["a.org:80"], &["a.org:80"]);
        let private = "10.0.0.5:80".parse().unwrap();
        assert_eq!(granted.check_address("a.org", private), Err(Denied));
        assert_eq!(
            granted.denials().take(),
            [
                "`a.org` is 10.0.0.5, which is not a public address; ask for it in the task, #[task(net = [\"10.0.0.5:80\"])], and allow it by name: --allow-net 10.0.0.5:80"
            ]
        );
        let wild = net(&["*:*"], &["*:*"]);
        assert_eq!(wild.check_address("a.org", private), Err(Denied));
        assert_eq!(
            wild.denials().take(),
            [
                "`a.org` is 10.0.0.5, which is not a public address; allow it by name: --allow-net 10.0.0.5:80"
            ]
        );
    }

    #[test]
    fn a_socket_reaches_what_a_granted_name_resolved_to_and_nothing_else() {
        let net = net(&["a.org:80"], &["*:*"]);
        let address: SocketAddr = "8.8.8.8:80".parse().unwrap();
        assert_eq!(net.check_socket(address), Err(Denied));
        assert_eq!(net.check_lookup("b.org"), Err(Denied));
        assert_eq!(net.check_lookup("a.org"), Ok(()));
        net.resolved("a.org", address.ip());
        assert_eq!(net.check_socket(address), Ok(()));
        let other_port = SocketAddr::new(address.ip(), 81);
        assert_eq!(net.check_socket(other_port), Err(Denied));
    }

    #[test]
    fn denials_are_kept_once_and_not_without_end() {
        let denials = Denials::default();
        for n in 0..100 {
            denials.record(format!("{}", n % 50));
        }
        assert_eq!(denials.take().len(), DENIALS_MAX);
    }
}
