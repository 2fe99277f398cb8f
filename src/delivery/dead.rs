//! Dead letters: messages given up, kept for the operator.
//!
//! ```text
//! <dir>/<message id>/message.eml    the content, octet for octet, our trace lines included
//! <dir>/<message id>/dead.json      envelope, arrival, and for each recipient given up: attempts, reason, when
//! ```
//!
//! A message has one dead letter; recipients given up later are added to it.
//!
//! Invariants:
//! - a folder named as a message id is complete: it got its name after its files were synced;
//! - `Ok` from [`DeadLetters::write`] means that all of it is on stable storage.
//!
//! The steps, and what breaks if two are swapped:
//! 1. write both files in a folder with a temporary name, sync them, sync the folder;
//! 2. rename it: before 1, a power cut leaves a dead letter that is empty or torn;
//! 3. sync `<dir>`: without it the rename may be undone, and the spool has already let go of the message.
//!
//! Two writes of one message never run at once: only one job of a message exists at a time.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use super::{CopyError, Job, Recipient, folder};
use crate::limits::COPY_SIZE;
use crate::mail::{Body, MessageId};

/// What the name of an unfinished dead letter begins with; no message id does.
const UNFINISHED: &str = ".unfinished-";
const CONTENT: &str = "message.eml";
const RECORD: &str = "dead.json";

/// The folder of the dead letters.
pub struct DeadLetters {
    dir: PathBuf,
}

impl DeadLetters {
    /// Uses `dir`, makes it where it is missing, and clears away what an earlier process left unfinished: of those messages
    /// nothing was reported, so they are still in the queue. One process at a time may use a folder.
    pub fn new(dir: &Path) -> io::Result<Self> {
        folder::create(dir)?;
        for entry in fs::read_dir(dir)? {
            let entry = entry?;
            if entry.file_name().as_encoded_bytes().starts_with(UNFINISHED.as_bytes()) {
                fs::remove_dir_all(entry.path())?;
            }
        }
        Ok(DeadLetters { dir: dir.to_owned() })
    }

    /// Where they are.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Writes the dead letter of `job` for the recipients `given_up` (with the attempts made before the one that just failed),
    /// or adds them to it. Recipients already in it are left as they are: writing twice changes nothing.
    pub fn write(&self, job: &Job, given_up: &[(Recipient, &str)]) -> io::Result<()> {
        let unix_time =
            SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
        let given_up: Vec<_> = given_up
            .iter()
            .map(|(recipient, reason)| GivenUp {
                index: recipient.index,
                forward_path: job.envelope.forward_paths[recipient.index as usize].as_str().into(),
                attempts: recipient.attempts.saturating_add(1),
                reason: (*reason).into(),
                unix_time,
            })
            .collect();
        let path = self.dir.join(job.id.to_string());
        if path.join(RECORD).try_exists().is_ok_and(|exists| exists) {
            add(&path, given_up)?;
        } else {
            self.write_new(&path, job, given_up)?;
        }
        // Also for one that was there: the process that renamed it may have ended before this.
        folder::sync(&self.dir)
    }

    fn write_new(&self, path: &Path, job: &Job, given_up: Vec<GivenUp>) -> io::Result<()> {
        let unfinished = self.dir.join(format!("{UNFINISHED}{}", job.id));
        match fs::remove_dir_all(&unfinished) {
            Err(e) if e.kind() != ErrorKind::NotFound => return Err(e),
            _ => folder::create(&unfinished)?,
        }
        let fill_and_rename = || {
            let mut content = BufWriter::with_capacity(COPY_SIZE, create_file(&unfinished.join(CONTENT))?);
            job.content.copy_to(&mut content).map_err(|e| match e {
                CopyError::Read(e) => io::Error::new(e.kind(), CopyError::Read(e)),
                CopyError::Write(e) => e,
            })?;
            content.into_inner().map_err(|e| e.into_error())?.sync_all()?;
            write_file(&unfinished.join(RECORD), &Record::of(job, given_up).text()?)?;
            folder::sync(&unfinished)?;
            fs::rename(&unfinished, path)
        };
        fill_and_rename().inspect_err(|_| drop(fs::remove_dir_all(&unfinished)))
    }
}

