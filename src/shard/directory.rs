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

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};

use crate::spool::Slot;
use crate::spool::format::{BadHeader, RECORD_MAGIC, SegmentHeader};
use crate::spool::recovery::{self, Recovered};

/// What `VERSION` says for the layout described here.
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
    _file: File,
}

/// Makes the data folder if need be, and locks it.
pub fn lock(data: &Path) -> Result<DataLock, DirectoryError> {
    fs::create_dir_all(data).map_err(failed("make the folder", data))?;
    let path = data.join("lock");
    let file = OpenOptions::new().create(true).truncate(false).write(true).open(&path);
    let file = file.map_err(failed("write", &path))?;
    for _ in 0..LOCK_ATTEMPTS {
        if flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok() {
            return Ok(DataLock { _file: file });
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

/// A log's directory and what recovery made of it.
#[derive(Debug)]
pub struct OpenedLog {
    /// The directory.
    pub path: PathBuf,
    /// What it holds.
    pub recovered: Recovered,
}

/// Opens the spool under `spool` for `shards` shards: for each its own log first, then those it adopts. `new_log` gives
/// random numbers for the logs that begin now; `is_durable`: a file system that forgets is refused.
pub fn open(
    spool: &Path,
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
        let number = name.to_str().filter(|name| name.len() >= 3).and_then(|name| name.parse::<usize>().ok());
        numbers.extend(number.filter(|number| *number >= shards));
    }
    let mut logs: Vec<Vec<OpenedLog>> = (0..shards).map(|_| Vec::new()).collect();
    for number in numbers {
        let path = spool.join(format!("{number:03}"));
        fs::create_dir_all(&path).map_err(failed("make the folder", &path))?;
        let mut recovered = read_log(&path)?;
        if number >= shards && recovered.messages.is_empty() {
            retire(&path, &recovered).map_err(failed("remove", &path))?;
            continue;
        }
        if recovered.log == 0 {
            recovered.log = new_log();
        }
        logs[number % shards].push(OpenedLog { path, recovered });
    }
    sync_directory(spool).map_err(failed("sync", spool))?;
    Ok(logs)
}

/// Removes a log that nobody appends to and that holds nothing any more. Oldest segment first, each durably: what was delivered
/// must not come back without the record that says so.
fn retire(directory: &Path, recovered: &Recovered) -> io::Result<()> {
    let segments = recovered.segments.iter().map(|segment| segment.slot);
    for slot in segments
        .chain(recovered.free.iter().map(|(slot, _)| *slot))
        .chain(recovered.unfinished.iter().copied())
    {
        super::segment_file::remove(directory, slot)?;
    }
    fs::remove_dir(directory)
}

fn check_version(spool: &Path) -> Result<(), DirectoryError> {
    let path = spool.join("VERSION");
    match fs::read_to_string(&path) {
        Ok(found) if found == VERSION => Ok(()),
        Ok(found) => Err(DirectoryError::UnknownVersion { path: path.display().to_string(), found }),
        // Written aside and renamed: a crash leaves the whole file or none.
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            let aside = spool.join("VERSION.new");
            fs::write(&aside, VERSION)
                .and_then(|()| File::open(&aside)?.sync_all())
                .and_then(|()| fs::rename(&aside, &path))
                .map_err(failed("write", &path))
        }
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

/// Reads every segment of a log. Files are synced before they are read: what a killed process had written may be in the page
/// cache only, and must not be believed and then lost to a power cut.
fn read_log(directory: &Path) -> Result<Recovered, DirectoryError> {
    let mut scans = Vec::new();
    let mut unfinished = Vec::new();
    let mut left_alone = Vec::new();
    let mut segment = Vec::new();
    for entry in fs::read_dir(directory).map_err(failed("read the folder", directory))? {
        let path = entry.map_err(failed("read the folder", directory))?.path();
        let slot = path.file_name().and_then(|name| name.to_str()).and_then(Slot::from_file_name);
        let Some(slot) = slot else { continue };
        let mut file =
            OpenOptions::new().read(true).write(true).open(&path).map_err(failed("open", &path))?;
        file.sync_all().map_err(failed("sync", &path))?;
        segment.clear();
        file.read_to_end(&mut segment).map_err(failed("read", &path))?;
        match SegmentHeader::decode(&segment) {
            Ok(header) => scans.push(recovery::scan(slot, header, &segment)),
            Err(BadHeader::NotAHeader) if memchr::memmem::find(&segment, RECORD_MAGIC).is_some() => {
                tracing::error!(file = %path.display(), "both header blocks are damaged and there are records: the file is left as it is");
                left_alone.push(slot);
            }
            Err(BadHeader::NotAHeader) => unfinished.push(slot),
            Err(BadHeader::UnknownVersion(version)) => {
                let path = path.display().to_string();
                return Err(DirectoryError::UnknownSegmentVersion { path, version });
            }
        }
    }
    sync_directory(directory).map_err(failed("sync", directory))?;
    for scan in &scans {
        for damage in &scan.damaged {
            let file = directory.join(scan.slot.file_name());
            tracing::warn!(file = %file.display(), offset = damage.start, size = damage.len(), "octets that are not a record");
        }
    }
    let mut recovered = recovery::merge(scans);
    recovered.add_unfinished(unfinished);
    recovered.avoid(left_alone);
    for finding in &recovered.findings {
        match finding {
            recovery::Finding::TailCut { .. } => tracing::info!(log = %directory.display(), "{finding}"),
            _ => tracing::error!(log = %directory.display(), "{finding}"),
        }
    }
    Ok(recovered)
}

/// Makes names that were made or removed in the directory durable.
pub fn sync_directory(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}
