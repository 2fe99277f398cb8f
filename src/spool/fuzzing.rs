//! The body of the fuzz target `recovery` (`tests/fuzz`): what is left of a log is recovered, whatever happened to it.
//!
//! Takes arbitrary octets and panics when a promise is broken. The first octet chooses one of three readings of the rest:
//! segment files as they are; records with arbitrary fields and right checksums; a small log, and what is done to it. Not
//! part of the API.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use super::entry::{Lane, Location};
use super::format::{
    self, BLOCK_SIZE, Kind, Made, MessagePayload, RECORDS_OFFSET, RecipientOutcome, RecordHeader,
};
use super::format::{PieceRef, SegmentHeader};
use super::io::Slot;
use super::log::{AppendError, Incoming, Receiving, Spool, SpoolConfig};
use super::memory_disk::{MemoryDisk, mail};
use super::recovery::{Depth, Finding, Recovered};
use crate::mail::MessageId;

/// Small, so that a few messages fill several segments.
const CONFIG: SpoolConfig =
    SpoolConfig { segment_size: 64 << 10, sync: true, page_size: 16 << 10, pages_max: 4 };
/// More damage than this at once proves nothing: enough of it forges any log.
const DAMAGES_MAX: usize = 4;

/// Recovery over damaged, forged and arbitrary octets.
pub fn recovery(data: &[u8]) {
    let Some((choice, rest)) = data.split_first() else { return };
    match choice % 3 {
        0 => arbitrary(rest),
        1 => forged(rest),
        _ => damaged(Input(rest)),
    }
}

/// The rest as up to three files, as they are and behind a good header; and as every payload.
fn arbitrary(data: &[u8]) {
    let _ = MessagePayload::decode(data);
    let _ = format::decode_envelope(data);
    let _ = format::decode_outcomes(data);
    let _ = format::decode_open(data);
    let _ = format::decode_record(data, 0);
    let mut disk = MemoryDisk::default();
    for (i, file) in data.chunks(data.len().div_ceil(3).max(1)).enumerate() {
        let header = SegmentHeader {
            log: 1,
            epoch: i as u64,
            life: 0,
            size: (RECORDS_OFFSET as usize + file.len()) as u32,
        };
        disk.files.insert(Slot(2 * i as u32), file.to_vec());
        disk.files.insert(Slot(2 * i as u32 + 1), [header.encode(), file.to_vec()].concat());
    }
    go_on(&disk);
}

/// Records whose checksums are right and whose fields are anything.
fn forged(data: &[u8]) {
    let mut input = Input(data);
    let mut disk = MemoryDisk::default();
    for slot in 0..3 {
        let header = SegmentHeader { log: 1, epoch: input.number(), life: slot, size: input.number() as u32 };
        let mut file = header.encode();
        for _ in 0..input.octet() % 8 {
            let kinds = [Kind::Open, Kind::Piece, Kind::Message, Kind::Outcomes, Kind::Index, Kind::Seal];
            let kind = kinds[usize::from(input.octet()) % kinds.len()];
            let (sequence, horizon) = (input.number(), input.number());
            let payload = input.octets();
            let record = RecordHeader {
                life: slot,
                sequence,
                horizon,
                payload_size: payload.len() as u32,
                payload_crc: crc32c::crc32c(payload),
                kind,
            };
            file.extend_from_slice(&record.encode());
            file.extend_from_slice(payload);
            file.resize(file.len().next_multiple_of(format::RECORD_ALIGNMENT), 0);
        }
        disk.files.insert(Slot(slot as u32), file);
    }
    go_on(&disk);
}

/// A log can go on from what was recovered, and what was recovered can be read.
fn go_on(disk: &MemoryDisk) {
    for depth in [Depth::Quick, Depth::Whole] {
        let recovered = disk.recover(depth);
        recovered.findings.iter().for_each(|finding| drop(finding.to_string()));
        for sequence in recovered.messages.keys() {
            let can_be_read = disk.message(&recovered, sequence).is_some();
            assert!(can_be_read || depth == Depth::Quick, "{sequence} cannot be read");
        }
        drop(spool(recovered, Instant::now()));
    }
}

