//! Clients that other people wrote, against the built binary: what they sent is what the Maildir holds, octet for octet.

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::process::{Command, Output};

use support::client::Client;
use support::maildir::{self, Stored};
use support::server::Server;
use support::setup::Setup;
use support::tools;
use support::wait;

const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;

/// Content of exactly `size` octets in lines of 78, CRLF included, the last one as short as it must be.
fn lines(size: usize) -> Vec<u8> {
    let mut content = Vec::with_capacity(size + 80);
    while content.len() < size {
        content.extend_from_slice(format!("{:076}\r\n", content.len()).as_bytes());
    }
    content.truncate(size.saturating_sub(2));
    if size > 0 {
        // Where the cut fell within a line end, its CR must not stay behind.
        content.iter_mut().rev().take(2).for_each(|c| *c = if c.is_ascii_control() { b'x' } else { *c });
        content.extend_from_slice(b"\r\n");
    }
    content
}

fn with_header(body: &[u8]) -> Vec<u8> {
    [b"Subject: test\r\n\r\n", body].concat()
}

/// Every content that a transport has been known to change, by name.
fn contents() -> Vec<(&'static str, Vec<u8>)> {
    vec![
        ("0 octets", Vec::new()),
        ("no body", b"Subject: no body\r\n".to_vec()),
        ("empty body", with_header(b"")),
        ("a line that is a dot", with_header(b"before\r\n.\r\nafter\r\n")),
        ("nothing but dots", with_header(b".\r\n..\r\n...\r\n.\r\n")),
        ("a first line that is a dot", b".\r\nafter\r\n".to_vec()),
        ("lines with leading dots", with_header(b".a\r\n..b\r\n. c\r\nd.\r\n.\t\r\n")),
        (
            "a From line first",
            b"From someone Thu Jan  1 00:00:00 1970\r\nSubject: mbox\r\n\r\nx\r\n".to_vec(),
        ),
        ("8-bit octets", with_header(&every_octet_over_127())),
        ("a line of 998 octets", with_header(&long_line(998))),
        ("a line of 999 octets", with_header(&long_line(999))),
        ("a line of 900 kB", with_header(&long_line(900_000))),
        ("a line of 900,000 dots", with_header(&[vec![b'.'; 900_000], b"\r\n".to_vec()].concat())),
        ("empty lines at the end", with_header(b"x\r\n\r\n\r\n\r\n")),
        ("commands as content", with_header(b"QUIT\r\nDATA\r\nMAIL FROM:<a@b>\r\nRSET\r\n")),
        ("4 KiB", lines(4 * KIB)),
        ("4 KiB less one", lines(4 * KIB - 1)),
        ("1 MiB", lines(MIB)),
        ("50 MiB", lines(50 * MIB)),
    ]
}

fn every_octet_over_127() -> Vec<u8> {
    let mut body: Vec<u8> = (0x80..=0xffu8).collect();
    body.extend_from_slice(b"\r\n\xff\xfe.\xff\r\n");
    body
}

fn long_line(size: usize) -> Vec<u8> {
    let mut line: Vec<u8> = (0..size).map(|i| b'a' + (i % 26) as u8).collect();
    line.extend_from_slice(b"\r\n");
    line
}

/// A gateway that takes messages of 50 MiB.
fn roomy() -> Setup {
    let mut setup = Setup::new();
    setup.set("smtp.message_size_max", 64 * MIB);
    setup
}

/// Waits for `count` messages and makes sure that no other is there.
#[track_caller]
fn delivered(setup: &Setup, count: usize) -> Vec<Stored> {
    wait::until("every message is in the Maildir", || maildir::count(setup.maildir()) >= count);
    let stored = maildir::read(setup.maildir());
    assert_eq!(stored.len(), count, "messages in the Maildir");
    stored
}

/// The delivered contents as a multiset, so that order does not matter and two of one kind do.
fn multiset(contents: impl IntoIterator<Item = Vec<u8>>) -> BTreeMap<Vec<u8>, usize> {
    let mut counts = BTreeMap::new();
    for content in contents {
        *counts.entry(content).or_default() += 1;
    }
    counts
}

#[track_caller]
fn assert_same(stored: Vec<Stored>, sent: impl IntoIterator<Item = Vec<u8>>) {
    let difference = |a: &BTreeMap<Vec<u8>, usize>, b: &BTreeMap<Vec<u8>, usize>| -> Vec<String> {
        let only = a.iter().filter(|(content, n)| b.get(*content) != Some(n));
        only.map(|(c, n)| format!("{n} × {} octets: {:?}", c.len(), excerpt(c))).collect()
    };
    let (stored, sent) = (multiset(stored.into_iter().map(|s| s.content)), multiset(sent));
    let (unexpected, missing) = (difference(&stored, &sent), difference(&sent, &stored));
    assert!(
        unexpected.is_empty() && missing.is_empty(),
        "delivered {unexpected:#?}\ninstead of {missing:#?}"
    );
}

