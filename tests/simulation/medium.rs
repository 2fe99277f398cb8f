//! A simulated disk with a volatile cache: what was written is seen at once and is durable after a sync.
//!
//! A power cut keeps of each unsynced sector of 512 octets any version or the durable one; of names that were made or removed since
//! the directory was synced, any. Writes may be short or fail after a part; a failed sync may have done its work or dropped it.
//! All of this `spool::io` permits. A medium that **lies** does what it does not permit: it flips bits, writes a block elsewhere,
//! forgets one or zeroes it, and says that all went well. Then it remembers where ([`Medium::is_damaged`]).
//!
//! Knows nothing of what the octets mean.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use incoming::spool::{IoFailure, Slot};

use crate::random::Random;

/// The unit a device writes whole, octets.
pub const SECTOR: usize = 512;
const BLOCK: usize = 4096;

/// The kinds of I/O that can be told to fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Prepare,
    Write,
    Sync,
    Remove,
}

impl Kind {
    pub const ALL: [Kind; 4] = [Kind::Prepare, Kind::Write, Kind::Sync, Kind::Remove];
}

/// The one I/O that fails, and whether all after it do.
#[derive(Clone, Copy, Debug)]
pub struct Fault {
    pub kind: Kind,
    /// Counted from 0, over all lives.
    pub nth: u64,
    pub why: IoFailure,
    pub is_for_ever: bool,
}

/// What goes wrong by chance; a rate of 0 is never.
#[derive(Clone, Debug, Default)]
pub struct Faults {
    pub fault: Option<Fault>,
    /// One I/O in so many fails, by kind.
    pub fails_one_in: [u64; 4],
    /// One write in so many is short.
    pub is_short_one_in: u64,
    /// One write in so many is a lie, as long as there are any left.
    pub lies_one_in: u64,
    pub lies_left: u32,
}

#[derive(Clone, Debug)]
struct Unsynced {
    number: u64,
    offset: usize,
    octets: Vec<u8>,
}

#[derive(Clone, Debug)]
struct File {
    seen: Vec<u8>,
    durable: Vec<u8>,
    /// In the order in which they were written.
    unsynced: Vec<Unsynced>,
    /// The directory was synced since it was made.
    is_name_durable: bool,
}

impl File {
    fn zeros(size: usize, is_name_durable: bool) -> Self {
        File { seen: vec![0; size], durable: vec![0; size], unsynced: Vec::new(), is_name_durable }
    }

    fn make_durable(&mut self, is_covered: impl Fn(u64) -> bool) {
        let (durable, unsynced) = (&mut self.durable, &mut self.unsynced);
        unsynced.retain(|write| {
            let is_covered = is_covered(write.number);
            if is_covered {
                durable[write.offset..][..write.octets.len()].copy_from_slice(&write.octets);
            }
            !is_covered
        });
    }
}

