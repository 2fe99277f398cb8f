//! What a server made of what it acknowledged: a run's ledger held against the messages that were delivered.
//!
//! Every file below the given folders is read once; its name is taken from the field that [`crate::content`] puts into
//! every message, wherever below the fields that servers put before it that stands. From that line on the octets are
//! compared with what was sent.
//!
//! Promises:
//! - every message of the ledger is told of as *missing* that has fewer copies than it should have, as *duplicated* that
//!   has more, and as *altered* of which any copy is not what was sent, octet for octet;
//! - memory is some 40 octets for each message of the ledger, whatever the sizes and the number of the files.
//!
//! A message that was delivered although the ledger does not know of it is no fault: its 250 was lost on the way
//! (RFC 5321 §6.1), or the harness was killed before it was written down. Of such a message nothing else is known, so its
//! content is not compared.

mod compare;
mod findings;

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::content::{MessageId, corpus};
use crate::ledger::{self, Entry, Header};

pub use compare::Alteration;
pub use findings::{Copies, Findings, Named, Place};

use compare::{Comparison, Expected};

/// What is to be verified.
#[derive(Clone, Debug)]
pub struct Question {
    /// What was acknowledged.
    pub ledger: PathBuf,
    /// Where it was delivered to; at least one.
    pub folders: Vec<PathBuf>,
    /// A copy is expected for each accepted recipient, not one for each message.
    pub is_per_recipient: bool,
    /// So many messages of each kind are named.
    pub list_max: usize,
}

/// What cannot be verified, in words.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// The ledger cannot be read, or is none.
    #[error("the ledger {path}: {error}")]
    Ledger {
        /// Where it should be.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// A folder or a message cannot be read.
    #[error("{path}: {error}")]
    Delivered {
        /// Which.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// Files would be counted twice.
    #[error("{0} is given twice, or lies below another folder that is given")]
    Overlap(PathBuf),
}

/// Reads everything, and judges it.
///
/// # Errors
/// [`VerifyError`]: then nothing can be said of any message.
pub fn verify(question: &Question) -> Result<Findings, VerifyError> {
    let (header, entries) = ledger::read(&question.ledger)
        .map_err(|error| VerifyError::Ledger { path: question.ledger.clone(), error })?;
    let folders = distinct_folders(&question.folders)?;
    let mut search = Search::new(&header, &entries, question.list_max);
    for folder in &folders {
        let mut fault = None;
        let walked = corpus::for_each_file(folder, &mut |path| {
            if path.extension().is_some_and(|extension| extension == "json") {
                return Ok(());
            }
            let read = search.take(path);
            if read.is_err() {
                fault = Some(path.to_owned());
            }
            read
        });
        walked.map_err(|error| VerifyError::Delivered {
            path: fault.unwrap_or_else(|| folder.clone()),
            error,
        })?;
    }
    Ok(search.findings(question))
}

fn distinct_folders(folders: &[PathBuf]) -> Result<Vec<PathBuf>, VerifyError> {
    let mut distinct: Vec<PathBuf> = Vec::new();
    for folder in folders {
        let delivered = |error| VerifyError::Delivered { path: folder.clone(), error };
        let whole = fs::canonicalize(folder).map_err(delivered)?;
        if !whole.is_dir() {
            return Err(delivered(io::ErrorKind::NotADirectory.into()));
        }
        if distinct.iter().any(|other| whole.starts_with(other) || other.starts_with(&whole)) {
            return Err(VerifyError::Overlap(folder.clone()));
        }
        distinct.push(whole);
    }
    Ok(distinct)
}

/// What has been seen so far.
struct Search<'a> {
    header: &'a Header,
    run: Option<u32>,
    /// Ascending by number.
    entries: &'a [(u64, Entry)],
    /// Of each entry.
    seen: Vec<Seen>,
    comparison: Comparison,
    list_max: usize,
    altered: First<Place>,
    unacknowledged: First<PathBuf>,
    file_count: u64,
    other_run_count: u64,
    nameless_count: u64,
    lf_count: u64,
}

#[derive(Clone, Copy, Default)]
struct Seen {
    copy_count: u32,
    is_altered: bool,
}

