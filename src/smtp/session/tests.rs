//! What a dialogue cannot show: sizes, deadlines, and that every end of a content is told exactly once.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::mail::{MessageId, Protocol, Refusal, Status};

use super::super::config::{Peer, SessionConfig};
use super::super::effect::{Effect, NotStored};
use super::Session;
use crate::mail::{Phase, Phases};

const SECOND: Duration = Duration::from_secs(1);
const ID: MessageId = MessageId { log: 1, sequence: 33 };
const TO_DATA: &[u8] = b"EHLO c\r\nMAIL FROM:<a@e.org>\r\nRCPT TO:<b@e.org>\r\nDATA\r\n";
const REFUSED: Refusal = Refusal::new(Status::permanent(7, 1), "No");

/// A session and the replies it has given.
struct Fixture {
    session: Session,
    replies: Vec<u8>,
    now: Instant,
}

impl Fixture {
    fn new(config: SessionConfig) -> Self {
        let now = Instant::now();
        let mut replies = Vec::new();
        let peer = Peer::stranger("192.0.2.1:1234".parse().unwrap());
        let session = Session::new(Arc::new(config), peer, now, &mut replies);
        Fixture { session, replies, now }
    }

    fn default() -> Self {
        Fixture::new(SessionConfig::new("mx"))
    }

    fn input(&mut self, octets: &[u8]) -> usize {
        self.session.handle_input(octets, self.now, &mut self.replies)
    }

    fn timeout_at(&mut self, after: Duration) {
        self.session.handle_timeout(self.now + after, &mut self.replies);
    }

    fn last_reply(&self) -> &str {
        let text = std::str::from_utf8(&self.replies).unwrap();
        text.trim_end().rsplit("\r\n").next().unwrap()
    }

    fn effects(&mut self) -> Vec<Effect> {
        std::iter::from_fn(|| self.session.poll_effect()).collect()
    }

    fn store(&mut self) -> Effect {
        let effect = self.session.poll_effect().expect("an effect");
        assert!(matches!(effect, Effect::Store(_)), "{effect:?}");
        effect
    }
}

#[test]
fn an_idle_session_is_small_and_holds_nothing() {
    assert!(size_of::<Session>() <= 336, "{} octets", size_of::<Session>());
    let mut f = Fixture::default();
    f.input(b"EHLO c\r\n");
    assert!(f.session.transaction.is_none());
    assert_eq!(f.session.content_buffer_size(), 0);
}

#[test]
fn who_is_sent_away_for_what_he_did_is_remembered_as_such() {
    let hello = "EHLO c\r\n";
    let table: [(&str, &[u8], &str, bool); 9] = [
        // (what, what is sent, how it ends, is it for what was done)
        ("a farewell", b"QUIT\r\n", "221", false),
        ("another protocol", b"GET / HTTP/1.1\r\n", "554 5.5.0", true),
        ("a handshake in clear", b"\x16\x03\x01\x02\0\x01\0\x01\xfc", "554 5.5.0", true),
        ("errors", &b"XYZZY\r\n".repeat(21), "421 4.7.0", true),
        ("commands for nothing", &b"NOOP\r\n".repeat(100), "421 4.7.0", true),
        ("a line without an end", &[b'x'; 1 << 20], "421 4.5.6", true),
        ("content before it is asked for", &[TO_DATA, b"x"].concat(), "554 5.5.0", true),
        ("a chunk of no size", b"BDAT x\r\n", "501 5.5.4", false),
        ("an error", b"XYZZY\r\n", "500", false),
    ];
    for (what, octets, last, expected) in table {
        let mut f = Fixture::default();
        f.input(hello.as_bytes());
        let mut taken = 0;
        while taken < octets.len() && !f.session.is_closed() {
            taken += f.input(&octets[taken..]);
        }
        assert!(f.last_reply().starts_with(last), "{what}: {}", f.last_reply());
        assert_eq!(f.session.was_sent_away(), expected, "{what}");
    }
    // Our own reasons, and what may have happened to the peer.
    type End = fn(&mut Fixture);
    let ends: [(&str, End); 4] = [
        ("421 4.4.2", |f| f.timeout_at(1000 * SECOND)),
        ("421 4.3.2", |f| f.session.handle_drain(&mut f.replies)),
        ("421 4.3.2", |f| f.session.handle_abort(&mut f.replies)),
        ("250", |f| f.session.handle_end_of_input(&mut f.replies)),
    ];
    for (last, end) in ends {
        let mut f = Fixture::default();
        f.input(hello.as_bytes());
        end(&mut f);
        assert!(f.session.is_closed() && f.last_reply().starts_with(last), "{}", f.last_reply());
        assert!(!f.session.was_sent_away(), "{last}");
    }
    // A policy's refusal is not the peer's misdeed.
    let mut f =
        Fixture::new(SessionConfig { phases: Phases::of(Phase::Connect), ..SessionConfig::new("mx") });
    f.effects();
    f.session.handle_verdict(Err(REFUSED), f.now, &mut f.replies);
    assert!(f.session.is_closed() && !f.session.was_sent_away());
}

