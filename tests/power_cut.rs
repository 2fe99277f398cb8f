//! The spool core over a simulated disk whose power is cut: at every step, with unsynced sectors kept, lost or torn at
//! random, with failing writes and syncs, and with restarts in between.
//!
//! Claims: every message that was reported stored is recovered whole, unless it was reported done; nothing is recovered
//! that was not appended whole; recovery finds nothing corrupt on a disk that keeps its promises.
//!
//! A failure prints its seed; `SEED=n cargo test --test power_cut` runs that one. `SEEDS=n` runs more.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use incoming::mail::{Arrival, Body, Envelope, ForwardPath, MessageId, Protocol, ReversePath};
use incoming::spool::format::{self, RecipientOutcome};
use incoming::spool::memory_disk::recover;
use incoming::spool::recovery::{Depth, Finding, Recovered};
use incoming::spool::{
    AppendError, Completion, Incoming, Io, IoFailure, Receiving, RecordPlace, Slot, Spool, SpoolConfig,
};

const SECTOR: usize = 512;
const CONFIG: SpoolConfig =
    SpoolConfig { segment_size: 256 * 1024, sync: true, page_size: 16 * 1024, pages_max: 8 };

/// xorshift64*: a run is decided by its seed alone.
#[derive(Clone)]
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}

/// Files with a volatile cache in front: a sector is what was synced, or any of what was written since.
#[derive(Default)]
struct Disk {
    files: BTreeMap<Slot, File>,
}

#[derive(Default)]
struct File {
    durable: Vec<u8>,
    cached: BTreeMap<usize, Vec<Vec<u8>>>,
}

impl Disk {
    fn write(&mut self, slot: Slot, offset: usize, octets: &[u8]) {
        // A write that is still in flight when its failed file is removed goes nowhere.
        let Some(file) = self.files.get_mut(&slot) else { return };
        for (i, sector) in octets.chunks(SECTOR).enumerate() {
            file.cached.entry(offset / SECTOR + i).or_default().push(sector.to_vec());
        }
    }

    fn sync(&mut self, slot: Slot) {
        let Some(file) = self.files.get_mut(&slot) else { return };
        for (sector, versions) in std::mem::take(&mut file.cached) {
            file.durable[sector * SECTOR..][..SECTOR]
                .copy_from_slice(versions.last().expect("a version was pushed"));
        }
    }

    /// The power goes: of each unsynced sector any version survives, or the durable one.
    fn cut(&mut self, random: &mut Random) {
        let all_lost = random.one_in(3);
        for file in self.files.values_mut() {
            for (sector, versions) in std::mem::take(&mut file.cached) {
                let kept = random.below(versions.len() as u64 + 1) as usize;
                if kept > 0 && !all_lost {
                    file.durable[sector * SECTOR..][..SECTOR].copy_from_slice(&versions[kept - 1]);
                }
            }
        }
    }

    /// What was written and not lost, synced or not.
    fn read(&self, place: &RecordPlace) -> Option<Vec<u8>> {
        let file = self.files.get(&place.slot)?;
        let (first, end) = (place.offset as usize / SECTOR, (place.offset + place.size) as usize);
        let mut octets = Vec::new();
        for sector in first..end.div_ceil(SECTOR) {
            let cached = file.cached.get(&sector).and_then(|versions| versions.last());
            octets.extend_from_slice(
                cached.map_or(&file.durable[sector * SECTOR..][..SECTOR], |sector| sector),
            );
        }
        let start = place.offset as usize - first * SECTOR;
        Some(octets[start..start + place.size as usize].to_vec())
    }

    /// The process is killed, the machine goes on: the cache reaches the disk.
    fn settle(&mut self) {
        let slots: Vec<Slot> = self.files.keys().copied().collect();
        slots.into_iter().for_each(|slot| self.sync(slot));
    }

    fn recover(&self) -> Recovered {
        let files = self.files.iter().map(|(slot, file)| (*slot, file.durable.clone())).collect();
        let (quick, whole) = (recover(&files, Depth::Quick), recover(&files, Depth::Whole));
        assert!(quick.messages.keys().eq(whole.messages.keys()), "an index tells what the records tell");
        quick
    }

    /// A recovered message's content, put together from its records.
    fn content(&self, recovered: &Recovered, sequence: u64) -> Vec<u8> {
        let record = |epoch: u64, offset: u32| {
            let segment =
                recovered.segments.iter().find(|s| s.epoch == epoch).expect("its segment was recovered");
            let octets = &self.files[&segment.slot].durable[offset as usize..];
            format::decode_record(octets, segment.life).expect("its record is valid").1
        };
        let entry = &recovered.messages[&sequence];
        let payload = record(entry.location.epoch, entry.location.offset);
        let message = format::MessagePayload::decode(payload).expect("its payload is well-formed");
        let mut content = message.trace.to_vec();
        message.pieces.iter().for_each(|piece| content.extend_from_slice(record(piece.epoch, piece.offset)));
        content.extend_from_slice(message.tail);
        content
    }
}

