//! One log: appends, rolls from segment to segment, turns durable positions into stored messages, survives bad media.
//!
//! Rolling: when a record does not fit the active segment, the active one becomes *sealing* (everything in it shall become
//! durable) and the spare, prepared ahead, becomes active. Appends go on in memory; writes of the new one wait until the
//! sealing one is durable.
//!
//! When everything in the sealing segment is durable, its last block says so and where its index is (the seal); it is
//! complete then, and the next start need not read it. Nobody waits for the seal, and nothing is lost without it.
//!
//! Poison: a failed write or sync ends the segment. All messages that were not yet durable fail, in it and behind it. The
//! next segment's Open record voids their sequence numbers, so that whatever of them reached the medium is not
//! mistaken for mail later (their peers were told 451).

mod carry;
mod orders;
mod outcomes;
mod roll;

use std::borrow::Cow;
use std::collections::VecDeque;
use std::ops::Range;

use std::time::{Duration, Instant};

use slab::Slab;

use super::commit::{Pages, Tail};
use super::entry::{Entry, Lane, Location, Wanted};
use super::format::{
    self, BLOCK_SIZE, EnvelopeOctets, INDEX_RECORD_SIZE_MAX, IndexBuilder, Kind, Made, MessageHead,
    OutcomeHead, PieceRef, RECORDS_OFFSET, RecipientOutcome, RecordHeader,
};
use super::io::{Completion, Io, IoFailure, Page, Slot};
use super::ledger::{Ledger, Needs, Waiting};
use super::recovery::Recovered;
use crate::mail::{Arrival, Envelope, MessageId};
use carry::Carry;
pub use orders::{Obeyed, Orders};
use outcomes::Outcomes;
use roll::{Purpose, SEGMENT_RESERVE, Spare, Unsealed};

/// A failed preparation or removal is tried again after this.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);
/// This many segments poisoned without one completed sync between them, and the log takes no more.
const POISONED_MAX: u32 = 2;

/// What a log is made with.
#[derive(Clone, Copy, Debug)]
pub struct SpoolConfig {
    /// A segment file's size, octets; a multiple of the block size.
    pub segment_size: u32,
    /// False: a completed write counts as durable. Nothing survives a power cut then.
    pub sync: bool,
    /// Octets of one page.
    pub page_size: usize,
    /// Pages between append and completed write.
    pub pages_max: usize,
}

/// Why a record was not appended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AppendError {
    /// Wait until [`Spool::handle_io`] has made progress, then try again.
    Busy,
    /// The disk is full. Deliveries will make room.
    NoRoom,
    /// The medium failed: this message cannot be stored.
    Failed,
}

/// A message whose content is arriving: which of it is in the log already. Must end in [`Spool::append_message`] or
/// [`Spool::abandon`] of the same log, or its segments are held for ever.
#[derive(Debug, Default)]
pub struct Receiving {
    /// Where the log keeps its pieces.
    key: Option<usize>,
}

impl Receiving {
    /// Nothing is in the log yet.
    pub fn is_empty(&self) -> bool {
        self.key.is_none()
    }
}

/// A message about to be appended, besides what was received in pieces.
#[derive(Clone, Copy, Debug)]
pub struct Incoming<'a> {
    /// Who gets it.
    pub envelope: &'a Envelope,
    /// How it came.
    pub arrival: &'a Arrival,
    /// The content behind the pieces.
    pub tail: &'a [u8],
}

/// The trace field's bound, octets: names of 255, an id, an address, a path of 256, a date and the words between them.
const TRACE_SIZE_MAX: usize = 2048;

struct Open<P> {
    tail: Tail<P>,
    epoch: u64,
    life: u64,
    index: IndexBuilder,
}

