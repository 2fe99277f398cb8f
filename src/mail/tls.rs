//! What is known of a connection that TLS protects.

use std::fmt;

/// A version of TLS. Older ones are not spoken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TlsVersion {
    /// TLS 1.2 (RFC 5246).
    Tls12,
    /// TLS 1.3 (RFC 8446).
    Tls13,
}

impl fmt::Display for TlsVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            TlsVersion::Tls12 => "TLS1.2",
            TlsVersion::Tls13 => "TLS1.3",
        })
    }
}

/// What a handshake has agreed on, and whom it has shown the peer to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tls {
    /// The version of the protocol.
    pub version: TlsVersion,
    /// The cipher suite, by the name IANA gives it.
    pub cipher: Box<str>,
    /// The name the client asked for (SNI, RFC 6066 §3), in lower case.
    pub server_name: Option<Box<str>>,
    /// The client's certificate, if it gave one that was verified.
    pub client: Option<ClientCertificate>,
}

/// Whom a verified client certificate names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientCertificate {
    /// The first of: DNS name, mail address, common name. Printable ASCII.
    pub name: Box<str>,
    /// SHA-256 of the certificate.
    pub fingerprint: [u8; 32],
}
