//! `incoming spool dump`: every record, in the order of the log.
//!
//! A log is read twice: a first time to learn what became of each message and what is missing, a second time to tell of each
//! record. So the dump is of the moment of the first look: what a gateway has appended since is left out, and the contents of
//! files that it has used again since are, too.
//!
//! A line for each record, and for each gap in their numbers where the number stood. Verdicts:
//!
//! ```text
//! kept      valid, and it counts
//! void      valid, and an Open record says that it does not count
//! damaged   octets that should be a record and are not
//! missing   there is no valid record with these numbers, and there had been
//! torn      there is none, and it is not known that there ever was
//! ```
//!
//! What became of a message:
//!
//! ```text
//! live         it is not done: it will be delivered
//! done         nothing more is to be done about it
//! moved        it is not done, and a later record of it counts
//! incomplete   one of its pieces is not there
//! ```

use std::fmt;
use std::io::{self, Write};
use std::ops::Range;

use serde::Serialize;

use super::look::look;
use super::{InspectError, Log, counted, kind_name};
use crate::mail::MessageId;
use crate::shard::directory::{Access, LogFile, recover};
use crate::spool::format::{
    self, IndexPayload, Kind, MessagePayload, OutcomeEntry, RecordHeader, TargetOutcomes,
};
use crate::spool::recovery::{Depth, Finding, Recovered, Seen};
use crate::spool::{Location, ReadSegment, Slot};
use crate::telemetry::Escaped;

/// Dumps the logs; false: there is damage.
pub fn dump(logs: &[Log], json: bool, out: &mut dyn Write) -> Result<bool, InspectError> {
    if !json {
        writeln!(out, "{Heads}")?;
    }
    let mut is_sound = true;
    for log in logs {
        let look = look::<()>(&log.path, Depth::Whole, |(), _| {})?;
        is_sound &= !look.has_damage();
        let gaps = gaps(&look.recovered);
        let mut dump = Dump { log, json, gaps, known: look.recovered, damaged: Vec::new(), out, file: None };
        let mut written = Ok(());
        let see = |seen| {
            if written.is_ok() {
                written = dump.see(seen);
            }
        };
        recover(&log.path, Depth::Whole, Access::Look, see)?;
        written?;
        dump.end()?;
    }
    Ok(is_sound)
}

/// A line of the dump.
#[derive(Default, Serialize)]
struct Line<'a> {
    log: &'a str,
    file: Option<String>,
    epoch: Option<u64>,
    offset: Option<u32>,
    size: Option<u32>,
    sequence: Option<u64>,
    /// Of several missing numbers the last.
    #[serde(skip_serializing_if = "Option::is_none")]
    last_sequence: Option<u64>,
    kind: Option<&'static str>,
    verdict: &'static str,
    #[serde(flatten)]
    details: Option<Details>,
}

/// What a record says.
#[derive(Serialize)]
#[serde(untagged)]
enum Details {
    Open {
        /// From the first number to the last, both included.
        voids: Vec<[u64; 2]>,
    },
    Piece {
        /// Octets of content.
        content: u32,
    },
    Message {
        message: String,
        state: &'static str,
        reverse_path: String,
        recipients: usize,
        /// Octets of content, with the trace field.
        content: u64,
        pieces: usize,
    },
    Outcomes {
        outcomes: Vec<Outcome>,
    },
    Index {
        entries: usize,
    },
    Seal {
        next_sequence: u64,
    },
}

#[derive(Serialize)]
struct Outcome {
    message: String,
    /// Nobody is left, at any target.
    done: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    target: Option<Box<str>>,
    /// They are left at other targets, too.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    here_only: bool,
    /// When the attempt began, if one was made.
    #[serde(skip_serializing_if = "Option::is_none")]
    unix_millis: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    duration_millis: Option<u32>,
    recipients: Vec<Recipient>,
    /// What the operator has ordered instead.
    #[serde(skip_serializing_if = "Option::is_none")]
    order: Option<OrderGiven>,
}

