//! The spool's disk use: segments are used again, so that it follows what is waiting and not what has passed.

#[path = "support/log.rs"]
mod log;

use std::time::Duration;

use incoming::spool::SpoolConfig;
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
    let recovered = log.disk.recover();
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
