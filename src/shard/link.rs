//! One peer's connection below SMTP: a socket, perhaps with TLS on it.
//!
//! Octets are received into the shard's one scratch buffer and decrypted into another one of the shard's: an idle link owns none.
//! What is to be sent is gathered by the caller and written at once.
//!
//! Invariant: once TLS has begun no octet is given out that did not come through it, whatever follows its end.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use futures_lite::{AsyncRead, AsyncWrite};
use glommio::net::TcpStream;
use glommio::timer::Timer;
use rustix::event::{PollFd, PollFlags};
use rustix::net::{RecvFlags, recv};

use super::clock;
use super::event::keep_waker;
use super::meters::NoTls;
use super::sessions::Shown;
use super::{Ending, Shard};
use crate::mail::Tls;
use crate::tls::Channel;

/// A peer that does not read what it is sent is given up after this: a reply is small, and RFC 5321 §4.5.3.2 gives the
/// other side minutes for everything.
const SEND_TIMEOUT: Duration = Duration::from_secs(300);
/// After we have ended a session first, the peer has this long to read the last reply: closing with unread octets would
/// reset the connection and might take the reply with it.
const LINGER_TIMEOUT: Duration = Duration::from_secs(2);
/// How often a peer is looked for that waits for something expensive.
const PRESENCE_INTERVAL: Duration = Duration::from_millis(250);
/// How long a link may go on receiving before the shard's others have a turn. As long as something is there nothing is waited for, and
/// a peer that sends faster than it is read would have the shard for itself.
const TURN_TIME: Duration = Duration::from_millis(1);
/// How long it then waits: for the ring to be looked at, which a task that is merely put behind others does not bring about.
const TURN_PAUSE: Duration = Duration::from_micros(50);

/// What the rest of the shard knows of a link.
pub struct Connection {
    /// When it wants to be woken.
    deadline: Cell<Instant>,
    waker: RefCell<Option<Waker>>,
    told: Cell<Ending>,
    /// What operators see of it.
    pub shown: Shown,
}

impl Connection {
    /// Wakes it if its deadline has passed.
    pub fn handle_time(&self, now: Instant) {
        if now >= self.deadline.get() {
            self.wake();
        }
    }

    /// Wakes it as if its deadline had passed: it looks for itself what is due.
    pub fn look_at_time(&self) {
        self.deadline.set(clock::now());
        self.wake();
    }

    /// Wakes it so that it looks at the shard's [`Ending`].
    pub fn wake(&self) {
        if let Some(waker) = self.waker.borrow_mut().take() {
            waker.wake();
        }
    }
}

/// A socket and its place in the shard.
pub struct Link {
    pub shard: Rc<Shard>,
    connection: Rc<Connection>,
    /// Its place among the shard's connections.
    key: usize,
    stream: TcpStream,
    /// Boxed: most links are in clear.
    tls: Option<Box<Secured>>,
    /// A handshake is about to begin, or going on: what is sent must be taken within its time.
    is_shaking: bool,
    /// Since when it has received without having to wait.
    turn: Option<Instant>,
}

/// TLS on a link.
struct Secured {
    channel: Channel,
    /// Who is at the other end, for the log.
    peer: SocketAddr,
    /// What TLS has to say beside what it is given: alerts, tickets, key updates.
    outgoing: Vec<u8>,
}

impl Secured {
    /// Takes what was received, and appends what it says in clear.
    fn take(&mut self, octets: &[u8], plaintext: &mut Vec<u8>) {
        if let Err(error) = self.channel.handle_ciphertext(octets, plaintext, &mut self.outgoing) {
            tracing::info!(peer = %self.peer, %error, "TLS failed");
        }
    }

    /// Gathers `octets` to be sent.
    fn give(&mut self, octets: &[u8]) {
        // During the handshake only TLS itself has something to say.
        if !octets.is_empty() {
            self.channel.encrypt(octets, &mut self.outgoing);
        }
    }
}

/// What ended a wait for octets.
pub enum Input<T> {
    Octets(T),
    End,
    Time,
    Ending(Ending),
}