#[derive(Serialize)]
struct OrderGiven {
    order: &'static str,
    unix_millis: u64,
    by: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    note: String,
}

#[derive(Serialize)]
struct Recipient {
    index: u32,
    done: bool,
    attempts: u32,
    next_attempt: u64,
    reason: String,
}

struct Dump<'a> {
    log: &'a Log,
    json: bool,
    /// What is known since the first look.
    known: Recovered,
    /// Numbers without a record and the verdict, in order, that were not told yet.
    gaps: Vec<(Range<u64>, &'static str)>,
    /// Damaged octets that were not told yet.
    damaged: Vec<(Slot, Range<u32>)>,
    out: &'a mut dyn Write,
    /// The file that was read last.
    file: Option<(Slot, LogFile)>,
}

impl<'a> Dump<'a> {
    fn see(&mut self, seen: Seen) -> io::Result<()> {
        match seen {
            Seen::Record { sequence, .. } if sequence >= self.known.next_sequence => Ok(()),
            Seen::Record { slot, location, sequence, kind, is_void, .. } => {
                self.tell_damage(Some((slot, location.offset)))?;
                self.tell_gaps(sequence)?;
                let line = Line {
                    sequence: Some(sequence),
                    kind: Some(kind_name(kind)),
                    verdict: if is_void { "void" } else { "kept" },
                    details: self.details(slot, location, sequence),
                    ..self.line(slot, location.epoch, location.offset..location.offset + location.size)
                };
                self.tell(line)
            }
            Seen::Seal { sequence, .. } if sequence > self.known.next_sequence => Ok(()),
            Seen::Seal { slot, location, sequence } => {
                self.tell_damage(Some((slot, location.offset)))?;
                let line = Line {
                    kind: Some(kind_name(Kind::Seal)),
                    verdict: "kept",
                    details: Some(Details::Seal { next_sequence: sequence }),
                    ..self.line(slot, location.epoch, location.offset..location.offset + location.size)
                };
                self.tell(line)
            }
            Seen::Damage { slot, octets } => {
                let found = Finding::NotARecord { slot, octets: octets.clone() };
                // What only this look has found is being written.
                if self.known.findings.contains(&found) {
                    self.damaged.push((slot, octets));
                }
                Ok(())
            }
        }
    }

    fn end(mut self) -> io::Result<()> {
        self.tell_damage(None)?;
        self.tell_gaps(u64::MAX)
    }

