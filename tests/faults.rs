//! The promise behind 250 on disks that fail: power cuts, failed syncs and writes, full file systems, short writes.
//!
//! Every test follows one pattern: sessions send and keep a ledger, the fault strikes, the gateway starts again on what
//! is left, and every message that was acknowledged must arrive, octet for octet. Deliveries are held while the fault
//! is at work, so that only the spool can have kept them.
//!
//! Needs root: file systems are mounted, each in a temporary folder of its own.

mod support;

use std::fs;
use std::sync::Arc;

use support::disk::{Cut, Disk, FileSystem};
use support::files::Passed;
use support::ledger::{Balance, Ledger};
use support::load::Load;
use support::maildir;
use support::server::Server;
use support::setup::Setup;
use support::tools;
use support::wait;

/// Sessions that send while a fault strikes.
const SESSIONS: usize = 6;

/// Sizes in MB: xfs needs 300, ext4 is content with what a few segments take.
fn size_of(file_system: FileSystem) -> u32 {
    match file_system {
        FileSystem::Ext4 => 128,
        FileSystem::Xfs => 320,
    }
}

/// A gateway with its spool on `folder`, and its Maildir on the healthy root file system.
fn setup_on(folder: impl Into<std::path::PathBuf>) -> Setup {
    let mut setup = Setup::new();
    setup.data_at(folder.into().join("data")).small_segments().retry_soon();
    setup
}

/// Waits until `more` messages were acknowledged beyond those so far; panics if the gateway ends before.
#[track_caller]
fn wait_for_more(ledger: &Ledger, server: &mut Server, more: usize) {
    let wanted = ledger.acknowledged_count() + more;
    wait::until("more messages are acknowledged", || {
        if let Some(status) = server.ended() {
            panic!("the gateway ended: {status}");
        }
        ledger.acknowledged_count() >= wanted
    });
}

/// Starts the gateway again, lets deliveries succeed, and holds the ledger against what arrives.
#[track_caller]
fn settle(setup: &Setup, ledger: &Ledger) -> Balance {
    setup.release_deliveries();
    let mut server = setup.start();
    let balance = ledger.assert_kept(setup.maildir());
    assert!(server.stop().success());
    balance
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
    let refused_count = || ledger.refused_count("45") + ledger.refused_count("421");
    let mut resumed_count = 0;
    wait_for_more(&ledger, &mut server, 20);
    while resumed_count < 3 {
        let before = refused_count();
        disk.fault(fault);
        wait::until("the error is answered", || refused_count() > before);
        // The one error may have met the file system's own journal, which then ends for good. Nothing can be accepted on
        // it any more, and what was acknowledged is there after a reboot.
        let wanted = ledger.acknowledged_count() + 20;
        let is_dead = || std::fs::write(disk.mount_point().join("probe"), "").is_err();
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

/// Short writes and errors of single files, as only a file system in user space has them.
#[test]
fn a_write_or_sync_that_fails_is_never_acknowledged() {
    for fault in ["eio", "enospc", "fsync_eio"] {
        let passed = Passed::new();
        let setup = setup_on(passed.mount_point());
        let ledger = Arc::new(Ledger::default());
        setup.hold_deliveries();
        let mut server = setup.start();
        let load = Load::start(server.address(), &ledger, SESSIONS);
        wait_for_more(&ledger, &mut server, 20);
        passed.fault(fault);
        wait::until("the fault is answered", || !ledger.refusals().is_empty());
        load.stop();
        let refusals = ledger.refusals();
        assert!(refusals.keys().all(|key| key.starts_with('4')), "{fault}: {refusals:?}");
        // What is acknowledged now must be on the disk now.
        server.kill();
        passed.heal(fault);
        let balance = settle(&setup, &ledger);
        println!("{fault}: {refusals:?}, {balance}");
    }
}

/// While this file system stores half of each write, completions of the whole length were seen, and damaged records: a medium that says
/// more than it did. The gateway does not know it at the 250; it must find out when it reads, say so, and deliver nothing altered.
#[test]
fn a_medium_that_calls_a_short_write_whole_is_found_out() {
    let passed = Passed::new();
    let setup = setup_on(passed.mount_point());
    let ledger = Arc::new(Ledger::default());
    setup.hold_deliveries();
    let mut server = setup.start();
    let load = Load::start(server.address(), &ledger, SESSIONS);
    wait_for_more(&ledger, &mut server, 20);
    passed.fault("short");
    let before = ledger.acknowledged_count();
    wait::until("the fault is answered", || {
        !ledger.refusals().is_empty() || ledger.acknowledged_count() > before + 20
    });
    load.stop();
    assert!(ledger.refusals().keys().all(|key| key.starts_with('4')), "{:?}", ledger.refusals());
    server.kill();
    passed.heal("short");
    setup.release_deliveries();
    let server = setup.start();
    // Everything from before the fault arrives; the balance refuses whatever was altered.
    wait::until("what is intact is delivered", || maildir::count(setup.maildir()) >= before);
    let balance = ledger.balance(setup.maildir());
    let is_told = server.log().contains("damaged");
    assert!(balance.missing.is_empty() || is_told, "lost in silence: {balance}\n{}", server.log());
    println!("short: {balance}");
}

/// The spool's folder goes away under a running gateway: no panic, no false acknowledgement.
#[test]
fn a_spool_on_a_vanished_folder_is_refused_and_not_a_panic() {
    let setup = setup_on(tempfile::tempdir().expect("a folder").keep());
    let ledger = Arc::new(Ledger::default());
    let mut server = setup.start();
    fs::remove_dir_all(setup.data().join("spool")).expect("the spool is removed");
    let load = Load::start(server.address(), &ledger, SESSIONS);
    let answered = || !ledger.refusals().is_empty() || ledger.acknowledged_count() > 1000;
    wait::until("it is answered", || answered() || server.ended().is_some());
    load.stop();
    assert!(!server.log().contains("panicked"), "{}", server.log());
    server.kill();
    println!("vanished folder: {:?}, {} delivered", ledger.refusals(), maildir::count(setup.maildir()));
    fs::remove_dir_all(setup.data().parent().expect("its folder")).expect("the folder is removed");
}