fn excerpt(content: &[u8]) -> String {
    String::from_utf8_lossy(&content[..content.len().min(60)]).into_owned()
}

#[track_caller]
fn assert_succeeded(output: &Output) {
    assert!(
        output.status.success(),
        "{}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

/// Runs `tests/real_clients.py` with smtplib: one session, every file of `folder` as a message.
fn smtplib(server: &Server, arguments: &[&str]) -> Output {
    Command::new(tools::program(tools::PYTHON))
        .arg(tools::test_file("real_clients.py"))
        .arg(server.address().to_string())
        .args(arguments)
        .output()
        .expect("python3 runs")
}

#[test]
fn every_content_arrives_octet_for_octet() {
    let setup = roomy();
    let server = setup.start();
    let mut client = Client::greet(server.address());
    let table = contents();
    for (name, content) in &table {
        let reply = client.transact("a@client.test", &["b@mx.test"], content);
        let reply = reply.unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(reply.code, 250, "{name}: {reply:?}");
    }
    client.expect("QUIT", 221);
    let stored = delivered(&setup, table.len());
    assert!(stored.iter().all(|s| s.return_path == "a@client.test"));
    assert!(stored.iter().all(|s| s.received.contains("client.test") && s.received.contains("mx.test")));
    assert_same(stored, table.into_iter().map(|(_, content)| content));
}

#[test]
fn smtplib_sends_every_content() {
    let setup = roomy();
    let server = setup.start();
    let folder = setup.home().join("contents");
    fs::create_dir(&folder).expect("a folder");
    // smtplib rewrites line ends and appends one where none is: only contents of whole CRLF lines are comparable.
    let table: Vec<_> = contents().into_iter().filter(|(name, _)| *name != "0 octets").collect();
    for (i, (_, content)) in table.iter().enumerate() {
        fs::write(folder.join(format!("{i:03}")), content).expect("a content");
    }
    let output = smtplib(&server, &["contents", folder.to_str().expect("UTF-8")]);
    assert_succeeded(&output);
    assert_same(delivered(&setup, table.len()), table.into_iter().map(|(_, content)| content));
}

#[test]
fn smtplib_uses_the_extensions() {
    let mut setup = Setup::new();
    setup.set("accept.domains", "[\"mx.test\", \"xn--bcher-kva.test\", \"bücher.test\"]");
    let server = setup.start();
    let output = smtplib(&server, &["extensions"]);
    assert_succeeded(&output);
    let stored = delivered(&setup, 2);
    let null =
        stored.iter().find(|s| s.return_path.is_empty()).expect("the message of the null reverse-path");
    assert_eq!(null.content, b"Subject: a notification\r\n\r\nx\r\n");
    let utf8 = stored.iter().find(|s| s.return_path == "jürgen@client.test").expect("the SMTPUTF8 message");
    assert!(utf8.received.contains("UTF8SMTP"), "RFC 6531 §4.3: {}", utf8.received);
    assert_eq!(utf8.content, "Subject: grüße\r\n\r\nñ\r\n".as_bytes());
}

#[test]
fn swaks_sends_a_message() {
    let setup = Setup::new();
    let server = setup.start();
    let address = server.address();
    let message = "Subject: swaks\n\n.one dot\n..two dots\n.\nend\n";
    let file = setup.home().join("message");
    fs::write(&file, message).expect("a message");
    let output = Command::new(tools::program("swaks"))
        .args(["--server", &address.ip().to_string(), "--port", &address.port().to_string()])
        .args(["--from", "a@client.test", "--to", "b@mx.test,c@mx.test", "--helo", "client.test"])
        .args(["--data", &format!("@{}", file.display()), "--timeout", "60"])
        .output()
        .expect("swaks runs");
    assert_succeeded(&output);
    wait::until("the message is in the Maildir", || maildir::count(setup.maildir()) >= 1);
    for stored in maildir::read(setup.maildir()) {
        let content = String::from_utf8_lossy(&stored.content).into_owned();
        // swaks ends its data with an empty line of its own.
        assert_eq!(content.trim_end_matches("\r\n"), message.trim_end().replace('\n', "\r\n"));
    }
}

#[test]
fn smtp_source_sends_ten_thousand_messages_over_a_hundred_sessions() {
    const MESSAGES: usize = 10_000;
    let mut setup = Setup::new();
    setup.set("shards", 2);
    let server = setup.start();
    let output = Command::new(tools::program("smtp-source"))
        .args(["-s", "100", "-m", &MESSAGES.to_string(), "-l", "4096"])
        .args(["-f", "a@client.test", "-t", "b@mx.test", "-S", "load"])
        .arg(format!("inet:{}", server.address()))
        .output()
        .expect("smtp-source runs");
    assert_succeeded(&output);
    let stored = delivered(&setup, MESSAGES);
    // smtp-source gives each message its number in the header and the same body.
    let body = |content: &[u8]| {
        let at = content.windows(4).position(|w| w == b"\r\n\r\n").expect("an empty line");
        content[at + 4..].to_vec()
    };
    let first = body(&stored[0].content);
    assert!(stored.iter().all(|s| s.return_path == "a@client.test" && body(&s.content) == first));
    let header = |content: &[u8]| content[..content.len() - first.len()].to_vec();
    let headers = multiset(stored.iter().map(|s| header(&s.content)));
    assert!(
        headers.len() > MESSAGES / 2,
        "{} different headers: messages were merged or copied",
        headers.len()
    );
}

#[test]
fn recipients_of_one_maildir_share_a_copy_and_those_of_their_own_have_one_each() {
    let recipients: Vec<String> = (0..5).map(|i| format!("r{i}@mx.test")).collect();
    let recipients: Vec<&str> = recipients.iter().map(String::as_str).collect();
    let content = with_header(b"to five\r\n");
    for (template, copies) in [("", 1), ("{recipient}", recipients.len())] {
        let mut setup = Setup::new();
        let folder = setup.maildir().to_path_buf();
        setup.maildir_at(folder.join(template));
        let server = setup.start();
        Client::greet(server.address()).deliver("a@client.test", &recipients, &content);
        setup.maildir_at(folder);
        assert_same(delivered(&setup, copies), vec![content.clone(); copies]);
    }
}

#[test]
fn a_refused_recipient_leaves_no_trace() {
    let mut setup = Setup::new();
    setup.set("accept.domains", "[\"mx.test\"]");
    let server = setup.start();
    let mut client = Client::greet(server.address());
    client.expect("MAIL FROM:<a@client.test>", 250);
    assert_eq!(client.say("RCPT TO:<x@elsewhere.test>").line().get(..9), Some("550 5.7.1"));
    assert_eq!(client.say("DATA").code / 100, 5, "no recipient was accepted");
    client.expect("RSET", 250);
    let content = with_header(b"to one\r\n");
    client.expect("MAIL FROM:<a@client.test>", 250);
    client.expect("RCPT TO:<x@elsewhere.test>", 550);
    client.expect("RCPT TO:<b@mx.test>", 250);
    client.expect("RCPT TO:<mx.test@elsewhere.test>", 550);
    client.expect("DATA", 354);
    let reply = client.content(&content).expect("a reply");
    assert_eq!(reply.code, 250, "{reply:?}");
    assert_same(delivered(&setup, 1), [content]);
    assert!(!tree(setup.maildir()).contains("elsewhere"), "a refused recipient's name in the Maildir");
}

/// The names of all files and folders below a folder, one a line.
fn tree(folder: &std::path::Path) -> String {
    let output = tools::run("find", [folder]);
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn the_size_limit_holds_on_both_sides() {
    const LIMIT: usize = 100_000;
    let mut setup = Setup::new();
    setup.set("smtp.message_size_max", LIMIT);
    let server = setup.start();
    let mut client = Client::greet(server.address());
    client.expect(&format!("MAIL FROM:<a@client.test> SIZE={LIMIT}"), 250);
    client.expect("RSET", 250);
    let refused = client.say(&format!("MAIL FROM:<a@client.test> SIZE={}", LIMIT + 1));
    assert_eq!(refused.line().get(..9), Some("552 5.3.4"));
    // What was not declared is refused at its true end, and no octet of it is a command.
    let too_large = client.transact("a@client.test", &["b@mx.test"], &lines(LIMIT + 1)).expect("a reply");
    assert_eq!(too_large.line().get(..9), Some("552 5.3.4"));
    let content = lines(LIMIT);
    client.deliver("a@client.test", &["b@mx.test"], &content);
    client.expect("QUIT", 221);
    assert_same(delivered(&setup, 1), [content]);
}

#[test]
fn the_hundred_and_first_recipient_is_refused_and_the_hundred_are_served() {
    const LIMIT: usize = 100;
    let mut setup = Setup::new();
    let folder = setup.maildir().to_path_buf();
    setup.set("smtp.recipients_max", LIMIT).maildir_at(folder.join("{recipient}"));
    let server = setup.start();
    let mut client = Client::greet(server.address());
    client.expect("MAIL FROM:<a@client.test>", 250);
    for i in 0..LIMIT {
        client.expect(&format!("RCPT TO:<r{i}@mx.test>"), 250);
    }
    setup.maildir_at(folder);
    assert_eq!(client.say("RCPT TO:<r100@mx.test>").line().get(..9), Some("452 4.5.3"));
    client.expect("DATA", 354);
    let content = with_header(b"to a hundred\r\n");
    let reply = client.content(&content).expect("a reply");
    assert_eq!(reply.code, 250, "{reply:?}");
    assert_same(delivered(&setup, LIMIT), vec![content; LIMIT]);
}
