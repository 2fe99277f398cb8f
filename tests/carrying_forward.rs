//! Carrying forward under power cuts, failed writes and failed reads: most messages are delivered at once, some wait long or are held, and
//! the log goes round beneath them. Now and then one is dropped.
//!
//! Claims, after every recovery: a message that was reported stored and not reported done is there once, whole, and what is
//! known of its recipients (who is left, attempts, reason, next attempt; whether it is held) is a state it had at or after the last moment
//! when everything was durable, and after the last order that was settled; nothing else is there but what was appended whole. What is
//! held is in no backlog. While nothing fails, the disk holds at most twice what is
//! needed and a few segments, and what a delivery reads stays what it was.
//!
//! A failure prints its seed; `SEED=n cargo test --test carrying_forward` runs that one. `SEEDS=n` runs more.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use incoming::mail::MessageId;
use incoming::spool::format::{self, Made, MessagePayload, Order, OrderKind, PieceRef, RecipientOutcome};
use incoming::spool::memory_disk::{mail, recover};
use incoming::spool::recovery::{Depth, Recovered};
use incoming::spool::{
    AppendError, Completion, Incoming, Io, IoFailure, Location, Obeyed, Receiving, RecordPlace, Slot, Spool,
    SpoolConfig,
};
use incoming::spool::{Entry, Lane};

const SECTOR: usize = 512;
/// What a log may have beyond twice what is needed: sparse segments, the one being emptied, the one being filled, the prepared
/// one, free ones.
const SEGMENTS_BEYOND: usize = 4 + 2 + 1 + 4;

/// xorshift64*: a run is decided by its seed alone.
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

/// A file with a volatile cache in front: a sector is what was synced, or any of what was written since.
#[derive(Default)]
struct File {
    durable: Vec<u8>,
    cached: BTreeMap<usize, Vec<Vec<u8>>>,
}

impl File {
    fn write(&mut self, offset: usize, octets: &[u8]) {
        for (i, sector) in octets.chunks(SECTOR).enumerate() {
            self.cached.entry(offset / SECTOR + i).or_default().push(sector.to_vec());
        }
    }

    fn sync(&mut self) {
        for (sector, versions) in std::mem::take(&mut self.cached) {
            self.durable[sector * SECTOR..][..SECTOR].copy_from_slice(&versions[versions.len() - 1]);
        }
    }

    fn read(&self, offset: u32, size: u32) -> Option<Vec<u8>> {
        let mut octets = self.durable.get(offset as usize..)?.get(..size as usize)?.to_vec();
        let (first, end) = (offset as usize, (offset + size) as usize);
        for (sector, versions) in self.cached.range(first / SECTOR..end.div_ceil(SECTOR)) {
            let (from, to) = ((sector * SECTOR).max(first), ((sector + 1) * SECTOR).min(end));
            let newest = &versions[versions.len() - 1];
            octets[from - first..to - first]
                .copy_from_slice(&newest[from - sector * SECTOR..to - sector * SECTOR]);
        }
        Some(octets)
    }
}

/// Who is left, how often each was tried, and why the last attempt did not deliver; when the next one is.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Progress {
    left: Vec<(u32, u32, String)>,
    next_attempt: u64,
    is_held: bool,
}

/// What the outside world knows of a message.
struct Known {
    content: Vec<u8>,
    is_stored: bool,
    /// Its sender was told so; until the record that voids it is durable, it may come back all the same.
    is_refused: bool,
    /// `None`: done.
    states: Vec<Option<Progress>>,
    /// States in front of this were left behind durably.
    floor: usize,
}

struct Upload {
    receiving: Receiving,
    content: Vec<u8>,
    pieces_left: u64,
}

/// What a delivery has opened.
struct Reading {
    sequence: u64,
    records: Vec<(Slot, u64, Location)>,
}

struct World {
    random: Random,
    config: SpoolConfig,
    files: BTreeMap<Slot, File>,
    known: BTreeMap<u64, Vec<Known>>,
    /// Orders that are not settled: their numbers, the messages, and the states that they led to.
    orders: Vec<(u64, u64, usize)>,
    now: Instant,
    start: Instant,
    fails: bool,
    carried: u64,
    /// How many orders were settled, and kept by a restart.
    ordered: u64,
}

