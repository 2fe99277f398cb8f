//! The thread that keeps a greylist's file: what happens is appended within a second, and written anew when most of it is past.
//!
//! Promises:
//! - [`Keeper::note`] never waits, and no file is touched before the first note: who only rehearses leaves everything as it is;
//! - what was noted a second ago survives the end of the process, `kill -9` too; what [`Keeper::finish`] has waited for survives the end of
//!   power. Between them it is the kernel that decides, after half a minute as a rule: losing it means that a peer waits once more;
//! - the file is never longer than twice what is remembered, and a little;
//! - a file that cannot be written is said once, tried again each minute, and written as a whole then.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, TrySendError, bounded};

use super::journal::{self, Contents, Journal, RECORD_SIZE, Record};
use super::{Entries, unix_now};
use crate::scheduling::yield_to_shards;

/// Notes on their way to the file: two megabytes. What comes when they are not written fast enough is found by writing anew.
const NOTES_MAX: usize = 1 << 16;
/// For how long notes are gathered.
const WRITE_INTERVAL: Duration = Duration::from_secs(1);
/// What is gathered at most, octets.
const WRITE_SIZE_MAX: usize = 1 << 20;
/// When it is tried again to write where that failed.
const RETRY_INTERVAL: Duration = Duration::from_secs(60);
/// Records that are past and worth no work.
const PAST_RECORDS_MIN: u64 = 1 << 14;
/// How long the end waits for a disk.
const FINISH_TIMEOUT: Duration = Duration::from_secs(10);

enum Order {
    Note(Record),
    /// Write everything, say so, and end.
    Finish(Sender<()>),
}

/// The other end of the thread.
pub struct Keeper {
    orders: Sender<Order>,
    has_missed: Arc<AtomicBool>,
}

impl Keeper {
    /// Keeps `file`, which was found to hold `found`.
    pub fn start(name: &str, file: &Path, found: Contents, entries: Arc<Entries>) -> io::Result<Keeper> {
        let (orders, ordered) = bounded(NOTES_MAX);
        let has_missed = Arc::new(AtomicBool::new(false));
        let writer = Writer {
            name: name.into(),
            path: file.into(),
            entries,
            state: State::Untouched(found),
            has_missed: has_missed.clone(),
        };
        thread::Builder::new().name("greylist".into()).spawn(move || {
            yield_to_shards();
            writer.run(&ordered);
        })?;
        Ok(Keeper { orders, has_missed })
    }

    /// Has `record` written down soon.
    pub fn note(&self, record: Record) {
        if let Err(TrySendError::Full(_)) = self.orders.try_send(Order::Note(record)) {
            self.has_missed.store(true, Ordering::Relaxed);
        }
    }

    /// Waits until everything is written. Called again it does nothing.
    pub fn finish(&self) {
        let (done, finished) = bounded(0);
        if self.orders.send_timeout(Order::Finish(done), FINISH_TIMEOUT).is_ok() {
            // Nothing is ever sent: it is dropped.
            let _ = finished.recv_timeout(FINISH_TIMEOUT);
        }
    }
}

enum State {
    /// The file is as it was found.
    Untouched(Contents),
    /// It is written to.
    Open(Journal),
    /// It could not be, and is to be tried again then.
    Failed { retry_at: Instant },
}

struct Writer {
    name: String,
    path: PathBuf,
    entries: Arc<Entries>,
    state: State,
    has_missed: Arc<AtomicBool>,
}

impl Writer {
    fn run(mut self, orders: &Receiver<Order>) {
        let mut records = Vec::new();
        loop {
            let (gathered, finish) = gather(orders, &mut records);
            if !records.is_empty() {
                self.write(&records, finish.is_some());
                records.clear();
            }
            if finish.is_some() || !gathered {
                if let State::Open(journal) = &self.state
                    && let Err(e) = journal.sync()
                {
                    self.complain(&e);
                }
                return;
            }
        }
    }

    fn write(&mut self, records: &[u8], is_last: bool) {
        let now = Instant::now();
        let written = match &mut self.state {
            State::Failed { retry_at } if now < *retry_at && !is_last => return,
            State::Failed { .. } => self.rewrite(now),
            State::Untouched(found) if found.damaged_size > 0 => match journal::set_aside(&self.path) {
                Ok(aside) => {
                    tracing::info!(policy = self.name, file = %aside.display(), "the damaged file is kept here");
                    self.rewrite(now)
                }
                Err(e) => Err(e),
            },
            State::Untouched(found) => match Journal::open(&self.path, *found) {
                Ok(journal) => self.append(journal, records),
                Err(e) => Err(e),
            },
            State::Open(_) => {
                let open = std::mem::replace(&mut self.state, State::Failed { retry_at: now });
                let State::Open(journal) = open else { unreachable!("it was a line ago") };
                self.append(journal, records)
            }
        };
        match written {
            Ok(journal) => {
                if matches!(self.state, State::Failed { retry_at } if retry_at != now) {
                    tracing::info!(policy = self.name, "what is greylisted is written down again");
                }
                self.state = State::Open(journal);
            }
            Err(e) => {
                if !matches!(self.state, State::Failed { retry_at } if retry_at != now) {
                    self.complain(&e);
                }
                self.state = State::Failed { retry_at: now + RETRY_INTERVAL };
            }
        }
    }

    fn append(&self, mut journal: Journal, records: &[u8]) -> io::Result<Journal> {
        journal.append(records)?;
        let past = journal.records_count.saturating_sub(self.entries.table.len() as u64);
        let is_long = past > self.entries.table.len() as u64 + PAST_RECORDS_MIN;
        match is_long || self.has_missed.swap(false, Ordering::Relaxed) {
            true => self.rewrite(Instant::now()),
            false => Ok(journal),
        }
    }

    /// Everything that is remembered. It holds what the notes say that led here, which are noted after it is remembered.
    fn rewrite(&self, now: Instant) -> io::Result<Journal> {
        let unix_time = unix_now();
        Journal::replace(&self.path, |write| self.entries.for_each(now, unix_time, write))
    }

    fn complain(&self, error: &io::Error) {
        tracing::warn!(policy = self.name, file = %self.path.display(), %error, "what is greylisted cannot be written down: greylisting goes on, and forgets with the process");
    }
}

/// Waits for a note, and for more a while longer. False when nobody is left who could send one; with whom to tell when it is to end.
fn gather(orders: &Receiver<Order>, records: &mut Vec<u8>) -> (bool, Option<Sender<()>>) {
    let mut until = None;
    while records.len() + RECORD_SIZE <= WRITE_SIZE_MAX {
        let order = match until {
            None => orders.recv().map_err(|_| RecvTimeoutError::Disconnected),
            Some(until) => orders.recv_deadline(until),
        };
        match order {
            Ok(Order::Note(record)) => records.extend(record.encode()),
            Ok(Order::Finish(done)) => return (true, Some(done)),
            Err(RecvTimeoutError::Timeout) => return (true, None),
            Err(RecvTimeoutError::Disconnected) => return (false, None),
        }
        until.get_or_insert_with(|| Instant::now() + WRITE_INTERVAL);
    }
    (true, None)
}