fn spool(mut recovered: Recovered, now: Instant) -> Spool<Vec<u8>> {
    if recovered.log == 0 {
        recovered.log = 1;
    }
    let mut life = recovered.next_epoch;
    let entropy = move || {
        life = life.wrapping_add(1);
        life.wrapping_mul(0x9E37_79B9_7F4A_7C15)
    };
    Spool::new(CONFIG, recovered, Box::new(|| vec![0xEE; CONFIG.page_size]), Box::new(entropy), (now, 0))
}

/// A log as the spool writes it; damage; and the promises of recovery.
fn damaged(mut input: Input<'_>) {
    let mut world = World::new();
    for _ in 0..input.octet() % 32 {
        world.step(input.octet());
    }
    world.end();
    let before = world.disk.recover(Depth::Whole);
    world.check_undamaged(&before);
    world.check_undamaged(&world.disk.recover(Depth::Quick));
    let mut disk = world.disk.clone();
    for _ in 0..DAMAGES_MAX {
        world.has_moved |= damage(&mut disk, &mut input);
    }
    for depth in [Depth::Quick, Depth::Whole] {
        let after = disk.recover(depth);
        world.check_damaged((&before, &after), &disk, depth);
        drop(spool(after, world.now));
    }
}

/// A spool on a disk, and what the outside world knows of it.
struct World {
    disk: MemoryDisk,
    spool: Spool<Vec<u8>>,
    now: Instant,
    /// Content of what was appended, by sequence.
    appended: BTreeMap<u64, Vec<u8>>,
    /// Reported stored.
    stored: BTreeSet<u64>,
    done: BTreeSet<u64>,
    /// Blocks were moved or copied.
    has_moved: bool,
}

impl World {
    fn new() -> Self {
        let (disk, now) = (MemoryDisk::default(), Instant::now());
        let spool = spool(disk.recover(Depth::Quick), now);
        World {
            disk,
            spool,
            now,
            appended: BTreeMap::new(),
            stored: BTreeSet::new(),
            done: BTreeSet::new(),
            has_moved: false,
        }
    }

    /// A message, and what the bits of `choice` say: its size (0, 1) and pieces (2), whether it shares its batch with the
    /// next (3), whether the oldest of the backlog is then attempted (4) and deferred (5), and a restart (6).
    fn step(&mut self, choice: u8) {
        let bit = |n: u8| choice >> n & 1 == 1;
        let size = [100, 3000, 9000, 20_000][usize::from(choice & 3)];
        self.append(size, if bit(2) { 2 } else { 0 });
        if !bit(3) {
            self.settle();
        }
        if bit(4) {
            self.attempt(!bit(5));
        }
        if bit(6) {
            self.end();
            self.spool = spool(self.disk.recover(Depth::Quick), self.now);
        }
    }

    fn append(&mut self, size: usize, piece_count: usize) {
        let (envelope, arrival) = mail(1);
        // Content that tells every message and every part of it from all others.
        let part = |i: usize| {
            let seed = (self.appended.len() * 8 + i) as u32;
            (0..size as u32).map(|n| (n.wrapping_mul(seed | 1) >> 3) as u8).collect::<Vec<u8>>()
        };
        let parts: Vec<Vec<u8>> = (0..=piece_count).map(part).collect();
        let (tail, pieces) = parts.split_last().expect("there is a tail");
        let mut receiving = Receiving::default();
        for piece in pieces {
            self.retry(|spool| spool.append_piece(&mut receiving, piece));
        }
        let message = Incoming { envelope: &envelope, arrival: &arrival, tail };
        let trace = |id: MessageId| format!("Received: id {id}\r\n").into_bytes();
        let (id, trace) = self.retry(|spool| spool.append_message(&mut receiving, message, trace));
        self.appended.insert(id.sequence, [trace, parts.concat()].concat());
    }

