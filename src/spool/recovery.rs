//! From the octets of a log's segments to what is not done.
//!
//! Two steps, both pure. [`scan`] reads one segment and finds every valid record in it, also behind damage. [`merge`]
//! puts the segments of a log in order and decides, by the records' sequence numbers:
//!
//! ```text
//! a record is …                      and …                                     verdict
//! valid, its number follows          -                                         keep
//! missing or not valid               an Open record voids its number           void: its peer was told 4xx, or nothing
//! missing or not valid               a valid record's horizon is beyond it     corrupt: it had been acknowledged; reported, the
//!                                                                              intact records on both sides are kept
//! missing or not valid               no horizon is beyond it                   cut the tail here: it was never acknowledged
//! valid                              behind the cut                            void
//! valid Message                      one of its pieces is missing              corrupt: reported
//! none left                          -                                         end
//! ```
//!
//! Nothing is written here: the next life of the log begins in a new segment, whose Open record says from where on numbers
//! are void.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::ops::Range;

use super::format::{
    self, BLOCK_SIZE, Kind, MessagePayload, OutcomeEntry, PieceRef, RECORDS_OFFSET, SegmentHeader,
};
use super::io::Slot;
use super::ledger::{Location, RecoveredEntry, apply_outcomes};

/// A segment as [`scan`] found it.
#[derive(Debug)]
pub struct Scan {
    /// Its file.
    pub slot: Slot,
    /// Its header.
    pub header: SegmentHeader,
    records: Vec<Record>,
    /// The file is as long as its header says: it can be used again.
    is_whole: bool,
    /// Octets that should be records of this life and are not. The end of the last batch is not among them.
    pub damaged: Vec<Range<u32>>,
}

#[derive(Debug)]
struct Record {
    sequence: u64,
    horizon: u64,
    location: Location,
    fact: Fact,
}

#[derive(Debug)]
enum Fact {
    Open { void_from: u64 },
    Piece { size: u32 },
    Message { sequence: u64, pieces: Box<[PieceRef]>, recipient_count: u32 },
    Outcomes(Vec<OutcomeEntry>),
}

