//! What records a segment has: read from its index, or found one by one.

use std::ops::Range;

use crate::spool::entry::Location;
use crate::spool::format::{
    self, BLOCK_SIZE, IndexPayload, IndexedMessage, Kind, MessagePayload, PieceRef, RECORDS_OFFSET,
    RecordHeader, Seal, SegmentHeader, TargetOutcomes,
};
use crate::spool::io::ReadSegment;

/// A segment's records.
#[derive(Debug, Default)]
pub struct Scan {
    pub records: Vec<Record>,
    /// Octets that should be records of this life and are not. The end of the last batch is not among them.
    pub damaged: Vec<Range<u32>>,
    /// Every record with a smaller number was durable, says the seal.
    pub horizon: u64,
}

/// A valid record.
#[derive(Debug)]
pub struct Record {
    pub sequence: u64,
    pub horizon: u64,
    pub location: Location,
    pub fact: Fact,
}

/// What recovery wants to know of a record.
#[derive(Debug)]
pub enum Fact {
    Open,
    Piece {
        size: u32,
    },
    Message(MessageFact),
    /// To be read when its turn comes.
    Outcomes,
    Index,
}

/// What recovery wants to know of a Message record.
#[derive(Debug)]
pub struct MessageFact {
    pub sequence: u64,
    pub pieces: Box<[PieceRef]>,
    pub recipient_count: u32,
    pub progress: Vec<TargetOutcomes>,
}

impl Fact {
    pub fn kind(&self) -> Kind {
        match self {
            Fact::Open => Kind::Open,
            Fact::Piece { .. } => Kind::Piece,
            Fact::Message(_) => Kind::Message,
            Fact::Outcomes => Kind::Outcomes,
            Fact::Index => Kind::Index,
        }
    }
}

/// Finds every valid record of the segment's present life.
pub fn scan_whole(header: &SegmentHeader, segment: &[u8]) -> Scan {
    let mut scan = Scan::default();
    let last_block = (header.size as usize).saturating_sub(BLOCK_SIZE);
    if let Some(seal) = segment.get(last_block..).and_then(|block| Seal::decode(block, header.life)) {
        scan.horizon = seal.next_sequence;
    }
    let mut at = RECORDS_OFFSET as usize;
    while at < segment.len() {
        if let Some((record, size)) = read_record(&segment[at..], header, at) {
            scan.records.push(record);
            at += size;
            continue;
        }
        let block_end = at.next_multiple_of(BLOCK_SIZE).min(segment.len());
        if block_end > at && segment[at..block_end].iter().all(|octet| *octet == 0) {
            at = block_end;
            continue;
        }
        // Here a batch begins, or there is damage. What follows may be unused, or a former life: look for a header of this
        // one. Its payload need not be intact for it to end the search.
        // It ends a damaged record too: content cannot look like one, so what looks like one is there because the header in
        // front is a copy of one from elsewhere.
        let own = RecordHeader::decode(&segment[at..]).filter(|h| h.life == header.life);
        if own.is_some_and(|own| own.kind == Kind::Seal) && at == last_block {
            break;
        }
        let own_end = own.map(|own| (at + own.record_size()).min(segment.len()));
        let before = own_end.unwrap_or(segment.len());
        let next = find_header(segment, at + format::RECORD_ALIGNMENT..before, header.life);
        // The seal stands alone: what is between the records and it is not damage.
        let next = next.filter(|next| *next != last_block || own_end.is_some());
        let Some(end) = next.or(own_end) else { break };
        scan.damaged.push(at as u32..end as u32);
        at = end;
    }
    scan
}

/// The first header of this life that begins in `range`.
fn find_header(segment: &[u8], range: Range<usize>, life: u64) -> Option<usize> {
    let octets = segment.get(range.start..(range.end + format::RECORD_MAGIC.len()).min(segment.len()))?;
    let found = memchr::memmem::find_iter(octets, format::RECORD_MAGIC).map(|found| range.start + found);
    found.take_while(|at| *at < range.end).find(|at| {
        at.is_multiple_of(format::RECORD_ALIGNMENT)
            && RecordHeader::decode(&segment[*at..]).is_some_and(|header| header.life == life)
    })
}

/// The valid and well-formed record at the start of `octets`, and its size.
fn read_record(octets: &[u8], segment: &SegmentHeader, offset: usize) -> Option<(Record, usize)> {
    let (header, payload) = format::decode_record(octets, segment.life)?;
    let fact = match header.kind {
        Kind::Open => format::decode_open(payload).map(|_| Fact::Open)?,
        Kind::Piece => Fact::Piece { size: header.payload_size },
        Kind::Message => Fact::Message(read_message(payload)?),
        Kind::Outcomes => format::decode_outcomes(payload).map(|_| Fact::Outcomes)?,
        Kind::Index => IndexPayload::decode(payload).map(|_| Fact::Index)?,
        Kind::Seal => return None,
    };
    let size = header.record_size();
    let location = Location { epoch: segment.epoch, offset: offset as u32, size: size as u32 };
    Some((Record { sequence: header.sequence, horizon: header.horizon, location, fact }, size))
}

