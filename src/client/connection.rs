//! One connection to a server: commands, and their replies in time; messages.

use std::collections::VecDeque;
use std::fmt;
use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::timeout;

use super::message::hello;
use super::stuffing::{BareLineEnd, Stuffing};
use super::transaction::Stage;
use super::wire::{Socket, Wire};
use super::{
    BadReply, Endpoint, Login, Objection, Offers, Protection, Reply, ReplyReader, SystemResolver, TlsUse,
    Transaction,
};
use crate::mail::Mailbox;

/// Octets read at a time.
const READ_SIZE: usize = 4096;
/// Pieces of content written at a time.
const PIECES_MAX: usize = 8;
/// Content gathers up to so many octets before it is written: small pieces share a packet.
const GATHERED_SIZE: usize = 32 << 10;

/// What is spoken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// RFC 5321.
    Smtp,
    /// RFC 2033.
    Lmtp,
}

/// How we introduce ourselves.
#[derive(Clone, Debug)]
pub struct Introduction {
    /// What is spoken.
    pub protocol: Protocol,
    /// Our name.
    pub name: String,
}

/// How long each step may take.
#[derive(Clone, Copy, Debug)]
pub struct Timeouts {
    /// Finding the host and connecting to it, one of its addresses after the other, each in its share of what is left; and shaking hands.
    pub connect: Duration,
    /// The greeting (RFC 5321 §4.5.3.2.1 gives 5 minutes).
    pub greeting: Duration,
    /// Each command: until its reply is whole (§4.5.3.2.2 ff.: 5 minutes).
    pub command: Duration,
    /// Each piece of content, of 64 KiB or what is left, until it is written (§4.5.3.2.5: 3 minutes).
    pub content: Duration,
    /// From the end of the content to its reply (§4.5.3.2.6: 10 minutes); in LMTP from one reply to the next.
    pub end: Duration,
}

impl Timeouts {
    /// The same for all steps.
    pub fn all(timeout: Duration) -> Self {
        Timeouts { connect: timeout, greeting: timeout, command: timeout, content: timeout, end: timeout }
    }
}

/// Whom to speak to, and how. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Target {
    /// Where it listens.
    pub endpoint: Endpoint,
    /// Who knows its addresses.
    pub resolver: SystemResolver,
    /// What it is told of us.
    pub introduction: Introduction,
    /// Whether and how the connection is protected.
    pub protection: Protection,
    /// The name that a certificate has to be for, where one is asked for.
    pub name: String,
    /// Who we are to it, if it wants to know.
    pub login: Option<Arc<Login>>,
    /// How long steps may take.
    pub timeouts: Timeouts,
}

impl Target {
    /// A server that is spoken to in clear.
    pub fn in_clear(endpoint: Endpoint, introduction: Introduction, timeouts: Timeouts) -> Self {
        Target {
            endpoint,
            resolver: SystemResolver::default(),
            introduction,
            protection: Protection::OFF,
            name: String::new(),
            login: None,
            timeouts,
        }
    }
}

/// What a connection was about to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Connect.
    Connect,
    /// Take the greeting.
    Greeting,
    /// LHLO, EHLO or HELO.
    Hello,
    /// STARTTLS and the handshake.
    Tls,
    /// AUTH.
    Login,
    /// XFORWARD.
    Forward,
    /// MAIL.
    Mail,
    /// RCPT.
    Recipient,
    /// DATA.
    Data,
    /// The content.
    Content,
    /// The end of the content.
    End,
    /// RSET.
    Reset,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Step::Connect => "connecting",
            Step::Greeting => "the greeting",
            Step::Hello => "the introduction",
            Step::Tls => "TLS",
            Step::Login => "AUTH",
            Step::Forward => "XFORWARD",
            Step::Mail => "MAIL",
            Step::Recipient => "RCPT",
            Step::Data => "DATA",
            Step::Content => "the content",
            Step::End => "the end of the content",
            Step::Reset => "RSET",
        })
    }
}

