//! Connections to servers that answer by a script, well or badly.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::scripted::{Script, Scripted};
use super::*;
use crate::mail::{Body, Envelope, ForwardPath, ReversePath};

const LONG: Duration = Duration::from_secs(60);
const SOON: Duration = Duration::from_millis(300);

fn run<T>(test: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async { tokio::time::timeout(LONG, test).await.expect("it comes to an end") })
}

/// Content in these pieces, with an error behind them if there is one.
struct Pieces(VecDeque<Bytes>, Option<io::ErrorKind>);

impl Pieces {
    fn of(octets: &[u8], size: usize) -> Self {
        Pieces(octets.chunks(size).map(Bytes::copy_from_slice).collect(), None)
    }
}

impl Content for Pieces {
    async fn next(&mut self) -> Option<io::Result<Bytes>> {
        match self.0.pop_front() {
            Some(piece) => Some(Ok(piece)),
            None => self.1.take().map(|kind| Err(kind.into())),
        }
    }
}

fn envelope(recipients: usize) -> Envelope {
    let path = |n| ForwardPath::parse(&format!("r{n}@x.example"), false).unwrap();
    Envelope::new(ReversePath::Null, (0..recipients).map(path).collect())
}

/// Sends `content` to all of the envelope.
async fn send(
    connection: &mut Connection,
    envelope: &Envelope,
    size: usize,
    mut content: Pieces,
    in_chunks: bool,
) -> (Result<(), String>, Vec<Option<Fate>>) {
    let recipients: Vec<u32> = (0..envelope.forward_paths.len() as u32).collect();
    let message = Message {
        envelope,
        recipients: &recipients,
        size: size as u64,
        header: HeaderText::Unknown,
        origin: None,
        tells_success: true,
        in_chunks,
    };
    let (protocol, needs_reset) = (connection.protocol(), connection.needs_reset());
    let offers = connection.offers().clone();
    let mut transaction = Transaction::new(message, protocol, &offers, needs_reset).expect("no objection");
    let sent =
        connection.send(&mut transaction, &mut content).await.map_err(|interrupted| match interrupted {
            Interrupted::Connection(failure) => failure.to_string(),
            Interrupted::Content(error) => format!("content: {error}"),
            Interrupted::Unfit(objection) => objection.to_string(),
        });
    (sent, transaction.into_fates())
}

fn codes(fates: &[Option<Fate>]) -> Vec<u16> {
    let code = |fate: &Option<Fate>| match fate {
        Some(Fate::Taken(reply) | Fate::Refused(reply, _) | Fate::Postponed(reply)) => reply.code,
        Some(Fate::Unfit(_)) => 1,
        None => 0,
    };
    fates.iter().map(code).collect()
}

#[test]
fn content_arrives_octet_for_octet_however_it_is_sent() {
    let text = b".first\r\nsecond\r\n..third\r\n.\r\nlast without an end".repeat(3000);
    for offers in [&["PIPELINING", "CHUNKING"][..], &["CHUNKING"], &[]] {
        for protocol in [Protocol::Smtp, Protocol::Lmtp] {
            for (in_chunks, size) in [(false, 7000), (true, 7000), (false, 1 << 16), (true, 1 << 16)] {
                run(async {
                    let server = Scripted::start(Script::of(protocol, offers)).await;
                    let mut connection =
                        Connection::open(&server.target(protocol, Timeouts::all(LONG))).await.unwrap();
                    let envelope = Envelope { body: Body::EightBit, ..envelope(3) };
                    for _ in 0..2 {
                        let content = Pieces::of(&text, size);
                        let (sent, fates) =
                            send(&mut connection, &envelope, text.len(), content, in_chunks).await;
                        assert_eq!((sent, codes(&fates)), (Ok(()), vec![250, 250, 250]));
                        assert!(connection.is_fit());
                    }
                    let expected = if in_chunks && !offers.is_empty() {
                        text.clone()
                    } else {
                        [&text[..], b"\r\n"].concat()
                    };
                    assert!(server.heard().contents.iter().all(|heard| *heard == expected));
                    assert_eq!(server.heard().contents.len(), 2);
                });
            }
        }
    }
}

