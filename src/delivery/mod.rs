//! After durability: jobs, workers, retries, dead letters, transports.
//!
//! A [`Job`] is a durable message with recipients that still want it. Whoever holds the queue offers jobs through a
//! [`JobSender`], which never waits; [`Workers`] make one attempt per job with a [`Delivery`] and report an [`Outcome`] for each
//! recipient through the job's [`OutcomeSender`]. When to try again is the queue's to do, by [`Schedule`].
//!
//! ```text
//!  queue ──JobSender──▶ bounded channel ──▶ worker ──Attempt──▶ Delivery
//!  ▲ ▲                                        │  └─ rejected, exhausted ─▶ DeadLetters
//!  │ └──────────OutcomeReceiver◀──Report──────┘                               │
//!  └──────────────Intake◀──────────────────Upkeep◀────────sent again───────────┘
//! ```
//!
//! Invariants:
//! - every job taken from the channel is answered by one report with one outcome for each of its recipients, in order, except
//!   when the process ends: then nothing was reported, and the queue still has it;
//! - `Rejected` is reported only after a dead letter is durable;
//! - content that cannot be read whole and undamaged is never delivered, not even in part.
//!
//! Knows nothing of shards, sessions or how the content is stored.

pub mod dead;
pub(crate) mod folder;
mod header;
mod job;
mod queue;
pub(crate) mod record;
mod schedule;
pub mod transport;
mod worker;

use std::fmt;
use std::io::{self, Read, Write};

use crate::limits::REASON_SIZE_MAX;
use crate::mail::{Arrival, Capabilities, Envelope, ForwardPath, MessageId};

pub use dead::{DeadLetters, Intake, NotTaken, Resent, Upkeep};
pub use header::{Address, HeaderField, HeaderFields, HeaderReader};
pub use job::{Content, Job, Outcome, Recipient, Report, StoredContent};
pub use queue::{JobReceiver, JobSender, OutcomeReceiver, OutcomeSender, job_channel, outcome_channel};
pub use schedule::Schedule;
pub use worker::Workers;

/// How an attempt is made. Called by the workers, on ordinary threads: it may wait.
pub trait Delivery: Send + Sync {
    /// The transport's name in the configuration and in logs.
    fn name(&self) -> &str;

    /// What it carries beyond plain mail. Only that is offered to clients; a message that needs more, accepted for another transport,
    /// is rejected without an attempt.
    fn capabilities(&self) -> Capabilities {
        Capabilities::default()
    }

    /// Tries to deliver to every recipient of `attempt`: one outcome for each, in their order. `Delivered` means that the other
    /// side has it for good.
    ///
    /// `Rejected` is for what no later attempt can change; everything else that failed is `Deferred`. A panic, or a wrong
    /// number of outcomes, defers all of them.
    fn deliver(&self, attempt: &Attempt<'_>) -> Vec<Outcome>;
}

/// One recipient of an attempt.
#[derive(Clone, Copy, Debug)]
pub struct AttemptRecipient<'a> {
    /// Its place in the envelope's forward-paths.
    pub index: u32,
    /// Its forward-path.
    pub path: &'a ForwardPath,
}

/// One message on its way to some of its recipients.
pub struct Attempt<'a> {
    /// The message.
    pub id: MessageId,
    /// Its whole envelope, with recipients that have long been served.
    pub envelope: &'a Envelope,
    /// How and when it arrived.
    pub arrival: &'a Arrival,
    /// The recipients of this attempt; never empty.
    pub recipients: Vec<AttemptRecipient<'a>>,
    content: &'a Content,
}

impl<'a> Attempt<'a> {
    /// An attempt for the recipients of `job`.
    ///
    /// # Panics
    /// Where a recipient's index is outside the envelope.
    pub fn of(job: &'a Job) -> Self {
        let path = |index: u32| &job.envelope.forward_paths[index as usize];
        Attempt {
            id: job.id,
            envelope: &job.envelope,
            arrival: &job.arrival,
            recipients: job
                .recipients
                .iter()
                .map(|r| AttemptRecipient { index: r.index, path: path(r.index) })
                .collect(),
            content: &job.content,
        }
    }

    /// The content's size in octets, our trace lines included.
    pub fn content_size(&self) -> u64 {
        self.content.size()
    }

    /// A reader of the content from its first octet. An error of kind `InvalidData` means that the stored form is damaged.
    ///
    /// The reader may end early or fail late: prefer [`Attempt::copy_content`], which accepts no part for the whole.
    pub fn open_content(&self) -> io::Result<Box<dyn Read + Send + '_>> {
        self.content.open()
    }

    /// Writes the whole content into `sink`. On any error `sink` has a part that must not be delivered.
    pub fn copy_content(&self, sink: &mut dyn Write) -> Result<(), CopyError> {
        self.content.copy_to(sink)
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

/// `text` as a reason: at most [`REASON_SIZE_MAX`] octets.
fn bounded_reason(text: impl Into<String>) -> Box<str> {
    let mut text = text.into();
    if text.len() > REASON_SIZE_MAX {
        text.truncate(text.floor_char_boundary(REASON_SIZE_MAX));
    }
    text.into()
}
