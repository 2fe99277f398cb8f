//! Spool directories: found, locked, checked and read at start, with ordinary blocking calls, before any shard runs.
//!
//! ```text
//! <data>/lock                   held by the running process
//! <data>/spool/VERSION          the layout's version
//! <data>/spool/000/             one log: the directory of shard 0
//! <data>/spool/000/00000000.segment
//! ```
//!
//! A log belongs to the shard of its number; where there are fewer shards now, the others' logs are spread over those there
//! are and delivered. One that holds nothing any more is removed at the next start.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};

use super::medium::Place;
use super::quarantine;
use crate::spool::format::{BLOCK_SIZE, RECORD_HEADER_SIZE, RECORDS_OFFSET, SegmentHeader};
use crate::spool::recovery::{self, Depth, Finding, Met, RecoverError, Recovered, Seen, Trail};
use crate::spool::{ReadSegment, Slot};

const VERSION_FILE: &str = "VERSION";
/// What it says for the layout described here.
const VERSION: &str = "incoming spool 1\n";
/// A ring can keep the files of a killed process open for some milliseconds (the kernel tears it down later), and with
/// them the lock: it is tried again this often.
const LOCK_ATTEMPTS: u32 = 20;
const LOCK_RETRY_INTERVAL: Duration = Duration::from_millis(50);

/// Something is wrong with a directory: which one, what, and what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum DirectoryError {
    /// A system call failed.
    #[error("cannot {what} {path}: {error}{}", remedy(.error))]
    Io {
        /// What was tried.
        what: &'static str,
        /// With which file.
        path: String,
        /// How it failed.
        error: io::Error,
    },
    /// Another process holds the lock.
    #[error("{0} is in use by another process: stop it, or name another folder with --data")]
    InUse(String),
    /// The layout is of another version.
    #[error(
        "{path} says {found:?}, and this program knows only {VERSION:?}: it was written by another version of incoming. Nothing was touched"
    )]
    UnknownVersion {
        /// The version file.
        path: String,
        /// What it says.
        found: String,
    },
    /// A segment of another version.
    #[error(
        "{path} has format version {version}, which this program does not know: it was written by another version of incoming. Nothing was touched"
    )]
    UnknownSegmentVersion {
        /// The segment.
        path: String,
        /// Its version.
        version: u32,
    },
    /// There is nothing to look at.
    #[error(
        "there is no spool in {0}: nothing was ever stored there. Where the data is elsewhere, name its folder with --data or --config"
    )]
    NoSpool(String),
    /// The file system keeps nothing.
    #[error(
        "{0} is on a file system in memory: what is stored there does not survive a restart. Put --data on a disk, or set spool.durability = \"none\""
    )]
    Volatile(String),
    /// The file system has no direct I/O.
    #[error("{0} is on a file system without O_DIRECT, which the spool needs: put --data on ext4 or xfs")]
    NoDirectIo(String),
}

fn remedy(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::PermissionDenied => {
            ". Give the user that runs incoming the right to write there, or name another folder with --data"
        }
        io::ErrorKind::ReadOnlyFilesystem => ". Mount it read-write, or name another folder with --data",
        io::ErrorKind::StorageFull => ". Make room there, or name another folder with --data",
        io::ErrorKind::NotADirectory | io::ErrorKind::AlreadyExists => ". Name another folder with --data",
        _ => "",
    }
}

fn failed<'a>(what: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> DirectoryError + 'a {
    move |error| DirectoryError::Io { what, path: path.display().to_string(), error }
}

/// The data folder, locked as long as this lives.
#[derive(Debug)]
pub struct DataLock {
    file: File,
}

impl DataLock {
    /// A lock that another process had, and whose open file it has passed on.
    pub fn inherited(file: File) -> Self {
        DataLock { file }
    }

    /// Whether it is that of this data folder.
    pub fn is_of(&self, data: &Path) -> bool {
        use std::os::unix::fs::MetadataExt;
        let there = fs::metadata(data.join("lock"));
        matches!((self.file.metadata(), there), (Ok(ours), Ok(there)) if (ours.dev(), ours.ino()) == (there.dev(), there.ino()))
    }

    /// The open file that is locked: whoever has it has the lock.
    pub fn file(&self) -> &File {
        &self.file
    }
}

