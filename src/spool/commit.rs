//! Group commit: many records, one write, one sync.
//!
//! A [`Tail`] is the end of a segment that is being appended to. Appends go into pages in memory. A full page is written at
//! once; a part of one is closed, padded with zeros and written as soon as somebody waits for it and no write is in
//! flight. One sync at a time covers everything written before it began. So while batch *n* is being synced, batch *n + 1*
//! is being written and batch *n + 2* is being filled, and a lone append on an idle disk is written at once.
//!
//! The order that the promise rests on:
//! 1. the octets are in a page (`appended`);
//! 2. the write of the page has completed, and all writes before it (`written`);
//! 3. a sync that was asked for *after* 2 has completed (`durable`): only now is the waiting ticket handed out.
//!
//! Were 3 to begin before 2, the sync could pass the device before the write did: it would prove nothing of it.
//!
//! Invariants: `durable <= written <= appended`; a ticket is handed out only for a position `<= durable`; no block is written
//! twice.
//!
//! Knows nothing of records or messages: it deals in octets, positions and the number of the next record.

use std::collections::VecDeque;

use super::format::BLOCK_SIZE;
use super::io::{Io, Page, Slot};

/// How far each promise has got in this segment, octets from its start. Invariant: durable <= written <= appended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Positions {
    /// In our memory: lost if the process dies.
    pub appended: u32,
    /// Completed on the device: lost if the power goes.
    pub written: u32,
    /// Covered by a completed sync: the only position a 250 may be sent for.
    pub durable: u32,
}

/// A bounded supply of pages. Their number bounds the memory between append and write: back-pressure begins here.
pub struct Pages<P> {
    make: Box<dyn FnMut() -> P>,
    page_size: usize,
    in_use: usize,
    in_use_max: usize,
}

impl<P: Page> Pages<P> {
    /// `make` gives a page of `page_size` octets, a multiple of the block size.
    pub fn new(make: Box<dyn FnMut() -> P>, page_size: usize, in_use_max: usize) -> Self {
        assert!(page_size > 0 && page_size.is_multiple_of(BLOCK_SIZE));
        Pages { make, page_size, in_use: 0, in_use_max }
    }

    /// Octets that can be taken without waiting for a write.
    fn room(&self) -> usize {
        (self.in_use_max - self.in_use) * self.page_size
    }

    /// How many pages `size` octets take, from the start of one on.
    pub fn count_for(&self, size: usize) -> usize {
        size.div_ceil(self.page_size)
    }

    /// Can this many be taken without waiting for a write?
    pub fn has_free(&self, count: usize) -> bool {
        self.in_use + count <= self.in_use_max
    }

    /// A page; the caller has checked that there is one.
    pub fn take(&mut self) -> P {
        assert!(self.in_use < self.in_use_max, "room was checked before the append");
        self.in_use += 1;
        let page = (self.make)();
        assert!(page.octets().len() == self.page_size);
        page
    }

    /// A page has been written, or its octets are not needed any more.
    pub fn release(&mut self) {
        assert!(self.in_use > 0);
        self.in_use -= 1;
    }
}

/// The number of the first record that is not wholly in front of a position.
type SequenceEnd = u64;

struct Filling<P> {
    page: P,
    offset: u32,
    used: usize,
}

struct Closed<P> {
    page: P,
    offset: u32,
    size: u32,
    sequence_end: SequenceEnd,
}

struct InFlight {
    offset: u32,
    end: u32,
    is_done: bool,
    sequence_end: SequenceEnd,
}

/// The end of one segment.
pub struct Tail<P> {
    slot: Slot,
    size: u32,
    sync: bool,
    positions: Positions,
    filling: Option<Filling<P>>,
    /// Full or closed pages that have not been given out as writes.
    closed: VecDeque<Closed<P>>,
    /// Given out, in the order of their offsets.
    in_flight: VecDeque<InFlight>,
    /// Position and record number of the sync in flight.
    syncing: Option<(u32, SequenceEnd)>,
    /// Who waits for which position; positions rise.
    waiting: VecDeque<(u32, u64)>,
    /// Somebody wants everything up to here durable.
    urgent: u32,
    sequence_end: SequenceEnd,
    written_sequence: SequenceEnd,
}

