//! One connection: read → session → effects → write.
//!
//! Octets are received into the shard's one scratch buffer and given to the session at once; only what it cannot take yet
//! is kept here. Replies are gathered and written together, before anything is waited for. While the session waits for
//! the disk or for memory nothing is read: back-pressure, not buffering.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Poll, Waker};
use std::time::{Duration, Instant};

use futures_lite::{AsyncRead, AsyncWrite};
use glommio::net::TcpStream;

use super::clock;
use super::event::keep_waker;
use super::handoff::JustAccepted;
use super::{Ending, Shard};
use crate::limits::PIECE_SIZE_MIN;
use crate::mail::{Phase, Refusal, Status};
use crate::policy::Facts;
use crate::smtp::{BareLineEnds, Effect, NotStored, Peer, Session, Submission};
use crate::spool::{AppendError, Receiving};
use crate::telemetry::Escaped;

/// A peer that does not read what it is sent is given up after this: a reply is small, and RFC 5321 §4.5.3.2 gives the
/// other side minutes for everything.
const SEND_TIMEOUT: Duration = Duration::from_secs(300);
/// After we have ended a session first, the peer has this long to read the last reply: closing with unread octets would
/// reset the connection and might take the reply with it.
const LINGER_TIMEOUT: Duration = Duration::from_secs(2);

/// What a trace field usually fits in, octets.
const TRACE_SIZE: usize = 256;

/// What the rest of the shard knows of a connection.
pub struct Connection {
    /// When it wants to be woken.
    deadline: Cell<Instant>,
    waker: RefCell<Option<Waker>>,
    told: Cell<Ending>,
}

impl Connection {
    /// Wakes it if its deadline has passed.
    pub fn handle_time(&self, now: Instant) {
        if now >= self.deadline.get() {
            self.wake();
        }
    }

    /// Wakes it so that it looks at the shard's [`Ending`].
    pub fn wake(&self) {
        if let Some(waker) = self.waker.borrow_mut().take() {
            waker.wake();
        }
    }
}

/// Serves one peer until the session or the connection ends.
///
/// Not an `async fn`: that would keep room for its arguments beside the state they are moved into, in every idle session.
pub fn serve(
    shard: Rc<Shard>,
    stream: TcpStream,
    peer: SocketAddr,
    bare: BareLineEnds,
) -> impl Future<Output = ()> {
    let connection = Rc::new(Connection {
        deadline: Cell::new(clock::now()),
        waker: RefCell::default(),
        told: Cell::new(Ending::No),
    });
    let key = shard.connections.borrow_mut().insert(connection.clone());
    let mut replies = shard.take_buffer();
    let peer = Peer { bare_line_ends: bare, ..Peer::stranger(peer) };
    let session = Session::new(shard.session_config.clone(), peer, clock::now(), &mut replies);
    let mut served = Served {
        shard,
        connection,
        key,
        stream,
        session,
        receiving: Receiving::default(),
        replies,
        input: Vec::new(),
        counted: 0,
    };
    async move {
        // A connection that breaks is the peer's affair; what it had sent is not mail before its end-of-data.
        let _ = served.run().await;
    }
}

struct Served {
    shard: Rc<Shard>,
    connection: Rc<Connection>,
    /// Its place among the shard's connections.
    key: usize,
    stream: TcpStream,
    session: Session,
    /// What of the content is in the spool.
    receiving: Receiving,
    replies: Vec<u8>,
    /// Received and not yet taken.
    input: Vec<u8>,
    /// Octets of the shard's memory budget that this connection has.
    counted: usize,
}

/// What ended a wait for input.
enum Input {
    Octets,
    End,
    Time,
    Ending(Ending),
}