/// Makes the data folder if need be, and locks it.
pub fn lock(data: &Path) -> Result<DataLock, DirectoryError> {
    fs::create_dir_all(data).map_err(failed("make the folder", data))?;
    let path = data.join("lock");
    let file = OpenOptions::new().create(true).truncate(false).write(true).open(&path);
    let file = file.map_err(failed("write", &path))?;
    for _ in 0..LOCK_ATTEMPTS {
        if flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok() {
            return Ok(DataLock { file });
        }
        std::thread::sleep(LOCK_RETRY_INTERVAL);
    }
    Err(DirectoryError::InUse(data.display().to_string()))
}

/// Has a running gateway locked the data folder?
pub fn is_locked(data: &Path) -> io::Result<bool> {
    let file = match File::open(data.join("lock")) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(false),
        file => file?,
    };
    // Had for a moment only: a gateway that starts now tries more than once.
    match flock(&file, FlockOperation::NonBlockingLockShared) {
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(true),
        locked => locked.map(|()| false).map_err(io::Error::from),
    }
}

/// Where a log is kept, and what recovery made of it.
#[derive(Debug)]
pub struct OpenedLog {
    /// Its folder, or memory.
    pub place: Place,
    /// What it holds.
    pub recovered: Recovered,
}

/// Opens the spool under `spool` for `shards` shards: for each its own log first, then those it adopts. `new_log` gives
/// random numbers for the logs that begin now; `is_durable`: a file system that forgets is refused. Damaged octets are kept in the
/// folder `damaged`.
pub fn open(
    spool: &Path,
    damaged: &Path,
    shards: usize,
    is_durable: bool,
    mut new_log: impl FnMut() -> u32,
) -> Result<Vec<Vec<OpenedLog>>, DirectoryError> {
    fs::create_dir_all(spool).map_err(failed("make the folder", spool))?;
    check_version(spool)?;
    check_file_system(spool, is_durable)?;
    let mut numbers: Vec<usize> = (0..shards).collect();
    for entry in fs::read_dir(spool).map_err(failed("read the folder", spool))? {
        let name = entry.map_err(failed("read the folder", spool))?.file_name();
        let number = name.to_str().and_then(log_number);
        numbers.extend(number.filter(|number| *number >= shards));
    }
    let mut logs: Vec<Vec<OpenedLog>> = (0..shards).map(|_| Vec::new()).collect();
    for number in numbers {
        let path = spool.join(format!("{number:03}"));
        fs::create_dir_all(&path).map_err(failed("make the folder", &path))?;
        let mut recovered = read_log(&path, damaged)?;
        if number >= shards && recovered.messages.is_empty() {
            retire(&path, &recovered).map_err(failed("remove", &path))?;
            continue;
        }
        if recovered.log == 0 {
            recovered.log = new_log();
        }
        logs[number % shards].push(OpenedLog { place: Place::Folder(path), recovered });
    }
    sync_directory(spool).map_err(failed("sync", spool))?;
    Ok(logs)
}

/// New logs under `spool` beside those there are, which another process writes: one for each of `shards` shards, and their folders' numbers.
pub fn open_beside(
    spool: &Path,
    damaged: &Path,
    shards: usize,
    mut new_log: impl FnMut() -> u32,
) -> Result<(Vec<Vec<OpenedLog>>, Vec<usize>), DirectoryError> {
    let first = list(spool)?.last_key_value().map_or(0, |(number, _)| number + 1);
    let numbers: Vec<usize> = (first..first + shards).collect();
    let mut logs = Vec::with_capacity(shards);
    for number in &numbers {
        let path = spool.join(format!("{number:03}"));
        fs::create_dir_all(&path).map_err(failed("make the folder", &path))?;
        let mut recovered = read_log(&path, damaged)?;
        recovered.log = new_log();
        logs.push(vec![OpenedLog { place: Place::Folder(path), recovered }]);
    }
    sync_directory(spool).map_err(failed("sync", spool))?;
    Ok((logs, numbers))
}

/// The logs under `spool` but for those with these numbers, which are written already. One that holds nothing any more is removed.
pub fn open_others(
    spool: &Path,
    damaged: &Path,
    but: &[usize],
    mut new_log: impl FnMut() -> u32,
) -> Result<Vec<OpenedLog>, DirectoryError> {
    let mut logs = Vec::new();
    for (_, path) in list(spool)?.into_iter().filter(|(number, _)| !but.contains(number)) {
        // What is in the others is not to wait for it.
        let mut recovered = match read_log(&path, damaged) {
            Ok(recovered) => recovered,
            Err(error) => {
                tracing::error!(log = %path.display(), "{error}; what is in it is delivered after a start that can read it");
                continue;
            }
        };
        if recovered.messages.is_empty() {
            retire(&path, &recovered).map_err(failed("remove", &path))?;
            continue;
        }
        if recovered.log == 0 {
            recovered.log = new_log();
        }
        logs.push(OpenedLog { place: Place::Folder(path), recovered });
    }
    sync_directory(spool).map_err(failed("sync", spool))?;
    Ok(logs)
}

