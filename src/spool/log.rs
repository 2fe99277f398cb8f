//! One log: appends, rolls from segment to segment, turns durable positions into stored messages, survives bad media.
//!
//! Rolling: when a record does not fit the active segment, the active one becomes *sealing* (everything in it shall become
//! durable) and the spare, prepared ahead, becomes active. Appends go on in memory; writes of the new one wait until the
//! sealing one is durable.
//!
//! Poison: a failed write or sync ends the segment. All messages that were not yet durable fail, in it and behind it. The
//! next segment's Open record voids their sequence numbers, so that whatever of them reached the medium is not
//! mistaken for mail later (their peers were told 451).

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::commit::{Pages, Tail};
use super::format::{self, Kind, PieceRef, RECORDS_OFFSET, RecipientOutcome, RecordHeader, SegmentHeader};
use super::io::{Completion, Io, IoFailure, Page, Slot};
use super::ledger::{Entry, Ledger, Location, Needs};
use super::recovery::Recovered;
use crate::mail::{Arrival, Envelope, MessageId};

/// How long an outcome may wait for company before it is written: what a crash can make be delivered twice.
const OUTCOMES_DELAY: Duration = Duration::from_millis(20);
/// Outcomes are written at once when they are this many octets.
const OUTCOMES_SIZE: usize = 32 * 1024;
/// Recipients in one entry of outcomes: with the longest reasons they are half of [`OUTCOMES_SIZE`].
const OUTCOME_RECIPIENTS_MAX: usize = 16;
/// A failed preparation or removal is tried again after this.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);
/// This many segments poisoned without one completed sync between them, and the log takes no more.
const POISONED_MAX: u32 = 2;

const OPEN_SIZE: usize = format::record_size(16);

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
/// [`Spool::abandon`], or its segments are held for ever.
#[derive(Debug, Default)]
pub struct Receiving {
    pieces: Vec<PieceRef>,
    content_size: u64,
}

