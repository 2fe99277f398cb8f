//! One SMTP session: what arrives is handed to it, what it wants is polled from it.
//!
//! Invariants:
//! - while it awaits an answer, or an effect is not polled yet, it takes no octets: commands run one after
//!   the other;
//! - `250` for a message is written by `handle_stored` alone;
//! - once the 354 is given, or the first chunk begun, exactly one of `Store` and `Abandon` is raised, whatever happens;
//! - after `Close` nothing changes any more and late answers are ignored;
//! - what was said before TLS is not known behind it, but for the address XCLIENT gave; and what came in clear behind STARTTLS is
//!   never read.
//!
//! An idle session holds no buffer and no transaction.

mod chunks;
mod commands;
mod identity;
mod receiving;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::mail::{Arrival, Envelope, ForwardPath, MessageId, Protocol, Provenance, Refusal, Tls};

use super::config::{Dialect, Peer, SessionConfig, TlsMode};
use super::effect::{Effect, NotStored};
use super::heard::{Ear, Heard};
use super::line::LineReader;
use super::params::RecipientParams;
use super::reply::{self, Reply};
use super::sasl;
use super::state::{Event, State};
use super::trace::Received;
use super::transaction::{Chunk, Transaction};
use crate::mail::Phase;
use chunks::{Refused, Skipped};

/// How long a store that outlasts the session's time is waited for before it is looked at again. It is never
/// given up: the peer would send a message again that may be ours already.
const STORE_WAIT: Duration = Duration::from_secs(60);

/// One session, from the connection to its end.
#[derive(Debug)]
pub struct Session {
    config: Arc<SessionConfig>,
    peer: Peer,
    /// The session's own end.
    ends_at: Instant,
    /// When the last command ended; the next has `command_timeout` from here.
    latest: Instant,
    hello: Option<Hello>,
    /// What XCLIENT said of it; it stands for what the client says itself.
    hello_for: Option<Box<str>>,
    /// TLS has begun.
    tls: Option<Arc<Tls>>,
    authenticated: Option<Arc<str>>,
    transaction: Option<Box<Transaction>>,
    /// Octets of a chunk that is refused.
    skipped: Option<Box<Skipped>>,
    /// AUTH waits for a response.
    exchange: Option<Box<sasl::Exchange>>,
    line: LineReader,
    effect: Option<Effect>,
    awaits: Awaits,
    errors_count: u32,
    /// Commands deferred since the last accepted message.
    deferrals_count: u16,
    idle_count: u32,
    wrong_credentials_count: u8,
    /// Contents begun, up to 65,535: as many are stored or abandoned in the end. For tests.
    contents_count: u16,
    state: State,
    leaving: Leaving,
    /// A chunk was refused: those that the peer has sent behind it in good faith are no fault of its.
    refused: Option<Box<Refused>>,
    /// `Close` is still to be polled.
    owes_close: bool,
    /// It was ended for what the peer did.
    is_sent_away: bool,
    /// Somebody looks on.
    ear: Option<Box<Ear>>,
}

/// How far a session is, as an operator sees it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Standing {
    /// It has not said a word yet: TLS, a policy or a delay comes before the greeting.
    #[default]
    Connected,
    /// It was greeted, and has not named itself.
    Greeted,
    /// It has named itself, and no transaction is open.
    Ready,
    /// A transaction is open, its content has not begun.
    Transaction,
    /// Content is coming.
    Content,
    /// It waits for us: for a policy, a password, the spool.
    Waiting,
    /// It has ended.
    Closed,
}

impl Standing {
    /// One word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Standing::Connected => "connected",
            Standing::Greeted => "greeted",
            Standing::Ready => "ready",
            Standing::Transaction => "transaction",
            Standing::Content => "content",
            Standing::Waiting => "waiting",
            Standing::Closed => "closed",
        }
    }
}

/// How the peer named itself.
#[derive(Debug)]
struct Hello {
    name: Box<str>,
    is_extended: bool,
}

/// The answer that is awaited before anything else is taken.
#[derive(Debug)]
enum Awaits {
    Nothing,
    Connect,
    Hello(Hello),
    Mail,
    Recipient(Box<InQuestion>),
    /// The permission for a message, at its first chunk.
    Chunk(Chunk),
    /// TLS; behind it, unless it is implicit, 220 is owed.
    Tls {
        /// Octets came in clear behind STARTTLS, and were not read.
        is_dropped: bool,
    },
    /// The end of a pause.
    Pause,
    /// The user whose password is being looked at.
    Authenticated(Box<str>),
    Data {
        /// Octets came that the peer can only have sent before the 354.
        is_early: bool,
    },
    PieceTaken,
    Message,
    Stored(Stored),
}