/// The folders of the logs under `spool`, by their numbers, for who only looks: nothing is made, locked or written.
pub fn list(spool: &Path) -> Result<BTreeMap<usize, PathBuf>, DirectoryError> {
    let none = || DirectoryError::NoSpool(spool.display().to_string());
    let entries = match fs::read_dir(spool) {
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Err(none());
        }
        entries => entries.map_err(failed("read the folder", spool))?,
    };
    has_version(spool)?;
    let mut logs = BTreeMap::new();
    for entry in entries {
        let entry = entry.map_err(failed("read the folder", spool))?;
        let number = entry.file_name().to_str().and_then(log_number);
        logs.extend(number.map(|number| (number, entry.path())));
    }
    if logs.is_empty() { Err(none()) } else { Ok(logs) }
}

/// The number of a log whose folder has this name; `None` if it is not one.
fn log_number(name: &str) -> Option<usize> {
    let is_number = name.len() >= 3 && name.bytes().all(|octet| octet.is_ascii_digit());
    is_number.then(|| name.parse().ok())?
}

/// Empty logs in memory, one for each of `shards` shards, of at most `size_max` octets each. No folder is looked at.
pub fn open_in_memory(shards: usize, size_max: u64, mut new_log: impl FnMut() -> u32) -> Vec<Vec<OpenedLog>> {
    let empty = |_| {
        let recovered = Recovered { log: new_log(), ..Recovered::default() };
        vec![OpenedLog { place: Place::Memory(size_max), recovered }]
    };
    (0..shards).map(empty).collect()
}

/// How many segment files there are under `spool`; none where it does not exist. Nothing is opened.
pub fn count_segments(spool: &Path) -> Result<usize, DirectoryError> {
    let read = |path: &Path| match fs::read_dir(path) {
        Ok(entries) => entries.collect::<io::Result<Vec<_>>>().map_err(failed("read the folder", path)),
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            Ok(Vec::new())
        }
        Err(e) => Err(failed("read the folder", path)(e)),
    };
    let mut count = 0;
    for log in read(spool)? {
        let names = read(&log.path())?.into_iter().map(|entry| entry.file_name());
        count += names.filter(|name| name.to_str().and_then(Slot::from_file_name).is_some()).count();
    }
    Ok(count)
}

/// Removes a log that nobody appends to and that holds nothing any more. Oldest segment first, each durably: what was delivered
/// must not come back without the record that says so.
fn retire(directory: &Path, recovered: &Recovered) -> io::Result<()> {
    let segments = recovered.segments.iter().map(|segment| segment.slot);
    for slot in segments
        .chain(recovered.free.iter().map(|(slot, _)| *slot))
        .chain(recovered.unfinished.iter().copied())
    {
        super::medium::remove_file(directory, slot)?;
    }
    match fs::remove_dir(directory) {
        // What is not ours, or could not be read, stays, and stops nobody.
        Err(e) if e.kind() == io::ErrorKind::DirectoryNotEmpty => {
            tracing::warn!(log = %directory.display(), "the folder of an empty log holds other files and stays");
            Ok(())
        }
        other => other,
    }
}

fn check_version(spool: &Path) -> Result<(), DirectoryError> {
    if has_version(spool)? {
        return Ok(());
    }
    let path = spool.join(VERSION_FILE);
    // Written aside and renamed: a crash leaves the whole file or none.
    let aside = spool.join("VERSION.new");
    fs::write(&aside, VERSION)
        .and_then(|()| File::open(&aside)?.sync_all())
        .and_then(|()| fs::rename(&aside, &path))
        .map_err(failed("write", &path))
}

/// It is the version described here; false: it does not say.
fn has_version(spool: &Path) -> Result<bool, DirectoryError> {
    let path = spool.join(VERSION_FILE);
    match fs::read_to_string(&path) {
        Ok(found) if found == VERSION => Ok(true),
        Ok(found) => Err(DirectoryError::UnknownVersion { path: path.display().to_string(), found }),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(failed("read", &path)(e)),
    }
}

