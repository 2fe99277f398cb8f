//! What is handed to the workers and what comes back: the job and the report.
//!
//! Invariant: a job names only recipients that are still outstanding, and only one job of a message exists at a time.

use std::io::{self, Read, Write};
use std::sync::Arc;

use super::{CopyError, OutcomeSender, bounded_reason};
use crate::limits::COPY_SIZE;
use crate::mail::{Arrival, Envelope, MessageId};

/// A durable message and the recipients who still want it.
pub struct Job {
    /// The message.
    pub id: MessageId,
    /// Its whole envelope.
    pub envelope: Arc<Envelope>,
    /// How and when it arrived.
    pub arrival: Arc<Arrival>,
    /// The outstanding recipients, each once; never empty.
    pub recipients: Vec<Recipient>,
    /// Trace lines and content, octet for octet.
    pub content: Content,
    /// Where the report goes: to where the message came from.
    pub outcomes: OutcomeSender,
}

/// One outstanding recipient of a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Recipient {
    /// Its place in the envelope's forward-paths.
    pub index: u32,
    /// Attempts made before this one.
    pub attempts: u32,
}

/// The content of a job: trace lines, then what the client sent.
pub enum Content {
    /// In memory, as consecutive pieces.
    Memory(Vec<Vec<u8>>),
    /// Wherever the queue keeps it.
    Stored(Box<dyn StoredContent>),
}

/// Content that is read when it is needed.
pub trait StoredContent: Send + Sync {
    /// Its size in octets.
    fn size(&self) -> u64;

    /// A reader from its first octet. Where it is found damaged, opening or reading fails with `InvalidData`.
    fn open(&self) -> io::Result<Box<dyn Read + Send + '_>>;
}

impl Content {
    /// The size in octets.
    pub fn size(&self) -> u64 {
        match self {
            Content::Memory(pieces) => pieces.iter().map(|piece| piece.len() as u64).sum(),
            Content::Stored(stored) => stored.size(),
        }
    }

    /// A reader from the first octet; see [`StoredContent::open`].
    pub fn open(&self) -> io::Result<Box<dyn Read + Send + '_>> {
        match self {
            Content::Memory(pieces) => Ok(Box::new(Pieces { pieces, at: 0 })),
            Content::Stored(stored) => stored.open(),
        }
    }

    /// Writes the whole content into `sink`, or fails: a reader that ends before, or goes on after, the size it promised is an error.
    pub fn copy_to(&self, sink: &mut dyn Write) -> Result<(), CopyError> {
        if let Content::Memory(pieces) = self {
            return pieces.iter().try_for_each(|piece| sink.write_all(piece)).map_err(CopyError::Write);
        }
        let size = self.size();
        let mut reader = self.open().map_err(CopyError::Read)?;
        let mut buffer = vec![0; size.clamp(1, COPY_SIZE as u64) as usize];
        let mut copied = 0;
        loop {
            let read = match reader.read(&mut buffer) {
                Ok(read) => read,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(CopyError::Read(e)),
            };
            copied += read as u64;
            if read == 0 && copied < size {
                return Err(CopyError::Read(io::ErrorKind::UnexpectedEof.into()));
            }
            if copied > size {
                let what = format!("longer than the {size} octets it should have");
                return Err(CopyError::Read(io::Error::new(io::ErrorKind::InvalidData, what)));
            }
            if read == 0 {
                return Ok(());
            }
            sink.write_all(&buffer[..read]).map_err(CopyError::Write)?;
        }
    }
}

/// Reads consecutive pieces as one.
struct Pieces<'a> {
    pieces: &'a [Vec<u8>],
    at: usize,
}

impl Read for Pieces<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while let Some((first, rest)) = self.pieces.split_first() {
            let left = &first[self.at..];
            if !left.is_empty() {
                let size = left.len().min(buffer.len());
                buffer[..size].copy_from_slice(&left[..size]);
                self.at += size;
                return Ok(size);
            }
            (self.pieces, self.at) = (rest, 0);
        }
        Ok(0)
    }
}

/// What came of one attempt, recipient by recipient.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// The message.
    pub id: MessageId,
    /// The index in the envelope's forward-paths, and the outcome: every recipient of the job, in its order.
    pub recipients: Vec<(u32, Outcome)>,
}

