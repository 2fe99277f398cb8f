//! Segment files with blocking calls: made ready, removed, and read back. For the blocking thread of a shard and for
//! delivery workers, never for the shard's own thread.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;

use super::directory::sync_directory;
use crate::delivery::StoredContent;
use crate::mail::{Arrival, Envelope};
use crate::spool::format::{self, BLOCK_SIZE, MessagePayload, PieceRef};
use crate::spool::{Location, RecordPlace, Slot};

/// Zeros are written in parts of this size.
const ZEROS_SIZE: usize = 1 << 20;

/// Makes a segment ready for a new life: see [`crate::spool::Io::Prepare`], whose order this keeps.
pub fn prepare(directory: &Path, slot: Slot, is_new: bool, size: u32, header: &[u8]) -> io::Result<()> {
    let path = directory.join(slot.file_name());
    let mut options = OpenOptions::new();
    // Direct, so that no cached page has to be thrown away when the shard writes there directly.
    options.write(true).create(is_new).truncate(is_new).custom_flags(libc::O_DIRECT);
    let file = options.open(&path)?;
    let mut page = AlignedPage::zeroed(if is_new { ZEROS_SIZE.min(size as usize) } else { header.len() });
    if is_new {
        let mut offset = 0;
        while offset < u64::from(size) {
            let part = (u64::from(size) - offset).min(page.octets().len() as u64) as usize;
            file.write_all_at(&page.octets()[..part], offset)?;
            offset += part as u64;
        }
    }
    page.octets()[..header.len()].copy_from_slice(header);
    file.write_all_at(&page.octets()[..header.len()], 0)?;
    file.sync_all()?;
    if is_new { sync_directory(directory) } else { Ok(()) }
}

/// Removes a segment file, durably. One that is not there is as good as removed.
pub fn remove(directory: &Path, slot: Slot) -> io::Result<()> {
    match fs::remove_file(directory.join(slot.file_name())) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => sync_directory(directory),
    }
}

/// Reads records as they are; `None` where one cannot be read.
pub fn read_records(directory: &Path, places: &[RecordPlace]) -> Vec<Option<Vec<u8>>> {
    let mut last: Option<(Slot, File)> = None;
    let mut read = |place: &RecordPlace| {
        if last.as_ref().is_none_or(|(slot, _)| *slot != place.slot) {
            last = Some((place.slot, File::open(directory.join(place.slot.file_name()))?));
        }
        let mut octets = vec![0; place.size as usize];
        let (_, file) = last.as_ref().expect("it was just opened");
        file.read_exact_at(&mut octets, u64::from(place.offset))?;
        io::Result::Ok(octets)
    };
    places.iter().map(|place| read(place).ok()).collect()
}

/// Memory at a block boundary, as direct I/O wants it.
struct AlignedPage {
    memory: Vec<u8>,
    start: usize,
    size: usize,
}

impl AlignedPage {
    fn zeroed(size: usize) -> Self {
        let memory = vec![0; size + BLOCK_SIZE];
        let start = memory.as_ptr().align_offset(BLOCK_SIZE);
        AlignedPage { memory, start, size }
    }

    fn octets(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..][..self.size]
    }
}

/// An open segment, and the life its records must have.
#[derive(Clone, Debug)]
pub struct SegmentReader {
    /// The file, opened for reading.
    pub file: Arc<File>,
    /// The random number of its present life.
    pub life: u64,
}

impl SegmentReader {
    /// The record at `offset`: its header and payload, all conditions of validity checked. `sequence`: its number, where that is
    /// known.
    fn read(&self, offset: u32, size: usize, sequence: Option<u64>) -> io::Result<Vec<u8>> {
        let mut record = vec![0; size];
        self.file.read_exact_at(&mut record, u64::from(offset))?;
        let header = format::decode_record(&record, self.life).map(|(header, _)| header);
        if header.is_none_or(|header| sequence.is_some_and(|sequence| header.sequence != sequence)) {
            let what = format!("the record at offset {offset} is damaged");
            return Err(io::Error::new(io::ErrorKind::InvalidData, what));
        }
        Ok(record)
    }
}

/// A message read back.
pub struct StoredMessage {
    /// Who gets it.
    pub envelope: Envelope,
    /// How it came.
    pub arrival: Arrival,
    /// Trace, pieces, tail.
    pub content: StoredMessageContent,
}

/// Reads the record of the message with this sequence; its pieces stay where they are. `segments` gives the reader of each piece,
/// in order.
pub fn read_message(
    sequence: u64,
    segment: &SegmentReader,
    location: Location,
    segments: Vec<(PieceRef, SegmentReader)>,
) -> io::Result<StoredMessage> {
    let malformed =
        || io::Error::new(io::ErrorKind::InvalidData, "a message record does not follow the format");
    let record = segment.read(location.offset, location.size as usize, None)?;
    let (_, payload) = format::decode_record(&record, segment.life).ok_or_else(malformed)?;
    let message = MessagePayload::decode(payload).ok_or_else(malformed)?;
    if message.sequence != sequence {
        return Err(malformed());
    }
    let (envelope, arrival) = format::decode_envelope(message.envelope).ok_or_else(malformed)?;
    let content = StoredMessageContent {
        size: message.content_size + message.trace.len() as u64,
        trace: message.trace.into(),
        pieces: segments,
        tail: message.tail.into(),
    };
    Ok(StoredMessage { envelope, arrival, content })
}

/// The content of a message that is in the spool. The segments stay as they are as long as the message is not done.
pub struct StoredMessageContent {
    size: u64,
    trace: Box<[u8]>,
    pieces: Vec<(PieceRef, SegmentReader)>,
    tail: Box<[u8]>,
}

impl StoredContent for StoredMessageContent {
    fn size(&self) -> u64 {
        self.size
    }

    fn open(&self) -> io::Result<Box<dyn Read + Send + '_>> {
        Ok(Box::new(Reader { content: self, next: Part::Trace, part: Vec::new(), at: 0 }))
    }
}

#[derive(Clone, Copy)]
enum Part {
    Trace,
    Piece(usize),
    Tail,
    End,
}

/// Reads part by part: never more than one piece is in memory.
struct Reader<'a> {
    content: &'a StoredMessageContent,
    next: Part,
    part: Vec<u8>,
    at: usize,
}

impl Reader<'_> {
    fn advance(&mut self) -> io::Result<()> {
        self.at = 0;
        let after = |piece| if piece < self.content.pieces.len() { Part::Piece(piece) } else { Part::Tail };
        (self.part, self.next) = match self.next {
            Part::Trace => (self.content.trace.to_vec(), after(0)),
            Part::Piece(i) => {
                let (piece, segment) = &self.content.pieces[i];
                let size = piece.size as usize;
                let mut record =
                    segment.read(piece.offset, format::record_size(size), Some(piece.sequence))?;
                record.drain(..format::RECORD_HEADER_SIZE);
                record.truncate(size);
                (record, after(i + 1))
            }
            Part::Tail => (self.content.tail.to_vec(), Part::End),
            Part::End => (Vec::new(), Part::End),
        };
        Ok(())
    }
}

impl Read for Reader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.at == self.part.len() {
            if matches!(self.next, Part::End) {
                return Ok(0);
            }
            self.advance()?;
        }
        let size = buffer.len().min(self.part.len() - self.at);
        buffer[..size].copy_from_slice(&self.part[self.at..][..size]);
        self.at += size;
        Ok(size)
    }
}