#[test]
fn an_accepted_message_is_handed_over_once_and_answered_once() {
    let mut f = Fixture::default();
    f.input(TO_DATA);
    assert!(f.session.is_receiving_content());
    assert_eq!(f.input(b"hello\r\n.\r\nQUIT\r\n"), 10);
    let Effect::Store(submission) = f.store() else { unreachable!() };
    assert_eq!(submission.tail, b"hello\r\n");
    assert_eq!(submission.content_size, 7);
    assert_eq!(submission.envelope.reverse_path.as_str(), "a@e.org");
    assert_eq!(f.input(b"QUIT\r\n"), 0, "nothing is taken before the message's fate is known");
    let mut trace = Vec::new();
    f.session.write_received(ID, None, "now", &mut trace);
    let trace = String::from_utf8(trace).unwrap();
    assert_eq!(
        trace,
        "Received: from c ([192.0.2.1])\r\n\tby mx with ESMTP id 000000111\r\n\tfor <b@e.org>;\r\n\tnow\r\n"
    );
    assert_eq!(f.session.arrival(7).protocol, Protocol::Esmtp);
    f.session.handle_stored(Ok(ID), f.now, &mut f.replies);
    assert_eq!(f.last_reply(), "250 2.0.0 Ok: queued as 000000111");
    let replies_size = f.replies.len();
    f.session.handle_stored(Ok(ID), f.now, &mut f.replies);
    f.session.handle_verdict(Ok(()), f.now, &mut f.replies);
    assert_eq!(f.replies.len(), replies_size, "answers nobody awaits are ignored");
    f.input(b"QUIT\r\n");
    assert_eq!(f.effects(), [Effect::Close]);
}

#[test]
fn the_trace_names_no_recipient_of_several() {
    let mut f = Fixture::default();
    f.input(b"HELO c\r\nMAIL FROM:<>\r\nRCPT TO:<b@e.org>\r\nRCPT TO:<c@e.org>\r\nDATA\r\n");
    f.input(b".\r\n");
    f.store();
    let mut trace = Vec::new();
    f.session.write_received(ID, None, "now", &mut trace);
    assert_eq!(
        String::from_utf8(trace).unwrap(),
        "Received: from c ([192.0.2.1])\r\n\tby mx with SMTP id 000000111;\r\n\tnow\r\n"
    );
}

#[test]
fn utf8smtp_is_named_when_it_was_used() {
    let mut f = Fixture::default();
    f.input("EHLO c\r\nMAIL FROM:<é@e.org> SMTPUTF8\r\nRCPT TO:<b@e.org>\r\nDATA\r\n".as_bytes());
    f.input(b".\r\n");
    f.store();
    assert_eq!(f.session.arrival(7).keyword(true), "UTF8SMTP");
}

