//! TLS of both kinds, with and without resumption, with and without a certificate that is checked.

use std::sync::atomic::Ordering::SeqCst;

use crate::support::harness;
use crate::support::target::{Behaviour, Certificate, Maildir, Target};
use crate::support::wait_for;

fn secured(is_implicit: bool) -> Target {
    let tls = Some((Certificate::new(), is_implicit));
    Target::start(Behaviour { tls, ..Behaviour::default() })
}

#[test]
fn what_is_sent_through_tls_arrives_octet_for_octet() {
    for (word, is_implicit) in [("--starttls", false), ("--implicit-tls", true)] {
        for way in [&["--pipeline"][..], &["--chunking", "--pipeline"], &[]] {
            let maildir = Maildir::new();
            let tls = Some((Certificate::new(), is_implicit));
            let target = Target::start(Behaviour { tls, store: maildir.store(), ..Behaviour::default() });
            let ledger = tempfile::NamedTempFile::new().unwrap();
            let path = ledger.path().to_str().unwrap();
            let words = [word, "--messages", "60", "--size", "40*3,64KiB*2,1MiB*1", "--ledger", path];
            let ran = harness::load(target.address, &[&words[..], way].concat());
            assert_eq!((ran.code, ran.number("/accepted")), (Some(0), 60), "{ran:?}");
            let ran = harness::verify(ledger.path(), maildir.path(), &["--no-duplicates"]);
            assert_eq!(ran.code, Some(0), "{word}: {}", ran.stdout);
        }
    }
}

#[test]
fn sessions_are_resumed_and_counted_as_the_server_counts_them() {
    for (word, is_implicit) in [("--starttls", false), ("--implicit-tls", true)] {
        let target = secured(is_implicit);
        let words = [word, "--messages", "60", "--messages-per-connection", "1"];
        let ran = harness::load(target.address, &words);
        assert_eq!((ran.code, ran.number("/accepted")), (Some(0), 60), "{ran:?}");
        let (full, resumed) = (ran.number("/tls_full"), ran.number("/tls_resumed"));
        assert!(full > 0 && resumed > full, "{full} in full, {resumed} resumed");
        wait_for("the server's count", || {
            let handshakes = target.seen.handshakes.load(SeqCst);
            (handshakes == full + resumed && target.seen.resumed.load(SeqCst) == resumed).then_some(())
        });
    }
}

#[test]
fn without_resumption_every_handshake_is_in_full() {
    let target = secured(false);
    let words =
        ["--starttls", "--tls-resumption", "off", "--messages", "20", "--messages-per-connection", "1"];
    let ran = harness::load(target.address, &words);
    assert_eq!((ran.code, ran.number("/tls_resumed")), (Some(0), 0), "{ran:?}");
    assert!(ran.number("/tls_full") >= 20);
    assert_eq!(target.seen.resumed.load(SeqCst), 0);
}

#[test]
fn a_certificate_is_checked_where_an_authority_is_named() {
    let certificate = Certificate::new();
    let authority = certificate.authority.path().to_str().unwrap().to_owned();
    let target = Target::start(Behaviour { tls: Some((certificate, false)), ..Behaviour::default() });
    let ran = harness::load(target.address, &["--starttls", "--messages", "5", "--tls-ca", &authority]);
    assert_eq!((ran.code, ran.number("/accepted")), (Some(0), 5), "{ran:?}");
    let other = Certificate::new();
    let other = other.authority.path().to_str().unwrap();
    for words in [&["--tls-ca", other][..], &["--tls-ca", &authority, "--tls-name", "other.test"]] {
        let ran = harness::load(target.address, &[&["--starttls", "--duration", "2s"], words].concat());
        assert_eq!((ran.code, ran.number("/accepted")), (Some(1), 0), "{ran:?}");
        let (count, first) = ran.failure("tls").expect("TLS failed");
        assert!(count > 0 && first.contains("invalid peer certificate"), "{first}");
        assert!(ran.stdout.contains("invalid peer certificate"), "{}", ran.stdout);
    }
    assert_eq!(target.seen.messages.load(SeqCst), 5);
}

#[test]
fn starttls_that_is_not_offered_or_is_refused_is_said_to_be_so() {
    let plain = Target::start(Behaviour::default());
    let refusing = Target::start(Behaviour {
        tls: Some((Certificate::new(), false)),
        replies: &[("STARTTLS", "454 4.7.0 not now\r\n")],
        ..Behaviour::default()
    });
    for (target, words) in [(plain, "STARTTLS is not offered"), (refusing, "454 4.7.0 not now")] {
        let ran = harness::load(target.address, &["--starttls", "--duration", "2s"]);
        assert_eq!(ran.code, Some(1), "{ran:?}");
        let (_, first) = ran.failure("refused").expect("it was refused");
        assert!(first.contains(words), "{first}");
        assert_eq!(target.seen.messages.load(SeqCst), 0);
    }
}