impl Link {
    /// A link of `shard`, which counts it from here on.
    pub fn new(shard: Rc<Shard>, stream: TcpStream) -> Self {
        let connection = Rc::new(Connection {
            deadline: Cell::new(clock::now()),
            waker: RefCell::default(),
            told: Cell::new(Ending::No),
            shown: Shown::new(&stream),
        });
        let key = shard.connections.borrow_mut().insert(connection.clone());
        Link { shard, connection, key, stream, tls: None, is_shaking: false, turn: None }
    }

    /// Its place among the shard's connections, while it lives.
    pub fn key(&self) -> usize {
        self.key
    }

    /// What operators see of it.
    pub fn shown(&self) -> &Shown {
        &self.connection.shown
    }

    /// Receives once, and gives `take` the octets: in clear, and perhaps none, where only TLS had something to say.
    ///
    /// Not an `async fn`, nor is [`Link::write`]: an idle session would have room for the arguments twice.
    #[allow(clippy::manual_async_fn)] // see above
    pub fn receive<T>(
        &mut self,
        deadline: Instant,
        mut take: impl FnMut(&[u8]) -> T,
    ) -> impl Future<Output = io::Result<Input<T>>> {
        async move {
            // Who always has something to say has no more time than others.
            if self.give_turn().await && clock::now() >= deadline {
                return Ok(Input::Time);
            }
            self.connection.deadline.set(deadline);
            poll_fn(|context| self.poll_receive(context, &mut take)).await
        }
    }

    fn poll_receive<T>(
        &mut self,
        context: &mut Context<'_>,
        take: &mut impl FnMut(&[u8]) -> T,
    ) -> Poll<io::Result<Input<T>>> {
        let Link { shard, connection, stream, tls, turn, .. } = self;
        let ending = shard.ending.get();
        if ending != connection.told.replace(ending) {
            return Poll::Ready(Ok(Input::Ending(ending)));
        }
        // TLS has ended or failed: whatever comes is not looked at.
        if tls.as_ref().is_some_and(|tls| tls.channel.is_ended()) {
            return Poll::Ready(Ok(Input::End));
        }
        let scratch = &mut *shard.scratch.borrow_mut();
        match Pin::new(stream).poll_read(context, scratch) {
            Poll::Ready(Ok(0)) => return Poll::Ready(Ok(Input::End)),
            Poll::Ready(Ok(size)) => {
                turn.get_or_insert_with(clock::now);
                let Some(tls) = tls else {
                    return Poll::Ready(Ok(Input::Octets(take(&scratch[..size]))));
                };
                let plaintext = &mut *shard.plaintext.borrow_mut();
                plaintext.clear();
                tls.take(&scratch[..size], plaintext);
                return Poll::Ready(Ok(Input::Octets(take(plaintext))));
            }
            Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
            Poll::Pending => *turn = None,
        }
        if clock::now() >= connection.deadline.get() {
            return Poll::Ready(Ok(Input::Time));
        }
        keep_waker(&mut connection.waker.borrow_mut(), context);
        Poll::Pending
    }

    /// Lets the shard's others go first, after [`TURN_TIME`]. True if it has.
    async fn give_turn(&mut self) -> bool {
        let gives = self.turn.is_some_and(|since| clock::now() >= since + TURN_TIME);
        if gives {
            self.turn = None;
            // Boxed: an idle session has no room for it.
            Box::pin(Timer::new(TURN_PAUSE)).await;
        }
        gives
    }

    /// Writes `octets`, and whatever TLS has to say, at once; then `octets` is empty, and its buffer the shard's again.
    pub async fn send(&mut self, octets: &mut Vec<u8>) -> io::Result<()> {
        if self.shard.taps.is_any() {
            self.shard.taps.say(self.key, octets);
        }
        self.shard.meters.replied(octets);
        let mut out = match &mut self.tls {
            None => std::mem::take(octets),
            Some(tls) => {
                tls.give(octets);
                self.shard.give_buffer(std::mem::take(octets));
                std::mem::take(&mut tls.outgoing)
            }
        };
        if out.is_empty() {
            *octets = out;
            return Ok(());
        }
        let written = self.write(&out).await;
        out.clear();
        self.shard.give_buffer(out);
        written
    }