impl<P: Page> Tail<P> {
    /// An empty tail: appends begin at `start` (a block boundary), the segment ends at `size`. `sync: false` takes a
    /// completed write for durable: the operator's choice, not a promise.
    pub fn new(slot: Slot, start: u32, size: u32, next_sequence: u64, sync: bool) -> Self {
        assert!((start as usize).is_multiple_of(BLOCK_SIZE) && (size as usize).is_multiple_of(BLOCK_SIZE));
        Tail {
            slot,
            size,
            sync,
            positions: Positions { appended: start, written: start, durable: start },
            filling: None,
            closed: VecDeque::new(),
            in_flight: VecDeque::new(),
            syncing: None,
            waiting: VecDeque::new(),
            urgent: start,
            sequence_end: next_sequence,
            written_sequence: next_sequence,
        }
    }

    /// The segment's file.
    pub fn slot(&self) -> Slot {
        self.slot
    }

    /// How far each promise has got.
    pub fn positions(&self) -> Positions {
        self.positions
    }

    /// Octets that can still be appended to this segment.
    pub fn room(&self) -> usize {
        (self.size - self.positions.appended) as usize
    }

    /// Is there memory for another `size` octets now?
    pub fn has_memory(&self, size: usize, pages: &Pages<P>) -> bool {
        let in_page = self.filling.as_ref().map_or(0, |f| pages.page_size - f.used);
        size <= in_page + pages.room()
    }

    /// Appends a record made of `parts` and of zeros up to `size`, and returns its offset. `next_sequence` is the number of
    /// the record after it. The caller has checked [`Tail::room`] and [`Tail::has_memory`].
    pub fn append(&mut self, parts: &[&[u8]], size: usize, next_sequence: u64, pages: &mut Pages<P>) -> u32 {
        assert!(size <= self.room() && self.has_memory(size, pages));
        const ZEROS: [u8; 8] = [0; 8];
        let parts_size: usize = parts.iter().map(|part| part.len()).sum();
        let padding = size
            .checked_sub(parts_size)
            .filter(|p| *p < ZEROS.len())
            .expect("padding is below the alignment");
        let start = self.positions.appended;
        for part in parts {
            self.copy(part, pages);
        }
        self.copy(&ZEROS[..padding], pages);
        self.sequence_end = next_sequence;
        if self.filling.is_none() {
            // The record ended where its page did: it is wholly in front of the page's end.
            self.closed.back_mut().expect("its page was just closed").sequence_end = next_sequence;
        }
        assert!(self.positions.appended == start + size as u32);
        start
    }

    fn copy(&mut self, mut octets: &[u8], pages: &mut Pages<P>) {
        while !octets.is_empty() {
            let offset = self.positions.appended;
            let filling = self.filling.get_or_insert_with(|| Filling { page: pages.take(), offset, used: 0 });
            let size = octets.len().min(pages.page_size - filling.used);
            filling.page.octets_mut()[filling.used..][..size].copy_from_slice(&octets[..size]);
            filling.used += size;
            self.positions.appended += size as u32;
            octets = &octets[size..];
            if filling.used == pages.page_size {
                // A record that goes on in the next page is not wholly in front of this page's end: `sequence_end` still
                // is its number.
                self.close();
            }
        }
    }

    /// Closes the page being filled: pads it with zeros to a block boundary and queues it for writing.
    fn close(&mut self) {
        let Some(mut filling) = self.filling.take() else { return };
        let size = filling.used.next_multiple_of(BLOCK_SIZE);
        filling.page.octets_mut()[filling.used..size].fill(0);
        self.positions.appended = filling.offset + size as u32;
        assert!(self.positions.appended <= self.size, "the segment's size is a multiple of the block size");
        self.closed.push_back(Closed {
            page: filling.page,
            offset: filling.offset,
            size: size as u32,
            sequence_end: self.sequence_end,
        });
    }

    /// `ticket` waits for everything appended so far to be durable.
    pub fn wait(&mut self, ticket: u64) {
        self.waiting.push_back((self.positions.appended, ticket));
        self.want_durable();
    }

    /// Everything appended so far shall become durable, though nobody waits for it.
    pub fn want_durable(&mut self) {
        self.urgent = self.positions.appended;
    }

    /// Nothing is left to do: all that was appended is durable.
    pub fn is_durable(&self) -> bool {
        self.positions.durable == self.positions.appended
    }

    /// The page being filled is about to be written: what is appended now goes with it.
    pub fn is_closing(&self) -> bool {
        let is_wanted = self.filling.as_ref().is_some_and(|filling| self.urgent > filling.offset);
        is_wanted && self.closed.is_empty() && self.in_flight.is_empty()
    }

