//! Asking somebody else whether a recipient exists, and remembering what was said.
//!
//! A [`Source`] says what it would be asked about a recipient, and asks. [`Inquiry`] is the policy around it:
//!
//! ```text
//!   remembered and fresh ──────────────► at once
//!   being asked by another session ────► its answer
//!   otherwise ─────► ask ─── answered ─► remembered: for `positive`, `negative` time, and as stale for `stale` after that
//!                      └──── failed ───► the stale answer, if there is one; asked again after RETRY_INTERVAL. Else: unavailable
//! ```
//!
//! Invariants:
//! - of one question there is never more than one on its way, however many sessions have it;
//! - what is remembered is bounded, and older than its time only while nobody can be asked;
//! - a failure is never remembered, and nothing is remembered of a rehearsal.

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher, RandomState};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::Recipients;
use crate::mail::{Class, Domain, ForwardPath, Mailbox, Status};
use crate::policy::{Answer, Facts, Found, Phase, Phases, Policy, Table, Unavailable, Verdict};

/// How long a stale answer serves before the source is asked again.
const RETRY_INTERVAL: Duration = Duration::from_secs(10);
/// A flight ends by so much before its session gives up, so that a stale answer is not too late.
const HASTE: Duration = Duration::from_millis(500);

/// Somebody who knows who exists.
pub trait Source: Send + Sync + 'static {
    /// What would be asked about `mailbox`: everything that the answer depends on. Equal questions have one answer.
    fn question(&self, mailbox: &Mailbox, facts: &Facts<'_>) -> String;

    /// Asks. It is dropped when its time is over.
    fn ask<'a>(&'a self, question: &'a str) -> Asking<'a>;
}

/// What [`Source::ask`] is doing.
pub type Asking<'a> = Pin<Box<dyn Future<Output = Found> + Send + 'a>>;

/// What tells one question from another.
type Question = Box<str>;

/// How long answers are remembered, and how many.
#[derive(Clone, Copy, Debug)]
pub struct Memory {
    /// That somebody exists.
    pub positive: Duration,
    /// That somebody does not.
    pub negative: Duration,
    /// For how long after that it serves while nobody can be asked.
    pub stale: Duration,
    /// Answers at most.
    pub entries_max: usize,
}

/// Asks a source about recipients, in some domains or in all.
pub struct Inquiry<S> {
    name: String,
    /// `None`: all.
    domains: Option<HashSet<Domain>>,
    recipients: Arc<Recipients>,
    desk: Arc<Desk<S>>,
}

#[derive(Clone)]
struct Known {
    verdict: Verdict,
    fresh_until: Instant,
}

/// Where questions come together.
struct Desk<S> {
    source: S,
    memory: Memory,
    timeout: Duration,
    /// By hashes of questions with keys of our own: peers choose the questions, and long ones are to take no more memory than others.
    answers: Table<[u64; 2], Known>,
    hashers: [RandomState; 2],
    flights: Mutex<HashMap<Question, watch::Receiver<Option<Found>>>>,
}

impl<S: Source> Inquiry<S> {
    /// Asks `source` about recipients in `domains`, in all of them if there is none. `recipients` knows for whom others stand: they are not
    /// asked about. `timeout` is how long a session waits.
    pub fn new(
        name: impl Into<String>,
        source: S,
        domains: &[Domain],
        recipients: Arc<Recipients>,
        memory: Memory,
        timeout: Duration,
    ) -> Self {
        let answers = Table::new(memory.entries_max);
        let timeout = timeout - HASTE.min(timeout / 10);
        Inquiry {
            name: name.into(),
            domains: (!domains.is_empty()).then(|| domains.iter().cloned().collect()),
            recipients,
            desk: Arc::new(Desk {
                source,
                memory,
                timeout,
                answers,
                hashers: Default::default(),
                flights: Mutex::default(),
            }),
        }
    }

    fn is_asked_about(&self, mailbox: &Mailbox) -> bool {
        // These are always accepted: see `Recipients`.
        let is_role =
            ["postmaster", "abuse"].iter().any(|role| mailbox.local_part().eq_ignore_ascii_case(role));
        let is_covered =
            self.domains.as_ref().is_none_or(|domains| domains.contains(&*mailbox.canonical_domain()));
        !is_role && is_covered && !self.recipients.is_alias(mailbox)
    }
}

impl<S: Source> Policy for Inquiry<S> {
    fn name(&self) -> &str {
        &self.name
    }

    fn phases(&self) -> Phases {
        Phases::of(Phase::Recipient)
    }

