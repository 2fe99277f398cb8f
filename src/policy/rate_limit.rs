//! Rate limits: so much of one key in any window of time, exactly.
//!
//! The window slides: what was let in counts for the length of the window from the moment it was let in. What is refused does not
//! count, so whoever waits as long as he is told gets in.
//!
//! Invariants:
//! - in no window of time more than the limit of one key is let in, on however many shards at once;
//! - up to a limit of [`RUNS_MAX`] not less either: of n that come at once exactly the limit is let in, and the next as soon as the window
//!   from the first is over. With a larger limit what came within a 32nd of the window is remembered together, with the time of the
//!   last of it: it may count for that much longer, never for less;
//! - an entry takes bounded memory whatever the limit is, and there are never more entries than permitted. With more keys at a time than
//!   entries those nearest to their end are forgotten; then, and only then, a key gets more than its limit.
//!
//! Octets are looked at twice: at MAIL those that were declared, so that what cannot come is refused before it is sent; and when the
//! content is there those that came, which is when they count. A message that alone exceeds the limit could wait for ever: it is
//! refused for good.
//!
//! A null reverse-path has no sender: a limit per sender or per sender's domain leaves notifications alone.

use std::borrow::Cow;
use std::fmt;
use std::time::{Duration, Instant};

use super::{Answer, Facts, Kept, Phase, Phases, Policy, Prefix, Table, Verdict};
use crate::mail::{ForwardPath, Refusal, ReversePath, Status};

/// Runs of a key that are remembered at most. Each is 16 octets.
const RUNS_MAX: u64 = 32;

/// What is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Counted {
    /// Connections, when they are accepted.
    Connections,
    /// Transactions, at MAIL.
    Transactions,
    /// Recipients, at each RCPT.
    Recipients,
    /// Octets of content.
    Bytes,
}

/// For whom it is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Per {
    /// The peer's IPv4 address or IPv6 /64.
    Address,
    /// The peer's IPv4 /24 or IPv6 /48.
    Network,
    /// The domain of the reverse-path.
    SenderDomain,
    /// The reverse-path.
    Sender,
    /// The recipient.
    Recipient,
}

/// How much, of what, for whom, in which time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit {
    /// What is counted.
    pub counted: Counted,
    /// For whom.
    pub per: Per,
    /// So much of it; at least 1.
    pub limit: u64,
    /// In any time of this length.
    pub window: Duration,
}

/// That nobody could tell for whom to count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotKnownThen;

impl Limit {
    /// Whether it is known for whom to count when it is to be counted.
    pub fn check(counted: Counted, per: Per) -> Result<(), NotKnownThen> {
        let is_known = match per {
            Per::Address | Per::Network => true,
            Per::SenderDomain | Per::Sender => counted != Counted::Connections,
            Per::Recipient => counted == Counted::Recipients,
        };
        if is_known { Ok(()) } else { Err(NotKnownThen) }
    }
}

/// See the module.
pub struct RateLimit {
    name: String,
    limit: Limit,
    /// What came within this is remembered together, nanoseconds; 0: each by itself.
    grain: u64,
    /// Times are counted from here.
    epoch: Instant,
    table: Table<Key, Vec<Run>>,
}

#[derive(PartialEq, Eq, Hash)]
enum Key {
    Prefix(Prefix),
    Text(Box<str>),
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Key::Prefix(prefix) => prefix.fmt(f),
            Key::Text(text) => f.write_str(text),
        }
    }
}

/// What was let in at about one time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Run {
    /// When the last of it was, in nanoseconds of the policy's epoch.
    last: u64,
    amount: u64,
}

/// Why something is too much.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum TooMuch {
    /// There is room for it after this time.
    For(Duration),
    /// By itself.
    ForEver,
}

