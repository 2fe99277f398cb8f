//! Asking everybody who may refuse: what this shard has room for first, then the policies.
//!
//! What is answered at once is decided at once. Who must be waited for is waited for by the session alone; nothing is read meanwhile.

use std::io;
use std::task::Poll;
use std::time::Duration;

use super::answer::answer;
use super::clock;
use super::connection::Served;
use crate::mail::{Phase, Refusal, Tag};
use crate::policy::{Facts, Later, Notes, Round, Step, Unavailable};

/// What a session remembers for its policies. There is none before one of them is asked.
#[derive(Default)]
pub struct Noted(Option<Box<(u64, Notes)>>);

impl Noted {
    /// Of the transaction that is open; empty where nobody has said anything.
    pub fn tags(&self) -> Vec<Tag> {
        self.0.as_ref().map_or_else(Vec::new, |noted| noted.1.tags())
    }

    /// The peer's name, where a policy has found and confirmed it.
    pub fn client_name(&self) -> Option<&str> {
        self.0.as_ref()?.1.client_name.as_deref()
    }
}

/// A phase that cannot be decided at once.
pub struct Waiting {
    round: Round,
    later: Later,
    timeout: Duration,
}

impl Served {
    /// Has `phase` decided, or says for whom to wait first.
    pub fn check(&mut self, phase: Phase) -> Option<Waiting> {
        if let Err(refusal) = self.admit(phase) {
            self.link.shard.meters.not_admitted(phase, &self.facts(), &refusal);
            self.session.handle_verdict(Err(refusal), clock::now(), &mut self.replies);
            return None;
        }
        // Another client than before, or a new one.
        if phase == Phase::Connect {
            self.noted = Noted::default();
        }
        match (phase, &mut self.noted.0) {
            (Phase::Hello, Some(noted)) => noted.1.begin_hello(),
            (Phase::Mail, Some(noted)) => noted.1.begin_transaction(),
            _ => {}
        }
        self.advance(Round::new(phase))
    }

    /// Goes on with `round`, to its end or to whom to wait for.
    fn advance(&mut self, mut round: Round) -> Option<Waiting> {
        let policies = &self.service.policies;
        let phase = round.phase();
        if !policies.phases().contains(phase) {
            self.session.handle_verdict(Ok(()), clock::now(), &mut self.replies);
            return None;
        }
        let mut noted = self.noted.0.take().unwrap_or_else(|| {
            let mut notes = Notes::default();
            if phase >= Phase::Mail {
                notes.begin_transaction();
            }
            Box::new((self.link.shard.next_session(), notes))
        });
        let facts = Facts { session: noted.0, ..self.facts() };
        let step = policies.advance(&mut round, &facts, &mut noted.1, |report| {
            self.link.shard.meters.reported(&report, &facts);
        });
        if let Some(paths) = noted.1.take_replacement() {
            self.session.handle_replacement(paths);
        }
        self.noted.0 = Some(noted);
        match step {
            Step::Wait(later, timeout) => Some(Waiting { round, later, timeout }),
            Step::Decided(verdict) => {
                self.session.handle_verdict(verdict, clock::now(), &mut self.replies);
                None
            }
        }
    }

    /// Waits as often as somebody must be waited for.
    pub async fn wait_for(&mut self, waiting: Waiting) -> io::Result<()> {
        let mut waiting = Some(waiting);
        while let Some(Waiting { mut round, later, timeout }) = waiting {
            self.link.send(&mut self.replies).await?;
            let (found, given) = answer(Err(Unavailable::new("the gateway is stopping")));
            let from = self.service.is_guarded(self.session.peer().ip()).then(|| self.session.peer().ip());
            let from = from.filter(|ip| !self.link.shard.settings().admission.is_exempt(*ip));
            self.service.lookups.submit(later, from, timeout, |found| given.give(found));
            let mut found_now = Err(Unavailable::new("the gateway is stopping"));
            let begun = clock::now();
            self.link
                .wait(|context| match found.poll(context) {
                    Poll::Ready(found) => {
                        found_now = found;
                        Poll::Ready(())
                    }
                    Poll::Pending => Poll::Pending,
                })
                .await;
            self.link.shard.meters.waited(round.phase(), begun.elapsed());
            round.resume(found_now);
            // What the peer has sent meanwhile it has not been asked for: see RFC 2920 §3.1 of DATA.
            if round.phase() == Phase::Data && self.link.has_octets_waiting() {
                self.session.handle_early_octets();
            }
            waiting = self.advance(round);
        }
        Ok(())
    }

    /// Has the shard room for what comes?
    fn admit(&mut self, phase: Phase) -> Result<(), Refusal> {
        match phase {
            // XCLIENT may have named another client.
            Phase::Connect => self.admitted.pass_to(&self.link.shard, &self.service, self.session.peer()),
            Phase::Mail | Phase::Data => {
                self.link.shard.admit_message(self.session.declared_size().unwrap_or(0))
            }
            Phase::Recipient => self.link.shard.admit_recipient(),
            _ => Ok(()),
        }
    }

    fn facts(&self) -> Facts<'_> {
        let session = &self.session;
        let envelope = session.envelope();
        Facts {
            listener: self.service.address,
            hello: session.hello().unwrap_or_default(),
            is_extended: session.is_extended(),
            reverse_path: envelope.map(|envelope| &envelope.reverse_path),
            recipient: session.recipient(),
            recipients: envelope.map_or(&[], |envelope| &envelope.forward_paths),
            declared_size: session.declared_size(),
            size: session.content_size(),
            tls: session.tls(),
            authenticated: session.authenticated(),
            is_trusted: self.service.is_trusted,
            ..Facts::of_peer(session.peer(), clock::now(), clock::unix_now())
        }
    }
}
