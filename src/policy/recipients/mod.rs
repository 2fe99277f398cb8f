//! Whose mail is taken: the rule that keeps a gateway from being a relay, and what tells a user from somebody who is none.
//!
//! [`Recipients`] decides by what is known here, the domains of the configuration and [`Maps`]. It is asked first, about everybody:
//! nothing that another policy says makes a relay of us. [`Inquiry`] asks somebody else, where only they know who exists.
//!
//! Invariants:
//! - without `any`, a recipient passes only if the domain the parser found, the one after the last `@` outside quotes, is ours, in
//!   whichever of its spellings ([`crate::mail::canonical_domain`]);
//! - a local part that asks to be sent on (`x%evil`, `evil!x`, `"x@evil"`) is refused there: nothing here would send it on, but what stands
//!   behind might. The targets of an alias are the operator's word, and may be anywhere.

mod callout;
mod http_lookup;
mod inquiry;
mod map;

use std::sync::Arc;

use arc_swap::ArcSwap;

use super::{Answer, Facts, Phase, Phases, Policy, Verdict};
use crate::mail::{Domain, ForwardPath, Mailbox, Refusal, Status};

pub use callout::Callout;
pub use http_lookup::{HttpLookup, HttpService, UrlTemplate};
pub use inquiry::{Inquiry, Memory, Source};
pub use map::{Listing, MapFault, Maps};

/// Accepts recipients in our domains, or in any; of the domains that maps are about, the addresses that are listed. `postmaster` without a
/// domain, and at our own host name, always passes (RFC 5321 §4.5.1), as `postmaster` and `abuse` of our domains do (RFC 2142).
pub struct Recipients {
    own: Domain,
    any: bool,
    maps: ArcSwap<Maps>,
}

impl Recipients {
    /// Accepts recipients as `maps` say; `own` is the gateway's host name. With `any` every domain is ours.
    pub fn new(own: Domain, any: bool, maps: Maps) -> Self {
        Recipients { own, any, maps: ArcSwap::from_pointee(maps) }
    }

    /// From now on `maps` decide, on all shards.
    pub fn replace(&self, maps: Maps) {
        self.maps.store(Arc::new(maps));
    }

    /// Whether mail for `domain` is ours.
    pub fn has_domain(&self, domain: &Domain) -> bool {
        self.any || self.maps.load().has_domain(domain.canonical())
    }

    /// Whether others stand for this address.
    pub fn is_alias(&self, mailbox: &Mailbox) -> bool {
        matches!(
            self.maps.load().find(mailbox.local_part(), &mailbox.canonical_domain()),
            Listing::Replaced(_)
        )
    }

    fn decide(&self, recipient: &ForwardPath) -> Verdict {
        let maps = self.maps.load();
        // Without a domain it is the postmaster of this host, for whom an alias may stand.
        let ForwardPath::Mailbox(mailbox) = recipient else {
            return match maps.find("postmaster", self.own.canonical()) {
                Listing::Replaced(targets) => Verdict::Replace(targets.to_vec()),
                _ => Verdict::Accept,
            };
        };
        let (local, domain) = (mailbox.local_part(), mailbox.canonical_domain());
        let is = |name: &str| local.eq_ignore_ascii_case(name);
        let found = maps.find(local, &domain);
        let is_foreign = found == Listing::Foreign;
        if is_foreign && self.any {
            return Verdict::Accept;
        }
        if is_foreign && !(is("postmaster") && domain == self.own.canonical()) {
            return refuse(Status::permanent(7, 1), "Relay access denied");
        }
        if map::is_route(local) {
            return refuse(Status::permanent(7, 1), "Routes in addresses are not accepted");
        }
        match found {
            Listing::Replaced(targets) => Verdict::Replace(targets.to_vec()),
            Listing::Unknown if !is("postmaster") && !is("abuse") => {
                refuse(Status::permanent(1, 1), NO_SUCH_USER)
            }
            _ => Verdict::Accept,
        }
    }
}

/// Of whoever does not exist, whoever says so.
const NO_SUCH_USER: &str = "No such user here";

fn refuse(status: Status, text: &'static str) -> Verdict {
    Verdict::Refuse(Refusal::new(status, text))
}

impl Policy for Recipients {
    fn name(&self) -> &str {
        "recipients"
    }

    fn phases(&self) -> Phases {
        // Maps are replaced by those of the same files.
        match self.any && self.maps.load().files_count() == 0 {
            true => Phases::NONE,
            false => Phases::of(Phase::Recipient),
        }
    }