    fn line(&self, slot: Slot, epoch: u64, octets: Range<u32>) -> Line<'a> {
        Line {
            log: &self.log.name,
            file: Some(slot.file_name()),
            epoch: Some(epoch),
            offset: Some(octets.start),
            size: Some(octets.end - octets.start),
            ..Line::default()
        }
    }

    /// Tells of damaged octets in front of this place; of all, if there is none.
    fn tell_damage(&mut self, before: Option<(Slot, u32)>) -> io::Result<()> {
        let is_before = |slot: Slot, start: u32| before.is_none_or(|(s, offset)| slot != s || start < offset);
        let (now, later) =
            std::mem::take(&mut self.damaged).into_iter().partition(|(slot, o)| is_before(*slot, o.start));
        self.damaged = later;
        let now: Vec<(Slot, Range<u32>)> = now;
        for (slot, octets) in now {
            let segment = self.known.segments.iter().find(|segment| segment.slot == slot);
            let epoch = segment.map_or(0, |segment| segment.epoch);
            let line = Line { verdict: "damaged", ..self.line(slot, epoch, octets) };
            self.tell(line)?;
        }
        Ok(())
    }

    /// Tells of missing numbers in front of this one.
    fn tell_gaps(&mut self, sequence: u64) -> io::Result<()> {
        let end = self.gaps.partition_point(|(gap, _)| gap.start < sequence);
        for (gap, verdict) in self.gaps.drain(..end).collect::<Vec<_>>() {
            let last_sequence = (gap.end - gap.start > 1).then_some(gap.end - 1);
            let sequence = Some(gap.start);
            self.tell(Line { log: &self.log.name, sequence, last_sequence, verdict, ..Line::default() })?;
        }
        Ok(())
    }

    fn tell(&mut self, line: Line<'_>) -> io::Result<()> {
        if self.json {
            serde_json::to_writer(&mut *self.out, &line)?;
            writeln!(self.out)
        } else {
            writeln!(self.out, "{line}")
        }
    }

    /// What the record says; nothing if a gateway has used the file again meanwhile.
    fn details(&mut self, slot: Slot, location: Location, sequence: u64) -> Option<Details> {
        if self.file.as_ref().is_none_or(|(open, _)| *open != slot) {
            self.file = LogFile::open(&self.log.path, slot, Access::Look).ok().map(|file| (slot, file));
        }
        let (_, file) = self.file.as_mut()?;
        let octets = file.read(u64::from(location.offset), location.size as usize).ok()?;
        let life = RecordHeader::decode(&octets)?.life;
        let (header, payload) = format::decode_record(&octets, life)?;
        if header.sequence != sequence {
            return None;
        }
        Some(match header.kind {
            Kind::Open => {
                let (_, voids) = format::decode_open(payload)?;
                let voids = voids.iter().filter(|void| !void.is_empty());
                Details::Open { voids: voids.map(|void| [void.start, void.end - 1]).collect() }
            }
            Kind::Piece => Details::Piece { content: header.payload_size },
            Kind::Message => self.message(MessagePayload::decode(payload)?, location)?,
            Kind::Outcomes => {
                let entries = format::decode_outcomes(payload)?;
                Details::Outcomes { outcomes: entries.into_iter().map(|entry| self.outcome(entry)).collect() }
            }
            Kind::Index => Details::Index { entries: IndexPayload::decode(payload)?.entries.len() },
            Kind::Seal => return None,
        })
    }

    fn message(&self, message: MessagePayload<'_>, location: Location) -> Option<Details> {
        let (envelope, _) = format::decode_envelope(message.envelope)?;
        let is_incomplete = self.known.findings.iter().any(|finding| {
            matches!(finding, Finding::PieceMissing { sequence, .. } if *sequence == message.sequence)
        });
        let state = match self.known.messages.get(message.sequence) {
            Some(live) if live.location == location => "live",
            Some(_) => "moved",
            None if is_incomplete => "incomplete",
            None => "done",
        };
        Some(Details::Message {
            message: self.id(message.sequence),
            state,
            reverse_path: envelope.reverse_path.as_str().into(),
            recipients: envelope.forward_paths.len(),
            content: message.content_size + message.trace.len() as u64,
            pieces: message.pieces.len(),
        })
    }

    fn outcome(&self, entry: OutcomeEntry) -> Outcome {
        let OutcomeEntry { sequence, is_message_done: done, made, outcomes } = entry;
        let TargetOutcomes { target, here_only, recipients, order } = outcomes;
        let recipients = recipients.into_iter().map(|recipient| Recipient {
            index: recipient.index,
            done: recipient.is_done,
            attempts: recipient.attempts,
            next_attempt: recipient.next_attempt,
            reason: recipient.reason.into(),
        });
        let is_made = made.unix_millis != 0;
        Outcome {
            message: self.id(sequence),
            done,
            target: Some(target).filter(|target| !target.is_empty()),
            here_only,
            unix_millis: is_made.then_some(made.unix_millis),
            duration_millis: is_made.then_some(made.duration_millis),
            recipients: recipients.collect(),
            order: order.map(|order| OrderGiven {
                order: order.kind.as_str(),
                unix_millis: order.unix_millis,
                by: order.by.into(),
                note: order.note.into(),
            }),
        }
    }

    fn id(&self, sequence: u64) -> String {
        MessageId { log: self.known.log, sequence }.to_string()
    }
}

