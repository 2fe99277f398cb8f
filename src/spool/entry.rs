//! A message that is not done: where it is, who is left, where it stands.
//!
//! Those who are left stand in lanes: one for each target that gets the message, and one for those of whom it has not been decided who
//! gets theirs. A lane is a number; the log knows its name, and nothing else of it. Each lane's part of a message is tried by itself: a
//! target that is slow or gone delays no other.
//!
//! A million of them may wait: what one lane, one recipient and no pieces need is in the entry itself.

use std::sync::Arc;

use super::format::{Order, PieceRef, RecipientOutcome};
use super::reasons::Reasons;

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

/// A target, as a number that the log gives it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lane(pub u16);

impl Lane {
    /// Of those of whom it has not been decided who gets theirs.
    pub const UNROUTED: Lane = Lane(0);
}

/// A recipient that still needs an attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outstanding {
    /// Its place in the envelope's forward-paths.
    pub index: u32,
    /// Attempts made.
    pub attempts: u32,
    /// Why the last of them did not deliver; `None` before the first.
    pub reason: Option<Arc<str>>,
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
    /// By which routing it was decided who gets it; 0: by none since the log was opened.
    pub(super) routing: u32,
    /// The order that no delivery is to have it, while that is so.
    pub(super) hold: Option<Arc<Order>>,
    parts: Parts,
}

/// A million messages have one part each: it needs no memory of its own.
#[derive(Debug)]
enum Parts {
    One(Part),
    /// Each lane once.
    Many(Vec<Part>),
}

/// Those who are left of a message in one lane.
#[derive(Debug)]
pub struct Part {
    /// Which.
    pub lane: Lane,
    pub(super) state: State,
    left: Left,
}

#[derive(Debug)]
enum Left {
    /// Everybody, and no attempt was made.
    Everybody,
    One(Outstanding),
    /// Ascending.
    These(Box<[Outstanding]>),
}

impl Part {
    /// Who is left; `None`: everybody, and no attempt was made.
    pub fn outstanding(&self) -> Option<&[Outstanding]> {
        match &self.left {
            Left::Everybody => None,
            Left::One(outstanding) => Some(std::slice::from_ref(outstanding)),
            Left::These(outstanding) => Some(outstanding),
        }
    }

    /// These have been delivered to, while others of the message's targets are left.
    pub fn is_done(&self) -> bool {
        self.state == State::Done
    }

    /// A delivery has it.
    pub fn is_handed_off(&self) -> bool {
        self.state == State::HandedOff
    }

    /// When it is to be tried again, milliseconds of the wall clock since 1970; `None`: at once, or it is being tried.
    pub fn due(&self) -> Option<u64> {
        if let State::Deferred(Tick(due)) = self.state { Some(due) } else { None }
    }

    fn has(&self, index: u32) -> bool {
        let Some(left) = self.outstanding() else { return true };
        left.binary_search_by_key(&index, |left| left.index).is_ok()
    }

    fn everybody(count: u32) -> Vec<Outstanding> {
        (0..count).map(|index| Outstanding { index, attempts: 0, reason: None }).collect()
    }
}

impl Entry {
    /// A durable message that was found, and of which no attempt is known.
    pub(super) fn found(location: Location, pieces: Box<[PieceRef]>, recipient_count: u32) -> Self {
        let part = Part { lane: Lane::UNROUTED, state: State::Backlog, left: Left::Everybody };
        Entry { location, pieces, recipient_count, routing: 0, hold: None, parts: Parts::One(part) }
    }

    /// A message whose record has just been appended.
    pub(super) fn appended(location: Location, pieces: Box<[PieceRef]>, recipient_count: u32) -> Self {
        let mut entry = Entry::found(location, pieces, recipient_count);
        entry.parts_mut()[0].state = State::Appended;
        entry
    }

    /// The order that no delivery is to have it before it is released, if it is held. A delivery that had it then still has it.
    pub fn hold(&self) -> Option<&Arc<Order>> {
        self.hold.as_ref()
    }

    /// No delivery is to have it.
    pub fn is_held(&self) -> bool {
        self.hold.is_some()
    }