const UNIX_START: u64 = 1_700_000_000;

impl World {
    fn unix_now(&self) -> u64 {
        UNIX_START + (self.now - self.start).as_secs()
    }

    fn known(&mut self, sequence: u64) -> &mut Known {
        self.known.get_mut(&sequence).expect("it was appended").last_mut().expect("it was appended")
    }

    fn life(&mut self, steps: u64, recovered: Recovered) {
        let mut entropy = Random(self.random.next() | 1);
        let page_size = self.config.page_size;
        let mut spool = Spool::new(
            self.config,
            recovered,
            Box::new(move || vec![0xEE; page_size]),
            Box::new(move || entropy.next()),
            (self.now, self.unix_now()),
        );
        let (mut in_flight, mut uploads, mut readings) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..steps {
            self.now += Duration::from_millis(self.random.below(30));
            match self.random.below(10) {
                0 => uploads.push(Upload {
                    receiving: Receiving::default(),
                    content: Vec::new(),
                    pieces_left: [0, 0, 0, 2, 9][self.random.below(5) as usize],
                }),
                1..=3 if !uploads.is_empty() => self.advance(&mut spool, &mut uploads),
                4 | 5 if !readings.is_empty() => {
                    let at = self.random.below(readings.len() as u64) as usize;
                    self.end_attempt(&mut spool, readings.swap_remove(at));
                }
                7 if self.random.one_in(4) => self.order(&mut spool),
                6 if self.random.one_in(40) => {
                    self.settle(&mut spool, &mut in_flight);
                    if !self.fails {
                        self.check_disk_use(&spool);
                    }
                }
                _ if !in_flight.is_empty() => {
                    let at = self.random.below(in_flight.len() as u64) as usize;
                    let io = in_flight.swap_remove(at);
                    let completion = self.perform(io);
                    spool.handle_io(completion, self.now);
                }
                _ => {}
            }
            self.poll(&mut spool, &mut in_flight);
            if self.random.one_in(2)
                && let Some(sequence) = spool.next_of_backlog(Lane::UNROUTED, self.now)
            {
                spool.hand_off(sequence, Lane::UNROUTED);
                let entry = spool.entry(sequence).expect("it is in the backlog");
                assert!(!entry.is_held(), "{sequence} is held and offered");
                let place = |p: &PieceRef| Location {
                    epoch: p.epoch,
                    offset: p.offset,
                    size: p.record_size() as u32,
                };
                let records = entry.pieces.iter().map(place).chain([entry.location]);
                let open = |location: Location| {
                    let (slot, life) = spool.segment(location.epoch).expect("it is needed");
                    (slot, life, location)
                };
                readings.push(Reading { sequence, records: records.map(open).collect() });
            }
        }
        self.orders.clear();
        self.carried += spool.counters().carried;
        if self.random.one_in(6) && !self.fails {
            while !spool.is_idle() {
                spool.finish(self.now);
                self.settle(&mut spool, &mut in_flight);
            }
        }
        // What was asked for and not answered may have been performed, wholly or in part.
        for io in in_flight {
            match io {
                Io::Write { slot, offset, size, page } => {
                    if let Some(file) = self.files.get_mut(&slot) {
                        file.write(offset as usize, &page[..size as usize]);
                    }
                }
                Io::Prepare { slot, is_new: true, size, .. } => {
                    let size = self.random.below(u64::from(size) / 512) as usize * 512;
                    self.files.insert(slot, File { durable: vec![0; size], cached: BTreeMap::new() });
                }
                Io::Prepare { slot, header, .. } => {
                    self.files.get_mut(&slot).expect("it is used again").write(0, &header);
                }
                Io::Remove { slot } if self.random.one_in(2) => drop(self.files.remove(&slot)),
                _ => {}
            }
        }
    }

