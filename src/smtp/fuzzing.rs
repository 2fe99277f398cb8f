//! The bodies of the fuzz targets (`tests/fuzz`), here because the parser and the decoder are not public.
//!
//! Each takes arbitrary octets and panics when a promise is broken. Not part of the API.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::mail::{Capabilities, MessageId, Refusal, Status, Tls, TlsVersion};

use super::command;
use super::config::{AuthMode, BareLineEnds, Dialect, Peer, SessionConfig, TlsMode};
use super::content::{Decoder, Found};
use super::effect::{Authentication, Effect, NotStored};
use super::params::Offered;
use super::session::Session;
use crate::mail::{Phase, Phases};

/// The longest reply to one command, in octets: EHLO's, with a name of 255 octets.
const REPLY_SIZE_MAX: usize = 512;

/// The command parser: arbitrary lines never panic, and what is taken is well-formed.
pub fn command(data: &[u8]) {
    let Ok((_, arguments)) = command::parse(data) else { return };
    if let Ok(name) = command::hello(arguments) {
        assert!((1..=255).contains(&name.len()) && name.bytes().all(|c| c.is_ascii_graphic()));
    }
    let offered = Offered { binary: true, dsn: true, require_tls: true, auth: true };
    if let Ok((path, params)) = command::mail(arguments, offered) {
        assert!(is_clean(path.as_str(), params.smtputf8));
    }
    for utf8 in [false, true] {
        if let Ok((path, _)) = command::recipient(arguments, utf8, offered) {
            assert!(!path.as_str().is_empty() && is_clean(path.as_str(), utf8));
        }
    }
}

/// The content decoder: every split gives the same, and clean content comes back as it was sent.
///
/// The first octet chooses the handling of bare line ends and the size of the steps.
pub fn content(data: &[u8]) {
    let Some((choice, stream)) = data.split_first() else { return };
    let bare = if choice & 1 == 0 { BareLineEnds::Refuse } else { BareLineEnds::Normalise };
    let whole = decode(stream, bare, stream.len().max(1));
    assert_eq!(decode(stream, bare, 1), whole);
    assert_eq!(decode(stream, bare, usize::from(choice >> 1) + 1), whole);
    let is_crlf_clean = |content: &[u8]| {
        let pairs = content.windows(2).filter(|w| *w == b"\r\n").count();
        let count = |octet| content.iter().filter(|c| **c == octet).count();
        pairs == count(b'\r') && pairs == count(b'\n') && count(0) == 0
    };
    if bare == BareLineEnds::Normalise && whole.faults.is_empty() {
        assert!(is_crlf_clean(&whole.content));
    }
    if is_crlf_clean(stream) {
        let original = [stream, b"\r\n"].concat();
        let sent = [&stuff(&original)[..], b".\r\nQUIT\r\n"].concat();
        let decoded = decode(&sent, bare, usize::from(choice >> 1) + 1);
        assert_eq!(decoded.content, original);
        assert_eq!(decoded.faults, []);
        assert_eq!(decoded.rest.as_deref(), Some(&b"QUIT\r\n"[..]));
    }
}

/// Decodes content up to its end-of-data, at once: for measuring.
pub fn decode_whole(stream: &[u8], out: &mut Vec<u8>) {
    let (taken, found) = Decoder::new(BareLineEnds::Refuse).decode(stream, out);
    assert_eq!((taken, found), (stream.len(), Found::EndOfData));
}

/// A whole session under a driver that answers, refuses, waits and ends it as the data says.
///
/// The data is read as instructions: two octets that choose the configuration, then one that chooses what happens, which for input is
/// how much of the rest.
pub fn session(data: &[u8]) {
    let Some(([choice, features], mut rest)) = data.split_first_chunk() else { return };
    let mut driver = Driver::new(*choice, *features);
    while let Some((instruction, more)) = rest.split_first() {
        rest = more;
        match instruction {
            0xff => driver.end_of_input(),
            0xfe => driver.session.handle_drain(&mut driver.replies),
            0xfd => driver.session.handle_abort(&mut driver.replies),
            0xfc => driver.pass(Duration::from_secs(301)),
            0xfb => driver.session.handle_not_stored(NotStored::Failed, driver.now),
            size => {
                let size = usize::from(*size).min(rest.len());
                let (input, more) = rest.split_at(size);
                rest = more;
                driver.input(input);
            }
        }
        driver.perform_effects();
        driver.check();
    }
    driver.session.handle_abort(&mut driver.replies);
    driver.perform_effects();
    driver.check();
    assert!(driver.session.is_closed() && driver.is_told_to_close);
    assert_eq!(driver.contents_ended, driver.contents_begun());
}

