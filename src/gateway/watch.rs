//! Files that change while the gateway runs: certificates with their keys, credentials, maps.
//!
//! One thread has everything that is watched look at its files every few seconds. Whoever is watched reads and checks first: what is good replaces what there was, on all shards; what is not leaves everything as it was, and the log says so.

use std::path::Path;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};

use super::Error;
use crate::scheduling::yield_to_shards;

/// How often files are looked at.
const LOOK_INTERVAL: Duration = Duration::from_secs(5);
/// How often what needs the operator is said again.
const REMIND_INTERVAL: Duration = Duration::from_secs(24 * 3600);

/// Something that is read from files.
pub trait Watched: Send {
    /// Reads anew what has changed.
    fn look(&mut self);

    /// Says once a day what the operator has to see to.
    fn remind(&mut self) {}
}

/// What tells one state of a file from another.
#[derive(Clone, PartialEq, Eq)]
pub struct Stamp {
    inode: u64,
    size: u64,
    modified: Option<SystemTime>,
}

impl Stamp {
    /// `None` where there is no file. Taken before the file is read: what is written meanwhile is read again.
    pub fn of(path: &Path) -> Option<Stamp> {
        use std::os::unix::fs::MetadataExt;
        let metadata = path.metadata().ok()?;
        Some(Stamp { inode: metadata.ino(), size: metadata.len(), modified: metadata.modified().ok() })
    }
}

/// Starts watching, to the end of the process. What is sent is watched instead of what was.
pub fn start(watched: Vec<Box<dyn Watched>>) -> Result<Sender<Vec<Box<dyn Watched>>>, Error> {
    let (told, tells) = bounded(1);
    thread::Builder::new()
        .name("watch".into())
        .spawn(move || run(watched, &tells))
        .map_err(|e| Error(format!("cannot watch the files that may change: {e}")))?;
    Ok(told)
}

fn run(mut watched: Vec<Box<dyn Watched>>, tells: &Receiver<Vec<Box<dyn Watched>>>) {
    yield_to_shards();
    let mut reminded = Instant::now();
    loop {
        match tells.recv_timeout(LOOK_INTERVAL) {
            Ok(others) => watched = others,
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
        watched.iter_mut().for_each(|one| one.look());
        if reminded.elapsed() >= REMIND_INTERVAL {
            reminded = Instant::now();
            watched.iter_mut().for_each(|one| one.remind());
        }
    }
}