#[test]
fn every_end_of_a_begun_content_is_one_abandon_or_one_store() {
    type End = fn(&mut Fixture);
    let ends: [(&str, End); 6] = [
        ("abort", |f| f.session.handle_abort(&mut f.replies)),
        ("timeout", |f| f.timeout_at(100_000 * SECOND)),
        ("end of input", |f| f.session.handle_end_of_input(&mut f.replies)),
        ("drain, then abort", |f| {
            f.session.handle_drain(&mut f.replies);
            f.session.handle_abort(&mut f.replies);
        }),
        ("refused by us", |f| {
            f.session.handle_not_stored(NotStored::Failed, f.now);
            f.session.handle_abort(&mut f.replies);
        }),
        ("refused by the content", |f| {
            f.input(b"\0\r\n");
            assert_eq!(f.session.effect, Some(Effect::Abandon), "as soon as it is known");
            assert_eq!(f.input(b"x"), 0, "nothing is taken before it is polled");
            f.session.handle_abort(&mut f.replies);
        }),
    ];
    for (name, end) in ends {
        let mut f = Fixture::default();
        f.input(TO_DATA);
        f.input(b"hello\r\n");
        end(&mut f);
        assert_eq!(f.effects(), [Effect::Abandon, Effect::Close], "{name}");
        assert!(f.session.is_closed());
        assert_eq!(f.session.content_buffer_size(), 0);
    }
}

#[test]
fn every_end_of_begun_chunks_is_one_abandon_or_one_store() {
    type End = fn(&mut Fixture);
    let ends: [(&str, End); 9] = [
        ("abort", |f| f.session.handle_abort(&mut f.replies)),
        ("timeout", |f| f.timeout_at(100_000 * SECOND)),
        ("end of input", |f| f.session.handle_end_of_input(&mut f.replies)),
        ("RSET, QUIT", |f| _ = f.input(b"RSET\r\nQUIT\r\n")),
        ("EHLO", |f| _ = f.input(b"EHLO d\r\n")),
        ("QUIT", |f| _ = f.input(b"QUIT\r\n")),
        ("not stored, and told so twice", |f| {
            f.session.handle_not_stored(NotStored::Failed, f.now);
            f.session.handle_not_stored(NotStored::Failed, f.now);
        }),
        ("a chunk that is too much", |f| _ = f.input(b"BDAT 100\r\n")),
        ("the last chunk", |f| _ = f.input(b"BDAT 0 LAST\r\n")),
    ];
    let config = SessionConfig { message_size_max: 101, ..SessionConfig::new("mx") };
    for opening in ["BDAT 7\r\nhello\r\n", "BDAT 0\r\n", "BDAT 7\r\nhello\r\nBDAT 1\r\nx"] {
        for (name, end) in ends {
            let mut f = Fixture::new(config.clone());
            f.input(&[&TO_DATA[..TO_DATA.len() - 6], opening.as_bytes()].concat());
            assert!(f.effects().is_empty() && f.session.envelope().is_some(), "{opening:?}, {name}");
            end(&mut f);
            let mut effects = f.effects();
            // Whatever comes then is nothing to this content any more.
            f.input(b"RSET\r\nBDAT 6 LAST\r\nRSET\r\n");
            f.session.handle_abort(&mut f.replies);
            effects.extend(f.effects());
            effects.retain(|effect| *effect != Effect::Close);
            let is_one = match name {
                "the last chunk" => matches!(effects[..], [Effect::Store(_)]),
                _ => effects == [Effect::Abandon],
            };
            assert!(is_one, "{opening:?}, {name}: {effects:?}");
            assert_eq!(f.session.content_buffer_size(), 0, "{opening:?}, {name}");
            assert_eq!(f.session.contents_begun(), 1);
        }
    }
}

#[test]
fn pieces_may_be_handed_over_between_chunks() {
    let mut f = Fixture::default();
    f.input(&TO_DATA[..TO_DATA.len() - 6]);
    assert!(!f.session.hand_over_early(0), "there is no content yet");
    f.input(b"BDAT 7\r\nhello\r\n");
    assert!(f.session.hand_over_early(7) && !f.session.hand_over_early(0));
    assert_eq!(f.effects(), [Effect::Piece(b"hello\r\n".to_vec())]);
    assert_eq!(f.input(b"BDAT 3 LAST\r\nx\r\n"), 0, "nothing is taken before it is answered");
    f.session.handle_piece_taken(Vec::new(), f.now);
    f.input(b"BDAT 3 LAST\r\nx\r\n");
    let Effect::Store(submission) = f.store() else { unreachable!() };
    assert_eq!((&submission.tail[..], submission.content_size), (&b"x\r\n"[..], 10));
}

