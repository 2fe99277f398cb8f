//! The payload of a Message record: see the table in [`super`].

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use super::outcomes::{TargetOutcomes, decode_progress, encode_target_outcomes, target_outcomes_size};
use super::{Fields, PieceRef, size_field};
use crate::mail::{
    Arrival, Body, ClientCertificate, Dsn, Envelope, EnvelopeId, ForwardPath, MessageId, Notify,
    OriginalRecipient, Protocol, Provenance, RecipientDsn, Ret, ReversePath, Tag, Tls, TlsVersion, Via,
};

const FIXED_SIZE: usize = 40;
const PIECE_REF_SIZE: usize = 24;

/// Everything of a Message payload before the trace.
#[derive(Clone, Copy, Debug)]
pub struct MessageHead<'a> {
    /// Of the message id.
    pub sequence: u64,
    /// Octets of all pieces and the tail.
    pub content_size: u64,
    /// The pieces, in order.
    pub pieces: &'a [PieceRef],
    /// Who gets it, and how it came.
    pub envelope: EnvelopeOctets<'a>,
    /// What became of its recipients so far; empty: no attempt was made.
    pub progress: &'a [TargetOutcomes],
    /// Octets of the trace.
    pub trace_size: usize,
    /// Octets of the tail.
    pub tail_size: usize,
}

/// An envelope on its way into a record.
#[derive(Clone, Copy, Debug)]
pub enum EnvelopeOctets<'a> {
    /// To be encoded.
    Of(&'a Envelope, &'a Arrival),
    /// As another record had it.
    Encoded(&'a [u8]),
}

impl MessageHead<'_> {
    /// The size of the whole payload, trace and tail included.
    pub fn payload_size(&self) -> usize {
        let envelope_size = match self.envelope {
            EnvelopeOctets::Of(envelope, arrival) => envelope_size(envelope, arrival),
            EnvelopeOctets::Encoded(octets) => octets.len(),
        };
        let progress_size: usize = self.progress.iter().map(target_outcomes_size).sum();
        let pieces_size = self.pieces.len() * PIECE_REF_SIZE;
        FIXED_SIZE + pieces_size + envelope_size + progress_size + self.trace_size + self.tail_size
    }

    /// Writes the head to `out`, ready to be followed by trace and tail.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.clear();
        out.extend_from_slice(&self.sequence.to_le_bytes());
        out.extend_from_slice(&self.content_size.to_le_bytes());
        out.extend_from_slice(&size_field(self.pieces.len()));
        // The sizes of envelope and progress are known later.
        out.extend_from_slice(&[0; 8]);
        out.extend_from_slice(&size_field(self.trace_size));
        out.extend_from_slice(&size_field(self.tail_size));
        out.extend_from_slice(&[0; 4]);
        self.pieces.iter().for_each(|piece| piece.encode(out));
        let start = out.len();
        match self.envelope {
            EnvelopeOctets::Of(envelope, arrival) => encode_envelope(envelope, arrival, out),
            EnvelopeOctets::Encoded(octets) => out.extend_from_slice(octets),
        }
        let envelope_end = out.len();
        self.progress.iter().for_each(|outcomes| encode_target_outcomes(outcomes, out));
        let progress_size = size_field(out.len() - envelope_end);
        out[20..24].copy_from_slice(&size_field(envelope_end - start));
        out[24..28].copy_from_slice(&progress_size);
    }
}

/// A Message payload, taken apart.
#[derive(Debug, PartialEq, Eq)]
pub struct MessagePayload<'a> {
    /// Of the message id.
    pub sequence: u64,
    /// Octets of all pieces and the tail.
    pub content_size: u64,
    /// The pieces, in order.
    pub pieces: Vec<PieceRef>,
    /// The encoded envelope; see [`decode_envelope`].
    pub envelope: &'a [u8],
    /// What had become of its recipients when this record was written; empty: no attempt was made.
    pub progress: Vec<TargetOutcomes>,
    /// The Received: field.
    pub trace: &'a [u8],
    /// The content behind the pieces.
    pub tail: &'a [u8],
}

