//! The policies of a gateway: who is asked, in which order, and what their verdicts lead to.
//!
//! Sans-I/O: a [`Round`] is what one phase of one session asks of all of them. [`Policies::advance`] goes on until the phase is decided or
//! somebody must be waited for; then the driver has that done, gives what was found to [`Round::resume`], and goes on.
//!
//! Invariants:
//! - a policy is asked only at the phases it named, in the order of the list; the first refusal wins;
//! - what a dry policy says is reported, and changes nothing;
//! - a policy that cannot decide leads to a refusal of class 4 or to nothing, as its rule says: never to one of class 5.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::{Facts, Found, Later, Policy, Unavailable, Verdict};
use crate::mail::{Class, Domain, ForwardPath, Phase, Phases, Refusal, Status, TAGS_MAX, Tag};

/// What becomes of a session when a policy cannot decide.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnError {
    /// It is deferred: the peer may come again.
    #[default]
    Defer,
    /// It goes on, as if there were no such policy.
    Ignore,
}

/// A policy, and how it is applied.
pub struct Rule {
    /// Who is asked.
    pub policy: Arc<dyn Policy>,
    /// Its verdicts are reported and counted only.
    pub is_dry: bool,
    /// What becomes of a session where it cannot decide.
    pub on_error: OnError,
    /// How long it may take where it must wait.
    pub timeout: Duration,
    /// Recipients in these domains it is not asked about.
    pub skipped_domains: Vec<Domain>,
}

impl Rule {
    /// Applied as usual: within 10 seconds, or else the peer is deferred.
    pub fn new(policy: Arc<dyn Policy>) -> Self {
        Rule {
            policy,
            is_dry: false,
            on_error: OnError::Defer,
            timeout: Duration::from_secs(10),
            skipped_domains: Vec::new(),
        }
    }
}

struct Listed {
    phases: Phases,
    is_guard: bool,
    rule: Rule,
    /// Of all policies that have had this name and its place among those of the same name.
    counts: Arc<Counts>,
}

#[derive(Default)]
struct Counts {
    rejected: AtomicU64,
    deferred: AtomicU64,
    tagged: AtomicU64,
    unavailable: AtomicU64,
}

/// How often a policy has had something to say; acceptance is not counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Said {
    /// Refusals of class 5.
    pub rejected: u64,
    /// Refusals of class 4.
    pub deferred: u64,
    /// Tags.
    pub tagged: u64,
    /// It could not decide.
    pub unavailable: u64,
}

/// What a session remembers of its verdicts. Small, and empty where nobody has said anything.
#[derive(Clone, Debug, Default)]
pub struct Notes {
    /// When somebody has vouched for the peer: in the phase that is named, and for what that phase is about.
    trusted_at: Option<Phase>,
    /// The peer's name, found and confirmed.
    pub client_name: Option<Box<str>>,
    session_tags: Vec<(Phase, Tag)>,
    transaction_tags: Vec<Tag>,
    /// Transactions begun.
    pub transaction: u32,
    replacement: Option<Vec<ForwardPath>>,
}

impl Notes {
    /// A transaction begins: what was noted of the one before does not concern it.
    pub fn begin_transaction(&mut self) {
        self.transaction = self.transaction.saturating_add(1);
        self.trusted_at = self.trusted_at.filter(|phase| *phase < Phase::Mail);
        self.transaction_tags.clear();
        self.replacement = None;
    }

    /// The peer names itself, perhaps anew: what was noted of its former name, or of a session in clear, does not concern it.
    pub fn begin_hello(&mut self) {
        self.trusted_at = self.trusted_at.filter(|phase| *phase < Phase::Hello);
        self.session_tags.retain(|(phase, _)| *phase < Phase::Hello);
        self.transaction_tags.clear();
        self.replacement = None;
    }

    /// Whether somebody vouches for the peer.
    pub fn is_trusted(&self) -> bool {
        self.trusted_at.is_some()
    }

    /// The tags of a message accepted now; each once, in the order in which they were given.
    pub fn tags(&self) -> Vec<Tag> {
        let session_tags = self.session_tags.iter().map(|(_, tag)| tag);
        session_tags.chain(&self.transaction_tags).take(TAGS_MAX).cloned().collect()
    }

    /// The recipients that stand for the one that was accepted, if others do.
    pub fn take_replacement(&mut self) -> Option<Vec<ForwardPath>> {
        self.replacement.take()
    }

