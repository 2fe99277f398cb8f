//! To a server that takes mail by SMTP or LMTP, and what stands for it when it is away.
//!
//! ```text
//!   attempt ─▶ a group of recipients per domain (MX), or all ─▶ the hosts in their order ─▶ a transaction on a connection of the host's pool
//!                                                                  ▲   nothing can have been taken   │ too many recipients: another one
//!                                                                  └────────the next host◀───────────┘
//! ```
//!
//! Promises: a recipient is delivered when the server has said so behind the end of the content, and rejected only by a reply that is about it or the
//! message, or by what the server does not take. Whatever else goes wrong defers it.
//!
//! Invariants:
//! - once the end of the content was said, no other host is asked in the same attempt: the message may be there;
//! - what one host does not take is rejected only where none of them does;
//! - a connection that was idle and turns out to be gone costs nothing but a new one.
//!
//! Does not know when an attempt is made, nor how many at a time.

mod hosts;
mod mx;

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::time::timeout_at;

use self::hosts::{Choice, Host, in_order};
pub use self::hosts::{Hosts, MxOf};
pub use self::mx::Exchanges;
use crate::client::{
    Bounds, Content, Failure, Fate, HeaderText, Interrupted, Introduction, Leased, Login, Message, Objection,
    Origin, Protection, Protocol, Reply, Step, SystemResolver, Target, Timeouts, Transaction, Why,
};
use crate::delivery::{Attempt, Chunks, Delivering, Delivery, Fault, Outcome};
use crate::mail::Capabilities;

/// Hosts, at one address each, that are asked in one attempt: each may take its time.
const HOSTS_MAX: usize = 8;
/// How long hosts are asked for the recipients of one domain, beside the time for the content: a server that needs minutes for each of many commands would
/// hold the attempt for days.
const ATTEMPT_MAX: Duration = Duration::from_secs(30 * 60);
/// Octets of content a second that are slow enough for everybody: 25 MiB have 107 minutes.
const CONTENT_RATE_MIN: u64 = 4 << 10;

fn patience(content_size: u64) -> Duration {
    ATTEMPT_MAX + Duration::from_secs(content_size / CONTENT_RATE_MIN)
}

/// How servers are spoken to.
#[derive(Clone, Debug)]
pub struct Manners {
    /// What is spoken, and who we are.
    pub introduction: Introduction,
    /// Whether and how connections are protected.
    pub protection: Protection,
    /// The name that certificates have to be for; without it the name of the host.
    pub tls_name: Option<String>,
    /// Who we are to servers that want to know.
    pub login: Option<Arc<Login>>,
    /// How long steps may take.
    pub timeouts: Timeouts,
    /// What is kept of connections, for each host.
    pub bounds: Bounds,
    /// XFORWARD is said where it is offered.
    pub forwards_origin: bool,
    /// BDAT is said wherever it is offered.
    pub in_chunks: bool,
    /// What all servers are known to offer.
    pub capabilities: Capabilities,
}

impl Manners {
    /// How one server is spoken to: at `endpoint`, which is called `name`.
    fn target(&self, endpoint: crate::client::Endpoint, name: &str) -> Target {
        Target {
            endpoint,
            resolver: SystemResolver::default(),
            introduction: self.introduction.clone(),
            protection: self.protection.clone(),
            name: self.tls_name.clone().unwrap_or_else(|| name.into()),
            login: self.login.clone(),
            timeouts: self.timeouts,
        }
    }
}

/// See the module.
pub struct NextHop {
    manners: Manners,
    hosts: Hosts,
}

impl NextHop {
    /// To `hosts`.
    pub fn new(hosts: Hosts, manners: Manners) -> Self {
        NextHop { manners, hosts }
    }

    async fn attempt(&self, attempt: &Attempt) -> Vec<Outcome> {
        let mut progress = Progress::of(attempt.recipients.len());
        for (domain, places) in self.hosts.groups(attempt) {
            match self.hosts.find(domain.as_deref(), &self.manners).await {
                Ok(hosts) => self.relay(attempt, &hosts, places, &mut progress).await,
                Err(outcome) => progress.end_all(&places, || outcome.clone()),
            }
        }
        let mut outcomes: Vec<Outcome> =
            progress.outcomes.into_iter().map(|outcome| outcome.expect("every group was seen to")).collect();
        if !self.hosts.are_one_target() {
            // A domain that is down would hold up the others.
            for outcome in &mut outcomes {
                if let Outcome::Deferred { fault: fault @ Fault::Target, .. } = outcome {
                    *fault = Fault::Message;
                }
            }
        }
        outcomes
    }

