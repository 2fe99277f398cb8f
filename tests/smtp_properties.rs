//! What holds for every input: properties of the session and its parts over arbitrary octets.

use std::sync::Arc;
use std::time::Instant;

use incoming::mail::{Capabilities, MessageId, Tls, TlsVersion};
use incoming::smtp::{Effect, Peer, Session, SessionConfig, TlsMode, fuzzing};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;

const TO_DATA: &[u8] = b"EHLO c\r\nMAIL FROM:<a@e.org>\r\nRCPT TO:<b@e.org>\r\nDATA\r\n";

const TO_RECIPIENT: &[u8] = b"EHLO c\r\nMAIL FROM:<a@e.org>\r\nRCPT TO:<b@e.org>\r\n";

/// What a session makes of content and of what follows it: the messages stored, and the replies after the
/// 354.
fn sent(wire: &[u8], cuts: &[usize], piece_size: usize) -> (Vec<Vec<u8>>, String) {
    let config = SessionConfig { piece_size, ..SessionConfig::new("mx") };
    played(config, TO_DATA, wire, cuts)
}

/// What a session makes of `wire`, cut at `cuts`, once it has answered `opening`.
fn played(config: SessionConfig, opening: &[u8], wire: &[u8], cuts: &[usize]) -> (Vec<Vec<u8>>, String) {
    let now = Instant::now();
    let mut replies = Vec::new();
    let peer = Peer::stranger("192.0.2.1:25".parse().unwrap());
    let mut session = Session::new(Arc::new(config), peer, now, &mut replies);
    session.handle_input(opening, now, &mut replies);
    assert!(!session.is_closed());
    replies.clear();
    let mut cuts: Vec<_> = cuts.iter().map(|cut| cut % (wire.len() + 1)).collect();
    cuts.sort_unstable();
    cuts.push(wire.len());
    let (mut at, mut content, mut messages) = (0, Vec::new(), Vec::new());
    for to in cuts {
        while at < to && !session.is_closed() {
            at += session.handle_input(&wire[at..to], now, &mut replies);
            while let Some(effect) = session.poll_effect() {
                match effect {
                    Effect::Piece(piece) => {
                        content.extend_from_slice(&piece);
                        session.handle_piece_taken(piece, now);
                    }
                    Effect::Store(submission) => {
                        content.extend_from_slice(&submission.tail);
                        messages.push(std::mem::take(&mut content));
                        session.handle_stored(Ok(MessageId { log: 1, sequence: 1 }), now, &mut replies);
                    }
                    Effect::Abandon => content.clear(),
                    Effect::Close | Effect::Check(_) => {}
                    Effect::StartTls | Effect::Authenticate(_) | Effect::Pause(_) => {
                        unreachable!("neither is configured")
                    }
                }
            }
        }
    }
    (messages, String::from_utf8(replies).unwrap())
}

/// Lines that look like what smuggling is made of, and others.
fn line() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        Just(b".".to_vec()),
        Just(b"..".to_vec()),
        Just(b"QUIT".to_vec()),
        Just(b"MAIL FROM:<evil@e.org>".to_vec()),
        Just(Vec::new()),
        vec(any::<u8>().prop_filter("no CR, LF, NUL", |c| !b"\r\n\0".contains(c)), 0..80),
    ]
}

fn stuffed(lines: &[Vec<u8>]) -> Vec<u8> {
    let mut wire = Vec::new();
    for line in lines {
        if line.starts_with(b".") {
            wire.push(b'.');
        }
        wire.extend_from_slice(line);
        wire.extend_from_slice(b"\r\n");
    }
    wire.extend_from_slice(b".\r\n");
    wire
}

/// Octets with more of those that mean something than chance would have.
fn octets() -> impl Strategy<Value = u8> {
    prop_oneof![3 => any::<u8>(), 1 => Just(b'\r'), 1 => Just(b'\n'), 1 => Just(b'.'), 1 => Just(b' ')]
}

/// `content` in chunks of the given sizes, the rest of it in the last.
fn in_chunks(content: &[u8], sizes: &[usize]) -> Vec<u8> {
    let mut wire = Vec::new();
    let mut rest = content;
    for size in sizes {
        let (chunk, more) = rest.split_at((*size).min(rest.len()));
        rest = more;
        wire.extend_from_slice(format!("BDAT {}\r\n", chunk.len()).as_bytes());
        wire.extend_from_slice(chunk);
    }
    wire.extend_from_slice(format!("BDAT {} LAST\r\n", rest.len()).as_bytes());
    wire.extend_from_slice(rest);
    wire
}

