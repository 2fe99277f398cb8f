//! What the spool wants done, and what it assumes of media.
//!
//! The spool performs no I/O: it names an [`Io`], the driver performs it and answers with a [`Completion`].
//!
//! Assumptions about the device and the file system, and no others:
//! - a write that completed with its full length and a later sync that *began after that completion* and succeeded make
//!   those octets durable;
//! - a sector (512 octets or more) is written whole or not at all; a write of several may be torn at any of them and in any order;
//! - nothing is known of a file after a failed write or sync of it: neither later success proves anything;
//! - a file that was written through, synced, and whose directory was synced, can be overwritten without needing space.

use std::fmt;

/// A buffer for writes: aligned as the device wants it on a shard, a plain `Vec` in tests.
pub trait Page {
    /// Its octets.
    fn octets(&self) -> &[u8];
    /// Its octets, to be written.
    fn octets_mut(&mut self) -> &mut [u8];
}

impl Page for Vec<u8> {
    fn octets(&self) -> &[u8] {
        self
    }

    fn octets_mut(&mut self) -> &mut [u8] {
        self
    }
}

/// A segment file's place in the directory; file names are made of it. Files are recycled, so one slot has many lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Slot(pub u32);

impl Slot {
    /// The name of the slot's file.
    pub fn file_name(self) -> String {
        format!("{:08}.segment", self.0)
    }

    /// The slot of a file name; `None` if it is not one.
    pub fn from_file_name(name: &str) -> Option<Self> {
        let number = name.strip_suffix(".segment")?;
        (number.len() == 8).then(|| number.parse().ok().map(Slot))?
    }
}

/// A segment that is read: at start, and by who inspects a spool.
pub trait ReadSegment {
    /// Why it could not be read.
    type Error;

    /// The file's size, octets.
    fn size(&mut self) -> Result<u64, Self::Error>;

    /// Up to `size` octets from `offset`: fewer only where the file ends. Octets that the medium does not give back are
    /// to be zeros: they are damage like any other.
    fn read(&mut self, offset: u64, size: usize) -> Result<Vec<u8>, Self::Error>;
}

/// A record to be read back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordPlace {
    /// Which file.
    pub slot: Slot,
    /// Octets from the start of the file.
    pub offset: u32,
    /// Octets to read.
    pub size: u32,
}

/// Something the spool wants done.
#[derive(Debug)]
pub enum Io<P> {
    /// Make a segment ready for a new life, in this order: for a new file, create it, write it through with zeros to
    /// `size`; write `header` at offset 0; sync the file; for a new file, sync the directory. A file that is left over
    /// from a failed attempt is overwritten.
    Prepare {
        /// Which file.
        slot: Slot,
        /// It does not exist yet (or was never finished).
        is_new: bool,
        /// The file's size, octets.
        size: u32,
        /// The header blocks.
        header: Vec<u8>,
    },
    /// Write the first `size` octets of `page` at `offset`. Offset and size are multiples of the block size.
    Write {
        /// Which file.
        slot: Slot,
        /// Octets from the start of the file.
        offset: u32,
        /// Octets to write.
        size: u32,
        /// What to write.
        page: P,
    },
    /// Sync the file's data.
    Sync {
        /// Which file.
        slot: Slot,
    },
    /// Remove the file and sync the directory. A file that is not there is as good as removed.
    Remove {
        /// Which file.
        slot: Slot,
    },
    /// Read these records: messages are to be moved. One at a time.
    Read {
        /// Which.
        places: Vec<RecordPlace>,
    },
}

/// How an [`Io`] went. Every `Io` is answered exactly once.
#[derive(Debug)]
pub enum Completion {
    /// A `Prepare`.
    Prepared {
        /// Which file.
        slot: Slot,
        /// How it went.
        result: Result<(), IoFailure>,
    },
    /// A `Write`. `Ok` means its whole length: the driver turns a short write into a repeated one or a failure.
    Written {
        /// Which file.
        slot: Slot,
        /// The offset it was given.
        offset: u32,
        /// How it went.
        result: Result<(), IoFailure>,
    },
    /// A `Sync`.
    Synced {
        /// Which file.
        slot: Slot,
        /// How it went.
        result: Result<(), IoFailure>,
    },
    /// A `Read`.
    Read {
        /// The octets of each record, in order; `None` where nobody knows them just now (descriptors or memory were short):
        /// asked for again later. What the medium does not give back is zeros, and damage.
        records: Vec<Option<Vec<u8>>>,
    },
    /// A `Remove`.
    Removed {
        /// Which file.
        slot: Slot,
        /// How it went.
        result: Result<(), IoFailure>,
    },
}

/// Why an I/O failed, as far as the spool acts differently on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IoFailure {
    /// No space, no quota: it may succeed when some is freed.
    NoSpace,
    /// Anything else.
    Failed,
}

impl fmt::Display for IoFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            IoFailure::NoSpace => "no space left on the device",
            IoFailure::Failed => "input/output error",
        })
    }
}
