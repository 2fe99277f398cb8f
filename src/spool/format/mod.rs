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
//!               40  1  kind: 1 Open, 2 Piece, 3 Message, 4 Outcomes, 5 Index, 6 Seal
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
//!                8  4  number of ranges
//!               12     ranges, 16 octets each: first number (8), number behind the last (8): records with these numbers are
//!                      void: they were never acknowledged
//!
//! Piece          0     octets of content; nothing else
//!
//! Message        0  8  sequence of the message id (this record's own unless it was carried forward)
//!                8  8  content size: octets of all pieces and the tail
//!               16  4  number of pieces
//!               20  4  envelope size
//!               24  4  progress size
//!               28  4  trace size
//!               32  4  tail size
//!               36  4  zeros
//!               40     pieces, 24 octets each: epoch (8), sequence of the Piece record (8), its offset in the segment (4), its
//!                      payload size (4)
//!                      envelope: fields, each tag (1), size (2), octets; see below
//!                      progress: what became of recipients at targets, as in Outcomes; none: no attempt was made. Replaces what
//!                      earlier records say
//!                      trace: the Received: field; the message is trace, pieces, tail
//!                      tail: the rest of the content, all of it for a small message
//!
//! envelope       1  reverse-path (empty: null)      2  a forward-path (repeated, in order)
//! fields         3  flags: bit 0 8BITMIME, bit 1 SMTPUTF8, bits 2-3 protocol (0 SMTP, 1 and 2 ESMTP, 3 LMTP), bit 4 BINARYMIME,
//!                   bit 5 REQUIRETLS
//!                4  peer: port (2), address (4 or 16)  5  hello  6  arrival, seconds since 1970 (8)
//!                7  notifications: RET (1: 0 none, 1 FULL, 2 HDRS), ENVID (empty: none); only where any were asked for
//!                8  notifications of one recipient: index (4), NOTIFY (1: bit 0 SUCCESS, bit 1 FAILURE, bit 2 DELAY, no bit
//!                   NEVER; 255 none), ORCPT (empty: none); repeated, ascending by index
//!                9  TLS: version (1: 2 or 3 of TLS 1.2 or 1.3), size of the cipher's name (1), the name, size of the server's
//!                   name (1; 0: none was asked for), the name; and of a verified client certificate its SHA-256 (32), its name
//!               10  the user the peer has authenticated itself as  11  the peer's name, confirmed in the DNS  12  tag (repeated)
//!               13  who gets it, whatever the routes say  14  who of them gets it, if the routes name them
//!               15  the session: when it began, in milliseconds since 1970 (8), from then until the content had arrived, in
//!                   milliseconds (4), which of its contents it was (2)
//!               16  the message whose dead letter was sent again as this one: log (4), sequence (8)
//!               17  the message whose sender this one tells what became of it: log (4), sequence (8)
//!
//! Outcomes       entries: sequence of the message id (8), when the attempt began in milliseconds since 1970 (8; 0: none was made),
//!                how long it took in milliseconds (4), and what became of recipients at a target:
//!                      flags (1: bit 0 they are left at other targets too; bit 1, in Outcomes, nobody is left: the message is
//!                      done; bit 2 an order of the operator is behind the recipients, of whom there are none), size of the
//!                      target's name (1; 0: none in particular), the name, number of recipients (4), each:
//!                      index (4), state (1: 1 done, 2 deferred, 3 done by giving up), attempts (4), next attempt in seconds since
//!                      1970 (8), reason
//!                      or reply: size (2), text
//!
//! order          what (1: 1 hold, 2 release, 3 drop, with which the message is done, 4 retry: at the named target, without a name
//!                at all of them), when in milliseconds since 1970 (8), who gave it: size (1), text, why: size (2), text. In a
//!                Message record only a hold, which still is
//!
//! Index          0  4  offset of the segment's Index record before this one; 0: none
//!                4  4  number of entries
//!                8  8  number of the first entry's record; each entry's is one more
//!               16     entries, one for each record since the Index record before: kind (1), offset (4), payload size (4); of
//!                      a Message further: sequence of the message id (8), number of recipients (4), number of pieces (4), their
//!                      places as in Message; 2^32-1 pieces: look into the record
//!
//! Seal           0  4  offset of the segment's last Index record. Only in the last block of a segment, alone; its sequence and
//!                      horizon are the number of the first record behind the segment, it has none of its own
//! ```

