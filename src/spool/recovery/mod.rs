//! What a log still holds after a crash, decided from what is on the disk.
//!
//! [`recover`] reads the head of every file, puts the segments in the order of their epochs, and takes each one's records
//! from its index if it was sealed, from the records themselves if not. One segment's records are in memory at a time.
//!
//! The verdict on every number, given all valid records of the log:
//!
//! ```text
//! record with the number          and                                         verdict
//! there, header and payload fine  no Open record voids it                     keep
//! there, header and payload fine  an Open record voids it                     void: ignored
//! missing or not valid            an Open record voids it                     nothing: it was known before
//! missing or not valid            a valid record's horizon, or a seal, is     corrupt: it was durable. Reported; intact records
//!                                 beyond it                                   on both sides are kept
//! missing or not valid            neither                                     torn: nothing says that it was ever durable. Void
//!                                                                             from now on; intact records on both sides are kept
//! valid Message                   one of its pieces is missing                not kept; reported, as corrupt or as torn by the
//!                                                                             same rule for the Message record's own number
//! none left                       -                                           end
//! ```
//!
//! Intact records behind a torn one are kept: if they were not acknowledged, delivering them is permitted (their senders
//! were told nothing), and if they were, it is a duty.
//!
//! Nothing is written here: the next life of the log begins in a new segment, whose Open record names the torn numbers void.

mod scan;
mod trail;

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use super::entry::{Entry, Lane, Location};
use super::format::{
    self, BadHeader, Kind, Made, Order, OrderKind, OutcomeEntry, PieceRef, RECORD_HEADER_SIZE, RECORD_MAGIC,
    RECORDS_OFFSET, RecordHeader, SegmentHeader, TargetOutcomes,
};
use super::io::{ReadSegment, Slot};
use super::reasons::Reasons;
use super::sequence_map::SequenceMap;
use scan::{Fact, MessageFact, Record, Scan, scan_index, scan_whole};
pub use trail::{Met, Trail, follow};

/// What is read of every file first: the header blocks and, usually, the whole Open record.
const HEAD_SIZE: usize = RECORDS_OFFSET as usize + 1024;
/// Ranges that an Open record names void at most. With more (a batch of tiny records of which every other sector is lost) the
/// rest will be reported as corrupt by a later start: a false alarm, and no loss.
pub const VOIDS_MAX: usize = 1024;

/// How much is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Depth {
    /// What is needed to go on: of sealed segments the index. Damage behind an index is found when the record is read.
    Quick,
    /// Every record, with its checksums.
    Whole,
}

/// Why a log could not be recovered.
#[derive(Debug)]
pub enum RecoverError<E> {
    /// A file could not be read.
    Read(Slot, E),
    /// A header of a version this program does not know.
    UnknownVersion(Slot, u32),
}

/// A record, or something in the place of one, as [`recover`] came by it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Seen {
    /// A valid record.
    Record {
        /// Its file.
        slot: Slot,
        /// Its place.
        location: Location,
        /// Its number.
        sequence: u64,
        /// What it is.
        kind: Kind,
        /// The message's number, if it is one.
        message: Option<u64>,
        /// An Open record voids its number.
        is_void: bool,
    },
    /// The segment in this file is complete: the last block says so. Behind its records.
    Seal {
        /// The file.
        slot: Slot,
        /// The seal's place.
        location: Location,
        /// The number of the first record behind the segment.
        sequence: u64,
    },
    /// Octets that should be a record and are not.
    Damage {
        /// The file.
        slot: Slot,
        /// Where in it.
        octets: Range<u32>,
    },
}

