//! Greylisting: who sends from a network nobody knows, as a sender and to a recipient it has not sent to, is deferred once; who comes
//! back after a while, as every mail server does, passes from then on (RFC 6647).
//!
//! ```text
//!            first seen              back after `delay`,
//!                                  within `retry_window`
//!   unknown ───────────► waiting ───────────────────────► passed ─── seen again: for another `pass_lifetime`
//!      ▲                    │ retry_window                   │ pass_lifetime
//!      └────────────────────┴────────────────────────────────┘
//! ```
//!
//! A triple is (network, reverse-path, recipient): a /24 of IPv4, a /64 of IPv6. After `network_passes_after` triples of a network have
//! passed, all of it passes.
//!
//! Invariants:
//! - nobody waits for longer than `delay`, whatever the wall clock does: here time is that of the monotonic clock, and what is read from
//!   the file is never taken to be of the future;
//! - coming back early changes nothing: the delay is counted from the first attempt;
//! - no more is remembered than `entries_max`, and of each entry its digest only: no address is kept, in memory or in the file;
//! - no shard waits for the file, and without it mail is greylisted all the same.
//!
//! A null reverse-path is asked about at DATA instead of RCPT: who only tries whether an address exists, as those do who verify
//! senders, never comes so far and is not deferred.

mod journal;
mod keeper;

use std::fmt::Write;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};

use aws_lc_rs::digest::{Context, SHA256};
use ipnet::IpNet;

use super::{Answer, Facts, Kept, Phase, Phases, Policy, Table, Verdict};
use crate::mail::{ForwardPath, Refusal, ReversePath, Status};
use journal::{Event, Record};
use keeper::Keeper;

const V4_PREFIX: u8 = 24;
const V6_PREFIX: u8 = 64;
/// What is remembered for longer again is written down at most so often: a peer that sends all day does not fill the file.
const RENEWAL_INTERVAL: Duration = Duration::from_secs(3600);

/// How greylisting is done.
#[derive(Clone, Debug, PartialEq)]
pub struct GreylistSettings {
    /// How long a triple that is seen for the first time is deferred.
    pub delay: Duration,
    /// When it has not come back by then it is forgotten. Longer than `delay`.
    pub retry_window: Duration,
    /// How long a triple that has passed is remembered since it was last seen (to the hour). Longer than an hour.
    pub pass_lifetime: Duration,
    /// After how many triples that have passed the whole network does; 0: never.
    pub network_passes_after: u16,
    /// Triples and networks remembered at most.
    pub entries_max: usize,
}

/// The first octets of the SHA-256 of what is remembered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Key([u8; 16]);

/// What is known of a key. Until when says what is kept with it: `retry_window` after it was first seen, `pass_lifetime` after it was last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Memory {
    /// A triple that was deferred.
    Waiting,
    /// A triple that came back.
    Passed,
    /// A network of which so many have.
    Network(u16),
}

struct Entries {
    settings: GreylistSettings,
    table: Table<Key, Memory>,
}

/// Defers whom nobody has seen yet.
pub struct Greylist {
    name: String,
    entries: Arc<Entries>,
    keeper: Keeper,
    is_finished: AtomicBool,
}

impl Greylist {
    /// With what is in `file`, which is only read until there is something to write. `unix_time` is what the wall clock says at `now`.
    pub fn open(
        name: &str,
        settings: GreylistSettings,
        file: &Path,
        now: Instant,
        unix_time: u64,
    ) -> std::io::Result<Self> {
        let entries = Arc::new(Entries { table: Table::new(settings.entries_max), settings });
        let found = journal::read(file, |record| entries.restore(record, now, unix_time));
        let found = match found {
            Ok(found) => found,
            Err(e) => {
                tracing::warn!(policy = name, file = %file.display(), error = %e, "what was greylisted before cannot be read: it begins anew");
                journal::Contents::default()
            }
        };
        if found.damaged_size > 0 {
            tracing::warn!(policy = name, file = %file.display(), octets = found.damaged_size, records = found.records_count, "a part of what was greylisted before is damaged: the rest is used");
        }
        let keeper = Keeper::start(name, file, found, entries.clone())?;
        Ok(Greylist { name: name.into(), entries, keeper, is_finished: AtomicBool::new(false) })
    }

    /// Its name, which is its file's too.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What it goes by.
    pub fn settings(&self) -> &GreylistSettings {
        &self.entries.settings
    }