/// A connection that failed: it is of no use any more.
#[derive(Debug)]
pub struct Failure {
    /// At what.
    pub step: Step,
    /// And why.
    pub why: Why,
}

/// Why a connection failed.
#[derive(Debug)]
pub enum Why {
    /// There is none, or it has ended.
    Gone(io::Error),
    /// It took too long.
    TimedOut,
    /// What came was no reply, or was not asked for.
    Bad(BadReply),
    /// The server does not want to go on.
    Refused(Reply),
    /// The server does not offer what is needed.
    NotOffered(&'static str),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.step)?;
        match &self.why {
            Why::Gone(error) => error.fmt(f),
            Why::TimedOut => f.write_str("no answer in time"),
            Why::Bad(bad) => bad.fmt(f),
            Why::Refused(reply) => reply.fmt(f),
            Why::NotOffered(what) => f.write_str(what),
        }
    }
}

impl std::error::Error for Failure {}

/// The content of a message, piece by piece.
pub trait Content: Send {
    /// The next octets of it, at most 64 KiB; nothing at its end. It is an error that it cannot be read whole.
    fn next(&mut self) -> impl Future<Output = Option<io::Result<Bytes>>> + Send;
}

/// Why a message was not sent to its end. The connection is of no use any more.
#[derive(Debug)]
pub enum Interrupted {
    /// The connection failed.
    Connection(Failure),
    /// The content could not be read: nothing is wrong with the server.
    Content(io::Error),
    /// The content is not fit to be said to its end, to any server.
    Unfit(Objection),
}

/// A connection on which we have introduced ourselves.
pub struct Connection {
    wire: Wire,
    reader: ReplyReader,
    timeouts: Timeouts,
    /// See [`Connection::hurry`].
    until: Option<Instant>,
    protocol: Protocol,
    /// None after HELO.
    offers: Offers,
    /// The server has answered EHLO or LHLO, and not only HELO.
    is_extended: bool,
    /// The last transaction may not have ended.
    needs_reset: bool,
    /// A message was cut off: nothing said now would be read as a command.
    is_spent: bool,
}

impl Connection {
    /// Connects, takes the greeting, introduces us, and sees to TLS and AUTH. Where TLS is opportunistic and does not come about, that is tried
    /// once more in clear, from the beginning: nothing of the first connection is trusted.
    pub async fn open(target: &Target) -> Result<Connection, Failure> {
        let opened = Self::open_as(target, &target.protection).await;
        match opened {
            Err(Failure { step: Step::Tls, .. }) if target.protection.mode() == TlsUse::Opportunistic => {
                Self::open_as(target, &Protection::OFF).await
            }
            _ => opened,
        }
    }

    async fn open_as(target: &Target, protection: &Protection) -> Result<Connection, Failure> {
        let timeouts = target.timeouts;
        let connecting = Socket::connect(&target.endpoint, &target.resolver, timeouts.connect);
        let socket = within(timeouts.connect, Step::Connect, connecting).await?;
        let wire = match protection.mode() {
            TlsUse::Implicit => protect(target, protection, socket).await?,
            TlsUse::Off | TlsUse::Opportunistic | TlsUse::Required => Wire::Clear(socket),
        };
        let mut connection = Connection {
            wire,
            reader: ReplyReader::default(),
            timeouts,
            until: None,
            protocol: target.introduction.protocol,
            offers: Offers::default(),
            is_extended: false,
            needs_reset: false,
            is_spent: false,
        };
        let greeting = connection.exchange_one(Step::Greeting, Bytes::new(), timeouts.greeting).await?;
        demand(Step::Greeting, greeting)?;
        connection.introduce(&target.introduction).await?;
        if matches!(protection.mode(), TlsUse::Opportunistic | TlsUse::Required) {
            let is_offered = connection.offers.has("STARTTLS");
            let is_required = protection.mode() == TlsUse::Required;
            if is_required && !is_offered {
                return Err(Failure { step: Step::Tls, why: Why::NotOffered("STARTTLS is not offered") });
            }
            let reply = match is_offered {
                true => Some(connection.command(Step::Tls, "STARTTLS").await?),
                false => None,
            };
            match reply {
                Some(reply) if reply.code == 220 => {
                    // RFC 3207 §4.2: what was said in clear does not count.
                    connection = Connection {
                        wire: protect(target, protection, connection.wire.into_clear()).await?,
                        reader: ReplyReader::default(),
                        offers: Offers::default(),
                        is_extended: false,
                        ..connection
                    };
                    connection.introduce(&target.introduction).await.map_err(of_tls)?;
                }
                Some(reply) if is_required => {
                    return Err(Failure { step: Step::Tls, why: Why::Refused(reply) });
                }
                _ => {}
            }
        }
        if let Some(login) = &target.login {
            connection.log_in(login).await?;
        }
        Ok(connection)
    }

