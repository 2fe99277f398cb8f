//! `incoming spool verify`: is every record of every log sound, and what is there?
//!
//! Every record is read with its checksums, the records of sealed segments too, of which a start reads the index only. Damage
//! is named with the ids of the messages it hit, as far as they can be known: of a sealed segment its index tells them.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::time::{Duration, SystemTime};

use serde::Serialize;

use super::look::{Look, look};
use super::{
    InspectError, Log, Reader, complain, counted, finding_name, kind_name, outstanding_count, words,
};
use crate::mail::MessageId;
use crate::spool::format::Kind;
use crate::spool::recovery::{Depth, Finding, Recovered, Seen};

/// What is counted of a log's records.
#[derive(Default)]
struct Tally {
    by_kind: BTreeMap<&'static str, u64>,
    size: u64,
}

impl Tally {
    fn see(&mut self, seen: Seen) {
        let (kind, location) = match seen {
            Seen::Record { kind, location, .. } => (kind, location),
            Seen::Seal { location, .. } => (Kind::Seal, location),
            Seen::Damage { .. } => return,
        };
        *self.by_kind.entry(kind_name(kind)).or_default() += 1;
        self.size += u64::from(location.size);
    }
}

/// A log, told.
#[derive(Serialize)]
struct Report<'a> {
    log: &'a str,
    /// No damage.
    sound: bool,
    /// How often it was looked.
    looks: u32,
    /// No file was used again meanwhile.
    settled: bool,
    segments: Segments,
    records: &'a BTreeMap<&'static str, u64>,
    octets: Octets,
    /// Messages that are not done.
    messages: usize,
    /// Their recipients that still need an attempt.
    recipients: usize,
    /// Since the first of them was accepted.
    oldest_seconds: Option<u64>,
    findings: Vec<Told>,
    /// Ids of messages that are lost, as far as they can be known.
    damaged_messages: Vec<String>,
}

#[derive(Serialize)]
struct Segments {
    /// With records.
    used: usize,
    free: usize,
    unfinished: usize,
}

#[derive(Serialize)]
struct Octets {
    /// Of records that messages need which are not done.
    live: u64,
    /// Of all records.
    used: u64,
    /// Of segment files.
    files: u64,
}

#[derive(Serialize)]
struct Told {
    finding: &'static str,
    damage: bool,
    text: String,
}

/// Verifies the logs; false: there is damage.
pub fn verify(logs: &[Log], json: bool, out: &mut dyn Write) -> Result<bool, InspectError> {
    let mut is_sound = true;
    for log in logs {
        let look = look(&log.path, Depth::Whole, Tally::see)?;
        is_sound &= !look.has_damage();
        let damaged =
            if look.has_damage() { damaged_messages(log, &look.recovered)? } else { BTreeSet::new() };
        let report = Report::of(log, &look, &damaged);
        // Both may go to one terminal: first what is there, then what is not.
        if json {
            serde_json::to_writer(&mut *out, &report).map_err(std::io::Error::from)?;
            writeln!(out)?;
        } else {
            report.print(out)?;
        }
        out.flush()?;
        for told in report.findings.iter().filter(|told| told.damage) {
            complain(&format_args!("log {}: {}", log.name, told.text));
        }
        for id in &report.damaged_messages {
            complain(&format_args!("log {}: message {id} is damaged: it cannot be delivered", log.name));
        }
    }
    Ok(is_sound)
}