    /// Has everything written, and waits until it is. What is seen afterwards is not written down.
    pub fn finish(&self) {
        self.is_finished.store(true, Ordering::Relaxed);
        self.keeper.finish();
    }

    /// What is seen is not written down any more.
    pub fn is_finished(&self) -> bool {
        self.is_finished.load(Ordering::Relaxed)
    }

    fn decide(&self, facts: &Facts<'_>, triple: &Triple) -> Answer {
        let Entries { settings, table } = &*self.entries;
        let now = facts.now;
        let (key, network) = (triple.key(), triple.network_key());
        if settings.network_passes_after > 0 {
            let is_known =
                |kept: &Memory| matches!(kept, Memory::Network(n) if *n >= settings.network_passes_after);
            if table.get(&network, now).as_ref().is_some_and(is_known) {
                if !facts.is_rehearsal {
                    self.renew(network, facts);
                }
                return Verdict::Accept.into();
            }
        }
        if facts.is_rehearsal {
            let kept = table.update(key, now, |kept| kept.clone());
            return match settings.judge(kept.as_ref(), now) {
                Judgement::New => triple.refusal(settings.delay),
                Judgement::Early(left) => triple.refusal(left),
                Judgement::Back | Judgement::Known => Verdict::Accept.into(),
            };
        }
        let judgement = table.update(key, now, |kept| {
            let judgement = settings.judge(kept.as_ref(), now);
            match judgement {
                Judgement::New => {
                    *kept = Some(Kept { value: Memory::Waiting, until: now + settings.retry_window })
                }
                Judgement::Back => {
                    *kept = Some(Kept { value: Memory::Passed, until: now + settings.pass_lifetime })
                }
                Judgement::Early(_) | Judgement::Known => {}
            }
            judgement
        });
        match judgement {
            Judgement::New => {
                self.note(key, Event::Waiting, facts);
                triple.refusal(settings.delay)
            }
            Judgement::Early(left) => triple.refusal(left),
            Judgement::Back => {
                self.note(key, Event::Passed, facts);
                if settings.network_passes_after > 0 {
                    self.count(network, facts);
                }
                Verdict::Accept.into()
            }
            Judgement::Known => {
                self.renew(key, facts);
                Verdict::Accept.into()
            }
        }
    }

    /// Another triple of the network has passed.
    fn count(&self, network: Key, facts: &Facts<'_>) {
        let until = facts.now + self.entries.settings.pass_lifetime;
        let passed = self.entries.table.update(network, facts.now, |kept| {
            let passed = match kept {
                Some(Kept { value: Memory::Network(n), .. }) => n.saturating_add(1),
                _ => 1,
            };
            *kept = Some(Kept { value: Memory::Network(passed), until });
            passed
        });
        self.note(network, Event::Network(passed), facts);
    }

    /// What has passed is seen again.
    fn renew(&self, key: Key, facts: &Facts<'_>) {
        let until = facts.now + self.entries.settings.pass_lifetime;
        let renewed = self.entries.table.update(key, facts.now, |kept| {
            let kept = kept.as_mut().filter(|kept| until - kept.until >= RENEWAL_INTERVAL)?;
            kept.until = until;
            Some(kept.value)
        });
        match renewed {
            Some(Memory::Passed) => self.note(key, Event::Passed, facts),
            Some(Memory::Network(passed)) => self.note(key, Event::Network(passed), facts),
            Some(Memory::Waiting) | None => {}
        }
    }

    fn note(&self, key: Key, event: Event, facts: &Facts<'_>) {
        self.keeper.note(Record { event, unix_time: facts.unix_time, key: key.0 });
    }
}

impl Drop for Greylist {
    fn drop(&mut self) {
        self.finish();
    }
}

impl Policy for Greylist {
    fn name(&self) -> &str {
        &self.name
    }

    fn phases(&self) -> Phases {
        Phases::of(Phase::Recipient) | Phases::of(Phase::Data)
    }

    fn is_guard(&self) -> bool {
        true
    }

    fn check(&self, phase: Phase, facts: &Facts<'_>) -> Answer {
        let is_null = matches!(facts.reverse_path, None | Some(ReversePath::Null));
        let recipient = match phase {
            Phase::Recipient if !is_null => facts.recipient,
            // A notification has one recipient; of several the first stands for all (RFC 6647 §5).
            Phase::Data if is_null => facts.recipients.first(),
            _ => None,
        };
        match recipient {
            Some(recipient) => {
                self.decide(facts, &Triple::new(facts.peer.ip(), facts.reverse_path, recipient))
            }
            None => Verdict::Accept.into(),
        }
    }
}