    fn add_tag(&mut self, tag: Tag, phase: Phase) {
        let is_known =
            self.session_tags.iter().any(|(_, other)| *other == tag) || self.transaction_tags.contains(&tag);
        match phase {
            _ if is_known => {}
            Phase::Connect | Phase::Hello if self.session_tags.len() < TAGS_MAX => {
                self.session_tags.push((phase, tag));
            }
            Phase::Connect | Phase::Hello => {}
            _ if self.transaction_tags.len() < TAGS_MAX => self.transaction_tags.push(tag),
            _ => {}
        }
    }
}

/// What a policy has said, or why it said nothing. Acceptance is not reported, but to those who rehearse.
#[derive(Clone, Debug)]
pub struct Report<'a> {
    /// When it was asked.
    pub phase: Phase,
    /// Who.
    pub policy: &'a str,
    /// What was said.
    pub found: &'a Found,
    /// It changes nothing.
    pub is_dry: bool,
    /// What that leads to for the peer, if it is a refusal: also where the policy could not decide.
    pub refusal: Option<&'a Refusal>,
}

/// One phase of one session on its way through the policies.
#[derive(Debug)]
pub struct Round {
    phase: Phase,
    at: usize,
    /// What the policy at `at` has found.
    found: Option<Found>,
}

/// How far a round has come.
#[derive(Debug)]
pub enum Step {
    /// Decided.
    Decided(Result<(), Refusal>),
    /// This is to be done first, within this time; what is found is for [`Round::resume`].
    Wait(Later, Duration),
}

impl Round {
    /// A round of `phase`.
    pub fn new(phase: Phase) -> Self {
        Round { phase, at: 0, found: None }
    }

    /// The phase that is to be decided.
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// What was waited for.
    pub fn resume(&mut self, found: Found) {
        self.found = Some(found);
    }
}

/// The policies of a gateway, in the order in which they are asked.
#[derive(Clone, Default)]
pub struct Policies {
    list: Arc<[Listed]>,
    phases: Phases,
}

impl Policies {
    /// Asks `rules` in their order.
    pub fn new(rules: Vec<Rule>) -> Self {
        let listed = |rule: Rule| Listed {
            phases: rule.policy.phases(),
            is_guard: rule.policy.is_guard(),
            rule,
            counts: Arc::default(),
        };
        let list: Arc<[_]> = rules.into_iter().map(listed).collect();
        let phases = list.iter().fold(Phases::NONE, |all, listed| all | listed.phases);
        Policies { list, phases }
    }

    /// What is counted of these goes on from where those of the same names in `before` are, and is counted together with what sessions that
    /// still ask those have said to them: counters only ever grow, whatever is reloaded.
    pub fn counting_on(mut self, before: &Policies) -> Self {
        let mut known: Vec<&Listed> = before.list.iter().collect();
        // Nobody else has them yet.
        for listed in Arc::get_mut(&mut self.list).into_iter().flatten() {
            let name = listed.rule.policy.name();
            // Each once, so that two of one name are not counted twice.
            if let Some(at) = known.iter().position(|known| known.rule.policy.name() == name) {
                listed.counts = known.remove(at).counts.clone();
            }
        }
        self
    }

    /// The phases at which any policy wants to be asked: elsewhere nobody need gather facts.
    pub fn phases(&self) -> Phases {
        self.phases
    }

    /// Each policy's name, and how often it has had something to say.
    pub fn said(&self) -> impl Iterator<Item = (&str, Said)> {
        let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
        self.list.iter().map(move |Listed { rule, counts, .. }| {
            let said = Said {
                rejected: read(&counts.rejected),
                deferred: read(&counts.deferred),
                tagged: read(&counts.tagged),
                unavailable: read(&counts.unavailable),
            };
            (rule.policy.name(), said)
        })
    }

