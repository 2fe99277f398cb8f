//! The request: what is known, one `name=value` a line, an empty line behind.
//!
//! What is unknown is there with an empty value, or 0 for a number: some daemons tell Postfix's version by what is there.

use std::fmt::{Display, Write};

use super::super::{Facts, Phase};
use crate::mail::{Tls, TlsVersion};

/// What the service is asked.
pub fn write(phase: Phase, facts: &Facts<'_>, life: u64, context: &str) -> Vec<u8> {
    let mut request = Request(String::with_capacity(1024));
    let with_count = matches!(phase, Phase::Data | Phase::Message);
    let recipient = match (facts.recipient, facts.recipients) {
        (Some(recipient), _) => recipient.as_str(),
        (None, [only]) if with_count => only.as_str(),
        _ => "",
    };
    let peer = facts.peer.ip().to_canonical();
    let client_name = facts.client_name.unwrap_or("unknown");
    let size = match phase {
        Phase::Message => facts.size,
        _ => facts.declared_size.unwrap_or(0),
    };
    request.add("request", "smtpd_access_policy");
    request.add("protocol_state", state(phase, facts));
    request.add("protocol_name", if facts.is_extended && !facts.hello.is_empty() { "ESMTP" } else { "SMTP" });
    request.add("helo_name", facts.hello);
    request.add("queue_id", "");
    request.add("sender", facts.reverse_path.map_or("", |path| path.as_str()));
    request.add("recipient", recipient);
    request.add("recipient_count", if with_count { facts.recipients.len() } else { 0 });
    request.add("client_address", peer);
    request.add("client_name", client_name);
    request.add("reverse_client_name", client_name);
    request.add("instance", format_args!("{life:x}.{:x}.{:x}", facts.session, facts.transaction));
    // By which mechanism is not known here.
    request.add("sasl_method", "");
    request.add("sasl_username", facts.authenticated.unwrap_or(""));
    request.add("sasl_sender", "");
    request.add("size", size);
    let client = facts.tls.and_then(|tls| tls.client.as_ref());
    request.add("ccert_subject", client.map_or_else(String::new, |client| xtext(&client.name)));
    request.add("ccert_issuer", "");
    request.add("ccert_fingerprint", client.map_or_else(String::new, |client| hex(&client.fingerprint)));
    request.add("encryption_protocol", facts.tls.map_or("", protocol));
    request.add("encryption_cipher", facts.tls.map_or("", |tls| &tls.cipher));
    request.add("encryption_keysize", facts.tls.map_or(0, key_size));
    request.add("etrn_domain", "");
    request.add("stress", "");
    request.add("ccert_pubkey_fingerprint", "");
    request.add("client_port", facts.peer.port());
    request.add("policy_context", context);
    request.add("server_address", facts.listener.ip().to_canonical());
    request.add("server_port", facts.listener.port());
    request.0.push('\n');
    request.0.into_bytes()
}

struct Request(String);

impl Request {
    /// Whatever `value` is, it stays within its line: what was parsed holds none of these octets, and here they become spaces.
    fn add(&mut self, name: &str, value: impl Display) {
        self.0.push_str(name);
        self.0.push('=');
        let start = self.0.len();
        write!(self.0, "{value}").expect("a string takes everything");
        if self.0[start..].contains(['\n', '\r', '\0']) {
            let value = self.0.split_off(start).replace(['\n', '\r', '\0'], " ");
            self.0.push_str(&value);
        }
        self.0.push('\n');
    }
}

fn state(phase: Phase, facts: &Facts<'_>) -> &'static str {
    match phase {
        Phase::Connect => "CONNECT",
        Phase::Hello if facts.is_extended => "EHLO",
        Phase::Hello => "HELO",
        Phase::Mail => "MAIL",
        Phase::Recipient => "RCPT",
        Phase::Data => "DATA",
        Phase::Message => "END-OF-MESSAGE",
    }
}

/// By the names that OpenSSL has for them, as Postfix gives.
fn protocol(tls: &Tls) -> &'static str {
    match tls.version {
        TlsVersion::Tls12 => "TLSv1.2",
        TlsVersion::Tls13 => "TLSv1.3",
    }
}

/// Bits of the cipher's key: every suite in use has 128 or 256.
fn key_size(tls: &Tls) -> u32 {
    if tls.cipher.contains("_128_") { 128 } else { 256 }
}

/// As Postfix encodes what stands in certificates (RFC 3461 §4).
fn xtext(text: &str) -> String {
    let mut encoded = String::new();
    for c in text.bytes() {
        match c {
            b'!'..=b'~' if c != b'+' && c != b'=' => encoded.push(c.into()),
            _ => write!(encoded, "+{c:02X}").expect("a string takes everything"),
        }
    }
    encoded
}

