//! What is handed to the workers.

use super::{Attempt, OutcomeSender, TargetId};

/// A durable message, some recipients who still want it, and by whom they get it.
///
/// Invariant: of a message only one job for each target exists at a time.
pub struct Job {
    /// The message and its recipients.
    pub attempt: Attempt,
    /// Who is to get it.
    pub target: TargetId,
    /// Where the report goes: to where the message came from.
    pub outcomes: OutcomeSender,
}
