//! The configuration is read anew while the gateway runs: put into force as a whole, or not at all; no session is dropped.

mod support;

use std::fs;
use std::net::SocketAddr;
use std::sync::Arc;

use support::client::Client;
use support::ledger::{self, Ledger};
use support::load::Load;
use support::maildir;
use support::server::Server;
use support::setup::Setup;
use support::wait;

const GOOD: &str = "the configuration was read anew";
const BAD: &str = "the configuration was not replaced";

/// Has the configuration of `setup` read anew, and waits until the log says how that went.
fn reload(setup: &Setup, server: &Server, words: &str) -> String {
    setup.write();
    reload_file(server, words)
}

fn reload_file(server: &Server, words: &str) -> String {
    let count = |log: &str| log.matches(words).count();
    let before = count(&server.log());
    server.signal("HUP");
    wait::until(words, || count(&server.log()) > before);
    server.log().lines().rev().find(|line| line.contains(words)).expect("it was just there").into()
}

fn greeting(address: SocketAddr) -> String {
    let mut client = Client::connect(address).expect("a connection");
    client.reply().expect("a greeting").text
}

#[test]
fn new_sessions_have_the_new_configuration_and_old_ones_go_on_with_theirs() {
    let mut setup = Setup::new();
    setup.set("shards", "2");
    let server = setup.start();
    let address = server.address();
    let mut old = Client::greet(address);
    old.expect("MAIL FROM:<a@client.test>", 250);
    assert!(greeting(address).contains("mx.test"), "{}", greeting(address));
    setup.set("hostname", "\"other.test\"").set("smtp.recipients_max", "100");
    let line = reload(&setup, &server, GOOD);
    assert!(line.contains("hostname") && line.contains("smtp.recipients_max"), "{line}");
    for _ in 0..4 {
        assert!(greeting(address).contains("other.test"), "{}", greeting(address));
    }
    old.expect("RCPT TO:<b@mx.test>", 250);
    old.expect("DATA", 354);
    assert_eq!(old.content(&ledger::content(0)).unwrap().code, 250);
    Client::greet(address).deliver("a@client.test", &["b@mx.test"], &ledger::content(0));
    wait::until("both are delivered", || maildir::count(setup.maildir()) == 2);
}

#[test]
fn a_bad_file_changes_nothing_and_the_log_says_why() {
    let mut setup = Setup::new();
    let server = setup.start();
    let address = server.address();
    let good = setup.toml();
    let file = setup.home().join("incoming.toml");
    let certificate =
        "\n[tls]\ncertificates = [{ chain = \"/nowhere/chain.pem\", key = \"/nowhere/key.pem\" }]\n";
    let table = [
        (good.replace("mx.test", "not a name"), "hostname"),
        (good.clone() + "\n[[listener]]\naddress = \"192.0.2.1:25\"\n", "192.0.2.1:25"),
        (
            good.replace("address = \"127.0.0.1:0\"", "address = \"127.0.0.1:0\"\ntls = \"optional\"")
                + certificate,
            "/nowhere/",
        ),
        (good.replace("transport = \"store\"", "transport = \"nowhere\""), "nowhere"),
    ];
    for (bad, words) in table {
        // Something else that would change.
        fs::write(&file, bad.replace("hostname = \"mx.test\"", "hostname = \"other.test\"")).unwrap();
        let line = reload_file(&server, BAD);
        assert!(line.contains(words), "{line}");
        assert!(greeting(address).contains("mx.test"));
        Client::greet(address).deliver("a@client.test", &["b@mx.test"], &ledger::content(0));
    }
    wait::until("all are delivered", || maildir::count(setup.maildir()) == 4);
    setup.set("hostname", "\"other.test\"");
    reload(&setup, &server, GOOD);
    assert!(greeting(address).contains("other.test"));
}