fn read_message(payload: &[u8]) -> Option<MessageFact> {
    let message = MessagePayload::decode(payload)?;
    let (envelope, _) = format::decode_envelope(message.envelope)?;
    Some(MessageFact {
        sequence: message.sequence,
        pieces: message.pieces.into(),
        recipient_count: envelope.forward_paths.len() as u32,
        progress: message.progress,
    })
}

/// The records of a sealed segment as its index tells them; messages with many pieces or with progress are read. `None`: it was not sealed, or seal or index are damaged. A record that was to be read and is
/// damaged is left out.
pub fn scan_index<S: ReadSegment>(header: &SegmentHeader, segment: &mut S) -> Result<Option<Scan>, S::Error> {
    let last_block = u64::from(header.size).saturating_sub(BLOCK_SIZE as u64);
    let block = segment.read(last_block, BLOCK_SIZE)?;
    let Some(seal) = Seal::decode(&block, header.life) else { return Ok(None) };
    let Some(pages) = read_pages(header, &seal, segment)? else { return Ok(None) };
    let mut scan = Scan { horizon: seal.next_sequence, ..Scan::default() };
    for page in pages.into_iter().rev() {
        for (sequence, entry) in (page.first..).zip(page.entries) {
            let size = format::record_size(entry.payload_size as usize);
            let location = Location { epoch: header.epoch, offset: entry.offset, size: size as u32 };
            let known = match (entry.kind, entry.message) {
                (Kind::Open, _) => Some(Fact::Open),
                (Kind::Piece, _) => Some(Fact::Piece { size: entry.payload_size }),
                (Kind::Index, _) => Some(Fact::Index),
                (Kind::Outcomes, _) => Some(Fact::Outcomes),
                (Kind::Message, Some(IndexedMessage { sequence, recipient_count, pieces: Some(pieces) })) => {
                    Some(Fact::Message(MessageFact {
                        sequence,
                        pieces,
                        recipient_count,
                        progress: Vec::new(),
                    }))
                }
                _ => None,
            };
            let fact = match known {
                Some(fact) => Some(fact),
                None => {
                    let octets = segment.read(u64::from(entry.offset), size)?;
                    let record = read_record(&octets, header, entry.offset as usize);
                    record
                        .map(|(record, _)| record)
                        .filter(|record| record.sequence == sequence)
                        .map(|r| r.fact)
                }
            };
            let horizon = 0;
            scan.records.extend(fact.map(|fact| Record { sequence, horizon, location, fact }));
        }
    }
    let location = Location { epoch: header.epoch, offset: seal.index, size: 0 };
    scan.records.push(Record { sequence: seal.next_sequence - 1, horizon: 0, location, fact: Fact::Index });
    Ok(Some(scan))
}

/// The Index records of a sealed segment, youngest first; `None` unless together they tell of every record.
fn read_pages<S: ReadSegment>(
    header: &SegmentHeader,
    seal: &Seal,
    segment: &mut S,
) -> Result<Option<Vec<IndexPayload>>, S::Error> {
    let mut pages: Vec<IndexPayload> = Vec::new();
    let (mut at, mut below) = (seal.index, header.size);
    // The number that the next Index record must have: it is the last entry's, plus one.
    let Some(mut sequence) = seal.next_sequence.checked_sub(1) else { return Ok(None) };
    while at != 0 {
        if u64::from(at) < RECORDS_OFFSET || at >= below {
            return Ok(None);
        }
        let octets = segment.read(u64::from(at), format::INDEX_RECORD_SIZE_MAX)?;
        let record = format::decode_record(&octets, header.life);
        let record = record.filter(|(record, _)| record.kind == Kind::Index && record.sequence == sequence);
        let Some(page) = record.and_then(|(_, payload)| IndexPayload::decode(payload)) else {
            return Ok(None);
        };
        if page.first.checked_add(page.entries.len() as u64) != Some(sequence) {
            return Ok(None);
        }
        // The first entry of every page but the oldest is the Index record before.
        sequence = page.first;
        (at, below) = (page.previous, at);
        pages.push(page);
    }
    let first = pages.last().and_then(|page| page.entries.first());
    let is_complete =
        first.is_some_and(|first| first.kind == Kind::Open && u64::from(first.offset) == RECORDS_OFFSET);
    Ok(is_complete.then_some(pages))
}
