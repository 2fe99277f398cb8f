//! Which recipients are ours: the rule that keeps a gateway from being a relay.
//!
//! Invariant: without `any`, a recipient passes only if the domain the parser found, the one after the last `@` outside
//! quotes, is in the list, in whichever of its spellings ([`crate::mail::canonical_domain`]). A local part that asks to be sent on
//! (`x%evil`, `evil!x`, `"x@evil"`) is refused there: nothing here would send it on, but what stands behind might.

use std::collections::HashSet;

use super::{Answer, Facts, Phase, Phases, Policy, Verdict};
use crate::mail::{Domain, ForwardPath, Refusal, Status};

/// Accepts recipients in listed domains, or all. `postmaster` without a domain, and at our own host name, always passes
/// (RFC 5321 §4.5.1).
pub struct AcceptedDomains {
    own: Domain,
    /// `None`: any domain.
    domains: Option<HashSet<Domain>>,
}

impl AcceptedDomains {
    /// Accepts recipients in `domains` only; `own` is the gateway's host name.
    pub fn listed(own: Domain, domains: impl IntoIterator<Item = Domain>) -> Self {
        AcceptedDomains { own, domains: Some(domains.into_iter().collect()) }
    }

    /// Accepts every recipient.
    pub fn any(own: Domain) -> Self {
        AcceptedDomains { own, domains: None }
    }

    fn accepts(&self, recipient: &ForwardPath) -> bool {
        let ForwardPath::Mailbox(mailbox) = recipient else { return true };
        let Some(domains) = &self.domains else { return true };
        let domain = mailbox.canonical_domain();
        domains.contains(&*domain)
            || mailbox.local_part().eq_ignore_ascii_case("postmaster") && domain == self.own.canonical()
    }
}

impl Policy for AcceptedDomains {
    fn name(&self) -> &str {
        "accepted_domains"
    }

    fn phases(&self) -> Phases {
        match self.domains {
            Some(_) => Phases::of(Phase::Recipient),
            None => Phases::NONE,
        }
    }

    fn check(&self, _: Phase, facts: &Facts<'_>) -> Answer {
        let refuse = |text| Refusal::new(Status::permanent(7, 1), text).into();
        match facts.recipient {
            Some(recipient) if !self.accepts(recipient) => refuse("Relay access denied"),
            Some(recipient) if asks_for_more_hops(recipient) => {
                refuse("Routes in addresses are not accepted")
            }
            _ => Verdict::Accept.into(),
        }
    }
}

/// Whether what is before the domain is an address again, in one of the ways of old (RFC 1123 §5.2.16 has the percent sign; the
/// exclamation mark is UUCP's).
fn asks_for_more_hops(recipient: &ForwardPath) -> bool {
    let ForwardPath::Mailbox(mailbox) = recipient else { return false };
    mailbox.local_part().contains(['%', '!', '@'])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn domain(text: &str) -> Domain {
        Domain::parse(text, true).unwrap()
    }

    fn verdict(policy: &AcceptedDomains, recipient: &str) -> Verdict {
        let recipient = ForwardPath::parse(recipient, true).unwrap();
        let facts = Facts { recipient: Some(&recipient), ..Facts::of("192.0.2.1") };
        let Answer::Now(Ok(verdict)) = policy.check(Phase::Recipient, &facts) else { panic!("at once") };
        verdict
    }

    #[test]
    fn only_listed_domains_and_postmaster_pass() {
        let policy = AcceptedDomains::listed(
            domain("mx.example.com"),
            [
                domain("Example.com"),
                domain("[192.0.2.1]"),
                domain("Bücher.example"),
                domain("XN--80AAFI6CG.xn--p1ai"),
                domain("xn--a.example"),
            ],
        );
        let table = [
            ("a@example.com", true),
            ("a@EXAMPLE.COM", true),
            ("a@[192.0.2.1]", true),
            ("a@bücher.example", true),
            ("a@BÜCHER.example", true),
            ("a@xn--bcher-kva.example", true),
            ("a@XN--Bcher-KVA.example", true),
            ("a@правда.рф", true),
            ("a@xn--a.example", true),
            ("a@xn--b.example", false),
            ("a@bucher.example", false),
            ("a@xn--bucher-kva.example", false),
            ("postmaster", true),
            ("PostMaster@MX.example.com", true),
            ("a@mx.example.com", false),
            ("postmaster@evil.org", false),
            ("a@sub.example.com", false),
            ("a@notexample.com", false),
            ("a@example.com.evil.org", false),
            ("\"a@example.com\"@evil.org", false),
            ("a@[192.0.2.2]", false),
            ("a@еxample.com", false),
        ];
        for (recipient, passes) in table {
            let expected = match passes {
                true => Verdict::Accept,
                false => Verdict::Refuse(Refusal::new(Status::permanent(7, 1), "Relay access denied")),
            };
            assert_eq!(verdict(&policy, recipient), expected, "{recipient}");
        }
    }

    #[test]
    fn an_address_within_an_address_is_refused() {
        let policy = AcceptedDomains::listed(domain("mx.example.com"), [domain("example.com")]);
        let refused = Refusal::new(Status::permanent(7, 1), "Routes in addresses are not accepted");
        for recipient in ["x%evil.org@example.com", "evil.org!x@example.com", "\"a@evil.org\"@example.com"] {
            assert_eq!(verdict(&policy, recipient), Verdict::Refuse(refused.clone()), "{recipient}");
        }
        assert_eq!(verdict(&policy, "a+b=evil.org@example.com"), Verdict::Accept);
    }

    #[test]
    fn any_accepts_all_and_need_not_be_asked() {
        let policy = AcceptedDomains::any(domain("mx.example.com"));
        assert_eq!(policy.phases(), Phases::NONE);
        assert_eq!(verdict(&policy, "a@evil.org"), Verdict::Accept);
    }
}