/// A recipient that may be refused.
#[derive(Debug)]
struct InQuestion {
    path: ForwardPath,
    params: RecipientParams,
    /// Those that stand for it, if it is accepted.
    instead: Vec<ForwardPath>,
}

/// What is still to be known of a message when its envelope has gone to be stored.
#[derive(Debug)]
struct Stored {
    /// The recipient, if there is exactly one.
    recipient: Option<ForwardPath>,
    smtputf8: bool,
    /// One for each recipient in LMTP (RFC 2033 §4.2).
    replies_count: usize,
}

/// Why the session ends as soon as it can, if it does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Leaving {
    No,
    /// We are shutting down: after the open transaction.
    Drain,
    /// The session's time is over: after the store in flight.
    Overdue,
    /// The peer sends no more: after the answer that is awaited.
    EndOfInput,
}

impl Session {
    /// A session with a peer that has just connected. Appends the greeting, unless something comes before it: TLS, a check, a delay.
    pub fn new(config: Arc<SessionConfig>, peer: Peer, now: Instant, replies: &mut Vec<u8>) -> Self {
        let mut session = Session {
            ends_at: now + config.session_timeout,
            config,
            peer,
            latest: now,
            hello: None,
            hello_for: None,
            tls: None,
            authenticated: None,
            transaction: None,
            skipped: None,
            exchange: None,
            line: LineReader::default(),
            effect: None,
            awaits: Awaits::Nothing,
            errors_count: 0,
            deferrals_count: 0,
            idle_count: 0,
            wrong_credentials_count: 0,
            contents_count: 0,
            state: State::Connected,
            leaving: Leaving::No,
            refused: None,
            owes_close: false,
            is_sent_away: false,
            ear: None,
        };
        match session.config.tls {
            TlsMode::Implicit => session.start_tls(),
            _ => session.meet(replies),
        }
        session
    }

    /// Takes octets from the peer, appends the replies to them, and returns how many were taken.
    ///
    /// Fewer than all are taken when an effect is to be polled or an answer is awaited; the rest must be
    /// given again afterwards. All that is there should be given at once: octets behind a DATA line in one
    /// input are those that were sent before the 354.
    pub fn handle_input(&mut self, octets: &[u8], now: Instant, replies: &mut Vec<u8>) -> usize {
        if let Awaits::Data { is_early } = &mut self.awaits {
            *is_early |= !octets.is_empty();
        }
        let mut taken = 0;
        while taken < octets.len() && self.takes_input() {
            let rest = &octets[taken..];
            let (is_skipped, state) = (self.skipped.is_some(), self.state);
            let size = match self.state {
                _ if self.skipped.is_some() => self.skip(rest, now, replies),
                State::Content | State::Chunk => self.take_content(rest, now, replies),
                State::Connected => {
                    self.end_with(Reply::EarlyTalker, replies);
                    rest.len()
                }
                _ => self.take_line(rest, now, replies),
            };
            if let Some(ear) = &mut self.ear {
                match state {
                    _ if is_skipped => ear.ignored(size),
                    State::Content | State::Chunk => ear.content(size),
                    State::Connected => ear.ignored(size),
                    // The lines it has noted itself.
                    _ => {}
                }
            }
            taken += size;
            self.leave_if_due(replies);
        }
        // RFC 3207 §4.2, RFC 2920 §3.1: STARTTLS is the last of a group. What came in clear behind it may be anybody's, and would be
        // taken for the peer's own within TLS.
        if let Awaits::Tls { is_dropped } = &mut self.awaits {
            *is_dropped |= taken < octets.len();
            taken = octets.len();
        }
        taken
    }

    /// From here on what the peer says is kept for [`Session::take_heard`]. `is_new`: it has not said anything yet.
    pub fn watch(&mut self, is_new: bool) {
        // What the peer has said before is not known: it may have been AUTH.
        self.ear.get_or_insert_with(|| Box::new(Ear::new(!is_new)));
    }

    /// It is kept no longer.
    pub fn unwatch(&mut self) {
        self.ear = None;
    }

