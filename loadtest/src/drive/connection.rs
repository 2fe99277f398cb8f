//! One connection after another: connect, converse, and begin anew until there is nothing more to send.

use std::future::poll_fn;
use std::io;
use std::net::IpAddr;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use super::core::{Core, Deadline, Turn};
use super::link::{Habits, Link};
use crate::content::{Form, ID_SIZE};
use crate::measure::{Failure, Phase};
use crate::plan::TlsMode;
use crate::smtp::{Dialogue, Next, Replies};

/// The pause after a connection failed, doubled each time until one is greeted: a harness that hammers a server which is
/// in trouble measures itself.
const PAUSE_MIN: Duration = Duration::from_millis(10);
const PAUSE_MAX: Duration = Duration::from_secs(1);
/// Octets of content in one call.
const WRITE_SIZE_MAX: usize = 64 * 1024;
/// Octets after which a connection that could send more lets the others have their turn.
const TURN_SIZE_MAX: usize = 1 << 20;

type Permit<'a> = glommio::sync::Permit<'a>;

/// Keeps one connection busy until the run is over.
pub async fn run(core: Rc<Core>, source: Option<IpAddr>, deadline: Rc<Deadline>) {
    let mut pause = PAUSE_MIN;
    let mut has_arrived = false;
    while !core.is_ending() {
        let permit = core.connecting.acquire_permit(1).await;
        let mut session = match Session::open(&core, source, &deadline) {
            Ok(session) => session,
            Err(error) => {
                core.tally.borrow_mut().failed(Failure::Connect, &error);
                arrive(&core, &mut has_arrived);
                wait(&core, &mut pause).await;
                continue;
            }
        };
        session.permit = permit.ok();
        let fault = session.converse(&mut has_arrived).await.err();
        deadline.set(None);
        arrive(&core, &mut has_arrived);
        let is_well = session.end(fault);
        drop(session);
        if is_well {
            pause = PAUSE_MIN;
        } else {
            wait(&core, &mut pause).await;
        }
    }
}

fn arrive(core: &Core, has_arrived: &mut bool) {
    if !std::mem::replace(has_arrived, true) {
        core.arrived();
    }
}

async fn wait(core: &Core, pause: &mut Duration) {
    if !core.is_ending() {
        glommio::timer::sleep(*pause).await;
    }
    *pause = (*pause * 2).min(PAUSE_MAX);
}

type Fault = (Failure, String);

/// One connection.
struct Session<'a> {
    core: &'a Rc<Core>,
    deadline: &'a Deadline,
    link: Link,
    dialogue: Dialogue,
    replies: Replies,
    out: Vec<u8>,
    begun_at: Instant,
    message_count: u64,
    /// Held while the connection is being made.
    permit: Option<Permit<'a>>,
}

impl<'a> Session<'a> {
    fn open(core: &'a Rc<Core>, source: Option<IpAddr>, deadline: &'a Deadline) -> io::Result<Self> {
        let begun_at = Instant::now();
        Ok(Session {
            link: Link::connect(core.task.plan.target.address, source, Habits::default())?,
            dialogue: Dialogue::new(core.rules.clone(), false, begun_at),
            core,
            deadline,
            replies: Replies::default(),
            out: Vec::new(),
            begun_at,
            message_count: 0,
            permit: None,
        })
    }

    /// From the connection to its end in order; a fault that the dialogue knows of is left there.
    async fn converse(&mut self, has_arrived: &mut bool) -> Result<(), Fault> {
        let tls = self.core.task.plan.tls.as_ref();
        if tls.is_some_and(|tls| tls.mode == TlsMode::Implicit) {
            self.shake_hands(self.begun_at).await?;
            self.dialogue = Dialogue::new(self.core.rules.clone(), true, Instant::now());
        }
        loop {
            match self.dialogue.next() {
                Next::Replies => {
                    self.send().await?;
                    self.receive().await?;
                }
                Next::Content => self.send_content().await?,
                Next::Handshake => {
                    self.shake_hands(Instant::now()).await?;
                    self.dialogue.handle_secured(Instant::now(), &mut self.out);
                }
                Next::Message => {
                    if self.permit.take().is_some() {
                        self.core.tally.borrow_mut().figures.connections += 1;
                        arrive(self.core, has_arrived);
                    }
                    self.take_turn().await?;
                }
                Next::Close => return Ok(()),
            }
        }
    }