    /// Sees to the recipients at `places` of the attempt.
    async fn relay(
        &self,
        attempt: &Attempt,
        hosts: &[Choice],
        mut places: Vec<usize>,
        progress: &mut Progress,
    ) {
        let mut trouble = None;
        let order = in_order(hosts);
        let until = Instant::now() + patience(attempt.content_size());
        for host in order.iter().take(HOSTS_MAX) {
            if Instant::now() >= until {
                break;
            }
            let visit = Visit { hop: self, host, attempt, until };
            places = match visit.make(places, progress).await {
                Ok(()) => Vec::new(),
                Err(failed) => {
                    host.rest();
                    trouble = Some(failed.trouble);
                    failed.places
                }
            };
            // Another host may take what this one does not.
            places.append(&mut progress.objected);
            places.sort_unstable();
            if places.is_empty() {
                return;
            }
        }
        let all = hosts.len().min(HOSTS_MAX);
        for place in places {
            let objections = std::mem::take(&mut progress.objections[place]);
            let outcome = match (objections.words, &trouble) {
                (Some(words), _) if objections.certain_count == all => Outcome::rejected(words),
                (Some(words), trouble) => Outcome::deferred(trouble.clone().unwrap_or(words)),
                (None, Some(trouble)) => Outcome::unreachable(&**trouble),
                (None, None) => Outcome::unreachable("there is no host"),
            };
            progress.end(place, outcome);
        }
    }
}

impl Delivery for NextHop {
    fn capabilities(&self) -> Capabilities {
        self.manners.capabilities
    }

    /// An LMTP server has what it took; an SMTP server may send it on.
    fn is_final(&self) -> bool {
        self.manners.introduction.protocol == Protocol::Lmtp
    }

    fn deliver<'a>(&'a self, attempt: &'a Attempt) -> Delivering<'a> {
        Box::pin(self.attempt(attempt))
    }
}

/// What is known of the recipients of an attempt.
struct Progress {
    outcomes: Vec<Option<Outcome>>,
    objections: Vec<Objections>,
    /// Those to whom the host that was asked last objects.
    objected: Vec<usize>,
}

/// What hosts object to a recipient's message.
#[derive(Clone, Default)]
struct Objections {
    /// Of the last one.
    words: Option<String>,
    /// Hosts that will object as long as they are what they are.
    certain_count: usize,
}

impl Progress {
    fn of(recipient_count: usize) -> Self {
        Progress {
            outcomes: vec![None; recipient_count],
            objections: vec![Objections::default(); recipient_count],
            objected: Vec::new(),
        }
    }

    fn object(&mut self, place: usize, words: String, is_certain: bool) {
        let objections = &mut self.objections[place];
        objections.words = Some(words);
        objections.certain_count += usize::from(is_certain);
        self.objected.push(place);
    }

    fn end(&mut self, place: usize, outcome: Outcome) {
        let before = self.outcomes[place].replace(outcome);
        assert!(before.is_none(), "a recipient has one outcome");
    }

    fn end_all(&mut self, places: &[usize], outcome: impl Fn() -> Outcome) {
        places.iter().for_each(|place| self.end(*place, outcome()));
    }
}

/// A host that did not do, and the recipients that another may see to.
struct Failed {
    places: Vec<usize>,
    trouble: String,
}

/// One host's part in an attempt.
struct Visit<'a> {
    hop: &'a NextHop,
    host: &'a Host,
    attempt: &'a Attempt,
    /// By when all has to be sent.
    until: Instant,
}