/// Chunks against a model that is slow and obviously right: no octet of a chunk is read as a command, each command is answered, and what
/// is stored is what was sent.
///
/// The first octet chooses the handling of bare line ends, BINARYMIME and the size of the steps. Then come instructions: an octet, and
/// for a chunk the octets it says.
pub fn chunks(data: &[u8]) {
    let Some((choice, mut rest)) = data.split_first() else { return };
    let bare = if choice & 1 == 0 { BareLineEnds::Refuse } else { BareLineEnds::Normalise };
    let mut model = ChunkModel { is_binary: choice & 2 != 0, bare, ..ChunkModel::default() };
    while let Some((instruction, more)) = rest.split_first() {
        rest = more;
        match instruction {
            0xff => model.reset(),
            0xfe => model.noop(),
            0xfd => model.begin(),
            0xfc => model.absurd_chunk(),
            // Half of the chunks are the last.
            size => {
                let (payload, more) = rest.split_at(usize::from(size >> 1).min(rest.len()));
                rest = more;
                model.chunk(payload, size & 1 == 1);
            }
        }
    }
    let wire = std::mem::take(&mut model.wire);
    for step in [wire.len().max(1), usize::from(choice >> 2) + 1] {
        let (messages, codes) = send_chunks(&wire, bare, step);
        let text = wire.escape_ascii();
        let is_alike = |(code, expected): (&u16, &u16)| {
            code == expected || *expected == ANY && (*code == 550 || *code == 552)
        };
        assert_eq!(codes.len(), model.codes.len(), "in steps of {step}: {text}");
        assert!(codes.iter().zip(&model.codes).all(is_alike), "{codes:?}, not {:?}: {text}", model.codes);
        assert_eq!(messages, model.messages, "in steps of {step}: {text}");
    }
}

/// Content of more octets is too large, in what chunks are tried with.
const CHUNKS_SIZE_MAX: usize = 150;

/// What a session should make of chunks.
#[derive(Default)]
struct ChunkModel {
    bare: BareLineEnds,
    is_binary: bool,
    /// What is sent.
    wire: Vec<u8>,
    /// Of a transaction that has a recipient: its content so far, as it was sent.
    open: Option<Vec<u8>>,
    has_chunk: bool,
    is_closed: bool,
    /// What should be answered and stored.
    codes: Vec<u16>,
    messages: Vec<Vec<u8>>,
}

impl ChunkModel {
    fn say(&mut self, octets: &[u8], codes: &[u16]) {
        self.wire.extend_from_slice(octets);
        if !self.is_closed {
            self.codes.extend_from_slice(codes);
        }
    }

    fn reset(&mut self) {
        self.say(b"RSET\r\n", &[250]);
        self.open = None;
        self.has_chunk = false;
    }

    fn noop(&mut self) {
        self.say(b"NOOP\r\n", &[250]);
    }

    fn begin(&mut self) {
        let codes = match (&self.open, self.has_chunk) {
            (None, _) => [250, 250],
            (Some(_), false) => [503, 250],
            (Some(_), true) => [503, 503],
        };
        let body = if self.is_binary { "BODY=BINARYMIME" } else { "" };
        self.say(format!("MAIL FROM:<a@e> {body}\r\nRCPT TO:<b@e>\r\n").as_bytes(), &codes);
        self.open.get_or_insert_default();
    }

    fn absurd_chunk(&mut self) {
        self.say(format!("BDAT {}\r\n", CHUNKS_SIZE_MAX + 1).as_bytes(), &[552]);
        self.is_closed = true;
    }

