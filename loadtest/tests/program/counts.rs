//! The harness's counts are those of the servers it loads, and what it sends is what they receive.

use std::collections::BTreeMap;
use std::fs;
use std::sync::atomic::Ordering::SeqCst;

use crate::support::harness;
use crate::support::servers::Server;
use crate::support::target::{Behaviour, Maildir, Target};
use crate::support::wait_for;

/// Messages that are apt to be changed on the way: dots, 8-bit, long lines, no line end at their ends, no content at all.
const AWKWARD: [(&str, &[u8]); 7] = [
    ("dots.eml", b"Subject: dots\r\n\r\n.\r\n..\r\n.a\r\n...\r\nb.\r\n.\r\n"),
    ("dot-first.eml", b".\r\n"),
    ("eight-bit.eml", b"Subject: \xff\xfe\r\n\r\n\x80\x81 caf\xc3\xa9\r\n"),
    ("no-end.eml", b"Subject: no end\r\n\r\nlast"),
    ("lf.eml", b"Subject: lf\n\n.line\n\n"),
    ("empty.eml", b""),
    ("from.eml", b"Subject: from\r\n\r\n\r\nFrom here on\r\n>From there\r\n"),
];

/// Sends, and verifies; the target's own counts agree.
#[track_caller]
fn send_and_verify(words: &[&str], recipients: u64, is_chunking: bool, is_pipelined: bool) {
    let maildir = Maildir::new();
    let target = Target::start(Behaviour { store: maildir.store(), ..Behaviour::default() });
    let ledger = tempfile::NamedTempFile::new().unwrap();
    let count = recipients.to_string();
    let mut all = vec!["--ledger", ledger.path().to_str().unwrap(), "--recipients", &count];
    all.extend(is_chunking.then_some("--chunking"));
    all.extend(is_pipelined.then_some("--pipeline"));
    all.extend(words);
    let ran = harness::load(target.address, &all);
    let seen = &target.seen;
    let messages = seen.messages.load(SeqCst);
    assert_eq!((ran.code, ran.number("/accepted")), (Some(0), messages), "{all:?}: {ran:?}");
    assert_eq!(ran.number("/recipients"), messages * recipients);
    assert_eq!(seen.recipients.load(SeqCst), messages * recipients);
    assert_eq!(seen.chunked.load(SeqCst), if is_chunking { messages } else { 0 });
    assert_eq!(seen.grouped.load(SeqCst), if is_pipelined { messages } else { 0 });
    let ran = harness::verify(ledger.path(), maildir.path(), &["--no-duplicates"]);
    assert_eq!(ran.code, Some(0), "{all:?}: {}", ran.stdout);
    assert_eq!((ran.number("/acknowledged"), ran.number("/delivered")), (messages, messages));
}

#[test]
fn every_way_of_sending_arrives_octet_for_octet() {
    let sizes = "40*5,41*1,119*1,4KiB*4,64KiB*2,65537*1,1MiB*1";
    for is_chunking in [false, true] {
        for is_pipelined in [false, true] {
            for recipients in [1, 5] {
                let words = ["--messages", "120", "--size", sizes];
                send_and_verify(&words, recipients, is_chunking, is_pipelined);
            }
        }
    }
}

#[test]
fn awkward_messages_arrive_octet_for_octet_from_a_folder_and_from_an_mbox() {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("below")).unwrap();
    let mut mbox = Vec::new();
    for (name, octets) in AWKWARD {
        fs::write(folder.path().join("below").join(name), octets).unwrap();
        mbox.extend_from_slice(b"From a@b.test Mon Jan  1 00:00:00 2024\n");
        mbox.extend_from_slice(octets);
        mbox.extend_from_slice(b"\n\n");
    }
    fs::write(
        folder.path().join("long.eml"),
        [b"Subject: long\r\n\r\n".as_slice(), &[b'.'; 200_000]].concat(),
    )
    .unwrap();
    let mbox_file = tempfile::NamedTempFile::new().unwrap();
    fs::write(mbox_file.path(), mbox).unwrap();
    for corpus in [folder.path(), mbox_file.path()] {
        for (is_chunking, is_pipelined) in [(false, false), (false, true), (true, false), (true, true)] {
            let words = ["--messages", "100", "--corpus", corpus.to_str().unwrap()];
            send_and_verify(&words, 1, is_chunking, is_pipelined);
        }
    }
}

