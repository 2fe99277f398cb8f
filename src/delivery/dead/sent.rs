//! What was sent again, and as which message: for people who ask what became of the old one.
//!
//! ```text
//! <message id> <new message id> <seconds since 1970>
//! ```
//!
//! A line for each, behind the others; when the file is full it takes the place of the one before. Nothing depends on it: it is not
//! synced, a line that a crash has torn is skipped, and what is older than two full files is forgotten.

use std::fs::{self, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use crate::mail::MessageId;

/// Octets of a full file: some 100,000 lines.
const SIZE_MAX: u64 = 4 << 20;
const NAME: &str = ".sent";
const BEFORE: &str = ".sent.old";

/// A dead letter that was sent again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SentAgain {
    /// The message that was given up.
    pub id: MessageId,
    /// The message it is now.
    pub as_id: MessageId,
    /// When, in seconds since 1970.
    pub unix_time: u64,
}

/// See the module.
#[derive(Clone, Debug)]
pub struct Sent {
    file: PathBuf,
    before: PathBuf,
}

impl Sent {
    /// That of the dead letters in `dead`. Touches nothing.
    pub fn of(dead: &Path) -> Self {
        Sent { file: dead.join(NAME), before: dead.join(BEFORE) }
    }

    /// Notes one more. One process at a time does.
    pub fn note(&self, sent: SentAgain) -> io::Result<()> {
        if fs::metadata(&self.file).is_ok_and(|file| file.len() >= SIZE_MAX) {
            fs::rename(&self.file, &self.before)?;
        }
        let mut file = OpenOptions::new().append(true).create(true).mode(0o600).open(&self.file)?;
        file.write_all(format!("{} {} {}\n", sent.id, sent.as_id, sent.unix_time).as_bytes())
    }

    /// Those that the message was sent again as, in order: one for each target that had given it up.
    pub fn find(&self, id: MessageId) -> io::Result<Vec<SentAgain>> {
        let mut found = Vec::new();
        for path in [&self.before, &self.file] {
            let text = match fs::read(path) {
                Err(e) if e.kind() == ErrorKind::NotFound => continue,
                text => text?,
            };
            let text = String::from_utf8_lossy(&text);
            found.extend(text.lines().filter_map(parse).filter(|sent| sent.id == id));
        }
        Ok(found)
    }
}

fn parse(line: &str) -> Option<SentAgain> {
    let mut words = line.split(' ');
    let (id, as_id) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
    let unix_time = words.next()?.parse().ok()?;
    words.next().is_none().then_some(SentAgain { id, as_id, unix_time })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sent(id: u64, as_id: u64) -> SentAgain {
        let [id, as_id] = [id, as_id].map(|sequence| MessageId { log: 7, sequence });
        SentAgain { id, as_id, unix_time: 1_700_000_000 }
    }

    #[test]
    fn what_was_noted_is_found_and_what_is_torn_is_skipped() {
        let folder = tempfile::tempdir().unwrap();
        let journal = Sent::of(folder.path());
        assert_eq!(journal.find(sent(1, 2).id).unwrap(), [], "no file is nothing sent");
        for sent in [sent(1, 2), sent(3, 4)] {
            journal.note(sent).unwrap();
        }
        let mut file = OpenOptions::new().append(true).open(folder.path().join(NAME)).unwrap();
        file.write_all(b"\xff\n000000711 0000\n\n").unwrap();
        journal.note(sent(1, 5)).unwrap();
        assert_eq!(journal.find(sent(1, 2).id).unwrap(), [sent(1, 2), sent(1, 5)]);
        assert_eq!(journal.find(sent(2, 0).id).unwrap(), []);
    }

    #[test]
    fn two_full_files_are_kept() {
        let folder = tempfile::tempdir().unwrap();
        let journal = Sent::of(folder.path());
        for n in 1..=3 {
            journal.note(sent(n, n)).unwrap();
            OpenOptions::new().write(true).open(&journal.file).unwrap().set_len(SIZE_MAX).unwrap();
        }
        journal.note(sent(4, 4)).unwrap();
        let found = [1, 2, 3, 4].map(|n| journal.find(sent(n, n).id).unwrap().len());
        assert_eq!(found, [0, 0, 1, 1]);
    }
}
