//! What holds in some of our domains only: how large a message may be, and that it must come over TLS.
//!
//! Asked about each recipient and those who stand for it, of whom alone a refusal is then; and about the whole message when its size is known, if it was not
//! declared or not truly.

use std::collections::HashMap;

use super::{Answer, Facts, Phase, Phases, Policy, Verdict};
use crate::mail::{Domain, ForwardPath, Refusal, Status};

/// What holds in one domain.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DomainRules {
    /// Octets of content at most.
    pub message_size_max: Option<u64>,
    /// Mail for it is taken over TLS only.
    pub tls_required: bool,
}

/// See the module.
pub struct Domains {
    domains: HashMap<Domain, DomainRules>,
}

impl Domains {
    /// These rules in these domains.
    pub fn new(domains: impl IntoIterator<Item = (Domain, DomainRules)>) -> Self {
        Domains { domains: domains.into_iter().collect() }
    }

    fn refusal(&self, recipient: &ForwardPath, is_in_clear: bool, size: u64) -> Option<Refusal> {
        let ForwardPath::Mailbox(mailbox) = recipient else { return None };
        let domain = mailbox.canonical_domain();
        let rules = self.domains.get(&*domain)?;
        if rules.tls_required && is_in_clear {
            // RFC 5248: encryption needed. Permanent, as every way of asking for TLS is (530 5.7.0 of RFC 3207): who has none will have
            // none in an hour, and whoever wrote the message should hear of it today.
            let refusal = Refusal::new(Status::permanent(7, 10), "This domain takes mail over TLS only");
            return Some(refusal.keyed(&*domain));
        }
        if rules.message_size_max.is_some_and(|max| size > max) {
            let refusal = Refusal::new(Status::permanent(3, 4), "Message too large for this domain");
            return Some(refusal.keyed(&*domain));
        }
        None
    }
}

impl Policy for Domains {
    fn name(&self) -> &str {
        "domains"
    }

    fn phases(&self) -> Phases {
        match self.domains.values().any(|rules| rules.message_size_max.is_some()) {
            true => Phases::of(Phase::Recipient) | Phases::of(Phase::Message),
            false => Phases::of(Phase::Recipient),
        }
    }

    fn check(&self, phase: Phase, facts: &Facts<'_>) -> Answer {
        let refusal = match phase {
            Phase::Recipient => {
                let is_in_clear = facts.tls.is_none();
                let size = facts.declared_size.unwrap_or(0);
                let mut concerned = facts.recipient.into_iter().chain(facts.instead);
                concerned.find_map(|recipient| self.refusal(recipient, is_in_clear, size))
            }
            // Nobody is a recipient who may be one only over TLS.
            _ => facts.recipients.iter().find_map(|recipient| self.refusal(recipient, false, facts.size)),
        };
        refusal.map_or(Verdict::Accept, Verdict::Refuse).into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mail::{Tls, TlsVersion};

    fn said(
        phase: Phase,
        recipients: &[&str],
        declared: Option<u64>,
        size: u64,
        tls: Option<&Tls>,
    ) -> String {
        let rules = [
            ("small.example", DomainRules { message_size_max: Some(1000), tls_required: false }),
            ("bücher.example", DomainRules { message_size_max: None, tls_required: true }),
        ];
        let domain = |text| Domain::parse(text, true).unwrap();
        let policy = Domains::new(rules.map(|(name, rules)| (domain(name), rules)));
        assert_eq!(policy.phases(), Phases::of(Phase::Recipient) | Phases::of(Phase::Message));
        let paths: Vec<_> = recipients.iter().map(|text| ForwardPath::parse(text, true).unwrap()).collect();
        let facts = Facts { declared_size: declared, size, tls, ..Facts::of("192.0.2.1") };
        let facts = match phase {
            Phase::Recipient => Facts { recipient: paths.last(), ..facts },
            _ => Facts { recipients: &paths, ..facts },
        };
        match policy.check(phase, &facts) {
            Answer::Now(Ok(Verdict::Refuse(refusal))) => {
                format!("{} {}", refusal.status, refusal.key.unwrap())
            }
            Answer::Now(Ok(Verdict::Accept)) => "accept".into(),
            answer => panic!("{answer:?}"),
        }
    }

    #[test]
    fn a_size_declared_is_judged_for_each_recipient_and_a_real_one_for_the_message() {
        type Case = (Phase, &'static [&'static str], Option<u64>, u64, &'static str);
        let table: [Case; 8] = [
            (Phase::Recipient, &["a@small.example"], Some(1000), 0, "accept"),
            (Phase::Recipient, &["a@Small.example"], Some(1001), 0, "5.3.4 small.example"),
            (Phase::Recipient, &["a@large.example"], Some(1001), 0, "accept"),
            (Phase::Recipient, &["a@small.example"], None, 0, "accept"),
            (Phase::Recipient, &["postmaster"], Some(1001), 0, "accept"),
            (Phase::Message, &["a@large.example", "a@small.example"], None, 1000, "accept"),
            (Phase::Message, &["a@large.example", "a@small.example"], Some(1), 1001, "5.3.4 small.example"),
            (Phase::Message, &["a@large.example", "postmaster"], None, 1001, "accept"),
        ];
        for (phase, recipients, declared, size, expected) in table {
            assert_eq!(
                said(phase, recipients, declared, size, None),
                expected,
                "{phase:?} {recipients:?} {size}"
            );
        }
    }

    #[test]
    fn tls_is_asked_for_where_it_is_required() {
        let tls = Tls { version: TlsVersion::Tls13, cipher: "x".into(), server_name: None, client: None };
        let refused = "5.7.10 xn--bcher-kva.example";
        for (recipient, tls, expected) in [
            ("a@xn--bcher-kva.example", None, refused),
            ("a@xn--bcher-kva.example", Some(&tls), "accept"),
            ("a@small.example", None, "accept"),
        ] {
            assert_eq!(said(Phase::Recipient, &[recipient], None, 0, tls), expected, "{recipient}");
        }
    }
}