/// What a log has done since it was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Messages that became durable.
    pub stored: u64,
    /// Octets of their records.
    pub stored_size: u64,
    /// Writes given out, without those that prepare a segment.
    pub writes: u64,
    /// Octets of them.
    pub written_size: u64,
    /// Syncs that completed.
    pub syncs: u64,
    /// Messages moved to a younger segment.
    pub carried: u64,
}

/// One log. See the module.
pub struct Spool<P> {
    config: SpoolConfig,
    log: u32,
    entropy: Box<dyn FnMut() -> u64>,
    pages: Pages<P>,
    ledger: Ledger,
    sealing: Option<Open<P>>,
    active: Option<Open<P>>,
    spare: Spare,
    next_slot: u32,
    next_epoch: u64,
    next_sequence: u64,
    /// The number of the first record that was appended since the log was opened.
    first_sequence: u64,
    /// Every record with a smaller sequence is durable, or void.
    horizon: u64,
    /// What the next Open record voids.
    voids: Vec<Range<u64>>,
    /// The Open record that says so already, and is not durable yet.
    voids_in: Option<u64>,
    /// The last preparation found no space. Until one succeeds, messages leave the reserve to what makes room.
    is_full: bool,
    /// The last preparation failed for another reason.
    is_unprepared: bool,
    /// A clean end has begun: nothing is moved any more.
    is_finishing: bool,
    removing: Option<Slot>,
    removal_failed: Option<Instant>,
    unsealed: VecDeque<Unsealed>,
    /// Pieces of messages whose content is arriving.
    receiving: Slab<Vec<PieceRef>>,
    /// Poisoned segments and how far they are durable: a piece that ends beyond is lost.
    lost: Vec<(u64, u32)>,
    poisoned_count: u32,
    stored: VecDeque<(u64, bool)>,
    outcomes: Outcomes,
    orders: Orders,
    carry: Carry,
    counters: Counters,
    head: Vec<u8>,
}

impl<P: Page> Spool<P> {
    /// A log as recovery left it. `make_page` gives pages of `config.page_size` octets, `entropy` random numbers that
    /// nobody outside can guess.
    pub fn new(
        config: SpoolConfig,
        recovered: Recovered,
        make_page: Box<dyn FnMut() -> P>,
        entropy: Box<dyn FnMut() -> u64>,
        (now, unix_now): (Instant, u64),
    ) -> Self {
        let Recovered { messages, lanes, reasons, .. } = recovered;
        let mut ledger = Ledger::new(config.segment_size, messages, lanes, reasons, (now, unix_now));
        for segment in &recovered.segments {
            ledger.add_segment(segment.epoch, segment.slot, segment.life, segment.first_sequence);
        }
        ledger.adopt();
        for segment in &recovered.segments {
            match segment.size == config.segment_size {
                true => ledger.seal(segment.epoch),
                // Of another size since the configuration changed: not used again.
                false => ledger.poison(segment.epoch),
            }
        }
        recovered.unfinished.iter().for_each(|slot| ledger.add_free(*slot, false));
        for (slot, size) in &recovered.free {
            ledger.add_free(*slot, *size == config.segment_size);
        }
        let first_void = recovered.voids.iter().map(|void| void.start).min();
        Spool {
            config,
            log: recovered.log,
            entropy,
            pages: Pages::new(make_page, config.page_size, config.pages_max),
            ledger,
            sealing: None,
            active: None,
            spare: Spare::None,
            next_slot: recovered.next_slot,
            next_epoch: recovered.next_epoch.max(1),
            next_sequence: recovered.next_sequence.max(1),
            first_sequence: recovered.next_sequence.max(1),
            // Numbers behind what is to be voided are not promised before the record that voids is durable.
            horizon: first_void.unwrap_or(recovered.next_sequence.max(1)),
            voids: recovered.voids,
            voids_in: None,
            is_full: false,
            is_unprepared: false,
            is_finishing: false,
            removing: None,
            removal_failed: None,
            unsealed: VecDeque::new(),
            receiving: Slab::new(),
            lost: Vec::new(),
            poisoned_count: 0,
            stored: VecDeque::new(),
            outcomes: Outcomes::default(),
            orders: Orders::default(),
            carry: Carry::default(),
            counters: Counters::default(),
            head: Vec::new(),
        }
    }

