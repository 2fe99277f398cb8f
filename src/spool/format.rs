//! THE BYTES: what a segment file holds, octet by octet.
//!
//! All integers are little-endian. A segment file is `segment_size` octets, written through once with zeros before its
//! first use. It begins with two identical header blocks of [`BLOCK_SIZE`] octets (two, so that one damaged block does not
//! cost the segment), then records.
//!
//! ```text
//! header block   0  8  magic "INCOMSEG"
//!                8  4  version (1)
//!               12  4  log: which log the segment belongs to (the first part of its message ids)
//!               16  8  epoch: the segment's number in its log; rises with every new life of any file
//!               24  8  life: drawn at random for this life of the file; every record of it carries it
//!               32  4  segment size in octets
//!               36  4  crc32c of octets 0..36
//!               40     zeros to the end of the block
//!
//! record         0  4  magic "iRec"
//!                4  4  crc32c of octets 8..48
//!                8  8  life of the segment
//!               16  8  sequence: the record's number in its log; rises by one
//!               24  8  horizon: every record with a smaller sequence was durable when this one was written
//!               32  4  payload size in octets
//!               36  4  crc32c of the payload
//!               40  1  kind: 1 Open, 2 Piece, 3 Message, 4 Outcomes
//!               41  7  zeros
//!               48     payload, then zeros to the next multiple of 8
//! ```
//!
//! Records are appended in batches. A batch begins at a multiple of [`BLOCK_SIZE`] and is padded with zeros to one, so
//! that no block is ever written twice in one life: an acknowledged sector is never written again.
//!
//! A record is valid if and only if
//! 1. it begins at a multiple of 8 and has the magic;
//! 2. the CRC of its header is right;
//! 3. its life is that of its segment (so records of a file's former life are not records, nor is content that looks like one:
//!    nobody outside can know the life);
//! 4. it ends within the segment;
//! 5. the CRC of its payload is right.
//!
//! Payloads:
//!
//! ```text
//! Open           0  8  epoch of the segment
//!                8  8  void_from: records with a sequence from here up to this record's are void: they were never acknowledged
//!
//! Piece          0     octets of content; nothing else
//!
//! Message        0  8  sequence of the message id (this record's own unless it was carried forward)
//!                8  8  content size: octets of all pieces and the tail
//!               16  4  number of pieces
//!               20  4  envelope size
//!               24  4  trace size
//!               28  4  tail size
//!               32     pieces, 24 octets each: epoch (8), sequence of the Piece record (8), its offset in the segment (4), its
//!                      payload size (4)
//!                      envelope: fields, each tag (1), size (2), octets; see below
//!                      trace: the Received: field; the message is trace, pieces, tail
//!                      tail: the rest of the content, all of it for a small message
//!
//! envelope       1  reverse-path (empty: null)      2  a forward-path (repeated, in order)
//! fields         3  flags: bit 0 8BITMIME, bit 1 SMTPUTF8, bits 2-3 protocol (0 SMTP, 1 ESMTP, 2 UTF8SMTP)
//!                4  peer: port (2), address (4 or 16)  5  hello  6  arrival, seconds since 1970 (8)
//!
//! Outcomes       entries: sequence of the message id (8), number of recipients (4); 0 recipients: the message is done;
//!                else per recipient: index (4), state (1: 1 done, 2 deferred), attempts (4), next attempt in seconds
//!                since 1970 (8), reason size (2), reason
//! ```

use crate::mail::{Arrival, Body, Envelope, ForwardPath, Protocol, ReversePath};
use std::net::{IpAddr, SocketAddr};

/// The unit of writing, octets. Writes start and end at multiples of it: 4096 is the largest physical sector in use, so a
/// torn read-modify-write inside the device cannot touch an acknowledged record either.
pub const BLOCK_SIZE: usize = 4096;
/// Where records begin: behind the two header blocks.
pub const RECORDS_OFFSET: u64 = 2 * BLOCK_SIZE as u64;
/// Records begin at multiples of this.
pub const RECORD_ALIGNMENT: usize = 8;
/// The size of a record's header.
pub const RECORD_HEADER_SIZE: usize = 48;
/// The version this code writes, and the only one it reads.
pub const VERSION: u32 = 1;

const SEGMENT_MAGIC: &[u8; 8] = b"INCOMSEG";
/// The first octets of every record; recovery searches for them behind damage.
pub const RECORD_MAGIC: &[u8; 4] = b"iRec";
const SEGMENT_HEADER_SIZE: usize = 40;
const MESSAGE_FIXED_SIZE: usize = 32;
const PIECE_REF_SIZE: usize = 24;