    /// What is left in each lane, and who was delivered to in some while others are left.
    pub fn parts(&self) -> &[Part] {
        match &self.parts {
            Parts::One(part) => std::slice::from_ref(part),
            Parts::Many(parts) => parts,
        }
    }

    pub(super) fn parts_mut(&mut self) -> &mut [Part] {
        match &mut self.parts {
            Parts::One(part) => std::slice::from_mut(part),
            Parts::Many(parts) => parts,
        }
    }

    /// What is left in this lane.
    pub fn part(&self, lane: Lane) -> Option<&Part> {
        self.parts().iter().find(|part| part.lane == lane && !part.is_done())
    }

    pub(super) fn part_mut(&mut self, lane: Lane) -> Option<&mut Part> {
        self.parts_mut().iter_mut().find(|part| part.lane == lane && part.state != State::Done)
    }

    /// Its record is not durable yet.
    pub(super) fn is_appended(&self) -> bool {
        self.parts()[0].state == State::Appended
    }

    /// Its record is durable.
    pub fn is_durable(&self) -> bool {
        !self.is_appended()
    }

    /// A delivery has it, in some lane.
    pub fn is_handed_off(&self) -> bool {
        self.parts().iter().any(|part| part.state == State::HandedOff)
    }

    /// When some of it is to be tried again, milliseconds of the wall clock since 1970; `None`: some of it at once, or it is being tried.
    pub fn due(&self) -> Option<u64> {
        self.parts().iter().filter(|part| !part.is_done()).map(Part::due).min().flatten()
    }

    /// Recipients that are left, with their lanes: each once for every lane.
    pub fn outstanding(&self) -> Vec<(Lane, Outstanding)> {
        let pending = self.parts().iter().filter(|part| !part.is_done());
        let of_part = |part: &Part| -> Vec<(Lane, Outstanding)> {
            let left =
                part.outstanding().map_or_else(|| Part::everybody(self.recipient_count), <[_]>::to_vec);
            left.into_iter().map(|left| (part.lane, left)).collect()
        };
        pending.flat_map(of_part).collect()
    }

    /// What waits for its time is due: in this lane, or in all.
    pub(super) fn hasten(&mut self, lane: Option<Lane>) {
        for part in self.parts_mut().iter_mut().filter(|part| lane.is_none_or(|lane| part.lane == lane)) {
            if matches!(part.state, State::Deferred(_)) {
                part.state = State::Backlog;
            }
        }
    }

    /// It is to be tried again at the latest then, in seconds since 1970.
    pub(super) fn limit_wait(&mut self, latest: u64) {
        for part in self.parts_mut() {
            if let State::Deferred(Tick(due)) = &mut part.state {
                *due = (*due).min(latest.saturating_mul(1000));
            }
        }
    }

    /// The lanes have other numbers.
    pub(super) fn rename_lanes(&mut self, name: impl Fn(Lane) -> Lane) {
        self.parts_mut().iter_mut().for_each(|part| part.lane = name(part.lane));
    }

    /// Is this recipient left in another lane than this?
    pub(super) fn is_left_elsewhere(&self, lane: Lane, index: u32) -> bool {
        self.parts().iter().any(|part| part.lane != lane && !part.is_done() && part.has(index))
    }

