//! After durability: targets, routes, jobs, workers, retries, dead letters, transports.
//!
//! A `Job` is a durable message with recipients that still want it from one `Target`. Whoever holds the queue finds the targets with
//! `Routes` and offers jobs through their `JobSender`s, which never wait; `Workers` make one attempt per job with a [`Delivery`]
//! and report an [`Outcome`] for each recipient through the job's `OutcomeSender`. When to try again is the queue's to do, by
//! [`Schedule`].
//!
//! ```text
//!          ┌─JobSender──▶ bounded channel of a target ──▶ worker ──Attempt──▶ Delivery
//!  queue ──┼─JobSender──▶ bounded channel of another  ──▶   │  └─ rejected, exhausted ─▶ DeadLetters
//!  ▲ ▲     └─ …                                             │                               │
//!  │ └───────────────OutcomeReceiver◀───────Report──────────┘                               │
//!  └─────────────────Intake◀──────────────────Upkeep◀──────────────────sent again───────────┘
//! ```
//!
//! Invariants:
//! - every job taken from the channel is answered by one report with one outcome for each of its recipients, in order, except
//!   when the process ends: then nothing was reported, and the queue still has it;
//! - `Rejected` is reported only after a dead letter is durable;
//! - content that cannot be read whole and undamaged is never delivered, not even in part;
//! - a target that hangs, fails or is slow takes nothing of what another needs.
//!
//! Knows nothing of shards, sessions or how the content is stored.

mod attempt;
mod content;
#[doc(hidden)]
pub mod dead;
pub(crate) mod folder;
mod header;
mod job;
mod meters;
#[doc(hidden)]
pub mod notification;
mod notifier;
mod outcome;
mod queue;
pub(crate) mod record;
mod routing;
mod schedule;
mod target;
pub(crate) mod transport;
mod worker;

use std::pin::Pin;

use crate::mail::Capabilities;

pub use attempt::{Attempt, Recipient};
pub use content::{Chunks, Content, ContentReader, CopyError, StoredContent};
pub use header::{Address, HeaderField, HeaderFields, HeaderReader};
pub use outcome::{Fault, Outcome};
// What a configuration is made of.
pub use routing::RecipientPattern;
pub use schedule::Schedule;
pub use target::Limits;

// For the commands and tests.
#[doc(hidden)]
pub use dead::DeadLetters;

pub(crate) use dead::{Intake, NotTaken, Resent, Upkeep};
pub(crate) use job::Job;
pub(crate) use notifier::Notifier;
pub(crate) use outcome::Report;
pub(crate) use queue::{
    JobReceiver, JobSender, OutcomeReceiver, OutcomeSender, job_channel, outcome_channel,
};
pub(crate) use routing::{Route, Routed, Routes};
pub(crate) use target::{Means, Target, TargetId, Targets};
pub(crate) use worker::{Settlement, Workers};

/// An attempt that is being made: one outcome for each recipient, in their order.
pub type Delivering<'a> = Pin<Box<dyn Future<Output = Vec<Outcome>> + Send + 'a>>;

/// How an attempt is made, by a transport that waits without blocking.
///
/// It is polled on threads with a current-thread tokio runtime, beside many others: it must never block. How many are made at a time, how
/// often, and when again, is seen to around it.
///
/// ```
/// use incoming::delivery::{Attempt, Delivering, Delivery, Outcome};
///
/// /// Counts what it gets.
/// struct Scale;
///
/// impl Delivery for Scale {
///     fn deliver<'a>(&'a self, attempt: &'a Attempt) -> Delivering<'a> {
///         Box::pin(async move {
///             let (mut size, mut chunks) = (0, attempt.chunks());
///             let outcome = loop {
///                 match chunks.next().await {
///                     Some(Ok(octets)) => size += octets.len(),
///                     Some(Err(e)) => break Outcome::unasked(e.to_string()),
///                     None => break Outcome::delivered_saying(format!("{size} octets")),
///                 }
///             };
///             vec![outcome; attempt.recipients.len()]
///         })
///     }
/// }
/// ```
pub trait Delivery: Send + Sync {
    /// What it carries beyond plain mail. Only that is offered to clients; a message that needs more, accepted for another transport,
    /// is rejected without an attempt.
    fn capabilities(&self) -> Capabilities {
        Capabilities::default()
    }

