//! From segment to segment: preparing the next, rolling into it, sealing the last, removing what is not used again.
//!
//! ```text
//! none ──Io::Prepare──► ready ──roll──► active ──roll──► sealing ──durable──► unsealed ──seal written──► sealed
//!  ▲ │                                                                                          (the ledger's from here)
//!  └─┴── failed: again after a second
//! ```
//!
//! At most one segment is sealing: the next one is not written before it is wholly durable.

use std::time::Instant;

use super::{Open, RETRY_INTERVAL, Spool, SpoolConfig};
use crate::spool::commit::Tail;
use crate::spool::format::{
    self, BLOCK_SIZE, INDEX_RECORD_SIZE_MAX, IndexBuilder, Kind, RECORDS_OFFSET, SegmentHeader,
};
use crate::spool::io::{Io, IoFailure, Page, Slot};
use crate::spool::log::AppendError;

/// Octets at the end of a segment that records leave free: for an Index record that has just become due, the last Index
/// record, the end of the block it follows, and the seal.
pub(super) const SEGMENT_RESERVE: usize = 2 * INDEX_RECORD_SIZE_MAX + 2 * BLOCK_SIZE;

/// A segment that is ready for its first append.
pub(super) struct Prepared {
    pub(super) slot: Slot,
    pub(super) epoch: u64,
    pub(super) life: u64,
}

pub(super) enum Spare {
    None,
    /// Wait before the next attempt.
    Failed {
        since: Instant,
        why: IoFailure,
    },
    Preparing(Prepared, bool),
    Ready(Prepared),
}

/// What a record is for, as far as a full disk makes a difference.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    Mail,
    Carried,
    Outcomes,
}

impl Purpose {
    /// What it leaves free in the last segment of a full disk. Messages leave most of it to messages that are moved, so that the
    /// oldest segment can be emptied and used again; both leave something to outcomes, for without them deliveries
    /// would not survive a crash, and only deliveries make room.
    pub(super) fn reserve(self, segment_size: u32) -> usize {
        let parts = match self {
            Purpose::Mail => 12,
            Purpose::Carried => 1,
            Purpose::Outcomes => 0,
        };
        segment_size as usize / 16 * parts
    }
}

/// A segment in which everything is durable, and whose seal is still to be written.
pub(super) struct Unsealed {
    pub(super) slot: Slot,
    pub(super) epoch: u64,
    pub(super) block: [u8; BLOCK_SIZE],
    pub(super) is_in_flight: bool,
}

impl<P: Page> Spool<P> {
    /// Makes the active segment have room and memory for a record of `size` octets.
    pub(super) fn make_room(&mut self, size: usize, purpose: Purpose) -> Result<(), AppendError> {
        if self.has_failed() || size > self.record_size_max() {
            return Err(AppendError::Failed);
        }
        if let Some(active) = &self.active {
            let reserve = if self.is_full { purpose.reserve(self.config.segment_size) } else { 0 };
            if active.tail.room() >= size + SEGMENT_RESERVE + reserve {
                let has_memory = active.tail.has_memory(size + INDEX_RECORD_SIZE_MAX, &self.pages);
                return if has_memory { Ok(()) } else { Err(AppendError::Busy) };
            }
        }
        match &self.spare {
            Spare::None if self.removal_failed.is_some() => return Err(AppendError::Failed),
            Spare::Failed { why: IoFailure::NoSpace, .. } => return Err(AppendError::NoRoom),
            Spare::Failed { why: IoFailure::Failed, .. } => return Err(AppendError::Failed),
            // Tried again just now: most likely the disk is as full as it was.
            Spare::Preparing(..) if purpose != Purpose::Outcomes && self.is_full => {
                return Err(AppendError::NoRoom);
            }
            Spare::None | Spare::Preparing(..) => return Err(AppendError::Busy),
            Spare::Ready(_) if self.sealing.is_some() => return Err(AppendError::Busy),
            Spare::Ready(_) => {}
        }
        let open_size = format::open_record_size(self.voids.len());
        let last_index = self.pages.count_for(INDEX_RECORD_SIZE_MAX);
        let first = self.pages.count_for(open_size + size + INDEX_RECORD_SIZE_MAX);
        if !self.pages.has_free(last_index + first) {
            return Err(AppendError::Busy);
        }
        let Spare::Ready(spare) = std::mem::replace(&mut self.spare, Spare::None) else {
            unreachable!("it was just matched")
        };
        self.roll(spare);
        Ok(())
    }