/// Recovers a log from its files. `open` opens one for reading; `see` is told of everything that is found, file by file.
pub fn recover<S: ReadSegment>(
    slots: impl IntoIterator<Item = Slot>,
    mut open: impl FnMut(Slot) -> Result<S, S::Error>,
    depth: Depth,
    mut see: impl FnMut(Seen),
) -> Result<Recovered, RecoverError<S::Error>> {
    let mut recovery = Recovery::default();
    let heads = recovery.read_heads(slots, &mut open)?;
    for group in heads.chunk_by(|a, b| a.header.epoch == b.header.epoch) {
        let mut scans = Vec::new();
        for head in group {
            let failed = |error| RecoverError::Read(head.slot, error);
            let mut segment = open(head.slot).map_err(failed)?;
            let scan = head.scan(&mut segment, depth).map_err(failed)?;
            scans.push((head, segment, scan));
        }
        // Of several files that say they are one segment, the one with the most records is believed.
        scans.sort_by_key(|(head, _, scan)| (Reverse(scan.records.len()), head.slot));
        let mut scans = scans.into_iter();
        if let Some((head, mut segment, scan)) = scans.next() {
            let added = recovery.add(head, scan, &mut segment, &mut see);
            added.map_err(|error| RecoverError::Read(head.slot, error))?;
        }
        recovery.found.findings.extend(scans.map(|(head, ..)| Finding::SegmentTwice { slot: head.slot }));
    }
    Ok(recovery.finish())
}

/// The beginning of a segment.
struct Head {
    slot: Slot,
    header: SegmentHeader,
    /// The file is as long as its header says: it can be used again.
    is_whole: bool,
    voids: Vec<Range<u64>>,
    /// The number of its first record.
    first: Option<u64>,
}

impl Head {
    fn scan<S: ReadSegment>(&self, segment: &mut S, depth: Depth) -> Result<Scan, S::Error> {
        if depth == Depth::Quick
            && let Some(scan) = scan_index(&self.header, segment)?
        {
            return Ok(scan);
        }
        let size = segment.size()?;
        let octets = segment.read(0, size as usize)?;
        Ok(scan_whole(&self.header, &octets))
    }
}

/// The numbers that the segment's Open record voids; none if it is damaged.
fn read_voids<S: ReadSegment>(
    header: &SegmentHeader,
    head: &[u8],
    segment: &mut S,
) -> Result<Vec<Range<u64>>, S::Error> {
    let at = RECORDS_OFFSET as usize;
    let open = head.get(at..).and_then(RecordHeader::decode).filter(|open| open.kind == Kind::Open);
    let Some(open) = open.filter(|open| open.record_size() <= format::open_record_size(VOIDS_MAX)) else {
        return Ok(Vec::new());
    };
    let octets = segment.read(at as u64, RECORD_HEADER_SIZE + open.payload_size as usize)?;
    let payload = format::decode_record(&octets, header.life).map(|(_, payload)| payload);
    Ok(payload.and_then(format::decode_open).map(|(_, voids)| voids).unwrap_or_default())
}

/// What an Outcomes record says; `None` if it is not valid.
fn read_outcomes<S: ReadSegment>(
    header: &SegmentHeader,
    record: &Record,
    segment: &mut S,
) -> Result<Option<Vec<OutcomeEntry>>, S::Error> {
    let Location { offset, size, .. } = record.location;
    let octets = segment.read(u64::from(offset), size as usize)?;
    let valid = format::decode_record(&octets, header.life);
    let valid = valid.filter(|(found, _)| found.kind == Kind::Outcomes && found.sequence == record.sequence);
    Ok(valid.and_then(|(_, payload)| format::decode_outcomes(payload)))
}

/// What has been found so far.
#[derive(Default)]
struct Recovery {
    found: Recovered,
    /// Sorted by their starts, apart from each other.
    voids: Vec<Range<u64>>,
    /// The number that the next record should have.
    expected: Option<u64>,
    /// Every record with a smaller number was durable.
    horizon: u64,
    missing: Vec<Range<u64>>,
    /// Smaller numbers may stand in a file that could not be taken for a segment of the log.
    taken: u64,
    pieces: HashSet<PieceRef>,
    /// Messages without all their pieces, by their numbers: the numbers of their records.
    incomplete: BTreeMap<u64, u64>,
    /// The last order that has been met: usually it was given for many messages.
    last_order: Option<Arc<Order>>,
}