    /// What is refused because writes are on their way is taken when they have completed.
    fn retry<T>(&mut self, mut append: impl FnMut(&mut Spool<Vec<u8>>) -> Result<T, AppendError>) -> T {
        match append(&mut self.spool) {
            Ok(taken) => return taken,
            Err(error) => assert_eq!(error, AppendError::Busy),
        }
        self.spool.finish(self.now);
        self.settle();
        append(&mut self.spool).expect("nothing is on its way")
    }

    fn settle(&mut self) {
        self.disk.settle(&mut self.spool, self.now);
        while let Some((sequence, is_stored)) = self.spool.poll_stored() {
            assert!(is_stored && self.stored.insert(sequence));
        }
        // What was stored may have made room for outcomes or freed a file.
        self.disk.settle(&mut self.spool, self.now);
    }

    fn attempt(&mut self, is_done: bool) {
        let Some(sequence) = self.spool.next_of_backlog(Lane::UNROUTED, self.now) else { return };
        self.spool.hand_off(sequence, Lane::UNROUTED);
        let outcome = RecipientOutcome {
            index: 0,
            is_done,
            is_given_up: false,
            attempts: 1,
            next_attempt: 1,
            reason: "".into(),
        };
        self.spool.handle_outcome(sequence, Lane::UNROUTED, Made::default(), &[outcome], (self.now, 0));
        if is_done {
            self.done.insert(sequence);
        }
    }

    /// Everything is durable, outcomes too, as after a clean stop.
    fn end(&mut self) {
        self.now += Duration::from_secs(1);
        // Outcomes, then the rest, then the index and the seal.
        for _ in 0..4 {
            self.spool.finish(self.now);
            self.settle();
        }
        assert!(self.spool.is_idle());
    }

    fn left(&self) -> impl Iterator<Item = &u64> {
        self.stored.difference(&self.done)
    }

    fn check_undamaged(&self, recovered: &Recovered) {
        assert_eq!(recovered.findings, [], "nothing is damaged");
        assert!(
            self.left().copied().eq(recovered.messages.keys()),
            "what is not done is recovered, and nothing else"
        );
        self.check_contents(recovered, &self.disk, Depth::Whole);
    }

    fn check_damaged(&self, (before, after): (&Recovered, &Recovered), disk: &MemoryDisk, depth: Depth) {
        after.findings.iter().for_each(|finding| drop(finding.to_string()));
        self.check_contents(after, disk, depth);
        let first = after.messages.keys().next().unwrap_or(u64::MAX);
        for sequence in self.left().filter(|sequence| !after.messages.contains(**sequence)) {
            let slot = slot_of(before, before.messages[sequence].location.epoch);
            if after.findings.contains(&Finding::HeaderLost { slot, is_rebuilt: false }) {
                continue;
            }
            // It takes several blocks moved from one file to another to have both pass for the same segment.
            if self.has_moved && after.findings.contains(&Finding::SegmentTwice { slot }) {
                continue;
            }
            assert!(
                !self.is_intact(before, disk, *sequence),
                "message {sequence} is undamaged and lost: {:?}",
                after.findings
            );
            // Nothing tells of numbers behind the last record, or in front of the first.
            let is_told = (first..after.next_sequence).contains(sequence);
            let is_reported = after.findings.iter().any(|finding| match finding {
                Finding::Corrupt { sequences } | Finding::Torn { sequences } => sequences.contains(sequence),
                Finding::PieceMissing { sequence: broken, .. } => broken == sequence,
                _ => false,
            });
            assert!(!is_told || is_reported, "message {sequence} is lost in silence");
        }
    }

    /// Only what was appended is recovered, octet for octet. What only an index tells of may turn out damaged.
    fn check_contents(&self, recovered: &Recovered, disk: &MemoryDisk, depth: Depth) {
        for sequence in recovered.messages.keys() {
            let content = disk.message(recovered, sequence);
            if content.is_none() && depth == Depth::Quick {
                continue;
            }
            assert_eq!(self.appended.get(&sequence), content.as_ref(), "message {sequence}");
        }
    }