    async fn introduce(&mut self, introduction: &Introduction) -> Result<(), Failure> {
        let Introduction { protocol, name } = introduction;
        let reply = self.command(Step::Hello, &format!("{} {name}", hello(*protocol))).await?;
        if *protocol == Protocol::Smtp && matches!(reply.code, 500 | 502) {
            // RFC 5321 §3.2: who does not know EHLO is said HELO.
            demand(Step::Hello, self.command(Step::Hello, &format!("HELO {name}")).await?)?;
        } else {
            self.offers = Offers::new(demand(Step::Hello, reply)?.text);
            self.is_extended = true;
        }
        Ok(())
    }

    async fn log_in(&mut self, login: &Login) -> Result<(), Failure> {
        let lacking = |what| Failure { step: Step::Login, why: Why::NotOffered(what) };
        if !self.wire.is_tls() && !login.in_clear {
            return Err(lacking("there is no TLS, and the password is not for everybody"));
        }
        let lines = login.lines(&self.offers).ok_or(lacking("neither PLAIN nor LOGIN is offered"))?;
        let last = lines.len() - 1;
        for (n, line) in lines.iter().enumerate() {
            let reply = self.command(Step::Login, line).await?;
            let expected = if n == last { 235 } else { 334 };
            if reply.code != expected {
                return Err(Failure { step: Step::Login, why: Why::Refused(reply) });
            }
        }
        Ok(())
    }

    /// What the server offers.
    pub fn offers(&self) -> &Offers {
        &self.offers
    }

    /// Whether the server has said what it offers: who was said HELO may know more than it had to tell.
    pub fn is_extended(&self) -> bool {
        self.is_extended
    }

    /// Whether the connection is protected.
    #[cfg(test)]
    pub fn is_tls(&self) -> bool {
        self.wire.is_tls()
    }

    /// Whether another transaction may be begun, as far as can be known without asking: the server has neither gone nor said anything that nobody
    /// asked for.
    pub fn is_fit(&mut self) -> bool {
        !self.is_spent && !self.reader.is_within_reply() && self.wire.is_quiet()
    }

    /// From here on all that is sent has to be sent by `until`, whatever the timeouts of steps give. The end of a message's content is waited for as ever: who
    /// goes then does not know whether the server has it.
    pub fn hurry(&mut self, until: Instant) {
        self.until = Some(until);
    }

    /// Sends a message; `transaction` has what became of its recipients, also after an error. Whatever `content` gives, the server never has an
    /// end of the content before its end.
    pub async fn send(
        &mut self,
        transaction: &mut Transaction<'_>,
        content: &mut impl Content,
    ) -> Result<(), Interrupted> {
        // Until it is known better.
        self.is_spent = true;
        let sent = self.converse(transaction, content).await;
        self.is_spent = sent.is_err() || transaction.is_cut();
        self.needs_reset = transaction.needs_reset();
        sent
    }

