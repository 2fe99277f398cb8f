//! The order in which things happen, seen from both ends: no 250 is read before a sync of the disk has ended that began after
//! every octet of the message had been written.
//!
//! The disk notes each write with the markers found in its octets, and each flush, with the times at which they began and
//! ended; the client notes when it read each 250. Both use the kernel's monotonic clock.
//!
//! Needs root: a file system is mounted in a temporary folder.

mod support;

use std::collections::HashMap;
use std::fmt;
use std::net::SocketAddr;
use std::thread;

use rustix::time::{ClockId, clock_gettime};
use support::client::{Client, on_the_wire};
use support::disk::{Disk, FileSystem};
use support::setup::Setup;

/// Sessions of each kind, and what each of them sends.
const SESSIONS: usize = 5;
const MESSAGES: usize = 40;

/// Lines of a message's content: less than a block, some blocks, several pieces.
const LINES: [usize; 4] = [4, 60, 4, 1200];

/// A message's name, how many markers are in it, and when its 250 was read.
struct Acknowledged {
    name: String,
    lines: usize,
    at: u64,
}

/// What the disk has noted, in nanoseconds of the monotonic clock.
#[derive(Default)]
struct Trace {
    /// Marker → the end of the first write that held it.
    written: HashMap<String, u64>,
    /// Begin and end of each flush, in order.
    flushes: Vec<(u64, u64)>,
}

/// A 250 that came too early.
#[derive(Debug)]
enum Violation {
    NeverWritten { marker: String },
    NotSyncedBefore { name: String, acknowledged: u64, written: u64, synced: Option<u64> },
}

impl Trace {
    fn parse(text: &str) -> Trace {
        let mut trace = Trace::default();
        for line in text.lines() {
            let words: Vec<_> = line.split(' ').collect();
            let time = |n: usize| words[n].parse().unwrap_or_else(|e| panic!("{line}: {e}"));
            let (begin, end) = (time(1), time(2));
            match words[0] {
                "F" => trace.flushes.push((begin, end)),
                _ => words[3..].iter().for_each(|marker| {
                    trace.written.entry(marker.to_string()).or_insert(end);
                }),
            }
        }
        trace
    }

    /// Is every marker of the message written, then a flush begun, then that ended, then the 250 read?
    fn judge(&self, message: &Acknowledged) -> Result<(), Violation> {
        let mut written = 0;
        for line in 0..message.lines {
            let marker = marker(&message.name, line);
            let Some(end) = self.written.get(&marker) else { return Err(Violation::NeverWritten { marker }) };
            written = written.max(*end);
        }
        let synced = self.flushes.iter().find(|(begin, _)| *begin >= written).map(|(_, end)| *end);
        match synced {
            Some(end) if end <= message.at => Ok(()),
            _ => Err(Violation::NotSyncedBefore {
                name: message.name.clone(),
                acknowledged: message.at,
                written,
                synced,
            }),
        }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Violation::NeverWritten { marker } => write!(f, "{marker} was acknowledged and never written"),
            Violation::NotSyncedBefore { name, acknowledged, written, synced } => write!(
                f,
                "{name}: written at {written}, synced at {synced:?}, acknowledged at {acknowledged}"
            ),
        }
    }
}

fn now() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

fn marker(name: &str, line: usize) -> String {
    format!("<<{name}-{line}>>")
}

/// Every line has its marker twice: where one is cut by the end of a write, the other is not.
fn content(name: &str, lines: usize) -> Vec<u8> {
    let line = |n| format!("{0} of a message that is looked for on the disk {0}\r\n", marker(name, n));
    (0..lines).map(line).collect::<String>().into_bytes()
}

/// One message after the other, each step after the reply to the one before.
fn send_stepwise(address: SocketAddr, messages: &[(String, usize)]) -> Vec<Acknowledged> {
    let mut client = Client::greet(address);
    let send = |(name, lines): &(String, usize)| {
        client.deliver("a@client.test", &["b@mx.test"], &content(name, *lines));
        Acknowledged { name: name.clone(), lines: *lines, at: now() }
    };
    messages.iter().map(send).collect()
}

/// Each message's content together with the envelope of the next.
fn send_pipelined(address: SocketAddr, messages: &[(String, usize)]) -> Vec<Acknowledged> {
    const ENVELOPE: &[u8] = b"MAIL FROM:<a@client.test>\r\nRCPT TO:<b@mx.test>\r\nDATA\r\n";
    let mut client = Client::greet(address);
    client.send(ENVELOPE).expect("the first envelope is sent");
    let mut acknowledged = Vec::new();
    for (n, (name, lines)) in messages.iter().enumerate() {
        let codes = [0; 3].map(|_| client.reply().expect("a reply to the envelope").code);
        assert_eq!(codes, [250, 250, 354]);
        let mut octets = on_the_wire(&content(name, *lines));
        if n + 1 < messages.len() {
            octets.extend_from_slice(ENVELOPE);
        }
        client.send(&octets).expect("content is sent");
        assert_eq!(client.reply().expect("a reply to the content").code, 250);
        acknowledged.push(Acknowledged { name: name.clone(), lines: *lines, at: now() });
    }
    acknowledged
}

/// Sends with several sessions of both kinds; how many were acknowledged, and which of them too early.
fn violations(durability: &str) -> (usize, Vec<Violation>) {
    let disk = Disk::new(FileSystem::Ext4, 256, 1);
    let mut setup = Setup::new();
    setup.data_at(disk.mount_point().join("data")).set("spool.durability", format!("{durability:?}"));
    let mut server = setup.start();
    disk.fault("trace");
    let address = server.address();
    let sessions: Vec<_> = (0..2 * SESSIONS)
        .map(|session| {
            let messages: Vec<_> = (0..MESSAGES)
                .map(|n| (format!("{session}-{n}"), LINES[(session + n) % LINES.len()]))
                .collect();
            thread::spawn(move || match session < SESSIONS {
                true => send_stepwise(address, &messages),
                false => send_pipelined(address, &messages),
            })
        })
        .collect();
    let acknowledged: Vec<_> =
        sessions.into_iter().flat_map(|session| session.join().expect("a session")).collect();
    // A clean end: what is not written yet is now.
    assert!(server.stop().success());
    let trace = Trace::parse(&disk.read_switch("trace"));
    let violations = acknowledged.iter().filter_map(|message| trace.judge(message).err()).collect();
    println!("{durability}: {} acknowledged, {} flushes", acknowledged.len(), trace.flushes.len());
    (acknowledged.len(), violations)
}

#[test]
fn no_250_precedes_the_sync_of_its_message() {
    let (acknowledged, violations) = violations("sync");
    assert_eq!(acknowledged, 2 * SESSIONS * MESSAGES);
    let shown: String = violations.iter().take(10).map(|violation| format!("{violation}\n")).collect();
    assert!(violations.is_empty(), "{} messages:\n{shown}", violations.len());
}

/// Where the gateway is told not to wait for the sync, the test above would fail: it can.
#[test]
fn a_250_that_precedes_its_sync_is_noticed_by_these_tests() {
    let (acknowledged, violations) = violations("none");
    assert!(violations.len() > acknowledged / 2, "{} of {acknowledged} noticed", violations.len());
}