impl Recovery {
    /// Reads the head of every file, and gives those of segments in the order of their epochs.
    fn read_heads<S: ReadSegment>(
        &mut self,
        slots: impl IntoIterator<Item = Slot>,
        open: &mut impl FnMut(Slot) -> Result<S, S::Error>,
    ) -> Result<Vec<Head>, RecoverError<S::Error>> {
        let mut heads: Vec<Head> = Vec::new();
        let mut headless = Vec::new();
        let mut add = |slot, header: SegmentHeader, octets: &[u8], size, segment: &mut S| {
            let voids =
                read_voids(&header, octets, segment).map_err(|error| RecoverError::Read(slot, error))?;
            let first = trail::first_sequence(octets, header.life);
            heads.push(Head { slot, header, is_whole: size == u64::from(header.size), voids, first });
            Ok(())
        };
        let mut log = 0;
        for slot in slots {
            self.found.next_slot = self.found.next_slot.max(slot.0 + 1);
            let failed = |error| RecoverError::Read(slot, error);
            let mut segment = open(slot).map_err(failed)?;
            let size = segment.size().map_err(failed)?;
            let octets = segment.read(0, HEAD_SIZE).map_err(failed)?;
            match SegmentHeader::decode(&octets) {
                Ok(header) => {
                    log = header.log;
                    add(slot, header, &octets, size, &mut segment)?;
                }
                Err(BadHeader::NotAHeader) => headless.push(slot),
                Err(BadHeader::UnknownVersion(version)) => {
                    return Err(RecoverError::UnknownVersion(slot, version));
                }
            }
        }
        for slot in headless {
            let failed = |error| RecoverError::Read(slot, error);
            let mut segment = open(slot).map_err(failed)?;
            let size = segment.size().map_err(failed)?;
            let octets = segment.read(0, size as usize).map_err(failed)?;
            let rebuilt = SegmentHeader::rebuild(&octets, log, u32::try_from(size).unwrap_or(u32::MAX));
            match rebuilt.filter(|_| log != 0) {
                Some(header) => {
                    self.found.findings.push(Finding::HeaderLost { slot, is_rebuilt: true });
                    add(slot, header, &octets, size, &mut segment)?;
                }
                None if memchr::memmem::find(&octets, RECORD_MAGIC).is_some() => {
                    // Whose log it is may be known at the next start: what begins now is to stay apart from it.
                    if let Some(header) = rebuilt {
                        let sequences = scan_whole(&header, &octets).records.into_iter().map(|r| r.sequence);
                        self.taken = sequences.map(|s| s.saturating_add(1)).fold(self.taken, u64::max);
                        self.found.next_epoch = self.found.next_epoch.max(header.epoch.saturating_add(1));
                    }
                    self.found.findings.push(Finding::HeaderLost { slot, is_rebuilt: false });
                }
                None => self.found.unfinished.push(slot),
            }
        }
        heads.sort_by_key(|head| (head.header.epoch, head.slot));
        self.found.log = log;
        self.voids = union(heads.iter().flat_map(|head| head.voids.iter().cloned()).collect());
        Ok(heads)
    }

    /// Takes the records of the next segment.
    fn add<S: ReadSegment>(
        &mut self,
        head: &Head,
        mut scan: Scan,
        segment: &mut S,
        see: &mut impl FnMut(Seen),
    ) -> Result<(), S::Error> {
        let Head { slot, header, is_whole, .. } = head;
        self.found.next_epoch = self.found.next_epoch.max(header.epoch.saturating_add(1));
        let size = if *is_whole { header.size } else { 0 };
        if scan.records.is_empty() && scan.damaged.is_empty() {
            self.found.free.push((*slot, size));
            return Ok(());
        }
        // Blocks that changed places are out of order, and a copied one is there twice.
        scan.records.sort_by_key(|record| record.sequence);
        let first_sequence =
            scan.records.first().map_or(self.expected.unwrap_or(1), |record| record.sequence);
        let SegmentHeader { epoch, life, .. } = *header;
        self.found.segments.push(RecoveredSegment { epoch, slot: *slot, life, size, first_sequence });
        for octets in scan.damaged {
            see(Seen::Damage { slot: *slot, octets: octets.clone() });
            self.found.findings.push(Finding::NotARecord { slot: *slot, octets });
        }
        let seal = Some(scan.horizon).filter(|horizon| *horizon > 0);
        self.horizon = self.horizon.max(scan.horizon);
        for record in scan.records {
            // Outcomes are many when a whole queue was deferred: they are in memory record by record.
            let outcomes = match record.fact {
                Fact::Outcomes => match read_outcomes(header, &record, segment)? {
                    None => continue,
                    outcomes => outcomes,
                },
                _ => None,
            };
            let is_void = self.is_void(record.sequence);
            see(Seen::Record {
                slot: *slot,
                location: record.location,
                sequence: record.sequence,
                kind: record.fact.kind(),
                message: if let Fact::Message(message) = &record.fact {
                    Some(message.sequence)
                } else {
                    None
                },
                is_void,
            });
            self.expect(&record);
            if !is_void {
                self.keep(record);
                outcomes.into_iter().flatten().for_each(|entry| self.apply(entry));
            }
        }
        if let Some(sequence) = seal {
            let offset = header.size.saturating_sub(format::BLOCK_SIZE as u32);
            let location = Location { epoch, offset, size: format::SEAL_RECORD_SIZE as u32 };
            see(Seen::Seal { slot: *slot, location, sequence });
        }
        Ok(())
    }

