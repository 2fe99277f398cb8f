//! What a shard counts and times, and what it tells of itself when somebody asks.
//!
//! Only the shard's thread touches it: a counter is an addition, a time an addition in a histogram. Whoever wants to know has the shard itself
//! copy it ([`Shard::read_meters`]), which takes some tens of microseconds, and adds up what the shards have said.
//!
//! Bounds: the kinds of refusals that are told apart are few ([`KINDS_MAX`]); nothing here depends on how many peers or messages there are.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::fmt::Write;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use super::Shard;
use crate::mail::{MessageId, Phase, Refusal, TlsVersion};
use crate::policy::{Facts, Report, Resource, Verdict};
use crate::shard::connection::admission;
use crate::smtp::{Authentication, NotStored};
use crate::spool::{Counters, Waiting};
use crate::telemetry::distribution::{Distribution, Recorded, Scale};
use crate::telemetry::{self, Event, Observer};
use crate::tls::Acceptor;

/// Kinds of refusals or replies that are told apart; of more than these it is only known how many there were.
const KINDS_MAX: usize = 256;
/// What they are counted as.
const OTHERS: &str = "other";

/// See the module.
pub struct Meters {
    observer: Option<Arc<dyn Observer>>,
    sessions: Cell<u64>,
    greeted: Cell<u64>,
    accept_failures: Cell<u64>,
    greeting: Distribution,
    /// By [`tls_place`].
    messages: [Cell<u64>; 3],
    octets: Cell<u64>,
    recipients: Cell<u64>,
    not_stored: [Cell<u64>; 3],
    end_of_data: Distribution,
    policy_wait: [Distribution; Phase::ALL.len()],
    refusals: RefCell<HashMap<Refused, u64>>,
    replies: RefCell<HashMap<Reply, u64>>,
    tls: [Cell<u64>; 2],
    tls_failures: [Cell<u64>; NoTls::ALL.len()],
    handshake: Distribution,
    authentications: [Cell<u64>; 3],
    pub(super) write: Distribution,
    pub(super) sync: Distribution,
    commit: Distribution,
    io_failures: [Cell<u64>; 4],
}

/// A kind of refusal.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Refused {
    /// When.
    pub phase: Phase,
    /// By whom.
    pub policy: Box<str>,
    /// Why: a status code, or what has run out.
    pub reason: Box<str>,
}

/// A kind of negative reply: three digits, and the status behind them, if there is one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Reply {
    code: [u8; 3],
    status: [u8; 9],
    status_size: u8,
}

impl Reply {
    /// Of a reply's line, if it is negative.
    fn of(line: &[u8]) -> Option<Reply> {
        let (code, rest) = line.split_first_chunk::<3>()?;
        // The last line of a reply, or its only one: each is counted once.
        if !matches!(code[0], b'4' | b'5')
            || !code.iter().all(u8::is_ascii_digit)
            || rest.first() != Some(&b' ')
        {
            return None;
        }
        let word = rest[1..].split(|c| *c == b' ' || *c == b'\r').next().unwrap_or_default();
        let mut reply = Reply { code: *code, ..Reply::default() };
        let is_status = word.first() == Some(&code[0]) && word.get(1) == Some(&b'.');
        if is_status
            && word.len() <= reply.status.len()
            && word.iter().all(|c| c.is_ascii_digit() || *c == b'.')
        {
            reply.status[..word.len()].copy_from_slice(word);
            reply.status_size = word.len() as u8;
        }
        Some(reply)
    }

    /// The reply code.
    pub fn code(&self) -> &str {
        str::from_utf8(&self.code).expect("digits")
    }

    /// The enhanced status; empty: none.
    pub fn status(&self) -> &str {
        str::from_utf8(&self.status[..usize::from(self.status_size)]).expect("digits and dots")
    }
}

/// Why a handshake came to nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoTls {
    /// The peer has gone, or TLS has failed.
    Ended,
    /// It took too long.
    Time,
    /// The connection broke.
    Broken,
    /// Too many at a time.
    Busy,
}

impl NoTls {
    const ALL: [NoTls; 4] = [NoTls::Ended, NoTls::Time, NoTls::Broken, NoTls::Busy];

