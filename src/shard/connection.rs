//! One connection: read → (TLS) → session → effects → (TLS) → write.
//!
//! Octets are received into buffers of the shard's and given to the session at once; only what it cannot take yet is kept here.
//! Replies are gathered and written together, before anything is waited for. While the session waits for the disk or for memory
//! nothing is read: back-pressure, not buffering.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::task::Poll;
use std::time::{Duration, Instant};

use super::admitted::Admitted;
use super::answer::{Answerer, answer};
use super::checking::Noted;
use super::clock;
use super::handoff::JustAccepted;
use super::link::{Input, Link};
use super::meters::{NoTls, Queued};
use super::{Ending, Service, Shard};
use crate::limits::{PIECE_SIZE_MIN, SCRATCH_SIZE};
use crate::mail::{Arrival, Provenance, Refusal, Status, Tag};
use crate::policy::{Asker, Attempt, Ban};
use crate::smtp::{Authentication, Credentials, Effect, NotStored, Peer, Session, Submission, TlsMode};
use crate::spool::{AppendError, Receiving};
use crate::telemetry::Escaped;

/// What has come is there already: this long it is waited for at most.
const CATCH_UP_TIMEOUT: Duration = Duration::from_secs(1);
/// What a trace field usually fits in, octets.
const TRACE_SIZE: usize = 256;

/// Serves `peer` over `link` until the session or the connection ends. `input` was received already.
///
/// Not an `async fn`: that would keep room for its arguments beside the state they are moved into, in every idle session.
pub fn serve(
    link: Link,
    service: Rc<Service>,
    peer: SocketAddr,
    admitted: Admitted,
    input: Vec<u8>,
) -> impl Future<Output = ()> {
    let mut replies = link.shard.take_buffer();
    let peer = Peer {
        address: peer,
        bare_line_ends: link.shard.bare_line_ends(peer.ip()),
        may_xclient: service.may_xclient(peer.ip()),
        greeting_delay_millis: match service.is_trusted {
            true => 0,
            false => link.shard.greeting_delay_millis(peer.ip()),
        },
    };
    let now = clock::now();
    let session = Session::new(service.session.clone(), peer, now, &mut replies);
    let mut served = Served {
        connected: now,
        link,
        service,
        admitted,
        session,
        noted: Noted::default(),
        receiving: Receiving::default(),
        replies,
        input,
        taken: 0,
        counted: 0,
        envelope_counted: 0,
        greets_since: Some(now),
    };
    async move {
        // A connection that breaks is the peer's affair; what it had sent is not mail before its end-of-data. It does not save it from
        // what it had coming, though.
        if served.run().await.is_err() {
            served.blame();
        }
    }
}

/// A connection and its session.
pub struct Served {
    /// When the session began.
    connected: Instant,
    pub link: Link,
    pub service: Rc<Service>,
    pub admitted: Admitted,
    pub session: Session,
    pub noted: Noted,
    /// What of the content is in the spool.
    receiving: Receiving,
    pub replies: Vec<u8>,
    /// Received; taken up to `taken`.
    input: Vec<u8>,
    taken: usize,
    /// Octets of the shard's memory budget that this connection has.
    counted: usize,
    /// The same of envelopes.
    envelope_counted: usize,
    /// Since when the peer waits for its greeting.
    greets_since: Option<Instant>,
}

impl Served {
    async fn run(&mut self) -> io::Result<()> {
        let is_watched = self.link.shard.taps.is_any();
        look_on(&self.link.shard, self.link.key(), &mut self.session, is_watched, true);
        loop {
            while let Some(effect) = self.session.poll_effect() {
                self.link.shown().wait();
                match effect {
                    Effect::Check(phase) => {
                        if let Some(waiting) = self.check(phase) {
                            Box::pin(self.wait_for(waiting)).await?;
                            Box::pin(self.catch_up()).await?;
                        }
                    }
                    Effect::Abandon => self.link.shard.disk().abandon(&mut self.receiving),
                    // Boxed: an idle session has no room for what only these need.
                    Effect::Piece(piece) => Box::pin(self.append(piece)).await?,
                    Effect::Store(submission) => {
                        Box::pin(self.store(submission)).await?;
                        // The next group may have come behind the end-of-data, with its DATA.
                        if !self.input.is_empty() {
                            Box::pin(self.catch_up()).await?;
                        }
                    }
                    Effect::StartTls => Box::pin(self.start_tls()).await?,
                    Effect::Authenticate(credentials) => {
                        Box::pin(self.authenticate(credentials)).await?;
                        Box::pin(self.catch_up()).await?;
                    }
                    Effect::Pause(duration) => {
                        Box::pin(self.link.pause(duration)).await;
                        // Now: who has gone is not waited for again, however much it has sent before.
                        self.link.send(&mut self.replies).await?;
                        Box::pin(self.catch_up()).await?;
                        self.session.handle_pause_over(clock::now(), &mut self.replies);
                    }
                    Effect::Close => {
                        self.blame();
                        // The peer has had its reply, or does not want it.
                        let _ = Box::pin(self.link.close(&mut self.replies)).await;
                        return Ok(());
                    }
                }
            }
            if !self.input.is_empty() && self.take_input() {
                continue;
            }
            self.link.send(&mut self.replies).await?;
            if self.exceeds_budget() && self.session.hand_over_early(PIECE_SIZE_MIN) {
                continue;
            }
            self.link.shown().look_at(&self.session, self.service.may_be_spoken_for());
            if let Some(since) = self.greets_since {
                self.look_for_greeting(since);
            }
            match self.receive().await? {
                Input::Octets(()) => {}
                Input::End => self.session.handle_end_of_input(&mut self.replies),
                Input::Time => self.handle_time(),
                Input::Ending(Ending::Abort) => self.session.handle_abort(&mut self.replies),
                Input::Ending(_) => self.session.handle_drain(&mut self.replies),
            }
        }
    }

