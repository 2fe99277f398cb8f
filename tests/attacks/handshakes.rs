//! TLS that is none, that never ends, and that ends too early (T1 to T7, and what came of CVE-2026-45185).

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::ServerName;
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, ClientConnection};

use crate::Ground;
use crate::support::client::Client;
use crate::support::wait;

/// How long a connection that must end may take to it.
const TIMEOUT: Duration = Duration::from_secs(60);

fn connect(ground: &Ground, n: usize) -> TcpStream {
    let stream = TcpStream::connect(ground.address(n)).expect("a connection");
    stream.set_read_timeout(Some(TIMEOUT)).expect("an option of the socket");
    stream.set_write_timeout(Some(TIMEOUT)).expect("an option of the socket");
    stream.set_nodelay(true).expect("an option of the socket");
    stream
}

/// A connection where STARTTLS was answered 220.
fn told_to_start(ground: &Ground) -> Client {
    let mut client = Client::greet(ground.address(0));
    client.expect("STARTTLS", 220);
    client
}

/// Everything that comes until the gateway ends the connection; a reset is an end.
fn rest(stream: &mut TcpStream) -> Vec<u8> {
    let mut octets = Vec::new();
    if let Err(e) = stream.read_to_end(&mut octets) {
        assert_ne!(e.kind(), std::io::ErrorKind::WouldBlock, "the gateway keeps the connection: {octets:?}");
    }
    octets
}

fn hello(tls: &Arc<ClientConfig>) -> (ClientConnection, Vec<u8>) {
    let mut client = ClientConnection::new(tls.clone(), ServerName::try_from("mx.test").expect("a name"))
        .expect("a client");
    let mut octets = Vec::new();
    client.write_tls(&mut octets).expect("a Vec takes everything");
    (client, octets)
}

