//! What is said to be something else where it is read: other protocols, log lines, loops (T5, L15, L16).

use std::fs;

use crate::support::client::Client;
use crate::support::wait;
use crate::{Ground, logins_of};

#[test]
fn a_browser_is_sent_away_with_its_first_line() {
    let ground = Ground::start();
    let mail = "MAIL FROM:<a@client.test>\r\nRCPT TO:<b@mx.test>\r\nDATA\r\n\r\nevil\r\n.\r\n";
    let requests = [
        format!("POST / HTTP/1.1\r\nHost: mx.test\r\nContent-Length: 200\r\n\r\nEHLO x\r\n{mail}"),
        format!("GET /?\r\n{mail} HTTP/1.1\r\n"),
        format!("PUT / HTTP/1.0\r\n\r\n{mail}"),
        format!("CONNECT mx.test:25 HTTP/1.1\r\n\r\n{mail}"),
        format!("Host: mx.test\r\n{mail}"),
        format!("Content-Type: text/plain\r\n{mail}"),
    ];
    ground.endures("browsers", || {
        for request in &requests {
            for is_tls in [false, true] {
                for has_greeted in [false, true] {
                    let mut client = match has_greeted {
                        true => ground.greet(is_tls),
                        false if is_tls => {
                            Client::connect_tls(ground.address(1), &ground.tls()).expect("TLS")
                        }
                        false => Client::connect(ground.address(0)).expect("a connection"),
                    };
                    if !has_greeted {
                        assert_eq!(client.reply().expect("a greeting").code, 220);
                    }
                    client.send(request.as_bytes()).expect("it is sent");
                    let reply = client.reply().expect("a reply");
                    assert_eq!(reply.line().get(..9), Some("554 5.5.0"), "{request:?}: {reply:?}");
                    assert!(client.is_closed(), "{request:?}");
                }
            }
        }
    });
    ground.settle(0);
}