const _: () = assert!(RECORD_HEADER_SIZE.is_multiple_of(RECORD_ALIGNMENT));
const _: () = assert!(BLOCK_SIZE.is_multiple_of(RECORD_ALIGNMENT));
const _: () = assert!(SEGMENT_HEADER_SIZE <= BLOCK_SIZE);

/// Who a segment file is in its present life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentHeader {
    /// The log it belongs to.
    pub log: u32,
    /// Its number in the log.
    pub epoch: u64,
    /// The random number of this life.
    pub life: u64,
    /// The file's size, octets.
    pub size: u32,
}

/// Why a segment's header was not read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BadHeader {
    /// Neither block is a header: the file was never finished, or both are damaged.
    NotAHeader,
    /// A header of a version this program does not know.
    UnknownVersion(u32),
}

impl SegmentHeader {
    /// The two header blocks.
    pub fn encode(&self) -> Vec<u8> {
        let mut block = vec![0; BLOCK_SIZE];
        block[0..8].copy_from_slice(SEGMENT_MAGIC);
        block[8..12].copy_from_slice(&VERSION.to_le_bytes());
        block[12..16].copy_from_slice(&self.log.to_le_bytes());
        block[16..24].copy_from_slice(&self.epoch.to_le_bytes());
        block[24..32].copy_from_slice(&self.life.to_le_bytes());
        block[32..36].copy_from_slice(&self.size.to_le_bytes());
        let crc = crc32c::crc32c(&block[..36]);
        block[36..40].copy_from_slice(&crc.to_le_bytes());
        block.extend_from_within(..);
        block
    }

    /// Reads the header of a segment: a block of the first two that is one. Where they differ (another segment's header
    /// was written over one of them), it is the one whose life the first record has.
    pub fn decode(segment: &[u8]) -> Result<Self, BadHeader> {
        let read = |n: usize| Self::decode_block(segment.get(n * BLOCK_SIZE..)?);
        match (read(0), read(1)) {
            (Some(Ok(first)), Some(Ok(second))) if first != second => {
                let record = segment.get(RECORDS_OFFSET as usize..).and_then(RecordHeader::decode);
                let is_second = record.is_some_and(|record| record.life == second.life);
                Ok(if is_second { second } else { first })
            }
            (Some(header), _) | (None, Some(header)) => header,
            (None, None) => Err(BadHeader::NotAHeader),
        }
    }

    fn decode_block(block: &[u8]) -> Option<Result<Self, BadHeader>> {
        let header = block.get(..SEGMENT_HEADER_SIZE)?;
        let mut fields = Fields(header);
        if fields.take(8)? != SEGMENT_MAGIC || crc32c::crc32c(&header[..36]).to_le_bytes() != header[36..40] {
            return None;
        }
        let version = fields.u32()?;
        let header = SegmentHeader {
            log: fields.u32()?,
            epoch: fields.u64()?,
            life: fields.u64()?,
            size: fields.u32()?,
        };
        Some(if version == VERSION { Ok(header) } else { Err(BadHeader::UnknownVersion(version)) })
    }
}

/// What a record says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// A segment begins.
    Open = 1,
    /// A part of the content of a message that is still being received.
    Piece = 2,
    /// A message. Its commit point.
    Message = 3,
    /// What became of deliveries.
    Outcomes = 4,
}

impl Kind {
    fn from_octet(octet: u8) -> Option<Self> {
        [Kind::Open, Kind::Piece, Kind::Message, Kind::Outcomes].into_iter().find(|k| *k as u8 == octet)
    }
}

/// A record's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordHeader {
    /// The life of the segment it is in.
    pub life: u64,
    /// Its number in the log.
    pub sequence: u64,
    /// Every record with a smaller sequence was durable when this one was written.
    pub horizon: u64,
    /// Octets that follow the header.
    pub payload_size: u32,
    /// Of the payload.
    pub payload_crc: u32,
    /// What the payload is.
    pub kind: Kind,
}

