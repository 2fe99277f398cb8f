//! Carrying forward: messages that wait long are written again at the end of the log, so that the segments they were in can
//! be used again and the disk used stays in proportion to what is queued.
//!
//! The ledger says when (`Ledger::sparse_segment`); the oldest segment is emptied then, record by record:
//!
//! ```text
//! queue ──Io::Read──► loaded ──append──► moved ──its sync──► the ledger names the new place; the old record is released
//! ```
//!
//! The order that a crash cannot break: the old record stays needed until the new one is durable. Until then recovery finds
//! the old one, or both, and the younger one counts. Were the old one released at the append, its segment could be used
//! again while the new one is in memory only.
//!
//! A message's pieces that are in younger segments stay where they are. Its new Message record says what became of its
//! recipients so far, because the Outcomes records that say it go with the older segments.
//!
//! Memory: what one read brings, [`READ_SIZE`] and one record.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::{AppendError, Purpose, RETRY_INTERVAL, Spool};
use crate::spool::entry::Location;
use crate::spool::format::{
    self, EnvelopeOctets, Made, MessageHead, MessagePayload, OutcomeHead, PieceRef, TargetOutcomes,
};
use crate::spool::io::{Io, Page, RecordPlace};
use crate::spool::ledger::Needs;
use crate::spool::reasons;

/// A read is not made larger than this, but for its last record. In octets.
const READ_SIZE: usize = 512 << 10;
/// Messages that are looked for at once: more would hold the shard for milliseconds.
const QUEUE_MAX: usize = 4096;
/// Reasons in a record that is written again, all recipients together: beyond it only their status is written.
const PROGRESS_REASONS_SIZE_MAX: usize = 64 << 10;

/// Behind damage that cannot be moved, the segment is not looked at again before this: a delivery has to end, or octets have
/// to be kept first.
const DAMAGE_PAUSE: Duration = Duration::from_secs(10);

/// What is to be moved.
#[derive(Debug)]
enum Item {
    /// A message, whose record is here.
    Message {
        sequence: u64,
        location: Location,
        /// Its pieces in the segment that is being emptied, by their places among its pieces.
        pieces: VecDeque<(usize, PieceRef)>,
        /// Those that were appended again.
        moved: Vec<(usize, PieceRef)>,
    },
    /// A piece of a message whose content is still arriving.
    Arriving { key: usize, piece: PieceRef },
}

/// A record to be read: of the first item of the queue that wants one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Want {
    Arriving(PieceRef),
    /// Of this message.
    Piece(u64, PieceRef),
    Message(u64),
}

impl Want {
    fn message(&self) -> Option<u64> {
        match self {
            Want::Arriving(_) => None,
            Want::Piece(sequence, _) | Want::Message(sequence) => Some(*sequence),
        }
    }
}

/// A record that was written again and is not durable yet.
#[derive(Debug)]
enum Moved {
    Message { sequence: u64, location: Location, pieces: Box<[PieceRef]>, new: Vec<PieceRef> },
    Arriving { key: usize, old: PieceRef, new: PieceRef },
}

/// Messages on their way to a younger segment.
#[derive(Debug, Default)]
pub struct Carry {
    queue: VecDeque<Item>,
    reading: Option<Vec<Want>>,
    loaded: VecDeque<(Want, Option<Vec<u8>>)>,
    /// By the number of the new record, which rises.
    moved: VecDeque<(u64, Moved)>,
    /// Nothing could be moved just now: not before.
    paused_until: Option<Instant>,
    damaged: VecDeque<u64>,
    /// Something of the segment that is being emptied cannot be moved. To look at once again would be to look for ever.
    has_met_damage: bool,
}

impl Carry {
    /// When to look again though nothing else has happened.
    pub fn paused_until(&self) -> Option<Instant> {
        self.paused_until
    }
}

