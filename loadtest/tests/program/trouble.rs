//! Targets that cannot be loaded, and runs that are ended: each is said in words.

use std::net::{SocketAddr, TcpListener};
use std::sync::atomic::Ordering::SeqCst;

use rustix::process::{Pid, Signal, kill_process};

use crate::support::harness;
use crate::support::target::{Behaviour, Target};
use crate::support::wait_for;

#[track_caller]
fn assert_refused(target: SocketAddr, words: &str) {
    let ran = harness::load(target, &["--messages", "10", "--timeout", "300ms"]);
    assert_eq!(ran.code, Some(1), "{ran:?}");
    assert!(ran.stderr.contains(words), "{:?} instead of {words:?}", ran.stderr);
    assert!(ran.stderr.contains(&target.to_string()) && ran.stderr.lines().count() == 1, "{}", ran.stderr);
}

#[test]
fn a_target_that_is_not_there_is_said_to_refuse() {
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    assert_refused(free, "refused");
}

#[test]
fn a_target_that_never_answers_is_said_to_be_silent() {
    // The kernel connects; nobody accepts.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    assert_refused(silent.local_addr().unwrap(), "no reply within 300ms");
}

#[test]
fn a_target_that_does_not_greet_is_told_with_what_it_said() {
    for (greeting, closes, words) in [
        ("554 5.3.2 not today\r\n", false, "554 5.3.2 not today"),
        ("220 hello\r\n", true, "closed before a reply"),
        ("", true, "closed before a reply"),
        ("HTTP/1.1 400 Bad Request\r\n\r\n", false, "HTTP/1.1 400"),
        ("\u{1}\u{2}\u{3}\n", false, "not SMTP"),
    ] {
        let target = Target::start(Behaviour { greeting, closes, ..Behaviour::default() });
        assert_refused(target.address, words);
    }
}

#[test]
fn refusals_are_counted_by_their_code_and_nothing_accepted_is_a_failure() {
    for (replies, phase, code, words) in [
        (&[("MAIL", "451 4.3.0 no\r\n")][..], "mail", 451, "451 4.3.0 no"),
        (&[("RCPT", "550 5.1.1 nobody\r\n"), ("DATA", "554 5.5.1 none\r\n")], "recipient", 550, "nobody"),
        (&[(".", "452 4.3.1 full\r\n")], "end_of_data", 452, "452 4.3.1 full"),
    ] {
        for way in [&["--pipeline"][..], &[]] {
            let target = Target::start(Behaviour { replies, ..Behaviour::default() });
            let ran = harness::load(target.address, &[&["--messages", "20"], way].concat());
            assert_eq!((ran.code, ran.number("/accepted"), ran.number("/failed")), (Some(1), 0, 20));
            let told = ran.report["replies"].as_array().unwrap();
            let told = told.iter().find(|r| r["phase"] == phase && r["code"] == code).expect("it is told");
            assert_eq!(told["count"], 20);
            assert!(told["first"].as_str().unwrap().contains(words), "{told}");
            assert_eq!(target.seen.messages.load(SeqCst), 0);
        }
    }
}

#[test]
fn sigint_ends_a_run_with_a_report_and_a_warning() {
    let target = Target::start(Behaviour::default());
    let running = harness::start(target.address, &["--duration", "1h"]);
    wait_for("messages", || (target.seen.messages.load(SeqCst) > 20).then_some(()));
    kill_process(Pid::from_raw(running.pid() as i32).unwrap(), Signal::INT).unwrap();
    let ran = running.finish();
    assert_eq!(ran.code, Some(0), "{ran:?}");
    assert_eq!(ran.report["is_interrupted"], true);
    assert!(ran.number("/accepted") > 0);
    assert!(ran.stdout.contains("WARNING: the run was ended before its goal"), "{}", ran.stdout);
    // What was begun was brought to its end: nothing was acknowledged that is not counted.
    assert_eq!(ran.number("/accepted"), target.seen.messages.load(SeqCst));
}

#[test]
fn connections_leave_from_their_addresses_in_turn() {
    let target = Target::start(Behaviour::default());
    let words = ["--source", "127.0.0.2-127.0.0.5", "--connections", "8", "--duration", "500ms"];
    let ran = harness::load(target.address, &words);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    let sources = target.seen.sources.lock().unwrap();
    let expected = (2..=5).map(|n| ([127, 0, 0, n].into(), 2)).collect();
    assert_eq!(*sources, expected);
}

#[test]
fn a_connection_has_as_many_messages_as_it_may() {
    for max in [1, 3] {
        let target = Target::start(Behaviour::default());
        let words = ["--messages-per-connection", &max.to_string(), "--messages", "60"];
        let ran = harness::load(target.address, &words);
        assert_eq!((ran.code, ran.number("/accepted")), (Some(0), 60), "{ran:?}");
        let sessions = wait_for("the end of all sessions", || {
            let sessions = target.seen.session_messages.lock().unwrap().clone();
            (sessions.iter().sum::<u64>() == 60).then_some(sessions)
        });
        assert!(sessions.iter().all(|count| *count <= max), "{sessions:?}");
        assert!(
            sessions.iter().filter(|count| **count == max).count() as u64 >= 60 / max - 4,
            "{sessions:?}"
        );
        // One more was the first look.
        assert_eq!(ran.number("/connections") + 1, target.seen.sessions.load(SeqCst));
    }
}
