//! Which dead letters are to be sent again: an empty file for each, named as the message, in one folder beside the letters.
//!
//! One folder instead of a mark in each letter's: the gateway looks every second, and to find nothing among 100,000 letters then
//! costs one look into an empty folder. A request is one file only, so there are no two that could disagree.
//!
//! A request without its letter means nothing: see [`super::resend`]. So a request that comes back after a power cut does no
//! harm, and taking one back needs no sync.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, chown};
use std::path::{Path, PathBuf};

use super::canonical;
use crate::delivery::folder;
use crate::mail::MessageId;

/// The folder's name among the dead letters; no message id is written so.
const NAME: &str = ".resend";

/// The folder of requests.
#[derive(Clone, Debug)]
pub struct Requests {
    dead: PathBuf,
    dir: PathBuf,
}

impl Requests {
    /// Those for the dead letters in `dead`. Touches nothing.
    pub fn of(dead: &Path) -> Self {
        Requests { dead: dead.into(), dir: dead.join(NAME) }
    }

    /// Makes the folder where it is missing. It belongs to whom the dead letters belong to: requests that root has left must be
    /// readable for the gateway.
    pub fn create(&self) -> io::Result<()> {
        match DirBuilder::new().mode(0o700).create(&self.dir) {
            Err(e) if e.kind() == ErrorKind::AlreadyExists => return Ok(()),
            made => made?,
        }
        let (owner, own) = (fs::metadata(&self.dead)?, fs::metadata(&self.dir)?);
        if (owner.uid(), owner.gid()) != (own.uid(), own.gid()) {
            chown(&self.dir, Some(owner.uid()), Some(owner.gid()))?;
        }
        folder::sync(&self.dead)
    }

    /// Asks for these letters to be sent again; `Ok` when that is on stable storage. Asking twice is asking once.
    ///
    /// One sync for all: an empty file is an entry and an inode, and a journaling file system commits both with the folder.
    pub fn add(&self, ids: &[MessageId]) -> io::Result<()> {
        self.create()?;
        for id in ids {
            let path = self.path(*id);
            let made = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&path);
            made.map_err(|e| io::Error::new(e.kind(), format!("{}: {e}", path.display())))?;
        }
        folder::sync(&self.dir)
    }

    /// The letters asked for, in the order of their ids. Whatever else is in the folder is left alone.
    pub fn list(&self) -> io::Result<Vec<MessageId>> {
        let entries = match fs::read_dir(&self.dir) {
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries?,
        };
        let mut ids = Vec::new();
        for entry in entries {
            let entry = entry?;
            if entry.file_type()?.is_file() {
                ids.extend(canonical(&entry.file_name()));
            }
        }
        ids.sort_unstable();
        Ok(ids)
    }

    /// Is this letter asked for? Where that cannot be found out, it is.
    pub fn has(&self, id: MessageId) -> bool {
        !matches!(fs::symlink_metadata(self.path(id)), Err(e) if e.kind() == ErrorKind::NotFound)
    }

    /// Takes a request back, if there is one.
    pub fn withdraw(&self, id: MessageId) -> io::Result<()> {
        match fs::remove_file(self.path(id)) {
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(()),
            removed => removed,
        }
    }

    fn path(&self, id: MessageId) -> PathBuf {
        self.dir.join(id.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_there_once_until_they_are_withdrawn() {
        let root = tempfile::tempdir().unwrap();
        let requests = Requests::of(root.path());
        let [a, b] = [1, 2].map(|sequence| MessageId { log: 1, sequence });
        assert_eq!(requests.list().unwrap(), [], "no folder is no request");
        requests.add(&[b, a]).unwrap();
        requests.add(&[b]).unwrap();
        assert_eq!(requests.list().unwrap(), [a, b]);
        assert!(requests.has(a) && !requests.has(MessageId { log: 2, sequence: 1 }));
        for _ in 0..2 {
            requests.withdraw(a).unwrap();
        }
        assert_eq!(requests.list().unwrap(), [b]);
        assert!(!requests.has(a));
    }

    #[test]
    fn what_is_no_request_is_left_alone() {
        let root = tempfile::tempdir().unwrap();
        let requests = Requests::of(root.path());
        requests.create().unwrap();
        let dir = root.path().join(NAME);
        for name in ["notes", "0000000o1", "000000111~"] {
            fs::write(dir.join(name), "").unwrap();
        }
        fs::create_dir(dir.join("000000112")).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", dir.join("000000113")).unwrap();
        assert_eq!(requests.list().unwrap(), []);
        assert_eq!(fs::read_dir(dir).unwrap().count(), 5);
    }
}