impl<P: Page> Spool<P> {
    /// Moves on with what is to be moved; gives the next read, if one is wanted.
    pub(super) fn poll_carry(&mut self, now: Instant) -> Option<Io<P>> {
        if self.is_finishing || self.carry.reading.is_some() || self.has_failed() {
            return None;
        }
        if self.carry.paused_until.is_some_and(|until| now < until) {
            return None;
        }
        self.carry.paused_until = None;
        if self.append_loaded().is_err() {
            self.drop_queue();
            self.carry.paused_until = Some(now + RETRY_INTERVAL);
            return None;
        }
        if !self.carry.loaded.is_empty() {
            return None;
        }
        self.drop_what_is_gone();
        if self.carry.queue.is_empty() {
            // The next look at the segment is to find it without what is on its way.
            if !self.carry.moved.is_empty() {
                return None;
            }
            if std::mem::take(&mut self.carry.has_met_damage) {
                self.carry.paused_until = Some(now + DAMAGE_PAUSE);
                return None;
            }
            let epoch = self.ledger.sparse_segment(self.is_full)?;
            self.fill_queue(epoch);
            if self.carry.queue.is_empty() {
                self.carry.paused_until = Some(now + RETRY_INTERVAL);
                return None;
            }
        }
        let (wants, places) = self.plan_read();
        self.carry.reading = Some(wants);
        Some(Io::Read { places })
    }

    /// A message that had to be moved and cannot be read: its records are damaged. It stays until [`Spool::discard`].
    pub fn poll_damaged(&mut self) -> Option<u64> {
        self.carry.damaged.pop_front()
    }

    /// Gives a message up that is not being delivered: it is done. False if it is being delivered, or done already.
    pub fn discard(&mut self, sequence: u64, now: Instant) -> bool {
        if self.ledger.entry(sequence).is_none() || self.ledger.is_handed_off(sequence) {
            return false;
        }
        let needs = self.ledger.remove(sequence);
        let head = OutcomeHead {
            sequence,
            is_message_done: true,
            made: Made::default(),
            target: "",
            here_only: false,
        };
        self.note_outcomes(head, &[], Some(needs), now);
        self.carry.paused_until = None;
        true
    }

    /// Where the records of a message are.
    pub fn places(&self, sequence: u64) -> Option<Vec<RecordPlace>> {
        let entry = self.ledger.entry(sequence)?;
        let locations = entry.pieces.iter().map(place_of).chain([entry.location]);
        Some(locations.map(|location| self.record_place(location)).collect())
    }

    fn record_place(&self, Location { epoch, offset, size }: Location) -> RecordPlace {
        let slot = self.ledger.segment(epoch).expect("a held segment stays").slot;
        RecordPlace { slot, offset, size }
    }

    fn fill_queue(&mut self, epoch: u64) {
        let messages = self.ledger.messages_in(epoch, QUEUE_MAX);
        let is_all = messages.len() < QUEUE_MAX;
        for sequence in messages {
            let entry = self.ledger.entry(sequence).expect("the ledger has just named it");
            let pieces = entry.pieces.iter().copied().enumerate().filter(|(_, piece)| piece.epoch == epoch);
            self.carry.queue.push_back(Item::Message {
                sequence,
                location: entry.location,
                pieces: pieces.collect(),
                moved: Vec::new(),
            });
        }
        for (key, pieces) in self.receiving.iter().filter(|_| is_all) {
            let pieces = pieces.iter().filter(|piece| piece.epoch == epoch);
            self.carry.queue.extend(pieces.map(|piece| Item::Arriving { key, piece: *piece }));
        }
    }