    fn is_void(&self, sequence: u64) -> bool {
        let after = self.voids.partition_point(|void| void.start <= sequence);
        after > 0 && self.voids[after - 1].contains(&sequence)
    }

    /// Notes which numbers are missing in front of the record.
    fn expect(&mut self, record: &Record) {
        // A segment begins with its Open record. Where even the first one lacks it, something is missing in front: at least
        // the number before; nothing older says how much more.
        let expected = self.expected.unwrap_or(match record.fact {
            Fact::Open => record.sequence,
            _ => record.sequence.saturating_sub(1),
        });
        self.missing.extend(without(expected..record.sequence, &self.voids));
        self.expected = Some(expected.max(record.sequence.saturating_add(1)));
        self.horizon = self.horizon.max(record.horizon);
    }

    fn keep(&mut self, Record { sequence, location, fact, .. }: Record) {
        match fact {
            Fact::Open | Fact::Index | Fact::Outcomes => {}
            Fact::Piece { size } => {
                let Location { epoch, offset, .. } = location;
                self.pieces.insert(PieceRef { epoch, sequence, offset, size });
            }
            Fact::Message(message) => self.keep_message(sequence, location, message),
        }
    }

    fn keep_message(&mut self, record: u64, location: Location, message: MessageFact) {
        let MessageFact { sequence, pieces, recipient_count, progress } = message;
        // Pieces are in front of their message, so they have been met. Of a message that was moved, the older record
        // still serves where the younger one is not whole.
        if !pieces.iter().all(|piece| self.pieces.contains(piece)) {
            if !self.found.messages.contains(sequence) {
                self.incomplete.insert(sequence, record);
            }
            return;
        }
        self.incomplete.remove(&sequence);
        self.found.messages.insert(sequence, Entry::found(location, pieces, recipient_count));
        let made = Made::default();
        for outcomes in progress {
            self.apply(OutcomeEntry { sequence, is_message_done: false, made, outcomes });
        }
    }

    fn apply(&mut self, entry: OutcomeEntry) {
        let OutcomeEntry { sequence, is_message_done, outcomes, .. } = entry;
        if is_message_done {
            self.incomplete.remove(&sequence);
        }
        let TargetOutcomes { target, here_only, recipients, order } = outcomes;
        let lane = self.found.lane(&target);
        let Some(message) = self.found.messages.get_mut(sequence) else { return };
        if let Some(order) = order {
            match order.kind {
                OrderKind::Hold => {
                    let known = self.last_order.take().filter(|last| **last == *order);
                    let hold = known.unwrap_or_else(|| Arc::from(order));
                    message.hold = Some(hold.clone());
                    self.last_order = Some(hold);
                }
                OrderKind::Release => message.hold = None,
                OrderKind::Retry => message.hasten((!target.is_empty()).then_some(lane)),
                OrderKind::Drop => drop(self.found.messages.remove(sequence)),
            }
            return;
        }
        if is_message_done || !message.apply(lane, here_only, &recipients, &mut self.found.reasons) {
            self.found.messages.remove(sequence);
        }
    }