impl Visit<'_> {
    async fn make(&self, mut places: Vec<usize>, progress: &mut Progress) -> Result<(), Failed> {
        let pool = &self.host.pool;
        let mut leased = match self.in_time(pool.take()).await {
            Ok(leased) => leased,
            Err(failure) => return Err(Failed { places, trouble: self.trouble(&failure) }),
        };
        let mut header = HeaderText::Unknown;
        loop {
            if self.message(&[], header).needs_header(leased.connection.offers()) {
                header = match header_text(self.attempt).await {
                    Ok(text) => text,
                    Err(error) => {
                        progress.end_all(&places, || unreadable(&error));
                        pool.give_back(leased);
                        return Ok(());
                    }
                };
            }
            match self.transact(&mut leased, header, places, progress).await {
                Transacted::Done => {
                    self.host.wake();
                    pool.give_back(leased);
                    return Ok(());
                }
                Transacted::Left(rest) => places = rest,
                Transacted::Interrupted => return Ok(()),
                Transacted::Failed(rest, failure) => {
                    places = rest;
                    // What was idle may have been closed at the other end, which says nothing about the server.
                    let is_gone = matches!(failure.why, Why::Gone(_) | Why::Refused(_));
                    if !leased.is_used() || !is_gone {
                        return Err(Failed { places, trouble: self.trouble(&failure) });
                    }
                    leased = match self.in_time(pool.renew(leased)).await {
                        Ok(leased) => leased,
                        Err(failure) => return Err(Failed { places, trouble: self.trouble(&failure) }),
                    };
                }
            }
        }
    }

    /// A connection, if it is there by the end of the time.
    async fn in_time(
        &self,
        opening: impl Future<Output = Result<Leased, Failure>>,
    ) -> Result<Leased, Failure> {
        let mut leased = match timeout_at(self.until.into(), opening).await {
            Ok(opened) => opened?,
            Err(_) => return Err(Failure { step: Step::Connect, why: Why::TimedOut }),
        };
        leased.connection.hurry(self.until);
        Ok(leased)
    }

    /// One transaction for the recipients at `places`.
    async fn transact(
        &self,
        leased: &mut Leased,
        header: HeaderText,
        places: Vec<usize>,
        progress: &mut Progress,
    ) -> Transacted {
        let indices: Vec<u32> = places.iter().map(|place| self.attempt.recipients[*place].index).collect();
        let connection = &mut leased.connection;
        let (protocol, needs_reset) = (connection.protocol(), connection.needs_reset());
        let message = self.message(&indices, header);
        let transaction = Transaction::new(message, protocol, connection.offers(), needs_reset);
        let mut transaction = match transaction {
            Ok(transaction) => transaction,
            Err(objection) => {
                let is_certain = self.is_certain(objection, connection.is_extended());
                let words = self.objects(objection);
                places.iter().for_each(|place| progress.object(*place, words.clone(), is_certain));
                return Transacted::Done;
            }
        };
        let sent = connection.send(&mut transaction, &mut Parts(self.attempt.chunks())).await;
        let (is_content_said, is_extended) = (transaction.is_content_said(), connection.is_extended());
        let (mut postponed, mut open, mut is_some_taken) = (Vec::new(), Vec::new(), false);
        for (place, fate) in places.into_iter().zip(transaction.into_fates()) {
            match fate {
                Some(Fate::Taken(reply)) => {
                    is_some_taken = true;
                    progress.end(place, Outcome::delivered_saying(format!("{reply} ({})", self.host)));
                }
                Some(Fate::Refused(reply, step)) => progress.end(place, self.refused(&reply, step)),
                Some(Fate::Unfit(objection)) => {
                    let is_certain = self.is_certain(objection, is_extended);
                    progress.object(place, self.objects(objection), is_certain);
                }
                Some(Fate::Postponed(reply)) => postponed.push((place, reply)),
                None => open.push(place),
            }
        }
        // Asked for as long as that leads to something.
        if !is_some_taken {
            for (place, reply) in postponed.drain(..) {
                progress.end(place, Outcome::deferred(self.said(&reply, Step::Recipient)));
            }
        }
        let postponed: Vec<usize> = postponed.into_iter().map(|(place, _)| place).collect();
        match sent {
            Ok(()) if postponed.is_empty() => Transacted::Done,
            Ok(()) => Transacted::Left(postponed),
            Err(Interrupted::Content(error)) => {
                progress.end_all(&open, || unreadable(&error));
                progress.end_all(&postponed, || unreadable(&error));
                Transacted::Interrupted
            }
            // Without its end nobody has it.
            Err(Interrupted::Unfit(objection)) => {
                let words = || Outcome::rejected(self.objects(objection));
                progress.end_all(&open, words);
                progress.end_all(&postponed, words);
                Transacted::Interrupted
            }
            Err(Interrupted::Connection(failure)) if is_content_said => {
                let trouble = self.trouble(&failure);
                let words =
                    format!("{trouble}; all of the message was sent: it may be there, and will be twice");
                progress.end_all(&open, || Outcome::unreachable(&*words));
                progress.end_all(&postponed, || Outcome::unreachable(&*trouble));
                self.host.rest();
                Transacted::Interrupted
            }
            Err(Interrupted::Connection(failure)) => {
                open.extend(postponed);
                open.sort_unstable();
                Transacted::Failed(open, failure)
            }
        }
    }

    fn message<'m>(&'m self, recipients: &'m [u32], header: HeaderText) -> Message<'m> {
        let Attempt { id, envelope, arrival, .. } = self.attempt;
        let manners = &self.hop.manners;
        let origin = manners.forwards_origin.then_some(Origin { id: *id, arrival });
        let (size, in_chunks) = (self.attempt.content_size(), manners.in_chunks);
        // Otherwise the gateway tells of it itself.
        let tells_success = manners.capabilities.dsn;
        Message { envelope, recipients, size, header, origin, tells_success, in_chunks }
    }

    /// What a reply of class 4 or 5 makes of a recipient.
    fn refused(&self, reply: &Reply, step: Step) -> Outcome {
        let words = self.said(reply, step);
        match reply.code {
            // It wants to know who we are, or TLS: our operator's business, and that of every message.
            530 | 534 | 535 | 538 => Outcome::unreachable(words),
            // It does not understand us: that says nothing about the message.
            500 | 502 | 503 | 504 | 555 => Outcome::deferred(words),
            // RFC 3463 §3.6, X.5.4: a parameter of ours that it does not know.
            501 if matches!(step, Step::Mail | Step::Recipient) && is_about_parameters(reply) => {
                Outcome::deferred(words)
            }
            _ if reply.is_permanent() => Outcome::rejected(words),
            _ => Outcome::deferred(words),
        }
    }

    fn said(&self, reply: &Reply, step: Step) -> String {
        format!("{reply} ({}, after {step})", self.host)
    }

    fn objects(&self, objection: Objection) -> String {
        format!("{} {objection} ({})", objection.status(), self.host)
    }

    /// Whether the server will always object so. One that is known to offer what it does not now, or has not been asked, may not tomorrow.
    fn is_certain(&self, objection: Objection, is_extended: bool) -> bool {
        let known = self.hop.manners.capabilities;
        match objection {
            Objection::Binary => is_extended && !known.binary,
            Objection::RequireTls => is_extended && !known.require_tls,
            Objection::Address | Objection::Header => is_extended,
            Objection::TooLarge(_) | Objection::LineEnds => true,
        }
    }

    fn trouble(&self, failure: &Failure) -> String {
        match &failure.why {
            Why::Refused(reply) => self.said(reply, failure.step),
            _ => format!("{}: {failure}", self.host),
        }
    }
}

