//! The ledger: what is not done, and which segments are needed for it.
//!
//! One entry per accepted message that still needs a delivery attempt. Every segment counts the records of it that
//! somebody needs: messages in the ledger, and pieces of messages that are still being received. A segment that nobody
//! needs is free to be used again.
//!
//! Segments are freed, used again and removed **oldest first**, and only so. The record that says a message is done is
//! always in the same segment as the message or in a younger one; were the younger gone while the older still stands, a
//! crash would bring back a message that had been delivered.
//!
//! So that one message that waits long does not hold all segments behind its own, it can be moved: see `carry`. The
//! ledger says when that is due and what the oldest segment holds.
//!
//! Knows nothing of octets, buffers or syncs.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use super::entry::{Entry, Location, State, Tick};
use super::format::{PieceRef, RecipientOutcome};
use super::io::Slot;
use super::reasons::Reasons;
use super::sequence_map::SequenceMap;

/// Free segments kept for reuse; more are removed, so that a burst does not hold its disk space for ever. Four carry a
/// shard at full speed over the time that deliveries of the oldest segment take.
const FREE_SEGMENTS_MAX: usize = 4;
/// Segments with records that a log may have beyond twice what is needed of them, before messages are carried forward: the
/// one being written, the one before it, and some in which little is to be carried because they are just being delivered.
const SPARSE_SEGMENTS_MAX: u64 = 4;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Being appended to, or not yet durable.
    Open,
    /// Complete and durable.
    Sealed,
    /// A write or sync of it failed; its durable part is still read, the file is never used again.
    Poisoned,
}

/// A segment that has records.
#[derive(Debug)]
pub struct Segment {
    /// Its file.
    pub slot: Slot,
    /// The life its records carry.
    pub life: u64,
    /// The number of its first record.
    pub first_sequence: u64,
    phase: Phase,
    /// A delivery may be reading from it: its file is removed, not used again.
    is_read: bool,
    needed: u32,
    /// Messages that need a record of it, other than those whose number is of this segment. Some may be done since.
    guests: Vec<u64>,
}

/// What is not done, and what is needed for it.
#[derive(Debug)]
pub struct Ledger {
    segment_size: u32,
    segments: BTreeMap<u64, Segment>,
    entries: SequenceMap<Entry>,
    backlog: BTreeSet<u64>,
    deferred: BTreeSet<(Tick, u64)>,
    reasons: Reasons,
    /// Octets of the records that are needed.
    live_size: u64,
    /// Oldest first; false: not to be used again.
    free: VecDeque<(Slot, bool)>,
    opened: (Instant, u64),
}

impl Ledger {
    /// Of these messages, each durable. Its segments have `segment_size` octets; it is `now`, and the wall clock says
    /// `unix_now` seconds. The segments of the messages are to be added, and then [`Ledger::adopt`] is to be called.
    pub fn new(
        segment_size: u32,
        entries: SequenceMap<Entry>,
        reasons: Reasons,
        (now, unix_now): (Instant, u64),
    ) -> Self {
        Ledger {
            segment_size,
            segments: BTreeMap::new(),
            entries,
            backlog: BTreeSet::new(),
            deferred: BTreeSet::new(),
            reasons,
            live_size: 0,
            free: VecDeque::new(),
            opened: (now, unix_now * 1000),
        }
    }

    fn tick(&self, at: Instant) -> Tick {
        let (opened, unix) = self.opened;
        Tick(unix + at.saturating_duration_since(opened).as_millis() as u64)
    }

    fn instant(&self, Tick(at): Tick) -> Instant {
        let (opened, unix) = self.opened;
        // A moment beyond what the clock can name is not one.
        const WAIT_MAX: u64 = 10 * 365 * 86_400 * 1000;
        opened + Duration::from_millis(at.saturating_sub(unix).min(WAIT_MAX))
    }

    /// Messages that are not done.
    pub fn depth(&self) -> usize {
        self.entries.len()
    }

    /// Durable messages that wait for nothing but room in the delivery channel.
    pub fn backlog_depth(&self) -> usize {
        self.backlog.len()
    }