#[test]
fn what_waits_goes_where_the_new_configuration_says() {
    let mut setup = Setup::new();
    setup.retry_soon().set("shards", "2").set("transport.other.type", "\"maildir\"");
    let other = setup.home().join("other");
    setup.set("transport.other.path", format!("{other:?}"));
    let server = setup.start();
    setup.hold_deliveries();
    for n in 0..6 {
        Client::greet(server.address()).deliver(
            "a@client.test",
            &["b@mx.test", "c@mx.test"],
            &ledger::content(n),
        );
    }
    wait::until("they were tried", || server.log().matches("deferred=2").count() >= 6);
    setup.set("route", "[{ recipients = [\"c@mx.test\"], to = [\"other\"] }]");
    reload(&setup, &server, GOOD);
    wait::until("those of the route are delivered", || maildir::count(&other) == 6);
    setup.release_deliveries();
    wait::until("and the others", || maildir::count(setup.maildir()) == 6);
    // A target that is gone keeps nothing back.
    setup.hold_deliveries();
    Client::greet(server.address()).deliver("a@client.test", &["b@mx.test"], &ledger::content(9));
    wait::until("it was tried", || server.log().matches("deferred=1").count() >= 1);
    setup.set("delivery.transport", "\"other\"").set("route", "[]");
    reload(&setup, &server, GOOD);
    wait::until("it is delivered elsewhere", || maildir::count(&other) == 7);
    setup.release_deliveries();
    assert_eq!(maildir::count(setup.maildir()), 6);
}

#[test]
fn listeners_come_and_go() {
    let mut setup = Setup::new();
    let server = setup.start();
    let first = server.address();
    let second: SocketAddr = ([127, 0, 0, 1], support::mail_servers::free_port()).into();
    setup.listen(&["127.0.0.1:0", &second.to_string()]);
    reload(&setup, &server, GOOD);
    let mut kept = Client::greet(second);
    Client::greet(first).deliver("a@client.test", &["b@mx.test"], &ledger::content(0));
    setup.listen(&["127.0.0.1:0"]);
    reload(&setup, &server, GOOD);
    wait::until("nobody listens there", || Client::connect(second).is_err());
    kept.deliver("a@client.test", &["b@mx.test"], &ledger::content(0));
    Client::greet(first).deliver("a@client.test", &["b@mx.test"], &ledger::content(0));
    wait::until("all are delivered", || maildir::count(setup.maildir()) == 3);
}

#[test]
fn what_needs_a_restart_is_said_and_stays_as_it_was() {
    let mut setup = Setup::new();
    let server = setup.start();
    setup.set("shards", "2").set("spool.segment_size", 16 << 20).set("hostname", "\"other.test\"");
    reload(&setup, &server, GOOD);
    let line = "changed, and as they were until the next start";
    wait::until(line, || server.log().contains(line));
    let log = server.log();
    let line = log.lines().find(|l| l.contains(line)).unwrap();
    assert!(
        line.contains("shards") && line.contains("spool.segment_size") && !line.contains("hostname"),
        "{line}"
    );
    assert!(greeting(server.address()).contains("other.test"));
}

#[test]
fn what_has_been_counted_is_not_forgotten() {
    let mut setup = Setup::new();
    let limit = "{ type = \"rate_limit\", count = \"transactions\", limit = 2, window = \"1h\" }";
    setup.set("policy", format!("[{limit}]"));
    let server = setup.start();
    let mail = |code| Client::greet(server.address()).expect("MAIL FROM:<a@client.test>", code);
    mail(250);
    setup.set("policy", format!("[{limit}, {{ type = \"size_limit\", max = \"1MiB\" }}]"));
    reload(&setup, &server, GOOD);
    mail(250);
    mail(451);
    setup.set("policy", format!("[{}]", limit.replace("limit = 2", "limit = 4")));
    reload(&setup, &server, GOOD);
    mail(250);
}

#[test]
fn nothing_is_lost_and_no_session_dropped_by_reloads_under_load() {
    let mut setup = Setup::new();
    setup.set("shards", "2").retry_soon().set("transport.other.type", "\"maildir\"");
    let path = format!("{:?}", setup.maildir());
    setup.set("transport.other.path", path);
    let server = setup.start();
    let ledger = Arc::new(Ledger::default());
    let load = Load::start(server.address(), &ledger, 8);
    let mut kept = Client::greet(server.address());
    for n in 0..20 {
        let before = ledger.acknowledged_count();
        wait::until("mail is taken", || ledger.acknowledged_count() > before + 20);
        setup.set("delivery.transport", if n % 2 == 0 { "\"other\"" } else { "\"store\"" });
        setup.set("smtp.recipients_max", 100 + n);
        reload(&setup, &server, GOOD);
        kept.expect("NOOP", 250);
    }
    load.stop();
    let accepted = ledger.acknowledged_count();
    wait::until("everything is delivered", || maildir::count(setup.maildir()) >= accepted);
    drop(server);
    let balance = ledger.assert_kept(setup.maildir());
    assert_eq!(balance.duplicates, 0, "{balance:?}");
    assert_eq!(ledger.refusals().len(), 0, "{:?}", ledger.refusals());
}
