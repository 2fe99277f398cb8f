//! Tells senders what became of their messages, through the queue: a notification is a message as any other, to one transport.
//!
//! A notification is durable before the outcome it is about is reported: a process that ends in between tells twice, not never. What
//! there is no room for, or too many of, is not told; the dead letter is there all the same, and the log says so.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use tracing::{info, warn};

use super::notification::{Event, Notification, NotificationRate, Told, wants};
use super::{Attempt, Intake, NotTaken, Resent};
use crate::mail::{Arrival, Domain, Envelope, Protocol, Provenance, Via};

/// See the module.
pub struct Notifier {
    host: Domain,
    transport: Box<str>,
    rate: Mutex<NotificationRate>,
    intake: Mutex<Box<dyn Intake>>,
}

impl Notifier {
    /// Tells in the name of `host`, through the target named `transport`, by messages put into `intake`, as many as `rate` permits.
    pub fn new(host: Domain, transport: &str, rate: NotificationRate, intake: Box<dyn Intake>) -> Self {
        Notifier { host, transport: transport.into(), rate: Mutex::new(rate), intake: Mutex::new(intake) }
    }

    /// Whether anybody wants to hear that a message was delivered to these recipients.
    pub fn is_success_wanted(attempt: &Attempt) -> bool {
        attempt.envelope.dsn.is_some()
            && attempt.recipients.iter().any(|r| wants(&attempt.envelope, r.index, Event::Delivered))
    }

    /// Tells the sender what happened, as far as he wants to know. This may block.
    pub fn tell(&self, attempt: &Attempt, told: &[Told<'_>]) {
        let envelope = &attempt.envelope;
        if !told.iter().any(|told| wants(envelope, told.index, told.event)) {
            return;
        }
        let message_id = attempt.id;
        let admitted = self
            .rate
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .admit(&envelope.reverse_path, Instant::now());
        if let Err(over) = admitted {
            warn!(%message_id, over = ?over, "the sender is not told: there are too many notifications");
            return;
        }
        let unix = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO);
        let notification = Notification {
            host: &self.host,
            id: message_id,
            envelope,
            is_authenticated: attempt.arrival.authenticated.is_some(),
            arrived: attempt.arrival.unix_time,
            recipients: told,
            now: unix.as_secs(),
            seed: random(),
        };
        let Some(written) = notification.write(attempt.open_content(), attempt.content_size()) else {
            return;
        };
        let envelope = Envelope { via: Some(Via::Through(self.transport.clone())), ..written.envelope };
        let arrival = Arrival {
            peer: ([127, 0, 0, 1], 0).into(),
            hello: self.host.as_str().into(),
            protocol: Protocol::Esmtp,
            tls: None,
            authenticated: None,
            client_name: None,
            tags: Vec::new(),
            unix_time: unix.as_secs(),
            provenance: Provenance::About(message_id),
        };
        let message = Resent { envelope, arrival, size: written.content.len() as u64 };
        let stored = self
            .intake
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .store(message, &mut &written.content[..]);
        match stored {
            Ok(id) => info!(message_id = %id, about = %message_id, "the sender is told"),
            Err(NotTaken::Later(why)) => warn!(%message_id, "the sender is not told: {why}"),
            Err(NotTaken::Content(e)) => warn!(%message_id, "the sender is not told: {e}"),
        }
    }
}

/// Whatever nobody can foresee.
fn random() -> u64 {
    let mut octets = [0; 8];
    // It fails only for want of the system call; then names are foreseen, and still differ by the message's id.
    let _ = rustix::rand::getrandom(&mut octets, rustix::rand::GetRandomFlags::empty());
    u64::from_ne_bytes(octets)
}
