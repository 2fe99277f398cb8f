//! `incoming spool export`: the messages that are not done, as files, for a gateway that does not run any more or for another system.
//!
//! ```text
//! <dir>/<message id>.eml     the content as it would be delivered: our trace field, then what was accepted, octet for octet
//! <dir>/<message id>.json    envelope, arrival, and the recipients that still need an attempt; names as in dead.json
//! ```
//!
//! Invariants:
//! - a file with one of these names is whole: it got its name when it was, and `<id>.eml` before `<id>.json`;
//! - when the command has ended without a fault, all of it is on stable storage;
//! - one piece of content is in memory at a time.
//!
//! A message that cannot be read whole is named, and the others are exported. Where a gateway runs it may have been delivered, or
//! moved to another segment, since it was looked for: so before it is called damaged, it is looked for again.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Serialize;

use super::look::look;
use super::{InspectError, Log, Reader, complain, counted, words};
use crate::delivery::record::{ArrivalRecord, EnvelopeRecord};
use crate::delivery::{Content, CopyError, StoredContent, folder};
use crate::limits::COPY_SIZE;
use crate::mail::MessageId;
use crate::shard::read_back::StoredMessage;
use crate::spool::recovery::Depth;
use crate::spool::{Entry, Lane, Outstanding};

/// A message that cannot be read is looked for again so often. More than the segments that a gateway goes through meanwhile.
const ROUNDS_MAX: usize = 3;
/// Files that are synced together: the first of them pays for most of the others.
const UNSYNCED_MAX: usize = 128;
/// What the name of a file begins with that is not whole yet.
const UNFINISHED: &str = ".unfinished-";

/// Exports the messages with these ids, or all; false: some are damaged, or are not there.
pub fn export(
    logs: &[Log],
    data: &Path,
    folder: &Path,
    ids: &[MessageId],
    out: &mut dyn Write,
) -> Result<bool, InspectError> {
    let mut export = Export {
        folder: Folder::new(folder, data)?,
        wanted: ids.iter().copied().collect(),
        all: ids.is_empty(),
        count: 0,
        is_sound: true,
    };
    for log in logs {
        export.export_log(log)?;
    }
    export.folder.end()?;
    for id in &export.wanted {
        complain(&format_args!("message {id} is not in the spool: it is done, or was never accepted"));
        export.is_sound = false;
    }
    writeln!(out, "{} written to {}", counted(export.count, "message"), folder.display())?;
    Ok(export.is_sound)
}

struct Export {
    folder: Folder,
    /// Those that were named and not found yet.
    wanted: BTreeSet<MessageId>,
    all: bool,
    count: usize,
    is_sound: bool,
}

impl Export {
    fn export_log(&mut self, log: &Log) -> Result<(), InspectError> {
        let mut failed: Option<BTreeSet<u64>> = None;
        for round in 1..=ROUNDS_MAX {
            let look = look::<()>(&log.path, Depth::Quick, |(), _| {})?;
            let recovered = look.recovered;
            if round == 1 {
                for finding in recovered.findings.iter().filter(|finding| finding.is_damage()) {
                    complain(&format_args!("log {}: {}", log.name, words(finding, recovered.log)));
                    self.is_sound = false;
                }
                if !look.is_settled {
                    let words = "its files were used again while they were read, and messages may be missing: stop the \
                                 gateway, or export again";
                    complain(&format_args!("log {}: {words}", log.name));
                    self.is_sound = false;
                }
            }
            let reader = Reader::new(log, &recovered);
            let mut failures = Vec::new();
            for (sequence, message) in recovered.messages.iter() {
                let id = MessageId { log: recovered.log, sequence };
                let is_wanted = match &failed {
                    Some(failed) => failed.contains(&sequence),
                    None => self.all || self.wanted.remove(&id),
                };
                if !is_wanted {
                    continue;
                }
                match self.folder.write_message(id, message, &reader)? {
                    Ok(()) => self.count += 1,
                    Err(error) => failures.push((id, error)),
                }
            }
            if round == ROUNDS_MAX {
                for (id, error) in &failures {
                    complain(&format_args!("log {}: message {id} is damaged: {error}", log.name));
                    self.is_sound = false;
                }
            }
            if failures.is_empty() {
                break;
            }
            failed = Some(failures.iter().map(|(id, _)| id.sequence).collect());
        }
        Ok(())
    }
}

/// Where the files go.
struct Folder {
    path: PathBuf,
    /// Whole, and not synced yet.
    unsynced: Vec<(PathBuf, File)>,
}

impl Folder {
    /// Makes it, if it is missing; it is empty, and not in `data`.
    fn new(path: &Path, data: &Path) -> Result<Self, InspectError> {
        let failed = |error| InspectError::Write { path: path.display().to_string(), error };
        let absolute = std::path::absolute(path).map_err(failed)?;
        // As far as it is there, links are followed.
        let there = absolute.ancestors().find_map(|ancestor| fs::canonicalize(ancestor).ok());
        if let Ok(data) = fs::canonicalize(data)
            && there.is_some_and(|there| there.starts_with(data))
        {
            return Err(InspectError::InData(path.display().to_string()));
        }
        folder::create(path).map_err(failed)?;
        if fs::read_dir(path).map_err(failed)?.next().is_some() {
            return Err(InspectError::NotEmpty(path.display().to_string()));
        }
        Ok(Folder { path: absolute, unsynced: Vec::new() })
    }