    /// Whether somebody looks on.
    pub fn is_watched(&self) -> bool {
        self.ear.is_some()
    }

    /// What was heard since the last time, with secrets left out.
    pub fn take_heard(&mut self) -> Vec<Heard> {
        self.ear.as_mut().map_or_else(Vec::new, |ear| ear.take())
    }

    /// How far it is.
    pub fn standing(&self) -> Standing {
        match (self.state, &self.awaits) {
            (State::Closed, _) => Standing::Closed,
            (State::Connected, _) => Standing::Connected,
            (State::Content | State::Chunk, Awaits::Nothing) => Standing::Content,
            (State::Arrived, _) => Standing::Waiting,
            (_, awaits) if !matches!(awaits, Awaits::Nothing) => Standing::Waiting,
            (State::Greeted, _) => Standing::Greeted,
            (State::Ready, _) => Standing::Ready,
            _ => Standing::Transaction,
        }
    }

    /// The peer will send no more (FIN). To be told when all its octets are taken or the session is closed.
    ///
    /// An unfinished transaction is abandoned. An answer that is awaited is still waited for and replied to.
    pub fn handle_end_of_input(&mut self, replies: &mut Vec<u8>) {
        self.leaving = Leaving::EndOfInput;
        self.leave_if_due(replies);
    }

    /// What is to be done next, if anything.
    pub fn poll_effect(&mut self) -> Option<Effect> {
        if let Some(effect) = self.effect.take() {
            return Some(effect);
        }
        std::mem::take(&mut self.owes_close).then_some(Effect::Close)
    }

    /// The answer to [`Effect::Check`].
    pub fn handle_verdict(&mut self, verdict: Result<(), Refusal>, now: Instant, replies: &mut Vec<u8>) {
        match (std::mem::replace(&mut self.awaits, Awaits::Nothing), verdict) {
            (Awaits::Connect, Ok(())) => self.accept_connection(replies),
            (Awaits::Hello(hello), Ok(())) => self.accept_hello(hello, replies),
            (Awaits::Mail, Ok(())) => self.accept_mail(replies),
            (Awaits::Recipient(recipient), Ok(())) => self.accept_recipient(*recipient, replies),
            (Awaits::Chunk(chunk), Ok(())) => self.accept_first_chunk(chunk, now, replies),
            (Awaits::Data { is_early }, Ok(())) => self.accept_data(is_early, now, replies),
            (Awaits::Message, Ok(())) => self.store_or_refuse(replies),
            (Awaits::Connect, Err(why)) => self.refuse_and_end(&why, Phase::Connect, replies),
            (Awaits::Hello(_), Err(why)) => self.refuse_by_policy(&why, Phase::Hello, replies),
            (Awaits::Mail, Err(why)) => {
                self.transaction = None;
                self.refuse_by_policy(&why, Phase::Mail, replies);
            }
            (Awaits::Recipient(_), Err(why)) => {
                self.note_refused_recipient();
                self.refuse_by_policy(&why, Phase::Recipient, replies);
            }
            (Awaits::Chunk(chunk), Err(why)) => self.refuse_first_chunk(chunk, why, now, replies),
            // The content that nobody has asked for would be read as commands.
            (Awaits::Data { is_early: true }, Err(_)) => self.end_with(Reply::EarlyContent, replies),
            (Awaits::Data { .. }, Err(why)) => {
                self.transaction = None;
                self.advance(Event::Reset);
                self.refuse_by_policy(&why, Phase::Data, replies);
            }
            (Awaits::Message, Err(why)) => {
                let count = self.conclude_without_store();
                self.refuse_by_policy(&why, Phase::Message, replies);
                (1..count).for_each(|_| reply::write_refusal(&why, Phase::Message, replies));
            }
            // No verdict is awaited: an answer that comes too late.
            (other, _) => {
                self.awaits = other;
                return;
            }
        }
        self.latest = now;
        self.leave_if_due(replies);
    }

    /// If the recipient in question is accepted, these stand for it in the envelope: it is an alias. To be said before
    /// [`Session::handle_verdict`].
    pub fn handle_replacement(&mut self, paths: Vec<ForwardPath>) {
        if let Awaits::Recipient(recipient) = &mut self.awaits {
            recipient.instead = paths;
        }
    }