    fn poll(&mut self, spool: &mut Spool<Vec<u8>>, in_flight: &mut Vec<Io<Vec<u8>>>) {
        while let Some(io) = spool.poll_io(self.now) {
            in_flight.push(io);
        }
        while let Some((sequence, is_stored)) = spool.poll_stored() {
            let known = self.known(sequence);
            (known.is_stored, known.is_refused) = (is_stored, !is_stored);
        }
        let settled = spool.orders().settled;
        for (_, sequence, state) in self.orders.extract_if(.., |(number, ..)| *number <= settled) {
            if let Some(known) = self.known.get_mut(&sequence).and_then(|candidates| candidates.last_mut()) {
                known.floor = known.floor.max(state);
                self.ordered += 1;
            }
        }
        assert_eq!(spool.poll_damaged(), None, "nothing is damaged");
        let due = spool.poll_timeout();
        assert!(due.is_none_or(|due| due > self.now), "a driver would turn in a circle");
    }

    /// Everything is done that is wanted, until nothing is for a while.
    fn settle(&mut self, spool: &mut Spool<Vec<u8>>, in_flight: &mut Vec<Io<Vec<u8>>>) {
        let fails = std::mem::replace(&mut self.fails, false);
        let mut quiet = 0;
        for round in 0.. {
            assert!(round < 100_000, "it never comes to rest");
            self.poll(spool, in_flight);
            if in_flight.is_empty() {
                quiet += 1;
                if quiet > 4 {
                    break;
                }
                self.now += Duration::from_millis(1100);
            }
            for io in std::mem::take(in_flight) {
                quiet = 0;
                let completion = self.perform(io);
                spool.handle_io(completion, self.now);
            }
        }
        self.fails = fails;
        if !spool.is_accepting() {
            return;
        }
        for candidates in self.known.values_mut() {
            candidates.retain(|known| !known.is_refused);
            candidates.iter_mut().for_each(|known| known.floor = known.states.len() - 1);
        }
        self.known.retain(|_, candidates| !candidates.is_empty());
    }

    fn check_disk_use(&self, spool: &Spool<Vec<u8>>) {
        let (_, live) = spool.disk_use();
        let used: usize = self.files.values().map(|file| file.durable.len()).sum();
        let bound = 2 * live as usize + SEGMENTS_BEYOND * self.config.segment_size as usize;
        assert!(used <= bound, "{used} octets on the disk, {live} are needed");
    }

    fn advance(&mut self, spool: &mut Spool<Vec<u8>>, uploads: &mut Vec<Upload>) {
        let at = self.random.below(uploads.len() as u64) as usize;
        if self.random.one_in(30) {
            spool.abandon(&mut uploads.swap_remove(at).receiving);
            return;
        }
        let upload = &mut uploads[at];
        let size = if self.random.one_in(5) { 20_000 } else { 2_000 };
        let part = vec![self.random.next() as u8; self.random.below(size) as usize];
        let appended = if upload.pieces_left > 0 {
            spool.append_piece(&mut upload.receiving, &part).map(|()| {
                upload.content.extend_from_slice(&part);
                upload.pieces_left -= 1;
            })
        } else {
            let (envelope, arrival) = mail(1 + self.random.below(3) as usize);
            let message = Incoming { envelope: &envelope, arrival: &arrival, tail: &part };
            let trace = |id: MessageId| format!("Received: id {id}\r\n").into_bytes();
            spool.append_message(&mut upload.receiving, message, trace).map(|(id, trace)| {
                let upload = uploads.swap_remove(at);
                let content = [trace, upload.content, part].concat();
                let left = everybody(envelope.forward_paths.len());
                let fresh = Progress { left, next_attempt: 0, is_held: false };
                let states = vec![Some(fresh)];
                let known = Known { content, is_stored: false, is_refused: false, states, floor: 0 };
                self.known.entry(id.sequence).or_default().push(known);
            })
        };
        match appended {
            Ok(()) | Err(AppendError::Busy) => {}
            Err(_) => spool.abandon(&mut uploads.swap_remove(at).receiving),
        }
    }