    async fn converse(
        &mut self,
        transaction: &mut Transaction<'_>,
        content: &mut impl Content,
    ) -> Result<(), Interrupted> {
        loop {
            match transaction.stage() {
                Stage::Commands => {
                    let mut commands = Vec::new();
                    transaction.say(&mut commands);
                    if transaction.stage() == Stage::Commands {
                        self.exchange(transaction, &mut VecDeque::from([commands.into()]), true).await?;
                    }
                }
                Stage::Content => self.send_content(transaction, content).await?,
                Stage::Dot => {
                    transaction.handle_end_said();
                    let dot = Bytes::from_static(b".\r\n");
                    self.exchange(transaction, &mut VecDeque::from([dot]), true).await?;
                }
                Stage::Endings => self.exchange(transaction, &mut VecDeque::new(), true).await?,
                Stage::Done => return Ok(()),
            }
        }
    }

    async fn send_content(
        &mut self,
        transaction: &mut Transaction<'_>,
        content: &mut impl Content,
    ) -> Result<(), Interrupted> {
        let unfit = |_: BareLineEnd| Interrupted::Unfit(Objection::LineEnds);
        let unlike = |what| Err(Interrupted::Content(io::Error::new(io::ErrorKind::InvalidData, what)));
        let mut pieces: VecDeque<Bytes> = VecDeque::new();
        let mut stuffing = match transaction.chunk() {
            None => Some(Stuffing::new()),
            Some(command) => {
                pieces.push_back(command.into());
                None
            }
        };
        let mut given = 0_u64;
        while let Some(piece) = content.next().await {
            let piece = piece.map_err(Interrupted::Content)?;
            given += piece.len() as u64;
            // What was promised would make the rest of it commands, or commands a part of it.
            if given > transaction.size() {
                return unlike("the content is longer than it should be");
            }
            // What was held back is not the end.
            if pieces.len() >= PIECES_MAX || pieces.iter().map(Bytes::len).sum::<usize>() >= GATHERED_SIZE {
                self.exchange(transaction, &mut pieces, false).await?;
                if transaction.stage() == Stage::Done {
                    return Ok(());
                }
            }
            pieces.push_back(match &mut stuffing {
                Some(stuffing) => stuffing.stuff(piece).map_err(unfit)?,
                None => piece,
            });
        }
        if given < transaction.size() {
            return unlike("the content is shorter than it should be");
        }
        if let Some(stuffing) = &stuffing {
            pieces.push_back(Bytes::from_static(stuffing.end().map_err(unfit)?));
        }
        // From here on the server may have all of it.
        transaction.handle_end_said();
        self.exchange(transaction, &mut pieces, false).await
    }

    fn hurried(&self, patience: Duration) -> Duration {
        self.until.map_or(patience, |until| patience.min(until.saturating_duration_since(Instant::now())))
    }