    fn write(&mut self, octets: &[u8]) -> impl Future<Output = io::Result<()>> {
        let Link { shard, connection, stream, is_shaking, .. } = self;
        let mut written = 0;
        let mut until = None;
        poll_fn(move |context| {
            while written < octets.len() {
                match Pin::new(&mut *stream).poll_write(context, &octets[written..]) {
                    Poll::Ready(Ok(0)) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                    Poll::Ready(Ok(size)) => written += size,
                    Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                    Poll::Pending => {
                        let now = clock::now();
                        let timeout =
                            if *is_shaking { shard.settings().handshake_timeout } else { SEND_TIMEOUT };
                        let until = *until.get_or_insert(now + timeout);
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
    }

    /// Whoever receives next is told of the shard's ending, though somebody before has been.
    pub fn tell_again(&self) {
        self.connection.told.set(Ending::No);
    }

    /// Shakes hands with `peer`, until `deadline`. `received` is the beginning of the handshake, if that is here already; what came through TLS
    /// in the end is appended to `input`.
    pub async fn secure(
        &mut self,
        channel: Channel,
        peer: SocketAddr,
        received: Vec<u8>,
        deadline: Instant,
        input: &mut Vec<u8>,
    ) -> Result<Tls, HandshakeError> {
        let tls = self.tls.insert(Box::new(Secured { channel, peer, outgoing: Vec::new() }));
        tls.take(&received, input);
        self.send(&mut Vec::new()).await?;
        loop {
            let received = self.receive(deadline, |plaintext| input.extend_from_slice(plaintext)).await?;
            let tls = self.tls.as_ref().expect("it was set above");
            if let Some(facts) = tls.channel.facts() {
                // The last of the handshake goes with the next reply, or by itself before anything is waited for.
                self.is_shaking = false;
                self.tell_again();
                return Ok(facts);
            }
            // What there is to say is said before anything else, an alert too.
            self.send(&mut Vec::new()).await?;
            match received {
                Input::Octets(()) | Input::Ending(Ending::No | Ending::Drain) => {}
                // It was only to look what time it is.
                Input::Time if clock::now() < deadline => {}
                Input::End => return Err(HandshakeError::Ended),
                Input::Time => return Err(HandshakeError::Time),
                Input::Ending(_) => return Err(HandshakeError::Ended),
            }
        }
    }

    /// A handshake is about to begin: what is sent before it and in it must be taken within its time.
    pub fn expect_handshake(&mut self) {
        self.is_shaking = true;
    }

    /// Writes `octets`, says that TLS ends, if there is any, and lets the peer read what it was sent last.
    pub async fn close(&mut self, octets: &mut Vec<u8>) -> io::Result<()> {
        if let Some(tls) = &mut self.tls {
            if self.shard.taps.is_any() {
                self.shard.taps.say(self.key, octets);
            }
            self.shard.meters.replied(octets);
            tls.give(octets);
            octets.clear();
            tls.channel.close(&mut tls.outgoing);
        }
        self.send(octets).await?;
        self.stream.shutdown(std::net::Shutdown::Write).await.map_err(io::Error::from)?;
        let until = clock::now() + LINGER_TIMEOUT;
        self.connection.deadline.set(until);
        while poll_fn(|context| self.poll_discard(context, until)).await {
            self.give_turn().await;
        }
        Ok(())
    }

    /// Receives what nobody looks at, once; false at the end of it, or of the time.
    fn poll_discard(&mut self, context: &mut Context<'_>, until: Instant) -> Poll<bool> {
        let Link { shard, connection, stream, turn, .. } = self;
        if clock::now() >= until || shard.ending.get() == Ending::Abort {
            return Poll::Ready(false);
        }
        let scratch = &mut *shard.scratch.borrow_mut();
        match Pin::new(stream).poll_read(context, scratch) {
            Poll::Ready(Ok(0)) | Poll::Ready(Err(_)) => Poll::Ready(false),
            Poll::Ready(Ok(_)) => {
                turn.get_or_insert_with(clock::now);
                Poll::Ready(true)
            }
            Poll::Pending => {
                *turn = None;
                keep_waker(&mut connection.waker.borrow_mut(), context);
                Poll::Pending
            }
        }
    }

    /// Whether the peer has sent something that was not received yet.
    pub fn has_octets_waiting(&self) -> bool {
        let mut octet = [0];
        let peek = RecvFlags::PEEK | RecvFlags::DONTWAIT;
        // SAFETY: the stream that owns the descriptor lives longer than this borrow of it.
        let stream = unsafe { BorrowedFd::borrow_raw(self.stream.as_raw_fd()) };
        recv(stream, &mut octet, peek).is_ok_and(|(size, _)| size > 0)
    }

    /// Lets so much time pass, unless the shard ends at once.
    pub async fn pause(&mut self, duration: Duration) {
        let until = clock::now() + duration;
        self.connection.deadline.set(until);
        self.wait(|_| if clock::now() >= until { Poll::Ready(()) } else { Poll::Pending }).await;
    }

    /// Waits for something else than the peer; false if the shard ends at once instead. `poll` keeps its own waker.
    pub async fn wait(&mut self, mut poll: impl FnMut(&mut Context<'_>) -> Poll<()>) -> bool {
        let Link { shard, connection, .. } = self;
        poll_fn(|context| {
            if poll(context).is_ready() {
                return Poll::Ready(true);
            }
            if shard.ending.get() == Ending::Abort {
                return Poll::Ready(false);
            }
            keep_waker(&mut connection.waker.borrow_mut(), context);
            Poll::Pending
        })
        .await
    }

    /// As [`Link::wait`], and no longer than the peer is there: false too once it sends no more, which is looked for now and then.
    pub async fn wait_with_peer(&mut self, mut poll: impl FnMut(&mut Context<'_>) -> Poll<()>) -> bool {
        let connection = self.connection.clone();
        let descriptor = self.stream.as_raw_fd();
        let mut is_answered = false;
        self.wait(|context| {
            is_answered = poll(context).is_ready();
            connection.deadline.set(clock::now() + PRESENCE_INTERVAL);
            match is_answered || has_hung_up(descriptor) {
                true => Poll::Ready(()),
                false => Poll::Pending,
            }
        })
        .await;
        is_answered
    }
}

/// Whether the peer has said that it sends no more, behind whatever it has sent; or is gone.
fn has_hung_up(descriptor: RawFd) -> bool {
    // SAFETY: the caller has the socket open.
    let socket = unsafe { BorrowedFd::borrow_raw(descriptor) };
    let no_wait = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
    let mut look = [PollFd::new(&socket, PollFlags::RDHUP)];
    matches!(rustix::event::poll(&mut look, Some(&no_wait)), Ok(1))
}

/// Why a handshake came to nothing. What TLS itself had against it was logged.
#[derive(Debug)]
pub enum HandshakeError {
    /// The peer has gone, or TLS has failed, or the shard ends.
    Ended,
    /// It took too long.
    Time,
    /// The connection broke.
    Broken,
}

impl HandshakeError {
    /// As what it is counted.
    pub fn reason(&self) -> NoTls {
        match self {
            HandshakeError::Ended => NoTls::Ended,
            HandshakeError::Time => NoTls::Time,
            HandshakeError::Broken => NoTls::Broken,
        }
    }
}

impl From<io::Error> for HandshakeError {
    fn from(_: io::Error) -> Self {
        HandshakeError::Broken
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        if self.shard.taps.is_any() {
            self.shard.taps.end(self.key);
        }
        let mut connections = self.shard.connections.borrow_mut();
        connections.remove(self.key);
        if connections.is_empty() {
            self.shard.emptied.set();
        }
    }
}