    fn chunk(&mut self, payload: &[u8], is_last: bool) {
        let last = if is_last { " LAST" } else { "" };
        self.say(format!("BDAT {}{last}\r\n", payload.len()).as_bytes(), &[]);
        self.wire.extend_from_slice(payload);
        if self.is_closed {
            return;
        }
        let Some(mut content) = self.open.take() else { return self.codes.push(503) };
        self.has_chunk = false;
        let (before, _) = self.decoded(&content, false);
        content.extend_from_slice(payload);
        let (stored, fault) = self.decoded(&content, is_last);
        let is_too_large = before.len() + payload.len() > CHUNKS_SIZE_MAX || stored.len() > CHUNKS_SIZE_MAX;
        self.codes.push(match (is_too_large, fault) {
            (false, None) => 250,
            (true, None) => 552,
            (false, Some(_)) => 550,
            // Which comes first is another test's matter.
            (true, Some(_)) => ANY,
        });
        match (self.codes.last(), is_last) {
            (Some(250), true) => self.messages.push(stored),
            (Some(250), false) => {
                self.open = Some(content);
                self.has_chunk = true;
            }
            _ => {}
        }
    }

    /// What of the content is stored, and its first fault. Where it is not complete nothing is known of a CR at its end.
    fn decoded(&self, content: &[u8], is_complete: bool) -> (Vec<u8>, Option<u8>) {
        if self.is_binary {
            return (content.to_vec(), None);
        }
        let (mut stored, mut fault) = (Vec::new(), None);
        for (i, c) in content.iter().enumerate() {
            let before = i.checked_sub(1).map(|i| content[i]);
            let next = content.get(i + 1);
            match c {
                b'\n' if before == Some(b'\r') => stored.extend_from_slice(b"\r\n"),
                b'\r' if next == Some(&b'\n') || next.is_none() && !is_complete => {}
                b'\r' | b'\n' if self.bare == BareLineEnds::Normalise => stored.extend_from_slice(b"\r\n"),
                b'\r' | b'\n' | 0 => _ = fault.get_or_insert(*c),
                c => stored.push(*c),
            }
        }
        (stored, fault)
    }
}

/// Any refusal of content.
const ANY: u16 = 55;

fn send_chunks(wire: &[u8], bare: BareLineEnds, step: usize) -> (Vec<Vec<u8>>, Vec<u16>) {
    let config = SessionConfig {
        message_size_max: CHUNKS_SIZE_MAX as u64,
        piece_size: 16,
        errors_max: u32::MAX,
        idle_commands_max: u32::MAX,
        small_chunks_max: u32::MAX,
        capabilities: Capabilities::ALL,
        ..SessionConfig::new("mx")
    };
    let now = Instant::now();
    let mut replies = Vec::new();
    let stranger = Peer::stranger("192.0.2.1:25".parse().expect("an address"));
    let peer = Peer { bare_line_ends: bare, ..stranger };
    let mut session = Session::new(Arc::new(config), peer, now, &mut replies);
    session.handle_input(b"HELO c\r\n", now, &mut replies);
    replies.clear();
    let (mut content, mut messages) = (Vec::new(), Vec::new());
    for part in wire.chunks(step) {
        let mut at = 0;
        while at < part.len() && !session.is_closed() {
            at += session.handle_input(&part[at..], now, &mut replies);
            assert!(session.content_buffer_size() <= 16);
            while let Some(effect) = session.poll_effect() {
                match effect {
                    Effect::Piece(piece) => {
                        content.extend_from_slice(&piece);
                        session.handle_piece_taken(piece, now);
                    }
                    Effect::Store(submission) => {
                        content.extend_from_slice(&submission.tail);
                        assert_eq!(content.len() as u64, submission.content_size);
                        messages.push(std::mem::take(&mut content));
                        session.handle_stored(Ok(MessageId { log: 1, sequence: 1 }), now, &mut replies);
                    }
                    Effect::Abandon => content.clear(),
                    Effect::Close => {}
                    other => panic!("nobody has configured {other:?}"),
                }
            }
        }
    }
    let text = String::from_utf8(replies).expect("replies are ASCII");
    let codes = text.lines().map(|line| line[..3].parse().expect("a code"));
    (messages, codes.collect())
}