    /// Numbers are to be voided: the record that says so is written at once, for their peers were refused.
    pub(super) fn roll_to_void(&mut self) {
        if self.active.is_some() || self.sealing.is_some() || self.voids.is_empty() {
            return;
        }
        let open_size = format::open_record_size(self.voids.len());
        if self.make_room(open_size, Purpose::Outcomes).is_ok()
            && let Some(active) = &mut self.active
        {
            active.tail.want_durable();
        }
    }

    pub(super) fn roll(&mut self, spare: Prepared) {
        self.close_active();
        let Prepared { slot, epoch, life } = spare;
        self.ledger.add_segment(epoch, slot, life, self.next_sequence);
        let SpoolConfig { segment_size, sync, .. } = self.config;
        let tail = Tail::new(slot, RECORDS_OFFSET as u32, segment_size, self.next_sequence, sync);
        self.active = Some(Open { tail, epoch, life, index: IndexBuilder::default() });
        let open = format::encode_open(epoch, &self.voids);
        if !self.voids.is_empty() {
            self.voids_in = Some(self.next_sequence);
        }
        self.append_active(Kind::Open, &[&open]);
    }

    /// The active segment gets its last Index record, and becomes the sealing one.
    pub(super) fn close_active(&mut self) {
        if self.active.is_none() {
            return;
        }
        self.append_index();
        let mut old = self.active.take().expect("it was just looked at");
        old.tail.want_durable();
        assert!(self.sealing.is_none(), "one segment at a time becomes durable to its end");
        self.sealing = Some(old);
        self.seal_if_durable();
    }

    pub(super) fn seal_if_durable(&mut self) {
        // Tickets are handed out before the tail goes: poll_stored reads them from it.
        if self.sealing.as_ref().is_some_and(|sealing| sealing.tail.is_durable()) {
            while let Some(stored) = self.poll_durable() {
                self.stored.push_back(stored);
            }
            let Open { tail, epoch, life, index } = self.sealing.take().expect("it was just looked at");
            let block = index.seal().encode(life);
            self.unsealed.push_back(Unsealed { slot: tail.slot(), epoch, block, is_in_flight: false });
        }
    }

    /// The next seal to write. It says that what is in front of it is durable, so it comes after that, and is not waited for.
    pub(super) fn poll_seal(&mut self) -> Option<Io<P>> {
        if !self.pages.has_free(1) {
            return None;
        }
        let unsealed = self.unsealed.iter_mut().find(|unsealed| !unsealed.is_in_flight)?;
        unsealed.is_in_flight = true;
        let mut page = self.pages.take();
        page.octets_mut()[..BLOCK_SIZE].copy_from_slice(&unsealed.block);
        let offset = self.config.segment_size - BLOCK_SIZE as u32;
        Some(Io::Write { slot: unsealed.slot, offset, size: BLOCK_SIZE as u32, page })
    }

    pub(super) fn handle_seal_written(&mut self, slot: Slot, result: Result<(), IoFailure>) {
        // Writes of a poisoned segment come back too, and nobody waits for them.
        let Some(at) = self.unsealed.iter().position(|u| u.slot == slot && u.is_in_flight) else { return };
        let unsealed = self.unsealed.remove(at).expect("it was just found");
        match result {
            Ok(()) => self.ledger.seal(unsealed.epoch),
            Err(_) => self.ledger.poison(unsealed.epoch),
        }
    }

    pub(super) fn poll_prepare(&mut self, now: Instant) -> Option<Io<P>> {
        if self.removing.is_some() || self.has_failed() {
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

    pub(super) fn handle_prepared(&mut self, slot: Slot, result: Result<(), IoFailure>, now: Instant) {
        let Spare::Preparing(prepared, is_new) = std::mem::replace(&mut self.spare, Spare::None) else {
            unreachable!("one preparation at a time");
        };
        assert!(prepared.slot == slot);
        match result {
            Ok(()) => {
                self.spare = Spare::Ready(prepared);
                (self.is_full, self.is_unprepared) = (false, false);
                self.roll_to_void();
            }
            Err(why) => {
                self.is_full = why == IoFailure::NoSpace;
                self.is_unprepared = !self.is_full;
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

    /// One removal at a time, and no preparation until it is durable: a file that came back after a crash may hold messages
    /// whose outcomes were in a file that was prepared anew since.
    pub(super) fn poll_removal(&mut self, now: Instant) -> Option<Io<P>> {
        if self.removing.is_none() && !matches!(self.spare, Spare::Preparing(..)) {
            self.removing = self.ledger.poll_removal();
            self.removal_failed = None;
            return self.removing.map(|slot| Io::Remove { slot });
        }
        self.removal_failed.take_if(|since| now >= *since + RETRY_INTERVAL)?;
        self.removing.map(|slot| Io::Remove { slot })
    }
}