impl<'a> Search<'a> {
    fn new(header: &'a Header, entries: &'a [(u64, Entry)], list_max: usize) -> Self {
        Search {
            header,
            run: u32::from_str_radix(&header.run, 16).ok(),
            entries,
            seen: vec![Seen::default(); entries.len()],
            comparison: Comparison::new(Expected::new(&header.contents)),
            list_max,
            altered: First::new(list_max),
            unacknowledged: First::new(list_max),
            file_count: 0,
            other_run_count: 0,
            nameless_count: 0,
            lf_count: 0,
        }
    }

    /// Takes one file into account.
    fn take(&mut self, path: &Path) -> io::Result<()> {
        self.file_count += 1;
        let Some(mut delivered) = self.comparison.open(path)? else {
            self.nameless_count += 1;
            return Ok(());
        };
        let id = delivered.id;
        if Some(id.run) != self.run {
            self.other_run_count += 1;
            return Ok(());
        }
        let Ok(index) = self.entries.binary_search_by_key(&id.number, |(number, _)| *number) else {
            self.unacknowledged.add(id.number, || path.to_owned());
            return Ok(());
        };
        let alteration = self.comparison.compare(&mut delivered, self.entries[index].1.content)?;
        self.lf_count += u64::from(delivered.has_lf_only);
        let seen = &mut self.seen[index];
        seen.copy_count = seen.copy_count.saturating_add(1);
        if let Some(alteration) = alteration {
            seen.is_altered = true;
            self.altered.add(id.number, || Place { path: path.to_owned(), alteration });
        }
        Ok(())
    }

    fn findings(mut self, question: &Question) -> Findings {
        let mut findings = Findings {
            run: self.header.run.clone(),
            target: self.header.target.clone(),
            acknowledged: self.entries.len() as u64,
            files: self.file_count,
            unacknowledged: self.unacknowledged.count,
            other_runs: self.other_run_count,
            nameless: self.nameless_count,
            lf_line_ends: self.lf_count,
            ..Findings::default()
        };
        for ((number, entry), seen) in self.entries.iter().zip(&self.seen) {
            let expected = if question.is_per_recipient { entry.recipients as u64 } else { 1 };
            let found = u64::from(seen.copy_count);
            let named = |what| named(self.run, *number, Some(entry.milliseconds), what);
            let copies = Copies { found, expected };
            findings.delivered += u64::from(found > 0);
            if found < expected {
                findings.missing += 1;
                findings.missing_copies += expected - found;
                keep(&mut findings.first_missing, self.list_max, || named(copies));
            } else if found > expected {
                findings.duplicated += 1;
                findings.surplus_copies += found - expected;
                keep(&mut findings.first_duplicated, self.list_max, || named(copies));
            }
            if seen.is_altered {
                findings.altered += 1;
            }
        }
        for (number, place) in std::mem::take(&mut self.altered.kept) {
            let index = self.entries.binary_search_by_key(&number, |(number, _)| *number);
            let milliseconds = index.ok().map(|index| self.entries[index].1.milliseconds);
            findings.first_altered.push(named(self.run, number, milliseconds, place));
        }
        for (number, path) in std::mem::take(&mut self.unacknowledged.kept) {
            findings.first_unacknowledged.push(named(self.run, number, None, path));
        }
        findings
    }
}

fn named<T>(run: Option<u32>, number: u64, milliseconds: Option<u64>, what: T) -> Named<T> {
    let id = MessageId { run: run.unwrap_or_default(), number };
    Named { id: id.to_string(), milliseconds, what }
}

fn keep<T>(list: &mut Vec<T>, max: usize, make: impl FnOnce() -> T) {
    if list.len() < max {
        list.push(make());
    }
}

/// Counts, and keeps those of the lowest numbers.
struct First<T> {
    max: usize,
    count: u64,
    kept: BTreeMap<u64, T>,
}

impl<T> First<T> {
    fn new(max: usize) -> Self {
        First { max, count: 0, kept: BTreeMap::new() }
    }

    fn add(&mut self, number: u64, make: impl FnOnce() -> T) {
        self.count += 1;
        if self.kept.len() >= self.max && self.kept.last_key_value().is_none_or(|(last, _)| *last <= number) {
            return;
        }
        self.kept.entry(number).or_insert_with(make);
        if self.kept.len() > self.max {
            self.kept.pop_last();
        }
    }
}

#[cfg(test)]
mod tests;