impl<'a> MessagePayload<'a> {
    /// `None` if the payload does not follow the format.
    pub fn decode(payload: &'a [u8]) -> Option<Self> {
        let mut fields = Fields(payload);
        let (sequence, content_size) = (fields.u64()?, fields.u64()?);
        let (piece_count, envelope_size) = (fields.u32()? as usize, fields.u32()? as usize);
        let (progress_size, trace_size) = (fields.u32()? as usize, fields.u32()? as usize);
        let tail_size = fields.u32()? as usize;
        fields.u32()?;
        let mut places = Fields(fields.take(piece_count.checked_mul(PIECE_REF_SIZE)?)?);
        let pieces = (0..piece_count).map(|_| PieceRef::decode(&mut places)).collect::<Option<Vec<_>>>()?;
        let message = MessagePayload {
            sequence,
            content_size,
            pieces,
            envelope: fields.take(envelope_size)?,
            progress: decode_progress(fields.take(progress_size)?)?,
            trace: fields.take(trace_size)?,
            tail: fields.take(tail_size)?,
        };
        let stored = message.pieces.iter().map(|p| u64::from(p.size)).sum::<u64>() + tail_size as u64;
        (fields.0.is_empty() && stored == content_size).then_some(message)
    }
}

/// The size of an encoded envelope.
fn envelope_size(envelope: &Envelope, arrival: &Arrival) -> usize {
    const FIELD: usize = 3;
    let paths = envelope.forward_paths.iter().map(|path| FIELD + path.as_str().len()).sum::<usize>();
    let peer = if arrival.peer.is_ipv4() { 6 } else { 18 };
    let others = [envelope.reverse_path.as_str().len(), 1, peer, arrival.hello.len(), 8];
    let dsn = envelope.dsn.as_ref().map_or(0, |dsn| {
        let recipient = |r: &RecipientDsn| FIELD + 5 + r.original.as_ref().map_or(0, |o| o.as_str().len());
        let envelope_id = dsn.envelope_id.as_ref().map_or(0, |id| id.as_str().len());
        FIELD + 1 + envelope_id + dsn.recipients.iter().map(recipient).sum::<usize>()
    });
    let tls = arrival.tls.as_ref().map_or(0, |tls| {
        let server_name = tls.server_name.as_ref().map_or(0, |name| name.len());
        let client = tls.client.as_ref().map_or(0, |client| client.fingerprint.len() + client.name.len());
        FIELD + 3 + tls.cipher.len() + server_name + client
    });
    let authenticated = arrival.authenticated.as_ref().map_or(0, |user| FIELD + user.len());
    let client_name = arrival.client_name.as_ref().map_or(0, |name| FIELD + name.len());
    let tags = arrival.tags.iter().map(|tag| FIELD + tag.as_str().len()).sum::<usize>();
    let via = envelope.via.as_ref().map_or(0, |via| FIELD + via.name().len());
    let provenance = match arrival.provenance {
        Provenance::Unknown => 0,
        Provenance::Session { .. } => FIELD + 14,
        Provenance::Resent(_) | Provenance::About(_) => FIELD + 12,
    };
    paths
        + others.iter().map(|size| FIELD + size).sum::<usize>()
        + dsn
        + tls
        + authenticated
        + client_name
        + tags
        + via
        + provenance
}

mod tag {
    pub const REVERSE_PATH: u8 = 1;
    pub const FORWARD_PATH: u8 = 2;
    pub const FLAGS: u8 = 3;
    pub const PEER: u8 = 4;
    pub const HELLO: u8 = 5;
    pub const ARRIVAL: u8 = 6;
    pub const DSN: u8 = 7;
    pub const RECIPIENT_DSN: u8 = 8;
    pub const TLS: u8 = 9;
    pub const AUTHENTICATED: u8 = 10;
    pub const CLIENT_NAME: u8 = 11;
    pub const TAG: u8 = 12;
    pub const THROUGH: u8 = 13;
    pub const ONLY: u8 = 14;
    pub const SESSION: u8 = 15;
    pub const RESENT: u8 = 16;
    pub const ABOUT: u8 = 17;
}

