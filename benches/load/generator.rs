//! A load from one thread: every connection a small state machine, one `recv` and one `send` a round trip.
//!
//! Written so that it costs less than what it measures: octets are prepared before, replies are counted by their line
//! ends and looked at by their first digit, and nothing is allocated once the connections stand. It is edge-triggered:
//! after the reply it waited for was whole, nothing else can be in the socket, so no `recv` is spent on learning that.
//!
//! Only a 250 to an end-of-data counts. A refusal is counted too, and the connection begins anew.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};
use socket2::{Domain, Protocol, Socket, Type};

use super::wire::{EHLO, QUIT, Wire};

/// One `recv` takes a whole group of replies.
const REPLY_SIZE_MAX: usize = 4096;

/// Source addresses that take turns, so that no two connections of a minute share one's ports: 127.1.0.1 and on.
const SOURCES: u32 = 64;

/// More refusals than this in a row and there is nothing to be measured.
const REFUSALS_MAX: u64 = 1000;

/// What the load does.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Where to.
    pub address: SocketAddr,
    /// Connections.
    pub connections: usize,
    /// Octets of content.
    pub size: usize,
    /// MAIL, RCPT and DATA in one write; otherwise each waits for the reply to the one before.
    pub is_pipelined: bool,
    /// A connection for each message; otherwise connections persist.
    pub is_reconnecting: bool,
    /// Messages a second, whatever the replies do; nothing: as fast as replies permit.
    pub rate: Option<f64>,
    /// Time before counting begins.
    pub warm_up: Duration,
    /// Time of counting.
    pub duration: Duration,
}

/// What came of it.
pub struct Figures {
    /// Messages whose 250 was read while counting.
    pub accepted: u64,
    /// Replies other than those expected, and connections lost.
    pub refused: u64,
    /// The first of them, in words.
    pub first_refusal: Option<String>,
    /// Counted time.
    pub elapsed: Duration,
    /// From the last octet of the end-of-data to its 250, in nanoseconds.
    pub latency: Histogram<u64>,
    /// Messages that the rate asked for while every connection was busy.
    pub late: u64,
}

impl Figures {
    /// Messages a second.
    pub fn rate(&self) -> f64 {
        self.accepted as f64 / self.elapsed.as_secs_f64()
    }
}

/// What a connection waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// The greeting.
    Greeting,
    /// The reply to EHLO.
    Hello,
    /// Nothing: the next message has not fallen due.
    Idle,
    /// The replies to the envelope's write of this index.
    Envelope(usize),
    /// The reply to the end-of-data.
    Content,
    /// The reply to QUIT.
    Quit,
}

/// What a write sends: the octets stand still, so an index is enough to go on with a write that was short.
#[derive(Clone, Copy)]
enum Part {
    Hello,
    Envelope(usize),
    Content,
    Quit,
}

struct Connection {
    stream: TcpStream,
    phase: Phase,
    /// What is not sent yet.
    unsent: Option<(Part, usize)>,
    /// Whole reply lines still to come before the phase is over.
    replies_left: usize,
    /// Octets of the line being received that count: its code and what follows it.
    line: [u8; 4],
    line_size: usize,
    content_sent_at: Instant,
}

/// The load: connections, clock and counts.
pub struct Generator {
    plan: Plan,
    wire: Wire,
    poll: Poll,
    connections: Vec<Connection>,
    idle: Vec<usize>,
    source: u32,
    due_count: u64,
    started_at: Instant,
    is_counting: bool,
    refused_in_a_row: u64,
    figures: Figures,
}

impl Generator {
    /// Prepares the octets and connects.
    pub fn new(plan: Plan) -> io::Result<Self> {
        let now = Instant::now();
        let mut generator = Generator {
            wire: Wire::new(plan.size, plan.is_pipelined),
            poll: Poll::new()?,
            connections: Vec::with_capacity(plan.connections),
            idle: Vec::with_capacity(plan.connections),
            source: 0,
            due_count: 0,
            started_at: now,
            is_counting: false,
            refused_in_a_row: 0,
            figures: Figures {
                accepted: 0,
                refused: 0,
                first_refusal: None,
                elapsed: Duration::ZERO,
                latency: Histogram::new_with_bounds(1_000, 60_000_000_000, 3).expect("valid bounds"),
                late: 0,
            },
            plan,
        };
        for i in 0..plan.connections {
            let stream = generator.connect(i)?;
            generator.connections.push(Connection::new(stream));
        }
        Ok(generator)
    }

