//! A gateway whose queue is in memory: it says so, it keeps to its bound, and it delivers as any other.

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use support::client::Client;
use support::disk::Mount;
use support::ledger::{self, Ledger};
use support::maildir;
use support::server::Server;
use support::setup::{Setup, incoming};
use support::wait;

const MIB: usize = 1 << 20;

/// Everything is read back from the queue: nothing is delivered from the cache.
fn in_memory() -> Setup {
    let mut setup = Setup::new();
    setup.set("spool.queue", "\"memory\"").set("spool.cache_size", 0).retry_soon();
    setup
}

/// Room for three segments of 8 MiB, and messages that fit.
fn small() -> Setup {
    let mut setup = in_memory();
    setup.set("spool.memory_queue_size", "\"24 MiB\"").set("smtp.message_size_max", "\"1 MiB\"");
    setup
}

/// The messages sent, in the order of their numbers, until one is refused; the reply that refused it.
fn send_until_refused(server: &Server, ledger: &Ledger, octets_max: usize) -> String {
    let mut client = Client::greet(server.address());
    let mut sent = 0;
    while sent < octets_max {
        let number = ledger.number();
        let content = ledger::content(number);
        let reply = client.transact("a@client.test", &["inbox@mx.test"], &content).expect("a reply");
        if reply.code != 250 {
            return reply.line();
        }
        ledger.acknowledge(number);
        sent += content.len();
    }
    panic!("{sent} octets were accepted and none refused");
}

fn memory(server: &Server, name: &str) -> f64 {
    let status = fs::read_to_string(format!("/proc/{}/status", server.pid())).expect("its status");
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).expect(name);
    line.trim().trim_end_matches(" kB").parse::<f64>().expect("a number") * 1024.0
}

#[test]
fn banner_and_log_say_that_it_is_not_durable_and_no_spool_is_made() {
    let setup = in_memory();
    let mut server = setup.start();
    Client::greet(server.address()).deliver("a@client.test", &["inbox@mx.test"], &ledger::content(1));
    wait::until("it is delivered", || maildir::count(setup.maildir()) == 1);
    assert!(server.stop().success());
    let log = server.log();
    let said = "accepted mail does not survive the end of this process";
    let (warnings, others): (Vec<_>, Vec<_>) =
        log.lines().filter(|line| line.contains(said)).partition(|line| line.contains("WARN"));
    assert_eq!((warnings.len(), others.len()), (1, 1), "one warning and the banner\n{log}");
    assert!(!log.contains("dropped"), "everything was delivered\n{log}");
    assert!(!setup.data().join("spool").exists(), "a queue in memory makes no spool");
    assert!(setup.data().join("lock").exists() && setup.data().join("dead").exists());
}

#[test]
fn a_queue_on_disk_is_said_to_be_nothing_else() {
    let setup = Setup::new();
    let mut server = setup.start();
    assert!(server.stop().success());
    assert!(!server.log().contains("does not survive"), "{}", server.log());
}

#[test]
fn mail_is_delivered_octet_for_octet() {
    let mut setup = in_memory();
    setup.set("shards", 2);
    let server = setup.start();
    let ledger = Ledger::default();
    let mut clients: Vec<_> = (0..4).map(|_| Client::greet(server.address())).collect();
    for turn in 0..200 {
        let client = &mut clients[turn % 4];
        let number = ledger.number();
        client.deliver("a@client.test", &["inbox@mx.test"], &ledger::content(number));
        ledger.acknowledge(number);
    }
    let balance = ledger.assert_kept(setup.maildir());
    assert_eq!(balance.duplicates, 0, "{balance}");

    // Larger than a segment: its pieces lie in several.
    let mut large = b"Subject: large\r\n\r\n".to_vec();
    let mut line = 0;
    while large.len() < 50 * MIB {
        large.extend_from_slice(
            format!(".line {line:010} of fifty mebioctets{:0100}\r\n", line * 7).as_bytes(),
        );
        line += 1;
    }
    clients[0].deliver("a@client.test", &["inbox@mx.test"], &large);
    wait::until("the large message is delivered", || maildir::count(setup.maildir()) == 201);
    let delivered = maildir::read(setup.maildir());
    assert!(delivered.iter().any(|stored| stored.content == large), "with other octets");
}

#[test]
fn a_deferred_message_is_tried_again() {
    let setup = in_memory();
    setup.hold_deliveries();
    let server = setup.start();
    let ledger = Ledger::default();
    let mut client = Client::greet(server.address());
    for number in (0..8).map(|_| ledger.number()) {
        client.deliver("a@client.test", &["inbox@mx.test"], &ledger::content(number));
        ledger.acknowledge(number);
    }
    wait::until("a delivery is deferred", || server.log().contains("deferred"));
    setup.release_deliveries();
    let balance = ledger.assert_kept(setup.maildir());
    assert_eq!(balance.duplicates, 0, "{balance}");
}