#[test]
fn what_is_no_handshake_gets_an_alert_and_an_end_and_nothing_of_it_is_read() {
    let ground = Ground::start();
    let transaction = b"EHLO x\r\nMAIL FROM:<a@e.test>\r\nRCPT TO:<b@mx.test>\r\nDATA\r\n\r\nevil\r\n.\r\n";
    let garbage: Vec<u8> = (0..100_000_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let table: [(&str, &[u8]); 6] = [
        ("a transaction in clear", transaction),
        ("HTTP", b"GET / HTTP/1.1\r\nHost: mx.test\r\n\r\n"),
        ("alerts", &b"\x15\x03\x03\0\x02\x01\0".repeat(10_000)),
        ("changes of the cipher", &b"\x14\x03\x03\0\x01\x01".repeat(10_000)),
        ("garbage", &garbage),
        ("a record of 65,535 octets", b"\x16\x03\x01\xff\xff\x01\0"),
    ];
    ground.endures("what is no handshake", || {
        for (what, octets) in table {
            for mut stream in
                [connect(&ground, 1), told_to_start(&ground).socket().try_clone().expect("a second handle")]
            {
                // It may be ended before all of it is sent.
                let _ = stream.write_all(octets);
                let said = rest(&mut stream);
                assert!(
                    said.is_empty() || said[0] == 21,
                    "{what} was answered {:?}",
                    String::from_utf8_lossy(&said)
                );
                assert!(said.len() < 50, "{what} was answered with {} octets", said.len());
            }
        }
        // The other way round: a handshake where none is expected.
        let mut stream = connect(&ground, 0);
        stream.write_all(&hello(&ground.tls()).1).expect("it is sent");
        let said = String::from_utf8_lossy(&rest(&mut stream)).into_owned();
        assert!(
            said.starts_with("220 mx.test")
                && said.contains("\r\n554 5.5.0 ")
                && said.ends_with("closing\r\n"),
            "{said:?}"
        );
    });
    ground.settle(0);
}

#[test]
fn a_handshake_octet_by_octet_is_a_handshake() {
    let ground = Ground::start();
    for version in [&TLS12, &TLS13] {
        let tls = ground.authority.client_of(&[version]);
        // Each octet a segment of its own, and each a record of its own.
        for is_in_records in [false, true] {
            let (mut client, octets) = hello(&tls);
            let mut stream = connect(&ground, 1);
            ground.endures("a handshake octet by octet", || {
                for octet in if is_in_records { &octets[5..] } else { &octets[..] } {
                    match is_in_records {
                        false => stream.write_all(&[*octet]),
                        true => stream.write_all(&[22, 3, 1, 0, 1, *octet]),
                    }
                    .expect("it is sent");
                }
            });
            let done = client.complete_io(&mut stream);
            assert!(!client.is_handshaking(), "{:?}, in records: {is_in_records}: {done:?}", version.version);
            let mut greeting = [0; 4];
            rustls::Stream::new(&mut client, &mut stream).read_exact(&mut greeting).expect("a greeting");
            assert_eq!(&greeting, b"220 ");
        }
    }
    ground.settle(0);
}

#[test]
fn parked_handshakes_are_bounded_in_number_and_time() {
    const PARKED: usize = 200;
    const COUNT: usize = 5_000;
    let ground = Ground::with(&crate::BOTH, |setup| {
        setup.set("tls.handshakes_max", PARKED).set("tls.handshake_timeout", "\"15s\"");
    });
    let (_, octets) = hello(&ground.tls());
    let half = &octets[..octets.len() / 2];
    let mut parked = ground.endures("parked handshakes", || {
        let mut parked = Vec::new();
        for n in 0..COUNT {
            let mut stream = connect(&ground, 1);
            let _ = stream.write_all(half);
            match n < PARKED {
                true => parked.push(stream),
                // For the others there is no room: they are sent away without a word.
                false => assert_eq!(rest(&mut stream), b"", "connection {n}"),
            }
            // Those that come first are to be the ones that are kept.
            if n + 1 == PARKED {
                wait::until("the handshakes have begun", || {
                    Client::greet(ground.address(0)).say("STARTTLS").code == 454
                });
            }
        }
        parked
    });
    // STARTTLS is answered that there is none now, and the session goes on.
    let mut client = Client::greet(ground.address(0));
    let reply = client.expect("STARTTLS", 454);
    assert!(reply.text.starts_with("4.7.0"), "{reply:?}");
    client.deliver("a@client.test", &["b@mx.test"], b"Subject: in clear\r\n\r\nx\r\n");
    drop(client);
    // Their time comes, and then there is room again.
    for stream in &mut parked {
        // In TLS there may be a word of its end.
        let said = rest(stream);
        assert!(said.is_empty() || said[0] == 21, "{said:?}");
    }
    let mut client = ground.greet(true);
    client.deliver("a@client.test", &["b@mx.test"], b"Subject: over TLS\r\n\r\nx\r\n");
    drop(client);
    ground.settle(2);
}

#[test]
fn what_comes_in_clear_behind_starttls_is_forgotten() {
    let ground = Ground::start();
    let injected = [
        "NOOP injected\r\n",
        "EHLO commandinjectiontester\r\n",
        "EHLO injected\r\nMAIL FROM:<injected@client.test>\r\nRCPT TO:<b@mx.test>\r\nDATA\r\n",
        "RSET",
    ];
    ground.endures("commands in the segment of STARTTLS", || {
        for injected in injected {
            for version in [&TLS12, &TLS13] {
                let mut client = Client::greet(ground.address(0));
                client.expect("MAIL FROM:<before@client.test>", 250);
                client.expect("RSET", 250);
                client.send(format!("STARTTLS\r\n{injected}").as_bytes()).expect("it is sent");
                assert_eq!(client.reply().expect("a reply").code, 220);
                let mut client = client.shake_hands(&ground.authority.client_of(&[version])).expect("TLS");
                // The first reply is to the first command within TLS, and nothing is known of what was said before.
                assert_eq!(client.say("MAIL FROM:<a@client.test>").line().get(..9), Some("503 5.5.1"));
                assert!(client.expect("EHLO client.test", 250).text.contains("PIPELINING"));
                client.expect("RCPT TO:<b@mx.test>", 503);
                client.expect("STARTTLS", 503);
                client.expect("QUIT", 221);
                assert!(client.is_closed());
            }
        }
    });
    ground.settle(0);
}

#[test]
fn after_the_end_of_tls_nothing_is_read() {
    let ground = Ground::start();
    let opening = "MAIL FROM:<a@client.test>\r\nRCPT TO:<b@mx.test>\r\n";
    let table: [(&str, Vec<u8>); 5] = [
        // (what was said within TLS, what follows in clear)
        ("BDAT 1000\r\n0123456789", [&[b'x'; 990][..], b"NOOP\r\nBDAT 0 LAST\r\n"].concat()),
        ("BDAT 20 LAST\r\n0123456789", b"0123456789NOOP\r\n".to_vec()),
        ("DATA\r\n", b"Subject: evil\r\n\r\nevil\r\n.\r\nNOOP\r\n".to_vec()),
        ("NOOP", b"\r\nDATA\r\n".to_vec()),
        ("", b"DATA\r\nevil\r\n.\r\n".to_vec()),
    ];
    ground.endures("cleartext behind the end of TLS", || {
        for (within, clear) in &table {
            for version in [&TLS12, &TLS13] {
                for says_so in [true, false] {
                    let tls = ground.authority.client_of(&[version]);
                    let mut client = Client::try_greet_tls(ground.address(0), &tls).expect("TLS");
                    client.send(opening.as_bytes()).expect("it is sent");
                    assert_eq!(
                        (client.reply().expect("a reply").code, client.reply().expect("a reply").code),
                        (250, 250)
                    );
                    client.send(within.as_bytes()).expect("it is sent");
                    if within.starts_with("DATA") {
                        assert_eq!(client.reply().expect("a reply").code, 354);
                    }
                    let (connection, socket) = client.tls();
                    if says_so {
                        connection.send_close_notify();
                        while connection.wants_write() {
                            connection.write_tls(socket).expect("it is sent");
                        }
                    }
                    let _ = socket.write_all(clear);
                    let mut said = String::new();
                    let _ = client.read_rest(&mut said);
                    assert_eq!(said, "", "{within:?}, close_notify: {says_so}, {:?}", version.version);
                }
            }
        }
    });
    ground.settle(0);
}

#[test]
fn floods_within_tls_end_it_or_are_taken_without_a_word() {
    let ground = Ground::start();
    let record = |kind: u8, size: usize| {
        [&[kind, 3, 3, (size >> 8) as u8, size as u8][..], &vec![0x55; size]].concat()
    };
    let floods = [
        ("records that cannot be decrypted", record(23, 1000).repeat(500)),
        ("alerts in clear", b"\x15\x03\x03\0\x02\x01\0".repeat(50_000)),
        ("records of nothing", b"\x17\x03\x03\0\0".repeat(50_000)),
        ("a handshake in clear", record(22, 16_000).repeat(20)),
    ];
    ground.endures("floods within TLS", || {
        for (what, octets) in &floods {
            for version in [&TLS12, &TLS13] {
                let tls = ground.authority.client_of(&[version]);
                let mut client = Client::try_greet_tls(ground.address(0), &tls).expect("TLS");
                let _ = client.socket().write_all(octets);
                let mut said = String::new();
                let _ = client.read_rest(&mut said);
                assert_eq!(said, "", "{what}");
            }
        }
        // New keys over and over are the peer's right, and its replies are not waited for.
        let mut client = ground.greet(true);
        for _ in 0..5_000 {
            client.tls().0.refresh_traffic_keys().expect("TLS 1.3");
            let (connection, socket) = client.tls();
            if connection.write_tls(socket).is_err() {
                break;
            }
        }
    });
    ground.settle(0);
}

#[test]
fn handshakes_for_nothing_leave_time_for_others() {
    const THREADS: usize = 3;
    const TIMES: usize = 300;
    let ground = Ground::start();
    let tls = ground.tls();
    // Done to the end, left in the middle, and ended before they begin.
    let handshakes = |n: usize| {
        for round in 0..TIMES {
            let Ok(client) = Client::connect(ground.address(1)) else { continue };
            match (n + round) % 3 {
                0 => client.shake_hands(&tls).expect("TLS").reset(),
                1 => {
                    let mut client = client;
                    let _ = client.send(&hello(&tls).1);
                    client.reset();
                }
                _ => {
                    let mut client = client;
                    // close_notify in clear, in the place of a hello and behind one.
                    let alert = b"\x15\x03\x03\0\x02\x01\0";
                    let octets =
                        if round % 2 == 0 { alert.to_vec() } else { [&hello(&tls).1[..], alert].concat() };
                    let _ = client.send(&octets);
                    client.reset();
                }
            }
        }
    };
    ground.endures("handshakes for nothing", || {
        std::thread::scope(|scope| {
            for n in 0..THREADS {
                let handshakes = &handshakes;
                scope.spawn(move || handshakes(n));
            }
        });
    });
    ground.settle(0);
}