impl Served {
    async fn run(&mut self) -> io::Result<()> {
        loop {
            while let Some(effect) = self.session.poll_effect() {
                match effect {
                    Effect::Check(phase) => {
                        let verdict = self.check(phase);
                        self.session.handle_verdict(verdict, clock::now(), &mut self.replies);
                    }
                    Effect::Abandon => self.shard.disk().abandon(&mut self.receiving),
                    // Boxed: an idle session has no room for what only these need.
                    Effect::Piece(piece) => Box::pin(self.append(piece)).await?,
                    Effect::Store(submission) => Box::pin(self.store(submission)).await?,
                    Effect::StartTls | Effect::Authenticate(_) => {
                        unreachable!("neither TLS nor AUTH is configured")
                    }
                    Effect::Close => return self.close().await,
                }
            }
            if !self.input.is_empty() && self.take_input() {
                continue;
            }
            self.write_replies().await?;
            if self.exceeds_budget() && self.session.hand_over_early(PIECE_SIZE_MIN) {
                continue;
            }
            match self.receive().await? {
                Input::Octets => {}
                Input::End => self.session.handle_end_of_input(&mut self.replies),
                Input::Time => self.session.handle_timeout(clock::now(), &mut self.replies),
                Input::Ending(Ending::Abort) => self.session.handle_abort(&mut self.replies),
                Input::Ending(_) => self.session.handle_drain(&mut self.replies),
            }
        }
    }

    /// Gives the session what it could not take before. True if it took something now.
    fn take_input(&mut self) -> bool {
        let taken = self.session.handle_input(&self.input, clock::now(), &mut self.replies);
        if taken == self.input.len() {
            self.input = Vec::new();
        } else {
            self.input.drain(..taken);
        }
        taken > 0
    }

    /// Receives once and gives the octets to the session.
    async fn receive(&mut self) -> io::Result<Input> {
        let Served { shard, connection, stream, session, replies, input, .. } = self;
        connection.deadline.set(session.deadline());
        poll_fn(|context| {
            let ending = shard.ending.get();
            if ending != connection.told.replace(ending) {
                return Poll::Ready(Ok(Input::Ending(ending)));
            }
            let scratch = &mut *shard.scratch.borrow_mut();
            match Pin::new(&mut *stream).poll_read(context, scratch) {
                Poll::Ready(Ok(0)) => return Poll::Ready(Ok(Input::End)),
                Poll::Ready(Ok(size)) => {
                    if replies.capacity() == 0 {
                        *replies = shard.take_buffer();
                    }
                    let taken = session.handle_input(&scratch[..size], clock::now(), replies);
                    input.extend_from_slice(&scratch[taken..size]);
                    return Poll::Ready(Ok(Input::Octets));
                }
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => {}
            }
            if clock::now() >= connection.deadline.get() {
                return Poll::Ready(Ok(Input::Time));
            }
            keep_waker(&mut connection.waker.borrow_mut(), context);
            Poll::Pending
        })
        .await
    }

    /// Writes the gathered replies: one write for all of them.
    async fn write_replies(&mut self) -> io::Result<()> {
        if self.replies.is_empty() {
            return Ok(());
        }
        let Served { shard, connection, stream, replies, .. } = self;
        let mut written = 0;
        let mut until = None;
        poll_fn(|context| {
            while written < replies.len() {
                match Pin::new(&mut *stream).poll_write(context, &replies[written..]) {
                    Poll::Ready(Ok(0)) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                    Poll::Ready(Ok(size)) => written += size,
                    Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                    Poll::Pending => {
                        let now = clock::now();
                        let until = *until.get_or_insert(now + SEND_TIMEOUT);
                        if now >= until || shard.ending.get() == Ending::Abort {
                            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
                        }
                        connection.deadline.set(until);
                        keep_waker(&mut connection.waker.borrow_mut(), context);
                        return Poll::Pending;
                    }
                }
            }
            Poll::Ready(Ok(()))
        })
        .await?;
        shard.give_buffer(std::mem::take(replies));
        Ok(())
    }

    async fn append(&mut self, piece: Vec<u8>) -> io::Result<()> {
        self.write_replies().await?;
        match self.shard.disk().append_piece(&mut self.receiving, &piece).await {
            Ok(()) => {
                // Its memory is used again, unless the shard is short of it.
                let buffer = if self.exceeds_budget() { Vec::new() } else { piece };
                self.session.handle_piece_taken(buffer, clock::now());
            }
            Err(error) => self.session.handle_not_stored(not_stored(error), clock::now()),
        }
        Ok(())
    }