    /// A segment's file and life.
    pub fn segment(&self, epoch: u64) -> Option<&Segment> {
        self.segments.get(&epoch)
    }

    /// A segment begins its life; its first record has this number.
    pub fn add_segment(&mut self, epoch: u64, slot: Slot, life: u64, first_sequence: u64) {
        let guests = Vec::new();
        let segment =
            Segment { slot, life, first_sequence, phase: Phase::Open, is_read: false, needed: 0, guests };
        assert!(self.segments.insert(epoch, segment).is_none(), "an epoch is used once");
    }

    /// A file that holds nothing, to be used or removed before those that are freed later. `is_usable`: it may be used
    /// again, else it is to be removed.
    pub fn add_free(&mut self, slot: Slot, is_usable: bool) {
        self.free.push_front((slot, is_usable));
    }

    /// A segment is complete and durable.
    pub fn seal(&mut self, epoch: u64) {
        self.phase(epoch, Phase::Sealed);
    }

    /// A write or sync of the segment failed, or its file is of no use: it stays as long as it is needed, then it is removed.
    pub fn poison(&mut self, epoch: u64) {
        self.phase(epoch, Phase::Poisoned);
    }

    fn phase(&mut self, epoch: u64, phase: Phase) {
        self.segments.get_mut(&epoch).expect("an open segment is known").phase = phase;
        self.free_oldest();
    }

    /// A record of this size is needed.
    pub fn hold(&mut self, epoch: u64, record_size: usize) {
        self.segments.get_mut(&epoch).expect("records are appended to known segments").needed += 1;
        self.live_size += record_size as u64;
    }

    /// These records are not needed any more.
    pub fn release(&mut self, needs: Needs) {
        let pieces = needs.pieces.iter().map(|piece| (piece.epoch, piece.record_size()));
        for (epoch, size) in pieces.chain(needs.message.map(|place| (place.epoch, place.size as usize))) {
            let segment = self.segments.get_mut(&epoch).expect("a held segment stays");
            segment.needed = segment.needed.checked_sub(1).expect("each hold is released once");
            self.live_size -= size as u64;
        }
        self.free_oldest();
    }

    fn free_oldest(&mut self) {
        while let Some(oldest) = self.segments.first_entry() {
            let segment = oldest.get();
            if segment.needed > 0 || segment.phase == Phase::Open {
                return;
            }
            let segment = oldest.remove();
            self.free.push_back((segment.slot, segment.phase == Phase::Sealed && !segment.is_read));
        }
    }

    /// A file to use again: the one that was freed first.
    pub fn take_free(&mut self) -> Option<Slot> {
        self.free.pop_front_if(|(_, is_usable)| *is_usable).map(|(slot, _)| slot)
    }

    /// Is there a file to use again?
    pub fn has_free(&self) -> bool {
        self.free.front().is_some_and(|(_, is_usable)| *is_usable)
    }

    /// A file to remove before anything else is used again or removed.
    pub fn poll_removal(&mut self) -> Option<Slot> {
        let is_many = self.free.len() > FREE_SEGMENTS_MAX;
        self.free.pop_front_if(|(_, is_usable)| is_many || !*is_usable).map(|(slot, _)| slot)
    }

    /// A message has been appended; its pieces are held already and now belong to it.
    pub fn add(&mut self, sequence: u64, location: Location, pieces: Box<[PieceRef]>, recipient_count: u32) {
        self.hold(location.epoch, location.size as usize);
        self.note_guest(sequence, location, &pieces);
        let entry = Entry::appended(location, pieces, recipient_count);
        assert!(self.entries.insert(sequence, entry).is_none(), "a sequence is used once");
    }

