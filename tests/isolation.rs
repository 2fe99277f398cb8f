//! Targets beside each other: one that hangs or is gone takes nothing from another, is left alone, and has all of its mail when it is
//! back.

mod support;

use std::collections::BTreeSet;
use std::fs;

use support::client::Client;
use support::ledger;
use support::moody_store::MoodyStore;
use support::server::Server;
use support::setup::Setup;
use support::{maildir, wait};

/// Mail for `hung.test` goes to `store`, all other into the Maildir.
fn beside(store: &MoodyStore, timeout: &str) -> Setup {
    let mut setup = Setup::new();
    setup
        .retry_soon()
        .set("transport.hung.type", "\"lmtp\"")
        .set("transport.hung.address", format!("\"{}\"", store.address()))
        .set("transport.hung.command_timeout", format!("{timeout:?}"))
        .set("transport.hung.concurrency", 4)
        .set("transport.hung.breaker_failures", 4)
        .set("transport.hung.breaker_interval", "\"1s\"")
        .set("route", "[{ recipients = [\"hung.test\"], to = [\"hung\"] }]");
    setup
}

fn send(server: &Server, recipient: &str, numbers: std::ops::Range<u64>) {
    let mut client = Client::greet(server.address());
    for number in numbers {
        client.deliver("a@client.test", &[recipient], &ledger::content(number));
    }
}

#[test]
fn mail_passes_a_target_that_hangs_also_after_a_restart() {
    let store = MoodyStore::start(true);
    let mut setup = beside(&store, "1h");
    // Fewer than wait: neither channel nor memory holds them all.
    setup.set("delivery.channel_size", 50).set("spool.cache_size", "\"64 KiB\"");
    let mut server = setup.start();
    send(&server, "x@hung.test", 0..400);
    send(&server, "x@mx.test", 400..600);
    wait::until("what is for others is delivered", || maildir::count(setup.maildir()) == 200);
    assert_eq!(store.connections(), 4, "as many as it has places");
    server.kill();

    let mut server = setup.start();
    send(&server, "x@mx.test", 600..700);
    wait::until("also after a restart", || maildir::count(setup.maildir()) >= 300);
    assert_eq!(store.count(), 0);
    store.wake();
    wait::until("what has waited is delivered", || {
        store.taken().iter().map(|(_, content)| content.clone()).collect::<BTreeSet<_>>().len() == 400
    });
    assert!(server.stop().success());
    assert!(server.log().contains("depth=0"), "{}", server.log());
}

#[test]
fn a_target_that_fails_is_left_alone_and_has_its_mail_when_it_is_back() {
    let store = MoodyStore::start(true);
    let mut setup = beside(&store, "1s");
    // Whoever waits for a time of its own would wait for hours.
    setup.set("delivery.backoff_base", "\"1h\"").set("delivery.backoff_max", "\"4h\"");
    let mut server = setup.start();
    send(&server, "x@hung.test", 0..300);
    wait::until("it is left alone", || server.log().contains("it is left alone"));
    let before = store.connections();
    assert!(before <= 2 * 4, "{before} connections");
    wait::until("it is probed", || store.connections() >= before + 2);
    assert!(store.connections() < 50, "and no more than that: {}", store.connections());
    send(&server, "x@hung.test", 300..310);
    store.wake();
    wait::until("it has its mail", || store.count() >= 310);
    wait::until("the log says so", || server.log().contains("the target is back"));
    assert!(server.stop().success());
    let contents: BTreeSet<_> = store.taken().into_iter().map(|(_, content)| content).collect();
    assert_eq!((store.count(), contents.len()), (310, 310), "each once");
}

#[test]
fn senders_are_told_what_they_asked_for_and_the_null_reverse_path_never() {
    let store = MoodyStore::start(false);
    let mut setup = beside(&store, "1m");
    let notices = setup.home().join("notices");
    setup
        .set("transport.notices.path", format!("{notices:?}"))
        .set("notifications.transport", "\"notices\"")
        .set("notifications.hourly_max_per_domain", 3);
    let mut server = setup.start();
    let mut client = Client::greet(server.address());
    let offer = client.say("EHLO client.test");
    assert!(offer.text.lines().any(|line| line == "DSN"), "{offer:?}");
    let mut send = |from: &str, recipients: &[&str]| {
        client.expect(&format!("MAIL FROM:{from}"), 250);
        recipients.iter().for_each(|to| drop(client.expect(&format!("RCPT TO:{to}"), 250)));
        client.expect("DATA", 354);
        assert_eq!(client.content(b"Subject: about\r\n\r\nhello\r\n").expect("a reply").code, 250);
    };
    send("<>", &["<no-one@hung.test>"]);
    send("<never@sender.test>", &["<no-one@hung.test> NOTIFY=NEVER"]);
    send("<failed@sender.test> ENVID=QQ314", &["<no-one@hung.test>", "<some@hung.test>", "<some@mx.test>"]);
    send("<asked@sender.test>", &["<some@hung.test> NOTIFY=SUCCESS"]);
    wait::until("there are four dead letters or deliveries", || {
        store.count() == 2 && setup.dead_letters().len() == 3
    });
    wait::until("two are told", || maildir::count(&notices) == 2);
    send("<third@sender.test>", &["<no-one@hung.test>"]);
    send("<fourth@sender.test>", &["<no-one@hung.test>"]);
    send("<first@other.test>", &["<no-one@hung.test>"]);
    wait::until("the others are told, but for one too many", || maildir::count(&notices) == 4);
    wait::until("which the log has", || server.log().contains("there are too many notifications"));
    assert!(server.stop().success());
    let files =
        fs::read_dir(notices.join("new")).expect("a Maildir").map(|file| file.expect("a file").path());
    let told: Vec<_> = files.map(|file| fs::read_to_string(file).expect("a notification")).collect();
    assert!(told.iter().all(|notice| notice.starts_with("Return-Path: <>\r\n")), "{told:?}");
    let text = |to: &str| {
        let found = told.iter().find(|notice| notice.contains(&format!("To: <{to}>")));
        found.unwrap_or_else(|| panic!("{told:?}"))
    };
    let failed = text("failed@sender.test");
    for line in [
        "Final-Recipient: rfc822;no-one@hung.test\r\n",
        "Action: failed\r\nStatus: 5.1.1\r\n",
        "Diagnostic-Code: smtp; 550 5.1.1 nobody of that name",
        "Original-Envelope-Id: QQ314\r\n",
        "Subject: about\r\n",
    ] {
        assert!(failed.contains(line), "{line}: {failed}");
    }
    assert!(!failed.contains("some@"), "{failed}");
    let delivered = text("asked@sender.test");
    assert!(delivered.contains("Action: delivered\r\nStatus: 2."), "{delivered}");
}
