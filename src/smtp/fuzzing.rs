//! The bodies of the fuzz targets (`tests/fuzz`), here because the parser and the decoder are not public.
//!
//! Each takes arbitrary octets and panics when a promise is broken. Not part of the API.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::mail::{MessageId, Refusal, Status, Tls, TlsVersion};

use super::command;
use super::config::{BareLineEnds, Peer, SessionConfig};
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
/// The data is read as instructions: an octet that chooses what happens, and for input another that says how
/// much of the rest.
pub fn session(data: &[u8]) {
    let mut driver = Driver::new(data.first().copied().unwrap_or(0));
    let mut rest = data.get(1..).unwrap_or_default();
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
    pieces_size: u64,
    /// How often `Store` or `Abandon` was raised.
    contents_ended: usize,
    is_told_to_close: bool,
}

impl Driver {
    fn new(choice: u8) -> Self {
        use Phase::*;
        let phases = [Connect, Hello, Mail, Recipient, Data, Message];
        let config = SessionConfig {
            message_size_max: 200,
            recipients_max: 3,
            command_size_max: 64,
            hops_max: 1,
            header_size_max: 100,
            piece_size: 16,
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
        let peer = Peer { bare_line_ends: bare, ..stranger };
        let session = Session::new(Arc::new(config), peer, now, &mut replies);
        let mut driver = Driver {
            session,
            replies,
            now,
            answers: choice,
            input_size: 0,
            answers_count: 0,
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
        memchr::memmem::find_iter(&self.replies, b"354 ").count()
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
                Effect::StartTls if is_well => {
                    self.session.handle_tls_ready(&mut self.replies);
                    let tls = Tls {
                        version: TlsVersion::Tls13,
                        cipher: "TLS13_AES_256_GCM_SHA384".into(),
                        server_name: None,
                        client: None,
                    };
                    self.session.handle_secured(tls, self.now, &mut self.replies);
                }
                Effect::StartTls => self.session.handle_tls_unavailable(self.now, &mut self.replies),
                Effect::Authenticate(_) => {
                    let outcome = if is_well { Authentication::Accepted } else { Authentication::Refused };
                    self.session.handle_authenticated(outcome, self.now, &mut self.replies);
                }
                Effect::Abandon => {
                    self.contents_ended += 1;
                    assert!(self.contents_ended <= self.contents_begun(), "abandoned what was not begun");
                    self.pieces_size = 0;
                }
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
        let replies_max = (self.input_size / 2 + self.answers_count + 3) * REPLY_SIZE_MAX;
        assert!(self.replies.len() <= replies_max);
        assert!(self.replies.is_empty() || self.replies.ends_with(b"\r\n"));
        assert!(self.session.content_buffer_size() <= 16);
    }
}