/// Finds every valid record of the segment's present life.
pub fn scan(slot: Slot, header: SegmentHeader, segment: &[u8]) -> Scan {
    let is_whole = segment.len() == header.size as usize;
    let mut scan = Scan { slot, header, records: Vec::new(), is_whole, damaged: Vec::new() };
    let mut at = RECORDS_OFFSET as usize;
    while at < segment.len() {
        if let Some((record, size)) = read(&segment[at..], &header, at) {
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
        let own = format::RecordHeader::decode(&segment[at..]).filter(|h| h.life == header.life);
        let own_end = own.map(|own| (at + own.record_size()).min(segment.len()));
        let before = own_end.unwrap_or(segment.len());
        let next = find_header(segment, at + format::RECORD_ALIGNMENT..before, header.life);
        let Some(end) = next.or(own_end) else { break };
        scan.damaged.push(at as u32..end as u32);
        at = end;
    }
    scan
}

/// The valid and well-formed record at the start of `octets`, and its size.
fn read(octets: &[u8], segment: &SegmentHeader, offset: usize) -> Option<(Record, usize)> {
    let (header, payload) = format::decode_record(octets, segment.life)?;
    let fact = match header.kind {
        Kind::Open => Fact::Open { void_from: format::decode_open(payload)? },
        Kind::Piece => Fact::Piece { size: header.payload_size },
        Kind::Message => {
            let message = MessagePayload::decode(payload)?;
            let (envelope, _) = format::decode_envelope(message.envelope)?;
            Fact::Message {
                sequence: message.sequence,
                pieces: message.pieces.into(),
                recipient_count: envelope.forward_paths.len() as u32,
            }
        }
        Kind::Outcomes => Fact::Outcomes(format::decode_outcomes(payload)?),
    };
    let size = header.record_size();
    let location = Location { epoch: segment.epoch, offset: offset as u32, size: size as u32 };
    Some((Record { sequence: header.sequence, horizon: header.horizon, location, fact }, size))
}

/// The first header of this life that begins in `range`.
fn find_header(segment: &[u8], range: Range<usize>, life: u64) -> Option<usize> {
    let octets = segment.get(range.start..(range.end + format::RECORD_MAGIC.len()).min(segment.len()))?;
    let found = memchr::memmem::find_iter(octets, format::RECORD_MAGIC).map(|found| range.start + found);
    found.take_while(|at| *at < range.end).find(|at| {
        at.is_multiple_of(format::RECORD_ALIGNMENT)
            && format::RecordHeader::decode(&segment[*at..]).is_some_and(|header| header.life == life)
    })
}

/// A log as it goes on after recovery.
#[derive(Debug, Default)]
pub struct Recovered {
    /// The log's part of message ids.
    pub log: u32,
    /// Segments with records, oldest first.
    pub segments: Vec<RecoveredSegment>,
    /// Files without records of their present life, and their sizes, octets; 0: not what its header says.
    pub free: Vec<(Slot, u32)>,
    /// Files that never became a segment: to be removed.
    pub unfinished: Vec<Slot>,
    /// What is not done, by message sequence.
    pub messages: BTreeMap<u64, RecoveredMessage>,
    /// No file has this slot or a higher one.
    pub next_slot: u32,
    /// No segment has this epoch or a higher one.
    pub next_epoch: u64,
    /// No record has this sequence or a higher one.
    pub next_sequence: u64,
    /// Sequences from here to `next_sequence` are void.
    pub void_from: u64,
    /// What is to be told of it.
    pub findings: Vec<Finding>,
}

impl Recovered {
    /// Adds files that have neither a header nor records: their preparation was cut off. They are removed.
    pub fn add_unfinished(&mut self, files: impl IntoIterator<Item = Slot>) {
        self.unfinished.extend(files);
        self.avoid(self.unfinished.clone());
    }

    /// No new file gets the name of one of these.
    pub fn avoid(&mut self, files: impl IntoIterator<Item = Slot>) {
        self.next_slot = files.into_iter().map(|slot| slot.0 + 1).fold(self.next_slot, u32::max);
    }
}

/// A segment with records.
#[derive(Clone, Copy, Debug)]
pub struct RecoveredSegment {
    /// Its number.
    pub epoch: u64,
    /// Its file.
    pub slot: Slot,
    /// The life of its records.
    pub life: u64,
    /// The file's size, octets; 0: not what its header says.
    pub size: u32,
}

/// A message that is not done.
#[derive(Debug)]
pub struct RecoveredMessage {
    /// What the ledger needs.
    pub entry: RecoveredEntry,
    /// Not before this, seconds since 1970; 0: at once.
    pub next_attempt: u64,
}

/// Something an operator should know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finding {
    /// Records that had been acknowledged are damaged or missing.
    Corrupt {
        /// Their numbers in the log.
        sequences: Range<u64>,
    },
    /// A message is intact, but a piece of its content is not.
    PieceMissing {
        /// Of the message id.
        sequence: u64,
    },
    /// A file says it is a segment that another one is, and has no more of its records: a copy. It is left alone.
    SegmentTwice {
        /// The file that is not read.
        slot: Slot,
    },
    /// The log was cut: what followed had not been acknowledged.
    TailCut {
        /// The first number cut.
        from: u64,
        /// Valid records that were cut with it.
        record_count: usize,
    },
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Finding::Corrupt { sequences } => {
                let Range { start, end } = sequences;
                write!(f, "records {start} to {} had been acknowledged and are damaged or missing", end - 1)
            }
            Finding::PieceMissing { sequence } => {
                write!(
                    f,
                    "message {sequence} had been acknowledged and a piece of its content is damaged or missing"
                )
            }
            Finding::SegmentTwice { slot } => {
                write!(f, "{} is a copy of another segment and is not read", slot.file_name())
            }
            Finding::TailCut { from, record_count } => {
                write!(
                    f,
                    "the log was cut at record {from}: it and {record_count} more had not been acknowledged"
                )
            }
        }
    }
}

/// Decides what is kept, what is corrupt and where the log ends. `scans` are all segments of one log.
pub fn merge(mut scans: Vec<Scan>) -> Recovered {
    // Of several files that say they are one segment, the one with the most records comes first and is believed.
    scans.sort_by_key(|scan| (scan.header.epoch, Reverse(scan.records.len()), scan.slot));
    let mut recovered = Recovered { next_epoch: 1, next_sequence: 1, void_from: 1, ..Recovered::default() };
    recovered.next_slot = scans.iter().map(|scan| scan.slot.0 + 1).max().unwrap_or(0);
    scans.dedup_by(|scan, first| {
        let is_copy = scan.header.epoch == first.header.epoch;
        if is_copy {
            recovered.findings.push(Finding::SegmentTwice { slot: scan.slot });
        }
        is_copy
    });
    for scan in &scans {
        recovered.log = scan.header.log;
        recovered.next_epoch = recovered.next_epoch.max(scan.header.epoch.saturating_add(1));
        let size = if scan.is_whole { scan.header.size } else { 0 };
        if scan.records.is_empty() && scan.damaged.is_empty() {
            recovered.free.push((scan.slot, size));
        } else {
            let SegmentHeader { epoch, life, .. } = scan.header;
            recovered.segments.push(RecoveredSegment { epoch, slot: scan.slot, life, size });
        }
    }
    let mut records: Vec<Record> = scans.into_iter().flat_map(|scan| scan.records).collect();
    // Blocks that changed places are out of order, and a copied one is there twice.
    records.sort_by_key(|record| record.sequence);
    let (void, void_from) = judge_gaps(&records, &mut recovered);
    let is_kept = |record: &&Record| {
        record.sequence < void_from && !void.iter().any(|range| range.contains(&record.sequence))
    };
    collect(records.iter().filter(is_kept), &mut recovered);
    recovered
}