/// Input for a session: commands in any order, some of them spoilt.
fn instructions() -> impl Strategy<Value = Vec<u8>> {
    let command = select(vec![
        &b"EHLO c\r\n"[..],
        b"MAIL FROM:<a@e>\r\n",
        b"RCPT TO:<b@e>\r\n",
        b"DATA\r\n",
        b"x\r\n.\r\n",
        b"x\n.\n",
        b".\r\n",
        b"RSET\r\n",
        b"Received: x\r\n",
        b"A long line of content, to fill pieces.\r\n",
        b"LHLO c\r\n",
        b"STARTTLS\r\n",
        b"AUTH PLAIN AGIAcA==\r\n",
        b"AUTH LOGIN\r\n",
        b"Yg==\r\n",
        b"BDAT 3\r\na\r\n",
        b"BDAT 6 LAST\r\nQUIT\r\n",
        b"BDAT 0\r\n",
        b"XCLIENT ADDR=192.0.2.7 LOGIN=b\r\n",
        b"MAIL FROM:<a@e> BODY=BINARYMIME RET=HDRS\r\n",
        b"RCPT TO:<b@e> NOTIFY=NEVER\r\n",
    ]);
    let step = prop_oneof![
        8 => command.prop_map(|c| [&[c.len() as u8], c].concat()),
        1 => vec(octets(), 0..40),
        1 => Just(vec![0xfb]),
        1 => (0xfbu8..=0xff).prop_map(|i| vec![i]),
    ];
    (any::<[u8; 2]>(), vec(step, 0..40)).prop_map(|(choices, steps)| {
        let mut data = choices.to_vec();
        data.extend(steps.concat());
        data
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn content_comes_back_as_it_was_whatever_the_split(
        lines in vec(line(), 0..40),
        cuts in vec(any::<usize>(), 0..10),
        piece_size in 1usize..300,
    ) {
        let wire = [&stuffed(&lines)[..], b"NOOP\r\n"].concat();
        let original: Vec<u8> = lines.iter().flat_map(|line| [&line[..], b"\r\n"].concat()).collect();
        let (messages, replies) = sent(&wire, &cuts, piece_size);
        prop_assert_eq!(messages, vec![original]);
        prop_assert_eq!(replies, "250 2.0.0 Ok: queued as 00000011\r\n250 2.0.0 Ok\r\n");
    }

    #[test]
    fn nothing_in_content_is_executed(
        mut content in vec(octets(), 0..200),
        cuts in vec(any::<usize>(), 0..10),
    ) {
        // Take out the one thing that ends it.
        while let Some(at) = [&b"\r\n"[..], &content].concat().windows(5).position(|w| w == b"\r\n.\r\n") {
            content[at] = b'x';
        }
        // One reply, to the end-of-data, and the next command's: none for anything before.
        let wire = [&content[..], b"x\r\n.\r\nQUIT\r\n"].concat();
        let (messages, replies) = sent(&wire, &cuts, 64);
        prop_assert!(messages.len() <= 1);
        prop_assert_eq!(replies.lines().count(), 2, "{}", replies);
        prop_assert!(replies.ends_with("221 2.0.0 mx Bye\r\n"));
    }

    #[test]
    fn content_in_chunks_comes_back_as_it_was(
        lines in vec(line(), 0..40),
        sizes in vec(0usize..300, 0..10),
        cuts in vec(any::<usize>(), 0..10),
        piece_size in 1usize..300,
    ) {
        let original: Vec<u8> = lines.iter().flat_map(|line| [&line[..], b"\r\n"].concat()).collect();
        let wire = [&in_chunks(&original, &sizes)[..], b"NOOP\r\n"].concat();
        let config = SessionConfig { piece_size, ..SessionConfig::new("mx") };
        let (messages, replies) = played(config, TO_RECIPIENT, &wire, &cuts);
        prop_assert_eq!(messages, vec![original]);
        let chunks = "250 2.0.0 Chunk received\r\n".repeat(sizes.len());
        prop_assert_eq!(replies, format!("{chunks}250 2.0.0 Ok: queued as 00000011\r\n250 2.0.0 Ok\r\n"));
    }

    #[test]
    fn binary_content_in_chunks_is_any_octets(
        original in vec(octets(), 0..500),
        sizes in vec(0usize..100, 0..10),
        cuts in vec(any::<usize>(), 0..10),
        piece_size in 1usize..300,
    ) {
        let wire = [&in_chunks(&original, &sizes)[..], b"QUIT\r\n"].concat();
        let config = SessionConfig { piece_size, capabilities: Capabilities::ALL, ..SessionConfig::new("mx") };
        let opening = b"EHLO c\r\nMAIL FROM:<a@e.org> BODY=BINARYMIME\r\nRCPT TO:<b@e.org>\r\n";
        let (messages, replies) = played(config, opening, &wire, &cuts);
        prop_assert_eq!(messages, vec![original]);
        prop_assert!(replies.ends_with("queued as 00000011\r\n221 2.0.0 mx Bye\r\n"), "{}", replies);
    }

    #[test]
    fn nothing_in_chunks_is_executed(
        content in vec(octets(), 0..200),
        sizes in vec(0usize..60, 0..6),
        cuts in vec(any::<usize>(), 0..10),
        has_recipient in any::<bool>(),
    ) {
        // Accepted or refused, in sequence or out of it: one reply for each chunk, and the next command's.
        let wire = [&in_chunks(&content, &sizes)[..], b"QUIT\r\n"].concat();
        let opening = if has_recipient { TO_RECIPIENT } else { b"EHLO c\r\n" };
        let (messages, replies) = played(SessionConfig::new("mx"), opening, &wire, &cuts);
        prop_assert!(messages.len() <= usize::from(has_recipient));
        prop_assert_eq!(replies.lines().count(), sizes.len() + 2, "{}", replies);
        prop_assert!(replies.ends_with("221 2.0.0 mx Bye\r\n"));
    }

    #[test]
    fn chunks_and_data_do_not_mix(
        first in vec(0usize..60, 1..4),
        cuts in vec(any::<usize>(), 0..10),
    ) {
        let chunks: Vec<u8> = first
            .iter()
            .flat_map(|size| [format!("BDAT {size}\r\n").as_bytes(), &vec![b'x'; *size][..]].concat())
            .collect();
        let (messages, replies) = played(SessionConfig::new("mx"), TO_RECIPIENT, &[&chunks[..], b"DATA\r\n"].concat(), &cuts);
        prop_assert_eq!(messages.len(), 0);
        prop_assert!(replies.ends_with("503 5.5.1 Bad sequence of commands\r\n"), "{}", replies);
    }

    #[test]
    fn nothing_in_clear_behind_starttls_is_read(
        injected in prop_oneof![
            vec(octets(), 0..100),
            Just(b"EHLO evil\r\nMAIL FROM:<a@e.org>\r\nRCPT TO:<b@e.org>\r\n".to_vec()),
            Just(b"BDAT 100 LAST\r\n".to_vec()),
        ],
        cut in 0usize..18,
    ) {
        let now = Instant::now();
        let config = SessionConfig { tls: TlsMode::Optional, ..SessionConfig::new("mx") };
        let peer = Peer::stranger("192.0.2.1:25".parse().unwrap());
        let mut replies = Vec::new();
        let mut session = Session::new(Arc::new(config), peer, now, &mut replies);
        let wire = [b"EHLO c\r\nSTARTTLS\r\n", &injected[..]].concat();
        prop_assert_eq!(session.handle_input(&wire[..cut], now, &mut replies), cut);
        // What came with STARTTLS is taken, and what comes while hands are shaken too.
        prop_assert_eq!(session.handle_input(&wire[cut..], now, &mut replies), wire.len() - cut);
        prop_assert_eq!(session.poll_effect(), Some(Effect::StartTls));
        session.handle_tls_ready(&mut replies);
        prop_assert_eq!(session.handle_input(&injected, now, &mut replies), injected.len());
        prop_assert!(replies.ends_with(b"\r\n220 2.0.0 Ready to start TLS\r\n"));
        replies.clear();
        let cipher = "TLS13_AES_256_GCM_SHA384".into();
        let tls = Tls { version: TlsVersion::Tls13, cipher, server_name: None, client: None };
        session.handle_secured(tls, now, &mut replies);
        prop_assert!(replies.is_empty() && session.hello().is_none() && session.poll_effect().is_none());
        session.handle_input(b"NOOP\r\n", now, &mut replies);
        prop_assert_eq!(&replies[..], b"250 2.0.0 Ok\r\n");
    }

    #[test]
    fn chunks_agree_with_their_model(data in vec(octets(), 0..300)) {
        fuzzing::chunks(&data);
    }

    #[test]
    fn commands_never_panic(line in vec(octets(), 0..200)) {
        fuzzing::command(&line);
        fuzzing::command(&[b"MAIL FROM:<", &line[..]].concat());
        fuzzing::command(&[b"RCPT TO:<b@e.org> ", &line[..]].concat());
    }

    #[test]
    fn contents_decode_alike_at_every_split(stream in vec(octets(), 0..200)) {
        fuzzing::content(&stream);
    }

    #[test]
    fn sessions_keep_their_contract_whatever_comes(data in instructions()) {
        fuzzing::session(&data);
    }
}
