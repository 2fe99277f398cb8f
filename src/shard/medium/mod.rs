//! What a log is kept on: files in a folder, or this process's memory.
//!
//! A [`Medium`] performs what the spool asks for, one [`crate::spool::Io`] at a time, and gives an [`Opener`] to those who read
//! segments on other threads. Which of the two it is was decided at start; nothing above asks.
//!
//! Promises, of both:
//! - a write is done whole or is an error;
//! - want of space is `StorageFull` or `QuotaExceeded` and shows in [`Medium::prepare`], never in a write;
//! - other tasks of the shard run before an I/O that succeeds is over, in memory too: so appends made meanwhile share the next;
//! - octets written stay as they are for whoever has opened the segment, until its next life.
//!
//! Only files keep what a sync was asked for: see [`files`] and [`memory`].
//!
//! Knows nothing of records: it deals in slots, offsets and octets.

mod files;
mod memory;

use std::fmt;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures_lite::future::yield_now;

use crate::spool::{Page, Slot};

pub use files::remove as remove_file;
use files::{Files, Folder};
use memory::{Memory, Segment, Segments};

/// Memory that the ring knows and the device can read from.
pub type DmaPage = glommio::io::DmaBuffer;

impl Page for DmaPage {
    fn octets(&self) -> &[u8] {
        self.as_bytes()
    }

    fn octets_mut(&mut self) -> &mut [u8] {
        self.as_bytes_mut()
    }
}

/// Where a log is to be kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// In this folder.
    Folder(PathBuf),
    /// In memory, in at most so many octets.
    Memory(u64),
}

/// What one log is kept on. Lives on its shard's thread.
pub enum Medium {
    /// Segment files.
    Files(Files),
    /// Memory: gone with the process.
    Memory(Memory),
}

impl Medium {
    /// Nothing is opened or taken yet.
    pub fn new(place: Place) -> Self {
        match place {
            Place::Folder(directory) => Medium::Files(Files::new(directory)),
            Place::Memory(size_max) => Medium::Memory(Memory::new(size_max)),
        }
    }

    /// [`crate::spool::Io::Prepare`].
    pub async fn prepare(&self, slot: Slot, is_new: bool, size: u32, header: Vec<u8>) -> io::Result<()> {
        match self {
            Medium::Files(files) => files.prepare(slot, is_new, size, header).await,
            Medium::Memory(memory) => {
                yield_now().await;
                memory.prepare(slot, size, &header)
            }
        }
    }

    /// [`crate::spool::Io::Write`]: the first `size` octets of `page`.
    pub async fn write(&self, slot: Slot, offset: u32, size: u32, page: DmaPage) -> io::Result<()> {
        match self {
            Medium::Files(files) => files.write(slot, offset, size, page).await,
            Medium::Memory(memory) => {
                yield_now().await;
                memory.write(slot, offset, &page.as_bytes()[..size as usize])
            }
        }
    }

    /// [`crate::spool::Io::Sync`]. Of memory it proves nothing.
    pub async fn sync(&self, slot: Slot) -> io::Result<()> {
        match self {
            Medium::Files(files) => files.sync(slot).await,
            Medium::Memory(_) => {
                yield_now().await;
                Ok(())
            }
        }
    }

    /// [`crate::spool::Io::Remove`].
    pub async fn remove(&self, slot: Slot) -> io::Result<()> {
        match self {
            Medium::Files(files) => files.remove(slot).await,
            Medium::Memory(memory) => {
                yield_now().await;
                memory.remove(slot);
                Ok(())
            }
        }
    }

    /// Closes for writing what is not written any more.
    pub fn close_all_but(&self, is_open: impl Fn(Slot) -> bool) {
        match self {
            Medium::Files(files) => files.close_all_but(is_open),
            Medium::Memory(_) => {}
        }
    }

    /// For another thread: opens the segments there are now.
    pub fn opener(&self) -> Opener {
        match self {
            Medium::Files(files) => Opener::Folder(files.folder()),
            Medium::Memory(memory) => Opener::Memory(memory.segments()),
        }
    }

    /// The segment's name for the log.
    pub fn name(&self, slot: Slot) -> String {
        match self {
            Medium::Files(files) => files.path(slot).display().to_string(),
            Medium::Memory(_) => format!("{} in memory", slot.file_name()),
        }
    }
}

impl fmt::Display for Medium {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Medium::Files(files) => files.directory().display().fmt(f),
            Medium::Memory(_) => f.write_str("memory"),
        }
    }
}

/// Opens segments for reading, on any thread.
pub enum Opener {
    /// With blocking calls.
    Folder(Folder),
    /// Without waiting.
    Memory(Segments),
}

impl Opener {
    /// Of a log in this folder, for who only reads.
    pub fn of_folder(directory: &Path) -> Self {
        Opener::Folder(Folder::new(directory))
    }

    /// Opens the segment in its present life.
    pub fn open(&self, slot: Slot) -> io::Result<Octets> {
        match self {
            Opener::Folder(folder) => folder.open(slot).map(Octets::File),
            Opener::Memory(segments) => segments.open(slot).map(Octets::Memory),
        }
    }
}

/// The octets of a segment that is open for reading.
#[derive(Clone, Debug)]
pub enum Octets {
    /// A file.
    File(Arc<File>),
    /// Memory.
    Memory(Arc<Segment>),
}

impl Octets {
    /// Fills `buffer` with what was written at `offset`, or fails.
    pub fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        match self {
            Octets::File(file) => file.read_exact_at(buffer, offset),
            Octets::Memory(segment) => segment.read_exact_at(buffer, offset),
        }
    }
}