fn is_about_parameters(reply: &Reply) -> bool {
    reply.status().is_some_and(|status| (status.subject, status.detail) == (5, 4))
}

/// What came of a transaction, beside outcomes.
enum Transacted {
    /// Nobody is left, and the connection is as good as before.
    Done,
    /// Nobody is left, and the connection is of no use any more.
    Interrupted,
    /// These are for another transaction.
    Left(Vec<usize>),
    /// The connection failed before anything can have been taken for these.
    Failed(Vec<usize>, Failure),
}

fn unreadable(error: &io::Error) -> Outcome {
    Outcome::unasked(format!("the stored content cannot be read: {error}"))
}

/// The content, as the client takes it.
struct Parts<'a>(Chunks<'a>);

impl Content for Parts<'_> {
    async fn next(&mut self) -> Option<io::Result<Bytes>> {
        self.0.next().await
    }
}

/// What the header section of the message is written in.
async fn header_text(attempt: &Attempt) -> io::Result<HeaderText> {
    let mut chunks = attempt.chunks();
    let mut end = HeaderEnd::default();
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk?;
        let header = &chunk[..end.find(&chunk).unwrap_or(chunk.len())];
        if !header.is_ascii() {
            return Ok(HeaderText::Utf8);
        }
        if header.len() < chunk.len() {
            break;
        }
    }
    Ok(HeaderText::Ascii)
}

