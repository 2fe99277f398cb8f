//! Policies: what to refuse, and when.
//!
//! A [`Policy`] says at which phases of a session it wants to be asked and answers each time with a [`Verdict`]. [`Policies`]
//! asks an ordered list of them; the first refusal wins.
//!
//! Invariants:
//! - a policy is asked only at the phases it named;
//! - a verdict depends on the facts given, never on the wire: a policy sees no octet that was not parsed.
//!
//! Beside them, who may log in: [`Credentials`] and the [`Verifier`], which takes them off the shards.
//!
//! Knows nothing of sockets, reply codes or the spool. Verdicts are synchronous: a policy that must wait for somebody does
//! not belong on a shard.

mod accepted_domains;
mod credentials;
mod verifier;

use std::net::SocketAddr;
use std::sync::Arc;

use crate::mail::{ForwardPath, Refusal, ReversePath, Tls};

pub use crate::mail::{Phase, Phases};

pub use accepted_domains::AcceptedDomains;
pub use credentials::{CREDENTIALS_SIZE_MAX, Credentials, CredentialsError, USER_SIZE_MAX, check_user};
pub use verifier::{Attempt, Busy, Verifier};

/// What is known when a policy is asked. What a phase does not know yet is `None`, empty or 0.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    /// The peer's address and port.
    pub peer: SocketAddr,
    /// The argument of HELO or EHLO; empty before it.
    pub hello: &'a str,
    /// From MAIL on.
    pub reverse_path: Option<&'a ReversePath>,
    /// The recipient in question, at [`Phase::Recipient`] only.
    pub recipient: Option<&'a ForwardPath>,
    /// Recipients accepted so far in this transaction.
    pub recipients_count: usize,
    /// SIZE= of MAIL, in octets (RFC 1870).
    pub declared_size: Option<u64>,
    /// The content's size in octets, at [`Phase::Message`] only.
    pub size: u64,
    /// What protects the connection, if anything does; with the peer's certificate, if it gave one that was verified.
    pub tls: Option<&'a Tls>,
    /// As whom the peer has authenticated itself, if it has.
    pub authenticated: Option<&'a str>,
}

impl<'a> Facts<'a> {
    /// What is known of a peer that has said nothing yet.
    pub fn of_peer(peer: SocketAddr) -> Facts<'a> {
        Facts {
            peer,
            hello: "",
            reverse_path: None,
            recipient: None,
            recipients_count: 0,
            declared_size: None,
            size: 0,
            tls: None,
            authenticated: None,
        }
    }
}

/// A policy's answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// As far as this policy is concerned, go on.
    Accept,
    /// Do not go on: the peer is told why.
    Refuse(Refusal),
}

/// A rule of the operator's. Called on shards: it must be quick and must not wait.
pub trait Policy: Send + Sync {
    /// Its name, for logs.
    fn name(&self) -> &str;

    /// The phases at which it wants to be asked.
    fn phases(&self) -> Phases;

    /// The verdict on `facts` at `phase`.
    fn check(&self, phase: Phase, facts: &Facts<'_>) -> Verdict;
}

/// The policies of a gateway, in the order in which they are asked.
#[derive(Clone, Default)]
pub struct Policies {
    list: Arc<[(Phases, Arc<dyn Policy>)]>,
    phases: Phases,
}

impl Policies {
    /// Asks `list` in its order.
    pub fn new(list: Vec<Arc<dyn Policy>>) -> Self {
        let list: Arc<[_]> = list.into_iter().map(|policy| (policy.phases(), policy)).collect();
        let phases = list.iter().fold(Phases::NONE, |all, (phases, _)| all | *phases);
        Policies { list, phases }
    }

    /// The phases at which any policy wants to be asked: elsewhere nobody need gather facts.
    pub fn phases(&self) -> Phases {
        self.phases
    }

    /// The verdict of all: the first refusal, or acceptance.
    pub fn check(&self, phase: Phase, facts: &Facts<'_>) -> Verdict {
        match self.refusal(phase, facts) {
            Some((_, refusal)) => Verdict::Refuse(refusal),
            None => Verdict::Accept,
        }
    }

    /// The first refusal and the name of the policy that gave it.
    pub fn refusal(&self, phase: Phase, facts: &Facts<'_>) -> Option<(&str, Refusal)> {
        if !self.phases.contains(phase) {
            return None;
        }
        self.list.iter().filter(|(phases, _)| phases.contains(phase)).find_map(|(_, policy)| {
            match policy.check(phase, facts) {
                Verdict::Accept => None,
                Verdict::Refuse(refusal) => Some((policy.name(), refusal)),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::mail::Status;

    struct Spy {
        name: &'static str,
        phases: Phases,
        refuses: bool,
        asked: Arc<Mutex<Vec<(&'static str, Phase)>>>,
    }

    impl Policy for Spy {
        fn name(&self) -> &str {
            self.name
        }

        fn phases(&self) -> Phases {
            self.phases
        }

        fn check(&self, phase: Phase, _: &Facts<'_>) -> Verdict {
            self.asked.lock().unwrap().push((self.name, phase));
            match self.refuses {
                true => Verdict::Refuse(Refusal::new(Status::permanent(7, 1), self.name)),
                false => Verdict::Accept,
            }
        }
    }

    #[test]
    fn the_first_refusal_wins_and_only_named_phases_are_asked() {
        let asked = Arc::new(Mutex::new(Vec::new()));
        let spy = |name, phases, refuses| -> Arc<dyn Policy> {
            Arc::new(Spy { name, phases, refuses, asked: asked.clone() })
        };
        let mail_and_data = Phases::of(Phase::Mail) | Phases::of(Phase::Data);
        let policies = Policies::new(vec![
            spy("a", mail_and_data, false),
            spy("b", Phases::of(Phase::Data), true),
            spy("c", Phases::of(Phase::Data), true),
        ]);
        let facts = Facts::of_peer("192.0.2.1:25".parse().unwrap());
        let table: [(Phase, Option<&str>, &[&str]); 6] = [
            (Phase::Connect, None, &[]),
            (Phase::Hello, None, &[]),
            (Phase::Mail, None, &["a"]),
            (Phase::Recipient, None, &[]),
            (Phase::Data, Some("b"), &["a", "b"]),
            (Phase::Message, None, &[]),
        ];
        for (phase, refused_by, expected) in table {
            asked.lock().unwrap().clear();
            assert_eq!(policies.refusal(phase, &facts).map(|(name, _)| name), refused_by, "{phase:?}");
            assert_eq!(policies.check(phase, &facts) == Verdict::Accept, refused_by.is_none());
            let asked: Vec<_> = asked.lock().unwrap().iter().map(|(name, _)| *name).collect();
            assert_eq!(asked, [expected, expected].concat(), "{phase:?}");
        }
    }

    #[test]
    fn the_phases_of_many_are_the_union_of_each() {
        assert_eq!(Policies::new(vec![]).phases(), Phases::NONE);
        assert!(Phase::ALL.iter().all(|p| Phases::ALL.contains(*p) && !Phases::NONE.contains(*p)));
        for a in Phase::ALL {
            for b in Phase::ALL {
                assert_eq!(Phases::of(a).contains(b), a == b);
                assert!((Phases::of(a) | Phases::of(b)).contains(a));
            }
        }
    }
}