    /// What an attempt in `lane` has brought for some of its recipients. Who is left there is to be tried again at the earliest of
    /// their next attempts, in seconds since 1970. `here_only`: they are left in other lanes too; where these are not known, as in a
    /// log that is being read, the recipients stay among the undecided as well. False: nobody is left anywhere.
    pub(super) fn apply(
        &mut self,
        lane: Lane,
        here_only: bool,
        outcomes: &[RecipientOutcome],
        reasons: &mut Reasons,
    ) -> bool {
        if let (Parts::One(part), [outcome]) = (&mut self.parts, outcomes)
            && (part.lane == lane || part.lane == Lane::UNROUTED)
            && (self.recipient_count, outcome.index, here_only) == (1, 0, false)
        {
            // As nearly all are.
            if outcome.is_done {
                return false;
            }
            let reason = Some(reasons.intern(&outcome.reason));
            part.lane = lane;
            part.state = due_at(outcome.next_attempt);
            part.left = Left::One(Outstanding { index: 0, attempts: outcome.attempts, reason });
            return true;
        }
        let mut sorted: Vec<&RecipientOutcome> = outcomes.iter().collect();
        sorted.sort_by_key(|outcome| outcome.index);
        let find = |index| sorted.binary_search_by_key(&index, |outcome| outcome.index).ok();
        let before = self.take_left();
        let was_pending = pending_indices(&before);
        let is_alive = |index| was_pending.binary_search(&index).is_ok();
        let stays_undecided = here_only && self.routing == 0;
        let mut after = Vec::with_capacity(before.len() + sorted.len());
        for left in before {
            let is_undecided = left.lane == Lane::UNROUTED && left.state != State::Done;
            match find(left.recipient.index) {
                // It is said anew below.
                Some(_) if left.lane == lane && (left.state != State::Done || here_only) => {}
                Some(_) if is_undecided => {}
                // Done for good is done everywhere.
                Some(at) if sorted[at].is_done && !here_only => {}
                _ => after.push(left),
            }
        }
        for outcome in sorted.into_iter().filter(|outcome| is_alive(outcome.index)) {
            let RecipientOutcome { index, attempts, .. } = *outcome;
            let (state, reason) = match outcome.is_done {
                true => (State::Done, None),
                false => (due_at(outcome.next_attempt), Some(reasons.intern(&outcome.reason))),
            };
            if here_only || !outcome.is_done {
                after.push(LeftIn { lane, state, recipient: Outstanding { index, attempts, reason } });
            }
            if stays_undecided {
                let recipient = Outstanding { index, attempts: 0, reason: None };
                after.push(LeftIn { lane: Lane::UNROUTED, state: State::Backlog, recipient });
            }
        }
        // Nobody has what is left in this lane.
        let next =
            outcomes.iter().filter(|o| !o.is_done).map(|o| due_at(o.next_attempt)).reduce(State::sooner);
        for left in after.iter_mut().filter(|left| left.lane == lane && left.state != State::Done) {
            match next {
                Some(next) => left.state = next,
                None if left.state == State::HandedOff => left.state = State::Backlog,
                None => {}
            }
        }
        self.put(after)
    }

    /// Who gets the message is decided, anew perhaps: each recipient, in each of its lanes. What is known of it in a lane that it keeps is
    /// kept, what was delivered is not delivered again; who comes into another lane brings along how often it was tried. False: nobody
    /// is left.
    pub(super) fn route(&mut self, wanted: &Wanted, routing: u32) -> bool {
        assert!(!self.is_handed_off(), "what a delivery has stays where it is");
        self.routing = routing;
        if let (Parts::One(part), Wanted::All(lane)) = (&mut self.parts, wanted) {
            part.lane = *lane;
            return true;
        }
        let all;
        let wanted = match wanted {
            Wanted::Each(each) => each,
            Wanted::All(lane) => {
                all = (0..self.recipient_count).map(|index| (index, *lane)).collect::<Vec<_>>();
                &all
            }
        };
        let is_wanted = |index: u32, lane: Lane| {
            let from = wanted.partition_point(|(of, _)| *of < index);
            wanted[from..].iter().take_while(|(of, _)| *of == index).any(|(_, of)| *of == lane)
        };
        let mut before = self.take_left();
        before.sort_by_key(|left| left.recipient.index);
        // What was delivered is remembered, whether or not it is wanted now: it may be again.
        let done: Vec<_> = before.iter().filter(|left| left.state == State::Done).cloned().collect();
        let mut after = Vec::with_capacity(wanted.len());
        for (index, lane) in wanted {
            let from = before.partition_point(|left| left.recipient.index < *index);
            let known = before[from..].iter().take_while(|left| left.recipient.index == *index);
            let pending = known.clone().filter(|left| left.state != State::Done);
            if pending.clone().next().is_none() {
                continue;
            }
            match known.clone().find(|left| left.lane == *lane) {
                Some(here) if here.state == State::Done => {}
                Some(here) => after.push(here.clone()),
                None => {
                    // Whoever comes from a lane that is not wanted any more.
                    let left_behind = pending.filter(|left| !is_wanted(*index, left.lane));
                    let most = left_behind.max_by_key(|left| left.recipient.attempts);
                    let nothing = Outstanding { index: *index, attempts: 0, reason: None };
                    let recipient = most.map_or(nothing, |most| most.recipient.clone());
                    after.push(LeftIn { lane: *lane, state: State::Backlog, recipient });
                }
            }
        }
        let is_pending = pending_indices(&after);
        after.extend(done.into_iter().filter(|left| is_pending.binary_search(&left.recipient.index).is_ok()));
        self.put(after)
    }

