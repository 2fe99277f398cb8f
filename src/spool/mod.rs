//! The promise behind 250: a message that was reported stored survives whatever its disk survives.
//!
//! A [`Spool`] is one log: a directory of segments, appended to by one shard. It is sans-I/O: it says which I/O it wants
//! ([`Spool::poll_io`]) and is told how it went ([`Spool::handle_io`]); it runs the same over a disk and in a test that
//! cuts its power.
//!
//! The states of a message, and what a power cut makes of them:
//!
//! ```text
//! state       reached by                          after a power cut
//! absent      -                                   absent
//! receiving   append_piece                        absent (pieces without a Message record are nothing)
//! appended    append_message                      absent or durable: nobody was told either way
//! durable     a completed sync; poll_stored       durable: it is delivered
//! handed off  hand_off                            durable: it is delivered (again)
//! deferred    handle_outcome, someone is left     deferred, once the outcome is synced; else durable
//! held        order, and not released              held, once the order is synced; else as before
//! dropped     order                               done, once the order is synced; else as before
//! moved       its records were written again      as before: found where it was, or where it is
//! done        handle_outcome, nobody is left      done, once the outcome is synced; else delivered again
//! recycled    its segment is used again           absent
//! ```
//!
//! Invariants:
//! - [`Spool::poll_stored`] says `Ok` for a message only when its record and all its pieces are covered by a completed sync;
//! - after a failed write or sync nothing more of that segment is ever reported stored, and its file is never used again;
//! - the next segment's first write is given out only when the one before it is wholly durable: what is durable is
//!   always a prefix of the log.
//!
//! Knows nothing of SMTP, sessions, files or async.

mod commit;
mod entry;
pub mod format;
#[doc(hidden)]
pub mod fuzzing;
pub mod io;
mod ledger;
mod log;
#[doc(hidden)]
pub mod memory_disk;
mod reasons;
pub mod recovery;
mod sequence_map;

pub use entry::{Entry, Lane, Location, Outstanding, Part, Wanted};
pub use io::{Completion, Io, IoFailure, Page, ReadSegment, RecordPlace, Slot};
pub use ledger::{LOOK_COUNT_MAX, Waiting};
pub use log::{AppendError, Counters, Incoming, Obeyed, Orders, Receiving, Spool, SpoolConfig};
pub use sequence_map::SequenceMap;