    async fn store(&mut self, submission: Submission) -> io::Result<()> {
        self.write_replies().await?;
        let Submission { envelope, tail, content_size } = submission;
        let unix_time = clock::unix_now();
        let arrival = self.session.arrival(unix_time);
        let is_logged = tracing::enabled!(tracing::Level::INFO);
        let log_line = is_logged.then(|| (envelope.reverse_path.clone(), envelope.forward_paths.len()));
        let message = JustAccepted { envelope, arrival, trace: Vec::new(), tail };
        let (shard, session) = (&self.shard, &self.session);
        let write_trace = |id| {
            let mut trace = Vec::with_capacity(TRACE_SIZE);
            shard.dates.with(unix_time, |date| session.write_received(id, date, &mut trace));
            trace
        };
        let outcome = match shard.disk().store(&mut self.receiving, message, write_trace).await {
            Ok(id) => {
                if let Some((from, recipients)) = log_line {
                    let from = Escaped(from.as_str().as_bytes());
                    tracing::info!(message_id = %id, peer = %self.session.peer(), %from, recipients, size = content_size, "accepted");
                }
                Ok(id)
            }
            Err(error) => {
                self.shard.disk().abandon(&mut self.receiving);
                Err(not_stored(error))
            }
        };
        if self.replies.capacity() == 0 {
            self.replies = self.shard.take_buffer();
        }
        self.session.handle_stored(outcome, clock::now(), &mut self.replies);
        Ok(())
    }

    /// The verdict of everybody who may refuse: admission first, then the policies.
    fn check(&self, phase: Phase) -> Result<(), Refusal> {
        let session = &self.session;
        if matches!(phase, Phase::Mail | Phase::Data) {
            self.shard.admit_message(session.declared_size().unwrap_or(0))?;
        }
        let envelope = session.envelope();
        let facts = Facts {
            hello: session.hello().unwrap_or_default(),
            reverse_path: envelope.map(|envelope| &envelope.reverse_path),
            recipient: session.recipient(),
            recipients_count: envelope.map_or(0, |envelope| envelope.forward_paths.len()),
            declared_size: session.declared_size(),
            ..Facts::of_peer(session.peer())
        };
        match self.shard.policies.refusal(phase, &facts) {
            None => Ok(()),
            Some((policy, refusal)) => {
                tracing::info!(peer = %session.peer(), ?phase, policy, status = %refusal.status, text = %refusal.text, "refused");
                Err(refusal)
            }
        }
    }

    /// Counts what this connection holds, and tells if the shard holds more content than it may. Then what was gathered goes
    /// to the spool before more is received.
    fn exceeds_budget(&mut self) -> bool {
        let held = self.session.content_buffer_size() + self.input.capacity();
        self.shard.content_memory.set(self.shard.content_memory.get() + held - self.counted);
        self.counted = held;
        self.shard.content_memory.get() > self.shard.content_memory_max
    }

    /// The session has ended: the last replies, then the end of the connection.
    async fn close(&mut self) -> io::Result<()> {
        self.write_replies().await?;
        let Served { shard, connection, stream, .. } = self;
        stream.shutdown(std::net::Shutdown::Write).await.map_err(io::Error::from)?;
        let until = clock::now() + LINGER_TIMEOUT;
        connection.deadline.set(until);
        poll_fn(|context| {
            loop {
                if clock::now() >= until || shard.ending.get() == Ending::Abort {
                    return Poll::Ready(Ok(()));
                }
                let scratch = &mut *shard.scratch.borrow_mut();
                match Pin::new(&mut *stream).poll_read(context, scratch) {
                    Poll::Ready(Ok(0)) | Poll::Ready(Err(_)) => return Poll::Ready(Ok(())),
                    Poll::Ready(Ok(_)) => {}
                    Poll::Pending => {
                        keep_waker(&mut connection.waker.borrow_mut(), context);
                        return Poll::Pending;
                    }
                }
            }
        })
        .await
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let mut connections = self.shard.connections.borrow_mut();
        connections.remove(self.key);
        if connections.is_empty() {
            self.shard.emptied.set();
        }
        drop(connections);
        self.shard.disk().abandon(&mut self.receiving);
        self.shard.content_memory.set(self.shard.content_memory.get() - self.counted);
        self.shard.give_buffer(std::mem::take(&mut self.replies));
    }
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