    /// Says when the greeting has been sent.
    fn look_for_greeting(&mut self, since: Instant) {
        if self.session.has_said_nothing() {
            return;
        }
        self.greets_since = None;
        if !self.session.is_closed() {
            let is_ours = self.service.session.tls != TlsMode::Implicit;
            let wait = clock::now().saturating_duration_since(since);
            self.link.shard.meters.greeted(self.session.peer(), self.service.address, wait, is_ours);
        }
    }

    fn handle_time(&mut self) {
        let was_silent = self.session.has_said_nothing();
        let now = clock::now();
        self.session.handle_timeout(now, &mut self.replies);
        if let Some(patience) = self.link.shard.patience()
            && !self.service.is_trusted
        {
            self.session.handle_impatience(patience, now, &mut self.replies);
        }
        // It has waited for its greeting, and has it now.
        if was_silent && !self.session.has_said_nothing() && !self.session.is_closed() {
            self.link.shard.settings().greetings.remember(self.session.peer().ip(), now);
        }
    }

    /// Remembers a peer whose session had to be ended for what it did.
    fn blame(&self) {
        let (shard, session) = (&self.link.shard, &self.session);
        let ip = session.peer().ip();
        if !session.was_sent_away() || session.authenticated().is_some() || !self.service.is_guarded(ip) {
            return;
        }
        if let Some(Ban { prefix, time }) = shard.settings().admission.blame(ip, clock::now()) {
            tracing::warn!(peer = %session.peer(), address = %prefix, time_seconds = time.as_secs(), "banned: its sessions had to be ended again and again");
        }
    }

    /// After somebody else than the peer was waited for: what has come meanwhile is taken together with what was there before. The peer
    /// has sent it without having seen a reply, and whether content follows a DATA that is here already is to be known when it is read.
    pub async fn catch_up(&mut self) -> io::Result<()> {
        let is_short = self.input.len() - self.taken < SCRATCH_SIZE;
        if self.input.is_empty() || !is_short || !self.link.has_octets_waiting() {
            return Ok(());
        }
        let input = &mut self.input;
        let received = self
            .link
            .receive(clock::now() + CATCH_UP_TIMEOUT, |octets| input.extend_from_slice(octets))
            .await?;
        if let Input::Ending(_) = received {
            self.link.tell_again();
        }
        Ok(())
    }

    /// Gives the session what it could not take before. True if it took something now.
    fn take_input(&mut self) -> bool {
        let rest = &self.input[self.taken..];
        let (shard, key) = (&self.link.shard, self.link.key());
        let is_watched = look_on(shard, key, &mut self.session, shard.taps.is_any(), false);
        let taken = self.session.handle_input(rest, clock::now(), &mut self.replies);
        if is_watched {
            shard.taps.hear(key, self.session.take_heard());
        }
        self.taken += taken;
        if self.taken == self.input.len() {
            self.input = Vec::new();
            self.taken = 0;
        }
        taken > 0
    }

    /// Receives once and gives the octets to the session. Not an `async fn`, as [`serve`].
    fn receive(&mut self) -> impl Future<Output = io::Result<Input<()>>> {
        let Served { link, session, replies, input, .. } = self;
        let (shard, key) = (link.shard.clone(), link.key());
        let deadline = session.deadline();
        link.receive(deadline, move |octets| {
            if replies.capacity() == 0 {
                *replies = shard.take_buffer();
            }
            let is_watched = look_on(&shard, key, session, shard.taps.is_any(), false);
            let taken = session.handle_input(octets, clock::now(), replies);
            if is_watched {
                shard.taps.hear(key, session.take_heard());
            }
            input.extend_from_slice(&octets[taken..]);
        })
    }

