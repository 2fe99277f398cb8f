//! One session of a client: what it says next, given what was replied.
//!
//! ```text
//! Greeting ─220→ Hello ─250→ (StartTls ─220→ Handshake → Hello) → Ready ⇄ Envelope → Content → Ready … Quit → Closed
//!                                                                    ↑        │refused      │refused
//!                                                                    └─ Reset ←─────────────┘
//! ```
//!
//! Commands are grouped as far as the rules and the server permit: MAIL, all RCPT and DATA in one write, or with BDAT the
//! content as well (RFC 2920 §3.1, RFC 3030 §4.2). Replies are matched to commands by their order. Where a group runs into a
//! refusal, every reply of it is still awaited, and content that was asked for with 354 although no recipient stands is
//! answered with an end-of-data only.
//!
//! 421 ends the session wherever it comes (RFC 5321 §3.8).

use std::io::Write;
use std::rc::Rc;
use std::time::{Duration, Instant};

use super::{Extensions, Reply};
use crate::content::MessageId;
use crate::measure::{Failure, Phase};

/// What every session of a run has in common.
#[derive(Clone, Debug)]
pub struct Rules {
    /// What EHLO says.
    pub host: String,
    /// The reverse-path; `{id}` is the message's.
    pub sender: String,
    /// The forward-path; `{n}` is the recipient's number, from 1.
    pub recipient: String,
    /// Recipients of a message; at least one.
    pub recipient_count: usize,
    /// Group commands where PIPELINING is offered.
    pub is_pipelined: bool,
    /// BDAT where CHUNKING is offered.
    pub is_chunking: bool,
    /// STARTTLS before anything else.
    pub is_starttls: bool,
}

/// A message to be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message {
    /// Its name.
    pub id: MessageId,
    /// The index of its content.
    pub content: usize,
    /// Octets of content.
    pub size: usize,
    /// Whether the content has octets above 127.
    pub is_8bit: bool,
    /// When it should have begun; in a closed loop, when it began.
    pub intended: Instant,
}

/// What became of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Its end-of-data was answered 250, for so many recipients.
    Accepted(usize),
    /// Something was refused.
    Refused,
    /// The session ended before its last reply.
    Lost,
}

/// What a dialogue measures is told to this.
pub trait Listener {
    /// A command or a content was answered.
    fn replied(
        &mut self,
        phase: Phase,
        took: Duration,
        reply: &Reply<'_>,
        message: Option<&Message>,
        now: Instant,
    );
    /// A message came to its end.
    fn ended(&mut self, message: &Message, outcome: Outcome, now: Instant);
}

/// What the driver does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Send what is in the output, if anything, and receive.
    Replies,
    /// Send the output, then the message's content; say so with [`Dialogue::handle_content_sent`].
    Content,
    /// Do a TLS handshake; say so with [`Dialogue::handle_secured`].
    Handshake,
    /// Begin a message or say goodbye, at leisure.
    Message,
    /// Close the connection; [`Dialogue::fault`] says what was wrong, if anything.
    Close,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Greeting,
    Hello,
    StartTls,
    Handshake,
    Ready,
    /// The reply to this command is awaited.
    Envelope(Command),
    /// The content is being sent: whole, or of a message that no recipient is left for only its end.
    Content,
    /// The reply to the content is awaited.
    EndOfData,
    Reset,
    Quit,
    Closed,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Command {
    Mail,
    Recipient(usize),
    Data,
}

/// One session.
pub struct Dialogue {
    rules: Rc<Rules>,
    state: State,
    extensions: Extensions,
    is_secured: bool,
    /// When what is being answered was sent.
    sent_at: Instant,
    message: Option<Message>,
    accepted_recipients: usize,
    is_refused: bool,
    fault: Option<(Failure, String)>,
}

impl Dialogue {
    /// A session that awaits its greeting; `sent_at` is when the connection was begun. `is_secured`: below TLS already.
    pub fn new(rules: Rc<Rules>, is_secured: bool, sent_at: Instant) -> Self {
        Dialogue {
            rules,
            state: State::Greeting,
            extensions: Extensions::default(),
            is_secured,
            sent_at,
            message: None,
            accepted_recipients: 0,
            is_refused: false,
            fault: None,
        }
    }

    /// What comes next.
    pub fn next(&self) -> Next {
        match self.state {
            State::Handshake => Next::Handshake,
            State::Ready => Next::Message,
            State::Content => Next::Content,
            State::Closed => Next::Close,
            _ => Next::Replies,
        }
    }

    /// Why the session was closed, where it was not at its end.
    pub fn fault(&self) -> Option<&(Failure, String)> {
        self.fault.as_ref()
    }

    /// The message that is under way.
    pub fn message(&self) -> Option<&Message> {
        self.message.as_ref()
    }

    /// Whether the reply to a content is awaited.
    pub fn is_content_sent(&self) -> bool {
        self.state == State::EndOfData
    }

