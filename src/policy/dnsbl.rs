//! Lists in the DNS of peers that are not welcome, and of peers that are (RFC 5782).
//!
//! All lists are asked at the same time. Each that has the peer adds its weight, below zero where the list speaks for the peer, and
//! the sum decides.
//!
//! Invariants:
//! - only what a list says in 127.0.0.0/8 counts, and nothing there with which the lists of this world say that they do not answer;
//! - a list that does not answer, or says so, counts as nothing; where none that could be reached is left, nothing is decided;
//! - a peer is never refused for want of the answer of a list that might have spoken for it;
//! - a list that has not answered several times in a row is left alone for a while: new peers need not wait for it;
//! - addresses that mean something only in a network of one's own are not asked about.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Instant;

use super::resolver::{Kind, Question, Records, Resolver, all, answer, reversed};
use super::{Answer, Facts, Found, Phase, Phases, Policy, Unavailable, Verdict};
use crate::mail::{Domain, Refusal, ReversePath, Status, Tag};

/// Answers of these are errors of the lists, whatever is configured.
const ERRORS: RangeInclusive<Ipv4Addr> = Ipv4Addr::new(127, 255, 255, 0)..=Ipv4Addr::new(127, 255, 255, 255);
/// Between two warnings about one zone, in seconds.
const WARNING_INTERVAL: u64 = 60;
/// Questions in a row without an answer after which a list is left alone, and for how many seconds.
const FAILURES_MAX: u32 = 5;
const PAUSE: u64 = 30;
/// Lists that a refusal names.
const NAMED_MAX: usize = 4;

/// Whom the lists are asked about.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Subject {
    /// The peer's address.
    #[default]
    Address,
    /// The domain of the sender.
    Sender,
    /// The domain in HELO.
    Hello,
}

/// What a list says of whom it is asked about.
enum Says {
    Listed,
    NotListed,
    /// Nothing, in these words.
    Nothing(Unavailable),
    /// It could not be reached.
    Unreached(Unavailable),
}

/// One list.
#[derive(Clone, Debug, PartialEq)]
pub struct List {
    /// Below which domain it is asked.
    pub zone: Domain,
    /// What it is called to peers: a zone may hold a secret.
    pub name: Domain,
    /// What it adds to the sum.
    pub weight: i32,
    /// The answers that count; none: all that are no errors.
    pub answers: Vec<RangeInclusive<Ipv4Addr>>,
}

/// From which sum on what is done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Thresholds {
    /// As much or more: the peer is refused.
    pub reject_at: Option<i32>,
    /// As much or more: it is tagged.
    pub tag_at: Option<i32>,
    /// As little or less: it is vouched for.
    pub trust_at: Option<i32>,
}

/// What an address that a list has answered means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Meaning {
    Listed,
    /// Of another sort than what counts.
    Other,
    /// The list does not answer us.
    Error,
}

impl List {
    fn meaning(&self, address: IpAddr) -> Meaning {
        let IpAddr::V4(address) = address else { return Meaning::Error };
        let is_named = self.answers.iter().any(|range| range.contains(&address));
        // Several lists say so that too much is asked of them, or the wrong thing, and 127.0.0.1 is nothing that a list has
        // (RFC 5782 §5).
        let is_error_by_custom = address == Ipv4Addr::LOCALHOST || address.octets()[3] == 255;
        match address {
            // Whoever answers so is no list any more.
            _ if !address.is_loopback() || ERRORS.contains(&address) => Meaning::Error,
            _ if is_named => Meaning::Listed,
            _ if is_error_by_custom => Meaning::Error,
            _ if self.answers.is_empty() => Meaning::Listed,
            _ => Meaning::Other,
        }
    }
}

struct Asked {
    list: List,
    /// When its zone was last warned of, in seconds since 1970.
    warned_at: Arc<AtomicU64>,
    /// Questions in a row that it has not answered.
    failures: AtomicU32,
    /// Until when it is left alone, in seconds since `since`.
    paused_until: AtomicU64,
    since: Instant,
}

/// See the module.
pub struct Dnsbl {
    name: String,
    phase: Phase,
    subject: Subject,
    scale: Arc<Scale>,
}

/// The lists and what their sum leads to.
struct Scale {
    lists: Vec<Asked>,
    thresholds: Thresholds,
    tag: Option<Tag>,
    subject: Subject,
    resolver: Arc<Resolver>,
}

