//! `incoming spool …`: what is in a spool, for the operator.
//!
//! - `verify`: is it sound, and what is in it?
//! - `dump`: every record, in the order of the log;
//! - `export`: the messages that wait, as files.
//!
//! And `incoming why ID`, which follows one message: see [`why_message`].
//!
//! Promises, of all three:
//! - nothing under the data folder is made, written or locked: the gateway may run or not;
//! - what is called damaged was found so by every look at the log, and nobody was using its files again meanwhile, or it was found
//!   three times: see `look`;
//! - exit code 0: what was looked at is sound and was read whole; 1: it is not, or could not be read; 2: the command makes no
//!   sense here, and nothing was done;
//! - damage and faults go to standard error, everything else to standard output;
//! - what strangers wrote is escaped where a terminal shows it.
//!
//! In memory is what a start of the gateway holds: the octets of one segment, and an entry for each message that is not done.
//!
//! Knows nothing of shards that run, of sessions and of delivery.

mod dump;
mod export;
mod look;
mod verify;
mod why;

use std::collections::HashMap;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use clap::{Args, Subcommand};

use crate::config::Config;
use crate::mail::MessageId;
use crate::shard::directory::{self, DirectoryError};
use crate::shard::medium::Opener;
use crate::shard::read_back::{Batch, StoredMessage, Wanted};
use crate::spool::format::Kind;
use crate::spool::recovery::{Finding, Recovered};
use crate::spool::{Entry, Lane, Slot};

pub use why::WhyCommand;

const UNSOUND: u8 = 1;
const USAGE: u8 = 2;

/// What is to be done with the spool.
#[derive(Subcommand)]
pub enum SpoolCommand {
    /// Checks every record of every log with its checksums, and says what is there. Exit code 1: there is damage.
    Verify {
        #[command(flatten)]
        logs: Logs,
        /// One JSON object a line, for each log.
        #[arg(long)]
        json: bool,
    },
    /// Prints every record in the order of the log, a line each.
    Dump {
        #[command(flatten)]
        logs: Logs,
        /// One JSON object a line.
        #[arg(long)]
        json: bool,
    },
    /// Writes the messages that are not done to a folder: ID.eml as it would be delivered, ID.json with its envelope.
    Export {
        /// An empty folder, or one to be made.
        #[arg(value_name = "DIR")]
        folder: PathBuf,
        /// These messages only.
        #[arg(value_name = "ID")]
        ids: Vec<MessageId>,
        #[command(flatten)]
        logs: Logs,
    },
}

/// Some logs or all.
#[derive(Args)]
pub struct Logs {
    /// This log only, as 0 for the folder 000; may be repeated.
    #[arg(long = "log", value_name = "N")]
    numbers: Vec<usize>,
}

/// Why a command was not carried out, and what to do about it.
#[derive(Debug, thiserror::Error)]
enum InspectError {
    /// The spool cannot be read.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    /// A log was named that is not there.
    #[error("there is no log {wanted}: there are {there}")]
    NoLog { wanted: usize, there: String },
    /// Files are not to be mixed with others.
    #[error("{0} is not empty: name another folder, or one that does not exist yet")]
    NotEmpty(String),
    /// Nothing is written there.
    #[error("{0} is in the gateway's data folder, where nothing is written: name another folder")]
    InData(String),
    /// A file was not written.
    #[error("cannot write {path}: {error}")]
    Write { path: String, error: io::Error },
    /// The answer was not written.
    #[error("cannot write the answer: {0}")]
    Answer(#[from] io::Error),
}

impl InspectError {
    fn is_usage(&self) -> bool {
        use InspectError::*;
        matches!(self, NoLog { .. } | NotEmpty(_) | InData(_))
    }
}

/// Does what was asked, and says so.
pub fn run(command: SpoolCommand, config: &Config) -> ExitCode {
    answer(|out| carry_out(command, config, out))
}

/// Tells what happened to a message.
pub fn why_message(command: &WhyCommand, config: &Config) -> ExitCode {
    answer(|out| why::why(command, config, out))
}

fn answer(carry_out: impl FnOnce(&mut dyn Write) -> Result<bool, InspectError>) -> ExitCode {
    let mut out = BufWriter::new(io::stdout().lock());
    let done = carry_out(&mut out).and_then(|is_sound| {
        out.flush()?;
        Ok(is_sound)
    });
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(UNSOUND),
        // Whoever read the answer has had enough of it.
        Err(InspectError::Answer(e)) if e.kind() == io::ErrorKind::BrokenPipe => ExitCode::from(UNSOUND),
        Err(e) => {
            complain(&e);
            ExitCode::from(if e.is_usage() { USAGE } else { UNSOUND })
        }
    }
}