    /// Begins TLS, where there is a handshake to be had.
    async fn start_tls(&mut self) -> io::Result<()> {
        // What is owed is taken before a place among the handshakes is.
        self.link.send(&mut self.replies).await?;
        let shard = self.link.shard.clone();
        let handshake = self.service.acceptor.as_ref().zip(shard.begin_handshake(self.counted()));
        let Some((acceptor, _handshake)) = handshake else {
            self.link.shard.meters.not_secured(NoTls::Busy);
            tracing::info!(peer = %self.session.peer(), "no TLS: too many handshakes at a time");
            self.session.handle_tls_unavailable(clock::now(), &mut self.replies);
            return Ok(());
        };
        let channel = acceptor.accept();
        let begun = clock::now();
        let deadline = begun + shard.settings().handshake_timeout;
        self.link.expect_handshake();
        self.session.handle_tls_ready(&mut self.replies);
        self.link.send(&mut self.replies).await?;
        // Whatever is here was sent in clear, behind STARTTLS. (Of implicit TLS it is the beginning of the handshake, behind a
        // proxy's header.)
        let received = std::mem::take(&mut self.input).split_off(std::mem::take(&mut self.taken));
        let received = if self.session.has_said_nothing() { received } else { Vec::new() };
        let secured =
            self.link.secure(channel, self.session.peer(), received, deadline, &mut self.input).await;
        match secured {
            Ok(tls) => {
                let now = clock::now();
                self.link.shard.meters.secured(tls.version, now.saturating_duration_since(begun));
                self.link.shard.taps.secured(self.link.key(), tls.version);
                self.session.handle_secured(tls, now, &mut self.replies);
            }
            Err(why) => {
                self.link.shard.meters.not_secured(why.reason());
                tracing::info!(peer = %self.session.peer(), ?why, "no TLS: the handshake came to nothing");
                self.session.handle_tls_failed();
            }
        }
        Ok(())
    }

    /// Whose share of what all share this connection's part is, if it is counted.
    fn counted(&self) -> Option<IpAddr> {
        self.link.shard.counted(&self.service, self.session.peer().ip())
    }

    /// Has a password verified, by a thread that may take its time.
    async fn authenticate(&mut self, credentials: Credentials) -> io::Result<()> {
        self.link.send(&mut self.replies).await?;
        let (outcome, given) = answer(Authentication::Unavailable);
        let Credentials { user, password } = credentials;
        let name = user.clone();
        let attempt = Attempt { user, password, from: self.counted(), asker: Box::new(given) };
        // Refused by the queue it is dropped, and so answered.
        if let Some(verifier) = &self.service.verifier {
            let _ = verifier.submit(attempt);
        }
        let mut outcome_now = Authentication::Unavailable;
        let is_answered = self
            .link
            .wait_with_peer(|context| match outcome.poll(context) {
                Poll::Ready(outcome) => {
                    outcome_now = outcome;
                    Poll::Ready(())
                }
                Poll::Pending => Poll::Pending,
            })
            .await;
        self.link.shard.meters.authenticated(&outcome_now);
        let user = Escaped(name.as_bytes());
        match is_answered {
            true => {
                tracing::info!(peer = %self.session.peer(), %user, outcome = ?outcome_now, "authentication")
            }
            false => {
                tracing::info!(peer = %self.session.peer(), %user, "no authentication: the peer has gone before")
            }
        }
        self.session.handle_authenticated(outcome_now, clock::now(), &mut self.replies);
        Ok(())
    }

    async fn append(&mut self, piece: Vec<u8>) -> io::Result<()> {
        self.link.send(&mut self.replies).await?;
        match self.link.shard.disk().append_piece(&mut self.receiving, &piece).await {
            Ok(()) => {
                // Its memory is used again, unless the shard is short of it.
                let buffer = if self.exceeds_budget() { Vec::new() } else { piece };
                self.session.handle_piece_taken(buffer, clock::now());
            }
            Err(error) => {
                let why = not_stored(error);
                let size = self.session.content_size();
                self.link.shard.meters.not_queued(self.session.peer(), size, why);
                self.session.handle_not_stored(why, clock::now());
            }
        }
        Ok(())
    }