    /// The segments that have records of the message shall know it, beyond the one of its number.
    fn note_guest(&mut self, sequence: u64, location: Location, pieces: &[PieceRef]) {
        let home = self.segments.get(&location.epoch).expect("its record was just held");
        let is_guest = home.first_sequence > sequence;
        let mut epochs: Vec<u64> = pieces.iter().map(|piece| piece.epoch).collect();
        epochs.dedup();
        epochs.retain(|epoch| *epoch != location.epoch);
        epochs.extend(is_guest.then_some(location.epoch));
        for epoch in epochs {
            let segment = self.segments.get_mut(&epoch).expect("a held segment stays");
            if segment.guests.last() != Some(&sequence) {
                segment.guests.push(sequence);
            }
        }
    }

    /// The messages there are need their records, and are due when they say. Once, when their segments have been added.
    pub fn adopt(&mut self) {
        let (_, now) = self.opened;
        let mut entries = std::mem::take(&mut self.entries);
        for (sequence, entry) in entries.iter_mut() {
            entry.pieces.iter().for_each(|piece| self.hold(piece.epoch, piece.record_size()));
            self.hold(entry.location.epoch, entry.location.size as usize);
            self.note_guest(sequence, entry.location, &entry.pieces);
            match entry.state {
                State::Deferred(due) if due.0 > now => drop(self.deferred.insert((due, sequence))),
                _ => {
                    entry.state = State::Backlog;
                    self.backlog.insert(sequence);
                }
            }
        }
        self.entries = entries;
    }

    /// The oldest segment, if it is complete and messages should be moved out of it: when the segments are more than twice
    /// as large as what is needed of them and a few more; `is_full`: as soon as that frees anything.
    pub fn sparse_segment(&self, is_full: bool) -> Option<u64> {
        let (epoch, oldest) = self.segments.first_key_value()?;
        let size = u64::from(self.segment_size);
        let used = self.segments.len() as u64 * size;
        let bound = match is_full {
            true => self.live_size + 2 * size,
            false => 2 * self.live_size + SPARSE_SEGMENTS_MAX * size,
        };
        (used > bound && oldest.phase != Phase::Open && oldest.needed > 0).then_some(*epoch)
    }

    /// Octets of the records that are needed.
    pub fn live_size(&self) -> u64 {
        self.live_size
    }

    /// Segments that have records.
    pub fn segment_count(&self) -> usize {
        self.segments.len()
    }

    /// Messages that need a record of this segment, and are durable: `count_max` of them at most.
    pub fn messages_in(&self, epoch: u64, count_max: usize) -> Vec<u64> {
        let Some(segment) = self.segments.get(&epoch) else { return Vec::new() };
        let next = self.segments.range(epoch + 1..).next().map_or(u64::MAX, |(_, next)| next.first_sequence);
        let needs_it = |entry: &Entry| {
            let has_piece = || entry.pieces.iter().any(|piece| piece.epoch == epoch);
            entry.state != State::Appended && (entry.location.epoch == epoch || has_piece())
        };
        let own = self.entries.range(segment.first_sequence, next);
        let guests = segment.guests.iter().filter_map(|guest| Some((*guest, self.entries.get(*guest)?)));
        let messages = own.chain(guests).filter(|(_, entry)| needs_it(entry));
        let mut messages: Vec<u64> = messages.map(|(sequence, _)| sequence).take(count_max).collect();
        messages.sort_unstable();
        messages.dedup();
        messages
    }

    /// The message's records were written again, and are durable: from here on they are at `location` and `pieces`, which
    /// are held. Returns what it does not need any more; `None` if the message is done since.
    pub fn relocate(&mut self, sequence: u64, location: Location, pieces: Box<[PieceRef]>) -> Option<Needs> {
        let entry = self.entries.get_mut(sequence)?;
        let is_read = entry.state == State::HandedOff;
        let before = std::mem::replace(&mut entry.pieces, pieces);
        // A moved piece keeps its place among the message's pieces.
        let moved = before.iter().zip(&entry.pieces).filter(|(before, now)| before != now);
        let left = moved.map(|(before, _)| *before).collect();
        let needs = Needs { message: Some(std::mem::replace(&mut entry.location, location)), pieces: left };
        let pieces = std::mem::take(&mut entry.pieces);
        self.note_guest(sequence, location, &pieces);
        self.entries.get_mut(sequence).expect("it was just looked at").pieces = pieces;
        for epoch in needs.epochs().filter(|_| is_read) {
            self.segments.get_mut(&epoch).expect("a held segment stays").is_read = true;
        }
        Some(needs)
    }

