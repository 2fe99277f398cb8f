//! What a log's records say of one message, without reading the others'.
//!
//! The number in a message's id is that of the record that was written first for it, and segments are in the order of these numbers:
//! what is older than its segment says nothing of it. From there on, of a sealed segment the index is read, and of its records those
//! with outcomes; contents and other messages are not. The walk ends when the message is done: nothing is written about it after that.
//!
//! So a message that was delivered soon costs the index of one segment; one that waits, those of all since it came.

use super::{
    Fact, HEAD_SIZE, Head, Location, OutcomeEntry, Record, RecoverError, Recovered, Recovery, read_outcomes,
};
use crate::spool::format::{self, Kind, MessagePayload, RecordHeader};
use crate::spool::io::{ReadSegment, Slot};

/// What was met, in the order of the log.
#[derive(Debug)]
pub enum Met<'a> {
    /// A record of the message: the first, or one of it that was moved.
    Message {
        /// The number of this record; of the first that of the message.
        record: u64,
        /// What it says.
        payload: MessagePayload<'a>,
    },
    /// What became of some of its recipients, or that it is done.
    Outcomes(OutcomeEntry),
    /// The record with the message's number does not count: an Open record voids it.
    Void,
    /// The record with the message's number is none of a message.
    Other(Kind),
}

/// How far the log goes.
#[derive(Debug, Default)]
pub struct Trail {
    /// The log's part of message ids; 0: there was no segment to tell.
    pub log: u32,
    /// The number of the oldest record.
    pub oldest: Option<u64>,
    /// No record that was read has this number or a higher one.
    pub next: u64,
    /// How many segments there are, and of how many records were looked for.
    pub segments: (usize, usize),
    /// The message where it is not done, alone; and the names of its lanes.
    pub standing: Recovered,
    /// When the content of the oldest message had arrived that came into the oldest segment: looked for only where nothing was met.
    pub remembers_since: Option<u64>,
}