    /// The log's part of its message ids.
    pub fn log(&self) -> u32 {
        self.log
    }

    /// Messages that are not done.
    pub fn depth(&self) -> usize {
        self.ledger.depth()
    }

    /// Can it take messages, or will it be able to as soon as a preparation or write completes? False while the medium lets no
    /// segment be prepared for another reason than want of space, and for good when it has failed twice: see
    /// [`AppendError::Failed`].
    pub fn is_accepting(&self) -> bool {
        let is_stuck = match &self.spare {
            Spare::Failed { why, .. } => *why == IoFailure::Failed,
            Spare::None => self.removal_failed.is_some(),
            Spare::Preparing(..) => self.is_unprepared,
            Spare::Ready(_) => false,
        };
        !self.has_failed() && (self.active.is_some() || !is_stuck)
    }

    /// The medium failed for good.
    fn has_failed(&self) -> bool {
        self.poisoned_count >= POISONED_MAX
    }

    /// The first append will not wait: a segment is open or ready, or it is known that there is none.
    pub fn is_ready(&self) -> bool {
        self.active.is_some() || matches!(self.spare, Spare::Ready(_) | Spare::Failed { .. })
    }

    /// Is there, as far as is known, room for a message of `size` octets?
    pub fn has_room(&self, size: u64) -> bool {
        if !self.is_full {
            return true;
        }
        let left = self.active.as_ref().map_or(0, |active| active.tail.room()) as u64;
        let reserve = SEGMENT_RESERVE + Purpose::Mail.reserve(self.config.segment_size);
        left.saturating_sub(reserve as u64) > size.saturating_add(2 * BLOCK_SIZE as u64)
    }

    /// What the log has done since it was opened.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// Files that hold nothing and are kept to be used again.
    pub fn free_segments_count(&self) -> usize {
        self.ledger.free_count()
    }

    /// Segments that have records, and the octets of those records that are needed.
    pub fn disk_use(&self) -> (usize, u64) {
        (self.ledger.segment_count(), self.ledger.live_size())
    }

    /// Appends a part of a message's content.
    pub fn append_piece(&mut self, receiving: &mut Receiving, content: &[u8]) -> Result<(), AppendError> {
        if content.is_empty() {
            return Ok(());
        }
        self.check_pieces(receiving)?;
        let piece = self.append_held_piece(content, Purpose::Mail)?;
        let key = *receiving.key.get_or_insert_with(|| self.receiving.insert(Vec::new()));
        self.receiving[key].push(piece);
        Ok(())
    }

    /// Appends a piece that nobody has a place for yet.
    fn append_held_piece(&mut self, content: &[u8], purpose: Purpose) -> Result<PieceRef, AppendError> {
        let Location { epoch, offset, .. } = self.append(Kind::Piece, &[content], purpose)?;
        let piece = PieceRef { epoch, sequence: self.next_sequence - 1, offset, size: content.len() as u32 };
        self.ledger.hold(epoch, piece.record_size());
        self.index_if_full();
        Ok(piece)
    }