    /// Runs the load to its end. `at_start` and `at_end` are called when counting begins and ends.
    pub fn run(mut self, mut at_start: impl FnMut(), mut at_end: impl FnMut()) -> io::Result<Figures> {
        let mut events = Events::with_capacity(1024);
        self.started_at = Instant::now();
        let counting_from = self.started_at + self.plan.warm_up;
        let counting_until = counting_from + self.plan.duration;
        let mut counted_from = counting_from;
        loop {
            // With a rate the thread spins: a millisecond, which is epoll's unit, is the latency to be measured.
            let timeout = if self.plan.rate.is_some() { Duration::ZERO } else { Duration::from_millis(10) };
            self.poll.poll(&mut events, Some(timeout))?;
            for event in &events {
                self.handle_event(event.token().0)?;
            }
            let now = Instant::now();
            if !self.is_counting && now >= counting_from {
                self.is_counting = true;
                counted_from = now;
                at_start();
            }
            if now >= counting_until {
                at_end();
                self.figures.elapsed = now - counted_from;
                return Ok(self.figures);
            }
            if self.plan.rate.is_some() {
                self.start_due_messages(now)?;
            }
        }
    }

    /// Begins as many messages as have fallen due, on connections that are idle.
    fn start_due_messages(&mut self, now: Instant) -> io::Result<()> {
        let rate = self.plan.rate.unwrap_or_default();
        let due = ((now - self.started_at).as_secs_f64() * rate) as u64;
        while self.due_count < due {
            self.due_count += 1;
            match self.idle.pop() {
                Some(i) => self.begin_message(i)?,
                None if self.is_counting => self.figures.late += 1,
                None => {}
            }
        }
        Ok(())
    }

    fn handle_event(&mut self, i: usize) -> io::Result<()> {
        if self.connections[i].unsent.is_some() {
            self.send(i)?;
        }
        let mut replies = [0; REPLY_SIZE_MAX];
        let received = match self.connections[i].stream.read(&mut replies) {
            Ok(0) => return self.begin_anew(i, "the connection was closed"),
            Ok(n) => n,
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(e) => return self.begin_anew(i, &e.to_string()),
        };
        match self.connections[i].take_replies(&replies[..received]) {
            Ok(false) => Ok(()),
            Ok(true) => self.advance(i),
            Err(Unexpected) => {
                let text = String::from_utf8_lossy(&replies[..received]).into_owned();
                let phase = self.connections[i].phase;
                self.begin_anew(i, &format!("{phase:?}: {text:?}"))
            }
        }
    }

    /// The phase's replies are whole: what comes next.
    fn advance(&mut self, i: usize) -> io::Result<()> {
        match self.connections[i].phase {
            Phase::Greeting => self.enter(i, Phase::Hello, Part::Hello, 1),
            Phase::Hello => self.next_message(i),
            Phase::Envelope(part) if part + 1 < self.wire.envelope.len() => {
                self.enter(i, Phase::Envelope(part + 1), Part::Envelope(part + 1), 1)
            }
            Phase::Envelope(_) => self.enter(i, Phase::Content, Part::Content, 1),
            Phase::Content => {
                self.refused_in_a_row = 0;
                if self.is_counting {
                    self.figures.accepted += 1;
                    let latency = self.connections[i].content_sent_at.elapsed();
                    self.figures.latency.saturating_record(latency.as_nanos() as u64);
                }
                if self.plan.is_reconnecting {
                    self.enter(i, Phase::Quit, Part::Quit, 1)
                } else {
                    self.next_message(i)
                }
            }
            Phase::Quit => self.reconnect(i),
            Phase::Idle => self.begin_anew(i, "a reply to nothing"),
        }
    }

    fn next_message(&mut self, i: usize) -> io::Result<()> {
        if self.plan.rate.is_none() {
            return self.begin_message(i);
        }
        self.connections[i].phase = Phase::Idle;
        self.idle.push(i);
        Ok(())
    }

    fn begin_message(&mut self, i: usize) -> io::Result<()> {
        let replies = if self.plan.is_pipelined { 3 } else { 1 };
        self.enter(i, Phase::Envelope(0), Part::Envelope(0), replies)
    }

    fn enter(&mut self, i: usize, phase: Phase, part: Part, replies: usize) -> io::Result<()> {
        let connection = &mut self.connections[i];
        connection.phase = phase;
        connection.replies_left = replies;
        connection.unsent = Some((part, 0));
        self.send(i)
    }