    fn check(&self, _: Phase, facts: &Facts<'_>) -> Answer {
        facts.recipient.map_or(Verdict::Accept, |recipient| self.decide(recipient)).into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn domain(text: &str) -> Domain {
        Domain::parse(text, true).unwrap()
    }

    fn listed(domains: &[&str]) -> Recipients {
        let domains: Vec<_> = domains.iter().map(|text| domain(text)).collect();
        Recipients::new(domain("mx.example.com"), false, Maps::of_domains(&domains))
    }

    fn mapped(any: bool, text: &str) -> Recipients {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("map");
        std::fs::write(&file, text).unwrap();
        let maps = Maps::load(&[file], &[domain("open.example")], Some(b'+')).unwrap();
        Recipients::new(domain("mx.example.com"), any, maps)
    }

    fn verdict(policy: &Recipients, recipient: &str) -> Verdict {
        let recipient = ForwardPath::parse(recipient, true).unwrap();
        let facts = Facts { recipient: Some(&recipient), ..Facts::of("192.0.2.1") };
        let Answer::Now(Ok(verdict)) = policy.check(Phase::Recipient, &facts) else { panic!("at once") };
        verdict
    }

    fn said(policy: &Recipients, recipient: &str) -> String {
        match verdict(policy, recipient) {
            Verdict::Refuse(refusal) => format!("{} {}", refusal.status, refusal.text),
            Verdict::Replace(paths) => paths.iter().map(ForwardPath::as_str).collect::<Vec<_>>().join(" "),
            verdict => verdict.word().into(),
        }
    }

    #[test]
    fn only_listed_domains_and_postmaster_pass() {
        let policy = listed(&[
            "Example.com",
            "[192.0.2.1]",
            "Bücher.example",
            "XN--80AAFI6CG.xn--p1ai",
            "xn--a.example",
        ]);
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
            ("abuse@mx.example.com", false),
            ("postmaster@evil.org", false),
            ("a@sub.example.com", false),
            ("a@notexample.com", false),
            ("a@example.com.evil.org", false),
            ("\"a@example.com\"@evil.org", false),
            ("a@[192.0.2.2]", false),
            ("a@еxample.com", false),
        ];
        for (recipient, passes) in table {
            let expected = if passes { "accept" } else { "5.7.1 Relay access denied" };
            assert_eq!(said(&policy, recipient), expected, "{recipient}");
        }
    }

    #[test]
    fn an_address_within_an_address_is_refused() {
        let alias = "@example.com x@elsewhere.example\n";
        for policy in [listed(&["example.com"]), mapped(false, alias), mapped(true, alias)] {
            for recipient in
                ["x%evil.org@example.com", "evil.org!x@example.com", "\"a@evil.org\"@example.com"]
            {
                let expected = "5.7.1 Routes in addresses are not accepted";
                assert_eq!(said(&policy, recipient), expected, "{recipient}");
            }
        }
        assert_eq!(said(&listed(&["example.com"]), "a+b=evil.org@example.com"), "accept");
    }

    #[test]
    fn any_accepts_all_and_need_not_be_asked() {
        let policy = Recipients::new(domain("mx.example.com"), true, Maps::of_domains(&[]));
        assert_eq!(policy.phases(), Phases::NONE);
        assert_eq!(verdict(&policy, "a@evil.org"), Verdict::Accept);
    }

    #[test]
    fn in_a_mapped_domain_who_is_not_listed_is_no_user() {
        let map = "alice@example.com\ninfo@example.com alice@example.com bob@elsewhere.example\nexample.net\n\
                   postmaster@mx.example.com alice@example.com\n";
        let unknown = "5.1.1 No such user here";
        let table = [
            ("alice@example.com", "accept"),
            ("alice+x@example.com", "accept"),
            ("info@example.com", "alice@example.com bob@elsewhere.example"),
            ("nobody@example.com", unknown),
            ("nobody@example.net", unknown),
            ("Postmaster@example.net", "accept"),
            ("abuse@example.com", "accept"),
            ("nobody@open.example", "accept"),
            ("bob@elsewhere.example", "5.7.1 Relay access denied"),
            ("postmaster", "alice@example.com"),
            ("postmaster@mx.example.com", "alice@example.com"),
            ("abuse@mx.example.com", "accept"),
        ];
        for (recipient, expected) in table {
            assert_eq!(said(&mapped(false, map), recipient), expected, "{recipient}");
        }
        // Of a domain that is ours anyway the map says as much.
        for (recipient, expected) in [("nobody@example.com", unknown), ("a@elsewhere.example", "accept")] {
            assert_eq!(said(&mapped(true, map), recipient), expected, "{recipient}");
        }
        assert_eq!(mapped(true, "").phases(), Phases::of(Phase::Recipient), "the file may get lines yet");
    }

    #[test]
    fn maps_are_replaced_as_a_whole() {
        let policy = mapped(false, "alice@example.com");
        assert_eq!(said(&policy, "alice@example.com"), "accept");
        policy.replace(Maps::of_domains(&[domain("example.org")]));
        assert_eq!(said(&policy, "alice@example.com"), "5.7.1 Relay access denied");
        assert_eq!(said(&policy, "alice@example.org"), "accept");
    }
}
