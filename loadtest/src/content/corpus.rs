//! Real messages as contents: the members of an mbox file or of a folder, each behind the field that names it.
//!
//! Line ends are made CRLF, for nothing else can be sent with DATA; a lone CR becomes one as well. A message that does
//! not end with a line end is given one. Nothing else is changed.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{Form, ID_FIELD, ID_SIZE, Shape};

/// Messages read from files.
pub struct Corpus {
    messages: Vec<Message>,
}

/// What a ledger keeps of a corpus message.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Where it came from.
    pub name: String,
    /// Octets behind the field that names it.
    pub size: usize,
    /// CRC-32C of them.
    pub crc32c: u32,
}

struct Message {
    entry: Entry,
    /// With the field before it.
    octets: Vec<u8>,
    /// The same with dots stuffed, where any are.
    stuffed: Option<Vec<u8>>,
    is_8bit: bool,
}

/// The id stands in the field, nowhere else.
const MARKS: [usize; 1] = [ID_FIELD.len()];

impl Corpus {
    /// Reads an mbox file, or every message below a folder.
    ///
    /// # Errors
    /// Those of reading, and where there is no message at all.
    pub fn read(path: &Path) -> io::Result<Self> {
        let mut messages = Vec::new();
        if fs::metadata(path)?.is_dir() {
            for file in files_below(path)? {
                messages.push(Message::new(file.display().to_string(), &fs::read(&file)?));
            }
        } else {
            let mbox = fs::read(path)?;
            for (i, octets) in split_mbox(&mbox).iter().enumerate() {
                messages.push(Message::new(format!("{}#{i}", path.display()), octets));
            }
        }
        match messages.is_empty() {
            true => Err(io::Error::new(io::ErrorKind::NotFound, format!("no message in {}", path.display()))),
            false => Ok(Corpus { messages }),
        }
    }

    pub(super) fn count(&self) -> usize {
        self.messages.len()
    }

    pub(super) fn is_8bit(&self, index: usize) -> bool {
        self.messages[index].is_8bit
    }

    pub(super) fn entries(&self) -> Vec<Entry> {
        self.messages.iter().map(|message| message.entry.clone()).collect()
    }

    pub(super) fn shape(&self, index: usize, form: Form) -> Shape<'_> {
        let message = &self.messages[index];
        let octets = match (form, &message.stuffed) {
            (Form::Data, Some(stuffed)) => stuffed,
            _ => &message.octets,
        };
        Shape { octets, marks: &MARKS }
    }
}

impl Message {
    fn new(name: String, raw: &[u8]) -> Self {
        let mut octets = [ID_FIELD, &[b'x'; ID_SIZE], b"\r\n"].concat();
        let start = octets.len();
        append_with_crlf(raw, &mut octets);
        let content = &octets[start..];
        let entry = Entry { name, size: content.len(), crc32c: crc32c::crc32c(content) };
        let is_8bit = content.iter().any(|octet| *octet > 127);
        let stuffed = stuff(&octets);
        Message { entry, octets, stuffed, is_8bit }
    }
}

/// Every file below `folder`, in order.
fn files_below(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for_each_file(folder, &mut |path| {
        files.push(path.to_owned());
        Ok(())
    })?;
    files.sort();
    Ok(files)
}

/// Calls `with` for every file below `folder`, in no order, until it fails. Left out are files whose names begin with a
/// dot, and what a Maildir has in `tmp`: that is no message yet.
pub(crate) fn for_each_file(folder: &Path, with: &mut dyn FnMut(&Path) -> io::Result<()>) -> io::Result<()> {
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder)? {
            let path = entry?.path();
            if fs::metadata(&path)?.is_dir() {
                if path.file_name().is_none_or(|name| name != "tmp") {
                    folders.push(path);
                }
            } else if !path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b".")) {
                with(&path)?;
            }
        }
    }
    Ok(())
}

/// The messages of an mbox: each begins behind a line `From …` that follows an empty line, and `>From` is unquoted
/// (RFC 4155, and the "mboxrd" quoting that it describes as common).
fn split_mbox(mbox: &[u8]) -> Vec<Vec<u8>> {
    let mut messages: Vec<Vec<u8>> = Vec::new();
    let mut is_after_empty = true;
    for line in mbox.split_inclusive(|octet| *octet == b'\n') {
        if is_after_empty && line.starts_with(b"From ") {
            messages.push(Vec::new());
        } else if let Some(message) = messages.last_mut() {
            let quotes = line.iter().take_while(|octet| **octet == b'>').count();
            let is_quoted = quotes > 0 && line[quotes..].starts_with(b"From ");
            message.extend_from_slice(&line[usize::from(is_quoted)..]);
        }
        is_after_empty = matches!(line, b"\n" | b"\r\n");
    }
    for message in &mut messages {
        // The empty line before the next `From ` belongs to the mbox.
        for end in [b"\n\r\n".as_slice(), b"\n\n"] {
            if message.ends_with(end) {
                message.truncate(message.len() - end.len() + 1);
                break;
            }
        }
    }
    messages
}

fn append_with_crlf(raw: &[u8], out: &mut Vec<u8>) {
    let mut rest = raw;
    while !rest.is_empty() {
        let end = memchr::memchr2(b'\r', b'\n', rest).unwrap_or(rest.len());
        out.extend_from_slice(&rest[..end]);
        out.extend_from_slice(b"\r\n");
        rest = match &rest[end..] {
            [b'\r', b'\n', after @ ..] | [_, after @ ..] => after,
            [] => &[],
        };
    }
}

/// With dots stuffed; nothing if no line begins with one.
fn stuff(octets: &[u8]) -> Option<Vec<u8>> {
    let mut stuffed = Vec::new();
    let mut taken = 0;
    // The first line is the field that names the message: dots are only behind line ends.
    for at in memchr::memmem::find_iter(octets, b"\n.") {
        stuffed.extend_from_slice(&octets[taken..=at]);
        stuffed.push(b'.');
        taken = at + 1;
    }
    (taken > 0).then(|| {
        stuffed.extend_from_slice(&octets[taken..]);
        stuffed
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_mbox_is_split_and_unquoted() {
        let mbox =
            b"From a@b Mon\nSubject: one\n\nhello\n>From me\n>>From you\n\nFrom c@d Tue\r\n\r\n.dot\r\n\r\n";
        let messages = split_mbox(mbox);
        assert_eq!(messages.len(), 2);
        assert_eq!(messages[0], b"Subject: one\n\nhello\nFrom me\n>From you\n");
        assert_eq!(messages[1], b"\r\n.dot\r\n");
    }

    #[test]
    fn every_line_end_becomes_crlf() {
        for (raw, expected) in [
            ("", ""),
            ("a", "a\r\n"),
            ("a\nb\r\nc\rd", "a\r\nb\r\nc\r\nd\r\n"),
            ("\n\n", "\r\n\r\n"),
            ("a\r\r\n", "a\r\n\r\n"),
        ] {
            let mut out = Vec::new();
            append_with_crlf(raw.as_bytes(), &mut out);
            assert_eq!(out, expected.as_bytes(), "{raw:?}");
        }
    }

    #[test]
    fn dots_at_line_starts_are_stuffed_and_no_others() {
        assert_eq!(stuff(b"a\r\n.\r\n..b\r\nc.d\r\n").unwrap(), b"a\r\n..\r\n...b\r\nc.d\r\n");
        assert_eq!(stuff(b"a.\r\n"), None);
    }
}
