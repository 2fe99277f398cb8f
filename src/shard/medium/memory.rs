//! Segments in memory: for tests, and for mail that may be lost with the process.
//!
//! A segment is a table with a place for each of its blocks. A write puts a copy of its octets into the place of its first
//! block, once, and nobody changes it after: so readers on other threads need no lock, and the shard never waits for one.
//! A life of a segment is one table; the next life is another, and whoever still reads the former one keeps it.
//!
//! Bounded: a segment counts with its whole size from its preparation to its removal. What is not written yet costs only its
//! place in the table, 24 octets for a block of 4096.
//!
//! Promises nothing about the end of the process.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, OnceLock};

use crate::spool::Slot;
use crate::spool::format::BLOCK_SIZE;

/// The segments of one log.
pub struct Memory {
    size_max: u64,
    segments: RefCell<Segments>,
}

impl Memory {
    /// Segments of `size_max` octets together.
    pub fn new(size_max: u64) -> Self {
        Memory { size_max, segments: RefCell::default() }
    }

    /// Begins a life of a segment; fails with `StorageFull` where the bound leaves no room for it.
    pub fn prepare(&self, slot: Slot, size: u32, header: &[u8]) -> io::Result<()> {
        let mut segments = self.segments.borrow_mut();
        let others = segments.0.iter().filter(|(other, _)| **other != slot);
        let taken: u64 = others.map(|(_, segment)| segment.size()).sum();
        if taken + u64::from(size) > self.size_max {
            return Err(io::Error::new(io::ErrorKind::StorageFull, "spool.memory_queue_size is used up"));
        }
        let segment = Segment::new(size);
        segment.write(0, header);
        segments.0.insert(slot, Arc::new(segment));
        Ok(())
    }

    /// Keeps a copy of `octets`.
    pub fn write(&self, slot: Slot, offset: u32, octets: &[u8]) -> io::Result<()> {
        self.segments.borrow().open(slot)?.write(offset, octets);
        Ok(())
    }

    /// Gives the segment's memory back, as soon as nobody reads it any more.
    pub fn remove(&self, slot: Slot) {
        self.segments.borrow_mut().0.remove(&slot);
    }

    /// For those who read: the segments there are now, and what is yet to be written to them.
    pub fn segments(&self) -> Segments {
        self.segments.borrow().clone()
    }
}

/// Segments by their slots.
#[derive(Clone, Default)]
pub struct Segments(BTreeMap<Slot, Arc<Segment>>);

