//! AUTH, with swaks and with many clients at once.

use std::collections::BTreeMap;
use std::sync::Barrier;
use std::thread;

use crate::Gateway;
use crate::support::client::Client;
use crate::support::setup::{Setup, incoming};
use crate::support::tools;

/// Seconds that a client may take.
const TIMEOUT: u32 = 120;

/// A line of the credentials file, as `incoming auth hash` prints it.
pub fn line(user: &str, password: &str) -> String {
    let said = tools::converse(incoming().args(["auth", "hash", user]), format!("{password}\n").as_bytes());
    assert!(said.starts_with(&format!("{user}:$argon2")), "{said}");
    said
}

/// These may log in.
pub fn set_users(setup: &mut Setup, users: &[(&str, &str)]) {
    let lines: String = users.iter().map(|(user, password)| line(user, password)).collect();
    let file = setup.file("credentials", lines);
    setup.set("auth.credentials", format!("{file:?}"));
}

#[test]
fn swaks_logs_in_with_plain_and_login_and_not_with_a_wrong_password() {
    let listeners = ["tls = \"required\"\nauth = \"required\"", "tls = \"implicit\"\nauth = \"required\""];
    let gateway = Gateway::with(&listeners, |setup| set_users(setup, &[("alice", "right")]));
    let log_in = |n: usize, mechanism: &str, user: &str, password: &str| -> String {
        let address = gateway.address(n);
        let mut command = tools::bounded("swaks", TIMEOUT);
        command.args(["--server", &address.ip().to_string(), "--port", &address.port().to_string()]);
        command.args(["--from", "a@client.test", "--to", "b@mx.test", "--helo", "client.test"]);
        command.args(["--auth", mechanism, "--auth-user", user, "--auth-password", password]);
        command.arg(["--tls", "--tls-on-connect"][n]);
        tools::said(&command.output().expect("swaks runs"))
    };
    for mechanism in ["PLAIN", "LOGIN"] {
        for n in 0..listeners.len() {
            let said = log_in(n, mechanism, "alice", "right");
            assert!(said.contains("235 2.7.0") && said.contains("queued as"), "{mechanism} {n}: {said}");
            for (user, password) in [("alice", "wrong"), ("bob", "right"), ("Alice", "right"), ("", "right")]
            {
                let said = log_in(n, mechanism, user, password);
                let is_refused = !said.contains("235 2.7.0") && !said.contains("queued as");
                assert!(is_refused, "{mechanism} {n} {user} {password}: {said}");
            }
        }
    }
    let stored = gateway.delivered(4);
    assert!(stored.iter().all(|s| s.received.contains(" with ESMTPSA (TLS1.3 ")), "{stored:?}");
    // No password is in the log, right or wrong, nor is what carried it.
    let log = gateway.server.log();
    assert!(log.contains("user=alice outcome=Accepted") && log.contains("outcome=Refused"), "{log}");
    assert!(!log.contains("right") && !log.contains("wrong"), "{log}");
}

#[test]
fn more_logins_than_can_be_looked_at_are_told_to_come_later() {
    const CLIENTS: usize = 40;
    let gateway =
        Gateway::with(&["tls = \"implicit\"\nauth = \"required\"", "tls = \"optional\""], |setup| {
            set_users(setup, &[("alice", "right")]);
            setup.set("auth.threads", 1).set("auth.queue_max", 2);
        });
    let (tls, address, together) = (gateway.client(), gateway.address(0), Barrier::new(CLIENTS));
    let log_in = || {
        let mut client = Client::connect_tls(address, &tls).expect("TLS");
        assert_eq!(client.reply().expect("a greeting").code, 220);
        client.expect("EHLO client.test", 250);
        together.wait();
        let code = client.say("AUTH PLAIN AGFsaWNlAHJpZ2h0").code;
        // Told to come later it may, in the same session, until it is let in.
        let tries = (0..).take_while(|_| client.say("AUTH PLAIN AGFsaWNlAHJpZ2h0").code == 454).count();
        (code, tries)
    };
    let mut codes = BTreeMap::<u16, usize>::new();
    thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS).map(|_| scope.spawn(log_in)).collect();
        for client in clients {
            *codes.entry(client.join().expect("a client").0).or_default() += 1;
        }
    });
    println!("{codes:?}");
    assert_eq!(codes.keys().copied().collect::<Vec<_>>(), [235, 454], "{codes:?}");
    assert!(codes[&235] >= 1 && codes[&454] >= 1, "{codes:?}");
    // Nobody else waits for the passwords of others.
    Client::greet(gateway.address(1)).deliver("a@client.test", &["b@mx.test"], b"Subject: x\r\n\r\nx\r\n");
}
