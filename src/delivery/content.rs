//! The content of a message on its way: trace lines, then what the client sent, octet for octet.
//!
//! It is had in parts, none larger than a piece of the spool, so that nobody holds a whole message: one after the other by
//! [`ContentReader`] on threads that may block, by [`Chunks`] on those that may not.
//!
//! Invariant: whoever has read to the end without an error has read all of it, and nothing else: a store that gives less or more
//! than the size it promised is an error.

use std::fmt;
use std::io::{self, Read, Write};
use std::sync::Arc;

use bytes::Bytes;

/// Trace lines and content.
pub enum Content {
    /// In memory, as consecutive parts.
    Memory(Vec<Bytes>),
    /// Wherever the queue keeps it.
    Stored(Box<dyn StoredContent>),
}

/// Content that is read when it is needed.
pub trait StoredContent: Send + Sync {
    /// Its size in octets.
    fn size(&self) -> u64;

    /// How many parts it has.
    fn parts_count(&self) -> usize;

    /// One of them, from 0. Where it is found damaged, the error is `InvalidData`.
    fn part(&self, n: usize) -> io::Result<Bytes>;

    /// Whether [`StoredContent::part`] has nothing to wait for.
    fn is_at_hand(&self, n: usize) -> bool;
}

impl Content {
    /// The size in octets.
    pub fn size(&self) -> u64 {
        match self {
            Content::Memory(parts) => parts.iter().map(|part| part.len() as u64).sum(),
            Content::Stored(stored) => stored.size(),
        }
    }

    /// A reader from the first octet.
    pub fn open(&self) -> ContentReader<'_> {
        ContentReader { content: self, progress: Progress::of(self), part: Bytes::new() }
    }

    /// Writes the whole content into `sink`, or fails.
    pub fn copy_to(&self, sink: &mut dyn Write) -> Result<(), CopyError> {
        let mut progress = Progress::of(self);
        while let Some(n) = progress.next(self) {
            let part = progress.take(self.part(n)).map_err(CopyError::Read)?;
            sink.write_all(&part).map_err(CopyError::Write)?;
        }
        progress.end().map_err(CopyError::Read)
    }

    fn parts_count(&self) -> usize {
        match self {
            Content::Memory(parts) => parts.len(),
            Content::Stored(stored) => stored.parts_count(),
        }
    }

    fn part(&self, n: usize) -> io::Result<Bytes> {
        match self {
            Content::Memory(parts) => Ok(parts[n].clone()),
            Content::Stored(stored) => stored.part(n),
        }
    }

    fn is_at_hand(&self, n: usize) -> bool {
        match self {
            Content::Memory(_) => true,
            Content::Stored(stored) => stored.is_at_hand(n),
        }
    }
}

/// How far somebody has read, and whether it comes out as promised.
struct Progress {
    next: usize,
    left: u64,
}

impl Progress {
    fn of(content: &Content) -> Self {
        Progress { next: 0, left: content.size() }
    }

    /// The part to read, if there is one.
    fn next(&mut self, content: &Content) -> Option<usize> {
        let n = self.next;
        (n < content.parts_count()).then(|| {
            self.next += 1;
            n
        })
    }

    fn take(&mut self, part: io::Result<Bytes>) -> io::Result<Bytes> {
        let part = part?;
        let what = "longer than it should be";
        let left = self.left.checked_sub(part.len() as u64);
        self.left = left.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, what))?;
        Ok(part)
    }

    fn end(&self) -> io::Result<()> {
        if self.left == 0 { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
    }
}

/// Reads content on a thread that may block.
pub struct ContentReader<'a> {
    content: &'a Content,
    progress: Progress,
    part: Bytes,
}

impl Read for ContentReader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.part.is_empty() {
            match self.progress.next(self.content) {
                Some(n) => self.part = self.progress.take(self.content.part(n))?,
                None => return self.progress.end().map(|()| 0),
            }
        }
        let size = buffer.len().min(self.part.len());
        buffer[..size].copy_from_slice(&self.part.split_to(size));
        Ok(size)
    }
}

/// Reads content on a thread with a tokio runtime, which it does not block.
pub struct Chunks<'a> {
    content: &'a Arc<Content>,
    progress: Progress,
    has_failed: bool,
}