impl Segments {
    /// The segment in the life it had when these were taken.
    pub fn open(&self, slot: Slot) -> io::Result<Arc<Segment>> {
        self.0.get(&slot).cloned().ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

/// One life of a segment.
#[derive(Debug)]
pub struct Segment {
    /// Each write, at the place of its first block.
    writes: Box<[OnceLock<Box<[u8]>>]>,
}

impl Segment {
    fn new(size: u32) -> Self {
        let count = size as usize / BLOCK_SIZE;
        Segment { writes: (0..count).map(|_| OnceLock::new()).collect() }
    }

    fn size(&self) -> u64 {
        self.writes.len() as u64 * BLOCK_SIZE as u64
    }

    /// `offset` and the size of `octets` are multiples of the block size, and lie within the segment.
    fn write(&self, offset: u32, octets: &[u8]) {
        assert!((offset as usize).is_multiple_of(BLOCK_SIZE) && octets.len().is_multiple_of(BLOCK_SIZE));
        assert!(u64::from(offset) + octets.len() as u64 <= self.size(), "within the segment");
        let place = &self.writes[offset as usize / BLOCK_SIZE];
        assert!(place.set(octets.into()).is_ok(), "within one life a block is written once");
    }

    /// Fills `buffer` with what was written at `offset`; fails where nothing was. Waits for nobody.
    pub fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let mut filled = 0;
        while filled < buffer.len() {
            let octets = self.written_at(offset + filled as u64)?;
            let size = octets.len().min(buffer.len() - filled);
            buffer[filled..][..size].copy_from_slice(&octets[..size]);
            filled += size;
        }
        Ok(())
    }

    /// From `offset` to the end of the write that it lies in.
    fn written_at(&self, offset: u64) -> io::Result<&[u8]> {
        let block = usize::try_from(offset).unwrap_or(usize::MAX) / BLOCK_SIZE;
        let places = self.writes.get(..=block).unwrap_or_default();
        // A write is a page at most, so its first block is not far.
        let write = places.iter().enumerate().rev().find_map(|(first, place)| Some((first, place.get()?)));
        let rest = write.and_then(|(first, octets)| octets.get(offset as usize - first * BLOCK_SIZE..));
        rest.filter(|rest| !rest.is_empty()).ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    const SIZE: u32 = 16 * BLOCK_SIZE as u32;

    fn blocks(fill: u8, count: usize) -> Vec<u8> {
        (0..count * BLOCK_SIZE).map(|i| fill.wrapping_add((i / 64) as u8)).collect()
    }

    fn memory_with(slot: Slot) -> Memory {
        let memory = Memory::new(3 * u64::from(SIZE));
        memory.prepare(slot, SIZE, &blocks(0, 2)).unwrap();
        memory
    }

    #[test]
    fn what_was_written_is_read_at_any_offset_and_across_writes() {
        let slot = Slot(7);
        let memory = memory_with(slot);
        let mut whole = blocks(0, 2);
        for (fill, count) in [(10, 1), (20, 5), (30, 2)] {
            let octets = blocks(fill, count);
            memory.write(slot, whole.len() as u32, &octets).unwrap();
            whole.extend(octets);
        }
        let segment = memory.segments().open(slot).unwrap();
        for offset in (0..whole.len()).step_by(1000) {
            for size in [0, 1, 4096, 9000, whole.len() - offset] {
                let end = (offset + size).min(whole.len());
                let mut read = vec![0; end - offset];
                segment.read_exact_at(&mut read, offset as u64).unwrap();
                assert!(read == whole[offset..end], "{offset} {size}");
            }
        }
    }

    #[test]
    fn what_was_not_written_cannot_be_read() {
        let slot = Slot(0);
        let memory = memory_with(slot);
        memory.write(slot, 4 * BLOCK_SIZE as u32, &blocks(9, 1)).unwrap();
        let segment = memory.segments().open(slot).unwrap();
        let block = BLOCK_SIZE as u64;
        for (offset, size) in
            [(2 * block, 1), (2 * block - 1, 2), (3 * block, 4096), (5 * block, 1), (16 * block, 1)]
        {
            let error = segment.read_exact_at(&mut vec![0; size], offset).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof, "{offset} {size}");
        }
        assert_eq!(memory.segments().open(Slot(1)).unwrap_err().kind(), io::ErrorKind::NotFound);
        let lost = memory.write(Slot(1), 0, &blocks(0, 1)).unwrap_err();
        assert_eq!(lost.kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn the_bound_is_for_all_segments_and_a_removal_gives_its_part_back() {
        let memory = memory_with(Slot(0));
        let prepare = |slot| memory.prepare(Slot(slot), SIZE, &blocks(0, 2)).map_err(|e| e.kind());
        assert_eq!([prepare(1), prepare(2)], [Ok(()), Ok(())]);
        assert_eq!(prepare(3), Err(io::ErrorKind::StorageFull));
        // Used again: it needs no more than it has.
        assert_eq!(prepare(1), Ok(()));
        memory.remove(Slot(0));
        memory.remove(Slot(0));
        assert_eq!([prepare(3), prepare(4)], [Ok(()), Err(io::ErrorKind::StorageFull)]);
    }

    #[test]
    fn a_reader_keeps_the_life_it_has_opened() {
        let slot = Slot(0);
        let memory = memory_with(slot);
        let at = 2 * BLOCK_SIZE as u64;
        memory.write(slot, at as u32, &blocks(1, 1)).unwrap();
        let former = memory.segments().open(slot).unwrap();
        memory.prepare(slot, SIZE, &blocks(0, 2)).unwrap();
        memory.write(slot, at as u32, &blocks(2, 1)).unwrap();
        let present = memory.segments().open(slot).unwrap();
        memory.remove(slot);
        for (segment, fill) in [(former, 1), (present, 2)] {
            let mut read = vec![0; BLOCK_SIZE];
            std::thread::spawn(move || segment.read_exact_at(&mut read, at).map(|()| read))
                .join()
                .unwrap()
                .map(|read| assert!(read == blocks(fill, 1)))
                .unwrap();
        }
    }

    #[test]
    fn readers_see_only_whole_writes_while_the_segment_is_written() {
        let slot = Slot(0);
        let memory = memory_with(slot);
        let segment = memory.segments().open(slot).unwrap();
        let is_over = Arc::new(AtomicBool::new(false));
        let was_over = is_over.clone();
        let reader = std::thread::spawn(move || {
            let mut read = vec![0; BLOCK_SIZE];
            for block in 2..16u64 {
                loop {
                    // Looked at before the attempt: behind the last write every attempt succeeds.
                    let is_last = was_over.load(Ordering::Acquire);
                    let found = segment.read_exact_at(&mut read, block * BLOCK_SIZE as u64);
                    if found.is_ok() {
                        break;
                    }
                    assert!(!is_last, "block {block} is not there");
                }
                assert!(read == blocks(block as u8, 1), "block {block}");
            }
        });
        for block in 2..16u32 {
            memory.write(slot, block * BLOCK_SIZE as u32, &blocks(block as u8, 1)).unwrap();
        }
        is_over.store(true, Ordering::Release);
        reader.join().unwrap();
    }
}