    /// What became of the message's recipients so far; empty: no attempt was made.
    pub fn progress(&self, sequence: u64) -> Vec<RecipientOutcome> {
        let Some(entry) = self.entries.get(sequence) else { return Vec::new() };
        let Some(outstanding) = entry.outstanding() else { return Vec::new() };
        let next_attempt = entry.due().unwrap_or(0) / 1000;
        let done = |index| RecipientOutcome {
            index,
            is_done: true,
            attempts: 0,
            next_attempt: 0,
            reason: "".into(),
        };
        let mut left = outstanding.iter().peekable();
        let recipients =
            (0..entry.recipient_count).map(|index| match left.next_if(|left| left.index == index) {
                None => done(index),
                Some(left) => RecipientOutcome {
                    index,
                    is_done: false,
                    attempts: left.attempts,
                    next_attempt,
                    reason: left.reason.as_deref().unwrap_or_default().into(),
                },
            });
        recipients.collect()
    }

    /// The message, if it is not done.
    pub fn entry(&self, sequence: u64) -> Option<&Entry> {
        self.entries.get(sequence)
    }

    /// A delivery has the message now.
    pub fn is_handed_off(&self, sequence: u64) -> bool {
        self.entries.get(sequence).is_some_and(|entry| entry.state == State::HandedOff)
    }

    /// The message is durable, due, and not handed off.
    pub fn is_in_backlog(&self, sequence: u64) -> bool {
        self.entries.get(sequence).is_some_and(|entry| entry.state == State::Backlog)
    }

    /// The message has become durable: it may be delivered.
    pub fn make_durable(&mut self, sequence: u64) {
        let entry = self.entries.get_mut(sequence).expect("an appended message stays until it is durable");
        assert!(entry.state == State::Appended);
        entry.state = State::Backlog;
        self.backlog.insert(sequence);
    }

    /// The message will never be durable, or it is done: it is forgotten. What it needed stays until it is released.
    pub fn remove(&mut self, sequence: u64) -> Needs {
        let entry = self.entries.remove(sequence).expect("only known messages are removed");
        match entry.state {
            State::Backlog => drop(self.backlog.remove(&sequence)),
            State::Deferred(due) => drop(self.deferred.remove(&(due, sequence))),
            State::Appended | State::HandedOff => {}
        }
        Needs { message: Some(entry.location), pieces: entry.pieces }
    }

    /// The oldest message of the backlog.
    pub fn first_of_backlog(&self) -> Option<u64> {
        self.backlog.first().copied()
    }

    /// The message is in the delivery channel.
    pub fn hand_off(&mut self, sequence: u64) {
        let entry = self.entries.get_mut(sequence).expect("only known messages are handed off");
        assert!(entry.state == State::Backlog && self.backlog.remove(&sequence));
        entry.state = State::HandedOff;
    }

    /// The message is not in the delivery channel after all.
    pub fn take_back(&mut self, sequence: u64) {
        let entry = self.entries.get_mut(sequence).expect("only known messages are taken back");
        assert!(entry.state == State::HandedOff && self.backlog.insert(sequence));
        entry.state = State::Backlog;
    }

    /// Messages whose time has come move to the backlog.
    pub fn handle_due(&mut self, now: Instant) {
        let now = self.tick(now);
        while let Some((due, sequence)) = self.deferred.first().copied().filter(|(due, _)| *due <= now) {
            self.deferred.remove(&(due, sequence));
            self.entries.get_mut(sequence).expect("a deferred message is known").state = State::Backlog;
            self.backlog.insert(sequence);
        }
    }

    /// When the next deferred message is due.
    pub fn next_due(&self) -> Option<Instant> {
        self.deferred.first().map(|(due, _)| self.instant(*due))
    }