    /// Goes on with `round`: to its end, or to where somebody must be waited for. `notes` are the session's; the facts that are
    /// noted need not be given. `report` is told what was said.
    pub fn advance(
        &self,
        round: &mut Round,
        facts: &Facts<'_>,
        notes: &mut Notes,
        mut report: impl FnMut(Report<'_>),
    ) -> Step {
        while let Some(listed) = self.list.get(round.at) {
            let found = match round.found.take() {
                Some(found) => found,
                None => {
                    let is_trusted = notes.is_trusted() || facts.is_trusted || facts.authenticated.is_some();
                    if !listed.is_asked(round.phase, facts, is_trusted) {
                        round.at += 1;
                        continue;
                    }
                    let facts = Facts {
                        is_trusted,
                        client_name: notes.client_name.as_deref(),
                        instead: notes.replacement.as_deref().unwrap_or_default(),
                        transaction: notes.transaction,
                        ..*facts
                    };
                    match listed.rule.policy.check(round.phase, &facts) {
                        super::Answer::Now(found) => found,
                        super::Answer::Later(later) => return Step::Wait(later, listed.rule.timeout),
                    }
                }
            };
            round.at += 1;
            if matches!(found, Ok(Verdict::Accept)) && !facts.is_rehearsal {
                continue;
            }
            let refusal = listed.refusal(&found);
            if !facts.is_rehearsal {
                listed.count(&found);
            }
            let Rule { policy, is_dry, .. } = &listed.rule;
            let (policy, is_dry, refused) = (policy.name(), *is_dry, refusal.as_ref());
            report(Report { phase: round.phase, policy, found: &found, is_dry, refusal: refused });
            if is_dry {
                continue;
            }
            if let Some(refusal) = refusal {
                return Step::Decided(Err(refusal));
            }
            match found {
                Ok(Verdict::Tag(tag)) => notes.add_tag(tag, round.phase),
                Ok(Verdict::Trust) => {
                    notes.trusted_at = notes.trusted_at.or(Some(round.phase));
                }
                Ok(Verdict::Name(name)) => notes.client_name = Some(name),
                Ok(Verdict::Replace(paths)) if round.phase == Phase::Recipient => {
                    notes.replacement = Some(paths);
                }
                _ => {}
            }
        }
        Step::Decided(Ok(()))
    }
}

impl Listed {
    fn is_asked(&self, phase: Phase, facts: &Facts<'_>, is_trusted: bool) -> bool {
        let is_skipped = |recipient: &ForwardPath| match recipient {
            ForwardPath::Mailbox(mailbox) => {
                let domain = mailbox.canonical_domain();
                self.rule.skipped_domains.iter().any(|skipped| skipped.canonical() == domain)
            }
            ForwardPath::Postmaster => false,
        };
        self.phases.contains(phase)
            && !(self.is_guard && is_trusted)
            && (self.rule.skipped_domains.is_empty() || !facts.recipient.is_some_and(is_skipped))
    }

    /// What `found` means for the peer.
    fn refusal(&self, found: &Found) -> Option<Refusal> {
        match found {
            Ok(Verdict::Refuse(refusal)) => Some(refusal.clone()),
            Err(Unavailable(why)) if self.rule.on_error == OnError::Defer => Some(
                Refusal::new(Status::temporary(3, 0), "Temporary lookup failure, try again later")
                    .keyed(why.as_str()),
            ),
            _ => None,
        }
    }

