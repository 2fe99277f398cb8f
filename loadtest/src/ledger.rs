//! The ledger: every acknowledged message, written down as it is acknowledged.
//!
//! A text file. Its first line is a [`Header`] in JSON: the run, and what is needed to tell every content again. Each
//! further line is one 250:
//!
//! ```text
//! NUMBER CONTENT RECIPIENTS MILLISECONDS
//! ```
//!
//! the message's number within the run, the index of its content in the header's catalogue, how many recipients were
//! accepted, and when, since the load began. Numbers need not ascend. A last line without its end was being written when
//! the harness was ended, and is ignored.
//!
//! Cores append whole lines of their own to the one file; `O_APPEND` keeps them apart. Lines are written within some ten
//! milliseconds of the reply: what a killed harness had not written yet is missing from the ledger, never wrong in it.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Write};
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::content::Catalogue;

/// The version of the format.
const VERSION: u32 = 1;

/// The first line.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Header {
    /// Of the format.
    pub loadtest_ledger: u32,
    /// The run that the messages are named by, eight hexadecimal digits.
    pub run: String,
    /// When it began, seconds since 1970.
    pub started: u64,
    /// The server.
    pub target: String,
    /// Every content.
    pub contents: Catalogue,
}

/// One 250.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The index of its content.
    pub content: usize,
    /// Recipients that were accepted.
    pub recipients: usize,
    /// Since the load began.
    pub milliseconds: u64,
}

/// One core's hand on the ledger.
pub struct Writer {
    file: File,
    lines: Vec<u8>,
}

impl Writer {
    /// Begins a ledger: the file is new, or what it had is gone.
    ///
    /// # Errors
    /// Those of creating and writing.
    pub fn create(path: &Path, header: &Header) -> io::Result<()> {
        let mut file = File::create(path)?;
        serde_json::to_writer(&mut file, header)?;
        file.write_all(b"\n")
    }

    /// Goes on with a ledger.
    ///
    /// # Errors
    /// Those of opening.
    pub fn append(path: &Path) -> io::Result<Self> {
        Ok(Writer { file: OpenOptions::new().append(true).open(path)?, lines: Vec::new() })
    }

    /// Notes an entry; [`Writer::write`] writes it.
    pub fn note(&mut self, number: u64, entry: Entry) {
        let Entry { content, recipients, milliseconds } = entry;
        writeln!(self.lines, "{number} {content} {recipients} {milliseconds}")
            .expect("a vector takes everything");
    }

    /// Writes what was noted: one write, so that lines of other cores stand before or behind, never between.
    ///
    /// # Errors
    /// Those of writing; the lines are gone then.
    pub fn write(&mut self) -> io::Result<()> {
        if self.lines.is_empty() {
            return Ok(());
        }
        let written = self.file.write_all(&self.lines);
        self.lines.clear();
        written
    }
}

/// Reads a ledger: the header, and the entries by number.
///
/// # Errors
/// Those of reading, and a file that is no ledger, with the line that tells so.
pub fn read(path: &Path) -> io::Result<(Header, HashMap<u64, Entry>)> {
    let fault = |line: usize, what: &str| {
        io::Error::new(io::ErrorKind::InvalidData, format!("{} line {line}: {what}", path.display()))
    };
    let mut lines = BufReader::new(File::open(path)?);
    let mut text = String::new();
    lines.read_line(&mut text)?;
    let header: Header = serde_json::from_str(&text).map_err(|e| fault(1, &format!("not a ledger: {e}")))?;
    if header.loadtest_ledger != VERSION {
        return Err(fault(
            1,
            &format!("version {}, and this program reads {VERSION}", header.loadtest_ledger),
        ));
    }
    let mut entries = HashMap::new();
    for line in 2.. {
        text.clear();
        if lines.read_line(&mut text)? == 0 || !text.ends_with('\n') {
            break;
        }
        let (number, entry) = parse(text.trim_end()).ok_or_else(|| fault(line, "not an entry"))?;
        entries.insert(number, entry);
    }
    Ok((header, entries))
}

fn parse(line: &str) -> Option<(u64, Entry)> {
    let mut words = line.split(' ').map(|word| word.parse::<u64>().ok());
    let mut next = || words.next().flatten();
    let (number, content, recipients, milliseconds) = (next()?, next()?, next()?, next()?);
    let entry = Entry { content: content as usize, recipients: recipients as usize, milliseconds };
    words.next().is_none().then_some((number, entry))
}

impl Header {
    /// The header of a run.
    pub fn new(run: u32, started: u64, target: String, contents: Catalogue) -> Self {
        Header { loadtest_ledger: VERSION, run: format!("{run:08x}"), started, target, contents }
    }
}