impl RecordHeader {
    /// The header's octets.
    pub fn encode(&self) -> [u8; RECORD_HEADER_SIZE] {
        let mut octets = [0; RECORD_HEADER_SIZE];
        octets[0..4].copy_from_slice(RECORD_MAGIC);
        octets[8..16].copy_from_slice(&self.life.to_le_bytes());
        octets[16..24].copy_from_slice(&self.sequence.to_le_bytes());
        octets[24..32].copy_from_slice(&self.horizon.to_le_bytes());
        octets[32..36].copy_from_slice(&self.payload_size.to_le_bytes());
        octets[36..40].copy_from_slice(&self.payload_crc.to_le_bytes());
        octets[40] = self.kind as u8;
        let crc = crc32c::crc32c(&octets[8..]);
        octets[4..8].copy_from_slice(&crc.to_le_bytes());
        octets
    }

    /// Reads a header; `None` unless conditions 1 and 2 of a valid record hold.
    pub fn decode(octets: &[u8]) -> Option<Self> {
        let header = octets.get(..RECORD_HEADER_SIZE)?;
        if header[..4] != *RECORD_MAGIC || crc32c::crc32c(&header[8..]).to_le_bytes() != header[4..8] {
            return None;
        }
        let mut fields = Fields(&header[8..]);
        Some(RecordHeader {
            life: fields.u64()?,
            sequence: fields.u64()?,
            horizon: fields.u64()?,
            payload_size: fields.u32()?,
            payload_crc: fields.u32()?,
            kind: Kind::from_octet(fields.u8()?)?,
        })
    }

    /// The record's size with header and padding.
    pub fn record_size(&self) -> usize {
        record_size(self.payload_size as usize)
    }
}

/// The size of a record with a payload of `payload_size` octets: header, payload, padding.
pub const fn record_size(payload_size: usize) -> usize {
    (RECORD_HEADER_SIZE + payload_size).next_multiple_of(RECORD_ALIGNMENT)
}

/// The payload of the valid record at the start of `octets`, all five conditions checked; `None` if there is none.
pub fn decode_record(octets: &[u8], life: u64) -> Option<(RecordHeader, &[u8])> {
    let header = RecordHeader::decode(octets)?;
    if header.life != life {
        return None;
    }
    let payload = octets.get(RECORD_HEADER_SIZE..)?.get(..header.payload_size as usize)?;
    (crc32c::crc32c(payload) == header.payload_crc).then_some((header, payload))
}

/// Where a Piece record is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PieceRef {
    /// The segment.
    pub epoch: u64,
    /// The record's number: another piece that came to stand in its place is not taken for it.
    pub sequence: u64,
    /// The record's offset in its segment.
    pub offset: u32,
    /// Octets of content in it.
    pub size: u32,
}

/// The payload of an Open record.
pub fn encode_open(epoch: u64, void_from: u64) -> [u8; 16] {
    let mut payload = [0; 16];
    payload[..8].copy_from_slice(&epoch.to_le_bytes());
    payload[8..].copy_from_slice(&void_from.to_le_bytes());
    payload
}

/// `void_from` of an Open record.
pub fn decode_open(payload: &[u8]) -> Option<u64> {
    let mut fields = Fields(payload);
    fields.u64()?;
    fields.u64()
}

/// Everything of a Message payload before the trace, ready to be followed by trace and tail.
pub fn encode_message_head(
    sequence: u64,
    content_size: u64,
    pieces: &[PieceRef],
    (envelope, arrival): (&Envelope, &Arrival),
    (trace_size, tail_size): (usize, usize),
    out: &mut Vec<u8>,
) {
    out.clear();
    out.extend_from_slice(&sequence.to_le_bytes());
    out.extend_from_slice(&content_size.to_le_bytes());
    out.extend_from_slice(&size_field(pieces.len()));
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(&size_field(trace_size));
    out.extend_from_slice(&size_field(tail_size));
    for piece in pieces {
        out.extend_from_slice(&piece.epoch.to_le_bytes());
        out.extend_from_slice(&piece.sequence.to_le_bytes());
        out.extend_from_slice(&piece.offset.to_le_bytes());
        out.extend_from_slice(&piece.size.to_le_bytes());
    }
    let start = out.len();
    encode_envelope(envelope, arrival, out);
    let envelope_size = size_field(out.len() - start);
    out[20..24].copy_from_slice(&envelope_size);
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
        let (trace_size, tail_size) = (fields.u32()? as usize, fields.u32()? as usize);
        let pieces = fields.take(piece_count.checked_mul(PIECE_REF_SIZE)?)?;
        let pieces = pieces.chunks_exact(PIECE_REF_SIZE).map(|octets| {
            let mut fields = Fields(octets);
            Some(PieceRef {
                epoch: fields.u64()?,
                sequence: fields.u64()?,
                offset: fields.u32()?,
                size: fields.u32()?,
            })
        });
        let pieces = pieces.collect::<Option<Vec<_>>>()?;
        let message = MessagePayload {
            sequence,
            content_size,
            pieces,
            envelope: fields.take(envelope_size)?,
            trace: fields.take(trace_size)?,
            tail: fields.take(tail_size)?,
        };
        let stored = message.pieces.iter().map(|p| u64::from(p.size)).sum::<u64>() + tail_size as u64;
        (fields.0.is_empty() && stored == content_size).then_some(message)
    }
}

