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
//! What waits, waits in its lane: what one target does not take is in nobody's way. What is held waits in none.
//!
//! Knows nothing of octets, buffers or syncs.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::entry::{Entry, Lane, Location, Part, State, Tick, Wanted};
use super::format::{Order, PieceRef, RecipientOutcome, TargetOutcomes};
use super::io::Slot;
use super::reasons::Reasons;
use super::sequence_map::SequenceMap;

/// Free segments kept for reuse; more are removed, so that a burst does not hold its disk space for ever. Four carry a
/// shard at full speed over the time that deliveries of the oldest segment take.
const FREE_SEGMENTS_MAX: usize = 4;
/// Segments with records that a log may have beyond twice what is needed of them, before messages are carried forward: the
/// one being written, the one before it, and some in which little is to be carried because they are just being delivered.
const SPARSE_SEGMENTS_MAX: u64 = 4;
/// Messages looked at for the oldest of all lanes at a time: some ten microseconds.
pub const LOOK_COUNT_MAX: usize = 2000;

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

/// What waits in a lane.
#[derive(Debug, Default)]
struct Queue {
    /// For nothing but room in a delivery channel.
    backlog: BTreeSet<u64>,
    /// For its time.
    deferred: BTreeSet<(Tick, u64)>,
    /// It was deferred, but need not wait any longer. The soonest first.
    hastened: BTreeSet<(Tick, u64)>,
    /// No message with a smaller number waits in this lane.
    passed: u64,
}

/// How many messages of a lane wait.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Waiting {
    /// For room in its delivery channel.
    pub backlog: usize,
    /// For the time of their next attempt.
    pub deferred: usize,
}

impl Queue {
    fn is_empty(&self) -> bool {
        self.backlog.is_empty() && self.deferred.is_empty() && self.hastened.is_empty()
    }

    /// The message is about to wait here. What nobody has waited in since is not gone through again: it may be millions of others'.
    fn reach_back(&mut self, sequence: u64) {
        self.passed = if self.is_empty() { sequence } else { self.passed.min(sequence) };
    }

    fn insert(&mut self, sequence: u64, state: State) {
        self.reach_back(sequence);
        match state {
            State::Backlog => drop(self.backlog.insert(sequence)),
            State::Deferred(due) => drop(self.deferred.insert((due, sequence))),
            State::Appended | State::HandedOff | State::Done => {}
        }
    }

    fn remove(&mut self, sequence: u64, state: State) {
        match state {
            State::Backlog => drop(self.backlog.remove(&sequence)),
            State::Deferred(due) => {
                let place = (due, sequence);
                let _ = self.deferred.remove(&place) || self.hastened.remove(&place);
            }
            State::Appended | State::HandedOff | State::Done => {}
        }
    }

    /// What has waited for its time, and has waited long enough, also if it need not have.
    fn pop_due(&mut self, now: Tick) -> Option<u64> {
        let is_due = |waiting: &BTreeSet<(Tick, u64)>| waiting.first().is_some_and(|(due, _)| *due <= now);
        let due = match is_due(&self.deferred) {
            true => self.deferred.pop_first(),
            false if is_due(&self.hastened) => self.hastened.pop_first(),
            false => None,
        };
        due.map(|(_, sequence)| sequence)
    }

    /// What is to be tried first.
    fn first(&self) -> Option<u64> {
        self.backlog.first().copied().or_else(|| self.hastened.first().map(|(_, sequence)| *sequence))
    }
}

/// What is not done, and what is needed for it.
#[derive(Debug)]
pub struct Ledger {
    segment_size: u32,
    segments: BTreeMap<u64, Segment>,
    entries: SequenceMap<Entry>,
    /// By lane.
    queues: Vec<Queue>,
    /// The names of the lanes.
    lanes: Vec<Arc<str>>,
    reasons: Reasons,
    /// Counts up whenever it is to be decided anew who gets what.
    routing: u32,
    /// Entries of which it was not decided by this routing who gets them, and that are not held.
    unrouted_count: usize,
    /// Entries that are held.
    held_count: usize,
    /// Octets of the records that are needed.
    live_size: u64,
    /// Oldest first; false: not to be used again.
    free: VecDeque<(Slot, bool)>,
    opened: (Instant, u64),
}

