//! Dead letters: messages given up, kept for the operator, who can have them sent again.
//!
//! ```text
//! <dir>/<message id>/message.eml    the content, octet for octet, our trace lines included
//! <dir>/<message id>/dead.json      envelope, arrival, and for each recipient given up: attempts, reason, when
//! <dir>/.resend/<message id>        it is to be sent again
//! <dir>/.checked                    when retention last looked, by a clock it trusted
//! <dir>/.sent, .sent.old            what was sent again, and as which message
//! ```
//!
//! A message has one dead letter; recipients given up later are added to it. `resend` puts letters back into the queue,
//! `retention` removes old ones; commands in other processes list, request and remove.
//!
//! Invariants:
//! - a folder named as a message id is complete: it got its name after its files were synced, and loses it before the first of
//!   them goes;
//! - `Ok` from [`DeadLetters::write`] means that all of it is on stable storage;
//! - a letter is changed or removed under the lock of `<dir>`, which holds between processes too: a recipient that a worker adds
//!   is never removed with those that were in it before;
//! - what is not a folder named as a message id is neither read nor removed, symbolic links included.
//!
//! The steps of writing, and what breaks if two are swapped:
//! 1. write both files in a folder with a temporary name, sync them, sync the folder;
//! 2. rename it: before 1, a power cut leaves a dead letter that is empty or torn;
//! 3. sync `<dir>`: without it the rename may be undone, and the spool has already let go of the message.
//!
//! Removing: rename to a temporary name, sync `<dir>`, delete. Deleted first, a power cut would leave half a letter under its name.
//!
//! Two targets may give up one message at once: a lock in memory has one write after the other.

mod record;
mod requests;
mod resend;
mod retention;
mod sent;
mod upkeep;

use std::ffi::OsStr;
use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, ErrorKind, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use super::{Attempt, CopyError, Recipient, folder};
use crate::limits::COPY_SIZE;
use crate::mail::MessageId;

pub use record::{GivenUp, Group, Letter};
pub use requests::Requests;
pub use resend::{Intake, NotTaken, RESEND_INTERVAL, Resent};
pub use sent::{Sent, SentAgain};
pub use upkeep::Upkeep;

/// What the name of an unfinished dead letter begins with; no message id does.
const UNFINISHED: &str = ".unfinished-";
/// What the name of one that is being removed begins with.
const REMOVED: &str = ".removed-";
const CONTENT: &str = "message.eml";
const RECORD: &str = "dead.json";

/// The largest `dead.json`, in octets: 10,000 recipients with the longest paths and reasons, every octet escaped, are 80 MB.
const RECORD_SIZE_MAX: u64 = 128 << 20;

/// The folder of the dead letters.
#[derive(Clone, Debug)]
pub struct DeadLetters {
    dir: PathBuf,
    requests: Requests,
    writing: Writing,
}

/// Held by whoever writes a letter: one for each message, and now and then for some others.
#[derive(Clone, Debug, Default)]
struct Writing(Arc<[Mutex<()>; 16]>);

impl Writing {
    fn of(&self, id: MessageId) -> MutexGuard<'_, ()> {
        self.0[(id.sequence % 16) as usize].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Why a dead letter cannot be read. As text, the file and the reason.
#[derive(Debug)]
pub enum ReadError {
    /// It is not there (any more).
    Gone(PathBuf),
    /// It is not what was written.
    Malformed(PathBuf, String),
    /// The system fails to read it.
    Failed(PathBuf, io::Error),
}

impl fmt::Display for ReadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ReadError::Gone(path) => write!(f, "{}: no such dead letter", path.display()),
            ReadError::Malformed(path, words) => write!(f, "{}: {words}", path.display()),
            ReadError::Failed(path, e) => write!(f, "{}: {e}", path.display()),
        }
    }
}

impl std::error::Error for ReadError {}

impl DeadLetters {
    /// Uses `dir`, makes it where it is missing, and clears away what an earlier process left unfinished: of messages that it was
    /// writing nothing was reported, so they are still in the queue; what it was removing is not wanted. One process at a time
    /// may write to a folder.
    pub fn new(dir: &Path) -> io::Result<Self> {
        folder::create(dir)?;
        for entry in fs::read_dir(dir)? {
            let entry = entry?;
            let name = entry.file_name();
            let is_left = |prefix: &str| name.as_encoded_bytes().starts_with(prefix.as_bytes());
            if (is_left(UNFINISHED) || is_left(REMOVED)) && entry.file_type()?.is_dir() {
                fs::remove_dir_all(entry.path())?;
            }
        }
        let dead = Self::open(dir);
        dead.requests.create()?;
        Ok(dead)
    }

    /// The same beside another process that still writes: what is unfinished may be its.
    pub fn beside_another(dir: &Path) -> io::Result<Self> {
        folder::create(dir)?;
        let dead = Self::open(dir);
        dead.requests.create()?;
        Ok(dead)
    }