#[test]
fn content_that_is_not_as_promised_never_ends() {
    let octets = b"x\r\n".repeat(100);
    let broken = |kind| Pieces(Pieces::of(&octets, 50).0, Some(kind));
    let table: [(usize, Pieces, &str); 3] = [
        (299, Pieces::of(&octets, 50), "content: the content is longer than it should be"),
        (301, Pieces::of(&octets, 50), "content: the content is shorter than it should be"),
        (300, broken(io::ErrorKind::InvalidData), "content: invalid data"),
    ];
    for (size, content, expected) in table {
        for in_chunks in [false, true] {
            let content = Pieces(content.0.clone(), content.1);
            run(async {
                let server = Scripted::start(Script::of(Protocol::Smtp, &["PIPELINING", "CHUNKING"])).await;
                let target = server.target(Protocol::Smtp, Timeouts::all(LONG));
                let mut connection = Connection::open(&target).await.unwrap();
                let (sent, fates) = send(&mut connection, &envelope(1), size, content, in_chunks).await;
                assert_eq!((sent, codes(&fates)), (Err(expected.into()), vec![0]));
                assert!(!connection.is_fit(), "what is said now would be content");
                connection.quit();
                // The server has seen the end of the connection when it takes another one's greeting.
                Connection::open(&target).await.unwrap();
                let heard = server.heard();
                assert!(heard.contents.is_empty() && !heard.commands.iter().any(|line| line == "QUIT"));
            });
        }
    }
}

/// What comes of a message with two recipients, and the fates' codes.
fn fare(script: Script, timeouts: Timeouts) -> (String, Vec<u16>) {
    run(async {
        let protocol = script.protocol;
        let server = Scripted::start(script).await;
        let target = server.target(protocol, timeouts);
        let mut connection = match Connection::open(&target).await {
            Ok(connection) => connection,
            Err(failure) => return (failure.to_string(), Vec::new()),
        };
        let octets = b"Subject: x\r\n\r\nhello\r\n".repeat(200_000);
        let content = Pieces::of(&octets, 1 << 16);
        let (sent, fates) = send(&mut connection, &envelope(2), octets.len(), content, false).await;
        (sent.err().unwrap_or_default(), codes(&fates))
    })
}