mod flag {
    pub const EIGHT_BIT: u8 = 1;
    pub const SMTPUTF8: u8 = 1 << 1;
    pub const PROTOCOL_SHIFT: u8 = 2;
    pub const PROTOCOL_MASK: u8 = 3;
    pub const BINARY: u8 = 1 << 4;
    pub const REQUIRE_TLS: u8 = 1 << 5;
}

/// NOTIFY was not given.
const NOT_NOTIFY: u8 = 0xff;

fn encode_envelope(envelope: &Envelope, arrival: &Arrival, out: &mut Vec<u8>) {
    let mut field = |tag: u8, octets: &[u8]| {
        let size =
            u16::try_from(octets.len()).expect("paths and hello names are bounded by smtp, far below 64 KiB");
        out.push(tag);
        out.extend_from_slice(&size.to_le_bytes());
        out.extend_from_slice(octets);
    };
    field(tag::REVERSE_PATH, envelope.reverse_path.as_str().as_bytes());
    for path in &envelope.forward_paths {
        field(tag::FORWARD_PATH, path.as_str().as_bytes());
    }
    let protocol = match arrival.protocol {
        Protocol::Smtp => 0,
        Protocol::Esmtp => 1,
        Protocol::Lmtp => 3,
    };
    let body = match envelope.body {
        Body::SevenBit => 0,
        Body::EightBit => flag::EIGHT_BIT,
        Body::Binary => flag::BINARY,
    };
    let or_none = |is_set, flag| if is_set { flag } else { 0 };
    let flags = body
        | or_none(envelope.smtputf8, flag::SMTPUTF8)
        | or_none(envelope.require_tls, flag::REQUIRE_TLS)
        | protocol << flag::PROTOCOL_SHIFT;
    field(tag::FLAGS, &[flags]);
    let mut peer = [0; 18];
    peer[..2].copy_from_slice(&arrival.peer.port().to_le_bytes());
    let peer_size = match arrival.peer.ip() {
        IpAddr::V4(ip) => {
            peer[2..6].copy_from_slice(&ip.octets());
            6
        }
        IpAddr::V6(ip) => {
            peer[2..18].copy_from_slice(&ip.octets());
            18
        }
    };
    field(tag::PEER, &peer[..peer_size]);
    field(tag::HELLO, arrival.hello.as_bytes());
    field(tag::ARRIVAL, &arrival.unix_time.to_le_bytes());
    if let Some(dsn) = &envelope.dsn {
        let ret = match dsn.ret {
            None => 0,
            Some(Ret::Full) => 1,
            Some(Ret::Headers) => 2,
        };
        let envelope_id = dsn.envelope_id.as_ref().map_or("", EnvelopeId::as_str);
        field(tag::DSN, &[&[ret], envelope_id.as_bytes()].concat());
        for RecipientDsn { index, notify, original } in &dsn.recipients {
            let notify = notify.map_or(NOT_NOTIFY, Notify::bits);
            let original = original.as_ref().map_or("", OriginalRecipient::as_str);
            field(tag::RECIPIENT_DSN, &[&index.to_le_bytes()[..], &[notify], original.as_bytes()].concat());
        }
    }
    if let Some(tls) = &arrival.tls {
        field(tag::TLS, &encode_tls(tls));
    }
    if let Some(user) = &arrival.authenticated {
        field(tag::AUTHENTICATED, user.as_bytes());
    }
    if let Some(name) = &arrival.client_name {
        field(tag::CLIENT_NAME, name.as_bytes());
    }
    for tag in &arrival.tags {
        field(tag::TAG, tag.as_str().as_bytes());
    }
    match &envelope.via {
        None => {}
        Some(Via::Through(name)) => field(tag::THROUGH, name.as_bytes()),
        Some(Via::Only(name)) => field(tag::ONLY, name.as_bytes()),
    }
    match arrival.provenance {
        Provenance::Unknown => {}
        Provenance::Session { connected, waited_millis, number } => {
            let octets = [&connected.to_le_bytes()[..], &waited_millis.to_le_bytes(), &number.to_le_bytes()];
            field(tag::SESSION, &octets.concat());
        }
        Provenance::Resent(id) => field(tag::RESENT, &encode_id(id)),
        Provenance::About(id) => field(tag::ABOUT, &encode_id(id)),
    }
}