    /// The operator orders something of some message that is there.
    fn order(&mut self, spool: &mut Spool<Vec<u8>>) {
        let from = self.known.keys().next_back().map_or(0, |last| self.random.below(last + 1));
        let found = spool.entries_from(from).next();
        let Some((sequence, was_held)) = found.map(|(sequence, entry)| (sequence, entry.is_held())) else {
            return;
        };
        let kind = match self.random.below(8) {
            0 => OrderKind::Drop,
            1 => OrderKind::Retry,
            2..=4 => OrderKind::Release,
            _ => OrderKind::Hold,
        };
        let order = Order { kind, unix_millis: self.random.next(), by: "operator".into(), note: "".into() };
        let obeyed = spool.order(sequence, None, &Arc::new(order), self.now);
        let is_held = spool.entry(sequence).is_some_and(Entry::is_held);
        let expected = match kind {
            OrderKind::Drop => (Obeyed::Yes, false),
            OrderKind::Hold => (if was_held { Obeyed::Nothing } else { Obeyed::Yes }, true),
            OrderKind::Release => (if was_held { Obeyed::Yes } else { Obeyed::Nothing }, false),
            OrderKind::Retry => (obeyed, was_held),
        };
        assert_eq!((obeyed, is_held), expected, "{kind:?}");
        assert_eq!(spool.entry(sequence).is_none(), kind == OrderKind::Drop);
        if obeyed == Obeyed::Yes && kind != OrderKind::Retry {
            let states = &mut self.known(sequence).states;
            let progress = states.last().cloned().flatten().expect("it is not done");
            states.push((kind != OrderKind::Drop).then_some(Progress { is_held, ..progress }));
            let state = states.len() - 1;
            self.orders.push((spool.orders().given, sequence, state));
        }
        if self.random.one_in(2) {
            spool.hurry_orders(self.now);
        }
    }

    fn end_attempt(&mut self, spool: &mut Spool<Vec<u8>>, reading: Reading) {
        let Reading { sequence, records } = reading;
        for (slot, life, Location { offset, size, .. }) in records {
            // Where the file is gone, the delivery has it open.
            let Some(file) = self.files.get(&slot) else { continue };
            let octets = file.read(offset, size).expect("within the file");
            assert!(
                format::decode_record(&octets, life).is_some(),
                "{sequence}: written over while it is read"
            );
        }
        let unix_now = self.unix_now();
        let is_done = !self.random.one_in(8);
        let state =
            self.known.get(&sequence).and_then(|candidates| candidates.last()?.states.last()?.clone());
        // It may have been dropped meanwhile: what is reported then changes nothing.
        let Some(mut progress) = state else {
            assert!(spool.entry(sequence).is_none());
            spool.take_back(sequence, Lane::UNROUTED);
            return;
        };
        let mut outcomes = Vec::new();
        for (index, attempts, why) in &mut progress.left {
            // Of several, some are left for later.
            if !is_done && self.random.one_in(3) && *index > 0 {
                continue;
            }
            let reason = format!("451 4.3.{index} busy {}", self.random.below(5));
            let is_done = is_done || self.random.one_in(4);
            *attempts += 1;
            let next_attempt = if is_done { 0 } else { unix_now + 1 + self.random.below(4000) };
            let outcome = RecipientOutcome {
                index: *index,
                is_done,
                is_given_up: false,
                attempts: *attempts,
                next_attempt,
                reason: reason.clone().into(),
            };
            outcomes.push(outcome);
            *why = reason;
        }
        if outcomes.is_empty() {
            let (index, attempts, _) = &progress.left[0];
            outcomes.push(RecipientOutcome {
                index: *index,
                is_done: true,
                is_given_up: false,
                attempts: attempts + 1,
                next_attempt: 0,
                reason: "".into(),
            });
        }
        progress.left.retain(|(index, ..)| !outcomes.iter().any(|o| o.is_done && o.index == *index));
        let times = outcomes.iter().filter(|o| !o.is_done).map(|o| o.next_attempt);
        progress.next_attempt = times.min().unwrap_or(0);
        spool.handle_outcome(sequence, Lane::UNROUTED, Made::default(), &outcomes, (self.now, unix_now));
        assert_eq!(spool.entry(sequence).is_none(), progress.left.is_empty());
        let state = Some(progress).filter(|progress| !progress.left.is_empty());
        self.known(sequence).states.push(state);
    }