    /// Notes how the session ended. True if that was in order.
    fn end(&mut self, fault: Option<Fault>) -> bool {
        let tally = &mut *self.core.tally.borrow_mut();
        // What the server said explains why it closed; what the socket said does not.
        let fault = self.dialogue.fault().cloned().or(fault);
        if let Some((failure, words)) = &fault {
            tally.failed(*failure, words);
        }
        self.dialogue.handle_end(Instant::now(), tally);
        fault.is_none()
    }

    /// Waits for a message and begins it, or says goodbye.
    async fn take_turn(&mut self) -> Result<(), Fault> {
        let plan = &self.core.task.plan;
        if plan.messages_per_connection.is_some_and(|max| self.message_count >= max) {
            self.dialogue.quit(Instant::now(), &mut self.out);
            return Ok(());
        }
        let now = Instant::now();
        let turn = match self.core.turn(now) {
            Turn::Wait => self.wait_for_turn().await?,
            turn => turn,
        };
        match turn {
            Turn::Begin(message) => {
                self.message_count += 1;
                self.dialogue.begin(message, Instant::now(), &mut self.out);
            }
            Turn::End => self.dialogue.quit(Instant::now(), &mut self.out),
            // The server spoke; the dialogue knows what it said.
            Turn::Wait => {}
        }
        Ok(())
    }

    /// Waits for the schedule, or for the server to say something unasked.
    async fn wait_for_turn(&mut self) -> Result<Turn, Fault> {
        self.deadline.set(None);
        let core = self.core;
        poll_fn(|context| {
            match core.turn(Instant::now()) {
                Turn::Wait => core.wait_for_turn(context.waker()),
                turn => return Poll::Ready(Ok(turn)),
            }
            self.poll_replies(context).map_ok(|()| Turn::Wait)
        })
        .await
    }

    async fn receive(&mut self) -> Result<(), Fault> {
        self.start_waiting();
        poll_fn(|context| match self.poll_replies(context) {
            Poll::Pending => self.poll_deadline(context),
            ready => ready,
        })
        .await
    }