/// Adds recipients to a dead letter, by writing its record anew beside the old one.
fn add(path: &Path, given_up: Vec<GivenUp>) -> io::Result<()> {
    let record_path = path.join(RECORD);
    let mut record: Record = serde_json::from_slice(&fs::read(&record_path)?)
        .map_err(|e| io::Error::new(ErrorKind::InvalidData, format!("{}: {e}", record_path.display())))?;
    let missing: Vec<_> = (given_up.into_iter())
        .filter(|new| record.recipients.iter().all(|old| old.index != new.index))
        .collect();
    if missing.is_empty() {
        return folder::sync(path);
    }
    record.recipients.extend(missing);
    let unfinished = path.join(format!("{UNFINISHED}{RECORD}"));
    match fs::remove_file(&unfinished) {
        Err(e) if e.kind() != ErrorKind::NotFound => return Err(e),
        _ => write_file(&unfinished, &record.text()?)?,
    }
    fs::rename(&unfinished, &record_path)?;
    folder::sync(path)
}

fn create_file(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)
}

fn write_file(path: &Path, octets: &[u8]) -> io::Result<()> {
    let mut file = create_file(path)?;
    file.write_all(octets)?;
    file.sync_all()
}

/// `dead.json`. Times are seconds since 1970.
#[derive(Serialize, Deserialize)]
struct Record {
    message_id: String,
    /// Octets of `message.eml`.
    size: u64,
    envelope: EnvelopeRecord,
    arrival: ArrivalRecord,
    recipients: Vec<GivenUp>,
}

#[derive(Serialize, Deserialize)]
struct EnvelopeRecord {
    /// Empty: the null reverse-path.
    reverse_path: String,
    forward_paths: Vec<String>,
    body: String,
    smtputf8: bool,
}

#[derive(Serialize, Deserialize)]
struct ArrivalRecord {
    peer: String,
    hello: String,
    protocol: String,
    unix_time: u64,
}

#[derive(Serialize, Deserialize)]
struct GivenUp {
    /// Place in `envelope.forward_paths`, from 0.
    index: u32,
    forward_path: String,
    attempts: u32,
    reason: String,
    unix_time: u64,
}

impl Record {
    fn of(job: &Job, recipients: Vec<GivenUp>) -> Self {
        let (envelope, arrival) = (&job.envelope, &job.arrival);
        Record {
            message_id: MessageId::to_string(&job.id),
            size: job.content.size(),
            envelope: EnvelopeRecord {
                reverse_path: envelope.reverse_path.as_str().into(),
                forward_paths: envelope.forward_paths.iter().map(|path| path.as_str().into()).collect(),
                body: match envelope.body {
                    Body::SevenBit => "7BIT".into(),
                    Body::EightBit => "8BITMIME".into(),
                },
                smtputf8: envelope.smtputf8,
            },
            arrival: ArrivalRecord {
                peer: arrival.peer.to_string(),
                hello: arrival.hello.as_ref().into(),
                protocol: arrival.protocol.keyword().into(),
                unix_time: arrival.unix_time,
            },
            recipients,
        }
    }

