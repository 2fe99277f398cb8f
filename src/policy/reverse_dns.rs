//! What a peer's address is called, where its name leads back to it.
//!
//! The names that the address has (PTR) are the word of whoever owns the address. One is believed where the addresses of that
//! name, the word of whoever owns the name, have the peer's among them.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use super::resolver::{Question, Resolver, all, answer};
use super::{Answer, Facts, Found, Phase, Phases, Policy, Verdict};
use crate::mail::{Class, Refusal, Status};

/// Names of one address that are looked into.
const NAMES_MAX: usize = 5;

/// What is required of a peer's address.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Required {
    /// Nothing: its name is only found out.
    #[default]
    Nothing,
    /// A name.
    Name,
    /// A name that leads back to it.
    ConfirmedName,
}

/// Finds the name of a peer, and refuses one that has none.
pub struct ReverseDns {
    name: String,
    phase: Phase,
    resolver: Arc<Resolver>,
    required: Required,
    class: Class,
}

impl ReverseDns {
    /// Asked at `phase`; who has not what is `required` is refused with `class`.
    pub fn new(name: &str, phase: Phase, resolver: Arc<Resolver>, required: Required, class: Class) -> Self {
        ReverseDns { name: name.into(), phase, resolver, required, class }
    }
}

impl Policy for ReverseDns {
    fn name(&self) -> &str {
        &self.name
    }

    fn phases(&self) -> Phases {
        Phases::of(self.phase)
    }

    fn check(&self, _: Phase, facts: &Facts<'_>) -> Answer {
        let address = facts.peer.ip().to_canonical();
        if address.is_loopback() {
            return Verdict::Accept.into();
        }
        // Those who are trusted have names too, but need none.
        let required = if facts.is_trusted { Required::Nothing } else { self.required };
        let (resolver, now, is_remembered) = (self.resolver.clone(), facts.now, !facts.is_rehearsal);
        answer(find(resolver, address, required, self.class, now, is_remembered))
    }
}

async fn find(
    resolver: Arc<Resolver>,
    address: IpAddr,
    required: Required,
    class: Class,
    now: Instant,
    is_remembered: bool,
) -> Found {
    let names = match resolver.ask(Question::name_of(address), now, is_remembered).await {
        Ok(records) => records,
        // For want of a name alone nobody is sent away.
        Err(_) if required == Required::Nothing => return Ok(Verdict::Accept),
        Err(why) => return Err(why),
    };
    let names = &names.names()[..names.names().len().min(NAMES_MAX)];
    if names.is_empty() {
        return Ok(match required {
            Required::Nothing => Verdict::Accept,
            _ => refuse(class, address, "has no name in the DNS (PTR)"),
        });
    }
    let questions = names.iter().filter_map(|name| Question::addresses_like(address, name.canonical()));
    let found = all(questions.map(|question| resolver.ask(question, now, is_remembered))).await;
    let is_confirmed = |records: &Result<_, _>| match records {
        Ok(records) => super::resolver::Records::addresses(records).contains(&address),
        Err(_) => false,
    };
    if let Some(index) = found.iter().position(is_confirmed) {
        return Ok(Verdict::Name(names[index].as_str().into()));
    }
    if required != Required::ConfirmedName {
        return Ok(Verdict::Accept);
    }
    match found.into_iter().find_map(Result::err) {
        // That one might have led back.
        Some(why) => Err(why),
        None => Ok(refuse(class, address, "has a name in the DNS that does not lead back to it")),
    }
}

/// RFC 7372 §3.2 has the code for it.
fn refuse(class: Class, address: IpAddr, what: &str) -> Verdict {
    let status = Status { class, subject: 7, detail: 25 };
    let mut refusal = Refusal::new(status, "").keyed(address.to_string());
    refusal.text = format!("{address} {what}").into();
    Verdict::Refuse(refusal)
}

#[cfg(test)]
mod tests {
    use super::super::resolver::Kind::{A, Aaaa, Ptr};
    use super::*;

