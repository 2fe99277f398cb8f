//! External policy services: postgrey as Debian has it, and one that does whatever a service can do wrong.

mod support;

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use support::client::{Client, Reply};
use support::server::Server;
use support::setup::Setup;
use support::{tools, wait};

/// A service of our own. Dropped, it is ended.
struct Service {
    child: Child,
    address: String,
    log: PathBuf,
}

impl Service {
    /// At `address`, the path of a socket, or `tcp`. `table` has the answers by the recipient's local part.
    fn start(folder: &Path, address: &str, table: &[(&str, &str)]) -> Service {
        let pairs: Vec<_> =
            table.iter().map(|(name, answer)| format!("{name:?}: {}", json(answer))).collect();
        let log = folder.join("requests");
        let mut child = Command::new(tools::program(tools::PYTHON))
            .arg(tools::test_file("policy_service/service.py"))
            .args([address, &format!("{{{}}}", pairs.join(", "))])
            .arg(&log)
            .stdout(Stdio::piped())
            .spawn()
            .expect("service.py is started");
        let mut line = String::new();
        let output = child.stdout.take().expect("it was asked for");
        BufReader::new(output).read_line(&mut line).expect("it says where it listens");
        let address = match address {
            "tcp" => format!("127.0.0.1:{}", line.trim()),
            path => path.into(),
        };
        Service { child, address, log }
    }

