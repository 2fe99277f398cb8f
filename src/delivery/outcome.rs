//! What came of an attempt.

use std::time::Duration;

use super::TargetId;
use crate::limits::REASON_SIZE_MAX;
use crate::mail::MessageId;

/// A recipient's outcome.
///
/// Texts are for the operator, and of bounded length. One that is the reply of a server begins with its digits, as
/// `550 5.1.1 no such user (mx1.example:25, after RCPT)`: notifications to senders take the status from there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The other side has it for good: done.
    Delivered {
        /// What it said, if it said anything.
        reply: Option<Box<str>>,
    },
    /// Not now: to be tried again on schedule.
    Deferred {
        /// Why.
        reason: Box<str>,
        /// Not before so long, if the other side said so.
        retry_after: Option<Duration>,
        /// Whose fault it is.
        fault: Fault,
    },
    /// Never: done. In a `Report` it means that a dead letter is durable.
    Rejected {
        /// Why.
        reason: Box<str>,
    },
}

impl Outcome {
    /// The other side has it for good.
    pub fn delivered() -> Self {
        Outcome::Delivered { reply: None }
    }

    /// The other side has it for good, and said so.
    pub fn delivered_saying(reply: impl Into<String>) -> Self {
        Outcome::Delivered { reply: Some(bounded(reply)) }
    }

    /// Not now, because of `reason`.
    pub fn deferred(reason: impl Into<String>) -> Self {
        Outcome::Deferred { reason: bounded(reason), retry_after: None, fault: Fault::Message }
    }

    /// Not now, because the target as a whole is not to be had.
    pub fn unreachable(reason: impl Into<String>) -> Self {
        Outcome::Deferred { reason: bounded(reason), retry_after: None, fault: Fault::Target }
    }

    /// Not now, and nobody was asked: something of ours fails.
    pub fn unasked(reason: impl Into<String>) -> Self {
        Outcome::Deferred { reason: bounded(reason), retry_after: None, fault: Fault::Ours }
    }

    /// Never, because of `reason`.
    pub fn rejected(reason: impl Into<String>) -> Self {
        Outcome::Rejected { reason: bounded(reason) }
    }

    /// The same, and if it is deferred: not before `wait`.
    pub fn after(mut self, wait: Duration) -> Self {
        if let Outcome::Deferred { retry_after, .. } = &mut self {
            *retry_after = Some(wait);
        }
        self
    }

    /// Why it was not delivered.
    pub fn reason(&self) -> Option<&str> {
        match self {
            Outcome::Delivered { .. } => None,
            Outcome::Deferred { reason, .. } | Outcome::Rejected { reason } => Some(reason),
        }
    }

    /// What was said of it: the reply, or why not.
    pub fn text(&self) -> &str {
        match self {
            Outcome::Delivered { reply } => reply.as_deref().unwrap_or_default(),
            Outcome::Deferred { reason, .. } | Outcome::Rejected { reason } => reason,
        }
    }

    /// Whether it was delivered.
    pub fn is_delivered(&self) -> bool {
        matches!(self, Outcome::Delivered { .. })
    }

    /// Whether the target failed as a whole.
    pub fn is_of_target(&self) -> bool {
        matches!(self, Outcome::Deferred { fault: Fault::Target, .. })
    }

    /// Whether nobody was asked.
    pub fn is_unasked(&self) -> bool {
        matches!(self, Outcome::Deferred { fault: Fault::Ours, .. })
    }
}

fn bounded(text: impl Into<String>) -> Box<str> {
    let mut text = text.into();
    if text.len() > REASON_SIZE_MAX {
        text.truncate(text.floor_char_boundary(REASON_SIZE_MAX));
    }
    text.into()
}

/// Whose fault a deferral is: what the circuit breaker is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Of the message or its recipient: the target has answered.
    Message,
    /// Of the target, which would have failed for any message: where all recipients of an attempt have this, it counts as a failure.
    Target,
    /// Of ourselves: nobody was asked, so nothing is known of the target.
    Ours,
}

/// What came of one job, recipient by recipient.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// The message.
    pub id: MessageId,
    /// Who was to get it.
    pub target: TargetId,
    /// When the attempt began, in milliseconds since 1970 by the wall clock; 0: none was made.
    pub unix_millis: u64,
    /// How long it took.
    pub duration: Duration,
    /// The index in the envelope's forward-paths, and the outcome: every recipient of the job, in its order. Empty: nobody has taken the
    /// job, and nothing is to be said of it.
    pub recipients: Vec<(u32, Outcome)>,
}

#[cfg(test)]
mod tests {
    use super::*;

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