    fn word(self) -> &'static str {
        match self {
            NoTls::Ended => "ended",
            NoTls::Time => "time",
            NoTls::Broken => "broken",
            NoTls::Busy => "busy",
        }
    }
}

/// What a log's I/O is, as [`super::disk`] names it.
pub const OPERATIONS: [&str; 4] = ["prepare", "write", "sync", "remove"];
const NOT_STORED: [&str; 3] = ["no_room", "busy", "failed"];
const TLS: [&str; 3] = ["none", "TLS1.2", "TLS1.3"];
const AUTHENTICATIONS: [&str; 3] = ["accepted", "refused", "unavailable"];

fn tls_place(version: Option<TlsVersion>) -> usize {
    match version {
        None => 0,
        Some(TlsVersion::Tls12) => 1,
        Some(TlsVersion::Tls13) => 2,
    }
}

fn add(count: &Cell<u64>, more: u64) {
    count.set(count.get().wrapping_add(more));
}

/// Adds one to what is counted under `key`, or under `others` where there are too many kinds.
fn add_kind<K: std::hash::Hash + Eq>(kinds: &RefCell<HashMap<K, u64>>, key: K, others: impl FnOnce() -> K) {
    let mut kinds = kinds.borrow_mut();
    if let Some(count) = kinds.get_mut(&key) {
        *count += 1;
        return;
    }
    let key = if kinds.len() < KINDS_MAX { key } else { others() };
    *kinds.entry(key).or_default() += 1;
}

/// What has run out, where it is not a policy that has refused.
fn admission_reason(refusal: &Refusal) -> &'static str {
    let resources = [Resource::Sessions, Resource::Memory, Resource::Queue, Resource::Storage];
    let resource = resources.into_iter().find(|resource| resource.refusal().text == refusal.text);
    match resource {
        Some(resource) => resource.word(),
        None if refusal.text == admission::NO_ROOM.text => "room",
        None if refusal.status == admission::QUEUE_FULL.status
            && refusal.text == admission::QUEUE_FULL.text =>
        {
            // The same words are said while the shard ends.
            "not_accepting"
        }
        None if refusal.status == admission::MEDIUM_FAILED.status => "medium",
        None if refusal.text == "Too many connections" => "connections",
        None if refusal.text.starts_with("Too many errors from your address") => "banned",
        None => OTHERS,
    }
}

impl Meters {
    /// Nothing was counted yet; `observer` is told of events.
    pub fn new(observer: Option<Arc<dyn Observer>>) -> Self {
        let seconds = || Distribution::new(Scale::Seconds);
        Meters {
            observer,
            sessions: Cell::new(0),
            greeted: Cell::new(0),
            accept_failures: Cell::new(0),
            greeting: seconds(),
            messages: Default::default(),
            octets: Cell::new(0),
            recipients: Cell::new(0),
            not_stored: Default::default(),
            end_of_data: seconds(),
            policy_wait: std::array::from_fn(|_| seconds()),
            refusals: RefCell::default(),
            replies: RefCell::default(),
            tls: Default::default(),
            tls_failures: Default::default(),
            handshake: seconds(),
            authentications: Default::default(),
            write: seconds(),
            sync: seconds(),
            commit: Distribution::new(Scale::Count),
            io_failures: Default::default(),
        }
    }

    fn observe(&self, event: Event<'_>) {
        if let Some(observer) = &self.observer {
            observer.observe(&event);
        }
    }

    /// Somebody has connected and is given a session, which is one of so many.
    pub fn connected(&self, peer: SocketAddr, listener: SocketAddr, sessions: usize) {
        add(&self.sessions, 1);
        tracing::debug!(name: "session.connect", %peer, %listener, sessions, "connected");
        self.observe(Event::SessionConnect { peer, listener, sessions });
    }

    /// The session was greeted, so long after it had connected. `is_ours`: of that time nothing was the peer's.
    pub fn greeted(&self, peer: SocketAddr, listener: SocketAddr, wait: Duration, is_ours: bool) {
        add(&self.greeted, 1);
        if is_ours {
            self.greeting.record(wait);
        }
        tracing::debug!(name: "session.accepted", %peer, %listener, wait_us = wait.as_micros() as u64, "greeted");
        self.observe(Event::SessionAccepted { peer, listener, wait });
    }