/// The size of an encoded Message payload, given what goes into it.
pub fn message_payload_size(
    piece_count: usize,
    envelope_size: usize,
    trace_size: usize,
    tail_size: usize,
) -> usize {
    MESSAGE_FIXED_SIZE + piece_count * PIECE_REF_SIZE + envelope_size + trace_size + tail_size
}

/// The size [`encode_message_head`] will give the envelope.
pub fn envelope_size(envelope: &Envelope, arrival: &Arrival) -> usize {
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

/// What is written of one recipient after an attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecipientOutcome {
    /// Its place in the envelope's forward-paths.
    pub index: u32,
    /// Needs no further attempt.
    pub is_done: bool,
    /// Attempts made so far.
    pub attempts: u32,
    /// When to try again, in seconds since 1970; 0 when done.
    pub next_attempt: u64,
    /// Why the last attempt did not deliver; empty when it did.
    pub reason: Box<str>,
}

/// Appends an entry of an Outcomes payload. No recipients: the message is done.
pub fn encode_outcome(sequence: u64, recipients: &[RecipientOutcome], out: &mut Vec<u8>) {
    out.extend_from_slice(&sequence.to_le_bytes());
    out.extend_from_slice(&size_field(recipients.len()));
    for recipient in recipients {
        out.extend_from_slice(&recipient.index.to_le_bytes());
        out.push(if recipient.is_done { 1 } else { 2 });
        out.extend_from_slice(&recipient.attempts.to_le_bytes());
        out.extend_from_slice(&recipient.next_attempt.to_le_bytes());
        let reason = recipient.reason.floor_char_boundary(REASON_SIZE_MAX);
        out.extend_from_slice(&(reason as u16).to_le_bytes());
        out.extend_from_slice(&recipient.reason.as_bytes()[..reason]);
    }
}

/// Reasons are cut at this many octets: a next hop's longest reply line (RFC 5321 §4.5.3.1.5), twice.
const REASON_SIZE_MAX: usize = 1024;

/// One entry of an Outcomes payload.
#[derive(Debug, PartialEq, Eq)]
pub struct OutcomeEntry {
    /// Of the message id.
    pub sequence: u64,
    /// Empty: the message is done.
    pub recipients: Vec<RecipientOutcome>,
}

/// Reads an Outcomes payload; `None` if it does not follow the format.
pub fn decode_outcomes(payload: &[u8]) -> Option<Vec<OutcomeEntry>> {
    let mut fields = Fields(payload);
    let mut entries = Vec::new();
    while !fields.0.is_empty() {
        let sequence = fields.u64()?;
        let count = fields.u32()?;
        let mut recipients = Vec::new();
        for _ in 0..count {
            let index = fields.u32()?;
            let is_done = fields.u8()? == 1;
            let (attempts, next_attempt) = (fields.u32()?, fields.u64()?);
            let reason_size = fields.u16()?;
            let reason = str::from_utf8(fields.take(reason_size as usize)?).ok()?.into();
            recipients.push(RecipientOutcome { index, is_done, attempts, next_attempt, reason });
        }
        entries.push(OutcomeEntry { sequence, recipients });
    }
    Some(entries)
}

fn size_field(size: usize) -> [u8; 4] {
    u32::try_from(size).expect("every part of a record is bounded far below 4 GiB").to_le_bytes()
}