impl Dnsbl {
    /// Asks `lists` about the `subject` at `phase`. A tag is the policy's name.
    pub fn new(
        name: &str,
        phase: Phase,
        subject: Subject,
        lists: Vec<List>,
        thresholds: Thresholds,
        resolver: Arc<Resolver>,
    ) -> Self {
        let mut asked: Vec<Asked> = Vec::with_capacity(lists.len());
        for list in lists {
            let twin = asked.iter().find(|other| other.list.zone == list.zone);
            let warned_at = twin.map(|other| other.warned_at.clone()).unwrap_or_default();
            asked.push(Asked {
                list,
                warned_at,
                failures: AtomicU32::new(0),
                paused_until: AtomicU64::new(0),
                since: Instant::now(),
            });
        }
        let scale = Scale { lists: asked, thresholds, tag: Tag::parse(name), subject, resolver };
        Dnsbl { name: name.into(), phase, subject, scale: Arc::new(scale) }
    }
}

impl Policy for Dnsbl {
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
        let Some(about) = about(self.subject, facts) else { return Verdict::Accept.into() };
        let address = facts.peer.ip().to_canonical();
        let (now, unix_time, is_remembered) = (facts.now, facts.unix_time, !facts.is_rehearsal);
        let scale = self.scale.clone();
        answer(async move { scale.weigh(&about, address, now, unix_time, is_remembered).await })
    }
}

/// What stands before the zones; `None` where there is nothing to ask about.
fn about(subject: Subject, facts: &Facts<'_>) -> Option<String> {
    let domain = |text: &str| {
        let domain = Domain::parse(text.strip_suffix('.').unwrap_or(text), true).ok()?;
        let name = domain.canonical();
        (!name.starts_with('[') && name.contains('.')).then(|| name.to_string())
    };
    match subject {
        Subject::Address => {
            let address = facts.peer.ip().to_canonical();
            is_public(address).then(|| reversed(address))
        }
        Subject::Sender => match facts.reverse_path? {
            ReversePath::Null => None,
            ReversePath::Mailbox(mailbox) => domain(mailbox.domain()),
        },
        Subject::Hello => domain(facts.hello),
    }
}

/// Whether the address means the same host to everybody (RFC 6890).
fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => {
            let is_shared = v4.octets()[0] == 100 && v4.octets()[1] & 0xc0 == 64;
            let is_own = v4.is_private() || v4.is_loopback() || v4.is_link_local() || is_shared;
            !is_own && v4.octets()[0] != 0 && !v4.is_multicast() && !v4.is_broadcast()
        }
        IpAddr::V6(v6) => {
            let is_own = v6.is_loopback() || v6.is_unicast_link_local() || v6.is_unique_local();
            !is_own && !v6.is_unspecified() && !v6.is_multicast()
        }
    }
}

impl Scale {
    async fn weigh(
        &self,
        about: &str,
        address: IpAddr,
        now: Instant,
        unix_time: u64,
        is_remembered: bool,
    ) -> Found {
        let questions = self.lists.iter().map(async |asked| {
            let name = format!("{about}.{}", asked.list.zone.canonical());
            // What is too long for a name is on no list.
            let Some(question) = Question::new(Kind::A, &name) else { return Ok(Records::Nothing) };
            if let Some(records) = self.resolver.known(&question, now) {
                return Ok(records);
            }
            if asked.is_paused(now) {
                return Err(Unavailable(format!("{}: left alone, for it did not answer", asked.list.zone)));
            }
            let found = self.resolver.ask(question, now, is_remembered).await;
            asked.note(found.is_ok(), now, unix_time);
            found
        });
        let found = all(questions).await;
        let (mut score, mut for_the_peer, mut silent_count, mut is_reached) = (0, 0, 0, true);
        let mut listed: Vec<&List> = Vec::new();
        let mut why = None;
        for (asked, found) in self.lists.iter().zip(found) {
            let list = &asked.list;
            let e = match asked.read(found, unix_time) {
                Says::NotListed => continue,
                Says::Listed => {
                    score += list.weight;
                    listed.push(list);
                    continue;
                }
                Says::Nothing(e) => e,
                Says::Unreached(e) => {
                    is_reached = false;
                    e
                }
            };
            silent_count += 1;
            for_the_peer += list.weight.min(0);
            why = Some(e);
        }
        let is_nobody_left = silent_count == self.lists.len() && !is_reached;
        match why {
            Some(why) if is_nobody_left || self.hinges_on(score, for_the_peer) => Err(why),
            _ => Ok(self.verdict(score, &listed, address)),
        }
    }

