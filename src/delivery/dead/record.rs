//! `dead.json`: what is known of a dead letter beside its content. Text and value are one.
//!
//! What is read is parsed into the types it was written from: a [`Letter`] can be put back into the queue as it is. Unknown
//! fields are skipped. Knows nothing of folders.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::delivery::{Job, Recipient};
use crate::limits::{COMMAND_SIZE_MAX_HIGH, RECIPIENTS_MAX_HIGH};
use crate::mail::{
    Arrival, Body, ClientCertificate, Dsn, Envelope, EnvelopeId, ForwardPath, MessageId, Notify,
    OriginalRecipient, Protocol, RecipientDsn, Ret, ReversePath, Tls, TlsVersion,
};

/// A dead letter without its content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Letter {
    /// The message that was given up.
    pub id: MessageId,
    /// Octets of its content.
    pub size: u64,
    /// The whole envelope, with recipients that were served.
    pub envelope: Envelope,
    /// How and when the message arrived.
    pub arrival: Arrival,
    /// The recipients given up; never empty, each once.
    pub recipients: Vec<GivenUp>,
}

/// A recipient given up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GivenUp {
    /// Its place in the envelope's forward-paths.
    pub index: u32,
    /// Attempts made.
    pub attempts: u32,
    /// Why the last of them failed.
    pub reason: String,
    /// When it was given up, in seconds since 1970.
    pub unix_time: u64,
}

/// Why a text is not a dead letter's record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Malformed(pub String);

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Letter {
    /// The dead letter of `job` for some of its recipients, given up at `unix_time` after one attempt more than they say.
    pub fn of(job: &Job, given_up: &[(Recipient, &str)], unix_time: u64) -> Self {
        let given_up = given_up.iter().map(|(recipient, reason)| GivenUp {
            index: recipient.index,
            attempts: recipient.attempts.saturating_add(1),
            reason: (*reason).into(),
            unix_time,
        });
        Letter {
            id: job.id,
            size: job.content.size(),
            envelope: (*job.envelope).clone(),
            arrival: (*job.arrival).clone(),
            recipients: given_up.collect(),
        }
    }

    /// The dead letter of message `id` that `text` describes.
    pub fn parse(id: MessageId, text: &[u8]) -> Result<Self, Malformed> {
        let record: Record = serde_json::from_slice(text).map_err(|e| Malformed(e.to_string()))?;
        if record.message_id != id.to_string() {
            return Err(Malformed(format!("message_id: it is of another message, {:?}", record.message_id)));
        }
        let Record { size, envelope, arrival, recipients, .. } = record;
        let envelope = envelope.parse()?;
        let recipients = parse_recipients(recipients, &envelope)?;
        Ok(Letter { id, size, envelope, arrival: arrival.parse()?, recipients })
    }

    /// The text that [`Letter::parse`] takes.
    pub fn text(&self) -> Vec<u8> {
        let mut text = serde_json::to_vec_pretty(&Record::from(self)).expect("a record is plain data");
        text.push(b'\n');
        text
    }

    /// The same on one line, with what was asked for: whether it is to be sent again.
    pub fn line(&self, is_requested: bool) -> String {
        let line = Line { record: Record::from(self), resend: is_requested };
        serde_json::to_string(&line).expect("a record is plain data")
    }

    /// The forward-path of a recipient of this letter.
    pub fn forward_path(&self, recipient: &GivenUp) -> &ForwardPath {
        &self.envelope.forward_paths[recipient.index as usize]
    }

    /// When its newest recipient was given up, in seconds since 1970.
    pub fn newest(&self) -> u64 {
        self.recipients.iter().map(|recipient| recipient.unix_time).max().unwrap_or(0)
    }

    /// The envelope of a message for those who were given up, and for nobody else.
    pub fn envelope_of_given_up(&self) -> Envelope {
        self.envelope.only(self.recipients.iter().map(|recipient| recipient.index))
    }
}

/// As it stands in the file. Times are seconds since 1970.
#[derive(Serialize, Deserialize)]
struct Record {
    message_id: String,
    /// Octets of `message.eml`.
    size: u64,
    envelope: EnvelopeRecord,
    arrival: ArrivalRecord,
    recipients: Vec<GivenUpRecord>,
}

#[derive(Serialize)]
struct Line {
    #[serde(flatten)]
    record: Record,
    resend: bool,
}