    /// Octets came while the answer to [`Effect::Check`] of DATA was waited for: nobody has asked for them yet.
    pub fn handle_early_octets(&mut self) {
        if let Awaits::Data { is_early } = &mut self.awaits {
            *is_early = true;
        }
    }

    /// The pause is over.
    pub fn handle_pause_over(&mut self, now: Instant, replies: &mut Vec<u8>) {
        if matches!(self.awaits, Awaits::Pause) {
            self.awaits = Awaits::Nothing;
            self.latest = now;
            self.leave_if_due(replies);
        }
    }

    /// A piece is taken. `buffer` is an empty buffer to go on with; its capacity is used again.
    pub fn handle_piece_taken(&mut self, buffer: Vec<u8>, now: Instant) {
        if !matches!(self.awaits, Awaits::PieceTaken) {
            return;
        }
        self.awaits = Awaits::Nothing;
        let content = self.content().expect("a piece is awaited in content only");
        content.pace.resume(now);
        if content.refusal.is_none() {
            content.buffer = buffer;
            content.buffer.clear();
        }
    }

    /// A piece could not be stored, now or after it was taken. The content is refused and skipped to its end;
    /// then comes the reply.
    pub fn handle_not_stored(&mut self, why: NotStored, now: Instant) {
        let is_waited_for = matches!(self.awaits, Awaits::PieceTaken);
        if is_waited_for {
            self.awaits = Awaits::Nothing;
        }
        let is_asking = matches!(self.effect, Some(Effect::Check(_)));
        let Some(content) = self.content() else { return };
        if is_waited_for {
            content.pace.resume(now);
        }
        content.refuse(reply::ContentRefusal::NotStored(why));
        // A check that nobody has polled yet must not be lost; then `Abandon` follows its verdict.
        if !content.is_abandoned && !is_asking {
            content.is_abandoned = true;
            self.effect = Some(Effect::Abandon);
        }
    }

    /// The answer to [`Effect::Store`]. The one place where a 250 for a message is written.
    pub fn handle_stored(
        &mut self,
        outcome: Result<MessageId, NotStored>,
        now: Instant,
        replies: &mut Vec<u8>,
    ) {
        let Awaits::Stored(Stored { replies_count, .. }) = self.awaits else { return };
        self.awaits = Awaits::Nothing;
        self.latest = now;
        self.advance(Event::Conclude);
        match outcome {
            Ok(id) => {
                (0..replies_count).for_each(|_| reply::write_queued(id, replies));
                self.errors_count = 0;
                self.deferrals_count = 0;
                self.idle_count = 0;
            }
            Err(why) => self.reply_not_stored(why, replies_count, replies),
        }
        self.leave_if_due(replies);
    }

    /// When [`Session::handle_timeout`] is due unless something happens before. While it is we who are waited
    /// for, only the session's own end counts.
    pub fn deadline(&self) -> Instant {
        if !matches!(self.awaits, Awaits::Nothing) {
            return self.ends_at;
        }
        let content = self.transaction.as_ref().and_then(|t| t.content.as_ref());
        self.ends_at.min(match (&self.skipped, content) {
            (Some(skipped), _) => skipped.pace.deadline(&self.config),
            (_, Some(content)) if self.is_receiving_content() => content.pace.deadline(&self.config),
            _ if self.state == State::Connected => self.latest + self.peer.greeting_delay(),
            _ => self.latest + self.config.command_timeout,
        })
    }

    /// The deadline may have come. A message that is being stored is waited for all the same; the session
    /// ends after its reply.
    pub fn handle_timeout(&mut self, now: Instant, replies: &mut Vec<u8>) {
        if now < self.deadline() {
            return;
        }
        if matches!(self.awaits, Awaits::Stored(_)) {
            self.ends_at = now + STORE_WAIT;
            self.leaving = Leaving::Overdue;
            return;
        }
        // The delay of the greeting is over, and nothing was said.
        if self.state == State::Connected && matches!(self.awaits, Awaits::Nothing) && now < self.ends_at {
            self.latest = now;
            return self.greet(replies);
        }
        self.end_with(Reply::TimedOut, replies);
    }

    /// There is no room for peers that keep others waiting: the session ends if it has waited for a command for longer than `patience`.
    pub fn handle_impatience(&mut self, patience: Duration, now: Instant, replies: &mut Vec<u8>) {
        let is_idle = matches!(self.awaits, Awaits::Nothing)
            && !matches!(self.state, State::Connected | State::Content | State::Chunk | State::Closed)
            && self.skipped.is_none();
        if is_idle && now.saturating_duration_since(self.latest) >= patience {
            self.end_with(Reply::NoRoomForIdle, replies);
        }
    }

