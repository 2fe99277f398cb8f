//! What a peer may call itself in HELO or EHLO.
//!
//! That it says one of them before MAIL is SMTP's own rule, not a policy's (RFC 5321 §4.1.4).

use std::collections::HashSet;
use std::net::IpAddr;
use std::sync::Arc;

use super::resolver::{Kind, Question, Records, Resolver, all, answer};
use super::{Answer, Facts, Phase, Phases, Policy, Unavailable, Verdict};
use crate::mail::{Domain, Refusal, Status};

/// What is required of the name in HELO.
pub struct HelloRules {
    /// It is a domain with a dot in it, or an address literal.
    pub is_qualified: bool,
    /// It is none of these names, nor the address at which the peer has reached us.
    pub not_ours: HashSet<Domain>,
    /// An address literal has the peer's address.
    pub is_own_address: bool,
    /// It has an address or takes mail, if it is a domain: this is who says so.
    pub in_dns: Option<Arc<Resolver>>,
}

/// Refuses peers by the name in HELO.
pub struct Hello {
    name: String,
    phase: Phase,
    rules: HelloRules,
}

impl Hello {
    /// Asked at `phase`.
    pub fn new(name: &str, phase: Phase, rules: HelloRules) -> Self {
        Hello { name: name.into(), phase, rules }
    }

    /// What can be seen without asking anybody.
    fn refusal(&self, facts: &Facts<'_>) -> Option<&'static str> {
        let rules = &self.rules;
        let peer = facts.peer.ip().to_canonical();
        match literal(facts.hello) {
            Some(address) => {
                let listener = facts.listener.ip().to_canonical();
                let is_ours = !rules.not_ours.is_empty() && address == listener && peer != listener;
                if is_ours {
                    return Some("The address in HELO is mine, not yours");
                }
                (rules.is_own_address && address != peer).then_some("The address in HELO is not yours")
            }
            None => {
                let name = facts.hello.strip_suffix('.').unwrap_or(facts.hello);
                // Who is on this machine may be us.
                let is_ours = !peer.is_loopback()
                    && Domain::parse(name, false).is_ok_and(|domain| rules.not_ours.contains(&domain));
                if is_ours {
                    return Some("The name in HELO is mine, not yours");
                }
                (rules.is_qualified && !is_qualified(name))
                    .then_some("The name in HELO is neither a full domain nor an address in brackets")
            }
        }
    }
}

impl Policy for Hello {
    fn name(&self) -> &str {
        &self.name
    }

    fn phases(&self) -> Phases {
        Phases::of(self.phase)
    }

    fn is_guard(&self) -> bool {
        true
    }

