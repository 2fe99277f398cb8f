//! An envelope and how a message arrived, as JSON: for people and programs that look at messages outside of the queue.
//!
//! What is read is parsed into the types it was written from. Unknown fields are skipped.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::limits::{COMMAND_SIZE_MAX_HIGH, RECIPIENTS_MAX_HIGH};
use crate::mail::{
    Arrival, Body, ClientCertificate, Domain, Dsn, Envelope, EnvelopeId, ForwardPath, Notify,
    OriginalRecipient, Protocol, Provenance, RecipientDsn, Ret, ReversePath, TAGS_MAX, Tag, Tls, TlsVersion,
    Via,
};

/// Why a text is not what it should be: the key, and what is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Malformed(pub String);

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// An envelope.
#[derive(Serialize, Deserialize)]
pub struct EnvelopeRecord {
    /// Empty: the null reverse-path.
    reverse_path: String,
    forward_paths: Vec<String>,
    body: String,
    smtputf8: bool,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    require_tls: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    dsn: Option<DsnRecord>,
    /// Its target, whatever the routes say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    through: Option<String>,
    /// Of the targets that the routes say, this one alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    only: Option<String>,
}

/// Parameters as they were given (RFC 3461).
#[derive(Serialize, Deserialize)]
struct DsnRecord {
    ret: Option<String>,
    envid: Option<String>,
    /// Of those recipients for which something was said.
    recipients: Vec<RecipientDsnRecord>,
}

#[derive(Serialize, Deserialize)]
struct RecipientDsnRecord {
    /// Place in `envelope.forward_paths`, from 0; ascending.
    index: u32,
    notify: Option<String>,
    orcpt: Option<String>,
}

/// How a message arrived. Times are seconds since 1970.
#[derive(Serialize, Deserialize)]
pub struct ArrivalRecord {
    peer: String,
    hello: String,
    protocol: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    tls: Option<TlsRecord>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    authenticated: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    client_name: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    tags: Vec<String>,
    unix_time: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    provenance: Option<ProvenanceRecord>,
}

/// What the message came out of.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum ProvenanceRecord {
    /// Milliseconds since 1970; from then until the content had arrived; which of the session's contents.
    Session { connected: u64, waited_millis: u32, number: u16 },
    /// The dead letter of this message.
    Resent(String),
    /// It is a notification about this message.
    About(String),
}

#[derive(Serialize, Deserialize)]
struct TlsRecord {
    version: String,
    cipher: String,
    server_name: Option<String>,
    client: Option<ClientRecord>,
}

#[derive(Serialize, Deserialize)]
struct ClientRecord {
    name: String,
    /// SHA-256 of the certificate, in hexadecimal digits.
    fingerprint: String,
}

impl From<&Envelope> for EnvelopeRecord {
    fn from(envelope: &Envelope) -> Self {
        EnvelopeRecord {
            reverse_path: envelope.reverse_path.as_str().into(),
            forward_paths: envelope.forward_paths.iter().map(|path| path.as_str().into()).collect(),
            body: body_keyword(envelope.body).into(),
            smtputf8: envelope.smtputf8,
            require_tls: envelope.require_tls,
            dsn: envelope.dsn.as_deref().map(DsnRecord::from),
            through: name(&envelope.via, |via| matches!(via, Via::Through(_))),
            only: name(&envelope.via, |via| matches!(via, Via::Only(_))),
        }
    }
}

fn name(via: &Option<Via>, is_it: impl Fn(&Via) -> bool) -> Option<String> {
    via.as_ref().filter(|via| is_it(via)).map(|via| via.name().to_string())
}

impl From<&Arrival> for ArrivalRecord {
    fn from(arrival: &Arrival) -> Self {
        ArrivalRecord {
            peer: arrival.peer.to_string(),
            hello: arrival.hello.as_ref().into(),
            protocol: protocol_keyword(arrival.protocol).into(),
            tls: arrival.tls.as_deref().map(TlsRecord::from),
            authenticated: arrival.authenticated.as_deref().map(String::from),
            client_name: arrival.client_name.as_deref().map(String::from),
            tags: arrival.tags.iter().map(|tag| tag.as_str().into()).collect(),
            unix_time: arrival.unix_time,
            provenance: match arrival.provenance {
                Provenance::Unknown => None,
                Provenance::Session { connected, waited_millis, number } => {
                    Some(ProvenanceRecord::Session { connected, waited_millis, number })
                }
                Provenance::Resent(id) => Some(ProvenanceRecord::Resent(id.to_string())),
                Provenance::About(id) => Some(ProvenanceRecord::About(id.to_string())),
            },
        }
    }
}