#[test]
fn a_server_that_is_hostile_or_broken_holds_nobody_for_longer_than_a_step_may_take() {
    let step = |change: fn(&mut Timeouts)| {
        let mut timeouts = Timeouts::all(LONG);
        change(&mut timeouts);
        timeouts
    };
    let command = step(|t| t.command = SOON);
    type Case<'a> = (&'static str, &'static str, Timeouts, &'a [&'a str], &'a [u16]);
    let table: [Case; 17] = [
        ("greeting", "hang", step(|t| t.greeting = SOON), &["the greeting: no answer in time"], &[]),
        ("greeting", "never end", step(|_| ()), &["the greeting: too many lines in one reply"], &[]),
        ("greeting", "drip", step(|t| t.greeting = SOON), &["the greeting: no answer in time"], &[]),
        ("EHLO", "drip", command, &["the introduction: no answer in time"], &[]),
        ("EHLO", "close", command, &["the introduction: the connection has ended"], &[]),
        ("MAIL", "hang", command, &["MAIL: no answer in time"], &[0, 0]),
        ("MAIL", "close", command, &["MAIL: the connection has ended"], &[0, 0]),
        ("RCPT", "drip", command, &["RCPT: no answer in time"], &[0, 0]),
        ("RCPT", "never end", step(|_| ()), &["RCPT: too many lines in one reply"], &[0, 0]),
        ("RCPT", "421 too busy", command, &["RCPT: 421 too busy"], &[0, 0]),
        ("RCPT", "raw 250 a\r\n250 b\r\n250 c\r\n", command, &["DATA: a reply that does not fit"], &[0, 0]),
        (
            "DATA",
            "raw 354 go\r\n250 what\r\n",
            command,
            &["the content: octets that were not asked for"],
            &[0, 0],
        ),
        ("DATA", "raw 354 go\r\n452 no room\r\n", command, &[""], &[452, 452]),
        (".", "hang", step(|t| t.end = SOON), &["the end of the content: no answer in time"], &[0, 0]),
        (".", "drip", step(|t| t.end = SOON), &["the end of the content: no answer in time"], &[0, 0]),
        (".", "close", command, &["the end of the content: the connection has ended"], &[0, 0]),
        (".", "raw \0\0\0\r\n", command, &["the end of the content: a control octet in the reply"], &[0, 0]),
    ];
    for (verb, answer, timeouts, expected, fates) in table {
        let script = Script::of(Protocol::Smtp, &["PIPELINING"]).saying(verb, &[answer]);
        let (trouble, found) = fare(script, timeouts);
        // Closed with octets unread, a socket is reset.
        let trouble = trouble.replace("Connection reset by peer (os error 104)", "the connection has ended");
        assert!(expected.contains(&trouble.as_str()), "{verb} {answer}: {trouble}");
        assert_eq!(found, fates, "{verb} {answer}");
    }
}

#[test]
fn a_server_that_takes_no_content_is_left() {
    run(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = Endpoint::Tcp("127.0.0.1".into(), listener.local_addr().unwrap().port());
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            stream.write_all(b"220 x\r\n").await.unwrap();
            let mut room = [0; 1000];
            let answers: [&[u8]; 2] = [b"250-x\r\n250 PIPELINING\r\n", b"250 Ok\r\n250 Ok\r\n354 go\r\n"];
            for answer in answers {
                assert!(stream.read(&mut room).await.unwrap() > 0);
                stream.write_all(answer).await.unwrap();
            }
            std::future::pending::<()>().await;
        });
        let introduction = Introduction { protocol: Protocol::Smtp, name: "mx.test".into() };
        let timeouts = Timeouts { content: SOON, ..Timeouts::all(LONG) };
        let mut connection =
            Connection::open(&Target::in_clear(endpoint, introduction, timeouts)).await.unwrap();
        let octets = b"x\r\n".repeat(10_000_000);
        let content = Pieces::of(&octets, 1 << 16);
        let (sent, _) = send(&mut connection, &envelope(1), octets.len(), content, false).await;
        assert_eq!(sent, Err("the content: no answer in time".into()));
    });
}

#[test]
fn who_is_in_a_hurry_does_not_wait_as_long_as_a_step_may_take() {
    run(async {
        let server = Scripted::start(Script::of(Protocol::Smtp, &[]).saying("RCPT", &["hang"])).await;
        let target = server.target(Protocol::Smtp, Timeouts::all(2 * LONG));
        let mut connection = Connection::open(&target).await.unwrap();
        connection.hurry(std::time::Instant::now() + SOON);
        let content = Pieces::of(b"x\r\n", 3);
        let (sent, fates) = send(&mut connection, &envelope(1), 3, content, false).await;
        let sent = sent.unwrap_err();
        assert!(sent.ends_with("no answer in time"), "{sent}");
        assert_eq!(codes(&fates), [0]);
    });
}

/// One that writes each reply before it reads the next command is stuck when nobody reads them.
#[test]
fn neither_side_waits_for_the_other_with_many_recipients() {
    const COUNT: usize = 5000;
    run(async {
        let long: &'static str = format!("250 {}", "y".repeat(900)).leak();
        let script = Script::of(Protocol::Lmtp, &["PIPELINING"]).saying("RCPT", &[long]);
        let server = Scripted::start(script).await;
        let mut connection =
            Connection::open(&server.target(Protocol::Lmtp, Timeouts::all(LONG))).await.unwrap();
        let octets = b"x\r\n";
        let (sent, fates) = send(&mut connection, &envelope(COUNT), 3, Pieces::of(octets, 3), false).await;
        assert_eq!(sent, Ok(()));
        assert_eq!(codes(&fates), [250; COUNT]);
    });
}

