//! `incoming queue`: what the operator sees of the queue of a running gateway, and does with it, across restarts.

mod support;

use std::collections::BTreeSet;
use std::fs;
use std::process::Output;
use std::sync::Arc;
use std::time::Instant;

use incoming::spool::format::{Order, OrderKind};
use incoming::spool::memory_disk::{MemoryDisk, mail};
use incoming::spool::recovery::Recovered;
use incoming::spool::{AppendError, Incoming, Obeyed, Receiving, Spool, SpoolConfig};
use serde_json::Value;
use support::client::Client;
use support::maildir;
use support::moody_store::MoodyStore;
use support::neighbour::Neighbour;
use support::server::Server;
use support::setup::{Setup, incoming};
use support::wait;

/// `incoming queue …`.
fn queue(setup: &Setup, arguments: &[&str]) -> Output {
    let mut command = incoming();
    command.env("NO_COLOR", "1").arg("queue").args(arguments).arg("--config").arg(setup.write());
    command.stdin(std::process::Stdio::null()).output().expect("the binary runs")
}

/// What it writes when it succeeds.
#[track_caller]
fn octets(setup: &Setup, arguments: &[&str]) -> Vec<u8> {
    let output = queue(setup, arguments);
    let err = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {}\n{err}", output.status);
    output.stdout
}

#[track_caller]
fn said(setup: &Setup, arguments: &[&str]) -> String {
    String::from_utf8(octets(setup, arguments)).expect("UTF-8")
}

/// What it complains of.
#[track_caller]
fn complained(setup: &Setup, arguments: &[&str]) -> String {
    let output = queue(setup, arguments);
    assert_eq!(output.status.code(), Some(1), "{arguments:?}");
    String::from_utf8(output.stderr).expect("UTF-8")
}