impl From<&Dsn> for DsnRecord {
    fn from(dsn: &Dsn) -> Self {
        let recipient = |r: &RecipientDsn| RecipientDsnRecord {
            index: r.index,
            notify: r.notify.map(Notify::text),
            orcpt: r.original.as_ref().map(|original| original.as_str().into()),
        };
        DsnRecord {
            ret: dsn.ret.map(|ret| ret.as_str().into()),
            envid: dsn.envelope_id.as_ref().map(|id| id.as_str().into()),
            recipients: dsn.recipients.iter().map(recipient).collect(),
        }
    }
}

impl From<&Tls> for TlsRecord {
    fn from(tls: &Tls) -> Self {
        let client = |client: &ClientCertificate| ClientRecord {
            name: client.name.as_ref().into(),
            fingerprint: client.fingerprint.iter().map(|octet| format!("{octet:02x}")).collect(),
        };
        TlsRecord {
            version: tls.version.to_string(),
            cipher: tls.cipher.as_ref().into(),
            server_name: tls.server_name.as_deref().map(String::from),
            client: tls.client.as_ref().map(client),
        }
    }
}

impl EnvelopeRecord {
    /// The envelope it was written from.
    pub fn parse(&self) -> Result<Envelope, Malformed> {
        let count = self.forward_paths.len();
        if count == 0 || count as u64 > RECIPIENTS_MAX_HIGH {
            let words = format!("envelope.forward_paths: expected 1 to {RECIPIENTS_MAX_HIGH}, not {count}");
            return Err(Malformed(words));
        }
        // Paths were judged when the message came; text beyond ASCII was agreed on then, or is not there.
        let reverse_path = ReversePath::parse_stored(&self.reverse_path)
            .map_err(|_| unexpected("envelope.reverse_path", &self.reverse_path))?;
        let forward_path = |text: &String| {
            ForwardPath::parse_stored(text).map_err(|_| unexpected("envelope.forward_paths", text))
        };
        Ok(Envelope {
            reverse_path,
            forward_paths: self.forward_paths.iter().map(forward_path).collect::<Result<_, _>>()?,
            body: [Body::SevenBit, Body::EightBit, Body::Binary]
                .into_iter()
                .find(|body| body_keyword(*body) == self.body)
                .ok_or_else(|| unexpected("envelope.body", &self.body))?,
            smtputf8: self.smtputf8,
            require_tls: self.require_tls,
            dsn: self.dsn.as_ref().map(|dsn| dsn.parse(count).map(Box::new)).transpose()?,
            via: match (&self.through, &self.only) {
                (Some(name), _) => Some(Via::Through(name.as_str().into())),
                (None, Some(name)) => Some(Via::Only(name.as_str().into())),
                (None, None) => None,
            },
        })
    }
}

impl DsnRecord {
    fn parse(&self, recipients_count: usize) -> Result<Dsn, Malformed> {
        let recipient = |record: &RecipientDsnRecord| {
            Ok(RecipientDsn {
                index: record.index,
                notify: parsed("envelope.dsn.recipients.notify", &record.notify, Notify::parse)?,
                original: parsed("envelope.dsn.recipients.orcpt", &record.orcpt, |text| {
                    OriginalRecipient::parse(text, true)
                })?,
            })
        };
        let recipients = self.recipients.iter().map(recipient).collect::<Result<Vec<_>, _>>()?;
        let is_ascending = recipients.is_sorted_by(|a, b| a.index < b.index);
        if !is_ascending || recipients.last().is_some_and(|last| last.index as usize >= recipients_count) {
            let words = "envelope.dsn.recipients: expected places in the envelope, ascending";
            return Err(Malformed(words.into()));
        }
        Ok(Dsn {
            ret: parsed("envelope.dsn.ret", &self.ret, Ret::parse)?,
            envelope_id: parsed("envelope.dsn.envid", &self.envid, EnvelopeId::parse)?,
            recipients,
        })
    }
}

