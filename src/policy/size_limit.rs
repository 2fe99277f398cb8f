//! A bound on the size of a message, for strangers: what `smtp.message_size_max` allows may be more.
//!
//! Asked at MAIL by what the peer declares, and at the end of content by what there is: a peer need not declare anything, nor tell the
//! truth.

use super::{Answer, Facts, Phase, Phases, Policy, Verdict};
use crate::mail::{Refusal, Status};

/// See the module.
pub struct SizeLimit {
    name: String,
    max: u64,
}

impl SizeLimit {
    /// Content has at most `max` octets.
    pub fn new(name: &str, max: u64) -> Self {
        SizeLimit { name: name.into(), max }
    }
}

impl Policy for SizeLimit {
    fn name(&self) -> &str {
        &self.name
    }

    fn phases(&self) -> Phases {
        Phases::of(Phase::Mail) | Phases::of(Phase::Message)
    }

    fn is_guard(&self) -> bool {
        true
    }

    fn check(&self, phase: Phase, facts: &Facts<'_>) -> Answer {
        let size = match phase {
            Phase::Mail => facts.declared_size.unwrap_or(0),
            _ => facts.size,
        };
        match size > self.max {
            // RFC 3463 X.3.4: message too big for system.
            true => Refusal::new(Status::permanent(3, 4), "Message too large")
                .keyed(format!("{size} of {} octets", self.max))
                .into(),
            false => Verdict::Accept.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_declared_size_counts_at_mail_and_the_real_one_at_the_end() {
        let policy = SizeLimit::new("size_limit", 1000);
        let table = [
            (Phase::Mail, None, 0, "accept"),
            (Phase::Mail, Some(1000), 0, "accept"),
            (Phase::Mail, Some(1001), 0, "reject"),
            (Phase::Message, Some(10), 1000, "accept"),
            (Phase::Message, Some(10), 1001, "reject"),
        ];
        for (phase, declared_size, size, word) in table {
            let facts = Facts { declared_size, size, ..Facts::of("192.0.2.1") };
            let Answer::Now(Ok(verdict)) = policy.check(phase, &facts) else { panic!("at once") };
            assert_eq!(verdict.word(), word, "{phase:?} {declared_size:?} {size}");
        }
    }
}
