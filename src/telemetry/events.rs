//! The events of a gateway, by their names, and who is told of them.
//!
//! | name | when | level in the log |
//! |---|---|---|
//! | `session.connect` | somebody has connected and is given a session | debug |
//! | `session.accepted` | the session was greeted | debug |
//! | `session.rejected` | something was refused, in whatever phase; at connect: there is no session | info, as "refused" |
//! | `message.queued` | a message is durable, and the peer is told so | info, as "accepted" |
//! | `message.enqueue_error` | a message could not be made durable, and the peer is told to come again | warn |
//! | `delivery.result` | an attempt has ended | info, as "attempt" |
//! | `queue.depth` | every ten seconds while the queue of a log changes, and once more when it is empty | debug |
//!
//! Each is an event of `tracing` under that name (`tracing::Metadata::name`), so that a subscriber of a library's user can tell them; and
//! what an [`Observer`] is told.

use std::net::SocketAddr;
use std::time::Duration;

use crate::mail::{MessageId, Phase, Refusal};

/// The name of [`Event::SessionConnect`].
pub const SESSION_CONNECT: &str = "session.connect";
/// The name of [`Event::SessionAccepted`].
pub const SESSION_ACCEPTED: &str = "session.accepted";
/// The name of [`Event::SessionRejected`].
pub const SESSION_REJECTED: &str = "session.rejected";
/// The name of [`Event::MessageQueued`].
pub const MESSAGE_QUEUED: &str = "message.queued";
/// The name of [`Event::MessageEnqueueError`].
pub const MESSAGE_ENQUEUE_ERROR: &str = "message.enqueue_error";
/// The name of [`Event::DeliveryResult`].
pub const DELIVERY_RESULT: &str = "delivery.result";
/// The name of [`Event::QueueDepth`].
pub const QUEUE_DEPTH: &str = "queue.depth";

/// Something has happened: what was measured of it, and whom it concerns.
///
/// Texts of it may hold what a peer has said: show them with [`super::Escaped`].
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub enum Event<'a> {
    /// Somebody has connected and is given a session.
    #[non_exhaustive]
    SessionConnect {
        /// Who.
        peer: SocketAddr,
        /// Where to.
        listener: SocketAddr,
        /// Sessions of the shard now, this one included.
        sessions: usize,
    },
    /// The session was greeted.
    #[non_exhaustive]
    SessionAccepted {
        /// Who.
        peer: SocketAddr,
        /// Where to.
        listener: SocketAddr,
        /// From the connection to the greeting; the handshake included where TLS comes first.
        wait: Duration,
    },
    /// Something was refused.
    #[non_exhaustive]
    SessionRejected {
        /// Whom.
        peer: SocketAddr,
        /// When; at [`Phase::Connect`] there is no session.
        phase: Phase,
        /// By which policy; `admission`: by the gateway itself, which has no room.
        policy: &'a str,
        /// Why.
        refusal: &'a Refusal,
    },
    /// A message is durable.
    #[non_exhaustive]
    MessageQueued {
        /// Its id.
        id: MessageId,
        /// Whose.
        peer: SocketAddr,
        /// Octets of its content.
        size: u64,
        /// How many get it.
        recipients: usize,
        /// From end-of-data until it was durable.
        wait: Duration,
    },
    /// A message could not be made durable.
    #[non_exhaustive]
    MessageEnqueueError {
        /// Whose.
        peer: SocketAddr,
        /// Octets of its content.
        size: u64,
        /// `no_room`, `busy` or `failed`.
        reason: &'static str,
    },
    /// An attempt has ended.
    #[non_exhaustive]
    DeliveryResult {
        /// Of which message.
        id: MessageId,
        /// The name of the transport.
        target: &'a str,
        /// Recipients who have it.
        delivered: usize,
        /// Recipients who are to be tried again.
        deferred: usize,
        /// Recipients who were given up.
        rejected: usize,
        /// Why some do not have it.
        reason: Option<&'a str>,
        /// How long it took.
        duration: Duration,
    },
    /// So many messages are not done.
    #[non_exhaustive]
    QueueDepth {
        /// The log's part of message ids.
        log: u32,
        /// Messages of it that are not done.
        depth: usize,
    },
}

impl Event<'_> {
    /// Its name.
    pub fn name(&self) -> &'static str {
        match self {
            Event::SessionConnect { .. } => SESSION_CONNECT,
            Event::SessionAccepted { .. } => SESSION_ACCEPTED,
            Event::SessionRejected { .. } => SESSION_REJECTED,
            Event::MessageQueued { .. } => MESSAGE_QUEUED,
            Event::MessageEnqueueError { .. } => MESSAGE_ENQUEUE_ERROR,
            Event::DeliveryResult { .. } => DELIVERY_RESULT,
            Event::QueueDepth { .. } => QUEUE_DEPTH,
        }
    }
}

/// Who is told of events.
///
/// [`Observer::observe`] is called on the thread where it happens: on a shard, with all its sessions, or on a thread that delivers, with all
/// its attempts. They wait until it returns, so it must not block: count, or put what is wanted of the event into a channel that has room,
/// and return. A panic in it ends the process.
///
/// ```
/// use std::sync::atomic::{AtomicU64, Ordering};
/// use incoming::telemetry::{Event, Observer};
///
/// #[derive(Default)]
/// struct Octets(AtomicU64);
///
/// impl Observer for Octets {
///     fn observe(&self, event: &Event<'_>) {
///         if let Event::MessageQueued { size, .. } = event {
///             self.0.fetch_add(*size, Ordering::Relaxed);
///         }
///     }
/// }
/// ```
pub trait Observer: Send + Sync {
    /// This has just happened.
    fn observe(&self, event: &Event<'_>);
}