    /// Writes `pieces` and hands on the replies that come meanwhile; where `wants_reply`, until at least one has come.
    async fn exchange(
        &mut self,
        transaction: &mut Transaction<'_>,
        pieces: &mut VecDeque<Bytes>,
        wants_reply: bool,
    ) -> Result<(), Interrupted> {
        let patience = match transaction.stage() {
            Stage::Commands | Stage::Dot => self.hurried(self.timeouts.command),
            Stage::Content => self.hurried(self.timeouts.content),
            Stage::Endings | Stage::Done if wants_reply => self.timeouts.end,
            Stage::Endings | Stage::Done => self.timeouts.content,
        };
        let exchanged = self.exchange_until(pieces, wants_reply, |reply, is_all_written| {
            transaction.handle_reply(reply, is_all_written)?;
            Ok(transaction.stage() == Stage::Done)
        });
        let why = match timeout(patience, exchanged).await {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(why)) => why,
            Err(_) => Why::TimedOut,
        };
        Err(Interrupted::Connection(Failure { step: transaction.step(), why }))
    }

    /// Writes and reads until all is written and, where `wants_reply`, a reply has come; or until `handle` says of one that it was the last. It
    /// is told of each whether everything had been written before.
    async fn exchange_until(
        &mut self,
        pieces: &mut VecDeque<Bytes>,
        wants_reply: bool,
        mut handle: impl FnMut(Reply, bool) -> Result<bool, Why>,
    ) -> Result<(), Why> {
        let mut has_reply = !wants_reply;
        let mut broken = None;
        poll_fn(|context| {
            loop {
                // A server that is not read from may stop reading.
                let is_all_written = pieces.is_empty();
                match self.poll_replies(context, &mut |reply| handle(reply, is_all_written)) {
                    Poll::Ready(Ok(is_last)) => {
                        if is_last {
                            return Poll::Ready(Ok(()));
                        }
                        has_reply = true;
                        continue;
                    }
                    // What it said before it went says more than that it has gone.
                    Poll::Ready(Err(Why::Gone(error))) => {
                        return Poll::Ready(Err(Why::Gone(broken.take().unwrap_or(error))));
                    }
                    Poll::Ready(Err(why)) => return Poll::Ready(Err(why)),
                    Poll::Pending => {}
                }
                if broken.is_some() {
                    return Poll::Pending;
                }
                if let Err(error) = ready!(self.poll_write(context, pieces)) {
                    broken = Some(error);
                    continue;
                }
                return if has_reply { Poll::Ready(Ok(())) } else { Poll::Pending };
            }
        })
        .await
    }

    /// Writes all of `pieces`.
    fn poll_write(
        &mut self,
        context: &mut Context<'_>,
        pieces: &mut VecDeque<Bytes>,
    ) -> Poll<io::Result<()>> {
        let mut wire = Pin::new(&mut self.wire);
        loop {
            while pieces.front().is_some_and(Bytes::is_empty) {
                pieces.pop_front();
            }
            if pieces.is_empty() {
                return wire.poll_flush(context);
            }
            let mut slices = [IoSlice::new(&[]); PIECES_MAX];
            let count = pieces.len().min(PIECES_MAX);
            slices.iter_mut().zip(pieces.iter()).for_each(|(slice, piece)| *slice = IoSlice::new(piece));
            let mut written = ready!(wire.as_mut().poll_write_vectored(context, &slices[..count]))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            while let Some(first) = pieces.front_mut().filter(|_| written > 0) {
                let part = first.len().min(written);
                first.advance(part);
                written -= part;
                if first.is_empty() {
                    pieces.pop_front();
                }
            }
        }
    }

    /// Reads until at least one reply is whole, and hands on all that are; whether the last of them was the last at all.
    fn poll_replies(
        &mut self,
        context: &mut Context<'_>,
        handle: &mut impl FnMut(Reply) -> Result<bool, Why>,
    ) -> Poll<Result<bool, Why>> {
        let mut octets = [0; READ_SIZE];
        loop {
            let mut room = ReadBuf::new(&mut octets);
            ready!(Pin::new(&mut self.wire).poll_read(context, &mut room)).map_err(Why::Gone)?;
            let mut rest = room.filled();
            if rest.is_empty() {
                let ended = io::Error::new(io::ErrorKind::UnexpectedEof, "the connection has ended");
                return Poll::Ready(Err(Why::Gone(ended)));
            }
            let (mut has_reply, mut is_last) = (false, false);
            while !rest.is_empty() {
                // Nothing was asked yet that what follows could answer.
                if is_last {
                    return Poll::Ready(Err(Why::Bad(BadReply::UNASKED)));
                }
                let (taken, reply) = self.reader.handle_input(rest).map_err(Why::Bad)?;
                rest = &rest[taken..];
                if let Some(reply) = reply {
                    has_reply = true;
                    is_last = handle(reply)?;
                }
            }
            if has_reply {
                return Poll::Ready(Ok(is_last));
            }
        }
    }

    /// `MAIL FROM:<>`, with SMTPUTF8 where some recipient needs it.
    pub async fn mail_of_nobody(&mut self, utf8: bool) -> Result<Reply, Failure> {
        let line = if utf8 { "MAIL FROM:<> SMTPUTF8" } else { "MAIL FROM:<>" };
        self.command(Step::Mail, line).await
    }

    /// RCPT. A domain is given in A-labels: every server knows them.
    pub async fn recipient(&mut self, mailbox: &Mailbox) -> Result<Reply, Failure> {
        let (local, domain) = (mailbox.local_part(), mailbox.canonical_domain());
        self.command(Step::Recipient, &format!("RCPT TO:<{local}@{domain}>")).await
    }

    /// RSET, which must be taken.
    pub async fn reset(&mut self) -> Result<(), Failure> {
        let reply = self.command(Step::Reset, "RSET").await?;
        demand(Step::Reset, reply).map(drop)
    }

    /// Whether RSET has to stand before the next transaction.
    pub fn needs_reset(&self) -> bool {
        self.needs_reset
    }

    /// What is spoken.
    pub fn protocol(&self) -> Protocol {
        self.protocol
    }

    /// Says QUIT, if that can be done at once, and goes. The answer would change nothing.
    pub fn quit(mut self) {
        if !self.is_spent {
            self.wire.write_now(b"QUIT\r\n");
        }
    }

    /// Says a line and takes its reply. A 421 is no answer, but the end (RFC 5321 §3.8).
    async fn command(&mut self, step: Step, line: &str) -> Result<Reply, Failure> {
        assert!(!line.contains(['\r', '\n', '\0']), "a command is one line");
        let reply = self.exchange_one(step, format!("{line}\r\n").into(), self.timeouts.command).await?;
        if reply.code == 421 {
            return Err(Failure { step, why: Why::Refused(reply) });
        }
        Ok(reply)
    }

    async fn exchange_one(&mut self, step: Step, said: Bytes, patience: Duration) -> Result<Reply, Failure> {
        let mut only = None;
        let mut said = VecDeque::from_iter((!said.is_empty()).then_some(said));
        let exchanged = self.exchange_until(&mut said, true, |reply, is_said| {
            // It was no answer to this; but the end may come at any time.
            if !is_said && reply.code != 421 {
                return Err(Why::Bad(BadReply::UNASKED));
            }
            only = Some(reply);
            Ok(true)
        });
        let why = match timeout(patience, exchanged).await {
            Ok(Ok(())) => return Ok(only.expect("a reply has come")),
            Ok(Err(why)) => why,
            Err(_) => Why::TimedOut,
        };
        Err(Failure { step, why })
    }
}