/// False: something is not sound, and was named.
fn carry_out(command: SpoolCommand, config: &Config, out: &mut dyn Write) -> Result<bool, InspectError> {
    let logs = |logs: Logs| chosen(&config.spool_dir(), &logs.numbers);
    match command {
        SpoolCommand::Verify { logs: wanted, json } => verify::verify(&logs(wanted)?, json, out),
        SpoolCommand::Dump { logs: wanted, json } => dump::dump(&logs(wanted)?, json, out),
        SpoolCommand::Export { folder, ids, logs: wanted } => {
            export::export(&logs(wanted)?, &config.data, &folder, &ids, out)
        }
    }
}

fn complain(fault: &dyn std::fmt::Display) {
    let _ = writeln!(io::stderr(), "incoming: {fault}");
}

/// A log's folder, and its name there.
struct Log {
    name: String,
    path: PathBuf,
}

fn chosen(spool: &Path, numbers: &[usize]) -> Result<Vec<Log>, InspectError> {
    let there = directory::list(spool)?;
    let named = |(number, path): (&usize, &PathBuf)| Log { name: format!("{number:03}"), path: path.clone() };
    if let Some(wanted) = numbers.iter().copied().find(|number| !there.contains_key(number)) {
        let there = there.iter().map(|log| named(log).name).collect::<Vec<_>>().join(", ");
        return Err(InspectError::NoLog { wanted, there });
    }
    Ok(there.iter().filter(|(number, _)| numbers.is_empty() || numbers.contains(number)).map(named).collect())
}

/// Reads messages of a log that was looked at.
struct Reader {
    opener: Opener,
    segments: HashMap<u64, (Slot, u64)>,
    /// The names of targets, by lane.
    lanes: Vec<Arc<str>>,
}

impl Reader {
    fn new(log: &Log, recovered: &Recovered) -> Self {
        let segments = recovered.segments.iter().map(|segment| (segment.epoch, (segment.slot, segment.life)));
        Reader {
            opener: Opener::of_folder(&log.path),
            segments: segments.collect(),
            lanes: recovered.lanes.clone(),
        }
    }

    /// The message; its pieces are read, each by itself, when its content is.
    fn read(&self, sequence: u64, message: &Entry) -> io::Result<StoredMessage> {
        let segment = |epoch: u64| {
            let missing = || io::Error::new(io::ErrorKind::InvalidData, "a segment of it is missing");
            self.segments.get(&epoch).copied().ok_or_else(missing)
        };
        let pieces = message.pieces.iter().map(|piece| Ok((*piece, segment(piece.epoch)?)));
        let wanted = Wanted {
            sequence,
            lane: Lane::UNROUTED,
            location: message.location,
            segment: segment(message.location.epoch)?,
            pieces: pieces.collect::<io::Result<_>>()?,
        };
        let mut read = Batch { messages: vec![wanted], ..Batch::default() }.read(&self.opener);
        read.pop().expect("what is wanted comes back").message
    }
}

/// How many forward-paths of the message still need an attempt.
fn outstanding_count(message: &Entry) -> usize {
    let mut left: Vec<u32> = message.outstanding().into_iter().map(|(_, left)| left.index).collect();
    left.sort_unstable();
    left.dedup();
    left.len()
}

/// A count and what is counted, as `1 message` or `2 messages`.
fn counted(count: usize, noun: &str) -> String {
    let ending = if count == 1 { "" } else { "s" };
    format!("{count} {noun}{ending}")
}

fn kind_name(kind: Kind) -> &'static str {
    match kind {
        Kind::Open => "open",
        Kind::Piece => "piece",
        Kind::Message => "message",
        Kind::Outcomes => "outcomes",
        Kind::Index => "index",
        Kind::Seal => "seal",
    }
}

/// The finding in words, with the message ids that it is about.
fn words(finding: &Finding, log: u32) -> String {
    let id = |sequence| MessageId { log, sequence };
    match finding {
        Finding::Corrupt { sequences } if sequences.end - sequences.start == 1 => {
            format!("{finding} (of message {}, if it was a message)", id(sequences.start))
        }
        Finding::Torn { .. } => {
            format!("{finding}: no damage, and where a gateway runs it is being written")
        }
        Finding::NotARecord { .. } => format!("{finding}: no damage unless records are missing"),
        Finding::PieceMissing { sequence, .. } => format!("{finding} (message {})", id(*sequence)),
        _ => finding.to_string(),
    }
}

/// What kind of finding it is, for programs.
fn finding_name(finding: &Finding) -> &'static str {
    match finding {
        Finding::Corrupt { .. } => "corrupt",
        Finding::Torn { .. } => "torn",
        Finding::PieceMissing { .. } => "piece_missing",
        Finding::NotARecord { .. } => "not_a_record",
        Finding::HeaderLost { .. } => "header_lost",
        Finding::SegmentTwice { .. } => "segment_twice",
    }
}