/// Undoes what [`Decoder`] does: content as a client sends it, without end-of-data.
fn stuff(content: &[u8]) -> Vec<u8> {
    let mut stuffed = Vec::with_capacity(content.len() + 16);
    for line in content.split_inclusive(|c| *c == b'\n') {
        if line.starts_with(b".") {
            stuffed.push(b'.');
        }
        stuffed.extend_from_slice(line);
    }
    stuffed
}

fn is_clean(path: &str, utf8: bool) -> bool {
    path.len() <= 254 && (utf8 || path.is_ascii()) && !path.bytes().any(|c| c < 0x20 || c == 0x7f)
}

#[derive(Debug, PartialEq, Eq)]
struct Decoded {
    content: Vec<u8>,
    faults: Vec<Found>,
    rest: Option<Vec<u8>>,
}

fn decode(stream: &[u8], bare: BareLineEnds, step: usize) -> Decoded {
    let mut decoder = Decoder::new(bare);
    let mut decoded = Decoded { content: Vec::new(), faults: Vec::new(), rest: None };
    let mut from = 0;
    while from < stream.len() {
        let to = stream.len().min(from + step);
        let (taken, found) = decoder.decode(&stream[from..to], &mut decoded.content);
        from += taken;
        match found {
            Found::Nothing => assert_eq!(from, to),
            Found::EndOfData => {
                decoded.rest = Some(stream[from..].to_vec());
                break;
            }
            fault => decoded.faults.push(fault),
        }
    }
    decoded
}

/// Plays the driver and holds the session to its contract.
struct Driver {
    session: Session,
    replies: Vec<u8>,
    now: Instant,
    answers: u8,
    input_size: usize,
    answers_count: usize,
    replies_per_content: usize,
    pieces_size: u64,
    /// How often `Store` or `Abandon` was raised.
    contents_ended: usize,
    is_told_to_close: bool,
}

impl Driver {
    fn new(choice: u8, features: u8) -> Self {
        use Phase::*;
        let phases = [Connect, Hello, Mail, Recipient, Data, Message];
        let config = SessionConfig {
            message_size_max: 200,
            recipients_max: 3,
            command_size_max: 64,
            hops_max: 1,
            header_size_max: 100,
            piece_size: 16,
            small_chunks_max: 5,
            tls: [TlsMode::Disabled, TlsMode::Optional, TlsMode::Required, TlsMode::Implicit]
                [usize::from(features & 3)],
            auth: [AuthMode::Disabled, AuthMode::Optional, AuthMode::Required, AuthMode::Disabled]
                [usize::from(features >> 2 & 3)],
            dialect: if features & 0x10 == 0 { Dialect::Smtp } else { Dialect::Lmtp },
            capabilities: if features & 0x20 == 0 { Capabilities::default() } else { Capabilities::ALL },
            error_delay: Duration::from_secs((features >> 7).into()),
            error_delay_after: 2,
            phases: phases
                .into_iter()
                .filter(|p| choice >> *p as u8 & 1 == 1)
                .fold(Phases::NONE, |all, phase| all | Phases::of(phase)),
            ..SessionConfig::new("mx")
        };
        let bare = if choice & 0x40 == 0 { BareLineEnds::Refuse } else { BareLineEnds::Normalise };
        let now = Instant::now();
        let mut replies = Vec::new();
        let stranger = Peer::stranger("192.0.2.1:25".parse().expect("an address"));
        let peer = Peer { bare_line_ends: bare, may_xclient: features & 0x40 != 0, ..stranger };
        let session = Session::new(Arc::new(config), peer, now, &mut replies);
        let mut driver = Driver {
            session,
            replies,
            now,
            answers: choice,
            input_size: 0,
            answers_count: 0,
            replies_per_content: if features & 0x10 == 0 { 1 } else { 3 },
            pieces_size: 0,
            contents_ended: 0,
            is_told_to_close: false,
        };
        driver.perform_effects();
        driver
    }

    fn input(&mut self, input: &[u8]) {
        self.input_size += input.len();
        let mut at = 0;
        while at < input.len() {
            at += self.session.handle_input(&input[at..], self.now, &mut self.replies);
            if !self.perform_effects() && at < input.len() {
                assert!(self.session.is_closed(), "the session neither takes octets nor wants anything");
                break;
            }
        }
    }

