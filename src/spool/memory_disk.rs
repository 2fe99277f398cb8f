//! A disk of vectors that performs what the spool asks for at once: for tests, benches and the fuzz target.
//!
//! It keeps every promise `io` assumes and loses nothing; who wants damage does it to [`MemoryDisk::files`]. Not part of
//! the API.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::time::Instant;

use super::format::{self, MessagePayload};
use super::recovery::{self, Depth, Recovered};
use super::{Completion, Io, Page, ReadSegment, RecordPlace, Slot, Spool};
use crate::mail::{Arrival, Body, Envelope, ForwardPath, Protocol, ReversePath};

/// The files of one log.
#[derive(Clone, Debug, Default)]
pub struct MemoryDisk {
    /// By slot: the octets of each.
    pub files: BTreeMap<Slot, Vec<u8>>,
}

impl MemoryDisk {
    /// Performs one I/O.
    pub fn perform<P: Page>(&mut self, io: Io<P>) -> Completion {
        let result = Ok(());
        match io {
            Io::Prepare { slot, is_new, size, header } => {
                let file = self.files.entry(slot).or_default();
                if is_new {
                    *file = vec![0; size as usize];
                }
                file[..header.len()].copy_from_slice(&header);
                Completion::Prepared { slot, result }
            }
            Io::Write { slot, offset, size, page } => {
                let file = self.files.get_mut(&slot).expect("only prepared files are written");
                file[offset as usize..][..size as usize].copy_from_slice(&page.octets()[..size as usize]);
                Completion::Written { slot, offset, result }
            }
            Io::Sync { slot } => Completion::Synced { slot, result },
            Io::Read { places } => {
                Completion::Read { records: places.iter().map(|place| self.read(place)).collect() }
            }
            Io::Remove { slot } => {
                self.files.remove(&slot);
                Completion::Removed { slot, result }
            }
        }
    }

    fn read(&self, place: &RecordPlace) -> Option<Vec<u8>> {
        let file = self.files.get(&place.slot)?;
        file.get(place.offset as usize..)?.get(..place.size as usize).map(<[u8]>::to_vec)
    }

    /// Performs everything the spool wants until it wants nothing more.
    pub fn settle<P: Page>(&mut self, spool: &mut Spool<P>, now: Instant) {
        while let Some(io) = spool.poll_io(now) {
            let completion = self.perform(io);
            spool.handle_io(completion, now);
        }
    }

    /// What recovery makes of the files.
    pub fn recover(&self, depth: Depth) -> Recovered {
        recover(&self.files, depth)
    }

    /// A recovered message as it would be delivered: trace, pieces, tail. `None` if a record of it is not valid.
    pub fn message(&self, recovered: &Recovered, sequence: u64) -> Option<Vec<u8>> {
        let record = |epoch: u64, offset: u32| {
            let segment = recovered.segments.iter().find(|segment| segment.epoch == epoch)?;
            let octets = self.files.get(&segment.slot)?.get(offset as usize..)?;
            format::decode_record(octets, segment.life)
        };
        let location = recovered.messages.get(sequence)?.location;
        let (_, payload) = record(location.epoch, location.offset)?;
        let message = MessagePayload::decode(payload).filter(|message| message.sequence == sequence)?;
        let mut content = message.trace.to_vec();
        for piece in &message.pieces {
            let piece_record = record(piece.epoch, piece.offset);
            let (_, octets) = piece_record.filter(|(header, _)| header.sequence == piece.sequence)?;
            content.extend_from_slice(octets);
        }
        content.extend_from_slice(message.tail);
        Some(content)
    }
}

/// Somebody's mail to so many recipients: an envelope, and how it came.
pub fn mail(recipient_count: usize) -> (Envelope, Arrival) {
    let path = |i| ForwardPath::parse(&format!("r{i}@example.com"), false).expect("a path");
    let envelope = Envelope {
        reverse_path: ReversePath::Null,
        forward_paths: (0..recipient_count).map(path).collect(),
        body: Body::SevenBit,
        smtputf8: false,
        require_tls: false,
        dsn: None,
        via: None,
    };
    let arrival = Arrival {
        peer: "192.0.2.1:25".parse().expect("an address"),
        hello: "c.example".into(),
        protocol: Protocol::Esmtp,
        tls: None,
        authenticated: None,
        client_name: None,
        tags: Vec::new(),
        unix_time: 1,
        provenance: Default::default(),
    };
    (envelope, arrival)
}

/// What recovery makes of these files.
pub fn recover(files: &BTreeMap<Slot, Vec<u8>>, depth: Depth) -> Recovered {
    let open = |slot: Slot| Ok(Octets(&files[&slot]));
    recovery::recover(files.keys().copied(), open, depth, |_| {})
        .expect("memory can be read, and has one version")
}

/// A file in memory.
pub struct Octets<'a>(pub &'a [u8]);

impl ReadSegment for Octets<'_> {
    type Error = Infallible;

    fn size(&mut self) -> Result<u64, Infallible> {
        Ok(self.0.len() as u64)
    }

    fn read(&mut self, offset: u64, size: usize) -> Result<Vec<u8>, Infallible> {
        let rest = self.0.get(offset as usize..).unwrap_or_default();
        Ok(rest[..size.min(rest.len())].to_vec())
    }
}
