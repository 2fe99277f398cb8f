//! The promise behind 250 on disks that fail: power cuts, failed syncs and writes, full file systems.
//!
//! Every test follows one pattern: sessions send and keep a ledger, the fault strikes, the gateway starts again on what
//! is left, and every message that was acknowledged must arrive, octet for octet. Deliveries are held while the fault
//! is at work, so that only the spool can have kept them.
//!
//! Needs root: file systems are mounted, each in a temporary folder of its own.

mod support;

use std::fs;
use std::os::unix::fs::symlink;
use std::sync::Arc;
use std::time::Duration;

use support::client::{Client, on_the_wire};
use support::disk::{Cut, Disk, FileSystem};
use support::ledger::{self, Ledger};
use support::load::Load;
use support::setup::Setup;
use support::tools;
use support::trial::{SESSIONS, assert_temporary, settle, setup_on, wait_for_more};
use support::wait;

/// Sizes in MB: xfs needs 300, ext4 is content with what a few segments take.
fn size_of(file_system: FileSystem) -> u32 {
    match file_system {
        FileSystem::Ext4 => 128,
        FileSystem::Xfs => 320,
    }
}

fn cuts_keep_every_acknowledged_message(file_system: FileSystem, cut: Cut) {
    let rounds = if tools::is_long() { 50 } else { 3 };
    for round in 0..rounds {
        let mut disk = Disk::new(file_system, size_of(file_system), round);
        let setup = setup_on(disk.mount_point());
        let ledger = Arc::new(Ledger::default());
        setup.hold_deliveries();
        // The power goes twice, the second time in a log that a recovery has been at.
        for moment in [10 + 40 * round as usize % 300, 25] {
            let mut server = setup.start();
            let load = Load::start(server.address(), &ledger, SESSIONS);
            wait_for_more(&ledger, &mut server, moment);
            disk.power_off(cut);
            server.kill();
            load.stop();
            disk.reboot();
        }
        let balance = settle(&setup, &ledger);
        println!("{file_system:?}, {cut:?}, seed {round}: {balance}");
    }
}

#[test]
fn a_power_cut_on_ext4_loses_nothing_acknowledged() {
    cuts_keep_every_acknowledged_message(FileSystem::Ext4, Cut::Drop);
}

#[test]
fn a_torn_power_cut_on_ext4_loses_nothing_acknowledged() {
    cuts_keep_every_acknowledged_message(FileSystem::Ext4, Cut::Torn);
}

#[test]
fn a_power_cut_on_xfs_loses_nothing_acknowledged() {
    cuts_keep_every_acknowledged_message(FileSystem::Xfs, Cut::Drop);
}

#[test]
fn a_torn_power_cut_on_xfs_loses_nothing_acknowledged() {
    cuts_keep_every_acknowledged_message(FileSystem::Xfs, Cut::Torn);
}

/// The disk lies about its flushes: messages must be lost, or the tests above could not fail.
#[test]
fn a_disk_that_lies_is_noticed_by_these_tests() {
    let mut disk = Disk::new(FileSystem::Ext4, size_of(FileSystem::Ext4), 1);
    let setup = setup_on(disk.mount_point());
    let ledger = Arc::new(Ledger::default());
    setup.hold_deliveries();
    let mut server = setup.start();
    disk.fault("lie");
    let load = Load::start(server.address(), &ledger, SESSIONS);
    wait_for_more(&ledger, &mut server, 100);
    disk.power_off(Cut::Drop);
    server.kill();
    load.stop();
    disk.reboot();
    setup.release_deliveries();
    let mut server = setup.start();
    assert!(server.stop().success());
    assert!(!ledger.balance(setup.maildir()).missing.is_empty(), "nothing was lost on a disk that lied");
}

fn one_error_is_answered_451_and_accepting_resumes(file_system: FileSystem, fault: &str) {
    let mut disk = Disk::new(file_system, size_of(file_system), 1);
    let setup = setup_on(disk.mount_point());
    let ledger = Arc::new(Ledger::default());
    setup.hold_deliveries();
    let mut server = setup.start();
    let load = Load::start(server.address(), &ledger, SESSIONS);
    let refused_count = || ledger.refused_count("451") + ledger.refused_count("421");
    let mut resumed_count = 0;
    wait_for_more(&ledger, &mut server, 20);
    while resumed_count < 3 {
        let before = refused_count();
        disk.fault(fault);
        // The one error may meet what nobody waits for, as the preparation of the next segment: mail goes on, and another is due.
        let mut goes_on = ledger.acknowledged_count() + 20;
        wait::until("an error is answered", || {
            let acknowledged = ledger.acknowledged_count();
            if disk.is_on(fault) {
                goes_on = acknowledged + 20;
            } else if acknowledged >= goes_on {
                disk.fault(fault);
            }
            refused_count() > before
        });
        disk.heal(fault);
        // The one error may have met the file system's own journal, which then ends for good. Nothing can be accepted on
        // it any more, and what was acknowledged is there after a reboot.
        let wanted = ledger.acknowledged_count() + 20;
        let is_dead = || fs::write(disk.mount_point().join("probe"), "").is_err();
        wait::until("accepting resumes, or the file system has ended", || {
            ledger.acknowledged_count() >= wanted || is_dead()
        });
        if ledger.acknowledged_count() < wanted {
            break;
        }
        resumed_count += 1;
    }
    load.stop();
    let refusals = ledger.refusals();
    assert!(
        refusals.keys().all(|key| key.starts_with('4')),
        "an infrastructure failure is 4xx: {refusals:?}"
    );
    server.kill();
    if resumed_count < 3 {
        disk.power_off(Cut::Drop);
        disk.reboot();
    }
    let balance = settle(&setup, &ledger);
    println!("{fault} on {file_system:?}: resumed {resumed_count} times, {refusals:?}, {balance}");
}

