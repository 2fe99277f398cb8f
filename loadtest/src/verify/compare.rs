//! One delivered file against what was sent, in pieces of bounded size.
//!
//! Octets are counted from the line of the field that names the message, line ends as they were sent (CRLF).

use std::fmt;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};
use std::path::Path;

use serde::Serialize;

use crate::content::{Catalogue, Generated, ID_FIELD, ID_SIZE, MessageId, corpus};

/// The field that names a message stands within so many octets, or it is not looked for.
const HEADER_SIZE_MAX: u64 = 1 << 20;
/// Octets of a file that are held at once.
const PIECE_SIZE: usize = 64 * 1024;
/// Octets of the line of the field.
const NAME_LINE_SIZE: usize = ID_FIELD.len() + ID_SIZE + b"\r\n".len();

/// How a delivered message differs from what was sent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "how", rename_all = "snake_case")]
pub enum Alteration {
    /// Another octet stands there.
    Differs {
        /// The first such, from 0.
        octet: u64,
    },
    /// It ends too early; what there is of it is as it was sent.
    Ends {
        /// Octets there are.
        size: u64,
        /// Octets that were sent.
        expected: u64,
    },
    /// It goes on behind what was sent, all of which is there.
    GoesOn {
        /// Octets that were sent.
        expected: u64,
    },
    /// A message of a corpus has another size.
    Size {
        /// Octets behind the field.
        size: u64,
        /// Octets that were sent behind it.
        expected: u64,
    },
    /// A message of a corpus has its size and another CRC-32C.
    Checksum,
}

impl fmt::Display for Alteration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Alteration::Differs { octet } => write!(f, "differs first at octet {octet}"),
            Alteration::Ends { size, expected } => write!(f, "ends after {size} of {expected} octets"),
            Alteration::GoesOn { expected } => write!(f, "goes on after its {expected} octets"),
            Alteration::Size { size, expected } => {
                write!(f, "has {size} octets behind its name instead of {expected}")
            }
            Alteration::Checksum => f.write_str("has its size and another CRC-32C"),
        }
    }
}

/// What was sent, by index of content.
pub enum Expected {
    Generated(Generated),
    Corpus(Vec<corpus::Entry>),
}

impl Expected {
    /// As the ledger tells it.
    pub fn new(catalogue: &Catalogue) -> Self {
        match catalogue {
            Catalogue::Generated(sizes) => Expected::Generated(Generated::new(sizes.clone())),
            Catalogue::Corpus(entries) => Expected::Corpus(entries.clone()),
        }
    }
}

/// A file that names its message.
pub struct Delivered {
    reader: BufReader<File>,
    /// Where the line of the field begins.
    start: u64,
    /// Its name.
    pub id: MessageId,
    /// Whether the line of the field ends with LF, and no CR stands behind it; known once it was compared.
    pub has_lf_only: bool,
    ends_name_with_lf: bool,
}

/// Compares one file after another.
pub struct Comparison {
    expected: Expected,
    /// A piece as it was delivered, with line ends as they were sent, and as it was sent.
    raw: Vec<u8>,
    piece: Vec<u8>,
    made: Vec<u8>,
}

impl Comparison {
    pub fn new(expected: Expected) -> Self {
        Comparison { expected, raw: vec![0; PIECE_SIZE], piece: Vec::new(), made: Vec::new() }
    }

    /// Reads as far as the name. Nothing: the header section has none.
    pub fn open(&self, path: &Path) -> io::Result<Option<Delivered>> {
        let mut reader = BufReader::with_capacity(PIECE_SIZE, File::open(path)?);
        let mut line = Vec::new();
        let mut start = 0;
        while start < HEADER_SIZE_MAX {
            line.clear();
            let size = reader.by_ref().take(HEADER_SIZE_MAX - start).read_until(b'\n', &mut line)?;
            let text = line.strip_suffix(b"\n").unwrap_or(&line);
            let ends_name_with_lf = line.ends_with(b"\n") && !text.ends_with(b"\r");
            let text = text.strip_suffix(b"\r").unwrap_or(text);
            if text.is_empty() {
                return Ok(None);
            }
            if text.len() >= ID_FIELD.len() && text[..ID_FIELD.len()].eq_ignore_ascii_case(ID_FIELD) {
                // What follows it on its line, if anything, is found by comparing.
                let id = text.get(ID_FIELD.len()..ID_FIELD.len() + ID_SIZE).and_then(MessageId::parse);
                return Ok(id.map(|id| Delivered {
                    reader,
                    start,
                    id,
                    has_lf_only: false,
                    ends_name_with_lf,
                }));
            }
            start += size as u64;
        }
        Ok(None)
    }

