//! Corners of the spool: damage beneath a delivery, media that fail for good while something waits, voids upon voids.

#[path = "support/log.rs"]
mod log;

use std::time::{Duration, Instant};

use incoming::spool::format::{BLOCK_SIZE, Kind, RecordHeader};
use incoming::spool::memory_disk::{MemoryDisk, mail};
use incoming::spool::recovery::{Depth, Finding, Recovered, VOIDS_MAX};
use incoming::spool::{Completion, Incoming, Io, IoFailure, Lane, Receiving, Slot, Spool, SpoolConfig};
use log::Log;

const SMALL: SpoolConfig =
    SpoolConfig { segment_size: 256 << 10, sync: true, page_size: 16 << 10, pages_max: 8 };

/// Performs what is wanted, at most so much; `fails` says which. Returns how many reads there were.
fn run(
    spool: &mut Spool<Vec<u8>>,
    disk: &mut MemoryDisk,
    now: Instant,
    fails: impl Fn(&Io<Vec<u8>>) -> bool,
) -> usize {
    let mut reads = 0;
    for _ in 0..10_000 {
        while spool.poll_stored().is_some() {}
        let Some(io) = spool.poll_io(now) else { return reads };
        reads += usize::from(matches!(io, Io::Read { .. }));
        let failure = Err(IoFailure::Failed);
        let completion = match io {
            io if !fails(&io) => disk.perform(io),
            Io::Prepare { slot, .. } => Completion::Prepared { slot, result: failure },
            Io::Write { slot, offset, .. } => Completion::Written { slot, offset, result: failure },
            Io::Sync { slot } => Completion::Synced { slot, result: failure },
            Io::Remove { slot } => Completion::Removed { slot, result: failure },
            Io::Read { places } => Completion::Read { records: vec![None; places.len()] },
        };
        spool.handle_io(completion, now);
    }
    panic!("it wants I/O for ever");
}

fn open(recovered: Recovered, now: Instant) -> Spool<Vec<u8>> {
    let mut life = recovered.next_epoch << 32;
    let entropy = move || {
        life += 1;
        life.wrapping_mul(0x9E37_79B9_7F4A_7C15)
    };
    Spool::new(SMALL, recovered, Box::new(|| vec![0; SMALL.page_size]), Box::new(entropy), (now, 0))
}

fn append(spool: &mut Spool<Vec<u8>>, tail: &[u8]) -> Option<u64> {
    let (envelope, arrival) = mail(1);
    let message = Incoming { envelope: &envelope, arrival: &arrival, tail };
    let appended = spool.append_message(&mut Receiving::default(), message, |_| b"Received: x\r\n".to_vec());
    appended.ok().map(|(id, _)| id.sequence)
}

/// A log whose oldest segment is sparse and holds this message; not a read of it was made yet.
fn sparse() -> (MemoryDisk, Recovered, u64) {
    let mut log = Log::new(SMALL);
    let oldest = log.append(&[b'x'; 1000]);
    log.settle();
    // The process ends before anything is moved: what was delivered is found done.
    while log.disk.files.len() < 5 {
        log.append(&[b'x'; 60_000]);
        log.settle();
    }
    let mut recovered = log.disk.recover(Depth::Whole);
    // As if there had been more segments, and all were delivered: their outcomes say so.
    let others: Vec<u64> = recovered.messages.keys().filter(|sequence| *sequence != oldest).collect();
    others.into_iter().for_each(|sequence| drop(recovered.messages.remove(sequence)));
    let last = *recovered.segments.last().unwrap();
    for n in 0..4 {
        let slot = Slot(recovered.next_slot + n);
        let (epoch, first_sequence) = (last.epoch + 1 + u64::from(n), recovered.next_sequence);
        recovered.segments.push(incoming::spool::recovery::RecoveredSegment {
            epoch,
            slot,
            first_sequence,
            ..last
        });
        log.disk.files.insert(slot, vec![0; SMALL.segment_size as usize]);
    }
    recovered.next_slot += 4;
    recovered.next_epoch = last.epoch + 5;
    (log.disk, recovered, oldest)
}

#[test]
fn a_damaged_message_that_is_being_delivered_is_not_read_again_and_again() {
    let (mut disk, recovered, oldest) = sparse();
    let location = recovered.messages[&oldest].location;
    let slot = recovered.segments[0].slot;
    disk.files.get_mut(&slot).unwrap()[location.offset as usize + 60] ^= 1;
    let mut now = Instant::now();
    let mut spool = open(recovered, now);
    spool.hand_off(oldest, Lane::UNROUTED);
    let mut reads = 0;
    for _ in 0..100 {
        reads += run(&mut spool, &mut disk, now, |_| false);
        now += Duration::from_millis(100);
    }
    assert!((1..=10).contains(&reads), "{reads} reads in ten seconds");
    assert_eq!(spool.poll_damaged(), None, "the delivery finds out");
    spool.take_back(oldest, Lane::UNROUTED);
    now += Duration::from_secs(60);
    run(&mut spool, &mut disk, now, |_| false);
    assert_eq!(spool.poll_damaged(), Some(oldest));
    assert!(spool.discard(oldest, now));
    now += Duration::from_secs(1);
    run(&mut spool, &mut disk, now, |_| false);
    assert!(disk.recover(Depth::Whole).messages.keys().all(|sequence| sequence != oldest));
}