    async fn store(&mut self, submission: Submission) -> io::Result<()> {
        self.link.send(&mut self.replies).await?;
        let Submission { envelope, tail, content_size } = submission;
        let (begun, unix_millis) = (clock::now(), clock::unix_millis());
        let unix_time = unix_millis / 1000;
        let waited = begun.saturating_duration_since(self.connected).as_millis() as u64;
        let arrival = Arrival {
            client_name: self.noted.client_name().map(Box::from),
            tags: self.noted.tags(),
            provenance: Provenance::Session {
                connected: unix_millis.saturating_sub(waited),
                waited_millis: u32::try_from(waited).unwrap_or(u32::MAX),
                number: self.session.contents_begun(),
            },
            ..self.session.arrival(unix_time)
        };
        let recipients = envelope.forward_paths.len();
        let is_logged = tracing::enabled!(tracing::Level::INFO);
        let log_line = is_logged.then(|| {
            let tags: Vec<_> = arrival.tags.iter().map(Tag::as_str).collect();
            (envelope.reverse_path.clone(), tags.join(" "))
        });
        let message = JustAccepted { envelope, arrival, trace: Vec::new(), tail };
        let (shard, session) = (&self.link.shard, &self.session);
        let client_name = self.noted.client_name();
        let write_trace = |id| {
            let mut trace = Vec::with_capacity(TRACE_SIZE);
            shard.dates.with(unix_time, |date| session.write_received(id, client_name, date, &mut trace));
            trace
        };
        let (peer, tls) = (session.peer(), session.tls().map(|tls| tls.version));
        let stored = shard.disk().store(&mut self.receiving, message, write_trace).await;
        let now = clock::now();
        let outcome = match stored {
            Ok(id) => {
                self.link.shown().count_message();
                let wait = now.saturating_duration_since(begun);
                shard.meters.queued(Queued { id, peer, tls, size: content_size, recipients, wait });
                if let Some((from, tags)) = log_line {
                    let from = Escaped(from.as_str().as_bytes());
                    tracing::info!(name: "message.queued", message_id = %id, %peer, %from, recipients, size = content_size, tags, "accepted");
                }
                Ok(id)
            }
            Err(error) => {
                self.link.shard.disk().abandon(&mut self.receiving);
                let why = not_stored(error);
                self.link.shard.meters.not_queued(peer, content_size, why);
                Err(why)
            }
        };
        if self.replies.capacity() == 0 {
            self.replies = self.link.shard.take_buffer();
        }
        self.session.handle_stored(outcome, now, &mut self.replies);
        Ok(())
    }

    /// Counts what this connection holds, and tells if the shard holds more content than it may. Then what was gathered goes
    /// to the spool before more is received.
    fn exceeds_budget(&mut self) -> bool {
        let held = self.session.content_buffer_size() + self.input.capacity();
        let shard = &self.link.shard;
        shard.content_memory.set(shard.content_memory.get() + held - self.counted);
        self.counted = held;
        let envelope = self.session.envelope_size();
        shard.envelope_memory.set(shard.envelope_memory.get() + envelope - self.envelope_counted);
        self.envelope_counted = envelope;
        shard.content_memory.get() > shard.settings.borrow().content_memory_max
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let shard = &self.link.shard;
        shard.disk().abandon(&mut self.receiving);
        shard.content_memory.set(shard.content_memory.get() - self.counted);
        shard.envelope_memory.set(shard.envelope_memory.get() - self.envelope_counted);
        shard.give_buffer(std::mem::take(&mut self.replies));
    }
}

impl Asker for Answerer<Authentication> {
    fn is_waiting(&self) -> bool {
        self.is_waited_for()
    }

    fn tell(self: Box<Self>, is_right: bool) {
        self.give(if is_right { Authentication::Accepted } else { Authentication::Refused });
    }
}

/// Has `session` kept in mind what it hears while somebody looks on; true if somebody does. `is_any` is the flag that says whether
/// anybody looks at any session of the shard.
fn look_on(shard: &Shard, key: usize, session: &mut Session, is_any: bool, is_new: bool) -> bool {
    if !(is_any || session.is_watched()) {
        return false;
    }
    let is_watched = is_any && shard.taps.join(key, session.peer(), is_new);
    match is_watched {
        true => session.watch(is_new),
        false => session.unwatch(),
    }
    is_watched
}

fn not_stored(error: AppendError) -> NotStored {
    match error {
        AppendError::NoRoom => NotStored::NoRoom,
        AppendError::Busy => NotStored::TooBusy,
        AppendError::Failed => NotStored::Failed,
    }
}

/// Why no message is taken now, whoever it is from.
pub mod admission {
    use super::{Refusal, Status};

    /// The disk is full (RFC 3463 X.3.1: mail system full).
    pub const NO_ROOM: Refusal = Refusal::new(Status::temporary(3, 1), "Insufficient system storage");
    /// The queue is as long as it may be.
    pub const QUEUE_FULL: Refusal = Refusal::final_one(Status::temporary(3, 2), "Try again later");
    /// The medium failed for good.
    pub const MEDIUM_FAILED: Refusal = Refusal::final_one(Status::temporary(3, 0), "Try again later");
}