    /// Whether what was delivered has arrived, and is not just on its way to another server: what senders are told, if they ask.
    fn is_final(&self) -> bool {
        true
    }

    /// Tries to deliver to every recipient of `attempt`: one outcome for each, in their order. `Delivered` means that the other
    /// side has it for good.
    ///
    /// `Rejected` is for what no later attempt can change; everything else that failed is `Deferred`. A panic, or a wrong
    /// number of outcomes, defers all of them.
    fn deliver<'a>(&'a self, attempt: &'a Attempt) -> Delivering<'a>;
}

/// How an attempt is made, by a transport that blocks: on threads of its own.
///
/// ```
/// use incoming::delivery::{Attempt, BlockingDelivery, Outcome};
///
/// /// Prints who writes to whom about what.
/// struct Print;
///
/// impl BlockingDelivery for Print {
///     fn deliver(&self, attempt: &Attempt) -> Vec<Outcome> {
///         let all = |outcome| vec![outcome; attempt.recipients.len()];
///         let Ok(header) = attempt.header() else { return all(Outcome::unasked("its header cannot be read")) };
///         let subject = header.get("Subject").map(|field| field.value().to_string());
///         for path in attempt.paths() {
///             println!("{} to {path}: {subject:?}", attempt.envelope.reverse_path);
///         }
///         all(Outcome::delivered())
///     }
/// }
/// ```
pub trait BlockingDelivery: Send + Sync {
    /// As [`Delivery::capabilities`].
    fn capabilities(&self) -> Capabilities {
        Capabilities::default()
    }

    /// As [`Delivery::is_final`].
    fn is_final(&self) -> bool {
        true
    }

    /// As [`Delivery::deliver`].
    fn deliver(&self, attempt: &Attempt) -> Vec<Outcome>;

    /// No attempt will begin any more, and those that are being made should end within seconds. From any thread, once.
    fn stop(&self) {}
}

#[cfg(test)]
pub(crate) mod tests {
    use std::sync::Arc;

    use bytes::Bytes;

    use super::*;
    use crate::mail::{Arrival, Body, Envelope, ForwardPath, MessageId, Protocol, ReversePath};

    /// A message for these recipients.
    pub fn attempt_for(recipients: &[&str]) -> Attempt {
        let path = |path: &&str| ForwardPath::parse(path, true).unwrap();
        let envelope = Envelope {
            body: Body::EightBit,
            ..Envelope::new(
                ReversePath::parse("s@e.net", false).unwrap(),
                recipients.iter().map(path).collect(),
            )
        };
        let arrival = Arrival {
            peer: "192.0.2.1:1234".parse().unwrap(),
            hello: "e.net".into(),
            protocol: Protocol::Esmtp,
            tls: None,
            authenticated: None,
            client_name: None,
            tags: Vec::new(),
            unix_time: 1_700_000_000,
            provenance: Default::default(),
        };
        let parts = [&b"Received: x\r\n"[..], b"\r\nhello\r\n"].map(Bytes::from_static);
        Attempt {
            id: MessageId { log: 1, sequence: 33 },
            envelope: Arc::new(envelope),
            arrival: Arc::new(arrival),
            recipients: (0..recipients.len() as u32).map(|index| Recipient { index, attempts: 0 }).collect(),
            content: Arc::new(Content::Memory(parts.into())),
        }
    }

    /// One of many messages for three recipients.
    pub fn message(sequence: u64) -> Attempt {
        let mut attempt = attempt_for(&["a@e.org", "b@e.org", "postmaster"]);
        attempt.id.sequence = sequence;
        attempt
    }

    /// A job for three recipients, the second of which has one attempt behind it.
    pub fn job(sequence: u64, outcomes: &OutcomeSender) -> Job {
        let mut attempt = message(sequence);
        attempt.recipients[1].attempts = 1;
        Job::new(attempt, TargetId(0), outcomes.clone())
    }
}
