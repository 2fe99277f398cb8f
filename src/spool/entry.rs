//! A message that is not done: where it is, who is left, where it stands.
//!
//! A million of them may wait: what one recipient and no pieces need is in the entry itself.

use std::sync::Arc;

use super::format::{PieceRef, RecipientOutcome};
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
    left: Left,
    pub(super) state: State,
}

/// Who still wants a message. A million messages have one recipient each: it needs no memory of its own.
#[derive(Debug)]
enum Left {
    /// Everybody, and no attempt was made.
    Everybody,
    One(Outstanding),
    These(Box<[Outstanding]>),
}

impl Entry {
    /// A durable message that was found, and of which no attempt is known.
    pub(super) fn found(location: Location, pieces: Box<[PieceRef]>, recipient_count: u32) -> Self {
        Entry { location, pieces, recipient_count, left: Left::Everybody, state: State::Backlog }
    }

    /// A message whose record has just been appended.
    pub(super) fn appended(location: Location, pieces: Box<[PieceRef]>, recipient_count: u32) -> Self {
        Entry { state: State::Appended, ..Entry::found(location, pieces, recipient_count) }
    }

    /// Who is left; `None`: everybody, and no attempt was made.
    pub fn outstanding(&self) -> Option<&[Outstanding]> {
        match &self.left {
            Left::Everybody => None,
            Left::One(outstanding) => Some(std::slice::from_ref(outstanding)),
            Left::These(outstanding) => Some(outstanding),
        }
    }

    /// When it is to be tried again, milliseconds of the wall clock since 1970; `None`: at once, or it is being tried.
    pub fn due(&self) -> Option<u64> {
        if let State::Deferred(Tick(due)) = self.state { Some(due) } else { None }
    }

    /// It is to be tried again at the latest then, in seconds since 1970.
    pub(super) fn limit_wait(&mut self, latest: u64) {
        if let State::Deferred(Tick(due)) = &mut self.state {
            *due = (*due).min(latest.saturating_mul(1000));
        }
    }

    /// What an attempt has brought for some of its recipients. Who is left is to be tried again at the earliest of their next
    /// attempts, in seconds since 1970; false: nobody is left.
    pub(super) fn apply(&mut self, outcomes: &[RecipientOutcome], reasons: &mut Reasons) -> bool {
        let everybody = || {
            (0..self.recipient_count).map(|index| Outstanding { index, attempts: 0, reason: None }).collect()
        };
        let before: Vec<Outstanding> = match std::mem::replace(&mut self.left, Left::Everybody) {
            Left::Everybody => everybody(),
            Left::One(outstanding) => vec![outstanding],
            Left::These(outstanding) => outstanding.into_vec(),
        };
        let mut after = still_left(before, outcomes, reasons);
        if after.len() > 1 {
            self.left = Left::These(after.into());
        } else {
            let Some(outstanding) = after.pop() else { return false };
            self.left = Left::One(outstanding);
        }
        let next_attempts = outcomes.iter().filter(|outcome| !outcome.is_done).map(|o| o.next_attempt);
        self.state = match next_attempts.min().unwrap_or(0) {
            0 => State::Backlog,
            next_attempt => State::Deferred(Tick(next_attempt.saturating_mul(1000))),
        };
        true
    }
}

/// Who is left after `outcomes`, of who was left before.
fn still_left(
    before: Vec<Outstanding>,
    outcomes: &[RecipientOutcome],
    reasons: &mut Reasons,
) -> Vec<Outstanding> {
    let mut sorted: Vec<&RecipientOutcome> = outcomes.iter().collect();
    sorted.sort_unstable_by_key(|outcome| outcome.index);
    let after = before.into_iter().filter_map(|recipient| {
        let found = sorted.binary_search_by_key(&recipient.index, |outcome| outcome.index);
        match found.ok().map(|at| sorted[at]) {
            Some(outcome) if outcome.is_done => None,
            Some(outcome) => {
                let reason = Some(reasons.intern(&outcome.reason));
                Some(Outstanding { attempts: outcome.attempts, reason, ..recipient })
            }
            None => Some(recipient),
        }
    });
    after.collect()
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
pub(super) enum State {
    Appended,
    Backlog,
    HandedOff,
    Deferred(Tick),
}

/// A moment of the log's own time: milliseconds since 1970 as the wall clock had it when the log was opened, and from then on as the
/// monotonic clock counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Tick(pub(super) u64);
