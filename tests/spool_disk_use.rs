//! The spool's disk use: segments are used again, so that it follows what is waiting and not what has passed.

#[path = "support/log.rs"]
mod log;

use std::cell::Cell;
use std::convert::Infallible;
use std::time::Duration;

use incoming::spool::memory_disk::Octets;
use incoming::spool::recovery::{Depth, recover};
use incoming::spool::{ReadSegment, Slot, SpoolConfig};
use log::Log;

const CONFIG: SpoolConfig =
    SpoolConfig { segment_size: 256 << 10, sync: true, page_size: 16 << 10, pages_max: 4 };
/// Files while everything is delivered at once: the active segment, the prepared one, the one before the active whose
/// last outcomes are not yet durable, and one to be used again.
const FILES_MAX: usize = 4;
/// Free segments that are kept behind a burst.
const FREE_FILES_MAX: usize = 4;

#[test]
fn delivered_at_once_a_hundred_times_the_spools_size_leaves_a_handful_of_files() {
    let mut log = Log::new(CONFIG);
    let message = [b'x'; 1000];
    let count = 100 * FILES_MAX * CONFIG.segment_size as usize / message.len();
    for _ in 0..count {
        let sequence = log.append(&message);
        assert_eq!(log.settle(), [sequence]);
        log.deliver(sequence);
        log.pass(Duration::from_millis(1));
        assert!(log.disk.files.len() <= FILES_MAX, "{} files", log.disk.files.len());
    }
    log.pass(Duration::from_secs(1));
    let recovered = log.disk.recover(Depth::Whole);
    assert!(recovered.messages.is_empty() && recovered.findings.is_empty());
}

#[test]
fn behind_a_burst_the_disk_is_given_back() {
    let mut log = Log::new(CONFIG);
    let mut waiting = Vec::new();
    while log.disk.files.len() < 50 {
        log.append(&[b'x'; 1000]);
        waiting.extend(log.settle());
    }
    for sequence in waiting {
        log.deliver(sequence);
        log.pass(Duration::from_millis(1));
    }
    log.pass(Duration::from_secs(1));
    let count = log.disk.files.len();
    assert!(count <= FILES_MAX + FREE_FILES_MAX, "{count} files");
}

/// What the disk may hold beyond twice what is needed: sparse segments before messages are carried forward, the one being
/// emptied, the prepared one, free ones.
const SEGMENTS_BEYOND: usize = 4 + 2 + 1 + FREE_FILES_MAX;

#[test]
fn messages_that_wait_long_do_not_hold_what_came_behind_them() {
    let mut log = Log::new(CONFIG);
    let mut waiting = Vec::new();
    let message = [b'x'; 1000];
    let count = 60 * SEGMENTS_BEYOND * CONFIG.segment_size as usize / message.len();
    for n in 0..count {
        let sequence = log.append(&message);
        assert_eq!(log.settle(), [sequence]);
        match n % 200 {
            0 => {
                log.defer(sequence, 3, 1 << 20, "451 4.3.0 try later");
                waiting.push(sequence);
            }
            // Never attempted.
            100 => waiting.push(sequence),
            _ => log.deliver(sequence),
        }
        log.pass(Duration::from_millis(1));
        let (_, live) = log.spool().disk_use();
        let bound = 2 * live as usize + SEGMENTS_BEYOND * CONFIG.segment_size as usize;
        let used = log.disk.files.values().map(Vec::len).sum::<usize>();
        assert!(used <= bound, "{used} octets on the disk, {live} are needed");
    }
    let carried = log.spool().counters().carried;
    assert!(carried > waiting.len() as u64, "the log went round: {carried} carried");
    log.pass(Duration::from_secs(1));
    for depth in [Depth::Quick, Depth::Whole] {
        let recovered = log.disk.recover(depth);
        assert!(
            recovered.messages.keys().eq(waiting.iter().copied()),
            "they are all there, and nothing else"
        );
        assert_eq!(recovered.findings, []);
        for (n, (sequence, found)) in recovered.messages.iter().enumerate() {
            assert!(log.disk.message(&recovered, sequence).expect("it can be read").ends_with(&message));
            let left = found.outstanding();
            let left: Vec<_> = left.iter().map(|(_, o)| (o.index, o.attempts, o.reason.as_deref())).collect();
            match n % 2 {
                0 => assert_eq!(left, [(0, 3, Some("451 4.3.0 try later"))]),
                _ => assert_eq!(left, [(0, 0, None)]),
            }
        }
    }
}

/// A file of which it is counted what is read.
struct Counted<'a>(Octets<'a>, &'a Cell<usize>);

impl ReadSegment for Counted<'_> {
    type Error = Infallible;

    fn size(&mut self) -> Result<u64, Infallible> {
        self.0.size()
    }

    fn read(&mut self, offset: u64, size: usize) -> Result<Vec<u8>, Infallible> {
        let octets = self.0.read(offset, size)?;
        self.1.set(self.1.get() + octets.len());
        Ok(octets)
    }
}

#[test]
fn a_start_reads_the_indexes_of_sealed_segments_and_not_their_mail() {
    let config = SpoolConfig { segment_size: 2 << 20, pages_max: 16, ..CONFIG };
    let mut log = Log::new(config);
    let mut count = 0;
    while log.disk.files.len() < 20 {
        log.append(&[b'x'; 4096]);
        count += log.settle().len();
    }
    log.finish();
    let read = Cell::new(0);
    let open = |slot: Slot| Ok(Counted(Octets(&log.disk.files[&slot]), &read));
    let slots = log.disk.files.keys().copied();
    let recovered = recover(slots, open, Depth::Quick, |_| {}).expect("memory can be read");
    assert_eq!(recovered.messages.len(), count);
    let size: usize = log.disk.files.values().map(Vec::len).sum();
    // The prepared file has no seal and is read whole, to see that nothing is in it.
    let sealed = size - config.segment_size as usize;
    let read = read.get() - config.segment_size as usize;
    assert!(read < sealed / 20, "{read} octets of {sealed} were read");
}