    /// We are shutting down: the session ends now, or after the transaction it is in.
    pub fn handle_drain(&mut self, replies: &mut Vec<u8>) {
        if matches!(self.awaits, Awaits::Connect | Awaits::Hello(_)) {
            return self.end_with(Reply::TryAgainLater, replies);
        }
        if self.leaving == Leaving::No {
            self.leaving = Leaving::Drain;
        }
        self.leave_if_due(replies);
    }

    /// The session ends now, whatever it is in.
    pub fn handle_abort(&mut self, replies: &mut Vec<u8>) {
        self.end_with(Reply::TryAgainLater, replies);
    }

    /// Appends the `Received:` field of the message that is being stored (RFC 5321 §4.4). `date` is as
    /// `format_date` writes it.
    ///
    /// `client_name` is the peer's name, if it is known.
    pub fn write_received(&self, id: MessageId, client_name: Option<&str>, date: &str, trace: &mut Vec<u8>) {
        let (recipient, smtputf8) = match &self.awaits {
            Awaits::Stored(stored) => (stored.recipient.as_ref(), stored.smtputf8),
            _ => (None, false),
        };
        let received = Received {
            hello: self.hello().unwrap_or_default(),
            client_name,
            peer: self.peer.address,
            hostname: &self.config.hostname,
            keyword: self.arrival(0).keyword(smtputf8),
            tls: self.tls.as_deref(),
            id,
            recipient,
            date,
        };
        received.write(trace);
    }

    /// How the message that is being stored has arrived, as far as the session knows; `unix_time` is now, in seconds.
    pub fn arrival(&self, unix_time: u64) -> Arrival {
        Arrival {
            peer: self.peer.address,
            hello: self.hello().unwrap_or_default().into(),
            protocol: match (&self.hello, self.config.dialect) {
                (_, Dialect::Lmtp) => Protocol::Lmtp,
                (Some(Hello { is_extended: false, .. }), _) => Protocol::Smtp,
                _ => Protocol::Esmtp,
            },
            tls: self.tls.clone(),
            authenticated: self.authenticated.clone(),
            client_name: None,
            tags: Vec::new(),
            unix_time,
            provenance: Provenance::Unknown,
        }
    }

    /// Whether the octets that come are content.
    pub fn is_receiving_content(&self) -> bool {
        matches!(self.state, State::Content | State::Chunk)
    }

    /// Whether the session has ended: nothing more is taken.
    pub fn is_closed(&self) -> bool {
        self.state == State::Closed
    }

    /// Whether the session was ended for what the peer did: see `Reply::is_for_misconduct`.
    pub fn was_sent_away(&self) -> bool {
        self.is_sent_away
    }

    /// Contents begun so far.
    pub fn contents_begun(&self) -> u16 {
        self.contents_count
    }

    /// Octets of memory held for content now.
    pub fn content_buffer_size(&self) -> usize {
        let buffer = self.transaction.as_ref().and_then(|t| t.content.as_ref()).map(|c| c.buffer.capacity());
        let offered = match &self.effect {
            Some(Effect::Piece(piece)) => piece.capacity(),
            Some(Effect::Store(submission)) => submission.tail.capacity(),
            _ => 0,
        };
        buffer.unwrap_or(0) + offered
    }

    /// The peer's address and port; of the client that XCLIENT has named, if it has.
    pub fn peer(&self) -> SocketAddr {
        self.peer.address
    }

    /// Whether not even a greeting was given: what begins now is the first thing on this connection.
    pub fn has_said_nothing(&self) -> bool {
        self.state == State::Connected
    }

    /// What protects the connection.
    pub fn tls(&self) -> Option<&Tls> {
        self.tls.as_deref()
    }

    /// As whom the peer has authenticated itself.
    pub fn authenticated(&self) -> Option<&str> {
        self.authenticated.as_deref()
    }

    /// The argument of HELO or EHLO; at [`Phase::Hello`] that of the one in question.
    pub fn hello(&self) -> Option<&str> {
        match &self.awaits {
            Awaits::Hello(hello) => Some(&hello.name),
            _ => self.hello.as_ref().map(|hello| &*hello.name),
        }
    }