    /// Writes the files of a message. The inner error: it cannot be read, and nothing of it is left here.
    fn write_message(
        &mut self,
        id: MessageId,
        message: &Entry,
        reader: &Reader,
    ) -> Result<io::Result<()>, InspectError> {
        let stored = match reader.read(id.sequence, message) {
            Ok(stored) => stored,
            Err(error) => return Ok(Err(error)),
        };
        let record = Record::of(id, message, &reader.lanes, &stored);
        let StoredMessage { content, .. } = stored;
        let content = Content::Stored(Box::new(content));
        let (name, unfinished) = (format!("{id}.eml"), self.path.join(format!("{UNFINISHED}{id}.eml")));
        let failed = |error| self.failed(&name, error);
        let mut file = BufWriter::with_capacity(COPY_SIZE, create(&unfinished).map_err(failed)?);
        match content.copy_to(&mut file) {
            Ok(()) => {}
            Err(CopyError::Read(error)) => {
                drop(file);
                fs::remove_file(&unfinished).map_err(failed)?;
                return Ok(Err(error));
            }
            Err(CopyError::Write(error)) => return Err(failed(error)),
        }
        let file = file.into_inner().map_err(|error| failed(error.into_error()))?;
        self.name(&unfinished, name, file)?;
        self.write_record(id, &record)?;
        Ok(Ok(()))
    }

    fn write_record(&mut self, id: MessageId, record: &Record) -> Result<(), InspectError> {
        let (name, unfinished) = (format!("{id}.json"), self.path.join(format!("{UNFINISHED}{id}.json")));
        let mut text = serde_json::to_vec_pretty(record).expect("a record is plain data");
        text.push(b'\n');
        let written = create(&unfinished).and_then(|mut file| file.write_all(&text).map(|()| file));
        let file = written.map_err(|error| self.failed(&name, error))?;
        self.name(&unfinished, name, file)
    }

    fn name(&mut self, unfinished: &Path, name: String, file: File) -> Result<(), InspectError> {
        let path = self.path.join(&name);
        fs::rename(unfinished, &path).map_err(|error| self.failed(&name, error))?;
        self.unsynced.push((path, file));
        if self.unsynced.len() == UNSYNCED_MAX { self.sync() } else { Ok(()) }
    }

    fn sync(&mut self) -> Result<(), InspectError> {
        for (path, file) in self.unsynced.drain(..) {
            file.sync_all()
                .map_err(|error| InspectError::Write { path: path.display().to_string(), error })?;
        }
        Ok(())
    }

    /// Makes everything durable.
    fn end(&mut self) -> Result<(), InspectError> {
        self.sync()?;
        folder::sync(&self.path)
            .map_err(|error| InspectError::Write { path: self.path.display().to_string(), error })
    }

    fn failed(&self, name: &str, error: io::Error) -> InspectError {
        InspectError::Write { path: self.path.join(name).display().to_string(), error }
    }
}

fn create(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)
}

/// `<id>.json`. Times are seconds since 1970.
#[derive(Serialize)]
struct Record {
    message_id: String,
    /// Octets of `<id>.eml`.
    size: u64,
    envelope: EnvelopeRecord,
    arrival: ArrivalRecord,
    /// Not before this; 0: at once.
    next_attempt: u64,
    /// Those that still need an attempt.
    recipients: Vec<RecipientRecord>,
}

#[derive(Serialize)]
struct RecipientRecord {
    /// Place in `envelope.forward_paths`, from 0.
    index: u32,
    forward_path: String,
    /// Who is to get it for this recipient, where the log knows.
    #[serde(skip_serializing_if = "Option::is_none")]
    target: Option<String>,
    /// Attempts made.
    attempts: u32,
    /// Why the last of them did not deliver; null before the first.
    reason: Option<String>,
}

impl Record {
    fn of(id: MessageId, message: &Entry, lanes: &[Arc<str>], stored: &StoredMessage) -> Self {
        let envelope = &stored.envelope;
        let path = |index: u32| {
            let path = envelope.forward_paths.get(index as usize);
            path.map_or_else(String::new, |path| path.as_str().into())
        };
        let recipient = |(lane, left): (Lane, Outstanding)| RecipientRecord {
            index: left.index,
            forward_path: path(left.index),
            target: lanes
                .get(usize::from(lane.0))
                .filter(|name| !name.is_empty())
                .map(|name| name.to_string()),
            attempts: left.attempts,
            reason: left.reason.as_deref().map(str::to_owned),
        };
        let recipients = message.outstanding().into_iter().map(recipient).collect();
        Record {
            message_id: id.to_string(),
            size: stored.content.size(),
            envelope: EnvelopeRecord::from(envelope),
            arrival: ArrivalRecord::from(&stored.arrival),
            next_attempt: message.due().unwrap_or(0) / 1000,
            recipients,
        }
    }
}