    /// Whether contents travel with BDAT.
    pub fn is_chunking(&self) -> bool {
        self.rules.is_chunking && self.extensions.chunking
    }

    /// What the server offers.
    pub fn extensions(&self) -> Extensions {
        self.extensions
    }

    fn is_pipelined(&self) -> bool {
        self.rules.is_pipelined && self.extensions.pipelining
    }

    /// Begins a message.
    pub fn begin(&mut self, message: Message, now: Instant, out: &mut Vec<u8>) {
        debug_assert_eq!(self.state, State::Ready);
        self.message = Some(message);
        self.accepted_recipients = 0;
        self.is_refused = false;
        self.send(State::Envelope(Command::Mail), now);
        self.write_mail(&message, out);
        if self.is_pipelined() {
            for n in 1..=self.rules.recipient_count {
                self.write_recipient(n, out);
            }
            if self.is_chunking() {
                write(out, format_args!("BDAT {} LAST\r\n", message.size));
                self.state = State::Content;
            } else {
                out.extend_from_slice(b"DATA\r\n");
            }
        }
    }

    /// Says goodbye.
    pub fn quit(&mut self, now: Instant, out: &mut Vec<u8>) {
        out.extend_from_slice(b"QUIT\r\n");
        self.send(State::Quit, now);
    }

    /// The channel is secured: a session begins anew, or for the first time (RFC 3207 §4.2).
    pub fn handle_secured(&mut self, now: Instant, out: &mut Vec<u8>) {
        debug_assert_eq!(self.state, State::Handshake);
        self.is_secured = true;
        self.hello(now, out);
    }

    /// The last octet of the content, and of an end-of-data, was sent at `now`.
    pub fn handle_content_sent(&mut self, now: Instant) {
        debug_assert_eq!(self.state, State::Content);
        if self.is_chunking() && self.is_pipelined() {
            // The replies to the envelope are still to come; what they are measured from is their own sending, which
            // differs from the content's by the time of copying it.
            self.state = State::Envelope(Command::Mail);
            self.sent_at = now;
        } else {
            self.send(State::EndOfData, now);
        }
    }

    /// Whether the end-of-data alone is to be sent, because nobody is left to receive the content.
    pub fn is_content_void(&self) -> bool {
        self.state == State::Content && self.is_refused
    }

    /// The session has ended, by whatever cause.
    pub fn handle_end(&mut self, now: Instant, listener: &mut impl Listener) {
        self.state = State::Closed;
        self.finish(Outcome::Lost, now, listener);
    }

    fn close(&mut self, failure: Failure, reply: &Reply<'_>) {
        self.state = State::Closed;
        self.fault = Some((failure, String::from_utf8_lossy(reply.octets).trim_end().to_owned()));
    }

    /// A reply has arrived.
    pub fn handle_reply(
        &mut self,
        reply: Reply<'_>,
        now: Instant,
        listener: &mut impl Listener,
        out: &mut Vec<u8>,
    ) {
        let state = self.state;
        if state == State::Closed {
            // What follows a 421 in the same packet: why the session ended is known.
            return;
        }
        if let Some(phase) = phase(state) {
            let took = now.saturating_duration_since(self.sent_at);
            listener.replied(phase, took, &reply, self.message.as_ref(), now);
        }
        if reply.code == 421 {
            self.finish(Outcome::Refused, now, listener);
            self.close(Failure::Refused, &reply);
            return;
        }
        let is_positive = (200..300).contains(&reply.code);
        match state {
            State::Greeting if reply.code == 220 => self.hello(now, out),
            State::Hello if reply.code == 250 => {
                self.extensions = Extensions::of(&reply);
                if !self.rules.is_starttls || self.is_secured {
                    self.state = State::Ready;
                } else if self.extensions.starttls {
                    out.extend_from_slice(b"STARTTLS\r\n");
                    self.send(State::StartTls, now);
                } else {
                    self.state = State::Closed;
                    self.fault = Some((Failure::Refused, "STARTTLS is not offered".to_owned()));
                }
            }
            State::StartTls if reply.code == 220 => self.state = State::Handshake,
            State::Envelope(command) => self.handle_envelope_reply(command, reply.code, now, listener, out),
            State::EndOfData => {
                match reply.code {
                    250 if !self.is_refused => {
                        self.finish(Outcome::Accepted(self.accepted_recipients), now, listener);
                    }
                    // What a server does with a chunk that it refuses is its affair (RFC 3030 §2): RSET makes sure.
                    _ if self.is_chunking() => return self.reset(now, listener, out),
                    _ => self.finish(Outcome::Refused, now, listener),
                }
                self.state = State::Ready;
            }
            State::Reset if is_positive => self.state = State::Ready,
            State::Quit => self.state = State::Closed,
            State::Greeting | State::Hello | State::StartTls | State::Reset => {
                self.close(Failure::Refused, &reply);
            }
            // A server that will not have the rest of a content says so before it closes.
            State::Content if reply.code >= 400 => {
                self.finish(Outcome::Refused, now, listener);
                self.close(Failure::Refused, &reply);
            }
            State::Ready | State::Content | State::Handshake | State::Closed => {
                self.finish(Outcome::Lost, now, listener);
                self.close(Failure::Protocol, &reply);
            }
        }
    }