    /// Whether the peer would be refused only because those who might have spoken for it did not answer.
    fn hinges_on(&self, score: i32, for_the_peer: i32) -> bool {
        self.thresholds.reject_at.is_some_and(|limit| score >= limit && score + for_the_peer < limit)
    }

    fn verdict(&self, score: i32, listed: &[&List], address: IpAddr) -> Verdict {
        let Thresholds { reject_at, tag_at, trust_at } = self.thresholds;
        if reject_at.is_some_and(|limit| score >= limit) {
            return Verdict::Refuse(refusal(self.subject, score, listed, address));
        }
        if trust_at.is_some_and(|limit| score <= limit) {
            return Verdict::Trust;
        }
        match &self.tag {
            Some(tag) if tag_at.is_some_and(|limit| score >= limit) => Verdict::Tag(tag.clone()),
            _ => Verdict::Accept,
        }
    }
}

impl Asked {
    fn read(&self, found: Result<Records, Unavailable>, unix_time: u64) -> Says {
        let records = match found {
            Ok(records) => records,
            Err(why) => return Says::Unreached(why),
        };
        let mut says = Says::NotListed;
        for address in records.addresses() {
            match self.list.meaning(*address) {
                Meaning::Listed => says = Says::Listed,
                Meaning::Other => {}
                Meaning::Error => {
                    let zone = &self.list.zone;
                    if self.is_time_to_warn(unix_time) {
                        let what = "a list answers what is no listing: it may have closed, or not serve us or our resolver";
                        tracing::warn!(%zone, answer = %address, "{what}");
                    }
                    return Says::Nothing(Unavailable(format!(
                        "{zone} answers {address}, which is no listing"
                    )));
                }
            }
        }
        says
    }

    fn is_paused(&self, now: Instant) -> bool {
        self.seconds(now) < self.paused_until.load(Ordering::Relaxed)
    }

    /// On the monotonic clock: a wall clock that is set back must not leave a list alone for days.
    fn seconds(&self, now: Instant) -> u64 {
        now.saturating_duration_since(self.since).as_secs()
    }

    /// Whether it has answered.
    fn note(&self, has_answered: bool, now: Instant, unix_time: u64) {
        if has_answered {
            self.failures.store(0, Ordering::Relaxed);
            return;
        }
        // After a pause one failure more is enough.
        if self.failures.fetch_add(1, Ordering::Relaxed).saturating_add(1) >= FAILURES_MAX {
            self.failures.store(FAILURES_MAX - 1, Ordering::Relaxed);
            self.paused_until.store(self.seconds(now) + PAUSE, Ordering::Relaxed);
            if self.is_time_to_warn(unix_time) {
                tracing::warn!(zone = %self.list.zone, seconds = PAUSE, "a list does not answer and is left alone for a while");
            }
        }
    }

    fn is_time_to_warn(&self, unix_time: u64) -> bool {
        let last = self.warned_at.load(Ordering::Relaxed);
        let is_time = unix_time >= last.saturating_add(WARNING_INTERVAL);
        is_time
            && self.warned_at.compare_exchange(last, unix_time, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }
}

/// What a list has in TXT is not repeated: it is somebody else's text, and a peer finds it under the list's name.
fn refusal(subject: Subject, score: i32, listed: &[&List], address: IpAddr) -> Refusal {
    let mut names: Vec<_> = listed.iter().filter(|list| list.weight > 0).map(|list| &list.name).collect();
    names.dedup();
    let names: Vec<_> = names.into_iter().take(NAMED_MAX).map(Domain::canonical).collect();
    let names = names.join(", ");
    let mut refusal = Refusal::new(Status::permanent(7, 1), "").keyed(format!("{names} score {score}"));
    refusal.text = match subject {
        Subject::Address => format!("{address} is listed by {names}").into(),
        Subject::Sender => format!("The domain of the sender is listed by {names}").into(),
        Subject::Hello => format!("The name in HELO is listed by {names}").into(),
    };
    refusal
}

impl fmt::Debug for Dnsbl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::Lookups;