    /// Appends the message: its commit point, once durable. [`Spool::poll_stored`] will name its sequence.
    ///
    /// `write_trace` gives the trace field that goes in front of the content; it is asked once, when the message id is
    /// certain. Returns the id and the trace. On an error `receiving` is as it was.
    pub fn append_message(
        &mut self,
        receiving: &mut Receiving,
        message: Incoming<'_>,
        write_trace: impl FnOnce(MessageId) -> Vec<u8>,
    ) -> Result<(MessageId, Vec<u8>), AppendError> {
        self.check_pieces(receiving)?;
        let Incoming { envelope, arrival, tail } = message;
        let pieces = receiving.key.map_or_else(Vec::new, |key| std::mem::take(&mut self.receiving[key]));
        let content_size = pieces.iter().map(|piece| u64::from(piece.size)).sum::<u64>() + tail.len() as u64;
        let mut head = MessageHead {
            sequence: self.next_sequence,
            content_size,
            pieces: &pieces,
            envelope: EnvelopeOctets::Of(envelope, arrival),
            progress: &[],
            trace_size: TRACE_SIZE_MAX,
            tail_size: tail.len(),
        };
        // A roll puts an Open record in front, and the id is the record's number: so room is made before the id is given.
        if let Err(error) = self.make_room(format::record_size(head.payload_size()), Purpose::Mail) {
            if let Some(key) = receiving.key {
                self.receiving[key] = pieces;
            }
            return Err(error);
        }
        let id = MessageId { log: self.log, sequence: self.next_sequence };
        let trace = write_trace(id);
        assert!(trace.len() <= TRACE_SIZE_MAX, "the trace's parts are bounded by smtp");
        receiving.key.take().map(|key| self.receiving.remove(key));
        (head.sequence, head.trace_size) = (id.sequence, trace.len());
        let recipient_count = envelope.forward_paths.len() as u32;
        let (_, location) = self.append_message_record(head, recipient_count, &trace, tail);
        self.ledger.add(id.sequence, location, pieces.into_boxed_slice(), recipient_count);
        Ok((id, trace))
    }

    /// Appends a Message record to the active segment, which has room, and waits for it under the record's number, which is
    /// returned with its place.
    fn append_message_record(
        &mut self,
        head: MessageHead<'_>,
        recipient_count: u32,
        trace: &[u8],
        tail: &[u8],
    ) -> (u64, Location) {
        let mut octets = std::mem::take(&mut self.head);
        head.encode(&mut octets);
        let location = self.append_active(Kind::Message, &[&octets, trace, tail]);
        self.head = octets;
        let active = self.active.as_mut().expect("it was appended to");
        active.index.add_message(head.sequence, recipient_count, head.pieces, !head.progress.is_empty());
        let ticket = self.next_sequence - 1;
        active.tail.wait(ticket);
        self.index_if_full();
        (ticket, location)
    }

    /// The message will not come: its pieces are not needed.
    pub fn abandon(&mut self, receiving: &mut Receiving) {
        let Some(key) = receiving.key.take() else { return };
        let pieces = self.receiving.remove(key).into_boxed_slice();
        self.ledger.release(Needs { message: None, pieces });
    }

    /// What fits a segment, and the pages though one of them is being filled and another takes the index. More would wait
    /// for ever.
    fn record_size_max(&self) -> usize {
        let open_size = format::open_record_size(self.voids.len());
        let segment = self.config.segment_size as usize - RECORDS_OFFSET as usize - SEGMENT_RESERVE;
        let pages = self.config.pages_max - 1 - self.pages.count_for(INDEX_RECORD_SIZE_MAX);
        segment.min(pages * self.config.page_size - INDEX_RECORD_SIZE_MAX) - open_size
    }

    fn check_pieces(&self, receiving: &Receiving) -> Result<(), AppendError> {
        let Some(key) = receiving.key.filter(|_| !self.lost.is_empty()) else { return Ok(()) };
        let is_lost = |piece: &PieceRef| {
            let end = piece.offset as usize + piece.record_size();
            self.lost.iter().any(|(epoch, from)| piece.epoch == *epoch && end > *from as usize)
        };
        if self.receiving[key].iter().any(is_lost) { Err(AppendError::Failed) } else { Ok(()) }
    }

    fn index_if_full(&mut self) {
        if self.active.as_ref().is_some_and(|active| active.index.is_full()) {
            self.append_index();
        }
    }