/// Numbers without a record, in order, and the verdict.
fn gaps(recovered: &Recovered) -> Vec<(Range<u64>, &'static str)> {
    let gap = |finding: &Finding| match finding {
        Finding::Corrupt { sequences } => Some((sequences.clone(), "missing")),
        Finding::Torn { sequences } => Some((sequences.clone(), "torn")),
        _ => None,
    };
    let mut gaps: Vec<_> = recovered.findings.iter().filter_map(gap).collect();
    gaps.sort_by_key(|(gap, _)| gap.start);
    gaps
}

/// `columns` of the table.
fn row(f: &mut fmt::Formatter<'_>, columns: [&dyn fmt::Display; 8]) -> fmt::Result {
    let [log, file, epoch, offset, size, sequence, kind, verdict] = columns;
    write!(f, "{log:4} {file:16} {epoch:>6} {offset:>10} {size:>9} {sequence:>12} {kind:8} {verdict:8}")
}

/// A row with the names of the columns.
struct Heads;

impl fmt::Display for Heads {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        row(f, [&"LOG", &"FILE", &"EPOCH", &"OFFSET", &"SIZE", &"SEQUENCE", &"KIND", &"VERDICT"])?;
        f.write_str(" DETAILS")
    }
}

impl fmt::Display for Line<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fn or_dash<T: fmt::Display>(value: &Option<T>) -> String {
            value.as_ref().map_or_else(|| "-".into(), ToString::to_string)
        }
        let sequence = match self.last_sequence {
            Some(last) => format!("{}-{last}", self.sequence.unwrap_or_default()),
            None => or_dash(&self.sequence),
        };
        let (file, epoch, offset) = (or_dash(&self.file), or_dash(&self.epoch), or_dash(&self.offset));
        let (size, kind) = (or_dash(&self.size), or_dash(&self.kind));
        row(f, [&self.log, &file, &epoch, &offset, &size, &sequence, &kind, &self.verdict])?;
        match &self.details {
            Some(details) => write!(f, " {details}"),
            None => Ok(()),
        }
    }
}

impl fmt::Display for Details {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Details::Open { voids } if voids.is_empty() => f.write_str("voids nothing"),
            Details::Open { voids } => {
                let voids = voids.iter().map(|[first, last]| format!("{first}-{last}"));
                write!(f, "voids {}", voids.collect::<Vec<_>>().join(", "))
            }
            Details::Piece { content } => write!(f, "{content} octets of content"),
            Details::Message { message, state, reverse_path, recipients, content, pieces } => {
                let from = Escaped(reverse_path.as_bytes());
                let recipients = counted(*recipients, "recipient");
                write!(f, "{message} {state}, from <{from}>, {recipients}, {content} octets")?;
                if *pieces > 0 { write!(f, ", {}", counted(*pieces, "piece")) } else { Ok(()) }
            }
            Details::Outcomes { outcomes } => {
                let outcomes = outcomes.iter().map(ToString::to_string);
                f.write_str(&outcomes.collect::<Vec<_>>().join("; "))
            }
            Details::Index { entries } => write!(f, "of {entries} records"),
            Details::Seal { next_sequence } => write!(f, "every record before {next_sequence} is durable"),
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.message)?;
        if let Some(OrderGiven { order, by, note, .. }) = &self.order {
            let (by, note) = (Escaped(by.as_bytes()), Escaped(note.as_bytes()));
            return write!(f, " [{order}, ordered by {by}: {note}]");
        }
        if self.done {
            return f.write_str(" done");
        }
        for recipient in &self.recipients {
            let Recipient { index, done, attempts, next_attempt, reason } = recipient;
            match done {
                true => write!(f, " [{index} done]")?,
                false => {
                    let reason = Escaped(reason.as_bytes());
                    write!(f, " [{index} deferred, {attempts} attempts, next {next_attempt}, {reason}]")?;
                }
            }
        }
        Ok(())
    }
}