    /// The letters in `dir`, beside a gateway that perhaps runs: touches nothing, and does not write letters.
    pub fn open(dir: &Path) -> Self {
        DeadLetters { dir: dir.to_owned(), requests: Requests::of(dir), writing: Writing::default() }
    }

    /// Where they are.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Which of them are to be sent again.
    pub fn requests(&self) -> &Requests {
        &self.requests
    }

    /// What was sent again.
    pub fn sent(&self) -> Sent {
        Sent::of(&self.dir)
    }

    /// Writes the dead letter of a message for the recipients that `target` has given up (with the attempts made before the one that
    /// just failed, and why), or adds them to it. Recipients already in it are left as they are: writing twice changes nothing.
    pub fn write(&self, attempt: &Attempt, target: &str, given_up: &[(Recipient, &str)]) -> io::Result<()> {
        let letter = Letter::of(attempt, target, given_up, unix_now());
        let path = self.path(attempt.id);
        let _writing = self.writing.of(attempt.id);
        let is_there = || path.join(RECORD).try_exists().is_ok_and(|exists| exists);
        let lock = if is_there() { Some(self.lock()?) } else { None };
        if lock.is_some() && is_there() {
            self.add(letter)?;
        } else {
            drop(lock);
            self.write_new(&path, attempt, &letter)?;
        }
        // Also for one that was there: the process that renamed it may have ended before this.
        folder::sync(&self.dir)
    }

    fn write_new(&self, path: &Path, attempt: &Attempt, letter: &Letter) -> io::Result<()> {
        let unfinished = self.dir.join(format!("{UNFINISHED}{}", attempt.id));
        clear(&unfinished)?;
        folder::create(&unfinished)?;
        let fill_and_rename = || {
            let mut content = BufWriter::with_capacity(COPY_SIZE, create_file(&unfinished.join(CONTENT))?);
            attempt.copy_content(&mut content).map_err(|e| match e {
                CopyError::Read(e) => io::Error::new(e.kind(), CopyError::Read(e)),
                CopyError::Write(e) => e,
            })?;
            content.into_inner().map_err(|e| e.into_error())?.sync_all()?;
            write_file(&unfinished.join(RECORD), &letter.text())?;
            folder::sync(&unfinished)?;
            fs::rename(&unfinished, path)
        };
        fill_and_rename().inspect_err(|_| drop(fs::remove_dir_all(&unfinished)))
    }

    /// Adds recipients to the dead letter that is there.
    fn add(&self, new: Letter) -> io::Result<()> {
        let mut letter = self.read(new.id).map_err(io::Error::other)?;
        let missing = new.recipients.into_iter().filter(|new| {
            let is_same = |old: &GivenUp| old.index == new.index && old.target == new.target;
            !letter.recipients.iter().any(is_same)
        });
        let missing: Vec<_> = missing.collect();
        if missing.is_empty() {
            return folder::sync(&self.path(new.id));
        }
        letter.recipients.extend(missing);
        self.replace_record(&letter)
    }

    /// Writes the record anew beside the old one, and puts it in its place.
    fn replace_record(&self, letter: &Letter) -> io::Result<()> {
        let path = self.path(letter.id);
        let unfinished = path.join(format!("{UNFINISHED}{RECORD}"));
        match fs::remove_file(&unfinished) {
            Err(e) if e.kind() != ErrorKind::NotFound => return Err(e),
            _ => write_file(&unfinished, &letter.text())?,
        }
        fs::rename(&unfinished, path.join(RECORD))?;
        folder::sync(&path)
    }

    /// The letters there are, in the order of their ids: within a log, the order of arrival. No folder is no letters.
    pub fn ids(&self) -> io::Result<Vec<MessageId>> {
        let entries = match fs::read_dir(&self.dir) {
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries?,
        };
        let mut ids = Vec::new();
        for entry in entries {
            let entry = entry?;
            if let Some(id) = canonical(&entry.file_name())
                && entry.file_type()?.is_dir()
            {
                ids.push(id);
            }
        }
        ids.sort_unstable();
        Ok(ids)
    }

    /// Where the letter is, or would be.
    pub fn path(&self, id: MessageId) -> PathBuf {
        self.dir.join(id.to_string())
    }

    /// The letter without its content.
    pub fn read(&self, id: MessageId) -> Result<Letter, ReadError> {
        let path = self.path(id);
        if !self.is_letter(id).map_err(|e| ReadError::Failed(path.clone(), e))? {
            return Err(ReadError::Gone(path));
        }
        let record_path = path.join(RECORD);
        let file = open_regular(&record_path).map_err(|e| self.read_error(id, &record_path, e))?;
        let mut text = Vec::new();
        match file.take(RECORD_SIZE_MAX + 1).read_to_end(&mut text) {
            Err(e) => Err(ReadError::Failed(record_path, e)),
            Ok(size) if size as u64 > RECORD_SIZE_MAX => {
                Err(ReadError::Malformed(record_path, format!("more than {RECORD_SIZE_MAX} octets")))
            }
            Ok(_) => Letter::parse(id, &text).map_err(|e| ReadError::Malformed(record_path, e.to_string())),
        }
    }