impl<'a> Report<'a> {
    fn of(log: &'a Log, look: &'a Look<Tally>, damaged: &BTreeSet<u64>) -> Self {
        let recovered = &look.recovered;
        let files = recovered.segments.iter().map(|segment| segment.size);
        let files = files.chain(recovered.free.iter().map(|(_, size)| *size)).map(u64::from).sum();
        let told = |finding: &Finding| Told {
            finding: finding_name(finding),
            damage: finding.is_damage(),
            text: words(finding, recovered.log),
        };
        let id = |sequence: &u64| MessageId { log: recovered.log, sequence: *sequence }.to_string();
        Report {
            log: &log.name,
            sound: !look.has_damage(),
            looks: look.count,
            settled: look.is_settled,
            segments: Segments {
                used: recovered.segments.len(),
                free: recovered.free.len(),
                unfinished: recovered.unfinished.len(),
            },
            records: &look.tally.by_kind,
            octets: Octets { live: live_size(recovered), used: look.tally.size, files },
            messages: recovered.messages.len(),
            recipients: recovered.messages.iter().map(|(_, message)| outstanding_count(message)).sum(),
            oldest_seconds: oldest_age(log, recovered).map(|age| age.as_secs()),
            findings: recovered.findings.iter().map(told).collect(),
            damaged_messages: damaged.iter().map(id).collect(),
        }
    }

    fn print(&self, out: &mut dyn Write) -> std::io::Result<()> {
        let Report { log, segments, octets, .. } = self;
        writeln!(out, "log {log}: {}", if self.sound { "sound" } else { "damaged" })?;
        let Segments { used, free, unfinished } = segments;
        writeln!(out, "  segments  {used} with records, {free} free, {unfinished} unfinished")?;
        let records = self.records.iter().map(|(kind, count)| format!("{count} {kind}"));
        let records = records.collect::<Vec<_>>().join(", ");
        writeln!(out, "  records   {}", if records.is_empty() { "none" } else { &records })?;
        let Octets { live, used, files } = octets;
        writeln!(out, "  octets    {live} live, {used} in records, {files} in files")?;
        let recipients = counted(self.recipients, "recipient");
        write!(out, "  messages  {} not done, {recipients} outstanding", self.messages)?;
        match self.oldest_seconds {
            Some(age) => {
                let age = humantime::format_duration(Duration::from_secs(age));
                writeln!(out, ", the oldest for {age}")?;
            }
            None => writeln!(out)?,
        }
        if !self.settled {
            writeln!(
                out,
                "  a gateway used files again at each of {} looks: counts are about right",
                self.looks
            )?;
        }
        for told in self.findings.iter().filter(|told| !told.damage) {
            writeln!(out, "  {}", told.text)?;
        }
        Ok(())
    }
}

/// Octets of the records that messages need which are not done.
fn live_size(recovered: &Recovered) -> u64 {
    let sizes = recovered.messages.iter().map(|(_, message)| {
        let pieces = message.pieces.iter().map(|piece| piece.record_size() as u64);
        u64::from(message.location.size) + pieces.sum::<u64>()
    });
    sizes.sum()
}

/// How long the message with the lowest number has waited. One that a gateway has delivered meanwhile may not be there any more.
fn oldest_age(log: &Log, recovered: &Recovered) -> Option<Duration> {
    let reader = Reader::new(log, recovered);
    let mut messages = recovered.messages.iter();
    let oldest = messages.find_map(|(sequence, message)| reader.read(sequence, message).ok())?;
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Some(Duration::from_secs(now.as_secs().saturating_sub(oldest.arrival.unix_time)))
}

/// The numbers of messages that were not done and are lost: those that indexes tell of and that cannot be read, and those
/// without a piece.
fn damaged_messages(log: &Log, whole: &Recovered) -> Result<BTreeSet<u64>, InspectError> {
    let quick = look::<()>(&log.path, Depth::Quick, |(), _| {})?.recovered;
    let reader = Reader::new(log, &quick);
    let lost = quick.messages.range(0, whole.next_sequence).filter(|(sequence, message)| {
        !whole.messages.contains(*sequence) && reader.read(*sequence, message).is_err()
    });
    let incomplete = whole.findings.iter().filter_map(|finding| match finding {
        Finding::PieceMissing { sequence, was_durable: true } => Some(*sequence),
        _ => None,
    });
    Ok(lost.map(|(sequence, _)| sequence).chain(incomplete).collect())
}