impl RateLimit {
    /// `limit`, for up to `entries_max` keys at a time.
    ///
    /// # Panics
    /// Where [`Limit::check`] fails.
    pub fn new(name: &str, limit: Limit, entries_max: usize) -> Self {
        assert_eq!(Limit::check(limit.counted, limit.per), Ok(()), "{limit:?}");
        let grain = match limit.limit {
            0..=RUNS_MAX => 0,
            _ => nanoseconds(limit.window).div_ceil(RUNS_MAX).max(1),
        };
        RateLimit { name: name.into(), limit, grain, epoch: Instant::now(), table: Table::new(entries_max) }
    }

    /// Lets `amount` in if there is room for it, and counts it if it `counts`.
    fn admit(&self, key: Key, amount: u64, counts: bool, now: Instant) -> Result<(), TooMuch> {
        if amount > self.limit.limit {
            return Err(TooMuch::ForEver);
        }
        self.table.update(key, now, |kept| {
            let mut time = nanoseconds(now.saturating_duration_since(self.epoch));
            if let Some(Kept { value: runs, .. }) = kept {
                // Another shard may have read the clock later and come here before: it is as late as it said.
                time = runs.last().map_or(time, |run| time.max(run.last));
                self.forget(runs, time);
                if let Some(free_at) = self.free_at(runs, amount) {
                    return Err(TooMuch::For(Duration::from_nanos(free_at - time)));
                }
            }
            if counts {
                let none = || Kept { value: Vec::new(), until: now };
                let Kept { value: runs, until } = kept.get_or_insert_with(none);
                self.count(runs, amount, time);
                *until = (*until).max(now + self.limit.window);
            }
            Ok(())
        })
    }

    /// Forgets what does not count any more.
    fn forget(&self, runs: &mut Vec<Run>, time: u64) {
        let over = runs.iter().take_while(|run| self.end(run) <= time).count();
        runs.drain(..over);
    }

    /// When there is room for `amount`; nothing if there is now.
    fn free_at(&self, runs: &[Run], amount: u64) -> Option<u64> {
        let mut sum = runs.iter().fold(amount, |sum, run| sum.saturating_add(run.amount));
        let mut free_at = None;
        for run in runs {
            if sum <= self.limit.limit {
                break;
            }
            sum -= run.amount;
            free_at = Some(self.end(run));
        }
        free_at
    }

    fn count(&self, runs: &mut Vec<Run>, amount: u64, time: u64) {
        if let Some(run) = runs.last_mut().filter(|run| self.is_together(run.last, time)) {
            run.last = time;
            run.amount += amount;
            return;
        }
        debug_assert!(runs.len() as u64 <= RUNS_MAX);
        // Never room for more than there can be.
        if runs.len() == runs.capacity() {
            runs.reserve_exact(runs.len().min(RUNS_MAX as usize + 1 - runs.len()).max(1));
        }
        runs.push(Run { last: time, amount });
    }

    fn end(&self, run: &Run) -> u64 {
        run.last.saturating_add(nanoseconds(self.limit.window))
    }

    fn is_together(&self, one: u64, other: u64) -> bool {
        match self.grain {
            0 => one == other,
            grain => one / grain == other / grain,
        }
    }

    /// For whom to count; nobody for notifications where senders are counted.
    fn key(&self, facts: &Facts<'_>) -> Option<Key> {
        let sender = || match facts.reverse_path {
            Some(ReversePath::Mailbox(mailbox)) => Some(mailbox),
            _ => None,
        };
        Some(match self.limit.per {
            Per::Address => Key::Prefix(Prefix::of_address(facts.peer.ip())),
            Per::Network => Key::Prefix(Prefix::of_network(facts.peer.ip())),
            Per::SenderDomain => Key::Text(sender()?.canonical_domain().into()),
            Per::Sender => {
                let sender = sender()?;
                Key::Text(mailbox(sender.local_part(), &sender.canonical_domain()))
            }
            Per::Recipient => Key::Text(match facts.recipient? {
                ForwardPath::Postmaster => "postmaster".into(),
                ForwardPath::Mailbox(to) => mailbox(to.local_part(), &to.canonical_domain()),
            }),
        })
    }

