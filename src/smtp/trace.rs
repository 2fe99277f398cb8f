//! The `Received:` field of a message (RFC 5321 §4.4).

use std::io::Write;
use std::net::{IpAddr, SocketAddr};

use crate::mail::{ForwardPath, MessageId, Tls};

use super::reply::push_number;

/// What a `Received:` field tells.
pub struct Received<'a> {
    /// The argument of HELO or EHLO.
    pub hello: &'a str,
    /// The peer's name, where it is known.
    pub client_name: Option<&'a str>,
    /// Whom we know the peer to be.
    pub peer: SocketAddr,
    /// Us.
    pub hostname: &'a str,
    /// How it was sent: the keyword of the protocol, and what protected it.
    pub keyword: &'static str,
    /// What protected it, if anything did.
    pub tls: Option<&'a Tls>,
    /// What we call it.
    pub id: MessageId,
    /// The recipient, where there is exactly one. With more it is left out, so that none learns of another
    /// (§7.2).
    pub recipient: Option<&'a ForwardPath>,
    /// When; as [`format_date`](crate::mail::format_date) writes it.
    pub date: &'a str,
}

impl Received<'_> {
    /// Appends the field, folded, CRLF-ended. No line of it exceeds 998 octets (RFC 5322 §2.1.1).
    pub fn write(&self, trace: &mut Vec<u8>) {
        trace.extend_from_slice(b"Received: from ");
        trace.extend(self.hello.bytes().map(hello_octet));
        trace.extend_from_slice(b" (");
        if let Some(name) = self.client_name {
            trace.extend(name.bytes().map(hello_octet));
            trace.push(b' ');
        }
        push_address(self.peer.ip().to_canonical(), trace);
        trace.extend_from_slice(b")\r\n\tby ");
        trace.extend_from_slice(self.hostname.as_bytes());
        trace.extend_from_slice(b" with ");
        trace.extend_from_slice(self.keyword.as_bytes());
        if let Some(tls) = self.tls {
            write!(trace, " ({} {})", tls.version, tls.cipher).expect("a Vec takes every write");
        }
        trace.extend_from_slice(b" id ");
        trace.extend_from_slice(self.id.encode(&mut [0; MessageId::TEXT_SIZE_MAX]).as_bytes());
        if let Some(recipient) = self.recipient {
            trace.extend_from_slice(b"\r\n\tfor <");
            // Well-formed by its type: no control octet is in it, and no `>` outside a quoted string.
            trace.extend_from_slice(recipient.as_str().as_bytes());
            trace.push(b'>');
        }
        trace.extend_from_slice(b";\r\n\t");
        trace.extend_from_slice(self.date.as_bytes());
        trace.extend_from_slice(b"\r\n");
    }
}

/// The name a peer gives itself may hold any printable octet; those that mean something in a header field are
/// not kept.
fn hello_octet(c: u8) -> u8 {
    if c.is_ascii_alphanumeric() || b"-._:[]".contains(&c) { c } else { b'?' }
}

/// An address literal (RFC 5321 §4.1.3).
fn push_address(address: IpAddr, out: &mut Vec<u8>) {
    out.push(b'[');
    match address {
        IpAddr::V4(v4) => {
            for (i, octet) in v4.octets().into_iter().enumerate() {
                if i > 0 {
                    out.push(b'.');
                }
                push_number(octet.into(), out);
            }
        }
        IpAddr::V6(v6) => write!(out, "IPv6:{v6}").expect("a Vec takes every write"),
    }
    out.push(b']');
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(hello: &str, peer: &str, recipient: Option<&str>) -> String {
        let recipient = recipient.map(|r| ForwardPath::parse(r, true).unwrap());
        let received = Received {
            hello,
            client_name: Some(hello).filter(|_| hello == "named.example"),
            peer: peer.parse().unwrap(),
            hostname: "mx.example.com",
            keyword: "ESMTP",
            tls: None,
            id: MessageId { log: 1, sequence: 33 },
            recipient: recipient.as_ref(),
            date: "Thu, 01 Jan 1970 00:00:00 +0000",
        };
        let mut trace = Vec::new();
        received.write(&mut trace);
        String::from_utf8(trace).unwrap()
    }

    #[test]
    fn the_field_reads_as_the_rfc_writes_it() {
        assert_eq!(
            written("c.example", "192.0.2.1:25", Some("b@example.com")),
            "Received: from c.example ([192.0.2.1])\r\n\tby mx.example.com with ESMTP id 000000111\r\n\
             \tfor <b@example.com>;\r\n\tThu, 01 Jan 1970 00:00:00 +0000\r\n"
        );
        assert_eq!(
            written("c.example", "[2001:db8::1]:25", None),
            "Received: from c.example ([IPv6:2001:db8::1])\r\n\tby mx.example.com with ESMTP id 000000111;\r\n\
             \tThu, 01 Jan 1970 00:00:00 +0000\r\n"
        );
        assert!(
            written("named.example", "192.0.2.1:25", None)
                .contains("from named.example (named.example [192.0.2.1])\r\n")
        );
        assert!(written("c", "[::ffff:192.0.2.1]:25", None).contains("([192.0.2.1])"));
    }

    #[test]
    fn a_peers_name_cannot_forge_the_field() {
        let trace = written("x(by;evil)\"\\<@>", "192.0.2.1:25", None);
        assert!(trace.starts_with("Received: from x?by?evil?????? ([192.0.2.1])\r\n"), "{trace}");
    }
}