    /// Reads the rest. Nothing: it is what was sent as content `index`.
    pub fn compare(&mut self, delivered: &mut Delivered, index: usize) -> io::Result<Option<Alteration>> {
        delivered.has_lf_only = delivered.ends_name_with_lf && !self.has_cr(delivered)?;
        delivered.reader.seek(SeekFrom::Start(delivered.start))?;
        let mut against = match &self.expected {
            Expected::Generated(generated) => Against::Generated { generated, index, offset: 0 },
            Expected::Corpus(entries) => {
                Against::Corpus { entry: &entries[index], head: Vec::new(), size: 0, crc32c: 0 }
            }
        };
        let id = delivered.id.to_octets();
        loop {
            let size = delivered.reader.read(&mut self.raw)?;
            let raw = &self.raw[..size];
            let piece = match delivered.has_lf_only {
                true => {
                    with_crlf(raw, &mut self.piece);
                    &self.piece
                }
                false => raw,
            };
            if size == 0 {
                return Ok(against.handle_end());
            }
            if let Some(alteration) = against.handle_piece(piece, &id, &mut self.made) {
                return Ok(Some(alteration));
            }
        }
    }

    fn has_cr(&mut self, delivered: &mut Delivered) -> io::Result<bool> {
        delivered.reader.seek(SeekFrom::Start(delivered.start))?;
        loop {
            let size = delivered.reader.read(&mut self.raw)?;
            if size == 0 {
                return Ok(false);
            }
            if memchr::memchr(b'\r', &self.raw[..size]).is_some() {
                return Ok(true);
            }
        }
    }
}

/// How far a comparison has got.
enum Against<'a> {
    Generated {
        generated: &'a Generated,
        index: usize,
        offset: usize,
    },
    Corpus {
        entry: &'a corpus::Entry,
        /// The line of the field, as far as it was seen.
        head: Vec<u8>,
        size: u64,
        crc32c: u32,
    },
}

impl Against<'_> {
    fn handle_piece(&mut self, piece: &[u8], id: &[u8; ID_SIZE], made: &mut Vec<u8>) -> Option<Alteration> {
        match self {
            Against::Generated { generated, index, offset } => {
                made.clear();
                generated.copy(*index, id, *offset, piece.len(), made);
                if let Some(at) = made.iter().zip(piece).position(|(sent, there)| sent != there) {
                    return Some(Alteration::Differs { octet: (*offset + at) as u64 });
                }
                *offset += made.len();
                (made.len() < piece.len()).then_some(Alteration::GoesOn { expected: *offset as u64 })
            }
            Against::Corpus { head, size, crc32c, .. } => {
                let sent = [ID_FIELD, id, b"\r\n"].concat();
                let taken = piece.len().min(sent.len() - head.len());
                let (line, content) = piece.split_at(taken);
                if let Some(at) = line.iter().zip(&sent[head.len()..]).position(|(there, sent)| sent != there)
                {
                    return Some(Alteration::Differs { octet: (head.len() + at) as u64 });
                }
                head.extend_from_slice(line);
                *size += content.len() as u64;
                *crc32c = crc32c::crc32c_append(*crc32c, content);
                None
            }
        }
    }

    fn handle_end(&self) -> Option<Alteration> {
        match self {
            Against::Generated { generated, index, offset } => {
                let (size, expected) = (*offset as u64, generated.size(*index) as u64);
                (size < expected).then_some(Alteration::Ends { size, expected })
            }
            Against::Corpus { entry, head, size, crc32c } => {
                let expected = entry.size as u64;
                if head.len() < NAME_LINE_SIZE {
                    let expected = NAME_LINE_SIZE as u64 + expected;
                    return Some(Alteration::Ends { size: head.len() as u64, expected });
                }
                match *size == expected {
                    false => Some(Alteration::Size { size: *size, expected }),
                    true => (*crc32c != entry.crc32c).then_some(Alteration::Checksum),
                }
            }
        }
    }
}

fn with_crlf(raw: &[u8], out: &mut Vec<u8>) {
    out.clear();
    for line in raw.split_inclusive(|octet| *octet == b'\n') {
        match line.strip_suffix(b"\n") {
            Some(text) => {
                out.extend_from_slice(text);
                out.extend_from_slice(b"\r\n");
            }
            None => out.extend_from_slice(line),
        }
    }
}
