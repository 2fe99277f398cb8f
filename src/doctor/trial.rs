//! How long the disk takes for what the gateway does all day: a block is written in place, and synced.
//!
//! Invariants:
//! - the file has no name, or has lost it before anything is written: however this process ends, nothing is left;
//! - it is of [`FILE_SIZE`], and there are [`SYNCS_MAX`] syncs, or as many as there is [`TIME_MAX`] for.
//!
//! Why such a file tells something about a segment: it is written through and synced before it is measured, as a segment is, so that a
//! sync finds data only, and neither a size nor a new extent to write down.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use super::reading::Unseen;

/// Syncs at most.
pub const SYNCS_MAX: usize = 200;
/// No sync begins after this.
const TIME_MAX: Duration = Duration::from_secs(2);
/// Who has not finished by then hangs.
const PATIENCE: Duration = Duration::from_secs(20);
/// The file's size, octets.
const FILE_SIZE: usize = 1 << 20;
const BLOCK_SIZE: usize = 4096;

/// How it went.
#[derive(Clone, Debug, PartialEq)]
pub struct Trial {
    /// How long the writes took, ascending.
    pub writes: Vec<Duration>,
    /// How long the syncs took, ascending.
    pub syncs: Vec<Duration>,
}

/// Why there was no trial.
#[derive(Clone, Debug, PartialEq)]
pub enum NoTrial {
    /// The file system has no direct I/O.
    NoDirectIo,
    /// A system call failed: which, and how.
    Failed(&'static str, i32),
    /// The disk has not answered.
    Hangs,
    /// Nothing could be tried.
    Unseen(Unseen),
}

/// Of durations that ascend, the one that so much of all does not exceed; zero of none.
pub fn quantile(durations: &[Duration], part: f64) -> Duration {
    let rank = (durations.len() as f64 * part).ceil() as usize;
    durations.get(rank.saturating_sub(1)).or(durations.last()).copied().unwrap_or_default()
}

/// Tries the disk under `folder`, which exists.
pub fn try_disk(folder: &Path) -> Result<Trial, NoTrial> {
    let (done, is_done) = channel();
    let folder = folder.to_path_buf();
    // A disk that hangs must not hold the rest of the report.
    let spawned = std::thread::Builder::new().name("trial".into()).spawn(move || done.send(run(&folder)));
    if let Err(e) = spawned {
        return Err(NoTrial::Unseen(Unseen(format!("no thread can be had: {e}"))));
    }
    is_done.recv_timeout(PATIENCE).unwrap_or_else(|e| {
        Err(match e {
            RecvTimeoutError::Timeout => NoTrial::Hangs,
            RecvTimeoutError::Disconnected => {
                NoTrial::Unseen(Unseen::because("the trial did not come to an end"))
            }
        })
    })
}

fn run(folder: &Path) -> Result<Trial, NoTrial> {
    let failed = |what| move |e: io::Error| NoTrial::Failed(what, e.raw_os_error().unwrap_or(0));
    let file = match open(folder) {
        Err(e) if e.raw_os_error() == Some(libc::EINVAL) => return Err(NoTrial::NoDirectIo),
        file => file.map_err(failed("make a file"))?,
    };
    let mut memory = Aligned::new(FILE_SIZE);
    file.write_all_at(memory.octets(), 0).map_err(failed("write"))?;
    file.sync_all().map_err(failed("sync"))?;
    let mut trial = Trial { writes: Vec::with_capacity(SYNCS_MAX), syncs: Vec::with_capacity(SYNCS_MAX) };
    let begun = Instant::now();
    while trial.syncs.len() < SYNCS_MAX && (trial.syncs.is_empty() || begun.elapsed() < TIME_MAX) {
        let n = trial.syncs.len();
        let block = &mut memory.octets()[..BLOCK_SIZE];
        // Never the same octets: some media keep those only once.
        block.iter_mut().enumerate().for_each(|(at, octet)| *octet = (at * 31 + n * 7) as u8);
        let before = Instant::now();
        file.write_all_at(block, (n % (FILE_SIZE / BLOCK_SIZE) * BLOCK_SIZE) as u64)
            .map_err(failed("write"))?;
        let written = Instant::now();
        file.sync_data().map_err(failed("sync"))?;
        trial.writes.push(written - before);
        trial.syncs.push(written.elapsed());
    }
    trial.writes.sort_unstable();
    trial.syncs.sort_unstable();
    Ok(trial)
}

/// A file for direct I/O that no name leads to.
fn open(folder: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).mode(0o600);
    match options.clone().custom_flags(libc::O_TMPFILE | libc::O_DIRECT).open(folder) {
        // Not every file system has files without names.
        Err(e) if matches!(e.raw_os_error(), Some(libc::EOPNOTSUPP | libc::EISDIR | libc::ENOENT)) => {}
        opened => return opened,
    }
    let path = folder.join(format!(".incoming-doctor-{}", std::process::id()));
    let opened = options.create_new(true).custom_flags(libc::O_DIRECT).open(&path);
    // Where it cannot be opened directly it is made all the same.
    if !matches!(&opened, Err(e) if e.kind() == io::ErrorKind::AlreadyExists) {
        let _ = fs::remove_file(&path);
    }
    opened
}

/// Memory at a block boundary, as direct I/O wants it.
struct Aligned {
    memory: Vec<u8>,
    start: usize,
    size: usize,
}

impl Aligned {
    fn new(size: usize) -> Self {
        let memory = vec![0; size + BLOCK_SIZE];
        let start = memory.as_ptr().align_offset(BLOCK_SIZE);
        Aligned { memory, start, size }
    }

    fn octets(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..][..self.size]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trial_is_bounded_and_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let trial = match try_disk(folder.path()) {
            // The folder of temporary files may be in memory, and without direct I/O.
            Err(NoTrial::NoDirectIo) => return,
            trial => trial.unwrap(),
        };
        assert!((1..=SYNCS_MAX).contains(&trial.syncs.len()));
        assert_eq!(trial.writes.len(), trial.syncs.len());
        assert!(trial.syncs.is_sorted());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_folder_that_is_not_there_is_a_failure_and_no_panic() {
        let folder = tempfile::tempdir().unwrap();
        let trial = try_disk(&folder.path().join("none"));
        assert_eq!(trial, Err(NoTrial::Failed("make a file", libc::ENOENT)));
    }

    #[test]
    fn quantiles_are_of_what_there_is() {
        let millis = |n: u64| Duration::from_millis(n);
        let hundred: Vec<_> = (1..=100).map(millis).collect();
        let table: [(&[Duration], f64, Duration); 5] = [
            (&[], 0.5, Duration::ZERO),
            (&[millis(3)], 0.99, millis(3)),
            (&hundred, 0.5, millis(50)),
            (&hundred, 0.99, millis(99)),
            (&hundred, 1.0, millis(100)),
        ];
        for (durations, part, expected) in table {
            assert_eq!(quantile(durations, part), expected, "{part} of {}", durations.len());
        }
    }
}