fn encode_id(id: MessageId) -> Vec<u8> {
    [&id.log.to_le_bytes()[..], &id.sequence.to_le_bytes()].concat()
}

fn decode_id(octets: &[u8]) -> Option<MessageId> {
    let mut fields = Fields(octets);
    Some(MessageId { log: fields.u32()?, sequence: fields.u64()? })
}

fn encode_tls(tls: &Tls) -> Vec<u8> {
    let version = match tls.version {
        TlsVersion::Tls12 => 2,
        TlsVersion::Tls13 => 3,
    };
    let size =
        |text: &str| u8::try_from(text.len()).expect("names of ciphers and hosts have at most 255 octets");
    let server_name = tls.server_name.as_deref().unwrap_or("");
    let mut octets = vec![version, size(&tls.cipher)];
    octets.extend_from_slice(tls.cipher.as_bytes());
    octets.push(size(server_name));
    octets.extend_from_slice(server_name.as_bytes());
    if let Some(ClientCertificate { name, fingerprint }) = &tls.client {
        octets.extend_from_slice(fingerprint);
        octets.extend_from_slice(name.as_bytes());
    }
    octets
}

fn decode_tls(octets: &[u8]) -> Option<Tls> {
    let mut fields = Fields(octets);
    let version = match fields.u8()? {
        2 => TlsVersion::Tls12,
        3 => TlsVersion::Tls13,
        _ => return None,
    };
    let mut text = || {
        let size = fields.u8()?;
        str::from_utf8(fields.take(size.into())?).ok()
    };
    let cipher = text()?.into();
    let server_name = Some(text()?).filter(|name| !name.is_empty()).map(Box::from);
    let client = match fields.0 {
        [] => None,
        _ => {
            let fingerprint = fields.take(32)?.try_into().ok()?;
            Some(ClientCertificate { name: str::from_utf8(fields.0).ok()?.into(), fingerprint })
        }
    };
    Some(Tls { version, cipher, server_name, client })
}