fn envelope(recipients: usize) -> (Envelope, Arrival) {
    let forward_paths =
        (0..recipients).map(|i| ForwardPath::parse(&format!("r{i}@example.com"), false).unwrap());
    let envelope = Envelope {
        reverse_path: ReversePath::Null,
        forward_paths: forward_paths.collect(),
        body: Body::SevenBit,
        smtputf8: false,
    };
    let arrival = Arrival {
        peer: "127.0.0.1:25".parse().unwrap(),
        hello: "c.example".into(),
        protocol: Protocol::Esmtp,
        unix_time: 1,
    };
    (envelope, arrival)
}

/// What the outside world knows.
#[derive(Default)]
struct Ledger {
    /// Whole content of every message ever appended: the numbers of messages that were cut may come again.
    appended: BTreeMap<u64, Vec<Vec<u8>>>,
    /// Reported stored and not done.
    stored: BTreeSet<u64>,
    /// Handed off; outcomes were given, but may not be durable yet.
    maybe_done: BTreeSet<u64>,
}

struct Upload {
    receiving: Receiving,
    content: Vec<u8>,
    pieces_left: u64,
    size: u64,
}

struct World {
    random: Random,
    disk: Disk,
    ledger: Ledger,
    now: Instant,
    faults: bool,
    stored_count: usize,
}

impl World {
    fn life(&mut self, steps: u64, recovered: Recovered) {
        let mut entropy = Random(self.random.next() | 1);
        let make_page = Box::new(|| vec![0xEE; CONFIG.page_size]);
        let mut spool =
            Spool::new(CONFIG, recovered, make_page, Box::new(move || entropy.next()), (self.now, 0));
        let mut in_flight: Vec<Io<Vec<u8>>> = Vec::new();
        let mut uploads: Vec<Upload> = Vec::new();
        let mut handed_off: Vec<u64> = Vec::new();
        for _ in 0..steps {
            self.now += Duration::from_millis(self.random.below(10));
            match self.random.below(8) {
                0 | 1 => {
                    let size = if self.random.one_in(4) { 40_000 } else { 3_000 };
                    let (pieces_left, size) = (self.random.below(4), self.random.below(size));
                    uploads.push(Upload {
                        receiving: Receiving::default(),
                        content: Vec::new(),
                        pieces_left,
                        size,
                    });
                }
                2..=4 if !uploads.is_empty() => self.advance(&mut spool, &mut uploads),
                5 if !handed_off.is_empty() => {
                    let at = self.random.below(handed_off.len() as u64) as usize;
                    self.end_attempt(&mut spool, handed_off.swap_remove(at));
                }
                _ if !in_flight.is_empty() => {
                    let at = self.random.below(in_flight.len() as u64) as usize;
                    let io = in_flight.swap_remove(at);
                    let completion = self.perform(io);
                    spool.handle_io(completion, self.now);
                }
                _ => {}
            }
            while let Some(io) = spool.poll_io(self.now) {
                in_flight.push(io);
            }
            while let Some((sequence, is_stored)) = spool.poll_stored() {
                if is_stored {
                    self.stored_count += 1;
                    assert!(self.ledger.stored.insert(sequence), "{sequence} was reported stored twice");
                }
            }
            if self.random.one_in(2)
                && let Some(sequence) = spool.next_of_backlog(self.now)
            {
                spool.hand_off(sequence);
                handed_off.push(sequence);
            }
        }
        // Writes that were asked for and not answered may have been performed, wholly or in part.
        for io in in_flight {
            if let Io::Write { slot, offset, size, page } = io {
                self.disk.write(slot, offset as usize, &page[..size as usize]);
            }
        }
    }

    fn advance(&mut self, spool: &mut Spool<Vec<u8>>, uploads: &mut Vec<Upload>) {
        let at = self.random.below(uploads.len() as u64) as usize;
        if self.random.one_in(10) {
            spool.abandon(&mut uploads.swap_remove(at).receiving);
            return;
        }
        let upload = &mut uploads[at];
        let fill = self.random.next() as u8;
        let part = vec![fill; upload.size as usize];
        if upload.pieces_left > 0 {
            match spool.append_piece(&mut upload.receiving, &part) {
                Ok(()) => {
                    upload.content.extend_from_slice(&part);
                    upload.pieces_left -= 1;
                }
                Err(AppendError::Busy) => {}
                Err(_) => spool.abandon(&mut uploads.swap_remove(at).receiving),
            }
            return;
        }
        let recipients = 1 + self.random.below(3) as usize;
        let (envelope, arrival) = envelope(recipients);
        let message = Incoming { envelope: &envelope, arrival: &arrival, tail: &part };
        let trace = |id: MessageId| format!("Received: id {id}\r\n").into_bytes();
        match spool.append_message(&mut upload.receiving, message, trace) {
            Ok((id, trace)) => {
                let upload = uploads.swap_remove(at);
                let content = [trace, upload.content, part].concat();
                self.ledger.appended.entry(id.sequence).or_default().push(content);
            }
            Err(AppendError::Busy) => {}
            Err(_) => spool.abandon(&mut uploads.swap_remove(at).receiving),
        }
    }