    /// The next write or sync.
    pub fn poll_io(&mut self) -> Option<Io<P>> {
        if self.is_closing() {
            self.close();
        }
        if let Some(closed) = self.closed.pop_front() {
            let end = closed.offset + closed.size;
            self.in_flight.push_back(InFlight {
                offset: closed.offset,
                end,
                is_done: false,
                sequence_end: closed.sequence_end,
            });
            return Some(Io::Write {
                slot: self.slot,
                offset: closed.offset,
                size: closed.size,
                page: closed.page,
            });
        }
        // The first position somebody wants. Syncing before it is written would delay it by a whole sync.
        let first_wanted = self.waiting.front().map_or(self.urgent, |(end, _)| *end);
        let covers_wanted = first_wanted > self.positions.durable && first_wanted <= self.positions.written;
        if self.syncing.is_none() && self.sync && covers_wanted {
            self.syncing = Some((self.positions.written, self.written_sequence));
            return Some(Io::Sync { slot: self.slot });
        }
        None
    }

    /// The write at `offset` has completed with its full length. Returns the new horizon where that alone made it rise.
    pub fn handle_written(&mut self, offset: u32) -> Option<u64> {
        let write = self.in_flight.iter_mut().find(|w| w.offset == offset && !w.is_done);
        write.expect("a write completes once").is_done = true;
        while let Some(write) = self.in_flight.front().filter(|w| w.is_done) {
            self.positions.written = write.end;
            self.written_sequence = write.sequence_end;
            self.in_flight.pop_front();
        }
        if self.sync {
            return None;
        }
        self.positions.durable = self.positions.written;
        Some(self.written_sequence)
    }

    /// The sync has completed. Returns the new horizon: every record with a smaller number is durable.
    pub fn handle_synced(&mut self) -> u64 {
        let (position, sequence_end) = self.syncing.take().expect("a sync completes once");
        assert!(position <= self.positions.written && position >= self.positions.durable);
        self.positions.durable = position;
        sequence_end
    }

    /// The next ticket whose position is durable, in order.
    pub fn poll_durable(&mut self) -> Option<u64> {
        let (end, ticket) = *self.waiting.front()?;
        if end > self.positions.durable {
            return None;
        }
        self.waiting.pop_front();
        Some(ticket)
    }