    fn list(zone: &str, weight: i32, answers: &[(&str, &str)]) -> List {
        let range = |(first, last): &(&str, &str)| first.parse().unwrap()..=last.parse().unwrap();
        let zone = Domain::parse(zone, false).unwrap();
        List { name: zone.clone(), zone, weight, answers: answers.iter().map(range).collect() }
    }

    const LIMITS: Thresholds = Thresholds { reject_at: Some(3), tag_at: Some(1), trust_at: Some(-2) };

    fn policy(subject: Subject, lists: Vec<List>, resolver: Arc<Resolver>) -> Dnsbl {
        Dnsbl::new("dnsbl", Phase::Recipient, subject, lists, LIMITS, resolver)
    }

    fn words(answer: Answer) -> String {
        match answer {
            Answer::Now(Ok(Verdict::Refuse(refusal))) => {
                format!("{} {} [{}]", refusal.status, refusal.text, refusal.key.unwrap())
            }
            Answer::Now(Ok(Verdict::Tag(tag))) => format!("tag {tag}"),
            Answer::Now(Ok(verdict)) => verdict.word().into(),
            Answer::Now(Err(why)) => format!("unavailable: {why}"),
            Answer::Later(_) => "later".into(),
        }
    }

    #[test]
    fn what_an_answer_means() {
        use Meaning::{Error, Listed, Other};
        let any = list("any.example", 1, &[]);
        let some = list("some.example", 1, &[("127.0.0.2", "127.0.0.11"), ("127.0.1.255", "127.0.1.255")]);
        let greedy = list("greedy.example", 1, &[("127.0.0.0", "127.255.255.255")]);
        let table = [
            // The answer; what it means where everything counts, some answers, or all.
            ("127.0.0.2", Listed, Listed, Listed),
            ("127.0.0.11", Listed, Listed, Listed),
            ("127.0.0.12", Listed, Other, Listed),
            ("127.9.8.7", Listed, Other, Listed),
            ("127.0.0.1", Error, Error, Listed),
            ("127.0.0.255", Error, Error, Listed),
            ("127.0.1.255", Error, Listed, Listed),
            ("127.255.255.0", Error, Error, Error),
            ("127.255.255.252", Error, Error, Error),
            ("127.255.255.255", Error, Error, Error),
            ("127.255.254.9", Listed, Other, Listed),
            ("126.255.255.255", Error, Error, Error),
            ("128.0.0.0", Error, Error, Error),
            ("192.0.2.1", Error, Error, Error),
        ];
        for (address, in_any, in_some, in_greedy) in table {
            let address = address.parse().unwrap();
            let meanings = [&any, &some, &greedy].map(|list| list.meaning(address));
            assert_eq!(meanings, [in_any, in_some, in_greedy], "{address}");
        }
    }

    #[test]
    fn weights_add_up_and_the_sum_decides() {
        let names = ["a.example", "b.example", "w.example"];
        let known = |of: &str, listed_by: &[&str]| -> Vec<(String, bool)> {
            names.iter().map(|zone| (format!("{of}.{zone}"), listed_by.contains(zone))).collect()
        };
        // The peer; who has it; what is said.
        let table: [(&str, &[&str], &str); 9] = [
            ("192.0.2.1", &[], "accept"),
            ("192.0.2.2", &["a.example"], "tag dnsbl"),
            ("192.0.2.3", &["b.example"], "tag dnsbl"),
            (
                "192.0.2.4",
                &["a.example", "b.example"],
                "5.7.1 192.0.2.4 is listed by a.example, b.example [a.example, b.example score 3]",
            ),
            ("192.0.2.5", &["a.example", "b.example", "w.example"], "tag dnsbl"),
            ("192.0.2.6", &["a.example", "w.example"], "accept"),
            ("192.0.2.7", &["w.example"], "trust"),
            ("2001:db8::8", &["a.example"], "tag dnsbl"),
            ("::ffff:192.0.2.2", &["a.example"], "tag dnsbl"),
        ];
        let mut all_known = Vec::new();
        for (peer, listed_by, _) in &table {
            all_known.extend(known(&reversed(peer.parse().unwrap()), listed_by));
        }
        let listed: &[&str] = &["127.0.0.2"];
        let known: Vec<_> = all_known
            .iter()
            .map(|(name, is_listed)| (Kind::A, name.as_str(), if *is_listed { listed } else { &[] }))
            .collect();
        let lists = vec![list(names[0], 1, &[]), list(names[1], 2, &[]), list(names[2], -2, &[])];
        let policy = policy(Subject::Address, lists, Resolver::knowing(&known));
        for (peer, _, said) in table {
            assert_eq!(words(policy.check(Phase::Recipient, &Facts::of(peer))), said, "{peer}");
        }
    }