async fn protect(target: &Target, protection: &Protection, socket: Socket) -> Result<Wire, Failure> {
    within(target.timeouts.connect, Step::Tls, protection.shake_hands(socket, &target.name)).await
}

/// What ends just behind the handshake has ended by it: in TLS 1.3 the server is the last to judge it, when the client has gone on already.
fn of_tls(failure: Failure) -> Failure {
    match failure.why {
        Why::Gone(_) => Failure { step: Step::Tls, ..failure },
        _ => failure,
    }
}

async fn within<T>(
    patience: Duration,
    step: Step,
    attempt: impl Future<Output = io::Result<T>>,
) -> Result<T, Failure> {
    let why = match timeout(patience, attempt).await {
        Ok(Ok(done)) => return Ok(done),
        Ok(Err(error)) => Why::Gone(error),
        Err(_) => Why::TimedOut,
    };
    Err(Failure { step, why })
}

fn demand(step: Step, reply: Reply) -> Result<Reply, Failure> {
    if reply.is_positive() { Ok(reply) } else { Err(Failure { step, why: Why::Refused(reply) }) }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    const SOON: Duration = Duration::from_millis(200);
    const LONG: Duration = Duration::from_secs(60);

    /// Speaks to a server that greets with `greeting`, and answers the lines it gets with `answers`, one after another.
    fn speak(
        greeting: &'static [u8],
        answers: &'static [&'static [u8]],
        timeouts: Timeouts,
    ) -> (Result<Vec<Reply>, Failure>, String) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let heard = Arc::new(Mutex::new(Vec::new()));
        let told = heard.clone();
        let result = runtime.block_on(async move {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let endpoint = Endpoint::Tcp("127.0.0.1".into(), listener.local_addr().unwrap().port());
            tokio::spawn(async move {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut answers = answers.iter();
                let _ = stream.write_all(greeting).await;
                let mut octet = [0];
                while stream.read(&mut octet).await.is_ok_and(|n| n > 0) {
                    told.lock().unwrap().push(octet[0]);
                    if octet[0] == b'\n' {
                        match answers.next() {
                            Some(answer) => stream.write_all(answer).await.unwrap_or_default(),
                            None => return,
                        }
                    }
                }
            });
            let introduction = Introduction { protocol: Protocol::Smtp, name: "mx.test".into() };
            let target = Target::in_clear(endpoint, introduction, timeouts);
            let mut connection = Connection::open(&target).await?;
            let mailbox = Mailbox::parse("a@bücher.example", true).unwrap();
            let utf8 = connection.offers().has("smtputf8");
            let replies = vec![connection.mail_of_nobody(utf8).await?, connection.recipient(&mailbox).await?];
            connection.reset().await?;
            Ok(replies)
        });
        let heard = String::from_utf8(heard.lock().unwrap().clone()).unwrap();
        (result, heard)
    }

    #[test]
    fn each_command_has_its_reply() {
        let answers: &[&[u8]] =
            &[b"250-mx\r\n250-SMTPUTF8\r\n250 HELP\r\n", b"250 Ok\r\n", b"550 5.1.1 no\r\n", b"250 Ok\r\n"];
        let (replies, heard) = speak(b"220-mx\r\n220 hello\r\n", answers, Timeouts::all(LONG));
        let codes: Vec<_> = replies.unwrap().iter().map(|reply| reply.code).collect();
        assert_eq!(codes, [250, 550]);
        assert_eq!(
            heard,
            "EHLO mx.test\r\nMAIL FROM:<> SMTPUTF8\r\nRCPT TO:<a@xn--bcher-kva.example>\r\nRSET\r\n"
        );
    }

    #[test]
    fn who_does_not_know_ehlo_is_said_helo() {
        let answers: &[&[u8]] =
            &[b"502 what\r\n", b"250 mx\r\n", b"250 Ok\r\n", b"250 Ok\r\n", b"250 Ok\r\n"];
        let (replies, heard) = speak(b"220 mx\r\n", answers, Timeouts::all(LONG));
        assert_eq!(replies.unwrap().len(), 2);
        assert_eq!(
            heard,
            "EHLO mx.test\r\nHELO mx.test\r\nMAIL FROM:<>\r\nRCPT TO:<a@xn--bcher-kva.example>\r\nRSET\r\n"
        );
    }

    #[test]
    fn what_is_not_as_it_should_be_ends_the_connection() {
        type Case = (&'static [u8], &'static [&'static [u8]], Timeouts, &'static str);
        let table: [Case; 9] = [
            (b"554 no\r\n", &[], Timeouts::all(LONG), "the greeting: 554 no"),
            (b"421 busy\r\n", &[], Timeouts::all(LONG), "the greeting: 421 busy"),
            (b"SSH-2.0\r\n", &[], Timeouts::all(LONG), "the greeting: a line without a reply code"),
            (
                b"220 mx\r\n250 mx\r\n",
                &[],
                Timeouts::all(LONG),
                "the greeting: octets that were not asked for",
            ),
            (b"220 mx\r\n", &[], Timeouts::all(LONG), "the introduction: the connection has ended"),
            (b"220 mx\r\n", &[b"550 no\r\n"], Timeouts::all(LONG), "the introduction: 550 no"),
            (b"220 mx\r\n", &[b"250 mx\r\n", b"421 bye\r\n"], Timeouts::all(LONG), "MAIL: 421 bye"),
            (
                b"220 mx\r\n",
                &[b"250 mx\r\n", b"250 a\r\n250 b\r\n"],
                Timeouts::all(LONG),
                "MAIL: octets that were not asked for",
            ),
            (
                b"220 mx",
                &[],
                Timeouts { greeting: SOON, ..Timeouts::all(LONG) },
                "the greeting: no answer in time",
            ),
        ];
        for (greeting, answers, timeouts, expected) in table {
            let (result, _) = speak(greeting, answers, timeouts);
            assert_eq!(result.unwrap_err().to_string(), expected, "{answers:?}");
        }
    }
}