    fn perform(&mut self, io: Io<Vec<u8>>) -> Completion {
        let fails = self.fails && self.random.one_in(60);
        let result = if fails { Err(IoFailure::Failed) } else { Ok(()) };
        let is_half_done = self.random.one_in(2);
        match io {
            Io::Prepare { slot, is_new, size, header } => {
                if is_new {
                    let file = File { durable: vec![0; size as usize], cached: BTreeMap::new() };
                    assert!(self.files.insert(slot, file).is_none(), "a new file has a new name");
                }
                let file = self.files.get_mut(&slot).expect("it is there");
                file.write(0, &header);
                if !fails {
                    file.sync();
                }
                Completion::Prepared { slot, result }
            }
            Io::Write { slot, offset, size, page } => {
                if let Some(file) = self.files.get_mut(&slot).filter(|_| !fails || is_half_done) {
                    file.write(offset as usize, &page[..size as usize]);
                }
                Completion::Written { slot, offset, result }
            }
            Io::Read { places } => {
                let read = |place: &RecordPlace| {
                    let is_short = self.fails && self.random.one_in(40);
                    let file = self.files.get(&place.slot).filter(|_| !is_short)?;
                    file.read(place.offset, place.size)
                };
                Completion::Read { records: places.iter().map(read).collect() }
            }
            Io::Sync { slot } => {
                if let Some(file) = self.files.get_mut(&slot) {
                    if fails && !is_half_done {
                        file.cached.clear();
                    } else {
                        file.sync();
                    }
                }
                Completion::Synced { slot, result }
            }
            Io::Remove { slot } => {
                if !fails {
                    self.files.remove(&slot);
                }
                Completion::Removed { slot, result }
            }
        }
    }

    /// The power goes: of each unsynced sector any version survives, or the durable one.
    fn cut(&mut self) {
        let all_lost = self.random.one_in(3);
        for file in self.files.values_mut() {
            for (sector, versions) in std::mem::take(&mut file.cached) {
                let kept = self.random.below(versions.len() as u64 + 1) as usize;
                if kept > 0 && !all_lost {
                    file.durable[sector * SECTOR..][..SECTOR].copy_from_slice(&versions[kept - 1]);
                }
            }
        }
    }

    fn recover(&self) -> Recovered {
        let files = self.files.iter().map(|(slot, file)| (*slot, file.durable.clone())).collect();
        let (quick, whole) = (recover(&files, Depth::Quick), recover(&files, Depth::Whole));
        let facts = |recovered: &Recovered| -> Vec<_> {
            let of = |message: &Entry| {
                let left = message.outstanding();
                (message.location, message.pieces.clone(), left, message.due(), message.hold().cloned())
            };
            recovered.messages.iter().map(|(sequence, message)| (sequence, of(message))).collect()
        };
        assert_eq!(facts(&quick), facts(&whole), "an index tells what the records tell");
        assert_eq!(quick.next_sequence, whole.next_sequence);
        assert_eq!(quick.voids, whole.voids);
        quick
    }