    #[test]
    fn addresses_of_ones_own_are_not_asked_about() {
        let lists = vec![list("a.example", 9, &[])];
        let policy = policy(Subject::Address, lists, Resolver::knowing(&[]));
        let own = [
            "127.0.0.1",
            "10.1.2.3",
            "172.16.0.1",
            "192.168.1.1",
            "169.254.1.1",
            "100.64.0.1",
            "0.0.0.0",
            "0.1.2.3",
            "224.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "fe80::1",
            "fd00::1",
            "ff02::1",
            "::ffff:10.1.2.3",
        ];
        for peer in own {
            assert_eq!(words(policy.check(Phase::Recipient, &Facts::of(peer))), "accept", "{peer}");
        }
        for peer in ["192.0.2.1", "8.8.8.8", "100.128.0.1", "172.32.0.1", "2001:db8::1"] {
            assert_eq!(words(policy.check(Phase::Recipient, &Facts::of(peer))), "later", "{peer}");
        }
    }

    #[test]
    fn domains_are_asked_about_where_there_are_any() {
        let known: [(Kind, &str, &[&str]); 3] = [
            (Kind::A, "spam.example.rhs.example", &["127.0.1.2"]),
            (Kind::A, "good.example.rhs.example", &[]),
            (Kind::A, "xn--bcher-kva.example.rhs.example", &["127.0.1.2"]),
        ];
        let lists = || vec![list("rhs.example", 3, &[])];
        let [sender, hello] = [Subject::Sender, Subject::Hello]
            .map(|subject| policy(subject, lists(), Resolver::knowing(&known)));
        let key = "[rhs.example score 3]";
        let refused = format!("5.7.1 The domain of the sender is listed by rhs.example {key}");
        let table = [
            ("a@spam.example", refused.as_str()),
            ("a@SPAM.Example", &refused),
            ("a@bücher.example", &refused),
            ("a@good.example", "accept"),
            ("a@[192.0.2.1]", "accept"),
            ("a@local", "accept"),
            ("", "accept"),
        ];
        for (from, said) in table {
            let path = ReversePath::parse(from, true).unwrap();
            let facts = Facts { reverse_path: Some(&path), ..Facts::of("10.0.0.1") };
            assert_eq!(words(sender.check(Phase::Recipient, &facts)), said, "{from}");
        }
        let refused = format!("5.7.1 The name in HELO is listed by rhs.example {key}");
        let long = format!("{}example", "spam.".repeat(49));
        let table = [
            ("spam.example", refused.as_str()),
            ("spam.example.", &refused),
            ("good.example", "accept"),
            ("[192.0.2.1]", "accept"),
            ("$pam.example", "accept"),
            ("localhost", "accept"),
            ("", "accept"),
            // With the zone behind it it is no name any more.
            (&long, "accept"),
        ];
        for (name, said) in table {
            let facts = Facts { hello: name, ..Facts::of("10.0.0.1") };
            assert_eq!(words(hello.check(Phase::Recipient, &facts)), said, "{name}");
        }
    }