#[test]
fn a_store_that_was_not_polled_becomes_an_abandon_and_one_that_was_does_not() {
    let mut f = Fixture::default();
    f.input(TO_DATA);
    f.input(b".\r\n");
    f.session.handle_abort(&mut f.replies);
    assert_eq!(f.effects(), [Effect::Abandon, Effect::Close]);

    let mut f = Fixture::default();
    f.input(TO_DATA);
    f.input(b".\r\n");
    f.store();
    f.session.handle_abort(&mut f.replies);
    assert_eq!(f.effects(), [Effect::Close]);
    let replies_size = f.replies.len();
    f.session.handle_stored(Ok(ID), f.now, &mut f.replies);
    assert_eq!(f.replies.len(), replies_size);
}

#[test]
fn a_store_in_flight_outlives_every_deadline_and_the_end_of_input() {
    let mut f = Fixture::default();
    f.input(TO_DATA);
    f.input(b".\r\n");
    f.store();
    let before = f.replies.len();
    for hours in 1..10 {
        f.timeout_at(hours * 3600 * SECOND);
        assert!(f.session.deadline() > f.now + hours * 3600 * SECOND, "the driver would spin");
    }
    f.session.handle_drain(&mut f.replies);
    assert_eq!(f.replies.len(), before);
    f.session.handle_stored(Ok(ID), f.now, &mut f.replies);
    assert!(f.replies[before..].starts_with(b"250 2.0.0 Ok: queued as 000000111\r\n421 4.4.2 "));
    assert_eq!(f.effects(), [Effect::Close]);

    let mut f = Fixture::default();
    f.input(TO_DATA);
    f.input(b".\r\n");
    f.store();
    f.session.handle_end_of_input(&mut f.replies);
    f.session.handle_stored(Ok(ID), f.now, &mut f.replies);
    assert_eq!(f.last_reply(), "250 2.0.0 Ok: queued as 000000111");
    assert_eq!(f.effects(), [Effect::Close]);
}

#[test]
fn a_command_has_its_time_as_a_whole_however_it_trickles() {
    let mut f = Fixture::default();
    let start = f.now;
    assert_eq!(f.session.deadline(), start + 300 * SECOND);
    f.now = start + 200 * SECOND;
    f.input(b"NO");
    assert_eq!(f.session.deadline(), start + 300 * SECOND);
    f.input(b"OP\r\n");
    assert_eq!(f.session.deadline(), start + 500 * SECOND);
    f.session.handle_timeout(start + 499 * SECOND, &mut f.replies);
    assert!(!f.session.is_closed());
    f.session.handle_timeout(start + 500 * SECOND, &mut f.replies);
    assert!(f.last_reply().starts_with("421 4.4.2 "));
    assert_eq!(f.effects(), [Effect::Close]);
}

#[test]
fn a_session_has_its_time_whatever_it_does() {
    let mut f = Fixture::default();
    let start = f.now;
    f.now = start + 3500 * SECOND;
    f.input(b"NOOP\r\n");
    assert_eq!(f.session.deadline(), start + 3600 * SECOND);
}

#[test]
fn content_must_come_and_keep_its_rate() {
    let mut f = Fixture::default();
    f.input(TO_DATA);
    assert_eq!(f.session.deadline(), f.now + 30 * SECOND);
    // 500 octets a second: 50,000 pay for 100 s.
    f.input(&[b'x'; 50_000]);
    assert_eq!(f.session.deadline(), f.now + 100 * SECOND);
    f.timeout_at(99 * SECOND);
    assert!(!f.session.is_closed());
    f.timeout_at(100 * SECOND);
    assert_eq!(f.effects(), [Effect::Abandon, Effect::Close]);
}