/// What a triple that is seen now is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Judgement {
    New,
    Early(Duration),
    Back,
    Known,
}

impl GreylistSettings {
    fn judge(&self, kept: Option<&Kept<Memory>>, now: Instant) -> Judgement {
        match kept {
            None => Judgement::New,
            Some(Kept { value: Memory::Waiting, until }) => {
                let waited = self.retry_window.saturating_sub(until.saturating_duration_since(now));
                match self.delay.checked_sub(waited) {
                    None | Some(Duration::ZERO) => Judgement::Back,
                    Some(left) => Judgement::Early(left),
                }
            }
            Some(_) => Judgement::Known,
        }
    }

    /// How long what `memory` says is remembered.
    fn lifetime(&self, memory: Memory) -> Duration {
        match memory {
            Memory::Waiting => self.retry_window,
            Memory::Passed | Memory::Network(_) => self.pass_lifetime,
        }
    }
}

impl Entries {
    /// What was written down before. A wall clock that has gone back since makes nothing younger than new.
    fn restore(&self, record: Record, now: Instant, unix_time: u64) {
        let Record { event, unix_time: seen, key } = record;
        let value = match event {
            Event::Waiting => Memory::Waiting,
            Event::Passed => Memory::Passed,
            Event::Network(passed) => Memory::Network(passed),
        };
        let age = Duration::from_secs(unix_time.saturating_sub(seen));
        match self.settings.lifetime(value).checked_sub(age) {
            Some(left) if !left.is_zero() => self.table.insert(Key(key), value, now + left, now),
            // What it says has been over for long, and so is what was said before it.
            _ => self.table.remove(&Key(key)),
        }
    }

    /// Everything that is remembered, as it is written down.
    fn for_each(&self, now: Instant, unix_time: u64, mut write: impl FnMut(Record)) {
        self.table.for_each(now, |key, kept| {
            let age =
                self.settings.lifetime(kept.value).saturating_sub(kept.until.saturating_duration_since(now));
            let event = match kept.value {
                Memory::Waiting => Event::Waiting,
                Memory::Passed => Event::Passed,
                Memory::Network(passed) => Event::Network(passed),
            };
            write(Record { event, unix_time: unix_time.saturating_sub(age.as_secs()), key: key.0 });
        });
    }
}

/// Where mail comes from, whose it is, and for whom.
struct Triple {
    network: IpNet,
    sender: String,
    recipient: String,
}

impl Triple {
    fn new(peer: IpAddr, sender: Option<&ReversePath>, recipient: &ForwardPath) -> Self {
        let sender = match sender {
            None | Some(ReversePath::Null) => String::new(),
            Some(ReversePath::Mailbox(mailbox)) => {
                format!("{}@{}", lasting_part(mailbox.local_part()), mailbox.canonical_domain())
            }
        };
        let recipient = match recipient {
            ForwardPath::Postmaster => "postmaster".into(),
            ForwardPath::Mailbox(mailbox) => {
                format!("{}@{}", mailbox.local_part().to_ascii_lowercase(), mailbox.canonical_domain())
            }
        };
        let peer = peer.to_canonical();
        let size = if peer.is_ipv4() { V4_PREFIX } else { V6_PREFIX };
        let network = IpNet::new(peer, size).expect("the size is of this kind of address").trunc();
        Triple { network, sender, recipient }
    }

    fn key(&self) -> Key {
        digest(&[b"triple", &network_octets(self.network), self.sender.as_bytes(), self.recipient.as_bytes()])
    }

    fn network_key(&self) -> Key {
        digest(&[b"network", &network_octets(self.network)])
    }

    fn refusal(&self, left: Duration) -> Answer {
        let seconds = left.as_secs() + u64::from(left.subsec_nanos() > 0);
        let mut refusal = Refusal::new(Status::temporary(7, 1), "").keyed(self.network.to_string());
        refusal.text = format!("Greylisted, try again in {seconds} seconds").into();
        refusal.into()
    }
}