    /// Accepting has to pause.
    pub fn accept_failed(&self) {
        add(&self.accept_failures, 1);
    }

    /// Something was refused, or would have been if it were not for a dry run.
    pub fn refused(
        &self,
        phase: Phase,
        facts: &Facts<'_>,
        policy: &str,
        verdict: &str,
        refusal: &Refusal,
        is_dry: bool,
    ) {
        telemetry::refused(phase, facts, policy, verdict, refusal, is_dry);
        self.count_refused(phase, facts, policy, refusal, is_dry);
    }

    fn count_refused(&self, phase: Phase, facts: &Facts<'_>, policy: &str, refusal: &Refusal, is_dry: bool) {
        if is_dry {
            return;
        }
        let mut reason = String::new();
        match policy {
            "admission" => reason.push_str(admission_reason(refusal)),
            _ => write!(reason, "{}", refusal.status).expect("a string takes what is written to it"),
        }
        let refused = |reason: &str| Refused { phase, policy: policy.into(), reason: reason.into() };
        let others = || Refused { phase, policy: OTHERS.into(), reason: OTHERS.into() };
        add_kind(&self.refusals, refused(&reason), others);
        self.observe(Event::SessionRejected { peer: facts.peer, phase, policy, refusal });
    }

    /// The gateway itself has refused.
    pub fn not_admitted(&self, phase: Phase, facts: &Facts<'_>, refusal: &Refusal) {
        let verdict = Verdict::Refuse(refusal.clone());
        self.refused(phase, facts, "admission", verdict.word(), refusal, false);
    }

    /// A policy has said something beyond acceptance.
    pub fn reported(&self, report: &Report<'_>, facts: &Facts<'_>) {
        telemetry::reported(report, facts);
        if let Some(refusal) = report.refusal {
            self.count_refused(report.phase, facts, report.policy, refusal, report.is_dry);
        }
    }

    /// A session waited so long for whoever could not decide at once.
    pub fn waited(&self, phase: Phase, wait: Duration) {
        self.policy_wait[phase as usize].record(wait);
    }

    /// These replies are sent.
    pub fn replied(&self, replies: &[u8]) {
        let mut rest = replies;
        loop {
            // Most are positive, and short.
            if matches!(rest.first(), Some(b'4' | b'5'))
                && let Some(reply) = Reply::of(rest)
            {
                add_kind(&self.replies, reply, || Reply { code: reply.code, ..Reply::default() });
            }
            let Some(end) = memchr::memchr(b'\n', rest) else { return };
            rest = &rest[end + 1..];
            if rest.is_empty() {
                return;
            }
        }
    }

    /// A message is durable, so long after end-of-data.
    pub fn queued(&self, queued: Queued) {
        let Queued { id, peer, tls, size, recipients, wait } = queued;
        add(&self.messages[tls_place(tls)], 1);
        add(&self.octets, size);
        add(&self.recipients, recipients as u64);
        self.end_of_data.record(wait);
        self.observe(Event::MessageQueued { id, peer, size, recipients, wait });
    }

    /// A message of this size could not be made durable.
    pub fn not_queued(&self, peer: SocketAddr, size: u64, why: NotStored) {
        let place = match why {
            NotStored::NoRoom => 0,
            NotStored::TooBusy => 1,
            NotStored::Failed => 2,
        };
        add(&self.not_stored[place], 1);
        let reason = NOT_STORED[place];
        tracing::warn!(name: "message.enqueue_error", %peer, size, reason, "not accepted: the message could not be made durable");
        self.observe(Event::MessageEnqueueError { peer, size, reason });
    }

    /// A handshake has succeeded.
    pub fn secured(&self, version: TlsVersion, duration: Duration) {
        add(&self.tls[tls_place(Some(version)) - 1], 1);
        self.handshake.record(duration);
    }

    /// Or not.
    pub fn not_secured(&self, why: NoTls) {
        add(&self.tls_failures[why as usize], 1);
    }