    fn count(&self, found: &Found) {
        let Counts { rejected, deferred, tagged, unavailable } = &*self.counts;
        let count = match found {
            Ok(Verdict::Refuse(refusal)) if refusal.status.class == Class::Temporary => deferred,
            Ok(Verdict::Refuse(_)) => rejected,
            Ok(Verdict::Tag(_)) => tagged,
            Err(_) => unavailable,
            _ => return,
        };
        count.fetch_add(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::policy::Answer;

    /// Answers what it was told to, and writes down when it was asked.
    struct Spy {
        name: &'static str,
        phases: Phases,
        is_guard: bool,
        found: Found,
        asked: Arc<Mutex<Vec<&'static str>>>,
    }

    impl Policy for Spy {
        fn name(&self) -> &str {
            self.name
        }

        fn phases(&self) -> Phases {
            self.phases
        }

        fn is_guard(&self) -> bool {
            self.is_guard
        }

        fn check(&self, _: Phase, _: &Facts<'_>) -> Answer {
            self.asked.lock().unwrap().push(self.name);
            Answer::Now(self.found.clone())
        }
    }

    fn refusal(status: Status, text: &'static str) -> Found {
        Ok(Verdict::Refuse(Refusal::new(status, text)))
    }

    fn rejects(text: &'static str) -> Found {
        refusal(Status::permanent(7, 1), text)
    }

    struct Asked {
        outcome: Result<(), String>,
        notes: Notes,
        names: Vec<&'static str>,
        reported: Vec<String>,
        said: Vec<Said>,
    }

    /// Asks `(name, is a guard, is dry, what on an error, finding)`, all at one phase.
    fn ask(rules: Vec<(&'static str, bool, bool, OnError, Found)>, facts: Facts<'_>) -> Asked {
        let asked = Arc::new(Mutex::new(Vec::new()));
        let rule = |(name, is_guard, is_dry, on_error, found)| {
            let spy = Spy { name, phases: Phases::of(Phase::Mail), is_guard, found, asked: asked.clone() };
            Rule { is_dry, on_error, ..Rule::new(Arc::new(spy)) }
        };
        let policies = Policies::new(rules.into_iter().map(rule).collect());
        let (mut notes, mut reported) = (Notes::default(), Vec::new());
        let report = |report: Report<'_>| {
            let word = report.found.as_ref().map_or("unavailable", Verdict::word);
            reported.push(format!("{} {word}{}", report.policy, if report.is_dry { " dry" } else { "" }));
        };
        let step = policies.advance(&mut Round::new(Phase::Mail), &facts, &mut notes, report);
        let Step::Decided(outcome) = step else { panic!("nobody waits") };
        Asked {
            outcome: outcome.map_err(|refusal| refusal.text.into()),
            notes,
            names: asked.lock().unwrap().clone(),
            reported,
            said: policies.said().map(|(_, said)| said).collect(),
        }
    }

    #[test]
    fn the_first_refusal_wins_and_is_reported_alone() {
        let asked = ask(
            vec![
                ("a", false, false, OnError::Defer, Ok(Verdict::Accept)),
                ("b", false, false, OnError::Defer, rejects("b says no")),
                ("c", false, false, OnError::Defer, rejects("c says no")),
            ],
            Facts::of("192.0.2.1"),
        );
        assert_eq!(asked.outcome, Err("b says no".into()));
        assert_eq!(asked.names, ["a", "b"]);
        assert_eq!(asked.reported, ["b reject"]);
        assert_eq!(asked.said[1], Said { rejected: 1, ..Said::default() });
        assert_eq!(asked.said[2], Said::default());
    }

    #[test]
    fn a_dry_policy_is_heard_and_changes_nothing() {
        let tag = || Ok(Verdict::Tag(Tag::parse("seen").unwrap()));
        let asked = ask(
            vec![
                ("a", false, true, OnError::Defer, rejects("no")),
                ("b", false, true, OnError::Defer, Ok(Verdict::Trust)),
                ("c", true, true, OnError::Defer, tag()),
                ("d", false, true, OnError::Defer, Err(Unavailable::new("down"))),
            ],
            Facts::of("192.0.2.1"),
        );
        assert_eq!(asked.outcome, Ok(()));
        assert_eq!(asked.reported, ["a reject dry", "b trust dry", "c tag dry", "d unavailable dry"]);
        assert!(!asked.notes.is_trusted() && asked.notes.tags().is_empty());
        assert_eq!(asked.said[0].rejected + asked.said[2].tagged + asked.said[3].unavailable, 3);
    }

    #[test]
    fn who_cannot_decide_defers_or_is_as_if_absent() {
        let down = || Err(Unavailable::new("down"));
        let asked = ask(
            vec![("a", false, false, OnError::Ignore, down()), ("b", false, false, OnError::Defer, down())],
            Facts::of("192.0.2.1"),
        );
        assert_eq!(asked.outcome, Err("Temporary lookup failure, try again later".into()));
        assert_eq!(asked.reported, ["a unavailable", "b unavailable"]);
    }

    #[test]
    fn guards_are_not_asked_about_the_trusted() {
        let rules = || {
            vec![
                ("a", true, false, OnError::Defer, Ok(Verdict::Trust)),
                ("b", true, false, OnError::Defer, rejects("a stranger")),
                ("c", false, false, OnError::Defer, rejects("a rule")),
            ]
        };
        let asked = ask(rules(), Facts::of("192.0.2.1"));
        assert_eq!((asked.outcome, asked.names), (Err("a rule".into()), vec!["a", "c"]));
        for facts in [
            Facts { is_trusted: true, ..Facts::of("192.0.2.1") },
            Facts { authenticated: Some("alice"), ..Facts::of("192.0.2.1") },
        ] {
            assert_eq!(ask(rules(), facts).names, ["c"]);
        }
    }

    #[test]
    fn tags_are_kept_once_and_bounded_and_go_with_their_transaction() {
        let tag = |text: &str| Tag::parse(text).unwrap();
        let mut notes = Notes::default();
        for (text, phase) in
            [("a", Phase::Connect), ("b", Phase::Mail), ("a", Phase::Mail), ("c", Phase::Recipient)]
        {
            notes.add_tag(tag(text), phase);
        }
        assert_eq!(notes.tags(), ["a", "b", "c"].map(tag));
        notes.begin_transaction();
        assert_eq!(notes.tags(), ["a"].map(tag));
        (0..100).for_each(|n| notes.add_tag(tag(&n.to_string()), Phase::Mail));
        assert_eq!(notes.tags().len(), TAGS_MAX);
    }

    #[test]
    fn what_was_vouched_for_or_noted_goes_with_what_it_was_about() {
        let noted_at = |phase| {
            let mut notes = Notes { trusted_at: Some(phase), ..Notes::default() };
            notes.add_tag(Tag::parse("a").unwrap(), phase);
            notes
        };
        // Whether it is still so after another HELO, and after another MAIL.
        for (phase, after_hello, after_mail) in [
            (Phase::Connect, true, true),
            (Phase::Hello, false, true),
            (Phase::Mail, false, false),
            (Phase::Recipient, false, false),
        ] {
            let is_noted = |notes: &Notes| (notes.is_trusted(), !notes.tags().is_empty());
            let mut notes = noted_at(phase);
            notes.begin_hello();
            assert_eq!(is_noted(&notes), (after_hello, after_hello), "{phase:?}");
            let mut notes = noted_at(phase);
            notes.begin_transaction();
            assert_eq!(is_noted(&notes), (after_mail, after_mail), "{phase:?}");
        }
    }

    #[test]
    fn a_skipped_domain_is_not_asked_about_in_any_spelling() {
        let asked = Arc::new(Mutex::new(Vec::new()));
        let spy = Spy {
            name: "a",
            phases: Phases::of(Phase::Recipient),
            is_guard: false,
            found: rejects("no"),
            asked: asked.clone(),
        };
        let skipped_domains = vec![Domain::parse("bücher.example", true).unwrap()];
        let policies = Policies::new(vec![Rule { skipped_domains, ..Rule::new(Arc::new(spy)) }]);
        for (recipient, is_asked) in
            [("a@xn--bcher-kva.example", false), ("a@other.example", true), ("postmaster", true)]
        {
            let recipient = ForwardPath::parse(recipient, false).unwrap();
            let facts = Facts { recipient: Some(&recipient), ..Facts::of("192.0.2.1") };
            let step =
                policies.advance(&mut Round::new(Phase::Recipient), &facts, &mut Notes::default(), |_| ());
            assert_eq!(matches!(step, Step::Decided(Err(_))), is_asked, "{recipient:?}");
        }
        assert_eq!(asked.lock().unwrap().len(), 2);
    }

    #[test]
    fn a_round_goes_on_behind_who_was_waited_for() {
        struct Waits;
        impl Policy for Waits {
            fn name(&self) -> &str {
                "waits"
            }

            fn phases(&self) -> Phases {
                Phases::ALL
            }

            fn check(&self, _: Phase, _: &Facts<'_>) -> Answer {
                Answer::wait(async { Ok(Verdict::Accept) })
            }
        }
        let policies = Policies::new(vec![Rule::new(Arc::new(Waits)), Rule::new(Arc::new(Waits))]);
        let (facts, mut notes, mut round) =
            (Facts::of("192.0.2.1"), Notes::default(), Round::new(Phase::Data));
        for found in [Ok(Verdict::Trust), rejects("no")] {
            let step = policies.advance(&mut round, &facts, &mut notes, |_| ());
            assert!(matches!(step, Step::Wait(..)));
            round.resume(found);
        }
        let step = policies.advance(&mut round, &facts, &mut notes, |_| ());
        assert!(matches!(step, Step::Decided(Err(_))) && notes.is_trusted());
    }

    #[test]
    fn counts_go_on_by_name_where_policies_are_made_anew() {
        let made = |names: &[&'static str]| {
            let spy = |name: &&'static str| Spy {
                name,
                phases: Phases::of(Phase::Mail),
                is_guard: false,
                found: refusal(Status::temporary(7, 1), "later"),
                asked: Arc::default(),
            };
            let rule = |spy| Rule { is_dry: true, ..Rule::new(Arc::new(spy)) };
            Policies::new(names.iter().map(spy).map(rule).collect())
        };
        let ask = |policies: &Policies| {
            let (mut round, mut notes) = (Round::new(Phase::Mail), Notes::default());
            policies.advance(&mut round, &Facts::of("192.0.2.1"), &mut notes, |_| ());
        };
        let said = |policies: &Policies| -> Vec<(String, u64)> {
            policies.said().map(|(name, said)| (name.to_string(), said.deferred)).collect()
        };
        let counts = |expected: &[(&str, u64)]| -> Vec<(String, u64)> {
            expected.iter().map(|(name, count)| (name.to_string(), *count)).collect()
        };
        let before = made(&["a", "twice", "twice", "gone"]);
        (0..3).for_each(|_| ask(&before));
        let now = made(&["new", "twice", "a", "twice"]).counting_on(&before);
        assert_eq!(said(&now), counts(&[("new", 0), ("twice", 3), ("a", 3), ("twice", 3)]));
        ask(&now);
        // A session that began before the reload.
        ask(&before);
        assert_eq!(said(&now), counts(&[("new", 1), ("twice", 5), ("a", 5), ("twice", 5)]));
    }
}