/// What was on its way when the machine or the process stopped.
pub enum InFlight<'a> {
    Write { slot: Slot, offset: usize, octets: &'a [u8] },
    Prepare { slot: Slot, is_new: bool, size: usize, header: &'a [u8] },
    Remove { slot: Slot },
}

/// The files of one log.
#[derive(Clone)]
pub struct Medium {
    random: Random,
    files: BTreeMap<Slot, File>,
    /// Removed, but not durably: a power cut may bring them back.
    ghosts: BTreeMap<Slot, File>,
    /// Octets that fit; `None`: enough.
    pub capacity: Option<usize>,
    pub faults: Faults,
    /// I/O of each kind so far.
    pub counts: [u64; 4],
    /// How many of them failed.
    pub failures_count: u64,
    next_number: u64,
    damaged: BTreeSet<(Slot, usize)>,
    /// How often it has lied.
    pub lies_count: u32,
}

impl Medium {
    pub fn new(random: Random, faults: Faults) -> Self {
        Medium {
            random,
            files: BTreeMap::new(),
            ghosts: BTreeMap::new(),
            capacity: None,
            faults,
            counts: [0; 4],
            failures_count: 0,
            next_number: 0,
            damaged: BTreeSet::new(),
            lies_count: 0,
        }
    }

    /// What a read of the file sees.
    pub fn seen(&self, slot: Slot) -> Option<&[u8]> {
        Some(&self.files.get(&slot)?.seen)
    }

    /// What of the file would survive if everything unsynced were lost.
    pub fn durable(&self, slot: Slot) -> Option<&[u8]> {
        Some(&self.files.get(&slot)?.durable)
    }

    /// What is left if the power goes now, everything unsynced is lost, and one file too.
    pub fn durable_without(&self, slot: Slot) -> BTreeMap<Slot, Vec<u8>> {
        let others = self.files.iter().filter(|(other, file)| **other != slot && file.is_name_durable);
        others.map(|(other, file)| (*other, file.durable.clone())).collect()
    }

    /// Every file as a read sees it.
    pub fn files(&self) -> impl Iterator<Item = (Slot, &[u8])> {
        self.files.iter().map(|(slot, file)| (*slot, &file.seen[..]))
    }

    /// Has the medium, by a lie, other octets here than were written?
    pub fn is_damaged(&self, slot: Slot, octets: Range<usize>) -> bool {
        (octets.start / SECTOR..octets.end.div_ceil(SECTOR))
            .any(|sector| self.damaged.contains(&(slot, sector)))
    }

    fn fails(&mut self, kind: Kind) -> Option<IoFailure> {
        let nth = self.counts[kind as usize];
        self.counts[kind as usize] += 1;
        let is_due =
            |fault: &Fault| fault.kind == kind && (nth == fault.nth || fault.is_for_ever && nth > fault.nth);
        let by_chance =
            self.random.one_in(self.faults.fails_one_in[kind as usize]).then_some(IoFailure::Failed);
        let failure = self.faults.fault.filter(is_due).map(|fault| fault.why).or(by_chance);
        self.failures_count += u64::from(failure.is_some());
        failure
    }

    /// Writes, and returns how many octets.
    pub fn write(&mut self, slot: Slot, offset: usize, octets: &[u8]) -> Result<usize, IoFailure> {
        if let Some(why) = self.fails(Kind::Write) {
            self.write_some(slot, offset, octets);
            return Err(why);
        }
        let mut size = octets.len();
        if self.random.one_in(self.faults.is_short_one_in) {
            size = self.random.index(size / SECTOR) * SECTOR;
        }
        if self.faults.lies_left > 0 && self.random.one_in(self.faults.lies_one_in) && size > 0 {
            self.faults.lies_left -= 1;
            self.lies_count += 1;
            self.lie(slot, offset, &octets[..size]);
        } else {
            self.store(slot, offset, &octets[..size]);
        }
        Ok(size)
    }

    fn store(&mut self, slot: Slot, offset: usize, octets: &[u8]) {
        // A write that is still in flight when its failed file is removed goes nowhere.
        let Some(file) = self.files.get_mut(&slot) else { return };
        let Some(seen) = file.seen.get_mut(offset..offset + octets.len()) else { return };
        seen.copy_from_slice(octets);
        file.unsynced.push(Unsynced { number: self.next_number, offset, octets: octets.to_vec() });
        self.next_number += 1;
        for sector in offset / SECTOR..(offset + octets.len()) / SECTOR {
            self.damaged.remove(&(slot, sector));
        }
    }

    /// Some of the sectors are written: all, none, those in front, or any.
    fn write_some(&mut self, slot: Slot, offset: usize, octets: &[u8]) {
        let count = octets.len() / SECTOR;
        let kept = match self.random.below(4) {
            0 => return,
            1 => count,
            _ => self.random.index(count + 1),
        };
        let is_prefix = self.random.one_in(2) || kept == count;
        for (i, sector) in octets.chunks(SECTOR).enumerate() {
            if if is_prefix { i < kept } else { self.random.one_in(2) } {
                self.store(slot, offset + i * SECTOR, sector);
            }
        }
    }

    /// Does something else than it was told, and remembers where.
    fn lie(&mut self, slot: Slot, offset: usize, octets: &[u8]) {
        let block = self.random.index(octets.len().div_ceil(BLOCK)) * BLOCK;
        let block = block..octets.len().min(block + BLOCK);
        let is_sector = self.random.one_in(2);
        let part = if is_sector {
            let sector = block.start + self.random.index(block.len() / SECTOR) * SECTOR;
            sector..sector + SECTOR
        } else {
            block.clone()
        };
        match self.random.below(4) {
            0 => {
                let mut flipped = octets.to_vec();
                flipped[part.start + self.random.index(part.len())] ^= 1 << self.random.below(8);
                self.store(slot, offset, &flipped);
                self.damage(slot, offset + part.start..offset + part.end);
            }
            1 => {
                let mut zeroed = octets.to_vec();
                zeroed[part.clone()].fill(0);
                self.store(slot, offset, &zeroed);
                self.damage(slot, offset + part.start..offset + part.end);
            }
            kind => {
                self.store(slot, offset, &octets[..part.start]);
                self.store(slot, offset + part.end, &octets[part.end..]);
                self.damage(slot, offset + part.start..offset + part.end);
                if kind == 3 {
                    let (other, at) = self.place(part.len());
                    self.store(other, at, &octets[part.clone()]);
                    self.damage(other, at..at + part.len());
                }
            }
        }
    }

    /// Somewhere on the medium, aligned to its size.
    fn place(&mut self, size: usize) -> (Slot, usize) {
        let nth = self.random.index(self.files.len());
        let (slot, file) = self.files.iter().nth(nth).expect("it is below their number");
        let count = (file.seen.len() / size).max(1);
        (*slot, self.random.index(count) * size)
    }

    fn damage(&mut self, slot: Slot, octets: Range<usize>) {
        self.damaged
            .extend((octets.start / SECTOR..octets.end.div_ceil(SECTOR)).map(|sector| (slot, sector)));
    }

    /// A sector that was written once goes bad: a bit of it, or all.
    pub fn rot(&mut self) {
        if self.files.is_empty() || self.faults.lies_left == 0 {
            return;
        }
        let (slot, at) = self.place(SECTOR);
        let is_bit = self.random.one_in(2);
        let bit = (self.random.index(SECTOR), 1 << self.random.below(8));
        let file = self.files.get_mut(&slot).expect("it was just found");
        let Some(sector) = file.durable.get(at..at + SECTOR) else { return };
        if sector.iter().all(|octet| *octet == 0) || file.seen[at..at + SECTOR] != *sector {
            return;
        }
        for octets in [&mut file.seen, &mut file.durable] {
            let sector = &mut octets[at..at + SECTOR];
            if is_bit { sector[bit.0] ^= bit.1 } else { sector.fill(0) }
        }
        self.faults.lies_left -= 1;
        self.lies_count += 1;
        self.damage(slot, at..at + SECTOR);
    }

    /// A sync begins: returns what it covers, for [`Medium::sync`]. Writes that complete later are not among it.
    pub fn begin_sync(&self) -> u64 {
        self.next_number
    }

    /// A sync ends.
    pub fn sync(&mut self, slot: Slot, covered: u64) -> Result<(), IoFailure> {
        let failure = self.fails(Kind::Sync);
        let random = &mut self.random;
        let Some(file) = self.files.get_mut(&slot) else { return failure.map_or(Ok(()), Err) };
        let Some(why) = failure else {
            file.make_durable(|number| number < covered);
            return Ok(());
        };
        match random.below(3) {
            0 => file.make_durable(|number| number < covered),
            // What fsync reports once and forgets: the dirty sectors are dropped, and the next sync succeeds. They are not seen any
            // more: direct writes leave nothing in the page cache.
            1 => {
                file.unsynced.clear();
                file.seen.clone_from(&file.durable);
            }
            _ => {}
        }
        Err(why)
    }

    /// Makes a segment ready, as `Io::Prepare` says.
    pub fn prepare(&mut self, slot: Slot, is_new: bool, size: usize, header: &[u8]) -> Result<(), IoFailure> {
        // What was written through before needs no space.
        if let Some(why) = self.fails(Kind::Prepare).filter(|why| is_new || *why != IoFailure::NoSpace) {
            self.prepare_some(slot, is_new, size, header);
            return Err(why);
        }
        if is_new {
            let others: usize =
                self.files.iter().filter(|(other, _)| **other != slot).map(|(_, f)| f.seen.len()).sum();
            let room = self.capacity.map_or(usize::MAX, |capacity| capacity.saturating_sub(others));
            if room < size {
                self.files.insert(slot, File::zeros(room / BLOCK * BLOCK, false));
                return Err(IoFailure::NoSpace);
            }
            self.files.insert(slot, File::zeros(size, true));
        }
        self.store(slot, 0, header);
        self.files.get_mut(&slot).expect("a free file is there").make_durable(|_| true);
        if is_new {
            self.sync_directory();
        }
        Ok(())
    }

    /// A part of a preparation.
    fn prepare_some(&mut self, slot: Slot, is_new: bool, size: usize, header: &[u8]) {
        let stage = self.random.below(4);
        if is_new && stage > 0 {
            let size = if stage == 1 { self.random.index(size + 1) } else { size };
            self.files.insert(slot, File::zeros(size, false));
        }
        match stage {
            3 if self.random.one_in(3) => {
                self.store(slot, 0, header);
                self.sync_quietly(slot);
            }
            2 if is_new => {}
            2 | 3 => self.write_some(slot, 0, header),
            _ => {}
        }
    }

    fn sync_quietly(&mut self, slot: Slot) {
        if let Some(file) = self.files.get_mut(&slot) {
            file.make_durable(|_| true);
        }
    }

    /// Removes the file and syncs the directory.
    pub fn remove(&mut self, slot: Slot) -> Result<(), IoFailure> {
        if let Some(why) = self.fails(Kind::Remove) {
            self.remove_some(slot);
            return Err(why);
        }
        self.files.remove(&slot);
        self.sync_directory();
        Ok(())
    }

    fn remove_some(&mut self, slot: Slot) {
        if self.random.one_in(2)
            && let Some(file) = self.files.remove(&slot)
        {
            self.ghosts.insert(slot, file);
        }
    }

    fn sync_directory(&mut self) {
        self.ghosts.clear();
        self.files.values_mut().for_each(|file| file.is_name_durable = true);
    }

    /// The process is killed, the machine goes on: what was in flight may be done, and the cache stays.
    pub fn kill<'a>(&mut self, in_flight: impl IntoIterator<Item = InFlight<'a>>) {
        for io in in_flight {
            match io {
                InFlight::Write { slot, offset, octets } => self.write_some(slot, offset, octets),
                InFlight::Prepare { slot, is_new, size, header } => {
                    self.prepare_some(slot, is_new, size, header)
                }
                InFlight::Remove { slot } => self.remove_some(slot),
            }
        }
    }

    /// The power goes.
    pub fn cut<'a>(&mut self, in_flight: impl IntoIterator<Item = InFlight<'a>>) {
        self.kill(in_flight);
        let random = &mut self.random;
        let manner = random.below(4);
        let survives = |random: &mut Random| match manner {
            0 => false,
            1 => true,
            _ => random.one_in(2),
        };
        for (slot, ghost) in std::mem::take(&mut self.ghosts) {
            if random.one_in(2) {
                self.files.entry(slot).or_insert(ghost);
            }
        }
        self.files.retain(|_, file| file.is_name_durable || random.one_in(2));
        for file in self.files.values_mut() {
            let mut versions: BTreeMap<usize, Vec<&[u8]>> = BTreeMap::new();
            for write in &file.unsynced {
                for (i, sector) in write.octets.chunks(SECTOR).enumerate() {
                    versions.entry(write.offset + i * SECTOR).or_default().push(sector);
                }
            }
            for (offset, versions) in versions {
                if survives(random) {
                    let kept = versions[random.index(versions.len())];
                    file.durable[offset..][..kept.len()].copy_from_slice(kept);
                }
            }
            file.unsynced.clear();
            file.seen.clone_from(&file.durable);
            file.is_name_durable = true;
        }
    }

    /// Before a log is read at start every file is synced, and the directory.
    pub fn sync_all(&mut self) {
        self.files.values_mut().for_each(|file| file.make_durable(|_| true));
        self.sync_directory();
    }

    /// As [`Medium::sync_all`], but the power goes in the middle of it.
    pub fn sync_some(&mut self) {
        let slots: Vec<Slot> = self.files.keys().copied().collect();
        for slot in slots {
            if self.random.one_in(2) {
                self.sync_quietly(slot);
            }
        }
        self.cut([]);
    }
}
