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

/// Reads a ledger: the header, and the entries with their numbers, ascending.
///
/// # Errors
/// Those of reading, and a file that is no ledger, with the line that tells so.
pub fn read(path: &Path) -> io::Result<(Header, Vec<(u64, Entry)>)> {
    let fault =
        |line: usize, what: &str| io::Error::new(io::ErrorKind::InvalidData, format!("line {line}: {what}"));
    let mut lines = BufReader::new(File::open(path)?);
    let mut text = String::new();
    lines.read_line(&mut text).map_err(|e| fault(1, &format!("not a ledger: {e}")))?;
    let header: Header = serde_json::from_str(&text).map_err(|e| fault(1, &format!("not a ledger: {e}")))?;
    if header.loadtest_ledger != VERSION {
        return Err(fault(
            1,
            &format!("version {}, and this program reads {VERSION}", header.loadtest_ledger),
        ));
    }
    let content_count = header.contents.count();
    let mut entries = Vec::new();
    for line in 2.. {
        text.clear();
        lines.read_line(&mut text).map_err(|e| fault(line, &e.to_string()))?;
        if !text.ends_with('\n') {
            break;
        }
        let entry = parse(text.trim_end()).filter(|(_, entry)| entry.content < content_count);
        entries.push(entry.ok_or_else(|| fault(line, "not an entry"))?);
    }
    entries.sort_unstable_by_key(|(number, _)| *number);
    match entries.windows(2).find(|pair| pair[0].0 == pair[1].0) {
        Some(pair) => Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("message {} stands in it twice: no run writes that", pair[0].0),
        )),
        None => Ok((header, entries)),
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::content::corpus;

    fn entry(content: usize, milliseconds: u64) -> Entry {
        Entry { content, recipients: 2, milliseconds }
    }

    fn header() -> Header {
        Header::new(0x00ab_cdef, 1_700_000_000, "mx".to_owned(), Catalogue::Generated(vec![40, 4096]))
    }

    fn written(text: &str) -> io::Result<(Header, Vec<(u64, Entry)>)> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ledger");
        std::fs::write(&path, text).unwrap();
        read(&path)
    }

    #[test]
    fn what_two_cores_wrote_is_read_back_in_order() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ledger");
        std::fs::write(&path, "an older ledger, and a longer one".repeat(100)).unwrap();
        Writer::create(&path, &header()).unwrap();
        let mut cores = [Writer::append(&path).unwrap(), Writer::append(&path).unwrap()];
        for number in (0..100).rev() {
            let writer = &mut cores[number as usize % 2];
            writer.note(number, entry(number as usize % 2, number * 10));
            if number % 7 == 0 {
                writer.write().unwrap();
            }
        }
        cores.iter_mut().for_each(|core| core.write().unwrap());
        let (read_header, entries) = read(&path).unwrap();
        assert_eq!(read_header, header());
        let expected: Vec<_> =
            (0..100).map(|number| (number, entry(number as usize % 2, number * 10))).collect();
        assert_eq!(entries, expected);
    }

    #[test]
    fn a_corpus_is_told_by_name_size_and_checksum() {
        let contents = Catalogue::Corpus(vec![corpus::Entry {
            name: "a \"b\"\n.eml".to_owned(),
            size: 7,
            crc32c: u32::MAX,
        }]);
        let text = serde_json::to_string(&Header { contents, ..header() }).unwrap();
        let (read, entries) = written(&format!("{text}\n")).unwrap();
        assert!(matches!(read.contents, Catalogue::Corpus(entries) if entries[0].crc32c == u32::MAX));
        assert_eq!(entries, []);
    }

    #[test]
    fn a_torn_last_line_is_ignored_wherever_it_was_torn() {
        let head = serde_json::to_string(&header()).unwrap() + "\n";
        let (first, last) = ("7 1 2 30\n", "123 0 2 4567\n");
        for cut in 0..last.len() {
            let (_, entries) = written(&format!("{head}{first}{}", &last[..cut])).unwrap();
            assert_eq!(entries, [(7, entry(1, 30))], "cut at {cut}");
        }
        let (_, entries) = written(&format!("{head}{first}{last}")).unwrap();
        assert_eq!(entries.len(), 2);
    }

    #[test]
    fn what_is_no_ledger_is_said_to_be_none_with_its_line() {
        let head = serde_json::to_string(&header()).unwrap();
        let newer = head.replace("\"loadtest_ledger\":1", "\"loadtest_ledger\":2");
        for (text, words) in [
            (String::new(), "line 1: not a ledger"),
            ("From: a mail\n".to_owned(), "line 1: not a ledger"),
            ("{}\n".to_owned(), "line 1: not a ledger"),
            (newer + "\n", "line 1: version 2"),
            (format!("{head}\n1 0 1 5\n1 0 1\n"), "line 3: not an entry"),
            (format!("{head}\n1 0 1 5 9\n"), "line 2: not an entry"),
            (format!("{head}\n1 0 -1 5\n"), "line 2: not an entry"),
            (format!("{head}\n1 2 1 5\n"), "line 2: not an entry"),
            (format!("{head}\n\n"), "line 2: not an entry"),
            (format!("{head}\n1 0 1 5\n1 1 1 6\n"), "message 1 stands in it twice"),
        ] {
            let error = written(&text).unwrap_err().to_string();
            assert!(error.contains(words), "{text:?}: {error}");
        }
    }
}