    /// The records of the queue's first items, in order, up to the size of a read.
    fn plan_read(&self) -> (Vec<Want>, Vec<RecordPlace>) {
        let (mut wants, mut places, mut size) = (Vec::new(), Vec::new(), 0);
        let mut want = |want, location: Location| {
            wants.push(want);
            places.push(self.record_place(location));
            size += location.size as usize;
            size >= READ_SIZE
        };
        'items: for item in &self.carry.queue {
            match item {
                Item::Arriving { piece, .. } => {
                    if want(Want::Arriving(*piece), place_of(piece)) {
                        break;
                    }
                }
                Item::Message { sequence, location, pieces, .. } => {
                    for (_, piece) in pieces {
                        if want(Want::Piece(*sequence, *piece), place_of(piece)) {
                            break 'items;
                        }
                    }
                    if want(Want::Message(*sequence), *location) {
                        break;
                    }
                }
            }
        }
        (wants, places)
    }

    pub(super) fn handle_read(&mut self, records: Vec<Option<Vec<u8>>>) {
        let wants = self.carry.reading.take().expect("one read at a time");
        assert!(wants.len() == records.len(), "a read is answered record by record");
        self.carry.loaded = wants.into_iter().zip(records).collect();
    }

    /// Appends what was read. An error: there is no room, the medium failed, or something could not be read just now.
    fn append_loaded(&mut self) -> Result<(), AppendError> {
        while let Some((want, octets)) = self.carry.loaded.pop_front() {
            let Some(mut item) = self.carry.queue.pop_front() else {
                self.carry.loaded.clear();
                return Ok(());
            };
            let appended = match (self.is_current(&item), &octets) {
                (true, Some(octets)) => self.append_again(&mut item, want, octets),
                // Not read is not damaged: what is there is not known.
                (true, None) => Err(AppendError::Failed),
                (false, _) => Ok(Progress::Ended),
            };
            match appended {
                Ok(Progress::Ended) => {
                    self.release_moved(item);
                    self.skip_loaded(want);
                }
                Ok(Progress::Moved) => {}
                Ok(Progress::Partly) => self.carry.queue.push_front(item),
                Err(error) => {
                    self.carry.queue.push_front(item);
                    self.carry.loaded.push_front((want, octets));
                    return if error == AppendError::Busy { Ok(()) } else { Err(error) };
                }
            }
        }
        Ok(())
    }

    /// Is the item still where it was when it was planned?
    fn is_current(&self, item: &Item) -> bool {
        match item {
            Item::Message { sequence, location, .. } => {
                self.ledger.entry(*sequence).is_some_and(|entry| entry.location == *location)
            }
            Item::Arriving { key, piece } => {
                self.receiving.get(*key).is_some_and(|pieces| pieces.contains(piece))
            }
        }
    }

    /// Drops what was read for the rest of a message that is not to be moved any more.
    fn skip_loaded(&mut self, ended: Want) {
        let Some(message) = ended.message() else { return };
        while self.carry.loaded.pop_front_if(|(want, _)| want.message() == Some(message)).is_some() {}
    }

    fn append_again(&mut self, item: &mut Item, want: Want, octets: &[u8]) -> Result<Progress, AppendError> {
        match (item, want) {
            (Item::Arriving { key, piece }, _) => {
                let Some(content) = self.piece_content(piece, octets) else {
                    self.carry.has_met_damage = true;
                    return Ok(Progress::Ended);
                };
                let new = self.append_held_piece(content, Purpose::Carried)?;
                self.active.as_mut().expect("it was appended to").tail.wait(new.sequence);
                self.carry.moved.push_back((new.sequence, Moved::Arriving { key: *key, old: *piece, new }));
                Ok(Progress::Moved)
            }
            (Item::Message { sequence, pieces, moved, .. }, Want::Piece(_, piece)) => {
                let Some(content) = self.piece_content(&piece, octets) else {
                    self.note_damaged(*sequence);
                    return Ok(Progress::Ended);
                };
                let new = self.append_held_piece(content, Purpose::Carried)?;
                let (place, _) = pieces.pop_front().expect("pieces are read in their order");
                moved.push((place, new));
                Ok(Progress::Partly)
            }
            (Item::Message { sequence, location, moved, .. }, _) => {
                let life = self.ledger.segment(location.epoch).expect("a held segment stays").life;
                let record = format::decode_record(octets, life);
                let message = record.and_then(|(_, payload)| MessagePayload::decode(payload));
                let Some(message) = message.filter(|message| message.sequence == *sequence) else {
                    self.note_damaged(*sequence);
                    return Ok(Progress::Ended);
                };
                self.append_message_again(message, moved)?;
                Ok(Progress::Moved)
            }
        }
    }

    fn append_message_again(
        &mut self,
        message: MessagePayload<'_>,
        moved: &mut Vec<(usize, PieceRef)>,
    ) -> Result<(), AppendError> {
        let sequence = message.sequence;
        let entry = self.ledger.entry(sequence).expect("the item is current");
        let (mut pieces, recipient_count) = (entry.pieces.clone(), entry.recipient_count);
        moved.iter().for_each(|(place, piece)| pieces[*place] = *piece);
        let mut progress = self.ledger.progress(sequence);
        shorten_reasons(&mut progress);
        let head = MessageHead {
            sequence,
            content_size: message.content_size,
            pieces: &pieces,
            envelope: EnvelopeOctets::Encoded(message.envelope),
            progress: &progress,
            trace_size: message.trace.len(),
            tail_size: message.tail.len(),
        };
        self.make_room(format::record_size(head.payload_size()), Purpose::Carried)?;
        let (ticket, location) =
            self.append_message_record(head, recipient_count, message.trace, message.tail);
        self.ledger.hold(location.epoch, location.size as usize);
        let new = std::mem::take(moved).into_iter().map(|(_, piece)| piece).collect();
        self.carry.moved.push_back((ticket, Moved::Message { sequence, location, pieces, new }));
        Ok(())
    }

    /// The content of a piece, if that is what was read.
    fn piece_content<'a>(&self, piece: &PieceRef, octets: &'a [u8]) -> Option<&'a [u8]> {
        let life = self.ledger.segment(piece.epoch)?.life;
        let (header, content) = format::decode_record(octets, life)?;
        (header.sequence == piece.sequence && header.payload_size == piece.size).then_some(content)
    }

    /// While it is being delivered, the delivery finds out.
    fn note_damaged(&mut self, sequence: u64) {
        self.carry.has_met_damage = true;
        if !self.ledger.is_handed_off(sequence) && !self.carry.damaged.contains(&sequence) {
            self.carry.damaged.push_back(sequence);
        }
    }

    /// If the record is the next on its way to be moved, it is durable now: its message is there from here on.
    pub(super) fn end_carried(&mut self, ticket: u64) -> bool {
        let Some((_, moved)) = self.carry.moved.pop_front_if(|(sequence, _)| *sequence == ticket) else {
            return false;
        };
        match moved {
            Moved::Message { sequence, location, pieces, new } => {
                self.counters.carried += 1;
                let needs = self.ledger.relocate(sequence, location, pieces);
                // Done since: what it needed at its old place is released with the outcome.
                self.ledger.release(needs.unwrap_or(Needs { message: Some(location), pieces: new.into() }));
            }
            Moved::Arriving { key, old, new } => {
                let pieces = self.receiving.get_mut(key);
                let place = pieces.and_then(|pieces| pieces.iter_mut().find(|piece| **piece == old));
                let left = place.map_or(new, |place| std::mem::replace(place, new));
                self.ledger.release(Needs { message: None, pieces: [left].into() });
            }
        }
        true
    }

    /// What was appended again and is not durable never will be.
    pub(super) fn drop_carried(&mut self) {
        while let Some((_, moved)) = self.carry.moved.pop_front() {
            let needs = match moved {
                Moved::Message { location, new, .. } => Needs { message: Some(location), pieces: new.into() },
                Moved::Arriving { new, .. } => Needs { message: None, pieces: [new].into() },
            };
            self.ledger.release(needs);
        }
        self.drop_queue();
    }

    /// What was done since it was planned need not be read, and its segments may be gone.
    fn drop_what_is_gone(&mut self) {
        for _ in 0..self.carry.queue.len() {
            let Some(item) = self.carry.queue.pop_front() else { break };
            match self.is_current(&item) {
                true => self.carry.queue.push_back(item),
                false => self.release_moved(item),
            }
        }
    }

    fn drop_queue(&mut self) {
        self.carry.loaded.clear();
        while let Some(item) = self.carry.queue.pop_front() {
            self.release_moved(item);
        }
    }

    /// Pieces of an item that will not be moved, and were appended already.
    fn release_moved(&mut self, item: Item) {
        if let Item::Message { moved, .. } = item {
            let pieces = moved.into_iter().map(|(_, piece)| piece).collect();
            self.ledger.release(Needs { message: None, pieces });
        }
    }
}

/// How far an item has got.
enum Progress {
    /// It is not to be moved any more.
    Ended,
    /// More of it is to be read.
    Partly,
    /// All of it was appended.
    Moved,
}

fn place_of(piece: &PieceRef) -> Location {
    Location { epoch: piece.epoch, offset: piece.offset, size: piece.record_size() as u32 }
}

/// Makes the reasons fit a record.
fn shorten_reasons(progress: &mut [TargetOutcomes]) {
    let mut size = 0;
    for recipient in progress.iter_mut().flat_map(|outcomes| &mut outcomes.recipients) {
        size += recipient.reason.len();
        if size > PROGRESS_REASONS_SIZE_MAX {
            recipient.reason = reasons::status(&recipient.reason).into();
        }
    }
}