/// What stays the same of a sender's local part from one message to the next. Lists and bulk senders put a number or a tag for each
/// message there (VERP, BATV): with it every message would be the first of its triple, and wait. Nothing is lost by taking it away: that
/// a peer comes back at all is what is tested.
fn lasting_part(local: &str) -> String {
    // prvs=TAG=local: the tag changes every day.
    let local = match local.split_once('=') {
        Some((word, rest)) if word.eq_ignore_ascii_case("prvs") => {
            rest.split_once('=').map_or(rest, |(_, local)| local)
        }
        _ => local,
    };
    let local = local.split_once('+').map_or(local, |(before, _)| before);
    let mut lasting = String::with_capacity(local.len());
    for run in local.as_bytes().chunk_by(|a, b| a.is_ascii_digit() == b.is_ascii_digit()) {
        match run[0].is_ascii_digit() {
            true => lasting.push('#'),
            // Cut between ASCII and what is not a digit, so characters stay whole.
            false => write!(lasting, "{}", String::from_utf8_lossy(run).to_ascii_lowercase())
                .expect("a string takes everything"),
        }
    }
    lasting
}

fn network_octets(network: IpNet) -> Vec<u8> {
    match network {
        IpNet::V4(net) => net.network().octets().to_vec(),
        IpNet::V6(net) => net.network().octets().to_vec(),
    }
}

/// Parts of different sizes never run together: each has its size before it.
fn digest(parts: &[&[u8]]) -> Key {
    let mut context = Context::new(&SHA256);
    for part in parts {
        context.update(&(part.len() as u32).to_le_bytes());
        context.update(part);
    }
    Key(context.finish().as_ref()[..16].try_into().expect("SHA-256 has 32 octets"))
}