/// Reads an encoded envelope; `None` if it does not follow the format. Fields of unknown tags are skipped.
pub fn decode_envelope(octets: &[u8]) -> Option<(Envelope, Arrival)> {
    let mut fields = Fields(octets);
    let mut reverse_path = None;
    let mut forward_paths = Vec::new();
    let (mut flags, mut peer, mut hello, mut unix_time) = (0, None, "", 0);
    let mut dsn: Option<Box<Dsn>> = None;
    let (mut tls, mut authenticated, mut client_name) = (None, None, None);
    let (mut tags, mut via, mut provenance) = (Vec::new(), None, Provenance::Unknown);
    while !fields.0.is_empty() {
        let tag = fields.u8()?;
        let size = fields.u16()?;
        let octets = fields.take(size as usize)?;
        match tag {
            tag::REVERSE_PATH => {
                reverse_path = Some(ReversePath::parse_stored(str::from_utf8(octets).ok()?).ok()?)
            }
            tag::FORWARD_PATH => {
                forward_paths.push(ForwardPath::parse_stored(str::from_utf8(octets).ok()?).ok()?)
            }
            tag::FLAGS => flags = *octets.first()?,
            tag::PEER => {
                let mut fields = Fields(octets);
                let port = fields.u16()?;
                let ip = match fields.0.len() {
                    4 => IpAddr::from(<[u8; 4]>::try_from(fields.0).ok()?),
                    _ => IpAddr::from(<[u8; 16]>::try_from(fields.0).ok()?),
                };
                peer = Some(SocketAddr::new(ip, port));
            }
            tag::HELLO => hello = str::from_utf8(octets).ok()?,
            tag::ARRIVAL => unix_time = Fields(octets).u64()?,
            tag::DSN => {
                let (ret, envelope_id) = octets.split_first()?;
                let dsn = dsn.get_or_insert_default();
                dsn.ret = match ret {
                    0 => None,
                    1 => Some(Ret::Full),
                    2 => Some(Ret::Headers),
                    _ => return None,
                };
                if !envelope_id.is_empty() {
                    dsn.envelope_id = Some(EnvelopeId::parse(str::from_utf8(envelope_id).ok()?)?);
                }
            }
            tag::RECIPIENT_DSN => {
                let mut fields = Fields(octets);
                let (index, notify) = (fields.u32()?, fields.u8()?);
                let notify = match notify {
                    NOT_NOTIFY => None,
                    bits => Some(Notify::from_bits(bits)?),
                };
                let original = match fields.0 {
                    [] => None,
                    octets => Some(OriginalRecipient::parse(str::from_utf8(octets).ok()?, true)?),
                };
                dsn.get_or_insert_default().recipients.push(RecipientDsn { index, notify, original });
            }
            tag::TLS => tls = Some(Arc::new(decode_tls(octets)?)),
            tag::CLIENT_NAME => client_name = Some(Box::from(str::from_utf8(octets).ok()?)),
            tag::TAG => tags.push(Tag::parse(str::from_utf8(octets).ok()?)?),
            tag::AUTHENTICATED => authenticated = Some(Arc::from(str::from_utf8(octets).ok()?)),
            tag::THROUGH => via = Some(Via::Through(str::from_utf8(octets).ok()?.into())),
            tag::ONLY => via = Some(Via::Only(str::from_utf8(octets).ok()?.into())),
            tag::SESSION => {
                let mut fields = Fields(octets);
                let (connected, waited_millis) = (fields.u64()?, fields.u32()?);
                provenance = Provenance::Session { connected, waited_millis, number: fields.u16()? };
            }
            tag::RESENT => provenance = Provenance::Resent(decode_id(octets)?),
            tag::ABOUT => provenance = Provenance::About(decode_id(octets)?),
            _ => {}
        }
    }
    let is_ascending = |dsn: &Dsn| dsn.recipients.is_sorted_by(|a, b| a.index < b.index);
    let is_within =
        |dsn: &Dsn| dsn.recipients.last().is_none_or(|r| (r.index as usize) < forward_paths.len());
    if dsn.as_ref().is_some_and(|dsn| !is_ascending(dsn) || !is_within(dsn)) {
        return None;
    }
    let envelope = Envelope {
        reverse_path: reverse_path?,
        forward_paths,
        body: match flags & (flag::EIGHT_BIT | flag::BINARY) {
            0 => Body::SevenBit,
            flag::EIGHT_BIT => Body::EightBit,
            _ => Body::Binary,
        },
        smtputf8: flags & flag::SMTPUTF8 != 0,
        require_tls: flags & flag::REQUIRE_TLS != 0,
        dsn,
        via,
    };
    let protocol = match flags >> flag::PROTOCOL_SHIFT & flag::PROTOCOL_MASK {
        0 => Protocol::Smtp,
        1 | 2 => Protocol::Esmtp,
        _ => Protocol::Lmtp,
    };
    let arrival = Arrival {
        peer: peer?,
        hello: hello.into(),
        protocol,
        tls,
        authenticated,
        client_name,
        tags,
        unix_time,
        provenance,
    };
    Some((envelope, arrival))
}
