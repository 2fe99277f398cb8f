//! `dead.json`: what is known of a dead letter beside its content. Text and value are one.
//!
//! What is read is parsed into the types it was written from: a [`Letter`] can be put back into the queue as it is. Unknown
//! fields are skipped. Knows nothing of folders.

use std::collections::HashSet;

use serde::{Deserialize, Serialize};

use crate::delivery::record::{ArrivalRecord, EnvelopeRecord, Malformed};
use crate::delivery::{Attempt, Recipient};
use crate::mail::{Arrival, Envelope, ForwardPath, MessageId, Via};

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
    /// The recipients given up; never empty, each once for each target.
    pub recipients: Vec<GivenUp>,
}

/// A recipient given up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GivenUp {
    /// Its place in the envelope's forward-paths.
    pub index: u32,
    /// Attempts made.
    pub attempts: u32,
    /// Who gave it up.
    pub target: Option<Box<str>>,
    /// Why the last attempt failed.
    pub reason: String,
    /// When it was given up, in seconds since 1970.
    pub unix_time: u64,
}

/// Recipients given up by one target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    /// Which.
    pub target: Option<Box<str>>,
    /// Their places in the envelope's forward-paths.
    pub indices: Vec<u32>,
}

impl Group {
    /// Whether it is one of them.
    pub fn has(&self, recipient: &GivenUp) -> bool {
        recipient.target == self.target && self.indices.contains(&recipient.index)
    }
}

