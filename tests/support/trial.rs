//! The steps that tests of faults share: sessions send and keep a ledger, the fault strikes, the gateway starts again on
//! what is left, and every message that was acknowledged must arrive, octet for octet.

use std::path::PathBuf;

use super::ledger::{Balance, Ledger};
use super::server::Server;
use super::setup::Setup;
use super::wait;

/// Sessions that send while a fault strikes.
pub const SESSIONS: usize = 6;

/// A gateway with its spool on `folder`, and its Maildir on the healthy root file system.
pub fn setup_on(folder: impl Into<PathBuf>) -> Setup {
    let mut setup = Setup::new();
    setup.data_at(folder.into().join("data")).small_segments().retry_soon();
    // Not every file system that is tried has sockets.
    let socket = setup.home().join("admin.sock");
    setup.set("admin.socket", format!("{socket:?}"));
    setup
}

/// Waits until `more` messages were acknowledged beyond those so far; panics if the gateway ends before.
#[track_caller]
pub fn wait_for_more(ledger: &Ledger, server: &mut Server, more: usize) {
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
pub fn settle(setup: &Setup, ledger: &Ledger) -> Balance {
    setup.release_deliveries();
    let mut server = setup.start();
    let balance = ledger.assert_kept(setup.maildir());
    assert!(server.stop().success());
    balance
}

/// Panics unless every refusal is temporary: an infrastructure failure is 4xx.
#[track_caller]
pub fn assert_temporary(ledger: &Ledger) {
    let refusals = ledger.refusals();
    assert!(
        refusals.keys().all(|key| key.starts_with('4')),
        "an infrastructure failure is 4xx: {refusals:?}"
    );
}