/// Walks the numbers, reports what is missing, and returns which numbers are void and where the log is cut.
fn judge_gaps(records: &[Record], recovered: &mut Recovered) -> (Vec<Range<u64>>, u64) {
    let void: Vec<Range<u64>> = records
        .iter()
        .filter_map(|record| match record.fact {
            Fact::Open { void_from } if void_from < record.sequence => Some(void_from..record.sequence),
            _ => None,
        })
        .collect();
    let horizon = records.iter().map(|record| record.horizon).max().unwrap_or(0);
    // A segment begins with its Open record. Where even the first one lacks it, something is missing in front: at least the
    // number before; nothing older says how much more.
    let mut expected = records.first().map_or(1, |record| match record.fact {
        Fact::Open { .. } => record.sequence,
        _ => record.sequence.saturating_sub(1),
    });
    let mut cut = None;
    for (i, record) in records.iter().enumerate() {
        recovered.next_sequence = recovered.next_sequence.max(record.sequence.saturating_add(1));
        if cut.is_some() {
            continue;
        }
        for missing in without(expected..record.sequence, &void) {
            if missing.start < horizon {
                let sequences = missing.start..missing.end.min(horizon);
                recovered.findings.push(Finding::Corrupt { sequences });
            }
            let unacknowledged = missing.start.max(horizon);
            if unacknowledged < missing.end {
                cut = Some(unacknowledged);
                let record_count = records.len() - i;
                recovered.findings.push(Finding::TailCut { from: unacknowledged, record_count });
                break;
            }
        }
        expected = expected.max(record.sequence.saturating_add(1));
    }
    recovered.void_from = cut.unwrap_or(recovered.next_sequence);
    (void, recovered.void_from)
}

/// What of `range` is in none of `holes`.
fn without(range: Range<u64>, holes: &[Range<u64>]) -> Vec<Range<u64>> {
    let mut left: Vec<_> = Some(range).filter(|r| r.start < r.end).into_iter().collect();
    for hole in holes {
        left = left
            .into_iter()
            .flat_map(|r| [r.start..r.end.min(hole.start), r.start.max(hole.end)..r.end])
            .filter(|r| r.start < r.end)
            .collect();
    }
    left
}

/// Messages less what was done.
fn collect<'a>(records: impl Iterator<Item = &'a Record>, recovered: &mut Recovered) {
    let mut pieces = HashSet::new();
    for record in records {
        match &record.fact {
            Fact::Open { .. } => {}
            Fact::Piece { size } => {
                let Location { epoch, offset, .. } = record.location;
                pieces.insert(PieceRef { epoch, sequence: record.sequence, offset, size: *size });
            }
            Fact::Message { sequence, pieces, recipient_count } => {
                let entry = RecoveredEntry {
                    location: record.location,
                    pieces: pieces.clone(),
                    recipient_count: *recipient_count,
                    outstanding: None,
                };
                recovered.messages.insert(*sequence, RecoveredMessage { entry, next_attempt: 0 });
            }
            Fact::Outcomes(entries) => entries.iter().for_each(|entry| apply(entry, &mut recovered.messages)),
        }
    }
    let is_whole = |m: &RecoveredMessage| m.entry.pieces.iter().all(|piece| pieces.contains(piece));
    let broken: Vec<u64> = recovered.messages.iter().filter(|(_, m)| !is_whole(m)).map(|(s, _)| *s).collect();
    for sequence in broken {
        recovered.messages.remove(&sequence);
        recovered.findings.push(Finding::PieceMissing { sequence });
    }
}

fn apply(outcome: &OutcomeEntry, messages: &mut BTreeMap<u64, RecoveredMessage>) {
    let Some(message) = messages.get_mut(&outcome.sequence) else { return };
    let entry = &mut message.entry;
    let left = apply_outcomes(entry.outstanding.take(), entry.recipient_count, &outcome.recipients);
    if outcome.recipients.is_empty() || left.is_empty() {
        messages.remove(&outcome.sequence);
        return;
    }
    entry.outstanding = Some(left);
    let times = outcome.recipients.iter().filter(|r| !r.is_done).map(|r| r.next_attempt);
    message.next_attempt = times.min().unwrap_or(0);
}

#[cfg(test)]
mod tests;
