//! The envelope and how a message arrived, as header fields of a request whose body is the content alone.
//!
//! A value is visible ASCII: every other octet, and `%`, and in a list `,`, is written `%` and two hexadecimal digits (RFC 3986
//! §2.1). So a usual address stands there as it is, nothing that a client said ends a field, and a list is split at its commas.

use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};

use crate::mail::{Arrival, Body, Envelope, ForwardPath};

/// What is encoded: of ASCII controls and DEL, space, and the two that have a meaning.
const ENCODED: &AsciiSet = &CONTROLS.add(b' ').add(b'%').add(b',');
/// What a client called itself is shown up to this, octets.
const HELLO_SIZE_MAX: usize = 255;

/// What the recipients of one request take at most, octets of `X-Incoming-Recipients`: servers take fields of 8 KiB, some 16 KiB for
/// all of them.
pub const RECIPIENTS_SIZE_MAX: usize = 4 << 10;

/// Octets of a recipient in that field.
pub fn recipient_size(path: &ForwardPath) -> usize {
    encoded(path.as_str()).len() + ", ".len()
}

/// The fields; names in lower case.
pub fn fields<'a>(
    envelope: &Envelope,
    arrival: &Arrival,
    recipients: impl Iterator<Item = &'a ForwardPath>,
) -> Vec<(&'static str, String)> {
    let list = |texts: &mut dyn Iterator<Item = &str>| texts.map(encoded).collect::<Vec<_>>().join(", ");
    let hello = &arrival.hello[..arrival.hello.floor_char_boundary(HELLO_SIZE_MAX)];
    let body = match envelope.body {
        Body::SevenBit => "7BIT",
        Body::EightBit => "8BITMIME",
        Body::Binary => "BINARYMIME",
    };
    let mut fields = vec![
        ("x-incoming-sender", encoded(envelope.reverse_path.as_str())),
        ("x-incoming-recipients", list(&mut recipients.map(ForwardPath::as_str))),
        ("x-incoming-body", body.into()),
        ("x-incoming-peer", arrival.peer.to_string()),
        ("x-incoming-hello", encoded(hello)),
        ("x-incoming-protocol", arrival.keyword(envelope.smtputf8).into()),
        ("x-incoming-time", arrival.unix_time.to_string()),
    ];
    if let Some(name) = &arrival.client_name {
        fields.push(("x-incoming-client-name", encoded(name)));
    }
    if let Some(tls) = &arrival.tls {
        fields.push(("x-incoming-tls", format!("{} {}", tls.version, encoded(&tls.cipher))));
    }
    if let Some(user) = &arrival.authenticated {
        fields.push(("x-incoming-authenticated", encoded(user)));
    }
    if !arrival.tags.is_empty() {
        fields.push(("x-incoming-tags", list(&mut arrival.tags.iter().map(|tag| tag.as_str()))));
    }
    fields
}

fn encoded(text: &str) -> String {
    utf8_percent_encode(text, ENCODED).to_string()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;
    use reqwest::header::HeaderValue;

    use super::*;
    use crate::mail::{Protocol, ReversePath, Tag, Tls, TlsVersion};

    fn arrival() -> Arrival {
        Arrival {
            peer: "192.0.2.1:2525".parse().unwrap(),
            hello: "client.example".into(),
            protocol: Protocol::Esmtp,
            tls: None,
            authenticated: None,
            client_name: None,
            tags: Vec::new(),
            unix_time: 1_614_265_330,
            provenance: Default::default(),
        }
    }

    fn value(fields: &[(&str, String)], name: &str) -> String {
        fields.iter().find(|field| field.0 == name).map(|field| field.1.clone()).unwrap_or_default()
    }

    #[test]
    fn usual_values_stand_as_they_are_and_others_are_encoded() {
        let path = |text: &str| ForwardPath::parse(text, true).unwrap();
        let paths = [path("bob@x.example"), path("\"a,b c%\"@x.example"), path("é@x.example")];
        let envelope = Envelope::new(ReversePath::parse("alice+x@a.example", false).unwrap(), paths.to_vec());
        let tls = Tls {
            version: TlsVersion::Tls13,
            cipher: "TLS_AES_128_GCM_SHA256".into(),
            server_name: None,
            client: None,
        };
        let arrival = Arrival {
            tls: Some(Arc::new(tls)),
            authenticated: Some("jürgen x".into()),
            client_name: Some("mail.a.example".into()),
            tags: ["vip", "list"].iter().map(|text| Tag::parse(text).unwrap()).collect(),
            ..arrival()
        };
        let fields = fields(&envelope, &arrival, paths.iter());
        let table = [
            ("x-incoming-sender", "alice+x@a.example"),
            ("x-incoming-recipients", "bob@x.example, \"a%2Cb%20c%25\"@x.example, %C3%A9@x.example"),
            ("x-incoming-body", "7BIT"),
            ("x-incoming-peer", "192.0.2.1:2525"),
            ("x-incoming-hello", "client.example"),
            ("x-incoming-protocol", "ESMTPSA"),
            ("x-incoming-time", "1614265330"),
            ("x-incoming-client-name", "mail.a.example"),
            ("x-incoming-tls", "TLS1.3 TLS_AES_128_GCM_SHA256"),
            ("x-incoming-authenticated", "j%C3%BCrgen%20x"),
            ("x-incoming-tags", "vip, list"),
        ];
        for (name, expected) in table {
            assert_eq!(value(&fields, name), expected, "{name}");
        }
        assert_eq!(fields.len(), table.len());
        let size: usize = paths.iter().map(recipient_size).sum();
        assert!(size >= value(&fields, "x-incoming-recipients").len());
    }

    #[test]
    fn the_null_reverse_path_is_an_empty_value() {
        let envelope = Envelope::new(ReversePath::Null, Vec::new());
        assert_eq!(fields(&envelope, &arrival(), [].into_iter())[0], ("x-incoming-sender", String::new()));
    }

    proptest! {
        #[test]
        fn no_text_ends_a_field(hello in ".*", user in ".*") {
            let arrival = Arrival { hello: hello.into(), authenticated: Some(user.into()), ..arrival() };
            for (_, value) in fields(&Envelope::new(ReversePath::Null, Vec::new()), &arrival, [].into_iter()) {
                prop_assert!(value.bytes().all(|c| matches!(c, b' '..=b'~')) && HeaderValue::from_str(&value).is_ok());
            }
        }
    }
}