    /// What an attempt has brought for some of a message's recipients. If the message is done, nobody is left: returns what
    /// it needed, to be released when the outcome is durable. Were a segment with a piece of it used again before, a crash
    /// would find a message without its piece and could not tell that it had been delivered.
    ///
    /// Who is left becomes due at the earliest of their next attempts; `unix_now` is the wall clock that these were
    /// computed with.
    pub fn handle_outcome(
        &mut self,
        sequence: u64,
        outcomes: &[RecipientOutcome],
        (now, unix_now): (Instant, u64),
    ) -> Option<Needs> {
        let Tick(tick) = self.tick(now);
        let entry = self.entries.get_mut(sequence)?;
        assert!(entry.state == State::HandedOff, "outcomes come of attempts");
        if !entry.apply(outcomes, &mut self.reasons) {
            return Some(self.remove(sequence));
        }
        // The wall clock may have been set since the log was opened: what counts is how long to wait.
        let due = entry.due().unwrap_or(0);
        let due = Tick(tick.saturating_add(due.saturating_sub(unix_now.saturating_mul(1000))));
        entry.state = State::Deferred(due);
        self.deferred.insert((due, sequence));
        None
    }
}

/// Records that somebody needs.
#[derive(Debug, Default)]
pub struct Needs {
    /// A Message record.
    pub message: Option<Location>,
    /// Piece records.
    pub pieces: Box<[PieceRef]>,
}