/// A certificate for localhost, its authority, and another one.
fn certificate() -> (Arc<ServerConfig>, Trust, Trust) {
    let authority = || {
        let mut params = rcgen::CertificateParams::default();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        rcgen::CertifiedIssuer::self_signed(params, rcgen::KeyPair::generate().unwrap()).unwrap()
    };
    let (ours, other) = (authority(), authority());
    let key = rcgen::KeyPair::generate().unwrap();
    let params = rcgen::CertificateParams::new(vec!["store.test".into()]).unwrap();
    let issued = params.signed_by(&key, &ours).unwrap();
    let chain = vec![CertificateDer::from_pem_slice(issued.pem().as_bytes()).unwrap()];
    let key = PrivateKeyDer::from_pem_slice(key.serialize_pem().as_bytes()).unwrap();
    let config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .unwrap();
    (Arc::new(config), Trust::These(ours.pem().into_bytes()), Trust::These(other.pem().into_bytes()))
}

/// Opens a connection, and says what came of it and what the server heard.
fn open(script: Script, mode: TlsUse, trust: &Trust, name: &str, login: Option<bool>) -> (String, String) {
    run(async {
        let server = Scripted::start(script).await;
        let login = login.map(|in_clear| {
            Arc::new(Login { user: "tim".into(), password: String::from("secret").into(), in_clear })
        });
        let target = Target {
            protection: Protection::new(mode, trust).unwrap(),
            name: name.into(),
            login,
            ..server.target(Protocol::Smtp, Timeouts::all(LONG))
        };
        let opened = match Connection::open(&target).await {
            Ok(connection) => if connection.is_tls() { "protected" } else { "in clear" }.to_string(),
            Err(failure) => failure.to_string(),
        };
        (opened, server.commands())
    })
}