    fn take_left(&mut self) -> Vec<LeftIn> {
        let count = self.recipient_count;
        let parts = match std::mem::replace(&mut self.parts, Parts::Many(Vec::new())) {
            Parts::One(part) => vec![part],
            Parts::Many(parts) => parts,
        };
        let left = parts.into_iter().flat_map(|Part { lane, state, left }| {
            let recipients = match left {
                Left::Everybody => Part::everybody(count),
                Left::One(recipient) => vec![recipient],
                Left::These(recipients) => recipients.into_vec(),
            };
            recipients.into_iter().map(move |recipient| LeftIn { lane, state, recipient })
        });
        left.collect()
    }

    /// False: nobody is left.
    fn put(&mut self, mut left: Vec<LeftIn>) -> bool {
        if left.iter().all(|left| left.state == State::Done) {
            return false;
        }
        let place = |left: &LeftIn| (left.lane, left.state == State::Done);
        left.sort_by_key(|left| (place(left), left.recipient.index));
        left.dedup_by_key(|left| (place(left), left.recipient.index));
        let part = |group: &[LeftIn]| {
            let state =
                group.iter().map(|left| left.state).reduce(State::sooner).expect("a group has somebody");
            let mut recipients: Vec<_> = group.iter().map(|left| left.recipient.clone()).collect();
            let left = match recipients.len() {
                1 => Left::One(recipients.remove(0)),
                _ => Left::These(recipients.into()),
            };
            Part { lane: group[0].lane, state, left }
        };
        let mut parts: Vec<_> = left.chunk_by(|a, b| place(a) == place(b)).map(part).collect();
        self.parts = if parts.len() == 1 { Parts::One(parts.remove(0)) } else { Parts::Many(parts) };
        true
    }
}

/// Who is left somewhere, ascending.
fn pending_indices(left: &[LeftIn]) -> Vec<u32> {
    let pending = left.iter().filter(|left| left.state != State::Done);
    let mut indices: Vec<_> = pending.map(|left| left.recipient.index).collect();
    indices.sort_unstable();
    indices
}

/// A recipient in a lane.
#[derive(Clone, Debug)]
struct LeftIn {
    lane: Lane,
    state: State,
    recipient: Outstanding,
}

/// Who is to get a message, in lanes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// All recipients in one.
    All(Lane),
    /// Each recipient, by its place in the envelope, in each of its lanes; ascending by place.
    Each(Vec<(u32, Lane)>),
}

/// Where a message stands in a lane, on its way through the ledger. Of one that is held it is where it stood, and where it will stand
/// when it is released: it waits in no queue meanwhile.
///
/// ```text
///   append ──► Appended ──durable──► Backlog ──try_send──► HandedOff ──all done──► (gone), or Done: others are left elsewhere
///                  │                    ▲                      │
///               poisoned                │due                   │deferred
///                  ▼                    │                      │
///               (gone)               Deferred ◄────────────────┘
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    Appended,
    Backlog,
    HandedOff,
    Deferred(Tick),
    Done,
}

impl State {
    /// Of recipients that come together into one part.
    fn sooner(self, other: State) -> State {
        match (self, other) {
            (State::Deferred(a), State::Deferred(b)) => State::Deferred(a.min(b)),
            (State::Deferred(_), other) => other,
            (state, _) => state,
        }
    }
}

/// `next_attempt`: seconds since 1970; 0: at once.
fn due_at(next_attempt: u64) -> State {
    match next_attempt {
        0 => State::Backlog,
        next_attempt => State::Deferred(Tick(next_attempt.saturating_mul(1000))),
    }
}

/// A moment of the log's own time: milliseconds since 1970 as the wall clock had it when the log was opened, and from then on as the
/// monotonic clock counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Tick(pub(super) u64);