    /// Judges what is missing.
    fn finish(mut self) -> Recovered {
        let void_end = self.voids.last().map_or(1, |void| void.end);
        let known = self.expected.unwrap_or(1).max(self.horizon).max(void_end).max(1);
        let behind = self.expected.unwrap_or(known)..known;
        self.missing.extend(without(behind, &self.voids));
        let found = &mut self.found;
        for missing in self.missing {
            let corrupt = missing.start..missing.end.min(self.horizon);
            let torn = missing.start.max(self.horizon)..missing.end;
            if !corrupt.is_empty() {
                found.findings.push(Finding::Corrupt { sequences: corrupt });
            }
            if !torn.is_empty() {
                found.findings.push(Finding::Torn { sequences: torn.clone() });
                found.voids.push(torn);
            }
        }
        for (sequence, record) in self.incomplete {
            let was_durable = record < self.horizon;
            if !was_durable {
                // The next start would find its record in front of a horizon, and its piece gone.
                found.voids.push(record..record + 1);
            }
            found.findings.push(Finding::PieceMissing { sequence, was_durable });
        }
        // One more may come before the record that names them is durable: a failed write of it voids again.
        found.voids.truncate(VOIDS_MAX - 1);
        found.next_epoch = found.next_epoch.max(1);
        found.next_sequence = known.max(self.taken);
        self.found
    }
}

/// The ranges sorted, and joined where they overlap.
fn union(mut ranges: Vec<Range<u64>>) -> Vec<Range<u64>> {
    ranges.retain(|range| !range.is_empty());
    ranges.sort_by_key(|range| range.start);
    ranges.dedup_by(|next, before| {
        let overlaps = next.start <= before.end;
        if overlaps {
            before.end = before.end.max(next.end);
        }
        overlaps
    });
    ranges
}

/// What of `range` is in none of `holes`, which are sorted and apart.
fn without(range: Range<u64>, holes: &[Range<u64>]) -> Vec<Range<u64>> {
    let mut left = Vec::new();
    let mut start = range.start;
    let first = holes.partition_point(|hole| hole.end <= range.start);
    for hole in holes[first..].iter().take_while(|hole| hole.start < range.end) {
        left.push(start..hole.start);
        start = hole.end;
    }
    left.push(start..range.end);
    left.retain(|range| !range.is_empty());
    left
}

/// A log as it goes on after recovery. The default is a log that begins now.
#[derive(Debug)]
pub struct Recovered {
    /// The log's part of message ids; 0: there was no segment to tell.
    pub log: u32,
    /// Segments with records, oldest first.
    pub segments: Vec<RecoveredSegment>,
    /// Files without records of their present life, and their sizes, octets; 0: not what its header says.
    pub free: Vec<(Slot, u32)>,
    /// Files that never became a segment: to be removed.
    pub unfinished: Vec<Slot>,
    /// What is not done, by message sequence.
    pub messages: SequenceMap<Entry>,
    /// The names of the lanes that `messages` are in, by their numbers: those of targets, and one without a name for those of whom it
    /// is not decided who gets theirs.
    pub lanes: Vec<Arc<str>>,
    /// The texts that `messages` share.
    pub reasons: Reasons,
    /// No file has this slot or a higher one.
    pub next_slot: u32,
    /// No segment has this epoch or a higher one; 0 is taken for 1.
    pub next_epoch: u64,
    /// No record has this sequence or a higher one; 0 is taken for 1.
    pub next_sequence: u64,
    /// Numbers of records that are torn, or of messages whose pieces are: to be named void.
    pub voids: Vec<Range<u64>>,
    /// What is to be told of it.
    pub findings: Vec<Finding>,
}

impl Default for Recovered {
    fn default() -> Self {
        Recovered {
            log: 0,
            segments: Vec::new(),
            free: Vec::new(),
            unfinished: Vec::new(),
            messages: SequenceMap::default(),
            lanes: vec!["".into()],
            reasons: Reasons::default(),
            next_slot: 0,
            next_epoch: 0,
            next_sequence: 0,
            voids: Vec::new(),
            findings: Vec::new(),
        }
    }
}

impl Recovered {
    /// The lane of this name.
    fn lane(&mut self, name: &str) -> Lane {
        let at = self.lanes.iter().position(|known| **known == *name).unwrap_or_else(|| {
            self.lanes.push(name.into());
            self.lanes.len() - 1
        });
        // A log that names more is not one that we wrote: what is in it is routed anew.
        u16::try_from(at).map_or(Lane::UNROUTED, Lane)
    }