#[test]
fn a_full_queue_is_answered_452_keeps_to_its_bound_and_recovers() {
    let bound = 24 * MIB;
    let setup = small();
    let server = setup.start();
    let ledger = Ledger::default();
    let at_start = memory(&server, "VmRSS");
    for round in 1..=3 {
        setup.hold_deliveries();
        let refusal = send_until_refused(&server, &ledger, 3 * bound);
        assert!(refusal.starts_with("452 4.3.1"), "round {round}: {refusal}");
        let grown = (memory(&server, "VmHWM") - at_start) / bound as f64;
        println!(
            "round {round}: {} messages, grown by {grown:.2} times the bound",
            ledger.acknowledged_count()
        );
        // The segments, and what the jobs that are tried in vain hold of them.
        assert!((0.5..1.75).contains(&grown), "round {round}: grown by {grown} times the bound");
        setup.release_deliveries();
        ledger.assert_kept(setup.maildir());
        wait::until("it accepts again", || {
            let mut client = Client::greet(server.address());
            let number = ledger.number();
            let reply = client.transact("a@client.test", &["inbox@mx.test"], &ledger::content(number));
            let is_accepted = reply.expect("a reply").code == 250;
            is_accepted.then(|| ledger.acknowledge(number)).is_some()
        });
    }
    let balance = ledger.assert_kept(setup.maildir());
    println!("{balance}");
}

#[test]
fn a_bound_too_small_is_a_start_error() {
    let mut setup = small();
    setup.set("spool.memory_queue_size", "\"23 MiB\"");
    let refused = setup.try_start().err().expect("it does not start");
    assert!(refused.status.is_some_and(|status| !status.success()), "{refused}");
    for words in ["spool.memory_queue_size", "at least 24 MiB", "Raise it"] {
        assert!(refused.log.contains(words), "no {words:?} in\n{}", refused.log);
    }
}

#[test]
fn check_prints_the_queue_and_its_bound() {
    let setup = small();
    let output = incoming().arg("check").arg("--config").arg(setup.write()).output().expect("it runs");
    let printed = String::from_utf8_lossy(&output.stdout);
    for line in ["queue = \"memory\"", "memory_queue_size = \"24 MiB\""] {
        assert!(printed.lines().any(|printed| printed == line), "no {line:?} in\n{printed}");
    }
}

#[test]
fn a_clean_end_says_how_many_messages_are_dropped() {
    let mut setup = in_memory();
    setup.set("shards", 2);
    setup.hold_deliveries();
    let mut server = setup.start();
    for number in 0..7 {
        let mut client = Client::greet(server.address());
        client.deliver("a@client.test", &["inbox@mx.test"], &ledger::content(number));
    }
    assert!(server.stop().success());
    let log = server.log();
    let said = log.lines().find(|line| line.contains("dropped")).unwrap_or_else(|| panic!("{log}"));
    assert!(said.contains("WARN") && said.contains("messages=7"), "{said}");

    setup.release_deliveries();
    let mut server = setup.start();
    assert!(server.stop().success());
    assert_eq!(maildir::count(setup.maildir()), 0, "what was dropped is gone");
}

#[test]
fn a_spool_on_disk_is_told_of_and_left_alone() {
    let mut setup = Setup::new();
    setup.small_segments().retry_soon().hold_deliveries();
    let ledger = Ledger::default();
    let mut server = setup.start();
    let number = ledger.number();
    let content = ledger::content(number);
    Client::greet(server.address()).deliver("a@client.test", &["inbox@mx.test"], &content);
    ledger.acknowledge(number);
    assert!(server.stop().success());
    let spool = setup.data().join("spool");
    let before = tree(&spool);
    let count = before.keys().filter(|path| path.extension().is_some_and(|end| end == "segment")).count();
    assert!(count > 0, "{:?}", before.keys());

    setup.set("spool.queue", "\"memory\"").release_deliveries();
    let mut server = setup.start();
    Client::greet(server.address()).deliver("a@client.test", &["inbox@mx.test"], b"Subject: x\r\n\r\n");
    wait::until("it is delivered", || maildir::count(setup.maildir()) == 1);
    assert!(server.stop().success());
    let log = server.log();
    let said = log.lines().find(|line| line.contains("an earlier run")).unwrap_or_else(|| panic!("{log}"));
    let files = format!("files={count}");
    assert!(said.contains("WARN") && said.contains(&files), "no {files} in {said}");
    assert!(said.contains(&spool.display().to_string()), "{said}");
    assert!(tree(&spool) == before, "the spool on disk was touched");

    setup.set("spool.queue", "\"disk\"");
    let _server = setup.start();
    wait::until("what was left is delivered", || {
        maildir::read(setup.maildir()).iter().any(|stored| stored.content == content)
    });
}

#[test]
fn a_file_system_that_keeps_nothing_will_do() {
    let mount = Mount::new(&["-t", "ramfs", "ramfs"]);
    let mut setup = in_memory();
    setup.data_at(mount.path().join("data"));
    let server = setup.start();
    Client::greet(server.address()).deliver("a@client.test", &["inbox@mx.test"], &ledger::content(1));
    wait::until("it is delivered", || maildir::count(setup.maildir()) == 1);
}

/// The octets of every file below `folder`, and when it was last written.
fn tree(folder: &Path) -> BTreeMap<PathBuf, (Vec<u8>, Duration)> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(folder).expect("a folder") {
        let entry = entry.expect("an entry");
        if entry.file_type().expect("its type").is_dir() {
            found.extend(tree(&entry.path()));
        } else {
            let written = entry.metadata().and_then(|metadata| metadata.modified()).expect("its time");
            let written = written.duration_since(std::time::UNIX_EPOCH).expect("after 1970");
            found.insert(entry.path(), (fs::read(entry.path()).expect("its octets"), written));
        }
    }
    found
}