fn check_file_system(spool: &Path, is_durable: bool) -> Result<(), DirectoryError> {
    const TMPFS_MAGIC: u64 = 0x0102_1994;
    const RAMFS_MAGIC: u64 = 0x8584_58f6;
    let name = || spool.display().to_string();
    let kind = rustix::fs::statfs(spool).map_err(|e| failed("look at", spool)(e.into()))?.f_type as u64;
    if is_durable && (kind == TMPFS_MAGIC || kind == RAMFS_MAGIC) {
        return Err(DirectoryError::Volatile(name()));
    }
    let probe = spool.join("probe");
    let opened =
        OpenOptions::new().create(true).write(true).truncate(true).custom_flags(libc::O_DIRECT).open(&probe);
    let _ = fs::remove_file(&probe);
    match opened {
        Ok(_) => Ok(()),
        Err(e) if e.kind() == io::ErrorKind::InvalidInput => Err(DirectoryError::NoDirectIo(name())),
        Err(e) => Err(failed("write", &probe)(e)),
    }
}

/// Recovers a log. Files are synced before they are read: what a killed process had written may be in the page cache only,
/// and must not be believed and then lost to a power cut.
fn read_log(directory: &Path, damaged: &Path) -> Result<Recovered, DirectoryError> {
    let recovered = recover(directory, Depth::Quick, Access::Own, |_| {})?;
    sync_directory(directory).map_err(failed("sync", directory))?;
    for finding in &recovered.findings {
        match finding {
            finding if finding.is_damage() => tracing::error!(log = %directory.display(), "{finding}"),
            finding => tracing::info!(log = %directory.display(), "{finding}"),
        }
    }
    if recovered.findings.iter().any(Finding::is_damage) {
        // What is intact is not to wait for it.
        if let Err(error) = keep_damaged(directory, &recovered, damaged) {
            tracing::error!(log = %directory.display(), folder = %damaged.display(), %error, "cannot keep damaged octets of the spool: they are lost when their segment is used again");
        }
    }
    Ok(recovered)
}

/// Copies what is damaged to where it is not written over: a person may find mail in it.
fn keep_damaged(directory: &Path, recovered: &Recovered, damaged: &Path) -> io::Result<()> {
    let log = directory.file_name().unwrap_or_default().to_string_lossy();
    for finding in &recovered.findings {
        let Finding::NotARecord { slot, octets } = finding else { continue };
        let Some(segment) = recovered.segments.iter().find(|segment| segment.slot == *slot) else { continue };
        let name = format!("{log}-{:08}-{:08x}.octets", segment.epoch, octets.start);
        let mut file = LogFile::open(directory, *slot, Access::Look)?;
        let raw = file.read(u64::from(octets.start), octets.len())?;
        quarantine::keep(damaged, &name, [Ok(&raw)])?;
        tracing::warn!(file = %damaged.join(name).display(), "kept damaged octets of the spool");
    }
    Ok(())
}

/// Recovers the log in this directory. `see` is told of every record.
pub fn recover(
    directory: &Path,
    depth: Depth,
    access: Access,
    see: impl FnMut(Seen),
) -> Result<Recovered, DirectoryError> {
    let open = |slot| LogFile::open(directory, slot, access);
    recovery::recover(slots(directory)?, open, depth, see).map_err(|error| unread(directory, error))
}

