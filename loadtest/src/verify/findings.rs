//! What was found, as figures, as JSON and for people.

use std::fmt;
use std::path::PathBuf;

use serde::Serialize;

use super::Alteration;

/// What became of the messages of a run.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Findings {
    /// The run's part of every message's name.
    pub run: String,
    /// The server that acknowledged them.
    pub target: String,
    /// Messages that were acknowledged.
    pub acknowledged: u64,
    /// Of these, messages of which there is a copy.
    pub delivered: u64,
    /// Messages with fewer copies than expected.
    pub missing: u64,
    /// Copies that these lack.
    pub missing_copies: u64,
    /// Messages with more copies than expected.
    pub duplicated: u64,
    /// Copies too many.
    pub surplus_copies: u64,
    /// Messages of which a copy is not what was sent.
    pub altered: u64,
    /// Files of messages that were never acknowledged.
    pub unacknowledged: u64,
    /// Files of messages of other runs.
    pub other_runs: u64,
    /// Files that name no message.
    pub nameless: u64,
    /// Files that were looked at.
    pub files: u64,
    /// Files whose line ends were changed from CRLF to LF, which is not held against them.
    pub lf_line_ends: u64,
    /// The first that are missing.
    pub first_missing: Vec<Named<Copies>>,
    /// The first that are duplicated.
    pub first_duplicated: Vec<Named<Copies>>,
    /// The first that are altered.
    pub first_altered: Vec<Named<Place>>,
    /// The first that were never acknowledged.
    pub first_unacknowledged: Vec<Named<PathBuf>>,
}

/// A message, and what is to be said of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Named<T> {
    /// Its name.
    pub id: String,
    /// When it was acknowledged, since the load began.
    pub milliseconds: Option<u64>,
    /// What is to be said.
    #[serde(rename = "found")]
    pub what: T,
}

/// Copies of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Copies {
    /// There are.
    pub found: u64,
    /// There should be.
    pub expected: u64,
}

/// Where an altered copy is, and how it is altered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Place {
    /// Its file.
    pub path: PathBuf,
    /// How it differs.
    #[serde(flatten)]
    pub alteration: Alteration,
}

impl Findings {
    /// Whether everything that was acknowledged is there as it was sent; with `is_once`, also no more often than it should.
    pub fn are_good(&self, is_once: bool) -> bool {
        self.missing == 0 && self.altered == 0 && !(is_once && self.duplicated > 0)
    }
}

impl fmt::Display for Findings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "run {} against {}: {} files", self.run, self.target, self.files)?;
        writeln!(f, "acknowledged  {:>10}", self.acknowledged)?;
        writeln!(f, "delivered     {:>10}", self.delivered)?;
        let copies = |f: &mut fmt::Formatter<'_>, count: u64, word: &str| match count {
            0 => writeln!(f),
            count => writeln!(f, "   {count} copies {word}"),
        };
        write!(f, "MISSING       {:>10}", self.missing)?;
        copies(f, self.missing_copies, "too few")?;
        list(f, self.missing, &self.first_missing)?;
        write!(f, "DUPLICATED    {:>10}", self.duplicated)?;
        copies(f, self.surplus_copies, "too many")?;
        list(f, self.duplicated, &self.first_duplicated)?;
        writeln!(f, "ALTERED       {:>10}", self.altered)?;
        list(f, self.altered, &self.first_altered)?;
        if self.unacknowledged > 0 {
            writeln!(
                f,
                "never acknowledged {:>5}   files; SMTP allows it: their 250 may have been lost",
                self.unacknowledged
            )?;
            for named in &self.first_unacknowledged {
                writeln!(f, "    {}   {}", named.id, named.what.display())?;
            }
            rest(f, self.unacknowledged, self.first_unacknowledged.len())?;
        }
        for (count, what) in [
            (self.other_runs, "files of other runs were left aside"),
            (self.nameless, "files name no message and were left aside"),
        ] {
            if count > 0 {
                writeln!(f, "{count} {what}")?;
            }
        }
        if self.lf_line_ends > 0 {
            writeln!(f, "line ends were changed to LF in {} messages", self.lf_line_ends)?;
        }
        Ok(())
    }
}

fn list<T: fmt::Display>(f: &mut fmt::Formatter<'_>, count: u64, first: &[Named<T>]) -> fmt::Result {
    for named in first {
        let at = named.milliseconds.unwrap_or_default();
        writeln!(f, "    {}   acknowledged at {at} ms: {}", named.id, named.what)?;
    }
    rest(f, count, first.len())
}

fn rest(f: &mut fmt::Formatter<'_>, count: u64, listed: usize) -> fmt::Result {
    match count.saturating_sub(listed as u64) {
        0 => Ok(()),
        rest => writeln!(f, "    and {rest} more"),
    }
}

impl fmt::Display for Copies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {} copies", self.found, self.expected)
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.path.display(), self.alteration)
    }
}
