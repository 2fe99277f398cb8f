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
//! Knows nothing of octets, buffers or syncs.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use super::format::{PieceRef, RecipientOutcome};
use super::io::Slot;

/// Free segments kept for reuse; more are removed, so that a burst does not hold its disk space for ever. Four carry a
/// shard at full speed over the time that deliveries of the oldest segment take.
const FREE_SEGMENTS_MAX: usize = 4;

/// Where a record is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Location {
    /// The segment.
    pub epoch: u64,
    /// The record's offset in it.
    pub offset: u32,
    /// The record's size with its header, octets.
    pub size: u32,
}

/// A recipient that still needs an attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outstanding {
    /// Its place in the envelope's forward-paths.
    pub index: u32,
    /// Attempts made.
    pub attempts: u32,
}

/// A message that is not done.
#[derive(Debug)]
pub struct Entry {
    /// Its Message record.
    pub location: Location,
    /// Its Piece records.
    pub pieces: Box<[PieceRef]>,
    /// How many forward-paths its envelope has.
    pub recipient_count: u32,
    /// Who is left; `None`: everybody, and no attempt was made.
    pub outstanding: Option<Box<[Outstanding]>>,
    state: State,
}

/// Where a message stands on its way through the ledger.
///
/// ```text
///   append ──► Appended ──durable──► Backlog ──try_send──► HandedOff ──all done──► (gone)
///                  │                    ▲                      │
///               poisoned                │due                   │deferred
///                  ▼                    │                      │
///               (gone)               Deferred ◄────────────────┘
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Appended,
    Backlog,
    HandedOff,
    Deferred(Instant),
}

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
    phase: Phase,
    needed: u32,
}

/// What is not done, and what is needed for it.
#[derive(Debug, Default)]
pub struct Ledger {
    segments: BTreeMap<u64, Segment>,
    entries: BTreeMap<u64, Entry>,
    backlog: BTreeSet<u64>,
    deferred: BTreeSet<(Instant, u64)>,
    /// Oldest first; false: not to be used again.
    free: VecDeque<(Slot, bool)>,
}

impl Ledger {
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