    fn handle_envelope_reply(
        &mut self,
        command: Command,
        code: u16,
        now: Instant,
        listener: &mut impl Listener,
        out: &mut Vec<u8>,
    ) {
        let is_positive = (200..300).contains(&code);
        match command {
            Command::Mail if is_positive || self.is_pipelined() => {
                self.is_refused |= !is_positive;
                self.state = State::Envelope(Command::Recipient(1));
                if !self.is_pipelined() {
                    self.write_recipient(1, out);
                    self.sent_at = now;
                }
            }
            Command::Mail => self.reset(now, listener, out),
            Command::Recipient(n) => {
                self.accepted_recipients += usize::from(is_positive);
                if n < self.rules.recipient_count {
                    self.state = State::Envelope(Command::Recipient(n + 1));
                    if !self.is_pipelined() {
                        self.write_recipient(n + 1, out);
                        self.sent_at = now;
                    }
                    return;
                }
                self.is_refused |= self.accepted_recipients == 0;
                match (self.is_pipelined(), self.is_chunking()) {
                    (true, true) => self.state = State::EndOfData,
                    (true, false) => self.state = State::Envelope(Command::Data),
                    (false, _) if self.is_refused => self.reset(now, listener, out),
                    (false, true) => {
                        let size = self.message.map_or(0, |message| message.size);
                        write(out, format_args!("BDAT {size} LAST\r\n"));
                        self.state = State::Content;
                    }
                    (false, false) => {
                        out.extend_from_slice(b"DATA\r\n");
                        self.send(State::Envelope(Command::Data), now);
                    }
                }
            }
            // RFC 2920 §3.1: a 354 must be followed by an end-of-data even where nobody is left to receive anything.
            Command::Data if code == 354 => self.state = State::Content,
            Command::Data => self.reset(now, listener, out),
        }
    }

    /// Ends a message that was refused, and whatever the server still holds of it.
    fn reset(&mut self, now: Instant, listener: &mut impl Listener, out: &mut Vec<u8>) {
        self.finish(Outcome::Refused, now, listener);
        out.extend_from_slice(b"RSET\r\n");
        self.send(State::Reset, now);
    }

    fn hello(&mut self, now: Instant, out: &mut Vec<u8>) {
        write(out, format_args!("EHLO {}\r\n", self.rules.host));
        self.send(State::Hello, now);
    }

    fn send(&mut self, state: State, now: Instant) {
        self.state = state;
        self.sent_at = now;
    }

    fn finish(&mut self, outcome: Outcome, now: Instant, listener: &mut impl Listener) {
        if let Some(message) = self.message.take() {
            listener.ended(&message, outcome, now);
        }
    }

    fn write_mail(&self, message: &Message, out: &mut Vec<u8>) {
        out.extend_from_slice(b"MAIL FROM:<");
        match self.rules.sender.split_once("{id}") {
            Some((before, after)) => {
                out.extend_from_slice(before.as_bytes());
                out.extend_from_slice(&message.id.to_octets());
                out.extend_from_slice(after.as_bytes());
            }
            None => out.extend_from_slice(self.rules.sender.as_bytes()),
        }
        out.push(b'>');
        if self.extensions.size {
            write(out, format_args!(" SIZE={}", message.size));
        }
        if message.is_8bit && self.extensions.eight_bit_mime {
            out.extend_from_slice(b" BODY=8BITMIME");
        }
        out.extend_from_slice(b"\r\n");
    }

    fn write_recipient(&self, n: usize, out: &mut Vec<u8>) {
        match self.rules.recipient.split_once("{n}") {
            Some((before, after)) => write(out, format_args!("RCPT TO:<{before}{n}{after}>\r\n")),
            None => {
                out.extend_from_slice(b"RCPT TO:<");
                out.extend_from_slice(self.rules.recipient.as_bytes());
                out.extend_from_slice(b">\r\n");
            }
        }
    }
}

fn write(out: &mut Vec<u8>, text: std::fmt::Arguments<'_>) {
    out.write_fmt(text).expect("a vector takes everything");
}

fn phase(state: State) -> Option<Phase> {
    match state {
        State::Greeting => Some(Phase::Connect),
        State::Hello => Some(Phase::Hello),
        State::Envelope(Command::Mail) => Some(Phase::Mail),
        State::Envelope(Command::Recipient(_)) => Some(Phase::Recipient),
        State::Envelope(Command::Data) => Some(Phase::Data),
        State::EndOfData => Some(Phase::EndOfData),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