#[test]
fn pieces_come_in_order_and_their_buffer_is_used_again() {
    let mut f = Fixture::new(SessionConfig { piece_size: 5000, ..SessionConfig::new("mx") });
    f.input(TO_DATA);
    let content = [&[b'x'; 12_000][..], b"\r\n"].concat();
    let sent = [&content[..], b".\r\n"].concat();
    let mut stored = Vec::new();
    let mut at = 0;
    while !matches!(f.session.effect, Some(Effect::Store(_))) {
        at += f.input(&sent[at..]);
        if let Some(Effect::Piece(piece)) = &f.session.effect {
            assert!((4990..=5000).contains(&piece.len()));
            assert_eq!(f.session.content_buffer_size(), 5000);
            let Some(Effect::Piece(piece)) = f.session.poll_effect() else { unreachable!() };
            stored.extend_from_slice(&piece);
            assert_eq!(f.session.content_buffer_size(), 0);
            assert_eq!(f.input(&sent[at..]), 0);
            f.session.handle_piece_taken(piece, f.now);
            assert_eq!(f.session.content_buffer_size(), 5000);
        }
    }
    let Effect::Store(submission) = f.store() else { unreachable!() };
    assert_eq!(submission.content_size, content.len() as u64);
    stored.extend_from_slice(&submission.tail);
    assert_eq!(stored, content);
}

#[test]
fn a_wait_for_our_storage_is_not_held_against_the_peer() {
    let mut f = Fixture::new(SessionConfig { piece_size: 10, ..SessionConfig::new("mx") });
    let start = f.now;
    f.input(TO_DATA);
    f.input(&[b'x'; 11]);
    assert_eq!(f.session.deadline(), start + 3600 * SECOND);
    let Some(Effect::Piece(piece)) = f.session.poll_effect() else { panic!("no piece") };
    f.session.handle_piece_taken(piece, start + 1000 * SECOND);
    assert_eq!(f.session.deadline(), start + 1030 * SECOND);
}

#[test]
fn octets_that_come_while_data_is_in_question_are_too_early() {
    let phases = Phases::of(Phase::Data);
    let config = SessionConfig { phases, ..SessionConfig::new("mx") };
    let mut f = Fixture::new(config.clone());
    f.input(TO_DATA);
    assert_eq!(f.session.poll_effect(), Some(Effect::Check(Phase::Data)));
    assert_eq!(f.input(b"x"), 0);
    f.session.handle_verdict(Ok(()), f.now, &mut f.replies);
    assert!(f.last_reply().starts_with("554 5.5.0 "));
    assert_eq!(f.effects(), [Effect::Close]);

    let mut f = Fixture::new(config);
    f.input(TO_DATA);
    f.session.poll_effect();
    f.session.handle_verdict(Err(REFUSED), f.now, &mut f.replies);
    assert_eq!(f.last_reply(), "554 5.7.1 No");
    f.input(b"RCPT TO:<b@e.org>\r\n");
    assert!(f.last_reply().starts_with("503 "), "a refused DATA ends its transaction");
}

#[test]
fn candidates_are_shown_at_their_phase_and_forgotten_when_refused() {
    use Phase::*;
    let phases = [Connect, Hello, Mail, Recipient, Data, Message]
        .into_iter()
        .fold(Phases::NONE, |all, phase| all | Phases::of(phase));
    let mut f = Fixture::new(SessionConfig { phases, ..SessionConfig::new("mx") });
    assert_eq!(f.replies, b"");
    let check = |f: &mut Fixture, input: &[u8], phase, verdict: Result<(), Refusal>, reply: &str| {
        assert_eq!(f.input(input), input.len());
        assert_eq!(f.session.poll_effect(), Some(Effect::Check(phase)));
        let seen = (
            f.session.hello().map(str::to_string),
            f.session.envelope().map(|e| e.reverse_path.to_string()),
            f.session.recipient().map(|r| r.to_string()),
        );
        f.session.handle_verdict(verdict, f.now, &mut f.replies);
        assert!(f.last_reply().starts_with(reply), "{}", f.last_reply());
        seen
    };
    let some = |text: &str| Some(text.to_string());
    assert_eq!(check(&mut f, b"", Connect, Ok(()), "220 mx ESMTP"), (None, None, None));
    assert_eq!(check(&mut f, b"EHLO bad\r\n", Hello, Err(REFUSED), "550 5.7.1 No").0, some("bad"));
    assert_eq!(f.session.hello(), None);
    assert_eq!(check(&mut f, b"EHLO c\r\n", Hello, Ok(()), "250 ").0, some("c"));
    assert_eq!(check(&mut f, b"MAIL FROM:<x@e>\r\n", Mail, Err(REFUSED), "550 5.7.1 No").1, some("x@e"));
    assert_eq!(f.session.envelope(), None);
    assert_eq!(check(&mut f, b"MAIL FROM:<a@e> SIZE=5\r\n", Mail, Ok(()), "250 ").1, some("a@e"));
    assert_eq!(f.session.declared_size(), Some(5));
    assert_eq!(check(&mut f, b"RCPT TO:<x@f>\r\n", Recipient, Err(REFUSED), "550 5.7.1 No").2, some("x@f"));
    f.input(b"DATA\r\n");
    assert_eq!(f.last_reply(), "554 5.5.1 No valid recipients");
    assert_eq!(check(&mut f, b"RCPT TO:<b@f>\r\n", Recipient, Ok(()), "250 ").2, some("b@f"));
    assert_eq!(f.session.envelope().unwrap().forward_paths.len(), 1);
    check(&mut f, b"DATA\r\n", Data, Ok(()), "354 ");
    check(&mut f, b"x\r\n.\r\n", Message, Err(REFUSED), "554 5.7.1 No");
    assert_eq!(f.effects(), [Effect::Abandon]);
    assert_eq!(f.session.envelope(), None);
}