    #[test]
    fn lists_that_fail_count_as_nothing_and_never_against_the_peer() {
        // The three lists weigh 3, 1 and -2. What each says of the peer: listed, not listed, or an error; and what is said.
        let (yes, no, error): (&[&str], &[&str], &[&str]) = (&["127.0.0.2"], &[], &["127.255.255.254"]);
        let table = [
            ([yes, error, no], "5.7.1 192.0.2.1 is listed by a.example [a.example score 3]"),
            ([no, error, no], "accept"),
            ([error, yes, no], "tag dnsbl"),
            ([error, no, yes], "trust"),
            ([error, error, no], "accept"),
            // Nobody need come again for our having no lists.
            ([error, error, error], "accept"),
            // The third might have spoken for it.
            ([yes, no, error], "unavailable: w.example answers 127.255.255.254, which is no listing"),
            ([no, yes, error], "tag dnsbl"),
        ];
        let zones = [("a.example", 3), ("b.example", 1), ("w.example", -2)];
        for (says, said) in table {
            let names = zones.map(|(zone, _)| format!("1.2.0.192.{zone}"));
            let known: Vec<_> =
                names.iter().zip(says).map(|(name, says)| (Kind::A, name.as_str(), says)).collect();
            let lists = zones.map(|(zone, weight)| list(zone, weight, &[]));
            let policy = policy(Subject::Address, lists.into(), Resolver::knowing(&known));
            assert_eq!(words(policy.check(Phase::Recipient, &Facts::of("192.0.2.1"))), said, "{says:?}");
        }
        // Who cannot be reached fails too.
        let policy = policy(Subject::Address, vec![list("a.example", 3, &[])], Resolver::knowing(&[]));
        let Answer::Later(later) = policy.check(Phase::Recipient, &Facts::of("192.0.2.1")) else { panic!() };
        let (told, answers) = std::sync::mpsc::channel();
        let lookups = Lookups::start(1).unwrap();
        lookups
            .submit(later, None, std::time::Duration::from_secs(60), move |found| told.send(found).unwrap());
        assert!(answers.recv().unwrap().is_err());
    }

    #[test]
    fn a_secret_in_a_zone_is_not_told_and_one_list_is_named_once() {
        let known: [(Kind, &str, &[&str]); 1] =
            [(Kind::A, "1.2.0.192.key123.zen.example", &["127.0.0.4", "127.0.0.10"])];
        let named = |weight, answers: &[(&str, &str)]| List {
            name: Domain::parse("zen.example", false).unwrap(),
            ..list("key123.zen.example", weight, answers)
        };
        let lists = vec![
            named(2, &[("127.0.0.2", "127.0.0.9")]),
            named(1, &[("127.0.0.10", "127.0.0.11")]),
            named(8, &[("127.0.0.30", "127.0.0.30")]),
        ];
        let policy = policy(Subject::Address, lists, Resolver::knowing(&known));
        let said = words(policy.check(Phase::Recipient, &Facts::of("192.0.2.1")));
        assert_eq!(said, "5.7.1 192.0.2.1 is listed by zen.example [zen.example score 3]");
    }

    #[test]
    fn one_list_is_warned_of_once_a_minute() {
        let lists = vec![list("a.example", 1, &[]), list("a.example", 2, &[])];
        let policy = policy(Subject::Address, lists, Resolver::knowing(&[]));
        let [asked, twin] = &policy.scale.lists[..] else { panic!("two lists") };
        let warned: Vec<_> =
            [1000, 1001, 1059, 1060, 1061, 1120].map(|time| asked.is_time_to_warn(time)).into();
        assert_eq!(warned, [true, false, false, true, false, true]);
        assert!(!twin.is_time_to_warn(1121), "it is the same zone");
    }

    #[test]
    fn a_list_that_does_not_answer_is_left_alone_for_a_while() {
        let policy = policy(Subject::Address, vec![list("a.example", 1, &[])], Resolver::knowing(&[]));
        let asked = &policy.scale.lists[0];
        // At which second it answered or did not; whether it is left alone then.
        let table = [
            (100, false, false),
            (101, false, false),
            (101, true, false),
            (102, false, false),
            (103, false, false),
            (104, false, false),
            (105, false, false),
            (110, false, true),
            (139, false, true),
            (200, false, true),
            (231, true, false),
            (232, false, false),
        ];
        for (time, has_answered, is_paused) in table {
            let now = asked.since + std::time::Duration::from_secs(time);
            asked.note(has_answered, now, 1_800_000_000);
            assert_eq!(asked.is_paused(now), is_paused, "{time}");
        }
        asked.paused_until.store(300, Ordering::Relaxed);
        let since = asked.since;
        let peer =
            |time| Facts { now: since + std::time::Duration::from_secs(time), ..Facts::of("192.0.2.1") };
        let said = words(policy.check(Phase::Recipient, &peer(299)));
        assert_eq!(said, "unavailable: a.example: left alone, for it did not answer");
        assert_eq!(words(policy.check(Phase::Recipient, &peer(300))), "later");
    }
}