    fn text(&self) -> io::Result<Vec<u8>> {
        let mut text = serde_json::to_vec_pretty(self)?;
        text.push(b'\n');
        Ok(text)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::delivery::worker::tests::job;
    use crate::delivery::{Content, StoredContent, outcome_channel};

    fn some_job() -> Job {
        job(33, &outcome_channel(1, Arc::new(|| ())).0)
    }

    fn recipient(index: u32) -> Recipient {
        Recipient { index, attempts: index }
    }

    fn names(dir: &Path) -> Vec<String> {
        let mut names: Vec<_> =
            fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_dead_letter_has_content_envelope_and_reasons() {
        let root = tempfile::tempdir().unwrap();
        let dead = DeadLetters::new(&root.path().join("deep/dead")).unwrap();
        let job = some_job();
        dead.write(&job, &[(recipient(1), "said \"no\"\n")]).unwrap();
        let path = dead.dir().join("000000111");
        assert_eq!(fs::read(path.join(CONTENT)).unwrap(), b"Received: x\r\n\r\nhello\r\n");
        let mut record: serde_json::Value =
            serde_json::from_slice(&fs::read(path.join(RECORD)).unwrap()).unwrap();
        assert!(record["recipients"][0]["unix_time"].take().as_u64().unwrap() > 1_700_000_000);
        let expected = serde_json::json!({
            "message_id": "000000111",
            "size": 22,
            "envelope": {
                "reverse_path": "s@e.net",
                "forward_paths": ["a@e.org", "b@e.org", "postmaster"],
                "body": "8BITMIME",
                "smtputf8": false,
            },
            "arrival": { "peer": "192.0.2.1:1234", "hello": "e.net", "protocol": "ESMTP", "unix_time": 1_700_000_000 },
            "recipients": [
                { "index": 1, "forward_path": "b@e.org", "attempts": 2, "reason": "said \"no\"\n", "unix_time": null }
            ],
        });
        assert_eq!(record, expected);
    }

    #[test]
    fn recipients_given_up_later_are_added_and_none_twice() {
        let root = tempfile::tempdir().unwrap();
        let dead = DeadLetters::new(root.path()).unwrap();
        let job = some_job();
        let path = dead.dir().join(job.id.to_string());
        let writes: [&[(Recipient, &str)]; 4] = [
            &[(recipient(0), "first")],
            &[(recipient(0), "again")],
            &[(recipient(2), "second"), (recipient(0), "again")],
            &[(recipient(1), "third")],
        ];
        for given_up in writes {
            // What a crash in the middle of adding leaves must not be in the way.
            if path.exists() {
                fs::write(path.join(format!("{UNFINISHED}{RECORD}")), "torn").unwrap();
            }
            dead.write(&job, given_up).unwrap();
        }
        let record: Record = serde_json::from_slice(&fs::read(path.join(RECORD)).unwrap()).unwrap();
        let kept: Vec<_> = record.recipients.iter().map(|r| (r.index, r.reason.as_str())).collect();
        assert_eq!(kept, [(0, "first"), (2, "second"), (1, "third")]);
        assert_eq!(names(&path), [RECORD, CONTENT]);
        assert_eq!(names(root.path()), [job.id.to_string()]);
    }

    #[test]
    fn unfinished_ones_are_cleared_away_at_start() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join(format!("{UNFINISHED}000000111/x"))).unwrap();
        fs::create_dir_all(root.path().join("000000112")).unwrap();
        DeadLetters::new(root.path()).unwrap();
        assert_eq!(names(root.path()), ["000000112"]);
    }

    struct Damaged;

    impl StoredContent for Damaged {
        fn size(&self) -> u64 {
            10
        }

        fn open(&self) -> io::Result<Box<dyn io::Read + Send + '_>> {
            Ok(Box::new(&b"part"[..]))
        }
    }

    #[test]
    fn a_message_that_cannot_be_read_whole_leaves_nothing() {
        let root = tempfile::tempdir().unwrap();
        let dead = DeadLetters::new(root.path()).unwrap();
        let mut job = some_job();
        job.content = Content::Stored(Box::new(Damaged));
        assert!(dead.write(&job, &[(recipient(0), "no")]).is_err());
        assert!(names(root.path()).is_empty());
        job.content = Content::Memory(vec![]);
        dead.write(&job, &[(recipient(0), "no")]).unwrap();
        assert_eq!(names(root.path()), [job.id.to_string()]);
    }
}
