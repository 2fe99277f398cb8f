//! Greylisting on the real gateway: who comes back passes, and what is known survives its ends.

mod support;

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use support::client::{Client, Reply};
use support::server::Server;
use support::setup::Setup;
use support::wait;

/// A gateway that takes all mail, and greylists it for two seconds. `settings` are more of the policy's.
fn setup(settings: &str) -> Setup {
    let mut setup = Setup::new();
    setup.set("delivery.transport", "\"nothing\"");
    setup.listeners(&[&format!("[[policy]]\ntype = \"greylist\"\ndelay = \"2s\"\n{settings}")]);
    setup
}

fn file(setup: &Setup) -> PathBuf {
    setup.data().join("greylist/greylist")
}

/// What the first reply is that ends the transaction: to RCPT where it is deferred there.
fn transact(server: &Server, from: &str, to: &str) -> Reply {
    let mut client = Client::greet(server.address());
    client.transact(from, &[to], b"Subject: x\r\n\r\n").expect("a session")
}

#[track_caller]
fn assert_deferred(server: &Server, from: &str, to: &str) {
    let reply = transact(server, from, to);
    assert!(reply.line().starts_with("451 4.7.1 Greylisted, try again in "), "{reply:?}");
}

/// The log is written by a thread of its own.
#[track_caller]
fn wait_for_log(server: &Server, words: &str) {
    wait::until(words, || server.log().contains(words));
}

/// Tries again until it passes.
#[track_caller]
fn wait_to_pass(server: &Server, from: &str, to: &str) {
    wait::until("it passes", || transact(server, from, to).code == 250);
}

/// What was noted is in the file: nothing tells but the file itself.
#[track_caller]
fn wait_until_written(setup: &Setup, records: u64) {
    let size = || fs::metadata(file(setup)).map_or(0, |metadata| metadata.len());
    wait::until("it is written down", || size() >= 32 * (1 + records));
}

#[test]
fn who_comes_back_passes_now_and_after_every_end() {
    let setup = setup("");
    let mut server = setup.start();
    for to in ["one@mx.test", "two@mx.test"] {
        assert_deferred(&server, "a@client.test", to);
    }
    wait_to_pass(&server, "a@client.test", "one@mx.test");
    wait_for_log(&server, "policy=\"greylist\" key=127.0.0.0/24 verdict=\"defer\"");
    // An ordered end writes what happened just before it.
    assert_deferred(&server, "b@client.test", "three@mx.test");
    let deferred = Instant::now();
    assert!(server.stop().success());
    let mut server = setup.start();
    assert_eq!(transact(&server, "a@client.test", "one@mx.test").code, 250);
    wait_to_pass(&server, "a@client.test", "two@mx.test");
    // Three that were deferred, two that passed, and the network as often.
    wait_until_written(&setup, 7);
    server.kill();
    let server = setup.start();
    for to in ["one@mx.test", "two@mx.test"] {
        assert_eq!(transact(&server, "a@client.test", to).code, 250);
    }
    assert_deferred(&server, "a@client.test", "four@mx.test");
    // The waiting of before the two ends was not forgotten: it is over, and would not be had it begun anew.
    wait::until("its time is over", || deferred.elapsed() > Duration::from_millis(2500));
    assert_eq!(transact(&server, "b@client.test", "three@mx.test").code, 250);
}

#[test]
fn what_a_kill_or_a_bad_disk_leaves_is_used() {
    let setup = setup("network_passes_after = 0");
    let mut server = setup.start();
    for to in ["one@mx.test", "two@mx.test", "three@mx.test"] {
        assert_deferred(&server, "a@client.test", to);
    }
    wait_until_written(&setup, 3);
    server.kill();
    // The second is damaged, and another was being written.
    let mut octets = fs::read(file(&setup)).unwrap();
    octets[2 * 32 + 9] ^= 0xff;
    octets.extend([1; 7]);
    fs::write(file(&setup), &octets).unwrap();
    let mut server = setup.start();
    wait_for_log(&server, "is damaged: the rest is used");
    for to in ["one@mx.test", "three@mx.test"] {
        wait_to_pass(&server, "a@client.test", to);
    }
    assert_deferred(&server, "a@client.test", "two@mx.test");
    assert!(server.stop().success());
    assert_eq!(fs::read(file(&setup).with_extension("damaged")).unwrap(), octets);
    let server = setup.start();
    assert!(!server.log().contains("is damaged"), "{}", server.log());
    assert_eq!(transact(&server, "a@client.test", "one@mx.test").code, 250);
}

#[test]
fn notifications_are_deferred_at_data_and_verifiers_never() {
    let setup = setup("");
    let server = setup.start();
    let mut client = Client::greet(server.address());
    client.expect("MAIL FROM:<>", 250);
    client.expect("RCPT TO:<one@mx.test>", 250);
    let reply = client.expect("DATA", 451);
    assert!(reply.text.contains("Greylisted"), "{reply:?}");
    wait_to_pass(&server, "", "one@mx.test");
}

#[test]
fn a_dry_run_defers_nobody_and_says_so() {
    let setup = setup("dry_run = true");
    let server = setup.start();
    assert_eq!(transact(&server, "a@client.test", "one@mx.test").code, 250);
    wait_for_log(&server, "policy=\"greylist\" key=127.0.0.0/24 verdict=\"defer\"");
    wait_for_log(&server, "dry_run=true");
}

#[test]
fn whom_somebody_vouches_for_is_not_asked_about() {
    let mut setup = setup("");
    let before = "[[policy]]\ntype = \"networks\"\nallow = [\"127.0.0.0/8\"]\n";
    let policy = "[[policy]]\ntype = \"greylist\"\n";
    setup.listeners(&[&format!("{before}{policy}")]);
    let mut server = setup.start();
    assert_eq!(transact(&server, "a@client.test", "one@mx.test").code, 250);
    assert!(server.stop().success());
    assert!(!file(&setup).exists());
    setup.listeners(&["trusted = true", policy]);
    let server = setup.start();
    assert_eq!(transact(&server, "a@client.test", "one@mx.test").code, 250);
    let reply =
        Client::greet(server.addresses()[1]).transact("a@client.test", &["one@mx.test"], b"").unwrap();
    assert!(reply.line().starts_with("451 4.7.1 Greylisted, try again in 300 seconds"), "{reply:?}");
}

/// The file of a running gateway is only read by others: `incoming config` and whoever rehearses.
#[test]
fn a_check_of_the_configuration_leaves_the_file_alone() {
    let setup = setup("");
    let server = setup.start();
    assert_deferred(&server, "a@client.test", "one@mx.test");
    wait_until_written(&setup, 1);
    let mut octets = fs::read(file(&setup)).unwrap();
    octets.extend([1; 7]);
    fs::write(file(&setup), &octets).unwrap();
    let config = setup.write();
    let output = support::setup::incoming().arg("check").arg("--config").arg(config).output().unwrap();
    assert!(output.status.success(), "{}", support::tools::said(&output));
    assert_eq!(fs::read(file(&setup)).unwrap(), octets);
    assert_eq!(fs::read_dir(file(&setup).parent().unwrap()).unwrap().count(), 1);
}
