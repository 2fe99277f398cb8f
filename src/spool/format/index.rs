//! The payloads of Index and Seal records: see the table in [`super`].
//!
//! Together they let a start read what a sealed segment holds without reading the segment. They repeat what the records
//! themselves say; where they are missing or damaged, the records are read.

use super::{
    BLOCK_SIZE, Fields, Kind, PieceRef, RECORD_HEADER_SIZE, RecordHeader, decode_record, record_size,
    size_field,
};

/// An Index record is written when its entries are this many octets.
pub const INDEX_SIZE: usize = 8 * 1024;
/// Places of pieces in one entry at most; of a message with more, or with progress, the record itself is to be read.
const PIECES_MAX: usize = 16;
/// Stands for the number of pieces where the record itself is to be read.
const LOOK: u32 = u32::MAX;
const FIXED_SIZE: usize = 16;
const ENTRY_SIZE_MAX: usize = 9 + 16 + 24 * PIECES_MAX;
/// The largest Index record.
pub const INDEX_RECORD_SIZE_MAX: usize = record_size(FIXED_SIZE + INDEX_SIZE + ENTRY_SIZE_MAX);
/// The size of a seal without the zeros behind it.
pub const SEAL_RECORD_SIZE: usize = record_size(4);

/// What an index says of one record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IndexEntry {
    /// What the record is.
    pub kind: Kind,
    /// Where it is, octets from the start of the segment.
    pub offset: u32,
    /// Octets behind its header.
    pub payload_size: u32,
    /// More, if it is a message.
    pub message: Option<IndexedMessage>,
}

/// What an index says of a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IndexedMessage {
    /// Of the message id.
    pub sequence: u64,
    /// How many forward-paths its envelope has.
    pub recipient_count: u32,
    /// Its pieces; `None`: they, and what became of its recipients, are to be read in the record itself.
    pub pieces: Option<Box<[PieceRef]>>,
}

/// Gathers the index of a segment that is being written.
#[derive(Debug, Default)]
pub struct IndexBuilder {
    /// The offset of the Index record before; 0: none.
    previous: u32,
    first: u64,
    count: u32,
    entries: Vec<u8>,
}

impl IndexBuilder {
    /// A record was appended: the one after the last that was told.
    pub fn add(&mut self, sequence: u64, kind: Kind, offset: u32, payload_size: u32) {
        if self.count == 0 {
            self.first = sequence;
        }
        debug_assert!(
            self.first + u64::from(self.count) == sequence,
            "a segment's records are numbered without gaps"
        );
        self.count += 1;
        self.entries.push(kind as u8);
        self.entries.extend_from_slice(&offset.to_le_bytes());
        self.entries.extend_from_slice(&payload_size.to_le_bytes());
    }

    /// The record told last is this message; `has_progress`: its record says what became of its recipients.
    pub fn add_message(
        &mut self,
        sequence: u64,
        recipient_count: u32,
        pieces: &[PieceRef],
        has_progress: bool,
    ) {
        self.entries.extend_from_slice(&sequence.to_le_bytes());
        self.entries.extend_from_slice(&recipient_count.to_le_bytes());
        if has_progress || pieces.len() > PIECES_MAX {
            self.entries.extend_from_slice(&LOOK.to_le_bytes());
            return;
        }
        self.entries.extend_from_slice(&size_field(pieces.len()));
        pieces.iter().for_each(|piece| piece.encode(&mut self.entries));
    }

    /// Enough was gathered for a record.
    pub fn is_full(&self) -> bool {
        self.entries.len() >= INDEX_SIZE
    }

    /// The payload of the Index record for what was gathered. It will be at the offset that [`IndexBuilder::begin`] is told next.
    pub fn payload(&self) -> Vec<u8> {
        let mut payload = Vec::with_capacity(FIXED_SIZE + self.entries.len());
        payload.extend_from_slice(&self.previous.to_le_bytes());
        payload.extend_from_slice(&self.count.to_le_bytes());
        payload.extend_from_slice(&self.first.to_le_bytes());
        payload.extend_from_slice(&self.entries);
        payload
    }

    /// The Index record was appended at `offset`: a new one begins, with that record as its first.
    pub fn begin(&mut self, offset: u32) {
        self.previous = offset;
        self.count = 0;
        self.entries.clear();
    }

    /// The seal of a segment whose last record is the Index record that was appended last.
    pub fn seal(&self) -> Seal {
        assert!(self.count == 1 && self.previous != 0, "only its last Index record is in no Index record");
        Seal { next_sequence: self.first + 1, index: self.previous }
    }
}

/// An Index payload, taken apart.
#[derive(Debug, PartialEq, Eq)]
pub struct IndexPayload {
    /// The offset of the segment's Index record before this one; 0: none.
    pub previous: u32,
    /// The number of the first entry's record; each entry's is one more.
    pub first: u64,
    /// The records, in order.
    pub entries: Vec<IndexEntry>,
}

impl IndexPayload {
    /// `None` if the payload does not follow the format.
    pub fn decode(payload: &[u8]) -> Option<Self> {
        let mut fields = Fields(payload);
        let (previous, count, first) = (fields.u32()?, fields.u32()?, fields.u64()?);
        let mut entries = Vec::new();
        for _ in 0..count {
            let kind = Kind::from_octet(fields.u8()?)?;
            let (offset, payload_size) = (fields.u32()?, fields.u32()?);
            let message = if kind == Kind::Message { Some(decode_message(&mut fields)?) } else { None };
            entries.push(IndexEntry { kind, offset, payload_size, message });
        }
        fields.0.is_empty().then_some(IndexPayload { previous, first, entries })
    }
}

fn decode_message(fields: &mut Fields<'_>) -> Option<IndexedMessage> {
    let (sequence, recipient_count, piece_count) = (fields.u64()?, fields.u32()?, fields.u32()?);
    let pieces = match piece_count {
        LOOK => None,
        count => Some((0..count).map(|_| PieceRef::decode(fields)).collect::<Option<_>>()?),
    };
    Some(IndexedMessage { sequence, recipient_count, pieces })
}

/// The last block of a sealed segment: everything in front of it is durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seal {
    /// The number of the first record behind the segment: all with smaller numbers were durable when this was written.
    pub next_sequence: u64,
    /// The offset of the segment's last Index record, which is its last record.
    pub index: u32,
}

impl Seal {
    /// The block, for a segment with this `life`.
    pub fn encode(&self, life: u64) -> [u8; BLOCK_SIZE] {
        let payload = self.index.to_le_bytes();
        let header = RecordHeader {
            life,
            sequence: self.next_sequence,
            horizon: self.next_sequence,
            payload_size: payload.len() as u32,
            payload_crc: crc32c::crc32c(&payload),
            kind: Kind::Seal,
        };
        let mut block = [0; BLOCK_SIZE];
        block[..RECORD_HEADER_SIZE].copy_from_slice(&header.encode());
        block[RECORD_HEADER_SIZE..][..payload.len()].copy_from_slice(&payload);
        block
    }

    /// Reads a segment's last block; `None`: the segment was not sealed in this `life`, or the block is damaged.
    pub fn decode(block: &[u8], life: u64) -> Option<Self> {
        let (header, payload) = decode_record(block, life).filter(|(header, _)| header.kind == Kind::Seal)?;
        Some(Seal { next_sequence: header.sequence, index: Fields(payload).u32()? })
    }
}