    /// The letter's content, which is as long as its record says.
    pub fn open_content(&self, letter: &Letter) -> Result<File, ReadError> {
        let path = self.path(letter.id).join(CONTENT);
        let opened = open_regular(&path).and_then(|file| Ok((file.metadata()?.len(), file)));
        let (size, file) = opened.map_err(|e| self.read_error(letter.id, &path, e))?;
        if size != letter.size {
            let words = format!("{size} octets, and its record says {}", letter.size);
            return Err(ReadError::Malformed(path, words));
        }
        Ok(file)
    }

    /// What it means that a file of a letter cannot be opened.
    fn read_error(&self, id: MessageId, path: &Path, error: io::Error) -> ReadError {
        match error.kind() {
            ErrorKind::NotFound if self.is_letter(id).is_ok_and(|is_letter| !is_letter) => {
                ReadError::Gone(self.path(id))
            }
            ErrorKind::NotFound => ReadError::Malformed(path.into(), "it is missing".into()),
            ErrorKind::InvalidData => ReadError::Malformed(path.into(), error.to_string()),
            _ => ReadError::Failed(path.into(), error),
        }
    }

    /// Is there a folder of that name, and not a link to one?
    fn is_letter(&self, id: MessageId) -> io::Result<bool> {
        match fs::symlink_metadata(self.path(id)) {
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(false),
            found => Ok(found?.is_dir()),
        }
    }

    /// Removes a letter, readable or not, and the request to send it again; false if there is none. `Ok` when it will not come
    /// back.
    pub fn remove(&self, id: MessageId) -> io::Result<bool> {
        let _lock = self.lock()?;
        let is_there = self.is_letter(id)?;
        if is_there {
            self.remove_locked(id)?;
        }
        self.requests.withdraw(id)?;
        Ok(is_there)
    }

    /// Takes these recipients out of a letter, and with the last of them removes it: then it is gone, as it may have been before.
    fn take_out(&self, id: MessageId, group: &Group) -> Result<bool, ReadError> {
        let failed = |e| ReadError::Failed(self.path(id), e);
        let _lock = self.lock().map_err(failed)?;
        let mut letter = match self.read(id) {
            Err(ReadError::Gone(_)) => return Ok(true),
            letter => letter?,
        };
        letter.recipients.retain(|recipient| !group.has(recipient));
        let is_gone = letter.recipients.is_empty();
        match is_gone {
            true => self.remove_locked(id),
            false => self.replace_record(&letter),
        }
        .map_err(failed)?;
        Ok(is_gone)
    }

    /// Removes a letter if its newest recipient was given up at `unix_time` or before, and nobody asked for it to be sent again.
    /// Returns it then.
    fn remove_older(&self, id: MessageId, unix_time: u64) -> Result<Option<Letter>, ReadError> {
        let failed = |e| ReadError::Failed(self.path(id), e);
        let _lock = self.lock().map_err(failed)?;
        let letter = self.read(id)?;
        if letter.newest() > unix_time || self.requests.has(id) {
            return Ok(None);
        }
        self.remove_locked(id).map_err(failed)?;
        Ok(Some(letter))
    }

    fn remove_locked(&self, id: MessageId) -> io::Result<()> {
        let removed = self.dir.join(format!("{REMOVED}{id}"));
        clear(&removed)?;
        fs::rename(self.path(id), &removed)?;
        folder::sync(&self.dir)?;
        fs::remove_dir_all(&removed)
    }

    /// Keeps everybody else from changing letters, in this process and in others, until it is dropped.
    fn lock(&self) -> io::Result<File> {
        let dir = File::open(&self.dir)?;
        dir.lock()?;
        Ok(dir)
    }
}

/// The id that a name is, written as this program writes it.
fn canonical(name: &OsStr) -> Option<MessageId> {
    let name = name.to_str()?;
    name.parse::<MessageId>().ok().filter(|id| id.to_string() == name)
}

fn unix_now() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// Makes room for a folder of this name.
fn clear(path: &Path) -> io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(e) if e.kind() != ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

/// Opens a file to read it. `InvalidData`: it is something else than a file. Never waits for one that is.
fn open_regular(path: &Path) -> io::Result<File> {
    let strange = || io::Error::new(ErrorKind::InvalidData, "not a regular file");
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
    let file = match OpenOptions::new().read(true).custom_flags(flags).open(path) {
        // A symbolic link, a socket.
        Err(e) if matches!(e.raw_os_error(), Some(libc::ELOOP | libc::ENXIO)) => return Err(strange()),
        file => file?,
    };
    if file.metadata()?.is_file() { Ok(file) } else { Err(strange()) }
}

fn create_file(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)
}

fn write_file(path: &Path, octets: &[u8]) -> io::Result<()> {
    let mut file = create_file(path)?;
    file.write_all(octets)?;
    file.sync_all()
}

#[cfg(test)]
mod tests;