/// The driver lacks descriptors or memory: nothing is known of the record.
#[test]
fn what_could_not_be_read_is_not_taken_for_damaged() {
    let (mut disk, recovered, oldest) = sparse();
    let mut now = Instant::now();
    let mut spool = open(recovered, now);
    for _ in 0..10 {
        run(&mut spool, &mut disk, now, |io| matches!(io, Io::Read { .. }));
        assert_eq!(spool.poll_damaged(), None, "the message would be given up");
        assert!(spool.poll_timeout().is_some_and(|due| due > now), "it is tried again, and not at once");
        now += Duration::from_secs(1);
    }
    run(&mut spool, &mut disk, now, |_| false);
    assert_eq!((spool.counters().carried, spool.entry(oldest).is_some()), (1, true));
}

#[test]
fn a_pause_of_carrying_does_not_wake_the_driver_when_the_medium_has_failed() {
    let (mut disk, recovered, _) = sparse();
    let mut now = Instant::now();
    let mut spool = open(recovered, now);
    run(&mut spool, &mut disk, now, |io| matches!(io, Io::Read { .. }));
    for _ in 0..3 {
        append(&mut spool, b"x");
        run(&mut spool, &mut disk, now, |io| matches!(io, Io::Read { .. } | Io::Sync { .. }));
    }
    assert!(!spool.is_accepting());
    now += Duration::from_secs(5);
    run(&mut spool, &mut disk, now, |_| false);
    assert!(spool.poll_timeout().is_none_or(|due| due > now));
}

/// The driver closes files that are not open; a seal then fails, and its file is thrown away.
#[test]
fn a_file_is_open_until_its_seal_is_written() {
    let now = Instant::now();
    let mut disk = MemoryDisk::default();
    let mut spool = open(Recovered { log: 1, ..Recovered::default() }, now);
    run(&mut spool, &mut disk, now, |_| false);
    let mut seal = None;
    while seal.is_none() {
        append(&mut spool, &[b'x'; 5_000]);
        while spool.poll_stored().is_some() {}
        while let Some(io) = spool.poll_io(now) {
            match io {
                Io::Write { slot, offset, .. } if offset == SMALL.segment_size - BLOCK_SIZE as u32 => {
                    seal = Some(slot);
                }
                io => {
                    let done = disk.perform(io);
                    spool.handle_io(done, now);
                }
            }
        }
    }
    assert!(spool.is_open(seal.unwrap()));
}

/// As many torn ranges as an Open record names, and a failure before it is durable.
#[test]
fn what_a_failure_voids_is_void_however_much_was_void_before() {
    let now = Instant::now();
    let mut log = Log::new(SMALL);
    let kept = log.append(b"kept");
    log.settle();
    let mut disk = std::mem::take(&mut log.disk);
    let recovered = disk.recover(Depth::Whole);
    let (segment, place) = (recovered.segments[0], recovered.messages[&kept].location);
    // Behind it every other record is torn.
    let mut at = ((place.offset + place.size) as usize).next_multiple_of(BLOCK_SIZE);
    for n in 1..VOIDS_MAX as u64 + 10 {
        let record = RecordHeader {
            life: segment.life,
            sequence: kept + 2 * n,
            horizon: 1,
            payload_size: 0,
            payload_crc: crc32c::crc32c(&[]),
            kind: Kind::Piece,
        };
        let octets = record.encode();
        disk.files.get_mut(&segment.slot).unwrap()[at..at + octets.len()].copy_from_slice(&octets);
        at += octets.len();
    }
    let mut spool = open(disk.recover(Depth::Whole), now);
    let prepare = spool.poll_io(now).expect("a first segment");
    let done = disk.perform(prepare);
    spool.handle_io(done, now);
    let refused = append(&mut spool, b"refused").expect("there is room");
    let is_first = std::cell::Cell::new(true);
    run(&mut spool, &mut disk, now, |io| matches!(io, Io::Sync { .. }) && is_first.replace(false));
    let stored = append(&mut spool, b"stored").expect("the next segment takes it");
    run(&mut spool, &mut disk, now, |_| false);
    let recovered = disk.recover(Depth::Whole);
    let found: Vec<u64> = recovered.messages.keys().collect();
    assert_eq!(found, [kept, stored], "{refused} was refused");
    assert!(
        recovered.findings.iter().all(
            |finding| !matches!(finding, Finding::Corrupt { sequences } if sequences.contains(&refused))
        )
    );
}