#[test]
fn tls_is_what_was_asked_for() {
    use TlsUse::{Implicit, Off, Opportunistic, Required};
    let (config, ours, other) = certificate();
    let with =
        |offers: &[&'static str]| Script { tls: Some(config.clone()), ..Script::of(Protocol::Smtp, offers) };
    let implicit = || Script { is_implicit: true, ..with(&[]) };
    let starttls = || with(&["PIPELINING", "STARTTLS"]);
    let injected = || starttls().saying("STARTTLS", &["raw 220 go\r\n250 injected\r\n"]);
    let (up, clear) = ("EHLO mx.test | STARTTLS | TLS EHLO mx.test", "EHLO mx.test");
    let again = "EHLO mx.test | STARTTLS | EHLO mx.test";
    // A server that judges the handshake when the client has gone on.
    let regrets = || starttls().saying("EHLO", &["agree", "close", "agree"]);
    let up_and_again = "EHLO mx.test | STARTTLS | TLS EHLO mx.test | EHLO mx.test";
    let table: [(Script, TlsUse, &Trust, &str, &str, &str); 17] = [
        (regrets(), Opportunistic, &ours, "store.test", "in clear", up_and_again),
        (regrets(), Required, &ours, "store.test", "TLS: ", up),
        (starttls(), Off, &ours, "store.test", "in clear", clear),
        (starttls(), Required, &ours, "store.test", "protected", up),
        (
            starttls(),
            Required,
            &other,
            "store.test",
            "TLS: invalid peer certificate",
            "EHLO mx.test | STARTTLS",
        ),
        (
            starttls(),
            Required,
            &ours,
            "other.test",
            "TLS: invalid peer certificate",
            "EHLO mx.test | STARTTLS",
        ),
        (with(&[]), Required, &ours, "store.test", "TLS: STARTTLS is not offered", clear),
        (
            starttls().saying("STARTTLS", &["454 no"]),
            Required,
            &ours,
            "store.test",
            "TLS: 454 no",
            "EHLO mx.test | STARTTLS",
        ),
        (
            injected(),
            Required,
            &ours,
            "store.test",
            "TLS: octets that were not asked for",
            "EHLO mx.test | STARTTLS",
        ),
        (starttls(), Opportunistic, &other, "other.test", "protected", up),
        (with(&[]), Opportunistic, &ours, "store.test", "in clear", clear),
        (
            starttls().saying("STARTTLS", &["454 no"]),
            Opportunistic,
            &ours,
            "store.test",
            "in clear",
            "EHLO mx.test | STARTTLS",
        ),
        (
            starttls().saying("STARTTLS", &["raw 220 go\r\nno handshake\r\n"]),
            Opportunistic,
            &ours,
            "x",
            "in clear",
            again,
        ),
        (starttls().saying("STARTTLS", &["close"]), Opportunistic, &ours, "x", "in clear", again),
        (implicit(), Implicit, &ours, "store.test", "protected", "TLS EHLO mx.test"),
        (implicit(), Implicit, &other, "store.test", "TLS: invalid peer certificate", ""),
        (with(&["STARTTLS"]).saying("greeting", &["220 clear"]), Implicit, &ours, "store.test", "TLS: ", ""),
    ];
    for (n, (script, mode, trust, name, expected, heard)) in table.into_iter().enumerate() {
        let (opened, commands) = open(script, mode, trust, name, None);
        assert!(opened.starts_with(expected), "{n}: {mode:?} {name}: {opened}");
        assert_eq!(commands, heard, "{n}: {mode:?} {name}");
    }
}

#[test]
fn passwords_are_said_to_those_who_should_hear_them() {
    let (config, ours, _) = certificate();
    let script = |offers: &[&'static str], answer| {
        Script { tls: Some(config.clone()), ..Script::of(Protocol::Smtp, offers) }.saying("AUTH", &[answer])
    };
    let (plain, none) = (["STARTTLS", "AUTH PLAIN LOGIN"], ["STARTTLS"]);
    let (required, off) = (TlsUse::Required, TlsUse::Off);
    let refused = "AUTH: there is no TLS, and the password is not for everybody";
    let words = "AUTH PLAIN AHRpbQBzZWNyZXQ=";
    let table = [
        (script(&plain, "235 welcome"), required, false, "protected", true),
        (script(&plain, "235 welcome"), off, false, refused, false),
        (script(&plain, "235 welcome"), off, true, "in clear", true),
        (script(&none, "235 welcome"), required, false, "AUTH: neither PLAIN nor LOGIN is offered", false),
        (script(&plain, "535 5.7.8 no"), required, false, "AUTH: 535 5.7.8 no", true),
        (script(&plain, "334 what"), required, false, "AUTH: 334 what", true),
    ];
    for (script, mode, in_clear, expected, is_said) in table {
        let (opened, commands) = open(script, mode, &ours, "store.test", Some(in_clear));
        assert_eq!(opened, expected);
        assert_eq!(commands.contains(words), is_said, "{commands}");
    }
    let login = script(&["STARTTLS", "AUTH LOGIN"], "334 VXNlcm5hbWU6")
        .saying("dGlt", &["334 UGFzc3dvcmQ6"])
        .saying("c2VjcmV0", &["235 welcome"]);
    let (opened, commands) = open(login, required, &ours, "store.test", Some(false));
    assert_eq!(opened, "protected");
    assert!(commands.ends_with("TLS AUTH LOGIN | TLS dGlt | TLS c2VjcmV0"), "{commands}");
}

const BOUNDS: Bounds = Bounds { connections_max: 100, idle_max: 2, idle_timeout: LONG, uses_max: 3 };

fn pool(server: &Scripted, bounds: Bounds) -> Pool {
    Pool::new(server.target(Protocol::Smtp, Timeouts::all(LONG)), bounds)
}

#[test]
fn connections_are_used_again_and_not_too_often() {
    run(async {
        let server = Scripted::start(Script::of(Protocol::Smtp, &[])).await;
        let pool = pool(&server, BOUNDS);
        for n in 0..7 {
            let leased = pool.take().await.unwrap();
            assert_eq!(leased.is_used(), n % 3 > 0);
            pool.give_back(leased);
        }
        assert_eq!(server.heard().connections, 3);
        let four = [pool.take().await, pool.take().await, pool.take().await, pool.take().await];
        four.into_iter().for_each(|leased| pool.give_back(leased.unwrap()));
        let again = [pool.take().await.unwrap(), pool.take().await.unwrap(), pool.take().await.unwrap()];
        assert_eq!(again.map(|leased| leased.is_used()), [true, true, false], "two stay idle");
    });
}

#[test]
fn a_connection_whose_server_has_spoken_or_gone_is_not_used_again() {
    for deed in ["speaks", "goes"] {
        run(async {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let endpoint = Endpoint::Tcp("127.0.0.1".into(), listener.local_addr().unwrap().port());
            let (told, mut done) = tokio::sync::mpsc::channel(1);
            let (go, mut gone) = tokio::sync::mpsc::channel::<()>(1);
            tokio::spawn(async move {
                loop {
                    let (mut stream, _) = listener.accept().await.unwrap();
                    stream.write_all(b"220 x\r\n").await.unwrap();
                    assert!(stream.read(&mut [0; 100]).await.unwrap() > 0);
                    stream.write_all(b"250 x\r\n").await.unwrap();
                    gone.recv().await;
                    if deed == "speaks" {
                        stream.write_all(b"250 what was not asked for\r\n").await.unwrap();
                    }
                    if deed == "goes" {
                        drop(stream);
                    } else {
                        std::mem::forget(stream);
                    }
                    told.send(()).await.unwrap();
                }
            });
            let introduction = Introduction { protocol: Protocol::Smtp, name: "mx.test".into() };
            let bounds = Bounds { uses_max: u32::MAX, ..BOUNDS };
            let pool = Pool::new(Target::in_clear(endpoint, introduction, Timeouts::all(LONG)), bounds);
            let first = pool.take().await.unwrap();
            pool.give_back(first);
            let same = pool.take().await.unwrap();
            assert!(same.is_used(), "while nothing happens it is good");
            pool.give_back(same);
            go.send(()).await.unwrap();
            done.recv().await.unwrap();
            // The octets may still be on their way; without an end this ends by its time.
            while let Some(leased) = Some(pool.take().await.unwrap()).filter(Leased::is_used) {
                pool.give_back(leased);
                tokio::task::yield_now().await;
            }
        });
    }
}

#[test]
fn what_was_idle_too_long_is_closed_by_itself() {
    run(async {
        let server = Scripted::start(Script::of(Protocol::Smtp, &[])).await;
        let pool = pool(&server, Bounds { idle_timeout: Duration::from_millis(10), ..BOUNDS });
        let leased = pool.take().await.unwrap();
        pool.give_back(leased);
        while !server.commands().ends_with("QUIT") {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    });
}

#[test]
fn who_needs_one_more_connection_than_there_may_be_waits() {
    run(async {
        let server = Scripted::start(Script::of(Protocol::Smtp, &[])).await;
        let pool = pool(&server, Bounds { connections_max: 1, ..BOUNDS });
        let first = pool.take().await.unwrap();
        let waiting = tokio::spawn({
            let pool = pool.clone();
            async move { pool.take().await.unwrap().is_used() }
        });
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        pool.give_back(first);
        assert!(waiting.await.unwrap(), "it gets the one that was given back");
        assert_eq!(server.heard().connections, 1);
    });
}