    /// A segment begins its life.
    pub fn add_segment(&mut self, epoch: u64, slot: Slot, life: u64) {
        let segment = Segment { slot, life, phase: Phase::Open, needed: 0 };
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

    /// A piece of a message being received needs its segment.
    pub fn hold(&mut self, epoch: u64) {
        self.segments.get_mut(&epoch).expect("records are appended to known segments").needed += 1;
    }

    /// These records are not needed any more.
    pub fn release(&mut self, needs: Needs) {
        for epoch in needs.pieces.iter().map(|piece| piece.epoch).chain(needs.message) {
            let segment = self.segments.get_mut(&epoch).expect("a held segment stays");
            segment.needed = segment.needed.checked_sub(1).expect("each hold is released once");
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
            self.free.push_back((segment.slot, segment.phase == Phase::Sealed));
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
        self.hold(location.epoch);
        let entry = Entry { location, pieces, recipient_count, outstanding: None, state: State::Appended };
        assert!(self.entries.insert(sequence, entry).is_none(), "a sequence is used once");
    }

    /// A message found by recovery: durable, with who is left. It is due at `due`, or at once.
    pub fn adopt(&mut self, sequence: u64, recovered: RecoveredEntry, due: Option<Instant>) {
        let RecoveredEntry { location, pieces, recipient_count, outstanding } = recovered;
        pieces.iter().for_each(|piece| self.hold(piece.epoch));
        self.add(sequence, location, pieces, recipient_count);
        let entry = self.entries.get_mut(&sequence).expect("it was just added");
        entry.outstanding = outstanding;
        match due {
            Some(due) => {
                entry.state = State::Deferred(due);
                self.deferred.insert((due, sequence));
            }
            None => {
                entry.state = State::Backlog;
                self.backlog.insert(sequence);
            }
        }
    }

    /// The message, if it is not done.
    pub fn entry(&self, sequence: u64) -> Option<&Entry> {
        self.entries.get(&sequence)
    }

    /// The message has become durable: it may be delivered.
    pub fn make_durable(&mut self, sequence: u64) {
        let entry = self.entries.get_mut(&sequence).expect("an appended message stays until it is durable");
        assert!(entry.state == State::Appended);
        entry.state = State::Backlog;
        self.backlog.insert(sequence);
    }

    /// The message will never be durable, or it is done: it is forgotten. What it needed stays until it is released.
    pub fn remove(&mut self, sequence: u64) -> Needs {
        let entry = self.entries.remove(&sequence).expect("only known messages are removed");
        match entry.state {
            State::Backlog => drop(self.backlog.remove(&sequence)),
            State::Deferred(due) => drop(self.deferred.remove(&(due, sequence))),
            State::Appended | State::HandedOff => {}
        }
        Needs { message: Some(entry.location.epoch), pieces: entry.pieces }
    }

    /// The oldest message of the backlog.
    pub fn first_of_backlog(&self) -> Option<u64> {
        self.backlog.first().copied()
    }

    /// The message is in the delivery channel.
    pub fn hand_off(&mut self, sequence: u64) {
        let entry = self.entries.get_mut(&sequence).expect("only known messages are handed off");
        assert!(entry.state == State::Backlog && self.backlog.remove(&sequence));
        entry.state = State::HandedOff;
    }

    /// The message is not in the delivery channel after all.
    pub fn take_back(&mut self, sequence: u64) {
        let entry = self.entries.get_mut(&sequence).expect("only known messages are taken back");
        assert!(entry.state == State::HandedOff && self.backlog.insert(sequence));
        entry.state = State::Backlog;
    }

    /// Messages whose time has come move to the backlog.
    pub fn handle_due(&mut self, now: Instant) {
        while let Some((due, sequence)) = self.deferred.first().copied().filter(|(due, _)| *due <= now) {
            self.deferred.remove(&(due, sequence));
            self.entries.get_mut(&sequence).expect("a deferred message is known").state = State::Backlog;
            self.backlog.insert(sequence);
        }
    }

    /// When the next deferred message is due.
    pub fn next_due(&self) -> Option<Instant> {
        self.deferred.first().map(|(due, _)| *due)
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
        let entry = self.entries.get_mut(&sequence)?;
        assert!(entry.state == State::HandedOff, "outcomes come of attempts");
        let left = apply_outcomes(entry.outstanding.take(), entry.recipient_count, outcomes);
        if left.is_empty() {
            return Some(self.remove(sequence));
        }
        let next_attempt = outcomes.iter().filter(|o| !o.is_done).map(|o| o.next_attempt).min().unwrap_or(0);
        let due = now + Duration::from_secs(next_attempt.saturating_sub(unix_now));
        entry.outstanding = Some(left);
        entry.state = State::Deferred(due);
        self.deferred.insert((due, sequence));
        None
    }
}

/// Records that somebody needs.
#[derive(Debug, Default)]
pub struct Needs {
    /// The segment of a Message record.
    pub message: Option<u64>,
    /// Piece records.
    pub pieces: Box<[PieceRef]>,
}

/// A message as recovery found it.
#[derive(Debug)]
pub struct RecoveredEntry {
    /// Its Message record.
    pub location: Location,
    /// Its Piece records.
    pub pieces: Box<[PieceRef]>,
    /// How many forward-paths its envelope has.
    pub recipient_count: u32,
    /// Who is left; `None`: everybody, and no attempt was made.
    pub outstanding: Option<Box<[Outstanding]>>,
}

/// Who is left after `outcomes`, given who was left before them.
pub fn apply_outcomes(
    outstanding: Option<Box<[Outstanding]>>,
    recipient_count: u32,
    outcomes: &[RecipientOutcome],
) -> Box<[Outstanding]> {
    let everybody = || (0..recipient_count).map(|index| Outstanding { index, attempts: 0 }).collect();
    let before = outstanding.unwrap_or_else(everybody);
    let after = before.into_iter().filter_map(|recipient| {
        match outcomes.iter().find(|outcome| outcome.index == recipient.index) {
            Some(outcome) if outcome.is_done => None,
            Some(outcome) => Some(Outstanding { attempts: outcome.attempts, ..recipient }),
            None => Some(recipient),
        }
    });
    after.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn location(epoch: u64) -> Location {
        Location { epoch, offset: 8192, size: 100 }
    }

    fn ledger(segments: u64) -> Ledger {
        let mut ledger = Ledger::default();
        (1..=segments).for_each(|epoch| ledger.add_segment(epoch, Slot(epoch as u32), epoch));
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
        ledger.hold(1);
        ledger.seal(1);
        assert!(!ledger.has_free(), "a piece is being received");
        let piece = PieceRef { epoch: 1, sequence: 1, offset: 8192, size: 10 };
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
    fn partial_outcomes_leave_the_rest_and_its_time() {
        let now = Instant::now();
        let mut ledger = ledger(1);
        ledger.add(1, location(1), [].into(), 3);
        ledger.make_durable(1);
        assert_eq!(ledger.first_of_backlog(), Some(1));
        ledger.hand_off(1);
        assert_eq!(ledger.first_of_backlog(), None);
        let outcomes = [outcome(0, true, 0), outcome(1, false, 1060), outcome(2, false, 1030)];
        assert!(ledger.handle_outcome(1, &outcomes, (now, 1000)).is_none());
        assert_eq!(ledger.next_due(), Some(now + Duration::from_secs(30)));
        ledger.handle_due(now + Duration::from_secs(29));
        assert_eq!(ledger.first_of_backlog(), None);
        ledger.handle_due(now + Duration::from_secs(30));
        assert_eq!(ledger.first_of_backlog(), Some(1));
        let left = ledger.entry(1).unwrap().outstanding.clone().unwrap();
        assert_eq!(left.iter().map(|o| (o.index, o.attempts)).collect::<Vec<_>>(), [(1, 1), (2, 1)]);
        ledger.hand_off(1);
        assert!(ledger.handle_outcome(1, &[outcome(1, true, 0), outcome(2, true, 0)], (now, 1000)).is_some());
        assert_eq!(ledger.depth(), 0);
    }
}