#[derive(Serialize, Deserialize)]
struct EnvelopeRecord {
    /// Empty: the null reverse-path.
    reverse_path: String,
    forward_paths: Vec<String>,
    body: String,
    smtputf8: bool,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    require_tls: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    dsn: Option<DsnRecord>,
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

#[derive(Serialize, Deserialize)]
struct ArrivalRecord {
    peer: String,
    hello: String,
    protocol: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    tls: Option<TlsRecord>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    authenticated: Option<String>,
    unix_time: u64,
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

#[derive(Serialize, Deserialize)]
struct GivenUpRecord {
    /// Place in `envelope.forward_paths`, from 0.
    index: u32,
    forward_path: String,
    attempts: u32,
    reason: String,
    unix_time: u64,
}

impl From<&Letter> for Record {
    fn from(letter: &Letter) -> Self {
        let Letter { envelope, arrival, .. } = letter;
        let recipient = |r: &GivenUp| GivenUpRecord {
            index: r.index,
            forward_path: letter.forward_path(r).as_str().into(),
            attempts: r.attempts,
            reason: r.reason.clone(),
            unix_time: r.unix_time,
        };
        Record {
            message_id: letter.id.to_string(),
            size: letter.size,
            envelope: EnvelopeRecord {
                reverse_path: envelope.reverse_path.as_str().into(),
                forward_paths: envelope.forward_paths.iter().map(|path| path.as_str().into()).collect(),
                body: body_keyword(envelope.body).into(),
                smtputf8: envelope.smtputf8,
                require_tls: envelope.require_tls,
                dsn: envelope.dsn.as_deref().map(DsnRecord::from),
            },
            arrival: ArrivalRecord {
                peer: arrival.peer.to_string(),
                hello: arrival.hello.as_ref().into(),
                protocol: protocol_keyword(arrival.protocol).into(),
                tls: arrival.tls.as_deref().map(TlsRecord::from),
                authenticated: arrival.authenticated.as_deref().map(String::from),
                unix_time: arrival.unix_time,
            },
            recipients: letter.recipients.iter().map(recipient).collect(),
        }
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

fn unexpected(key: &str, text: &str) -> Malformed {
    Malformed(format!("{key}: unexpected {text:?}"))
}

impl EnvelopeRecord {
    fn parse(&self) -> Result<Envelope, Malformed> {
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

impl TlsRecord {
    fn parse(self) -> Result<Tls, Malformed> {
        let version = [TlsVersion::Tls12, TlsVersion::Tls13]
            .into_iter()
            .find(|version| version.to_string() == self.version)
            .ok_or_else(|| unexpected("arrival.tls.version", &self.version))?;
        let name =
            |key: &str, text: String| match text.len() <= 255 && text.bytes().all(|c| c.is_ascii_graphic()) {
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

impl ArrivalRecord {
    fn parse(self) -> Result<Arrival, Malformed> {
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
            hello: self.hello.into(),
            unix_time: self.unix_time,
        })
    }
}

fn parse_recipients(records: Vec<GivenUpRecord>, envelope: &Envelope) -> Result<Vec<GivenUp>, Malformed> {
    let mut is_seen = vec![false; envelope.forward_paths.len()];
    if records.is_empty() {
        return Err(Malformed("recipients: expected one at least".into()));
    }
    let parse = |record: GivenUpRecord| {
        let GivenUpRecord { index, forward_path, attempts, reason, unix_time } = record;
        let path = envelope.forward_paths.get(index as usize);
        if path.is_none_or(|path| path.as_str() != forward_path) {
            let words = format!("recipients: {forward_path:?} is not number {index} of the envelope");
            return Err(Malformed(words));
        }
        match std::mem::replace(&mut is_seen[index as usize], true) {
            true => Err(Malformed(format!("recipients: number {index} is there twice"))),
            false => Ok(GivenUp { index, attempts, reason, unix_time }),
        }
    };
    records.into_iter().map(parse).collect()
}

#[cfg(test)]
pub(super) mod tests {
    use serde_json::{Value, json};

    use super::*;

    /// A letter of three recipients, two of them given up.
    pub fn letter() -> Letter {
        let path = |text| ForwardPath::parse(text, true).unwrap();
        let given_up =
            |index, unix_time| GivenUp { index, attempts: 7, reason: "said \"no\"\n".into(), unix_time };
        Letter {
            id: MessageId { log: 1, sequence: 33 },
            size: 22,
            envelope: Envelope {
                reverse_path: ReversePath::parse("s@e.net", false).unwrap(),
                forward_paths: vec![path("\"a b\"@e.org"), path("é@bücher.example"), path("postmaster")],
                body: Body::EightBit,
                smtputf8: true,
                require_tls: true,
                dsn: Some(Box::new(Dsn {
                    ret: Some(Ret::Headers),
                    envelope_id: EnvelopeId::parse("QQ+2B1"),
                    recipients: vec![
                        RecipientDsn { index: 0, notify: Notify::parse("DELAY,FAILURE"), original: None },
                        RecipientDsn {
                            index: 2,
                            notify: Some(Notify::NEVER),
                            original: OriginalRecipient::parse("rfc822;x@e.org", false),
                        },
                    ],
                })),
            },
            arrival: Arrival {
                peer: "[2001:db8::1]:25".parse().unwrap(),
                hello: "e.net".into(),
                protocol: Protocol::Esmtp,
                tls: Some(Arc::new(Tls {
                    version: TlsVersion::Tls13,
                    cipher: "TLS13_AES_256_GCM_SHA384".into(),
                    server_name: Some("mx.example.com".into()),
                    client: Some(ClientCertificate {
                        name: "client.example".into(),
                        fingerprint: [0xa7; 32],
                    }),
                })),
                authenticated: Some("user".into()),
                unix_time: 1_700_000_000,
            },
            recipients: vec![given_up(2, 1_700_000_900), given_up(0, 1_700_000_800)],
        }
    }

    #[test]
    fn text_and_letter_are_one() {
        let full = letter();
        let null = Letter {
            envelope: Envelope {
                reverse_path: ReversePath::Null,
                body: Body::SevenBit,
                smtputf8: false,
                ..full.envelope.clone()
            },
            ..full.clone()
        };
        let plain = Letter {
            arrival: Arrival {
                protocol: Protocol::Smtp,
                hello: "".into(),
                tls: None,
                authenticated: None,
                ..full.arrival.clone()
            },
            ..full.clone()
        };
        for letter in [full, null, plain] {
            assert_eq!(Letter::parse(letter.id, &letter.text()), Ok(letter));
        }
    }

    #[test]
    fn the_envelope_of_those_given_up_has_nobody_else() {
        let letter = letter();
        let envelope = letter.envelope_of_given_up();
        let paths: Vec<_> = envelope.forward_paths.iter().map(ForwardPath::as_str).collect();
        assert_eq!(paths, ["postmaster", "\"a b\"@e.org"]);
        let asked: Vec<_> = envelope.dsn.iter().flat_map(|dsn| &dsn.recipients).map(|r| r.index).collect();
        assert_eq!(asked, [0, 1], "what was asked about each goes with it");
        let Envelope { forward_paths, dsn, .. } = letter.envelope.clone();
        assert_eq!(Envelope { forward_paths, dsn, ..envelope }, letter.envelope);
        assert_eq!(letter.newest(), 1_700_000_900);
    }

    #[test]
    fn what_is_not_a_record_is_refused_with_the_key() {
        let table: [(&str, Value, &str); 25] = [
            ("/message_id", json!("000000112"), "of another message"),
            ("/message_id", json!(7), "invalid type"),
            ("/size", json!(-1), "invalid value"),
            ("/envelope/reverse_path", json!("a b@e.org"), "envelope.reverse_path"),
            ("/envelope/forward_paths", json!([]), "envelope.forward_paths"),
            ("/envelope/forward_paths", json!(vec!["a@e.org"; 10_001]), "envelope.forward_paths"),
            ("/envelope/forward_paths/1", json!("a@e.org\r\nb"), "envelope.forward_paths"),
            ("/envelope/body", json!("UUENCODE"), "envelope.body"),
            ("/envelope/dsn/ret", json!("SOME"), "envelope.dsn.ret"),
            ("/envelope/dsn/envid", json!("a+0A"), "envelope.dsn.envid"),
            ("/envelope/dsn/recipients/0/notify", json!("ALWAYS"), "notify"),
            ("/envelope/dsn/recipients/1/orcpt", json!("rfc822;+00"), "orcpt"),
            ("/envelope/dsn/recipients/0/index", json!(2), "ascending"),
            ("/envelope/dsn/recipients/1/index", json!(3), "places"),
            ("/arrival/tls/version", json!("SSL3"), "arrival.tls.version"),
            ("/arrival/tls/client/fingerprint", json!("+7"), "fingerprint"),
            ("/arrival/authenticated", json!("a\nb"), "arrival.authenticated"),
            ("/arrival/peer", json!("192.0.2.1"), "arrival.peer"),
            ("/arrival/hello", json!("x\ny"), "arrival.hello"),
            ("/arrival/hello", json!("x".repeat(65_536)), "arrival.hello"),
            ("/arrival/protocol", json!("UUCP"), "arrival.protocol"),
            ("/recipients", json!([]), "recipients"),
            ("/recipients/0/index", json!(3), "number 3"),
            ("/recipients/0/index", json!(1), "number 1"),
            ("/recipients/1", serde_json::to_value(&Record::from(&letter()).recipients[0]).unwrap(), "twice"),
        ];
        for (place, value, words) in table {
            let mut record = serde_json::to_value(Record::from(&letter())).unwrap();
            *record.pointer_mut(place).unwrap() = value.clone();
            let refused = Letter::parse(letter().id, record.to_string().as_bytes()).unwrap_err();
            assert!(refused.to_string().contains(words), "{place} = {value:.80}: {refused}");
        }
        for text in [&b""[..], b"{}", b"\xff", b"null", &letter().text()[..100]] {
            assert!(Letter::parse(letter().id, text).is_err());
        }
        let mut newer = serde_json::to_value(Record::from(&letter())).unwrap();
        newer["colour"] = json!("blue");
        assert_eq!(Letter::parse(letter().id, newer.to_string().as_bytes()), Ok(letter()), "unknown fields");
    }

    #[test]
    fn a_line_says_whether_it_is_to_be_sent_again() {
        for is_requested in [true, false] {
            let line = letter().line(is_requested);
            let value: Value = serde_json::from_str(&line).unwrap();
            assert!(!line.contains('\n') && value["resend"] == is_requested && value["size"] == 22, "{line}");
        }
    }
}