#[test]
fn a_corpus_arrives_as_its_files_are_but_for_line_ends() {
    let source = tempfile::tempdir().unwrap();
    let mut expected: BTreeMap<Vec<u8>, u64> = BTreeMap::new();
    for (name, octets) in AWKWARD {
        fs::write(source.path().join(name), octets).unwrap();
        let mut content = String::from_utf8_lossy(octets).replace("\r\n", "\n").replace('\n', "\r\n");
        if !content.is_empty() && !content.ends_with("\r\n") {
            content += "\r\n";
        }
        // Lossy only for the one that is not UTF-8, which stands here as it is.
        let content = if name == "eight-bit.eml" { octets.to_vec() } else { content.into_bytes() };
        expected.insert(content, 0);
    }
    let maildir = Maildir::new();
    let target = Target::start(Behaviour { store: maildir.store(), ..Behaviour::default() });
    let ran =
        harness::load(target.address, &["--messages", "200", "--corpus", source.path().to_str().unwrap()]);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    for entry in fs::read_dir(maildir.path().join("new")).unwrap() {
        let octets = fs::read(entry.unwrap().path()).unwrap();
        let content = &octets["Return-Path: <>\r\nX-Loadtest-Id: ".len() + 21 + 2..];
        let count = expected.get_mut(content);
        *count.unwrap_or_else(|| panic!("{:?}", String::from_utf8_lossy(content))) += 1;
    }
    assert!(expected.values().all(|count| *count > 0), "{expected:?}");
}

#[test]
fn smtp_sink_counts_as_many() {
    for words in [&["--pipeline"][..], &[], &["--pipeline", "--recipients", "5", "--size", "100KiB"]] {
        let sink = Server::smtp_sink();
        let ran = harness::load(sink.address, &[&["--messages", "500"], words].concat());
        assert_eq!((ran.code, ran.number("/accepted")), (Some(0), 500), "{ran:?}");
        wait_for("500 messages of smtp-sink", || (sink.sink_count()? == 500).then_some(()));
    }
}

#[test]
fn the_gateway_delivers_what_it_acknowledged_and_nothing_else() {
    let corpus = tempfile::tempdir().unwrap();
    for (name, octets) in AWKWARD {
        fs::write(corpus.path().join(name), octets).unwrap();
    }
    let corpus = corpus.path().to_str().unwrap();
    let gateway = Server::gateway();
    let mut delivered = 0;
    // A Maildir that all recipients share is given one copy of each message.
    for words in [
        &["--pipeline", "--messages", "500"][..],
        &["--messages", "200", "--recipients", "5"],
        &["--pipeline", "--messages", "200", "--recipients", "5", "--to", "inbox-{n}@mx.test"],
        &["--pipeline", "--messages", "60", "--size", "40*3,1MiB*1"],
        &["--pipeline", "--duration", "500ms"],
        &["--pipeline", "--messages", "100", "--corpus", corpus],
        &["--messages", "100", "--messages-per-connection", "3", "--corpus", corpus],
    ] {
        let ledger = tempfile::NamedTempFile::new().unwrap();
        let path = ledger.path().to_str().unwrap();
        let ran = harness::load(gateway.address, &[&["--ledger", path], words].concat());
        assert_eq!((ran.code, ran.number("/failed")), (Some(0), 0), "{words:?}: {ran:?}");
        let acknowledged = fs::read_to_string(ledger.path()).unwrap().lines().count() - 1;
        delivered += acknowledged;
        wait_for("delivery", || (gateway.delivered_count() >= delivered).then_some(()));
        let ran = harness::verify(ledger.path(), &gateway.maildir(), &["--no-duplicates"]);
        assert_eq!(ran.code, Some(0), "{words:?}: {}", ran.stdout);
        assert_eq!(ran.number("/files"), delivered as u64);
        assert_eq!(ran.number("/acknowledged"), acknowledged as u64);
        assert_eq!(ran.number("/unacknowledged") + ran.number("/nameless"), 0);
    }
}