    /// What it was asked so far: the number of the connection, and the request as JSON.
    fn requests(&self) -> Vec<(u64, String)> {
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        let split = |line: &str| {
            let (number, rest) = line.strip_prefix('[')?.split_once(", ")?;
            Some((number.parse().ok()?, rest.to_string()))
        };
        log.lines().filter_map(split).collect()
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn json(text: &str) -> String {
    let escaped: String = text
        .chars()
        .map(|c| match c {
            ' '..='~' if c != '"' && c != '\\' => c.to_string(),
            c => format!("\\u{:04x}", c as u32),
        })
        .collect();
    format!("\"{escaped}\"")
}

/// A gateway of one shard that asks `address`. `settings` are more of the policy's.
fn setup(address: &str, settings: &str) -> Setup {
    let mut setup = Setup::new();
    setup.set("delivery.transport", "\"nothing\"");
    setup.listeners(&[&format!("[[policy]]\ntype = \"policy_service\"\naddress = {address:?}\n{settings}")]);
    setup
}

/// A transaction, command by command, as far as it comes.
fn transact(server: &Server, to: &str) -> Reply {
    let mut client = Client::greet(server.address());
    for command in ["MAIL FROM:<a@client.test>", &format!("RCPT TO:<{to}>"), "DATA"] {
        let reply = client.say(command);
        if reply.code >= 400 {
            return reply;
        }
    }
    client.content(b"Subject: x\r\n\r\n").expect("a session")
}

/// The log is written by a thread of its own.
#[track_caller]
fn wait_for_log(server: &Server, words: &str, count: usize) {
    wait::until(words, || server.log().matches(words).count() >= count);
}

const FAILED: &str = "451 4.3.0 Temporary lookup failure, try again later";

#[test]
fn every_action_does_what_the_table_says() {
    let accepted = "250 2.0.0 Ok: queued as";
    let long = format!("action=REJECT {}\n\n", "x".repeat(5000));
    let text = format!("action=DEFER {}\x1b\u{e9}\n\n", "y".repeat(50));
    let shown = format!("451 4.7.1 {}??", "y".repeat(50));
    let table = [
        ("ok", "action=OK\n\n", accepted),
        ("dunno", "action=DUNNO\n\n", accepted),
        ("reject", "action=REJECT Go away\n\n", "550 5.7.1 Go away"),
        ("unknown", "action=550 5.1.1 Nobody here\n\n", "550 5.1.1 Nobody here"),
        ("defer", "action=DEFER\n\n", "451 4.7.1 Access denied for now, try again later"),
        ("later", "action=DEFER_IF_PERMIT 4.2.0 Greylisted\n\n", "451 4.2.0 Greylisted"),
        ("busy", "action=421 4.7.0 Too busy\n\n", "421 4.7.0 Too busy"),
        ("header", "action=PREPEND X-Seen: yes\n\n", accepted),
        ("warn", "action=WARN look\x1bhere\n\n", accepted),
        ("hold", "action=HOLD\n\n", FAILED),
        ("discard", "action=DISCARD\n\n", FAILED),
        ("text", &text, &shown),
        ("crlf", "action=REJECT no\r\n\r\n", "550 5.7.1 no"),
        ("last", "action=REJECT and closed\n\n!close", "550 5.7.1 and closed"),
        ("after", "action=OK\n\n", accepted),
        ("closes", "!close", FAILED),
        ("half", "action=O!close", FAILED),
        ("line", "action=OK\n!close", FAILED),
        ("greets", "220 mx ESMTP\r\n\r\n", FAILED),
        ("chatty", "action=OK\n\naction=OK\n\n", FAILED),
        ("two", "action=OK\naction=REJECT\n\n", FAILED),
        ("none", "\n", FAILED),
        ("word", "action=check_helo_access\n\n", FAILED),
        ("long", &long, FAILED),
        ("again", "action=REJECT well again\n\n", "550 5.7.1 well again"),
    ];
    let folder = tempfile::tempdir().unwrap();
    let answers = table.map(|(name, answer, _)| (name, answer));
    let service = Service::start(folder.path(), "tcp", &answers);
    let mut setup = setup(&service.address, "failures_max = 0");
    setup.set("smtp.errors_max", "100");
    let server = setup.start();
    for (name, answer, expected) in table {
        let reply = transact(&server, &format!("{name}@mx.test"));
        assert!(reply.line().starts_with(expected), "{name}, {answer:?}: {reply:?}");
    }
    for words in [
        "policy=\"policy_service\" key= verdict=\"reject\"",
        "text=\"look?here\"",
        "asks for HOLD, which is not done here",
        "closed within an answer",
        "answers more than was asked",
        "an answer of more than 4096 octets",
        "which is no action",
    ] {
        wait_for_log(&server, words, 1);
    }
    wait_for_log(&server, "taken as DUNNO", 1);
}

#[test]
fn every_phase_is_told_what_is_known_over_one_connection() {
    let folder = tempfile::tempdir().unwrap();
    let service = Service::start(folder.path(), "tcp", &[]);
    let settings =
        "at = [\"connect\", \"hello\", \"mail\", \"recipient\", \"data\", \"message\"]\ncontext = \"mx\"";
    let setup = setup(&service.address, settings);
    let server = setup.start();
    assert_eq!(transact(&server, "one@mx.test").code, 250);
    let requests = service.requests();
    let states = ["CONNECT", "EHLO", "MAIL", "RCPT", "DATA", "END-OF-MESSAGE"];
    assert_eq!(requests.len(), states.len(), "{requests:?}");
    for ((number, request), state) in requests.iter().zip(states) {
        assert_eq!(*number, 1, "a connection is used again");
        for part in [
            &format!("\"protocol_state\": \"{state}\""),
            "\"request\": \"smtpd_access_policy\"",
            "\"client_address\": \"127.0.0.1\"",
            "\"policy_context\": \"mx\"",
        ] {
            assert!(request.contains(part), "{part} is not in {request}");
        }
    }
    let last = &requests[5].1;
    for part in [
        "\"size\": \"14\"",
        "\"sender\": \"a@client.test\"",
        "\"recipient\": \"one@mx.test\"",
        "\"recipient_count\": \"1\"",
    ] {
        assert!(last.contains(part), "{part} is not in {last}");
    }
}

/// One shard: while a session waits for the service, another has its whole transaction.
#[test]
fn a_service_that_hangs_costs_its_own_session_its_timeout_and_nobody_else_anything() {
    let folder = tempfile::tempdir().unwrap();
    let service = Service::start(folder.path(), "tcp", &[("hangs", "action=!hang")]);
    let setup = setup(&service.address, "timeout = \"3s\"");
    let server = setup.start();
    let mut waits = Client::greet(server.address());
    waits.expect("MAIL FROM:<a@client.test>", 250);
    let began = Instant::now();
    waits.send(b"RCPT TO:<hangs@mx.test>\r\n").unwrap();
    wait::until("it is asked", || service.requests().len() == 1);
    assert_eq!(transact(&server, "ok@mx.test").code, 250);
    assert!(waits.is_silent_for(Duration::from_millis(100)), "it still waits, when the other is done");
    assert_eq!(waits.reply().unwrap().line(), FAILED);
    assert!(began.elapsed() >= Duration::from_secs(3));
    wait_for_log(&server, "no answer within 3s", 1);
    // Its connection is owed an answer: it was not used again.
    let numbers: Vec<_> = service.requests().into_iter().map(|(number, _)| number).collect();
    assert_eq!(numbers, [1, 2]);
}

#[test]
fn a_service_that_dies_is_left_alone_and_found_again() {
    for (on_error, without) in [("defer", FAILED), ("ignore", "250 2.0.0 Ok: queued as")] {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let path = path.to_str().unwrap();
        let start = || Service::start(folder.path(), path, &[("no", "action=REJECT no\n\n")]);
        let service = start();
        let settings = format!("on_error = {on_error:?}\nfailures_max = 3\nretry_interval = \"2s\"");
        let setup = setup(path, &settings);
        let server = setup.start();
        assert_eq!(transact(&server, "no@mx.test").line(), "550 5.7.1 no");
        drop(service);
        fs::remove_file(path).unwrap();
        for _ in 0..4 {
            let reply = transact(&server, "no@mx.test").line();
            assert!(reply.starts_with(without), "{on_error}: {reply}");
        }
        wait_for_log(&server, "it is left alone", 1);
        wait_for_log(&server, "has failed again and again: not asked for", 1);
        wait_for_log(&server, "cannot connect", 4);
        // The probe fails, and it stays open.
        wait::until("a probe has failed", || {
            transact(&server, "no@mx.test");
            server.log().matches("cannot connect").count() > 4
        });
        let service = start();
        wait::until("it is asked again", || transact(&server, "no@mx.test").line() == "550 5.7.1 no");
        wait_for_log(&server, "policy service answers again", 1);
        assert_eq!(server.log().matches("it is left alone").count(), 1);
        assert_eq!(transact(&server, "no@mx.test").line(), "550 5.7.1 no");
        drop(service);
    }
}

/// Connections of a service that restarts are stale: nobody is deferred for it.
#[test]
fn a_service_that_restarts_is_not_missed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("socket");
    let path = path.to_str().unwrap();
    let start = || Service::start(folder.path(), path, &[("no", "action=REJECT no\n\n")]);
    let mut service = start();
    let setup = setup(path, "");
    let server = setup.start();
    for _ in 0..3 {
        assert_eq!(transact(&server, "no@mx.test").line(), "550 5.7.1 no");
        drop(service);
        fs::remove_file(path).unwrap();
        service = start();
    }
    assert_eq!(transact(&server, "no@mx.test").line(), "550 5.7.1 no");
    assert!(!server.log().contains("could not decide"), "{}", server.log());
}

#[test]
fn guards_do_not_ask_about_the_trusted_and_others_do() {
    let folder = tempfile::tempdir().unwrap();
    let service = Service::start(folder.path(), "tcp", &[("no", "action=REJECT no\n\n")]);
    for (strangers_only, code) in [(true, 250), (false, 550)] {
        let mut setup = setup(&service.address, "");
        let policy = format!("[[policy]]\ntype = \"policy_service\"\naddress = {:?}", service.address);
        setup.listeners(&[&format!("trusted = true\n{policy}\nstrangers_only = {strangers_only}")]);
        let server = setup.start();
        assert_eq!(transact(&server, "no@mx.test").code, code);
    }
}

// ---- postgrey

struct Postgrey(Child);

impl Drop for Postgrey {
    fn drop(&mut self) {
        // It has no children: what it binds and writes is in the test's folder.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// In the foreground, with a database of its own, and a delay of two seconds.
fn postgrey(folder: &Path, listen: &str) -> Postgrey {
    let database = folder.join("database");
    fs::create_dir_all(&database).unwrap();
    let log = File::create(folder.join("postgrey")).unwrap();
    let child = Command::new(tools::program("postgrey"))
        .args([listen, "--delay=2", "--user=root", "--group=root", "--auto-whitelist-clients=0"])
        .arg(format!("--dbdir={}", database.display()))
        .stdin(Stdio::null())
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .spawn()
        .expect("postgrey is started");
    Postgrey(child)
}

#[test]
fn postgrey_greylists() {
    for is_unix in [false, true] {
        let folder = tempfile::tempdir().unwrap();
        let (listen, address) = match is_unix {
            true => {
                let path = folder.path().join("socket").display().to_string();
                (format!("--unix={path}"), path)
            }
            // postgrey takes no port of the kernel's choice: one that was free a moment ago.
            false => {
                let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
                (format!("--inet={free}"), free.to_string())
            }
        };
        let setup = setup(&address, "timeout = \"20s\"\nfailures_max = 0");
        let server = setup.start();
        let _postgrey = postgrey(folder.path(), &listen);
        // Until it listens nobody is let through.
        let mut first = transact(&server, "one@mx.test");
        wait::until("postgrey answers", || {
            first = transact(&server, "one@mx.test");
            first.line() != FAILED
        });
        assert!(first.line().starts_with("451 4.2.0 Greylisted"), "{first:?}");
        wait::until("postgrey lets it pass", || transact(&server, "one@mx.test").code == 250);
        // It has put a header before the first that passed, which is said once; now it has nothing to say.
        assert_eq!(transact(&server, "one@mx.test").code, 250);
        wait_for_log(&server, "taken as DUNNO", 1);
        assert!(transact(&server, "two@mx.test").line().starts_with("451 4.2.0 Greylisted"));
    }
}