    fn check(&self, _: Phase, facts: &Facts<'_>) -> Answer {
        if let Some(text) = self.refusal(facts) {
            return Refusal::new(Status::permanent(7, 1), text).keyed(facts.hello).into();
        }
        let Some(resolver) = &self.rules.in_dns else { return Verdict::Accept.into() };
        if literal(facts.hello).is_some() {
            return Verdict::Accept.into();
        }
        let name = facts.hello.strip_suffix('.').unwrap_or(facts.hello);
        let unknown = Refusal::new(Status::temporary(7, 1), "The name in HELO is not in the DNS").keyed(name);
        let questions = [Kind::A, Kind::Aaaa, Kind::Mx].map(|kind| Question::new(kind, name));
        let [Some(a), Some(aaaa), Some(mx)] = questions else { return unknown.into() };
        let (resolver, now, is_remembered) = (resolver.clone(), facts.now, !facts.is_rehearsal);
        answer(async move {
            let found = all([a, aaaa, mx].map(|question| resolver.ask(question, now, is_remembered))).await;
            if found.iter().flatten().any(Records::is_something) {
                return Ok(Verdict::Accept);
            }
            match found.into_iter().find_map(Result::err) {
                Some(why) => Err::<_, Unavailable>(why),
                None => Ok(Verdict::Refuse(unknown)),
            }
        })
    }
}

/// The address of an address literal (RFC 5321 §4.1.3).
fn literal(hello: &str) -> Option<IpAddr> {
    let inner = hello.strip_prefix('[')?.strip_suffix(']')?;
    let address = match inner.get(..5) {
        Some(tag) if tag.eq_ignore_ascii_case("IPv6:") => IpAddr::V6(inner[5..].parse().ok()?),
        _ => IpAddr::V4(inner.parse().ok()?),
    };
    Some(address.to_canonical())
}

/// Two labels or more, and no bare address. Underscores are taken: names of hosts have them, against the rules (RFC 1123 §2.1).
fn is_qualified(name: &str) -> bool {
    let is_label = |label: &str| {
        (1..=63).contains(&label.len())
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'-' || c == b'_')
    };
    let Some((_, last)) = name.rsplit_once('.') else { return false };
    name.len() <= 253 && name.split('.').all(is_label) && !last.bytes().all(|c| c.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::super::resolver::Kind::{A, Aaaa, Mx};
    use super::*;

    fn rules() -> HelloRules {
        HelloRules { is_qualified: false, not_ours: HashSet::new(), is_own_address: false, in_dns: None }
    }

    fn said(rules: HelloRules, peer: &str, hello: &str) -> String {
        let policy = Hello::new("hello", Phase::Recipient, rules);
        let listener = SocketAddr::from(([203, 0, 113, 1], 25));
        match policy.check(Phase::Recipient, &Facts { hello, listener, ..Facts::of(peer) }) {
            Answer::Now(Ok(Verdict::Refuse(refusal))) => {
                assert!(refusal.key.is_some());
                format!("{} {}", refusal.status, refusal.text)
            }
            Answer::Now(Ok(verdict)) => verdict.word().into(),
            answer => format!("{answer:?}"),
        }
    }

    #[test]
    fn a_name_is_a_full_domain_or_an_address() {
        let good = [
            "mx.example",
            "mx.example.",
            "a_b.example",
            "xn--bcher-kva.example",
            "[192.0.2.1]",
            "[IPv6:2001:db8::1]",
            "[ipv6:::1]",
            "1.2.3.4a",
        ];
        let bad = [
            "localhost",
            "WIN-ABC",
            "192.0.2.1",
            "a..b",
            ".a.b",
            "-a.b",
            "a-.b",
            "[192.0.2]",
            "[2001:db8::1]",
            "[192.0.2.1",
            "a$b.example",
            "..",
        ];
        for hello in good {
            assert_eq!(
                said(HelloRules { is_qualified: true, ..rules() }, "192.0.2.1", hello),
                "accept",
                "{hello}"
            );
        }
        for hello in bad {
            let refused = said(HelloRules { is_qualified: true, ..rules() }, "192.0.2.1", hello);
            assert!(refused.starts_with("5.7.1 The name in HELO is neither"), "{hello}: {refused}");
            assert_eq!(said(rules(), "192.0.2.1", hello), "accept", "{hello}");
        }
    }

    #[test]
    fn our_own_names_and_address_are_taken_of_nobody_else() {
        let ours = || {
            let names = ["mx.here.example", "bücher.example"].map(|name| Domain::parse(name, true).unwrap());
            HelloRules { not_ours: names.into(), ..rules() }
        };
        let table = [
            ("192.0.2.1", "mx.here.example", "5.7.1 The name in HELO is mine, not yours"),
            ("192.0.2.1", "MX.Here.Example.", "5.7.1 The name in HELO is mine, not yours"),
            ("192.0.2.1", "xn--bcher-kva.example", "5.7.1 The name in HELO is mine, not yours"),
            ("192.0.2.1", "[203.0.113.1]", "5.7.1 The address in HELO is mine, not yours"),
            ("192.0.2.1", "[IPv6:::ffff:203.0.113.1]", "5.7.1 The address in HELO is mine, not yours"),
            ("192.0.2.1", "[192.0.2.1]", "accept"),
            ("192.0.2.1", "here.example", "accept"),
            ("192.0.2.1", "a.mx.here.example", "accept"),
            ("127.0.0.1", "mx.here.example", "accept"),
            ("203.0.113.1", "[203.0.113.1]", "accept"),
        ];
        for (peer, hello, expected) in table {
            assert_eq!(said(ours(), peer, hello), expected, "{peer} {hello}");
            assert_eq!(said(rules(), peer, hello), "accept");
        }
    }

    #[test]
    fn an_address_in_brackets_is_the_peers() {
        let refused = "5.7.1 The address in HELO is not yours";
        let table = [
            ("192.0.2.1", "[192.0.2.1]", "accept"),
            ("192.0.2.1", "[192.0.2.2]", refused),
            ("::ffff:192.0.2.1", "[192.0.2.1]", "accept"),
            ("2001:db8::1", "[IPv6:2001:DB8:0::1]", "accept"),
            ("2001:db8::1", "[IPv6:2001:db8::2]", refused),
            ("192.0.2.1", "any.name", "accept"),
        ];
        for (peer, hello, expected) in table {
            assert_eq!(
                said(HelloRules { is_own_address: true, ..rules() }, peer, hello),
                expected,
                "{hello}"
            );
        }
    }

    #[test]
    fn any_record_will_do_and_none_is_temporary() {
        let in_dns = || {
            Some(Resolver::knowing(&[
                (A, "a.example", &["192.0.2.1"]),
                (Aaaa, "a.example", &[]),
                (Mx, "a.example", &[]),
                (A, "six.example", &[]),
                (Aaaa, "six.example", &["2001:db8::1"]),
                (Mx, "six.example", &[]),
                (A, "mail.example", &[]),
                (Aaaa, "mail.example", &[]),
                (Mx, "mail.example", &["mx.example."]),
                (A, "none.example", &[]),
                (Aaaa, "none.example", &[]),
                // It takes no mail (RFC 7505).
                (Mx, "none.example", &["."]),
            ]))
        };
        let unknown = "4.7.1 The name in HELO is not in the DNS";
        let table = [
            ("a.example", "accept"),
            ("A.Example.", "accept"),
            ("six.example", "accept"),
            ("mail.example", "accept"),
            ("none.example", unknown),
            ("a..b", unknown),
            ("[192.0.2.7]", "accept"),
            ("unknown.example", "Later(Wait)"),
        ];
        for (hello, expected) in table {
            assert_eq!(
                said(HelloRules { in_dns: in_dns(), ..rules() }, "192.0.2.1", hello),
                expected,
                "{hello}"
            );
        }
    }
}