    fn append_index(&mut self) {
        let active = self.active.as_ref().expect("only open segments have an index");
        let payload = active.index.payload();
        self.append_active(Kind::Index, &[&payload]);
    }

    fn append(&mut self, kind: Kind, payload: &[&[u8]], purpose: Purpose) -> Result<Location, AppendError> {
        let payload_size: usize = payload.iter().map(|part| part.len()).sum();
        self.make_room(format::record_size(payload_size), purpose)?;
        Ok(self.append_active(kind, payload))
    }

    fn append_active(&mut self, kind: Kind, payload: &[&[u8]]) -> Location {
        let Some(active) = self.active.as_mut() else { unreachable!("make_room has opened a segment") };
        let payload_size: usize = payload.iter().map(|part| part.len()).sum();
        let header = RecordHeader {
            life: active.life,
            sequence: self.next_sequence,
            horizon: self.horizon,
            payload_size: u32::try_from(payload_size).expect("records are bounded by the segment size"),
            payload_crc: payload.iter().fold(0, |crc, part| crc32c::crc32c_append(crc, part)),
            kind,
        };
        self.next_sequence += 1;
        let header_octets = header.encode();
        // At most: header, and the head, trace and tail of a message.
        let mut parts: [&[u8]; 4] = [&header_octets, &[], &[], &[]];
        parts[1..=payload.len()].copy_from_slice(payload);
        let size = header.record_size();
        let offset = active.tail.append(&parts[..=payload.len()], size, self.next_sequence, &mut self.pages);
        if kind == Kind::Index {
            active.index.begin(offset);
        }
        active.index.add(header.sequence, kind, offset, header.payload_size);
        Location { epoch: active.epoch, offset, size: size as u32 }
    }

    /// What was stored (`true`) or will never be (`false`), by sequence. Successes come in the order of their appends.
    pub fn poll_stored(&mut self) -> Option<(u64, bool)> {
        self.stored.pop_front().or_else(|| self.poll_durable())
    }

    fn poll_durable(&mut self) -> Option<(u64, bool)> {
        loop {
            let open = [&mut self.sealing, &mut self.active];
            let sequence = open.into_iter().flatten().find_map(|open| open.tail.poll_durable())?;
            if self.end_outcomes(sequence) || self.end_carried(sequence) {
                continue;
            }
            self.ledger.make_durable(sequence);
            self.counters.stored += 1;
            let entry = self.ledger.entry(sequence).expect("it was just looked at");
            let pieces = entry.pieces.iter().map(|piece| piece.record_size() as u64).sum::<u64>();
            self.counters.stored_size += u64::from(entry.location.size) + pieces;
            return Some((sequence, true));
        }
    }

    /// The next I/O to perform. Ask again after every append, completion and when [`Spool::poll_timeout`] has passed.
    pub fn poll_io(&mut self, now: Instant) -> Option<Io<P>> {
        if let Some(io) = self.poll_removal(now).or_else(|| self.poll_prepare(now)) {
            return Some(io);
        }
        self.ledger.handle_due(now);
        // Both may roll, so they come before the question which segment may be written.
        self.append_outcomes(now);
        if let Some(io) = self.poll_carry(now) {
            return Some(io);
        }
        let open = self.sealing.as_mut().or(self.active.as_mut());
        let io = open.and_then(|open| open.tail.poll_io()).or_else(|| self.poll_seal())?;
        if let Io::Write { size, .. } = &io {
            self.counters.writes += 1;
            self.counters.written_size += u64::from(*size);
        }
        Some(io)
    }

