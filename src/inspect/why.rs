//! `incoming why`: everything that happened to a message, in order, and what happens next.
//!
//! What is told comes from records: those of the spool, the dead letters, and the list of what was sent again. No log file is read, and
//! no gateway is asked: it may run or not.
//!
//! - The log of a message is the one that has the first half of its id. It is read from the message's segment on and up to its end, or to
//!   where the message is done: see [`follow`]. Records that an Open record voids do not count; that a message was moved is not told.
//! - Files that a gateway uses again while they are read are noticed by their lives; then it is looked again.
//! - What was recycled is gone. Then it is said how far back the log remembers.
//!
//! Exit code 0: the message is known; 1: it is not, and where was looked is said; or something cannot be read.
//!
//! [`follow`]: crate::spool::recovery::follow

mod story;
#[cfg(test)]
mod tests;
mod words;

use std::io::{self, Write};
use std::path::Path;
use std::time::SystemTime;

use clap::Args;

use super::{InspectError, chosen};
use crate::config::{Config, Queue};
use crate::delivery::DeadLetters;
use crate::mail::MessageId;
use crate::shard::directory::{self, DirectoryError, lives};
use crate::spool::format::{self, Kind, OutcomeEntry, TargetOutcomes};
use crate::spool::recovery::{Met, Trail};

use story::{Ground, Missing, Story, Told};

/// A file that is used again while it is read has the log looked at again, so often at most.
const LOOKS_MAX: u32 = 3;

/// Which message.
#[derive(Args)]
pub struct WhyCommand {
    /// Its message id, as in the reply `queued as …`.
    id: MessageId,
    /// One JSON object.
    #[arg(long)]
    json: bool,
}

/// Tells what happened to the message; false: nobody knows it.
pub(super) fn why(command: &WhyCommand, config: &Config, out: &mut dyn Write) -> Result<bool, InspectError> {
    let ground = Ground::here(config, SystemTime::now());
    let told = tell(command.id, &ground)?;
    if command.json {
        serde_json::to_writer(&mut *out, &told).map_err(io::Error::from)?;
        writeln!(out)?;
    } else {
        match &told {
            Told::Known(story) => write!(out, "{}", words::Shown { story, now: ground.now })?,
            Told::Unknown(missing) => super::complain(missing),
        }
    }
    Ok(matches!(told, Told::Known(_)))
}

/// What the records say of the message.
fn tell(id: MessageId, ground: &Ground) -> Result<Told, InspectError> {
    let logs = match chosen(&ground.spool, &[]) {
        Err(InspectError::Directory(DirectoryError::NoSpool(_))) => Vec::new(),
        logs => logs?,
    };
    let mut missing = Missing::new(id, ground);
    let mut trace = None;
    for log in &logs {
        missing.looked.push(log.name.clone());
        if let Some(found) = look(&log.path, id)? {
            trace = Some((log.name.clone(), found));
            break;
        }
    }
    let dead = DeadLetters::open(&ground.dead);
    let after = story::Afterlife::of(&dead, id);
    if let Some((log, trace)) = trace {
        if trace.message.is_some() {
            return Ok(Told::Known(Box::new(Story::of(id, &log, trace, &after, ground))));
        }
        missing.met(&log, &trace, id);
    }
    Ok(match Story::of_letter(id, &after, ground) {
        Some(story) => Told::Known(Box::new(story)),
        None => {
            missing.sent = after.sent;
            missing.unreadable = after.unreadable;
            Told::Unknown(Box::new(missing))
        }
    })
}

/// What was met of a message in its log.
#[derive(Default)]
struct Trace {
    message: Option<Stored>,
    outcomes: Vec<OutcomeEntry>,
    /// The record with its number does not count.
    is_void: bool,
    /// The record with its number is one of these.
    other: Option<Kind>,
    trail: Trail,
    /// Files were used again during each look: something may be missing.
    is_unsettled: bool,
}

/// What a Message record says.
struct Stored {
    /// As it was when the message came.
    is_first: bool,
    envelope: crate::mail::Envelope,
    arrival: crate::mail::Arrival,
    /// Octets, with the trace field.
    size: u64,
    /// What had become of its recipients before this record was written; of the first nothing.
    progress: Vec<TargetOutcomes>,
}

/// Looks for the message in this log; `None`: it is another's.
fn look(log: &Path, id: MessageId) -> Result<Option<Trace>, InspectError> {
    let mut before = lives(log)?;
    for count in 1.. {
        let mut trace = Trace::default();
        let is_wanted = |log| log == id.log;
        trace.trail = {
            let trace = &mut trace;
            directory::follow(log, is_wanted, id.sequence, |met| trace.meet(id.sequence, met))?
        };
        if trace.trail.log != id.log {
            return Ok(None);
        }
        let after = lives(log)?;
        let is_settled = before.iter().all(|(slot, life)| after.get(slot) == Some(life));
        trace.is_unsettled = !is_settled;
        if is_settled || count == LOOKS_MAX {
            return Ok(Some(trace));
        }
        before = after;
    }
    unreachable!("the last look ends it")
}

impl Trace {
    fn meet(&mut self, sequence: u64, met: Met<'_>) {
        match met {
            Met::Message { record, payload } => {
                // What was moved says nothing new, unless the first is gone.
                if self.message.is_some() {
                    return;
                }
                let size = payload.content_size + payload.trace.len() as u64;
                self.message = format::decode_envelope(payload.envelope).map(|(envelope, arrival)| Stored {
                    is_first: record == sequence,
                    envelope,
                    arrival,
                    size,
                    progress: payload.progress,
                });
            }
            Met::Outcomes(entry) => self.outcomes.push(entry),
            Met::Void => self.is_void = true,
            Met::Other(kind) => self.other = Some(kind),
        }
    }
}

/// Is the queue in files?
fn is_on_disk(config: &Config) -> bool {
    config.spool.queue == Queue::Disk
}