    fn end_attempt(&mut self, spool: &mut Spool<Vec<u8>>, sequence: u64) {
        let entry = spool.entry(sequence).expect("a message handed off is in the ledger");
        let indices: Vec<u32> = match entry.outstanding() {
            Some(left) => left.iter().map(|o| o.index).collect(),
            None => (0..entry.recipient_count).collect(),
        };
        let mut outcomes = Vec::new();
        for index in indices {
            let is_done = !self.random.one_in(4);
            let reason = "451 later".into();
            outcomes.push(RecipientOutcome { index, is_done, attempts: 1, next_attempt: 1, reason });
        }
        spool.handle_outcome(sequence, &outcomes, self.now, 0);
        if spool.entry(sequence).is_none() {
            self.ledger.maybe_done.insert(sequence);
        }
    }

    fn perform(&mut self, io: Io<Vec<u8>>) -> Completion {
        let fails = self.faults && self.random.one_in(60);
        let result = if fails { Err(IoFailure::Failed) } else { Ok(()) };
        match io {
            Io::Prepare { slot, is_new, size, header } => {
                if is_new {
                    let file = File { durable: vec![0; size as usize], cached: BTreeMap::new() };
                    assert!(self.disk.files.insert(slot, file).is_none(), "a new file has a new name");
                }
                self.disk.write(slot, 0, &header);
                if !fails {
                    self.disk.sync(slot);
                }
                Completion::Prepared { slot, result }
            }
            Io::Write { slot, offset, size, page } => {
                if !fails || self.random.one_in(2) {
                    self.disk.write(slot, offset as usize, &page[..size as usize]);
                }
                Completion::Written { slot, offset, result }
            }
            Io::Read { places } => {
                let records = places.iter().map(|place| self.disk.read(place)).collect();
                Completion::Read { records }
            }
            Io::Sync { slot } => {
                if !fails || self.random.one_in(2) {
                    self.disk.sync(slot);
                } else {
                    // What fsync reports once and forgets: the dirty sectors are dropped, the next sync succeeds.
                    self.disk.files.entry(slot).and_modify(|file| file.cached.clear());
                }
                Completion::Synced { slot, result }
            }
            Io::Remove { slot } => {
                if !fails {
                    self.disk.files.remove(&slot);
                }
                Completion::Removed { slot, result }
            }
        }
    }

    fn check(&mut self, recovered: &Recovered) {
        for sequence in self.ledger.stored.difference(&self.ledger.maybe_done) {
            assert!(
                recovered.messages.contains(*sequence),
                "message {sequence} was acknowledged and is lost"
            );
        }
        for sequence in recovered.messages.keys() {
            let content = self.disk.content(recovered, sequence);
            let appended = self.ledger.appended.get(&sequence).expect("only appended messages are recovered");
            assert!(appended.contains(&content), "message {sequence} was recovered with other content");
        }
        let is_harmless = |finding: &Finding| !finding.is_damage();
        assert!(
            recovered.findings.iter().all(is_harmless),
            "a good disk has no damage: {:?}",
            recovered.findings
        );
        // What was not acknowledged and was recovered all the same is ours now; what was cut is gone.
        self.ledger.stored = recovered.messages.keys().collect();
        self.ledger.maybe_done.clear();
    }
}

fn run(seed: u64, faults: bool) -> usize {
    let mut world = World {
        random: Random(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1),
        disk: Disk::default(),
        ledger: Ledger::default(),
        now: Instant::now(),
        faults,
        stored_count: 0,
    };
    for _ in 0..4 {
        let recovered = world.disk.recover();
        let steps = 1 + world.random.below(600);
        world.life(steps, recovered);
        if world.random.one_in(4) {
            world.disk.settle();
        } else {
            let mut random = Random(world.random.next() | 1);
            world.disk.cut(&mut random);
        }
        let recovered = world.disk.recover();
        world.check(&recovered);
    }
    world.stored_count
}

fn seeds(faults: bool) {
    let number = |name: &str| std::env::var(name).ok().map(|v| v.parse::<u64>().expect("a number"));
    let seeds = match number("SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("SEEDS").unwrap_or(300),
    };
    let mut stored_count = 0;
    for seed in seeds {
        match std::panic::catch_unwind(|| run(seed, faults)) {
            Ok(stored) => stored_count += stored,
            Err(panic) => {
                eprintln!("replay with: SEED={seed} cargo test --test power_cut");
                std::panic::resume_unwind(panic);
            }
        }
    }
    assert!(stored_count > 0, "the runs must exercise the promise");
    println!("{stored_count} messages were reported stored");
}

#[test]
fn acknowledged_messages_survive_any_cut() {
    seeds(false);
}

#[test]
fn acknowledged_messages_survive_failing_writes_and_syncs() {
    seeds(true);
}