fn hex(octets: &[u8]) -> String {
    octets.iter().map(|octet| format!("{octet:02X}")).collect::<Vec<_>>().join(":")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::mail::{ClientCertificate, ForwardPath, ReversePath};

    fn attributes(request: Vec<u8>) -> BTreeMap<String, String> {
        let text = String::from_utf8(request).unwrap();
        let lines = text.strip_suffix("\n\n").expect("an empty line is the end");
        let pairs = lines.lines().map(|line| line.split_once('=').expect("name=value"));
        pairs.map(|(name, value)| (name.into(), value.into())).collect()
    }

    fn tls() -> Tls {
        Tls {
            version: TlsVersion::Tls13,
            cipher: "TLS13_AES_128_GCM_SHA256".into(),
            server_name: None,
            client: Some(ClientCertificate { name: "a+b c".into(), fingerprint: [0xab; 32] }),
        }
    }

    #[test]
    fn what_is_known_stands_in_its_attributes() {
        let path = ReversePath::parse("Alice@client.example", false).unwrap();
        let (one, two) = (
            ForwardPath::parse("b@x.example", false).unwrap(),
            ForwardPath::parse("c@x.example", false).unwrap(),
        );
        let both = [one.clone(), two.clone()];
        let tls = tls();
        let base = Facts {
            session: 0x1f,
            transaction: 2,
            hello: "client.example",
            reverse_path: Some(&path),
            declared_size: Some(1000),
            size: 2000,
            tls: Some(&tls),
            authenticated: Some("alice"),
            client_name: Some("mx.client.example"),
            listener: "[2001:db8::25]:25".parse().unwrap(),
            ..Facts::of("::ffff:192.0.2.7")
        };
        let recipient = Facts { recipient: Some(&two), recipients: &both[..1], ..base };
        let data = Facts { recipients: &both[..1], ..base };
        let message = Facts { recipients: &both, ..base };
        let connect = Facts { hello: "", ..Facts::of("2001:db8::7") };
        type Attributes<'a> = &'a [(&'a str, &'a str)];
        let table: [(Phase, &Facts<'_>, Attributes<'_>); 5] = [
            (
                Phase::Recipient,
                &recipient,
                &[
                    ("request", "smtpd_access_policy"),
                    ("protocol_state", "RCPT"),
                    ("protocol_name", "ESMTP"),
                    ("helo_name", "client.example"),
                    ("queue_id", ""),
                    ("sender", "Alice@client.example"),
                    ("recipient", "c@x.example"),
                    ("recipient_count", "0"),
                    ("client_address", "192.0.2.7"),
                    ("client_port", "25"),
                    ("client_name", "mx.client.example"),
                    ("reverse_client_name", "mx.client.example"),
                    ("instance", "abc.1f.2"),
                    ("sasl_username", "alice"),
                    ("size", "1000"),
                    ("ccert_subject", "a+2Bb+20c"),
                    ("encryption_protocol", "TLSv1.3"),
                    ("encryption_cipher", "TLS13_AES_128_GCM_SHA256"),
                    ("encryption_keysize", "128"),
                    ("etrn_domain", ""),
                    ("stress", ""),
                    ("policy_context", "mx"),
                    ("server_address", "2001:db8::25"),
                    ("server_port", "25"),
                ],
            ),
            (
                Phase::Data,
                &data,
                &[
                    ("protocol_state", "DATA"),
                    ("recipient", "b@x.example"),
                    ("recipient_count", "1"),
                    ("size", "1000"),
                ],
            ),
            (
                Phase::Message,
                &message,
                &[
                    ("protocol_state", "END-OF-MESSAGE"),
                    ("recipient", ""),
                    ("recipient_count", "2"),
                    ("size", "2000"),
                ],
            ),
            (
                Phase::Connect,
                &connect,
                &[
                    ("protocol_state", "CONNECT"),
                    ("protocol_name", "SMTP"),
                    ("client_address", "2001:db8::7"),
                    ("client_name", "unknown"),
                    ("sender", ""),
                    ("encryption_protocol", ""),
                    ("encryption_keysize", "0"),
                ],
            ),
            (
                Phase::Hello,
                &Facts { is_extended: false, hello: "h", ..base },
                &[("protocol_state", "HELO"), ("protocol_name", "SMTP")],
            ),
        ];
        for (phase, facts, expected) in table {
            let found = attributes(write(phase, facts, 0xabc, "mx"));
            for (name, value) in expected {
                assert_eq!(found.get(*name).map(String::as_str), Some(*value), "{phase:?} {name}");
            }
            assert_eq!(found.len(), 29, "every attribute is always there");
        }
        let fingerprint = &attributes(write(Phase::Mail, &base, 1, ""))["ccert_fingerprint"];
        assert!(fingerprint.len() == 95 && fingerprint.starts_with("AB:AB:"));
    }

    /// Nothing parsed holds such octets; were there a hole somewhere, the request has none.
    #[test]
    fn no_value_ends_its_line() {
        let hello = "a\nrequest=x\r\n\nb\0c";
        let facts = Facts { hello, authenticated: Some("\n\n"), ..Facts::of("192.0.2.1") };
        let request = String::from_utf8(write(Phase::Hello, &facts, 1, "x\ny")).unwrap();
        assert_eq!(request.matches("\n\n").count(), 1);
        assert_eq!(request.lines().count(), 30);
        assert!(request.contains("\nhelo_name=a request=x   b c\n"), "{request}");
        assert!(!request.contains('\0') && !request.contains('\r'));
    }
}
