//! The promise behind 250 where single files fail: short writes, errors, a limit on file sizes, a folder that vanishes.
//!
//! Short writes come about in two ways here, both of which were seen to put a short count into io_uring's completion (Linux
//! 6.18): a FUSE file system that stores half of a write and fails the kernel's own request for the rest, and on ext4 a
//! write that crosses RLIMIT_FSIZE.
//!
//! Needs root: file systems are mounted, each in a temporary folder of its own.

mod support;

use std::fs;
use std::sync::Arc;

use support::disk::Mount;
use support::files::Passed;
use support::ledger::Ledger;
use support::load::Load;
use support::maildir;
use support::tools;
use support::trial::{SESSIONS, assert_temporary, settle, setup_on, wait_for_more};
use support::wait;

/// What the gateway logs when a completion has less than was asked for.
const SHORT_WRITE: &str = "short write";

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
        assert_temporary(&ledger);
        // What is acknowledged now must be on the disk now.
        server.kill();
        passed.heal(fault);
        let balance = settle(&setup, &ledger);
        println!("{fault}: {:?}, {balance}", ledger.refusals());
    }
}

/// Half of each write is stored, in whole blocks: the gateway writes the rest, and acknowledges then.
#[test]
fn a_short_write_is_completed_before_it_is_acknowledged() {
    let passed = Passed::new();
    let setup = setup_on(passed.mount_point());
    let ledger = Arc::new(Ledger::default());
    setup.hold_deliveries();
    let mut server = setup.start();
    let load = Load::start(server.address(), &ledger, SESSIONS);
    wait_for_more(&ledger, &mut server, 20);
    passed.fault("short_once");
    wait_for_more(&ledger, &mut server, 200);
    wait::until("a short write is logged", || server.log().contains(SHORT_WRITE));
    // The file system loses nothing that it said it had: a kill leaves exactly that.
    server.kill();
    load.stop();
    passed.heal("short_once");
    assert_eq!(ledger.refused_count(""), 0, "{:?}", ledger.refusals());
    println!("short writes of blocks: {}", settle(&setup, &ledger));
}

/// Less than a block is stored of some writes, which direct I/O cannot go on from: those are refused.
#[test]
fn a_short_write_that_cannot_be_completed_is_refused() {
    let passed = Passed::new();
    let setup = setup_on(passed.mount_point());
    let ledger = Arc::new(Ledger::default());
    setup.hold_deliveries();
    let mut server = setup.start();
    let load = Load::start(server.address(), &ledger, SESSIONS);
    wait_for_more(&ledger, &mut server, 20);
    passed.fault("short_sector");
    wait::until("the fault is answered", || ledger.refused_count("4") > 0);
    load.stop();
    wait::until("a short write is logged", || server.log().contains(SHORT_WRITE));
    assert_temporary(&ledger);
    server.kill();
    passed.heal("short_sector");
    println!("short writes of sectors: {:?}, {}", ledger.refusals(), settle(&setup, &ledger));
}

/// On ext4: the limit on file sizes falls into the middle of the segment. The write that crosses it is cut short by the
/// kernel, and what is beyond it cannot be written.
#[test]
fn a_write_cut_by_the_file_size_limit_is_refused() {
    let mount = Mount::ext4_in_a_file(128);
    let setup = setup_on(mount.path());
    let ledger = Arc::new(Ledger::default());
    setup.hold_deliveries();
    let mut server = setup.start();
    let load = Load::start(server.address(), &ledger, SESSIONS);
    wait_for_more(&ledger, &mut server, 20);
    // The limit is ahead of what is written so far, and inside a block: every write is of whole blocks, so none can end at
    // the limit, and the one that reaches it is cut.
    let limit = (4 << 20) + 512;
    tools::run("prlimit", ["--pid", &server.pid().to_string(), &format!("--fsize={limit}:")]);
    wait::until("the fault is answered", || ledger.refused_count("4") > 0);
    load.stop();
    wait::until("a short write is logged", || server.log().contains(SHORT_WRITE));
    assert_temporary(&ledger);
    server.kill();
    println!("a file size limit: {:?}, {}", ledger.refusals(), settle(&setup, &ledger));
}

/// Half of each write is stored, and the kernel calls it whole (`tests/faults/passfs.py` says why). The gateway does not
/// know it at the 250; it must find out when it reads, say so, and deliver nothing altered.
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
    assert_temporary(&ledger);
    server.kill();
    passed.heal("short");
    setup.release_deliveries();
    let server = setup.start();
    // Everything from before the fault arrives; the balance refuses whatever was altered.
    wait::until("what is intact is delivered", || maildir::count(setup.maildir()) >= before);
    let balance = ledger.balance(setup.maildir());
    let is_told = server.log().contains("damaged");
    assert!(balance.missing.is_empty() || is_told, "lost in silence: {balance}\n{}", server.log());
    println!("short writes called whole: {balance}");
}

/// The spool's folder goes away under a running gateway: no panic, no false acknowledgement.
#[test]
fn a_spool_on_a_vanished_folder_is_refused_and_not_a_panic() {
    let folder = tempfile::tempdir().expect("a folder");
    let setup = setup_on(folder.path());
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
}
