//! Gone at every moment (R4): with a reset, after each step and in the middle of it.

use std::fs;

use crate::Ground;
use crate::support::client::Client;
use crate::support::setup::Setup;

/// What a client says, and how many replies come before it goes on. The last step makes a message of it, and is never finished.
const STEPS: [(&str, usize); 4] = [
    ("EHLO client.test\r\n", 1),
    ("MAIL FROM:<a@client.test>\r\n", 1),
    ("RCPT TO:<b@mx.test>\r\nRCPT TO:<c@mx.test>\r\n", 2),
    ("DATA\r\n", 1),
];
const CONTENT: &str = "Subject: never whole\r\n\r\none line\r\n";
const CHUNKS: [&str; 3] =
    ["BDAT 34\r\n", "BDAT 10\r\n0123456789BDAT 1000\r\nabc", "BDAT 34 LAST\r\nSubject: never whole"];

#[test]
fn whoever_goes_before_the_end_leaves_nothing_behind() {
    let ground = Ground::start();
    for is_tls in [false, true] {
        let mut count = 0;
        ground.endures("resets", || {
            for whole in 0..=STEPS.len() {
                // After so many steps: nothing more; half of the next; all of it, its replies unread.
                for part in [0, 1, 2] {
                    let mut client = ground.greet(is_tls);
                    STEPS[..whole].iter().for_each(|step| say(&mut client, step));
                    let next = STEPS.get(whole).map_or(CONTENT, |(octets, _)| octets);
                    let size = next.len() * part / 2;
                    client.send(&next.as_bytes()[..size]).expect("it is sent");
                    client.reset();
                    count += 1;
                }
            }
            // Content that is large enough to be in the spool in part.
            for size in [1, 60_000, 1_000_000] {
                let mut client = ground.greet(is_tls);
                STEPS.iter().for_each(|step| say(&mut client, step));
                let content = format!("{:076}\r\n", 0).repeat(size / 78 + 1);
                client.send(content.as_bytes()).expect("it is sent");
                // Up to the dot of the end, whose line end does not come.
                client.send(b"\r\n.").expect("it is sent");
                client.reset();
                count += 1;
            }
            for chunks in CHUNKS {
                let mut client = ground.greet(is_tls);
                STEPS[..3].iter().for_each(|step| say(&mut client, step));
                client.send(chunks.as_bytes()).expect("it is sent");
                client.reset();
                count += 1;
            }
            // In the middle of a login, and of the handshake.
            for line in ["AUTH LOGIN\r\n", "STARTTLS\r\n", "STARTTLS\r\n\x16\x03\x01\x02\0\x01"] {
                let mut client = ground.greet(is_tls);
                client.send(line.as_bytes()).expect("it is sent");
                client.reset();
                count += 1;
            }
            for n in 0..2 {
                Client::connect(ground.address(n)).expect("a connection").reset();
            }
        });
        println!("{count} resets");
    }
    // The same connections' ends without a reset are ends in the middle of it as well.
    for is_tls in [false, true] {
        ground.endures("ends", || {
            for whole in 0..=STEPS.len() {
                let mut client = ground.greet(is_tls);
                STEPS[..whole].iter().for_each(|step| say(&mut client, step));
                client.send(&CONTENT.as_bytes()[..20]).expect("it is sent");
                drop(client);
            }
        });
    }
    ground.settle(0);
}

#[test]
fn uploads_that_break_off_again_and_again_take_no_room() {
    const TIMES: usize = 60;
    let ground = Ground::with(&crate::BOTH, |setup| {
        setup.small_segments();
    });
    let content = format!("{:076}\r\n", 0).repeat(20_000);
    for is_tls in [false, true] {
        ground.endures("uploads that break off", || {
            for _ in 0..TIMES {
                let mut client = ground.greet(is_tls);
                STEPS.iter().for_each(|step| say(&mut client, step));
                client.send(content.as_bytes()).expect("it is sent");
                client.reset();
            }
        });
    }
    ground.settle(0);
}

#[test]
fn whoever_goes_before_he_is_accepted_has_his_descriptor_closed_once() {
    const THREADS: usize = 4;
    const TIMES: usize = 1000;
    // Closed twice it is another's the second time: a session's, a listener's, a segment's.
    let mut setup = Setup::new();
    let trace = setup.home().join("trace");
    let file = trace.to_str().expect("a path").to_string();
    setup.under(&["strace", "-D", "-f", "-qq", "-e", "trace=close", "-o", &file]);
    let mut server = setup.start();
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                (0..TIMES).for_each(|_| Client::connect(server.address()).expect("a connection").reset())
            });
        }
    });
    Client::greet(server.address()).expect("QUIT", 221);
    assert!(server.stop().success());
    let trace = fs::read_to_string(trace).expect("what strace saw");
    assert!(trace.matches("close(").count() > THREADS * TIMES / 2, "strace has seen nothing");
    assert_eq!(trace.lines().filter(|line| line.contains("EBADF")).collect::<Vec<_>>(), [""; 0]);
}

fn say(client: &mut Client, (octets, replies): &(&str, usize)) {
    client.send(octets.as_bytes()).expect("it is sent");
    for _ in 0..*replies {
        let reply = client.reply().expect("a reply");
        assert!(reply.code < 400, "{octets:?}: {reply:?}");
    }
}