/// Finds the empty line behind a header section, however it is cut.
#[derive(Default)]
struct HeaderEnd {
    /// How much of CRLF CRLF has been seen.
    seen: usize,
}

impl HeaderEnd {
    /// Where the header section has ended, if it has in this piece.
    fn find(&mut self, piece: &[u8]) -> Option<usize> {
        const END: &[u8] = b"\r\n\r\n";
        for (at, octet) in piece.iter().enumerate() {
            self.seen = match *octet == END[self.seen] {
                true => self.seen + 1,
                false => usize::from(*octet == b'\r'),
            };
            if self.seen == END.len() {
                self.seen = 0;
                return Some(at + 1);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::scripted::{Script, Scripted};
    use crate::client::{Endpoint, Protocol};
    use crate::delivery::tests::attempt_for;

    const LONG: Duration = Duration::from_secs(60);

    pub fn manners() -> Manners {
        Manners {
            introduction: Introduction { protocol: Protocol::Smtp, name: "mx.test".into() },
            protection: Protection::OFF,
            tls_name: None,
            login: None,
            timeouts: Timeouts::all(LONG),
            bounds: Bounds { connections_max: 10, idle_max: 10, idle_timeout: LONG, uses_max: 100 },
            forwards_origin: false,
            in_chunks: false,
            capabilities: Capabilities::default(),
        }
    }

    fn run<T>(test: impl Future<Output = T>) -> T {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async { tokio::time::timeout(LONG, test).await.expect("it comes to an end") })
    }

    fn smtp(offers: &[&'static str]) -> Script {
        Script::of(Protocol::Smtp, offers)
    }

    /// To these, the first before the second.
    fn hop(servers: &[&Scripted]) -> NextHop {
        let hosts = servers.iter().zip(0..).map(|(server, n)| (server.endpoint.clone(), n));
        NextHop::new(Hosts::fixed(hosts, &manners()), manners())
    }

    /// An outcome in short, without the host.
    fn short(outcome: &Outcome) -> String {
        let text = outcome.text().split(" (127").next().unwrap();
        let text = if text.starts_with("127") { text.split_once(": ").unwrap().1 } else { text };
        let kind = match outcome {
            Outcome::Delivered { .. } => "delivered",
            Outcome::Deferred { fault: Fault::Target, .. } => "unreachable",
            Outcome::Deferred { .. } => "deferred",
            Outcome::Rejected { .. } => "rejected",
        };
        format!("{kind}: {text}")
    }

    async fn deliver(hop: &NextHop, attempt: &Attempt) -> Vec<String> {
        hop.deliver(attempt).await.iter().map(short).collect()
    }

    #[test]
    fn replies_become_outcomes() {
        let stored = "delivered: 250 2.0.0 stored";
        let table: [(&'static str, &[&'static str], [&str; 2]); 21] = [
            ("MAIL", &["agree"], [stored, stored]),
            ("RCPT", &["550 5.1.1 no such user", "agree"], ["rejected: 550 5.1.1 no such user", stored]),
            ("RCPT", &["agree", "450 4.2.0 busy"], [stored, "deferred: 450 4.2.0 busy"]),
            ("RCPT", &["552 5.2.2 full", "agree"], ["rejected: 552 5.2.2 full", stored]),
            ("MAIL", &["552 5.3.4 too large"], ["rejected: 552 5.3.4 too large"; 2]),
            ("MAIL", &["452 4.3.1 no room"], ["deferred: 452 4.3.1 no room"; 2]),
            ("MAIL", &["530 5.7.0 STARTTLS first"], ["unreachable: 530 5.7.0 STARTTLS first"; 2]),
            ("MAIL", &["503 5.5.1 what"], ["deferred: 503 5.5.1 what"; 2]),
            ("MAIL", &["555 5.5.4 what is SIZE"], ["deferred: 555 5.5.4 what is SIZE"; 2]),
            ("MAIL", &["501 5.5.4 what"], ["deferred: 501 5.5.4 what"; 2]),
            ("RCPT", &["501 5.5.4 what", "agree"], ["deferred: 501 5.5.4 what", stored]),
            ("RCPT", &["501 5.1.3 bad", "agree"], ["rejected: 501 5.1.3 bad", stored]),
            ("MAIL", &["421 4.3.2 bye"], ["unreachable: 421 4.3.2 bye"; 2]),
            ("greeting", &["554 5.3.2 closed"], ["unreachable: 554 5.3.2 closed"; 2]),
            ("greeting", &["421 busy"], ["unreachable: 421 busy"; 2]),
            ("EHLO", &["550 5.7.1 who"], ["unreachable: 550 5.7.1 who"; 2]),
            ("DATA", &["554 5.7.1 no"], ["rejected: 554 5.7.1 no"; 2]),
            ("DATA", &["close"], ["unreachable: DATA: the connection has ended"; 2]),
            (".", &["554 5.6.0 spam"], ["rejected: 554 5.6.0 spam"; 2]),
            (".", &["451 4.3.0 later"], ["deferred: 451 4.3.0 later"; 2]),
            (
                ".",
                &["close"],
                ["unreachable: the end of the content: the connection has ended; all of the message was sent: it may be there, and will be twice";
                    2],
            ),
        ];
        for (verb, answers, expected) in table {
            run(async {
                let server = Scripted::start(smtp(&["PIPELINING"]).saying(verb, answers)).await;
                let outcomes = deliver(&hop(&[&server]), &attempt_for(&["a@e.org", "b@e.org"])).await;
                assert_eq!(outcomes, expected, "{verb} {answers:?}");
            });
        }
    }

    #[test]
    fn a_reason_begins_with_the_reply_and_says_whose_it_is() {
        run(async {
            let server = Scripted::start(smtp(&[]).saying("RCPT", &["550 5.1.1 no such user"])).await;
            let outcomes = hop(&[&server]).attempt(&attempt_for(&["a@e.org"])).await;
            let expected = format!("550 5.1.1 no such user ({}, after RCPT)", server.endpoint);
            assert_eq!(outcomes, [Outcome::rejected(expected)]);
        });
    }

    #[test]
    fn in_lmtp_each_recipient_has_its_own_outcome() {
        run(async {
            let script = Script::of(Protocol::Lmtp, &["PIPELINING"])
                .saying("RCPT", &["agree", "550 5.1.1 no", "agree", "agree"])
                .saying(".", &["250 2.0.0 one", "452 4.2.2 full", "agree"]);
            let server = Scripted::start(script).await;
            let manners = Manners {
                introduction: Introduction { protocol: Protocol::Lmtp, name: "mx.test".into() },
                ..manners()
            };
            let hop = NextHop::new(Hosts::fixed([(server.endpoint.clone(), 0)], &manners), manners);
            let outcomes = deliver(&hop, &attempt_for(&["a@e.org", "b@e.org", "c@e.org", "d@e.org"])).await;
            let expected = [
                "delivered: 250 2.0.0 one",
                "rejected: 550 5.1.1 no",
                "deferred: 452 4.2.2 full",
                "delivered: 250 2.0.0 stored",
            ];
            assert_eq!(outcomes, expected);
        });
    }

    #[test]
    fn those_who_are_too_many_are_for_the_next_transaction() {
        run(async {
            let full = "452 4.5.3 too many recipients";
            let script =
                smtp(&["PIPELINING"]).saying("RCPT", &["agree", "agree", full, full, "agree", full, "agree"]);
            let server = Scripted::start(script).await;
            let outcomes = deliver(&hop(&[&server]), &attempt_for(&["a@x", "b@x", "c@x", "d@x"])).await;
            assert_eq!(outcomes, ["delivered: 250 2.0.0 stored"; 4]);
            assert_eq!((server.heard().contents.len(), server.heard().connections), (3, 1));
            // Where nobody is taken nothing is gained by asking on.
            let script = smtp(&[]).saying("RCPT", &["agree", full]).saying(".", &["451 4.3.0 later"]);
            let server = Scripted::start(script).await;
            let outcomes = deliver(&hop(&[&server]), &attempt_for(&["a@x", "b@x"])).await;
            assert_eq!(outcomes, ["deferred: 451 4.3.0 later", "deferred: 452 4.5.3 too many recipients"]);
        });
    }

    #[test]
    fn the_next_host_is_asked_where_nothing_can_have_been_taken() {
        let taken: [&str; 1] = ["delivered: 250 2.0.0 stored"];
        let lost = "unreachable: the end of the content: the connection has ended; all of the message was sent: it may be there, and will be twice";
        let table: [(&'static str, &'static str, [&str; 1], usize); 8] = [
            ("greeting", "421 busy", taken, 1),
            ("greeting", "554 closed", taken, 1),
            ("greeting", "close", taken, 1),
            ("MAIL", "421 bye", taken, 1),
            ("DATA", "close", taken, 1),
            ("MAIL", "451 later", ["deferred: 451 later"], 0),
            ("RCPT", "550 no", ["rejected: 550 no"], 0),
            (".", "close", [lost], 0),
        ];
        for (verb, answer, expected, asked) in table {
            run(async {
                let first = Scripted::start(smtp(&["PIPELINING"]).saying(verb, &[answer])).await;
                let second = Scripted::start(smtp(&["PIPELINING"])).await;
                let hop = hop(&[&first, &second]);
                assert_eq!(deliver(&hop, &attempt_for(&["a@x"])).await, expected, "{verb} {answer}");
                assert_eq!(second.heard().connections, asked, "{verb} {answer}");
                if asked > 0 {
                    deliver(&hop, &attempt_for(&["a@x"])).await;
                    let connections = (first.heard().connections, second.heard().connections);
                    assert_eq!(connections, (1, 1), "the first rests, the second's connection is used again");
                }
            });
        }
        run(async {
            let nobody = Endpoint::parse("127.0.0.1:1").unwrap();
            let hop = NextHop::new(Hosts::fixed([(nobody, 0)], &manners()), manners());
            let outcomes = deliver(&hop, &attempt_for(&["a@x", "b@x"])).await;
            assert!(
                outcomes.iter().all(|words| words.starts_with("unreachable: connecting: ")),
                "{outcomes:?}"
            );
        });
    }

    #[test]
    fn a_connection_that_went_while_it_was_idle_costs_nothing() {
        for (verb, answers) in
            [("MAIL", ["agree", "421 idle too long", "agree"]), ("MAIL", ["agree", "close", "agree"])]
        {
            run(async {
                let server = Scripted::start(smtp(&[]).saying(verb, &answers)).await;
                let hop = hop(&[&server]);
                for _ in 0..2 {
                    let outcomes = deliver(&hop, &attempt_for(&["a@x"])).await;
                    assert_eq!(outcomes, ["delivered: 250 2.0.0 stored"]);
                }
                assert_eq!(server.heard().connections, 2);
                assert_eq!(server.heard().contents.len(), 2);
            });
        }
    }

    #[test]
    fn what_was_left_open_is_reset_before_the_next_message() {
        run(async {
            let script = smtp(&[]).saying("RCPT", &["550 no", "agree"]);
            let server = Scripted::start(script).await;
            let hop = hop(&[&server]);
            assert_eq!(deliver(&hop, &attempt_for(&["a@x"])).await, ["rejected: 550 no"]);
            assert_eq!(deliver(&hop, &attempt_for(&["b@x"])).await, ["delivered: 250 2.0.0 stored"]);
            let mail = "MAIL FROM:<s@e.net>";
            let expected =
                format!("EHLO mx.test | {mail} | RCPT TO:<a@x> | RSET | {mail} | RCPT TO:<b@x> | DATA");
            assert_eq!(server.commands(), expected);
        });
    }

    #[test]
    fn what_a_server_cannot_be_given_is_rejected_and_costs_no_connection() {
        run(async {
            let server = Scripted::start(smtp(&["SIZE 10"])).await;
            let hop = hop(&[&server]);
            for _ in 0..2 {
                let outcomes = deliver(&hop, &attempt_for(&["a@x"])).await;
                assert_eq!(outcomes, ["rejected: 5.3.4 the server takes no message larger than 10 octets"]);
            }
            assert_eq!((server.commands(), server.heard().connections), ("EHLO mx.test".into(), 1));
        });
    }

    #[test]
    fn what_one_host_does_not_take_is_for_the_others() {
        let small = || smtp(&["SIZE 10"]);
        let too_large = "5.3.4 the server takes no message larger than 10 octets";
        let (rejected, deferred) = (format!("rejected: {too_large}"), format!("deferred: {too_large}"));
        let closed = smtp(&[]).saying("greeting", &["421 4.3.2 closed"]);
        let table = [
            ([small(), smtp(&["SIZE 1000000"])], ["delivered: 250 2.0.0 stored"; 2]),
            ([small(), small()], [&rejected; 2]),
            // A host that is away, or rests, has not objected.
            ([small(), closed.clone()], ["deferred: 421 4.3.2 closed", &deferred]),
            ([closed, small()], ["deferred: 421 4.3.2 closed", &deferred]),
        ];
        for (scripts, expected) in table {
            run(async {
                let [first, second] = scripts;
                let (first, second) = (Scripted::start(first).await, Scripted::start(second).await);
                let hop = hop(&[&first, &second]);
                for expected in expected {
                    assert_eq!(deliver(&hop, &attempt_for(&["a@x"])).await, [expected]);
                }
            });
        }
    }

    #[test]
    fn what_a_server_may_offer_again_defers() {
        let known = Capabilities { binary: true, ..Capabilities::default() };
        let silent = || smtp(&[]).saying("EHLO", &["502 5.5.1 what"]);
        let table = [
            (smtp(&[]), Capabilities::default(), "rejected"),
            (smtp(&[]), known, "deferred"),
            (silent(), Capabilities::default(), "deferred"),
        ];
        for (script, capabilities, expected) in table {
            run(async {
                let server = Scripted::start(script).await;
                let manners = Manners { capabilities, ..manners() };
                let hop = NextHop::new(Hosts::fixed([(server.endpoint.clone(), 0)], &manners), manners);
                let mut attempt = attempt_for(&["a@x"]);
                let mut envelope = (*attempt.envelope).clone();
                envelope.body = crate::mail::Body::Binary;
                attempt.envelope = envelope.into();
                let words = "5.6.3 the server does not take binary content (BINARYMIME, CHUNKING)";
                assert_eq!(deliver(&hop, &attempt).await, [format!("{expected}: {words}")]);
            });
        }
    }

    #[test]
    fn a_message_that_only_says_smtputf8_goes_without_it() {
        let table = [
            ("Subject: plain\r\n\r\n\u{fc}\r\n", "delivered: 250 2.0.0 stored"),
            (
                "Subject: \u{fc}\r\n\r\nx\r\n",
                "rejected: 5.6.9 the server does not take header fields beyond ASCII (SMTPUTF8)",
            ),
        ];
        for (text, expected) in table {
            run(async {
                let server = Scripted::start(smtp(&[])).await;
                let mut attempt = attempt_for(&["a@x"]);
                let mut envelope = (*attempt.envelope).clone();
                envelope.smtputf8 = true;
                attempt.envelope = envelope.into();
                let parts = text.as_bytes().chunks(5).map(Bytes::copy_from_slice).collect();
                attempt.content = Arc::new(crate::delivery::Content::Memory(parts));
                assert_eq!(deliver(&hop(&[&server]), &attempt).await, [expected]);
            });
        }
    }

    #[test]
    fn a_bare_line_end_never_goes_behind_data() {
        run(async {
            let server = Scripted::start(smtp(&["PIPELINING"])).await;
            let mut attempt = attempt_for(&["a@x"]);
            let text = b"Subject: x\r\n\r\n\n.\nMAIL FROM:<evil@e.org>\n\r\n";
            let parts = text.chunks(5).map(Bytes::copy_from_slice).collect();
            attempt.content = Arc::new(crate::delivery::Content::Memory(parts));
            let words =
                "rejected: 5.6.0 the content has a bare CR or LF, which is sent to nobody behind DATA";
            assert_eq!(deliver(&hop(&[&server]), &attempt).await, [words]);
            assert_eq!(server.heard().contents.len(), 0);
        });
    }

    #[test]
    fn the_end_of_a_header_section_is_found_at_every_split() {
        let text = b"a\r\n\rb\r\r\n\r\nbody\r\n\r\n";
        for cut in 0..text.len() {
            let mut end = HeaderEnd::default();
            let (first, second) = text.split_at(cut);
            let at = end.find(first).or_else(|| end.find(second).map(|at| cut + at));
            assert_eq!(at, Some(10), "{cut}");
        }
    }
}
