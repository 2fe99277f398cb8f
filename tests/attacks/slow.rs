//! Little by little, or nothing at all (R1, R2).

use std::io::{Read, Write};
use std::net::TcpStream;
use std::thread;
use std::time::{Duration, Instant};

use crate::support::client::Client;
use crate::support::setup::Setup;
use crate::support::wait;
use crate::{BOTH, Ground, logins_of};

/// Between two octets: ten in a second, far below the rate that content must keep, and often enough to keep a timer from running out
/// that each octet would wind up anew.
const PAUSE: Duration = Duration::from_millis(100);

fn short_times(setup: &mut Setup) {
    setup
        .set("smtp.command_timeout", "\"2s\"")
        .set("smtp.data_timeout", "\"2s\"")
        .set("tls.handshake_timeout", "\"2s\"");
    setup.set("smtp.content_rate_min", 500);
}

/// Where a slow peer has got to when it becomes slow: what it has said before, with the replies that are awaited, and how it goes on.
struct Slow {
    what: &'static str,
    is_tls: bool,
    before: &'static [(&'static str, u16)],
    octets: &'static [u8],
    /// How the last reply begins.
    end: &'static str,
}

const MAIL: (&str, u16) = ("MAIL FROM:<a@client.test>", 250);
const RCPT: (&str, u16) = ("RCPT TO:<b@mx.test>", 250);
const TIMED_OUT: &str = "421 4.4.2";

const TABLE: [Slow; 9] = [
    Slow { what: "a command", is_tls: false, before: &[], octets: b"x", end: TIMED_OUT },
    Slow { what: "a command over TLS", is_tls: true, before: &[], octets: b"x", end: TIMED_OUT },
    Slow {
        what: "a command in a transaction",
        is_tls: false,
        before: &[MAIL, RCPT],
        octets: b"x",
        end: TIMED_OUT,
    },
    Slow {
        what: "content",
        is_tls: false,
        before: &[MAIL, RCPT, ("DATA", 354)],
        octets: b"x\r\n",
        end: TIMED_OUT,
    },
    Slow {
        what: "content over TLS",
        is_tls: true,
        before: &[MAIL, RCPT, ("DATA", 354)],
        octets: b"x",
        end: TIMED_OUT,
    },
    Slow {
        what: "a chunk",
        is_tls: false,
        before: &[MAIL, RCPT],
        octets: b"BDAT 100000\r\nx",
        end: TIMED_OUT,
    },
    Slow {
        what: "a chunk over TLS",
        is_tls: true,
        before: &[MAIL, RCPT],
        octets: b"BDAT 100000\r\nx",
        end: TIMED_OUT,
    },
    Slow {
        what: "a chunk that is refused",
        is_tls: false,
        before: &[],
        octets: b"BDAT 100000\r\nx",
        end: TIMED_OUT,
    },
    Slow { what: "a login", is_tls: true, before: &[("AUTH LOGIN", 334)], octets: b"x", end: TIMED_OUT },
];

#[test]
fn whoever_is_slow_is_sent_away_wherever_he_is() {
    let listeners = ["tls = \"optional\"\nauth = \"optional\"", "tls = \"implicit\""];
    let ground = Ground::with(&listeners, |setup| {
        short_times(setup);
        logins_of(setup);
    });
    ground.endures("slow peers", || {
        thread::scope(|scope| {
            for slow in &TABLE {
                let ground = &ground;
                scope.spawn(move || {
                    let mut client = ground.greet(slow.is_tls);
                    for (line, code) in slow.before {
                        client.expect(line, *code);
                    }
                    let last = dribble(&mut client, slow.octets);
                    assert!(last.starts_with(slow.end), "{}: {last:?}", slow.what);
                    assert!(client.is_closed(), "{}", slow.what);
                });
            }
            // A handshake, and one that has not begun.
            for (n, octets) in [(1, &b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03"[..]), (1, b""), (0, b"")] {
                let ground = &ground;
                scope.spawn(move || {
                    let mut stream = match n {
                        0 => {
                            let mut client = Client::greet(ground.address(0));
                            client.expect("STARTTLS", 220);
                            client.socket().try_clone().expect("a second handle")
                        }
                        _ => TcpStream::connect(ground.address(n)).expect("a connection"),
                    };
                    stream.set_read_timeout(Some(PAUSE)).expect("an option of the socket");
                    let until = Instant::now() + wait::PATIENCE;
                    let mut octets = octets.iter();
                    while Instant::now() < until {
                        if let Some(octet) = octets.next() {
                            let _ = stream.write_all(&[*octet]);
                        }
                        match stream.read(&mut [0; 100]) {
                            Ok(0) => return,
                            Ok(_) => {}
                            Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => {}
                            Err(_) => return,
                        }
                    }
                    panic!("a handshake is waited for without end");
                });
            }
        });
    });
    ground.settle(0);
}

/// Sends octet after octet, the last one again and again, until the gateway says something; what that is.
fn dribble(client: &mut Client, octets: &[u8]) -> String {
    let until = Instant::now() + wait::PATIENCE;
    let (first, last) = octets.split_at(octets.len() - 1);
    client.send(first).expect("it is sent");
    while Instant::now() < until {
        let _ = client.send(last);
        if !client.is_silent_for(PAUSE) {
            return client.reply().map_or_else(|e| e.to_string(), |reply| reply.line());
        }
    }
    "nothing".into()
}

#[test]
fn connections_that_say_nothing_use_up_descriptors_for_a_time_only() {
    let ground = Ground::with(&BOTH, |setup| {
        short_times(setup);
        setup.under(&["prlimit", "--nofile=300"]);
    });
    for n in [1, 0] {
        let crowd = ground.endures("connections that say nothing", || {
            let patience = Duration::from_millis(500);
            // A full backlog ends the crowd early.
            (0..600)
                .map_while(|_| Client::connect_within(ground.address(n), patience).ok())
                .collect::<Vec<_>>()
        });
        assert!(crowd.len() > 250, "{}", crowd.len());
        // They stay, and all the same there is room again when their time is over.
        wait::until("a new session is served", || {
            Client::try_greet_tls(ground.address(0), &ground.tls())
                .is_ok_and(|mut client| client.say("QUIT").code == 221)
        });
        drop(crowd);
    }
    ground.settle(0);
}

/// The other way round: there is always something to be read from it, so nothing of it is ever waited for.
#[test]
fn whoever_is_never_silent_has_no_more_time_than_others() {
    let mut setup = Setup::new();
    setup.set("smtp.session_timeout", "\"2s\"");
    let mut server = setup.start();
    let mut reader = TcpStream::connect(server.address()).expect("a connection");
    reader.set_read_timeout(Some(wait::PATIENCE)).expect("a timeout");
    let mut writer = reader.try_clone().expect("the same socket");
    let speaking = thread::spawn(move || {
        let commands = b"RSET\r\n".repeat(100_000);
        while writer.write_all(&commands).is_ok() {}
    });
    let (mut buffer, mut last) = (vec![0; 1 << 20], Vec::new());
    // Its end may be a reset: what it sends on is not read for ever.
    while let Ok(size @ 1..) = reader.read(&mut buffer) {
        last.extend_from_slice(&buffer[..size]);
        last.drain(..last.len().saturating_sub(200));
    }
    let last = String::from_utf8_lossy(&last).into_owned();
    assert!(last.contains(TIMED_OUT), "the end of its session: {last:?}");
    speaking.join().expect("it has ended");
    assert!(server.stop().success());
}