impl Ledger {
    /// Of these messages, each durable, in lanes of these names. Its segments have `segment_size` octets; it is `now`, and the wall clock says
    /// `unix_now` seconds. The segments of the messages are to be added, and then [`Ledger::adopt`] is to be called.
    pub fn new(
        segment_size: u32,
        entries: SequenceMap<Entry>,
        lanes: Vec<Arc<str>>,
        reasons: Reasons,
        (now, unix_now): (Instant, u64),
    ) -> Self {
        Ledger {
            segment_size,
            segments: BTreeMap::new(),
            entries,
            queues: lanes.iter().map(|_| Queue::default()).collect(),
            lanes,
            reasons,
            routing: 1,
            unrouted_count: 0,
            held_count: 0,
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

    /// How many of them are held.
    pub fn held_count(&self) -> usize {
        self.held_count
    }

    /// Whether there are messages of which it was not decided yet who gets them, and that are not held.
    pub fn has_unrouted(&self) -> bool {
        self.unrouted_count > 0
    }

    /// Whether it was decided who gets the message, as things are now.
    pub fn is_routed(&self, sequence: u64) -> bool {
        self.entries.get(sequence).is_some_and(|entry| self.has_routed(entry))
    }

    fn has_routed(&self, entry: &Entry) -> bool {
        entry.routing == self.routing
    }

    /// Who gets what is to be decided anew, message by message as each has its turn.
    pub fn begin_routing(&mut self) {
        self.routing = self.routing.checked_add(1).expect("nobody changes routes so often");
        self.unrouted_count = self.entries.len() - self.held_count;
    }

    /// How many lanes there are.
    pub fn lanes_count(&self) -> usize {
        self.lanes.len()
    }

    /// The lane of this name; a new one, if there is none.
    pub fn lane(&mut self, name: &str) -> Lane {
        let at = self.lanes.iter().position(|known| **known == *name).unwrap_or_else(|| {
            self.lanes.push(name.into());
            self.queues.push(Queue::default());
            self.lanes.len() - 1
        });
        Lane(u16::try_from(at).expect("targets are few"))
    }

    /// The name of a lane.
    pub fn name(&self, lane: Lane) -> &Arc<str> {
        &self.lanes[usize::from(lane.0)]
    }

    fn queue(&mut self, lane: Lane) -> &mut Queue {
        &mut self.queues[usize::from(lane.0)]
    }

    /// Durable messages of this lane that wait for nothing but room in its delivery channel.
    pub fn backlog_depth(&self, Lane(lane): Lane) -> usize {
        let queue = &self.queues[usize::from(lane)];
        queue.backlog.len() + queue.hastened.len()
    }

    /// What waits in this lane: for room, for its time, and of the latter what need not wait any longer.
    pub fn waiting_in(&self, Lane(lane): Lane) -> Waiting {
        let Queue { backlog, deferred, hastened, .. } = &self.queues[usize::from(lane)];
        Waiting { backlog: backlog.len(), deferred: deferred.len() + hastened.len() }
    }

    /// The number of the oldest message that is not done.
    pub fn oldest(&self) -> Option<u64> {
        self.entries.first()
    }

    /// The number of the oldest message that waits in this lane, beside those that deliveries have. Where that is not known without looking at
    /// more than `looks` messages, one below it, and closer to it the next time. What was looked at is taken from `looks`.
    pub fn oldest_in(&mut self, lane: Lane, looks: &mut usize) -> Option<u64> {
        let queue = &self.queues[usize::from(lane.0)];
        if queue.is_empty() {
            return None;
        }
        let waits = |entry: &Entry| entry.part(lane).is_some() && !entry.is_held();
        let waiting = queue.deferred.len() + queue.hastened.len();
        let mut oldest = queue.passed;
        if self.entries.get(oldest).is_some_and(waits) {
            return Some(oldest);
        }
        if waiting <= *looks {
            let deferred = queue.deferred.iter().chain(&queue.hastened).map(|(_, sequence)| *sequence);
            oldest = queue.backlog.first().copied().into_iter().chain(deferred).min()?;
            *looks -= waiting;
        } else {
            for (sequence, entry) in self.entries.range(oldest, u64::MAX).take(*looks) {
                *looks -= 1;
                oldest = sequence;
                if waits(entry) {
                    break;
                }
            }
        }
        self.queue(lane).passed = oldest;
        Some(oldest)
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
        self.unrouted_count += 1;
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
            let is_held = entry.is_held();
            self.unrouted_count += usize::from(!is_held);
            self.held_count += usize::from(is_held);
            entry.pieces.iter().for_each(|piece| self.hold(piece.epoch, piece.record_size()));
            self.hold(entry.location.epoch, entry.location.size as usize);
            self.note_guest(sequence, entry.location, &entry.pieces);
            for part in entry.parts_mut() {
                if matches!(part.state, State::Deferred(due) if due.0 <= now) {
                    part.state = State::Backlog;
                }
                if !is_held {
                    self.queues[usize::from(part.lane.0)].insert(sequence, part.state);
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

    /// Files that hold nothing and are kept to be used again, or to be removed.
    pub fn free_count(&self) -> usize {
        self.free.len()
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
            !entry.is_appended() && (entry.location.epoch == epoch || has_piece())
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
        let is_read = entry.is_handed_off();
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

    /// What became of the message's recipients so far, target by target; empty: no attempt was made.
    pub fn progress(&self, sequence: u64) -> Vec<TargetOutcomes> {
        let Some(entry) = self.entries.get(sequence) else { return Vec::new() };
        let hold = entry.hold().map(|hold| TargetOutcomes {
            order: Some(Box::new((**hold).clone())),
            ..TargetOutcomes::default()
        });
        if entry.parts().iter().all(|part| part.outstanding().is_none()) {
            return hold.into_iter().collect();
        }
        let outcome = |index, is_done, attempts, next_attempt, reason: Option<&str>| RecipientOutcome {
            index,
            is_done,
            is_given_up: false,
            attempts,
            next_attempt,
            reason: reason.unwrap_or_default().into(),
        };
        let mut is_left = vec![false; entry.recipient_count as usize];
        let mut progress = Vec::new();
        // Who was delivered to here and is left elsewhere comes first: who is not named behind it is undecided.
        let (done, pending): (Vec<_>, Vec<_>) = entry.parts().iter().partition(|part| part.is_done());
        for part in done.into_iter().chain(pending) {
            let Some(left) = part.outstanding() else {
                is_left.fill(true);
                continue;
            };
            let next_attempt = part.due().unwrap_or(0) / 1000;
            let (mut recipients, mut elsewhere) = (Vec::new(), Vec::new());
            for left in left {
                is_left[left.index as usize] |= !part.is_done();
                if part.is_done() || left.attempts > 0 {
                    let reason = left.reason.as_deref();
                    let recipient = outcome(left.index, part.is_done(), left.attempts, next_attempt, reason);
                    match part.is_done() || entry.is_left_elsewhere(part.lane, left.index) {
                        true => elsewhere.push(recipient),
                        false => recipients.push(recipient),
                    }
                }
            }
            let target: Box<str> = (**self.name(part.lane)).into();
            let here_only = true;
            let target_here = target.clone();
            progress.push(TargetOutcomes {
                target: target_here,
                here_only,
                recipients: elsewhere,
                order: None,
            });
            progress.push(TargetOutcomes { target, here_only: false, recipients, order: None });
        }
        let done = (0..).zip(is_left).filter(|(_, is_left)| !is_left);
        let recipients: Vec<_> = done.map(|(index, _)| outcome(index, true, 0, 0, None)).collect();
        progress.insert(0, TargetOutcomes { recipients, ..TargetOutcomes::default() });
        progress.retain(|outcomes| !outcomes.recipients.is_empty());
        progress.extend(hold);
        progress
    }

    /// The message, if it is not done.
    pub fn entry(&self, sequence: u64) -> Option<&Entry> {
        self.entries.get(sequence)
    }

    /// Messages from this number on, in order.
    pub fn entries_from(&self, sequence: u64) -> impl Iterator<Item = (u64, &Entry)> {
        self.entries.range(sequence, u64::MAX)
    }

    /// It waits for nothing but room in a delivery channel, though its time has not come.
    pub fn is_hastened(&self, sequence: u64, part: &Part) -> bool {
        let State::Deferred(due) = part.state else { return false };
        self.queues[usize::from(part.lane.0)].hastened.contains(&(due, sequence))
    }

    /// How long after `now` it is due, if it waits for its time.
    pub fn wait_of(&self, part: &Part, now: Instant) -> Option<Duration> {
        let (Tick(now), State::Deferred(Tick(due))) = (self.tick(now), part.state) else { return None };
        Some(Duration::from_millis(due.saturating_sub(now)))
    }

    /// The lane of this name, if there is one.
    pub fn known_lane(&self, name: &str) -> Option<Lane> {
        let at = self.lanes.iter().position(|known| **known == *name)?;
        u16::try_from(at).ok().map(Lane)
    }

    /// A delivery has the message now, in some lane.
    pub fn is_handed_off(&self, sequence: u64) -> bool {
        self.entries.get(sequence).is_some_and(Entry::is_handed_off)
    }

    /// A delivery has the message now, in this lane.
    pub fn is_handed_off_in(&self, sequence: u64, lane: Lane) -> bool {
        let part = self.entries.get(sequence).and_then(|entry| entry.part(lane));
        part.is_some_and(|part| part.state == State::HandedOff)
    }

    /// The message is durable, due, not held, and not handed off in this lane.
    pub fn is_in_backlog(&self, sequence: u64, lane: Lane) -> bool {
        let entry = self.entries.get(sequence).filter(|entry| !entry.is_held());
        let part = entry.and_then(|entry| entry.part(lane));
        part.is_some_and(|part| part.state == State::Backlog)
    }

    /// The message has become durable: it may be delivered.
    pub fn make_durable(&mut self, sequence: u64) {
        let entry = self.entries.get_mut(sequence).expect("an appended message stays until it is durable");
        let [part] = entry.parts_mut() else { unreachable!("nothing is decided before it is durable") };
        assert!(part.state == State::Appended);
        part.state = State::Backlog;
        let lane = part.lane;
        self.queue(lane).insert(sequence, State::Backlog);
    }

    /// The message will never be durable, or it is done: it is forgotten. What it needed stays until it is released.
    pub fn remove(&mut self, sequence: u64) -> Needs {
        let entry = self.entries.remove(sequence).expect("only known messages are removed");
        self.forget(&entry);
        for part in entry.parts() {
            self.queue(part.lane).remove(sequence, part.state);
        }
        Needs { message: Some(entry.location), pieces: entry.pieces }
    }

    /// The entry does not count any more.
    fn forget(&mut self, entry: &Entry) {
        self.unrouted_count -= usize::from(!self.has_routed(entry) && !entry.is_held());
        self.held_count -= usize::from(entry.is_held());
    }

    /// A message that deliveries may still have is forgotten. What it needed stays until it is released, and its files are not
    /// used again: they may be read.
    pub fn give_up(&mut self, sequence: u64) -> Needs {
        let is_read = self.is_handed_off(sequence);
        let needs = self.remove(sequence);
        for epoch in needs.epochs().filter(|_| is_read) {
            self.segments.get_mut(&epoch).expect("a held segment stays").is_read = true;
        }
        needs
    }

    /// No delivery is to have the message; one that has it keeps it. False: it is held already.
    pub fn hold_back(&mut self, sequence: u64, order: &Arc<Order>) -> bool {
        let entry = self.entries.get_mut(sequence).expect("only known messages are held");
        if entry.is_held() {
            return false;
        }
        entry.hold = Some(order.clone());
        self.unrouted_count -= usize::from(entry.routing != self.routing);
        self.held_count += 1;
        for part in entry.parts() {
            self.queues[usize::from(part.lane.0)].remove(sequence, part.state);
        }
        true
    }

    /// Deliveries may have the message again. False: it is not held.
    pub fn let_go(&mut self, sequence: u64) -> bool {
        let entry = self.entries.get_mut(sequence).expect("only known messages are held");
        if entry.hold.take().is_none() {
            return false;
        }
        self.unrouted_count += usize::from(entry.routing != self.routing);
        self.held_count -= 1;
        for part in entry.parts() {
            self.queues[usize::from(part.lane.0)].insert(sequence, part.state);
        }
        true
    }

    /// What of the message was deferred need not wait any longer: in this lane, or in all. False: nothing waits for its time.
    pub fn hasten_message(&mut self, sequence: u64, lane: Option<Lane>) -> bool {
        let entry = self.entries.get(sequence).expect("only known messages are hastened");
        let mut is_hastened = false;
        for part in entry.parts().iter().filter(|part| lane.is_none_or(|lane| part.lane == lane)) {
            let queue = &mut self.queues[usize::from(part.lane.0)];
            if let State::Deferred(due) = part.state
                && queue.deferred.remove(&(due, sequence))
            {
                queue.hastened.insert((due, sequence));
                is_hastened = true;
            }
        }
        is_hastened
    }

    /// It is decided who gets the message. `Some`: nobody is left, and this is what it needed.
    pub fn route(&mut self, sequence: u64, wanted: &Wanted) -> Option<Needs> {
        let entry = self.entries.get_mut(sequence)?;
        for part in entry.parts() {
            self.queues[usize::from(part.lane.0)].remove(sequence, part.state);
        }
        let is_held = entry.is_held();
        self.unrouted_count -= usize::from(entry.routing != self.routing && !is_held);
        if !entry.route(wanted, self.routing) {
            return Some(self.remove_gone(sequence));
        }
        for part in entry.parts().iter().filter(|_| !is_held) {
            self.queues[usize::from(part.lane.0)].insert(sequence, part.state);
        }
        None
    }

    /// The message of the lane's backlog that is to be tried first: the oldest.
    pub fn first_of_backlog(&self, Lane(lane): Lane) -> Option<u64> {
        self.queues[usize::from(lane)].first()
    }

    /// The message of the lane's backlog whose time has come first, not one that was hastened.
    pub fn first_due(&self, Lane(lane): Lane) -> Option<u64> {
        self.queues[usize::from(lane)].backlog.first().copied()
    }

    /// The message is in a delivery channel.
    pub fn hand_off(&mut self, sequence: u64, lane: Lane) {
        let entry = self.entries.get_mut(sequence).expect("only known messages are handed off");
        let part = entry.part_mut(lane).expect("only what is left is handed off");
        let queue = &mut self.queues[usize::from(lane.0)];
        let is_waiting = match part.state {
            State::Backlog => queue.backlog.remove(&sequence),
            State::Deferred(due) => queue.hastened.remove(&(due, sequence)),
            State::Appended | State::HandedOff | State::Done => false,
        };
        assert!(is_waiting, "only what waits for nothing is handed off");
        part.state = State::HandedOff;
    }

    /// The message is not in a delivery channel after all. It may have been dropped, or be held, since it was handed off.
    pub fn take_back(&mut self, sequence: u64, lane: Lane) {
        let Some(entry) = self.entries.get_mut(sequence) else { return };
        let is_held = entry.is_held();
        let part = entry.part_mut(lane).expect("only what is left is taken back");
        assert!(part.state == State::HandedOff);
        part.state = State::Backlog;
        if !is_held {
            let queue = self.queue(lane);
            queue.reach_back(sequence);
            assert!(queue.backlog.insert(sequence));
        }
    }

    /// The message, which is to be tried in the lane, waits for its time there again.
    pub fn put_off(&mut self, sequence: u64, lane: Lane, until: Instant) {
        let until = self.tick(until);
        let Some(part) = self.entries.get_mut(sequence).and_then(|entry| entry.part_mut(lane)) else {
            return;
        };
        let queue = &mut self.queues[usize::from(lane.0)];
        // What is held is in none of them.
        let is_offered = match part.state {
            State::Backlog => queue.backlog.remove(&sequence),
            State::Deferred(due) => queue.hastened.remove(&(due, sequence)),
            State::Appended | State::HandedOff | State::Done => false,
        };
        if is_offered {
            part.state = State::Deferred(until);
            queue.deferred.insert((until, sequence));
        }
    }

    /// Messages whose time has come move to the backlogs.
    pub fn handle_due(&mut self, now: Instant) {
        let now = self.tick(now);
        for (lane, queue) in self.queues.iter_mut().enumerate() {
            while let Some(sequence) = queue.pop_due(now) {
                let entry = self.entries.get_mut(sequence).expect("a deferred message is known");
                let part = entry.part_mut(Lane(lane as u16)).expect("what waits is left");
                part.state = State::Backlog;
                queue.backlog.insert(sequence);
            }
        }
    }

    /// What was deferred in the lane need not wait any longer. Costs the same however much that is; where something was hastened before
    /// and still waits, as much as the smaller of the two.
    pub fn hasten(&mut self, lane: Lane) {
        let queue = self.queue(lane);
        let mut smaller = std::mem::take(&mut queue.deferred);
        if smaller.len() > queue.hastened.len() {
            std::mem::swap(&mut smaller, &mut queue.hastened);
        }
        queue.hastened.extend(smaller);
    }

    /// The same for the one whose time is soonest.
    pub fn hasten_one(&mut self, lane: Lane) {
        let queue = self.queue(lane);
        let soonest = queue.deferred.pop_first();
        queue.hastened.extend(soonest);
    }

    /// When the next deferred message is due.
    pub fn next_due(&self) -> Option<Instant> {
        let soonest = self.queues.iter().filter_map(|queue| queue.deferred.first()).min();
        soonest.map(|(due, _)| self.instant(*due))
    }

    /// What an attempt in a lane has brought for some of a message's recipients. If the message is done, nobody is left: returns what
    /// it needed, to be released when the outcome is durable. Were a segment with a piece of it used again before, a crash
    /// would find a message without its piece and could not tell that it had been delivered.
    ///
    /// Who is left becomes due at the earliest of their next attempts; `unix_now` is the wall clock that these were
    /// computed with. `here_only`: outcomes of those who are left in other lanes, too.
    pub fn handle_outcome(
        &mut self,
        sequence: u64,
        lane: Lane,
        (here_only, outcomes): (&[RecipientOutcome], &[RecipientOutcome]),
        (now, unix_now): (Instant, u64),
    ) -> Option<Needs> {
        let Tick(tick) = self.tick(now);
        let entry = self.entries.get_mut(sequence)?;
        let is_held = entry.is_held();
        assert!(
            entry.part(lane).is_none_or(|part| part.state == State::HandedOff),
            "outcomes come of attempts"
        );
        if !here_only.is_empty() {
            entry.apply(lane, true, here_only, &mut self.reasons);
        }
        if !outcomes.is_empty() && !entry.apply(lane, false, outcomes, &mut self.reasons) {
            return Some(self.remove_gone(sequence));
        }
        if let Some(part) = entry.part_mut(lane) {
            // The wall clock may have been set since the log was opened: what counts is how long to wait.
            if let State::Deferred(Tick(due)) = part.state {
                let wait = due.saturating_sub(unix_now.saturating_mul(1000));
                part.state = State::Deferred(Tick(tick.saturating_add(wait)));
            }
            if !is_held {
                self.queues[usize::from(lane.0)].insert(sequence, part.state);
            }
        }
        None
    }

    /// The message, of whose parts none is left in any queue.
    fn remove_gone(&mut self, sequence: u64) -> Needs {
        let entry = self.entries.remove(sequence).expect("only known messages are removed");
        self.forget(&entry);
        Needs { message: Some(entry.location), pieces: entry.pieces }
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

    const HERE: Lane = Lane::UNROUTED;

    fn location(epoch: u64) -> Location {
        Location { epoch, offset: 8192, size: 100 }
    }

    fn ledger(segments: u64) -> Ledger {
        let now = (Instant::now(), 1000);
        let lanes = vec!["".into(), "a".into(), "b".into()];
        let mut ledger = Ledger::new(1 << 20, SequenceMap::default(), lanes, Reasons::default(), now);
        (1..=segments).for_each(|epoch| ledger.add_segment(epoch, Slot(epoch as u32), epoch, epoch * 10));
        ledger
    }

    fn outcome(index: u32, is_done: bool, next_attempt: u64) -> RecipientOutcome {
        RecipientOutcome { index, is_done, is_given_up: false, attempts: 1, next_attempt, reason: "".into() }
    }

    fn deliver(ledger: &mut Ledger, sequence: u64, now: Instant) -> bool {
        ledger.make_durable(sequence);
        ledger.hand_off(sequence, HERE);
        let needs = ledger.handle_outcome(sequence, HERE, (&[], &[outcome(0, true, 0)]), (now, 0));
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
        ledger.hand_off(10, HERE);
        assert!(
            ledger.handle_outcome(10, HERE, (&[], &[outcome(0, false, u64::MAX)]), (now, 1000)).is_none()
        );
        assert!(ledger.next_due().is_some_and(|due| due > now));
    }

    #[test]
    fn partial_outcomes_leave_the_rest_and_its_time() {
        let mut ledger = ledger(1);
        let now = Instant::now();
        ledger.add(1, location(1), [].into(), 3);
        ledger.make_durable(1);
        assert_eq!(ledger.first_of_backlog(HERE), Some(1));
        ledger.hand_off(1, HERE);
        assert_eq!(ledger.first_of_backlog(HERE), None);
        let outcomes = [outcome(0, true, 0), outcome(1, false, 1060), outcome(2, false, 1030)];
        assert!(ledger.handle_outcome(1, HERE, (&[], &outcomes), (now, 1000)).is_none());
        let wait = ledger.next_due().unwrap() - now;
        assert_eq!(wait.as_millis().div_ceil(100), 300, "to the millisecond: {wait:?}");
        ledger.handle_due(now + Duration::from_secs(29));
        assert_eq!(ledger.first_of_backlog(HERE), None);
        ledger.handle_due(now + Duration::from_secs(30));
        assert_eq!(ledger.first_of_backlog(HERE), Some(1));
        let left = ledger.entry(1).unwrap().outstanding();
        assert_eq!(left.iter().map(|(_, o)| (o.index, o.attempts)).collect::<Vec<_>>(), [(1, 1), (2, 1)]);
        ledger.hand_off(1, HERE);
        assert!(
            ledger
                .handle_outcome(1, HERE, (&[], &[outcome(1, true, 0), outcome(2, true, 0)]), (now, 1000))
                .is_some()
        );
        assert_eq!(ledger.depth(), 0);
    }

    #[test]
    fn the_oldest_of_a_lane_is_found_step_by_step_where_many_wait() {
        const MANY: u64 = 2 * LOOK_COUNT_MAX as u64 + 500;
        let (mut ledger, now) = (ledger(1), Instant::now());
        let (a, b) = (Lane(1), Lane(2));
        for sequence in 9..10 + 2 * MANY {
            let lane = if (10..10 + MANY).contains(&sequence) { a } else { b };
            ledger.add(sequence, location(1), Box::default(), 1);
            ledger.make_durable(sequence);
            assert!(ledger.route(sequence, &Wanted::All(lane)).is_none());
            if lane == b {
                ledger.hand_off(sequence, b);
                // Whoever came first is tried again last.
                let outcomes = [outcome(0, false, 100_000 - sequence)];
                assert!(ledger.handle_outcome(sequence, b, (&[], &outcomes), (now, 1000)).is_none());
            }
        }
        fn oldest_in(ledger: &mut Ledger, lane: Lane) -> Option<u64> {
            let mut looks = LOOK_COUNT_MAX;
            ledger.oldest_in(lane, &mut looks)
        }
        let done = (&[][..], &[outcome(0, true, 0)][..]);
        ledger.hasten_message(9, None);
        ledger.hand_off(9, b);
        assert!(ledger.handle_outcome(9, b, done, (now, 1000)).is_some());
        assert_eq!(ledger.waiting_in(a), Waiting { backlog: MANY as usize, deferred: 0 });
        assert_eq!(ledger.waiting_in(b), Waiting { backlog: 0, deferred: MANY as usize });
        assert_eq!((ledger.oldest(), oldest_in(&mut ledger, a)), (Some(10), Some(10)));
        let looks: Vec<u64> = (0..5).map(|_| oldest_in(&mut ledger, b).unwrap()).collect();
        assert!(looks.is_sorted() && looks[0] < 10 + MANY, "{looks:?}");
        assert_eq!(looks[2..], [10 + MANY; 3]);
        // It is done, and the next one is the oldest.
        ledger.hasten(b);
        ledger.hand_off(10 + MANY, b);
        assert!(ledger.handle_outcome(10 + MANY, b, done, (now, 1000)).is_some());
        assert_eq!(oldest_in(&mut ledger, b), Some(11 + MANY));
    }

    #[test]
    fn a_lane_that_was_empty_is_as_old_as_what_comes_to_wait_in_it() {
        let (mut ledger, now) = (ledger(1), Instant::now());
        let (a, b) = (Lane(1), Lane(2));
        const MANY: u64 = 100;
        let wait_in = |ledger: &mut Ledger, sequence: u64, lane: Lane| {
            ledger.add(sequence, location(1), Box::default(), 1);
            ledger.make_durable(sequence);
            assert!(ledger.route(sequence, &Wanted::All(lane)).is_none());
            ledger.hand_off(sequence, lane);
            let outcomes = [outcome(0, false, 100_000)];
            assert!(ledger.handle_outcome(sequence, lane, (&[], &outcomes), (now, 1000)).is_none());
        };
        (1..MANY).for_each(|sequence| wait_in(&mut ledger, sequence, a));
        let mut none = 0;
        assert_eq!(ledger.oldest_in(b, &mut none), None);
        (MANY..MANY + 10).for_each(|sequence| wait_in(&mut ledger, sequence, b));
        // Without a look at any other's.
        assert_eq!(ledger.oldest_in(b, &mut none), Some(MANY));
        // What comes back from a delivery may be older than all that waits.
        ledger.hasten_message(MANY, None);
        ledger.hand_off(MANY, b);
        assert_eq!(ledger.oldest_in(b, &mut 1000), Some(MANY));
        (MANY + 1..MANY + 10).for_each(|sequence| drop(ledger.remove(sequence)));
        assert_eq!(ledger.oldest_in(b, &mut 1000), None);
        wait_in(&mut ledger, MANY + 10, b);
        ledger.take_back(MANY, b);
        assert_eq!(ledger.oldest_in(b, &mut none), Some(MANY));
    }
}
