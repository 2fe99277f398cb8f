//! What is handed to the workers.

use std::time::Duration;

use super::{Attempt, OutcomeSender, Report, TargetId};
use crate::mail::MessageId;

/// A durable message, some recipients who still want it, and by whom they get it.
///
/// Invariant: of a message only one job for each target exists at a time. A job that is dropped without a report gives the message back
/// to the queue: who made it may be gone, while the queue goes on.
pub struct Job {
    /// The message and its recipients.
    pub attempt: Attempt,
    /// Who is to get it.
    pub target: TargetId,
    /// Where the report goes.
    pub reply: Reply,
}

impl Job {
    /// Of a queue that hears of it through `outcomes`.
    pub fn new(attempt: Attempt, target: TargetId, outcomes: OutcomeSender) -> Self {
        let reply = Reply { id: attempt.id, target, outcomes: Some(outcomes) };
        Job { attempt, target, reply }
    }

    /// Nobody has taken it: the queue that offered it knows.
    pub fn withdraw(mut self) {
        self.reply.outcomes = None;
    }
}

/// The way of a job's report to where the message came from.
pub struct Reply {
    id: MessageId,
    target: TargetId,
    outcomes: Option<OutcomeSender>,
}

impl Reply {
    /// Sends the report, and gives who is to be rung for it.
    pub fn send(mut self, report: Report) -> OutcomeSender {
        let outcomes = self.outcomes.take().expect("a reply is sent once");
        outcomes.send(report);
        outcomes
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        if let Some(outcomes) = self.outcomes.take() {
            let nothing = Vec::new();
            outcomes.give_back(Report {
                id: self.id,
                target: self.target,
                unix_millis: 0,
                duration: Duration::ZERO,
                recipients: nothing,
            });
        }
    }
}