#[test]
fn a_failed_sync_on_ext4_is_answered_451_and_accepting_resumes() {
    one_error_is_answered_451_and_accepting_resumes(FileSystem::Ext4, "flush_eio_once");
}

#[test]
fn a_failed_sync_on_xfs_is_answered_451_and_accepting_resumes() {
    one_error_is_answered_451_and_accepting_resumes(FileSystem::Xfs, "flush_eio_once");
}

#[test]
fn a_failed_write_on_ext4_is_answered_451_and_accepting_resumes() {
    one_error_is_answered_451_and_accepting_resumes(FileSystem::Ext4, "write_eio_once");
}

/// Every flush fails until further notice. The journal of the file system may end with it: then nothing can be accepted
/// any more, and what was acknowledged before is there after a reboot.
#[test]
fn a_disk_that_syncs_no_more_acknowledges_nothing_and_keeps_the_rest() {
    for file_system in [FileSystem::Ext4, FileSystem::Xfs] {
        let mut disk = Disk::new(file_system, size_of(file_system), 1);
        let setup = setup_on(disk.mount_point());
        let ledger = Arc::new(Ledger::default());
        setup.hold_deliveries();
        let mut server = setup.start();
        let load = Load::start(server.address(), &ledger, SESSIONS);
        wait_for_more(&ledger, &mut server, 50);
        disk.fault("flush_eio");
        wait::until("the error is answered", || !ledger.refusals().is_empty());
        load.stop();
        let refusals = ledger.refusals();
        assert!(refusals.keys().all(|key| key.starts_with('4')), "{refusals:?}");
        let acknowledged = ledger.acknowledged_count();
        // From here on there is nothing to be acknowledged with.
        let load = Load::start(server.address(), &ledger, SESSIONS);
        let refused = ledger.refused_count("4");
        wait::poll(wait::PATIENCE / 10, || (ledger.refused_count("4") > refused + 10).then_some(()));
        load.stop();
        assert_eq!(ledger.acknowledged_count(), acknowledged, "acknowledged without a sync");
        server.kill();
        disk.heal("flush_eio");
        disk.power_off(Cut::Drop);
        disk.reboot();
        println!("flush_eio on {file_system:?}: {refusals:?}, {}", settle(&setup, &ledger));
    }
}

fn a_full_file_system_is_answered_452_and_recovers(file_system: FileSystem) {
    let disk = Disk::new(file_system, size_of(file_system), 1);
    let setup = setup_on(disk.mount_point());
    let ledger = Arc::new(Ledger::default());
    setup.hold_deliveries();
    let mut server = setup.start();
    disk.fill(40 << 20);
    let load = Load::start(server.address(), &ledger, SESSIONS);
    wait::until("the file system is full", || ledger.refused_count("452 4.3.1") > 0);
    load.stop();
    let refusals = ledger.refusals();
    assert!(refusals.keys().all(|key| key.starts_with("45")), "{refusals:?}");
    assert!(server.ended().is_none(), "a full disk ends nobody");
    // Said before the content is sent.
    let reply = Client::greet(server.address()).say("MAIL FROM:<a@client.test> SIZE=10000000");
    assert!(reply.line().starts_with("452 4.3.1"), "{reply:?}");

    // Accepted mail flows out, and with the room it leaves behind accepting resumes by itself.
    setup.release_deliveries();
    ledger.assert_kept(setup.maildir());
    let load = Load::start(server.address(), &ledger, SESSIONS);
    wait_for_more(&ledger, &mut server, 50);
    load.stop();
    println!("full {file_system:?}: {refusals:?}, {}", ledger.assert_kept(setup.maildir()));
    assert!(server.stop().success());
}

#[test]
fn a_full_ext4_is_answered_452_and_recovers() {
    a_full_file_system_is_answered_452_and_recovers(FileSystem::Ext4);
}