impl ArrivalRecord {
    /// The arrival it was written from.
    pub fn parse(self) -> Result<Arrival, Malformed> {
        let is_hello =
            (self.hello.len() as u64) < COMMAND_SIZE_MAX_HIGH && !self.hello.chars().any(char::is_control);
        if !is_hello {
            return Err(unexpected("arrival.hello", &self.hello));
        }
        Ok(Arrival {
            peer: self.peer.parse::<SocketAddr>().map_err(|_| unexpected("arrival.peer", &self.peer))?,
            protocol: [Protocol::Smtp, Protocol::Esmtp, Protocol::Lmtp]
                .into_iter()
                .find(|protocol| protocol_keyword(*protocol) == self.protocol)
                .ok_or_else(|| unexpected("arrival.protocol", &self.protocol))?,
            tls: self.tls.map(|tls| tls.parse().map(Arc::new)).transpose()?,
            authenticated: match self.authenticated {
                Some(user) if user.len() > 255 || user.chars().any(char::is_control) => {
                    return Err(unexpected("arrival.authenticated", &user));
                }
                user => user.map(Arc::from),
            },
            client_name: match self.client_name {
                Some(name) if Domain::parse(&name, false).is_err() => {
                    return Err(unexpected("arrival.client_name", &name));
                }
                name => name.map(Box::from),
            },
            tags: match self.tags {
                tags if tags.len() > TAGS_MAX => {
                    return Err(Malformed(format!("arrival.tags: expected at most {TAGS_MAX}")));
                }
                tags => tags
                    .iter()
                    .map(|text| Tag::parse(text).ok_or_else(|| unexpected("arrival.tags", text)))
                    .collect::<Result<_, _>>()?,
            },
            hello: self.hello.into(),
            unix_time: self.unix_time,
            provenance: self.provenance.map_or(Ok(Provenance::Unknown), ProvenanceRecord::parse)?,
        })
    }
}

impl ProvenanceRecord {
    fn parse(self) -> Result<Provenance, Malformed> {
        let id = |text: String| text.parse().map_err(|_| unexpected("arrival.provenance", &text));
        Ok(match self {
            ProvenanceRecord::Session { connected, waited_millis, number } => {
                Provenance::Session { connected, waited_millis, number }
            }
            ProvenanceRecord::Resent(text) => Provenance::Resent(id(text)?),
            ProvenanceRecord::About(text) => Provenance::About(id(text)?),
        })
    }
}

impl TlsRecord {
    fn parse(self) -> Result<Tls, Malformed> {
        let version = [TlsVersion::Tls12, TlsVersion::Tls13]
            .into_iter()
            .find(|version| version.to_string() == self.version)
            .ok_or_else(|| unexpected("arrival.tls.version", &self.version))?;
        let name = |key: &str, text: String| match text.len() <= 255
            && text.bytes().all(|c| matches!(c, 0x20..=0x7e))
        {
            true => Ok(text.into()),
            false => Err(unexpected(key, &text)),
        };
        let client = |client: ClientRecord| {
            Ok(ClientCertificate {
                fingerprint: octets_of_hex(&client.fingerprint)
                    .ok_or_else(|| unexpected("arrival.tls.client.fingerprint", &client.fingerprint))?,
                name: name("arrival.tls.client.name", client.name)?,
            })
        };
        Ok(Tls {
            version,
            cipher: name("arrival.tls.cipher", self.cipher)?,
            server_name: self.server_name.map(|text| name("arrival.tls.server_name", text)).transpose()?,
            client: self.client.map(client).transpose()?,
        })
    }
}

fn body_keyword(body: Body) -> &'static str {
    match body {
        Body::SevenBit => "7BIT",
        Body::EightBit => "8BITMIME",
        Body::Binary => "BINARYMIME",
    }
}

fn protocol_keyword(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Smtp => "SMTP",
        Protocol::Esmtp => "ESMTP",
        Protocol::Lmtp => "LMTP",
    }
}

fn unexpected(key: &str, text: &str) -> Malformed {
    Malformed(format!("{key}: unexpected {text:?}"))
}

/// The value of a key that may be missing.
fn parsed<T>(
    key: &str,
    text: &Option<String>,
    parse: impl Fn(&str) -> Option<T>,
) -> Result<Option<T>, Malformed> {
    let parse = |text: &String| parse(text).ok_or_else(|| unexpected(key, text));
    text.as_ref().map(parse).transpose()
}

fn octets_of_hex<const SIZE: usize>(digits: &str) -> Option<[u8; SIZE]> {
    let mut octets = [0; SIZE];
    if digits.len() != 2 * SIZE || !digits.bytes().all(|c| c.is_ascii_hexdigit()) {
        return None;
    }
    for (octet, at) in octets.iter_mut().zip((0..).step_by(2)) {
        *octet = u8::from_str_radix(&digits[at..at + 2], 16).ok()?;
    }
    Some(octets)
}
