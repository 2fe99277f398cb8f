//! What recovery makes of the files of a log, and what is in its records: the one file here that names `spool::recovery` and
//! `spool::format`.

use std::collections::BTreeMap;
use std::ops::Range;

use incoming::mail::{Arrival, Envelope};
use incoming::spool::format::{self, BLOCK_SIZE, MessagePayload, PieceRef};
use incoming::spool::memory_disk;
use incoming::spool::recovery::{Depth, Finding};
use incoming::spool::{Location, Page, Slot, Spool};

pub use incoming::spool::format::RecipientOutcome;
pub use incoming::spool::recovery::Recovered;

/// What an operator is told of damage.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Report {
    /// These records were durable and are not valid any more.
    Lost(Range<u64>),
    /// These records are not valid, and nothing says that they ever were durable.
    Torn(Range<u64>),
    /// These octets are not a record and should be one.
    Octets(Slot, Range<usize>),
    /// The file is not read.
    Unread(Slot),
}

impl Report {
    /// Media that keep their promises give no reason for it.
    pub fn is_of_damage(&self) -> bool {
        // A torn batch has octets that are no record, and a torn or old header is no segment's.
        matches!(self, Report::Lost(_))
    }
}

/// A log's files after a restart.
pub struct Restart {
    pub recovered: Recovered,
    pub reports: Vec<Report>,
}

/// Reads all files of a log. `log`: its number, where no file of it has one yet.
pub fn recover(files: &BTreeMap<Slot, Vec<u8>>, log: u32) -> Restart {
    let whole = reports(&memory_disk::recover(files, Depth::Whole));
    let mut recovered = memory_disk::recover(files, Depth::Quick);
    if recovered.log == 0 {
        recovered.log = log;
    }
    let mut reports = reports(&recovered);
    // What an index hides is found when the record is read, or by who looks at all of them.
    reports.extend(whole);
    Restart { recovered, reports }
}

fn reports(recovered: &Recovered) -> Vec<Report> {
    let report = |finding: &Finding| {
        Some(match finding {
            Finding::Corrupt { sequences } => Report::Lost(sequences.clone()),
            Finding::Torn { sequences } => Report::Torn(sequences.clone()),
            Finding::PieceMissing { sequence, was_durable: true } => Report::Lost(*sequence..*sequence + 1),
            Finding::PieceMissing { sequence, was_durable: false } => Report::Torn(*sequence..*sequence + 1),
            Finding::NotARecord { slot, octets } => {
                Report::Octets(*slot, octets.start as usize..octets.end as usize)
            }
            Finding::SegmentTwice { slot } | Finding::HeaderLost { slot, is_rebuilt: false } => {
                Report::Unread(*slot)
            }
            Finding::HeaderLost { is_rebuilt: true, .. } => return None,
        })
    };
    recovered.findings.iter().filter_map(report).collect()
}

impl Restart {
    /// Do the reports say what became of a message that was at `parts` and is not in the queue?
    pub fn accounts_for(&self, sequence: u64, parts: &[Part]) -> bool {
        // Nothing tells of records behind the last one that is valid, nor of those in front of the first.
        let is_behind = sequence >= self.recovered.next_sequence;
        let first = self.recovered.messages.keys().next().unwrap_or(u64::MAX);
        let is_told = |report: &Report| match report {
            Report::Lost(sequences) | Report::Torn(sequences) => sequences.contains(&sequence),
            Report::Octets(slot, octets) => parts.iter().any(|part| {
                part.slot == *slot && part.octets().start < octets.end && octets.start < part.octets().end
            }),
            Report::Unread(slot) => parts.iter().any(|part| part.slot == *slot),
        };
        is_behind || sequence < first || self.reports.iter().any(is_told)
    }

    /// The queue as it was found.
    pub fn queue(&self) -> impl Iterator<Item = Queued> {
        let segment =
            |epoch| self.recovered.segments.iter().find(|s| s.epoch == epoch).map(|s| (s.slot, s.life));
        self.recovered.messages.iter().map(move |(sequence, message)| {
            let left = message.outstanding().iter().map(|(_, outstanding)| outstanding.index).collect();
            let parts = parts(message.location, &message.pieces, segment);
            Queued { sequence, parts, left, is_held: message.is_held() }
        })
    }
}

/// A message that is not done.
pub struct Queued {
    /// Of the message id.
    pub sequence: u64,
    /// Where it is.
    pub parts: Vec<Part>,
    /// Who still wants it.
    pub left: Vec<u32>,
    /// The operator holds it.
    pub is_held: bool,
}

/// Where a record of a message is.
#[derive(Clone, Debug)]
pub struct Part {
    pub slot: Slot,
    life: u64,
    offset: u32,
    size: u32,
    /// The number of a Piece record; that of the message is not told.
    piece: Option<u64>,
}

impl Part {
    /// In its file.
    pub fn octets(&self) -> Range<usize> {
        self.offset as usize..(self.offset + self.size) as usize
    }
}

/// What says which segment a file is: the two header blocks and the first record. Any two of them are enough.
pub const NAMES: [Range<usize>; 3] =
    [0..BLOCK_SIZE, BLOCK_SIZE..2 * BLOCK_SIZE, 2 * BLOCK_SIZE..2 * BLOCK_SIZE + 64];

/// The message's own record first, then its pieces. Panics where a segment is not known: it stays while it is needed.
fn parts(location: Location, pieces: &[PieceRef], segment: impl Fn(u64) -> Option<(Slot, u64)>) -> Vec<Part> {
    let part = |epoch, offset, size, piece| {
        let (slot, life) = segment(epoch).expect("a segment stays while it is needed");
        Part { slot, life, offset, size, piece }
    };
    let piece = |piece: &PieceRef| {
        part(piece.epoch, piece.offset, format::record_size(piece.size as usize) as u32, Some(piece.sequence))
    };
    std::iter::once(part(location.epoch, location.offset, location.size, None))
        .chain(pieces.iter().map(piece))
        .collect()
}

/// Where a message of a running log is.
pub fn parts_of<P: Page>(spool: &Spool<P>, sequence: u64) -> Option<Vec<Part>> {
    let entry = spool.entry(sequence)?;
    Some(parts(entry.location, &entry.pieces, |epoch| spool.segment(epoch)))
}

/// A message as it was read back.
#[derive(Clone, Debug)]
pub struct Whole {
    pub envelope: Envelope,
    pub arrival: Arrival,
    /// The trace field, then the content.
    pub octets: Vec<u8>,
}

/// Reads a message back; `None` where a record of it is not valid.
pub fn read<'a>(parts: &[Part], sequence: u64, file: impl Fn(Slot) -> Option<&'a [u8]>) -> Option<Whole> {
    let record = |part: &Part| {
        let octets = file(part.slot)?.get(part.octets())?;
        let (header, payload) = format::decode_record(octets, part.life)?;
        part.piece.is_none_or(|sequence| sequence == header.sequence).then_some(payload)
    };
    let (own, pieces) = parts.split_first()?;
    let message = MessagePayload::decode(record(own)?).filter(|message| message.sequence == sequence)?;
    let (envelope, arrival) = format::decode_envelope(message.envelope)?;
    let mut octets = message.trace.to_vec();
    for piece in pieces {
        octets.extend_from_slice(record(piece)?);
    }
    octets.extend_from_slice(message.tail);
    Some(Whole { envelope, arrival, octets })
}