#[test]
fn a_full_xfs_is_answered_452_and_recovers() {
    a_full_file_system_is_answered_452_and_recovers(FileSystem::Xfs);
}

/// A flush that does not end: whoever waits for it waits, everybody else is served.
#[test]
fn a_stalled_disk_holds_up_only_who_waits_for_it() {
    let disk = Disk::new(FileSystem::Ext4, size_of(FileSystem::Ext4), 1);
    let setup = setup_on(disk.mount_point());
    let mut server = setup.start();
    let ledger = Ledger::default();
    let [first, second] = [ledger.number(), ledger.number()];
    let mut waiting = Client::greet(server.address());
    let mut other = Client::greet(server.address());
    let replies = waiting.envelope("a@client.test", &["b@mx.test"]).expect("replies");
    assert_eq!(replies.last().map(|reply| reply.code), Some(354));
    disk.fault("stall_flush");
    waiting.send(&on_the_wire(&ledger::content(first))).expect("content is sent");
    for (line, code) in [("NOOP", 250), ("EHLO again.test", 250), ("MAIL FROM:<a@client.test>", 250)] {
        other.expect(line, code);
    }
    other.expect("RCPT TO:<b@mx.test>", 250);
    other.expect("DATA", 354);
    other.send(&on_the_wire(&ledger::content(second))).expect("content is sent");
    let mut third = Client::greet(server.address());
    third.expect("NOOP", 250);
    for client in [&mut waiting, &mut other] {
        assert!(client.is_silent_for(Duration::from_millis(200)), "answered before the flush has ended");
    }
    disk.heal("stall_flush");
    for (client, number) in [(&mut waiting, first), (&mut other, second)] {
        let reply = client.reply().expect("a reply to the content");
        assert_eq!(reply.code, 250, "{reply:?}");
        ledger.acknowledge(number);
    }
    ledger.assert_kept(setup.maildir());
    assert!(server.stop().success());
}

/// Two shards whose logs are on different disks, one of which fails for good: its shard answers 421, the other goes on, and what
/// the first had acknowledged is delivered all the same.
#[test]
fn the_other_shards_go_on_when_one_has_lost_its_disk() {
    let mut disk = Disk::new(FileSystem::Ext4, size_of(FileSystem::Ext4), 1);
    let mut setup = Setup::new();
    setup.small_segments().retry_soon().set("shards", 2);
    let [elsewhere, spool] = [disk.mount_point().join("log"), setup.data().join("spool")];
    fs::create_dir_all(&elsewhere).and_then(|()| fs::create_dir_all(&spool)).expect("folders");
    symlink(&elsewhere, spool.join("001")).expect("a link");
    setup.hold_deliveries();
    let ledger = Arc::new(Ledger::default());
    let mut server = setup.start();
    // The kernel spreads them by chance: of so many some meet the shard that fails.
    let load = Load::start(server.address(), &ledger, 5 * SESSIONS);
    wait_for_more(&ledger, &mut server, 100);
    disk.fault("flush_eio");
    wait::until("the failure is answered", || !ledger.refusals().is_empty());
    let wanted = ledger.acknowledged_count() + 200;
    wait::until("the other shard goes on", || ledger.acknowledged_count() >= wanted);
    load.stop();
    assert_temporary(&ledger);

    wait::until("the failed shard says that it is not ready", || server.log().contains("not ready"));

    // The kernel spreads connections over both. Those that meet the failed shard are told so at once.
    let leave_message = |_| -> std::io::Result<u16> {
        let mut client = Client::connect(server.address())?;
        let greeting = client.reply()?;
        if greeting.code != 220 {
            return Ok(greeting.code);
        }
        for line in ["EHLO client.test", "MAIL FROM:<a@client.test>", "RCPT TO:<b@mx.test>", "DATA"] {
            let reply = client.say(line);
            if reply.code >= 400 {
                return Ok(reply.code);
            }
        }
        let number = ledger.number();
        let reply = client.content(&ledger::content(number))?;
        if reply.code == 250 {
            ledger.acknowledge(number);
        }
        Ok(reply.code)
    };
    let codes: Vec<_> = (0..60).map(|n| leave_message(n).expect("a reply")).collect();
    let is_refused = |code: &u16| *code == 421;
    assert!(codes.iter().all(|code| *code == 250 || is_refused(code)), "{codes:?}");
    assert!(codes.contains(&250) && codes.iter().any(is_refused), "{codes:?}");

    // Reading what the failed disk holds is still possible.
    setup.release_deliveries();
    let balance = ledger.assert_kept(setup.maildir());
    assert!(server.ended().is_none(), "the process goes on");
    server.kill();
    disk.heal("flush_eio");
    disk.power_off(Cut::Drop);
    disk.reboot();
    println!(
        "one shard of two: {:?}, {balance}; after a reboot: {}",
        ledger.refusals(),
        settle(&setup, &ledger)
    );
}