#[test]
fn no_peer_writes_a_log_line() {
    let listeners = [
        "tls = \"optional\"\nauth = \"optional\"\nxclient_from = [\"127.0.0.0/8\"]",
        "tls = \"implicit\"\nproxy_from = [\"127.0.0.0/8\"]",
    ];
    let ground = Ground::with(&listeners, logins_of);
    let log = || fs::read(ground.setup.home().join("log")).expect("the log");
    let lines_before = log().iter().filter(|c| **c == b'\n').count();
    let lines: [&[u8]; 16] = [
        b"EHLO x\x1b[2J\x1b[31mforged\r\n",
        b"EHLO x\nforged 250 accepted\r\n",
        b"EHLO x\rforged\r\n",
        b"HELO %s%n%x.forged\r\n",
        b"EHLO client.test\r\n",
        b"MAIL FROM:<\"forged\x1b[2J\"@client.test>\r\n",
        b"MAIL FROM:<\"forged\\\x0d\"@client.test>\r\n",
        "MAIL FROM:<forged\u{202e}\u{85}\u{2028}@client.test> SMTPUTF8\r\n".as_bytes(),
        b"RCPT TO:<\"forged\\\"\\\\ accepted\"@elsewhere.test>\r\n",
        "RCPT TO:<forged\u{9b}31m@elsewhere.test>\r\n".as_bytes(),
        b"RSET\r\n",
        b"\x1b]0;forged\x07\r\n",
        b"XCLIENT HELO=forged+0A2026-01-01+20INFO+20forged LOGIN=forged+1B[2J\r\n",
        b"XCLIENT ADDR=forged+0D+0A\r\n",
        b"XCLIENT LOGIN=forged+E2+80+AE+C2+85\r\n",
        b"NOOP\r\n",
    ];
    ground.endures("words for the log", || {
        for is_tls in [false, true] {
            let mut client = ground.greet(is_tls);
            for line in lines {
                client.send(line).expect("it is sent");
                client.reply().unwrap_or_else(|e| panic!("{:?}: {e}", String::from_utf8_lossy(line)));
            }
        }
        // A name to log in with: NUL-separated, and the rest is the name's affair.
        for user in [
            "forged\r\n2026-01-01 INFO forged",
            "forged\x1b[2J\x07",
            "forged\u{202e}\u{85}",
            "%s%n",
            &"forged".repeat(200),
        ] {
            let mut client = ground.greet(true);
            let response = base64(format!("\0{user}\0x").as_bytes());
            client.send(format!("AUTH PLAIN {response}\r\n").as_bytes()).expect("it is sent");
            assert_eq!(client.reply().expect("a reply").code / 100, 5);
        }
        // And a message that is accepted, from such an address.
        let mut client = ground.greet(false);
        client.expect("MAIL FROM:<forged\u{202e}\u{feff}@client.test> SMTPUTF8", 250);
        client.expect("RCPT TO:<b@mx.test>", 250);
        client.expect("DATA", 354);
        assert_eq!(client.content(b"Subject: x\r\n\r\nx\r\n").expect("a reply").code, 250);
        // A proxy's header, and handshakes.
        for octets in
            [&b"PROXY TCP4 forged\x1b[2J\r\n"[..], b"forged\x1b[2J\n", b"PROXY UNKNOWN\r\nforged\x1b[2J\n"]
        {
            let mut client = Client::connect(ground.address(1)).expect("a connection");
            client.send(octets).expect("it is sent");
            let _ = client.read_rest(&mut String::new());
        }
    });
    wait::until("the last of it is in the log", || {
        String::from_utf8_lossy(&log())
            .lines()
            .any(|line| line.contains("accepted") && line.contains("from=forged"))
    });
    let log = log();
    let text = String::from_utf8(log).expect("UTF-8");
    let is_odd = |c: char| (c.is_control() && c != '\n') || (!c.is_ascii() && c != '…');
    assert_eq!(text.chars().find(|c| is_odd(*c)), None, "a control octet in the log");
    for line in text.lines().skip(lines_before) {
        assert!(line.starts_with("20") && line.contains("Z "), "not a line of ours: {line:?}");
        assert!(line.len() < 2000, "a line of {} octets", line.len());
        // What names somebody says so; nobody's line begins with the name.
        if let Some((before, _)) = line.split_once("forged") {
            assert!(before.contains('='), "{line:?}");
        }
    }
    ground.settle(1);
}

/// Base 64 (RFC 4648 §4).
fn base64(octets: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    octets
        .chunks(3)
        .flat_map(|group| {
            let bits = (0..3).fold(0_u32, |bits, i| bits << 8 | u32::from(*group.get(i).unwrap_or(&0)));
            (0..4).map(move |i| match i <= group.len() {
                true => char::from(ALPHABET[(bits >> (18 - 6 * i)) as usize & 63]),
                false => '=',
            })
        })
        .collect()
}

#[test]
fn a_loop_is_broken_however_its_message_comes() {
    let ground = Ground::start();
    let hops = |count: usize| {
        "Received: from a by b; Sat, 21 Nov 2026 12:00:00 +0000\r\n".repeat(count) + "\r\nx\r\n"
    };
    let is_accepted = |is_tls: bool, has_chunks: bool, content: String| {
        let mut client = ground.greet(is_tls);
        client.expect("MAIL FROM:<a@client.test>", 250);
        client.expect("RCPT TO:<b@mx.test>", 250);
        let reply = match has_chunks {
            true => {
                client
                    .send(format!("BDAT {} LAST\r\n{content}", content.len()).as_bytes())
                    .expect("it is sent");
                client.reply()
            }
            false => {
                client.expect("DATA", 354);
                client.content(content.as_bytes())
            }
        }
        .expect("a reply");
        assert!(reply.code == 250 || reply.line().starts_with("554 5.4.6"), "{reply:?}");
        // What is refused is a message, and not the session.
        client.expect("QUIT", 221);
        reply.code == 250
    };
    for is_tls in [false, true] {
        for has_chunks in [false, true] {
            assert!(is_accepted(is_tls, has_chunks, hops(100)), "smtp.hops_max");
            assert!(!is_accepted(is_tls, has_chunks, hops(101)), "smtp.hops_max");
        }
    }
    ground.settle(4);
}