    /// Gives the segment up: returns the tickets that will never be durable and releases the pages that were not given out.
    pub fn give_up(self, pages: &mut Pages<P>) -> impl Iterator<Item = u64> {
        (0..self.closed.len() + usize::from(self.filling.is_some())).for_each(|_| pages.release());
        self.waiting.into_iter().map(|(_, ticket)| ticket)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: usize = 2 * BLOCK_SIZE;

    fn tail(sync: bool) -> (Tail<Vec<u8>>, Pages<Vec<u8>>) {
        let pages = Pages::new(Box::new(|| vec![0xAA; PAGE]), PAGE, 4);
        (Tail::new(Slot(1), 2 * BLOCK_SIZE as u32, 64 * BLOCK_SIZE as u32, 1, sync), pages)
    }

    fn write(io: Option<Io<Vec<u8>>>) -> (u32, u32) {
        match io {
            Some(Io::Write { offset, size, page, .. }) => {
                assert_eq!(page.len(), PAGE);
                (offset, size)
            }
            other => panic!("expected a write, got {other:?}"),
        }
    }

    fn is_sync(io: Option<Io<Vec<u8>>>) -> bool {
        matches!(io, Some(Io::Sync { .. }))
    }

    #[test]
    fn a_ticket_is_handed_out_only_after_a_sync_that_began_after_its_write() {
        let (mut tail, mut pages) = tail(true);
        tail.append(&[&[1; 100]], 104, 2, &mut pages);
        tail.wait(7);
        let (first, size) = write(tail.poll_io());
        assert_eq!(size as usize, BLOCK_SIZE);
        assert!(tail.poll_io().is_none(), "no sync before the write has completed");
        assert_eq!(tail.poll_durable(), None);
        tail.handle_written(first);
        assert!(is_sync(tail.poll_io()));
        // A second append: written during the sync, but not covered by it.
        tail.append(&[&[2; 8]], 8, 3, &mut pages);
        tail.wait(8);
        let (second, _) = write(tail.poll_io());
        tail.handle_written(second);
        assert!(tail.poll_io().is_none(), "one sync at a time");
        assert_eq!(tail.handle_synced(), 2);
        assert_eq!((tail.poll_durable(), tail.poll_durable()), (Some(7), None));
        assert!(is_sync(tail.poll_io()));
        assert_eq!(tail.handle_synced(), 3);
        assert_eq!(tail.poll_durable(), Some(8));
        assert!(tail.is_durable());
    }

    #[test]
    fn appends_behind_a_write_in_flight_share_the_next_one() {
        let (mut tail, mut pages) = tail(true);
        tail.append(&[&[1; 8]], 8, 2, &mut pages);
        tail.wait(1);
        let (first, _) = write(tail.poll_io());
        for ticket in 2..10 {
            tail.append(&[&[2; 8]], 8, ticket + 1, &mut pages);
            tail.wait(ticket);
            assert!(tail.poll_io().is_none());
        }
        tail.handle_written(first);
        let (second, size) = write(tail.poll_io());
        assert_eq!((second, size as usize), (first + BLOCK_SIZE as u32, BLOCK_SIZE));
    }

    #[test]
    fn nothing_is_written_while_nobody_waits_but_full_pages_are() {
        let (mut tail, mut pages) = tail(true);
        tail.append(&[&[1; 1000]], 1000, 2, &mut pages);
        assert!(tail.poll_io().is_none());
        tail.append(&[&vec![2; PAGE]], PAGE, 3, &mut pages);
        let (offset, size) = write(tail.poll_io());
        assert_eq!(size as usize, PAGE);
        tail.handle_written(offset);
        assert!(tail.poll_io().is_none(), "no sync, nobody waits");
        tail.want_durable();
        let (offset, size) = write(tail.poll_io());
        assert_eq!(size as usize, BLOCK_SIZE);
        tail.handle_written(offset);
        assert!(is_sync(tail.poll_io()));
        assert_eq!(tail.handle_synced(), 3);
    }

    #[test]
    fn writes_may_complete_in_any_order_but_written_is_a_prefix() {
        let (mut tail, mut pages) = tail(true);
        tail.append(&[&vec![1; 3 * PAGE]], 3 * PAGE, 2, &mut pages);
        tail.wait(1);
        let writes: Vec<_> = (0..3).map(|_| write(tail.poll_io()).0).collect();
        tail.handle_written(writes[2]);
        tail.handle_written(writes[1]);
        assert!(tail.poll_io().is_none());
        assert_eq!(tail.positions().written, writes[0]);
        tail.handle_written(writes[0]);
        assert!(is_sync(tail.poll_io()));
    }

    #[test]
    fn the_horizon_covers_a_record_that_ends_where_its_page_does_and_none_that_goes_on() {
        for (size, horizon) in [(PAGE - 8, 2), (PAGE, 2), (PAGE + 8, 1)] {
            let (mut tail, mut pages) = tail(true);
            tail.append(&[&vec![1; size]], size, 2, &mut pages);
            if size < PAGE {
                tail.want_durable();
            }
            let (offset, _) = write(tail.poll_io());
            tail.handle_written(offset);
            tail.urgent = tail.positions().written;
            assert!(is_sync(tail.poll_io()));
            assert_eq!(tail.handle_synced(), horizon, "{size}");
        }
    }

    #[test]
    fn memory_is_bounded_and_comes_back() {
        let (mut tail, mut pages) = tail(true);
        assert!(tail.has_memory(4 * PAGE, &pages) && !tail.has_memory(4 * PAGE + 1, &pages));
        tail.append(&[&[1; 8]], 8, 2, &mut pages);
        assert!(tail.has_memory(4 * PAGE - 8, &pages) && !tail.has_memory(4 * PAGE - 7, &pages));
        tail.wait(1);
        let (offset, _) = write(tail.poll_io());
        assert!(tail.has_memory(3 * PAGE, &pages) && !tail.has_memory(3 * PAGE + 1, &pages));
        pages.release();
        tail.handle_written(offset);
        assert!(tail.has_memory(4 * PAGE, &pages));
    }

    #[test]
    fn without_sync_a_completed_write_is_taken_for_durable() {
        let (mut tail, mut pages) = tail(false);
        tail.append(&[&[1; 8]], 8, 2, &mut pages);
        tail.wait(1);
        let (offset, _) = write(tail.poll_io());
        assert_eq!(tail.poll_durable(), None);
        assert_eq!(tail.handle_written(offset), Some(2));
        assert_eq!(tail.poll_durable(), Some(1));
        assert!(tail.poll_io().is_none());
    }

    #[test]
    fn giving_up_names_every_waiting_ticket_and_releases_pages() {
        let (mut tail, mut pages) = tail(true);
        tail.append(&[&vec![1; PAGE + 8]], PAGE + 8, 2, &mut pages);
        tail.wait(1);
        tail.wait(2);
        write(tail.poll_io());
        assert_eq!(tail.give_up(&mut pages).collect::<Vec<_>>(), [1, 2]);
        pages.release();
        assert_eq!(pages.in_use, 0);
    }
}