/// What the log in this directory says of one message, for who only looks; see [`recovery::follow`].
pub fn follow(
    directory: &Path,
    is_wanted: impl FnOnce(u32) -> bool,
    sequence: u64,
    see: impl FnMut(Met<'_>),
) -> Result<Trail, DirectoryError> {
    let open = |slot| LogFile::open(directory, slot, Access::Look);
    recovery::follow(slots(directory)?, open, is_wanted, sequence, see)
        .map_err(|error| unread(directory, error))
}

fn unread(directory: &Path, error: RecoverError<io::Error>) -> DirectoryError {
    match error {
        RecoverError::Read(slot, error) => failed("read", &directory.join(slot.file_name()))(error),
        RecoverError::UnknownVersion(slot, version) => {
            let path = directory.join(slot.file_name()).display().to_string();
            DirectoryError::UnknownSegmentVersion { path, version }
        }
    }
}

/// The segment files in this directory.
fn slots(directory: &Path) -> Result<Vec<Slot>, DirectoryError> {
    let mut slots = Vec::new();
    for entry in fs::read_dir(directory).map_err(failed("read the folder", directory))? {
        let name = entry.map_err(failed("read the folder", directory))?.file_name();
        slots.extend(name.to_str().and_then(Slot::from_file_name));
    }
    slots.sort_unstable();
    Ok(slots)
}

/// The lives of the files in this directory that have one, for who only looks.
pub fn lives(directory: &Path) -> Result<BTreeMap<Slot, u64>, DirectoryError> {
    /// The header blocks, and the header of the first record, which tells which of them is right.
    const SIZE: usize = RECORDS_OFFSET as usize + RECORD_HEADER_SIZE;
    let mut lives = BTreeMap::new();
    for slot in slots(directory)? {
        let head = LogFile::open(directory, slot, Access::Look).and_then(|mut file| file.read(0, SIZE));
        let head = head.map_err(failed("read", &directory.join(slot.file_name())))?;
        lives.extend(SegmentHeader::decode(&head).ok().map(|header| (slot, header.life)));
    }
    Ok(lives)
}

/// Whose files they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// This process's: they are synced before they are read.
    Own,
    /// Perhaps another's: nothing is done to them, and one that has been removed by now is empty.
    Look,
}

/// A segment file that is read at start, or looked at.
pub struct LogFile(Option<File>);

impl LogFile {
    /// Opens it; see [`Access`].
    pub fn open(directory: &Path, slot: Slot, access: Access) -> io::Result<Self> {
        let is_own = access == Access::Own;
        match OpenOptions::new().read(true).write(is_own).open(directory.join(slot.file_name())) {
            Err(e) if e.kind() == io::ErrorKind::NotFound && !is_own => Ok(LogFile(None)),
            Err(e) => Err(e),
            Ok(file) => {
                if is_own {
                    file.sync_all()?;
                }
                Ok(LogFile(Some(file)))
            }
        }
    }

    /// Fills `octets`, or says how many there are.
    fn fill(&self, octets: &mut [u8], offset: u64) -> io::Result<usize> {
        let Some(file) = &self.0 else { return Ok(0) };
        let mut filled = 0;
        while filled < octets.len() {
            match file.read_at(&mut octets[filled..], offset + filled as u64) {
                Ok(0) => break,
                Ok(read) => filled += read,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(filled)
    }
}

impl ReadSegment for LogFile {
    type Error = io::Error;

    fn size(&mut self) -> io::Result<u64> {
        self.0.as_ref().map_or(Ok(0), |file| Ok(file.metadata()?.len()))
    }

    fn read(&mut self, offset: u64, size: usize) -> io::Result<Vec<u8>> {
        let mut octets = vec![0; size];
        match self.fill(&mut octets, offset) {
            Ok(filled) => octets.truncate(filled),
            // A sector that cannot be read costs its block, not the start.
            Err(e) if e.raw_os_error() == Some(libc::EIO) => {
                octets
                    .truncate(usize::try_from(self.size()?.saturating_sub(offset)).unwrap_or(size).min(size));
                let mut at = 0;
                while at < octets.len() {
                    let end = octets.len().min(at + BLOCK_SIZE - (offset as usize + at) % BLOCK_SIZE);
                    if self.fill(&mut octets[at..end], offset + at as u64).is_err() {
                        octets[at..end].fill(0);
                    }
                    at = end;
                }
            }
            Err(e) => return Err(e),
        }
        Ok(octets)
    }
}

/// Makes names that were made or removed in the directory durable.
pub fn sync_directory(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file whose headers are damaged is left as it is; so is what is not ours.
    #[test]
    fn an_empty_log_of_a_shard_that_is_gone_stops_no_start_whatever_is_in_its_folder() {
        let folder = tempfile::tempdir().unwrap();
        let (spool, damaged) = (folder.path().join("spool"), folder.path().join("damaged"));
        let log = spool.join("001");
        fs::create_dir_all(&log).unwrap();
        fs::write(log.join("notes.txt"), "do not remove").unwrap();
        let start = || open(&spool, &damaged, 1, false, || 7).map(|logs| logs[0].len());
        assert_eq!((start().unwrap(), start().unwrap()), (1, 1));
        assert!(log.join("notes.txt").exists());
        fs::remove_file(log.join("notes.txt")).unwrap();
        assert_eq!(start().unwrap(), 1);
        assert!(!log.exists());
    }
}