    fn refusal(&self, why: TooMuch, facts: &Facts<'_>) -> Refusal {
        let Limit { counted, per, limit, window } = self.limit;
        let what = match counted {
            Counted::Connections => "connections",
            Counted::Transactions => "messages",
            Counted::Recipients => "recipients",
            Counted::Bytes => "octets",
        };
        let key = self.key(facts).map_or_else(String::new, |key| key.to_string());
        let key = format!("{key}: {limit} {what} in {}", humantime::format_duration(window));
        let wait = match why {
            TooMuch::For(wait) => wait,
            // RFC 3463 X.3.4: larger than permitted.
            TooMuch::ForEver => {
                return Refusal::new(Status::permanent(3, 4), "Message larger than what is taken from here")
                    .keyed(key);
            }
        };
        // A second begun is a second to wait.
        let seconds = wait.as_nanos().div_ceil(1_000_000_000);
        let (of, much) = match (per, counted) {
            (_, Counted::Bytes) => (whose(per), "Too much mail"),
            (_, Counted::Connections) => (whose(per), "Too many connections"),
            (Per::Recipient, _) => ("for this recipient", "Too many messages"),
            (_, Counted::Transactions) => (whose(per), "Too many messages"),
            (_, Counted::Recipients) => (whose(per), "Too many recipients"),
        };
        let s = if seconds == 1 { "" } else { "s" };
        Refusal {
            status: match counted {
                Counted::Connections => Status::temporary(7, 0),
                _ => Status::temporary(7, 1),
            },
            text: Cow::Owned(format!("{much} {of}, try again in {seconds} second{s}")),
            disconnect: false,
            key: Some(key.into()),
        }
    }
}

/// Local parts are told apart as they are written (RFC 5321 §2.4), domains as they are meant; a sender who changes the letters' case to be
/// counted anew is not let have it.
fn mailbox(local_part: &str, domain: &str) -> Box<str> {
    format!("{}@{domain}", local_part.to_lowercase()).into()
}

fn whose(per: Per) -> &'static str {
    match per {
        Per::Address => "from your address",
        Per::Network => "from your network",
        Per::SenderDomain => "from this domain",
        Per::Sender => "from this sender",
        Per::Recipient => "for this recipient",
    }
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

impl Policy for RateLimit {
    fn name(&self) -> &str {
        &self.name
    }

    fn phases(&self) -> Phases {
        match self.limit.counted {
            Counted::Connections => Phases::of(Phase::Connect),
            Counted::Transactions => Phases::of(Phase::Mail),
            Counted::Recipients => Phases::of(Phase::Recipient),
            Counted::Bytes => Phases::of(Phase::Mail) | Phases::of(Phase::Message),
        }
    }

    fn is_guard(&self) -> bool {
        true
    }