    /// Receives once and gives the replies to the dialogue.
    fn poll_replies(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Fault>> {
        let Session { core, link, dialogue, replies, out, .. } = self;
        let scratch = &mut *core.scratch.borrow_mut();
        let received = link.poll_read(context, scratch, |octets| {
            let now = Instant::now();
            let tally = &mut *core.tally.borrow_mut();
            if octets.is_empty() {
                return Err((Failure::Closed, closed(dialogue)));
            }
            if tally.is_counting(now) {
                tally.figures.received_octets += octets.len() as u64;
            }
            replies
                .take(octets, |reply| dialogue.handle_reply(reply, now, tally, out))
                .map_err(|fault| (Failure::Protocol, fault.0))
        });
        received.map(|received| received.unwrap_or_else(|e| Err(broken(&e))))
    }

    fn start_waiting(&self) {
        self.deadline.set(Some(Instant::now() + self.core.task.plan.timeout));
    }

    fn poll_deadline<T>(&self, context: &Context<'_>) -> Poll<Result<T, Fault>> {
        if self.deadline.is_over() {
            let waited = humantime::format_duration(self.core.task.plan.timeout);
            return Poll::Ready(Err((Failure::Timeout, format!("nothing within {waited}"))));
        }
        self.deadline.register(context.waker());
        Poll::Pending
    }

    /// Sends what the dialogue has to say.
    async fn send(&mut self) -> Result<(), Fault> {
        if self.out.is_empty() {
            return Ok(());
        }
        self.send_all(0, Form::Chunk, 0, None).await?;
        Ok(())
    }

    /// Sends the dialogue's commands and the content behind them.
    async fn send_content(&mut self) -> Result<(), Fault> {
        let message = *self.dialogue.message().expect("a message is under way");
        let form = if self.dialogue.is_chunking() { Form::Chunk } else { Form::Data };
        let size = match self.dialogue.is_content_void() {
            true => 0,
            false => self.core.task.contents.wire_size(message.content, form),
        };
        let sent_at = self.send_all(message.content, form, size, Some(message.id.to_octets())).await?;
        self.dialogue.handle_content_sent(sent_at);
        Ok(())
    }

    /// Sends the output, `size` octets of a content and, after DATA, the end-of-data: in as few calls as the socket
    /// permits. When the call with the last octet was made: the server may have it, and may answer, before that call
    /// returns.
    async fn send_all(
        &mut self,
        content: usize,
        form: Form,
        size: usize,
        id: Option<[u8; ID_SIZE]>,
    ) -> Result<Instant, Fault> {
        self.start_waiting();
        let end: &[u8] = match (id, form) {
            (Some(_), Form::Data) => b".\r\n",
            _ => b"",
        };
        let id = id.unwrap_or_default();
        let head = self.out.len();
        let total = head + size + end.len();
        let mut sent = 0;
        let mut called_at = Instant::now();
        let result = poll_fn(|context| {
            let Session { core, link, out, .. } = &mut *self;
            let octets = &mut *core.outgoing.borrow_mut();
            let mut written = 0;
            while sent < total {
                if written >= TURN_SIZE_MAX {
                    context.waker().wake_by_ref();
                    return Poll::Pending;
                }
                octets.clear();
                octets.extend_from_slice(&out[sent.min(head)..]);
                let offset = sent.saturating_sub(head).min(size);
                core.task.contents.copy(
                    content,
                    &id,
                    form,
                    offset,
                    (size - offset).min(WRITE_SIZE_MAX),
                    octets,
                );
                if octets.len() < WRITE_SIZE_MAX + head {
                    octets.extend_from_slice(&end[sent.saturating_sub(head + size)..]);
                }
                called_at = Instant::now();
                match link.poll_write(context, octets) {
                    Poll::Ready(Ok(size)) => {
                        sent += size;
                        written += size;
                    }
                    Poll::Ready(Err(e)) => return Poll::Ready(Err(broken(&e))),
                    Poll::Pending => return self.poll_deadline(context),
                }
            }
            match link.poll_sent(context) {
                Poll::Ready(sent) => Poll::Ready(sent.map_err(|e| broken(&e))),
                Poll::Pending => self.poll_deadline(context),
            }
        })
        .await;
        self.out.clear();
        if let Err(fault) = result {
            if fault.0 == Failure::Broken {
                // A server that closes while it is sent something has as a rule said why.
                let _ = self.receive().await;
            }
            return Err(fault);
        }
        let tally = &mut *self.core.tally.borrow_mut();
        if tally.is_counting(Instant::now()) {
            tally.figures.sent_octets += total as u64;
        }
        Ok(called_at)
    }

    async fn shake_hands(&mut self, since: Instant) -> Result<(), Fault> {
        let client = self.core.task.tls.clone().expect("TLS was planned");
        let failed = |e: io::Error| (Failure::Tls, e.to_string());
        // What was said in plaintext is no part of what is said now (RFC 3207 §4.2).
        self.replies = Replies::default();
        self.link.secure(&client).map_err(failed)?;
        self.start_waiting();
        let is_resumed = poll_fn(|context| {
            let Session { core, link, .. } = &mut *self;
            match link.poll_handshake(context, &mut core.scratch.borrow_mut()) {
                Poll::Ready(shaken) => Poll::Ready(shaken.map_err(failed)),
                Poll::Pending => self.poll_deadline(context),
            }
        })
        .await?;
        let figures = &mut self.core.tally.borrow_mut().figures;
        figures.record(Phase::Tls, since.elapsed());
        match is_resumed {
            true => figures.tls_resumed += 1,
            false => figures.tls_full += 1,
        }
        Ok(())
    }
}

fn broken(error: &io::Error) -> Fault {
    let failure = match error.kind() {
        io::ErrorKind::ConnectionRefused | io::ErrorKind::HostUnreachable => Failure::Connect,
        io::ErrorKind::TimedOut => Failure::Timeout,
        io::ErrorKind::InvalidData | io::ErrorKind::Other => Failure::Tls,
        _ => Failure::Broken,
    };
    (failure, error.to_string())
}

fn closed(dialogue: &Dialogue) -> String {
    match dialogue.message() {
        Some(message) if dialogue.is_content_sent() => {
            format!("after the end-of-data of message {}, without a reply", message.id)
        }
        Some(_) => "within a transaction".to_owned(),
        None => "between messages".to_owned(),
    }
}