#[test]
fn a_piece_lost_after_the_end_of_data_refuses_the_message_after_its_check() {
    let phases = Phases::of(Phase::Message);
    let mut f = Fixture::new(SessionConfig { phases, ..SessionConfig::new("mx") });
    f.input(TO_DATA);
    f.input(b"x\r\n.\r\n");
    f.session.handle_not_stored(NotStored::NoRoom, f.now);
    assert_eq!(f.session.poll_effect(), Some(Effect::Check(Phase::Message)));
    f.session.handle_verdict(Ok(()), f.now, &mut f.replies);
    assert!(f.last_reply().starts_with("452 4.3.1 "));
    assert_eq!(f.effects(), [Effect::Abandon]);
}

#[test]
fn a_refused_connection_is_told_so_and_closed() {
    let phases = Phases::of(Phase::Connect);
    let mut f = Fixture::new(SessionConfig { phases, ..SessionConfig::new("mx") });
    assert_eq!(f.session.poll_effect(), Some(Effect::Check(Phase::Connect)));
    f.session.handle_verdict(Err(REFUSED), f.now, &mut f.replies);
    assert_eq!(f.last_reply(), "554 5.7.1 No");
    assert_eq!(f.effects(), [Effect::Close]);
}

#[test]
fn draining_ends_an_idle_session_at_once_and_a_transaction_after_its_250() {
    let mut f = Fixture::default();
    f.input(b"EHLO c\r\n");
    f.session.handle_drain(&mut f.replies);
    assert_eq!(f.last_reply(), "421 4.3.2 Try again later");
    assert_eq!(f.effects(), [Effect::Close]);

    let mut f = Fixture::default();
    f.input(TO_DATA);
    f.session.handle_drain(&mut f.replies);
    f.input(b"x\r\n.\r\nMAIL FROM:<>\r\n");
    f.store();
    let before = f.replies.len();
    f.session.handle_stored(Ok(ID), f.now, &mut f.replies);
    assert!(f.replies[before..].starts_with(b"250 2.0.0 Ok: queued as 000000111\r\n421 4.3.2 "));
    assert_eq!(f.effects(), [Effect::Close]);

    let mut f = Fixture::default();
    f.input(b"EHLO c\r\nMAIL FROM:<>\r\n");
    f.session.handle_drain(&mut f.replies);
    assert!(!f.session.is_closed());
    f.input(b"RSET\r\nNOOP\r\n");
    assert_eq!(f.last_reply(), "421 4.3.2 Try again later");
    assert_eq!(f.effects(), [Effect::Close]);
}

#[test]
fn a_busy_store_ends_the_session_and_other_failures_do_not() {
    for (why, reply, is_closed) in [
        (NotStored::NoRoom, "452 4.3.1 ", false),
        (NotStored::Failed, "451 4.3.0 ", false),
        (NotStored::TooBusy, "421 4.3.2 Try again later", true),
    ] {
        let mut f = Fixture::default();
        f.input(TO_DATA);
        f.input(b".\r\n");
        f.store();
        f.session.handle_stored(Err(why), f.now, &mut f.replies);
        assert!(f.last_reply().starts_with(reply), "{}", f.last_reply());
        assert_eq!(f.session.is_closed(), is_closed);
    }
}