    /// Numbers the lanes in the order of `names`, from 1; behind them come those that only the log remembers.
    pub fn name_lanes(&mut self, names: impl IntoIterator<Item = Arc<str>>) {
        let before = std::mem::take(&mut self.lanes);
        self.lanes.push("".into());
        self.lanes.extend(names);
        let renamed: Vec<Lane> = before.iter().map(|name| self.lane(name)).collect();
        for (_, message) in self.messages.iter_mut() {
            message.rename_lanes(|Lane(lane)| renamed[usize::from(lane)]);
        }
    }

    /// No message waits longer for its next attempt than until then, in seconds since 1970.
    pub fn limit_waits(&mut self, latest: u64) {
        self.messages.iter_mut().for_each(|(_, message)| message.limit_wait(latest));
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
    /// The number of its first record.
    pub first_sequence: u64,
}

/// Something an operator should know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finding {
    /// Records that had been durable are damaged or missing.
    Corrupt {
        /// Their numbers in the log.
        sequences: Range<u64>,
    },
    /// Records are missing or damaged, and nothing says that they ever were durable: the end of what was being written.
    Torn {
        /// Their numbers in the log.
        sequences: Range<u64>,
    },
    /// A message's record is intact, but a piece of its content is not. It is not delivered.
    PieceMissing {
        /// Of the message id.
        sequence: u64,
        /// The message had been durable; if not, its sender may have been told nothing.
        was_durable: bool,
    },
    /// Octets of a segment that should be a record and are not. What was in them shows in the other findings.
    NotARecord {
        /// The file.
        slot: Slot,
        /// Where in it.
        octets: Range<u32>,
    },
    /// Both header blocks of a file are damaged.
    HeaderLost {
        /// The file.
        slot: Slot,
        /// The first record says what the header said. If not, the file is left as it is, and its records are not read.
        is_rebuilt: bool,
    },
    /// A file says it is a segment that another one is, and has no more of its records: a copy. It is left alone.
    SegmentTwice {
        /// The file that is not read.
        slot: Slot,
    },
}

impl Finding {
    /// Acknowledged mail may be lost: an operator must look. Otherwise it is what the end of a process leaves.
    pub fn is_damage(&self) -> bool {
        match self {
            Finding::Torn { .. } | Finding::NotARecord { .. } => false,
            Finding::PieceMissing { was_durable, .. } => *was_durable,
            Finding::Corrupt { .. } | Finding::HeaderLost { .. } | Finding::SegmentTwice { .. } => true,
        }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Finding::Corrupt { sequences } => {
                let Range { start, end } = sequences;
                write!(f, "records {start} to {} had been stored and are damaged or missing", end - 1)
            }
            Finding::Torn { sequences } => {
                let Range { start, end } = sequences;
                write!(f, "records {start} to {} were not wholly written when the log ended", end - 1)
            }
            Finding::PieceMissing { sequence, was_durable: true } => {
                write!(
                    f,
                    "message {sequence} had been stored and a piece of its content is damaged or missing"
                )
            }
            Finding::PieceMissing { sequence, was_durable: false } => {
                write!(f, "message {sequence} was not wholly written when the log ended")
            }
            Finding::NotARecord { slot, octets } => {
                let size = octets.end - octets.start;
                write!(
                    f,
                    "{}: {size} octets from offset {} on are not a record",
                    slot.file_name(),
                    octets.start
                )
            }
            Finding::HeaderLost { slot, is_rebuilt: true } => {
                write!(
                    f,
                    "{}: both header blocks are damaged; its first record tells what they said",
                    slot.file_name()
                )
            }
            Finding::HeaderLost { slot, is_rebuilt: false } => {
                write!(
                    f,
                    "{}: both header blocks are damaged and there are records: the file is left as it is, and they are not read",
                    slot.file_name()
                )
            }
            Finding::SegmentTwice { slot } => {
                write!(f, "{} is a copy of another segment and is not read", slot.file_name())
            }
        }
    }
}

#[cfg(test)]
mod tests;