    fn check(&mut self, recovered: &Recovered) {
        let damage: Vec<_> = recovered.findings.iter().filter(|finding| finding.is_damage()).collect();
        assert!(damage.is_empty(), "a good disk has no damage: {damage:?}");
        for (sequence, message) in recovered.messages.iter() {
            let content = self.content(recovered, sequence);
            let next_attempt = message.due().unwrap_or(0) / 1000;
            let left: Vec<_> = message
                .outstanding()
                .iter()
                .map(|(_, o)| (o.index, o.attempts, o.reason.as_deref().unwrap_or_default().to_owned()))
                .collect();
            let candidates = self.known.get_mut(&sequence).expect("only what was appended is recovered");
            candidates.retain(|known| known.content == content);
            let known = candidates.last_mut().expect("with its own content");
            // The time is not promised while an attempt is being made.
            let fits = |state: &Option<Progress>| {
                state.as_ref().is_some_and(|state| {
                    state.left == left
                        && state.is_held == message.is_held()
                        && (next_attempt == 0 || state.next_attempt.abs_diff(next_attempt) <= 1)
                })
            };
            let found = known.states[known.floor..].iter().position(fits);
            let found = found.unwrap_or_else(|| {
                let (is_held, states) = (message.is_held(), &known.states[known.floor..]);
                panic!("{sequence} was never {left:?} {next_attempt} {is_held}: {states:?}")
            });
            let mut state = known.states[known.floor + found].clone().expect("it fits");
            state.next_attempt = next_attempt;
            let states = vec![Some(state)];
            *known = Known { content, is_stored: true, is_refused: false, states, floor: 0 };
        }
        let kept: BTreeSet<u64> = recovered.messages.keys().collect();
        for (sequence, candidates) in &self.known {
            let is_lost =
                |known: &Known| known.is_stored && known.states[known.floor..].iter().all(Option::is_some);
            assert!(
                kept.contains(sequence) || !candidates.iter().any(is_lost),
                "message {sequence} was acknowledged and is lost"
            );
        }
        self.known.retain(|sequence, _| kept.contains(sequence));
    }

    /// A recovered message's content, put together from its records.
    fn content(&self, recovered: &Recovered, sequence: u64) -> Vec<u8> {
        let record = |epoch: u64, offset: u32| {
            let segment = recovered.segments.iter().find(|s| s.epoch == epoch).expect("its segment is there");
            let octets = &self.files[&segment.slot].durable[offset as usize..];
            format::decode_record(octets, segment.life).expect("its record is valid").1
        };
        let location = recovered.messages[&sequence].location;
        let message =
            MessagePayload::decode(record(location.epoch, location.offset)).expect("it is well-formed");
        let mut content = message.trace.to_vec();
        message.pieces.iter().for_each(|piece| content.extend_from_slice(record(piece.epoch, piece.offset)));
        content.extend_from_slice(message.tail);
        content
    }
}

fn everybody(count: usize) -> Vec<(u32, u32, String)> {
    (0..count as u32).map(|index| (index, 0, String::new())).collect()
}

fn run(seed: u64, fails: bool) -> (u64, u64) {
    let mut random = Random(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1);
    let (page_size, pages_max) = [(16 << 10, 8), (8 << 10, 9), (4 << 10, 20)][random.below(3) as usize];
    let segment_size = [128 << 10, 160 << 10, 256 << 10][random.below(3) as usize];
    let now = Instant::now();
    let mut world = World {
        random,
        config: SpoolConfig { segment_size, sync: true, page_size, pages_max },
        files: BTreeMap::new(),
        known: BTreeMap::new(),
        orders: Vec::new(),
        now,
        start: now,
        fails,
        carried: 0,
        ordered: 0,
    };
    for _ in 0..4 {
        let recovered = world.recover();
        let steps = 1 + world.random.below(6000);
        world.life(steps, recovered);
        match world.random.one_in(4) {
            true => world.files.values_mut().for_each(File::sync),
            false => world.cut(),
        }
        let recovered = world.recover();
        world.check(&recovered);
    }
    (world.carried, world.ordered)
}

fn seeds(fails: bool) {
    let number = |name: &str| std::env::var(name).ok().map(|v| v.parse::<u64>().expect("a number"));
    let seeds = match number("SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("SEEDS").unwrap_or(100),
    };
    let (mut carried, mut ordered) = (0, 0);
    for seed in seeds {
        match std::panic::catch_unwind(|| run(seed, fails)) {
            Ok((c, o)) => (carried, ordered) = (carried + c, ordered + o),
            Err(panic) => {
                eprintln!("replay with: SEED={seed} cargo test --test carrying_forward");
                std::panic::resume_unwind(panic);
            }
        }
    }
    assert!(carried > 0 && ordered > 0, "the runs must exercise the promise");
    println!("{carried} messages were carried forward, {ordered} orders settled");
}

#[test]
fn messages_that_are_moved_survive_any_cut() {
    seeds(false);
}

#[test]
fn messages_that_are_moved_survive_failures_and_cuts() {
    seeds(true);
}