    /// Nothing has happened to the message's records and to what says whose they are.
    fn is_intact(&self, before: &Recovered, disk: &MemoryDisk, sequence: u64) -> bool {
        let entry = &before.messages[&sequence];
        // Which of two copies of a piece is the original is not always known.
        if self.has_moved && !entry.pieces.is_empty() {
            return false;
        }
        let Location { epoch, offset, size } = entry.location;
        let pieces = entry.pieces.iter().map(|PieceRef { epoch, offset, size, .. }| {
            (*epoch, *offset as usize, format::record_size(*size as usize))
        });
        pieces.chain([(epoch, offset as usize, size as usize)]).all(|(epoch, offset, size)| {
            let slot = slot_of(before, epoch);
            let (old, new) = (&self.disk.files[&slot], &disk.files[&slot]);
            let is_same = |from: usize, size: usize| new.get(from..from + size) == old.get(from..from + size);
            // One of two headers is enough; the first record decides where they are of two segments.
            let is_known = [0, BLOCK_SIZE].into_iter().any(|at| is_same(at, BLOCK_SIZE))
                && (is_same(RECORDS_OFFSET as usize, BLOCK_SIZE) || is_same(0, 2 * BLOCK_SIZE));
            is_known && is_same(offset, size)
        })
    }
}

fn slot_of(recovered: &Recovered, epoch: u64) -> Slot {
    recovered.segments.iter().find(|segment| segment.epoch == epoch).expect("its segment is known").slot
}

/// Does to the disk what the input says next; says whether a block went to another place.
fn damage(disk: &mut MemoryDisk, input: &mut Input<'_>) -> bool {
    let kind = input.octet();
    let (from, to) = (place(disk, input), place(disk, input));
    let (Some((slot, at)), Some((other, other_at))) = (from, to) else { return false };
    let block = |file: &[u8], at: usize| file[at..file.len().min(at + BLOCK_SIZE)].to_vec();
    let ours = block(&disk.files[&slot], at);
    let theirs = block(&disk.files[&other], other_at);
    let mut put = |slot: Slot, at: usize, octets: &[u8]| {
        let file = disk.files.get_mut(&slot).expect("it was just found");
        let size = octets.len().min(file.len() - at);
        file[at..at + size].copy_from_slice(&octets[..size]);
    };
    match kind % 6 {
        1 => {
            let mut flipped = ours;
            let octet = usize::from(input.octet()) << 4 | usize::from(input.octet() & 15);
            if let Some(octet) = flipped.get_mut(octet) {
                *octet ^= kind | 1;
            }
            put(slot, at, &flipped);
        }
        2 => put(slot, at, &vec![0; ours.len()]),
        3 => {
            put(slot, at, &theirs);
            put(other, other_at, &ours);
        }
        4 => put(other, other_at, &ours),
        5 => disk.files.get_mut(&slot).expect("it was just found").truncate(at + usize::from(kind)),
        _ => {}
    }
    matches!(kind % 6, 3 | 4)
}

/// A block of a file.
fn place(disk: &MemoryDisk, input: &mut Input<'_>) -> Option<(Slot, usize)> {
    let (file, block) = (input.octet(), input.octet());
    let (slot, octets) = disk.files.iter().nth(usize::from(file) % disk.files.len().max(1))?;
    let block_count = octets.len().div_ceil(BLOCK_SIZE);
    (block_count > 0).then(|| (*slot, usize::from(block) % block_count * BLOCK_SIZE))
}

/// Takes what it wants from the front of the data, zeros where there is none.
struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn octet(&mut self) -> u8 {
        self.0.split_off_first().copied().unwrap_or(0)
    }

    /// Small, or anything.
    fn number(&mut self) -> u64 {
        match self.octet() {
            0xff => {
                let field = self.take(8);
                let mut octets = [0; 8];
                octets[..field.len()].copy_from_slice(field);
                u64::from_le_bytes(octets)
            }
            small => small.into(),
        }
    }

    fn octets(&mut self) -> &'a [u8] {
        let size = self.octet();
        self.take(size.into())
    }

    fn take(&mut self, size: usize) -> &'a [u8] {
        self.0.split_off(..size.min(self.0.len())).unwrap_or_default()
    }
}