impl<'a> Chunks<'a> {
    pub(super) fn of(content: &'a Arc<Content>) -> Self {
        Chunks { content, progress: Progress::of(content), has_failed: false }
    }

    /// The next octets, at most a piece of the spool; `None` after all of them. After an error there is nothing more, and what came
    /// before it must not be delivered.
    pub async fn next(&mut self) -> Option<io::Result<Bytes>> {
        loop {
            if self.has_failed {
                return None;
            }
            let part = match self.progress.next(self.content) {
                Some(n) if self.content.is_at_hand(n) => self.content.part(n),
                Some(n) => {
                    let content = self.content.clone();
                    let read = tokio::task::spawn_blocking(move || content.part(n)).await;
                    read.unwrap_or_else(|_| Err(io::Error::other("the thread that reads it has ended")))
                }
                None => {
                    self.has_failed = true;
                    return self.progress.end().err().map(Err);
                }
            };
            match self.progress.take(part) {
                Ok(part) if part.is_empty() => {}
                part => {
                    self.has_failed = part.is_err();
                    return Some(part);
                }
            }
        }
    }
}

/// Why content was not copied whole.
#[derive(Debug)]
pub enum CopyError {
    /// It could not be read, or is damaged (`InvalidData`), or ended early (`UnexpectedEof`).
    Read(io::Error),
    /// It could not be written.
    Write(io::Error),
}

impl fmt::Display for CopyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CopyError::Read(e) if e.kind() == io::ErrorKind::InvalidData => {
                write!(f, "the stored content is damaged: {e}")
            }
            CopyError::Read(e) => write!(f, "the stored content cannot be read: {e}"),
            CopyError::Write(e) => write!(f, "cannot write: {e}"),
        }
    }
}

impl std::error::Error for CopyError {}

#[cfg(test)]
mod tests {
    use super::*;

    /// Content that gives `parts` and then perhaps an error, whatever size was promised.
    struct Odd {
        size: u64,
        parts: Vec<&'static [u8]>,
        error: Option<io::ErrorKind>,
    }

    impl StoredContent for Odd {
        fn size(&self) -> u64 {
            self.size
        }

        fn parts_count(&self) -> usize {
            self.parts.len() + usize::from(self.error.is_some())
        }

        fn part(&self, n: usize) -> io::Result<Bytes> {
            match self.parts.get(n) {
                Some(part) => Ok(Bytes::from_static(part)),
                None => Err(self.error.unwrap().into()),
            }
        }

        fn is_at_hand(&self, n: usize) -> bool {
            n == 0
        }
    }

    /// What each way of reading gives.
    fn all_ways(content: Content) -> Vec<io::Result<Vec<u8>>> {
        let content = Arc::new(content);
        let mut copied = Vec::new();
        let copy = match content.copy_to(&mut copied) {
            Ok(()) => Ok(copied),
            Err(CopyError::Read(e)) => Err(e),
            Err(e) => panic!("{e}"),
        };
        let mut read = Vec::new();
        let read = content.open().read_to_end(&mut read).map(|_| read);
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let chunks = runtime.block_on(async {
            let (mut chunks, mut all) = (Chunks::of(&content), Vec::new());
            while let Some(chunk) = chunks.next().await {
                all.extend_from_slice(&chunk?);
            }
            Ok(all)
        });
        vec![copy, read, chunks]
    }

    #[test]
    fn parts_are_read_as_one() {
        let table: [&[&'static [u8]]; 5] =
            [&[], &[b""], &[b"abc"], &[b"", b"a", b"", b"bcd", b""], &[&[7; 100_000], b"x"]];
        for parts in table {
            let whole = parts.concat();
            let memory = Content::Memory(parts.iter().map(|part| Bytes::from_static(part)).collect());
            let stored = Odd { size: whole.len() as u64, parts: parts.to_vec(), error: None };
            for content in [memory, Content::Stored(Box::new(stored))] {
                assert_eq!(content.size(), whole.len() as u64);
                assert!(all_ways(content).into_iter().all(|read| read.unwrap() == whole));
            }
        }
    }

    #[test]
    fn stored_content_is_read_whole_or_not_at_all() {
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
            let content = Content::Stored(Box::new(Odd { size, parts: vec![b"ab", b"c"], error }));
            for read in all_ways(content) {
                assert_eq!(read.err().map(|e| e.kind()), expected, "{size} {error:?}");
            }
        }
    }
}
