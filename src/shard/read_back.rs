//! Messages read back from a log's medium: which ones, their records, their content piece by piece.
//!
//! Every record's checksums are verified on the way. Opening and reading may block: this is for the blocking thread of a shard
//! and for delivery workers, never for the shard's own thread.

use std::io;

use bytes::Bytes;

use super::medium::{Octets, Opener};
use crate::delivery::{Content, StoredContent};
use crate::mail::{Arrival, Envelope};
use crate::spool::format::{self, BLOCK_SIZE, MessagePayload, PieceRef};
use crate::spool::{Lane, Location, RecordPlace, Slot};

/// A segment's slot, and the life its records must have.
pub type SlotAndLife = (Slot, u64);

/// A message to be read back, and where it is.
pub struct Wanted {
    /// Its number.
    pub sequence: u64,
    /// In which of its lanes it is wanted.
    pub lane: Lane,
    /// Its record.
    pub location: Location,
    /// The segment of its record.
    pub segment: SlotAndLife,
    /// Its pieces, in order, and their segments.
    pub pieces: Vec<(PieceRef, SlotAndLife)>,
}

/// Messages to be read back.
#[derive(Default)]
pub struct Batch {
    /// In the order of their turn.
    pub messages: Vec<Wanted>,
    /// How many at the front have just come.
    pub new_count: usize,
}

impl Batch {
    /// Reads all of them with all of their content, and keeps nothing. An error: of the first that cannot be read.
    pub fn verify(self, opener: &Opener) -> io::Result<()> {
        self.read(opener).into_iter().try_for_each(|read_back| {
            let content = read_back.message?.content;
            let content = Content::Stored(Box::new(content));
            io::copy(&mut content.open(), &mut io::sink()).map(drop)
        })
    }

    /// Reads them, each by itself. A number whose record cannot be read comes back with the reason.
    pub fn read(self, opener: &Opener) -> Vec<ReadBack> {
        let open = |(slot, life): SlotAndLife| {
            let octets = opener.open(slot)?;
            io::Result::Ok(SegmentReader { octets, life })
        };
        let read = |wanted: Wanted| {
            let segment = open(wanted.segment)?;
            let pieces = wanted.pieces.into_iter().map(|(piece, segment)| Ok((piece, open(segment)?)));
            read_message(wanted.sequence, &segment, wanted.location, pieces.collect::<io::Result<_>>()?)
        };
        let read_back = |wanted: Wanted| {
            let (sequence, lane, location) = (wanted.sequence, wanted.lane, wanted.location);
            ReadBack { sequence, lane, location, message: read(wanted) }
        };
        self.messages.into_iter().map(read_back).collect()
    }
}

/// A message that was to be read back.
pub struct ReadBack {
    /// Its number.
    pub sequence: u64,
    /// In which of its lanes it was wanted.
    pub lane: Lane,
    /// Where its record was then.
    pub location: Location,
    /// What was found there.
    pub message: io::Result<StoredMessage>,
}

/// Reads records as they are; `None` where one cannot be read for want of descriptors or memory.
pub fn read_records(opener: &Opener, places: &[RecordPlace]) -> Vec<Option<Vec<u8>>> {
    places.iter().map(|place| read_raw(opener, place).ok()).collect()
}

/// The octets of a record as they are: zeros where the medium does not give them back. An error is a shortage: nothing is known
/// of them then.
pub fn read_raw(opener: &Opener, place: &RecordPlace) -> io::Result<Vec<u8>> {
    let mut octets = vec![0; place.size as usize];
    let read = opener.open(place.slot).and_then(|segment| {
        if segment.read_exact_at(&mut octets, u64::from(place.offset)).is_ok() {
            return Ok(());
        }
        // A sector that cannot be read costs its block.
        let mut at = 0;
        while at < octets.len() {
            let end = octets.len().min(at + BLOCK_SIZE - (place.offset as usize + at) % BLOCK_SIZE);
            let part = &mut octets[at..end];
            match segment.read_exact_at(part, u64::from(place.offset) + at as u64) {
                Err(error) if is_shortage(&error) => return Err(error),
                Err(_) => part.fill(0),
                Ok(()) => {}
            }
            at = end;
        }
        Ok(())
    });
    match read {
        Err(error) if is_shortage(&error) => Err(error),
        _ => Ok(octets),
    }
}

/// Does the process lack something that others will give back?
pub fn is_shortage(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE | libc::ENOMEM))
}

/// An open segment, and the life its records must have.
struct SegmentReader {
    octets: Octets,
    life: u64,
}

impl SegmentReader {
    /// The record at `offset`: its header and payload, all conditions of validity checked. `sequence`: its number, where that is
    /// known.
    fn read(&self, offset: u32, size: usize, sequence: Option<u64>) -> io::Result<Vec<u8>> {
        let mut record = vec![0; size];
        self.octets.read_exact_at(&mut record, u64::from(offset))?;
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
fn read_message(
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
        trace: Bytes::copy_from_slice(message.trace),
        pieces: segments,
        tail: Bytes::copy_from_slice(message.tail),
    };
    Ok(StoredMessage { envelope, arrival, content })
}

/// The content of a message that is in the spool: trace, pieces, tail. The segments stay as they are as long as the message is not
/// done.
pub struct StoredMessageContent {
    size: u64,
    trace: Bytes,
    pieces: Vec<(PieceRef, SegmentReader)>,
    tail: Bytes,
}

impl StoredMessageContent {
    /// Of the content only its size is wanted from here on.
    pub fn forget(&mut self) {
        *self = StoredMessageContent {
            size: self.size,
            trace: Bytes::new(),
            pieces: Vec::new(),
            tail: Bytes::new(),
        };
    }
}

impl StoredContent for StoredMessageContent {
    fn size(&self) -> u64 {
        self.size
    }

    fn parts_count(&self) -> usize {
        self.pieces.len() + 2
    }

    fn part(&self, n: usize) -> io::Result<Bytes> {
        match n {
            0 => Ok(self.trace.clone()),
            n if n > self.pieces.len() => Ok(self.tail.clone()),
            n => {
                let (piece, segment) = &self.pieces[n - 1];
                let size = piece.size as usize;
                let record = segment.read(piece.offset, format::record_size(size), Some(piece.sequence))?;
                Ok(Bytes::from(record).slice(format::RECORD_HEADER_SIZE..format::RECORD_HEADER_SIZE + size))
            }
        }
    }

    fn is_at_hand(&self, n: usize) -> bool {
        n == 0 || n > self.pieces.len()
    }
}