#[track_caller]
fn listed(setup: &Setup, filters: &[&str]) -> Vec<Value> {
    let lines = said(setup, &[&["list", "--json", "--limit", "0"], filters].concat());
    lines.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

#[track_caller]
fn count(setup: &Setup, filters: &[&str]) -> usize {
    said(setup, &[&["list", "--count"], filters].concat()).trim().parse().expect("a number")
}

fn send(server: &Server, from: &str, to: &[&str], content: &[u8]) -> String {
    Client::greet(server.address()).deliver(from, to, content)
}

#[test]
fn every_command_does_what_it_says_and_restarts_keep_it() {
    let mut setup = Setup::new();
    setup.set("shards", 2).set("delivery.backoff_base", "\"1h\"").set("delivery.backoff_max", "\"4h\"");
    setup.hold_deliveries();
    let server = setup.start();
    // So many connections that both shards have some.
    let content = |n: usize| format!("Subject: {n}\r\n\r\n.{}\r\n", "x".repeat(n * 100)).into_bytes();
    let domain = |n: usize| if n.is_multiple_of(2) { "even.test" } else { "odd.test" };
    let ids: Vec<String> = (0..12)
        .map(|n| {
            let (from, to) = (format!("s{n}@{}", domain(n)), format!("r{n}@mx.test"));
            send(&server, &from, &[&to, "everybody@mx.test"], &content(n))
        })
        .collect();
    wait::until("all were tried", || count(&setup, &["--state", "deferred"]) == ids.len());

    let all = listed(&setup, &[]);
    let found: BTreeSet<&str> = all.iter().map(|message| message["id"].as_str().expect("an id")).collect();
    assert_eq!(found, ids.iter().map(String::as_str).collect());
    for message in &all {
        let target = &message["targets"][0];
        assert_eq!(
            (&target["target"], &target["recipient_count"]),
            (&"store".into(), &2.into()),
            "{message}"
        );
        assert!(target["attempts"].as_u64() >= Some(1) && target["next_attempt"].is_u64(), "{message}");
        assert_eq!(message["peer"], "127.0.0.1");
    }
    let reason = all.iter().find_map(|message| message["targets"][0]["reason"].as_str()).expect("a reason");
    let table: [(&[&str], usize); 20] = [
        (&[], 12),
        (&["--from", "odd.test"], 6),
        (&["--from", "S3@odd.test"], 1),
        (&["--from", "s1*@*.test"], 3),
        (&["--from", "<>"], 0),
        (&["--to", "r7@mx.test"], 1),
        (&["--to", "mx.test"], 12),
        (&["--to", "r?@mx.test", "--from", "even.test"], 5),
        (&["--target", "store"], 12),
        (&["--target", "nothing"], 0),
        (&["--state", "deferred"], 12),
        (&["--state", "held"], 0),
        (&["--state", "in-delivery"], 0),
        (&["--reason", "no such reason"], 0),
        (&["--peer", "127.0.0.0/8"], 12),
        (&["--peer", "192.0.2.1"], 0),
        (&["--size-over", "0"], 12),
        (&["--size-over", "1GB"], 0),
        (&["--older-than", "1h"], 0),
        (&["--target", "store", "--state", "deferred", "--from", "odd.test", "--peer", "127.0.0.1"], 6),
    ];
    for (filters, expected) in table {
        assert_eq!(count(&setup, filters), expected, "{filters:?}");
        assert_eq!(listed(&setup, filters).len(), expected, "{filters:?}");
    }
    assert!(count(&setup, &["--reason", reason]) > 0, "{reason}");
    let table = said(&setup, &["list", "--limit", "5"]);
    assert_eq!(table.lines().filter(|line| line.contains(" deferred ")).count(), 5, "{table}");

    let shown = said(&setup, &["show", &ids[4].to_lowercase()]);
    for part in
        [&ids[4], "s4@even.test", "r4@mx.test, 1 attempts", "127.0.0.1 as client.test", "store: deferred"]
    {
        assert!(shown.contains(part), "no {part} in {shown}");
    }
    let stored = octets(&setup, &["cat", &ids[11]]);
    assert!(stored.starts_with(b"Received: ") && stored.ends_with(&content(11)));

    // ---- hold and drop
    let output = said(&setup, &["hold", &ids[0], &ids[1], "--because", "to be looked at"]);
    assert_eq!(output, "held: 2\n");
    assert_eq!(said(&setup, &["hold", &ids[0]]), "held: 0\nnothing to change: 1\n");
    assert_eq!(count(&setup, &["--state", "held"]), 2);
    let shown = said(&setup, &["show", &ids[0]]);
    assert!(shown.contains("by operator: to be looked at"), "{shown}");
    assert_eq!(said(&setup, &["drop", &ids[2]]), "dropped: 1\n");
    assert_eq!(said(&setup, &["drop", "--from", "s3@odd.test", "--yes"]), "dropped: 1\n");
    for gone in [&ids[2], &ids[3]] {
        let complaint = complained(&setup, &["show", gone]);
        assert!(complaint.contains("is not in the queue"), "{complaint}");
    }
    let output = queue(&setup, &["drop", &ids[2]]);
    assert_eq!(
        (output.status.code(), &output.stdout[..]),
        (Some(1), &b"dropped: 0\nnot in the queue: 1\n"[..])
    );

    // ---- what is not said clearly is not done
    for (arguments, part) in [
        (&["drop"][..], "say which messages are meant"),
        (&["drop", "--all", "--from", "x"], "not two of them"),
        (&["drop", "--from", "even.test"], "5 messages fit: add --yes"),
        (&["list", "--peer", "x"], "expected an address or a network"),
    ] {
        let complaint = complained(&setup, arguments);
        assert!(complaint.contains(part), "{arguments:?}: {complaint}");
    }
    assert_eq!(count(&setup, &[]), 10);

    // ---- restarts, and another number of shards
    drop(Restarted(server));
    for shards in [2, 1, 2] {
        setup.set("shards", shards);
        let server = Restarted(setup.start());
        assert_eq!(count(&setup, &[]), 10, "{shards} shards");
        let held = listed(&setup, &["--state", "held"]);
        let held_ids: BTreeSet<&str> =
            held.iter().map(|message| message["id"].as_str().expect("an id")).collect();
        assert_eq!(held_ids, BTreeSet::from([ids[0].as_str(), &ids[1]]), "{shards} shards");
        assert!(held.iter().all(|message| message["hold"]["note"] == "to be looked at"), "{held:?}");
        drop(server);
    }
    let _server = setup.start();
    setup.release_deliveries();
    let retried = said(&setup, &["retry", "--all", "--yes"]);
    assert!(retried.starts_with("to be tried now: "), "{retried}");
    // Two recipients, one Maildir: a message is there once.
    wait::until("all but the held are delivered", || count(&setup, &[]) == 2);
    let delivered = maildir::count(setup.maildir());
    assert_eq!(said(&setup, &["release", "--state", "held", "--yes"]), "released: 2\n");
    let retried = said(&setup, &["retry", &ids[0], &ids[1]]);
    assert!(retried.starts_with("to be tried now: "), "{retried}");
    wait::until("these are too", || count(&setup, &[]) == 0);
    let per_message = delivered / 8;
    assert_eq!(maildir::count(setup.maildir()), 10 * per_message, "what was dropped is not delivered");
    assert_eq!(setup.dead_letters(), [""; 0], "nothing is kept of what was dropped");
}

/// Killed when it is dropped.
struct Restarted(Server);

impl Drop for Restarted {
    fn drop(&mut self) {
        self.0.kill();
    }
}

/// The store says nothing until it is woken: what it has is in delivery.
#[test]
fn what_a_delivery_has_may_be_held_or_dropped_and_the_others_go_on() {
    let store = MoodyStore::start(true);
    let mut setup = Setup::new();
    setup
        .set("transport.box.type", "\"lmtp\"")
        .set("transport.box.address", format!("\"{}\"", store.address()))
        .set("transport.box.concurrency", 1)
        .set("delivery.transport", "\"box\"")
        .retry_soon();
    let server = setup.start();
    let ids: Vec<String> = (0..3)
        .map(|n| send(&server, "s@client.test", &[&format!("r{n}@mx.test")], b"Subject: x\r\n\r\nx\r\n"))
        .collect();
    wait::until("one is being delivered", || count(&setup, &["--state", "in-delivery"]) > 0);
    assert_eq!(said(&setup, &["drop", &ids[0]]), "dropped: 1\n");
    assert_eq!(said(&setup, &["hold", &ids[1]]), "held: 1\n");
    assert_eq!(count(&setup, &[]), 2);
    store.wake();
    // The place, the memory and the channel are as they were: the others are delivered, the held one since it was on its way.
    wait::until("nothing is left", || count(&setup, &[]) == 0);
    let taken: BTreeSet<String> = store.taken().into_iter().map(|(to, _)| to).collect();
    let has = |n: usize| taken.iter().any(|to| to.contains(&format!("r{n}@")));
    assert_eq!([has(0), has(1), has(2)], [false, true, true], "{taken:?}");
}

/// Messages in the spool before the gateway starts.
const MANY: usize = 200_000;
/// One in so many is large.
const LARGE_ONE_IN: usize = 10;

/// Writes a log with so many messages, all of them held, into the setup's data folder.
fn fill(setup: &Setup) {
    let config = SpoolConfig { segment_size: 16 << 20, sync: true, page_size: 256 << 10, pages_max: 20 };
    let (mut disk, now, mut life) = (MemoryDisk::default(), Instant::now(), 7_u64);
    let entropy = Box::new(move || {
        life = life.wrapping_mul(0x5851_F42D_4C95_7F2D).wrapping_add(1);
        life
    });
    let recovered = Recovered { log: 7, ..Recovered::default() };
    let mut spool = Spool::new(config, recovered, Box::new(move || vec![0; 256 << 10]), entropy, (now, 0));
    let (envelope, arrival) = mail(1);
    let order = Order { kind: OrderKind::Hold, unix_millis: 1, by: "operator".into(), note: "".into() };
    let order = Arc::new(order);
    let mut stored = Vec::new();
    let mut settle = |spool: &mut Spool<_>| {
        while let Some(io) = spool.poll_io(now) {
            let done = disk.perform(io);
            spool.handle_io(done, now);
            while let Some((sequence, is_stored)) = spool.poll_stored() {
                assert!(is_stored);
                stored.push(sequence);
            }
        }
        for sequence in stored.drain(..) {
            assert_eq!(spool.order(sequence, None, &order, now), Obeyed::Yes);
        }
    };
    for n in 0..MANY {
        let content = if n.is_multiple_of(LARGE_ONE_IN) { vec![b'x'; 600] } else { vec![b'x'; 20] };
        let message = Incoming { envelope: &envelope, arrival: &arrival, tail: &content };
        while let Err(error) =
            spool.append_message(&mut Receiving::default(), message, |_| b"Received: x\r\n".to_vec())
        {
            assert_eq!(error, AppendError::Busy);
            settle(&mut spool);
        }
    }
    while !spool.is_idle() {
        spool.finish(now);
        settle(&mut spool);
    }
    assert_eq!((spool.depth(), spool.held_count()), (MANY, MANY));
    let folder = setup.data().join("spool/000");
    fs::create_dir_all(&folder).expect("the log's folder");
    fs::write(setup.data().join("spool/VERSION"), "incoming spool 1\n").expect("the version");
    for (slot, octets) in &disk.files {
        fs::write(folder.join(slot.file_name()), octets).expect("a segment");
    }
}

#[test]
fn a_long_queue_is_listed_and_dropped_from_beside_mail_that_comes_in() {
    let mut setup = Setup::new();
    setup.set("spool.depth_max", 2 * MANY).set("delivery.transport", "\"nothing\"");
    fill(&setup);
    let server = setup.start();
    let neighbour = Neighbour::start(server.address());
    let large = MANY / LARGE_ONE_IN;
    let (ids, felt_listing) = neighbour.feels(|| {
        assert_eq!(count(&setup, &["--state", "held"]), MANY);
        // A look at every message.
        assert_eq!(count(&setup, &["--state", "held", "--size-over", "600"]), large);
        assert_eq!(count(&setup, &["--state", "deferred"]), 0);
        let listed = listed(&setup, &["--state", "held"]);
        listed.iter().map(|message| message["id"].as_str().expect("an id").to_owned()).collect::<Vec<_>>()
    });
    assert_eq!(ids.iter().collect::<BTreeSet<_>>().len(), MANY, "each once");
    let (dropped, felt_dropping) =
        neighbour.feels(|| said(&setup, &["drop", "--state", "held", "--size-over", "600", "--yes"]));
    assert_eq!(dropped, format!("dropped: {large}\n"));
    println!("listing was felt {felt_listing:.1} times, dropping {felt_dropping:.1} times");
    assert_eq!(count(&setup, &["--state", "held"]), MANY - large);
    neighbour.stop();
    drop(Restarted(server));
    let _server = setup.start();
    assert_eq!(count(&setup, &["--state", "held"]), MANY - large, "an acknowledged drop never comes back");
    assert_eq!(said(&setup, &["list", "--limit", "3"]).matches("held by operator").count(), 3);
}