/// Follows the message with this number through a log; `open` opens a file, `see` is told what is met. `is_wanted` is given the log's
/// part of message ids: false, and nothing is read but heads.
pub fn follow<S: ReadSegment>(
    slots: impl IntoIterator<Item = Slot>,
    mut open: impl FnMut(Slot) -> Result<S, S::Error>,
    is_wanted: impl FnOnce(u32) -> bool,
    sequence: u64,
    mut see: impl FnMut(Met<'_>),
) -> Result<Trail, RecoverError<S::Error>> {
    let mut recovery = Recovery::default();
    let heads = recovery.read_heads(slots, &mut open)?;
    let mut trail = Trail { log: recovery.found.log, ..Trail::default() };
    if !is_wanted(trail.log) {
        return Ok(trail);
    }
    let groups: Vec<&[Head]> = heads.chunk_by(|a, b| a.header.epoch == b.header.epoch).collect();
    let first = groups.iter().rposition(|group| group[0].first.is_some_and(|first| first <= sequence));
    trail.oldest = heads.iter().find_map(|head| head.first);
    trail.segments.0 = groups.len();
    let mut has_met = false;
    for group in &groups[first.unwrap_or(0)..] {
        let Some((slot, mut segment, records, header)) = read_group(group, &mut open)? else { continue };
        let failed = |error| RecoverError::Read(slot, error);
        trail.segments.1 += 1;
        for record in records {
            trail.next = trail.next.max(record.sequence.saturating_add(1));
            if record.sequence < sequence {
                continue;
            }
            let is_void = recovery.is_void(record.sequence);
            match &record.fact {
                Fact::Message(message) if message.sequence == sequence && !is_void => {
                    let octets = read_record(&mut segment, record.location).map_err(failed)?;
                    let valid = format::decode_record(&octets, header.life);
                    let payload = valid.and_then(|(_, payload)| MessagePayload::decode(payload));
                    if let Some(payload) = payload.filter(|payload| payload.sequence == sequence) {
                        has_met = true;
                        see(Met::Message { record: record.sequence, payload });
                        // Whether its pieces are there is not asked: that costs reading what they are in.
                        if let Fact::Message(message) = &record.fact {
                            recovery.pieces.extend(message.pieces.iter().copied());
                        }
                        recovery.keep(record);
                    }
                }
                Fact::Outcomes if !is_void => {
                    if record.sequence == sequence {
                        see(Met::Other(Kind::Outcomes));
                    }
                    let entries = read_outcomes(&header, &record, &mut segment).map_err(failed)?;
                    for entry in entries.into_iter().flatten().filter(|entry| entry.sequence == sequence) {
                        has_met = true;
                        see(Met::Outcomes(entry.clone()));
                        let is_done = entry.is_message_done;
                        recovery.apply(entry);
                        if is_done {
                            trail.standing = recovery.found;
                            return Ok(trail);
                        }
                    }
                }
                Fact::Message(message) if message.sequence == sequence => see(Met::Void),
                fact if record.sequence == sequence => see(Met::Other(fact.kind())),
                _ => {}
            }
        }
    }
    if !has_met {
        trail.remembers_since = oldest_arrival(&groups, &mut open)?;
    }
    trail.standing = recovery.found;
    Ok(trail)
}

/// A segment and its records, in order; of several files that say they are one, the one with the most.
#[allow(clippy::type_complexity)]
fn read_group<S: ReadSegment>(
    group: &[Head],
    open: &mut impl FnMut(Slot) -> Result<S, S::Error>,
) -> Result<Option<(Slot, S, Vec<Record>, format::SegmentHeader)>, RecoverError<S::Error>> {
    let mut most = None;
    for head in group {
        let failed = |error| RecoverError::Read(head.slot, error);
        let mut segment = open(head.slot).map_err(failed)?;
        let mut records = head.scan(&mut segment, super::Depth::Quick).map_err(failed)?.records;
        records.sort_by_key(|record| record.sequence);
        let is_more = |(.., before, _): &(Slot, S, Vec<Record>, _)| records.len() > before.len();
        if most.as_ref().is_none_or(is_more) {
            most = Some((head.slot, segment, records, head.header));
        }
    }
    Ok(most)
}

/// When the oldest message came that is where it was written first.
fn oldest_arrival<S: ReadSegment>(
    groups: &[&[Head]],
    open: &mut impl FnMut(Slot) -> Result<S, S::Error>,
) -> Result<Option<u64>, RecoverError<S::Error>> {
    for group in groups {
        let Some((slot, mut segment, records, header)) = read_group(group, open)? else { continue };
        for record in records {
            if !matches!(&record.fact, Fact::Message(message) if message.sequence == record.sequence) {
                continue;
            }
            let octets =
                read_record(&mut segment, record.location).map_err(|e| RecoverError::Read(slot, e))?;
            let payload = format::decode_record(&octets, header.life).map(|(_, payload)| payload);
            let envelope = payload
                .and_then(MessagePayload::decode)
                .and_then(|message| format::decode_envelope(message.envelope));
            if let Some((_, arrival)) = envelope {
                return Ok(Some(arrival.unix_time));
            }
        }
    }
    Ok(None)
}

fn read_record<S: ReadSegment>(segment: &mut S, location: Location) -> Result<Vec<u8>, S::Error> {
    segment.read(u64::from(location.offset), location.size as usize)
}

/// The number of the segment's first record, of what is read of it first.
pub(super) fn first_sequence(octets: &[u8], life: u64) -> Option<u64> {
    const { assert!(HEAD_SIZE > format::RECORDS_OFFSET as usize + format::RECORD_HEADER_SIZE) };
    let header = RecordHeader::decode(octets.get(format::RECORDS_OFFSET as usize..)?)?;
    (header.life == life).then_some(header.sequence)
}