    fn check(&self, phase: Phase, facts: &Facts<'_>) -> Answer {
        let Some(key) = self.key(facts) else { return Verdict::Accept.into() };
        let amount = match (self.limit.counted, phase) {
            // An empty message is not nothing, and who declares nothing sends something.
            (Counted::Bytes, Phase::Message) => facts.size.max(1),
            (Counted::Bytes, _) => facts.declared_size.unwrap_or(0).max(1),
            _ => 1,
        };
        let is_a_look = self.limit.counted == Counted::Bytes && phase == Phase::Mail;
        match self.admit(key, amount, !is_a_look && !facts.is_rehearsal, facts.now) {
            Ok(()) => Verdict::Accept.into(),
            Err(why) => self.refusal(why, facts).into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::net::IpAddr;
    use std::sync::Barrier;
    use std::thread;

    use proptest::prelude::*;

    use super::*;
    use crate::mail::{Class, Mailbox};

    const MINUTE: Duration = Duration::from_secs(60);

    fn policy(counted: Counted, per: Per, limit: u64) -> RateLimit {
        RateLimit::new("limit", Limit { counted, per, limit, window: MINUTE }, 1000)
    }

    fn refused(answer: Answer) -> Option<Refusal> {
        match answer {
            Answer::Now(Ok(Verdict::Accept)) => None,
            Answer::Now(Ok(Verdict::Refuse(refusal))) => Some(refusal),
            other => panic!("{other:?}"),
        }
    }

    fn seconds(answer: Answer) -> Option<u64> {
        let text = refused(answer)?.text;
        Some(text.split_ascii_whitespace().rev().nth(1).unwrap().parse().expect("a number of seconds"))
    }

    #[test]
    fn who_comes_too_often_is_told_how_long_to_wait_and_then_gets_in() {
        let policy = policy(Counted::Transactions, Per::Address, 3);
        let start = Instant::now();
        let table: [(f64, Option<u64>); 12] = [
            // (seconds, the wait if refused)
            (0.0, None),
            (10.0, None),
            (10.0, None),
            (10.0, Some(50)),
            (10.5, Some(50)),
            (59.0, Some(1)),
            (59.999, Some(1)),
            (60.0, None),
            (60.0, Some(10)),
            (70.0, None),
            (70.0, None),
            (70.0, Some(50)),
        ];
        for (n, (at, wait)) in table.into_iter().enumerate() {
            let facts = Facts { now: start + Duration::from_secs_f64(at), ..Facts::of("192.0.2.1") };
            assert_eq!(seconds(policy.check(Phase::Mail, &facts)), wait, "{n} at {at}");
        }
    }

    #[test]
    fn the_reply_says_what_is_too_much_and_the_key_what_decided() {
        let from = ReversePath::parse("A@Bounce.Example", false).unwrap();
        let to = ForwardPath::parse("B@example.com", false).unwrap();
        let facts = Facts {
            reverse_path: Some(&from),
            recipient: Some(&to),
            size: 1,
            ..Facts::of("2001:db8:1:2::3")
        };
        let table = [
            (
                Counted::Connections,
                Per::Address,
                Phase::Connect,
                "4.7.0 Too many connections from your address",
                "2001:db8:1:2::/64: 1 connections",
            ),
            (
                Counted::Transactions,
                Per::Network,
                Phase::Mail,
                "4.7.1 Too many messages from your network",
                "2001:db8:1::/48: 1 messages",
            ),
            (
                Counted::Recipients,
                Per::Sender,
                Phase::Recipient,
                "4.7.1 Too many recipients from this sender",
                "a@bounce.example: 1 recipients",
            ),
            (
                Counted::Recipients,
                Per::Recipient,
                Phase::Recipient,
                "4.7.1 Too many messages for this recipient",
                "b@example.com: 1 recipients",
            ),
            (
                Counted::Bytes,
                Per::SenderDomain,
                Phase::Message,
                "4.7.1 Too much mail from this domain",
                "bounce.example: 1 octets",
            ),
        ];
        for (counted, per, phase, text, key) in table {
            let policy = policy(counted, per, 1);
            assert!(policy.phases().contains(phase) && policy.is_guard());
            assert_eq!(refused(policy.check(phase, &facts)), None);
            let refusal = refused(policy.check(phase, &facts)).expect("it is too much");
            assert_eq!(
                format!("{} {}", refusal.status, refusal.text),
                format!("{text}, try again in 60 seconds")
            );
            assert_eq!(refusal.key.as_deref(), Some(format!("{key} in 1m").as_str()));
            assert!(!refusal.disconnect);
        }
    }

    #[test]
    fn keys_are_counted_apart_and_spellings_together() {
        let path = |text: &str| ReversePath::Mailbox(Mailbox::parse(text, true).unwrap());
        let (one, two, null) = (path("a@bücher.example"), path("B@xn--bcher-kva.example"), ReversePath::Null);
        let other = path("a@other.example");
        let table = [
            // (per, address, sender, is it the first's)
            (Per::Address, "192.0.2.1", &other, true),
            (Per::Address, "::ffff:192.0.2.1", &one, true),
            (Per::Address, "192.0.2.2", &one, false),
            (Per::Network, "192.0.2.255", &one, true),
            (Per::Network, "192.0.3.1", &one, false),
            (Per::SenderDomain, "192.0.2.2", &two, true),
            (Per::SenderDomain, "192.0.2.1", &other, false),
            (Per::Sender, "192.0.2.2", &path("A@xn--bcher-kva.example"), true),
            (Per::Sender, "192.0.2.1", &two, false),
            (Per::Sender, "192.0.2.1", &null, false),
        ];
        for (per, address, sender, is_same) in table {
            let policy = policy(Counted::Transactions, per, 1);
            let facts = Facts { reverse_path: Some(&one), ..Facts::of("192.0.2.1") };
            assert_eq!(refused(policy.check(Phase::Mail, &facts)), None);
            let facts = Facts { reverse_path: Some(sender), ..Facts::of(address) };
            let is_refused = refused(policy.check(Phase::Mail, &facts)).is_some();
            assert_eq!(is_refused, is_same, "{per:?} {address} {sender}");
        }
        // However many notifications come.
        let policy = policy(Counted::Transactions, Per::Sender, 1);
        let facts = Facts { reverse_path: Some(&null), ..Facts::of("192.0.2.1") };
        (0..3).for_each(|_| assert_eq!(refused(policy.check(Phase::Mail, &facts)), None));
        assert!(policy.table.is_empty());
    }

    #[test]
    fn octets_are_looked_at_when_declared_and_counted_when_they_came() {
        let policy = policy(Counted::Bytes, Per::Address, 1000);
        let facts = Facts::of("192.0.2.1");
        let mail = |declared| policy.check(Phase::Mail, &Facts { declared_size: declared, ..facts });
        let message = |size| policy.check(Phase::Message, &Facts { size, ..facts });
        for _ in 0..5 {
            assert_eq!(refused(mail(Some(900))), None, "what is declared is not counted");
        }
        assert_eq!(refused(message(600)), None);
        assert_eq!(refused(mail(Some(401))).unwrap().status.class, Class::Temporary);
        assert_eq!(refused(mail(Some(400))), None);
        assert_eq!(refused(message(401)).unwrap().status.class, Class::Temporary, "and it does not count");
        assert_eq!(refused(mail(None)), None);
        assert_eq!(refused(message(400)), None);
        assert!(refused(mail(None)).is_some() && refused(mail(Some(0))).is_some());
        // What could never come is not put off for ever.
        for answer in [mail(Some(1001)), message(1001)] {
            assert_eq!(refused(answer).unwrap().status, Status::permanent(3, 4));
        }
    }

    #[test]
    fn a_rehearsal_looks_and_does_not_count() {
        let policy = policy(Counted::Connections, Per::Address, 1);
        let facts = Facts::of("192.0.2.1");
        let rehearsal = Facts { is_rehearsal: true, ..facts };
        (0..3).for_each(|_| assert_eq!(refused(policy.check(Phase::Connect, &rehearsal)), None));
        assert_eq!(refused(policy.check(Phase::Connect, &facts)), None);
        assert!(refused(policy.check(Phase::Connect, &rehearsal)).is_some());
    }

    #[test]
    fn the_limit_is_exact_however_many_threads_ask() {
        const THREADS: u64 = 8;
        for limit in [1, 5, 32, 33, 1000] {
            for round in 0..10_u8 {
                let policy = policy(Counted::Connections, Per::Address, limit);
                let together = Barrier::new(THREADS as usize);
                let (policy, together) = (&policy, &together);
                let count = thread::scope(|scope| {
                    let ask = move || {
                        together.wait();
                        let is_in = |_: &u64| {
                            let facts =
                                Facts { now: Instant::now(), ..Facts::of(&format!("192.0.2.{round}")) };
                            refused(policy.check(Phase::Connect, &facts)).is_none()
                        };
                        (0..limit).filter(is_in).count() as u64
                    };
                    let threads: Vec<_> = (0..THREADS).map(|_| scope.spawn(ask)).collect();
                    threads.into_iter().map(|thread| thread.join().unwrap()).sum::<u64>()
                });
                assert_eq!(count, limit);
            }
        }
    }

    #[test]
    fn a_million_keys_and_the_largest_of_limits_take_bounded_memory() {
        let limit = Limit { counted: Counted::Bytes, per: Per::Address, limit: 1 << 50, window: MINUTE };
        let policy = RateLimit::new("limit", limit, 10_000);
        let start = Instant::now();
        for n in 0..1_000_000_u32 {
            let peer = std::net::SocketAddr::new(IpAddr::from(n.to_be_bytes()), 25);
            let facts = Facts { size: 1, peer, now: start, ..Facts::of("192.0.2.1") };
            assert_eq!(refused(policy.check(Phase::Message, &facts)), None);
        }
        assert!(policy.table.len() <= 10_048, "{}", policy.table.len());
        // One key that never stops.
        for n in 0..1_000_000_u32 {
            let now = start + Duration::from_millis(n.into());
            let facts = Facts { size: 1, now, ..Facts::of("203.0.113.1") };
            assert_eq!(refused(policy.check(Phase::Message, &facts)), None);
        }
        let key = Key::Prefix(Prefix::of_address("203.0.113.1".parse().unwrap()));
        let runs = policy.table.get(&key, start + Duration::from_millis(999_999)).unwrap();
        assert!((32..=33).contains(&runs.len()), "{}", runs.len());
    }

    /// What was let in, with all its times: the sum in the window before `now`.
    fn sum(events: &VecDeque<(u64, u64)>, window: u64, now: u64) -> u64 {
        events.iter().filter(|(at, _)| at + window > now).map(|(_, amount)| amount).sum()
    }

    proptest! {
        /// Up to 32 what is let in is what a model lets in that remembers everything; beyond it the model with a window a 32nd longer
        /// bounds it from below.
        #[test]
        fn it_decides_as_a_model_that_remembers_everything(
            limit in 1_u64..80,
            events in proptest::collection::vec((0_u64..6_000, 1_u64..4), 1..300),
        ) {
            let window = nanoseconds(MINUTE);
            let policy = policy(Counted::Bytes, Per::Address, limit);
            let (start, mut time) = (policy.epoch, 0);
            let mut let_in = VecDeque::new();
            for (pause, amount) in events {
                time += pause * 1_000_000;
                let at = |nanoseconds| {
                    let now = start + Duration::from_nanos(nanoseconds);
                    policy.check(Phase::Message, &Facts { now, size: amount, ..Facts::of("192.0.2.1") })
                };
                let refusal = refused(at(time));
                if amount > limit {
                    prop_assert_eq!(refusal.unwrap().status, Status::permanent(3, 4));
                    continue;
                }
                let is_in = refusal.is_none();
                let fits = sum(&let_in, window, time) + amount <= limit;
                let fits_longer = sum(&let_in, window + window / 32, time) + amount <= limit;
                match limit <= RUNS_MAX {
                    true => prop_assert_eq!(is_in, fits),
                    false => prop_assert_eq!(is_in, if is_in { fits } else { fits_longer }),
                }
                if is_in {
                    let_in.push_back((time, amount));
                } else if pause % 2 == 0 {
                    // Who waits as long as he is told gets in, and not before.
                    let wait = seconds(at(time)).unwrap() * 1_000_000_000;
                    prop_assert!(refused(at(time + wait - 1_000_000_000)).is_some());
                    time += wait;
                    prop_assert_eq!(refused(at(time)), None);
                    let_in.push_back((time, amount));
                }
            }
        }
    }
}
