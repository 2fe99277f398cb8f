//! Certificates and credentials change while the gateway runs, told by SIGHUP.

use std::fs;
use std::os::unix::fs::symlink;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use crate::support::certificates::Issued;
use crate::support::client::Client;
use crate::support::wait;
use crate::{BOTH, Gateway, logins, replace};

const SHARDS: usize = 3;
/// Connections that are looked at: that all of them come to one shard of three has a chance of 3^-15.
const LOOKS: usize = 16;

fn sharded() -> Gateway {
    Gateway::with(&BOTH, |setup| {
        setup.set("shards", SHARDS);
    })
}

/// The certificate that a new connection is shown.
fn shown(gateway: &Gateway, n: usize) -> CertificateDer<'static> {
    let tls = gateway.client();
    let mut client = match n {
        0 => Client::try_greet_tls(gateway.address(0), &tls),
        _ => Client::connect_tls(gateway.address(n), &tls),
    }
    .expect("TLS");
    client.tls().0.peer_certificates().expect("certificates")[0].clone()
}

fn is_shown(gateway: &Gateway, n: usize, issued: &Issued) -> bool {
    shown(gateway, n) == CertificateDer::from_pem_slice(issued.chain.as_bytes()).expect("a certificate")
}

#[test]
fn new_handshakes_see_a_new_certificate_on_every_shard_and_old_sessions_go_on() {
    let gateway = sharded();
    let tls = gateway.client();
    let mut old: Vec<_> =
        (0..LOOKS).map(|_| Client::try_greet_tls(gateway.address(0), &tls).expect("TLS")).collect();
    let (chain, key) = gateway.setup.certificate_files(0);
    for round in 1..=3 {
        let new = gateway.authority.issue(&["mx.test", "localhost"]);
        match round {
            // Put in place of the old ones.
            1 => {
                replace(&key, &new.key);
                replace(&chain, &new.chain);
            }
            // The folder that both are in is another, as where a link says which generation is used.
            2 => {
                for (name, path, text) in [("chain", &chain, &new.chain), ("key", &key, &new.key)] {
                    let target = gateway.setup.file(&format!("{name}.new"), text);
                    let link = gateway.setup.home().join(format!("{name}.link"));
                    symlink(target, &link).expect("a link");
                    fs::rename(link, path).expect("it is put in place");
                }
            }
            // Written over.
            _ => {
                fs::write(&key, &new.key).expect("a key");
                fs::write(&chain, &new.chain).expect("a chain");
            }
        }
        gateway.server.signal("HUP");
        // The gateway looks by itself, too, and perhaps in between: it then keeps what it has.
        wait::until("the new certificate is shown", || is_shown(&gateway, 0, &new));
        for n in 0..2 {
            assert!(
                (0..LOOKS).all(|_| is_shown(&gateway, n, &new)),
                "a shard shows the old one: round {round}, listener {n}"
            );
        }
    }
    for client in &mut old {
        client.deliver("a@client.test", &["b@mx.test"], b"Subject: an old session\r\n\r\nx\r\n");
        client.expect("QUIT", 221);
    }
    gateway.delivered(LOOKS);
}

#[test]
fn what_cannot_be_used_changes_nothing_and_is_told() {
    let gateway = sharded();
    let issued = |n| gateway.setup.certificate_files(n);
    let (chain, key) = issued(0);
    let (good_chain, good_key) =
        (fs::read_to_string(&chain).expect("a chain"), fs::read_to_string(&key).expect("a key"));
    let good = Issued { chain: good_chain.clone(), key: good_key.clone() };
    let other = gateway.authority.issue(&["mx.test"]);
    let table = [
        ("another's key", good_chain.as_str(), other.key.as_str()),
        ("no key", &good_chain, ""),
        ("half a key", &good_chain, &good_key[..good_key.len() / 2]),
        ("no chain", "", &good_key),
        ("a chain that is a key", &good_key, &good_key),
    ];
    for (warned, (what, new_chain, new_key)) in table.into_iter().enumerate() {
        replace(&key, new_key);
        replace(&chain, new_chain);
        gateway.server.signal("HUP");
        gateway.wait_for_lines("certificates were not replaced", warned + 1);
        for n in 0..2 {
            assert!((0..LOOKS).all(|_| is_shown(&gateway, n, &good)), "{what} has taken effect");
        }
    }
    // A file that is gone is no other case; and what is good again is taken.
    fs::remove_file(&key).expect("the key goes");
    gateway.server.signal("HUP");
    gateway.wait_for_lines("certificates were not replaced", table.len() + 1);
    assert!(is_shown(&gateway, 0, &good));
    replace(&key, &other.key);
    replace(&chain, &other.chain);
    gateway.server.signal("HUP");
    wait::until("the new certificate is shown", || is_shown(&gateway, 0, &other));
    let log = gateway.server.log();
    assert!(
        good_key.lines().chain(other.key.lines()).filter(|l| !l.starts_with('-')).all(|l| !log.contains(l)),
        "a key in the log"
    );
}

#[test]
fn credentials_are_replaced_and_broken_ones_are_not() {
    let gateway = Gateway::with(&["tls = \"required\"\nauth = \"required\""], |setup| {
        setup.set("shards", SHARDS);
        logins::set_users(setup, &[("alice", "old")]);
    });
    let tls = gateway.client();
    let try_it = |response: &str| {
        let mut client = Client::try_greet_tls(gateway.address(0), &tls).expect("TLS");
        client.say(&format!("AUTH PLAIN {response}")).code
    };
    // alice with the old password, and with the new one.
    let (old, new) = ("AGFsaWNlAG9sZA==", "AGFsaWNlAG5ldw==");
    assert_eq!((try_it(old), try_it(new)), (235, 535));
    let mut before = Client::try_greet_tls(gateway.address(0), &tls).expect("TLS");
    before.expect(&format!("AUTH PLAIN {old}"), 235);

    let file = gateway.setup.home().join("credentials");
    replace(&file, &logins::line("alice", "new"));
    gateway.server.signal("HUP");
    gateway.wait_for_lines("credentials were read anew", 1);
    assert_eq!((try_it(old), try_it(new)), (535, 235));
    before.deliver("a@client.test", &["b@mx.test"], b"Subject: logged in before\r\n\r\nx\r\n");

    for (n, broken) in ["alice:hunter2\n", "alice\n", "alice:$argon2id$v=19$m=1\n"].into_iter().enumerate() {
        replace(&file, broken);
        gateway.server.signal("HUP");
        gateway.wait_for_lines("the configuration was not replaced", n + 1);
        assert_eq!((try_it(old), try_it(new)), (535, 235), "{broken:?} has taken effect");
    }
    assert!(!gateway.server.log().contains("hunter2"), "a password in the log");
}
