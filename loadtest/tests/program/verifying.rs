//! What a server does to messages that it acknowledged is found out, each of them and no other.

use std::fs;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use crate::support::harness::{self, Ran};
use crate::support::target::{Behaviour, Maildir, Store, Target};

/// Messages sent, and of how many one is spoilt.
const MESSAGES: u64 = 10_000;
const EVERY: u64 = 1000;

struct Trial {
    folder: tempfile::TempDir,
    maildir: Arc<Maildir>,
    /// The names of messages that were spoilt.
    spoilt: Arc<Mutex<Vec<String>>>,
}

impl Trial {
    fn new() -> Self {
        Trial { folder: tempfile::tempdir().unwrap(), maildir: Maildir::new(), spoilt: Arc::default() }
    }

    fn ledger(&self) -> PathBuf {
        self.folder.path().join("run.ledger")
    }

    /// A run of messages of `size` against a target that calls `spoil` for every so manieth message instead of
    /// delivering it.
    #[track_caller]
    fn run(&self, size: &str, spoil: impl Fn(&Maildir, &[u8]) + Send + Sync + 'static) {
        let (maildir, spoilt) = (self.maildir.clone(), self.spoilt.clone());
        let store: Store = Box::new(move |n, content| {
            if n % EVERY == 0 {
                spoilt.lock().unwrap().push(id(content));
                spoil(&maildir, content);
            } else {
                maildir.deliver(content);
            }
        });
        let target = Target::start(Behaviour { store, ..Behaviour::default() });
        let ledger = self.ledger();
        let words = ["--messages", &MESSAGES.to_string(), "--size", size, "--pipeline", "--ledger"];
        let ran = harness::load(target.address, &[&words[..], &[ledger.to_str().unwrap()]].concat());
        assert_eq!((ran.code, ran.number("/accepted")), (Some(0), MESSAGES), "{ran:?}");
    }

    #[track_caller]
    fn verify(&self, words: &[&str]) -> Ran {
        harness::verify(&self.ledger(), self.maildir.path(), &[&["--list", "100"], words].concat())
    }

    /// The names of what was spoilt, ascending.
    fn spoilt(&self) -> Vec<String> {
        let mut ids = self.spoilt.lock().unwrap().clone();
        ids.sort();
        assert_eq!(ids.len() as u64, MESSAGES / EVERY);
        ids
    }
}

fn id(content: &[u8]) -> String {
    String::from_utf8_lossy(&content["X-Loadtest-Id: ".len()..][..21]).into_owned()
}

#[track_caller]
fn assert_counts(ran: &Ran, missing: u64, duplicated: u64, altered: u64) {
    let counts = ["/missing", "/duplicated", "/altered"].map(|path| ran.number(path));
    assert_eq!(counts, [missing, duplicated, altered], "{}", ran.stdout);
    assert_eq!(ran.number("/acknowledged"), MESSAGES);
    assert_eq!(ran.number("/unacknowledged") + ran.number("/nameless") + ran.number("/other_runs"), 0);
}

#[test]
fn each_message_that_was_acknowledged_and_dropped_is_found() {
    let trial = Trial::new();
    trial.run("400", |_, _| ());
    let ran = trial.verify(&[]);
    assert_eq!(ran.code, Some(1));
    assert_counts(&ran, 10, 0, 0);
    assert_eq!(ran.ids("first_missing"), trial.spoilt());
    // For people it says the same.
    let (ledger, maildir) = (trial.ledger(), trial.maildir.path().to_owned());
    let words = ["verify", "--ledger", ledger.to_str().unwrap(), "--export", maildir.to_str().unwrap()];
    let ran = harness::program(&[&words[..], &["--list", "2"]].concat());
    assert_eq!(ran.code, Some(1));
    for id in &trial.spoilt()[..2] {
        assert!(ran.stdout.contains(id.as_str()), "{}", ran.stdout);
    }
    assert!(ran.stdout.contains("and 8 more"), "{}", ran.stdout);
}

#[test]
fn each_message_of_which_one_octet_was_altered_is_found_and_where() {
    let trial = Trial::new();
    trial.run("400", |maildir, content| {
        let mut content = content.to_vec();
        content[250] ^= 0x20;
        maildir.deliver(&content);
    });
    let ran = trial.verify(&[]);
    assert_eq!(ran.code, Some(1));
    assert_counts(&ran, 0, 0, 10);
    assert_eq!(ran.ids("first_altered"), trial.spoilt());
    for altered in ran.report["first_altered"].as_array().unwrap() {
        assert_eq!(altered["found"]["octet"], 250);
    }
}

#[test]
fn each_message_whose_middle_is_of_another_is_found() {
    let trial = Trial::new();
    let last: Mutex<Vec<u8>> = Mutex::new(vec![b'x'; 4096]);
    trial.run("4KiB", move |maildir, content| {
        let mut last = last.lock().unwrap();
        let mixed = [&content[..1024], &last[1024..3072], &content[3072..]].concat();
        *last = content.to_vec();
        maildir.deliver(&mixed);
    });
    let ran = trial.verify(&[]);
    assert_eq!(ran.code, Some(1));
    assert_counts(&ran, 0, 0, 10);
    assert_eq!(ran.ids("first_altered"), trial.spoilt());
}

#[test]
fn each_message_that_was_truncated_is_found_with_its_size() {
    let trial = Trial::new();
    trial.run("400", |maildir, content| drop(maildir.deliver(&content[..300])));
    let ran = trial.verify(&[]);
    assert_eq!(ran.code, Some(1));
    assert_counts(&ran, 0, 0, 10);
    assert_eq!(ran.ids("first_altered"), trial.spoilt());
    for altered in ran.report["first_altered"].as_array().unwrap() {
        assert_eq!((&altered["found"]["size"], &altered["found"]["expected"]), (&300.into(), &400.into()));
    }
}

#[test]
fn each_message_that_was_delivered_twice_is_found_and_is_a_fault_only_if_asked_for() {
    let trial = Trial::new();
    trial.run("400", |maildir, content| {
        maildir.deliver(content);
        maildir.deliver(content);
    });
    let ran = trial.verify(&[]);
    assert_eq!(ran.code, Some(0));
    assert_counts(&ran, 0, 10, 0);
    assert_eq!(ran.ids("first_duplicated"), trial.spoilt());
    assert_eq!(trial.verify(&["--no-duplicates"]).code, Some(1));
}

#[test]
fn a_ledger_or_a_folder_that_is_not_there_is_said_by_name() {
    let trial = Trial::new();
    let gone = trial.folder.path().join("gone");
    let (maildir, gone) = (trial.maildir.path().to_str().unwrap(), gone.to_str().unwrap());
    let ran = harness::program(&["verify", "--ledger", gone, "--maildir", maildir]);
    assert_eq!(ran.code, Some(1));
    assert!(ran.stderr.contains(gone), "{}", ran.stderr);
    fs::write(trial.ledger(), "no ledger\n").unwrap();
    let ledger = trial.ledger();
    let ran = harness::program(&["verify", "--ledger", ledger.to_str().unwrap(), "--maildir", maildir]);
    assert_eq!(ran.code, Some(1));
    assert!(ran.stderr.contains("line 1: not a ledger"), "{}", ran.stderr);
}
