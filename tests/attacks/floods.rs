//! More than anybody asked for (P4, P19, L4).

use std::io::Write;
use std::time::Duration;

use crate::support::client::Client;
use crate::{BOTH, Ground};

/// How long the gateway may take nothing before it is believed that it takes nothing more.
const PATIENCE: Duration = Duration::from_millis(500);

#[test]
fn replies_that_nobody_reads_are_not_gathered() {
    // More than the kernels of both sides keep.
    const COUNT: usize = 10_000_000;
    let ground = Ground::with(&BOTH, |setup| {
        setup.set("smtp.idle_commands_max", 1_000_000).set("smtp.errors_max", 1_000_000);
    });
    let floods = [
        b"NOOP\r\n".repeat(COUNT),
        b"RSET\r\n".repeat(COUNT),
        b"XYZZY\r\n".repeat(COUNT),
        b"HELP\r\nVRFY x\r\nEHLO x\r\n".repeat(COUNT / 3),
    ];
    for is_tls in [false, true] {
        let mut deaf: Vec<_> = floods.iter().map(|_| ground.greet(is_tls)).collect();
        ground.endures("replies that nobody reads", || {
            for (client, octets) in deaf.iter_mut().zip(&floods) {
                let sent = client.send_for(octets, PATIENCE);
                assert!(
                    sent.is_err(),
                    "{} octets of commands were taken, and no reply was read",
                    octets.len()
                );
            }
        });
        deaf.into_iter().for_each(Client::reset);
    }
    ground.settle(0);
}

#[test]
fn a_million_tiny_chunks_come_to_an_end() {
    const CHUNKS: usize = 1_000_000;
    let ground = Ground::start();
    let table: [(&str, &[u8]); 3] =
        [("one octet", b"BDAT 1\r\na"), ("none", b"BDAT 0\r\n"), ("a line", b"BDAT 2\r\n\r\n")];
    for is_tls in [false, true] {
        for (what, chunk) in &table {
            ground.endures(&format!("chunks of {what}"), || {
                let mut client = ground.greet(is_tls);
                client.expect("MAIL FROM:<a@client.test>", 250);
                client.expect("RCPT TO:<b@mx.test>", 250);
                let group = chunk.repeat(100);
                let (mut taken, mut last) = (0, None);
                'all: while taken < CHUNKS {
                    if client.send(&group).is_err() {
                        break;
                    }
                    for _ in 0..100 {
                        let Ok(reply) = client.reply() else { break 'all };
                        let code = reply.code;
                        last = Some(reply);
                        if code != 250 {
                            break 'all;
                        }
                        taken += 1;
                    }
                }
                let last = last.expect("a reply");
                assert!(taken < CHUNKS / 100, "{taken} chunks of {what} were taken");
                assert_eq!(last.line().get(..9), Some("421 4.7.0"), "after {taken} chunks of {what}");
            });
        }
    }
    ground.settle(0);
}

#[test]
fn a_hundred_thousand_recipients_are_not_kept() {
    const COUNT: usize = 100_000;
    let ground = Ground::start();
    for is_tls in [false, true] {
        let (accepted, later, last) = ground.endures("recipients", || {
            let mut client = ground.greet(is_tls);
            client.expect("MAIL FROM:<a@client.test>", 250);
            let (mut accepted, mut later) = (0, 0);
            let mut last = String::new();
            'all: for group in 0..COUNT / 500 {
                let commands: String =
                    (0..500).map(|n| format!("RCPT TO:<r{group}.{n}@mx.test>\r\n")).collect();
                if client.send(commands.as_bytes()).is_err() {
                    break;
                }
                for _ in 0..500 {
                    let Ok(reply) = client.reply() else { break 'all };
                    match reply.code {
                        250 => accepted += 1,
                        452 => later += 1,
                        _ => {}
                    }
                    last = reply.line();
                }
            }
            (accepted, later, last)
        });
        assert_eq!(accepted, 1000, "smtp.recipients_max");
        assert!(last.starts_with("452 4.5.3") || last.starts_with("421 "), "{last}");
        println!("{later} were told to come later, and then: {last}");
    }
    ground.settle(0);
}

#[test]
fn who_goes_on_sending_after_his_session_has_ended_takes_nobody_s_time() {
    const SESSIONS: usize = 6;
    let ground = Ground::start();
    for is_tls in [false, true] {
        ground.endures("octets behind the end of a session", || {
            std::thread::scope(|scope| {
                for _ in 0..SESSIONS {
                    scope.spawn(|| {
                        let mut client = ground.greet(is_tls);
                        client.expect("QUIT", 221);
                        // Until the gateway has had enough, which resets the connection.
                        let octets = vec![b'x'; 64 << 10];
                        while client.socket().write_all(&octets).is_ok() {}
                    });
                }
            });
        });
    }
    ground.settle(0);
}

#[test]
fn content_that_is_refused_takes_nobody_s_time_either() {
    const SESSIONS: usize = 4;
    const SIZE: usize = 48 << 20;
    let ground = Ground::start();
    let octets = vec![b'x'; 1 << 20];
    let send = |client: &mut Client| (0..SIZE >> 20).all(|_| client.send(&octets).is_ok());
    for is_tls in [false, true] {
        ground.endures("content that is refused", || {
            std::thread::scope(|scope| {
                for n in 0..SESSIONS {
                    let (ground, send) = (&ground, &send);
                    scope.spawn(move || {
                        let mut client = ground.greet(is_tls);
                        if n % 2 == 0 {
                            // A chunk that belongs to nothing.
                            client.send(format!("BDAT {SIZE}\r\n").as_bytes()).expect("it is sent");
                            assert!(send(&mut client));
                            client.expect("NOOP", 503);
                        } else {
                            // Content that cannot be taken since its first line, but is to its end.
                            client.expect("MAIL FROM:<a@client.test>", 250);
                            client.expect("RCPT TO:<b@mx.test>", 250);
                            client.expect("DATA", 354);
                            client.send(b"bare\nline end\r\n").expect("it is sent");
                            assert!(send(&mut client));
                            client.send(b"\r\n.\r\n").expect("it is sent");
                            assert_eq!(client.reply().expect("a reply").line().get(..9), Some("550 5.5.2"));
                        }
                    });
                }
            });
        });
    }
    ground.settle(0);
}
