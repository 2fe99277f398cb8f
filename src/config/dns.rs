//! `[dns]`: whom policies ask.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use serde::{Deserialize, Serialize, Serializer};

use super::value::{Parsed, count, duration, list, write_duration};

/// `[dns]`: whom policies ask, where any of them asks the DNS.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, expecting = "a section [dns]")]
pub struct Dns {
    /// The servers; none: those of `/etc/resolv.conf`.
    #[serde(deserialize_with = "list")]
    pub servers: Vec<DnsServer>,
    /// How long one question may take.
    #[serde(deserialize_with = "duration::<1, 60, _>", serialize_with = "write_duration")]
    pub timeout: Duration,
    /// Answers that are remembered, each some 200 octets.
    #[serde(deserialize_with = "count::<1, 100_000_000, _, _>")]
    pub cache_entries_max: usize,
}

impl Default for Dns {
    fn default() -> Self {
        Dns { servers: Vec::new(), timeout: Duration::from_secs(5), cache_entries_max: 100_000 }
    }
}

/// The address of a server; its port is 53 where none is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DnsServer(pub SocketAddr);

impl Parsed for DnsServer {
    const EXPECTED: &'static str = "the address of a DNS server such as \"127.0.0.1\" or \"[::1]:53\"";

    fn parsed(text: &str) -> Option<Self> {
        let with_port = || text.parse::<IpAddr>().map(|ip| SocketAddr::new(ip, 53));
        text.parse().or_else(|_| with_port()).ok().filter(|server| server.port() != 0).map(DnsServer)
    }
}

impl fmt::Display for DnsServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Serialize for DnsServer {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}