impl Receiving {
    /// Nothing is in the log yet.
    pub fn is_empty(&self) -> bool {
        self.pieces.is_empty()
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

/// A segment that is ready for its first append.
struct Prepared {
    slot: Slot,
    epoch: u64,
    life: u64,
}

enum Spare {
    None,
    /// Wait before the next attempt.
    Failed {
        since: Instant,
        why: IoFailure,
    },
    Preparing(Prepared, bool),
    Ready(Prepared),
}

/// Outcomes that share a record.
#[derive(Default)]
struct OutcomesBatch {
    payload: Vec<u8>,
    /// What the messages that are done by them needed.
    done: Vec<Needs>,
}

struct Open<P> {
    tail: Tail<P>,
    epoch: u64,
    life: u64,
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
    /// Every record with a smaller sequence is durable.
    horizon: u64,
    /// Where the next segment's Open record voids from.
    void_from: u64,
    /// The last preparation found no space. Until one succeeds, messages leave the reserve to outcomes.
    is_full: bool,
    removing: Option<Slot>,
    removal_failed: Option<Instant>,
    /// Poisoned segments and how far they are durable: a piece that ends beyond is lost.
    lost: Vec<(u64, u32)>,
    poisoned_count: u32,
    stored: VecDeque<(u64, bool)>,
    /// Not yet appended, oldest first; each fits a record.
    outcomes: VecDeque<OutcomesBatch>,
    outcomes_since: Option<Instant>,
    /// Appended and not yet durable, by the sequence of the record.
    outcomes_appended: VecDeque<(u64, OutcomesBatch)>,
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
        let mut ledger = Ledger::default();
        for segment in &recovered.segments {
            ledger.add_segment(segment.epoch, segment.slot, segment.life);
        }
        for (sequence, message) in recovered.messages {
            let wait = message.next_attempt.saturating_sub(unix_now);
            let due = (wait > 0).then(|| now + Duration::from_secs(wait));
            ledger.adopt(sequence, message.entry, due);
        }
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
            next_epoch: recovered.next_epoch,
            next_sequence: recovered.next_sequence,
            horizon: recovered.void_from,
            void_from: recovered.void_from,
            is_full: false,
            removing: None,
            removal_failed: None,
            lost: Vec::new(),
            poisoned_count: 0,
            stored: VecDeque::new(),
            outcomes: VecDeque::new(),
            outcomes_since: None,
            outcomes_appended: VecDeque::new(),
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

    /// Can it take messages, or will it be able to as soon as a preparation or write completes? False when the medium
    /// failed for good: see [`AppendError::Failed`].
    pub fn is_accepting(&self) -> bool {
        self.poisoned_count < POISONED_MAX
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
        left.saturating_sub(u64::from(self.reserve())) > size.saturating_add(2 * format::BLOCK_SIZE as u64)
    }

    /// What messages leave free in the last segment of a full disk, for outcomes: without them deliveries would not
    /// survive a crash, and only deliveries make room.
    fn reserve(&self) -> u32 {
        self.config.segment_size / 16
    }

    /// Appends a part of a message's content.
    pub fn append_piece(&mut self, receiving: &mut Receiving, content: &[u8]) -> Result<(), AppendError> {
        if content.is_empty() {
            return Ok(());
        }
        self.check_pieces(receiving)?;
        let location = self.append(Kind::Piece, &[content], true)?;
        self.ledger.hold(location.epoch);
        let size = content.len() as u32;
        let Location { epoch, offset, .. } = location;
        receiving.pieces.push(PieceRef { epoch, sequence: self.next_sequence - 1, offset, size });
        receiving.content_size += u64::from(size);
        Ok(())
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
        let envelope_size = format::envelope_size(envelope, arrival);
        let pieces = &receiving.pieces;
        // A roll puts an Open record in front, and the id is the record's number: so room is made before the id is given.
        let size_max = format::message_payload_size(pieces.len(), envelope_size, TRACE_SIZE_MAX, tail.len());
        self.make_room(format::record_size(size_max), true)?;
        let id = MessageId { log: self.log, sequence: self.next_sequence };
        let trace = write_trace(id);
        assert!(trace.len() <= TRACE_SIZE_MAX, "the trace's parts are bounded by smtp");
        let mut head = std::mem::take(&mut self.head);
        format::encode_message_head(
            id.sequence,
            receiving.content_size + tail.len() as u64,
            pieces,
            (envelope, arrival),
            (trace.len(), tail.len()),
            &mut head,
        );
        let location = self.append_active(Kind::Message, &[&head, &trace, tail]);
        self.head = head;
        let pieces = std::mem::take(receiving).pieces.into_boxed_slice();
        self.ledger.add(id.sequence, location, pieces, envelope.forward_paths.len() as u32);
        self.active.as_mut().expect("it was appended to").tail.wait(id.sequence);
        Ok((id, trace))
    }

    /// The message will not come: its pieces are not needed.
    pub fn abandon(&mut self, receiving: &mut Receiving) {
        let pieces = std::mem::take(receiving).pieces.into();
        self.ledger.release(Needs { message: None, pieces });
    }

    /// What fits a segment, and the pages though one of them is being filled. More would wait for ever.
    fn record_size_max(&self) -> usize {
        let segment = self.config.segment_size as usize - RECORDS_OFFSET as usize;
        segment.min((self.config.pages_max - 1) * self.config.page_size) - OPEN_SIZE
    }

    fn check_pieces(&self, receiving: &Receiving) -> Result<(), AppendError> {
        let is_lost = |piece: &PieceRef| {
            let end = piece.offset as usize + format::record_size(piece.size as usize);
            self.lost.iter().any(|(epoch, from)| piece.epoch == *epoch && end > *from as usize)
        };
        if !self.lost.is_empty() && receiving.pieces.iter().any(is_lost) {
            return Err(AppendError::Failed);
        }
        Ok(())
    }

    /// Makes the active segment have room and memory for a record of `size` octets.
    fn make_room(&mut self, size: usize, is_mail: bool) -> Result<(), AppendError> {
        if !self.is_accepting() || size > self.record_size_max() {
            return Err(AppendError::Failed);
        }
        if let Some(active) = &self.active {
            let reserve = if is_mail && self.is_full { self.reserve() as usize } else { 0 };
            if active.tail.room() >= size + reserve {
                let has_memory = active.tail.has_memory(size, &self.pages);
                return if has_memory { Ok(()) } else { Err(AppendError::Busy) };
            }
        }
        match &self.spare {
            Spare::None if self.removal_failed.is_some() => return Err(AppendError::Failed),
            Spare::Failed { why: IoFailure::NoSpace, .. } => return Err(AppendError::NoRoom),
            Spare::Failed { why: IoFailure::Failed, .. } => return Err(AppendError::Failed),
            // Tried again just now: most likely the disk is as full as it was.
            Spare::Preparing(..) if is_mail && self.is_full => return Err(AppendError::NoRoom),
            Spare::None | Spare::Preparing(..) => return Err(AppendError::Busy),
            Spare::Ready(_) if self.sealing.is_some() => return Err(AppendError::Busy),
            Spare::Ready(_) => {}
        }
        let start = RECORDS_OFFSET as u32;
        let Spare::Ready(spare) = &self.spare else { unreachable!("it was just matched") };
        let tail =
            Tail::new(spare.slot, start, self.config.segment_size, self.next_sequence, self.config.sync);
        if !tail.has_memory(size + OPEN_SIZE, &self.pages) {
            return Err(AppendError::Busy);
        }
        let Spare::Ready(spare) = std::mem::replace(&mut self.spare, Spare::None) else { unreachable!() };
        self.roll(spare, tail);
        Ok(())
    }

    /// Numbers are to be voided: the record that says so is written at once, for their peers were refused.
    fn roll_to_void(&mut self) {
        if self.active.is_some() || self.sealing.is_some() || self.void_from >= self.next_sequence {
            return;
        }
        if self.make_room(OPEN_SIZE, false).is_ok()
            && let Some(active) = &mut self.active
        {
            active.tail.want_durable();
        }
    }

    fn roll(&mut self, spare: Prepared, tail: Tail<P>) {
        if let Some(mut old) = self.active.take() {
            old.tail.want_durable();
            self.sealing = Some(old);
            self.seal_if_durable();
        }
        self.ledger.add_segment(spare.epoch, spare.slot, spare.life);
        self.active = Some(Open { tail, epoch: spare.epoch, life: spare.life });
        self.append_open();
    }

    /// The active segment's first record.
    fn append_open(&mut self) {
        let epoch = self.active.as_ref().expect("a segment was just opened").epoch;
        let void_from = std::mem::replace(&mut self.void_from, u64::MAX).min(self.next_sequence);
        let open = format::encode_open(epoch, void_from);
        self.append_active(Kind::Open, &[&open]);
    }

    fn append(&mut self, kind: Kind, payload: &[&[u8]], is_mail: bool) -> Result<Location, AppendError> {
        let payload_size: usize = payload.iter().map(|part| part.len()).sum();
        self.make_room(format::record_size(payload_size), is_mail)?;
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
            if !self.end_outcomes(sequence) {
                self.ledger.make_durable(sequence);
                return Some((sequence, true));
            }
        }
    }

    /// If the record is the next Outcomes record on its way, it is durable now: what its messages needed is not needed any
    /// more.
    fn end_outcomes(&mut self, sequence: u64) -> bool {
        let Some(batch) = self.outcomes_appended.pop_front_if(|(ticket, _)| *ticket == sequence) else {
            return false;
        };
        batch.1.done.into_iter().for_each(|needs| self.ledger.release(needs));
        true
    }

    /// The next I/O to perform. Ask again after every append, completion and when [`Spool::poll_timeout`] has passed.
    pub fn poll_io(&mut self, now: Instant) -> Option<Io<P>> {
        if let Some(io) = self.poll_removal(now).or_else(|| self.poll_prepare(now)) {
            return Some(io);
        }
        self.ledger.handle_due(now);
        // May roll, so it comes before the question which segment may be written.
        self.append_outcomes(now);
        self.sealing.as_mut().or(self.active.as_mut())?.tail.poll_io()
    }

    /// One removal at a time, and no preparation until it is durable: a file that came back after a crash may hold messages
    /// whose outcomes were in a file that was prepared anew since.
    fn poll_removal(&mut self, now: Instant) -> Option<Io<P>> {
        if self.removing.is_none() && !matches!(self.spare, Spare::Preparing(..)) {
            self.removing = self.ledger.poll_removal();
            self.removal_failed = None;
            return self.removing.map(|slot| Io::Remove { slot });
        }
        self.removal_failed.take_if(|since| now >= *since + RETRY_INTERVAL)?;
        self.removing.map(|slot| Io::Remove { slot })
    }

    fn poll_prepare(&mut self, now: Instant) -> Option<Io<P>> {
        if self.removing.is_some() || !self.is_accepting() {
            return None;
        }
        match self.spare {
            Spare::None => {}
            Spare::Failed { since, .. } if now >= since + RETRY_INTERVAL || self.ledger.has_free() => {}
            _ => return None,
        }
        let (slot, is_new) = match self.ledger.take_free() {
            Some(slot) => (slot, false),
            None => {
                self.next_slot += 1;
                (Slot(self.next_slot - 1), true)
            }
        };
        let prepared = Prepared { slot, epoch: self.next_epoch, life: (self.entropy)() };
        self.next_epoch += 1;
        let size = self.config.segment_size;
        let header = SegmentHeader { log: self.log, epoch: prepared.epoch, life: prepared.life, size };
        self.spare = Spare::Preparing(prepared, is_new);
        Some(Io::Prepare { slot, is_new, size, header: header.encode() })
    }

    /// Appends the outcomes that have gathered, if they have waited long enough or a batch is about to be closed anyway.
    fn append_outcomes(&mut self, now: Instant) {
        let Some(since) = self.outcomes_since else { return };
        let is_due = now >= since + OUTCOMES_DELAY || self.outcomes.len() > 1;
        let has_company = self.active.as_ref().is_some_and(|active| active.tail.is_closing());
        if !is_due && !has_company {
            return;
        }
        while let Some(batch) = self.outcomes.pop_front() {
            match self.append(Kind::Outcomes, &[&batch.payload], false) {
                Ok(_) => {
                    let ticket = self.next_sequence - 1;
                    self.outcomes_appended.push_back((ticket, batch));
                    self.active.as_mut().expect("it was appended to").tail.wait(ticket);
                }
                // A failed medium keeps what it holds: nothing is freed that a crash could miss.
                Err(AppendError::Busy | AppendError::Failed) => {
                    self.outcomes.push_front(batch);
                    self.outcomes_since = Some(now);
                    return;
                }
                // They are not recorded: the price is a second delivery after a crash. To wait for room instead would be
                // to wait for ever, for only deliveries make room.
                Err(AppendError::NoRoom) => {
                    batch.done.into_iter().for_each(|needs| self.ledger.release(needs))
                }
            }
        }
        self.outcomes_since = None;
    }

    /// When to ask [`Spool::poll_io`] and [`Spool::next_of_backlog`] again though nothing else has happened.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let outcomes = self.outcomes_since.map(|since| since + OUTCOMES_DELAY);
        let prepare = match self.spare {
            Spare::Failed { since, .. } if self.removing.is_none() && self.is_accepting() => {
                Some(since + RETRY_INTERVAL)
            }
            _ => None,
        };
        let removal = self.removal_failed.map(|since| since + RETRY_INTERVAL);
        [outcomes, prepare, removal, self.ledger.next_due()].into_iter().flatten().min()
    }