impl Needs {
    /// The segments of the records.
    fn epochs(&self) -> impl Iterator<Item = u64> {
        self.pieces.iter().map(|piece| piece.epoch).chain(self.message.map(|place| place.epoch))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn location(epoch: u64) -> Location {
        Location { epoch, offset: 8192, size: 100 }
    }

    fn ledger(segments: u64) -> Ledger {
        let now = (Instant::now(), 1000);
        let mut ledger = Ledger::new(1 << 20, SequenceMap::default(), Reasons::default(), now);
        (1..=segments).for_each(|epoch| ledger.add_segment(epoch, Slot(epoch as u32), epoch, epoch * 10));
        ledger
    }

    fn outcome(index: u32, is_done: bool, next_attempt: u64) -> RecipientOutcome {
        RecipientOutcome { index, is_done, attempts: 1, next_attempt, reason: "".into() }
    }

    fn deliver(ledger: &mut Ledger, sequence: u64, now: Instant) -> bool {
        ledger.make_durable(sequence);
        ledger.hand_off(sequence);
        let needs = ledger.handle_outcome(sequence, &[outcome(0, true, 0)], (now, 0));
        let is_done = needs.is_some();
        ledger.release(needs.unwrap_or_default());
        is_done
    }

    #[test]
    fn segments_are_freed_oldest_first_and_only_so() {
        let now = Instant::now();
        let mut ledger = ledger(3);
        for sequence in 1..=3 {
            ledger.add(sequence, location(sequence), [].into(), 1);
            ledger.seal(sequence);
        }
        assert!(deliver(&mut ledger, 2, now));
        assert!(!ledger.has_free(), "segment 1 is still needed, so 2 stays");
        assert!(deliver(&mut ledger, 1, now));
        assert_eq!(
            (ledger.take_free(), ledger.take_free(), ledger.take_free()),
            (Some(Slot(1)), Some(Slot(2)), None)
        );
    }

    #[test]
    fn a_segment_is_needed_by_messages_by_pieces_and_while_it_is_open() {
        let now = Instant::now();
        let mut ledger = ledger(2);
        ledger.hold(1, 64);
        ledger.seal(1);
        assert!(!ledger.has_free(), "a piece is being received");
        let piece = PieceRef { epoch: 1, sequence: 1, offset: 8192, size: 10 };
        assert_eq!(piece.record_size(), 64);
        ledger.add(1, location(2), [piece].into(), 1);
        assert!(deliver(&mut ledger, 1, now));
        assert_eq!(ledger.take_free(), Some(Slot(1)));
        assert!(!ledger.has_free(), "segment 2 is open");
        ledger.seal(2);
        assert_eq!(ledger.take_free(), Some(Slot(2)));
    }

    #[test]
    fn a_poisoned_segment_is_removed_not_reused() {
        let mut ledger = ledger(1);
        ledger.poison(1);
        assert_eq!((ledger.take_free(), ledger.poll_removal()), (None, Some(Slot(1))));
    }

    #[test]
    fn what_a_moved_message_does_not_need_any_more_is_released_and_nothing_else() {
        let mut ledger = ledger(3);
        let piece = |epoch, sequence| PieceRef { epoch, sequence, offset: 8192, size: 10 };
        let before = [piece(1, 10), piece(2, 20), piece(1, 11)];
        let after = [piece(3, 30), piece(2, 20), piece(3, 31)];
        before.iter().chain([&after[0], &after[2]]).for_each(|p| ledger.hold(p.epoch, p.record_size()));
        ledger.add(25, location(2), before.into(), 1);
        ledger.hold(3, location(3).size as usize);
        let needs = ledger.relocate(25, location(3), after.into()).unwrap();
        assert_eq!((needs.message, &needs.pieces[..]), (Some(location(2)), &[before[0], before[2]][..]));
        ledger.release(needs);
        let needed: Vec<u32> = ledger.segments.values().map(|segment| segment.needed).collect();
        assert_eq!(needed, [0, 1, 3]);
    }

    /// A message of 1 GiB in the smallest pieces. Compared each with each they would hold the shard for seconds.
    #[test]
    fn a_message_of_very_many_pieces_is_moved_without_comparing_each_with_each() {
        let mut ledger = ledger(2);
        let piece = |epoch, n| PieceRef { epoch, sequence: epoch * 10 + n, offset: 8192, size: 16 << 10 };
        let pieces = |epoch| (0..1 << 20).map(|n| piece(epoch, n)).collect::<Box<[_]>>();
        for epoch in [1, 2] {
            pieces(epoch).iter().for_each(|p| ledger.hold(epoch, p.record_size()));
        }
        ledger.add(19, location(1), pieces(1), 1);
        ledger.hold(2, location(2).size as usize);
        let needs = ledger.relocate(19, location(2), pieces(2)).unwrap();
        assert_eq!(needs.pieces.len(), 1 << 20);
    }

    #[test]
    fn a_wait_beyond_what_the_clock_can_name_is_a_long_one() {
        let now = Instant::now();
        let mut ledger = ledger(1);
        ledger.add(10, location(1), [].into(), 1);
        ledger.make_durable(10);
        ledger.hand_off(10);
        assert!(ledger.handle_outcome(10, &[outcome(0, false, u64::MAX)], (now, 1000)).is_none());
        assert!(ledger.next_due().is_some_and(|due| due > now));
    }

    #[test]
    fn partial_outcomes_leave_the_rest_and_its_time() {
        let mut ledger = ledger(1);
        let now = Instant::now();
        ledger.add(1, location(1), [].into(), 3);
        ledger.make_durable(1);
        assert_eq!(ledger.first_of_backlog(), Some(1));
        ledger.hand_off(1);
        assert_eq!(ledger.first_of_backlog(), None);
        let outcomes = [outcome(0, true, 0), outcome(1, false, 1060), outcome(2, false, 1030)];
        assert!(ledger.handle_outcome(1, &outcomes, (now, 1000)).is_none());
        let wait = ledger.next_due().unwrap() - now;
        assert_eq!(wait.as_millis().div_ceil(100), 300, "to the millisecond: {wait:?}");
        ledger.handle_due(now + Duration::from_secs(29));
        assert_eq!(ledger.first_of_backlog(), None);
        ledger.handle_due(now + Duration::from_secs(30));
        assert_eq!(ledger.first_of_backlog(), Some(1));
        let left = ledger.entry(1).unwrap().outstanding().unwrap();
        assert_eq!(left.iter().map(|o| (o.index, o.attempts)).collect::<Vec<_>>(), [(1, 1), (2, 1)]);
        ledger.hand_off(1);
        assert!(ledger.handle_outcome(1, &[outcome(1, true, 0), outcome(2, true, 0)], (now, 1000)).is_some());
        assert_eq!(ledger.depth(), 0);
    }
}
