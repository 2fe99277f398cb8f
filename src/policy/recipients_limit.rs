//! A bound on the recipients of a transaction, for strangers: what `smtp.recipients_max` allows may be more.

use super::{Answer, Facts, Phase, Phases, Policy, Verdict};
use crate::mail::{Refusal, Status};

/// See the module.
pub struct RecipientsLimit {
    name: String,
    max: usize,
}

impl RecipientsLimit {
    /// A transaction has at most `max` recipients.
    pub fn new(name: &str, max: usize) -> Self {
        RecipientsLimit { name: name.into(), max }
    }
}

impl Policy for RecipientsLimit {
    fn name(&self) -> &str {
        &self.name
    }

    fn phases(&self) -> Phases {
        Phases::of(Phase::Recipient)
    }

    fn is_guard(&self) -> bool {
        true
    }

    fn check(&self, _: Phase, facts: &Facts<'_>) -> Answer {
        match facts.recipients.len() >= self.max {
            // RFC 5321 §4.5.3.1.10: the peer sends to those that were accepted and comes again for the rest.
            true => Refusal::new(Status::temporary(5, 3), "Too many recipients, send to the others later")
                .keyed(format!("{} recipients", self.max))
                .into(),
            false => Verdict::Accept.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mail::ForwardPath;

    #[test]
    fn one_recipient_more_is_to_come_again() {
        let policy = RecipientsLimit::new("recipients_limit", 2);
        let paths = ["a@e.org", "b@e.org", "c@e.org"].map(|text| ForwardPath::parse(text, false).unwrap());
        for (count, word) in [(0, "accept"), (1, "accept"), (2, "defer"), (3, "defer")] {
            let facts = Facts { recipients: &paths[..count], ..Facts::of("192.0.2.1") };
            let Answer::Now(Ok(verdict)) = policy.check(Phase::Recipient, &facts) else { panic!("at once") };
            assert_eq!(verdict.word(), word, "{count}");
        }
    }
}