    fn send(&mut self, i: usize) -> io::Result<()> {
        let connection = &mut self.connections[i];
        while let Some((part, sent)) = connection.unsent {
            let octets: &[u8] = match part {
                Part::Hello => EHLO,
                Part::Envelope(index) => &self.wire.envelope[index],
                Part::Content => &self.wire.content,
                Part::Quit => QUIT,
            };
            match connection.stream.write(&octets[sent..]) {
                Ok(n) if sent + n == octets.len() => {
                    connection.unsent = None;
                    if matches!(part, Part::Content) {
                        connection.content_sent_at = Instant::now();
                    }
                }
                Ok(n) => connection.unsent = Some((part, sent + n)),
                // Whether the connection is not up yet or its buffer is full: the socket will say when it can.
                Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::NotConnected) => {
                    return Ok(());
                }
                Err(e) => return self.begin_anew(i, &e.to_string()),
            }
        }
        Ok(())
    }

    fn begin_anew(&mut self, i: usize, reason: &str) -> io::Result<()> {
        self.figures.refused += 1;
        self.refused_in_a_row += 1;
        self.figures.first_refusal.get_or_insert_with(|| reason.into());
        if self.refused_in_a_row > REFUSALS_MAX {
            return Err(io::Error::other(format!("nothing is accepted: {reason}")));
        }
        self.idle.retain(|idle| *idle != i);
        self.reconnect(i)
    }

    fn reconnect(&mut self, i: usize) -> io::Result<()> {
        // Dropping the old stream closes it, which also takes it out of the poll.
        let stream = self.connect(i)?;
        self.connections[i] = Connection::new(stream);
        Ok(())
    }

    fn connect(&mut self, i: usize) -> io::Result<TcpStream> {
        self.source = (self.source + 1) % SOURCES;
        let stream = connect_from(self.plan.address, self.source)?;
        let mut stream = TcpStream::from_std(stream);
        let interest = Interest::READABLE | Interest::WRITABLE;
        self.poll.registry().register(&mut stream, Token(i), interest)?;
        Ok(stream)
    }
}

/// A reply that is not the one the phase waits for.
struct Unexpected;

impl Connection {
    fn new(stream: TcpStream) -> Self {
        Connection {
            stream,
            phase: Phase::Greeting,
            unsent: None,
            replies_left: 1,
            line: [0; 4],
            line_size: 0,
            content_sent_at: Instant::now(),
        }
    }

    /// Takes octets of replies; whether the phase's replies are whole.
    fn take_replies(&mut self, mut octets: &[u8]) -> Result<bool, Unexpected> {
        while !octets.is_empty() {
            let end = memchr::memchr(b'\n', octets);
            let line = &octets[..end.map_or(octets.len(), |end| end + 1)];
            let wanted = (self.line.len() - self.line_size.min(4)).min(line.len());
            let at = self.line_size.min(4);
            self.line[at..at + wanted].copy_from_slice(&line[..wanted]);
            self.line_size += line.len();
            octets = &octets[line.len()..];
            if end.is_some() {
                let is_last = self.line[3] != b'-';
                self.line_size = 0;
                if is_last {
                    if self.replies_left == 0 || !self.is_expected() {
                        return Err(Unexpected);
                    }
                    self.replies_left -= 1;
                }
            }
        }
        Ok(self.replies_left == 0)
    }

    /// Whether the line's code is what the phase waits for: 354 where it is the last of an envelope's replies.
    fn is_expected(&self) -> bool {
        match (self.phase, &self.line[..3]) {
            (Phase::Content, code) => code == b"250",
            (Phase::Envelope(_), b"354") => self.replies_left == 1,
            (Phase::Envelope(_), code) => code == b"250",
            (_, code) => code[0] == b'2',
        }
    }
}

/// A non-blocking connection from the loopback address of this index.
pub fn connect_from(address: SocketAddr, source: u32) -> io::Result<std::net::TcpStream> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_nonblocking(true)?;
    socket.set_tcp_nodelay(true)?;
    if address.ip().is_loopback() && address.is_ipv4() {
        let ip = Ipv4Addr::from(u32::from(Ipv4Addr::new(127, 1, 0, 1)) + source);
        socket.bind(&SocketAddr::new(IpAddr::V4(ip), 0).into())?;
    }
    match socket.connect(&address.into()) {
        Err(e) if e.raw_os_error() != Some(libc::EINPROGRESS) => Err(e),
        _ => Ok(socket.into()),
    }
}