    /// When to ask [`Spool::poll_io`] and [`Spool::next_of_backlog`] again though nothing else has happened.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let outcomes = self.outcomes.due();
        let prepare = match self.spare {
            Spare::Failed { since, .. } if self.removing.is_none() && !self.has_failed() => {
                Some(since + RETRY_INTERVAL)
            }
            _ => None,
        };
        let removal = self.removal_failed.map(|since| since + RETRY_INTERVAL);
        let carry = self.carry.paused_until().filter(|_| self.is_accepting() && !self.is_finishing);
        [outcomes, prepare, removal, carry, self.ledger.next_due()].into_iter().flatten().min()
    }

    /// An I/O has ended.
    pub fn handle_io(&mut self, completion: Completion, now: Instant) {
        match completion {
            Completion::Prepared { slot, result } => self.handle_prepared(slot, result, now),
            Completion::Written { slot, offset, result } => {
                self.pages.release();
                let Some(open) = self.open_mut(slot) else { return self.handle_seal_written(slot, result) };
                match result {
                    Ok(()) => {
                        if let Some(horizon) = open.tail.handle_written(offset) {
                            self.raise_horizon(horizon);
                        }
                        self.seal_if_durable();
                    }
                    Err(_) => self.poison(slot, now),
                }
            }
            Completion::Synced { slot, result } => {
                let Some(open) = self.open_mut(slot) else { return };
                match result {
                    Ok(()) => {
                        let horizon = open.tail.handle_synced();
                        self.counters.syncs += 1;
                        self.raise_horizon(horizon);
                        self.seal_if_durable();
                    }
                    Err(_) => self.poison(slot, now),
                }
            }
            Completion::Read { records } => self.handle_read(records),
            Completion::Removed { slot, result } => {
                assert!(self.removing == Some(slot), "one removal at a time");
                match result {
                    Ok(()) => self.removing = None,
                    Err(_) => self.removal_failed = Some(now),
                }
            }
        }
    }

    fn raise_horizon(&mut self, horizon: u64) {
        self.horizon = horizon;
        self.poisoned_count = 0;
        if self.voids_in.take_if(|open| *open < horizon).is_some() {
            self.voids.clear();
        }
    }

    fn open_mut(&mut self, slot: Slot) -> Option<&mut Open<P>> {
        [&mut self.sealing, &mut self.active].into_iter().flatten().find(|open| open.tail.slot() == slot)
    }

    /// A write or sync of the segment failed. See the module.
    fn poison(&mut self, slot: Slot, now: Instant) {
        let is_sealing = self.sealing.as_ref().is_some_and(|sealing| sealing.tail.slot() == slot);
        // What had become durable before the failure is stored.
        while let Some(stored) = self.poll_durable() {
            self.stored.push_back(stored);
        }
        let failed = if is_sealing { self.sealing.take() } else { self.active.take() };
        let failed = failed.expect("the caller has found it");
        // What recovery kept is durable, though the horizon may be in front of it until the first Open record is.
        let void = self.horizon.max(self.first_sequence)..self.next_sequence;
        // Of a failure right behind another, whose Open record is lost with it: one range for both, so that the next fits.
        self.voids.retain(|before| before.start < void.start);
        self.voids.push(void);
        self.voids_in = None;
        self.lost.retain(|(epoch, _)| self.ledger.segment(*epoch).is_some());
        self.lost.push((failed.epoch, failed.tail.positions().durable));
        self.poisoned_count += 1;
        let mut gone: Vec<u64> = failed.tail.give_up(&mut self.pages).collect();
        if is_sealing && let Some(active) = self.active.take() {
            // Nothing of it has been written: writes wait for the sealing segment. Its pieces count as lost.
            self.lost.push((active.epoch, 0));
            gone.extend(active.tail.give_up(&mut self.pages));
            self.ledger.poison(active.epoch);
        }
        self.take_back_outcomes(now);
        self.drop_carried();
        for sequence in gone {
            // Outcomes records and messages that were being moved have no entry under the record's number.
            if self.ledger.entry(sequence).is_some() {
                let needs = self.ledger.remove(sequence);
                self.ledger.release(needs);
                self.stored.push_back((sequence, false));
            }
        }
        self.ledger.poison(failed.epoch);
        self.roll_to_void();
    }

    /// What waits in this lane.
    pub fn waiting_in(&self, lane: Lane) -> Waiting {
        self.ledger.waiting_in(lane)
    }
    /// The number that the next record gets, and that of the oldest message that is not done.
    pub fn numbers(&self) -> (u64, Option<u64>) {
        (self.next_sequence, self.ledger.oldest())
    }

    /// Whether the message of this number was there when the log was opened.
    pub fn was_recovered(&self, sequence: u64) -> bool {
        sequence < self.first_sequence
    }

    /// The number of the oldest message that waits in this lane and that no delivery has; or one below it, while many wait: no more than
    /// `looks` messages are looked at, which are taken from it.
    pub fn oldest_in(&mut self, lane: Lane, looks: &mut usize) -> Option<u64> {
        self.ledger.oldest_in(lane, looks)
    }

    /// The lane of the target with this name.
    pub fn lane(&mut self, name: &str) -> Lane {
        self.ledger.lane(name)
    }

    /// How many lanes there are, those included of targets that only the log remembers.
    pub fn lanes_count(&self) -> usize {
        self.ledger.lanes_count()
    }

    /// It is decided who gets the message, which no delivery has. It may be that nobody is left.
    pub fn route(&mut self, sequence: u64, wanted: &Wanted, now: Instant) {
        if let Some(needs) = self.ledger.route(sequence, wanted) {
            let head = OutcomeHead {
                sequence,
                is_message_done: true,
                made: Made::default(),
                target: "",
                here_only: false,
            };
            self.note_outcomes(head, &[], Some(needs), now);
        }
    }

    /// The durable message of this lane that is to be handed off first, if there is one. Those whose retry is due are among them.
    pub fn next_of_backlog(&mut self, lane: Lane, now: Instant) -> Option<u64> {
        self.ledger.handle_due(now);
        self.ledger.first_of_backlog(lane)
    }

    /// The same, of those whose time has come.
    pub fn next_due_of_backlog(&mut self, lane: Lane, now: Instant) -> Option<u64> {
        self.ledger.handle_due(now);
        self.ledger.first_due(lane)
    }

    /// Is the message durable, due, not held, and not handed off in this lane?
    pub fn is_in_backlog(&self, sequence: u64, lane: Lane) -> bool {
        self.ledger.is_in_backlog(sequence, lane)
    }

    /// What was deferred in this lane need not wait any longer.
    pub fn hasten(&mut self, lane: Lane) {
        self.ledger.hasten(lane);
    }

    /// The same for the one message whose time is soonest.
    pub fn hasten_one(&mut self, lane: Lane) {
        self.ledger.hasten_one(lane);
    }

    /// Whether it was decided who gets the message, as things are now.
    pub fn is_routed(&self, sequence: u64) -> bool {
        self.ledger.is_routed(sequence)
    }

    /// Who gets what is to be decided anew, message by message as each has its turn.
    pub fn begin_routing(&mut self) {
        self.ledger.begin_routing();
    }

    /// The message of this lane's backlog, which may have been hastened, waits there until then.
    pub fn put_off(&mut self, sequence: u64, lane: Lane, until: Instant) {
        self.ledger.put_off(sequence, lane, until);
    }

    /// Whether a delivery has the message in this lane, or it is being read for one.
    pub fn is_handed_off(&self, sequence: u64, lane: Lane) -> bool {
        self.ledger.is_handed_off_in(sequence, lane)
    }

    /// Whether there are messages of which it was not decided since the log was opened, or since [`Spool::begin_routing`], who gets them,
    /// and that are not held.
    pub fn has_unrouted(&self) -> bool {
        self.ledger.has_unrouted()
    }

    /// Durable messages of this lane that wait for nothing but room in its delivery channel.
    pub fn backlog_depth(&self, lane: Lane) -> usize {
        self.ledger.backlog_depth(lane)
    }

    /// The message, if it is not done.
    pub fn entry(&self, sequence: u64) -> Option<&Entry> {
        self.ledger.entry(sequence)
    }

    /// The file and life of a segment that has records.
    pub fn segment(&self, epoch: u64) -> Option<(Slot, u64)> {
        self.ledger.segment(epoch).map(|segment| (segment.slot, segment.life))
    }

    /// The message is in the delivery channel of this lane.
    pub fn hand_off(&mut self, sequence: u64, lane: Lane) {
        self.ledger.hand_off(sequence, lane);
    }

    /// The delivery channel had no room after all: the message is in the backlog again, unless it was dropped meanwhile.
    pub fn take_back(&mut self, sequence: u64, lane: Lane) {
        self.ledger.take_back(sequence, lane);
    }

    /// Is the file of this slot being written to, or about to be?
    pub fn is_open(&self, slot: Slot) -> bool {
        let is_ready =
            matches!(&self.spare, Spare::Ready(spare) | Spare::Preparing(spare, _) if spare.slot == slot);
        let is_unsealed = self.unsealed.iter().any(|unsealed| unsealed.slot == slot);
        is_ready
            || is_unsealed
            || [&self.sealing, &self.active].into_iter().flatten().any(|open| open.tail.slot() == slot)
    }

    /// What an attempt in this lane has brought. Recorded in the log; nobody waits for that. `unix_now` is the wall clock of the
    /// outcomes' next attempts.
    pub fn handle_outcome(
        &mut self,
        sequence: u64,
        lane: Lane,
        made: Made,
        outcomes: &[RecipientOutcome],
        (now, unix_now): (Instant, u64),
    ) {
        let Some(entry) = self.ledger.entry(sequence) else { return };
        let target = self.ledger.name(lane).clone();
        let head = OutcomeHead { sequence, is_message_done: false, made, target: &target, here_only: false };
        let is_here_only = |outcome: &&RecipientOutcome| entry.is_left_elsewhere(lane, outcome.index);
        // Nearly all have one target.
        let (here_only, outcomes): (Vec<_>, Cow<'_, [_]>) = match entry.parts().len() {
            1 => (Vec::new(), outcomes.into()),
            _ => {
                let (here_only, others): (Vec<_>, Vec<_>) = outcomes.iter().partition(is_here_only);
                let owned = |all: Vec<&RecipientOutcome>| all.into_iter().cloned().collect::<Vec<_>>();
                (owned(here_only), owned(others).into())
            }
        };
        let needs = self.ledger.handle_outcome(sequence, lane, (&here_only, &outcomes), (now, unix_now));
        if !here_only.is_empty() {
            self.note_outcomes(OutcomeHead { here_only: true, ..head }, &here_only, None, now);
        }
        if !outcomes.is_empty() {
            self.note_outcomes(head, &outcomes, needs, now);
        }
    }

    /// Makes everything that was appended durable, outcomes too, as soon as may be, and seals the last segment: before a clean
    /// end. To be called again until [`Spool::is_idle`].
    pub fn finish(&mut self, now: Instant) {
        self.is_finishing = true;
        self.outcomes.hurry(now);
        let Some(active) = &mut self.active else { return };
        active.tail.want_durable();
        let has_memory = self.pages.has_free(self.pages.count_for(INDEX_RECORD_SIZE_MAX));
        if self.outcomes.is_empty() && self.sealing.is_none() && has_memory {
            self.close_active();
        }
    }

    /// Nothing that was appended is still on its way, and no outcome waits to be written.
    pub fn is_idle(&self) -> bool {
        let is_durable = |open: &Option<Open<P>>| open.as_ref().is_none_or(|open| open.tail.is_durable());
        let is_sealed = !self.is_finishing || (self.active.is_none() && self.unsealed.is_empty());
        is_durable(&self.sealing) && is_durable(&self.active) && is_sealed && self.outcomes.is_empty()
    }
}