    const SIX: &str = "1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.b.d.0.1.0.0.2.ip6.arpa";

    fn resolver() -> Arc<Resolver> {
        Resolver::knowing(&[
            (Ptr, "1.2.0.192.in-addr.arpa", &["mx.example."]),
            (A, "mx.example", &["192.0.2.9", "192.0.2.1"]),
            (Ptr, "2.2.0.192.in-addr.arpa", &["liar.example."]),
            (A, "liar.example", &["198.51.100.1"]),
            (Ptr, "3.2.0.192.in-addr.arpa", &[]),
            // Only the fifth name is right.
            (
                Ptr,
                "4.2.0.192.in-addr.arpa",
                &["a.example.", "b.example.", "c.example.", "d.example.", "e.example."],
            ),
            // Only the sixth.
            (
                Ptr,
                "5.2.0.192.in-addr.arpa",
                &["a.example.", "b.example.", "c.example.", "d.example.", "f.example.", "e.example."],
            ),
            (A, "a.example", &[]),
            (A, "b.example", &[]),
            (A, "c.example", &[]),
            (A, "d.example", &[]),
            (A, "f.example", &[]),
            (A, "e.example", &["192.0.2.4", "192.0.2.5"]),
            (Ptr, SIX, &["six.example."]),
            (Aaaa, "six.example", &["2001:db8::1"]),
        ])
    }

    fn verdict(policy: &ReverseDns, facts: &Facts<'_>) -> String {
        let Answer::Now(Ok(verdict)) = policy.check(Phase::Connect, facts) else { panic!("all is known") };
        match verdict {
            Verdict::Name(name) => name.into(),
            Verdict::Refuse(refusal) => format!("{} {}", refusal.status, refusal.text),
            verdict => verdict.word().into(),
        }
    }

    #[test]
    fn a_name_counts_where_it_leads_back() {
        let no_name = |address: &str| format!("5.7.25 {address} has no name in the DNS (PTR)");
        let no_way =
            |address: &str| format!("5.7.25 {address} has a name in the DNS that does not lead back to it");
        let accept = String::from("accept");
        // The peer; what is said where nothing, a name, and a confirmed name is required.
        let table = [
            ("192.0.2.1", ["mx.example"; 3].map(String::from)),
            ("::ffff:192.0.2.1", ["mx.example"; 3].map(String::from)),
            ("192.0.2.2", [accept.clone(), accept.clone(), no_way("192.0.2.2")]),
            ("192.0.2.3", [accept.clone(), no_name("192.0.2.3"), no_name("192.0.2.3")]),
            ("192.0.2.4", ["e.example"; 3].map(String::from)),
            ("192.0.2.5", [accept.clone(), accept.clone(), no_way("192.0.2.5")]),
            ("2001:db8::1", ["six.example"; 3].map(String::from)),
            ("127.0.0.1", ["accept"; 3].map(String::from)),
            ("::1", ["accept"; 3].map(String::from)),
        ];
        let required = [Required::Nothing, Required::Name, Required::ConfirmedName];
        for (peer, said) in table {
            for (required, said) in required.into_iter().zip(said) {
                let policy = ReverseDns::new("ptr", Phase::Connect, resolver(), required, Class::Permanent);
                assert_eq!(verdict(&policy, &Facts::of(peer)), said, "{peer} {required:?}");
            }
        }
    }

    #[test]
    fn who_is_trusted_is_named_and_not_refused() {
        let policy =
            ReverseDns::new("ptr", Phase::Connect, resolver(), Required::ConfirmedName, Class::Temporary);
        for (peer, said) in [("192.0.2.1", "mx.example"), ("192.0.2.2", "accept"), ("192.0.2.3", "accept")] {
            assert_eq!(verdict(&policy, &Facts { is_trusted: true, ..Facts::of(peer) }), said, "{peer}");
        }
        let refused = verdict(&policy, &Facts::of("192.0.2.3"));
        assert!(refused.starts_with("4.7.25 "), "{refused}");
    }
}