mod index;
mod message;
mod orders;
mod outcomes;

use std::ops::Range;

pub use index::{
    INDEX_RECORD_SIZE_MAX, IndexBuilder, IndexEntry, IndexPayload, IndexedMessage, SEAL_RECORD_SIZE, Seal,
};
pub use message::{EnvelopeOctets, MessageHead, MessagePayload, decode_envelope};
pub use orders::{ORDER_BY_SIZE_MAX, ORDER_NOTE_SIZE_MAX, Order, OrderKind};
pub use outcomes::{
    Made, OutcomeEntry, OutcomeHead, RecipientOutcome, TargetOutcomes, decode_outcomes, encode_order,
    encode_outcome,
};

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

    /// The header of a segment whose header blocks are both damaged, as its first record tells it. That record is of the
    /// present life: sectors are whole, so a header block that was being written is the old one or the new one, and neither
    /// is damage. `log`: as the other segments say.
    pub fn rebuild(segment: &[u8], log: u32, size: u32) -> Option<Self> {
        let octets = segment.get(RECORDS_OFFSET as usize..)?;
        let life = RecordHeader::decode(octets)?.life;
        let (_, payload) = decode_record(octets, life).filter(|(header, _)| header.kind == Kind::Open)?;
        decode_open(payload).map(|(epoch, _)| SegmentHeader { log, epoch, life, size })
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
    /// What records a segment has.
    Index = 5,
    /// The last block of a segment that is complete and durable.
    Seal = 6,
}

impl Kind {
    fn from_octet(octet: u8) -> Option<Self> {
        use Kind::*;
        [Open, Piece, Message, Outcomes, Index, Seal].into_iter().find(|kind| *kind as u8 == octet)
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

impl PieceRef {
    fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.epoch.to_le_bytes());
        out.extend_from_slice(&self.sequence.to_le_bytes());
        out.extend_from_slice(&self.offset.to_le_bytes());
        out.extend_from_slice(&self.size.to_le_bytes());
    }

    fn decode(fields: &mut Fields<'_>) -> Option<Self> {
        let (epoch, sequence) = (fields.u64()?, fields.u64()?);
        Some(PieceRef { epoch, sequence, offset: fields.u32()?, size: fields.u32()? })
    }

    /// The Piece record's size with its header, octets.
    pub fn record_size(&self) -> usize {
        record_size(self.size as usize)
    }
}

/// The payload of an Open record.
pub fn encode_open(epoch: u64, voids: &[Range<u64>]) -> Vec<u8> {
    let mut payload = epoch.to_le_bytes().to_vec();
    payload.extend_from_slice(&size_field(voids.len()));
    for void in voids {
        payload.extend_from_slice(&void.start.to_le_bytes());
        payload.extend_from_slice(&void.end.to_le_bytes());
    }
    payload
}

/// The size of an Open record that voids `void_count` ranges.
pub const fn open_record_size(void_count: usize) -> usize {
    record_size(12 + 16 * void_count)
}

/// The segment's epoch, and the numbers that are void, of an Open payload; `None` if it does not follow the format.
pub fn decode_open(payload: &[u8]) -> Option<(u64, Vec<Range<u64>>)> {
    let mut fields = Fields(payload);
    let (epoch, count) = (fields.u64()?, fields.u32()?);
    let voids = (0..count).map(|_| Some(fields.u64()?..fields.u64()?)).collect::<Option<_>>()?;
    fields.0.is_empty().then_some((epoch, voids))
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
mod tests;