    fn check(&self, _: Phase, facts: &Facts<'_>) -> Answer {
        let Some(ForwardPath::Mailbox(mailbox)) = facts.recipient else { return Verdict::Accept.into() };
        if !self.is_asked_about(mailbox) {
            return Verdict::Accept.into();
        }
        let desk = self.desk.clone();
        let question: Question = desk.source.question(mailbox, facts).into();
        if let Some(verdict) = desk.fresh(&question, facts.now) {
            return verdict.into();
        }
        match facts.is_rehearsal {
            true => Answer::wait(async move { desk.source.ask(&question).await }),
            false => Answer::wait(desk.find(question)),
        }
    }
}

impl<S: Source> Desk<S> {
    fn fresh(&self, question: &str, now: Instant) -> Option<Verdict> {
        let known = self.answers.get(&self.key(question), now)?;
        (now < known.fresh_until).then_some(known.verdict)
    }

    fn key(&self, question: &str) -> [u64; 2] {
        self.hashers.each_ref().map(|hasher| hasher.hash_one(question))
    }

    /// What is found by the flight of this question: by that on its way, or by a new one.
    async fn find(self: Arc<Self>, question: Question) -> Found {
        let mut landing = {
            let mut flights = self.flights();
            match flights.get(&question) {
                Some(landing) => landing.clone(),
                None => {
                    // One may have landed since the shard looked.
                    if let Some(verdict) = self.fresh(&question, Instant::now()) {
                        return Ok(verdict);
                    }
                    let (tell, landing) = watch::channel(None);
                    flights.insert(question.clone(), landing.clone());
                    let flight = Flight { desk: self.clone(), question };
                    // By itself: the session that began it may be gone before it lands.
                    tokio::spawn(flight.fly(tell));
                    landing
                }
            }
        };
        match landing.wait_for(Option::is_some).await {
            Ok(found) => found.clone().expect("it was waited for"),
            Err(_) => Err(Unavailable::new("the lookup has ended without an answer")),
        }
    }

    /// What comes of an answer, or of none.
    fn settle(&self, question: &str, found: Found, now: Instant) -> Found {
        let Memory { positive, negative, stale, .. } = self.memory;
        match found {
            Ok(verdict) => {
                let fresh = match &verdict {
                    // It is for now.
                    Verdict::Refuse(refusal) if refusal.status.class == Class::Temporary => {
                        return Ok(verdict);
                    }
                    Verdict::Refuse(_) => negative,
                    _ => positive,
                };
                let known = Known { verdict: verdict.clone(), fresh_until: now + fresh };
                self.answers.insert(self.key(question), known, now + fresh + stale, now);
                Ok(verdict)
            }
            Err(why) => {
                // A refusal does not outlive its time: whoever is new since would be refused because nobody can be asked.
                let known = self.answers.update(self.key(question), now, |kept| {
                    let known = kept.as_mut().map(|kept| &mut kept.value)?;
                    let is_refusal = matches!(known.verdict, Verdict::Refuse(_));
                    (!is_refusal || now < known.fresh_until).then(|| {
                        known.fresh_until = known.fresh_until.max(now + RETRY_INTERVAL);
                        known.verdict.clone()
                    })
                });
                if known.is_some() {
                    tracing::warn!(%why, "nobody could be asked about a recipient: what was known of it is used on");
                }
                known.ok_or(why)
            }
        }
    }