    /// A password was verified.
    pub fn authenticated(&self, outcome: &Authentication) {
        let place = match outcome {
            Authentication::Accepted => 0,
            Authentication::Refused => 1,
            Authentication::Unavailable => 2,
        };
        add(&self.authentications[place], 1);
    }

    /// So many messages have become durable together.
    pub fn committed(&self, count: u64) {
        if count > 0 {
            self.commit.record_value(count);
        }
    }

    /// One of [`OPERATIONS`] has failed.
    pub fn io_failed(&self, operation: usize) {
        add(&self.io_failures[operation], 1);
    }

    /// So many messages of a log are not done.
    pub fn queue_depth(&self, log: u32, depth: usize) {
        tracing::debug!(name: "queue.depth", log, depth, "queue");
        self.observe(Event::QueueDepth { log, depth });
    }
}

/// A message that has become durable.
pub struct Queued {
    /// Its id.
    pub id: MessageId,
    /// Whose.
    pub peer: SocketAddr,
    /// What it came over.
    pub tls: Option<TlsVersion>,
    /// Octets of its content.
    pub size: u64,
    /// How many get it.
    pub recipients: usize,
    /// Since end-of-data.
    pub wait: Duration,
}

/// What a shard says of itself: plain data, for any thread.
#[derive(Clone)]
pub struct ShardReading {
    /// It takes mail.
    pub is_ready: bool,
    /// How much is asked of peers.
    pub level: u64,
    /// Connections.
    pub sessions_open: usize,
    /// Connections there may be.
    pub sessions_max: usize,
    /// Messages there may be in its queue.
    pub depth_max: usize,
    /// Budgets: name, used, at most; octets.
    pub budgets: [(&'static str, usize, usize); 3],
    /// What was counted, by words that are a label's value where the metric has one.
    pub counts: Counts,
    /// What was timed.
    pub times: Times,
    /// What each of its logs says.
    pub logs: Vec<LogReading>,
    /// Shows certificates, where there are any.
    pub acceptor: Option<Arc<Acceptor>>,
}

/// Counters of a shard.
#[derive(Clone, Debug)]
pub struct Counts {
    /// Connections that were given a session.
    pub sessions: u64,
    /// Sessions that were greeted.
    pub greeted: u64,
    /// Times accepting had to pause.
    pub accept_failures: u64,
    /// Octets accepted.
    pub octets: u64,
    /// Recipients accepted.
    pub recipients: u64,
    /// Messages by the version of TLS.
    pub messages: [(&'static str, u64); 3],
    /// Messages that could not be made durable, by the reason.
    pub not_stored: [(&'static str, u64); 3],
    /// Sessions by the version of TLS.
    pub tls: [(&'static str, u64); 2],
    /// Handshakes that came to nothing, by the reason.
    pub tls_failures: [(&'static str, u64); 4],
    /// Verified passwords by the outcome.
    pub authentications: [(&'static str, u64); 3],
    /// Failures of the spool by the operation.
    pub io_failures: [(&'static str, u64); 4],
    /// Refusals.
    pub refusals: Vec<(Refused, u64)>,
    /// Negative replies.
    pub replies: Vec<(Reply, u64)>,
}

/// Histograms of a shard.
#[derive(Clone, Debug)]
pub struct Times {
    /// From the connection to the greeting.
    pub greeting: Recorded,
    /// Handshakes.
    pub handshake: Recorded,
    /// From end-of-data until it is durable.
    pub end_of_data: Recorded,
    /// Waits for policies.
    pub policy_wait: [(Phase, Recorded); Phase::ALL.len()],
    /// Writes.
    pub write: Recorded,
    /// Syncs.
    pub sync: Recorded,
    /// Messages that became durable together.
    pub commit: Recorded,
}

/// What a log says of itself.
#[derive(Clone, Debug)]
pub struct LogReading {
    /// Messages that are not done.
    pub depth: usize,
    /// Messages of them that are held.
    pub held: usize,
    /// What it has done.
    pub counters: Counters,
    /// Octets of records that are needed.
    pub live_size: u64,
    /// Segments with records.
    pub segments: usize,
    /// Segments without.
    pub free_segments: usize,
    /// Octets of a segment.
    pub segment_size: u32,
    /// Its lanes.
    pub lanes: Vec<LaneReading>,
}

/// What waits for one target.
#[derive(Clone, Debug)]
pub struct LaneReading {
    /// The target's name; empty: it is not decided yet who gets it.
    pub target: Arc<str>,
    /// What waits.
    pub waiting: Waiting,
    /// What the deliveries have.
    pub handed_off: usize,
    /// When the oldest of all these came, in seconds since 1970.
    pub oldest: Option<u64>,
}

fn named<const N: usize>(names: [&'static str; N], counts: &[Cell<u64>; N]) -> [(&'static str, u64); N] {
    std::array::from_fn(|n| (names[n], counts[n].get()))
}

impl Shard {
    /// What there is to say now.
    pub(crate) fn read_meters(&self) -> ShardReading {
        let (meters, settings) = (&*self.meters, self.settings());
        // All listeners show the same certificates.
        let listening = self.listening.borrow();
        let acceptor = listening.iter().find_map(|listening| listening.service.borrow().acceptor.clone());
        ShardReading {
            is_ready: self.disk().is_accepting() && self.ending.get() == super::Ending::No,
            level: self.level() as u64,
            sessions_open: self.connections.borrow().len(),
            sessions_max: settings.sessions_max,
            depth_max: settings.depth_max,
            budgets: [
                ("content", self.content_memory.get(), settings.content_memory_max),
                ("envelopes", self.envelope_memory.get(), settings.content_memory_max),
                self.disk().cache_use(),
            ],
            counts: meters.counts(),
            times: meters.times(),
            logs: self.disks.borrow().iter().map(|disk| disk.read()).collect(),
            acceptor,
        }
    }
}

impl Meters {
    fn counts(&self) -> Counts {
        let refusals = self.refusals.borrow();
        let replies = self.replies.borrow();
        Counts {
            sessions: self.sessions.get(),
            greeted: self.greeted.get(),
            accept_failures: self.accept_failures.get(),
            octets: self.octets.get(),
            recipients: self.recipients.get(),
            messages: named(TLS, &self.messages),
            not_stored: named(NOT_STORED, &self.not_stored),
            tls: named([TLS[1], TLS[2]], &self.tls),
            tls_failures: named(NoTls::ALL.map(NoTls::word), &self.tls_failures),
            authentications: named(AUTHENTICATIONS, &self.authentications),
            io_failures: named(OPERATIONS, &self.io_failures),
            refusals: refusals.iter().map(|(refused, count)| (refused.clone(), *count)).collect(),
            replies: replies.iter().map(|(reply, count)| (*reply, *count)).collect(),
        }
    }

    fn times(&self) -> Times {
        Times {
            greeting: self.greeting.read(),
            handshake: self.handshake.read(),
            end_of_data: self.end_of_data.read(),
            policy_wait: Phase::ALL.map(|phase| (phase, self.policy_wait[phase as usize].read())),
            write: self.write.read(),
            sync: self.sync.read(),
            commit: self.commit.read(),
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::mail::Status;

    /// What a shard says that has been given so many sessions and does nothing.
    pub fn reading(sessions: u64) -> ShardReading {
        let meters = Meters::new(None);
        let peer = "192.0.2.1:1".parse().unwrap();
        (0..sessions).for_each(|_| meters.connected(peer, peer, 1));
        ShardReading {
            is_ready: true,
            level: 0,
            sessions_open: 1,
            sessions_max: 10,
            depth_max: 100,
            budgets: [("content", 0, 1), ("envelopes", 0, 1), ("cache", 0, 1)],
            counts: meters.counts(),
            times: meters.times(),
            logs: Vec::new(),
            acceptor: None,
        }
    }

    #[test]
    fn negative_replies_are_told_apart_by_code_and_status() {
        let table: [(&str, &[(&str, &str)]); 10] = [
            ("250 2.0.0 Ok\r\n", &[]),
            ("550 5.1.1 No such user\r\n", &[("550", "5.1.1")]),
            ("250-mx\r\n250-SIZE\r\n250 DSN\r\n", &[]),
            ("450-4.2.0 Later,\r\n450 4.2.0 and not before\r\n", &[("450", "4.2.0")]),
            ("500 what?\r\n", &[("500", "")]),
            ("421\r\n", &[]),
            ("354 go on\r\n550 5.7.1\r\n550 5.7.1 x\r\n", &[("550", "5.7.1"), ("550", "5.7.1")]),
            ("550 4.1.1 of another class\r\n", &[("550", "")]),
            ("554 5.1234567890.1 long\r\n", &[("554", "")]),
            ("4", &[]),
        ];
        for (replies, expected) in table {
            let meters = Meters::new(None);
            meters.replied(replies.as_bytes());
            let counted = meters.counts().replies;
            let mut counted: Vec<_> = counted
                .iter()
                .flat_map(|(reply, count)| {
                    std::iter::repeat_n((reply.code(), reply.status()), *count as usize)
                })
                .collect();
            counted.sort_unstable();
            assert_eq!(counted, expected, "{replies:?}");
        }
    }

    #[test]
    fn kinds_are_bounded() {
        let meters = Meters::new(None);
        let now = std::time::Instant::now();
        let facts = Facts::of_peer("192.0.2.1:1".parse().unwrap(), now, 0);
        for detail in 0..1000 {
            let refusal = Refusal::new(Status::permanent(7, detail), "no");
            meters.refused(Phase::Mail, &facts, "many", "reject", &refusal, false);
            meters.refused(Phase::Mail, &facts, "many", "reject", &refusal, true);
            meters.replied(format!("550 5.{detail}.{detail} no\r\n").as_bytes());
        }
        let Counts { refusals, replies, .. } = meters.counts();
        for (kinds, all) in [
            (refusals.len(), refusals.iter().map(|(_, count)| count).sum::<u64>()),
            (replies.len(), replies.iter().map(|(_, count)| count).sum()),
        ] {
            assert!(kinds <= KINDS_MAX + Phase::ALL.len(), "{kinds}");
            assert_eq!(all, 1000, "a dry run refuses nobody");
        }
    }

    #[test]
    fn what_has_run_out_has_a_word_of_its_own() {
        let ban = Refusal {
            text: "Too many errors from your address, try again in 5 seconds".into(),
            ..Refusal::final_one(Status::temporary(7, 0), "")
        };
        let table = [
            (Resource::Sessions.refusal(), "sessions"),
            (Resource::Memory.refusal(), "memory"),
            (Resource::Queue.refusal(), "queue"),
            (Resource::Storage.refusal(), "storage"),
            (admission::NO_ROOM, "room"),
            (admission::QUEUE_FULL, "not_accepting"),
            (admission::MEDIUM_FAILED, "medium"),
            (Refusal::final_one(Status::temporary(7, 0), "Too many connections"), "connections"),
            (ban, "banned"),
            (Refusal::new(Status::permanent(7, 1), "no"), OTHERS),
        ];
        for (refusal, word) in table {
            assert_eq!(admission_reason(&refusal), word, "{refusal:?}");
        }
    }

    #[derive(Default)]
    struct Names(Mutex<Vec<&'static str>>);

    impl Observer for Names {
        fn observe(&self, event: &Event<'_>) {
            self.0.lock().unwrap().push(event.name());
        }
    }

    #[test]
    fn an_observer_is_told_of_each_event() {
        let names = Arc::new(Names::default());
        let meters = Meters::new(Some(names.clone()));
        let peer = "192.0.2.1:1".parse().unwrap();
        let facts = Facts::of_peer(peer, std::time::Instant::now(), 0);
        meters.connected(peer, peer, 1);
        meters.greeted(peer, peer, Duration::ZERO, true);
        meters.not_admitted(Phase::Connect, &facts, &admission::NO_ROOM);
        let id = MessageId { log: 1, sequence: 2 };
        meters.queued(Queued { id, peer, tls: None, size: 3, recipients: 1, wait: Duration::ZERO });
        meters.not_queued(peer, 3, NotStored::NoRoom);
        meters.queue_depth(1, 7);
        let expected = [
            "session.connect",
            "session.accepted",
            "session.rejected",
            "message.queued",
            "message.enqueue_error",
            "queue.depth",
        ];
        assert_eq!(*names.0.lock().unwrap(), expected);
    }
}