    fn end_of_input(&mut self) {
        self.session.handle_end_of_input(&mut self.replies);
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
        self.session.handle_timeout(self.now, &mut self.replies);
    }

    /// How often content was asked for.
    fn contents_begun(&self) -> usize {
        self.session.contents_begun() as usize
    }

    /// Answers every effect, in turns well and badly. Says whether there was one.
    fn perform_effects(&mut self) -> bool {
        let mut has_effect = false;
        while let Some(effect) = self.session.poll_effect() {
            has_effect = true;
            assert!(!self.is_told_to_close, "{effect:?} after Close");
            self.answers = self.answers.wrapping_mul(5).wrapping_add(3);
            self.answers_count += 1;
            let is_well = self.answers & 0x30 != 0;
            match effect {
                Effect::Check(_) if is_well => {
                    self.session.handle_verdict(Ok(()), self.now, &mut self.replies)
                }
                Effect::Check(_) => {
                    let mut refusal = Refusal::new(Status::temporary(7, 1), "No");
                    refusal.disconnect = self.answers & 0x40 != 0;
                    self.session.handle_verdict(Err(refusal), self.now, &mut self.replies);
                }
                Effect::Piece(piece) if is_well => {
                    assert!(piece.len() <= 16, "a piece of {} octets", piece.len());
                    self.pieces_size += piece.len() as u64;
                    self.session.handle_piece_taken(piece, self.now);
                }
                Effect::Piece(_) => self.session.handle_not_stored(NotStored::NoRoom, self.now),
                Effect::Store(submission) => {
                    self.contents_ended += 1;
                    assert_eq!(self.contents_ended, self.contents_begun(), "a message without content");
                    assert_eq!(submission.content_size, self.pieces_size + submission.tail.len() as u64);
                    assert!(submission.content_size <= 200);
                    assert!((1..=3).contains(&submission.envelope.forward_paths.len()));
                    self.pieces_size = 0;
                    let id = MessageId { log: 1, sequence: 1 };
                    let outcome = if is_well { Ok(id) } else { Err(NotStored::Failed) };
                    self.session.handle_stored(outcome, self.now, &mut self.replies);
                }
                Effect::StartTls if self.answers & 0x18 == 0x18 => {
                    self.session.handle_tls_ready(&mut self.replies);
                    self.session.handle_tls_failed();
                    assert!(self.session.is_closed());
                }
                Effect::StartTls if is_well => {
                    self.session.handle_tls_ready(&mut self.replies);
                    let tls = Tls {
                        version: TlsVersion::Tls13,
                        cipher: "TLS13_AES_256_GCM_SHA384".into(),
                        server_name: None,
                        client: None,
                    };
                    self.session.handle_secured(tls, self.now, &mut self.replies);
                    let is_new = self.session.envelope().is_none() && self.session.hello().is_none();
                    assert!(is_new && self.session.authenticated().is_none());
                }
                Effect::StartTls => self.session.handle_tls_unavailable(self.now, &mut self.replies),
                Effect::Authenticate(credentials) => {
                    assert!(self.session.tls().is_some(), "a password was asked for in clear");
                    assert!(!credentials.user.is_empty() && !credentials.user.chars().any(char::is_control));
                    let outcome = if is_well { Authentication::Accepted } else { Authentication::Refused };
                    self.session.handle_authenticated(outcome, self.now, &mut self.replies);
                }
                Effect::Abandon => {
                    self.contents_ended += 1;
                    assert!(self.contents_ended <= self.contents_begun(), "abandoned what was not begun");
                    self.pieces_size = 0;
                }
                Effect::Pause(_) => self.session.handle_pause_over(self.now, &mut self.replies),
                Effect::Close => {
                    self.is_told_to_close = true;
                    assert!(self.session.is_closed());
                }
            }
        }
        has_effect
    }

    fn check(&self) {
        // The shortest command is two octets; a policy's refusal and a 421 may come without one.
        let replies_max =
            (self.input_size / 2 + self.answers_count * self.replies_per_content + 3) * REPLY_SIZE_MAX;
        assert!(self.replies.len() <= replies_max);
        assert!(self.replies.is_empty() || self.replies.ends_with(b"\r\n"));
        assert!(self.session.content_buffer_size() <= 16);
    }
}