    fn flights(&self) -> MutexGuard<'_, HashMap<Question, watch::Receiver<Option<Found>>>> {
        self.flights.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A question on its way. Dropped, it has landed, one way or another.
struct Flight<S: Source> {
    desk: Arc<Desk<S>>,
    question: Question,
}

impl<S: Source> Flight<S> {
    async fn fly(self, tell: watch::Sender<Option<Found>>) {
        let Desk { source, timeout, .. } = &*self.desk;
        let overdue = || Err(Unavailable(format!("no answer within {timeout:?}")));
        let found =
            tokio::time::timeout(*timeout, source.ask(&self.question)).await.unwrap_or_else(|_| overdue());
        // Remembered before it is no flight any more: who comes in between asks nobody.
        let found = self.desk.settle(&self.question, found, Instant::now());
        drop(self);
        let _ = tell.send(Some(found));
    }
}

impl<S: Source> Drop for Flight<S> {
    fn drop(&mut self) {
        self.desk.flights().remove(&self.question);
    }
}

/// Of whoever the source does not know.
pub(super) fn unknown() -> Verdict {
    super::refuse(Status::permanent(1, 1), super::NO_SUCH_USER)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::runtime::{Builder, Runtime};
    use tokio::sync::Notify;

    use super::super::Maps;
    use super::*;
    use crate::policy::Later;

    const MEMORY: Memory = Memory {
        positive: Duration::from_secs(100),
        negative: Duration::from_secs(10),
        stale: Duration::from_secs(1000),
        entries_max: 100,
    };

    /// Says what it was told to, when it is let.
    #[derive(Default)]
    struct Oracle {
        found: Mutex<Option<Found>>,
        asked: AtomicUsize,
        gate: Option<Notify>,
    }

    impl Source for Arc<Oracle> {
        fn question(&self, mailbox: &Mailbox, _: &Facts<'_>) -> String {
            mailbox.as_str().into()
        }

        fn ask<'a>(&'a self, _: &'a str) -> Asking<'a> {
            Box::pin(async {
                self.asked.fetch_add(1, Ordering::Relaxed);
                if let Some(gate) = &self.gate {
                    gate.notified().await;
                }
                let found = self.found.lock().unwrap().clone();
                match found {
                    Some(found) => found,
                    None => std::future::pending().await,
                }
            })
        }
    }

    struct Lab {
        oracle: Arc<Oracle>,
        inquiry: Inquiry<Arc<Oracle>>,
        runtime: Runtime,
    }

    impl Lab {
        fn new(oracle: Oracle, domains: &[&str]) -> Lab {
            let domain = |text: &str| Domain::parse(text, true).unwrap();
            let domains: Vec<_> = domains.iter().map(|text| domain(text)).collect();
            let recipients = Recipients::new(domain("mx.test"), true, Maps::of_domains(&[]));
            let oracle = Arc::new(oracle);
            let timeout = Duration::from_millis(200);
            let inquiry =
                Inquiry::new("oracle", oracle.clone(), &domains, Arc::new(recipients), MEMORY, timeout);
            Lab { oracle, inquiry, runtime: Builder::new_current_thread().enable_all().build().unwrap() }
        }

        fn saying(found: Found) -> Lab {
            Lab::new(Oracle { found: Mutex::new(Some(found)), ..Oracle::default() }, &[])
        }

        fn says(&self, found: Found) {
            *self.oracle.found.lock().unwrap() = Some(found);
        }

        /// What is found, and whether it was known at once.
        fn check(&self, recipient: &str, facts: Facts<'_>) -> (Found, bool) {
            let recipient = ForwardPath::parse(recipient, true).unwrap();
            let facts = Facts { recipient: Some(&recipient), ..facts };
            match self.inquiry.check(Phase::Recipient, &facts) {
                Answer::Now(found) => (found, true),
                Answer::Later(Later::Wait(future)) => (self.runtime.block_on(future), false),
                Answer::Later(Later::Block(_)) => panic!("it does not block"),
            }
        }

        fn after(&self, seconds: u64) -> (Found, bool) {
            let facts = Facts::of("192.0.2.1");
            self.check("a@x.example", Facts { now: facts.now + Duration::from_secs(seconds), ..facts })
        }

        fn asked(&self) -> usize {
            self.oracle.asked.load(Ordering::Relaxed)
        }
    }

    fn down() -> Found {
        Err(Unavailable::new("down"))
    }

    #[test]
    fn an_answer_is_remembered_for_its_time() {
        for (found, seconds) in [(Ok(Verdict::Accept), 100), (Ok(unknown()), 10)] {
            let lab = Lab::saying(found.clone());
            assert_eq!(lab.after(0), (found.clone(), false));
            assert_eq!(lab.after(seconds - 1), (found.clone(), true));
            assert_eq!(lab.asked(), 1);
            assert_eq!(lab.check("b@x.example", Facts::of("192.0.2.1")), (found, false), "another question");
        }
    }

    #[test]
    fn what_is_for_now_and_what_failed_are_not_remembered() {
        let later = super::super::refuse(Status::temporary(2, 0), "Later");
        for found in [Ok(later), down()] {
            let lab = Lab::saying(found.clone());
            assert_eq!(lab.after(0), (found.clone(), false));
            assert_eq!(lab.after(0), (found, false));
            assert_eq!(lab.asked(), 2);
        }
    }

    #[test]
    fn while_nobody_can_be_asked_what_was_known_serves() {
        let lab = Lab::saying(Ok(unknown()));
        let (desk, question) = (&lab.inquiry.desk, "a@x.example");
        let now = Instant::now();
        let after = |seconds| now + Duration::from_secs(seconds);
        desk.settle(question, Ok(unknown()), now).unwrap();
        // A refusal does not outlive its time.
        assert_eq!(desk.settle(question, down(), after(20)), down());
        assert_eq!(desk.settle(question, Ok(Verdict::Accept), after(31)), Ok(Verdict::Accept));
        // It is stale, and the source is down: it is used, and nobody is asked again for a while.
        assert_eq!(desk.settle(question, down(), after(500)), Ok(Verdict::Accept));
        assert_eq!(desk.fresh(question, after(509)), Some(Verdict::Accept));
        assert_eq!(desk.fresh(question, after(511)), None);
        assert_eq!(desk.settle(question, down(), after(31 + 1100)), down(), "too old");
        // One that hangs is down, too: who waits has the stale answer before its time is over.
        let lab = Lab::new(Oracle::default(), &[]);
        assert_eq!(lab.after(0).0, Err(Unavailable::new("no answer within 180ms")));
    }

    #[test]
    fn sessions_with_one_question_ask_once() {
        let gate = Some(Notify::new());
        let lab =
            Lab::new(Oracle { found: Mutex::new(Some(Ok(Verdict::Accept))), gate, ..Oracle::default() }, &[]);
        let recipient = ForwardPath::parse("a@x.example", true).unwrap();
        let waiting: Vec<_> = (0..50)
            .map(|_| {
                let facts = Facts { recipient: Some(&recipient), ..Facts::of("192.0.2.1") };
                match lab.inquiry.check(Phase::Recipient, &facts) {
                    Answer::Later(Later::Wait(future)) => future,
                    _ => panic!("nothing is known yet"),
                }
            })
            .collect();
        let found = lab.runtime.block_on(async {
            let mut sessions: Vec<_> = waiting.into_iter().map(tokio::spawn).collect();
            while lab.asked() == 0 {
                tokio::task::yield_now().await;
            }
            // Whoever began it goes away, and the others are answered.
            sessions.remove(0).abort();
            lab.oracle.gate.as_ref().unwrap().notify_one();
            let mut found = Vec::new();
            for session in sessions {
                found.push(session.await.unwrap());
            }
            found
        });
        assert_eq!(found, vec![Ok(Verdict::Accept); 49]);
        assert_eq!(lab.asked(), 1);
        assert!(lab.inquiry.desk.flights().is_empty());
        assert!(lab.after(0).1, "and it is remembered");
    }

    #[test]
    fn of_a_rehearsal_nothing_is_remembered() {
        let lab = Lab::saying(Ok(unknown()));
        let rehearsal = || Facts { is_rehearsal: true, ..Facts::of("192.0.2.1") };
        for _ in 0..2 {
            assert_eq!(lab.check("a@x.example", rehearsal()), (Ok(unknown()), false));
        }
        assert!(lab.inquiry.desk.answers.is_empty());
        lab.says(Ok(Verdict::Accept));
        lab.after(0).0.unwrap();
        assert_eq!(
            lab.check("a@x.example", rehearsal()),
            (Ok(Verdict::Accept), true),
            "what is known is told"
        );
    }

    #[test]
    fn roles_aliases_and_other_domains_are_not_asked_about() {
        let mut lab = Lab::new(
            Oracle { found: Mutex::new(Some(Ok(unknown()))), ..Oracle::default() },
            &["x.example", "bücher.example"],
        );
        let folder = tempfile::tempdir().unwrap();
        let map = folder.path().join("map");
        std::fs::write(&map, "info@x.example a@x.example\na@x.example\n").unwrap();
        let own = Domain::parse("mx.test", true).unwrap();
        let maps = Maps::load(&[map], &[], None).unwrap();
        lab.inquiry.recipients = Arc::new(Recipients::new(own, true, maps));
        let table = [
            ("a@x.example", true),
            ("a@xn--bcher-kva.example", true),
            ("a@y.example", false),
            ("Postmaster@x.example", false),
            ("abuse@x.example", false),
            ("postmaster", false),
            ("info@x.example", false),
        ];
        for (recipient, is_asked) in table {
            let expected = if is_asked { Ok(unknown()) } else { Ok(Verdict::Accept) };
            assert_eq!(lab.check(recipient, Facts::of("192.0.2.1")).0, expected, "{recipient}");
        }
        assert_eq!(lab.asked(), 2);
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let lab = Lab::saying(Ok(unknown()));
        let now = Instant::now();
        for n in 0..100_000 {
            lab.inquiry.desk.settle(&format!("a{n}@x.example"), Ok(unknown()), now).unwrap();
        }
        assert!(lab.inquiry.desk.answers.len() <= 100, "{}", lab.inquiry.desk.answers.len());
    }
}
