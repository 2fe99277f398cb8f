//! The payload of a Message record: see the table in [`super`].

use std::net::{IpAddr, SocketAddr};

use super::outcomes::{RecipientOutcome, decode_recipients, encode_recipient, recipient_size};
use super::{Fields, PieceRef, size_field};
use crate::mail::{Arrival, Body, Envelope, ForwardPath, Protocol, ReversePath};

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
    pub progress: &'a [RecipientOutcome],
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
        let progress_size: usize = self.progress.iter().map(recipient_size).sum();
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
        self.progress.iter().for_each(|recipient| encode_recipient(recipient, out));
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
    pub progress: Vec<RecipientOutcome>,
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
            progress: decode_recipients(fields.take(progress_size)?)?,
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
    paths + others.iter().map(|size| FIELD + size).sum::<usize>()
}

mod tag {
    pub const REVERSE_PATH: u8 = 1;
    pub const FORWARD_PATH: u8 = 2;
    pub const FLAGS: u8 = 3;
    pub const PEER: u8 = 4;
    pub const HELLO: u8 = 5;
    pub const ARRIVAL: u8 = 6;
}

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
        Protocol::Utf8Smtp => 2,
    };
    let flags = u8::from(envelope.body == Body::EightBit) | u8::from(envelope.smtputf8) << 1 | protocol << 2;
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
}

/// Reads an encoded envelope; `None` if it does not follow the format. Fields of unknown tags are skipped.
pub fn decode_envelope(octets: &[u8]) -> Option<(Envelope, Arrival)> {
    let mut fields = Fields(octets);
    let mut reverse_path = None;
    let mut forward_paths = Vec::new();
    let (mut flags, mut peer, mut hello, mut unix_time) = (0, None, "", 0);
    while !fields.0.is_empty() {
        let tag = fields.u8()?;
        let size = fields.u16()?;
        let octets = fields.take(size as usize)?;
        match tag {
            tag::REVERSE_PATH => {
                reverse_path = Some(ReversePath::parse(str::from_utf8(octets).ok()?, true).ok()?)
            }
            tag::FORWARD_PATH => {
                forward_paths.push(ForwardPath::parse(str::from_utf8(octets).ok()?, true).ok()?)
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
            _ => {}
        }
    }
    let envelope = Envelope {
        reverse_path: reverse_path?,
        forward_paths,
        body: if flags & 1 != 0 { Body::EightBit } else { Body::SevenBit },
        smtputf8: flags & 2 != 0,
    };
    let protocol = match flags >> 2 & 3 {
        0 => Protocol::Smtp,
        1 => Protocol::Esmtp,
        _ => Protocol::Utf8Smtp,
    };
    Some((envelope, Arrival { peer: peer?, hello: hello.into(), protocol, unix_time }))
}