impl Letter {
    /// The dead letter of a message for some of its recipients, given up by `target` at `unix_time` after one attempt more than they
    /// say.
    pub fn of(attempt: &Attempt, target: &str, given_up: &[(Recipient, &str)], unix_time: u64) -> Self {
        let given_up = given_up.iter().map(|(recipient, reason)| GivenUp {
            index: recipient.index,
            attempts: recipient.attempts.saturating_add(1),
            target: Some(target.into()),
            reason: (*reason).into(),
            unix_time,
        });
        Letter {
            id: attempt.id,
            size: attempt.content_size(),
            envelope: (*attempt.envelope).clone(),
            arrival: (*attempt.arrival).clone(),
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

    /// Those whom the target gave up that gave up the first.
    pub fn first_group(&self) -> Group {
        let target = self.recipients.first().and_then(|first| first.target.clone());
        let of_target = self.recipients.iter().filter(|recipient| recipient.target == target);
        Group { indices: of_target.map(|recipient| recipient.index).collect(), target }
    }

    /// The envelope of a message for these recipients, and for nobody else. What other targets have or try is not theirs again.
    pub fn envelope_of(&self, group: &Group) -> Envelope {
        // A notification goes where notifications go.
        let via = match &self.envelope.via {
            Some(through @ Via::Through(_)) => Some(through.clone()),
            _ => group.target.clone().map(Via::Only),
        };
        Envelope { via, ..self.envelope.only(group.indices.iter().copied()) }
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
struct GivenUpRecord {
    /// Place in `envelope.forward_paths`, from 0.
    index: u32,
    forward_path: String,
    attempts: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    target: Option<Box<str>>,
    reason: String,
    unix_time: u64,
}

impl From<&Letter> for Record {
    fn from(letter: &Letter) -> Self {
        let recipient = |r: &GivenUp| GivenUpRecord {
            index: r.index,
            forward_path: letter.forward_path(r).as_str().into(),
            attempts: r.attempts,
            target: r.target.clone(),
            reason: r.reason.clone(),
            unix_time: r.unix_time,
        };
        Record {
            message_id: letter.id.to_string(),
            size: letter.size,
            envelope: EnvelopeRecord::from(&letter.envelope),
            arrival: ArrivalRecord::from(&letter.arrival),
            recipients: letter.recipients.iter().map(recipient).collect(),
        }
    }
}

fn parse_recipients(records: Vec<GivenUpRecord>, envelope: &Envelope) -> Result<Vec<GivenUp>, Malformed> {
    let mut seen = HashSet::new();
    if records.is_empty() {
        return Err(Malformed("recipients: expected one at least".into()));
    }
    let parse = |record: GivenUpRecord| {
        let GivenUpRecord { index, forward_path, attempts, target, reason, unix_time } = record;
        let path = envelope.forward_paths.get(index as usize);
        if path.is_none_or(|path| path.as_str() != forward_path) {
            let words = format!("recipients: {forward_path:?} is not number {index} of the envelope");
            return Err(Malformed(words));
        }
        match seen.insert((index, target.clone())) {
            false => Err(Malformed(format!("recipients: number {index} is there twice"))),
            true => Ok(GivenUp { index, attempts, target, reason, unix_time }),
        }
    };
    records.into_iter().map(parse).collect()
}

#[cfg(test)]
pub(super) mod tests {
    use std::sync::Arc;

    use serde_json::{Value, json};

    use super::*;
    use crate::mail::{
        Body, ClientCertificate, Dsn, EnvelopeId, Notify, OriginalRecipient, Protocol, Provenance,
        RecipientDsn, Ret, ReversePath, Tag, Tls, TlsVersion, Via,
    };

    /// A letter of three recipients, two of them given up.
    pub fn letter() -> Letter {
        let path = |text| ForwardPath::parse(text, true).unwrap();
        let given_up = |index, unix_time| GivenUp {
            index,
            attempts: 7,
            target: Some("store".into()),
            reason: "said \"no\"\n".into(),
            unix_time,
        };
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
                via: Some(Via::Through("relay".into())),
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
                client_name: Some("mail.peer.example".into()),
                tags: ["list:zen", "seen"].map(|text| Tag::parse(text).unwrap()).to_vec(),
                unix_time: 1_700_000_000,
                provenance: Provenance::Session {
                    connected: 1_699_999_999_123,
                    waited_millis: 877,
                    number: 2,
                },
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
                client_name: None,
                tags: Vec::new(),
                provenance: Provenance::Unknown,
                ..full.arrival.clone()
            },
            ..full.clone()
        };
        let of = MessageId { log: 7, sequence: 8 };
        let after = [Provenance::Resent(of), Provenance::About(of)].map(|provenance| Letter {
            arrival: Arrival { provenance, ..full.arrival.clone() },
            ..full.clone()
        });
        for letter in [full, null, plain].into_iter().chain(after) {
            assert_eq!(Letter::parse(letter.id, &letter.text()), Ok(letter));
        }
    }

    #[test]
    fn the_envelope_of_those_given_up_has_nobody_else() {
        let letter = letter();
        let envelope = letter.envelope_of(&letter.first_group());
        assert_eq!(envelope.via, letter.envelope.via, "a notification goes where notifications go");
        let plain = Letter { envelope: Envelope { via: None, ..letter.envelope.clone() }, ..letter.clone() };
        assert_eq!(plain.envelope_of(&plain.first_group()).via, Some(Via::Only("store".into())));
        let paths: Vec<_> = envelope.forward_paths.iter().map(ForwardPath::as_str).collect();
        assert_eq!(paths, ["postmaster", "\"a b\"@e.org"]);
        let asked: Vec<_> = envelope.dsn.iter().flat_map(|dsn| &dsn.recipients).map(|r| r.index).collect();
        assert_eq!(asked, [0, 1], "what was asked about each goes with it");
        let Envelope { forward_paths, dsn, via, .. } = letter.envelope.clone();
        assert_eq!(Envelope { forward_paths, dsn, via, ..envelope }, letter.envelope);
        assert_eq!(letter.newest(), 1_700_000_900);
    }

    #[test]
    fn what_is_not_a_record_is_refused_with_the_key() {
        let table: [(&str, Value, &str); 30] = [
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
            ("/arrival/client_name", json!("a b"), "arrival.client_name"),
            ("/arrival/tags/0", json!("a b"), "arrival.tags"),
            ("/arrival/tags", json!(vec!["x"; 17]), "arrival.tags"),
            ("/arrival/peer", json!("192.0.2.1"), "arrival.peer"),
            ("/arrival/hello", json!("x\ny"), "arrival.hello"),
            ("/arrival/hello", json!("x".repeat(65_536)), "arrival.hello"),
            ("/arrival/protocol", json!("UUCP"), "arrival.protocol"),
            ("/arrival/provenance", json!({"resent": "U"}), "arrival.provenance"),
            ("/arrival/provenance", json!({"born": 1}), "unknown variant"),
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