    /// An I/O has ended.
    pub fn handle_io(&mut self, completion: Completion, now: Instant) {
        match completion {
            Completion::Prepared { slot, result } => self.handle_prepared(slot, result, now),
            Completion::Written { slot, offset, result } => {
                self.pages.release();
                let Some(open) = self.open_mut(slot) else { return };
                match result {
                    Ok(()) => {
                        if let Some(horizon) = open.tail.handle_written(offset) {
                            self.horizon = horizon;
                            self.poisoned_count = 0;
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
                        self.horizon = open.tail.handle_synced();
                        self.poisoned_count = 0;
                        self.seal_if_durable();
                    }
                    Err(_) => self.poison(slot, now),
                }
            }
            Completion::Removed { slot, result } => {
                assert!(self.removing == Some(slot), "one removal at a time");
                match result {
                    Ok(()) => self.removing = None,
                    Err(_) => self.removal_failed = Some(now),
                }
            }
        }
    }

    fn open_mut(&mut self, slot: Slot) -> Option<&mut Open<P>> {
        [&mut self.sealing, &mut self.active].into_iter().flatten().find(|open| open.tail.slot() == slot)
    }

    fn handle_prepared(&mut self, slot: Slot, result: Result<(), IoFailure>, now: Instant) {
        let Spare::Preparing(prepared, is_new) = std::mem::replace(&mut self.spare, Spare::None) else {
            unreachable!("one preparation at a time");
        };
        assert!(prepared.slot == slot);
        match result {
            Ok(()) => {
                self.spare = Spare::Ready(prepared);
                self.is_full = false;
                self.roll_to_void();
            }
            Err(why) => {
                self.is_full = why == IoFailure::NoSpace;
                // What is left of it is not used again: its header may be of the old life, of the new one, or torn.
                debug_assert!(
                    is_new || why == IoFailure::Failed,
                    "a file that is overwritten needs no space"
                );
                self.ledger.add_free(slot, false);
                self.spare = Spare::Failed { since: now, why };
            }
        }
    }

    fn seal_if_durable(&mut self) {
        // Tickets are handed out before the tail goes: poll_stored reads them from it.
        if self.sealing.as_ref().is_some_and(|sealing| sealing.tail.is_durable()) {
            while let Some(stored) = self.poll_durable() {
                self.stored.push_back(stored);
            }
            let sealing = self.sealing.take().expect("it was just looked at");
            self.ledger.seal(sealing.epoch);
        }
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
        self.void_from = self.void_from.min(self.horizon);
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
        while let Some((_, batch)) = self.outcomes_appended.pop_back() {
            self.outcomes.push_front(batch);
            self.outcomes_since.get_or_insert(now);
        }
        for sequence in gone {
            // An Outcomes record has no entry: its outcomes are appended again.
            if self.ledger.entry(sequence).is_some() {
                let needs = self.ledger.remove(sequence);
                self.ledger.release(needs);
                self.stored.push_back((sequence, false));
            }
        }
        self.ledger.poison(failed.epoch);
        self.roll_to_void();
    }

    /// The oldest durable message that has not been handed off, if any. Messages whose retry is due are among them.
    pub fn next_of_backlog(&mut self, now: Instant) -> Option<u64> {
        self.ledger.handle_due(now);
        self.ledger.first_of_backlog()
    }

    /// Durable messages that have not been handed off.
    pub fn backlog_depth(&self) -> usize {
        self.ledger.backlog_depth()
    }

    /// The message, if it is not done.
    pub fn entry(&self, sequence: u64) -> Option<&Entry> {
        self.ledger.entry(sequence)
    }

    /// The file and life of a segment that has records.
    pub fn segment(&self, epoch: u64) -> Option<(Slot, u64)> {
        self.ledger.segment(epoch).map(|segment| (segment.slot, segment.life))
    }

    /// The message is in the delivery channel.
    pub fn hand_off(&mut self, sequence: u64) {
        self.ledger.hand_off(sequence);
    }

    /// The delivery channel had no room after all: the message is in the backlog again.
    pub fn take_back(&mut self, sequence: u64) {
        self.ledger.take_back(sequence);
    }

    /// Is the file of this slot being appended to, or about to be?
    pub fn is_open(&self, slot: Slot) -> bool {
        let is_ready =
            matches!(&self.spare, Spare::Ready(spare) | Spare::Preparing(spare, _) if spare.slot == slot);
        is_ready || [&self.sealing, &self.active].into_iter().flatten().any(|open| open.tail.slot() == slot)
    }

    /// What an attempt has brought. Recorded in the log; nobody waits for that. `unix_now` is the wall clock of the
    /// outcomes' next attempts.
    pub fn handle_outcome(
        &mut self,
        sequence: u64,
        outcomes: &[RecipientOutcome],
        now: Instant,
        unix_now: u64,
    ) {
        if self.ledger.entry(sequence).is_none() {
            return;
        }
        let needs = self.ledger.handle_outcome(sequence, outcomes, (now, unix_now));
        if needs.is_some() {
            format::encode_outcome(sequence, &[], &mut self.outcomes_batch().payload);
        } else {
            // In parts, so that each fits a record whatever the reasons are.
            for part in outcomes.chunks(OUTCOME_RECIPIENTS_MAX) {
                format::encode_outcome(sequence, part, &mut self.outcomes_batch().payload);
            }
        }
        self.outcomes_batch().done.extend(needs);
        self.outcomes_since.get_or_insert(now);
    }

    /// The batch that outcomes go into now.
    fn outcomes_batch(&mut self) -> &mut OutcomesBatch {
        if self.outcomes.back().is_none_or(|batch| batch.payload.len() >= OUTCOMES_SIZE) {
            self.outcomes.push_back(OutcomesBatch::default());
        }
        self.outcomes.back_mut().expect("there is one now")
    }

    /// Makes everything that was appended durable, outcomes too, as soon as may be: before a clean end.
    pub fn finish(&mut self, now: Instant) {
        self.outcomes_since = self.outcomes_since.map(|_| now - OUTCOMES_DELAY);
        if let Some(active) = &mut self.active {
            active.tail.want_durable();
        }
    }

    /// Nothing that was appended is still on its way, and no outcome waits to be written.
    pub fn is_idle(&self) -> bool {
        let is_durable = |open: &Option<Open<P>>| open.as_ref().is_none_or(|open| open.tail.is_durable());
        is_durable(&self.sealing) && is_durable(&self.active) && self.outcomes_since.is_none()
    }
}
