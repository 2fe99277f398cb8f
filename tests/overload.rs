//! A gateway with more to do than it can, and back: what it asks of peers then, and what the good ones among them feel.

mod support;

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use loadtest::drive::{self, Nobody};
use loadtest::hostile::{Hostile, Scenario};
use loadtest::measure::Phase;
use loadtest::plan::{Goal, Plan};
use support::client::Client;
use support::disk::Mount;
use support::server::Server;
use support::setup::Setup;
use support::tools;
use support::wait;

/// Hostile clients have addresses of their own, as on the internet.
const HOSTILE_ADDRESSES: std::ops::Range<u8> = 64..96;

#[track_caller]
fn wait_for_line(server: &Server, words: &[&str]) {
    wait::until(&format!("the log has a line with {words:?}"), || {
        server.log().lines().any(|line| words.iter().all(|word| line.contains(word)))
    });
}

fn is_calm(server: &Server) -> bool {
    let log = server.log();
    let last = log.lines().rfind(|line| line.contains("is asked of peers"));
    last.is_some_and(|line| line.contains("Calm"))
}

fn loopback(n: u8) -> IpAddr {
    Ipv4Addr::new(127, 0, 0, n).into()
}

#[test]
fn a_siege_is_withstood_by_those_who_send_mail_and_ends_when_it_ends() {
    let mut setup = Setup::new();
    setup.set("sessions_max", 100).set("accept.domains", "[\"mx.test\"]").set("admission.exempt", "[]");
    setup.set("delivery.transport", "\"nothing\"");
    setup.set("admission.busy_greeting_delay", "\"1s\"").set("admission.strained_patience", "\"1s\"");
    let server = setup.start();
    let address = server.address();
    // One who comes anew while it lasts.
    let stop = Arc::new(AtomicBool::new(false));
    let comes_anew = thread::spawn({
        let stop = stop.clone();
        move || {
            let (mut got_in, mut came) = (0, 0);
            while !stop.load(Ordering::Relaxed) {
                came += 1;
                let accepted = Client::connect_from(loopback(7), address).and_then(|mut client| {
                    client.reply()?;
                    client.send(b"EHLO anew.test\r\n")?;
                    client.reply()?;
                    client.transact("anew@client.test", &["inbox@mx.test"], b"hello\r\n")
                });
                got_in += usize::from(accepted.is_ok_and(|reply| reply.code == 250));
                thread::sleep(Duration::from_millis(20));
            }
            (got_in, came)
        }
    });
    let hostile = [
        (Scenario::Hold, 200),
        (Scenario::SlowCommands, 20),
        (Scenario::Reconnect, 4),
        (Scenario::EarlyTalk, 4),
    ];
    let plan = Plan {
        connections: 4,
        rate: Some(50.0),
        goal: Goal::Duration(Duration::from_secs(8)),
        warm_up: Duration::from_secs(1),
        sources: vec![loopback(1)],
        hostile: hostile.map(|(scenario, connections)| Hostile { scenario, connections }).to_vec(),
        hostile_sources: HOSTILE_ADDRESSES.map(loopback).collect(),
        ..Plan::against(address, 0)
    };
    let outcome = drive::run(&plan, &Arc::default(), &mut Nobody).expect("the load runs");
    wait_for_line(&server, &["more is asked of peers", "Strained", "sessions"]);
    stop.store(true, Ordering::Relaxed);
    let (got_in, came) = comes_anew.join().expect("no panic");
    let held = &outcome.hostile[&Scenario::Hold];
    let told = |code: u16| held.replies.get(&code).copied().unwrap_or(0);
    let felt = |quantile| outcome.figures.phase(Phase::EndOfData).value_at_quantile(quantile) as f64 / 1e6;
    println!(
        "good: {} accepted, {} failed, end-of-data to 250 p50 {:.2} ms, p99 {:.2} ms; came anew: {got_in} of {came}; \
         held connections: {} made, told 421 {} times",
        outcome.figures.accepted,
        outcome.figures.failed,
        felt(0.5),
        felt(0.99),
        held.connections,
        told(421)
    );
    // A connection that had nothing to send for longer than the patience is told to go; who works is left alone.
    assert!(outcome.figures.failed <= 4, "{} failed", outcome.figures.failed);
    assert!(outcome.figures.accepted >= 390, "{} of 400", outcome.figures.accepted);
    assert!(got_in > 0, "of {came} who came anew nobody got in");
    assert!(told(421) > 100, "those who say nothing are told to go: {:?}", held.replies);
    wait::until("it is calm again", || is_calm(&server));
    let mut client = Client::greet(address);
    client.deliver("after@client.test", &["inbox@mx.test"], b"all is well\r\n");
    assert!(server.log().contains("Too many sessions, try again later"));
}

#[test]
fn storage_that_stands_still_is_told_and_recovered_from() {
    let mount = Mount::ext4_in_a_file(256);
    let mut setup = Setup::new();
    setup.data_at(mount.path().join("data")).small_segments().set("accept.domains", "[\"mx.test\"]");
    setup.set("admission.storage_wait_max", "\"1s\"");
    let server = setup.start();
    let address = server.address();
    let mut waits = Client::greet(address);
    waits.deliver("first@client.test", &["inbox@mx.test"], b"before\r\n");
    // Writes wait until it is thawed; whatever happens here, it is.
    let point = mount.path();
    let frozen = Frozen::new(point.to_str().expect("a path in UTF-8"));
    waits.envelope("held@client.test", &["inbox@mx.test"]).expect("an envelope");
    waits.send(b"held\r\n.\r\n").expect("content");
    wait_for_line(&server, &["more is asked of peers", "Full", "storage"]);
    let mut refused = Client::connect(address).expect("a connection");
    let reply = refused.reply().expect("a reply");
    assert_eq!(reply.line(), "421 4.3.2 Storage is too slow at the moment, try again later");
    assert!(refused.is_closed());
    wait_for_line(&server, &["refused", "admission", "Storage is too slow"]);
    drop(frozen);
    assert_eq!(waits.reply().expect("what was held is stored").code, 250);
    wait::until("it is calm again", || is_calm(&server));
    Client::greet(address).deliver("after@client.test", &["inbox@mx.test"], b"after\r\n");
}

/// A file system that takes no writes until this is dropped.
struct Frozen<'a>(&'a str);

impl<'a> Frozen<'a> {
    fn new(point: &'a str) -> Self {
        tools::run("fsfreeze", ["--freeze", point]);
        Frozen(point)
    }
}

impl Drop for Frozen<'_> {
    fn drop(&mut self) {
        tools::run("fsfreeze", ["--unfreeze", self.0]);
    }
}