/// Takes fields from the front of octets that may be damaged: every read is checked.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn take(&mut self, size: usize) -> Option<&'a [u8]> {
        let (field, rest) = self.0.split_at_checked(size)?;
        self.0 = rest;
        Some(field)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }

    fn u8(&mut self) -> Option<u8> {
        self.array().map(|[octet]| octet)
    }

    fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_le_bytes)
    }

    fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn envelope() -> (Envelope, Arrival) {
        let envelope = Envelope {
            reverse_path: ReversePath::parse("a@e.org", false).unwrap(),
            forward_paths: ["b@example.com", "postmaster"]
                .map(|p| ForwardPath::parse(p, false).unwrap())
                .into(),
            body: Body::EightBit,
            smtputf8: true,
        };
        let arrival = Arrival {
            peer: "[::1]:25".parse().unwrap(),
            hello: "c.example".into(),
            protocol: Protocol::Utf8Smtp,
            unix_time: 1_700_000_000,
        };
        (envelope, arrival)
    }

    #[test]
    fn what_is_encoded_is_decoded() {
        let header = SegmentHeader { log: 7, epoch: 8, life: 9, size: 1 << 20 };
        assert_eq!(SegmentHeader::decode(&header.encode()), Ok(header));

        let (envelope, arrival) = envelope();
        let pieces = [(3, 8192, 100), (4, 16384, 50)].map(|(epoch, offset, size)| PieceRef {
            epoch,
            sequence: epoch,
            offset,
            size,
        });
        let mut payload = Vec::new();
        encode_message_head(5, 154, &pieces, (&envelope, &arrival), (5, 4), &mut payload);
        payload.extend_from_slice(b"tracetail");
        let message = MessagePayload::decode(&payload).unwrap();
        assert_eq!((message.sequence, message.content_size, &message.pieces[..]), (5, 154, &pieces[..]));
        assert_eq!((message.trace, message.tail), (&b"trace"[..], &b"tail"[..]));
        assert_eq!(decode_envelope(message.envelope), Some((envelope.clone(), arrival.clone())));
        assert_eq!(payload.len(), message_payload_size(2, envelope_size(&envelope, &arrival), 5, 4));

        let deferred = RecipientOutcome {
            index: 1,
            is_done: false,
            attempts: 3,
            next_attempt: 99,
            reason: "451 busy".into(),
        };
        let mut payload = Vec::new();
        encode_outcome(5, &[], &mut payload);
        encode_outcome(6, std::slice::from_ref(&deferred), &mut payload);
        let entries = decode_outcomes(&payload).unwrap();
        assert_eq!(entries[0], OutcomeEntry { sequence: 5, recipients: vec![] });
        assert_eq!(entries[1], OutcomeEntry { sequence: 6, recipients: vec![deferred] });
    }

    #[test]
    fn either_header_block_is_enough_and_a_strange_version_is_named() {
        let header = SegmentHeader { log: 7, epoch: 8, life: 9, size: 1 << 20 };
        for damaged in [0, BLOCK_SIZE] {
            let mut blocks = header.encode();
            blocks[damaged + 20] ^= 1;
            assert_eq!(SegmentHeader::decode(&blocks), Ok(header));
        }
        assert_eq!(SegmentHeader::decode(&[0; 8192]), Err(BadHeader::NotAHeader));
        let mut blocks = header.encode();
        blocks[8] = 2;
        let crc = crc32c::crc32c(&blocks[..36]);
        blocks[36..40].copy_from_slice(&crc.to_le_bytes());
        assert_eq!(SegmentHeader::decode(&blocks), Err(BadHeader::UnknownVersion(2)));
    }

    #[test]
    fn a_record_with_any_bit_flipped_is_not_valid() {
        let payload = *b"payload";
        let header = RecordHeader {
            life: 11,
            sequence: 12,
            horizon: 13,
            payload_size: 7,
            payload_crc: crc32c::crc32c(&payload),
            kind: Kind::Piece,
        };
        let mut record = header.encode().to_vec();
        record.extend_from_slice(&payload);
        assert_eq!(decode_record(&record, 11), Some((header, &payload[..])));
        assert_eq!(decode_record(&record, 10), None, "another life");
        assert_eq!(decode_record(&record[..record.len() - 1], 11), None, "beyond the end");
        for bit in 0..record.len() * 8 {
            record[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(decode_record(&record, 11), None, "bit {bit}");
            record[bit / 8] ^= 1 << (bit % 8);
        }
    }

    #[test]
    fn damaged_payloads_are_refused_not_trusted() {
        let (envelope, arrival) = envelope();
        let mut payload = Vec::new();
        encode_message_head(5, 4, &[], (&envelope, &arrival), (0, 4), &mut payload);
        payload.extend_from_slice(b"tail");
        for size in 0..payload.len() {
            assert_eq!(MessagePayload::decode(&payload[..size]), None);
        }
        payload[16] = 0xff;
        assert_eq!(MessagePayload::decode(&payload), None);
        assert_eq!(decode_outcomes(&[1, 2, 3]), None);
    }
}