    /// The envelope so far, from [`Phase::Mail`] until it goes with [`Effect::Store`].
    pub fn envelope(&self) -> Option<&Envelope> {
        self.transaction.as_ref().map(|transaction| &*transaction.envelope)
    }

    /// Octets of memory that the envelope takes, about.
    pub fn envelope_size(&self) -> usize {
        self.transaction.as_ref().map_or(0, |transaction| transaction.envelope_size())
    }

    /// The content's size as MAIL declared it, in octets.
    pub fn declared_size(&self) -> Option<u64> {
        self.transaction.as_ref()?.declared_size
    }

    /// The content's size so far, in octets; at [`Phase::Message`] that of the whole.
    pub fn content_size(&self) -> u64 {
        let content = self.transaction.as_ref().and_then(|transaction| transaction.content.as_ref());
        content.map_or(0, |content| content.size)
    }

    /// Whether the peer has said EHLO or LHLO, or is saying it at [`Phase::Hello`].
    pub fn is_extended(&self) -> bool {
        match &self.awaits {
            Awaits::Hello(hello) => hello.is_extended,
            _ => self.hello.as_ref().is_none_or(|hello| hello.is_extended),
        }
    }

    /// The forward-path in question at [`Phase::Recipient`].
    pub fn recipient(&self) -> Option<&ForwardPath> {
        match &self.awaits {
            Awaits::Recipient(recipient) => Some(&recipient.path),
            _ => None,
        }
    }

    fn takes_input(&self) -> bool {
        self.effect.is_none() && matches!(self.awaits, Awaits::Nothing) && self.state != State::Closed
    }

    /// Raises a check and remembers what it is about, if anybody wants to be asked.
    fn asks(&mut self, phase: Phase, awaits: Awaits) -> bool {
        let asks = self.config.phases.contains(phase);
        if asks {
            self.effect = Some(Effect::Check(phase));
            self.awaits = awaits;
        }
        asks
    }

    /// Only for events the state permits.
    fn advance(&mut self, event: Event) {
        let next = self.state.next(event);
        debug_assert!(next.is_some(), "{:?} × {event:?}", self.state);
        self.state = next.unwrap_or(self.state);
    }

    /// Ends the session if it is to end and nothing stands against it any more.
    fn leave_if_due(&mut self, replies: &mut Vec<u8>) {
        match (&self.awaits, self.leaving) {
            (_, Leaving::No) => return,
            (Awaits::Nothing, _) | (Awaits::PieceTaken, Leaving::EndOfInput) => {}
            _ => return,
        }
        match self.leaving {
            Leaving::Drain if self.transaction.is_none() => self.end_with(Reply::TryAgainLater, replies),
            Leaving::No | Leaving::Drain => {}
            Leaving::Overdue => self.end_with(Reply::TimedOut, replies),
            Leaving::EndOfInput => self.close(),
        }
    }

    fn end_with(&mut self, reply: Reply, replies: &mut Vec<u8>) {
        if self.state != State::Closed {
            reply.write(replies);
            self.is_sent_away = reply.is_for_misconduct();
            self.close();
        }
    }

    /// Ends the session. A content that was begun and has neither been stored nor abandoned is abandoned.
    fn close(&mut self) {
        if self.state == State::Closed {
            return;
        }
        self.advance(Event::Close);
        self.abandon();
        // A check or a piece that nobody has polled is of no use to anybody now.
        self.effect = self.effect.take().filter(|effect| *effect == Effect::Abandon);
        self.awaits = Awaits::Nothing;
        self.line = LineReader::default();
        self.skipped = None;
        self.exchange = None;
        self.owes_close = true;
    }

    /// The peer is here: it is greeted, unless somebody must be asked or it must wait first.
    fn meet(&mut self, replies: &mut Vec<u8>) {
        if !self.asks(Phase::Connect, Awaits::Connect) {
            self.accept_connection(replies);
        }
    }

    /// Drops the transaction, and raises `Abandon` unless that is done or there was no content.
    fn abandon(&mut self) {
        let is_owed = self
            .transaction
            .take()
            .and_then(|transaction| transaction.content)
            .is_some_and(|content| !content.is_abandoned);
        if is_owed || matches!(self.effect, Some(Effect::Store(_))) {
            self.effect = Some(Effect::Abandon);
        }
    }
}

#[cfg(test)]
mod tests;