fn unix_now() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::PathBuf;

    use super::*;

    const DAY: u64 = 86_400;

    fn settings() -> GreylistSettings {
        GreylistSettings {
            delay: Duration::from_secs(300),
            retry_window: Duration::from_secs(DAY),
            pass_lifetime: Duration::from_secs(10 * DAY),
            network_passes_after: 2,
            entries_max: 1000,
        }
    }

    /// A file in a folder of its own, and the clocks of a machine.
    struct Lab {
        _folder: tempfile::TempDir,
        file: PathBuf,
        start: (Instant, u64),
        /// Seconds since then, and how far the wall clock is from where it would be.
        passed: f64,
        jumped: i64,
    }

    impl Lab {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let file = folder.path().join("greylist/greylist");
            // Near the truth: the thread that writes has clocks of its own.
            let start = (Instant::now(), unix_now());
            Lab { _folder: folder, file, start, passed: 0.0, jumped: 0 }
        }

        fn now(&self) -> Instant {
            self.start.0 + Duration::from_secs_f64(self.passed)
        }

        fn unix_time(&self) -> u64 {
            (self.start.1 + self.passed as u64).saturating_add_signed(self.jumped)
        }

        fn open(&self, settings: GreylistSettings) -> Greylist {
            Greylist::open("greylist", settings, &self.file, self.now(), self.unix_time()).unwrap()
        }

        /// What `from` at `peer` hears who wants to send to `to`.
        fn ask(&self, greylist: &Greylist, peer: &str, from: &str, to: &str, how: How) -> String {
            let from = ReversePath::parse(from, true).unwrap();
            let to = [ForwardPath::parse(to, true).unwrap()];
            let facts = Facts {
                now: self.now(),
                unix_time: self.unix_time(),
                reverse_path: Some(&from),
                is_rehearsal: how == How::Rehearsed,
                ..Facts::of(peer)
            };
            let answer = match how {
                How::AtData => greylist.check(Phase::Data, &Facts { recipients: &to, ..facts }),
                _ => greylist.check(Phase::Recipient, &Facts { recipient: Some(&to[0]), ..facts }),
            };
            match answer {
                Answer::Now(Ok(Verdict::Accept)) => "ok".into(),
                Answer::Now(Ok(Verdict::Refuse(refusal))) => {
                    assert_eq!(refusal.status, Status::temporary(7, 1));
                    let text = refusal.text.strip_prefix("Greylisted, try again in ").unwrap();
                    text.strip_suffix(" seconds").unwrap().into()
                }
                other => panic!("{other:?}"),
            }
        }

        /// Asks at each of these times; what is heard.
        fn ask_at(&mut self, greylist: &Greylist, times: &[f64]) -> String {
            let ask = |time: &f64| {
                self.passed = *time;
                self.ask(greylist, "192.0.2.1", "a@s.example", "b@r.example", How::Usual)
            };
            times.iter().map(ask).collect::<Vec<_>>().join(" ")
        }
    }

    #[derive(Clone, Copy, PartialEq)]
    enum How {
        Usual,
        Rehearsed,
        AtData,
    }

    #[test]
    fn who_comes_back_in_time_passes_to_the_second() {
        let (hour, day) = (3600.0, DAY as f64);
        let table: [(&str, &[f64], &str); 9] = [
            ("the first is deferred", &[0.0], "300"),
            ("early ones wait for the rest", &[0.0, 1.0, 299.0, 299.5], "300 299 1 1"),
            ("to the second", &[0.0, 299.999, 300.0], "300 1 ok"),
            ("early ones do not begin anew", &[0.0, 200.0, 290.0, 301.0], "300 100 10 ok"),
            ("back at the end of the window", &[0.0, day - 0.001], "300 ok"),
            ("back too late is new", &[0.0, day, day + 299.0, day + 300.0], "300 300 1 ok"),
            (
                "passed, it passes for its lifetime",
                &[0.0, 300.0, 301.0, 300.0 + 10.0 * day - 1.0],
                "300 ok ok ok",
            ),
            ("and not for longer", &[0.0, 300.0, 300.0 + 10.0 * day], "300 ok 300"),
            (
                "each time it is seen is a new lifetime",
                &[0.0, 300.0, 9.0 * day, 18.0 * day, 28.0 * day - hour, 38.0 * day],
                "300 ok ok ok ok 300",
            ),
        ];
        for (claim, times, heard) in table {
            let mut lab = Lab::new();
            let greylist = lab.open(GreylistSettings { network_passes_after: 0, ..settings() });
            assert_eq!(lab.ask_at(&greylist, times), heard, "{claim}");
        }
    }

    /// Lines of (seconds, wall clock off by, what, heard); `open` is a new process.
    #[test]
    fn no_jump_of_the_wall_clock_holds_mail_for_longer_than_the_delay() {
        let back = -(400 * DAY as i64);
        type Line = (f64, i64, &'static str, &'static str);
        let table: [(&str, &[Line]); 6] = [
            (
                "within a process it is not asked",
                &[(0.0, 0, "ask", "300"), (10.0, back, "ask", "290"), (300.0, back, "ask", "ok")],
            ),
            ("nor forward", &[(0.0, 0, "ask", "300"), (10.0, -back, "ask", "290"), (300.0, 0, "ask", "ok")]),
            (
                "a restart keeps what was waited",
                &[
                    (0.0, 0, "ask", "300"),
                    (100.0, 0, "open", ""),
                    (100.0, 0, "ask", "200"),
                    (300.0, 0, "ask", "ok"),
                ],
            ),
            (
                "a clock gone back at a restart costs one delay",
                &[
                    (0.0, 0, "ask", "300"),
                    (100.0, back, "open", ""),
                    (100.0, back, "ask", "300"),
                    (400.0, back, "ask", "ok"),
                ],
            ),
            (
                "what has passed still does",
                &[
                    (0.0, 0, "ask", "300"),
                    (300.0, 0, "ask", "ok"),
                    (301.0, back, "open", ""),
                    (301.0, back, "ask", "ok"),
                ],
            ),
            (
                "a clock gone forward at a restart forgets, no more",
                &[
                    (0.0, 0, "ask", "300"),
                    (300.0, 0, "ask", "ok"),
                    (301.0, -back, "open", ""),
                    (301.0, -back, "ask", "300"),
                    (601.0, -back, "ask", "ok"),
                ],
            ),
        ];
        for (claim, steps) in table {
            let mut lab = Lab::new();
            let mut greylist = lab.open(settings());
            for (time, jumped, what, heard) in steps {
                (lab.passed, lab.jumped) = (*time, *jumped);
                if *what == "open" {
                    drop(greylist);
                    greylist = lab.open(settings());
                } else {
                    assert_eq!(lab.ask_at(&greylist, &[*time]), *heard, "{claim}, at {time}");
                }
            }
        }
    }

    #[test]
    fn a_triple_is_a_network_a_sender_and_a_recipient() {
        let first = ("192.0.2.1", "list-123-bounces+b=r.example@S.example", "Bob@r.example");
        let table = [
            (("192.0.2.254", first.1, first.2), true),
            (("::ffff:192.0.2.9", first.1, first.2), true),
            (("192.0.3.1", first.1, first.2), false),
            (("192.0.2.1", "list-7-bounces+other=r.example@s.example", first.2), true),
            (("192.0.2.1", "LIST-00-Bounces@s.example", first.2), true),
            (("192.0.2.1", "prvs=6711f2a3b4=list-9-bounces@s.example", first.2), true),
            (("192.0.2.1", "list-bounces@s.example", first.2), false),
            (("192.0.2.1", "list-123-bounces@t.example", first.2), false),
            (("192.0.2.1", "", first.2), true), // is not asked about here
            (("192.0.2.1", first.1, "bob@R.example"), true),
            (("192.0.2.1", first.1, "bob2@r.example"), false),
            (("192.0.2.1", first.1, "bob+x@r.example"), false),
            (("192.0.2.1", first.1, "postmaster"), false),
        ];
        for ((peer, from, to), passes) in table {
            let mut lab = Lab::new();
            let greylist = lab.open(settings());
            lab.ask(&greylist, first.0, first.1, first.2, How::Usual);
            lab.passed = 300.0;
            let heard = lab.ask(&greylist, peer, from, to, How::Usual);
            assert_eq!(heard, if passes { "ok" } else { "300" }, "{peer} {from} {to}");
        }
        let mut lab = Lab::new();
        let greylist = lab.open(settings());
        let from = |peer| lab.ask(&greylist, peer, "ä1é2@s.example", "b@r.example", How::Usual);
        assert_eq!(from("2001:db8:0:1::1"), "300");
        lab.passed = 300.0;
        let from = |peer| lab.ask(&greylist, peer, "ä7é0@s.example", "b@r.example", How::Usual);
        assert_eq!((from("2001:db8:0:1:ffff::2"), from("2001:db8:0:2::1")), ("ok".into(), "300".into()));
    }

    #[test]
    fn verifiers_of_senders_are_not_deferred_and_notifications_are_at_data() {
        let mut lab = Lab::new();
        let greylist = lab.open(settings());
        let ask = |lab: &Lab, how| lab.ask(&greylist, "192.0.2.1", "", "b@r.example", how);
        assert_eq!(ask(&lab, How::Usual), "ok");
        assert_eq!(ask(&lab, How::AtData), "300");
        lab.passed = 300.0;
        assert_eq!((ask(&lab, How::Usual), ask(&lab, How::AtData)), ("ok".into(), "ok".into()));
        let with_sender = lab.ask(&greylist, "198.51.100.1", "a@s.example", "b@r.example", How::AtData);
        assert_eq!(with_sender, "ok", "it was asked about at RCPT");
    }

    #[test]
    fn a_network_of_which_enough_have_passed_passes() {
        for (passes_after, heard) in [(0, "300"), (1, "ok"), (2, "ok"), (3, "300")] {
            let mut lab = Lab::new();
            let settings = GreylistSettings { network_passes_after: passes_after, ..settings() };
            let greylist = lab.open(settings.clone());
            let ask = |lab: &Lab, greylist: &Greylist, peer, to| {
                lab.ask(greylist, peer, "a@s.example", to, How::Usual)
            };
            for to in ["b@r.example", "c@r.example"] {
                ask(&lab, &greylist, "192.0.2.1", to);
            }
            lab.passed = 300.0;
            for to in ["b@r.example", "b@r.example", "c@r.example"] {
                assert_eq!(ask(&lab, &greylist, "192.0.2.2", to), "ok");
            }
            assert_eq!(ask(&lab, &greylist, "192.0.2.3", "d@r.example"), heard, "after {passes_after}");
            assert_eq!(ask(&lab, &greylist, "192.0.3.3", "d@r.example"), "300", "another network");
            drop(greylist);
            let greylist = lab.open(settings);
            assert_eq!(ask(&lab, &greylist, "192.0.2.3", "e@r.example"), heard, "in the next life");
            // Seen again each nine days it goes on to pass, though its lifetime is ten.
            for _ in 0..3 {
                lab.passed += 9.0 * DAY as f64;
                assert_eq!(ask(&lab, &greylist, "192.0.2.3", "f@r.example"), heard);
            }
        }
    }

    #[test]
    fn a_rehearsal_says_the_same_and_remembers_nothing() {
        let mut lab = Lab::new();
        let greylist = lab.open(settings());
        let ask = |lab: &Lab, how| lab.ask(&greylist, "192.0.2.1", "a@s.example", "b@r.example", how);
        for (time, rehearsed, heard) in
            [(0.0, "300", "300"), (100.0, "200", "200"), (300.0, "ok", "ok"), (301.0, "ok", "ok")]
        {
            lab.passed = time;
            assert_eq!(ask(&lab, How::Rehearsed), rehearsed, "at {time}");
            assert_eq!(ask(&lab, How::Usual), heard, "at {time}");
        }
        let lab = Lab::new();
        let greylist = lab.open(settings());
        assert_eq!(lab.ask(&greylist, "192.0.2.1", "a@s.example", "b@r.example", How::Rehearsed), "300");
        assert!(greylist.entries.table.is_empty());
        drop(greylist);
        assert!(
            !lab.file.parent().unwrap().exists(),
            "no file is touched before there is something to write"
        );
    }

    #[test]
    fn a_damaged_file_is_used_as_far_as_it_is_intact_and_kept() {
        let mut lab = Lab::new();
        let greylist = lab.open(settings());
        let ask = |lab: &Lab, greylist: &Greylist, n: u32| {
            lab.ask(greylist, &format!("10.0.{n}.1"), "a@s.example", "b@r.example", How::Usual)
        };
        (0..5).for_each(|n| assert_eq!(ask(&lab, &greylist, n), "300"));
        drop(greylist);
        let mut octets = fs::read(&lab.file).unwrap();
        assert_eq!(octets.len(), 6 * 32);
        octets[32 * 3 + 20] ^= 1;
        fs::write(&lab.file, &octets).unwrap();
        lab.passed = 300.0;
        // Somebody only looks: nothing is changed.
        drop(lab.open(settings()));
        assert_eq!(fs::read(&lab.file).unwrap(), octets);
        let greylist = lab.open(settings());
        let heard: Vec<_> = (0..5).map(|n| ask(&lab, &greylist, n)).collect();
        assert_eq!(heard, ["ok", "ok", "300", "ok", "ok"]);
        drop(greylist);
        let aside = lab.file.with_file_name("greylist.damaged");
        assert_eq!(fs::read(aside).unwrap(), octets);
        let found = journal::read(&lab.file, |_| ()).unwrap();
        assert_eq!((found.damaged_size, found.torn_size), (0, 0));
        let greylist = lab.open(settings());
        for n in [0, 1, 3, 4] {
            assert_eq!(ask(&lab, &greylist, n), "ok");
        }
        // What cannot be read at all is begun anew.
        drop(greylist);
        fs::remove_file(&lab.file).unwrap();
        fs::create_dir(&lab.file).unwrap();
        let greylist = lab.open(settings());
        assert_eq!((ask(&lab, &greylist, 0), ask(&lab, &greylist, 0)), ("300".into(), "300".into()));
    }

    /// A million triples: what is remembered is bounded, so is the file, and what passed stays when strangers crowd in.
    #[test]
    fn a_million_strangers_fill_neither_memory_nor_the_disk() {
        let mut lab = Lab::new();
        let settings = GreylistSettings { entries_max: 20_000, ..settings() };
        let greylist = lab.open(settings.clone());
        let known = |lab: &Lab, greylist: &Greylist| {
            lab.ask(greylist, "192.0.2.1", "a@s.example", "b@r.example", How::Usual)
        };
        known(&lab, &greylist);
        lab.passed = 300.0;
        assert_eq!(known(&lab, &greylist), "ok");
        let from = ReversePath::parse("a@s.example", false).unwrap();
        let to = ForwardPath::parse("b@r.example", false).unwrap();
        for n in 0..1_000_000_u32 {
            let peer = std::net::Ipv4Addr::from(0x0a00_0000 + n * 256).to_string();
            let facts = Facts { now: lab.now(), unix_time: lab.unix_time(), ..Facts::of(&peer) };
            let facts = Facts { reverse_path: Some(&from), recipient: Some(&to), ..facts };
            greylist.check(Phase::Recipient, &facts);
        }
        assert!(greylist.entries.table.len() <= 20_064);
        assert_eq!(known(&lab, &greylist), "ok");
        drop(greylist);
        let size = fs::metadata(&lab.file).unwrap().len();
        assert!(size <= 32 * (2 * 20_064 + 2 * 16_384 + 40_000), "{size}");
        let greylist = lab.open(settings);
        assert_eq!(known(&lab, &greylist), "ok");
    }
}