/// A recipient's outcome.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The other side has it for good: done.
    Delivered,
    /// Not now: to be tried again on schedule.
    Deferred {
        /// Why, for the operator.
        reason: Box<str>,
    },
    /// Never: done. In a [`Report`] it means that a dead letter is durable.
    Rejected {
        /// Why, for the operator.
        reason: Box<str>,
    },
}

impl Outcome {
    /// Not now, because of `reason` (cut to a bounded length).
    pub fn deferred(reason: impl Into<String>) -> Self {
        Outcome::Deferred { reason: bounded_reason(reason) }
    }

    /// Never, because of `reason` (cut to a bounded length).
    pub fn rejected(reason: impl Into<String>) -> Self {
        Outcome::Rejected { reason: bounded_reason(reason) }
    }

    /// Why it was not delivered.
    pub fn reason(&self) -> Option<&str> {
        match self {
            Outcome::Delivered => None,
            Outcome::Deferred { reason } | Outcome::Rejected { reason } => Some(reason),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::REASON_SIZE_MAX;

    /// Content whose reader gives `octets` and then perhaps an error, whatever size was promised.
    struct Odd {
        size: u64,
        octets: Vec<u8>,
        error: Option<io::ErrorKind>,
    }

    struct OddReader<'a>(&'a [u8], Option<io::ErrorKind>);

    impl Read for OddReader<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            match (self.0.is_empty(), self.1) {
                (true, Some(kind)) => Err(kind.into()),
                _ => self.0.read(buffer),
            }
        }
    }

    impl StoredContent for Odd {
        fn size(&self) -> u64 {
            self.size
        }

        fn open(&self) -> io::Result<Box<dyn Read + Send + '_>> {
            Ok(Box::new(OddReader(&self.octets, self.error)))
        }
    }

    #[test]
    fn pieces_read_as_one() {
        let table: [&[&[u8]]; 5] =
            [&[], &[b""], &[b"abc"], &[b"", b"a", b"", b"bcd", b""], &[&[7; 100_000], b"x"]];
        for pieces in table {
            let whole = pieces.concat();
            let content = Content::Memory(pieces.iter().map(|p| p.to_vec()).collect());
            assert_eq!(content.size(), whole.len() as u64);
            let (mut read, mut copied) = (Vec::new(), Vec::new());
            content.open().unwrap().read_to_end(&mut read).unwrap();
            content.copy_to(&mut copied).unwrap();
            assert!(read == whole && copied == whole);
        }
    }

    #[test]
    fn stored_content_is_copied_whole_or_not_at_all() {
        use io::ErrorKind::{InvalidData, Other, UnexpectedEof};
        let table = [
            (3, None, None),
            (4, None, Some(UnexpectedEof)),
            (2, None, Some(InvalidData)),
            (0, None, Some(InvalidData)),
            (3, Some(InvalidData), Some(InvalidData)),
            (4, Some(Other), Some(Other)),
        ];
        for (size, error, expected) in table {
            let content = Content::Stored(Box::new(Odd { size, octets: b"abc".to_vec(), error }));
            let mut copied = Vec::new();
            let kind = match content.copy_to(&mut copied) {
                Ok(()) => None,
                Err(CopyError::Read(e)) => Some(e.kind()),
                Err(e) => panic!("{e}"),
            };
            assert_eq!(kind, expected, "{size} {error:?}");
        }
    }

    #[test]
    fn reasons_are_bounded_and_cut_between_characters() {
        for (given, kept) in [(REASON_SIZE_MAX, REASON_SIZE_MAX), (REASON_SIZE_MAX + 1, REASON_SIZE_MAX)] {
            assert_eq!(Outcome::deferred("x".repeat(given)).reason().unwrap().len(), kept);
        }
        assert_eq!(Outcome::rejected("é".repeat(REASON_SIZE_MAX)).reason().unwrap().len(), REASON_SIZE_MAX);
        assert_eq!(
            Outcome::rejected(format!("x{}", "é".repeat(REASON_SIZE_MAX))).reason().unwrap().len() % 2,
            1
        );
    }
}
