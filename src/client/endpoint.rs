//! Where a server listens.

use std::fmt;
use std::path::PathBuf;

/// A host with a port, or a socket in the file system.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// A name or an address, the latter without brackets, and a port.
    Tcp(String, u16),
    /// A socket's path.
    Unix(PathBuf),
}

impl Endpoint {
    /// What [`Endpoint::parse`] takes.
    pub const EXPECTED: &'static str =
        "an address with a port such as \"127.0.0.1:24\" or \"store.example.com:24\", or \"unix:/run/lmtp\"";

    /// `HOST:PORT`, `[ADDRESS]:PORT` or `unix:/PATH`.
    pub fn parse(text: &str) -> Option<Endpoint> {
        if let Some(path) = text.strip_prefix("unix:") {
            return (path.starts_with('/') && !path.contains('\0')).then(|| Endpoint::Unix(path.into()));
        }
        let (host, port) = text.rsplit_once(':')?;
        let port = port.parse().ok().filter(|port| *port != 0)?;
        let inner = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
        let is_name_octet = |c: u8| c.is_ascii_alphanumeric() || c == b'.' || c == b'-';
        match inner {
            Some(address) => {
                address.parse::<std::net::Ipv6Addr>().ok().map(|_| Endpoint::Tcp(address.into(), port))
            }
            None if !host.is_empty() && host.bytes().all(is_name_octet) => {
                Some(Endpoint::Tcp(host.into(), port))
            }
            None => None,
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Endpoint::Tcp(host, port) if host.contains(':') => write!(f, "[{host}]:{port}"),
            Endpoint::Tcp(host, port) => write!(f, "{host}:{port}"),
            Endpoint::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_parsed_is_printed_again() {
        for text in ["127.0.0.1:24", "store.example.com:2003", "[::1]:24", "unix:/run/dovecot/lmtp"] {
            assert_eq!(Endpoint::parse(text).unwrap().to_string(), text);
        }
        for text in [
            "",
            "store",
            "store:",
            "store:0",
            "store:65536",
            ":24",
            "::1:24",
            "[x]:24",
            "unix:",
            "unix:lmtp",
            "a b:1",
        ] {
            assert_eq!(Endpoint::parse(text), None, "{text}");
        }
    }
}
